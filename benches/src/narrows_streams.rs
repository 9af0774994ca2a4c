//! Streams of narrows, with default options except for the way to wait.
//!
//! `Copy` is `send` and `recv_into`. `InPlace` writes into a reservation and reads the lent message through the two
//! `unsafe` borrows. A message too long for one reservation is sent by `send`, and `recv_ref` lends it reassembled.

use std::path::Path;

use crate::limits::Connect;
use crate::retry::retry;
use crate::source::{Check, Source};
use crate::sys;
use crate::system::{Access, ReceiveHalf, SendHalf, Side, System, Wait, Work, WorkKind};
use anyhow::Result;
use narrows::{Options, SharedMemoryListener, SharedMemoryStream, WaitStrategy};

/// Messages copied, or in place, over one stream.
#[derive(Debug)]
pub struct Narrows;

impl System for Narrows {
    const NAME: &'static str = "narrows";
    const VERSION: &'static str = "0.1.0";
    type Sender = NarrowsSender;
    type Receiver = NarrowsReceiver;

    fn supports(work: &Work) -> bool {
        let in_place = work.batch == 1 && work.is_stream(); // A batch is of messages that are copied in.
        work.kind != WorkKind::Connect && (work.access == Access::Copy || in_place)
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(NarrowsSender, NarrowsReceiver)> {
        let (sender, receiver) = open(side, folder, work.wait)?.split();
        let in_place = work.access == Access::InPlace;
        let sender = NarrowsSender { sender, in_place };
        Ok((sender, NarrowsReceiver { receiver, in_place, buffer: Vec::new() }))
    }
}

/// The cost of lending itself: reserves, writes the number alone, commits; borrows, reads the number alone, releases.
#[derive(Debug)]
pub struct NarrowsLend;

impl System for NarrowsLend {
    const NAME: &'static str = "narrows-lend";
    const VERSION: &'static str = "0.1.0";
    type Sender = LendSender;
    type Receiver = LendReceiver;

    fn supports(work: &Work) -> bool {
        let one_reservation = work.size <= 1 << 20;
        work.access == Access::InPlace && work.batch == 1 && work.is_stream() && one_reservation
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(LendSender, LendReceiver)> {
        let (sender, receiver) = open(side, folder, work.wait)?.split();
        Ok((LendSender(sender), LendReceiver(receiver)))
    }
}

/// A half of [`NarrowsLend`].
#[derive(Debug)]
pub struct LendSender(narrows::Sender);

impl SendHalf for LendSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        let mut room = self.0.reserve(message.len())?;
        room.write_at(0, &message[..8.min(message.len())])?;
        Ok(room.commit()?)
    }
}

/// A half of [`NarrowsLend`].
#[derive(Debug)]
pub struct LendReceiver(narrows::Receiver);

impl ReceiveHalf for LendReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        let mut lent = self.0.recv_ref()?;
        sys::with_bytes(&lent.raw()?, |bytes| check.validate_number(bytes));
        Ok(lent.finish()?)
    }
}

/// A new stream for each message.
#[derive(Debug)]
pub struct NarrowsConnect;

impl Connect for NarrowsConnect {
    const NAME: &'static str = "narrows-connect";
    type Listener = SharedMemoryListener;
    type Stream = SharedMemoryStream;

    fn listen(path: &Path) -> Result<SharedMemoryListener> {
        Ok(SharedMemoryListener::bind(path)?)
    }

    fn accept(listener: &SharedMemoryListener) -> Result<SharedMemoryStream> {
        Ok(listener.accept()?)
    }

    fn connect(path: &Path) -> Result<SharedMemoryStream> {
        Ok(SharedMemoryStream::connect(path)?)
    }

    fn send(stream: &mut SharedMemoryStream, message: &[u8]) -> Result<()> {
        Ok(stream.send(message)?)
    }

    fn receive(stream: &mut SharedMemoryStream, buffer: &mut Vec<u8>) -> Result<()> {
        stream.recv_into(buffer)?;
        Ok(())
    }
}

/// Returns the default options with a way to wait.
pub fn options(wait: Wait) -> Options {
    Options::new().wait(match wait {
        Wait::Spin => WaitStrategy::Spin,
        Wait::Adaptive => WaitStrategy::Adaptive,
        Wait::Park => WaitStrategy::Park,
    })
}

fn open(side: Side, folder: &Path, wait: Wait) -> Result<SharedMemoryStream> {
    let path = folder.join("socket");
    if side == Side::B {
        return Ok(options(wait).bind(path)?.accept()?);
    }
    retry(|| options(wait).connect(&path))
}

/// The sending half of [`Narrows`].
#[derive(Debug)]
pub struct NarrowsSender {
    sender: narrows::Sender,
    in_place: bool,
}

impl SendHalf for NarrowsSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        if self.in_place && message.len() <= self.sender.max_in_place() {
            let mut room = self.sender.reserve(message.len())?;
            sys::fill(&mut room.raw()?, message);
            room.commit()?;
        } else {
            self.sender.send(message)?;
        }
        Ok(())
    }

    #[inline]
    fn send_batch(&mut self, source: &mut Source, messages: usize) -> Result<()> {
        if messages == 1 {
            return self.send(source.message());
        }
        let mut batch = self.sender.batch();
        for _ in 0..messages {
            batch.push(source.message())?;
        }
        Ok(batch.flush()?)
    }
}

/// The receiving half of [`Narrows`].
#[derive(Debug)]
pub struct NarrowsReceiver {
    receiver: narrows::Receiver,
    in_place: bool,
    buffer: Vec<u8>,
}

impl ReceiveHalf for NarrowsReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        if self.in_place {
            let mut lent = self.receiver.recv_ref()?;
            sys::with_bytes(&lent.raw()?, |bytes| check.validate(bytes));
            lent.finish()?;
        } else {
            self.receiver.recv_into(&mut self.buffer)?;
            check.validate(&self.buffer);
        }
        Ok(())
    }
}

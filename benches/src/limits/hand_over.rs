//! The bare hand-over by cache line: write the bytes, store a word; the other side spins on that word.
//!
//! ```text
//!   one mailbox for each direction:   | turn word | 56 bytes | payload, if it is longer … |
//! ```
//!
//! With 8 B in place this is the bare cache-line ping-pong. `Copy` copies the bytes out before it reads them.

use std::fs::{self, File};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use anyhow::Result;

use crate::retry::retry;
use crate::source::Check;
use crate::sys::{self, SharedBytes};
use crate::system::{ReceiveBuffer, ReceiveHalf, SendHalf, Side, System, Wait, Work, WorkKind};

pub(crate) struct HandOver;

impl System for HandOver {
    const NAME: &'static str = "hand-over";
    const VERSION: &'static str = "";
    type Sender = HandOverSender;
    type Receiver = HandOverReceiver;

    fn supports(work: &Work) -> bool {
        work.kind == WorkKind::RoundTrip && work.wait == Wait::Spin && work.batch == 1
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(HandOverSender, HandOverReceiver)> {
        let mailboxes = Mailboxes::open(side, folder, work.size)?;
        let sender = HandOverSender { mailboxes: mailboxes.clone(), at: mailboxes.at(side), turn: 0 };
        let receiver = HandOverReceiver {
            at: mailboxes.at(side.other()),
            mailboxes,
            turn: 0,
            buffer: ReceiveBuffer::new(work),
        };
        Ok((sender, receiver))
    }
}

/// The two mailboxes, in a file that both sides map.
#[derive(Clone)]
pub(super) struct Mailboxes {
    pub(super) bytes: Rc<SharedBytes>,
    size: usize,
}

/// The gap between the memory of the two directions.
const APART: usize = 4096;

impl Mailboxes {
    /// Maps the file, which side A makes and side B waits for.
    pub(super) fn open(side: Side, folder: &Path, size: usize) -> Result<Self> {
        let (path, hidden) = (folder.join("boxes"), folder.join("hidden"));
        if side == Side::A {
            let file = File::options().read(true).write(true).create_new(true).open(&hidden)?;
            file.set_len((2 * Self::length(size)) as u64)?;
            fs::rename(hidden, &path)?;
        }
        let file = retry(|| File::options().read(true).write(true).open(&path))?;
        let bytes = SharedBytes::of(&file)?;
        Ok(Self { bytes: Rc::new(bytes), size })
    }

    fn length(size: usize) -> usize {
        (64 + size).next_multiple_of(APART) + APART
    }

    /// Returns the offset of the mailbox in which this side sends.
    pub(super) fn at(&self, side: Side) -> usize {
        if side == Side::A { 0 } else { Self::length(self.size) }
    }

    /// Returns the offset of the payload: on the cache line of the turn word, if it fits there.
    pub(super) fn payload(&self, at: usize) -> usize {
        if self.size <= 56 { at + 8 } else { at + 64 }
    }
}

/// Writes and stores.
pub(crate) struct HandOverSender {
    mailboxes: Mailboxes,
    at: usize,
    turn: u64,
}

impl SendHalf for HandOverSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.mailboxes.bytes.write(self.mailboxes.payload(self.at), message);
        self.turn += 1;
        self.mailboxes.bytes.word(self.at).store(self.turn, Ordering::Release);
        Ok(())
    }
}

/// Spins and reads.
pub(crate) struct HandOverReceiver {
    mailboxes: Mailboxes,
    at: usize,
    turn: u64,
    buffer: ReceiveBuffer,
}

impl ReceiveHalf for HandOverReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        self.turn += 1;
        sys::spin_while_not(self.mailboxes.bytes.word(self.at), self.turn);
        let message = self.mailboxes.bytes.lend(self.mailboxes.payload(self.at), check.size());
        self.buffer.validate(message, check);
        Ok(())
    }
}

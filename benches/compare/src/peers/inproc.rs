//! Bounds, not peers: channels between two threads of one process.
//!
//! `rtrb`: `push` and `pop` as in its README up to 1 KiB, its chunks beyond and for batches (one chunk for a batch);
//! it never sleeps. `crossbeam-channel`: `bounded`, `send` and `recv`, which spin a little and then park; values of
//! up to 1 KiB travel in the channel, longer ones as a `Vec` for each message, which hands the memory over.
//! Better at than narrows: no processes, so no death of one of them, no descriptors, no trust to withhold; any `T`.
//! Cannot: leave the process.

use std::any::Any;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Mutex;

use crossbeam_channel as channel;
use harness::{
    Access, Check, ReceiveHalf, Result, SendHalf, Side, Source, Subject, System, Wait, Work, anyhow, retry,
};

use crate::rendezvous;
use crate::sized::sized;

/// Side B's ends, until it takes them: a process has one row.
static LEFT: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);

/// Side A makes both directions and leaves one end of each to side B.
fn share<S: Send + 'static, R: Send + 'static>(side: Side, make: impl Fn() -> (S, R)) -> Result<(S, R)> {
    let left = || LEFT.lock().map_err(|_| anyhow!("side A panicked"));
    if side == Side::A {
        let ((to_b, from_a), (to_a, from_b)) = (make(), make());
        *left()? = Some(Box::new((to_a, from_a)));
        return Ok((to_b, from_b));
    }
    let ends = retry(|| left()?.take().ok_or_else(|| anyhow!("side A is missing")))?;
    ends.downcast().map(|ends| *ends).map_err(|_| anyhow!("other ends than asked for"))
}

/// `rtrb::RingBuffer<[u8; N]>`.
pub(crate) struct RtrbThreads<const N: usize>;

impl<const N: usize> RtrbThreads<N> {
    /// Whether values of this size go by the stack.
    const SMALL: bool = N <= 1 << 10;
}

impl<const N: usize> System for RtrbThreads<N> {
    const NAME: &'static str = "rtrb";
    const VERSION: &'static str = "0.4.1";
    const THREADS: bool = true;
    type Sender = RtrbThreadSender<N>;
    type Receiver = RtrbThreadReceiver<N>;

    fn supports(work: &Work) -> bool {
        work.wait == Wait::Spin
    }

    fn open(side: Side, _folder: &Path, work: &Work) -> Result<(Self::Sender, Self::Receiver)> {
        let (producer, consumer) = share(side, || rtrb::RingBuffer::<[u8; N]>::new(rendezvous::slots(N)))?;
        let copy = work.access == Access::Copy;
        let buffer = vec![0; if copy && !Self::SMALL { N } else { 0 }];
        Ok((RtrbThreadSender(producer), RtrbThreadReceiver { consumer, copy, buffer }))
    }
}

pub(crate) struct RtrbThreadSender<const N: usize>(rtrb::Producer<[u8; N]>);

impl<const N: usize> RtrbThreadSender<N> {
    #[inline]
    fn chunk(&mut self, messages: usize) -> rtrb::chunks::WriteChunkUninit<'_, [u8; N]> {
        while self.0.slots() < messages {
            std::hint::spin_loop();
        }
        self.0.write_chunk_uninit(messages).expect("slots that were just counted")
    }
}

impl<const N: usize> SendHalf for RtrbThreadSender<N> {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        let message: &[u8; N] = message.try_into()?;
        if !RtrbThreads::<N>::SMALL {
            let mut chunk = self.chunk(1);
            initialize(&mut chunk.as_mut_slices().0[0], message);
            // SAFETY: its one slot has been written.
            unsafe { chunk.commit_all() };
            return Ok(());
        }
        while self.0.push(*message).is_err() {
            std::hint::spin_loop();
        }
        Ok(())
    }

    #[inline]
    fn send_batch(&mut self, source: &mut Source, messages: usize) -> Result<()> {
        if messages == 1 {
            return self.send(source.message());
        }
        let mut chunk = self.chunk(messages);
        let (first, second) = chunk.as_mut_slices();
        for slot in first.iter_mut().chain(second) {
            initialize(slot, source.message().try_into()?);
        }
        // SAFETY: all its slots have been written.
        unsafe { chunk.commit_all() };
        Ok(())
    }
}

/// Writes a message where it stays: a value of this size would go by the stack.
#[inline]
fn initialize<const N: usize>(slot: &mut MaybeUninit<[u8; N]>, message: &[u8; N]) {
    // SAFETY: room for N bytes, which both are.
    unsafe { slot.as_mut_ptr().copy_from_nonoverlapping(message, 1) };
}

pub(crate) struct RtrbThreadReceiver<const N: usize> {
    consumer: rtrb::Consumer<[u8; N]>,
    copy: bool,
    buffer: Vec<u8>,
}

impl<const N: usize> ReceiveHalf for RtrbThreadReceiver<N> {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        if RtrbThreads::<N>::SMALL && self.copy {
            loop {
                if let Ok(message) = self.consumer.pop() {
                    check.validate(&message);
                    return Ok(());
                }
                std::hint::spin_loop();
            }
        }
        let chunk = loop {
            if self.consumer.slots() > 0 {
                break self.consumer.read_chunk(1)?;
            }
            std::hint::spin_loop();
        };
        let message = &chunk.as_slices().0[0];
        if self.copy {
            self.buffer.copy_from_slice(message);
            check.validate(&self.buffer);
        } else {
            check.validate(message);
        }
        chunk.commit_all();
        Ok(())
    }
}

/// `crossbeam-channel`, whichever way suits the size.
pub(crate) fn crossbeam() -> Subject {
    fn run(job: &harness::Job) -> Result<harness::SideReport> {
        let suits = if job.work.size <= 1 << 10 { sized!(Values) } else { Subject::of::<Vecs>() };
        (suits.run)(job)
    }
    Subject { run, ..Subject::of::<Vecs>() }
}

/// Messages as values.
struct Values<const N: usize>;

impl<const N: usize> System for Values<N> {
    const NAME: &'static str = Vecs::NAME;
    const VERSION: &'static str = Vecs::VERSION;
    const THREADS: bool = true;
    type Sender = Crossbeam<channel::Sender<[u8; N]>>;
    type Receiver = Crossbeam<channel::Receiver<[u8; N]>>;

    fn supports(work: &Work) -> bool {
        Vecs::supports(work)
    }

    fn open(side: Side, _folder: &Path, work: &Work) -> Result<(Self::Sender, Self::Receiver)> {
        let (sender, receiver) = share(side, || channel::bounded(rendezvous::slots(N)))?;
        Ok((Crossbeam::new(sender, work), Crossbeam::new(receiver, work)))
    }
}

/// Messages as vectors.
struct Vecs;

impl System for Vecs {
    const NAME: &'static str = "crossbeam-channel";
    const VERSION: &'static str = "0.5.17";
    const THREADS: bool = true;
    type Sender = Crossbeam<channel::Sender<Vec<u8>>>;
    type Receiver = Crossbeam<channel::Receiver<Vec<u8>>>;

    fn supports(work: &Work) -> bool {
        work.wait != Wait::Park && work.access == Access::Copy && work.batch == 1
    }

    fn open(side: Side, _folder: &Path, work: &Work) -> Result<(Self::Sender, Self::Receiver)> {
        let (sender, receiver) = share(side, || channel::bounded(rendezvous::slots(work.size)))?;
        Ok((Crossbeam::new(sender, work), Crossbeam::new(receiver, work)))
    }
}

pub(crate) struct Crossbeam<E> {
    end: E,
    spin: bool,
}

impl<E> Crossbeam<E> {
    fn new(end: E, work: &Work) -> Self {
        Self { end, spin: work.wait == Wait::Spin }
    }
}

impl<const N: usize> SendHalf for Crossbeam<channel::Sender<[u8; N]>> {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        put(&self.end, <[u8; N]>::try_from(message)?, self.spin)
    }
}

impl SendHalf for Crossbeam<channel::Sender<Vec<u8>>> {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        put(&self.end, message.to_vec(), self.spin)
    }
}

impl<M: AsRef<[u8]>> ReceiveHalf for Crossbeam<channel::Receiver<M>> {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        check.validate(get(&self.end, self.spin)?.as_ref());
        Ok(())
    }
}

#[inline]
fn put<M>(sender: &channel::Sender<M>, mut message: M, spin: bool) -> Result<()> {
    if !spin {
        return sender.send(message).map_err(|_| anyhow!("the other side has gone"));
    }
    while let Err(error) = sender.try_send(message) {
        if error.is_disconnected() {
            return Err(anyhow!("the other side has gone"));
        }
        message = error.into_inner();
        std::hint::spin_loop();
    }
    Ok(())
}

#[inline]
fn get<M>(receiver: &channel::Receiver<M>, spin: bool) -> Result<M> {
    if !spin {
        return Ok(receiver.recv()?);
    }
    loop {
        match receiver.try_recv() {
            Err(channel::TryRecvError::Empty) => std::hint::spin_loop(),
            received => return Ok(received?),
        }
    }
}

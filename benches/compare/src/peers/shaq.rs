//! shaq: single-producer queues of `T` in a shared file, with a futex on the write cursor.
//!
//! Configuration: its SPSC queue, as in its example `enqueue_dequeue`: each message is written where it stays
//! (`write_batch`, `try_as_mut`) and read in place (`reserve_read_batch_timeout`); a batch of the row is one write
//! batch, and read batches of as many. `Adaptive` is its own wait: 2048 checks, then the futex. A full queue has no
//! wait: the sender polls, and yields unless the row spins. Both files are on /dev/shm.
//! Better at than narrows: any `T`, no copy into bytes; multi-producer and broadcast queues beside this one.
//! Cannot: messages of several sizes, sleep without the long spin (no `Park`), sleep for room, see that its peer died;
//! joining is `unsafe`, since nothing is checked. Rust 1.95 compiles it only by way of `rustc-for-shaq`.

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use harness::{Check, ReceiveBuffer, ReceiveHalf, Result, SendHalf, Side, Source, System, Wait, Work};
use shaq::spsc::{Consumer, Producer, ReadBatch, minimum_file_size};

use crate::rendezvous;

/// See the module.
pub(crate) struct Shaq<const N: usize>;

impl<const N: usize> System for Shaq<N> {
    const NAME: &'static str = "shaq";
    const VERSION: &'static str = "5.1.1";
    type Sender = ShaqSender<N>;
    type Receiver = ShaqReceiver<N>;

    fn supports(work: &Work) -> bool {
        work.wait != Wait::Park
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(ShaqSender<N>, ShaqReceiver<N>)> {
        let [out, into] = rendezvous::ways(side, folder);
        let spin = work.wait == Wait::Spin;
        let size = minimum_file_size::<[u8; N]>(rendezvous::slots(N)).next_multiple_of(4096);
        let file = open(&out)?;
        // SAFETY: this side alone creates this file, and is its only producer; any bytes are a `[u8; N]`.
        let producer = unsafe { Producer::create(&file, size) }?;
        rendezvous::announce(&out)?;
        rendezvous::await_announced(&into)?;
        // SAFETY: the other side has created it, as the same type; this side is its only consumer.
        let consumer = unsafe { Consumer::join(&open(&into)?) }?;
        let most = NonZeroUsize::new(work.batch).unwrap_or(NonZeroUsize::MIN);
        let buffer = ReceiveBuffer::new(work);
        let receiver =
            ShaqReceiver { batch: None, next: 0, consumer: Box::new(consumer), most, spin, buffer };
        Ok((ShaqSender { producer, spin }, receiver))
    }
}

fn open(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?)
}

/// See the module.
pub(crate) struct ShaqSender<const N: usize> {
    producer: Producer<[u8; N]>,
    spin: bool,
}

impl<const N: usize> SendHalf for ShaqSender<N> {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        let message: &[u8; N] = message.try_into()?;
        loop {
            let mut batch = self.producer.write_batch();
            // SAFETY: what it lends is written at once.
            if let Some(slot) = unsafe { batch.try_as_mut() } {
                // SAFETY: room for N bytes, which both are.
                unsafe { slot.as_mut_ptr().copy_from_nonoverlapping(message, 1) };
                return Ok(());
            }
            pause(self.spin);
        }
    }

    #[inline]
    fn send_batch(&mut self, source: &mut Source, messages: usize) -> Result<()> {
        let mut left = messages;
        while left > 0 {
            let mut batch = self.producer.write_batch();
            let before = left;
            while left > 0 {
                // SAFETY: what it lends is written at once.
                let Some(slot) = (unsafe { batch.try_as_mut() }) else { break };
                if let Ok(message) = <&[u8; N]>::try_from(source.message()) {
                    // SAFETY: room for N bytes, which both are.
                    unsafe { slot.as_mut_ptr().copy_from_nonoverlapping(message, 1) };
                }
                left -= 1;
            }
            drop(batch);
            if left == before {
                pause(self.spin);
            }
        }
        Ok(())
    }
}

/// A full queue, for which shaq has no wait.
#[inline]
fn pause(spin: bool) {
    if spin {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// See the module.
pub(crate) struct ShaqReceiver<const N: usize> {
    /// Borrows the consumer, so it goes first, and while it is there the consumer is left alone.
    batch: Option<ReadBatch<'static, [u8; N]>>,
    next: usize,
    consumer: Box<Consumer<[u8; N]>>,
    most: NonZeroUsize,
    spin: bool,
    buffer: ReceiveBuffer,
}

impl<const N: usize> ShaqReceiver<N> {
    /// Waits for messages and borrows them.
    #[inline]
    fn more(&mut self) -> Result<ReadBatch<'static, [u8; N]>> {
        loop {
            // SAFETY: the consumer is in a box, which outlives every batch (see there); it is not used before the
            // batch that comes of this has ended, since a batch that is kept is used up first.
            let consumer = unsafe { &mut *std::ptr::from_mut(self.consumer.as_mut()) };
            if !self.spin {
                return Ok(consumer.reserve_read_batch_timeout(self.most, Duration::MAX)?);
            }
            if let Some(batch) = consumer.try_reserve_read_batch(self.most) {
                return Ok(batch);
            }
            std::hint::spin_loop();
        }
    }
}

impl<const N: usize> ReceiveHalf for ShaqReceiver<N> {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        if self.most.get() == 1 {
            let batch = self.more()?;
            if let Some(message) = batch.get(0) {
                self.buffer.validate(message, check);
            }
            return Ok(());
        }
        if self.batch.is_none() {
            (self.batch, self.next) = (Some(self.more()?), 0);
        }
        let Some(batch) = &self.batch else { return Ok(()) };
        if let Some(message) = batch.get(self.next) {
            self.buffer.validate(message, check);
        }
        self.next += 1;
        if self.next == batch.len() {
            self.batch = None;
        }
        Ok(())
    }
}

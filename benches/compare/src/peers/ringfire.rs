//! ringfire: a ring of slots with sequence numbers in a file on /dev/shm, for one writer and many readers.
//!
//! Configuration: `RingProducer` with `FlowControl::LosslessBackpressure` (else it overwrites what was not read), `push`
//! and `recv_blocking`, `push_batch` and `recv_batch` for batches; `BusySpin`, `FutexWait::default()` (`Adaptive`) and
//! `FutexWait::new(0, None)` (`Park`), as in its benchmark `ipc_compare`. A full ring has no wait: it spins and yields.
//! `InPlace` is its `BlobProducer`/`BlobConsumer::view`, which knows no flow control and no wait: polled round trips.
//! Better at than narrows: many readers of one stream; overwriting; a reader costs the writer next to nothing; a file
//! that tools can look into. Cannot: sleep for room, notice that the peer died, requests and replies, several sizes in a
//! lossless ring. Received values go by the stack, so rows of 16 MiB exist in place only.

use std::path::Path;

use harness::{Access, Check, ReceiveHalf, Result, SendHalf, Side, System, Wait, Work, WorkKind, bail};
use ringfire::{
    BlobConsumer, BlobProducer, BlobProducerBuilder, BusySpin, ConsumerStartMode, FlowControl, FutexWait,
    RingConsumer, RingProducer, RingProducerBuilder,
};

use crate::rendezvous;

/// See the module.
pub(crate) struct Ringfire<const N: usize>;

impl<const N: usize> System for Ringfire<N> {
    const NAME: &'static str = "ringfire";
    const VERSION: &'static str = "0.5.2";
    type Sender = RingfireSender<N>;
    type Receiver = RingfireReceiver<N>;

    fn supports(work: &Work) -> bool {
        match work.access {
            Access::Copy => N <= 1 << 20,
            Access::InPlace => work.kind == WorkKind::RoundTrip && work.wait == Wait::Spin && work.batch == 1,
        }
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(RingfireSender<N>, RingfireReceiver<N>)> {
        let [out, into] = rendezvous::ways(side, folder);
        let slots = rendezvous::slots(N);
        let sender = if work.access == Access::InPlace {
            let arena = (slots * N).next_power_of_two();
            RingfireSender::Blobs(BlobProducerBuilder::new(slots as u64, arena).build(&out)?)
        } else {
            let ring = RingProducerBuilder::new(slots as u64).flow_control(FlowControl::LosslessBackpressure);
            RingfireSender::Ring(ring.build(&out)?, Vec::new(), work.batch > 1)
        };
        rendezvous::announce(&out)?;
        rendezvous::await_announced(&into)?;
        let receiver = if work.access == Access::InPlace {
            RingfireReceiver::Blobs(BlobConsumer::attach(&into)?)
        } else {
            let consumer = RingConsumer::builder().start_mode(ConsumerStartMode::Oldest).attach(&into)?;
            let batch = ReceivedBatch::of(if work.batch > 1 { work.batch } else { 0 });
            RingfireReceiver::Ring(consumer, work.wait, batch)
        };
        // A ring waits for those readers alone that it knows of.
        rendezvous::announce(&into.with_extension("read"))?;
        rendezvous::await_announced(&out.with_extension("read"))?;
        Ok((sender, receiver))
    }
}

/// See the module.
pub(crate) enum RingfireSender<const N: usize> {
    /// With the messages of a batch, and whether there are batches.
    Ring(RingProducer<[u8; N]>, Vec<[u8; N]>, bool),
    Blobs(BlobProducer<()>),
}

impl<const N: usize> SendHalf for RingfireSender<N> {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        match self {
            Self::Ring(_, held, true) => held.push(message.try_into()?),
            Self::Ring(producer, ..) => producer.push(message.try_into()?),
            Self::Blobs(producer) => _ = producer.push_payload(message)?,
        }
        Ok(())
    }

    #[inline]
    fn flush(&mut self) -> Result<()> {
        if let Self::Ring(producer, held, true) = self {
            producer.push_batch(held);
            held.clear();
        }
        Ok(())
    }
}

/// See the module.
pub(crate) enum RingfireReceiver<const N: usize> {
    Ring(RingConsumer<[u8; N]>, Wait, ReceivedBatch<N>),
    Blobs(BlobConsumer<()>),
}

/// Messages that came together.
pub(crate) struct ReceivedBatch<const N: usize> {
    items: Vec<[u8; N]>,
    ahead: std::ops::Range<usize>,
}

impl<const N: usize> ReceivedBatch<N> {
    fn of(most: usize) -> Self {
        // `vec!` makes one on the stack first.
        let items = if N <= 1 << 20 { vec![[0; N]; most] } else { Vec::new() };
        Self { items, ahead: 0..0 }
    }

    /// The next one, if there is any.
    #[inline]
    fn next(&mut self, consumer: &mut RingConsumer<[u8; N]>) -> Option<[u8; N]> {
        if self.ahead.is_empty() {
            self.ahead = 0..consumer.recv_batch(&mut self.items);
        }
        self.ahead.next().map(|at| self.items[at])
    }
}

impl<const N: usize> ReceiveHalf for RingfireReceiver<N> {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        match self {
            // Longer values do not fit on the stack, and `supports` has none.
            Self::Ring(consumer, wait, batch) if N <= 1 << 20 => {
                if !batch.items.is_empty()
                    && let Some(message) = batch.next(consumer)
                {
                    check.validate(&message);
                    return Ok(());
                }
                check.validate(&match wait {
                    Wait::Spin => consumer.recv_blocking(&mut BusySpin),
                    Wait::Adaptive => consumer.recv_blocking(&mut FutexWait::default()),
                    Wait::Park => consumer.recv_blocking(&mut FutexWait::new(0, None)),
                });
            }
            Self::Blobs(consumer) => {
                while consumer.view(|(), bytes| check.validate(bytes))?.is_none() {
                    std::hint::spin_loop();
                }
                if consumer.lapped_count() > 0 {
                    bail!("overwritten");
                }
            }
            Self::Ring(..) => bail!("too long for the stack"),
        }
        Ok(())
    }
}

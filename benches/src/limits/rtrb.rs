//! rtrb between two threads of one process: bytes copied into a ring and out of it, never sleeping.
//!
//! The bound for one way: no process boundary, no sleepers to wake, no peer that may break the protocol or die.

use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use anyhow::{Result, anyhow};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::source::Check;
use crate::system::{Access, ReceiveHalf, SendHalf, Side, System, Wait, Work};

pub(crate) struct Rtrb;

type RtrbEnds = (Producer<u8>, Consumer<u8>);

/// Where side A leaves side B's ends.
static MEETING: (Mutex<Option<RtrbEnds>>, Condvar) = (Mutex::new(None), Condvar::new());

impl System for Rtrb {
    const NAME: &'static str = "rtrb";
    const VERSION: &'static str = "0.3";
    const THREADS: bool = true;
    type Sender = RtrbSender;
    type Receiver = RtrbReceiver;

    fn supports(work: &Work) -> bool {
        work.wait == Wait::Spin && work.access == Access::Copy && work.batch == 1 && work.is_stream()
    }

    fn open(side: Side, _folder: &Path, work: &Work) -> Result<(RtrbSender, RtrbReceiver)> {
        let (producer, consumer) = if side == Side::A { make(work.size) } else { wait()? };
        Ok((RtrbSender(producer), RtrbReceiver { consumer, buffer: vec![1; work.size] }))
    }
}

/// Room for 256 messages, as narrows has, and for 64 KiB to 1 MiB, but two messages at least.
fn make(size: usize) -> RtrbEnds {
    let room = (256 * size).clamp(1 << 16, 1 << 20).max(2 * size);
    let ((to_b, at_b), (to_a, at_a)) = (RingBuffer::new(room), RingBuffer::new(room));
    *MEETING.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((to_a, at_b));
    MEETING.1.notify_all();
    (to_b, at_a)
}

fn wait() -> Result<RtrbEnds> {
    let guard = MEETING.0.lock().map_err(|_| anyhow!("side A panicked"))?;
    let waited = MEETING.1.wait_timeout_while(guard, Duration::from_secs(10), |ends| ends.is_none());
    let (mut ends, _) = waited.map_err(|_| anyhow!("side A panicked"))?;
    ends.take().ok_or_else(|| anyhow!("side A is not there"))
}

/// Copies in.
pub(crate) struct RtrbSender(Producer<u8>);

impl SendHalf for RtrbSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        while self.0.push_entire_slice(message).is_err() {
            std::hint::spin_loop();
        }
        Ok(())
    }
}

/// Copies out.
pub(crate) struct RtrbReceiver {
    consumer: Consumer<u8>,
    buffer: Vec<u8>,
}

impl ReceiveHalf for RtrbReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        while self.consumer.pop_entire_slice(&mut self.buffer).is_err() {
            std::hint::spin_loop();
        }
        check.validate(&self.buffer);
        Ok(())
    }
}

//! Boost.Interprocess `message_queue`: a heap of fixed slots in shared memory, with a mutex and two conditions.
//!
//! Configuration: as in its documentation, "Message Queue": `create_only` and `open_only`, priority 0, `send` and
//! `receive` (`Park`), `try_send` and `try_receive` (`Spin`). Through a C interface, boost.cpp.
//! Better at than narrows: many senders and receivers of one queue; priorities; runs on other systems.
//! Cannot: batches, lend in place, notice that the peer died (one that dies with the mutex held blocks the other).

use std::ffi::{CString, c_char, c_int, c_long, c_uint};
use std::path::Path;
use std::sync::OnceLock;

use harness::{
    Access, Check, ReceiveHalf, Result, SendHalf, Side, Subject, System, Wait, Work, bail, ensure,
};

use crate::rendezvous;

#[repr(C)]
struct RawQueue(u8);

// SAFETY: as boost.cpp defines them.
unsafe extern "C" {
    safe fn boost_queue_version() -> c_uint;
    fn boost_queue_open(name: *const c_char, slots: usize, size: usize, create: bool) -> *mut RawQueue;
    fn boost_queue_close(queue: *mut RawQueue);
    fn boost_queue_remove(name: *const c_char);
    fn boost_queue_send(queue: *mut RawQueue, bytes: *const u8, size: usize, spin: bool) -> c_int;
    fn boost_queue_receive(queue: *mut RawQueue, bytes: *mut u8, room: usize, spin: bool) -> c_long;
}

/// With the release whose headers were found, as 1.74.
pub(crate) fn subject() -> Subject {
    static VERSION: OnceLock<String> = OnceLock::new();
    let number = boost_queue_version();
    let version = VERSION.get_or_init(|| format!("{}.{}", number / 100_000, number / 100 % 1000));
    Subject { version, ..Subject::of::<BoostQueue>() }
}

/// See the module.
pub(crate) struct BoostQueue;

impl System for BoostQueue {
    const NAME: &'static str = "boost-mq";
    const VERSION: &'static str = "the headers'";
    type Sender = BoostSender;
    type Receiver = BoostReceiver;

    fn supports(work: &Work) -> bool {
        work.wait != Wait::Adaptive && work.access == Access::Copy && work.batch == 1
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(BoostSender, BoostReceiver)> {
        let [out, into] = rendezvous::ways(side, folder);
        let spin = work.wait == Wait::Spin;
        let from = QueueHandle::open(folder, &into, work.size, true)?;
        rendezvous::announce(&into)?;
        rendezvous::await_announced(&out)?;
        let to = QueueHandle::open(folder, &out, work.size, false)?;
        Ok((BoostSender(to, spin), BoostReceiver { queue: from, spin, buffer: vec![0; work.size] }))
    }
}

/// One direction; its receiver makes and removes it.
struct QueueHandle {
    raw: *mut RawQueue,
    name: CString,
    made: bool,
}

impl QueueHandle {
    fn open(folder: &Path, way: &Path, size: usize, make: bool) -> Result<Self> {
        let direction = way.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let name = CString::new(format!("{}-{direction}", rendezvous::unique(folder)))?;
        // SAFETY: the name ends in a zero.
        let raw = unsafe { boost_queue_open(name.as_ptr(), rendezvous::slots(size), size, make) };
        ensure!(!raw.is_null(), "boost has no queue for us");
        Ok(Self { raw, name, made: make })
    }
}

impl Drop for QueueHandle {
    fn drop(&mut self) {
        // SAFETY: open until now, and used no more; the name ends in a zero.
        unsafe {
            boost_queue_close(self.raw);
            if self.made {
                boost_queue_remove(self.name.as_ptr());
            }
        }
    }
}

/// See the module.
pub(crate) struct BoostSender(QueueHandle, bool);

impl SendHalf for BoostSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        loop {
            // SAFETY: the queue is open, and the bytes are there.
            match unsafe { boost_queue_send(self.0.raw, message.as_ptr(), message.len(), self.1) } {
                1 => return Ok(()),
                0 => std::hint::spin_loop(),
                _ => bail!("boost cannot send"),
            }
        }
    }
}

/// See the module.
pub(crate) struct BoostReceiver {
    queue: QueueHandle,
    spin: bool,
    buffer: Vec<u8>,
}

impl ReceiveHalf for BoostReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        loop {
            let (room, spin) = (self.buffer.len(), self.spin);
            // SAFETY: the queue is open, and there is so much room.
            match unsafe { boost_queue_receive(self.queue.raw, self.buffer.as_mut_ptr(), room, spin) } {
                0 => std::hint::spin_loop(),
                size => {
                    check.validate(self.buffer.get(..usize::try_from(size)?).unwrap_or_default());
                    return Ok(());
                }
            }
        }
    }
}

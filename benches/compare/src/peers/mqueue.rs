//! POSIX message queues (man 7 mq_overview).
//!
//! Configuration: a queue for each direction with as many messages of this size as the system allows any user
//! (`/proc/sys/fs/mqueue/msg_max`, 10 as a rule); `mq_send` and `mq_receive` (`Park`), or `O_NONBLOCK` (`Spin`).
//! Better at than narrows: priorities; a queue outlives its processes; any language.
//! Cannot: messages beyond `msgsize_max` (8 KiB as a rule), long queues, batches, lend in place.

use std::fs;
use std::path::Path;

use harness::{Access, Check, ReceiveHalf, Result, SendHalf, Side, System, Wait, Work};
use nix::errno::Errno;
use nix::mqueue::{self, MQ_OFlag, MqAttr, MqdT};
use nix::sys::stat::Mode;

use crate::rendezvous;

/// See the module.
pub(crate) struct PosixQueue;

impl System for PosixQueue {
    const NAME: &'static str = "posix-mq";
    const VERSION: &'static str = "the kernel's";
    type Sender = PosixQueueSender;
    type Receiver = PosixQueueReceiver;

    fn supports(work: &Work) -> bool {
        let fits = limit("msgsize_max").is_ok_and(|most| work.size <= most);
        fits && work.wait != Wait::Adaptive && work.access == Access::Copy && work.batch == 1
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(PosixQueueSender, PosixQueueReceiver)> {
        let [out, into] = rendezvous::ways(side, folder);
        let spin = work.wait == Wait::Spin;
        let (from, name) = open(folder, &into, MQ_OFlag::O_RDONLY, work, spin)?;
        let (to, _) = open(folder, &out, MQ_OFlag::O_WRONLY, work, spin)?;
        rendezvous::announce(&into)?;
        rendezvous::await_announced(&out)?; // Both have opened both.
        _ = mqueue::mq_unlink(name.as_str());
        Ok((PosixQueueSender(to), PosixQueueReceiver { queue: from, buffer: vec![0; work.size] }))
    }
}

fn limit(name: &str) -> Result<usize> {
    Ok(fs::read_to_string(Path::new("/proc/sys/fs/mqueue").join(name))?.trim().parse()?)
}

fn open(folder: &Path, way: &Path, access: MQ_OFlag, work: &Work, spin: bool) -> Result<(MqdT, String)> {
    let direction = way.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let name = format!("/{}-{direction}", rendezvous::unique(folder));
    let room = MqAttr::new(0, i64::try_from(limit("msg_max")?)?, i64::try_from(work.size)?, 0);
    let wait = if spin { MQ_OFlag::O_NONBLOCK } else { MQ_OFlag::empty() };
    let flags = access | wait | MQ_OFlag::O_CREAT | MQ_OFlag::O_CLOEXEC;
    Ok((mqueue::mq_open(name.as_str(), flags, Mode::S_IRWXU, Some(&room))?, name))
}

/// See the module.
pub(crate) struct PosixQueueSender(MqdT);

impl SendHalf for PosixQueueSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        loop {
            match mqueue::mq_send(&self.0, message, 0) {
                Err(Errno::EAGAIN) => std::hint::spin_loop(),
                sent => return Ok(sent?),
            }
        }
    }
}

/// See the module.
pub(crate) struct PosixQueueReceiver {
    queue: MqdT,
    buffer: Vec<u8>,
}

impl ReceiveHalf for PosixQueueReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        let mut priority = 0;
        loop {
            match mqueue::mq_receive(&self.queue, &mut self.buffer, &mut priority) {
                Err(Errno::EAGAIN) => std::hint::spin_loop(),
                came => {
                    check.validate(&self.buffer[..came?]);
                    return Ok(());
                }
            }
        }
    }
}

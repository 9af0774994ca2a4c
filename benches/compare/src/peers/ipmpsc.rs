//! ipmpsc: a ring of serialised messages in a file, with a shared mutex and condition variable.
//!
//! Configuration: as in its examples `ipmpsc-send` and `ipmpsc-receive`; bytes by serde_bytes, received through a
//! `ZeroCopyContext`, which its documents name for large byte fields; files on /dev/shm. `Park` is `recv`, `Spin`
//! `try_recv`; both lock the mutex once for each message.
//! Better at than narrows: any serde type, many senders in one ring, Windows.
//! Cannot: batches, spin before it sleeps, poll for room, notice that the peer died.

use std::path::Path;

use ::ipmpsc::SharedRingBuffer;
use harness::{Check, ReceiveBuffer, ReceiveHalf, Result, SendHalf, Side, System, Wait, Work};
use serde_bytes::Bytes;

use crate::rendezvous;

/// See the module.
pub(crate) struct Ipmpsc;

impl System for Ipmpsc {
    const NAME: &'static str = "ipmpsc";
    const VERSION: &'static str = "0.5.1";
    type Sender = IpmpscSender;
    type Receiver = IpmpscReceiver;

    fn supports(work: &Work) -> bool {
        work.wait != Wait::Adaptive && work.batch == 1
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(IpmpscSender, IpmpscReceiver)> {
        let [out, into] = rendezvous::ways(side, folder);
        let bytes = u32::try_from(rendezvous::slots(work.size) * (work.size + 16))?;
        let ring = SharedRingBuffer::create(&into.to_string_lossy(), bytes)?;
        rendezvous::announce(&into)?;
        rendezvous::await_announced(&out)?;
        let sender = IpmpscSender(::ipmpsc::Sender::new(SharedRingBuffer::open(&out.to_string_lossy())?));
        let buffer = ReceiveBuffer::new(work);
        let spin = work.wait == Wait::Spin;
        Ok((sender, IpmpscReceiver { receiver: ::ipmpsc::Receiver::new(ring), spin, buffer }))
    }
}

/// See the module.
pub(crate) struct IpmpscSender(::ipmpsc::Sender);

impl SendHalf for IpmpscSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(self.0.send(&Bytes::new(message))?)
    }
}

/// See the module.
pub(crate) struct IpmpscReceiver {
    receiver: ::ipmpsc::Receiver,
    spin: bool,
    buffer: ReceiveBuffer,
}

impl ReceiveHalf for IpmpscReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        let mut context = self.receiver.zero_copy_context();
        let message: &Bytes = if self.spin {
            loop {
                match context.try_recv()? {
                    Some(message) => break message,
                    None => std::hint::spin_loop(),
                }
            }
        } else {
            context.recv()?
        };
        self.buffer.validate(message, check);
        Ok(())
    }
}

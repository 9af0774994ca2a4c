//! ZeroMQ: `PAIR` sockets over `ipc://`.
//!
//! Configuration: one socket on each side, high-water marks of as many messages as the others get, `send` and `recv`
//! (`Park`), `DONTWAIT` (`Spin`), as in its benchmarks `local_lat` and `local_thr`. Its I/O thread writes what has
//! gathered by one call, so it batches by itself and has no batch to ask for. `InPlace` reads the `Message` it lends.
//! Better at than narrows: patterns (publish, pipeline, routing), networks, reconnection, every language.
//! Cannot: lend memory for sending through this crate without copying; do without its I/O thread.

use std::path::Path;

use harness::{Access, Check, ReceiveHalf, Result, SendHalf, Side, System, Wait, Work};
use std::rc::Rc;

use crate::rendezvous;

/// See the module.
pub(crate) struct ZeroMq;

impl System for ZeroMq {
    const NAME: &'static str = "zeromq";
    const VERSION: &'static str = "4.3.4 by zmq 0.10.0";
    type Sender = ZeroMqSender;
    type Receiver = ZeroMqReceiver;

    fn supports(work: &Work) -> bool {
        work.wait != Wait::Adaptive && work.batch == 1
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(ZeroMqSender, ZeroMqReceiver)> {
        let socket = zmq::Context::new().socket(zmq::PAIR)?;
        let most = i32::try_from(rendezvous::slots(work.size))?;
        socket.set_sndhwm(most)?;
        socket.set_rcvhwm(most)?;
        let address = format!("ipc://{}", folder.join("socket").display());
        match side {
            Side::A => socket.connect(&address)?,
            Side::B => socket.bind(&address)?,
        }
        let (socket, flags) = (Rc::new(socket), if work.wait == Wait::Spin { zmq::DONTWAIT } else { 0 });
        let buffer = vec![0; if work.access == Access::Copy { work.size } else { 0 }];
        Ok((ZeroMqSender { socket: socket.clone(), flags }, ZeroMqReceiver { socket, flags, buffer }))
    }
}

/// See the module.
pub(crate) struct ZeroMqSender {
    socket: Rc<zmq::Socket>,
    flags: i32,
}

impl SendHalf for ZeroMqSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        polling(|| self.socket.send(message, self.flags))
    }
}

/// See the module.
pub(crate) struct ZeroMqReceiver {
    socket: Rc<zmq::Socket>,
    flags: i32,
    /// Empty if messages are checked in place.
    buffer: Vec<u8>,
}

impl ReceiveHalf for ZeroMqReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        if self.buffer.is_empty() {
            check.validate(&polling(|| self.socket.recv_msg(self.flags))?);
        } else {
            let len = polling(|| self.socket.recv_into(&mut self.buffer, self.flags))?;
            check.validate(self.buffer.get(..len).unwrap_or_default());
        }
        Ok(())
    }
}

#[inline]
fn polling<T>(mut attempt: impl FnMut() -> zmq::Result<T>) -> Result<T> {
    loop {
        match attempt() {
            Err(zmq::Error::EAGAIN) => std::hint::spin_loop(),
            done => return Ok(done?),
        }
    }
}

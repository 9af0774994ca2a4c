//! NNG (nanomsg next generation): `pair0` sockets over `ipc://`.
//!
//! Configuration: as in the README of `nng-c` (dial, listen, `send`, `recv_msg`), with `pair0` instead of its request and
//! reply, which would forbid one-way traffic; `recv_msg` (`Park`) or `try_recv_msg` (`Spin`). `InPlace` reads the
//! message it lends, `Copy` copies it.
//! Better at than narrows: as ZeroMQ. Cannot: batches; do without its threads; send without copying by this crate.

use std::path::Path;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use harness::{Check, ReceiveBuffer, ReceiveHalf, Result, SendHalf, Side, System, Wait, Work, anyhow, retry};
use nng_c::{ErrorCode, Socket};

/// See the module.
pub(crate) struct Nng;

impl System for Nng {
    const NAME: &'static str = "nng";
    const VERSION: &'static str = "1.12.4";
    type Sender = NngSender;
    type Receiver = NngReceiver;

    fn supports(work: &Work) -> bool {
        work.wait != Wait::Adaptive && work.batch == 1
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(NngSender, NngReceiver)> {
        let socket = Socket::pair0().map_err(to_error)?;
        let address = format!("ipc://{}\0", folder.join("socket").display());
        match side {
            Side::A => retry(|| socket.connect(address.as_str().into()))?,
            Side::B => socket.listen(address.as_str().into()).map_err(to_error)?,
        }
        let (socket, spin) = (Rc::new(socket), work.wait == Wait::Spin);
        let buffer = ReceiveBuffer::new(work);
        Ok((NngSender { socket: socket.clone(), size: work.size }, NngReceiver { socket, spin, buffer }))
    }
}

fn to_error(error: ErrorCode) -> harness::Error {
    anyhow!("{error}")
}

/// See the module.
pub(crate) struct NngSender {
    socket: Rc<Socket>,
    size: usize,
}

impl SendHalf for NngSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.socket.send(message.into()).map_err(to_error)
    }
}

impl Drop for NngSender {
    /// Closing throws away what its threads have not yet written.
    fn drop(&mut self) {
        let megabytes = u64::try_from(self.size >> 20).unwrap_or(0);
        thread::sleep(Duration::from_millis(50 + 20 * megabytes));
    }
}

/// See the module.
pub(crate) struct NngReceiver {
    socket: Rc<Socket>,
    spin: bool,
    buffer: ReceiveBuffer,
}

impl ReceiveHalf for NngReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        let message = if self.spin {
            loop {
                match self.socket.try_recv_msg().map_err(to_error)? {
                    Some(message) => break message,
                    None => std::hint::spin_loop(),
                }
            }
        } else {
            self.socket.recv_msg().map_err(to_error)?
        };
        self.buffer.validate(message.body(), check);
        Ok(())
    }
}

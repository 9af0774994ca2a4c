//! A Unix socket of the kind `SOCK_SEQPACKET`: keeps messages apart, in order.
//!
//! Configuration: `SO_SNDBUF` of 1 MiB for what is longer than the default takes; a batch is sent by `sendmmsg` and
//! received by `recvmmsg` (man 2 sendmmsg, recvmmsg), else `send` and `recv`.
//! Better at than narrows: as for all sockets, see `bytes`; and the kernel keeps what was sent if the sender dies.
//! Cannot: lend in place; carry messages longer than its buffer, so rows end at 64 KiB.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use harness::{Access, Check, ReceiveHalf, Result, SendHalf, Side, System, Wait, Work, ensure, retry};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, sockopt};

use crate::sys;

/// See the module.
pub(crate) struct SeqPacket;

impl System for SeqPacket {
    const NAME: &'static str = "unix-seqpacket";
    const VERSION: &'static str = "the kernel's";
    type Sender = SeqPacketSender;
    type Receiver = SeqPacketReceiver;

    fn supports(work: &Work) -> bool {
        work.wait != Wait::Adaptive && work.access == Access::Copy && work.size <= 64 << 10
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(SeqPacketSender, SeqPacketReceiver)> {
        let spin = work.wait == Wait::Spin;
        let socket = Rc::new(connected(side, &UnixAddr::new(&folder.join("socket"))?)?);
        if work.size > 4 << 10 {
            socket::setsockopt(&*socket, sockopt::SndBuf, &(1 << 20))?;
        }
        let flags = if spin { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
        if spin {
            nix::fcntl::fcntl(&*socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        }
        let (size, batch) = (work.size, work.batch);
        let sender =
            SeqPacketSender { socket: socket.clone(), flags, size, batched: batch > 1, held: Vec::new() };
        Ok((sender, SeqPacketReceiver { socket, flags, size, buffer: vec![0; size * batch], ahead: 0..0 }))
    }
}

fn connected(side: Side, address: &UnixAddr) -> Result<OwnedFd> {
    let socket = socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    if side == Side::A {
        retry(|| socket::connect(socket.as_raw_fd(), address))?;
        return Ok(socket);
    }
    socket::bind(socket.as_raw_fd(), address)?;
    socket::listen(&socket, Backlog::new(1)?)?;
    sys::accept(socket.as_fd())
}

/// See the module.
pub(crate) struct SeqPacketSender {
    socket: Rc<OwnedFd>,
    flags: MsgFlags,
    size: usize,
    batched: bool,
    held: Vec<u8>,
}

impl SendHalf for SeqPacketSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        if self.batched {
            self.held.extend_from_slice(message);
            return Ok(());
        }
        loop {
            match socket::send(self.socket.as_raw_fd(), message, self.flags) {
                Err(Errno::EAGAIN) => std::hint::spin_loop(),
                sent => return sent.map(|_whole| ()).map_err(Into::into),
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        let mut sent = 0;
        while sent < self.held.len() {
            match sys::send_many(self.socket.as_fd(), &mut self.held[sent..], self.size) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                messages => sent += messages? * self.size,
            }
        }
        self.held.clear();
        Ok(())
    }
}

/// See the module.
pub(crate) struct SeqPacketReceiver {
    socket: Rc<OwnedFd>,
    flags: MsgFlags,
    size: usize,
    buffer: Vec<u8>,
    ahead: std::ops::Range<usize>,
}

impl SeqPacketReceiver {
    fn more(&mut self) -> Result<()> {
        let came = loop {
            match sys::receive_many(self.socket.as_fd(), &mut self.buffer, self.size) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                messages => break messages? * self.size,
            }
        };
        self.ahead = 0..came;
        Ok(())
    }

    fn one(&mut self) -> Result<()> {
        let came = loop {
            match socket::recv(self.socket.as_raw_fd(), &mut self.buffer, self.flags) {
                Err(Errno::EAGAIN) => std::hint::spin_loop(),
                came => break came?,
            }
        };
        ensure!(came == self.size, "the other side has gone");
        self.ahead = 0..came;
        Ok(())
    }
}

impl ReceiveHalf for SeqPacketReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        if self.ahead.is_empty() {
            if self.buffer.len() == self.size { self.one()? } else { self.more()? }
        }
        let start = self.ahead.start;
        self.ahead.start += self.size;
        check.validate(&self.buffer[start..self.ahead.start]);
        Ok(())
    }
}

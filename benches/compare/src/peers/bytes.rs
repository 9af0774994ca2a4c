//! Streams of bytes: Unix stream socket, TCP loopback, pipe, and `interprocess` on top of the first.
//!
//! Used as by a program that cares: `TCP_NODELAY`; 1 MiB of pipe for large messages; a batch is put together in memory
//! and written by one call, as `BufWriter` does; the reader takes all that there is, up to 64 KiB, by one call, as
//! `BufReader` does, but checks the messages in that buffer. All messages of a row have one size, so there is no
//! length before each, which favours these.
//!
//! Better at than narrows: TCP spans machines; all work between any two programs of any language, need no shared
//! memory, and wake the receiver for less than a futex across CPUs costs here (the kernel does both in one call).
//! Cannot: lend a message in place. `Park` blocks in the kernel; `Spin` is `O_NONBLOCK` and polling.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;

use harness::limits::unix_stream;
use harness::{Access, Check, ReceiveHalf, Result, SendHalf, Side, System, Wait, Work, ensure, retry};
use interprocess::local_socket::prelude::*;
use interprocess::local_socket::{GenericFilePath, ListenerOptions, Stream};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;

use crate::rendezvous;

fn can(work: &Work) -> bool {
    work.wait != Wait::Adaptive && work.access == Access::Copy
}

/// `std::os::unix::net::UnixStream`.
pub(crate) struct UnixPeer;

impl System for UnixPeer {
    const NAME: &'static str = "unix-stream";
    const VERSION: &'static str = "the kernel's";
    type Sender = StreamWriter<UnixStream>;
    type Receiver = StreamReader<UnixStream>;

    fn supports(work: &Work) -> bool {
        can(work)
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(Self::Sender, Self::Receiver)> {
        let stream = unix_stream::connect(side, &folder.join("socket"))?;
        stream.set_nonblocking(work.wait == Wait::Spin)?;
        Ok((StreamWriter::new(stream.try_clone()?, work), StreamReader::new(stream, work)))
    }
}

/// `std::net::TcpStream`.
pub(crate) struct Tcp;

impl System for Tcp {
    const NAME: &'static str = "tcp";
    const VERSION: &'static str = "the kernel's";
    type Sender = StreamWriter<TcpStream>;
    type Receiver = StreamReader<TcpStream>;

    fn supports(work: &Work) -> bool {
        can(work)
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(Self::Sender, Self::Receiver)> {
        let path = folder.join("port");
        let stream = match side {
            Side::A => {
                TcpStream::connect((Ipv4Addr::LOCALHOST, rendezvous::read_published(&path)?.parse()?))?
            }
            Side::B => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                rendezvous::publish(&path, &listener.local_addr()?.port().to_string())?;
                listener.accept()?.0
            }
        };
        stream.set_nodelay(true)?;
        stream.set_nonblocking(work.wait == Wait::Spin)?;
        Ok((StreamWriter::new(stream.try_clone()?, work), StreamReader::new(stream, work)))
    }
}

/// A named pipe for each direction: what `pipe` makes, found by name.
pub(crate) struct NamedPipe;

impl System for NamedPipe {
    const NAME: &'static str = "pipe";
    const VERSION: &'static str = "the kernel's";
    type Sender = StreamWriter<File>;
    type Receiver = StreamReader<File>;

    fn supports(work: &Work) -> bool {
        can(work)
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(Self::Sender, Self::Receiver)> {
        let [out, into] = rendezvous::ways(side, folder);
        if side == Side::B {
            nix::unistd::mkfifo(&out, Mode::S_IRWXU)?;
            nix::unistd::mkfifo(&into, Mode::S_IRWXU)?;
        }
        // Read and write: opening does not wait for the other side then.
        let open = |path| OpenOptions::new().read(true).write(true).open(path);
        let [out, into] = [retry(|| open(&out))?, retry(|| open(&into))?];
        for pipe in [&out, &into] {
            if work.size >= 64 << 10 {
                fcntl(pipe, FcntlArg::F_SETPIPE_SZ(1 << 20))?;
            }
            if work.wait == Wait::Spin {
                fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            }
        }
        Ok((StreamWriter::new(out, work), StreamReader::new(into, work)))
    }
}

/// `interprocess::local_socket`, as in its example `local_socket/sync`.
pub(crate) struct Interprocess;

impl System for Interprocess {
    const NAME: &'static str = "interprocess";
    const VERSION: &'static str = "2.4.7";
    type Sender = StreamWriter<SharedStream>;
    type Receiver = StreamReader<SharedStream>;

    fn supports(work: &Work) -> bool {
        can(work)
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(Self::Sender, Self::Receiver)> {
        let path = folder.join("socket");
        let name = path.as_path().to_fs_name::<GenericFilePath>()?;
        let stream = match side {
            Side::A => retry(|| Stream::connect(name.clone()))?,
            Side::B => ListenerOptions::new().name(name).create_sync()?.accept()?,
        };
        stream.set_nonblocking(work.wait == Wait::Spin)?;
        let stream = Rc::new(stream);
        Ok((
            StreamWriter::new(SharedStream(stream.clone()), work),
            StreamReader::new(SharedStream(stream), work),
        ))
    }
}

/// Both halves of a stream: what its documents recommend instead of splitting it.
pub(crate) struct SharedStream(Rc<Stream>);

impl Read for SharedStream {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        (&*self.0).read(bytes)
    }
}

impl Write for SharedStream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        (&*self.0).flush()
    }
}

/// The most that one call writes of a batch, and reads of small messages.
const BUFFER: usize = 64 << 10;

/// Writes.
pub(crate) struct StreamWriter<W> {
    inner: W,
    batched: bool,
    held: Vec<u8>,
}

impl<W: Write> StreamWriter<W> {
    fn new(inner: W, work: &Work) -> Self {
        Self { inner, batched: work.batch > 1, held: Vec::with_capacity(BUFFER) }
    }
}

impl<W: Write> SendHalf for StreamWriter<W> {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        if !self.batched {
            return write_all(&mut self.inner, message);
        }
        if self.held.len() + message.len() > BUFFER {
            self.flush()?;
        }
        self.held.extend_from_slice(message);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        write_all(&mut self.inner, &self.held)?;
        self.held.clear();
        Ok(())
    }
}

/// As `Write::write_all`, which gives up where it would block.
#[inline]
fn write_all(to: &mut impl Write, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads.
pub(crate) struct StreamReader<R> {
    inner: R,
    size: usize,
    buffer: Vec<u8>,
    /// The bytes that were read and not yet checked.
    ahead: std::ops::Range<usize>,
}

impl<R: Read> StreamReader<R> {
    fn new(inner: R, work: &Work) -> Self {
        Self { inner, size: work.size, buffer: vec![0; BUFFER.max(work.size)], ahead: 0..0 }
    }

    /// Reads until there is a whole message.
    fn more(&mut self) -> Result<()> {
        self.buffer.copy_within(self.ahead.clone(), 0);
        self.ahead = 0..self.ahead.len();
        while self.ahead.len() < self.size {
            match self.inner.read(&mut self.buffer[self.ahead.end..]) {
                Ok(read) => {
                    ensure!(read > 0, "the other side has gone");
                    self.ahead.end += read;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl<R: Read> ReceiveHalf for StreamReader<R> {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        if self.ahead.len() < self.size {
            self.more()?;
        }
        let start = self.ahead.start;
        self.ahead.start += self.size;
        check.validate(&self.buffer[start..self.ahead.start]);
        Ok(())
    }
}

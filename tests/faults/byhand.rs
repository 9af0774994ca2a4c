//! A client that does the handshake by itself and then has the bare pages in its hands.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use narrows::handshake::{ANSWER_LEN, ClientHandshake, ClientStep};
use narrows::layout::Geometry;

use super::sys::{Pages, receive_with_fd};

/// A connection made by hand; dropping it hangs up.
#[derive(Debug)]
pub(crate) struct ByHand {
    pub(crate) socket: UnixStream,
    pub(crate) pages: Pages,
    pub(crate) geometry: Geometry,
}

impl ByHand {
    /// Connects as a client that wants this geometry.
    pub(crate) fn connect(path: &Path, wanted: Geometry, max_message: u64) -> io::Result<Self> {
        let mut socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut machine = ClientHandshake::new(wanted, max_message, 0);
        socket.write_all(&machine.hello())?;
        let mut memory = None;
        loop {
            let mut bytes = [0; ANSWER_LEN];
            let (got, fd) = receive_with_fd(socket.as_fd(), &mut bytes[..machine.missing()])?;
            memory = memory.or(fd);
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match machine.feed(&bytes[..got]).map_err(io::Error::other)? {
                ClientStep::NeedMore(_) => {}
                ClientStep::Rejected(_) => return Err(io::ErrorKind::ConnectionRefused.into()),
                ClientStep::Agreed(agreed) => {
                    let memory = memory.ok_or(io::ErrorKind::InvalidData)?;
                    let pages = Pages::map(memory, agreed.geometry.region_len())?;
                    return Ok(Self { socket, pages, geometry: agreed.geometry });
                }
            }
        }
    }

    /// Whether the other side has hung up.
    pub(crate) fn over(&self) -> bool {
        self.socket.set_nonblocking(true).is_err()
            || receive_with_fd(self.socket.as_fd(), &mut [0; 1]).is_ok_and(|(got, _)| got == 0)
    }
}

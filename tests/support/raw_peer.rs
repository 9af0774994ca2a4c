//! A peer that does the handshake itself and then accesses the pages directly.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use narrows::internal::handshake::{
    ACKNOWLEDGE, ANSWER_LEN, Answer, ClientHandshake, ClientStep, HELLO_LEN, Hello, Negotiated, VERSION_MAX,
};
use narrows::internal::layout::{Control, Direction, Geometry, SLOT, SLOT_PAYLOAD, words};

use super::sys::{Pages, add_seals, receive_with_fd, sealed_memory, send_with_fd};

/// The words of a direction's page that a well-formed peer writes too, except the closed flags: those would close the connection.
pub(crate) const WORDS: [usize; 10] = [
    words::HEAD,
    words::CONSUMER_FLAG,
    words::PRODUCER_FLAG,
    words::AWAITED_TICKET,
    words::PRODUCER_CPU,
    words::CONSUMER_CPU,
    words::CONSUMER_WOKEN,
    words::PRODUCER_WOKEN,
    words::DOORBELL,
    words::OOB,
];

/// A connection without the library. Dropping it hangs up.
#[derive(Debug)]
pub(crate) struct RawPeer {
    pub(crate) socket: UnixStream,
    pub(crate) pages: Pages,
    pub(crate) geometry: Geometry,
    /// The direction in which this side sends: 0 of a client, 1 of a server.
    pub(crate) sends: usize,
}

impl RawPeer {
    /// Connects as a client that asks for this geometry.
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
                    add_seals(pages.file().as_fd(), libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL)?;
                    socket.write_all(&[ACKNOWLEDGE])?;
                    return Ok(Self { socket, pages, geometry: agreed.geometry, sends: 0 });
                }
            }
        }
    }

    /// Accepts one client as a server that grants everything that the client asks for.
    pub(crate) fn serve(listener: &UnixListener) -> io::Result<Self> {
        let (mut socket, _) = listener.accept()?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut hello = [0; HELLO_LEN];
        socket.read_exact(&mut hello)?;
        let Hello { wanted: geometry, max_message, .. } = Hello::decode(&hello).map_err(io::Error::other)?;
        let agreed = Negotiated { version: VERSION_MAX, features: 0, geometry, max_message, first_ticket: 0 };
        let memory = sealed_memory(geometry.region_len());
        let pages = Pages::map(memory, geometry.region_len())?;
        send_with_fd(socket.as_fd(), &Answer::Accept(agreed).encode(), pages.file().as_fd())?;
        socket.read_exact(&mut [0])?; // The client has sealed it.
        Ok(Self { socket, pages, geometry, sends: 1 })
    }

    /// Returns the direction in which this side sends.
    pub(crate) fn outgoing(&self) -> Direction {
        self.geometry.direction(self.sends)
    }

    /// Returns the direction in which this side receives.
    pub(crate) fn incoming(&self) -> Direction {
        self.geometry.direction(1 - self.sends)
    }

    /// Returns the offset of the slot of a ticket that this side sends.
    pub(crate) fn slot(&self, ticket: u64) -> usize {
        let slot = ticket % u64::from(self.geometry.slots());
        self.outgoing().slots + usize::try_from(slot).expect("few") * SLOT
    }

    /// Commits a ticket whose payload is written already.
    pub(crate) fn commit(&self, ticket: u64, control: Control) {
        let slot = self.slot(ticket);
        self.pages.word(slot + 8).store(control.encode(), Ordering::Relaxed);
        self.pages.word(slot).store(2 * ticket + 2, Ordering::Release);
    }

    /// Writes the first words of a slot's payload.
    pub(crate) fn payload(&self, ticket: u64, words: &[u64]) {
        for (word, at) in words.iter().zip((self.slot(ticket) + SLOT_PAYLOAD..).step_by(8)) {
            self.pages.word(at).store(*word, Ordering::Relaxed);
        }
    }

    /// Returns whether the other side has hung up.
    pub(crate) fn over(&self) -> bool {
        self.socket.set_nonblocking(true).is_err()
            || receive_with_fd(self.socket.as_fd(), &mut [0; 1]).is_ok_and(|(got, _)| got == 0)
    }
}

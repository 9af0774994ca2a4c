//! Control messages: the records for descriptors and credentials in the control buffer of `sendmsg` and `recvmsg`.
//!
//! ```text
//!   | len: 8 | level: 4 | type: 4 | data: len - 16 | padding to 8 |  next record ...
//! ```
//!
//! # Invariants
//!
//! 1. The buffer is read and written as bytes, and each access is checked: no pointer into it is made.
//! 2. Every descriptor in it becomes an [`OwnedFd`] before anything is validated, so a descriptor that is refused later
//!    is closed.
//! 3. For sending, the buffer has room for all that one message can carry: 253 descriptors. For receiving it offers
//!    room for one descriptor, a pidfd and the credentials: the kernel does not install further descriptors from a
//!    peer.
//!
//! # Proof
//!
//! Unit tests on byte strings below; the tests of `socket_io` use real messages.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::socket::PeerCred;
use super::syscall_error;

/// The most descriptors that the kernel accepts in one message.
pub(crate) const MOST_FDS: usize = 253;

/// A control buffer.
#[repr(C, align(8))]
pub(crate) struct ControlBuffer {
    bytes: [u8; ROOM],
}

/// The parsed control messages of one receive.
#[derive(Debug, Default)]
pub(crate) struct ParsedControl {
    /// Every descriptor that was passed.
    pub(crate) fds: Vec<OwnedFd>,
    /// The pidfd of the sender, which the kernel itself made.
    pub(crate) pidfd: Option<OwnedFd>,
    /// The credentials of the sender, which the kernel has checked.
    pub(crate) cred: Option<PeerCred>,
}

impl ControlBuffer {
    /// Creates an empty buffer.
    pub(crate) fn new() -> Self {
        Self { bytes: [0; ROOM] }
    }

    /// Returns the whole buffer, to pass to the kernel.
    pub(crate) fn as_mut_bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Returns the part of the buffer to receive into: room for one descriptor, a pidfd and the credentials. Without
    /// credentials more descriptors fit, but no more than 16.
    pub(crate) fn for_one(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..RECEIVED).unwrap_or_default()
    }

    /// Writes one record that passes these descriptors, and returns the length in use.
    ///
    /// # Errors
    ///
    /// There are more than [`MOST_FDS`].
    pub(crate) fn put_rights(&mut self, fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let len = HEADER + fds.len() * FD;
        let used = len.next_multiple_of(ALIGN);
        let (Some(record), true) = (self.bytes.get_mut(..used), fds.len() <= MOST_FDS) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
        };
        let head = [&len.to_ne_bytes()[..], &SOCKET.to_ne_bytes(), &RIGHTS.to_ne_bytes()].concat();
        let numbers = fds.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes());
        let padding = std::iter::repeat(0);
        for (to, from) in record.iter_mut().zip(head.into_iter().chain(numbers).chain(padding)) {
            *to = from;
        }
        Ok(used)
    }

    /// Takes ownership of all descriptors that the kernel put into the first `len` bytes.
    ///
    /// # Safety
    ///
    /// A successful `recvmsg` has just filled this buffer and returned `len` as the length of its
    /// control data; this is called once for it.
    pub(crate) unsafe fn take(&self, len: usize) -> ParsedControl {
        let mut taken = ParsedControl::default();
        for record in ControlMessages(self.bytes.get(..len).unwrap_or(&self.bytes)) {
            if record.level == SOCKET && record.kind == CREDENTIALS {
                taken.cred = PeerCred::from_record(record.data);
            }
            if record.level != SOCKET || !matches!(record.kind, RIGHTS | PIDFD) {
                continue;
            }
            for number in numbers(record.data) {
                // SAFETY: not negative, and the kernel installed this descriptor in this process with the message. By
                // this function's contract it has no owner yet.
                let fd = unsafe { OwnedFd::from_raw_fd(number) };
                match record.kind {
                    RIGHTS => taken.fds.push(fd),
                    // If the descriptor cannot be moved, the peer is not watched by a pidfd. That is better than a
                    // descriptor with the number of a standard stream.
                    _ => taken.pidfd = syscall_error::beyond_standard_streams(fd).ok(),
                }
            }
        }
        taken
    }
}

/// Returns the type of each record in these bytes, and the descriptors that it names.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn decoded(bytes: &[u8]) -> Vec<(i32, Vec<RawFd>)> {
    ControlMessages(bytes).map(|record| (record.kind, numbers(record.data).collect())).collect()
}

const HEADER: usize = 16;
const ALIGN: usize = 8;
const FD: usize = size_of::<RawFd>();
const SOCKET: i32 = libc::SOL_SOCKET;
const RIGHTS: i32 = libc::SCM_RIGHTS;
const CREDENTIALS: i32 = libc::SCM_CREDENTIALS;
/// `SCM_PIDFD`, which the crate `libc` does not have yet. The number is the same on all architectures.
const PIDFD: i32 = 4;
/// More than the 1028 bytes of 253 descriptors.
const ROOM: usize = 2048;
/// The records of one descriptor, a pidfd and credentials, each with its padding.
const RECEIVED: usize = 24 + 24 + 32;

static_assertions::const_assert_eq!(size_of::<usize>() + 2 * size_of::<i32>(), HEADER);
static_assertions::const_assert!(HEADER + MOST_FDS * FD + ALIGN <= ROOM && RECEIVED <= ROOM);

struct ControlMessage<'a> {
    level: i32,
    kind: i32,
    data: &'a [u8],
}

/// An iterator over the records in a control buffer. It ends at the first record that is not complete.
struct ControlMessages<'a>(&'a [u8]);

impl<'a> Iterator for ControlMessages<'a> {
    type Item = ControlMessage<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from_ne_bytes(*self.0.first_chunk()?);
        let record = ControlMessage {
            level: number_at(self.0, 8)?,
            kind: number_at(self.0, 12)?,
            // This is `None` for a length below that of the header, so each record makes progress.
            data: self.0.get(HEADER..len)?,
        };
        let next = len.checked_next_multiple_of(ALIGN)?;
        self.0 = self.0.get(next..).unwrap_or_default();
        Some(record)
    }
}

/// Returns the descriptors in a record. If the kernel cannot make a pidfd, it stores an error there, which is negative.
fn numbers(data: &[u8]) -> impl Iterator<Item = RawFd> {
    let offsets = (0..data.len() / FD).map(|i| i * FD);
    offsets.filter_map(|at| number_at(data, at)).filter(|number| *number >= 0)
}

fn number_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn record(len: usize, kind: i32, data: &[i32]) -> Vec<u8> {
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(SOCKET.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data.iter().flat_map(|n| n.to_ne_bytes()));
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        bytes
    }

    #[test]
    fn records_follow_each_other() {
        let mut bytes = record(16 + 12, RIGHTS, &[3, 4, 5]);
        bytes.extend(record(16 + 4, PIDFD, &[6]));
        bytes.extend(record(16 + 4, PIDFD, &[-3]));
        let all = vec![(RIGHTS, vec![3, 4, 5]), (PIDFD, vec![6]), (PIDFD, vec![])];
        assert_eq!(decoded(&bytes), all);
    }

    #[test]
    fn wrong_lengths_end_the_records() {
        for len in [0, 1, 15, 16 + 5, usize::MAX, usize::MAX - 7] {
            let bytes = record(len, RIGHTS, &[3]);
            let whole = decoded(&bytes[..20]);
            assert!(whole.is_empty(), "{len}: {whole:?}");
        }
        assert_eq!(decoded(&record(16, RIGHTS, &[])), [(RIGHTS, vec![])]);
        assert_eq!(decoded(&record(16 + 7, RIGHTS, &[3, 9])), [(RIGHTS, vec![3])]);
        let whole = record(16 + 4, RIGHTS, &[3]);
        for cut in 0..20 {
            assert!(decoded(&whole[..cut]).is_empty());
        }
    }

    #[test]
    fn what_is_put_is_decoded() {
        let file = std::fs::File::open("/dev/null").expect("opens");
        for count in [0, 1, 2, MOST_FDS] {
            let mut control = ControlBuffer::new();
            let used = control.put_rights(&vec![file.as_fd(); count]).expect("fits");
            let numbers = vec![file.as_raw_fd(); count];
            assert_eq!(decoded(&control.bytes[..used]), [(RIGHTS, numbers)]);
        }
        let many = vec![file.as_fd(); MOST_FDS + 1];
        assert!(ControlBuffer::new().put_rights(&many).is_err());
    }
}

//! Waits for many descriptors at once, and has a descriptor that wakes such a wait.
//!
//! # Invariants
//!
//! 1. A registration belongs to the *open file*, not to the number: it outlives a close while a fork holds a copy. So
//!    the code that adds a descriptor deletes it before closing it.
//! 2. The deadline is absolute, as in [`super::wait`].
//!
//! # Proof
//!
//! Unit tests below.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::time::Instant;

use super::descriptor::Descriptor;
use super::syscall_error;
use super::wait::remaining;

/// A set of descriptors to wait for.
#[derive(Debug)]
pub(crate) struct Epoll {
    fd: Descriptor,
}

/// The event to wait for on one descriptor. A failure of the descriptor is always reported, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// There are bytes to read, or the other side has ended.
    Readable,
    /// There is room to write.
    Writable,
    /// The other side has ended. Unread bytes do not count. Reported once, until the interest is set again.
    HangUp,
    /// A process has ended, by its pidfd. Reported once, until the interest is set again.
    Exit,
}

/// An event of one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EpollEvent {
    /// The number that was given when the descriptor was added.
    pub(crate) token: u64,
    /// A read would not block; it may report that the other side has ended.
    pub(crate) readable: bool,
    /// A write would not block; it may fail.
    pub(crate) writable: bool,
    /// The other side has ended, or the descriptor has failed.
    pub(crate) hung_up: bool,
}

/// A buffer for the events of one wait.
pub(crate) struct EpollEvents {
    room: Vec<libc::epoll_event>,
    filled: usize,
}

impl Epoll {
    /// Creates an empty set.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the call makes a new descriptor, which is ours alone.
        let fd = unsafe { syscall_error::owned("epoll_create1", libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
        Ok(Self { fd: Descriptor::with_witness(fd?) })
    }

    /// Returns whether the number still names this set: a program may have closed it.
    pub(crate) fn is_ours(&self) -> bool {
        self.fd.is_ours()
    }

    /// Adds a descriptor under a number that its events will carry.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    /// Changes the number and the interest of a descriptor that was added.
    pub(crate) fn modify(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    /// Removes a descriptor; events of it that were fetched already remain.
    pub(crate) fn delete(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let (set, fd) = (self.fd.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: a deletion reads no event.
        let result = unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_DEL, fd, ptr::null_mut()) };
        syscall_error::check("epoll_ctl(DEL)", result).map(drop)
    }

    /// Waits for events, at most until the deadline. Returns no events once it has passed. `None` means no deadline.
    pub(crate) fn wait<'a>(
        &self,
        events: &'a mut EpollEvents,
        deadline: Option<Instant>,
    ) -> io::Result<impl Iterator<Item = EpollEvent> + use<'a>> {
        loop {
            let left = remaining(deadline);
            events.filled = 0;
            // Rounded up: otherwise the loop would spin during the last part of a millisecond.
            let ms = i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
            match self.wait_once(&mut events.room, ms) {
                Ok(0) if !left.is_zero() => {}
                Ok(filled) => {
                    events.filled = filled;
                    return Ok(events.iter());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn wait_once(&self, room: &mut [libc::epoll_event], ms: i32) -> io::Result<usize> {
        let most = i32::try_from(room.len()).unwrap_or(i32::MAX);
        // SAFETY: the kernel fills at most `most` entries, and `room` has as many.
        let filled = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), room.as_mut_ptr(), most, ms) };
        Ok(usize::try_from(syscall_error::check("epoll_wait", filled)?).unwrap_or(0))
    }

    fn control(&self, operation: i32, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.bits(), u64: token };
        let set = self.fd.as_raw_fd();
        // SAFETY: the kernel copies the local event.
        let result = unsafe { libc::epoll_ctl(set, operation, fd.as_raw_fd(), &mut event) };
        syscall_error::check("epoll_ctl", result).map(drop)
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Interest {
    fn bits(self) -> u32 {
        match self {
            Self::Readable => READABLE,
            Self::Writable => WRITABLE,
            Self::HangUp => PEER_ENDED | ONCE,
            Self::Exit => READABLE | ONCE,
        }
    }
}

impl EpollEvents {
    /// Creates a buffer for `most` events, at least one.
    pub(crate) fn with_room(most: usize) -> Self {
        let empty = libc::epoll_event { events: 0, u64: 0 };
        Self { room: vec![empty; most.max(1)], filled: 0 }
    }

    fn iter<'a>(&'a self) -> impl Iterator<Item = EpollEvent> + use<'a> {
        self.room.iter().take(self.filled).map(|event| {
            let bits = event.events;
            EpollEvent {
                token: event.u64,
                readable: bits & (READABLE | ENDED) != 0,
                writable: bits & (WRITABLE | ENDED) != 0,
                hung_up: bits & ENDED != 0,
            }
        })
    }
}

impl fmt::Debug for EpollEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

const READABLE: u32 = libc::EPOLLIN as u32;
const WRITABLE: u32 = libc::EPOLLOUT as u32;
const PEER_ENDED: u32 = libc::EPOLLRDHUP as u32;
const ONCE: u32 = libc::EPOLLONESHOT as u32;
const ENDED: u32 = PEER_ENDED | libc::EPOLLHUP as u32 | libc::EPOLLERR as u32;

/// A descriptor that is readable once it was signalled.
#[derive(Debug)]
pub(crate) struct Eventfd {
    fd: Descriptor,
}

impl Eventfd {
    /// Creates one that is not signalled.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK;
        // SAFETY: the call makes a new descriptor, which is ours alone.
        let fd = unsafe { syscall_error::owned("eventfd", libc::eventfd(0, flags)) };
        Ok(Self { fd: Descriptor::with_witness(fd?) })
    }

    /// Makes it readable until it is drained.
    pub(crate) fn signal(&self) {
        if !self.fd.is_ours() {
            return; // The program has closed it, and the write could go into a file of the program.
        }
        let one = 1_u64;
        // SAFETY: writes 8 bytes of a local. It fails only if the counter is full, and then the
        // descriptor is readable as it should be.
        unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Clears the signal.
    #[cfg(test)]
    pub(crate) fn drain(&self) {
        let mut count = 0_u64;
        // SAFETY: fills 8 bytes of a local. It fails only if there was no signal.
        unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl AsFd for Eventfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::pair;
    use crate::sys::socket_io::{read, write};
    use crate::sys::testing::in_child;
    use std::time::Duration;

    fn tokens(epoll: &Epoll, deadline: Option<Instant>) -> Vec<u64> {
        let mut events = EpollEvents::with_room(8);
        epoll.wait(&mut events, deadline).expect("waits").map(|e| e.token).collect()
    }

    #[test]
    fn events_carry_their_token_until_deleted() {
        let epoll = Epoll::new().expect("epoll");
        let doorbell = Eventfd::new().expect("eventfd");
        epoll.add(doorbell.as_fd(), u64::MAX, Interest::Readable).expect("adds");
        let start = Instant::now();
        assert!(tokens(&epoll, Some(start + Duration::from_millis(20))).is_empty());
        assert!(start.elapsed() >= Duration::from_millis(20));
        doorbell.signal();
        doorbell.signal();
        assert_eq!(tokens(&epoll, None), [u64::MAX]);
        doorbell.drain();
        assert!(tokens(&epoll, Some(start)).is_empty());
        doorbell.signal();
        epoll.delete(doorbell.as_fd()).expect("deletes");
        assert!(tokens(&epoll, Some(start)).is_empty());
    }

    #[test]
    fn hang_up_is_not_woken_by_bytes() {
        in_child(|| {
            let epoll = Epoll::new().expect("epoll");
            let (a, b) = pair().expect("pair");
            epoll.add(a.as_fd(), 1, Interest::HangUp).expect("adds");
            write(b.as_fd(), b"junk").expect("writes");
            assert!(tokens(&epoll, Some(Instant::now())).is_empty());
            epoll.modify(a.as_fd(), 2, Interest::Readable).expect("modifies");
            assert_eq!(tokens(&epoll, None), [2]);
            epoll.modify(a.as_fd(), 3, Interest::HangUp).expect("modifies");
            drop(b);
            let mut events = EpollEvents::with_room(0);
            let event = epoll.wait(&mut events, None).expect("waits").next().expect("one");
            assert!(event.hung_up && event.readable && event.token == 3, "{event:?}");
            read(a.as_fd(), &mut [0; 8]).expect("reads");
        });
    }

    #[test]
    fn a_full_counter_still_signals() {
        let doorbell = Eventfd::new().expect("eventfd");
        let most = u64::MAX - 1;
        // SAFETY: writes 8 bytes of a local.
        unsafe { libc::write(doorbell.fd.as_raw_fd(), (&raw const most).cast(), 8) };
        doorbell.signal();
        assert!(crate::sys::wait::is_readable(doorbell.as_fd()).expect("polls"));
        doorbell.drain();
        assert!(!crate::sys::wait::is_readable(doorbell.as_fd()).expect("polls"));
    }
}

//! Unix stream sockets: binding with a private mode, connecting, accepting, and the credentials of the peer.
//!
//! # Invariants
//!
//! 1. Every socket is close-on-exec from the call that makes it on, and functions of this file return it non-blocking.
//! 2. Other users can never connect to a fresh socket: its mode is set before it is bound to a path.
//! 3. Sockets are bound to paths only. Every user could connect to an abstract name, so none is ever made.
//! 4. The user of this process is read from the kernel each time, by the credentials of a fresh pair of sockets.
//!
//! # Proof
//!
//! Tests below.

use std::ffi::OsString;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::Duration;

use super::path::{DESCRIPTORS, Directory};
use super::pidfd::Pidfd;
use super::procfs;
use super::syscall_error::{self, INTERRUPTS};

/// The longest path of a socket that the kernel accepts, in bytes. A longer one is reached by a descriptor of its
/// directory.
pub(crate) const MAX_PATH: usize = 107;

/// The credentials of the process at the other end, as the kernel recorded them.
///
/// On an accepted connection this is the process that called `connect`. On the client's side it is the process that
/// called `listen`. On a connection made by [`spawn`](crate::SharedMemoryStream::spawn) it is the process that took the
/// connection, which may be a descendant of the child if the child is a shell or a launcher; in that process it is the
/// parent. All numbers are from that moment, translated into this process's namespaces: the process may have ended or
/// changed its user since, and its pid may name another process by now.
///
/// ```
/// let (a, _b) = narrows::SharedMemoryStream::pair()?;
/// let peer = a.peer_cred();
/// assert_eq!(peer.pid(), std::process::id());
/// println!("user {}, group {}", peer.uid(), peer.gid());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerCred {
    pid: u32,
    uid: u32,
    gid: u32,
}

impl PeerCred {
    /// Returns the credentials of this process, as the kernel reports them to its peers at this moment.
    ///
    /// This does not use `geteuid`, since `fakeroot`, `proot` and other preloaded libraries change its result.
    ///
    /// # Errors
    ///
    /// No pair of sockets could be made.
    pub(crate) fn own() -> io::Result<Self> {
        let (ours, _theirs) = pair()?;
        peer_cred(ours.as_fd())
    }

    /// Returns the same user and group with this pid.
    pub(crate) fn with_pid(self, pid: u32) -> Self {
        Self { pid, ..self }
    }

    /// Reads the data of a record of credentials (`struct ucred`).
    pub(super) fn from_record(data: &[u8]) -> Option<Self> {
        let mut numbers = data.chunks_exact(size_of::<u32>());
        let mut next = || Some(u32::from_ne_bytes(*numbers.next()?.first_chunk()?));
        Some(Self { pid: next()?, uid: next()?, gid: next()? })
    }

    /// Returns the pid, or 0 if the process is outside this process's pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the effective user id; on a spawned connection the real one.
    ///
    /// In a user namespace, as rootless containers have, the kernel shows all users that it does not map as one number,
    /// the overflow uid (65534, `nobody`). So that number does not identify a user there.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Returns the effective group id; on a spawned connection the real one.
    ///
    /// In a user namespace all groups that it does not map are shown as one number too, the overflow gid (65534).
    pub fn gid(&self) -> u32 {
        self.gid
    }
}

/// The result of an attempt to connect.
#[derive(Debug)]
pub(crate) enum Connecting {
    /// The socket is connected. The server may have sent bytes already.
    Connected(OwnedFd),
    /// A socket listens at the path, and its backlog is full: try again.
    BacklogFull,
}

/// Binds a socket to a path, with a mode that lets only this user connect (the directory may restrict it further).
///
/// # Errors
///
/// The path is empty, too long or has a zero byte; it exists (`AddrInUse`); or a system call failed.
pub(crate) fn bind_private(path: &Path) -> io::Result<OwnedFd> {
    let target = Address::of(path)?;
    let fd = stream_socket(FLAGS)?;
    // SAFETY: changes the mode of a socket of ours, which its file takes over when bound.
    syscall_error::check("fchmod", unsafe { libc::fchmod(fd.as_raw_fd(), 0o600) })?;
    // SAFETY: the address is a local of this length.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), target.as_ptr(), Address::LEN) };
    syscall_error::check("bind", bound)?;
    Ok(fd)
}

/// Lets clients connect from now on; `backlog` of them may wait.
pub(crate) fn start_listening(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: takes two numbers.
    syscall_error::check("listen", unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// Returns the next client that waits, if there is one.
///
/// # Errors
///
/// The error of `accept4`; [`syscall_error::errno`] shows a lack of descriptors.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    for _ in 0..INTERRUPTS {
        // SAFETY: the null pointers mean that no address is stored; the call makes a new descriptor, which is ours
        // alone.
        let accepted = unsafe {
            let none = ptr::null_mut();
            let fd = libc::accept4(listener.as_raw_fd(), none, ptr::null_mut(), FLAGS);
            syscall_error::owned("accept4", fd)
        };
        match accepted {
            Ok(fd) => return Ok(Some(fd)),
            Err(error) => match syscall_error::errno(&error) {
                Some(libc::EINTR | libc::ECONNABORTED) => {}
                Some(libc::EAGAIN) => return Ok(None),
                _ => return Err(error),
            },
        }
    }
    Ok(None)
}

/// Verifies that this is a listening Unix stream socket, makes it non-blocking and close-on-exec, and returns its path.
/// The path is empty if the socket has none that is valid in this process.
///
/// # Errors
///
/// `InvalidInput`: the descriptor is not such a socket. Else the system call that failed.
pub(crate) fn listening_path(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    let is = |name, value: i32| option(fd, name, -1).is_ok_and(|found: i32| found == value);
    if !(is(libc::SO_DOMAIN, libc::AF_UNIX)
        && is(libc::SO_TYPE, libc::SOCK_STREAM)
        && is(libc::SO_ACCEPTCONN, 1))
    {
        let text = "the descriptor is not a Unix stream socket that listens";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    // SAFETY: changes the flags of a socket that the caller owns.
    unsafe {
        syscall_error::check("fcntl(F_SETFD)", libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC))?;
    }
    set_non_blocking(fd)?;
    // SAFETY: zeros are a valid address.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    let mut len = len_of::<libc::sockaddr_un>();
    // SAFETY: the kernel fills at most `len` bytes of the local.
    let named = unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &mut len) };
    syscall_error::check("getsockname", named)?;
    let name = address.sun_path.iter().map(|c| c.to_ne_bytes()[0]).take_while(|byte| *byte != 0);
    let path = PathBuf::from(OsString::from_vec(name.collect()));
    // A socket with a long path was bound through a descriptor, whose number is valid only in the process that bound
    // it.
    Ok(if path.starts_with(DESCRIPTORS) { PathBuf::new() } else { path })
}

/// Tries to connect, without waiting.
///
/// # Errors
///
/// The path is not legal; it does not exist (`NotFound`); no socket listens (`ConnectionRefused`); or a system call
/// failed.
pub(crate) fn connect(path: &Path) -> io::Result<Connecting> {
    let fd = stream_socket(FLAGS)?;
    for _ in 0..INTERRUPTS {
        match connect_once(fd.as_fd(), path)? {
            Attempt::Connected => return Ok(Connecting::Connected(fd)),
            Attempt::Interrupted => {}
            Attempt::Full => break,
        }
    }
    Ok(Connecting::BacklogFull)
}

/// Connects, and waits for room in the backlog, for at most `longest`.
///
/// The kernel serves the waiting threads in their order. A client that only tries now and then would find no room while
/// others wait.
///
/// # Errors
///
/// The errors of [`connect`]. A signal ends the wait early, with the same result as a full backlog.
pub(crate) fn connect_waiting(path: &Path, longest: Duration) -> io::Result<Connecting> {
    let fd = stream_socket(libc::SOCK_CLOEXEC)?;
    // A time of zero would mean no limit.
    let longest = longest.max(Duration::from_micros(1));
    let seconds = libc::time_t::from(u32::try_from(longest.as_secs()).unwrap_or(u32::MAX));
    let limit = libc::timeval { tv_sec: seconds, tv_usec: longest.subsec_micros().into() };
    set_option(fd.as_fd(), libc::SO_SNDTIMEO, limit)?;
    match connect_once(fd.as_fd(), path)? {
        Attempt::Connected => {}
        Attempt::Interrupted | Attempt::Full => return Ok(Connecting::BacklogFull),
    }
    set_non_blocking(fd.as_fd())?;
    Ok(Connecting::Connected(fd))
}

/// The result of one call of `connect`.
enum Attempt {
    Connected,
    Interrupted,
    Full,
}

fn connect_once(fd: BorrowedFd<'_>, path: &Path) -> io::Result<Attempt> {
    let target = Address::of(path)?;
    // SAFETY: the address is a local of this length.
    let result = unsafe { libc::connect(fd.as_raw_fd(), target.as_ptr(), Address::LEN) };
    let Err(error) = syscall_error::check("connect", result) else {
        return Ok(Attempt::Connected);
    };
    match syscall_error::errno(&error) {
        Some(libc::EINTR) => Ok(Attempt::Interrupted),
        Some(libc::EAGAIN) => Ok(Attempt::Full),
        _ => Err(error),
    }
}

fn set_non_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: take numbers, and change the flags of a socket that the caller holds.
    unsafe {
        let status = syscall_error::check("fcntl(F_GETFL)", libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        syscall_error::check(
            "fcntl(F_SETFL)",
            libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, status | libc::O_NONBLOCK),
        )?;
    }
    Ok(())
}

/// Makes two connected sockets without a name.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: fills the local array.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | FLAGS, 0, fds.as_mut_ptr()) };
    syscall_error::check("socketpair", made)?;
    // SAFETY: the call succeeded, so both are new descriptors, which are ours alone.
    let (one, other) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    Ok((syscall_error::beyond_standard_streams(one)?, syscall_error::beyond_standard_streams(other)?))
}

/// Returns the credentials of the peer.
pub(crate) fn peer_cred(fd: BorrowedFd<'_>) -> io::Result<PeerCred> {
    let unknown = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let cred = option(fd, libc::SO_PEERCRED, unknown)
        .map_err(|e| syscall_error::named("getsockopt(SO_PEERCRED)", e))?;
    Ok(PeerCred { pid: u32::try_from(cred.pid).unwrap_or(0), uid: cred.uid, gid: cred.gid })
}

/// Returns the pidfd of the process that [`peer_cred`] names, if the kernel supports it (Linux 6.5) and the process
/// exists.
pub(crate) fn peer_pidfd(fd: BorrowedFd<'_>) -> Option<Pidfd> {
    let number: i32 = option(fd, SO_PEERPIDFD, -1).ok()?;
    // SAFETY: the option makes a new descriptor, which is ours alone.
    let pidfd = unsafe { syscall_error::owned("getsockopt(SO_PEERPIDFD)", number) };
    pidfd.ok().map(Pidfd::from_owned)
}

/// Returns whether the process that [`peer_cred`] names has ended; false if the kernel cannot show it (before Linux
/// 6.5). Another process may hold the socket nevertheless.
pub(crate) fn peer_has_ended(fd: BorrowedFd<'_>) -> bool {
    match option(fd, SO_PEERPIDFD, -1) {
        Err(error) => error.raw_os_error() == Some(libc::ESRCH),
        Ok(number) => {
            // SAFETY: the option makes a new descriptor, which is ours alone.
            let pidfd = unsafe { syscall_error::owned("getsockopt(SO_PEERPIDFD)", number) };
            pidfd.is_ok_and(|pidfd| Pidfd::from_owned(pidfd).exited())
        }
    }
}

/// Returns whether this number may stand for several users: it is the overflow uid, by which the kernel shows all users
/// that this process's user namespace does not map, and there may be such users.
pub(crate) fn is_ambiguous(uid: u32) -> bool {
    if uid == 0 || uid > MAX_OVERFLOW_UID {
        // Root and numbers above the setting's range are never the overflow uid. Most programs read no file here.
        return false;
    }
    // Without /proc this assumes the kernel's default, and that not all users are mapped.
    let overflow = procfs::read(c"/proc/sys/kernel/overflowuid");
    let overflow = overflow.and_then(|text| text.trim().parse().ok()).unwrap_or(OVERFLOW_UID);
    uid == overflow && !procfs::read(c"/proc/self/uid_map").is_some_and(|map| maps_all_users(&map))
}

/// Returns whether a `uid_map` (lines of inner number, outer number, count) maps all users. Its ranges do not overlap,
/// and a namespace maps only users that its parent maps, so the sum of the counts decides.
fn maps_all_users(map: &str) -> bool {
    let count = |line: &str| line.split_whitespace().nth(2).and_then(|count| count.parse::<u64>().ok());
    map.lines().filter_map(count).sum::<u64>() >= u64::from(u32::MAX) // The last number, -1, is no user.
}

/// Requests the pidfd of the sender with all bytes that are received. Returns whether the kernel supports it (Linux
/// 6.5).
///
/// For connected sockets only: connecting with this option set would bind the socket to an abstract name.
pub(crate) fn want_pidfd(fd: BorrowedFd<'_>) -> bool {
    set_option(fd, SO_PASSPIDFD, 1).is_ok()
}

/// Requests the credentials of the sender with all bytes that are received. For connected sockets only, for the same
/// reason as [`want_pidfd`].
pub(crate) fn want_credentials(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SO_PASSCRED, 1)
}

/// Makes the peer's attempts to pass descriptors fail, if the kernel supports it (Linux 6.16). On a listening socket it
/// applies to all connections that it accepts. Descriptors that are in the queue already stay there.
///
/// # Errors
///
/// The kernel does not support it.
pub(crate) fn refuse_descriptors(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, SO_PASSRIGHTS, 0)
}

/// Makes the kernel deliver out-of-band bytes in order with the others, instead of freeing them when they are skipped.
///
/// # Errors
///
/// The kernel does not support it.
pub(crate) fn receive_out_of_band_inline(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SO_OOBINLINE, 1)
}

/// Shuts the connection down in both directions: the peer sees a hang-up, and the kernel accepts no bytes for this
/// socket any more.
pub(crate) fn shut_down(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes two numbers.
    syscall_error::check("shutdown", unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) }).map(drop)
}

/// Returns how many bytes were received and not read yet.
pub(crate) fn queued(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel fills the local number.
    let asked = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    syscall_error::check("ioctl(FIONREAD)", asked)?;
    Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// The kernel's default of `/proc/sys/kernel/overflowuid`.
const OVERFLOW_UID: u32 = 65534;
/// The largest number that the kernel accepts there.
const MAX_OVERFLOW_UID: u32 = 65535;
const FLAGS: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
// The crate `libc` does not have these yet. The numbers are those of `asm-generic/socket.h`.
pub(super) const SO_PASSPIDFD: i32 = 76;
const SO_PEERPIDFD: i32 = 77;
pub(super) const SO_PASSRIGHTS: i32 = 83;

fn stream_socket(flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call makes a new descriptor, which is ours alone.
    unsafe { syscall_error::owned("socket", libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | flags, 0)) }
}

/// The address of a path.
#[derive(Debug)]
struct Address {
    raw: libc::sockaddr_un,
    /// Keeps the directory open, if the address goes through its descriptor.
    _directory: Option<Directory>,
}

impl Address {
    #[allow(clippy::cast_possible_truncation, reason = "110 bytes")]
    const LEN: libc::socklen_t = size_of::<libc::sockaddr_un>() as libc::socklen_t;

    fn of(path: &Path) -> io::Result<Self> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.contains(&0) {
            return refused("the path of a socket must not be empty or contain a zero byte".into());
        }
        if bytes.len() <= MAX_PATH {
            return Ok(Self { raw: raw_address(bytes), _directory: None });
        }
        let is = bytes.len();
        let Some(name) = path.file_name() else {
            return refused(format!("the path of a socket has {is} bytes, at most {MAX_PATH} fit"));
        };
        if !Path::new(DESCRIPTORS).exists() {
            return refused(format!(
                "the path of a socket has {is} bytes, and without /proc at most {MAX_PATH} fit"
            ));
        }
        let (directory, _) = Directory::of(path)?;
        let short = directory.short_path(name);
        let over = short.as_os_str().len().saturating_sub(MAX_PATH);
        if over > 0 {
            let (len, room) = (name.len(), name.len() - over);
            return refused(format!(
                "the name of the socket has {len} bytes, and in a directory with such a long path at most {room} fit"
            ));
        }
        Ok(Self { raw: raw_address(short.as_os_str().as_bytes()), _directory: Some(directory) })
    }

    fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.raw).cast()
    }
}

fn refused<T>(why: String) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// Returns the address of a path of at most [`MAX_PATH`] bytes.
fn raw_address(path: &[u8]) -> libc::sockaddr_un {
    // SAFETY: zeros are a valid address.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default();
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    address
}

/// Reads an option of a type for which all bytes are valid.
fn option<T: Copy + PlainOption>(fd: BorrowedFd<'_>, name: i32, initial: T) -> io::Result<T> {
    let mut value = MaybeUninit::new(initial);
    let mut len = len_of::<T>();
    let to = value.as_mut_ptr().cast();
    // SAFETY: the kernel fills at most `len` bytes of the local.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, to, &mut len) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    failpoint!("getsockopt");
    // SAFETY: initialised above, and any bytes are a `T`.
    Ok(unsafe { value.assume_init() })
}

/// Sets an option.
pub(super) fn set_option<T: PlainOption>(fd: BorrowedFd<'_>, name: i32, value: T) -> io::Result<()> {
    let from = (&raw const value).cast();
    // SAFETY: the kernel reads the local of this length.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, from, len_of::<T>()) };
    syscall_error::check("setsockopt", set).map(drop)
}

/// A type for which all bytes are valid.
pub(super) trait PlainOption {}
impl PlainOption for i32 {}
impl PlainOption for libc::timeval {}
impl PlainOption for libc::ucred {}

fn len_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket_io::{Transfer, read, send_with_fd, write};
    use crate::sys::testing::fork;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::path::PathBuf;

    fn socket_path(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("socket")
    }

    fn connected(path: &Path) -> OwnedFd {
        match connect(path).expect("connects") {
            Connecting::Connected(fd) => fd,
            Connecting::BacklogFull => panic!("there is room"),
        }
    }

    #[test]
    fn a_bound_socket_is_private_and_answers_once_it_listens() {
        let dir = tempfile::tempdir().expect("directory");
        let path = socket_path(&dir);
        let absent = connect(&path).expect_err("nothing there");
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
        let listener = bind_private(&path).expect("binds");
        let meta = fs::metadata(&path).expect("is there");
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o777 & !0o600, 0);
        let refused = connect(&path).expect_err("no socket listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        start_listening(listener.as_fd(), 4).expect("listens");
        assert!(accept(listener.as_fd()).expect("accepts").is_none());
        let client = connected(&path);
        let server = accept(listener.as_fd()).expect("accepts").expect("one");
        assert_eq!(write(client.as_fd(), b"x").expect("writes"), Transfer::Bytes(1));
        assert_eq!(read(server.as_fd(), &mut [0; 4]).expect("reads"), Transfer::Bytes(1));
        let taken = bind_private(&path).expect_err("taken");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_full_backlog_is_not_a_refusal() {
        let dir = tempfile::tempdir().expect("directory");
        let listener = bind_private(&socket_path(&dir)).expect("binds");
        start_listening(listener.as_fd(), 1).expect("listens");
        let mut waiting = Vec::new();
        for _ in 0..16 {
            match connect(&socket_path(&dir)).expect("no refusal") {
                Connecting::Connected(fd) => waiting.push(fd),
                Connecting::BacklogFull => return,
            }
        }
        panic!("16 clients wait where 1 may");
    }

    #[test]
    fn a_client_that_waits_for_room_in_a_backlog_gets_it_and_a_socket_that_does_not_block() {
        let dir = tempfile::tempdir().expect("directory");
        let path = socket_path(&dir);
        let listener = bind_private(&path).expect("binds");
        start_listening(listener.as_fd(), 1).expect("listens");
        let mut waiting = Vec::new();
        while let Connecting::Connected(fd) = connect(&path).expect("no refusal") {
            waiting.push(fd);
        }
        let late = connect_waiting(&path, Duration::from_millis(1)).expect("no refusal");
        assert!(matches!(late, Connecting::BacklogFull));
        let late = connect_waiting(&path, Duration::ZERO).expect("no refusal");
        assert!(matches!(late, Connecting::BacklogFull), "no time is not no limit");
        std::thread::scope(|scope| {
            let client = scope.spawn(|| connect_waiting(&path, Duration::from_secs(60)));
            while !client.is_finished() {
                let _accepted = accept(listener.as_fd()).expect("accepts");
                std::thread::sleep(Duration::from_millis(1));
            }
            let Ok(Connecting::Connected(fd)) = client.join().expect("ends") else { panic!("there is room") };
            // SAFETY: only asks.
            let status = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETFL) };
            assert!(status & libc::O_NONBLOCK != 0);
        });
        drop(listener);
        let gone = connect_waiting(&path, Duration::from_secs(60)).expect_err("no socket listens");
        assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn impossible_paths_are_refused_with_the_limit() {
        let long = PathBuf::from("/".repeat(MAX_PATH + 1));
        let error = bind_private(&long).expect_err("too long");
        assert!(error.to_string().contains("107"), "{error}");
        for path in ["", "\0abstract", "/tmp/a\0b"] {
            let error = connect(Path::new(path)).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        let longest = PathBuf::from(format!("/{}", "n".repeat(MAX_PATH - 1)));
        let error = connect(&longest).expect_err("nothing there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn sockets_neither_block_nor_outlive_an_exec() {
        let (a, b) = pair().expect("pair");
        for fd in [a, b] {
            // SAFETY: only asks.
            let (status, flags) = unsafe {
                let fd = fd.as_raw_fd();
                (libc::fcntl(fd, libc::F_GETFL), libc::fcntl(fd, libc::F_GETFD))
            };
            assert!(status & libc::O_NONBLOCK != 0 && flags == libc::FD_CLOEXEC);
        }
    }

    #[test]
    fn the_peer_is_the_process_that_made_the_pair() {
        let (a, _b) = pair().expect("pair");
        let cred = peer_cred(a.as_fd()).expect("known");
        // SAFETY: only asks.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        assert_eq!((cred.pid(), cred.uid(), cred.gid()), (std::process::id(), uid, gid));
        let asked = fork(|| i32::from(peer_cred(a.as_fd()).ok() != Some(cred)));
        assert_eq!(asked.wait(), 0);
        if let Some(pidfd) = peer_pidfd(a.as_fd()) {
            assert!(!pidfd.exited());
        }
    }

    #[test]
    fn a_process_is_the_user_that_its_peers_see() {
        let own = PeerCred::own().expect("known");
        let (a, _b) = pair().expect("pair");
        assert_eq!(own, peer_cred(a.as_fd()).expect("known"));
        assert_eq!(own.pid(), std::process::id());
        // SAFETY: changes only the user of this child: root becomes another user, and other users stay as they are.
        let changed = fork(|| unsafe {
            let user = if libc::geteuid() == 0 { 1234 } else { libc::geteuid() };
            i32::from(libc::seteuid(user) != 0 || PeerCred::own().ok().map(|own| own.uid()) != Some(user))
        });
        assert_eq!(changed.wait(), 0, "it is asked each time");
    }

    #[test]
    fn only_a_map_of_all_users_names_the_overflow_uid() {
        assert!(maps_all_users("         0          0 4294967295\n"));
        assert!(maps_all_users("0 0 1000\n1000 1000 4294966295\n"));
        for map in
            ["", "65534 2000 1\n", "0 1000 1\n1 100000 65536\n", "0 0 4294967294\n", "0 0\n", "0 0 x\n"]
        {
            assert!(!maps_all_users(map), "{map:?}");
        }
        assert!(!is_ambiguous(0) && !is_ambiguous(1000));
    }

    #[test]
    fn a_record_of_credentials_is_read_whole_or_not_at_all() {
        let data: Vec<u8> = [7_u32, 8, 9].iter().flat_map(|number| number.to_ne_bytes()).collect();
        assert_eq!(PeerCred::from_record(&data), Some(PeerCred { pid: 7, uid: 8, gid: 9 }));
        assert!((0..data.len()).all(|len| PeerCred::from_record(&data[..len]).is_none()));
    }

    #[test]
    fn a_listening_socket_can_refuse_descriptors_for_all_that_it_accepts() {
        let dir = tempfile::tempdir().expect("directory");
        let listener = bind_private(&socket_path(&dir)).expect("binds");
        let _best_effort = refuse_descriptors(listener.as_fd());
        start_listening(listener.as_fd(), 4).expect("listens");
        let a = connected(&socket_path(&dir));
        let b = accept(listener.as_fd()).expect("accepts").expect("one");
        let file = fs::File::open("/dev/null").expect("opens");
        let sent = send_with_fd(a.as_fd(), b"x", file.as_fd());
        // Before Linux 6.16 the descriptor is passed, and the read closes it.
        let refused = sent.is_err_and(|e| syscall_error::errno(&e) == Some(libc::EPERM));
        assert!(refused || read(b.as_fd(), &mut [0; 4]).expect("reads") == Transfer::Bytes(1));
    }
}

//! Helpers that the tests of the handshake share: raw sockets, raw descriptors, and other processes.

use std::io::{self, Read, Write};
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use narrows::internal::handshake::{ACKNOWLEDGE, ANSWER_LEN, Answer, ClientHandshake, HELLO_LEN};
use narrows::internal::layout::Geometry;
use narrows::{ListenerCloser, Options, SharedMemoryListener};

use super::eventually;

/// Returns the Hello of a client with `narrows::Options::new()`.
pub fn hello() -> [u8; HELLO_LEN] {
    ClientHandshake::new(geometry(), 64 << 20, 0).hello()
}

pub fn geometry() -> Geometry {
    Geometry::new(256, 1 << 20, 64).expect("legal")
}

/// A listener whose thread accepts all clients and keeps their streams.
pub struct Server {
    pub listener: Arc<SharedMemoryListener>,
    pub path: PathBuf,
    pub accepted: Arc<AtomicUsize>,
    closer: ListenerCloser,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Server {
    pub fn start(options: &Options) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("door");
        let listener = Arc::new(options.bind(&path).expect("binds"));
        let (accepting, accepted) = (Arc::clone(&listener), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&accepted);
        let thread = thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in accepting.incoming() {
                kept.push(stream.expect("accepts"));
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        let closer = listener.closer();
        Self { listener, path, accepted, closer, thread: Some(thread), _dir: dir }
    }

    pub fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        stream
    }

    pub fn well_formed_client_gets_in(&self) {
        let before = self.accepted.load(Ordering::SeqCst);
        let stream = Options::new().connect(&self.path).expect("a well-formed client gets in");
        assert!(eventually(|| self.accepted.load(Ordering::SeqCst) > before));
        drop(stream);
    }

    pub fn failures_reach(&self, count: u64) {
        assert!(eventually(|| self.listener.failed_handshakes() >= count));
        assert_eq!(self.listener.failed_handshakes(), count);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closer.close();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server's thread ends well");
        }
    }
}

/// Reads the answer on a raw client's socket.
pub fn answer(mut stream: &UnixStream) -> Answer {
    let mut bytes = [0; ANSWER_LEN];
    stream.read_exact(&mut bytes).expect("a whole answer");
    Answer::decode(&bytes).expect("a legal answer")
}

pub fn ask(stream: &UnixStream, bytes: &[u8]) -> Answer {
    (&*stream).write_all(bytes).expect("sends");
    answer(stream)
}

/// Reads the answer on a raw client's socket, with the descriptor that comes with it.
pub fn answer_with_memory(stream: &UnixStream) -> (Answer, OwnedFd) {
    let mut bytes = [0; ANSWER_LEN];
    let mut control = [0_u64; 8];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: the message refers to locals that outlive the call. A received SCM_RIGHTS record holds at least one descriptor,
    // which this process owns from here on.
    let memory = unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        let got = libc::recvmsg(stream.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC | libc::MSG_WAITALL);
        assert_eq!(got, isize::try_from(ANSWER_LEN).expect("few"), "{}", io::Error::last_os_error());
        let header = libc::CMSG_FIRSTHDR(&message);
        assert!(!header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS, "a descriptor with it");
        OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<i32>().read_unaligned())
    };
    (Answer::decode(&bytes).expect("a legal answer"), memory)
}

/// Seals the memory and sends the last byte of the handshake. Returns the answer and the memory.
pub fn confirm(mut stream: &UnixStream) -> (Answer, OwnedFd) {
    let (answer, memory) = answer_with_memory(stream);
    seal(memory.as_fd(), LAST_SEALS).expect("seals");
    stream.write_all(&[ACKNOWLEDGE]).expect("sends");
    (answer, memory)
}

/// Sends bytes with descriptors.
pub fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut control = [0_u64; 256];
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let len = u32::try_from(size_of_val(&raw[..])).expect("few");
    // SAFETY: the message refers to locals that outlive the call. 256 words hold a header and 253 descriptors, and the header is
    // written inside them.
    let sent = unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        if !raw.is_empty() {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(len) as usize;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(len) as usize;
            raw.as_ptr().copy_to_nonoverlapping(libc::CMSG_DATA(header).cast(), raw.len());
        }
        libc::sendmsg(stream.as_raw_fd(), &message, libc::MSG_NOSIGNAL)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Returns a memory file of this size with these seals.
pub fn memfd(len: usize, seals: i32) -> OwnedFd {
    // SAFETY: the name is a C string. The first call makes a descriptor that this process owns. The others take numbers.
    unsafe {
        let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        assert!(fd >= 0, "memfd_create");
        let fd = OwnedFd::from_raw_fd(fd);
        assert_eq!(libc::ftruncate(fd.as_raw_fd(), len.try_into().expect("small")), 0);
        assert_eq!(libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals), 0);
        fd
    }
}

/// Returns both ends of a pipe.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: fills the local with two descriptors, which this process owns.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0, "pipe2");
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

/// The seals that a server adds before it sends the memory, and those that a client adds.
pub const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
pub const LAST_SEALS: i32 = libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;

pub fn seal(memory: BorrowedFd<'_>, seals: i32) -> io::Result<()> {
    // SAFETY: takes numbers.
    match unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub fn is_root() -> bool {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

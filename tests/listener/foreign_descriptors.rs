//! Descriptors whose close blocks, beside and after every part of the handshake, and peers that hold the lock of the memory's
//! file. No call outlives its deadline because of them.
//!
//! The descriptor is a TCP socket with unsent data that lingers for 30 s. If a thread with a
//! deadline closed it, that thread would be late by at least that time. The tests allow 10 s. Each runs on this kernel as it is,
//! and with `SO_PASSRIGHTS` refused by a filter, as before Linux 6.16. Files of FUSE, whose close blocks too, are not tested.

#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::*;
use narrows::internal::handshake::{ACKNOWLEDGE, ANSWER_LEN, Answer, HELLO_LEN, Negotiated, VERSION_MAX};
use narrows::{ConnectError, ConnectionError, Options, SharedMemoryStream};

const LINGER: i32 = 30;
/// How late a call may be on a busy machine: far below the linger time.
const LATE: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(1);

/// A descriptor whose last close blocks, and the end that keeps it blocking.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
    let mut sender = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
    let (receiver, _) = listener.accept().expect("accepts");
    sender.set_nonblocking(true).expect("set");
    while sender.write(&[0; 1 << 16]).is_ok() {}
    sender.set_nonblocking(false).expect("set");
    let linger = libc::linger { l_onoff: 1, l_linger: LINGER };
    let len = u32::try_from(size_of_val(&linger)).expect("small");
    // SAFETY: reads the local of this length.
    let set = unsafe {
        libc::setsockopt(
            sender.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            len,
        )
    };
    assert_eq!(set, 0);
    (sender.into(), receiver)
}

/// Sends bytes with so many lingering descriptors, of which no copy stays here. Returns what keeps them blocking, if
/// the kernel did not refuse them.
fn send_lingering(socket: &UnixStream, bytes: &[u8], count: usize) -> Vec<TcpStream> {
    let (fds, ends): (Vec<_>, Vec<_>) = (0..count).map(|_| lingering()).unzip();
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    match send_with(socket, bytes, &borrowed) {
        Ok(sent) => assert_eq!(sent, bytes.len()),
        Err(refused) => {
            // Refused by the kernel, or by a peer that has hung up.
            assert!(matches!(refused.raw_os_error(), Some(libc::EPERM | libc::EPIPE)), "{refused}");
            // Only this process has them: their close blocks unless their other ends are closed first.
            drop(ends);
            return vec![];
        }
    }
    forget_here(fds);
    ends
}

/// Closes descriptors that are in flight. If their receiver was quicker, this close is the last one and blocks. Then the test
/// shows nothing this time, and does not wait for the close.
fn forget_here<T: Send + 'static>(fds: T) {
    let closing = thread::spawn(move || drop(fds));
    let patience = Instant::now() + Duration::from_millis(500);
    while !closing.is_finished() && Instant::now() < patience {
        thread::sleep(Duration::from_micros(100));
    }
}

/// Runs the body in a process of its own on this kernel, and in another one with the behaviour before Linux 6.16.
fn on_new_and_old_kernels(test: &str, body: impl FnOnce()) {
    match role().as_deref() {
        None => {
            for kernel in ["new", "old"] {
                let output = rerun(test, kernel).output().expect("runs");
                assert!(output.status.success(), "{kernel}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Some(kernel) => {
            let _watchdog = Watchdog::within(test, Duration::from_secs(120));
            if kernel == "old" {
                refuse_passrights();
            }
            let _other_end = close_blocks();
            body();
        }
    }
}

/// The tests show nothing where the close does not block.
fn close_blocks() -> TcpStream {
    let (fd, end) = lingering();
    let closer = thread::spawn(move || drop(fd));
    thread::sleep(Duration::from_millis(300));
    assert!(!closer.is_finished(), "closing a lingering socket blocks");
    end
}

/// From now on this thread and those that it starts cannot set `SO_PASSRIGHTS`.
fn refuse_passrights() {
    const PASSRIGHTS: u32 = 83;
    let step = |code: u32, skip: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("16 bits"),
        jt: 0,
        jf: skip,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let error = libc::SECCOMP_RET_ERRNO | libc::ENOPROTOOPT.unsigned_abs();
    let mut program = [
        step(load, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ, 3, u32::try_from(libc::SYS_setsockopt).expect("small")),
        step(load, 0, 16 + 8 * 2),
        step(libc::BPF_JMP | libc::BPF_JEQ, 1, PASSRIGHTS),
        step(libc::BPF_RET, 0, error),
        step(libc::BPF_RET, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 6, filter: program.as_mut_ptr() };
    // SAFETY: the calls read the program, which outlives them, and change only this process.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

#[track_caller]
fn in_time<T>(what: &str, call: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = call();
    assert!(begun.elapsed() < LATE, "{what} took {:?}", begun.elapsed());
    result
}

fn accept() -> [u8; ANSWER_LEN] {
    let (version, geometry) = (VERSION_MAX, geometry());
    Answer::Accept(Negotiated { version, features: 0, geometry, max_message: 1, first_ticket: 0 }).encode()
}

/// Returns a path, and a thread that accepts one client there by hand.
fn by_hand<T: Send + 'static>(
    play: impl FnOnce(UnixStream) -> T + Send + 'static,
) -> (PathBuf, thread::JoinHandle<T>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).expect("binds");
    let server = thread::spawn(move || play(listener.accept().expect("accepts").0));
    (path, server, folder)
}

fn connect(path: &Path) -> Result<SharedMemoryStream, ConnectError> {
    in_time("connect", || Options::new().authorize(|_| passes()).connect_timeout(path, DEADLINE))
}

/// While it is set, no side of this process continues after it has read the credentials of its peer. So everything that a peer
/// sends meanwhile is in the queue before it is read, and no copy of a descriptor is left with the peer.
static HELD: AtomicBool = AtomicBool::new(false);

fn passes() -> bool {
    assert!(eventually(|| !HELD.load(Ordering::SeqCst)));
    true
}

/// Connects to a server that sends these parts of its Accept, each with so many lingering descriptors. The memory goes with the
/// first byte, if `memory` is set. Returns the error of the client.
fn connect_to(parts: &[(usize, usize)], memory: bool) -> ConnectError {
    let parts = parts.to_vec();
    let (path, server, _folder) = by_hand(move |mut client| {
        let (bytes, mut ends) = (accept(), Vec::new());
        let mut rest = &bytes[..];
        let begun = Instant::now();
        if memory {
            let memory = memfd(geometry().region_len(), SEALS);
            send_with(&client, &rest[..1], &[memory.as_fd()]).expect("sends");
            rest = &rest[1..];
        }
        for (len, count) in parts {
            // After the Accept any bytes will do.
            let part = if rest.is_empty() { vec![0; len] } else { rest[..len.min(rest.len())].to_vec() };
            rest = &rest[part.len().min(rest.len())..];
            match count {
                0 => drop(client.write_all(&part)), // The client may have hung up.
                count => ends.extend(send_lingering(&client, &part, count)),
            }
        }
        HELD.store(false, Ordering::SeqCst);
        let _ = client.read_to_end(&mut Vec::new()); // Until the client hangs up.
        assert!(begun.elapsed() < LATE, "the server is disconnected at once");
        ends
    });
    HELD.store(true, Ordering::SeqCst);
    let error = connect(&path).expect_err("not a well-formed server");
    let _ends = server.join().expect("plays");
    error
}

#[test]
fn connect_returns_in_time_whatever_comes_with_the_accept() {
    on_new_and_old_kernels("connect_returns_in_time_whatever_comes_with_the_accept", || {
        let error = connect_to(&[(128, 1)], false);
        assert!(matches!(error, ConnectError::BadMemfd(_)), "{error}");
        for parts in [&[(128, 2)][..], &[(128, 40)], &[(50, 1), (78, 1)]] {
            let error = connect_to(parts, false);
            assert!(matches!(error, ConnectError::SurplusDescriptors), "{parts:?}: {error}");
        }
        let error = connect_to(&[(100, 1), (27, 0)], true);
        assert!(matches!(error, ConnectError::SurplusDescriptors), "{error}");
        // No more than half of the Accept arrives: the deadline ends the call.
        let error = connect_to(&[(64, 1)], false);
        assert!(error.is_timeout(), "{error}");
    });
}

/// The kernel throws an out-of-band byte away, with its descriptors, as soon as it is read past.
#[test]
fn connect_and_accept_return_in_time_whatever_comes_out_of_band() {
    on_new_and_old_kernels("connect_and_accept_return_in_time_whatever_comes_out_of_band", || {
        let (path, server, _folder) = by_hand(|mut client| {
            let ends = send_out_of_band(&client);
            let _ = client.write_all(&accept()); // The client may have hung up.
            HELD.store(false, Ordering::SeqCst);
            (ends, client)
        });
        HELD.store(true, Ordering::SeqCst);
        connect(&path).expect_err("not a well-formed server");
        server.join().expect("plays");
        let options = Options::new().handshake_timeout(Duration::from_secs(2)).authorize(|_| passes());
        let server = Server::start(&options);
        HELD.store(true, Ordering::SeqCst);
        let client = server.raw();
        let _ends = send_out_of_band(&client);
        (&client).write_all(&hello()).expect("sends");
        HELD.store(false, Ordering::SeqCst);
        in_time("accept", || server.well_formed_client_gets_in());
    });
}

#[test]
fn connect_returns_in_time_from_a_server_that_it_does_not_trust() {
    on_new_and_old_kernels("connect_returns_in_time_from_a_server_that_it_does_not_trust", || {
        let (path, server, _folder) = by_hand(|client| {
            let ends = send_lingering(&client, b"first", 1);
            HELD.store(false, Ordering::SeqCst);
            (ends, client)
        });
        HELD.store(true, Ordering::SeqCst);
        let wary = Options::new().authorize(|_| !passes());
        let error = in_time("connect", || wary.connect_timeout(&path, DEADLINE)).expect_err("not trusted");
        assert!(matches!(error, ConnectError::NotAuthorized { .. }), "{error}");
        server.join().expect("plays");
    });
}

/// A connection whose server sends a lingering descriptor once the client has confirmed the memory.
fn with_a_late_descriptor(
    out_of_band: bool,
) -> (SharedMemoryStream, thread::JoinHandle<(UnixStream, Vec<TcpStream>)>) {
    let (path, server, folder) = by_hand(move |mut client| {
        client.read_exact(&mut [0; HELLO_LEN]).expect("a hello");
        let memory = memfd(geometry().region_len(), SEALS);
        send_with(&client, &accept(), &[memory.as_fd()]).expect("sends");
        client.read_exact(&mut [0]).expect("the acknowledgement");
        let ends = if out_of_band { send_out_of_band(&client) } else { send_lingering(&client, b"late", 2) };
        (client, ends)
    });
    let stream = connect(&path).expect("connects");
    drop(folder);
    (stream, server)
}

/// Does the same as [`send_lingering`], with out-of-band data.
fn send_out_of_band(socket: &UnixStream) -> Vec<TcpStream> {
    let (fd, end) = lingering();
    let (mut byte, mut control) = ([7_u8], [0_u64; 4]);
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: the message names locals that outlive the call; the header and one number fit into the four words.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&mut part, 1);
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as usize;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd.as_raw_fd());
        libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL | libc::MSG_OOB)
    };
    if sent != 1 {
        return vec![]; // Its other end goes first, and its close does not block.
    }
    forget_here(fd);
    vec![end]
}

#[test]
fn dropping_a_stream_returns_in_time_whatever_its_server_has_sent() {
    on_new_and_old_kernels("dropping_a_stream_returns_in_time_whatever_its_server_has_sent", || {
        for out_of_band in [false, true] {
            let (stream, server) = with_a_late_descriptor(out_of_band);
            let (mut client, _ends) = server.join().expect("plays");
            in_time("drop", || drop(stream));
            client.set_read_timeout(Some(LATE)).expect("set");
            let hang_up = in_time("the hang-up", || client.read(&mut [0]));
            // ECONNRESET if the queue was not empty, which is also an end.
            assert!(
                matches!(&hang_up, Ok(0))
                    || hang_up.is_err_and(|it| it.raw_os_error() == Some(libc::ECONNRESET))
            );
        }
    });
}

#[test]
fn the_death_of_another_peer_is_reported_while_such_a_stream_is_dropped() {
    on_new_and_old_kernels("the_death_of_another_peer_is_reported_while_such_a_stream_is_dropped", || {
        let (other, mut survivor) = SharedMemoryStream::pair().expect("a pair");
        let (stream, server) = with_a_late_descriptor(false);
        let (client, _ends) = server.join().expect("plays");
        drop(client); // The monitor may be the last to hold the stream.
        in_time("drop", || drop(stream));
        drop(other);
        let end = in_time("the end", || survivor.recv_timeout(&mut [0; 8], LATE));
        assert!(
            matches!(end, Err(narrows::RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected))),
            "{end:?}"
        );
    });
}

#[test]
fn accept_goes_on_whatever_a_client_sends() {
    on_new_and_old_kernels("accept_goes_on_whatever_a_client_sends", || {
        let options = Options::new().handshake_timeout(Duration::from_secs(2)).authorize(|_| passes());
        let server = Server::start(&options);
        let mut kept = Vec::new();
        let mut send = |client: UnixStream, bytes: &[u8], count| {
            kept.push((send_lingering(&client, bytes, count), client));
            HELD.store(false, Ordering::SeqCst);
            in_time("accept", || server.well_formed_client_gets_in());
        };
        for (bytes, count) in [(&hello()[..], 1), (&hello()[..], 40), (&hello()[..1], 1), (b"GET / HT", 1)] {
            HELD.store(true, Ordering::SeqCst);
            send(server.raw(), bytes, count);
        }
        // The server is with another client while this one goes on.
        let hold = || {
            HELD.store(true, Ordering::SeqCst);
            let other = server.raw();
            thread::sleep(Duration::from_millis(50));
            other
        };
        let client = server.raw();
        (&client).write_all(&hello()[..10]).expect("sends");
        let _other = hold();
        send(client, &hello()[10..], 1);
        // Beside the acknowledgement, and after it.
        for after in [false, true] {
            let client = server.raw();
            (&client).write_all(&hello()).expect("sends");
            let (_, memory) = answer_with_memory(&client);
            seal(memory.as_fd(), LAST_SEALS).expect("seals");
            let _other = hold();
            if after {
                (&client).write_all(&[ACKNOWLEDGE]).expect("sends");
            }
            send(client, &[ACKNOWLEDGE], 1);
        }
        // Some clients were accepted, and some wait for their timeout. All of them disappear.
        in_time("drop", || drop(server));
    });
}

#[test]
fn dropping_a_listener_returns_in_time_whatever_waits_to_be_accepted() {
    on_new_and_old_kernels("dropping_a_listener_returns_in_time_whatever_waits_to_be_accepted", || {
        let folder = tempfile::tempdir().expect("directory");
        let path = folder.path().join("socket");
        let listener = Options::new().bind(&path).expect("binds");
        let client = UnixStream::connect(&path).expect("connects");
        let _ends = send_lingering(&client, &hello(), 2);
        in_time("drop", || drop(listener));
        client.set_read_timeout(Some(LATE)).expect("set");
        let hang_up = in_time("the hang-up", || (&client).read(&mut [0]));
        assert!(
            matches!(hang_up, Ok(0)) || hang_up.is_err_and(|it| it.raw_os_error() == Some(libc::ECONNRESET))
        );
    });
}

#[test]
fn a_client_that_does_not_seal_or_confirm_is_refused() {
    let timeout = Duration::from_millis(300);
    let server = Server::start(&Options::new().handshake_timeout(timeout));
    let welcomed = || {
        let client = server.raw();
        (&client).write_all(&hello()).expect("sends");
        let (_, memory) = answer_with_memory(&client);
        (client, memory)
    };
    let mut failures = 0;
    for (seals, byte) in [
        (0, ACKNOWLEDGE),
        (libc::F_SEAL_FUTURE_WRITE, ACKNOWLEDGE),
        (libc::F_SEAL_SEAL, ACKNOWLEDGE),
        (LAST_SEALS, 0),
        (LAST_SEALS, b'n'),
    ] {
        let (mut client, memory) = welcomed();
        seal(memory.as_fd(), seals).expect("seals");
        client.write_all(&[byte]).expect("sends");
        assert_eq!(client.read(&mut [0]).expect("hung up"), 0, "{seals:#x} and {byte}");
        failures += 1;
        server.failures_reach(failures);
    }
    // A client that never confirms keeps its slot for no longer than the handshake timeout.
    let (mut silent, memory) = welcomed();
    seal(memory.as_fd(), LAST_SEALS).expect("seals");
    let begun = Instant::now();
    assert_eq!(silent.read(&mut [0]).expect("hung up"), 0);
    assert!(begun.elapsed() < LATE);
    server.failures_reach(failures + 1);
    assert_eq!(server.accepted.load(Ordering::SeqCst), 0);
    server.well_formed_client_gets_in();
}

/// A thread that holds the lock of a file until this is dropped: it writes to the file from memory whose page is never supplied.
/// `new` returns `None` if this user may not make such memory.
struct Locked {
    page: *mut libc::c_void,
    faults: OwnedFd,
    writer: Option<thread::JoinHandle<()>>,
}

const PAGE: usize = 4096;

impl Locked {
    fn new(file: &OwnedFd) -> Option<Self> {
        // From linux/userfaultfd.h, the same on all machines.
        const API: u64 = 0xAA;
        const UFFDIO_API: u64 = 0xC018_AA3F;
        const UFFDIO_REGISTER: u64 = 0xC020_AA00;
        // SAFETY: a new descriptor; then a new mapping, which only the kernel touches; the ioctls read and write
        // locals of the size that their numbers say.
        let (page, faults) = unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC);
            let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
            let faults = OwnedFd::from_raw_fd(fd);
            let mut api = [API, 0, 0];
            if libc::ioctl(fd, UFFDIO_API as _, api.as_mut_ptr()) != 0 {
                return None;
            }
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let page = libc::mmap(ptr::null_mut(), PAGE, libc::PROT_READ, flags, -1, 0);
            assert!(page != libc::MAP_FAILED);
            let mut range = [page as u64, PAGE as u64, 1, 0];
            assert_eq!(libc::ioctl(fd, UFFDIO_REGISTER as _, range.as_mut_ptr()), 0);
            (page, faults)
        };
        let (raw, from) = (file.as_raw_fd(), page as usize);
        static WRITING: AtomicBool = AtomicBool::new(false);
        WRITING.store(false, Ordering::SeqCst);
        let file = file.try_clone().expect("a copy");
        let writer = thread::spawn(move || {
            WRITING.store(true, Ordering::SeqCst);
            // SAFETY: the kernel reads the page, or fails to.
            unsafe { libc::pwrite(raw, from as *const libc::c_void, 8, 0) };
            drop(file);
        });
        assert!(eventually(|| WRITING.load(Ordering::SeqCst)));
        let mut fault = libc::pollfd { fd: faults.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one local entry.
        assert_eq!(unsafe { libc::poll(&mut fault, 1, 60_000) }, 1, "the writer waits for the page");
        Some(Self { page, faults, writer: Some(writer) })
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        const UFFDIO_UNREGISTER: u64 = 0x8010_AA01;
        let mut range = [self.page as u64, PAGE as u64];
        // SAFETY: as above; afterwards the page is an ordinary one, and the writer goes on.
        unsafe { libc::ioctl(self.faults.as_raw_fd(), UFFDIO_UNREGISTER as _, range.as_mut_ptr()) };
        self.writer.take().expect("started").join().expect("ends");
        // SAFETY: the mapping made above, which nothing uses any more.
        unsafe { libc::munmap(self.page, PAGE) };
    }
}

#[test]
fn a_server_that_holds_the_lock_of_the_memory_costs_connect_no_more_than_its_deadline() {
    let _watchdog = Watchdog::within("a server holds the lock", Duration::from_secs(60));
    let memory = memfd(geometry().region_len(), SEALS);
    let Some(locked) = Locked::new(&memory) else {
        eprintln!("skipped: userfaultfd is not permitted here");
        return;
    };
    let adding = memory.try_clone().expect("a copy");
    let adding = thread::spawn(move || seal(adding.as_fd(), LAST_SEALS));
    let (path, server, _folder) = by_hand(move |mut client| {
        client.read_exact(&mut [0; HELLO_LEN]).expect("a hello");
        send_with(&client, &accept(), &[memory.as_fd()]).expect("sends");
        let _ = client.read_to_end(&mut Vec::new());
    });
    let error = connect(&path).expect_err("the seals cannot be added");
    assert!(error.is_timeout(), "{error}");
    assert!(!adding.is_finished(), "adding seals waits for the lock");
    server.join().expect("plays");
    drop(locked);
    let _either_was_first = adding.join().expect("ends");
}

#[test]
fn a_client_that_holds_the_lock_of_the_memory_does_not_hold_up_accept() {
    let _watchdog = Watchdog::within("a client holds the lock", Duration::from_secs(60));
    let server = Server::start(&Options::new().handshake_timeout(Duration::from_millis(500)));
    let client = server.raw();
    (&client).write_all(&hello()).expect("sends");
    let (_, memory) = answer_with_memory(&client);
    let Some(locked) = Locked::new(&memory) else {
        eprintln!("skipped: userfaultfd is not permitted here");
        return;
    };
    (&client).write_all(&[ACKNOWLEDGE]).expect("sends");
    server.failures_reach(1);
    in_time("accept", || server.well_formed_client_gets_in());
    drop(locked);
}

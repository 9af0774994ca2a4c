//! Tests that if the kernel refuses a system call, the error keeps its number and names the call.
//!
//! Each row runs in a forked child. The child makes the objects that it needs, and then installs a filter that refuses
//! one call, with an error number that no code handles specially. Not covered: calls for which the C library uses other
//! numbers on other architectures than x86-64. Errors that are handled specially are tested beside the code that
//! handles them.

use std::fmt::Debug;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::testing::{in_child, refuse};
use super::{epoll, memfd, pidfd, region, signals, socket, socket_io, spawn, syscall_error, timer, wait};

const STRANGE: i32 = libc::EDOM;

/// The code of a row. It calls its argument, which installs the filter, once all objects exist that the call needs.
type Row = fn(&dyn Fn()) -> io::Error;

fn error<T: Debug>(result: io::Result<T>) -> io::Error {
    result.map(drop).expect_err("refused")
}

const NEW: [(libc::c_long, &str, Row); 11] = [
    (libc::SYS_epoll_create1, "epoll_create1", |now| (now(), error(epoll::Epoll::new())).1),
    (libc::SYS_eventfd2, "eventfd", |now| (now(), error(epoll::Eventfd::new())).1),
    (libc::SYS_timerfd_create, "timerfd_create", |now| (now(), error(timer::Timer::new())).1),
    (libc::SYS_memfd_create, "memfd_create", |now| (now(), error(memfd::create(4096))).1),
    (libc::SYS_prlimit64, "getrlimit", |now| (now(), error(memfd::create(4096))).1),
    (libc::SYS_ftruncate, "ftruncate", |now| (now(), error(memfd::create(4096))).1),
    (libc::SYS_socket, "socket", |now| (now(), error(socket::connect("/nowhere".as_ref()))).1),
    (libc::SYS_socketpair, "socketpair", |now| (now(), error(socket::pair())).1),
    (libc::SYS_pidfd_open, "pidfd_open", |now| (now(), error(pidfd::Pidfd::open(std::process::id()))).1),
    (libc::SYS_getrandom, "getrandom", |now| (now(), error(spawn::nonce())).1),
    (libc::SYS_rt_sigprocmask, "pthread_sigmask", |now| (now(), error(signals::block_all().map(drop))).1),
];

const ON_A_DESCRIPTOR: [(libc::c_long, &str, Row); 13] = [
    (libc::SYS_epoll_ctl, "epoll_ctl", |now| {
        let (set, (one, _other)) = (epoll::Epoll::new().expect("set"), socket::pair().expect("pair"));
        now();
        error(set.add(one.as_fd(), 0, epoll::Interest::Readable))
    }),
    (libc::SYS_epoll_wait, "epoll_wait", |now| {
        let (set, mut events) = (epoll::Epoll::new().expect("set"), epoll::EpollEvents::with_room(1));
        now();
        error(set.wait(&mut events, Some(Instant::now())).map(drop))
    }),
    (libc::SYS_timerfd_settime, "timerfd_settime", |now| {
        let mut timer = timer::Timer::new().expect("timer");
        now();
        error(timer.arm_at(Some(Instant::now())))
    }),
    (libc::SYS_fcntl, "fcntl(F_ADD_SEALS)", |now| {
        let file = memfd::create(4096).expect("file");
        now();
        error(memfd::seal_size(file.as_fd()))
    }),
    (libc::SYS_mmap, "mmap", |now| {
        let file = memfd::create(4096).expect("file");
        now();
        error(region::Region::map(file.as_fd(), 4096))
    }),
    (libc::SYS_madvise, "madvise(MADV_DONTFORK)", |now| {
        let file = memfd::create(4096).expect("file");
        now();
        error(region::Region::map(file.as_fd(), 4096))
    }),
    (libc::SYS_madvise, "madvise(MADV_POPULATE_WRITE)", |now| {
        let region = region::Region::anonymous(4096).expect("memory");
        now();
        error(region.prefault())
    }),
    (libc::SYS_getsockopt, "getsockopt(SO_PEERCRED)", |now| {
        let (one, _other) = socket::pair().expect("pair");
        now();
        error(socket::peer_cred(one.as_fd()))
    }),
    (libc::SYS_ppoll, "ppoll", |now| {
        let (one, _other) = socket::pair().expect("pair");
        now();
        error(wait::wait_ready(one.as_fd(), wait::Readiness::Readable, None))
    }),
    (libc::SYS_recvfrom, "recv", |now| {
        let (one, _other) = socket::pair().expect("pair");
        now();
        error(socket_io::read(one.as_fd(), &mut [0; 8]))
    }),
    (libc::SYS_sendto, "send", |now| {
        let (one, _other) = socket::pair().expect("pair");
        now();
        error(socket_io::write(one.as_fd(), b"text"))
    }),
    (libc::SYS_recvmsg, "recvmsg", |now| {
        let (one, _other) = socket::pair().expect("pair");
        now();
        error(socket_io::receive_with_fds(one.as_fd(), &mut [0; 8]).map(drop))
    }),
    (libc::SYS_sendmsg, "sendmsg", |now| {
        let (one, other) = socket::pair().expect("pair");
        now();
        error(socket_io::send_with_fd(one.as_fd(), b"text", other.as_fd()))
    }),
];

const OF_A_LISTENER: [(libc::c_long, &str, Row); 5] = [
    (libc::SYS_fchmod, "fchmod", |now| bound(now)),
    (libc::SYS_bind, "bind", |now| bound(now)),
    (libc::SYS_listen, "listen", |now| {
        let (one, _other) = socket::pair().expect("pair");
        now();
        error(socket::start_listening(one.as_fd(), 1))
    }),
    (libc::SYS_accept4, "accept4", |now| {
        let (one, _other) = socket::pair().expect("pair");
        now();
        error(socket::accept(one.as_fd()))
    }),
    (libc::SYS_connect, "connect", |now| (now(), error(socket::connect("/nowhere".as_ref()))).1),
];

fn bound(now: &dyn Fn()) -> io::Error {
    let folder = tempfile::tempdir().expect("folder");
    now();
    error(socket::bind_private(&folder.path().join("socket")))
}

fn each_is_named(rows: &[(libc::c_long, &'static str, Row)]) {
    for &(number, name, row) in rows {
        in_child(|| {
            let error = row(&|| refuse(number, STRANGE));
            let text = error.to_string();
            assert!(text.starts_with(&format!("{name}: ")), "{name}: {text}");
            assert_eq!(syscall_error::errno(&error), Some(STRANGE), "{text}");
        });
    }
}

#[test]
fn a_call_that_is_refused_is_named() {
    each_is_named(&NEW);
    each_is_named(&ON_A_DESCRIPTOR);
    each_is_named(&OF_A_LISTENER);
}

#[test]
fn a_call_that_signals_interrupt_again_and_again_is_given_up() {
    in_child(|| {
        let (one, other) = socket::pair().expect("pair");
        socket_io::write(other.as_fd(), b"text").expect("room");
        for call in
            [libc::SYS_accept4, libc::SYS_connect, libc::SYS_recvfrom, libc::SYS_getrandom, libc::SYS_ppoll]
        {
            refuse(call, libc::EINTR);
        }
        assert!(socket::accept(one.as_fd()).expect("for now").is_none());
        assert!(matches!(socket::connect("/nowhere".as_ref()), Ok(socket::Connecting::BacklogFull)));
        let waited = socket::connect_waiting("/nowhere".as_ref(), Duration::from_secs(1));
        assert!(matches!(waited, Ok(socket::Connecting::BacklogFull)));
        assert_eq!(
            socket_io::read(one.as_fd(), &mut [0; 8]).expect("for now"),
            socket_io::Transfer::WouldBlock
        );
        assert!(
            !wait::wait_ready(one.as_fd(), wait::Readiness::Readable, Some(Instant::now())).expect("late")
        );
        assert_eq!(spawn::nonce().expect_err("no number").kind(), io::ErrorKind::Other);
    });
}

#[test]
fn pidfds_that_cannot_be_compared_are_not_shared() {
    in_child(|| {
        let open = || pidfd::Pidfd::open(std::process::id()).expect("our own").shared();
        assert!(Arc::ptr_eq(&open(), &open()), "they can be compared");
        refuse(libc::SYS_fstatfs, STRANGE);
        assert!(!Arc::ptr_eq(&open(), &open()));
    });
}

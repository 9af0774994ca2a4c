//! Kernels that lack new features: a filter on system calls refuses each feature as an old kernel does. Everything works
//! without it, or the error names what is missing.

#![allow(unsafe_code)]

use std::time::Duration;

use crate::support::{Kept, LONG, Watchdog, argument, echo, me, reach, role, round_trip, verdict, whole};
use narrows::{ConnectionError, Options, RecvTimeoutError, SharedMemoryListener, SharedMemoryStream};

/// A call that is refused: its number, the argument that decides by a bit or a value, and the error.
struct Refused {
    call: libc::c_long,
    when: Option<(u32, Is)>,
    error: i32,
}

#[derive(Clone, Copy)]
enum Is {
    Equal(u32),
    WithBit(u32),
}

const NOEXEC_SEAL: u32 = 8;
const PASSPIDFD: u32 = 76;
const PEERPIDFD: u32 = 77;
const PASSRIGHTS: u32 = 83;
const POPULATE_WRITE: u32 = 23;

fn refused(call: libc::c_long, when: Option<(u32, Is)>, error: i32) -> Refused {
    Refused { call, when, error }
}

/// What came with Linux 5.3 to 6.16.
fn what_is_new() -> Vec<Refused> {
    vec![
        refused(libc::SYS_memfd_create, Some((1, Is::WithBit(NOEXEC_SEAL))), libc::EINVAL),
        refused(libc::SYS_setsockopt, Some((2, Is::Equal(PASSPIDFD))), libc::ENOPROTOOPT),
        refused(libc::SYS_setsockopt, Some((2, Is::Equal(PASSRIGHTS))), libc::ENOPROTOOPT),
        refused(libc::SYS_getsockopt, Some((2, Is::Equal(PEERPIDFD))), libc::ENOPROTOOPT),
        refused(libc::SYS_madvise, Some((2, Is::Equal(POPULATE_WRITE))), libc::EINVAL),
        refused(libc::SYS_process_mrelease, None, libc::ENOSYS),
        refused(libc::SYS_pidfd_open, None, libc::ENOSYS),
    ]
}

/// Refuses the calls from now on, in this thread and all that it starts.
fn refuse(calls: &[Refused]) {
    let mut program = Vec::new();
    let mut step = |code: u32, skip: u8, k: u32| {
        program.push(libc::sock_filter { code: code.try_into().expect("16 bits"), jt: 0, jf: skip, k });
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    for Refused { call, when, error } in calls {
        step(load, 0, 0);
        let rest = if when.is_some() { 3 } else { 1 };
        step(libc::BPF_JMP | libc::BPF_JEQ, rest, (*call).try_into().expect("small"));
        if let Some((argument, is)) = when {
            let (test, value) = match is {
                Is::Equal(value) => (libc::BPF_JEQ, *value),
                Is::WithBit(value) => (libc::BPF_JSET, *value),
            };
            step(load, 0, 16 + 8 * argument);
            step(libc::BPF_JMP | test, 1, value);
        }
        let error = u32::try_from(*error).expect("small");
        step(libc::BPF_RET, 0, libc::SECCOMP_RET_ERRNO | error);
    }
    step(libc::BPF_RET, 0, libc::SECCOMP_RET_ALLOW);
    let len = program.len().try_into().expect("few");
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the calls read the program, which outlives them, and change only this process.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

/// Runs this test again in a process of its own, under the filter of an old kernel.
fn on_an_old_kernel(test: &str) {
    let status = Kept::start(&mut me(test, "old", "")).wait();
    assert!(status.success(), "{status}");
}

#[test]
fn connections_are_made_and_carry_messages() {
    const NAME: &str = "connections_are_made_and_carry_messages";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        return on_an_old_kernel(NAME);
    }
    refuse(&what_is_new());
    let folder = tempfile::tempdir().expect("directory");
    let listener = SharedMemoryListener::bind(folder.path().join("socket")).expect("binds");
    std::thread::scope(|scope| {
        let path = listener.local_path();
        scope.spawn(|| echo(listener.accept_timeout(LONG).expect("accepts")));
        let mut stream = SharedMemoryStream::connect(path).expect("connects");
        (0..100).for_each(|index| round_trip(&mut stream, index));
    });
    let (mut a, mut b) = SharedMemoryStream::pair().expect("pairs");
    a.send(&[7; 300]).expect("sends");
    assert_eq!(verdict_of(&mut b), Ok(300));
}

fn verdict_of(stream: &mut SharedMemoryStream) -> Result<usize, RecvTimeoutError> {
    stream.recv_timeout(&mut [0; 512], LONG).map(|it| it.len)
}

/// Without the pidfd of a peer only its hang-up is known: the call ends, and reports that.
#[test]
fn a_kill_is_a_hang_up_where_processes_cannot_be_watched() {
    const NAME: &str = "a_kill_is_a_hang_up_where_processes_cannot_be_watched";
    match role().as_deref() {
        None => {
            let _watchdog = Watchdog::new(NAME);
            on_an_old_kernel(NAME);
        }
        Some("server") => {
            let listener = SharedMemoryListener::bind(argument()).expect("binds");
            echo(listener.accept_timeout(LONG).expect("accepts"));
        }
        Some("child") => echo(SharedMemoryStream::from_parent().expect("handed over")),
        Some(_) => {
            refuse(&what_is_new());
            let folder = tempfile::tempdir().expect("directory");
            let path = folder.path().join("socket");
            let mut server = Kept::start(&mut me(NAME, "server", path.to_str().expect("plain")));
            let mut stream = reach(&path, &Options::new());
            round_trip(&mut stream, 1);
            server.0.kill().expect("kills");
            assert_eq!(
                verdict(&mut stream),
                Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected))
            );
            let (child, mut stream) = SharedMemoryStream::spawn(me(NAME, "child", "")).expect("spawns");
            let mut child = Kept(child);
            round_trip(&mut stream, 2);
            child.0.kill().expect("kills");
            assert_eq!(
                verdict(&mut stream),
                Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected))
            );
        }
    }
}

/// If only the quick query after a death is missing, the pidfd still reports the death.
#[test]
fn a_kill_is_a_death_where_the_pidfd_reports_late() {
    const NAME: &str = "a_kill_is_a_death_where_the_pidfd_reports_late";
    match role().as_deref() {
        None => {
            let _watchdog = Watchdog::new(NAME);
            on_an_old_kernel(NAME);
        }
        Some("child") => echo(SharedMemoryStream::from_parent().expect("handed over")),
        Some(_) => {
            refuse(&[refused(libc::SYS_process_mrelease, None, libc::ENOSYS)]);
            let (child, mut stream) = SharedMemoryStream::spawn(me(NAME, "child", "")).expect("spawns");
            let mut child = Kept(child);
            round_trip(&mut stream, 1);
            child.0.kill().expect("kills");
            assert_eq!(
                verdict(&mut stream),
                Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied))
            );
        }
    }
}

#[test]
fn a_missing_feature_that_is_required_is_named() {
    const NAME: &str = "a_missing_feature_that_is_required_is_named";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        return on_an_old_kernel(NAME);
    }
    let text = |options: &Options| match options.pair() {
        Ok(_) => panic!("made without"),
        Err(error) => whole(&error),
    };
    refuse(&[refused(libc::SYS_madvise, Some((2, Is::Equal(POPULATE_WRITE))), libc::EINVAL)]);
    let output = text(&Options::new().prefault(true).handshake_timeout(Duration::from_secs(5)));
    assert!(
        output.contains("prefault") || output.contains("madvise") || output.contains("MADV_POPULATE_WRITE"),
        "{output}"
    );
    refuse(&[refused(libc::SYS_memfd_create, None, libc::ENOSYS)]);
    let output = text(&Options::new());
    assert!(output.contains("memfd_create"), "{output}");
}

//! Calls over an existing stream: both ends of a pair, a spawned child that serves, and one that calls.
//!
//! ```text
//!   parent ── spawn ──▶ child            either process may be the server
//!     SharedMemoryClient::over ══ call ══▶ serve_stream(from_parent)
//!     serve_stream, adopt ◀══ call ══ SharedMemoryClient::over(from_parent)
//! ```

#![allow(unsafe_code)]

use std::path::Path;
use std::process::{Command, Stdio, exit};
use std::thread;

use crate::support::{
    Kept, LONG, Watchdog, argument, descriptors, eventually, mappings, me, role, runs, sys, threads,
};
use narrows::{
    CallError, ConnectionError, Options, SharedMemoryClient, SharedMemoryServer, SharedMemoryStream,
};

const ECHO: u32 = 1;
const POOLED: u32 = 2;
const COUNT: u32 = 3;
const SUM: u32 = 4;
const HOLD: u32 = 5;
const PUSH: u32 = 6;

fn server() -> SharedMemoryServer {
    SharedMemoryServer::new()
        .inline(ECHO, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .method(POOLED, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .streaming(COUNT, |request, chunks| {
            (0..request.bytes()[0]).try_for_each(|number| chunks.write_chunk(&[number]))?;
            Ok(())
        })
        .upload(SUM, |_, chunks, reply| {
            let mut sum = 0_u64;
            while let Some(chunk) = chunks.next_chunk()? {
                sum += chunk.into_iter().map(u64::from).sum::<u64>();
            }
            reply.extend(sum.to_le_bytes());
            Ok(())
        })
        .method(HOLD, |request, _| {
            while !request.is_cancelled() {
                thread::yield_now();
            }
            Ok(())
        })
        .inline(PUSH, |request, _| Ok(request.connection().push(request.bytes())?))
}

/// One call of each kind.
fn use_it(client: &SharedMemoryClient) {
    for len in [0, 10, 1000, 300_000] {
        let request = vec![7; len];
        assert_eq!(*client.call_timeout(ECHO, &request, LONG).expect("answers"), *request);
        assert_eq!(*client.call_timeout(POOLED, &request, LONG).expect("answers"), *request);
    }
    let numbers: Result<Vec<_>, _> = client.call_streaming(COUNT, &[9]).expect("sends").collect();
    assert_eq!(numbers.expect("all come").concat(), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let mut upload = client.start_upload(SUM, &[]).expect("sends");
    (0..10).for_each(|_| upload.write_chunk(&[1; 500]).expect("is taken"));
    assert_eq!(*upload.finish_timeout(LONG).expect("answers"), 5000_u64.to_le_bytes());
    client.call_timeout(PUSH, b"pushed", LONG).expect("answers");
    assert_eq!(client.next_push_timeout(LONG).expect("comes"), b"pushed");
}

#[test]
fn either_end_of_a_pair_serves() {
    let _watchdog = Watchdog::new("either_end_of_a_pair_serves");
    for swap in [false, true] {
        let (a, b) = SharedMemoryStream::pair().expect("a pair");
        let (a, b) = if swap { (b, a) } else { (a, b) };
        let served = thread::spawn(|| server().serve_stream(a));
        let client = SharedMemoryClient::over(b).expect("the handshake succeeds");
        assert_eq!(client.peer_cred().pid(), std::process::id());
        use_it(&client);
        drop(client);
        assert!(served.join().expect("no panic").is_ok(), "the client's end is no error");
    }
}

#[test]
fn a_spawned_child_serves() {
    const NAME: &str = "a_spawned_child_serves";
    if role().is_some() {
        sys::alarm(90);
        let stream = SharedMemoryStream::from_parent().expect("taken");
        exit(if server().serve_stream(stream).is_ok() { 7 } else { 8 });
    }
    let _watchdog = Watchdog::new(NAME);
    let (mut child, stream) = SharedMemoryStream::spawn(me(NAME, "child", "")).expect("spawns");
    let client = SharedMemoryClient::over(stream).expect("the handshake succeeds");
    assert_eq!(client.peer_cred().pid(), child.id());
    use_it(&client);
    drop(client);
    assert_eq!(child.wait().expect("ends").code(), Some(7), "the parent's end is no error");

    let (child, stream) = SharedMemoryStream::spawn(me(NAME, "child", "")).expect("spawns");
    let mut child = Kept(child);
    let client = SharedMemoryClient::over(stream).expect("the handshake succeeds");
    let pending = client.start_call(HOLD, &[]).expect("sends");
    use_it(&client);
    child.0.kill().expect("kills");
    assert!(matches!(pending.wait(), Err(CallError::ConnectionLost(ConnectionError::PeerDied))));
}

/// A shell stands between: the server's death is reported, and not the shell's.
#[test]
fn a_server_behind_a_shell_is_the_peer() {
    const NAME: &str = "a_server_behind_a_shell_is_the_peer";
    if role().is_some() {
        sys::alarm(90);
        let stream = SharedMemoryStream::from_parent().expect("taken");
        exit(if server().serve_stream(stream).is_ok() { 7 } else { 8 });
    }
    let _watchdog = Watchdog::new(NAME);
    for (script, lives) in [("\"$@\"; read line", true), ("\"$@\" & exit 0", false)] {
        let inner = me(NAME, "child", "");
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let (child, stream) = SharedMemoryStream::spawn(command).expect("spawns");
        let mut shell = Kept(child);
        let client = SharedMemoryClient::over(stream).expect("the handshake succeeds");
        let backend = client.peer_cred().pid();
        assert_ne!(backend, shell.pid());
        assert!(lives || shell.wait().success());
        use_it(&client);
        let pending = client.start_call(HOLD, &[]).expect("sends");
        sys::kill(i32::try_from(backend).expect("a pid"), 9);
        assert!(
            matches!(pending.wait(), Err(CallError::ConnectionLost(ConnectionError::PeerDied))),
            "{script}"
        );
    }
}

#[test]
fn a_spawned_child_calls() {
    const NAME: &str = "a_spawned_child_calls";
    match role().as_deref() {
        None => {}
        Some(role) => {
            sys::alarm(90);
            let stream = SharedMemoryStream::from_parent().expect("taken");
            let client = SharedMemoryClient::over(stream).expect("the handshake succeeds");
            use_it(&client);
            if role == "held" {
                let _until_killed = client.call(HOLD, &[]);
            }
            drop(client);
            exit(7);
        }
    }
    let _watchdog = Watchdog::new(NAME);
    let (mut child, stream) = SharedMemoryStream::spawn(me(NAME, "child", "")).expect("spawns");
    assert!(server().serve_stream(stream).is_ok(), "the child's end is no error");
    assert_eq!(child.wait().expect("ends").code(), Some(7));

    let handle = server().spawn().expect("serves");
    let children: Vec<_> = (0..3)
        .map(|_| {
            let (child, stream) = SharedMemoryStream::spawn(me(NAME, "held", "")).expect("spawns");
            handle.adopt(stream);
            Kept(child)
        })
        .collect();
    assert!(eventually(|| handle.stats().running == 3), "{:?}", handle.stats());
    assert_eq!(handle.connections().len(), 3);
    drop(children); // Killed.
    assert!(eventually(|| handle.stats().died == 3 && handle.stats().running == 0), "{:?}", handle.stats());
    let drained = handle.shutdown(LONG);
    assert_eq!((drained.cut_off, drained.running), (0, 0));
}

/// The child reports by a file, since its parent, which could wait for it, is gone.
#[test]
fn a_spawned_server_learns_of_its_parents_death() {
    const NAME: &str = "a_spawned_server_learns_of_its_parents_death";
    let word = |folder: &str| Path::new(folder).join("word");
    match role().as_deref() {
        None => {}
        Some("parent") => {
            sys::alarm(90);
            let (_child, stream) = SharedMemoryStream::spawn(me(NAME, "child", &argument())).expect("spawns");
            let client = SharedMemoryClient::over(stream).expect("the handshake succeeds");
            std::fs::write(word(&argument()), "serves").expect("writes");
            let _until_killed = client.call(HOLD, &[]);
            return;
        }
        Some(_) => {
            sys::alarm(90);
            let ended = server().serve_stream(SharedMemoryStream::from_parent().expect("taken"));
            std::fs::write(word(&argument()), format!("{ended:?}")).expect("writes");
            return;
        }
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let folder = folder.path().to_str().expect("plain");
    let mut parent = Kept::start(&mut me(NAME, "parent", folder));
    let says = |what: &str| eventually(|| std::fs::read_to_string(word(folder)).is_ok_and(|it| it == what));
    assert!(says("serves"));
    parent.0.kill().expect("kills");
    assert!(says("Err(ConnectionLost(PeerDied))"), "{:?}", std::fs::read_to_string(word(folder)));
}

#[test]
fn a_hundred_pairs_of_one_server_leave_nothing() {
    const NAME: &str = "a_hundred_pairs_of_one_server_leave_nothing";
    if role().is_none() {
        return assert!(Kept::start(&mut me(NAME, "alone", "")).wait().success());
    }
    let _watchdog = Watchdog::new(NAME);
    let small = Options::new().slots(8).arena(8192);
    let handle = server().spawn().expect("serves");
    let connect = || {
        let (a, b) = small.pair().expect("a pair");
        handle.adopt(a);
        SharedMemoryClient::over_with(b, &small).expect("the handshake succeeds")
    };
    let counts = || (descriptors(), mappings("memfd:"), threads(), handle.stats().connections);
    use_it(&connect());
    assert!(eventually(|| counts().1 == 0 && !runs("narrows-serve") && !runs("narrows-stream")));
    let first = counts();
    let clients: Vec<_> = (0..100).map(|_| connect()).collect();
    clients.iter().for_each(use_it);
    assert_eq!(handle.stats().connections, 100);
    drop(clients);
    assert!(eventually(|| counts() == first), "{first:?} at first, {:?} now", counts());
}

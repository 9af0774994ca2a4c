//! Fork without exec in every state: the child's calls fail cleanly, the parent's stream stays whole.

#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::sync::mpsc;
use std::time::Duration;

use crate::support::{Fork, LONG, Watchdog, alone, sys};
use narrows::{
    AcceptError, CallError, ConnectionError, Options, RecvError, RecvTimeoutError, SendError,
    SendTimeoutError, SharedMemoryClient, SharedMemoryListener, SharedMemoryServer, SharedMemoryStream,
    TryRecvError, TrySendError,
};

/// How a forked child leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Leave {
    Drop,
    UnderscoreExit,
    Exit,
    Panic,
}

const LEAVES: [Leave; 4] = [Leave::Drop, Leave::UnderscoreExit, Leave::Exit, Leave::Panic];

/// Forks, lets the child use and then leave what it inherited, and checks how it ended.
///
/// The child gets the values themselves, so that their drops run there.
fn in_fork<T>(leave: Leave, inherited: &mut Option<T>, calls: impl FnOnce(&mut T)) {
    let child = Fork::run(|| {
        let mut mine = inherited.take().expect("inherited");
        calls(&mut mine);
        match leave {
            Leave::Drop => drop(mine),
            Leave::UnderscoreExit => sys::exit_now(0),
            Leave::Exit => std::process::exit(0),
            Leave::Panic => {
                std::panic::set_hook(Box::new(|_| ()));
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                    let _mine = mine;
                    panic!("on purpose");
                }));
                assert!(result.is_err());
            }
        }
        0
    });
    assert_eq!(child.wait(), 0, "{leave:?}");
}

fn forked_calls(stream: &mut SharedMemoryStream) {
    let mut buffer = [0; 64];
    let mut into = Vec::new();
    assert_eq!(stream.send(b"no"), Err(SendError::ConnectionLost(ConnectionError::Forked)));
    assert_eq!(stream.send(&vec![0; 1 << 20]), Err(SendError::ConnectionLost(ConnectionError::Forked)));
    assert_eq!(stream.try_send(b"no"), Err(TrySendError::ConnectionLost(ConnectionError::Forked)));
    assert_eq!(
        stream.send_timeout(b"no", LONG),
        Err(SendTimeoutError::ConnectionLost(ConnectionError::Forked))
    );
    assert_eq!(stream.recv(&mut buffer), Err(RecvError::ConnectionLost(ConnectionError::Forked)));
    assert_eq!(stream.recv_into(&mut into), Err(RecvError::ConnectionLost(ConnectionError::Forked)));
    assert_eq!(stream.try_recv(&mut buffer), Err(TryRecvError::ConnectionLost(ConnectionError::Forked)));
    assert_eq!(
        stream.recv_timeout(&mut buffer, LONG),
        Err(RecvTimeoutError::ConnectionLost(ConnectionError::Forked))
    );
    assert!(matches!(stream.recv_ref(), Err(RecvError::ConnectionLost(ConnectionError::Forked))));
    assert!(matches!(stream.reserve(8), Err(SendError::ConnectionLost(ConnectionError::Forked))));
    assert!(matches!(stream.try_reserve(8), Err(TrySendError::ConnectionLost(ConnectionError::Forked))));
    assert_eq!(stream.wait_either(8), Err(SendTimeoutError::ConnectionLost(ConnectionError::Forked)));
    assert_eq!(stream.batch().push(b"no"), Err(SendError::ConnectionLost(ConnectionError::Forked)));
    assert_eq!(stream.batch().flush(), Err(SendError::ConnectionLost(ConnectionError::Forked)));
    assert!(matches!(stream.iter().next(), Some(Err(RecvError::ConnectionLost(ConnectionError::Forked)))));
    assert!(stream.try_iter().next().is_none());
    assert!(stream.is_disconnected());
    let _harmless = (stream.stats(), stream.peer_cred(), stream.max_in_place(), format!("{stream:?}"));
    stream.closer().close();
}

/// Checks that both directions work, and that neither end considers the other gone.
fn assert_alive(a: &mut SharedMemoryStream, b: &mut SharedMemoryStream) {
    let mut buffer = [0; 64];
    let mut one_way = |from: &mut SharedMemoryStream, to: &mut SharedMemoryStream| {
        from.send_timeout(b"still here", LONG).expect("sends");
        assert_eq!(to.recv_timeout(&mut buffer, LONG).expect("receives").len, 10);
        assert_eq!(&buffer[..10], b"still here");
    };
    one_way(a, b);
    one_way(b, a);
}

#[test]
fn an_idle_stream_survives_a_fork() {
    if !alone("an_idle_stream_survives_a_fork") {
        return;
    }
    let _watchdog = Watchdog::new("an_idle_stream_survives_a_fork");
    for leave in LEAVES {
        let mut pair = Some(SharedMemoryStream::pair().expect("pair"));
        in_fork(leave, &mut pair, |(a, b)| {
            forked_calls(a);
            forked_calls(b);
        });
        let (mut a, mut b) = pair.expect("kept");
        assert_alive(&mut a, &mut b);
        std::thread::sleep(Duration::from_millis(40)); // A false report of an end would come by now.
        assert_alive(&mut a, &mut b);
        drop(a);
        assert_eq!(
            b.recv_timeout(&mut [0; 8], LONG),
            Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected))
        );
    }
}

#[test]
fn messages_under_way_survive_a_fork() {
    if !alone("messages_under_way_survive_a_fork") {
        return;
    }
    let _watchdog = Watchdog::new("messages_under_way_survive_a_fork");
    for leave in LEAVES {
        let (mut a, b) = SharedMemoryStream::pair().expect("pair");
        a.send(b"one").expect("sends");
        a.send(&[7; 5000]).expect("sends");
        let mut both = Some((a, b));
        in_fork(leave, &mut both, |(a, b)| {
            forked_calls(b);
            forked_calls(a);
        });
        let (mut a, mut b) = both.expect("kept");
        let mut buffer = Vec::new();
        b.recv_into_timeout(&mut buffer, LONG).expect("receives");
        assert_eq!(buffer, b"one");
        b.recv_into_timeout(&mut buffer, LONG).expect("receives");
        assert_eq!(buffer, [7; 5000]);
        assert_alive(&mut a, &mut b);
    }
}

#[test]
fn a_receiver_asleep_in_another_thread_sleeps_on() {
    if !alone("a_receiver_asleep_in_another_thread_sleeps_on") {
        return;
    }
    let _watchdog = Watchdog::new("a_receiver_asleep_in_another_thread_sleeps_on");
    for leave in LEAVES {
        let (a, mut b) = SharedMemoryStream::pair().expect("pair");
        let (notify, ready) = mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            notify.send(()).expect("the test waits");
            let got = b.recv(&mut buffer).map(|it| it.len);
            (got, b)
        });
        ready.recv().expect("the sleeper starts");
        std::thread::sleep(Duration::from_millis(20));
        let mut a = Some(a);
        in_fork(leave, &mut a, forked_calls);
        let mut a = a.expect("kept");
        assert!(!sleeper.is_finished());
        a.send(b"wake").expect("sends");
        let (got, mut b) = sleeper.join().expect("joins");
        assert_eq!(got, Ok(4));
        assert_alive(&mut a, &mut b);
    }
}

#[test]
fn guards_and_reservations_survive_a_fork() {
    if !alone("guards_and_reservations_survive_a_fork") {
        return;
    }
    let _watchdog = Watchdog::new("guards_and_reservations_survive_a_fork");
    for leave in LEAVES {
        for len in [10, 5000, 400_000] {
            let (a, mut b) = SharedMemoryStream::pair().expect("pair");
            let (mut sender, _receiver) = a.split();
            sender.send(&vec![3; len]).expect("sends");
            let mut guard = Some(b.recv_ref().expect("borrowed"));
            let mut room = Some(sender.reserve(100).expect("room"));
            in_fork(leave, &mut room, |room| {
                assert!(room.write_at(0, b"no").is_err() && room.write(b"no").is_err());
                assert!(room.raw().is_err());
            });
            in_fork(leave, &mut guard, |guard| {
                assert!(guard.read_at(0, &mut [0; 4]).is_err() && guard.read(&mut [0; 4]).is_err());
                assert!(guard.raw().is_err() && guard.to_vec().is_err());
            });
            let fork = Fork::run(|| {
                let committed = room.take().expect("inherited").commit();
                let finished = guard.take().expect("inherited").finish();
                i32::from(
                    committed != Err(SendError::ConnectionLost(ConnectionError::Forked))
                        || finished != Err(RecvError::ConnectionLost(ConnectionError::Forked)),
                )
            });
            assert_eq!(fork.wait(), 0);
            assert_eq!(guard.take().expect("kept").to_vec().expect("reads"), vec![3; len]);
            drop(guard);
            let mut room = room.take().expect("kept");
            room.write_all(b"written after the fork").expect("fits");
            room.commit_written().expect("commits");
            let mut buffer = Vec::new();
            b.recv_into_timeout(&mut buffer, LONG).expect("receives");
            assert_eq!(buffer, b"written after the fork");
        }
    }
}

#[test]
fn a_locked_shared_sender_survives_a_fork() {
    if !alone("a_locked_shared_sender_survives_a_fork") {
        return;
    }
    let _watchdog = Watchdog::new("a_locked_shared_sender_survives_a_fork");
    for leave in LEAVES {
        let (a, mut b) = Options::new().slots(2).arena(128).pair().expect("pair");
        let (sender, _receiver) = a.split();
        let shared = sender.into_shared();
        let blocked = shared.clone();
        let holder = std::thread::spawn(move || {
            for _ in 0..20 {
                blocked.send(&[5; 100]).expect("sends");
            }
        });
        std::thread::sleep(Duration::from_millis(20)); // It waits for space by now, with the lock.
        let mut shared = Some(shared);
        in_fork(leave, &mut shared, |shared| {
            assert_eq!(shared.send(b"no"), Err(SendError::ConnectionLost(ConnectionError::Forked)));
            assert_eq!(shared.try_send(b"no"), Err(TrySendError::ConnectionLost(ConnectionError::Forked)));
            assert_eq!(
                shared.send_timeout(b"no", LONG),
                Err(SendTimeoutError::ConnectionLost(ConnectionError::Forked))
            );
            let _harmless = (shared.stats(), shared.clone());
            shared.closer().close();
        });
        for _ in 0..20 {
            assert_eq!(b.recv_timeout(&mut [0; 200], LONG).expect("receives").len, 100);
        }
        holder.join().expect("joins");
    }
}

#[test]
fn byte_streams_and_listeners_fail_cleanly_in_a_fork() {
    if !alone("byte_streams_and_listeners_fail_cleanly_in_a_fork") {
        return;
    }
    let _watchdog = Watchdog::new("byte_streams_and_listeners_fail_cleanly_in_a_fork");
    let folder = tempfile::tempdir().expect("directory");
    for leave in LEAVES {
        let path = folder.path().join("socket");
        let (a, mut b) = SharedMemoryStream::pair().expect("pair");
        let listener = SharedMemoryListener::bind(&path).expect("binds");
        let (reader, writer) = a.into_bytes();
        let mut all = Some((reader, writer, listener));
        in_fork(leave, &mut all, |(reader, writer, listener)| {
            assert!(reader.read(&mut [0; 8]).is_err());
            assert!(writer.write(b"no").is_err());
            assert!(matches!(listener.accept(), Err(AcceptError::Forked)));
            assert!(matches!(listener.try_accept(), Err(AcceptError::Forked)));
            assert!(listener.incoming().next().is_none());
            listener.closer().close();
        });
        let (mut reader, mut writer, listener) = all.expect("kept");
        assert!(path.exists(), "{leave:?} in a fork removed the path");
        writer.write_all(b"bytes").expect("writes");
        assert_eq!(b.recv_timeout(&mut [0; 8], LONG).expect("receives").len, 5);
        b.send(b"more").expect("sends");
        assert_eq!(reader.read(&mut [0; 8]).expect("reads"), 4);
        let client = std::thread::spawn(move || SharedMemoryStream::connect(path).expect("connects"));
        let mut server = listener.accept_timeout(LONG).expect("accepts");
        assert_alive(&mut server, &mut client.join().expect("joins"));
    }
}

#[test]
fn a_server_of_calls_survives_a_fork_that_leaves() {
    if !alone("a_server_of_calls_survives_a_fork_that_leaves") {
        return;
    }
    let _watchdog = Watchdog::new("a_server_of_calls_survives_a_fork_that_leaves");
    let folder = tempfile::tempdir().expect("directory");
    for leave in LEAVES {
        let path = folder.path().join(format!("{leave:?}"));
        let server = SharedMemoryServer::bind(&path).expect("binds").inline(1, |_, _| Ok(()));
        let handle = server.spawn().expect("starts");
        let client = SharedMemoryClient::connect(&path).expect("connects");
        let mut both = Some((handle, client));
        in_fork(leave, &mut both, |(_, client)| {
            assert!(matches!(client.call(1, b""), Err(CallError::ConnectionLost(ConnectionError::Forked))));
        });
        let (_handle, client) = both.expect("the fork had a copy of its own");
        client.call(1, b"").expect("the parent's client goes on");
    }
}

#[test]
fn a_fork_makes_its_own_connections() {
    if !alone("a_fork_makes_its_own_connections") {
        return;
    }
    let _watchdog = Watchdog::new("a_fork_makes_its_own_connections");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let listener = SharedMemoryListener::bind(&path).expect("binds");
    let (mut a, mut b) = SharedMemoryStream::pair().expect("pair"); // The parent has a peer monitor.
    let child = Fork::run(|| {
        forked_calls(&mut a);
        let (mut x, mut y) = SharedMemoryStream::pair().expect("a pair of its own");
        assert_alive(&mut x, &mut y);
        drop(x);
        assert_eq!(
            y.recv_timeout(&mut [0; 8], LONG),
            Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected))
        );
        let mut own = SharedMemoryStream::connect(&path).expect("connects");
        own.send(b"from the fork").expect("sends");
        let grandchild = Fork::run(|| {
            let mut again = SharedMemoryStream::connect(&path).expect("connects");
            again.send(b"from its fork").expect("sends");
            std::thread::sleep(LONG);
            0
        });
        // The parent kills the grandchild once it has received its message. This process goes on.
        assert_eq!(grandchild.wait(), -libc::SIGKILL);
        own.send(b"after").expect("sends");
        let end = own.recv_timeout(&mut [0; 8], LONG);
        i32::from(end != Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected)))
    });
    let mut own = listener.accept_timeout(LONG).expect("accepts");
    let mut buffer = Vec::new();
    own.recv_into_timeout(&mut buffer, LONG).expect("receives");
    assert_eq!(buffer, b"from the fork");
    let mut again = listener.accept_timeout(LONG).expect("accepts");
    again.recv_into_timeout(&mut buffer, LONG).expect("receives");
    assert_eq!(buffer, b"from its fork");
    let pid = i32::try_from(again.peer_cred().pid()).expect("a pid");
    assert_ne!(pid, child.pid());
    sys::kill(pid, libc::SIGKILL);
    assert_eq!(
        again.recv_timeout(&mut [0; 8], LONG),
        Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied))
    );
    own.recv_into_timeout(&mut buffer, LONG).expect("receives");
    assert_eq!(buffer, b"after");
    drop(own);
    assert_eq!(child.wait(), 0);
    assert_alive(&mut a, &mut b);
}

#[test]
fn a_fork_detects_the_death_of_its_peer() {
    if !alone("a_fork_detects_the_death_of_its_peer") {
        return;
    }
    let _watchdog = Watchdog::new("a_fork_detects_the_death_of_its_peer");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (mut a, mut b) = SharedMemoryStream::pair().expect("pair");
    let server = Fork::run(|| {
        let listener = SharedMemoryListener::bind(&path).expect("binds");
        let mut stream = listener.accept_timeout(LONG).expect("accepts");
        stream.send(b"hello").expect("sends");
        std::thread::sleep(LONG);
        0
    });
    let client = Fork::run(|| {
        let mut stream = crate::support::reach(&path, &Options::new());
        assert_eq!(stream.recv_timeout(&mut [0; 8], LONG).expect("receives").len, 5);
        sys::kill(i32::try_from(stream.peer_cred().pid()).expect("a pid"), libc::SIGKILL);
        i32::from(
            stream.recv_timeout(&mut [0; 8], LONG)
                != Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)),
        )
    });
    assert_eq!((client.wait(), server.wait()), (0, -libc::SIGKILL));
    assert_alive(&mut a, &mut b);
}

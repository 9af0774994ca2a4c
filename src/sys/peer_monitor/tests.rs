//! Each test runs in a forked child of its own. There no fork of another test holds a copy of a socket, and descriptors
//! can be counted.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::watch_table::GRACE;
use super::*;
use crate::sys::epoll::Eventfd;
use crate::sys::socket::pair;
use crate::sys::socket_io::write;
use crate::sys::testing::{PATIENCE, eventually, fork, in_child, open_descriptors};
use crate::sys::wait::{Readiness, is_readable, wait_ready};

#[derive(Default)]
struct Connection {
    closed: AtomicBool,
    reasons: Mutex<Vec<PeerExit>>,
    handle: Mutex<Option<MonitorHandle>>,
    drop_handle_on_exit: bool,
    panics: bool,
}

impl Watched for Connection {
    fn is_closed_by_peer(&self) -> bool {
        assert!(!self.panics, "as the test wants");
        self.closed.load(Ordering::Acquire)
    }

    fn on_peer_exit(&self, reason: PeerExit) {
        self.reasons.lock().expect("unlocked").push(reason);
        if self.drop_handle_on_exit {
            drop(self.handle.lock().expect("unlocked").take());
        }
    }
}

impl Connection {
    fn reasons(&self) -> Vec<PeerExit> {
        self.reasons.lock().expect("unlocked").clone()
    }

    fn reason(&self) -> PeerExit {
        assert!(eventually(|| !self.reasons().is_empty()), "the end was not reported");
        self.reasons()[0]
    }

    fn watch(self: &Arc<Self>, socket: OwnedFd, peer: Option<Arc<Pidfd>>) {
        let watched: Weak<dyn Watched> = Arc::downgrade(self) as Weak<dyn Watched>;
        let handle = watch(socket, peer, watched).expect("watches");
        *self.handle.lock().expect("unlocked") = Some(handle);
    }

    fn unwatch(&self) {
        drop(self.handle.lock().expect("unlocked").take());
    }
}

/// Watches a connection, and returns it and its other end.
fn watched(connection: Connection, peer: Option<Arc<Pidfd>>) -> (Arc<Connection>, OwnedFd) {
    let (ours, theirs) = pair().expect("pair");
    let connection = Arc::new(connection);
    connection.watch(ours, peer);
    (connection, theirs)
}

fn pidfd(child: &crate::sys::testing::Forked) -> Arc<Pidfd> {
    Pidfd::open(child.pid()).expect("opens").shared()
}

/// Waits in a child until the test signals the eventfd.
fn wait_for(signal: &Eventfd) {
    let end = Instant::now() + PATIENCE;
    wait_ready(signal.as_fd(), Readiness::Readable, Some(end)).expect("polls");
}

/// Returns how many descriptors are in the epoll set of this process's peer monitor.
fn registrations() -> usize {
    use std::os::fd::AsRawFd;
    let monitor = per_process(PeerMonitor::new).expect("known");
    let fd = monitor.epoll.as_fd().as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("readable");
    info.lines().filter(|line| line.starts_with("tfd:")).count() - 1 // The monitor's own.
}

#[test]
fn the_decision_for_every_combination_of_facts() {
    let (died, closed) = (Some(PeerExit::Died), Some(PeerExit::Disconnected));
    for out_of_grace in [false, true] {
        for hung_up in [false, true] {
            let of = |exited, closed| peer_exit(exited, closed, hung_up, out_of_grace);
            assert_eq!((of(Some(true), false), of(Some(true), true)), (died, closed));
            let by_hang_up = if hung_up { closed } else { None };
            assert_eq!((of(None, false), of(None, true)), (by_hang_up, by_hang_up));
            let in_grace = if out_of_grace { by_hang_up } else { None };
            assert_eq!((of(Some(false), false), of(Some(false), true)), (in_grace, by_hang_up));
        }
    }
}

#[test]
fn a_hang_up_is_reported_once_and_junk_is_not() {
    in_child(|| {
        let (connection, theirs) = watched(Connection::default(), None);
        write(theirs.as_fd(), b"junk").expect("writes");
        thread::sleep(Duration::from_millis(30));
        assert_eq!(connection.reasons(), []);
        drop(theirs);
        assert_eq!(connection.reason(), PeerExit::Disconnected);
        thread::sleep(GRACE * 3);
        assert_eq!(connection.reasons(), [PeerExit::Disconnected]);
        assert_eq!(registrations(), 0);
    });
}

#[test]
fn a_killed_process_has_died_unless_it_set_its_closed_flags() {
    in_child(|| {
        for closed in [false, true] {
            let (ours, theirs) = pair().expect("pair");
            let child = fork(|| {
                thread::sleep(PATIENCE);
                0
            });
            drop(theirs);
            let connection = Arc::new(Connection::default());
            connection.closed.store(closed, Ordering::Release);
            connection.watch(ours, Some(pidfd(&child)));
            child.kill();
            let reason = if closed { PeerExit::Disconnected } else { PeerExit::Died };
            assert_eq!(connection.reason(), reason);
            assert_eq!(registrations(), 0);
        }
    });
}

#[test]
fn a_grandchild_that_keeps_the_socket_does_not_hide_a_death() {
    in_child(|| {
        let finish = Eventfd::new().expect("eventfd");
        let ready = Eventfd::new().expect("eventfd");
        let (ours, theirs) = pair().expect("pair");
        let child = fork(|| {
            let _grandchild = fork(|| {
                ready.signal();
                wait_for(&finish);
                0
            });
            wait_for(&finish);
            0
        });
        drop(theirs);
        let connection = Arc::new(Connection::default());
        connection.watch(ours, Some(pidfd(&child)));
        wait_for(&ready);
        child.kill();
        assert_eq!(connection.reason(), PeerExit::Died);
        let watch = connection.handle.lock().expect("unlocked").take().expect("watched");
        assert!(!is_readable(watch.as_fd()).expect("polls"), "the grandchild keeps it open");
        assert!(watch.peer().expect("known").exited());
        finish.signal();
    });
}

#[test]
fn a_process_that_lives_on_without_the_socket_has_disconnected() {
    in_child(|| {
        let finish = Eventfd::new().expect("eventfd");
        let (ours, theirs) = pair().expect("pair");
        let mut theirs = Some(theirs);
        let (go, gone) = (Eventfd::new().expect("eventfd"), Eventfd::new().expect("eventfd"));
        let child = fork(|| {
            wait_for(&go);
            drop(theirs.take());
            gone.signal();
            wait_for(&finish);
            0
        });
        drop(theirs);
        let connection = Arc::new(Connection::default());
        connection.watch(ours, Some(pidfd(&child)));
        go.signal();
        assert_eq!(connection.reason(), PeerExit::Disconnected);
        wait_for(&gone);
        assert_eq!(connection.reasons(), [PeerExit::Disconnected]);
        finish.signal();
        assert_eq!(child.wait(), 0);
        assert_eq!(connection.reasons(), [PeerExit::Disconnected]);
    });
}

#[test]
fn a_process_that_has_ended_already_has_died() {
    in_child(|| {
        let child = fork(|| 0);
        let dead = pidfd(&child);
        assert_eq!(child.wait(), 0);
        let (connection, _theirs) = watched(Connection::default(), Some(dead));
        assert_eq!(connection.reason(), PeerExit::Died);
    });
}

#[test]
fn all_connections_to_a_process_share_its_pidfd_and_report_its_death() {
    in_child(|| {
        let child = fork(|| {
            thread::sleep(PATIENCE);
            0
        });
        let peer = pidfd(&child);
        let all: Vec<_> = (0..200).map(|_| watched(Connection::default(), Some(peer.clone()))).collect();
        assert_eq!(registrations(), 201);
        all[0].0.unwatch();
        assert_eq!(registrations(), 200);
        child.kill();
        for (connection, _theirs) in &all[1..] {
            assert_eq!(connection.reason(), PeerExit::Died);
        }
        assert_eq!(all[0].0.reasons(), []);
        assert!(eventually(|| registrations() == 0));
    });
}

#[test]
fn watches_leave_no_descriptor_behind() {
    in_child(|| {
        let peer = || Some(Pidfd::open(std::process::id()).expect("opens").shared());
        drop(watched(Connection::default(), peer()));
        let before = open_descriptors();
        for round in 0..200 {
            let (connection, theirs) = watched(Connection::default(), peer());
            if round % 2 == 0 {
                drop(theirs);
            }
            connection.unwatch();
        }
        // The thread may be about to report the last one, and still have its descriptors.
        let back = || open_descriptors() <= before && registrations() == 0;
        assert!(eventually(back), "{} descriptors of {before}", open_descriptors());
    });
}

#[test]
fn a_connection_may_drop_its_handle_or_itself_when_its_end_is_reported() {
    in_child(|| {
        let connection = Connection { drop_handle_on_exit: true, ..Connection::default() };
        let (connection, theirs) = watched(connection, None);
        drop(theirs);
        assert_eq!(connection.reason(), PeerExit::Disconnected);
        assert!(eventually(|| connection.handle.lock().expect("unlocked").is_none()));
        let (connection, theirs) = watched(Connection::default(), None);
        let weak = Arc::downgrade(&connection);
        drop((connection, theirs));
        assert!(weak.upgrade().is_none() && registrations() == 0);
    });
}

#[test]
fn a_panic_in_one_connection_does_not_harm_another() {
    in_child(|| {
        let (_bad, their_bad) = watched(Connection { panics: true, ..Connection::default() }, None);
        let (good, their_good) = watched(Connection::default(), None);
        drop(their_bad);
        thread::sleep(Duration::from_millis(5));
        drop(their_good);
        assert_eq!(good.reason(), PeerExit::Disconnected);
    });
}

#[test]
fn what_does_not_exist_is_not_watched() {
    in_child(|| {
        let (ours, _theirs) = pair().expect("pair");
        let none = Weak::<Connection>::new() as Weak<dyn Watched>;
        assert_eq!(watch(ours, None, none).expect_err("refused").kind(), io::ErrorKind::InvalidInput);
    });
}

#[test]
fn a_fork_changes_nothing_for_its_parent_and_has_its_own_peer_monitor() {
    in_child(|| {
        let finish = Eventfd::new().expect("eventfd");
        let peer = Pidfd::open(std::process::id()).expect("opens").shared();
        let (connection, theirs) = watched(Connection::default(), Some(peer));
        let (kept, their_kept) = watched(Connection::default(), None);
        let held = per_process(PeerMonitor::new).expect("known").table();
        let child = fork(|| {
            // The copy of the parent's lock is never released here, and its thread does not exist.
            let before = open_descriptors();
            connection.unwatch();
            assert!(open_descriptors() < before);
            let (own, other) = watched(Connection::default(), None);
            drop(other);
            assert_eq!(own.reason(), PeerExit::Disconnected);
            wait_for(&finish);
            0
        });
        drop(held);
        assert_eq!(registrations(), 3);
        // The child holds a copy of the socket, so only an explicit deletion removes it from epoll.
        kept.unwatch();
        assert_eq!(registrations(), 2);
        drop(their_kept);
        finish.signal();
        assert_eq!(child.wait(), 0);
        assert_eq!(connection.reasons(), []);
        drop(theirs);
        assert_eq!(connection.reason(), PeerExit::Disconnected);
        assert_eq!(kept.reasons(), []);
    });
}

#[test]
fn ends_and_drops_at_once_from_many_threads() {
    const ROUNDS: usize = 300;
    in_child(|| {
        let reported = AtomicUsize::new(0);
        drop(watched(Connection::default(), None));
        let before = open_descriptors();
        thread::scope(|scope| {
            for thread in 0..4 {
                let reported = &reported;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let drop_handle_on_exit = round % 2 == 0;
                        let connection = Connection { drop_handle_on_exit, ..Connection::default() };
                        let (connection, theirs) = watched(connection, None);
                        drop(theirs);
                        if (round + thread) % 3 == 0 {
                            connection.reason();
                        }
                        connection.unwatch();
                        let reasons = connection.reasons();
                        assert!(reasons.len() <= 1, "{reasons:?}");
                        reported.fetch_add(reasons.len(), Ordering::Relaxed);
                    }
                });
            }
        });
        assert!(reported.load(Ordering::Relaxed) >= 4 * ROUNDS / 3);
        assert!(eventually(|| (open_descriptors(), registrations()) == (before, 0)));
    });
}

//! The connections of the peer monitor. All methods run under the monitor's lock.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::super::descriptor::FileId;
use super::super::epoll::{Epoll, EpollEvent, Interest};
use super::super::pidfd::Pidfd;
use super::super::syscall_error;

/// A connection, as the peer monitor sees it. Both methods run on the monitor's thread and delay all other connections
/// meanwhile, so they must not block.
pub(crate) trait Watched: Send + Sync {
    /// Returns whether the peer has set its closed flags.
    fn is_closed_by_peer(&self) -> bool;

    /// Handles the end of the peer. The monitor calls this at most once.
    fn on_peer_exit(&self, reason: PeerExit);
}

/// How a peer has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerExit {
    /// The peer closed its end, or its process is alive and has closed the socket.
    Disconnected,
    /// The peer's process ended without closing.
    Died,
}

/// How long the pidfd may take to report a death after the socket has hung up. A killed process with 20 000 open files
/// takes about 70 ms for that on an idle machine, and 300 to 800 ms with four busy loops on two CPUs; one with 10 000
/// open files takes 30 and 180 ms. A process that takes longer counts as disconnected. A process that closes its socket
/// and stays alive is reported this much later.
pub(super) const GRACE: Duration = Duration::from_millis(500);
/// The token of the descriptor by which the monitor recognizes its epoll set; connections count from 1.
pub(super) const OWN: u64 = 0;

/// All connections that are watched.
#[derive(Default)]
pub(super) struct WatchTable {
    /// The monitor's epoll set is not ours any more.
    lost: bool,
    last_id: u64,
    entries: HashMap<u64, WatchedSocket>,
    /// The connections to each process, by the number of its pidfd. The pidfd is in epoll once, for all of them.
    peers: HashMap<RawFd, BTreeSet<u64>>,
    /// Sockets that hung up while the process was alive, in the order of their deadlines.
    in_grace: VecDeque<(Instant, u64)>,
}

/// A connection that may have ended.
pub(super) struct Candidate {
    pub(super) id: u64,
    pub(super) watched: Weak<dyn Watched>,
    pub(super) peer: Option<Weak<Pidfd>>,
    pub(super) hung_up: bool,
    pub(super) out_of_grace: bool,
}

/// The entry of one connection.
pub(super) struct WatchedSocket {
    socket: RawFd,
    /// The file that the number named when the connection was added.
    file: Option<FileId>,
    peer: Option<(RawFd, Weak<Pidfd>)>,
    watched: Weak<dyn Watched>,
    /// When the grace period ends, once the socket has hung up.
    grace: Option<Instant>,
}

impl WatchedSocket {
    /// Returns whether the numbers still name the files of the connection: a program may have closed them.
    fn has_its_files(&self) -> bool {
        let has_peer =
            self.peer.as_ref().and_then(|(_, peer)| peer.upgrade()).is_none_or(|peer| peer.is_ours());
        self.has_its_socket() && has_peer
    }

    fn has_its_socket(&self) -> bool {
        self.file.is_none() || self.file == FileId::of(self.socket)
    }
}

impl WatchTable {
    /// Adds a connection, and returns its id, which is never used again.
    pub(super) fn add(
        &mut self,
        epoll: &Epoll,
        socket: BorrowedFd<'_>,
        peer: Option<&Arc<Pidfd>>,
        watched: Weak<dyn Watched>,
    ) -> io::Result<u64> {
        let id = self.last_id + 1;
        epoll.add(socket, id, Interest::HangUp)?;
        if let Some(peer) = peer {
            self.add_peer(epoll, peer.as_fd(), id).inspect_err(|_| {
                let _ = epoll.delete(socket);
            })?;
        }
        let peer = peer.map(|peer| (peer.as_fd().as_raw_fd(), Arc::downgrade(peer)));
        let socket = socket.as_raw_fd();
        self.last_id = id;
        self.entries
            .insert(id, WatchedSocket { socket, file: FileId::of(socket), peer, watched, grace: None });
        Ok(id)
    }

    /// Removes a connection from the table, and its descriptors from epoll.
    pub(super) fn remove(&mut self, epoll: &Epoll, id: u64) -> Option<WatchedSocket> {
        let entry = self.entries.remove(&id)?;
        if entry.has_its_socket() {
            delete(epoll, entry.socket);
        }
        if let Some((peer, _)) = &entry.peer {
            self.remove_peer(epoll, *peer, id);
        }
        Some(entry)
    }

    /// Returns when the next grace period ends.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.in_grace.front().map(|(end, _)| *end)
    }

    /// Returns whether there is no connection.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Removes this connection if the program has closed its descriptors, since no event would report the end of its
    /// peer.
    pub(super) fn remove_if_closed(&mut self, epoll: &Epoll, id: u64) -> Option<Weak<dyn Watched>> {
        let closed = self.entries.get(&id).is_some_and(|entry| !entry.has_its_files());
        closed.then(|| self.remove(epoll, id)).flatten().map(|entry| entry.watched)
    }

    /// Removes all connections whose descriptors the program has closed.
    pub(super) fn remove_closed(&mut self, epoll: &Epoll) -> Vec<Weak<dyn Watched>> {
        let closed: Vec<u64> =
            self.entries.iter().filter(|(_, entry)| !entry.has_its_files()).map(|(id, _)| *id).collect();
        closed.into_iter().filter_map(|id| self.remove(epoll, id)).map(|entry| entry.watched).collect()
    }

    /// Removes all connections.
    pub(super) fn remove_all(&mut self, epoll: &Epoll) -> Vec<Weak<dyn Watched>> {
        let all: Vec<u64> = self.entries.keys().copied().collect();
        all.into_iter().filter_map(|id| self.remove(epoll, id)).map(|entry| entry.watched).collect()
    }

    /// Prepares for a new thread: events that the killed thread had received and not handled are reported again.
    pub(super) fn begin_again(&mut self, epoll: &Epoll) {
        self.in_grace = self.entries.iter().filter_map(|(id, entry)| Some((entry.grace?, *id))).collect();
        self.in_grace.make_contiguous().sort_unstable();
        for (id, entry) in self.entries.iter().filter(|(_, entry)| entry.has_its_files()) {
            set(epoll, entry.socket, *id, Interest::HangUp);
            if let Some((peer, _)) = entry.peer {
                set(epoll, peer, token_of(peer), Interest::Exit);
            }
        }
    }

    /// Returns whether the monitor has lost its epoll set.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Removes all connections, and lets no more be added. Returns `None` if that was done before.
    pub(super) fn lose(&mut self) -> Option<Vec<Weak<dyn Watched>>> {
        if mem::replace(&mut self.lost, true) {
            return None;
        }
        self.peers.clear();
        self.in_grace.clear();
        Some(mem::take(&mut self.entries).into_values().map(|entry| entry.watched).collect())
    }

    /// Returns the connections that may have ended, by these events and by the time.
    pub(super) fn candidates(&mut self, events: &[EpollEvent], now: Instant) -> Vec<Candidate> {
        let mut ids = BTreeSet::new();
        for event in events {
            match peer_of(event.token) {
                None if event.token == OWN => {}
                Some(peer) => ids.extend(self.peers.get(&peer).into_iter().flatten()),
                None => {
                    self.hang_up(event.token, now);
                    ids.insert(event.token);
                }
            }
        }
        ids.extend(self.ended_graces(now));
        ids.into_iter().filter_map(|id| self.candidate(id, now)).collect()
    }

    fn candidate(&self, id: u64, now: Instant) -> Option<Candidate> {
        let entry = self.entries.get(&id)?;
        Some(Candidate {
            id,
            watched: entry.watched.clone(),
            peer: entry.peer.as_ref().map(|(_, peer)| peer.clone()),
            hung_up: entry.grace.is_some(),
            out_of_grace: entry.grace.is_some_and(|end| end <= now),
        })
    }

    /// Records that a socket has hung up. Epoll reports it once.
    fn hang_up(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if entry.grace.is_none() {
            let end = now + GRACE;
            entry.grace = Some(end);
            self.in_grace.push_back((end, id));
        }
    }

    fn ended_graces(&mut self, now: Instant) -> impl Iterator<Item = u64> {
        let ended = self.in_grace.iter().take_while(|(end, _)| *end <= now).count();
        self.in_grace.drain(..ended).map(|(_, id)| id)
    }

    fn add_peer(&mut self, epoll: &Epoll, peer: BorrowedFd<'_>, id: u64) -> io::Result<()> {
        let number = peer.as_raw_fd();
        match epoll.add(peer, token_of(number), Interest::Exit) {
            // The pidfd is in the set already, and its event may have been reported before.
            Err(error) if syscall_error::errno(&error) == Some(libc::EEXIST) => {
                epoll.modify(peer, token_of(number), Interest::Exit)?;
            }
            result => result?,
        }
        self.peers.entry(number).or_default().insert(id);
        Ok(())
    }

    fn remove_peer(&mut self, epoll: &Epoll, peer: RawFd, id: u64) {
        let Some(watchers) = self.peers.get_mut(&peer) else {
            return;
        };
        watchers.remove(&id);
        if watchers.is_empty() {
            self.peers.remove(&peer);
            delete(epoll, peer);
        }
    }
}

impl std::fmt::Debug for WatchTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (connections, peers) = (self.entries.len(), self.peers.len());
        f.debug_struct("WatchTable").field("connections", &connections).field("peers", &peers).finish()
    }
}

/// The bit that marks the token of a pidfd. Ids of connections never become so large.
const PEER: u64 = 1 << 63;

fn token_of(peer: RawFd) -> u64 {
    PEER | u64::from(peer.unsigned_abs())
}

fn peer_of(token: u64) -> Option<RawFd> {
    (token & PEER != 0).then(|| RawFd::try_from(token & !PEER).ok()).flatten()
}

/// Removes a descriptor from epoll. This fails only if the program has closed it, and then there is nothing to do.
fn delete(epoll: &Epoll, number: RawFd) {
    // SAFETY: the table holds the number, so its `MonitorHandle` has not closed it: the handle removes itself from the
    // table first, under the lock that this thread holds. If the program has closed it, epoll refuses it.
    let _ = epoll.delete(unsafe { BorrowedFd::borrow_raw(number) });
}

/// Changes the interest in a descriptor. This fails only if the program has closed it, which the next check of all
/// connections detects.
fn set(epoll: &Epoll, number: RawFd, token: u64, interest: Interest) {
    // SAFETY: as for `delete`.
    let _ = epoll.modify(unsafe { BorrowedFd::borrow_raw(number) }, token, interest);
}

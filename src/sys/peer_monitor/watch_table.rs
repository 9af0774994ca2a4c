//! What the lifeline knows of its connections; only ever touched under its lock.

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

/// A connection, as the lifeline sees it. Both methods run on the lifeline's thread and hold up
/// all other connections meanwhile, so they do not block.
pub(crate) trait Watched: Send + Sync {
    /// Whether the peer has marked its end as closed.
    fn is_closed_by_peer(&self) -> bool;

    /// The peer is gone; called at most once.
    fn on_peer_exit(&self, reason: PeerExit);
}

/// How a peer went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerExit {
    /// It closed its end, or its process lives on without it.
    Disconnected,
    /// Its process ended without closing.
    Died,
}

/// How long the pidfd may take to report a death after the socket has hung up. A killed process with 20 000 open files
/// needs about 70 ms in between on a quiet machine, and 300 to 800 ms beside four busy loops on two CPUs; one with 10 000, 30
/// and 180 ms. What takes longer counts as a hang-up. A process that lives on without its socket is reported this much later.
pub(super) const GRACE: Duration = Duration::from_millis(500);
/// The token of the descriptor by which the monitor recognizes its epoll set; connections count from 1.
pub(super) const OWN: u64 = 0;

/// All connections that are watched.
#[derive(Default)]
pub(super) struct WatchTable {
    /// Its epoll set is not ours any more.
    lost: bool,
    last_id: u64,
    lines: HashMap<u64, WatchedSocket>,
    /// The connections to each process, by the number of its pidfd: it is in epoll once, for all of them.
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

/// What is known of one connection.
pub(super) struct WatchedSocket {
    socket: RawFd,
    /// Which file the number named when the connection was added.
    file: Option<FileId>,
    peer: Option<(RawFd, Weak<Pidfd>)>,
    watched: Weak<dyn Watched>,
    /// When the grace ends, once the socket has hung up.
    grace: Option<Instant>,
}

impl WatchedSocket {
    /// Whether the numbers still name the files of the connection: a program may have closed them.
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
    /// Adds a connection; its number is never used again.
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
        self.lines.insert(id, WatchedSocket { socket, file: FileId::of(socket), peer, watched, grace: None });
        Ok(id)
    }

    /// Takes a connection out, and its descriptors out of epoll.
    pub(super) fn remove(&mut self, epoll: &Epoll, id: u64) -> Option<WatchedSocket> {
        let line = self.lines.remove(&id)?;
        if line.has_its_socket() {
            delete(epoll, line.socket);
        }
        if let Some((peer, _)) = &line.peer {
            self.remove_peer(epoll, *peer, id);
        }
        Some(line)
    }

    /// When the next grace ends.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.in_grace.front().map(|(end, _)| *end)
    }

    /// Whether there is no connection.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Takes out this connection if the program has closed its descriptors: nothing would report the end of its peer.
    pub(super) fn remove_if_closed(&mut self, epoll: &Epoll, id: u64) -> Option<Weak<dyn Watched>> {
        let closed = self.lines.get(&id).is_some_and(|line| !line.has_its_files());
        closed.then(|| self.remove(epoll, id)).flatten().map(|line| line.watched)
    }

    /// As [`remove_if_closed`](Self::remove_if_closed), for all.
    pub(super) fn remove_closed(&mut self, epoll: &Epoll) -> Vec<Weak<dyn Watched>> {
        let closed: Vec<u64> =
            self.lines.iter().filter(|(_, line)| !line.has_its_files()).map(|(id, _)| *id).collect();
        closed.into_iter().filter_map(|id| self.remove(epoll, id)).map(|line| line.watched).collect()
    }

    /// Takes all connections out.
    pub(super) fn remove_all(&mut self, epoll: &Epoll) -> Vec<Weak<dyn Watched>> {
        let all: Vec<u64> = self.lines.keys().copied().collect();
        all.into_iter().filter_map(|id| self.remove(epoll, id)).map(|line| line.watched).collect()
    }

    /// For a new thread: whatever its predecessor was killed over is reported again.
    pub(super) fn begin_again(&mut self, epoll: &Epoll) {
        self.in_grace = self.lines.iter().filter_map(|(id, line)| Some((line.grace?, *id))).collect();
        self.in_grace.make_contiguous().sort_unstable();
        for (id, line) in self.lines.iter().filter(|(_, line)| line.has_its_files()) {
            set(epoll, line.socket, *id, Interest::HangUp);
            if let Some((peer, _)) = line.peer {
                set(epoll, peer, token_of(peer), Interest::Exit);
            }
        }
    }

    /// Whether the monitor can notice nothing any more.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Takes all connections out, and no more in; `None` if that was done before.
    pub(super) fn lose(&mut self) -> Option<Vec<Weak<dyn Watched>>> {
        if mem::replace(&mut self.lost, true) {
            return None;
        }
        self.peers.clear();
        self.in_grace.clear();
        Some(mem::take(&mut self.lines).into_values().map(|line| line.watched).collect())
    }

    /// The connections that these events and the time put under suspicion.
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
        let line = self.lines.get(&id)?;
        Some(Candidate {
            id,
            watched: line.watched.clone(),
            peer: line.peer.as_ref().map(|(_, peer)| peer.clone()),
            hung_up: line.grace.is_some(),
            out_of_grace: line.grace.is_some_and(|end| end <= now),
        })
    }

    /// Notes that a socket has hung up. Epoll reports it once.
    fn hang_up(&mut self, id: u64, now: Instant) {
        let Some(line) = self.lines.get_mut(&id) else {
            return;
        };
        if line.grace.is_none() {
            let end = now + GRACE;
            line.grace = Some(end);
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
            // It may have been reported already.
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
        let (connections, peers) = (self.lines.len(), self.peers.len());
        f.debug_struct("Table").field("connections", &connections).field("peers", &peers).finish()
    }
}

/// Set in the token of a pidfd; numbers of connections never grow so large.
const PEER: u64 = 1 << 63;

fn token_of(peer: RawFd) -> u64 {
    PEER | u64::from(peer.unsigned_abs())
}

fn peer_of(token: u64) -> Option<RawFd> {
    (token & PEER != 0).then(|| RawFd::try_from(token & !PEER).ok()).flatten()
}

/// It fails only if the program has closed the number, and then there is nothing to do.
fn delete(epoll: &Epoll, number: RawFd) {
    // SAFETY: the table holds the number, so its `MonitorHandle` has not closed it: it removes itself from
    // the table first, under the lock that this thread holds. If the program has closed it, epoll refuses it.
    let _ = epoll.delete(unsafe { BorrowedFd::borrow_raw(number) });
}

/// It fails only if the program has closed the number, which the next look at all connections finds out.
fn set(epoll: &Epoll, number: RawFd, token: u64, interest: Interest) {
    // SAFETY: as for `delete`.
    let _ = epoll.modify(unsafe { BorrowedFd::borrow_raw(number) }, token, interest);
}

//! Clients in mid-handshake: up to 64 by default, one epoll, no thread.
//!
//! # Invariants
//!
//! 1. A guest leaves the epoll set before its socket is given away or closed: a forked child's copy
//!    of the descriptor would otherwise keep it ringing.
//! 2. While all places are taken the listening socket is not in the set, so nothing spins.
//! 3. At most one connection comes out per call, and what else was ready still is at the next: the
//!    set is level-triggered, and nothing ready is kept aside.
//! 4. No descriptor is waited for unless it is known to be the listener's, and never longer than some seconds at a stretch.
//! 5. The timer rings when the first guest's time is over, so the epoll descriptor alone tells a
//!    poll loop everything.
//!
//! # Proof
//!
//! `tests/listener/accept.rs`: silent clients, a full house, a flood of failures without a leak.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::connect::{AcceptFailure, Acceptor, Established, Step, deadline, refuse_unwatched};
use crate::handshake::HandshakeLimits;
use crate::options::Options;
use crate::sys::epoll::{Epoll, EpollEvents, Eventfd, Interest};
use crate::sys::foreign::Listening;
use crate::sys::peer_monitor;
use crate::sys::socket;
use crate::sys::timer::Timer;
use crate::sys::wait::Readiness;

/// What one round came to.
#[derive(Debug)]
pub(super) enum AcceptOutcome {
    /// A client whose handshake is complete.
    Came(Established),
    /// The program has closed the descriptors, and no client can come any more.
    DescriptorsClosed,
    /// Nothing yet: call again, unless the deadline has passed.
    Nothing,
}

/// The listening socket and the clients that are not through yet.
pub(super) struct PendingHandshakes {
    socket: Arc<Listening>,
    listening: bool,
    acceptors: Vec<Option<PendingHandshake>>,
    epoll: Arc<Epoll>,
    events: EpollEvents,
    timer: Timer,
    timeout: Duration,
    limits: HandshakeLimits,
    options: Options,
}

struct PendingHandshake {
    acceptor: Acceptor,
    readiness: Readiness,
    since: Instant,
    deadline: Option<Instant>,
}

impl PendingHandshakes {
    /// Begins to listen for clients, and for the bell.
    pub(super) fn open(
        socket: Arc<Listening>,
        doorbell: &Eventfd,
        limits: HandshakeLimits,
        options: Options,
    ) -> io::Result<Self> {
        peer_monitor::start()?;
        let (epoll, timer) = (Arc::new(Epoll::new()?), Timer::new()?);
        epoll.add(doorbell.as_fd(), CLOSED_TOKEN, Interest::Readable)?;
        epoll.add(timer.as_fd(), TIMER_TOKEN, Interest::Readable)?;
        epoll.add(socket.as_fd(), LISTENER_TOKEN, Interest::Readable)?;
        let timeout = options.accept_timeout_or_default();
        let places = options.max_handshakes_or_default();
        let acceptors = (0..places).map(|_| None).collect();
        let events = EpollEvents::with_room(places + 3);
        Ok(Self { socket, listening: true, acceptors, epoll, events, timer, timeout, limits, options })
    }

    /// Takes other options for the clients that come from now on.
    pub(super) fn amend(&mut self, limits: HandshakeLimits, options: &Options) {
        (self.limits, self.options) = (limits, options.clone());
        self.timeout = options.accept_timeout_or_default();
    }

    /// The descriptor that tells when there is work.
    pub(super) fn epoll(&self) -> Arc<Epoll> {
        Arc::clone(&self.epoll)
    }

    /// Waits until something happens, at most until the deadline, and moves on what can move.
    ///
    /// Guests go before the door: an error there, such as too many open files, must not keep them
    /// from getting through.
    pub(super) fn serve(
        &mut self,
        deadline: Option<Instant>,
        failed: &AtomicU64,
    ) -> io::Result<AcceptOutcome> {
        // Their numbers may name the program's own files by now, which must not be waited for.
        if !(self.epoll.is_ours() && self.socket.is_ours()) {
            return Ok(AcceptOutcome::DescriptorsClosed);
        }
        // A thread that waits is not told when another one closes what it waits for.
        let slice = Instant::now() + LOOK;
        let slice = deadline.map_or(slice, |deadline| deadline.min(slice));
        let mut tokens: Vec<u64> =
            self.epoll.wait(&mut self.events, Some(slice))?.map(|event| event.token).collect();
        tokens.sort_unstable();
        let mut outcome = Ok(AcceptOutcome::Nothing);
        for token in tokens {
            outcome = self.handle_event(token, failed);
            if !matches!(outcome, Ok(AcceptOutcome::Nothing)) {
                break;
            }
        }
        self.expire(failed);
        let state = self.update_interest();
        match outcome {
            Ok(AcceptOutcome::Nothing) => state.map(|()| AcceptOutcome::Nothing),
            other => other, // A connection must not be lost; the door is tried again next time.
        }
    }

    fn handle_event(&mut self, token: u64, failed: &AtomicU64) -> io::Result<AcceptOutcome> {
        match token {
            CLOSED_TOKEN | TIMER_TOKEN => Ok(AcceptOutcome::Nothing), // The caller looks at the bell, expire at the timer.
            LISTENER_TOKEN => self.admit(failed),
            slot => Ok(self.advance(usize::try_from(slot).unwrap_or(usize::MAX), failed)),
        }
    }

    /// Lets one client in. Most have said Hello by now, and are through at once.
    fn admit(&mut self, failed: &AtomicU64) -> io::Result<AcceptOutcome> {
        let free = self.acceptors.iter().position(Option::is_none);
        let Some(free) = free.or_else(|| self.evict(failed)) else {
            return Ok(AcceptOutcome::Nothing);
        };
        let Some(socket) = socket::accept(self.socket.as_fd())? else {
            return Ok(AcceptOutcome::Nothing);
        };
        // Started with the listener, but the thread may have been killed since, and there may be no other.
        if let Err(error) = peer_monitor::start() {
            refuse_unwatched(socket.as_fd(), &error);
            failed.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
        let admitted = Acceptor::admit(socket, &self.options).and_then(|mut acceptor| {
            let step = acceptor.advance(&self.limits, self.options.is_prefault())?;
            Ok((acceptor, step))
        });
        let came = admitted.and_then(|(acceptor, step)| match step {
            Step::Ready => acceptor.finish().map(Some),
            Step::Wants(readiness) => self.insert(free, acceptor, readiness).map(|()| None),
        });
        Ok(count(came, failed))
    }

    fn insert(&mut self, at: usize, acceptor: Acceptor, readiness: Readiness) -> Result<(), AcceptFailure> {
        self.epoll.add(acceptor.as_fd(), at as u64, interest(readiness))?;
        if let Some(slot) = self.acceptors.get_mut(at) {
            *slot = Some(PendingHandshake {
                acceptor,
                readiness,
                since: Instant::now(),
                deadline: deadline(self.timeout),
            });
        }
        Ok(())
    }

    fn advance(&mut self, at: usize, failed: &AtomicU64) -> AcceptOutcome {
        let (prefault, limits) = (self.options.is_prefault(), self.limits);
        let Some(Some(slot)) = self.acceptors.get_mut(at) else {
            return AcceptOutcome::Nothing; // It left in this very round.
        };
        let step = slot.acceptor.advance(&limits, prefault);
        if let Ok(Step::Wants(readiness)) = step {
            let changed = mem::replace(&mut slot.readiness, readiness) != readiness;
            if !changed || self.epoll.modify(slot.acceptor.as_fd(), at as u64, interest(readiness)).is_ok() {
                return AcceptOutcome::Nothing;
            }
        }
        let Some(acceptor) = self.remove(at) else {
            return AcceptOutcome::Nothing;
        };
        let came = match step {
            Ok(Step::Ready) => acceptor.finish().map(Some),
            Ok(Step::Wants(_)) => Err(AcceptFailure::Closed),
            Err(failure) => Err(failure),
        };
        count(came, failed)
    }

    /// Frees the place of the client that has been silent longest of the process that holds the most, if that is long enough.
    fn evict(&mut self, failed: &AtomicU64) -> Option<usize> {
        let mut held: HashMap<u32, usize> = HashMap::new();
        self.acceptors
            .iter()
            .flatten()
            .for_each(|slot| *held.entry(slot.acceptor.process()).or_default() += 1);
        let silent = |slot: &&(usize, &PendingHandshake)| slot.1.since.elapsed() >= EVICT_AFTER;
        let slots = self.acceptors.iter().enumerate().filter_map(|(at, slot)| Some((at, slot.as_ref()?)));
        let all: Vec<_> = slots.collect();
        let chosen = all.iter().filter(silent).max_by_key(|(_, slot)| {
            (held.get(&slot.acceptor.process()).copied().unwrap_or(0), Reverse(slot.since))
        });
        let at = chosen.map(|(at, _)| *at)?;
        self.remove(at)?.give_up();
        failed.fetch_add(1, Ordering::Relaxed);
        Some(at)
    }

    /// Takes a guest out of its place and out of the epoll set.
    fn remove(&mut self, at: usize) -> Option<Acceptor> {
        let PendingHandshake { acceptor, .. } = self.acceptors.get_mut(at)?.take()?;
        let _ = self.epoll.delete(acceptor.as_fd()); // It can only fail if it is not in the set.
        Some(acceptor)
    }

    /// Sends away all whose time is over, and sets the timer for the next.
    fn expire(&mut self, failed: &AtomicU64) {
        let now = Instant::now();
        for at in 0..self.acceptors.len() {
            let deadline = self.acceptors.get(at).and_then(Option::as_ref).and_then(|slot| slot.deadline);
            if deadline.is_some_and(|deadline| deadline <= now) {
                if let Some(acceptor) = self.remove(at) {
                    acceptor.give_up();
                }
                failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        let over = self.acceptors.iter().flatten().filter_map(|slot| slot.deadline).min();
        // Without a free place the next client has to wait until another one may be sent away for it.
        let silent = self
            .acceptors
            .iter()
            .flatten()
            .map(|slot| slot.since + EVICT_AFTER)
            .filter(|end| *end > now)
            .min();
        let full = self.acceptors.iter().all(Option::is_some);
        let next = [over, silent.filter(|_| full)].into_iter().flatten().min();
        let _ = self.timer.arm_at(next); // It can only fail on a descriptor that is no timer.
    }

    /// The listening socket is in the set exactly while a place is free, or can be freed.
    fn update_interest(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let open = |slot: &Option<PendingHandshake>| {
            slot.as_ref().is_none_or(|slot| now - slot.since >= EVICT_AFTER)
        };
        let free = self.acceptors.iter().any(open);
        if free != self.listening {
            if free {
                self.epoll.add(self.socket.as_fd(), LISTENER_TOKEN, Interest::Readable)?;
            } else {
                self.epoll.delete(self.socket.as_fd())?;
            }
            self.listening = free;
        }
        Ok(())
    }
}

impl fmt::Debug for PendingHandshakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let acceptors = self.acceptors.iter().flatten().count();
        f.debug_struct("Reception").field("guests", &acceptors).finish_non_exhaustive()
    }
}

/// How often a thread that waits looks whether the descriptors are still those of the listener.
const LOOK: Duration = Duration::from_secs(3);
/// How long a client keeps its place for sure while others wait for one.
const EVICT_AFTER: Duration = Duration::from_millis(100);
/// Tokens of the epoll set: a guest's is the number of its seat, and these are greater.
const CLOSED_TOKEN: u64 = 1 << 32;
const TIMER_TOKEN: u64 = CLOSED_TOKEN + 1;
/// The greatest, so that the door comes last.
const LISTENER_TOKEN: u64 = TIMER_TOKEN + 1;

fn interest(readiness: Readiness) -> Interest {
    match readiness {
        Readiness::Readable => Interest::Readable,
        Readiness::Writable => Interest::Writable,
    }
}

fn count(came: Result<Option<Established>, AcceptFailure>, failed: &AtomicU64) -> AcceptOutcome {
    match came {
        Ok(Some(established)) => return AcceptOutcome::Came(established),
        Ok(None) => (),
        Err(_) => {
            failed.fetch_add(1, Ordering::Relaxed);
        }
    }
    AcceptOutcome::Nothing
}

//! The clients in mid-handshake: up to 64 by default, one epoll set, no thread.
//!
//! # Invariants
//!
//! 1. An acceptor's socket leaves the epoll set before the socket is handed on or closed. Otherwise a forked child's
//!    copy of the descriptor would keep the entry in the set, and it would report events without end.
//! 2. While all slots are taken the listening socket is not in the set, so a waiting thread does not spin on it.
//! 3. Each call returns at most one connection. Other descriptors that were ready are reported again by the next call:
//!    the set is level-triggered, and no ready event is stored.
//! 4. A thread waits only for descriptors that are known to be the listener's, and for a few seconds at most before it
//!    checks again.
//! 5. The timer fires at the first deadline of an acceptor, so a poll loop needs the epoll descriptor only.
//!
//! # Proof
//!
//! `tests/listener/accept.rs`: silent clients, all slots taken, a flood of failures without a leak.

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

/// The result of one call of [`PendingHandshakes::serve`].
#[derive(Debug)]
pub(super) enum AcceptOutcome {
    /// A client whose handshake is complete.
    Came(Established),
    /// The program has closed the listener's descriptors, so no client can be accepted any more.
    DescriptorsClosed,
    /// No handshake is complete yet: call again, unless the deadline has passed.
    Nothing,
}

/// The listening socket, and the clients whose handshake is not complete.
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
    /// Makes the epoll set, with the listening socket, the timer and the listener's doorbell in it.
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
        let slots = options.max_handshakes_or_default();
        let acceptors = (0..slots).map(|_| None).collect();
        let events = EpollEvents::with_room(slots + 3);
        Ok(Self { socket, listening: true, acceptors, epoll, events, timer, timeout, limits, options })
    }

    /// Sets the options for clients that connect from now on.
    pub(super) fn amend(&mut self, limits: HandshakeLimits, options: &Options) {
        (self.limits, self.options) = (limits, options.clone());
        self.timeout = options.accept_timeout_or_default();
    }

    /// Returns the epoll descriptor, which is readable while there is work.
    pub(super) fn epoll(&self) -> Arc<Epoll> {
        Arc::clone(&self.epoll)
    }

    /// Waits for events, at most until the deadline, and advances the handshakes that have one.
    ///
    /// Acceptors come before the listening socket: an error of `accept`, such as too many open files, must not keep
    /// their handshakes from being completed.
    pub(super) fn serve(
        &mut self,
        deadline: Option<Instant>,
        failed: &AtomicU64,
    ) -> io::Result<AcceptOutcome> {
        // If the program has closed the descriptors, their numbers may name its own files by now. The library must not
        // wait for those.
        if !(self.epoll.is_ours() && self.socket.is_ours()) {
            return Ok(AcceptOutcome::DescriptorsClosed);
        }
        // The kernel does not wake a thread that waits for a descriptor when another thread closes the descriptor.
        let slice = Instant::now() + RECHECK_INTERVAL;
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
            other => other, // A connection must not be lost. The next call updates the interest again.
        }
    }

    fn handle_event(&mut self, token: u64, failed: &AtomicU64) -> io::Result<AcceptOutcome> {
        match token {
            // The caller checks whether the listener was closed, and `expire` checks the deadlines.
            CLOSED_TOKEN | TIMER_TOKEN => Ok(AcceptOutcome::Nothing),
            LISTENER_TOKEN => self.admit(failed),
            slot => Ok(self.advance(usize::try_from(slot).unwrap_or(usize::MAX), failed)),
        }
    }

    /// Accepts one client. Most clients have sent their Hello by now, so one step completes their handshake.
    fn admit(&mut self, failed: &AtomicU64) -> io::Result<AcceptOutcome> {
        let free = self.acceptors.iter().position(Option::is_none);
        let Some(free) = free.or_else(|| self.evict(failed)) else {
            return Ok(AcceptOutcome::Nothing);
        };
        let Some(socket) = socket::accept(self.socket.as_fd())? else {
            return Ok(AcceptOutcome::Nothing);
        };
        // The monitor was started with the listener, but its thread may have been killed since, and starting another
        // may fail.
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
            return AcceptOutcome::Nothing; // An earlier event of this call removed it.
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

    /// Frees a slot: that of the oldest client of the process that holds the most slots. Clients younger than
    /// [`EVICT_AFTER`] keep theirs.
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

    /// Takes an acceptor out of its slot and out of the epoll set.
    fn remove(&mut self, at: usize) -> Option<Acceptor> {
        let PendingHandshake { acceptor, .. } = self.acceptors.get_mut(at)?.take()?;
        let _ = self.epoll.delete(acceptor.as_fd()); // It can only fail if it is not in the set.
        Some(acceptor)
    }

    /// Gives up all handshakes whose deadline has passed, and arms the timer for the next deadline.
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
        // Without a free slot the next client has to wait until another one may be evicted for it.
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

    /// Keeps the listening socket in the set exactly while a slot is free, or can be freed.
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
        f.debug_struct("PendingHandshakes").field("acceptors", &acceptors).finish_non_exhaustive()
    }
}

/// How often a waiting thread checks whether the descriptors are still those of the listener.
const RECHECK_INTERVAL: Duration = Duration::from_secs(3);
/// How long a client keeps its slot for certain while other clients wait for one.
const EVICT_AFTER: Duration = Duration::from_millis(100);
/// Tokens of the epoll set. An acceptor's token is the number of its slot, and these are greater.
const CLOSED_TOKEN: u64 = 1 << 32;
const TIMER_TOKEN: u64 = CLOSED_TOKEN + 1;
/// The greatest token, so that `serve` handles the listening socket last.
const LISTENER_TOKEN: u64 = TIMER_TOKEN + 1;

fn interest(readiness: Readiness) -> Interest {
    match readiness {
        Readiness::Readable => Interest::Readable,
        Readiness::Writable => Interest::Writable,
    }
}

/// Converts the result of a handshake step, and counts failures.
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

//! A tiny ring, a queue with the messages that should be in it, and the invariants of both.
//!
//! Each step is applied to both, and then `check` runs. `key` is everything that decides what the ring does next: what it prints
//! of itself, relative to its head and its arena offset, and the content of the slots.

use std::collections::{HashSet, VecDeque};
use std::fmt::{Debug, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use narrows::internal::layout::{Control, LAST_TICKET, SlotKind};
use narrows::internal::memory::{
    ARENA_ALIGN, Field, Flag, Heap, INLINE_CAPACITY, Load, Memory, Padding, Span,
};
use narrows::internal::{IncomingMessage, RecvCoreError, SendCoreError, Wait};

use super::quiet::Quiet;
use crate::support::bytes;
use crate::support::rings::{In, Out, at_once, head, over, send, try_take};

/// A step of a program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    /// Sends a message of this kind of length without waiting.
    Send(usize),
    /// Sends the longest kind with a deadline that has passed: it is abandoned in the middle if there is no room.
    SendExpired,
    Receive,
    /// Receives into a buffer that is one byte too small.
    ReceiveShort,
    Borrow,
    Release,
    /// Reserves room for this kind of length, writes there, and drops the reservation.
    Abandon(usize),
    /// Reserves room for half the arena, and commits this number of bytes.
    CommitPart(usize),
    /// Stages two messages, and publishes them or not.
    Batch(bool),
}

pub(super) const STEPS: [Step; 16] = [
    Step::Send(0),
    Step::Send(1),
    Step::Send(2),
    Step::Send(3),
    Step::Send(4),
    Step::SendExpired,
    Step::Receive,
    Step::ReceiveShort,
    Step::Borrow,
    Step::Release,
    Step::Abandon(1),
    Step::Abandon(3),
    Step::CommitPart(0),
    Step::CommitPart(1),
    Step::Batch(true),
    Step::Batch(false),
];

/// A ring, and the messages that should be in it.
pub(super) struct World {
    out: Out<Quiet>,
    inb: In<Quiet>,
    heap: Arc<Heap>,
    slots: u64,
    arena: usize,
    first: u64,
    queue: VecDeque<Vec<u8>>,
    /// The first message, while it is borrowed.
    borrowed: Option<IncomingMessage>,
    number: u64,
}

impl World {
    pub(super) fn new(slots: usize, arena: usize, first: u64) -> Self {
        let heap = Arc::new(Heap::new(slots, arena, 1));
        let (out, inb) = over(&Quiet(heap.clone()), first);
        let (slots, queue) = (slots as u64, VecDeque::new());
        Self { out, inb, heap, slots, arena, first, queue, borrowed: None, number: 0 }
    }

    /// Returns a message of a kind of length: empty, short, too long for a slot, half the arena, or fragmented.
    fn message(&mut self, kind: usize) -> Vec<u8> {
        self.number += 1;
        let lens = [0, 26, INLINE_CAPACITY + 1, self.arena / 2 + 1, self.arena.max(INLINE_CAPACITY) + 1];
        bytes(self.number, lens[kind])
    }

    fn tail(&self) -> u64 {
        numbers(&self.out.ring().next())[0]
    }

    pub(super) fn step(&mut self, step: Step) {
        match step {
            Step::Send(kind) => self.send(kind, Wait::Never),
            Step::SendExpired => self.send(4, at_once()),
            Step::Receive => self.receive(),
            Step::ReceiveShort => self.receive_short(),
            Step::Borrow => self.borrow(),
            Step::Release => self.release(),
            Step::Abandon(kind) => self.abandon(kind),
            Step::CommitPart(len) => self.commit_part(len),
            Step::Batch(publish) => self.batch(publish),
        }
        self.check();
    }

    fn send(&mut self, kind: usize, wait: Wait) {
        let (message, tail) = (self.message(kind), self.tail());
        let (len, whole) = (message.len(), self.arena.max(INLINE_CAPACITY));
        let fragment = if self.slots < 4 { self.arena } else { (self.arena / 4).max(ARENA_ALIGN) };
        let fragments = if len > whole { len.div_ceil(fragment) as u64 } else { 1 };
        let enough = LAST_TICKET + 1 - tail >= fragments;
        let (full, idle) = (tail - head(&*self.heap) == self.slots, self.inb.ring().ticket() == tail);
        match send(&mut self.out, &message, kind as u64, wait) {
            Ok(sent) => {
                assert!(sent == len && enough);
                assert!(!full, "a ticket more than there are slots");
                self.queue.push_back(message);
            }
            Err(SendCoreError::Full) => {
                assert!(enough);
                assert!(len > INLINE_CAPACITY || full, "a slot is free");
                assert!(len > whole || !idle, "an empty ring has room for {len} bytes");
            }
            Err(SendCoreError::TooLargeToTry) => assert!(enough && wait == Wait::Never && len > whole),
            Err(SendCoreError::Exhausted) => assert!(!enough),
            Err(fault) => panic!("{fault:?}"),
        }
    }

    fn abandon(&mut self, kind: usize) {
        let message = self.message(kind);
        if let Ok(claim) = self.out.reserve(message.len(), Wait::Never) {
            self.out.ring().write(&claim, 0, &message, Padding::Keep).expect("fits");
        }
    }

    fn commit_part(&mut self, len: usize) {
        let mut message = self.message(3);
        if let Ok(claim) = self.out.reserve(message.len(), Wait::Never) {
            message.truncate(len);
            self.out.ring().write(&claim, 0, &message, Padding::Zero).expect("fits");
            self.out.ring().mark_writing(&claim);
            self.out.commit(&claim, len, 3);
            self.queue.push_back(message);
        }
    }

    fn batch(&mut self, publish: bool) {
        let (mut to, mut staged) = (self.out.ring().next(), Vec::new());
        for kind in [1, 2] {
            let message = self.message(kind);
            if message.len() > self.out.in_place() {
                continue;
            }
            let Ok(claim) = self.out.stage(to, message.len()) else { break };
            self.out.ring().mark_writing(&claim);
            self.out.ring().write(&claim, 0, &message, Padding::Zero).expect("fits");
            self.out.describe_whole(&claim, message.len(), kind as u64);
            to = claim.after();
            staged.push(message);
        }
        if publish {
            self.out.publish(to, false);
            self.queue.extend(staged);
        }
    }

    /// Removes a borrowed message from the queue: the next call releases it.
    fn end_borrow(&mut self) {
        if self.borrowed.take().is_some() {
            self.queue.pop_front();
        }
    }

    fn receive(&mut self) {
        self.end_borrow();
        match try_take(&mut self.inb) {
            Ok((message, _tag)) => assert_eq!(Some(message), self.queue.pop_front()),
            Err(fault) => self.check_empty(fault),
        }
    }

    /// Checks that nothing was left to receive.
    fn check_empty(&self, fault: RecvCoreError) {
        assert_eq!(fault, RecvCoreError::Empty);
        assert!(self.queue.is_empty(), "{} messages are there", self.queue.len());
        assert_eq!(self.inb.ring().ticket(), self.tail(), "all fragments are taken");
    }

    fn receive_short(&mut self) {
        self.end_borrow();
        let Some(front) = self.queue.front().filter(|front| !front.is_empty()) else { return };
        let fault = self.inb.recv(&mut vec![0; front.len() - 1], Wait::Never).map(|_| ());
        assert_eq!(fault, Err(RecvCoreError::BufferTooSmall(front.len())));
    }

    fn borrow(&mut self) {
        self.end_borrow();
        match self.inb.borrow_next(Wait::Never) {
            Ok(message) => {
                let mut buffer = vec![0; message.len()];
                self.inb.read_at(&message, 0, &mut buffer).expect("inside");
                assert_eq!(Some(&buffer), self.queue.front());
                self.borrowed = Some(message);
            }
            Err(fault) => self.check_empty(fault),
        }
    }

    fn release(&mut self) {
        if let Some(message) = self.borrowed {
            self.inb.release(&message).expect("well-formed");
            self.end_borrow();
        }
    }

    /// Checks that every state can be left: all messages are received, and then there is room for every message that fits.
    pub(super) fn drain(&mut self) {
        self.check_waiting_sender_is_woken();
        for _ in 0..=self.slots {
            self.receive();
        }
        assert!(self.queue.is_empty());
        self.step(Step::Send(3));
        self.step(Step::Receive);
    }

    /// Checks that a sender that waits for space is woken even if the receiver does not look again after the last message.
    fn check_waiting_sender_is_woken(&mut self) {
        let longest = self.out.in_place();
        let Ok(Some(needs)) = self.out.ticket_to_await(longest) else { return };
        self.end_borrow();
        self.out.ring().announce_wait(needs);
        self.heap.store_flag(Flag::Producer, 1);
        for _ in 0..self.queue.len() {
            self.receive();
        }
        let is_empty = self.inb.ring().ticket() == self.tail();
        assert!(
            !is_empty || self.heap.load_flag(Flag::Producer) == 0,
            "a sender that waits for {needs} is not woken"
        );
        self.heap.store_flag(Flag::Producer, 0);
    }

    /// Checks what holds in every state.
    fn check(&self) {
        let (published, ticket, tail) = (head(&*self.heap), self.inb.ring().ticket(), self.tail());
        assert!(published <= ticket && ticket <= tail && tail - published <= self.slots);
        assert!(ticket - published <= self.slots / 4, "{} releases are unpublished", ticket - published);
        assert!(ticket < tail || published == ticket, "all releases are published when the ring is empty");
        let mut taken = HashSet::new();
        for ticket in published..tail {
            for unit in self.units(ticket) {
                assert!(unit < self.arena / ARENA_ALIGN && taken.insert(unit), "ticket {ticket} overlaps");
            }
        }
    }

    /// Returns the units of the arena that a ticket in flight occupies.
    fn units(&self, ticket: u64) -> std::ops::Range<usize> {
        let word = self.heap.load_slot(ticket, Field::Control, Load::Relaxed);
        let control = Control::decode(word, self.arena as u64).expect("well-formed");
        let (start, len) = (control.unit as usize, control.len as usize);
        if control.kind == SlotKind::Inline { 0..0 } else { start..start + len.div_ceil(ARENA_ALIGN) }
    }

    /// Returns the tickets in flight, the units in flight, and the unit of the next payload.
    pub(super) fn cursors(&self) -> (u64, usize, u64) {
        let (tail, offset) = (self.tail(), numbers(&self.out.ring().next())[1]);
        let in_flight = self.inb.ring().ticket()..tail;
        let fill = in_flight.clone().map(|ticket| self.units(ticket).len()).sum();
        (in_flight.end - in_flight.start, fill, offset % self.arena as u64 / ARENA_ALIGN as u64)
    }

    /// Returns a hash of everything that decides what the ring does next, relative to its cursors.
    pub(super) fn key(&self) -> u64 {
        let mut key = DefaultHasher::new();
        let (ring, producer) = (numbers(self.inb.ring()), numbers(self.out.ring()));
        let (
            [ticket, publish_by, unpublished],
            [tail, offset, known, _limit, _size, freed, looked, reach, ends @ ..],
        ) = (&ring[..], &producer[..])
        else {
            panic!("the ring prints other fields: {ring:?} {producer:?}")
        };
        (ticket % self.slots, publish_by - ticket, unpublished, tail - ticket, tail - known).hash(&mut key);
        (tail - self.first).min(self.slots).hash(&mut key);
        (offset % self.arena as u64, offset - freed, offset.wrapping_sub(*looked), reach).hash(&mut key);
        let slot = |ticket: u64| usize::try_from(ticket % self.slots).expect("few");
        (*known..*tail).for_each(|ticket| (offset.wrapping_sub(ends[slot(ticket)])).hash(&mut key));
        for ticket in *ticket..*tail {
            let mut total = [0; 8];
            self.heap.copy_out(Span::Slot(ticket), 0, &mut total).expect("a slot");
            let control = self.heap.load_slot(ticket, Field::Control, Load::Relaxed);
            let first = control & 31 == 3;
            (control, first.then_some(total)).hash(&mut key);
        }
        let stamp = self.heap.load_slot(*tail, Field::Stamp, Load::Relaxed);
        (stamp == tail.wrapping_mul(2).wrapping_add(1)).hash(&mut key);
        self.other_state().hash(&mut key);
        key.finish()
    }

    /// Returns the state beside the cursors: the fragments so far, whether a message is borrowed, whether one is unfinished.
    fn other_state(&self) -> (String, bool, bool) {
        let print = format!("{:?}", self.inb);
        let (_, partial) = print.split_once("buffer: [").expect("the fragments so far");
        let (_, partial) = partial.split_once(']').expect("a list");
        let (partial, _) = partial.split_once("}, state:").expect("the state of the receiver");
        let unfinished = format!("{:?}", self.out.ring()).contains("unfinished: true");
        (partial.into(), self.borrowed.is_some(), unfinished)
    }
}

/// Returns the numbers that a value prints of itself.
fn numbers(of: &impl Debug) -> Vec<u64> {
    let mut print = String::with_capacity(256);
    write!(print, "{of:?}").expect("prints");
    let digits = print.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    digits.map(|part| part.parse().expect("a number")).collect()
}

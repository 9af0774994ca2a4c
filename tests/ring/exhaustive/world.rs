//! A tiny ring with a queue beside it that says what should be in it, and all that must hold.
//!
//! Each step is done to both, and `check` follows it. `key` is all that decides what the ring does
//! next: what it prints of itself, relative to its head and its place, and what stands in the slots.

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

/// What a program is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    /// Sends this kind of length without waiting.
    Send(usize),
    /// Sends it and gives up in the middle if there is no room.
    Cut,
    Receive,
    /// Receives into a buffer that is one byte too small.
    ReceiveShort,
    Lend,
    GiveBack,
    /// Claims room for this kind of length, writes there, and forgets it.
    Abandon(usize),
    /// Claims room for half the arena, and commits so many bytes of it.
    Less(usize),
    /// Stages two messages at once, and publishes them or not.
    Batch(bool),
}

pub(super) const STEPS: [Step; 16] = [
    Step::Send(0),
    Step::Send(1),
    Step::Send(2),
    Step::Send(3),
    Step::Send(4),
    Step::Cut,
    Step::Receive,
    Step::ReceiveShort,
    Step::Lend,
    Step::GiveBack,
    Step::Abandon(1),
    Step::Abandon(3),
    Step::Less(0),
    Step::Less(1),
    Step::Batch(true),
    Step::Batch(false),
];

/// A ring, and what should be in it.
pub(super) struct World {
    out: Out<Quiet>,
    inb: In<Quiet>,
    heap: Arc<Heap>,
    slots: u64,
    arena: usize,
    first: u64,
    queue: VecDeque<Vec<u8>>,
    /// The front message was lent and not given back.
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

    /// One of a kind of length: nothing, something, too long for a slot, half the arena, to be cut.
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
            Step::Cut => self.send(4, at_once()),
            Step::Receive => self.receive(),
            Step::ReceiveShort => self.receive_short(),
            Step::Lend => self.lend(),
            Step::GiveBack => self.give_back(),
            Step::Abandon(kind) => self.abandon(kind),
            Step::Less(len) => self.less(len),
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

    fn less(&mut self, len: usize) {
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

    /// The next call gives back what was lent.
    fn lent_is_over(&mut self) {
        if self.borrowed.take().is_some() {
            self.queue.pop_front();
        }
    }

    fn receive(&mut self) {
        self.lent_is_over();
        match try_take(&mut self.inb) {
            Ok((message, _tag)) => assert_eq!(Some(message), self.queue.pop_front()),
            Err(fault) => self.nothing(fault),
        }
    }

    fn nothing(&self, fault: RecvCoreError) {
        assert_eq!(fault, RecvCoreError::Empty);
        assert!(self.queue.is_empty(), "{} messages are there", self.queue.len());
        assert_eq!(self.inb.ring().ticket(), self.tail(), "all pieces are taken");
    }

    fn receive_short(&mut self) {
        self.lent_is_over();
        let Some(front) = self.queue.front().filter(|front| !front.is_empty()) else { return };
        let fault = self.inb.recv(&mut vec![0; front.len() - 1], Wait::Never).map(|_| ());
        assert_eq!(fault, Err(RecvCoreError::BufferTooSmall(front.len())));
    }

    fn lend(&mut self) {
        self.lent_is_over();
        match self.inb.borrow_next(Wait::Never) {
            Ok(message) => {
                let mut buffer = vec![0; message.len()];
                self.inb.read_at(&message, 0, &mut buffer).expect("inside");
                assert_eq!(Some(&buffer), self.queue.front());
                self.borrowed = Some(message);
            }
            Err(fault) => self.nothing(fault),
        }
    }

    fn give_back(&mut self) {
        if let Some(message) = self.borrowed {
            self.inb.release(&message).expect("well-formed");
            self.lent_is_over();
        }
    }

    /// Every state can be left: all that is there comes, and then there is room for what fits.
    pub(super) fn drain(&mut self) {
        self.whoever_waits_is_told();
        for _ in 0..=self.slots {
            self.receive();
        }
        assert!(self.queue.is_empty());
        self.step(Step::Send(3));
        self.step(Step::Receive);
    }

    /// A sender that waits for space need not hope that the receiver looks once more, behind the last message.
    fn whoever_waits_is_told(&mut self) {
        let longest = self.out.in_place();
        let Ok(Some(needs)) = self.out.ticket_to_await(longest) else { return };
        self.lent_is_over();
        self.out.ring().announce_wait(needs);
        self.heap.store_flag(Flag::Producer, 1);
        for _ in 0..self.queue.len() {
            self.receive();
        }
        let dry = self.inb.ring().ticket() == self.tail();
        assert!(!dry || self.heap.load_flag(Flag::Producer) == 0, "who waits for {needs} is not woken");
        self.heap.store_flag(Flag::Producer, 0);
    }

    /// What holds in every state.
    fn check(&self) {
        let (published, ticket, tail) = (head(&*self.heap), self.inb.ring().ticket(), self.tail());
        assert!(published <= ticket && ticket <= tail && tail - published <= self.slots);
        assert!(ticket - published <= self.slots / 4, "{} tickets are hidden", ticket - published);
        assert!(ticket < tail || published == ticket, "nothing is hidden when the ring is dry");
        let mut taken = HashSet::new();
        for ticket in published..tail {
            for grain in self.grains(ticket) {
                assert!(grain < self.arena / ARENA_ALIGN && taken.insert(grain), "ticket {ticket} overlaps");
            }
        }
    }

    /// The grains of the arena that a ticket in flight stands in.
    fn grains(&self, ticket: u64) -> std::ops::Range<usize> {
        let word = self.heap.load_slot(ticket, Field::Control, Load::Relaxed);
        let control = Control::decode(word, self.arena as u64).expect("well-formed");
        let (place, len) = (control.unit as usize, control.len as usize);
        if control.kind == SlotKind::Inline { 0..0 } else { place..place + len.div_ceil(ARENA_ALIGN) }
    }

    /// Tickets in flight, grains in flight, and where the next payload would stand.
    pub(super) fn cursors(&self) -> (u64, usize, u64) {
        let (tail, place) = (self.tail(), numbers(&self.out.ring().next())[1]);
        let in_flight = self.inb.ring().ticket()..tail;
        let fill = in_flight.clone().map(|ticket| self.grains(ticket).len()).sum();
        (in_flight.end - in_flight.start, fill, place % self.arena as u64 / ARENA_ALIGN as u64)
    }

    /// All that decides what the ring does next, relative to where it is.
    pub(super) fn key(&self) -> u64 {
        let mut key = DefaultHasher::new();
        let (ring, producer) = (numbers(self.inb.ring()), numbers(self.out.ring()));
        let ([ticket, due, hidden], [tail, place, known, _limit, _size, freed, looked, reach, ends @ ..]) =
            (&ring[..], &producer[..])
        else {
            panic!("the ring prints itself otherwise: {ring:?} {producer:?}")
        };
        (ticket % self.slots, due - ticket, hidden, tail - ticket, tail - known).hash(&mut key);
        (tail - self.first).min(self.slots).hash(&mut key);
        (place % self.arena as u64, place - freed, place.wrapping_sub(*looked), reach).hash(&mut key);
        let slot = |ticket: u64| usize::try_from(ticket % self.slots).expect("few");
        (*known..*tail).for_each(|ticket| (place.wrapping_sub(ends[slot(ticket)])).hash(&mut key));
        for ticket in *ticket..*tail {
            let mut total = [0; 8];
            self.heap.copy_out(Span::Slot(ticket), 0, &mut total).expect("a slot");
            let control = self.heap.load_slot(ticket, Field::Control, Load::Relaxed);
            let first = control & 31 == 3;
            (control, first.then_some(total)).hash(&mut key);
        }
        let stamp = self.heap.load_slot(*tail, Field::Stamp, Load::Relaxed);
        (stamp == tail.wrapping_mul(2).wrapping_add(1)).hash(&mut key);
        self.rest().hash(&mut key);
        key.finish()
    }

    /// What is neither a ticket nor a place: pieces so far, what is lent, what is unfinished.
    fn rest(&self) -> (String, bool, bool) {
        let print = format!("{:?}", self.inb);
        let (_, partial) = print.split_once("buffer: [").expect("pieces so far");
        let (_, partial) = partial.split_once(']').expect("a list");
        let (partial, _) = partial.split_once("}, state:").expect("what the receiver holds");
        let unfinished = format!("{:?}", self.out.ring()).contains("unfinished: true");
        (partial.into(), self.borrowed.is_some(), unfinished)
    }
}

/// The numbers that something prints of itself.
fn numbers(of: &impl Debug) -> Vec<u64> {
    let mut print = String::with_capacity(256);
    write!(print, "{of:?}").expect("prints");
    let digits = print.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    digits.map(|part| part.parse().expect("a number")).collect()
}

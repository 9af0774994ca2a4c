//! Both ends of a ring over a hostile memory: errors are typed, and work and private memory are bounded.
//!
//! ```text
//!   halves   SenderCore, ReceiverCore, parking, OOB words   work per call: O(slots) loads per round, O(arena) bytes
//!   sides    Producer, Consumer                             no word is loaded twice for one decision
//! ```
//!
//! The hostile memory chooses the result of each load from the fuzzer's bytes. A round is one pass over all slots and one
//! wait. A call makes as many rounds as its deadline allows, and at most three more.

use std::io::IoSlice;
use std::time::Instant;

use super::bytes::Bytes;
use super::hostile_memory::{HostileMemory, LoadSite};
use narrows::internal::ConnectionError;
use narrows::internal::layout::{LAST_TICKET, SlotKind};
use narrows::internal::memory::{ARENA_ALIGN, Field, Flag, INLINE_CAPACITY, Memory, Padding, Word};
use narrows::internal::ring::{
    CloseReason, Consumer, Cursor, OobSender, Producer, ReserveError, SlotContents, WaitSlot, closed,
    force_notify, load_doorbell, load_oob, notify, park,
};
use narrows::internal::{
    IncomingMessage, NoWaitPolicy, ReceiverCore, RecvCoreError, SendCoreError, SenderCore, Wait,
};

/// The largest number of operations in one run.
const STEPS: usize = 120;

/// Runs the operations that `data` encodes, and answers each load from `data`.
pub fn ring_hostile(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let (slots, arena) = (1 << bytes.below(4), 64 << bytes.below(7));
    let first = match bytes.below(4) {
        0 => 0,
        1 => u64::from(bytes.u8()),
        2 => LAST_TICKET - u64::from(bytes.u8() % 16),
        _ => bytes.number().min(LAST_TICKET),
    };
    let max = bytes.pick(&[1, INLINE_CAPACITY, 200, 1000, 8 * arena]);
    let sides = bytes.bool();
    let memory = HostileMemory::new(bytes, slots, arena as u64, first);
    if sides {
        Sides::new(&memory, first).run();
    } else {
        Halves::new(&memory, first, max).run();
    }
}

/// Returns whether the bytes encode another operation.
fn more(memory: &HostileMemory<'_>) -> bool {
    memory.choose(|bytes| !bytes.is_empty())
}

/// The sending and the receiving half. They share the memory, but nothing that one writes reaches the other.
struct Halves<'l, 'd> {
    memory: &'l HostileMemory<'d>,
    out: SenderCore<&'l HostileMemory<'d>, NoWaitPolicy>,
    inb: ReceiverCore<&'l HostileMemory<'d>, NoWaitPolicy>,
    poster: OobSender<&'l HostileMemory<'d>>,
    buffer: Vec<u8>,
    borrowed: Option<IncomingMessage>,
    /// Bytes copied out of the memory so far.
    copied: usize,
    /// The error with which each half ended, sender first.
    over: [Option<ConnectionError>; 2],
    past: Instant,
}

impl<'l, 'd> Halves<'l, 'd> {
    fn new(memory: &'l HostileMemory<'d>, first: u64, max: usize) -> Self {
        Self {
            memory,
            out: SenderCore::new(memory, NoWaitPolicy, first, max),
            inb: ReceiverCore::new(memory, NoWaitPolicy, first, max),
            poster: OobSender::new(memory),
            buffer: Vec::new(),
            borrowed: None,
            copied: 0,
            over: [None; 2],
            past: Instant::now(),
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            if !more(self.memory) {
                break;
            }
            let (op, ticks, wait) =
                self.memory.choose(|bytes| (bytes.below(20), bytes.u8() % 8, bytes.below(3)));
            let wait = [Wait::Never, Wait::Deadline(Some(self.past)), Wait::NO_DEADLINE][wait];
            self.memory.begin(ticks.into());
            match op {
                0..=4 => self.send(op, wait),
                5..=10 => self.receive(op, wait),
                11 => self.sleep(wait),
                _ => self.touch(op),
            }
        }
    }

    fn send(&mut self, op: usize, wait: Wait) {
        let memory = self.memory;
        let len = memory.choose(|bytes| {
            let most = [INLINE_CAPACITY, self.out.in_place(), self.out.max_message() + 2][bytes.below(3)];
            bytes.below(most + 1)
        });
        let message = vec![7; len];
        let (first, second) = message.split_at(len / 3);
        let len = if op == 1 { len + 8 } else { len };
        let result = match op {
            0 => self.out.send(&[IoSlice::new(first), IoSlice::new(second)], 1, wait),
            1 => self.out.send_framed([7; 8], [first, second], 1, wait),
            2 => self.reserve(&message, wait),
            3 => self.stage(&message),
            _ => self.out.ticket_to_await(len).map(|_| len),
        };
        let work = memory.work();
        let fragments = len as u64 / ARENA_ALIGN as u64 + 2;
        assert!(wait != Wait::Never || op == 3 || work.ticks == 0, "{work:?} of a call that never blocks");
        assert!(work.late <= 4 * fragments, "{work:?} after the deadline of {len} bytes");
        assert!(work.loads <= 12 * (fragments + work.ticks + memory.slots()), "{work:?} for {len} bytes");
        assert!(work.stores <= 12 * (fragments + work.ticks + memory.slots()), "{work:?} for {len} bytes");
        let bytes = (len as u64 + 8) * if op == 3 { memory.slots() + 1 } else { 1 };
        assert!(work.copied_in as u64 <= bytes, "{work:?} for {len} bytes");
        match result {
            Err(SendCoreError::Ended(end)) => self.check_end(0, end),
            Err(SendCoreError::TooLarge(max)) => assert!(len > max),
            Err(SendCoreError::Full) => assert_ne!(wait, Wait::NO_DEADLINE),
            _ => {}
        }
    }

    fn reserve(&mut self, message: &[u8], wait: Wait) -> Result<usize, SendCoreError> {
        let claim = self.out.reserve(message.len(), wait)?;
        assert!(self.out.ring().write(&claim, 1, message, Padding::Keep).is_err() || message.is_empty());
        self.out.ring().write(&claim, 0, message, Padding::Keep).expect("it fits");
        self.out.ring().mark_writing(&claim);
        if self.memory.choose(|bytes| !bytes.rarely(4)) {
            let len = self.memory.choose(|bytes| bytes.below(message.len() + 3));
            self.out.commit(&claim, len, 2);
        }
        Ok(message.len())
    }

    fn stage(&mut self, message: &[u8]) -> Result<usize, SendCoreError> {
        let mut to = self.out.ring().next();
        for _ in 0..self.memory.choose(|bytes| bytes.below(to_usize(self.memory.slots()) + 1)) {
            let Ok(claim) = self.out.stage(to, message.len()) else { break };
            self.out.ring().mark_writing(&claim);
            self.out.ring().write(&claim, 0, message, Padding::Zero).expect("it fits");
            self.out.describe_whole(&claim, message.len(), 3);
            to = claim.after();
        }
        if self.memory.choose(Bytes::bool) {
            self.out.publish(to, false);
        }
        self.out.check().map(|()| message.len()).map_err(SendCoreError::Ended)
    }

    fn receive(&mut self, op: usize, wait: Wait) {
        let room = self.memory.choose(|bytes| bytes.below(2 * INLINE_CAPACITY));
        let given = if op == 10 { self.borrowed.take() } else { None };
        let result = match (op, given) {
            (5..=6, _) => self.inb.recv_into(&mut self.buffer, wait).map(|it| it.len),
            (7, _) => self.inb.recv(&mut vec![0; room], wait).map(|it| it.len),
            (8, _) => self.borrow(wait).map(|message| message.len()),
            (9, _) => self.take_owned(wait),
            (10, Some(message)) => self.inb.release(&message).map(|()| message.len()),
            _ => {
                let _there = self.inb.ready();
                return self.check_receive(Wait::Never);
            }
        };
        if op != 8 {
            self.borrowed = None; // The call has released it.
        }
        self.check_receive(wait);
        let unverified = op != 8 && self.memory.is_unverified() && self.memory.close_reason() == 0;
        assert!(
            !unverified,
            "a message was returned without a check that it was not overwritten: {result:?}"
        );
        match result {
            Err(RecvCoreError::Ended(end)) => self.check_end(1, end),
            Err(RecvCoreError::Empty) => assert_ne!(wait, Wait::NO_DEADLINE),
            Err(RecvCoreError::OutOfMemory(needed)) => panic!("no memory for {needed} bytes"),
            Err(RecvCoreError::BufferTooSmall(needed)) => assert!(op == 7 && needed > room),
            Ok(len) => assert!(len <= self.buffer.len().max(self.most()), "{len} bytes"),
        }
    }

    fn borrow(&mut self, wait: Wait) -> Result<IncomingMessage, RecvCoreError> {
        self.borrowed = None;
        let message = self.inb.borrow_next(wait)?;
        let mut bytes = vec![0; message.len()];
        self.inb.read_at(&message, 0, &mut bytes).expect("a validated span is inside");
        assert!(self.inb.read_at(&message, usize::MAX, &mut [0; 2]).is_err());
        assert!(self.inb.read_at(&message, message.len(), &mut [0; 1]).is_err());
        if let IncomingMessage::Assembled(len, _) = message {
            assert_eq!(self.inb.private(&message).map(<[u8]>::len), Some(len));
        }
        self.borrowed = Some(message);
        Ok(message)
    }

    fn take_owned(&mut self, wait: Wait) -> Result<usize, RecvCoreError> {
        if self.memory.choose(Bytes::bool) {
            let (mut body, mut taken) = ([0; INLINE_CAPACITY], 0);
            let is_taken = self.inb.take_framed(|_tag, _, len| {
                taken = 8 + len;
                body.get_mut(..len)
            });
            if is_taken {
                return Ok(taken);
            }
        }
        let message = self.inb.next_owned(wait)?;
        let mut bytes = vec![0; message.len()];
        self.inb.read_at(&message, 0, &mut bytes).expect("a validated span is inside");
        assert!(self.inb.private(&message).is_none_or(|private| private == bytes));
        self.inb.release(&message)?;
        Ok(message.len())
    }

    /// Returns the length of the longest legal message.
    fn most(&self) -> usize {
        self.out.max_message()
    }

    fn check_receive(&mut self, wait: Wait) {
        let (work, slots) = (self.memory.work(), self.memory.slots());
        assert!(wait != Wait::Never || work.ticks == 0, "{work:?} of a call that never blocks");
        assert!(work.late <= 4, "{work:?} after the deadline");
        assert!(
            !self.memory.is_overwritten() || self.memory.close_reason() != 0,
            "overwritten bytes were returned as a message"
        );
        let rounds = work.ticks + 3;
        assert!(work.loads <= rounds * (10 * slots + 16), "{work:?} with {slots} slots");
        assert!(work.stores <= rounds * (3 * slots + 8), "{work:?} with {slots} slots");
        // A round copies at most an arena, one more fragment and the total lengths. The message itself is added once.
        let round = 2 * self.memory.arena() + 8 * slots;
        let most = rounds * round + self.memory.arena().max(INLINE_CAPACITY as u64);
        assert!(work.copied_out as u64 <= most, "{work:?} with an arena of {}", self.memory.arena());
        self.copied += work.copied_out;
        let most = 2 * self.copied.min(self.most()) + 8;
        for capacity in [self.inb.memory(), self.buffer.capacity()] {
            assert!(
                capacity <= most,
                "{capacity} bytes of private memory after {} bytes copied",
                self.copied
            );
        }
    }

    /// Checks that the error matches the close reason, and that the receiver returns the same error from then on.
    fn check_end(&mut self, half: usize, end: ConnectionError) {
        let reason = self.memory.close_reason();
        let violated = reason == CloseReason::Violated as u64;
        assert!(end != ConnectionError::ProtocolViolation || violated);
        assert!(end != ConnectionError::Closed || reason == CloseReason::Closed as u64);
        let first = *self.over[half].get_or_insert(end);
        assert!(half == 0 || first == end, "{first:?}, and then {end:?}");
    }

    fn sleep(&mut self, wait: Wait) {
        let mem = self.memory;
        let wait_slot = match mem.choose(|bytes| bytes.below(3)) {
            0 => WaitSlot::consumer(&mem),
            1 => WaitSlot::producer(&mem),
            _ => WaitSlot::either(&mem, &mem),
        };
        let deadline = if let Wait::Deadline(deadline) = wait { deadline } else { Some(self.past) };
        let found = park(&wait_slot, deadline, 0, || closed(&mem, Word::ProducerClosed));
        let work = mem.work();
        assert!(found.is_some() || deadline.is_some(), "a sleep without a deadline ends with the connection");
        assert!(work.late <= 3, "{work:?} after the deadline");
        assert!(work.loads <= 2 * (work.ticks + 3), "{work:?}");
    }

    fn touch(&mut self, op: usize) {
        let mem = self.memory;
        let flag = mem.choose(|bytes| bytes.pick(&[Flag::Consumer, Flag::Producer, Flag::PeerConsumer]));
        let number = mem.choose(Bytes::number);
        match op {
            12 => notify(&mem, flag),
            13 => force_notify(&mem, flag),
            14 => self.poster.send_oob(mem.choose(Bytes::u32), number),
            15 => drop((load_oob(&mem, mem.choose(Bytes::u32)), load_doorbell(&mem))),
            16 if mem.choose(|bytes| bytes.rarely(4)) => {
                mem.set_close_reason(CloseReason::Died as u64 - number % 2);
            }
            17 if number % 16 == 0 => self.out.ring().close(),
            18 if number % 16 == 0 => self.inb.ring().close(),
            _ => drop((self.inb.is_ready(), self.out.ring().is_released(number))),
        }
        let work = mem.work();
        assert!(work.loads <= 8 && work.stores <= 4 && work.ticks == 0, "{work:?}");
    }
}

/// The two sides of the ring itself. Each of their methods makes one or two decisions.
struct Sides<'l, 'd> {
    memory: &'l HostileMemory<'d>,
    producer: Producer<&'l HostileMemory<'d>>,
    consumer: Consumer<&'l HostileMemory<'d>>,
    arrived: Vec<(u64, SlotContents)>,
    to: Cursor,
    /// The highest head that was legal.
    known: u64,
}

impl<'l, 'd> Sides<'l, 'd> {
    fn new(memory: &'l HostileMemory<'d>, first: u64) -> Self {
        let producer = Producer::new(memory, first);
        let to = producer.next();
        Self {
            memory,
            producer,
            consumer: Consumer::new(memory, first),
            arrived: Vec::new(),
            to,
            known: first,
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            if !more(self.memory) {
                break;
            }
            self.memory.begin(0);
            match self.memory.choose(|bytes| bytes.below(12)) {
                0..=3 => self.claim(),
                4 => self.memory.check_decision("publish", None, || self.producer.publish(self.to, false)),
                5..=7 => self.arrive(),
                8..=9 => self.release(),
                _ => self.look(),
            }
            let work = self.memory.work();
            assert_eq!(work.ticks, 0, "neither side waits");
            assert!(work.loads <= 10 && work.stores <= self.memory.slots() + 8, "{work:?}");
        }
    }

    fn claim(&mut self) {
        let (len, fragment, staged) = self.memory.choose(|bytes| {
            let len = [bytes.below(INLINE_CAPACITY + 1), bytes.below(to_usize(self.memory.arena()) + 65)]
                [bytes.below(2)];
            (len, bytes.bool(), bytes.bool())
        });
        let from = if staged { self.to } else { self.producer.next() };
        // The choice of the ticket and that of the arena offset are two decisions, and both load the head.
        let twice = (fragment || len > INLINE_CAPACITY).then_some(LoadSite::Word(Word::Head));
        let claim = self.memory.check_decision("reserve", twice, || match fragment {
            true => self.producer.reserve_fragment(from, len),
            false => self.producer.reserve(from, len),
        });
        assert!(self.memory.work().loads <= 2);
        for head in self.memory.heads() {
            let illegal = head < self.known || head > self.memory.tail();
            assert!(
                !illegal || matches!(claim, Err(ReserveError::Violated(_))),
                "{head} after {}",
                self.known
            );
            self.known = if illegal { self.known } else { head };
        }
        let Ok(claim) = claim else { return };
        assert_eq!(claim.len(), len);
        self.producer.mark_writing(&claim);
        self.producer.write(&claim, 0, &vec![1; len], Padding::Zero).expect("it fits");
        assert!(self.producer.write(&claim, len, &[1], Padding::Zero).is_err());
        let kind = self.memory.choose(|bytes| {
            bytes.pick(&[SlotKind::Whole, SlotKind::First, SlotKind::Middle, SlotKind::Last])
        });
        self.producer.describe(&claim, kind, len, 0);
        self.to = claim.after();
    }

    fn arrive(&mut self) {
        let Ok(Some(arrival)) = self.memory.check_decision("next_slot", None, || self.consumer.next_slot())
        else {
            return;
        };
        let ticket = self.consumer.ticket();
        let room =
            if arrival.kind == SlotKind::Inline { INLINE_CAPACITY as u64 } else { self.memory.arena() };
        assert!(arrival.len as u64 <= room && arrival.total >= arrival.len as u64, "{arrival:?}");
        self.consumer.read(&arrival, 0, &mut vec![0; arrival.len]).expect("a validated span is inside");
        assert!(self.consumer.read(&arrival, arrival.len, &mut [0]).is_err());
        assert!(self.consumer.read(&arrival, usize::MAX, &mut [0]).is_err());
        self.arrived.push((ticket, arrival));
    }

    /// Releases any arrival, possibly one that was released before.
    fn release(&mut self) {
        if self.arrived.is_empty() {
            return;
        }
        let index = self.memory.choose(|bytes| bytes.below(self.arrived.len()));
        let ((ticket, arrival), before) = (self.arrived[index], self.consumer.ticket());
        let still = self.memory.check_decision("verify", None, || self.consumer.verify(&arrival));
        assert_eq!(still.is_ok(), self.memory.was_ready(), "{ticket}");
        // Whether to publish the head and which thread to wake are two decisions, and both ask whether a message is pending.
        let twice = Some(LoadSite::Slot((before + 1) & (self.memory.slots() - 1), Field::Stamp));
        self.memory.check_decision("release", twice, || self.consumer.release(&arrival));
        assert_eq!(self.consumer.ticket() - before, u64::from(ticket == before), "each ticket once");
    }

    fn look(&mut self) {
        let needs = self.memory.choose(Bytes::number);
        self.memory.check_decision("is_ready", None, || self.consumer.is_ready());
        self.memory.check_decision("ended", None, || (self.consumer.ended(), self.producer.ended()).0);
        self.producer.announce_wait(needs);
        self.memory.check_decision("is_released", None, || self.producer.is_released(needs));
        assert!(self.producer.remaining_tickets() <= LAST_TICKET + 1);
    }
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("64 bits")
}

//! A memory that a hostile peer controls: the fuzzer's bytes choose the result of each load, whatever was stored before.
//!
//! It counts the operations. Its clock advances only when the ring asks for the time or waits. So a limit on work is a number, and
//! a wait without a deadline ends when this side closes the connection.
//!
//! Only the close reason is as it was stored. It is in private memory, which no peer can write.

use std::cell::{Cell, RefCell};

use super::bytes::Bytes;
use narrows::internal::layout::LAST_TICKET;
use narrows::internal::memory::{
    ARENA_ALIGN, Deadline, Fence, Field, Flag, INLINE_CAPACITY, Load, Memory, OutOfBounds, Padding, Span,
    Store, WaitResult, Word,
};
use narrows::internal::ring::CloseReason;

/// The number of clock reads after the deadline at which a wait counts as endless.
const ENDLESS: u64 = 10_000;

/// What a load reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoadSite {
    Slot(u64, Field),
    Word(Word),
    Flag(Flag),
    /// A flag that is cleared in the same step.
    Taken(Flag),
    Payload(Span),
}

/// The operations since the last [`HostileMemory::begin`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    pub(super) loads: u64,
    pub(super) stores: u64,
    pub(super) copied_in: usize,
    pub(super) copied_out: usize,
    /// Clock reads and waits.
    pub(super) ticks: u64,
    /// The ticks after the deadline.
    pub(super) late: u64,
}

/// The memory of a ring, as a hostile peer makes it look.
#[derive(Debug)]
pub(super) struct HostileMemory<'a> {
    bytes: RefCell<Bytes<'a>>,
    slots: u64,
    arena: u64,
    /// The ticket after the last that was published. Plausible heads are near it.
    tail: Cell<u64>,
    /// The close reason.
    close_reason: Cell<u64>,
    /// The tick after which the deadline has passed.
    deadline: Cell<u64>,
    work: Cell<Work>,
    reads: RefCell<Vec<LoadSite>>,
    /// Whether loads are recorded in `reads`.
    traced: Cell<bool>,
    /// The ticket whose stamp was loaded last, and the stamp.
    stamped: Cell<(u64, u64)>,
    /// The ticket of a payload that was copied out, until its stamp is loaded again.
    reading: Cell<Option<u64>>,
    /// That stamp had changed.
    overwritten: Cell<bool>,
    /// All heads that were loaded since `begin`.
    heads: RefCell<Vec<u64>>,
}

impl<'a> HostileMemory<'a> {
    pub(super) fn new(bytes: Bytes<'a>, slots: u64, arena: u64, first: u64) -> Self {
        Self {
            bytes: RefCell::new(bytes),
            slots,
            arena,
            tail: Cell::new(first),
            close_reason: Cell::new(0),
            deadline: Cell::new(0),
            work: Cell::default(),
            reads: RefCell::default(),
            traced: Cell::new(false),
            stamped: Cell::default(),
            reading: Cell::default(),
            overwritten: Cell::default(),
            heads: RefCell::default(),
        }
    }

    /// Decodes something else from the same bytes.
    pub(super) fn choose<T>(&self, choice: impl FnOnce(&mut Bytes<'a>) -> T) -> T {
        choice(&mut self.bytes.borrow_mut())
    }

    /// Begins an operation, whose deadline is after this number of ticks.
    pub(super) fn begin(&self, ticks: u64) {
        self.deadline.set(ticks);
        self.work.set(Work::default());
        self.heads.borrow_mut().clear();
    }

    pub(super) fn work(&self) -> Work {
        self.work.get()
    }

    /// Returns whether the stamp that was loaded last is that of a ready ticket.
    pub(super) fn was_ready(&self) -> bool {
        let (ticket, stamp) = self.stamped.get();
        stamp == ready(ticket)
    }

    /// Returns whether a load showed that a payload was overwritten while it was copied.
    pub(super) fn is_overwritten(&self) -> bool {
        self.overwritten.get()
    }

    /// Returns whether a payload was copied out, and its stamp was not loaded again.
    pub(super) fn is_unverified(&self) -> bool {
        self.reading.get().is_some()
    }

    /// Returns the ticket after the last that was published.
    pub(super) fn tail(&self) -> u64 {
        self.tail.get()
    }

    /// Returns the heads that were loaded since [`begin`](Self::begin).
    pub(super) fn heads(&self) -> Vec<u64> {
        self.heads.borrow().clone()
    }

    pub(super) fn close_reason(&self) -> u64 {
        self.close_reason.get()
    }

    /// Runs one decision, and checks that it loads nothing twice except for `twice`.
    pub(super) fn check_decision<T>(
        &self,
        what: &str,
        twice: Option<LoadSite>,
        decision: impl FnOnce() -> T,
    ) -> T {
        self.reads.borrow_mut().clear();
        self.traced.set(true);
        let result = decision();
        self.traced.set(false);
        let reads = self.reads.borrow();
        for (index, read) in reads.iter().enumerate() {
            let again = reads[..index].contains(read) && Some(*read) != twice;
            assert!(!again, "{what} loads {read:?} twice: {reads:?}");
        }
        result
    }

    fn count(&self, change: impl FnOnce(&mut Work)) {
        let mut work = self.work.get();
        change(&mut work);
        self.work.set(work);
    }

    /// Returns the fuzzer's value for a load: any, or one that is plausible. It is zero after the end of the bytes.
    fn choose_value(&self, read: LoadSite, plausible: impl FnOnce(&mut Bytes<'a>) -> u64) -> u64 {
        self.count(|work| work.loads += 1);
        if self.traced.get() {
            self.reads.borrow_mut().push(read);
        }
        let mut bytes = self.bytes.borrow_mut();
        match bytes.u8() {
            _ if bytes.is_empty() => 0,
            0..=1 => bytes.u64(),
            2..=4 => bytes.number(),
            _ => plausible(&mut bytes),
        }
    }

    fn stamp(&self, ticket: u64, bytes: &mut Bytes<'a>) -> u64 {
        let ready = ready(ticket);
        match bytes.u8() {
            0..=15 => 0,
            16..=31 => ready.wrapping_sub(1),
            32..=39 => ready.wrapping_sub(2 * self.slots),
            40 => ready.wrapping_add(2 * self.slots),
            41..=43 => ready.wrapping_add_signed(i64::from(bytes.u8()) - 128),
            _ => ready,
        }
    }

    fn control(&self, bytes: &mut Bytes<'a>) -> u64 {
        let (choice, small) = (bytes.u8(), u64::from(bytes.u8()));
        let kind = u64::from(choice % 5) + 1;
        let abort = u64::from(bytes.rarely(16)) << 5;
        let room = if kind == 1 { INLINE_CAPACITY as u64 } else { self.arena };
        let (len, unit) = match choice / 5 {
            0 => (room + 1, 0),
            1 => (small, room / ARENA_ALIGN as u64),
            2..=5 => (room, 0),
            6..=9 if kind > 1 => (room.saturating_sub(small).max(1), small / ARENA_ALIGN as u64),
            10..=14 => (small * ARENA_ALIGN as u64 % (room + 1), 0),
            _ => (1 + small % room, 0),
        };
        len << 32 | unit << 6 | abort | kind
    }

    /// Advances the clock. Returns whether the deadline has passed. A wait without a deadline is ended by a close of this side.
    fn tick(&self, deadline: Deadline) -> bool {
        self.count(|work| work.ticks += 1);
        let passed = self.work.get().ticks > self.deadline.get();
        self.count(|work| work.late += u64::from(passed));
        assert!(self.work.get().late < ENDLESS, "a wait that does not end");
        if passed && deadline.is_none() {
            self.set_close_reason(CloseReason::Closed as u64);
        }
        passed && deadline.is_some()
    }

    /// Panics if a copy leaves the memory: the ring has to validate each span before it copies.
    fn check_bounds(&self, span: Span, at: usize, len: usize) {
        let room = match span {
            Span::Slot(_) => INLINE_CAPACITY as u64,
            Span::Arena(unit) => self.arena.saturating_sub(u64::from(unit) * ARENA_ALIGN as u64),
        };
        let end = at.checked_add(len).expect("no overflow");
        assert!(end as u64 <= room, "{len} bytes at {at} of {span:?} are not within the memory");
    }
}

fn ready(ticket: u64) -> u64 {
    ticket.wrapping_mul(2).wrapping_add(2)
}

impl Memory for &HostileMemory<'_> {
    fn slots(&self) -> u64 {
        self.slots
    }

    fn arena(&self) -> u64 {
        self.arena
    }

    fn load_slot(&self, ticket: u64, field: Field, _order: Load) -> u64 {
        let value = self.choose_value(LoadSite::Slot(ticket % self.slots, field), |bytes| match field {
            Field::Stamp => self.stamp(ticket, bytes),
            Field::Control => self.control(bytes),
            Field::Tag => bytes.u8().into(),
        });
        if field == Field::Stamp {
            self.stamped.set((ticket, value));
            if self.reading.get() == Some(ticket) {
                self.reading.set(None);
                self.overwritten.set(self.overwritten.get() || value != ready(ticket));
            }
        }
        value
    }

    fn store_slot(&self, ticket: u64, field: Field, value: u64, _order: Store) {
        self.count(|work| work.stores += 1);
        assert!(ticket <= LAST_TICKET, "a ticket after the last");
        if field == Field::Stamp && value == 2 * ticket + 2 {
            self.tail.set(ticket + 1);
        }
    }

    fn load(&self, word: Word, _order: Load) -> u64 {
        if word == Word::CloseReason {
            self.count(|work| work.loads += 1);
            return self.close_reason.get();
        }
        let tail = self.tail.get();
        let value = self.choose_value(LoadSite::Word(word), |bytes| match word {
            Word::Head => tail.wrapping_sub(u64::from(bytes.u8() % 16)),
            Word::AwaitedTicket => tail.wrapping_add_signed(i64::from(bytes.u8()) - 128),
            Word::ProducerClosed | Word::ConsumerClosed => u64::from(bytes.rarely(64)),
            _ => bytes.u8().into(),
        });
        if word == Word::Head {
            self.heads.borrow_mut().push(value);
        }
        value
    }

    fn store(&self, _word: Word, _value: u64, _order: Store) {
        self.count(|work| work.stores += 1);
    }

    fn set_close_reason(&self, reason: u64) -> u64 {
        if self.close_reason.get() == 0 {
            self.close_reason.set(reason);
        }
        self.close_reason.get()
    }

    fn load_flag(&self, flag: Flag) -> u32 {
        let value = self.choose_value(LoadSite::Flag(flag), |bytes| u64::from(bytes.u8() % 4));
        u32::try_from(value & u64::from(u32::MAX)).expect("masked")
    }

    fn store_flag(&self, _flag: Flag, _value: u32) {
        self.count(|work| work.stores += 1);
    }

    fn take_flag(&self, flag: Flag) -> u32 {
        self.store_flag(flag, 0);
        let value = self.choose_value(LoadSite::Taken(flag), |bytes| u64::from(bytes.u8() % 4));
        u32::try_from(value & u64::from(u32::MAX)).expect("masked")
    }

    fn fence(&self, _fence: Fence) {}

    fn copy_in(&self, to: Span, at: usize, bytes: &[u8], _tail: Padding) -> Result<(), OutOfBounds> {
        self.check_bounds(to, at, bytes.len());
        self.count(|work| work.copied_in += bytes.len());
        Ok(())
    }

    fn copy_out(&self, from: Span, at: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        self.check_bounds(from, at, into.len());
        self.count(|work| work.copied_out += into.len());
        self.reading.set(self.was_ready().then_some(self.stamped.get().0));
        if into.len() == 8 {
            // It may be the total length of a first fragment.
            let total = self.choose_value(LoadSite::Payload(from), |bytes| u64::from(bytes.u16() % 1024));
            into.copy_from_slice(&total.to_le_bytes());
        } else {
            let fill = self.choose(Bytes::u8);
            into.fill(fill);
        }
        Ok(())
    }

    fn wait(&self, _flag: Flag, deadline: Deadline, _patience: u32) -> WaitResult {
        match (self.tick(deadline), self.choose(|bytes| bytes.below(3))) {
            (true, _) => WaitResult::Deadline,
            (_, 0) => WaitResult::Slice,
            _ => WaitResult::Early,
        }
    }

    fn back_off(&self, deadline: Deadline) {
        self.tick(deadline);
    }

    fn wake(&self, _flag: Flag) {}

    fn has_expired(&self, deadline: Deadline) -> bool {
        self.tick(deadline)
    }
}

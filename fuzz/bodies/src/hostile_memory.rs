//! A memory whose every load is the fuzzer's: no word is what anybody wrote, and none stays as it is.
//!
//! It counts what is done to it, and its clock moves only when somebody asks for the time or waits: so
//! a bound on work is a number, and a wait for ever ends by this side's own close.
//!
//! The fate alone is honest: it stands in private memory, where no peer can write.

use std::cell::{Cell, RefCell};

use super::bytes::Bytes;
use narrows::internal::layout::LAST_TICKET;
use narrows::internal::mem::{
    Fence, Field, Flag, GRAIN, INLINE, Load, Memory, OutOfBounds, Span, Store, Tail, Until, Woke, Word,
};
use narrows::internal::ring::Fate;

/// Questions about the time after the deadline that no bounded wait asks.
const ENDLESS: u64 = 10_000;

/// What was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    Slot(u64, Field),
    Word(Word),
    Flag(Flag),
    /// Cleared in the same step.
    Taken(Flag),
    Payload(Span),
}

/// What was done since the last [`HostileMemory::begin`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    pub(super) loads: u64,
    pub(super) stores: u64,
    pub(super) copied_in: usize,
    pub(super) copied_out: usize,
    /// Questions about the time, and waits.
    pub(super) ticks: u64,
    /// Those of them that came after the deadline.
    pub(super) late: u64,
}

#[derive(Debug)]
pub(super) struct HostileMemory<'a> {
    bytes: RefCell<Bytes<'a>>,
    slots: u64,
    arena: u64,
    /// Behind the last ticket that was committed: heads near it are plausible.
    tail: Cell<u64>,
    fate: Cell<u64>,
    deadline: Cell<u64>,
    work: Cell<Work>,
    reads: RefCell<Vec<Read>>,
    /// Whether the reads are kept.
    traced: Cell<bool>,
    /// The stamp that was loaded last, and its ticket.
    stamped: Cell<(u64, u64)>,
    /// The ticket that was ready when a payload was copied out, until its stamp is looked at again.
    reading: Cell<Option<u64>>,
    /// The stamp had moved then.
    torn: Cell<bool>,
    /// Every head that was loaded since `begin`.
    heads: RefCell<Vec<u64>>,
}

impl<'a> HostileMemory<'a> {
    pub(super) fn new(bytes: Bytes<'a>, slots: u64, arena: u64, first: u64) -> Self {
        Self {
            bytes: RefCell::new(bytes),
            slots,
            arena,
            tail: Cell::new(first),
            fate: Cell::new(0),
            deadline: Cell::new(0),
            work: Cell::default(),
            reads: RefCell::default(),
            traced: Cell::new(false),
            stamped: Cell::default(),
            reading: Cell::default(),
            torn: Cell::default(),
            heads: RefCell::default(),
        }
    }

    /// The next choice of whoever drives this memory.
    pub(super) fn choose<T>(&self, choice: impl FnOnce(&mut Bytes<'a>) -> T) -> T {
        choice(&mut self.bytes.borrow_mut())
    }

    /// A new operation, which may take so many ticks of the clock.
    pub(super) fn begin(&self, ticks: u64) {
        self.deadline.set(ticks);
        self.work.set(Work::default());
        self.heads.borrow_mut().clear();
    }

    pub(super) fn work(&self) -> Work {
        self.work.get()
    }

    /// Whether the stamp that was loaded last said that its ticket is ready.
    pub(super) fn was_ready(&self) -> bool {
        let (ticket, stamp) = self.stamped.get();
        stamp == ready(ticket)
    }

    /// Whether the reader of a payload has seen that it was overwritten.
    pub(super) fn is_torn(&self) -> bool {
        self.torn.get()
    }

    /// Whether a payload was copied out, and nobody has looked yet whether it stood still.
    pub(super) fn is_unverified(&self) -> bool {
        self.reading.get().is_some()
    }

    /// Behind the last ticket that was committed.
    pub(super) fn tail(&self) -> u64 {
        self.tail.get()
    }

    /// The heads that were loaded since [`begin`](Self::begin).
    pub(super) fn heads(&self) -> Vec<u64> {
        self.heads.borrow().clone()
    }

    pub(super) fn fate(&self) -> u64 {
        self.fate.get()
    }

    /// Does something that is one decision, in which no word may be loaded twice but `twice`.
    pub(super) fn once<T>(&self, what: &str, twice: Option<Read>, decision: impl FnOnce() -> T) -> T {
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

    fn did(&self, change: impl FnOnce(&mut Work)) {
        let mut work = self.work.get();
        change(&mut work);
        self.work.set(work);
    }

    /// The fuzzer's value for a load: a plausible one, or anything; zeros once it has no more to say.
    fn lie(&self, read: Read, plausible: impl FnOnce(&mut Bytes<'a>) -> u64) -> u64 {
        self.did(|work| work.loads += 1);
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
        let room = if kind == 1 { INLINE as u64 } else { self.arena };
        let (len, place) = match choice / 5 {
            0 => (room + 1, 0),
            1 => (small, room / GRAIN as u64),
            2..=5 => (room, 0),
            6..=9 if kind > 1 => (room.saturating_sub(small).max(1), small / GRAIN as u64),
            10..=14 => (small * GRAIN as u64 % (room + 1), 0),
            _ => (1 + small % room, 0),
        };
        len << 32 | place << 6 | abort | kind
    }

    /// Moves the clock; whether the deadline has passed. A wait for ever is ended by a local close.
    fn tick(&self, until: Until) -> bool {
        self.did(|work| work.ticks += 1);
        let passed = self.work.get().ticks > self.deadline.get();
        self.did(|work| work.late += u64::from(passed));
        assert!(self.work.get().late < ENDLESS, "a wait that does not end");
        if passed && until.is_none() {
            self.settle(Fate::Closed as u64);
        }
        passed && until.is_some()
    }

    /// Judges a copy: everything above has judged it before, so a copy outside is a finding.
    fn judge(&self, span: Span, at: usize, len: usize) {
        let room = match span {
            Span::Slot(_) => INLINE as u64,
            Span::Arena(place) => self.arena.saturating_sub(u64::from(place) * GRAIN as u64),
        };
        let end = at.checked_add(len).expect("no length near the end of numbers");
        assert!(end as u64 <= room, "{len} bytes at {at} of {span:?} are not in the memory");
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
        let value = self.lie(Read::Slot(ticket % self.slots, field), |bytes| match field {
            Field::Stamp => self.stamp(ticket, bytes),
            Field::Control => self.control(bytes),
            Field::Tag => bytes.u8().into(),
        });
        if field == Field::Stamp {
            self.stamped.set((ticket, value));
            if self.reading.get() == Some(ticket) {
                self.reading.set(None);
                self.torn.set(self.torn.get() || value != ready(ticket));
            }
        }
        value
    }

    fn store_slot(&self, ticket: u64, field: Field, value: u64, _order: Store) {
        self.did(|work| work.stores += 1);
        assert!(ticket <= LAST_TICKET, "a ticket behind the last");
        if field == Field::Stamp && value == 2 * ticket + 2 {
            self.tail.set(ticket + 1);
        }
    }

    fn load(&self, word: Word, _order: Load) -> u64 {
        if word == Word::Fate {
            self.did(|work| work.loads += 1);
            return self.fate.get();
        }
        let tail = self.tail.get();
        let value = self.lie(Read::Word(word), |bytes| match word {
            Word::Head => tail.wrapping_sub(u64::from(bytes.u8() % 16)),
            Word::Wanted => tail.wrapping_add_signed(i64::from(bytes.u8()) - 128),
            Word::ProducerMark | Word::ConsumerMark => u64::from(bytes.rarely(64)),
            _ => bytes.u8().into(),
        });
        if word == Word::Head {
            self.heads.borrow_mut().push(value);
        }
        value
    }

    fn store(&self, _word: Word, _value: u64, _order: Store) {
        self.did(|work| work.stores += 1);
    }

    fn settle(&self, fate: u64) -> u64 {
        if self.fate.get() == 0 {
            self.fate.set(fate);
        }
        self.fate.get()
    }

    fn load_flag(&self, flag: Flag) -> u32 {
        let value = self.lie(Read::Flag(flag), |bytes| u64::from(bytes.u8() % 4));
        u32::try_from(value & u64::from(u32::MAX)).expect("masked")
    }

    fn store_flag(&self, _flag: Flag, _value: u32) {
        self.did(|work| work.stores += 1);
    }

    fn take_flag(&self, flag: Flag) -> u32 {
        self.store_flag(flag, 0);
        let value = self.lie(Read::Taken(flag), |bytes| u64::from(bytes.u8() % 4));
        u32::try_from(value & u64::from(u32::MAX)).expect("masked")
    }

    fn fence(&self, _fence: Fence) {}

    fn copy_in(&self, to: Span, at: usize, bytes: &[u8], _tail: Tail) -> Result<(), OutOfBounds> {
        self.judge(to, at, bytes.len());
        self.did(|work| work.copied_in += bytes.len());
        Ok(())
    }

    fn copy_out(&self, from: Span, at: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        self.judge(from, at, into.len());
        self.did(|work| work.copied_out += into.len());
        self.reading.set(self.was_ready().then_some(self.stamped.get().0));
        if into.len() == 8 {
            // Perhaps the total length of a first piece.
            let total = self.lie(Read::Payload(from), |bytes| u64::from(bytes.u16() % 1024));
            into.copy_from_slice(&total.to_le_bytes());
        } else {
            let fill = self.choose(Bytes::u8);
            into.fill(fill);
        }
        Ok(())
    }

    fn wait(&self, _flag: Flag, until: Until, _patience: u32) -> Woke {
        match (self.tick(until), self.choose(|bytes| bytes.below(3))) {
            (true, _) => Woke::Deadline,
            (_, 0) => Woke::Slice,
            _ => Woke::Early,
        }
    }

    fn doze(&self, until: Until) {
        self.tick(until);
    }

    fn wake(&self, _flag: Flag) {}

    fn expired(&self, until: Until) -> bool {
        self.tick(until)
    }
}

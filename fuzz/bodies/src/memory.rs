//! The trait `Memory`, called directly with any arguments, on private memory and on a mapped memfd.
//!
//! ```text
//!   bytes ──▶ program ──┬──▶ Arc<Heap>     each result, and sometimes all of the memory, compared with an image
//!                       └──▶ sys::Mapping  the same, and each byte of the region compared with the image
//! ```
//!
//! The image uses `layout` alone, and none of the code by which either memory computes addresses. This body covers neither the
//! order of accesses between threads (`loom-tests`) nor real sleep (`tests/ring/memory.rs`).

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::bytes::Bytes;
use narrows::internal::MappedConnection;
use narrows::internal::layout::{Direction, Geometry, SLOT, SLOT_PAYLOAD, words};
use narrows::internal::memory::{
    ARENA_ALIGN, Fence, Field, Flag, Heap, INLINE_CAPACITY, Load, Memory, OutOfBounds, Padding, Span, Store,
    WaitResult, Word,
};

/// Slots, arena and OOB words of the memories.
const SIZES: [(u32, u64, u32); 8] = [
    (1, 64, 1),
    (2, 128, 1),
    (4, 1024, 4),
    (8, 4096, 4),
    (1, 4096, 2),
    (16, 64, 256),
    (2, 8192, 1),
    (8, 256, 64),
];

const FIELDS: [Field; 3] = [Field::Stamp, Field::Control, Field::Tag];
const FLAGS: [Flag; 3] = [Flag::Consumer, Flag::Producer, Flag::PeerConsumer];
const WORDS: [Word; 6] = [
    Word::Head,
    Word::AwaitedTicket,
    Word::ProducerClosed,
    Word::ConsumerClosed,
    Word::Doorbell,
    Word::CloseReason,
];

/// The largest number of steps in one run.
const STEPS: usize = 400;

/// The number of steps between two comparisons of the whole memory.
const COMPARED: usize = 32;

/// Bytes before and after a buffer that is copied to, and their value.
const GUARD: usize = 64;
const BLANK: u8 = 0xA5;

/// What all runs of a thread share: to make a connection takes longer than most runs.
#[derive(Default)]
struct Fixture {
    pages: [Option<MappedConnection>; SIZES.len()],
    found: Vec<u8>,
}

thread_local! {
    static FIXTURE: RefCell<Fixture> = RefCell::default();
}

/// Makes the calls that the bytes encode, and compares all results and all bytes with the image.
pub fn memory(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let (index, direction) = (bytes.below(SIZES.len()), usize::from(bytes.bool()));
    let (slots, arena, oob) = SIZES[index];
    let geometry = Geometry::new(slots, arena, oob).expect("legal");

    let mut image = Image::new(geometry, direction);
    if bytes.rarely(4) {
        // The ring uses it through an `Arc`, which forwards each call.
        let heap = Arc::new(Heap::new(slots as usize, to_usize(arena), oob as usize));
        run(&heap, &mut image, bytes);
        return image.compare(&heap);
    }
    FIXTURE.with_borrow_mut(|Fixture { pages, found }| {
        let pages = pages[index]
            .get_or_insert_with(|| MappedConnection::new(geometry, 0, 0, 1).expect("a connection"));
        pages.reset();
        let mapping = pages.memory(direction);
        run(&mapping, &mut image, bytes);
        image.check_raw_spans(|span, len| pages.raw_len(direction, span, 0, len), bytes);
        image.compare(&mapping);
        image.compare_pages(pages, found);
    });
}

/// The expected bytes of a region.
struct Image {
    region: Vec<u8>,
    geometry: Geometry,
    at: Direction,
    peer_flag: usize,
    close_reason: u64,
    /// Offsets of hints that contain a time.
    times: Vec<usize>,
}

impl Image {
    fn new(geometry: Geometry, direction: usize) -> Self {
        let (at, other) = (geometry.direction(direction), geometry.direction(1 - direction));
        let peer_flag = other.words + words::CONSUMER_FLAG;
        Self {
            region: vec![0; geometry.region_len()],
            geometry,
            at,
            peer_flag,
            close_reason: 0,
            times: Vec::new(),
        }
    }

    fn get(&self, at: usize) -> u64 {
        u64::from_ne_bytes(*self.region[at..].first_chunk().expect("inside"))
    }

    fn set(&mut self, at: usize, value: u64) {
        self.region[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }

    fn slot(&self, ticket: u64) -> usize {
        self.at.slots + to_usize(ticket % u64::from(self.geometry.slots())) * SLOT
    }

    fn field(&self, ticket: u64, field: Field) -> usize {
        self.slot(ticket) + FIELDS.iter().position(|it| *it == field).expect("listed") * 8
    }

    /// Returns the offset of a word, and `None` if it is in private memory.
    fn word(&self, word: Word) -> Option<usize> {
        let at = match word {
            Word::Head => words::HEAD,
            Word::AwaitedTicket => words::AWAITED_TICKET,
            Word::ProducerClosed => words::PRODUCER_CLOSED,
            Word::ConsumerClosed => words::CONSUMER_CLOSED,
            Word::Doorbell => words::DOORBELL,
            Word::Oob(index) => words::OOB + (index % self.geometry.oob()) as usize * 8,
            Word::CloseReason => return None,
        };
        Some(self.at.words + at)
    }

    fn load(&self, word: Word) -> u64 {
        self.word(word).map_or(self.close_reason, |at| self.get(at))
    }

    fn store(&mut self, word: Word, value: u64) {
        match self.word(word) {
            Some(at) => self.set(at, value),
            None => self.close_reason = value,
        }
    }

    fn flag(&mut self, flag: Flag) -> &mut [u8] {
        let at = match flag {
            Flag::Consumer => self.at.words + words::CONSUMER_FLAG,
            Flag::Producer => self.at.words + words::PRODUCER_FLAG,
            Flag::PeerConsumer => self.peer_flag,
        };
        &mut self.region[at..at + 4]
    }

    fn load_flag(&mut self, flag: Flag) -> u32 {
        u32::from_ne_bytes(*self.flag(flag).first_chunk().expect("four"))
    }

    /// Returns the offsets of a range, if it is within the memory.
    fn range(&self, span: Span, at: usize, len: usize) -> Result<Range<usize>, OutOfBounds> {
        let (start, room) = match span {
            Span::Slot(ticket) => (self.slot(ticket) + SLOT_PAYLOAD, INLINE_CAPACITY),
            Span::Arena(unit) => {
                let arena = to_usize(self.geometry.arena());
                let skipped = unit as usize * ARENA_ALIGN;
                (self.at.arena + skipped, arena.checked_sub(skipped).ok_or(OutOfBounds)?)
            }
        };
        let end = at.checked_add(len).filter(|end| *end <= room).ok_or(OutOfBounds)?;
        Ok(start + at..start + end)
    }

    /// Checks that a raw span is returned if and only if it is within the memory.
    fn check_raw_spans(&self, raw_len: impl Fn(Span, usize) -> Option<usize>, mut bytes: Bytes<'_>) {
        for _ in 0..4 {
            let (span, _, len) = range(&mut bytes, &self.geometry);
            let borrowed = raw_len(span, len);
            assert_eq!(borrowed, self.range(span, 0, len).ok().map(|_| len), "{len} bytes of {span:?}");
        }
    }

    /// Compares all slots, words, flags and payloads of the memory with the image.
    fn compare<M: Memory>(&mut self, mem: &M) {
        assert_eq!((mem.slots(), mem.arena()), (self.geometry.slots().into(), self.geometry.arena()));
        for ticket in 0..mem.slots() {
            let found = FIELDS.map(|field| mem.load_slot(ticket, field, Load::Acquire));
            let expected = FIELDS.map(|field| self.get(self.field(ticket, field)));
            assert_eq!(found, expected, "the words of slot {ticket}");
            self.compare_range(mem, Span::Slot(ticket), INLINE_CAPACITY);
        }
        self.compare_range(mem, Span::Arena(0), to_usize(mem.arena()));
        let oob = (0..self.geometry.oob()).map(Word::Oob);
        for word in WORDS.into_iter().chain(oob) {
            assert_eq!(mem.load(word, Load::Relaxed), self.load(word), "{word:?}");
        }
        for flag in FLAGS {
            assert_eq!(mem.load_flag(flag), self.load_flag(flag), "{flag:?}");
        }
    }

    fn compare_range<M: Memory>(&self, mem: &M, span: Span, len: usize) {
        let mut found = vec![0; len];
        assert_eq!(mem.copy_out(span, 0, &mut found), Ok(()));
        let range = self.range(span, 0, len).expect("all of it");
        assert!(found == self.region[range], "{span:?} contains other bytes");
    }

    /// Compares each byte of the pages with the image.
    fn compare_pages(&mut self, pages: &MappedConnection, found: &mut Vec<u8>) {
        assert_eq!(pages.close_reason(), self.close_reason);
        pages.read(found);
        for at in &self.times {
            self.region[*at..at + 8].copy_from_slice(&found[*at..at + 8]);
        }
        if *found != self.region {
            let at = found.iter().zip(&self.region).position(|(is, should)| is != should);
            panic!("the byte at {at:x?} of the region was changed, and no call named it");
        }
    }
}

fn run<M: Memory>(mem: &M, image: &mut Image, mut bytes: Bytes<'_>) {
    let past = Instant::now();
    for step in 1..=STEPS {
        if bytes.is_empty() {
            break;
        }
        if step % COMPARED == 0 {
            image.compare(mem);
        }
        match bytes.below(16) {
            0..=2 => touch_slot(mem, image, &mut bytes),
            3..=5 => touch_word(mem, image, &mut bytes),
            6..=7 => touch_flag(mem, image, &mut bytes),
            8..=10 => copy_in(mem, image, &mut bytes),
            11..=13 => copy_out(mem, image, &mut bytes),
            14 => wait_and_wake(mem, image, &mut bytes, past),
            _ => mem.fence(bytes.pick(&[Fence::Acquire, Fence::Release, Fence::Full])),
        }
    }
}

fn touch_slot<M: Memory>(mem: &M, image: &mut Image, bytes: &mut Bytes<'_>) {
    let (ticket, field) = (bytes.number(), bytes.pick(&FIELDS));
    let at = image.field(ticket, field);
    if bytes.bool() {
        let value = bytes.number();
        mem.store_slot(ticket, field, value, bytes.pick(&[Store::Relaxed, Store::Release]));
        image.set(at, value);
    }
    let found = mem.load_slot(ticket, field, bytes.pick(&[Load::Relaxed, Load::Acquire]));
    assert_eq!(found, image.get(at), "{field:?} of {ticket:#x}");
}

fn touch_word<M: Memory>(mem: &M, image: &mut Image, bytes: &mut Bytes<'_>) {
    let word = match bytes.below(8) {
        index @ 0..=5 => WORDS[index],
        _ => Word::Oob(bytes.u32()),
    };
    let value = bytes.number();
    match bytes.below(3) {
        0 => {
            mem.store(word, value, bytes.pick(&[Store::Relaxed, Store::Release]));
            image.store(word, value);
        }
        1 => {
            image.close_reason = if image.close_reason == 0 { value } else { image.close_reason };
            assert_eq!(mem.set_close_reason(value), image.close_reason, "the first close reason stays");
        }
        _ => {}
    }
    assert_eq!(mem.load(word, bytes.pick(&[Load::Relaxed, Load::Acquire])), image.load(word), "{word:?}");
}

fn touch_flag<M: Memory>(mem: &M, image: &mut Image, bytes: &mut Bytes<'_>) {
    let flag = bytes.pick(&FLAGS);
    match bytes.below(3) {
        0 => {
            let value = if bytes.bool() { bytes.u32() } else { bytes.u8().into() };
            mem.store_flag(flag, value);
            image.flag(flag).copy_from_slice(&value.to_ne_bytes());
        }
        1 => {
            assert_eq!(mem.take_flag(flag), image.load_flag(flag), "{flag:?}");
            image.flag(flag).fill(0);
        }
        _ => {}
    }
    assert_eq!(mem.load_flag(flag), image.load_flag(flag), "{flag:?}");
}

fn copy_in<M: Memory>(mem: &M, image: &mut Image, bytes: &mut Bytes<'_>) {
    let (span, at, len) = range(bytes, &image.geometry);
    let (seed, tail) = (bytes.u8(), bytes.pick(&[Padding::Zero, Padding::Keep]));
    let from: Vec<u8> = std::iter::successors(Some(seed | 1), |b| Some(b.wrapping_mul(5).wrapping_add(2)))
        .take(len)
        .collect();
    let expected = image.range(span, at, len);
    assert_eq!(
        mem.copy_in(span, at, &from, tail),
        expected.clone().map(drop),
        "{len} bytes at {at} of {span:?}"
    );
    if let Ok(range) = expected {
        let end = range.end;
        image.region[range].copy_from_slice(&from);
        if tail == Padding::Zero && len > 0 {
            image.region[end..end.next_multiple_of(8)].fill(0);
        }
    }
}

fn copy_out<M: Memory>(mem: &M, image: &mut Image, bytes: &mut Bytes<'_>) {
    let (span, at, len) = range(bytes, &image.geometry);
    // Sanitizers do not see the instructions that copy. The guard bytes detect what they would report.
    let mut buffer = vec![BLANK; len + 2 * GUARD];
    let copied = mem.copy_out(span, at, &mut buffer[GUARD..GUARD + len]);
    let expected = image.range(span, at, len);
    assert_eq!(copied, expected.clone().map(drop), "{len} bytes at {at} of {span:?}");
    let (before, rest) = buffer.split_at(GUARD);
    let (found, after) = rest.split_at(len);
    assert!(
        before.iter().chain(after).all(|byte| *byte == BLANK),
        "bytes outside of the buffer were changed"
    );
    match expected {
        Ok(range) => assert!(found == &image.region[range], "{len} bytes at {at} of {span:?}"),
        Err(OutOfBounds) => {
            assert!(found.iter().all(|byte| *byte == BLANK), "a refused copy changed the buffer")
        }
    }
}

fn wait_and_wake<M: Memory>(mem: &M, image: &mut Image, bytes: &mut Bytes<'_>, past: Instant) {
    let (flag, patience) = (bytes.pick(&FLAGS), bytes.u32());
    if image.load_flag(flag) != 1 {
        assert_eq!(mem.wait(flag, None, patience), WaitResult::Early, "a wait slept on a flag that is not 1");
    }
    assert_ne!(mem.wait(flag, Some(past), patience), WaitResult::Slice, "a wait slept past its deadline");
    assert!(mem.has_expired(Some(past)) && !mem.has_expired(None));
    mem.wake(flag);
    match flag {
        Flag::Consumer => image.times.push(image.at.words + words::CONSUMER_WOKEN),
        Flag::Producer => image.times.push(image.at.words + words::PRODUCER_WOKEN),
        Flag::PeerConsumer => {}
    }
}

/// Returns any range. Most are near the end of the slot or of the arena.
fn range(bytes: &mut Bytes<'_>, geometry: &Geometry) -> (Span, usize, usize) {
    let arena = to_usize(geometry.arena());
    let (span, room) = match bytes.below(4) {
        0 => (Span::Slot(bytes.number()), INLINE_CAPACITY),
        1 | 2 => {
            let unit = bytes.below(arena / ARENA_ALIGN + 2);
            (Span::Arena(u32::try_from(unit).expect("small")), arena.saturating_sub(unit * ARENA_ALIGN))
        }
        _ => (Span::Arena(bytes.u32()), 0),
    };
    let at = match bytes.below(8) {
        0 => to_usize(bytes.number()),
        1..=3 => bytes.below(room + 9),
        4 => 0,
        _ => room.saturating_sub(bytes.below(24)),
    };
    let left = room.saturating_sub(at);
    let len = match bytes.below(4) {
        0 => bytes.below(9),
        1 => left,
        2 => bytes.below(left + 1),
        _ => (left + bytes.below(9)).saturating_sub(4),
    };
    (span, at, len)
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("64 bits")
}

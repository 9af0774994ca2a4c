//! Every method of a memory, called with absurd arguments and compared with plain vectors.
//!
//! It runs on every implementation: `tests/memory.rs` brings `Heap`, `src/sys/mapping/tests.rs` brings
//! `Mapping`. Both have a module `mem` beside them, which is where the trait comes from.

use std::time::{Duration, Instant};

use super::mem::{
    Fence, Field, Flag, GRAIN, INLINE, Load, Memory, OutOfBounds, Span, Store, Tail, Woke, Word,
};

const FIELDS: [Field; 3] = [Field::Stamp, Field::Control, Field::Tag];
const FLAGS: [Flag; 3] = [Flag::Consumer, Flag::Producer, Flag::Twin];
const WORDS: [Word; 6] =
    [Word::Head, Word::Wanted, Word::ProducerMark, Word::ConsumerMark, Word::Bell, Word::Fate];

/// What a memory should hold.
pub struct Reference {
    slots: Vec<([u64; 3], [u8; INLINE])>,
    arena: Vec<u8>,
    urgent: Vec<u64>,
    words: [u64; 6],
    flags: [u32; 3],
}

impl Reference {
    /// Of a fresh memory of these sizes, all zero.
    pub fn new(slots: usize, arena: usize, urgent: usize) -> Self {
        Self {
            slots: vec![([0; 3], [0; INLINE]); slots],
            arena: vec![0; arena],
            urgent: vec![0; urgent],
            words: [0; 6],
            flags: [0; 3],
        }
    }

    /// Wants every byte of the memory to be as here; the twin flag stands in another ring.
    #[track_caller]
    pub fn compare<M: Memory>(&self, mem: &M, flags: &[Flag]) {
        assert_eq!((mem.slots(), mem.arena()), (self.slots.len() as u64, self.arena.len() as u64));
        for (ticket, (words, payload)) in (0..).zip(&self.slots) {
            let found = FIELDS.map(|field| mem.load_slot(ticket, field, Load::Acquire));
            assert_eq!(found, *words, "the words of slot {ticket}");
            let mut bytes = [0; INLINE];
            mem.copy_out(Span::Slot(ticket), 0, &mut bytes).expect("a slot");
            assert_eq!(bytes, *payload, "the payload of slot {ticket}");
        }
        let mut arena = vec![0; self.arena.len()];
        mem.copy_out(Span::Arena(0), 0, &mut arena).expect("the arena");
        assert_eq!(arena, self.arena);
        assert_eq!(WORDS.map(|word| mem.load(word, Load::Relaxed)), self.words);
        for (index, word) in (0..).zip(&self.urgent) {
            assert_eq!(mem.load(Word::Urgent(index), Load::Relaxed), *word);
        }
        for flag in flags {
            assert_eq!(mem.load_flag(*flag), self.flags[*flag as usize], "{flag:?}");
        }
    }

    /// The bytes of a range, if there are so many.
    fn range(&mut self, span: Span, at: usize, len: usize) -> Option<&mut [u8]> {
        let end = at.checked_add(len)?;
        match span {
            Span::Slot(ticket) => {
                let index = ticket as usize % self.slots.len();
                self.slots[index].1.get_mut(at..end)
            }
            Span::Arena(place) => self.arena.get_mut(place as usize * GRAIN..)?.get_mut(at..end),
        }
    }

    fn zero_rest(&mut self, span: Span, end: usize) {
        if let Some(rest) = self.range(span, end, end.next_multiple_of(8) - end) {
            rest.fill(0);
        }
    }

    fn word(&mut self, word: Word) -> &mut u64 {
        match word {
            Word::Urgent(index) => {
                let index = index as usize % self.urgent.len();
                &mut self.urgent[index]
            }
            _ => &mut self.words[WORDS.iter().position(|w| *w == word).expect("listed")],
        }
    }
}

/// Does `steps` random things to a fresh memory of these sizes, and compares all of it after each.
pub fn program<M: Memory>(mem: &M, sizes: (usize, usize, usize), seed: u64, steps: usize) -> Reference {
    let mut reference = Reference::new(sizes.0, sizes.1, sizes.2);
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..steps {
        step(mem, &mut reference, &mut random);
        reference.compare(mem, &FLAGS);
    }
    reference
}

fn step<M: Memory>(mem: &M, reference: &mut Reference, random: &mut fastrand::Rng) {
    let (ticket, value) = (ticket(random), random.u64(..));
    let field = FIELDS[random.usize(..3)];
    let word = if random.bool() { Word::Urgent(random.u32(..)) } else { WORDS[random.usize(..5)] };
    let flag = FLAGS[random.usize(..3)];
    match random.u8(..8) {
        0 => {
            mem.store_slot(ticket, field, value, Store::Release);
            let slot = ticket as usize % reference.slots.len();
            reference.slots[slot].0[field as usize] = value;
            assert_eq!(mem.load_slot(ticket, field, Load::Acquire), value);
        }
        1 => {
            mem.store(word, value, Store::Release);
            *reference.word(word) = value;
            assert_eq!(mem.load(word, Load::Acquire), value);
        }
        2 => {
            let value = random.u32(..4) * 0x4000_0001;
            mem.store_flag(flag, value);
            reference.flags[flag as usize] = value;
        }
        3 => {
            let stands = reference.word(Word::Fate);
            *stands = if *stands == 0 { value } else { *stands };
            assert_eq!(mem.settle(value), *stands, "the first verdict stays");
        }
        4..=5 => copy_in(mem, reference, random),
        6 => copy_out(mem, reference, random),
        _ => sleep_or_not(mem, reference, flag),
    }
}

fn copy_in<M: Memory>(mem: &M, reference: &mut Reference, random: &mut fastrand::Rng) {
    let (span, at, len) = range(random, reference.arena.len());
    let tail = if random.bool() { Tail::Zero } else { Tail::Keep };
    let bytes: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
    let expected = match reference.range(span, at, len) {
        Some(to) => {
            to.copy_from_slice(&bytes);
            if tail == Tail::Zero && len > 0 {
                reference.zero_rest(span, at + len);
            }
            Ok(())
        }
        None => Err(OutOfBounds),
    };
    let done = mem.copy_in(span, at, &bytes, tail);
    assert_eq!(done, expected, "{len} bytes at {at} of {span:?}");
}

fn copy_out<M: Memory>(mem: &M, reference: &mut Reference, random: &mut fastrand::Rng) {
    let (span, at, len) = range(random, reference.arena.len());
    let mut bytes = vec![0xA5; len];
    let done = mem.copy_out(span, at, &mut bytes);
    match reference.range(span, at, len) {
        Some(from) => {
            assert_eq!(done, Ok(()), "{len} bytes at {at} of {span:?}");
            assert_eq!(bytes, from);
        }
        None => {
            assert_eq!(done, Err(OutOfBounds), "{len} bytes at {at} of {span:?}");
            assert!(bytes.iter().all(|byte| *byte == 0xA5), "nothing is copied then");
        }
    }
}

fn sleep_or_not<M: Memory>(mem: &M, reference: &Reference, flag: Flag) {
    for fence in [Fence::Acquire, Fence::Release, Fence::Full] {
        mem.fence(fence);
    }
    let past = Instant::now();
    if reference.flags[flag as usize] != 1 {
        assert_eq!(mem.wait(flag, None, u32::MAX), Woke::Early, "nobody sleeps on a flag that is not 1");
    }
    assert_ne!(mem.wait(flag, Some(past), u32::MAX), Woke::Slice, "no sleep goes past its deadline");
    mem.wake(flag);
    mem.doze(Some(past));
    assert!(mem.expired(Some(past)) && !mem.expired(None));
    assert!(!mem.expired(past.checked_add(Duration::from_secs(1 << 40))));
}

/// A sleep that nobody ends lasts until its deadline, or for a slice.
pub fn sleeps_end<M: Memory>(mem: &M) {
    for flag in FLAGS {
        mem.store_flag(flag, 1);
        let end = Instant::now() + Duration::from_millis(20);
        let mut woke = mem.wait(flag, Some(end), u32::MAX);
        while woke == Woke::Early {
            woke = mem.wait(flag, Some(end), u32::MAX); // A signal, or the kernel's whim.
        }
        assert_eq!(woke, Woke::Deadline);
        assert!(Instant::now() >= end, "{flag:?}");
        assert_eq!(mem.wait(flag, Instant::now().checked_add(Duration::from_secs(1 << 40)), 0), Woke::Slice);
        mem.store_flag(flag, 0);
    }
}

/// Tickets from everywhere, most of them near a border.
fn ticket(random: &mut fastrand::Rng) -> u64 {
    let near = [0, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX][random.usize(..6)];
    if random.bool() { random.u64(..) } else { u64::wrapping_add(near, random.u64(..8)).wrapping_sub(4) }
}

/// Ranges from everywhere, most of them near the end of what they are in.
fn range(random: &mut fastrand::Rng, arena: usize) -> (Span, usize, usize) {
    let places = (arena / GRAIN) as u32;
    let (span, room) = match random.u8(..4) {
        0..=1 => (Span::Slot(ticket(random)), INLINE),
        2 => {
            let place = random.u32(..places + 2);
            (Span::Arena(place), arena.saturating_sub(place as usize * GRAIN))
        }
        _ => (Span::Arena([u32::MAX, 1 << 26, 1 << 31, places][random.usize(..4)]), 0),
    };
    let at = match random.u8(..8) {
        0 => [usize::MAX, usize::MAX - 7, 1 << 63, 1 << 32][random.usize(..4)],
        1..=3 => random.usize(..room + 9),
        _ => room.saturating_sub(random.usize(..24)),
    };
    let left = room.saturating_sub(at);
    let len = match random.u8(..4) {
        0 => 0,
        1 => left,
        2 => random.usize(..left + 1),
        _ => (left + random.usize(..9)).saturating_sub(4),
    };
    (span, at, len)
}

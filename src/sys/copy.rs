//! Payload copies between shared pages and private memory: one routine each way.
//!
//! The peer may write to these bytes at any time, so they are only ever touched by relaxed accesses
//! of whole 64-bit words or, on x86-64 and from [`BULK`] bytes on, by inline assembly, which
//! the compiler cannot assume anything about: moves of 16 bytes, or `rep movsb` where that is quicker.
//!
//! # Invariants
//!
//! 1. No reference to shared bytes exists but `&AtomicU64` of one word at a time.
//! 2. Both functions take the range as judged by their caller; they never look at a length in
//!    shared memory.
//! 3. The bulk move runs on bytes that the ring's protocol gives to this side alone: between the
//!    Release that published them and the Acquire that saw it. A peer that writes all the same
//!    garbles its own message and nothing else.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::mem::Tail;

/// From this many bytes on, moves of 16 bytes beat a loop over words.
const BULK: usize = 128;

/// From this many bytes on, the CPU's string move beats both, where it is not slow.
#[cfg(target_arch = "x86_64")]
const STRING_MOVE: usize = 2048;

const WORD: usize = size_of::<u64>();

/// Copies `bytes` to `base + at`.
///
/// # Safety
///
/// `base` is 8-aligned, and `base .. base + at + bytes.len()` rounded up to 8 lies in a mapping that
/// outlives the call and is accessed by nobody but through atomics and these functions.
#[inline]
pub(super) unsafe fn copy_in(base: NonNull<u8>, at: usize, bytes: &[u8], tail: Tail) {
    // SAFETY: the caller gives the whole range, rounded up to words.
    let word = |index: usize| unsafe { word_at(base, index) };
    let mut index = at / WORD;
    let mut rest = bytes;
    if at % WORD != 0 && !bytes.is_empty() {
        let (first, after) = rest.split_at(rest.len().min(WORD - at % WORD));
        patch(word(index), at % WORD, first, after.is_empty() && tail == Tail::Zero);
        index += 1;
        rest = after;
    }
    let whole = rest.len() / WORD * WORD;
    let (body, last) = rest.split_at(whole);
    if whole >= BULK && cfg!(target_arch = "x86_64") {
        // SAFETY: `index * 8 + whole` is at most `at + bytes.len()`; `body` is private memory.
        unsafe { bulk_move(base.add(index * WORD).as_ptr(), body.as_ptr(), whole) };
    } else {
        for (i, chunk) in body.chunks_exact(WORD).enumerate() {
            word(index + i).store(from_chunk(chunk), Ordering::Relaxed);
        }
    }
    if !last.is_empty() {
        patch(word(index + whole / WORD), 0, last, tail == Tail::Zero);
    }
}

/// Copies from `base + at` into `bytes`.
///
/// # Safety
///
/// As for [`copy_in`].
#[inline]
pub(super) unsafe fn copy_out(base: NonNull<u8>, at: usize, bytes: &mut [u8]) {
    // SAFETY: the caller gives the whole range, rounded up to words.
    let word = |index: usize| unsafe { word_at(base, index) }.load(Ordering::Relaxed).to_le_bytes();
    let mut index = at / WORD;
    let mut rest = bytes;
    if at % WORD != 0 {
        let (first, after) = rest.split_at_mut(rest.len().min(WORD - at % WORD));
        first.copy_from_slice(&word(index)[at % WORD..at % WORD + first.len()]);
        index += 1;
        rest = after;
    }
    let whole = rest.len() / WORD * WORD;
    let (body, last) = rest.split_at_mut(whole);
    if whole >= BULK && cfg!(target_arch = "x86_64") {
        // SAFETY: `index * 8 + whole` is at most `at + bytes.len()`; `body` is private memory.
        unsafe { bulk_move(body.as_mut_ptr(), base.add(index * WORD).as_ptr(), whole) };
    } else {
        for (i, chunk) in body.chunks_exact_mut(WORD).enumerate() {
            chunk.copy_from_slice(&word(index + i));
        }
    }
    if !last.is_empty() {
        last.copy_from_slice(&word(index + whole / WORD)[..last.len()]);
    }
}

/// # Safety
///
/// `base` is 8-aligned and word `index` lies in a mapping that outlives `'a`.
#[inline]
unsafe fn word_at<'a>(base: NonNull<u8>, index: usize) -> &'a AtomicU64 {
    // SAFETY: in the mapping and aligned by the caller's promise; only atomics touch it.
    unsafe { AtomicU64::from_ptr(base.add(index * WORD).cast().as_ptr()) }
}

/// Writes some bytes of one word and keeps the others, or zeroes those behind.
#[inline]
fn patch(word: &AtomicU64, at: usize, bytes: &[u8], zero_rest: bool) {
    let mut value = match at == 0 && zero_rest {
        true => [0; WORD],
        false => word.load(Ordering::Relaxed).to_le_bytes(),
    };
    value[at..at + bytes.len()].copy_from_slice(bytes);
    if zero_rest {
        value[at + bytes.len()..].fill(0);
    }
    word.store(u64::from_le_bytes(value), Ordering::Relaxed);
}

#[inline]
fn from_chunk(chunk: &[u8]) -> u64 {
    let mut value = [0; WORD];
    value.copy_from_slice(chunk);
    u64::from_le_bytes(value)
}

/// Copies `len` bytes, a multiple of 8 and at least [`BULK`].
///
/// # Safety
///
/// Both ranges of `len` bytes are mapped for the call and do not overlap.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn bulk_move(to: *mut u8, from: *const u8, len: usize) {
    if len < STRING_MOVE || near_alias(to, from) {
        let blocks = len / BLOCK * BLOCK;
        // SAFETY: parts of the two ranges; the second covers the end once more, in the same direction.
        unsafe {
            vector_move(to, from, blocks);
            vector_move(to.add(len - BLOCK), from.add(len - BLOCK), BLOCK);
        }
    } else {
        // SAFETY: the caller's promise.
        unsafe { byte_move(to, from, len) };
    }
}

/// Whether a load of the string move would look to the CPU like the store shortly before it, which
/// makes it many times slower: addresses that differ by less than a line, but for multiples of 4096.
#[cfg(target_arch = "x86_64")]
fn near_alias(to: *mut u8, from: *const u8) -> bool {
    let distance = to.addr().wrapping_sub(from.addr()) % 4096;
    distance != 0 && distance < 64
}

/// What [`vector_move`] moves at once.
#[cfg(target_arch = "x86_64")]
const BLOCK: usize = 64;

/// # Safety
///
/// Both ranges of `len` bytes, a positive multiple of [`BLOCK`], are mapped and do not overlap.
#[cfg(target_arch = "x86_64")]
unsafe fn vector_move(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the instructions touch exactly the two ranges, from their ends counted back to zero.
    unsafe {
        std::arch::asm!(
            "2:",
            "movups {a}, [{from} + {at}]",
            "movups {b}, [{from} + {at} + 16]",
            "movups {c}, [{from} + {at} + 32]",
            "movups {d}, [{from} + {at} + 48]",
            "movups [{to} + {at}], {a}",
            "movups [{to} + {at} + 16], {b}",
            "movups [{to} + {at} + 32], {c}",
            "movups [{to} + {at} + 48], {d}",
            "add {at}, 64",
            "jnz 2b",
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            from = in(reg) from.add(len),
            to = in(reg) to.add(len),
            at = inout(reg) len.wrapping_neg() => _,
            options(nostack)
        );
    }
}

/// # Safety
///
/// Both ranges of `len` bytes are mapped for the call and do not overlap.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn byte_move(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the instruction touches exactly the two ranges; the direction flag is clear by the ABI.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Other CPUs stay with words, and never come here.
///
/// # Safety
///
/// None is needed: it does nothing.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn bulk_move(_to: *mut u8, _from: *const u8, _len: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn both_moves_copy_every_length() {
        let from: Vec<u8> = (0..=255).cycle().take(3000).collect();
        for len in (BULK..2100).step_by(8) {
            for skew in [0, 1, 8, 63] {
                let (mut by_vector, mut by_byte) = (vec![0; 3000], vec![0; 3000]);
                let blocks = len / BLOCK * BLOCK;
                // SAFETY: all three have 3000 bytes, more than `skew + len`.
                unsafe {
                    vector_move(by_vector.as_mut_ptr().add(skew), from.as_ptr(), blocks);
                    let last = len - BLOCK;
                    vector_move(by_vector.as_mut_ptr().add(skew + last), from.as_ptr().add(last), BLOCK);
                    byte_move(by_byte.as_mut_ptr().add(skew), from.as_ptr(), len);
                }
                assert_eq!(by_vector, by_byte, "{len}");
                assert_eq!(by_byte[skew..skew + len], from[..len], "{len}");
                assert!(by_byte[..skew].iter().chain(&by_byte[skew + len..]).all(|b| *b == 0));
            }
        }
    }

    fn shared(words: usize) -> Vec<AtomicU64> {
        (0..words).map(|_| AtomicU64::new(u64::MAX)).collect()
    }

    #[test]
    fn every_size_at_every_offset_comes_back_and_touches_nothing_else() {
        let mut sizes: Vec<usize> = (0..=300).collect();
        sizes.extend([511, 512, 513, 519, 520, 1023, 1024, 1025, 4095, 4097]);
        for len in sizes {
            for at in 0..=17 {
                for tail in [Tail::Zero, Tail::Keep] {
                    let pages = shared((at + len) / 8 + 3);
                    let base = NonNull::from(&pages[0]).cast::<u8>();
                    let bytes: Vec<u8> =
                        (0..len).map(|i| u8::try_from((i * 7 + at) % 256).unwrap()).collect();
                    let mut back = vec![0; len];
                    // SAFETY: `pages` has more than `at + len` bytes and lives on.
                    unsafe { copy_in(base, at, &bytes, tail) };
                    // SAFETY: as above.
                    unsafe { copy_out(base, at, &mut back) };
                    assert_eq!(back, bytes, "{len} at {at}");
                    let all: Vec<u8> =
                        pages.iter().flat_map(|w| w.load(Ordering::Relaxed).to_le_bytes()).collect();
                    let end = at + len;
                    let zeroed = if len > 0 && tail == Tail::Zero { end.next_multiple_of(8) } else { end };
                    assert!(all[..at].iter().all(|b| *b == 255), "before {len} at {at}");
                    assert!(all[end..zeroed].iter().all(|b| *b == 0), "rest {len} at {at}");
                    assert!(all[zeroed..].iter().all(|b| *b == 255), "behind {len} at {at}");
                }
            }
        }
    }
}

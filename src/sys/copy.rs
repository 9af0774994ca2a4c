//! Copies of payloads between shared pages and private memory: one function for each direction.
//!
//! The peer may write to these bytes at any time. So this code accesses them only by relaxed accesses of whole 64-bit
//! words or, on x86-64 and from [`SHORT`] bytes on, by inline assembly with moves of 16 or 32 bytes, about which the
//! compiler can assume nothing.
//!
//! # Invariants
//!
//! 1. The only references to shared bytes are `&AtomicU64` of single words.
//! 2. The caller has validated the range. Both functions never read a length from shared memory.
//! 3. The moves access bytes that the ring's protocol gives to this side alone: between the Release that published them
//!    and the Acquire that saw it. A peer that writes there nevertheless corrupts its own message and nothing else.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::Padding;

#[cfg(target_arch = "x86_64")]
use x86_64::move_bytes;

const WORD: usize = size_of::<u64>();

/// Fewer bytes than these are two words at most.
const SHORT: usize = 2 * WORD;

/// Copies `bytes` to `base + at`.
///
/// # Safety
///
/// `base` is 8-aligned, and `base .. base + at + bytes.len()` rounded up to 8 is in a mapping that outlives the call
/// and that is accessed only through atomics and these functions.
#[inline(always)]
pub(super) unsafe fn copy_in(base: NonNull<u8>, at: usize, bytes: &[u8], tail: Padding) {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= SHORT {
        let end = at + bytes.len();
        if end % WORD != 0 && tail == Padding::Zero {
            // SAFETY: the caller's promise covers the whole range, rounded up to words.
            unsafe { word_at(base, end / WORD) }.store(0, Ordering::Relaxed);
        }
        // SAFETY: the caller gives the range; `bytes` is private memory.
        return unsafe { move_bytes(base.as_ptr().add(at), bytes.as_ptr(), bytes.len()) };
    }
    if at % WORD == 0 && bytes.len() < SHORT && tail == Padding::Zero {
        let (first, second) = pack(bytes);
        if !bytes.is_empty() {
            // SAFETY: the caller gives the whole range, rounded up to words.
            unsafe { word_at(base, at / WORD) }.store(first, Ordering::Relaxed);
        }
        if bytes.len() > WORD {
            // SAFETY: as above.
            unsafe { word_at(base, at / WORD + 1) }.store(second, Ordering::Relaxed);
        }
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { copy_in_words(base, at, bytes, tail) }
}

/// # Safety
///
/// As for [`copy_in`].
#[inline(never)]
unsafe fn copy_in_words(base: NonNull<u8>, at: usize, bytes: &[u8], tail: Padding) {
    // SAFETY: the caller gives the whole range, rounded up to words.
    let word = |index: usize| unsafe { word_at(base, index) };
    let mut index = at / WORD;
    let mut rest = bytes;
    if at % WORD != 0 && !bytes.is_empty() {
        let (first, after) = rest.split_at(rest.len().min(WORD - at % WORD));
        patch(word(index), at % WORD, first, after.is_empty() && tail == Padding::Zero);
        index += 1;
        rest = after;
    }
    let whole = rest.len() / WORD * WORD;
    let (body, last) = rest.split_at(whole);
    for (i, chunk) in body.chunks_exact(WORD).enumerate() {
        word(index + i).store(from_chunk(chunk), Ordering::Relaxed);
    }
    if !last.is_empty() {
        patch(word(index + whole / WORD), 0, last, tail == Padding::Zero);
    }
}

/// Copies from `base + at` into `bytes`.
///
/// # Safety
///
/// As for [`copy_in`].
#[inline(always)]
pub(super) unsafe fn copy_out(base: NonNull<u8>, at: usize, bytes: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= SHORT {
        // SAFETY: the caller gives the range; `bytes` is private memory.
        return unsafe { move_bytes(bytes.as_mut_ptr(), base.as_ptr().add(at), bytes.len()) };
    }
    if at == 0 && bytes.len() < SHORT {
        // SAFETY: the caller gives the whole range, rounded up to words.
        let word = |index: usize| unsafe { word_at(base, index) }.load(Ordering::Relaxed);
        let first = if bytes.is_empty() { 0 } else { word(0) };
        let second = if bytes.len() > WORD { word(1) } else { 0 };
        return unpack(bytes, first, second);
    }
    // SAFETY: the caller's promise.
    unsafe { copy_out_words(base, at, bytes) }
}

/// Packs fewer than [`SHORT`] bytes into two words, padded with zeros.
#[inline(always)]
fn pack(bytes: &[u8]) -> (u64, u64) {
    let len = bytes.len();
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        // The bytes of the last eight that are also in the first word are shifted out of the second word.
        let second = u64::from_le_bytes(*last) >> 1 >> (8 * (SHORT - 1 - len) + 7);
        return (u64::from_le_bytes(*first), second);
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let (first, last) = (u32::from_le_bytes(*first), u32::from_le_bytes(*last));
        return (u64::from(first) | u64::from(last) << (8 * (len - 4)), 0);
    }
    let (Some(first), Some(middle), Some(last)) = (bytes.first(), bytes.get(len / 2), bytes.last()) else {
        return (0, 0);
    };
    let at = |byte: u8, index: usize| u64::from(byte) << (8 * index);
    (at(*first, 0) | at(*middle, len / 2) | at(*last, len - 1), 0)
}

/// The reverse of [`pack`].
#[inline(always)]
fn unpack(bytes: &mut [u8], first: u64, second: u64) {
    let len = bytes.len();
    let both = u128::from(first) | u128::from(second) << 64;
    if let Some(front) = bytes.first_chunk_mut() {
        *front = first.to_le_bytes();
        if let Some(back) = bytes.last_chunk_mut() {
            *back = low_half(both >> (8 * (len - WORD))).to_le_bytes();
        }
    } else if let Some(front) = bytes.first_chunk_mut::<4>() {
        front.copy_from_slice(&first.to_le_bytes()[..4]);
        if let Some(back) = bytes.last_chunk_mut::<4>() {
            back.copy_from_slice(&(first >> (8 * (len - 4))).to_le_bytes()[..4]);
        }
    } else {
        for (index, byte) in bytes.iter_mut().enumerate().take(3) {
            *byte = first.to_le_bytes()[index];
        }
    }
}

#[inline(always)]
fn low_half(value: u128) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "only the low half is needed")]
    let low = value as u64;
    low
}

/// # Safety
///
/// As for [`copy_in`].
#[inline(never)]
unsafe fn copy_out_words(base: NonNull<u8>, at: usize, bytes: &mut [u8]) {
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
    for (i, chunk) in body.chunks_exact_mut(WORD).enumerate() {
        chunk.copy_from_slice(&word(index + i));
    }
    if !last.is_empty() {
        last.copy_from_slice(&word(index + whole / WORD)[..last.len()]);
    }
}

/// # Safety
///
/// `base` is 8-aligned, and word `index` is in a mapping that outlives `'a`.
#[inline]
unsafe fn word_at<'a>(base: NonNull<u8>, index: usize) -> &'a AtomicU64 {
    // SAFETY: in the mapping and aligned by the caller's promise; it is accessed by atomics only.
    unsafe { AtomicU64::from_ptr(base.add(index * WORD).cast().as_ptr()) }
}

/// Writes some bytes of one word. Keeps the other bytes, or zeroes those after the written ones.
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

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    //! The moves of x86-64, in inline assembly. The length determines the method:
    //!
    //! | bytes | |
    //! |---|---|
    //! | 16 to 128 | a few moves of 16 bytes that overlap |
    //! | more | blocks of 64, by moves of 32 bytes if the CPU has AVX, else of 16 |
    //!
    //! # Proof
    //!
    //! Unit tests: every length at several offsets, each move against the others.

    use super::SHORT;

    /// The most bytes that [`short_move`] copies.
    pub(super) const LONGEST_SHORT: usize = 128;

    /// Copies [`SHORT`] bytes or more.
    ///
    /// # Safety
    ///
    /// Both ranges of `len` bytes are mapped for the call and do not overlap.
    #[inline(always)]
    pub(super) unsafe fn move_bytes(to: *mut u8, from: *const u8, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { if len <= LONGEST_SHORT { short_move(to, from, len) } else { long_move(to, from, len) } }
    }

    /// Copies from [`SHORT`] to [`LONGEST_SHORT`] bytes.
    ///
    /// # Safety
    ///
    /// Both ranges of `len` bytes are mapped for the call and do not overlap.
    #[inline(always)]
    unsafe fn short_move(to: *mut u8, from: *const u8, len: usize) {
        // SAFETY: each pair accesses the 16 bytes from `at` on, and the 16 bytes that end `at` before the end. Both are
        // in the ranges, since `at + 16 <= len` in each branch.
        let pair = |at: usize| unsafe { pair_move(to, from, at, len - SHORT - at) };
        pair(0);
        if len > 32 {
            pair(16);
            if len > 64 {
                pair(32);
                pair(48);
            }
        }
    }

    /// Copies 16 bytes at `front`, and 16 at `back`.
    ///
    /// # Safety
    ///
    /// These bytes of both ranges are mapped for the call; the ranges do not overlap.
    #[inline(always)]
    unsafe fn pair_move(to: *mut u8, from: *const u8, front: usize, back: usize) {
        // SAFETY: the instructions access exactly these bytes.
        unsafe {
            std::arch::asm!(
                "movups {a}, [{from_front}]",
                "movups {b}, [{from} + {back}]",
                "movups [{to_front}], {a}",
                "movups [{to} + {back}], {b}",
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                from = in(reg) from,
                to = in(reg) to,
                from_front = in(reg) from.add(front),
                to_front = in(reg) to.add(front),
                back = in(reg) back,
                options(nostack, preserves_flags)
            );
        }
    }

    /// Copies more than [`LONGEST_SHORT`] bytes.
    ///
    /// # Safety
    ///
    /// Both ranges of `len` bytes are mapped for the call and do not overlap.
    #[inline(never)]
    pub(super) unsafe fn long_move(to: *mut u8, from: *const u8, len: usize) {
        // SAFETY: the caller's promise, and `wide_move` is used only if the CPU has AVX.
        unsafe {
            if std::arch::is_x86_feature_detected!("avx") {
                in_blocks(to, from, len, wide_move);
            } else {
                in_blocks(to, from, len, vector_move);
            }
        }
    }

    /// Copies at least a [`BLOCK`]: whole blocks, then one more block that ends at the end of the range.
    ///
    /// # Safety
    ///
    /// As for [`long_move`], and the CPU has the instructions that `blocks` uses.
    #[inline(always)]
    pub(super) unsafe fn in_blocks(
        to: *mut u8,
        from: *const u8,
        len: usize,
        blocks: unsafe fn(*mut u8, *const u8, usize),
    ) {
        let last = len - BLOCK;
        // SAFETY: parts of the two ranges.
        unsafe {
            blocks(to, from, len / BLOCK * BLOCK);
            blocks(to.add(last), from.add(last), BLOCK);
        }
    }

    /// The bytes that one iteration of [`vector_move`] copies.
    const BLOCK: usize = 64;

    /// # Safety
    ///
    /// Both ranges of `len` bytes, a positive multiple of [`BLOCK`], are mapped and do not overlap.
    pub(super) unsafe fn vector_move(to: *mut u8, from: *const u8, len: usize) {
        // SAFETY: the instructions access exactly the two ranges; the index counts from `-len` up to zero, relative to
        // their ends.
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
    /// As for [`vector_move`], and the CPU has AVX. A cache line takes two stores then instead of four, so the CPU
    /// buffers fewer stores while it waits for lines that the other side's CPU holds.
    pub(super) unsafe fn wide_move(to: *mut u8, from: *const u8, len: usize) {
        // SAFETY: the instructions access exactly the two ranges; the index counts from `-len` up to zero, relative to
        // their ends.
        unsafe {
            std::arch::asm!(
                "2:",
                "vmovups ymm0, [{from} + {at}]",
                "vmovups ymm1, [{from} + {at} + 32]",
                "vmovups [{to} + {at}], ymm0",
                "vmovups [{to} + {at} + 32], ymm1",
                "add {at}, 64",
                "jnz 2b",
                "vzeroupper",
                // `vzeroupper` changes the upper halves of all these registers.
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                from = in(reg) from.add(len),
                to = in(reg) to.add(len),
                at = inout(reg) len.wrapping_neg() => _,
                options(nostack)
            );
        }
    }
}

#[cfg(test)]
mod tests;

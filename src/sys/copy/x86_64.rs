//! The moves of x86-64, in inline assembly: which one for which length.
//!
//! | bytes | |
//! |---|---|
//! | 16 to 128 | a few moves of 16 bytes that overlap |
//! | more | blocks of 64, by moves of 32 bytes where the CPU has AVX, and of 16 where not |
//!
//! # Proof
//!
//! Unit tests: every length at several offsets, each move against the others.

use super::SHORT;

/// The longest that a few moves of 16 bytes copy.
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
    // SAFETY: each pair touches the 16 bytes from `at` on, and the 16 that end `at` before the end: both lie in the
    // ranges, since `at + 16 <= len` in each branch.
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
    // SAFETY: the instructions touch exactly these bytes.
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
    // SAFETY: the caller's promise, and `avx` says what the CPU has.
    unsafe {
        if std::arch::is_x86_feature_detected!("avx") {
            in_blocks(to, from, len, wide_move);
        } else {
            in_blocks(to, from, len, vector_move);
        }
    }
}

/// Copies at least a [`BLOCK`]: whole blocks, then the last one once more from where it covers the end.
///
/// # Safety
///
/// As for [`long_move`], and the CPU has what `blocks` needs.
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

/// What [`vector_move`] moves at once.
const BLOCK: usize = 64;

/// # Safety
///
/// Both ranges of `len` bytes, a positive multiple of [`BLOCK`], are mapped and do not overlap.
pub(super) unsafe fn vector_move(to: *mut u8, from: *const u8, len: usize) {
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
/// As for [`vector_move`], on a CPU that has AVX. A line is two stores then and not four, of which the CPU holds so many
/// less while it waits for lines that the other side has.
pub(super) unsafe fn wide_move(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the instructions touch exactly the two ranges, from their ends counted back to zero.
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
            // Their upper halves are zeroed, all of them.
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

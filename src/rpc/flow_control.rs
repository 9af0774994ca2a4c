//! Windows: how much of a stream, an upload or the pushes may be under way, and when a receiver gives credit back.
//!
//! # Invariants
//!
//! 1. A sender that has waited long enough may send its item: a receiver that has consumed everything holds back less than
//!    [`credit_threshold`] of a window, and no item costs more than the rest.
//! 2. An empty item costs something, so a window bounds the number of items too.
//!
//! # Proof
//!
//! The test below, and `tests/rpc/flow_control.rs` between a client and a server.

/// The cost of a chunk or push in addition to its bytes.
pub const CHUNK_COST: u32 = 64;

/// The smallest window, in bytes.
pub const MIN_WINDOW: u32 = 1024;

/// Returns what a chunk or push of `len` bytes costs of its window.
#[inline]
pub fn window_cost(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX).saturating_add(CHUNK_COST)
}

/// Returns how much credit a receiver collects before it gives it back: one frame for a quarter of the window.
#[inline]
pub fn credit_threshold(window: u32) -> u32 {
    (window / 4).max(1)
}

/// Returns the length of the longest chunk or push, in bytes, on a connection whose longest message is `max_message`.
pub fn max_chunk(window: u32, max_message: usize) -> usize {
    let cost = window - window / 4;
    (cost.saturating_sub(CHUNK_COST) as usize).min(max_message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_credit_that_is_held_back_is_never_what_a_sender_needs() {
        for window in (MIN_WINDOW..MIN_WINDOW + 100).chain([1 << 20, (1 << 20) + 3, u32::MAX - 1, u32::MAX]) {
            let held_back = credit_threshold(window) - 1;
            let longest = window_cost(max_chunk(window, usize::MAX));
            assert!(longest <= window - held_back, "{window}");
            assert!(longest > window / 2, "{window}");
            assert_eq!(max_chunk(window, 10), 10);
        }
    }
}

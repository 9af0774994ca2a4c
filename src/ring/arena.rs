//! Arena offsets of the payloads: the producer's private bookkeeping. It accesses no shared memory.
//!
//! An arena offset is counted from the start of the ring and only grows. The byte in the arena that it names is the
//! offset modulo the arena's size. A payload never wraps: if it does not fit before the end of the arena, it starts at
//! the front of the arena, in the next cycle.
//!
//! ```text
//!        freed                   offset
//!  ........|######## in use ########|............     offset - freed <= arena
//! ```

use crate::memory::ARENA_ALIGN;

/// Restart threshold: how many bytes of the arena the producer uses before it checks whether everything is consumed. If
/// so, it starts at the front of the arena again, so light traffic stays in the caches closest to both CPUs.
const RESTART_THRESHOLD: u64 = 4 << 10;

/// The same after a check that found messages in flight. In steady traffic each check costs a cache line that the
/// consumer has just written, so the checks are rarer then.
const RECHECK_INTERVAL: u64 = 32 << 10;

/// Payloads longer than this use the first [`CYCLE_LEN`] bytes of the arena in turn. If two CPUs write and read the
/// same few lines again and again, they wait for each other at each line; lines that were written a cycle ago have left
/// the other CPU's caches. Shorter payloads restart early, which keeps the memory small that light traffic touches.
const LARGE: u64 = 32 << 10;

/// How many bytes such payloads use before the producer checks for a restart at the front, if the arena is larger.
const CYCLE_LEN: u64 = 1 << 20;

/// The last offset that a restart leads to. Each restart rounds the offset up to a whole arena, so the offset would
/// overflow in the end.
const LAST_OFFSET: u64 = 1 << 62;

/// The producer's view of the arena.
#[derive(Debug)]
pub(super) struct Arena {
    size: u64,
    /// All bytes before this offset are released.
    freed: u64,
    /// The offset at the last check for a restart.
    looked: u64,
    /// Bytes that may be used behind `looked` before the next check.
    reach: u64,
    /// The offset behind each ticket's payload, by slot.
    ends: Box<[u64]>,
    /// The most slots and the most bytes that a check has found in use.
    most: (u64, u64),
}

impl Arena {
    pub(super) fn new(size: u64, slots: u64) -> Self {
        let ends = (0..slots).map(|_| 0).collect();
        Self { size, freed: 0, looked: 0, reach: RESTART_THRESHOLD, ends, most: (0, 0) }
    }

    /// Returns where `len` contiguous bytes stand if they begin at `offset` or later: their start and their end.
    #[inline]
    pub(super) fn fit_contiguous(&self, offset: u64, len: u64) -> (u64, u64) {
        let room = self.size - (offset & (self.size - 1));
        let len = len.next_multiple_of(ARENA_ALIGN as u64);
        let start = if len <= room { offset } else { offset + room };
        (start, start + len)
    }

    /// Returns whether the producer may write everything before `end`.
    #[inline]
    pub(super) fn has_room(&self, end: u64) -> bool {
        end - self.freed <= self.size
    }

    /// Notes that the producer has read the head and found so many slots in use.
    #[inline(always)]
    pub(super) fn note_fill(&mut self, slots: u64) {
        self.most.0 = self.most.0.max(slots);
    }

    /// Returns the most slots and the most bytes that a check has found in use.
    pub(super) fn peak(&self) -> (u64, u64) {
        self.most
    }

    /// Returns whether the producer should check for a restart before it reserves `len` bytes that end at `end`.
    ///
    /// It is also true if `end` is before the last check: that check was made for reservations that were never
    /// published.
    #[inline]
    pub(super) fn needs_recheck(&self, end: u64, len: u64) -> bool {
        let reach = if len > LARGE { CYCLE_LEN } else { self.reach.min(self.size / 4) };
        end.wrapping_sub(self.looked) > reach
    }

    /// Notes that the producer has checked for a restart at this offset. All bytes between `freed` and the offset are
    /// in use.
    pub(super) fn note_check(&mut self, offset: u64) {
        (self.looked, self.reach) = (offset, RECHECK_INTERVAL);
        self.most.1 = self.most.1.max(offset.saturating_sub(self.freed));
    }

    /// Starts at the front of the arena again and returns the new offset. The caller has checked that everything is
    /// released: [`is_free`](Self::is_free).
    pub(super) fn restart(&mut self, offset: u64) -> u64 {
        let mut start = offset.next_multiple_of(self.size);
        if start > LAST_OFFSET {
            // Offsets start at 0 again. A ticket that is still in flight has no payload in the arena, so its end may be
            // 0 as well.
            self.ends.fill(0);
            start = 0;
        }
        (self.freed, self.looked, self.reach) = (start, start, RESTART_THRESHOLD);
        start
    }

    /// Remembers the offset behind a ticket's payload.
    #[inline(always)]
    pub(super) fn set_end(&mut self, ticket: u64, offset: u64) {
        let mask = self.ends.len().wrapping_sub(1);
        #[expect(clippy::cast_possible_truncation, reason = "masked by the number of slots")]
        if let Some(end) = self.ends.get_mut(ticket as usize & mask) {
            *end = offset;
        }
    }

    /// Notes that the ticket and all tickets before it were released.
    ///
    /// The end of a ticket without a payload in the arena may be older than a [`restart`](Self::restart). The maximum
    /// keeps it from undoing the restart.
    pub(super) fn release(&mut self, ticket: u64) {
        self.freed = self.freed.max(*self.end_mut(ticket));
    }

    /// Returns whether all bytes before `offset`, the end of the last payload, are released.
    pub(super) fn is_free(&self, offset: u64) -> bool {
        self.freed == offset
    }

    /// Returns the first ticket in the range whose release makes everything before `end` writable. If no single release
    /// does, returns the last ticket with a payload in the arena.
    ///
    /// It never returns a ticket without a payload in the arena: the consumer may release such a ticket without looking
    /// for a waiting producer.
    pub(super) fn ticket_to_await(&mut self, mut tickets: std::ops::Range<u64>, end: u64) -> u64 {
        let last = tickets.end.saturating_sub(1);
        let awaited = end.saturating_sub(self.size).min(*self.end_mut(last));
        tickets.find(|ticket| *self.end_mut(*ticket) >= awaited).unwrap_or(last)
    }

    #[inline(always)]
    fn end_mut(&mut self, ticket: u64) -> &mut u64 {
        let mask = self.ends.len() as u64 - 1;
        #[expect(clippy::cast_possible_truncation, reason = "masked by the number of slots")]
        &mut self.ends[(ticket & mask) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_never_wrap_and_never_overlap_what_is_in_use() {
        let arena = Arena::new(1024, 4);
        for offset in (0..4096).step_by(64) {
            for len in [1, 63, 64, 65, 104, 105, 512, 1023, 1024] {
                let (start, end) = arena.fit_contiguous(offset, len);
                assert!(start >= offset && end - start >= len && end - start < len + 64);
                assert!(start % 1024 + len <= 1024, "{len} at {offset} wraps");
                assert!(start - offset < 1024, "{len} at {offset}: a cycle is skipped");
            }
        }
    }

    #[test]
    fn the_ticket_needed_is_the_first_that_suffices() {
        let mut arena = Arena::new(1024, 4);
        for (ticket, end) in [(0, 256), (1, 512), (2, 768), (3, 1024)] {
            arena.set_end(ticket, end);
        }
        assert_eq!(arena.ticket_to_await(0..4, 1024 + 64), 0);
        assert_eq!(arena.ticket_to_await(0..4, 1024 + 257), 1);
        assert_eq!(arena.ticket_to_await(0..4, 2048), 3);
        assert_eq!(arena.ticket_to_await(0..4, 4096), 3);
        arena.set_end(3, 768);
        assert_eq!(arena.ticket_to_await(0..4, 4096), 2, "the last has no payload here");
        arena.release(1);
        assert!(arena.has_room(1536) && !arena.has_room(1537));
        assert!(arena.is_free(512) && !arena.is_free(768));
        assert_eq!(arena.restart(768), 1024);
        arena.release(3);
        assert!(arena.is_free(1024), "a release from before the restart undoes it");
        arena.set_end(0, LAST_OFFSET + 64);
        arena.release(0);
        arena.set_end(1, LAST_OFFSET + 64);
        assert_eq!(arena.restart(LAST_OFFSET + 64), 0);
        arena.release(1);
        assert!(arena.is_free(0), "the offsets start at 0 again");
        assert_eq!(arena.restart(1025), 2048);
    }

    #[test]
    fn a_restart_is_checked_soon_in_light_traffic_and_rarely_in_steady_traffic() {
        let (mut small, mut large) = (Arena::new(1024, 4), Arena::new(1 << 20, 4));
        assert!(!small.needs_recheck(256, 64) && small.needs_recheck(257, 64));
        assert!(
            !large.needs_recheck(RESTART_THRESHOLD, 64) && large.needs_recheck(RESTART_THRESHOLD + 1, 64)
        );
        large.note_check(RESTART_THRESHOLD);
        assert!(
            !large.needs_recheck(RESTART_THRESHOLD + RECHECK_INTERVAL, 64)
                && large.needs_recheck(RESTART_THRESHOLD + RECHECK_INTERVAL + 1, 64)
        );
        let start = large.restart(RESTART_THRESHOLD + RECHECK_INTERVAL);
        assert!(
            !large.needs_recheck(start + RESTART_THRESHOLD, 64)
                && large.needs_recheck(start + RESTART_THRESHOLD + 1, 64)
        );
        small.note_check(256);
        assert!(!small.needs_recheck(512, 64) && small.needs_recheck(513, 64));
        assert!(
            small.needs_recheck(128, 64),
            "the last check was for reservations that were never published"
        );
        let half = start + (1 << 19);
        assert!(large.needs_recheck(half, LARGE) && !large.needs_recheck(half, LARGE + 1), "a whole cycle");
        assert!(
            large.needs_recheck(start + CYCLE_LEN + RECHECK_INTERVAL, LARGE + 1),
            "a check after a whole cycle"
        );
    }
}

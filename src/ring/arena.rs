//! Where payloads stand in the arena: the producer's private bookkeeping, with no memory in it.
//!
//! A place is a position that only grows; its offset in the arena is the position modulo the arena's
//! size. A payload never wraps: what does not fit before the end starts at the front of the next lap.
//!
//! ```text
//!        freed                    place
//!  ........|######## in use ########|............     place - freed <= arena
//! ```

use crate::memory::ARENA_ALIGN;

/// How much of the arena is used before the producer looks whether everything is consumed and it can start at the front
/// again: light traffic stays in the caches closest to both CPUs.
const RESTART_THRESHOLD: u64 = 4 << 10;

/// The same after a look in vain: in a flow, each costs a line that the consumer has just written.
const RECHECK_INTERVAL: u64 = 32 << 10;

/// Payloads longer than this go round [`ROUND`] bytes: two CPUs that write and read the same lines again and again wait
/// for each other at each of them, and those of a lap ago have left their caches. Shorter ones keep the memory small that
/// light traffic touches.
const LARGE: u64 = 32 << 10;

/// Where those return to the front, if the arena is larger.
const CYCLE_LEN: u64 = 1 << 20;

/// The last place that a restart leads to: it adds up to a whole arena, each time.
const LAST_OFFSET: u64 = 1 << 62;

/// The producer's view of the arena.
#[derive(Debug)]
pub(super) struct Arena {
    size: u64,
    freed: u64,
    looked: u64,
    /// What may be used beyond it before the next look.
    reach: u64,
    /// The place behind each ticket, by slot.
    ends: Box<[u64]>,
    /// The most slots and bytes that were found taken.
    most: (u64, u64),
}

impl Arena {
    pub(super) fn new(size: u64, slots: u64) -> Self {
        let ends = (0..slots).map(|_| 0).collect();
        Self { size, freed: 0, looked: 0, reach: RESTART_THRESHOLD, ends, most: (0, 0) }
    }

    /// Where `len` bytes would stand, from `place` on: start and end.
    #[inline]
    pub(super) fn fit_contiguous(&self, offset: u64, len: u64) -> (u64, u64) {
        let room = self.size - (offset & (self.size - 1));
        let len = len.next_multiple_of(ARENA_ALIGN as u64);
        let start = if len <= room { offset } else { offset + room };
        (start, start + len)
    }

    /// Whether everything before `end` may be written.
    #[inline]
    pub(super) fn has_room(&self, end: u64) -> bool {
        end - self.freed <= self.size
    }

    /// The head was looked at: so many slots are taken.
    #[inline(always)]
    pub(super) fn note_fill(&mut self, slots: u64) {
        self.most.0 = self.most.0.max(slots);
    }

    /// The most slots and bytes that were found taken.
    pub(super) fn peak(&self) -> (u64, u64) {
        self.most
    }

    /// Whether it is time to look if the arena can be started from the front with so many bytes: also if the last look
    /// was taken further on, for claims that were never published.
    #[inline]
    pub(super) fn needs_recheck(&self, end: u64, len: u64) -> bool {
        let reach = if len > LARGE { CYCLE_LEN } else { self.reach.min(self.size / 4) };
        end.wrapping_sub(self.looked) > reach
    }

    /// Notes that a look was taken at this place: all before it is taken that is not free.
    pub(super) fn note_check(&mut self, offset: u64) {
        (self.looked, self.reach) = (offset, RECHECK_INTERVAL);
        self.most.1 = self.most.1.max(offset.saturating_sub(self.freed));
    }

    /// Everything is [free](Self::is_free): the next place is the front, and all is free.
    pub(super) fn restart(&mut self, offset: u64) -> u64 {
        let mut front = offset.next_multiple_of(self.size);
        if front > LAST_OFFSET {
            // From the start again. What is still in flight has no payload here, and so ends before the first.
            self.ends.fill(0);
            front = 0;
        }
        (self.freed, self.looked, self.reach) = (front, front, RESTART_THRESHOLD);
        front
    }

    /// Remembers the place behind a ticket.
    #[inline(always)]
    pub(super) fn set_end(&mut self, ticket: u64, offset: u64) {
        let mask = self.ends.len().wrapping_sub(1);
        #[expect(clippy::cast_possible_truncation, reason = "masked by the number of slots")]
        if let Some(end) = self.ends.get_mut(ticket as usize & mask) {
            *end = offset;
        }
    }

    /// The ticket and all before it were released.
    ///
    /// One without a payload here may be older than a [`restart`](Self::restart), which it does not undo.
    pub(super) fn release(&mut self, ticket: u64) {
        self.freed = self.freed.max(*self.end_mut(ticket));
    }

    /// Whether all before `place` is released, which is the end of the last payload.
    pub(super) fn is_free(&self, offset: u64) -> bool {
        self.freed == offset
    }

    /// The first ticket in the range whose release makes everything before `end` writable; the last with a payload here
    /// if none does alone.
    ///
    /// Never one without a payload here: its release need not make the consumer look for a sleeper.
    pub(super) fn ticket_to_await(&mut self, mut tickets: std::ops::Range<u64>, end: u64) -> u64 {
        let last = tickets.end.saturating_sub(1);
        let wanted = end.saturating_sub(self.size).min(*self.end_mut(last));
        tickets.find(|ticket| *self.end_mut(*ticket) >= wanted).unwrap_or(last)
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
                assert!(start - offset < 1024, "{len} at {offset}: a lap is skipped");
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
        assert!(arena.is_free(0), "the places have begun again");
        assert_eq!(arena.restart(1025), 2048);
    }

    #[test]
    fn the_front_is_looked_for_soon_in_light_traffic_and_seldom_in_a_flow() {
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
        let front = large.restart(RESTART_THRESHOLD + RECHECK_INTERVAL);
        assert!(
            !large.needs_recheck(front + RESTART_THRESHOLD, 64)
                && large.needs_recheck(front + RESTART_THRESHOLD + 1, 64)
        );
        small.note_check(256);
        assert!(!small.needs_recheck(512, 64) && small.needs_recheck(513, 64));
        assert!(small.needs_recheck(128, 64), "the last look was taken for claims that were never published");
        let far = front + (1 << 19);
        assert!(large.needs_recheck(far, LARGE) && !large.needs_recheck(far, LARGE + 1), "that goes round");
        assert!(
            large.needs_recheck(front + CYCLE_LEN + RECHECK_INTERVAL, LARGE + 1),
            "so far and no further"
        );
    }
}

//! The mutants that no model catches, and why they cannot matter.

use libtest_mimic::Failed;
use loom_tests::weak::Mutant;
use loom_tests::weakened::code::MUTANTS;

/// File, function, what is changed (of several alike in a function, which), and the reason.
type Row = (&'static str, &'static str, &'static str, &'static str);

const SURVIVORS: &[Row] = &[
    ("layout.rs", "decode", "always len <= INLINE as u64", AGAIN),
    ("layout.rs", "in_arena", "always place * GRAIN as u64 <= arena - len", AGAIN),
    ("layout.rs", "short", "never word & 0xFFFF_FFFF == Kind::Inline.code()", QUICKER),
    ("layout.rs", "short", "never len <= longest", QUICKER),
    ("layout.rs", "placed", "never len <= longest", QUICKER),
    ("layout.rs", "placed", "never word &(ABORT |(ABORT - 1)) == Kind::Whole.code()", QUICKER),
    ("layout.rs", "seems_placed", "always word &(ABORT - 1) == Kind::Whole.code()", QUICKER),
    ("layout.rs", "seems_placed", "never word &(ABORT - 1) == Kind::Whole.code()", QUICKER),
    ("ring/post.rs", "post", "never next.ticket < self.limit", QUICKER),
    ("ring/post.rs", "post", "always message.len() > INLINE", QUICKER),
    ("ring/post.rs", "post", "never message.len() > INLINE", AGAIN),
    ("ring/post.rs", "post_parts", "never next.ticket < self.limit", QUICKER),
    ("ring/post.rs", "post_parts", "always len > INLINE", QUICKER),
    ("ring/post.rs", "post_parts", "never len > INLINE", AGAIN),
    ("ring/post.rs", "post_placed", "never self.next.ticket < self.limit", QUICKER),
    ("ring/post.rs", "post_placed", "always message.len() <= INLINE", QUICKER),
    ("ring/post.rs", "post_placed", "never message.len() <= INLINE", AGAIN),
    ("channel/outbound.rs", "send_placed", "always message.len() > self.whole", QUICKER),
    ("ring/producer.rs", "claim_ticket", "always from.ticket >= self.limit", LOOKS),
    ("ring/consumer.rs", "take_from", "always FRONT > 0", AGAIN),
    ("ring/consumer.rs", "take_from", "never FRONT > 0", QUICKER),
    ("ring/consumer.rs", "nobody_waits", "always hidden > 0", QUICKER),
    ("ring/place.rs", "restart", "never front > LAST", LATE),
    ("ring/place.rs", "restart", "always front > LAST", QUICKER),
    ("ring/consumer.rs", "rouse", "never self.due != due(self.head, self.mem.slots())", FUTILE),
    ("ring/post.rs", "stage", "always from.ticket >= self.limit", QUICKER),
    ("ring/post.rs", "stage", "always message.len() > INLINE", QUICKER),
    ("ring/post.rs", "stage", "never message.len() > INLINE", AGAIN),
    ("channel/outbound.rs", "send_framed", "never len <= self.short", QUICKER),
    ("channel/outbound.rs", "stage_at_once", "always message.len() > self.short", QUICKER),
    ("channel/outbound.rs", "send_at_once", "always message.len() > self.short", QUICKER),
    ("ring/park.rs", "asleep", "always mem.load_flag(flag) != 0", TWICE),
    ("ring/park.rs", "sleep", "always empty > EMPTY", NAPS),
    ("ring/park.rs", "sleep", "never empty > EMPTY", NAPS),
    ("ring/place.rs", "far", "never len > LARGE", LOOKS),
    ("ring/place.rs", "far", "always end.wrapping_sub(self.looked) > reach", LOOKS),
    ("channel/inbound.rs", "next", "always self.ring.ticket() == ticket", PATIENCE),
    ("channel/inbound.rs", "next", "never self.ring.ticket() == ticket", PATIENCE),
    ("channel/outbound.rs", "send_cut", "never left > 0 (2)", EARLY),
    ("channel/outbound.rs", "send_cut", "never refuses (2)", EARLY),
    ("channel/incoming.rs", "room", "always len > self.len()", QUICKER),
    ("channel/incoming.rs", "room", "never len > self.len()", ALLOCATOR),
    ("channel/incoming.rs", "room", "always len - self.len() > self.capacity() - self.len()", QUICKER),
    ("channel/incoming.rs", "room", "never len - self.len() > self.capacity() - self.len()", ALLOCATOR),
    ("channel/incoming.rs", "read_on", "always len > buffer.capacity()", ALLOCATOR),
    ("channel/incoming.rs", "read_on", "never len > buffer.capacity()", ALLOCATOR),
    ("channel/partial.rs", "room", "always self.buffer.len() < end", MEMORY),
    ("channel/partial.rs", "is_idle", "never self.state == State::Idle", MEMORY),
    ("channel/mod.rs", "may_wait_on", "always tries > 0", PATIENCE),
    ("channel/mod.rs", "may_wait_on", "never tries > 0", PATIENCE),
    ("channel/mod.rs", "may_wait_on", "always tries > PLAYED", PATIENCE),
    ("channel/mod.rs", "may_wait_on", "never tries > PLAYED", PATIENCE),
    ("rpc/client/desk.rs", "call_at_once", "never seat.books().over.is_some()", LATER),
    ("rpc/client/seat.rs", "is_whole", "never message.tag() == self.id", QUICKER),
    ("rpc/client/seat.rs", "is_whole", "never head == Head::new(Kind::Reply, 0).encode()", QUICKER),
    ("rpc/client/seat.rs", "write", "left out (2)", NO_ROOM),
    ("rpc/client/seat.rs", "read", "left out (4)", NO_MEMORY),
    ("rpc/client/seat.rs", "read", "never own.is_some()", QUICKER),
    ("rpc/client/seat.rs", "read", "never books.waiters == 0", QUICKER),
    ("rpc/client/seat.rs", "take_own", "left out (2)", LATER),
    ("rpc/client/seat.rs", "take_own", "left out (3)", LATER),
    ("rpc/client/seat.rs", "enter", "left out (4)", LATER),
    ("rpc/client/seat.rs", "seek", "left out (4)", NAPS_OF_CALLS),
    ("rpc/client/seat.rs", "stand_by", "left out (4)", QUICKER),
    ("rpc/client/seat.rs", "stand_by", "left out (5)", QUICKER),
    ("rpc/server/attendant.rs", "attend", "left out", NAPS_OF_CALLS),
    ("rpc/server/attendant.rs", "attend", "never tries > 0", NAPS_OF_CALLS),
    ("rpc/server/attendant.rs", "attend", "left out (2)", NAPS_OF_CALLS),
    ("rpc/server/attendant.rs", "round", "left out", QUICKER),
    ("rpc/server/attendant.rs", "say_goodbye", "left out", BUSY),
    ("rpc/server/attendant.rs", "frame", "left out (3)", NO_MEMORY),
    ("rpc/server/attendant.rs", "frame", "left out (4)", NO_MEMORY),
    ("rpc/server/attendant.rs", "in_place", "never hall.is_called_off(id)", CALLED_OFF),
    ("rpc/server/attendant.rs", "flush", "never post.out.ring().next() != before", QUICKER),
    ("rpc/server/hall.rs", "is_notification_wanted", "never self.is_called_off(id)", UNCANCELLED),
    ("rpc/server/hall.rs", "finish", "never post.over.is_some()", LATER),
    ("rpc/server/hall.rs", "finish", "never self.is_called_off(id)", CALLED_OFF),
    ("rpc/server/hall.rs", "answer_whole", "left out (2)", ANSWERED),
    ("rpc/server/hall.rs", "write_chunk", "never self.is_called_off(id)", OBEYED),
    ("rpc/server/hall.rs", "next_chunk", "never self.is_called_off(id)", OBEYED),
    ("rpc/server/post.rs", "answer_now", "never self.table.is_idle()", QUICKER),
    ("rpc/server/post.rs", "answer_now", "never reply.len() <= self.piece", QUICKER),
    ("rpc/server/post.rs", "say", "never bytes.len() > self.piece", QUICKER),
];

const AGAIN: &str = "the memory judges every copy again, with the same end: two bounds stand here";
const FUTILE: &str = "wakes a producer that finds no more room, and sleeps again: a system call, no more";
const LATE: &str = "only after 2^62 bytes: the arena's own unit test goes there";
const TWICE: &str = "the flag is taken in one step and found 0: a look before it saves that step, no more";
const NAPS: &str = "bounds the CPU that a liar can cost: tests/naps.rs, a_peer_that_clears_our_flag_for_ever";
const PATIENCE: &str =
    "counts a liar's flickers, to doze: tests/ring_hostile.rs, a_peer_that_sends_pieces_for_ever";
const EARLY: &str =
    "leaves early once the end is known: a send that has room may be in time or not, and waits for none";
const MEMORY: &str = "costs memory that could be used again, or one more copy: the bytes are the same";
const ALLOCATOR: &str =
    "the buffer grows in another way, which differs only where memory is short: tests/low_memory.rs";
const NO_MEMORY: &str = "no model is short of memory: tests/low_memory.rs";
const BUSY: &str = "looks again at once instead of waiting for room: costs CPU, and nothing else";
const UNCANCELLED: &str = "a well-formed client cancels no notification";
const LOOKS: &str = "loads a head more often than needed, and finds the same";

const LATER: &str = "the end is found by the next step as well, and nothing is sent or received before it";
const QUICKER: &str = "a shorter way to the same: the longer one is taken";
const NO_ROOM: &str = "its time is over, so that the send behind it waits for nothing";
const NAPS_OF_CALLS: &str =
    "counts looks in vain, to nap: bounds the CPU that a liar can cost, as tests/naps.rs does";
const CALLED_OFF: &str = "nobody waits for the answer: one end is as good as another, and there is but one";
const OBEYED: &str = "the attendant ends the call in the table, and that is asked next";
const ANSWERED: &str = "its answer is sent, or the first in its outbox: what else comes for it is a liar's";

/// Why a mutant may survive.
pub(crate) fn why(mutant: &Mutant) -> Option<&'static str> {
    SURVIVORS.iter().find(|row| is_of(row, mutant)).map(|row| row.3)
}

/// Fails for each excuse that no mutant has any more.
pub(crate) fn are_there() -> Result<(), Failed> {
    match SURVIVORS.iter().find(|row| MUTANTS.iter().filter(|it| is_of(row, it)).count() != 1) {
        None => Ok(()),
        Some(row) => Err(format!("not one mutant: {row:?}").into()),
    }
}

/// Whether a row is about this mutant.
fn is_of((file, function, change, _): &Row, mutant: &Mutant) -> bool {
    (mutant.file, mutant.function, mutant.change) == (*file, *function, *change)
}

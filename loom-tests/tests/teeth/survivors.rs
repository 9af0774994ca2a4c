//! The mutants that no model catches, and why they cannot matter.

use libtest_mimic::Failed;
use loom_tests::weak::Mutant;
use loom_tests::weakened::code::MUTANTS;

/// The mutant's label (type, function, kind of change, and which of several in that function), and the reason.
type Row = (&'static str, &'static str);

const SURVIVORS: &[Row] = &[
    ("Control::decode always 2", AGAIN),
    ("in_arena always 3", AGAIN),
    ("Control::short never 1", QUICKER),
    ("Control::short never 2", QUICKER),
    ("Control::placed never 2", QUICKER),
    ("Control::placed never 1", QUICKER),
    ("Control::seems_placed always 1", QUICKER),
    ("Control::seems_placed never 1", QUICKER),
    ("Producer::post never 1", QUICKER),
    ("Producer::post always 2", QUICKER),
    ("Producer::post never 2", AGAIN),
    ("Producer::post_parts never 1", QUICKER),
    ("Producer::post_parts always 2", QUICKER),
    ("Producer::post_parts never 2", AGAIN),
    ("Producer::post_placed never 1", QUICKER),
    ("Producer::post_placed always 2", QUICKER),
    ("Producer::post_placed never 2", AGAIN),
    ("Outbound::send_placed always 1", QUICKER),
    ("Producer::claim_ticket always 2", LOOKS),
    ("Consumer::take_from always 1", AGAIN),
    ("Consumer::take_from never 1", QUICKER),
    ("nobody_waits always 3", QUICKER),
    ("Arena::restart never 1", LATE),
    ("Arena::restart always 1", QUICKER),
    ("Consumer::rouse never 1", FUTILE),
    ("Producer::stage always 1", QUICKER),
    ("Producer::stage always 2", QUICKER),
    ("Producer::stage never 2", AGAIN),
    ("Outbound::send_framed never 1", QUICKER),
    ("Outbound::stage_at_once always 1", QUICKER),
    ("Outbound::send_at_once always 1", QUICKER),
    ("asleep always 1", TWICE),
    ("sleep always 1", NAPS),
    ("sleep never 1", NAPS),
    ("Arena::far never 1", LOOKS),
    ("Arena::far always 2", LOOKS),
    ("Inbound::next always 1", PATIENCE),
    ("Inbound::next never 1", PATIENCE),
    ("Outbound::send_cut never 8", EARLY),
    ("Outbound::send_cut never 9", EARLY),
    ("Vec::room always 1", QUICKER),
    ("Vec::room never 1", ALLOCATOR),
    ("Vec::room always 2", QUICKER),
    ("Vec::room never 2", ALLOCATOR),
    ("Inbound::read_on always 1", ALLOCATOR),
    ("Inbound::read_on never 1", ALLOCATOR),
    ("Partial::room always 2", MEMORY),
    ("Partial::is_idle never 1", MEMORY),
    ("may_wait_on always 1", PATIENCE),
    ("may_wait_on never 1", PATIENCE),
    ("may_wait_on always 2", PATIENCE),
    ("may_wait_on never 2", PATIENCE),
    ("Desk::call_at_once never 1", LATER),
    ("Own::is_whole never 1", QUICKER),
    ("Own::is_whole never 2", QUICKER),
    ("Seat::write left-out 2", NO_ROOM),
    ("Seat::read left-out 4", NO_MEMORY),
    ("Seat::read never 1", QUICKER),
    ("Seat::read never 2", QUICKER),
    ("Seat::take_own left-out 2", LATER),
    ("Seat::take_own left-out 3", LATER),
    ("Seat::enter left-out 4", LATER),
    ("Seat::seek left-out 4", NAPS_OF_CALLS),
    ("Seat::stand_by left-out 4", QUICKER),
    ("Seat::stand_by left-out 5", QUICKER),
    ("Attendant::attend left-out 1", NAPS_OF_CALLS),
    ("Attendant::attend never 2", NAPS_OF_CALLS),
    ("Attendant::attend left-out 2", NAPS_OF_CALLS),
    ("Attendant::round left-out 1", QUICKER),
    ("Attendant::say_goodbye left-out 1", BUSY),
    ("Attendant::frame left-out 3", NO_MEMORY),
    ("Attendant::frame left-out 4", NO_MEMORY),
    ("Attendant::in_place never 1", CALLED_OFF),
    ("Attendant::flush never 3", QUICKER),
    ("Hall::is_notification_wanted never 1", UNCANCELLED),
    ("Hall::finish never 1", LATER),
    ("Hall::finish never 2", CALLED_OFF),
    ("Hall::answer_whole left-out 2", ANSWERED),
    ("Hall::write_chunk never 1", OBEYED),
    ("Hall::next_chunk never 1", OBEYED),
    ("Post::answer_now never 1", QUICKER),
    ("Post::answer_now never 2", QUICKER),
    ("Post::say never 3", QUICKER),
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
    SURVIVORS.iter().find(|row| row.0 == mutant.label).map(|row| row.1)
}

/// Fails for each excuse that no mutant has any more.
pub(crate) fn are_there() -> Result<(), Failed> {
    match SURVIVORS.iter().find(|row| MUTANTS.iter().filter(|it| it.label == row.0).count() != 1) {
        None => Ok(()),
        Some(row) => Err(format!("not one mutant: {row:?}").into()),
    }
}

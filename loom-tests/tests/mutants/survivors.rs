//! The mutants that no model catches, and why they cannot matter.

use libtest_mimic::Failed;
use loom_tests::mutated::code::MUTANTS;
use loom_tests::mutation::Mutant;

/// The mutant's label (type, function, kind of change, and which of several in that function), and the reason.
type Row = (&'static str, &'static str);

const SURVIVORS: &[Row] = &[
    ("Control::decode always 2", AGAIN),
    ("in_arena always 3", AGAIN),
    ("Control::inline_len never 1", QUICKER),
    ("Control::inline_len never 2", QUICKER),
    ("Control::arena_len_and_unit never 2", QUICKER),
    ("Control::arena_len_and_unit never 1", QUICKER),
    ("Control::hint_in_arena always 1", QUICKER),
    ("Control::hint_in_arena never 1", QUICKER),
    ("Producer::try_send never 1", QUICKER),
    ("Producer::try_send always 2", QUICKER),
    ("Producer::try_send never 2", AGAIN),
    ("Producer::try_send_parts never 1", QUICKER),
    ("Producer::try_send_parts always 2", QUICKER),
    ("Producer::try_send_parts never 2", AGAIN),
    ("Producer::try_send_arena never 1", QUICKER),
    ("Producer::try_send_arena always 2", QUICKER),
    ("Producer::try_send_arena never 2", AGAIN),
    ("SenderCore::try_send_arena always 1", QUICKER),
    ("Producer::reserve_slot always 2", LOOKS),
    ("Consumer::take_from always 1", AGAIN),
    ("Consumer::take_from never 1", QUICKER),
    ("can_defer_publish always 3", QUICKER),
    ("Arena::restart never 1", LATE),
    ("Arena::restart always 1", QUICKER),
    ("Consumer::notify_producer never 1", FUTILE),
    ("Producer::try_stage always 1", QUICKER),
    ("Producer::try_stage always 2", QUICKER),
    ("Producer::try_stage never 2", AGAIN),
    ("SenderCore::send_framed never 1", QUICKER),
    ("SenderCore::try_stage_inline always 1", QUICKER),
    ("SenderCore::try_send_inline always 1", QUICKER),
    ("fence_and_check always 1", TWICE),
    ("park always 1", NAPS),
    ("park never 1", NAPS),
    ("Arena::needs_recheck never 1", LOOKS),
    ("Arena::needs_recheck always 2", LOOKS),
    ("ReceiverCore::next always 1", PATIENCE),
    ("ReceiverCore::next never 1", PATIENCE),
    ("SenderCore::send_fragmented never 8", EARLY),
    ("SenderCore::send_fragmented never 9", EARLY),
    ("Vec::room always 1", QUICKER),
    ("Vec::room never 1", ALLOCATOR),
    ("Vec::room always 2", QUICKER),
    ("Vec::room never 2", ALLOCATOR),
    ("ReceiverCore::read_on always 1", ALLOCATOR),
    ("ReceiverCore::read_on never 1", ALLOCATOR),
    ("Reassembly::room always 2", MEMORY),
    ("Reassembly::is_idle never 1", MEMORY),
    ("back_off_or_expire always 1", PATIENCE),
    ("back_off_or_expire never 1", PATIENCE),
    ("back_off_or_expire always 2", PATIENCE),
    ("back_off_or_expire never 2", PATIENCE),
    ("Multiplexer::call_as_leader never 1", LATER),
    ("OwnCall::is_whole_reply never 1", QUICKER),
    ("OwnCall::is_whole_reply never 2", QUICKER),
    ("Turn::take_sender left-out 2", NO_ROOM),
    ("Turn::lead left-out 4", NO_MEMORY),
    ("Turn::lead never 1", QUICKER),
    ("Turn::lead never 2", QUICKER),
    ("Turn::copy_own_reply left-out 2", LATER),
    ("Turn::copy_own_reply left-out 3", LATER),
    ("Turn::enter_frame left-out 4", LATER),
    ("Turn::lead_for_slot left-out 4", NAPS_OF_CALLS),
    ("Turn::follow left-out 4", QUICKER),
    ("Turn::follow left-out 5", QUICKER),
    ("ConnectionDriver::run left-out 1", NAPS_OF_CALLS),
    ("ConnectionDriver::run never 2", NAPS_OF_CALLS),
    ("ConnectionDriver::run left-out 2", NAPS_OF_CALLS),
    ("ConnectionDriver::poll_once left-out 1", QUICKER),
    ("ConnectionDriver::send_goodbye left-out 1", BUSY),
    ("ConnectionDriver::on_frame left-out 3", NO_MEMORY),
    ("ConnectionDriver::on_frame left-out 4", NO_MEMORY),
    ("ConnectionDriver::run_inline never 1", CALLED_OFF),
    ("ConnectionDriver::flush never 3", QUICKER),
    ("ServerConnection::is_notification_wanted never 1", UNCANCELLED),
    ("ServerConnection::finish never 1", LATER),
    ("ServerConnection::finish never 2", CALLED_OFF),
    ("ServerConnection::answer_inline left-out 2", ANSWERED),
    ("ServerConnection::write_chunk never 1", OBEYED),
    ("ServerConnection::next_chunk never 1", OBEYED),
    ("SendQueue::try_reply_inline never 1", QUICKER),
    ("SendQueue::try_reply_inline never 2", QUICKER),
    ("SendQueue::send_or_queue never 3", QUICKER),
];

const AGAIN: &str = "the memory judges every copy again, with the same end: two bounds stand here";
const FUTILE: &str = "wakes a producer that finds no more room, and sleeps again: a system call, no more";
const LATE: &str = "only after 2^62 bytes: the arena's own unit test goes there";
const TWICE: &str = "the flag is taken in one step and found 0: a look before it saves that step, no more";
const NAPS: &str =
    "bounds the CPU that a liar can cost: tests/ring/backoff.rs, a_peer_that_clears_our_flag_for_ever";
const PATIENCE: &str =
    "counts a hostile peer's flickers, to back off: tests/ring/hostile.rs, a_peer_that_sends_pieces_for_ever";
const EARLY: &str =
    "leaves early once the end is known: a send that has room may be in time or not, and waits for none";
const MEMORY: &str = "costs memory that could be used again, or one more copy: the bytes are the same";
const ALLOCATOR: &str =
    "the buffer grows in another way, which differs only where memory is short: tests/hostile/low_memory.rs";
const NO_MEMORY: &str = "no model is short of memory: tests/hostile/low_memory.rs";
const BUSY: &str = "looks again at once instead of waiting for room: costs CPU, and nothing else";
const UNCANCELLED: &str = "a well-formed client cancels no notification";
const LOOKS: &str = "loads a head more often than needed, and finds the same";

const LATER: &str = "the end is found by the next step as well, and nothing is sent or received before it";
const QUICKER: &str = "a shorter way to the same: the longer one is taken";
const NO_ROOM: &str = "its time is over, so that the send behind it waits for nothing";
const NAPS_OF_CALLS: &str =
    "counts looks in vain, to nap: bounds the CPU that a liar can cost, as tests/ring/backoff.rs does";
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

//! The mutants that no model kills, and why they cannot matter.

use libtest_mimic::Failed;
use loom_tests::mutated::code::MUTANTS;
use loom_tests::mutation::Mutant;

/// The mutant's label (type, function, kind of change, and which of several in that function), and the reason.
type Row = (&'static str, &'static str);

const SURVIVORS: &[Row] = &[
    ("Control::decode always 2", CHECKED_AGAIN),
    ("in_arena always 3", CHECKED_AGAIN),
    ("Control::inline_len never 1", FAST_PATH),
    ("Control::inline_len never 2", FAST_PATH),
    ("Control::arena_len_and_unit never 2", FAST_PATH),
    ("Control::arena_len_and_unit never 1", FAST_PATH),
    ("Control::hint_in_arena always 1", FAST_PATH),
    ("Control::hint_in_arena never 1", FAST_PATH),
    ("Producer::try_send never 1", FAST_PATH),
    ("Producer::try_send always 2", FAST_PATH),
    ("Producer::try_send never 2", CHECKED_AGAIN),
    ("Producer::try_send_parts never 1", FAST_PATH),
    ("Producer::try_send_parts always 2", FAST_PATH),
    ("Producer::try_send_parts never 2", CHECKED_AGAIN),
    ("Producer::try_send_arena never 1", FAST_PATH),
    ("Producer::try_send_arena always 2", FAST_PATH),
    ("Producer::try_send_arena never 2", CHECKED_AGAIN),
    ("SenderCore::try_send_arena always 1", FAST_PATH),
    ("Producer::reserve_slot always 2", EXTRA_LOAD),
    ("Consumer::take_from always 1", CHECKED_AGAIN),
    ("Consumer::take_from never 1", FAST_PATH),
    ("can_defer_publish always 3", FAST_PATH),
    ("Arena::restart never 1", BEYOND_MODELS),
    ("Arena::restart always 1", FAST_PATH),
    ("Consumer::notify_producer never 1", SPURIOUS_WAKE),
    ("Producer::try_stage always 1", FAST_PATH),
    ("Producer::try_stage always 2", FAST_PATH),
    ("Producer::try_stage never 2", CHECKED_AGAIN),
    ("SenderCore::send_framed never 1", FAST_PATH),
    ("SenderCore::try_stage_inline always 1", FAST_PATH),
    ("SenderCore::try_send_inline always 1", FAST_PATH),
    ("fence_and_check always 1", FAST_CHECK),
    ("park always 1", BACKOFF),
    ("park never 1", BACKOFF),
    ("Arena::needs_recheck never 1", EXTRA_LOAD),
    ("Arena::needs_recheck always 2", EXTRA_LOAD),
    ("ReceiverCore::next always 1", BACKOFF_COUNT),
    ("ReceiverCore::next never 1", BACKOFF_COUNT),
    ("SenderCore::send_fragmented never 8", EARLY_RETURN),
    ("SenderCore::send_fragmented never 9", EARLY_RETURN),
    ("Vec::room always 1", FAST_PATH),
    ("Vec::room never 1", BUFFER_GROWTH),
    ("Vec::room always 2", FAST_PATH),
    ("Vec::room never 2", BUFFER_GROWTH),
    ("ReceiverCore::read_on always 1", BUFFER_GROWTH),
    ("ReceiverCore::read_on never 1", BUFFER_GROWTH),
    ("Reassembly::room always 2", MORE_MEMORY),
    ("Reassembly::is_idle never 1", MORE_MEMORY),
    ("back_off_or_expire always 1", BACKOFF_COUNT),
    ("back_off_or_expire never 1", BACKOFF_COUNT),
    ("back_off_or_expire always 2", BACKOFF_COUNT),
    ("back_off_or_expire never 2", BACKOFF_COUNT),
    ("Multiplexer::call_as_leader never 1", FOUND_LATER),
    ("OwnCall::is_whole_reply never 1", FAST_PATH),
    ("OwnCall::is_whole_reply never 2", FAST_PATH),
    ("Turn::take_sender left-out 2", EXPIRED_DEADLINE),
    ("Turn::lead left-out 4", OUT_OF_MEMORY),
    ("Turn::lead never 1", FAST_PATH),
    ("Turn::lead never 2", FAST_PATH),
    ("Turn::copy_own_reply left-out 2", FOUND_LATER),
    ("Turn::copy_own_reply left-out 3", FOUND_LATER),
    ("Turn::enter_frame left-out 4", FOUND_LATER),
    ("Turn::lead_for_slot left-out 4", BACKOFF_OF_CALLS),
    ("Turn::follow left-out 4", FAST_PATH),
    ("Turn::follow left-out 5", FAST_PATH),
    ("ConnectionDriver::run left-out 1", BACKOFF_OF_CALLS),
    ("ConnectionDriver::run never 2", BACKOFF_OF_CALLS),
    ("ConnectionDriver::run left-out 2", BACKOFF_OF_CALLS),
    ("ConnectionDriver::poll_once left-out 1", FAST_PATH),
    ("ConnectionDriver::send_goodbye left-out 1", BUSY_LOOP),
    ("ConnectionDriver::on_frame left-out 3", OUT_OF_MEMORY),
    ("ConnectionDriver::on_frame left-out 4", OUT_OF_MEMORY),
    ("ConnectionDriver::run_inline never 1", CANCELLED),
    ("ConnectionDriver::flush never 3", FAST_PATH),
    ("ServerConnection::is_notification_wanted never 1", NO_CANCEL),
    ("ServerConnection::finish never 1", FOUND_LATER),
    ("ServerConnection::finish never 2", CANCELLED),
    ("ServerConnection::answer_inline left-out 1", REPLIED),
    ("ServerConnection::write_chunk never 1", CANCEL_PROCESSED),
    ("ServerConnection::next_chunk never 1", CANCEL_PROCESSED),
    ("SendQueue::try_reply_inline never 1", FAST_PATH),
    ("SendQueue::try_reply_inline never 2", FAST_PATH),
    ("SendQueue::send_or_queue never 3", FAST_PATH),
];

const CHECKED_AGAIN: &str = "the memory checks the bounds of every copy again, and the result is the same";
const SPURIOUS_WAKE: &str =
    "wakes a producer that finds no more room and sleeps again, which costs one system call";
const BEYOND_MODELS: &str = "matters only after 2^62 bytes, which a unit test of the arena covers";
const FAST_CHECK: &str = "a check that only saves a step: the flag is taken in one step and found to be 0";
const BACKOFF: &str = "limits the CPU time that a hostile peer can cost: tests/ring/backoff.rs, \
    a_peer_that_keeps_clearing_our_flag_makes_us_back_off";
const BACKOFF_COUNT: &str = "counts the flickers of a hostile peer, to back off: tests/ring/hostile.rs, \
    a_peer_that_sends_endless_fragments_does_not_outlast_a_deadline";
const EARLY_RETURN: &str =
    "returns early once the end is known: a send that has room waits for none and may be in time or not";
const MORE_MEMORY: &str = "costs memory that could be reused, or one more copy: the bytes are the same";
const BUFFER_GROWTH: &str =
    "the buffer grows in another way, which matters only if memory is short: tests/hostile/low_memory.rs";
const OUT_OF_MEMORY: &str = "no model runs out of memory: tests/hostile/low_memory.rs";
const BUSY_LOOP: &str = "looks again at once instead of waiting for room, which costs only CPU time";
const NO_CANCEL: &str = "a well-formed client cancels no notification";
const EXTRA_LOAD: &str = "loads a head more often than needed, and finds the same value";

const FOUND_LATER: &str = "the next step finds the end as well, and nothing is sent or received before it";
const FAST_PATH: &str = "a fast path that is not taken: the slow path has the same result";
const EXPIRED_DEADLINE: &str = "the deadline has passed, so the next send waits for nothing";
const BACKOFF_OF_CALLS: &str = "counts looks in vain, to back off: it limits the CPU time that a hostile peer can cost, \
    as tests/ring/backoff.rs shows for the ring";
const CANCELLED: &str = "no thread waits for the reply: either end is legal, and the call ends only once";
const CANCEL_PROCESSED: &str = "the driver ends the call in the table, which is checked next";
const REPLIED: &str =
    "the reply is sent or first in the send queue: only a hostile client sends more frames for the call";

/// Returns the reason why a mutant may survive, if it is listed.
pub(crate) fn reason(mutant: &Mutant) -> Option<&'static str> {
    SURVIVORS.iter().find(|row| row.0 == mutant.label).map(|row| row.1)
}

/// Fails if a label of the list does not belong to exactly one mutant.
pub(crate) fn are_mutants() -> Result<(), Failed> {
    match SURVIVORS.iter().find(|row| MUTANTS.iter().filter(|it| it.label == row.0).count() != 1) {
        None => Ok(()),
        Some(row) => Err(format!("not one mutant: {row:?}").into()),
    }
}

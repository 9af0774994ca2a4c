//! The mutants that no model catches, and why they cannot matter.

use libtest_mimic::Failed;
use loom_tests::weak::Mutant;
use loom_tests::weakened::code::MUTANTS;

/// File, function, what is changed (of several alike in a function, which), and the reason.
type Row = (&'static str, &'static str, &'static str, &'static str);

const SURVIVORS: &[Row] = &[
    ("layout.rs", "decode", "always len <= INLINE as u64", AGAIN),
    ("layout.rs", "decode", "always place * GRAIN as u64 <= arena - len", AGAIN),
    ("ring/consumer.rs", "publish_head", "never self.mem.load_flag(Flag::Producer) == 0", TWICE),
    ("ring/park.rs", "rouse", "always mem.load_flag(flag) != 0", TWICE),
    ("ring/park.rs", "sleep", "always empty > EMPTY", NAPS),
    ("ring/park.rs", "sleep", "never empty > EMPTY", NAPS),
    ("ring/place.rs", "far", "always end.wrapping_sub(self.looked) > FRONT.min(self.size / 4)", LOOKS),
    ("channel/inbound.rs", "next", "always self.ring.ticket() == ticket", PATIENCE),
    ("channel/inbound.rs", "next", "never self.ring.ticket() == ticket", PATIENCE),
    ("channel/outbound.rs", "send_cut", "never left > 0 (2)", EARLY),
    ("channel/outbound.rs", "send_cut", "never refuses (2)", EARLY),
    ("channel/partial.rs", "room", "always self.buffer.len() < end", MEMORY),
    ("channel/partial.rs", "trade", "never self.state == State::Idle", MEMORY),
    ("channel/mod.rs", "may_wait_on", "always tries > 0", PATIENCE),
    ("channel/mod.rs", "may_wait_on", "never tries > 0", PATIENCE),
    ("channel/mod.rs", "may_wait_on", "always tries > PLAYED", PATIENCE),
    ("channel/mod.rs", "may_wait_on", "never tries > PLAYED", PATIENCE),
];

const AGAIN: &str = "the memory judges every copy again, with the same end: two bounds stand here";
const TWICE: &str = "the flag is taken in one step and found 0: a look before it saves that step, no more";
const NAPS: &str = "bounds the CPU that a liar can cost: tests/naps.rs, a_peer_that_clears_our_flag_for_ever";
const PATIENCE: &str =
    "counts a liar's flickers, to doze: tests/ring_hostile.rs, a_peer_that_sends_pieces_for_ever";
const EARLY: &str =
    "leaves early once the end is known: a send that has room may be in time or not, and waits for none";
const MEMORY: &str = "costs memory that could be used again, or one more copy: the bytes are the same";
const LOOKS: &str = "loads a head more often than needed, and finds the same";

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

//! The mutants that no model catches, and why they cannot matter.

use loom_tests::weak::Mutant;

/// File, function, what is changed (empty: anything), a part of the line, and the reason.
const SURVIVORS: &[(&str, &str, &str, &str, &str)] = &[
    ("layout.rs", "decode", "always", "len <= INLINE as u64", AGAIN),
    ("layout.rs", "decode", "always", "place * GRAIN as u64 <= arena - len", AGAIN),
    ("ring/consumer.rs", "publish_head", "never", "load_flag(Flag::Producer) == 0", TWICE),
    ("ring/park.rs", "rouse", "always", "load_flag(flag) != 0", TWICE),
    ("ring/park.rs", "sleep", "", "empty > EMPTY", NAPS),
    ("ring/place.rs", "far", "always", "wrapping_sub(self.looked) >", LOOKS),
];

const AGAIN: &str = "the memory judges every copy again, with the same end: two bounds stand here";
const TWICE: &str = "the flag is taken in one step and found 0: a look before it saves that step, no more";
const NAPS: &str =
    "bounds the CPU that a liar can cost: tests/ring_hostile.rs, a_peer_that_clears_our_flag_for_ever";
const LOOKS: &str = "loads a head more often than needed, and finds the same";

/// Why a mutant may survive.
pub(crate) fn why(mutant: &Mutant) -> Option<&'static str> {
    let fits = |(file, function, change, text, _): &&(&str, &str, &str, &str, &str)| {
        mutant.file == *file
            && mutant.function == *function
            && mutant.change.contains(change)
            && mutant.text.contains(text)
    };
    SURVIVORS.iter().find(fits).map(|(.., why)| *why)
}

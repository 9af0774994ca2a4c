//! Long random programs of well-formed peers, which the fuzzers' inputs are too short for.
//!
//! | test | program | compared with |
//! |---|---|---|
//! | `random_programs_behave_like_a_queue` | `fuzz/bodies/src/ring_program.rs`, for each small geometry and three first tickets | a `VecDeque` |
//! | `random_programs_get_their_own_answers` | `fuzz/bodies/src/calls/program.rs` | the answers of the methods |
//!
//! Each ring is filled, and each call slot used, many times.

mod support;

use narrows_fuzz_bodies::{CallTally, Tally, call_tally, tally};
use support::{PATIENCE, Watchdog};

/// Bytes of a ring program. A step reads about three of them.
const BYTES: usize = 9000;

/// Runs a program with `1 << slots` slots and `64 << arena` bytes of arena. `first` are the bytes that encode the first ticket.
fn run(slots: u8, arena: u8, first: &[u8], random: &mut fastrand::Rng) -> Tally {
    let head = [slots, arena].into_iter().chain(first.iter().copied());
    // No side closes the connection: that is the last of the 32 operations, and would end the program early.
    let program = std::iter::repeat_with(|| random.u8(..)).filter(|byte| byte % 32 != 31);
    tally(&head.chain(program).take(BYTES).collect::<Vec<u8>>())
}

#[test]
fn random_programs_behave_like_a_queue() {
    let _watch = Watchdog::start("random programs", PATIENCE);
    let mut all = Tally::default();
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        for slots in 0..4 {
            for arena in [0, 1, 3, 6] {
                for first in [&[0][..], &[1, 1], &[2, 200]] {
                    let tally = run(slots, arena, first, &mut random);
                    let what = format!("{slots} {arena} {first:?} {seed}: {tally:?}");
                    assert!(tally.sent > 150 && tally.received == tally.sent && !tally.closed, "{what}");
                    assert_eq!(tally.exhausted, first[0] == 2, "{what}");
                    all.sent += tally.sent;
                    all.abandoned += tally.abandoned;
                }
            }
        }
    }
    assert!(all.sent > 300_000 && all.abandoned > 1000, "{all:?}");
}

#[test]
fn random_programs_get_their_own_answers() {
    let _watch = Watchdog::start("random programs of calls", PATIENCE);
    let mut all = CallTally::default();
    for seed in 0..600 {
        let mut random = fastrand::Rng::with_seed(seed);
        let tally = call_tally(&std::iter::repeat_with(|| random.u8(..)).take(2500).collect::<Vec<_>>());
        all.calls += tally.calls;
        all.ends += tally.ends;
        all.at_once += tally.at_once;
        all.cancelled += tally.cancelled;
        all.chunks += tally.chunks;
        all.uploads += tally.uploads;
        all.pushes += tally.pushes;
    }
    let least =
        [all.calls / 20, all.ends / 10, all.at_once, all.cancelled, all.chunks, all.uploads, all.pushes];
    assert!(least.iter().all(|count| *count > 600), "{all:?}");
}

//! Long random programs over every tiny ring behave like a `VecDeque` of messages.
//!
//! The program is the fuzzer's: see `src/fuzz/ring_program.rs`. Here it runs long enough to fill every
//! ring many times, at every geometry and first ticket.

use crate::support::Watchdog;
use narrows::fuzz::{Tally, tally};

/// A program takes some three bytes for each of its steps.
const BYTES: usize = 9000;

/// A program of these sizes, as powers of two; `first` are the bytes of the first ticket's kind.
fn run(slots: u8, arena: u8, first: &[u8], random: &mut fastrand::Rng) -> Tally {
    let head = [slots, arena].into_iter().chain(first.iter().copied());
    // Nobody closes: that is the last of the 32 operations, and would end a program early.
    let program = std::iter::repeat_with(|| random.u8(..)).filter(|byte| byte % 32 != 31);
    tally(&head.chain(program).take(BYTES).collect::<Vec<u8>>())
}

#[test]
fn random_programs_behave_like_a_queue() {
    let _watch = Watchdog::new("random programs");
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

//! Every state that short programs reach in tiny rings, against a queue.
//!
//! ```text
//!   state ──each of 16 steps──▶ state      visited once: identified by what the ring prints of
//!     │                           │        itself, relative to its head and its arena offset, and
//!     └── replayed from the start ┘        by the content of the slots
//! ```
//!
//! After each step: the published head lags no further than the protocol allows, and no payloads in flight overlap. An inline
//! message is refused if and only if all slots are taken, and an empty ring refuses no message that it can hold. States are
//! identified by relative values, so the graph must be the same for any first ticket. It ends only at the last tickets.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use narrows::internal::layout::LAST_TICKET;

use super::world::{STEPS, World};
use crate::support::Watchdog;
use crate::support::log;

/// The states that were seen.
#[derive(Default)]
struct Seen {
    states: HashSet<u64>,
    cursors: BTreeSet<(u64, usize, u64)>,
    steps: u64,
    /// No step leads to a state that was not seen.
    all: bool,
}

/// Visits every state, level by level, and stops after `most` states.
fn explore(slots: usize, arena: usize, first: u64, most: usize) -> Seen {
    let mut seen = Seen::default();
    let start = World::new(slots, arena, first);
    seen.states.insert(start.key());
    seen.cursors.insert(start.cursors());
    let mut level = vec![Vec::new()];
    while !level.is_empty() {
        let mut next = Vec::new();
        for path in level {
            for step in STEPS {
                let mut world = World::new(slots, arena, first);
                let program = || path.iter().chain([&step]);
                program().for_each(|step| world.step(*step));
                seen.steps += 1;
                if seen.states.insert(world.key()) {
                    seen.cursors.insert(world.cursors());
                    next.push(program().copied().collect::<Vec<_>>());
                    world.drain();
                }
            }
            if seen.states.len() > most {
                return seen;
            }
        }
        level = next;
    }
    seen.all = true;
    seen
}

/// First tickets: zero, an odd one, one before 32 bits end, one before stamps reach 2^63.
const FIRST: [u64; 4] = [0, 1, (1 << 32) - 3, (1 << 62) - 3];

/// Visits rings of these sizes from each of the first tickets. The graph must be the same each time.
fn visit(slots: usize, arena: usize, firsts: &[u64], most: usize) -> (Seen, usize) {
    let seen = explore(slots, arena, 0, most);
    for first in firsts.iter().skip(1) {
        let other = explore(slots, arena, *first, most);
        assert_eq!(other.states.len(), seen.states.len(), "{slots} slots, arena {arena}, from {first}");
        assert_eq!((other.steps, &other.cursors), (seen.steps, &seen.cursors));
    }
    (seen, firsts.len())
}

/// The tests take a few seconds of CPU time. A machine that is busy with other things may take minutes.
const PATIENCE: Duration = Duration::from_secs(600);

const ARENAS: [usize; 5] = [64, 128, 256, 512, 1024];

fn report(slots: usize, arena: usize, (seen, firsts): &(Seen, usize)) {
    let Seen { states, cursors, steps, all } = seen;
    let (extent, states, cursors) = (if *all { "all" } else { "the first" }, states.len(), cursors.len());
    log(&format!(
        "{slots} slots, arena {arena}, {firsts} first tickets: {extent} {states} states, {cursors} cursors, {steps} steps"
    ));
}

#[test]
fn all_states_of_rings_of_one_and_two_slots() {
    let _watch = Watchdog::within("all states of one and two slots", PATIENCE);
    for (slots, arenas) in [(1, &ARENAS[..]), (2, &ARENAS[..2])] {
        for arena in arenas {
            let visited = visit(slots, *arena, &FIRST, usize::MAX);
            report(slots, *arena, &visited);
            let fills: BTreeSet<u64> = visited.0.cursors.iter().map(|cursor| cursor.0).collect();
            assert!(visited.0.all && fills.into_iter().eq(0..=slots as u64));
        }
    }
    for (slots, arena) in [(2, 256), (2, 512)] {
        let visited = visit(slots, arena, &FIRST[..1], usize::MAX);
        report(slots, arena, &visited);
        assert!(visited.0.all);
    }
}

#[test]
fn all_states_of_a_ring_of_four_slots() {
    let _watch = Watchdog::within("all states of four slots", PATIENCE);
    let visited = visit(4, 64, &FIRST[..1], usize::MAX);
    report(4, 64, &visited);
    assert!(visited.0.all);
}

#[test]
fn the_first_thousands_of_states_of_larger_rings() {
    let _watch = Watchdog::within("larger rings", PATIENCE);
    for slots in [4, 8] {
        for arena in ARENAS {
            report(slots, arena, &visit(slots, arena, &FIRST, 1000));
            report(slots, arena, &visit(slots, arena, &FIRST[..1], 4000));
        }
    }
}

#[test]
fn all_states_near_the_last_tickets() {
    let _watch = Watchdog::within("the last tickets", PATIENCE);
    for left in 1..=4 {
        for (slots, arena) in [(1, 64), (1, 256), (2, 64), (2, 256), (4, 64), (8, 128)] {
            let seen = explore(slots, arena, LAST_TICKET + 1 - left, 60_000);
            assert!(seen.all, "{} states", seen.states.len());
            report(slots, arena, &(seen, 1));
        }
    }
}

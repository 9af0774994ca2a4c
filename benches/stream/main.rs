//! Streams of messages beside what the hardware and the kernel allow: `cargo bench -p narrows-benches --bench stream`.
//!
//! Two processes for each row; every message is made in the sender's own memory, and every byte of it is read and
//! checked by the receiver. The last table holds the figures against the targets. Useful while tuning:
//! `-- --target 1,5 --rounds 3`, `-- --only narrows,64 --wait adaptive`, `-- --list`; `--help` tells the rest.

mod narrows;

use std::time::Duration;

use harness::limits::{
    BareRing, Connects, CopyInOut, EventFd, Futex, FutexSliced, HandOver, Rtrb, UnixDial, UnixStreams,
};
use harness::{Place, Result, Row, Subject, Wait, What, Work, systems, targets};
use narrows::{Narrows, NarrowsDial, NarrowsLend};

fn main() -> Result<()> {
    let mut subjects =
        systems![Narrows, NarrowsLend, HandOver, BareRing, Futex, FutexSliced, EventFd, Rtrb, UnixStreams];
    subjects.push(Subject::measure::<CopyInOut>());
    subjects.push(Subject::measure::<Connects<NarrowsDial>>());
    subjects.push(Subject::measure::<Connects<UnixDial>>());
    harness::main("stream", &subjects, rows(&subjects))
}

const SIZES: [usize; 10] = [8, 40, 64, 104, 256, 1 << 10, 4 << 10, 64 << 10, 1 << 20, 16 << 20];
const WAITS: [Wait; 3] = [Wait::Adaptive, Wait::Spin, Wait::Park];

/// All that is shown, and all that the targets need: the same work of different systems stands together, so that it is
/// measured at about the same time.
fn rows(subjects: &[Subject]) -> Vec<Row> {
    let mut works = dense();
    works.extend(batches());
    works.extend(placed());
    let mut rows = Vec::new();
    for (work, place) in works {
        for subject in subjects.iter().filter(|it| (it.supports)(&work)) {
            // Bounds that spin say nothing where they share a CPU; a socket waits one way only.
            let alone = work.wait == Wait::Spin && subject.name != "narrows" && place != Place::Two;
            let twice = work.wait == Wait::Park && subject.name == "unix-stream";
            if !alone && !twice {
                push(&mut rows, Row { system: subject.name.into(), work, place });
            }
        }
    }
    let needed = (1..=17).filter(|target| *target != 14).flat_map(targets::needed);
    needed.for_each(|row| push(&mut rows, row));
    rows
}

fn push(rows: &mut Vec<Row>, row: Row) {
    if !rows.contains(&row) {
        rows.push(row);
    }
}

/// Every size, every way to wait, copied and in place.
fn dense() -> Vec<(Work, Place)> {
    let mut works = Vec::new();
    for what in [What::RoundTrip, What::OneWay] {
        for size in SIZES {
            for work in WAITS.map(|wait| Work::new(what, size).wait(wait)) {
                works.extend([(work, Place::Two), (work.in_place(), Place::Two)]);
            }
        }
    }
    works
}

fn batches() -> Vec<(Work, Place)> {
    let mut works = Vec::new();
    for size in [8, 40, 64, 256, 1 << 10] {
        for batch in [8, 64] {
            works.push((Work::new(What::OneWay, size).batch(batch), Place::Two));
        }
        works.push((Work::new(What::OneWay, size).wait(Wait::Spin).batch(64), Place::Two));
    }
    works
}

/// Round trips of 64 B in every placement, dense and sparse; one way where both share a CPU.
fn placed() -> Vec<(Work, Place)> {
    let mut works = Vec::new();
    for place in [Place::Two, Place::One, Place::Free, Place::Busy] {
        for gap in [0, 200, 5000] {
            for work in WAITS.map(|wait| Work::new(What::RoundTrip, 64).wait(wait)) {
                works.push((work.gap(Duration::from_micros(gap)), place));
            }
        }
        works.push((Work::new(What::OneWay, 64), place));
    }
    let bare = Work::new(What::RoundTrip, 64).wait(Wait::Park).in_place();
    works.extend([(bare, Place::One), (bare, Place::Two)]);
    works.push((Work::new(What::Connect, 64), Place::Two));
    works.push((Work::new(What::Memory, 64).wait(Wait::Park), Place::Free));
    works
}

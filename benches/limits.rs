//! What the hardware and the kernel allow: `cargo bench -p narrows-benches --bench limits`.
//!
//! The bounds alone; `stream` runs those that its targets need beside narrows, in the same run, and only such figures
//! can be compared on a machine whose CPUs move about.

use std::time::Duration;

use harness::limits::{
    BareRing, Connects, CopyInOut, EventFd, Futex, FutexSliced, HandOver, Rtrb, UnixDial, UnixStreams,
};
use harness::{Place, Result, Row, Subject, Wait, What, Work, systems};

fn main() -> Result<()> {
    let mut subjects = systems![HandOver, BareRing, Futex, FutexSliced, EventFd, Rtrb, UnixStreams];
    subjects.push(Subject::measure::<CopyInOut>());
    subjects.push(Subject::measure::<Connects<UnixDial>>());
    harness::main("limits", &subjects, rows(&subjects))
}

const SIZES: [usize; 10] = [8, 40, 64, 104, 256, 1 << 10, 4 << 10, 64 << 10, 1 << 20, 16 << 20];

fn rows(subjects: &[Subject]) -> Vec<Row> {
    let mut works = Vec::new();
    for size in SIZES {
        let trip = Work::new(What::RoundTrip, size);
        let spun = [trip.wait(Wait::Spin), trip.wait(Wait::Spin).in_place()];
        works.extend(spun.map(|work| (work, Place::Two)));
        works.push((Work::new(What::OneWay, size).wait(Wait::Spin), Place::Two));
        let slept = [trip, trip.wait(Wait::Park).in_place()];
        works.extend(slept.map(|work| (work, Place::Two)));
    }
    for place in [Place::One, Place::Free, Place::Busy] {
        let trip = Work::new(What::RoundTrip, 64);
        works.extend([trip, trip.wait(Wait::Park).in_place()].map(|work| (work, place)));
    }
    for gap in [200, 5000].map(Duration::from_micros) {
        let trip = Work::new(What::RoundTrip, 64).gap(gap);
        works.extend([trip, trip.wait(Wait::Park).in_place()].map(|work| (work, Place::Two)));
    }
    let wake = Work::new(What::Wake, 64).gap(Duration::from_millis(1));
    works.push((wake.wait(Wait::Park).in_place(), Place::Two));
    works.push((Work::new(What::Connect, 64), Place::Two));
    for sleepers in [1, 1000] {
        works.push((Work::new(What::Idle, 64).wait(Wait::Park).batch(sleepers), Place::Free));
    }
    let rows = works.into_iter().flat_map(|(work, place)| {
        let able = subjects.iter().filter(move |it| (it.supports)(&work));
        able.map(move |it| Row { system: it.name.into(), work, place })
    });
    rows.filter(|row| row.work.what != What::Idle || row.system == "futex-sliced").collect()
}

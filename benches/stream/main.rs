//! Streams of messages beside what the hardware and the kernel allow: `cargo bench --bench stream`.

mod narrows;

use bench_kit::limits::{HandOver, UnixStreams};
use bench_kit::{Place, Result, Row, Subject, Wait, What, Work, systems};
use narrows::Narrows;

fn main() -> Result<()> {
    let subjects = systems![Narrows, HandOver, UnixStreams];
    bench_kit::main("stream", &subjects, rows(&subjects))
}

const SIZES: [usize; 10] = [8, 40, 64, 104, 256, 1 << 10, 4 << 10, 64 << 10, 1 << 20, 16 << 20];

fn rows(subjects: &[Subject]) -> Vec<Row> {
    let mut rows = Vec::new();
    for what in [What::RoundTrip, What::OneWay] {
        for size in SIZES {
            for wait in [Wait::Adaptive, Wait::Spin, Wait::Park] {
                for work in [Work::new(what, size).wait(wait), Work::new(what, size).wait(wait).in_place()] {
                    for subject in subjects.iter().filter(|it| (it.supports)(&work)) {
                        rows.push(Row { system: subject.name.into(), work, place: Place::Two });
                    }
                }
            }
        }
    }
    rows
}

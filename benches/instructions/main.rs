//! Instructions of the hot paths, counted by callgrind: `cargo bench -p narrows-benches --bench instructions`.
//!
//! Each benchmark does its operation [`TIMES`](times::TIMES) times after a warm-up, in one thread, without sleepers unless its name
//! has one. The loop is counted, in user space. Counts do not vary, so they show a change of a few instructions that no
//! clock shows. `.ci/instructions` compares the counts with `table.txt` beside this file. The table has the counts of one
//! operation. They include the loop itself, whose cost is the row `alone`.
//!
//! # Limits
//!
//! Time: a fence counts as one instruction, and a cache line that comes from another CPU as none. System calls: only
//! their user side counts. Under valgrind there is neither vDSO nor restartable sequences, so `sched_getcpu` and the
//! clock take some twenty instructions more than they do outside.
//!
//! It needs valgrind, and the runner of the harness in the version of Cargo.toml: `.ci/instructions` installs both.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    reason = "the harness writes public items of its own"
)]

mod calls;
mod stream;
mod times;

use calls::one_call;
use gungraun::prelude::*;
use stream::messages;

main!(
    config = LibraryBenchmarkConfig::default().tool(gungraun::Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = [messages, one_call]
);

//! `narrows bench`: latency and throughput of this machine between two real processes, with every payload verified.
//!
//! It is quick, and so only a first estimate. The suite for comparisons is `cargo bench -p narrows-benches --bench stream`.

use std::process::{Child, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use narrows::{Options, SharedMemoryStream, Stats};

use crate::child::{CONSUME, COUNT, KINDS, pattern, payload};
use crate::doctor::system;
use crate::{Wait, format};

const SIZES: [usize; 4] = [64, 1 << 10, 64 << 10, 1 << 20];
const WAITS: [Wait; 3] = [Wait::Spin, Wait::Adaptive, Wait::Park];

/// The options of `bench`.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Milliseconds for each figure; there are 24.
    #[arg(long, default_value_t = 800, value_parser = clap::value_parser!(u64).range(1..=2400))]
    millis: u64,
    /// Measures only this way of waiting.
    #[arg(long, value_enum)]
    wait: Option<Wait>,
}

/// The results of one size.
struct Row {
    times: Histogram<u64>,
    /// Messages each second, one way.
    rate: f64,
    sleeps: u64,
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        println!("narrows {} between two processes: {}", env!("CARGO_PKG_VERSION"), system::machine());
        if cfg!(debug_assertions) {
            println!("built without optimisation: run it with `--release`, these figures mean nothing");
        }
        if system::cpus() < 2 {
            println!("one CPU: the two processes take turns on it, and spinning only keeps them apart");
        }
        println!("\n{:9} {:>7}  {:^39}  {:^22}", "", "", "round trip", "one way");
        let head = ["p50", "p99", "p99.9", "max"].map(|name| format!("{name:>9}")).concat();
        println!(
            "{:9} {:>7}  {head:39}  {:>11} {:>10}  sleeps per round trip",
            "waiting", "size", "messages/s", "GB/s"
        );
        let time = Duration::from_millis(self.millis);
        for wait in WAITS.into_iter().filter(|wait| self.wait.is_none_or(|only| only == *wait)) {
            let mut pair = Pair::start(wait)?;
            for size in SIZES {
                show(wait, size, &pair.measure(size, time)?);
            }
            pair.end()?;
        }
        println!(
            "\nall payloads came as they were sent; figures differ from run to run, most with busy neighbours"
        );
        Ok(ExitCode::SUCCESS)
    }
}

fn show(wait: Wait, size: usize, row: &Row) {
    let at = |quantile| format::time(Duration::from_nanos(row.times.value_at_quantile(quantile)));
    let times = [at(0.5), at(0.99), at(0.999), at(1.0)].map(|time| format!("{time:>9}")).concat();
    let bytes = format::three(row.rate * size as f64 / 1e9);
    let rate = match row.rate {
        rate if rate >= 1e6 => format!("{} M", format::three(rate / 1e6)),
        rate if rate >= 1e3 => format!("{} k", format::three(rate / 1e3)),
        rate => format!("{rate:.0}  "),
    };
    let sleeps = format::three(row.sleeps as f64 / row.times.len().max(1) as f64);
    println!(
        "{:9} {:>7}  {times:39}  {rate:>11} {bytes:>10}  {sleeps:>21}",
        wait.name(),
        format::size(size as u64)
    );
}

/// This process and the other, both with the same way of waiting.
struct Pair {
    child: Child,
    stream: SharedMemoryStream,
}

impl Pair {
    fn start(wait: Wait) -> anyhow::Result<Self> {
        let command = system::this_program("child", &["--wait", wait.name()])?;
        let options = Options::new().wait(wait.strategy());
        let (child, stream) = options.spawn(command).context("cannot start the other process")?;
        Ok(Self { child, stream })
    }

    fn measure(&mut self, size: usize, time: Duration) -> anyhow::Result<Row> {
        self.round_trips(size, time / 8)?; // Warms up: pages are touched, and both sides get into step.
        let before = self.stream.stats();
        let times = self.round_trips(size, time)?;
        let Stats { sleeps, .. } = self.stream.stats();
        let rate = self.one_way(size, time)?;
        Ok(Row { times, rate, sleeps: sleeps - before.sleeps })
    }

    fn round_trips(&mut self, size: usize, time: Duration) -> anyhow::Result<Histogram<u64>> {
        let mut times = Histogram::<u64>::new(3).context("a histogram")?;
        let (mut message, mut answer) = (pattern(size), Vec::new());
        let began = Instant::now();
        for number in 0.. {
            payload(number, &mut message);
            let at = Instant::now();
            self.stream.send(&message)?;
            self.stream.recv_into(&mut answer)?;
            let took = at.elapsed();
            ensure!(
                answer == message,
                "a message of {size} bytes came back changed: this is a bug, please report it"
            );
            times.record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX))?;
            if began.elapsed() >= time {
                break;
            }
        }
        Ok(times)
    }

    /// Returns the messages each second. The other side verifies and counts them.
    fn one_way(&mut self, size: usize, time: Duration) -> anyhow::Result<f64> {
        let mut message = pattern(size);
        let stride = (64 << 10) / size.max(1) as u64;
        let (began, mut sent) = (Instant::now(), 0_u64);
        while began.elapsed() < time {
            for _ in 0..stride.clamp(1, 64) {
                payload(sent, &mut message);
                self.stream.send_tagged(&message, CONSUME | (sent << KINDS))?;
                sent += 1;
            }
        }
        self.stream.send_tagged(&[], COUNT)?;
        let mut answer = [0; 16];
        self.stream.recv(&mut answer)?;
        let took = began.elapsed().as_secs_f64();
        let [count, wrong] = [0, 8].map(|at| answer[at..at + 8].try_into().map_or(0, u64::from_le_bytes));
        ensure!(
            count == sent && wrong == 0,
            "of {sent} messages of {size} bytes {count} came, {wrong} of them changed: this is a bug, please report it"
        );
        Ok(sent as f64 / took)
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.stream.close();
        let status = self.child.wait()?;
        ensure!(status.success(), "the other process ended with {status}");
        Ok(())
    }
}

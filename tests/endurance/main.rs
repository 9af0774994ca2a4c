//! The endurance test: checks that put a server under sustained stress, one after the other in minutes, and a table at the end.
//!
//! ```text
//! cargo test --release -p narrows-tests --test endurance -- --ignored                          ten minutes
//! cargo test --release -p narrows-tests --test endurance -- --ignored --minutes 2 --out table.md
//! cargo test --release -p narrows-tests --test endurance -- --ignored chaos                    one check alone
//! ```
//!
//! ```text
//!  this process (calls the library only in chaos)          real processes: this binary again, in a role
//!    flood, steady, neighbours, churn, leaks, chaos ──▶      serve: an RPC server and a stream server (serve.rs)
//!      start them, send orders, receive answers              worker, steady, ... : the clients (clients.rs)
//!      read /proc of both ◀────────────────────────────      leak-check: starts and stops servers itself (leak_check.rs)
//!    table ── a row for each case, exit code 1 on a fault    hostile peers: write to the pages (hostile_peers.rs)
//! ```
//!
//! Each message is verified in the server and again in the client. The result never depends on a time, which a busy machine
//! would break, but on what was verified, what ended, and what is left. Times are only shown. It has its own harness, since it has
//! options, and is left out of `cargo test`. Without `--ignored` it only lists its checks.
//!
//! It does not show faults that need longer than the run, nor the machine running out of memory (`docs/decisions/026-memory-per-connection.md`).

#![allow(unsafe_code)]

extern crate narrows_tests as narrows; // The library, built with the internals that tests need.

#[path = "../support/mod.rs"]
mod support;

mod chaos;
mod churn;
mod clients;
mod connection_flood;
mod fault_scenarios;
mod heap;
mod hostile_peers;
mod leak_check;
mod noisy_neighbours;
mod processes;
mod serve;
mod steady;
mod table;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::support::Watchdog;
use table::{About, Row};
use watch::Stage;

/// The function that runs a check.
type Check = fn(&Stage) -> Vec<Row>;

/// All checks, and which share of the time each has, in hundredths.
const CHECKS: [(&str, u32, Check); 6] = [
    ("connection flood", 15, connection_flood::run),
    ("memory under load", 30, steady::run),
    ("latency beside neighbours", 10, noisy_neighbours::run),
    ("churn", 10, churn::run),
    ("leak check", 15, leak_check::run),
    ("chaos", 20, chaos::run),
];

/// The endurance test, in minutes.
#[derive(Parser, Debug)]
struct Arguments {
    /// Only checks whose name has one of these words.
    words: Vec<String>,
    /// How long all of it takes; the leak check makes its 120 cycles in any case. Default 10, or what
    /// NARROWS_ENDURANCE_MINUTES says.
    #[arg(long)]
    minutes: Option<f64>,
    /// Where the table goes, as Markdown.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The seed of all random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs the checks. Without this, they are only listed.
    #[arg(long)]
    ignored: bool,
    /// The same.
    #[arg(long)]
    include_ignored: bool,
    /// Lists the checks.
    #[arg(long)]
    list: bool,
    // Other arguments that are passed to all test binaries at once.
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    no_capture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
    #[arg(long, hide = true)]
    format: Option<String>,
    #[arg(long, hide = true)]
    color: Option<String>,
    #[arg(long, hide = true)]
    skip: Vec<String>,
}

impl Arguments {
    fn chosen(&self) -> Vec<(&'static str, u32, Check)> {
        let has = |name: &str, word: &String| name.contains(word.as_str());
        let all = CHECKS.into_iter();
        let wanted =
            all.filter(|(name, ..)| self.words.is_empty() || self.words.iter().any(|it| has(name, it)));
        wanted.filter(|(name, ..)| !self.skip.iter().any(|it| has(name, it))).collect()
    }

    fn time(&self) -> Duration {
        let said = || std::env::var("NARROWS_ENDURANCE_MINUTES").ok().and_then(|it| it.parse().ok());
        let minutes = self.minutes.or_else(said).unwrap_or(10.0);
        Duration::try_from_secs_f64(minutes * 60.0).unwrap_or(Duration::from_secs(600))
    }
}

fn main() -> ExitCode {
    if let Some(role) = support::role() {
        processes::play(&role);
        return ExitCode::SUCCESS;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // The arguments are meant for the other test binaries, unless `--ignored` is among them.
        Err(error) if !std::env::args().any(|it| it == "--ignored") && error.use_stderr() => {
            println!("not run: {}", error.kind());
            return ExitCode::SUCCESS;
        }
        Err(error) => error.exit(),
    };
    let chosen = arguments.chosen();
    if arguments.list {
        chosen.iter().for_each(|(name, ..)| println!("{}: test", name.replace(' ', "_")));
        return ExitCode::SUCCESS;
    }
    if !(arguments.ignored || arguments.include_ignored) || chosen.is_empty() {
        let names: Vec<_> = chosen.iter().map(|(name, ..)| *name).collect();
        println!("ignored: {} (`-- --ignored` runs them, ten minutes)", names.join(", "));
        return ExitCode::SUCCESS;
    }
    run_checks(&arguments, &chosen)
}

/// Runs the chosen checks, and prints the table.
fn run_checks(arguments: &Arguments, chosen: &[(&'static str, u32, Check)]) -> ExitCode {
    let time = arguments.time();
    let _watchdog = Watchdog::within("the endurance test", time * 4 + Duration::from_secs(900));
    support::run_nothing_beside("endurance");
    support::sys::raise_descriptor_limit();
    support::sys::heed_interrupts();
    let (began, mut about) = (Instant::now(), About::now(time));
    let shares: u32 = chosen.iter().map(|(_, share, _)| share).sum();
    let mut rows = Vec::new();
    for (at, (name, share, check)) in chosen.iter().enumerate() {
        let stage = Stage::begin(name, (at + 1, chosen.len()), time * *share / shares, arguments.seed);
        let found = stage.guarded(*check);
        stage.end(&found);
        rows.extend(found);
        if watch::interrupted() {
            println!("interrupted");
            return ExitCode::from(130);
        }
    }
    about.took = began.elapsed();
    let text = table::markdown(&about, &rows);
    println!("\n{text}");
    if let Some(out) = &arguments.out {
        if let Err(error) = std::fs::write(out, &text) {
            println!("{}: {error}", out.display());
            return ExitCode::FAILURE;
        }
    }
    match table::verdict(&rows) {
        Ok(count) => {
            println!("{count} cases in {:.0?}: all passed", about.took);
            ExitCode::SUCCESS
        }
        Err(faults) => {
            println!("{faults}");
            ExitCode::FAILURE
        }
    }
}

//! narrows against Node.js, doing the same work: `cargo run --release --manifest-path benches/node/Cargo.toml`.
//!
//! ```text
//!   this program ──starts──▶ side A ──starts──▶ side B          A sends and times, B verifies and answers
//!                ◀─one line──       ◀─messages─▶                Node: js/driver.js and js/echo.js; ours: side.rs
//! ```
//!
//! One start of both sides is one *measurement*: one system, one kind of message, one size, one placement; it warms up,
//! then does its round trips, then its one-way rate. A round has all measurements one after the other; the tables
//! have medians over the rounds. It does not show other machines, other objects, or many connections.

mod config;
mod machine;
mod message;
mod report;
mod results;
mod rows;
mod run;
mod side;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use harness::Result;

use crate::config::{NodeConfig, NodeSystem};

/// Measures narrows and Node.js doing the same work, and writes tables and raw results
#[derive(Debug, Parser)]
struct CommandLine {
    #[command(subcommand)]
    side: Option<SideCommand>,
    #[command(flatten)]
    options: RunOptions,
}

/// The choice of measurements.
#[derive(Debug, Parser)]
struct RunOptions {
    /// How often all is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Messages of each measurement, in percent of the full number
    #[arg(long, default_value_t = 100.0)]
    percent: f64,
    /// Sizes in bytes: of the raw bytes, or of the object as JSON
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1 << 10, 64 << 10, 1 << 20])]
    sizes: Vec<usize>,
    /// The CPUs of the two sides, such as 0,1; or none. Give it once for each placement [default: 0,1 and none]
    #[arg(long)]
    pin: Vec<String>,
    /// Only systems whose name has this in it
    #[arg(long)]
    only: Option<String>,
    /// Node.js
    #[arg(long, default_value = "node")]
    node: PathBuf,
    /// Where the results go [default: results, beside this crate]
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum SideCommand {
    /// Side A of narrows
    #[command(hide = true)]
    Driver { config: String },
    /// Side B in Rust
    #[command(hide = true)]
    Echo { config: String },
}

fn main() -> ExitCode {
    let args = CommandLine::parse();
    let done = match args.side {
        Some(SideCommand::Driver { config }) => parsed(&config).and_then(|config| match config.system {
            NodeSystem::AloneRust => side::alone(&config),
            _ => side::driver(&config),
        }),
        Some(SideCommand::Echo { config }) => parsed(&config).and_then(|config| side::echo(&config)),
        None => run::run(&args.options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parsed(config: &str) -> Result<NodeConfig> {
    Ok(serde_json::from_str(config)?)
}

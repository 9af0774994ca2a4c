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

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use harness::Result;

use crate::config::{NodeConfig, NodeSystem};
use crate::run::RunOptions;

/// Measures narrows and Node.js doing the same work, and writes tables and raw results
#[derive(Debug, Parser)]
struct CommandLine {
    #[command(subcommand)]
    side: Option<SideCommand>,
    #[command(flatten)]
    options: RunOptions,
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

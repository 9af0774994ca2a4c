//! A day in the editor, in a minute: the traffic of an editor and its AI backend, over narrows, over a Unix socket, and
//! (the chats) in Node.js: `cargo bench -p narrows-benches --bench editor_workload`.
//!
//! ```text
//!   this program (run.rs) ──starts──▶ backend   backend.rs: serves methods, asks questions
//!      │ kills, samples               editor    editor/: connection A, everything at once
//!      │ ◀──── lines of JSON ─────    light × 9 light.rs: B to J, one of them killed each second
//!      ▼
//!   report.rs: tables, pictures       written against transport.rs; over_narrows.rs, unix/; js/ for Node.js
//! ```
//!
//! All that is sent follows from a seed (plan.rs), is numbered and has a checksum (item.rs). What is lost, doubled, out of
//! order or changed is counted, and the run fails if anything is. What it does not show: work on the data itself, other
//! machines, other mixes.

mod backend;
mod editor;
mod item;
mod light;
mod lines;
mod memory;
mod meter;
mod node;
mod over_narrows;
mod plan;
mod process;
mod report;
mod run;
mod spoil;
mod transport;
mod unix;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use harness::{Result, die_with_parent};
use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::spoil::Spoil;
use crate::transport::Transport;

/// An editor's traffic over narrows, a Unix socket and Node.js, one after the other
#[derive(Debug, Parser)]
struct Arguments {
    /// What all that is sent follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long the chats go on over each transport: two thirds at 50 chunks a second, the rest unpaced
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// As `--seconds 8`
    #[arg(long)]
    quick: bool,
    /// Over which; Node.js carries the chats alone, and the others then do so too, beside it
    #[arg(long, value_delimiter = ',', default_values = ["narrows", "unix", "node"])]
    transport: Vec<Transport>,
    /// Node.js
    #[arg(long, default_value = "node")]
    node: PathBuf,
    /// Where the results go
    #[arg(long, default_value = "target/benches/editor_workload")]
    out: PathBuf,
    /// Has the backend spoil each chat: the run must fail
    #[arg(long)]
    spoil: Option<Spoil>,
    /// What cargo says to a benchmark
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What a process of a run is.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    Backend { config: String },
    #[command(hide = true)]
    Editor { config: String },
    #[command(hide = true)]
    Light { config: String },
    /// A light client in the place of one that was killed
    #[command(hide = true)]
    LightAgain { config: String },
}

/// What all processes of one run are told.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Config {
    transport: Transport,
    part: Part,
    plan: Plan,
    /// Of the socket.
    path: PathBuf,
    spoil: Option<Spoil>,
}

/// All of the day, or the chats alone, with their tools, approvals and cancels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Part {
    Day,
    Chats,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.role {
        None => harness::enter_repository().and_then(|()| run::run(&arguments)),
        Some(role) => child(role),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", arguments.role.as_ref().map_or("error", Role::name));
            ExitCode::FAILURE
        }
    }
}

fn child(role: &Role) -> Result<()> {
    die_with_parent();
    match role {
        Role::Backend { config } => backend::run(&serde_json::from_str(config)?),
        Role::Editor { config } => editor::run(&serde_json::from_str(config)?),
        Role::Light { config } => light::run(&serde_json::from_str(config)?, false),
        Role::LightAgain { config } => light::run(&serde_json::from_str(config)?, true),
    }
}

impl Role {
    fn name(&self) -> &'static str {
        match self {
            Self::Backend { .. } => "backend",
            Self::Editor { .. } => "editor",
            Self::Light { .. } | Self::LightAgain { .. } => "light client",
        }
    }
}

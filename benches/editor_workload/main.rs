//! The traffic of an editor and its AI backend, over narrows, over a Unix socket, and (the chats) in Node.js:
//! `cargo bench -p narrows-benches --bench editor_workload`.
//!
//! ```text
//!   this program (run.rs) ──starts──▶ backend   backend.rs: serves methods, asks questions
//!      │ kills, samples               editor    editor/: connection A, all flows at once
//!      │ ◀──── lines of JSON ─────    light × 9 light.rs: B to J, one of them killed each second
//!      ▼
//!   report.rs: tables                 written against transport.rs; narrows_calls.rs, unix/; js/ for Node.js
//! ```
//!
//! All messages follow from a seed (plan.rs), are numbered and have a checksum (item.rs). The run counts those that are
//! lost, duplicated, out of order or changed, and fails if there are any. It does not show work on the data itself, other
//! machines, or other mixes of traffic.

mod backend;
mod config;
mod connections;
mod editor;
mod fault_injection;
mod item;
mod light;
mod line_protocol;
mod memory;
mod narrows_calls;
mod node_js;
mod plan;
mod recorder;
mod report;
mod run;
mod sync;
mod transport;
mod unix;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use harness::{Result, die_with_parent};

use crate::run::RunOptions;

/// An editor's traffic over narrows, a Unix socket and Node.js, one after the other
#[derive(Debug, Parser)]
struct WorkloadArguments {
    #[command(flatten)]
    options: RunOptions,
    /// Cargo passes this to a benchmark
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// The role of a process in a run.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    Backend { config: String },
    #[command(hide = true)]
    Editor { config: String },
    #[command(hide = true)]
    Light {
        config: String,
        /// It takes the place of one that was killed
        #[arg(long)]
        replaces: bool,
    },
}

fn main() -> ExitCode {
    let arguments = WorkloadArguments::parse();
    let done = match &arguments.role {
        None => harness::enter_repository().and_then(|()| run::run(&arguments.options)),
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
        Role::Light { config, replaces } => light::run(&serde_json::from_str(config)?, *replaces),
    }
}

impl Role {
    fn name(&self) -> &'static str {
        match self {
            Self::Backend { .. } => "backend",
            Self::Editor { .. } => "editor",
            Self::Light { .. } => "light client",
        }
    }
}

//! `narrows`: for who runs programs that talk through narrows, and for who wants to see what it does here.
//!
//! ```text
//! narrows doctor            what this machine has, what is done without, what to change
//! narrows serve-echo PATH   a server that sends back whatever comes
//! narrows ping PATH         round trips to such a server, as ping(8) shows them
//! narrows bench             round trips and rates between two processes of this machine
//! ```

mod bench;
mod child;
mod doctor;
mod echo;
mod end;
mod ping;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Checks, pings and measures messages through shared memory.
#[derive(Debug, Parser)]
#[command(name = "narrows", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks what narrows needs of this machine: what works, what is done without, what to change.
    ///
    /// The exit status is 0 if connections work here, and 1 if they do not.
    Doctor {
        /// Makes this check alone, for the `doctor` that asked for it.
        #[arg(long, hide = true)]
        check: Option<String>,
    },
    /// Sends messages to an echo server and shows how long they were under way.
    ///
    /// The exit status is 0 if every message was answered, 1 if one was not, and 2 if there was no connection.
    Ping(ping::Ping),
    /// Serves at PATH, and sends back whatever comes; until Ctrl-C.
    ServeEcho(echo::Echo),
    /// Measures round trips and rates between two processes, payloads verified; takes under a minute.
    Bench(bench::Bench),
    /// The other process of `doctor` and `bench`.
    #[command(hide = true)]
    Child {
        /// Serves one client here, and not its parent.
        #[arg(long)]
        path: Option<PathBuf>,
        /// How this side waits.
        #[arg(long, value_enum, default_value_t = Wait::Adaptive)]
        wait: Wait,
    },
}

/// How a call that has to wait does so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wait {
    /// Never sleeps: a CPU for each side that waits.
    Spin,
    /// Spins for some 50 us where that paid lately, then sleeps; the library's default.
    Adaptive,
    /// Sleeps at once.
    Park,
}

impl Wait {
    /// Its name on the command line.
    fn name(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Park => "park",
        }
    }

    fn strategy(self) -> narrows::WaitStrategy {
        match self {
            Self::Spin => narrows::WaitStrategy::Spin,
            Self::Adaptive => narrows::WaitStrategy::Adaptive,
            Self::Park => narrows::WaitStrategy::Park,
        }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Doctor { check } => doctor::run(check.as_deref()),
        Command::Ping(ping) => ping.run(),
        Command::ServeEcho(echo) => echo.run(),
        Command::Bench(bench) => bench.run(),
        Command::Child { path, wait } => child::run(path.as_deref(), wait),
    };
    result.unwrap_or_else(|error| {
        eprintln!("narrows: {}", words::causes(&error));
        ExitCode::from(2)
    })
}

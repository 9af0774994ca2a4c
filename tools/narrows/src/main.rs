//! `narrows`: a tool for operators of programs that communicate through narrows, and for evaluating narrows on a machine.
//!
//! ```text
//! narrows doctor            the features that this machine has, those that it lacks, and what to change
//! narrows serve-echo PATH   a server that sends back each message
//! narrows ping PATH         round trips to such a server, as ping(8) shows them
//! narrows bench             round trips and rates between two processes of this machine
//! ```

mod bench;
mod child;
mod doctor;
mod echo;
mod format;
mod ping;
mod signals;

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
    /// Checks the features that narrows needs of this machine: what works, what is missing, what to change.
    ///
    /// The exit status is 0 if connections work here, and 1 if they do not.
    Doctor {
        /// Makes this check alone, for the `doctor` that asked for it.
        #[arg(long, hide = true)]
        check: Option<String>,
    },
    /// Sends messages to an echo server and shows their round-trip times.
    ///
    /// The exit status is 0 if every message was answered, 1 if one was not, and 2 if there was no connection.
    Ping(ping::Ping),
    /// Serves at PATH and sends back each message, until Ctrl-C.
    ServeEcho(echo::Echo),
    /// Measures round trips and rates between two processes, payloads verified; takes under a minute.
    Bench(bench::Bench),
    /// The other process of `doctor` and `bench`.
    #[command(hide = true)]
    Child {
        /// Serves one client at this path instead of its parent.
        #[arg(long)]
        path: Option<PathBuf>,
        /// How this side waits.
        #[arg(long, value_enum, default_value_t = Wait::Adaptive)]
        wait: Wait,
    },
}

/// How a blocked call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wait {
    /// Never sleeps: occupies a CPU for each waiting side.
    Spin,
    /// Spins for about 50 us if recent spins succeeded, then sleeps. The default of the library.
    Adaptive,
    /// Sleeps at once.
    Park,
}

impl Wait {
    /// Returns the name on the command line.
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
        eprintln!("narrows: {}", format::causes(&error));
        ExitCode::from(2)
    })
}

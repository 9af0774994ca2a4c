//! The time of a check, its progress, and the resources of a process.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub(crate) use crate::support::sys::interrupted;
use crate::table::{Row, median};

/// A check that runs.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) time: Duration,
    pub(crate) seed: u64,
    began: Instant,
    /// When a line was printed last.
    last_line: Mutex<Instant>,
}

impl Stage {
    pub(crate) fn begin(name: &'static str, (at, of): (usize, usize), time: Duration, seed: u64) -> Self {
        println!("[{at}/{of}] {name}, about {:.0?}", time.max(Duration::from_secs(1)));
        Self { name, time, seed, began: Instant::now(), last_line: Mutex::new(Instant::now()) }
    }

    /// Prints the progress of the check, every ten seconds at most.
    pub(crate) fn report_progress(&self, text: &str) {
        let mut last_line = self.last_line.lock().expect("no panic");
        if last_line.elapsed() > Duration::from_secs(10) {
            *last_line = Instant::now();
            println!("  {:.0?}: {text}", self.began.elapsed());
        }
    }

    /// Sleeps, unless interrupted.
    pub(crate) fn rest(&self, time: Duration) {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline && !interrupted() {
            sleep(time.min(Duration::from_millis(50)));
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        interrupted() || self.began.elapsed() >= self.time
    }

    /// Runs a check; its panic is a fault.
    pub(crate) fn guarded(&self, check: fn(&Self) -> Vec<Row>) -> Vec<Row> {
        catch_unwind(AssertUnwindSafe(|| check(self))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()));
            let mut row = Row::new(self.name, "all of it");
            row.faults.push(text.unwrap_or_else(|| "a panic".into()));
            vec![row]
        })
    }

    pub(crate) fn end(&self, rows: &[Row]) {
        rows.iter().for_each(|row| println!("{}", row.line()));
    }
}

/// The resources of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Memory of its own, in KiB, and memory that others may have too: that of the connections.
    pub(crate) private: u64,
    pub(crate) shared: u64,
    pub(crate) threads: u64,
    pub(crate) descriptors: u64,
    pub(crate) mappings: u64,
    /// The mappings of connections among these.
    pub(crate) regions: u64,
}

impl Sample {
    /// Of a process by its id.
    pub(crate) fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("listed");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
        };
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives");
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").count();
        Self {
            private: number("RssAnon:"),
            shared: number("RssShmem:"),
            threads: number("Threads:"),
            descriptors: descriptors as u64,
            mappings: maps.lines().count() as u64,
            regions: maps.lines().filter(|line| line.contains("memfd:")).count() as u64,
        }
    }

    /// The counts that change with connections only.
    pub(crate) fn exact(&self) -> [u64; 3] {
        [self.threads, self.descriptors, self.regions]
    }

    /// The medians of these, each by itself.
    pub(crate) fn median(samples: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> u64| median(samples.iter().map(figure).collect());
        Self {
            private: of(|it| it.private),
            shared: of(|it| it.shared),
            threads: of(|it| it.threads),
            descriptors: of(|it| it.descriptors),
            mappings: of(|it| it.mappings),
            regions: of(|it| it.regions),
        }
    }

    /// The medians of the first and of the last third, after a tenth for warming up.
    pub(crate) fn thirds(samples: &[Self]) -> (Self, Self) {
        let warm = &samples[samples.len() / 10..];
        let third = (warm.len() / 3).max(1);
        (Self::median(&warm[..third]), Self::median(&warm[warm.len() - third..]))
    }
}

/// Returns whether it is more than before, beyond what an allocator may keep or give back.
pub(crate) fn grown(first: u64, last: u64, share: u64, slack: u64) -> bool {
    last > first + first / share + slack
}

/// Formats a number before and after, or once if it is the same.
pub(crate) fn change(first: u64, last: u64) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

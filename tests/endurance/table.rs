//! The rows of the results, and the table that they form.

use std::fmt::Write;
use std::fs;
use std::time::{Duration, UNIX_EPOCH};

/// A case of a check.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) check: &'static str,
    pub(crate) case: String,
    pub(crate) figures: String,
    /// The faults; empty if the case passed.
    pub(crate) faults: Vec<String>,
}

impl Row {
    pub(crate) fn new(check: &'static str, case: impl Into<String>) -> Self {
        Self { check, case: case.into(), figures: String::new(), faults: Vec::new() }
    }

    pub(crate) fn figures(mut self, figures: impl Into<String>) -> Self {
        self.figures = figures.into();
        self
    }

    /// Appends further figures.
    pub(crate) fn figures_behind(mut self, figures: &str) -> Self {
        self.figures = format!("{figures}; {}", self.figures);
        self
    }

    /// Requires that the condition holds.
    pub(crate) fn wants(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.faults.push(otherwise());
        }
    }

    pub(crate) fn line(&self) -> String {
        let verdict = if self.faults.is_empty() { "pass" } else { "FAIL" };
        let faults: String = self.faults.iter().map(|it| format!("\n        {it}")).collect();
        format!("  {verdict}  {}: {}: {}{faults}", self.check, self.case, self.figures)
    }
}

/// The machine and the time of the run.
#[derive(Debug)]
pub(crate) struct About {
    date: String,
    machine: String,
    load: String,
    wanted: Duration,
    pub(crate) took: Duration,
}

impl About {
    pub(crate) fn now(wanted: Duration) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("an unknown CPU");
        let memory = read("/proc/meminfo");
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
        let kib: u64 = total.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let kernel = read("/proc/sys/kernel/osrelease");
        let build = if cfg!(debug_assertions) { "debug build" } else { "release build" };
        Self {
            date: date(UNIX_EPOCH.elapsed().unwrap_or_default().as_secs() / 86_400),
            machine: format!(
                "{cpus} CPUs of {}, {} GiB, Linux {}; {build}",
                model.trim_start_matches([' ', '\t', ':']),
                kib >> 20,
                kernel.trim()
            ),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            wanted,
            took: Duration::ZERO,
        }
    }
}

/// The date of a day, counted from 1970.
fn date(days: u64) -> String {
    let mut rest = days;
    let mut year = 1970;
    let leap = |year: u64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < days {
            break;
        }
        rest -= days;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", rest + 1)
}

pub(crate) fn markdown(about: &About, rows: &[Row]) -> String {
    let mut text = format!(
        "{}; {}; load {} before; `cargo test --release -p narrows-tests --test endurance -- --ignored --minutes {}`, {:.0?}.\n\n",
        about.date,
        about.machine,
        about.load,
        (about.wanted.as_secs_f64() / 6.0).round() / 10.0,
        about.took
    );
    text.push_str("| check | case | figures | |\n|---|---|---|---|\n");
    let mut last = "";
    for row in rows {
        let check = if row.check == last { "" } else { row.check };
        last = row.check;
        let verdict = if row.faults.is_empty() {
            "pass".to_owned()
        } else {
            format!("**fail**: {}", row.faults.join("; "))
        };
        let _ =
            writeln!(text, "| {check} | {} | {} | {} |", row.case, row.figures, verdict.replace('|', "/"));
    }
    text
}

/// Returns how many cases passed, or which ones failed.
pub(crate) fn verdict(rows: &[Row]) -> Result<usize, String> {
    let failed: Vec<_> = rows.iter().filter(|row| !row.faults.is_empty()).collect();
    if failed.is_empty() && !rows.is_empty() {
        return Ok(rows.len());
    }
    let names: String = failed.iter().map(|row| format!("\n{}", row.line())).collect();
    Err(format!("{} of {} cases failed:{names}", failed.len(), rows.len()))
}

/// Returns the quantile of sorted values.
pub(crate) fn quantile(sorted: &[u64], share: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let at = (sorted.len().saturating_sub(1) as f64 * share) as usize;
    sorted.get(at).copied().unwrap_or(0)
}

pub(crate) fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    quantile(&values, 0.5)
}

/// Microseconds, for people.
pub(crate) fn time(us: u64) -> String {
    match us {
        0..10_000 => format!("{us} us"),
        10_000..10_000_000 => format!("{} ms", us / 1000),
        _ => format!("{} s", us / 1_000_000),
    }
}

/// KiB, for people.
pub(crate) fn kib(kib: u64) -> String {
    if kib < 10_240 { format!("{kib} KiB") } else { format!("{} MiB", kib >> 10) }
}

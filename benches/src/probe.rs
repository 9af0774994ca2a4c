//! Is the machine the same before and after a row? The host may move the virtual CPUs, and others may work.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys;

/// Nanoseconds of a bare cache-line round trip between two CPUs: the median of 3 ms. 0 if there is one CPU only.
pub(crate) fn cache_line(cpus: [usize; 2]) -> f64 {
    if cpus[0] == cpus[1] {
        return 0.0;
    }
    let (line, done) = (CacheLine(AtomicU64::new(0)), CacheLine(AtomicU64::new(0)));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _pinned = sys::pin(cpus[1]);
            while done.0.load(Ordering::Relaxed) == 0 {
                let value = line.0.load(Ordering::Acquire);
                if value % 2 == 1 {
                    line.0.store(value + 1, Ordering::Release);
                }
            }
        });
        let driver = scope.spawn(|| {
            let _pinned = sys::pin(cpus[0]);
            let median = median_round_trip(Duration::from_millis(3), &line.0);
            done.0.store(1, Ordering::Relaxed);
            median
        });
        driver.join().unwrap_or(0.0)
    })
}

/// Alone on its two cache lines.
#[repr(align(128))]
struct CacheLine(AtomicU64);

fn median_round_trip(time: Duration, word: &AtomicU64) -> f64 {
    const BATCH: u32 = 100;
    let (began, mut times) = (Instant::now(), Vec::with_capacity(1 << 10));
    while began.elapsed() < time || times.len() < 3 {
        let start = Instant::now();
        for _ in 0..BATCH {
            let sent = word.load(Ordering::Relaxed) + 1;
            word.store(sent, Ordering::Release);
            while word.load(Ordering::Acquire) == sent {}
        }
        times.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH));
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Returns the CPU seconds that all processes have used so far, and those that the host took, in steps of 0.01.
pub fn busy_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let hundredths = fields.map(|it| it.parse().unwrap_or(0.0));
    // user nice system idle iowait irq softirq steal; guest time is within user's.
    let counts = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
    hundredths.zip(counts).map(|(it, counts): (f64, f64)| it * counts).sum::<f64>() / 100.0
}

/// Returns the CPU seconds that all other processes have used so far; a child counts as one of them while it runs.
pub fn cpu_seconds_of_others() -> f64 {
    busy_seconds() - sys::cpu_seconds() - sys::cpu_seconds_of_children()
}

/// Returns a description of the machine: CPU, kernel, time.
pub fn machine() -> BTreeMap<String, String> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    BTreeMap::from([
        ("cpu".into(), model.trim_start_matches([' ', '\t', ':']).into()),
        ("cpus".into(), sys::cpus().len().to_string()),
        ("kernel".into(), read("/proc/sys/kernel/osrelease").trim().into()),
        ("unix time".into(), since.to_string()),
    ])
}

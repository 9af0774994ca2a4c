//! The command line, the same for every benchmark.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;

use crate::driver::Subject;
use crate::record::{Record, Row};
use crate::run::{self, RunPlan};
use crate::system::Job;
use crate::{plot, probe, report, sys, targets};

/// The options of a benchmark: `cargo bench -p narrows-benches --bench NAME -- …`.
#[derive(Parser, Debug)]
struct Arguments {
    /// Only rows whose name has all these words (comma between them); may be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// Only these sizes, comma between them.
    #[arg(long, value_delimiter = ',')]
    size: Vec<usize>,
    /// Only these placements: two, one, free, busy.
    #[arg(long = "place", value_name = "PLACE", value_delimiter = ',')]
    placements: Vec<String>,
    /// Only the rows that these targets need, comma between them.
    #[arg(long, value_delimiter = ',')]
    target: Vec<u8>,
    /// How often each row is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds of each measurement.
    #[arg(long, default_value_t = 200)]
    millis: u64,
    /// Milliseconds of the warm-up before it.
    #[arg(long, default_value_t = 30)]
    warm: u64,
    /// The two CPUs of the placement `two`; the first is that of `one`. Default: the first two.
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// Count disturbed rows too: during which other processes worked, or the CPUs moved.
    #[arg(long)]
    keep: bool,
    /// Where the results go.
    #[arg(long, default_value = "target/benches")]
    out: PathBuf,
    /// Name the rows, measure none.
    #[arg(long)]
    list: bool,
    /// Measure nothing, make tables and plots of these results again.
    #[arg(long, num_args = 1..)]
    report: Vec<PathBuf>,
    /// Cargo passes this to a benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    job: Option<String>,
    #[arg(long, hide = true)]
    spin: bool,
}

/// Runs one side of a row, or all rows and their report. The `main` of each benchmark calls it.
pub fn main(name: &str, subjects: &[Subject], rows: Vec<Row>) -> Result<()> {
    let arguments = Arguments::parse();
    enter_repository()?;
    if arguments.spin {
        sys::die_with_parent();
        loop {
            std::hint::spin_loop();
        }
    }
    if let Some(job) = &arguments.job {
        sys::die_with_parent();
        one_process(&serde_json::from_str(job)?, subjects);
        return Ok(());
    }
    if !arguments.report.is_empty() {
        return publish(name, &arguments.out, &read_all(&arguments.report)?);
    }
    let wanted: Vec<Row> = rows.into_iter().filter(|row| arguments.wants(row)).collect();
    if arguments.list {
        wanted.iter().for_each(|row| println!("{row}"));
        return Ok(());
    }
    ensure!(!wanted.is_empty(), "no such row");
    let trials = run::run(&arguments.plan()?, subjects, &wanted);
    let versions = subjects.iter().map(|it| (it.name.to_owned(), it.version.to_owned())).collect();
    let record = Record { about: about(&arguments), versions, trials };
    fs::create_dir_all(&arguments.out)?;
    fs::write(arguments.out.join(format!("{name}.json")), serde_json::to_string(&record)?)?;
    publish(name, &arguments.out, &record)
}

impl Arguments {
    fn wants(&self, row: &Row) -> bool {
        let name = row.to_string();
        let only = |words: &String| words.split(',').all(|word| name.contains(word));
        let targeted = || self.target.iter().any(|target| targets::needed(*target).contains(row));
        (self.target.is_empty() || targeted())
            && (self.only.is_empty() || self.only.iter().any(only))
            && (self.size.is_empty() || self.size.contains(&row.work.size))
            && (self.placements.is_empty() || self.placements.contains(&row.placement.to_string()))
    }

    fn plan(&self) -> Result<RunPlan> {
        let cpus = if self.cpus.is_empty() { sys::cpus() } else { self.cpus.clone() };
        ensure!(cpus.len() > 1, "the placement `two` needs two CPUs");
        Ok(RunPlan {
            rounds: self.rounds,
            time: Duration::from_millis(self.millis),
            warm: Duration::from_millis(self.warm),
            cpus: [cpus[0], cpus[1]],
            keep: self.keep,
        })
    }
}

/// Enters the folder of the repository, to which relative paths refer; cargo starts a benchmark in another.
pub fn enter_repository() -> Result<()> {
    Ok(std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))?)
}

/// Runs one side and prints its line.
fn one_process(job: &Job, subjects: &[Subject]) {
    let line = match job.thread {
        true => run::both_sides(job, subjects).map(|it| serde_json::to_string(&it)),
        false => run::side(job, subjects).map(|it| serde_json::to_string(&it)),
    };
    match line {
        Ok(Ok(line)) => println!("{line}"),
        Ok(Err(error)) => println!("{}{error}", run::FAILED),
        Err(error) => println!("{}{}", run::FAILED, format!("{error:#}").replace('\n', " ")),
    }
}

fn publish(name: &str, out: &Path, record: &Record) -> Result<()> {
    fs::create_dir_all(out)?;
    let tables = report::tables(record);
    fs::write(out.join(format!("{name}.md")), &tables)?;
    println!("{tables}\nResults: {}", out.join(format!("{name}.{{json,md}}")).display());
    for file in plot::draw(record, out, name)? {
        println!("Plot: {}", file.display());
    }
    Ok(())
}

/// Joins several runs.
fn read_all(paths: &[PathBuf]) -> Result<Record> {
    let mut all = Record { about: BTreeMap::new(), versions: BTreeMap::new(), trials: Vec::new() };
    for path in paths {
        let record: Record = serde_json::from_str(&fs::read_to_string(path)?)?;
        all.about.extend(record.about);
        all.versions.extend(record.versions);
        all.trials.extend(record.trials);
    }
    Ok(all)
}

fn about(arguments: &Arguments) -> BTreeMap<String, String> {
    let mut about = probe::machine();
    about.insert("rounds".into(), arguments.rounds.to_string());
    about.insert("milliseconds of each measurement".into(), arguments.millis.to_string());
    about
}

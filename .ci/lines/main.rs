//! Which lines of `src/` were run: `lines LIST PROFILE-FOLDER OBJECT...`, for `.ci/coverage`.
//!
//! A line counts by the regions of code that begin in it (the most often run), or else by the innermost region
//! around it. Test modules do not count. Fails if fewer than [`ENOUGH`] of all lines were run, if a line of
//! [`STRICT`] was not and the list does not have it, or if the list has a line that was run or is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use llvm_profparser::{CoverageMapping, coverage::reporting::CoverageResult, merge_profiles};

/// Per cent of all lines.
const ENOUGH: f64 = 95.0;

/// Where each line that was not run needs a reason.
const STRICT: [&str; 6] =
    ["src/ring/", "src/handshake/", "src/layout.rs", "src/channel/reassembly.rs", "src/memory/", "src/memory.rs"];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let (list, folder) = (args.next().ok_or("LIST")?, args.next().ok_or("FOLDER")?);
    let objects: Vec<PathBuf> = args.map(PathBuf::from).collect();
    let profiles: Result<Vec<_>, _> = fs::read_dir(folder)?.map(|entry| entry.map(|it| it.path())).collect();
    let profile = merge_profiles(&profiles?)?;
    let report = CoverageMapping::new(&objects, &profile, false)?.generate_report()?;
    let mut files = BTreeMap::new();
    for (path, result) in &report.files {
        let Some(path) = ours(path) else { continue };
        files.insert(path.clone(), judged(&fs::read_to_string(&path)?, result));
    }
    let missing = print(&files);
    let (run, all) =
        files.values().flatten().fold((0, 0), |(run, all), line| (run + usize::from(line.run), all + 1));
    let share = 100.0 * f64::from(u32::try_from(run)?) / f64::from(u32::try_from(all)?);
    println!("{share:6.2} %  {run} of {all} lines of src/");
    let complaints = complaints(&fs::read_to_string(list)?, &missing);
    complaints.iter().for_each(|complaint| println!("{complaint}"));
    Ok(ExitCode::from(u8::from(share < ENOUGH || !complaints.is_empty())))
}

struct Line {
    number: usize,
    text: String,
    run: bool,
}

/// The path from the root on, if it is one of the library's own.
fn ours(path: &Path) -> Option<String> {
    let here = env::current_dir().ok()?;
    let path = path.strip_prefix(here).unwrap_or(path);
    let path = path.strip_prefix("tests/..").unwrap_or(path).to_str()?; // The package of the tests builds them.
    let test = path.contains("..") || ["/tests.rs", "/testing.rs"].iter().any(|end| path.ends_with(end));
    let test = test || path == "src/internal.rs";
    (path.starts_with("src/") && !test).then(|| path.to_owned())
}

/// The lines that carry code, up to the test module.
fn judged(source: &str, result: &CoverageResult) -> Vec<Line> {
    let lines: Vec<&str> = source.lines().collect();
    let end = lines.windows(2).position(|two| two[0] == "#[cfg(test)]" && two[1] == "mod tests {");
    let judge = |(index, text): (usize, &&str)| {
        let number = index + 1;
        let hits = hits(result, number)?;
        Some(Line { number, text: text.trim().to_owned(), run: hits > 0 })
    };
    let code = lines[..end.unwrap_or(lines.len())].iter().enumerate();
    code.filter(|(_, text)| !matches!(text.trim(), "" | "}" | "})" | "});" | "};"))
        .filter_map(judge)
        .collect()
}

fn hits(result: &CoverageResult, line: usize) -> Option<usize> {
    let regions = || result.hits.iter().filter(move |(it, _)| it.line_start <= line && line <= it.line_end);
    let begins = regions().filter(|(it, _)| it.line_start == line).map(|(_, hits)| *hits).max();
    let innermost =
        || regions().max_by_key(|(it, _)| (it.line_start, it.column_start)).map(|(_, hits)| *hits);
    begins.or_else(innermost)
}

/// Prints each file; returns the lines that were not run, as `path: text`.
fn print(files: &BTreeMap<String, Vec<Line>>) -> BTreeSet<String> {
    let mut missing = BTreeSet::new();
    for (path, lines) in files {
        let run = lines.iter().filter(|line| line.run).count();
        println!(
            "{:6.2} %  {path}: {run} of {}",
            100.0 * run as f64 / lines.len().max(1) as f64,
            lines.len()
        );
        for line in lines.iter().filter(|line| !line.run) {
            println!("          {path}:{}: {}", line.number, line.text);
            missing.insert(format!("{path}: {}", line.text));
        }
    }
    missing
}

/// What the list says too much or too little; its lines are `path: text: reason`, `#` begins a comment.
fn complaints(list: &str, missing: &BTreeSet<String>) -> Vec<String> {
    let listed: Vec<&str> = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let of = |listed: &str, line: &str| {
        listed.strip_prefix(line).is_some_and(|it| it.starts_with(": ") && it.len() > 2)
    };
    let stale = listed.iter().filter(|it| !missing.iter().any(|line| of(it, line)));
    let strict = missing.iter().filter(|line| STRICT.iter().any(|path| line.starts_with(path)));
    let unlisted = strict.filter(|line| !listed.iter().any(|it| of(it, line)));
    let stale = stale.map(|it| format!("in the list, but run, or not there: {it}"));
    stale.chain(unlisted.map(|line| format!("not run, and not in the list: {line}"))).collect()
}

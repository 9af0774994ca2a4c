//! Pictures of a run, as SVG: the distribution of round trips, and time and rate over size.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plotters::prelude::*;

use crate::figures::{self, Figure, RowResults, Summary};
use crate::record::{CpuPlacement, Record, Row, Trial};
use crate::system::{Access, WorkKind};
use crate::{Result, anyhow};

/// Draws what the run has; the files come out.
pub(crate) fn draw(record: &Record, out: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let ledger = RowResults::of(record);
    let mut charts = vec![
        over_size(&ledger, WorkKind::RoundTrip, "Round trip, median", "us", |trial| {
            Some(figures::p50(trial)? / 1e3)
        }),
        over_size(&ledger, WorkKind::OneWay, "One way, rate", "GB/s", |trial| {
            Some(figures::bytes_rate(trial)? / 1e9)
        }),
        over_size(&ledger, WorkKind::OneWay, "One way, messages", "million/s", |trial| {
            Some(figures::rate(trial)? / 1e6)
        }),
    ];
    charts.extend(SIZES.map(|size| distribution(&ledger, size)));
    let mut files = Vec::new();
    for (chart, suffix) in charts.iter().zip(SUFFIXES).filter(|(chart, _)| !chart.lines.is_empty()) {
        let file = out.join(format!("{name}-{suffix}.svg"));
        chart.draw(&file)?;
        files.push(file);
    }
    Ok(files)
}

/// The sizes whose distribution is drawn.
const SIZES: [usize; 3] = [64, 1 << 10, 64 << 10];
const SUFFIXES: [&str; 6] = ["roundtrip", "bandwidth", "rate", "latency-64", "latency-1024", "latency-65536"];

/// One picture of several lines; both axes are logarithmic.
#[derive(Debug)]
struct Chart {
    title: String,
    /// Title, labels, base of the scale.
    across: (&'static str, fn(f64) -> String, f64),
    up: &'static str,
    /// Name and points.
    lines: BTreeMap<String, Vec<(f64, f64)>>,
}

fn over_size(
    ledger: &RowResults<'_>,
    what: WorkKind,
    title: &str,
    up: &'static str,
    figure: Figure,
) -> Chart {
    let mut lines: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (row, trials) in dense(ledger, what) {
        let size = f64::from(u32::try_from(row.work.size).unwrap_or(u32::MAX));
        if let Some(cell) = figures::cell(trials, figure) {
            lines.entry(name_of(row)).or_default().push((size, cell.median));
        }
    }
    lines.retain(|_, points| points.len() > 1);
    thin(&mut lines);
    lines.values_mut().for_each(|points| points.sort_by(|one, other| one.0.total_cmp(&other.0)));
    Chart {
        title: format!("{title}; two processes on two CPUs"),
        across: ("bytes of a message", bytes, 4.0),
        up,
        lines,
    }
}

/// How many of the round trips took longer than what: the tail is on the right.
fn distribution(ledger: &RowResults<'_>, size: usize) -> Chart {
    let mut lines = BTreeMap::new();
    for (row, trials) in dense(ledger, WorkKind::RoundTrip).filter(|(row, _)| row.work.size == size) {
        lines.insert(name_of(row), tail(trials));
    }
    thin(&mut lines);
    lines.retain(|_, points| !points.is_empty());
    let title = format!("Round trips of {size} B: how long, up to which share; two processes on two CPUs");
    Chart { title, across: ("share of the round trips", share, 10.0), up: "us", lines }
}

/// (1 / share that took longer, microseconds), the median over the rounds.
fn tail(trials: &[&Trial]) -> Vec<(f64, f64)> {
    let mut points: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for latency in trials.iter().filter_map(|trial| trial.a.as_ref()?.latency.as_ref()) {
        for (share, nanos) in latency.quantiles.iter().filter(|(share, _)| *share < 1.0) {
            points.entry(share.to_bits()).or_default().push(*nanos);
        }
    }
    let points = points.into_iter().filter_map(|(bits, nanos)| {
        let longer = 1.0 - f64::from_bits(bits);
        Some((1.0 / longer, Summary::of(nanos)?.median / 1e3))
    });
    points.collect()
}

/// Of many lines, narrows keeps all and the others one each: adaptive if they can, else sleeping.
fn thin(lines: &mut BTreeMap<String, Vec<(f64, f64)>>) {
    let mut seen = Vec::new();
    if lines.len() > MOST {
        // In the order of their names: Adaptive, Park, Spin.
        lines.retain(|name, _| {
            let system = name.split(' ').next().unwrap_or_default().to_owned();
            let first = !seen.contains(&system);
            seen.push(system);
            first || name.starts_with("narrows ")
        });
    }
}

/// Lines in one picture that can still be told apart.
const MOST: usize = 14;

fn dense<'a>(
    ledger: &'a RowResults<'a>,
    what: WorkKind,
) -> impl Iterator<Item = (&'a Row, &'a Vec<&'a Trial>)> {
    let rows = ledger.rows.iter().map(|(row, trials)| (*row, trials));
    rows.filter(move |(row, _)| {
        let work = row.work;
        // Where a message is lent without being written, there is nothing to compare.
        row.system != "narrows-lend"
            && work.kind == what
            && work.batch == 1
            && work.gap.is_zero()
            && row.place == CpuPlacement::Two
    })
}

fn name_of(row: &Row) -> String {
    let place = if row.work.access == Access::InPlace { ", in place" } else { "" };
    format!("{} {:?}{place}", row.system, row.work.wait)
}

fn bytes(size: f64) -> String {
    match size {
        _ if size >= 1_048_576.0 => format!("{:.0} MiB", size / 1_048_576.0),
        _ if size >= 1024.0 => format!("{:.0} KiB", size / 1024.0),
        _ => format!("{size:.0}"),
    }
}

fn share(longer: f64) -> String {
    format!("{:.4}", 1.0 - 1.0 / longer).trim_end_matches('0').trim_end_matches('.').into()
}

impl Chart {
    /// Writes it to a file, as SVG.
    fn draw(&self, file: &Path) -> Result<()> {
        self.draw_with(file).map_err(|error| anyhow!("{}: {error}", file.display()))
    }

    fn draw_with(&self, file: &Path) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(file, (960, 560)).into_drawing_area();
        root.fill(&WHITE)?;
        let (x, y) = (range(self.points().map(|it| it.0)), range(self.points().map(|it| it.1)));
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 18))
            .margin(10)
            .margin_right(260)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(x.log_scale().base(self.across.2), y.log_scale())?;
        let across = |value: &f64| (self.across.1)(*value);
        let mesh = &mut chart.configure_mesh();
        mesh.x_desc(self.across.0).y_desc(self.up).x_label_formatter(&across).draw()?;
        for (index, (name, points)) in self.lines.iter().enumerate() {
            let color = Palette99::pick(index).to_rgba();
            chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
            let last = points.last().copied().unwrap_or((1.0, 1.0));
            chart.draw_series([Circle::new(last, 3, color.filled())])?;
            let row = 40 + i32::try_from(index)? * 16;
            root.draw(&Rectangle::new([(715, row), (727, row + 8)], color.filled()))?;
            root.draw(&Text::new(name.clone(), (732, row - 3), ("sans-serif", 13)))?;
        }
        Ok(root.present()?)
    }

    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.lines.values().flatten().copied()
    }
}

fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::MAX, 1e-9), |(low, high), it| (low.min(it), f64::max(high, it)));
    low.max(1e-9) / 1.2..high * 1.2
}

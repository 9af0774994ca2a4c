//! Pictures of a run, as SVG: the distribution of the round trips of 64 B, and the rate over the size.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::figures::{self, RowResults, Summary};
use crate::record::{CpuPlacement, Record, Row, Trial};
use crate::system::{Access, WorkKind};

/// Draws the pictures of a run; returns their files.
pub(crate) fn draw(record: &Record, out: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let results = RowResults::of(record);
    let charts = [("bandwidth", bandwidth(&results)), ("latency-64", distribution(&results, 64))];
    let mut files = Vec::new();
    for (suffix, chart) in charts.iter().filter(|(_, chart)| !chart.lines.is_empty()) {
        let file = out.join(format!("{name}-{suffix}.svg"));
        chart.draw(&file)?;
        files.push(file);
    }
    Ok(files)
}

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

/// The rate over the size of a message.
fn bandwidth(results: &RowResults<'_>) -> Chart {
    let mut lines: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (row, trials) in dense(results, WorkKind::OneWay) {
        let size = f64::from(u32::try_from(row.work.size).unwrap_or(u32::MAX));
        if let Some(rate) = figures::cell(trials, figures::bytes_rate) {
            lines.entry(name_of(row)).or_default().push((size, rate.median / 1e9));
        }
    }
    lines.retain(|_, points| points.len() > 1);
    thin(&mut lines);
    lines.values_mut().for_each(|points| points.sort_by(|one, other| one.0.total_cmp(&other.0)));
    let title = "One way, rate; two processes on two CPUs".into();
    Chart { title, across: ("bytes of a message", bytes, 4.0), up: "GB/s", lines }
}

/// How long the round trips took, up to which share of them: the tail is on the right.
fn distribution(results: &RowResults<'_>, size: usize) -> Chart {
    let mut lines = BTreeMap::new();
    for (row, trials) in dense(results, WorkKind::RoundTrip).filter(|(row, _)| row.work.size == size) {
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

/// Of many lines keeps all of narrows and one of each other system: adaptive if there is one, else sleeping.
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

/// Lines in one picture that can still be distinguished.
const MOST: usize = 14;

fn dense<'a>(
    results: &'a RowResults<'a>,
    what: WorkKind,
) -> impl Iterator<Item = (&'a Row, &'a Vec<&'a Trial>)> {
    let rows = results.rows.iter().map(|(row, trials)| (*row, trials));
    rows.filter(move |(row, _)| {
        let work = row.work;
        // Lending without writing is no transfer of a message.
        row.system != "narrows-lend"
            && work.kind == what
            && work.batch == 1
            && work.gap.is_zero()
            && row.placement == CpuPlacement::Two
    })
}

fn name_of(row: &Row) -> String {
    let access = if row.work.access == Access::InPlace { ", in place" } else { "" };
    format!("{} {:?}{access}", row.system, row.work.wait)
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

//! The connection flood: many connections at once, each of which is served.

use std::time::Duration;

use crate::processes::{Actor, most_descriptors};
use crate::table::{Row, quantile, time};
use crate::watch::{Sample, Stage};

const STEPS: [usize; 5] = [1, 8, 64, 256, 1000];
/// Processes that share the connections of a step.
const PROCESSES: usize = 8;
/// Descriptors that a server needs beside those of its connections.
const BESIDE: usize = 64;

pub(crate) fn run(stage: &Stage) -> Vec<Row> {
    let limit = most_descriptors();
    let mut rows = Vec::new();
    for wanted in STEPS {
        let connections = wanted.min(limit.saturating_sub(BESIDE)).max(1);
        let mut row = step(stage, connections, stage.time / u32::try_from(STEPS.len()).expect("few"));
        if connections < wanted {
            row.figures.push_str(&format!("; **not {wanted}**: the hard limit is {limit} descriptors"));
        }
        rows.push(row);
        if crate::watch::interrupted() {
            break;
        }
    }
    rows
}

fn step(stage: &Stage, connections: usize, share: Duration) -> Row {
    let mut row = Row::new("connection flood", format!("{connections} at once"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("calls");
    let mut server = Actor::server(&path, "");
    let base = server.base(&path);
    let processes = PROCESSES.min(connections);
    let mut actors: Vec<_> = (0..processes)
        .map(|at| {
            let count = connections / processes + usize::from(at < connections % processes);
            Actor::start("many-connections", &format!("path={};connections={count}", path.display()))
        })
        .collect();
    actors.iter().for_each(|it| assert_eq!(it.receive(), "ready"));
    stage.report_progress(&format!("{connections} connections begin"));
    // At once: all get the order before any answer is received.
    actors.iter_mut().for_each(|it| it.send("go"));
    let mut firsts = received(&actors);
    let sample = Sample::of(server.pid());
    actors.iter_mut().for_each(|it| it.send("mark"));
    actors.iter().for_each(|it| assert_eq!(it.receive(), "marked"));
    stage.report_progress(&format!("{connections} connections are served"));
    stage.rest(share.max(Duration::from_millis(300)));
    actors.iter_mut().for_each(|it| it.send("stop"));
    let mut served = received(&actors);
    actors.into_iter().for_each(Actor::end);
    row.faults.extend(server.leftovers(&base));
    server.end();

    firsts.sort_unstable();
    served.sort_unstable();
    let all: u64 = served.iter().sum();
    row.wants(firsts.len() == connections, || format!("{} had a first reply", firsts.len()));
    row.wants(served.len() == connections, || format!("{} were served", served.len()));
    row.wants(served.first().is_some_and(|least| *least > 0), || {
        let starved = served.iter().filter(|it| **it == 0).count();
        format!("{starved} connections were not served in {share:.1?}")
    });
    let (least, middle, most) = (quantile(&served, 0.0), quantile(&served, 0.5), quantile(&served, 1.0));
    row.figures(format!(
        "{all} calls in {share:.1?}; served least / median / most: {least} / {middle} / {most}; first reply median {}, \
         last {}; server {} threads, {} descriptors",
        time(quantile(&firsts, 0.5)),
        time(quantile(&firsts, 1.0)),
        sample.threads,
        sample.descriptors,
    ))
}

/// The numbers that all of them answer.
fn received(actors: &[Actor]) -> Vec<u64> {
    let lines = actors.iter().map(Actor::receive).collect::<Vec<_>>();
    lines.iter().flat_map(|line| line.split(' ')).map(|it| it.parse().expect("a number")).collect()
}

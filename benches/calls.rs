//! The cost of a call, beside that of the stream beneath it, between two processes: `cargo bench -p narrows-benches --bench calls`.
//!
//! ```text
//!   narrows      the raw round trip, as in the bench `stream`
//!   call         an inline method that echoes: one caller (round trips), k callers (`ow …/xk`: calls a second)
//!   call-pooled  the same from the pool of workers: one hop more
//!   call-empty   an inline method that replies nothing
//!   call-chunks  one call whose reply is a stream of chunks (`ow`: chunks a second)
//! ```
//!
//! Requests are made and replies checked as in every benchmark. Methods that do any work are not shown.

use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use harness::narrows_streams::{Narrows, options};
use harness::{
    Access, Check, CpuPlacement, Job, Measurement, Result, Row, Side, SideReport, Source, Subject,
    UsageMeter, Wait, Work, WorkKind, dense, retry, systems, targets,
};
use narrows::{SharedMemoryClient, SharedMemoryServer};

fn main() -> Result<()> {
    let mut subjects = systems![Narrows];
    subjects.push(Subject::measure::<Calls<ECHO>>());
    subjects.push(Subject::measure::<Calls<POOLED>>());
    subjects.push(Subject::measure::<Calls<EMPTY>>());
    subjects.push(Subject::measure::<Calls<CHUNKS>>());
    harness::main("calls", &subjects, rows(&subjects))
}

fn rows(subjects: &[Subject]) -> Vec<Row> {
    let mut works = Vec::new();
    for wait in [Wait::Adaptive, Wait::Park, Wait::Spin] {
        for size in [32, 1 << 10, 64 << 10, 1 << 20] {
            works.push((Work::new(WorkKind::RoundTrip, size).wait(wait), CpuPlacement::Two));
        }
    }
    works.extend(
        [CpuPlacement::One, CpuPlacement::Free]
            .map(|placement| (Work::new(WorkKind::RoundTrip, 32), placement)),
    );
    for callers in [1, 2, 4, 16] {
        works.push((Work::new(WorkKind::OneWay, 32).batch(callers), CpuPlacement::Two));
    }
    for size in [32, 1 << 10, 16 << 10] {
        works.push((Work::new(WorkKind::OneWay, size), CpuPlacement::Two));
    }
    let mut rows: Vec<Row> = targets::needed(14);
    for (work, placement) in works {
        for subject in subjects.iter().filter(|it| (it.supports)(&work)) {
            let row = Row { system: subject.name.into(), work, placement };
            let other_bench = subject.name == "narrows" && work.kind == WorkKind::OneWay;
            if !other_bench && !rows.contains(&row) {
                rows.push(row);
            }
        }
    }
    rows
}

const ECHO: u32 = 1;
const POOLED: u32 = 2;
const EMPTY: u32 = 3;
const CHUNKS: u32 = 4;
/// Signals to the serving side, not measured: begin to count; end.
const MARK: u32 = 5;
const STOP: u32 = 6;

/// Calls of one method.
struct Calls<const METHOD: u32>;

impl<const METHOD: u32> Measurement for Calls<METHOD> {
    const NAME: &'static str = match METHOD {
        ECHO => "call",
        POOLED => "call-pooled",
        EMPTY => "call-empty",
        _ => "call-chunks",
    };
    const VERSION: &'static str = "0.1.0";

    fn supports(work: &Work) -> bool {
        let supported = match work.kind {
            WorkKind::RoundTrip => work.batch == 1 && METHOD != CHUNKS,
            WorkKind::OneWay => METHOD != EMPTY && (work.batch == 1 || METHOD != CHUNKS),
            _ => false,
        };
        supported && work.access == Access::Copy
    }

    fn run(job: &Job) -> Result<SideReport> {
        let path = job.folder.join("calls");
        if job.side == Side::B {
            return serve(job);
        }
        let own = options(job.work.wait);
        let client = retry(|| SharedMemoryClient::builder(&path).options(own.clone()).connect())?;
        let report = match job.work.kind {
            WorkKind::RoundTrip => one_caller(METHOD, job, &client),
            _ if METHOD == CHUNKS => chunks(job, &client),
            _ => many_callers(METHOD, job, &client),
        }?;
        client.call(STOP, &[])?;
        Ok(report)
    }
}

/// Makes the request, calls, checks the reply; the calls come one after the other.
struct Caller<'a> {
    client: &'a SharedMemoryClient,
    method: u32,
    source: Source,
    check: Check,
    reply: Vec<u8>,
}

impl<'a> Caller<'a> {
    fn new(client: &'a SharedMemoryClient, method: u32, size: usize) -> Self {
        Self { client, method, source: Source::new(size), check: Check::new(size), reply: Vec::new() }
    }

    #[inline]
    fn call(&mut self) -> Result<()> {
        self.client.call_into(self.method, self.source.message(), &mut self.reply)?;
        if self.method == EMPTY {
            harness::ensure!(self.reply.is_empty(), "a reply");
            return Ok(());
        }
        self.check.validate(&self.reply);
        self.check.one_message()
    }
}

fn one_caller(method: u32, job: &Job, client: &SharedMemoryClient) -> Result<SideReport> {
    let mut caller = Caller::new(client, method, job.work.size);
    dense(job, || Ok(client.call(MARK, &[]).map(drop)?), || caller.call())
}

/// Each thread for the whole time; the marks are those of the first.
fn many_callers(method: u32, job: &Job, client: &SharedMemoryClient) -> Result<SideReport> {
    let one = |mark: bool| {
        let mut caller = Caller::new(client, method, job.work.size);
        let mark = || if mark { Ok(client.call(MARK, &[]).map(drop)?) } else { Ok(()) };
        dense(job, mark, || caller.call())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..job.work.batch).map(|_| scope.spawn(|| one(false))).collect();
        let mut report = one(true)?;
        for other in others {
            let other = other.join().map_err(|_| harness::anyhow!("a caller panicked"))??;
            report.count += other.count;
        }
        report.latency = None; // Of one thread of many, and what counts here is all of them.
        Ok(report)
    })
}

fn chunks(job: &Job, client: &SharedMemoryClient) -> Result<SideReport> {
    let mut check = Check::new(job.work.size);
    let mut stream = client.call_streaming(CHUNKS, &(job.work.size as u64).to_le_bytes())?;
    let report = dense(
        job,
        || Ok(client.call(MARK, &[]).map(drop)?),
        || {
            let chunk = stream.next_chunk()?;
            check.validate(&chunk.unwrap_or_default());
            check.one_message()
        },
    );
    stream.cancel();
    report.map(|it| SideReport { latency: None, ..it })
}

fn serve(job: &Job) -> Result<SideReport> {
    let (sender, signals) = mpsc::channel();
    let forward =
        |sender: Sender<u32>, signal| move || sender.send(signal).map_err(|error| error.to_string());
    let (mark, stop) = (forward(sender.clone(), MARK), forward(sender, STOP));
    let _server = SharedMemoryServer::bind_with(job.folder.join("calls"), &options(job.work.wait))?
        .inline(ECHO, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .method(POOLED, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .inline(EMPTY, |_, _| Ok(()))
        .streaming(CHUNKS, |request, chunks| {
            let size = request.bytes().first_chunk().map_or(8, |it| u64::from_le_bytes(*it));
            let mut source = Source::new(usize::try_from(size).unwrap_or(8));
            while chunks.write_chunk(source.message()).is_ok() {}
            Ok(())
        })
        .inline(MARK, move |_, _| Ok(mark()?))
        .inline(STOP, move |_, _| Ok(stop()?))
        .spawn()?;
    let mut meter = UsageMeter::start(false);
    while signals.recv()? == MARK {
        meter = UsageMeter::start(false);
    }
    let report = meter.stop(0);
    thread::sleep(Duration::from_millis(20)); // The reply to the stop is read before the server ends.
    Ok(report)
}

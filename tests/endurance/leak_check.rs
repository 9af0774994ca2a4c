//! The leak check: start a server, connect, call and stop, repeatedly. After each cycle a process has the resources that it had
//! before.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use narrows::{CallError, SharedMemoryClient, SharedMemoryStream};

use crate::clients::{Caller, connect, request};
use crate::processes::{Actor, PATIENCE, RoleArguments, answer, fault, name, options, orders};
use crate::serve::{CHUNKS, ECHO, FLOOD, STALL, Served};
use crate::support::{Kept, eventually, fill, index_of, me};
use crate::table::{Row, kib, median};
use crate::watch::{Sample, Stage, change, grown};

/// The least number of cycles, after those that warm up.
const LEAST: usize = 120;
const WARM: usize = 16;

pub(crate) fn run(stage: &Stage) -> Vec<Row> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut runner = Actor::start_in_one_arena("leak-check", &format!("path={}", folder.path().display()));
    let began = Instant::now();
    let mut samples: Vec<Vec<u64>> = Vec::new();
    while (samples.len() < WARM + LEAST || !stage.is_over()) && !crate::watch::interrupted() {
        samples.push(runner.numbers("next"));
        let last = &samples[samples.len() - 1];
        stage.report_progress(&format!("{} cycles; private {}", samples.len(), kib(last[0])));
    }
    runner.end();
    let left = std::fs::read_dir(folder.path()).expect("lists").count();
    let mut row = Row::new("leak check", "start a server, clients, calls, stop");
    let count = samples.len().saturating_sub(WARM);
    let warm = &samples[WARM.min(samples.len())..];
    let column = |of: &[Vec<u64>], at: usize| median(of.iter().map(|it| it[at]).collect());
    let (third, mut figures) = ((warm.len() / 3).max(1).min(warm.len()), Vec::new());
    let (first, last) = (&warm[..third], &warm[warm.len() - third..]);
    let names = [
        "private KiB",
        "shared KiB",
        "threads",
        "descriptors",
        "mappings",
        "regions",
        "files",
        "allocated bytes",
    ];
    for (at, what) in names.into_iter().enumerate() {
        let (first, last) = (column(first, at), column(last, at));
        let grew = match what {
            "private KiB" => grown(first, last, 10, 2 << 10),
            "mappings" => grown(first, last, 20, 4),
            "allocated bytes" => grown(first, last, 1 << 40, 1024),
            _ => last != first || warm.iter().any(|it| it[at] != first),
        };
        row.wants(!grew, || format!("{what} went from {first} to {last}"));
        figures.push(format!("{what} {}", change(first, last)));
    }
    row.wants(count >= LEAST, || format!("{count} cycles"));
    row.wants(left == 0, || format!("{left} files were left"));
    vec![row.figures(format!("{count} cycles in {:.0?}; {}", began.elapsed(), figures.join(", ")))]
}

/// Runs a cycle for each order, waits until all that it made is gone, and reports the resources of this process.
pub(crate) fn run_cycles(arguments: &RoleArguments) {
    let folder = arguments.path();
    let mut base = None;
    for (at, _) in orders().enumerate() {
        cycle(at, folder);
        let here = || Sample::of(std::process::id());
        // Whatever ends by itself ends soon. Whatever does not is a leak.
        let base = *base.get_or_insert_with(|| {
            thread::sleep(Duration::from_millis(300));
            here()
        });
        if !eventually(|| here().exact() == base.exact()) {
            fault(&format!("cycle {at} left {:?}, the first {base:?}", here()));
        }
        let files = std::fs::read_dir(folder).expect("lists").count();
        let Sample { private, shared, threads, descriptors, mappings, regions } = here();
        let allocated = crate::heap::live() as u64;
        let numbers = [private, shared, threads, descriptors, mappings, regions, files as u64, allocated];
        answer(&numbers.map(|it| it.to_string()).join(" "));
    }
}

fn cycle(at: usize, folder: &Path) {
    let path = folder.join(format!("socket{at}"));
    let arguments = format!("path={}", path.display());
    match at % 4 {
        // The server is in this process, and shuts down or is cut off. Clients are here and in another process, which is killed.
        0 | 1 => {
            let served = Served::begin(&path, &options());
            let mut short_lived = Actor::start("short-lived", &format!("{arguments};manner=wait"));
            let clients = thread::spawn({
                let path = path.clone();
                move || (0..2).for_each(|_| all_calls(&path))
            });
            all_calls(&path);
            clients.join().expect("no panic");
            short_lived.receive();
            short_lived.kill();
            if at % 8 < 4 { served.shutdown() } else { served.end() }
        }
        // The server is in another process, and closes cleanly or is killed during a call.
        2 => {
            let mut server = Actor::server(&path, "");
            all_calls(&path);
            let mut caller = Caller::connect(&path);
            let pending = caller.client.start_call(STALL, &request(&[600_000]));
            let pending = pending.unwrap_or_else(|error| fault(&format!("stall: {error}")));
            let killed = at % 8 < 4;
            if killed {
                server.kill();
            } else {
                server.end();
            }
            let wanted = if killed { "PeerDied" } else { "Disconnected" };
            let end = pending.wait().err().map(|error| name(&error)).unwrap_or_default();
            let stream_end = caller.stream.recv_timeout(&mut [0; 64], PATIENCE).err();
            let stream_end = stream_end.map(|error| name(&error)).unwrap_or_default();
            // No process is left that would remove them.
            let _ = std::fs::remove_file(&path);
            let _ = std::fs::remove_file(crate::serve::stream_path(&path));
            let never_begun = !killed && end == "ShuttingDown"; // The server ended before it had taken the call.
            if (end != wanted && !never_begun) || (killed && stream_end != wanted) {
                fault(&format!("the server's end was reported as {end} and {stream_end}, not {wanted}"));
            }
            drop(caller);
        }
        // Streams alone: of a child, and of a pair.
        _ => {
            let child = options().spawn(me("endurance", "inheritor", ""));
            let (child, mut stream) = child.unwrap_or_else(|error| fault(&format!("spawn: {error}")));
            let mut child = Kept(child);
            echoed(&mut stream);
            drop(stream);
            child.wait();
            let (mut one, mut other) = options().pair().expect("a pair");
            thread::scope(|s| {
                s.spawn(move || {
                    let mut message = Vec::new();
                    while other.recv_into(&mut message).is_ok() && other.send(&message).is_ok() {}
                });
                echoed(&mut one);
                drop(one);
            });
        }
    }
}

/// Each kind of call, one that is cancelled and one that times out among them.
fn all_calls(path: &Path) {
    let mut caller = Caller::connect(path);
    for len in [64, 5000, 300_000] {
        caller.round(len).unwrap_or_else(|error| fault(&error));
    }
    let late = caller.client.call_timeout(STALL, &request(&[60_000]), Duration::from_millis(1));
    if !matches!(late, Err(CallError::Timeout)) {
        fault(&format!("a call that times out: {late:?}"));
    }
    let flood = |caller: &SharedMemoryClient| caller.call_streaming(FLOOD, &request(&[20_000]));
    let mut stream = flood(&caller.client).unwrap_or_else(|error| fault(&format!("flood: {error}")));
    let _first = stream.next_chunk_timeout(PATIENCE);
    drop(stream); // It is cancelled.
    let unread = caller.client.call_streaming(CHUNKS, &request(&[0, 3, 1000]));
    drop(unread);
    // One more client that is dropped with a call in flight.
    let other = connect(path, &options()).unwrap_or_else(|error| fault(&format!("connect: {error}")));
    let mut message = Vec::new();
    fill(&mut message, 0, 100);
    let _answered = other.call(ECHO, &message);
    let _pending = other.start_call(STALL, &request(&[60_000]));
}

fn echoed(stream: &mut SharedMemoryStream) {
    let (mut message, mut copy) = (Vec::new(), Vec::new());
    for (index, len) in (0..).zip([64, 5000, 300_000, 2_000_000]) {
        fill(&mut message, index, len);
        let sent = stream.send_timeout(&message, PATIENCE);
        sent.unwrap_or_else(|error| fault(&format!("send: {error}")));
        let came = stream.recv_into_timeout(&mut copy, PATIENCE);
        came.unwrap_or_else(|error| fault(&format!("receive: {error}")));
        if index_of(&copy) != Some(index) {
            fault("a stream's message is not whole");
        }
    }
}

//! A light client, B to J: a small call now and then, and pushes of the backend. One of them is killed each second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Result, monotonic};

use crate::backend::{HELLO, PING};
use crate::config::RunConfig;
use crate::connections;
use crate::item::{HEAD, Item, SequenceCheck, StreamKind, Text, stream};
use crate::line_protocol::{self, StatusLine};
use crate::recorder::{Metric, Recorder};
use crate::transport::Client;

/// Between two calls.
const PAUSE: Duration = Duration::from_millis(100);

/// Measurements are reported at this interval, since the process may be killed at any time.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// Runs the process of a light client; `replaces` is true if it replaces one that was killed.
pub(crate) fn run(config: &RunConfig, replaces: bool) -> Result<()> {
    let input = line_protocol::input_closed();
    let text = Text::new(config.plan.seed);
    let process = std::process::id();
    let (mut request, mut recorder) = (Vec::new(), Recorder::default());
    text.write(&mut request, stream(StreamKind::Control, 3), 0, &[process, 1], HEAD + 8);
    let began = monotonic();
    let client = connections::connect(config.transport, &config.path)?;
    let reply = client.call(HELLO, &request)?;
    if replaces {
        recorder.record_since(Metric::Reconnect, began);
    }
    recorder.tally.count_reply(&reply, stream(StreamKind::Control, 3), None);
    line_protocol::report(&StatusLine::Measured(recorder.snapshot()));
    let (calls, pushes) = thread::scope(|scope| {
        let pushes = scope.spawn(|| receive_pushes(&client, &input));
        let calls = make_calls(&client, &text, &input);
        client.close();
        (calls, pushes.join())
    });
    calls?;
    pushes.map_err(|_| harness::anyhow!("it panicked"))?
}

fn make_calls(client: &Arc<dyn Client>, text: &Text, end: &AtomicBool) -> Result<()> {
    let (mut request, mut recorder, mut reported) = (Vec::new(), Recorder::default(), Instant::now());
    let of = stream(StreamKind::Ping, std::process::id());
    for seq in 0.. {
        thread::sleep(PAUSE);
        if end.load(Ordering::Relaxed) {
            break;
        }
        text.write(&mut request, of, seq, &[], 41 + seq as usize % 777);
        let asked = monotonic();
        let reply = client.call(PING, &request)?;
        recorder.record_since(Metric::Light, asked);
        recorder.tally.count_reply(&reply, of, None);
        if reply.len() != request.len() || Item::read(&reply).is_some_and(|it| it.seq != seq) {
            recorder.tally.reordered += 1;
        }
        if reported.elapsed() > REPORT_INTERVAL {
            line_protocol::report(&StatusLine::Measured(std::mem::take(&mut recorder).snapshot()));
            reported = Instant::now();
        }
    }
    line_protocol::report(&StatusLine::Measured(recorder.snapshot()));
    Ok(())
}

/// Receives pushes until the connection ends.
fn receive_pushes(client: &Arc<dyn Client>, end: &AtomicBool) -> Result<()> {
    let (mut track, mut recorder) = (SequenceCheck::new(stream(StreamKind::Status, 0)), Recorder::default());
    let mut reported = Instant::now();
    while let Some(push) = client.next_push()? {
        let now = monotonic();
        if let Some(item) = track.take(&push, |at| Some(301 + at % 64), &mut recorder.tally) {
            recorder.record(Metric::Push, now.saturating_sub(item.sent));
        }
        if reported.elapsed() > REPORT_INTERVAL || end.load(Ordering::Relaxed) {
            line_protocol::report(&StatusLine::Measured(std::mem::take(&mut recorder).snapshot()));
            reported = Instant::now();
        }
    }
    let seen = track.next();
    track.end(seen, &mut recorder.tally); // Items that are missing in between.
    line_protocol::report(&StatusLine::Measured(recorder.snapshot()));
    Ok(())
}

//! A light client, B to J: a small call now and then, and what the backend pushes. One of them is killed each second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Result, monotonic};

use crate::Config;
use crate::backend::{HELLO, PING};
use crate::item::{HEAD, Item, Kind, Text, Track, stream};
use crate::lines::{self, Line};
use crate::meter::{Meter, Time};
use crate::transport::{self, Client};

/// Between two calls.
const PAUSE: Duration = Duration::from_millis(100);

/// What was measured is told each half second: the process may be killed at any time.
const TELL: Duration = Duration::from_millis(500);

/// The process of a light client; `again` says that another was killed in its place.
pub(crate) fn run(config: &Config, again: bool) -> Result<()> {
    let input = lines::until_input_ends();
    let text = Text::new(config.plan.seed);
    let process = std::process::id();
    let (mut request, mut meter) = (Vec::new(), Meter::default());
    text.write(&mut request, stream(Kind::Control, 3), 0, &[process, 1], HEAD + 8);
    let began = monotonic();
    let client = transport::connect(config.transport, &config.path)?;
    let reply = client.call(HELLO, &request)?;
    if again {
        meter.since(Time::Reconnect, began);
    }
    judge(&reply, stream(Kind::Control, 3), &mut meter);
    lines::say(&Line::Told(meter.tell()));
    let (calls, pushes) = thread::scope(|scope| {
        let pushes = scope.spawn(|| take(&client, &input));
        let calls = call(&client, &text, &input);
        client.close();
        (calls, pushes.join())
    });
    calls?;
    pushes.map_err(|_| harness::anyhow!("it panicked"))?
}

fn call(client: &Arc<dyn Client>, text: &Text, end: &AtomicBool) -> Result<()> {
    let (mut request, mut meter, mut told) = (Vec::new(), Meter::default(), Instant::now());
    let of = stream(Kind::Ping, std::process::id());
    for seq in 0.. {
        thread::sleep(PAUSE);
        if end.load(Ordering::Relaxed) {
            break;
        }
        text.write(&mut request, of, seq, &[], 41 + seq as usize % 777);
        let asked = monotonic();
        let reply = client.call(PING, &request)?;
        meter.since(Time::Light, asked);
        judge(&reply, of, &mut meter);
        if reply.len() != request.len() || Item::read(&reply).is_some_and(|it| it.seq != seq) {
            meter.tally.reordered += 1;
        }
        if told.elapsed() > TELL {
            lines::say(&Line::Told(std::mem::take(&mut meter).tell()));
            told = Instant::now();
        }
    }
    lines::say(&Line::Told(meter.tell()));
    Ok(())
}

/// Takes what is pushed until the connection ends.
fn take(client: &Arc<dyn Client>, end: &AtomicBool) -> Result<()> {
    let (mut track, mut meter) = (Track::new(stream(Kind::Status, 0)), Meter::default());
    let mut told = Instant::now();
    while let Some(push) = client.next_push()? {
        let now = monotonic();
        if let Some(item) = track.take(&push, |at| Some(301 + at % 64), &mut meter.tally) {
            meter.time(Time::Push, now.saturating_sub(item.sent));
        }
        if told.elapsed() > TELL || end.load(Ordering::Relaxed) {
            lines::say(&Line::Told(std::mem::take(&mut meter).tell()));
            told = Instant::now();
        }
    }
    let seen = track.next();
    track.end(seen, &mut meter.tally); // What is missing in between.
    lines::say(&Line::Told(meter.tell()));
    Ok(())
}

fn judge(reply: &[u8], of: u32, meter: &mut Meter) {
    meter.tally.items += 1;
    meter.tally.bytes += reply.len() as u64;
    if Item::read(reply).is_none_or(|it| it.stream != of) {
        meter.tally.corrupt += 1;
    }
}

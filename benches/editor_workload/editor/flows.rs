//! What goes on beside the chats: a terminal, completions, histories, cancels and heartbeats.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use harness::{Result, ensure, monotonic};

use super::Editor;
use crate::backend::{FATE, FLOOD, HISTORY, LSP, PING, TERMINAL};
use crate::item::{HEAD, Kind, Track, stream};
use crate::meter::{Meter, Time};
use crate::plan::TERMINAL as OUTPUT;

impl Editor {
    /// 10 MB, every two seconds.
    pub(super) fn terminals(&self, meter: &mut Meter) -> Result<()> {
        let mut request = Vec::new();
        for index in 0.. {
            if self.is_over() {
                break;
            }
            let of = stream(Kind::Terminal, index);
            let (lengths, mut track) = (self.plan.terminal(index), Track::new(of));
            self.text.write(&mut request, of, 0, &[index], 71);
            let asked = monotonic();
            let mut reply = self.client.stream(TERMINAL, &request)?;
            while let Some(chunk) = reply.next()? {
                let now = monotonic();
                ensure!((track.next() as usize) < lengths.len(), "more output than there is");
                if let Some(item) = track.take(&chunk, |at| lengths.get(at).copied(), &mut meter.tally) {
                    meter.time(Time::Terminal, now.saturating_sub(item.sent));
                }
            }
            meter.since(Time::TerminalWhole, asked);
            meter.count("bytes of terminals", OUTPUT as u64);
            track.end(u32::try_from(lengths.len())?, &mut meter.tally);
            self.sleep(Duration::from_secs(2));
        }
        Ok(())
    }

    /// Ten requests a second, of twenty; who is late makes up for it.
    pub(super) fn lsp(&self, half: u32, meter: &mut Meter) -> Result<()> {
        let mut request = Vec::new();
        let mut next = Instant::now() + Duration::from_millis(u64::from(half) * 50);
        for index in 0.. {
            self.sleep(next.saturating_duration_since(Instant::now()));
            next += Duration::from_millis(100);
            if self.is_over() {
                break;
            }
            let number = index << 1 | half;
            let (lsp, of) = (self.plan.lsp(number), stream(Kind::Lsp, number));
            self.text.write(&mut request, of, 0, &[number], lsp.request);
            let asked = monotonic();
            let call = self.client.start(LSP, &request)?;
            self.calls.fetch_add(1, Ordering::Relaxed);
            if let Some(after) = lsp.cancel {
                thread::sleep(after);
                call.cancel();
                meter.count("LSP requests cancelled", 1);
                continue;
            }
            let reply = call.wait()?;
            let took = monotonic() - asked;
            self.judge(&reply, of, Some(lsp.reply), meter);
            meter.time(Time::Lsp, took.saturating_sub(u64::from(self.answer_number(&reply, 0)?)));
            meter.count("LSP requests", 1);
        }
        Ok(())
    }

    /// A whole history, every three seconds.
    pub(super) fn histories(&self, meter: &mut Meter) -> Result<()> {
        let mut request = Vec::new();
        for index in 0.. {
            self.sleep(Duration::from_secs(if index == 0 { 1 } else { 3 }));
            if self.is_over() {
                break;
            }
            let ((there, back), of) = (self.plan.history(index), stream(Kind::History, index));
            self.text.write(&mut request, of, 0, &[index], there);
            let asked = monotonic();
            let reply = self.client.call(HISTORY, &request)?;
            meter.since(Time::History, asked);
            self.judge(&reply, of, Some(back), meter);
            meter.count("bytes of histories", (there + back) as u64);
        }
        Ok(())
    }

    /// Twice a second a stream that has no end, and a cancel in its middle.
    pub(super) fn cancels(&self, meter: &mut Meter) -> Result<()> {
        let (mut request, mut rng) = (Vec::new(), self.plan.rng(8, 0));
        for index in 0.. {
            self.sleep(Duration::from_millis(500));
            if self.is_over() {
                break;
            }
            let of = stream(Kind::Flood, index);
            self.text.write(&mut request, of, 0, &[index], HEAD + 4);
            let mut reply = self.client.stream(FLOOD, &request)?;
            let mut track = Track::new(of);
            for _ in 0..rng.u32(20..=200) {
                let chunk = reply.next()?;
                ensure!(chunk.is_some(), "a flood has ended");
                track.take(&chunk.unwrap_or_default(), |_| Some(101), &mut meter.tally);
            }
            let cancelled = monotonic();
            reply.cancel();
            let ended = self.fate(index, meter)?;
            meter.time(Time::Cancel, ended.saturating_sub(cancelled));
            let seen = track.next();
            track.end(seen, &mut meter.tally);
        }
        Ok(())
    }

    /// When the flood could write no more.
    fn fate(&self, index: u32, meter: &mut Meter) -> Result<u64> {
        let patience = Instant::now() + Duration::from_secs(10);
        while Instant::now() < patience {
            let reply = self.call(FATE, stream(Kind::Control, 2), index, &[index], HEAD + 4, meter)?;
            let [low, high] = [self.answer_number(&reply, 0)?, self.answer_number(&reply, 1)?];
            if (low, high) != (0, 0) {
                return Ok(u64::from(high) << 32 | u64::from(low));
            }
            thread::sleep(Duration::from_millis(1));
        }
        harness::bail!("a cancelled flood writes on")
    }

    /// One each second.
    pub(super) fn heartbeats(&self, meter: &mut Meter) -> Result<()> {
        let of = stream(Kind::Ping, 0);
        for index in 0.. {
            self.sleep(Duration::from_secs(1));
            if self.is_over() {
                break;
            }
            let asked = monotonic();
            self.call(PING, of, index, &[], 24, meter)?;
            meter.since(Time::Heartbeat, asked);
        }
        Ok(())
    }
}

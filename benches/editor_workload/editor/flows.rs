//! The traffic beside the chats: a terminal, completions, histories and cancels.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use harness::{Result, ensure, monotonic};

use super::Editor;
use crate::backend::{FLOOD, FLOOD_END, HISTORY, LSP, TERMINAL};
use crate::item::{HEAD, SequenceCheck, StreamKind, stream};
use crate::plan::TERMINAL as OUTPUT;
use crate::recorder::{Metric, Recorder};

impl Editor {
    /// Reads a terminal's output, 10 MB, every two seconds.
    pub(super) fn terminals(&self, recorder: &mut Recorder) -> Result<()> {
        let mut request = Vec::new();
        for index in 0.. {
            if self.is_over() {
                break;
            }
            let of = stream(StreamKind::Terminal, index);
            let (lengths, mut track) = (self.plan.terminal(index), SequenceCheck::new(of));
            self.text.write(&mut request, of, 0, &[index], 71);
            let asked = monotonic();
            let mut reply = self.client.stream(TERMINAL, &request)?;
            while let Some(chunk) = reply.next()? {
                let now = monotonic();
                ensure!((track.next() as usize) < lengths.len(), "more output than there is");
                if let Some(item) = track.take(&chunk, |at| lengths.get(at).copied(), &mut recorder.tally) {
                    recorder.record(Metric::Terminal, now.saturating_sub(item.sent));
                }
            }
            recorder.record_since(Metric::TerminalWhole, asked);
            recorder.count("bytes of terminals", OUTPUT as u64);
            track.end(u32::try_from(lengths.len())?, &mut recorder.tally);
            self.sleep(Duration::from_secs(2));
        }
        Ok(())
    }

    /// Sends ten requests a second, half of the twenty; after a late one, the next follows sooner.
    pub(super) fn lsp(&self, half: u32, recorder: &mut Recorder) -> Result<()> {
        let mut request = Vec::new();
        let mut next = Instant::now() + Duration::from_millis(u64::from(half) * 50);
        for index in 0.. {
            self.sleep(next.saturating_duration_since(Instant::now()));
            next += Duration::from_millis(100);
            if self.is_over() {
                break;
            }
            let number = index << 1 | half;
            let (lsp, of) = (self.plan.lsp(number), stream(StreamKind::Lsp, number));
            self.text.write(&mut request, of, 0, &[number], lsp.request);
            let asked = monotonic();
            let call = self.client.start(LSP, &request)?;
            self.calls.fetch_add(1, Ordering::Relaxed);
            if let Some(after) = lsp.cancel {
                thread::sleep(after);
                call.cancel();
                recorder.count("LSP requests cancelled", 1);
                continue;
            }
            let reply = call.wait()?;
            let took = monotonic() - asked;
            recorder.tally.count_reply(&reply, of, Some(lsp.reply));
            recorder.record(Metric::Lsp, took.saturating_sub(u64::from(self.answer_number(&reply, 0)?)));
            recorder.count("LSP requests", 1);
        }
        Ok(())
    }

    /// Transfers a whole history every three seconds.
    pub(super) fn histories(&self, recorder: &mut Recorder) -> Result<()> {
        let mut request = Vec::new();
        for index in 0.. {
            self.sleep(Duration::from_secs(if index == 0 { 1 } else { 3 }));
            if self.is_over() {
                break;
            }
            let ((there, back), of) = (self.plan.history(index), stream(StreamKind::History, index));
            self.text.write(&mut request, of, 0, &[index], there);
            let asked = monotonic();
            let reply = self.client.call(HISTORY, &request)?;
            recorder.record_since(Metric::History, asked);
            recorder.tally.count_reply(&reply, of, Some(back));
            recorder.count("bytes of histories", (there + back) as u64);
        }
        Ok(())
    }

    /// Starts an endless stream twice a second, and cancels it.
    pub(super) fn cancels(&self, recorder: &mut Recorder) -> Result<()> {
        let (mut request, mut rng) = (Vec::new(), self.plan.rng(8, 0));
        for index in 0.. {
            self.sleep(Duration::from_millis(500));
            if self.is_over() {
                break;
            }
            let of = stream(StreamKind::Flood, index);
            self.text.write(&mut request, of, 0, &[index], HEAD + 4);
            let mut reply = self.client.stream(FLOOD, &request)?;
            let mut track = SequenceCheck::new(of);
            for _ in 0..rng.u32(20..=200) {
                let chunk = reply.next()?;
                ensure!(chunk.is_some(), "a flood has ended");
                track.take(&chunk.unwrap_or_default(), |_| Some(101), &mut recorder.tally);
            }
            let cancelled = monotonic();
            reply.cancel();
            let ended = self.flood_end(index, recorder)?;
            recorder.record(Metric::Cancel, ended.saturating_sub(cancelled));
            let seen = track.next();
            track.end(seen, &mut recorder.tally);
        }
        Ok(())
    }

    /// Returns when a write of the flood first failed.
    fn flood_end(&self, index: u32, recorder: &mut Recorder) -> Result<u64> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let reply =
                self.call(FLOOD_END, stream(StreamKind::Control, 2), index, &[index], HEAD + 4, recorder)?;
            let [low, high] = [self.answer_number(&reply, 0)?, self.answer_number(&reply, 1)?];
            if (low, high) != (0, 0) {
                return Ok(u64::from(high) << 32 | u64::from(low));
            }
            thread::sleep(Duration::from_millis(1));
        }
        harness::bail!("a cancelled flood goes on writing")
    }
}

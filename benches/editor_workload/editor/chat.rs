//! Four chats at once, each with two calls of tools in it.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use harness::{Result, ensure, monotonic};

use super::Editor;
use crate::backend::{CHAT, RESULT, TOOL, pieces};
use crate::item::{HEAD, Kind, Track, stream};
use crate::meter::{Meter, Time};
use crate::plan::{Tool, Which};

/// Between the paced chats and the others: who asked for an approval may be late.
const PAUSE: Duration = Duration::from_millis(500);

impl Editor {
    /// One thread's chats: those with a pace, then those without.
    pub(super) fn chats(&self, thread: u32, meter: &mut Meter) -> Result<()> {
        for (index, chunks) in (0..).zip(self.plan.paced_chats(thread)) {
            if self.is_over() {
                return Ok(());
            }
            self.chat(Which { unpaced: false, thread, index }, chunks, meter)?;
        }
        thread::sleep((self.plan.paced + PAUSE).saturating_sub(self.began.elapsed()));
        let end = self.plan.paced + PAUSE + self.plan.unpaced;
        for index in 0.. {
            if self.is_over() || self.began.elapsed() > end {
                break;
            }
            let which = Which { unpaced: true, thread, index };
            self.chat(which, self.plan.unpaced_chat(which), meter)?;
        }
        Ok(())
    }

    fn chat(&self, which: Which, chunks: u32, meter: &mut Meter) -> Result<()> {
        let [first, delivery, gap] = match which.unpaced {
            false => [Time::First, Time::Delivery, Time::Gap],
            true => [Time::FirstUnpaced, Time::DeliveryUnpaced, Time::GapUnpaced],
        };
        let chat = self.plan.chat(which, chunks);
        let number = stream(Kind::Chat, which.number());
        let (mut request, mut track) = (Vec::new(), Track::new(number));
        self.text.write(&mut request, number, 0, &which.params(chunks), chat.request);
        let asked = monotonic();
        let mut reply = self.client.stream(CHAT, &request)?;
        let mut before = None;
        while let Some(chunk) = reply.next()? {
            let now = monotonic();
            let item = track.take(&chunk, |at| chat.chunks.get(at).copied(), &mut meter.tally);
            let at = item.map_or_else(|| track.next(), |it| it.seq) as usize;
            if let Some(item) = item {
                meter.time(delivery, now.saturating_sub(item.sent));
            }
            match before {
                None if at == 0 => meter.time(first, now - asked),
                None => {}
                Some(before) => meter.time(gap, now - before),
            }
            before = Some(now);
            self.chunks.fetch_add(1, Ordering::Relaxed);
            for (index, tool) in (0..).zip(&chat.tools).filter(|it| it.1.at == at) {
                self.tool(which, chunks, (index, tool), meter)?;
                before = None;
            }
        }
        track.end(chunks, &mut meter.tally);
        meter.count("chats", 1);
        Ok(())
    }

    fn tool(&self, which: Which, chunks: u32, (index, tool): (u32, &Tool), meter: &mut Meter) -> Result<()> {
        let number = which.tool(index);
        let [unpaced, thread, chat, chunks] = which.params(chunks);
        let (mut request, mut track) = (Vec::new(), Track::new(number));
        self.text.write(&mut request, number, 0, &[unpaced, thread, chat, chunks, index], tool.arguments);
        let asked = monotonic();
        let mut reply = self.client.stream(TOOL, &request)?;
        let lengths: Vec<usize> = tool.progress.into_iter().chain(pieces(tool.result)).collect();
        while let Some(chunk) = reply.next()? {
            ensure!((track.next() as usize) < lengths.len(), "more of a tool's result than there is");
            track.take(&chunk, |at| lengths.get(at).copied(), &mut meter.tally);
        }
        let took = monotonic() - asked;
        track.end(u32::try_from(lengths.len())?, &mut meter.tally);
        match tool.approval {
            Some(micros) => meter.time(Time::Approval, took.saturating_sub(u64::from(micros) * 1000)),
            None if which.unpaced => meter.time(Time::ToolUnpaced, took),
            None => meter.time(Time::Tool, took),
        }
        meter.count(if tool.approval.is_some() { "tools with an approval" } else { "tools" }, 1);
        self.tools.fetch_add(1, Ordering::Relaxed);
        self.call(RESULT, number, 1, &[number], HEAD + 4, meter)?;
        Ok(())
    }
}

//! Four chats at once, each with two calls of tools in it.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use harness::{Result, ensure, monotonic};

use super::Editor;
use crate::backend::{CHAT, TOOL, TOOL_DONE, fragments};
use crate::item::{HEAD, SequenceCheck, StreamKind, stream};
use crate::plan::{ChatId, Tool};
use crate::recorder::{Metric, Recorder};

/// Between the paced chats and the others: an approval may be late.
const PAUSE: Duration = Duration::from_millis(500);

impl Editor {
    /// Runs the chats of one thread: first the paced ones, then the others.
    pub(super) fn chats(&self, thread: u32, recorder: &mut Recorder) -> Result<()> {
        for (index, chunks) in (0..).zip(self.plan.paced_chats(thread)) {
            if self.is_over() {
                return Ok(());
            }
            self.chat(ChatId { unpaced: false, thread, index }, chunks, recorder)?;
        }
        thread::sleep((self.plan.paced + PAUSE).saturating_sub(self.began.elapsed()));
        let end = self.plan.paced + PAUSE + self.plan.unpaced;
        for index in 0.. {
            if self.is_over() || self.began.elapsed() > end {
                break;
            }
            let which = ChatId { unpaced: true, thread, index };
            self.chat(which, self.plan.unpaced_chat(which), recorder)?;
        }
        Ok(())
    }

    fn chat(&self, which: ChatId, chunks: u32, recorder: &mut Recorder) -> Result<()> {
        let [first, delivery, gap] = match which.unpaced {
            false => [Metric::First, Metric::Delivery, Metric::Gap],
            true => [Metric::FirstUnpaced, Metric::DeliveryUnpaced, Metric::GapUnpaced],
        };
        let chat = self.plan.chat(which, chunks);
        let number = stream(StreamKind::Chat, which.number());
        let (mut request, mut track) = (Vec::new(), SequenceCheck::new(number));
        self.text.write(&mut request, number, 0, &which.params(chunks), chat.request);
        let asked = monotonic();
        let mut reply = self.client.stream(CHAT, &request)?;
        let mut before = None;
        while let Some(chunk) = reply.next()? {
            let now = monotonic();
            let item = track.take(&chunk, |at| chat.chunks.get(at).copied(), &mut recorder.tally);
            let at = item.map_or_else(|| track.next(), |it| it.seq) as usize;
            if let Some(item) = item {
                recorder.record(delivery, now.saturating_sub(item.sent));
            }
            match before {
                None if at == 0 => recorder.record(first, now - asked),
                None => {}
                Some(before) => recorder.record(gap, now - before),
            }
            before = Some(now);
            self.chunks.fetch_add(1, Ordering::Relaxed);
            for (index, tool) in (0..).zip(&chat.tools).filter(|it| it.1.at == at) {
                self.tool(which, chunks, (index, tool), recorder)?;
                before = None;
            }
        }
        track.end(chunks, &mut recorder.tally);
        recorder.count("chats", 1);
        Ok(())
    }

    fn tool(
        &self,
        which: ChatId,
        chunks: u32,
        (index, tool): (u32, &Tool),
        recorder: &mut Recorder,
    ) -> Result<()> {
        let number = which.tool(index);
        let [unpaced, thread, chat, chunks] = which.params(chunks);
        let (mut request, mut track) = (Vec::new(), SequenceCheck::new(number));
        self.text.write(&mut request, number, 0, &[unpaced, thread, chat, chunks, index], tool.arguments);
        let asked = monotonic();
        let mut reply = self.client.stream(TOOL, &request)?;
        let lengths: Vec<usize> = tool.progress.into_iter().chain(fragments(tool.result)).collect();
        while let Some(chunk) = reply.next()? {
            ensure!((track.next() as usize) < lengths.len(), "more of a tool's result than there is");
            track.take(&chunk, |at| lengths.get(at).copied(), &mut recorder.tally);
        }
        let took = monotonic() - asked;
        track.end(u32::try_from(lengths.len())?, &mut recorder.tally);
        match tool.approval {
            Some(micros) => recorder.record(Metric::Approval, took.saturating_sub(u64::from(micros) * 1000)),
            None if which.unpaced => recorder.record(Metric::ToolUnpaced, took),
            None => recorder.record(Metric::Tool, took),
        }
        recorder.count(if tool.approval.is_some() { "tools with an approval" } else { "tools" }, 1);
        self.tools.fetch_add(1, Ordering::Relaxed);
        self.call(TOOL_DONE, number, 1, &[number], HEAD + 4, recorder)?;
        Ok(())
    }
}

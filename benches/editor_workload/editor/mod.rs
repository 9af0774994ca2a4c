//! The editor, connection A: everything at once, for as long as the chats go on.
//!
//! ```text
//!   chat × 4     at 50 chunks a second, then without a pace; tools in their middle        chat.rs
//!   questions    what the backend asks, answered late                                    questions.rs
//!   terminal, LSP × 2, histories, cancels, heartbeats                                    flows.rs
//! ```

mod chat;
mod flows;
mod questions;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Result, ensure};

use crate::backend::{HELLO, QUIET};
use crate::item::{HEAD, Item, Kind, Text, stream};
use crate::lines::{self, Line};
use crate::meter::Meter;
use crate::plan::{CHATS, Plan};
use crate::transport::{self, Client};
use crate::{Config, Part};

/// What its threads share.
struct Editor {
    plan: Plan,
    text: Text,
    client: Arc<dyn Client>,
    began: Instant,
    chunks: AtomicU64,
    tools: AtomicU64,
    calls: AtomicU64,
    /// The chats are at their end, or something failed.
    over: AtomicBool,
}

/// The process of the editor.
pub(crate) fn run(config: &Config) -> Result<()> {
    let _input = lines::until_input_ends();
    let editor = Editor {
        plan: config.plan,
        text: Text::new(config.plan.seed),
        client: transport::connect(config.transport, &config.path)?,
        began: Instant::now(),
        chunks: AtomicU64::new(0),
        tools: AtomicU64::new(0),
        calls: AtomicU64::new(0),
        over: AtomicBool::new(false),
    };
    let mut meter = Meter::default();
    editor.call(HELLO, stream(Kind::Control, 0), 0, &[std::process::id(), 0], HEAD + 8, &mut meter)?;
    editor.day(config.part, &mut meter);
    let mut told = meter.tell();
    told.cpu = harness::cpu_seconds();
    lines::say(&Line::Told(told));
    Ok(())
}

type Work<'a> = Box<dyn Fn(&mut Meter) -> Result<()> + Send + 'a>;

impl Editor {
    /// All threads, until the chats are over; then the rest.
    fn day(&self, part: Part, meter: &mut Meter) {
        let chats: Vec<Work<'_>> = (0..CHATS)
            .map(|thread| Box::new(move |meter: &mut Meter| self.chats(thread, meter)) as _)
            .collect();
        let mut others: Vec<(&str, Work<'_>)> =
            vec![("questions", Box::new(|meter: &mut Meter| self.questions(meter)))];
        if part == Part::Day {
            others.push(("terminal", Box::new(|meter: &mut Meter| self.terminals(meter))));
            others.push(("LSP", Box::new(|meter: &mut Meter| self.lsp(0, meter))));
            others.push(("LSP", Box::new(|meter: &mut Meter| self.lsp(1, meter))));
            others.push(("histories", Box::new(|meter: &mut Meter| self.histories(meter))));
            others.push(("heartbeats", Box::new(|meter: &mut Meter| self.heartbeats(meter))));
        }
        others.push(("cancels", Box::new(|meter: &mut Meter| self.cancels(meter))));
        thread::scope(|scope| {
            let measured = |name: &'static str, work: Work<'_>| {
                let mut meter = Meter::default();
                if let Err(error) = work(&mut meter) {
                    meter.fault(format!("{name}: {error:#}"));
                    self.over.store(true, Ordering::Relaxed); // No more of anything.
                }
                meter
            };
            let chats: Vec<_> =
                chats.into_iter().map(|work| scope.spawn(move || measured("chats", work))).collect();
            let others: Vec<_> =
                others.into_iter().map(|(name, work)| scope.spawn(move || measured(name, work))).collect();
            while !chats.iter().all(thread::ScopedJoinHandle::is_finished) {
                thread::sleep(Duration::from_millis(100));
                self.live();
            }
            self.over.store(true, Ordering::Relaxed);
            if let Err(error) = self.drain(meter) {
                meter.fault(format!("the last questions: {error:#}"));
            }
            // Whoever waits for a question hears of no more.
            while others.iter().skip(1).any(|it| !it.is_finished()) {
                thread::sleep(Duration::from_millis(5));
            }
            self.client.close();
            for thread in chats.into_iter().chain(others) {
                match thread.join() {
                    Ok(of_thread) => meter.merge(&of_thread),
                    Err(_) => meter.fault("a thread of the editor panicked".into()),
                }
            }
        });
        self.live();
    }

    /// Until all questions are answered.
    fn drain(&self, meter: &mut Meter) -> Result<()> {
        let patience = Instant::now() + Duration::from_secs(20);
        let control = stream(Kind::Control, 1);
        while self.answer_number(&self.call(QUIET, control, 0, &[], HEAD, meter)?, 0)? > 0 {
            ensure!(Instant::now() < patience, "some have no answer");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// A call with an item of `len` bytes, answered by one of the same stream.
    fn call(
        &self,
        method: u32,
        stream: u32,
        seq: u32,
        numbers: &[u32],
        len: usize,
        meter: &mut Meter,
    ) -> Result<Vec<u8>> {
        let mut request = Vec::new();
        self.text.write(&mut request, stream, seq, numbers, len);
        let reply = self.client.call(method, &request)?;
        self.judge(&reply, stream, None, meter);
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(reply)
    }

    /// A reply belongs to its call, and is as it was sent.
    fn judge(&self, reply: &[u8], stream: u32, len: Option<usize>, meter: &mut Meter) {
        meter.tally.items += 1;
        meter.tally.bytes += reply.len() as u64;
        let right = Item::read(reply).is_some_and(|it| it.stream == stream);
        if !right || len.is_some_and(|len| len != reply.len()) {
            meter.tally.corrupt += 1;
        }
    }

    fn answer_number(&self, reply: &[u8], at: usize) -> Result<u32> {
        let item = Item::read(reply);
        ensure!(item.is_some(), "a reply is not as it was sent");
        Ok(item.map_or(0, |it| it.number(at)))
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Sleeps, but not beyond the end.
    fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.is_over() && Instant::now() < end {
            thread::sleep((end - Instant::now().min(end)).min(Duration::from_millis(20)));
        }
    }

    fn live(&self) {
        let [chunks, tools, calls] =
            [&self.chunks, &self.tools, &self.calls].map(|it| it.load(Ordering::Relaxed));
        lines::say(&Line::Live { chunks, tools, calls });
    }
}

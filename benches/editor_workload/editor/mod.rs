//! The editor, connection A: all flows at once, for as long as the chats go on.
//!
//! ```text
//!   chat × 4     at 50 chunks a second, then without a pace; tools in their middle        chat.rs
//!   questions    the backend's questions, answered late                                    questions.rs
//!   terminal, LSP × 2, histories, cancels                                                flows.rs
//! ```

mod chat;
mod flows;
mod questions;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Result, ensure};

use crate::backend::{HELLO, STOP_QUESTIONS};
use crate::config::{RunConfig, Scope};
use crate::connections;
use crate::item::{HEAD, Item, StreamKind, Text, stream};
use crate::line_protocol::{self, StatusLine};
use crate::plan::{CHATS, Plan};
use crate::recorder::Recorder;
use crate::transport::Client;

/// The state that its threads share.
struct Editor {
    plan: Plan,
    text: Text,
    client: Arc<dyn Client>,
    began: Instant,
    chunks: AtomicU64,
    tools: AtomicU64,
    calls: AtomicU64,
    /// The chats have ended, or a flow failed.
    over: AtomicBool,
}

/// Runs the process of the editor.
pub(crate) fn run(config: &RunConfig) -> Result<()> {
    let _input = line_protocol::input_closed();
    let editor = Editor {
        plan: config.plan,
        text: Text::new(config.plan.seed),
        client: connections::connect(config.transport, &config.path)?,
        began: Instant::now(),
        chunks: AtomicU64::new(0),
        tools: AtomicU64::new(0),
        calls: AtomicU64::new(0),
        over: AtomicBool::new(false),
    };
    let mut recorder = Recorder::default();
    editor.call(
        HELLO,
        stream(StreamKind::Control, 0),
        0,
        &[std::process::id(), 0],
        HEAD + 8,
        &mut recorder,
    )?;
    editor.run_flows(config.scope, &mut recorder);
    let mut measured = recorder.snapshot();
    measured.cpu = harness::cpu_seconds();
    line_protocol::report(&StatusLine::Measured(measured));
    Ok(())
}

type Flow<'a> = Box<dyn Fn(&mut Recorder) -> Result<()> + Send + 'a>;

impl Editor {
    /// Runs all flows for as long as the chats go on, then answers the last questions.
    fn run_flows(&self, scope: Scope, recorder: &mut Recorder) {
        let chats: Vec<Flow<'_>> = (0..CHATS)
            .map(|thread| Box::new(move |recorder: &mut Recorder| self.chats(thread, recorder)) as _)
            .collect();
        let mut others: Vec<(&str, Flow<'_>)> =
            vec![("questions", Box::new(|recorder: &mut Recorder| self.questions(recorder)))];
        if scope == Scope::Whole {
            others.push(("terminal", Box::new(|recorder: &mut Recorder| self.terminals(recorder))));
            others.push(("LSP", Box::new(|recorder: &mut Recorder| self.lsp(0, recorder))));
            others.push(("LSP", Box::new(|recorder: &mut Recorder| self.lsp(1, recorder))));
            others.push(("histories", Box::new(|recorder: &mut Recorder| self.histories(recorder))));
        }
        others.push(("cancels", Box::new(|recorder: &mut Recorder| self.cancels(recorder))));
        thread::scope(|threads| {
            let measured = |name: &'static str, work: Flow<'_>| {
                let mut recorder = Recorder::default();
                if let Err(error) = work(&mut recorder) {
                    recorder.fault(format!("{name}: {error:#}"));
                    self.over.store(true, Ordering::Relaxed); // All flows end.
                }
                recorder
            };
            let chats: Vec<_> =
                chats.into_iter().map(|work| threads.spawn(move || measured("chats", work))).collect();
            let others: Vec<_> =
                others.into_iter().map(|(name, work)| threads.spawn(move || measured(name, work))).collect();
            while !chats.iter().all(thread::ScopedJoinHandle::is_finished) {
                thread::sleep(Duration::from_millis(100));
                self.report_progress();
            }
            self.over.store(true, Ordering::Relaxed);
            if let Err(error) = self.drain(recorder) {
                recorder.fault(format!("the last questions: {error:#}"));
            }
            // The thread of the questions waits for more of them, until the connection is closed below.
            while others.iter().skip(1).any(|it| !it.is_finished()) {
                thread::sleep(Duration::from_millis(5));
            }
            self.client.close();
            for thread in chats.into_iter().chain(others) {
                match thread.join() {
                    Ok(of_thread) => recorder.merge(&of_thread),
                    Err(_) => recorder.fault("a thread of the editor panicked".into()),
                }
            }
        });
        self.report_progress();
    }

    /// Waits for the answers to all questions.
    fn drain(&self, recorder: &mut Recorder) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let control = stream(StreamKind::Control, 1);
        while self.answer_number(&self.call(STOP_QUESTIONS, control, 0, &[], HEAD, recorder)?, 0)? > 0 {
            ensure!(Instant::now() < deadline, "some have no answer");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Calls with an item of `len` bytes; the reply is an item of the same stream.
    fn call(
        &self,
        method: u32,
        stream: u32,
        seq: u32,
        numbers: &[u32],
        len: usize,
        recorder: &mut Recorder,
    ) -> Result<Vec<u8>> {
        let mut request = Vec::new();
        self.text.write(&mut request, stream, seq, numbers, len);
        let reply = self.client.call(method, &request)?;
        recorder.tally.count_reply(&reply, stream, None);
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(reply)
    }

    fn answer_number(&self, reply: &[u8], at: usize) -> Result<u32> {
        let item = Item::read(reply);
        ensure!(item.is_some(), "a reply is not as it was sent");
        Ok(item.map_or(0, |it| it.number(at)))
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Sleeps, at most up to the end.
    fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.is_over() && Instant::now() < end {
            thread::sleep((end - Instant::now().min(end)).min(Duration::from_millis(20)));
        }
    }

    fn report_progress(&self) {
        let [chunks, tools, calls] =
            [&self.chunks, &self.tools, &self.calls].map(|it| it.load(Ordering::Relaxed));
        line_protocol::report(&StatusLine::Progress { chunks, tools, calls });
    }
}

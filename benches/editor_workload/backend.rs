//! The backend: chats and their tools, a terminal, completions, histories, and questions to the user.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Result, anyhow, bail, ensure, monotonic};

use crate::config::RunConfig;
use crate::connections;
use crate::fault_injection::{Fault, FaultyChunks};
use crate::item::{HEAD, Item, StreamKind, Text, stream};
use crate::line_protocol::{self, StatusLine};
use crate::plan::{ChatId, PACE, Plan, THINKS};
use crate::recorder::{Metric, Recorder};
use crate::sync::lock;
use crate::transport::{ChunkSink, ClientHandle, RequestContext, ServeMode, Service};

/// Introduces the client: its process, and whether it is a light one.
pub(crate) const HELLO: u32 = 1;
pub(crate) const PING: u32 = 2;
pub(crate) const CHAT: u32 = 3;
pub(crate) const TOOL: u32 = 4;
/// Answers a question.
pub(crate) const ANSWER: u32 = 5;
pub(crate) const TERMINAL: u32 = 6;
pub(crate) const LSP: u32 = 7;
pub(crate) const HISTORY: u32 = 8;
/// Chunks without an end.
pub(crate) const FLOOD: u32 = 9;
/// Returns when a write of a flood first failed.
pub(crate) const FLOOD_END: u32 = 10;
/// Stops the questions; returns how many have no answer yet.
pub(crate) const STOP_QUESTIONS: u32 = 11;

/// The editor has the result of a tool, so its chat continues.
pub(crate) const TOOL_DONE: u32 = 12;

/// The state that all methods share.
pub(crate) struct Backend {
    plan: Plan,
    fault: Option<Fault>,
    text: Text,
    recorder: Mutex<Recorder>,
    clients: Mutex<HashMap<u64, ConnectedClient>>,
    disconnects: Mutex<Vec<(u32, u64)>>,
    questions: Mutex<HashMap<(u32, u32), Question>>,
    /// The chats that wait for a tool, by the number of the tool's stream.
    tools: Mutex<HashMap<u32, Sender<()>>>,
    /// When a write of the flood of this number first failed.
    flood_ends: Mutex<HashMap<u32, u64>>,
    questions_stopped: AtomicBool,
    asked: AtomicU64,
}

struct ConnectedClient {
    handle: Arc<dyn ClientHandle>,
    process: u32,
    light: bool,
    pushed: u32,
}

/// A question that has no answer yet.
struct Question {
    asked: u64,
    /// Nanoseconds that the user takes.
    thinks: u64,
    /// The stream that waits for the answer.
    waits: Option<Sender<()>>,
}

/// The process of the backend: serves until its input ends.
pub(crate) fn run(config: &RunConfig) -> Result<()> {
    let backend = Arc::new(Backend::new(config.plan, config.fault));
    let server = connections::serve(config.transport, &config.path, &backend)?;
    let input = line_protocol::input_closed();
    let before = open_resources();
    line_protocol::report(&StatusLine::Ready);
    for tick in 0.. {
        if input.load(Ordering::Relaxed) {
            break;
        }
        backend.tick(tick);
        thread::sleep(Duration::from_millis(50));
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while server.connections() > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(50)); // The threads of the connections end.
    let mut recorder = lock(&backend.recorder);
    if server.connections() > 0 {
        recorder.fault(format!("{} connections of clients that have exited", server.connections()));
    }
    for (what, before, after) in
        [("descriptors", before.0, open_resources().0), ("threads", before.1, open_resources().1)]
    {
        recorder.count(&format!("backend's {what} before the first client"), before);
        recorder.count(&format!("backend's {what} after the last client"), after);
    }
    let unanswered = lock(&backend.questions).len() as u64;
    recorder.tally.lost += unanswered;
    recorder.count("questions asked", backend.asked.load(Ordering::Relaxed));
    let mut measured = recorder.snapshot();
    measured.cpu = harness::cpu_seconds();
    measured.disconnects.clone_from(&lock(&backend.disconnects));
    line_protocol::report(&StatusLine::Measured(measured));
    Ok(())
}

impl Backend {
    fn new(plan: Plan, fault: Option<Fault>) -> Self {
        Self {
            plan,
            fault,
            text: Text::new(plan.seed),
            recorder: Mutex::default(),
            clients: Mutex::default(),
            disconnects: Mutex::default(),
            questions: Mutex::default(),
            tools: Mutex::default(),
            flood_ends: Mutex::default(),
            questions_stopped: AtomicBool::new(false),
            asked: AtomicU64::new(0),
        }
    }

    fn chat(
        &self,
        item: &Item<'_>,
        len: usize,
        served: &dyn RequestContext,
        out: &mut dyn ChunkSink,
    ) -> Result<()> {
        let which = ChatId::of([0, 1, 2].map(|at| item.number(at)));
        let chat = self.plan.chat(which, item.number(3));
        ensure!(len == chat.request, "{len} bytes of a chat's request");
        let mut chunk = Vec::new();
        let (pause, mut next) = (Duration::from_secs(1) / PACE, Instant::now());
        for (seq, len) in (0..).zip(&chat.chunks) {
            if !which.unpaced {
                thread::sleep(next.saturating_duration_since(Instant::now()));
                next += pause;
            }
            let tool = chat.tools.iter().position(|tool| tool.at == seq as usize);
            let result = tool.map(|tool| self.expect_tool(which, tool)).transpose()?;
            self.text.write(&mut chunk, item.stream, seq, &[], *len);
            out.write(&chunk)?;
            if let Some(result) = result {
                while result.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
                    ensure!(!served.is_cancelled(), "cancelled");
                }
                next = Instant::now();
            }
        }
        Ok(())
    }

    /// Returns the channel that reports the end of the tool to the chat.
    fn expect_tool(&self, which: ChatId, tool: usize) -> Result<Receiver<()>> {
        let (sender, receiver) = channel();
        lock(&self.tools).insert(which.tool(u32::try_from(tool)?), sender);
        Ok(receiver)
    }

    fn tool(
        &self,
        item: &Item<'_>,
        len: usize,
        served: &dyn RequestContext,
        out: &mut dyn ChunkSink,
    ) -> Result<()> {
        let which = ChatId::of([0, 1, 2].map(|at| item.number(at)));
        let chat = self.plan.chat(which, item.number(3));
        let tool = chat.tools.get(item.number(4) as usize).ok_or_else(|| anyhow!("no such tool"))?;
        ensure!(len == tool.arguments, "{len} bytes of arguments");
        let mut chunk = Vec::new();
        for (seq, len) in (0..).zip(tool.progress) {
            if let (1, Some(micros)) = (seq, tool.approval) {
                let (sender, receiver) = channel();
                let asked = stream(StreamKind::Approval, item.stream);
                self.ask(&served.client(), (asked, 0), micros, Some(sender))?;
                receiver.recv_timeout(Duration::from_secs(60)).map_err(|_| anyhow!("no approval came"))?;
            }
            self.text.write(&mut chunk, item.stream, seq, &[], len);
            out.write(&chunk)?;
        }
        for (seq, len) in (3..).zip(fragments(tool.result)) {
            self.text.write(&mut chunk, item.stream, seq, &[], len);
            out.write(&chunk)?;
        }
        Ok(())
    }

    /// Sends a question to the user, with the time that the answer takes.
    fn ask(
        &self,
        client: &Arc<dyn ClientHandle>,
        (stream, seq): (u32, u32),
        micros: u32,
        waits: Option<Sender<()>>,
    ) -> Result<()> {
        let mut question = Vec::new();
        let thinks = u64::from(micros) * 1000;
        let mut questions = lock(&self.questions);
        if waits.is_none() && self.questions_stopped.load(Ordering::Relaxed) {
            return Ok(()); // The editor has counted what it has to answer.
        }
        questions.insert((stream, seq), Question { asked: monotonic(), thinks, waits });
        drop(questions);
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.text.write(&mut question, stream, seq, &[micros], 201);
        client.push(&question)
    }

    fn answered(&self, which: (u32, u32)) {
        let question = lock(&self.questions).remove(&which);
        let mut recorder = lock(&self.recorder);
        match question {
            None => recorder.tally.duplicated += 1,
            Some(Question { asked, thinks, waits }) => {
                recorder.record_since(Metric::Question, asked + thinks);
                waits.map(|waits| waits.send(()));
            }
        }
    }

    /// Runs twenty times a second. Sends the editor a question at every eighth tick, each light client a status at every fifth.
    fn tick(&self, tick: u32) {
        let clients = lock(&self.clients);
        let one = |(id, client): (&u64, &ConnectedClient)| {
            (*id, Arc::clone(&client.handle), client.light, client.pushed)
        };
        let known: Vec<_> = clients.iter().map(one).collect();
        drop(clients);
        for (id, handle, light, pushed) in known {
            let sent = if light && tick % 5 == 0 {
                self.status(&handle, pushed)
            } else if !light && tick % 8 == 0 && !self.questions_stopped.load(Ordering::Relaxed) {
                let micros = self.plan.rng(7, tick).u32(THINKS);
                self.ask(&handle, (stream(StreamKind::Question, 0), pushed), micros, None)
            } else {
                continue;
            };
            // A push to a killed client fails; its disconnect is recorded.
            if let (Ok(()), Some(client)) = (sent, lock(&self.clients).get_mut(&id)) {
                client.pushed += 1;
            }
        }
    }

    fn status(&self, client: &Arc<dyn ClientHandle>, pushed: u32) -> Result<()> {
        let mut status = Vec::new();
        self.text.write(&mut status, stream(StreamKind::Status, 0), pushed, &[], 301 + pushed as usize % 64);
        client.push(&status)
    }

    /// Reads a request, and fails unless it is as it was sent.
    fn validate<'a>(&self, request: &'a [u8]) -> Result<Item<'a>> {
        let item = Item::read(request);
        let mut recorder = lock(&self.recorder);
        recorder.tally.items += 1;
        recorder.tally.bytes += request.len() as u64;
        if item.is_none() {
            recorder.tally.corrupt += 1;
        }
        item.ok_or_else(|| anyhow!("a request of {} bytes is not as it was sent", request.len()))
    }
}

impl Service for Backend {
    const METHODS: &[(u32, ServeMode)] = &[
        (HELLO, ServeMode::Inline),
        (PING, ServeMode::Inline),
        (CHAT, ServeMode::Stream),
        (TOOL, ServeMode::Stream),
        (ANSWER, ServeMode::Inline),
        (TERMINAL, ServeMode::Stream),
        (LSP, ServeMode::Pooled),
        (HISTORY, ServeMode::Pooled),
        (FLOOD, ServeMode::Stream),
        (FLOOD_END, ServeMode::Inline),
        (STOP_QUESTIONS, ServeMode::Inline),
        (TOOL_DONE, ServeMode::Inline),
    ];

    fn on_disconnect(&self, connection: u64) {
        let now = monotonic();
        if let Some(client) = lock(&self.clients).remove(&connection) {
            lock(&self.disconnects).push((client.process, now));
        }
    }

    fn call(
        &self,
        method: u32,
        served: &dyn RequestContext,
        request: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<()> {
        let item = self.validate(request)?;
        match method {
            HELLO => {
                let (handle, light) = (served.client(), item.number(1) != 0);
                let client = ConnectedClient { handle, process: item.number(0), light, pushed: 0 };
                lock(&self.clients).insert(client.handle.id(), client);
                self.text.write(reply, item.stream, 1, &[], HEAD);
            }
            PING => self.text.write(reply, item.stream, item.seq, &[], request.len()),
            ANSWER => {
                self.answered((item.number(0), item.number(1)));
                self.text.write(reply, item.stream, item.seq, &[], HEAD);
            }
            LSP => {
                let lsp = self.plan.lsp(item.number(0));
                ensure!(request.len() == lsp.request, "{} bytes of a request", request.len());
                let began = Instant::now();
                while began.elapsed() < lsp.work && !served.is_cancelled() {
                    thread::sleep((lsp.work - began.elapsed().min(lsp.work)).min(Duration::from_millis(1)));
                }
                if served.is_cancelled() {
                    lock(&self.recorder).count("LSP requests that the backend saw cancelled", 1);
                    bail!("cancelled");
                }
                let worked = u32::try_from(began.elapsed().as_nanos())?;
                self.text.write(reply, item.stream, 1, &[worked], lsp.reply);
            }
            HISTORY => {
                let (there, back) = self.plan.history(item.number(0));
                ensure!(request.len() == there, "{} bytes of a history", request.len());
                self.text.write(reply, item.stream, 1, &[], back);
            }
            TOOL_DONE => {
                let waits = lock(&self.tools).remove(&item.number(0));
                waits.map(|waits| waits.send(())).ok_or_else(|| anyhow!("no chat waits for it"))??;
                self.text.write(reply, item.stream, item.seq, &[], HEAD);
            }
            FLOOD_END => {
                let ended = lock(&self.flood_ends).get(&item.number(0)).copied().unwrap_or(0);
                let (low, high) = ((ended & 0xffff_ffff).try_into()?, (ended >> 32).try_into()?);
                self.text.write(reply, item.stream, 1, &[low, high], HEAD);
            }
            STOP_QUESTIONS => {
                let questions = lock(&self.questions);
                self.questions_stopped.store(true, Ordering::Relaxed);
                let open = u32::try_from(questions.len())?;
                self.text.write(reply, item.stream, 1, &[open], HEAD);
            }
            other => bail!("method {other}"),
        }
        Ok(())
    }

    fn stream(
        &self,
        method: u32,
        served: &dyn RequestContext,
        request: &[u8],
        out: &mut dyn ChunkSink,
    ) -> Result<()> {
        let item = self.validate(request)?;
        let mut chunk = Vec::new();
        match method {
            CHAT => match self.fault {
                Some(fault) => self.chat(&item, request.len(), served, &mut FaultyChunks::new(out, fault)),
                None => self.chat(&item, request.len(), served, out),
            },
            TOOL => self.tool(&item, request.len(), served, out),
            TERMINAL => {
                for (seq, len) in (0..).zip(self.plan.terminal(item.number(0))) {
                    self.text.write(&mut chunk, item.stream, seq, &[], len);
                    out.write(&chunk)?;
                }
                Ok(())
            }
            FLOOD => {
                for seq in 0.. {
                    self.text.write(&mut chunk, item.stream, seq, &[], 101);
                    if out.write(&chunk).is_err() {
                        break;
                    }
                }
                lock(&self.flood_ends).insert(item.number(0), monotonic());
                Ok(())
            }
            other => bail!("method {other}"),
        }
    }
}

/// Returns the lengths of a result's fragments, of at most 64 KiB.
pub(crate) fn fragments(len: usize) -> impl Iterator<Item = usize> {
    const FRAGMENT: usize = (64 << 10) - 37;
    (0..len.div_ceil(FRAGMENT)).map(move |at| (len - at * FRAGMENT).clamp(HEAD, FRAGMENT))
}

/// Returns the number of open descriptors, and that of threads.
fn open_resources() -> (u64, u64) {
    let count = |folder: &str| std::fs::read_dir(Path::new(folder)).map_or(0, |it| it.count() as u64);
    (count("/proc/self/fd"), count("/proc/self/task"))
}

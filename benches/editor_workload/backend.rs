//! The backend: chats and their tools, a terminal, completions, histories, and questions to the user.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Result, anyhow, bail, ensure, monotonic};

use crate::Config;
use crate::item::{HEAD, Item, Kind, Text, stream};
use crate::lines::{self, Line};
use crate::meter::{Meter, Time};
use crate::plan::{PACE, Plan, THINKS, Which};
use crate::spoil::{Spoil, Spoiled};
use crate::transport::{self, Link, Out, Served, Style};

/// Says who the client is: its process, and whether it is a light one.
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
/// When a flood could write no more.
pub(crate) const FATE: u32 = 10;
/// Asks no more questions; how many have no answer yet.
pub(crate) const QUIET: u32 = 11;

/// A chat may go on: the editor has what its tool found.
pub(crate) const RESULT: u32 = 12;

pub(crate) const METHODS: [(u32, Style); 12] = [
    (HELLO, Style::Inline),
    (PING, Style::Inline),
    (CHAT, Style::Stream),
    (TOOL, Style::Stream),
    (ANSWER, Style::Inline),
    (TERMINAL, Style::Stream),
    (LSP, Style::Pooled),
    (HISTORY, Style::Pooled),
    (FLOOD, Style::Stream),
    (FATE, Style::Inline),
    (QUIET, Style::Inline),
    (RESULT, Style::Inline),
];

/// What all its methods share.
pub(crate) struct Backend {
    plan: Plan,
    spoil: Option<Spoil>,
    text: Text,
    meter: Mutex<Meter>,
    clients: Mutex<HashMap<u64, Client>>,
    gone: Mutex<Vec<(u32, u64)>>,
    questions: Mutex<HashMap<(u32, u32), Question>>,
    /// The chats that wait for a tool, by the number of the tool's stream.
    tools: Mutex<HashMap<u32, Sender<()>>>,
    /// When the flood of this number could write no more; 0 while it can.
    fates: Mutex<HashMap<u32, u64>>,
    quiet: AtomicBool,
    asked: AtomicU64,
}

struct Client {
    link: Arc<dyn Link>,
    process: u32,
    light: bool,
    pushed: u32,
}

/// One that has no answer yet.
struct Question {
    asked: u64,
    /// Nanoseconds that the user takes.
    thinks: u64,
    /// Who waits.
    waits: Option<Sender<()>>,
}

/// The process of the backend: serves until its input ends.
pub(crate) fn run(config: &Config) -> Result<()> {
    let backend = Arc::new(Backend::new(config.plan, config.spoil));
    let server = transport::serve(config.transport, &config.path, &backend)?;
    let input = lines::until_input_ends();
    let before = held();
    lines::say(&Line::Ready);
    for tick in 0.. {
        if input.load(Ordering::Relaxed) {
            break;
        }
        backend.tick(tick);
        thread::sleep(Duration::from_millis(50));
    }
    let patience = Instant::now() + Duration::from_secs(5);
    while server.connections() > 0 && Instant::now() < patience {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(50)); // Threads of the connections come to their end.
    let mut meter = lock(&backend.meter);
    if server.connections() > 0 {
        meter.fault(format!("{} connections of clients that are gone", server.connections()));
    }
    for (what, before, after) in [("descriptors", before.0, held().0), ("threads", before.1, held().1)] {
        meter.count(&format!("backend's {what} before the first client"), before);
        meter.count(&format!("backend's {what} after the last client"), after);
    }
    let unanswered = lock(&backend.questions).len() as u64;
    meter.tally.lost += unanswered;
    meter.count("questions asked", backend.asked.load(Ordering::Relaxed));
    let mut told = meter.tell();
    told.cpu = harness::cpu_seconds();
    told.gone.clone_from(&lock(&backend.gone));
    lines::say(&Line::Told(told));
    Ok(())
}

impl Backend {
    fn new(plan: Plan, spoil: Option<Spoil>) -> Self {
        Self {
            plan,
            spoil,
            text: Text::new(plan.seed),
            meter: Mutex::default(),
            clients: Mutex::default(),
            gone: Mutex::default(),
            questions: Mutex::default(),
            tools: Mutex::default(),
            fates: Mutex::default(),
            quiet: AtomicBool::new(false),
            asked: AtomicU64::new(0),
        }
    }

    /// A connection has ended.
    pub(crate) fn gone(&self, link: u64) {
        let now = monotonic();
        if let Some(client) = lock(&self.clients).remove(&link) {
            lock(&self.gone).push((client.process, now));
        }
    }

    /// A method that gives one reply.
    pub(crate) fn call(
        &self,
        method: u32,
        served: &dyn Served,
        request: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<()> {
        let item = self.judge(request)?;
        match method {
            HELLO => {
                let (link, light) = (served.link(), item.number(1) != 0);
                let client = Client { link, process: item.number(0), light, pushed: 0 };
                lock(&self.clients).insert(client.link.id(), client);
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
                    lock(&self.meter).count("LSP requests that the backend saw cancelled", 1);
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
            RESULT => {
                let waits = lock(&self.tools).remove(&item.number(0));
                waits.map(|waits| waits.send(())).ok_or_else(|| anyhow!("no chat waits for it"))??;
                self.text.write(reply, item.stream, item.seq, &[], HEAD);
            }
            FATE => {
                let ended = lock(&self.fates).get(&item.number(0)).copied().unwrap_or(0);
                let (low, high) = ((ended & 0xffff_ffff).try_into()?, (ended >> 32).try_into()?);
                self.text.write(reply, item.stream, 1, &[low, high], HEAD);
            }
            QUIET => {
                let questions = lock(&self.questions);
                self.quiet.store(true, Ordering::Relaxed);
                let open = u32::try_from(questions.len())?;
                self.text.write(reply, item.stream, 1, &[open], HEAD);
            }
            other => bail!("method {other}"),
        }
        Ok(())
    }

    /// A method that gives chunks.
    pub(crate) fn stream(
        &self,
        method: u32,
        served: &dyn Served,
        request: &[u8],
        out: &mut dyn Out,
    ) -> Result<()> {
        let item = self.judge(request)?;
        let mut chunk = Vec::new();
        match method {
            CHAT => match self.spoil {
                Some(spoil) => self.chat(&item, request.len(), served, &mut Spoiled::new(out, spoil)),
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
                lock(&self.fates).insert(item.number(0), monotonic());
                Ok(())
            }
            other => bail!("method {other}"),
        }
    }

    fn chat(&self, item: &Item<'_>, len: usize, served: &dyn Served, out: &mut dyn Out) -> Result<()> {
        let which = Which::of([0, 1, 2].map(|at| item.number(at)));
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

    /// Where the chat will hear that its tool is done.
    fn expect_tool(&self, which: Which, tool: usize) -> Result<Receiver<()>> {
        let (tell, told) = channel();
        lock(&self.tools).insert(which.tool(u32::try_from(tool)?), tell);
        Ok(told)
    }

    fn tool(&self, item: &Item<'_>, len: usize, served: &dyn Served, out: &mut dyn Out) -> Result<()> {
        let which = Which::of([0, 1, 2].map(|at| item.number(at)));
        let chat = self.plan.chat(which, item.number(3));
        let tool = chat.tools.get(item.number(4) as usize).ok_or_else(|| anyhow!("no such tool"))?;
        ensure!(len == tool.arguments, "{len} bytes of arguments");
        let mut chunk = Vec::new();
        for (seq, len) in (0..).zip(tool.progress) {
            if let (1, Some(micros)) = (seq, tool.approval) {
                let (tell, told) = channel();
                let asked = stream(Kind::Approval, item.stream);
                self.ask(&served.link(), (asked, 0), micros, Some(tell))?;
                told.recv_timeout(Duration::from_secs(60)).map_err(|_| anyhow!("no approval came"))?;
            }
            self.text.write(&mut chunk, item.stream, seq, &[], len);
            out.write(&chunk)?;
        }
        for (seq, len) in (3..).zip(pieces(tool.result)) {
            self.text.write(&mut chunk, item.stream, seq, &[], len);
            out.write(&chunk)?;
        }
        Ok(())
    }

    /// Asks the user, who takes so long.
    fn ask(
        &self,
        link: &Arc<dyn Link>,
        (stream, seq): (u32, u32),
        micros: u32,
        waits: Option<Sender<()>>,
    ) -> Result<()> {
        let mut question = Vec::new();
        let thinks = u64::from(micros) * 1000;
        let mut questions = lock(&self.questions);
        if waits.is_none() && self.quiet.load(Ordering::Relaxed) {
            return Ok(()); // The editor has counted what it has to answer.
        }
        questions.insert((stream, seq), Question { asked: monotonic(), thinks, waits });
        drop(questions);
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.text.write(&mut question, stream, seq, &[micros], 201);
        link.push(&question)
    }

    fn answered(&self, which: (u32, u32)) {
        let question = lock(&self.questions).remove(&which);
        let mut meter = lock(&self.meter);
        match question {
            None => meter.tally.duplicated += 1,
            Some(Question { asked, thinks, waits }) => {
                meter.since(Time::Question, asked + thinks);
                waits.map(|waits| waits.send(()));
            }
        }
    }

    /// Twenty times a second: now and then a question to the editor, and a status to everybody else.
    fn tick(&self, tick: u32) {
        let clients = lock(&self.clients);
        let one =
            |(id, client): (&u64, &Client)| (*id, Arc::clone(&client.link), client.light, client.pushed);
        let known: Vec<_> = clients.iter().map(one).collect();
        drop(clients);
        for (id, link, light, pushed) in known {
            let sent = if light && tick % 5 == 0 {
                self.status(&link, pushed)
            } else if !light && tick % 8 == 0 && !self.quiet.load(Ordering::Relaxed) {
                let micros = self.plan.rng(7, tick).u32(THINKS);
                self.ask(&link, (stream(Kind::Question, 0), pushed), micros, None)
            } else {
                continue;
            };
            // One that was killed cannot be told; `gone` will be.
            if let (Ok(()), Some(client)) = (sent, lock(&self.clients).get_mut(&id)) {
                client.pushed += 1;
            }
        }
    }

    fn status(&self, link: &Arc<dyn Link>, pushed: u32) -> Result<()> {
        let mut status = Vec::new();
        self.text.write(&mut status, stream(Kind::Status, 0), pushed, &[], 301 + pushed as usize % 64);
        link.push(&status)
    }

    /// A request as it was sent.
    fn judge<'a>(&self, request: &'a [u8]) -> Result<Item<'a>> {
        let item = Item::read(request);
        let mut meter = lock(&self.meter);
        meter.tally.items += 1;
        meter.tally.bytes += request.len() as u64;
        if item.is_none() {
            meter.tally.corrupt += 1;
        }
        item.ok_or_else(|| anyhow!("a request of {} bytes is not as it was sent", request.len()))
    }
}

/// A result in pieces of at most 64 KiB.
pub(crate) fn pieces(len: usize) -> impl Iterator<Item = usize> {
    const PIECE: usize = (64 << 10) - 37;
    (0..len.div_ceil(PIECE)).map(move |at| (len - at * PIECE).clamp(HEAD, PIECE))
}

/// Open descriptors, and threads.
fn held() -> (u64, u64) {
    let count = |folder: &str| std::fs::read_dir(Path::new(folder)).map_or(0, |it| it.count() as u64);
    (count("/proc/self/fd"), count("/proc/self/task"))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

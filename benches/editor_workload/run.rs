//! The runs, one after the other: starts the processes, kills light clients, listens, and keeps what is said.

use std::collections::HashMap;
use std::env;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use harness::{Result, anyhow, bail, cpu_seconds_of_children, cpu_seconds_of_others, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::lines::Line;
use crate::memory::Memory;
use crate::meter::{Meter, Time, Told};
use crate::plan::{LIGHTS, Plan};
use crate::process::{Heard, Process};
use crate::report::{self, Leg, Report};
use crate::transport::Transport;
use crate::{Arguments, Config, Part, node};

/// Beyond its time, before a run is stopped.
const PATIENCE: Duration = Duration::from_secs(90);

/// All transports, and the report.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let seconds = if arguments.quick { 8.0 } else { arguments.seconds };
    ensure!((2.0..=86_400.0).contains(&seconds), "from 2 seconds to a day");
    let stop = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&stop);
    ctrlc::set_handler(move || tell.store(true, Ordering::Relaxed))?;
    let mut transports = arguments.transport.clone();
    let mut notes = Vec::new();
    if transports.contains(&Transport::Node) {
        if let Err(error) = node::look(&arguments.node) {
            transports.retain(|it| *it != Transport::Node);
            notes.push(format!("Without Node.js: {error:#}"));
            eprintln!("Node.js is left out: {error:#}");
        }
    }
    ensure!(!transports.is_empty(), "there is nothing to measure");
    let mut legs = Vec::new();
    for (transport, part) in wanted(&transports) {
        // The chats alone need less time to show what they show.
        let plan = Plan::new(arguments.seed, if part == Part::Day { seconds } else { seconds / 2.0 });
        legs.push(Day::new(transport, part, plan, arguments, &stop)?.run()?);
    }
    let report = Report { seed: arguments.seed, seconds, machine: harness::machine(), notes, legs };
    report::publish(&report, &arguments.out)
}

/// The whole day over those that can; where Node.js takes part, the chats alone too, side by side.
fn wanted(transports: &[Transport]) -> Vec<(Transport, Part)> {
    let whole = transports.iter().filter(|it| **it != Transport::Node).map(|it| (*it, Part::Day));
    let node = transports.contains(&Transport::Node);
    let chats = transports.iter().filter(|_| node).map(|it| (*it, Part::Chats));
    whole.chain(chats).collect()
}

/// One transport's run.
struct Day<'a> {
    config: Config,
    arguments: &'a Arguments,
    stop: &'a AtomicBool,
    folder: tempfile::TempDir,
    tell: Sender<Heard>,
    heard: Receiver<Heard>,
    meter: Meter,
    bar: ProgressBar,
    /// When whom was killed.
    killed: HashMap<u32, u64>,
    memory: [Memory; 2],
}

impl<'a> Day<'a> {
    fn new(
        transport: Transport,
        part: Part,
        plan: Plan,
        arguments: &'a Arguments,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (tell, heard) = channel();
        let config =
            Config { transport, part, plan, path: folder.path().join("day"), spoil: arguments.spoil };
        let bar = ProgressBar::new((plan.paced + plan.unpaced).as_secs());
        let style = "{prefix:16} {bar:24} {pos:>3}/{len} s  {wide_msg}";
        bar.set_style(ProgressStyle::with_template(style)?);
        bar.set_prefix(report::name(transport, part));
        let (meter, killed, memory) = (Meter::default(), HashMap::new(), [Memory::default(); 2]);
        Ok(Self { config, arguments, stop, folder, tell, heard, meter, bar, killed, memory })
    }

    fn run(mut self) -> Result<Leg> {
        let (before, others) = (cpu_seconds_of_children(), cpu_seconds_of_others());
        let done = self.processes();
        self.bar.finish_and_clear();
        let (backend, editor) =
            done.map_err(|error| error.context(report::name(self.config.transport, self.config.part)))?;
        let others = cpu_seconds_of_others() - others;
        let lights = cpu_seconds_of_children() - before - backend.cpu - editor.cpu;
        for told in [&backend, &editor] {
            self.meter.merge_told(told);
        }
        for (process, noticed) in &backend.gone {
            if let Some(killed) = self.killed.get(process) {
                self.meter.time(Time::Death, noticed.saturating_sub(*killed));
            }
        }
        self.meter.count("light clients killed", self.killed.len() as u64);
        let Config { transport, part, plan, .. } = self.config;
        let cpu = [backend.cpu, editor.cpu, lights, others];
        eprintln!("{}: done", report::name(transport, part));
        self.folder.close()?;
        Ok(Leg::new(transport, part, plan, self.meter.tell(), cpu, self.memory))
    }

    /// All processes, from the first to the last.
    fn processes(&mut self) -> Result<(Told, Told)> {
        let began = Instant::now();
        let end = began + self.config.plan.paced + self.config.plan.unpaced + PATIENCE;
        let mut backend = Process::start("backend", self.command("backend")?, &self.tell)?;
        self.until(end, &mut backend, |line| matches!(line, Line::Ready).then_some(()))?;
        let mut lights = Vec::new();
        if self.config.part == Part::Day {
            for _ in 0..LIGHTS {
                lights.push(Process::start("light client", self.command("light")?, &self.tell)?);
            }
        }
        let mut editor = Process::start("editor", self.command("editor")?, &self.tell)?;
        let told = self.watch(end, (&backend, &mut editor), &mut lights)?;
        editor.wait(Duration::from_secs(10))?;
        lights.iter_mut().for_each(Process::end_input);
        for light in &mut lights {
            light.wait(Duration::from_secs(10))?;
        }
        backend.end_input();
        let of_backend = self.until(end, &mut backend, |line| match line {
            Line::Told(told) => Some(told),
            _ => None,
        })?;
        backend.wait(Duration::from_secs(10))?;
        // What the light clients said last.
        while let Some((_, line)) = self.hear(Duration::from_millis(100))? {
            if let Some(Line::Told(told)) = line {
                self.meter.merge_told(&told);
            }
        }
        Ok((of_backend, told))
    }

    /// While the editor is at work: what it says, and a light client killed each second.
    fn watch(
        &mut self,
        end: Instant,
        (backend, editor): (&Process, &mut Process),
        lights: &mut [Process],
    ) -> Result<Told> {
        let (began, mut looked) = (Instant::now(), Instant::now());
        let mut kill = Instant::now() + Duration::from_secs(1);
        loop {
            self.look(end)?;
            if Instant::now() > kill && !lights.is_empty() {
                kill += Duration::from_secs(1);
                self.replace(&mut lights[turn_of(&self.killed)])?;
            }
            if looked.elapsed() > Duration::from_millis(250) {
                looked = Instant::now();
                self.memory[0].sample(backend.id());
                self.memory[1].sample(editor.id());
                self.bar.set_position(began.elapsed().as_secs().min(self.bar.length().unwrap_or(0)));
            }
            match self.hear(Duration::from_millis(50))? {
                Some((of, Some(Line::Told(told)))) if of == editor.id() => return Ok(told),
                Some((of, None)) if of == editor.id() => bail!("the editor ended without a word"),
                Some((of, None)) if of == backend.id() => bail!("the backend ended before its time"),
                Some((_, Some(Line::Told(told)))) => self.meter.merge_told(&told),
                Some((_, Some(Line::Live { chunks, tools, calls }))) => {
                    let killed = self.killed.len();
                    let text =
                        format!("{chunks} chunks, {tools} tools, {calls} calls, {killed} clients killed");
                    self.bar.set_message(text);
                }
                _ => {}
            }
        }
    }

    /// Kills it and starts another.
    fn replace(&mut self, light: &mut Process) -> Result<()> {
        if light.has_ended() {
            self.meter.fault("a light client ended before its time".into());
        }
        let process = light.id();
        let now = light.kill()?;
        self.killed.insert(process, now);
        *light = Process::start("light client", self.command("light-again")?, &self.tell)?;
        Ok(())
    }

    /// Waits for a line of this process that is wanted.
    fn until<T>(&mut self, end: Instant, of: &mut Process, wanted: impl Fn(Line) -> Option<T>) -> Result<T> {
        loop {
            self.look(end)?;
            match self.hear(Duration::from_millis(50))? {
                Some((id, Some(line))) if id == of.id() => {
                    if let Some(found) = wanted(line) {
                        return Ok(found);
                    }
                }
                Some((id, None)) if id == of.id() => bail!("it ended without the word that was waited for"),
                Some((_, Some(Line::Told(told)))) => self.meter.merge_told(&told),
                _ => {}
            }
        }
    }

    fn hear(&self, patience: Duration) -> Result<Option<Heard>> {
        match self.heard.recv_timeout(patience) {
            Ok(heard) => Ok(Some(heard)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!("nobody is left")),
        }
    }

    fn look(&self, end: Instant) -> Result<()> {
        ensure!(!self.stop.load(Ordering::Relaxed), "stopped");
        ensure!(Instant::now() < end, "it does not come to its end");
        Ok(())
    }

    fn command(&self, role: &str) -> Result<Command> {
        if self.config.transport == Transport::Node {
            return node::command(&self.arguments.node, role, &self.config, self.folder.path());
        }
        let mut command = Command::new(env::current_exe()?);
        command.arg(role).arg(serde_json::to_string(&self.config)?);
        Ok(command)
    }
}

/// Whose turn it is to be killed: one after the other.
fn turn_of(killed: &HashMap<u32, u64>) -> usize {
    killed.len() % LIGHTS
}

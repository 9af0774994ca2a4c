//! The runs, one after the other: starts the processes, kills light clients, and collects the measurements.

use std::collections::HashMap;
use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use clap::Args;
use harness::{
    Output, Process, Result, anyhow, bail, cpu_seconds_of_children, cpu_seconds_of_others, ensure,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::{RunConfig, Scope};
use crate::fault_injection::Fault;
use crate::line_protocol::StatusLine;
use crate::memory::PeakMemory;
use crate::node_js;
use crate::plan::{LIGHTS, Plan};
use crate::recorder::{Measured, Metric, Recorder};
use crate::report::{self, Report, TransportRun};
use crate::transport::Transport;

/// The choice of runs.
#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    /// The seed of all messages
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long the chats go on over each transport: two thirds at 50 chunks a second, the rest unpaced
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// The transports; Node.js has the chats alone, and the others then run the chats alone too
    #[arg(long, value_delimiter = ',', default_values = ["narrows", "unix", "node"])]
    transport: Vec<Transport>,
    /// Node.js
    #[arg(long, default_value = "node")]
    node: PathBuf,
    /// Where the results go
    #[arg(long, default_value = "target/benches/editor_workload")]
    out: PathBuf,
    /// Has the backend make a fault in each chat: the run must fail
    #[arg(long)]
    inject: Option<Fault>,
}

/// How long a run may take beyond its time.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Runs all transports, and writes the report.
pub(crate) fn run(options: &RunOptions) -> Result<()> {
    let seconds = options.seconds;
    ensure!((2.0..=86_400.0).contains(&seconds), "from 2 seconds to a day");
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
    let mut transports = options.transport.clone();
    let mut notes = Vec::new();
    if transports.contains(&Transport::Node) {
        if let Err(error) = node_js::require(&options.node) {
            transports.retain(|it| *it != Transport::Node);
            notes.push(format!("Without Node.js: {error:#}"));
            eprintln!("Node.js is left out: {error:#}");
        }
    }
    ensure!(!transports.is_empty(), "there is nothing to measure");
    let mut runs = Vec::new();
    for (transport, scope) in wanted(&transports) {
        // The chats alone need less time.
        let plan = Plan::new(options.seed, if scope == Scope::Whole { seconds } else { seconds / 2.0 });
        runs.push(WorkloadRun::new(transport, scope, plan, options, &stop)?.run()?);
    }
    let report = Report { seed: options.seed, seconds, machine: harness::machine(), notes, runs };
    report::publish(&report, &options.out)
}

/// Returns the runs: all flows over each transport but Node.js; if Node.js takes part, also the chats alone over each.
fn wanted(transports: &[Transport]) -> Vec<(Transport, Scope)> {
    let whole = transports.iter().filter(|it| **it != Transport::Node).map(|it| (*it, Scope::Whole));
    let node = transports.contains(&Transport::Node);
    let chats = transports.iter().filter(|_| node).map(|it| (*it, Scope::Chats));
    whole.chain(chats).collect()
}

/// One transport's run.
struct WorkloadRun<'a> {
    config: RunConfig,
    options: &'a RunOptions,
    stop: &'a AtomicBool,
    folder: tempfile::TempDir,
    sender: Sender<Output>,
    output: Receiver<Output>,
    recorder: Recorder,
    bar: ProgressBar,
    /// When each process was killed.
    killed: HashMap<u32, u64>,
    memory: [PeakMemory; 2],
}

impl<'a> WorkloadRun<'a> {
    fn new(
        transport: Transport,
        scope: Scope,
        plan: Plan,
        options: &'a RunOptions,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (sender, output) = channel();
        let config =
            RunConfig { transport, scope, plan, path: folder.path().join("socket"), fault: options.inject };
        let bar = ProgressBar::new((plan.paced + plan.unpaced).as_secs());
        let style = "{prefix:16} {bar:24} {pos:>3}/{len} s  {wide_msg}";
        bar.set_style(ProgressStyle::with_template(style)?);
        bar.set_prefix(report::name(transport, scope));
        let (recorder, killed, memory) = (Recorder::default(), HashMap::new(), [PeakMemory::default(); 2]);
        Ok(Self { config, options, stop, folder, sender, output, recorder, bar, killed, memory })
    }

    fn run(mut self) -> Result<TransportRun> {
        let (before, others) = (cpu_seconds_of_children(), cpu_seconds_of_others());
        let done = self.processes();
        self.bar.finish_and_clear();
        let (backend, editor) =
            done.map_err(|error| error.context(report::name(self.config.transport, self.config.scope)))?;
        let others = cpu_seconds_of_others() - others;
        let lights = cpu_seconds_of_children() - before - backend.cpu - editor.cpu;
        for measured in [&backend, &editor] {
            self.recorder.merge_measured(measured);
        }
        for (process, noticed) in &backend.disconnects {
            if let Some(killed) = self.killed.get(process) {
                self.recorder.record(Metric::Death, noticed.saturating_sub(*killed));
            }
        }
        self.recorder.count("light clients killed", self.killed.len() as u64);
        let RunConfig { transport, scope, plan, .. } = self.config;
        let cpu = [backend.cpu, editor.cpu, lights, others];
        eprintln!("{}: done", report::name(transport, scope));
        self.folder.close()?;
        Ok(TransportRun::new(transport, scope, plan, self.recorder.snapshot(), cpu, self.memory))
    }

    /// Runs all processes; returns the measurements of the backend and of the editor.
    fn processes(&mut self) -> Result<(Measured, Measured)> {
        let began = Instant::now();
        let end = began + self.config.plan.paced + self.config.plan.unpaced + TIMEOUT;
        let mut backend = Process::start("backend", self.command("backend")?, &self.sender)?;
        self.wait_for(end, &mut backend, |line| matches!(line, StatusLine::Ready).then_some(()))?;
        let mut lights = Vec::new();
        if self.config.scope == Scope::Whole {
            for _ in 0..LIGHTS {
                lights.push(Process::start("light client", self.light(false)?, &self.sender)?);
            }
        }
        let mut editor = Process::start("editor", self.command("editor")?, &self.sender)?;
        let measured = self.watch(end, (&backend, &mut editor), &mut lights)?;
        editor.wait(Duration::from_secs(10))?;
        lights.iter_mut().for_each(Process::close_input);
        for light in &mut lights {
            light.wait(Duration::from_secs(10))?;
        }
        backend.close_input();
        let of_backend = self.wait_for(end, &mut backend, |line| match line {
            StatusLine::Measured(measured) => Some(measured),
            _ => None,
        })?;
        backend.wait(Duration::from_secs(10))?;
        // The last lines of the light clients.
        while let Some((_, line)) = self.next_line(Duration::from_millis(100))? {
            if let Some(StatusLine::Measured(measured)) = line {
                self.recorder.merge_measured(&measured);
            }
        }
        Ok((of_backend, measured))
    }

    /// Follows the editor while it is at work, and kills a light client each second.
    fn watch(
        &mut self,
        end: Instant,
        (backend, editor): (&Process, &mut Process),
        lights: &mut [Process],
    ) -> Result<Measured> {
        let (began, mut looked) = (Instant::now(), Instant::now());
        let mut kill = Instant::now() + Duration::from_secs(1);
        loop {
            self.check_deadline(end)?;
            if Instant::now() > kill && !lights.is_empty() {
                kill += Duration::from_secs(1);
                let next = self.killed.len() % LIGHTS; // One after the other.
                self.replace(&mut lights[next])?;
            }
            if looked.elapsed() > Duration::from_millis(250) {
                looked = Instant::now();
                self.memory[0].sample(backend.id());
                self.memory[1].sample(editor.id());
                self.bar.set_position(began.elapsed().as_secs().min(self.bar.length().unwrap_or(0)));
            }
            match self.next_line(Duration::from_millis(50))? {
                Some((of, Some(StatusLine::Measured(measured)))) if of == editor.id() => return Ok(measured),
                Some((of, None)) if of == editor.id() => bail!("the editor exited without a report"),
                Some((of, None)) if of == backend.id() => bail!("the backend exited early"),
                Some((_, Some(StatusLine::Measured(measured)))) => self.recorder.merge_measured(&measured),
                Some((_, Some(StatusLine::Progress { chunks, tools, calls }))) => {
                    let killed = self.killed.len();
                    let text =
                        format!("{chunks} chunks, {tools} tools, {calls} calls, {killed} clients killed");
                    self.bar.set_message(text);
                }
                _ => {}
            }
        }
    }

    /// Kills a light client and starts another.
    fn replace(&mut self, light: &mut Process) -> Result<()> {
        if light.has_exited() {
            self.recorder.fault("a light client exited early".into());
        }
        let process = light.id();
        let now = light.kill()?;
        self.killed.insert(process, now);
        *light = Process::start("light client", self.light(true)?, &self.sender)?;
        Ok(())
    }

    /// Waits for the line of this process that `wanted` accepts.
    fn wait_for<T>(
        &mut self,
        end: Instant,
        of: &mut Process,
        wanted: impl Fn(StatusLine) -> Option<T>,
    ) -> Result<T> {
        loop {
            self.check_deadline(end)?;
            match self.next_line(Duration::from_millis(50))? {
                Some((id, Some(line))) if id == of.id() => {
                    if let Some(found) = wanted(line) {
                        return Ok(found);
                    }
                }
                Some((id, None)) if id == of.id() => {
                    bail!("the process exited without the line that was waited for")
                }
                Some((_, Some(StatusLine::Measured(measured)))) => self.recorder.merge_measured(&measured),
                _ => {}
            }
        }
    }

    /// Returns the next line of any process, or the end of its output.
    fn next_line(&self, timeout: Duration) -> Result<Option<(u32, Option<StatusLine>)>> {
        match self.output.recv_timeout(timeout) {
            // A killed process may leave half a line.
            Ok((id, Some(text))) => Ok(serde_json::from_str(&text).ok().map(|line| (id, Some(line)))),
            Ok((id, None)) => Ok(Some((id, None))),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!("no process is left")),
        }
    }

    fn check_deadline(&self, end: Instant) -> Result<()> {
        ensure!(!self.stop.load(Ordering::Relaxed), "stopped");
        ensure!(Instant::now() < end, "the run does not end");
        Ok(())
    }

    fn light(&self, replaces: bool) -> Result<Command> {
        let mut command = self.command("light")?;
        if replaces {
            command.arg("--replaces");
        }
        Ok(command)
    }

    fn command(&self, role: &str) -> Result<Command> {
        if self.config.transport == Transport::Node {
            return node_js::command(&self.options.node, role, &self.config, self.folder.path());
        }
        let mut command = Command::new(env::current_exe()?);
        command.arg(role).arg(serde_json::to_string(&self.config)?);
        Ok(command)
    }
}

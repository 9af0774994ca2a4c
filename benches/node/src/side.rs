//! The two sides of narrows, and the Rust server behind Node's socket: the same loops as `js/driver.js` and `js/echo.js`.
//!
//! Both sides are plain: `send` of a private buffer, `recv_into` a buffer that is kept, default options except for
//! the way to wait. Side B exits when side A does.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Instant;

use harness::{Result, anyhow, cpu_seconds};
use narrows::{Options, SharedMemoryStream, WaitStrategy};

use crate::config::{NodeConfig, NodeSystem, Outcome, POINTS, Phase, PhaseKind, SideUsage};
use crate::message::{Messages, messages};

/// Runs side A without a side B: the cost of serialising, parsing and verifying when nothing is sent.
pub fn alone(config: &NodeConfig) -> Result<()> {
    let outcomes: Result<Vec<Outcome>> =
        config.phases.iter().map(|phase| measure_alone(config, *phase)).collect();
    println!("{}", serde_json::to_string(&outcomes?)?);
    Ok(())
}

/// Runs side A of narrows: starts side B, and prints the outcomes of the phases as one line of JSON.
pub fn driver(config: &NodeConfig) -> Result<()> {
    let words = [config.rust.display().to_string(), "echo".into(), serde_json::to_string(config)?];
    let mut words = config.pin_b.iter().chain(&words);
    let mut command = Command::new(words.next().ok_or_else(|| anyhow!("no command"))?);
    let (mut child, mut stream) = options(config.system).spawn(command.args(words))?;
    let mut outcomes = Vec::new();
    for phase in &config.phases {
        outcomes.push(measure(&mut stream, config, *phase)?);
    }
    println!("{}", serde_json::to_string(&outcomes)?);
    drop(stream);
    child.wait()?.success().then_some(()).ok_or_else(|| anyhow!("side B failed"))
}

/// Runs side B of narrows, or of Node's socket.
pub fn echo(config: &NodeConfig) -> Result<()> {
    if config.system == NodeSystem::SocketRust {
        return answer(&mut Framed::new(UnixStream::connect(config.folder.join("socket"))?)?, config);
    }
    answer(&mut options(config.system).from_parent()?, config)
}

/// A way to send and to receive whole messages.
trait MessagePipe {
    fn send(&mut self, message: &[u8]) -> Result<()>;

    /// Returns false at the end.
    fn receive(&mut self, into: &mut Vec<u8>) -> Result<bool>;
}

impl MessagePipe for SharedMemoryStream {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(Self::send(self, message)?)
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> Result<bool> {
        match self.recv_into(into) {
            Ok(_) => Ok(true),
            Err(narrows::RecvError::ConnectionLost(narrows::ConnectionError::Disconnected)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// A Unix socket with frames: 4 bytes of length, then the message; one write for both.
struct Framed {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    frame: Vec<u8>,
}

impl Framed {
    fn new(socket: UnixStream) -> Result<Self> {
        let reader = BufReader::with_capacity(1 << 16, socket.try_clone()?);
        Ok(Self { reader, writer: socket, frame: Vec::new() })
    }
}

impl MessagePipe for Framed {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.frame.clear();
        self.frame.extend(u32::try_from(message.len())?.to_le_bytes());
        self.frame.extend(message);
        Ok(self.writer.write_all(&self.frame)?)
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> Result<bool> {
        let mut length = [0; 4];
        if self.reader.read(&mut length[..1])? == 0 {
            return Ok(false);
        }
        self.reader.read_exact(&mut length[1..])?;
        into.resize(u32::from_le_bytes(length) as usize, 0);
        self.reader.read_exact(into)?;
        Ok(true)
    }
}

/// Runs one phase of side A.
fn measure(pipe: &mut impl MessagePipe, config: &NodeConfig, phase: Phase) -> Result<Outcome> {
    let mut work = messages(config, phase.size)?;
    let mut buffer = Vec::new();
    let mut took = Vec::with_capacity(if phase.what == PhaseKind::Trips { phase.count } else { 0 });
    pipe.send(&serde_json::to_vec(&phase)?)?;
    expect(pipe, &mut buffer)?;
    let (began, cpu) = (Instant::now(), cpu_seconds());
    match phase.what {
        PhaseKind::Trips => trips(pipe, work.as_mut(), phase.count, &mut took, &mut buffer)?,
        PhaseKind::Rate => {
            for number in 0..phase.count as u64 {
                pipe.send(work.make(number)?)?;
            }
            expect(pipe, &mut buffer)?;
        }
    }
    let (seconds, cpu_a) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    if phase.what == PhaseKind::Trips {
        pipe.send(b"{}")?;
        expect(pipe, &mut buffer)?;
    }
    let usage: SideUsage = serde_json::from_slice(&buffer)?;
    let quantiles = quantiles(took);
    Ok(Outcome { phase, seconds, cpu_a, cpu_b: usage.cpu, quantiles })
}

/// Runs one phase without a transport. A round trip is making and checking, twice; the rate is that of the slower of making and checking, since two
/// processes do both at once.
fn measure_alone(config: &NodeConfig, phase: Phase) -> Result<Outcome> {
    let mut work = messages(config, phase.size)?;
    let (mut took, mut making) = (Vec::with_capacity(phase.count), 0.0);
    let (began, cpu) = (Instant::now(), cpu_seconds());
    for number in 0..phase.count as u64 {
        let start = Instant::now();
        let message = work.make(number)?.to_vec();
        making += start.elapsed().as_secs_f64();
        work.check(&message, number)?;
        if phase.what == PhaseKind::Trips {
            let message = work.make(number)?.to_vec();
            work.check(&message, number)?;
        }
        took.push(start.elapsed().as_secs_f64() * 1e6);
    }
    let (all, cpu_a) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let seconds = if phase.what == PhaseKind::Rate { making.max(all - making) } else { all };
    let quantiles = if phase.what == PhaseKind::Rate { vec![] } else { quantiles(took) };
    Ok(Outcome { phase, seconds, cpu_a, cpu_b: 0.0, quantiles })
}

/// Times round trips, with one reading of the clock for each.
fn trips(
    pipe: &mut impl MessagePipe,
    work: &mut dyn Messages,
    count: usize,
    took: &mut Vec<f64>,
    reply: &mut Vec<u8>,
) -> Result<()> {
    let mut last = Instant::now();
    for number in 0..count as u64 {
        pipe.send(work.make(number)?)?;
        expect(pipe, reply)?;
        work.check(reply, number)?;
        let now = Instant::now();
        took.push((now - last).as_secs_f64() * 1e6);
        last = now;
    }
    Ok(())
}

/// Runs side B: answers each phase until side A closes.
fn answer(pipe: &mut impl MessagePipe, config: &NodeConfig) -> Result<()> {
    let mut buffer = Vec::new();
    while pipe.receive(&mut buffer)? {
        let phase: Phase = serde_json::from_slice(&buffer)?;
        let mut work = messages(config, phase.size)?;
        let cpu = cpu_seconds();
        pipe.send(b"{}")?;
        for number in 0..phase.count as u64 {
            expect(pipe, &mut buffer)?;
            work.check(&buffer, number)?;
            if phase.what == PhaseKind::Trips {
                pipe.send(work.make(number)?)?;
            }
        }
        if phase.what == PhaseKind::Trips {
            expect(pipe, &mut buffer)?;
        }
        pipe.send(&serde_json::to_vec(&SideUsage { cpu: cpu_seconds() - cpu })?)?;
    }
    Ok(())
}

fn expect(pipe: &mut impl MessagePipe, into: &mut Vec<u8>) -> Result<()> {
    pipe.receive(into)?.then_some(()).ok_or_else(|| anyhow!("the other side exited early"))
}

fn options(system: NodeSystem) -> Options {
    Options::new().wait(match system {
        NodeSystem::NarrowsPark => WaitStrategy::Park,
        _ => WaitStrategy::Adaptive,
    })
}

#[expect(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::cast_possible_truncation)]
fn quantiles(mut took: Vec<f64>) -> Vec<f64> {
    took.sort_by(f64::total_cmp);
    let at = |point: f64| took.get(((point * took.len() as f64) as usize).min(took.len().saturating_sub(1)));
    POINTS.iter().filter_map(|point| at(*point).copied()).collect()
}

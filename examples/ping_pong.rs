//! Measures how fast two processes exchange messages: round trips, then a one-way flood, at several sizes.
//!
//! ```sh
//! cargo run --release --example ping_pong
//! ```
//!
//! The program starts itself as the second process and hands it one end of a new connection.
//!
//! The program checks every byte of every message. Payloads are parts of one block of random bytes, which both
//! processes make from the same seed. A message's index selects its part, so a lost, torn or repeated message never
//! matches. The measured times are:
//!
//! - a round trip: one `send` and one `recv_into`, and reading the clock. The echo is checked afterwards, outside of
//!   the measured time.
//! - the flood: from the first `send` until the second process has answered that it received and checked all messages,
//!   so the measured time contains its checks.

use std::env;
use std::error::Error;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use narrows::{Options, RecvError, SharedMemoryStream, WaitStrategy};

const USAGE: &str = "\
Measures messages between two processes: round trips and a one-way flood.

  --sizes SIZE,...              sizes of the messages, such as 100, 64KiB or 10MiB
  --millis NUMBER               milliseconds for each of the two measurements of a row; 750 by default
  --wait park|adaptive|spin     what a call does while it waits; adaptive by default
  --pin CPU,CPU                 the CPUs of the two processes, such as 0,1 (needs the command `taskset`)
  --seed NUMBER                 what the payloads are made from; 1 by default
  --spoil                       gives the second process one wrong bit, to see that the checks find it";

#[derive(Debug)]
struct Args {
    sizes: Vec<usize>,
    millis: u64,
    wait: WaitStrategy,
    pin: Vec<u32>,
    seed: u64,
    spoil: bool,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    if env::args().any(|arg| arg == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let is_second = env::args().any(|arg| arg == "--second");
    match Args::parse().and_then(|args| if is_second { second(&args) } else { first(&args) }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", if is_second { "second process" } else { "error" });
            ExitCode::FAILURE
        }
    }
}

/// Starts the second process, measures, and waits for its end.
fn first(args: &Args) -> Outcome<()> {
    let payloads = Payloads::new(args);
    let (mut child, mut stream) = args.options().spawn(args.second_command()?)?;
    let measured = measure(args, &payloads, &mut stream);
    drop(stream); // This ends the second process too.
    let status = child.wait()?;
    match (measured, status.success()) {
        (Err(error), false) => Err(format!("the second process failed ({status}): {error}").into()),
        (Ok(()), false) => Err(format!("the second process failed ({status})").into()),
        (measured, true) => measured,
    }
}

/// Echoes pings, checks floods, and ends when the first process closes.
fn second(args: &Args) -> Outcome<()> {
    let mut stream = args.options().from_parent()?;
    let mut payloads = Payloads::new(args);
    payloads.block[0] ^= u8::from(args.spoil);
    let (mut buffer, mut count, mut bytes) = (Vec::new(), 0, 0);
    loop {
        let tag = match stream.recv_into(&mut buffer) {
            Err(RecvError::ConnectionLost(narrows::ConnectionError::Disconnected)) => return Ok(()),
            received => received?.tag,
        };
        match tag {
            PING => stream.send(&buffer)?,
            END => {
                stream.send_tagged(&[], bytes)?;
                (count, bytes) = (0, 0);
            }
            index => {
                payloads.check(count, buffer.len(), &buffer, index)?;
                count += 1;
                bytes += buffer.len() as u64;
            }
        }
    }
}

/// The tag of a message to be echoed.
const PING: u64 = u64::MAX;

/// The tag of the message that ends a flood. The tags of the flood's messages are their indices.
const END: u64 = u64::MAX - 1;

fn measure(args: &Args, payloads: &Payloads, stream: &mut SharedMemoryStream) -> Outcome<()> {
    let time = Duration::from_millis(args.millis);
    println!("              round trip, us                                 flood, one way");
    println!("    size         p50       p99     p99.9       max       messages/s      GB/s");
    for &size in &args.sizes {
        round_trips(payloads, stream, size, time / 10)?; // Warms up.
        let trips = round_trips(payloads, stream, size, time)?;
        let rate = flood(payloads, stream, size, time)?;
        let micros = |per_mille| trips[trips.len() * per_mille / 1000] as f64 / 1e3;
        println!(
            "{:>8}  {:>10.2}{:>10.2}{:>10.2}{:>10.1}  {rate:>15.0}{:>10.3}",
            name(size),
            micros(500),
            micros(990),
            micros(999),
            trips[trips.len() - 1] as f64 / 1e3,
            rate * size as f64 / 1e9,
        );
    }
    Ok(())
}

/// Measures round trips, and returns their nanoseconds, sorted.
fn round_trips(
    payloads: &Payloads,
    stream: &mut SharedMemoryStream,
    size: usize,
    time: Duration,
) -> Outcome<Vec<u64>> {
    let mut nanos = Vec::with_capacity(1 << 20);
    let mut echo = Vec::new();
    let start = Instant::now();
    for index in 0.. {
        let payload = payloads.get(index, size);
        let began = Instant::now();
        stream.send_tagged(payload, PING)?;
        stream.recv_into(&mut echo)?;
        let took = began.elapsed();
        payloads.check(index, size, &echo, index as u64)?;
        nanos.push(u64::try_from(took.as_nanos())?);
        if start.elapsed() >= time {
            break;
        }
    }
    nanos.sort_unstable();
    Ok(nanos)
}

/// Measures a flood, and returns its messages per second.
fn flood(payloads: &Payloads, stream: &mut SharedMemoryStream, size: usize, time: Duration) -> Outcome<f64> {
    let start = Instant::now();
    let mut sent = 0;
    // Reading the clock takes as long as sending a small message.
    while sent % 16 != 0 || start.elapsed() < time {
        stream.send_tagged(payloads.get(sent, size), sent as u64)?;
        sent += 1;
    }
    stream.send_tagged(&[], END)?;
    let arrived = stream.recv(&mut [])?.tag;
    let took = start.elapsed();
    if arrived != (sent * size) as u64 {
        return Err(format!("of {} bytes, {arrived} arrived", sent * size).into());
    }
    Ok(sent as f64 / took.as_secs_f64())
}

/// The payloads by index, which are the same in both processes.
struct Payloads {
    block: Vec<u8>,
}

impl Payloads {
    /// The number of different payloads of a size.
    const COUNT: usize = 251;
    /// The bytes between the starts of two payloads: a cache line, so that they are aligned like buffers of a program.
    const STEP: usize = 64;

    fn new(args: &Args) -> Self {
        let mut block = vec![0; args.longest() + Self::COUNT * Self::STEP];
        fill_with_random(&mut block, args.seed);
        Self { block }
    }

    fn get(&self, index: usize, size: usize) -> &[u8] {
        let start = index % Self::COUNT * Self::STEP;
        &self.block[start..start + size]
    }

    /// Checks that a received message is the expected one, by its bytes and by its index.
    fn check(&self, due: usize, size: usize, came: &[u8], index: u64) -> Outcome<()> {
        if index != due as u64 {
            return Err(format!("message {index} came when {due} was due").into());
        }
        if size > self.block.len() - Self::COUNT * Self::STEP || self.get(due, size) != came {
            return Err(format!("message {due}, of {} bytes, is not what was sent", came.len()).into());
        }
        Ok(())
    }
}

/// Fills the block with random bytes, by SplitMix64.
fn fill_with_random(block: &mut [u8], seed: u64) {
    let mut state = seed;
    for chunk in block.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(word ^ word >> 31).to_le_bytes()[..chunk.len()]);
    }
}

impl Args {
    fn parse() -> Outcome<Self> {
        let (sizes, pin) = (parse_list("8,64,1KiB,64KiB,1MiB,10MiB", size)?, Vec::new());
        let mut args = Self { sizes, millis: 750, wait: WaitStrategy::Adaptive, pin, seed: 1, spoil: false };
        let mut words = env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--sizes" => args.sizes = parse_list(&value()?, size)?,
                "--millis" => args.millis = value()?.parse()?,
                "--wait" => args.wait = strategy(&value()?)?,
                "--pin" => args.pin = parse_list(&value()?, |cpu| Ok(cpu.parse()?))?,
                "--seed" => args.seed = value()?.parse()?,
                "--spoil" => args.spoil = true,
                "--second" => {}
                _ => return Err(format!("what is {word}?\n{USAGE}").into()),
            }
        }
        Ok(args)
    }

    fn longest(&self) -> usize {
        self.sizes.iter().copied().max().unwrap_or(0)
    }

    fn options(&self) -> Options {
        Options::new().wait(self.wait).max_message(self.longest().max(1))
    }

    /// Returns the command that starts this program again, with the same arguments, as the second process.
    fn second_command(&self) -> Outcome<Command> {
        let own = env::current_exe()?;
        let mut command = match self.pin[..] {
            [] => Command::new(own),
            [first, second] => {
                pin_this_process(first)?;
                let mut command = Command::new("taskset");
                command.arg("-c").arg(second.to_string()).arg(own);
                command
            }
            _ => return Err("--pin takes two CPUs, such as 0,1".into()),
        };
        command.args(env::args_os().skip(1)).arg("--second");
        Ok(command)
    }
}

fn pin_this_process(cpu: u32) -> Outcome<()> {
    let own = std::process::id().to_string();
    let pinned = Command::new("taskset").args(["-c", "-p", &cpu.to_string(), &own]).output();
    match pinned.map_err(|error| format!("cannot start taskset: {error}"))? {
        output if output.status.success() => Ok(()),
        output => Err(String::from_utf8_lossy(&output.stderr).into()),
    }
}

const UNITS: [(&str, usize); 3] = [("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];

fn parse_list<T>(text: &str, parse: impl Fn(&str) -> Outcome<T>) -> Outcome<Vec<T>> {
    text.split(',').map(parse).collect()
}

fn strategy(name: &str) -> Outcome<WaitStrategy> {
    match name {
        "park" => Ok(WaitStrategy::Park),
        "adaptive" => Ok(WaitStrategy::Adaptive),
        "spin" => Ok(WaitStrategy::Spin),
        _ => Err("--wait takes park, adaptive or spin".into()),
    }
}

fn size(text: &str) -> Outcome<usize> {
    let parse = |(unit, factor): (&str, usize)| {
        text.strip_suffix(unit)?.trim().parse::<usize>().ok()?.checked_mul(factor)
    };
    UNITS.into_iter().find_map(parse).ok_or_else(|| "a size looks like 100, 64KiB or 10MiB".into())
}

fn name(size: usize) -> String {
    let fits = |(_, factor): &(&str, usize)| size >= *factor && size % factor == 0;
    let (unit, factor) = UNITS.into_iter().find(fits).unwrap_or(("", 1));
    format!("{} {}", size / factor, if unit.is_empty() { "B" } else { unit })
}

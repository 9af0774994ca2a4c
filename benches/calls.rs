//! What a call costs beside the stream beneath it, between two real processes: `cargo bench --bench calls`.
//!
//! One process serves a plain stream that echoes and a call server with an inline method that replies nothing and one
//! that echoes; the other takes turns between them, a batch each, and checks every reply. The median of the batches is
//! told, with the middle half of them, and the ratio to the stream. `Adaptive` spins while the other side is quick;
//! `Park` sleeps before each message.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use narrows::{Options, SharedMemoryClient, SharedMemoryServer, SharedMemoryStream, WaitStrategy};

const NOTHING: u32 = 1;
const ECHO: u32 = 2;

#[derive(Parser)]
struct Arguments {
    /// Bytes of a request.
    #[arg(long, default_value_t = 32)]
    bytes: usize,
    /// Milliseconds for each way of waiting.
    #[arg(long, default_value_t = 3000)]
    millis: u64,
    /// The CPUs of the two processes, such as 0,1 or 0,0 (needs the command `taskset`): where the kernel puts a
    /// thread that it wakes decides more than anything here, so only pinned runs that sleep can be compared.
    #[arg(long, value_delimiter = ',', num_args = 1)]
    pin: Vec<u32>,
    /// What cargo says to a benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    serve: Option<String>,
    #[arg(long, hide = true)]
    park: bool,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    if let Some(folder) = &arguments.serve {
        return serve(Path::new(folder), &options(arguments.park));
    }
    if let Some(cpu) = arguments.pin.first() {
        pin_this_process(*cpu)?;
    }
    println!(
        "{} B, two processes; nanoseconds a round trip: median (middle half), ratio to the stream",
        arguments.bytes
    );
    for park in [false, true] {
        let folder = tempfile::tempdir()?;
        let mut server = start(folder.path(), park, arguments.pin.get(1))?;
        let measured = measure(folder.path(), park, &arguments);
        server.kill()?;
        server.wait()?;
        measured?;
    }
    Ok(())
}

fn options(park: bool) -> Options {
    Options::new().wait(if park { WaitStrategy::Park } else { WaitStrategy::Adaptive })
}

/// Starts the serving process, which ends with its standard input.
fn start(folder: &Path, park: bool, cpu: Option<&u32>) -> io::Result<Child> {
    let own = std::env::current_exe()?;
    let mut command = match cpu {
        None => Command::new(own),
        Some(cpu) => {
            let mut command = Command::new("taskset");
            command.arg("-c").arg(cpu.to_string()).arg(own);
            command
        }
    };
    command.arg("--serve").arg(folder).stdin(Stdio::piped());
    if park {
        command.arg("--park");
    }
    command.spawn()
}

fn pin_this_process(cpu: u32) -> io::Result<()> {
    let own = std::process::id().to_string();
    let pinned = Command::new("taskset").args(["-c", "-p", &cpu.to_string(), &own]).output()?;
    if pinned.status.success() { Ok(()) } else { Err(io::Error::other("taskset has refused the CPU")) }
}

fn serve(folder: &Path, options: &Options) -> io::Result<()> {
    let listener = options.bind(folder.join("stream"))?;
    let server = SharedMemoryServer::bind_with(folder.join("calls"), options)?
        .inline(NOTHING, |_, _| Ok(()))
        .inline(ECHO, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .spawn()?;
    thread::spawn(move || -> io::Result<()> {
        let mut stream = listener.accept()?;
        let mut message = Vec::new();
        while stream.recv_into(&mut message).is_ok() {
            stream.send(&message)?;
        }
        Ok(())
    });
    io::stdin().read_to_end(&mut Vec::new())?;
    drop(server);
    Ok(())
}

fn measure(folder: &Path, park: bool, arguments: &Arguments) -> io::Result<()> {
    let mut stream = reach(|| options(park).connect(folder.join("stream")))?;
    let path = folder.join("calls");
    let client = reach(|| SharedMemoryClient::builder(&path).options(options(park)).connect())?;
    let (request, mut reply) = (vec![0xA7; arguments.bytes], Vec::new());
    let batch = if park { 20 } else { 500 };
    let mut times = [const { Vec::new() }; 3];
    let end = Instant::now() + Duration::from_millis(arguments.millis);
    while Instant::now() < end {
        times[0].push(time(batch, || echo(&mut stream, &request, &mut reply))?);
        times[1].push(time(batch, || call(&client, NOTHING, &request, &[], &mut reply))?);
        times[2].push(time(batch, || call(&client, ECHO, &request, &request, &mut reply))?);
    }
    println!("{}", if park { "Park" } else { "Adaptive" });
    let base = quartiles(&mut times[0])[1];
    for (name, times) in ["stream", "call, nothing back", "call, echo"].iter().zip(&mut times) {
        let [low, median, high] = quartiles(times);
        println!("  {name:20} {median:8.0} ({low:.0} to {high:.0})  {:.2}", median / base);
    }
    Ok(())
}

fn echo(stream: &mut SharedMemoryStream, request: &[u8], reply: &mut Vec<u8>) -> io::Result<()> {
    stream.send(request)?;
    stream.recv_into(reply)?;
    check(reply == request)
}

fn call(
    client: &SharedMemoryClient,
    method: u32,
    request: &[u8],
    expected: &[u8],
    reply: &mut Vec<u8>,
) -> io::Result<()> {
    client.call_into(method, request, reply)?;
    check(reply == expected)
}

fn check(right: bool) -> io::Result<()> {
    if right { Ok(()) } else { Err(io::Error::other("a reply is wrong")) }
}

/// Nanoseconds that one of so many takes, once the other side's thread is at it.
fn time(batch: u32, mut one: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    for _ in 0..batch / 4 {
        one()?;
    }
    let began = Instant::now();
    for _ in 0..batch {
        one()?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e9 / f64::from(batch))
}

fn quartiles(times: &mut [f64]) -> [f64; 3] {
    times.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| times[(times.len() - 1) * quarter / 4])
}

/// Tries until the server is there.
fn reach<T, E>(mut connect: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    for _ in 0..500 {
        if let Ok(reached) = connect() {
            return Ok(reached);
        }
        thread::sleep(Duration::from_millis(10));
    }
    connect()
}

//! `narrows ping`: round trips to an echo server, as ping(8) shows them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use clap::Args;
use narrows::{
    CallError, Options, PeerCred, RecvTimeoutError, SendTimeoutError, SharedMemoryClient, SharedMemoryStream,
};

use crate::child::{pattern, payload};
use crate::{Wait, echo, format, signals};

/// The options of `ping`.
#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// Where the server listens.
    path: PathBuf,
    /// Stops after this many; without it, at Ctrl-C.
    #[arg(short, long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Seconds between two messages.
    #[arg(short, long, default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// Bytes of each message.
    #[arg(short, long, default_value_t = 56, value_parser = size)]
    size: usize,
    /// Seconds after which a message counts as lost.
    #[arg(short = 'W', long, default_value = "5", value_parser = seconds)]
    timeout: Duration,
    /// For an RPC server: calls its method 0, whose reply must be the request, or another method (`--method`). An error
    /// that the method does not exist is an answer, too.
    #[arg(long)]
    calls: bool,
    /// The number of the method; its reply may be anything.
    #[arg(long, default_value_t = echo::METHOD, requires = "calls")]
    method: u32,
    /// How this side waits.
    #[arg(long, value_enum, default_value_t = Wait::Adaptive)]
    wait: Wait,
    /// Shows the statistics alone.
    #[arg(short, long)]
    quiet: bool,
}

/// No connection carries a longer message: its length is a number of 32 bits.
const LONGEST: usize = u32::MAX as usize;
/// The least maximum that this side offers: a reply of another method may be longer than the request.
const AGREED: usize = 64 << 20;

fn size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size) if size <= LONGEST => Ok(size),
        Ok(_) => Err(format!("no narrows connection carries more than {LONGEST} bytes in a message")),
        Err(_) => Err("a number of bytes".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds, such as 0.2".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// The result of one ping.
enum Pong {
    Same,
    /// The server answers, and has no such method.
    NoMethod,
    Late,
}

/// Why no more pings can be sent.
enum Stop {
    Asked,
    Ended(String),
}

enum Target {
    Stream(Box<SharedMemoryStream>),
    Calls(SharedMemoryClient, u32),
}

impl Ping {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut target = self.connect()?;
        let (pid, uid) = (target.peer().pid(), target.peer().uid());
        let closer = target.closer();
        signals::on_signal(closer)?;
        println!("PING {} (process {pid} of user {uid}) {} bytes", self.path.display(), self.size);
        let (began, mut times) = (Instant::now(), Vec::new());
        let (mut sent, mut end) = (0, None);
        let mut expected = pattern(self.size);
        while self.count.is_none_or(|count| sent < count) {
            let at = Instant::now();
            sent += 1;
            payload(sent, &mut expected);
            match target.ping(sent, &expected, at + self.timeout) {
                Ok(Pong::Late) => println!("seq={sent} no answer in {}", format::time(self.timeout)),
                Ok(pong) => {
                    let took = at.elapsed();
                    times.push(took);
                    let what = match pong {
                        Pong::NoMethod => "an answer: no such method, from".to_owned(),
                        _ => format!("{} bytes from", self.size),
                    };
                    if !self.quiet {
                        println!("{what} process {pid}: seq={sent} time={}", format::time(took));
                    }
                }
                Err(Stop::Asked) => {
                    sent -= 1;
                    break;
                }
                Err(Stop::Ended(why)) => {
                    end = Some(why);
                    break;
                }
            }
            if self.count != Some(sent) {
                signals::sleep_until(at + self.interval);
            }
            if signals::is_asked() {
                break;
            }
        }
        self.statistics(sent, &times, began.elapsed());
        if let Some(why) = &end {
            eprintln!("narrows: {why}");
        }
        let all = end.is_none() && times.len() as u64 == sent;
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn connect(&self) -> anyhow::Result<Target> {
        // This side offers more than it needs, so that only the limit of the server counts.
        let options = Options::new().wait(self.wait.strategy()).max_message(self.size.max(AGREED));
        let target = if self.calls {
            let client = SharedMemoryClient::builder(&self.path).options(options).connect();
            Target::Calls(client.map_err(|error| format::unreachable(&self.path, &error))?, self.method)
        } else {
            let stream = options.connect(&self.path);
            Target::Stream(Box::new(stream.map_err(|error| format::unreachable(&self.path, &error))?))
        };
        let max = target.max();
        ensure!(
            self.size <= max,
            "the server takes messages of at most {max} bytes: see its Options::max_message (`serve-echo --max-message`)"
        );
        Ok(target)
    }

    fn statistics(&self, sent: u64, times: &[Duration], took: Duration) {
        let received = times.len();
        let lost = sent.saturating_sub(received as u64);
        let percent = if sent == 0 { 0.0 } else { lost as f64 * 100.0 / sent as f64 };
        println!("\n--- {} ping statistics ---", self.path.display());
        println!("{sent} sent, {received} received, {percent:.0}% lost, time {}", format::time(took));
        let (Some(min), Some(max)) = (times.iter().min(), times.iter().max()) else { return };
        let mean = times.iter().map(Duration::as_secs_f64).sum::<f64>() / received as f64;
        let spread =
            times.iter().map(|time| (time.as_secs_f64() - mean).powi(2)).sum::<f64>() / received as f64;
        let [mean, spread] = [mean, spread.sqrt()].map(|it| format::time(Duration::from_secs_f64(it)));
        println!(
            "rtt min/avg/max/mdev = {} / {mean} / {} / {spread}",
            format::time(*min),
            format::time(*max)
        );
    }
}

impl Target {
    fn peer(&self) -> PeerCred {
        match self {
            Self::Stream(stream) => stream.peer_cred(),
            Self::Calls(client, _) => client.peer_cred(),
        }
    }

    fn max(&self) -> usize {
        match self {
            Self::Stream(stream) => stream.max_message(),
            Self::Calls(client, _) => client.max_message(),
        }
    }

    /// Returns a function that ends a waiting call.
    fn closer(&self) -> Box<dyn Fn() + Send> {
        match self {
            Self::Stream(stream) => {
                let closer = stream.closer();
                Box::new(move || closer.close())
            }
            Self::Calls(client, _) => {
                let client = client.clone();
                Box::new(move || client.close())
            }
        }
    }

    fn ping(&mut self, number: u64, bytes: &[u8], deadline: Instant) -> Result<Pong, Stop> {
        let pong = match self {
            Self::Stream(stream) => ping_stream(stream, number, bytes, deadline),
            Self::Calls(client, method) => ping_calls(client, *method, bytes, deadline),
        };
        pong.map_err(|error| match signals::is_asked() {
            true => Stop::Asked,
            false => Stop::Ended(error.to_string()),
        })
    }
}

fn ping_stream(
    stream: &mut SharedMemoryStream,
    number: u64,
    bytes: &[u8],
    deadline: Instant,
) -> anyhow::Result<Pong> {
    match stream.send_tagged_deadline(bytes, number, deadline) {
        Ok(()) => {}
        Err(SendTimeoutError::Timeout) => return Ok(Pong::Late),
        Err(error) => bail!("{error}{}", hint(&error.into())),
    }
    let mut answer = Vec::new();
    loop {
        match stream.recv_into_deadline(&mut answer, deadline) {
            Ok(received) if received.tag < number && received.tag != 0 => {} // An answer to an earlier ping that timed out.
            Ok(received) => {
                ensure!(
                    received.tag == number && answer == bytes,
                    "what came back is not what was sent: the server is none that echoes"
                );
                return Ok(Pong::Same);
            }
            Err(RecvTimeoutError::Timeout) => return Ok(Pong::Late),
            Err(error) => bail!("{error}{}", hint(&error.into())),
        }
    }
}

/// The hint for an RPC server, which treats a message of a stream as a protocol violation and closes the connection.
fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::UnexpectedEof => {
            "\n  If the server serves calls, ping it with `--calls`"
        }
        _ => "",
    }
}

fn ping_calls(
    client: &SharedMemoryClient,
    method: u32,
    bytes: &[u8],
    deadline: Instant,
) -> anyhow::Result<Pong> {
    match client.call_deadline(method, bytes, deadline) {
        Ok(reply) if method != echo::METHOD || *reply == *bytes => Ok(Pong::Same),
        Ok(_) => {
            bail!("what came back is not what was sent: choose a `--method` that the server does not have")
        }
        Err(CallError::UnknownMethod | CallError::WrongKind(_)) => Ok(Pong::NoMethod),
        Err(CallError::Timeout) => Ok(Pong::Late),
        Err(error) => bail!("{error}"),
    }
}

//! The clients: the calls and messages of each role, all of them verified.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use narrows::{CallError, ConnectError, Options, SharedMemoryClient, SharedMemoryStream};

use crate::heap;
use crate::processes::{PATIENCE, RoleArguments, answer, connect_name, fault, name, options, orders};
use crate::serve::{CHUNKS, ECHO, FLOOD, FLOOD_LEN, PLEASE_FLOOD, PUSHES, STALL, UPLOAD, WORK, stream_path};
use crate::support::{descriptors, fill, index_of, sys};

/// A client of the calls and of the streams, which verifies what comes back.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) client: SharedMemoryClient,
    pub(crate) stream: SharedMemoryStream,
    message: Vec<u8>,
    reply: Vec<u8>,
    pub(crate) index: u64,
    /// Bytes that were verified, both ways.
    pub(crate) bytes: u64,
}

impl Caller {
    pub(crate) fn connect(path: &Path) -> Self {
        let client = connect(path, &options()).unwrap_or_else(|error| fault(&format!("connect: {error}")));
        let stream = keep_trying(|| options().connect(stream_path(path)));
        let stream = stream.unwrap_or_else(|error| fault(&format!("connect: {error}")));
        Self { client, stream, message: Vec::new(), reply: Vec::new(), index: 0, bytes: 0 }
    }

    /// Makes a call that returns the message.
    pub(crate) fn call(&mut self, method: u32, len: usize) -> Result<(), String> {
        self.next(len);
        let deadline = Instant::now() + PATIENCE;
        let called = self.client.call_into_deadline(method, &self.message, &mut self.reply, deadline);
        called.map_err(|error| format!("call of {len} bytes: {error}"))?;
        self.check("call")
    }

    /// Sends a message on the stream, which returns it.
    pub(crate) fn echo(&mut self, len: usize) -> Result<(), String> {
        self.next(len);
        let sent = self.stream.send_timeout(&self.message, PATIENCE);
        sent.map_err(|error| format!("send of {len} bytes: {error}"))?;
        let received = self.stream.recv_into_timeout(&mut self.reply, PATIENCE);
        received.map_err(|error| format!("receive of {len} bytes: {error}"))?;
        self.check("stream")
    }

    /// Receives a stream of chunks.
    pub(crate) fn chunks(&mut self, count: u64, len: usize) -> Result<(), String> {
        let first = self.index;
        let asked = request(&[first, count, len as u64]);
        let stream =
            self.client.call_streaming(CHUNKS, &asked).map_err(|error| format!("chunks: {error}"))?;
        let mut came = first;
        for chunk in stream {
            let chunk = chunk.map_err(|error| format!("a chunk: {error}"))?;
            if index_of(&chunk) != Some(came) {
                return Err(format!("chunk {came} is not whole, or not the next"));
            }
            came += 1;
            self.bytes += chunk.len() as u64;
        }
        self.index = came;
        if came == first + count { Ok(()) } else { Err(format!("{} of {count} chunks", came - first)) }
    }

    /// Makes an upload.
    pub(crate) fn upload(&mut self, count: u64, len: usize) -> Result<(), String> {
        let upload = self.client.start_upload(UPLOAD, &request(&[self.index]));
        let mut upload = upload.map_err(|error| format!("upload: {error}"))?;
        for index in self.index..self.index + count {
            fill(&mut self.message, index, len.min(upload.max_chunk()));
            let written = upload.write_chunk_timeout(&self.message, PATIENCE);
            written.map_err(|error| format!("upload: {error}"))?;
            self.bytes += self.message.len() as u64;
        }
        self.index += count;
        let reply = upload.finish_timeout(PATIENCE).map_err(|error| format!("upload: {error}"))?;
        if *reply == count.to_le_bytes() { Ok(()) } else { Err("an upload that lost something".into()) }
    }

    /// Makes one of each.
    pub(crate) fn round(&mut self, len: usize) -> Result<(), String> {
        self.call(ECHO, len)?;
        self.call(WORK, len)?;
        self.echo(len)?;
        self.chunks(2, len.min(750_000))?; // The longest chunk of a window of 1 MiB is a little more than that.
        self.upload(2, len)
    }

    fn next(&mut self, len: usize) {
        fill(&mut self.message, self.index, len);
    }

    fn check(&mut self, what: &str) -> Result<(), String> {
        if self.reply != self.message {
            return Err(format!("{what} {}: another message came back", self.index));
        }
        self.index += 1;
        self.bytes += 2 * self.message.len() as u64;
        Ok(())
    }
}

/// Encodes numbers as a request.
pub(crate) fn request(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|it| it.to_le_bytes()).collect()
}

/// Calls a method, and returns the text that it answers.
pub(crate) fn asked(client: &SharedMemoryClient, method: u32, numbers: &[u64]) -> Result<String, CallError> {
    let reply = client.call_timeout(method, &request(numbers), PATIENCE)?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

/// Connects, and waits for a server that has temporarily no descriptors.
pub(crate) fn connect(path: &Path, options: &Options) -> Result<SharedMemoryClient, ConnectError> {
    keep_trying(|| SharedMemoryClient::builder(path).options(options.clone()).connect())
}

fn keep_trying<T>(mut connect: impl FnMut() -> Result<T, ConnectError>) -> Result<T, ConnectError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match connect() {
            Ok(connected) => return Ok(connected),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => sleep(Duration::from_millis(10)),
        }
    }
}

fn or_fault(result: Result<(), String>) {
    if let Err(error) = result {
        fault(&error);
    }
}

/// From 64 B to 1 MiB by factors of two, and back.
pub(crate) fn sizes(most: u32) -> impl Iterator<Item = usize> {
    (6..most).chain((7..=most).rev()).cycle().map(|power| 1 << power)
}

/// Makes many connections in one process, each with a thread that calls. Orders: `go` connects and reports how long each waited
/// for its first reply, in us. `mark` resets the counts. `stop` reports how many calls of each were served.
pub(crate) fn many_connections(arguments: &RoleArguments) {
    sys::raise_descriptor_limit();
    let count = usize::try_from(arguments.number("connections").expect("an argument")).expect("few");
    let path = arguments.path();
    let served: Vec<AtomicU64> = (0..count).map(|_| AtomicU64::new(0)).collect();
    let (go, over) = (Mutex::new(()), AtomicBool::new(false));
    let firsts = Mutex::new(Vec::new());
    let waits = go.lock().expect("no panic");
    let mut waits = Some(waits);
    thread::scope(|s| {
        for (at, served) in served.iter().enumerate() {
            let (go, over, firsts) = (&go, &over, &firsts);
            let caller = move || {
                drop(go.lock());
                let began = Instant::now();
                let mut caller = Calls::connect(path, at as u64);
                caller.call(200);
                let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                firsts.lock().expect("no panic").push(took);
                for len in [64, 300, 1000].into_iter().cycle() {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    caller.call(len);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            };
            let started = thread::Builder::new().stack_size(256 << 10).spawn_scoped(s, caller);
            if let Err(error) = started {
                fault(&format!("thread {at}: {error}"));
            }
        }
        answer("ready");
        let counts = || -> Vec<u64> { served.iter().map(|it| it.load(Ordering::Relaxed)).collect() };
        let mut before = counts();
        for order in orders() {
            match order.as_str() {
                "go" => {
                    waits.take();
                    while firsts.lock().expect("no panic").len() < count {
                        sleep(Duration::from_millis(1));
                    }
                    answer(&joined(&firsts.lock().expect("no panic")));
                }
                "mark" => {
                    before = counts();
                    answer("marked");
                }
                _ => {
                    let after = counts();
                    over.store(true, Ordering::Relaxed);
                    answer(&joined(&after.iter().zip(&before).map(|(it, was)| it - was).collect::<Vec<_>>()));
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

fn joined(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

/// A client of the calls alone.
#[derive(Debug)]
struct Calls {
    client: SharedMemoryClient,
    message: Vec<u8>,
    reply: Vec<u8>,
    index: u64,
}

impl Calls {
    fn connect(path: &Path, index: u64) -> Self {
        // A single attempt: a flood of connections must not need a second one.
        let client = SharedMemoryClient::builder(path).options(options()).connect();
        let client = client.unwrap_or_else(|error| fault(&format!("connect: {error}")));
        Self { client, message: Vec::new(), reply: Vec::new(), index: index << 32 }
    }

    fn call(&mut self, len: usize) {
        fill(&mut self.message, self.index, len);
        let deadline = Instant::now() + PATIENCE;
        let called = self.client.call_into_deadline(ECHO, &self.message, &mut self.reply, deadline);
        if let Err(error) = called {
            fault(&format!("call {}: {error}", self.index));
        }
        if self.reply != self.message {
            fault(&format!("call {}: another message came back", self.index));
        }
        self.index += 1;
    }
}

/// Runs connections that do everything in every size, as fast as they can. Each order is answered with the calls and KiB so far,
/// and the allocated bytes.
pub(crate) fn steady(arguments: &RoleArguments) {
    let connections = arguments.number("connections").expect("an argument");
    at_work(connections, |_, counts| {
        let mut caller = Caller::connect(arguments.path());
        for len in sizes(20) {
            if counts.over.load(Ordering::Relaxed) {
                return;
            }
            or_fault(caller.round(len));
            counts.calls.fetch_add(5, Ordering::Relaxed);
            counts.bytes.fetch_add(std::mem::take(&mut caller.bytes), Ordering::Relaxed);
        }
    });
}

/// Runs one client that goes on whatever happens to others. It answers orders like [`steady`].
pub(crate) fn worker(arguments: &RoleArguments) {
    at_work(1, |_, counts| {
        let mut caller = Caller::connect(arguments.path());
        for len in sizes(16) {
            if counts.over.load(Ordering::Relaxed) {
                return;
            }
            or_fault(caller.round(len));
            counts.calls.fetch_add(5, Ordering::Relaxed);
            counts.bytes.fetch_add(std::mem::take(&mut caller.bytes), Ordering::Relaxed);
            sleep(Duration::from_micros(100)); // Leaves CPU time to other processes.
        }
    });
}

/// Runs one client that keeps the server busy. It answers orders like [`steady`].
pub(crate) fn neighbour(arguments: &RoleArguments) {
    at_work(1, |_, counts| {
        let mut caller = Caller::connect(arguments.path());
        for len in [65_536, 1024].into_iter().cycle() {
            if counts.over.load(Ordering::Relaxed) {
                return;
            }
            or_fault(caller.call(ECHO, len));
            counts.calls.fetch_add(1, Ordering::Relaxed);
        }
    });
}

/// The counters that working threads share.
#[derive(Debug)]
struct Counts {
    over: AtomicBool,
    calls: AtomicU64,
    bytes: AtomicU64,
}

/// Runs threads that work until there are no more orders. Each order is answered with their counts.
fn at_work(threads: u64, work: impl Fn(u64, &Counts) + Sync) {
    let counts = Counts { over: AtomicBool::new(false), calls: AtomicU64::new(0), bytes: AtomicU64::new(0) };
    thread::scope(|s| {
        for at in 0..threads {
            let (work, counts) = (&work, &counts);
            s.spawn(move || work(at, counts));
        }
        for _ in orders() {
            let (calls, bytes) = (counts.calls.load(Ordering::Relaxed), counts.bytes.load(Ordering::Relaxed));
            answer(&joined(&[calls, bytes >> 10, heap::live() as u64]));
        }
        counts.over.store(true, Ordering::Relaxed);
    });
}

/// Runs one client that calls at intervals and measures the time. Each order is a number of milliseconds. The answer is the
/// number of calls, and p50, p99, p99.9 and the longest in ns.
pub(crate) fn probe(arguments: &RoleArguments) {
    let mut caller = Caller::connect(arguments.path());
    for order in orders() {
        let deadline = Instant::now() + Duration::from_millis(order.parse().expect("a number"));
        let mut times = hdrhistogram::Histogram::<u64>::new(3).expect("legal");
        while times.is_empty() || Instant::now() < deadline {
            let began = Instant::now();
            or_fault(caller.call(ECHO, 64));
            let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            times.record(took.max(1)).expect("it grows as needed");
            sleep(Duration::from_micros(200));
        }
        let at = |share| times.value_at_quantile(share);
        answer(&joined(&[times.len(), at(0.5), at(0.99), at(0.999), times.max()]));
    }
}

/// Connects, makes calls, and vanishes: `leave` closes cleanly, `exit` exits in the middle of a call, `wait` runs until it is
/// killed.
pub(crate) fn short_lived(arguments: &RoleArguments) {
    let mut caller = Caller::connect(arguments.path());
    for len in [64, 1000, 30_000, 200_000] {
        or_fault(caller.round(len));
    }
    answer(&caller.index.to_string());
    match arguments.text("manner") {
        "leave" => {}
        "exit" => {
            let _pending = caller.client.start_call(STALL, &request(&[60_000]));
            std::process::exit(0); // Nothing is dropped.
        }
        _ => loop {
            or_fault(caller.round(3000));
        },
    }
}

/// Connects, makes calls and disconnects, repeatedly. Each order is answered with the number of connections.
pub(crate) fn revolver(arguments: &RoleArguments) {
    at_work(1, |_, counts| {
        while !counts.over.load(Ordering::Relaxed) {
            let mut caller = Caller::connect(arguments.path());
            or_fault(caller.round(500));
            counts.calls.fetch_add(1, Ordering::Relaxed);
        }
    });
}

/// Echoes to its parent.
pub(crate) fn inheritor() {
    let mut stream = SharedMemoryStream::from_parent().expect("handed over");
    let mut message = Vec::new();
    while stream.recv_into(&mut message).is_ok() && stream.send(&message).is_ok() {}
}

/// Takes all the descriptors that a server has. Reports how many connections that were, and the last error.
pub(crate) fn hoarder(arguments: &RoleArguments) {
    sys::raise_descriptor_limit();
    let brief = options().handshake_timeout(Duration::from_millis(300));
    let (mut kept, mut failures) = (Vec::new(), Vec::new());
    while failures.len() < 3 && kept.len() < 5000 {
        match SharedMemoryClient::builder(arguments.path()).options(brief.clone()).connect() {
            Ok(client) => kept.push(client),
            Err(error) => failures.push(connect_name(&error)),
        }
    }
    let last = failures.pop().unwrap_or_else(|| "nothing".into());
    answer(&format!("{} {last}", kept.len()));
    orders().next();
}

/// Has no descriptors left itself. Reports the error of an attempt to connect. Its existing connection goes on.
pub(crate) fn starved(arguments: &RoleArguments) {
    let mut caller = Caller::connect(arguments.path());
    or_fault(caller.round(1000));
    sys::limit_descriptors(descriptors() as u64 + 16);
    let _all: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let error = SharedMemoryClient::builder(arguments.path()).options(options()).connect();
    or_fault(caller.round(1000));
    answer(&error.map_or_else(|error| connect_name(&error), |_| "nothing".into()));
}

/// Asks for more than it takes, and takes it slowly. Reports the errors that the server got, and verifies that nothing is lost.
pub(crate) fn slow(arguments: &RoleArguments) {
    let mut caller = Caller::connect(arguments.path());
    // Pushes: the server finds no room, and the pushes that had room arrive.
    let pushed =
        asked(&caller.client, PUSHES, &[]).unwrap_or_else(|error| fault(&format!("pushes: {error}")));
    let (count, push_end) = pushed.split_once(' ').unwrap_or_else(|| fault(&pushed));
    for index in 0..count.parse().unwrap_or(0) {
        let push = caller.client.next_push_timeout(PATIENCE);
        let push = push.unwrap_or_else(|error| fault(&format!("push {index}: {error}")));
        expect(&push, index);
        if index % 50 == 0 {
            sleep(Duration::from_millis(10));
        }
    }
    // Chunks: the server waits, and a cancel ends its method.
    let stream = caller.client.call_streaming(FLOOD, &request(&[50_000]));
    let mut stream = stream.unwrap_or_else(|error| fault(&format!("flood: {error}")));
    for index in 0..5 {
        sleep(Duration::from_millis(30));
        match stream.next_chunk_timeout(PATIENCE) {
            Ok(Some(chunk)) => expect(&chunk, index),
            other => fault(&format!("chunk {index}: {other:?}")),
        }
    }
    let canceller = stream.canceller();
    canceller.cancel();
    let cancelled = loop {
        match stream.next_chunk_timeout(PATIENCE) {
            Ok(Some(_)) => {}
            Ok(None) => break "nothing".to_owned(),
            Err(error) => break name(&error),
        }
    };
    // A stream: the deadline of the sender passes, and nothing is lost.
    let sent = caller.stream.send_timeout(PLEASE_FLOOD, PATIENCE);
    sent.unwrap_or_else(|error| fault(&format!("flood: {error}")));
    sleep(Duration::from_millis(400));
    let (mut message, mut came) = (Vec::new(), 0_u64);
    let stream_end = loop {
        let received = caller.stream.recv_into_timeout(&mut message, PATIENCE);
        received.unwrap_or_else(|error| fault(&format!("message {came} of a flood: {error}")));
        if message.len() != FLOOD_LEN {
            let text = String::from_utf8_lossy(&message).into_owned();
            match text.split_once(' ') {
                Some((count, end)) if count == came.to_string() => break end.to_owned(),
                _ => fault(&format!("{came} messages came, the server says {text}")),
            }
        }
        expect(&message, came);
        came += 1;
        if came % 64 == 0 {
            sleep(Duration::from_millis(400)); // The server was slower still. It gets another chance to wait.
        }
    };
    or_fault(caller.round(1000));
    answer(&format!("{push_end} {cancelled} {stream_end}"));
}

fn expect(message: &[u8], index: u64) {
    if index_of(message) != Some(index) {
        fault(&format!("message {index} is not whole, or not the next"));
    }
}

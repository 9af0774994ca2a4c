//! The server: calls at the path, streams beside it. It verifies each message before it answers.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use narrows::{
    ChunkReader, ChunkWriter, ConnectionError, HandlerError, Options, Request, SendTimeoutError,
    ServerHandle, SharedMemoryListener, SharedMemoryServer, SharedMemoryStream,
};

use crate::heap;
use crate::processes::{MAX_MESSAGE, PATIENCE, RoleArguments, answer, name, options, orders};
use crate::support::{fill, index_of, sys};

/// Inline: returns the message.
pub(crate) const ECHO: u32 = 1;
/// The same in the pool.
pub(crate) const WORK: u32 = 2;
/// `[first index, chunks, bytes of each]`: sends messages as chunks.
pub(crate) const CHUNKS: u32 = 3;
/// Receives messages as chunks. Returns how many came.
pub(crate) const UPLOAD: u32 = 4;
/// Sends messages as chunks without end.
pub(crate) const FLOOD: u32 = 5;
/// Inline: returns this many bytes.
pub(crate) const BIG: u32 = 6;
/// Pushes messages until there is no more room. Returns how many, and the error of the last push.
pub(crate) const PUSHES: u32 = 7;
/// Runs for this many milliseconds, or until it is cancelled.
pub(crate) const STALL: u32 = 8;

/// The message of a stream that asks for a flood: messages until the reader is too slow, and then a text that reports it.
pub(crate) const PLEASE_FLOOD: &[u8] = b"flood";
/// How long the flood waits for its reader, and the length of its messages.
const SLOW: Duration = Duration::from_millis(200);
pub(crate) const FLOOD_LEN: usize = 60_000;

static STATE: Mutex<State> = Mutex::new(State {
    calls: VecDeque::new(),
    streams: VecDeque::new(),
    open_streams: 0,
    broken_streams: 0,
    disconnected: 0,
});
static HANDLE: Mutex<Option<ServerHandle>> = Mutex::new(None);

/// How the last few connections ended, by the id of the process.
type Ends = VecDeque<(u32, String)>;

/// How many ends are kept, so that they do not look like a leak.
const KEPT: usize = 256;

/// How connections ended. Those that were closed cleanly are only counted.
struct State {
    calls: Ends,
    streams: Ends,
    open_streams: u64,
    broken_streams: u64,
    disconnected: u64,
}

fn handle() -> MutexGuard<'static, Option<ServerHandle>> {
    HANDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(ends: &mut Ends, pid: u32, reason: String) {
    if ends.len() == KEPT {
        ends.pop_front();
    }
    ends.push_back((pid, reason));
}

/// Where streams are served, beside the calls.
pub(crate) fn stream_path(path: &Path) -> PathBuf {
    path.with_extension("stream")
}

/// Serves until standard input ends.
pub(crate) fn serve(arguments: &RoleArguments) {
    match arguments.number("descriptors") {
        Some(limit) => sys::limit_descriptors(limit),
        None => sys::raise_descriptor_limit(),
    }
    let options = arguments
        .number("handshake")
        .map_or_else(options, |millis| options().handshake_timeout(Duration::from_millis(millis)));
    let served = Served::begin(arguments.path(), &options);
    answer("ready");
    for order in orders() {
        match order.split_once(' ') {
            Some((_, pid)) => answer(&reason(pid.parse().expect("a number"))),
            None => answer(&stats()),
        }
    }
    served.end();
}

/// Returns how the RPC connection of the process with this id ended, and how its stream did.
fn reason(pid: u32) -> String {
    let state = state();
    let of = |ends: &Ends| {
        let reason = ends.iter().rev().find(|(of, _)| *of == pid);
        reason.map_or_else(|| "-".to_owned(), |(_, reason)| reason.clone())
    };
    format!("{} {}", of(&state.calls), of(&state.streams))
}

/// Returns the number of connections and streams, then of the RPC connections that died, were closed cleanly, or violated the
/// protocol, then of the streams that were not closed cleanly, and the allocated bytes.
fn stats() -> String {
    let stats = handle().as_ref().map(ServerHandle::stats).unwrap_or_default();
    let state = state();
    let numbers = [
        stats.connections as u64,
        state.open_streams,
        stats.died,
        state.disconnected,
        stats.violated,
        state.broken_streams,
        heap::live() as u64,
    ];
    numbers.map(|it| it.to_string()).join(" ")
}

/// An RPC server and a server of streams, on threads of their own.
pub(crate) struct Served {
    listener: Arc<SharedMemoryListener>,
    acceptor: thread::JoinHandle<()>,
}

impl Served {
    pub(crate) fn begin(path: &Path, options: &Options) -> Self {
        let server = SharedMemoryServer::bind_with(path, options).expect("binds").max_connections(4000);
        *handle() = Some(methods(server).spawn().expect("serves"));
        let listener = Arc::new(options.bind(stream_path(path)).expect("binds"));
        let accepts = Arc::clone(&listener);
        let acceptor = thread::spawn(move || accept(&accepts));
        Self { listener, acceptor }
    }

    /// Ends the calls at once, and no stream is accepted any more.
    pub(crate) fn end(self) {
        drop(handle().take());
        self.leave();
    }

    /// Shuts down when the calls have completed.
    pub(crate) fn shutdown(self) {
        let handle = handle().take();
        let _drained = handle.expect("serves").shutdown(PATIENCE);
        self.leave();
    }

    fn leave(self) {
        self.listener.closer().close();
        self.acceptor.join().expect("no panic");
        let mut state = state();
        state.calls = Ends::new();
        state.streams = Ends::new();
    }
}

fn methods(server: SharedMemoryServer) -> SharedMemoryServer {
    server
        .inline(ECHO, echo)
        .method(WORK, echo)
        .streaming(CHUNKS, |request, chunks| {
            let [index, count, len] = numbers(request)?;
            let mut message = Vec::new();
            (index..index + count).try_for_each(|index| {
                fill(&mut message, index, small(len));
                Ok(chunks.write_chunk(&message)?)
            })
        })
        .upload(UPLOAD, upload)
        .streaming(FLOOD, flood)
        .inline(BIG, |request, reply| {
            let [len] = numbers(request)?;
            reply.resize(small(len), 7);
            Ok(())
        })
        .method(PUSHES, |request, reply| {
            let (connection, mut message) = (request.connection(), Vec::new());
            for index in 0.. {
                fill(&mut message, index, 5000);
                if let Err(error) = connection.try_push(&message) {
                    reply.extend(format!("{index} {}", name(&error)).bytes());
                    break;
                }
            }
            Ok(())
        })
        .method(STALL, |request, _| {
            let [millis] = numbers(request)?;
            let deadline = Instant::now() + Duration::from_millis(millis);
            while Instant::now() < deadline && !request.is_cancelled() {
                thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        })
        .on_disconnect(|connection, error| {
            let mut state = state();
            match error {
                ConnectionError::Disconnected => state.disconnected += 1,
                error => note(&mut state.calls, connection.peer_cred().pid(), name(&error)),
            }
        })
}

fn echo(request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), HandlerError> {
    index_of(request.bytes()).ok_or_else(|| HandlerError::new(1, "a message that is not whole"))?;
    reply.extend_from_slice(request.bytes());
    Ok(())
}

fn upload(
    request: &Request<'_>,
    chunks: &mut ChunkReader<'_>,
    reply: &mut Vec<u8>,
) -> Result<(), HandlerError> {
    let [first] = numbers(request)?;
    let mut count = 0_u64;
    while let Some(chunk) = chunks.next_chunk()? {
        if index_of(&chunk) != Some(first + count) {
            return Err(HandlerError::new(2, "a chunk that is not whole, or not the next"));
        }
        count += 1;
    }
    reply.extend(count.to_le_bytes());
    Ok(())
}

fn flood(request: &Request<'_>, chunks: &mut ChunkWriter<'_>) -> Result<(), HandlerError> {
    let [len] = numbers(request)?;
    let mut message = Vec::new();
    (0..).try_for_each(|index| {
        fill(&mut message, index, small(len));
        Ok(chunks.write_chunk(&message)?)
    })
}

/// Decodes the numbers of a request.
fn numbers<const N: usize>(request: &Request<'_>) -> Result<[u64; N], HandlerError> {
    let bytes = request.bytes();
    if bytes.len() != 8 * N {
        return Err(HandlerError::new(3, "not so many numbers"));
    }
    Ok(std::array::from_fn(|at| u64::from_le_bytes(std::array::from_fn(|byte| bytes[8 * at + byte]))))
}

fn small(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX).min(4 * MAX_MESSAGE)
}

/// Accepts streams until the listener is closed. Each stream has a thread.
fn accept(listener: &Arc<SharedMemoryListener>) {
    loop {
        match listener.accept() {
            Ok(stream) => {
                state().open_streams += 1;
                let thread = thread::Builder::new().stack_size(256 << 10).spawn(move || {
                    let pid = stream.peer_cred().pid();
                    let end = serve_stream(stream);
                    let mut state = state();
                    state.open_streams -= 1;
                    if end != "Disconnected" {
                        state.broken_streams += 1;
                        note(&mut state.streams, pid, end);
                    }
                });
                if thread.is_err() {
                    state().open_streams -= 1;
                }
            }
            Err(narrows::AcceptError::Closed | narrows::AcceptError::Forked) => return,
            Err(_) => thread::sleep(Duration::from_millis(20)), // Without descriptors.
        }
    }
}

/// Echoes each message until the stream ends. Returns the name of the end.
fn serve_stream(mut stream: SharedMemoryStream) -> String {
    let mut message = Vec::new();
    loop {
        if let Err(error) = stream.recv_into(&mut message) {
            return name(&error);
        }
        let sent = if message == PLEASE_FLOOD {
            flood_stream(&mut stream)
        } else if index_of(&message).is_none() {
            return "a message that is not whole".into(); // A hostile peer may send such a message.
        } else {
            stream.send_timeout(&message, PATIENCE)
        };
        if let Err(error) = sent {
            return name(&error);
        }
    }
}

fn flood_stream(stream: &mut SharedMemoryStream) -> Result<(), SendTimeoutError> {
    let mut message = Vec::new();
    for index in 0_u64.. {
        fill(&mut message, index, FLOOD_LEN);
        match stream.send_timeout(&message, SLOW) {
            Ok(()) => {}
            Err(error @ SendTimeoutError::Timeout) => {
                let text = format!("{index} {}", name(&error));
                return stream.send_timeout(text.as_bytes(), PATIENCE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

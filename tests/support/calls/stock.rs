//! The methods of every server of these tests, and the events that they note.

use std::collections::BTreeMap;
use std::panic;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use narrows::{
    CallError, ChunkReader, ChunkWriter, HandlerError, Options, Request, ServerHandle, SharedMemoryServer,
};

/// Inline. Replies with the request.
pub(crate) const ECHO: u32 = 1;
/// The same from the worker pool.
pub(crate) const POOLED: u32 = 2;
/// Fails with the code 7, and the request as the text.
pub(crate) const FAIL: u32 = 3;
/// Panics with the request as the message.
pub(crate) const PANIC: u32 = 4;
/// The request is `[number of chunks, bytes of each]`. Streams the chunks, numbered in their first four bytes.
pub(crate) const STREAM: u32 = 5;
/// Replies with the number of bytes that were uploaded.
pub(crate) const UPLOAD: u32 = 6;
/// Sends each chunk back.
pub(crate) const DUPLEX: u32 = 7;
/// Inline. Pushes the request, and replies with the result. `TRY_PUSH` never waits.
pub(crate) const PUSH: u32 = 8;
pub(crate) const TRY_PUSH: u32 = 9;
/// The same from the worker pool, for at most 20 ms.
pub(crate) const PUSH_BRIEFLY: u32 = 10;
/// The same from the worker pool, without a deadline.
pub(crate) const PUSH_PATIENTLY: u32 = 11;
/// Waits until the gate is open or the call is cancelled, and then replies with the request.
pub(crate) const GATE: u32 = 12;
/// Waits until the gate is open, even if the call is cancelled.
pub(crate) const STUBBORN: u32 = 13;
/// Inline. Opens the gate.
pub(crate) const OPEN: u32 = 14;
/// Streams a chunk, waits for the gate, and ends the stream.
pub(crate) const GATED_STREAM: u32 = 15;
/// Reads no chunk before the gate is open.
pub(crate) const GATED_UPLOAD: u32 = 16;
/// Replies with as many bytes as the number in the request.
pub(crate) const BIG: u32 = 17;
/// Closes its own connection.
pub(crate) const CLOSE: u32 = 18;
/// Inline. Replies with the count of an event.
pub(crate) const SEEN: u32 = 19;
/// Inline. Replies with a counter of the server's stats.
pub(crate) const STAT: u32 = 20;
/// Streams a chunk that is one byte too long, and then one of the maximum length.
pub(crate) const LONG_CHUNKS: u32 = 21;
/// Pushes as many bytes as the number in the request, from the worker pool.
pub(crate) const PUSH_LONG: u32 = 22;
/// Streams two chunks, and then panics.
pub(crate) const BAD_STREAM: u32 = 23;
/// Ends an upload with an error before it is read.
pub(crate) const BAD_UPLOAD: u32 = 24;

static NOTES: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());
static HANDLE: Mutex<Option<ServerHandle>> = Mutex::new(None);
static GATE_OPEN: Mutex<bool> = Mutex::new(false);
static GATE_MOVED: Condvar = Condvar::new();

/// Counts an event.
pub(crate) fn note(what: impl Into<String>) {
    *lock(&NOTES).entry(what.into()).or_default() += 1;
}

/// Serves until standard input ends.
pub(crate) fn serve(
    path: &Path,
    options: &Options,
    configure: impl FnOnce(SharedMemoryServer) -> SharedMemoryServer,
) {
    panic::set_hook(Box::new(|info| {
        // Methods panic because the tests ask for it.
        if !thread::current().name().is_some_and(|name| name.starts_with("narrows-")) {
            crate::support::log(&format!("server: {info}"));
        }
    }));
    let server = SharedMemoryServer::bind_with(path, options).expect("binds");
    *lock(&HANDLE) = Some(configure(stock(server)).spawn().expect("serves"));
    super::process_orders(|order| match order.split_once(' ').unwrap_or((order, "")) {
        ("open", _) => open(),
        ("close", _) => lock(&HANDLE).as_ref().expect("serves").connections().iter().for_each(|c| c.close()),
        ("drop", _) => drop(lock(&HANDLE).take()),
        ("shutdown", millis) => {
            let time = Duration::from_millis(millis.parse().expect("a number"));
            let handle = lock(&HANDLE).take().expect("serves");
            thread::spawn(move || {
                let drained = handle.shutdown(time);
                crate::support::fork_server::report(&format!("{drained:?}"));
            });
        }
        other => panic!("no order: {other:?}"),
    });
    drop(lock(&HANDLE).take());
}

fn stock(server: SharedMemoryServer) -> SharedMemoryServer {
    let server = plain(server).inline(OPEN, |_, _| {
        open();
        Ok(())
    });
    let server = server
        .method(GATE, |request, reply| {
            gate("gate", || request.is_cancelled())?;
            echo(request, reply)
        })
        .method(STUBBORN, |request, reply| {
            gate("stubborn", || false)?;
            echo(request, reply)
        })
        .streaming(GATED_STREAM, |request, chunks| {
            chunks.write_chunk(request.bytes())?;
            gate("gated stream", || request.is_cancelled())
        })
        .upload(GATED_UPLOAD, |request, chunks, reply| {
            gate("gated upload", || request.is_cancelled())?;
            sum(request, chunks, reply)
        })
        .on_disconnect(|_, error| note(format!("gone {error:?}")));
    pushing(streams(server))
}

fn plain(server: SharedMemoryServer) -> SharedMemoryServer {
    server
        .inline(ECHO, echo)
        .method(POOLED, |request, reply| {
            note("pooled");
            echo(request, reply)
        })
        .method(FAIL, |request, _| Err(HandlerError::new(7, text(request))))
        .method(PANIC, |request, _| match request.is_empty() {
            true => panic!("plainly"),
            false => panic!("{}", text(request)),
        })
        .method(BIG, |request, reply| {
            reply.resize(number(request), 7);
            note("big");
            Ok(())
        })
        .method(CLOSE, |request, _| {
            request.connection().close();
            Ok(())
        })
        .inline(SEEN, |request, reply| {
            let count = lock(&NOTES).get(&text(request)).copied().unwrap_or(0);
            reply.extend_from_slice(&count.to_le_bytes());
            Ok(())
        })
        .inline(STAT, |request, reply| {
            reply.extend_from_slice(&stat(&text(request)).to_le_bytes());
            Ok(())
        })
}

fn streams(server: SharedMemoryServer) -> SharedMemoryServer {
    server
        .streaming(STREAM, stream)
        .streaming(BAD_STREAM, |_, chunks| {
            chunks.write_chunk(b"one")?;
            chunks.write_chunk(b"two")?;
            panic!("three")
        })
        .streaming(LONG_CHUNKS, |_, chunks| {
            let mut chunk = vec![1; chunks.max_chunk() + 1];
            note(format!("{:?}", chunks.write_chunk(&chunk)));
            chunk.pop();
            Ok(chunks.write_chunk(&chunk)?)
        })
        .upload(UPLOAD, sum)
        .upload(BAD_UPLOAD, |_, _, _| Err("enough".into()))
        .duplex(DUPLEX, |_, chunks, out| {
            while let Some(chunk) =
                chunks.next_chunk().inspect_err(|error| note(format!("duplex {error:?}")))?
            {
                out.write_chunk(&chunk).inspect_err(|error| note(format!("duplex {error:?}")))?;
            }
            Ok(())
        })
}

fn pushing(server: SharedMemoryServer) -> SharedMemoryServer {
    server
        .inline(PUSH, |request, reply| reply_with(reply, request.connection().push(request.bytes())))
        .inline(TRY_PUSH, |request, reply| reply_with(reply, request.connection().try_push(request.bytes())))
        .method(PUSH_BRIEFLY, |request, reply| {
            reply_with(reply, request.connection().push_timeout(request.bytes(), Duration::from_millis(20)))
        })
        .method(PUSH_PATIENTLY, |request, reply| {
            note("patient");
            reply_with(reply, request.connection().push(request.bytes()))
        })
        .method(PUSH_LONG, |request, reply| {
            reply_with(reply, request.connection().push(&vec![1; number(request)]))
        })
}

fn echo(request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), HandlerError> {
    reply.extend_from_slice(request.bytes());
    Ok(())
}

fn stream(request: &Request<'_>, chunks: &mut ChunkWriter<'_>) -> Result<(), HandlerError> {
    let (count, len) = request.bytes().split_first_chunk::<4>().expect("two numbers");
    let len = u32::from_le_bytes(len.try_into().expect("two numbers"));
    let mut chunk = vec![0; len as usize];
    for i in 0..u32::from_le_bytes(*count) {
        chunk[..4].copy_from_slice(&i.to_le_bytes());
        chunks.write_chunk(&chunk).inspect_err(|error| note(format!("stream {error:?}")))?;
        note("chunks");
    }
    Ok(())
}

fn sum(_: &Request<'_>, chunks: &mut ChunkReader<'_>, reply: &mut Vec<u8>) -> Result<(), HandlerError> {
    note("upload in");
    let mut sum = 0_u64;
    while let Some(chunk) = chunks.next_chunk().inspect_err(|error| note(format!("upload {error:?}")))? {
        sum += chunk.len() as u64;
    }
    reply.extend_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// Replies with the result of an operation.
fn reply_with(reply: &mut Vec<u8>, result: Result<(), CallError>) -> Result<(), HandlerError> {
    reply.extend_from_slice(format!("{result:?}").as_bytes());
    Ok(())
}

fn open() {
    *lock(&GATE_OPEN) = true;
    GATE_MOVED.notify_all();
}

/// Waits until the gate is open or `is_cancelled` returns true, and notes the events of this method.
fn gate(name: &str, is_cancelled: impl Fn() -> bool) -> Result<(), HandlerError> {
    note(format!("{name} in"));
    let mut open = lock(&GATE_OPEN);
    while !*open {
        if is_cancelled() {
            note(format!("{name} cancelled"));
            return Err("cancelled".into());
        }
        let waited = GATE_MOVED.wait_timeout(open, Duration::from_millis(1));
        open = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    note(format!("{name} out"));
    Ok(())
}

fn stat(name: &str) -> u64 {
    let handle = lock(&HANDLE);
    let stats = handle.as_ref().expect("serves").stats();
    match name {
        "connections" => stats.connections as u64,
        "accepted" => stats.accepted,
        "refused" => stats.refused,
        "violated" => stats.violated,
        "died" => stats.died,
        "calls" => stats.calls,
        "failed" => stats.failed,
        "panicked" => stats.panicked,
        "busy" => stats.busy,
        "running" => stats.running as u64,
        other => panic!("no counter: {other}"),
    }
}

fn text(request: &Request<'_>) -> String {
    String::from_utf8_lossy(request.bytes()).into_owned()
}

fn number(request: &Request<'_>) -> usize {
    usize::from_le_bytes(request.bytes().try_into().expect("a number"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

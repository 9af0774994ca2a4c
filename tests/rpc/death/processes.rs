//! The server of these tests, and the process that it runs in.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use narrows::{
    CallError, ConnectError, ConnectionError, Options, Request, SharedMemoryClient, SharedMemoryServer,
};

use crate::support::{Kept, LONG, eventually, me, sys};

/// Answers with the request. `ECHO` is inline, `POOLED` runs in the pool.
pub(crate) const ECHO: u32 = 1;
pub(crate) const POOLED: u32 = 2;
/// Returns when no caller waits for it any more.
pub(crate) const HOLD: u32 = 3;
/// Sends one chunk, then holds.
pub(crate) const ONE_CHUNK: u32 = 4;
/// Sends chunks like its request until the client takes no more.
pub(crate) const FLOOD: u32 = 5;
/// Takes chunks until their end; then holds.
pub(crate) const SWALLOW: u32 = 6;
/// Takes no chunk; holds.
pub(crate) const IGNORE: u32 = 7;
/// Answers with the number of methods that were begun in this process, without calls of `BEGUN` itself and of the echoes.
pub(crate) const BEGUN: u32 = 8;
/// Pushes its request until the client is gone.
pub(crate) const PUSH: u32 = 9;

/// What the methods of a server have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) begun: AtomicU32,
    /// Methods that ended because no caller waited any more.
    pub(crate) cancelled: AtomicUsize,
    /// Ends of connections: those by `PeerDied`, and all others.
    pub(crate) died: AtomicUsize,
    pub(crate) other: AtomicUsize,
}

impl Seen {
    fn begin(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits until no caller waits for the call.
    fn hold(&self, request: &Request<'_>) {
        while !request.is_cancelled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.cancelled.fetch_add(1, Ordering::SeqCst);
    }

    /// Counts a write, a read or a push whose client is gone.
    fn refused(&self, error: &CallError) {
        assert!(matches!(
            error,
            CallError::ConnectionLost(ConnectionError::PeerDied)
                | CallError::ConnectionLost(ConnectionError::Disconnected)
                | CallError::Cancelled
        ));
        self.cancelled.fetch_add(1, Ordering::SeqCst);
    }
}

/// Adds the methods, which record in `seen` what they see.
pub(crate) fn add_methods(server: SharedMemoryServer, seen: &Arc<Seen>) -> SharedMemoryServer {
    let [hold, one, flood, swallow, ignore, push, count, ended] = [(); 8].map(|()| Arc::clone(seen));
    let server = server
        .inline(ECHO, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .method(POOLED, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .inline(BEGUN, move |_, reply| {
            reply.extend(count.begun.load(Ordering::SeqCst).to_le_bytes());
            Ok(())
        })
        .on_disconnect(move |_, how| {
            let counter = if matches!(how, ConnectionError::PeerDied) { &ended.died } else { &ended.other };
            counter.fetch_add(1, Ordering::SeqCst);
        });
    let server = server
        .method(HOLD, move |request, _| {
            hold.begin();
            hold.hold(request);
            Ok(())
        })
        .method(PUSH, move |request, _| {
            push.begin();
            loop {
                request.connection().push(request.bytes()).inspect_err(|error| push.refused(error))?;
            }
        })
        .streaming(ONE_CHUNK, move |request, chunks| {
            one.begin();
            // The client may be killed in between.
            chunks.write_chunk(request.bytes()).inspect_err(|error| one.refused(error))?;
            one.hold(request);
            Ok(())
        });
    server
        .streaming(FLOOD, move |request, chunks| {
            flood.begin();
            loop {
                chunks.write_chunk(request.bytes()).inspect_err(|error| flood.refused(error))?;
            }
        })
        .upload(SWALLOW, move |request, chunks, _| {
            swallow.begin();
            while chunks.next_chunk().inspect_err(|error| swallow.refused(error))?.is_some() {}
            swallow.hold(request);
            Ok(())
        })
        .upload(IGNORE, move |request, _, _| {
            ignore.begin();
            ignore.hold(request);
            Ok(())
        })
}

/// A server with these methods at a path.
pub(crate) fn bind(path: &Path, seen: &Arc<Seen>) -> SharedMemoryServer {
    add_methods(SharedMemoryServer::bind_with(path, &small()).expect("binds"), seen)
        .workers(8)
        .max_workers_per_process(8)
}

/// Rings and windows that fill up soon.
pub(crate) fn small() -> Options {
    Options::new().slots(16).arena(64 << 10).stream_window(4096).push_window(4096)
}

/// Runs a server process until the test kills it.
pub(crate) fn serve(path: &str) {
    sys::alarm(150);
    bind(Path::new(path), &Arc::default()).serve().expect("serves");
}

/// Starts a server process: `test`, in the role "serve".
pub(crate) fn start(test: &str, path: &Path) -> Kept {
    Kept::start(&mut me(test, "serve", path.to_str().expect("plain")))
}

/// Connects as soon as the server listens.
pub(crate) fn reach(connect: impl Fn() -> Result<SharedMemoryClient, ConnectError>) -> SharedMemoryClient {
    let mut last = None;
    eventually(|| last.insert(connect()).is_ok());
    last.expect("tried").expect("reached")
}

/// Returns how many methods the server has begun.
pub(crate) fn begun(client: &SharedMemoryClient) -> u32 {
    let reply = client.call_timeout(BEGUN, &[], LONG).expect("answers");
    u32::from_le_bytes((*reply).try_into().expect("four bytes"))
}

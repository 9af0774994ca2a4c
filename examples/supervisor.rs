//! Starts a backend, kills it in the middle of its work, starts it again, and continues with a new connection.
//!
//! ```sh
//! cargo run --example supervisor
//! ```
//!
//! It shows that each pending call fails with `PeerDied` at once. The client never sends a call twice, so the new
//! backend has run no method when it starts. The program decides which calls to repeat: it gets a list of the lost
//! calls.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use narrows::{CallError, ConnectionLoss, Reconnect, SharedMemoryClient, SharedMemoryServer};

/// Runs until it is cancelled.
const WORK: u32 = 1;

/// Streams without an end.
const WATCH: u32 = 2;

/// Takes an upload.
const STORE: u32 = 3;

/// Returns how many calls of the other methods this process has begun.
const BEGUN: u32 = 4;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let done = match (args.next(), args.next()) {
        (None, _) => supervise(),
        (Some(flag), Some(path)) if flag == "--backend" => backend(Path::new(&path)), // Started by the supervisor.
        _ => Err("usage: supervisor".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the backend, which counts the methods that it begins, and does not end by itself.
fn backend(path: &Path) -> Outcome<()> {
    let begun = Arc::new(AtomicU32::new(0));
    let count = |begun: &Arc<AtomicU32>| {
        let begun = Arc::clone(begun);
        move || _ = begun.fetch_add(1, Ordering::Relaxed)
    };
    let (worked, watched, stored) = (count(&begun), count(&begun), count(&begun));
    let server = SharedMemoryServer::bind(path)?
        .method(WORK, move |request, _| {
            worked();
            while !request.is_cancelled() {
                thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        })
        .streaming(WATCH, move |_, chunks| {
            watched();
            loop {
                chunks.write_chunk(b"all is well")?;
                thread::sleep(Duration::from_millis(5));
            }
        })
        .upload(STORE, move |request, chunks, _| {
            stored();
            while chunks.next_chunk()?.is_some() {}
            while !request.is_cancelled() {
                thread::sleep(Duration::from_millis(5)); // Simulates a slow disk.
            }
            Ok(())
        })
        .inline(BEGUN, move |_, reply| {
            reply.extend(begun.load(Ordering::Relaxed).to_le_bytes());
            Ok(())
        });
    Ok(server.serve()?)
}

fn supervise() -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("backend");
    let mut first = Backend::start(&path)?;
    let policy = Reconnect::new().backoff(Duration::from_millis(5), Duration::from_millis(100)).on_loss(lost);
    let client = SharedMemoryClient::builder(&path).reconnect(policy).connect()?;
    println!("connected to process {}", client.peer_cred().pid());

    thread::scope(|scope| {
        let pending = [
            ("a call", scope.spawn(|| client.call(WORK, &[]).map(drop))),
            ("a stream", scope.spawn(|| watch(&client))),
            ("an upload", scope.spawn(|| store(&client))),
            ("a wait for pushes", scope.spawn(|| client.next_push().map(drop))),
        ];
        let begun = wait_until_begun(&client, 3);
        println!("kill -9 {}", first.0.id());
        // The kill comes before an error can return: the scope waits for the threads, and they wait for the kill.
        first.0.kill()?;
        begun?;
        for (name, thread) in pending {
            let got = thread.join().map_err(|_| "a thread panicked")?;
            println!("{name} got {got:?}");
            verify(matches!(got, Err(CallError::ConnectionLost(narrows::ConnectionError::PeerDied))), name)?;
        }
        Ok::<_, Box<dyn Error>>(())
    })?;

    let unreachable = client.call_timeout(BEGUN, &[], Duration::from_millis(50));
    println!("a call while there is no backend got {unreachable:?}");
    verify(
        matches!(unreachable, Err(CallError::ReconnectFailed(_) | CallError::Timeout)),
        "a call without a backend",
    )?;

    let second = Backend::start(&path)?;
    let begun = client.call(BEGUN, &[])?; // Tries until the new backend listens.
    println!("connected to process {}, which was asked for nothing before", client.peer_cred().pid());
    verify(*begun == 0_u32.to_le_bytes(), "nothing was sent again")?;
    verify(client.peer_cred().pid() == second.0.id() && client.stats().reconnects == 1, "the new one")?;
    println!("all as it should be");
    Ok(())
}

/// Prints the lost calls. The client calls this once for each connection that was lost.
fn lost(lost: &ConnectionLoss) {
    let mut methods: Vec<u32> = lost.calls.iter().map(|call| call.method).collect();
    methods.sort_unstable();
    println!("lost the connection: {}; calls under way of methods {methods:?}", lost.reason);
}

fn watch(client: &SharedMemoryClient) -> Result<(), CallError> {
    client.call_streaming(WATCH, &[])?.try_for_each(|chunk| chunk.map(drop))
}

fn store(client: &SharedMemoryClient) -> Result<(), CallError> {
    let mut upload = client.start_upload(STORE, &[])?;
    upload.write_chunk(&[7; 1000])?;
    upload.finish().map(drop)
}

/// Waits until the backend has begun this number of methods.
fn wait_until_begun(client: &SharedMemoryClient, methods: u32) -> Outcome<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while *client.call(BEGUN, &[])? != methods.to_le_bytes() {
        verify(Instant::now() < end, "methods begin")?;
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A backend process, which is killed when this is dropped.
struct Backend(Child);

impl Backend {
    /// Starts it, and waits until it listens.
    fn start(path: &Path) -> Outcome<Self> {
        let backend = Self(Command::new(env::current_exe()?).arg("--backend").arg(path).spawn()?);
        let end = Instant::now() + Duration::from_secs(30);
        while SharedMemoryClient::connect(path).is_err() {
            verify(Instant::now() < end, "the backend listens")?;
            thread::sleep(Duration::from_millis(5));
        }
        Ok(backend)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn verify(right: bool, what: &str) -> Outcome<()> {
    if right { Ok(()) } else { Err(format!("not as it should be: {what}").into()) }
}

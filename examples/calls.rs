//! Calls functions in another process: a short one, a longer one, and one whose reply is a stream.
//!
//! ```sh
//! cargo run --example calls                      # starts its own server process
//! cargo run --example calls -- serve /tmp/calls  # or: the server ...
//! cargo run --example calls -- /tmp/calls        # ... and a client, as often as you like
//! ```
//!
//! Ctrl-C ends the server: calls in flight are completed, new calls fail with `ShuttingDown`, and the path is removed.
//! The client checks every reply, and fails if one is wrong.

use std::env;
use std::error::Error;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use narrows::{CallError, ConnectError, HandlerError, SharedMemoryClient, SharedMemoryServer};

/// Answers with the request in capitals, from the thread that reads the connection.
const SHOUT: u32 = 1;

/// Answers with a checksum of the request, from a pool of workers.
const CHECKSUM: u32 = 2;

/// Answers with the words of the request, one chunk each.
const WORDS: u32 = 3;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<_> = env::args_os().skip(1).collect();
    let done = match &args[..] {
        [] => both(),
        [verb, path] if verb == "serve" => serve(Path::new(path), false),
        [verb, path, flag] if verb == "serve" && flag == "--while-fed" => serve(Path::new(path), true),
        [path] => connect(Path::new(path)).and_then(|client| call(&client)),
        _ => Err("usage: calls [PATH], or calls serve PATH".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the server, with three methods, until Ctrl-C; with `while_fed` also until its standard input ends.
fn serve(path: &Path, while_fed: bool) -> Outcome<()> {
    let server = SharedMemoryServer::bind(path)?
        .inline(SHOUT, |request, reply| {
            reply.extend(request.bytes().to_ascii_uppercase());
            Ok(())
        })
        .method(CHECKSUM, |request, reply| {
            if request.is_empty() {
                return Err(HandlerError::new(1, "nothing to sum up"));
            }
            reply.extend(checksum(request.bytes()).to_le_bytes());
            Ok(())
        })
        .streaming(WORDS, |request, chunks| {
            for word in request.bytes().split(|byte| *byte == b' ') {
                chunks.write_chunk(word)?;
            }
            Ok(())
        })
        .spawn()?;
    println!("server: serving at {}; Ctrl-C ends", path.display());
    let (stop, stopped) = channel();
    if while_fed {
        stop_at_end_of_input(stop.clone());
    }
    ctrlc::set_handler(move || _ = stop.send(()))?;
    stopped.recv()?;
    let stats = server.stats();
    let drained = server.shutdown(Duration::from_secs(5));
    println!("server: {} methods ran for {} clients; {drained:?}", stats.calls, stats.accepted);
    Ok(())
}

/// Stops the server when the standard input ends: the process that started this one has ended then.
fn stop_at_end_of_input(stop: Sender<()>) {
    thread::spawn(move || {
        let _end = io::stdin().read_to_end(&mut Vec::new());
        stop.send(())
    });
}

/// Starts a server process, calls it, and ends it.
fn both() -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("calls");
    let mut command = Command::new(env::current_exe()?);
    let mut server = command.arg("serve").arg(&path).arg("--while-fed").stdin(Stdio::piped()).spawn()?;
    let called = connect(&path).and_then(|client| call(&client));
    finish(&mut server)?;
    called
}

/// Closes the server's input, which ends it, and checks its exit status.
fn finish(server: &mut Child) -> Outcome<()> {
    drop(server.stdin.take());
    match server.wait()? {
        status if status.success() => Ok(()),
        status => Err(format!("the server failed: {status}").into()),
    }
}

/// Connects as soon as the server listens, since it may still be starting.
fn connect(path: &Path) -> Outcome<SharedMemoryClient> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match SharedMemoryClient::connect(path) {
            Err(ConnectError::Io { .. }) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return Ok(result?),
        }
    }
}

/// Calls each method, and checks its reply.
fn call(client: &SharedMemoryClient) -> Outcome<()> {
    println!("client: connected to process {}", client.peer_cred().pid());

    let reply = client.call(SHOUT, b"mind the tide")?;
    println!("client: shout said {:?}", String::from_utf8_lossy(&reply));
    verify(*reply == *b"MIND THE TIDE", "shout")?;

    let payload = vec![7; 10_000_000]; // It is sent in fragments, which small calls overtake.
    let reply = client.call_timeout(CHECKSUM, &payload, Duration::from_secs(60))?;
    println!("client: the checksum of {} bytes is {:02x?}", payload.len(), &*reply);
    verify(*reply == checksum(&payload).to_le_bytes(), "checksum")?;

    let mut words = Vec::new();
    for chunk in client.call_streaming(WORDS, b"one chunk for each word")? {
        let word = String::from_utf8(chunk?)?;
        println!("client: a chunk: {word:?}");
        words.push(word);
    }
    verify(words.join(" ") == "one chunk for each word", "words")?;

    let refused = client.call(CHECKSUM, b"");
    println!("client: a method's own error: {refused:?}");
    verify(matches!(refused, Err(CallError::Failed(error)) if error.code() == 1), "the error")?;

    at_once(client)?;
    println!("client: all replies are right");
    Ok(())
}

/// Has many calls in flight from one thread, then many threads on one connection.
fn at_once(client: &SharedMemoryClient) -> Outcome<()> {
    let texts: Vec<String> = (0..50).map(|number| format!("number {number}")).collect();
    let pending: Result<Vec<_>, _> =
        texts.iter().map(|text| client.start_call(SHOUT, text.as_bytes())).collect();
    for (call, text) in pending?.into_iter().zip(&texts) {
        verify(*call.wait()? == *text.to_uppercase().as_bytes(), text)?;
    }
    println!("client: 50 calls under way at once");
    thread::scope(|scope| {
        let each = |text| move || client.call(SHOUT, str::as_bytes(text)).map(|reply| (reply, text));
        let threads: Vec<_> = texts.iter().take(8).map(|text| scope.spawn(each(text))).collect();
        for thread in threads {
            let (reply, text) = thread.join().map_err(|_| "a thread panicked")??;
            verify(*reply == *text.to_uppercase().as_bytes(), text)?;
        }
        println!("client: 8 threads on one connection");
        Ok(())
    })
}

/// Returns the FNV-1a hash, which is short enough for an example.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn verify(right: bool, what: &str) -> Outcome<()> {
    if right { Ok(()) } else { Err(format!("{what} is not what was to come").into()) }
}

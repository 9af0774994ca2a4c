//! An editor and the backend that it starts: text that streams in token by token, tools that the backend asks
//! for in the middle of it, and a key that cancels.
//!
//! ```sh
//! cargo run --example chat              # Enter asks again, `c` and Enter cancels, Ctrl-D ends
//! cargo run --example chat -- --script  # asks twice and cancels the second answer by itself
//! ```
//!
//! ```text
//!   editor                                              backend (the same program, spawned)
//!     call_streaming(ANSWER, prompt) ───────────────────▶ a thread: token, token, ...
//!     prints tokens ◀───────────────────────────────────    │
//!     next_push() ◀──────────── push: "2 read main.rs" ──── wants a tool, waits
//!     call(RESULT, "2 ...") ────────────────────────────▶ a worker hands it over; it goes on
//!     Canceller::cancel ──── past everything ───────────▶ write_chunk fails, is_cancelled()
//!     next_chunk: Cancelled
//! ```

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::process::{Command, ExitCode};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use narrows::{CallError, Canceller, ChunkWriter, HandlerError, ReplyStream, Request};
use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};

/// Answers a prompt, as a stream of tokens.
const ANSWER: u32 = 1;

/// Takes what a tool found: the number of the request in decimal, a space, the text.
const RESULT: u32 = 2;

/// How many answers were cancelled, in decimal.
const CANCELLED: u32 = 3;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let (who, done) = match env::args().nth(1).as_deref() {
        None => ("error", editor(false)),
        Some("--script") => ("error", editor(true)),
        Some("--backend") => ("backend", backend()), // Started by the editor.
        Some(_) => ("error", Err("usage: chat [--script]".into())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{who}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the backend, asks it, and waits for its end.
fn editor(script: bool) -> Outcome<()> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("--backend");
    let (mut backend, stream) = SharedMemoryStream::spawn(command)?;
    let client = SharedMemoryClient::over(stream)?;
    let tools = client.clone();
    let tools = thread::spawn(move || serve_tools(&tools));
    let asked = if script { scripted(&client) } else { typed(&client) };
    client.close(); // Ends the tools' thread, and the backend.
    tools.join().map_err(|_| "the tools' thread panicked")??;
    drop(client);
    let status = backend.wait()?;
    asked?;
    if status.success() { Ok(()) } else { Err(format!("the backend failed: {status}").into()) }
}

/// Asks twice: the first answer comes to its end, the second is cancelled in its middle.
fn scripted(client: &SharedMemoryClient) -> Outcome<()> {
    let first = show(client.call_streaming(ANSWER, b"short")?, None)?;
    println!("[{first:?}]");
    let second = show(client.call_streaming(ANSWER, b"for ever")?, Some(20))?;
    println!("[{second:?}]");
    // The backend's thread learns of it at its next token, in its own time.
    while *client.call(CANCELLED, &[])? != *b"1" {
        thread::sleep(Duration::from_millis(1));
    }
    println!("[the backend says: 1 answer was cancelled]");
    match (first, second) {
        (Shown::Whole(tokens), Shown::Cancelled(20)) if tokens > 20 => Ok(()),
        wrong => Err(format!("not as the script has it: {wrong:?}").into()),
    }
}

/// Asks at each line that is typed; `c` cancels.
fn typed(client: &SharedMemoryClient) -> Outcome<()> {
    println!("[Enter asks, `c` and Enter cancels, Ctrl-D ends]");
    let now = Arc::new(Mutex::new(Now::default()));
    let prompts = keys(&now);
    while let Ok(line) = prompts.recv() {
        let prompt = if line.is_empty() { "for ever" } else { line.as_str() };
        let stream = client.call_streaming(ANSWER, prompt.as_bytes())?;
        lock(&now).begin(stream.canceller());
        let shown = show(stream, None)?;
        lock(&now).answer = None;
        println!("\n[{shown:?}]");
    }
    Ok(())
}

/// What the keys mean just now.
#[derive(Default)]
struct Now {
    answer: Option<Canceller>,
    /// The input has ended.
    over: bool,
}

impl Now {
    fn begin(&mut self, answer: Canceller) {
        if self.over {
            answer.cancel();
        }
        self.answer = Some(answer);
    }

    /// Cancels the answer that comes in on the other thread, which waits for its next token.
    fn cancel(&self) {
        self.answer.iter().for_each(Canceller::cancel);
    }
}

/// Prompts that are typed, until the input ends; `c` during an answer cancels it. Nothing ends a read from the terminal:
/// nobody waits for the thread.
fn keys(now: &Arc<Mutex<Now>>) -> Receiver<String> {
    let ((tell, prompts), now) = (channel(), Arc::clone(now));
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let now = lock(&now);
            match line.as_str() {
                "c" => now.cancel(),
                _ if now.answer.is_some() => {}
                _ => _ = tell.send(line),
            }
        }
        let mut now = lock(&now);
        now.over = true;
        now.cancel();
    });
    prompts
}

/// How an answer ended, after so many tokens.
#[derive(Debug)]
enum Shown {
    Whole(usize),
    Cancelled(usize),
}

/// Prints tokens as they come, and cancels after so many by itself.
fn show(mut stream: ReplyStream, most: Option<usize>) -> Outcome<Shown> {
    let mut tokens = 0;
    while Some(tokens) != most {
        match stream.next_chunk() {
            Ok(Some(token)) => {
                tokens += 1;
                io::stdout().write_all(&token)?;
                io::stdout().flush()?;
            }
            Ok(None) => return Ok(Shown::Whole(tokens)),
            Err(CallError::Cancelled) => return Ok(Shown::Cancelled(tokens)),
            Err(error) => return Err(error.into()),
        }
    }
    stream.cancel(); // As dropping it does. The backend is told at once, whatever else is under way.
    Ok(Shown::Cancelled(tokens))
}

/// Runs the tools that the backend asks for, while answers stream in on another thread.
fn serve_tools(client: &SharedMemoryClient) -> Result<(), CallError> {
    for push in client.pushes() {
        let push = String::from_utf8_lossy(&push?).into_owned();
        let Some((number, tool)) = push.split_once(' ') else { continue };
        let found = format!("{number} <what {tool} found>");
        match client.call(RESULT, found.as_bytes()) {
            Err(CallError::Failed(late)) => eprintln!("[{tool}: {late}]"), // Its answer was cancelled meanwhile.
            Err(CallError::Closed) => return Ok(()),
            result => _ = result?,
        }
    }
    Ok(())
}

/// The backend: answers on streams, takes results from the editor's tools.
fn backend() -> Outcome<()> {
    let stream = SharedMemoryStream::from_parent()?;
    let desk = Arc::new(Desk::default());
    let (results, cancelled) = (Arc::clone(&desk), Arc::clone(&desk));
    let served = SharedMemoryServer::new()
        .streaming(ANSWER, move |request, chunks| {
            let answered = answer(request, chunks, &desk);
            if request.is_cancelled() {
                *lock(&desk.cancelled) += 1;
            }
            answered
        })
        .method(RESULT, move |request, _| results.hand_over(request.bytes()))
        .inline(CANCELLED, move |_, reply| Ok(write!(reply, "{}", lock(&cancelled.cancelled))?))
        .serve_stream(stream);
    Ok(served?)
}

/// What the methods of the backend share.
#[derive(Default)]
struct Desk {
    /// Who waits for a tool, by the number of the request.
    waiting: Mutex<HashMap<u64, Sender<String>>>,
    cancelled: Mutex<u32>,
}

impl Desk {
    /// A tool has found something: whoever waits for it goes on.
    fn hand_over(&self, result: &[u8]) -> Result<(), HandlerError> {
        let result = String::from_utf8_lossy(result);
        let (number, found) = result.split_once(' ').ok_or("no number")?;
        let number: u64 = number.parse().map_err(|_| "not a number")?;
        let waits = lock(&self.waiting).remove(&number);
        let taken = waits.is_some_and(|waits| waits.send(found.to_owned()).is_ok());
        if taken { Ok(()) } else { Err("nobody waits for it".into()) }
    }
}

/// Answers a prompt: words, and after each tenth what a tool of the editor finds.
fn answer(request: &Request<'_>, chunks: &mut ChunkWriter<'_>, desk: &Desk) -> Result<(), HandlerError> {
    let words = ["The ", "tide ", "comes ", "in ", "and ", "goes ", "out, ", "and ", "nobody ", "asks. "];
    let rounds = if request.bytes() == b"for ever" { usize::MAX } else { 3 };
    for _ in 0..rounds {
        for word in words {
            chunks.write_chunk(word.as_bytes())?; // Fails at once when the editor has cancelled.
            thread::sleep(Duration::from_millis(5)); // It thinks.
        }
        let found = ask_tool(request, desk)?;
        chunks.write_chunk(format!("{found}\n").as_bytes())?;
    }
    Ok(())
}

/// Has the editor run a tool, and waits for what it finds.
fn ask_tool(request: &Request<'_>, desk: &Desk) -> Result<String, HandlerError> {
    let (tell, told) = channel();
    lock(&desk.waiting).insert(request.id(), tell);
    request.connection().push(format!("{} read main.rs", request.id()).as_bytes())?;
    loop {
        match told.recv_timeout(Duration::from_millis(10)) {
            Ok(found) => return Ok(found),
            Err(RecvTimeoutError::Timeout) if !request.is_cancelled() => {}
            Err(_) => {
                lock(&desk.waiting).remove(&request.id());
                return Err(CallError::Cancelled.into());
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! An editor and the backend that it starts. An answer streams in token by token, the backend asks the editor to run
//! tools meanwhile, and a key cancels the answer.
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

/// Takes the result of a tool: the number of the request in decimal, a space, the text.
const RESULT: u32 = 2;

/// Returns how many answers were cancelled, in decimal.
const CANCELLED: u32 = 3;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let (prefix, done) = match env::args().nth(1).as_deref() {
        None => ("error", editor(false)),
        Some("--script") => ("error", editor(true)),
        Some("--backend") => ("backend", backend()), // Started by the editor.
        Some(_) => ("error", Err("usage: chat [--script]".into())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{prefix}: {error}");
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

/// Asks twice: the first answer is completed, the second is cancelled in its middle.
fn scripted(client: &SharedMemoryClient) -> Outcome<()> {
    let first = show(client.call_streaming(ANSWER, b"short")?, None)?;
    println!("[{first:?}]");
    let second = show(client.call_streaming(ANSWER, ENDLESS)?, Some(20))?;
    println!("[{second:?}]");
    // The backend's thread detects the cancel at its next token.
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
    let session = Arc::new(Mutex::new(Session::default()));
    let prompts = read_prompts(&session);
    while let Ok(line) = prompts.recv() {
        let prompt = if line.is_empty() { ENDLESS } else { line.as_bytes() };
        let stream = client.call_streaming(ANSWER, prompt)?;
        lock(&session).begin(stream.canceller());
        let shown = show(stream, None)?;
        lock(&session).answer = None;
        println!("\n[{shown:?}]");
    }
    Ok(())
}

/// The state that the thread of the keyboard and the thread that shows answers share.
#[derive(Default)]
struct Session {
    /// Cancels the answer that is being shown.
    answer: Option<Canceller>,
    input_ended: bool,
}

impl Session {
    fn begin(&mut self, answer: Canceller) {
        if self.input_ended {
            answer.cancel();
        }
        self.answer = Some(answer);
    }

    /// Cancels the answer that the other thread shows, which waits for its next token.
    fn cancel(&self) {
        self.answer.iter().for_each(Canceller::cancel);
    }
}

/// Starts a thread that reads prompts until the input ends. `c` during an answer cancels it. A read from the terminal
/// cannot be interrupted, so the thread is not joined.
fn read_prompts(session: &Arc<Mutex<Session>>) -> Receiver<String> {
    let ((sender, prompts), session) = (channel(), Arc::clone(session));
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let session = lock(&session);
            match line.as_str() {
                "c" => session.cancel(),
                _ if session.answer.is_some() => {}
                _ => _ = sender.send(line),
            }
        }
        let mut session = lock(&session);
        session.input_ended = true;
        session.cancel();
    });
    prompts
}

/// How an answer ended, and after how many tokens.
#[derive(Debug)]
enum Shown {
    Whole(usize),
    Cancelled(usize),
}

/// Prints tokens as they come, and cancels the answer after `most` tokens.
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
    // Dropping the stream does the same. The cancel overtakes all other messages to the backend.
    stream.cancel();
    Ok(Shown::Cancelled(tokens))
}

/// Runs the tools that the backend asks for, while answers stream in on another thread.
fn serve_tools(client: &SharedMemoryClient) -> Result<(), CallError> {
    for push in client.pushes() {
        let push = String::from_utf8_lossy(&push?).into_owned();
        let Some((number, tool)) = push.split_once(' ') else { continue };
        let result = format!("{number} <what {tool} found>");
        match client.call(RESULT, result.as_bytes()) {
            Err(CallError::Failed(late)) => eprintln!("[{tool}: {late}]"), // The answer was cancelled meanwhile.
            Err(CallError::ConnectionLost(narrows::ConnectionError::Closed)) => return Ok(()),
            called => _ = called?,
        }
    }
    Ok(())
}

/// Runs the backend: answers on streams, and takes the results of the editor's tools.
fn backend() -> Outcome<()> {
    let stream = SharedMemoryStream::from_parent()?;
    let state = Arc::new(BackendState::default());
    let (results, counter) = (Arc::clone(&state), Arc::clone(&state));
    let served = SharedMemoryServer::new()
        .streaming(ANSWER, move |request, chunks| {
            let answered = answer(request, chunks, &state);
            if request.is_cancelled() {
                *lock(&state.cancelled) += 1;
            }
            answered
        })
        .method(RESULT, move |request, _| results.deliver(request.bytes()))
        .inline(CANCELLED, move |_, reply| Ok(write!(reply, "{}", lock(&counter.cancelled))?))
        .serve_stream(stream);
    Ok(served?)
}

/// The prompt whose answer does not end by itself.
const ENDLESS: &[u8] = b"endless";

/// The state that the methods of the backend share.
#[derive(Default)]
struct BackendState {
    /// The threads that wait for a tool, by the number of the request.
    waiting: Mutex<HashMap<u64, Sender<String>>>,
    cancelled: Mutex<u32>,
}

impl BackendState {
    /// Passes the result of a tool to the thread that waits for it.
    fn deliver(&self, message: &[u8]) -> Result<(), HandlerError> {
        let message = String::from_utf8_lossy(message);
        let (number, result) = message.split_once(' ').ok_or("no number")?;
        let number: u64 = number.parse().map_err(|_| "not a number")?;
        let waiter = lock(&self.waiting).remove(&number);
        let delivered = waiter.is_some_and(|waiter| waiter.send(result.to_owned()).is_ok());
        if delivered { Ok(()) } else { Err("no answer waits for this result".into()) }
    }
}

/// Answers a prompt: words, and after each ten of them the result of a tool that the editor runs.
fn answer(
    request: &Request<'_>,
    chunks: &mut ChunkWriter<'_>,
    state: &BackendState,
) -> Result<(), HandlerError> {
    let words = ["The ", "tide ", "comes ", "in ", "and ", "goes ", "out, ", "twice ", "a ", "day. "];
    let rounds = if request.bytes() == ENDLESS { usize::MAX } else { 3 };
    for _ in 0..rounds {
        for word in words {
            chunks.write_chunk(word.as_bytes())?; // Fails at once when the editor has cancelled.
            thread::sleep(Duration::from_millis(5)); // Computes the next token.
        }
        let result = ask_tool(request, state)?;
        chunks.write_chunk(format!("{result}\n").as_bytes())?;
    }
    Ok(())
}

/// Asks the editor to run a tool, and waits for the result.
fn ask_tool(request: &Request<'_>, state: &BackendState) -> Result<String, HandlerError> {
    let (sender, results) = channel();
    lock(&state.waiting).insert(request.id(), sender);
    request.connection().push(format!("{} read main.rs", request.id()).as_bytes())?;
    loop {
        match results.recv_timeout(Duration::from_millis(10)) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Timeout) if !request.is_cancelled() => {}
            Err(_) => {
                lock(&state.waiting).remove(&request.id());
                return Err(CallError::Cancelled.into());
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

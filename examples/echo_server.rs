//! Sends back whatever its clients send; see `echo_client`. Each client has a thread of its own.
//!
//! ```sh
//! cargo run --example echo_server /tmp/echo
//! ```
//!
//! End it with Ctrl-C, and every client learns at once that the server closed the connection; end it
//! with `kill -9`, and every client learns that its process died.

use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use narrows::{Closer, SharedMemoryListener, SharedMemoryStream};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let path = env::args_os().nth(1).ok_or("usage: echo_server PATH")?;
    let listener = SharedMemoryListener::bind(path)?;
    let closer = listener.closer();
    ctrlc::set_handler(move || closer.close())?;
    println!("listening at {}; Ctrl-C ends", listener.local_path().display());

    let mut clients = Vec::new();
    for accepted in listener.incoming() {
        clients.retain(|(thread, _): &(JoinHandle<()>, Closer)| !thread.is_finished());
        match accepted {
            Ok(stream) => {
                let closer = stream.closer();
                clients.push((thread::spawn(move || serve(stream)), closer));
            }
            Err(error) => {
                eprintln!("cannot accept: {error}");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
    end(clients);
    Ok(())
}

/// Lets each thread close its connection: a process that just exits looks to its peers like a crash.
fn end(clients: Vec<(JoinHandle<()>, Closer)>) {
    for (_, closer) in &clients {
        closer.close();
    }
    for (thread, _) in clients {
        if thread.join().is_err() {
            eprintln!("a client's thread panicked");
        }
    }
}

fn serve(mut stream: SharedMemoryStream) {
    let (pid, uid) = (stream.peer_cred().pid(), stream.peer_cred().uid());
    println!("process {pid} of user {uid} came");
    if let Err(end) = echo(&mut stream) {
        println!("process {pid}: {end}");
    }
}

/// Echoes until the connection ends; the error tells how it ended.
fn echo(stream: &mut SharedMemoryStream) -> Result<(), Box<dyn Error>> {
    let mut message = Vec::new();
    loop {
        let received = stream.recv_into(&mut message)?;
        stream.send_tagged(&message, received.tag)?;
    }
}

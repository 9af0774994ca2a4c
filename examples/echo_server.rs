//! Sends every message of its clients back to them; `echo_client` is a client for it. Each client has a thread of its
//! own.
//!
//! ```sh
//! cargo run --example echo_server /tmp/echo
//! ```
//!
//! If it ends by Ctrl-C, every client detects at once that the server closed the connection. If it ends by `kill -9`,
//! every client detects that the server's process died.

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

/// Closes all connections, and joins their threads. A process that exits without that is reported to its peers as died.
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

/// Echoes until the connection ends, and returns how it ended as the error.
fn echo(stream: &mut SharedMemoryStream) -> Result<(), Box<dyn Error>> {
    let mut message = Vec::new();
    loop {
        let received = stream.recv_into(&mut message)?;
        stream.send_tagged(&message, received.tag)?;
    }
}

//! Sends each line that is typed to `echo_server`, and prints what comes back.
//!
//! ```sh
//! cargo run --example echo_client /tmp/echo
//! ```
//!
//! Ctrl-D ends it once every echo has come, Ctrl-C at once. If the server goes first, this program
//! says how, without waiting for a line to be typed.

use std::env;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use narrows::{Receiver, RecvError, Sender, SharedMemoryStream};

/// Whether all has been typed, so that the end of the connection is no surprise.
static TYPED: AtomicBool = AtomicBool::new(false);

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
    let path = env::args_os().nth(1).ok_or("usage: echo_client PATH")?;
    let stream = SharedMemoryStream::connect(path)?;
    let closer = stream.closer();
    ctrlc::set_handler(move || closer.close())?;
    eprintln!("connected to process {}; Ctrl-D ends", stream.peer_cred().pid());

    let (sender, mut receiver) = stream.split();
    // Nothing ends a read from the terminal, so it has a thread of its own, which nobody waits for.
    thread::spawn(move || match send_lines(sender) {
        Ok(()) => (),
        Err(error) => eprintln!("cannot read on: {error}"),
    });
    match print_echoes(&mut receiver)? {
        RecvError::Disconnected if TYPED.load(Ordering::Acquire) => Ok(()),
        RecvError::Disconnected => Err("the server closed the connection".into()),
        RecvError::Closed => Err("interrupted".into()),
        end => Err(end.into()),
    }
}

/// Ends with the input or with the connection. Dropping the sender tells the server that no more
/// comes.
fn send_lines(mut sender: Sender) -> io::Result<()> {
    for line in io::stdin().lock().split(b'\n') {
        if sender.send(&line?).is_err() {
            return Ok(()); // The receiving half says how the connection ended.
        }
    }
    TYPED.store(true, Ordering::Release);
    Ok(())
}

/// How the connection ended, once all echoes are printed.
fn print_echoes(receiver: &mut Receiver) -> io::Result<RecvError> {
    let mut message = Vec::new();
    loop {
        if let Err(end) = receiver.recv_into(&mut message) {
            return Ok(end);
        }
        message.push(b'\n');
        io::stdout().write_all(&message)?;
    }
}

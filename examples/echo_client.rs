//! Sends each line that is typed to `echo_server`, and prints what comes back.
//!
//! ```sh
//! cargo run --example echo_client /tmp/echo
//! ```
//!
//! Ctrl-D ends it once every echo has come, Ctrl-C at once. If the server ends first, this program prints how, without
//! waiting for a line to be typed.

use std::env;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use narrows::{Receiver, RecvError, Sender, SharedMemoryStream};

/// Whether the input has ended, so that the end of the connection is not an error.
static INPUT_ENDED: AtomicBool = AtomicBool::new(false);

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
    // A read from the terminal cannot be interrupted, so a separate thread does it, which is not joined.
    thread::spawn(move || match send_lines(sender) {
        Ok(()) => (),
        Err(error) => eprintln!("cannot read on: {error}"),
    });
    match print_echoes(&mut receiver)? {
        RecvError::ConnectionLost(narrows::ConnectionError::Disconnected)
            if INPUT_ENDED.load(Ordering::Acquire) =>
        {
            Ok(())
        }
        RecvError::ConnectionLost(narrows::ConnectionError::Disconnected) => {
            Err("the server closed the connection".into())
        }
        RecvError::ConnectionLost(narrows::ConnectionError::Closed) => Err("interrupted".into()),
        end => Err(end.into()),
    }
}

/// Sends lines until the input or the connection ends. Dropping the sender closes this direction, which the server
/// detects.
fn send_lines(mut sender: Sender) -> io::Result<()> {
    for line in io::stdin().lock().split(b'\n') {
        if sender.send(&line?).is_err() {
            return Ok(()); // The receiving half reports how the connection ended.
        }
    }
    INPUT_ENDED.store(true, Ordering::Release);
    Ok(())
}

/// Prints all echoes, and returns how the connection ended.
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

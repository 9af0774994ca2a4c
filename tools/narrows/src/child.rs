//! The other process of `doctor` and `bench`: an echo that can also consume messages and count them.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use narrows::{ConnectionError, Options, RecvError, SharedMemoryStream};

use crate::Wait;

/// The kind of a tag: the message is consumed, verified and counted. The other bits of the tag are the number of the message.
/// Messages of other kinds are sent back.
pub(crate) const CONSUME: u64 = 1;
/// The kind of a tag: answered with the number of messages consumed since the last one, and how many of them were corrupt.
pub(crate) const COUNT: u64 = 2;
/// The number of low bits of a tag that hold the kind.
pub(crate) const KINDS: u32 = 2;

/// Serves the parent, or one client at a path, until it closes.
pub(crate) fn run(path: Option<&Path>, wait: Wait) -> anyhow::Result<ExitCode> {
    let options = Options::new().wait(wait.strategy());
    let stream = match path {
        None => options.from_parent().context("this command is for `narrows doctor` and `narrows bench`")?,
        // If the client is killed before it connects, this process ends by itself.
        Some(path) => options.bind(path)?.accept_timeout(Duration::from_secs(60))?,
    };
    serve(stream)?;
    Ok(ExitCode::SUCCESS)
}

/// Fills the buffer with the payload of a message of this number and length. Two successive payloads differ.
pub(crate) fn payload(number: u64, buffer: &mut [u8]) {
    let stamp = number.to_le_bytes();
    let len = stamp.len().min(buffer.len());
    buffer[..len].copy_from_slice(&stamp[..len]);
}

/// The bytes after the stamp of each payload.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 31 % 251).unwrap_or(0)).collect()
}

fn serve(mut stream: SharedMemoryStream) -> anyhow::Result<()> {
    let (mut message, mut expected) = (Vec::new(), Vec::new());
    let (mut count, mut wrong) = (0_u64, 0_u64);
    loop {
        let received = match stream.recv_into(&mut message) {
            Ok(received) => received,
            Err(RecvError::ConnectionLost(ConnectionError::Disconnected)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match received.tag & ((1 << KINDS) - 1) {
            CONSUME => {
                if expected.len() != message.len() {
                    expected = pattern(message.len());
                }
                payload(received.tag >> KINDS, &mut expected);
                wrong += u64::from(message != expected || received.tag >> KINDS != count);
                count += 1;
            }
            COUNT => {
                stream.send(&[count.to_le_bytes(), wrong.to_le_bytes()].concat())?;
                (count, wrong) = (0, 0);
            }
            _ => stream.send_tagged(&message, received.tag)?,
        }
    }
}

//! The first exchange: the client says its windows, the server says its own, or refuses.

use std::time::Instant;

use super::frame::send;
use super::wire::{HEAD, Head, Kind, SETTINGS, Settings, VERSION, cost};
use crate::channel::{ReceiverCore, RecvCoreError, SendCoreError, SenderCore, Wait, WaitPolicy};
use crate::error::{ConnectError, ConnectionError, ProtocolViolation, RejectCode, shortened};
use crate::mem::Memory;
use crate::options::Options;

/// Bytes of each frame that are no body.
pub(super) const MAX_FRAME_HEAD: usize = HEAD;

/// The longest text of a refusal, in bytes.
const TEXT: usize = 64;

/// The longest chunk of a stream with this window, in bytes.
pub(super) fn longest_chunk(window: u32, max: usize) -> usize {
    (window.saturating_sub(cost(0)) as usize).min(max)
}

/// The windows of streams and of pushes that hold: the smaller of both sides' wishes.
pub(super) fn agree(options: &Options, theirs: &Settings) -> (u32, u32) {
    let (stream_window, push_window) = options.windows();
    (stream_window.min(theirs.stream_window), push_window.min(theirs.push_window))
}

/// The client's part.
pub(super) fn say<M: Memory, P: WaitPolicy>(
    out: &mut SenderCore<M, P>,
    inb: &mut ReceiverCore<M, P>,
    stream_window: u32,
    push_window: u32,
    until: Option<Instant>,
) -> Result<Settings, ConnectError> {
    let wait = Wait::Until(until);
    let mine = Settings { version: VERSION, stream_window, push_window };
    match send(out, Head::new(Kind::Hello, 0), [&mine.encode(), &[]], 0, wait) {
        Ok(()) | Err(SendCoreError::Ended(_)) => {} // Who refuses us and closes may have said why.
        Err(SendCoreError::Full) => return Err(ConnectError::Timeout),
        Err(_) => return Err(ConnectError::NoCalls),
    }
    let mut body = [0; TEXT];
    let (head, len) = receive(inb, &mut body, wait).map_err(|fault| match fault {
        RecvCoreError::Empty => ConnectError::Timeout,
        RecvCoreError::Ended(ConnectionError::Disconnected | ConnectionError::PeerDied) => {
            ConnectError::PeerClosed
        }
        _ => ConnectError::NoCalls,
    })?;
    match head.kind {
        Kind::Refuse => Err(refused(head.word, body.get(..len).unwrap_or_default())),
        Kind::Welcome => settings(body.get(..len)).map_err(|_| ConnectError::NoCalls),
        _ => Err(ConnectError::NoCalls),
    }
}

/// The server's part: what the client says.
pub(super) fn hear<M: Memory, P: WaitPolicy>(
    inb: &mut ReceiverCore<M, P>,
    until: Option<Instant>,
) -> Result<Settings, RecvCoreError> {
    let mut body = [0; TEXT];
    let (head, len) = receive(inb, &mut body, Wait::Until(until))?;
    let heard = match head.kind {
        Kind::Hello => settings(body.get(..len)),
        _ => Err(ProtocolViolation("a first frame that is no greeting")),
    };
    heard.map_err(|violation| RecvCoreError::Ended(inb.violated(violation)))
}

/// The server's answer; there is room for it in a fresh ring.
pub(super) fn answer<M: Memory, P: WaitPolicy>(
    out: &mut SenderCore<M, P>,
    stream_window: u32,
    push_window: u32,
) -> Result<(), SendCoreError> {
    let mine = Settings { version: VERSION, stream_window, push_window };
    send(out, Head::new(Kind::Welcome, 0), [&mine.encode(), &[]], 0, Wait::Never)
}

/// The server's refusal; there is room for it in a fresh ring.
pub(super) fn refuse<M: Memory, P: WaitPolicy>(
    out: &mut SenderCore<M, P>,
    code: RejectCode,
    text: &str,
) -> Result<(), SendCoreError> {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let text = shortened(&text, TEXT);
    send(out, Head::new(Kind::Refuse, code.number().into()), [text.as_bytes(), &[]], 0, Wait::Never)
}

/// The beginning of a text that has at most so many bytes.
pub(super) fn clipped(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn refused(code: u32, text: &[u8]) -> ConnectError {
    let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
    ConnectError::Rejected { code: RejectCode::from_number(u16::try_from(code).unwrap_or(0)), text }
}

fn settings(body: Option<&[u8]>) -> Result<Settings, ProtocolViolation> {
    let body: Option<&[u8; SETTINGS]> = body.and_then(|body| body.try_into().ok());
    Settings::decode(body.ok_or(ProtocolViolation("a greeting of the wrong length"))?)
}

/// Receives one frame with a short body.
fn receive<M: Memory, P: WaitPolicy>(
    inb: &mut ReceiverCore<M, P>,
    body: &mut [u8; TEXT],
    wait: Wait,
) -> Result<(Head, usize), RecvCoreError> {
    let mut bytes = [0; HEAD + TEXT];
    let message = match inb.recv(&mut bytes, wait) {
        Ok(message) => message,
        Err(RecvCoreError::BufferTooSmall(_)) => {
            return Err(RecvCoreError::Ended(inb.violated(ProtocolViolation("a greeting that is too long"))));
        }
        Err(fault) => return Err(fault),
    };
    let mut head = [0; HEAD];
    head.copy_from_slice(&bytes[..HEAD]);
    body.copy_from_slice(&bytes[HEAD..]);
    let len = message.len.checked_sub(HEAD);
    match (Head::decode(head), len) {
        (Ok(head), Some(len)) if message.tag == 0 => Ok((head, len)),
        _ => Err(RecvCoreError::Ended(inb.violated(ProtocolViolation("a first frame that is no greeting")))),
    }
}

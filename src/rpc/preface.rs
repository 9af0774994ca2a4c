//! The preface of an RPC connection: the client sends its windows, and the server answers with its own or
//! refuses.

use std::time::Instant;

use super::wire::send_frame;
use super::wire::{FrameHeader, FrameKind, HEADER_LEN, SETTINGS_LEN, Settings, VERSION};
use crate::channel::{ReceiverCore, RecvCoreError, SendCoreError, SenderCore, Wait, WaitPolicy};
use crate::error::{ConnectError, ConnectionError, ProtocolViolation, RejectCode, shortened};
use crate::memory::Memory;
use crate::options::{self, Options};

const _: () = assert!(options::MIN_WINDOW == super::flow_control::MIN_WINDOW);

/// The length of the longest text of a refusal, in bytes.
const MAX_TEXT: usize = 64;

/// Returns the windows of streams and of pushes that both sides use: the smaller of each side's.
pub(super) fn negotiate_windows(options: &Options, theirs: &Settings) -> (u32, u32) {
    let (stream_window, push_window) = options.windows();
    (stream_window.min(theirs.stream_window), push_window.min(theirs.push_window))
}

/// Runs the client's side: sends its settings, and returns those of the server.
pub(super) fn connect<M: Memory, P: WaitPolicy>(
    out: &mut SenderCore<M, P>,
    inb: &mut ReceiverCore<M, P>,
    stream_window: u32,
    push_window: u32,
    deadline: Option<Instant>,
) -> Result<Settings, ConnectError> {
    let wait = Wait::Deadline(deadline);
    let mine = Settings { version: VERSION, stream_window, push_window };
    match send_frame(out, FrameHeader::new(FrameKind::Hello, 0), [&mine.encode(), &[]], 0, wait) {
        Ok(()) | Err(SendCoreError::Ended(_)) => {} // A server that refuses and closes may have sent the reason.
        Err(SendCoreError::Full) => return Err(ConnectError::Timeout),
        Err(_) => return Err(ConnectError::NoCalls),
    }
    let mut body = [0; MAX_TEXT];
    let (head, len) = receive(inb, &mut body, wait).map_err(|fault| match fault {
        RecvCoreError::Empty => ConnectError::Timeout,
        RecvCoreError::Ended(ConnectionError::Disconnected | ConnectionError::PeerDied) => {
            ConnectError::PeerClosed
        }
        _ => ConnectError::NoCalls,
    })?;
    match head.kind {
        FrameKind::Refuse => Err(decode_refusal(head.word, body.get(..len).unwrap_or_default())),
        FrameKind::Accept => decode_settings(body.get(..len)).map_err(|_| ConnectError::NoCalls),
        _ => Err(ConnectError::NoCalls),
    }
}

/// Runs the first half of the server's side: receives the client's settings.
pub(super) fn receive_hello<M: Memory, P: WaitPolicy>(
    inb: &mut ReceiverCore<M, P>,
    deadline: Option<Instant>,
) -> Result<Settings, RecvCoreError> {
    let mut body = [0; MAX_TEXT];
    let (head, len) = receive(inb, &mut body, Wait::Deadline(deadline))?;
    let settings = match head.kind {
        FrameKind::Hello => decode_settings(body.get(..len)),
        _ => Err(ProtocolViolation("a first frame that is not a client's preface")),
    };
    settings.map_err(|violation| RecvCoreError::Ended(inb.violated(violation)))
}

/// Sends the server's settings; a fresh ring has room for them.
pub(super) fn accept<M: Memory, P: WaitPolicy>(
    out: &mut SenderCore<M, P>,
    stream_window: u32,
    push_window: u32,
) -> Result<(), SendCoreError> {
    let mine = Settings { version: VERSION, stream_window, push_window };
    send_frame(out, FrameHeader::new(FrameKind::Accept, 0), [&mine.encode(), &[]], 0, Wait::Never)
}

/// Sends the server's refusal; a fresh ring has room for it.
pub(super) fn refuse<M: Memory, P: WaitPolicy>(
    out: &mut SenderCore<M, P>,
    code: RejectCode,
    text: &str,
) -> Result<(), SendCoreError> {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    // A text that would not fit the longest message is cut: without a Refuse the client would not learn the code.
    let text = shortened(&text, MAX_TEXT.min(out.max_message().saturating_sub(HEADER_LEN)));
    send_frame(
        out,
        FrameHeader::new(FrameKind::Refuse, code.number().into()),
        [text.as_bytes(), &[]],
        0,
        Wait::Never,
    )
}

/// Returns the longest beginning of a text that has at most so many bytes.
pub(super) fn truncate_text(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn decode_refusal(code: u32, text: &[u8]) -> ConnectError {
    let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
    ConnectError::Rejected { code: RejectCode::from_number(u16::try_from(code).unwrap_or(0)), text }
}

fn decode_settings(body: Option<&[u8]>) -> Result<Settings, ProtocolViolation> {
    let body: Option<&[u8; SETTINGS_LEN]> = body.and_then(|body| body.try_into().ok());
    Settings::decode(body.ok_or(ProtocolViolation("a preface of the wrong length"))?)
}

/// Receives one frame with a short body.
fn receive<M: Memory, P: WaitPolicy>(
    inb: &mut ReceiverCore<M, P>,
    body: &mut [u8; MAX_TEXT],
    wait: Wait,
) -> Result<(FrameHeader, usize), RecvCoreError> {
    let mut bytes = [0; HEADER_LEN + MAX_TEXT];
    let message = match inb.recv(&mut bytes, wait) {
        Ok(message) => message,
        Err(RecvCoreError::BufferTooSmall(_)) => {
            return Err(RecvCoreError::Ended(inb.violated(ProtocolViolation("a preface that is too long"))));
        }
        Err(fault) => return Err(fault),
    };
    let mut head = [0; HEADER_LEN];
    head.copy_from_slice(&bytes[..HEADER_LEN]);
    body.copy_from_slice(&bytes[HEADER_LEN..]);
    let len = message.len.checked_sub(HEADER_LEN);
    match (FrameHeader::decode(head), len) {
        (Ok(head), Some(len)) if message.tag == 0 => Ok((head, len)),
        _ => {
            Err(RecvCoreError::Ended(inb.violated(ProtocolViolation("a first frame that is not a preface"))))
        }
    }
}

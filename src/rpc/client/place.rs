//! A place for one call of a client: whether somebody waits for it, and what has come of its reply.

use std::collections::VecDeque;

use crate::error::ProtocolViolation;
use crate::rpc::pieces::Assembly;
use crate::rpc::wire::{ERROR_LEN, Head, Kind, STREAM, Status, cost};

/// How a call ended, as the server's last frame of it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Final {
    /// The reply is whole.
    Reply,
    /// The stream is at its end.
    End,
    /// There is none: why, the handler's own code, a text.
    Failed(Status, u32, String),
    /// This process had no memory for the reply or a chunk. If it was a chunk, the call is to be cancelled.
    OutOfMemory,
}

/// What a frame changed, for those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that anybody waits for.
    None,
    /// The call in this place.
    Call(usize),
    /// A place is free.
    Freed,
    /// A push has come.
    Push,
}

/// What is left of a call that was lost with its connection.
///
/// ```
/// use narrows::{LostCall, Reconnect};
/// fn told(call: &LostCall) -> String {
///     format!("call {} of method {}", call.id, call.method)
/// }
/// let policy = Reconnect::new().on_loss(|lost| lost.calls.iter().for_each(|call| eprintln!("{}", told(call))));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LostCall {
    /// Its number.
    pub id: u64,
    /// What was called.
    pub method: u32,
}

/// Who waits for the call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Free,
    Waited,
    Abandoned,
}

/// A place for a call.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) id: u64,
    pub(super) state: State,
    pub(super) method: u32,
    pub(super) flags: u8,
    pub(super) item: Assembly,
    pub(super) chunks: VecDeque<Vec<u8>>,
    /// There was no memory for a chunk: no later one is kept.
    pub(super) starved: bool,
    /// What the server may still send, and what was consumed and not yet told.
    pub(super) window: u32,
    pub(super) owed: u32,
    /// What the server lets us send of an upload.
    pub(super) credit: u32,
    pub(super) end: Option<Final>,
}

impl Place {
    /// Whether the call is over, and its end is still to be taken.
    pub(super) fn has_ended(&self) -> bool {
        self.state == State::Waited && self.end.is_some()
    }

    /// Takes a piece of a reply or chunk; the first head if the item is whole.
    pub(super) fn take_item(
        &mut self,
        head: Head,
        len: usize,
        max: usize,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<Option<Head>, ProtocolViolation> {
        let streams = self.flags & STREAM != 0;
        let fits = match head.kind {
            Kind::Reply => !streams,
            Kind::Chunk => streams,
            _ => true,
        };
        if !fits {
            return Err(ProtocolViolation("a reply of the wrong kind"));
        }
        if streams {
            let price =
                if head.kind == Kind::Chunk { cost(len) } else { u32::try_from(len).unwrap_or(u32::MAX) };
            self.window = self
                .window
                .checked_sub(price)
                .ok_or(ProtocolViolation("more of a stream than its window"))?;
        }
        self.item.take(head, len, max, read)
    }
}

/// Reads an error's body: a code and a text.
pub(super) fn failure(
    head: Head,
    len: usize,
    read: impl FnOnce(&mut [u8]),
) -> Result<(Status, u32, String), ProtocolViolation> {
    let status = Status::of(head.word).ok_or(ProtocolViolation("an error of an unknown kind"))?;
    if !(4..=ERROR_LEN).contains(&len) {
        return Err(ProtocolViolation("an error without its code, or with too long a text"));
    }
    let mut body = vec![0; len];
    read(&mut body);
    let (code, text) = body.split_at(4);
    let code = u32::from_le_bytes([code[0], code[1], code[2], code[3]]);
    Ok((status, code, String::from_utf8_lossy(text).into_owned()))
}

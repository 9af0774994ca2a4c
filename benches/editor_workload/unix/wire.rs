//! Frames on the socket: a header of 16 bytes, then the fragment of an item.
//!
//! ```text
//!   0 length u32 │ 4 kind u8 │ 5 more u8 │ 6 - │ 8 call u32 │ 12 word u32 (method, or bytes of credit)
//! ```

use std::io::{BufReader, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use harness::{Result, bail};

use crate::sync::lock;

/// An item that is longer goes in fragments.
const FRAGMENT: usize = 64 << 10;

const HEAD: usize = 16;

/// Bytes of a stream that may be under way, each chunk counting 64 more.
pub(super) const WINDOW: u32 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// A call; its reply is whole, or a stream.
    Call,
    Stream,
    Cancel,
    Credit,
    Reply,
    Chunk,
    End,
    /// The method's own error, as text.
    Failed,
    Push,
}

const KINDS: [FrameKind; 9] = [
    FrameKind::Call,
    FrameKind::Stream,
    FrameKind::Cancel,
    FrameKind::Credit,
    FrameKind::Reply,
    FrameKind::Chunk,
    FrameKind::End,
    FrameKind::Failed,
    FrameKind::Push,
];

/// The head of a frame; if `more` is set, another fragment of the item follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameHeader {
    pub(super) kind: FrameKind,
    pub(super) more: bool,
    pub(super) call: u32,
    pub(super) word: u32,
}

/// Returns the bytes of the window that a chunk takes.
pub(super) fn cost(len: usize) -> u32 {
    u32::try_from(len + 64).unwrap_or(u32::MAX)
}

/// The sending half, for all threads.
#[derive(Debug)]
pub(super) struct FrameWriter(Mutex<UnixStream>);

impl FrameWriter {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self(Mutex::new(socket))
    }

    /// Sends an item; other threads may send between its fragments.
    pub(super) fn send(&self, kind: FrameKind, call: u32, word: u32, item: &[u8]) -> Result<()> {
        let mut rest = item;
        loop {
            let (fragment, behind) = rest.split_at(rest.len().min(FRAGMENT));
            let mut head = [0; HEAD];
            head[..4].copy_from_slice(&u32::try_from(fragment.len())?.to_le_bytes());
            head[4] = kind as u8;
            head[5] = u8::from(!behind.is_empty());
            head[8..12].copy_from_slice(&call.to_le_bytes());
            head[12..].copy_from_slice(&word.to_le_bytes());
            write_both(&mut lock(&self.0), &head, fragment)?;
            if behind.is_empty() {
                return Ok(());
            }
            rest = behind;
        }
    }
}

fn write_both(socket: &mut UnixStream, head: &[u8], fragment: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < head.len() + fragment.len() {
        let slices =
            [IoSlice::new(&head[done.min(HEAD)..]), IoSlice::new(&fragment[done.saturating_sub(HEAD)..])];
        match socket.write_vectored(&slices) {
            Ok(0) => bail!("the socket takes nothing"),
            Ok(some) => done += some,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The receiving half, of one thread.
#[derive(Debug)]
pub(super) struct FrameReader(BufReader<UnixStream>);

impl FrameReader {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self(BufReader::with_capacity(FRAGMENT + HEAD, socket))
    }

    /// Returns the head of the next frame and the length of its fragment; nothing at the end.
    pub(super) fn next(&mut self) -> Result<Option<(FrameHeader, usize)>> {
        let mut head = [0; HEAD];
        if self.0.read(&mut head[..1])? == 0 {
            return Ok(None);
        }
        self.0.read_exact(&mut head[1..])?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap_or_default());
        let Some(kind) = KINDS.get(usize::from(head[4])).copied() else { bail!("no such kind of frame") };
        let length = word(0) as usize;
        Ok(Some((FrameHeader { kind, more: head[5] != 0, call: word(8), word: word(12) }, length)))
    }

    /// Appends to `into` the fragment of the frame whose head was read last.
    pub(super) fn fragment(&mut self, length: usize, into: &mut Vec<u8>) -> Result<()> {
        into.reserve(length);
        if (&mut self.0).take(length as u64).read_to_end(into)? != length {
            bail!("the socket ended within a frame");
        }
        Ok(())
    }
}

//! A peer that sends and receives the frames of calls itself over a stream, as a server or as a client.

use std::path::Path;
use std::time::Duration;

use narrows::internal::rpc::wire::{FrameHeader, FrameKind, HEADER_LEN, SETTINGS_LEN, Settings, VERSION};
use narrows::{Options, RecvTimeoutError, SendTimeoutError, SharedMemoryListener, SharedMemoryStream};

use crate::support::LONG;

/// A stream whose messages are frames.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) stream: SharedMemoryStream,
}

/// A frame that was received.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) id: u64,
    pub(crate) head: FrameHeader,
    pub(crate) body: Vec<u8>,
}

/// Returns an encoded header with a sequence.
pub(crate) fn head(kind: FrameKind, flags: u8, seq: u16, word: u32) -> [u8; HEADER_LEN] {
    FrameHeader { kind, flags, seq, word }.encode()
}

/// Returns the encoded settings of a peer with these windows.
pub(crate) fn settings(window: u32) -> [u8; SETTINGS_LEN] {
    Settings { version: VERSION, stream_window: window, push_window: window }.encode()
}

impl Raw {
    /// Connects as a client, sends a legal Hello frame and receives the Accept frame.
    pub(crate) fn connect(path: &Path, options: &Options) -> Self {
        Self::connect_with(path, options, 1 << 20)
    }

    /// Does the same with these windows.
    pub(crate) fn connect_with(path: &Path, options: &Options, window: u32) -> Self {
        let mut raw = Self { stream: crate::support::reach(path, options) };
        raw.send(0, head(FrameKind::Hello, 0, 0, 0), &settings(window)).expect("sends");
        assert_eq!(raw.receive().expect("comes").head.kind, FrameKind::Accept);
        raw
    }

    /// Accepts a client, and receives its Hello frame.
    pub(crate) fn accept(listener: &SharedMemoryListener) -> Self {
        let mut raw = Self { stream: listener.accept_timeout(LONG).expect("comes") };
        assert_eq!(raw.receive().expect("comes").head.kind, FrameKind::Hello);
        raw
    }

    /// Sends an Accept frame with these windows.
    pub(crate) fn send_accept(&mut self, window: u32) {
        self.send(0, head(FrameKind::Accept, 0, 0, 0), &settings(window)).expect("sends");
    }

    /// Sends a frame.
    pub(crate) fn send(
        &mut self,
        id: u64,
        head: [u8; HEADER_LEN],
        body: &[u8],
    ) -> Result<(), SendTimeoutError> {
        self.bytes(id, &[&head[..], body].concat())
    }

    /// Sends bytes unchanged.
    pub(crate) fn bytes(&mut self, id: u64, bytes: &[u8]) -> Result<(), SendTimeoutError> {
        self.stream.send_tagged_timeout(bytes, id, LONG)
    }

    /// Receives the next frame.
    pub(crate) fn receive(&mut self) -> Result<Frame, RecvTimeoutError> {
        self.receive_within(LONG)
    }

    /// Receives the next frame, if it comes in time.
    pub(crate) fn receive_within(&mut self, time: Duration) -> Result<Frame, RecvTimeoutError> {
        let mut bytes = Vec::new();
        let received = self.stream.recv_into_timeout(&mut bytes, time)?;
        let (head, body) = bytes.split_first_chunk::<HEADER_LEN>().expect("a header");
        let head = FrameHeader::decode(*head).expect("a legal header");
        Ok(Frame { id: received.tag, head, body: body.to_vec() })
    }
}

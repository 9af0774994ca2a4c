//! The calling side: one thread reads, and delivers each message to the call that waits for it.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use harness::{Result, anyhow, bail};

use super::wire::{FrameKind, FrameReader, FrameWriter, WINDOW, cost};
use crate::sync::lock;
use crate::transport;

/// An event of a call.
enum CallEvent {
    /// A chunk, or a reply.
    Item(Vec<u8>),
    End,
    Failed(String),
}

/// A call in flight: its waiter, and the fragments of an item that have arrived.
struct PendingEntry {
    sender: Sender<CallEvent>,
    part: Vec<u8>,
}

struct ClientState {
    socket: UnixStream,
    writer: FrameWriter,
    calls: Mutex<HashMap<u32, PendingEntry>>,
    next: AtomicU32,
    closed: AtomicBool,
}

pub(crate) struct UnixClient {
    shared: Arc<ClientState>,
    pushes: Mutex<Receiver<Vec<u8>>>,
}

impl UnixClient {
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let socket = UnixStream::connect(path)?;
        let shared = Arc::new(ClientState {
            writer: FrameWriter::new(socket.try_clone()?),
            calls: Mutex::default(),
            next: AtomicU32::new(1),
            closed: AtomicBool::new(false),
            socket,
        });
        let (sender, pushes) = channel();
        let reads = Arc::clone(&shared);
        let mut reader = FrameReader::new(reads.socket.try_clone()?);
        thread::spawn(move || {
            let _ended = reads.read(&mut reader, &sender);
            // Dropping the senders wakes all waiting calls.
            reads.closed.store(true, Ordering::Relaxed);
            lock(&reads.calls).clear();
        });
        Ok(Self { shared, pushes: Mutex::new(pushes) })
    }

    fn begin(&self, kind: FrameKind, method: u32, request: &[u8]) -> Result<ClientCall> {
        let (sender, events) = channel();
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.shared.calls).insert(number, PendingEntry { sender, part: Vec::new() });
        let call = ClientCall { shared: Arc::clone(&self.shared), number, events, owed: 0, over: false };
        if self.shared.closed.load(Ordering::Relaxed) {
            bail!("the connection has ended");
        }
        self.shared.writer.send(kind, number, method, request)?;
        Ok(call)
    }
}

impl ClientState {
    fn read(&self, reader: &mut FrameReader, pushes: &Sender<Vec<u8>>) -> Result<()> {
        let (mut push, mut late) = (Vec::new(), Vec::new());
        while let Some((head, length)) = reader.next()? {
            if head.kind == FrameKind::Push {
                reader.fragment(length, &mut push)?;
                if !head.more {
                    pushes.send(std::mem::take(&mut push))?;
                }
                continue;
            }
            let part = lock(&self.calls).get_mut(&head.call).map(|entry| std::mem::take(&mut entry.part));
            let Some(mut part) = part else {
                late.clear(); // The call was cancelled.
                reader.fragment(length, &mut late)?;
                continue;
            };
            reader.fragment(length, &mut part)?;
            let mut calls = lock(&self.calls);
            let Some(entry) = calls.get_mut(&head.call) else { continue };
            if head.more {
                entry.part = part;
                continue;
            }
            let event = match head.kind {
                FrameKind::Chunk | FrameKind::Reply => CallEvent::Item(part),
                FrameKind::Failed => CallEvent::Failed(String::from_utf8_lossy(&part).into()),
                _ => CallEvent::End,
            };
            let _dropped = entry.sender.send(event);
            if head.kind != FrameKind::Chunk {
                calls.remove(&head.call);
            }
        }
        Ok(())
    }
}

/// A call under way.
struct ClientCall {
    shared: Arc<ClientState>,
    number: u32,
    events: Receiver<CallEvent>,
    owed: u32,
    over: bool,
}

impl ClientCall {
    fn event(&mut self) -> Result<Option<Vec<u8>>> {
        match self.events.recv() {
            Ok(CallEvent::Item(item)) => Ok(Some(item)),
            other => {
                self.over = true;
                match other {
                    Ok(CallEvent::Failed(text)) => Err(anyhow!("the method failed: {text}")),
                    Ok(_) => Ok(None),
                    Err(_) => Err(anyhow!("the connection has ended")),
                }
            }
        }
    }

    fn reply(mut self) -> Result<Vec<u8>> {
        let reply = self.event()?;
        self.over = true;
        reply.ok_or_else(|| anyhow!("an end instead of a reply"))
    }
}

impl Drop for ClientCall {
    fn drop(&mut self) {
        if !self.over && lock(&self.shared.calls).remove(&self.number).is_some() {
            let _gone = self.shared.writer.send(FrameKind::Cancel, self.number, 0, &[]);
        }
    }
}

impl transport::Client for UnixClient {
    fn call(&self, method: u32, request: &[u8]) -> Result<Vec<u8>> {
        self.begin(FrameKind::Call, method, request)?.reply()
    }

    fn start(&self, method: u32, request: &[u8]) -> Result<Box<dyn transport::PendingReply>> {
        Ok(Box::new(self.begin(FrameKind::Call, method, request)?))
    }

    fn stream(&self, method: u32, request: &[u8]) -> Result<Box<dyn transport::ReplyChunks>> {
        Ok(Box::new(self.begin(FrameKind::Stream, method, request)?))
    }

    fn next_push(&self) -> Result<Option<Vec<u8>>> {
        Ok(lock(&self.pushes).recv().ok())
    }

    fn close(&self) {
        let _closed_already = self.shared.socket.shutdown(Shutdown::Both);
    }
}

impl transport::PendingReply for ClientCall {
    fn wait(self: Box<Self>) -> Result<Vec<u8>> {
        self.reply()
    }

    fn cancel(self: Box<Self>) {}
}

impl transport::ReplyChunks for ClientCall {
    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        if self.over {
            return Ok(None);
        }
        let chunk = self.event()?;
        if let Some(chunk) = &chunk {
            self.owed += cost(chunk.len());
            if self.owed >= WINDOW / 4 {
                self.shared.writer.send(
                    FrameKind::Credit,
                    self.number,
                    std::mem::take(&mut self.owed),
                    &[],
                )?;
            }
        }
        Ok(chunk)
    }

    fn cancel(self: Box<Self>) {}
}

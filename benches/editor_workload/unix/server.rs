//! The serving side: a thread for each connection that always reads, a pool of workers, a thread for each stream.

use std::collections::HashMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use harness::{Result, anyhow, bail};

use super::wire::{FrameHeader, FrameKind, FrameReader, FrameWriter, WINDOW, cost};
use crate::sync::lock;
use crate::transport::{self, ChunkSink, ClientHandle, RequestContext, ServeMode, Service};

/// As many as narrows has on few CPUs.
const WORKERS: usize = 4;

type WorkerTask = Box<dyn FnOnce() + Send>;

pub(crate) struct UnixServer {
    connections: Arc<AtomicUsize>,
}

/// One connection.
struct ClientPeer {
    id: u64,
    writer: FrameWriter,
    calls: Mutex<HashMap<u32, Arc<CallGate>>>,
}

/// A call under way: whether it was cancelled, and what it may write.
struct CallGate {
    cancelled: AtomicBool,
    window: Mutex<u32>,
    more: Condvar,
}

impl UnixServer {
    pub(crate) fn start<S: Service>(path: &Path, service: &Arc<S>) -> Result<Self> {
        let listener = UnixListener::bind(path)?;
        let connections = Arc::new(AtomicUsize::new(0));
        let (jobs, work) = channel::<WorkerTask>();
        let work = Arc::new(Mutex::new(work));
        for _ in 0..WORKERS {
            let work = Arc::clone(&work);
            thread::spawn(move || worker(&work));
        }
        let (count, service) = (Arc::clone(&connections), Arc::clone(service));
        thread::spawn(move || {
            for (id, socket) in (1..).zip(listener.incoming().map_while(std::result::Result::ok)) {
                let (count, service, jobs) = (Arc::clone(&count), Arc::clone(&service), jobs.clone());
                count.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || {
                    let _ended = serve_connection(id, socket, &service, &jobs);
                    service.on_disconnect(id);
                    count.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(Self { connections })
    }
}

impl transport::RunningServer for UnixServer {
    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

fn worker(work: &Mutex<Receiver<WorkerTask>>) {
    loop {
        let job = lock(work).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

/// Serves a connection until the client disconnects.
fn serve_connection<S: Service>(
    id: u64,
    socket: UnixStream,
    service: &Arc<S>,
    jobs: &Sender<WorkerTask>,
) -> Result<()> {
    let peer =
        Arc::new(ClientPeer { id, writer: FrameWriter::new(socket.try_clone()?), calls: Mutex::default() });
    let mut reader = FrameReader::new(socket);
    let read = read(&mut reader, &peer, service, jobs);
    for (_, gate) in lock(&peer.calls).drain() {
        gate.cancel();
    }
    read
}

fn read<S: Service>(
    reader: &mut FrameReader,
    peer: &Arc<ClientPeer>,
    service: &Arc<S>,
    jobs: &Sender<WorkerTask>,
) -> Result<()> {
    let mut parts: HashMap<u32, Vec<u8>> = HashMap::new();
    while let Some((head, length)) = reader.next()? {
        match head.kind {
            FrameKind::Call | FrameKind::Stream => {
                let mut request = parts.remove(&head.call).unwrap_or_default();
                reader.fragment(length, &mut request)?;
                if head.more {
                    parts.insert(head.call, request);
                } else {
                    dispatch(head, request, peer, service, jobs)?;
                }
            }
            FrameKind::Cancel => {
                if let Some(gate) = lock(&peer.calls).remove(&head.call) {
                    gate.cancel();
                }
            }
            FrameKind::Credit => {
                if let Some(gate) = lock(&peer.calls).get(&head.call) {
                    *lock(&gate.window) += head.word;
                    gate.more.notify_all();
                }
            }
            other => bail!("{other:?} from a client"),
        }
    }
    Ok(())
}

fn dispatch<S: Service>(
    head: FrameHeader,
    request: Vec<u8>,
    peer: &Arc<ClientPeer>,
    service: &Arc<S>,
    jobs: &Sender<WorkerTask>,
) -> Result<()> {
    let Some((_, mode)) = S::METHODS.iter().find(|it| it.0 == head.word) else { bail!("no such method") };
    let gate = Arc::new(CallGate {
        cancelled: AtomicBool::new(false),
        window: Mutex::new(WINDOW),
        more: Condvar::new(),
    });
    lock(&peer.calls).insert(head.call, Arc::clone(&gate));
    let mut call = ServedCall { peer: Arc::clone(peer), gate, number: head.call };
    let service = Arc::clone(service);
    let mut run = move || {
        let mut reply = Vec::new();
        let done = match head.kind {
            FrameKind::Stream => service.stream(head.word, &call.clone(), &request, &mut call),
            _ => service.call(head.word, &call.clone(), &request, &mut reply),
        };
        call.end(head.kind, done, &reply);
    };
    match mode {
        ServeMode::Inline => run(),
        ServeMode::Pooled => jobs.send(Box::new(run)).map_err(|_| anyhow!("no workers"))?,
        ServeMode::Stream => drop(thread::spawn(run)),
    }
    Ok(())
}

/// A call that is being served.
#[derive(Clone)]
struct ServedCall {
    peer: Arc<ClientPeer>,
    gate: Arc<CallGate>,
    number: u32,
}

impl ServedCall {
    /// Sends the reply or the error, unless the call was cancelled.
    fn end(&self, kind: FrameKind, done: Result<()>, reply: &[u8]) {
        let waited_for = lock(&self.peer.calls).remove(&self.number).is_some();
        if !waited_for {
            return;
        }
        let writer = &self.peer.writer;
        let _gone = match done {
            Err(error) => writer.send(FrameKind::Failed, self.number, 0, format!("{error:#}").as_bytes()),
            Ok(()) if kind == FrameKind::Stream => writer.send(FrameKind::End, self.number, 0, &[]),
            Ok(()) => writer.send(FrameKind::Reply, self.number, 0, reply),
        };
    }
}

impl CallGate {
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        let _window = lock(&self.window); // A writer that reads the flag holds this lock, or waits.
        self.more.notify_all();
    }
}

impl RequestContext for ServedCall {
    fn is_cancelled(&self) -> bool {
        self.gate.cancelled.load(Ordering::Relaxed)
    }

    fn client(&self) -> Arc<dyn ClientHandle> {
        Arc::new(PeerHandle(Arc::clone(&self.peer)))
    }
}

impl ChunkSink for ServedCall {
    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        let cost = cost(chunk.len());
        let mut window = lock(&self.gate.window);
        while *window < cost && !self.is_cancelled() {
            window = self.gate.more.wait(window).unwrap_or_else(PoisonError::into_inner);
        }
        if self.is_cancelled() {
            bail!("cancelled");
        }
        *window -= cost;
        drop(window);
        self.peer.writer.send(FrameKind::Chunk, self.number, 0, chunk)
    }
}

struct PeerHandle(Arc<ClientPeer>);

impl ClientHandle for PeerHandle {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn push(&self, bytes: &[u8]) -> Result<()> {
        self.0.writer.send(FrameKind::Push, 0, 0, bytes)
    }
}

//! The serving side: a thread for each connection that always reads, a pool of workers, a thread for each stream.

use std::collections::HashMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use harness::{Result, anyhow, bail};

use super::wire::{Head, Kind, Reader, WINDOW, Writer, cost};
use crate::backend::{Backend, METHODS, lock};
use crate::transport::{self, Link, Out, Served, Style};

/// As many as narrows has on few CPUs.
const WORKERS: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct Server {
    connections: Arc<AtomicUsize>,
}

/// One connection.
struct Peer {
    id: u64,
    writer: Writer,
    calls: Mutex<HashMap<u32, Arc<Gate>>>,
}

/// A call under way: whether it was cancelled, and what it may write.
struct Gate {
    cancelled: AtomicBool,
    window: Mutex<u32>,
    more: Condvar,
}

impl Server {
    pub(crate) fn start(path: &Path, backend: &Arc<Backend>) -> Result<Self> {
        let listener = UnixListener::bind(path)?;
        let connections = Arc::new(AtomicUsize::new(0));
        let (jobs, work) = channel::<Job>();
        let work = Arc::new(Mutex::new(work));
        for _ in 0..WORKERS {
            let work = Arc::clone(&work);
            thread::spawn(move || worker(&work));
        }
        let (count, backend) = (Arc::clone(&connections), Arc::clone(backend));
        thread::spawn(move || {
            for (id, socket) in (1..).zip(listener.incoming().map_while(std::result::Result::ok)) {
                let (count, backend, jobs) = (Arc::clone(&count), Arc::clone(&backend), jobs.clone());
                count.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || {
                    let _ended = attend(id, socket, &backend, &jobs);
                    backend.gone(id);
                    count.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(Self { connections })
    }
}

impl transport::Server for Server {
    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

fn worker(work: &Mutex<Receiver<Job>>) {
    loop {
        let job = lock(work).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

/// Reads until the client is gone.
fn attend(id: u64, socket: UnixStream, backend: &Arc<Backend>, jobs: &Sender<Job>) -> Result<()> {
    let peer = Arc::new(Peer { id, writer: Writer::new(socket.try_clone()?), calls: Mutex::default() });
    let mut reader = Reader::new(socket);
    let read = read(&mut reader, &peer, backend, jobs);
    for (_, gate) in lock(&peer.calls).drain() {
        gate.cancel();
    }
    read
}

fn read(reader: &mut Reader, peer: &Arc<Peer>, backend: &Arc<Backend>, jobs: &Sender<Job>) -> Result<()> {
    let mut parts: HashMap<u32, Vec<u8>> = HashMap::new();
    while let Some((head, length)) = reader.next()? {
        match head.kind {
            Kind::Call | Kind::Stream => {
                let mut request = parts.remove(&head.call).unwrap_or_default();
                reader.piece(length, &mut request)?;
                if head.more {
                    parts.insert(head.call, request);
                } else {
                    serve(head, request, peer, backend, jobs)?;
                }
            }
            Kind::Cancel => {
                if let Some(gate) = lock(&peer.calls).remove(&head.call) {
                    gate.cancel();
                }
            }
            Kind::Credit => {
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

fn serve(
    head: Head,
    request: Vec<u8>,
    peer: &Arc<Peer>,
    backend: &Arc<Backend>,
    jobs: &Sender<Job>,
) -> Result<()> {
    let Some((_, style)) = METHODS.iter().find(|it| it.0 == head.word) else { bail!("no such method") };
    let gate = Arc::new(Gate {
        cancelled: AtomicBool::new(false),
        window: Mutex::new(WINDOW),
        more: Condvar::new(),
    });
    lock(&peer.calls).insert(head.call, Arc::clone(&gate));
    let mut call = Call { peer: Arc::clone(peer), gate, number: head.call };
    let backend = Arc::clone(backend);
    let mut run = move || {
        let mut reply = Vec::new();
        let done = match head.kind {
            Kind::Stream => backend.stream(head.word, &call.served(), &request, &mut call),
            _ => backend.call(head.word, &call.served(), &request, &mut reply),
        };
        call.end(head.kind, done, &reply);
    };
    match style {
        Style::Inline => run(),
        Style::Pooled => jobs.send(Box::new(run)).map_err(|_| anyhow!("no workers"))?,
        Style::Stream => drop(thread::spawn(run)),
    }
    Ok(())
}

/// A call that is being served.
#[derive(Clone)]
struct Call {
    peer: Arc<Peer>,
    gate: Arc<Gate>,
    number: u32,
}

impl Call {
    fn served(&self) -> Self {
        self.clone()
    }

    /// The last word, unless nobody waits for it.
    fn end(&self, kind: Kind, done: Result<()>, reply: &[u8]) {
        let waited_for = lock(&self.peer.calls).remove(&self.number).is_some();
        if !waited_for {
            return;
        }
        let writer = &self.peer.writer;
        let _gone = match done {
            Err(error) => writer.send(Kind::Failed, self.number, 0, format!("{error:#}").as_bytes()),
            Ok(()) if kind == Kind::Stream => writer.send(Kind::End, self.number, 0, &[]),
            Ok(()) => writer.send(Kind::Reply, self.number, 0, reply),
        };
    }
}

impl Gate {
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        let _window = lock(&self.window); // Who looks at the flag holds it, or waits.
        self.more.notify_all();
    }
}

impl Served for Call {
    fn is_cancelled(&self) -> bool {
        self.gate.cancelled.load(Ordering::Relaxed)
    }

    fn link(&self) -> Arc<dyn Link> {
        Arc::new(Pusher(Arc::clone(&self.peer)))
    }
}

impl Out for Call {
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
        self.peer.writer.send(Kind::Chunk, self.number, 0, chunk)
    }
}

struct Pusher(Arc<Peer>);

impl Link for Pusher {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn push(&self, bytes: &[u8]) -> Result<()> {
        self.0.writer.send(Kind::Push, 0, 0, bytes)
    }
}

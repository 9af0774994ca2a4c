//! The workers: threads that run methods, one call at a time each.

use std::io;
use std::sync::{Arc, Weak};
use std::thread;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::attendant::Started;
use super::methods::{self, Method};
use super::peer::{Peer, Running};
use super::request::Request;
use super::service::Shared;

/// A call that waits for a worker.
pub(super) struct Job {
    pub(super) peer: Arc<Peer>,
    pub(super) method: Method,
    pub(super) started: Started,
    pub(super) request: Vec<u8>,
}

/// Where calls wait for a worker. The workers end when all handles of it are gone.
#[derive(Clone)]
pub(super) struct Queue(Sender<Job>);

impl Queue {
    /// A queue for so many calls; what comes out of it is for [`start`].
    pub(super) fn new(len: usize) -> (Self, Receiver<Job>) {
        let (into, out) = bounded(len);
        (Self(into), out)
    }

    /// Leaves a call to the workers; gives it back if too many wait already.
    pub(super) fn put(&self, job: Job) -> Result<(), Job> {
        self.0.try_send(job).map_err(|full| match full {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })
    }
}

/// Starts so many workers.
pub(super) fn start(workers: usize, jobs: &Receiver<Job>, shared: &Weak<Shared>) -> io::Result<()> {
    for _ in 0..workers {
        let (jobs, shared) = (jobs.clone(), shared.clone());
        thread::Builder::new().name("narrows-worker".into()).spawn(move || work(&jobs, &shared))?;
    }
    Ok(())
}

fn work(jobs: &Receiver<Job>, shared: &Weak<Shared>) {
    let mut reply = Vec::new();
    for job in jobs {
        let Some(shared) = shared.upgrade() else { return };
        let Job { peer, method, started, request } = job;
        let running = (Running::one(&shared.running), Running(&peer.running));
        let ran = (!peer.hall.is_cancelled(started.id)).then(|| {
            let asked = Request::private(&peer, started, &request);
            methods::run(&method, &peer, &asked, &mut reply, &shared.counts)
        });
        // Before the answer: once the caller has that, its next request may come into this place.
        peer.hall.with(|table| table.recycle(started.id, request));
        let Some(ran) = ran else { continue };
        shared.counts.calls.add();
        drop(running); // Who has its answer finds that it does not run any more.
        methods::answer(&peer, started, ran, &mut reply);
        shared.answered(&peer);
        crate::rpc::pieces::clear(&mut reply);
    }
}

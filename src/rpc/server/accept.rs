//! Accepts clients: the accepting thread, and the limits on connections.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::dispatcher::serve_counted;
use super::session::ProcessId;
use super::state::ServerState;
use crate::channel::threads;
use crate::error::{AcceptError, RejectCode};
use crate::events;
use crate::listener::SharedMemoryListener;
use crate::rpc::preface;
use crate::stream::SharedMemoryStream;

/// The pause after a failed accept, when the system has no descriptors or threads left.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Accepts clients until the listener is closed. Each client gets a thread. Fails if the program closed the
/// listener's descriptors.
pub(super) fn accept_all(
    state: &Arc<ServerState>,
    listener: &SharedMemoryListener,
) -> Result<(), AcceptError> {
    loop {
        match listener.accept() {
            Ok(stream) => admit(state, stream),
            Err(AcceptError::Closed | AcceptError::Forked) => return Ok(()),
            Err(error @ AcceptError::DescriptorsClosed) => return Err(error),
            // Without descriptors an accept fails at once, again and again.
            Err(_) => thread::sleep(RETRY_PAUSE),
        }
    }
}

/// Gives a fresh connection a thread, or refuses it.
pub(super) fn admit(state: &Arc<ServerState>, stream: SharedMemoryStream) {
    if !state.same_process() {
        return;
    }
    let process = ProcessId::of(stream.peer_cred());
    let open = state.count_connection();
    if open >= state.limits.connections || state.activity.is_draining() {
        state.release_connection();
        return refuse(state, stream, FULL);
    }
    if !state.admit_process(process) {
        state.release_connection();
        let outside = stream.peer_cred().pid() == 0;
        return refuse(state, stream, if outside { TOO_MANY_OUTSIDE } else { TOO_MANY });
    }
    let served = Arc::clone(state);
    let slot = Arc::new(Mutex::new(Some(stream)));
    let taken = Arc::clone(&slot);
    let thread = threads::spawn("narrows-serve", move || {
        if let Some(stream) = taken.lock().take() {
            let _reported_by_on_disconnect = serve_counted(&served, stream);
        }
    });
    if let Err(error) = thread {
        state.release_process(process);
        state.release_connection();
        if let Some(stream) = slot.lock().take() {
            let reason = ("the server has no thread for it: try again later", format!("no thread: {error}"));
            refuse(state, stream, (reason.0, &reason.1));
        }
    }
}

/// Why a client is refused: the text that it is sent, and the text that is logged.
type RefusalReason<'a> = (&'a str, &'a str);

const FULL: RefusalReason<'_> =
    ("try again later", "the server has as many clients as it takes, or is about to end");
const TOO_MANY: RefusalReason<'_> =
    ("this process has as many connections as it may", "its process has as many connections as it may");

/// Processes of one user that are outside the server's pid namespace count as one process.
const TOO_MANY_OUTSIDE: RefusalReason<'_> = (
    "processes outside the server's pid namespace share one limit",
    "the processes of its user outside of the pid namespace together have as many connections as one may",
);

fn refuse(state: &ServerState, stream: SharedMemoryStream, (text, logged): RefusalReason<'_>) {
    state.activity.counts.refused.add();
    let (pid, uid) = (stream.peer_cred().pid(), stream.peer_cred().uid());
    events::rejected(pid, uid, &logged);
    let mut parts = stream.into_ends();
    let _client_may_have_left = preface::refuse(&mut parts.outbound, RejectCode::Busy, text);
}

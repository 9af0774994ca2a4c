//! The connection of a client over time: the first one, and with a policy to reconnect those that follow it.
//!
//! # Invariants
//!
//! 1. A new connection is new memory. A call that may have run is never sent again.
//! 2. One thread connects at a time. The others wait for it, until their own deadlines or until the client is closed.
//! 3. What was lost is reported once for each connection: before the next one is made, or at its end if its server
//!    still served calls when it got a successor.
//! 4. At most [`MAX_RETIRED`] connections still have calls under way after they got a successor: a hostile server
//!    that refuses each call cannot cause more of them.

use std::fmt;
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};

use super::connection::{ClientConnection, ConnectionRef, ReplaceConnection};
use super::in_flight::LostCall;
use super::multiplexer::WaitError;
use crate::channel::{Closer, Wait, threads};
use crate::connect::ConnectLimit;
use crate::error::{CallError, ConnectError, ConnectionError};
use crate::options::Options;
use crate::rpc::nesting::{self, Awaited};

/// What to do when a connection is lost: the next call makes a new one. The first attempt is made at once, later ones
/// after growing pauses.
///
/// Nothing is replayed: calls that were under way have failed, and only the caller knows which of them may be made
/// again. A call that the server has answered as never begun may be sent again by the client, with
/// [`retry_unserved`](Self::retry_unserved).
///
/// A call that waits reconnects on its own thread. A call that does not wait (`try_start_call`, `try_next_push`, or
/// one whose timeout is too short) fails, and a thread in the background tries for as long as
/// [`patience`](Self::patience) says.
///
/// ```
/// use std::time::Duration;
/// use narrows::Reconnect;
/// let policy = Reconnect::new()
///     .backoff(Duration::from_millis(50), Duration::from_secs(1))
///     .patience(Duration::from_secs(10))
///     .on_loss(|lost| eprintln!("{}: {} calls", lost.reason, lost.calls.len()));
/// ```
#[derive(Clone)]
pub struct Reconnect {
    first: Duration,
    cap: Duration,
    patience: Duration,
    unserved: Option<Duration>,
    on_loss: Option<Arc<LossFn>>,
    on_connected: Option<Arc<ConnectedFn>>,
}

type ConnectedFn = dyn Fn() + Send + Sync;
type LossFn = dyn Fn(&ConnectionLoss) + Send + Sync;

/// What was lost with a connection.
///
/// ```
/// use std::sync::mpsc;
/// use narrows::Reconnect;
/// let (sender, reports) = mpsc::channel();
/// let policy = Reconnect::new().on_loss(move |lost| {
///     // Only the program knows which of them may be made again.
///     let methods: Vec<u32> = lost.calls.iter().map(|call| call.method).collect();
///     let _receiver_gone = sender.send((lost.reason.to_string(), methods, lost.pushes));
/// });
/// # drop((policy, reports));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct ConnectionLoss {
    /// How the connection ended.
    pub reason: ConnectionError,
    /// The calls whose callers waited for an outcome. It is not known whether the server has run them.
    pub calls: Vec<LostCall>,
    /// Pushes that had arrived and were not taken.
    pub pushes: usize,
}

impl Reconnect {
    /// Returns a policy with the defaults: an attempt at once, then pauses from 10 ms that double up to 1 s, and a
    /// patience of 5 s.
    pub fn new() -> Self {
        Self {
            first: Duration::from_millis(10),
            cap: Duration::from_secs(1),
            patience: Duration::from_secs(5),
            unserved: None,
            on_loss: None,
            on_connected: None,
        }
    }

    /// Sets the pause after the first failed attempt, and the longest pause. The first is at least 1 ms.
    #[must_use]
    pub fn backoff(mut self, first: Duration, cap: Duration) -> Self {
        let first = first.max(Duration::from_millis(1));
        (self.first, self.cap) = (first, cap.max(first));
        self
    }

    /// Sets how long one call tries to reconnect, unless its own deadline is sooner. It fails with
    /// [`CallError::ReconnectFailed`] then, and the next call tries again. Default 5 s.
    ///
    /// However short it is, one attempt is made. That attempt may take 1 s if the server does not answer, or the
    /// handshake timeout ([`Options::handshake_timeout`]) if that is shorter.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Lets the client send a call again that the server has answered as never begun because it shuts down
    /// ([`CallError::ShuttingDown`]): for at most `limit`, until the call's own deadline at most, and with growing
    /// pauses. Default: never.
    ///
    /// With it, calls survive an orderly restart of the server, and each runs once. If the new server is there before
    /// the old one has ended, calls go to the new one at once, and those under way stay with the old one until they
    /// end. `on_loss` reports on the old connection when it has ended. A call that may have run is never sent again:
    /// not after `PeerDied` or `Disconnected`. This holds for `call` and its variants. What returns before the answer
    /// (`start_call`, streams, uploads, notifications) is not repeated.
    ///
    /// ```
    /// use std::time::Duration;
    /// use narrows::Reconnect;
    /// let policy = Reconnect::new().retry_unserved(Duration::from_secs(10));
    /// ```
    #[must_use]
    pub fn retry_unserved(mut self, limit: Duration) -> Self {
        self.unserved = Some(limit);
        self
    }

    /// Sets a callback that the thread that made a new connection calls after each one. The callback must not call
    /// through this client.
    ///
    /// ```
    /// let policy = narrows::Reconnect::new().on_connected(|| eprintln!("the engine is back"));
    /// ```
    #[must_use]
    pub fn on_connected(mut self, notice: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_connected = Some(Arc::new(notice));
        self
    }

    /// Sets a callback that is called once for each lost connection, with what was lost. The thread that makes the
    /// next connection calls it, or a thread in the background if the next connection was made while the server still
    /// served calls of the old one. The callback must not call through this client.
    #[must_use]
    pub fn on_loss(mut self, report: impl Fn(&ConnectionLoss) + Send + Sync + 'static) -> Self {
        self.on_loss = Some(Arc::new(report));
        self
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Reconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reconnect")
            .field("first", &self.first)
            .field("cap", &self.cap)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// The connection that calls use now, and what replaces it.
pub(super) enum ConnectionSource {
    Fixed(Arc<ClientConnection>),
    Reconnecting(Arc<Reconnector>),
}

/// Replaces a connection that was lost.
pub(super) struct Reconnector {
    current: Mutex<Arc<ClientConnection>>,
    connecting: Mutex<()>,
    /// Closes the connection whose handshake for calls is under way.
    in_handshake: Mutex<Option<Closer>>,
    /// Connections that have a successor, and whose server still serves calls. A thread for each waits for its end.
    retired: Mutex<Vec<Arc<ClientConnection>>>,
    has_retired: AtomicBool,
    path: PathBuf,
    options: Options,
    policy: Reconnect,
    closed: AtomicBool,
    /// A thread in the background reconnects.
    background: AtomicBool,
    reconnects: AtomicU64,
}

impl ConnectionSource {
    pub(super) fn fixed(connection: Arc<ClientConnection>) -> Self {
        Self::Fixed(connection)
    }

    /// Returns a source that replaces this connection, made with these options, when it is lost.
    pub(super) fn reconnecting(
        connection: Arc<ClientConnection>,
        path: PathBuf,
        options: Options,
        policy: Reconnect,
    ) -> Self {
        let reconnector = Arc::new(Reconnector {
            current: Mutex::new(connection),
            connecting: Mutex::new(()),
            in_handshake: Mutex::new(None),
            retired: Mutex::new(Vec::new()),
            has_retired: AtomicBool::new(false),
            path,
            options,
            policy,
            closed: AtomicBool::new(false),
            background: AtomicBool::new(false),
            reconnects: AtomicU64::new(0),
        });
        reconnector.current().set_reconnector(reconnector.weak());
        Self::Reconnecting(reconnector)
    }

    /// Returns a connection to call through.
    #[inline]
    pub(super) fn get(&self, wait: Wait) -> Result<ConnectionRef<'_>, CallError> {
        match self {
            Self::Fixed(connection) => Ok(ConnectionRef::Borrowed(connection)),
            Self::Reconnecting(reconnector) => reconnector.get(wait).map(ConnectionRef::Shared),
        }
    }

    /// Calls a method over the current connection. Repeats a call that the server has answered as never begun, if the
    /// policy says so.
    #[inline]
    pub(super) fn call(
        &self,
        method: u32,
        request: &[u8],
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<(), CallError> {
        match self {
            Self::Fixed(connection) => connection.call(method, request, buffer, wait),
            Self::Reconnecting(reconnector) => reconnector.call(method, request, buffer, wait),
        }
    }

    /// Returns whether a lost connection is replaced.
    pub(super) fn is_reconnecting(&self) -> bool {
        matches!(self, Self::Reconnecting(_))
    }

    /// Returns a connection to take pushes from. One that has ended may have some left.
    pub(super) fn get_for_pushes(&self, wait: Wait) -> Result<ConnectionRef<'_>, CallError> {
        match self {
            Self::Fixed(connection) => Ok(ConnectionRef::Borrowed(connection)),
            Self::Reconnecting(reconnector) => {
                if let Some(connection) = reconnector.retired_with_pushes() {
                    return Ok(ConnectionRef::Shared(connection));
                }
                let connection = reconnector.current();
                let over = connection.handle.same_process() && connection.mux.closed().is_some();
                if over && connection.mux.lock().calls.pushes() == 0 {
                    self.get(wait)
                } else {
                    Ok(ConnectionRef::Shared(connection))
                }
            }
        }
    }

    /// Returns the current connection, also after it has ended.
    pub(super) fn any(&self) -> ConnectionRef<'_> {
        match self {
            Self::Fixed(connection) => ConnectionRef::Borrowed(connection),
            Self::Reconnecting(reconnector) => ConnectionRef::Shared(reconnector.current()),
        }
    }

    pub(super) fn reconnects(&self) -> u64 {
        match self {
            Self::Fixed(_) => 0,
            Self::Reconnecting(reconnector) => reconnector.reconnects.load(Ordering::Relaxed),
        }
    }

    pub(super) fn close(&self) {
        if let Self::Reconnecting(reconnector) = self {
            reconnector.closed.store(true, Ordering::Relaxed);
        }
        self.any().handle.closer().close();
        // The order matters: a connection is listed as retired before its successor becomes the current one.
        if let Self::Reconnecting(reconnector) = self {
            reconnector.retired.lock().iter().for_each(|connection| connection.handle.closer().close());
            if let Some(closer) = reconnector.in_handshake.lock().as_ref() {
                closer.close();
            }
        }
    }
}

impl Drop for ConnectionSource {
    /// Drops the last handle: threads in the background make no connection any more. Calls under way go on.
    fn drop(&mut self) {
        if let Self::Reconnecting(reconnector) = self {
            reconnector.closed.store(true, Ordering::Relaxed);
        }
    }
}

impl ReplaceConnection for Reconnector {
    #[cold]
    fn replace_in_background(self: Arc<Self>, refusing: &ClientConnection) {
        let current = self.current();
        if ptr::eq(Arc::as_ptr(&current), refusing) && current.handle.ended().is_none() {
            self.reconnect_in_background(Some(current));
        }
    }
}

impl Reconnector {
    fn weak(self: &Arc<Self>) -> Weak<dyn ReplaceConnection> {
        let this: Weak<Self> = Arc::downgrade(self);
        this
    }

    fn current(&self) -> Arc<ClientConnection> {
        Arc::clone(&self.current.lock())
    }

    fn call(
        self: &Arc<Self>,
        method: u32,
        request: &[u8],
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<(), CallError> {
        let connection = self.get(wait)?;
        match connection.call(method, request, buffer, wait) {
            Err(CallError::ShuttingDown) => self.call_again(connection, method, request, buffer, wait),
            result => result,
        }
    }

    /// Sends a call again over a successor of `refusing`, whose server takes no more calls, if the policy says so.
    #[cold]
    fn call_again(
        self: &Arc<Self>,
        mut refusing: Arc<ClientConnection>,
        method: u32,
        request: &[u8],
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<(), CallError> {
        let (Some(limit), Wait::Deadline(deadline)) =
            (self.policy.unserved, nesting::limit(wait, Awaited::Answer))
        else {
            return Err(CallError::ShuttingDown);
        };
        let last = [Instant::now().checked_add(limit), deadline].into_iter().flatten().min();
        let mut pause = self.policy.first;
        loop {
            // A connection that has ended is replaced as for any call, whatever the limit is.
            let deadline = if refusing.handle.ended().is_some() { deadline } else { last };
            match self.reconnect(deadline, Some(&refusing)) {
                Ok(connection) => match connection.call(method, request, buffer, wait) {
                    Err(CallError::ShuttingDown) => refusing = connection,
                    result => return result,
                },
                Err(CallError::ShuttingDown) => {}
                Err(CallError::ReconnectFailed(_) | CallError::Timeout)
                    if refusing.handle.ended().is_none() => {}
                Err(error) => return Err(error),
            }
            // A random part of the pause keeps callers apart that were refused at the same moment.
            let step = pause / 2 + pause.mul_f64(jitter() / 2.0);
            let next = Instant::now().checked_add(step).filter(|next| last.is_none_or(|last| *next < last));
            let Some(next) = next else { return Err(CallError::ShuttingDown) };
            self.pause_until(next)?;
            pause = pause.saturating_mul(2).min(self.policy.cap);
        }
    }

    fn get(self: &Arc<Self>, wait: Wait) -> Result<Arc<ClientConnection>, CallError> {
        let connection = self.current();
        if !connection.handle.same_process() {
            return Err(CallError::ConnectionLost(ConnectionError::Forked));
        }
        if self.closed.load(Ordering::Relaxed) {
            return Err(CallError::ConnectionLost(ConnectionError::Closed));
        }
        match (connection.handle.ended(), wait) {
            (None, _) => Ok(connection),
            (Some(ended), Wait::Never) => {
                self.reconnect_in_background(None);
                Err(ended.into())
            }
            (Some(_), wait) => match nesting::limit(wait, Awaited::Answer) {
                Wait::Never => Err(CallError::Timeout),
                // The deadline may have been too short for a handshake, and the next call's may be as well.
                Wait::Deadline(deadline) => {
                    self.reconnect(deadline, None).inspect_err(|_| self.reconnect_in_background(None))
                }
            },
        }
    }

    /// Starts a thread that reconnects as [`reconnect`](Self::reconnect) does, unless there is one.
    #[cold]
    fn reconnect_in_background(self: &Arc<Self>, refusing: Option<Arc<ClientConnection>>) {
        if self.closed.load(Ordering::Relaxed) || self.background.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = BackgroundTask(Arc::clone(self));
        // If the thread cannot be started, the task is dropped, and a call that waits reconnects by itself.
        let _thread = threads::spawn("narrows-reconnect", move || {
            let _as_calls_find_out = task.0.reconnect(None, refusing.as_ref());
        });
    }

    /// Makes a new connection in the place of one that has ended, or of `refusing`, whose server takes no more calls.
    /// Returns the current connection if another thread has replaced it already.
    ///
    /// # Errors
    ///
    /// [`CallError::ShuttingDown`] if [`MAX_RETIRED`] connections with calls under way have a successor already.
    #[cold]
    fn reconnect(
        self: &Arc<Self>,
        deadline: Option<Instant>,
        refusing: Option<&Arc<ClientConnection>>,
    ) -> Result<Arc<ClientConnection>, CallError> {
        let began = Instant::now();
        // However short the patience is, one attempt gets the time that a server may need for it.
        let attempt = self.options.connect_timeout_or_default().min(MIN_ATTEMPT);
        let after = |time| [began.checked_add(time), deadline].into_iter().flatten().min();
        let (give_up, retry) = (after(self.policy.patience.max(attempt)), after(self.policy.patience));
        let _turn = self.lock_connecting(give_up, deadline)?;
        let old = self.current();
        match old.handle.ended() {
            Some(ended) => self.report(&old, ended, give_up),
            None if !refusing.is_some_and(|refusing| Arc::ptr_eq(refusing, &old)) => return Ok(old),
            None if self.retired.lock().len() >= MAX_RETIRED => return Err(CallError::ShuttingDown),
            None => {}
        }
        let new = self.connect_with_retries(give_up, retry)?;
        match old.handle.ended() {
            Some(ended) => self.report(&old, ended, give_up),
            None => self.retire(&old)?,
        }
        *self.current.lock() = Arc::clone(&new);
        self.reconnects.fetch_add(1, Ordering::Relaxed);
        if self.closed.load(Ordering::Relaxed) {
            new.handle.closer().close();
        } else if let Some(notice) = &self.policy.on_connected {
            notice();
        }
        Ok(new)
    }

    /// Waits until no other thread connects, and locks the others out.
    fn lock_connecting(
        &self,
        give_up: Option<Instant>,
        deadline: Option<Instant>,
    ) -> Result<MutexGuard<'_, ()>, CallError> {
        loop {
            let slice = Instant::now().checked_add(SLICE).into_iter().chain(give_up).min();
            let guard = slice
                .map_or_else(|| self.connecting.try_lock(), |slice| self.connecting.try_lock_until(slice));
            if self.closed.load(Ordering::Relaxed) {
                return Err(CallError::ConnectionLost(ConnectionError::Closed));
            }
            match guard {
                Some(guard) => return Ok(guard),
                None if give_up.is_some_and(|at| Instant::now() >= at) => {
                    return Err(timeout_error(deadline));
                }
                None => {}
            }
        }
    }

    /// Tries to connect until it succeeds or `give_up` has passed. Begins no further attempt after `retry`.
    fn connect_with_retries(
        self: &Arc<Self>,
        give_up: Option<Instant>,
        retry: Option<Instant>,
    ) -> Result<Arc<ClientConnection>, CallError> {
        let mut pause = self.policy.first;
        loop {
            let error = match self.connect(give_up) {
                Ok(connection) => return Ok(connection),
                Err(_) if self.closed.load(Ordering::Relaxed) => {
                    return Err(CallError::ConnectionLost(ConnectionError::Closed));
                }
                Err(error) => error,
            };
            let next = Instant::now().checked_add(pause).filter(|next| retry.is_none_or(|at| *next < at));
            let Some(next) = next else { return Err(CallError::ReconnectFailed(Box::new(error))) };
            self.pause_until(next)?;
            pause = pause.saturating_mul(2).min(self.policy.cap);
        }
    }

    /// Makes one attempt, which ends when the client is closed.
    fn connect(self: &Arc<Self>, limit: Option<Instant>) -> Result<Arc<ClientConnection>, ConnectError> {
        let deadline = Instant::now().checked_add(self.options.connect_timeout_or_default());
        let deadline = [deadline, limit].into_iter().flatten().min();
        let within = ConnectLimit::cancelled_by(deadline, &self.closed);
        let stream = self.options.connect_within(&self.path, within)?;
        *self.in_handshake.lock() = Some(stream.closer());
        // A thread that closes the client sets the flag before it looks for a handshake under way.
        let connection = match self.closed.load(Ordering::Relaxed) {
            true => Err(ConnectError::Timeout),
            false => ClientConnection::exchange_preface(stream, &self.options, deadline),
        };
        *self.in_handshake.lock() = None;
        connection.inspect(|connection| connection.set_reconnector(self.weak()))
    }

    /// Leaves a connection to the calls that are under way. A thread of its own waits for its end, and reports it.
    fn retire(self: &Arc<Self>, old: &Arc<ClientConnection>) -> Result<(), CallError> {
        let task = RetiredTask { reconnector: Arc::clone(self), connection: Arc::clone(old) };
        self.retired.lock().push(Arc::clone(old));
        self.has_retired.store(true, Ordering::Relaxed);
        // If the thread cannot be started, the task is dropped, and the old connection stays until its end.
        threads::spawn("narrows-reconnect", move || task.run()).map(drop).map_err(|_| CallError::ShuttingDown)
    }

    /// Returns a connection that has a successor, and pushes that were not taken.
    fn retired_with_pushes(&self) -> Option<Arc<ClientConnection>> {
        if !self.has_retired.load(Ordering::Relaxed) {
            return None;
        }
        let retired = self.retired.lock();
        retired.iter().find(|connection| connection.handle.same_process() && connection.has_pushes()).cloned()
    }

    /// Sleeps until `next`, unless the client is closed meanwhile.
    pub(super) fn pause_until(&self, next: Instant) -> Result<(), CallError> {
        while Instant::now() < next {
            if self.closed.load(Ordering::Relaxed) {
                return Err(CallError::ConnectionLost(ConnectionError::Closed));
            }
            thread::sleep(next.saturating_duration_since(Instant::now()).min(SLICE));
        }
        Ok(())
    }

    /// Reports what was lost with a connection that has ended, unless that was done.
    fn report(&self, old: &ClientConnection, ended: ConnectionError, give_up: Option<Instant>) {
        // What the server sent before the connection ended goes to the waiting callers first. A hostile server could
        // go on sending, so this has a deadline.
        let drain_until = Instant::now().checked_add(DRAIN_TIME).into_iter().chain(give_up).min();
        let _at_its_end = old.mux.wait(old.mux.push_signal(), Wait::Deadline(drain_until), |_| None::<()>);
        old.mux.close(ended);
        if let Some((calls, pushes)) = old.mux.take_lost() {
            if let Some(report) = &self.policy.on_loss {
                report(&ConnectionLoss { reason: ended, calls, pushes });
            }
        }
    }
}

/// The task of the thread that reconnects in the background. Dropping it clears the flag, however the thread ends.
struct BackgroundTask(Arc<Reconnector>);

impl Drop for BackgroundTask {
    fn drop(&mut self) {
        self.0.background.store(false, Ordering::Release);
    }
}

/// The task of the thread of a retired connection. Dropping it removes the connection from the retired ones, however
/// the thread ends.
struct RetiredTask {
    reconnector: Arc<Reconnector>,
    connection: Arc<ClientConnection>,
}

impl RetiredTask {
    /// Receives what the server still sends, for the calls under way too, and reports on the end.
    fn run(self) {
        let (reconnector, connection) = (&self.reconnector, &self.connection);
        let is_closed = || reconnector.closed.load(Ordering::Relaxed);
        let ended = loop {
            let slice = Instant::now().checked_add(RETIRED_SLICE);
            let waited =
                connection.mux.wait(connection.mux.push_signal(), Wait::Deadline(slice), |_| None::<()>);
            match waited {
                _ if is_closed() => return,
                Err(WaitError::Ended(ended)) => break ended,
                _ => {}
            }
        };
        // Threads that take pushes get a moment for those that have arrived: only this connection has them.
        let last = Instant::now().checked_add(DRAIN_TIME);
        while connection.has_pushes() && !is_closed() && last.is_some_and(|last| Instant::now() < last) {
            thread::sleep(SLICE);
        }
        reconnector.report(connection, ended, None);
    }
}

impl Drop for RetiredTask {
    fn drop(&mut self) {
        let mut retired = self.reconnector.retired.lock();
        retired.retain(|connection| !Arc::ptr_eq(connection, &self.connection));
        self.reconnector.has_retired.store(!retired.is_empty(), Ordering::Relaxed);
    }
}

/// Returns the error of a thread whose deadline or patience passed while another thread tried to connect.
fn timeout_error(deadline: Option<Instant>) -> CallError {
    match deadline {
        Some(deadline) if Instant::now() >= deadline => CallError::Timeout,
        _ => CallError::ReconnectFailed(Box::new(ConnectError::Timeout)),
    }
}

/// Returns a number from 0 to 1 that differs from call to call.
fn jitter() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    f64::from(now.subsec_nanos() % 1000) / 1000.0
}

/// How long the frames that a lost connection still holds are received. Those of a well-formed server take
/// microseconds.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// The least time of one attempt, whatever the patience is: the time that a listener gives its clients by default.
const MIN_ATTEMPT: Duration = Duration::from_secs(1);

/// The greatest number of connections that have a successor and calls under way.
const MAX_RETIRED: usize = 4;

/// How long the thread of a retired connection waits before it checks whether the client was closed.
const RETIRED_SLICE: Duration = Duration::from_millis(100);

/// How long a pause goes on before it is checked whether the client was closed.
const SLICE: Duration = Duration::from_millis(20);

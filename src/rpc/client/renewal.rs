//! A client's connection over time: the first, and with a policy to reconnect the ones after it.
//!
//! # Invariants
//!
//! 1. A new connection is new memory; what may have run is never sent again.
//! 2. One thread connects; the others wait for it, until their own deadlines, and all of them until the client is closed.
//! 3. What was lost is reported once for each connection: before the next is made, or, if its server still served calls when
//!    it had a successor, at its end.
//! 4. Of connections that still have calls under way when the next is made there are [`MOST_RETIRED`] at most: a hostile server
//!    that refuses each call makes no more of them.

use std::fmt;
use std::path::{self, Path, PathBuf};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};

use super::desk::Stop;
use super::table::LostCall;
use super::{Conn, Held, SharedMemoryClient};
use crate::channel::{Closer, Wait, threads};
use crate::error::{CallError, ConnectError, ConnectionError};
use crate::establish::ConnectLimit;
use crate::options::Options;
use crate::rpc::nesting::{self, Awaited};

/// Makes a client: options, and what happens when the connection is lost.
///
/// ```no_run
/// use std::time::Duration;
/// use narrows::{Options, Reconnect, SharedMemoryClient};
/// let client = SharedMemoryClient::builder("/run/engine.sock")
///     .options(Options::new().max_message(1 << 20))
///     .reconnect(Reconnect::new().on_loss(|lost| eprintln!("{} calls were lost", lost.calls.len())))
///     .connect()?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct ClientBuilder {
    path: PathBuf,
    options: Options,
    reconnect: Option<Reconnect>,
}

impl ClientBuilder {
    pub(super) fn new(path: &Path) -> Self {
        // A later change of the working directory must not lead to another server.
        let path = path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { path, options: Options::new(), reconnect: None }
    }

    /// Sizes, limits, waiting, trust.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Makes a new connection when one was lost. Default: never.
    #[must_use]
    pub fn reconnect(mut self, policy: Reconnect) -> Self {
        self.reconnect = Some(policy);
        self
    }

    /// Connects, within the handshake's time (5 s unless set).
    ///
    /// # Errors
    ///
    /// [`ConnectError`]; the first connection is tried once, whatever the policy.
    pub fn connect(self) -> Result<SharedMemoryClient, ConnectError> {
        let until = Instant::now().checked_add(self.options.connect_timeout_or_default());
        let stream = self.options.connect_within(&self.path, ConnectLimit::until(until))?;
        let conn = Conn::greet(stream, &self.options, until)?;
        let Some(policy) = self.reconnect else {
            return Ok(SharedMemoryClient { current: Arc::new(Current::fixed(conn)) });
        };
        let renewal = Renewal {
            line: Mutex::new(conn),
            turn: Mutex::new(()),
            greeting: Mutex::new(None),
            retired: Mutex::new(Vec::new()),
            has_retired: AtomicBool::new(false),
            path: self.path,
            options: self.options,
            policy,
            closed: AtomicBool::new(false),
            background: AtomicBool::new(false),
            made: AtomicU64::new(0),
        };
        let renewal = Arc::new(renewal);
        renewal.now().renewed_by(&renewal);
        Ok(SharedMemoryClient { current: Arc::new(Current::Renewed(renewal)) })
    }
}

/// What to do when a connection is lost: the next call makes a new one, at once and then backing off.
///
/// Nothing is replayed: calls that were under way have failed, and only the caller knows which of them may be
/// made again. What a server has answered as never begun may be sent again by the client:
/// [`retry_unserved`](Self::retry_unserved).
///
/// A call that waits reconnects on its own thread. One that does not (`try_start_call`, `try_next_push`, or with a timeout that
/// is too short) fails, and a thread in the background tries for as long as [`patience`](Self::patience) says.
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
    on_loss: Option<Arc<Report>>,
    on_connected: Option<Arc<Notice>>,
}

type Notice = dyn Fn() + Send + Sync;
type Report = dyn Fn(&Lost) + Send + Sync;

/// What was lost with a connection.
///
/// ```
/// use std::sync::mpsc;
/// use narrows::Reconnect;
/// let (tell, told) = mpsc::channel();
/// let policy = Reconnect::new().on_loss(move |lost| {
///     // Which of them may be made again, only the program knows.
///     let methods: Vec<u32> = lost.calls.iter().map(|call| call.method).collect();
///     let _nobody_listens = tell.send((lost.reason.to_string(), methods, lost.pushes));
/// });
/// # drop((policy, told));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Lost {
    /// How the connection ended.
    pub reason: CallError,
    /// The calls that somebody waited for: whether the server has done them is not known.
    pub calls: Vec<LostCall>,
    /// Pushes that had come and that nobody took.
    pub pushes: usize,
}

impl Reconnect {
    /// At once, then after 10 ms and twice as long each time, up to 1 s; a call gives up after 5 s, or at its own
    /// deadline if that is sooner.
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

    /// The pause after the first attempt that failed, and the longest pause.
    #[must_use]
    pub fn backoff(mut self, first: Duration, cap: Duration) -> Self {
        let first = first.max(Duration::from_millis(1));
        (self.first, self.cap) = (first, cap.max(first));
        self
    }

    /// How long one call tries, if its own deadline is not sooner; it fails with
    /// [`CallError::Unreachable`] then, and the next call tries again.
    ///
    /// However short it is, one attempt is made, which may take 1 s if the server does not answer, or the handshake's time
    /// ([`Options::handshake_timeout`]) if that is shorter.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sends a call again that the server has answered as never begun, since it was about to end
    /// ([`CallError::ShuttingDown`]): for at most so long, and no longer than until the call's own deadline, with growing
    /// pauses. Default: never.
    ///
    /// So calls go through a server that is restarted in good order, and each runs once. Where the new server is there before
    /// the old one has ended, calls go to the new one at once, and those under way stay with the old one until they end;
    /// `on_loss` reports on the old connection when it has ended. A call that may have run is never sent
    /// again: not after `PeerDied` or `Disconnected`. It holds for `call` and its kin; what returns before the answer
    /// (`start_call`, streams, uploads, notifications) is the caller's to repeat.
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

    /// Is called after each new connection, by the thread that made it. It must not call through this client.
    ///
    /// ```
    /// let policy = narrows::Reconnect::new().on_connected(|| eprintln!("the engine is back"));
    /// ```
    #[must_use]
    pub fn on_connected(mut self, notice: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_connected = Some(Arc::new(notice));
        self
    }

    /// Is told what was lost, once for each lost connection, by the thread that makes the next one; by a thread in the
    /// background if the next one was made while the server still served calls of the old one. It must not
    /// call through this client.
    #[must_use]
    pub fn on_loss(mut self, report: impl Fn(&Lost) + Send + Sync + 'static) -> Self {
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

/// The connection of now.
pub(super) enum Current {
    Fixed(Arc<Conn>),
    Renewed(Arc<Renewal>),
}

/// What a new connection is made of.
pub(super) struct Renewal {
    line: Mutex<Arc<Conn>>,
    turn: Mutex<()>,
    /// Closes the connection whose greeting is under way.
    greeting: Mutex<Option<Closer>>,
    /// Connections that have a successor, and whose server still serves calls; a thread for each waits for its end.
    retired: Mutex<Vec<Arc<Conn>>>,
    has_retired: AtomicBool,
    path: PathBuf,
    options: Options,
    policy: Reconnect,
    closed: AtomicBool,
    /// A thread in the background reconnects.
    background: AtomicBool,
    made: AtomicU64,
}

impl Current {
    pub(super) fn fixed(conn: Arc<Conn>) -> Self {
        Self::Fixed(conn)
    }

    /// A connection to call through.
    #[inline]
    pub(super) fn get(&self, wait: Wait) -> Result<Held<'_>, CallError> {
        match self {
            Self::Fixed(conn) => Ok(Held::Lent(conn)),
            Self::Renewed(renewal) => renewal.get(wait).map(Held::Shared),
        }
    }

    /// Calls through the connection of now, and again what the server has answered as never begun, if the policy says so.
    #[inline]
    pub(super) fn call(
        &self,
        method: u32,
        request: &[u8],
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<(), CallError> {
        match self {
            Self::Fixed(conn) => conn.call(method, request, buffer, wait),
            Self::Renewed(renewal) => renewal.call(method, request, buffer, wait),
        }
    }

    /// Whether a lost connection is made anew.
    pub(super) fn renews(&self) -> bool {
        matches!(self, Self::Renewed(_))
    }

    /// A connection to take pushes from: one that has ended may have some left.
    pub(super) fn get_for_pushes(&self, wait: Wait) -> Result<Held<'_>, CallError> {
        match self {
            Self::Fixed(conn) => Ok(Held::Lent(conn)),
            Self::Renewed(renewal) => {
                if let Some(conn) = renewal.retired_with_pushes() {
                    return Ok(Held::Shared(conn));
                }
                let conn = renewal.now();
                let over = conn.line.same_process() && conn.desk.over().is_some();
                if over && conn.desk.books().table.pushes() == 0 {
                    self.get(wait)
                } else {
                    Ok(Held::Shared(conn))
                }
            }
        }
    }

    /// The connection of now, whatever became of it.
    pub(super) fn any(&self) -> Held<'_> {
        match self {
            Self::Fixed(conn) => Held::Lent(conn),
            Self::Renewed(renewal) => Held::Shared(renewal.now()),
        }
    }

    pub(super) fn reconnects(&self) -> u64 {
        match self {
            Self::Fixed(_) => 0,
            Self::Renewed(renewal) => renewal.made.load(Ordering::Relaxed),
        }
    }

    pub(super) fn close(&self) {
        if let Self::Renewed(renewal) = self {
            renewal.closed.store(true, Ordering::Relaxed);
        }
        self.any().line.closer().close();
        // In this order: a connection is among the retired ones before the line has its successor.
        if let Self::Renewed(renewal) = self {
            renewal.retired.lock().iter().for_each(|conn| conn.line.closer().close());
            if let Some(closer) = renewal.greeting.lock().as_ref() {
                closer.close();
            }
        }
    }
}

impl Drop for Current {
    /// The last handle has gone: threads in the background make no connection any more. Calls under way go on.
    fn drop(&mut self) {
        if let Self::Renewed(renewal) = self {
            renewal.closed.store(true, Ordering::Relaxed);
        }
    }
}

impl Renewal {
    fn now(&self) -> Arc<Conn> {
        Arc::clone(&self.line.lock())
    }

    fn call(
        self: &Arc<Self>,
        method: u32,
        request: &[u8],
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<(), CallError> {
        let conn = self.get(wait)?;
        match conn.call(method, request, buffer, wait) {
            Err(CallError::ShuttingDown) => self.call_again(conn, method, request, buffer, wait),
            result => result,
        }
    }

    /// The server takes no more calls over `refusing`: this call goes to its successor, if the policy says so.
    #[cold]
    fn call_again(
        self: &Arc<Self>,
        mut refusing: Arc<Conn>,
        method: u32,
        request: &[u8],
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<(), CallError> {
        let (Some(limit), Wait::Until(deadline)) =
            (self.policy.unserved, nesting::limit(wait, Awaited::Answer))
        else {
            return Err(CallError::ShuttingDown);
        };
        let last = [Instant::now().checked_add(limit), deadline].into_iter().flatten().min();
        let mut pause = self.policy.first;
        loop {
            // A connection that has ended is made anew as for any call, whatever the limit is.
            let until = if refusing.line.ended().is_some() { deadline } else { last };
            match self.renew(until, Some(&refusing)) {
                Ok(conn) => match conn.call(method, request, buffer, wait) {
                    Err(CallError::ShuttingDown) => refusing = conn,
                    result => return result,
                },
                Err(CallError::ShuttingDown) => {}
                Err(CallError::Unreachable(_) | CallError::Timeout) if refusing.line.ended().is_none() => {}
                Err(error) => return Err(error),
            }
            // Not in step with other callers that were sent away at the same moment.
            let step = pause / 2 + pause.mul_f64(jitter() / 2.0);
            let next = Instant::now().checked_add(step).filter(|next| last.is_none_or(|last| *next < last));
            let Some(next) = next else { return Err(CallError::ShuttingDown) };
            self.pause_until(next)?;
            pause = pause.saturating_mul(2).min(self.policy.cap);
        }
    }

    fn get(self: &Arc<Self>, wait: Wait) -> Result<Arc<Conn>, CallError> {
        let conn = self.now();
        if !conn.line.same_process() {
            return Err(CallError::Forked);
        }
        if self.closed.load(Ordering::Relaxed) {
            return Err(CallError::Closed);
        }
        match (conn.line.ended(), wait) {
            (None, _) => Ok(conn),
            (Some(ended), Wait::Never) => {
                self.renew_in_background(None);
                Err(ended.into())
            }
            (Some(_), wait) => match nesting::limit(wait, Awaited::Answer) {
                Wait::Never => Err(CallError::Timeout),
                // Its time may have been too short for a handshake; the next call's may be as well.
                Wait::Until(until) => self.renew(until, None).inspect_err(|_| self.renew_in_background(None)),
            },
        }
    }

    /// The server takes no more calls over this connection: a thread makes its successor for later ones.
    #[cold]
    pub(super) fn replace_in_background(self: &Arc<Self>, refusing: &Conn) {
        let now = self.now();
        if ptr::eq(Arc::as_ptr(&now), refusing) && now.line.ended().is_none() {
            self.renew_in_background(Some(now));
        }
    }

    /// Starts a thread that reconnects as [`renew`](Self::renew) does, unless there is one.
    #[cold]
    fn renew_in_background(self: &Arc<Self>, refusing: Option<Arc<Conn>>) {
        if self.closed.load(Ordering::Relaxed) || self.background.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = BackgroundTask(Arc::clone(self));
        // Without a thread the task is dropped, and a call that waits reconnects by itself.
        let _thread = threads::spawn("narrows-reconnect", move || {
            let _as_calls_find_out = task.0.renew(None, refusing.as_ref());
        });
    }

    /// Makes a new connection in the place of the one that has ended, or of `refusing`, whose server takes no more calls.
    /// Returns the one of now if another thread has made it.
    ///
    /// # Errors
    ///
    /// [`CallError::ShuttingDown`] if too many connections have calls under way to be left for another.
    #[cold]
    fn renew(
        self: &Arc<Self>,
        until: Option<Instant>,
        refusing: Option<&Arc<Conn>>,
    ) -> Result<Arc<Conn>, CallError> {
        let began = Instant::now();
        // However short the patience is, one attempt has the time that a server may need for it.
        let attempt = self.options.connect_timeout_or_default().min(LEAST_ATTEMPT);
        let after = |time| [began.checked_add(time), until].into_iter().flatten().min();
        let (give_up, retry) = (after(self.policy.patience.max(attempt)), after(self.policy.patience));
        let _turn = self.take_turn(give_up, until)?;
        let old = self.now();
        match old.line.ended() {
            Some(ended) => self.report(&old, ended, give_up),
            None if !refusing.is_some_and(|refusing| Arc::ptr_eq(refusing, &old)) => return Ok(old),
            None if self.retired.lock().len() >= MOST_RETIRED => return Err(CallError::ShuttingDown),
            None => {}
        }
        let new = self.persist(give_up, retry)?;
        match old.line.ended() {
            Some(ended) => self.report(&old, ended, give_up),
            None => self.retire(&old)?,
        }
        *self.line.lock() = Arc::clone(&new);
        self.made.fetch_add(1, Ordering::Relaxed);
        if self.closed.load(Ordering::Relaxed) {
            new.line.closer().close();
        } else if let Some(notice) = &self.policy.on_connected {
            notice();
        }
        Ok(new)
    }

    /// Waits until no other thread connects.
    fn take_turn(
        &self,
        give_up: Option<Instant>,
        until: Option<Instant>,
    ) -> Result<MutexGuard<'_, ()>, CallError> {
        loop {
            let slice = Instant::now().checked_add(SLICE).into_iter().chain(give_up).min();
            let turn = slice.map_or_else(|| self.turn.try_lock(), |slice| self.turn.try_lock_until(slice));
            if self.closed.load(Ordering::Relaxed) {
                return Err(CallError::Closed);
            }
            match turn {
                Some(turn) => return Ok(turn),
                None if give_up.is_some_and(|at| Instant::now() >= at) => return Err(late(until)),
                None => {}
            }
        }
    }

    /// Tries until it succeeds or the time is over; begins no other attempt after `retry`.
    fn persist(
        self: &Arc<Self>,
        give_up: Option<Instant>,
        retry: Option<Instant>,
    ) -> Result<Arc<Conn>, CallError> {
        let mut pause = self.policy.first;
        loop {
            let error = match self.connect(give_up) {
                Ok(conn) => return Ok(conn),
                Err(_) if self.closed.load(Ordering::Relaxed) => return Err(CallError::Closed),
                Err(error) => error,
            };
            let next = Instant::now().checked_add(pause).filter(|next| retry.is_none_or(|at| *next < at));
            let Some(next) = next else { return Err(CallError::Unreachable(Box::new(error))) };
            self.pause_until(next)?;
            pause = pause.saturating_mul(2).min(self.policy.cap);
        }
    }

    /// One attempt, which ends when the client is closed.
    fn connect(self: &Arc<Self>, limit: Option<Instant>) -> Result<Arc<Conn>, ConnectError> {
        let until = Instant::now().checked_add(self.options.connect_timeout_or_default());
        let until = [until, limit].into_iter().flatten().min();
        let within = ConnectLimit::cancelled_by(until, &self.closed);
        let stream = self.options.connect_within(&self.path, within)?;
        *self.greeting.lock() = Some(stream.closer());
        // Who closes the client sets the flag before it looks for a greeting.
        let conn = match self.closed.load(Ordering::Relaxed) {
            true => Err(ConnectError::Timeout),
            false => Conn::greet(stream, &self.options, until),
        };
        *self.greeting.lock() = None;
        conn.inspect(|conn| conn.renewed_by(self))
    }

    /// Leaves a connection to the calls that are under way: a thread of its own waits for its end, and reports that.
    fn retire(self: &Arc<Self>, old: &Arc<Conn>) -> Result<(), CallError> {
        let task = RetiredTask { renewal: Arc::clone(self), conn: Arc::clone(old) };
        self.retired.lock().push(Arc::clone(old));
        self.has_retired.store(true, Ordering::Relaxed);
        // Without a thread the task is dropped, and the old connection stays until its end.
        threads::spawn("narrows-reconnect", move || task.run()).map(drop).map_err(|_| CallError::ShuttingDown)
    }

    /// A connection that has a successor, and pushes which nobody has taken.
    fn retired_with_pushes(&self) -> Option<Arc<Conn>> {
        if !self.has_retired.load(Ordering::Relaxed) {
            return None;
        }
        let retired = self.retired.lock();
        retired.iter().find(|conn| conn.line.same_process() && conn.has_pushes()).cloned()
    }

    /// Sleeps, unless the client is closed meanwhile.
    pub(super) fn pause_until(&self, next: Instant) -> Result<(), CallError> {
        while Instant::now() < next {
            if self.closed.load(Ordering::Relaxed) {
                return Err(CallError::Closed);
            }
            thread::sleep(next.saturating_duration_since(Instant::now()).min(SLICE));
        }
        Ok(())
    }

    /// Reports what was lost with a connection that has ended, unless that is done.
    fn report(&self, old: &Conn, ended: ConnectionError, give_up: Option<Instant>) {
        // What the server sent before its end comes first, to those who wait for it. A hostile server could go on sending.
        let last_words = Instant::now().checked_add(LAST_WORDS).into_iter().chain(give_up).min();
        let _at_its_end = old.desk.wait(old.desk.pushed(), Wait::Until(last_words), |_| None::<()>);
        old.desk.end(ended);
        if let Some((calls, pushes)) = old.desk.lost() {
            if let Some(report) = &self.policy.on_loss {
                report(&Lost { reason: ended.into(), calls, pushes });
            }
        }
    }
}

/// The flag of the thread that reconnects in the background, which is clear again when it ends in any way.
struct BackgroundTask(Arc<Renewal>);

impl Drop for BackgroundTask {
    fn drop(&mut self) {
        self.0.background.store(false, Ordering::Release);
    }
}

/// What the thread of a retired connection does. The connection is none of the retired ones any more when it ends in any way.
struct RetiredTask {
    renewal: Arc<Renewal>,
    conn: Arc<Conn>,
}

impl RetiredTask {
    /// Receives what the server still sends, for the calls under way too, and reports on the end.
    fn run(self) {
        let (renewal, conn) = (&self.renewal, &self.conn);
        let is_closed = || renewal.closed.load(Ordering::Relaxed);
        let ended = loop {
            let slice = Instant::now().checked_add(RETIRED_SLICE);
            let waited = conn.desk.wait(conn.desk.pushed(), Wait::Until(slice), |_| None::<()>);
            match waited {
                _ if is_closed() => return,
                Err(Stop::Ended(ended)) => break ended,
                _ => {}
            }
        };
        // Who takes pushes has a moment for those that have come: the connection is the only one to have them.
        let last = Instant::now().checked_add(LAST_WORDS);
        while conn.has_pushes() && !is_closed() && last.is_some_and(|last| Instant::now() < last) {
            thread::sleep(SLICE);
        }
        renewal.report(conn, ended, None);
    }
}

impl Drop for RetiredTask {
    fn drop(&mut self) {
        let mut retired = self.renewal.retired.lock();
        retired.retain(|conn| !Arc::ptr_eq(conn, &self.conn));
        self.renewal.has_retired.store(!retired.is_empty(), Ordering::Relaxed);
    }
}

/// Another thread tried to connect until this one's time was over, or its patience.
fn late(until: Option<Instant>) -> CallError {
    match until {
        Some(until) if Instant::now() >= until => CallError::Timeout,
        _ => CallError::Unreachable(Box::new(ConnectError::Timeout)),
    }
}

/// A number from 0 to 1 that differs from call to call.
fn jitter() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    f64::from(now.subsec_nanos() % 1000) / 1000.0
}

/// How long what a lost connection still holds is received; a well-formed server's takes microseconds.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long one attempt may take at least, whatever the patience is: as long as a listener gives its clients.
const LEAST_ATTEMPT: Duration = Duration::from_secs(1);

/// Connections that have a successor, and calls under way, at most.
const MOST_RETIRED: usize = 4;

/// How long the thread of a retired connection waits before it looks whether the client was closed.
const RETIRED_SLICE: Duration = Duration::from_millis(100);

/// How long a pause goes on before it is looked whether the client was closed.
const SLICE: Duration = Duration::from_millis(20);

//! A client's connection over time: the first, and with a policy to reconnect the ones after it.
//!
//! # Invariants
//!
//! 1. A new connection is new memory; nothing of an old one is sent again.
//! 2. One thread connects; the others wait for it, until their own deadlines.
//! 3. What was lost is reported once for each connection, before the next is made.

use std::fmt;
use std::path::{self, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::table::LostCall;
use super::{Conn, Held, SharedMemoryClient};
use crate::channel::{Wait, threads};
use crate::error::{CallError, ConnectError};
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
        let conn = connect(&self.path, &self.options, None)?;
        let Some(policy) = self.reconnect else {
            return Ok(SharedMemoryClient { current: Arc::new(Current::fixed(conn)) });
        };
        let line = Mutex::new(conn);
        let renewal = Renewal {
            line,
            turn: Mutex::new(()),
            path: self.path,
            options: self.options,
            policy,
            closed: AtomicBool::new(false),
            background: AtomicBool::new(false),
            made: AtomicU64::new(0),
        };
        Ok(SharedMemoryClient { current: Arc::new(Current::Renewed(Arc::new(renewal))) })
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
        (self.first, self.cap) = (first.max(Duration::from_millis(1)), cap.max(first));
        self
    }

    /// How long one call tries, if its own deadline is not sooner; it fails with
    /// [`CallError::Unreachable`] then, and the next call tries again.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sends a call again that the server has answered as never begun, since it was about to end
    /// ([`CallError::ShuttingDown`]): for at most so long, and no longer than until the call's own deadline, with growing
    /// pauses. Default: never.
    ///
    /// So calls go through a server that is restarted in good order, and each runs once. A call that may have run is never sent
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

    /// Is told what was lost, once for each lost connection, by the thread that makes the next one. It must not
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
        match self.get(wait)?.call(method, request, buffer, wait) {
            Err(CallError::ShuttingDown) => self.call_again(method, request, buffer, wait),
            result => result,
        }
    }

    #[cold]
    fn call_again(
        self: &Arc<Self>,
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
            // Not in step with other callers that were sent away at the same moment.
            let step = pause / 2 + pause.mul_f64(jitter() / 2.0);
            let next = Instant::now().checked_add(step).filter(|next| last.is_none_or(|last| *next < last));
            let Some(next) = next else { return Err(CallError::ShuttingDown) };
            self.pause_until(next)?;
            match self.get(wait).and_then(|conn| conn.call(method, request, buffer, wait)) {
                Err(CallError::ShuttingDown) => pause = pause.saturating_mul(2).min(self.policy.cap),
                result => return result,
            }
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
                self.renew_in_background();
                Err(ended.into())
            }
            (Some(_), wait) => match nesting::limit(wait, Awaited::Answer) {
                Wait::Never => Err(CallError::Timeout),
                // Its time may have been too short for a handshake; the next call's may be as well.
                Wait::Until(until) => self.renew(until).inspect_err(|_| self.renew_in_background()),
            },
        }
    }

    /// Starts a thread that reconnects, unless there is one.
    #[cold]
    fn renew_in_background(self: &Arc<Self>) {
        if self.closed.load(Ordering::Relaxed) || self.background.swap(true, Ordering::AcqRel) {
            return;
        }
        let renewal = Arc::downgrade(self);
        let patience = Instant::now().checked_add(self.policy.patience);
        let started = threads::spawn("narrows-reconnect", move || {
            // In steps, so that a client that was dropped does not live on for long.
            while let Some(renewal) = renewal.upgrade() {
                let step = Instant::now() + BACKGROUND_STEP.max(renewal.policy.cap.saturating_mul(2));
                let until = patience.map_or(step, |patience| patience.min(step));
                let over =
                    renewal.renew(Some(until)).is_ok() || patience.is_some_and(|end| Instant::now() >= end);
                if over || renewal.closed.load(Ordering::Relaxed) {
                    renewal.background.store(false, Ordering::Release);
                    return;
                }
            }
        });
        if started.is_err() {
            self.background.store(false, Ordering::Release); // A call that waits reconnects by itself.
        }
    }

    #[cold]
    fn renew(&self, until: Option<Instant>) -> Result<Arc<Conn>, CallError> {
        let patience = Instant::now().checked_add(self.policy.patience);
        let give_up = match (patience, until) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let _turn = match give_up {
            None => self.turn.lock(),
            Some(at) => self.turn.try_lock_until(at).ok_or_else(|| late(until))?,
        };
        if self.closed.load(Ordering::Relaxed) {
            return Err(CallError::Closed);
        }
        let old = self.now();
        let Some(ended) = old.line.ended() else { return Ok(old) };
        // What the server sent before its end comes first, to those who wait for it. A hostile server could go on sending.
        let last_words = Instant::now().checked_add(LAST_WORDS).into_iter().chain(give_up).min();
        let _at_its_end = old.desk.wait(old.desk.pushed(), Wait::Until(last_words), |_| None::<()>);
        old.desk.end(ended);
        self.report(&old, ended.into());
        let new = self.persist(give_up)?;
        *self.line.lock() = Arc::clone(&new);
        self.made.fetch_add(1, Ordering::Relaxed);
        if self.closed.load(Ordering::Relaxed) {
            new.line.closer().close();
        } else if let Some(notice) = &self.policy.on_connected {
            notice();
        }
        Ok(new)
    }

    /// Tries until it succeeds or the time is over.
    fn persist(&self, give_up: Option<Instant>) -> Result<Arc<Conn>, CallError> {
        let mut pause = self.policy.first;
        loop {
            let error = match connect(&self.path, &self.options, give_up) {
                Ok(conn) => return Ok(conn),
                Err(error) => error,
            };
            let next = Instant::now().checked_add(pause).filter(|next| give_up.is_none_or(|at| *next < at));
            let Some(next) = next else { return Err(CallError::Unreachable(Box::new(error))) };
            self.pause_until(next)?;
            pause = pause.saturating_mul(2).min(self.policy.cap);
        }
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

    fn report(&self, old: &Conn, reason: CallError) {
        if let Some((calls, pushes)) = old.desk.lost() {
            if let Some(report) = &self.policy.on_loss {
                report(&Lost { reason, calls, pushes });
            }
        }
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

/// How long the thread in the background tries before it looks whether the client is still there.
const BACKGROUND_STEP: Duration = Duration::from_secs(1);

/// How long a pause goes on before it is looked whether the client was closed.
const SLICE: Duration = Duration::from_millis(20);

fn connect(path: &Path, options: &Options, limit: Option<Instant>) -> Result<Arc<Conn>, ConnectError> {
    let until = Instant::now().checked_add(options.connect_timeout_or_default());
    let until = match (until, limit) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
    Conn::greet(options.connect_timeout(path, left)?, options, until)
}

//! The options of connections: sizes, limits, the wait strategy, and which peers are trusted.
//!
//! Both sides use the same [`Options`]: a client *requests* the sizes, a server *allows* them, and the smaller of the
//! two numbers is used. The terminal methods (`bind`, `connect`, `pair`, `spawn`) are in the files of the types that
//! they return.
//!
//! # Invariants
//!
//! 1. Setters take any value. The terminal method validates all of them, once, before it does anything else.
//!
//! # Proof
//!
//! The tests below, and `tests/listener/handshake.rs`.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::channel::WaitStrategy;
use crate::handshake::{HandshakeLimits, MAX_MESSAGE};
use crate::layout::{Geometry, LAST_TICKET};
use crate::sys::socket::{self, PeerCred};

/// A builder for listeners and connections.
///
/// Defaults: 256 slots and an arena of 1 MiB in each direction, messages of up to 64 MiB, adaptive waiting, no
/// prefault, and only the same user (or root) as the peer.
///
/// ```
/// use std::time::Duration;
/// use narrows::{Options, WaitStrategy};
/// let options = Options::new()
///     .slots(1024) // Messages in each direction.
///     .arena(4 << 20) // Bytes in each direction.
///     .max_message(16 << 20)
///     .wait(WaitStrategy::Park)
///     .prefault(true)
///     .handshake_timeout(Duration::from_secs(1))
///     .backlog(16)
///     .authorize(|peer| peer.uid() == 0 || peer.uid() == 1000);
/// let (a, b) = options.pair()?;
/// assert_eq!((a.max_message(), b.max_message()), (16 << 20, 16 << 20));
///
/// // For remote calls also:
/// let options = options.max_calls_in_flight(16).stream_window(64 << 10).push_window(64 << 10);
/// let (a, b) = options.pair()?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Options {
    slots: u32,
    arena: u64,
    oob: u32,
    stream_window: u32,
    push_window: u32,
    max_message: usize,
    wait: WaitStrategy,
    prefault: bool,
    handshake_timeout: Option<Duration>,
    authorize: Option<Arc<Policy>>,
    backlog: u32,
    handshakes: u32,
    socket_mode: u32,
    socket_group: Option<u32>,
    wait_for_server: bool,
    first_ticket: u64,
}

impl Options {
    /// Returns the default options.
    pub fn new() -> Self {
        Self {
            slots: 256,
            arena: 1 << 20,
            oob: 64,
            stream_window: 1 << 20,
            push_window: 1 << 20,
            max_message: 64 << 20,
            wait: WaitStrategy::default(),
            prefault: false,
            handshake_timeout: None,
            authorize: None,
            backlog: 128,
            handshakes: 64,
            socket_mode: 0o600,
            socket_group: None,
            wait_for_server: false,
            first_ticket: 0,
        }
    }

    /// Sets how many messages a direction holds at most: a power of two from 1 to 65536. Default 256.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// Sets the bytes of the arena of each direction, which holds messages of more than 104 bytes: a power of two from
    /// 64 to 1 GiB. Default 1 MiB.
    ///
    /// The kernel allocates arena pages on the first write to them: about 32 KiB with light traffic, 1 MiB with
    /// messages of more than 32 KiB, and the whole arena with a sender that is that far ahead of its receiver.
    #[must_use]
    pub fn arena(mut self, bytes: u64) -> Self {
        self.arena = bytes;
        self
    }

    /// Sets how many calls of one connection may be in flight at once: a power of two from 1 to 256. Default 64.
    ///
    /// A further call waits until another has ended. Only [`SharedMemoryClient`](crate::SharedMemoryClient) and
    /// [`SharedMemoryServer`](crate::SharedMemoryServer) use it.
    #[must_use]
    pub fn max_calls_in_flight(mut self, calls: u32) -> Self {
        self.oob = calls;
        self
    }

    /// Sets how many bytes of one stream of chunks may be in flight towards this side, and the maximum length of a
    /// chunk.
    ///
    /// Each chunk counts 64 bytes more than its length. At least 1 KiB. Default 1 MiB. Only remote calls use it.
    #[must_use]
    pub fn stream_window(mut self, bytes: u32) -> Self {
        self.stream_window = bytes;
        self
    }

    /// Sets how many bytes of pushes a client buffers until the program takes them, and the maximum length of a push.
    ///
    /// Each push counts 64 bytes more than its length. At least 1 KiB. Default 1 MiB. Only remote calls use it.
    #[must_use]
    pub fn push_window(mut self, bytes: u32) -> Self {
        self.push_window = bytes;
        self
    }

    /// Sets the maximum length of a message, in bytes, from 1 to 4 GiB - 1. It may exceed the arena. Default 64 MiB.
    #[must_use]
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.max_message = bytes;
        self
    }

    /// Sets how blocked calls wait. Default [`WaitStrategy::Adaptive`].
    #[must_use]
    pub fn wait(mut self, strategy: WaitStrategy) -> Self {
        self.wait = strategy;
        self
    }

    /// Sets whether all memory is touched when the connection is made. Default no.
    ///
    /// Then no later call takes page faults for it, and a lack of memory is an error of the call that makes the
    /// connection. Touching takes a second or two for each GiB, inside `accept`, `connect`, `pair` or `spawn`, and no
    /// deadline ends it early. A listener that sets this should keep its arenas small, since other clients wait
    /// meanwhile.
    #[must_use]
    pub fn prefault(mut self, prefault: bool) -> Self {
        self.prefault = prefault;
        self
    }

    /// Sets how long a whole handshake may take. Default 5 s for connect and spawn, and 1 s for each client that a
    /// listener is about to accept. A timeout that overflows `Instant` means no deadline.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = Some(timeout);
        self
    }

    /// Sets the policy that decides, by the credentials of the peer, whether to make a connection with it: on a
    /// listener for each client, on a client for the server. Default: the same user, or root.
    ///
    /// The policy runs inside `accept` and `connect`, so it must not block.
    ///
    /// The default policy asks the kernel for the user of this process, and not the C library, whose answer `fakeroot`
    /// and `proot` change. In a user namespace that does not map all users (most containers) it trusts no peer that is
    /// shown as the overflow uid (65534, `nobody`), since the kernel shows every unmapped user so; a policy of the
    /// program's own has to consider that too. Run such programs as another user of the namespace.
    /// [`spawn`](Options::spawn) and [`pair`](Options::pair) ask no policy.
    #[must_use]
    pub fn authorize(mut self, policy: impl Fn(&PeerCred) -> bool + Send + Sync + 'static) -> Self {
        self.authorize = Some(Arc::new(policy));
        self
    }

    /// Sets how many clients the kernel lets wait for `accept`, at least 1. Default 128.
    #[must_use]
    pub fn backlog(mut self, clients: u32) -> Self {
        self.backlog = clients;
        self
    }

    /// Sets how many clients of a listener may be in mid-handshake at once, from 1 to 1024. Default 64.
    ///
    /// A client takes a slot until its handshake is complete. While a slot is free, a silent client keeps its own up to
    /// the handshake's timeout. Once all slots are taken, the next client takes the slot of a client that has held it
    /// for 100 ms or more: the oldest one of the process that holds the most slots. So a process that opens connections
    /// and stays silent delays other clients, but cannot keep them out. The delay is 100 ms for each `max_handshakes`
    /// silent clients that came earlier. Their number is at most [`backlog`](Self::backlog) and one for each thread
    /// that waits for room in it; the kernel lets those threads in by turns.
    ///
    /// ```
    /// let folder = tempfile::tempdir()?;
    /// let options = narrows::Options::new().max_handshakes(256).backlog(1024);
    /// let listener = options.bind(folder.path().join("socket"))?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn max_handshakes(mut self, clients: u32) -> Self {
        self.handshakes = clients;
        self
    }

    /// Sets the mode of the socket's file, independent of the umask. Default 0600: only its owner may connect.
    ///
    /// The socket has its mode before a client can connect. A client that the mode allows must also pass
    /// [`authorize`](Self::authorize).
    ///
    /// ```
    /// use std::os::unix::fs::PermissionsExt;
    /// use narrows::Options;
    /// let folder = tempfile::tempdir()?;
    /// let listener = Options::new()
    ///     .socket_mode(0o660) // With `socket_group(GID)`, the group's members may connect.
    ///     .authorize(|peer| peer.uid() == 1000 || peer.gid() == 100)
    ///     .bind(folder.path().join("socket"))?;
    /// let mode = std::fs::metadata(listener.local_path())?.permissions().mode();
    /// assert_eq!(mode & 0o777, 0o660);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn socket_mode(mut self, mode: u32) -> Self {
        self.socket_mode = mode;
        self
    }

    /// Sets the group of the socket's file: one that this process is a member of, or any for root. Default: the group
    /// of the process.
    ///
    /// The socket has its group before a client can connect. `bind` fails if the process may not set the group.
    ///
    /// ```
    /// use std::os::unix::fs::MetadataExt;
    /// let folder = tempfile::tempdir()?;
    /// let gid = std::fs::metadata(folder.path())?.gid(); // One that this process may set.
    /// let options = narrows::Options::new().socket_mode(0o660).socket_group(gid);
    /// let listener = options.bind(folder.path().join("socket"))?;
    /// assert_eq!(std::fs::metadata(listener.local_path())?.gid(), gid);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn socket_group(mut self, gid: u32) -> Self {
        self.socket_group = Some(gid);
        self
    }

    /// Sets whether `connect` waits for a server to appear, until its deadline. Default no: if the path is missing, or
    /// no server listens at it, `connect` fails at once.
    ///
    /// ```
    /// use std::time::Duration;
    /// use narrows::{Options, SharedMemoryListener};
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("socket");
    /// let server = std::thread::spawn({
    ///     let path = path.clone();
    ///     move || SharedMemoryListener::bind(path)?.accept().map_err(std::io::Error::from)
    /// });
    /// let client = Options::new().wait_for_server(true).connect_timeout(&path, Duration::from_secs(10))?;
    /// server.join().unwrap()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn wait_for_server(mut self, wait: bool) -> Self {
        self.wait_for_server = wait;
        self
    }

    /// Sets the ticket with which a server's connections begin. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn first_ticket(mut self, ticket: u64) -> Self {
        self.first_ticket = ticket;
        self
    }

    /// Validates all numbers, and returns those of the handshake.
    pub(crate) fn limits(&self) -> Result<HandshakeLimits, String> {
        let geometry = Geometry::new(self.slots, self.arena, self.oob).map_err(|bad| bad.to_string())?;
        let max_message = self.max_message as u64;
        if !(1..=MAX_MESSAGE).contains(&max_message) {
            return Err(format!("max_message must be from 1 to {MAX_MESSAGE}, not {max_message}"));
        }
        for (name, window) in [("stream_window", self.stream_window), ("push_window", self.push_window)] {
            if window < MIN_WINDOW {
                return Err(format!("{name} must be at least {MIN_WINDOW}, not {window}"));
            }
        }
        if self.backlog == 0 {
            return Err("backlog must be at least 1, not 0".into());
        }
        if !(1..=1024).contains(&self.handshakes) {
            return Err(format!("max_handshakes must be from 1 to 1024, not {}", self.handshakes));
        }
        if self.socket_mode > 0o777 {
            return Err(format!("socket_mode must be from 0 to 0777, not {:#o}", self.socket_mode));
        }
        if self.first_ticket > LAST_TICKET {
            return Err(format!("first_ticket must be at most {LAST_TICKET}, not {}", self.first_ticket));
        }
        Ok(HandshakeLimits { geometry, max_message, first_ticket: self.first_ticket })
    }

    /// Decides whether to trust this peer. It asks the kernel for the user of this process each time, as it may have
    /// changed.
    ///
    /// # Errors
    ///
    /// The reason not to trust the peer; [`Untrusted::Unknown`] if the system call failed.
    pub(crate) fn authorizes(&self, peer: &PeerCred) -> Result<(), Untrusted> {
        let uid = peer.uid();
        if let Some(policy) = &self.authorize {
            return if policy(peer) { Ok(()) } else { Err(Untrusted::ByPolicy) };
        }
        if uid != 0 {
            let own = PeerCred::own().map_err(Untrusted::Unknown)?.uid();
            if uid != own {
                return Err(Untrusted::OtherUser { uid, own });
            }
        }
        if socket::is_ambiguous(uid) { Err(Untrusted::Ambiguous { uid }) } else { Ok(()) }
    }

    pub(crate) fn connect_timeout_or_default(&self) -> Duration {
        self.handshake_timeout.unwrap_or(Duration::from_secs(5))
    }

    pub(crate) fn accept_timeout_or_default(&self) -> Duration {
        self.handshake_timeout.unwrap_or(Duration::from_secs(1))
    }

    pub(crate) fn is_prefault(&self) -> bool {
        self.prefault
    }

    pub(crate) fn backlog_len(&self) -> i32 {
        i32::try_from(self.backlog).unwrap_or(i32::MAX)
    }

    pub(crate) fn max_handshakes_or_default(&self) -> usize {
        self.handshakes as usize
    }

    /// Returns the group and the mode of the socket's file, if they differ from those with which `bind` makes it.
    pub(crate) fn sharing(&self) -> Option<(Option<u32>, u32)> {
        let differs = self.socket_mode != 0o600 || self.socket_group.is_some();
        differs.then_some((self.socket_group, self.socket_mode))
    }

    pub(crate) fn waits_for_server(&self) -> bool {
        self.wait_for_server
    }

    /// Returns the windows of streams and of pushes.
    pub(crate) fn windows(&self) -> (u32, u32) {
        (self.stream_window, self.push_window)
    }

    /// Returns a text about a size that was set here and that an existing connection does not have, if there is one.
    pub(crate) fn contradiction(&self, is: &Geometry, max_message: usize) -> Option<String> {
        let default = Self::new();
        let chosen = [
            ("slots", u64::from(self.slots), u64::from(default.slots), u64::from(is.slots())),
            ("arena", self.arena, default.arena, is.arena()),
            ("max_calls_in_flight", self.oob.into(), default.oob.into(), is.oob().into()),
            ("max_message", self.max_message as u64, default.max_message as u64, max_message as u64),
        ];
        chosen.into_iter().find(|(_, wanted, default, is)| wanted != default && wanted != is).map(|(name, wanted, _, is)| {
            format!("{name} is {wanted}, but the connection was made with {is}: choose it on both sides where it is made")
        })
    }

    /// Returns whether the number of calls in flight was set. The two sides agree on it when a connection is made.
    pub(crate) fn bounds_calls(&self) -> bool {
        self.oob != Self::new().oob
    }

    /// Returns how blocked calls wait.
    pub(crate) fn strategy(&self) -> WaitStrategy {
        self.wait
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("slots", &self.slots)
            .field("arena", &self.arena)
            .field("max_message", &self.max_message)
            .field("wait", &self.wait)
            .field("prefault", &self.prefault)
            .field("handshake_timeout", &self.handshake_timeout)
            .field("authorize", &self.authorize.as_ref().map_or("same user or root", |_| "a closure"))
            .field("backlog", &self.backlog)
            .finish_non_exhaustive()
    }
}

/// Why a peer is not trusted.
#[derive(Debug)]
pub(crate) enum Untrusted {
    /// The program's own policy refuses the peer.
    ByPolicy,
    /// The peer's user is neither that of this process nor root.
    OtherUser { uid: u32, own: u32 },
    /// The peer's user id stands for all users that this process's user namespace does not map.
    Ambiguous { uid: u32 },
    /// The system call that returns the user of this process failed.
    Unknown(io::Error),
}

impl Untrusted {
    /// Returns the reason as a text for the peer, in the 64 bytes that a refusal holds.
    pub(crate) fn to_peer(&self) -> String {
        match self {
            Self::ByPolicy => "see the server's Options::authorize".into(),
            Self::OtherUser { uid, own } => {
                format!("user {uid} is not {own}, the server's: see authorize")
            }
            Self::Ambiguous { uid } => format!("user {uid} is any that the server's namespace does not map"),
            Self::Unknown(error) => error.to_string(),
        }
    }
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByPolicy => f.write_str("Options::authorize refuses it"),
            Self::OtherUser { uid, own } => {
                write!(f, "user {uid} is neither this process's, {own}, nor root: see Options::authorize")
            }
            Self::Ambiguous { uid } => write!(
                f,
                "in this user namespace {uid} is the number of every user that it does not map, so it is not known to be this \
                 process's: run both processes as a user that is mapped under another number, or see Options::authorize"
            ),
            Self::Unknown(error) => write!(f, "asking the kernel for the user of this process: {error}"),
        }
    }
}

/// The smallest window of a stream, and of pushes, in bytes. `rpc/preface.rs` holds it to the number of the protocol.
pub(crate) const MIN_WINDOW: u32 = 1024;

type Policy = dyn Fn(&PeerCred) -> bool + Send + Sync;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_short_enough_for_the_peer() {
        let (uid, own) = (u32::MAX - 1, u32::MAX - 2);
        for why in
            [Untrusted::ByPolicy, Untrusted::OtherUser { uid, own }, Untrusted::Ambiguous { uid: 65534 }]
        {
            let text = why.to_peer();
            assert!(text.len() <= 64, "{} bytes: {text}", text.len());
        }
    }

    #[test]
    fn illegal_numbers_are_named() {
        let bad = |options: Options, name: &str| {
            let text = options.limits().expect_err("illegal");
            assert!(text.starts_with(&format!("{name} must be ")), "{text}");
        };
        assert!(Options::new().limits().is_ok());
        bad(Options::new().slots(3), "slots");
        bad(Options::new().arena(0), "arena");
        bad(Options::new().max_calls_in_flight(3), "max_calls_in_flight");
        bad(Options::new().stream_window(1023), "stream_window");
        bad(Options::new().push_window(0), "push_window");
        bad(Options::new().max_message(0), "max_message");
        bad(Options::new().max_message(usize::MAX), "max_message");
        bad(Options::new().backlog(0), "backlog");
        bad(Options::new().max_handshakes(0), "max_handshakes");
        bad(Options::new().socket_mode(0o1777), "socket_mode");
        bad(Options::new().first_ticket(u64::MAX), "first_ticket");
    }
}

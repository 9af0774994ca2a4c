//! The table of all error texts that a user can see, with their causes.
//!
//! Each variant has a row (several, if the text depends on the value): the value, its text, and the cause. A new
//! variant without a row does not compile. A changed text fails the test, which prints both texts.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::*;

/// One text.
struct Row {
    /// The type and the variant.
    of: (&'static str, &'static str),
    text: String,
    expected: &'static str,
    cause: &'static str,
    source: Option<String>,
}

/// The rows of an enum, as `Variant(value), "text", "cause";`.
macro_rules! rows {
    ($name:ident: $($variant:ident $value:expr, $text:expr, $cause:literal;)*) => {{
        // Several rows may have the same variant, so later arms for it are unreachable.
        #[allow(unreachable_patterns)]
        fn variant(error: &$name) -> &'static str {
            match error {
                $( $name::$variant { .. } => stringify!($variant), )*
            }
        }
        let mut rows = Vec::new();
        $( {
            let error: $name = $value;
            assert_eq!(variant(&error), stringify!($variant));
            rows.push(Row {
                of: (stringify!($name), stringify!($variant)),
                text: error.to_string(),
                expected: $text,
                cause: $cause,
                source: source_of(&error),
            });
        } )*
        rows
    }};
}

/// Returns the text of the next error in the chain.
fn source_of<T: Display + 'static>(error: &T) -> Option<String> {
    let any: &dyn std::any::Any = error;
    macro_rules! source {
        ($($name:ident)*) => {
            $( if let Some(error) = any.downcast_ref::<$name>() {
                return error.source().map(ToString::to_string);
            } )*
        };
    }
    source!(ConnectError BindError AcceptError SpawnError HandshakeError CallError ServeError);
    source!(SendError TrySendError SendTimeoutError RecvError TryRecvError RecvTimeoutError);
    None // `RejectCode` does not implement `Error`.
}

fn system(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// Returns the error of a system call with this name.
fn call(name: &'static str, number: i32) -> io::Error {
    io::Error::new(system(number).kind(), FailedCall { call: name, source: system(number) })
}

const EPERM: i32 = 1;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const ENOENT: i32 = 2;
const EMFILE: i32 = 24;
const ECONNREFUSED: i32 = 111;

fn setup() -> Vec<Row> {
    let io = |number| ConnectError::Io { doing: "connecting".into(), source: system(number) };
    let mut rows = rows! { ConnectError:
        BadOptions ConnectError::BadOptions("x".into()), "illegal options: x", "a number out of its range";
        Io io(ENOENT), "connecting (start the server first, or check the path)", "nothing at the path";
        Io io(ECONNREFUSED), "connecting (no server listens there: start it)", "a socket that a killed server left";
        Io io(EACCES), "connecting", "a socket or directory that is closed to this user";
        Io io(EMFILE), "connecting (raise this process's limit of open files, RLIMIT_NOFILE)", "no descriptor left";
        NotASocket ConnectError::NotASocket, "what stands at the path is not a socket: check the path", "another file at the path";
        ServerEnded ConnectError::ServerEnded { pid: 7 }, "the server does not answer: process 7, which listened there, has ended, but a process that it forked holds its socket: stop that one (`ss -xlp` names it), then start the server", "a fork that keeps the socket of a killed server";
        Timeout ConnectError::Timeout, "the server did not answer in time: is it calling accept, and is it a narrows server?", "a server that does not accept";
        Rejected ConnectError::Rejected { code: RejectCode::Busy, text: "x".into() }, "the server refused (the server takes no more clients now): x", "a server at its limit";
        BacklogFull ConnectError::BacklogFull, "the queue of waiting clients is full: the server does not accept, or a process that it forked holds its socket after its end: `ss -xlp` names the process", "more attempts than the backlog takes";
        NotAuthorized ConnectError::NotAuthorized { uid: 7, text: "x".into() }, "the server runs as user 7, which is not trusted: x", "a server of another user";
        BadMemfd ConnectError::BadMemfd("x".into()), "the server's memory cannot be trusted: x", "a hostile server";
        NoDescriptor ConnectError::NoDescriptor, "the server sent no memory with its answer", "a hostile server";
        SurplusDescriptors ConnectError::SurplusDescriptors, "the server sent more than one descriptor", "a hostile server";
        Truncated ConnectError::Truncated, "the memory did not arrive: a security module (SELinux, AppArmor) or a filter may have removed its descriptor", "a security module";
        PeerClosed ConnectError::PeerClosed, "the server closed the connection in mid-handshake: it ended, it allows less time for a handshake than this process took (Options::handshake_timeout of the server), or it is not a narrows server", "a server that ended, or of another kind";
        BadAnswer ConnectError::BadAnswer(HandshakeError::BadMagic), "the server's answer makes no sense", "another program at the path";
        NoParent ConnectError::NoParent, "no parent handed a connection over: start this program with SharedMemoryStream::spawn", "started by hand";
        ParentTaken ConnectError::ParentTaken, "the parent's connection was taken before, by this process or another one that inherited it", "from_parent called twice";
        BadParent ConnectError::BadParent("x".into()), "the parent's connection is not here: x", "a wrapper that closes descriptors";
        NoCalls ConnectError::NoCalls, "the peer serves no calls: it must be a SharedMemoryServer, not a plain listener or stream", "an RPC client at a plain listener";
    };
    rows.extend(rows! { BindError:
        BadOptions BindError::BadOptions("x".into()), "illegal options: x", "a number out of its range";
        NotASocket BindError::NotASocket, "something that is not a socket stands at the path: move it away", "another file at the path";
        InUse BindError::InUse, "a live server listens at the path: stop it, or choose another path", "a second server";
        HeldByFork BindError::HeldByFork { pid: 7 }, "process 7, which listened at the path, has ended, but a process that it forked still holds its socket: stop that one (`ss -xlp` names it)", "a fork that keeps the socket of a killed server";
        BacklogFull BindError::BacklogFull, "a socket whose queue of waiting clients is full is at the path: its server does not accept, or a process that it forked holds the socket after its end: `ss -xlp` names the process", "more attempts than the backlog takes";
        Locked BindError::Locked, "another process holds the lock file beside the path: is it about to bind there, or stopped?", "a process that was stopped while it bound the path";
        Io BindError::Io { doing: "binding".into(), source: system(EACCES) }, "binding", "a directory that is closed to this user";
        Io BindError::io("listening")(call("fchownat", EPERM)), "listening (be a member of the group, or root, to give the socket to it)", "Options::socket_group of another group";
        Io BindError::io("listening")(call("fchownat", EINVAL)), "listening (the user namespace does not map the group)", "Options::socket_group in a container";
        Io BindError::io("locking")(call("open the lock file", ENOSPC)), "locking (the file system is full, or the user's quota is used up: a socket and its lock file take an inode each)", "a full file system";
    });
    rows.extend(rows! { AcceptError:
        WouldBlock AcceptError::WouldBlock, "no client has completed its handshake yet", "no client now";
        Timeout AcceptError::Timeout, "the deadline passed before a client connected", "no client in time";
        Closed AcceptError::Closed, "the listener was closed", "its closer";
        Forked AcceptError::Forked, "the listener belongs to the process that forked this one: bind a new one here", "a fork";
        DescriptorsClosed AcceptError::DescriptorsClosed, "the program closed the descriptors of the listener (close_range, closefrom): bind a new one after that", "a program that closes all descriptors";
        Io AcceptError::Io(system(EMFILE)), "accepting a client (raise this process's limit of open files, RLIMIT_NOFILE)", "no descriptor left";
    });
    rows.extend(rows! { SpawnError:
        BadOptions SpawnError::BadOptions("x".into()), "illegal options: x", "a number out of its range";
        Io SpawnError::Io { doing: "starting the child".into(), source: system(ENOENT) }, "starting the child", "no such program";
        Io SpawnError::Io { doing: "making a pair of sockets".into(), source: system(EMFILE) }, "making a pair of sockets (raise this process's limit of open files, RLIMIT_NOFILE)", "no descriptor left";
        Timeout SpawnError::Timeout, "no process took the child's connection in time: does the child call SharedMemoryStream::from_parent, and if a wrapper starts it (sudo, docker run, Python's close_fds=True), did the wrapper pass the descriptor that NARROWS_PARENT names on?", "another program";
        ChildExited SpawnError::ChildExited(ExitStatus::from_raw(256)), "the child ended (exit status: 1), and no process took its connection: does it call SharedMemoryStream::from_parent, and if a wrapper starts it (sudo, docker run, Python's close_fds=True), did the wrapper pass the descriptor that NARROWS_PARENT names on?", "another program";
        ChildClosed SpawnError::ChildClosed, "the child closed its connection in mid-handshake", "a child that failed";
        Handshake SpawnError::Handshake(HandshakeError::BadMagic), "the child's handshake makes no sense", "a child that writes to the descriptor";
    });
    rows
}

fn handshake() -> Vec<Row> {
    let mut rows = rows! { HandshakeError:
        BadMagic HandshakeError::BadMagic, "the peer does not speak this protocol", "another program";
        BadVersions HandshakeError::BadVersions { min: 2, max: 1 }, "versions from 2 to 1 make no sense", "a hostile peer";
        NoCommonVersion HandshakeError::NoCommonVersion { min: 8, max: 9 }, "the peer speaks protocol versions 8 to 9, this side 2: use the same release on both sides", "another release";
        UnknownFeatures HandshakeError::UnknownFeatures(6), "the peer needs unknown features 0x6", "another release";
        FeaturesNotOffered HandshakeError::FeaturesNotOffered(6), "the peer needs features that it does not offer: 0x6", "a hostile peer";
        UnexpectedDescriptor HandshakeError::UnexpectedDescriptor, "a descriptor came where none belongs", "a hostile peer";
        BadAcknowledgement HandshakeError::BadAcknowledgement(3), "the memory was acknowledged by 0x03, which means nothing", "a hostile peer";
        NotSealed HandshakeError::NotSealed, "the memory was acknowledged without being sealed", "a hostile peer";
        BadGeometry HandshakeError::BadGeometry { slots: 3, arena: 5, oob: 7 }, "3 slots, 5 bytes, 7 out-of-band words: no legal geometry", "a hostile peer";
        BadMaxMessage HandshakeError::BadMaxMessage(0), "a longest message of 0 bytes is not legal", "a hostile peer";
        BadTicket HandshakeError::BadTicket(u64::MAX), "a first ticket of 18446744073709551615 is not legal", "a hostile peer";
        BadRegionLen HandshakeError::BadRegionLen { is: 1, needed: 2 }, "a region of 1 bytes does not fit a geometry of 2 bytes", "a hostile peer";
        UnknownKind HandshakeError::UnknownKind(9), "an answer of unknown kind 9", "another release";
        BadText HandshakeError::BadText, "the refusal's text cannot be shown", "a hostile peer";
        ReservedNotZero HandshakeError::ReservedNotZero, "reserved bytes are not zero", "another release";
        MoreThanWanted HandshakeError::MoreThanWanted, "the server grants more than was asked for", "a hostile peer";
        WrongNonce HandshakeError::WrongNonce, "the nonce is not the one that was handed over", "another process at the descriptor";
        Surplus HandshakeError::Surplus, "bytes came after the end of the message", "a hostile peer";
    };
    rows.extend(rows! { RejectCode:
        BadHello RejectCode::BadHello, "the hello made no sense", "another program";
        Version RejectCode::Version, "no common version", "another release";
        Features RejectCode::Features, "unknown features", "another release";
        Geometry RejectCode::Geometry, "no legal geometry", "a client of another implementation";
        MaxMessage RejectCode::MaxMessage, "no legal longest message", "a client of another implementation";
        NotAuthorized RejectCode::NotAuthorized, "this user is not let in", "a client of another user";
        Unavailable RejectCode::Unavailable, "out of memory or descriptors", "a server at a limit of the system";
        WrongNonce RejectCode::WrongNonce, "wrong nonce", "another process at the descriptor";
        Busy RejectCode::Busy, "the server takes no more clients now", "a server at its own limit";
        Refused RejectCode::Refused, "its program does not take this client", "a server whose on_connect refuses";
        Other RejectCode::Other(99), "code 99", "another release";
    });
    rows
}

/// The texts of the five ways in which a connection ends. All errors of sending, receiving and calling share them.
mod end {
    pub(super) const DISCONNECTED: &str = "the peer closed the connection";
    pub(super) const DIED: &str = "the peer's process died";
    pub(super) const CLOSED: &str = "this end was closed by this process";
    pub(super) const VIOLATED: &str = "the peer broke the protocol";
    pub(super) const FORKED: &str =
        "the connection belongs to the process that forked this one: make a new one here";
}

/// The rows of an enum, and its rows for the five ways in which a connection ends.
macro_rules! ending_rows {
    ($name:ident: $($row:tt)*) => {
        rows! { $name: $($row)*
            ConnectionLost $name::ConnectionLost(ConnectionError::Disconnected), end::DISCONNECTED, "the peer closed, or hung up and lives";
            ConnectionLost $name::ConnectionLost(ConnectionError::PeerDied), end::DIED, "the peer was killed or crashed";
            ConnectionLost $name::ConnectionLost(ConnectionError::Closed), end::CLOSED, "this process closed";
            ConnectionLost $name::ConnectionLost(ConnectionError::ProtocolViolation), end::VIOLATED, "a hostile peer";
            ConnectionLost $name::ConnectionLost(ConnectionError::Forked), end::FORKED, "a fork of the process that connected";
        }
    };
}

const EXHAUSTED: &str = "this direction has carried all the messages that it can: make a new connection";
const TOO_LARGE: &str = "a message of 9 bytes is too large: this call takes at most 8";
const NO_MEMORY: &str =
    "there is no memory for the message of 9 bytes: it was kept, receive it when there is";
const TOO_SMALL: &str = "the message has 9 bytes, more than the buffer holds: it was kept for a larger one";

fn messages() -> Vec<Row> {
    let mut rows = ending_rows! { SendError:
        TooLarge SendError::TooLarge { len: 9, max: 8 }, TOO_LARGE, "above max_message";
        Exhausted SendError::Exhausted, EXHAUSTED, "2^63 messages";
    };
    rows.extend(ending_rows! { TrySendError:
        WouldBlock TrySendError::WouldBlock, "there is no room for the message now", "a receiver that is behind";
        TooLargeToTry TrySendError::TooLargeToTry { len: 9 }, "a message of 9 bytes never fits at once: use a send that may block", "larger than the ring";
        TooLarge TrySendError::TooLarge { len: 9, max: 8 }, TOO_LARGE, "above max_message";
        Exhausted TrySendError::Exhausted, EXHAUSTED, "2^63 messages";
    });
    rows.extend(ending_rows! { SendTimeoutError:
        Timeout SendTimeoutError::Timeout, "the deadline passed: the message was not delivered", "a receiver that is behind";
        TooLarge SendTimeoutError::TooLarge { len: 9, max: 8 }, TOO_LARGE, "above max_message";
        Exhausted SendTimeoutError::Exhausted, EXHAUSTED, "2^63 messages";
    });
    rows.extend(ending_rows! { RecvError:
        OutOfMemory RecvError::OutOfMemory { needed: 9 }, NO_MEMORY, "an address space that is used up";
        BufferTooSmall RecvError::BufferTooSmall { needed: 9 }, TOO_SMALL, "a buffer of fewer bytes";
    });
    rows.extend(ending_rows! { TryRecvError:
        WouldBlock TryRecvError::WouldBlock, "there is no message now", "a sender that has sent nothing";
        OutOfMemory TryRecvError::OutOfMemory { needed: 9 }, NO_MEMORY, "an address space that is used up";
        BufferTooSmall TryRecvError::BufferTooSmall { needed: 9 }, TOO_SMALL, "a buffer of fewer bytes";
    });
    rows.extend(ending_rows! { RecvTimeoutError:
        Timeout RecvTimeoutError::Timeout, "the deadline passed before a message came", "a sender that has sent nothing";
        OutOfMemory RecvTimeoutError::OutOfMemory { needed: 9 }, NO_MEMORY, "an address space that is used up";
        BufferTooSmall RecvTimeoutError::BufferTooSmall { needed: 9 }, TOO_SMALL, "a buffer of fewer bytes";
    });
    rows
}

fn calls() -> Vec<Row> {
    let lost = || Box::new(ConnectError::NotASocket);
    let mut rows = ending_rows! { CallError:
        UnknownMethod CallError::UnknownMethod, "the server has no such method", "a number that was not registered";
        WrongKind CallError::WrongKind(MethodKind::Streaming), "the method is not called this way: it streams its reply: use `call_streaming`", "call of a streaming method";
        Failed CallError::Failed(HandlerError::new(2, "x")), "the method failed: x (code 2)", "the method's own error";
        Panicked CallError::Panicked { message: "x".into() }, "the method panicked: x", "a bug in the method";
        ReplyTooLarge CallError::ReplyTooLarge { len: 9, max: 8 }, "the reply of 9 bytes is too large: this connection takes at most 8", "above max_message";
        Busy CallError::Busy(BusyReason::Queue), "the server is busy, try again later: too many calls wait for a worker", "a queue that is full";
        ShuttingDown CallError::ShuttingDown, "the server is about to end", "a server's shutdown";
        TooLarge CallError::TooLarge { len: 9, max: 8 }, "9 bytes are too large: this connection takes at most 8", "above max_message";
        Timeout CallError::Timeout, "the deadline passed before the reply came", "a method that takes long";
        Cancelled CallError::Cancelled, "the call was cancelled", "a canceller";
        WouldDeadlock CallError::WouldDeadlock, "only this thread could end the wait: use `method` instead of `inline`, or more workers", "a call to oneself";
        OutOfMemory CallError::OutOfMemory, "there is no memory for the reply or a chunk: ask for less at once", "an address space that is used up";
        Taken CallError::Taken, "the reply was taken before", "wait called twice";
        WouldBlock CallError::WouldBlock, "the call would have to wait", "a call that never blocks";
        Codec CallError::Codec("x".into()), "the value could not be serialized or deserialized", "different types on both sides";
        Exhausted CallError::Exhausted, "the connection has carried all the messages that it can: make a new one", "2^63 messages";
        ReconnectFailed CallError::ReconnectFailed(lost()), "reconnecting failed", "a server that is gone";
    };
    for (error, expected) in [(HandlerError::from("x"), "x"), (HandlerError::new(2, "x"), "x (code 2)")] {
        rows.push(Row {
            of: ("HandlerError", "HandlerError"),
            text: error.to_string(),
            expected,
            cause: "the method's own text",
            source: None, // It is the text of another error, and no error itself.
        });
    }
    for reason in [
        BusyReason::Queue,
        BusyReason::ProcessQueue,
        BusyReason::Methods,
        BusyReason::Memory,
        BusyReason::Threads,
    ] {
        assert_eq!(BusyReason::from_number(reason.number()), reason);
    }
    rows.extend(rows! { ServeError:
        NotStarted ServeError::NotStarted(BindError::InUse), "the server could not be started", "a method that was registered twice";
        ConnectionLost ServeError::ConnectionLost(ConnectionError::PeerDied), end::DIED, "the client was killed or crashed";
    });
    rows.extend(rows! { BusyReason:
        Queue BusyReason::Queue, "too many calls wait for a worker", "calls that come faster than the workers serve them";
        ProcessQueue BusyReason::ProcessQueue, "too many calls of this client's process wait for a worker", "one process that calls faster than the workers serve it";
        Methods BusyReason::Methods, "too many methods run for this client", "streams, or cancelled calls whose methods go on";
        Memory BusyReason::Memory, "there is no memory for the request", "an address space that is used up";
        Threads BusyReason::Threads, "there is no thread for the method", "a limit of threads";
        Other BusyReason::Other(9), "reason 9", "another release";
    });
    rows.extend(rows! { MethodKind:
        Unary MethodKind::Unary, "it is called by `call`", "a plain method";
        Streaming MethodKind::Streaming, "it streams its reply: use `call_streaming`", "a streaming method";
        Upload MethodKind::Upload, "it takes an upload: use `start_upload`", "an upload method";
        Duplex MethodKind::Duplex, "it streams both ways: use `start_duplex`", "a duplex method";
    });
    rows
}

fn all() -> Vec<Row> {
    [setup(), handshake(), messages(), calls()].into_iter().flatten().collect()
}

#[test]
fn each_text_is_what_a_user_was_promised() {
    let wrong: Vec<_> = all().into_iter().filter(|row| row.text != row.expected).collect();
    for Row { of: (name, variant), text, expected, .. } in &wrong {
        println!("{name}::{variant}\n  is       {text:?}\n  expected {expected:?}");
    }
    assert!(wrong.is_empty(), "{} texts are others than this table has", wrong.len());
}

#[test]
fn each_text_is_a_phrase_of_its_own_in_plain_words() {
    // Older texts used these words, which only a reader of the sources understood.
    let retired = [
        "whoever",
        "nobody",
        "tell",
        "tells",
        "told",
        "say",
        "says",
        "lie",
        "lies",
        "liar",
        "bed",
        "nudge",
        "judge",
        "rouse",
        "fate",
        "bury",
        "urgent word",
        "for ever",
        "who waits",
    ];
    let rows = all();
    for Row { of, text, cause, .. } in &rows {
        assert!(
            !text.starts_with(char::is_uppercase) && !text.ends_with('.') && !text.contains('\n'),
            "{of:?}: {text}"
        );
        assert!(!text.is_empty() && !cause.is_empty(), "{of:?}");
        let words = format!(" {} ", text.replace(|c: char| !c.is_alphanumeric(), " "));
        let old = retired.iter().find(|word| words.contains(&format!(" {word} ")));
        assert!(old.is_none(), "{of:?}: {text}: {old:?}");
        let same = rows.iter().find(|other| other.of.0 == of.0 && other.of.1 != of.1 && other.text == *text);
        assert!(same.is_none(), "{of:?} and {:?} have one text", same.map(|same| same.of));
    }
}

/// A reporter that walks the chain of sources prints each text once.
#[test]
fn no_text_repeats_the_text_of_its_source() {
    for Row { of, text, source, .. } in all() {
        assert!(source.is_none_or(|source| !text.contains(&source)), "{of:?}: {text}");
    }
}

/// Prints every text as a user sees it, for a reader: `cargo test -p narrows-tests --lib texts -- --nocapture`.
#[test]
fn all_texts_can_be_read() {
    for Row { of: (name, variant), text, cause, source, .. } in all() {
        let source = source.map_or_else(String::new, |source| format!("\n    because: {source}"));
        println!("{name}::{variant}\n    {text}{source}\n    when: {cause}");
    }
}

/// `docs/operations.md` has a row for each variant, with its cause and what to do.
#[test]
fn each_variant_is_in_the_operations_guide() {
    let guide = include_str!("../../docs/operations.md");
    let tables = guide
        .split("\n## Troubleshooting")
        .nth(1)
        .and_then(|it| it.split("\n## ").next())
        .expect("a section");
    let quoted: Vec<_> = tables.split('`').skip(1).step_by(2).flat_map(|it| it.split("::")).collect();
    for Row { of: (name, variant), .. } in all() {
        // These are parts of other errors, and the guide has the causes that a user can do something about.
        if !["HandshakeError", "RejectCode", "HandlerError", "MethodKind", "BusyReason"].contains(&name) {
            assert!(quoted.contains(&variant), "{name}::{variant} has no row");
        }
    }
}

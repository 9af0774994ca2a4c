//! The small public types: the texts and conversions of errors, what is printed for a person, and what each half reports.

#![allow(unsafe_code)]

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use crate::support::whole;
use narrows::internal::ProtocolViolation;
use narrows::{
    AcceptError, BindError, ConnectError, ConnectionError, HandshakeError, Options, RecvError,
    RecvTimeoutError, RejectCode, SendError, SendTimeoutError, SharedMemoryListener, SharedMemoryStream,
    SpawnError, TryRecvError, TrySendError,
};

/// Checks that an error converts into an `io::Error` of this kind which keeps its text, and that the text contains `part`.
#[track_caller]
fn is<E: Into<io::Error> + Error>(error: E, kind: ErrorKind, part: &str) {
    let text = error.to_string();
    assert!(whole(&error).contains(part), "{}", whole(&error));
    let error: io::Error = error.into();
    assert_eq!((error.kind(), error.to_string()), (kind, text));
}

fn failed() -> (String, io::Error) {
    ("trying".into(), ErrorKind::PermissionDenied.into())
}

#[test]
fn errors_of_connecting_say_what_to_do() {
    use ConnectError as E;
    let (doing, source) = failed();
    is(E::BadOptions("five".into()), ErrorKind::InvalidInput, "five");
    is(E::Io { doing, source }, ErrorKind::PermissionDenied, "trying: permission denied");
    let (doing, source) = ("trying".into(), ErrorKind::ConnectionRefused.into());
    is(E::Io { doing, source }, ErrorKind::ConnectionRefused, "start it");
    is(E::NotASocket, ErrorKind::ConnectionRefused, "not a socket");
    is(E::Timeout, ErrorKind::TimedOut, "");
    let (code, text) = (RejectCode::Version, "old".into());
    is(E::Rejected { code, text }, ErrorKind::ConnectionRefused, "no common version): old");
    is(
        E::NotAuthorized { uid: 77, text: "not 78".into() },
        ErrorKind::PermissionDenied,
        "77, which is not trusted: not 78",
    );
    is(E::BadMemfd("holes".into()), ErrorKind::InvalidData, "holes");
    is(E::NoDescriptor, ErrorKind::InvalidData, "no memory");
    is(E::SurplusDescriptors, ErrorKind::InvalidData, "more than one");
    is(E::Truncated, ErrorKind::Other, "security module");
    is(E::PeerClosed, ErrorKind::ConnectionAborted, "handshake_timeout");
    is(E::BadAnswer(HandshakeError::BadText), ErrorKind::InvalidData, "text");
    is(E::BacklogFull, ErrorKind::TimedOut, "ss -xlp");
    is(E::NoParent, ErrorKind::NotFound, "spawn");
    is(E::ParentTaken, ErrorKind::AlreadyExists, "before");
    is(E::BadParent("gone".into()), ErrorKind::InvalidData, "gone");
}

#[test]
fn illegal_options_are_called_as_the_user_called_them() {
    let refused = |options: Options, text: &str| match options.pair().map(drop) {
        Err(ConnectError::BadOptions(said)) => assert_eq!(said, text),
        other => panic!("{other:?}"),
    };
    refused(
        Options::new().max_calls_in_flight(3),
        "max_calls_in_flight must be a power of two from 1 to 256, not 3",
    );
    refused(Options::new().slots(3), "slots must be a power of two from 1 to 65536, not 3");
    refused(Options::new().push_window(3), "push_window must be at least 1024, not 3");
}

#[test]
fn errors_of_serving_say_what_to_do() {
    let (doing, source) = failed();
    is(BindError::BadOptions("five".into()), ErrorKind::InvalidInput, "five");
    is(BindError::NotASocket, ErrorKind::AlreadyExists, "move it");
    is(BindError::InUse, ErrorKind::AddrInUse, "");
    is(BindError::BacklogFull, ErrorKind::AddrInUse, "ss -xlp");
    is(BindError::Locked, ErrorKind::TimedOut, "lock");
    is(BindError::Io { doing, source }, ErrorKind::PermissionDenied, "trying");
    is(AcceptError::Timeout, ErrorKind::TimedOut, "");
    is(AcceptError::Closed, ErrorKind::NotConnected, "closed");
    is(AcceptError::DescriptorsClosed, ErrorKind::NotConnected, "close_range");
    is(AcceptError::Forked, ErrorKind::Unsupported, "forked");
    is(AcceptError::Io(ErrorKind::OutOfMemory.into()), ErrorKind::OutOfMemory, "");
    let (doing, source) = failed();
    is(SpawnError::BadOptions("five".into()), ErrorKind::InvalidInput, "five");
    is(SpawnError::Io { doing, source }, ErrorKind::PermissionDenied, "trying");
    is(SpawnError::Timeout, ErrorKind::TimedOut, "");
    is(SpawnError::ChildExited(ExitStatus::from_raw(3 << 8)), ErrorKind::ConnectionAborted, "3");
    is(SpawnError::ChildClosed, ErrorKind::ConnectionAborted, "mid-handshake");
    is(SpawnError::Handshake(HandshakeError::Surplus), ErrorKind::InvalidData, "after the end");
}

#[test]
fn an_error_that_was_caused_by_another_names_it() {
    let ((doing, source), handshake) = (failed(), HandshakeError::BadMagic);
    let with: [Box<dyn Error>; 6] = [
        Box::new(ConnectError::Io { doing: doing.clone(), source }),
        Box::new(ConnectError::BadAnswer(handshake)),
        Box::new(BindError::Io { doing: doing.clone(), source: failed().1 }),
        Box::new(AcceptError::Io(failed().1)),
        Box::new(SpawnError::Io { doing, source: failed().1 }),
        Box::new(SpawnError::Handshake(handshake)),
    ];
    let without: [Box<dyn Error>; 4] = [
        Box::new(ConnectError::Timeout),
        Box::new(BindError::InUse),
        Box::new(AcceptError::Closed),
        Box::new(SpawnError::Timeout),
    ];
    assert!(with.iter().all(|error| error.source().is_some()));
    assert!(without.iter().all(|error| error.source().is_none()));
}

#[test]
fn each_mistake_of_a_handshake_has_its_numbers_in_its_text() {
    use HandshakeError as E;
    for (error, part) in [
        (E::BadMagic, "protocol"),
        (E::BadVersions { min: 3, max: 2 }, "3 to 2"),
        (E::NoCommonVersion { min: 8, max: 9 }, "8 to 9"),
        (E::UnknownFeatures(0xf0), "0xf0"),
        (E::BadGeometry { slots: 3, arena: 64, oob: 5 }, "3 slots, 64 bytes, 5 out-of-band"),
        (E::BadMaxMessage(1 << 40), "1099511627776"),
        (E::BadTicket(7), "7"),
        (E::BadRegionLen { is: 5, needed: 6 }, "5 bytes"),
        (E::UnknownKind(9), "kind 9"),
        (E::BadText, "text"),
        (E::ReservedNotZero, "reserved"),
        (E::MoreThanWanted, "more than"),
        (E::WrongNonce, "nonce"),
        (E::Surplus, "after the end"),
    ] {
        is(error, ErrorKind::InvalidData, part);
    }
    let texts: std::collections::HashSet<_> =
        (1..12).map(|code| RejectCode::from_number(code).to_string()).collect();
    assert_eq!(texts.len(), 11, "{texts:?}");
    assert!((0..12).all(|code| RejectCode::from_number(code).number() == code));
}

/// The texts and conversions of each end, and of errors that are no end.
macro_rules! ends {
    ($($error:ident, $gone:ident { $($other:expr, $kind:ident, $text:literal;)* })*) => { $(
        for (error, kind) in [
            (ConnectionError::Disconnected, ErrorKind::$gone),
            (ConnectionError::PeerDied, ErrorKind::ConnectionReset),
            (ConnectionError::Closed, ErrorKind::NotConnected),
            (ConnectionError::ProtocolViolation, ErrorKind::InvalidData),
            (ConnectionError::Forked, ErrorKind::Unsupported),
        ] {
            assert_eq!($error::from(error), $error::ConnectionLost(error));
            is($error::from(error), kind, " ");
        }
        $( is($other, ErrorKind::$kind, $text); )*
    )* };
}

#[test]
fn errors_of_data_distinguish_ends_from_other_errors() {
    ends! {
        SendError, BrokenPipe {
            SendError::TooLarge { len: 9, max: 8 }, InvalidInput, "9 bytes is too large: this call takes at most 8";
            SendError::Exhausted, Other, "new connection";
        }
        TrySendError, BrokenPipe {
            TrySendError::WouldBlock, WouldBlock, "room";
            TrySendError::TooLargeToTry { len: 9 }, InvalidInput, "9 bytes";
            TrySendError::TooLarge { len: 9, max: 8 }, InvalidInput, "at most 8";
            TrySendError::Exhausted, Other, "new connection";
        }
        SendTimeoutError, BrokenPipe {
            SendTimeoutError::Timeout, TimedOut, "not delivered";
            SendTimeoutError::TooLarge { len: 9, max: 8 }, InvalidInput, "at most 8";
            SendTimeoutError::Exhausted, Other, "new connection";
        }
        RecvError, UnexpectedEof {
            RecvError::BufferTooSmall { needed: 9 }, InvalidInput, "9 bytes";
        }
        TryRecvError, UnexpectedEof {
            TryRecvError::WouldBlock, WouldBlock, "now";
            TryRecvError::BufferTooSmall { needed: 9 }, InvalidInput, "9 bytes";
        }
        RecvTimeoutError, UnexpectedEof {
            RecvTimeoutError::Timeout, TimedOut, "deadline";
            RecvTimeoutError::BufferTooSmall { needed: 9 }, InvalidInput, "9 bytes";
        }
    }
    assert!(ProtocolViolation("a cause").to_string().ends_with("a cause"));
}

#[test]
fn everything_can_be_printed() {
    let folder = tempfile::tempdir().expect("folder");
    let listener = SharedMemoryListener::bind(folder.path().join("socket")).expect("binds");
    let (mut a, b) = SharedMemoryStream::pair().expect("pairs");
    let closer = a.closer();
    let mut printed =
        vec![format!("{:?}", Options::default()), format!("{:?}", Options::new().authorize(|_| true))];
    printed.extend([
        format!("{listener:?}"),
        format!("{:?}", listener.closer()),
        format!("{a:?} {closer:?}"),
    ]);
    printed.push(format!("{:?}", a.reserve(8).expect("room").raw().expect("ours")));
    let (sender, receiver) = b.split();
    printed.extend([format!("{sender:?} {receiver:?}"), format!("{:?}", sender.into_shared())]);
    for name in [
        "Options",
        "a closure",
        "same user",
        "SharedMemoryListener",
        "socket",
        "ListenerCloser",
        "SharedMemoryStream",
        "Closer",
        "RawSpan",
        "Sender",
        "Receiver",
        "SharedSender",
    ] {
        assert!(printed.iter().any(|text| text.contains(name)), "{name}: {printed:?}");
    }
}

#[test]
fn each_half_reports_the_connection() {
    let (a, mut b) = Options::new().max_message(1000).pair().expect("pairs");
    assert_eq!((a.max_message(), a.peer_cred().pid()), (1000, std::process::id()));
    assert!(a.as_fd().try_clone_to_owned().is_ok());
    let (sender, receiver) = a.split();
    assert_eq!((sender.peer_cred(), receiver.peer_cred()), (b.peer_cred(), b.peer_cred()));
    let shared = sender.into_shared();
    assert_eq!(shared.max_message(), 1000);
    assert!(!shared.is_disconnected());
    receiver.closer().close();
    assert!(shared.is_disconnected());
    assert_eq!(b.recv(&mut []), Err(RecvError::ConnectionLost(ConnectionError::Disconnected)));
}

#[test]
fn a_message_is_written_and_read_in_place() {
    for len in [0, 100, 5000] {
        let (mut a, mut b) = SharedMemoryStream::pair().expect("pairs");
        let mut reservation = a.reserve(len).expect("room");
        assert_eq!((reservation.len(), reservation.is_empty()), (len, len == 0));
        reservation.flush().expect("nothing to do");
        let mut span = reservation.raw().expect("ours");
        assert_eq!((span.len(), span.is_empty()), (len, len == 0));
        // SAFETY: the other end is in this process and reads only what is committed below.
        unsafe { span.as_mut_slice().fill(7) };
        reservation.commit().expect("sent");
        let mut guard = b.recv_ref().expect("there");
        let span = guard.raw().expect("ours");
        // SAFETY: the other end does not write any more.
        let bytes = unsafe { span.as_slice() };
        assert_eq!((bytes, bytes.as_ptr()), (&vec![7; len][..], span.as_ptr().cast_const()));
    }
}

#[test]
fn byte_streams_flush_time_out_and_come_apart() {
    let (a, b) = SharedMemoryStream::pair().expect("pairs");
    let ((mut reader, _keep), (_other, mut writer)) = (a.into_bytes(), b.into_bytes());
    reader.set_read_timeout(Some(Duration::from_millis(1)));
    assert_eq!(reader.read(&mut [0; 8]).expect_err("nothing").kind(), ErrorKind::TimedOut);
    writer.write_all(b"text").expect("sent");
    writer.flush().expect("nothing to do");
    let sender = writer.into_inner();
    sender.closer().close();
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("ends");
    assert_eq!(text, "text");
}

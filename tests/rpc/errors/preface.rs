//! Clients that are rejected, and servers that serve no calls.

use std::path::Path;
use std::time::Duration;

use narrows::internal::rpc::wire::{FrameKind, SETTINGS_LEN, Settings, VERSION};
use narrows::{
    CallError, ConnectError, HandlerError, Options, RejectCode, SharedMemoryClient, SharedMemoryServer,
};

use crate::support::calls::raw::{Raw, head, settings};
use crate::support::calls::{ECHO, Host, here, host, note, options, process_orders};
use crate::support::{LONG, eventually};

/// Connects as soon as the server listens: a path exists shortly before its server accepts.
fn connect(path: &Path, options: &Options) -> Result<SharedMemoryClient, ConnectError> {
    let mut tried = None;
    let listens = eventually(|| {
        let client = SharedMemoryClient::builder(path).options(options.clone()).connect();
        !matches!(tried.insert(client), Err(ConnectError::Io { .. }))
    });
    assert!(listens, "no server listens");
    tried.expect("tried")
}

#[test]
fn a_rejected_client_receives_the_reason() {
    let host = host!(options(), |server: SharedMemoryServer| {
        server.on_connect(|connection| {
            assert_ne!(connection.peer_cred().pid(), 0);
            assert!(connection.is_connected());
            Err(HandlerError::new(5, format!("\tnot {}\n{}", connection.id(), "é".repeat(40))))
        })
    });
    for _ in 0..3 {
        match connect(&host.path, &options()) {
            Err(ConnectError::Rejected { code: RejectCode::Refused, text }) => {
                assert!(text.starts_with("not ") && text.ends_with("é…"), "{text:?}");
                assert!((63..=64).contains(&text.len()), "{text:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    host.end();
}

/// The error does not blame the user, and a text that is too long is truncated between two words.
#[test]
fn a_refusal_by_the_program_reads_as_one() {
    let host = host!(options(), |server: SharedMemoryServer| {
        server.on_connect(|connection| match connection.id() {
            1 => Err("come back on Monday".into()),
            _ => Err(CallError::WouldDeadlock.into()),
        })
    });
    let refused = || match connect(&host.path, &options()) {
        Err(error @ ConnectError::Rejected { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let (first, second) = (refused(), refused());
    assert!(first.ends_with(": come back on Monday") && !first.contains("user"), "{first}");
    assert!(second.ends_with(": only this thread could end the wait: use `method` instead of…"), "{second}");
    host.end();
}

#[test]
fn a_connection_carries_its_state_until_its_end() {
    let host = host!(options(), |server: SharedMemoryServer| {
        server
            .on_connect(|connection| {
                assert!(connection.set_state(format!("state of {}", connection.id())));
                assert!(!connection.set_state(0_u32), "once");
                connection.push(b"accepted").map_err(Into::into)
            })
            .inline(100, |request, reply| {
                assert_eq!(request.state::<u32>(), None);
                let same = request.connection().with_state(String::len);
                let state = request.state::<String>().expect("attached");
                assert_eq!(same, Some(state.len()));
                assert_eq!(*state, format!("state of {}", request.connection().id()));
                reply.extend_from_slice(state.as_bytes());
                Ok(())
            })
            .on_disconnect(|connection, error| {
                let state = connection.with_state(String::clone).expect("still there");
                note(format!("{state} ended by {error:?}"));
            })
    });
    let (one, two) = (host.client(), host.client());
    let state = |client: &SharedMemoryClient| {
        String::from_utf8(client.call(100, &[]).expect("answers").into_vec()).expect("text")
    };
    let (first, second) = (state(&one), state(&two));
    assert_ne!(first, second);
    assert_eq!(one.next_push().expect("was pushed before the first call"), b"accepted");
    drop(one);
    host.sees(&format!("{first} ended by Disconnected"), 1);
    assert_eq!(state(&two), second);
    host.end();
}

/// What a server sends instead of an Accept, and the check of the error that the client returns.
type Answer = fn(&mut Raw);
type Check = fn(&ConnectError) -> bool;

const NO_CALLS: Check = |error| matches!(error, ConnectError::NoCalls);

fn accept(raw: &mut Raw, id: u64, head: [u8; 8], body: &[u8]) {
    raw.send(id, head, body).expect("sends");
}

/// Settings with one byte changed.
fn bent(at: usize) -> [u8; SETTINGS_LEN] {
    let mut bent = settings(1 << 20);
    bent[at] ^= 1;
    bent
}

const ANSWERS: [(&str, Answer, Check); 16] = [
    ("nothing", |_| {}, |error| matches!(error, ConnectError::PeerClosed)),
    ("an echo", |raw| accept(raw, 0, head(FrameKind::Hello, 0, 0, 0), &settings(1 << 20)), NO_CALLS),
    ("a word", |raw| raw.bytes(0, b"hello, world").expect("sends"), NO_CALLS),
    ("an empty message", |raw| raw.bytes(0, &[]).expect("sends"), NO_CALLS),
    ("half a head", |raw| raw.bytes(0, &[2, 0, 0, 0]).expect("sends"), NO_CALLS),
    ("a long message", |raw| raw.bytes(0, &[2; 1 << 20]).expect("sends"), NO_CALLS),
    ("another kind", |raw| accept(raw, 0, head(FrameKind::Push, 0, 0, 0), &settings(1 << 20)), NO_CALLS),
    ("a tag", |raw| accept(raw, 1, head(FrameKind::Accept, 0, 0, 0), &settings(1 << 20)), NO_CALLS),
    ("short settings", |raw| accept(raw, 0, head(FrameKind::Accept, 0, 0, 0), &settings(7)[..31]), NO_CALLS),
    ("no settings", |raw| accept(raw, 0, head(FrameKind::Accept, 0, 0, 0), &[]), NO_CALLS),
    (
        "long settings",
        |raw| accept(raw, 0, head(FrameKind::Accept, 0, 0, 0), &[&settings(7)[..], &[0]].concat()),
        NO_CALLS,
    ),
    ("no magic", |raw| accept(raw, 0, head(FrameKind::Accept, 0, 0, 0), &bent(0)), NO_CALLS),
    ("what is not zero", |raw| accept(raw, 0, head(FrameKind::Accept, 0, 0, 0), &bent(31)), NO_CALLS),
    ("no window", |raw| accept(raw, 0, head(FrameKind::Accept, 0, 0, 0), &settings(0)), NO_CALLS),
    (
        "a refusal",
        |raw| accept(raw, 0, head(FrameKind::Refuse, 0, 0, 77), b"go\n away"),
        |error| matches!(error, ConnectError::Rejected { code: RejectCode::Other(77), text } if text == "go away"),
    ),
    ("a long refusal", |raw| accept(raw, 0, head(FrameKind::Refuse, 0, 0, 9), &[b'x'; 65]), NO_CALLS),
];

#[test]
fn a_server_of_streams_is_distinguished_from_a_server_of_calls() {
    let Some(host) = Host::start(&here!(), options(), |path| {
        let listener = options().bind(path).expect("binds");
        for (what, answer, _) in ANSWERS {
            let mut raw = Raw::accept(&listener);
            answer(&mut raw);
            if what != "nothing" {
                // A violation by a server that is already gone would be reported as the end of the connection.
                assert!(raw.stream.recv_timeout(&mut [0; 1], LONG).is_err());
            }
        }
        process_orders(|_| ());
    }) else {
        return;
    };
    for (what, _, check) in ANSWERS {
        let error = connect(&host.path, &options()).expect_err(what);
        assert!(check(&error), "{what}: {error:?}");
    }
    host.end();
}

#[test]
fn connect_to_a_silent_server_ends_at_its_deadline() {
    let Some(host) = Host::start(&here!(), options(), |path| {
        let listener = options().bind(path).expect("binds");
        let _silent = Raw::accept(&listener);
        process_orders(|_| ());
    }) else {
        return;
    };
    let brief = options().handshake_timeout(Duration::from_millis(300));
    let error = connect(&host.path, &brief).expect_err("silence");
    assert!(error.is_timeout(), "{error:?}");
    host.end();
}

#[test]
fn a_client_without_the_preface_is_rejected() {
    let host = host!(options());
    let good = host.client();
    let prefaces: [&[u8]; 5] = [&[], b"hello", &[1, 0, 0, 0, 0, 0, 0, 0], &[0; 40], &[1; 1 << 16]];
    for preface in prefaces {
        let mut raw = Raw { stream: crate::support::reach(&host.path, &options()) };
        raw.bytes(0, preface).expect("sends");
        assert!(
            raw.stream
                .recv_timeout(&mut [0; 100], LONG)
                .is_err_and(|error| !matches!(error, narrows::RecvTimeoutError::Timeout))
        );
    }
    host.sees_stat("refused", 5);
    assert_eq!((host.stat("refused"), host.stat("violated")), (5, 0));
    let reply: Result<_, CallError> = good.call(ECHO, b"in");
    assert_eq!(*reply.expect("is served"), *b"in");
    host.end();
}

/// In a window that holds no chunk a method could send nothing.
#[test]
fn a_preface_with_a_window_below_the_minimum_is_refused() {
    let host = host!(options());
    let good = host.client();
    for (stream_window, push_window) in [(1, 1 << 20), (63, 1 << 20), (64, 64), (1023, 1024), (1024, 1023)] {
        let mut raw = Raw { stream: crate::support::reach(&host.path, &options()) };
        let settings = Settings { version: VERSION, stream_window, push_window };
        raw.send(0, head(FrameKind::Hello, 0, 0, 0), &settings.encode()).expect("sends");
        assert!(raw.receive().is_err(), "windows of {stream_window} and {push_window}");
    }
    drop(Raw::connect_with(&host.path, &options(), 1024));
    assert_eq!(*good.call(ECHO, b"goes on").expect("answers"), *b"goes on");
    host.end();
}

/// The text of a refusal is cut so that it fits the longest message of the connection.
#[test]
fn a_refusal_arrives_whatever_the_longest_message_is() {
    for max_message in [40, 41, 63, 64, 65, 71, 72, 104] {
        let (a, b) = Options::new().max_message(max_message).pair().expect("a pair");
        let server = SharedMemoryServer::new()
            .on_connect(|_| Err("this server takes no clients on a day like this one, nor tomorrow".into()))
            .spawn()
            .expect("starts");
        server.adopt(b);
        match SharedMemoryClient::over(a) {
            Err(ConnectError::Rejected { code: RejectCode::Refused, text }) => {
                assert!(text.starts_with("this"), "{text}")
            }
            other => panic!("{max_message}: {other:?}"),
        }
    }
}

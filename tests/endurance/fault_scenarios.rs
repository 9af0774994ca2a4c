//! The faults, the processes that they concern, and the outcomes that are allowed.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, sleep};
use std::time::Duration;

use narrows::internal::handshake::{ANSWER_LEN, Answer, ClientHandshake, HELLO_LEN, Hello, Negotiated};
use narrows::internal::layout::Geometry;
use narrows::{Options, SharedMemoryClient};

use crate::clients::{Caller, connect, request};
use crate::hostile_peers::scribbling_server;
use crate::processes::{Actor, MAX_MESSAGE, PATIENCE, connect_name, name, options};
use crate::serve::{BIG, ECHO, STALL, stream_path};
use crate::support::{eventually, fill, index_of};

/// The environment of a fault.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) path: &'a Path,
    pub(crate) folder: &'a Path,
    pub(crate) server: &'a Mutex<Actor>,
}

/// The processes that a fault concerns, and the allowed outcomes of each.
type Allowed = &'static [(&'static str, &'static [&'static str])];

const GOES_ON: &[&str] = &["goes on"];

/// The faults, and the allowed outcomes.
pub(crate) const KINDS: [(&str, Allowed); 7] = [
    (
        "kill",
        &[
            ("server of a client killed", &["PeerDied"]),
            ("server of its stream", &["PeerDied"]),
            ("caller of a server killed", &["PeerDied"]),
            ("stream to it", &["PeerDied"]),
        ],
    ),
    (
        "stop",
        &[
            ("caller of a stopped server", &["Timeout"]),
            ("the same caller afterwards", GOES_ON),
            ("a stopped client afterwards", GOES_ON),
        ],
    ),
    (
        "scribble",
        &[
            ("RPC server", &["ProtocolViolation"]),
            ("server of a stream", &["ProtocolViolation"]),
            ("client of a scribbling server", &["ProtocolViolation"]),
        ],
    ),
    (
        "truncated handshake",
        &[
            ("client that sends half a Hello", &["hung up on"]),
            ("client that receives half an Accept", &["PeerClosed"]),
            ("client that receives nothing", &["Timeout"]),
        ],
    ),
    (
        "descriptor exhaustion",
        &[
            ("clients of a full server", &["Timeout", "Rejected(Unavailable)", "PeerClosed"]),
            ("next client afterwards", GOES_ON),
            ("client that has none left", &["Io(EMFILE)", "Truncated"]),
        ],
    ),
    (
        "oversize",
        &[
            ("caller, request", &["TooLarge"]),
            ("caller, reply", &["ReplyTooLarge"]),
            ("sender", &["TooLarge"]),
            ("the same caller afterwards", GOES_ON),
            ("server of a peer that announces it", &["ProtocolViolation"]),
        ],
    ),
    (
        "slow reader",
        &[
            ("server that pushes", &["WouldBlock"]),
            ("reader that cancels", &["Cancelled"]),
            ("server that sends", &["Timeout"]),
            ("the reader afterwards", GOES_ON),
        ],
    ),
];

/// Causes the fault. Returns the outcome for each process.
pub(crate) fn happen(kind: usize, scene: &Scene<'_>, seed: u64) -> Vec<(String, String)> {
    let acts = [kill, stop, scribble, truncate, exhaust, exceed, dawdle];
    let outcomes = acts[kind](scene, seed);
    outcomes.into_iter().map(|(process, what)| (process.to_owned(), what)).collect()
}

type Outcomes = Vec<(&'static str, String)>;

const ON: &str = "goes on";

impl Scene<'_> {
    fn arguments(&self) -> String {
        format!("path={}", self.path.display())
    }

    /// Returns how the server saw the RPC connection of this process end, or its stream.
    fn reason(&self, pid: u32, stream: bool) -> String {
        let mut reason = "-".to_owned();
        eventually(|| {
            let both = self.server.lock().expect("no panic").ask(&format!("reason {pid}"));
            let (calls, streamed) = both.split_once(' ').expect("two");
            reason = (if stream { streamed } else { calls }).to_owned();
            reason != "-"
        });
        reason
    }

    /// Returns a path that is not in use.
    fn fresh(&self) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.folder.join(format!("own{}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }
}

/// Returns the name of the error, if there is one.
fn error_of<T, E: std::fmt::Debug>(result: Result<T, E>) -> String {
    result.err().map_or_else(|| "no error".into(), |error| name(&error))
}

/// Checks that the calls and messages of a client still succeed.
fn goes_on(caller: &mut Caller) -> String {
    caller.round(3000).map_or_else(|error| error, |()| ON.into())
}

/// A client is killed during its calls. A server is killed during a call.
fn kill(scene: &Scene<'_>, seed: u64) -> Outcomes {
    let mut client = Actor::start("short-lived", &format!("{};manner=wait", scene.arguments()));
    client.receive();
    sleep(Duration::from_micros(seed % 5000));
    client.kill();
    let path = scene.fresh();
    let mut server = Actor::server(&path, "");
    let mut caller = Caller::connect(&path);
    let pending = caller.client.start_call(STALL, &request(&[600_000]));
    server.kill();
    let ended = pending.map_or_else(|error| name(&error), |pending| error_of(pending.wait()));
    let stream_ended = error_of(caller.stream.recv_timeout(&mut [0; 64], PATIENCE));
    forget(&path);
    vec![
        ("server of a client killed", scene.reason(client.pid(), false)),
        ("server of its stream", scene.reason(client.pid(), true)),
        ("caller of a server killed", ended),
        ("stream to it", stream_ended),
    ]
}

/// Removes the files that a killed server left.
fn forget(path: &Path) {
    let _ = std::fs::remove_file(path);
    let _ = std::fs::remove_file(stream_path(path));
}

/// A server is stopped and resumed, and so is a client of the server.
fn stop(scene: &Scene<'_>, _: u64) -> Outcomes {
    let path = scene.fresh();
    let server = Actor::server(&path, "");
    let mut caller = Caller::connect(&path);
    let mut worker = Actor::start("worker", &scene.arguments());
    while worker.numbers("count")[0] == 0 {
        sleep(Duration::from_millis(2));
    }
    server.stop();
    worker.stop();
    let mut message = Vec::new();
    fill(&mut message, 0, 1000);
    let stopped = error_of(caller.client.call_timeout(ECHO, &message, Duration::from_millis(300)));
    sleep(Duration::from_millis(300));
    server.signal(libc::SIGCONT);
    worker.signal(libc::SIGCONT);
    let afterwards = goes_on(&mut caller);
    let before = worker.numbers("count")[0];
    let went_on = eventually(|| worker.numbers("count")[0] > before);
    worker.end();
    drop(caller);
    server.end();
    vec![
        ("caller of a stopped server", stopped),
        ("the same caller afterwards", afterwards),
        ("a stopped client afterwards", if went_on { ON.into() } else { "stands still".into() }),
    ]
}

/// Hostile clients scribble over the pages of calls and of a stream, and a hostile server over those of a client.
fn scribble(scene: &Scene<'_>, seed: u64) -> Outcomes {
    let mut reasons = ["calls", "stream"].map(|over| {
        let hostile = Actor::start("scribbler", &format!("{};over={over};seed={seed}", scene.arguments()));
        assert_eq!((hostile.receive().as_str(), hostile.receive().as_str()), ("in", "over"));
        let reason = scene.reason(hostile.pid(), over == "stream");
        hostile.end();
        reason
    });
    let path = scene.fresh();
    let listener = UnixListener::bind(&path).expect("binds");
    let ended = thread::scope(|s| {
        s.spawn(|| scribbling_server(&listener, seed));
        let mut stream = options().connect(&path).expect("a good handshake");
        let mut message = Vec::new();
        // The bytes that it stores in place of a message may look like one, perhaps once. Then the end comes.
        let end = (0..100).find_map(|_| stream.recv_into_timeout(&mut message, PATIENCE).err());
        end.map_or_else(|| "no error".into(), |error| name(&error))
    });
    forget(&path);
    vec![
        ("RPC server", std::mem::take(&mut reasons[0])),
        ("server of a stream", std::mem::take(&mut reasons[1])),
        ("client of a scribbling server", ended),
    ]
}

/// Half a Hello and silence, half an Accept and the end, and no Accept.
fn truncate(scene: &Scene<'_>, seed: u64) -> Outcomes {
    let half = |len: usize| usize::try_from(seed % len as u64).expect("few");
    let geometry = Geometry::new(256, 1 << 20, 64).expect("legal");
    let hello = ClientHandshake::new(geometry, MAX_MESSAGE as u64, 0).hello();
    let mut silent = reach(scene.path);
    silent.set_read_timeout(Some(PATIENCE)).expect("set");
    silent.write_all(&hello[..half(HELLO_LEN)]).expect("sends");

    let path = scene.fresh();
    let listener = UnixListener::bind(&path).expect("binds");
    let (gave_up, wait) = channel::<()>();
    let (half_accept, no_accept) = thread::scope(|s| {
        s.spawn(|| {
            let wait = wait;
            let (mut socket, _) = listener.accept().expect("comes");
            let mut bytes = [0; HELLO_LEN];
            socket.read_exact(&mut bytes).expect("a Hello");
            let Hello { wanted: geometry, max_message, .. } = Hello::decode(&bytes).expect("a good one");
            let agreed = Negotiated {
                version: narrows::internal::handshake::VERSION_MAX,
                features: 0,
                geometry,
                max_message,
                first_ticket: 0,
            };
            let accept = Answer::Accept(agreed).encode();
            socket.write_all(&accept[..half(ANSWER_LEN)]).expect("sends");
            drop(socket);
            let (socket, _) = listener.accept().expect("comes");
            let _until_it_has_given_up = wait.recv();
            drop(socket);
        });
        let brief = options().handshake_timeout(Duration::from_millis(200));
        let ends = (connected(&path, &options()), connected(&path, &brief));
        drop(gave_up);
        ends
    });
    forget(&path);
    let hung_up = matches!(silent.read(&mut [0; 64]), Ok(0));
    vec![
        ("client that sends half a Hello", if hung_up { "hung up on".into() } else { "nothing".into() }),
        ("client that receives half an Accept", half_accept),
        ("client that receives nothing", no_accept),
    ]
}

fn connected(path: &Path, options: &Options) -> String {
    let client = SharedMemoryClient::builder(path).options(options.clone()).connect();
    client.map_or_else(|error| connect_name(&error), |_| "connected".into())
}

/// Connects a socket to the server, whose backlog may be full at first.
fn reach(path: &Path) -> UnixStream {
    let mut last = None;
    eventually(|| last.insert(UnixStream::connect(path)).is_ok());
    last.expect("tried").expect("connects")
}

/// One client takes all descriptors of the server. Another client has none left itself.
fn exhaust(scene: &Scene<'_>, _: u64) -> Outcomes {
    let hoarder = Actor::start("hoarder", &scene.arguments());
    let hoarded = hoarder.receive();
    let (count, full) = hoarded.split_once(' ').expect("two");
    assert!(count.parse::<u32>().is_ok_and(|it| it > 8), "{hoarded}");
    hoarder.end();
    let afterwards = connect(scene.path, &options()).map_or_else(
        |error| connect_name(&error),
        |client| {
            let mut message = Vec::new();
            fill(&mut message, 7, 1000);
            let reply = client.call_timeout(ECHO, &message, PATIENCE);
            reply.map_or_else(
                |error| name(&error),
                |reply| {
                    if index_of(&reply) == Some(7) { ON.into() } else { "another reply".into() }
                },
            )
        },
    );
    let starved = Actor::start("starved", &scene.arguments());
    let none_left = starved.receive();
    starved.end();
    vec![
        ("clients of a full server", full.to_owned()),
        ("next client afterwards", afterwards),
        ("client that has none left", none_left),
    ]
}

/// More than was negotiated is requested, replied, sent, and announced by hand.
fn exceed(scene: &Scene<'_>, _: u64) -> Outcomes {
    let mut caller = Caller::connect(scene.path);
    let much = vec![1; MAX_MESSAGE + 1];
    let asked = error_of(caller.client.call_timeout(ECHO, &much, PATIENCE));
    let reply = caller.client.call_timeout(BIG, &request(&[much.len() as u64]), PATIENCE);
    let replied = error_of(reply);
    let sent = error_of(caller.stream.send_timeout(&much, PATIENCE));
    let afterwards = goes_on(&mut caller);
    let giant = Actor::start("giant", &scene.arguments());
    assert_eq!((giant.receive().as_str(), giant.receive().as_str()), ("in", "over"));
    let announced = scene.reason(giant.pid(), true);
    giant.end();
    vec![
        ("caller, request", asked),
        ("caller, reply", replied),
        ("sender", sent),
        ("the same caller afterwards", afterwards),
        ("server of a peer that announces it", announced),
    ]
}

/// A client takes what it asked for much too slowly.
fn dawdle(scene: &Scene<'_>, _: u64) -> Outcomes {
    let slow = Actor::start("slow", &scene.arguments());
    let line = slow.receive();
    slow.end();
    let [pushes, chunks, sends] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    vec![
        ("server that pushes", pushes.to_owned()),
        ("reader that cancels", chunks.to_owned()),
        ("server that sends", sends.to_owned()),
        ("the reader afterwards", ON.into()),
    ]
}

//! Any program of a well-formed client and server: each call gets its own reply, and at the end all slots and windows are free.

use super::client::Client;
use super::server::{Server, refused};
use super::{CallRings, length};
use crate::bytes::Bytes;
use narrows::internal::rpc::wire::{DEADLINE, MORE, NOTIFY, STREAM, UPLOAD};

/// The number of rounds in which each program becomes idle.
const ROUNDS: usize = 20_000;

/// Counts of what a program did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallTally {
    /// Calls that were begun.
    pub calls: u64,
    /// Calls whose end was taken.
    pub ends: u64,
    /// Calls that were answered while the caller waited.
    pub at_once: u64,
    /// Calls that were cancelled.
    pub cancelled: u64,
    /// Chunks of replies that were sent.
    pub chunks: u64,
    /// Chunks of uploads that were read.
    pub uploads: u64,
    /// Pushes that were taken.
    pub pushes: u64,
}

/// Runs the program that the bytes encode, and returns what it did.
pub fn call_tally(data: &[u8]) -> CallTally {
    run(&mut Bytes::new(data))
}

pub(super) fn run(bytes: &mut Bytes<'_>) -> CallTally {
    let rings = CallRings::new(bytes);
    let mut server = Server::new(&rings, true);
    if bytes.rarely(4) {
        server.act(bytes); // A push before the handshake.
        server.step();
    }
    server.connection.accept(|_| ());
    let mut client = Client::new(&rings, server);
    let mut tally = CallTally::default();
    while !bytes.is_empty() {
        act(&mut client, bytes, &mut tally);
        check(&client);
    }
    run_until_idle(&mut client);
    check_idle(&client);
    let server = client.turn.server();
    let runs = || server.methods.runs.values();
    CallTally {
        calls: client.calls.len() as u64,
        ends: client.ends,
        cancelled: client.calls.values().filter(|call| call.cancelled).count() as u64,
        chunks: runs().map(|run| run.written.len() as u64).sum(),
        uploads: runs().map(|run| run.read.len() as u64).sum(),
        pushes: client.pushes as u64,
        ..tally
    }
}

fn act(client: &mut Client, bytes: &mut Bytes<'_>, tally: &mut CallTally) {
    let (fragment, max) = (client.limits.max_fragment, client.limits.max_message);
    let some = |client: &Client, bytes: &mut Bytes<'_>, unsent: bool| {
        let live =
            client.calls.iter().filter(|(_, call)| call.waited || (unsent && call.fragmenter.is_some()));
        let live: Vec<u64> = live.map(|(id, _)| *id).collect();
        (!live.is_empty()).then(|| bytes.pick(&live))
    };
    match bytes.below(32) {
        0..=5 => {
            let kinds = [0, STREAM, UPLOAD, STREAM | UPLOAD, NOTIFY, DEADLINE, DEADLINE | STREAM];
            let (method, flags) = (bytes.u8().into(), bytes.pick(&kinds));
            let begun = client.begin(method, flags, length(bytes, fragment, max));
            if let Some(id) = begun.filter(|_| !bytes.rarely(4)) {
                client.send(id);
            }
        }
        6 => {
            let (method, flags) = (bytes.u8().into(), bytes.pick(&[0, DEADLINE]));
            tally.at_once += u64::from(client.at_once(method, flags, length(bytes, fragment, max)));
        }
        7..=15 => {
            let Some(id) = some(client, bytes, true) else { return };
            let waited = client.calls[&id].waited;
            match bytes.below(8) {
                0..=1 => drop(client.send(id)),
                2 if bytes.rarely(4) => client.stop_sending(id),
                3..=4 if waited => drop(client.upload(id, length(bytes, fragment, max))),
                5 if waited => drop(client.end_upload(id)),
                6 if waited && client.calls[&id].asked && bytes.rarely(4) => client.give_up(id),
                _ => drop(client.send(id)),
            }
        }
        16..=19 => drop(some(client, bytes, false).map(|id| client.take(id))),
        20 => drop(client.take_push()),
        21 => client.read_one(),
        22..=27 => client.turn.server().act(bytes),
        _ => drop(client.turn.server().step()),
    }
}

/// Checks what holds at any time: no side found a violation, methods run for what was called, and the tables are consistent.
fn check(client: &Client) {
    assert_eq!(client.mux.closed(), None);
    client.mux.lock().calls.audit();
    let server = client.turn.server();
    assert_eq!(server.over, None);
    server.connection.with_calls(|calls| calls.audit());
    for (id, run) in &server.methods.runs {
        let call = client.calls.get(id).expect("a call that was made");
        assert_eq!((run.method, run.flags), (call.method, call.flags & !MORE));
        assert!(call.asked || call.cancelled, "a call runs whose request is incomplete");
        assert_eq!(run.request, call.body.concat(), "the request of another call");
        assert_eq!(Some(&run.read[..]), call.chunks.get(..run.read.len()), "the chunks of an upload");
        let all = call.ended && run.read.len() == call.chunks.len();
        assert!(!run.read_all || all || call.flags & UPLOAD == 0, "the upload ended too early");
        assert!(!run.gone || call.cancelled, "a call ended that was not cancelled");
    }
}

/// Ends all calls and methods.
fn run_until_idle(client: &mut Client) {
    for _ in 0..ROUNDS {
        let mut busy = false;
        let live: Vec<u64> = client
            .calls
            .iter()
            .filter(|(_, call)| call.waited || call.fragmenter.is_some())
            .map(|it| *it.0)
            .collect();
        for id in live {
            busy |= client.send(id) && client.calls[&id].waited && client.end_upload(id);
            busy |= client.calls[&id].waited && client.take(id);
        }
        while client.take_push() {}
        client.read_one();
        let mut server = client.turn.server();
        for id in server.open() {
            while server.read(id) {}
            let run = &server.methods.runs[&id];
            if run.read_all || run.gone || run.flags & UPLOAD == 0 {
                server.finish(id, 1, false);
                busy = true;
            }
        }
        busy |= server.step();
        let idle = server.connection.is_idle();
        drop(server);
        check(client);
        let waits = client.calls.values().any(|call| call.waited || call.fragmenter.is_some());
        if !busy && !waits && idle && client.mux.lock().calls.in_flight() == 0 {
            return;
        }
    }
    let open: Vec<_> =
        client.calls.iter().filter(|(_, call)| call.waited || call.fragmenter.is_some()).collect();
    let server = client.turn.server();
    let (server_calls, runs) = (server.connection.with_calls(|calls| format!("{calls:?}")), server.open());
    panic!(
        "calls that do not end: {open:?}, running: {runs:?}, client: {:?}, server: {server_calls}",
        client.mux.lock().calls
    );
}

/// Checks an idle connection: all windows are full, and no call and no push was lost.
fn check_idle(client: &Client) {
    let server = client.turn.server();
    let credit = server.connection.with_calls(|calls| calls.push_credit());
    let owed = client.mux.lock().calls.owed_for_pushes();
    assert_eq!(credit + owed, client.limits.push_window, "the window of pushes");
    assert_eq!(client.pushes, server.pushed.len());
    for (id, call) in &client.calls {
        let runs = server.methods.runs.contains_key(id);
        assert!(runs || call.cancelled || refused(call.method), "call {id} did not run");
    }
}

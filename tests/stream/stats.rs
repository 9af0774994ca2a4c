//! The statistics of a connection for operators: waits, spins, stalls and fill of each direction, and the metrics page.

use std::thread;
use std::time::Duration;

use crate::support::Watchdog;
use narrows::{
    CallError, HandlerError, Options, Request, SharedMemoryClient, SharedMemoryListener, SharedMemoryServer,
    SharedMemoryStream, Stats, WaitStrategy, Waits,
};

const LONG: Duration = Duration::from_secs(30);

fn pair(strategy: WaitStrategy, slots: u32) -> (SharedMemoryStream, SharedMemoryStream) {
    Options::new().wait(strategy).slots(slots).arena(4096).pair().expect("pairs")
}

fn silent(stats: &Stats) -> bool {
    (stats.sending, stats.receiving, stats.full_stalls) == (Waits::default(), Waits::default(), 0)
}

#[test]
fn a_stream_that_never_waits_counts_messages_and_bytes_alone() {
    let (mut a, mut b) = pair(WaitStrategy::Adaptive, 256);
    for _ in 0..100 {
        a.send(b"seven b").expect("sends");
        b.recv(&mut [0; 7]).expect("comes");
    }
    let (sent, received) = (a.stats(), b.stats());
    assert_eq!((sent.messages_sent, sent.bytes_sent), (100, 700));
    assert_eq!((received.messages_received, received.bytes_received), (100, 700));
    assert!(silent(&sent) && silent(&received), "{sent:?} {received:?}");
    assert_eq!(sent.peak_fill, 0, "it never had to look at the head");
}

#[test]
fn a_sleep_is_of_the_half_that_slept_and_a_wake_of_the_one_that_woke() {
    let _watchdog = Watchdog::new("a_sleep_is_of_the_half_that_slept_and_a_wake_of_the_one_that_woke");
    let (mut a, mut b) = pair(WaitStrategy::Park, 4);
    let timeout = Duration::from_millis(5);
    assert!(b.recv_timeout(&mut [0; 8], timeout).is_err());
    let after = b.stats();
    assert!(after.receiving.sleeps > 0 && after.sending == Waits::default(), "{after:?}");
    assert_eq!((after.sleeps, after.receiving.spins), (after.receiving.sleeps, 0));

    let waiter = thread::spawn(move || {
        b.recv(&mut [0; 8]).expect("comes");
        b
    });
    while a.stats().sending.wakes == 0 {
        thread::sleep(timeout);
        a.send(b"up").expect("sends");
    }
    let mut b = waiter.join().expect("woken");
    assert_eq!(a.stats().receiving, Waits::default());

    // The ring is full: the sender sleeps, and the one that receives wakes it.
    while a.send_timeout(b"more", timeout).is_ok() {}
    let full = a.stats();
    assert!(full.sending.sleeps > 0 && full.full_stalls == 1 && full.peak_fill == 1000, "{full:?}");
    let sender = thread::spawn(move || {
        a.send(b"last").expect("sends");
        a.stats()
    });
    while b.stats().receiving.wakes == 0 {
        thread::sleep(timeout);
        b.recv(&mut [0; 8]).expect("comes");
    }
    assert_eq!(sender.join().expect("woken").full_stalls, 2);
}

#[test]
fn a_spin_is_counted_once_for_each_wait() {
    let (a, mut b) = pair(WaitStrategy::Spin, 4);
    for _ in 0..3 {
        assert!(b.recv_timeout(&mut [0; 8], Duration::from_millis(1)).is_err());
    }
    let stats = b.stats();
    assert_eq!((stats.receiving.spins, stats.sending.spins, stats.sleeps), (3, 0, 3), "{stats:?}");
    drop(a);
}

#[test]
fn a_try_that_finds_no_room_is_no_stall_but_has_seen_a_full_ring() {
    let (mut a, mut b) = pair(WaitStrategy::Park, 4);
    while a.try_send(b"x").is_ok() {}
    assert_eq!((a.stats().full_stalls, a.stats().peak_fill), (0, 1000));
    assert!(a.wait_either_timeout(1, Duration::from_millis(2)).is_err());
    assert_eq!(a.stats().full_stalls, 1, "it waited for room, or for a message");
    assert_eq!(b.try_iter().count(), 4);
}

#[test]
fn an_arena_that_fills_counts_as_well_as_slots() {
    let (mut a, mut b) = pair(WaitStrategy::Park, 256);
    let half = vec![1; 2048];
    a.try_send(&half).expect("room");
    b.recv_into(&mut Vec::new()).expect("comes");
    a.try_send(&half).expect("room");
    a.try_send(&half).expect("room");
    let peak = a.stats().peak_fill;
    assert_eq!(peak, 500, "as it was before the last message");
    a.try_send(b"a word").expect("it stands in its slot");
    assert!(a.try_send(&half).is_err());
    assert_eq!(a.stats().peak_fill, 1000);
}

#[test]
fn a_shared_sender_reports_what_its_threads_waited_for() {
    let (a, b) = pair(WaitStrategy::Park, 4);
    let shared = a.split().0.into_shared();
    while shared.send_timeout(b"x", Duration::from_millis(1)).is_ok() {}
    let stats = shared.stats();
    assert_eq!((stats.messages_sent, stats.full_stalls, stats.peak_fill), (4, 1, 1000));
    assert_eq!(stats.sending.sleeps, stats.sleeps);
    drop(b);
}

/// Checks that each metric occurs once, that each sample follows the head of its metric, and that each line has the form that
/// the format requires.
fn check(page: &str) -> usize {
    let (mut named, mut now) = (Vec::new(), "");
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            now = rest.split(' ').next().expect("a name");
            assert!(!named.contains(&now), "{now} twice");
            named.push(now);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let kind = rest.strip_prefix(now).expect("after its help").trim_start();
            assert_eq!(kind, if now.ends_with("_total") { "counter" } else { "gauge" }, "{now}");
        } else {
            let rest = line.strip_prefix(now).expect("a sample of this metric");
            let value = rest.rsplit(' ').next().expect("a value");
            assert!(value.parse::<f64>().is_ok() && rest.starts_with(['{', ' ']), "{line}");
        }
    }
    assert!(page.ends_with('\n'));
    named.len()
}

#[test]
fn connections_servers_and_clients_share_a_page() {
    let _watchdog = Watchdog::new("connections_servers_and_clients_share_a_page");
    let folder = tempfile::tempdir().expect("directory");
    let server = SharedMemoryServer::bind(folder.path().join("socket")).expect("binds");
    let server = server.inline(1, |_, _| Ok(())).spawn().expect("serves");
    let client = SharedMemoryClient::connect(server.local_path().expect("a path")).expect("connects");
    client.call(1, b"").expect("answers");
    let (a, b) = pair(WaitStrategy::Park, 4);
    let page = a
        .stats()
        .prometheus(&[("connection", "a")])
        .and(b.stats().prometheus(&[("connection", "b")]))
        .and(server.stats().prometheus(&[("role", "server")]))
        .and(client.stats().prometheus(&[("role", "client")]));
    let text = page.to_string();
    assert_eq!(check(&text), 7 + 10 + 4, "{text}");
    for line in [
        "narrows_messages_total{direction=\"received\",connection=\"b\"} 0",
        "narrows_peak_fill_ratio{direction=\"sent\",connection=\"a\"} 0.000",
        "narrows_server_connections{role=\"server\"} 1",
        "narrows_client_calls_total{role=\"client\"} 1",
        "narrows_full_stalls_total{direction=\"sent\",role=\"client\"} 0",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line} is missing in\n{text}");
    }
}

fn large(_: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), HandlerError> {
    reply.resize(64 << 10, 1);
    Ok(())
}

#[test]
fn a_server_sums_its_connections_those_that_ended_too() {
    let _watchdog = Watchdog::new("a_server_sums_its_connections_those_that_ended_too");
    let folder = tempfile::tempdir().expect("directory");
    let options = Options::new().wait(WaitStrategy::Park).slots(4).arena(4096);
    let server = SharedMemoryServer::bind_with(folder.path().join("socket"), &options).expect("binds");
    let server = server.inline(1, large).spawn().expect("serves");
    let path = server.local_path().expect("a path");
    for _ in 0..2 {
        let client = SharedMemoryClient::connect(path).expect("connects");
        assert_eq!(client.call(1, b"").expect("answers").len(), 64 << 10);
    }
    while server.stats().connections > 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let stats = server.stats();
    assert!(stats.full_stalls >= 2 && stats.peak_fill == 1000, "replies of 16 arenas: {stats:?}");
    assert!(stats.receiving.sleeps > 0 && stats.sending.wakes > 0, "{stats:?}");
}

/// A request that was abandoned half way counts, since the server has received a part of it. One that never began does not count.
#[test]
fn a_call_is_counted_when_its_first_frame_is_sent() {
    let _watchdog = Watchdog::new("a_call_is_counted_when_its_first_frame_is_sent");
    use narrows::internal::rpc::wire::{FrameHeader, FrameKind, Settings, VERSION};
    let folder = tempfile::tempdir().expect("directory");
    let options = Options::new().slots(4).arena(4096);
    let listener: SharedMemoryListener = options.bind(folder.path().join("socket")).expect("binds");
    let path = listener.local_path().to_owned();
    let caller = thread::spawn(move || {
        SharedMemoryClient::builder(path).options(options).connect().expect("connects")
    });
    let mut raw = listener.accept_timeout(LONG).expect("comes");
    raw.recv_into_timeout(&mut Vec::new(), LONG).expect("a hello");
    let window = 1 << 20;
    let settings = Settings { version: VERSION, stream_window: window, push_window: window }.encode();
    let head = FrameHeader { kind: FrameKind::Accept, flags: 0, seq: 0, word: 0 }.encode();
    raw.send_timeout(&[&head[..], &settings].concat(), LONG).expect("sends");
    let client = caller.join().expect("connects");

    let short = Duration::from_millis(20);
    let long = vec![1; 64 << 10];
    assert!(matches!(client.call_timeout(1, &long, short), Err(CallError::Timeout)));
    assert_eq!(client.stats().calls, 1, "the ring is full of its beginning");
    assert!(client.stats().full_stalls > 0);
    assert!(matches!(client.start_call_timeout(1, &long, short), Err(CallError::Timeout)));
    assert_eq!(client.stats().calls, 1, "nothing of the other was sent");
}

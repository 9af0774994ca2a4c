//! The orderly end: what is under way comes to its end, what begins is refused, what never ends is cut off.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use narrows::{CallError, Options, ServerHandle, SharedMemoryClient, SharedMemoryServer, WaitStrategy};

use super::faults::{LONG, Watchdog, eventually, say};

/// Says that it began, and ends when it is told to.
const GATED: u32 = 1;
/// The same, with a chunk before and one after.
const STREAM: u32 = 2;
/// The same, with an upload before; it sums up what came.
const UPLOAD: u32 = 3;
const ECHO: u32 = 4;

/// What tells methods to end, and is told that they began.
#[derive(Debug)]
struct Gate {
    begun: Receiver<()>,
    open: Sender<()>,
}

impl Gate {
    fn await_begun(&self, methods: usize) {
        (0..methods).for_each(|_| self.begun.recv_timeout(LONG).expect("begins"));
    }

    fn let_go(&self, methods: usize) {
        (0..methods).for_each(|_| self.open.send(()).expect("the methods wait"));
    }
}

fn gated(path: &Path) -> (ServerHandle, Gate) {
    let ((tell, begun), (open, wait)) = (channel(), channel());
    let wait = Arc::new(Mutex::new(wait));
    let pass = move || {
        tell.send(()).expect("the test listens");
        let wait: &Mutex<Receiver<()>> = &wait;
        let _let_go = wait.lock().expect("no panic").recv();
    };
    let (stream, upload) = (pass.clone(), pass.clone());
    let server = SharedMemoryServer::bind(path)
        .expect("binds")
        .inline(ECHO, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .method(GATED, move |_, reply| {
            pass();
            reply.extend([7; 1000]);
            Ok(())
        })
        .streaming(STREAM, move |_, chunks| {
            chunks.write_chunk(b"before")?;
            stream();
            Ok(chunks.write_chunk(b"after")?)
        })
        .upload(UPLOAD, move |_, chunks, reply| {
            upload();
            let sum: usize = chunks.map(|chunk| chunk.expect("comes").len()).sum();
            reply.extend(sum.to_le_bytes());
            Ok(())
        })
        .spawn();
    (server.expect("serves"), Gate { begun, open })
}

#[test]
fn what_is_under_way_comes_to_its_end() {
    let _watchdog = Watchdog::new("what_is_under_way_comes_to_its_end");
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let folder = tempfile::tempdir().expect("directory");
        let path = folder.path().join("socket");
        let (server, gate) = gated(&path);
        let connect = || SharedMemoryClient::connect(&path).expect("connects");
        let (client, other, idle) = (connect(), connect(), connect());
        let call = client.start_call(GATED, &[]).expect("sends");
        let mut stream = client.call_streaming(STREAM, &[]).expect("sends");
        let mut upload = other.start_upload(UPLOAD, &[]).expect("sends");
        gate.await_begun(3);
        let ending = thread::spawn(|| server.shutdown(Duration::MAX));
        assert!(matches!(idle.next_push_timeout(LONG), Err(CallError::Disconnected)), "nothing to wait for");
        for client in [&client, &other] {
            assert!(matches!(client.call(ECHO, &[]), Err(CallError::ShuttingDown)));
            assert!(matches!(
                client.call_streaming(STREAM, &[]).map(|mut stream| stream.next_chunk()),
                Ok(Err(CallError::ShuttingDown))
            ));
        }
        assert!(!path.exists(), "the path is removed");
        assert!(SharedMemoryClient::connect(&path).is_err());
        assert!(!ending.is_finished(), "it waits for those under way");
        upload.write_chunk(&[1; 300]).expect("is taken");
        let started = Instant::now();
        gate.let_go(3);
        assert_eq!(*upload.finish().expect("answers"), 300_usize.to_le_bytes());
        assert_eq!(*call.wait().expect("answers"), [7; 1000]);
        assert_eq!(stream.next_chunk().expect("comes").as_deref(), Some(&b"before"[..]));
        assert_eq!(stream.next_chunk().expect("comes").as_deref(), Some(&b"after"[..]));
        assert_eq!(stream.next_chunk().expect("ends"), None);
        assert!(eventually(|| ending.is_finished()), "nothing is under way any more");
        let drained = ending.join().expect("no panic");
        longest = longest.max(started.elapsed());
        assert_eq!((drained.cut_off, drained.running), (0, 0));
        assert!(matches!(client.call(ECHO, &[]), Err(CallError::ShuttingDown)), "it was never begun");
    }
    say(&format!("drained at most {longest:.1?} after the last call was let go"));
}

/// The order proves it: the methods are let go only after the shutdown has returned.
#[test]
fn what_does_not_return_is_cut_off() {
    let _watchdog = Watchdog::new("what_does_not_return_is_cut_off");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    for timeout in [Duration::ZERO, Duration::from_millis(30)] {
        let (server, gate) = gated(&path);
        let client = SharedMemoryClient::connect(&path).expect("connects");
        let call = client.start_call(GATED, &[]).expect("sends");
        let mut stream = client.call_streaming(STREAM, &[]).expect("sends");
        gate.await_begun(2);
        let drained = server.shutdown(timeout);
        assert_eq!((drained.cut_off, drained.running), (2, 2));
        assert!(!path.exists(), "the path is removed");
        assert!(matches!(call.wait(), Err(CallError::Disconnected)));
        assert_eq!(stream.next_chunk().expect("came before").as_deref(), Some(&b"before"[..]));
        assert!(matches!(stream.next_chunk(), Err(CallError::Disconnected)));
        gate.let_go(2);
    }
}

#[test]
fn a_handle_that_is_dropped_ends_the_server_at_once() {
    let _watchdog = Watchdog::new("a_handle_that_is_dropped_ends_the_server_at_once");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (server, gate) = gated(&path);
    let client = SharedMemoryClient::connect(&path).expect("connects");
    let call = client.start_call(GATED, &[]).expect("sends");
    gate.await_begun(1);
    drop(server);
    assert!(matches!(call.wait(), Err(CallError::Disconnected)));
    assert!(eventually(|| !path.exists()));
    gate.let_go(1);
}

/// Who was welcomed is known to the server: when the handle is gone, so is every connection, and the program may end. Else
/// a client is told that the server died.
#[test]
fn who_was_welcomed_is_told_before_the_handle_is_gone() {
    let _watchdog = Watchdog::new("who_was_welcomed_is_told_before_the_handle_is_gone");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    // It sleeps for the Welcome, and who wakes it is often interrupted by it.
    let options = Options::new().wait(WaitStrategy::Park).handshake_timeout(LONG);
    for round in 0..3000 {
        let server = SharedMemoryServer::bind(&path).expect("binds").workers(1).spawn().expect("serves");
        let client = SharedMemoryClient::builder(&path).options(options.clone()).connect().expect("connects");
        drop(server);
        let end = client.next_push_timeout(Duration::ZERO);
        assert!(matches!(end, Err(CallError::Disconnected)), "round {round}: {end:?}");
    }
}

//! Calls between two processes: each kind of call, each error, each size.

use std::time::Duration;

use narrows::{CallError, HandlerError, Options, SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};

const ECHO: u32 = 1;
const LONG: Duration = Duration::from_secs(60);

fn serve() -> SharedMemoryServer {
    SharedMemoryServer::new()
        .inline(ECHO, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .method(2, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .method(3, |_, _| Err(HandlerError::new(7, "no")))
        .method(4, |_, _| panic!("oh"))
        .streaming(5, |request, chunks| {
            for i in 0..request.bytes()[0] {
                chunks.write_chunk(&vec![i; usize::from(i) * 1000])?;
            }
            Ok(())
        })
        .upload(6, |_, chunks, reply| {
            let mut sum = 0_usize;
            while let Some(chunk) = chunks.next_chunk()? {
                sum += chunk.len();
            }
            reply.extend_from_slice(&sum.to_le_bytes());
            Ok(())
        })
        .duplex(7, |_, chunks, out| {
            while let Some(chunk) = chunks.next_chunk()? {
                out.write_chunk(&chunk)?;
            }
            Ok(())
        })
        .inline(8, |request, _| Ok(request.connection().push(request.bytes())?))
}

fn pair(options: &Options) -> (SharedMemoryClient, std::thread::JoinHandle<Result<(), narrows::ServeError>>) {
    let (a, b) = options.pair().expect("a pair");
    let server = std::thread::spawn(move || serve().serve_stream(b));
    (SharedMemoryClient::over_with(a, options).expect("the handshake succeeds"), server)
}

/// An inline method finds the same bytes in every way of reading its request, wherever the request is stored.
#[test]
#[expect(unsafe_code, reason = "it reads a borrowed request in place")]
fn a_request_is_read_where_it_came() {
    let (a, b) = SharedMemoryStream::pair().expect("a pair");
    let placed = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = std::sync::Arc::clone(&placed);
    let server = SharedMemoryServer::new().inline(ECHO, move |request, reply| {
        let bytes = request.bytes();
        let mut part = vec![0; bytes.len() / 2];
        request.read_at(bytes.len() - part.len(), &mut part)?;
        assert!(bytes.ends_with(&part) && request.len() == bytes.len());
        assert!(request.read_at(bytes.len(), &mut [0]).is_err());
        assert!(request.read_at(usize::MAX, &mut [0; 2]).is_err());
        if let Some(raw) = request.raw() {
            assert_eq!(raw.len(), bytes.len());
            // SAFETY: the client waits for the reply and does not modify what it has committed.
            assert_eq!(unsafe { raw.as_slice() }, bytes);
            seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        reply.extend_from_slice(bytes);
        Ok(())
    });
    let handle = server.spawn().expect("a thread");
    handle.adopt(b);
    let client = SharedMemoryClient::over(a).expect("the handshake succeeds");
    let mut in_the_ring = 0;
    for size in [0, 1, 15, 26, 40, 63, 64, 65, 87, 88, 89, 95, 96, 97, 104, 105, 5000, 200_000] {
        let request: Vec<u8> = (0..size).map(|at: u32| at.to_le_bytes()[0]).collect();
        let before = placed.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(*client.call(ECHO, &request).expect("answers"), request);
        assert_eq!(*client.call_timeout(ECHO, &request, LONG).expect("answers"), request);
        let came = placed.load(std::sync::atomic::Ordering::Relaxed) - before;
        if (97..=5000).contains(&size) {
            assert_eq!(came, 2, "{size} bytes");
        }
        in_the_ring += came;
    }
    assert!(in_the_ring >= 8);
}

/// A thread that waits for a call is notified when another thread cancels it.
#[test]
fn another_thread_cancels() {
    let (a, b) = SharedMemoryStream::pair().expect("a pair");
    let server = std::thread::spawn(move || {
        let server = SharedMemoryServer::new().streaming(1, |_, chunks| {
            loop {
                chunks.write_chunk(&[1])?;
                chunks.write_chunk_timeout(&[2; 300_000], Duration::from_secs(3600))?;
            }
        });
        let server = server.method(2, |request, _| {
            while !request.is_cancelled() {
                std::thread::yield_now();
            }
            Ok(())
        });
        server.serve_stream(b)
    });
    let client = SharedMemoryClient::over(a).expect("the handshake succeeds");
    for round in 0..50 {
        let mut stream = client.call_streaming(1, &[]).expect("sends");
        let pending = client.start_call(2, &[]).expect("sends");
        let cancellers = [stream.canceller(), pending.canceller()];
        assert_eq!(stream.next_chunk().expect("comes"), Some(vec![1]));
        std::thread::scope(|scope| {
            scope.spawn(|| cancellers.iter().for_each(|canceller| canceller.cancel()));
            let end = stream.find_map(Result::err).expect("ends");
            assert!(matches!(end, CallError::Cancelled), "{round}: {end:?}");
            assert!(matches!(pending.wait(), Err(CallError::Cancelled)), "{round}");
        });
        cancellers.iter().for_each(|canceller| canceller.cancel());
    }
    drop(client);
    assert!(server.join().expect("no panic").is_ok());
}

/// A window is replenished even if the other side takes only a small part of it.
#[test]
fn windows_of_different_sizes_flow() {
    let (large, small) = (Options::new(), Options::new().stream_window(1024).push_window(1024));
    for [ours, theirs] in [[&large, &small], [&small, &large]] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let server = SharedMemoryServer::bind_with(&path, theirs).expect("binds");
        let server = server.duplex(1, |_, chunks, out| {
            while let Some(chunk) = chunks.next_chunk()? {
                out.write_chunk(&chunk)?;
            }
            Ok(())
        });
        let server = server.method(2, |request, _| Ok(request.connection().push(request.bytes())?));
        let handle = server.spawn().expect("serves");
        let client = SharedMemoryClient::builder(&path).options(ours.clone()).connect().expect("connects");
        let (mut up, mut down) = client.start_duplex(1, &[]).expect("sends");
        for i in 0..200_u8 {
            up.write_chunk(&[i; 700]).expect("sends");
            assert_eq!(down.next_chunk().expect("comes"), Some(vec![i; 700]));
            client.call(2, &[i; 700]).expect("answers");
            assert_eq!(client.next_push().expect("comes"), [i; 700]);
        }
        up.end().expect("sends");
        assert_eq!(down.next_chunk().expect("comes"), None);
        assert_eq!(handle.shutdown(Duration::from_secs(60)).cut_off, 0);
    }
}

#[test]
fn every_kind_of_call_in_every_ring() {
    let tiny = Options::new().slots(1).arena(64).max_calls_in_flight(1);
    let small = Options::new().slots(2).arena(1024).max_calls_in_flight(2);
    for options in [tiny, small, Options::new()] {
        let (client, server) = pair(&options);
        for len in [0, 1, 15, 26, 40, 41, 63, 64, 65, 104, 105, 1000, 65_528, 65_529, 300_000] {
            let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
            for method in [ECHO, 2] {
                assert_eq!(*client.call(method, &bytes).expect("answers"), *bytes, "{len}");
                let timed = client.call_timeout(method, &bytes, Duration::from_secs(60));
                assert_eq!(*timed.expect("answers"), *bytes, "{len}");
            }
        }
        let chunks: Vec<_> =
            client.call_streaming(5, &[9]).expect("sends").map(|c| c.expect("comes")).collect();
        assert_eq!(chunks, (0..9).map(|i| vec![i; usize::from(i) * 1000]).collect::<Vec<_>>());
        let mut upload = client.start_upload(6, &[]).expect("sends");
        for len in [0, 1, 1000, 20_000] {
            upload.write_chunk(&vec![1; len]).expect("sends");
        }
        assert_eq!(*upload.finish().expect("answers"), 21_001_usize.to_le_bytes());
        let (mut up, mut down) = client.start_duplex(7, &[]).expect("sends");
        for i in 0..50_u8 {
            up.write_chunk(&[i; 100]).expect("sends");
            assert_eq!(down.next_chunk().expect("comes"), Some(vec![i; 100]));
        }
        up.end().expect("sends");
        assert_eq!(down.next_chunk().expect("comes"), None);
        for i in 0..100_u8 {
            client.call(8, &[i]).expect("answers");
            assert_eq!(client.next_push().expect("comes"), [i]);
        }
        assert!(matches!(client.call(3, &[]), Err(CallError::Failed(error)) if error.code() == 7));
        assert!(matches!(client.call(4, &[]), Err(CallError::Panicked { message }) if message == "oh"));
        assert!(matches!(client.call(99, &[]), Err(CallError::UnknownMethod)));
        assert!(matches!(client.call(5, &[]), Err(CallError::WrongKind(_))));
        for i in 0..300_u32 {
            client.notify(2, &i.to_le_bytes()).expect("sends");
        }
        client.call(ECHO, &[]).expect("answers");
        drop((client, down));
        assert!(server.join().expect("no panic").is_ok());
    }
}

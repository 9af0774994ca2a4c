//! The contents of byte streams, and of buffers that are received into, when a connection ends or stalls.

use std::io::{BufRead, ErrorKind, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::Watchdog;
use narrows::{ConnectionError, Options, RecvError, SendTimeoutError, SharedMemoryStream};

const MOMENT: Duration = Duration::from_millis(20);

/// The receiving end of a connection whose sender left in the middle of a long message.
fn left_in_the_middle() -> SharedMemoryStream {
    let (mut a, b) = Options::new().slots(8).arena(4096).pair().expect("pair");
    assert_eq!(a.send_timeout(&[7; 9999], MOMENT), Err(SendTimeoutError::Timeout));
    b
}

#[test]
fn fragments_of_an_abandoned_message_are_never_bytes() {
    let _watch = Watchdog::new("fragments");
    let (mut reader, _writer) = left_in_the_middle().into_bytes();
    assert_eq!(reader.read(&mut [0; 64]).expect("a clean end"), 0);
    assert_eq!(reader.fill_buf().expect("a clean end"), b"");
    assert_eq!(reader.into_parts().1, b"");
}

#[test]
fn fragments_of_an_abandoned_message_are_not_left_in_the_buffer() {
    let _watch = Watchdog::new("buffer");
    for mut buffer in [Vec::new(), vec![1; 5], vec![1; 9999]] {
        let mut stream = left_in_the_middle();
        assert_eq!(
            stream.recv_into(&mut buffer),
            Err(RecvError::ConnectionLost(ConnectionError::Disconnected))
        );
        assert_eq!(buffer, b"");
    }
}

#[test]
fn empty_messages_do_not_move_the_deadline_of_a_read() {
    let _watch = Watchdog::new("empty messages");
    let (mut a, b) = SharedMemoryStream::pair().expect("pair");
    let mut reader = b.split().1.into_reader();
    reader.set_read_timeout(Some(MOMENT));
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let enough = Instant::now() + Duration::from_secs(30);
            while !over.load(Ordering::Relaxed) && Instant::now() < enough {
                a.try_send(b"").ok();
                std::thread::sleep(MOMENT / 20);
            }
        });
        let began = Instant::now();
        let error = reader.read(&mut [0; 8]).expect_err("no byte ever arrives");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        over.store(true, Ordering::Relaxed);
    });
}

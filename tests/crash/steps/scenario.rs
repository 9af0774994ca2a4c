//! The scenario of `steps.rs`: every kind of message both ways, and every kind of wait.
//!
//! ```text
//!   subject                                     survivor
//!     all kinds, 0 to 5 ──────────────────────▶   asleep at first, then late: no room for a while
//!     asleep at first       ◀──────────────────   all kinds, 0 to 5
//!     6, 7; waits for either; 8, 9 ───────────▶   late
//!     late                  ◀──────────────────   6, 7; waits for either; 8
//!     closes, or drops both halves                reads on to the end of each direction
//! ```

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use narrows::internal::Peek;
use narrows::{
    Options, Receiver, RecvTimeoutError, SendTimeoutError, Sender, SharedMemoryStream, WaitStrategy,
};

use crate::support::{LONG, fill, index_of};

/// Messages from the subject, if it completes the scenario.
pub(crate) const FROM_SUBJECT: u64 = 10;
/// The longest wait of the survivor, so that the test can observe that it times out.
pub(crate) const SLICE: Duration = Duration::from_millis(1);

/// A ring so small that both sides wait for room.
pub(crate) fn options() -> Options {
    Options::new().slots(2).arena(1024).wait(WaitStrategy::Park)
}

/// Messages received, the ends of both directions, the incoming pages at the end, and whether the subject has set its closed flag
/// in the outgoing direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) received: u64,
    pub(crate) incoming: RecvTimeoutError,
    pub(crate) outgoing: SendTimeoutError,
    pub(crate) pages: Peek,
    pub(crate) consumer_closed: bool,
}

/// The part of the survivor. It sleeps where the subject is to find it asleep, or late.
pub(crate) fn survive(mut stream: SharedMemoryStream, timeouts: &AtomicU64) -> Seen {
    let mut received = 0;
    let played = play_along(&mut stream, &mut received, timeouts);
    // Whatever ended it, each direction now reports its end, and reports it again.
    let (sender, receiver) = stream.halves();
    let incoming = loop {
        match next(receiver, &mut received, timeouts) {
            Ok(()) => {}
            Err(end) => break end,
        }
    };
    let mut message = Vec::new();
    fill(&mut message, 0, 700);
    let outgoing = (0..).find_map(|_| sender.send_timeout(&message, LONG).err()).expect("an end");
    match played.map_err(|error| error.to_string()) {
        Ok(()) => assert_eq!(received, FROM_SUBJECT),
        Err(first) => {
            assert!(first == incoming.to_string() || first == outgoing.to_string(), "first: {first}")
        }
    }
    assert_eq!(receiver.recv_timeout(&mut [0; 8], LONG), Err(incoming));
    assert!(sender.is_disconnected());
    let consumer_closed = sender.peek().consumer_closed;
    Seen { received, incoming, outgoing, pages: receiver.peek(), consumer_closed }
}

type Played = Result<(), Box<dyn std::error::Error>>;

fn play_along(stream: &mut SharedMemoryStream, received: &mut u64, timeouts: &AtomicU64) -> Played {
    let (sender, receiver) = stream.halves();
    next(receiver, received, timeouts)?; // It is asleep when this comes.
    sleep(SLICE); // The subject finds no room.
    (0..5).try_for_each(|_| next(receiver, received, timeouts))?;
    sleep(SLICE); // The subject sleeps.
    send_all_kinds(sender)?;
    sleep(SLICE); // The subject waits for either.
    (0..4).try_for_each(|_| next(receiver, received, timeouts))?;
    (6..8).try_for_each(|index| send(sender, index, 30))?;
    while stream.wait_either_timeout(30, SLICE) == Err(SendTimeoutError::Timeout) {
        timeouts.fetch_add(1, Ordering::SeqCst);
    }
    send(stream.halves().0, 8, 30)
}

/// Receives the next message, which must be whole and in order. Waits in slices, so that the test can observe the waits.
fn next(receiver: &mut Receiver, received: &mut u64, timeouts: &AtomicU64) -> Result<(), RecvTimeoutError> {
    let mut message = Vec::new();
    let deadline = Instant::now() + LONG;
    loop {
        match receiver.recv_into_timeout(&mut message, SLICE) {
            Ok(_) => break,
            Err(RecvTimeoutError::Timeout) => timeouts.fetch_add(1, Ordering::SeqCst),
            Err(end) => return Err(end),
        };
        assert!(Instant::now() < deadline, "neither a message nor an end after {received}");
    }
    assert_eq!(index_of(&message), Some(*received), "a torn message, or one out of turn");
    *received += 1;
    Ok(())
}

/// The part of the subject.
pub(crate) fn run_subject(mut stream: SharedMemoryStream, closes: bool) {
    sleep(SLICE / 2); // The survivor sleeps when the first comes.
    let (sender, receiver) = stream.halves();
    send_all_kinds(sender).expect("sends");
    let mut message = Vec::new();
    for index in 0..6 {
        if index == 1 {
            let guard = receiver.recv_ref_timeout(LONG).expect("borrowed");
            message = guard.to_vec().expect("whole");
        } else {
            receiver.recv_into_timeout(&mut message, LONG).expect("receives");
        }
        assert_eq!(index_of(&message), Some(index));
    }
    (6..8).for_each(|index| send(sender, index, 20).expect("sends"));
    let ready = stream.wait_either_timeout(20, LONG).expect("either");
    assert!(ready.space && !ready.message);
    let (sender, receiver) = stream.halves();
    (8..10).for_each(|index| send(sender, index, 20).expect("sends"));
    sleep(SLICE); // The survivor waits for either.
    for index in 6..9 {
        receiver.recv_into_timeout(&mut message, LONG).expect("receives");
        assert_eq!(index_of(&message), Some(index));
    }
    if closes {
        stream.close();
    } else {
        let (sender, receiver) = stream.split();
        drop(sender);
        drop(receiver);
    }
}

fn send(sender: &mut Sender, index: u64, len: usize) -> Played {
    let mut message = Vec::new();
    fill(&mut message, index, len);
    Ok(sender.send_timeout(&message, LONG)?)
}

/// Sends six messages: in a slot, in the arena, reserved, two in a batch, and in fragments.
fn send_all_kinds(sender: &mut Sender) -> Played {
    let mut message = Vec::new();
    send(sender, 0, 20)?;
    send(sender, 1, 300)?;
    let mut lost = sender.reserve_timeout(64, LONG)?;
    lost.write_all(&[0xee; 64]).expect("fits");
    drop(lost);
    fill(&mut message, 2, 40);
    let mut room = sender.reserve_timeout(message.len(), LONG)?;
    room.write_all(&message).expect("fits");
    room.commit()?;
    let mut batch = sender.batch();
    for (index, len) in [(3, 50), (4, 200)] {
        fill(&mut message, index, len);
        batch.push_timeout(&message, LONG)?;
    }
    batch.flush()?;
    drop(batch);
    send(sender, 5, 3000)
}

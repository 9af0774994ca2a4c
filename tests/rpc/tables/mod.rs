//! The tables of the call layer: every short life of one and two places, and what liars tried.
//!
//! ```text
//!   client_model.rs   every sequence of frames and operations ──▶ client::Table   against a list of calls
//!   server_model.rs   the same ──▶ Hall and Attendant over a ring of one slot     against what must be on the wire
//! ```
//!
//! Long random programs: `fuzz/bodies/tests/programs.rs`.
//!
//! What it does not show: what threads do at once (`loom-tests`).

mod client_model;
mod server_model;

use std::sync::Arc;
use std::time::Instant;

use narrows::internal::mem::Heap;
use narrows::internal::rpc::client;
use narrows::internal::rpc::server::{Gone, Hall, Limits, Parts, Table};
use narrows::internal::rpc::wire::{Head, Kind, STREAM, UPLOAD, cost};
use narrows::internal::{
    IncomingSignals, NoWaitPolicy, OobSender, ProtocolViolation, RealSync, ReceiverCore, SenderCore, Wait,
};

type Mem = Arc<Heap>;

/// What came of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    On,
    /// The connection is over.
    Over,
    /// It cannot happen now.
    Never,
}

/// A world, and what one would note of it on paper.
trait Plays {
    type Event: Copy;

    fn new(places: usize) -> Self;

    /// Lets it happen, in both, and compares.
    fn act(&mut self, event: Self::Event) -> Came;

    /// What is under way comes to its end.
    fn end(&mut self) {}
}

/// Plays every sequence of so many events; how many there are, with the shorter ones.
fn explore<W: Plays>(places: usize, events: &[W::Event], depth: usize) -> u64 {
    fn from<W: Plays>(places: usize, events: &[W::Event], prefix: &mut Vec<W::Event>, depth: usize) -> u64 {
        let mut played = 0;
        for &event in events {
            let mut world = W::new(places);
            prefix.iter().for_each(|&event| assert!(world.act(event) == Came::On));
            match world.act(event) {
                Came::Never => continue,
                Came::On if depth > 1 => {
                    prefix.push(event);
                    played += from::<W>(places, events, prefix, depth - 1);
                    prefix.pop();
                }
                Came::On => world.end(),
                Came::Over => {}
            }
            played += 1;
        }
        played
    }
    from::<W>(places, events, &mut Vec::new(), depth)
}

fn ring(slots: usize, places: usize) -> Mem {
    Arc::new(Heap::new(slots, 128, places))
}

fn outbound(mem: &Mem) -> SenderCore<Mem, NoWaitPolicy> {
    SenderCore::new(Arc::clone(mem), NoWaitPolicy, 0, 1024)
}

fn inbound(mem: &Mem) -> ReceiverCore<Mem, NoWaitPolicy> {
    ReceiverCore::new(Arc::clone(mem), NoWaitPolicy, 0, 1024)
}

/// A server whose ring to the client has one slot; all windows are two chunks of one byte.
fn hall(up: &Mem, down: &Mem, places: usize) -> Arc<Hall<Mem, NoWaitPolicy, RealSync>> {
    let window = 2 * cost(1);
    let limits = Limits { places, max: 16, piece: 32, window, push_window: window };
    let (table, ear) = (Table::new(limits), IncomingSignals::new(Arc::clone(up)));
    let parts = Parts { outbound: outbound(down), outgoing: Arc::clone(down), ear, table, piece: 32 };
    let hall = Arc::new(Hall::new(parts));
    hall.open(|_| ());
    hall
}

fn take(
    hall: &Hall<Mem, NoWaitPolicy, RealSync>,
    id: u64,
    head: Head,
    len: usize,
) -> Result<(), ProtocolViolation> {
    hall.with(|table| table.take(id, head, len, |_| (), |_, _| Ok(()))).map(drop)
}

/// A client that reads nothing must not have its server keep more and more of a stream.
#[test]
fn credit_for_what_was_not_sent_is_a_lie() {
    let credit = Head::new(Kind::Credit, cost(1));
    for stream in [true, false] {
        let hall = hall(&ring(8, 1), &ring(1, 1), 1);
        take(&hall, 1, Head::new(Kind::Call, 1).with(STREAM), 0).expect("honest");
        let past = Some(Instant::now());
        let write = || match stream {
            true => hall.write_chunk(1, &[7], past),
            false => hall.push(&[7], Wait::Never),
        };
        let id = u64::from(stream);
        assert_eq!([write(), write(), write()], [Ok(()), Ok(()), Err(Gone::Timeout)]);
        assert_eq!(take(&hall, id, credit, 0), Ok(()), "the first was sent");
        assert!(take(&hall, id, credit, 0).is_err(), "the second was not");
    }
}

/// A client that reads nothing must not have its server keep more and more credits.
#[test]
fn credit_that_cannot_be_sent_is_kept_once() {
    let hall = hall(&ring(8, 1), &ring(1, 1), 1);
    take(&hall, 1, Head::new(Kind::Call, 1).with(UPLOAD), 0).expect("honest");
    let taken = (1..100).take_while(|&seq| {
        let legal = take(&hall, 1, Head { seq, ..Head::new(Kind::Chunk, 0) }, 1).is_ok();
        if legal {
            hall.next_chunk(1, Some(Instant::now())).expect("it has come");
            hall.with(|table| table.audit());
        }
        legal
    });
    assert_eq!(taken.count(), 3, "the window, and the one credit that was sent");
}

/// A sender whose time is over may cancel a call whose place has another, cancelled one by then.
#[test]
fn an_old_cancel_hides_no_newer_one() {
    let (up, down) = (ring(8, 2), ring(8, 2));
    let desk: client::Desk<Mem, NoWaitPolicy, RealSync> = client::Desk::new(client::Parts {
        inbound: inbound(&down),
        outbound: outbound(&up),
        poster: OobSender::new(Arc::clone(&up)),
        ear: IncomingSignals::new(Arc::clone(&down)),
        table: client::Table::new(2, 16, 130, 130),
        places: 2,
        piece: 32,
    });
    let ear = IncomingSignals::new(up);
    [4, 2, 3].into_iter().for_each(|id| desk.cancel(id));
    assert_eq!([ear.oob(0), ear.oob(1)], [4, 3]);
}

/// The sequence of a stream's frames wraps, and goes on.
#[test]
fn a_sequence_wraps() {
    let mut assembly = narrows::internal::rpc::pieces::Assembly::default();
    for seq in (0..=u16::MAX).chain(0..3) {
        let head = Head { seq, ..Head::new(Kind::Chunk, 0) };
        assert_eq!(assembly.take(head, 0, 0, |_| ()), Ok(Some(head)));
    }
}

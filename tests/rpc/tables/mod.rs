//! The tables of the RPC layer: every short history of one and two slots, and attempts of hostile peers.
//!
//! ```text
//!   client_model.rs   every sequence of frames and operations ──▶ client::InFlightCalls   against a list of calls
//!   server_model.rs   the same ──▶ ServerConnection and its driver, ring of one slot       against what must be on the wire
//! ```
//!
//! Long random programs: `fuzz/bodies/tests/programs.rs`.
//!
//! What it does not show: what threads do at once (`loom-tests`).

mod client_model;
mod server_model;

use std::sync::Arc;
use std::time::Instant;

use narrows::internal::memory::Heap;
use narrows::internal::rpc::client;
use narrows::internal::rpc::flow_control::window_cost;
use narrows::internal::rpc::server::{
    CallLimits, RespondError, ServedCalls, ServerConnection, ServerConnectionParts,
};
use narrows::internal::rpc::wire::{FrameHeader, FrameKind, STREAM, UPLOAD};
use narrows::internal::{
    IncomingSignals, NoWaitPolicy, OobSender, ProtocolViolation, RealSync, ReceiverCore, SenderCore, Wait,
};

type Mem = Arc<Heap>;

/// The result of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    On,
    /// The connection is over.
    Over,
    /// It cannot happen now.
    Never,
}

/// The tested object, together with its model.
trait Plays {
    type Event: Copy;

    fn new(slots: usize) -> Self;

    /// Applies the event to both, and compares them.
    fn act(&mut self, event: Self::Event) -> Came;

    /// Lets all calls in flight end.
    fn end(&mut self) {}
}

/// Plays every sequence of up to `depth` events. Returns how many there are.
fn explore<W: Plays>(slots: usize, events: &[W::Event], depth: usize) -> u64 {
    fn from<W: Plays>(slots: usize, events: &[W::Event], prefix: &mut Vec<W::Event>, depth: usize) -> u64 {
        let mut played = 0;
        for &event in events {
            let mut world = W::new(slots);
            prefix.iter().for_each(|&event| assert!(world.act(event) == Came::On));
            match world.act(event) {
                Came::Never => continue,
                Came::On if depth > 1 => {
                    prefix.push(event);
                    played += from::<W>(slots, events, prefix, depth - 1);
                    prefix.pop();
                }
                Came::On => world.end(),
                Came::Over => {}
            }
            played += 1;
        }
        played
    }
    from::<W>(slots, events, &mut Vec::new(), depth)
}

fn ring(slots: usize, calls: usize) -> Mem {
    Arc::new(Heap::new(slots, 128, calls))
}

fn outbound(mem: &Mem) -> SenderCore<Mem, NoWaitPolicy> {
    SenderCore::new(Arc::clone(mem), NoWaitPolicy, 0, 1024)
}

fn inbound(mem: &Mem) -> ReceiverCore<Mem, NoWaitPolicy> {
    ReceiverCore::new(Arc::clone(mem), NoWaitPolicy, 0, 1024)
}

/// A server whose ring to the client has one slot; all windows are two chunks of one byte.
fn connection(up: &Mem, down: &Mem, slots: usize) -> Arc<ServerConnection<Mem, NoWaitPolicy, RealSync>> {
    let window = 2 * window_cost(1);
    let limits = CallLimits { slots, max_message: 16, max_fragment: 32, window, push_window: window };
    let (real, incoming) = (ServedCalls::new(limits), IncomingSignals::new(Arc::clone(up)));
    let parts = ServerConnectionParts {
        outbound: outbound(down),
        outgoing: Arc::clone(down),
        incoming,
        calls: real,
        max_fragment: 32,
    };
    let connection = Arc::new(ServerConnection::new(parts));
    connection.accept(|_| ());
    connection
}

fn take(
    connection: &ServerConnection<Mem, NoWaitPolicy, RealSync>,
    id: u64,
    head: FrameHeader,
    len: usize,
) -> Result<(), ProtocolViolation> {
    connection.with_calls(|real| real.on_frame(id, head, len, |_| (), |_, _| Ok(()))).map(drop)
}

/// A client that reads nothing must not have its server keep more and more of a stream.
#[test]
fn credit_for_unsent_data_is_a_violation() {
    let credit = FrameHeader::new(FrameKind::Credit, window_cost(1));
    for stream in [true, false] {
        let connection = connection(&ring(8, 1), &ring(1, 1), 1);
        take(&connection, 1, FrameHeader::new(FrameKind::Call, 1).with_flags(STREAM), 0)
            .expect("well-formed");
        let past = Some(Instant::now());
        let write = || match stream {
            true => connection.write_chunk(1, &[7], past),
            false => connection.push(&[7], Wait::Never),
        };
        let id = u64::from(stream);
        assert_eq!([write(), write(), write()], [Ok(()), Ok(()), Err(RespondError::Timeout)]);
        assert_eq!(take(&connection, id, credit, 0), Ok(()), "the first was sent");
        assert!(take(&connection, id, credit, 0).is_err(), "the second was not");
    }
}

/// A client that reads nothing must not have its server keep more and more credits.
#[test]
fn credit_that_cannot_be_sent_is_kept_once() {
    let connection = connection(&ring(8, 1), &ring(1, 1), 1);
    take(&connection, 1, FrameHeader::new(FrameKind::Call, 1).with_flags(UPLOAD), 0).expect("well-formed");
    let taken = (1..100).take_while(|&seq| {
        let legal =
            take(&connection, 1, FrameHeader { seq, ..FrameHeader::new(FrameKind::Chunk, 0) }, 1).is_ok();
        if legal {
            connection.next_chunk(1, Some(Instant::now())).expect("it has arrived");
            connection.with_calls(|real| real.audit());
        }
        legal
    });
    assert_eq!(taken.count(), 3, "the window, and the one credit that was sent");
}

/// A caller whose deadline has passed may cancel a call whose slot by then holds another, cancelled call.
#[test]
fn an_old_cancel_hides_no_newer_one() {
    let (up, down) = (ring(8, 2), ring(8, 2));
    let mux: client::Multiplexer<Mem, NoWaitPolicy, RealSync> =
        client::Multiplexer::new(client::MultiplexerParts {
            inbound: inbound(&down),
            outbound: outbound(&up),
            oob_sender: OobSender::new(Arc::clone(&up)),
            incoming: IncomingSignals::new(Arc::clone(&down)),
            calls: client::InFlightCalls::new(2, 16, 130, 130),
            slots: 2,
            max_fragment: 32,
        });
    let incoming = IncomingSignals::new(up);
    [4, 2, 3].into_iter().for_each(|id| mux.cancel(id));
    assert_eq!([incoming.oob(0), incoming.oob(1)], [4, 3]);
}

/// The sequence of a stream's frames wraps, and goes on.
#[test]
fn a_sequence_wraps() {
    let mut assembly = narrows::internal::rpc::fragment::Reassembler::default();
    for seq in (0..=u16::MAX).chain(0..3) {
        let head = FrameHeader { seq, ..FrameHeader::new(FrameKind::Chunk, 0) };
        assert_eq!(assembly.take(head, 0, 0, |_| ()), Ok(Some(head)));
    }
}

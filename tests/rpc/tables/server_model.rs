//! Every short history of a server's slots, over a ring to the client that has one slot: the frames on the wire are compared one
//! by one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::{Came, Mem, Plays, connection, explore, inbound, outbound, ring};
use crate::support::Watchdog;
use narrows::internal::rpc::flow_control::CHUNK_COST;
use narrows::internal::rpc::server::{
    BorrowedRequest, CallFailure, CallInfo, ConnectionDriver, Dispatch, Payload, RespondError,
    ServerConnection, UploadItem,
};
use narrows::internal::rpc::wire::{Frame, send_frame};
use narrows::internal::rpc::wire::{FrameHeader, FrameKind, MORE, STREAM, Status, UPLOAD};
use narrows::internal::{NoWaitPolicy, OobSender, RealSync, ReceiverCore, SenderCore, Wait};

/// The cost of a chunk of one byte.
const PRICE: u32 = CHUNK_COST + 1;

const REFUSED: u32 = 1;
const INLINE: u32 = 2;
const POOLED: u32 = 3;

/// What may happen, in which slot.
#[derive(Clone, Copy)]
enum Event {
    Call(usize, u32, u8),
    /// For the call in the slot: once more, one before it, one behind it, a sequence that is ahead.
    Again(usize),
    Stale(usize),
    Future(usize),
    Gap(usize),
    Frame(usize, FrameKind),
    PushCredit,
    Cancel(usize),
    Write(usize),
    Read(usize),
    Finish(usize),
    Fail(usize),
    Push,
    /// The client takes a frame.
    Drain,
}

fn events(slots: usize) -> Vec<Event> {
    let mut all = vec![Event::PushCredit, Event::Push, Event::Drain];
    for at in 0..slots {
        let calls = [(POOLED, 0), (POOLED, STREAM | UPLOAD), (POOLED, MORE), (REFUSED, 0), (INLINE, 0)];
        all.extend(calls.map(|(method, flags)| Event::Call(at, method, flags)));
        all.extend(
            [FrameKind::Chunk, FrameKind::Continuation, FrameKind::End, FrameKind::Credit]
                .map(|kind| Event::Frame(at, kind)),
        );
        all.extend([Event::Again(at), Event::Stale(at), Event::Future(at), Event::Gap(at)]);
        all.extend([Event::Cancel(at), Event::Write(at), Event::Read(at)]);
        all.extend([Event::Finish(at), Event::Fail(at)]);
    }
    all
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Phase {
    #[default]
    Idle,
    Receiving,
    Running,
    Closing,
}

/// The model of a slot. The last one is for pushes.
#[derive(Clone, Debug, Default)]
struct ModelSlot {
    id: u64,
    phase: Phase,
    flags: u8,
    received: u16,
    said: u16,
    chunks: usize,
    ended: bool,
    window: u32,
    credit: u32,
    outbox: VecDeque<FrameKind>,
}

#[derive(Default)]
struct Methods(Vec<u8>);

impl Dispatch<Mem, NoWaitPolicy> for Methods {
    fn admit(&mut self, method: u32, _flags: u8) -> Result<bool, CallFailure> {
        if method == REFUSED { Err((Status::Busy, 0, String::new())) } else { Ok(method == INLINE) }
    }

    fn dispatch(&mut self, _call: CallInfo, _request: Vec<u8>, _arrived: Option<Instant>) {}

    fn run_inline(
        &mut self,
        _: CallInfo,
        _: BorrowedRequest<'_, Mem, NoWaitPolicy>,
    ) -> Result<&mut Vec<u8>, CallFailure> {
        self.0 = vec![1];
        Ok(&mut self.0)
    }

    fn is_done(&self) -> bool {
        false
    }
}

struct World {
    connection: Arc<ServerConnection<Mem, NoWaitPolicy, RealSync>>,
    driver: ConnectionDriver<Mem, NoWaitPolicy, RealSync>,
    out: SenderCore<Mem, NoWaitPolicy>,
    inb: ReceiverCore<Mem, NoWaitPolicy>,
    poster: OobSender<Mem>,
    slots: Vec<ModelSlot>,
    wire: Option<(u64, FrameKind, u16)>,
    control: Vec<u64>,
    turns: VecDeque<usize>,
}

impl Plays for World {
    type Event = Event;

    fn new(count: usize) -> Self {
        let (up, down) = (ring(4, count), ring(1, count));
        let connection = connection(&up, &down, count);
        let mut slots: Vec<_> =
            (0..count).map(|at| ModelSlot { id: at as u64, ..ModelSlot::default() }).collect();
        slots.push(ModelSlot { credit: 2 * PRICE, ..ModelSlot::default() });
        Self {
            driver: ConnectionDriver::new(Arc::clone(&connection), inbound(&up)),
            connection,
            out: outbound(&up),
            inb: inbound(&down),
            poster: OobSender::new(up),
            slots,
            wire: None,
            control: Vec::new(),
            turns: VecDeque::new(),
        }
    }

    fn act(&mut self, event: Event) -> Came {
        let came = match event {
            Event::Call(at, method, flags) => self.call(at, method, flags),
            Event::Again(at) => {
                self.frame(self.slots[at].id, FrameHeader::new(FrameKind::Call, POOLED), 1, false)
            }
            Event::Stale(at) => match self.slots[at].id.checked_sub(self.count()) {
                None | Some(0) => Came::Never,
                Some(id) => self.frame(id, FrameHeader::new(FrameKind::Chunk, 0), 1, true),
            },
            Event::Future(at) => {
                self.frame(self.slots[at].id + self.count(), FrameHeader::new(FrameKind::Chunk, 0), 1, false)
            }
            Event::Gap(at) => self.known(at, FrameKind::Chunk, 1),
            Event::Frame(at, kind) => self.known(at, kind, 0),
            Event::PushCredit => {
                let legal = self.grant(self.slots.len() - 1);
                self.frame(0, FrameHeader::new(FrameKind::Credit, PRICE), 0, legal)
            }
            Event::Cancel(at) => self.cancel(at),
            Event::Push | Event::Write(_) => self.send_chunk(event),
            Event::Read(at) => self.read(at),
            Event::Finish(at) => self.finish(at),
            Event::Fail(at) => self.fail(at),
            Event::Drain => self.drain(),
        };
        if came == Came::On {
            self.driver.step(&mut Methods::default()).expect("well-formed");
            self.flush();
            let flying = self.slots.iter().filter(|slot| slot.phase != Phase::Idle).count();
            assert_eq!(self.connection.with_calls(|real| (real.audit(), real.in_flight()).1), flying);
            assert_eq!(
                self.connection.is_idle(),
                flying == 0 && self.turns.is_empty() && self.control.is_empty()
            );
        }
        came
    }

    fn end(&mut self) {
        while self.act(Event::Drain) == Came::On {}
    }
}

impl World {
    fn count(&self) -> u64 {
        self.slots.len() as u64 - 1
    }

    /// The client sends a frame, which is accepted if it is legal.
    fn frame(&mut self, id: u64, head: FrameHeader, len: usize, legal: bool) -> Came {
        if id == 0 && head.kind != FrameKind::Credit {
            return Came::Never;
        }
        send_frame(&mut self.out, head, [&[9][..len], &[]], id, Wait::Never).expect("room");
        let taken = self.driver.step(&mut Methods::default());
        assert_eq!(taken.is_ok(), legal, "{head:?} of {id}: {:?}", self.slots);
        if legal { Came::On } else { Came::Over }
    }

    fn call(&mut self, at: usize, method: u32, flags: u8) -> Came {
        let id = self.slots[at].id + self.count();
        let legal = self.slots[at].phase == Phase::Idle;
        if legal {
            let phase = if flags & MORE != 0 { Phase::Receiving } else { Phase::Running };
            let (window, credit) = (2 * PRICE, 2 * PRICE);
            self.slots[at] =
                ModelSlot { id, phase, flags, received: 1, window, credit, ..ModelSlot::default() };
            match method {
                REFUSED => self.leave(at, FrameKind::Error),
                INLINE => self.send(at, FrameKind::Reply),
                _ => {}
            }
        }
        self.frame(id, FrameHeader::new(FrameKind::Call, method).with_flags(flags), 1, legal)
    }

    /// Sends a frame of the call in the slot.
    fn known(&mut self, at: usize, kind: FrameKind, gap: u16) -> Came {
        let slot = &mut self.slots[at];
        if slot.id == 0 {
            return Came::Never; // That is the id of pushes.
        }
        let uploads = slot.flags & UPLOAD != 0 && !slot.ended;
        let (id, word) = (slot.id, if kind == FrameKind::Credit { PRICE } else { 0 });
        let seq = if kind.is_sequenced() { slot.received + gap } else { 0 };
        let legal = gap == 0
            && match (slot.phase, kind) {
                (Phase::Receiving, FrameKind::Continuation) => true,
                (Phase::Receiving, _) | (_, FrameKind::Continuation) => false,
                (_, FrameKind::Chunk) => uploads && slot.window >= PRICE,
                (_, FrameKind::End) => uploads,
                _ => slot.flags & STREAM != 0,
            };
        let open = matches!(slot.phase, Phase::Receiving | Phase::Running);
        let mut legal = legal || !open;
        if open && legal {
            slot.received += u16::from(kind.is_sequenced());
            match kind {
                FrameKind::Continuation => slot.phase = Phase::Running,
                FrameKind::End => slot.ended = true,
                FrameKind::Credit => legal = self.grant(at),
                _ => {
                    slot.window -= PRICE;
                    slot.chunks += 1;
                }
            }
        }
        let len = usize::from(matches!(kind, FrameKind::Chunk | FrameKind::Continuation));
        self.frame(id, FrameHeader { seq, ..FrameHeader::new(kind, word) }, len, legal)
    }

    /// Grants credit for what was sent.
    fn grant(&mut self, at: usize) -> bool {
        let slot = &mut self.slots[at];
        let waits =
            slot.outbox.iter().filter(|kind| matches!(kind, FrameKind::Chunk | FrameKind::Push)).count();
        slot.credit += PRICE;
        slot.credit + PRICE * u32::try_from(waits).expect("few") <= 2 * PRICE
    }

    fn is_idle(&self) -> bool {
        self.turns.is_empty() && self.control.is_empty()
    }

    /// Sends a frame at once if the ring has room.
    fn send(&mut self, at: usize, kind: FrameKind) {
        if self.is_idle() && self.wire.is_none() {
            return self.put_on_wire(at, kind);
        }
        self.leave(at, kind);
    }

    fn put_on_wire(&mut self, at: usize, kind: FrameKind) {
        let slot = &mut self.slots[at];
        let seq = if kind.is_sequenced() { slot.said } else { 0 };
        slot.said += u16::from(kind.is_sequenced());
        self.wire = Some((slot.id, kind, seq));
        if !matches!(kind, FrameKind::Chunk | FrameKind::Push | FrameKind::Credit) {
            (slot.phase, slot.chunks) = (Phase::Idle, 0);
        }
    }

    fn leave(&mut self, at: usize, kind: FrameKind) {
        let slot = &mut self.slots[at];
        if slot.outbox.is_empty() {
            self.turns.push_back(at);
        }
        slot.outbox.push_back(kind);
        if !matches!(kind, FrameKind::Chunk | FrameKind::Push) {
            (slot.phase, slot.chunks) = (Phase::Closing, 0);
        }
    }

    fn flush(&mut self) {
        while self.wire.is_none() {
            if !self.control.is_empty() {
                self.wire = Some((self.control.remove(0), FrameKind::Credit, 0));
                continue;
            }
            let Some(at) = self.turns.pop_front() else { return };
            let kind = self.slots[at].outbox.pop_front().expect("its turn");
            self.put_on_wire(at, kind);
            if !self.slots[at].outbox.is_empty() {
                self.turns.push_back(at);
            }
        }
    }

    fn cancel(&mut self, at: usize) -> Came {
        let slot = &mut self.slots[at];
        if slot.phase == Phase::Idle {
            return Came::Never;
        }
        self.poster.send_oob(u32::try_from(at).expect("small"), slot.id);
        let last = slot.outbox.front().is_some_and(|kind| *kind != FrameKind::Chunk);
        if !last {
            slot.outbox.clear();
            self.turns.retain(|it| *it != at);
            self.leave(at, FrameKind::Error);
        }
        Came::On
    }

    fn send_chunk(&mut self, event: Event) -> Came {
        let (at, kind) = match event {
            Event::Write(at) => (at, FrameKind::Chunk),
            _ => (self.slots.len() - 1, FrameKind::Push),
        };
        let slot = &mut self.slots[at];
        let open = kind == FrameKind::Push || (slot.phase == Phase::Running && slot.flags & STREAM != 0);
        if !open {
            return Came::Never;
        }
        let room = slot.credit >= PRICE;
        let said = match kind {
            FrameKind::Push => self.connection.push(&[5], Wait::Never),
            _ => self.connection.write_chunk(slot.id, &[5], Some(Instant::now())),
        };
        assert_eq!(said, if room { Ok(()) } else { Err(RespondError::Timeout) });
        if !room {
            return Came::Never;
        }
        slot.credit -= PRICE;
        self.send(at, kind);
        Came::On
    }

    fn read(&mut self, at: usize) -> Came {
        let slot = &mut self.slots[at];
        if slot.phase != Phase::Running || slot.flags & UPLOAD == 0 {
            return Came::Never;
        }
        let id = slot.id;
        let read = self.connection.next_chunk(id, Some(Instant::now()));
        if slot.chunks == 0 {
            assert_eq!(read, if slot.ended { Ok(UploadItem::End) } else { Err(RespondError::Timeout) });
            return Came::Never;
        }
        assert_eq!(read, Ok(UploadItem::Chunk(vec![9])));
        slot.chunks -= 1;
        if !slot.ended {
            slot.window += PRICE;
            if !self.control.contains(&id) {
                self.control.push(id);
            }
            self.flush();
        }
        Came::On
    }

    fn finish(&mut self, at: usize) -> Came {
        let slot = &self.slots[at];
        let (id, runs) = (slot.id, slot.phase == Phase::Running);
        assert_eq!(self.connection.with_calls(|real| real.is_running(id)), runs);
        let kind = if slot.flags & STREAM != 0 { FrameKind::End } else { FrameKind::Reply };
        self.connection.finish(id, FrameHeader::new(kind, 0), Payload::Borrowed(&[][..]));
        if !runs {
            return Came::Never;
        }
        self.send(at, kind);
        Came::On
    }

    fn fail(&mut self, at: usize) -> Came {
        self.connection.fail(self.slots[at].id, &(Status::Failed, 0, String::new()));
        if self.slots[at].phase != Phase::Running {
            return Came::Never;
        }
        self.leave(at, FrameKind::Error);
        Came::On
    }

    fn drain(&mut self) -> Came {
        let message = self.inb.next(Wait::Never).ok();
        let frame = message.map(|message| Frame::open(&self.inb, &message).expect("a frame"));
        let came = frame.map(|frame| (frame.id, frame.head.kind, frame.head.seq));
        assert_eq!(came, self.wire.take(), "what is on the wire");
        let Some(frame) = frame else { return Came::Never };
        self.inb.release(frame.message()).expect("well-formed");
        Came::On
    }
}

#[test]
fn every_short_history_of_a_servers_slots() {
    let _watch = Watchdog::new("a server's places");
    for (slots, depth, least) in [(1, 5, 5_000), (2, 4, 5_000)] {
        let played = explore::<World>(slots, &events(slots), depth);
        println!("{played} histories of {slots} slots");
        assert!(played > least, "{played}");
    }
}

//! Every short history of a client's slots: well-formed and wrong frames of a server, and the client's own operations.

use std::collections::BTreeMap;

use super::{Came, Plays, explore};
use crate::support::Watchdog;
use narrows::internal::rpc::client::{CallOutcome, InFlightCalls, Wakeup};
use narrows::internal::rpc::flow_control::window_cost;
use narrows::internal::rpc::wire::{FrameHeader, FrameKind, MORE, NOTIFY, STREAM, Status, UPLOAD};

/// Two chunks of a byte, and one byte more.
const STREAM_WINDOW: u32 = 131;
/// One chunk, one push.
const WINDOW: u32 = 65;
const MAX: usize = 2;

/// What may happen. The number selects one of the calls that have a caller, oldest first.
#[derive(Clone, Copy, Debug)]
enum Event {
    Open(u8),
    Frame(usize, FrameKind, u8),
    /// With a sequence that is ahead.
    Gap(usize),
    /// For the call that ended last.
    Stale,
    Push,
    Abandon(usize),
    Finish(usize),
    Chunk(usize),
    Spend(usize),
    TakePush,
}

fn events() -> Vec<Event> {
    let mut all = vec![Event::Open(0), Event::Open(STREAM | UPLOAD), Event::Open(NOTIFY)];
    all.extend([Event::Stale, Event::Push, Event::TakePush]);
    for at in 0..2 {
        let frames = [
            FrameKind::Reply,
            FrameKind::Chunk,
            FrameKind::Continuation,
            FrameKind::End,
            FrameKind::Error,
            FrameKind::Credit,
        ];
        all.extend(frames.map(|kind| Event::Frame(at, kind, 0)));
        all.extend([FrameKind::Reply, FrameKind::Chunk].map(|kind| Event::Frame(at, kind, MORE)));
        all.extend([
            Event::Gap(at),
            Event::Abandon(at),
            Event::Finish(at),
            Event::Chunk(at),
            Event::Spend(at),
        ]);
    }
    all
}

/// The model of a call.
#[derive(Clone, Debug, Default)]
struct Call {
    flags: u8,
    seq: u16,
    waited: bool,
    live: bool,
    /// The first fragment of an item has arrived.
    part: bool,
    chunks: usize,
    end: Option<CallOutcome>,
    window: u32,
    owed: u32,
    credit: u32,
}

struct World {
    real: InFlightCalls,
    slots: u64,
    calls: BTreeMap<u64, Call>,
    used: u64,
    stale: Option<u64>,
    pushes: usize,
    push_seq: u16,
    push_left: u32,
}

impl Plays for World {
    type Event = Event;

    fn new(slots: usize) -> Self {
        let real = InFlightCalls::new(slots, MAX, STREAM_WINDOW, WINDOW);
        let (calls, slots) = (BTreeMap::new(), slots as u64);
        Self { real, slots, calls, used: 0, stale: None, pushes: 0, push_seq: 0, push_left: WINDOW }
    }

    fn act(&mut self, event: Event) -> Came {
        let came = match event {
            Event::Open(flags) => self.open(flags),
            Event::Push => self.push(),
            Event::TakePush => self.take_push(),
            Event::Stale => match self.stale {
                Some(id) => self.frame(id, FrameKind::Reply, 0, 0),
                None => Came::Never,
            },
            Event::Frame(at, ..)
            | Event::Gap(at)
            | Event::Abandon(at)
            | Event::Finish(at)
            | Event::Chunk(at)
            | Event::Spend(at) => match (self.id(at), event) {
                (None, _) => Came::Never,
                (Some(id), Event::Frame(_, kind, flags)) => self.frame(id, kind, flags, 0),
                (Some(id), Event::Gap(_)) => self.frame(id, FrameKind::Reply, 0, 1),
                (Some(id), event) => self.own(id, event),
            },
        };
        if came == Came::On {
            self.real.audit();
            assert_eq!(self.real.has_room(), self.live() < self.slots);
        }
        came
    }
}

impl World {
    fn live(&self) -> u64 {
        self.calls.values().filter(|call| call.live).count() as u64
    }

    fn id(&self, at: usize) -> Option<u64> {
        // An abandoned call stays, and gets frames, until its last one has arrived.
        self.calls.keys().copied().nth(at)
    }

    fn open(&mut self, flags: u8) -> Came {
        let room = self.live() < self.slots;
        let opened = self.real.open(1, flags);
        assert_eq!(opened.is_some(), room);
        let Some(id) = opened else { return Came::Never };
        let taken = self.calls.iter().any(|(it, call)| call.live && it % self.slots == id % self.slots);
        assert!(!taken && id > 0 && !self.calls.contains_key(&id) && self.stale != Some(id));
        let waited = flags & NOTIFY == 0;
        let (window, credit) = (STREAM_WINDOW, STREAM_WINDOW);
        self.calls.insert(id, Call { flags, waited, live: true, window, credit, ..Call::default() });
        self.used += 1;
        assert_eq!(self.real.opened(), self.used);
        Came::On
    }

    fn frame(&mut self, id: u64, kind: FrameKind, flags: u8, gap: u16) -> Came {
        let mut call = self.calls.get(&id).cloned().unwrap_or_default();
        let (len, word) = match kind {
            FrameKind::Error => (4, Status::Failed as u32),
            FrameKind::Credit => (0, WINDOW),
            FrameKind::End => (0, 0),
            _ => (1, 0),
        };
        let seq = if kind.is_sequenced() { call.seq + gap } else { 0 };
        let head = FrameHeader { seq, ..FrameHeader::new(kind, word).with_flags(flags) };
        let legal = gap == 0 && call.live && call.receive(kind, flags);
        let change = self.real.on_frame(id, head, len, |body| body.fill(0));
        assert_eq!(change.is_ok(), legal, "{change:?} {head:?} {call:?}");
        if !legal {
            return Came::Over;
        }
        call.seq += u16::from(kind.is_sequenced());
        let freed = !call.live && !call.waited;
        assert_eq!(change == Ok(Wakeup::SlotFreed), freed);
        match freed {
            true => self.drop(id),
            false => drop(self.calls.insert(id, call)),
        }
        Came::On
    }

    fn drop(&mut self, id: u64) {
        self.calls.remove(&id);
        self.stale = Some(id);
    }

    fn own(&mut self, id: u64, event: Event) -> Came {
        let call = self.calls.get_mut(&id).expect("it is there");
        if !call.waited {
            return Came::Never;
        }
        match event {
            Event::Abandon(_) => {
                assert_eq!(self.real.abandon(id), call.live);
                (call.waited, call.chunks) = (false, 0);
                if !call.live {
                    self.drop(id);
                }
            }
            Event::Finish(_) => {
                let end = call.end.clone().filter(|_| call.chunks == 0);
                let mut buffer = Vec::new();
                assert_eq!(self.real.take_outcome(id, &mut buffer), end);
                if end.is_none() {
                    return Came::Never;
                }
                assert_eq!(buffer.is_empty(), end != Some(CallOutcome::Reply));
                self.drop(id);
            }
            Event::Chunk(_) => {
                let chunk = self.real.next_chunk(id);
                assert_eq!(chunk.is_some(), call.chunks > 0);
                let Some(chunk) = chunk else { return Came::Never };
                call.chunks -= 1;
                call.owed += window_cost(chunk.len());
                let owed = self.real.take_owed_credit(id);
                assert_eq!(owed, Some(call.owed).filter(|_| call.live));
                if owed.is_some() {
                    call.window += std::mem::take(&mut call.owed);
                }
            }
            _ => {
                let spent = self.real.spend_credit(id, WINDOW);
                assert_eq!(spent.ok(), call.live.then_some(call.credit >= WINDOW));
                if spent != Ok(true) {
                    return Came::Never;
                }
                call.credit -= WINDOW;
            }
        }
        Came::On
    }

    fn push(&mut self) -> Came {
        let head = FrameHeader { seq: self.push_seq, ..FrameHeader::new(FrameKind::Push, 0) };
        let legal = self.push_left >= WINDOW;
        let change = self.real.on_frame(0, head, 1, |body| body.fill(0));
        assert_eq!(change.ok(), legal.then_some(Wakeup::Push));
        if !legal {
            return Came::Over;
        }
        self.push_seq += 1;
        self.push_left -= WINDOW;
        self.pushes += 1;
        Came::On
    }

    fn take_push(&mut self) -> Came {
        let push = self.real.next_push();
        assert_eq!(push.is_some(), self.pushes > 0);
        if push.is_none() {
            return Came::Never;
        }
        assert_eq!(self.real.take_owed_push_credit(), Some(WINDOW));
        self.pushes -= 1;
        self.push_left += WINDOW;
        Came::On
    }
}

impl Call {
    /// Returns whether a well-formed server could send this now, and applies it to the model.
    fn receive(&mut self, kind: FrameKind, flags: u8) -> bool {
        let (streams, more) = (self.flags & STREAM != 0, flags & MORE != 0);
        let price = if kind == FrameKind::Chunk { WINDOW } else { 1 };
        let end = match kind {
            FrameKind::Error => CallOutcome::Failed(Status::Failed, 0, String::new()),
            FrameKind::Credit => {
                self.credit += WINDOW;
                return self.flags & UPLOAD != 0 && self.credit <= STREAM_WINDOW;
            }
            FrameKind::End => {
                let legal = streams && !self.part;
                self.finish(CallOutcome::End);
                return legal;
            }
            _ => {
                let fits = kind == FrameKind::Continuation || streams == (kind == FrameKind::Chunk);
                let paid = !streams || self.window >= price;
                if !fits || !paid || self.part != (kind == FrameKind::Continuation) {
                    return false;
                }
                self.window -= if streams { price } else { 0 };
                self.part = more;
                if streams && !more && self.waited {
                    self.chunks += 1;
                }
                if streams || more {
                    return true;
                }
                CallOutcome::Reply
            }
        };
        self.finish(end);
        true
    }

    fn finish(&mut self, end: CallOutcome) {
        self.live = false;
        self.end = Some(end).filter(|_| self.waited);
    }
}

#[test]
fn every_short_history_of_a_clients_slots() {
    let _watch = Watchdog::new("a client's places");
    let events = events();
    for (slots, depth, least) in [(1, 7, 200_000), (2, 6, 200_000)] {
        let played = explore::<World>(slots, &events, depth);
        println!("{played} histories of {slots} slots");
        assert!(played > least, "{played}");
    }
}

//! Every short life of a server's places, over a ring to the client that has one slot: what is on the wire is told
//! frame by frame.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::{Came, Mem, Plays, explore, hall, inbound, outbound, ring};
use crate::support::Watchdog;
use narrows::internal::rpc::frame::{Frame, send};
use narrows::internal::rpc::server::{Attendant, Body, Failure, Given, Gone, Hall, Service, Started, Upload};
use narrows::internal::rpc::wire::{CHUNK_COST, Head, Kind, MORE, STREAM, Status, UPLOAD};
use narrows::internal::{NoWaitPolicy, OobSender, RealSync, ReceiverCore, SenderCore, Wait};

/// What a chunk of one byte costs.
const PRICE: u32 = CHUNK_COST + 1;

const REFUSED: u32 = 1;
const INLINE: u32 = 2;
const POOLED: u32 = 3;

/// What may happen, in which place.
#[derive(Clone, Copy)]
enum Event {
    Call(usize, u32, u8),
    /// Of the call that is there: once more, one before it, one behind it, a sequence that is ahead.
    Again(usize),
    Stale(usize),
    Future(usize),
    Gap(usize),
    Frame(usize, Kind),
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

fn events(places: usize) -> Vec<Event> {
    let mut all = vec![Event::PushCredit, Event::Push, Event::Drain];
    for at in 0..places {
        let calls = [(POOLED, 0), (POOLED, STREAM | UPLOAD), (POOLED, MORE), (REFUSED, 0), (INLINE, 0)];
        all.extend(calls.map(|(method, flags)| Event::Call(at, method, flags)));
        all.extend([Kind::Chunk, Kind::Rest, Kind::End, Kind::Credit].map(|kind| Event::Frame(at, kind)));
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

/// A place, as one would note it on paper. The last one is for pushes.
#[derive(Clone, Debug, Default)]
struct Place {
    id: u64,
    phase: Phase,
    flags: u8,
    heard: u16,
    said: u16,
    chunks: usize,
    ended: bool,
    window: u32,
    credit: u32,
    outbox: VecDeque<Kind>,
}

#[derive(Default)]
struct Methods(Vec<u8>);

impl Service<Mem, NoWaitPolicy> for Methods {
    fn admit(&mut self, method: u32, _flags: u8) -> Result<bool, Failure> {
        if method == REFUSED { Err((Status::Busy, 0, String::new())) } else { Ok(method == INLINE) }
    }

    fn run(&mut self, _call: Started, _request: Vec<u8>, _arrived: Option<Instant>) {}

    fn run_in_place(&mut self, _: Started, _: Given<'_, Mem, NoWaitPolicy>) -> Result<&mut Vec<u8>, Failure> {
        self.0 = vec![1];
        Ok(&mut self.0)
    }

    fn is_over(&self) -> bool {
        false
    }
}

struct World {
    hall: Arc<Hall<Mem, NoWaitPolicy, RealSync>>,
    attendant: Attendant<Mem, NoWaitPolicy, RealSync>,
    out: SenderCore<Mem, NoWaitPolicy>,
    inb: ReceiverCore<Mem, NoWaitPolicy>,
    poster: OobSender<Mem>,
    places: Vec<Place>,
    wire: Option<(u64, Kind, u16)>,
    control: Vec<u64>,
    turns: VecDeque<usize>,
}

impl Plays for World {
    type Event = Event;

    fn new(count: usize) -> Self {
        let (up, down) = (ring(4, count), ring(1, count));
        let hall = hall(&up, &down, count);
        let mut places: Vec<_> = (0..count).map(|at| Place { id: at as u64, ..Place::default() }).collect();
        places.push(Place { credit: 2 * PRICE, ..Place::default() });
        Self {
            attendant: Attendant::new(Arc::clone(&hall), inbound(&up)),
            hall,
            out: outbound(&up),
            inb: inbound(&down),
            poster: OobSender::new(up),
            places,
            wire: None,
            control: Vec::new(),
            turns: VecDeque::new(),
        }
    }

    fn act(&mut self, event: Event) -> Came {
        let came = match event {
            Event::Call(at, method, flags) => self.call(at, method, flags),
            Event::Again(at) => self.frame(self.places[at].id, Head::new(Kind::Call, POOLED), 1, false),
            Event::Stale(at) => match self.places[at].id.checked_sub(self.count()) {
                None | Some(0) => Came::Never,
                Some(id) => self.frame(id, Head::new(Kind::Chunk, 0), 1, true),
            },
            Event::Future(at) => {
                self.frame(self.places[at].id + self.count(), Head::new(Kind::Chunk, 0), 1, false)
            }
            Event::Gap(at) => self.known(at, Kind::Chunk, 1),
            Event::Frame(at, kind) => self.known(at, kind, 0),
            Event::PushCredit => {
                let legal = self.grant(self.places.len() - 1);
                self.frame(0, Head::new(Kind::Credit, PRICE), 0, legal)
            }
            Event::Cancel(at) => self.cancel(at),
            Event::Push | Event::Write(_) => self.say_chunk(event),
            Event::Read(at) => self.read(at),
            Event::Finish(at) => self.finish(at),
            Event::Fail(at) => self.fail(at),
            Event::Drain => self.drain(),
        };
        if came == Came::On {
            self.attendant.step(&mut Methods::default()).expect("honest");
            self.flush();
            let flying = self.places.iter().filter(|place| place.phase != Phase::Idle).count();
            assert_eq!(self.hall.with(|table| (table.audit(), table.in_flight()).1), flying);
            assert_eq!(self.hall.is_quiet(), flying == 0 && self.turns.is_empty() && self.control.is_empty());
        }
        came
    }

    fn end(&mut self) {
        while self.act(Event::Drain) == Came::On {}
    }
}

impl World {
    fn count(&self) -> u64 {
        self.places.len() as u64 - 1
    }

    /// The client sends a frame, which is taken if it is legal.
    fn frame(&mut self, id: u64, head: Head, len: usize, legal: bool) -> Came {
        if id == 0 && head.kind != Kind::Credit {
            return Came::Never;
        }
        send(&mut self.out, head, [&[9][..len], &[]], id, Wait::Never).expect("room");
        let taken = self.attendant.step(&mut Methods::default());
        assert_eq!(taken.is_ok(), legal, "{head:?} of {id}: {:?}", self.places);
        if legal { Came::On } else { Came::Over }
    }

    fn call(&mut self, at: usize, method: u32, flags: u8) -> Came {
        let id = self.places[at].id + self.count();
        let legal = self.places[at].phase == Phase::Idle;
        if legal {
            let phase = if flags & MORE != 0 { Phase::Receiving } else { Phase::Running };
            let (window, credit) = (2 * PRICE, 2 * PRICE);
            self.places[at] = Place { id, phase, flags, heard: 1, window, credit, ..Place::default() };
            match method {
                REFUSED => self.leave(at, Kind::Error),
                INLINE => self.say(at, Kind::Reply),
                _ => {}
            }
        }
        self.frame(id, Head::new(Kind::Call, method).with(flags), 1, legal)
    }

    /// A frame of the call that is there.
    fn known(&mut self, at: usize, kind: Kind, gap: u16) -> Came {
        let place = &mut self.places[at];
        if place.id == 0 {
            return Came::Never; // That is the id of pushes.
        }
        let uploads = place.flags & UPLOAD != 0 && !place.ended;
        let (id, word) = (place.id, if kind == Kind::Credit { PRICE } else { 0 });
        let seq = if kind.counted() { place.heard + gap } else { 0 };
        let legal = gap == 0
            && match (place.phase, kind) {
                (Phase::Receiving, Kind::Rest) => true,
                (Phase::Receiving, _) | (_, Kind::Rest) => false,
                (_, Kind::Chunk) => uploads && place.window >= PRICE,
                (_, Kind::End) => uploads,
                _ => place.flags & STREAM != 0,
            };
        let open = matches!(place.phase, Phase::Receiving | Phase::Running);
        let mut legal = legal || !open;
        if open && legal {
            place.heard += u16::from(kind.counted());
            match kind {
                Kind::Rest => place.phase = Phase::Running,
                Kind::End => place.ended = true,
                Kind::Credit => legal = self.grant(at),
                _ => {
                    place.window -= PRICE;
                    place.chunks += 1;
                }
            }
        }
        let len = usize::from(matches!(kind, Kind::Chunk | Kind::Rest));
        self.frame(id, Head { seq, ..Head::new(kind, word) }, len, legal)
    }

    /// Credit for what was sent.
    fn grant(&mut self, at: usize) -> bool {
        let place = &mut self.places[at];
        let waits = place.outbox.iter().filter(|kind| matches!(kind, Kind::Chunk | Kind::Push)).count();
        place.credit += PRICE;
        place.credit + PRICE * u32::try_from(waits).expect("few") <= 2 * PRICE
    }

    fn is_idle(&self) -> bool {
        self.turns.is_empty() && self.control.is_empty()
    }

    /// Says a thing at once if it can.
    fn say(&mut self, at: usize, kind: Kind) {
        if self.is_idle() && self.wire.is_none() {
            return self.put_on_wire(at, kind);
        }
        self.leave(at, kind);
    }

    fn put_on_wire(&mut self, at: usize, kind: Kind) {
        let place = &mut self.places[at];
        let seq = if kind.counted() { place.said } else { 0 };
        place.said += u16::from(kind.counted());
        self.wire = Some((place.id, kind, seq));
        if !matches!(kind, Kind::Chunk | Kind::Push | Kind::Credit) {
            (place.phase, place.chunks) = (Phase::Idle, 0);
        }
    }

    fn leave(&mut self, at: usize, kind: Kind) {
        let place = &mut self.places[at];
        if place.outbox.is_empty() {
            self.turns.push_back(at);
        }
        place.outbox.push_back(kind);
        if !matches!(kind, Kind::Chunk | Kind::Push) {
            (place.phase, place.chunks) = (Phase::Closing, 0);
        }
    }

    fn flush(&mut self) {
        while self.wire.is_none() {
            if !self.control.is_empty() {
                self.wire = Some((self.control.remove(0), Kind::Credit, 0));
                continue;
            }
            let Some(at) = self.turns.pop_front() else { return };
            let kind = self.places[at].outbox.pop_front().expect("its turn");
            self.put_on_wire(at, kind);
            if !self.places[at].outbox.is_empty() {
                self.turns.push_back(at);
            }
        }
    }

    fn cancel(&mut self, at: usize) -> Came {
        let place = &mut self.places[at];
        if place.phase == Phase::Idle {
            return Came::Never;
        }
        self.poster.send_oob(u32::try_from(at).expect("small"), place.id);
        let last = place.outbox.front().is_some_and(|kind| *kind != Kind::Chunk);
        if !last {
            place.outbox.clear();
            self.turns.retain(|it| *it != at);
            self.leave(at, Kind::Error);
        }
        Came::On
    }

    fn say_chunk(&mut self, event: Event) -> Came {
        let (at, kind) = match event {
            Event::Write(at) => (at, Kind::Chunk),
            _ => (self.places.len() - 1, Kind::Push),
        };
        let place = &mut self.places[at];
        let open = kind == Kind::Push || (place.phase == Phase::Running && place.flags & STREAM != 0);
        if !open {
            return Came::Never;
        }
        let room = place.credit >= PRICE;
        let said = match kind {
            Kind::Push => self.hall.push(&[5], Wait::Never),
            _ => self.hall.write_chunk(place.id, &[5], Some(Instant::now())),
        };
        assert_eq!(said, if room { Ok(()) } else { Err(Gone::Timeout) });
        if !room {
            return Came::Never;
        }
        place.credit -= PRICE;
        self.say(at, kind);
        Came::On
    }

    fn read(&mut self, at: usize) -> Came {
        let place = &mut self.places[at];
        if place.phase != Phase::Running || place.flags & UPLOAD == 0 {
            return Came::Never;
        }
        let id = place.id;
        let read = self.hall.next_chunk(id, Some(Instant::now()));
        if place.chunks == 0 {
            assert_eq!(read, if place.ended { Ok(Upload::End) } else { Err(Gone::Timeout) });
            return Came::Never;
        }
        assert_eq!(read, Ok(Upload::Chunk(vec![9])));
        place.chunks -= 1;
        if !place.ended {
            place.window += PRICE;
            if !self.control.contains(&id) {
                self.control.push(id);
            }
            self.flush();
        }
        Came::On
    }

    fn finish(&mut self, at: usize) -> Came {
        let place = &self.places[at];
        let (id, runs) = (place.id, place.phase == Phase::Running);
        assert_eq!(self.hall.with(|table| table.runs(id)), runs);
        let kind = if place.flags & STREAM != 0 { Kind::End } else { Kind::Reply };
        self.hall.finish(id, Head::new(kind, 0), Body::Lent(&[][..]));
        if !runs {
            return Came::Never;
        }
        self.say(at, kind);
        Came::On
    }

    fn fail(&mut self, at: usize) -> Came {
        self.hall.fail(self.places[at].id, &(Status::Failed, 0, String::new()));
        if self.places[at].phase != Phase::Running {
            return Came::Never;
        }
        self.leave(at, Kind::Error);
        Came::On
    }

    fn drain(&mut self) -> Came {
        let message = self.inb.next(Wait::Never).ok();
        let frame = message.map(|message| Frame::open(&self.inb, &message).expect("a frame"));
        let came = frame.map(|frame| (frame.id, frame.head.kind, frame.head.seq));
        assert_eq!(came, self.wire.take(), "what is on the wire");
        let Some(frame) = frame else { return Came::Never };
        self.inb.release(frame.message()).expect("honest");
        Came::On
    }
}

#[test]
fn every_short_life_of_a_servers_places() {
    let _watch = Watchdog::new("a server's places");
    for (places, depth, least) in [(1, 5, 5_000), (2, 4, 5_000)] {
        let played = explore::<World>(places, &events(places), depth);
        println!("{played} lives of {places} places");
        assert!(played > least, "{played}");
    }
}

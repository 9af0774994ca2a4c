//! Both ends of a ring over a memory that lies at every load: typed errors, bounded work, bounded memory.
//!
//! ```text
//!   halves   Outbound, Inbound, beds, poster   work per call: O(slots) loads per round, O(arena) bytes
//!   parts    Producer, Consumer                no word is loaded twice for one decision
//! ```
//!
//! A round is a lap of the ring and a wait; there are as many as the clock allows, and a few more.

use std::io::IoSlice;
use std::time::Instant;

use super::bytes::Bytes;
use super::liar::{Liar, Read};
use crate::channel::{Inbound, Incoming, NoPace, Outbound, Received, RecvFault, SendFault, Wait};
use crate::error::Ended;
use crate::layout::{Kind, LAST_TICKET};
use crate::mem::{Field, Flag, GRAIN, INLINE, Memory, Tail, Word};
use crate::ring::{
    Arrival, Bed, Consumer, Cursor, Fate, Poster, Producer, Refusal, alarm, bell, ended, rouse, sleep, urgent,
};

/// Operations after which a run has seen enough.
const STEPS: usize = 120;

/// Drives both ends by the bytes, and lets the bytes answer every load.
pub fn ring_hostile(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let (slots, arena) = (1 << bytes.below(4), 64 << bytes.below(7));
    let first = match bytes.below(4) {
        0 => 0,
        1 => u64::from(bytes.u8()),
        2 => LAST_TICKET - u64::from(bytes.u8() % 16),
        _ => bytes.number().min(LAST_TICKET),
    };
    let max = bytes.pick(&[1, INLINE, 200, 1000, 8 * arena]);
    let parts = bytes.bool();
    let liar = Liar::new(bytes, slots, arena as u64, first);
    if parts {
        Parts::new(&liar, first).run();
    } else {
        Halves::new(&liar, first, max).run();
    }
}

/// Whether the bytes have an operation left.
fn more(liar: &Liar<'_>) -> bool {
    liar.choose(|bytes| !bytes.is_empty())
}

/// The sending and the receiving half, each on its own.
struct Halves<'l, 'd> {
    liar: &'l Liar<'d>,
    out: Outbound<&'l Liar<'d>, NoPace>,
    inb: Inbound<&'l Liar<'d>, NoPace>,
    poster: Poster<&'l Liar<'d>>,
    buffer: Vec<u8>,
    lent: Option<Incoming>,
    /// All that was copied out so far.
    came: usize,
    /// What the halves said when they found the end.
    over: [Option<Ended>; 2],
    past: Instant,
}

impl<'l, 'd> Halves<'l, 'd> {
    fn new(liar: &'l Liar<'d>, first: u64, max: usize) -> Self {
        Self {
            liar,
            out: Outbound::new(liar, NoPace, first, max),
            inb: Inbound::new(liar, NoPace, first, max),
            poster: Poster::new(liar),
            buffer: Vec::new(),
            lent: None,
            came: 0,
            over: [None; 2],
            past: Instant::now(),
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            if !more(self.liar) {
                break;
            }
            let (op, ticks, wait) =
                self.liar.choose(|bytes| (bytes.below(20), bytes.u8() % 8, bytes.below(3)));
            let wait = [Wait::Never, Wait::Until(Some(self.past)), Wait::FOREVER][wait];
            self.liar.begin(ticks.into());
            match op {
                0..=4 => self.send(op, wait),
                5..=10 => self.receive(op, wait),
                11 => self.sleep(wait),
                _ => self.touch(op),
            }
        }
    }

    fn send(&mut self, op: usize, wait: Wait) {
        let liar = self.liar;
        let len = liar.choose(|bytes| {
            let most = [INLINE, self.out.in_place(), self.out.max_message() + 2][bytes.below(3)];
            bytes.below(most + 1)
        });
        let message = vec![7; len];
        let (first, second) = message.split_at(len / 3);
        let len = if op == 1 { len + 8 } else { len };
        let said = match op {
            0 => self.out.send(&[IoSlice::new(first), IoSlice::new(second)], 1, wait),
            1 => self.out.send_framed([7; 8], [first, second], 1, wait),
            2 => self.reserve(&message, wait),
            3 => self.stage(&message),
            _ => self.out.needs(len).map(|_| len),
        };
        let work = liar.work();
        let pieces = len as u64 / GRAIN as u64 + 2;
        assert!(wait != Wait::Never || op == 3 || work.ticks == 0, "{work:?} of a call that never blocks");
        assert!(work.late <= 4 * pieces, "{work:?} after the deadline of {len} bytes");
        assert!(work.loads <= 12 * (pieces + work.ticks + liar.slots()), "{work:?} for {len} bytes");
        assert!(work.stores <= 12 * (pieces + work.ticks + liar.slots()), "{work:?} for {len} bytes");
        let bytes = (len as u64 + 8) * if op == 3 { liar.slots() + 1 } else { 1 };
        assert!(work.copied_in as u64 <= bytes, "{work:?} for {len} bytes");
        match said {
            Err(SendFault::Ended(end)) => self.ended(0, end),
            Err(SendFault::TooLarge(max)) => assert!(len > max),
            Err(SendFault::Full) => assert_ne!(wait, Wait::FOREVER),
            _ => {}
        }
    }

    fn reserve(&mut self, message: &[u8], wait: Wait) -> Result<usize, SendFault> {
        let claim = self.out.claim(message.len(), wait)?;
        assert!(self.out.ring().write(&claim, 1, message, Tail::Keep).is_err() || message.is_empty());
        self.out.ring().write(&claim, 0, message, Tail::Keep).expect("it fits");
        self.out.ring().open(&claim);
        if self.liar.choose(|bytes| !bytes.rarely(4)) {
            let len = self.liar.choose(|bytes| bytes.below(message.len() + 3));
            self.out.commit(&claim, len, 2);
        }
        Ok(message.len())
    }

    fn stage(&mut self, message: &[u8]) -> Result<usize, SendFault> {
        let mut to = self.out.ring().next();
        for _ in 0..self.liar.choose(|bytes| bytes.below(to_usize(self.liar.slots()) + 1)) {
            let Ok(claim) = self.out.stage(to, message.len()) else { break };
            self.out.ring().open(&claim);
            self.out.ring().write(&claim, 0, message, Tail::Zero).expect("it fits");
            self.out.describe_whole(&claim, message.len(), 3);
            to = claim.after();
        }
        if self.liar.choose(Bytes::bool) {
            self.out.publish(to, false);
        }
        self.out.check().map(|()| message.len()).map_err(SendFault::Ended)
    }

    fn receive(&mut self, op: usize, wait: Wait) {
        let room = self.liar.choose(|bytes| bytes.below(2 * INLINE));
        let given = if op == 10 { self.lent.take() } else { None };
        let said = match (op, given) {
            (5..=6, _) => self.inb.recv_into(&mut self.buffer, wait),
            (7, _) => self.inb.recv(&mut vec![0; room], wait),
            (8, _) => self.lend(wait).map(|message| Received::from(&message)),
            (9, _) => self.fetch(wait),
            (10, Some(message)) => self.inb.give_back(&message).map(|()| Received::from(&message)),
            _ => {
                let _there = self.inb.ready();
                return self.judge_receive(Wait::Never);
            }
        };
        if op != 8 {
            self.lent = None; // The call has given it back.
        }
        self.judge_receive(wait);
        let unverified = op != 8 && self.liar.is_unverified() && self.liar.fate() == 0;
        assert!(!unverified, "a message that may have moved under its reader: {said:?}");
        match said {
            Err(RecvFault::Ended(end)) => self.ended(1, end),
            Err(RecvFault::Empty) => assert_ne!(wait, Wait::FOREVER),
            Err(RecvFault::OutOfMemory(needed)) => panic!("no memory for {needed} bytes"),
            Err(RecvFault::BufferTooSmall(needed)) => assert!(op == 7 && needed > room),
            Ok(message) => assert!(message.len <= self.buffer.len().max(self.most()), "{message:?}"),
        }
    }

    fn lend(&mut self, wait: Wait) -> Result<Incoming, RecvFault> {
        self.lent = None;
        let message = self.inb.lend(wait)?;
        let mut bytes = vec![0; message.len()];
        self.inb.read_at(&message, 0, &mut bytes).expect("what was judged is there");
        assert!(self.inb.read_at(&message, usize::MAX, &mut [0; 2]).is_err());
        assert!(self.inb.read_at(&message, message.len(), &mut [0; 1]).is_err());
        if let Incoming::Assembled(len, _) = message {
            assert_eq!(self.inb.private(&message).map(<[u8]>::len), Some(len));
        }
        self.lent = Some(message);
        Ok(message)
    }

    fn fetch(&mut self, wait: Wait) -> Result<Received, RecvFault> {
        if self.liar.choose(Bytes::bool) {
            let (mut body, mut came) = ([0; INLINE], Received::default());
            let took = self.inb.take_framed(|tag, _, len| {
                came = Received { len: 8 + len, tag };
                body.get_mut(..len)
            });
            if took {
                return Ok(came);
            }
        }
        let message = self.inb.fetch(wait)?;
        let mut bytes = vec![0; message.len()];
        self.inb.read_at(&message, 0, &mut bytes).expect("what was judged is there");
        assert!(self.inb.private(&message).is_none_or(|private| private == bytes));
        self.inb.give_back(&message)?;
        Ok(Received::from(&message))
    }

    /// The longest message that may come.
    fn most(&self) -> usize {
        self.out.max_message()
    }

    fn judge_receive(&mut self, wait: Wait) {
        let (work, slots) = (self.liar.work(), self.liar.slots());
        assert!(wait != Wait::Never || work.ticks == 0, "{work:?} of a call that never blocks");
        assert!(work.late <= 4, "{work:?} after the deadline");
        assert!(!self.liar.is_torn() || self.liar.fate() != 0, "torn bytes were taken for a message");
        let rounds = work.ticks + 3;
        assert!(work.loads <= rounds * (10 * slots + 16), "{work:?} with {slots} slots");
        assert!(work.stores <= rounds * (3 * slots + 8), "{work:?} with {slots} slots");
        // A round copies an arena and a piece, and the total lengths; the message itself comes on top.
        let round = 2 * self.liar.arena() + 8 * slots;
        let most = rounds * round + self.liar.arena().max(INLINE as u64);
        assert!(work.copied_out as u64 <= most, "{work:?} with an arena of {}", self.liar.arena());
        self.came += work.copied_out;
        let most = 2 * self.came.min(self.most()) + 8;
        for capacity in [self.inb.memory(), self.buffer.capacity()] {
            assert!(capacity <= most, "{capacity} bytes of memory for {} that came", self.came);
        }
    }

    /// An end is the end: the receiver says the same for ever, and so does everybody of a lie.
    fn ended(&mut self, half: usize, end: Ended) {
        let fate = self.liar.fate();
        let violated = fate == Fate::Violated as u64;
        assert!(end != Ended::ProtocolViolated || violated);
        assert!(end != Ended::Closed || fate == Fate::Closed as u64);
        let first = *self.over[half].get_or_insert(end);
        assert!(half == 0 || first == end, "{first:?}, and then {end:?}");
    }

    fn sleep(&mut self, wait: Wait) {
        let mem = self.liar;
        let bed = match mem.choose(|bytes| bytes.below(3)) {
            0 => Bed::consumer(&mem),
            1 => Bed::producer(&mem),
            _ => Bed::either(&mem, &mem),
        };
        let until = if let Wait::Until(until) = wait { until } else { Some(self.past) };
        let found = sleep(&bed, until, 0, || ended(&mem, Word::ProducerMark));
        let work = mem.work();
        assert!(found.is_some() || until.is_some(), "a sleep for ever ends with the connection");
        assert!(work.late <= 3, "{work:?} after the deadline");
        assert!(work.loads <= 2 * (work.ticks + 3), "{work:?}");
    }

    fn touch(&mut self, op: usize) {
        let mem = self.liar;
        let flag = mem.choose(|bytes| bytes.pick(&[Flag::Consumer, Flag::Producer, Flag::Twin]));
        let number = mem.choose(Bytes::number);
        match op {
            12 => rouse(&mem, flag),
            13 => alarm(&mem, flag),
            14 => self.poster.post(mem.choose(Bytes::u32), number),
            15 => drop((urgent(&mem, mem.choose(Bytes::u32)), bell(&mem))),
            16 if mem.choose(|bytes| bytes.rarely(4)) => {
                mem.settle(Fate::Died as u64 - number % 2);
            }
            17 if number % 16 == 0 => self.out.ring().close(),
            18 if number % 16 == 0 => self.inb.ring().close(),
            _ => drop((self.inb.stirred(), self.out.ring().released(number))),
        }
        let work = mem.work();
        assert!(work.loads <= 8 && work.stores <= 4 && work.ticks == 0, "{work:?}");
    }
}

/// The ring's own two sides, whose every method is one decision or two.
struct Parts<'l, 'd> {
    liar: &'l Liar<'d>,
    producer: Producer<&'l Liar<'d>>,
    consumer: Consumer<&'l Liar<'d>>,
    arrived: Vec<(u64, Arrival)>,
    to: Cursor,
    /// The highest head that was no lie.
    known: u64,
}

impl<'l, 'd> Parts<'l, 'd> {
    fn new(liar: &'l Liar<'d>, first: u64) -> Self {
        let producer = Producer::new(liar, first);
        let to = producer.next();
        Self { liar, producer, consumer: Consumer::new(liar, first), arrived: Vec::new(), to, known: first }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            if !more(self.liar) {
                break;
            }
            self.liar.begin(0);
            match self.liar.choose(|bytes| bytes.below(12)) {
                0..=3 => self.claim(),
                4 => self.liar.once("publish", None, || self.producer.publish(self.to, false)),
                5..=7 => self.arrive(),
                8..=9 => self.release(),
                _ => self.look(),
            }
            let work = self.liar.work();
            assert_eq!(work.ticks, 0, "neither side ever waits");
            assert!(work.loads <= 10 && work.stores <= self.liar.slots() + 8, "{work:?}");
        }
    }

    fn claim(&mut self) {
        let (len, piece, staged) = self.liar.choose(|bytes| {
            let len =
                [bytes.below(INLINE + 1), bytes.below(to_usize(self.liar.arena()) + 65)][bytes.below(2)];
            (len, bytes.bool(), bytes.bool())
        });
        let from = if staged { self.to } else { self.producer.next() };
        // The ticket is one decision and the place another, and both look at the head.
        let twice = (piece || len > INLINE).then_some(Read::Word(Word::Head));
        let claim = self.liar.once("claim", twice, || match piece {
            true => self.producer.claim_piece(from, len),
            false => self.producer.claim(from, len),
        });
        assert!(self.liar.work().loads <= 2);
        for head in self.liar.heads() {
            let lies = head < self.known || head > self.liar.tail();
            assert!(!lies || matches!(claim, Err(Refusal::Violated(_))), "{head} after {}", self.known);
            self.known = if lies { self.known } else { head };
        }
        let Ok(claim) = claim else { return };
        assert_eq!(claim.len(), len);
        self.producer.open(&claim);
        self.producer.write(&claim, 0, &vec![1; len], Tail::Zero).expect("it fits");
        assert!(self.producer.write(&claim, len, &[1], Tail::Zero).is_err());
        let kind =
            self.liar.choose(|bytes| bytes.pick(&[Kind::Whole, Kind::First, Kind::Middle, Kind::Last]));
        self.producer.describe(&claim, kind, len, 0);
        self.to = claim.after();
    }

    fn arrive(&mut self) {
        let Ok(Some(arrival)) = self.liar.once("arrival", None, || self.consumer.arrival()) else { return };
        let ticket = self.consumer.ticket();
        let room = if arrival.kind == Kind::Inline { INLINE as u64 } else { self.liar.arena() };
        assert!(arrival.len as u64 <= room && arrival.total >= arrival.len as u64, "{arrival:?}");
        self.consumer.read(&arrival, 0, &mut vec![0; arrival.len]).expect("what was judged is there");
        assert!(self.consumer.read(&arrival, arrival.len, &mut [0]).is_err());
        assert!(self.consumer.read(&arrival, usize::MAX, &mut [0]).is_err());
        self.arrived.push((ticket, arrival));
    }

    /// Releases any arrival, perhaps one that was released long ago.
    fn release(&mut self) {
        if self.arrived.is_empty() {
            return;
        }
        let index = self.liar.choose(|bytes| bytes.below(self.arrived.len()));
        let ((ticket, arrival), before) = (self.arrived[index], self.consumer.ticket());
        let still = self.liar.once("verify", None, || self.consumer.verify(&arrival));
        assert_eq!(still.is_ok(), self.liar.was_ready(), "{ticket}");
        // Whether to publish is one decision and whom to wake another, and both ask whether a message waits.
        let twice = Some(Read::Slot((before + 1) & (self.liar.slots() - 1), Field::Stamp));
        self.liar.once("release", twice, || self.consumer.release(&arrival));
        assert_eq!(self.consumer.ticket() - before, u64::from(ticket == before), "each ticket once");
    }

    fn look(&mut self) {
        let needs = self.liar.choose(Bytes::number);
        self.liar.once("stirred", None, || self.consumer.stirred());
        self.liar.once("ended", None, || (self.consumer.ended(), self.producer.ended()).0);
        self.producer.want(needs);
        self.liar.once("released", None, || self.producer.released(needs));
        assert!(self.producer.left() <= LAST_TICKET + 1);
    }
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("64 bits")
}

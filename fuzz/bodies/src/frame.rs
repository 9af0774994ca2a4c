//! Control words, and pieces of messages in any order, as a producer that lies may write them.
//!
//! ```text
//!   bytes ──▶ forged tickets ──▶ Heap ──▶ Inbound: messages, nothing yet, or a lie
//!                   └───────────▶ Story: what an honest receiver makes of the same tickets
//! ```
//!
//! A call takes at most a lap of tickets and two arenas of bytes, and the private memory is never more
//! than twice what came: an announced length alone takes none.

use std::collections::VecDeque;
use std::sync::Arc;

use super::bytes::Bytes;
use narrows::internal::Ended;
use narrows::internal::layout::{Control, Kind, LAST_TICKET};
use narrows::internal::mem::{Field, GRAIN, Heap, INLINE, Load, Memory, Span, Store, Tail, Word};
use narrows::internal::ring::Producer;
use narrows::internal::{Inbound, Incoming, NoPace, RecvFault, Wait};

/// Feeds control words and whole rings of forged tickets.
pub fn frame(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    if bytes.rarely(4) { judge_controls(&mut bytes) } else { judge_pieces(&mut bytes) }
}

fn judge_controls(bytes: &mut Bytes<'_>) {
    let arena = GRAIN as u64 * (1 << bytes.below(25));
    while !bytes.is_empty() {
        let word = if bytes.bool() { bytes.u64() } else { plausible(bytes, arena).encode() };
        let (kind, abort) = (word & 31, word & 32 != 0);
        let (len, place) = (u128::from(word >> 32), u128::from(word >> 6 & 0x3FF_FFFF));
        let legal = match kind {
            1 => len <= INLINE as u128 && place == 0,
            2..=5 => len > 0 && place * GRAIN as u128 + len <= arena.into() && !(abort && kind > 3),
            _ => false,
        };
        let decoded = Control::decode(word, arena);
        assert_eq!(decoded.is_ok(), legal, "{word:#x} in an arena of {arena}: {decoded:?}");
        assert!(decoded.map_or(true, |it| it.encode() == word), "{word:#x}");
    }
}

/// Something that may be a control word of this arena.
fn plausible(bytes: &mut Bytes<'_>, arena: u64) -> Control {
    let kind = bytes.pick(&[Kind::First, Kind::Middle, Kind::Last, Kind::Inline, Kind::Whole]);
    let room = usize::try_from(if kind == Kind::Inline { INLINE as u64 } else { arena }).expect("64 bits");
    let len = match bytes.below(4) {
        0 => bytes.below(room + 2),
        1 => room,
        _ => 1 + bytes.below(3),
    };
    let places = if bytes.bool() { room / GRAIN + 2 } else { 1 };
    let number = |is: usize| u32::try_from(is).expect("an arena has less than 4 GiB");
    let place = if kind == Kind::Inline && !bytes.rarely(8) { 0 } else { bytes.below(places) };
    Control { kind, abort: bytes.rarely(4), len: number(len), place: number(place) }
}

/// One forged ticket.
struct Forged {
    /// Nothing if no honest producer writes such a ticket, whatever came before.
    control: Option<Control>,
    total: u64,
    tag: u64,
    payload: Vec<u8>,
}

/// What an honest receiver makes of the tickets.
struct Story {
    max: usize,
    forged: VecDeque<Forged>,
    /// The pieces so far, the length announced, the tag.
    filling: Option<(Vec<u8>, u64, u64)>,
    whole: Option<(Vec<u8>, u64)>,
    /// All bytes of all tickets that were taken.
    came: usize,
}

impl Story {
    /// Whether the next ticket is a lie after those that were taken.
    fn next_lies(&self) -> bool {
        let Some(Forged { control: Some(control), total, .. }) = self.forged.front() else {
            return !self.forged.is_empty();
        };
        let (len, filling) = (u64::from(control.len), self.filling.as_ref());
        let legal = match control.kind {
            Kind::Inline | Kind::Whole => filling.is_some() == control.abort && len <= self.max as u64,
            Kind::First => filling.is_some() == control.abort && *total > len && *total <= self.max as u64,
            Kind::Middle => filling.is_some_and(|(so_far, total, _)| so_far.len() as u64 + len < *total),
            Kind::Last => filling.is_some_and(|(so_far, total, _)| so_far.len() as u64 + len == *total),
        };
        !legal
    }

    /// The next ticket was taken; how many bytes of pieces that are.
    fn take(&mut self) -> usize {
        assert!(!self.next_lies(), "a lie was taken for a message");
        assert!(self.whole.is_none(), "tickets behind a whole message were taken");
        let Forged { control, total, tag, payload } =
            self.forged.pop_front().expect("nothing was forged there");
        let kind = control.map(|it| it.kind);
        self.came += payload.len();
        let len = payload.len();
        match (kind, self.filling.take()) {
            (Some(Kind::First), _) => self.filling = Some((payload, total, tag)),
            (Some(kind @ (Kind::Middle | Kind::Last)), Some((mut so_far, total, tag))) => {
                so_far.extend(payload);
                match kind {
                    Kind::Last => self.whole = Some((so_far, tag)),
                    _ => self.filling = Some((so_far, total, tag)),
                }
            }
            _ => {
                self.whole = Some((payload, tag));
                return 0;
            }
        }
        len
    }

    /// The whole message that is next, if the tickets that were taken leave one there.
    fn at_hand(&self) -> Option<(&[u8], u64)> {
        let whole = self.whole.as_ref().map(|(bytes, tag)| (bytes.as_slice(), *tag));
        whole.or_else(|| match self.forged.front() {
            Some(Forged {
                control: Some(Control { kind: Kind::Inline | Kind::Whole, .. }),
                tag,
                payload,
                ..
            }) => Some((payload.as_slice(), *tag)),
            _ => None,
        })
    }
}

/// A ring, its receiver, and the story that should come of it.
struct Scene {
    heap: Arc<Heap>,
    inb: Inbound<Arc<Heap>, NoPace>,
    buffer: Vec<u8>,
    story: Story,
    /// What was lent and not given back: whether it stands in the ring.
    lent: Option<bool>,
    condemned: bool,
}

fn judge_pieces(bytes: &mut Bytes<'_>) {
    let (slots, arena) = (1 << bytes.below(4), GRAIN << bytes.below(5));
    let max = bytes.pick(&[1, 3, 50, arena, 2 * arena, 5 * arena, 1 << 16]);
    let first = bytes.pick(&[0, 1, 7, 1 << 32, LAST_TICKET - 5, LAST_TICKET]);
    let heap = Arc::new(Heap::new(slots, arena, 1));
    let pattern: Vec<u8> = (0..=250).cycle().take(arena).collect();
    heap.copy_in(Span::Arena(0), 0, &pattern, Tail::Keep).expect("the arena");
    Producer::format(&heap, first);
    let inb = Inbound::new(Arc::clone(&heap), NoPace, first, max);
    let story = Story { max, forged: VecDeque::new(), filling: None, whole: None, came: 0 };
    let mut scene = Scene { heap, inb, buffer: Vec::new(), story, lent: None, condemned: false };
    for _ in 0..300 {
        if bytes.is_empty() {
            break;
        }
        scene.step(bytes);
    }
    scene.receive(bytes);
}

impl Scene {
    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(8) {
            0..=4 => self.forge(bytes),
            5..=6 => self.receive(bytes),
            _ => (0..self.heap.slots()).for_each(|_| self.forge(bytes)),
        }
    }

    /// Writes the next ticket that has room in the ring.
    fn forge(&mut self, bytes: &mut Bytes<'_>) {
        let held = self.story.forged.len() as u64;
        let ticket = self.inb.ring().ticket() + held;
        if held == self.heap.slots() || ticket > LAST_TICKET || self.condemned {
            return;
        }
        let (ready, arena) = (ticket.wrapping_mul(2).wrapping_add(2), self.heap.arena());
        let word = if bytes.rarely(16) { bytes.u64() } else { self.likely(bytes, arena).encode() };
        let control = Control::decode(word, arena).ok();
        let (total, tag) = (self.total(bytes), bytes.u8().into());
        if control.is_some_and(|it| it.kind == Kind::First) {
            self.heap.copy_in(Span::Slot(ticket), 0, &total.to_le_bytes(), Tail::Keep).expect("a slot");
        }
        self.heap.store_slot(ticket, Field::Control, word, Store::Relaxed);
        self.heap.store_slot(ticket, Field::Tag, tag, Store::Relaxed);
        let odd = bytes.rarely(32);
        let stamp = if odd { bytes.number() } else { ready };
        self.heap.store_slot(ticket, Field::Stamp, stamp, Store::Release);
        let before =
            ticket.checked_sub(self.heap.slots()).map(|before| before.wrapping_mul(2).wrapping_add(2));
        if stamp == 0 || stamp == ready - 1 || Some(stamp) == before {
            return; // Nothing is there yet.
        }
        let control = control.filter(|_| stamp == ready);
        let mut payload = vec![0; control.map_or(0, |it| it.len as usize)];
        let span = match control {
            Some(Control { kind: Kind::Inline, .. }) => Span::Slot(ticket),
            it => Span::Arena(it.map_or(0, |it| it.place)),
        };
        self.heap.copy_out(span, 0, &mut payload).expect("judged");
        self.story.forged.push_back(Forged { control, total, tag, payload });
    }

    /// A control word that is often what should come next.
    fn likely(&self, bytes: &mut Bytes<'_>, arena: u64) -> Control {
        let control = plausible(bytes, arena);
        if bytes.rarely(8) {
            return control;
        }
        let inside = self.story.filling.is_some() || !self.story.forged.is_empty();
        let legal = if inside { [Kind::Middle, Kind::Last] } else { [Kind::First, Kind::Whole] };
        match control.kind {
            Kind::Inline | Kind::Whole if inside => {
                Control { kind: bytes.pick(&legal), abort: false, ..control }
            }
            Kind::Middle | Kind::Last if !inside => {
                Control { kind: bytes.pick(&legal), abort: false, ..control }
            }
            kind => Control { abort: inside && kind.begins(), ..control },
        }
    }

    fn total(&self, bytes: &mut Bytes<'_>) -> u64 {
        match bytes.below(8) {
            0 => bytes.number(),
            1 => self.story.max as u64,
            2 => self.story.max as u64 + 1,
            _ => 2 + u64::from(bytes.u8() % 16),
        }
    }

    /// Receives in one of the ways, and compares.
    fn receive(&mut self, bytes: &mut Bytes<'_>) {
        let way = bytes.below(6);
        let room = self.story.max.min(bytes.below(2 * INLINE));
        let before = self.inb.ring().ticket();
        let found = match way {
            0..=1 => {
                let message = self.inb.recv_into(&mut self.buffer, Wait::Never);
                message.map(|it| Some((self.buffer.clone(), it.tag)))
            }
            2 => self.recv(self.story.max),
            3 => self.recv(room),
            4 => return self.look(before),
            _ => return self.lend(before),
        };
        let taken = self.follow(before);
        match found {
            Ok(message) => assert_eq!(message, self.story.whole.take()),
            Err(RecvFault::BufferTooSmall(needed)) => {
                let there = self.story.at_hand().map(|(bytes, _)| bytes.len());
                assert_eq!(there, Some(needed));
                assert!(way == 3 && needed > room);
            }
            Err(fault) => self.nothing(fault, taken),
        }
    }

    fn recv(&mut self, room: usize) -> Result<Option<(Vec<u8>, u64)>, RecvFault> {
        let mut buffer = vec![0; room];
        let message = self.inb.recv(&mut buffer, Wait::Never)?;
        buffer.truncate(message.len);
        Ok(Some((buffer, message.tag)))
    }

    fn look(&mut self, before: u64) {
        let (stirred, ready) = (self.inb.stirred(), self.inb.ready());
        let taken = self.follow(before);
        assert!(stirred || !ready, "what is ready has stirred");
        if !ready {
            self.nothing(RecvFault::Empty, taken);
        } else if self.story.whole.is_none() && (self.condemned || self.story.next_lies()) {
            self.nothing(RecvFault::Ended(Ended::ProtocolViolated), taken);
        } else {
            assert!(self.story.at_hand().is_some(), "nothing is there");
        }
    }

    fn lend(&mut self, before: u64) {
        let lent = self.inb.lend(Wait::Never);
        let taken = self.follow(before);
        match lent {
            Ok(message) => {
                let mut bytes = vec![0; message.len()];
                self.inb.read_at(&message, 0, &mut bytes).expect("all of it");
                assert_eq!(self.story.at_hand(), Some((bytes.as_slice(), message.tag())));
                assert!(self.inb.read_at(&message, 1, &mut bytes).is_err() || bytes.is_empty());
                self.lent = Some(matches!(message, Incoming::Placed(_)));
            }
            Err(fault) => self.nothing(fault, taken),
        }
    }

    /// Takes in the story what the call took from the ring, bounds what it did, and returns how many
    /// tickets it found; what was lent before is given back first.
    fn follow(&mut self, before: u64) -> u64 {
        let mut taken = self.inb.ring().ticket() - before;
        if let Some(placed) = self.lent.take() {
            if placed {
                self.story.take();
                taken -= 1;
            }
            self.story.whole = None;
        }
        assert!(taken <= self.heap.slots(), "{taken} tickets in one call");
        let copied: usize = (0..taken).map(|_| self.story.take()).sum();
        assert!(copied as u64 <= 2 * self.heap.arena(), "{copied} bytes of pieces in one call");
        let most = 2 * self.story.came.min(self.story.max) + 8; // No vector is smaller.
        for capacity in [self.inb.memory(), self.buffer.capacity()] {
            assert!(capacity <= most, "{capacity} bytes of memory for {}", self.story.came);
        }
        taken
    }

    fn nothing(&mut self, fault: RecvFault, taken: u64) {
        let story = &self.story;
        match fault {
            RecvFault::Empty => {
                assert!(!self.condemned && story.whole.is_none());
                assert!(
                    taken > 0 || story.forged.is_empty(),
                    "a call that does nothing though something came"
                );
            }
            RecvFault::Ended(Ended::ProtocolViolated) => {
                assert!(self.condemned || story.next_lies(), "an honest producer is called a liar");
                assert_ne!(self.heap.load(Word::ConsumerMark, Load::Relaxed), 0);
                self.condemned = true;
            }
            fault => panic!("{fault:?}"),
        }
    }
}

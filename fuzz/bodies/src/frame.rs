//! Control words, and fragments of messages in any order, as a hostile producer may write them.
//!
//! ```text
//!   bytes ──▶ forged tickets ──▶ Heap ──▶ ReceiverCore: a message, nothing yet, or a protocol violation
//!                   └───────────▶ ReferenceReceiver: the same, in its simplest form
//! ```
//!
//! A call takes at most as many tickets as there are slots, and copies at most two arenas of bytes. The private memory is at most
//! twice the bytes received: an announced length alone allocates nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use super::bytes::Bytes;
use narrows::internal::ConnectionError;
use narrows::internal::layout::{Control, LAST_TICKET, SlotKind};
use narrows::internal::memory::{
    ARENA_ALIGN, Field, Heap, INLINE_CAPACITY, Load, Memory, Padding, Span, Store, Word,
};
use narrows::internal::ring::Producer;
use narrows::internal::{IncomingMessage, NoWaitPolicy, ReceiverCore, RecvCoreError, Wait};

/// Decodes control words, or receives forged tickets.
pub fn frame(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    if bytes.rarely(4) { check_control_words(&mut bytes) } else { check_fragments(&mut bytes) }
}

fn check_control_words(bytes: &mut Bytes<'_>) {
    let arena = ARENA_ALIGN as u64 * (1 << bytes.below(25));
    while !bytes.is_empty() {
        let word = if bytes.bool() { bytes.u64() } else { plausible(bytes, arena).encode() };
        let (kind, abort) = (word & 31, word & 32 != 0);
        let (len, unit) = (u128::from(word >> 32), u128::from(word >> 6 & 0x3FF_FFFF));
        let legal = match kind {
            1 => len <= INLINE_CAPACITY as u128 && unit == 0,
            2..=5 => len > 0 && unit * ARENA_ALIGN as u128 + len <= arena.into() && !(abort && kind > 3),
            _ => false,
        };
        let decoded = Control::decode(word, arena);
        assert_eq!(decoded.is_ok(), legal, "{word:#x} in an arena of {arena}: {decoded:?}");
        assert!(decoded.map_or(true, |it| it.encode() == word), "{word:#x}");
    }
}

/// Returns a control word that may be legal for this arena.
fn plausible(bytes: &mut Bytes<'_>, arena: u64) -> Control {
    let kind =
        bytes.pick(&[SlotKind::First, SlotKind::Middle, SlotKind::Last, SlotKind::Inline, SlotKind::Whole]);
    let room = usize::try_from(if kind == SlotKind::Inline { INLINE_CAPACITY as u64 } else { arena })
        .expect("64 bits");
    let len = match bytes.below(4) {
        0 => bytes.below(room + 2),
        1 => room,
        _ => 1 + bytes.below(3),
    };
    let units = if bytes.bool() { room / ARENA_ALIGN + 2 } else { 1 };
    let number = |is: usize| u32::try_from(is).expect("an arena has less than 4 GiB");
    let unit = if kind == SlotKind::Inline && !bytes.rarely(8) { 0 } else { bytes.below(units) };
    Control { kind, abort: bytes.rarely(4), len: number(len), unit: number(unit) }
}

/// A forged ticket.
struct Forged {
    /// `None` if the ticket is a violation whatever precedes it.
    control: Option<Control>,
    total: u64,
    tag: u64,
    payload: Vec<u8>,
}

/// A receiver in its simplest form.
struct ReferenceReceiver {
    max: usize,
    /// The tickets that were not taken.
    forged: VecDeque<Forged>,
    /// The fragments so far, the announced length, and the tag.
    filling: Option<(Vec<u8>, u64, u64)>,
    /// The message that is complete and was not returned, and its tag.
    whole: Option<(Vec<u8>, u64)>,
    /// Bytes of all tickets that were taken.
    came: usize,
}

impl ReferenceReceiver {
    /// Returns whether the next ticket is a violation after those that were taken.
    fn next_violates(&self) -> bool {
        let Some(Forged { control: Some(control), total, .. }) = self.forged.front() else {
            return !self.forged.is_empty();
        };
        let (len, filling) = (u64::from(control.len), self.filling.as_ref());
        let legal = match control.kind {
            SlotKind::Inline | SlotKind::Whole => {
                filling.is_some() == control.abort && len <= self.max as u64
            }
            SlotKind::First => {
                filling.is_some() == control.abort && *total > len && *total <= self.max as u64
            }
            SlotKind::Middle => filling.is_some_and(|(so_far, total, _)| so_far.len() as u64 + len < *total),
            SlotKind::Last => filling.is_some_and(|(so_far, total, _)| so_far.len() as u64 + len == *total),
        };
        !legal
    }

    /// Takes the next ticket. Returns the number of bytes, if it is a fragment.
    fn take(&mut self) -> usize {
        assert!(!self.next_violates(), "a violation was taken as a message");
        assert!(self.whole.is_none(), "a ticket was taken after a complete message");
        let Forged { control, total, tag, payload } =
            self.forged.pop_front().expect("a ticket was taken that was not forged");
        let kind = control.map(|it| it.kind);
        self.came += payload.len();
        let len = payload.len();
        match (kind, self.filling.take()) {
            (Some(SlotKind::First), _) => self.filling = Some((payload, total, tag)),
            (Some(kind @ (SlotKind::Middle | SlotKind::Last)), Some((mut so_far, total, tag))) => {
                so_far.extend(payload);
                match kind {
                    SlotKind::Last => self.whole = Some((so_far, tag)),
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

    /// Returns the message that can be returned now, without another ticket if it is fragmented.
    fn next_message(&self) -> Option<(&[u8], u64)> {
        let whole = self.whole.as_ref().map(|(bytes, tag)| (bytes.as_slice(), *tag));
        whole.or_else(|| match self.forged.front() {
            Some(Forged {
                control: Some(Control { kind: SlotKind::Inline | SlotKind::Whole, .. }),
                tag,
                payload,
                ..
            }) => Some((payload.as_slice(), *tag)),
            _ => None,
        })
    }
}

/// A ring with forged tickets, its receiver, and the reference.
struct ForgedRing {
    heap: Arc<Heap>,
    inb: ReceiverCore<Arc<Heap>, NoWaitPolicy>,
    buffer: Vec<u8>,
    reference: ReferenceReceiver,
    /// Whether the message that is borrowed is in the ring, while one is borrowed.
    borrowed: Option<bool>,
    /// The receiver has found a violation.
    violated: bool,
}

fn check_fragments(bytes: &mut Bytes<'_>) {
    let (slots, arena) = (1 << bytes.below(4), ARENA_ALIGN << bytes.below(5));
    let max = bytes.pick(&[1, 3, 50, arena, 2 * arena, 5 * arena, 1 << 16]);
    let first = bytes.pick(&[0, 1, 7, 1 << 32, LAST_TICKET - 5, LAST_TICKET]);
    let heap = Arc::new(Heap::new(slots, arena, 1));
    let pattern: Vec<u8> = (0..=250).cycle().take(arena).collect();
    heap.copy_in(Span::Arena(0), 0, &pattern, Padding::Keep).expect("the arena");
    Producer::format(&heap, first);
    let inb = ReceiverCore::new(Arc::clone(&heap), NoWaitPolicy, first, max);
    let reference = ReferenceReceiver { max, forged: VecDeque::new(), filling: None, whole: None, came: 0 };
    let mut ring = ForgedRing { heap, inb, buffer: Vec::new(), reference, borrowed: None, violated: false };
    for _ in 0..300 {
        if bytes.is_empty() {
            break;
        }
        ring.step(bytes);
    }
    ring.receive(bytes);
}

impl ForgedRing {
    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(8) {
            0..=4 => self.forge(bytes),
            5..=6 => self.receive(bytes),
            _ => (0..self.heap.slots()).for_each(|_| self.forge(bytes)),
        }
    }

    /// Forges the next ticket, if a slot is free.
    fn forge(&mut self, bytes: &mut Bytes<'_>) {
        let held = self.reference.forged.len() as u64;
        let ticket = self.inb.ring().ticket() + held;
        if held == self.heap.slots() || ticket > LAST_TICKET || self.violated {
            return;
        }
        let (ready, arena) = (ticket.wrapping_mul(2).wrapping_add(2), self.heap.arena());
        let word = if bytes.rarely(16) { bytes.u64() } else { self.likely(bytes, arena).encode() };
        let control = Control::decode(word, arena).ok();
        let (total, tag) = (self.total(bytes), bytes.u8().into());
        if control.is_some_and(|it| it.kind == SlotKind::First) {
            self.heap.copy_in(Span::Slot(ticket), 0, &total.to_le_bytes(), Padding::Keep).expect("a slot");
        }
        self.heap.store_slot(ticket, Field::Control, word, Store::Relaxed);
        self.heap.store_slot(ticket, Field::Tag, tag, Store::Relaxed);
        let odd = bytes.rarely(32);
        let stamp = if odd { bytes.number() } else { ready };
        self.heap.store_slot(ticket, Field::Stamp, stamp, Store::Release);
        let before =
            ticket.checked_sub(self.heap.slots()).map(|before| before.wrapping_mul(2).wrapping_add(2));
        if stamp == 0 || stamp == ready - 1 || Some(stamp) == before {
            return; // The slot is not ready.
        }
        let control = control.filter(|_| stamp == ready);
        let mut payload = vec![0; control.map_or(0, |it| it.len as usize)];
        let span = match control {
            Some(Control { kind: SlotKind::Inline, .. }) => Span::Slot(ticket),
            it => Span::Arena(it.map_or(0, |it| it.unit)),
        };
        self.heap.copy_out(span, 0, &mut payload).expect("a validated span is inside");
        self.reference.forged.push_back(Forged { control, total, tag, payload });
    }

    /// Returns a control word that is often legal after the tickets so far.
    fn likely(&self, bytes: &mut Bytes<'_>, arena: u64) -> Control {
        let control = plausible(bytes, arena);
        if bytes.rarely(8) {
            return control;
        }
        let inside = self.reference.filling.is_some() || !self.reference.forged.is_empty();
        let legal =
            if inside { [SlotKind::Middle, SlotKind::Last] } else { [SlotKind::First, SlotKind::Whole] };
        match control.kind {
            SlotKind::Inline | SlotKind::Whole if inside => {
                Control { kind: bytes.pick(&legal), abort: false, ..control }
            }
            SlotKind::Middle | SlotKind::Last if !inside => {
                Control { kind: bytes.pick(&legal), abort: false, ..control }
            }
            kind => Control { abort: inside && kind.begins(), ..control },
        }
    }

    fn total(&self, bytes: &mut Bytes<'_>) -> u64 {
        match bytes.below(8) {
            0 => bytes.number(),
            1 => self.reference.max as u64,
            2 => self.reference.max as u64 + 1,
            _ => 2 + u64::from(bytes.u8() % 16),
        }
    }

    /// Calls one of the receiving methods, and compares its result with the reference.
    fn receive(&mut self, bytes: &mut Bytes<'_>) {
        let way = bytes.below(6);
        let room = self.reference.max.min(bytes.below(2 * INLINE_CAPACITY));
        let before = self.inb.ring().ticket();
        let found = match way {
            0..=1 => {
                let message = self.inb.recv_into(&mut self.buffer, Wait::Never);
                message.map(|it| Some((self.buffer.clone(), it.tag)))
            }
            2 => self.recv(self.reference.max),
            3 => self.recv(room),
            4 => return self.check_ready(before),
            _ => return self.borrow(before),
        };
        let taken = self.follow(before);
        match found {
            Ok(message) => assert_eq!(message, self.reference.whole.take()),
            Err(RecvCoreError::BufferTooSmall(needed)) => {
                let next = self.reference.next_message().map(|(bytes, _)| bytes.len());
                assert_eq!(next, Some(needed));
                assert!(way == 3 && needed > room);
            }
            Err(fault) => self.check_fault(fault, taken),
        }
    }

    fn recv(&mut self, room: usize) -> Result<Option<(Vec<u8>, u64)>, RecvCoreError> {
        let mut buffer = vec![0; room];
        let message = self.inb.recv(&mut buffer, Wait::Never)?;
        buffer.truncate(message.len);
        Ok(Some((buffer, message.tag)))
    }

    fn check_ready(&mut self, before: u64) {
        let (hint, ready) = (self.inb.is_ready(), self.inb.ready());
        let taken = self.follow(before);
        assert!(hint || !ready, "a message is ready without the hint");
        if !ready {
            self.check_fault(RecvCoreError::Empty, taken);
        } else if self.reference.whole.is_none() && (self.violated || self.reference.next_violates()) {
            self.check_fault(RecvCoreError::Ended(ConnectionError::ProtocolViolation), taken);
        } else {
            assert!(self.reference.next_message().is_some(), "no message is there");
        }
    }

    fn borrow(&mut self, before: u64) {
        let borrowed = self.inb.borrow_next(Wait::Never);
        let taken = self.follow(before);
        match borrowed {
            Ok(message) => {
                let mut bytes = vec![0; message.len()];
                self.inb.read_at(&message, 0, &mut bytes).expect("all of it");
                assert_eq!(self.reference.next_message(), Some((bytes.as_slice(), message.tag())));
                assert!(self.inb.read_at(&message, 1, &mut bytes).is_err() || bytes.is_empty());
                self.borrowed = Some(matches!(message, IncomingMessage::Placed(_)));
            }
            Err(fault) => self.check_fault(fault, taken),
        }
    }

    /// Takes the tickets in the reference that the call took from the ring, checks the limits of the call, and returns their
    /// number. A message that was borrowed before the call is released first, and its ticket does not count.
    fn follow(&mut self, before: u64) -> u64 {
        let mut taken = self.inb.ring().ticket() - before;
        if let Some(placed) = self.borrowed.take() {
            if placed {
                self.reference.take();
                taken -= 1;
            }
            self.reference.whole = None;
        }
        assert!(taken <= self.heap.slots(), "{taken} tickets in one call");
        let copied: usize = (0..taken).map(|_| self.reference.take()).sum();
        assert!(copied as u64 <= 2 * self.heap.arena(), "{copied} bytes of fragments in one call");
        let most = 2 * self.reference.came.min(self.reference.max) + 8; // The smallest capacity of a vector.
        for capacity in [self.inb.memory(), self.buffer.capacity()] {
            assert!(
                capacity <= most,
                "{capacity} bytes of private memory after {} bytes received",
                self.reference.came
            );
        }
        taken
    }

    /// Checks an error of a receiving method.
    fn check_fault(&mut self, fault: RecvCoreError, taken: u64) {
        let reference = &self.reference;
        match fault {
            RecvCoreError::Empty => {
                assert!(!self.violated && reference.whole.is_none());
                assert!(
                    taken > 0 || reference.forged.is_empty(),
                    "a call made no progress though a ticket was there"
                );
            }
            RecvCoreError::Ended(ConnectionError::ProtocolViolation) => {
                assert!(
                    self.violated || reference.next_violates(),
                    "legal tickets were taken as a violation"
                );
                assert_ne!(self.heap.load(Word::ConsumerClosed, Load::Relaxed), 0);
                self.violated = true;
            }
            fault => panic!("{fault:?}"),
        }
    }
}

//! Any program of operations on a small ring in private memory behaves like a `VecDeque` of messages.
//!
//! ```text
//!   bytes ──▶ send, reserve, batch, receive, borrow, close ──┬──▶ SenderCore ─ Heap ─ ReceiverCore
//!                                                            └──▶ VecDeque<(bytes, tag)>
//! ```
//!
//! Everything runs in one thread. `loom-tests` covers concurrency, and tests between processes cover real sleep.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Instant;

use super::bytes::Bytes;
use narrows::internal::ConnectionError;
use narrows::internal::layout::LAST_TICKET;
use narrows::internal::memory::{Heap, INLINE_CAPACITY, Load, Memory, Padding, Word};
use narrows::internal::ring::{CloseReason, Producer};
use narrows::internal::{NoWaitPolicy, ReceiverCore, RecvCoreError, SendCoreError, SenderCore, Wait};

/// The length of the longest message, in arenas.
const LONGEST: usize = 5;

/// Counts of what a program did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages that were sent.
    pub sent: u64,
    /// Messages that were received.
    pub received: u64,
    /// Fragmented messages that were abandoned.
    pub abandoned: u64,
    /// Whether the last ticket was used.
    pub exhausted: bool,
    /// Whether one side closed.
    pub closed: bool,
}

/// Runs the program that the bytes encode.
pub fn ring_program(data: &[u8]) {
    tally(data);
}

/// Runs the program that the bytes encode, and returns what it did.
pub fn tally(data: &[u8]) -> Tally {
    let mut bytes = Bytes::new(data);
    let mut pair = Pair::new(&mut bytes);
    while !bytes.is_empty() {
        pair.step(&mut bytes);
    }
    while pair.over.is_none() && (!pair.queue.is_empty() || pair.is_borrowed) {
        pair.receive();
    }
    pair.receive();
    pair.tally
}

/// A ring, and the messages that should be in it.
struct Pair {
    out: SenderCore<Arc<Heap>, NoWaitPolicy>,
    inb: ReceiverCore<Arc<Heap>, NoWaitPolicy>,
    heap: Arc<Heap>,
    queue: VecDeque<(Vec<u8>, u64)>,
    buffer: Vec<u8>,
    /// The first message is borrowed.
    is_borrowed: bool,
    /// The receiver found the ring empty, and nothing was sent since.
    is_empty: bool,
    /// The sender closed. What it had published is received first.
    closed: bool,
    /// The error that receiving must return: at once, or when the queue is empty if only the sender closed.
    over: Option<ConnectionError>,
    /// The error that sending must return.
    refused: Option<ConnectionError>,
    count: u64,
    past: Instant,
    tally: Tally,
}

impl Pair {
    fn new(bytes: &mut Bytes<'_>) -> Self {
        let (slots, arena) = (1 << bytes.below(4), 64 << bytes.below(7));
        let first = match bytes.below(4) {
            0 => 0,
            1 => (1 << 32) - u64::from(bytes.u8()),
            2 => LAST_TICKET - u64::from(bytes.u8()),
            _ => bytes.number().min(LAST_TICKET),
        };
        let heap = Arc::new(Heap::new(slots, arena, 1));
        Producer::format(&heap, first);
        let max = LONGEST * arena + INLINE_CAPACITY;
        Self {
            out: SenderCore::new(Arc::clone(&heap), NoWaitPolicy, first, max),
            inb: ReceiverCore::new(Arc::clone(&heap), NoWaitPolicy, first, max),
            heap,
            queue: VecDeque::new(),
            buffer: Vec::new(),
            is_borrowed: false,
            is_empty: true,
            closed: false,
            over: None,
            refused: None,
            count: 0,
            past: Instant::now(),
            tally: Tally::default(),
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(32) {
            0..=9 => self.send(bytes, Wait::Never),
            // With a deadline that has passed, a fragmented message may be abandoned.
            10..=12 => self.send(bytes, Wait::Deadline(Some(self.past))),
            13..=14 => self.reserve(bytes),
            15..=16 => self.batch(bytes),
            17..=23 => self.receive(),
            24..=25 => self.receive_short(bytes),
            26..=27 => self.receive_slice(),
            28..=29 => self.borrow(bytes),
            30 => (0..self.heap.slots()).for_each(|_| self.receive()),
            _ => self.close(bytes),
        }
    }

    fn arena(&self) -> usize {
        usize::try_from(self.heap.arena()).expect("64 bits")
    }

    fn message(&mut self, bytes: &mut Bytes<'_>) -> Vec<u8> {
        let arena = self.arena();
        self.count += 1;
        let len = match bytes.below(8) {
            0..=2 => bytes.below(INLINE_CAPACITY + 1),
            3..=4 => bytes.below(arena + 1),
            5..=6 => {
                bytes.pick(&[0, 1, 8, INLINE_CAPACITY, INLINE_CAPACITY + 1, arena / 4, arena / 2, arena])
            }
            _ => bytes.below(LONGEST * arena + INLINE_CAPACITY + 2),
        };
        let seed = self.count.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
        (0_u8..251).cycle().zip(seed.into_iter().cycle()).map(|(a, b)| a ^ b).take(len).collect()
    }

    fn sent(&mut self, message: Vec<u8>) {
        assert_eq!(self.refused, None, "a send succeeded after the direction ended");
        self.queue.push_back((message, self.count));
        self.is_empty = false;
        self.tally.sent += 1;
    }

    fn send(&mut self, bytes: &mut Bytes<'_>, wait: Wait) {
        let message = self.message(bytes);
        let (before, len) = (self.out.ring().next(), message.len());
        let whole = len <= self.arena().max(INLINE_CAPACITY);
        match self.out.send(&[IoSlice::new(&message)], self.count, wait) {
            Ok(sent) => {
                assert_eq!(sent, len);
                self.sent(message);
            }
            Err(SendCoreError::Full) => {
                assert!(!(self.is_empty && whole), "an empty ring has room for {len} bytes");
                if self.out.ring().next() != before && wait != Wait::Never {
                    self.tally.abandoned += 1;
                }
                self.is_empty = false; // Fragments of an abandoned message may be in the ring.
            }
            Err(SendCoreError::TooLargeToTry) => assert!(wait == Wait::Never && !whole),
            Err(SendCoreError::TooLarge(max)) => assert!(len > max),
            Err(SendCoreError::Exhausted) => {
                assert!(self.out.ring().remaining_tickets() <= len as u64);
                self.tally.exhausted = true;
            }
            Err(SendCoreError::Ended(end)) => assert_eq!(Some(end), self.refused),
        }
    }

    /// Reserves and writes a message, and commits all of it, its beginning, or nothing.
    fn reserve(&mut self, bytes: &mut Bytes<'_>) {
        let message = self.message(bytes);
        let Ok(claim) = self.out.reserve(message.len(), Wait::Never) else { return };
        self.out.ring().write(&claim, 0, &message, Padding::Keep).expect("fits");
        if bytes.bool() {
            self.out.ring().mark_writing(&claim);
            let len = bytes.below(message.len() + 1);
            self.out.commit(&claim, len, self.count);
            self.sent(message[..len].to_vec());
        }
    }

    /// Stages as many messages as fit, and publishes or drops them.
    fn batch(&mut self, bytes: &mut Bytes<'_>) {
        let (mut to, mut staged) = (self.out.ring().next(), Vec::new());
        for _ in 0..bytes.below(10) {
            let message = self.message(bytes);
            if message.len() > self.out.in_place() || self.refused.is_some() {
                continue;
            }
            let Ok(claim) = self.out.stage(to, message.len()) else { break };
            self.out.ring().mark_writing(&claim);
            self.out.ring().write(&claim, 0, &message, Padding::Zero).expect("fits");
            self.out.describe_whole(&claim, message.len(), self.count);
            to = claim.after();
            staged.push((message, self.count));
        }
        if bytes.bool() {
            self.out.publish(to, false);
            for (message, tag) in staged {
                self.count = tag;
                self.sent(message);
            }
        }
    }

    /// Removes a borrowed message from the queue: the next call releases it.
    fn release_borrowed(&mut self) {
        if std::mem::take(&mut self.is_borrowed) {
            self.queue.pop_front();
            self.tally.received += 1;
        }
    }

    /// Returns the message that must be received now.
    fn next_expected(&mut self) -> Option<(Vec<u8>, u64)> {
        assert_eq!(self.over, None, "a message after the end");
        self.tally.received += 1;
        self.queue.pop_front()
    }

    fn receive(&mut self) {
        self.release_borrowed();
        let mut buffer = std::mem::take(&mut self.buffer);
        match self.inb.recv_into(&mut buffer, Wait::Never) {
            Ok(message) => assert_eq!(Some((buffer.clone(), message.tag)), self.next_expected()),
            Err(fault) => self.check_fault(fault),
        }
        self.buffer = buffer;
    }

    /// Checks an error of the receiver.
    fn check_fault(&mut self, fault: RecvCoreError) {
        match fault {
            RecvCoreError::Empty => assert!(self.over.is_none() && !self.closed),
            RecvCoreError::Ended(end) => {
                assert!(self.over == Some(end) || self.closed && end == ConnectionError::Disconnected);
                self.over = Some(end);
            }
            fault => panic!("{fault:?}"),
        }
        assert!(self.queue.is_empty(), "{} messages were not received", self.queue.len());
        self.is_empty = true;
        let head = self.heap.load(Word::Head, Load::Relaxed);
        let unpublished = self.over.is_none() && head != self.inb.ring().ticket();
        assert!(!unpublished, "the head of an empty ring is not published");
    }

    fn receive_short(&mut self, bytes: &mut Bytes<'_>) {
        self.release_borrowed();
        let Some((front, _)) = self.queue.front().filter(|(front, _)| !front.is_empty()) else { return };
        let mut buffer = vec![0; bytes.below(front.len())];
        let fault = self.inb.recv(&mut buffer, Wait::Never).map(|_| ());
        assert_eq!(fault, Err(RecvCoreError::BufferTooSmall(front.len())));
    }

    fn receive_slice(&mut self) {
        self.release_borrowed();
        let mut buffer = vec![0; self.out.max_message()];
        match self.inb.recv(&mut buffer, Wait::Deadline(Some(self.past))) {
            Ok(message) => {
                buffer.truncate(message.len);
                assert_eq!(Some((buffer, message.tag)), self.next_expected());
            }
            Err(fault) => self.check_fault(fault),
        }
    }

    fn borrow(&mut self, bytes: &mut Bytes<'_>) {
        self.release_borrowed();
        match self.inb.borrow_next(Wait::Never) {
            Ok(message) => {
                let mut buffer = vec![0; message.len()];
                self.inb.read_at(&message, 0, &mut buffer).expect("inside");
                assert_eq!(Some(&(buffer, message.tag())), self.queue.front());
                self.is_borrowed = bytes.bool();
                if !self.is_borrowed {
                    self.inb.release(&message).expect("it is not overwritten");
                    self.next_expected();
                }
            }
            Err(fault) => self.check_fault(fault),
        }
    }

    /// Rarely closes one end, or the whole connection from this side.
    fn close(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(16) {
            0 => {
                self.out.ring().close();
                self.closed = true;
                self.refused = self.refused.or(Some(ConnectionError::Disconnected));
                self.inb.ring().close();
            }
            1 => {
                self.inb.ring().close();
                self.refused = self.refused.or(Some(ConnectionError::Disconnected));
            }
            2 => {
                self.heap.set_close_reason(CloseReason::Closed as u64);
                self.refused = Some(ConnectionError::Closed);
                self.over = self.over.or(Some(ConnectionError::Closed));
                (self.is_borrowed, self.is_empty) = (false, false);
                self.queue.clear();
            }
            _ => return,
        }
        self.tally.closed = true;
    }
}

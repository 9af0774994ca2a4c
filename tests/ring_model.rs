//! Random programs over tiny rings in private memory behave like a `VecDeque` of messages.

mod common;

use std::collections::VecDeque;
use std::sync::Arc;

use common::rings::{In, Out, at_once, head, ring, send, try_take};
use common::{Watchdog, bytes};
use narrows::internal::layout::LAST_TICKET;
use narrows::internal::mem::{Heap, INLINE, Tail};
use narrows::internal::{RecvFault, SendFault, Wait};

const STEPS: usize = 3000;

/// A ring, and what should be in it.
struct Pair {
    out: Out,
    inb: In,
    heap: Arc<Heap>,
    slots: usize,
    arena: usize,
    queue: VecDeque<Vec<u8>>,
    /// The front message was lent and not given back.
    lent: bool,
    /// The receiver found nothing, and nothing was sent since.
    dry: bool,
    exhausted: bool,
    seed: u64,
    random: fastrand::Rng,
}

impl Pair {
    fn new(slots: usize, arena: usize, first: u64, seed: u64) -> Self {
        let (out, inb, heap) = ring(slots, arena, first);
        let random = fastrand::Rng::with_seed(seed);
        let (queue, lent, dry, exhausted) = (VecDeque::new(), false, true, false);
        Self { out, inb, heap, slots, arena, queue, lent, dry, exhausted, seed: 0, random }
    }

    fn message(&mut self) -> Vec<u8> {
        self.seed += 1;
        let border = [0, 1, 8, INLINE, INLINE + 1, self.arena / 2, self.arena][self.random.usize(..7)];
        let len = match self.random.u8(..8) {
            0..=2 => self.random.usize(..=INLINE),
            3..=4 => self.random.usize(..=self.arena),
            5..=6 => border,
            _ => self.random.usize(..=self.arena * 3),
        };
        bytes(self.seed, len)
    }

    fn step(&mut self) {
        match self.random.u8(..16) {
            0..=4 => self.send(Wait::Never),
            5 => self.send(at_once()),
            6 => self.reserve(),
            7 => self.batch(),
            8..=11 => self.receive(),
            12 => self.receive_short(),
            13 => self.receive_slice(),
            14 => self.lend(),
            _ => (0..self.slots).for_each(|_| self.receive()),
        }
    }

    fn sent(&mut self, message: Vec<u8>) {
        self.queue.push_back(message);
        self.dry = false;
    }

    fn send(&mut self, wait: Wait) {
        let message = self.message();
        match send(&mut self.out, &message, self.seed, wait) {
            Ok(len) => {
                assert_eq!(len, message.len());
                self.sent(message);
            }
            Err(SendFault::Full) => {
                let whole = message.len() <= self.arena.max(INLINE);
                assert!(!(self.dry && whole), "an empty ring has room for {} bytes", message.len());
                self.dry = false; // Pieces may stand there, abandoned.
            }
            Err(SendFault::TooLargeToTry) => {
                assert!(wait == Wait::Never && message.len() > self.arena.max(INLINE));
            }
            Err(SendFault::Exhausted) => self.exhausted = true,
            Err(fault) => panic!("{fault:?}"),
        }
    }

    /// Reserves, writes, and commits all of it, some of it, or nothing.
    fn reserve(&mut self) {
        let message = self.message();
        let Ok(claim) = self.out.claim(message.len(), Wait::Never) else { return };
        self.out.ring().open(&claim);
        self.out.ring().write(&claim, 0, &message, Tail::Keep).expect("fits");
        if self.random.bool() {
            let len = self.random.usize(..=message.len());
            self.out.commit(&claim, len, self.seed);
            self.sent(message[..len].to_vec());
        }
    }

    /// Stages as many as fit, and publishes or forgets them.
    fn batch(&mut self) {
        let (mut to, mut staged) = (self.out.ring().next(), Vec::new());
        for _ in 0..self.random.usize(..2 * self.slots + 1) {
            let message = self.message();
            if message.len() > self.out.in_place() {
                continue;
            }
            let Ok(claim) = self.out.stage(to, message.len()) else { break };
            self.out.ring().open(&claim);
            self.out.ring().write(&claim, 0, &message, Tail::Zero).expect("fits");
            self.out.describe_whole(&claim, message.len(), self.seed);
            to = claim.after();
            staged.push(message);
        }
        if self.random.bool() {
            self.out.publish(to, false);
            staged.into_iter().for_each(|message| self.sent(message));
        }
    }

    /// The next call gives back what was lent.
    fn give_back(&mut self) {
        if std::mem::take(&mut self.lent) {
            self.queue.pop_front();
        }
    }

    fn receive(&mut self) {
        self.give_back();
        match try_take(&mut self.inb) {
            Ok((message, _tag)) => assert_eq!(Some(message), self.queue.pop_front()),
            Err(fault) => self.nothing(fault),
        }
    }

    fn nothing(&mut self, fault: RecvFault) {
        assert_eq!(fault, RecvFault::Empty);
        assert!(self.queue.is_empty(), "{} messages are there", self.queue.len());
        self.dry = true;
        assert_eq!(head(&self.heap), self.inb.ring().ticket(), "nothing is hidden when the ring is dry");
    }

    fn receive_short(&mut self) {
        self.give_back();
        let Some(front) = self.queue.front().filter(|front| !front.is_empty()) else { return };
        let mut buffer = vec![0; self.random.usize(..front.len())];
        let fault = self.inb.recv(&mut buffer, Wait::Never).map(|_| ());
        assert_eq!(fault, Err(RecvFault::BufferTooSmall(front.len())));
    }

    fn receive_slice(&mut self) {
        self.give_back();
        let mut buffer = vec![0; 3 * self.arena + INLINE];
        match self.inb.recv(&mut buffer, at_once()) {
            Ok(message) => assert_eq!(Some(&buffer[..message.len()]), self.queue.pop_front().as_deref()),
            Err(fault) => self.nothing(fault),
        }
    }

    fn lend(&mut self) {
        self.give_back();
        match self.inb.lend(Wait::Never) {
            Ok(message) => {
                let mut buffer = vec![0; message.len()];
                self.inb.read_at(&message, 0, &mut buffer).expect("inside");
                assert_eq!(Some(&buffer), self.queue.front());
                self.lent = self.random.bool();
                if !self.lent {
                    self.inb.give_back(&message).expect("honest");
                    self.queue.pop_front();
                }
            }
            Err(fault) => self.nothing(fault),
        }
    }
}

fn run(slots: usize, arena: usize, first: u64, seed: u64) {
    let mut pair = Pair::new(slots, arena, first, seed);
    for _ in 0..STEPS {
        pair.step();
    }
    while !pair.queue.is_empty() || pair.lent {
        pair.receive();
    }
    pair.receive();
    assert_eq!(pair.exhausted, first > 1 << 62, "{slots} slots, arena {arena}, first {first}");
}

#[test]
fn random_programs_behave_like_a_queue() {
    let _watch = Watchdog::new("random programs");
    for seed in 0..12 {
        for slots in [1, 2, 4, 8] {
            for arena in [64, 128, 512, 4096] {
                run(slots, arena, 0, seed);
                run(slots, arena, (1 << 32) - 1, seed + 100);
                run(slots, arena, LAST_TICKET - 200, seed + 200);
            }
        }
    }
}

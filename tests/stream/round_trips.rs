//! Every size through every ring, between two processes, in both directions at once.

use std::thread;

use crate::support::{Partner, Watchdog, check, payload, role};
use WaitStrategy::{Adaptive, Park, Spin};
use narrows::internal::layout::LAST_TICKET;
use narrows::{ConnectionError, Options, Receiver, RecvError, Sender, SharedMemoryStream, WaitStrategy};

/// The messages of one test through one connection, the same in both processes.
#[derive(Clone, Copy)]
struct Plan {
    slots: u32,
    arena: u64,
    wait: WaitStrategy,
    sizes: fn() -> Vec<usize>,
    first: u64,
}

impl Plan {
    const fn new(slots: u32, arena: u64, wait: WaitStrategy, sizes: fn() -> Vec<usize>) -> Self {
        Self { slots, arena, wait, sizes, first: 0 }
    }

    fn options(&self) -> Options {
        let options = Options::new().slots(self.slots).arena(self.arena).wait(self.wait);
        options.first_ticket(self.first)
    }
}

/// 0 to 300, and each power of two and its neighbours, up to `most`.
fn up_to(most: usize) -> Vec<usize> {
    let powers = (9..=24).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 1]);
    (0..=300).chain(powers).filter(|size| *size <= most).collect()
}

/// Every size that is promised.
fn all() -> Vec<usize> {
    up_to((16 << 20) + 1)
}

/// Random sizes, most of them small, the longest `most`.
fn random(count: usize, most: usize) -> Vec<usize> {
    let mut random = fastrand::Rng::with_seed(42);
    let mut size = || {
        let limit = 1 << random.u32(0..=most.ilog2());
        random.usize(0..=limit)
    };
    (0..count).map(|_| size()).collect()
}

/// Plays the part of this process in the plan: both halves at once, in two threads, until all messages are through.
fn play(test: &str, plan: &Plan) {
    let _watch = Watchdog::new(test);
    match role() {
        Some(_) => talk(plan.options().from_parent().expect("a parent"), plan, 1 << 32, 0),
        None => {
            let (partner, stream) = Partner::start(&plan.options(), test, "peer");
            talk(stream, plan, 0, 1 << 32);
            partner.finish();
        }
    }
}

fn talk(stream: SharedMemoryStream, plan: &Plan, mine: u64, theirs: u64) {
    let (mut sender, receiver) = stream.split();
    let sizes = (plan.sizes)();
    thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_all(receiver, &sizes, theirs));
        send_all(&mut sender, &sizes, mine);
        // The other side gets all of it before it sees this end close.
        let mut receiver = receiving.join().expect("receives");
        drop(sender);
        assert_eq!(
            receiver.recv(&mut []).map(|_| ()),
            Err(RecvError::ConnectionLost(ConnectionError::Disconnected))
        );
    });
}

fn send_all(sender: &mut Sender, sizes: &[usize], seed: u64) {
    let mut buffer = Vec::new();
    for (index, size) in (seed..).zip(sizes) {
        payload(index, *size, &mut buffer);
        sender.send_tagged(&buffer, index).expect("sends");
    }
}

/// Receives in each of the ways in turn.
fn receive_all(mut receiver: Receiver, sizes: &[usize], seed: u64) -> Receiver {
    let most = sizes.iter().copied().max().unwrap_or(0);
    let (mut into, mut slice) = (Vec::new(), vec![0; most]);
    for (index, size) in (seed..).zip(sizes) {
        match index % 3 {
            0 => {
                let received = receiver.recv_into(&mut into).expect("receives");
                assert_eq!((received.len, received.tag), (*size, index));
                check(index, *size, &into);
            }
            1 => {
                let received = receiver.recv(&mut slice).expect("receives");
                assert_eq!((received.len, received.tag), (*size, index));
                check(index, *size, &slice[..received.len]);
            }
            _ => {
                let guard = receiver.recv_ref().expect("receives");
                assert_eq!((guard.len(), guard.tag()), (*size, index));
                check(index, *size, &guard.to_vec().expect("ours"));
                guard.finish().expect("the message was not modified");
            }
        }
    }
    receiver
}

const KIB: u64 = 1 << 10;

#[test]
fn every_size_through_the_default_ring() {
    play("every_size_through_the_default_ring", &Plan::new(256, KIB * KIB, Adaptive, all));
}

#[test]
fn every_size_through_four_slots_and_the_default_arena() {
    play("every_size_through_four_slots_and_the_default_arena", &Plan::new(4, KIB * KIB, Park, all));
}

#[test]
fn every_size_through_two_slots_and_the_default_arena() {
    play("every_size_through_two_slots_and_the_default_arena", &Plan::new(2, KIB * KIB, Adaptive, all));
}

#[test]
fn every_size_through_one_slot_and_the_default_arena() {
    play("every_size_through_one_slot_and_the_default_arena", &Plan::new(1, KIB * KIB, Adaptive, all));
}

#[test]
fn every_size_through_256_slots_and_a_small_arena() {
    play("every_size_through_256_slots_and_a_small_arena", &Plan::new(256, 4 * KIB, Park, all));
}

#[test]
fn every_size_through_four_slots_and_a_small_arena() {
    play("every_size_through_four_slots_and_a_small_arena", &Plan::new(4, 4 * KIB, Adaptive, all));
}

#[test]
fn every_size_through_two_slots_and_a_small_arena() {
    play("every_size_through_two_slots_and_a_small_arena", &Plan::new(2, 4 * KIB, Park, all));
}

#[test]
fn every_size_through_one_slot_and_a_small_arena() {
    play("every_size_through_one_slot_and_a_small_arena", &Plan::new(1, 4 * KIB, Adaptive, all));
}

#[test]
fn every_size_through_the_smallest_ring() {
    play("every_size_through_the_smallest_ring", &Plan::new(1, 64, Park, || up_to(1 << 13)));
}

#[test]
fn every_size_through_many_slots_and_the_smallest_arena() {
    play(
        "every_size_through_many_slots_and_the_smallest_arena",
        &Plan::new(256, 64, Adaptive, || up_to(1 << 13)),
    );
}

#[test]
fn spinning_sides_carry_every_small_size() {
    // Four spinning threads share what CPUs there are: each hand-over may cost a time slice.
    play("spinning_sides_carry_every_small_size", &Plan::new(256, KIB * KIB, Spin, || up_to(1 << 17)));
}

#[test]
fn ten_thousand_random_sizes_through_the_default_ring() {
    let plan = Plan::new(256, KIB * KIB, Adaptive, || random(10_000, 1 << 19));
    play("ten_thousand_random_sizes_through_the_default_ring", &plan);
}

#[test]
fn ten_thousand_random_sizes_through_a_small_ring() {
    let plan = Plan::new(4, 4 * KIB, Park, || random(10_000, 1 << 13));
    play("ten_thousand_random_sizes_through_a_small_ring", &plan);
}

#[test]
fn ten_thousand_random_sizes_through_two_slots() {
    let plan = Plan::new(2, 4 * KIB, Adaptive, || random(10_000, 1 << 12));
    play("ten_thousand_random_sizes_through_two_slots", &plan);
}

#[test]
fn ten_thousand_random_sizes_through_one_slot() {
    let plan = Plan::new(1, 4 * KIB, Park, || random(10_000, 1 << 12));
    play("ten_thousand_random_sizes_through_one_slot", &plan);
}

#[test]
fn ten_thousand_random_sizes_through_one_slot_and_the_default_arena() {
    let plan = Plan::new(1, KIB * KIB, Adaptive, || random(10_000, 1 << 16));
    play("ten_thousand_random_sizes_through_one_slot_and_the_default_arena", &plan);
}

#[test]
fn the_last_tickets_carry_messages_like_the_first() {
    // One ticket for each message, and 30 to spare.
    let mut plan = Plan::new(256, KIB * KIB, Adaptive, || random(2000, 1 << 16));
    plan.first = LAST_TICKET - 2030;
    play("the_last_tickets_carry_messages_like_the_first", &plan);
}

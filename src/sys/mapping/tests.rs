//! Tests of the mapped memory: sleeping and waking, borrowed spans, and the check for lost wake-ups. The fuzz body
//! `memory` tests the methods with arguments out of range.

use std::sync::mpsc::channel;

use super::*;

use crate::layout::Geometry;
use crate::memory::{self, INLINE_CAPACITY};
#[cfg(feature = "testing")]
use crate::memory::{Store, Word};
use crate::sys::connection::{ConnectionParts, Side};
use crate::sys::region::Region;
use crate::sys::socket::{self, PeerCred};
use crate::sys::testing::{PATIENCE, eventually};

#[path = "../../../tests/support/sleeps.rs"]
#[allow(unreachable_pub)]
mod sleeps;

use sleeps::sleeps_end;

/// Makes a connection, and returns both its directions.
fn directions(slots: usize, arena: usize) -> [Mapping; 2] {
    let geometry = Geometry::new(slots.try_into().unwrap(), arena as u64, 4).unwrap();
    let region = Region::anonymous(geometry.region_len()).unwrap();
    ConnectionInner::format(&region, &geometry, 0);
    let (socket, _theirs) = socket::pair().unwrap();
    let parts = ConnectionParts {
        region,
        socket: socket.into(),
        geometry,
        side: Side::Client,
        cred: PeerCred::own().expect("known"),
        peer: None,
        first_ticket: 0,
        max_message: 1,
    };
    let connection = ConnectionInner::establish(parts, |_, _| {}).unwrap();
    [0, 1].map(|direction| Mapping::new(Arc::clone(&connection), direction))
}

#[test]
fn every_sleep_ends() {
    sleeps_end(&directions(1, 64)[0]);
}

#[test]
fn a_span_is_lent_only_if_it_is_here() {
    let [mapping, _] = directions(2, 128);
    let borrowed = |span, len| mapping.raw(span, 0, len).is_some();
    assert!(borrowed(Span::Slot(u64::MAX), INLINE_CAPACITY) && !borrowed(Span::Slot(0), INLINE_CAPACITY + 1));
    assert!(borrowed(Span::Arena(1), 64) && !borrowed(Span::Arena(1), 65));
    assert!(borrowed(Span::Arena(2), 0) && !borrowed(Span::Arena(3), 0));
    assert!(!borrowed(Span::Arena(u32::MAX), 1) && !borrowed(Span::Arena(0), usize::MAX));
}

#[test]
fn extra_sleepers_of_the_peer_are_not_woken_and_hide_no_sleeper_of_ours() {
    const SLEEPERS: usize = 8;
    for (direction, flag, ours) in [
        (0, Flag::Consumer, false),
        (0, Flag::Producer, true),
        (1, Flag::Consumer, true),
        (1, Flag::Producer, false),
        (1, Flag::PeerConsumer, false),
    ] {
        let mappings = directions(1, 64);
        let (mapping, woken) = (&mappings[direction], &AtomicU64::new(0));
        let expected = if ours { SLEEPERS as u64 } else { 1 };
        let (sender, receiver) = channel();
        mapping.store_flag(flag, 1);
        let counted = std::thread::scope(|scope| {
            for _ in 0..SLEEPERS {
                let sender = sender.clone();
                scope.spawn(move || {
                    // SAFETY: takes nothing and cannot fail.
                    sender.send(unsafe { libc::gettid() }).expect("sends");
                    futex::wait(mapping.flag(flag), None, PATIENCE);
                    woken.fetch_add(1, Ordering::Relaxed);
                });
            }
            let threads: Vec<i32> = receiver.iter().take(SLEEPERS).collect();
            assert!(eventually(|| threads.iter().all(|thread| in_a_futex(*thread))));
            mapping.wake(flag);
            assert!(eventually(|| woken.load(Ordering::Relaxed) >= expected));
            std::thread::sleep(Duration::from_millis(50)); // Time for sleepers that must not be woken.
            let counted = woken.load(Ordering::Relaxed);
            futex::wake(mapping.flag(flag), i32::MAX);
            counted
        });
        assert_eq!(counted, expected, "{flag:?} of direction {direction}");
    }
}

#[cfg(feature = "testing")]
#[test]
fn a_lost_wake_up_is_distinguished_from_a_late_one() {
    use crate::sys::{lost_wakeup_check, testing::in_child};
    // The counts are those of the whole process.
    in_child(|| {
        let [mapping, _] = directions(2, 128);
        let long = Duration::from_secs(3600);
        for (flag, own) in [(Flag::Consumer, Word::Head), (Flag::Producer, Word::AwaitedTicket)] {
            mapping.store(own, 4, Store::Relaxed);
            let lost = |upto, slice| {
                let (before, began) = (lost_wakeup_check::seen(), futex::monotonic_now());
                mapping.note(flag, upto);
                mapping.slept_through(flag, began, slice);
                (
                    lost_wakeup_check::seen().slices - before.slices,
                    lost_wakeup_check::seen().lost - before.lost,
                )
            };
            assert_eq!(lost(5, long), (0, 0), "the check is off");
            lost_wakeup_check::watch();
            assert_eq!(lost(4, long), (1, 0), "another ticket was published");
            assert_eq!(lost(5, long), (1, 1), "its ticket was published, and it slept on");
            assert_eq!(lost(5, Duration::ZERO), (1, 0), "its ticket was published after the slice");
            lost_wakeup_check::unwatch();
        }
    });
}

/// Returns whether this thread of the process sleeps in a futex.
fn in_a_futex(thread: i32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall"));
    call.is_ok_and(|call| call.starts_with(&format!("{} ", libc::SYS_futex)))
}

//! The mapped memory: its sleep and its wakes, what it lends, and what the sentinel sees. What its methods do with absurd
//! arguments is tried by the fuzz body `memory`.

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

/// Both directions of a fresh connection.
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
fn a_crowd_of_the_peers_does_not_cost_us_its_waking_and_hides_no_sleeper_of_ours() {
    const CROWD: usize = 8;
    for (direction, flag, ours) in [
        (0, Flag::Consumer, false),
        (0, Flag::Producer, true),
        (1, Flag::Consumer, true),
        (1, Flag::Producer, false),
        (1, Flag::PeerConsumer, false),
    ] {
        let mappings = directions(1, 64);
        let (mapping, woken) = (&mappings[direction], &AtomicU64::new(0));
        let expected = if ours { CROWD as u64 } else { 1 };
        let (tell, told) = channel();
        mapping.store_flag(flag, 1);
        let counted = std::thread::scope(|scope| {
            for _ in 0..CROWD {
                let tell = tell.clone();
                scope.spawn(move || {
                    // SAFETY: takes nothing and cannot fail.
                    tell.send(unsafe { libc::gettid() }).expect("there");
                    futex::wait(mapping.flag(flag), None, PATIENCE);
                    woken.fetch_add(1, Ordering::Relaxed);
                });
            }
            let crowd: Vec<i32> = told.iter().take(CROWD).collect();
            assert!(eventually(|| crowd.iter().all(|thread| in_a_futex(*thread))));
            mapping.wake(flag);
            assert!(eventually(|| woken.load(Ordering::Relaxed) >= expected));
            std::thread::sleep(Duration::from_millis(50)); // For those who should not be.
            let counted = woken.load(Ordering::Relaxed);
            futex::wake(mapping.flag(flag), i32::MAX);
            counted
        });
        assert_eq!(counted, expected, "{flag:?} of direction {direction}");
    }
}

#[cfg(feature = "testing")]
#[test]
fn the_sentinel_tells_a_lost_wake_from_a_late_one() {
    use crate::sys::{lost_wakeup_check, testing::in_child};
    // It counts for a whole process.
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
            assert_eq!(lost(5, long), (0, 0), "nobody watches");
            lost_wakeup_check::watch();
            assert_eq!(lost(4, long), (1, 0), "what came was not what it waits for");
            assert_eq!(lost(5, long), (1, 1), "it came, and the sleeper slept on");
            assert_eq!(lost(5, Duration::ZERO), (1, 0), "it came after the slice");
            lost_wakeup_check::unwatch();
        }
    });
}

/// Whether the kernel has this thread of ours asleep in a futex.
fn in_a_futex(thread: i32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall"));
    call.is_ok_and(|call| call.starts_with(&format!("{} ", libc::SYS_futex)))
}

//! The mapped memory under the same absurd arguments as the private one, and its neighbours' silence.

use std::sync::mpsc::channel;

use super::*;
use crate::layout::Geometry;
use crate::mem;
use crate::sys::link::{LinkParts, Side};
use crate::sys::region::Region;
use crate::sys::socket::{self, PeerCred};
use crate::sys::testing::{PATIENCE, eventually};

#[path = "../../../tests/common/absurd.rs"]
#[allow(clippy::cast_possible_truncation, unreachable_pub)]
mod absurd;

use absurd::{Reference, program, sleeps_end};

/// Both directions of a fresh connection.
fn directions(slots: usize, arena: usize) -> [Mapping; 2] {
    let geometry = Geometry::new(slots.try_into().unwrap(), arena as u64, 4).unwrap();
    let region = Region::anonymous(geometry.region_len()).unwrap();
    Link::format(&region, &geometry, 0);
    let (socket, _theirs) = socket::pair().unwrap();
    let parts = LinkParts {
        region,
        socket,
        geometry,
        side: Side::Client,
        cred: PeerCred::own(),
        peer: None,
        first_ticket: 0,
        max_message: 1,
    };
    let link = Link::establish(parts, |_, _, _| {}).unwrap();
    [0, 1].map(|direction| Mapping::new(Arc::clone(&link), direction))
}

/// Every byte of the region, word by word.
fn bytes(mapping: &Mapping) -> Vec<u64> {
    let region = mapping.link.region();
    let word = |at: usize| {
        // SAFETY: in the region, which the link keeps, and 8-aligned; only atomics touch it.
        unsafe { AtomicU64::from_ptr(region.base().add(at).cast().as_ptr()) }.load(Ordering::Relaxed)
    };
    (0..region.len()).step_by(8).map(word).collect()
}

#[test]
fn absurd_arguments_change_what_they_name_and_nothing_else() {
    for (slots, arena) in [(1, 64), (2, 128), (4, 1024), (8, 4096)] {
        for direction in [0, 1] {
            let mappings = directions(slots, arena);
            program(&mappings[direction], (slots, arena, 4), 1 + direction as u64, 1500);
            let other = &mappings[1 - direction];
            assert_eq!(other.load_flag(Flag::Consumer), mappings[direction].load_flag(Flag::Twin));
            // The fate is of the whole connection; the twin flag is the other's consumer flag.
            other.link.fate().store(0, Ordering::Relaxed);
            Reference::new(slots, arena, 4).compare(other, &[Flag::Producer]);
        }
    }
}

#[test]
fn the_bytes_between_the_parts_stay_zero() {
    let (slots, arena) = (2, 128);
    let mappings = directions(slots, arena);
    for (seed, mapping) in (9..).zip(&mappings) {
        // The only two that the directions share.
        mapping.link.fate().store(0, Ordering::Relaxed);
        [Flag::Consumer, Flag::Twin].iter().for_each(|flag| mapping.store_flag(*flag, 0));
        program(mapping, (slots, arena, 4), seed, 1500);
    }
    let geometry = mappings[0].link.geometry();
    let mut bytes = bytes(&mappings[0]);
    for direction in [0, 1].map(|direction| geometry.direction(direction)) {
        use crate::layout::words::{BELL, URGENT};
        let parts = [
            (direction.words, BELL + 8),
            (direction.words + URGENT, 4 * 8),
            (direction.slots, slots * SLOT),
            (direction.arena, arena),
        ];
        for (from, len) in parts {
            bytes[from / 8..(from + len) / 8].fill(0);
        }
    }
    assert!(bytes.iter().all(|word| *word == 0), "something was written between the parts");
}

#[test]
fn every_sleep_ends() {
    sleeps_end(&directions(1, 64)[0]);
}

#[test]
fn a_span_is_lent_only_if_it_is_here() {
    let [mapping, _] = directions(2, 128);
    let lent = |span, len| mapping.raw(span, 0, len).is_some();
    assert!(lent(Span::Slot(u64::MAX), INLINE) && !lent(Span::Slot(0), INLINE + 1));
    assert!(lent(Span::Arena(1), 64) && !lent(Span::Arena(1), 65));
    assert!(lent(Span::Arena(2), 0) && !lent(Span::Arena(3), 0));
    assert!(!lent(Span::Arena(u32::MAX), 1) && !lent(Span::Arena(0), usize::MAX));
}

#[test]
fn a_crowd_of_the_peers_does_not_cost_us_its_waking_and_hides_no_sleeper_of_ours() {
    const CROWD: usize = 8;
    for (direction, flag, ours) in [
        (0, Flag::Consumer, false),
        (0, Flag::Producer, true),
        (1, Flag::Consumer, true),
        (1, Flag::Producer, false),
        (1, Flag::Twin, false),
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
    use crate::sys::{sentinel, testing::in_child};
    // It counts for a whole process.
    in_child(|| {
        let [mapping, _] = directions(2, 128);
        let long = Duration::from_secs(3600);
        for (flag, own) in [(Flag::Consumer, Word::Head), (Flag::Producer, Word::Wanted)] {
            mapping.store(own, 4, Store::Relaxed);
            let lost = |upto, slice| {
                let (before, began) = (sentinel::seen(), futex::monotonic_now());
                mapping.note(flag, upto);
                mapping.slept_through(flag, began, slice);
                (sentinel::seen().slices - before.slices, sentinel::seen().lost - before.lost)
            };
            assert_eq!(lost(5, long), (0, 0), "nobody watches");
            sentinel::watch();
            assert_eq!(lost(4, long), (1, 0), "what came was not what it waits for");
            assert_eq!(lost(5, long), (1, 1), "it came, and the sleeper slept on");
            assert_eq!(lost(5, Duration::ZERO), (1, 0), "it came after the slice");
            sentinel::unwatch();
        }
    });
}

/// Whether the kernel has this thread of ours asleep in a futex.
fn in_a_futex(thread: i32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall"));
    call.is_ok_and(|call| call.starts_with(&format!("{} ", libc::SYS_futex)))
}

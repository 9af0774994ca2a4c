//! A hostile peer that keeps changing our flags and words makes us back off, so the CPU time that it costs is bounded. A
//! well-formed peer never makes us back off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::Watchdog;
use crate::support::rings::{In, Out, over, put, send};
use crate::support::spied::{Did, Spied};
use narrows::internal::memory::{Field, Flag, Heap, Memory, Store, Word};
use narrows::internal::ring::CloseReason;
use narrows::internal::{ConnectionError, RecvCoreError, SendCoreError, Wait};
use narrows::{Options, SharedMemoryStream};

const SOON: Duration = Duration::from_millis(200);

#[test]
fn a_peer_that_keeps_clearing_our_flag_makes_us_back_off() {
    let backoffs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&backoffs);
    let mem = Spied::new(Heap::new(1, 64, 1), move |_, did| {
        count.fetch_add(u32::from(did == Did::Backoff), Ordering::Relaxed);
    });
    let (_out, mut inb) = over(&mem, 0);
    let (over, ended) = channel::<()>();
    thread::scope(|scope| {
        let mem = &mem;
        scope.spawn(move || {
            while ended.try_recv().is_err() {
                mem.heap.store_flag(Flag::Consumer, 0);
                mem.heap.wake(Flag::Consumer);
            }
        });
        // The hostile thread may have to wait for a CPU, so there are many rounds.
        for _ in 0..200 {
            let deadline = Instant::now() + Duration::from_millis(100);
            assert_eq!(
                inb.recv(&mut [], Wait::Deadline(Some(deadline))).map(|_| ()),
                Err(RecvCoreError::Empty)
            );
            assert!(Instant::now() >= deadline);
            if backoffs.load(Ordering::Relaxed) > 0 {
                break;
            }
        }
        over.send(()).expect("there");
    });
    assert!(backoffs.load(Ordering::Relaxed) > 0);
}

/// Checks that a call backs off if a message or space is there whenever we go to sleep, and gone whenever we look for it.
fn check_flicker(flag: Flag, flicker: fn(&Heap, bool), call: fn(&mut Out<Arc<Spied>>, &mut In<Arc<Spied>>)) {
    let counts = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let counted = Arc::clone(&counts);
    let mem = Spied::new(Heap::new(1, 64, 1), move |heap, did| match did {
        Did::StoreFlag(stored, value) if stored == flag => {
            flicker(heap, value == 1);
            counted[0].fetch_add(value, Ordering::Relaxed);
        }
        Did::Backoff => _ = counted[1].fetch_add(1, Ordering::Relaxed),
        _ => {}
    });
    let (mut out, mut inb) = over(&mem, 0);
    call(&mut out, &mut inb);
    let [rounds, backoffs] = [0, 1].map(|which| counts[which].load(Ordering::Relaxed));
    assert!(rounds > 64 && backoffs + 66 >= rounds, "{rounds} rounds, {backoffs} backoffs");
}

#[test]
fn flickering_words_make_us_back_off() {
    let stamp = |heap: &Heap, there| heap.store_slot(0, Field::Stamp, 2 * u64::from(there), Store::Release);
    check_flicker(Flag::Consumer, stamp, |_, inb| {
        assert_eq!(inb.recv(&mut [], Wait::for_duration(SOON)).map(|_| ()), Err(RecvCoreError::Empty));
    });
    let head = |heap: &Heap, there| heap.store(Word::Head, u64::from(there), Store::Release);
    check_flicker(Flag::Producer, head, |out, _| {
        put(out, b"all there is room for", 0);
        assert_eq!(send(out, b"", 0, Wait::for_duration(SOON)), Err(SendCoreError::Full));
    });
}

#[test]
fn cleared_flags_between_flickers_make_us_back_off() {
    const ROUNDS: u32 = 8000;
    let counts = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let counted = Arc::clone(&counts);
    let mem = Spied::new(Heap::new(1, 64, 1), move |heap, did| match did {
        Did::StoreFlag(Flag::Consumer, 1) => {
            let round = counted[0].fetch_add(1, Ordering::Relaxed);
            // It wakes us for nothing, and shows us a message just before we would suspect the flag.
            heap.store_slot(0, Field::Stamp, 2 * u64::from(round % 60 == 59), Store::Release);
            heap.store_flag(Flag::Consumer, 0);
            if round > ROUNDS {
                heap.set_close_reason(CloseReason::Closed as u64);
            }
        }
        Did::StoreFlag(Flag::Consumer, _) => heap.store_slot(0, Field::Stamp, 0, Store::Release),
        Did::Backoff => _ = counted[1].fetch_add(1, Ordering::Relaxed),
        _ => {}
    });
    let (_out, mut inb) = over(&mem, 0);
    let end = inb.recv(&mut [], Wait::NO_DEADLINE).map(|_| ());
    assert_eq!(end, Err(RecvCoreError::Ended(ConnectionError::Closed)));
    let [rounds, backoffs] = [0, 1].map(|which| counts[which].load(Ordering::Relaxed));
    assert!(rounds > ROUNDS && backoffs + ROUNDS / 2 >= rounds, "{rounds} rounds, {backoffs} backoffs");
}

#[test]
fn fragments_of_a_long_message_cause_no_backoff() {
    const FRAGMENTS: usize = 2000;
    let _watch = Watchdog::new("fragments for a thread that waits for either");
    let wait = |a: &mut SharedMemoryStream, b: &mut SharedMemoryStream| {
        thread::scope(|scope| {
            scope.spawn(|| b.send(&vec![7; FRAGMENTS << 10]).expect("sends"));
            let began = Instant::now();
            assert!(a.wait_either(30).expect("either").message);
            a.recv_into(&mut Vec::new()).expect("receives");
            began.elapsed()
        })
    };
    let (mut a, mut b) = Options::new().slots(2).arena(1 << 10).pair().expect("pair");
    while a.try_send(&[1; 30]).is_ok() {} // The ring is full, so the thread also waits for space.
    // To back off for each fragment would take a second. The machine may be busy, so this is repeated until it is fast.
    while wait(&mut a, &mut b) > Duration::from_micros(250 * FRAGMENTS as u64) {}
}

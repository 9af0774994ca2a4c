//! Tests every size at every offset, and each of the moves.

#[cfg(target_arch = "x86_64")]
use super::x86_64::*;
use super::*;

#[test]
#[cfg(target_arch = "x86_64")]
fn both_moves_copy_every_length() {
    let from: Vec<u8> = (0..=255).cycle().take(3000).collect();
    for len in LONGEST_SHORT..2100 {
        for skew in [0, 1, 8, 63] {
            let copied = |by: &dyn Fn(*mut u8, *const u8)| {
                let mut to = vec![0; 3000]; // More than `skew + len`.
                by(to[skew..].as_mut_ptr(), from.as_ptr());
                to
            };
            // SAFETY: both have as many bytes.
            let by_vector = copied(&|to, from| unsafe { in_blocks(to, from, len, vector_move) });
            // SAFETY: as above.
            let chosen = copied(&|to, from| unsafe { long_move(to, from, len) });
            assert_eq!(by_vector, chosen, "{len}");
            assert_eq!(chosen[skew..skew + len], from[..len], "{len}");
            assert!(chosen[..skew].iter().chain(&chosen[skew + len..]).all(|b| *b == 0));
        }
    }
}

fn shared(words: usize) -> Vec<AtomicU64> {
    (0..words).map(|_| AtomicU64::new(u64::MAX)).collect()
}

#[test]
fn every_size_at_every_offset_comes_back_and_touches_nothing_else() {
    let mut sizes: Vec<usize> = (0..=300).collect();
    sizes.extend([511, 512, 513, 519, 520, 1023, 1024, 1025, 4095, 4097]);
    for len in sizes {
        for at in 0..=17 {
            for tail in [Padding::Zero, Padding::Keep] {
                let pages = shared((at + len) / 8 + 3);
                let base = NonNull::from(&pages[0]).cast::<u8>();
                let bytes: Vec<u8> = (0..len).map(|i| u8::try_from((i * 7 + at) % 256).unwrap()).collect();
                let mut back = vec![0; len];
                // SAFETY: `pages` has more than `at + len` bytes and outlives the call.
                unsafe { copy_in(base, at, &bytes, tail) };
                // SAFETY: as above.
                unsafe { copy_out(base, at, &mut back) };
                assert_eq!(back, bytes, "{len} at {at}");
                let all: Vec<u8> =
                    pages.iter().flat_map(|w| w.load(Ordering::Relaxed).to_le_bytes()).collect();
                let end = at + len;
                let zeroed = if len > 0 && tail == Padding::Zero { end.next_multiple_of(8) } else { end };
                assert!(all[..at].iter().all(|b| *b == 255), "before {len} at {at}");
                assert!(all[end..zeroed].iter().all(|b| *b == 0), "rest {len} at {at}");
                assert!(all[zeroed..].iter().all(|b| *b == 255), "behind {len} at {at}");
            }
        }
    }
}

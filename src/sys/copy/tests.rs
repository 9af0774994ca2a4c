//! Every size at every offset, and both bulk moves.

use super::*;

#[test]
#[cfg(target_arch = "x86_64")]
fn both_moves_copy_every_length() {
    let from: Vec<u8> = (0..=255).cycle().take(3000).collect();
    for len in (BULK..2100).step_by(8) {
        for skew in [0, 1, 8, 63] {
            let (mut by_vector, mut by_byte) = (vec![0; 3000], vec![0; 3000]);
            let blocks = len / BLOCK * BLOCK;
            // SAFETY: all three have 3000 bytes, more than `skew + len`.
            unsafe {
                vector_move(by_vector.as_mut_ptr().add(skew), from.as_ptr(), blocks);
                let last = len - BLOCK;
                vector_move(by_vector.as_mut_ptr().add(skew + last), from.as_ptr().add(last), BLOCK);
                byte_move(by_byte.as_mut_ptr().add(skew), from.as_ptr(), len);
            }
            assert_eq!(by_vector, by_byte, "{len}");
            assert_eq!(by_byte[skew..skew + len], from[..len], "{len}");
            assert!(by_byte[..skew].iter().chain(&by_byte[skew + len..]).all(|b| *b == 0));
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
            for tail in [Tail::Zero, Tail::Keep] {
                let pages = shared((at + len) / 8 + 3);
                let base = NonNull::from(&pages[0]).cast::<u8>();
                let bytes: Vec<u8> = (0..len).map(|i| u8::try_from((i * 7 + at) % 256).unwrap()).collect();
                let mut back = vec![0; len];
                // SAFETY: `pages` has more than `at + len` bytes and lives on.
                unsafe { copy_in(base, at, &bytes, tail) };
                // SAFETY: as above.
                unsafe { copy_out(base, at, &mut back) };
                assert_eq!(back, bytes, "{len} at {at}");
                let all: Vec<u8> =
                    pages.iter().flat_map(|w| w.load(Ordering::Relaxed).to_le_bytes()).collect();
                let end = at + len;
                let zeroed = if len > 0 && tail == Tail::Zero { end.next_multiple_of(8) } else { end };
                assert!(all[..at].iter().all(|b| *b == 255), "before {len} at {at}");
                assert!(all[end..zeroed].iter().all(|b| *b == 0), "rest {len} at {at}");
                assert!(all[zeroed..].iter().all(|b| *b == 255), "behind {len} at {at}");
            }
        }
    }
}

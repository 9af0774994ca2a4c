//! Payload bytes, in the forms that loom checks in different ways.

use std::fmt::Debug;
use std::ops::Range;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering};

/// Bytes that two threads may reach.
pub trait Spans: Debug + Send + Sync + 'static {
    /// Returns `len` zeros.
    fn new(len: usize) -> Self;

    /// Copies bytes out.
    fn read(&self, at: usize, into: &mut [u8]);

    /// Copies bytes in.
    fn write(&self, at: usize, from: &[u8]);
}

/// Bytes in loom's cells: two accesses that race fail the model.
#[derive(Debug)]
pub struct Cells(Vec<UnsafeCell<[u8; CELL]>>);

/// The alignment of arena offsets, so that an access of most models is one of one cell.
const CELL: usize = 64;

// SAFETY: loom checks every access to the cells and fails the model if two of them race.
unsafe impl Sync for Cells {}

/// Bytes in relaxed words, eight at a time.
#[derive(Debug)]
pub struct Words(Vec<AtomicU64>);

/// Bytes for a single thread, of any number. Loom does not see them.
#[derive(Debug)]
pub struct Plain(std::sync::Mutex<Vec<u8>>);

/// Calls `act` for each block of `size` bytes that a range touches, with the block's index, the range within the block, and the
/// range within the whole.
fn blocks(size: usize, at: usize, len: usize, mut act: impl FnMut(usize, Range<usize>, Range<usize>)) {
    let mut done = 0;
    while done < len {
        let (block, inside) = ((at + done) / size, (at + done) % size);
        let step = (size - inside).min(len - done);
        act(block, inside..inside + step, done..done + step);
        done += step;
    }
}

impl Spans for Cells {
    fn new(len: usize) -> Self {
        Self((0..len.div_ceil(CELL)).map(|_| UnsafeCell::new([0; CELL])).collect())
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        blocks(CELL, at, into.len(), |cell, inside, whole| {
            // SAFETY: loom fails the model if this races with a write.
            self.0[cell].with(|bytes| into[whole].copy_from_slice(unsafe { &(&*bytes)[inside] }));
        });
    }

    fn write(&self, at: usize, from: &[u8]) {
        blocks(CELL, at, from.len(), |cell, inside, whole| {
            // SAFETY: loom fails the model if this races with any other access.
            self.0[cell].with_mut(|bytes| unsafe { (&mut *bytes)[inside].copy_from_slice(&from[whole]) });
        });
    }
}

impl Spans for Words {
    fn new(len: usize) -> Self {
        Self((0..len.div_ceil(8)).map(|_| AtomicU64::new(0)).collect())
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        blocks(8, at, into.len(), |word, inside, whole| {
            into[whole].copy_from_slice(&self.0[word].load(Ordering::Relaxed).to_le_bytes()[inside]);
        });
    }

    fn write(&self, at: usize, from: &[u8]) {
        blocks(8, at, from.len(), |word, inside, whole| {
            assert_eq!(inside.start, 0, "a payload is written at once here");
            let mut bytes = [0; 8]; // The rest is zeroed, as after every payload.
            bytes[inside].copy_from_slice(&from[whole]);
            self.0[word].store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        });
    }
}

impl Spans for Plain {
    fn new(len: usize) -> Self {
        Self(std::sync::Mutex::new(vec![0; len]))
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.0.lock().unwrap()[at..at + into.len()]);
    }

    fn write(&self, at: usize, from: &[u8]) {
        self.0.lock().unwrap()[at..at + from.len()].copy_from_slice(from);
    }
}

//! Growth of private memory whose size a peer chooses: where there is none, it is an error and no abort.
//!
//! # Invariants
//!
//! 1. What a peer sends never takes the last memory: a margin stays for small allocations, which would abort. It is
//!    larger for what is large, so that short messages still come where long ones find no room.
//! 2. Between two looks at what is left, at most a step is taken.
//! 3. A look counts what other threads are about to take.
//!
//! # Proof
//!
//! `tests/hostile/low_memory.rs`, in processes with a limited address space.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Buffers of one size or another, and what of the memory is left to others.
struct BufferClass {
    /// What stays free, in bytes.
    margin: usize,
    /// Bytes that are taken without another look at what is left.
    step: usize,
    /// Bytes that may be taken before the next look.
    budget: AtomicUsize,
}

/// The most bytes of a small buffer.
const SMALL_BUFFER: usize = 4 << 10;

static SMALL: BufferClass = BufferClass { margin: 1 << 20, step: 128 << 10, budget: AtomicUsize::new(0) };
static LARGE: BufferClass = BufferClass { margin: 4 << 20, step: 1 << 20, budget: AtomicUsize::new(0) };

/// Bytes that threads are about to take after a look.
static PENDING: AtomicUsize = AtomicUsize::new(0);

/// There is no memory for what a peer has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// Makes the buffer `len` bytes long, with zeros behind what it has. Grows by doubling, to a capacity of `most` at most.
///
/// # Errors
///
/// [`OutOfMemory`]; the buffer is as it was.
#[inline]
pub fn try_resize(buffer: &mut Vec<u8>, len: usize, most: usize) -> Result<(), OutOfMemory> {
    if len > buffer.capacity() {
        grow(buffer, len, most)?;
    }
    buffer.resize(len, 0);
    Ok(())
}

/// Gives the buffer a capacity of `len` bytes at least.
///
/// # Errors
///
/// [`OutOfMemory`]; the buffer is as it was.
#[inline]
pub fn try_reserve(buffer: &mut Vec<u8>, len: usize) -> Result<(), OutOfMemory> {
    if len > buffer.capacity() { grow(buffer, len, len) } else { Ok(()) }
}

#[cold]
fn grow(buffer: &mut Vec<u8>, len: usize, most: usize) -> Result<(), OutOfMemory> {
    let doubled = buffer.capacity().saturating_mul(2).min(most).max(len);
    reserve(buffer, doubled).or_else(|OutOfMemory| reserve(buffer, len))
}

fn reserve(buffer: &mut Vec<u8>, capacity: usize) -> Result<(), OutOfMemory> {
    let class = if capacity <= SMALL_BUFFER { &SMALL } else { &LARGE };
    let mut take = || {
        let more = capacity.saturating_sub(buffer.len());
        buffer.try_reserve_exact(more).map_err(|_| OutOfMemory)
    };
    let spend = |left: usize| left.checked_sub(capacity);
    if class.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok() {
        return take();
    }
    let pending = PENDING.fetch_add(capacity, Ordering::Relaxed).saturating_add(capacity);
    let taken = class.probe(pending).and_then(|()| {
        class.budget.store(class.step, Ordering::Relaxed);
        take()
    });
    PENDING.fetch_sub(capacity, Ordering::Relaxed);
    taken
}

impl BufferClass {
    /// Looks whether so many bytes can be had, and the margin beside them.
    fn probe(&self, bytes: usize) -> Result<(), OutOfMemory> {
        let mut probe = Vec::<u8>::new();
        let wanted = bytes.saturating_add(self.margin + self.step);
        probe.try_reserve_exact(wanted).map_err(|_| OutOfMemory)?;
        drop(black_box(probe)); // Else it is optimized away.
        Ok(())
    }
}

//! Fallible growth of private memory whose size a peer chooses: if memory is short, it returns an error instead of
//! aborting.
//!
//! # Invariants
//!
//! 1. What a peer sends never uses up the last memory. A margin stays free for small allocations, which would abort the
//!    process. The margin is larger for large buffers, so that short messages can still be received when long ones
//!    cannot.
//! 2. Between two probes of the free memory, at most one step is allocated.
//! 3. A probe counts the bytes that other threads are about to allocate.
//!
//! # Proof
//!
//! `tests/hostile/low_memory.rs`, in processes with a limited address space.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The small or the large buffers, and how much memory they leave free for others.
struct BufferClass {
    /// Bytes that stay free.
    margin: usize,
    /// Bytes that may be allocated after a probe without another one.
    step: usize,
    /// Bytes of that step that are still left.
    budget: AtomicUsize,
}

/// The largest capacity of a small buffer, in bytes.
const SMALL_BUFFER: usize = 4 << 10;

static SMALL: BufferClass = BufferClass { margin: 1 << 20, step: 128 << 10, budget: AtomicUsize::new(0) };
static LARGE: BufferClass = BufferClass { margin: 4 << 20, step: 1 << 20, budget: AtomicUsize::new(0) };

/// Bytes that threads are about to allocate after their probes.
static PENDING: AtomicUsize = AtomicUsize::new(0);

/// The error for a peer's message for which there is no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// Makes the buffer `len` bytes long; new bytes are zero. Grows by doubling, to a capacity of at most `most`.
///
/// # Errors
///
/// [`OutOfMemory`] if there is no memory for it; the buffer is unchanged.
#[inline]
pub fn try_resize(buffer: &mut Vec<u8>, len: usize, most: usize) -> Result<(), OutOfMemory> {
    if len > buffer.capacity() {
        grow(buffer, len, most)?;
    }
    buffer.resize(len, 0);
    Ok(())
}

/// Gives the buffer a capacity of at least `len` bytes.
///
/// # Errors
///
/// [`OutOfMemory`] if there is no memory for it; the buffer is unchanged.
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
    // The common case: the last probe found enough memory, and its step covers this allocation.
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
    /// Checks that so many bytes can be allocated, and the margin and a step beside them.
    fn probe(&self, bytes: usize) -> Result<(), OutOfMemory> {
        let mut probe = Vec::<u8>::new();
        let wanted = bytes.saturating_add(self.margin + self.step);
        probe.try_reserve_exact(wanted).map_err(|_| OutOfMemory)?;
        drop(black_box(probe)); // Otherwise the compiler removes the allocation.
        Ok(())
    }
}

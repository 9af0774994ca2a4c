//! Growth of private memory whose size a peer chooses: where there is none, it is an error and no abort.
//!
//! # Invariants
//!
//! 1. What a peer sends never takes the last memory: [`MARGIN`] bytes stay for small allocations, which would abort.
//! 2. Between two looks at what is left, at most [`STEP`] bytes are taken.
//! 3. A look counts what other threads are about to take.
//!
//! # Proof
//!
//! `tests/low_memory.rs`, in processes with a limited address space.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What stays free for small allocations, in bytes.
const MARGIN: usize = 4 << 20;

/// Bytes that are taken without another look at what is left.
const STEP: usize = 1 << 20;

/// Bytes that may be taken before the next look.
static BUDGET: AtomicUsize = AtomicUsize::new(0);

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

/// Whether so many bytes can be had now, and the margin beside them.
pub fn has_room(bytes: usize) -> bool {
    look(bytes).is_ok()
}

#[cold]
fn grow(buffer: &mut Vec<u8>, len: usize, most: usize) -> Result<(), OutOfMemory> {
    let doubled = buffer.capacity().saturating_mul(2).min(most).max(len);
    reserve(buffer, doubled).or_else(|OutOfMemory| reserve(buffer, len))
}

fn reserve(buffer: &mut Vec<u8>, capacity: usize) -> Result<(), OutOfMemory> {
    let paid = BUDGET.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(capacity));
    let mut take = || {
        let more = capacity.saturating_sub(buffer.len());
        buffer.try_reserve_exact(more).map_err(|_| OutOfMemory)
    };
    if paid.is_ok() {
        return take();
    }
    let pending = PENDING.fetch_add(capacity, Ordering::Relaxed).saturating_add(capacity);
    let taken = look(pending).and_then(|()| take());
    PENDING.fetch_sub(capacity, Ordering::Relaxed);
    taken
}

/// Looks whether so many bytes can be had, and the margin beside them.
fn look(bytes: usize) -> Result<(), OutOfMemory> {
    let mut probe = Vec::<u8>::new();
    probe.try_reserve_exact(bytes.saturating_add(MARGIN + STEP)).map_err(|_| OutOfMemory)?;
    drop(black_box(probe)); // Else it is optimized away.
    BUDGET.store(STEP, Ordering::Relaxed);
    Ok(())
}

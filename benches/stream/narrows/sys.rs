//! The two `unsafe` borrows of narrows, of messages whose other side is this same program and keeps their contract.

use narrows::RawSpan;

/// Writes a reservation.
#[inline]
pub(super) fn fill(span: &mut RawSpan<'_>, bytes: &[u8]) {
    // SAFETY: the other side accesses a message once it is committed, and writes to none of this direction.
    unsafe { span.as_mut_slice() }.copy_from_slice(bytes);
}

/// Reads a lent message.
#[inline]
pub(super) fn with(span: &RawSpan<'_>, read: impl FnOnce(&[u8])) {
    // SAFETY: the other side writes to no message that it has committed.
    read(unsafe { span.as_slice() });
}

//! Access to the bytes of a message in place: the `unsafe` methods of the public interface.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// The bytes of one message, borrowed in place.
///
/// Reads and writes that copy do not need this. It is for programs that avoid the copy and trust the peer.
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// let mut reservation = a.reserve(3)?;
/// let mut span = reservation.raw()?;
/// assert!(span.len() == 3 && !span.is_empty() && !span.as_ptr().is_null());
/// // SAFETY: the peer is this program, which does not access a message before it is committed.
/// unsafe { span.as_mut_slice() }.copy_from_slice(b"ebb");
/// reservation.commit()?;
/// let mut message = b.recv_ref()?;
/// let span = message.raw()?;
/// // SAFETY: the peer is this program, which does not write to a message after it has committed it.
/// assert_eq!(unsafe { span.as_slice() }, b"ebb");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct RawSpan<'a> {
    at: NonNull<u8>,
    len: usize,
    borrowed: PhantomData<&'a mut [u8]>,
}

impl<'a> RawSpan<'a> {
    /// # Safety
    ///
    /// `at .. at + len` is mapped, readable and writable, for `'a`, and no Rust reference to it exists. The contracts
    /// of the `unsafe` methods say what the peer must not do.
    pub(super) unsafe fn new(at: NonNull<u8>, len: usize) -> Self {
        Self { at, len, borrowed: PhantomData }
    }

    /// Creates a span of private memory.
    pub(crate) fn private(bytes: &'a mut [u8]) -> Self {
        Self { at: NonNull::from(&mut *bytes).cast(), len: bytes.len(), borrowed: PhantomData }
    }

    /// Returns the number of bytes in the span.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the span has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns a pointer to the first byte, for copies by other means.
    pub fn as_ptr(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// Borrows the bytes, for as long as this span is borrowed: bind it to a name first.
    ///
    /// # Safety
    ///
    /// The peer does not write to a message that it has committed, and this process is not a fork of
    /// the one that made the span.
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: mapped for 'a by the promise of `new`'s caller. The peer does not write, by this caller's promise,
        // and this side cannot while the span is borrowed.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    /// Borrows the bytes to write to them. The bytes of a reservation have unspecified values before.
    ///
    /// # Safety
    ///
    /// The peer does not access a message that has not been committed to it, nor write to one that it
    /// has committed, and this process is not a fork of the one that made the span.
    pub unsafe fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: mapped for 'a by the promise of `new`'s caller. The borrow is unique on this side, and the peer does
        // not access the bytes, by this caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

/// The bytes of one message, borrowed in place, read-only.
///
/// Unlike [`RawSpan`], several of these may exist for the same bytes, so it cannot write to them.
///
/// ```
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new()
///     .inline(1, |request, reply| {
///         match request.raw() {
///             Some(bytes) => {
///                 assert!(bytes.len() == 300 && !bytes.is_empty() && !bytes.as_ptr().is_null());
///                 // SAFETY: the client is our own program, which does not write to what it has committed.
///                 reply.extend(unsafe { bytes.as_slice() });
///             }
///             None => reply.extend(request.bytes()), // The request is in private memory.
///         }
///         Ok(())
///     })
///     .spawn()?;
/// server.adopt(b);
/// assert_eq!(*SharedMemoryClient::over(a)?.call(1, &[7; 300])?, [7; 300]);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct RawBytes<'a>(RawSpan<'a>);

impl<'a> RawBytes<'a> {
    pub(crate) fn new(span: RawSpan<'a>) -> Self {
        Self(span)
    }

    /// Returns the number of bytes in the span.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the span has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns a pointer to the first byte, for copies by other means.
    pub fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }

    /// Borrows the bytes, for as long as this span is borrowed: bind it to a name first.
    ///
    /// # Safety
    ///
    /// The peer does not write to a message that it has committed, and this process is not a fork of
    /// the one that made the span.
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: by the caller's promise, which is the same.
        unsafe { self.0.as_slice() }
    }
}

impl fmt::Debug for RawBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawBytes").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for RawSpan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawSpan").field("len", &self.len).finish_non_exhaustive()
    }
}

//! Reads and writes the fields of a message, one after the other, little-endian.
//!
//! # Invariants
//!
//! 1. Reads and writes never leave the message, whatever their order. After its end, reads return zeros, and writes do
//!    nothing.
//!
//! # Proof
//!
//! The test below, and those of `codec.rs`.

use crate::error::HandshakeError;
use crate::layout::Geometry;

use super::{FEATURES, MAX_MESSAGE};

/// Writes fields from the start of the message. Bytes that are not written are zero.
pub(super) struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    pub(super) fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    /// Writes the next field.
    pub(super) fn put<const M: usize>(&mut self, field: [u8; M]) {
        for (to, byte) in self.bytes.iter_mut().skip(self.at).zip(field) {
            *to = byte;
        }
        self.at += M;
    }

    pub(super) fn done(self) -> [u8; N] {
        self.bytes
    }

    pub(super) fn geometry(&mut self, geometry: &Geometry) {
        self.put(geometry.slots().to_le_bytes());
        self.put(geometry.oob().to_le_bytes());
        self.put(geometry.arena().to_le_bytes());
    }
}

/// Holds the bytes that are still to be read. After the end, reads return zeros.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            return [0; N];
        };
        self.0 = rest;
        *field
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    pub(super) fn magic(&mut self, expected: [u8; 8]) -> Result<(), HandshakeError> {
        if self.take() == expected { Ok(()) } else { Err(HandshakeError::BadMagic) }
    }

    /// Reads feature bits, and fails if this library does not know all of them.
    pub(super) fn features(&mut self) -> Result<u32, HandshakeError> {
        let features = self.u32();
        match features & !FEATURES {
            0 => Ok(features),
            unknown => Err(HandshakeError::UnknownFeatures(unknown)),
        }
    }

    pub(super) fn geometry(&mut self) -> Result<Geometry, HandshakeError> {
        let (slots, oob, arena) = (self.u32(), self.u32(), self.u64());
        Geometry::new(slots, arena, oob).map_err(|_| HandshakeError::BadGeometry { slots, arena, oob })
    }

    pub(super) fn max_message(&mut self) -> Result<u64, HandshakeError> {
        match self.u64() {
            max @ 1..=MAX_MESSAGE => Ok(max),
            max => Err(HandshakeError::BadMaxMessage(max)),
        }
    }

    pub(super) fn rest_is_zero(&self) -> Result<(), HandshakeError> {
        let zero = self.0.iter().all(|&byte| byte == 0);
        if zero { Ok(()) } else { Err(HandshakeError::ReservedNotZero) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_end_writes_do_nothing_and_reads_return_zeros() {
        let mut writer = Writer::<4>::new();
        writer.put([1; 3]);
        writer.put([2; 3]);
        writer.put([3; 3]);
        assert_eq!(writer.done(), [1, 1, 1, 2]);
        let mut fields = Reader::new(&[1, 0, 2]);
        assert_eq!((fields.u16(), fields.u32(), fields.u64()), (1, 0, 0));
    }
}

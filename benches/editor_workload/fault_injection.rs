//! A backend that drops, duplicates, reorders or corrupts a chunk of each chat: the checks must notice.

use harness::Result;
use serde::{Deserialize, Serialize};

use crate::transport::ChunkSink;

/// A fault in the first chunk of a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum Fault {
    Drop,
    Duplicate,
    Reorder,
    Corrupt,
}

/// Applies a fault to the first chunk that passes through it.
pub(crate) struct FaultyChunks<'a> {
    out: &'a mut dyn ChunkSink,
    fault: Fault,
    first: bool,
    delayed: Option<Vec<u8>>,
}

impl<'a> FaultyChunks<'a> {
    pub(crate) fn new(out: &'a mut dyn ChunkSink, fault: Fault) -> Self {
        Self { out, fault, first: true, delayed: None }
    }
}

impl ChunkSink for FaultyChunks<'_> {
    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        if !std::mem::take(&mut self.first) {
            self.out.write(chunk)?;
            return self.delayed.take().map_or(Ok(()), |delayed| self.out.write(&delayed));
        }
        let mut copy = chunk.to_vec();
        match self.fault {
            Fault::Drop => return Ok(()),
            Fault::Duplicate => self.out.write(chunk)?,
            Fault::Reorder => {
                self.delayed = Some(copy);
                return Ok(());
            }
            Fault::Corrupt => copy[chunk.len() - 1] ^= 1,
        }
        self.out.write(&copy)
    }
}

//! Proof that the checks bite: a backend that loses, doubles, swaps or changes a chunk of each chat, as it is told.

use harness::Result;
use serde::{Deserialize, Serialize};

use crate::transport::Out;

/// What goes wrong with the first chunks of a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum Spoil {
    Lose,
    Double,
    Swap,
    Change,
}

/// Spoils what goes through it.
pub(crate) struct Spoiled<'a> {
    out: &'a mut dyn Out,
    spoil: Spoil,
    first: bool,
    kept: Option<Vec<u8>>,
}

impl<'a> Spoiled<'a> {
    pub(crate) fn new(out: &'a mut dyn Out, spoil: Spoil) -> Self {
        Self { out, spoil, first: true, kept: None }
    }
}

impl Out for Spoiled<'_> {
    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        if !std::mem::take(&mut self.first) {
            self.out.write(chunk)?;
            return self.kept.take().map_or(Ok(()), |kept| self.out.write(&kept));
        }
        let mut changed = chunk.to_vec();
        match self.spoil {
            Spoil::Lose => return Ok(()),
            Spoil::Double => self.out.write(chunk)?,
            Spoil::Swap => {
                self.kept = Some(changed);
                return Ok(());
            }
            Spoil::Change => changed[chunk.len() - 1] ^= 1,
        }
        self.out.write(&changed)
    }
}

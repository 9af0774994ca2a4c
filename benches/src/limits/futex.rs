//! The bare futex: write the bytes, store a word, FUTEX_WAKE; the other side sleeps on that word.
//!
//! `futex` wakes after every message and sleeps whenever the word has not changed. `futex-sliced` sleeps
//! in slices of 100 ms that double up to 3.2 s, as narrows does: for idle rows, and for what the bench itself needs
//! of memory.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;

use super::hand_over::Mailboxes;
use crate::source::Check;
use crate::sys;
use crate::system::{Access, ReceiveHalf, SendHalf, Side, System, Wait, Work, WorkKind};

pub(crate) struct Futex;

pub(crate) struct FutexSliced;

impl System for Futex {
    const NAME: &'static str = "futex";
    const VERSION: &'static str = "";
    type Sender = FutexSender;
    type Receiver = FutexReceiver;

    fn supports(work: &Work) -> bool {
        let what = matches!(work.kind, WorkKind::RoundTrip | WorkKind::Wake);
        what && work.wait == Wait::Park && work.batch == 1 && work.access == Access::InPlace
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(FutexSender, FutexReceiver)> {
        open(side, folder, work, false)
    }
}

impl System for FutexSliced {
    const NAME: &'static str = "futex-sliced";
    const VERSION: &'static str = "";
    type Sender = FutexSender;
    type Receiver = FutexReceiver;

    fn supports(work: &Work) -> bool {
        let what = matches!(work.kind, WorkKind::Idle | WorkKind::Memory);
        what && work.wait == Wait::Park && work.access == Access::Copy
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(FutexSender, FutexReceiver)> {
        open(side, folder, work, true)
    }
}

fn open(side: Side, folder: &Path, work: &Work, sliced: bool) -> Result<(FutexSender, FutexReceiver)> {
    let mailboxes = Mailboxes::open(side, folder, work.size)?;
    let (own, other) = (mailboxes.at(side), mailboxes.at(side.other()));
    Ok((
        FutexSender { mailboxes: mailboxes.clone(), at: own, turn: 0 },
        FutexReceiver { mailboxes, at: other, turn: 0, sliced },
    ))
}

/// Writes, stores, wakes.
pub(crate) struct FutexSender {
    mailboxes: Mailboxes,
    at: usize,
    turn: u32,
}

impl SendHalf for FutexSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.mailboxes.bytes.write(self.mailboxes.payload(self.at), message);
        self.turn = self.turn.wrapping_add(1);
        let word = self.mailboxes.bytes.futex(self.at);
        word.store(self.turn, Ordering::Release);
        sys::futex_wake(word);
        Ok(())
    }
}

/// Sleeps and reads.
pub(crate) struct FutexReceiver {
    mailboxes: Mailboxes,
    at: usize,
    turn: u32,
    sliced: bool,
}

impl ReceiveHalf for FutexReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        let word = self.mailboxes.bytes.futex(self.at);
        let mut sleeps = 0;
        while word.load(Ordering::Acquire) == self.turn {
            let slice = self.sliced.then(|| Duration::from_millis(100) * (1 << sleeps.min(5)));
            sys::futex_wait(word, self.turn, slice);
            sleeps += 1;
        }
        self.turn = self.turn.wrapping_add(1);
        check.validate(self.mailboxes.bytes.lend(self.mailboxes.payload(self.at), check.size()));
        Ok(())
    }
}

//! What the tests see and do in the pages of a connection: names of steps, a look, the sentinel's notes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Mapping;
use crate::layout::words;
use crate::memory::{Field, Flag, Load, Memory, Word};
use crate::sys::{futex, lost_wakeup_check};

/// How a direction looks from its consumer's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek {
    /// Slots that somebody began to write and did not commit.
    pub torn: u64,
    /// Tickets that are committed and not received.
    pub unread: u64,
    /// The producer has closed its end.
    pub producer_closed: bool,
    /// The consumer has closed its end.
    pub consumer_closed: bool,
}

impl Mapping {
    /// Looks at every stamp; `head` is the next ticket to receive.
    pub(crate) fn peek(&self, head: u64) -> Peek {
        let stamp = |ticket| self.load_slot(ticket, Field::Stamp, Load::Acquire);
        let marked = |word| self.load(word, Load::Acquire) != 0;
        let ready = |ticket: &u64| stamp(*ticket) == 2 * ticket + 2;
        Peek {
            torn: (0..self.slots()).map(|slot| stamp(slot) & 1).sum(),
            unread: (head..head + self.slots()).take_while(ready).count() as u64,
            producer_closed: marked(Word::ProducerClosed),
            consumer_closed: marked(Word::ConsumerClosed),
        }
    }

    /// Notes that all before `upto` was published and that its sleeper was looked for.
    pub(super) fn note(&self, flag: Flag, upto: u64) {
        if lost_wakeup_check::is_on() {
            let now = u64::try_from(futex::monotonic_now().as_nanos()).unwrap_or(0);
            let at = notes(flag);
            self.at(at + 8).store(now, Ordering::Relaxed);
            // pairs with the Acquire load in `slept_through`: whoever reads this ticket reads its
            // time, or a later one.
            self.at(at).store(upto, Ordering::Release);
        }
    }

    /// A sleep that began here has lasted for a whole slice: should it have?
    pub(super) fn slept_through(&self, flag: Flag, began: Duration, slice: Duration) {
        if !lost_wakeup_check::is_on() {
            return;
        }
        // Both words are this side's own. The head is published whenever its consumer goes to sleep.
        let awaited = match flag {
            Flag::Consumer => self.view().word(Word::Head).load(Ordering::Relaxed),
            Flag::Producer => self.view().word(Word::AwaitedTicket).load(Ordering::Relaxed),
            Flag::PeerConsumer => return,
        };
        // pairs with the Release store in `note`.
        let upto = self.at(notes(flag)).load(Ordering::Acquire);
        let checked = Duration::from_nanos(self.at(notes(flag) + 8).load(Ordering::Relaxed));
        lost_wakeup_check::slept_a_slice(upto > awaited && checked < began + slice);
    }
}

/// Where the notes for the sleeper on a flag stand: its ticket, then its time.
fn notes(flag: Flag) -> usize {
    match flag {
        Flag::Consumer | Flag::PeerConsumer => 0x500,
        Flag::Producer => 0x580,
    }
}

const _: () = assert!(words::DOORBELL < 0x500 && 0x600 <= words::OOB);

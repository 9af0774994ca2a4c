//! Access of the tests to the pages of a connection: a summary of the slots, and the notes of `lost_wakeup_check`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Mapping;
use crate::layout::words;
use crate::memory::{Field, Flag, Load, Memory, Word};
use crate::sys::{futex, lost_wakeup_check};

/// The state of a direction, seen from its consumer's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek {
    /// Slots that the producer began to write and did not commit.
    pub torn: u64,
    /// Tickets that are committed and not received.
    pub unread: u64,
    /// The producer has closed its end.
    pub producer_closed: bool,
    /// The consumer has closed its end.
    pub consumer_closed: bool,
}

impl Mapping {
    /// Reads every stamp, and the closed flags. `head` is the next ticket to receive.
    pub(crate) fn peek(&self, head: u64) -> Peek {
        let stamp = |ticket| self.load_slot(ticket, Field::Stamp, Load::Acquire);
        let is_set = |word| self.load(word, Load::Acquire) != 0;
        let ready = |ticket: &u64| stamp(*ticket) == 2 * ticket + 2;
        Peek {
            torn: (0..self.slots()).map(|slot| stamp(slot) & 1).sum(),
            unread: (head..head + self.slots()).take_while(ready).count() as u64,
            producer_closed: is_set(Word::ProducerClosed),
            consumer_closed: is_set(Word::ConsumerClosed),
        }
    }

    /// Notes that all tickets before `upto` were published, and that the flag was then checked for a sleeper.
    pub(super) fn note(&self, flag: Flag, upto: u64) {
        if lost_wakeup_check::is_on() {
            let now = u64::try_from(futex::monotonic_now().as_nanos()).unwrap_or(0);
            let at = notes(flag);
            self.at(at + 8).store(now, Ordering::Relaxed);
            // pairs with the Acquire load in `slept_through`: a thread that reads this ticket reads its time, or a
            // later one.
            self.at(at).store(upto, Ordering::Release);
        }
    }

    /// Checks a sleep that has lasted for a whole slice: a note shows whether a wake-up was lost.
    pub(super) fn slept_through(&self, flag: Flag, began: Duration, slice: Duration) {
        if !lost_wakeup_check::is_on() {
            return;
        }
        // This side writes both words itself. The consumer publishes its head whenever it goes to sleep.
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

/// Returns the offset of the notes for the sleeper on a flag: the ticket, then the time.
fn notes(flag: Flag) -> usize {
    match flag {
        Flag::Consumer | Flag::PeerConsumer => 0x500,
        Flag::Producer => 0x580,
    }
}

const _: () = assert!(words::DOORBELL < 0x500 && 0x600 <= words::OOB);

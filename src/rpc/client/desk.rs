//! One connection of a client, as all its threads share it: who reads, who sends, who waits.
//!
//! ```text
//!   thread A ── has the reader: takes frames off the ring, for itself and for all others
//!   thread B ── waits for the signal of its call's place
//!   thread C ── sends, a piece at a time, in turn with others
//!
//!   books (one lock)   the table of calls, who waits, and while nobody has them:
//!                      the reader (the receiving half) and the pen (the sending half)
//!   bell  (one lock)   the urgent words: a cancel waits for nothing
//! ```
//!
//! No thread but those that call takes part. Who needs a reply and finds the reader free takes it, and gives
//! it back when its own reply has come, its time is over, or it unwinds.
//!
//! # Invariants
//!
//! 1. The reader is in the books, or one thread has it: no two threads receive, or sleep on its flag. So it is with
//!    the pen.
//! 2. Whoever leaves while the reader is in the books and others wait has woken one of them since: there is
//!    no moment at which all wait and nobody reads.
//! 3. A place's change is signalled under the lock under which it was made.
//! 4. No lock is held while a thread sleeps on the ring. Who waits for space has the pen, and no longer than until
//!    its own deadline; the server always reads, so space always comes or the end does.
//! 5. The first verdict about the end stays, and every call that waits gets it.
//! 6. Who reads while it waits for a place is made to look up when another thread frees one: no frame tells of that.
//!
//! # Proof
//!
//! `loom-tests/src/models/calls.rs` runs this code: two callers and a server in every order, leaving by reply,
//! deadline and end.

use std::fmt;
use std::ops::{DerefMut, Range};

use super::seat::{Own, Read, Seat};
use super::table::{Change, Final, LostCall, Table};
use crate::channel::{
    IncomingSignals, Lock, OobSender, ReceiverCore, SendCoreError, SenderCore, SyncBackend, Wait, WaitPolicy,
};
use crate::error::ConnectionError;
use crate::mem::Memory;
use crate::rpc::frame::send;
use crate::rpc::pieces::Cut;
use crate::rpc::place_of;
use crate::rpc::wire::Head;

/// Why a wait came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Its time is over.
    Timeout,
    /// The connection has ended.
    Ended(ConnectionError),
    /// The call is over already: what was still to be sent is of no use.
    Over,
    /// The direction has carried all its messages.
    Exhausted,
}

/// What the books hold.
#[derive(Debug)]
pub struct Books<M, P> {
    /// The calls.
    pub table: Table,
    /// The receiving half, while nobody reads.
    pub(super) reader: Option<Box<ReceiverCore<M, P>>>,
    /// The sending half, while nobody sends something long.
    pub(super) pen: Option<Box<SenderCore<M, P>>>,
    /// How many wait for each signal.
    pub(super) waiting: Vec<u32>,
    /// How many wait at all.
    pub(super) waiters: u32,
    /// Whoever has the reader waits for a place.
    pub(super) seeks: bool,
    pub(super) over: Option<ConnectionError>,
    lost: Option<Vec<LostCall>>,
}

/// The urgent words.
#[derive(Debug)]
struct Bell<M> {
    poster: OobSender<M>,
    /// The last that was stored, of each place.
    last: Box<[u64]>,
}

/// One connection.
pub struct Desk<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> {
    pub(super) books: T::Lock<Books<M, P>>,
    bell: T::Lock<Bell<M>>,
    pub(super) signals: Box<[T::Condvar]>,
    /// A place was freed, for a reader that waits for one.
    pub(super) room: T::Flag,
    pub(super) ear: IncomingSignals<M>,
    places: usize,
    piece: usize,
}

/// What two halves and a table make.
#[derive(Debug)]
pub struct Parts<M, P> {
    /// Receives.
    pub inbound: ReceiverCore<M, P>,
    /// Sends.
    pub outbound: SenderCore<M, P>,
    /// Stores urgent words.
    pub poster: OobSender<M>,
    /// The incoming direction.
    pub ear: IncomingSignals<M>,
    /// The calls.
    pub table: Table,
    /// How many places it has.
    pub places: usize,
    /// The longest body of a frame.
    pub piece: usize,
}

pub(super) type BooksOf<'a, M, P, T> =
    <<T as SyncBackend>::Lock<Books<M, P>> as Lock<Books<M, P>>>::Guard<'a>;

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> Desk<M, P, T> {
    /// A connection whose greetings were exchanged.
    pub fn new(parts: Parts<M, P>) -> Self {
        let signals = parts.places + 3;
        let books = Books {
            table: parts.table,
            reader: Some(Box::new(parts.inbound)),
            pen: Some(Box::new(parts.outbound)),
            waiting: vec![0; signals],
            waiters: 0,
            seeks: false,
            over: None,
            lost: None,
        };
        Self {
            books: Lock::new(books),
            bell: Lock::new(Bell { poster: parts.poster, last: vec![0; parts.places].into() }),
            signals: (0..signals).map(|_| T::Condvar::default()).collect(),
            room: T::Flag::default(),
            ear: parts.ear,
            places: parts.places,
            piece: parts.piece,
        }
    }

    /// The books, for what takes no time.
    pub fn books(&self) -> impl DerefMut<Target = Books<M, P>> + '_ {
        self.books.lock()
    }

    /// The signal of a call.
    pub fn signal_of(&self, id: u64) -> usize {
        place_of(id, self.places)
    }

    /// The signal of free places.
    pub fn freed(&self) -> usize {
        self.places
    }

    /// The signal of pushes.
    pub fn pushed(&self) -> usize {
        self.places + 1
    }

    /// The signal of the pen.
    pub(super) fn pen(&self) -> usize {
        self.places + 2
    }

    /// Waits until `done` finds what it looks for in the books, reading for everybody while nobody does.
    ///
    /// # Errors
    ///
    /// [`Stop::Timeout`], or [`Stop::Ended`] if nothing was found and nothing can come any more.
    #[inline]
    pub fn wait<R>(
        &self,
        signal: usize,
        wait: Wait,
        mut done: impl FnMut(&mut Table) -> Option<R>,
    ) -> Result<R, Stop> {
        let mut seat = Seat::take(self);
        let mut late = false;
        loop {
            let books = seat.books();
            if let Some(found) = done(&mut books.table) {
                return Ok(found);
            }
            if let Some(ended) = books.over {
                return Err(Stop::Ended(ended));
            }
            if late {
                return Err(Stop::Timeout);
            }
            late = match seat.sit() {
                true if signal == self.freed() => seat.seek(wait) == Read::Late,
                true => seat.read(wait, None) == Read::Late,
                false => !seat.stand_by(signal, wait),
            };
        }
    }

    /// Opens a call, sends its only frame without waiting, and waits for its end, in one sitting; the reply
    /// comes into `buffer`. `None` if that cannot be done now: nothing was sent then.
    #[inline]
    pub fn call_at_once(
        &self,
        head: Head,
        parts: [&[u8]; 2],
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Option<(u64, Result<Final, Stop>)> {
        let mut seat = Seat::take(self);
        if seat.books().over.is_some() || !seat.sit() {
            return None;
        }
        let books = seat.books();
        let pen = books.pen.as_mut()?;
        let id = books.table.open(head.word, head.flags)?;
        if send(pen, head, parts, id, Wait::Never).is_err() {
            books.table.unsend(id);
            return None;
        }
        let mut own = Own { id, buffer, lent: false };
        loop {
            let read = seat.read(wait, Some(&mut own));
            if read == Read::Own {
                return Some((id, Ok(Final::Reply)));
            }
            let books = seat.books();
            if let Some(end) = books.table.finish(id, own.buffer) {
                return Some((id, Ok(end)));
            }
            if let Some(ended) = books.over {
                return Some((id, Err(Stop::Ended(ended))));
            }
            if read == Read::Late {
                return Some((id, Err(Stop::Timeout)));
            }
        }
    }

    /// Sends an item of a call, a piece at a time, in turn with other threads.
    ///
    /// # Errors
    ///
    /// [`Stop`]; how much was sent is in `cut`.
    pub fn send_item(
        &self,
        cut: &mut Cut,
        parts: [&[u8]; 2],
        seq: &mut u16,
        id: u64,
        wait: Wait,
    ) -> Result<(), Stop> {
        loop {
            let (head, range) = cut.frame(self.piece, *seq);
            let mut seat = Seat::take(self);
            if !cut.is_whole() && id != 0 && seat.books().table.is_over(id) {
                return Err(Stop::Over);
            }
            let Some(out) = seat.write(wait) else { return Err(Stop::Timeout) };
            self.judge(send(out, head, two(parts, &range), id, wait))?;
            drop(seat);
            *seq = seq.wrapping_add(u16::from(head.kind.counted()));
            if cut.advance(&range) {
                return Ok(());
            }
        }
    }

    /// Tells the server that nobody waits for the call any more; takes no time, whatever is under way.
    pub fn cancel(&self, id: u64) {
        let at = self.signal_of(id);
        let mut bell = self.bell.lock();
        // A call that is over may have given its place to one that was cancelled since: its word stays.
        if bell.last[at] < id {
            bell.last[at] = id;
            bell.poster.send_oob(u32::try_from(at).unwrap_or(0), id);
        }
    }

    /// How the connection has ended, if a call has found out.
    pub fn over(&self) -> Option<ConnectionError> {
        self.books.lock().over
    }

    /// What was under way when the connection ended; once.
    pub fn lost(&self) -> Option<(Vec<LostCall>, usize)> {
        let mut books = self.books.lock();
        let pushes = books.table.pushes();
        books.lost.take().map(|calls| (calls, pushes))
    }

    /// Forgets a call of which nothing was sent; whoever waits for a place gets it.
    pub fn unsend(&self, id: u64) {
        Seat::take(self).books().table.unsend(id);
    }

    /// Nobody waits for the call any more: the server is told, unless it has said its last word.
    pub fn abandon(&self, id: u64) {
        let mut seat = Seat::take(self);
        let tell = seat.books().table.abandon(id);
        seat.tell(Change::Call(self.signal_of(id))); // The other half of its streams may wait.
        drop(seat);
        if tell {
            self.cancel(id);
        }
    }

    /// The longest body of a frame.
    #[inline]
    pub fn piece(&self) -> usize {
        self.piece
    }

    /// The connection has ended: all who wait are told.
    pub fn end(&self, ended: ConnectionError) {
        self.books.lock().end(&self.signals, ended, T::Lock::<Books<M, P>>::notify);
    }

    fn judge(&self, sent: Result<(), SendCoreError>) -> Result<(), Stop> {
        match sent {
            Ok(()) => Ok(()),
            // What the server has sent before may still be received: the verdict is the reader's.
            Err(SendCoreError::Ended(ended)) => Err(Stop::Ended(ended)),
            Err(SendCoreError::Exhausted) => Err(Stop::Exhausted),
            Err(SendCoreError::Full | SendCoreError::TooLarge(_) | SendCoreError::TooLargeToTry) => {
                Err(Stop::Timeout)
            }
        }
    }
}

impl<M, P> Books<M, P> {
    /// The connection has ended: the first verdict stays.
    pub(super) fn end<S>(&mut self, signals: &[S], ended: ConnectionError, notify: impl Fn(&S)) {
        if self.over.is_none() {
            (self.over, self.lost) = (Some(ended), Some(self.table.lost()));
        }
        signals.iter().for_each(notify);
    }
}

/// The range of two parts taken as one.
fn two<'a>([first, second]: [&'a [u8]; 2], range: &Range<usize>) -> [&'a [u8]; 2] {
    let split = first.len();
    let one = first.get(range.start.min(split)..range.end.min(split)).unwrap_or_default();
    let other =
        second.get(range.start.saturating_sub(split)..range.end.saturating_sub(split)).unwrap_or_default();
    [one, other]
}

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> fmt::Debug for Desk<M, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

//! A thread's part in a client's connection while it waits: it reads for everybody, or stands by.
//!
//! Its invariants are those of `desk.rs`.

use std::mem;
use std::time::Instant;

use super::desk::{Books, BooksOf, Desk};
use super::table::{Change, Table};
use crate::channel::{
    IncomingMessage, Lock, ReceiverCore, RecvCoreError, SenderCore, SharedFlag, SyncBackend, Wait, WaitPolicy,
};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::mem::Memory;
use crate::rpc::frame::Frame;
use crate::rpc::wire::{HEAD, Head, Kind};

/// Frames after which a reader looks at the clock: one that always finds another never waits, and must
/// leave at its deadline all the same.
const FRAMES: u32 = 32;

/// What a read has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// The reader's own reply is where it was wanted.
    Own,
    /// Something was entered in the books: look there.
    Entered,
    /// The time is over.
    Late,
}

/// The call of a reader that waits for nothing else.
pub(super) struct Own<'a> {
    pub(super) id: u64,
    pub(super) buffer: &'a mut Vec<u8>,
    /// The buffer is in the books, for a reply in pieces; it may be there for what was another's frame.
    pub(super) lent: bool,
}

impl Own<'_> {
    /// Whether the message is the whole reply, of which nothing came before.
    #[inline]
    fn is_whole<M: Memory, P: WaitPolicy>(
        &self,
        reader: &ReceiverCore<M, P>,
        message: &IncomingMessage,
    ) -> bool {
        let mut head = [0; HEAD];
        let own = message.tag() == self.id && !self.lent;
        own && reader.read_at(message, 0, &mut head).is_ok() && head == Head::new(Kind::Reply, 0).encode()
    }

    /// Copies the reply to where it is wanted, if it is there, whole and short.
    #[inline]
    fn take<M: Memory, P: WaitPolicy>(&mut self, reader: &mut ReceiverCore<M, P>) -> bool {
        let Self { id, buffer, lent: false } = self else { return false };
        let took = reader.take_framed(|tag, head, len| {
            if tag != *id || head != Head::new(Kind::Reply, 0).encode() {
                return None;
            }
            buffer.resize(len, 0);
            Some(buffer)
        });
        if !took {
            buffer.clear(); // Torn bytes are no reply.
        }
        took
    }
}

/// A thread's part in a connection: the lock of the books, and the reader and the pen if it has them. Leaving it in
/// any way puts both back, and wakes somebody who may take them.
pub(super) struct Seat<'a, M: Memory + Send + 'a, P: WaitPolicy + Send + 'a, T: SyncBackend> {
    desk: &'a Desk<M, P, T>,
    books: Option<BooksOf<'a, M, P, T>>,
    reader: Option<Box<ReceiverCore<M, P>>>,
    pen: Option<Box<SenderCore<M, P>>>,
    frames: u32,
    /// It has not read yet.
    fresh: bool,
}

impl<'a, M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> Seat<'a, M, P, T> {
    /// A thread that begins, with the books.
    #[inline]
    pub(super) fn take(desk: &'a Desk<M, P, T>) -> Self {
        Self { desk, books: Some(desk.books.lock()), reader: None, pen: None, frames: 0, fresh: true }
    }

    /// The books, locked until it waits.
    #[inline]
    pub(super) fn books(&mut self) -> &mut Books<M, P> {
        self.books.get_or_insert_with(|| self.desk.books.lock())
    }

    /// Takes the reader, if nobody has it.
    #[inline]
    pub(super) fn sit(&mut self) -> bool {
        if self.reader.is_none() {
            self.reader = self.books().reader.take();
        }
        self.reader.is_some()
    }

    /// Takes the pen, when it is this thread's turn, and unlocks the books. `None` if the time is over first.
    pub(super) fn write(&mut self, wait: Wait) -> Option<&mut SenderCore<M, P>> {
        let pen = self.desk.pen();
        loop {
            if let Some(taken) = self.books().pen.take() {
                self.books = None;
                return Some(self.pen.insert(taken));
            }
            if !self.stand_by(pen, wait) {
                // It may have come at the last moment.
                let taken = self.books().pen.take()?;
                self.books = None;
                return Some(self.pen.insert(taken));
            }
        }
    }

    /// Receives one frame, and enters it in the books, unless it is the reader's own whole reply.
    ///
    /// The books are locked while it sleeps by nobody; but for a glance a single caller keeps them, which spares two
    /// locks where the answer comes at once.
    #[inline]
    pub(super) fn read(&mut self, wait: Wait, mut own: Option<&mut Own<'_>>) -> Read {
        let Some(reader) = self.reader.as_mut() else { return Read::Entered };
        // Once: a peer whose words flicker must not keep us here.
        let alone = own.is_some() && mem::take(&mut self.fresh);
        let held =
            alone && self.books.as_ref().is_some_and(|books| books.waiters == 0) && reader.spin_briefly();
        if !held {
            self.books = None;
        } else if let (Some(own), Some(books)) = (&mut own, &mut self.books) {
            if own.take(reader) {
                books.table.close(own.id);
                return Read::Own;
            }
        }
        match reader.next_owned(if held { Wait::Never } else { wait }) {
            Err(RecvCoreError::Ended(ended)) => self.over(ended),
            Err(RecvCoreError::OutOfMemory(_)) => {
                let ended = reader.violated(ProtocolViolation("a frame in fragments"));
                self.over(ended);
            }
            Err(_) if held => return Read::Entered, // The glance was mistaken.
            Err(_) => return Read::Late,
            Ok(message) => match own {
                Some(own) if own.is_whole(reader, &message) => {
                    if self.take_own(&message, own) {
                        return Read::Own;
                    }
                }
                own => self.enter(&message, own),
            },
        }
        self.frames = self.frames.wrapping_add(1);
        if self.frames % FRAMES == 0 && passed(wait) { Read::Late } else { Read::Entered }
    }

    /// Copies the reader's own reply to where it is wanted; its place is free then. False if it is worth nothing.
    #[inline]
    fn take_own(&mut self, message: &IncomingMessage, own: &mut Own<'_>) -> bool {
        let desk = self.desk;
        let Some(reader) = self.reader.as_mut() else { return false };
        let copied = reader.read_on(message, HEAD, own.buffer);
        let given = reader.release(message);
        let books = self.books.get_or_insert_with(|| desk.books.lock());
        match given {
            Ok(()) if copied.is_ok() => {
                books.table.close(own.id);
                return true;
            }
            Ok(()) => {
                let change = books.table.lose_reply(own.id);
                self.tell(change);
            }
            Err(fault) => self.over(match fault {
                RecvCoreError::Ended(ended) => ended,
                _ => ConnectionError::ProtocolViolated,
            }),
        }
        own.buffer.clear();
        false
    }

    fn enter(&mut self, message: &IncomingMessage, own: Option<&mut Own<'_>>) {
        let desk = self.desk;
        let books = self.books.get_or_insert_with(|| desk.books.lock());
        let Some(reader) = self.reader.as_mut() else { return };
        if let Some(own) = own.filter(|own| !own.lent) {
            // Its pieces go to where they are wanted.
            own.lent = true;
            books.table.lend(own.id, own.buffer);
        }
        let change = enter(&mut books.table, reader, message);
        if change.is_err() {
            books.table.spoil();
        }
        match change {
            Ok(change) => self.tell(change),
            Err(ended) => self.over(ended),
        }
    }

    /// Reads as [`read`](Self::read) does, for one who waits for a place: it also looks up when another thread frees
    /// one.
    pub(super) fn seek(&mut self, wait: Wait) -> Read {
        let desk = self.desk;
        self.books().seeks = true;
        desk.room.set(false);
        self.books = None;
        let (Some(reader), Wait::Until(until)) = (self.reader.as_mut(), wait) else {
            return self.read(wait, None);
        };
        let mut tries = 0_u32;
        while !reader.ready() {
            if !reader.wait_for_any(None, until, tries, || desk.room.is_set()) {
                return Read::Late;
            }
            if desk.room.is_set() {
                return Read::Entered;
            }
            tries = tries.saturating_add(1);
        }
        self.read(wait, None)
    }

    /// Waits for a signal while another thread reads. False if the time is over.
    pub(super) fn stand_by(&mut self, signal: usize, wait: Wait) -> bool {
        let Wait::Until(until) = wait else { return false };
        let desk = self.desk;
        let mut books = self.books.take().unwrap_or_else(|| desk.books.lock());
        books.waiting[signal] += 1;
        books.waiters += 1;
        let (mut books, in_time) = desk.books.wait(books, &desk.signals[signal], until);
        books.waiting[signal] -= 1;
        books.waiters -= 1;
        self.books = Some(books);
        in_time
    }

    /// Wakes who waits for this change.
    #[inline]
    pub(super) fn tell(&mut self, change: Change) {
        let signal = match change {
            Change::None => return,
            Change::Call(at) => at,
            Change::Freed => self.desk.freed(),
            Change::Push => self.desk.pushed(),
        };
        let (desk, books) = (self.desk, self.books());
        if books.waiting[signal] > 0 && signal != desk.freed() {
            T::Lock::<Books<M, P>>::notify(&desk.signals[signal]);
        }
        // A call that has ended makes room for one that waits for a place. One thread is woken for each: if it does not take
        // the place, since its time is over, it wakes the next as it leaves.
        if books.waiting[desk.freed()] > 0 && signal <= desk.freed() && books.table.has_room() {
            T::Lock::<Books<M, P>>::notify_one(&desk.signals[desk.freed()]);
        }
    }

    #[cold]
    fn over(&mut self, ended: ConnectionError) {
        let desk = self.desk;
        self.books().end(&desk.signals, ended, T::Lock::<Books<M, P>>::notify);
    }
}

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> Drop for Seat<'_, M, P, T> {
    #[inline]
    fn drop(&mut self) {
        let (desk, reader, pen) = (self.desk, self.reader.take(), self.pen.take());
        let books = self.books();
        if reader.is_some() {
            (books.reader, books.seeks) = (reader, false);
        }
        if books.seeks && books.table.has_room() {
            desk.room.set(true);
            desk.ear.notify_self();
        }
        if pen.is_some() {
            books.pen = pen;
        }
        if books.waiters > 0 {
            books.pass_on(desk);
        }
    }
}

impl<M: Memory + Send, P: WaitPolicy + Send> Books<M, P> {
    /// A thread leaves while others wait: wakes one that may send, one that may take a place, and one that may read. Each
    /// of them does so in its turn when it leaves, also if its time was over.
    fn pass_on<T: SyncBackend>(&self, desk: &Desk<M, P, T>) {
        let notify_one = |signal: usize| T::Lock::<Self>::notify_one(&desk.signals[signal]);
        let waits = |signal: usize| self.waiting[signal] > 0;
        if self.pen.is_some() && waits(desk.pen()) {
            notify_one(desk.pen());
        }
        if self.table.has_room() && waits(desk.freed()) {
            notify_one(desk.freed());
        }
        // A thread that waits to send reads nothing.
        let next = (0..desk.pen()).find(|signal| waits(*signal));
        if let Some(next) = next.filter(|_| self.reader.is_some() && self.over.is_none()) {
            notify_one(next);
        }
    }
}

/// Enters a frame in the table, and gives its message back; how the connection ended if either is a lie.
#[inline]
fn enter<M: Memory, P: WaitPolicy>(
    table: &mut Table,
    reader: &mut ReceiverCore<M, P>,
    message: &IncomingMessage,
) -> Result<Change, ConnectionError> {
    let change = Frame::open(reader, message).and_then(|frame| {
        let read = |into: &mut [u8]| {
            let _in_the_message = frame.read(reader, 0, into);
        };
        table.take(frame.id, frame.head, frame.len(), read)
    });
    match (change, reader.release(message)) {
        (Ok(change), Ok(())) => Ok(change),
        (_, Err(RecvCoreError::Ended(ended))) => Err(ended),
        (Err(violation), _) => Err(reader.violated(violation)),
        (Ok(_), Err(_)) => Err(reader.violated(ProtocolViolation("a message that cannot be given back"))),
    }
}

fn passed(wait: Wait) -> bool {
    matches!(wait, Wait::Until(Some(until)) if Instant::now() >= until)
}

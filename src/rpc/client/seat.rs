//! A thread's part in a client's connection while it waits: it reads for everybody, or stands by.
//!
//! Its invariants are those of `desk.rs`.

use std::time::Instant;

use super::desk::{Books, BooksOf, Desk};
use super::table::{Change, Table};
use crate::channel::{Inbound, Incoming, Latch, Monitor, Outbound, Pace, RecvFault, Threads, Wait};
use crate::error::{Ended, Violation};
use crate::mem::Memory;
use crate::rpc::frame::Frame;

/// Frames after which a reader looks at the clock: one that always finds another never waits, and must
/// leave at its deadline all the same.
const FRAMES: u32 = 32;

/// A thread's part in a connection: the lock of the books, and the reader and the pen if it has them. Leaving it in
/// any way puts both back, and wakes somebody who may take them.
pub(super) struct Seat<'a, M: Memory + Send + 'a, P: Pace + Send + 'a, T: Threads> {
    desk: &'a Desk<M, P, T>,
    books: Option<BooksOf<'a, M, P, T>>,
    reader: Option<Box<Inbound<M, P>>>,
    pen: Option<Box<Outbound<M, P>>>,
    frames: u32,
}

impl<'a, M: Memory + Send, P: Pace + Send, T: Threads> Seat<'a, M, P, T> {
    /// A thread that begins, with the books.
    #[inline]
    pub(super) fn take(desk: &'a Desk<M, P, T>) -> Self {
        Self { desk, books: Some(desk.books.lock()), reader: None, pen: None, frames: 0 }
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
    pub(super) fn write(&mut self, wait: Wait) -> Option<&mut Outbound<M, P>> {
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

    /// Receives one frame, and enters it in the books. False if the time is over.
    #[inline]
    pub(super) fn read(&mut self, wait: Wait) -> bool {
        self.books = None;
        let desk = self.desk;
        let Some(reader) = self.reader.as_mut() else { return true };
        match reader.next(wait) {
            Err(RecvFault::Ended(ended)) => self.over(ended),
            Err(_) => return false,
            Ok(message) => {
                let frame = Frame::open(reader, &message);
                let mut books = desk.books.lock();
                let change = enter(&mut books.table, reader, &message, frame);
                if change.is_err() {
                    books.table.spoil();
                }
                self.books = Some(books);
                match change {
                    Ok(change) => self.tell(change),
                    Err(ended) => self.over(ended),
                }
            }
        }
        self.frames = self.frames.wrapping_add(1);
        self.frames % FRAMES != 0 || !passed(wait)
    }

    /// Reads as [`read`](Self::read) does, for one who waits for a place: it also looks up when another thread frees
    /// one.
    pub(super) fn seek(&mut self, wait: Wait) -> bool {
        let desk = self.desk;
        self.books().seeks = true;
        desk.room.set(false);
        self.books = None;
        let (Some(reader), Wait::Until(until)) = (self.reader.as_mut(), wait) else { return self.read(wait) };
        let mut tries = 0_u32;
        while !reader.ready() {
            if !reader.idle(None, until, tries, || desk.room.is_up()) {
                return false;
            }
            if desk.room.is_up() {
                return true;
            }
            tries = tries.saturating_add(1);
        }
        self.read(wait)
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

    #[inline]
    fn tell(&mut self, change: Change) {
        let signal = match change {
            Change::None => return,
            Change::Call(at) => at,
            Change::Freed => self.desk.freed(),
            Change::Push => self.desk.pushed(),
        };
        let desk = self.desk;
        if self.books().waiting[signal] > 0 {
            T::Monitor::<Books<M, P>>::notify(&desk.signals[signal]);
        }
    }

    #[cold]
    fn over(&mut self, ended: Ended) {
        let desk = self.desk;
        self.books().end(&desk.signals, ended, T::Monitor::<Books<M, P>>::notify);
    }
}

impl<M: Memory + Send, P: Pace + Send, T: Threads> Drop for Seat<'_, M, P, T> {
    #[inline]
    fn drop(&mut self) {
        let (desk, reader, pen) = (self.desk, self.reader.take(), self.pen.take());
        let books = self.books();
        if reader.is_some() {
            (books.reader, books.seeks) = (reader, false);
        }
        if books.seeks && books.table.has_room() {
            desk.room.set(true);
            desk.ear.nudge();
        }
        if pen.is_some() {
            books.pen = pen;
        }
        if books.waiters > 0 {
            books.pass_on(desk);
        }
    }
}

impl<M: Memory + Send, P: Pace + Send> Books<M, P> {
    /// A thread leaves while others wait: wakes who may go on.
    fn pass_on<T: Threads>(&self, desk: &Desk<M, P, T>) {
        let notify = |signal: usize| T::Monitor::<Self>::notify(&desk.signals[signal]);
        let waits = |signal: usize| self.waiting[signal] > 0;
        if self.pen.is_some() && waits(desk.pen()) {
            notify(desk.pen());
        }
        if self.table.has_room() && waits(desk.freed()) {
            notify(desk.freed());
        }
        // Who waits for the pen reads nothing.
        let next = (0..desk.pen()).find(|signal| waits(*signal));
        if let Some(next) = next.filter(|_| self.reader.is_some() && self.over.is_none()) {
            notify(next);
        }
    }
}

/// Enters a frame in the table, and gives its message back; how the connection ended if either is a lie.
#[inline]
fn enter<M: Memory, P: Pace>(
    table: &mut Table,
    reader: &mut Inbound<M, P>,
    message: &Incoming,
    frame: Result<Frame, Violation>,
) -> Result<Change, Ended> {
    let change = frame.and_then(|frame| {
        let read = |into: &mut [u8]| {
            let _in_the_message = frame.read(reader, 0, into);
        };
        table.take(frame.id, frame.head, frame.len(), read)
    });
    match (change, reader.give_back(message)) {
        (Ok(change), Ok(())) => Ok(change),
        (_, Err(RecvFault::Ended(ended))) => Err(ended),
        (Err(violation), _) => Err(reader.violated(violation)),
        (Ok(_), Err(_)) => Err(reader.violated(Violation("a message that cannot be given back"))),
    }
}

fn passed(wait: Wait) -> bool {
    matches!(wait, Wait::Until(Some(until)) if Instant::now() >= until)
}

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
use std::mem;
use std::ops::{DerefMut, Range};
use std::time::Instant;

use super::in_flight::{CallOutcome, InFlightCalls, LostCall, Wakeup};
use crate::channel::{
    IncomingMessage, IncomingSignals, Lock, OobSender, ReceiverCore, RecvCoreError, SendCoreError,
    SenderCore, SharedFlag, SyncBackend, Wait, WaitPolicy,
};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::memory::Memory;
use crate::rpc::fragment::Fragmenter;
use crate::rpc::frame::{Frame, send};
use crate::rpc::slot_index;
use crate::rpc::wire::{FrameHeader, FrameKind, HEADER_LEN};

/// Why a wait came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// Its time is over.
    Timeout,
    /// The connection has ended.
    Ended(ConnectionError),
    /// The call is over already: what was still to be sent is of no use.
    CallOver,
    /// The direction has carried all its messages.
    Exhausted,
}

/// What the books hold.
#[derive(Debug)]
pub struct MultiplexerState<M, P> {
    /// The calls.
    pub calls: InFlightCalls,
    /// The receiving half, while nobody reads.
    receiver: Option<Box<ReceiverCore<M, P>>>,
    /// The sending half, while nobody sends something long.
    sender: Option<Box<SenderCore<M, P>>>,
    /// How many wait for each signal.
    waiting_at: Vec<u32>,
    /// How many wait at all.
    waiters: u32,
    /// Whoever has the reader waits for a place.
    leader_wants_slot: bool,
    closed: Option<ConnectionError>,
    lost_calls: Option<Vec<LostCall>>,
}

/// The urgent words.
#[derive(Debug)]
struct CancelSender<M> {
    oob_sender: OobSender<M>,
    /// The last that was stored, of each place.
    last: Box<[u64]>,
}

/// One connection.
pub struct Multiplexer<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> {
    state: T::Lock<MultiplexerState<M, P>>,
    cancel_sender: T::Lock<CancelSender<M>>,
    signals: Box<[T::Condvar]>,
    /// A place was freed, for a reader that waits for one.
    slot_freed: T::Flag,
    incoming: IncomingSignals<M>,
    slots: usize,
    max_fragment: usize,
}

/// What two halves and a table make.
#[derive(Debug)]
pub struct MultiplexerParts<M, P> {
    /// Receives.
    pub inbound: ReceiverCore<M, P>,
    /// Sends.
    pub outbound: SenderCore<M, P>,
    /// Stores urgent words.
    pub oob_sender: OobSender<M>,
    /// The incoming direction.
    pub incoming: IncomingSignals<M>,
    /// The calls.
    pub calls: InFlightCalls,
    /// How many places it has.
    pub slots: usize,
    /// The longest body of a frame.
    pub max_fragment: usize,
}

pub(super) type StateGuard<'a, M, P, T> =
    <<T as SyncBackend>::Lock<MultiplexerState<M, P>> as Lock<MultiplexerState<M, P>>>::Guard<'a>;

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> Multiplexer<M, P, T> {
    /// A connection whose greetings were exchanged.
    pub fn new(parts: MultiplexerParts<M, P>) -> Self {
        let signals = parts.slots + 3;
        let state = MultiplexerState {
            calls: parts.calls,
            receiver: Some(Box::new(parts.inbound)),
            sender: Some(Box::new(parts.outbound)),
            waiting_at: vec![0; signals],
            waiters: 0,
            leader_wants_slot: false,
            closed: None,
            lost_calls: None,
        };
        Self {
            state: Lock::new(state),
            cancel_sender: Lock::new(CancelSender {
                oob_sender: parts.oob_sender,
                last: vec![0; parts.slots].into(),
            }),
            signals: (0..signals).map(|_| T::Condvar::default()).collect(),
            slot_freed: T::Flag::default(),
            incoming: parts.incoming,
            slots: parts.slots,
            max_fragment: parts.max_fragment,
        }
    }

    /// The books, for what takes no time.
    pub fn lock(&self) -> impl DerefMut<Target = MultiplexerState<M, P>> + '_ {
        self.state.lock()
    }

    /// The signal of a call.
    pub fn signal_of(&self, id: u64) -> usize {
        slot_index(id, self.slots)
    }

    /// The signal of free places.
    pub fn slot_signal(&self) -> usize {
        self.slots
    }

    /// The signal of pushes.
    pub fn push_signal(&self) -> usize {
        self.slots + 1
    }

    /// The signal of the pen.
    pub(super) fn sender_signal(&self) -> usize {
        self.slots + 2
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
        mut done: impl FnMut(&mut InFlightCalls) -> Option<R>,
    ) -> Result<R, WaitError> {
        let mut turn = Turn::begin(self);
        let mut late = false;
        loop {
            let state = turn.state();
            if let Some(found) = done(&mut state.calls) {
                return Ok(found);
            }
            if let Some(ended) = state.closed {
                return Err(WaitError::Ended(ended));
            }
            if late {
                return Err(WaitError::Timeout);
            }
            late = match turn.try_lead() {
                true if signal == self.slot_signal() => turn.lead_for_slot(wait) == LeadResult::TimedOut,
                true => turn.lead(wait, None) == LeadResult::TimedOut,
                false => !turn.follow(signal, wait),
            };
        }
    }

    /// Opens a call, sends its only frame without waiting, and waits for its end, in one sitting; the reply
    /// comes into `buffer`. `None` if that cannot be done now: nothing was sent then.
    #[inline]
    pub fn call_as_leader(
        &self,
        head: FrameHeader,
        parts: [&[u8]; 2],
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Option<(u64, Result<CallOutcome, WaitError>)> {
        let mut turn = Turn::begin(self);
        if turn.state().closed.is_some() || !turn.try_lead() {
            return None;
        }
        let state = turn.state();
        let sender = state.sender.as_mut()?;
        let id = state.calls.open(head.word, head.flags)?;
        if send(sender, head, parts, id, Wait::Never).is_err() {
            state.calls.forget_unsent(id);
            return None;
        }
        let mut own = OwnCall { id, buffer, borrowed: false };
        loop {
            let read = turn.lead(wait, Some(&mut own));
            if read == LeadResult::OwnReply {
                return Some((id, Ok(CallOutcome::Reply)));
            }
            let state = turn.state();
            if let Some(end) = state.calls.take_outcome(id, own.buffer) {
                return Some((id, Ok(end)));
            }
            if let Some(ended) = state.closed {
                return Some((id, Err(WaitError::Ended(ended))));
            }
            if read == LeadResult::TimedOut {
                return Some((id, Err(WaitError::Timeout)));
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
        fragmenter: &mut Fragmenter,
        parts: [&[u8]; 2],
        seq: &mut u16,
        id: u64,
        wait: Wait,
    ) -> Result<(), WaitError> {
        loop {
            let (head, range) = fragmenter.next_frame(self.max_fragment, *seq);
            let mut turn = Turn::begin(self);
            if !fragmenter.is_unsent() && id != 0 && turn.state().calls.is_over(id) {
                return Err(WaitError::CallOver);
            }
            let Some(out) = turn.take_sender(wait) else { return Err(WaitError::Timeout) };
            self.send_result(send(out, head, split_range(parts, &range), id, wait))?;
            drop(turn);
            *seq = seq.wrapping_add(u16::from(head.kind.is_sequenced()));
            if fragmenter.advance(&range) {
                return Ok(());
            }
        }
    }

    /// Tells the server that nobody waits for the call any more; takes no time, whatever is under way.
    pub fn cancel(&self, id: u64) {
        let at = self.signal_of(id);
        let mut cancel_sender = self.cancel_sender.lock();
        // A call that is over may have given its place to one that was cancelled since: its word stays.
        if cancel_sender.last[at] < id {
            cancel_sender.last[at] = id;
            cancel_sender.oob_sender.send_oob(u32::try_from(at).unwrap_or(0), id);
        }
    }

    /// How the connection has ended, if a call has found out.
    pub fn closed(&self) -> Option<ConnectionError> {
        self.state.lock().closed
    }

    /// What was under way when the connection ended; once.
    pub fn take_lost(&self) -> Option<(Vec<LostCall>, usize)> {
        let mut state = self.state.lock();
        let pushes = state.calls.pushes();
        state.lost_calls.take().map(|calls| (calls, pushes))
    }

    /// Forgets a call of which nothing was sent; whoever waits for a place gets it.
    pub fn forget_unsent(&self, id: u64) {
        Turn::begin(self).state().calls.forget_unsent(id);
    }

    /// Nobody waits for the call any more: the server is told, unless it has said its last word.
    pub fn abandon(&self, id: u64) {
        let mut turn = Turn::begin(self);
        let must_cancel = turn.state().calls.abandon(id);
        turn.notify(Wakeup::Call(self.signal_of(id))); // The other half of its streams may wait.
        drop(turn);
        if must_cancel {
            self.cancel(id);
        }
    }

    /// The longest body of a frame.
    #[inline]
    pub fn max_fragment(&self) -> usize {
        self.max_fragment
    }

    /// The connection has ended: all who wait are told.
    pub fn close(&self, ended: ConnectionError) {
        self.state.lock().close(&self.signals, ended, T::Lock::<MultiplexerState<M, P>>::notify);
    }

    fn send_result(&self, sent: Result<(), SendCoreError>) -> Result<(), WaitError> {
        match sent {
            Ok(()) => Ok(()),
            // What the server has sent before may still be received: the verdict is the reader's.
            Err(SendCoreError::Ended(ended)) => Err(WaitError::Ended(ended)),
            Err(SendCoreError::Exhausted) => Err(WaitError::Exhausted),
            Err(SendCoreError::Full | SendCoreError::TooLarge(_) | SendCoreError::TooLargeToTry) => {
                Err(WaitError::Timeout)
            }
        }
    }
}

impl<M: Memory, P: WaitPolicy> MultiplexerState<M, P> {
    /// Returns how full the way to the server was at most, in thousandths, unless a thread is sending.
    pub(super) fn peak_fill(&self) -> Option<u32> {
        self.sender.as_ref().map(|sender| sender.ring().fullest())
    }
}

impl<M, P> MultiplexerState<M, P> {
    /// The connection has ended: the first verdict stays.
    pub(super) fn close<S>(&mut self, signals: &[S], ended: ConnectionError, notify: impl Fn(&S)) {
        if self.closed.is_none() {
            (self.closed, self.lost_calls) = (Some(ended), Some(self.calls.unanswered_calls()));
        }
        signals.iter().for_each(notify);
    }
}

/// The range of two parts taken as one.
fn split_range<'a>([first, second]: [&'a [u8]; 2], range: &Range<usize>) -> [&'a [u8]; 2] {
    let split = first.len();
    let one = first.get(range.start.min(split)..range.end.min(split)).unwrap_or_default();
    let other =
        second.get(range.start.saturating_sub(split)..range.end.saturating_sub(split)).unwrap_or_default();
    [one, other]
}

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> fmt::Debug for Multiplexer<M, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Multiplexer").finish_non_exhaustive()
    }
}

/// Frames after which a reader looks at the clock: one that always finds another never waits, and must
/// leave at its deadline all the same.
const CLOCK_CHECK_FRAMES: u32 = 32;

/// What a read has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeadResult {
    /// The reader's own reply is where it was wanted.
    OwnReply,
    /// Something was entered in the books: look there.
    Progress,
    /// The time is over.
    TimedOut,
}

/// The call of a reader that waits for nothing else.
pub(super) struct OwnCall<'a> {
    id: u64,
    buffer: &'a mut Vec<u8>,
    /// The buffer is in the books, for a reply in pieces; it may be there for what was another's frame.
    borrowed: bool,
}

impl OwnCall<'_> {
    /// Whether the message is the whole reply, of which nothing came before.
    #[inline]
    fn is_whole_reply<M: Memory, P: WaitPolicy>(
        &self,
        receiver: &ReceiverCore<M, P>,
        message: &IncomingMessage,
    ) -> bool {
        let mut head = [0; HEADER_LEN];
        let own = message.tag() == self.id && !self.borrowed;
        own && receiver.read_at(message, 0, &mut head).is_ok()
            && head == FrameHeader::new(FrameKind::Reply, 0).encode()
    }

    /// Copies the reply to where it is wanted, if it is there, whole and short.
    #[inline]
    fn try_take_inline<M: Memory, P: WaitPolicy>(&mut self, receiver: &mut ReceiverCore<M, P>) -> bool {
        let Self { id, buffer, borrowed: false } = self else { return false };
        let took = receiver.take_framed(|tag, head, len| {
            if tag != *id || head != FrameHeader::new(FrameKind::Reply, 0).encode() {
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
pub(super) struct Turn<'a, M: Memory + Send + 'a, P: WaitPolicy + Send + 'a, T: SyncBackend> {
    mux: &'a Multiplexer<M, P, T>,
    state: Option<StateGuard<'a, M, P, T>>,
    receiver: Option<Box<ReceiverCore<M, P>>>,
    sender: Option<Box<SenderCore<M, P>>>,
    frames: u32,
    /// It has not read yet.
    is_first_lead: bool,
}

impl<'a, M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> Turn<'a, M, P, T> {
    /// A thread that begins, with the books.
    #[inline]
    pub(super) fn begin(mux: &'a Multiplexer<M, P, T>) -> Self {
        Self {
            mux,
            state: Some(mux.state.lock()),
            receiver: None,
            sender: None,
            frames: 0,
            is_first_lead: true,
        }
    }

    /// The books, locked until it waits.
    #[inline]
    pub(super) fn state(&mut self) -> &mut MultiplexerState<M, P> {
        self.state.get_or_insert_with(|| self.mux.state.lock())
    }

    /// Takes the reader, if nobody has it.
    #[inline]
    pub(super) fn try_lead(&mut self) -> bool {
        if self.receiver.is_none() {
            self.receiver = self.state().receiver.take();
        }
        self.receiver.is_some()
    }

    /// Takes the pen, when it is this thread's turn, and unlocks the books. `None` if the time is over first.
    pub(super) fn take_sender(&mut self, wait: Wait) -> Option<&mut SenderCore<M, P>> {
        let sender = self.mux.sender_signal();
        loop {
            if let Some(taken) = self.state().sender.take() {
                self.state = None;
                return Some(self.sender.insert(taken));
            }
            if !self.follow(sender, wait) {
                // It may have come at the last moment.
                let taken = self.state().sender.take()?;
                self.state = None;
                return Some(self.sender.insert(taken));
            }
        }
    }

    /// Receives one frame, and enters it in the books, unless it is the reader's own whole reply.
    ///
    /// The books are locked while it sleeps by nobody; but for a glance a single caller keeps them, which spares two
    /// locks where the answer comes at once.
    #[inline]
    pub(super) fn lead(&mut self, wait: Wait, mut own: Option<&mut OwnCall<'_>>) -> LeadResult {
        let Some(receiver) = self.receiver.as_mut() else { return LeadResult::Progress };
        // Once: a peer whose words flicker must not keep us here.
        let alone = own.is_some() && mem::take(&mut self.is_first_lead);
        let held =
            alone && self.state.as_ref().is_some_and(|state| state.waiters == 0) && receiver.spin_briefly();
        if !held {
            self.state = None;
        } else if let (Some(own), Some(state)) = (&mut own, &mut self.state) {
            if own.try_take_inline(receiver) {
                state.calls.complete(own.id);
                return LeadResult::OwnReply;
            }
        }
        match receiver.next_owned(if held { Wait::Never } else { wait }) {
            Err(RecvCoreError::Ended(ended)) => self.on_closed(ended),
            Err(RecvCoreError::OutOfMemory(_)) => {
                let ended = receiver.violated(ProtocolViolation("a frame in fragments"));
                self.on_closed(ended);
            }
            Err(_) if held => return LeadResult::Progress, // The glance was mistaken.
            Err(_) => return LeadResult::TimedOut,
            Ok(message) => match own {
                Some(own) if own.is_whole_reply(receiver, &message) => {
                    if self.copy_own_reply(&message, own) {
                        return LeadResult::OwnReply;
                    }
                }
                own => self.enter_frame(&message, own),
            },
        }
        self.frames = self.frames.wrapping_add(1);
        if self.frames % CLOCK_CHECK_FRAMES == 0 && is_past(wait) {
            LeadResult::TimedOut
        } else {
            LeadResult::Progress
        }
    }

    /// Copies the reader's own reply to where it is wanted; its place is free then. False if it is worth nothing.
    #[inline]
    fn copy_own_reply(&mut self, message: &IncomingMessage, own: &mut OwnCall<'_>) -> bool {
        let mux = self.mux;
        let Some(receiver) = self.receiver.as_mut() else { return false };
        let copied = receiver.read_on(message, HEADER_LEN, own.buffer);
        let given = receiver.release(message);
        let state = self.state.get_or_insert_with(|| mux.state.lock());
        match given {
            Ok(()) if copied.is_ok() => {
                state.calls.complete(own.id);
                return true;
            }
            Ok(()) => {
                let change = state.calls.fail_reply(own.id);
                self.notify(change);
            }
            Err(fault) => self.on_closed(match fault {
                RecvCoreError::Ended(ended) => ended,
                _ => ConnectionError::ProtocolViolated,
            }),
        }
        own.buffer.clear();
        false
    }

    fn enter_frame(&mut self, message: &IncomingMessage, own: Option<&mut OwnCall<'_>>) {
        let mux = self.mux;
        let state = self.state.get_or_insert_with(|| mux.state.lock());
        let Some(receiver) = self.receiver.as_mut() else { return };
        if let Some(own) = own.filter(|own| !own.borrowed) {
            // Its pieces go to where they are wanted.
            own.borrowed = true;
            state.calls.lend_buffer(own.id, own.buffer);
        }
        let change = enter_into(&mut state.calls, receiver, message);
        if change.is_err() {
            state.calls.discard_received();
        }
        match change {
            Ok(change) => self.notify(change),
            Err(ended) => self.on_closed(ended),
        }
    }

    /// Reads as [`read`](Self::read) does, for one who waits for a place: it also looks up when another thread frees
    /// one.
    pub(super) fn lead_for_slot(&mut self, wait: Wait) -> LeadResult {
        let mux = self.mux;
        self.state().leader_wants_slot = true;
        mux.slot_freed.set(false);
        self.state = None;
        let (Some(receiver), Wait::Deadline(deadline)) = (self.receiver.as_mut(), wait) else {
            return self.lead(wait, None);
        };
        let mut tries = 0_u32;
        while !receiver.ready() {
            if !receiver.wait_for_any(None, deadline, tries, || mux.slot_freed.is_set()) {
                return LeadResult::TimedOut;
            }
            if mux.slot_freed.is_set() {
                return LeadResult::Progress;
            }
            tries = tries.saturating_add(1);
        }
        self.lead(wait, None)
    }

    /// Waits for a signal while another thread reads. False if the time is over.
    pub(super) fn follow(&mut self, signal: usize, wait: Wait) -> bool {
        let Wait::Deadline(deadline) = wait else { return false };
        let mux = self.mux;
        let mut state = self.state.take().unwrap_or_else(|| mux.state.lock());
        state.waiting_at[signal] += 1;
        state.waiters += 1;
        let (mut state, in_time) = mux.state.wait(state, &mux.signals[signal], deadline);
        state.waiting_at[signal] -= 1;
        state.waiters -= 1;
        self.state = Some(state);
        in_time
    }

    /// Wakes who waits for this change.
    #[inline]
    pub(super) fn notify(&mut self, change: Wakeup) {
        let signal = match change {
            Wakeup::None => return,
            Wakeup::Call(at) => at,
            Wakeup::SlotFreed => self.mux.slot_signal(),
            Wakeup::Push => self.mux.push_signal(),
        };
        let (mux, state) = (self.mux, self.state());
        if state.waiting_at[signal] > 0 && signal != mux.slot_signal() {
            T::Lock::<MultiplexerState<M, P>>::notify(&mux.signals[signal]);
        }
        // A call that has ended makes room for one that waits for a place. One thread is woken for each: if it does not take
        // the place, since its time is over, it wakes the next as it leaves.
        if state.waiting_at[mux.slot_signal()] > 0 && signal <= mux.slot_signal() && state.calls.has_room() {
            T::Lock::<MultiplexerState<M, P>>::notify_one(&mux.signals[mux.slot_signal()]);
        }
    }

    #[cold]
    fn on_closed(&mut self, ended: ConnectionError) {
        let mux = self.mux;
        self.state().close(&mux.signals, ended, T::Lock::<MultiplexerState<M, P>>::notify);
    }
}

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> Drop for Turn<'_, M, P, T> {
    #[inline]
    fn drop(&mut self) {
        let (mux, receiver, sender) = (self.mux, self.receiver.take(), self.sender.take());
        let state = self.state();
        if receiver.is_some() {
            (state.receiver, state.leader_wants_slot) = (receiver, false);
        }
        if state.leader_wants_slot && state.calls.has_room() {
            mux.slot_freed.set(true);
            mux.incoming.notify_self();
        }
        if sender.is_some() {
            state.sender = sender;
        }
        if state.waiters > 0 {
            state.promote_next(mux);
        }
    }
}

impl<M: Memory + Send, P: WaitPolicy + Send> MultiplexerState<M, P> {
    /// A thread leaves while others wait: wakes one that may send, one that may take a place, and one that may read. Each
    /// of them does so in its turn when it leaves, also if its time was over.
    fn promote_next<T: SyncBackend>(&self, mux: &Multiplexer<M, P, T>) {
        let notify_one = |signal: usize| T::Lock::<Self>::notify_one(&mux.signals[signal]);
        let waits = |signal: usize| self.waiting_at[signal] > 0;
        if self.sender.is_some() && waits(mux.sender_signal()) {
            notify_one(mux.sender_signal());
        }
        if self.calls.has_room() && waits(mux.slot_signal()) {
            notify_one(mux.slot_signal());
        }
        // A thread that waits to send reads nothing.
        let next = (0..mux.sender_signal()).find(|signal| waits(*signal));
        if let Some(next) = next.filter(|_| self.receiver.is_some() && self.closed.is_none()) {
            notify_one(next);
        }
    }
}

/// Enters a frame in the table, and gives its message back; how the connection ended if either is a lie.
#[inline]
fn enter_into<M: Memory, P: WaitPolicy>(
    calls: &mut InFlightCalls,
    receiver: &mut ReceiverCore<M, P>,
    message: &IncomingMessage,
) -> Result<Wakeup, ConnectionError> {
    let change = Frame::open(receiver, message).and_then(|frame| {
        let read = |into: &mut [u8]| {
            let _in_the_message = frame.read(receiver, 0, into);
        };
        calls.on_frame(frame.id, frame.head, frame.len(), read)
    });
    match (change, receiver.release(message)) {
        (Ok(change), Ok(())) => Ok(change),
        (_, Err(RecvCoreError::Ended(ended))) => Err(ended),
        (Err(violation), _) => Err(receiver.violated(violation)),
        (Ok(_), Err(_)) => Err(receiver.violated(ProtocolViolation("a message that cannot be given back"))),
    }
}

fn is_past(wait: Wait) -> bool {
    matches!(wait, Wait::Deadline(Some(deadline)) if Instant::now() >= deadline)
}

//! The leader/follower pattern: one thread of the client receives for all the threads that wait on one connection.
//!
//! ```text
//!   thread A ── leader: has the receiving half, takes frames off the ring for itself and for all followers
//!   thread B ── follower: waits for the condition variable of its call's slot
//!   thread C ── sends one fragment at a time, in turn with other senders
//!
//!   state         (one lock)   the calls, the counts of waiting threads, and, while no thread has them,
//!                              the receiving half and the sending half
//!   cancel_sender (one lock)   the out-of-band (OOB) words: a cancel never waits
//! ```
//!
//! Only threads that wait or send on the connection take part: there is no dispatcher thread. A thread that waits for
//! a reply becomes the leader if the receiving half is free. It puts the half back when its own reply has arrived,
//! when its deadline has passed, or when it unwinds.
//!
//! # Invariants
//!
//! 1. The receiving half is in the state, or exactly one thread has it: no two threads receive, or sleep on its flag.
//!    The same holds for the sending half.
//! 2. A thread that leaves while the receiving half is in the state and others wait wakes one of them: there is no
//!    moment at which threads wait and none of them leads.
//! 3. A change of a slot is signalled under the lock under which it was made.
//! 4. No thread holds a lock while it sleeps on the ring. A thread that waits for room has the sending half, until
//!    its own deadline at most. The server always reads, so either there is room in the end or the connection ends.
//! 5. The first close reason stays, and every waiting call gets it.
//! 6. A leader that waits for a free slot is woken when another thread frees one, since no frame reports that.
//!
//! # Proof
//!
//! `loom-tests/src/models/calls.rs` runs this code: two callers and a server in every order, which leave by reply,
//! deadline and close.

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
use crate::rpc::slot_index;
use crate::rpc::wire::{Frame, send_frame};
use crate::rpc::wire::{FrameHeader, FrameKind, HEADER_LEN};

/// Why a wait ended without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// The deadline passed.
    Timeout,
    /// The connection has ended.
    Ended(ConnectionError),
    /// The call is over already: what was still to be sent has no effect.
    CallOver,
    /// The direction has carried all its messages.
    Exhausted,
}

/// What the lock of a multiplexer guards.
#[derive(Debug)]
pub struct MultiplexerState<M, P> {
    /// The calls under way.
    pub calls: InFlightCalls,
    /// The receiving half, while no thread leads.
    receiver: Option<Box<ReceiverCore<M, P>>>,
    /// The sending half, unless a thread has taken it. A leader sends a short request with it under the lock.
    sender: Option<Box<SenderCore<M, P>>>,
    /// The number of threads that wait for each signal.
    waiting_at: Vec<u32>,
    /// The number of threads that wait for any signal.
    waiters: u32,
    /// The leader waits for a free slot.
    leader_wants_slot: bool,
    closed: Option<ConnectionError>,
    lost_calls: Option<Vec<LostCall>>,
}

/// The out-of-band words, which cancel calls.
#[derive(Debug)]
struct CancelSender<M> {
    oob_sender: OobSender<M>,
    /// The id that was last stored for each slot.
    last: Box<[u64]>,
}

/// One connection, as all threads of the client share it.
pub struct Multiplexer<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> {
    state: T::Lock<MultiplexerState<M, P>>,
    cancel_sender: T::Lock<CancelSender<M>>,
    signals: Box<[T::Condvar]>,
    /// A slot was freed while the leader waits for one.
    slot_freed: T::Flag,
    incoming: IncomingSignals<M>,
    slots: usize,
    max_fragment: usize,
}

/// The parts of a multiplexer: the two halves of a connection and the calls.
#[derive(Debug)]
pub struct MultiplexerParts<M, P> {
    /// The receiving half.
    pub inbound: ReceiverCore<M, P>,
    /// The sending half.
    pub outbound: SenderCore<M, P>,
    /// Stores out-of-band words.
    pub oob_sender: OobSender<M>,
    /// What any thread may read of the incoming direction.
    pub incoming: IncomingSignals<M>,
    /// The calls under way.
    pub calls: InFlightCalls,
    /// The number of slots.
    pub slots: usize,
    /// The longest body of a frame, in bytes.
    pub max_fragment: usize,
}

pub(super) type StateGuard<'a, M, P, T> =
    <<T as SyncBackend>::Lock<MultiplexerState<M, P>> as Lock<MultiplexerState<M, P>>>::Guard<'a>;

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> Multiplexer<M, P, T> {
    /// Returns the multiplexer of a connection whose prefaces were exchanged.
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

    /// Locks the state. The caller must not wait while it holds the lock.
    pub fn lock(&self) -> impl DerefMut<Target = MultiplexerState<M, P>> + '_ {
        self.state.lock()
    }

    /// Returns the signal of a call.
    pub fn signal_of(&self, id: u64) -> usize {
        slot_index(id, self.slots)
    }

    /// Returns the signal of free slots.
    pub fn slot_signal(&self) -> usize {
        self.slots
    }

    /// Returns the signal of pushes.
    pub fn push_signal(&self) -> usize {
        self.slots + 1
    }

    /// Returns the signal of the sending half.
    pub(super) fn sender_signal(&self) -> usize {
        self.slots + 2
    }

    /// Waits until `done` returns a result for the calls. The thread leads while no other thread does.
    ///
    /// # Errors
    ///
    /// [`WaitError::Timeout`] if the deadline passed first, or [`WaitError::Ended`] if `done` found nothing and the
    /// connection has ended.
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

    /// Opens a call, sends its only frame without waiting, and leads until the call is over. The reply is copied into
    /// `buffer`. Returns `None`, and sends nothing, if another thread leads or sends, no slot is free, the ring has
    /// no room, or the connection has ended.
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
        if send_frame(sender, head, parts, id, Wait::Never).is_err() {
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
            if let Some(outcome) = state.calls.take_outcome(id, own.buffer) {
                return Some((id, Ok(outcome)));
            }
            if let Some(ended) = state.closed {
                return Some((id, Err(WaitError::Ended(ended))));
            }
            if read == LeadResult::TimedOut {
                return Some((id, Err(WaitError::Timeout)));
            }
        }
    }

    /// Sends an item of a call, one fragment at a time, in turn with other threads.
    ///
    /// # Errors
    ///
    /// [`WaitError`]; `fragmenter` records how much was sent.
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
            self.send_result(send_frame(out, head, split_range(parts, &range), id, wait))?;
            drop(turn);
            *seq = seq.wrapping_add(u16::from(head.kind.is_sequenced()));
            if fragmenter.advance(&range) {
                return Ok(());
            }
        }
    }

    /// Asks the server to cancel the call. Never waits, whatever is under way.
    pub fn cancel(&self, id: u64) {
        let at = self.signal_of(id);
        let mut cancel_sender = self.cancel_sender.lock();
        // The call may be over, and its slot may hold a newer call that was cancelled since: the newer word stays.
        if cancel_sender.last[at] < id {
            cancel_sender.last[at] = id;
            cancel_sender.oob_sender.send_oob(u32::try_from(at).unwrap_or(0), id);
        }
    }

    /// Returns how the connection has ended, if a thread has noticed it.
    pub fn closed(&self) -> Option<ConnectionError> {
        self.state.lock().closed
    }

    /// Returns the calls that were under way when the connection ended, and the number of pushes left; only once.
    pub fn take_lost(&self) -> Option<(Vec<LostCall>, usize)> {
        let mut state = self.state.lock();
        let pushes = state.calls.pushes();
        state.lost_calls.take().map(|calls| (calls, pushes))
    }

    /// Forgets a call of which nothing was sent, and wakes a thread that waits for a slot.
    pub fn forget_unsent(&self, id: u64) {
        Turn::begin(self).state().calls.forget_unsent(id);
    }

    /// Gives a call up. The server is asked to cancel it, unless it has sent its final frame.
    pub fn abandon(&self, id: u64) {
        let mut turn = Turn::begin(self);
        let must_cancel = turn.state().calls.abandon(id);
        turn.notify(Wakeup::Call(self.signal_of(id))); // The other half of its streams may wait for it.
        drop(turn);
        if must_cancel {
            self.cancel(id);
        }
    }

    /// Returns the longest body of a frame, in bytes.
    #[inline]
    pub fn max_fragment(&self) -> usize {
        self.max_fragment
    }

    /// Records that the connection has ended, and wakes all threads that wait.
    pub fn close(&self, ended: ConnectionError) {
        self.state.lock().close(&self.signals, ended, T::Lock::<MultiplexerState<M, P>>::notify);
    }

    fn send_result(&self, sent: Result<(), SendCoreError>) -> Result<(), WaitError> {
        match sent {
            Ok(()) => Ok(()),
            // The server's earlier frames may still be received: the leader decides how the connection has ended.
            Err(SendCoreError::Ended(ended)) => Err(WaitError::Ended(ended)),
            Err(SendCoreError::Exhausted) => Err(WaitError::Exhausted),
            Err(SendCoreError::Full | SendCoreError::TooLarge(_) | SendCoreError::TooLargeToTry) => {
                Err(WaitError::Timeout)
            }
        }
    }
}

impl<M: Memory, P: WaitPolicy> MultiplexerState<M, P> {
    /// Returns the highest fill level of the ring to the server, in thousandths, unless a thread is sending.
    pub(super) fn peak_fill(&self) -> Option<u32> {
        self.sender.as_ref().map(|sender| sender.ring().peak_fill())
    }
}

impl<M, P> MultiplexerState<M, P> {
    /// Records that the connection has ended, unless that was done: the first close reason stays.
    pub(super) fn close<S>(&mut self, signals: &[S], ended: ConnectionError, notify: impl Fn(&S)) {
        if self.closed.is_none() {
            (self.closed, self.lost_calls) = (Some(ended), Some(self.calls.unanswered_calls()));
        }
        signals.iter().for_each(notify);
    }
}

/// Returns a range of the concatenation of two parts.
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

/// The number of frames after which a leader checks the clock. A leader that always finds another frame never waits,
/// and must still stop at its deadline.
const CLOCK_CHECK_FRAMES: u32 = 32;

/// The result of leading for one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeadResult {
    /// The leader's own reply is in its buffer.
    OwnReply,
    /// The state may have changed.
    Progress,
    /// The deadline has passed.
    TimedOut,
}

/// The leader's own call, if the leader waits for nothing else.
pub(super) struct OwnCall<'a> {
    id: u64,
    buffer: &'a mut Vec<u8>,
    /// The buffer is lent to the call's slot, for a reply in fragments; a frame of another call lends it as well.
    borrowed: bool,
}

impl OwnCall<'_> {
    /// Returns whether the message is the whole reply, in one frame.
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

    /// Copies the reply into the buffer, if it is the next message, in one frame, and short.
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
            buffer.clear(); // The peer may have overwritten the bytes.
        }
        took
    }
}

/// One thread's turn on a connection: the lock of the state, and the halves if it has them. Dropping it puts both
/// halves back and wakes threads that may take them.
pub(super) struct Turn<'a, M: Memory + Send + 'a, P: WaitPolicy + Send + 'a, T: SyncBackend> {
    mux: &'a Multiplexer<M, P, T>,
    state: Option<StateGuard<'a, M, P, T>>,
    receiver: Option<Box<ReceiverCore<M, P>>>,
    sender: Option<Box<SenderCore<M, P>>>,
    frames: u32,
    /// The thread has not led yet in this turn.
    is_first_lead: bool,
}

impl<'a, M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> Turn<'a, M, P, T> {
    /// Begins a turn: locks the state.
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

    /// Returns the state, which stays locked until the thread waits.
    #[inline]
    pub(super) fn state(&mut self) -> &mut MultiplexerState<M, P> {
        self.state.get_or_insert_with(|| self.mux.state.lock())
    }

    /// Becomes the leader, if no other thread is. Returns whether this thread leads.
    #[inline]
    pub(super) fn try_lead(&mut self) -> bool {
        if self.receiver.is_none() {
            self.receiver = self.state().receiver.take();
        }
        self.receiver.is_some()
    }

    /// Takes the sending half when no other thread has it, and unlocks the state. Returns `None` if the deadline
    /// passes first.
    pub(super) fn take_sender(&mut self, wait: Wait) -> Option<&mut SenderCore<M, P>> {
        let sender = self.mux.sender_signal();
        loop {
            if let Some(taken) = self.state().sender.take() {
                self.state = None;
                return Some(self.sender.insert(taken));
            }
            if !self.follow(sender, wait) {
                // Another thread may have put it back at the last moment.
                let taken = self.state().sender.take()?;
                self.state = None;
                return Some(self.sender.insert(taken));
            }
        }
    }

    /// Receives one frame and enters it in the state, unless it is the leader's own whole reply.
    ///
    /// The leader unlocks the state before it sleeps. A single caller keeps the lock during a brief spin, which saves
    /// locking twice where the reply arrives at once.
    #[inline]
    pub(super) fn lead(&mut self, wait: Wait, mut own: Option<&mut OwnCall<'_>>) -> LeadResult {
        let Some(receiver) = self.receiver.as_mut() else { return LeadResult::Progress };
        // Only once in a turn: a hostile peer that changes its words all the time must not keep this thread spinning.
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
            Err(_) if held => return LeadResult::Progress, // The brief spin saw no whole frame.
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

    /// Copies the leader's own reply into its buffer and frees its slot. Returns false if there is no memory for it,
    /// or the peer overwrote it.
    #[inline]
    fn copy_own_reply(&mut self, message: &IncomingMessage, own: &mut OwnCall<'_>) -> bool {
        let mux = self.mux;
        let Some(receiver) = self.receiver.as_mut() else { return false };
        let copied = receiver.read_on(message, HEADER_LEN, own.buffer);
        let released = receiver.release(message);
        let state = self.state.get_or_insert_with(|| mux.state.lock());
        match released {
            Ok(()) if copied.is_ok() => {
                state.calls.complete(own.id);
                return true;
            }
            Ok(()) => {
                let wakeup = state.calls.fail_reply(own.id);
                self.notify(wakeup);
            }
            Err(fault) => self.on_closed(match fault {
                RecvCoreError::Ended(ended) => ended,
                _ => ConnectionError::ProtocolViolation,
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
            // The leader's own reply may come in fragments, which are collected in its own buffer.
            own.borrowed = true;
            state.calls.lend_buffer(own.id, own.buffer);
        }
        let wakeup = enter_into(&mut state.calls, receiver, message);
        if wakeup.is_err() {
            state.calls.discard_received();
        }
        match wakeup {
            Ok(wakeup) => self.notify(wakeup),
            Err(ended) => self.on_closed(ended),
        }
    }

    /// Receives one frame, as [`lead`](Self::lead) does, for a leader that waits for a free slot. It also returns
    /// when another thread frees one.
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

    /// Waits for a signal while another thread leads or sends. Returns false if the deadline passed.
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

    /// Wakes the threads that wait for this change.
    #[inline]
    pub(super) fn notify(&mut self, wakeup: Wakeup) {
        let signal = match wakeup {
            Wakeup::None => return,
            Wakeup::Call(at) => at,
            Wakeup::SlotFreed => self.mux.slot_signal(),
            Wakeup::Push => self.mux.push_signal(),
        };
        let (mux, state) = (self.mux, self.state());
        if state.waiting_at[signal] > 0 && signal != mux.slot_signal() {
            T::Lock::<MultiplexerState<M, P>>::notify(&mux.signals[signal]);
        }
        // A call that has ended makes room for one that waits for a slot. One thread is woken for each: a thread that
        // does not take the slot, since its deadline has passed, wakes the next one as it leaves.
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
    /// Wakes other threads when one leaves: one that may send, one that may take a slot, and one that may lead. Each
    /// woken thread does the same when it leaves, also after its deadline.
    fn promote_next<T: SyncBackend>(&self, mux: &Multiplexer<M, P, T>) {
        let notify_one = |signal: usize| T::Lock::<Self>::notify_one(&mux.signals[signal]);
        let waits = |signal: usize| self.waiting_at[signal] > 0;
        if self.sender.is_some() && waits(mux.sender_signal()) {
            notify_one(mux.sender_signal());
        }
        if self.calls.has_room() && waits(mux.slot_signal()) {
            notify_one(mux.slot_signal());
        }
        // A thread that waits to send never leads.
        let next = (0..mux.sender_signal()).find(|signal| waits(*signal));
        if let Some(next) = next.filter(|_| self.receiver.is_some() && self.closed.is_none()) {
            notify_one(next);
        }
    }
}

/// Enters a frame in the calls, and releases its message. Returns the close reason if either shows a protocol
/// violation.
#[inline]
fn enter_into<M: Memory, P: WaitPolicy>(
    calls: &mut InFlightCalls,
    receiver: &mut ReceiverCore<M, P>,
    message: &IncomingMessage,
) -> Result<Wakeup, ConnectionError> {
    let wakeup = Frame::open(receiver, message).and_then(|frame| {
        let read = |into: &mut [u8]| {
            let _in_the_message = frame.read(receiver, 0, into);
        };
        calls.on_frame(frame.id, frame.head, frame.len(), read)
    });
    match (wakeup, receiver.release(message)) {
        (Ok(wakeup), Ok(())) => Ok(wakeup),
        (_, Err(RecvCoreError::Ended(ended))) => Err(ended),
        (Err(violation), _) => Err(receiver.violated(violation)),
        (Ok(_), Err(_)) => Err(receiver.violated(ProtocolViolation("a message that cannot be given back"))),
    }
}

fn is_past(wait: Wait) -> bool {
    matches!(wait, Wait::Deadline(Some(deadline)) if Instant::now() >= deadline)
}

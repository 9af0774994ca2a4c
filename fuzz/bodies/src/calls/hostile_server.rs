//! A hostile server: it sends any frames, some with the expected sequence, while the client makes any of its operations.

use std::collections::{BTreeMap, BTreeSet};

use super::{CallRings, Mem, length, text};
use crate::bytes::Bytes;
use narrows::internal::ConnectionError;
use narrows::internal::rpc::client::{CallOutcome, InFlightCalls, Multiplexer, MultiplexerParts, WaitError};
use narrows::internal::rpc::flow_control::window_cost;
use narrows::internal::rpc::fragment::Fragmenter;
use narrows::internal::rpc::server::CallLimits;
use narrows::internal::rpc::wire::send_frame;
use narrows::internal::rpc::wire::{FrameHeader, FrameKind, HEADER_LEN, MORE, NOTIFY, STREAM, UPLOAD};
use narrows::internal::{IncomingSignals, NoWaitPolicy, OobSender, RealSync, ReceiverCore, SenderCore, Wait};

/// The client, and what the hostile server knows of it.
struct HostileServer {
    out: SenderCore<Mem, NoWaitPolicy>,
    inb: ReceiverCore<Mem, NoWaitPolicy>,
    mux: Multiplexer<Mem, NoWaitPolicy, RealSync>,
    /// Calls whose end was not taken yet.
    open: Vec<u64>,
    /// The expected sequence of each call's next frame.
    seqs: BTreeMap<u64, u16>,
    /// All ids that the client used.
    seen: BTreeSet<u64>,
    /// The highest of them.
    last: u64,
    limits: CallLimits,
    count: u64,
    past: std::time::Instant,
}

pub(super) fn run(bytes: &mut Bytes<'_>) {
    let rings = CallRings::new(bytes);
    let (out, inb) = CallRings::end(&rings.down, &rings.up);
    let limits = rings.limits;
    let CallLimits { slots, max_message: max, max_fragment: fragment, window, push_window } = limits;
    let mux = Multiplexer::new(MultiplexerParts {
        inbound: CallRings::receiver(&rings.down, NoWaitPolicy),
        outbound: CallRings::sender(&rings.up, NoWaitPolicy),
        oob_sender: OobSender::new(rings.up.clone()),
        incoming: IncomingSignals::new(rings.down.clone()),
        calls: InFlightCalls::new(slots, max, window, push_window),
        slots,
        max_fragment: fragment,
    });
    let (open, seqs, past) = (Vec::new(), BTreeMap::new(), std::time::Instant::now());
    let mut test =
        HostileServer { out, inb, mux, open, seqs, seen: BTreeSet::new(), last: 0, limits, count: 0, past };
    while !bytes.is_empty() {
        test.act(bytes);
        test.check();
        if test.mux.closed().is_some() && bytes.rarely(4) {
            break;
        }
    }
    test.finish();
}

impl HostileServer {
    fn act(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(16) {
            0..=2 => self.open(bytes),
            3..=6 => self.send_plausible(bytes),
            7 => self.send_any(bytes),
            8 => drop(self.mux.wait(self.mux.slot_signal(), Wait::Never, |_| None::<()>)),
            9 => self.finish_one(bytes),
            10 => self.take_chunk(bytes),
            11 => self.upload(bytes),
            12 => self.give_up(bytes),
            13 => self.take_push(bytes),
            14 => self.at_once(bytes),
            _ => while self.inb.recv_into(&mut Vec::new(), Wait::Never).is_ok() {},
        }
    }

    /// Checks that the table is consistent, or that the connection was closed for a protocol violation.
    fn check(&self) {
        match self.mux.closed() {
            None => self.mux.lock().calls.audit(),
            Some(over) => assert_eq!(over, ConnectionError::ProtocolViolation),
        }
    }

    fn pick(&self, bytes: &mut Bytes<'_>) -> Option<u64> {
        (!self.open.is_empty()).then(|| bytes.pick(&self.open))
    }

    fn open(&mut self, bytes: &mut Bytes<'_>) {
        let flags = bytes.pick(&[0, STREAM, UPLOAD, STREAM | UPLOAD, NOTIFY]);
        let opened = self.mux.wait(self.mux.slot_signal(), Wait::Never, |calls| calls.open(1, flags));
        let Ok(id) = opened else { return };
        assert!(self.seen.insert(id), "an id was used twice");
        self.last = self.last.max(id);
        if bytes.rarely(8) {
            return self.mux.forget_unsent(id);
        }
        if flags & NOTIFY == 0 {
            self.open.push(id);
        }
    }

    fn send_frame(&mut self, id: u64, head: FrameHeader, len: usize) {
        self.count += 1;
        if send_frame(&mut self.out, head, [&text(self.count, len), &[]], id, Wait::Never).is_ok() {
            let seq = self.seqs.entry(id).or_default();
            *seq = seq.wrapping_add(u16::from(head.kind.is_sequenced()));
        }
    }

    /// Sends a frame that may be legal.
    fn send_plausible(&mut self, bytes: &mut Bytes<'_>) {
        let id = match bytes.below(8) {
            0..=4 => self.pick(bytes).unwrap_or(0),
            5 => self.last.saturating_sub(bytes.below(6) as u64),
            _ => 0,
        };
        let (kind, word) = match bytes.below(8) {
            _ if id == 0 && bytes.rarely(4) => (FrameKind::Continuation, 0),
            _ if id == 0 => (FrameKind::Push, 0),
            0 | 1 => (FrameKind::Reply, 0),
            2 | 3 => (FrameKind::Chunk, 0),
            4 => (FrameKind::Continuation, 0),
            5 => (FrameKind::End, 0),
            6 => (FrameKind::Error, 1 + u32::from(bytes.u8() % 8)),
            _ => (FrameKind::Credit, bytes.pick(&[1, 64, 65, 100, 200, self.limits.window])),
        };
        let fragment = self.limits.max_fragment;
        let len = match kind {
            FrameKind::End | FrameKind::Credit => 0,
            FrameKind::Error => 4 + length(bytes, fragment, fragment - 4),
            _ => length(bytes, fragment, fragment),
        };
        let more = if kind.is_sequenced() && kind != FrameKind::End && bytes.rarely(4) { MORE } else { 0 };
        let seq = self.seqs.get(&id).copied().unwrap_or(0);
        let seq = if bytes.rarely(16) { bytes.u16() } else { seq };
        let head = FrameHeader {
            seq: if kind.is_sequenced() { seq } else { 0 },
            ..FrameHeader::new(kind, word).with_flags(more)
        };
        self.send_frame(id, head, len);
    }

    /// Sends any bytes, in any call.
    fn send_any(&mut self, bytes: &mut Bytes<'_>) {
        let id = if bytes.bool() { bytes.number() } else { self.last };
        let mut raw = bytes.take(HEADER_LEN + 2).to_vec();
        raw.resize(raw.len() + bytes.below(3), 0);
        if let Some(kind) = raw.first_mut() {
            *kind %= 13;
        }
        let _full = self.out.send(&[std::io::IoSlice::new(&raw)], id, Wait::Never);
    }

    fn end(&self, id: u64, buffer: &mut Vec<u8>) -> Result<CallOutcome, WaitError> {
        self.mux.wait(self.mux.signal_of(id), Wait::Never, |calls| calls.take_outcome(id, buffer))
    }

    fn finish_one(&mut self, bytes: &mut Bytes<'_>) {
        let Some(id) = self.pick(bytes) else { return };
        let mut buffer = Vec::new();
        match self.end(id, &mut buffer) {
            Ok(end) => {
                assert!(buffer.len() <= self.limits.max_message || end != CallOutcome::Reply);
                self.open.retain(|it| *it != id);
            }
            Err(WaitError::Timeout) => assert!(self.mux.closed().is_none()),
            Err(stop) => assert_eq!(stop, WaitError::Ended(ConnectionError::ProtocolViolation)),
        }
    }

    fn take_chunk(&mut self, bytes: &mut Bytes<'_>) {
        let Some(id) = self.pick(bytes) else { return };
        let chunk = self.mux.wait(self.mux.signal_of(id), Wait::Never, |calls| {
            calls.next_chunk(id).map(|chunk| (chunk, calls.take_owed_credit(id)))
        });
        let Ok((chunk, owed)) = chunk else { return };
        assert!(window_cost(chunk.len()) <= self.limits.window && chunk.len() <= self.limits.max_message);
        self.give_credit(id, owed);
    }

    fn give_credit(&self, id: u64, owed: Option<u32>) {
        let Some(owed) = owed else { return };
        let mut fragmenter = Fragmenter::new(FrameHeader::new(FrameKind::Credit, owed), 0);
        let sent = self.mux.send_item(&mut fragmenter, [&[], &[]], &mut 0, id, Wait::Never);
        if sent == Err(WaitError::Timeout) {
            self.mux.lock().calls.restore_owed_credit(id, owed);
        }
    }

    fn upload(&mut self, bytes: &mut Bytes<'_>) {
        let Some(id) = self.pick(bytes) else { return };
        let price = window_cost(bytes.below(self.limits.window as usize));
        let mut state = self.mux.lock();
        if state.calls.spend_credit(id, price) == Ok(true) && bytes.bool() {
            state.calls.refund_credit(id, price);
        }
    }

    fn give_up(&mut self, bytes: &mut Bytes<'_>) {
        let Some(id) = self.pick(bytes) else { return };
        self.open.retain(|it| *it != id);
        self.mux.abandon(id);
    }

    fn take_push(&mut self, _bytes: &mut Bytes<'_>) {
        let taken = self.mux.wait(self.mux.push_signal(), Wait::Never, |calls| {
            calls.next_push().map(|push| (push, calls.take_owed_push_credit()))
        });
        let Ok((push, owed)) = taken else { return };
        assert!(window_cost(push.len()) <= self.limits.push_window && push.len() <= self.limits.max_message);
        self.give_credit(0, owed);
    }

    /// Makes a call and waits for its end without a pause between. A reply, legal or not, may be there before the call.
    fn at_once(&mut self, bytes: &mut Bytes<'_>) {
        let mut buffer = vec![7; bytes.below(3)];
        buffer.clear();
        if bytes.bool() {
            // A reply to the call that is next if its slot is free.
            let id = self.last + bytes.below(self.limits.slots + 1) as u64;
            let len = length(bytes, self.limits.max_fragment, self.limits.max_fragment);
            self.send_frame(id, FrameHeader::new(FrameKind::Reply, 0), len);
        }
        let head = FrameHeader::new(FrameKind::Call, 1);
        let wait = Wait::Deadline(Some(self.past));
        let Some((id, end)) = self.mux.call_as_leader(head, [&[], &[1]], &mut buffer, wait) else { return };
        assert!(self.seen.insert(id), "an id was used twice");
        self.last = self.last.max(id);
        if end == Err(WaitError::Timeout) {
            self.open.push(id);
        }
    }

    /// Closes the connection, and checks that each open call ends with the error of the connection.
    fn finish(&mut self) {
        let over = self.mux.wait(self.mux.slot_signal(), Wait::Never, |_| None::<()>);
        self.check();
        self.mux.close(ConnectionError::Closed);
        let expected = match over {
            Err(WaitError::Ended(ended)) => ended,
            _ => ConnectionError::Closed,
        };
        for id in std::mem::take(&mut self.open) {
            match self.end(id, &mut Vec::new()) {
                Err(stop) => assert_eq!(stop, WaitError::Ended(expected)),
                Ok(_) => {
                    assert_eq!(expected, ConnectionError::Closed, "a frame of a hostile server ended a call")
                }
            }
        }
    }
}

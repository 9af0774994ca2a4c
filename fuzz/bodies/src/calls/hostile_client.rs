//! A hostile client: it sends any frames, some with the expected sequence, and checks that what the server sends is legal.

use std::collections::BTreeMap;

use super::server::Server;
use super::{CallRings, Mem, length, text};
use crate::bytes::Bytes;
use narrows::internal::ConnectionError;
use narrows::internal::rpc::fragment::Reassembler;
use narrows::internal::rpc::server::CallLimits;
use narrows::internal::rpc::wire::{
    DEADLINE, FrameHeader, FrameKind, HEADER_LEN, MORE, NOTIFY, STREAM, UPLOAD,
};
use narrows::internal::rpc::wire::{Frame, send_frame};
use narrows::internal::{NoWaitPolicy, OobSender, ReceiverCore, SenderCore, Wait};

/// What the client sent and received in one call.
#[derive(Debug, Default)]
struct CallView {
    seq: u16,
    flags: u8,
    /// A Call frame was sent.
    begun: bool,
    answer: Reassembler,
    /// The last frame of the call was received.
    over: bool,
}

/// The server, and what the hostile client knows of it.
struct HostileClient {
    out: SenderCore<Mem, NoWaitPolicy>,
    inb: ReceiverCore<Mem, NoWaitPolicy>,
    poster: OobSender<Mem>,
    server: Server,
    views: BTreeMap<u64, CallView>,
    /// The push that is being received, and the number of those before it.
    pushes: (Reassembler, usize),
    limits: CallLimits,
    next: u64,
    count: u64,
}

pub(super) fn run(bytes: &mut Bytes<'_>) {
    let rings = CallRings::new(bytes);
    let (out, inb) = CallRings::end(&rings.up, &rings.down);
    let poster = OobSender::new(rings.up.clone());
    let server = Server::new(&rings, false);
    server.connection.accept(|_| ());
    let (limits, views, next) = (rings.limits, BTreeMap::new(), rings.limits.slots as u64);
    let pushes = (Reassembler::default(), 0);
    let mut test = HostileClient { out, inb, poster, server, views, pushes, limits, next, count: 0 };
    while !bytes.is_empty() && test.server.over.is_none() {
        test.act(bytes);
    }
    test.finish();
}

impl HostileClient {
    fn act(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(16) {
            0..=2 => self.send_call(bytes),
            3..=5 => self.send_plausible(bytes),
            6 => self.send_any(bytes),
            7..=8 => self.receive(),
            9..=11 => self.server.act(bytes),
            12 => self.cancel(bytes),
            _ => drop(self.server.step()),
        }
    }

    fn send_frame(&mut self, id: u64, head: FrameHeader, len: usize) {
        self.count += 1;
        if send_frame(&mut self.out, head, [&text(self.count, len), &[]], id, Wait::Never).is_ok() {
            let view = self.views.entry(id).or_default();
            view.begun |= head.kind == FrameKind::Call;
            view.flags |= if head.kind == FrameKind::Call { head.flags } else { 0 };
            view.seq = view.seq.wrapping_add(u16::from(head.kind.is_sequenced()));
        }
    }

    /// Sends a legal Call frame.
    fn send_call(&mut self, bytes: &mut Bytes<'_>) {
        let flags =
            bytes.pick(&[0, STREAM, UPLOAD, STREAM | UPLOAD, NOTIFY, DEADLINE, MORE, MORE | DEADLINE]);
        let len =
            length(bytes, self.limits.max_fragment, self.limits.max_fragment.min(self.limits.max_message));
        self.next += 1;
        self.send_frame(
            self.next,
            FrameHeader::new(FrameKind::Call, bytes.u8().into()).with_flags(flags),
            len,
        );
    }

    /// Sends a frame that may be legal.
    fn send_plausible(&mut self, bytes: &mut Bytes<'_>) {
        let id = self.id(bytes);
        let (kind, word) = match bytes.below(5) {
            0 | 1 => (FrameKind::Chunk, 0),
            2 => (FrameKind::Continuation, 0),
            3 => (FrameKind::End, 0),
            _ => (FrameKind::Credit, bytes.pick(&[1, 64, 65, 100, 200, self.limits.window])),
        };
        let bare = matches!(kind, FrameKind::End | FrameKind::Credit);
        let len = if bare { 0 } else { length(bytes, self.limits.max_fragment, self.limits.max_fragment) };
        let more = if !bare && bytes.rarely(4) { MORE } else { 0 };
        let expected = self.views.get(&id).map_or(0, |view| view.seq);
        let seq = if bytes.rarely(16) { bytes.u16() } else { expected };
        let head = FrameHeader {
            seq: if kind.is_sequenced() { seq } else { 0 },
            ..FrameHeader::new(kind, word).with_flags(more)
        };
        self.send_frame(id, head, len);
    }

    /// Sends any bytes, in any call.
    fn send_any(&mut self, bytes: &mut Bytes<'_>) {
        let id = if bytes.bool() { bytes.number() } else { self.id(bytes) };
        let mut raw = bytes.take(HEADER_LEN + 2).to_vec();
        raw.resize(raw.len() + bytes.below(3), 0);
        if let Some(kind) = raw.first_mut() {
            *kind %= 13;
        }
        let begins = raw.first() == Some(&(FrameKind::Call as u8));
        let sent = self.out.send(&[std::io::IoSlice::new(&raw)], id, Wait::Never).is_ok();
        if sent && begins && raw.len() > 1 {
            let view = self.views.entry(id).or_default();
            (view.begun, view.flags, view.seq) = (true, view.flags | raw[1], view.seq.wrapping_add(1));
        }
    }

    fn id(&self, bytes: &mut Bytes<'_>) -> u64 {
        let back = bytes.below(6) as u64;
        if back == 5 { 0 } else { self.next.saturating_sub(back) }
    }

    fn cancel(&mut self, bytes: &mut Bytes<'_>) {
        let id = if bytes.rarely(4) { bytes.number() } else { self.id(bytes) };
        let other = bytes.rarely(8).then(|| u32::from(bytes.u8()));
        let slot = u32::try_from(id % self.limits.slots as u64).unwrap_or(0);
        self.poster.send_oob(other.unwrap_or(slot), id);
    }

    /// Receives all that the server sent, and checks it.
    fn receive(&mut self) {
        while let Ok(message) = self.inb.next(Wait::Never) {
            let frame = Frame::open(&self.inb, &message).expect("a frame");
            self.check(&frame);
            self.inb.release(&message).expect("it is not overwritten");
        }
    }

    /// Checks that a well-formed server may send the frame now.
    fn check(&mut self, frame: &Frame) {
        let (head, len, inb) = (frame.head, frame.len(), &self.inb);
        let max = self.limits.max_message.max(1 << 10);
        let read = |into: &mut [u8]| frame.read(inb, 0, into).expect("in the message");
        assert!(len <= self.limits.max_fragment, "a fragment is too long");
        if frame.id == 0 {
            let (assembly, taken) = &mut self.pushes;
            if let Some(first) = assembly.take(head, len, max, read).expect("pushes in order") {
                assert_eq!((first.kind, &assembly.bytes), (FrameKind::Push, &self.server.pushed[*taken]));
                *taken += 1;
            }
            return;
        }
        let view = self.views.get_mut(&frame.id).filter(|view| view.begun && !view.over);
        let view = view.unwrap_or_else(|| panic!("{head:?} for {}, which is not in flight", frame.id));
        if !head.kind.is_sequenced() {
            view.over |= head.kind == FrameKind::Error;
            assert!(
                head.kind == FrameKind::Error || view.flags & UPLOAD != 0 && head.kind == FrameKind::Credit
            );
            return;
        }
        let Some(first) = view.answer.take(head, len, max, read).expect("items in order") else { return };
        match first.kind {
            FrameKind::Chunk => assert!(view.flags & STREAM != 0),
            FrameKind::Reply => view.over = true,
            FrameKind::End if len == 0 => view.over = view.flags & STREAM != 0,
            kind => panic!("{kind:?} from a server"),
        }
    }

    /// Ends all methods, and checks that each call whose request was complete has got its last frame.
    fn finish(&mut self) {
        for _ in 0..5000 {
            if let Some(ended) = self.server.over {
                assert_eq!(ended, ConnectionError::ProtocolViolation);
                assert_eq!(
                    self.server.connection.push(&[], Wait::Never),
                    Err(narrows::internal::rpc::server::RespondError::Ended(ended))
                );
                return;
            }
            let open = self.server.open();
            open.iter().for_each(|&id| self.server.finish(id, 0, false));
            self.receive(); // First: with a full ring the server looks idle.
            let busy = self.server.step();
            self.receive();
            if open.is_empty() && !busy && self.server.over.is_none() {
                let (in_flight, incomplete) =
                    self.server.connection.with_calls(|calls| (calls.in_flight(), calls.receiving()));
                assert_eq!(in_flight, incomplete, "calls without their last frame");
                assert_eq!(self.pushes.1, self.server.pushed.len());
                return;
            }
        }
        panic!("the server does not become idle");
    }
}

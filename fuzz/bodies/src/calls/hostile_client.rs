//! A client that lies: any frames, whose sequence is sometimes right; and it judges what the server sends.

use std::collections::BTreeMap;

use super::server::Server;
use super::{Mem, World, length, text};
use crate::bytes::Bytes;
use narrows::internal::Ended;
use narrows::internal::rpc::frame::{Frame, send};
use narrows::internal::rpc::pieces::Assembly;
use narrows::internal::rpc::server::Limits;
use narrows::internal::rpc::wire::{DEADLINE, HEAD, Head, Kind, MORE, NOTIFY, STREAM, UPLOAD};
use narrows::internal::{Inbound, NoPace, Outbound, Poster, Wait};

/// What the liar knows of a call: it is honest about it now and then.
#[derive(Debug, Default)]
struct Told {
    seq: u16,
    flags: u8,
    begun: bool,
    answer: Assembly,
    over: bool,
}

struct Lies {
    out: Outbound<Mem, NoPace>,
    inb: Inbound<Mem, NoPace>,
    poster: Poster<Mem>,
    server: Server,
    told: BTreeMap<u64, Told>,
    pushes: (Assembly, usize),
    limits: Limits,
    next: u64,
    count: u64,
}

pub(super) fn run(bytes: &mut Bytes<'_>) {
    let world = World::new(bytes);
    let (out, inb) = World::liar(&world.up, &world.down);
    let poster = Poster::new(world.up.clone());
    let server = Server::new(&world, false);
    server.hall.open(|_| ());
    let (limits, told, next) = (world.limits, BTreeMap::new(), world.limits.places as u64);
    let pushes = (Assembly::default(), 0);
    let mut lies = Lies { out, inb, poster, server, told, pushes, limits, next, count: 0 };
    while !bytes.is_empty() && lies.server.over.is_none() {
        lies.act(bytes);
    }
    lies.finish();
}

impl Lies {
    fn act(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(16) {
            0..=2 => self.call(bytes),
            3..=5 => self.plausible(bytes),
            6 => self.anything(bytes),
            7..=8 => self.hear(),
            9..=11 => self.server.act(bytes),
            12 => self.cancel(bytes),
            _ => drop(self.server.step()),
        }
    }

    fn say(&mut self, id: u64, head: Head, len: usize) {
        self.count += 1;
        if send(&mut self.out, head, [&text(self.count, len), &[]], id, Wait::Never).is_ok() {
            let told = self.told.entry(id).or_default();
            told.begun |= head.kind == Kind::Call;
            told.flags |= if head.kind == Kind::Call { head.flags } else { 0 };
            told.seq = told.seq.wrapping_add(u16::from(head.kind.counted()));
        }
    }

    /// A call such as an honest client makes.
    fn call(&mut self, bytes: &mut Bytes<'_>) {
        let flags =
            bytes.pick(&[0, STREAM, UPLOAD, STREAM | UPLOAD, NOTIFY, DEADLINE, MORE, MORE | DEADLINE]);
        let len = length(bytes, self.limits.piece, self.limits.piece.min(self.limits.max));
        self.next += 1;
        self.say(self.next, Head::new(Kind::Call, bytes.u8().into()).with(flags), len);
    }

    /// A frame that may be right.
    fn plausible(&mut self, bytes: &mut Bytes<'_>) {
        let id = self.id(bytes);
        let (kind, word) = match bytes.below(5) {
            0 | 1 => (Kind::Chunk, 0),
            2 => (Kind::Rest, 0),
            3 => (Kind::End, 0),
            _ => (Kind::Credit, bytes.pick(&[1, 64, 65, 100, 200, self.limits.window])),
        };
        let bare = matches!(kind, Kind::End | Kind::Credit);
        let len = if bare { 0 } else { length(bytes, self.limits.piece, self.limits.piece) };
        let more = if !bare && bytes.rarely(4) { MORE } else { 0 };
        let told = self.told.get(&id).map_or(0, |told| told.seq);
        let seq = if bytes.rarely(16) { bytes.u16() } else { told };
        let head = Head { seq: if kind.counted() { seq } else { 0 }, ..Head::new(kind, word).with(more) };
        self.say(id, head, len);
    }

    /// Whatever a message can be, in whatever call.
    fn anything(&mut self, bytes: &mut Bytes<'_>) {
        let id = if bytes.bool() { bytes.number() } else { self.id(bytes) };
        let mut raw = bytes.take(HEAD + 2).to_vec();
        raw.resize(raw.len() + bytes.below(3), 0);
        if let Some(kind) = raw.first_mut() {
            *kind %= 13;
        }
        let begins = raw.first() == Some(&(Kind::Call as u8));
        let sent = self.out.send(&[std::io::IoSlice::new(&raw)], id, Wait::Never).is_ok();
        if sent && begins && raw.len() > 1 {
            let told = self.told.entry(id).or_default();
            (told.begun, told.flags, told.seq) = (true, told.flags | raw[1], told.seq.wrapping_add(1));
        }
    }

    fn id(&self, bytes: &mut Bytes<'_>) -> u64 {
        let back = bytes.below(6) as u64;
        if back == 5 { 0 } else { self.next.saturating_sub(back) }
    }

    fn cancel(&mut self, bytes: &mut Bytes<'_>) {
        let id = if bytes.rarely(4) { bytes.number() } else { self.id(bytes) };
        let place = bytes.rarely(8).then(|| u32::from(bytes.u8()));
        let honest = u32::try_from(id % self.limits.places as u64).unwrap_or(0);
        self.poster.post(place.unwrap_or(honest), id);
    }

    /// The server is honest, whatever it hears.
    fn hear(&mut self) {
        while let Ok(message) = self.inb.next(Wait::Never) {
            let frame = Frame::open(&self.inb, &message).expect("a frame");
            self.judge(&frame);
            self.inb.give_back(&message).expect("the ring is honest");
        }
    }

    fn judge(&mut self, frame: &Frame) {
        let (head, len, inb) = (frame.head, frame.len(), &self.inb);
        let max = self.limits.max.max(1 << 10);
        let read = |into: &mut [u8]| frame.read(inb, 0, into).expect("in the message");
        assert!(len <= self.limits.piece, "a long piece");
        if frame.id == 0 {
            let (assembly, taken) = &mut self.pushes;
            if let Some(first) = assembly.take(head, len, max, read).expect("pushes in order") {
                assert_eq!((first.kind, &assembly.bytes), (Kind::Push, &self.server.pushed[*taken]));
                *taken += 1;
            }
            return;
        }
        let told = self.told.get_mut(&frame.id).filter(|told| told.begun && !told.over);
        let told = told.unwrap_or_else(|| panic!("{head:?} for {}, which is not under way", frame.id));
        if !head.kind.counted() {
            told.over |= head.kind == Kind::Error;
            assert!(head.kind == Kind::Error || told.flags & UPLOAD != 0 && head.kind == Kind::Credit);
            return;
        }
        let Some(first) = told.answer.take(head, len, max, read).expect("items in order") else { return };
        match first.kind {
            Kind::Chunk => assert!(told.flags & STREAM != 0),
            Kind::Reply => told.over = true,
            Kind::End if len == 0 => told.over = told.flags & STREAM != 0,
            kind => panic!("{kind:?} from a server"),
        }
    }

    /// Each call that was whole gets its last word, whatever was said besides.
    fn finish(&mut self) {
        for _ in 0..5000 {
            if let Some(ended) = self.server.over {
                assert_eq!(ended, Ended::ProtocolViolated);
                assert_eq!(
                    self.server.hall.push(&[], Wait::Never),
                    Err(narrows::internal::rpc::server::Gone::Ended(ended))
                );
                return;
            }
            let open = self.server.open();
            open.iter().for_each(|&id| self.server.finish(id, 0, false));
            self.hear(); // First: a full ring would look like rest.
            let busy = self.server.step();
            self.hear();
            if open.is_empty() && !busy && self.server.over.is_none() {
                let (flying, incomplete) =
                    self.server.hall.with(|table| (table.in_flight(), table.receiving()));
                assert_eq!(flying, incomplete, "calls without their last word");
                assert_eq!(self.pushes.1, self.server.pushed.len());
                return;
            }
        }
        panic!("the server never comes to rest");
    }
}

//! Frame headers, settings, and the fragments of items in any order.

use std::ops::Range;

use super::text;
use crate::bytes::Bytes;
use narrows::internal::rpc::flow_control::MIN_WINDOW;
use narrows::internal::rpc::fragment::{Fragmenter, Reassembler};
use narrows::internal::rpc::wire::{
    FrameHeader, FrameKind, HEADER_LEN, MORE, SETTINGS_LEN, Settings, VERSION,
};

pub(super) fn codec(bytes: &mut Bytes<'_>) {
    match bytes.below(4) {
        0 => heads(bytes),
        1 => settings(bytes),
        _ => fragments(bytes),
    }
}

fn heads(bytes: &mut Bytes<'_>) {
    while !bytes.is_empty() {
        let mut raw: [u8; HEADER_LEN] = bytes.array();
        raw[0] &= if bytes.rarely(4) { u8::MAX } else { 15 };
        if let Ok(head) = FrameHeader::decode(raw) {
            assert_eq!(head.encode(), raw);
        }
    }
}

fn settings(bytes: &mut Bytes<'_>) {
    let good = Settings { version: VERSION, stream_window: bytes.u32(), push_window: bytes.u32() };
    let mut raw = good.encode();
    let possible = good.stream_window.min(good.push_window) >= MIN_WINDOW;
    assert_eq!(Settings::decode(&raw).ok(), Some(good).filter(|_| possible));
    while !bytes.is_empty() {
        raw[bytes.below(SETTINGS_LEN)] = bytes.u8();
        let decoded = Settings::decode(&raw);
        assert!(decoded.is_err() || &raw[..8] == b"narrows#");
        if let Ok(it) = decoded {
            assert!(it.version != VERSION || it.encode() == raw);
        }
    }
}

/// One frame with a body.
type Fragment = (FrameHeader, Vec<u8>);

/// Splits items into fragments as a sender does, changes some of the frames, and reassembles them.
fn fragments(bytes: &mut Bytes<'_>) {
    let (max, mut frames, mut seq, mut fit) = (bytes.below(200), Vec::new(), 0, true);
    for number in 0..bytes.below(5) {
        let kind = bytes.pick(&[FrameKind::Reply, FrameKind::Chunk, FrameKind::Push, FrameKind::Call]);
        let item = text(number as u64, bytes.below(max + 2));
        fit &= item.len() <= max;
        frames.extend(split(&item, kind, bytes.below(70), &mut seq));
    }
    let original: Vec<Fragment> = frames.clone();
    while !bytes.is_empty() && !frames.is_empty() {
        let at = bytes.below(frames.len());
        match bytes.below(6) {
            0 => drop(frames.remove(at)),
            1 => frames.insert(at, frames[at].clone()),
            2 => {
                let to = bytes.below(frames.len());
                frames.swap(at, to);
            }
            3 => frames[at].0.flags ^= MORE,
            4 => frames[at].0.kind = bytes.pick(&[FrameKind::Continuation, FrameKind::Chunk, FrameKind::End]),
            _ => frames[at].1.truncate(bytes.below(3)),
        }
    }
    let (mut assembly, mut reference) =
        (Reassembler::default(), ReferenceAssembly { max, ..ReferenceAssembly::default() });
    for (head, body) in &frames {
        let whole = assembly.take(*head, body.len(), max, |to| to.copy_from_slice(body));
        let expected = reference.take(head, body);
        assert_eq!(whole.as_ref().ok().copied().flatten(), expected.ok().flatten(), "{head:?}");
        assert_eq!(whole.is_ok(), expected.is_ok(), "{whole:?} {head:?} in {frames:?}");
        if expected.is_err() {
            assert!(frames != original || !fit);
            return;
        }
        assert_eq!(assembly.bytes, reference.bytes);
    }
}

/// Returns the frames of an item, and checks that together they are the item.
fn split(item: &[u8], kind: FrameKind, fragment: usize, seq: &mut u16) -> Vec<Fragment> {
    let (mut fragmenter, mut frames) = (Fragmenter::new(FrameHeader::new(kind, 0), item.len()), Vec::new());
    let mut next = 0;
    loop {
        let (head, range): (FrameHeader, Range<usize>) = fragmenter.next_frame(fragment, *seq);
        assert!(range.start == next && range.len() <= fragment.max(1) && head.seq == *seq);
        assert_eq!(head.kind, if next == 0 { kind } else { FrameKind::Continuation });
        *seq = seq.wrapping_add(1);
        next = range.end;
        frames.push((head, item[range.clone()].to_vec()));
        let done = fragmenter.advance(&range);
        assert_eq!((done, head.has_flag(MORE)), (next == item.len(), next != item.len()));
        if done {
            return frames;
        }
    }
}

/// Reassembly in its simplest form.
#[derive(Default)]
struct ReferenceAssembly {
    max: usize,
    count: u16,
    first: Option<FrameHeader>,
    bytes: Vec<u8>,
}

impl ReferenceAssembly {
    fn take(&mut self, head: &FrameHeader, body: &[u8]) -> Result<Option<FrameHeader>, ()> {
        let (goes_on, more) = (head.kind == FrameKind::Continuation, head.has_flag(MORE));
        let empty = body.is_empty() && (goes_on || more);
        if head.seq != self.count || goes_on != self.first.is_some() || empty {
            return Err(());
        }
        let first = self.first.take().unwrap_or_else(|| {
            self.bytes.clear();
            *head
        });
        self.bytes.extend_from_slice(body);
        self.count = self.count.wrapping_add(1);
        if self.bytes.len() > self.max {
            return Err(());
        }
        self.first = Some(first).filter(|_| more);
        Ok(Some(first).filter(|_| !more))
    }
}

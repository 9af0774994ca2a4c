//! Pages with any content, under the public halves of a connection: no panic, no hang, and errors that stay the same.
//!
//! The pages are those of a real connection: a sealed memfd that is mapped, a socket, and the peer monitor. The bytes encode the
//! content of the pages, what the peer writes into them between two calls, and the calls. No call blocks: each is non-blocking or
//! has a zero timeout.

use std::cell::RefCell;
use std::io::{IoSlice, Read, Write};
use std::time::Duration;

use super::bytes::Bytes;
use narrows::internal::MappedConnection;
use narrows::internal::layout::{Control, Direction, Geometry, LAST_TICKET, SLOT, SlotKind, words};
use narrows::{ConnectionError, Receiver, Sender, TryRecvError, TrySendError, WaitStrategy};

/// Slots, arena, first ticket and longest message of the connections.
const CONNECTIONS: [(u32, u64, u64, u64); 8] = [
    (1, 64, 0, 100),
    (2, 256, 5, 1000),
    (4, 1024, (1 << 32) - 2, 4096),
    (8, 4096, 0, 1 << 16),
    (8, 512, LAST_TICKET - 4, 700),
    (16, 256, 1 << 62, 50),
    (2, 8192, 1, 1 << 14),
    (1, 4096, LAST_TICKET, 9000),
];

const WORDS: [usize; 11] = [
    words::HEAD,
    words::CONSUMER_FLAG,
    words::PRODUCER_FLAG,
    words::AWAITED_TICKET,
    words::PRODUCER_CLOSED,
    words::CONSUMER_CLOSED,
    words::PRODUCER_CPU,
    words::CONSUMER_CPU,
    words::CONSUMER_WOKEN,
    words::PRODUCER_WOKEN,
    words::DOORBELL,
];

/// The largest number of steps in one run.
const STEPS: usize = 64;

thread_local! {
    static PAGES: RefCell<[Option<MappedConnection>; 2 * CONNECTIONS.len()]> = RefCell::default();
}

/// Overwrites the pages and makes the calls that the bytes encode.
pub fn region_image(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let index = bytes.below(2 * CONNECTIONS.len());
    let (slots, arena, first, max) = CONNECTIONS[index / 2];
    let geometry = Geometry::new(slots, arena, 4).expect("legal");
    PAGES.with_borrow_mut(|all| {
        let outgoing = index % 2;
        let pages = all[index].get_or_insert_with(|| {
            MappedConnection::new(geometry, outgoing, first, max).expect("a connection")
        });
        pages.reset();
        if !bytes.rarely(16) {
            pages.format();
        }
        Session::new(pages, Parameters { geometry, outgoing, first, max }).run(bytes);
    });
}

/// What both sides of the connection agreed on.
#[derive(Clone, Copy)]
struct Parameters {
    geometry: Geometry,
    /// The direction that this side sends in.
    outgoing: usize,
    /// The first ticket of each direction.
    first: u64,
    /// The longest message, in bytes.
    max: u64,
}

struct Session<'p> {
    pages: &'p MappedConnection,
    agreed: Parameters,
    sender: Option<Sender>,
    receiver: Option<Receiver>,
    buffer: Vec<u8>,
    message: Vec<u8>,
    /// The next ticket that the peer forges.
    forged: u64,
    /// The error that the receiver ended with.
    over: Option<TryRecvError>,
}

impl<'p> Session<'p> {
    fn new(pages: &'p MappedConnection, agreed: Parameters) -> Self {
        let message = vec![9; to_usize(agreed.max).min(1 << 14) + 1];
        let forged = agreed.first;
        Self { pages, agreed, sender: None, receiver: None, buffer: Vec::new(), message, forged, over: None }
    }

    fn run(&mut self, mut bytes: Bytes<'_>) {
        let strategy =
            bytes.pick(&[WaitStrategy::Park, WaitStrategy::Park, WaitStrategy::Adaptive, WaitStrategy::Spin]);
        self.sender = Some(self.pages.sender(strategy));
        self.receiver = Some(self.pages.receiver(strategy));
        for _ in 0..STEPS {
            if bytes.is_empty() {
                break;
            }
            match bytes.below(8) {
                0..=3 => self.overwrite(&mut bytes),
                4..=5 => self.send(&mut bytes),
                _ => self.receive(&mut bytes),
            }
        }
        self.receive(&mut bytes);
    }

    /// Writes as a peer may at any time.
    fn overwrite(&mut self, bytes: &mut Bytes<'_>) {
        let Parameters { geometry, outgoing, first, .. } = self.agreed;
        let incoming = 1 - outgoing;
        let direction = usize::from(bytes.bool());
        let at = geometry.direction(direction);
        match bytes.below(8) {
            0..=3 => self.forge(bytes, geometry.direction(incoming)),
            4 => self.pages.put(at.words + bytes.pick(&WORDS), bytes.number()),
            5 => {
                let head = first.wrapping_add_signed(i64::from(bytes.u8() % 32) - 8);
                self.pages.put(at.words + words::HEAD, head);
            }
            6 => {
                let slot = bytes.below(geometry.slots() as usize) * SLOT;
                self.pages.put(at.slots + slot + bytes.below(16) * 8, bytes.number());
            }
            _ => self.pages.put(usize::from(bytes.u16()), bytes.u64()),
        }
    }

    /// Writes a whole ticket, which may be legal.
    fn forge(&mut self, bytes: &mut Bytes<'_>, at: Direction) {
        let geometry = self.agreed.geometry;
        let slot = at.slots + usize::try_from(self.forged % u64::from(geometry.slots())).expect("few") * SLOT;
        let kind = bytes.pick(&[
            SlotKind::Inline,
            SlotKind::Whole,
            SlotKind::First,
            SlotKind::Middle,
            SlotKind::Last,
        ]);
        let len = [u32::from(bytes.u8()), bytes.u32(), bytes.u32() % 5][bytes.below(3)];
        let unit = if bytes.rarely(4) { bytes.u32() } else { 0 };
        let control = Control { kind, abort: bytes.rarely(4), len, unit };
        let total = [bytes.u16().into(), bytes.u64()][usize::from(bytes.rarely(8))];
        self.pages.put(slot + 8, control.encode());
        self.pages.put(slot + 24, total);
        self.pages.put(slot, self.forged.wrapping_mul(2).wrapping_add(2));
        self.forged = self.forged.wrapping_add(u64::from(!bytes.rarely(8)));
    }

    fn send(&mut self, bytes: &mut Bytes<'_>) {
        let Some(mut sender) = self.sender.take() else { return };
        let len = bytes.below(self.message.len() + 1);
        let message = &self.message[..len];
        let ended = sender.is_disconnected();
        let result = match bytes.below(10) {
            0..=1 => sender.try_send(message),
            2 => sender.try_send_vectored(&[IoSlice::new(message), IoSlice::new(&[])], 4),
            3 => {
                let _late = sender.send_timeout(message, Duration::ZERO);
                Err(TrySendError::WouldBlock)
            }
            4 => reserve(&mut sender, message, bytes),
            5 => batch(&mut sender, message, bytes),
            6 => {
                let _sent = sender.into_shared().try_send(message);
                return; // Dropping it closes this direction.
            }
            7 if bytes.rarely(4) => {
                let written = sender.into_writer().write(&[]);
                return assert!(matches!(written, Ok(0)));
            }
            8 if bytes.rarely(4) => {
                sender.closer().close();
                Err(TrySendError::ConnectionLost(ConnectionError::Closed))
            }
            _ => {
                let _counted = sender.stats();
                Err(TrySendError::WouldBlock)
            }
        };
        assert!(!(ended && result.is_ok()), "a send succeeded after the connection ended");
        self.sender = Some(sender);
    }

    fn receive(&mut self, bytes: &mut Bytes<'_>) {
        let Some(mut receiver) = self.receiver.take() else { return };
        let room = bytes.below(300);
        let most = to_usize(self.agreed.max);
        let result = match bytes.below(9) {
            0..=2 => receiver.try_recv_into(&mut self.buffer).map(|it| assert_eq!(it.len, self.buffer.len())),
            3 => receiver.try_recv(&mut vec![0; room]).map(|it| assert!(it.len <= room)),
            4 => {
                let _late = receiver.recv_into_timeout(&mut self.buffer, Duration::ZERO);
                Err(TryRecvError::WouldBlock)
            }
            5..=6 => borrow(&mut receiver, bytes, most),
            7 => {
                let slots = self.agreed.geometry.slots() as usize;
                let count = receiver.try_iter().take(slots + 2).count();
                assert!(count <= slots, "{count} messages in {slots} slots");
                Err(TryRecvError::WouldBlock)
            }
            _ if bytes.rarely(4) => {
                let mut reader = receiver.into_reader();
                reader.set_read_timeout(Some(Duration::ZERO));
                let _read = reader.read(&mut [0; 64]);
                return; // Dropping it closes this direction.
            }
            _ => {
                let _counted = receiver.stats();
                Err(TryRecvError::WouldBlock)
            }
        };
        assert!(self.buffer.len() <= most);
        if let Err(error) = result {
            let ended = matches!(error, TryRecvError::ConnectionLost(_));
            assert!(
                !ended || self.over.is_none_or(|over| over == error),
                "{:?}, and then {error}",
                self.over
            );
            self.over = if ended { Some(error) } else { self.over };
        } else {
            assert_eq!(self.over, None, "a message after the end");
        }
        self.receiver = Some(receiver);
    }
}

fn reserve(sender: &mut Sender, message: &[u8], bytes: &mut Bytes<'_>) -> Result<(), TrySendError> {
    let mut room = sender.try_reserve(message.len())?;
    assert_eq!(room.len(), message.len());
    room.set_tag(bytes.u64());
    room.write_at(0, message).expect("it fits");
    assert!(room.write_at(message.len(), &[1]).is_err());
    assert_eq!(room.raw().map(|raw| raw.len()), Ok(message.len()));
    let _committed = match bytes.below(4) {
        0 => room.commit(),
        1 => room.commit_len(bytes.below(message.len() + 2)),
        2 => room.commit_written(),
        _ => return Err(TrySendError::WouldBlock), // Dropped without a commit.
    };
    Err(TrySendError::WouldBlock)
}

fn batch(sender: &mut Sender, message: &[u8], bytes: &mut Bytes<'_>) -> Result<(), TrySendError> {
    let mut batch = sender.batch();
    for _ in 0..bytes.below(20) {
        batch.try_push_tagged(message, 5)?;
    }
    let _flushed = batch.flush();
    Err(TrySendError::WouldBlock)
}

fn borrow(receiver: &mut Receiver, bytes: &mut Bytes<'_>, most: usize) -> Result<(), TryRecvError> {
    let mut guard = receiver.try_recv_ref()?;
    let len = guard.len();
    assert!(len <= most);
    assert!(guard.read_at(len, &mut [0]).is_err() && guard.read_at(usize::MAX, &mut [0; 9]).is_err());
    assert_eq!(guard.to_vec().map(|copy| copy.len()).ok(), Some(len));
    assert_eq!(guard.raw().map(|raw| raw.len()), Ok(len));
    match bytes.below(3) {
        0 => drop(guard.finish()),
        1 => drop(guard),
        _ => std::mem::forget(guard),
    }
    Ok(())
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("64 bits")
}

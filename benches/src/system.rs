//! The interface of a way to send messages, and the work that it is given.
//!
//! ```text
//!   A ── send, send, … flush ──▶ B        side A drives and times; B checks, and echoes or counts
//!   A ◀─────────────── receive ── B
//! ```
//!
//! An adaptor uses the system as its own documents recommend for this work. [`System::supports`] refuses work that it
//! cannot do, and the row is left out instead of faked.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::source::{Check, Source};

/// Which of the two processes this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// Drives and times.
    A,
    /// Echoes, or counts what arrives.
    B,
}

impl Side {
    /// Returns the side at the other end.
    pub fn other(self) -> Self {
        if self == Self::A { Self::B } else { Self::A }
    }
}

/// How a side waits for a message, or for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Wait {
    /// Polls without ever sleeping.
    Spin,
    /// The system's own default, or its best documented mode that may sleep.
    Adaptive,
    /// Always sleeps in the kernel.
    Park,
}

/// Whether the bytes are copied at the far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Access {
    /// The receiver copies each message into memory of its own, and checks it there.
    Copy,
    /// The message is written to and checked where the transport keeps it.
    InPlace,
}

/// The kind of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum WorkKind {
    /// A sends a batch, B sends as many back; each round trip is timed.
    RoundTrip,
    /// A sends as fast as it can; the rate counts.
    OneWay,
    /// A sends one message after each gap, to a B that sleeps; the time of the sending call counts.
    Wake,
    /// `batch` connections on which nothing is sent; CPU and wake-ups count.
    Idle,
    /// `batch` connections of which each carried some messages; private and shared memory count.
    Memory,
    /// B serves; A connects, sends, and has the reply; each time it begins anew.
    Connect,
}

/// One piece of work, the same for every system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Work {
    /// The kind of measurement.
    pub kind: WorkKind,
    /// Bytes of each message.
    pub size: usize,
    /// Messages before each flush; connections, for [`WorkKind::Idle`] and [`WorkKind::Memory`].
    pub batch: usize,
    /// How both sides wait.
    pub wait: Wait,
    /// Whether the receiver copies.
    pub access: Access,
    /// Pause between round trips; 0 is none.
    pub gap: Duration,
}

impl Work {
    /// Returns dense work of one message at a time, adaptive, copied.
    pub fn new(kind: WorkKind, size: usize) -> Self {
        Self { kind, size, batch: 1, wait: Wait::Adaptive, access: Access::Copy, gap: Duration::ZERO }
    }

    /// Returns whether it is of messages, which every system can be asked for.
    pub fn is_stream(&self) -> bool {
        matches!(self.kind, WorkKind::RoundTrip | WorkKind::OneWay)
    }

    /// Returns the same work with this way to wait.
    #[must_use]
    pub fn wait(self, wait: Wait) -> Self {
        Self { wait, ..self }
    }

    /// Returns the same work in batches.
    #[must_use]
    pub fn batch(self, batch: usize) -> Self {
        Self { batch, ..self }
    }

    /// Returns the same work, read and written in place.
    #[must_use]
    pub fn in_place(self) -> Self {
        Self { access: Access::InPlace, ..self }
    }

    /// Returns the same work with pauses.
    #[must_use]
    pub fn gap(self, gap: Duration) -> Self {
        Self { gap, ..self }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            WorkKind::RoundTrip => "rt",
            WorkKind::OneWay => "ow",
            WorkKind::Wake => "wake",
            WorkKind::Idle => "idle",
            WorkKind::Memory => "memory",
            WorkKind::Connect => "connect",
        };
        let wait = format!("{:?}", self.wait).to_lowercase();
        write!(f, "{what}/{}/{wait}", self.size)?;
        if self.access == Access::InPlace {
            write!(f, "/inplace")?;
        }
        if self.batch > 1 {
            write!(f, "/x{}", self.batch)?;
        }
        if !self.gap.is_zero() {
            write!(f, "/gap{}us", self.gap.as_micros())?;
        }
        Ok(())
    }
}

/// The task of one side of one row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The side.
    pub side: Side,
    /// The system's name.
    pub system: String,
    /// The work.
    pub work: Work,
    /// An empty folder that both sides know.
    pub folder: PathBuf,
    /// The CPUs of A and of B, if they are pinned.
    pub cpus: Option<[usize; 2]>,
    /// How long to warm up.
    pub warm: Duration,
    /// How long to measure.
    pub time: Duration,
    /// Whether the sides are threads of one process.
    pub thread: bool,
}

/// A way to send messages between two processes, in both directions.
pub trait System {
    /// Its name in the tables.
    const NAME: &'static str;
    /// The version of the crate or library.
    const VERSION: &'static str;
    /// Whether both sides are threads of one process: a bound, not a peer.
    const THREADS: bool = false;
    /// One side's sending half.
    type Sender: SendHalf;
    /// One side's receiving half.
    type Receiver: ReceiveHalf;

    /// Returns whether it can do this work, in this mode.
    fn supports(work: &Work) -> bool;

    /// Connects. Both sides call it at about the same time, with the same folder, empty before.
    fn open(side: Side, folder: &Path, work: &Work) -> Result<(Self::Sender, Self::Receiver)>;
}

/// A sending half.
pub trait SendHalf {
    /// Sends one message; waits for room if there is none.
    fn send(&mut self, message: &[u8]) -> Result<()>;

    /// Publishes the messages sent since the last flush. A batch is several sends and a flush.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    /// Sends so many messages and flushes. Only systems whose batch is an object that borrows the sender override it.
    #[inline]
    fn send_batch(&mut self, source: &mut Source, messages: usize) -> Result<()> {
        for _ in 0..messages {
            self.send(source.message())?;
        }
        self.flush()
    }
}

/// Validates the messages that a system lends: in place, or in a copy.
#[derive(Debug, Default)]
pub struct ReceiveBuffer(Vec<u8>);

impl ReceiveBuffer {
    /// Returns room for a copy, if the work asks for one, in memory that was touched before.
    pub fn new(work: &Work) -> Self {
        Self(vec![1; if work.access == Access::Copy { work.size } else { 0 }])
    }

    /// Copies a message out if the work asks for it, and validates it.
    #[inline]
    pub fn validate(&mut self, message: &[u8], check: &mut Check) {
        if self.0.is_empty() {
            check.validate(message);
        } else {
            self.0.copy_from_slice(message);
            check.validate(&self.0);
        }
    }
}

/// A receiving half.
pub trait ReceiveHalf {
    /// Waits for one message and passes its bytes to [`Check::validate`] once, in place if it can.
    fn receive(&mut self, check: &mut Check) -> Result<()>;
}

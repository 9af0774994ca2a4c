//! What the hardware and the kernel allow: bounds, as systems beside the others.
//!
//! None of these but the sockets is a way to send messages that one could use: they have room for one message, no
//! flow control, no end, and trust each other blindly. They say what a message costs at least.

pub mod connects;
pub mod copies;
pub mod eventfd;
pub mod futex;
pub mod handover;
pub mod ring;
pub mod rtrb;
pub mod unix;

pub use self::connects::{Connects, Dial, UnixDial};
pub use self::copies::CopyInOut;
pub use self::eventfd::EventFd;
pub use self::futex::{Futex, FutexSliced};
pub use self::handover::HandOver;
pub use self::ring::BareRing;
pub use self::rtrb::Rtrb;
pub use self::unix::UnixStreams;

/// Their names, and those of in-process bounds that others add: who is among them is no peer.
pub(crate) const NAMES: [&str; 8] = [
    "hand-over",
    "bare-ring",
    "futex",
    "futex-sliced",
    "eventfd",
    "copy-in-out",
    "rtrb",
    "crossbeam-channel",
];

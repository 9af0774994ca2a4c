//! The limits of the hardware and the kernel: bounds, as systems beside the others.
//!
//! None of these but the sockets is a way to send messages that one could use: they have room for one message, no
//! flow control, no end, and trust each other blindly. They show the least cost of a message.

pub mod bare_ring;
pub mod connect_times;
pub mod copy_in_out;
pub mod eventfd;
pub mod futex;
pub mod hand_over;
pub mod rtrb;
pub mod unix_stream;

pub use self::bare_ring::BareRing;
pub use self::connect_times::{Connect, ConnectTimes, UnixConnect};
pub use self::copy_in_out::CopyInOut;
pub use self::eventfd::EventFd;
pub use self::futex::{Futex, FutexSliced};
pub use self::hand_over::HandOver;
pub use self::rtrb::Rtrb;
pub use self::unix_stream::UnixStreams;

use crate::{Subject, systems};

/// Lists all of them.
pub fn subjects() -> Vec<Subject> {
    let mut subjects = systems![HandOver, BareRing, Futex, FutexSliced, EventFd, Rtrb, UnixStreams];
    subjects.push(Subject::measure::<CopyInOut>());
    subjects.push(Subject::measure::<ConnectTimes<UnixConnect>>());
    subjects
}

/// The names of the bounds, those within one process included: none of them is a peer.
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

//! The limits of the hardware and the kernel: bounds, as systems beside the others.
//!
//! Except for the sockets, none of these is a usable way to send messages. They have room for one message, no flow
//! control and no close, and each side trusts the other. They show the least cost of a message.

mod bare_ring;
mod connect_times;
mod copy_in_out;
mod eventfd;
mod futex;
mod hand_over;
mod rtrb;
pub mod unix_stream;

pub use self::connect_times::{Connect, ConnectTimes};

use self::bare_ring::BareRing;
use self::connect_times::UnixConnect;
use self::copy_in_out::CopyInOut;
use self::eventfd::EventFd;
use self::futex::{Futex, FutexSliced};
use self::hand_over::HandOver;
use self::rtrb::Rtrb;
use self::unix_stream::UnixStreams;
use crate::driver::Subject;
use crate::systems;

/// Sizes of the messages in the rows of the benchmarks `stream` and `limits`.
pub const SIZES: [usize; 10] = [8, 40, 64, 104, 256, 1 << 10, 4 << 10, 64 << 10, 1 << 20, 16 << 20];

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

//! The limits of the hardware and the kernel: bounds, as systems beside the others.
//!
//! None of these but the sockets is a way to send messages that one could use: they have room for one message, no
//! flow control, no end, and trust each other blindly. They show the least cost of a message.

mod bare_ring;
pub mod connect_times;
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

//! Peers that attack: we get typed errors or bounded messages, in time, with bounded CPU, and our
//! other connections are not disturbed.
//!
//! ```text
//!   test process ── starts ──▶ victim process ── starts ──▶ attacker process
//!     wants exit code 0          a listener, and beside it    does the handshake by hand, then has
//!                                an honest pair, undisturbed  the bare pages and the socket
//! ```
//!
//! The victim is a process of its own since what must not happen would end it with a signal.
//!
//! | module | the peer |
//! |---|---|
//! | `scribbles` | writes anything anywhere, zeroes whole pages |
//! | `words` | writes each value of a list to each word of the region, one at a time |
//! | `flips` | changes what is being read between two values, as fast as it can |
//! | `sleepers` | clears our flags, wakes, moves and crowds our sleepers |
//! | `sockets` | floods, resizes, opens halves of connections, stops itself |
//!
//! What they do not show: that there is no other attack (the fuzzers look for it), and latency under
//! attack, which is not promised. Times are CPU times, which a busy machine does not change; real
//! time is only limited by what counts as hung.

#![allow(unsafe_code)]

mod flips;
mod scribbles;
mod sleepers;
mod sockets;
mod subject;
mod words;

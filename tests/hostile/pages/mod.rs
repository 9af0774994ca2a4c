//! Hostile peers: the subject gets typed errors or bounded messages, in time and with bounded CPU, and its other connections
//! are not disturbed.
//!
//! ```text
//!   test process ── starts ──▶ subject process ── starts ──▶ attacker process
//!     wants exit code 0          a listener, and beside it     does the handshake by hand, then
//!                                a well-formed pair            writes to the pages and the socket
//! ```
//!
//! The subject is a process of its own, since a failure might end it with a signal.
//!
//! | module | the peer |
//! |---|---|
//! | `scribbles` | writes anything anywhere, zeroes whole pages |
//! | `words` | writes each value of a list to each word of the region, one at a time |
//! | `flips` | changes what is being read between two values, as fast as it can |
//! | `sleepers` | clears the flags of the subject, wakes and moves its sleepers, adds waiters of its own |
//! | `sockets` | floods, resizes, opens half connections, stops itself |
//!
//! The tests do not show that there is no other attack (the fuzzers search for one), nor latency under attack, which is not
//! promised. Times are CPU times, which a busy machine does not change. Real time is only limited by what counts as a hang.

#![allow(unsafe_code)]

mod flips;
mod scribbles;
mod sleepers;
mod sockets;
mod subject;
mod words;

//! The workload over a Unix socket, with the same framing as calls over narrows have: several calls at once, items in
//! fragments of at most 64 KiB in turn, windows for streams, cancels by number.
//!
//! As in a program written by hand: a thread that reads for all calls (`client.rs`), or for a connection (`server.rs`), a
//! lock for writing, one `writev` for each fragment (`wire.rs`). A cancel is sent like any other frame, behind the
//! bytes that are in the socket's buffer already.

pub(crate) mod client;
pub(crate) mod server;
mod wire;

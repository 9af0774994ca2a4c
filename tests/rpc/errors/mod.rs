//! Each error of a call, with the server in a process of its own.
//!
//! | module | errors |
//! |---|---|
//! | `answers` | what the server answers: UnknownMethod, WrongKind, Failed, Panicked, ReplyTooLarge |
//! | `limits` | TooLarge, Busy, WouldDeadlock, the window of pushes |
//! | `pending` | calls in flight: order, Timeout, Cancelled, Taken, calls that are dropped |
//! | `ends` | Disconnected, PeerDied, Closed, Forked, ShuttingDown, ProtocolViolation |
//! | `preface` | clients that are rejected, and servers that serve no calls |
//!
//! `deadlocks` shows that nothing hangs in full rings, and `hostile` what hostile peers can do.

mod answers;
mod ends;
mod limits;
mod pending;
mod preface;

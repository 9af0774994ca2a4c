//! Each error of a call, with the server in a process of its own.
//!
//! | module | errors |
//! |---|---|
//! | `answers` | what the server answers: UnknownMethod, WrongKind, Failed, Panicked, ReplyTooLarge |
//! | `limits` | TooLarge, Busy, WouldDeadlock, the window of pushes |
//! | `pending` | calls under way: order, Timeout, Cancelled, Taken, what is dropped |
//! | `ends` | Disconnected, PeerDied, Closed, Forked, ShuttingDown, ProtocolViolated |
//! | `greetings` | who is not let in, and who serves no calls |
//!
//! That nothing hangs in full rings is `call_deadlocks`; what liars can do is `call_hostile`.

mod answers;
mod ends;
mod limits;
mod pending;
mod preface;

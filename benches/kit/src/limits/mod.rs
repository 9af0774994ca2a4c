//! What the hardware and the kernel allow: bounds, as systems beside the others.
//!
//! None of these is a way to send messages that one could use: they have room for one message, no flow control, no
//! end, and trust each other blindly. They say what a message costs at least.

pub mod handover;
pub mod unix;

pub use handover::HandOver;
pub use unix::UnixStreams;

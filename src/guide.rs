//! Patterns: how programs are put together with this library, each with examples that run.
//!
//! | page | for who |
//! |---|---|
//! | [`parent_and_child`] | starts a backend and talks to it, without any path |
//! | [`many_clients`] | serves a path, to several processes at once |
//! | [`reconnect`] | wants to outlive the other process |
//! | [`large_messages`] | sends files, images, whole histories |
//! | [`zero_copy`] | wants to write and read a message where it stands |
//! | [`backpressure`] | must not wait, or must not be flooded |
//! | [`stopping`] | wants to end a program, or a call that takes too long |
//! | [`from_unix_stream`] | has a program over `UnixStream` |
//! | [`from_ipc_channel`] | has a program over the crate `ipc-channel` |
//!
//! The pages stand in `src/guide/` as text; the compiler sees them only where documents are made or tested.

#[doc = include_str!("guide/parent_and_child.md")]
pub mod parent_and_child {}

#[doc = include_str!("guide/many_clients.md")]
pub mod many_clients {}

#[doc = include_str!("guide/reconnect.md")]
pub mod reconnect {}

#[doc = include_str!("guide/large_messages.md")]
pub mod large_messages {}

#[doc = include_str!("guide/zero_copy.md")]
pub mod zero_copy {}

#[doc = include_str!("guide/backpressure.md")]
pub mod backpressure {}

#[doc = include_str!("guide/stopping.md")]
pub mod stopping {}

#[doc = include_str!("guide/from_unix_stream.md")]
pub mod from_unix_stream {}

#[doc = include_str!("guide/from_ipc_channel.md")]
pub mod from_ipc_channel {}

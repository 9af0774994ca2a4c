//! Patterns for programs that use this library, each with tested examples.
//!
//! | page | for programs that |
//! |---|---|
//! | [`parent_and_child`] | start a backend and exchange messages with it, without a path |
//! | [`many_clients`] | serve several processes at a path |
//! | [`reconnect`] | must survive the end of the other process |
//! | [`large_messages`] | send files, images or other large data |
//! | [`zero_copy`] | write and read messages in place, in shared memory |
//! | [`backpressure`] | must not block, or must limit what a peer sends |
//! | [`event_loop`] | have a thread that must not block: a user interface, a game |
//! | [`async_code`] | are async |
//! | [`supervised_backend`] | start a backend again when it has died |
//! | [`stopping`] | must end cleanly, or end a call that takes too long |
//! | [`from_unix_stream`] | use `UnixStream` now |
//! | [`from_ipc_channel`] | use the crate `ipc-channel` now |
//!
//! The pages are Markdown files in `src/guide/`. The compiler reads them only when it builds or tests the
//! documentation.

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

#[doc = include_str!("guide/event_loop.md")]
pub mod event_loop {}

#[doc = include_str!("guide/async.md")]
pub mod async_code {}

#[doc = include_str!("guide/supervised_backend.md")]
pub mod supervised_backend {}

#[doc = include_str!("guide/stopping.md")]
pub mod stopping {}

#[doc = include_str!("guide/from_unix_stream.md")]
pub mod from_unix_stream {}

#[doc = include_str!("guide/from_ipc_channel.md")]
pub mod from_ipc_channel {}

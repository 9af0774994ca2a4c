//! Helpers that the tests of several subjects share. Each test binary includes them, and uses a part.
//!
//! | module | content |
//! |---|---|
//! | `process` | which test this is, and in which role; a second run of it; a process of its own; a watchdog |
//! | `processes` | children, forks, and what a process holds: descriptors, threads, mappings |
//! | `fork_server` | a process that forks subjects and reports how they end |
//! | `messages` | payloads that can be verified, and a partner to exchange them with |
//! | `rings`, `spied` | one direction in private memory; a memory that observes what the ring does |
//! | `raw_sockets` | the handshake by hand: sockets, memory files, seals |
//! | `raw_peer` | a peer that accesses the pages directly |
//! | `calls` | an RPC server in a process of its own, and a peer that writes frames by hand |
//! | `sys` | system calls |
//!
//! `sleeps` is included by the tests that bring an implementation of memory, here and in `src/sys/mapping/`.

#![allow(dead_code, unreachable_pub, unused_imports, unused_macros, unsafe_code)]

pub(crate) mod calls;
pub(crate) mod fork_server;
pub(crate) mod messages;
pub(crate) mod process;
pub(crate) mod processes;
pub(crate) mod raw_peer;
pub(crate) mod raw_sockets;
pub(crate) mod rings;
pub(crate) mod spied;
pub(crate) mod sys;

pub(crate) use messages::*;
pub(crate) use process::*;
pub(crate) use processes::*;
pub(crate) use raw_sockets::*;

/// The folder of the repository.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

//! Death at any moment: of the server, of clients, and at random under load. Also the graceful end, a shutdown.
//!
//! ```text
//!   test process: clients, threads        server process: processes.rs, killed, started again
//!   "alone" process: the server,          clients' processes: calls, streams, uploads; killed
//!     its counts before and after
//! ```
//!
//! | module | what happens |
//! |---|---|
//! | `servers` | the server is killed: every pending call ends, a policy reconnects, nothing is replayed |
//! | `clients` | clients are killed: methods are notified, and nothing of the clients is left, a thousand times |
//! | `shutdown` | the server shuts down gracefully: calls in flight complete, or are cut off in time |
//! | `load` | either side is killed at random points of heavy traffic, 200 times |
//!
//! The tests do not show that no interleaving is missing (the models explore those), nor how fast a death is reported: only the
//! time that counts as a hang is limited.

#![allow(unsafe_code)]

mod clients;
mod load;
mod processes;
mod servers;
mod shutdown;

//! Death at any moment: of the server, of clients, at random under load; and the orderly end, a shutdown.
//!
//! ```text
//!   test process: clients, threads        server process: processes.rs, killed, started again
//!   "alone" process: the server,          clients' processes: calls, streams, uploads; killed
//!     its counts before and after
//! ```
//!
//! | module | what happens |
//! |---|---|
//! | `servers` | the server is killed: every pending call is told, a policy reconnects, nothing is replayed |
//! | `clients` | clients are killed: methods see it, and nothing of them is left, a thousand times |
//! | `shutdown` | the server ends in good order: what is under way comes to its end, or is cut off in time |
//! | `load` | either side is killed at random points of heavy traffic, 200 times |
//!
//! What they do not show: that no interleaving is missing (the models have those), and how fast a death is told;
//! only what counts as hung is limited.

#![allow(unsafe_code)]

mod clients;
mod load;
mod processes;
mod servers;
mod shutdown;

//! The models over the code that ships.

pub(crate) use narrows::internal as code;

#[path = "models/mod.rs"]
pub mod models;

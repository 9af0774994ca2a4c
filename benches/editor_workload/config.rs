//! The configuration of a run, which all of its processes get as one word of JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fault_injection::Fault;
use crate::plan::Plan;
use crate::transport::Transport;

/// The configuration of all processes of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunConfig {
    pub(crate) transport: Transport,
    pub(crate) scope: Scope,
    pub(crate) plan: Plan,
    /// The path of the socket.
    pub(crate) path: PathBuf,
    pub(crate) fault: Option<Fault>,
}

/// All flows, or the chats alone, with their tools, approvals, questions and cancels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Scope {
    Whole,
    Chats,
}

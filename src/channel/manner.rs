//! How a call waits, and how it tells that it failed: for ever, not at all, or until a deadline.
//!
//! A type instead of a value, so that what nearly every message takes has no trace of it.

use super::{RecvFault, SendFault, Wait};
use crate::error::{RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError};

/// A fault, and the length of the message that met it.
pub(super) type Failed = (SendFault, usize);

/// How a call waits, and what its errors are.
pub(super) trait Manner: Copy {
    /// Why a send failed.
    type Send;
    /// Why a receive failed.
    type Recv;

    /// How long it waits.
    fn wait(self) -> Wait;

    /// A fault of a send, as the caller is told.
    fn send_error(failed: Failed) -> Self::Send;

    /// A fault of a receive, as the caller is told.
    fn recv_error(fault: RecvFault) -> Self::Recv;
}

/// Waits until it can be done, or the connection ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocking;

/// Never waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trying;

/// Waits as long as this says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing(pub(super) Wait);

impl Manner for Blocking {
    type Send = SendError;
    type Recv = RecvError;

    fn wait(self) -> Wait {
        Wait::FOREVER
    }

    fn send_error((fault, len): Failed) -> SendError {
        match fault {
            SendFault::TooLarge(max) => SendError::TooLarge { len, max },
            SendFault::Exhausted => SendError::Exhausted,
            SendFault::Ended(ended) => ended.into(),
            // A wait without a deadline ends with room or with the connection.
            SendFault::Full | SendFault::TooLargeToTry => SendError::Closed,
        }
    }

    fn recv_error(fault: RecvFault) -> RecvError {
        match fault {
            RecvFault::BufferTooSmall(needed) => RecvError::BufferTooSmall { needed },
            RecvFault::OutOfMemory(needed) => RecvError::OutOfMemory { needed },
            RecvFault::Ended(ended) => ended.into(),
            // A wait without a deadline ends with a message or with the connection.
            RecvFault::Empty => RecvError::Closed,
        }
    }
}

impl Manner for Trying {
    type Send = TrySendError;
    type Recv = TryRecvError;

    fn wait(self) -> Wait {
        Wait::Never
    }

    fn send_error((fault, len): Failed) -> TrySendError {
        match fault {
            SendFault::Full => TrySendError::Full,
            SendFault::TooLargeToTry => TrySendError::TooLargeToTry { len },
            SendFault::TooLarge(max) => TrySendError::TooLarge { len, max },
            SendFault::Exhausted => TrySendError::Exhausted,
            SendFault::Ended(ended) => ended.into(),
        }
    }

    fn recv_error(fault: RecvFault) -> TryRecvError {
        match fault {
            RecvFault::Empty => TryRecvError::Empty,
            RecvFault::BufferTooSmall(needed) => TryRecvError::BufferTooSmall { needed },
            RecvFault::OutOfMemory(needed) => TryRecvError::OutOfMemory { needed },
            RecvFault::Ended(ended) => ended.into(),
        }
    }
}

impl Manner for Timing {
    type Send = SendTimeoutError;
    type Recv = RecvTimeoutError;

    fn wait(self) -> Wait {
        self.0
    }

    fn send_error((fault, len): Failed) -> SendTimeoutError {
        match fault {
            SendFault::Full | SendFault::TooLargeToTry => SendTimeoutError::Timeout,
            SendFault::TooLarge(max) => SendTimeoutError::TooLarge { len, max },
            SendFault::Exhausted => SendTimeoutError::Exhausted,
            SendFault::Ended(ended) => ended.into(),
        }
    }

    fn recv_error(fault: RecvFault) -> RecvTimeoutError {
        match fault {
            RecvFault::Empty => RecvTimeoutError::Timeout,
            RecvFault::BufferTooSmall(needed) => RecvTimeoutError::BufferTooSmall { needed },
            RecvFault::OutOfMemory(needed) => RecvTimeoutError::OutOfMemory { needed },
            RecvFault::Ended(ended) => ended.into(),
        }
    }
}

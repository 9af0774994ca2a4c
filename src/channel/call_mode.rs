//! How a call waits, and how it tells that it failed: for ever, not at all, or until a deadline.
//!
//! A type instead of a value, so that what nearly every message takes has no trace of it.

use super::{RecvCoreError, SendCoreError, Wait};
use crate::error::{RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError};

/// A fault, and the length of the message that met it.
pub(super) type SendFailure = (SendCoreError, usize);

/// How a call waits, and what its errors are.
pub(super) trait CallMode: Copy {
    /// Why a send failed.
    type Send;
    /// Why a receive failed.
    type Recv;

    /// How long it waits.
    fn wait(self) -> Wait;

    /// A fault of a send, as the caller is told.
    fn send_error(failed: SendFailure) -> Self::Send;

    /// A fault of a receive, as the caller is told.
    fn recv_error(fault: RecvCoreError) -> Self::Recv;
}

/// Waits until it can be done, or the connection ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block;

/// Never waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct NonBlocking;

/// Waits as long as this says.
#[derive(Clone, Copy, Debug)]
pub(super) struct WithDeadline(pub(super) Wait);

impl CallMode for Block {
    type Send = SendError;
    type Recv = RecvError;

    fn wait(self) -> Wait {
        Wait::NO_DEADLINE
    }

    fn send_error((fault, len): SendFailure) -> SendError {
        match fault {
            SendCoreError::TooLarge(max) => SendError::TooLarge { len, max },
            SendCoreError::Exhausted => SendError::Exhausted,
            SendCoreError::Ended(ended) => ended.into(),
            // A wait without a deadline ends with room or with the connection.
            SendCoreError::Full | SendCoreError::TooLargeToTry => SendError::Closed,
        }
    }

    fn recv_error(fault: RecvCoreError) -> RecvError {
        match fault {
            RecvCoreError::BufferTooSmall(needed) => RecvError::BufferTooSmall { needed },
            RecvCoreError::OutOfMemory(needed) => RecvError::OutOfMemory { needed },
            RecvCoreError::Ended(ended) => ended.into(),
            // A wait without a deadline ends with a message or with the connection.
            RecvCoreError::Empty => RecvError::Closed,
        }
    }
}

impl CallMode for NonBlocking {
    type Send = TrySendError;
    type Recv = TryRecvError;

    fn wait(self) -> Wait {
        Wait::Never
    }

    fn send_error((fault, len): SendFailure) -> TrySendError {
        match fault {
            SendCoreError::Full => TrySendError::Full,
            SendCoreError::TooLargeToTry => TrySendError::TooLargeToTry { len },
            SendCoreError::TooLarge(max) => TrySendError::TooLarge { len, max },
            SendCoreError::Exhausted => TrySendError::Exhausted,
            SendCoreError::Ended(ended) => ended.into(),
        }
    }

    fn recv_error(fault: RecvCoreError) -> TryRecvError {
        match fault {
            RecvCoreError::Empty => TryRecvError::Empty,
            RecvCoreError::BufferTooSmall(needed) => TryRecvError::BufferTooSmall { needed },
            RecvCoreError::OutOfMemory(needed) => TryRecvError::OutOfMemory { needed },
            RecvCoreError::Ended(ended) => ended.into(),
        }
    }
}

impl CallMode for WithDeadline {
    type Send = SendTimeoutError;
    type Recv = RecvTimeoutError;

    fn wait(self) -> Wait {
        self.0
    }

    fn send_error((fault, len): SendFailure) -> SendTimeoutError {
        match fault {
            SendCoreError::Full | SendCoreError::TooLargeToTry => SendTimeoutError::Timeout,
            SendCoreError::TooLarge(max) => SendTimeoutError::TooLarge { len, max },
            SendCoreError::Exhausted => SendTimeoutError::Exhausted,
            SendCoreError::Ended(ended) => ended.into(),
        }
    }

    fn recv_error(fault: RecvCoreError) -> RecvTimeoutError {
        match fault {
            RecvCoreError::Empty => RecvTimeoutError::Timeout,
            RecvCoreError::BufferTooSmall(needed) => RecvTimeoutError::BufferTooSmall { needed },
            RecvCoreError::OutOfMemory(needed) => RecvTimeoutError::OutOfMemory { needed },
            RecvCoreError::Ended(ended) => ended.into(),
        }
    }
}

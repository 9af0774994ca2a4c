//! How a call waits and which error type it returns: without a deadline, not at all, or until a deadline.
//!
//! The mode is a type instead of a value, so the fast path, which nearly every message takes, does not carry it.

use super::{RecvCoreError, SendCoreError, Wait};
use crate::error::{
    ConnectionError, RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};

/// A core error, and the length of the message that met it.
pub(super) type SendFailure = (SendCoreError, usize);

/// How a call waits, and which errors it returns.
pub(super) trait CallMode: Copy {
    /// The error of a send.
    type Send;
    /// The error of a receive.
    type Recv;

    /// Returns how long the call waits.
    fn wait(self) -> Wait;

    /// Converts a core error of a send into the error that the caller gets.
    fn send_error(failed: SendFailure) -> Self::Send;

    /// Converts a core error of a receive into the error that the caller gets.
    fn recv_error(fault: RecvCoreError) -> Self::Recv;
}

/// Blocks until the operation is done or the connection ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block;

/// Never blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct NonBlocking;

/// Blocks until the deadline at most.
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
            SendCoreError::Full | SendCoreError::TooLargeToTry => {
                SendError::ConnectionLost(ConnectionError::Closed)
            }
        }
    }

    fn recv_error(fault: RecvCoreError) -> RecvError {
        match fault {
            RecvCoreError::BufferTooSmall(needed) => RecvError::BufferTooSmall { needed },
            RecvCoreError::OutOfMemory(needed) => RecvError::OutOfMemory { needed },
            RecvCoreError::Ended(ended) => ended.into(),
            // A wait without a deadline ends with a message or with the connection.
            RecvCoreError::Empty => RecvError::ConnectionLost(ConnectionError::Closed),
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
            SendCoreError::Full => TrySendError::WouldBlock,
            SendCoreError::TooLargeToTry => TrySendError::TooLargeToTry { len },
            SendCoreError::TooLarge(max) => TrySendError::TooLarge { len, max },
            SendCoreError::Exhausted => TrySendError::Exhausted,
            SendCoreError::Ended(ended) => ended.into(),
        }
    }

    fn recv_error(fault: RecvCoreError) -> TryRecvError {
        match fault {
            RecvCoreError::Empty => TryRecvError::WouldBlock,
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

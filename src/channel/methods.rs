//! The families of methods: each operation as it blocks, as it never blocks, with a timeout and
//! with a deadline. One macro each, so that all of them say and do the same. What stands behind the
//! names is the example of the first.

/// `send`, `try_send`, `send_timeout`, `send_deadline`, over an inner method that takes a
/// `CallMode`.
macro_rules! send_family {
    (
        $(#[$doc:meta])*
        $inner:ident [$($this:tt)+] ($($arg:ident: $ty:ty),*) -> $ok:ty;
        $name:ident, $try_name:ident, $timeout_name:ident, $deadline_name:ident
        $(; $(#[$example:meta])+)?
    ) => {
        $(#[$doc])*
        $($(#[$example])+)?
        ///
        /// Blocks while there is no room, until the peer makes some, closes or dies, or until this
        /// end is closed.
        ///
        /// # Errors
        ///
        /// [`SendError`]: nothing of the message will be delivered.
        #[inline]
        pub fn $name($($this)+, $($arg: $ty),*) -> Result<$ok, SendError> {
            send_family!(@self $($this)+).$inner($($arg,)* Block)
        }

        $(#[$doc])*
        ///
        /// Never blocks.
        ///
        /// # Errors
        ///
        /// [`TrySendError`]: nothing of the message will be delivered.
        #[inline]
        pub fn $try_name($($this)+, $($arg: $ty),*) -> Result<$ok, TrySendError> {
            send_family!(@self $($this)+).$inner($($arg,)* NonBlocking)
        }

        $(#[$doc])*
        ///
        /// Blocks for at most `timeout`; one too long for the clock is for ever, one of zero does
        /// not block.
        ///
        /// # Errors
        ///
        /// [`SendTimeoutError`]: nothing of the message will be delivered.
        #[inline]
        pub fn $timeout_name($($this)+, $($arg: $ty,)* timeout: Duration) -> Result<$ok, SendTimeoutError> {
            send_family!(@self $($this)+).$inner($($arg,)* WithDeadline(Wait::for_duration(timeout)))
        }

        $(#[$doc])*
        ///
        /// Blocks until `deadline` at most.
        ///
        /// # Errors
        ///
        /// [`SendTimeoutError`]: nothing of the message will be delivered.
        #[inline]
        pub fn $deadline_name($($this)+, $($arg: $ty,)* deadline: Instant) -> Result<$ok, SendTimeoutError> {
            send_family!(@self $($this)+).$inner($($arg,)* WithDeadline(Wait::Deadline(Some(deadline))))
        }
    };
    (@self &mut $this:ident) => { $this };
    (@self & $this:ident) => { $this };
}

/// `recv`, `try_recv`, `recv_timeout`, `recv_deadline`, over an inner method that takes a `CallMode`.
macro_rules! recv_family {
    (
        $(#[$doc:meta])*
        $inner:ident [&mut $this:ident] ($($arg:ident: $ty:ty),*) -> $ok:ty;
        $name:ident, $try_name:ident, $timeout_name:ident, $deadline_name:ident
        $(; $(#[$example:meta])+)?
    ) => {
        $(#[$doc])*
        $($(#[$example])+)?
        ///
        /// Blocks until a message comes, until the peer closes or dies, or until this end is closed.
        ///
        /// # Errors
        ///
        /// [`RecvError`]. What the peer had committed before it closed or died is received first.
        #[inline]
        pub fn $name(&mut $this, $($arg: $ty),*) -> Result<$ok, RecvError> {
            $this.$inner($($arg,)* Block)
        }

        $(#[$doc])*
        ///
        /// Never blocks.
        ///
        /// # Errors
        ///
        /// [`TryRecvError`]. What the peer had committed before it closed or died is received first.
        #[inline]
        pub fn $try_name(&mut $this, $($arg: $ty),*) -> Result<$ok, TryRecvError> {
            $this.$inner($($arg,)* NonBlocking)
        }

        $(#[$doc])*
        ///
        /// Blocks for at most `timeout`; one too long for the clock is for ever, one of zero does
        /// not block.
        ///
        /// # Errors
        ///
        /// [`RecvTimeoutError`]; a deadline in the middle of a long message loses nothing.
        #[inline]
        pub fn $timeout_name(&mut $this, $($arg: $ty,)* timeout: Duration) -> Result<$ok, RecvTimeoutError> {
            $this.$inner($($arg,)* WithDeadline(Wait::for_duration(timeout)))
        }

        $(#[$doc])*
        ///
        /// Blocks until `deadline` at most.
        ///
        /// # Errors
        ///
        /// [`RecvTimeoutError`]; a deadline in the middle of a long message loses nothing.
        #[inline]
        pub fn $deadline_name(&mut $this, $($arg: $ty,)* deadline: Instant) -> Result<$ok, RecvTimeoutError> {
            $this.$inner($($arg,)* WithDeadline(Wait::Deadline(Some(deadline))))
        }
    };
}

//! Blocks all signals for a thread while a guard exists.
//!
//! # Invariants
//!
//! 1. Dropping the guard restores the mask from before, on every code path.
//!
//! # Proof
//!
//! Unit test below.

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;

use super::syscall_error;

/// Every signal is blocked for this thread, and for threads that it starts, until this is dropped.
pub(crate) struct Blocked {
    before: libc::sigset_t,
    // The mask belongs to this thread: another thread must not restore it.
    not_send: PhantomData<*const ()>,
}

/// Blocks every signal for the calling thread.
///
/// # Errors
///
/// The error of `pthread_sigmask`.
pub(crate) fn block_all() -> io::Result<Blocked> {
    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initialises the set that it is given, and `pthread_sigmask` reads that
    // one and, if it returns 0, initialises the other.
    let before = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        let code = libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        if code != 0 {
            return Err(syscall_error::named("pthread_sigmask", io::Error::from_raw_os_error(code)));
        }
        before.assume_init()
    };
    Ok(Blocked { before, not_send: PhantomData })
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: `before` is a set that the kernel returned, and the null pointer means that the old set is not
        // stored. The call cannot fail: the operation is valid.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(signal: i32) -> bool {
        let mut now = MaybeUninit::uninit();
        // SAFETY: no new set is given, so the call only initialises `now`.
        unsafe {
            assert_eq!(libc::pthread_sigmask(0, ptr::null(), now.as_mut_ptr()), 0);
            libc::sigismember(now.as_ptr(), signal) == 1
        }
    }

    #[test]
    fn signals_are_blocked_while_the_guard_exists() {
        assert!(!blocked(libc::SIGUSR1));
        let guard = block_all().expect("blocks");
        assert!(blocked(libc::SIGUSR1) && blocked(libc::SIGTERM));
        assert!(std::thread::spawn(|| blocked(libc::SIGUSR1)).join().expect("joins"));
        drop(guard);
        assert!(!blocked(libc::SIGUSR1));
    }
}

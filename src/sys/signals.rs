//! A span of code in which this thread takes no signal.
//!
//! # Invariants
//!
//! 1. The mask that was there before comes back when the guard goes, on every path.
//!
//! # Proof
//!
//! Unit test below.

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;

use super::syscall_error;

/// Blocks every signal for this thread, and for threads that it starts, until it is dropped.
pub(crate) struct Blocked {
    before: libc::sigset_t,
    // The mask is this thread's: restoring it elsewhere would be wrong.
    not_send: PhantomData<*const ()>,
}

/// Blocks every signal for the calling thread.
///
/// # Errors
///
/// Whatever `pthread_sigmask` answers.
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
        // SAFETY: `before` is a set that the kernel gave us, and no old one is asked for. It
        // cannot fail: the operation is a known one.
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
    fn signals_are_blocked_for_as_long_as_the_guard_lives() {
        assert!(!blocked(libc::SIGUSR1));
        let guard = block_all().expect("blocks");
        assert!(blocked(libc::SIGUSR1) && blocked(libc::SIGTERM));
        assert!(std::thread::spawn(|| blocked(libc::SIGUSR1)).join().expect("joins"));
        drop(guard);
        assert!(!blocked(libc::SIGUSR1));
    }
}

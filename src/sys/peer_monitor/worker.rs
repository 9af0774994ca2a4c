//! The handle of the monitor's thread.

use std::thread::JoinHandle;

/// The monitor's thread, and how often it was started.
#[derive(Debug, Default)]
pub(super) struct Worker {
    thread: Option<JoinHandle<()>>,
    starts: u32,
}

impl Worker {
    /// Returns how often a thread was started.
    pub(super) fn starts(&self) -> u32 {
        self.starts
    }

    /// Records a thread that was started.
    pub(super) fn started(&mut self, thread: JoinHandle<()>) {
        self.thread = Some(thread);
        self.starts += 1;
    }

    /// Returns whether a thread was started and has not ended. A thread that a filter has killed, without unwinding,
    /// has ended too.
    pub(super) fn is_running(&mut self) -> bool {
        let Some(thread) = &self.thread else { return false };
        if !thread.is_finished() && !has_exited(thread) {
            return true;
        }
        // `has_exited` has joined the thread, or the C library is about to free it. Its handle must not be used again.
        std::mem::forget(self.thread.take());
        false
    }
}

/// Returns whether the thread has ended. It makes no system call: the kernel clears a word of the C library then.
#[cfg(target_env = "gnu")]
fn has_exited(thread: &JoinHandle<()>) -> bool {
    use std::os::unix::thread::JoinHandleExt;
    // SAFETY: the handle was not joined or detached: it is kept, and forgotten as soon as this has succeeded. The null
    // pointer means that the thread's result is not stored.
    unsafe { libc::pthread_tryjoin_np(thread.as_pthread_t(), std::ptr::null_mut()) == 0 }
}

/// Other C libraries do not show whether a thread was killed.
#[cfg(not(target_env = "gnu"))]
fn has_exited(_thread: &JoinHandle<()>) -> bool {
    false
}

/// Keeps the shared object that contains this code mapped until the calling thread has ended: a C library does not
/// unload an object while a thread has still to run a destructor of it.
pub(super) fn keep_code_mapped() {
    struct Due;
    impl Drop for Due {
        fn drop(&mut self) {}
    }
    thread_local! {
        static DUE: Due = const { Due };
    }
    DUE.with(|_| ());
}

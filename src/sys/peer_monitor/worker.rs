//! The monitor's thread, as its starter knows it.

use std::thread::JoinHandle;

/// The thread.
#[derive(Debug, Default)]
pub(super) struct Worker {
    thread: Option<JoinHandle<()>>,
    starts: u32,
}

impl Worker {
    /// How often a thread was started.
    pub(super) fn starts(&self) -> u32 {
        self.starts
    }

    /// Notes a thread that was started.
    pub(super) fn started(&mut self, thread: JoinHandle<()>) {
        self.thread = Some(thread);
        self.starts += 1;
    }

    /// Whether a thread was started and has not ended, also not by a kill that unwound nothing.
    pub(super) fn is_running(&mut self) -> bool {
        let Some(thread) = &self.thread else { return false };
        if !thread.is_finished() && !has_exited(thread) {
            return true;
        }
        // Joined below by `has_exited`, or about to be unmapped: its handle must not be used again.
        std::mem::forget(self.thread.take());
        false
    }
}

/// Whether the kernel has ended the thread. It makes no system call: the kernel clears a word of the C library.
#[cfg(target_env = "gnu")]
fn has_exited(thread: &JoinHandle<()>) -> bool {
    use std::os::unix::thread::JoinHandleExt;
    // SAFETY: the handle was not joined or detached: it is kept, and forgotten as soon as this has succeeded. The thread's
    // result, a pointer, is not asked for.
    unsafe { libc::pthread_tryjoin_np(thread.as_pthread_t(), std::ptr::null_mut()) == 0 }
}

/// Other C libraries do not tell a thread that was killed from one that lives.
#[cfg(not(target_env = "gnu"))]
fn has_exited(_thread: &JoinHandle<()>) -> bool {
    false
}

/// Keeps the shared object that this code stands in mapped until the calling thread has ended: a C library does not
/// unload an object while a destructor of it is due.
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

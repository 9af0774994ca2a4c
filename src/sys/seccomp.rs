//! Checks whether a seccomp filter restricts the system calls of this thread.
//!
//! A filter may kill the process, or the thread, for a call that it does not know. So the library leaves out optional
//! calls that programs rarely make while a filter is in force.
//!
//! # Proof
//!
//! The test below; `tests/stream/peer_monitor.rs` runs connections under filters that kill.

/// Returns whether a filter is in force for the calling thread. Unknown counts as yes.
pub(crate) fn filter_in_force() -> bool {
    // SAFETY: takes numbers only. The standard library sets thread names by the same system call, so a filter that
    // permits threads to start permits it.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::in_child;

    #[test]
    fn a_filter_is_seen_once_it_is_in_force() {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("readable");
        let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(str::trim);
        assert_eq!(filter_in_force(), mode != Some("0"));
        in_child(|| {
            // One instruction: every call is allowed.
            let mut allow = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
            let program = libc::sock_fprog { len: 1, filter: &mut allow };
            // SAFETY: the kernel copies the one instruction, a live local.
            unsafe {
                assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
                assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
            }
            assert!(filter_in_force());
        });
    }
}

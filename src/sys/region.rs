//! Mapped memory, either of a memfd that two processes share, or private to this process.
//!
//! # Invariants
//!
//! 1. The length is the requested one, and is never read from the file.
//! 2. A fork does not inherit the range (`MADV_DONTFORK`): an access there crashes the child, which can never become a
//!    second writer.
//! 3. So in a forked child the range may belong to another mapping by now, and dropping the region there unmaps
//!    nothing.
//! 4. This type makes no reference into the range: it only returns the pointer [`Region::base`].
//!
//! # Proof
//!
//! Tests below, with forks.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

#[cfg(test)]
use memmap2::MmapMut;
use memmap2::{Advice, MmapOptions, MmapRaw};

use super::fork_guard::ForkGuard;
use super::memfd;
use super::syscall_error;

/// A range of mapped memory, readable and writable.
#[derive(Debug)]
pub(crate) struct Region {
    map: ManuallyDrop<MmapRaw>,
    /// The inode number of the file, if there is one.
    inode: Option<u64>,
    fork_guard: ForkGuard,
}

impl Region {
    /// Maps the first `len` bytes of the file, shared with all other processes that map it. The descriptor can be
    /// closed afterwards.
    ///
    /// The caller has verified that the file has this size and cannot shrink: see [`super::memfd::verify`].
    ///
    /// # Errors
    ///
    /// `len` is 0, or a system call failed.
    pub(crate) fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let len = not_empty(len)?;
        let map = MmapOptions::new().len(len).map_raw(&fd);
        let map = map.map_err(|e| syscall_error::named("mmap", e))?;
        failpoint!("mmap");
        let mut region = Self::of(map)?;
        region.inode = memfd::inode(fd);
        Ok(region)
    }

    /// Returns the inode number of the mapped file. Both ends of a connection have the same.
    pub(crate) fn inode(&self) -> Option<u64> {
        self.inode
    }

    /// Maps `len` zero bytes of private memory.
    ///
    /// # Errors
    ///
    /// `len` is 0, or a system call failed.
    #[cfg(test)]
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let map = MmapMut::map_anon(not_empty(len)?);
        Self::of(map.map_err(|e| syscall_error::named("mmap", e))?.into())
    }

    /// Returns a pointer to the first byte.
    #[inline]
    pub(crate) fn base(&self) -> NonNull<u8> {
        // SAFETY: `of` refused a mapping at address 0.
        unsafe { NonNull::new_unchecked(self.map.as_mut_ptr()) }
    }

    /// Returns the number of bytes in the range.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Allocates all the memory now, so that a lack of it is an error here and does not get the process killed later.
    ///
    /// # Errors
    ///
    /// There is not enough memory, or the kernel is older than 5.14.
    pub(crate) fn prefault(&self) -> io::Result<()> {
        self.map.advise(Advice::PopulateWrite).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => {
                io::Error::new(io::ErrorKind::Unsupported, "prefault needs Linux 5.14 (MADV_POPULATE_WRITE)")
            }
            _ => syscall_error::named("madvise(MADV_POPULATE_WRITE)", error),
        })
    }

    fn of(map: MmapRaw) -> io::Result<Self> {
        if map.as_mut_ptr().is_null() {
            return Err(io::Error::other("the kernel mapped the memory at address 0"));
        }
        map.advise(Advice::DontFork).map_err(|e| syscall_error::named("madvise(MADV_DONTFORK)", e))?;
        // Messages should not be in a core dump. A failure does no harm.
        let _ = map.advise(Advice::DontDump);
        // If huge pages for shared memory are enabled for all files (`shmem_enabled` = always, within_size or force),
        // the first write would allocate 2 MiB. A kernel built without huge pages returns EINVAL, which does no harm.
        let _ = map.advise(Advice::NoHugePage);
        failpoint!("madvise");
        Ok(Self { inode: None, fork_guard: ForkGuard::new()?, map: ManuallyDrop::new(map) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.fork_guard.same_process() {
            // SAFETY: dropped here only, and `self.map` is not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.map) };
            failpoint!("munmap");
        }
    }
}

static_assertions::assert_impl_all!(Region: Send, Sync);

fn not_empty(len: usize) -> io::Result<usize> {
    if len == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an empty mapping"));
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memfd;
    use crate::sys::testing::{fork, in_child};
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicU64, Ordering};

    const LEN: usize = 64 << 10;

    fn word(region: &Region, at: usize) -> &AtomicU64 {
        assert!(at % 8 == 0 && at + 8 <= region.len());
        // SAFETY: aligned and inside the mapping, which outlives the reference.
        unsafe { AtomicU64::from_ptr(region.base().as_ptr().add(at).cast()) }
    }

    fn shared() -> (std::os::fd::OwnedFd, Region) {
        let fd = memfd::create(LEN).expect("memfd");
        memfd::seal_size(fd.as_fd()).expect("seals");
        let region = Region::map(fd.as_fd(), LEN).expect("maps");
        (fd, region)
    }

    #[test]
    fn two_mappings_of_a_file_are_the_same_memory() {
        let (fd, one) = shared();
        let two = Region::map(fd.as_fd(), LEN).expect("maps");
        drop(fd);
        assert_ne!(one.base(), two.base());
        word(&one, LEN - 8).store(7, Ordering::Relaxed);
        assert_eq!(word(&two, LEN - 8).load(Ordering::Relaxed), 7);
        assert_eq!((one.len(), two.len()), (LEN, LEN));
    }

    #[test]
    fn an_anonymous_region_is_zero_and_can_be_prefaulted() {
        let region = Region::anonymous(LEN).expect("maps");
        region.prefault().expect("prefaults");
        assert_eq!(word(&region, 0).load(Ordering::Relaxed), 0);
        let (_fd, region) = shared();
        region.prefault().expect("prefaults");
    }

    #[test]
    fn an_empty_mapping_is_refused() {
        let (fd, _region) = shared();
        assert!(Region::map(fd.as_fd(), 0).is_err());
        assert!(Region::anonymous(0).is_err());
    }

    /// Returns the flags of the mapping that begins at this address, from `VmFlags` in `/proc/self/smaps`.
    fn flags_of(base: usize) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&format!("{base:x}-")));
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).expect("the mapping");
        flags.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_region_is_never_backed_by_huge_pages() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            println!("skipped: this kernel has no transparent huge pages");
            return;
        }
        let (_fd, region) = shared();
        let flags = flags_of(region.base().as_ptr() as usize);
        assert!(flags.iter().any(|flag| flag == "nh"), "{flags:?}");
    }

    #[test]
    fn a_fork_does_not_see_the_range() {
        let region = Region::anonymous(LEN).expect("maps");
        word(&region, 0).store(1, Ordering::Relaxed);
        let touched = fork(|| i32::from(word(&region, 0).load(Ordering::Relaxed) == 1));
        assert_eq!(touched.wait(), -libc::SIGSEGV);
    }

    #[test]
    fn dropping_in_a_fork_unmaps_nothing() {
        let (_fd, region) = shared();
        word(&region, 0).store(5, Ordering::Relaxed);
        let base = region.base().as_ptr();
        let mut region = Some(region);
        in_child(|| {
            // The range is free in the child, which maps memory of its own there.
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let both = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: with this flag the call maps only where no mapping is.
            let own = unsafe { libc::mmap(base.cast(), LEN, both, flags, -1, 0) };
            assert_eq!(own, base.cast());
            drop(region.take());
            // SAFETY: the child has mapped it, and the drop must not have changed that.
            unsafe { base.write_volatile(9) };
        });
        assert_eq!(word(region.as_ref().expect("kept"), 0).load(Ordering::Relaxed), 5);
    }
}

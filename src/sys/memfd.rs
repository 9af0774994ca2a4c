//! The memory of a connection: an unnamed file of fixed size. Once it is sealed, no process can map it for writing or
//! punch holes into it.
//!
//! ```text
//!   server                                  client
//!   create(len)
//!   seal_size     SHRINK | GROW
//!   map, fill ─────── descriptor ─────────▶ verify(len)
//!                                           map
//!                                           seal_mappings   FUTURE_WRITE | SEAL
//!   has_all_seals ◀── one byte ──────────── close
//!   close
//! ```
//!
//! # Invariants
//!
//! 1. A mapping of a descriptor that passed [`verify`] never raises SIGBUS: the file can neither
//!    shrink nor grow, and its size is the one that is mapped.
//! 2. [`verify`] reads the seals *before* the size: in the other order the peer could shrink the
//!    file in between and seal it then.
//! 3. Seals are validated bit by bit: the kernel adds seals of its own (`F_SEAL_EXEC`).
//! 4. [`create`] never gets the process killed by SIGXFSZ: it reads the limit first.
//! 5. Once [`has_all_seals`] holds, a peer that kept a descriptor or a mapping cannot delay an access to the memory.
//!    While a process punches a hole (`fallocate`, `MADV_REMOVE`), other processes that access the range wait. A peer
//!    could prolong that by punching on a thread that seldom runs. The kernel refuses it under `F_SEAL_FUTURE_WRITE`.
//!    It checks the seals under the lock of the file, under which seals are also added: so a punch has either ended
//!    before the seal was added, or is refused.
//! 6. Only [`seal_mappings`] takes that lock, and so may block on a peer that punches. The server never calls it: it
//!    reads the seals, which takes no lock. If the server added them itself, a client could delay `accept`.
//!
//! # Proof
//!
//! The tests below, with a table of all kinds of descriptor, and of the operations that the seals refuse.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::syscall_error;

/// Makes an unnamed file of `len` zero bytes that can be sealed. Pages are allocated on first access.
///
/// # Errors
///
/// `len` exceeds RLIMIT_FSIZE, or the system call that the error names failed.
pub(crate) fn create(len: usize) -> io::Result<OwnedFd> {
    within_file_limit(len)?;
    let fd = create_empty()?;
    let size = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: changes the size of a file that no other code knows yet, within the limit.
    syscall_error::check("ftruncate", unsafe { libc::ftruncate(fd.as_raw_fd(), size) })?;
    Ok(fd)
}

/// Fixes the size of the file permanently.
///
/// # Errors
///
/// The system call that the error names failed, or the seals did not hold.
pub(crate) fn seal_size(fd: BorrowedFd<'_>) -> io::Result<()> {
    add_seals(fd, SIZE)
}

/// Forbids new writable mappings, writes, holes and further seals permanently. Existing mappings continue to work.
/// Blocks while a peer punches a hole.
///
/// # Errors
///
/// The system call that the error names failed, or the seals did not hold.
pub(crate) fn seal_mappings(fd: BorrowedFd<'_>) -> io::Result<()> {
    add_seals(fd, MAPPINGS).map_err(|error| match syscall_error::errno(&error) {
        Some(libc::EINVAL) => {
            let text = "the memory cannot be sealed: F_SEAL_FUTURE_WRITE needs Linux 5.1";
            io::Error::new(io::ErrorKind::Unsupported, text)
        }
        _ => error,
    })
}

/// Returns whether size and mappings are sealed. Never blocks.
///
/// # Errors
///
/// The system call that the error names failed.
pub(crate) fn has_all_seals(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let all = SIZE | MAPPINGS;
    Ok(seals(fd)? & all == all)
}

/// Why a descriptor from a peer is not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadMemfd {
    /// The file does not support seals: a regular file, a pipe, a socket, a device.
    NotSealable,
    /// The size is not fixed.
    MissingSeals,
    /// The file is sealed against writing.
    WriteSealed,
    /// No seals can be added.
    Final,
    /// The size is not the negotiated one.
    WrongSize {
        /// Bytes that it has.
        is: u64,
        /// Bytes that it should have.
        should: u64,
    },
    /// Not a file.
    NotRegular,
    /// The file is not of ordinary pages, but of huge pages, for example.
    NotTmpfs,
    /// A system call failed with this number.
    Os(i32),
}

impl fmt::Display for BadMemfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSealable => f.write_str("the descriptor is not one that can be sealed"),
            Self::MissingSeals => f.write_str("the size of the memory is not sealed"),
            Self::WriteSealed => f.write_str("the memory is sealed against writing"),
            Self::Final => f.write_str("the memory is sealed against further seals"),
            Self::WrongSize { is, should } => {
                write!(f, "the memory has {is} bytes instead of {should}")
            }
            Self::NotRegular => f.write_str("the descriptor is not a file"),
            Self::NotTmpfs => f.write_str("the memory is not of ordinary pages"),
            Self::Os(errno) => {
                write!(f, "cannot inspect it: {}", io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl std::error::Error for BadMemfd {}

/// Validates that the descriptor can be mapped for `len` bytes and sealed. Never blocks, for any kind of file.
///
/// # Errors
///
/// [`BadMemfd`], the first reason against it.
pub(crate) fn verify(fd: BorrowedFd<'_>, len: usize) -> Result<(), BadMemfd> {
    let seals = seals(fd).map_err(|e| match syscall_error::errno(&e) {
        Some(libc::EINVAL) | None => BadMemfd::NotSealable,
        Some(errno) => BadMemfd::Os(errno),
    })?;
    validate_seals(seals)?;
    validate_file(&stat(fd)?, len)?;
    if file_system(fd)? != TMPFS_MAGIC {
        return Err(BadMemfd::NotTmpfs);
    }
    Ok(())
}

/// The name of the file in `/proc/<pid>/maps`.
const NAME: &CStr = c"narrows";
/// Compared as 64 bits, since the C libraries differ in the type.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const SIZE: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
const MAPPINGS: i32 = libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;
const READ_ONLY: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE;

fn within_file_limit(len: usize) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills the local struct.
    syscall_error::check("getrlimit", unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) })?;
    if limit.rlim_cur != libc::RLIM_INFINITY && len as u64 > limit.rlim_cur {
        let text = format!(
            "the connection needs {len} bytes of memory, and the limit RLIMIT_FSIZE (ulimit -f) \
             allows files of {} bytes",
            limit.rlim_cur
        );
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(())
}

fn create_empty() -> io::Result<OwnedFd> {
    let modern = libc::MFD_CLOEXEC | libc::MFD_NOEXEC_SEAL;
    memfd_create(modern).or_else(|error| match syscall_error::errno(&error) {
        // Before Linux 6.3 the flag that forbids execution is unknown.
        Some(libc::EINVAL) => memfd_create(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING),
        _ => Err(error),
    })
}

fn memfd_create(flags: libc::c_uint) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string; the call makes a new descriptor, which is ours alone.
    unsafe { syscall_error::owned("memfd_create", libc::memfd_create(NAME.as_ptr(), flags)) }
}

fn add_seals(fd: BorrowedFd<'_>, wanted: i32) -> io::Result<()> {
    // SAFETY: takes two numbers, and adds seals to the file.
    let added = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, wanted) };
    syscall_error::check("fcntl(F_ADD_SEALS)", added)?;
    if seals(fd)? & wanted != wanted {
        return Err(io::Error::other("the kernel accepted the seals but did not keep them"));
    }
    Ok(())
}

fn seals(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: only reads the seals.
    syscall_error::check("fcntl(F_GET_SEALS)", unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) })
}

fn validate_seals(seals: i32) -> Result<(), BadMemfd> {
    if seals & SIZE != SIZE {
        return Err(BadMemfd::MissingSeals);
    }
    if seals & READ_ONLY != 0 {
        return Err(BadMemfd::WriteSealed);
    }
    if seals & libc::F_SEAL_SEAL != 0 {
        return Err(BadMemfd::Final);
    }
    Ok(())
}

fn validate_file(stat: &libc::stat, len: usize) -> Result<(), BadMemfd> {
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(BadMemfd::NotRegular);
    }
    let (is, should) = (u64::try_from(stat.st_size).unwrap_or(0), len as u64);
    if is != should {
        return Err(BadMemfd::WrongSize { is, should });
    }
    Ok(())
}

/// Returns the inode number of the file. No other memory file of this machine has it while this one exists.
pub(crate) fn inode(fd: BorrowedFd<'_>) -> Option<u64> {
    stat(fd).ok().map(|stat| stat.st_ino)
}

fn stat(fd: BorrowedFd<'_>) -> Result<libc::stat, BadMemfd> {
    let mut stat = MaybeUninit::uninit();
    // SAFETY: fills the local struct.
    if unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(last());
    }
    // SAFETY: `fstat` succeeded, so it filled the struct.
    Ok(unsafe { stat.assume_init() })
}

fn file_system(fd: BorrowedFd<'_>) -> Result<u64, BadMemfd> {
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: fills the local struct.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(last());
    }
    // SAFETY: `fstatfs` succeeded, so it filled the struct.
    Ok(unsafe { stat.assume_init() }.f_type as u64)
}

fn last() -> BadMemfd {
    BadMemfd::Os(io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::in_child;
    use std::fs::File;
    use std::os::fd::AsFd;

    const LEN: usize = 8192;

    fn memfd(flags: libc::c_uint, len: i64, seals: i32) -> OwnedFd {
        let fd = memfd_create(flags).expect("memfd");
        // SAFETY: sizes and seals a file of our own.
        unsafe {
            assert_eq!(libc::ftruncate(fd.as_raw_fd(), len), 0);
            assert!(seals == 0 || libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) == 0);
        }
        fd
    }

    fn check(fd: &impl AsFd) -> Result<(), BadMemfd> {
        verify(fd.as_fd(), LEN)
    }

    #[test]
    fn what_we_make_passes() {
        let fd = create(LEN).expect("memfd");
        assert_eq!(check(&fd), Err(BadMemfd::MissingSeals));
        seal_size(fd.as_fd()).expect("seals");
        assert_eq!(check(&fd), Ok(()));
        assert!(!has_all_seals(fd.as_fd()).expect("asks"));
        seal_mappings(fd.as_fd()).expect("seals");
        assert!(has_all_seals(fd.as_fd()).expect("asks"));
        assert_eq!(check(&fd), Err(BadMemfd::WriteSealed));
        assert!(seal_size(fd.as_fd()).is_err() && seal_mappings(fd.as_fd()).is_err(), "sealed against seals");
    }

    #[test]
    fn every_other_kind_of_descriptor_is_refused() {
        const SEALABLE: libc::c_uint = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        let some = libc::F_SEAL_SHRINK;
        let wrong = |is| BadMemfd::WrongSize { is, should: LEN as u64 };
        let (reader, _writer) = std::os::unix::net::UnixStream::pair().expect("pair");
        let table: [(OwnedFd, BadMemfd); 11] = [
            (File::open("/proc/self/exe").expect("open").into(), BadMemfd::NotSealable),
            (File::open("/dev/null").expect("open").into(), BadMemfd::NotSealable),
            (reader.into(), BadMemfd::NotSealable),
            (memfd(libc::MFD_CLOEXEC, 8192, 0), BadMemfd::MissingSeals),
            (memfd(SEALABLE, 8192, some), BadMemfd::MissingSeals),
            (memfd(SEALABLE, 8192, libc::F_SEAL_GROW), BadMemfd::MissingSeals),
            (memfd(SEALABLE, 8192, SIZE | libc::F_SEAL_WRITE), BadMemfd::WriteSealed),
            (memfd(SEALABLE, 8192, SIZE | libc::F_SEAL_FUTURE_WRITE), BadMemfd::WriteSealed),
            (memfd(SEALABLE, 8192, SIZE | libc::F_SEAL_SEAL), BadMemfd::Final),
            (memfd(SEALABLE, 4096, SIZE), wrong(4096)),
            (memfd(SEALABLE, 1 << 60, SIZE), wrong(1 << 60)),
        ];
        for (fd, reason) in &table {
            assert_eq!(check(fd), Err(*reason), "{reason}");
        }
    }

    #[test]
    fn seals_and_kinds_are_validated_by_bits() {
        assert_eq!(validate_seals(SIZE | 0x20), Ok(()));
        assert_eq!(validate_seals(SIZE & !libc::F_SEAL_GROW), Err(BadMemfd::MissingSeals));
        let directory = File::open("/").expect("open");
        let stat = stat(directory.as_fd()).expect("stat");
        assert_eq!(validate_file(&stat, LEN), Err(BadMemfd::NotRegular));
    }

    #[test]
    fn huge_pages_are_refused() {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | libc::MFD_HUGETLB;
        let Ok(fd) = memfd_create(flags) else { return };
        // SAFETY: sizes and seals a file of our own. It is never mapped, so it takes no huge page.
        unsafe {
            if libc::ftruncate(fd.as_raw_fd(), 2 << 20) != 0 {
                return;
            }
            assert_eq!(libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, SIZE), 0);
        }
        assert_eq!(verify(fd.as_fd(), 2 << 20), Err(BadMemfd::NotTmpfs));
    }

    #[test]
    fn a_sealed_file_keeps_its_size() {
        let fd = create(LEN).expect("memfd");
        seal_size(fd.as_fd()).expect("seals");
        for len in [0, 4096, 8191, 8193, 1 << 20] {
            // SAFETY: the kernel refuses.
            assert_eq!(unsafe { libc::ftruncate(fd.as_raw_fd(), len) }, -1);
            assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EPERM));
        }
        assert_eq!(check(&fd), Ok(()));
    }

    /// Returns the error number of a call that returned -1, else 0.
    fn number(result: i32) -> i32 {
        if result == -1 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
    }

    #[test]
    fn under_all_seals_nothing_can_be_punched_written_or_mapped() {
        let fd = create(LEN).expect("memfd");
        seal_size(fd.as_fd()).expect("seals");
        let shared = |protection| {
            // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
            let at = unsafe {
                let at =
                    libc::mmap(std::ptr::null_mut(), LEN, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0);
                at.cast::<u64>()
            };
            if at.cast() == libc::MAP_FAILED { Err(number(-1)) } else { Ok(at) }
        };
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let (one, two) = (shared(both).expect("maps"), shared(both).expect("maps"));
        // The operations of a peer that kept a descriptor and a mapping.
        let attempts = || {
            let raw = fd.as_raw_fd();
            let (hole, len) = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 4096);
            // SAFETY: a file and a mapping of this test only, which are read as atomics or not at all.
            unsafe {
                [
                    number(libc::fallocate(raw, hole, 0, len)),
                    number(libc::madvise(one.cast(), 4096, libc::MADV_REMOVE)),
                    number(libc::pwrite(raw, (&raw const len).cast(), 8, 0).try_into().expect("few")),
                ]
            }
        };
        assert_eq!(attempts(), [0, 0, 0], "before");
        seal_mappings(fd.as_fd()).expect("seals");
        assert_eq!(attempts(), [libc::EPERM; 3]);
        assert_eq!(shared(both), Err(libc::EPERM));
        for len in [0, 4096, 1 << 20] {
            // SAFETY: the kernel refuses.
            assert_eq!(number(unsafe { libc::ftruncate(fd.as_raw_fd(), len) }), libc::EPERM);
        }
        let again = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let again = again.expect("opens");
        // SAFETY: the kernel refuses.
        let punched = unsafe {
            libc::fallocate(
                again.as_raw_fd(),
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                0,
                4096,
            )
        };
        assert_eq!(number(punched), libc::EPERM, "also through another descriptor");
        let readable = shared(libc::PROT_READ).expect("reading is allowed");
        // SAFETY: inside of a mapping that only reads; the call can only fail.
        let upgraded = unsafe { libc::mprotect(readable.cast(), LEN, both) };
        assert_eq!(number(upgraded), libc::EACCES);
        // SAFETY: aligned and inside of mappings that stay; the only accesses to this word.
        let (one, two) = unsafe {
            (
                std::sync::atomic::AtomicU64::from_ptr(one.add(64)),
                std::sync::atomic::AtomicU64::from_ptr(two.add(64)),
            )
        };
        one.store(7, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(two.load(std::sync::atomic::Ordering::Relaxed), 7, "existing mappings continue to work");
    }

    #[test]
    fn the_file_is_closed_on_exec_and_not_executable() {
        let fd = create(LEN).expect("memfd");
        // SAFETY: only asks.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC);
        let mode = stat(fd.as_fd()).expect("stat").st_mode;
        let modern = seals(fd.as_fd()).expect("seals") & libc::F_SEAL_EXEC != 0;
        assert!(!modern || mode & 0o111 == 0);
    }

    #[test]
    fn the_limit_of_file_sizes_is_an_error_and_not_a_signal() {
        in_child(|| {
            let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
            // SAFETY: lowers a limit of this child.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
            let error = create(LEN).expect_err("over the limit");
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            assert!(error.to_string().contains("RLIMIT_FSIZE"), "{error}");
            create(4096).expect("at the limit");
        });
    }
}

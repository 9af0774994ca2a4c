//! Whom a connection trusts by default: the same user as the kernel knows it, and nobody whose user it cannot know.

#![allow(unsafe_code)]

mod faults;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use faults::{Fork, Kept, LONG, Watchdog, eventually, me, reach, role, say, sys, told, verdict};
use narrows::{ConnectError, Options, RejectCode, SharedMemoryListener, SharedMemoryStream};

const NOBODY: u32 = 65_534;

/// A folder that every user may use.
fn shared_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("directory");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("changes the mode");
    folder
}

/// Gives up root for a user without any other rights, in a process of one thread.
fn become_user(user: u32) {
    // SAFETY: the calls take numbers, and change this process alone.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setgid(user), 0);
        assert_eq!(libc::setuid(user), 0);
        // Else `/proc/self` belongs to root.
        assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0), 0);
    }
}

/// Enters a user namespace in which the user is `nobody`, and no other user is known.
fn become_nobody_of(user: u32) {
    // SAFETY: takes a number, and changes this process alone.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWUSER) }, 0, "{}", std::io::Error::last_os_error());
    fs::write("/proc/self/uid_map", format!("{NOBODY} {user} 1")).expect("maps");
}

/// Whether this test can make users and namespaces of its own.
fn may_change_users() -> bool {
    // SAFETY: takes a number, and changes the fork alone.
    let may = || i32::from(sys::effective_user() != 0 || unsafe { libc::unshare(libc::CLONE_NEWUSER) } != 0);
    let may = Fork::run(may).wait() == 0;
    if !may {
        say("skipped: only root can change users, and user namespaces have to be allowed");
    }
    may
}

fn serve_one(path: &Path, options: &Options) -> i32 {
    let listener = options.bind(path).expect("binds");
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("changes the mode");
    let accepted = listener.accept_timeout(LONG / 3);
    i32::from(accepted.is_err())
}

#[test]
fn a_client_that_is_nobody_does_not_take_another_users_server_for_its_own() {
    let _watchdog = Watchdog::new("a_client_that_is_nobody_does_not_take_another_users_server_for_its_own");
    if !may_change_users() {
        return;
    }
    let folder = shared_folder();
    let path = folder.path().join("socket");
    let server = Fork::run(|| {
        become_user(2001);
        serve_one(&path, &Options::new().authorize(|_| true))
    });
    assert!(eventually(|| fs::metadata(&path).is_ok_and(|it| it.permissions().mode() & 0o777 == 0o666)));
    let client = Fork::run(|| {
        become_user(2000);
        become_nobody_of(2000);
        match SharedMemoryStream::connect(&path) {
            Err(ConnectError::NotAuthorized { uid: NOBODY }) => 0,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(client.wait(), 0);
    server.kill();
}

#[test]
fn a_server_that_is_nobody_does_not_take_another_users_client_for_its_own() {
    let _watchdog = Watchdog::new("a_server_that_is_nobody_does_not_take_another_users_client_for_its_own");
    if !may_change_users() {
        return;
    }
    let folder = shared_folder();
    let path = folder.path().join("socket");
    let server = Fork::run(|| {
        become_user(2000);
        become_nobody_of(2000);
        serve_one(&path, &Options::new())
    });
    assert!(eventually(|| fs::metadata(&path).is_ok_and(|it| it.permissions().mode() & 0o777 == 0o666)));
    let client = Fork::run(|| {
        become_user(2001);
        match Options::new().authorize(|_| true).connect(&path) {
            Err(ConnectError::Rejected { code: RejectCode::NotAuthorized, .. }) => 0,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(client.wait(), 0);
    server.kill();
}

#[test]
fn nobody_is_a_user_like_others_where_every_user_is_mapped() {
    let _watchdog = Watchdog::new("nobody_is_a_user_like_others_where_every_user_is_mapped");
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if sys::effective_user() != 0 || map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"] {
        return say("skipped: not root, or in a user namespace");
    }
    let folder = shared_folder();
    let path = folder.path().join("socket");
    let server = Fork::run(|| {
        become_user(NOBODY);
        serve_one(&path, &Options::new())
    });
    let client = Fork::run(|| {
        become_user(NOBODY);
        assert_eq!(reach(&path, &Options::new()).peer_cred().uid(), NOBODY);
        0
    });
    assert_eq!((client.wait(), server.wait()), (0, 0));
}

/// fakeroot and proot answer `geteuid` with 0; the kernel's word is another.
#[test]
fn a_faked_user_does_not_hide_the_own_one() {
    const NAME: &str = "a_faked_user_does_not_hide_the_own_one";
    if role().is_some() {
        become_user(2000);
        assert_eq!(sys::effective_user(), 0, "the library was not loaded");
        let listener = SharedMemoryListener::bind(Path::new(&told()).join("socket")).expect("binds");
        thread::scope(|scope| {
            let server = scope.spawn(|| listener.accept_timeout(LONG).expect("its own user"));
            let mut stream = SharedMemoryStream::connect(listener.local_path()).expect("its own user");
            stream.send(b"x").expect("sends");
            assert_eq!(verdict(&mut server.join().expect("ends")), Ok(1));
        });
        return;
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = shared_folder();
    let (source, library) = (folder.path().join("fake.c"), folder.path().join("fake.so"));
    fs::write(&source, "int geteuid(void) { return 0; } int getuid(void) { return 0; }").expect("writes");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    if sys::effective_user() != 0 || !built.is_ok_and(|status| status.success()) {
        return say("skipped: not root, or no C compiler");
    }
    let mut command = me(NAME, "faked", folder.path().to_str().expect("plain"));
    let status = Kept::start(command.env("LD_PRELOAD", &library)).wait();
    assert!(status.success(), "{status}");
}

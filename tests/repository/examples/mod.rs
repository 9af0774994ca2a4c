//! The examples, run as a newcomer runs them: real pairs of processes, interrupted and killed.
//!
//! `cargo test` builds the examples beside the tests. `cargo test --test examples` alone does not: then
//! they are built here if they are missing, and are as old as they are if not.

mod calls;
mod run;

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use narrows::{ConnectionError, RecvError, SharedMemoryStream};
use run::{Ending, PATIENCE, Run, child_of, example, is_running, signal, within_patience};
use tempfile::TempDir;

#[test]
fn ping_pong_prints_a_row_for_each_size() {
    let run = Run::start(ping_pong(&["--sizes", "0,8,1KiB,3MiB", "--millis", "20"]));
    let (status, output) = run.end();
    assert!(status.success(), "{output}");
    for row in ["  0 B ", "  8 B ", "  1 KiB ", "  3 MiB "] {
        assert!(output.contains(row), "{output}");
    }
}

#[test]
fn ping_pong_waits_in_every_way() {
    for wait in ["park", "adaptive", "spin"] {
        let run = Run::start(ping_pong(&["--sizes", "64,300KiB", "--millis", "20", "--wait", wait]));
        let (status, output) = run.end();
        assert!(status.success(), "{wait}: {output}");
    }
}

#[test]
fn ping_pong_fails_on_a_wrong_bit() {
    let run = Run::start(ping_pong(&["--sizes", "64", "--millis", "20", "--spoil"]));
    let (status, output) = run.end();
    assert!(!status.success(), "{output}");
    assert!(output.contains("is not what was sent"), "{output}");
}

#[test]
fn ping_pong_fails_when_the_second_process_dies() {
    let rows = vec!["8"; 1000].join(",");
    let run = Run::start(ping_pong(&["--sizes", &rows, "--millis", "100"]));
    let second = within_patience("a second process", || child_of(run.child.id()));
    // The first row shows that the second process has finished its handshake, so it knows our process.
    within_patience("a row", || run.output().contains("8 B").then_some(()));
    signal("-KILL", second);
    let (status, output) = run.end();
    assert!(!status.success(), "{output}");
    assert!(output.contains("the peer's process died"), "{output}");
}

#[test]
fn the_second_process_ends_when_the_first_dies() {
    let rows = vec!["8"; 1000].join(",");
    let run = Run::start(ping_pong(&["--sizes", &rows, "--millis", "100"]));
    let second = within_patience("a second process", || child_of(run.child.id()));
    // The first row shows that the second process has finished its handshake, so it knows our process.
    within_patience("a row", || run.output().contains("8 B").then_some(()));
    signal("-KILL", run.child.id());
    within_patience("the second process's report", || {
        run.output().contains("second process: the peer's process died").then_some(())
    });
    within_patience("the second process's end", || (!is_running(second)).then_some(()));
}

#[test]
fn copy_tree_copies_odd_trees() {
    let folder = TempDir::new().expect("folder");
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    make_odd_tree(&from);
    let (status, output) = Run::start(copy_tree(&from, &to)).end();
    assert!(status.success(), "{output}");
    assert!(output.contains("5 files, 3145738 bytes"), "{output}");
    assert!(output.contains("left out"), "{output}");
    let (mut expected, copied) = (contents(&from), contents(&to));
    expected.retain(|line| !line.starts_with("pipe "));
    assert_eq!(copied, expected);
    for root in [from, to] {
        let removable = Permissions::from_mode(0o755);
        fs::set_permissions(root.join("a/b"), removable).expect("sets");
    }
}

#[test]
fn copy_tree_names_what_is_wrong() {
    let folder = TempDir::new().expect("folder");
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let fails = |word: &str| {
        let (status, output) = Run::start(copy_tree(&from, &to)).end();
        assert!(!status.success() && output.contains(word), "{word}: {output}");
    };
    fails("No such file");
    fs::write(&from, "text").expect("writes");
    fails("is not a directory");
    fs::remove_file(&from).expect("removes");
    fs::create_dir(&from).expect("makes");
    fs::create_dir(&to).expect("makes");
    fs::write(to.join("mine"), "text").expect("writes");
    fails("is not empty");
    assert_eq!(fs::read(to.join("mine")).expect("reads"), b"text");
}

#[test]
fn copy_tree_writes_only_below_its_folder_whatever_the_reader_sends() {
    const DIR: u64 = 1 | 0o755 << 32;
    const FILE: u64 = 2 | 0o644 << 32;
    const LINK: u64 = 5;
    let folder = TempDir::new().expect("folder");
    let absolute = [folder.path().as_os_str().as_bytes(), b"/outside"].concat();
    let escape = [b"link\0".as_slice(), folder.path().as_os_str().as_bytes()].concat();
    let attacks: [&[(u64, &[u8])]; 9] = [
        &[(FILE, b"../outside")],
        &[(FILE, &absolute)],
        &[(DIR, b"..")],
        &[(DIR, b"sub"), (FILE, b"sub/../../outside")],
        &[(LINK, &escape), (FILE, b"link/outside")],
        &[(LINK, b"outside\0../outside"), (FILE, b"outside")],
        &[(FILE, b"")],
        &[(DIR, b".")],
        &[(FILE, b"a\0b")],
    ];
    for (number, attack) in attacks.iter().enumerate() {
        let output = attack_writer(&folder.path().join(format!("to{number}")), attack);
        assert!(["refused", "File exists", "NUL byte"].iter().any(|word| output.contains(word)), "{output}");
        assert!(!folder.path().join("outside").exists(), "{output}");
    }
}

#[test]
fn copy_tree_notices_a_wrong_checksum_and_frames_out_of_order() {
    let folder = TempDir::new().expect("folder");
    let output = attack_writer(&folder.path().join("a"), &[(2, b"file"), (3, b"text"), (4, b"")]);
    assert!(output.contains("the checksum is wrong"), "{output}");
    for (number, kind) in [0, 3, 4, 7, 99].into_iter().enumerate() {
        let output = attack_writer(&folder.path().join(format!("b{number}")), &[(kind, b"text")]);
        assert!(output.contains("out of place"), "{output}");
    }
}

#[test]
fn echo_comes_back_until_the_input_ends() {
    let echo = Echo::start();
    let (status, output) = echo.client.end();
    assert!(status.success() && output.contains("hello\n"), "{output}");
    echo.server.wait_for("the peer closed the connection");
    signal("-INT", echo.server.child.id());
    let (status, output) = echo.server.end();
    assert!(status.success(), "{output}");
    assert!(!echo.folder.path().join("socket").exists());
}

#[test]
fn echo_server_closes_its_connections_when_interrupted() {
    let echo = Echo::start();
    signal("-INT", echo.server.child.id());
    echo.client.wait_for("the server closed the connection");
    let (status, output) = echo.server.end();
    assert!(status.success() && output.contains("this end was closed"), "{output}");
    assert!(!echo.client.end().0.success());
}

#[test]
fn echo_client_learns_of_the_servers_death() {
    let echo = Echo::start();
    signal("-KILL", echo.server.child.id());
    echo.client.wait_for("the peer's process died");
    assert!(!echo.client.end().0.success());
}

#[test]
fn echo_server_learns_how_its_client_went() {
    for (how, word) in [("-INT", "the peer closed the connection"), ("-KILL", "the peer's process died")] {
        let echo = Echo::start();
        signal(how, echo.client.child.id());
        echo.server.wait_for(word);
        assert!(!echo.client.end().0.success());
    }
}

fn ping_pong(args: &[&str]) -> Command {
    let mut command = example("ping_pong");
    command.args(args);
    command
}

fn copy_tree(from: &Path, to: &Path) -> Command {
    let mut command = example("copy_tree");
    command.arg(from).arg(to);
    command
}

/// Returns the error of the writing process for a reader that sends these frames, by tag and bytes.
fn attack_writer(to: &Path, frames: &[(u64, &[u8])]) -> String {
    let mut command = example("copy_tree");
    command.arg("--writer").arg(to);
    let (child, mut stream) = SharedMemoryStream::spawn(command).expect("starts");
    let mut child = Ending(child);
    for (tag, bytes) in frames {
        if stream.send_tagged(bytes, *tag).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let received = stream.recv_into_timeout(&mut answer, PATIENCE).expect("answers");
    assert_eq!(received.tag & 0xff, 8, "not a failure");
    assert_eq!(stream.recv(&mut []), Err(RecvError::ConnectionLost(ConnectionError::Disconnected)));
    let status = within_patience("its end", || child.0.try_wait().expect("waits"));
    assert!(!status.success());
    String::from_utf8_lossy(&answer).into_owned()
}

fn make_odd_tree(root: &Path) {
    fs::create_dir_all(root.join("a/b/c/empty")).expect("makes");
    let odd = OsStr::from_bytes(b"odd \xff\n\"name");
    fs::create_dir(root.join(odd)).expect("makes");
    fs::write(root.join(odd).join(OsStr::from_bytes(b"\xfe")), "odd").expect("writes");
    fs::write(root.join("-empty"), "").expect("writes");
    fs::write(root.join("a/b/program"), "run").expect("writes");
    fs::write(root.join("a/b/secret"), "hush").expect("writes");
    let large: Vec<u8> = (0..3 << 20).map(|i: u32| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    fs::write(root.join("a/large"), large).expect("writes");
    symlink("b/program", root.join("a/link")).expect("links");
    symlink("/nowhere/at all", root.join("dangling")).expect("links");
    let piped = Command::new("mkfifo").arg(root.join("pipe")).status().expect("mkfifo");
    assert!(piped.success());
    let set = |path: &str, mode| {
        fs::set_permissions(root.join(path), Permissions::from_mode(mode)).expect("sets");
    };
    set("a/b/program", 0o755);
    set("a/b/secret", 0o600);
    set("a/b/c/empty", 0o711);
    set("a/b", 0o550);
}

/// Returns a line for each entry below a directory: name, kind, permissions and content.
fn contents(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name() {
        let entry = entry.expect("walks");
        let name = entry.path().strip_prefix(root).expect("below").as_os_str();
        let (kind, mode) = (entry.file_type(), entry.metadata().expect("metadata").permissions().mode());
        let content = match () {
            () if kind.is_symlink() => format!("{:?}", fs::read_link(entry.path()).expect("reads")),
            () if kind.is_file() => {
                format!("{mode:o} {:x}", crc32fast::hash(&fs::read(entry.path()).expect("reads")))
            }
            () => format!("{mode:o}"),
        };
        lines.push(format!("{} {kind:?} {content}", name.as_bytes().escape_ascii()));
    }
    lines
}

/// A server, and a client that has received its first echo.
struct Echo {
    server: Run,
    client: Run,
    folder: TempDir,
}

impl Echo {
    fn start() -> Self {
        let folder = TempDir::new().expect("folder");
        let start = |name: &str| {
            let mut command = example(name);
            command.arg(folder.path().join("socket"));
            Run::start(command)
        };
        let server = start("echo_server");
        server.wait_for("listening");
        let mut client = start("echo_client");
        let input = client.child.stdin.as_mut().expect("piped");
        std::io::Write::write_all(input, b"hello\n").expect("writes");
        client.wait_for("hello\n");
        server.wait_for("came");
        Self { server, client, folder }
    }
}

//! A second implementation of the protocol, `tests/protocol/client.py`, against this library: `docs/protocol.md` and
//! `docs/protocol-calls.md` say enough to write a peer from, and what they say is what this library does.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use narrows::internal::handshake::{Answer, ClientHandshake, HandshakeLimits, ServerHandshake};
use narrows::internal::layout::{Control, Geometry, SlotKind};
use narrows::internal::rpc::wire::{FrameHeader, FrameKind, Settings, VERSION};
use narrows::{HandlerError, Options, ServerHandle, SharedMemoryListener, SharedMemoryServer};

use crate::support::{LONG, ROOT, Watchdog, eventually, log};

/// The numbers of the methods are the client's defaults.
const ECHO: u32 = 1;
const FAIL: u32 = 2;
const WORDS: u32 = 3;
const UPLOAD: u32 = 4;
const DUPLEX: u32 = 5;
const PUSH: u32 = 6;

/// Returns whether the client can run here. It is written in Python, and compiles a few lines of C.
fn can_run() -> bool {
    let runs = |program: &str| {
        let mut command = Command::new(program);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let missing = ["python3", "cc"].into_iter().find(|program| !runs(program));
    missing.inspect(|program| log(&format!("skipped: there is no {program}"))).is_none()
}

/// Runs the client in a mode, and checks that it succeeds. Each of its waits has a deadline.
fn run(mode: &str, path: &Path, options: &str) {
    let mut client = Command::new("python3");
    client.arg("-B").arg(Path::new(ROOT).join("tests/protocol/client.py")).arg(mode).arg(path);
    let output = client.args(options.split_whitespace()).output().expect("runs");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{mode} {options}: {}\n{}", output.status, text.concat());
    assert!(text[0].ends_with("ok   closed\n"), "{mode} {options}: {}", text.concat());
}

/// Starts an RPC server with the methods that the client calls.
fn serve(path: &Path, options: &Options) -> ServerHandle {
    let server = SharedMemoryServer::bind_with(path, options).expect("binds");
    let server = server
        .inline(ECHO, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .method(FAIL, |request, _| Err(HandlerError::new(7, String::from_utf8_lossy(request.bytes()))))
        .streaming(WORDS, |request, chunks| {
            for word in request.bytes().split(|byte| *byte == b' ') {
                chunks.write_chunk(word)?;
            }
            Ok(())
        })
        .upload(UPLOAD, |_, chunks, reply| {
            let received = chunks.collect::<Result<Vec<_>, _>>()?;
            reply.extend(received.join(&b' '));
            Ok(())
        })
        .duplex(DUPLEX, |_, chunks, out| {
            for chunk in chunks {
                out.write_chunk(&chunk?)?;
            }
            Ok(())
        })
        .method(PUSH, |request, _| {
            for word in request.bytes().split(|byte| *byte == b' ') {
                request.connection().push(word)?;
            }
            Ok(())
        });
    server.spawn().expect("serves")
}

/// The sizes of the smallest rings, of small ones, and the client's defaults.
const SIZES: [&str; 3] =
    ["--slots 1 --oob 1 --arena 64 --long 5000", "--slots 2 --oob 2 --arena 512 --long 100000", ""];

#[test]
fn a_client_that_is_written_from_the_specification_exchanges_messages() {
    let _watchdog = Watchdog::new("a_client_that_is_written_from_the_specification_exchanges_messages");
    if !can_run() {
        return;
    }
    // The first tickets: below the number of slots, and great ones.
    for first_ticket in [0, 5, 1 << 62] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let listener = Options::new().first_ticket(first_ticket).bind(&path).expect("binds");
        thread::scope(|scope| {
            scope.spawn(|| SIZES.iter().for_each(|_| echo(&listener)));
            SIZES.iter().for_each(|sizes| run("messages", &path, sizes));
        });
    }
}

/// Accepts a client and sends its messages back until it has closed.
fn echo(listener: &SharedMemoryListener) {
    let mut stream = listener.accept_timeout(LONG).expect("a client comes");
    let mut message = Vec::new();
    while let Ok(received) = stream.recv_into_timeout(&mut message, LONG) {
        stream.send_tagged_timeout(&message, received.tag, LONG).expect("has room in time");
    }
}

#[test]
fn a_client_that_is_written_from_the_specification_calls_each_kind_of_method() {
    let _watchdog =
        Watchdog::new("a_client_that_is_written_from_the_specification_calls_each_kind_of_method");
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let server = serve(&path, &Options::new());
    SIZES.iter().for_each(|sizes| run("echo-calls", &path, sizes));
    // Windows of the client: the smallest one, and ones that no quarter divides.
    for windows in [1024, 1027, 5000] {
        for sizes in &SIZES[1..] {
            run("calls", &path, &format!("{sizes} --stream-window {windows} --push-window {windows}"));
        }
    }
    assert!(eventually(|| server.stats().connections == 0));
    let stats = server.stats();
    assert_eq!((stats.accepted, stats.violated, stats.died), (9, 0, 0));
}

#[test]
fn the_smaller_window_of_both_sides_holds() {
    let _watchdog = Watchdog::new("the_smaller_window_of_both_sides_holds");
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let server = serve(&path, &Options::new().stream_window(2000).push_window(3001));
    run("calls", &path, "--stream-window 1000000 --push-window 1000000");
    assert!(eventually(|| server.stats().connections == 0));
    assert_eq!(server.stats().violated, 0);
}

#[test]
fn a_client_that_is_written_from_the_specification_understands_a_goodbye() {
    let _watchdog = Watchdog::new("a_client_that_is_written_from_the_specification_understands_a_goodbye");
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let server = serve(&path, &Options::new());
    thread::scope(|scope| {
        let client = scope.spawn(|| run("goodbye", &path, ""));
        let calls = || server.connections().len() == 1 && server.stats().calls > 10;
        assert!(eventually(|| calls() || client.is_finished()));
        server.shutdown(LONG);
    });
}

/// Returns bytes as the pages print them, eight in a group.
fn hex(bytes: &[u8], between_groups: &str) -> String {
    let group = |group: &[u8]| group.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    bytes.chunks(8).map(group).collect::<Vec<_>>().join(between_groups)
}

/// Checks that a page prints these bytes, which begin at this offset; rows of zeros may be left out.
#[track_caller]
fn assert_printed(page: &str, from: usize, bytes: &[u8]) {
    for (at, row) in bytes.chunks(16).enumerate().filter(|(_, row)| row.iter().any(|byte| *byte != 0)) {
        let line = format!("{:#06x}  {}  ", from + 16 * at, hex(row, "  "));
        assert!(page.contains(&line), "the page has no line {line}");
    }
}

#[test]
fn the_examples_of_the_specification_are_what_the_library_writes() {
    let page = |name| std::fs::read_to_string(Path::new(ROOT).join("docs").join(name)).expect("a page");
    let (streams, calls) = (page("protocol.md"), page("protocol-calls.md"));

    let geometry = Geometry::new(64, 1 << 20, 16).expect("legal");
    let hello = ClientHandshake::new(geometry, 16 << 20, 0).hello();
    assert_printed(&streams, 0, &hello);
    let hello = ServerHandshake::new(0).feed(&hello).expect("well-formed").expect("whole");
    let limits = HandshakeLimits { geometry, max_message: 16 << 20, first_ticket: 0 };
    assert_printed(&streams, 0, &Answer::Accept(limits.agree(&hello)).encode());
    let control = Control { kind: SlotKind::Inline, abort: false, len: 5, unit: 0 }.encode();
    let slot = [2, control, 7, u64::from_le_bytes(*b"hello\0\0\0")].map(u64::to_le_bytes).concat();
    assert_printed(&streams, geometry.direction(0).slots, &slot);

    let settings =
        |window| Settings { version: VERSION, stream_window: window, push_window: window }.encode();
    let frame = |kind, word, body: &[u8]| [&FrameHeader::new(kind, word).encode()[..], body].concat();
    for frame in [
        frame(FrameKind::Hello, 0, &settings(1024)),
        frame(FrameKind::Accept, 0, &settings(1 << 20)),
        frame(FrameKind::Call, 1, b"hello"),
        frame(FrameKind::Reply, 0, b"HELLO"),
    ] {
        let cell = format!("| `{}` |", hex(&frame, "` `"));
        assert!(calls.contains(&cell), "the page has no cell {cell}");
    }
}

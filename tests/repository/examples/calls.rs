//! The examples that call: a server and a client apart and together, the editor's script, the killed backend.

use std::fs;

use tempfile::TempDir;

use super::run::{Run, child_of, example, signal, within_patience};

#[test]
fn calls_starts_its_own_server() {
    let (status, output) = Run::start(example("calls")).end();
    assert!(status.success(), "{output}");
    for words in ["\"MIND THE TIDE\"", "a chunk: \"word\"", "nothing to sum up", "all replies are right"] {
        assert!(output.contains(words), "{words}: {output}");
    }
    assert!(output.contains("for 1 clients; ShutdownReport { cut_off: 0, running: 0 }"), "{output}");
}

#[test]
fn calls_in_two_processes_that_are_started_apart() {
    let folder = TempDir::new().expect("folder");
    let path = folder.path().join("socket");
    let start = |serve: &[&str]| {
        let mut command = example("calls");
        command.args(serve).arg(&path);
        Run::start(command)
    };
    let server = start(&["serve"]);
    for client in [start(&[]), start(&[])] {
        let (status, output) = client.end();
        assert!(status.success() && output.contains("all replies are right"), "{output}");
    }
    signal("-INT", server.child.id());
    let (status, output) = server.end();
    assert!(status.success() && output.contains("for 2 clients"), "{output}");
    assert!(fs::read_dir(&folder).expect("lists").next().is_none(), "the path is removed");
}

#[test]
fn chat_plays_its_script() {
    let mut command = example("chat");
    command.arg("--script");
    let (status, output) = Run::start(command).end();
    assert!(status.success(), "{output}");
    for words in ["[Whole(33)]", "<what read main.rs found>", "[Cancelled(20)]", "1 answer was cancelled"] {
        assert!(output.contains(words), "{words}: {output}");
    }
}

#[test]
fn chat_cancels_on_a_key() {
    let mut run = Run::start(example("chat"));
    let mut input = run.child.stdin.take().expect("piped");
    std::io::Write::write_all(&mut input, b"\n").expect("writes");
    run.wait_for("found>"); // The first answer of many; without the key it would never end.
    std::io::Write::write_all(&mut input, b"c\n").expect("writes");
    run.wait_for("[Cancelled(");
    drop(input);
    let (status, output) = run.end();
    assert!(status.success(), "{output}");
}

#[test]
fn chat_learns_of_its_backends_death() {
    let mut run = Run::start(example("chat"));
    let mut input = run.child.stdin.take().expect("piped");
    std::io::Write::write_all(&mut input, b"\n").expect("writes");
    run.wait_for("found>");
    let backend = within_patience("a backend", || child_of(run.child.id()));
    signal("-KILL", backend);
    run.wait_for("the peer's process died");
    assert!(!run.end().0.success());
}

#[test]
fn supervisor_sees_its_backend_die_and_come_back() {
    let (status, output) = Run::start(example("supervisor")).end();
    assert!(status.success(), "{output}");
    for waiter in ["a call", "a stream", "an upload", "a wait for pushes"] {
        assert!(
            output.contains(&format!("{waiter} got Err(ConnectionLost(PeerDied))")),
            "{waiter}: {output}"
        );
    }
    assert_eq!(output.matches("lost the connection").count(), 1, "{output}");
    assert!(output.contains("calls under way of methods [1, 2, 3]"), "{output}");
    assert!(output.contains("all as it should be"), "{output}");
}

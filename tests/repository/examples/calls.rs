//! The examples that call: a server and a client apart and together, the editor's script, the killed backend.

use std::fs;

use tempfile::TempDir;

use super::run::{Run, child_of, example, signal, within_patience};

#[test]
fn calls_starts_its_own_server() {
    let (status, said) = Run::start(example("calls")).end();
    assert!(status.success(), "{said}");
    for words in ["\"MIND THE TIDE\"", "a chunk: \"word\"", "nothing to sum up", "all replies are right"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(said.contains("for 1 clients; Drained { cut_off: 0, running: 0 }"), "{said}");
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
        let (status, said) = client.end();
        assert!(status.success() && said.contains("all replies are right"), "{said}");
    }
    signal("-INT", server.child.id());
    let (status, said) = server.end();
    assert!(status.success() && said.contains("for 2 clients"), "{said}");
    assert!(fs::read_dir(&folder).expect("lists").next().is_none(), "the path is removed");
}

#[test]
fn chat_plays_its_script() {
    let mut command = example("chat");
    command.arg("--script");
    let (status, said) = Run::start(command).end();
    assert!(status.success(), "{said}");
    for words in ["[Whole(33)]", "<what read main.rs found>", "[Cancelled(20)]", "1 answer was cancelled"] {
        assert!(said.contains(words), "{words}: {said}");
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
    let (status, said) = run.end();
    assert!(status.success(), "{said}");
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
    let (status, said) = Run::start(example("supervisor")).end();
    assert!(status.success(), "{said}");
    for who in ["a call", "a stream", "an upload", "a wait for pushes"] {
        assert!(said.contains(&format!("{who} got Err(PeerDied)")), "{who}: {said}");
    }
    assert_eq!(said.matches("lost the connection").count(), 1, "{said}");
    assert!(said.contains("calls under way of methods [1, 2, 3]"), "{said}");
    assert!(said.contains("all as it should be"), "{said}");
}

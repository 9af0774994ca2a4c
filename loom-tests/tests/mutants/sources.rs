//! Checks that all orderings of the protocol are in files of which mutants are made.

use std::fs;
use std::path::{Path, PathBuf};

use libtest_mimic::Failed;
use loom_tests::mutated::code::SOURCES;

/// Files that name memory orderings and are not part of the protocol, with the reason.
const OTHERS: [(&str, &str); 14] = [
    ("memory.rs", "names the orderings"),
    ("memory/heap.rs", "implements Memory; the models have their own"),
    ("sys/mapping.rs", "implements Memory; the models have their own"),
    ("sys/mapping/testing.rs", "inspects a memory for tests"),
    (
        "sys/connection.rs",
        "reads the closed flags to choose the close reason of a hang-up; the ring reads them again",
    ),
    ("sys/fork_guard.rs", "publishes a value that exists once in a process; no page of a connection"),
    ("sys/spawn.rs", "a token that is taken once; no page of a connection"),
    ("sys/testing.rs", "ends children of tests after a time"),
    ("sys/threads.rs", "counts the threads of the library; no page of a connection"),
    ("connect/child.rs", "a token that is taken once; no page of a connection"),
    ("listener.rs", "a listener that is closed; no page of a connection"),
    ("rpc/client/reconnect.rs", "whether a thread reconnects in the background; no page of a connection"),
    ("rpc/server/state.rs", "notifies when a server drains, as the models of `streamed.rs` do"),
    ("rpc/server/activity.rs", "notifies when a server drains, as the models of `streamed.rs` do"),
];

/// Orderings of the ring's memory or of atomics, and steps that sleep and wake.
const ORDERINGS: [&str; 17] = [
    "Load::Acquire",
    "Store::Release",
    "Ordering::Acquire",
    "Ordering::Release",
    "Ordering::AcqRel",
    "Ordering::SeqCst",
    "fence(",
    "notify(&self.mem",
    "notify(mem",
    "force_notify(",
    ".arm(",
    ".wake(",
    "take_flag(",
    "store_flag(",
    "set_close_reason(CloseReason",
    ".notify_self()",
    ".notify_driver()",
];

/// Fails if a file has an ordering and is neither mutated nor one of [`OTHERS`].
pub(crate) fn are_complete() -> Result<(), Failed> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    let mut unknown = Vec::new();
    visit(&root, &mut |path| {
        let text = fs::read_to_string(path).expect("a source");
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let name = path.strip_prefix(&root).expect("below it").to_str().expect("plain").to_owned();
        let known = SOURCES.contains(&&*name) || OTHERS.iter().any(|(other, _)| *other == name);
        let tests = name.ends_with("/tests.rs");
        if !known && !tests && ORDERINGS.iter().any(|it| code.contains(it)) {
            unknown.push(name);
        }
    });
    match &unknown[..] {
        [] => Ok(()),
        unknown => Err(format!("no mutants are made of {unknown:?}: see build/main.rs").into()),
    }
}

fn visit(folder: &Path, act: &mut impl FnMut(&PathBuf)) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => visit(&path, act),
            false if path.extension().is_some_and(|end| end == "rs") => act(&path),
            false => {}
        }
    }
}

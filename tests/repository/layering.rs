//! Which modules may import which, and which may use `unsafe` and the system.
//!
//! Reads the sources as tokens: comments, strings and character literals do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::lexer::code;

/// Each top module, and the top modules that it may import. Submodules belong to their top module.
const MAY_IMPORT: [(&str, &[&str]); 16] = [
    ("guide", &[]),
    ("error", &[]),
    ("memory", &[]),
    ("events", &[]),
    ("prometheus", &[]),
    ("layout", &["memory", "error"]),
    ("sys", &["memory", "layout", "error", "events"]),
    ("ring", &["memory", "layout", "error"]),
    ("handshake", &["layout", "error"]),
    ("channel", &["ring", "sys", "error", "memory", "layout", "prometheus"]),
    ("options", &["channel", "handshake", "layout", "sys", "error"]),
    ("connect", &["handshake", "channel", "options", "sys", "layout", "error", "events"]),
    ("stream", &["channel", "connect", "options", "sys", "memory", "error"]),
    ("listener", &["handshake", "connect", "stream", "options", "sys", "error"]),
    (
        "rpc",
        &["stream", "listener", "connect", "channel", "options", "error", "memory", "events", "prometheus"],
    ),
    // The exports for tests: only code outside of the library uses it.
    ("internal", &["channel", "error", "connect", "handshake", "layout", "memory", "ring", "rpc", "sys"]),
];

/// Words that only some top modules may use.
const RESERVED: [(&str, &[&str]); 5] = [
    ("unsafe", &["sys"]),
    ("libc", &["sys"]),
    ("memmap2", &["sys"]),
    ("log", &["events"]),
    ("parking_lot", &["channel", "options", "connect", "stream", "listener", "rpc"]),
];

/// Returns the sources: path, top module (empty for the root), and text.
fn sources() -> Vec<(String, String, String)> {
    let root = Path::new(crate::support::ROOT).join("src");
    let files = walkdir::WalkDir::new(&root).into_iter().map(|entry| entry.expect("readable"));
    let files = files.filter(|entry| entry.path().extension().is_some_and(|end| end == "rs"));
    let found: Vec<_> = files
        .map(|entry| {
            let path = entry.path().strip_prefix(&root).expect("below it").with_extension("");
            let first = path.iter().next().expect("a name").to_str().expect("text").to_owned();
            let top = if first == "lib" { String::new() } else { first };
            (path.display().to_string(), top, fs::read_to_string(entry.path()).expect("text"))
        })
        .collect();
    assert!(found.len() > 40, "the sources have moved");
    found
}

/// Returns the first name after each `crate::`, and each first name of a group.
fn imports(text: &str) -> BTreeSet<String> {
    let tokens = code(text);
    let mut found = BTreeSet::new();
    for at in 0..tokens.len().saturating_sub(3) {
        if tokens[at] != "crate" || tokens[at + 1] != ":" || tokens[at + 2] != ":" {
            continue;
        }
        if at > 0 && tokens[at - 1] == "$" {
            continue; // A path in a macro, which code outside of the library expands as well.
        }
        if tokens[at + 3] == "{" {
            found.extend(group(&tokens[at + 4..]));
        } else {
            found.insert(tokens[at + 3].clone());
        }
    }
    found
}

/// Returns the first name of each element of a group, whose opening brace was read.
fn group(tokens: &[String]) -> Vec<String> {
    let (mut depth, mut fresh, mut found) = (0, true, Vec::new());
    for token in tokens {
        match token.as_str() {
            "{" => depth += 1,
            "}" if depth == 0 => break,
            "}" => depth -= 1,
            "," if depth == 0 => fresh = true,
            name if fresh => {
                found.push(name.to_owned());
                fresh = false;
            }
            _ => {}
        }
    }
    found
}

/// Returns the faults of one source.
fn faults(top: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (word, where_to) in RESERVED {
        if !where_to.contains(&top) && code(text).iter().any(|token| token == word) {
            found.push(format!("`{word}` is not allowed here"));
        }
    }
    if top.is_empty() {
        return found; // The root declares and exports everything.
    }
    let Some((_, may)) = MAY_IMPORT.iter().find(|(name, _)| *name == top) else {
        found.push(format!("no rule for the module {top}"));
        return found;
    };
    for import in imports(text) {
        if import != top && !may.contains(&import.as_str()) {
            found.push(format!("{top} may not import {import}"));
        }
    }
    found
}

#[test]
fn every_source_keeps_the_rules() {
    let found: Vec<String> = sources()
        .iter()
        .flat_map(|(path, top, text)| {
            faults(top, text).into_iter().map(move |fault| format!("src/{path}.rs: {fault}"))
        })
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_table_has_no_circles() {
    let mut left: BTreeMap<&str, &[&str]> = MAY_IMPORT.into_iter().collect();
    while !left.is_empty() {
        let free: Vec<&str> = left
            .iter()
            .filter(|(_, may)| may.iter().all(|name| !left.contains_key(name)))
            .map(|(name, _)| *name)
            .collect();
        assert!(!free.is_empty(), "a circle among {:?}", left.keys());
        for name in free {
            left.remove(name);
        }
    }
}

#[test]
fn a_bad_source_is_detected() {
    let bad = "use crate::{error::{Ended, sys}, listener::Incoming as I, memory};\nlet x = crate::sys::syscall_error();";
    assert_eq!(imports(bad).into_iter().collect::<Vec<_>>(), ["error", "listener", "memory", "sys"]);
    assert_eq!(faults("ring", bad), ["ring may not import listener", "ring may not import sys"]);
    assert_eq!(faults("sys", "use crate::ring::sleep;"), ["sys may not import ring"]);
    assert_eq!(faults("new", "").len(), 1);
    for word in ["unsafe { x() }", "unsafe fn f() {}", "unsafe impl Send for X {}", "libc::getpid()"] {
        assert_eq!(faults("channel", word).len(), 1, "{word}");
        assert_eq!(faults("sys", word).len(), 0, "{word}");
    }
    assert_eq!(faults("ring", "use parking_lot::Mutex;").len(), 1);
}

#[test]
fn comments_and_strings_do_not_count() {
    let fine = r##"
        //! See [`crate::sys`]. unsafe { }
        pub(crate) fn f<'a>(x: &'a str) -> char { /* crate::listener, libc */ '"' }
        const A: &str = "crate::sys unsafe \" libc";
        const B: &str = r#"crate::sys " unsafe"#;
        const C: [char; 3] = ['\'', '\\', 'x'];
        #![allow(unsafe_code)]
        use crate::error::Ended;
        macro_rules! m { () => { $crate::internal::memory::Word } }
    "##;
    assert_eq!(faults("layout", fine), Vec::<String>::new());
    assert_eq!(imports(fine).into_iter().collect::<Vec<_>>(), ["error"]);
}

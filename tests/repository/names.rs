//! Each type and each file has a name of its own, and each function that a comment cites exists.

use std::collections::BTreeMap;
use std::path::Path;

use super::lexer::{Part, code, parts};

/// File names that occur in several layers, with the same meaning in each.
const SAME_FILES: [(&str, &str); 5] = [
    ("connection", "a connection, as the kernel's objects, a client and a server hold it"),
    ("in_flight", "the calls of a connection, as a client and a server keep them"),
    ("stats", "what a layer counts"),
    ("wire", "the bytes of a protocol: the handshake's, and that of calls"),
    ("mod", "the root of a folder"),
];

/// Returns the sources of the library: path and text.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(crate::support::ROOT);
    let files =
        walkdir::WalkDir::new(root.join("src")).into_iter().map(|entry| entry.expect("readable").into_path());
    let found = files.filter(|path| path.extension().is_some_and(|end| end == "rs")).map(|path| {
        let name = path.strip_prefix(root).expect("below it").display().to_string();
        (name, std::fs::read_to_string(&path).expect("text"))
    });
    found.collect()
}

/// Returns the types and traits that a source declares outside of `impl` blocks, traits, functions and test modules.
fn declared(text: &str) -> Vec<String> {
    let code = code(text);
    let (mut found, mut depth, mut at) = (Vec::new(), 0, 0);
    while at < code.len() {
        match code[at].as_str() {
            "mod" if code[..at].ends_with(&["test", ")", "]"].map(str::to_owned)) => break,
            "{" => depth += 1,
            "}" => depth -= 1,
            "struct" | "enum" | "union" | "trait" | "type" if depth == 0 => found.push(code[at + 1].clone()),
            _ => {}
        }
        at += 1;
    }
    found
}

#[test]
fn no_type_name_means_two_things() {
    let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in sources().into_iter().filter(|(path, _)| !path.ends_with("/tests.rs")) {
        for name in declared(&text) {
            by_name.entry(name).or_default().push(path.clone());
        }
    }
    assert!(by_name.len() > 200, "the types have moved");
    by_name.retain(|_, paths| paths.len() > 1);
    assert!(by_name.is_empty(), "declared twice: {by_name:#?}");
}

#[test]
fn no_file_name_means_two_things() {
    let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, _) in sources() {
        let name = Path::new(&path).file_stem().expect("a name").to_str().expect("plain").to_owned();
        by_name.entry(name).or_default().push(path);
    }
    by_name.retain(|name, paths| {
        let tests = name == "tests" || name == "testing"; // Of the file above.
        paths.len() > 1 && !tests && !SAME_FILES.iter().any(|(it, _)| it == name)
    });
    assert!(by_name.is_empty(), "named alike: {by_name:#?}");
}

/// Returns the names that a comment cites in backticks after `pairs with`, as a path or a call: `park`, `Producer::publish`.
fn cited(comment: &str) -> Vec<String> {
    let behind = comment.split("airs with").skip(1).filter_map(|it| it.split(['.', ';']).next());
    let quoted = behind.flat_map(|it| it.split('`').skip(1).step_by(2).collect::<Vec<_>>());
    quoted.map(|it| it.trim_end_matches("()").to_owned()).collect()
}

#[test]
fn every_function_that_a_comment_cites_exists() {
    let sources = sources();
    let functions: Vec<String> = sources
        .iter()
        .flat_map(|(_, text)| {
            let code = code(text);
            code.windows(2).filter(|it| it[0] == "fn").map(|it| it[1].clone()).collect::<Vec<_>>()
        })
        .collect();
    let mut count = 0;
    for (path, text) in &sources {
        // Comments of several lines are one.
        let mut comments: Vec<(usize, String)> = Vec::new();
        for (line, part) in parts(text) {
            let Part::Comment(comment) = part else { continue };
            let comment = comment.trim_start_matches(['/', '!']);
            match comments.last_mut() {
                Some((last, whole)) if *last + 1 == line => {
                    whole.push_str(comment);
                    *last = line;
                }
                _ => comments.push((line, comment.to_owned())),
            }
        }
        for (line, comment) in comments {
            for name in cited(&comment) {
                let function = name.rsplit("::").next().expect("a name");
                let file = Path::new(crate::support::ROOT).join("src").join(&name);
                let known = functions.iter().any(|it| it == function) || file.exists();
                assert!(known, "{path}:{line}: pairs with `{name}`, which does not exist");
                count += 1;
            }
        }
    }
    assert!(count > 10, "{count} citations: too few, so the comments have changed");
}

#[test]
fn declarations_and_citations_are_found() {
    let source = "pub struct A<T>(T); impl X for A { type Item = u8; } fn f() { struct B; } #[cfg(test)] mod tests { struct C; }";
    assert_eq!(declared(source), ["A"]);
    assert_eq!(
        cited(" Release: pairs with the Acquire in `Consumer::take` and `park`. `not`"),
        ["Consumer::take", "park"]
    );
}

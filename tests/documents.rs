//! What the documents name is there: tests, models, fuzz bodies and files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("a document")
}

/// What stands between single backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.starts_with("```"))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

/// The names of all functions of these folders, and of all their files without an ending.
fn names(folders: &[&str]) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = folders.iter().flat_map(|folder| walkdir::WalkDir::new(root.join(folder)));
    let mut found = BTreeSet::new();
    for path in files.map(|entry| entry.expect("readable").into_path()) {
        found.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).expect("a source");
            let behind = text.split("fn ").skip(1);
            found.extend(behind.filter_map(|it| it.split(['(', '<']).next()).map(str::to_owned));
        }
    }
    found
}

#[test]
fn every_test_that_holds_a_promise_is_there() {
    let document = read("SECURITY.md");
    let table =
        document.split("## The promises").nth(1).and_then(|it| it.split("\n## ").next()).expect("a table");
    let known = names(&["tests", "loom-tests/src/models", "src/fuzz"]);
    let mut count = 0;
    for name in quoted(table).iter().flat_map(|it| it.split(": ")) {
        if name.contains('/') {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
            assert!(path.exists(), "SECURITY.md names {name}");
        } else if name != "loom" && name != "fuzz" {
            assert!(known.contains(name), "SECURITY.md names {name}");
        }
        count += 1;
    }
    assert!(count > 50, "the table is not where it was");
}

#[test]
fn every_file_that_a_document_names_is_there() {
    for document in ["README.md", "DESIGN.md", "SECURITY.md", "CONTRIBUTING.md"] {
        for name in quoted(&read(document)) {
            let tops = ["src/", "tests/", "examples/", "fuzz/", "loom-tests/", "benches/", ".ci/"];
            let path = name.split(' ').next().unwrap_or_default();
            if tops.iter().any(|top| path.starts_with(top)) {
                assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists(), "{document} names {name}");
            }
        }
    }
}

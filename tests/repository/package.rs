//! `cargo package` takes the sources, the examples and the documents for users, and nothing else.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// The files at the top of the package. Cargo makes the last four.
const TOPS: [&str; 9] = [
    "CHANGELOG.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "Cargo.toml",
    "Cargo.toml.orig",
    "Cargo.lock",
    ".cargo_vcs_info.json",
];

/// Returns the files of the package, as cargo lists them.
fn packaged() -> BTreeSet<String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["package", "--list", "--allow-dirty", "--package", "narrows"]);
    let output = cargo.current_dir(crate::support::ROOT).output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

/// Returns all files below a folder, as paths from the top.
fn on_disk(folder: &str) -> BTreeSet<String> {
    let root = Path::new(crate::support::ROOT);
    let entries = walkdir::WalkDir::new(root.join(folder)).into_iter().map(|entry| entry.expect("readable"));
    let files = entries.filter(|entry| entry.file_type().is_file());
    files.map(|file| file.path().strip_prefix(root).expect("below it").display().to_string()).collect()
}

#[test]
fn the_package_has_what_users_need_and_nothing_else() {
    let packaged = packaged();
    let mut expected = on_disk("src");
    expected.extend(on_disk("examples"));
    expected.extend(on_disk("docs"));
    let optional = [".cargo_vcs_info.json"]; // Only in a git repository.
    expected.extend(TOPS.map(str::to_owned));
    expected.retain(|path| packaged.contains(path) || !optional.contains(&path.as_str()));
    let surplus: Vec<_> = packaged.difference(&expected).collect();
    let missing: Vec<_> = expected.difference(&packaged).collect();
    assert!(
        surplus.is_empty() && missing.is_empty(),
        "see `include` in Cargo.toml; surplus: {surplus:?}, missing: {missing:?}"
    );
    let odd = |path: &&String| path.starts_with("src/") && !(path.ends_with(".rs") || path.ends_with(".md"));
    assert_eq!(packaged.iter().find(odd), None, "neither source nor guide");
}

//! Every test of the workspace runs: by `cargo test`, which the README gives, or by a command of its own that `.ci/run` gives.
//!
//! | possible gap | checked |
//! |---|---|
//! | a package that `cargo test` leaves out | the default members of the workspace, as cargo tells |
//! | a target that is skipped silently | `test = false`, required features |
//! | a file that belongs to no target | the modules of each test binary |
//! | the test in a child process | a name that no test has is refused, a run alone is counted |

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{ROOT, alone, rerun};

/// The targets that `cargo test` leaves out: the target, the command that runs it, and the file that gives the command.
const ELSEWHERE: [(&str, &str, &str); 6] = [
    ("narrows-tests/crash", "-p narrows-tests --test crash", ".ci/run"),
    ("narrows-tests/endurance", "-p narrows-tests --test endurance", "CONTRIBUTING.md"),
    ("loom-tests/mutants", "-p loom-tests --test mutants", ".ci/run"),
    ("narrows-benches/harness", "cargo test --workspace", ".ci/run"),
    ("narrows-tool/narrows", "cargo test --workspace", ".ci/run"),
    ("narrows-tool/tool", "cargo test --workspace", ".ci/run"),
];

/// Returns cargo's metadata of the workspace.
fn metadata() -> Value {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(ROOT);
    let output = cargo.output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Returns each target with tests as `package/target`, and whether `cargo test` runs it.
fn targets(metadata: &Value) -> Vec<(String, bool)> {
    let default: BTreeSet<&str> = list(&metadata["workspace_default_members"]).iter().map(text).collect();
    let mut found = Vec::new();
    for package in list(&metadata["packages"]) {
        let features = &package["features"];
        let on: BTreeSet<&str> = list(&features["default"]).iter().map(text).collect();
        for target in list(&package["targets"]) {
            let kinds: Vec<&str> = list(&target["kind"]).iter().map(text).collect();
            let may_have_tests = kinds.iter().any(|kind| ["test", "lib", "bin"].contains(kind));
            // The library's unit tests run with all features, in the package of the tests.
            let is_library = text(&package["name"]) == "narrows" && kinds == ["lib"];
            if !may_have_tests || is_library {
                continue;
            }
            let runs = default.contains(text(&package["id"]))
                && target["test"].as_bool() == Some(true)
                && list(&target["required-features"]).iter().all(|feature| on.contains(text(feature)));
            found.push((format!("{}/{}", text(&package["name"]), text(&target["name"])), runs));
        }
    }
    found
}

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).expect("readable")
}

#[test]
fn every_test_target_is_run_by_cargo_test_or_by_a_command_of_its_own() {
    let targets = targets(&metadata());
    for (name, runs) in &targets {
        match ELSEWHERE.iter().find(|(target, ..)| target == name) {
            None => assert!(runs, "`cargo test` does not run {name}, and no other command is named here"),
            Some((_, command, file)) => {
                assert!(!runs, "`cargo test` runs {name} already");
                assert!(read(file).contains(command), "{file} does not have `{command}`, which runs {name}");
            }
        }
    }
    for (target, ..) in ELSEWHERE {
        assert!(targets.iter().any(|(name, _)| name == target), "there is no target {target}");
    }
    assert!(targets.iter().filter(|(_, runs)| *runs).count() >= 10, "{targets:?}");
    let readme = read("README.md");
    assert!(readme.lines().any(|line| line.split('#').next().unwrap_or_default().trim() == "cargo test"));
}

#[test]
fn every_file_of_tests_is_a_module_of_a_target() {
    let folder = Path::new(ROOT).join("tests");
    let files = walkdir::WalkDir::new(&folder).into_iter().map(|entry| entry.expect("readable").into_path());
    let paths = files.filter(|path| path.extension().is_some_and(|end| end == "rs"));
    let sources: Vec<_> = paths.map(|path| (fs::read_to_string(&path).expect("a source"), path)).collect();
    let manifest = read("tests/Cargo.toml");
    for (_, path) in &sources {
        let name = path.strip_prefix(&folder).expect("below it").to_str().expect("plain");
        let module = path.to_str().and_then(|path| path.strip_suffix("/mod.rs"));
        let module = module.map_or_else(|| path.with_extension(""), Into::into);
        let (parent, stem) =
            (module.parent().expect("below it"), module.file_name().and_then(|it| it.to_str()));
        let line = format!("mod {};", stem.expect("a name"));
        let runs = manifest.contains(&format!("path = \"{name}\""))
            || sources.iter().any(|(text, other)| {
                let above = other.parent() == Some(parent) || other.with_extension("") == parent;
                let names = text.lines().any(|it| it.trim_start_matches("pub(crate) ") == line);
                above && names || text.contains(&format!("#[path = \"../{name}\"]"))
            });
        assert!(runs, "nothing runs tests/{name}");
    }
    assert!(sources.len() > 90, "the tests have moved");
}

#[test]
fn a_run_of_no_test_is_refused() {
    // A thread without a name gets the full name from the runner.
    let asks = std::thread::spawn(|| rerun("no_such_test", "child"));
    assert!(asks.join().is_err());
    let asks = std::thread::spawn(|| rerun("a_run_of_no_test_is_refused", "child"));
    let command = asks.join().expect("known");
    let full = "targets::a_run_of_no_test_is_refused";
    assert!(command.get_args().any(|argument| argument == full), "{command:?}");
}

#[test]
fn a_test_alone_runs_in_another_process() {
    const NAME: &str = "a_test_alone_runs_in_another_process";
    let marker = std::env::temp_dir().join(format!("narrows-alone-{}", parent_or_own()));
    if alone(NAME) {
        fs::write(marker, std::process::id().to_string()).expect("writes");
        return;
    }
    let pid = fs::read_to_string(&marker).expect("the other process was here");
    fs::remove_file(marker).expect("removes");
    assert_ne!(pid, std::process::id().to_string());
}

/// Returns the id of the process that runs the other tests.
fn parent_or_own() -> u32 {
    if std::env::var_os("NARROWS_TEST_ALONE").is_some() {
        std::os::unix::process::parent_id()
    } else {
        std::process::id()
    }
}

//! Everything that the documents name exists: tests, models, fuzz bodies and files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(crate::support::ROOT).join(name)).expect("a document")
}

/// Returns the texts between single backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.starts_with("```"))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

/// Returns the names of all functions in these folders, and of all their files without an extension.
fn names(folders: &[&str]) -> BTreeSet<String> {
    let root = Path::new(crate::support::ROOT);
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
    let known = names(&["tests", "loom-tests/src/models", "fuzz/bodies"]);
    let mut count = 0;
    for name in quoted(table).iter().flat_map(|it| it.split(": ")) {
        if name.contains("::") {
            let module = Path::new(crate::support::ROOT).join("tests").join(name.replace("::", "/"));
            assert!(module.is_dir() || module.with_extension("rs").exists(), "SECURITY.md names {name}");
        } else if name.contains('/') {
            let path = Path::new(crate::support::ROOT).join(name);
            assert!(path.exists(), "SECURITY.md names {name}");
        } else if name != "loom" && name != "fuzz" {
            assert!(known.contains(name), "SECURITY.md names {name}");
        }
        count += 1;
    }
    assert!(count > 50, "the table has moved");
}

#[test]
fn every_file_that_a_document_names_is_there() {
    let root = Path::new(crate::support::ROOT);
    let documents =
        walkdir::WalkDir::new(root.join("docs")).into_iter().map(|entry| entry.expect("readable"));
    let documents = documents.filter(|entry| entry.path().extension().is_some_and(|end| end == "md"));
    let in_docs =
        documents.map(|entry| entry.path().strip_prefix(root).expect("below it").display().to_string());
    let tops = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "benches/README.md"].map(str::to_owned);
    for document in in_docs.chain(tops) {
        for name in quoted(&read(&document)) {
            let tops = ["src/", "tests/", "docs/", "examples/", "fuzz/", "loom-tests/", "benches/", ".ci/"];
            let path = name.split(' ').next().unwrap_or_default();
            if tops.iter().any(|top| path.starts_with(top)) && !path.contains(['*', '{']) {
                assert!(root.join(path).exists(), "{document} names {name}");
            }
        }
    }
}

/// Returns the system calls that a source of `src/sys` makes without its tests, by the names that a seccomp filter uses.
fn system_calls(source: &str) -> BTreeSet<&str> {
    let code = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let ends = |c: char| !(c.is_alphanumeric() || c == '_');
    let mut found = BTreeSet::new();
    for line in code {
        for (at, _) in line.match_indices("libc::") {
            let rest = &line[at + "libc::".len()..];
            let name = &rest[..rest.find(ends).unwrap_or(rest.len())];
            match (name.strip_prefix("SYS_"), rest[name.len()..].starts_with('(')) {
                (Some(call), _) => found.insert(call),
                (None, true) => found.insert(match name {
                    "_exit" => "exit_group",
                    "eventfd" => "eventfd2",
                    "fstatat" => "newfstatat",
                    "getrlimit" => "prlimit64",
                    "open" => "openat",
                    "pread" => "pread64",
                    "pthread_sigmask" => "rt_sigprocmask",
                    "recv" => "recvfrom",
                    "sched_getcpu" => "getcpu",
                    "send" => "sendto",
                    same => same,
                }),
                _ => false,
            };
        }
    }
    found
}

/// Functions that the C library runs without a system call, or by a call that is found under its own name.
const NO_CALLS: [&str; 8] = [
    "WEXITSTATUS",
    "WIFSIGNALED",
    "WTERMSIG",
    "pthread_atfork",
    "sigaddset",
    "sigfillset",
    "syscall",
    "sysconf",
];

#[test]
fn every_system_call_of_the_library_is_in_the_operations_guide() {
    let guide = read("docs/operations.md");
    let section =
        guide.split("## Seccomp filters").nth(1).and_then(|it| it.split("\n## ").next()).expect("a section");
    let listed: BTreeSet<_> = quoted(section).into_iter().collect();
    let root = Path::new(crate::support::ROOT).join("src/sys");
    // Only tests and tools call these.
    let others = ["failpoint", "fuzz_region", "probe", "lost_wakeup_check", "testing", "tests"];
    let (mut count, mut missing) = (0, Vec::new());
    for path in walkdir::WalkDir::new(root).into_iter().map(|entry| entry.expect("readable").into_path()) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_none_or(|end| end != "rs") || others.contains(&name.as_str()) {
            continue;
        }
        for call in system_calls(&fs::read_to_string(&path).expect("a source")) {
            if !listed.contains(call) && !NO_CALLS.contains(&call) {
                missing.push(format!("{call} of src/sys/{name}.rs"));
            }
            count += 1;
        }
    }
    assert!(count > 30, "the sources have moved");
    assert!(missing.is_empty(), "not listed: {missing:?}");
}

/// System calls that the standard library and the C library make, by the function that the library calls for them.
const OF_OTHERS: [(&str, &[&str]); 9] = [
    ("fs::metadata(", &["statx"]),
    ("fs::read_dir(", &["openat", "getdents64", "close"]),
    ("File::open(", &["openat"]),
    ("procfs::read(", &["openat", "read", "close"]),
    ("thread::sleep(", &["clock_nanosleep"]),
    ("process::id()", &["getpid"]),
    ("canonicalize(", &["readlink"]),
    ("path::absolute(", &["getcwd"]),
    (
        "Builder::new()",
        &["clone3", "clone", "mprotect", "sched_getaffinity", "sigaltstack", "rseq", "set_robust_list"],
    ),
];

#[test]
fn what_other_libraries_call_for_the_library_is_in_the_operations_guide() {
    let guide = read("docs/operations.md");
    let section =
        guide.split("## Seccomp filters").nth(1).and_then(|it| it.split("\n## ").next()).expect("a section");
    let listed: BTreeSet<_> = quoted(section).into_iter().collect();
    let root = Path::new(crate::support::ROOT).join("src");
    let sources = walkdir::WalkDir::new(root).into_iter().map(|entry| entry.expect("readable").into_path());
    let sources: String = sources
        .filter(|path| path.extension().is_some_and(|end| end == "rs"))
        .map(|path| fs::read_to_string(path).expect("a source"))
        .collect();
    for (asked, calls) in OF_OTHERS {
        let missing: Vec<_> = calls.iter().filter(|call| !listed.contains(*call)).collect();
        assert!(
            !sources.contains(asked) || missing.is_empty(),
            "`{asked}` makes calls not listed: {missing:?}"
        );
    }
}

#[test]
fn system_calls_are_found_under_the_kernels_names() {
    let source = "// libc::kill(1)\nlet a = libc::open(x) + libc::EINVAL; libc::syscall(libc::SYS_futex, 1);\n#[cfg(test)]\nmod tests { libc::fork() }";
    assert_eq!(system_calls(source).into_iter().collect::<Vec<_>>(), ["futex", "openat", "syscall"]);
}

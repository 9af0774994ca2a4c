//! The words that are retired stay out of names, comments and texts: `.ci/vocabulary` has the list.

use std::path::Path;

use super::lexer::{Part, parts, words};

/// The folders and files that are read. The change log keeps the words of its time.
const READ: [&str; 13] = [
    "src",
    "tests",
    "loom-tests",
    "fuzz",
    "benches",
    "tools",
    "examples",
    "docs",
    ".ci",
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "Cargo.toml",
];

/// Where the words themselves stand.
const OWN: [&str; 2] = [".ci/vocabulary", "tests/repository/vocabulary.rs"];

#[derive(Default)]
struct Vocabulary {
    /// Retired as a word of an identifier.
    words: Vec<(String, String)>,
    /// Retired as a whole identifier.
    identifiers: Vec<(String, String)>,
    /// Retired in comments, texts and documents, as phrases of lower-case words.
    prose: Vec<(Vec<String>, String)>,
    /// A word, and the path below which it may stand.
    exceptions: Vec<(String, String)>,
}

impl Vocabulary {
    fn read() -> Self {
        Self::parse(&read(Path::new(crate::support::ROOT).join(".ci/vocabulary").as_path()))
    }

    fn parse(text: &str) -> Self {
        let (mut found, mut section) = (Self::default(), "");
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let pair = |by: &str| {
                let (word, other) = line.split_once(by).unwrap_or_else(|| panic!("not a rule: {line}"));
                (word.trim().to_owned(), other.trim().to_owned())
            };
            match section {
                _ if line.starts_with('[') => section = line,
                "[words of identifiers]" => found.words.push(pair("->")),
                "[identifiers]" => found.identifiers.push(pair("->")),
                "[prose]" => {
                    let (phrases, better) = pair("->");
                    let phrases = phrases
                        .split(',')
                        .map(|phrase| phrase.split_whitespace().map(str::to_owned).collect());
                    found.prose.extend(phrases.map(|phrase| (phrase, better.clone())));
                }
                "[exceptions]" => found.exceptions.push(pair("@")),
                other => panic!("no such section: {other}"),
            }
        }
        found
    }

    fn allows(&self, word: &str, path: &str) -> bool {
        self.exceptions.iter().any(|(it, below)| it == word && path.starts_with(below.as_str()))
    }

    /// The retired words of a Rust source, with their lines.
    fn faults_of_source(&self, path: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (line, part) in parts(text) {
            match part {
                Part::Word(word) => {
                    let own = words(word);
                    let whole = self.identifiers.iter().filter(|(it, _)| it == word);
                    let part = self.words.iter().filter(|(it, _)| own.contains(it));
                    for (it, better) in whole.chain(part).filter(|(it, _)| !self.allows(it, path)) {
                        found.push(format!("{path}:{line}: `{word}`: {it} -> {better}"));
                    }
                }
                Part::Comment(text) | Part::Text(text) => {
                    found.extend(self.faults_of_prose(path, line, text))
                }
                Part::Sign(_) => {}
            }
        }
        found
    }

    fn faults_of_prose(&self, path: &str, first: usize, text: &str) -> Vec<String> {
        let text: Vec<(usize, String)> = text
            .lines()
            .enumerate()
            .flat_map(|(at, line)| {
                line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '\'')
                    .filter(|word| !word.is_empty())
                    .map(move |word| (first + at, word.to_lowercase()))
            })
            .collect();
        let mut found = Vec::new();
        for (phrase, better) in self.prose.iter().filter(|(phrase, _)| !self.allows(&phrase.join(" "), path))
        {
            for at in text.windows(phrase.len()).filter(|at| at.iter().map(|(_, word)| word).eq(phrase)) {
                found.push(format!("{path}:{}: {} -> {better}", at[0].0, phrase.join(" ")));
            }
        }
        found
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn no_retired_word_comes_back() {
    let (vocabulary, root) = (Vocabulary::read(), Path::new(crate::support::ROOT));
    let (mut found, mut files) = (Vec::new(), 0);
    for entry in
        READ.iter().flat_map(|it| walkdir::WalkDir::new(root.join(it))).map(|it| it.expect("readable"))
    {
        let path = entry.path().strip_prefix(root).expect("below it").to_str().expect("plain");
        let kind = entry.path().extension().and_then(|end| end.to_str()).unwrap_or("");
        let skipped = !entry.file_type().is_file() || path.contains("/target/") || OWN.contains(&path);
        match kind {
            _ if skipped => continue,
            "rs" => found.extend(vocabulary.faults_of_source(path, &read(entry.path()))),
            "md" | "toml" | "txt" | "sh" => {
                found.extend(vocabulary.faults_of_prose(path, 1, &read(entry.path())))
            }
            _ => continue,
        }
        files += 1;
    }
    assert!(files > 300, "the sources are not where they were");
    assert!(found.is_empty(), "{} retired words:\n{}", found.len(), found.join("\n"));
}

#[test]
fn a_retired_word_is_detected() {
    let rules = "[words of identifiers]\nliar -> x\n[identifiers]\nplace -> x\n[prose]\nlie, for ever -> x\n[exceptions]\nplace @ a/b";
    let vocabulary = Vocabulary::parse(rules);
    let count = |path: &str, text: &str| vocabulary.faults_of_source(path, text).len();
    for bad in [
        "struct LiarMemory;",
        "fn two_liars_liar() {}",
        "let place = 1;",
        "// It waits for ever.",
        "x(\"A lie.\")",
    ] {
        assert_eq!(count("a/c.rs", bad), 1, "{bad}");
    }
    for fine in ["struct Familiar;", "fn in_place() {}", "// A lieutenant, forever.", "'l'"] {
        assert_eq!(count("a/c.rs", fine), 0, "{fine}");
    }
    assert_eq!(count("a/b/c.rs", "let place = 1;"), 0);
    assert_eq!(vocabulary.faults_of_prose("a.md", 1, "it waits\nfor ever"), ["a.md:2: for ever -> x"]);
}

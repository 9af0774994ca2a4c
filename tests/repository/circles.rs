//! No circles between files: a file does not import, even indirectly, from files that import from it.
//!
//! Reads `use` items and paths. A re-export (`pub use`) is followed to the file that declares the item, and does not count as an
//! import of the file that re-exports. So the root of a folder may export its files and declare items that several of them
//! import, but it may not both import from them and declare items that they import.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::lexer::code;

/// The crates whose files are checked, by the folder of the root.
const CRATES: [&str; 6] = [
    "src",
    "benches/src",
    "benches/editor_workload",
    "benches/instructions",
    "benches/compare/src",
    "benches/node/src",
];

/// Files that only export, for code outside of the crate.
const EXPORTS: [&str; 1] = ["internal"];

type Segments = Vec<String>;

/// The declarations and imports of one file.
#[derive(Default)]
struct Source {
    /// Its module.
    module: Segments,
    declared: BTreeSet<String>,
    /// Imports: what is named, and the name that it has here.
    uses: Vec<(Segments, String)>,
    /// As `uses`, and exported.
    exports: Vec<(Segments, String)>,
    /// Paths of two names or more.
    paths: Vec<Segments>,
}

impl Source {
    fn parse(module: Segments, text: &str) -> Self {
        let code = without_tests(code(text));
        let mut source = Self { module, ..Self::default() };
        let mut at = 0;
        while at < code.len() {
            let word = code[at].as_str();
            let next = code.get(at + 1).map_or("", String::as_str);
            match word {
                "struct" | "enum" | "trait" | "type" | "fn" | "const" | "static" | "union" => {
                    source.declared.insert(next.to_owned());
                }
                "macro_rules" => {
                    source.declared.insert(code[at + 2].clone());
                }
                _ => {}
            }
            let before = if at == 0 { "" } else { &code[at - 1] };
            if word == "use" && ["", ";", "}", "{", ")", "]", "pub"].contains(&before) && next != "<" {
                let exported = [")", "pub"].contains(&before);
                let list = if exported { &mut source.exports } else { &mut source.uses };
                at = tree(&code, at + 1, &[], list);
            } else if is_name(word) && before != ":" {
                let mut path = vec![word.to_owned()];
                while code.get(at + 1).is_some_and(|it| it == ":")
                    && code.get(at + 2).is_some_and(|it| it == ":")
                    && code.get(at + 3).is_some_and(|it| is_name(it))
                {
                    path.push(code[at + 3].clone());
                    at += 3;
                }
                if path.len() > 1 {
                    source.paths.push(path);
                }
            }
            at += 1;
        }
        source
    }
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Returns the code without `#[cfg(test)]` modules.
fn without_tests(code: Vec<String>) -> Vec<String> {
    let attribute = ["#", "[", "cfg", "(", "test", ")", "]", "mod"];
    let Some(from) = code.windows(8).position(|it| it.iter().eq(attribute.iter())) else { return code };
    let (mut depth, mut to) = (0, from);
    for (at, word) in code.iter().enumerate().skip(from) {
        to = at + 1;
        match word.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => break,
            "}" => depth -= 1,
            ";" if depth == 0 => break,
            _ => {}
        }
    }
    let (mut kept, behind) = (code[..from].to_vec(), code[to..].to_vec());
    kept.extend(without_tests(behind));
    kept
}

/// Reads a tree of imports from `at` on, and returns the index of its end.
fn tree(code: &[String], mut at: usize, prefix: &[String], found: &mut Vec<(Segments, String)>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        let last = path.last().cloned().unwrap_or_default();
        match code[at].as_str() {
            "{" => {
                at += 1;
                while code[at] != "}" {
                    at = tree(code, at, &path, found);
                    at += usize::from(code[at] == ",");
                }
                return at + 1;
            }
            ":" => {}
            "*" => {
                found.push((path, "*".to_owned()));
                return at + 1;
            }
            "as" => {
                found.push((path, code[at + 1].clone()));
                return at + 2;
            }
            "self" if !path.is_empty() => {
                found.push((path, last));
                return at + 1;
            }
            ";" | "," | "}" => {
                if path.len() > prefix.len() {
                    found.push((path, last));
                }
                return at;
            }
            name => path.push(name.to_owned()),
        }
        at += 1;
    }
}

/// All files of a crate.
struct Crate {
    files: BTreeMap<PathBuf, Source>,
    modules: BTreeMap<Segments, PathBuf>,
}

impl Crate {
    fn read(folder: &Path) -> Self {
        let (mut files, mut modules) = (BTreeMap::new(), BTreeMap::new());
        for entry in walkdir::WalkDir::new(folder).into_iter().map(|entry| entry.expect("readable")) {
            let path = entry.path().strip_prefix(folder).expect("below it").to_owned();
            if path.extension().is_none_or(|end| end != "rs")
                || path.file_stem().is_some_and(|it| it == "tests")
            {
                continue;
            }
            let mut module: Segments =
                path.with_extension("").iter().map(|it| it.to_str().expect("plain").to_owned()).collect();
            if module.last().is_some_and(|it| it == "mod")
                || ["lib", "main"].contains(&module.concat().as_str())
            {
                module.pop();
            }
            modules.insert(module.clone(), path.clone());
            files.insert(path, Source::parse(module, &std::fs::read_to_string(entry.path()).expect("text")));
        }
        Self { files, modules }
    }

    /// Returns the path from the root of the crate for a path in this module, or `None` if it leads to another crate.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Segments> {
        match path[0].as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([module, &path[1..]].concat()),
            "super" => {
                let ups = path.iter().take_while(|it| *it == "super").count();
                Some([&module[..module.len().checked_sub(ups)?], &path[ups..]].concat())
            }
            first => {
                let child = [module, &[first.to_owned()]].concat();
                self.modules.contains_key(&child).then(|| [module, path].concat())
            }
        }
    }

    /// Returns the file that declares the item of a path from the root.
    fn file_of(&self, path: &[String], depth: usize) -> Option<&PathBuf> {
        let known = |len: &usize| self.modules.contains_key(&path[..*len]);
        let len = (0..=path.len()).rev().find(known)?;
        let file = &self.modules[&path[..len]];
        let (source, Some(name)) = (&self.files[file], path.get(len)) else { return Some(file) };
        if source.declared.contains(name) || depth > 6 {
            return Some(file);
        }
        let target = |(path, _): &(Segments, String)| self.absolute(&source.module, path);
        if let Some(path_of) = source.exports.iter().filter(|it| it.1 == *name).find_map(target) {
            return self.file_of(&[&path_of, &path[len + 1..]].concat(), depth + 1);
        }
        let globs = source.exports.iter().filter(|it| it.1 == "*").filter_map(target);
        let mut through = globs.filter_map(|of| self.file_of(&[&of[..], &path[len..]].concat(), depth + 1));
        through.find(|file| self.files[*file].declared.contains(name)).or(Some(file))
    }

    /// Returns the files that a file imports from.
    fn needs(&self, file: &Path) -> BTreeSet<&Path> {
        let source = &self.files[file];
        let is_folder =
            self.modules.keys().any(|it| it.len() > source.module.len() && it.starts_with(&source.module));
        let own_exports: &[_] = if is_folder { &[] } else { &source.exports };
        let (mut found, mut names) = (Vec::new(), BTreeMap::new());
        for (path, name) in source.uses.iter().chain(own_exports) {
            if let Some(path) = self.absolute(&source.module, path) {
                names.insert(name.clone(), path.clone());
                found.push(path);
            }
        }
        for path in &source.paths {
            let imported = || names.get(&path[0]).filter(|it| self.modules.contains_key(*it));
            let through = || imported().map(|module| [module, &path[1..]].concat());
            found.extend(self.absolute(&source.module, path).or_else(through));
        }
        let files = found.iter().filter_map(|path| self.file_of(path, 0));
        files
            .map(PathBuf::as_path)
            .filter(|it| *it != file && !EXPORTS.iter().any(|name| it.starts_with(format!("{name}.rs"))))
            .collect()
    }

    /// Returns the files in circles: those left after repeatedly removing files that import from no file that is left.
    fn in_circles(&self) -> BTreeMap<&Path, BTreeSet<&Path>> {
        let mut left: BTreeMap<&Path, BTreeSet<&Path>> =
            self.files.keys().map(|file| (file.as_path(), self.needs(file))).collect();
        loop {
            let gone: Vec<&Path> =
                left.iter().filter(|(_, needs)| needs.is_empty()).map(|(file, _)| *file).collect();
            let needed: BTreeSet<&Path> = left.values().flatten().copied().collect();
            let unneeded: Vec<&Path> = left.keys().filter(|file| !needed.contains(*file)).copied().collect();
            if gone.is_empty() && unneeded.is_empty() {
                return left;
            }
            gone.iter().chain(&unneeded).for_each(|file| drop(left.remove(file)));
            left.values_mut().for_each(|needs| needs.retain(|it| !gone.contains(it)));
        }
    }
}

#[test]
fn no_files_need_each_other_in_a_circle() {
    for folder in CRATES {
        let files = Crate::read(&Path::new(crate::support::ROOT).join(folder));
        let circles = files.in_circles();
        assert!(circles.is_empty(), "{folder}: circles among {circles:#?}");
    }
}

#[test]
fn a_circle_is_detected() {
    let source = |text: &str| {
        let parse = |module: &str, text: &str| {
            let module: Segments = module.split_whitespace().map(str::to_owned).collect();
            (PathBuf::from(format!("{}.rs", module.join("/"))), Source::parse(module, text))
        };
        let files: BTreeMap<_, _> = text
            .lines()
            .map(|line| line.split_once('|').expect("a module"))
            .map(|(m, t)| parse(m, t))
            .collect();
        let modules = files.iter().map(|(path, source)| (source.module.clone(), path.clone())).collect();
        Crate { files, modules }.in_circles().len()
    };
    let root = "|mod a; mod b; pub use a::A;";
    assert_eq!(source(&format!("{root}\na|use crate::b::B; pub struct A;\nb|pub struct B;")), 0);
    assert_eq!(
        source(&format!(
            "{root}\na|use super::b::{{B, C as D}}; pub struct A;\nb|pub struct B; fn f() {{ crate::A }}"
        )),
        2
    );
    assert_eq!(
        source(&format!(
            "{root}\na|use crate::b; fn f(x: b::B) {{}} pub struct A;\nb|use super::*; pub struct B; use crate::A;"
        )),
        2
    );
    assert_eq!(
        source(&format!(
            "{root}\na|pub struct A; use super::b::B;\nb|pub struct B; #[cfg(test)] mod tests {{ use crate::A; }}"
        )),
        0
    );
    assert_eq!(source("|mod a; use a::A; pub struct R;\na|use super::R; pub struct A;"), 2);
}

//! Finds public items that no example shows.

use serde_json::Value;

use super::render::{Crate, kind, text};

/// Returns the lines of the examples in a text, including hidden lines.
fn examples(item: &Value) -> String {
    let parts = text(&item["docs"]).split("```").skip(1).step_by(2);
    parts.collect::<Vec<_>>().join("\n")
}

/// Returns the name of the blocking method of a family.
fn family(name: &str) -> &str {
    let name = name.strip_prefix("try_").unwrap_or(name);
    ["_timeout", "_deadline"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// Returns whether the text calls a function of this name: `.send(`, `::new(`, `call_typed::<`.
fn calls(text: &str, word: &str) -> bool {
    let ends = |rest: &str| rest.starts_with(['(', ')']) || rest.starts_with("::<");
    text.split([' ', '.', ':', '(', '\n']).any(|it| it == word)
        || text.match_indices(word).any(|(at, _)| {
            let before = text[..at].chars().next_back();
            before.is_some_and(|c| c == '.' || c == ':') && ends(&text[at + word.len()..])
        })
}

pub(crate) fn without(documented: &Crate) -> Vec<String> {
    let mut missing = Vec::new();
    for exported in documented.exported() {
        let (what, _) = kind(exported.item);
        let own = examples(exported.item);
        if own.is_empty() {
            missing.push(format!("{what} {}", exported.name));
        }
        let functions = documented.functions(exported.item);
        let shown = functions.iter().map(|it| examples(it)).collect::<String>() + &own;
        let names: Vec<_> = functions.iter().map(|it| text(&it["name"])).collect();
        for function in functions {
            let name = text(&function["name"]);
            let elsewhere = text(&function["docs"]).starts_with("See [`");
            let mut relatives = names.iter().filter(|it| family(it) == family(name));
            if !elsewhere && examples(function).is_empty() && !relatives.any(|it| calls(&shown, it)) {
                missing.push(format!("fn {}::{name}", exported.name));
            }
        }
    }
    missing
}

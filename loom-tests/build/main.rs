//! Makes a copy of the shipped ring and channel in which each step that matters can be weakened.
//!
//! ```text
//!   ../src/ring/*.rs, ../src/channel/..., ../src/layout.rs
//!      │  patches.rs   changes of order, told by the text that they replace
//!      │  weaken.rs    orderings, fences, flags, wakes, stores, checks: all that there are
//!      ▼
//!   OUT_DIR/weakened.rs   the copy, and the list of its mutants
//! ```
//!
//! Nothing is numbered by hand: a new ordering, fence, wake or comparison in the sources is a new
//! mutant, which the teeth demand to be caught. A patch whose text is gone fails the build.

mod patches;
mod weaken;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use quote::ToTokens;
use weaken::{Mutant, Weaken};

/// Where a copied module stands below `src/`, and how it is called in the copy.
const MODULES: [(&str, &[(&str, &str)]); 3] = [
    ("layout", &[("", "layout.rs")]),
    (
        "ring",
        &[
            ("consumer", "ring/consumer.rs"),
            ("end", "ring/end.rs"),
            ("park", "ring/park.rs"),
            ("place", "ring/place.rs"),
            ("producer", "ring/producer.rs"),
            ("urgent", "ring/urgent.rs"),
            ("", "ring/mod.rs"),
        ],
    ),
    (
        "channel",
        &[
            ("inbound", "channel/inbound.rs"),
            ("incoming", "channel/incoming.rs"),
            ("outbound", "channel/outbound.rs"),
            ("partial", "channel/partial.rs"),
            ("", "channel/mod.rs"),
        ],
    ),
];

/// What the copy takes from the library as it is.
const PRELUDE: &str = "
    pub(crate) use crate::weak;
    pub mod error { pub use narrows::internal::{Ended, Violation}; }
    pub mod mem { pub use narrows::internal::mem::*; }
    pub use narrows::internal::{Ended, Violation, Monitor, NoPace, Wait, in_turn};
    pub use channel::{inbound::{Inbound, RecvFault}, outbound::{Outbound, SendFault}};
";

/// What the copied channel takes from the one that is shipped, besides its own rules of waiting.
const CHANNEL: &str = "
    pub mod pace { pub use narrows::internal::{NoPace, Pace}; }
    pub use narrows::internal::Wait;
    use super::mem::{Memory, Until};
";

fn main() {
    let source = Path::new("../src");
    let mut mutants = Vec::new();
    let mut code = String::from(PRELUDE);
    for (module, files) in MODULES {
        let mut body = String::new();
        for (name, file) in files {
            let path = source.join(file);
            println!("cargo::rerun-if-changed={}", path.display());
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
            let weakened = weakened(file, &text, &mut mutants);
            match *name {
                "" => body.push_str(&weakened),
                name => write!(body, "pub mod {name} {{ {weakened} }}").unwrap(),
            }
        }
        write!(code, "pub mod {module} {{ {body} }}").unwrap();
    }
    println!("cargo::rerun-if-changed=build");
    let files: Vec<_> = MODULES.iter().flat_map(|(_, files)| files.iter().map(|(_, file)| file)).collect();
    write!(code, "/// What was copied, below `src/`.\npub const SOURCES: &[&str] = &{files:?};").unwrap();
    write!(code, "{}", list(&mutants)).unwrap();
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    fs::write(out.join("weakened.rs"), code).unwrap();
}

fn weakened(file: &str, text: &str, mutants: &mut Vec<Mutant>) -> String {
    let patched = patches::apply(file, text, mutants);
    let mut tree = syn::parse_file(&patched).unwrap_or_else(|error| panic!("{file}: {error}"));
    tree.attrs.clear();
    tree.items.retain(|item| kept(file, item));
    Weaken::new(file, text, mutants).walk(&mut tree);
    let code = tree.into_token_stream().to_string().replace("crate ::", "crate :: weakened :: code ::");
    let own = if file == "channel/mod.rs" { CHANNEL } else { "" };
    format!("{own}{code}")
}

/// Unit tests are left out, and so are the modules that users see.
fn kept(file: &str, item: &syn::Item) -> bool {
    match item {
        syn::Item::Mod(inner) if inner.content.is_some() => inner.ident == "words",
        syn::Item::Mod(_) => false,
        syn::Item::Use(_) | syn::Item::Enum(_) | syn::Item::Impl(_) if file == "channel/mod.rs" => false,
        _ => true,
    }
}

fn list(mutants: &[Mutant]) -> String {
    let mut rows = String::new();
    for Mutant { file, line, function, change, text } in mutants {
        writeln!(
            rows,
            "Mutant {{ file: {file:?}, line: {line}, function: {function:?}, change: {change:?}, text: {text:?} }},"
        )
        .unwrap();
    }
    format!(
        "/// All mutants, by their number.\npub const MUTANTS: &[weak::Mutant] = {{ use weak::Mutant; &[{rows}] }};"
    )
}

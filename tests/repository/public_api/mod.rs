//! The public interface is what `public-api.txt` says, and every part of it has an example.
//!
//! The source is rustdoc's JSON, which needs an unstable flag that the stable compiler accepts only with `RUSTC_BOOTSTRAP`. The
//! format changes with the compiler. With a compiler of another format nothing is compared, and the test prints a note
//! (with `NARROWS_API=must` it fails). To renew the list:
//!
//! ```sh
//! NARROWS_API=renew cargo test -p narrows-tests --test repository public_api
//! ```

mod examples;
mod render;

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use render::Crate;
use serde_json::Value;

const LIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../public-api.txt");
const RENEW: &str = "NARROWS_API=renew cargo test -p narrows-tests --test repository public_api";
const FORMAT: &str = "# rustdoc's format: ";

/// Rustdoc's description of the library with all features.
static DOCUMENTED: LazyLock<Crate> = LazyLock::new(|| {
    let own = env::current_exe().expect("own path");
    let target = own.ancestors().nth(3).expect("target folder").join("public-api");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["rustdoc", "--quiet", "--lib", "--package", "narrows", "--all-features", "--target-dir"]);
    cargo.arg(&target).args(["--", "-Z", "unstable-options", "--output-format", "json"]);
    // Hidden modules contain the items that the root exports. Items that are hidden themselves are left out below.
    cargo.args(["--document-hidden-items", "--cap-lints", "allow"]);
    cargo.env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTDOCFLAGS").current_dir(crate::support::ROOT);
    let output = cargo.output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read(target.join("doc/narrows.json")).expect("rustdoc's JSON");
    Crate(serde_json::from_slice::<Value>(&text).expect("JSON"))
});

/// Returns the committed list, if this compiler's rustdoc has the same format.
fn kept() -> Option<String> {
    let kept = fs::read_to_string(LIST).unwrap_or_default();
    let format = kept.lines().find_map(|line| line.strip_prefix(FORMAT)).unwrap_or("none");
    let is = DOCUMENTED.format();
    if format == is {
        return Some(kept);
    }
    let note = format!(
        "public-api.txt was made with rustdoc's format {format}, and this compiler has {is}: {RENEW}"
    );
    assert!(env::var("NARROWS_API").as_deref() != Ok("must"), "{note}");
    println!("nothing is compared: {note}");
    None
}

fn list() -> String {
    let head = format!(
        "# The public interface, all features included. `tests/repository/public_api` compares it; to renew it:\n\
         # {RENEW}\n{FORMAT}{}\n\n",
        DOCUMENTED.format()
    );
    head + &DOCUMENTED.interface().join("\n") + "\n"
}

#[test]
fn the_interface_is_what_the_list_says() {
    if env::var("NARROWS_API").as_deref() == Ok("renew") {
        return fs::write(Path::new(LIST), list()).expect("writes");
    }
    let Some(kept) = kept() else { return };
    let is = list();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (kept, is) = (lines(&kept), lines(&is));
    let gone = kept.iter().filter(|line| !is.contains(line)).map(|line| format!("- {line}\n"));
    let new = is.iter().filter(|line| !kept.contains(line)).map(|line| format!("+ {line}\n"));
    let changes: String = gone.chain(new).collect();
    let advice = "if this is intended, describe it in CHANGELOG.md and renew the list";
    assert!(kept == is, "the public interface changed:\n{changes}{advice}: {RENEW}");
}

/// A type must have an example in its own text. A function must have one, or it or a variant (`try_`, `_timeout`, `_deadline`)
/// must be called in an example of its type.
#[test]
fn everything_public_has_an_example() {
    if kept().is_none() {
        return;
    }
    let without = examples::without(&DOCUMENTED);
    assert!(without.is_empty(), "no example shows these:\n{}", without.join("\n"));
}

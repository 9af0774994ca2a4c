//! Makes a copy of the shipped ring, channel and RPC layer in which each step that matters can be mutated.
//!
//! ```text
//!   ../src/ring/*.rs, ../src/channel/..., ../src/rpc/..., ../src/layout.rs
//!      │  patches.rs   changes of order, found by the text that they replace
//!      │  mutate.rs    all orderings, fences, flags, wakes, stores and checks
//!      ▼
//!   OUT_DIR/mutated.rs   the copy, and the list of its mutants
//! ```
//!
//! Nothing is numbered by hand. A new ordering, fence, wake or comparison in the sources is a new mutant, and `tests/mutants.rs`
//! demands that a model kills it. A patch whose text is gone fails the build.

mod mutate;
mod patches;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use mutate::{Mutant, Mutator};
use quote::ToTokens;

/// The copied modules: the name in the copy, and the file below `src/`.
const MODULES: [(&str, &[(&str, &str)]); 4] = [
    ("layout", &[("", "layout.rs")]),
    (
        "ring",
        &[
            ("consumer", "ring/consumer.rs"),
            ("close", "ring/close.rs"),
            ("parking", "ring/parking.rs"),
            ("arena", "ring/arena.rs"),
            ("producer", "ring/producer.rs"),
            ("oob", "ring/oob.rs"),
            ("", "ring/mod.rs"),
        ],
    ),
    (
        "channel",
        &[
            ("incoming_signals", "channel/incoming_signals.rs"),
            ("io_slice_reader", "channel/io_slice_reader.rs"),
            ("reassembly", "channel/reassembly.rs"),
            ("receiver_core", "channel/receiver_core.rs"),
            ("sender_core", "channel/sender_core.rs"),
            ("", "channel/mod.rs"),
        ],
    ),
    (
        "rpc",
        &[
            ("", "rpc/mod.rs"),
            ("preface", "rpc/preface.rs"),
            ("flow_control", "rpc/flow_control.rs"),
            ("fragment", "rpc/fragment.rs"),
            ("wire", "rpc/wire.rs"),
            ("client::multiplexer", "rpc/client/multiplexer.rs"),
            ("client::in_flight", "rpc/client/in_flight.rs"),
            ("server::connection", "rpc/server/connection.rs"),
            ("server::send_queue", "rpc/server/send_queue.rs"),
            ("server::in_flight", "rpc/server/in_flight.rs"),
        ],
    ),
];

/// Files that are copied without mutants. They run in one thread at a time, behind a lock. The fuzzers compare them with a
/// reference, in far more states than a model has.
const PURE: [&str; 7] = [
    "channel/io_slice_reader.rs",
    "rpc/preface.rs",
    "rpc/flow_control.rs",
    "rpc/fragment.rs",
    "rpc/wire.rs",
    "rpc/client/in_flight.rs",
    "rpc/server/in_flight.rs",
];

/// The items that the copy takes from the library unchanged.
const PRELUDE: &str = "
    pub(crate) use crate::mutation;
    pub mod error { pub use narrows::MethodKind; pub use narrows::internal::{ConnectionError, ProtocolViolation}; }
    pub mod memory { pub use narrows::internal::memory::*; }
    pub use narrows::internal::{ConnectionError, ProtocolViolation, Lock, NoWaitPolicy, Wait, with_lock};
    pub use channel::{IncomingSignals, ReceiverCore, IncomingMessage, SenderCore, OobSender, RecvCoreError, SendCoreError};
";

/// The exports of copied modules, which replace the modules' own.
const EXPORTS: [(&str, &str); 3] = [
    (
        "channel",
        "
        pub mod wait_policy { pub use narrows::internal::{NoWaitPolicy, WaitPolicy}; }
        pub use narrows::internal::{SharedFlag, Lock, WaitPolicy, SyncBackend, Wait, with_lock};
        pub use super::ring::{OobSender, AwaitedRelease};
        pub use incoming_signals::IncomingSignals;
        pub use receiver_core::{ReceiverCore, IncomingMessage, RecvCoreError, Received};
        pub use sender_core::{SenderCore, SendCoreError};
        use super::memory::{Memory, Deadline};
        ",
    ),
    (
        "rpc::client",
        "
        pub use multiplexer::{Multiplexer, MultiplexerParts, MultiplexerState, WaitError};
        pub use in_flight::{CallOutcome, InFlightCalls, LostCall, Wakeup};
        ",
    ),
    (
        "rpc::server",
        "
        pub use connection::{BorrowedRequest, CallInfo, ConnectionDriver, Dispatch, RespondError, ServerConnection, ServerConnectionParts};
        pub use send_queue::Payload;
        pub use in_flight::{CallEvent, CallFailure, CallLimits, ServedCalls, UploadItem};
        ",
    ),
];

fn main() {
    let source = Path::new("../src");
    let mut mutants = Vec::new();
    let mut code = String::from(PRELUDE);
    for (module, files) in MODULES {
        let mut folders = BTreeMap::new();
        for (name, file) in files {
            let path = source.join(file);
            println!("cargo::rerun-if-changed={}", path.display());
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
            let mutated = mutated(file, &text, &mut mutants);
            let (folder, name) = name.rsplit_once("::").unwrap_or(("", name));
            let body: &mut String = folders.entry(folder).or_default();
            match name {
                "" => body.push_str(&mutated),
                name => write!(body, "pub mod {name} {{ {mutated} }}").unwrap(),
            }
        }
        write!(code, "pub mod {module} {{").unwrap();
        for (folder, body) in folders {
            match folder {
                "" => write!(code, "{} {body}", exports(module)).unwrap(),
                _ => {
                    write!(code, "pub mod {folder} {{ {} {body} }}", exports(&format!("{module}::{folder}")))
                        .unwrap()
                }
            }
        }
        code.push('}');
    }
    println!("cargo::rerun-if-changed=build");
    let files = MODULES.iter().flat_map(|(_, files)| files.iter().map(|(_, file)| file));
    let files: Vec<_> = files.filter(|file| !PURE.contains(file)).collect();
    write!(code, "/// The files that are mutated, below `src/`.\npub const SOURCES: &[&str] = &{files:?};")
        .unwrap();
    write!(code, "{}", list(&mutants)).unwrap();
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    fs::write(out.join("mutated.rs"), code).unwrap();
}

fn exports(module: &str) -> &'static str {
    EXPORTS.iter().find(|(name, _)| *name == module).map_or("", |(_, text)| text)
}

fn mutated(file: &str, text: &str, mutants: &mut Vec<Mutant>) -> String {
    let patched = patches::apply(file, text, mutants);
    let mut tree = syn::parse_file(&patched).unwrap_or_else(|error| panic!("{file}: {error}"));
    tree.attrs.clear();
    tree.items.retain(|item| kept(file, item));
    if !PURE.contains(&file) {
        Mutator::new(file, text, mutants).walk(&mut tree);
    }
    tree.into_token_stream().to_string().replace("crate ::", "crate :: mutated :: code ::")
}

/// Returns whether an item is copied. Unit tests are left out, and so are the modules that users see.
fn kept(file: &str, item: &syn::Item) -> bool {
    match item {
        syn::Item::Mod(inner) if inner.content.is_some() => inner.ident == "words",
        syn::Item::Mod(_) => false,
        syn::Item::Fn(syn::ItemFn { attrs, .. }) | syn::Item::Impl(syn::ItemImpl { attrs, .. })
            if attrs.iter().any(|attr| attr.path().is_ident("cfg")) =>
        {
            false
        }
        syn::Item::Use(_) | syn::Item::Enum(_) | syn::Item::Impl(_) if file == "channel/mod.rs" => false,
        // The rest of this file uses the public errors.
        item if file == "rpc/preface.rs" => {
            matches!(item, syn::Item::Fn(it) if it.sig.ident == "truncate_text")
        }
        _ => true,
    }
}

fn list(mutants: &[Mutant]) -> String {
    let mut rows = String::new();
    for Mutant { file, line, function, change, label, text } in mutants {
        writeln!(
            rows,
            "Mutant {{ file: {file:?}, line: {line}, function: {function:?}, change: {change:?}, label: {label:?}, text: {text:?} }},"
        )
        .unwrap();
    }
    format!(
        "/// All mutants, by their number.\npub const MUTANTS: &[mutation::Mutant] = {{ use mutation::Mutant; &[{rows}] }};"
    )
}

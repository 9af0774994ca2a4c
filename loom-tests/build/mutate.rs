//! Finds every step that matters in a source, and makes it one that can be mutated at run time.
//!
//! | in the source | mutants |
//! |---|---|
//! | `Load::Acquire`, `Store::Release` | relaxed |
//! | a fence, a store, a flag raised or cleared, a wake, a close | left out |
//! | `take_flag` | in two steps; not cleared |
//! | a check that may refuse | never refuses |
//! | in `rpc/`: a notification, a store of a flag or a count, a release | left out |
//! | in `rpc/`: a comparison, a query of locked state | always no |
//! | a comparison | always true; always false |
//!
//! A query of `rpc/` that always returns yes usually costs only a needless look or wake-up, so that is no mutant.
//!
//! Not mutated: macros, constants, and functions that format, encode or construct values ([`PLAIN`]). Those and the handshake
//! are covered by the mutation tests of the whole crate.

use proc_macro2::Span;
use quote::quote;
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{BinOp, Expr, ExprCall, ExprMethodCall, File, ImplItemFn, ItemFn};

/// One step that can be mutated.
pub(crate) struct Mutant {
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) function: String,
    pub(crate) change: String,
    /// Type, function, kind of change, and which of several. The survivors are listed by it, so it holds no text of the source.
    pub(crate) label: String,
    pub(crate) text: String,
}

/// Methods and functions that return nothing, and may be left out.
const STEPS: [&str; 12] = [
    "fence",
    "store",
    "store_slot",
    "store_flag",
    "arm",
    "disarm",
    "wake",
    "notify",
    "notify_producer",
    "force_notify",
    "close",
    "on_peer_gone",
];

/// Further [`STEPS`] of the RPC layer.
const CALLS: [&str; 15] = [
    "notify",
    "notify_one",
    "notify_self",
    "notify_driver",
    "set",
    "unlock_and_notify",
    "on_closed",
    "close",
    "complete",
    "stop_receiving",
    "process_cancels",
    "promote_next",
    "send_oob",
    "for_each",
    "discard_received",
];

/// Queries of the RPC layer, which read locked state or a flag.
const QUERIES: [&str; 10] = [
    "is_set",
    "is_some",
    "is_none",
    "has_unsent",
    "all_sent",
    "is_over",
    "is_done",
    "is_cancel_requested",
    "has_room",
    "is_idle",
];

/// Functions that may refuse.
const CHECKS: [&str; 4] = ["verify", "validate", "send_result", "check"];

/// Functions whose comparisons are not part of the protocol: they format, encode, construct or count values.
const PLAIN: [&str; 7] = ["of", "new", "default", "fmt", "encode", "direction", "is_empty"];

pub(crate) struct Mutator<'a> {
    file: &'a str,
    lines: Vec<&'a str>,
    owner: String,
    function: String,
    mutants: &'a mut Vec<Mutant>,
}

impl<'a> Mutator<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str, mutants: &'a mut Vec<Mutant>) -> Self {
        Self { file, lines: text.lines().collect(), owner: String::new(), function: String::new(), mutants }
    }

    pub(crate) fn walk(mut self, file: &mut File) {
        self.visit_file_mut(file);
    }

    /// Lists a mutant and returns its number.
    fn mutant(&mut self, at: Span, change: &str) -> usize {
        let line = at.start().line;
        let alike = |other: &&Mutant| {
            other.file == self.file && other.function == self.function && other.change.starts_with(change)
        };
        let change = match self.mutants.iter().filter(alike).count() {
            0 => change.to_owned(),
            before => format!("{change} ({})", before + 1),
        };
        let kind = if change.starts_with("left out") {
            "left-out"
        } else {
            change.split(' ').next().unwrap_or_default()
        };
        let label = self.label(kind);
        self.mutants.push(Mutant {
            label,
            file: self.file.to_owned(),
            line,
            function: self.function.clone(),
            change,
            text: self.lines.get(line - 1).map_or("", |line| line.trim()).to_owned(),
        });
        self.mutants.len() - 1
    }

    /// Returns what identifies a mutant: `Producer::try_send never 2`.
    fn label(&self, kind: &str) -> String {
        let owner = if self.owner.is_empty() { String::new() } else { format!("{}::", self.owner) };
        let label = format!("{owner}{} {kind}", self.function);
        let alike = |other: &&Mutant| other.label.rsplit_once(' ').is_some_and(|(before, _)| before == label);
        let before = self.mutants.iter().filter(alike).count();
        format!("{label} {}", before + 1)
    }

    fn within(&mut self, name: &syn::Ident, walk: impl FnOnce(&mut Self)) {
        let outer = std::mem::replace(&mut self.function, name.to_string());
        if !PLAIN.contains(&self.function.as_str()) {
            walk(self);
        }
        self.function = outer;
    }

    /// Returns the mutated form of an expression, if it is a step that matters.
    fn mutated(&mut self, expr: &Expr, text: &str) -> Option<proc_macro2::TokenStream> {
        let at = expr.span();
        match expr {
            Expr::Path(path) => self.ordering(&quote!(#path).to_string(), at),
            Expr::Binary(binary) if self.is_of_calls() && compares(&binary.op) => {
                Some(self.never(at, text, expr))
            }
            Expr::Binary(binary) if compares(&binary.op) => {
                let always = self.mutant(at, &format!("always {text}"));
                self.mutant(at, &format!("never {text}"));
                Some(quote!(crate::mutation::compare(#always, #expr)))
            }
            Expr::Assign(_) if self.is_of_calls() => Some(self.left_out(at, expr)),
            Expr::Binary(binary) if self.is_of_calls() && counts(&binary.op) => Some(self.left_out(at, expr)),
            Expr::MethodCall(ExprMethodCall { method, receiver, args, .. }) => {
                let name = method.to_string();
                if self.is_of_calls() && QUERIES.contains(&name.as_str()) {
                    return Some(self.never(at, text, expr));
                }
                if name == "take_flag" {
                    let two = self.mutant(at, "loads and stores, in two steps");
                    self.mutant(at, "does not clear");
                    return Some(quote!(crate::mutation::take_flag(#two, #receiver, #args)));
                }
                self.step(&name, at, expr)
            }
            Expr::Call(ExprCall { func, .. }) => match &**func {
                Expr::Path(path) => self.step(&path.path.segments.last()?.ident.to_string(), at, expr),
                _ => None,
            },
            _ => None,
        }
    }

    fn is_of_calls(&self) -> bool {
        self.file.starts_with("rpc/") || self.file == "channel/incoming_signals.rs"
    }

    fn ordering(&mut self, path: &str, at: Span) -> Option<proc_macro2::TokenStream> {
        match path {
            "Load :: Acquire" => {
                let number = self.mutant(at, "relaxed load");
                Some(quote!(crate::mutation::acquire(#number)))
            }
            "Store :: Release" => {
                let number = self.mutant(at, "relaxed store");
                Some(quote!(crate::mutation::release(#number)))
            }
            _ => None,
        }
    }

    fn never(&mut self, at: Span, text: &str, expr: &Expr) -> proc_macro2::TokenStream {
        let number = self.mutant(at, &format!("never {text}"));
        quote!((#expr && !crate::mutation::on(#number)))
    }

    fn left_out(&mut self, at: Span, expr: &Expr) -> proc_macro2::TokenStream {
        let number = self.mutant(at, "left out");
        quote!({ if !crate::mutation::on(#number) { #expr } })
    }

    fn step(&mut self, name: &str, at: Span, expr: &Expr) -> Option<proc_macro2::TokenStream> {
        if STEPS.contains(&name) || (self.is_of_calls() && CALLS.contains(&name)) {
            return Some(self.left_out(at, expr));
        }
        if CHECKS.contains(&name) {
            let number = self.mutant(at, "never refuses");
            return Some(quote!((if crate::mutation::on(#number) { Ok(()) } else { #expr })));
        }
        None
    }
}

impl VisitMut for Mutator<'_> {
    fn visit_expr_mut(&mut self, expr: &mut Expr) {
        let text = readable(&quote!(#expr).to_string());
        visit_mut::visit_expr_mut(self, expr);
        if let Some(mutated) = self.mutated(expr, &text) {
            *expr = Expr::Verbatim(mutated);
        }
    }

    /// A constant is computed at compile time, so it cannot be switched, and it is not part of the protocol.
    fn visit_item_const_mut(&mut self, _item: &mut syn::ItemConst) {}

    fn visit_item_fn_mut(&mut self, item: &mut ItemFn) {
        let name = item.sig.ident.clone();
        self.within(&name, |this| visit_mut::visit_item_fn_mut(this, item));
    }

    fn visit_item_impl_mut(&mut self, item: &mut syn::ItemImpl) {
        let owner = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()),
            _ => None,
        };
        let outer = std::mem::replace(&mut self.owner, owner.unwrap_or_default());
        visit_mut::visit_item_impl_mut(self, item);
        self.owner = outer;
    }

    fn visit_impl_item_fn_mut(&mut self, item: &mut ImplItemFn) {
        let name = item.sig.ident.clone();
        self.within(&name, |this| visit_mut::visit_impl_item_fn_mut(this, item));
    }
}

fn compares(op: &BinOp) -> bool {
    matches!(op, BinOp::Lt(_) | BinOp::Le(_) | BinOp::Gt(_) | BinOp::Ge(_) | BinOp::Eq(_) | BinOp::Ne(_))
}

fn counts(op: &BinOp) -> bool {
    matches!(op, BinOp::AddAssign(_) | BinOp::SubAssign(_) | BinOp::BitOrAssign(_))
}

/// Returns tokens in the usual spacing.
fn readable(tokens: &str) -> String {
    [(" . ", "."), (" (", "("), ("( ", "("), (" )", ")"), (" ,", ","), (" :: ", "::"), ("* self", "*self")]
        .iter()
        .fold(tokens.to_owned(), |text, (from, to)| text.replace(from, to))
}

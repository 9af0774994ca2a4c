//! What the repository promises about itself: its layers, names, documents, package, public interface, examples and test targets.

extern crate narrows_tests as narrows; // The library, built with what tests need of its inside.

#[path = "../support/mod.rs"]
mod support;

mod circles;
mod documents;
mod examples;
mod layering;
mod lexer;
mod names;
mod package;
mod public_api;
mod targets;
mod vocabulary;

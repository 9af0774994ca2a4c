//! The messages, and how each is verified: the same as `js/message.js`.
//!
//! Objects: the template of a size, the same file for every system, with an id of its own in each message; the receiver
//! visits all of it. Bytes: a pattern with the message's number in front; the receiver compares every byte with its own
//! copy. Both sides make their messages themselves.

use std::fs;
use std::path::{Path, PathBuf};

use harness::{Error, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{Codec, NodeConfig, PayloadKind};

/// Makes the messages of one size, and verifies them.
pub trait Messages {
    /// The message of this number, as it travels.
    fn make(&mut self, number: u64) -> Result<&[u8]>;

    /// Takes a message apart and compares.
    fn check(&mut self, message: &[u8], number: u64) -> Result<()>;
}

/// The work that the configuration asks for.
pub fn messages(config: &NodeConfig, size: usize) -> Result<Box<dyn Messages>> {
    Ok(match (config.kind, config.codec) {
        (PayloadKind::Bytes, _) => Box::new(Bytes::new(size)),
        (PayloadKind::Objects, Codec::Typed) => Box::new(Objects::<Message>::load(&config.folder, size)?),
        (PayloadKind::Objects, Codec::Value) => Box::new(Objects::<Value>::load(&config.folder, size)?),
    })
}

/// Writes the template whose JSON has exactly `size` bytes.
pub fn write_template(folder: &Path, size: usize) -> Result<()> {
    let mut message = Message {
        id: FIRST_ID,
        method: "get".into(),
        note: String::new(),     // Filled up below, with a character that needs an escape.
        numbers: vec![7.5, 2.5], // No whole ones: JavaScript would write 7 and Rust 7.0.
        rows: Vec::new(),
    };
    let row = serde_json::to_string(&Article::new(9999))?.len() + 1;
    for number in 0..size.saturating_sub(100) / row {
        message.rows.push(Article::new(number));
    }
    let short = size
        .checked_sub(serde_json::to_string(&message)?.len())
        .ok_or_else(|| anyhow!("a size too small for an object"))?;
    message.note = if short < 2 { "n".repeat(short) } else { format!("{}\n", "n".repeat(short - 2)) };
    fs::write(file(folder, size), serde_json::to_string(&message)?)?;
    Ok(())
}

/// Ids have ten digits each: the size does not change.
const FIRST_ID: u64 = 1_000_000_000;

#[derive(Deserialize, Serialize)]
struct Message {
    id: u64,
    method: String,
    note: String,
    numbers: Vec<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rows: Vec<Article>,
}

#[derive(Deserialize, Serialize)]
struct Article {
    name: String,
    count: u32,
    price: f64,
    tags: Vec<String>,
}

impl Article {
    fn new(number: usize) -> Self {
        let count = u32::try_from(number % 10_000).unwrap_or(0);
        Self {
            name: format!("article {number} of many"),
            count,
            price: f64::from(count) + 0.25,
            tags: vec!["new".into(), "blue".into()],
        }
    }
}

/// An object as Rust holds it.
trait Object: Serialize + for<'a> Deserialize<'a> {
    fn id(&self) -> Option<u64>;
    fn set_id(&mut self, id: u64);

    /// The lengths of all strings and all numbers but the id, added up.
    fn digest(&self) -> f64;
}

impl Object for Message {
    fn id(&self) -> Option<u64> {
        Some(self.id)
    }

    fn set_id(&mut self, id: u64) {
        self.id = id;
    }

    fn digest(&self) -> f64 {
        let mut sum = length(&self.method) + length(&self.note) + self.numbers.iter().sum::<f64>();
        for row in &self.rows {
            sum += length(&row.name) + f64::from(row.count) + row.price;
            sum += row.tags.iter().map(|tag| length(tag)).sum::<f64>();
        }
        sum
    }
}

impl Object for Value {
    fn id(&self) -> Option<u64> {
        self["id"].as_u64()
    }

    fn set_id(&mut self, id: u64) {
        self["id"] = id.into();
    }

    fn digest(&self) -> f64 {
        let text = |value: &Self| value.as_str().map_or(f64::NAN, length);
        let number = |value: &Self| value.as_f64().unwrap_or(f64::NAN);
        let mut sum = text(&self["method"]) + text(&self["note"]);
        sum += items(&self["numbers"]).map(number).sum::<f64>();
        for row in items(&self["rows"]) {
            sum += text(&row["name"]) + number(&row["count"]) + number(&row["price"]);
            sum += items(&row["tags"]).map(text).sum::<f64>();
        }
        sum
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[expect(clippy::cast_precision_loss, reason = "a length of some bytes")]
fn length(text: &str) -> f64 {
    text.len() as f64
}

struct Objects<T> {
    template: T,
    expected: f64,
    text: Vec<u8>,
}

impl<T: Object> Objects<T> {
    fn load(folder: &Path, size: usize) -> Result<Self> {
        let template: T = serde_json::from_slice(&fs::read(file(folder, size))?)?;
        let expected = template.digest();
        Ok(Self { template, expected, text: Vec::new() })
    }
}

impl<T: Object> Messages for Objects<T> {
    fn make(&mut self, number: u64) -> Result<&[u8]> {
        self.template.set_id(FIRST_ID + number);
        self.text.clear();
        serde_json::to_writer(&mut self.text, &self.template)?;
        Ok(&self.text)
    }

    fn check(&mut self, message: &[u8], number: u64) -> Result<()> {
        let object: T = serde_json::from_slice(message)?;
        #[expect(clippy::float_cmp, reason = "all of them are multiples of a quarter")]
        let same = object.id() == Some(FIRST_ID + number) && object.digest() == self.expected;
        same.then_some(()).ok_or_else(|| changed(number))
    }
}

struct Bytes {
    mine: Vec<u8>,
    expected: Vec<u8>,
}

impl Bytes {
    fn new(size: usize) -> Self {
        let mut mine: Vec<u8> = (0..size).map(|i| (i * 31 + 7).to_le_bytes()[0]).collect();
        mine[..NUMBER].fill(0);
        Self { expected: mine.clone(), mine }
    }
}

impl Messages for Bytes {
    fn make(&mut self, number: u64) -> Result<&[u8]> {
        self.mine[..NUMBER].copy_from_slice(&number.to_le_bytes());
        Ok(&self.mine)
    }

    fn check(&mut self, message: &[u8], number: u64) -> Result<()> {
        self.expected[..NUMBER].copy_from_slice(&number.to_le_bytes());
        (message == self.expected).then_some(()).ok_or_else(|| changed(number))
    }
}

/// Bytes of a message's number.
const NUMBER: usize = 8;

fn changed(number: u64) -> Error {
    anyhow!("message {number} did not arrive as it was sent")
}

fn file(folder: &Path, size: usize) -> PathBuf {
    folder.join(format!("object-{size}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 4] = [64, 1 << 10, 64 << 10, 1 << 20];

    fn takes_its_own_and_no_other(one: &mut dyn Messages, other: &mut dyn Messages) {
        for number in [0, 1, 99_999] {
            let message = one.make(number).unwrap().to_vec();
            other.check(&message, number).unwrap();
            assert!(other.check(&message, number + 1).is_err(), "another number");
            let mut torn = message;
            let digit = torn.iter().rposition(u8::is_ascii_digit);
            let last = digit.unwrap_or(torn.len() - 1);
            torn[last] ^= 1;
            assert!(other.check(&torn, number).is_err(), "a changed byte");
        }
    }

    #[test]
    fn both_codecs_understand_each_other_and_see_a_changed_digit() {
        let folder = tempfile::tempdir().unwrap();
        for size in SIZES {
            write_template(folder.path(), size).unwrap();
            assert_eq!(fs::metadata(file(folder.path(), size)).unwrap().len(), size as u64);
            let mut typed = Objects::<Message>::load(folder.path(), size).unwrap();
            let mut value = Objects::<Value>::load(folder.path(), size).unwrap();
            takes_its_own_and_no_other(&mut typed, &mut value);
            takes_its_own_and_no_other(&mut value, &mut typed);
        }
    }

    #[test]
    fn bytes_see_a_changed_byte() {
        for size in SIZES {
            takes_its_own_and_no_other(&mut Bytes::new(size), &mut Bytes::new(size));
        }
    }
}

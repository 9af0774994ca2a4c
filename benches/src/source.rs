//! The messages: how each is made and how each is validated, the same for every system.
//!
//! A message is `size` bytes of noise whose first eight carry its number (fewer, if it is shorter). The receiver
//! adds up all its words and compares the sum and the number, so that every byte is read and none may be lost,
//! doubled or torn between two messages unseen. The two highest numbers are signals, not messages.

use anyhow::{Result, bail};

use crate::sys;

/// Makes messages in private memory.
///
/// Small ones are numbered some messages before they are sent, each in a buffer of its own: a copy that begins while the
/// processor still holds the number in its store buffer stalls, and no program writes its message at the last instant.
#[derive(Debug)]
pub struct Source {
    buffers: Vec<u8>,
    size: usize,
    stride: usize,
    at: usize,
    next: u64,
    numbers: Numbers,
}

impl Source {
    /// Returns a source of messages of so many bytes, at least 1.
    pub fn new(size: usize) -> Self {
        let stride = size.next_multiple_of(64);
        let ahead = if size <= SMALL { AHEAD } else { 1 };
        let mut buffers = vec![0; stride * ahead];
        buffers.chunks_mut(stride).for_each(|buffer| buffer[..size].copy_from_slice(&noise(size)));
        let mut source = Self { buffers, size, stride, at: 0, next: 0, numbers: Numbers::of(size) };
        (1..ahead).for_each(|_| source.number_next());
        source
    }

    /// Makes the next message.
    #[inline]
    pub fn message(&mut self) -> &[u8] {
        self.number_next();
        // The buffer after the one just numbered is the oldest; it is the same if there is one only.
        &self.buffers[self.at..self.at + self.size]
    }

    /// Makes the signal that the messages after it are measured.
    pub fn mark(&mut self) -> Vec<u8> {
        self.signal(self.numbers.mark())
    }

    /// Makes the signal that nothing follows.
    pub fn stop(&mut self) -> Vec<u8> {
        self.signal(self.numbers.stop)
    }

    fn signal(&self, number: u64) -> Vec<u8> {
        let mut message = noise(self.size);
        write_number(&mut message, number);
        message
    }

    #[inline]
    fn number_next(&mut self) {
        write_number(&mut self.buffers[self.at..self.at + self.size], self.next);
        self.next = self.numbers.after(self.next);
        self.at += self.stride;
        if self.at >= self.buffers.len() {
            self.at = 0;
        }
    }
}

/// How many buffers small messages have.
const AHEAD: usize = 16;

/// The longest message that is numbered ahead, and added up word by word.
const SMALL: usize = 256;

#[inline]
fn write_number(message: &mut [u8], number: u64) {
    match message.first_chunk_mut() {
        Some(first) => *first = number.to_le_bytes(),
        None => {
            let len = message.len();
            message.copy_from_slice(&number.to_le_bytes()[..len]);
        }
    }
}

/// Validates messages.
#[derive(Debug)]
pub struct Check {
    size: usize,
    rest: u64,
    next: u64,
    count: u64,
    numbers: Numbers,
    seen: Checked,
}

/// The kind of the last message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// The one that was due.
    Message,
    /// The messages after it are measured.
    Mark,
    /// Nothing follows.
    Stop,
    /// None of these.
    Wrong,
}

impl Check {
    /// Returns a check of messages of so many bytes.
    pub fn new(size: usize) -> Self {
        let bytes = noise(size);
        let rest = sum(&bytes).wrapping_sub(head(&bytes));
        Self { size, rest, next: 0, count: 0, numbers: Numbers::of(size), seen: Checked::Wrong }
    }

    /// Reads one whole message and validates it.
    #[inline]
    pub fn validate(&mut self, message: &[u8]) {
        let number = head(message);
        let right = message.len() == self.size && sum(message) == self.rest.wrapping_add(number);
        self.compare(number, right);
    }

    /// Validates a message by its number alone: for rows that lend memory without touching the rest of it.
    #[inline]
    pub fn validate_number(&mut self, message: &[u8]) {
        self.compare(head(message), message.len() == self.size);
    }

    /// Returns the bytes of each message.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the number of messages so far, without signals.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Fails unless exactly the message that was due has been validated since the last call.
    #[inline]
    pub fn one_message(&mut self) -> Result<()> {
        match self.take_result()? {
            Checked::Message => Ok(()),
            seen => bail!("{seen:?} instead of a message"),
        }
    }

    /// Returns the kind of the message validated since the last call; fails if there was none.
    #[inline]
    pub(crate) fn take_result(&mut self) -> Result<Checked> {
        match std::mem::replace(&mut self.seen, Checked::Wrong) {
            Checked::Wrong => bail!("message {} is missing, torn or out of order", self.next),
            seen => Ok(seen),
        }
    }

    #[inline]
    fn compare(&mut self, number: u64, right: bool) {
        if right && number == self.next {
            self.next = self.numbers.after(number);
            self.count += 1;
            self.seen = Checked::Message;
        } else {
            self.seen = match right {
                true if number == self.numbers.stop => Checked::Stop,
                true if number == self.numbers.mark() => Checked::Mark,
                _ => Checked::Wrong,
            };
        }
    }
}

/// The numbers that fit into a message.
#[derive(Clone, Copy, Debug)]
struct Numbers {
    stop: u64,
}

impl Numbers {
    fn of(size: usize) -> Self {
        let bytes = size.clamp(1, 8);
        Self { stop: u64::MAX >> (64 - 8 * bytes) }
    }

    fn mark(self) -> u64 {
        self.stop - 1
    }

    #[inline]
    fn after(self, number: u64) -> u64 {
        if number + 1 == self.mark() { 0 } else { number + 1 }
    }
}

/// Returns the first eight bytes as a number; a shorter message is filled up with zeros.
#[inline]
fn head(message: &[u8]) -> u64 {
    match message.first_chunk() {
        Some(first) => u64::from_le_bytes(*first),
        None => partial(message),
    }
}

/// Adds up all words. It reads small messages word by word, as a program that decodes them does, and others as eight
/// sums side by side, which the compiler vectorizes.
#[inline]
fn sum(message: &[u8]) -> u64 {
    if message.len() <= SMALL {
        let (sum, rest) = sys::sum_words(message);
        return sum.wrapping_add(partial(rest));
    }
    let blocks = message.chunks_exact(64);
    let words = blocks.remainder().chunks_exact(8);
    let rest = words.clone().map(word).fold(partial(words.remainder()), u64::wrapping_add);
    let mut sums = [0_u64; 8];
    for block in blocks {
        for (sum, bytes) in sums.iter_mut().zip(block.chunks_exact(8)) {
            *sum = sum.wrapping_add(word(bytes));
        }
    }
    sums.iter().fold(rest, |sum, next| sum.wrapping_add(*next))
}

#[inline]
fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |it| u64::from_le_bytes(*it))
}

fn partial(rest: &[u8]) -> u64 {
    rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Returns bytes that are the same in both processes.
fn noise(size: usize) -> Vec<u8> {
    let mut state = size as u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bytes.extend_from_slice(&(mixed ^ mixed >> 27).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_signals_pass_the_check_at_every_size() -> Result<()> {
        for size in [1, 2, 7, 8, 9, 40, 64, 104, 4097] {
            let (mut source, mut check) = (Source::new(size), Check::new(size));
            for _ in 0..600 {
                check.validate(source.message());
                assert_eq!(check.take_result()?, Checked::Message, "{size}");
            }
            check.validate(&source.mark());
            assert_eq!(check.take_result()?, Checked::Mark, "{size}");
            check.validate(&source.stop());
            assert_eq!(check.take_result()?, Checked::Stop, "{size}");
            assert_eq!(check.count(), 600);
        }
        Ok(())
    }

    #[test]
    fn a_changed_message_is_noticed() {
        let broken: [fn(&mut Vec<u8>); 4] =
            [|m| m[63] ^= 1, |m| m[0] ^= 1, |m| m.truncate(56), |m| m.push(0)];
        for harm in broken {
            let (mut source, mut check) = (Source::new(64), Check::new(64));
            let mut message = source.message().to_vec();
            harm(&mut message);
            check.validate(&message);
            assert!(check.take_result().is_err());
        }
    }

    #[test]
    fn a_message_that_is_lost_duplicated_or_never_validated_is_noticed() -> Result<()> {
        let (mut source, mut check) = (Source::new(64), Check::new(64));
        check.validate(source.message());
        check.take_result()?;
        assert!(check.take_result().is_err(), "nothing was validated");
        let _lost = source.message();
        check.validate(source.message());
        assert!(check.take_result().is_err());
        Ok(())
    }
}

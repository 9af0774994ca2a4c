//! The plan of a run: all of it follows from the seed, so both sides of a connection know what must arrive.

use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::item::{StreamKind, stream};

/// Threads of the editor that chat.
pub(crate) const CHATS: u32 = 4;

/// Chunks a second of a paced chat.
pub(crate) const PACE: u32 = 50;

/// Other clients than the editor: B to J.
pub(crate) const LIGHTS: usize = 9;

/// Bytes of one terminal's output.
pub(crate) const TERMINAL: usize = 10_000_000;

/// Microseconds until the user answers a question of the backend.
pub(crate) const THINKS: Range<u32> = 100_000..2_000_000;

/// The seed, and the durations of the two parts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// The chats at 50 chunks a second.
    pub(crate) paced: Duration,
    /// The chats without a pace, behind them.
    pub(crate) unpaced: Duration,
}

/// A chat: whether its chunks have no pace, the editor's thread, and its index there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChatId {
    pub(crate) unpaced: bool,
    pub(crate) thread: u32,
    pub(crate) index: u32,
}

/// One chat: a request, and chunks with calls of tools among them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Chat {
    pub(crate) request: usize,
    pub(crate) chunks: Vec<usize>,
    /// In the order of their chunks.
    pub(crate) tools: Vec<Tool>,
}

/// A tool that the chunk `at` asks for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Tool {
    pub(crate) at: usize,
    pub(crate) arguments: usize,
    pub(crate) progress: [usize; 3],
    pub(crate) result: usize,
    /// Microseconds that the user takes to approve of it, if asked.
    pub(crate) approval: Option<u32>,
}

/// A request of the language server's kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lsp {
    pub(crate) request: usize,
    pub(crate) reply: usize,
    /// How long the server works on it.
    pub(crate) work: Duration,
    /// When it is cancelled, if it is.
    pub(crate) cancel: Option<Duration>,
}

impl Plan {
    /// Returns a plan with two thirds of the time paced, and the rest unpaced.
    pub(crate) fn new(seed: u64, seconds: f64) -> Self {
        let paced = Duration::from_secs_f64(seconds * 2.0 / 3.0);
        Self { seed, paced, unpaced: Duration::from_secs_f64(seconds / 3.0) }
    }

    /// Returns the random numbers of one item of a kind.
    pub(crate) fn rng(&self, kind: u32, which: u32) -> Rng {
        let mixed = self.seed ^ (u64::from(kind) << 32 | u64::from(which));
        let mut rng = Rng::with_seed(mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        rng.u64(..); // Neighbours begin alike.
        Rng::with_seed(rng.u64(..))
    }

    /// Returns the chunks of each paced chat of a thread: 200 to 1000, as many chats as there is time for.
    pub(crate) fn paced_chats(&self, thread: u32) -> Vec<u32> {
        let mut rng = self.rng(1, thread);
        let mut left = u32::try_from(self.paced.as_millis()).unwrap_or(u32::MAX) / (1000 / PACE);
        let mut chats = Vec::new();
        while left >= 40 {
            let chunks = rng.u32(200..=1000);
            // The rest must be long enough for another chat.
            let chunks = match left {
                ..=1000 if left < chunks + 200 => left,
                _ if left < chunks + 200 => left / 2,
                _ => chunks,
            };
            chats.push(chunks);
            left -= chunks;
        }
        chats
    }

    /// Returns the number of chunks of an unpaced chat.
    pub(crate) fn unpaced_chat(&self, which: ChatId) -> u32 {
        self.rng(2, which.number()).u32(200..=1000)
    }

    /// Returns a chat of so many chunks.
    pub(crate) fn chat(&self, which: ChatId, chunks: u32) -> Chat {
        let mut rng = self.rng(3, which.number());
        let request = rng.usize(4 << 10..=32 << 10);
        let lengths = (0..chunks).map(|_| log_normal(&mut rng)).collect();
        let middle = rng.usize(1..chunks as usize / 2);
        let positions = [middle, rng.usize(middle + 1..chunks as usize)];
        let tools = positions.map(|at| Tool::new(at, &mut rng)).into();
        Chat { request, chunks: lengths, tools }
    }

    /// Returns a request of the language server's kind, by its number.
    pub(crate) fn lsp(&self, number: u32) -> Lsp {
        let mut rng = self.rng(4, number);
        let reply = if rng.u32(..50) == 0 { rng.usize(100_000..=120_000) } else { rng.usize(200..=10 << 10) };
        Lsp {
            request: rng.usize(200..=2 << 10),
            reply,
            work: Duration::from_micros(rng.u64(200..=6000)),
            cancel: (rng.u32(..10) == 0).then(|| Duration::from_micros(rng.u64(..3000))),
        }
    }

    /// Returns the sizes of a history and of the reply to it.
    pub(crate) fn history(&self, number: u32) -> (usize, usize) {
        let mut rng = self.rng(5, number);
        (rng.usize(2_000_000..=6_000_000), rng.usize(100_000..=2_000_000))
    }

    /// Returns the chunk lengths of a terminal's output: 64 KiB, or up to 98 B less.
    pub(crate) fn terminal(&self, number: u32) -> Vec<usize> {
        let mut rng = self.rng(6, number);
        let (mut left, mut chunks) = (TERMINAL, Vec::new());
        while left > 0 {
            let odd = if rng.bool() { 0 } else { rng.usize(..99) };
            let chunk = left.min((64 << 10) - odd);
            // The rest is at least an item's head.
            chunks.push(if left - chunk < 64 { left } else { chunk });
            left -= chunks[chunks.len() - 1];
        }
        chunks
    }
}

impl ChatId {
    /// Returns its number, for the random numbers and the items; the last bit distinguishes a chat's tools.
    pub(crate) fn number(self) -> u32 {
        self.thread << 24 | u32::from(self.unpaced) << 23 | self.index << 1
    }

    /// Returns the stream of one of its tools.
    pub(crate) fn tool(self, tool: u32) -> u32 {
        stream(StreamKind::Tool, self.number() | tool)
    }

    /// Returns the numbers that a request carries; [`ChatId::of`] reads them.
    pub(crate) fn params(self, chunks: u32) -> [u32; 4] {
        [u32::from(self.unpaced), self.thread, self.index, chunks]
    }

    pub(crate) fn of(params: [u32; 3]) -> Self {
        Self { unpaced: params[0] != 0, thread: params[1], index: params[2] }
    }
}

impl Tool {
    fn new(at: usize, rng: &mut Rng) -> Self {
        let result =
            if rng.u32(..20) == 0 { (1 << 20) - rng.usize(..100) } else { rng.usize(1000..=100_000) };
        Self {
            at,
            arguments: rng.usize(450..=550),
            progress: [(); 3].map(|()| rng.usize(40..=120)),
            result,
            approval: (rng.u32(..10) == 0).then(|| rng.u32(5000..=50_000)),
        }
    }
}

/// Returns a length from 30 to 200 bytes, usually about 70.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn log_normal(rng: &mut Rng) -> usize {
    let (one, other) = (1.0 - rng.f64(), rng.f64());
    let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos();
    (70.0 * (0.5 * normal).exp()).clamp(30.0, 200.0) as usize
}

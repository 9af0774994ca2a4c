//! The fuzzers' bodies without a fuzzer: the committed seeds, and a random campaign from them.
//!
//! ```text
//!   fuzz/seeds/NAME/*  ──▶ as they are
//!                      ──▶ mutated: bytes changed, cut out, put in, taken from another seed
//!   random bytes       ──▶ of all lengths
//! ```
//!
//! `NARROWS_FUZZ_RUNS` multiplies the campaign, `NARROWS_SEED` sets where it starts. A failure prints the
//! input; `NARROWS_FUZZ_INPUT=<hex>` runs that input alone, in the test of its body.
//!
//! What it does not show: a fuzzer that sees which branches it reaches gets further (`.ci/fuzz`).

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use crate::support::Watchdog;
use crate::support::{PATIENCE, say};
use narrows::fuzz::{BODIES, Body};

/// Random inputs and mutated seeds of each body, each so many times `NARROWS_FUZZ_RUNS`.
const RUNS: u64 = 20_000;

/// More than a fuzzer's inputs usually have.
const LONGEST: usize = 600;

fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(crate::support::ROOT).join("fuzz/seeds").join(name);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(&folder).expect("the seeds").map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("readable")).collect()
}

fn hex(data: &[u8]) -> String {
    data.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("memory");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(digits).collect()
}

fn random_bytes(random: &mut fastrand::Rng) -> Vec<u8> {
    let len = random.usize(..LONGEST);
    // Small numbers are choices: all of one kind lead further into one corner.
    let most = [u8::MAX, 31, 7][random.usize(..3)];
    (0..len).map(|_| if random.u8(..8) == 0 { random.u8(..) } else { random.u8(..=most) }).collect()
}

fn mutated(seeds: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut data = seeds[random.usize(..seeds.len())].clone();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..=data.len());
        let end = (at + random.usize(..16)).min(data.len());
        match random.u8(..8) {
            0..=3 if at < data.len() => data[at] = random.u8(..),
            4 if at < data.len() => data[at] ^= 1 << random.u8(..8),
            5 => drop(data.drain(at..end)),
            6 => drop(data.splice(at..at, (at..end + 1).map(|_| random.u8(..)))),
            _ => {
                let other = &seeds[random.usize(..seeds.len())];
                data.splice(at.., other[at.min(other.len())..].iter().copied());
            }
        }
    }
    data
}

fn run(name: &str, body: Body, data: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(data))) {
        say(&format!(
            "FINDING in {name}; again: NARROWS_FUZZ_INPUT={} cargo test -p narrows-tests --test hostile fuzz::{name}",
            hex(data)
        ));
        resume_unwind(panic);
    }
}

fn campaign(name: &str) {
    let (_, body) = BODIES.into_iter().find(|(is, _)| *is == name).expect("listed");
    if let Ok(text) = env::var("NARROWS_FUZZ_INPUT") {
        return run(name, body, &unhex(&text));
    }
    let scale = number("NARROWS_FUZZ_RUNS", 1);
    let patience = PATIENCE * u32::try_from(scale.max(1)).expect("a small number");
    let _watch = Watchdog::within(name, patience);
    let mut random = fastrand::Rng::with_seed(number("NARROWS_SEED", 1));
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "no seeds for {name}");
    seeds.iter().for_each(|seed| run(name, body, seed));
    for _ in 0..RUNS * scale {
        run(name, body, &random_bytes(&mut random));
        run(name, body, &mutated(&seeds, &mut random));
    }
}

macro_rules! campaigns {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                campaign(stringify!($name));
            }
        )*

        #[test]
        fn every_body_has_its_campaign_its_target_and_its_seeds() {
            let names = BODIES.map(|(name, _)| name);
            assert_eq!(names, [$(stringify!($name)),*]);
            let fuzz = Path::new(crate::support::ROOT).join("fuzz");
            for name in names {
                let target = fs::read_to_string(fuzz.join("fuzz_targets").join(name).with_extension("rs"));
                assert!(target.expect("a target").contains(&format!("fuzz::{name}(data)")));
                let seeds = seeds(name);
                assert!((1..=60).contains(&seeds.len()), "{} seeds of {name}", seeds.len());
                assert!(seeds.iter().all(|seed| seed.len() <= 300), "a long seed of {name}");
            }
        }
    };
}

campaigns! { memory handshake descriptors frame ring_hostile ring_program region_image calls }

//! The fuzz targets without a fuzzer: the kept corpus, and a bounded number of inputs made from it
//! by chance.
//!
//! * `cargo test --test fuzz`: needs nothing else. `FUZZ_MUTATIONS=100000` makes it longer,
//!   `FUZZ_SEED=n` repeats its chance, `FUZZ_TARGET=name` runs one target.
//! * `tests/fuzz/run`: libFuzzer, which looks at what an input reaches; see its head.
//!
//! What a fuzzer finds is kept as a file in `corpus/<target>/` beside the test at the place of the
//! fix.

mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use targets::{ALL, Target};

/// Inputs made by chance for each target in an ordinary run.
const MUTATIONS: u64 = 3_000;
/// No input grows longer.
const BYTES_MAX: usize = 8 << 10;

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let entries = fs::read_dir(dir.join(target.name)).expect("each target has a corpus");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry of the directory").path())
        .collect();
    paths.sort();
    let read = |path: PathBuf| {
        let content = fs::read(&path).expect("a file of the corpus");
        (path, content)
    };
    paths.into_iter().map(read).collect()
}

/// All of them, or the one that `FUZZ_TARGET` names.
fn chosen() -> impl Iterator<Item = &'static Target> {
    let name = std::env::var("FUZZ_TARGET").ok();
    let named = name.as_deref().map(Target::named);
    ALL.iter()
        .filter(move |target| named.is_none_or(|named| named.name == target.name))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number")),
    )
}

#[test]
fn the_corpus_holds() {
    for target in ALL {
        let files = corpus(target);
        assert!(!files.is_empty(), "{} has no corpus", target.name);
        for (path, content) in files {
            let outcome = catch_unwind(AssertUnwindSafe(|| target.check(&content)));
            assert!(outcome.is_ok(), "{}", path.display());
        }
        (target.seeds)().iter().for_each(|seed| target.check(seed));
    }
}

#[test]
fn inputs_made_by_chance_hold() {
    let seed = number("FUZZ_SEED").unwrap_or(1);
    let count = number("FUZZ_MUTATIONS").unwrap_or(MUTATIONS);
    for target in chosen() {
        let mut inputs = (target.seeds)();
        inputs.extend(corpus(target).into_iter().map(|(_, content)| content));
        let mut chance = Chance(seed);
        for _ in 0..count {
            let input = chance.mutation(&inputs);
            let outcome = catch_unwind(AssertUnwindSafe(|| target.check(&input)));
            assert!(
                outcome.is_ok(),
                "{} on {} (seed {seed})",
                target.name,
                input.escape_ascii()
            );
        }
    }
}

/// The fuzzer's crate is compiled with the versions that the server has.
#[test]
fn the_lock_files_agree() {
    let versions = |file: &str| -> BTreeSet<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = fs::read_to_string(path).expect("a lock file");
        let packages = text.split("[[package]]").skip(1);
        let start = |package: &str| package.trim().lines().take(2).collect::<Vec<_>>().join(" ");
        packages.map(start).collect()
    };
    let own = versions("tests/fuzz/Cargo.lock");
    // What only the fuzzer needs.
    let only = ["arbitrary", "libfuzzer-sys", "zkraft-fuzz"];
    let is_only = |package: &&String| {
        only.iter()
            .any(|name| package.starts_with(&format!("name = \"{name}\"")))
    };
    let servers = versions("Cargo.lock");
    let others: Vec<_> = own
        .difference(&servers)
        .filter(|package| !is_only(package))
        .collect();
    assert!(
        others.is_empty(),
        "copy Cargo.lock to tests/fuzz and run tests/fuzz/run: {others:?}"
    );
}

/// Not a test of its own: writes the seeds of each target as files below `FUZZ_SEEDS`.
#[test]
fn seeds() {
    let Some(dir) = std::env::var_os("FUZZ_SEEDS") else {
        return;
    };
    for target in ALL {
        let dir = Path::new(&dir).join(target.name);
        fs::create_dir_all(&dir).expect("a directory for the seeds");
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            fs::write(dir.join(format!("seed-{number:02}")), seed).expect("a seed is written");
        }
    }
}

/// splitmix64: any seed will do.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }

    /// One of the inputs with a few changes.
    fn mutation(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut input = inputs[self.below(inputs.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(input.len());
            match self.below(7) {
                0 => input.truncate(at),
                1 => input.insert(at, self.below(256) as u8),
                2 if !input.is_empty() => input[at] ^= 1 << self.below(8),
                3 if !input.is_empty() => input[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                4 if !input.is_empty() => {
                    input.remove(at);
                }
                // Numbers that are lengths somewhere.
                5 if input.len() >= 4 => {
                    let at = self.below(input.len() - 3);
                    let number = [-1, i32::MIN, i32::MAX, 0, 0x10_0000][self.below(5)];
                    input[at..at + 4].copy_from_slice(&i32::to_be_bytes(number));
                }
                _ => {
                    let other = &inputs[self.below(inputs.len())];
                    let from = self.below(other.len());
                    let length = self.below(other.len() - from + 1);
                    input.splice(at..at, other[from..from + length].iter().copied());
                }
            }
        }
        input.truncate(BYTES_MAX);
        input
    }
}

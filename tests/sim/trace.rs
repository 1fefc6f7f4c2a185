//! What happened in a run: a line per event, a hash over all of them, the last ones for a report.
//!
//! To write the lines costs more than much of what they tell of, and few runs are ever looked at:
//! one that found something is repeated with them.

use std::collections::VecDeque;
use std::fmt;

/// Lines that a failure report shows.
const KEPT: usize = 200;

/// What becomes of the lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Telling {
    /// Nobody asks for them.
    Nothing,
    /// They are hashed, and the last ones kept.
    Kept,
    /// Besides, each is printed at once.
    Printed,
}

#[derive(Debug)]
pub struct Trace {
    telling: Telling,
    last: VecDeque<String>,
    /// Over all lines: xor and multiply, word by word.
    hash: u64,
}

impl Trace {
    pub fn new(telling: Telling) -> Self {
        Self {
            telling,
            last: VecDeque::new(),
            hash: 0xcbf2_9ce4_8422_2325,
        }
    }

    /// Whether lines are wanted at all.
    pub fn is_on(&self) -> bool {
        self.telling != Telling::Nothing
    }

    pub fn note(&mut self, now_us: u64, what: fmt::Arguments<'_>) {
        let line = format!("{:>6}.{:06} {what}", now_us / 1_000_000, now_us % 1_000_000);
        // In words, since a test build without optimisation feels every byte.
        for word in line.as_bytes().chunks(8) {
            let mut bytes = [b'\n'; 8];
            bytes[..word.len()].copy_from_slice(word);
            self.hash = (self.hash ^ u64::from_le_bytes(bytes)).wrapping_mul(0x0100_0000_01b3);
            self.hash ^= self.hash >> 29;
        }
        if self.telling == Telling::Printed {
            println!("{line}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// Of runs that told what happens.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The last lines, oldest first.
    pub fn tail(&self) -> impl Iterator<Item = &str> {
        self.last.iter().map(String::as_str)
    }
}

//! What happened in a run: a line per event, a hash over all of them, the last ones for a report.

use std::collections::VecDeque;
use std::fmt;

/// Lines that a failure report shows.
const KEPT: usize = 200;

#[derive(Debug)]
pub struct Trace {
    last: VecDeque<String>,
    /// Over all lines: xor and multiply, word by word.
    hash: u64,
    pub lines: u64,
    /// Print every line at once.
    print: bool,
}

impl Trace {
    pub fn new(print: bool) -> Self {
        Self {
            last: VecDeque::new(),
            hash: 0xcbf2_9ce4_8422_2325,
            lines: 0,
            print,
        }
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
        self.lines += 1;
        if self.print {
            println!("{line}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The last lines, oldest first.
    pub fn tail(&self) -> impl Iterator<Item = &str> {
        self.last.iter().map(String::as_str)
    }
}

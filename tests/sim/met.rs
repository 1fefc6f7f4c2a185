//! Which faults met which situations: one that no run has ever shown proves nothing of it.

use std::fmt;

/// How the rows are called: `world::Trouble` in its order.
pub const TROUBLES: [&str; 13] = [
    "crash",
    "restart",
    "pause",
    "reset",
    "disk",
    "full disk",
    "clock jump",
    "partition",
    "flap",
    "client cut",
    "lost disk",
    "other build",
    "rot",
];

/// What a server is about when a fault meets it, or some server when it meets the network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Situation {
    Leads,
    /// It knows no leader.
    Leaderless,
    /// A group of its log is on its way to the disk.
    Writes,
    /// It writes a snapshot of its own.
    Snapshots,
    Sends,
    Receives,
    /// It waits for another server to lead in its place.
    HandsOver,
    ReadOnly,
    /// The membership is joint.
    Joint,
    /// It belongs and has no vote.
    Learner,
    /// Another server is down.
    OneDown,
    /// A server has lost the disk that the others count on.
    DiskLost,
    /// Something between servers is cut.
    Cut,
    /// Its disk has a trouble already.
    BadDisk,
    /// Builds differ.
    Mixed,
}

use Situation::*;

/// In the order of the enumeration.
const SITUATIONS: [(Situation, &str); 15] = [
    (Leads, "leads"),
    (Leaderless, "no leader"),
    (Writes, "writes"),
    (Snapshots, "snapshots"),
    (Sends, "sends"),
    (Receives, "receives"),
    (HandsOver, "hands over"),
    (ReadOnly, "read-only"),
    (Joint, "joint"),
    (Learner, "learner"),
    (OneDown, "one down"),
    (DiskLost, "disk lost"),
    (Cut, "cut"),
    (BadDisk, "bad disk"),
    (Mixed, "mixed"),
];

impl Situation {
    pub const ALL: [Self; SITUATIONS.len()] = {
        let mut all = [Leads; SITUATIONS.len()];
        let mut at = 0;
        while at < all.len() {
            all[at] = SITUATIONS[at].0;
            at += 1;
        }
        all
    };
}

/// How often a trouble met a situation.
#[derive(Clone, Copy, Default)]
pub struct Met([[u64; SITUATIONS.len()]; TROUBLES.len()]);

impl Met {
    pub fn count(&mut self, trouble: usize, situations: &[Situation]) {
        for situation in situations {
            self.0[trouble][*situation as usize] += 1;
        }
    }

    pub fn add(&mut self, other: &Self) {
        let sums = self.0.as_flattened_mut().iter_mut();
        for (sum, part) in sums.zip(other.0.as_flattened()) {
            *sum += *part;
        }
    }

    /// What never came together.
    pub fn missing(&self) -> impl Iterator<Item = String> {
        let rows = TROUBLES.into_iter().zip(&self.0);
        rows.flat_map(|(trouble, row)| {
            let cells = SITUATIONS.iter().zip(row).filter(|(_, count)| **count == 0);
            cells.map(move |((_, situation), _)| format!("{trouble} × {situation}"))
        })
    }
}

/// In short: how many there are is enough beside other counts.
impl fmt::Debug for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.as_flattened().iter().sum::<u64>())
    }
}

/// A table: a row per trouble, a column per situation.
impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:11}", "")?;
        for (_, situation) in SITUATIONS {
            write!(f, " {situation:>10}")?;
        }
        writeln!(f)?;
        for (trouble, row) in TROUBLES.into_iter().zip(&self.0) {
            write!(f, "{trouble:11}")?;
            for count in row {
                write!(f, " {count:>10}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

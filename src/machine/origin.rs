//! Which commands of each server's stream have been applied, so that each is applied once and in
//! order, whatever the network and the leaders did to it.
//!
//! A stream starts at 1 for every incarnation of a server. A disk that was wiped makes another
//! origin, so its numbers cannot be taken for old ones.

use std::collections::BTreeMap;

use super::digest::{Part, Term};
use crate::proto::log;

/// One incarnation of one server's stream of writes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct OriginId {
    pub server: u32,
    /// Random number made with the data directory.
    pub disk: u64,
    /// Rises at each start of the server and at each snapshot it installs.
    pub incarnation: u64,
}

impl From<&log::Origin> for OriginId {
    fn from(origin: &log::Origin) -> Self {
        Self {
            server: origin.server,
            disk: origin.disk,
            incarnation: origin.incarnation,
        }
    }
}

/// One command of one origin: what a reply belongs to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CommandId {
    pub origin: OriginId,
    pub number: u64,
}

/// The last command applied of a server's present incarnation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Progress {
    incarnation: u64,
    last: u64,
}

/// The progress of every server and disk that ever wrote.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    progress: BTreeMap<(u32, u64), Progress>,
    digest: u64,
}

impl Origins {
    /// How many commands at the start of a batch must be skipped: those that were applied before.
    /// `None`: the whole batch is ignored, as it comes from an older incarnation or leaves a gap.
    pub fn admit(&mut self, origin: OriginId, first: u64) -> Option<u64> {
        let key = (origin.server, origin.disk);
        let known = self.progress.get(&key).copied();
        let last = match known {
            Some(known) if origin.incarnation < known.incarnation => return None,
            Some(known) if origin.incarnation == known.incarnation => known.last,
            _ => 0,
        };
        let skipped = (last + 1).checked_sub(first)?;
        self.put(origin, last);
        Some(skipped)
    }

    /// Records that the next command of this origin is being applied.
    pub fn advance(&mut self, command: CommandId) {
        let origin = command.origin;
        let known = self.progress.get(&(origin.server, origin.disk));
        let expected = Progress {
            incarnation: origin.incarnation,
            last: command.number - 1,
        };
        assert_eq!(
            known,
            Some(&expected),
            "commands of an origin are applied one by one"
        );
        self.put(origin, command.number);
    }

    /// Every origin with the number of its last command, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (OriginId, u64)> {
        self.progress.iter().map(|(&(server, disk), progress)| {
            (
                OriginId {
                    server,
                    disk,
                    incarnation: progress.incarnation,
                },
                progress.last,
            )
        })
    }

    /// Sets an origin's progress, as an image has it.
    pub fn put(&mut self, origin: OriginId, last: u64) {
        let key = (origin.server, origin.disk);
        let progress = Progress {
            incarnation: origin.incarnation,
            last,
        };
        let before = self.progress.insert(key, progress);
        let before = before.map_or(0, |before| term(key, before));
        self.digest = self
            .digest
            .wrapping_sub(before)
            .wrapping_add(term(key, progress));
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The digest from scratch, for checks.
    pub fn recompute(&self) -> u64 {
        self.progress.iter().fold(0, |sum, (key, progress)| {
            sum.wrapping_add(term(*key, *progress))
        })
    }
}

fn term((server, disk): (u32, u64), progress: Progress) -> u64 {
    Term::new(Part::Origin)
        .word(u64::from(server))
        .word(disk)
        .word(progress.incarnation)
        .word(progress.last)
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(incarnation: u64) -> OriginId {
        OriginId {
            server: 1,
            disk: 7,
            incarnation,
        }
    }

    fn apply(origins: &mut Origins, origin: OriginId, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            origins.advance(CommandId { origin, number });
        }
    }

    #[test]
    fn what_was_applied_is_skipped_and_a_gap_is_ignored() {
        let mut origins = Origins::default();
        assert_eq!(origins.admit(origin(1), 2), None);
        assert_eq!(origins.admit(origin(1), 1), Some(0));
        apply(&mut origins, origin(1), 1..=5);
        assert_eq!(origins.admit(origin(1), 4), Some(2));
        assert_eq!(origins.admit(origin(1), 6), Some(0));
        assert_eq!(origins.admit(origin(1), 7), None);
        assert_eq!(origins.digest(), origins.recompute());
    }

    #[test]
    fn a_newer_incarnation_starts_again_and_fences_the_older() {
        let mut origins = Origins::default();
        assert_eq!(origins.admit(origin(1), 1), Some(0));
        apply(&mut origins, origin(1), 1..=5);
        assert_eq!(origins.admit(origin(2), 6), None, "a gap in the new stream");
        assert_eq!(
            origins.admit(origin(1), 6),
            Some(0),
            "which therefore has not begun"
        );
        assert_eq!(origins.admit(origin(2), 1), Some(0));
        assert_eq!(origins.admit(origin(1), 6), None);
        assert_eq!(origins.iter().collect::<Vec<_>>(), [(origin(2), 0)]);
        assert_eq!(origins.digest(), origins.recompute());
    }

    #[test]
    fn another_disk_is_another_origin() {
        let mut origins = Origins::default();
        let other = OriginId {
            disk: 8,
            ..origin(1)
        };
        assert_eq!(origins.admit(origin(1), 1), Some(0));
        apply(&mut origins, origin(1), 1..=1);
        assert_eq!(origins.admit(other, 1), Some(0));
        assert_eq!(origins.iter().count(), 2);
    }

    #[test]
    #[should_panic(expected = "one by one")]
    fn a_skipped_number_is_a_bug() {
        let mut origins = Origins::default();
        origins.admit(origin(1), 1);
        apply(&mut origins, origin(1), 2..=2);
    }
}

//! When the feature level of the ensemble is raised, and what becomes of servers that are too old
//! for it. What levels are for: [`crate::machine::FEATURE_LEVEL`].
//!
//! The leader raises the level once all members, with a vote or without, are there and have said
//! of themselves that they know the higher one. What a member that is down said last does not
//! count: it may be down because an older version is being put back, and raising the level would
//! lock it out. So an upgrade can be taken back, server by server, for as long as it is not
//! complete; and any server that is configured to agree to no more than some level
//! (`featureLevelMax`) keeps the whole ensemble there.
//!
//! Nothing depends on what the leader knows being true, though: a server can be replaced by an
//! older one at any moment. Whoever is too old stops as soon as it has applied the entry that
//! raises the level, refuses to start on a state of that level, and is let in by no one who knows
//! of it.

use std::collections::BTreeMap;

use crate::machine::LEVEL_SETTING;
use crate::proto::log;
use crate::proto::peer::Introduction;

use super::{Engine, set_command};

/// The state is of a level that this server does not know: it cannot go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the data is of feature level {level}, and this version of zkraft knows no level above \
     {known}: start the version that raised the level, or a newer one, on the same data; nothing \
     is lost. How far an upgrade can be taken back: \"Upgrading\" in the README"
)]
pub struct Outdated {
    pub level: u32,
    pub known: u32,
}

/// What other servers said of themselves last.
#[derive(Debug, Default)]
pub struct Levels {
    said: BTreeMap<u64, Introduction>,
    /// Term and level of what this server proposed last.
    proposed: (u64, u32),
    /// Why the level is not raised, as was logged.
    told: Option<String>,
}

impl Levels {
    /// A server said who it is, whether it was let in or not.
    pub fn heard(&mut self, id: u64, introduction: Introduction) {
        let is_over = |known: &Introduction| {
            known.disk == introduction.disk && known.boot > introduction.boot
        };
        // News of an earlier start may come late. And strangers say what they like.
        if id <= u64::from(u8::MAX) && !self.said.get(&id).is_some_and(is_over) {
            self.said.insert(id, introduction);
        }
    }

    /// The process of a server is gone: what starts in its place may be another build.
    pub fn gone(&mut self, id: u64) {
        self.said.remove(&id);
    }

    /// The highest level that a server knows; `None`: it has not said.
    pub fn known(&self, id: u64) -> Option<u32> {
        self.said.get(&id).map(|said| said.level)
    }

    fn agreed(&self, id: u64) -> Option<u32> {
        let said = self.said.get(&id)?;
        Some(agreed(said.level, said.level_max))
    }
}

/// The level that a server agrees to at most. `level_max`: 0 is no limit.
fn agreed(known: u32, level_max: u32) -> u32 {
    match level_max {
        0 => known,
        _ => known.min(level_max),
    }
}

impl Engine {
    /// As the leader: raises the level if all members agree.
    pub(super) fn raise_level(&mut self, wall_ms: i64) {
        let term = self.replica.term();
        let known = self.shared.options.level;
        if known <= self.level || self.levels.proposed == (term, known) {
            return;
        }
        let wanted = match self.common_level() {
            Ok(common) if common > self.level_to_be() => common,
            Ok(_) => return,
            Err(why) => {
                if self.levels.told.as_ref() != Some(&why) {
                    tracing::info!(level = self.level, known, why, "the feature level stays");
                    self.levels.told = Some(why);
                }
                return;
            }
        };
        let entry = log::Entry {
            time_ms: wall_ms,
            internal: vec![set_command(&(LEVEL_SETTING.to_owned(), wanted.into()))],
            ..log::Entry::default()
        };
        if self.propose_entry(entry).is_ok() {
            tracing::info!(
                from = self.level,
                to = wanted,
                "the feature level is raised"
            );
            self.levels.proposed = (term, wanted);
            self.levels.told = None;
        }
    }

    /// The level that a server alone begins with, as a setting.
    pub(super) fn level_of_one(&self) -> Option<(String, i64)> {
        let is_alone = self.replica.members() == [self.id];
        let agreed = self.agreed_here();
        (is_alone && agreed > self.level).then(|| (LEVEL_SETTING.to_owned(), agreed.into()))
    }

    /// The level that everybody who joins must know.
    pub(super) fn level_to_be(&self) -> u32 {
        let (term, proposed) = self.levels.proposed;
        match term == self.replica.term() {
            true => self.level.max(proposed),
            false => self.level,
        }
    }

    /// A server that does not know the level of the ensemble.
    pub(super) fn too_old<'a>(&self, mut ids: impl Iterator<Item = &'a u64>) -> Option<u64> {
        let level = self.level_to_be();
        let is_too_old = |id: &&u64| self.levels.known(**id).is_some_and(|known| known < level);
        ids.find(is_too_old).copied()
    }

    /// The state is of this level now.
    pub(super) fn at_level(&mut self, level: u32) {
        if level == self.level {
            return;
        }
        // What a start applies again was told when it happened.
        if self.applied.index > self.committed_before {
            tracing::info!(
                from = self.level,
                to = level,
                "the feature level was raised"
            );
        }
        self.level = level;
    }

    /// Whether this server must stop.
    pub(super) fn outdated(&self) -> Option<Outdated> {
        let (level, known) = (self.level, self.shared.options.level);
        (level > known).then_some(Outdated { level, known })
    }

    /// The highest level that all members agree to; or who does not agree to more than there is.
    fn common_level(&self) -> Result<u32, String> {
        let mut common = self.agreed_here();
        if common <= self.level {
            return Err(format!("this server is told to keep it at {common}"));
        }
        for id in self.replica.members() {
            if id == self.id {
                continue;
            }
            let agreed = self.levels.agreed(id).filter(|_| self.is_active(id));
            match (agreed, self.levels.known(id)) {
                (None, _) => return Err(format!("server {id} is not there")),
                (Some(agreed), Some(known)) if agreed <= self.level && known > agreed => {
                    return Err(format!("server {id} is told to keep it at {agreed}"));
                }
                (Some(agreed), _) if agreed <= self.level => {
                    return Err(format!("server {id} knows no level above {agreed}"));
                }
                (Some(agreed), _) => common = common.min(agreed),
            }
        }
        Ok(common)
    }

    fn agreed_here(&self) -> u32 {
        agreed(self.shared.options.level, self.shared.options.level_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(boot: u64, level: u32, level_max: u32) -> Introduction {
        Introduction {
            disk: 7,
            boot,
            level,
            level_max,
            ..Introduction::default()
        }
    }

    #[test]
    fn what_a_server_said_last_counts() {
        let mut levels = Levels::default();
        assert_eq!(levels.known(2), None);
        levels.heard(2, said(5, 3, 0));
        levels.heard(2, said(6, 2, 0));
        levels.heard(2, said(5, 3, 0));
        assert_eq!((levels.known(2), levels.agreed(2)), (Some(2), Some(2)));
        // Starts are counted by disk.
        let other = Introduction {
            disk: 8,
            ..said(1, 4, 0)
        };
        levels.heard(2, other);
        assert_eq!(levels.known(2), Some(4));
        levels.gone(2);
        assert_eq!(levels.known(2), None);
    }

    #[test]
    fn a_server_agrees_to_what_it_knows_or_is_told_to_agree_to() {
        let mut levels = Levels::default();
        for (level_max, expected) in [(0, 3), (1, 1), (3, 3), (9, 3)] {
            levels.heard(2, said(1, 3, level_max));
            assert_eq!(levels.agreed(2), Some(expected));
            assert_eq!(levels.known(2), Some(3));
        }
    }

    #[test]
    fn strangers_do_not_pile_up() {
        let mut levels = Levels::default();
        (0..1_000).for_each(|id| levels.heard(id, said(1, 1, 0)));
        assert_eq!(levels.said.len(), 256);
    }
}

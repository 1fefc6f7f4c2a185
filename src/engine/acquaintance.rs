//! Who the others are, as far as this server has applied it or was told of it.
//!
//! Whoever was away while others joined, or while one came back with another disk, would refuse
//! those who lead now, and could not catch up with what would have told it. So servers tell each
//! other, as soon as they meet, what they know of the ensemble and of its disks. Both come from the
//! log, and the later state of it is believed.

use std::collections::{BTreeMap, BTreeSet};

use crate::machine::{Ensemble, Machine};
use crate::proto::peer::{BoundDisk, Told};
use crate::wire::ServerLine;

use super::members::{changed_setting, disk_setting};

/// The disks that servers must come with, by server; one that is missing may come with any.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Disks {
    /// Of the last entry with which these were applied, or of a later one.
    index: u64,
    bound: BTreeMap<u32, Bound>,
}

/// The disk of a server.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Bound {
    disk: u64,
    /// Its number was made free for another one before.
    changed: bool,
}

#[derive(Debug, Default)]
pub struct Acquaintance {
    applied: Disks,
    told: Disks,
    /// The cluster of the server that was believed last; 0: none was.
    cluster: u64,
    /// The newest ensemble that another server has told of.
    ensemble: Option<Ensemble>,
    /// Who is not in that one, and still needed until the change to it is through, as anyone said
    /// who told of it.
    going: BTreeSet<u32>,
    /// The last known lines of all servers that were ever heard of: those that are to go are needed
    /// until the change is through.
    lines: BTreeMap<u32, ServerLine>,
}

impl Acquaintance {
    /// The state has other settings than before.
    pub fn apply(&mut self, machine: &Machine) {
        let disks = (1..=u32::from(u8::MAX)).filter_map(|server| {
            let bound = Bound {
                disk: machine.setting(&disk_setting(server.into())) as u64,
                changed: machine.setting(&changed_setting(server.into())) != 0,
            };
            (bound != Bound::default()).then_some((server, bound))
        });
        self.applied = Disks {
            index: machine.applied().index,
            bound: disks.collect(),
        };
    }

    /// These lines are the newest.
    pub fn note<'a>(&mut self, lines: impl IntoIterator<Item = &'a ServerLine>) {
        let lines = lines.into_iter();
        self.lines.extend(lines.map(|line| (line.id, line.clone())));
    }

    /// Where a server is or was.
    pub fn line(&self, server: u64) -> Option<&ServerLine> {
        self.lines.get(&u32::try_from(server).ok()?)
    }

    /// All servers that were ever heard of.
    pub fn servers(&self) -> impl Iterator<Item = u64> {
        self.lines.keys().map(|server| u64::from(*server))
    }

    /// The cluster of which this server was told; 0: of none.
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    /// Another server, of this cluster, says what it knows.
    pub fn learn(&mut self, cluster: u64, told: &Told) {
        if cluster != 0 {
            self.cluster = cluster;
        }
        if told.index > self.disks().index {
            let disks = told.disks.iter().map(|&told| {
                let BoundDisk { disk, changed, .. } = told;
                (told.server, Bound { disk, changed })
            });
            self.told = Disks {
                index: told.index,
                bound: disks.collect(),
            };
        }
        let going = told.going.iter();
        let going = going.filter_map(|line| ServerLine::parse_whole(line).ok());
        let going: BTreeMap<u32, ServerLine> = going.map(|line| (line.id, line)).collect();
        for (id, line) in &going {
            self.lines.entry(*id).or_insert_with(|| line.clone());
        }
        let Ok(ensemble) = Ensemble::parse(&told.ensemble) else {
            return;
        };
        for line in ensemble.members() {
            self.lines.entry(line.id).or_insert_with(|| line.clone());
        }
        let known = self.ensemble.as_ref().map(Ensemble::version);
        let version = Some(ensemble.version());
        if known < version {
            self.ensemble = Some(ensemble);
            self.going.clear();
        }
        if known <= version {
            self.going.extend(going.into_keys());
        }
    }

    /// Who is still needed although the ensemble that was told of does not have them.
    pub fn going(&self) -> impl Iterator<Item = u64> {
        self.going.iter().map(|server| u64::from(*server))
    }

    /// The newest ensemble, if this is the applied one.
    pub fn ensemble(&self, applied: Option<&Ensemble>) -> Option<Ensemble> {
        let is_news = |told: &&Ensemble| applied.is_none_or(|own| own.version() < told.version());
        let told = self.ensemble.as_ref().filter(is_news);
        told.or(applied).cloned()
    }

    /// The disk that a server must come with; 0: any.
    pub fn disk(&self, server: u32) -> u64 {
        self.bound(server).disk
    }

    /// Whether the disk that a server must come with may not be its first.
    pub fn has_other_disk(&self, server: u32) -> bool {
        self.bound(server).changed
    }

    fn bound(&self, server: u32) -> Bound {
        let bound = self.disks().bound.get(&server);
        bound.copied().unwrap_or_default()
    }

    /// What others are told. `going`: who is not in this ensemble and needed until a change is
    /// through. Of those, whoever starts anew in the middle of it may only know the numbers.
    pub fn tell(&self, ensemble: Option<&Ensemble>, going: &[u64]) -> Told {
        let Disks { index, bound } = self.disks();
        let going = going.iter().filter_map(|id| self.line(*id));
        let disks = bound.iter();
        let disks = disks.map(|(&server, &Bound { disk, changed })| BoundDisk {
            server,
            disk,
            changed,
        });
        Told {
            ensemble: ensemble.map_or_else(String::new, ToString::to_string),
            index: *index,
            disks: disks.collect(),
            going: going.map(ToString::to_string).collect(),
        }
    }

    fn disks(&self) -> &Disks {
        match self.applied.index < self.told.index {
            true => &self.told,
            false => &self.applied,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(index: u64, disks: &[(u32, u64)], ensemble: &str) -> Told {
        let disks = disks.iter();
        Told {
            ensemble: ensemble.to_owned(),
            index,
            disks: disks
                .map(|&(server, disk)| BoundDisk {
                    server,
                    disk,
                    changed: disk == 9,
                })
                .collect(),
            going: Vec::new(),
        }
    }

    #[test]
    fn the_later_state_is_believed() {
        let mut known = Acquaintance::default();
        known.learn(7, &told(5, &[(1, 7), (2, 8)], ""));
        known.learn(7, &told(4, &[(1, 6)], ""));
        assert_eq!([known.disk(1), known.disk(2), known.disk(3)], [7, 8, 0]);
        known.learn(7, &told(6, &[(2, 9)], ""));
        assert_eq!([known.disk(1), known.disk(2)], [0, 9]);
        assert!(known.has_other_disk(2) && !known.has_other_disk(1));
        assert_eq!(known.tell(None, &[]), told(6, &[(2, 9)], ""));
        known.apply(&Machine::default());
        assert_eq!(known.disk(2), 9);
    }

    #[test]
    fn who_is_to_go_can_still_be_found() {
        let mut known = Acquaintance::default();
        let newer = "server.1=a:1:2\nversion=200000000";
        known.learn(7, &told(1, &[], newer));
        known.learn(
            7,
            &told(1, &[], "server.1=b:1:2\nserver.2=c:1:2\nversion=100000000"),
        );
        let newest = known.ensemble(None).expect("it was told of one");
        assert!(newest.to_string().starts_with("server.1=a:1:2"));
        let host = |server| known.line(server).map(|line| line.peers[0].host.clone());
        assert_eq!(host(1).as_deref(), Some("a"));
        assert_eq!(host(2).as_deref(), Some("c"));
        assert_eq!(host(3), None);
        // Others can be told of it by one whose newest ensemble does not have it.
        let going = known.tell(Some(&newest), &[2, 3]).going;
        assert_eq!(going, ["server.2=c:1:2:participant"]);
        let mut anew = Acquaintance::default();
        let with = |ensemble| Told {
            going: going.clone(),
            ..told(1, &[], ensemble)
        };
        anew.learn(7, &with(newer));
        assert_eq!(anew.line(2), known.line(2));
        // It is needed as long as nothing newer is heard, whoever else does not know it.
        anew.learn(7, &told(1, &[], newer));
        assert_eq!(anew.going().collect::<Vec<_>>(), [2]);
        anew.learn(7, &told(1, &[], "server.1=a:1:2\nversion=300000000"));
        assert_eq!(anew.going().count(), 0);
        anew.learn(7, &with(newer));
        assert_eq!(anew.going().count(), 0);
    }
}

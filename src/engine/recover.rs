//! How one survivor of a lost majority becomes a cluster of its own.
//!
//! Operators decide that, when the other servers are gone for good: what only those had is lost
//! then, acknowledged or not. The log of the survivor goes on with entries that say so. Everything
//! in it counts as committed, since it may have been acknowledged; then the cluster gets another
//! number, so that no server of the old one is ever listened to again, this server is the only one
//! of the ensemble, and the only member. They are of a term that is so far above the last that no
//! client can have seen a zxid of its epoch, whatever happened among the others meanwhile.
//!
//! A snapshot follows at once. Servers that are added later have nothing, and must never be given
//! the log from before: while they follow it they would take themselves for the members they were
//! then, and could elect each other.

use prost::Message as _;

use crate::machine::{Attached, Change, CommandId, Image, LogId, Machine, Outcome, Sink, op};
use crate::proto::log::membership_step::Kind;
use crate::proto::log::{self, HardState, LogEntry, Membership, MembershipChange, Record};
use crate::wire::{ServerLine, SessionId, Zxid};

use super::members::{CLUSTER_SETTING, disk_setting};
use super::reconcile::{step, unbind};
use super::{Engine, Outputs, Setup, SnapshotMeta, entry, own_command, set_command};

/// How many terms the others may have had without this server: one each second for half a year.
const TERMS: u64 = 1 << 24;
/// Terms are epochs of zxids, which are below this.
const TERM_MAX: u64 = i32::MAX as u64;
/// As entries of the log have it.
const MEMBERSHIP_CHANGE: u32 = 2;

/// What tells how far a survivor is, for operators who must choose among several.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SurvivorFacts {
    pub server: u64,
    /// The last entry of the log: the higher its term, and the higher its index in the same term,
    /// the more has reached this server.
    pub last: LogId,
    /// The last entry that this server knows to be committed.
    pub committed: u64,
    pub zxid: Zxid,
    /// When the last entry with a command in it was proposed, in ms since 1970; 0: there is none.
    pub time_ms: i64,
    pub znodes: usize,
    pub sessions: usize,
    pub membership: Membership,
    /// Where the servers of the ensemble are, as the log says last.
    pub lines: Vec<ServerLine>,
}

/// Why a server cannot become a cluster of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unfit {
    #[error("there is nothing in its log: choose a server that has taken part")]
    Empty,
    #[error("it is the only member already, and needs no other server: start it")]
    Alone,
    #[error(
        "it does not belong to the ensemble any more, as far as its own data tells: choose a \
         server that does"
    )]
    Removed,
    #[error(
        "its data is of feature level {level}, which this version does not know: use the newer"
    )]
    Outdated { level: u32 },
    #[error("the terms of its log are used up: restore its data into a new cluster")]
    Terms,
}

/// What makes a server a cluster of its own.
#[derive(Debug)]
pub struct Alone {
    /// To be written to its log, after all that is there: then it is done.
    pub record: Record,
    /// The state after it, of which a snapshot must follow before anybody joins.
    pub meta: SnapshotMeta,
    pub image: Image,
}

/// A server as it was recovered from its disk, which does not run.
pub struct Survivor {
    engine: Engine,
    facts: SurvivorFacts,
    disk: u64,
    /// The highest term that it has heard of.
    term: u64,
}

impl Survivor {
    /// Applies the whole log.
    pub fn new(mut setup: Setup) -> Self {
        let last = setup.entries.last().map(|entry| LogId {
            term: entry.term,
            index: entry.index,
        });
        let last = last.unwrap_or(setup.machine.applied());
        let committed = std::mem::replace(&mut setup.hard_state.commit, last.index);
        let term = setup.hard_state.term;
        let disk = setup.origin.disk;
        let mut engine = Engine::new(setup, 0);
        engine.turn(0, 0, &mut Outputs::default());
        let state = engine.shared.state.read();
        let machine = &state.machine;
        let is_whole = machine.applied().index == last.index;
        debug_assert!(is_whole || engine.outdated().is_some());
        let facts = SurvivorFacts {
            server: engine.id,
            last,
            committed,
            zxid: machine.zxid(),
            time_ms: machine.time_ms(),
            znodes: machine.znode_count(),
            sessions: machine.session_count(),
            membership: engine.replica.membership(),
            lines: machine
                .ensemble()
                .map(|ensemble| ensemble.members().to_vec())
                .unwrap_or_default(),
        };
        drop(state);
        Self {
            engine,
            facts,
            disk,
            term,
        }
    }

    pub fn facts(&self) -> &SurvivorFacts {
        &self.facts
    }

    /// What makes it a cluster of its own. `cluster`: a random number.
    ///
    /// # Errors
    /// It is not fit for that.
    pub fn alone(self, cluster: u64, wall_ms: i64) -> Result<Alone, Unfit> {
        let SurvivorFacts {
            server,
            last,
            membership,
            ..
        } = &self.facts;
        if let Some(outdated) = self.engine.outdated() {
            let level = outdated.level;
            return Err(Unfit::Outdated { level });
        }
        if last.index == 0 {
            return Err(Unfit::Empty);
        }
        let changes = changes(membership, *server);
        if changes.is_empty() && self.is_bound() {
            return Err(Unfit::Alone);
        }
        let term = self.term.max(last.term) + TERMS;
        if term > TERM_MAX - TERMS {
            return Err(Unfit::Terms);
        }
        let naming = log::Entry {
            time_ms: wall_ms,
            internal: self.naming(cluster)?,
            ..log::Entry::default()
        };
        let naming = (naming.encode_to_vec(), Vec::new(), 0);
        let changes = changes.into_iter().map(|change| {
            let entry = log::Entry {
                change: Some(change),
                ..log::Entry::default()
            };
            // Where raft would have its own account of the change, which nobody reads.
            (Vec::new(), entry.encode_to_vec(), MEMBERSHIP_CHANGE)
        });
        let contents = std::iter::once(naming).chain(changes);
        let entries: Vec<LogEntry> = (last.index + 1..)
            .zip(contents)
            .map(|(index, (data, context, kind))| LogEntry {
                term,
                index,
                kind,
                data: data.into(),
                context: context.into(),
            })
            .collect();
        let image = self.after(&entries);
        let commit = image.applied().index;
        Ok(Alone {
            meta: SnapshotMeta {
                index: commit,
                term,
                membership: Membership {
                    voters: vec![*server],
                    ..Membership::default()
                },
                zxid: image.zxid().0,
                digest: image.digest(),
            },
            image,
            record: Record {
                entries,
                hard_state: Some(HardState {
                    term,
                    vote: 0,
                    commit,
                }),
                mark: None,
            },
        })
    }

    /// Whether the state binds this server's disk to its number. On another one it leads nobody.
    fn is_bound(&self) -> bool {
        let state = self.engine.shared.state.read();
        let bound = state.machine.setting(&disk_setting(self.facts.server));
        bound == 0 || bound as u64 == self.disk
    }

    /// The state after these entries.
    fn after(&self, entries: &[LogEntry]) -> Image {
        let machine = &mut self.engine.shared.state.write().machine;
        for entry in entries {
            let (index, term) = (entry.index, entry.term);
            let content = match entry.kind {
                MEMBERSHIP_CHANGE => entry::decode_commands(&entry.context),
                _ => entry::decode_commands(&entry.data),
            };
            machine.apply(LogId { term, index }, &content, &mut NoOne);
        }
        machine.image()
    }

    /// The commands after which the cluster is another one, of this server's disk and line alone.
    fn naming(&self, cluster: u64) -> Result<Vec<log::Command>, Unfit> {
        let server = self.facts.server;
        let state = self.engine.shared.state.read();
        let machine = &state.machine;
        let mut commands = vec![
            // Never 0, which means that there is none.
            set_command(&(CLUSTER_SETTING.to_owned(), (cluster | 1) as i64)),
            set_command(&(disk_setting(server), self.disk as i64)),
        ];
        let others = (1..=u64::from(u8::MAX)).filter(|id| *id != server);
        let bound = others.filter(|id| machine.setting(&disk_setting(*id)) != 0);
        commands.extend(bound.flat_map(unbind));
        // Where no leader has named the servers yet, the next one does.
        if let Some(ensemble) = machine.ensemble() {
            let mut lines = ensemble.members().iter();
            let line = lines.find(|line| u64::from(line.id) == server);
            let line = ServerLine {
                observer: false,
                ..line.ok_or(Unfit::Removed)?.clone()
            };
            let body = log::Configure {
                text: line.to_string(),
                expected: ensemble.version().0,
            };
            commands.push(own_command(op::CONFIGURE, body.encode_to_vec()));
        }
        Ok(commands)
    }
}

/// Whether a log goes on in a cluster of its own without the snapshot that must follow: its entries
/// come after one of this term.
pub(super) fn lacks_snapshot(base_term: u64, entries: &[LogEntry]) -> bool {
    let terms = || entries.iter().map(|entry| entry.term);
    // Elections never take that many at once.
    std::iter::once(base_term)
        .chain(terms())
        .zip(terms())
        .any(|(before, after)| after >= before + TERMS)
}

/// Nobody is there to be told.
struct NoOne;

impl Sink for NoOne {
    fn changed(&mut self, _change: &Change<'_>) {}
    fn done(&mut self, _machine: &Machine, _command: CommandId, _outcome: Outcome) {}
    fn session_attached(&mut self, _attached: &Attached) {}
    fn session_closed(&mut self, _session: SessionId) {}
}

/// From a membership to one of this server alone, one server at a time.
fn changes(membership: &Membership, server: u64) -> Vec<MembershipChange> {
    let Membership {
        voters,
        learners,
        voters_outgoing,
        learners_next,
        ..
    } = membership;
    let mut changes = Vec::new();
    if !voters_outgoing.is_empty() {
        // Out of the joint membership: of that, the newer half counts.
        changes.push(MembershipChange::default());
    }
    let mut one = |kind, server| {
        let steps = vec![step(kind, server)];
        changes.push(MembershipChange { steps });
    };
    if !voters.contains(&server) {
        one(Kind::AddVoter, server);
    }
    let all = voters.iter().chain(learners).chain(learners_next);
    for other in all.filter(|other| **other != server) {
        one(Kind::Remove, *other);
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_member_goes_one_by_one() {
        let steps = |membership: &Membership| -> Vec<Vec<(Kind, u64)>> {
            let of = |change: &MembershipChange| {
                let steps = change.steps.iter();
                steps.map(|step| (step.kind(), step.server)).collect()
            };
            changes(membership, 2).iter().map(of).collect()
        };
        let voters = |voters: &[u64]| Membership {
            voters: voters.to_vec(),
            ..Membership::default()
        };
        assert_eq!(steps(&voters(&[2])), [[]; 0]);
        let remove = |server| vec![(Kind::Remove, server)];
        assert_eq!(steps(&voters(&[1, 2, 3])), [remove(1), remove(3)]);
        let observing = Membership {
            learners: vec![2, 5],
            ..voters(&[1])
        };
        let joins = vec![(Kind::AddVoter, 2)];
        assert_eq!(steps(&observing), [joins, remove(1), remove(5)]);
        let joint = Membership {
            voters_outgoing: vec![2, 3, 4],
            learners_next: vec![4],
            ..voters(&[1, 2])
        };
        assert_eq!(steps(&joint), [vec![], remove(1), remove(4)]);
    }
}

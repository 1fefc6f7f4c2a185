//! Who has a say (architecture D12, amendment 4; what 1 to 4 rest on).
//!
//! The membership is told a second time from the log, as naively as the rest of the model. Every
//! server must have this one at the same index, and so must its snapshots. A server that lost its
//! disk may promise nothing before the log has bound its number to the new one.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use raft::eraftpb::{Message, MessageType};
use zkraft::engine::SnapshotMeta;
use zkraft::proto::log;
use zkraft::proto::log::membership_step::Kind;
use zkraft::wire::op;

use super::{Group, Verdict, broken};
use crate::model::{Model, own};

/// The sets of one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Members {
    pub voters: BTreeSet<u64>,
    /// Of a joint membership: who had a vote before.
    pub outgoing: BTreeSet<u64>,
    pub learners: BTreeSet<u64>,
    /// Voters of before who will be learners.
    pub next: BTreeSet<u64>,
}

impl From<&log::Membership> for Members {
    fn from(membership: &log::Membership) -> Self {
        let set = |ids: &[u64]| ids.iter().copied().collect();
        Self {
            voters: set(&membership.voters),
            outgoing: set(&membership.voters_outgoing),
            learners: set(&membership.learners),
            next: set(&membership.learners_next),
        }
    }
}

impl Members {
    /// Whether these are the sets of a membership, whose lists name each server once.
    fn are(&self, membership: &log::Membership) -> bool {
        let is = |set: &BTreeSet<u64>, ids: &[u64]| {
            set.len() == ids.len() && ids.iter().all(|id| set.contains(id))
        };
        is(&self.voters, &membership.voters)
            && is(&self.outgoing, &membership.voters_outgoing)
            && is(&self.learners, &membership.learners)
            && is(&self.next, &membership.learners_next)
    }

    /// Everyone who is given the log.
    pub fn all(&self) -> BTreeSet<u64> {
        let sets = [&self.voters, &self.outgoing, &self.learners, &self.next];
        sets.into_iter().flatten().copied().collect()
    }

    /// Whether a server has a vote, or had one a moment ago.
    pub fn has_say(&self, id: u64) -> bool {
        let sets = [&self.voters, &self.outgoing, &self.next];
        sets.into_iter().any(|set| set.contains(&id))
    }

    /// Whether those are enough to decide something.
    pub fn is_majority(&self, has: impl Fn(u64) -> bool) -> bool {
        let most = |ids: &BTreeSet<u64>| 2 * ids.iter().filter(|id| has(**id)).count() > ids.len();
        most(&self.voters) && (self.outgoing.is_empty() || most(&self.outgoing))
    }

    /// After these steps (Raft thesis §4.3): several go through a joint membership, none leave it.
    fn after(&self, steps: &[log::MembershipStep]) -> Self {
        let mut after = self.clone();
        if steps.is_empty() {
            after.learners.append(&mut after.next);
            after.outgoing.clear();
        }
        if steps.len() > 1 {
            after.outgoing.clone_from(&after.voters);
        }
        for step in steps {
            let id = step.server;
            let was_learner = after.learners.remove(&id);
            after.next.remove(&id);
            after.voters.remove(&id);
            let set = match step.kind() {
                Kind::Remove => continue,
                Kind::AddVoter => &mut after.voters,
                // Until the vote of before is gone.
                Kind::AddLearner if !was_learner && after.outgoing.contains(&id) => &mut after.next,
                Kind::AddLearner => &mut after.learners,
            };
            set.insert(id);
        }
        after
    }
}

#[derive(Debug)]
pub struct MemberCheck {
    /// From which index on who belongs.
    history: BTreeMap<u64, Members>,
    /// Servers that lost a disk, and the one they have now.
    replaced: BTreeMap<u64, u64>,
    /// Disks that the log has ever bound to a server, and those that are.
    bound: BTreeSet<(u64, u64)>,
    is_bound: BTreeMap<u64, u64>,
    /// Changes of the ensemble that clients asked for and got.
    pub reconfigs: u64,
}

impl MemberCheck {
    /// The ensemble is founded by these.
    pub fn new(founders: &log::Membership) -> Self {
        Self {
            history: BTreeMap::from([(0, founders.into())]),
            replaced: BTreeMap::new(),
            bound: BTreeSet::new(),
            is_bound: BTreeMap::new(),
            reconfigs: 0,
        }
    }

    pub fn present(&self) -> &Members {
        self.at(u64::MAX)
    }

    /// How often the membership changed.
    pub fn changes(&self) -> u64 {
        self.history.len() as u64 - 1
    }

    /// Who belonged behind this entry.
    pub fn at(&self, index: u64) -> &Members {
        let (_, members) = self.history.range(..=index).last().expect("from 0 on");
        members
    }

    /// The entry of the last change.
    pub fn changed(&self) -> u64 {
        self.history.keys().last().copied().unwrap_or(0)
    }

    /// The membership by which the entry that comes next may have been decided: the present one or,
    /// if the leader had not applied the last change yet, the one before.
    pub fn deciding(&self) -> impl Iterator<Item = &Members> {
        self.history.values().rev().take(2)
    }

    /// Takes note of an entry that the model has applied. `is_changed`: so has the ensemble.
    pub fn follow(
        &mut self,
        entry: &log::LogEntry,
        content: &log::Entry,
        model: &Model,
        is_changed: bool,
    ) -> Verdict {
        self.check_removals(content, model)?;
        for command in content.internal.iter().filter(|c| c.op == own::SET) {
            let set = log::Set::decode(command.body.as_ref()).unwrap_or_default();
            if let Some(id) = set.name.strip_prefix("disk.")
                && let Ok(id) = id.parse()
            {
                let disk = set.value as u64;
                self.bound.insert((id, disk));
                self.is_bound.insert(id, disk);
            }
        }
        let mut asked = content.batches.iter().flat_map(|batch| &batch.commands);
        let is_asked = asked.any(|command| command.op == op::RECONFIG);
        self.reconfigs += u64::from(is_asked && is_changed);
        // A change that comes with a client's reconfig stands and falls with it.
        if entry.kind != 0 && (content.batches.is_empty() || is_changed) {
            let change = content.change.clone().unwrap_or_default();
            let after = self.present().after(&change.steps);
            self.history.insert(entry.index, after);
        }
        Ok(())
    }

    /// D12: whoever belongs is removed only if its disk is lost, which clients did not ask for.
    fn check_removals(&self, content: &log::Entry, model: &Model) -> Verdict {
        let change = content.change.iter().filter(|_| content.batches.is_empty());
        let steps = change.flat_map(|change| &change.steps);
        let target = self.target(model);
        for step in steps.filter(|step| step.kind() == Kind::Remove) {
            let id = step.server;
            let belongs = target.voters.contains(&id) || target.learners.contains(&id);
            let disk = self.replaced.get(&id);
            let is_lost = disk.is_some_and(|disk| self.is_bound.get(&id) != Some(disk));
            if belongs && !is_lost {
                let what = format!("D12: {id} is removed, but belongs and has its disk");
                return broken(Group::Members, what);
            }
        }
        Ok(())
    }

    /// 9: a server that has applied this much has this membership.
    pub fn compare(&self, server: usize, index: u64, membership: &log::Membership) -> Verdict {
        let wanted = self.at(index);
        if !wanted.are(membership) {
            let seen = Members::from(membership);
            let what = format!("9: {server} has the members {seen:?} at {index}, not {wanted:?}");
            return broken(Group::Members, what);
        }
        Ok(())
    }

    /// 15: the membership of a snapshot is that of its index.
    pub fn check_snapshot(&self, server: usize, meta: &SnapshotMeta) -> Verdict {
        self.compare(server, meta.index, &meta.membership)
    }

    /// A server comes back with an empty disk.
    pub fn lost_disk(&mut self, id: u64, disk: u64) {
        self.replaced.insert(id, disk);
    }

    /// Whether the disk of a server may be lost without losing what was acknowledged: at most one
    /// of those with a say is empty at a time, never one of two, and none while that may change.
    pub fn may_lose(&self, id: u64, model: &Model) -> bool {
        let present = self.present();
        // Nobody counts on a disk that the log has not bound yet.
        let is_bound = |id: &u64| Self::bound_disk(*id, model) != 0;
        let are_whole = present.all().iter().all(is_bound) && !self.lacks_disk(model);
        let is_known = model.ensemble.is_some() && self.is_settled(model);
        let is_enough = !present.voters.contains(&id) || present.voters.len() > 2;
        is_known && are_whole && is_enough && present.all().contains(&id)
    }

    /// Whether some server that belongs has an empty disk in place of the one that is counted on.
    pub fn lacks_disk(&self, model: &Model) -> bool {
        if self.replaced.is_empty() {
            return false;
        }
        let target = self.target(model);
        let mut all = target.voters.iter().chain(&target.learners);
        all.any(|id| {
            let disk = self.replaced.get(id);
            disk.is_some_and(|disk| *disk != Self::bound_disk(*id, model))
        })
    }

    /// Whether those whose disks are counted on are no majority any more.
    pub fn is_beyond_repair(&self, model: &Model) -> bool {
        let has_disk = |id| {
            let disk = self.replaced.get(&id);
            disk.is_none_or(|disk| *disk == Self::bound_disk(id, model))
        };
        !self.present().is_majority(has_disk)
    }

    fn bound_disk(id: u64, model: &Model) -> u64 {
        let setting = model.settings.get(&format!("disk.{id}"));
        setting.map_or(0, |disk| *disk as u64)
    }

    /// 7: what a server promises others with a disk that is not the one they count on.
    pub fn promised(&self, id: u64, disk: u64, message: &Message) -> Verdict {
        let promises = matches!(
            message.get_msg_type(),
            MessageType::MsgAppendResponse
                | MessageType::MsgRequestVoteResponse
                | MessageType::MsgRequestVote
                | MessageType::MsgAppend
        );
        let is_replaced = self.replaced.contains_key(&id);
        if promises && !message.reject && is_replaced && !self.bound.contains(&(id, disk)) {
            let what = format!("D12: server {id} with the empty disk {disk:x}: {message:?}");
            return broken(Group::Members, what);
        }
        Ok(())
    }

    /// Who should belong, as the ensemble's lines say; the founders before there are any.
    pub fn target(&self, model: &Model) -> log::Membership {
        let mut target = log::Membership::default();
        let Some((lines, _)) = &model.ensemble else {
            target.voters = self.present().voters.iter().copied().collect();
            target.learners = self.present().learners.iter().copied().collect();
            return target;
        };
        for (id, line) in lines {
            let is_observer = line.split(';').any(|part| part.ends_with("observer"));
            match is_observer {
                true => target.learners.push(u64::from(*id)),
                false => target.voters.push(u64::from(*id)),
            }
        }
        target
    }

    /// Whether those who should belong do, and nobody else.
    pub fn is_settled(&self, model: &Model) -> bool {
        Members::from(&self.target(model)) == *self.present()
    }
}

#[test]
fn several_steps_go_through_a_joint_membership() {
    let step = |kind: Kind, server| log::MembershipStep {
        kind: kind.into(),
        server,
    };
    let founders = log::Membership {
        voters: vec![1, 2, 3],
        learners: vec![4],
        ..log::Membership::default()
    };
    let before = Members::from(&founders);
    let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<_>>();
    let one = before.after(&[step(Kind::AddVoter, 4)]);
    assert_eq!((one.voters, one.learners), (set(&[1, 2, 3, 4]), set(&[])));
    let joint = before.after(&[step(Kind::AddLearner, 3), step(Kind::Remove, 4)]);
    assert_eq!(
        (&joint.voters, &joint.outgoing),
        (&set(&[1, 2]), &set(&[1, 2, 3]))
    );
    assert_eq!((&joint.learners, &joint.next), (&set(&[]), &set(&[3])));
    assert!(joint.is_majority(|id| id < 3) && !joint.is_majority(|id| id > 1));
    let left = joint.after(&[]);
    assert_eq!((left.voters, left.learners), (set(&[1, 2]), set(&[3])));
    assert!(left.outgoing.is_empty() && left.next.is_empty());
}

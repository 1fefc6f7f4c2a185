//! From the membership that is to the one that should be, one safe step at a time.
//!
//! What should be is replicated: the lines of /zookeeper/config. The leader looks at it now and
//! then and proposes what is missing. So it does not matter which leader began a change or how far
//! it got. The steps keep two rules: who joins follows without a vote until it has nearly caught
//! up, and no step is taken that would leave the majority to servers that are not heard.

use std::collections::{BTreeMap, BTreeSet};

use crate::proto::log::membership_step::Kind;
use crate::proto::log::{Membership, MembershipStep};

use crate::machine::Ensemble;
use crate::proto::log::{self, MembershipChange};

use super::forward::is_reconfig;
use super::members::{changed_setting, disk_setting};
use super::status::{ACTIVE_MS, PeerStatus};
use super::{Engine, Outputs, set_command};

/// Entries that a server may lack and still be given a vote: some milliseconds of work.
const NEARLY: u64 = 1_000;

/// The servers that should be members.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Target {
    pub voters: BTreeSet<u64>,
    pub observers: BTreeSet<u64>,
}

/// What the leader knows.
#[derive(Debug)]
pub struct Facts<'a> {
    /// This server, which leads.
    pub id: u64,
    pub membership: &'a Membership,
    /// The other members.
    pub peers: &'a [PeerStatus],
    /// The last entry that is committed.
    pub committed: u64,
    /// Servers that came with another disk than the one that is bound, and that disk.
    pub strangers: &'a BTreeMap<u64, u64>,
    /// The entry that each of those without a vote must have before it is given one.
    pub vote_from: &'a BTreeMap<u64, u64>,
}

/// One step of a change of membership.
pub fn step(kind: Kind, server: u64) -> MembershipStep {
    MembershipStep {
        kind: kind.into(),
        server,
    }
}

/// A server's number is free for another disk.
pub(super) fn unbind(server: u64) -> [log::Command; 2] {
    let settings = [(disk_setting(server), 0), (changed_setting(server), 1)];
    settings.map(|setting| set_command(&setting))
}

/// The next step, if one is wanted and can be taken now.
pub fn next_step(target: &Target, facts: &Facts<'_>) -> Option<MembershipStep> {
    let Facts {
        id,
        membership,
        peers,
        committed,
        strangers,
        vote_from,
    } = *facts;
    let voters: BTreeSet<u64> = membership.voters.iter().copied().collect();
    let learners: BTreeSet<u64> = membership.learners.iter().copied().collect();
    let wanted = |server: &u64| target.voters.contains(server) || target.observers.contains(server);
    let is_member = |server: &u64| voters.contains(server) || learners.contains(server);
    let active =
        |server: &u64| *server == id || peers.iter().any(|peer| peer.id == *server && peer.active);
    // Whether the others can go on without this one.
    let can_lose = |server: &u64| {
        let rest: Vec<&u64> = voters.iter().filter(|voter| *voter != server).collect();
        rest.iter().filter(|voter| active(voter)).count() > rest.len() / 2
    };

    // A lost disk: what was acknowledged with it does not count any more.
    let lost = |server: &&u64| is_member(server) && !active(server);
    if let Some(server) = strangers.keys().find(lost)
        && (learners.contains(server) || can_lose(server))
    {
        return Some(step(Kind::Remove, *server));
    }
    let has_nearly_caught_up = |peer: &PeerStatus| {
        let has_that = vote_from.get(&peer.id).is_some_and(|e| peer.matched >= *e);
        peer.active && !peer.snapshot && has_that && peer.matched + NEARLY >= committed
    };
    let nearly = |server: &u64| {
        let found = peers.iter().find(|peer| peer.id == *server);
        found.is_some_and(has_nearly_caught_up)
    };
    if let Some(server) = target
        .voters
        .iter()
        .find(|s| learners.contains(s) && nearly(s))
    {
        return Some(step(Kind::AddVoter, *server));
    }
    let mut missing = target.voters.iter().chain(&target.observers);
    if let Some(server) = missing.find(|server| !is_member(server)) {
        return Some(step(Kind::AddLearner, *server));
    }
    if let Some(server) = learners.iter().find(|server| !wanted(server)) {
        return Some(step(Kind::Remove, *server));
    }
    // A leader that is not wanted hands over first (see `Engine::reconcile`).
    let surplus = voters
        .iter()
        .find(|voter| **voter != id && !target.voters.contains(voter) && can_lose(voter))?;
    let kind = match target.observers.contains(surplus) {
        true => Kind::AddLearner,
        false => Kind::Remove,
    };
    Some(step(kind, *surplus))
}

impl From<&Ensemble> for Target {
    fn from(ensemble: &Ensemble) -> Self {
        let (observers, voters): (Vec<_>, Vec<_>) = ensemble
            .members()
            .iter()
            .partition(|member| member.observer);
        let ids = |members: Vec<_>| {
            let ids = members.into_iter();
            ids.map(|member: &crate::wire::ServerLine| u64::from(member.id))
                .collect()
        };
        Self {
            voters: ids(voters),
            observers: ids(observers),
        }
    }
}

impl Engine {
    /// As the leader: takes the next step towards the membership that should be.
    pub(super) fn reconcile(&mut self, wall_ms: i64) {
        if !std::mem::take(&mut self.reconcile_due) || self.leading.is_none() {
            return;
        }
        let membership = self.replica.membership();
        self.note_learners(&membership);
        if self.replica.is_changing() {
            // raft leaves a joint membership by itself, unless the leader changed in between.
            if !membership.voters_outgoing.is_empty() {
                let leave = log::Entry {
                    change: Some(MembershipChange::default()),
                    time_ms: wall_ms,
                    ..log::Entry::default()
                };
                // If it cannot be proposed now, the next tick tries again.
                let _ = self.propose_entry(leave);
            }
            return;
        }
        self.raise_level(wall_ms);
        // Whom it adds must not be removed for what was asked before it.
        let mut proposed = self.proposed.iter().flat_map(|(_, entry)| &entry.batches);
        if proposed.any(is_reconfig) {
            return;
        }
        let (target, unbound) = {
            let state = self.shared.state.read();
            let target = state.machine.ensemble().map(Target::from);
            (target, self.unbound_disks(&state.machine))
        };
        // Of those that were linked before they were members.
        self.bind(unbound);
        let Some(target) = target else {
            return;
        };
        let mut strangers = self.standing.strangers(self.now_ms);
        // Another leader may have taken it back since.
        strangers.retain(|id, disk| {
            u32::try_from(*id).map(|id| self.shared.bound_disk(id)) != Ok(*disk)
        });
        let facts = Facts {
            id: self.id,
            membership: &membership,
            peers: &self.bound_peers(),
            committed: self.replica.committed(),
            strangers: &strangers,
            vote_from: &self.vote_from,
        };
        let Some(step) = next_step(&target, &facts) else {
            self.hand_over_if_unwanted(&target);
            let members = self.replica.members();
            // Whoever is gone may come back with another disk.
            let bound = (1..=u8::MAX).filter(|id| self.shared.bound_disk(u32::from(*id)) != 0);
            let gone = bound.map(u64::from).filter(|id| !members.contains(id));
            let gone: Vec<u64> = gone.collect();
            for id in gone {
                self.standing.unbinds(id);
                self.internal.extend(unbind(id));
            }
            return;
        };
        tracing::info!(
            server = step.server,
            step = step.kind().as_str_name(),
            "the membership changes"
        );
        let mut internal = Vec::new();
        if let Some(disk) = strangers.get(&step.server) {
            match step.kind() {
                Kind::Remove => {
                    self.standing.unbinds(step.server);
                    internal.extend(unbind(step.server));
                }
                // What a member has acknowledged, it has with the disk that is bound.
                Kind::AddLearner if !self.replica.members().contains(&step.server) => {
                    self.standing.unbinds(step.server);
                    internal.push(set_command(&(disk_setting(step.server), *disk as i64)));
                    self.standing.bound(step.server, *disk);
                }
                Kind::AddLearner | Kind::AddVoter => {}
            }
        }
        let entry = log::Entry {
            time_ms: wall_ms,
            internal,
            change: Some(MembershipChange { steps: vec![step] }),
            ..log::Entry::default()
        };
        // The same.
        let _ = self.propose_entry(entry);
    }

    /// Who follows without a vote is given one once it has what was committed when it was first
    /// seen here with its disk bound. Before that it may have nothing, not even the entry that
    /// binds its disk, and could be counted on for nothing. In a short log, that is close to the
    /// end.
    fn note_learners(&mut self, membership: &Membership) {
        let learners = &membership.learners;
        self.vote_from.retain(|id, _| learners.contains(id));
        let committed = self.replica.committed();
        for id in learners {
            if self.bound_disk(*id) != 0 {
                self.vote_from.entry(*id).or_insert(committed);
            }
        }
    }

    /// A leader that is to leave lets another one lead, which then removes it.
    fn hand_over_if_unwanted(&mut self, target: &Target) {
        if !target.voters.contains(&self.id) && self.replica.is_voter() {
            self.transfer_leadership(|peer| peer.voter && target.voters.contains(&peer.id));
        }
    }

    /// What to propose for a client's reconfig. `None`: it has to wait, for the milliseconds that
    /// another change takes.
    ///
    /// ZooKeeper answers RECONFIGINPROGRESS (-14) to who comes meanwhile (§3.3), and the client
    /// asks again. Here reconfigs have their order in the log like all writes, so the later one
    /// waits and is judged by what the earlier one led to: BADVERSION if it expected something
    /// else. What follows an accepted reconfig, servers that catch up and are given their votes, is
    /// no reason to wait either: the leader goes from there to what the later one asks for.
    pub(super) fn plan_reconfig(&mut self, batch: log::Batch, wall_ms: i64) -> Option<log::Entry> {
        let mut entry = log::Entry {
            time_ms: wall_ms,
            batches: vec![batch],
            ..log::Entry::default()
        };
        let command = entry.batches[0].commands.first()?;
        let after = self.shared.state.read().machine.reconfigured_by(command);
        // Whatever is wrong with it, the machine says so.
        let Some(target) = after.as_ref().map(Target::from) else {
            return Some(entry);
        };
        let membership = self.replica.membership();
        let peers = self.bound_peers();
        let staying = |voter: &&u64| target.voters.contains(voter);
        let staying: Vec<u64> = membership.voters.iter().filter(staying).copied().collect();
        // Nothing would be decided before the rest are sent what they lack (§12.5).
        let committed = self.replica.committed();
        let is_synced = |voter: &&u64| {
            let mut others = peers.iter().filter(|peer| peer.active);
            **voter == self.id || others.any(|peer| peer.id == **voter && peer.is_synced(committed))
        };
        if staying.iter().filter(is_synced).count() <= staying.len() / 2 {
            // A new leader has heard of those who elected it, and of nobody else yet.
            let is_new = self.now_ms <= self.leading_since_ms + ACTIVE_MS;
            if is_new {
                return None;
            }
            tracing::warn!(
                ?staying,
                "a reconfig is refused: of the voters that stay too few are there and in sync; ask \
                 again when `zkraft status` shows that they are"
            );
            entry.no_quorum = true;
            return Some(entry);
        }
        let joining = target.voters.iter().chain(&target.observers);
        let joining = joining
            .filter(|id| !membership.voters.contains(id) && !membership.learners.contains(id));
        if let Some(server) = self.too_old(joining.clone()) {
            tracing::warn!(
                server,
                known = self.levels.known(server),
                level = self.level_to_be(),
                "a reconfig is refused: the server that is to join is too old for the feature \
                 level of the ensemble; start a newer version of zkraft on it"
            );
            entry.no_quorum = true;
            return Some(entry);
        }
        if !target.voters.contains(&self.id) {
            self.hand_over_if_unwanted(&target);
            return None;
        }
        let mut steps = Vec::new();
        for id in membership.voters.iter().chain(&membership.learners) {
            let is_voter = membership.voters.contains(id);
            if target.observers.contains(id) && is_voter {
                steps.push(step(Kind::AddLearner, *id));
            } else if !target.observers.contains(id) && !target.voters.contains(id) {
                steps.push(step(Kind::Remove, *id));
            }
        }
        // Who joins learns first, and is given its vote when it has nearly caught up.
        steps.extend(joining.map(|id| step(Kind::AddLearner, *id)));
        if !steps.is_empty() {
            entry.change = Some(MembershipChange { steps });
        }
        Some(entry)
    }

    /// Looks whether this server was removed: applied, or told by those who refuse it since. Who
    /// is to go belongs until the change is through: it may lead until another one has caught up.
    pub(super) fn update_belonging(&mut self) {
        if !self.links_due {
            return;
        }
        let Some(newest) = self.shared.newest_ensemble() else {
            return;
        };
        let mut members = newest.members().iter();
        self.belongs = members.any(|line| u64::from(line.id) == self.id)
            || (self.replica.is_member() && {
                let state = self.shared.state.read();
                state.machine.ensemble().map(Ensemble::version) == Some(newest.version())
            });
    }

    /// Tells the links if there are other servers. Those that are to go are linked for as long as
    /// they are members: a change that takes away votes needs them to come into force. And whoever
    /// was only told of the change needs those of before: one of them may lead until it is through.
    pub(super) fn tell_of_servers(&mut self, out: &mut Outputs) {
        if !std::mem::take(&mut self.links_due) {
            return;
        }
        let Some(ensemble) = self.shared.newest_ensemble() else {
            return;
        };
        let mut servers = ensemble.members().to_vec();
        let is_going = |id: &u64| servers.iter().all(|line| u64::from(line.id) != *id);
        let mut going: BTreeSet<u64> = self.replica.members().into_iter().collect();
        {
            let state = self.shared.state.read();
            let mut acquaintance = self.shared.acquaintance.lock();
            acquaintance.note(&servers);
            match state.machine.ensemble() {
                Some(applied) if applied.version() == ensemble.version() => {}
                Some(applied) => {
                    going.extend(applied.members().iter().map(|line| u64::from(line.id)));
                    // Who leads meanwhile may have come after what is applied here.
                    going.extend(acquaintance.going());
                }
                None => going.extend(acquaintance.servers()),
            }
            going.retain(is_going);
            servers.extend(
                going
                    .iter()
                    .filter_map(|id| acquaintance.line(*id))
                    .cloned(),
            );
        }
        self.shared.set_going(going.into_iter().collect());
        if self.linked == servers {
            return;
        }
        self.linked.clone_from(&servers);
        self.standing
            .keep(|id| servers.iter().any(|line| u64::from(line.id) == id));
        out.servers = Some(servers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        target: Target,
        membership: Membership,
        peers: Vec<PeerStatus>,
        strangers: BTreeMap<u64, u64>,
        vote_from: BTreeMap<u64, u64>,
    }

    fn case(target: &[u64], voters: &[u64], learners: &[u64]) -> Case {
        let members = [voters, learners].concat();
        Case {
            target: Target {
                voters: target.iter().copied().collect(),
                observers: BTreeSet::new(),
            },
            membership: Membership {
                voters: voters.to_vec(),
                learners: learners.to_vec(),
                ..Membership::default()
            },
            peers: members
                .iter()
                .filter(|id| **id != 1)
                .map(|id| PeerStatus {
                    id: *id,
                    active: true,
                    matched: 5_000,
                    ..PeerStatus::default()
                })
                .collect(),
            strangers: BTreeMap::new(),
            vote_from: learners.iter().map(|id| (*id, 4_000)).collect(),
        }
    }

    impl Case {
        fn silent(mut self, id: u64) -> Self {
            let peer = self.peers.iter_mut().find(|peer| peer.id == id);
            peer.expect("a member").active = false;
            self
        }

        fn step(&self) -> Option<(Kind, u64)> {
            let facts = Facts {
                id: 1,
                membership: &self.membership,
                peers: &self.peers,
                committed: 5_000,
                strangers: &self.strangers,
                vote_from: &self.vote_from,
            };
            next_step(&self.target, &facts).map(|step| (step.kind(), step.server))
        }
    }

    #[test]
    fn nothing_is_done_if_nothing_is_wanted() {
        assert_eq!(case(&[1, 2, 3], &[1, 2, 3], &[]).step(), None);
    }

    #[test]
    fn who_joins_learns_first_and_votes_when_it_has_nearly_caught_up() {
        assert_eq!(
            case(&[1, 2, 3], &[1], &[]).step(),
            Some((Kind::AddLearner, 2))
        );
        let mut two = case(&[1, 2, 3], &[1], &[2]);
        assert_eq!(two.step(), Some((Kind::AddVoter, 2)));
        two.peers[0].matched = 3_999;
        assert_eq!(two.step(), Some((Kind::AddLearner, 3)));
        assert_eq!(
            case(&[1, 2, 3], &[1], &[2, 3]).silent(2).step(),
            Some((Kind::AddVoter, 3))
        );
    }

    #[test]
    fn who_has_nothing_is_given_no_vote_in_a_short_log_either() {
        let mut short = case(&[1, 2, 3], &[1, 2], &[3]);
        short.vote_from.insert(3, 5_000);
        short.peers[1].matched = 4_999;
        assert_eq!(short.step(), None);
        short.peers[1].matched = 5_000;
        assert_eq!(short.step(), Some((Kind::AddVoter, 3)));
        short.vote_from.clear();
        assert_eq!(short.step(), None, "its disk is not bound");
    }

    #[test]
    fn who_leaves_goes_if_the_rest_is_a_majority() {
        assert_eq!(case(&[1], &[1, 2, 3], &[]).step(), Some((Kind::Remove, 2)));
        assert_eq!(
            case(&[1, 2], &[1, 2, 3], &[]).silent(3).step(),
            Some((Kind::Remove, 3)),
            "a dead server is replaced"
        );
        assert_eq!(case(&[1, 2], &[1, 2, 3], &[]).silent(2).step(), None);
        assert_eq!(case(&[2, 3], &[1, 2, 3], &[]).step(), None, "not itself");
        assert_eq!(case(&[1], &[1], &[4]).step(), Some((Kind::Remove, 4)));
    }

    #[test]
    fn a_voter_becomes_an_observer() {
        let mut case = case(&[1, 2], &[1, 2, 3], &[]);
        case.target.observers.insert(3);
        assert_eq!(case.step(), Some((Kind::AddLearner, 3)));
    }

    #[test]
    fn a_lost_disk_is_removed_before_anything_else_and_comes_back() {
        let mut lost = case(&[1, 2, 3], &[1, 2, 3], &[]).silent(3);
        lost.strangers.insert(3, 99);
        assert_eq!(lost.step(), Some((Kind::Remove, 3)));
        let mut none = case(&[1, 2, 3], &[1, 2, 3], &[]).silent(2).silent(3);
        none.strangers.insert(3, 99);
        assert_eq!(none.step(), None, "never without a majority of the others");
        let mut removed = case(&[1, 2, 3], &[1, 2], &[]);
        removed.strangers.insert(3, 99);
        assert_eq!(removed.step(), Some((Kind::AddLearner, 3)));
    }
}

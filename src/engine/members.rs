//! Who may take part, and who leads after a leader died.
//!
//! A server counts by its disk, not only by its number: the replicated settings bind each number to
//! the disk that the log was first replicated to (see [`disk_setting`]). A server that comes back
//! with an empty disk could vote a second time, or for a log that lacks what it had acknowledged.
//! So an empty server takes no part at all until some server that knows the cluster says that this
//! very disk is bound, or until all the others are there and as empty as it is: then the cluster is
//! new. Operators may say that a majority is enough for that. Then they must know that whoever is
//! not there has nothing: a majority of empty servers would begin a second cluster, and what only
//! the others have would be lost.
//!
//! An empty server that has met one with a log is aware that there is a cluster, even if it was
//! refused by it. It founds none any more, unless all are there and empty, and whomever it meets is
//! aware as well. That ends with its process: written down, it would not help those who have met
//! nobody yet. So what remains is that a majority of the voters is empty, and that these meet each
//! other before one of them meets anyone who is aware.
//!
//! What a server says counts for the disk that said it. A membership names servers by their
//! numbers, and who is far behind goes by one that others have left. There, the number of a server
//! that lost its disk stands for what was acknowledged with the lost one; counted for the new one,
//! it could elect who was away, and what the others have committed without both would be lost. So:
//!
//! * A vote or an acknowledgement counts only if it comes from the disk that the state of who
//!   counts it binds to that number. Who has no disk bound to it yet counts any but one that it was
//!   told to be there in the place of another.
//! * Nobody is elected on another disk than the one that its own state binds to its number.
//! * Who came later than the founders gives no vote before it knows from its state, or was told
//!   since it started, that its disk is bound. Who was only told gives it to those who know that
//!   too: to others its number may be that of a lost disk.
//!
//! Then each disk is a server of its own, as Raft has it (Raft thesis §4), and a number goes from
//! one to another only while it is that of no member.
//!
//! When a leader's process is gone, which a refused connection tells at once, the others need not
//! wait for an election timeout: they forget it and campaign one after the other. Raft's pre-vote
//! keeps that harmless: whoever still hears the leader gives no vote (Raft thesis §9.6).

use std::collections::BTreeMap;

use raft::eraftpb::{Message, MessageType};

use crate::machine::Machine;
use crate::proto::log;

/// What a server said of itself when it was linked.
pub use crate::proto::peer::Introduction;

use super::log::MemLog;
use super::replica::{Replica, Say};
use super::status::PeerStatus;
use super::{Engine, Outputs, set_command};

/// A server's turn to campaign, in ms: the first is through by then.
const TURN_MS: u64 = 20;
/// Time between two campaigns in one turn, in ms: the others may have noticed a little later.
const RETRY_MS: u64 = 10;
/// How long that is done, in ms, before the election timeout is left to see to it.
const FAILOVER_MS: u64 = 1_000;

/// How long a server has to come with another disk before it is taken for the one that had its
/// number, in ms.
const STRANGER_MS: u64 = 2_000;
/// And how long it may not come before that begins anew, in ms: it tries every second.
const STRANGER_GONE_MS: u64 = 5_000;

/// Setting with the cluster's own random number; 0 until its first leader has chosen one.
pub const CLUSTER_SETTING: &str = "cluster";

/// Setting with the disk of a server; 0 until it is bound.
pub fn disk_setting(server: u64) -> String {
    format!("disk.{server}")
}

/// Setting that is 1 once a server's number was made free for another disk.
pub fn changed_setting(server: u64) -> String {
    format!("disk.{server}.changed")
}

/// How an empty server came to take part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admission {
    /// Together with all others, as configured.
    Founder,
    /// Others had the log already, and the members that this server was configured with say nothing
    /// about those that are.
    Joiner,
}

/// The servers that are linked, and whether this one may take part.
#[derive(Debug)]
pub struct Standing {
    id: u64,
    disk: u64,
    admitted: bool,
    /// Whether it is of those that the first membership means.
    founder: bool,
    /// Whether a majority may found a cluster without the others.
    by_majority: bool,
    linked: BTreeMap<u64, Introduction>,
    /// The disks that servers came with when they dialled this one last, and whether they knew the
    /// one of this server.
    came_with: BTreeMap<u64, (u64, bool)>,
    strangers: BTreeMap<u64, Stranger>,
    /// Servers whose disks are being bound, and the term of the leader who does it.
    binding: BTreeMap<u64, u64>,
}

/// A server that comes with another disk than the one that is bound to its number.
#[derive(Clone, Copy, Debug)]
struct Stranger {
    disk: u64,
    since_ms: u64,
    last_ms: u64,
}

impl Standing {
    /// `admitted`: this server has a log of its own, or is alone. `founder`: it has a vote there.
    /// `by_majority`: a majority may found a cluster without the others.
    pub fn new(id: u64, disk: u64, admitted: bool, founder: bool, by_majority: bool) -> Self {
        Self {
            id,
            disk,
            admitted,
            founder: admitted && founder,
            by_majority,
            linked: BTreeMap::new(),
            came_with: BTreeMap::new(),
            strangers: BTreeMap::new(),
            binding: BTreeMap::new(),
        }
    }

    /// Whether this server may vote and acknowledge.
    pub fn is_admitted(&self) -> bool {
        self.admitted
    }

    /// A server is linked: may this one take part from now on? `aware`: it knows that there is a
    /// cluster.
    pub fn linked(
        &mut self,
        id: u64,
        introduction: Introduction,
        voters: &[u64],
        aware: bool,
    ) -> Option<Admission> {
        self.linked.insert(id, introduction);
        if self.admitted {
            return None;
        }
        if let Some(admission) = self.introduced(introduction) {
            return Some(admission);
        }
        let is_new = |voter: &u64| {
            *voter == self.id || self.linked.get(voter).is_some_and(|other| !other.formed)
        };
        let new = voters.iter().filter(|voter| is_new(voter)).count();
        let are_enough = match self.by_majority && !aware {
            true => new > voters.len() / 2,
            false => new == voters.len(),
        };
        self.admitted = voters.contains(&self.id) && are_enough;
        self.founder = self.admitted;
        self.admitted.then_some(Admission::Founder)
    }

    /// What this server may do for an election. `bound`: the disk that its state binds to its
    /// number. `known`: the same as far as it was told. 0: none.
    pub fn say(&self, bound: u64, known: u64, is_member: bool) -> Say {
        // Who was removed gives its vote only to those who know that.
        let has_place = self.founder || !is_member;
        if bound == self.disk || (bound == 0 && has_place) {
            Say::Full
        } else if known == self.disk {
            Say::Vote
        } else {
            Say::None
        }
    }

    /// Whether what a server says comes from this disk.
    pub fn has_come_with(&self, id: u64, disk: u64) -> bool {
        self.came_with.get(&id).is_some_and(|came| came.0 == disk)
    }

    /// Whether a server knows that this disk is the one that is counted on.
    pub fn is_known_by(&self, id: u64) -> bool {
        self.came_with.get(&id).is_some_and(|came| came.1)
    }

    /// A server dialled this one, with this disk, knowing that one of this server's: all that it
    /// says from now on comes from there.
    pub fn comes_with(&mut self, id: u64, disk: u64, knows: u64) {
        self.came_with.insert(id, (disk, knows == self.disk));
    }

    /// There are no other links than to these servers.
    pub fn keep(&mut self, is_server: impl Fn(u64) -> bool) {
        self.linked.retain(|id, _| is_server(*id));
    }

    pub fn unlinked(&mut self, id: u64) {
        self.linked.remove(&id);
    }

    /// A server dialled this one: may it take part from now on?
    pub fn introduced(&mut self, introduction: Introduction) -> Option<Admission> {
        let known = introduction.formed && introduction.knows == self.disk;
        let news = known && !self.admitted;
        self.admitted |= known;
        news.then_some(Admission::Joiner)
    }

    /// A server came with another disk than the one that is bound to its number.
    pub fn stranger(&mut self, id: u64, disk: u64, now_ms: u64) {
        let known = self.strangers.get(&id);
        let known = known.filter(|known| known.disk == disk && known.is_there(now_ms));
        let stranger = Stranger {
            disk,
            since_ms: known.map_or(now_ms, |known| known.since_ms),
            last_ms: now_ms,
        };
        self.strangers.insert(id, stranger);
    }

    /// Disks that are not bound, by the number of the server that came with them, if it does so for
    /// some time: a server with a wrong number must not take another's place at once.
    pub fn strangers(&self, now_ms: u64) -> BTreeMap<u64, u64> {
        let strangers = self.strangers.iter();
        strangers
            .filter(|(_, stranger)| stranger.last_ms >= stranger.since_ms + STRANGER_MS)
            .filter(|(_, stranger)| stranger.is_there(now_ms))
            .map(|(id, stranger)| (*id, stranger.disk))
            .collect()
    }

    /// This disk is bound to that number now.
    pub fn bound(&mut self, id: u64, disk: u64) {
        self.strangers
            .retain(|stranger, found| *stranger != id || found.disk != disk);
    }

    /// As the leader of this term: whether to bind a server's disk now. Once it is on its way, no
    /// other disk may take its place: what the first one acknowledged counts.
    pub fn binds(&mut self, id: u64, term: u64) -> bool {
        self.binding.insert(id, term) != Some(term)
    }

    /// As the leader: a server's number is free for another disk.
    pub fn unbinds(&mut self, id: u64) {
        self.binding.remove(&id);
    }

    /// Servers that are linked, with their disks, and this one with its own.
    pub fn disks(&self) -> impl Iterator<Item = (u64, u64)> {
        let linked = self.linked.iter().map(|(id, other)| (*id, other.disk));
        linked
            .chain([(self.id, self.disk)])
            .filter(|(_, disk)| *disk != 0)
    }
}

impl Stranger {
    fn is_there(&self, now_ms: u64) -> bool {
        now_ms <= self.last_ms + STRANGER_GONE_MS
    }
}

/// The campaigns after a leader was lost: the others have turns, so that they do not take each
/// other's votes.
#[derive(Debug)]
pub struct Failover {
    start_ms: u64,
    rank: u64,
    servers: u64,
    pub next_ms: u64,
}

impl Failover {
    /// `rank`: how many of all the `servers` that may campaign come before this one.
    pub fn new(now_ms: u64, rank: usize, servers: usize) -> Self {
        Self {
            start_ms: now_ms,
            rank: rank as u64,
            servers: servers as u64,
            next_ms: now_ms + rank as u64 * TURN_MS,
        }
    }

    /// Whether to campaign now.
    pub fn is_due(&mut self, now_ms: u64) -> bool {
        if now_ms < self.next_ms {
            return false;
        }
        let turn = (now_ms - self.start_ms) / TURN_MS;
        let is_own = turn % self.servers == self.rank;
        let again_ms = now_ms + RETRY_MS;
        let is_over = (again_ms - self.start_ms) / TURN_MS != turn;
        self.next_ms = match is_own && !is_over {
            true => again_ms,
            false => {
                let ahead = (self.rank + self.servers - turn % self.servers - 1) % self.servers;
                self.start_ms + (turn + 1 + ahead) * TURN_MS
            }
        };
        is_own
    }

    pub fn is_over(&self, now_ms: u64) -> bool {
        now_ms > self.start_ms + FAILOVER_MS
    }
}

impl Engine {
    /// This server is about to stop: somebody else is to lead first, so that nobody has to wait for
    /// an election. Tried again with each tick until it is so.
    pub(super) fn hand_over(&mut self) {
        self.handing_over = true;
        self.transfer_leadership(|peer| peer.voter);
    }

    /// Asks the server that is there, fit, and furthest in the log to lead instead. Two that are
    /// asked at the same time take each other's votes, so nobody else is asked while one that is
    /// there still may.
    pub(super) fn transfer_leadership(&mut self, is_fit: impl Fn(&PeerStatus) -> bool) {
        let peers = self.peers().into_iter();
        let fit = peers.filter(|peer| peer.active && is_fit(peer));
        let asked = self.replica.transferee();
        // raft gives one try up after an election timeout; the next goes to who is best then.
        if let Some(best) = fit.max_by_key(|peer| (Some(peer.id) == asked, peer.matched)) {
            self.replica.transfer_leadership(best.id);
        }
    }

    pub(super) fn linked(&mut self, id: u64, introduction: Introduction) {
        let voters = self.replica.membership().voters;
        self.shared.met(&introduction);
        let aware = self.shared.is_aware();
        let admission = self.standing.linked(id, introduction, &voters, aware);
        self.levels.heard(id, introduction);
        self.admitted(id, admission);
        if id == self.replica.leader() {
            // What was on its way when the link broke is lost.
            self.forward.resend();
        }
        if self.leading.is_some() {
            let unbound = self.unbound_disks(&self.shared.state.read().machine);
            self.bind(unbound);
        }
    }

    /// As the leader: writes these disks into the log, unless that is on its way.
    pub(super) fn bind(&mut self, disks: Vec<(u64, u64)>) {
        let term = self.replica.term();
        for (id, disk) in disks {
            if self.standing.binds(id, term) {
                // Whoever came with it before that is no stranger any more.
                self.standing.bound(id, disk);
                let setting = (disk_setting(id), disk as i64);
                self.internal.push(set_command(&setting));
            }
        }
    }

    /// A server said who it is.
    pub(super) fn introduced(&mut self, id: u64, introduction: Introduction) {
        self.shared.met(&introduction);
        let Introduction { disk, knows, .. } = introduction;
        self.standing.comes_with(id, disk, knows);
        let admission = self.standing.introduced(introduction);
        self.levels.heard(id, introduction);
        self.admitted(id, admission);
    }

    fn admitted(&mut self, by: u64, admission: Option<Admission>) {
        match admission {
            // It may have been told something of its own number all the same.
            None => return self.update_say(),
            Some(Admission::Founder) => {}
            // It must not count votes by members that it only believes in. The first entries, or
            // a snapshot, tell who they are.
            Some(Admission::Joiner) => {
                let membership = log::Membership {
                    voters: vec![by],
                    learners: vec![self.id],
                    ..log::Membership::default()
                };
                let hard_state = log::HardState::default();
                let kept = self.shared.options.log_kept;
                let log = MemLog::new(&hard_state, &membership, (0, 0), [], kept);
                self.replica = Replica::new(self.id, log, 0, true, &self.logger)
                    .expect("an empty log is in order");
            }
        }
        self.update_say();
        tracing::info!(by, "this server takes part from now on");
    }

    /// Whose say counts, after something was applied or told.
    pub(super) fn update_say(&mut self) {
        {
            let state = self.shared.state.read();
            let version = state.machine.settings_version();
            if self.bound_version != Some(version) {
                self.bound_version = Some(version);
                let ids = (1..=u64::from(u8::MAX)).map(|id| (id, disk_setting(id)));
                let disks = ids.map(|(id, name)| (id, state.machine.setting(&name) as u64));
                self.bound = disks.filter(|(_, disk)| *disk != 0).collect();
            }
        }
        let is_member = self.replica.is_member();
        let known = u32::try_from(self.id).map_or(0, |id| self.shared.bound_disk(id));
        let bound = self.bound_disk(self.id);
        let say = self.standing.say(bound, known, is_member);
        self.replica.set_say(say);
    }

    /// Whether what another server says counts here.
    pub(super) fn counts(&self, id: u64) -> bool {
        match self.bound_disk(id) {
            0 => !self.shared.has_other_disk(id),
            disk => self.standing.has_come_with(id, disk),
        }
    }

    /// Whether a message says something that does not count, since it comes from another disk than
    /// the one that the state binds to its sender. That there is a later term counts all the same.
    pub(super) fn is_of_other_disk(&self, from: u64, message: &Message) -> bool {
        let says = match message.get_msg_type() {
            MessageType::MsgRequestPreVoteResponse | MessageType::MsgRequestVoteResponse => {
                !message.reject
            }
            MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse => {
                message.term <= self.replica.term()
            }
            _ => false,
        };
        says && !self.counts(from)
    }

    /// Whether a message asks for a vote of another disk than this one. Who has the log as far as
    /// the entry that binds this disk sees by their logs who may lead.
    pub(super) fn asks_another_disk(&self, from: u64, message: &Message) -> bool {
        let asks = matches!(
            message.get_msg_type(),
            MessageType::MsgRequestPreVote | MessageType::MsgRequestVote
        );
        asks && self.replica.say() == Say::Vote && !self.standing.is_known_by(from)
    }

    /// The disk that the state binds to a server; 0: none yet.
    pub(super) fn bound_disk(&self, id: u64) -> u64 {
        self.bound.get(&id).copied().unwrap_or(0)
    }

    pub(super) fn peer_lost(&mut self, id: u64) {
        self.standing.unlinked(id);
        self.levels.gone(id);
        self.heard_ms.remove(&id);
        self.replica.unreachable(id);
        let voters = self.replica.membership().voters;
        if !voters.contains(&self.id) || !self.replica.forget_leader(id) {
            return;
        }
        let others: Vec<_> = voters.into_iter().filter(|voter| *voter != id).collect();
        let before = others.iter().filter(|voter| **voter < self.id);
        self.failover = Some(Failover::new(self.now_ms, before.count(), others.len()));
        tracing::info!(leader = id, "the leader is gone");
    }

    /// Campaigns if the leader was lost and nobody else leads yet.
    pub(super) fn fail_over(&mut self, out: &mut Outputs) {
        let Some(failover) = &mut self.failover else {
            return;
        };
        if self.replica.leader() != 0 || failover.is_over(self.now_ms) {
            self.failover = None;
            return;
        }
        if failover.is_due(self.now_ms) {
            self.replica.campaign();
        }
        out.wake_at(failover.next_ms);
    }

    /// Members that are linked and have no disk bound to their number yet, and their disks.
    pub(super) fn unbound_disks(&self, machine: &Machine) -> Vec<(u64, u64)> {
        let members = self.replica.members();
        let disks = self.standing.disks();
        disks
            .filter(|(id, _)| members.contains(id))
            .filter(|(id, _)| machine.setting(&disk_setting(*id)) == 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(formed: bool, knows: u64) -> Introduction {
        Introduction {
            disk: 9,
            formed,
            knows,
            ..Introduction::default()
        }
    }

    #[test]
    fn a_new_cluster_begins_once_all_are_there_and_empty() {
        let mut standing = Standing::new(1, 7, false, false, false);
        assert_eq!(standing.linked(2, other(false, 0), &[1, 2, 3], false), None);
        standing.unlinked(2);
        assert_eq!(standing.linked(3, other(false, 0), &[1, 2, 3], false), None);
        let founder = Some(Admission::Founder);
        assert_eq!(
            standing.linked(2, other(false, 0), &[1, 2, 3], false),
            founder
        );
        assert!(standing.is_admitted());
    }

    #[test]
    fn a_majority_founds_if_it_may_and_nobody_has_anything() {
        let mut standing = Standing::new(1, 7, false, false, true);
        let five = [1, 2, 3, 4, 5];
        assert_eq!(standing.linked(2, other(false, 0), &five, false), None);
        // One with a log was met, and may soon be able to say what is in it.
        assert_eq!(standing.linked(4, other(true, 0), &five, true), None);
        standing.unlinked(4);
        assert_eq!(standing.linked(3, other(false, 0), &five, true), None);
        let founder = Some(Admission::Founder);
        assert_eq!(standing.linked(3, other(false, 0), &five, false), founder);
        let mut aware = Standing::new(1, 7, false, false, true);
        for id in [2, 3, 4] {
            assert_eq!(aware.linked(id, other(false, 0), &five, true), None);
        }
        let all = aware.linked(5, other(false, 0), &five, true);
        assert_eq!(all, founder, "nobody has anything any more");
        let mut of_two = Standing::new(1, 7, false, false, true);
        assert_eq!(of_two.linked(3, other(false, 0), &[1, 2], false), None);
        assert_eq!(of_two.linked(2, other(false, 0), &[1, 2], false), founder);
    }

    #[test]
    fn an_empty_server_waits_until_its_disk_is_bound() {
        let mut standing = Standing::new(1, 7, false, false, false);
        assert_eq!(standing.linked(2, other(true, 0), &[1, 2, 3], false), None);
        assert_eq!(standing.linked(3, other(false, 0), &[1, 2, 3], false), None);
        let older = other(true, 8);
        assert_eq!(
            standing.linked(2, older, &[1, 2, 3], false),
            None,
            "an older disk of its own"
        );
        let joiner = Some(Admission::Joiner);
        assert_eq!(
            standing.linked(2, other(true, 7), &[1, 2, 3], false),
            joiner
        );
    }

    #[test]
    fn one_that_is_no_voter_founds_nothing() {
        let mut standing = Standing::new(4, 7, false, false, false);
        assert_eq!(standing.linked(1, other(false, 0), &[1], false), None);
        let joiner = Some(Admission::Joiner);
        assert_eq!(standing.linked(1, other(true, 7), &[1], false), joiner);
    }

    #[test]
    fn who_came_later_has_a_say_once_its_disk_is_bound() {
        let founder = Standing::new(1, 7, true, true, false);
        let joiner = Standing::new(1, 7, true, false, false);
        for (bound, known, is_member, expected) in [
            (0, 0, true, [Say::Full, Say::None]),
            (0, 7, true, [Say::Full, Say::Vote]),
            (0, 0, false, [Say::Full; 2]),
            (7, 7, true, [Say::Full; 2]),
            (6, 6, true, [Say::None; 2]),
            (6, 7, true, [Say::Vote; 2]),
        ] {
            let say = [&founder, &joiner].map(|server| server.say(bound, known, is_member));
            assert_eq!(say, expected, "{bound} {known} {is_member}");
        }
    }

    #[test]
    fn a_stranger_that_is_gone_is_forgotten() {
        let mut standing = Standing::new(1, 7, true, true, false);
        let known = BTreeMap::from([(2, 8)]);
        for now_ms in (0..=3_000).step_by(1_000) {
            let expected = if now_ms < STRANGER_MS {
                None
            } else {
                Some(&known)
            };
            standing.stranger(2, 8, now_ms);
            let strangers = standing.strangers(now_ms);
            assert_eq!(Some(&strangers).filter(|all| !all.is_empty()), expected);
        }
        assert_eq!(standing.strangers(8_000), known);
        assert!(standing.strangers(8_001).is_empty());
        standing.stranger(2, 8, 9_000);
        assert!(standing.strangers(11_000).is_empty(), "it begins anew");
        standing.stranger(2, 8, 11_000);
        assert_eq!(standing.strangers(11_000), known);
        standing.stranger(2, 9, 11_000);
        assert!(standing.strangers(11_000).is_empty(), "yet another disk");
    }

    #[test]
    fn campaigns_come_in_turns_and_end() {
        let mut both = [0, 1].map(|rank| Failover::new(1_000, rank, 2));
        let mut campaigns = [Vec::new(), Vec::new()];
        for now_ms in 1_000..1_100 {
            for (failover, campaigns) in both.iter_mut().zip(&mut campaigns) {
                if failover.is_due(now_ms) {
                    campaigns.push(now_ms - 1_000);
                }
            }
        }
        assert_eq!(campaigns[0], [0, 10, 40, 50, 80, 90]);
        assert_eq!(campaigns[1], [20, 30, 60, 70]);
        assert!(!both[0].is_over(2_000) && both[0].is_over(2_001));
        // Whoever looks at the clock rarely finds the same turns.
        let mut both = [0, 1].map(|rank| Failover::new(1_000, rank, 2));
        for now_ms in (1_050..2_000).step_by(50) {
            let due = both.each_mut().map(|failover| failover.is_due(now_ms));
            assert!(due != [true, true]);
        }
    }
}

//! Who may take part, and who leads after a leader died.
//!
//! A server counts by its disk, not only by its number: the replicated settings bind each number to
//! the disk that the log was first replicated to (see [`disk_setting`]). A server that comes back
//! with an empty disk could vote a second time, or for a log that lacks what it had acknowledged.
//! So an empty server takes no part at all until some server that knows the cluster says that this
//! very disk is bound, or until all the others are there and as empty as it is: then the cluster is
//! new.
//!
//! When a leader's process is gone, which a refused connection tells at once, the others need not
//! wait for an election timeout: they forget it and campaign one after the other. Raft's pre-vote
//! keeps that harmless: whoever still hears the leader gives no vote (Raft thesis §9.6).

use std::collections::BTreeMap;

use crate::machine::Machine;

use super::{Engine, Outputs, set_command};

/// Time between the first campaigns of two servers, in ms: the first is through by then.
const STAGGER_MS: u64 = 20;
/// Time after which a campaign is tried again, in ms, and how often, before the election timeout is
/// left to see to it.
const RETRY_MS: u64 = 10;
const TRIES: u32 = 60;

/// How long a server has to come with another disk before it is taken for the one that had its
/// number, in ms.
const STRANGER_MS: u64 = 2_000;

/// Setting with the cluster's own random number; 0 until its first leader has chosen one.
pub const CLUSTER_SETTING: &str = "cluster";

/// Setting with the disk of a server; 0 until it is bound.
pub fn disk_setting(server: u64) -> String {
    format!("disk.{server}")
}

/// What a server said of itself when it was linked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Introduction {
    /// Random number of its data directory.
    pub disk: u64,
    /// Whether its log ever had an entry.
    pub formed: bool,
    /// The disk that it holds to be ours; 0: it knows of none.
    pub knows: u64,
}

/// The servers that are linked, and whether this one may take part.
#[derive(Debug)]
pub struct Standing {
    id: u64,
    disk: u64,
    admitted: bool,
    linked: BTreeMap<u64, Introduction>,
    /// The disk, and since when the server comes with it.
    strangers: BTreeMap<u64, (u64, u64)>,
}

impl Standing {
    /// `admitted`: this server has a log of its own, or is alone.
    pub fn new(id: u64, disk: u64, admitted: bool) -> Self {
        Self {
            id,
            disk,
            admitted,
            linked: BTreeMap::new(),
            strangers: BTreeMap::new(),
        }
    }

    /// Whether this server may vote and acknowledge.
    pub fn is_admitted(&self) -> bool {
        self.admitted
    }

    /// A server is linked. True: this one may take part from now on.
    pub fn linked(&mut self, id: u64, introduction: Introduction, voters: &[u64]) -> bool {
        self.linked.insert(id, introduction);
        if self.admitted {
            return false;
        }
        if self.introduced(introduction) {
            return true;
        }
        let is_new = |voter: &u64| {
            *voter == self.id || self.linked.get(voter).is_some_and(|other| !other.formed)
        };
        self.admitted = voters.contains(&self.id) && voters.iter().all(is_new);
        self.admitted
    }

    pub fn unlinked(&mut self, id: u64) {
        self.linked.remove(&id);
    }

    /// A server dialled this one. True: this one may take part from now on.
    pub fn introduced(&mut self, introduction: Introduction) -> bool {
        let known = introduction.formed && introduction.knows == self.disk;
        let news = known && !self.admitted;
        self.admitted |= known;
        news
    }

    /// A server came with another disk than the one that is bound to its number.
    pub fn stranger(&mut self, id: u64, disk: u64, now_ms: u64) {
        let known = self.strangers.get(&id);
        if known.is_none_or(|(known, _)| *known != disk) {
            self.strangers.insert(id, (disk, now_ms));
        }
    }

    /// Disks that are not bound, by the number of the server that came with them, if it does so for
    /// some time: a server with a wrong number must not take another's place at once.
    pub fn strangers(&self, now_ms: u64) -> BTreeMap<u64, u64> {
        let strangers = self.strangers.iter();
        strangers
            .filter(|(_, (_, since_ms))| now_ms >= since_ms + STRANGER_MS)
            .map(|(id, (disk, _))| (*id, *disk))
            .collect()
    }

    /// This disk is bound to that number now.
    pub fn bound(&mut self, id: u64, disk: u64) {
        self.strangers
            .retain(|stranger, (found, _)| *stranger != id || *found != disk);
    }

    /// Servers that are linked, with their disks, and this one with its own.
    pub fn disks(&self) -> impl Iterator<Item = (u64, u64)> {
        let linked = self.linked.iter().map(|(id, other)| (*id, other.disk));
        linked
            .chain([(self.id, self.disk)])
            .filter(|(_, disk)| *disk != 0)
    }
}

/// The campaigns after a leader was lost.
#[derive(Debug)]
pub struct Failover {
    pub next_ms: u64,
    tries: u32,
}

impl Failover {
    /// `rank`: how many others campaign before this server.
    pub fn new(now_ms: u64, rank: usize) -> Self {
        Self {
            next_ms: now_ms + rank as u64 * STAGGER_MS,
            tries: 0,
        }
    }

    /// Whether to campaign now.
    pub fn is_due(&mut self, now_ms: u64) -> bool {
        if now_ms < self.next_ms {
            return false;
        }
        self.next_ms = now_ms + RETRY_MS;
        self.tries += 1;
        true
    }

    pub fn is_over(&self) -> bool {
        self.tries > TRIES
    }
}

impl Engine {
    /// This server is about to stop: somebody else is to lead first, so that nobody has to wait for
    /// an election. Tried again with each tick until it is so.
    pub(super) fn hand_over(&mut self) {
        self.handing_over = true;
        let peers = self.replica.peers().into_iter();
        let candidates = peers.filter(|peer| peer.voter && peer.active);
        // raft gives one try up after an election timeout; the next goes to who is best then.
        if let Some(best) = candidates.max_by_key(|peer| peer.matched) {
            self.replica.transfer_leadership(best.id);
        }
    }

    pub(super) fn linked(&mut self, id: u64, introduction: Introduction) {
        let voters = self.replica.membership().voters;
        if self.standing.linked(id, introduction, &voters) {
            tracing::info!("this server takes part from now on");
        }
        if id == self.replica.leader() {
            // What was on its way when the link broke is lost.
            self.forward.resend();
        }
        if self.leading.is_some() {
            let unbound = self.unbound_disks(&self.shared.state.read().machine);
            self.internal.extend(unbound.iter().map(set_command));
        }
    }

    pub(super) fn peer_lost(&mut self, id: u64) {
        self.standing.unlinked(id);
        self.replica.unreachable(id);
        let voters = self.replica.membership().voters;
        if !voters.contains(&self.id) || !self.replica.forget_leader(id) {
            return;
        }
        let before = voters
            .iter()
            .filter(|voter| **voter < self.id && **voter != id);
        self.failover = Some(Failover::new(self.now_ms, before.count()));
        tracing::info!(leader = id, "the leader is gone");
    }

    /// Campaigns if the leader was lost and nobody else leads yet.
    pub(super) fn fail_over(&mut self, out: &mut Outputs) {
        let Some(failover) = &mut self.failover else {
            return;
        };
        if self.replica.leader() != 0 || failover.is_over() {
            self.failover = None;
            return;
        }
        if failover.is_due(self.now_ms) {
            self.replica.campaign();
        }
        out.wake_at_ms = Some(failover.next_ms);
    }

    /// Members that are linked and have no disk bound to their number yet, as settings.
    pub(super) fn unbound_disks(&self, machine: &Machine) -> Vec<(String, i64)> {
        let members = self.replica.members();
        let disks = self.standing.disks();
        disks
            .filter(|(id, _)| members.contains(id))
            .map(|(id, disk)| (disk_setting(id), disk as i64))
            .filter(|(name, _)| machine.setting(name) == 0)
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
        }
    }

    #[test]
    fn a_new_cluster_begins_once_all_are_there_and_empty() {
        let mut standing = Standing::new(1, 7, false);
        assert!(!standing.linked(2, other(false, 0), &[1, 2, 3]));
        standing.unlinked(2);
        assert!(!standing.linked(3, other(false, 0), &[1, 2, 3]));
        assert!(standing.linked(2, other(false, 0), &[1, 2, 3]));
        assert!(standing.is_admitted());
    }

    #[test]
    fn an_empty_server_waits_until_its_disk_is_bound() {
        let mut standing = Standing::new(1, 7, false);
        assert!(!standing.linked(2, other(true, 0), &[1, 2, 3]));
        assert!(!standing.linked(3, other(false, 0), &[1, 2, 3]));
        assert!(
            !standing.linked(2, other(true, 8), &[1, 2, 3]),
            "an older disk of its own"
        );
        assert!(standing.linked(2, other(true, 7), &[1, 2, 3]));
    }

    #[test]
    fn one_that_is_no_voter_founds_nothing() {
        let mut standing = Standing::new(4, 7, false);
        assert!(!standing.linked(1, other(false, 0), &[1]));
        assert!(standing.linked(1, other(true, 7), &[1]));
    }

    #[test]
    fn campaigns_come_one_after_the_other_and_end() {
        let mut failover = Failover::new(1_000, 1);
        assert!(!failover.is_due(1_019) && failover.is_due(1_020));
        let mut now_ms = 1_020 + RETRY_MS;
        assert!(!failover.is_due(now_ms - 1) && failover.is_due(now_ms));
        while !failover.is_over() {
            now_ms += RETRY_MS;
            failover.is_due(now_ms);
        }
        assert_eq!(now_ms, 1_020 + u64::from(TRIES) * RETRY_MS);
    }
}

//! What operators see of a server's part in its ensemble: written by the node now and then, read by
//! whoever asks.

use crate::proto::log;

use super::Engine;

/// A server's part in its ensemble.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Role {
    /// There are no others.
    #[default]
    Standalone,
    Leader,
    /// Has a vote, and follows or looks for a leader.
    Follower,
    /// Follows without a vote.
    Observer,
}

/// As of the last tick, or the last change of leaders.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    pub role: Role,
    /// The server that leads, 0 if none is known.
    pub leader: u64,
    pub term: u64,
    /// The last entry that is in the state, that is committed, and that is in the log.
    pub applied: u64,
    pub committed: u64,
    pub last: u64,
    pub membership: log::Membership,
    /// Whether this server may vote and acknowledge (see [`super::members`]).
    pub admitted: bool,
    /// As the leader: since when it leads, in ms of the engine's clock.
    pub leading_since_ms: Option<u64>,
    /// As the leader: the other members.
    pub peers: Vec<PeerStatus>,
    /// Syncs that wait.
    pub syncs: usize,
    /// Writes of this server that are not applied yet.
    pub writes: usize,
    /// The feature level of the state.
    pub level: u32,
}

/// How far another server is, as its leader knows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PeerStatus {
    pub id: u64,
    pub voter: bool,
    /// Whether it was heard within the last half second.
    pub active: bool,
    /// The last entry that is known to be in its log.
    pub matched: u64,
    /// Whether it is being sent a snapshot.
    pub snapshot: bool,
    /// Whether it lacks entries that are not in the log any more, as far as is known.
    pub beyond_log: bool,
}

/// Who lacks more entries than this is not in sync: an entry holds many writes, and some are always
/// under way.
pub const SYNCED_WITHIN: u64 = 1_000;

impl PeerStatus {
    /// Whether it has nearly all that is committed. `committed`: the last such entry.
    pub fn is_synced(&self, committed: u64) -> bool {
        !self.snapshot && !self.beyond_log && self.matched + SYNCED_WITHIN >= committed
    }
}

/// A server that was not heard for so long, in ms, is not counted on: some heartbeats.
pub(super) const ACTIVE_MS: u64 = 500;

impl Engine {
    /// As the leader: how far the others are. (raft's own account of who is heard starts anew with
    /// each election timeout.)
    pub(super) fn peers(&self) -> Vec<PeerStatus> {
        let mut peers = self.replica.peers();
        for peer in &mut peers {
            // Who is there on another disk cannot do what is expected of this number.
            peer.active = self.is_active(peer.id) && self.counts(peer.id);
        }
        peers
    }

    /// The same, but active are only those whose disks are bound. Others must not be left the say
    /// when votes are taken away: whoever is started anew with an empty log gives no vote before
    /// somebody tells it that its disk is the bound one (see `engine::members`).
    pub(super) fn bound_peers(&self) -> Vec<PeerStatus> {
        let mut peers = self.peers();
        for peer in &mut peers {
            peer.active &= self.bound_disk(peer.id) != 0;
        }
        peers
    }

    /// Whether another server was heard of late.
    pub(super) fn is_active(&self, id: u64) -> bool {
        let heard_ms = self.heard_ms.get(&id);
        heard_ms.is_some_and(|heard_ms| self.now_ms <= heard_ms + ACTIVE_MS)
    }

    /// Shows operators what there is to see.
    pub(super) fn update_status(&mut self) {
        let membership = self.replica.membership();
        let alone = self.replica.members() == [self.id];
        let role = match (alone, self.replica.is_leader(), self.replica.is_voter()) {
            (true, _, _) => Role::Standalone,
            (false, true, _) => Role::Leader,
            (false, false, true) => Role::Follower,
            (false, false, false) => Role::Observer,
        };
        self.shared.set_formed(self.replica.last_index() > 0);
        let settings = self.shared.state.read().machine.settings_version();
        if self.introduced_version != Some(settings) {
            self.introduced_version = Some(settings);
            self.shared.update_introduction();
        }
        *self.shared.status.lock() = Status {
            role,
            leader: self.replica.leader(),
            term: self.replica.term(),
            applied: self.applied.index,
            committed: self.replica.committed(),
            last: self.replica.last_index(),
            membership,
            admitted: self.standing.is_admitted(),
            leading_since_ms: self.leading.map(|_| self.leading_since_ms),
            peers: self.peers(),
            syncs: self.barrier.count(),
            writes: self.forward.len(),
            level: self.level,
        };
    }
}

//! One replica of the log: raft's `RawNode` and the rules for driving it.
//!
//! Nothing is declared durable before it is. A Ready's entries go to the log thread under the
//! Ready's number; messages that promise something (votes, acknowledgements) are held until that
//! number is persisted, and so is everything after a change of term or vote, because a sole voter
//! becomes leader within one step and would speak before its term is durable (Raft thesis §3.8,
//! §10.2.1). The election timeout is a pure function of server and term: raft's own randomness is
//! overwritten after every call, or a run could not be repeated.

use std::collections::VecDeque;

use prost::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{Config, ProgressState, RawNode, ReadOnlyOption, SnapshotStatus, StateRole};

use crate::machine::LogId;
use crate::proto::log;
use crate::proto::log::membership_step::Kind;

use super::entry;
use super::log::MemLog;
use super::reconcile::{Target, step};
use super::status::PeerStatus;

/// Engine ticks between two heartbeats.
const HEARTBEAT_TICKS: usize = 1;
/// Engine ticks without a leader before an election, at least; at most twice that.
const ELECTION_TICKS: usize = 10;

/// What must be written to the log files.
#[derive(Clone, Debug, PartialEq)]
pub struct Append {
    /// To be reported back once durable. Rises.
    pub number: u64,
    pub record: log::Record,
    /// False: the record may be written without waiting for the disk.
    pub sync: bool,
}

/// What one turn of the replica brings about.
#[derive(Debug, Default)]
pub struct Turn {
    pub append: Vec<Append>,
    pub sends: Vec<Message>,
    pub committed: Vec<Entry>,
    /// Context and index of read rounds that were answered.
    pub reads: Vec<(Vec<u8>, u64)>,
    /// The log goes on after a snapshot that another server sent: its index.
    pub installed: Option<u64>,
}

/// What a server may do for an election.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Say {
    /// Follow.
    None,
    /// Give its vote to others.
    Vote,
    /// Be elected, too.
    Full,
}

pub struct Replica {
    raw: RawNode<MemLog>,
    id: u64,
    /// Readies that are not persisted, oldest first.
    unpersisted: VecDeque<Unpersisted>,
    /// The highest Ready that is persisted.
    persisted: u64,
    /// Written with the next record; its commit index alone is not worth a write.
    hard_state: log::HardState,
    hard_state_written: log::HardState,
    /// The membership that a new log begins with, until it is written: a later start must not take
    /// it from a configuration that was edited meanwhile.
    first_membership: Option<log::Membership>,
    /// See [`Self::set_say`].
    say: Say,
    last_seen: (u64, u64),
}

#[derive(Debug)]
struct Unpersisted {
    number: u64,
    /// Nothing had to be written: persisted as soon as what stands before it is.
    empty: bool,
    /// It carries a new term or vote: nothing may be said before that is durable.
    new_term: bool,
    messages: Vec<Message>,
}

impl Replica {
    /// Takes over a recovered log. `applied` is the last entry that the state contains. `is_new`:
    /// nothing was ever written to this log.
    pub fn new(
        id: u64,
        log: MemLog,
        applied: u64,
        is_new: bool,
        logger: &slog::Logger,
    ) -> raft::Result<Self> {
        let config = Config {
            id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied,
            pre_vote: true,
            check_quorum: true,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 64,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 4 << 20,
            read_only_option: ReadOnlyOption::Safe,
            ..Config::default()
        };
        let first_membership = is_new.then(|| entry::membership_from_raft(log.membership()));
        let raw = RawNode::new(&config, log, logger)?;
        let hard_state = entry::hard_state_from_raft(&raw.raft.hard_state());
        let mut replica = Self {
            raw,
            id,
            unpersisted: VecDeque::new(),
            persisted: 0,
            hard_state,
            hard_state_written: hard_state,
            first_membership,
            say: Say::Full,
            last_seen: (0, 0),
        };
        replica.fix_election_timeout();
        Ok(replica)
    }

    pub fn say(&self) -> Say {
        self.say
    }

    /// What this server may do for an election.
    pub fn set_say(&mut self, say: Say) {
        self.say = say;
    }

    /// A sole voter needs no one's vote: it need not wait for an election timeout.
    pub fn campaign_if_alone(&mut self) {
        if self.is_sole_voter()
            && self.raw.raft.state == StateRole::Follower
            && !self.must_not_lead()
        {
            let stepped = self.raw.campaign();
            debug_assert!(stepped.is_ok(), "a follower may always campaign");
            self.fix_election_timeout();
        }
    }

    /// Whether raft must not elect this server now. It leads with a log that is durable, for which
    /// it counts on the wait for the votes of others: they are asked when that is so. Who votes
    /// alone waits for nobody, not even for a Ready with what it was sent since the last one.
    fn must_not_lead(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        let is_durable = self.unpersisted.is_empty() && log.persisted == log.last_index();
        let is_early = self.is_sole_voter() && !is_durable;
        !self.is_leader() && (is_early || self.say != Say::Full)
    }

    pub fn tick(&mut self) {
        let raft = &mut self.raw.raft;
        let is_last = raft.election_elapsed + 1 >= raft.randomized_election_timeout();
        if is_last && self.must_not_lead() {
            // Its time to campaign, and for others to do so whom it would refuse for a leader's
            // sake that it does not hear.
            self.raw.raft.leader_id = raft::INVALID_ID;
            return;
        }
        self.raw.tick();
        self.fix_election_timeout();
    }

    /// A message of another server. Answers to what we did not ask are ignored by raft.
    pub fn step(&mut self, message: Message) {
        // Proposals are never forwarded through raft: it has no identity for them.
        if message.get_msg_type() == MessageType::MsgPropose {
            return;
        }
        let elects = matches!(
            message.get_msg_type(),
            MessageType::MsgTimeoutNow
                | MessageType::MsgRequestPreVoteResponse
                | MessageType::MsgRequestVoteResponse
        );
        let asks = matches!(
            message.get_msg_type(),
            MessageType::MsgRequestPreVote | MessageType::MsgRequestVote
        );
        if (elects && self.must_not_lead()) || (asks && self.say == Say::None) {
            return;
        }
        // A leader of before speaks to the disk that was here then, and of what that one had. On
        // the disk that is bound it would be a loss, for which raft stops the process.
        let is_beyond = message.get_msg_type() == MessageType::MsgHeartbeat
            && message.commit > self.last_index();
        if is_beyond && self.say != Say::Full {
            return;
        }
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(%error, "message ignored");
        }
        self.fix_election_timeout();
    }

    /// This server's process is gone, so nothing more will be heard of it in this term: if it led,
    /// nobody does, and this server may campaign and vote at once. A leader that was only thought
    /// dead makes itself heard, and those who still hear it give no vote (Raft thesis §9.6).
    pub fn forget_leader(&mut self, id: u64) -> bool {
        let led = self.raw.raft.leader_id == id && id != self.id;
        if led {
            self.raw.raft.leader_id = raft::INVALID_ID;
        }
        led
    }

    /// Asks for votes, if this server may have any.
    pub fn campaign(&mut self) {
        if self.is_voter() && !self.is_leader() && !self.must_not_lead() {
            // Refused while a change of membership is not applied yet: it is tried again.
            if let Err(error) = self.raw.campaign() {
                tracing::debug!(%error, "no campaign");
            }
            self.fix_election_timeout();
        }
    }

    /// What was sent to this server may be lost.
    pub fn unreachable(&mut self, id: u64) {
        self.raw.report_unreachable(id);
    }

    /// How sending a snapshot ended.
    pub fn snapshot_sent(&mut self, to: u64, ok: bool) {
        let status = match ok {
            true => SnapshotStatus::Finish,
            false => SnapshotStatus::Failure,
        };
        self.raw.report_snapshot(to, status);
    }

    /// A snapshot of the leader's is durable here. If it is ahead of this log, the next turn says
    /// that it was installed.
    pub fn offer_snapshot(&mut self, mark: &log::SnapshotMark) {
        let mut message = Message {
            to: self.id,
            from: self.leader(),
            term: self.term(),
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgSnapshot);
        message.set_snapshot(entry::snapshot_to_raft(mark));
        self.step(message);
    }

    /// A snapshot is durable and can be sent to others.
    pub fn has_snapshot(&mut self, mark: log::SnapshotMark) {
        self.raw.mut_store().set_snapshot(mark);
    }

    /// The snapshot of this entry cannot be read: whoever needs one is not given it. Returns
    /// whether it was the newest.
    pub fn lost_snapshot(&mut self, index: u64) -> bool {
        self.raw.mut_store().lose_snapshot(index)
    }

    /// Whether some follower needs a newer snapshot than there is; asked once.
    pub fn is_snapshot_wanted(&self) -> bool {
        self.raw.store().take_snapshot_wanted()
    }

    /// Whether some follower asked for a snapshot since this was asked last, and got none.
    pub fn is_snapshot_missed(&self) -> bool {
        self.raw.store().take_snapshot_missed()
    }

    /// The first entry that followers find here if none of them is sent a snapshot.
    pub fn usual_from(&self) -> u64 {
        self.raw.store().usual_from()
    }

    /// Keeps more of the log while a snapshot is on its way, or made.
    pub fn set_transfer(&mut self, transfer: bool) {
        self.raw.mut_store().set_transfer(transfer);
    }

    /// As the leader: the last entry that is known to be in a server's log. `None`: it is no
    /// member.
    pub fn matched(&self, id: u64) -> Option<u64> {
        self.raw.raft.prs().get(id).map(|progress| progress.matched)
    }

    /// Proposes an entry with a change of membership in it; as [`Self::propose`]. `None` also while
    /// another change is on its way.
    #[must_use]
    pub fn propose_change(&mut self, entry: &log::Entry) -> Option<LogId> {
        if !self.may_propose() || self.raw.raft.has_pending_conf() {
            return None;
        }
        let change = entry::change_to_raft(entry.change.as_ref()?);
        let context = entry.encode_to_vec();
        self.raw.propose_conf_change(context, change).ok()?;
        Some(LogId {
            term: self.raw.raft.term,
            index: self.last_index(),
        })
    }

    /// Whether a change of membership is on its way, or there is a joint membership to be left.
    pub fn is_changing(&self) -> bool {
        let joint = !self.raw.store().membership().voters_outgoing.is_empty();
        joint || self.raw.raft.has_pending_conf()
    }

    /// A change of membership comes into force.
    ///
    /// # Panics
    ///
    /// If it is impossible: the leader that proposed it has checked it, and servers must not differ
    /// about who has a say.
    pub fn apply_change(&mut self, change: &log::MembershipChange) {
        let change = entry::change_to_raft(change);
        let membership = self.raw.apply_conf_change(&change);
        let membership = membership.expect("the leader checked the change of membership");
        self.raw.mut_store().set_membership(membership);
        if self.is_leader() && !self.is_voter() {
            // An earlier leader asked for it. Raft would let this one lead on (Raft thesis §4.2.2
            // does not), and stumble over what it acknowledges itself.
            let term = self.term();
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
        self.fix_election_timeout();
    }

    /// The members become these, one by one: those that found the cluster have them already, and
    /// who joined later has not known them until now. It has no say before it does.
    pub fn settle_membership(&mut self, target: &Target) {
        let add = |kind: Kind| move |server: &u64| (kind, *server);
        let voters = target.voters.iter().map(add(Kind::AddVoter));
        let learners = target.observers.iter().map(add(Kind::AddLearner));
        let mut steps: Vec<(Kind, u64)> = voters.chain(learners).collect();
        let wanted = |id: &u64| target.voters.contains(id) || target.observers.contains(id);
        let surplus = self.members().into_iter().filter(|id| !wanted(id));
        steps.extend(surplus.map(|id| (Kind::Remove, id)));
        for (kind, server) in steps {
            let membership = self.membership();
            let is_done = match kind {
                Kind::AddVoter => membership.voters.contains(&server),
                Kind::AddLearner => membership.learners.contains(&server),
                Kind::Remove => false,
            };
            if !is_done {
                let steps = vec![step(kind, server)];
                self.apply_change(&log::MembershipChange { steps });
            }
        }
    }

    /// Whom leadership is being handed over to. raft gives it up after an election timeout.
    pub fn transferee(&self) -> Option<u64> {
        self.raw.raft.lead_transferee
    }

    /// Hands leadership over, once that server has the whole log.
    pub fn transfer_leadership(&mut self, to: u64) {
        self.raw.transfer_leader(to);
    }

    /// Whoever votes alone leads before its term is durable. After a power loss it may lead in the
    /// same term again, and must have put nothing else into it before.
    fn may_propose(&self) -> bool {
        self.is_leader() && self.is_term_durable()
    }

    /// Whether every change of term or vote so far is durable.
    fn is_term_durable(&self) -> bool {
        self.unpersisted.iter().all(|ready| !ready.new_term)
    }

    /// Proposes an entry; returns its place in the log. `None`: there is no room or no leadership
    /// now; it has to be tried again.
    #[must_use]
    pub fn propose(&mut self, data: Vec<u8>) -> Option<LogId> {
        if !self.may_propose() || self.raw.propose(Vec::new(), data).is_err() {
            return None;
        }
        Some(LogId {
            term: self.raw.raft.term,
            index: self.raw.raft.raft_log.last_index(),
        })
    }

    pub fn read_index(&mut self, context: Vec<u8>) {
        self.raw.read_index(context);
    }

    /// Everything up to this Ready is durable. Returns the messages that waited for it.
    pub fn persisted(&mut self, number: u64) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut last = None;
        while let Some(first) = self.unpersisted.front() {
            if first.number > number && !first.empty {
                break;
            }
            last = Some(first.number);
            messages.extend(
                self.unpersisted
                    .pop_front()
                    .into_iter()
                    .flat_map(|u| u.messages),
            );
        }
        if let Some(last) = last {
            self.persisted = last;
            self.raw.on_persist_ready(last);
            self.fix_election_timeout();
        }
        messages
    }

    /// Collects what raft wants done, until it wants nothing more.
    pub fn turn(&mut self) -> Turn {
        let mut turn = Turn::default();
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            let number = ready.number();
            if let Some(hard_state) = ready.hs() {
                self.hard_state = entry::hard_state_from_raft(hard_state);
                self.raw.mut_store().set_hard_state(hard_state.clone());
            }
            let mut snapshot = None;
            if !ready.snapshot().is_empty() {
                let mark = entry::snapshot_from_raft(ready.snapshot());
                snapshot = Some(mark.index);
                turn.installed = Some(mark.index);
                self.raw.mut_store().install(mark.clone());
                turn.append.push(Append {
                    // The Ready itself is durable with its entries, which follow.
                    number: number - 1,
                    record: log::Record {
                        mark: Some(mark),
                        ..log::Record::default()
                    },
                    sync: true,
                });
            }
            let entries = ready.take_entries();
            self.raw.mut_store().append(&entries);

            let new_term = (self.hard_state.term, self.hard_state.vote)
                != (self.hard_state_written.term, self.hard_state_written.vote);
            // A start goes by the last change that it knows to be committed. In an idle ensemble
            // nothing else would write that down, and whom an earlier one counts on may be gone.
            let changes = ready.committed_entries().iter().any(is_change);
            let empty = entries.is_empty() && !new_term && !changes && ready.snapshot().is_empty();
            if !empty {
                let first = self.first_membership.take();
                let record = log::Record {
                    entries: entries.iter().map(entry::entry_from_raft).collect(),
                    hard_state: Some(self.hard_state),
                    mark: first.map(|membership| log::SnapshotMark {
                        membership: Some(membership),
                        ..log::SnapshotMark::default()
                    }),
                };
                self.hard_state_written = self.hard_state;
                turn.append.push(Append {
                    number,
                    record,
                    sync: ready.must_sync() || changes,
                });
            }

            // A leader may send while it writes, but not before its own term is durable.
            let mut held = ready.take_persisted_messages();
            let messages = ready.take_messages();
            if !new_term && self.is_term_durable() {
                turn.sends.extend(messages);
            } else {
                held.extend(messages);
            }
            self.unpersisted.push_back(Unpersisted {
                number,
                empty,
                new_term,
                messages: held,
            });

            turn.committed.extend(ready.take_committed_entries());
            let reads = ready.take_read_states();
            turn.reads
                .extend(reads.into_iter().map(|read| (read.request_ctx, read.index)));
            self.raw.advance_append_async(ready);
            if let Some(index) = snapshot {
                // Its file is durable and a start would begin with it, though the log does not say
                // so yet. Raft must count it as applied before it campaigns: it looks through what
                // is not, and the entries before are gone.
                self.raw.raft.on_persist_snap(index);
            }
            if self.unpersisted.front().is_some_and(|first| first.empty) {
                let messages = self.persisted(self.persisted);
                turn.sends.extend(messages);
            }
        }
        turn
    }

    /// Whether the term or the leader changed since the last call.
    pub fn has_other_leader(&mut self) -> bool {
        let news = self.is_leadership_news();
        self.last_seen = (self.raw.raft.term, self.raw.raft.leader_id);
        news
    }

    /// The same, without taking note of it.
    pub fn is_leadership_news(&self) -> bool {
        self.last_seen != (self.raw.raft.term, self.raw.raft.leader_id)
    }

    /// The last entry that is known to be committed.
    pub fn committed(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// As the leader: how far the others are. Whether they are active is not known here.
    pub fn peers(&self) -> Vec<PeerStatus> {
        if !self.is_leader() {
            return Vec::new();
        }
        let learners = self.raw.raft.prs().conf().learners();
        let first = self.raw.raft.raft_log.first_index();
        let others = self.raw.raft.prs().iter();
        let mut peers: Vec<PeerStatus> = others
            .filter(|(id, _)| **id != self.id)
            .map(|(id, progress)| PeerStatus {
                id: *id,
                voter: !learners.contains(id),
                active: false,
                matched: progress.matched,
                snapshot: progress.state == ProgressState::Snapshot,
                beyond_log: progress.matched + 1 < first,
            })
            .collect();
        peers.sort_unstable_by_key(|peer| peer.id);
        peers
    }

    /// The last entry of the log, committed or not.
    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// Entries up to this index are in the state.
    pub fn applied(&mut self, index: u64) {
        self.raw.advance_apply_to(index);
        self.raw.mut_store().trim(index);
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether this server has the log: with a say or without.
    pub fn is_member(&self) -> bool {
        self.members().contains(&self.raw.raft.id)
    }

    /// Whether this server has a say.
    pub fn is_voter(&self) -> bool {
        self.raw.raft.promotable()
    }

    /// Whether no other server has a say: neither now nor once a change under way is through.
    pub fn is_sole_voter(&self) -> bool {
        let membership = self.raw.store().membership();
        membership.voters == [self.id] && membership.voters_outgoing.is_empty()
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub fn leader(&self) -> u64 {
        self.raw.raft.leader_id
    }

    pub fn membership(&self) -> log::Membership {
        entry::membership_from_raft(self.raw.store().membership())
    }

    /// All servers that have the log: with a say or without.
    pub fn members(&self) -> Vec<u64> {
        let membership = self.membership();
        [
            membership.voters,
            membership.voters_outgoing,
            membership.learners,
            membership.learners_next,
        ]
        .concat()
    }

    /// The newest hard state, to be written at a clean stop.
    pub fn hard_state(&self) -> log::HardState {
        self.hard_state
    }

    /// Whether nobody waits shorter for a leader that is silent.
    #[cfg(test)]
    pub fn waits_shortest(&self) -> bool {
        self.raw.raft.randomized_election_timeout() == ELECTION_TICKS
    }

    fn fix_election_timeout(&mut self) {
        let spread = mix(self.id, self.raw.raft.term) as usize % ELECTION_TICKS;
        self.raw
            .raft
            .set_randomized_election_timeout(ELECTION_TICKS + spread);
    }
}

/// A well-mixed number of two others: the finishing step of splitmix64.
fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Whether an entry changes who has a say.
fn is_change(entry: &Entry) -> bool {
    entry.get_entry_type() != EntryType::EntryNormal
}

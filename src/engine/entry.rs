//! Raft's values ↔ ours.
//!
//! Raft's own protobuf stays in memory: what goes to disk and, later, to peers is our schema in
//! `proto/log.proto`, so that formats survive a change of the Raft library.

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState,
    Snapshot,
};

use crate::proto::log;
use crate::proto::log::membership_step::Kind;

pub fn entry_from_raft(entry: &Entry) -> log::LogEntry {
    log::LogEntry {
        term: entry.term,
        index: entry.index,
        kind: match entry.get_entry_type() {
            EntryType::EntryNormal => 0,
            EntryType::EntryConfChange => 1,
            EntryType::EntryConfChangeV2 => 2,
        },
        data: entry.data.clone(),
        context: entry.context.clone(),
    }
}

pub fn entry_to_raft(entry: log::LogEntry) -> Entry {
    let mut raft = Entry {
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
        ..Entry::default()
    };
    raft.set_entry_type(match entry.kind {
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => EntryType::EntryNormal,
    });
    raft
}

pub fn hard_state_from_raft(state: &HardState) -> log::HardState {
    log::HardState {
        term: state.term,
        vote: state.vote,
        commit: state.commit,
    }
}

pub fn hard_state_to_raft(state: &log::HardState) -> HardState {
    HardState {
        term: state.term,
        vote: state.vote,
        commit: state.commit,
        ..HardState::default()
    }
}

pub fn membership_from_raft(state: &ConfState) -> log::Membership {
    log::Membership {
        voters: state.voters.clone(),
        learners: state.learners.clone(),
        voters_outgoing: state.voters_outgoing.clone(),
        learners_next: state.learners_next.clone(),
        auto_leave: state.auto_leave,
    }
}

pub fn membership_to_raft(membership: &log::Membership) -> ConfState {
    ConfState {
        voters: membership.voters.clone(),
        learners: membership.learners.clone(),
        voters_outgoing: membership.voters_outgoing.clone(),
        learners_next: membership.learners_next.clone(),
        auto_leave: membership.auto_leave,
        ..ConfState::default()
    }
}

/// A snapshot as raft knows it: what it is of, without its content.
pub fn snapshot_to_raft(mark: &log::SnapshotMark) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = mark.index;
    metadata.term = mark.term;
    let membership = mark.membership.clone().unwrap_or_default();
    metadata.set_conf_state(membership_to_raft(&membership));
    snapshot
}

pub fn snapshot_from_raft(snapshot: &Snapshot) -> log::SnapshotMark {
    let metadata = snapshot.get_metadata();
    log::SnapshotMark {
        index: metadata.index,
        term: metadata.term,
        membership: Some(membership_from_raft(metadata.get_conf_state())),
    }
}

/// More than one step makes raft go through a joint membership, none makes it leave one.
pub fn change_to_raft(change: &log::MembershipChange) -> ConfChangeV2 {
    let steps = change.steps.iter().map(|step| {
        let mut single = ConfChangeSingle {
            node_id: step.server,
            ..ConfChangeSingle::default()
        };
        single.set_change_type(match step.kind() {
            Kind::AddVoter => ConfChangeType::AddNode,
            Kind::AddLearner => ConfChangeType::AddLearnerNode,
            Kind::Remove => ConfChangeType::RemoveNode,
        });
        single
    });
    let mut raft = ConfChangeV2::default();
    raft.set_changes(steps.collect::<Vec<_>>().into());
    raft
}

/// The commands of a normal Raft entry. The empty entry that opens a term has none.
///
/// # Panics
///
/// If the bytes are not an entry: they were written by a leader and are covered by the log's
/// checksums, so this is a bug or a newer format, and going on would make replicas differ.
pub fn decode_commands(data: &Bytes) -> log::Entry {
    log::Entry::decode(data.clone()).expect("a committed entry can be decoded")
}

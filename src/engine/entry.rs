//! Raft's values ↔ ours.
//!
//! Raft's own protobuf stays in memory: what goes to disk and, later, to peers is our schema in
//! `proto/log.proto`, so that formats survive a change of the Raft library.

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState};

use crate::proto::log;

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

/// The commands of a normal Raft entry. The empty entry that opens a term has none.
///
/// # Panics
///
/// If the bytes are not an entry: they were written by a leader and are covered by the log's
/// checksums, so this is a bug or a newer format, and going on would make replicas differ.
pub fn decode_commands(data: &Bytes) -> log::Entry {
    log::Entry::decode(data.clone()).expect("a committed entry can be decoded")
}

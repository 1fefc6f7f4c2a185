//! The Raft log as Raft sees it: entries in memory.
//!
//! [`MemLog`] implements [`raft::Storage`] and cannot fail, because raft treats most storage
//! errors as fatal. Durability is not its business: the same entries go to the log files, and what
//! is not durable yet is known to [`super::replica`] only. Entries that are applied are let go once
//! they take more than [`LogKept`] says; who is further behind gets a snapshot.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::proto::log;

#[derive(Debug)]
pub struct MemLog {
    hard_state: HardState,
    membership: ConfState,
    /// Index and term of the entry before the first one held.
    base: (u64, u64),
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The newest durable snapshot, which others can be sent.
    snapshot: Option<log::SnapshotMark>,
    /// Somebody needs a newer snapshot than there is.
    snapshot_wanted: Cell<bool>,
    snapshot_missed: Cell<bool>,
    /// Some server is being sent a snapshot: what follows it will be asked for.
    transfer: bool,
    kept: LogKept,
}

/// How much of the log stays in memory, in bytes of applied entries.
#[derive(Clone, Copy, Debug)]
pub struct LogKept {
    /// For followers that are a little behind: seconds of the heaviest load, so that one that was
    /// restarted, or stood still for a moment, keeps its clients.
    pub usually: usize,
    /// While a snapshot is sent: a server that gets one and then finds that the log does not reach
    /// back to it has to be sent another.
    pub in_transfer: usize,
}

impl Default for LogKept {
    fn default() -> Self {
        Self {
            usually: 64 << 20,
            in_transfer: 256 << 20,
        }
    }
}

impl MemLog {
    /// The log as it was recovered: everything up to `base` is in the state already.
    pub fn new(
        hard_state: &log::HardState,
        membership: &log::Membership,
        base: (u64, u64),
        entries: impl IntoIterator<Item = log::LogEntry>,
        kept: LogKept,
    ) -> Self {
        let mut log = Self {
            hard_state: super::entry::hard_state_to_raft(hard_state),
            membership: super::entry::membership_to_raft(membership),
            base,
            entries: VecDeque::new(),
            bytes: 0,
            snapshot: (base.0 > 0).then(|| log::SnapshotMark {
                index: base.0,
                term: base.1,
                membership: Some(membership.clone()),
            }),
            snapshot_wanted: Cell::new(false),
            snapshot_missed: Cell::new(false),
            transfer: false,
            kept,
        };
        let entries: Vec<Entry> = entries
            .into_iter()
            .map(super::entry::entry_to_raft)
            .filter(|entry| entry.index > base.0)
            .collect();
        log.append(&entries);
        log
    }

    /// Adds entries; those with an index that exists replace the tail from there.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let next = self.base.0 + self.entries.len() as u64 + 1;
        assert!(
            first.index > self.base.0 && first.index <= next,
            "the log has no gaps"
        );
        while self
            .entries
            .back()
            .is_some_and(|last| last.index >= first.index)
        {
            let gone = self.entries.pop_back().expect("it was just looked at");
            self.bytes -= size(&gone);
        }
        self.bytes += entries.iter().map(size).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    pub fn set_membership(&mut self, membership: ConfState) {
        self.membership = membership;
    }

    pub fn membership(&self) -> &ConfState {
        &self.membership
    }

    /// A snapshot is durable, and can be sent.
    pub fn set_snapshot(&mut self, mark: log::SnapshotMark) {
        if self
            .snapshot
            .as_ref()
            .is_none_or(|old| old.index < mark.index)
        {
            // Whoever cannot be given this one asks again.
            self.snapshot_wanted.set(false);
            self.snapshot = Some(mark);
        }
    }

    /// The snapshot of this entry is not there any more. Returns whether it was the newest.
    pub fn lose_snapshot(&mut self, index: u64) -> bool {
        self.snapshot.take_if(|mark| mark.index == index).is_some()
    }

    /// Whether somebody needs a newer snapshot than there is; asked once.
    pub fn take_snapshot_wanted(&self) -> bool {
        self.snapshot_wanted.take()
    }

    /// Whether somebody asked for a snapshot since this was asked last, and got none.
    pub fn take_snapshot_missed(&self) -> bool {
        self.snapshot_missed.take()
    }

    /// The first entry that would be left if nobody needed more than usual.
    pub fn usual_from(&self) -> u64 {
        let (base, _) = self.base;
        if self.bytes <= self.kept.usually {
            return base + 1;
        }
        let mut bytes = 0;
        let is_kept = |entry: &&Entry| {
            bytes += size(entry);
            bytes <= self.kept.usually
        };
        let kept = self.entries.iter().rev().take_while(is_kept).count();
        base + (self.entries.len() - kept) as u64 + 1
    }

    /// Whether a snapshot is on its way to some server, or made for one.
    pub fn set_transfer(&mut self, transfer: bool) {
        self.transfer = transfer;
    }

    /// The log goes on after a snapshot that another server sent; nothing before it is left.
    pub fn install(&mut self, mark: log::SnapshotMark) {
        self.entries.clear();
        self.bytes = 0;
        self.base = (mark.index, mark.term);
        if let Some(membership) = &mark.membership {
            self.membership = super::entry::membership_to_raft(membership);
        }
        self.snapshot = Some(mark);
    }

    /// Lets applied entries go while more than the limit is held. A server without followers has
    /// nobody to keep them for.
    pub fn trim(&mut self, applied: u64) {
        let members = self.membership.voters.len() + self.membership.learners.len();
        let kept = match (members > 1, self.transfer) {
            (false, _) => 0,
            (true, false) => self.kept.usually,
            (true, true) => self.kept.in_transfer,
        };
        while self.bytes > kept
            && self
                .entries
                .front()
                .is_some_and(|first| first.index < applied)
        {
            let gone = self.entries.pop_front().expect("it was just looked at");
            self.bytes -= size(&gone);
            self.base = (gone.index, gone.term);
        }
    }

    /// Term of an entry that is held, or of the one before the first.
    fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        let position = index.checked_sub(self.base.0 + 1)?;
        self.entries
            .get(usize::try_from(position).ok()?)
            .map(|entry| entry.term)
    }
}

impl Storage for MemLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            self.membership.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(StorageError::Compacted.into());
        }
        let from = (low - self.base.0 - 1) as usize;
        let to = (high - self.base.0 - 1) as usize;
        if to > self.entries.len() {
            return Err(StorageError::Unavailable.into());
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut total = 0;
        let mut taken = Vec::new();
        for entry in self.entries.range(from..to) {
            total += size(entry) as u64;
            // At least one entry, however big it is, or nothing would ever move.
            if total > limit && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_at(index).ok_or_else(|| {
            if index < self.base.0 {
                StorageError::Compacted.into()
            } else {
                StorageError::Unavailable.into()
            }
        })
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + self.entries.len() as u64)
    }

    /// What the newest snapshot is of: its file travels beside the log, not through it.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let good = self.snapshot.as_ref().filter(|mark| {
            let membership = mark.membership.clone().unwrap_or_default();
            let members = [
                membership.voters,
                membership.learners,
                membership.voters_outgoing,
            ];
            // The log must go on where it ends, and raft takes none that does not know its
            // receiver.
            mark.index >= self.base.0.max(request_index) && members.concat().contains(&to)
        });
        let Some(mark) = good else {
            // Raft asks again.
            self.snapshot_wanted.set(true);
            self.snapshot_missed.set(true);
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        };
        Ok(super::entry::snapshot_to_raft(mark))
    }
}

fn size(entry: &Entry) -> usize {
    const OVERHEAD: usize = 64;
    entry.data.len() + entry.context.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, bytes: usize) -> Entry {
        let data = vec![0; bytes].into();
        Entry {
            index,
            term,
            data,
            ..Entry::default()
        }
    }

    fn members(voters: &[u64]) -> log::Membership {
        log::Membership {
            voters: voters.to_vec(),
            ..log::Membership::default()
        }
    }

    fn new(voters: &[u64]) -> MemLog {
        let hard_state = log::HardState::default();
        MemLog::new(
            &hard_state,
            &members(voters),
            (0, 0),
            [],
            LogKept::default(),
        )
    }

    fn empty() -> MemLog {
        new(&[1, 2])
    }

    fn indexes(log: &MemLog, low: u64, high: u64, max_size: u64) -> Vec<u64> {
        let context = GetEntriesContext::empty(false);
        let entries = log.entries(low, high, max_size, context).unwrap();
        entries.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn a_later_entry_replaces_the_tail() {
        let mut log = empty();
        log.append(&[entry(1, 1, 1), entry(2, 1, 1), entry(3, 1, 1)]);
        log.append(&[entry(2, 2, 1)]);
        assert_eq!((log.last_index().unwrap(), log.term(2).unwrap()), (2, 2));
        assert!(log.term(3).is_err());
    }

    #[test]
    fn one_entry_comes_whatever_its_size() {
        let mut log = empty();
        log.append(&[entry(1, 1, 10_000), entry(2, 1, 10)]);
        assert_eq!(indexes(&log, 1, 3, 1), [1]);
        assert_eq!(indexes(&log, 1, 3, u64::MAX), [1, 2]);
    }

    #[test]
    fn a_lone_server_keeps_no_applied_entries() {
        let mut log = new(&[1]);
        log.append(&[entry(1, 1, 10), entry(2, 1, 10), entry(3, 1, 10)]);
        log.trim(2);
        assert_eq!(log.first_index().unwrap(), 2);
    }

    #[test]
    fn a_snapshot_is_offered_if_the_log_goes_on_after_it_and_its_receiver_is_in_it() {
        let mark = |index, voters| log::SnapshotMark {
            index,
            term: 1,
            membership: Some(members(voters)),
        };
        let offered = |log: &MemLog, to| {
            let snapshot = log.snapshot(0, to);
            snapshot.map(|snapshot| snapshot.get_metadata().index).ok()
        };
        let mut log = empty();
        assert_eq!(offered(&log, 2), None);
        assert!(log.take_snapshot_wanted() && !log.take_snapshot_wanted());
        let big = LogKept::default().usually / 2 + 1;
        log.append(&[entry(1, 1, big), entry(2, 1, big), entry(3, 1, big)]);
        log.set_snapshot(mark(2, &[1, 2]));
        assert_eq!(offered(&log, 2), Some(2));
        assert_eq!(offered(&log, 3), None, "it is not a member in it");
        assert!(log.take_snapshot_wanted());
        log.set_transfer(true);
        log.trim(3);
        assert_eq!(log.first_index().unwrap(), 1);
        log.set_transfer(false);
        log.trim(3);
        assert_eq!(log.first_index().unwrap(), 3);
        assert_eq!(offered(&log, 2), Some(2));
        log.append(&[entry(4, 1, big)]);
        log.trim(4);
        assert_eq!(offered(&log, 2), None, "entry 3 is gone");
        log.set_snapshot(mark(3, &[1, 2, 3]));
        assert_eq!(offered(&log, 3), Some(3));
        assert!(!log.lose_snapshot(2));
        assert_eq!(offered(&log, 3), Some(3));
        assert!(!log.take_snapshot_wanted());
        assert!(log.lose_snapshot(3));
        assert_eq!(offered(&log, 3), None);
        assert!(log.take_snapshot_wanted());
        log.set_snapshot(mark(3, &[1, 2, 3]));
        assert_eq!(offered(&log, 3), Some(3), "made again");
    }

    #[test]
    fn an_installed_snapshot_is_where_the_log_goes_on() {
        let mut log = empty();
        log.append(&[entry(1, 1, 10), entry(2, 1, 10)]);
        log.install(log::SnapshotMark {
            index: 9,
            term: 3,
            membership: Some(members(&[1, 2, 3])),
        });
        assert_eq!((log.last_index().unwrap(), log.term(9).unwrap()), (9, 3));
        assert!(log.term(2).is_err());
        log.append(&[entry(10, 3, 10)]);
        assert_eq!(indexes(&log, 10, 11, u64::MAX), [10]);
        assert_eq!(log.membership().voters, [1, 2, 3]);
    }

    #[test]
    fn only_applied_entries_are_let_go() {
        let mut log = empty();
        let big = LogKept::default().usually / 2 + 1;
        log.append(&[entry(1, 1, big), entry(2, 1, big), entry(3, 2, big)]);
        log.trim(1);
        assert_eq!(log.first_index().unwrap(), 1);
        log.trim(3);
        assert_eq!(log.first_index().unwrap(), 3);
        assert_eq!(
            log.term(2).unwrap(),
            1,
            "the term before the first entry is kept"
        );
        assert_eq!(indexes(&log, 3, 4, u64::MAX), [3]);
    }

    #[test]
    fn what_is_usually_kept_is_known_before_it_is_so() {
        let mut log = empty();
        assert_eq!(log.usual_from(), 1);
        let quarter = LogKept::default().usually / 4;
        log.set_transfer(true);
        for index in 1..=10 {
            log.append(&[entry(index, 1, quarter)]);
            log.trim(index);
        }
        let from = log.usual_from();
        assert_eq!((log.first_index().unwrap(), from), (1, 8));
        log.set_transfer(false);
        log.trim(10);
        assert_eq!((log.first_index().unwrap(), log.usual_from()), (8, 8));
    }
}

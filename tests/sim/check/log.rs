//! The log of one server (architecture §2.6, 4–8).
//!
//! Follows what the engine hands to the disk, what is synced, and what a restart finds. What was
//! synced must be found; what was applied must have been synced and may never change; nothing may
//! be promised to another server before it is synced. What the servers' logs have to do with each
//! other is in [`super::cluster`].

use std::collections::VecDeque;

use raft::eraftpb::{Message, MessageType};
use zkraft::proto::log::{HardState, LogEntry, Record, SnapshotMark};

use super::{Group, Verdict, broken};

#[derive(Debug, Default)]
pub struct LogCheck {
    /// Entry 1 is at place 0. Everything that was handed to the disk and not replaced or lost.
    written: Vec<LogEntry>,
    /// The same, but only what is on the disk for sure.
    durable: Vec<LogEntry>,
    /// What was handed over and may not be on the disk yet, by its number.
    pending: VecDeque<(u64, Record)>,
    /// The last index that was ever applied.
    applied: u64,
    /// Of the newest snapshot that other servers sent, and of the newest that was installed.
    stored: u64,
    installed: u64,
    /// What was on the disk that was lost.
    ghost: Vec<LogEntry>,
    written_state: HardState,
    durable_state: HardState,
}

impl LogCheck {
    /// An entry that is on the disk for sure.
    pub fn entry(&self, index: u64) -> Option<&LogEntry> {
        self.durable
            .get(usize::try_from(index).ok()?.checked_sub(1)?)
    }

    /// Whether an entry is on the disk for sure, or was on the one that was lost.
    pub fn has_or_had(&self, entry: &LogEntry) -> bool {
        let had = self.ghost.get(entry.index as usize - 1);
        self.entry(entry.index) == Some(entry) || had == Some(entry)
    }

    /// The same server with an empty disk.
    pub fn lost(&mut self) -> Self {
        Self {
            ghost: std::mem::take(&mut self.durable),
            ..Self::default()
        }
    }

    /// Everything that was handed to the disk.
    pub fn written(&self) -> &[LogEntry] {
        &self.written
    }

    /// The last index on the disk for sure.
    pub fn durable(&self) -> u64 {
        self.durable.len() as u64
    }

    /// The last entry that a start would know to be committed.
    pub fn known_committed(&self) -> u64 {
        self.durable_state.commit
    }

    /// The last index that was ever applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The index of the newest snapshot that was installed.
    pub fn installed(&self) -> u64 {
        self.installed
    }

    /// A snapshot of another server is durable here.
    pub fn stored(&mut self, index: u64) {
        self.stored = self.stored.max(index);
    }

    /// The log goes on after a snapshot, which contains this part of the committed log.
    pub fn installs(&mut self, mark: &SnapshotMark, before: Vec<LogEntry>) -> Verdict {
        let last = before.last().map(|entry| (entry.index, entry.term));
        if last != Some((mark.index, mark.term)) || mark.index > self.stored {
            let stored = self.stored;
            let what = format!("15: installs {mark:?}; committed {last:?}, stored {stored}");
            return broken(Group::Log, what);
        }
        if mark.index <= self.applied {
            let applied = self.applied;
            return broken(Group::Log, format!("6: installs {mark:?} after {applied}"));
        }
        self.installed = mark.index;
        self.written.clone_from(&before);
        self.durable = before;
        Ok(())
    }

    /// The engine wants this written, under a number that rises.
    pub fn appended(&mut self, number: u64, record: &Record) -> Verdict {
        for entry in &record.entries {
            let (last, index) = (self.written.len() as u64, entry.index);
            if index == 0 || index > last + 1 {
                let what = format!("entry {index} is appended after {last}");
                return broken(Group::Log, what);
            }
            if index <= self.applied && *entry != self.written[index as usize - 1] {
                return broken(Group::Log, format!("4: applied entry {index} is replaced"));
            }
            put(&mut self.written, entry);
        }
        if let Some(state) = record.hard_state {
            goes_on(&self.written_state, &state)?;
            self.written_state = state;
        }
        self.pending.push_back((number, record.clone()));
        Ok(())
    }

    /// Everything up to this number is synced.
    pub fn synced(&mut self, number: u64) {
        while let Some((_, record)) = self.pending.pop_front_if(|(first, _)| *first <= number) {
            self.keep(&record);
            self.durable_state = record.hard_state.unwrap_or(self.durable_state);
        }
    }

    /// A record is on the disk. What a snapshot has replaced meanwhile does not count.
    fn keep(&mut self, record: &Record) {
        if let Some(mark) = &record.mark
            && mark.index > 0
            && mark.index == self.installed
        {
            self.durable.truncate(mark.index as usize);
        }
        for entry in &record.entries {
            if entry.index > self.installed {
                put(&mut self.durable, entry);
            }
        }
    }

    /// 5: nothing is applied that is not durable.
    pub fn check_applied(&mut self, applied: u64) -> Verdict {
        let durable = self.durable();
        if applied > durable {
            let what = format!("5: applied {applied}, but only {durable} is durable");
            return broken(Group::Log, what);
        }
        self.applied = self.applied.max(applied);
        Ok(())
    }

    /// 7: a message leaves for another server. What it promises must be durable.
    pub fn said(&self, message: &Message) -> Verdict {
        let kind = message.get_msg_type();
        let state = &self.durable_state;
        let early = match kind {
            // They say which term they would like, and change nothing.
            MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse => false,
            _ if message.term > state.term => true,
            // Of an earlier term it may have waited for what came after it: it was durable then,
            // and has been replaced.
            MessageType::MsgAppendResponse => {
                let missing = message.term == state.term && message.index > self.durable();
                !message.reject && missing
            }
            MessageType::MsgRequestVoteResponse => {
                // The same.
                let other = message.term == state.term && state.vote != message.to;
                !message.reject && other
            }
            MessageType::MsgRequestVote => message.term == state.term && state.vote != message.from,
            _ => false,
        };
        if early {
            let durable = self.durable();
            let what = format!("7: {kind:?} leaves, but durable is {durable}, {state:?}");
            return broken(Group::Log, format!("{what}: {message:?}"));
        }
        Ok(())
    }

    /// A restart found these entries after a snapshot, which contains the part of the committed log
    /// before them: what was durable, and of the rest some of what came first.
    pub fn recovered(
        &mut self,
        before: Vec<LogEntry>,
        entries: &[LogEntry],
        state: HardState,
    ) -> Verdict {
        let base = before.len() as u64;
        let last = entries.last().map_or(base, |entry| entry.index);
        if base > self.applied.max(self.stored) {
            let applied = self.applied;
            return broken(Group::Log, format!("8: snapshot {base}; applied {applied}"));
        }
        if let Some(own) = before.last()
            && self.entry(base) != Some(own)
        {
            // It was stored, and there was no time to install it.
            self.durable = before;
            self.installed = base;
        }
        let found = |log: &[LogEntry]| {
            log.len() as u64 == last && log[base.min(last) as usize..] == *entries
        };
        let (durable, earlier) = (self.durable(), self.durable_state);
        let pending = self.pending.len();
        while !found(&self.durable) {
            let Some((_, record)) = self.pending.pop_front() else {
                let what = format!("8: entries up to {durable} were durable, {pending} more came");
                return broken(Group::Log, format!("{what}; found {base}..{last}"));
            };
            self.keep(&record);
        }
        goes_on(&earlier, &state)?;
        // Recovery syncs what it found before it builds on it.
        self.pending.clear();
        self.written.clone_from(&self.durable);
        self.written_state = state;
        self.durable_state = state;
        Ok(())
    }
}

/// Adds an entry; one with an index that exists replaces the tail.
fn put(log: &mut Vec<LogEntry>, entry: &LogEntry) {
    log.truncate(entry.index as usize - 1);
    log.push(entry.clone());
}

/// 6: term, vote within a term, and commit never go back.
fn goes_on(before: &HardState, after: &HardState) -> Verdict {
    let revoked = after.term == before.term && before.vote != 0 && after.vote != before.vote;
    if after.term < before.term || revoked || after.commit < before.commit {
        return broken(
            Group::Log,
            format!("6: hard state {before:?} becomes {after:?}"),
        );
    }
    Ok(())
}

//! The log (architecture §2.6, 4–8).
//!
//! Follows what the engine hands to the disk, what is synced, and what a restart finds. What was
//! synced must be found; what was applied must have been synced and may never change.

use zkraft::proto::log::{HardState, LogEntry, Record};

use super::{Group, Verdict, broken};

#[derive(Debug, Default)]
pub struct LogCheck {
    /// Entry 1 is at place 0. Everything that was handed to the disk and not replaced or lost.
    entries: Vec<LogEntry>,
    /// The last index on the disk for sure.
    pub durable: u64,
    /// The last index that was applied.
    applied: u64,
    written_state: HardState,
    durable_state: HardState,
}

impl LogCheck {
    pub fn entry(&self, index: u64) -> &LogEntry {
        &self.entries[index as usize - 1]
    }

    pub fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The engine wants this written.
    pub fn appended(&mut self, record: &Record) -> Verdict {
        for entry in &record.entries {
            if entry.index == 0 || entry.index > self.last() + 1 {
                let (last, index) = (self.last(), entry.index);
                return broken(
                    Group::Log,
                    format!("entry {index} is appended after {last}"),
                );
            }
            if entry.index <= self.applied && entry != self.entry(entry.index) {
                let index = entry.index;
                return broken(Group::Log, format!("4: applied entry {index} is replaced"));
            }
            self.entries.truncate(entry.index as usize - 1);
            self.entries.push(entry.clone());
        }
        if let Some(state) = record.hard_state {
            goes_on(&self.written_state, &state)?;
            self.written_state = state;
        }
        Ok(())
    }

    /// The last record of a clean stop: it carries the newest hard state.
    pub fn rewritten(&mut self, record: &Record) -> Verdict {
        match record.hard_state {
            Some(state) if record.entries.is_empty() => {
                goes_on(&self.written_state, &state)?;
                self.written_state = state;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Everything up to this index, and this hard state, is synced.
    pub fn synced(&mut self, last: u64, state: HardState) {
        self.durable = self.durable.max(last);
        self.durable_state = state;
    }

    pub fn written_state(&self) -> HardState {
        self.written_state
    }

    /// 5: nothing is applied that is not durable.
    pub fn check_applied(&mut self, applied: u64) -> Verdict {
        if applied > self.durable {
            let durable = self.durable;
            let what = format!("5: applied {applied}, but only {durable} is durable");
            return broken(Group::Log, what);
        }
        self.applied = self.applied.max(applied);
        Ok(())
    }

    /// A restart found these entries after a snapshot of everything up to `base`.
    pub fn recovered(&mut self, base: u64, entries: &[LogEntry], state: HardState) -> Verdict {
        let last = entries.last().map_or(base, |entry| entry.index);
        if last < self.durable {
            let durable = self.durable;
            let what = format!("8: entries up to {durable} were durable, {last} is left");
            return broken(Group::Log, what);
        }
        if base > self.applied || last > self.last() {
            let (applied, written) = (self.applied, self.last());
            let what = format!("8: found {base}..{last}; applied {applied}, written {written}");
            return broken(Group::Log, what);
        }
        for (index, entry) in (base + 1..).zip(entries) {
            if entry != self.entry(index) {
                return broken(
                    Group::Log,
                    format!("8: entry {index} was found as {entry:?}"),
                );
            }
        }
        goes_on(&self.durable_state, &state)?;
        self.entries.truncate(last as usize);
        // Recovery syncs what it found before it builds on it.
        self.durable = last;
        self.written_state = state;
        self.durable_state = state;
        Ok(())
    }
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

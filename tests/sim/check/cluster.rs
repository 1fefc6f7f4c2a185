//! What the servers' logs and states have to do with each other (architecture §2.6, 1–4 and 9).
//!
//! Whoever applies an index first says what is committed there, and what the state is after it; the
//! others must agree when they come to it.

use std::collections::BTreeMap;

use zkraft::proto::log::LogEntry;
use zkraft::wire::Zxid;

use super::log::LogCheck;
use super::members::Members;
use super::{Group, Verdict, Violation, broken};

#[derive(Debug, Default)]
pub struct ClusterCheck {
    /// By term.
    leaders: BTreeMap<u64, usize>,
    /// Every entry that any server ever wrote, by index and term, and the term of the one before.
    entries: BTreeMap<(u64, u64), (u64, LogEntry)>,
    /// Index 1 is at place 0.
    committed: Vec<Committed>,
}

/// What was applied at an index.
#[derive(Debug)]
pub struct Committed {
    pub entry: LogEntry,
    /// The term in which it was committed, at the latest.
    term: u64,
    /// Of the state after it.
    pub digest: u64,
    pub zxid: Zxid,
}

impl ClusterCheck {
    /// A server leads. True: it does so since now.
    pub fn leads(&mut self, server: usize, term: u64, log: &LogCheck) -> Result<bool, Violation> {
        match self.leaders.insert(term, server) {
            Some(known) if known == server => return Ok(false),
            Some(other) => {
                let what = format!("1: servers {other} and {server} both lead in term {term}");
                return broken(Group::Consensus, what);
            }
            None => {}
        }
        let earlier = self.committed.iter().filter(|known| known.term < term);
        for known in earlier {
            let entry = log.written().get(known.entry.index as usize - 1);
            if entry != Some(&known.entry) {
                let (index, before) = (known.entry.index, known.term);
                let what = format!("3: server {server} leads in term {term} without entry {index}");
                return broken(Group::Consensus, format!("{what}, committed in {before}"));
            }
        }
        Ok(true)
    }

    /// The leader of a term.
    pub fn leader(&self, term: u64) -> Option<usize> {
        self.leaders.get(&term).copied()
    }

    /// How often another server led than in the term before.
    pub fn leader_changes(&self) -> u64 {
        let leaders: Vec<_> = self.leaders.values().collect();
        leaders.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64
    }

    /// A server wrote an entry after one of this term. 2, and with it the rest of the log before.
    pub fn wrote(&mut self, server: usize, before: u64, entry: &LogEntry) -> Verdict {
        let place = (entry.index, entry.term);
        let known = self
            .entries
            .entry(place)
            .or_insert_with(|| (before, entry.clone()));
        if (known.0, &known.1) != (before, entry) {
            let what = format!("2: entry {place:?} of server {server} is another: {entry:?}");
            return broken(
                Group::Consensus,
                format!("{what} after {before}; known {known:?}"),
            );
        }
        Ok(())
    }

    /// A server is the first to apply an entry, in this term of its own. A majority of those who
    /// decide must have it.
    pub fn commit<'a>(
        &mut self,
        entry: LogEntry,
        term: u64,
        logs: &[LogCheck],
        mut deciding: impl Iterator<Item = &'a Members>,
    ) -> Verdict {
        let index = entry.index;
        let has = |id: u64| logs[id as usize - 1].has_or_had(&entry);
        if !deciding.any(|members| members.is_majority(has)) {
            let have: Vec<_> = (1..=logs.len() as u64).filter(|id| has(*id)).collect();
            let what = format!("4: entry {index} is applied, but on the disks of {have:?} only");
            return broken(Group::Consensus, what);
        }
        self.committed.push(Committed {
            entry,
            term,
            digest: 0,
            zxid: Zxid(0),
        });
        Ok(())
    }

    /// What the state is after the entry that was committed last.
    pub fn became(&mut self, digest: u64, zxid: Zxid) {
        if let Some(last) = self.committed.last_mut() {
            (last.digest, last.zxid) = (digest, zxid);
        }
    }

    /// The committed log up to an index, as far as it is known.
    pub fn prefix(&self, index: u64) -> Vec<LogEntry> {
        let known = self.committed.iter().take(index as usize);
        known.map(|known| known.entry.clone()).collect()
    }

    /// What is known of an index that somebody has applied.
    pub fn committed(&self, index: u64) -> Option<&Committed> {
        self.committed
            .get(usize::try_from(index).ok()?.checked_sub(1)?)
    }

    /// A server applied an entry that another had applied before. 4.
    pub fn applied_again(&self, server: usize, index: u64, log: &LogCheck) -> Verdict {
        let (known, own) = (self.committed(index), log.entry(index));
        if known.map(|known| &known.entry) != own {
            let what = format!("4: server {server} applied another entry {index}: {own:?}");
            return broken(Group::Consensus, format!("{what}; known {known:?}"));
        }
        Ok(())
    }

    /// 9: a server that applied this index has the state that others had there.
    pub fn is_state(&self, server: usize, index: u64, digest: u64) -> Verdict {
        let Some(known) = self.committed(index).filter(|known| known.digest != digest) else {
            return Ok(());
        };
        let wanted = known.digest;
        let what = format!("9: server {server} has digest {digest:x} at {index}, not {wanted:x}");
        broken(Group::State, what)
    }
}

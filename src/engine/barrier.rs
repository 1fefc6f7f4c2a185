//! `sync`: shared rounds of Raft's read index (§9.3).
//!
//! All waiting syncs of a server share one round. At most one round is on its way; a sync that
//! comes while it runs waits for the next one, because a round only vouches for what was committed
//! when it began. A round is done once the index it learned is applied here. raft drops a round
//! silently when there is no leader or the leader is new; it is then asked again.

use std::collections::VecDeque;
use std::sync::Arc;

use super::connection::Connection;

/// Engine ticks after which a round without an answer is asked again.
const TICKS_PATIENCE: u32 = 10;

#[derive(Debug, Default)]
pub struct Barrier {
    /// Came while the present round ran.
    waiting: Vec<Arc<Connection>>,
    round: Option<Round>,
    /// Rounds that know their index and wait for it to be applied.
    answered: VecDeque<(u64, Vec<Arc<Connection>>)>,
    rounds_started: u64,
}

#[derive(Debug)]
struct Round {
    number: u64,
    members: Vec<Arc<Connection>>,
    ticks: u32,
}

impl Barrier {
    pub fn wait(&mut self, connection: Arc<Connection>) {
        self.waiting.push(connection);
    }

    /// Begins a round if one is wanted and none runs. Returns its context for raft.
    pub fn start(&mut self) -> Option<Vec<u8>> {
        if self.round.is_some() || self.waiting.is_empty() {
            return None;
        }
        let members = std::mem::take(&mut self.waiting);
        Some(self.begin(members))
    }

    /// One engine tick passed. Returns the context of a round that must be asked again.
    pub fn tick(&mut self) -> Option<Vec<u8>> {
        let round = self.round.as_mut()?;
        round.ticks += 1;
        if round.ticks < TICKS_PATIENCE {
            return None;
        }
        let members = self
            .round
            .take()
            .map(|round| round.members)
            .unwrap_or_default();
        Some(self.begin(members))
    }

    /// raft answered: everything up to `index` was committed when the round began.
    pub fn answer(&mut self, context: &[u8], index: u64) {
        let answered = |round: &mut Round| round.number.to_be_bytes() == context;
        if let Some(round) = self.round.take_if(answered) {
            self.answered.push_back((index, round.members));
        }
    }

    /// Connections whose sync is done, now that `applied` is applied.
    pub fn release(&mut self, applied: u64) -> Vec<Arc<Connection>> {
        let mut released = Vec::new();
        while self
            .answered
            .front()
            .is_some_and(|(index, _)| *index <= applied)
        {
            released.extend(self.answered.pop_front().into_iter().flat_map(|(_, m)| m));
        }
        released
    }

    fn begin(&mut self, members: Vec<Arc<Connection>>) -> Vec<u8> {
        self.rounds_started += 1;
        let number = self.rounds_started;
        self.round = Some(Round {
            number,
            members,
            ticks: 0,
        });
        number.to_be_bytes().to_vec()
    }
}

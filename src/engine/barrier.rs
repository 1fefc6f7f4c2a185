//! Shared rounds of Raft's read index: for `sync` (§9.3), and for touches (see [`super::lease`]).
//!
//! All that wait on a server share one round. At most one round is on its way; who comes while it
//! runs waits for the next one, because a round only vouches for what was committed, and for who
//! led, when it began. A round is done once the index it learned is applied here. raft drops a
//! round silently when there is no leader or the leader is new; it is then asked again.

use std::collections::VecDeque;

use crate::machine::OriginId;

/// Engine ticks after which a round without an answer is asked again.
const TICKS_PATIENCE: u32 = 10;

/// What rounds are for: they are told apart by it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    Sync = 1,
    Touch = 2,
}

#[derive(Debug)]
pub struct Barrier<W> {
    /// Purpose, server and its incarnation: a leader has rounds of many servers at a time, and an
    /// answer to a round of an earlier start must not be taken for one of this.
    prefix: Vec<u8>,
    /// Came while the present round ran.
    waiting: Vec<W>,
    round: Option<Round<W>>,
    /// Rounds that know their index and wait for it to be applied.
    answered: VecDeque<(u64, Vec<W>)>,
    rounds_started: u64,
}

#[derive(Debug)]
struct Round<W> {
    context: Vec<u8>,
    members: Vec<W>,
    ticks: u32,
}

impl<W> Barrier<W> {
    pub fn new(purpose: Purpose, origin: OriginId) -> Self {
        let mut prefix = vec![purpose as u8];
        prefix.extend(origin.server.to_be_bytes());
        prefix.extend(origin.disk.to_be_bytes());
        prefix.extend(origin.incarnation.to_be_bytes());
        Self {
            prefix,
            waiting: Vec::new(),
            round: None,
            answered: VecDeque::new(),
            rounds_started: 0,
        }
    }

    pub fn wait(&mut self, who: W) {
        self.waiting.push(who);
    }

    /// Forgets all who wait, and says who they were.
    pub fn take(&mut self) -> Vec<W> {
        let mut all = std::mem::take(&mut self.waiting);
        all.extend(
            self.round
                .take()
                .into_iter()
                .flat_map(|round| round.members),
        );
        all.extend(self.answered.drain(..).flat_map(|(_, members)| members));
        all
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        let round = self.round.as_ref().map_or(0, |round| round.members.len());
        let answered = self.answered.iter().map(|(_, members)| members.len());
        self.waiting.len() + round + answered.sum::<usize>()
    }

    /// The leader changed: what was asked of the last one is asked again.
    pub fn retry(&mut self) {
        if let Some(round) = self.round.take() {
            self.waiting.splice(0..0, round.members);
        }
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
        let answered = |round: &mut Round<W>| round.context == context;
        if let Some(round) = self.round.take_if(answered) {
            self.answered.push_back((index, round.members));
        }
    }

    /// Those whose round is done, now that `applied` is applied.
    pub fn release(&mut self, applied: u64) -> Vec<W> {
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

    fn begin(&mut self, members: Vec<W>) -> Vec<u8> {
        self.rounds_started += 1;
        let mut context = self.prefix.clone();
        context.extend(self.rounds_started.to_be_bytes());
        self.round = Some(Round {
            context: context.clone(),
            members,
            ticks: 0,
        });
        context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: OriginId = OriginId {
        server: 1,
        disk: 2,
        incarnation: 3,
    };

    #[test]
    fn who_comes_during_a_round_waits_for_the_next() {
        let mut barrier = Barrier::new(Purpose::Sync, ORIGIN);
        barrier.wait('a');
        let first = barrier.start().unwrap();
        barrier.wait('b');
        assert_eq!(barrier.start(), None);
        barrier.answer(&first, 7);
        assert!(barrier.release(6).is_empty());
        assert_eq!(barrier.release(7), ['a']);
        let second = barrier.start().unwrap();
        assert_ne!(first, second);
        barrier.answer(&second, 7);
        assert_eq!(barrier.release(7), ['b']);
    }

    #[test]
    fn a_round_that_is_asked_again_is_another_one() {
        let mut barrier = Barrier::new(Purpose::Sync, ORIGIN);
        barrier.wait('a');
        let lost = barrier.start().unwrap();
        let again = (0..TICKS_PATIENCE).find_map(|_| barrier.tick()).unwrap();
        barrier.answer(&lost, 7);
        assert!(barrier.release(7).is_empty(), "it vouches for less");
        barrier.retry();
        barrier.wait('b');
        barrier.answer(&again, 7);
        assert!(barrier.release(7).is_empty());
        let last = barrier.start().unwrap();
        barrier.answer(&last, 9);
        assert_eq!(barrier.release(9), ['a', 'b']);
    }

    #[test]
    fn rounds_of_others_and_of_earlier_starts_are_not_taken_for_ones_own() {
        let mut barrier = Barrier::new(Purpose::Sync, ORIGIN);
        barrier.wait(());
        barrier.start();
        for (purpose, origin) in [
            (Purpose::Touch, ORIGIN),
            (
                Purpose::Sync,
                OriginId {
                    server: 2,
                    ..ORIGIN
                },
            ),
            (
                Purpose::Sync,
                OriginId {
                    incarnation: 2,
                    ..ORIGIN
                },
            ),
            (Purpose::Sync, OriginId { disk: 9, ..ORIGIN }),
        ] {
            let mut other = Barrier::new(purpose, origin);
            other.wait(());
            barrier.answer(&other.start().unwrap(), 1);
        }
        assert!(barrier.release(9).is_empty());
    }
}

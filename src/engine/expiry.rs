//! The session clock of the leader: which sessions have been silent for too long.
//!
//! Deadlines are buckets of one session tick, as in ZooKeeper (§8.2): a session that was last
//! heard at `t` ends at `(floor((t + timeout) / tick) + 1) * tick`, between its timeout and one
//! tick later. Time is what the engine saw: when the process slept, all deadlines move by the gap
//! but for its beginning, so that a paused server does not kill the sessions of clients it could
//! not hear.
//!
//! Liveness is not replicated. A new leader starts everyone afresh ([`Expiry::start`], §8.4).

use std::collections::{BTreeMap, BTreeSet};

use crate::wire::SessionId;

/// Of the time between two calls of [`Expiry::advance`], this part of a bucket is counted: at the
/// default timeouts a quarter of the shortest. It must be far longer than an engine tick, because
/// a busy engine is late too and yet hears its clients; if that were taken for a pause, the locks
/// of dead clients would outlive their timeouts many times over.
const COUNTED_PART: u64 = 2;
/// But never less than this many engine ticks.
const COUNTED_TICKS: u64 = 2;

/// Sessions whose end is told one by one in a while; the others are only counted, since clients
/// can make as many as they like.
const TOLD_ONE_BY_ONE: u64 = 20;
/// Length of that while, in ms.
const TOLD_EVERY_MS: u64 = 10_000;

/// Which ends of sessions get a line in the log.
#[derive(Debug, Default)]
pub struct Telling {
    since_ms: u64,
    told: u64,
    left_out: u64,
}

impl Telling {
    /// A session has ended. True: it is to be told.
    pub fn one_more(&mut self) -> bool {
        let tells = self.told < TOLD_ONE_BY_ONE;
        self.told += u64::from(tells);
        self.left_out += u64::from(!tells);
        tells
    }

    /// To be called now and then. How many were left out, if that is to be told now.
    pub fn left_out(&mut self, now_ms: u64) -> Option<u64> {
        if now_ms < self.since_ms + TOLD_EVERY_MS {
            return None;
        }
        self.since_ms = now_ms;
        self.told = 0;
        Some(std::mem::take(&mut self.left_out)).filter(|count| *count > 0)
    }
}

#[derive(Debug)]
pub struct Expiry {
    /// Length of a bucket, in ms (`tickTime`).
    bucket_ms: u64,
    /// The most that is counted between two calls of [`Expiry::advance`], in ms.
    counted_max_ms: u64,
    clock: SessionClock,
    /// The clock at the last call but one of [`Expiry::advance`].
    before: SessionClock,
    deadlines: BTreeSet<(u64, SessionId)>,
    sessions: BTreeMap<SessionId, Tracked>,
}

/// Time without the pauses, in ms.
#[derive(Clone, Copy, Debug, Default)]
struct SessionClock {
    real_ms: u64,
    counted_ms: u64,
}

impl SessionClock {
    /// The counted time at a real time since this reading, of which `counted_ms` were counted.
    fn at(self, real_ms: u64, counted_ms: u64) -> u64 {
        match real_ms.checked_sub(self.real_ms) {
            Some(since_ms) => self.counted_ms + since_ms.min(counted_ms),
            None => self.counted_ms.saturating_sub(self.real_ms - real_ms),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Tracked {
    timeout_ms: u64,
    deadline_ms: u64,
    /// Its end was proposed; touches do not count any more.
    closing: bool,
}

impl Expiry {
    /// `bucket_ms`: length of a bucket; `tick_ms`: time between two calls of [`Self::advance`] when
    /// all is well.
    pub fn new(bucket_ms: u64, tick_ms: u64) -> Self {
        Self {
            bucket_ms: bucket_ms.max(1),
            counted_max_ms: (bucket_ms / COUNTED_PART).max(tick_ms * COUNTED_TICKS),
            clock: SessionClock::default(),
            before: SessionClock::default(),
            deadlines: BTreeSet::new(),
            sessions: BTreeMap::new(),
        }
    }

    /// Begins to keep time for these sessions, each with its full timeout.
    pub fn start(&mut self, now_ms: u64, sessions: impl Iterator<Item = (SessionId, i32)>) {
        self.deadlines.clear();
        self.sessions.clear();
        self.clock.real_ms = now_ms;
        self.before = self.clock;
        for (session, timeout_ms) in sessions {
            self.track(session, timeout_ms, now_ms);
        }
    }

    /// Keeps time for a session that was created or attached now.
    pub fn track(&mut self, session: SessionId, timeout_ms: i32, now_ms: u64) {
        self.forget(session);
        let timeout_ms = u64::try_from(timeout_ms).unwrap_or(0);
        let deadline_ms = self.deadline(self.counted(now_ms), timeout_ms);
        self.sessions.insert(
            session,
            Tracked {
                timeout_ms,
                deadline_ms,
                closing: false,
            },
        );
        self.deadlines.insert((deadline_ms, session));
    }

    /// A session that ended.
    pub fn forget(&mut self, session: SessionId) {
        if let Some(tracked) = self.sessions.remove(&session) {
            self.deadlines.remove(&(tracked.deadline_ms, session));
        }
    }

    /// Counts the time since the last call, but not a long time in which the process did not run.
    /// Returns what was left out, in ms.
    pub fn advance(&mut self, now_ms: u64) -> u64 {
        let passed = now_ms.saturating_sub(self.clock.real_ms);
        let counted = passed.min(self.counted_max_ms);
        self.before = self.clock;
        self.clock.real_ms = now_ms;
        self.clock.counted_ms += counted;
        passed - counted
    }

    /// The session was heard at this time of the engine's clock.
    pub fn touch(&mut self, session: SessionId, heard_ms: u64) {
        let heard_ms = self.counted(heard_ms);
        let Some(tracked) = self.sessions.get(&session).copied() else {
            return;
        };
        let deadline_ms = self.deadline(heard_ms, tracked.timeout_ms);
        if tracked.closing || deadline_ms <= tracked.deadline_ms {
            return;
        }
        self.deadlines.remove(&(tracked.deadline_ms, session));
        self.deadlines.insert((deadline_ms, session));
        self.sessions.insert(
            session,
            Tracked {
                deadline_ms,
                ..tracked
            },
        );
    }

    /// Sessions whose deadline has passed and whose end was not proposed yet, at most `limit`.
    pub fn take_expired(&mut self, limit: usize) -> Vec<SessionId> {
        let mut expired = Vec::new();
        while expired.len() < limit {
            let Some(&(deadline_ms, session)) = self.deadlines.first() else {
                break;
            };
            if deadline_ms > self.clock.counted_ms {
                break;
            }
            self.deadlines.pop_first();
            if let Some(tracked) = self.sessions.get_mut(&session) {
                tracked.closing = true;
                expired.push(session);
            }
        }
        expired
    }

    /// The counted time at a real time: of the present and the time since the last call of
    /// [`Self::advance`], what the next one will count.
    fn counted(&self, real_ms: u64) -> u64 {
        if real_ms > self.clock.real_ms {
            return self.clock.at(real_ms, self.counted_max_ms);
        }
        let counted_ms = self.clock.counted_ms - self.before.counted_ms;
        self.before.at(real_ms, counted_ms)
    }

    fn deadline(&self, heard_ms: u64, timeout_ms: u64) -> u64 {
        ((heard_ms + timeout_ms) / self.bucket_ms + 1) * self.bucket_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId(7);

    fn expiry() -> Expiry {
        let mut expiry = Expiry::new(2000, 50);
        expiry.start(0, [(SESSION, 4000)].into_iter());
        expiry
    }

    /// Lets time pass as the engine does; returns when the session expired.
    fn run(expiry: &mut Expiry, from_ms: u64, until_ms: u64) -> Option<u64> {
        (from_ms..=until_ms).step_by(50).find(|&now_ms| {
            expiry.advance(now_ms);
            expiry.take_expired(10) == [SESSION]
        })
    }

    #[test]
    fn a_storm_is_told_by_some_of_it_and_a_number() {
        let mut telling = Telling::default();
        let told = (0..5_000).filter(|_| telling.one_more()).count();
        assert_eq!(told as u64, TOLD_ONE_BY_ONE);
        assert_eq!(telling.left_out(TOLD_EVERY_MS - 1), None);
        assert_eq!(
            telling.left_out(TOLD_EVERY_MS),
            Some(5_000 - TOLD_ONE_BY_ONE)
        );
        assert!(telling.one_more());
        assert_eq!(telling.left_out(3 * TOLD_EVERY_MS), None);
    }

    #[test]
    fn s82_a_silent_session_ends_between_its_timeout_and_one_tick_later() {
        assert_eq!(run(&mut expiry(), 0, 20_000), Some(6000));
    }

    #[test]
    fn a_touched_session_lives_on() {
        let mut expiry = expiry();
        for now_ms in (0..60_000).step_by(50) {
            expiry.advance(now_ms);
            if now_ms % 3000 == 0 {
                expiry.touch(SESSION, now_ms);
            }
            assert_eq!(expiry.take_expired(10), []);
        }
    }

    #[test]
    fn a_pause_of_the_process_moves_the_deadline() {
        let mut expiry = expiry();
        assert_eq!(run(&mut expiry, 0, 3000), None);
        assert_eq!(expiry.advance(3000 + 60_000), 60_000 - 1_000);
        assert_eq!(
            expiry.take_expired(10),
            [],
            "the client could not be heard meanwhile"
        );
        let end_ms = run(&mut expiry, 63_050, 90_000).unwrap();
        assert!((64_000..=66_100).contains(&end_ms), "{end_ms}");
    }

    #[test]
    fn what_was_heard_just_before_a_pause_counts() {
        let mut expiry = expiry();
        assert_eq!(run(&mut expiry, 0, 3_900), None);
        expiry.advance(3_940 + 60_000);
        expiry.touch(SESSION, 3_930);
        let end_ms = run(&mut expiry, 63_990, 90_000).unwrap();
        // 3,930 and the timeout, rounded up; 59 s of the pause are left out.
        assert!(
            (8_000 + 59_000..=8_100 + 59_000).contains(&end_ms),
            "{end_ms}"
        );
    }

    #[test]
    fn a_busy_engine_does_not_stop_the_clock() {
        let mut expiry = expiry();
        let end_ms = (0..60_000).step_by(300).find(|&now_ms| {
            expiry.advance(now_ms);
            expiry.take_expired(10) == [SESSION]
        });
        assert_eq!(end_ms, Some(6_000));
    }

    #[test]
    fn an_expired_session_is_reported_once_and_cannot_be_touched_back() {
        let mut expiry = expiry();
        assert_eq!(run(&mut expiry, 0, 20_000), Some(6000));
        expiry.touch(SESSION, 6050);
        assert_eq!(run(&mut expiry, 6050, 60_000), None);
    }

    #[test]
    fn an_attached_session_starts_afresh() {
        let mut expiry = expiry();
        assert_eq!(run(&mut expiry, 0, 5900), None);
        expiry.track(SESSION, 10_000, 5_900);
        assert_eq!(run(&mut expiry, 5950, 40_000), Some(16_000));
    }

    #[test]
    fn what_is_heard_between_two_ticks_counts_from_then() {
        let mut expiry = expiry();
        assert_eq!(run(&mut expiry, 0, 1_950), None);
        // Heard by the last tick, the deadline would be at 6,000.
        expiry.touch(SESSION, 2_010);
        assert_eq!(run(&mut expiry, 2_050, 40_000), Some(8_000));
        expiry.track(SESSION, 3_950, 8_060);
        assert_eq!(run(&mut expiry, 8_100, 40_000), Some(14_000));
    }

    #[test]
    fn what_is_heard_after_a_pause_before_the_first_tick_counts_from_then() {
        let mut expiry = expiry();
        assert_eq!(run(&mut expiry, 0, 1_500), None);
        expiry.touch(SESSION, 61_500);
        // As much of the pause is counted as will be: the time is 2,500 then.
        assert_eq!(expiry.advance(61_500), 60_000 - 1_000);
        let end_ms = run(&mut expiry, 61_550, 90_000).unwrap();
        assert_eq!(end_ms, 8_000 + 59_000);
    }
}

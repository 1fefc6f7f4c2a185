//! How long this server may go on answering without hearing that a majority still keeps its
//! sessions.
//!
//! Every server, the leader too, says now and then which clients it has heard: a *touch*. The
//! leader notes it for its session clock, and confirms it once a round of read index that began
//! after the touch came has shown that it still led then. A later leader gives every session its
//! full timeout from its own start, so from the moment at which a confirmed touch was *sent*, no
//! session can end before the client's own silence and its timeout have passed.
//!
//! A client pings at least every third of its timeout, so the last ping that a confirmed touch told
//! of is at most a third older than that touch, and the session lives for two thirds after it. The
//! server answers pings and reads for one third, and closes the connection after a half: a sixth of
//! the timeout before others can have the session's locks. A client that is cut off from this
//! server as well is on its own: it must give its locks up when its own timeout has passed.

use std::collections::VecDeque;

/// Touches that may be on their way. Older ones are not waited for any more.
const TOUCHES_MAX: usize = 100;

/// This server's touches.
#[derive(Debug)]
pub struct Lease {
    last: u64,
    /// Number and time of those that are not confirmed.
    sent: VecDeque<(u64, u64)>,
    /// When confirmed ones were sent, and what must be applied before they count: the end of a
    /// session may have been on its way when the leader confirmed.
    pending: VecDeque<(u64, u64)>,
    /// When the newest one that counts was sent.
    confirmed_ms: Option<u64>,
}

impl Lease {
    /// `incarnation`: of this start, so that no answer to an earlier one is taken for its own.
    pub fn new(incarnation: u64) -> Self {
        Self {
            last: incarnation << 40,
            sent: VecDeque::new(),
            pending: VecDeque::new(),
            confirmed_ms: None,
        }
    }

    /// A touch is sent now; returns its number.
    pub fn touch(&mut self, now_ms: u64) -> u64 {
        self.last += 1;
        if self.sent.len() == TOUCHES_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.last, now_ms));
        self.last
    }

    /// The leader confirmed a touch and all before it, with everything up to `commit` in its log.
    pub fn confirmed(&mut self, number: u64, commit: u64) {
        let mut newest = None;
        while self.sent.front().is_some_and(|(sent, _)| *sent <= number) {
            newest = self.sent.pop_front();
        }
        if let Some((_, sent_ms)) = newest {
            if self.pending.len() == TOUCHES_MAX {
                self.pending.pop_front();
            }
            self.pending.push_back((sent_ms, commit));
        }
    }

    /// Everything up to `index` is applied here. Returns when the newest touch that counts now was
    /// sent, if that is news.
    pub fn applied(&mut self, index: u64) -> Option<u64> {
        let counting = self.pending.iter().filter(|(_, commit)| *commit <= index);
        let news = counting.map(|(sent_ms, _)| *sent_ms).max()?;
        // An earlier leader may have waited for entries that never came to be: what it confirmed
        // does not keep back what a later one did.
        self.pending.retain(|(sent_ms, _)| *sent_ms > news);
        self.confirmed_ms = self.confirmed_ms.max(Some(news));
        Some(news)
    }

    /// This server alone decides: it has its own word.
    pub fn renew(&mut self, now_ms: u64) {
        self.confirmed_ms = Some(now_ms);
    }

    /// When the newest touch that counts was sent.
    pub fn confirmed_ms(&self) -> Option<u64> {
        self.confirmed_ms
    }
}

/// How long after the newest touch that counts a session with this timeout is answered, in ms.
pub fn answered_for_ms(timeout_ms: i32) -> u64 {
    u64::try_from(timeout_ms).unwrap_or(0) / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmation_counts_from_when_its_touch_was_sent() {
        let mut lease = Lease::new(1);
        assert_eq!(lease.confirmed_ms(), None);
        let first = lease.touch(1_000);
        let second = lease.touch(1_200);
        let third = lease.touch(1_400);
        lease.confirmed(second, 7);
        assert_eq!(lease.applied(7), Some(1_200));
        lease.confirmed(first, 7);
        assert_eq!(lease.applied(7), None, "it is older");
        assert_eq!(lease.confirmed_ms(), Some(1_200));
        lease.confirmed(third, 7);
        assert_eq!(lease.applied(7), Some(1_400));
    }

    #[test]
    fn a_confirmation_counts_once_what_the_leader_had_is_applied() {
        let mut lease = Lease::new(1);
        let first = lease.touch(1_000);
        let second = lease.touch(1_200);
        lease.confirmed(first, 7);
        lease.confirmed(second, 9);
        assert_eq!(lease.applied(6), None);
        assert_eq!(lease.confirmed_ms(), None);
        assert_eq!(lease.applied(8), Some(1_000));
        assert_eq!(lease.applied(9), Some(1_200));
    }

    #[test]
    fn what_an_earlier_leader_waited_for_in_vain_keeps_nothing_back() {
        let mut lease = Lease::new(1);
        let first = lease.touch(1_000);
        let second = lease.touch(1_200);
        // Of its many entries a new leader replaces all but the first few.
        lease.confirmed(first, 900);
        lease.confirmed(second, 8);
        assert_eq!(lease.applied(8), Some(1_200));
        assert_eq!(lease.applied(900), None);
        assert_eq!(lease.confirmed_ms(), Some(1_200));
    }

    #[test]
    fn an_answer_to_an_earlier_start_confirms_nothing() {
        let mut earlier = Lease::new(1);
        let mut lease = Lease::new(2);
        lease.touch(1_000);
        let number = (0..1_000).map(|now_ms| earlier.touch(now_ms)).last();
        lease.confirmed(number.unwrap(), 0);
        assert_eq!(lease.applied(0), None);
    }

    #[test]
    fn touches_that_nobody_confirms_do_not_pile_up() {
        let mut lease = Lease::new(0);
        for now_ms in 0..10_000 {
            let number = lease.touch(now_ms);
            assert!(lease.sent.len() <= TOUCHES_MAX);
            if now_ms > 5_000 {
                lease.confirmed(number, u64::MAX);
            }
            assert!(lease.pending.len() <= TOUCHES_MAX);
        }
        assert_eq!(lease.applied(1), None);
    }
}

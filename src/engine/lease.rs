//! How long this server may go on answering without hearing that a majority still keeps its
//! sessions.
//!
//! Every server, the leader too, says now and then which clients it has heard: a *touch*. The
//! leader notes it for its session clock, and confirms it once a round of read index that began
//! after the touch came has shown that it still led then. A later leader gives every session its
//! full timeout from its own start, so from the moment at which a confirmed touch was *sent*, no
//! session can end before the client's own silence and its timeout have passed.
//!
//! A client pings at least every third of its timeout. A server that answers pings and reads for no
//! longer than a third of the timeout after a confirmed touch is therefore silent at least a third
//! of a timeout before the majority can have ended the session, and nobody goes on believing in a
//! lock that others have taken over.

use std::collections::VecDeque;

/// Touches that may be on their way. Older ones are not waited for any more.
const TOUCHES_MAX: usize = 100;

/// This server's touches.
#[derive(Debug, Default)]
pub struct Lease {
    last: u64,
    /// Number and time of those that are not confirmed.
    sent: VecDeque<(u64, u64)>,
    /// When the newest confirmed one was sent.
    confirmed_ms: Option<u64>,
}

impl Lease {
    /// A touch is sent now; returns its number.
    pub fn touch(&mut self, now_ms: u64) -> u64 {
        self.last += 1;
        if self.sent.len() == TOUCHES_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.last, now_ms));
        self.last
    }

    /// The leader confirmed a touch and all before it. Returns when it was sent, if that is news.
    pub fn confirmed(&mut self, number: u64) -> Option<u64> {
        let mut news = None;
        while self.sent.front().is_some_and(|(sent, _)| *sent <= number) {
            news = self.sent.pop_front();
        }
        let (_, sent_ms) = news?;
        self.confirmed_ms = Some(sent_ms);
        self.confirmed_ms
    }

    /// This server alone decides: it has its own word.
    pub fn renew(&mut self, now_ms: u64) {
        self.confirmed_ms = Some(now_ms);
    }

    /// When the newest confirmed touch was sent.
    pub fn confirmed_ms(&self) -> Option<u64> {
        self.confirmed_ms
    }
}

/// Whether a session with this timeout may be answered now.
pub fn may_answer(confirmed_ms: u64, timeout_ms: i32, now_ms: u64) -> bool {
    now_ms <= confirmed_ms.saturating_add(u64::try_from(timeout_ms).unwrap_or(0) / 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmation_counts_from_when_its_touch_was_sent() {
        let mut lease = Lease::default();
        assert_eq!(lease.confirmed_ms(), None);
        let first = lease.touch(1_000);
        let second = lease.touch(1_200);
        let third = lease.touch(1_400);
        assert_eq!(lease.confirmed(second), Some(1_200));
        assert_eq!(lease.confirmed(first), None, "it is older");
        assert_eq!(lease.confirmed_ms(), Some(1_200));
        assert_eq!(lease.confirmed(third), Some(1_400));
    }

    #[test]
    fn touches_that_nobody_confirms_do_not_pile_up() {
        let mut lease = Lease::default();
        for now_ms in 0..10_000 {
            let _ = lease.touch(now_ms);
        }
        assert_eq!(lease.sent.len(), TOUCHES_MAX);
        assert_eq!(lease.confirmed(1), None);
    }

    #[test]
    fn a_session_is_answered_for_a_third_of_its_timeout() {
        assert!(may_answer(1_000, 3_000, 2_000));
        assert!(!may_answer(1_000, 3_000, 2_001));
        assert!(may_answer(u64::MAX, 3_000, 5));
    }
}

//! How fast snapshots may be sent.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// What may be sent at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// A token bucket, as the time at which it is full enough again.
#[derive(Debug)]
pub(super) struct Rate {
    /// 0: any.
    bytes_per_second: u64,
    next: Mutex<Option<Instant>>,
}

impl Rate {
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            next: Mutex::default(),
        }
    }

    /// Waits until so many bytes may be sent.
    pub async fn take(&self, bytes: usize) {
        if self.bytes_per_second > 0 {
            sleep_until(self.reserve(bytes, Instant::now())).await;
        }
    }

    /// When so many bytes may be sent, if nobody sends more before.
    fn reserve(&self, bytes: usize, now: Instant) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut next = self.next.lock();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let at = next.map_or(earliest, |next| next.max(earliest));
        *next = Some(at + takes);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_time_no_more_is_sent_than_may_be() {
        let rate = Rate::new(1_000);
        let now = Instant::now() + Duration::from_secs(10);
        let at = |ms| now + Duration::from_millis(ms);
        assert!(rate.reserve(500, now) <= now);
        // 100 ms of it were free.
        assert_eq!(rate.reserve(1_000, now), at(400));
        assert_eq!(rate.reserve(0, now), at(1_400));
        assert_eq!(rate.reserve(100, at(5_000)), at(4_900));
        assert_eq!(rate.reserve(100, at(5_000)), at(5_000));
        assert_eq!(rate.reserve(100, at(5_000)), at(5_100));
    }
}

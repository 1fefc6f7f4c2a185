//! Signs of life while a server loads, which may take minutes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Time between two lines.
const INTERVAL_MS: u64 = 2_000;

/// Logs how far loading is, now and then. Called with what is done and what there is, in bytes.
pub fn log_progress() -> impl Fn(u64, u64) + Send + Sync + 'static {
    let start = Instant::now();
    let next_ms = AtomicU64::new(INTERVAL_MS);
    move |done, total| {
        let elapsed_ms = start.elapsed().as_millis() as u64;
        if is_due(&next_ms, elapsed_ms) {
            let percent = percent(done, total);
            tracing::info!(percent, "loading");
        }
    }
}

/// True once in each interval, whoever asks.
fn is_due(next_ms: &AtomicU64, now_ms: u64) -> bool {
    let due_ms = next_ms.load(Ordering::Relaxed);
    let later_ms = now_ms + INTERVAL_MS;
    let relaxed = Ordering::Relaxed;
    now_ms >= due_ms
        && next_ms
            .compare_exchange(due_ms, later_ms, relaxed, relaxed)
            .is_ok()
}

fn percent(done: u64, total: u64) -> u64 {
    // Wide, because a hundred times a log's size may not fit.
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    percent.min(100) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_once_in_each_interval() {
        let next_ms = AtomicU64::new(INTERVAL_MS);
        let due: Vec<bool> = [0, 1_999, 2_000, 2_001, 3_999, 4_000]
            .map(|now| is_due(&next_ms, now))
            .to_vec();
        assert_eq!(due, [false, false, true, false, false, true]);
    }

    #[test]
    fn percentages_stay_within_bounds() {
        assert_eq!(percent(0, 0), 0);
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(5, 4), 100);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }
}

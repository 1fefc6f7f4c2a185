//! Tells of a disk that hangs while it hangs: a write or sync that does not return says nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often it is looked whether the disk hangs, at least.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And at most.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(100);
/// Two lines about one stall are this far apart.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Since when the log thread has been waiting for the disk.
pub(super) struct DiskWait {
    epoch: Instant,
    /// Milliseconds after the epoch, and one; 0: it is not waiting.
    since: AtomicU64,
}

impl DiskWait {
    pub fn new() -> Self {
        Self {
            epoch: Instant::now(),
            since: AtomicU64::new(0),
        }
    }

    /// The wait lasts as long as this.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Waiting {
        let since = self.epoch.elapsed().as_millis() as u64 + 1;
        self.since.store(since, Ordering::Relaxed);
        Waiting(self.clone())
    }

    /// What tells one wait from the next, and how long it has lasted.
    fn now(&self) -> Option<(u64, Duration)> {
        let since = self.since.load(Ordering::Relaxed);
        let began = self.epoch + Duration::from_millis(since.checked_sub(1)?);
        Some((since, began.elapsed()))
    }
}

/// Ends the wait when it is dropped, also by a panic.
pub(super) struct Waiting(Arc<DiskWait>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.since.store(0, Ordering::Relaxed);
    }
}

/// Tells of waits that are longer than `patience`, now and then while they last, until the other
/// end of `stop` is gone.
pub(super) fn watch(
    wait: &DiskWait,
    patience: Duration,
    stop: &Receiver<()>,
    mut tell: impl FnMut(Duration),
) {
    // The wait that was told of, and when it is told of again.
    let mut told = (0, Duration::ZERO);
    let every = patience.clamp(LOOK_EVERY_MIN, LOOK_EVERY);
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(every) {
        let Some((which, lasted)) = wait.now() else {
            continue;
        };
        let due = match told.0 == which {
            true => told.1,
            false => patience,
        };
        if lasted >= due {
            tell(lasted);
            told = (which, lasted + SAY_EVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn each_stall_is_told_of_while_it_lasts() {
        let wait = Arc::new(DiskWait::new());
        let (stop, stopped) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let patience = LOOK_EVERY_MIN;
            let wait = &wait;
            scope.spawn(move || {
                watch(wait, patience, &stopped, |lasted| {
                    tell.send(lasted).unwrap();
                });
            });
            for _ in 0..2 {
                let waiting = wait.begin();
                let lasted = told.recv_timeout(Duration::from_secs(60)).unwrap();
                assert!(lasted >= patience, "{lasted:?}");
                // Not over and over.
                assert!(told.recv_timeout(3 * patience).is_err());
                drop(waiting);
                assert!(told.recv_timeout(3 * patience).is_err());
            }
            drop(stop);
        });
    }
}

//! Log lines: raft's, which go where ours go, and those that could become a flood.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use slog::{Drain as _, KV as _};

/// A logger for raft that goes where all our log lines go.
pub fn raft_logger() -> slog::Logger {
    slog::Logger::root(TracingDrain.fuse(), slog::o!())
}

/// Sends raft's records to `tracing`, fields included.
struct TracingDrain;

impl slog::Drain for TracingDrain {
    type Ok = ();
    type Err = slog::Never;

    fn log(
        &self,
        record: &slog::Record<'_>,
        values: &slog::OwnedKVList,
    ) -> Result<(), slog::Never> {
        let mut fields = Fields(String::new());
        // A field that cannot be written is left out; there is nowhere to report it.
        let _ = record.kv().serialize(record, &mut fields);
        let _ = values.serialize(record, &mut fields);
        let (message, fields) = (record.msg(), fields.0);
        match record.level() {
            slog::Level::Critical | slog::Level::Error => {
                tracing::error!(target: "raft", "{message}{fields}");
            }
            slog::Level::Warning => tracing::warn!(target: "raft", "{message}{fields}"),
            // What raft calls information is of interest when looking for a fault only.
            _ => tracing::debug!(target: "raft", "{message}{fields}"),
        }
        Ok(())
    }
}

/// Appends " key=value" for each field.
struct Fields(String);

impl slog::Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(slog::Error::from)
    }
}

/// Lets one line of a kind through in a while. What clients can bring about as often as they like
/// must not fill the disk with log.
#[derive(Debug)]
pub struct Seldom {
    pause: Duration,
    /// When a line was written last, and how many were left out since.
    last: Mutex<(Option<Instant>, u64)>,
}

impl Seldom {
    /// Two lines are at least `pause` apart.
    pub const fn every(pause: Duration) -> Self {
        Self {
            pause,
            last: Mutex::new((None, 0)),
        }
    }

    /// Whether a line may be written now: then how many were left out since the last one.
    pub fn ask(&self) -> Option<u64> {
        self.ask_at(Instant::now())
    }

    fn ask_at(&self, now: Instant) -> Option<u64> {
        let mut last = self.last.lock();
        let (at, left_out) = &mut *last;
        if at.is_some_and(|at| now.duration_since(at) < self.pause) {
            *left_out += 1;
            return None;
        }
        *at = Some(now);
        Some(std::mem::take(left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_kind_are_seldom_and_those_left_out_are_counted() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let seldom = Seldom::every(Duration::from_secs(1));
        assert_eq!(seldom.ask_at(after(0)), Some(0));
        assert_eq!(seldom.ask_at(after(1)), None);
        assert_eq!(seldom.ask_at(after(999)), None);
        assert_eq!(seldom.ask_at(after(1_000)), Some(2));
        assert_eq!(seldom.ask_at(after(1_001)), None);
        assert_eq!(seldom.ask_at(after(9_000)), Some(1));
    }
}

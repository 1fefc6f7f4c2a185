//! Raft's log records, sent to `tracing`.

use std::fmt::Write as _;

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

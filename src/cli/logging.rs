//! Where log lines go: stderr, as text for people or as JSON for programs.
//!
//! stdout is kept for what was asked for: the ready line, help, and the report of `check-config`.

use std::io::{self, IsTerminal as _};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt as _;

use super::args::LogFormat;

/// Whether the last word was said.
static ENDED: AtomicBool = AtomicBool::new(false);

/// Drops every line from now on: what says why the process ends is to be the last thing it says,
/// whatever its other threads come upon meanwhile.
pub fn end() {
    ENDED.store(true, Ordering::Relaxed);
}

/// Starts logging. `level` wins over the environment variable RUST_LOG; without both, it is info.
///
/// # Errors
///
/// What is wrong with the filter.
pub fn start(format: LogFormat, level: Option<&str>) -> Result<(), String> {
    let filter = filter(level, std::env::var("RUST_LOG").ok().as_deref())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr.with_filter(|_| !ENDED.load(Ordering::Relaxed)))
        // Colours are for eyes: not for files, and not for who declines them (no-color.org).
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    // A second server in one process, as in tests, logs where the first one does.
    let _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

fn filter(level: Option<&str>, environment: Option<&str>) -> Result<EnvFilter, String> {
    let (name, text) = match (level, environment) {
        (Some(level), _) => ("--log-level", level),
        (None, Some(text)) if !text.is_empty() => ("RUST_LOG", text),
        (None, _) => ("", "info"),
    };
    EnvFilter::builder().parse(text).map_err(|error| {
        format!("{name}: {text:?} is not a level or filter ({error}); try info, or zkraft=debug")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_over_the_environment() {
        let shown = |level, environment| filter(level, environment).unwrap().to_string();
        assert_eq!(shown(None, None), "info");
        assert_eq!(shown(None, Some("")), "info");
        assert_eq!(shown(None, Some("warn")), "warn");
        assert_eq!(shown(Some("debug"), Some("warn")), "debug");
        assert_eq!(shown(Some("zkraft=trace"), None), "zkraft=trace");
    }

    #[test]
    fn a_wrong_filter_is_named() {
        let error = filter(Some("a=b=c"), None).unwrap_err();
        assert!(
            error.starts_with("--log-level: \"a=b=c\" is not a level"),
            "{error}"
        );
        let error = filter(None, Some("zkraft=loud")).unwrap_err();
        assert!(
            error.starts_with("RUST_LOG: \"zkraft=loud\" is not a level"),
            "{error}"
        );
    }
}

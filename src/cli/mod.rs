//! The command line: what `zkraft` is told, and what it says.
//!
//! Turns arguments into a [`Config`], starts a server with it, and stops it on a signal. Every
//! failure ends here, as one message that says what to do and an exit code. How a server is
//! started is not known here: whoever calls [`main`] says that. `recover` alone opens one that is
//! stopped.

mod args;
mod bench;
mod check;
mod limits;
mod logging;
mod progress;
mod recover;
mod status;
mod supervise;

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::ExitCode;

use clap::Parser as _;

use crate::config::{Config, Given, Invalid, Loaded};

pub use limits::{open_files, use_small_pages};
pub use progress::log_progress;

use args::{Arguments, Command, Environment, LogFlags, ServerFlags, Target};
use supervise::{Announcement, Signals};

/// A server that runs, as the command line sees it.
pub trait RunningServer: Send {
    /// Where clients connect.
    fn address(&self) -> SocketAddr;

    /// Completes when the server cannot go on, with the reason. May be awaited on any runtime.
    fn fault(&self) -> Pin<Box<dyn Future<Output = anyhow::Error> + Send>>;

    /// Stops in order: replies that are under way are sent, the log is closed. Blocks until done,
    /// and is not called on a runtime's thread.
    ///
    /// # Errors
    /// The log could not be closed, or broke before.
    fn stop(self: Box<Self>) -> anyhow::Result<()>;
}

/// Starts a server. Blocks until it serves; called on a thread of its own.
pub type Start = Box<dyn FnOnce(Config) -> anyhow::Result<Box<dyn RunningServer>> + Send + 'static>;

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    /// It was told nonsense.
    Usage(String),
    /// It was told properly, and could not do it.
    Runtime(anyhow::Error),
    /// It was told to stop twice.
    Forced,
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Runtime(_) => 1,
            Self::Usage(_) => 2,
            // What shells report for a process that Ctrl-C ended.
            Self::Forced => 130,
        }
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Self::Usage(invalid.to_string())
    }
}

/// Runs the command of this process's arguments.
pub fn main(start: Start) -> ExitCode {
    supervise::stop_on_panic();
    let mut out = std::io::stdout();
    let mut err = std::io::stderr();
    ExitCode::from(run(
        std::env::args_os(),
        &|name| Some(std::env::var_os(name)?.to_string_lossy().into_owned()),
        &mut out,
        &mut err,
        supervise::signals,
        start,
    ))
}

/// Runs one command; returns the exit code.
fn run(
    arguments: impl IntoIterator<Item = OsString>,
    environment: Environment<'_>,
    out: &mut dyn Write,
    err: &mut dyn Write,
    signals: Signals,
    start: Start,
) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are what was asked for, not errors.
            let (to, code): (&mut dyn Write, u8) = if error.use_stderr() {
                (err, 2)
            } else {
                (out, 0)
            };
            say(to, &error.render().to_string());
            return code;
        }
    };
    let done = match &arguments.command {
        None => Loaded::dev(
            &arguments.flags.server.given(),
            arguments.flags.server.in_memory,
        )
        .map_err(Failure::from)
        .and_then(|loaded| {
            serve(
                loaded,
                &arguments.flags.log,
                Announcement::Banner,
                out,
                signals,
                start,
            )
        }),
        Some(Command::Serve(wanted)) => load(
            &wanted.target,
            wanted.given(),
            &wanted.flags.server,
            environment,
        )
        .map_err(Failure::from)
        .and_then(|loaded| {
            serve(
                loaded,
                &wanted.flags.log,
                Announcement::Line,
                out,
                signals,
                start,
            )
        }),
        Some(Command::CheckConfig(check)) => {
            let loaded = load(&check.target, Vec::new(), &check.flags, environment);
            return check::run(check, loaded, out, err);
        }
        Some(Command::Status(status)) => {
            return match status::run(status, out) {
                Ok(()) => 0,
                Err(error) => {
                    say(err, &format!("{error:#}\n"));
                    1
                }
            };
        }
        Some(Command::Recover { arguments, flags }) => {
            let loaded = load(&arguments.target, Vec::new(), &flags.server, environment);
            return recover::run(arguments, &flags.log, loaded, out, err);
        }
        Some(Command::Bench(load)) => bench::run(load, out).map_err(Failure::Runtime),
    };
    let Err(failure) = done else {
        return 0;
    };
    logging::end();
    match &failure {
        Failure::Usage(message) => say(err, &format!("zkraft cannot start:\n{message}\n")),
        // The whole chain of causes in one line.
        Failure::Runtime(error) => say(err, &format!("zkraft stopped: {error:#}\n")),
        Failure::Forced => say(err, "zkraft was stopped before it was finished\n"),
    }
    failure.exit_code()
}

/// `own`: what the flags of the command itself say.
fn load(
    target: &Target,
    own: Vec<Given>,
    flags: &ServerFlags,
    environment: Environment<'_>,
) -> Result<Loaded, Invalid> {
    let given = [target.pod.given(environment), flags.given(), own].concat();
    match target.file() {
        Some(path) => Loaded::file(path, &given, flags.in_memory),
        None => {
            let given = [target.given(), given].concat();
            Loaded::arguments(&given, flags.in_memory)
        }
    }
}

fn serve(
    loaded: Loaded,
    log: &LogFlags,
    announcement: Announcement,
    out: &mut dyn Write,
    signals: Signals,
    start: Start,
) -> Result<(), Failure> {
    logging::start(log.log_format, log.log_level.as_deref()).map_err(Failure::Usage)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    for note in &loaded.notes {
        tracing::debug!("{note}");
    }
    limits::apply();
    supervise::run(loaded.config, announcement, out, signals, start)
}

/// Writes and flushes. A reader who has gone away is not an error of ours.
fn say(to: &mut dyn Write, text: &str) {
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}

#[cfg(test)]
mod tests;

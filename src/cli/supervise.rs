//! The life of a server process: start, ready, wait for a signal or a fault, stop.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, anyhow};
use tokio::sync::{mpsc, oneshot};

use crate::config::Config;

use super::{Failure, RunningServer, Start, say};

/// Gives one message for each signal to stop. Called once, on the runtime that then waits.
pub type Signals = fn() -> std::io::Result<mpsc::Receiver<()>>;

/// What is said on stdout when clients can connect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Announcement {
    /// One line, for scripts that wait for it.
    Line,
    /// And how to use a development server.
    Banner,
}

/// Runs a server until it is told to stop, or cannot go on.
pub fn run(
    config: Config,
    announcement: Announcement,
    out: &mut dyn Write,
    signals: Signals,
    start: Start,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot wait for signals")
        .map_err(Failure::Runtime)?;
    let mut stops = runtime
        .block_on(async { signals() })
        .context("cannot wait for signals")
        .map_err(Failure::Runtime)?;

    // Loading may take long, and blocks. Nothing is lost if it is cut off.
    let data = if config.in_memory {
        None
    } else {
        Some(config.data_dir.display().to_string())
    };
    let started = on_thread("start", move || start(config))?;
    let started = runtime.block_on(async {
        tokio::select! {
            biased;
            _ = stops.recv() => None,
            started = started => Some(started),
        }
    });
    let server = match started {
        None => return Ok(()),
        Some(Ok(started)) => started.map_err(Failure::Runtime)?,
        Some(Err(_)) => return Err(Failure::Runtime(anyhow!("starting ended in a panic"))),
    };
    say(out, &ready(server.address(), data.as_deref(), announcement));

    let fault = server.fault();
    let end = runtime.block_on(async {
        tokio::select! {
            biased;
            fault = fault => Err(Failure::Runtime(fault)),
            _ = stops.recv() => Ok(()),
        }
    });
    if end.is_err() {
        // After a fault nothing is tidied up: what was acknowledged is on the disk. To drop the
        // server would be to wait for what it has begun, such as calls to a disk that hangs.
        std::mem::forget(server);
        return end;
    }
    stop(&runtime, server, &mut stops)
}

/// Stops in order, or at once if a second signal comes.
fn stop(
    runtime: &tokio::runtime::Runtime,
    server: Box<dyn RunningServer>,
    stops: &mut mpsc::Receiver<()>,
) -> Result<(), Failure> {
    tracing::info!("stopping; a second signal stops at once");
    let stopped = on_thread("stop", move || server.stop())?;
    runtime.block_on(async {
        tokio::select! {
            biased;
            stopped = stopped => match stopped {
                Ok(done) => done.map_err(Failure::Runtime),
                Err(_) => Err(Failure::Runtime(anyhow!("stopping ended in a panic"))),
            },
            _ = stops.recv() => Err(Failure::Forced),
        }
    })
}

/// Does something that blocks beside the runtime.
fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, Failure> {
    let (sender, receiver) = oneshot::channel();
    let work = move || {
        // No one listens any more after a signal.
        let _ = sender.send(work());
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .context("cannot start a thread")
        .map_err(Failure::Runtime)?;
    Ok(receiver)
}

/// Ctrl-C and SIGTERM.
pub fn signals() -> std::io::Result<mpsc::Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if sender.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// A panic is a bug, and the state behind it cannot be trusted: the process ends with one line.
pub fn stop_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        if crate::storage::catches_panics() {
            return;
        }
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        // What panicked and where, which the standard library puts on two lines.
        let what = info.to_string().replace('\n', " ");
        let mut text = format!("zkraft stopped: this is a bug, please report it: {name}: {what}\n");
        // Only for who set RUST_BACKTRACE.
        let trace = std::backtrace::Backtrace::capture();
        if trace.status() == std::backtrace::BacktraceStatus::Captured {
            text += &format!("{trace}\n");
        }
        say(&mut std::io::stderr(), &text);
        std::process::exit(1);
    }));
}

fn ready(address: SocketAddr, data: Option<&str>, announcement: Announcement) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let kept = data.map_or("data in memory only".to_owned(), |data| {
        format!("data in {data}")
    });
    let line = format!("zkraft {version} listening on {address}, {kept}\n");
    if announcement == Announcement::Line {
        return line;
    }
    // No client can connect to "every address"; this machine can use loopback then.
    let local = match address.ip().is_unspecified() {
        true => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port()),
        false => address,
    };
    let (host, port) = (local.ip(), local.port());
    format!(
        "{line}
  zkCli     zkCli.sh -server {local}
  kazoo     from kazoo.client import KazooClient; zk = KazooClient(\"{local}\"); zk.start()
  Flink     high-availability.type: zookeeper
            high-availability.zookeeper.quorum: {local}
  health    echo ruok | nc {host} {port}
  stop      Ctrl-C

A development server: `zkraft serve zoo.cfg` runs on a configuration file, `zkraft --help` has more.
"
    )
}

//! Sockets: the listener for clients, its limits, and its graceful end; the links to peers
//! ([`peer`]).
//!
//! Carries bytes to and from [`crate::engine::Connection`]s, and messages to and from other
//! servers; decides nothing about what they mean.

pub mod client;
pub mod peer;
mod room;
mod sender;
mod transfer;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::engine::Shared;
use crate::logging::Seldom;
use room::Rooms;

/// Connections that the system keeps for us until they are accepted, unless configured.
const BACKLOG: i32 = 1_024;
/// Bytes that the system takes of us for a client that does not read: else it is up to 4 MiB, and
/// when thousands have that, all TCP of the machine is short of memory.
const SEND_BUFFER_BYTES: usize = 128 << 10;

/// The engine's clock: ms since the process started, and the time on the wall.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Monotonic, in ms.
    pub fn now_ms(self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// In ms since 1970. May step.
    pub fn wall_ms(self) -> i64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as i64)
    }
}

/// What bounds clients (§2.8, §1.3).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `jute.maxbuffer`, in bytes.
    pub frame_bytes: usize,
    /// `maxClientCnxns`: connections of one address; 0 is unlimited.
    pub per_address: usize,
    /// `maxCnxns`: connections in all; 0 is unlimited.
    pub total: usize,
    /// How long a connection may take for its handshake.
    pub handshake: Duration,
    /// Files that the process may have open; 0 is unknown.
    pub open_files: usize,
    /// `largeRequestMaxBytes`: bytes of large frames that may be under way at a time.
    pub large_frames_bytes: usize,
}

/// Files that stay free for the log, snapshots and all else that is not a client.
const RESERVED_FILES: usize = 128;

/// Connections from this machine that are let in above the limit of all, each for a four-letter
/// word: a server that is full must not look dead to a probe, which would have it restarted.
const PROBES: usize = 8;
/// How long each may take to ask.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);

/// Two log lines about connections that cannot be had are this far apart at least.
const LOG_PAUSE: Duration = Duration::from_secs(10);

impl Limits {
    /// How many connections there may be, and why not more. `None`: as many as the system bears.
    fn connections(&self) -> Option<(usize, String)> {
        let configured = (self.total > 0).then(|| (self.total, format!("maxCnxns={}", self.total)));
        let files = (self.open_files > 0).then(|| {
            // Where hardly any file may be open, clients get half.
            let reserved = RESERVED_FILES.min(self.open_files / 2);
            let reason = format!("{} open files allowed (ulimit -Hn)", self.open_files);
            (self.open_files - reserved, reason)
        });
        configured.into_iter().chain(files).min()
    }
}

/// Answers four-letter words. The words are the operators' side: see [`crate::admin`].
pub trait Words: Send + Sync {
    /// The answer to a word, `None` if these four bytes are not one. `argument`: what came behind.
    fn answer(&self, word: [u8; 4], argument: &[u8]) -> Option<Vec<u8>>;
    /// Whether the answer may take as long as a disk that hangs: it is asked for on a thread of its
    /// own, where nobody's pings wait for it.
    fn may_block(&self, word: [u8; 4]) -> bool;
}

/// What every client connection needs.
pub struct Context {
    pub shared: Arc<Shared>,
    pub clock: Clock,
    pub limits: Limits,
    pub words: Arc<dyn Words>,
    /// Room for frames that are large and not complete.
    large_frames: Rooms,
    /// Room for large replies that are not sent.
    large_replies: Rooms,
    /// Reads that take long run one at a time,
    long_reads: Semaphore,
    /// as do those that only answer much,
    large_reads: Semaphore,
    /// and what writes the parts of large replies.
    writes: Semaphore,
    most: Option<(usize, String)>,
    counts: Mutex<Counts>,
    refusals: Seldom,
    failures: Seldom,
}

/// Connections there are.
#[derive(Debug, Default)]
struct Counts {
    all: usize,
    /// Those among them that were let in for a word.
    probes: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Context {
    pub fn new(
        shared: Arc<Shared>,
        clock: Clock,
        limits: Limits,
        words: Arc<dyn Words>,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            limits,
            words,
            large_frames: Rooms::new(limits.large_frames_bytes),
            large_replies: Rooms::new(shared.unsent.bytes_max()),
            long_reads: Semaphore::new(1),
            large_reads: Semaphore::new(1),
            writes: Semaphore::new(1),
            most: limits.connections(),
            counts: Mutex::default(),
            refusals: Seldom::every(LOG_PAUSE),
            failures: Seldom::every(LOG_PAUSE),
            shared,
        })
    }

    /// Takes a place for a connection of this address, given back when it is dropped. `is_near`: it
    /// comes from this machine.
    fn admit(self: &Arc<Self>, address: IpAddr, is_near: bool) -> Result<Admitted, String> {
        let per_address = self.limits.per_address;
        let mut counts = self.counts.lock();
        let mut only_words = false;
        if let Some((most, reason)) = &self.most
            && counts.all - counts.probes >= *most
        {
            only_words = is_near && counts.probes < PROBES;
            if !only_words {
                return Err(format!("{reason}: {most} connections are all"));
            }
        }
        let count = counts.by_address.entry(address).or_default();
        if per_address > 0 && *count >= per_address && !only_words {
            return Err(format!("maxClientCnxns={per_address} reached"));
        }
        *count += 1;
        counts.all += 1;
        counts.probes += usize::from(only_words);
        Ok(Admitted {
            context: self.clone(),
            address,
            only_words,
        })
    }

    /// A connection has no place.
    fn refused(&self, client: SocketAddr, reason: &str) {
        self.shared.metrics.connection_rejected.add(1);
        if let Some(left_out) = self.refusals.ask() {
            tracing::warn!(%client, reason, left_out, "connection refused");
        }
    }
}

/// A connection's place among those that are allowed.
struct Admitted {
    context: Arc<Context>,
    address: IpAddr,
    /// It may ask for a four-letter word and nothing else.
    only_words: bool,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.context.counts.lock();
        counts.all -= 1;
        counts.probes -= usize::from(self.only_words);
        if let Some(count) = counts.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

/// Binds the client port.
///
/// # Errors
///
/// What the system says, for example that the port is in use.
pub fn listen(address: SocketAddr, backlog: Option<i32>) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Accepted sockets have it from this one.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog.unwrap_or(BACKLOG))?;
    TcpListener::from_std(socket.into())
}

/// Accepts clients until told to stop; returns once all their connections are closed.
pub async fn serve(listener: TcpListener, context: Arc<Context>, mut stop: watch::Receiver<bool>) {
    let mut tasks = tokio::task::JoinSet::new();
    let for_clients = stop.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => accept(stream, peer, &context, &for_clients, &mut tasks),
                Err(error) => {
                    // Out of file descriptors, mostly: others may be closed meanwhile.
                    if let Some(left_out) = context.failures.ask() {
                        tracing::warn!(%error, left_out, "cannot accept a connection");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            // Finished tasks are collected as they end.
            Some(_) = tasks.join_next() => {}
            () = told_to_stop(&mut stop) => break,
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// Returns once the server is told to stop, or is gone.
async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn accept(
    stream: TcpStream,
    peer: SocketAddr,
    context: &Arc<Context>,
    stop: &watch::Receiver<bool>,
    tasks: &mut tokio::task::JoinSet<()>,
) {
    let address = peer.ip().to_canonical();
    let to = stream.local_addr().map(|local| local.ip().to_canonical());
    let is_near = address.is_loopback() || to.is_ok_and(|to| to == address);
    let admitted = match context.admit(peer.ip(), is_near) {
        Ok(admitted) => admitted,
        Err(reason) => return context.refused(peer, &reason),
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(client = %peer, %error, "cannot set TCP_NODELAY");
    }
    tasks.spawn(client::serve(stream, peer, admitted, stop.clone()));
}

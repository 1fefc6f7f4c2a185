//! Sockets: the listener for clients, its limits, and its graceful end.
//!
//! Carries bytes to and from [`crate::engine::Connection`]s; decides nothing about the protocol.

pub mod client;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::engine::Shared;

/// Connections that the system keeps for us until they are accepted, unless configured.
const BACKLOG: i32 = 1_024;

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
}

/// Answers four-letter words. The words are the operators' side: see [`crate::admin`].
pub trait Words: Send + Sync {
    /// The answer to a word, `None` if these four bytes are not one. `argument`: what came behind.
    fn answer(&self, word: [u8; 4], argument: &[u8]) -> Option<Vec<u8>>;
}

/// What every client connection needs.
pub struct Context {
    pub shared: Arc<Shared>,
    pub clock: Clock,
    pub limits: Limits,
    pub words: Box<dyn Words>,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

impl Context {
    pub fn new(
        shared: Arc<Shared>,
        clock: Clock,
        limits: Limits,
        words: Box<dyn Words>,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared,
            clock,
            limits,
            words,
            counts: Mutex::default(),
        })
    }

    /// Takes a place for a connection of this address, given back when it is dropped.
    fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Admitted, String> {
        let Limits {
            per_address, total, ..
        } = self.limits;
        let mut counts = self.counts.lock();
        let all: usize = counts.values().sum();
        if total > 0 && all >= total {
            return Err(format!("maxCnxns={total} reached"));
        }
        let count = counts.entry(address).or_default();
        if per_address > 0 && *count >= per_address {
            return Err(format!("maxClientCnxns={per_address} reached"));
        }
        *count += 1;
        Ok(Admitted {
            context: self.clone(),
            address,
        })
    }
}

/// A connection's place among those that are allowed.
struct Admitted {
    context: Arc<Context>,
    address: IpAddr,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.context.counts.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
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
                    tracing::warn!(%error, "cannot accept a connection");
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
    let admitted = match context.admit(peer.ip()) {
        Ok(admitted) => admitted,
        Err(reason) => {
            context.shared.metrics.connection_rejected.add(1);
            tracing::warn!(client = %peer, reason, "connection refused");
            return;
        }
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(client = %peer, %error, "cannot set TCP_NODELAY");
    }
    let (context, stop) = (context.clone(), stop.clone());
    tasks.spawn(async move {
        client::serve(stream, peer, &context, stop).await;
        drop(admitted);
    });
}

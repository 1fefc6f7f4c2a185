//! Links between the servers of a cluster.
//!
//! ```text
//! handshake  who is at the other end, proved by the secret     secret    that proof
//! dial       to a peer, by all its addresses                   resolve   names, each time anew
//! link       both lanes to a peer, kept up                     queue     what waits for them
//! accept     what peers dialled                                presence  who is connected
//! frame      bytes ↔ frames                                    notice    log lines, not too many
//! ```
//!
//! Each server dials every other one and sends over the connections that it dialled itself, so
//! none has to be agreed upon. There are two: one TCP connection for what must not wait (votes,
//! heartbeats, touches), one for what may be large. What is sent over both may arrive in any
//! order, more than once (after a link broke: not at all), and the engine is made for that.
//!
//! Snapshots travel on connections of their own: [`super::transfer`].

mod accept;
mod dial;
pub mod frame;
mod handshake;
mod link;
mod notice;
mod presence;
mod queue;
mod resolve;
mod secret;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use crate::engine::PeerMessage;
use crate::proto::peer;

pub use self::resolve::{PeerAddress, Resolver, listen};
pub use self::secret::{Secret, SecretError};

use self::notice::Notices;
use self::presence::{Count, Presence};
use self::queue::Queue;

/// This server, as it introduces itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Me {
    pub server: u32,
    /// Random number made with the data directory.
    pub disk: u64,
    /// Number of this start.
    pub boot: u64,
    /// The highest feature level that it knows.
    pub level: u32,
}

/// What a server said of itself in the handshake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Introduction {
    pub server: u32,
    pub disk: u64,
    pub boot: u64,
    pub level: u32,
    /// 0: it knew of no cluster yet.
    pub cluster: u64,
    /// Whether it had any log or snapshot.
    pub formed: bool,
    /// The disk that it held to be that of the server it spoke to; 0: it knew of none.
    pub knows: u64,
}

impl From<peer::Introduction> for Introduction {
    fn from(said: peer::Introduction) -> Self {
        let peer::Introduction {
            server,
            disk,
            boot,
            level,
            cluster,
            formed,
            knows,
        } = said;
        Self {
            server,
            disk,
            boot,
            level,
            cluster,
            formed,
            knows,
        }
    }
}

impl From<Introduction> for peer::Introduction {
    fn from(said: Introduction) -> Self {
        let Introduction {
            server,
            disk,
            boot,
            level,
            cluster,
            formed,
            knows,
        } = said;
        Self {
            server,
            disk,
            boot,
            level,
            cluster,
            formed,
            knows,
        }
    }
}

/// What the links need of their server, and what they tell it. Called from tasks of the network:
/// must not block, and must not wait for the links.
pub trait Host: Send + Sync + 'static {
    /// 0: not known yet. When that changes, or [`Host::is_formed`] or [`Host::knows`] does, this
    /// server introduces itself again to its peers before anything else is sent.
    fn cluster(&self) -> u64;

    /// Whether this server has any log or snapshot.
    fn is_formed(&self) -> bool;

    /// The disk that this server holds to be that of another one; 0: it knows of none.
    fn knows(&self, server: u32) -> u64;

    /// Whether a server may be connected, in either direction; asked for each connection.
    ///
    /// # Errors
    /// Why not and how to go on: told to the other side, and logged there.
    fn admit(&self, other: &Introduction) -> Result<(), String>;

    /// This server dialled here, and was admitted: called before anything else is heard from it.
    fn introduced(&self, other: &Introduction);

    /// Both lanes to this server are up.
    fn linked(&self, other: &Introduction);

    fn heard(&self, from: u64, message: PeerMessage);

    /// Something that was sent to this server may not arrive: a link broke, or more was to be sent
    /// than it took.
    fn unreachable(&self, id: u64);

    /// A link broke, and when this server was dialled again, its system said that nobody listens:
    /// the process is gone.
    fn lost(&self, id: u64);
}

/// How links are kept.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// What proves that servers belong together.
    pub secret: Option<Secret>,
    pub resolver: Resolver,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            secret: None,
            resolver: Resolver::system(),
        }
    }
}

/// What went over a link.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traffic {
    pub frames: u64,
    pub bytes: u64,
}

/// The state of the link to a peer.
#[derive(Clone, Debug)]
pub struct LinkStatus {
    pub id: u64,
    /// Whether this server has a link to the peer.
    pub is_linked: bool,
    /// Whether the peer has a link to this server.
    pub is_linked_from: bool,
    /// Why there is no link, as far as is known.
    pub error: Option<String>,
    /// Since when it is linked, or is not.
    pub since: Instant,
    /// Where the peer was reached last.
    pub address: Option<SocketAddr>,
    /// What the peer said of itself last.
    pub other: Option<Introduction>,
    /// Bytes of memory that wait to be sent.
    pub queue_bytes: usize,
    /// Messages that were not sent, because there was no link, or no room.
    pub dropped: u64,
    pub sent: Traffic,
    pub received: Traffic,
}

/// The links of a server. A cheap handle: clones are of the same links.
#[derive(Clone)]
pub struct Links(Arc<Shared>);

impl Links {
    /// Begins to accept peers. Everything ends when `stop` says so, or when its sender is gone.
    pub fn start(
        runtime: &tokio::runtime::Handle,
        listener: TcpListener,
        me: Me,
        host: Arc<dyn Host>,
        options: LinkOptions,
        stop: watch::Receiver<bool>,
    ) -> Self {
        if options.secret.is_none() {
            tracing::warn!(
                address = ?listener.local_addr().ok(),
                "no cluster secret: who reaches this port can join the cluster; set \
                 clusterSecretFile on all servers"
            );
        }
        let shared = Arc::new(Shared {
            me,
            host,
            secret: options.secret,
            resolver: options.resolver,
            runtime: runtime.clone(),
            presence: Presence::default(),
            notices: Notices::default(),
            peers: Mutex::default(),
            stop,
            alive: watch::Sender::new(()),
        });
        shared.spawn(accept::serve(listener, shared.clone()));
        Self(shared)
    }

    /// Says who the peers are: new ones are dialled, and links to others are closed. This server
    /// itself may be among them, and is left out.
    pub fn set_peers(&self, mut addresses: BTreeMap<u64, Vec<PeerAddress>>) {
        addresses.remove(&self.0.me.server.into());
        let mut peers = self.0.peers.lock();
        peers.retain(|id, peer| {
            let stays = addresses.contains_key(id);
            if !stays {
                peer.gone.send_replace(true);
            }
            stays
        });
        for (id, addresses) in addresses {
            if let Some(peer) = peers.get(&id) {
                peer.set_addresses(addresses);
                continue;
            }
            let Ok(server) = u32::try_from(id) else {
                tracing::error!(server = id, "no server has such an id");
                continue;
            };
            let peer = Arc::new(Peer::new(server, addresses));
            peers.insert(id, peer.clone());
            self.0.spawn(link::keep(self.0.clone(), peer));
        }
    }

    /// Sends a message, if there is a link or one may be up soon. Never blocks; a message that
    /// cannot be sent is dropped and counted.
    pub fn send(&self, to: u64, message: PeerMessage) {
        let Some(peer) = self.0.peer(to) else {
            tracing::debug!(server = to, "a message for a server that is no peer");
            return;
        };
        match queue::is_bulk(&message) {
            true => peer.bulk.push(message),
            false => peer.urgent.push(message),
        }
    }

    pub fn status(&self) -> Vec<LinkStatus> {
        let peers: Vec<_> = self.0.peers.lock().values().cloned().collect();
        let status = |peer: &Arc<Peer>| {
            let id = u64::from(peer.server);
            let (received, is_linked_from) = self.0.presence.of(id);
            let (urgent, bulk) = (peer.urgent.status(), peer.bulk.status());
            let state = peer.state.lock();
            LinkStatus {
                id,
                is_linked: state.is_linked,
                is_linked_from,
                error: state.error.clone(),
                since: state.since,
                address: state.address,
                other: state.other,
                queue_bytes: urgent.0 + bulk.0,
                dropped: urgent.1 + bulk.1,
                sent: peer.sent.get(),
                received,
            }
        };
        peers.iter().map(status).collect()
    }

    /// Returns once everything has ended after a stop: what was queued is sent, if that takes no
    /// longer than half a second.
    pub async fn ended(&self) {
        self.0.alive.closed().await;
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Links")
    }
}

/// What all tasks of the links share.
pub(super) struct Shared {
    pub me: Me,
    pub host: Arc<dyn Host>,
    secret: Option<Secret>,
    resolver: Resolver,
    runtime: tokio::runtime::Handle,
    presence: Presence,
    notices: Notices,
    peers: Mutex<BTreeMap<u64, Arc<Peer>>>,
    stop: watch::Receiver<bool>,
    /// Has a receiver in each task.
    alive: watch::Sender<()>,
}

impl Shared {
    /// Runs a task that [`Links::ended`] waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let alive = self.alive.subscribe();
        self.runtime.spawn(async move {
            task.await;
            drop(alive);
        });
    }

    pub fn peer(&self, id: u64) -> Option<Arc<Peer>> {
        self.peers.lock().get(&id).cloned()
    }

    /// This server as it is now.
    fn introduction_to(&self, other: u32) -> Introduction {
        let Me {
            server,
            disk,
            boot,
            level,
        } = self.me;
        Introduction {
            server,
            disk,
            boot,
            level,
            cluster: self.host.cluster(),
            formed: self.host.is_formed(),
            knows: self.host.knows(other),
        }
    }

    /// Whether this server may be connected.
    fn vet(&self, other: &Introduction) -> Result<(), String> {
        let me = self.introduction_to(0);
        if other.server == me.server {
            return Err(format!(
                "both sides are server {}: give one of them another myid",
                me.server
            ));
        }
        if is_of_other_cluster(&me, other) {
            return Err(format!(
                "server {} is of cluster {:016x}, and server {} is of cluster {:016x}: correct the \
                 server.N lines; or, if a server with the data of another cluster is to join this \
                 one, empty its data and log directories",
                me.server, me.cluster, other.server, other.cluster
            ));
        }
        self.presence.check(other)?;
        self.host.admit(other)
    }
}

fn is_of_other_cluster(me: &Introduction, other: &Introduction) -> bool {
    me.cluster != 0 && other.cluster != 0 && me.cluster != other.cluster
}

/// Returns once all is to end.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A server that is dialled.
pub(super) struct Peer {
    pub server: u32,
    addresses: Mutex<Vec<PeerAddress>>,
    /// What names meant when they last resolved.
    known: Mutex<BTreeMap<PeerAddress, Vec<SocketAddr>>>,
    urgent: Queue,
    bulk: Queue,
    call: Call,
    gone: watch::Sender<bool>,
    state: Mutex<LinkState>,
    sent: Count,
}

struct LinkState {
    is_linked: bool,
    since: Instant,
    error: Option<String>,
    address: Option<SocketAddr>,
    other: Option<Introduction>,
}

impl Peer {
    fn new(server: u32, addresses: Vec<PeerAddress>) -> Self {
        Self {
            server,
            addresses: Mutex::new(addresses),
            known: Mutex::default(),
            urgent: queue::urgent(),
            bulk: queue::bulk(),
            call: Call::default(),
            gone: watch::Sender::new(false),
            state: Mutex::new(LinkState {
                is_linked: false,
                since: Instant::now(),
                error: None,
                address: None,
                other: None,
            }),
            sent: Count::default(),
        }
    }

    /// An existing link stays; a peer that is not linked is dialled there at once.
    fn set_addresses(&self, addresses: Vec<PeerAddress>) {
        let mut current = self.addresses.lock();
        if *current != addresses {
            *current = addresses;
            self.call.now();
        }
    }
}

/// Calls the task that keeps a link.
#[derive(Debug, Default)]
struct Call {
    called: Notify,
    doubtful: AtomicBool,
}

impl Call {
    /// The peer is likely there: dial it now, if it is not linked.
    fn now(&self) {
        self.called.notify_one();
    }

    /// The peer may be gone: if it is linked, see whether it still listens.
    fn in_doubt(&self) {
        self.doubtful.store(true, Ordering::Release);
        self.called.notify_one();
    }

    fn is_in_doubt(&self) -> bool {
        self.doubtful.swap(false, Ordering::Acquire)
    }
}

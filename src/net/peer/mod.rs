//! Links between the servers of a cluster.
//!
//! ```text
//! handshake  who is at the other end, proved by the secret     secret    that proof
//! dial       to a peer, by all its addresses                   resolve   names, each time anew
//! link       both lanes to a peer, kept up                     queue     what waits for them, and
//!                                                                        who writes it
//! accept     what peers dialled                                presence  who is connected
//! frame      bytes ↔ frames                                    notice    log lines, not too many
//! host       what links need of their server               vet       who may be connected
//! ```
//!
//! Each server dials every other one and sends over the connections that it dialled itself, so
//! none has to be agreed upon. There are two: one TCP connection for what must not wait (votes,
//! heartbeats, touches), one for what may be large. What is sent over both may arrive in any
//! order, more than once (after a link broke: not at all), and the engine is made for that.
//!
//! Snapshots travel on connections of their own: see `net/transfer`.

mod accept;
mod dial;
pub mod frame;
pub(super) mod handshake;
mod host;
mod link;
pub(super) mod notice;
mod presence;
mod queue;
mod resolve;
mod secret;
#[cfg(test)]
mod tests;
mod vet;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use crate::engine::PeerMessage;
use crate::net::transfer;

pub use crate::proto::peer::{Introduction, Told};

pub use self::handshake::version_of;
pub use self::host::Host;
pub use self::resolve::{PeerAddress, Resolver, listen};
pub use self::secret::{Secret, SecretError};
pub use self::vet::{Seen, is_of_other_cluster, vet};

use self::notice::Notices;
use self::presence::Presence;
use self::queue::Queue;
use self::resolve::Names;

/// How links are kept.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// What proves that servers belong together.
    pub secret: Option<Secret>,
    pub resolver: Resolver,
    /// At which rate snapshots are sent, all together; 0 is as fast as can be.
    pub snapshot_bytes_per_second: u64,
    /// How long a snapshot is tried to be sent without getting on.
    pub snapshot_patience: Duration,
    /// How long the links of a server that is removed stay: over them it hears that the entry is
    /// committed which removes it, and so can answer whoever asked for that.
    pub farewell: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            secret: None,
            resolver: Resolver::system(),
            snapshot_bytes_per_second: 64 << 20,
            snapshot_patience: Duration::from_secs(60),
            farewell: Duration::from_millis(200),
        }
    }
}

/// What went over a link.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traffic {
    pub frames: u64,
    pub bytes: u64,
}

impl Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            frames: self.frames + other.frames,
            bytes: self.bytes + other.bytes,
        }
    }
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
    /// Begins to accept peers. Of `me`, what `host` knows better is left to it. Everything ends
    /// when `stop` says so, or when its sender is gone.
    pub fn start(
        runtime: &tokio::runtime::Handle,
        listener: TcpListener,
        me: Introduction,
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
            farewell: options.farewell,
            alive: watch::Sender::new(()),
            transfers: transfer::Transfers::new(
                options.snapshot_bytes_per_second,
                options.snapshot_patience,
            ),
        });
        shared.spawn(accept::serve(listener, shared.clone()));
        Self(shared)
    }

    /// Says who the peers are: new ones are dialled, and links to others are closed after
    /// [`LinkOptions::farewell`], as are theirs to this one: a server that was removed dials again,
    /// is refused, and hears of its removal. This server itself may be among them, and is left out.
    /// Waits for nothing: what says so may have come over one of the links that end.
    pub fn set_peers(&self, mut addresses: BTreeMap<u64, Vec<PeerAddress>>) {
        addresses.remove(&self.0.me.server.into());
        let mut peers = self.0.peers.lock();
        let Peers { members, leaving } = &mut *peers;
        let gone = members.extract_if(.., |id, _| !addresses.contains_key(id));
        for (id, peer) in gone {
            leaving.insert(id, peer.clone());
            self.0.spawn(part(self.0.clone(), peer));
        }
        for (id, addresses) in addresses {
            // If it left only just now, its links are still there.
            members.extend(leaving.remove_entry(&id));
            if let Some(peer) = members.get(&id) {
                peer.set_addresses(addresses);
                continue;
            }
            let Ok(server) = u32::try_from(id) else {
                tracing::error!(server = id, "no server has such an id");
                continue;
            };
            let peer = Arc::new(Peer::new(server, addresses));
            members.insert(id, peer.clone());
            self.0.spawn(link::keep(self.0.clone(), peer));
        }
        self.0.presence.keep(|id| peers.get(id).is_some());
    }

    /// Sends messages, if there is a link or one may be up soon. Never blocks; a message that
    /// cannot be sent is dropped and counted.
    pub fn send(&self, messages: impl IntoIterator<Item = (u64, PeerMessage)>) {
        let mut filled = BTreeMap::new();
        for (to, message) in messages {
            let Some(peer) = self.0.peer(to) else {
                tracing::debug!(server = to, "a message for a server that is no peer");
                continue;
            };
            let is_bulk = queue::is_bulk(&message);
            peer.lane(is_bulk).push(message);
            filled.insert((to, is_bulk), peer);
        }
        for ((_, is_bulk), peer) in filled {
            let me = self.0.introduction_to(peer.server);
            peer.lane(is_bulk).send(&me);
        }
    }

    /// Sends a snapshot; [`Host::snapshot_sent`] tells how that ended. Never blocks. Waits for its
    /// turn: two snapshots are sent at a time, but one only to each server.
    pub fn send_snapshot(&self, to: u64, index: u64, term: u64) {
        let shared = self.0.clone();
        self.0.spawn(async move {
            let is_stored = transfer::send(&shared, to, index, term).await;
            shared.host.snapshot_sent(to, is_stored);
        });
    }

    pub fn status(&self) -> Vec<LinkStatus> {
        let peers: Vec<_> = self.0.peers.lock().members.values().cloned().collect();
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
                sent: peer.urgent.sent() + peer.bulk.sent(),
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
    me: Introduction,
    pub host: Arc<dyn Host>,
    pub transfers: transfer::Transfers,
    secret: Option<Secret>,
    resolver: Resolver,
    runtime: tokio::runtime::Handle,
    presence: Presence,
    notices: Notices,
    peers: Mutex<Peers>,
    pub stop: watch::Receiver<bool>,
    farewell: Duration,
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

    /// Whoever may be sent something: a peer, or one that is just leaving.
    pub fn peer(&self, id: u64) -> Option<Arc<Peer>> {
        self.peers.lock().get(id).cloned()
    }

    /// This server as it is now.
    fn introduction_to(&self, other: u32) -> Introduction {
        Introduction {
            cluster: self.host.cluster(),
            formed: self.host.is_formed(),
            aware: self.host.is_aware(),
            knows: self.host.knows(other),
            ..self.me
        }
    }

    /// Whether this server, which tells this, may be connected.
    fn vet(&self, other: &Introduction, told: &Told) -> Result<(), String> {
        let me = self.introduction_to(0);
        vet::vet(&me, other, self.presence.seen(other.server))?;
        self.host.admit(other, told)
    }
}

/// The servers that are dialled.
#[derive(Default)]
struct Peers {
    members: BTreeMap<u64, Arc<Peer>>,
    /// Those that are no peers any more: see [`LinkOptions::farewell`].
    leaving: BTreeMap<u64, Arc<Peer>>,
}

impl Peers {
    fn get(&self, id: u64) -> Option<&Arc<Peer>> {
        self.members.get(&id).or_else(|| self.leaving.get(&id))
    }
}

/// Ends the links of a server that is no peer any more, unless it is one again by then.
async fn part(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut stop = shared.stop.clone();
    tokio::select! {
        () = tokio::time::sleep(shared.farewell) => {}
        () = stopped(&mut stop) => {}
    }
    let id = u64::from(peer.server);
    let mut peers = shared.peers.lock();
    let leaves = peers.leaving.get(&id);
    if leaves.is_some_and(|leaving| Arc::ptr_eq(leaving, &peer)) {
        peers.leaving.remove(&id);
        peer.gone.send_replace(true);
        shared.presence.keep(|id| peers.get(id).is_some());
    }
}

/// Returns once all is to end.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A server that is dialled.
pub(super) struct Peer {
    pub server: u32,
    addresses: Mutex<Vec<PeerAddress>>,
    names: Arc<Names>,
    urgent: Queue,
    bulk: Queue,
    call: Call,
    gone: watch::Sender<bool>,
    state: Mutex<LinkState>,
    /// Held by the transfer of a snapshot to it.
    pub transfer: tokio::sync::Mutex<()>,
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
            names: Arc::default(),
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
            transfer: tokio::sync::Mutex::default(),
        }
    }

    /// What waits for it in one of the lanes.
    fn lane(&self, is_bulk: bool) -> &Queue {
        match is_bulk {
            true => &self.bulk,
            false => &self.urgent,
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

/// Knows when there is to be no connection to a peer any more.
pub(super) struct Over {
    stop: watch::Receiver<bool>,
    gone: watch::Receiver<bool>,
}

impl Over {
    pub fn of(shared: &Shared, peer: &Peer) -> Self {
        Self {
            stop: shared.stop.clone(),
            gone: peer.gone.subscribe(),
        }
    }

    pub async fn wait(&mut self) {
        tokio::select! {
            () = stopped(&mut self.stop) => {}
            () = stopped(&mut self.gone) => {}
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

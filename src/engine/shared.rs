//! What connections and the node thread share: the state, the registry, the inbox.
//!
//! The state is written by the node thread alone and read by every connection's task. Connections
//! hand their commands to the node thread through the inbox; it never blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::machine::{Ensemble, Machine, OriginId};
use crate::metrics::Metrics;
use crate::proto::log;
use crate::proto::peer::Told;
use crate::watch::{ConnectionId, Watches};
use crate::wire::SessionId;

use super::Options;
use super::acquaintance::Acquaintance;
use super::connection::{Connection, News, Wake, is_write};
use super::lease;
use super::local::LocalSessions;
use super::members::{CLUSTER_SETTING, Introduction};
use super::outbox::Unsent;
use super::status::Status;

/// Clients whose adjusted timeout is remembered, so that it is logged once.
const CLAMPED_MAX: usize = 1_000;

/// Watched paths of a connection that are forgotten in one go.
const FORGOTTEN_AT_ONCE: usize = 500;

/// Sixteen unpredictable bytes, for session passwords.
pub type Entropy = Box<dyn Fn() -> [u8; 16] + Send + Sync>;

/// What connections ask of the node thread.
#[derive(Debug)]
pub enum Submission {
    /// A handshake.
    Connect(Arc<Connection>, log::Command),
    /// A write, already in its place in the connection's pipeline.
    Write(Arc<Connection>, log::Command),
    /// The session of this connection goes over into the log.
    Upgrade(Arc<Connection>, log::Command),
    /// A command that no one waits for.
    Silent(log::Command),
    /// A `sync`, already in its place in the connection's pipeline.
    Barrier(Arc<Connection>),
}

impl Submission {
    /// Bytes of its command's body.
    fn bytes(&self) -> usize {
        match self {
            Self::Connect(_, command)
            | Self::Write(_, command)
            | Self::Upgrade(_, command)
            | Self::Silent(command) => command.body.len(),
            Self::Barrier(_) => 0,
        }
    }
}

/// Why a server is not connected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotAdmitted {
    /// Its version knows no level as high as that of the ensemble.
    TooOld { level: u32 },
    /// It is not one of the ensemble.
    NoMember,
    /// It is known by another disk: [`super::Event::Stranger`] tells the engine.
    OtherDisk { bound: u64 },
}

pub struct Shared {
    pub state: RwLock<State>,
    pub options: Options,
    /// What waits to be sent to clients.
    pub unsent: Arc<Unsent>,
    pub(super) random: Entropy,
    pub(super) registry: Mutex<Registry>,
    /// Sessions that no other server knows. Locked last of all.
    pub(super) local: Mutex<LocalSessions>,
    inbox: Mutex<Vec<Submission>>,
    /// How often the node has emptied the inbox.
    takes: AtomicU64,
    /// The inbox has something that the node was not told of.
    unannounced: AtomicBool,
    wake_node: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Handshakes that wait until this server has caught up with their client.
    behind: Mutex<Vec<Arc<Connection>>>,
    /// When sessions were last heard on connections that are gone since. A client that spoke just
    /// before its connection broke has its full timeout from then on (§8.3).
    touched: Mutex<Vec<(SessionId, u64)>>,
    serving: AtomicBool,
    read_only: AtomicBool,
    /// When the newest confirmed touch was sent (see [`super::lease`]), in ms of the engine's
    /// clock; for ever while this server alone decides.
    confirmed_ms: AtomicU64,
    /// Some connection was not answered, because that is too long ago.
    held: AtomicBool,
    pending_writes: AtomicUsize,
    pending_bytes: AtomicUsize,
    next_connection: AtomicU64,
    session_prefix: u64,
    next_session: AtomicU32,
    /// Clients that were told of an adjusted timeout.
    clamped: Mutex<BTreeSet<(IpAddr, i32)>>,
    pub(super) status: Mutex<Status>,
    formed: AtomicBool,
    aware: AtomicBool,
    cluster: AtomicU64,
    level: AtomicU32,
    /// Random number of this server's directory.
    disk: u64,
    /// Locked behind the state, if both are.
    pub(super) acquaintance: Mutex<Acquaintance>,
    /// Servers that do not belong to the ensemble any more, and are needed until a change of
    /// membership is through.
    going: Mutex<Vec<u64>>,
    pub metrics: Arc<Metrics>,
}

/// The replicated state of this server and what hangs on it.
pub struct State {
    pub machine: Machine,
    pub watches: Mutex<Watches>,
}

/// The connections of this server, and which of them holds which session.
#[derive(Debug, Default)]
pub struct Registry {
    pub connections: BTreeMap<ConnectionId, Arc<Connection>>,
    pub sessions: BTreeMap<SessionId, Arc<Connection>>,
}

impl Shared {
    pub(super) fn new(
        machine: Machine,
        options: Options,
        random: Entropy,
        origin: OriginId,
    ) -> Self {
        let metrics = options.metrics.clone();
        let local = LocalSessions::new(options.session_tick_ms, options.tick_ms);
        Self {
            state: RwLock::new(State {
                machine,
                watches: Mutex::new(Watches::new(options.watches)),
            }),
            unsent: Arc::new(Unsent::new(options.unsent_bytes_max)),
            options,
            random,
            registry: Mutex::default(),
            local: Mutex::new(local),
            inbox: Mutex::default(),
            takes: AtomicU64::new(0),
            unannounced: AtomicBool::new(false),
            wake_node: OnceLock::new(),
            behind: Mutex::default(),
            touched: Mutex::default(),
            serving: AtomicBool::new(false),
            read_only: AtomicBool::new(false),
            confirmed_ms: AtomicU64::new(0),
            held: AtomicBool::new(false),
            pending_writes: AtomicUsize::new(0),
            pending_bytes: AtomicUsize::new(0),
            next_connection: AtomicU64::new(1),
            session_prefix: session_prefix(origin),
            next_session: AtomicU32::new(0),
            clamped: Mutex::default(),
            status: Mutex::default(),
            formed: AtomicBool::new(false),
            aware: AtomicBool::new(false),
            cluster: AtomicU64::new(0),
            level: AtomicU32::new(0),
            disk: origin.disk,
            acquaintance: Mutex::default(),
            going: Mutex::default(),
            metrics,
        }
    }

    /// Says how the node thread is told that there is something to do. Called once.
    pub fn on_submission(&self, wake: Box<dyn Fn() + Send + Sync>) {
        let set = self.wake_node.set(wake);
        assert!(set.is_ok(), "the node thread registers once");
    }

    /// Opens a connection.
    pub fn connect(self: &Arc<Self>, peer: SocketAddr, wake: Wake) -> Arc<Connection> {
        let id = ConnectionId(self.next_connection.fetch_add(1, Ordering::Relaxed));
        let connection = Arc::new(Connection::new(id, peer, self.clone(), wake));
        self.registry
            .lock()
            .connections
            .insert(id, connection.clone());
        connection
    }

    /// Whether clients are served: there is a leader, and this server has caught up with it.
    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    pub(super) fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Release);
    }

    /// Whether only read-only clients are served, for want of a majority.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire) && !self.is_serving()
    }

    /// Returns what was set before, whether it counted or not: it does not while all are served.
    pub(super) fn set_read_only(&self, read_only: bool) -> bool {
        self.read_only.swap(read_only, Ordering::AcqRel)
    }

    /// Sessions that no other server knows, with their timeouts in ms.
    pub fn local_sessions(&self) -> Vec<(SessionId, i32)> {
        self.local.lock().timeouts_ms().collect()
    }

    /// How many those are.
    pub fn local_session_count(&self) -> usize {
        self.local.lock().len()
    }

    /// Whether a session with this timeout may be answered now, or whether the majority may be
    /// about to end it without this server's knowledge. Whoever may not is woken when it may.
    pub fn may_answer(&self, timeout_ms: i32, now_ms: u64) -> bool {
        self.may_answer_for(lease::answered_for_ms(timeout_ms), now_ms)
    }

    /// Whether the last word of a majority is not older than this, in ms.
    pub(super) fn may_answer_for(&self, ms: u64, now_ms: u64) -> bool {
        let may = || now_ms <= self.confirmed_ms().saturating_add(ms);
        if may() {
            return true;
        }
        // Said before looking again: who brings the news looks for it afterwards.
        self.held.store(true, Ordering::SeqCst);
        may()
    }

    /// Whether somebody was held since the last call.
    pub(super) fn take_held(&self) -> bool {
        self.held.load(Ordering::SeqCst) && self.held.swap(false, Ordering::SeqCst)
    }

    /// When the newest confirmed touch was sent, in ms of the engine's clock; for ever while this
    /// server alone decides.
    pub fn confirmed_ms(&self) -> u64 {
        self.confirmed_ms.load(Ordering::SeqCst)
    }

    pub(super) fn set_confirmed_ms(&self, confirmed_ms: u64) {
        self.confirmed_ms.store(confirmed_ms, Ordering::SeqCst);
    }

    /// This server's part in its ensemble.
    pub fn status(&self) -> Status {
        self.status.lock().clone()
    }

    /// Whether this server's log ever had an entry.
    pub fn is_formed(&self) -> bool {
        self.formed.load(Ordering::Acquire)
    }

    pub(super) fn set_formed(&self, formed: bool) {
        self.formed.store(formed, Ordering::Release);
    }

    /// Whether this server knows that there is a cluster: it has a log, or has met a server that
    /// knows it since it was started.
    pub fn is_aware(&self) -> bool {
        self.is_formed() || self.aware.load(Ordering::Acquire)
    }

    /// Another server says this of itself, whatever comes of that.
    pub(super) fn met(&self, other: &Introduction) {
        // The first builds do not say whether they are aware.
        if other.aware || other.formed || other.cluster != 0 {
            self.aware.store(true, Ordering::Release);
        }
    }

    /// The cluster's random number; 0 while it has none, or none that is known here.
    pub fn cluster(&self) -> u64 {
        self.cluster.load(Ordering::Acquire)
    }

    /// Whether a server is one of the ensemble, as far as that is known here.
    pub fn is_member(&self, server: u32) -> bool {
        let newest = self.newest_ensemble();
        newest.is_none_or(|ensemble| ensemble.members().iter().any(|line| line.id == server))
            || self.going.lock().contains(&u64::from(server))
    }

    /// The newest ensemble that is known here, applied or only told of.
    pub fn newest_ensemble(&self) -> Option<Ensemble> {
        let state = self.state.read();
        self.acquaintance.lock().ensemble(state.machine.ensemble())
    }

    /// What other servers are told when they meet this one.
    pub fn tell(&self) -> Told {
        let ensemble = self.newest_ensemble();
        let going = self.going.lock().clone();
        self.acquaintance.lock().tell(ensemble.as_ref(), &going)
    }

    /// Servers that are members until a change is through.
    pub(super) fn set_going(&self, going: Vec<u64>) {
        *self.going.lock() = going;
    }

    /// Another server says who the servers are. It is believed if it is of the same cluster, or
    /// holds this disk to be that of this server, which may be new; and then others of its cluster
    /// are too: this server may be removed and added again before it has anything of its own.
    pub fn learn(&self, other: &Introduction, told: &Told) {
        self.met(other);
        let mut acquaintance = self.acquaintance.lock();
        let known = [self.cluster(), acquaintance.cluster()];
        let is_same = other.cluster != 0 && known.contains(&other.cluster);
        if is_same || (other.knows != 0 && other.knows == self.disk) {
            acquaintance.learn(other.cluster, told);
        }
    }

    /// Whether a server that says this of itself may be connected.
    ///
    /// # Errors
    /// It is too old, does not belong to the ensemble, or must come with another disk.
    pub fn admit(&self, other: &Introduction) -> Result<(), NotAdmitted> {
        let level = self.level();
        if other.level < level {
            return Err(NotAdmitted::TooOld { level });
        }
        if !self.is_member(other.server) {
            return Err(NotAdmitted::NoMember);
        }
        match self.bound_disk(other.server) {
            bound if bound == 0 || bound == other.disk => Ok(()),
            bound => Err(NotAdmitted::OtherDisk { bound }),
        }
    }

    /// The disk that a server must come with; 0: that is not known here.
    pub fn bound_disk(&self, server: u32) -> u64 {
        self.acquaintance.lock().disk(server)
    }

    /// Whether that is known not to be the first one that it came with.
    pub(super) fn has_other_disk(&self, server: u64) -> bool {
        let server = u32::try_from(server);
        server.is_ok_and(|server| self.acquaintance.lock().has_other_disk(server))
    }

    /// The feature level that a server must know to be let in.
    pub fn level(&self) -> u32 {
        self.level.load(Ordering::Acquire)
    }

    /// Takes what others are told of this server from the state, so that they need not wait for it.
    pub(super) fn update_introduction(&self) {
        let state = self.state.read();
        let of = |name: &str| state.machine.setting(name) as u64;
        self.cluster.store(of(CLUSTER_SETTING), Ordering::Release);
        self.level.store(state.machine.level(), Ordering::Release);
        self.acquaintance.lock().apply(&state.machine);
    }

    /// The connections of this server, in the order they came.
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.registry.lock().connections.values().cloned().collect()
    }

    /// Closes the connections of which this is true, but those of clients that did not ask for a
    /// session yet.
    pub(super) fn close_where(&self, is_over: impl Fn(&Connection) -> bool) {
        for connection in self.connections() {
            if is_over(&connection) && !connection.awaits_handshake() && connection.finish() {
                connection.wake(News::OfMany);
            }
        }
    }

    /// How many connections there are.
    pub fn connection_count(&self) -> usize {
        self.registry.lock().connections.len()
    }

    /// Writes that were read and are not applied yet.
    pub fn outstanding(&self) -> usize {
        self.pending_writes.load(Ordering::Relaxed)
    }

    pub(super) fn is_flooded(&self) -> bool {
        self.outstanding() >= self.options.outstanding_max
            || self.pending_bytes.load(Ordering::Relaxed) >= self.options.outstanding_bytes_max
    }

    /// Puts something into the inbox. Locks may be held; [`Self::announce`] must follow.
    pub(super) fn submit(&self, submissions: impl IntoIterator<Item = Submission>) {
        let mut inbox = self.inbox.lock();
        let before = inbox.len();
        inbox.extend(submissions);
        let bytes = inbox[before..].iter().map(Submission::bytes).sum();
        let count = inbox.len() - before;
        self.pending_writes.fetch_add(count, Ordering::Relaxed);
        self.pending_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before == 0 && count > 0 {
            self.unannounced.store(true, Ordering::Release);
        }
    }

    /// Tells the node of what was submitted. It may take it in here and now, so the caller must
    /// hold no lock.
    pub(super) fn announce(&self) {
        if self.unannounced.load(Ordering::Acquire)
            && self.unannounced.swap(false, Ordering::AcqRel)
            && let Some(wake) = self.wake_node.get()
        {
            wake();
        }
    }

    pub(super) fn take_submissions(&self) -> Vec<Submission> {
        let mut inbox = self.inbox.lock();
        if !inbox.is_empty() {
            self.takes.fetch_add(1, Ordering::SeqCst);
        }
        std::mem::take(&mut *inbox)
    }

    /// How often the inbox was emptied. What was submitted since then waits in it still, so no
    /// round that it asks for has begun.
    pub(super) fn takes(&self) -> u64 {
        self.takes.load(Ordering::SeqCst)
    }

    /// Whether a read that comes now must wait for a round before it sees what was answered to
    /// others. A server that alone decides has applied all of that: whoever else could answer
    /// hears from it first, after the end of the turn in which it applies.
    pub(super) fn is_fenced(&self) -> bool {
        self.options.linearizable_reads && self.confirmed_ms() != u64::MAX
    }

    /// Forgets every connection: the engine is gone.
    pub(super) fn let_go(&self) {
        let mut registry = self.registry.lock();
        let (connections, sessions) = (
            std::mem::take(&mut registry.connections),
            std::mem::take(&mut registry.sessions),
        );
        drop(registry);
        let (inbox, behind) = (
            std::mem::take(&mut *self.inbox.lock()),
            std::mem::take(&mut *self.behind.lock()),
        );
        // Outside of the locks: dropping a connection may drop what it waits for.
        let local = self.local.lock().end_all();
        drop((connections, sessions, inbox, behind, local));
    }

    /// Whether commands wait for the node thread.
    pub fn has_submissions(&self) -> bool {
        !self.inbox.lock().is_empty()
    }

    /// A submission is dealt with; `bytes`: of its command's body.
    pub(super) fn submission_done(&self, bytes: usize) {
        self.pending_writes.fetch_sub(1, Ordering::Relaxed);
        self.pending_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn next_session(&self) -> SessionId {
        let counter = self.next_session.fetch_add(1, Ordering::Relaxed);
        SessionId((self.session_prefix | u64::from(counter)) as i64)
    }

    pub(super) fn wait_behind(&self, connection: Arc<Connection>) {
        self.behind.lock().push(connection);
    }

    /// Looks after the handshakes whose client is ahead of this server.
    pub(super) fn retry_behind(&self, now_ms: u64) {
        let waiting = std::mem::take(&mut *self.behind.lock());
        if waiting.is_empty() {
            return;
        }
        let applied = self.state.read().machine.zxid();
        let still: Vec<_> = waiting
            .into_iter()
            .filter(|c| !c.retry_connect(applied, now_ms))
            .collect();
        self.behind.lock().extend(still);
    }

    /// Removes some watches of a connection that is gone. True: there are more.
    pub(super) fn forget_watches(&self, connection: &Connection) -> bool {
        let state = self.state.read();
        let mut watches = state.watches.lock();
        watches.forget(connection.id(), FORGOTTEN_AT_ONCE)
    }

    /// A connection is gone: nothing is told to it any more.
    pub(super) fn disconnect(&self, connection: &Connection) {
        let mut registry = self.registry.lock();
        registry.connections.remove(&connection.id());
        let session = SessionId(connection.stats.session.load(Ordering::Relaxed));
        if registry
            .sessions
            .get(&session)
            .is_some_and(|held| held.id() == connection.id())
        {
            registry.sessions.remove(&session);
            let heard_ms = connection.stats.heard_ms.load(Ordering::Relaxed);
            self.touched.lock().push((session, heard_ms));
        } else {
            let heard_ms = connection.stats.heard_ms.load(Ordering::Relaxed);
            self.local.lock().lost(session, connection.id(), heard_ms);
        }
    }

    /// Sessions of connections that are gone since the last call, and when they were last heard.
    pub(super) fn take_touched(&self) -> Vec<(SessionId, u64)> {
        std::mem::take(&mut *self.touched.lock())
    }

    pub(super) fn note_latency(&self, opcode: i32, latency_ms: u64) {
        let write = is_write(opcode);
        self.metrics.request_latency.note(latency_ms);
        let metrics = &self.metrics;
        let histogram = if write {
            &metrics.updatelatency
        } else {
            &metrics.readlatency
        };
        histogram.note(latency_ms);
    }

    /// A client got another timeout than it asked for: worth a line, since its failover depends
    /// on it, but one per address.
    pub(super) fn note_timeout(&self, peer: SocketAddr, asked_ms: i32, given_ms: i32) {
        if asked_ms == given_ms {
            return;
        }
        let mut clamped = self.clamped.lock();
        let known = clamped.contains(&(peer.ip(), asked_ms));
        if !known && clamped.len() < CLAMPED_MAX {
            clamped.insert((peer.ip(), asked_ms));
            tracing::info!(
                client = %peer.ip(), asked_ms, given_ms,
                "session timeout adjusted to minSessionTimeout..maxSessionTimeout"
            );
        }
    }
}

/// What all session ids of one start have in common; a counter of 32 bits follows.
///
/// The server is in the top byte, then comes the number of the start, counted from a random one for
/// each disk: a server that lost its disk counts its starts anew, while sessions of before live on.
fn session_prefix(origin: OriginId) -> u64 {
    let start = origin.disk.wrapping_add(origin.incarnation) & 0xff_ffff;
    (u64::from(origin.server) << 56) | (start << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_start_has_the_session_ids_of_another_one_even_of_a_lost_disk() {
        let prefix = |disk, incarnation| {
            session_prefix(OriginId {
                server: 3,
                disk,
                incarnation,
            })
        };
        let starts = [
            prefix(0xabcd_1234_5678, 1),
            prefix(0xabcd_1234_5678, 2),
            prefix(0xabcd_9876_5432, 1),
            prefix(u64::MAX, 1),
        ];
        for (number, start) in starts.iter().enumerate() {
            assert_eq!(start >> 56, 3, "the server is in the top byte");
            assert_eq!(start & 0xffff_ffff, 0, "there is room for the counter");
            assert!(!starts[..number].contains(start));
        }
    }
}

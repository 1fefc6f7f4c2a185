//! One server's brain: consensus, order, sessions. Pure.
//!
//! Events go in ([`Engine::handle`], and the commands of connections through [`Shared`]'s inbox),
//! [`Engine::turn`] says what must now be done. No clock, socket, file, thread or randomness: time
//! and entropy are arguments. The node drives it, and so does the simulator.
//!
//! The way of a write: a connection submits a command → [`forward`] numbers it in this server's
//! stream → the leader proposes an entry → [`replica`] hands it to the log → once it is durable it
//! is committed and applied to the machine under the write lock → watches fire into outboxes, the
//! reply follows, then the reads that stood behind the write.

mod acquaintance;
mod agreement;
pub mod auth;
pub mod barrier;
mod bounds;
mod catch_up;
pub mod connection;
pub mod entry;
pub mod expiry;
pub mod forward;
pub mod large;
pub mod lease;
pub mod level;
pub mod local;
pub mod log;
pub mod members;
pub mod outbox;
pub mod peer;
pub mod pipeline;
mod read_only;
mod reconcile;
mod recover;
pub mod replica;
pub mod shared;
pub mod status;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use raft::eraftpb::{Entry, EntryType, MessageType};

use crate::machine::{
    Attached, Change, CommandId, Ensemble, FEATURE_LEVEL, Image, LogId, Machine, OriginId, Outcome,
    Sink,
};
use crate::metrics::Metrics;
use crate::proto;
use crate::watch::{FilterOn, WatchLimits, Watches};
use crate::wire::{ServerLine, SessionId, Text, WatcherEvent, op, perms};

pub use agreement::Divergence;
pub use auth::AuthOptions;
pub use connection::{Connection, News, Refused, Wake};
pub use level::Outdated;
pub use log::LogKept;
pub use members::Introduction;
pub use outbox::Remaining;
pub use peer::PeerMessage;
pub use recover::{Alone, Survivor, SurvivorFacts, Unfit};
pub use replica::Append;
pub use shared::{Entropy, NotAdmitted, Shared, State};
pub use status::{PeerStatus, Role, SYNCED_WITHIN, Status};

use agreement::Agreement;
use barrier::{Barrier, Purpose};
use expiry::{Expiry, Telling};
use forward::{Forward, Inbound, Waiter, is_reconfig};
use lease::Lease;
use level::Levels;
use log::MemLog;
use members::{CLUSTER_SETTING, Failover, Standing};
use reconcile::Target;
use replica::{Replica, Turn};
use shared::{Registry, Submission};

/// Commands applied under one hold of the write lock, so that readers are not kept for long.
const COMMANDS_PER_SLICE: usize = 1_024;
/// So many connections are sent their output by the thread that applies commands, which takes some
/// 10 µs each. If there are more, the next commands wait less if the connections' tasks do it.
const SENT_AT_ONCE: usize = 2;
/// Sessions whose end is proposed in one tick: a storm must not delay everyone's pings.
const EXPIRIES_PER_TICK: usize = 1_000;
/// Log bytes since the last snapshot that call for another, at least.
const SNAPSHOT_BYTES_MIN: u64 = 64 << 20;
/// How long nothing is written before a quarter of `snapCount` is enough for a snapshot.
const SNAPSHOT_IDLE_MS: u64 = 3_000;
/// How long writes are gathered for the next entry while one is on its way, in ms. An entry costs
/// all servers about the same for one write as for many, and is mostly through sooner than that.
/// Where the way to the others is long, nobody is to wait for it twice. (A server that decides
/// alone has only its disk to wait for, and the log gathers what comes meanwhile.)
const GATHER_MS: u64 = 2;
/// How often the leader is told who was heard, in ms, unless sessions are so short that it must be
/// more often: lost touches must not make a server fall silent.
const TOUCH_MS: u64 = 200;
/// What a connection's task has heard is noted within this time, in ms.
const NOTED_WITHIN_MS: u64 = 1_000;
/// Touches in a third of the shortest timeout, at least.
const TOUCHES_PER_THIRD: u64 = 4;
/// The lower bits of an incarnation count how often the stream of writes began anew since the
/// start.
const ANEW_BITS: u32 = 16;
/// About what a znode takes in an image besides its path and data.
const ZNODE_BYTES: u64 = 100;

/// What the engine is told when it is made. All times in ms.
#[derive(Clone, Debug)]
pub struct Options {
    /// Time between two [`Event::Tick`]s. Heartbeats and election timeouts count in these.
    pub tick_ms: u64,
    /// `tickTime`: length of an expiry bucket (§8.2).
    pub session_tick_ms: u64,
    pub min_session_timeout_ms: i32,
    pub max_session_timeout_ms: i32,
    /// `snapCount`: transactions between two snapshots, unless the log since the last one is
    /// still smaller than that snapshot, which would make snapshots the server's main work.
    pub snap_count: u64,
    /// Unanswered writes of the whole server above which connections that wait already are not
    /// read any more (`globalOutstandingLimit`).
    pub outstanding_max: usize,
    /// The same for the bytes of unanswered writes: while the disk stalls, they are in memory.
    pub outstanding_bytes_max: usize,
    /// Bytes of replies and events that may wait to be sent, in all (see [`outbox::Unsent`]).
    pub unsent_bytes_max: usize,
    pub watches: WatchLimits,
    /// Sessions at which this server makes no new ones; 0 is unlimited.
    pub sessions_max: usize,
    /// `initLimit` in ms: how long the log that follows a snapshot is kept for a server that has
    /// got it and must load it.
    pub init_limit_ms: u64,
    /// Entries between two digests of the state that the servers compare.
    pub compare_every: u64,
    /// `syncLimit` in ms: how long a server without a majority keeps its clients' connections.
    pub sync_limit_ms: u64,
    /// `linearizableReads`: every read sees all that was answered to anyone before it came.
    pub linearizable_reads: bool,
    /// `localSessionsEnabled`: new sessions are this server's own, and in no log (see [`local`]).
    pub local_sessions: bool,
    /// `localSessionsUpgradingEnabled`: they go over into the log when they make an ephemeral.
    pub local_session_upgrades: bool,
    /// `readonlymode.enabled`: how long no leader is heard of, in ms, before clients that asked for
    /// no more may read what is here.
    pub read_only_after_ms: Option<u64>,
    pub cleaner: CleanerOptions,
    pub auth: AuthOptions,
    pub log_kept: LogKept,
    /// The lines of the servers that make up the ensemble until a reconfig says otherwise; empty:
    /// this server stands alone.
    pub ensemble: String,
    /// Whether a majority of these may found the ensemble without the others (see [`members`]).
    pub found_with_majority: bool,
    /// Settings that all replicas must share; the leader writes them into the log.
    pub settings: Vec<(&'static str, i64)>,
    /// The highest feature level that this server knows, and the highest that it agrees to raise
    /// the ensemble to; 0: any that it knows.
    pub level: u32,
    pub level_max: u32,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
}

impl Options {
    /// [`Self::outstanding_bytes_max`] unless there is a reason for another. It has no key in a
    /// configuration file: `globalOutstandingLimit` counts requests.
    pub const OUTSTANDING_BYTES_MAX: usize = 256 << 20;
    /// [`Self::compare_every`], which has none either.
    pub const COMPARE_EVERY: u64 = 1_000;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tick_ms: 50,
            session_tick_ms: 2_000,
            min_session_timeout_ms: 4_000,
            max_session_timeout_ms: 40_000,
            snap_count: 100_000,
            outstanding_max: 100_000,
            outstanding_bytes_max: Self::OUTSTANDING_BYTES_MAX,
            unsent_bytes_max: 256 << 20,
            watches: WatchLimits::default(),
            sessions_max: 0,
            init_limit_ms: 20_000,
            compare_every: Self::COMPARE_EVERY,
            sync_limit_ms: 10_000,
            linearizable_reads: false,
            local_sessions: false,
            local_session_upgrades: false,
            read_only_after_ms: None,
            cleaner: CleanerOptions::default(),
            auth: AuthOptions::default(),
            log_kept: LogKept::default(),
            ensemble: String::new(),
            found_with_majority: false,
            settings: Vec::new(),
            level: FEATURE_LEVEL,
            level_max: 0,
            metrics: Arc::default(),
        }
    }
}

/// When empty containers and outlived TTL znodes go (§5.3).
#[derive(Clone, Copy, Debug)]
pub struct CleanerOptions {
    /// `znode.container.checkIntervalMs`
    pub interval_ms: u64,
    /// `znode.container.maxPerMinute`
    pub per_minute: u64,
    /// `znode.container.maxNeverUsedIntervalMs`; 0 keeps containers that never had a child.
    pub never_used_ms: i64,
}

impl Default for CleanerOptions {
    fn default() -> Self {
        Self {
            interval_ms: 60_000,
            per_minute: 10_000,
            never_used_ms: 0,
        }
    }
}

/// A server as it was recovered, or a new one.
pub struct Setup {
    /// `incarnation`: the number of this start.
    pub origin: OriginId,
    pub options: Options,
    pub random: Entropy,
    pub logger: slog::Logger,
    pub machine: Machine,
    pub hard_state: proto::log::HardState,
    /// Members at the machine's position; a new server alone is its own only voter.
    pub membership: proto::log::Membership,
    /// The log after the machine's position.
    pub entries: Vec<proto::log::LogEntry>,
    /// Whether a snapshot is wanted as soon as clients are served, whatever the log's size.
    pub snapshot_due: bool,
    /// Whether an empty server may take part before others have let it in (see [`members`]): only
    /// if it is known that its disk never had anything.
    pub admitted: bool,
}

#[cfg(test)]
impl Setup {
    /// Of a new server alone, number 1.
    pub(crate) fn alone(options: Options) -> Self {
        Self {
            origin: OriginId {
                server: 1,
                disk: 7,
                incarnation: 1,
            },
            options,
            random: Box::new(|| [9; 16]),
            logger: slog::Logger::root(slog::Discard, slog::o!()),
            machine: Machine::new(),
            hard_state: proto::log::HardState::default(),
            membership: proto::log::Membership {
                voters: vec![1],
                ..proto::log::Membership::default()
            },
            entries: Vec::new(),
            snapshot_due: false,
            admitted: true,
        }
    }
}

/// What happens to the engine, besides what connections submit.
#[derive(Debug)]
pub enum Event {
    /// `Options::tick_ms` passed.
    Tick,
    /// A message of another server.
    Peer { from: u64, message: PeerMessage },
    /// Everything up to this [`Append::number`] is durable.
    Persisted(u64),
    /// The snapshot that was asked for is durable. `bytes`: its size on disk.
    SnapshotTaken { index: u64, bytes: u64 },
    /// The snapshot that was asked for could not be written.
    SnapshotFailed,
    /// Another server can be reached now.
    Linked { id: u64, introduction: Introduction },
    /// Another server said who it is; it may not be reachable from here.
    Introduced { id: u64, introduction: Introduction },
    /// A server was refused, for it came with another disk than the one bound to its number.
    Stranger { id: u64, disk: u64 },
    /// A server was refused for another reason.
    Refused { id: u64, introduction: Introduction },
    /// What was sent to this server may be lost.
    Unreachable(u64),
    /// The process of this server is gone: its connections broke, and new ones are refused.
    PeerLost(u64),
    /// How sending a snapshot ended: see [`Outputs::send_snapshot`].
    SnapshotSent { to: u64, ok: bool },
    /// The snapshot of this entry cannot be read, and so not be sent to anyone.
    SnapshotUnreadable { index: u64 },
    /// The snapshot of this entry was no good and is removed.
    SnapshotDiscarded { index: u64 },
    /// This server will stop soon: if it leads, another server is to lead instead.
    HandOver,
    /// A snapshot that another server sent is durable here, and this is its state.
    SnapshotReceived(Box<(SnapshotMeta, Machine)>),
}

/// What must now be done, in this order for each list.
#[derive(Debug, Default)]
pub struct Outputs {
    pub append: Vec<Append>,
    /// For whom, and what. It may get lost.
    pub sends: Vec<(u64, PeerMessage)>,
    pub take_snapshot: Option<(SnapshotMeta, Image)>,
    /// Snapshots to be sent to others beside the messages; [`Event::SnapshotSent`] must follow.
    pub send_snapshot: Vec<SendSnapshot>,
    /// These servers are to be linked from now on, this one among them.
    pub servers: Option<Vec<ServerLine>>,
    /// The state is not that of the other servers: this one must not go on.
    pub diverged: Option<Divergence>,
    /// When a turn is wanted even if nothing happens before, in ms.
    pub wake_at_ms: Option<u64>,
    /// This server is too old to go on: nothing more may be asked of it, and the process must end.
    pub outdated: Option<Outdated>,
}

impl Outputs {
    /// A turn is wanted at this time, or before.
    fn wake_at(&mut self, at_ms: u64) {
        let wanted_ms = self.wake_at_ms.unwrap_or(u64::MAX);
        self.wake_at_ms = Some(wanted_ms.min(at_ms));
    }
}

/// Which snapshot is to be sent to whom.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SendSnapshot {
    pub to: u64,
    pub index: u64,
    pub term: u64,
}

/// What a snapshot is of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SnapshotMeta {
    /// The last entry that it contains.
    pub index: u64,
    pub term: u64,
    pub membership: proto::log::Membership,
    pub zxid: i64,
    /// Of the machine, to be compared after loading.
    pub digest: u64,
}

impl SnapshotMeta {
    /// What the log is told of a durable snapshot.
    pub fn mark(&self) -> proto::log::SnapshotMark {
        let (index, term) = (self.index, self.term);
        proto::log::SnapshotMark {
            index,
            term,
            membership: Some(self.membership.clone()),
        }
    }
}

pub struct Engine {
    shared: Arc<Shared>,
    replica: Replica,
    forward: Forward,
    expiry: Expiry,
    telling: Telling,
    id: u64,
    logger: slog::Logger,
    /// Syncs that wait.
    barrier: Barrier<Arc<Connection>>,
    agreement: Agreement,
    /// As the leader: touches to be confirmed, by server and number.
    touches: Barrier<(u64, u64)>,
    /// As the leader: what other servers want written.
    inbound: Inbound,
    lease: Lease,
    next_touch_ms: u64,
    /// When sessions were last heard on connections that are gone, until the leader has noted it.
    gone: Vec<(SessionId, u64)>,
    /// The term in which this server leads and keeps the sessions' time.
    leading: Option<u64>,
    /// Since when it does, or did last, in ms.
    leading_since_ms: u64,
    /// Commands of the leader's own, to be proposed.
    internal: Vec<proto::log::Command>,
    /// What this leader proposed and is not applied yet, so that it need not be decoded again. The
    /// bodies are shared with [`Forward`].
    proposed: VecDeque<(LogId, proto::log::Entry)>,
    /// When the last of them was proposed.
    proposed_ms: u64,
    cleaned_ms: u64,
    /// Where the cleaner goes on, and how much it may still remove this time.
    cleaning: Option<(u32, usize)>,
    /// The term in which this leader wrote its settings into the log.
    settings_term: u64,
    snapshot: SnapshotState,
    standing: Standing,
    levels: Levels,
    /// The feature level of the state.
    level: u32,
    /// When each server was heard last.
    heard_ms: BTreeMap<u64, u64>,
    /// Since when this server neither serves nor hears a leader (see [`read_only`]).
    deserted_ms: Option<u64>,
    failover: Option<Failover>,
    handing_over: bool,
    /// A tick has passed since the membership was looked at.
    reconcile_due: bool,
    /// The servers that the links were told of.
    linked: Vec<ServerLine>,
    /// They may be others now.
    links_due: bool,
    /// This server is of the newest ensemble that it knows of, or needed until the change to that
    /// is through. Who is neither serves nobody.
    belongs: bool,
    /// The digest of the settings that others were told of.
    introduced_version: Option<u64>,
    /// The disks that the state binds to servers, as of the settings with this digest.
    bound: BTreeMap<u64, u64>,
    bound_version: Option<u64>,
    /// A snapshot of another server, until this one has a leader to be given it by.
    received: Option<Box<(SnapshotMeta, Machine)>>,
    /// As the leader: what those who follow without a vote must have before they are given one (see
    /// [`Self::note_learners`]).
    vote_from: BTreeMap<u64, u64>,
    /// Servers that are sent a snapshot.
    transfers: BTreeMap<u64, catch_up::Transfer>,
    /// Whether it was looked at what the configuration says of the servers.
    lines_compared: bool,
    /// A reconfig waits until all that is on its way is applied: nothing else is begun.
    drains: bool,
    /// When a follower last needed a snapshot that there was not yet.
    snapshot_missed_ms: Option<u64>,
    applied: LogId,
    /// The last entry that was known to be committed when this server started.
    committed_before: u64,
    now_ms: u64,
}

#[derive(Debug, Default)]
struct SnapshotState {
    /// What is being written.
    running: Option<proto::log::SnapshotMark>,
    /// Transactions and log bytes since the last one was asked for.
    entries: u64,
    bytes: u64,
    last_bytes: u64,
    /// Wanted as soon as clients are served.
    due: bool,
    /// When something was applied last.
    busy_ms: u64,
}

impl Engine {
    /// # Panics
    ///
    /// If the log and the state do not belong together: recovery has checked that they do.
    pub fn new(setup: Setup, now_ms: u64) -> Self {
        let Setup {
            origin,
            options,
            random,
            logger,
            machine,
            hard_state,
            membership,
            entries,
            snapshot_due,
            admitted,
        } = setup;
        let applied = machine.applied();
        let base = (applied.index, applied.term);
        let is_new = base.0 == 0 && entries.is_empty() && hard_state == Default::default();
        let snapshot_due = snapshot_due || recover::lacks_snapshot(base.1, &entries);
        let log = MemLog::new(&hard_state, &membership, base, entries, options.log_kept);
        let id = u64::from(origin.server);
        let replica = Replica::new(id, log, applied.index, is_new, &logger)
            .expect("the recovered log and state belong together");
        let expiry = Expiry::new(options.session_tick_ms, options.tick_ms);
        let level = machine.level();
        let start = origin.incarnation;
        let by_majority = options.found_with_majority;
        let shared = Shared::new(machine, options, random, origin);
        let configured = shared.options.ensemble.lines();
        let configured = configured.filter_map(|line| ServerLine::parse_whole(line).ok());
        let configured: Vec<ServerLine> = configured.collect();
        {
            let state = shared.state.read();
            let recovered = state.machine.ensemble().into_iter();
            let lines = configured
                .iter()
                .chain(recovered.flat_map(Ensemble::members));
            shared.acquaintance.lock().note(lines);
        }
        // See [`Self::give_up_submissions`].
        let origin = OriginId {
            incarnation: start << ANEW_BITS,
            ..origin
        };
        let mut engine = Self {
            shared: Arc::new(shared),
            replica,
            forward: Forward::new(origin),
            expiry,
            telling: Telling::default(),
            id,
            logger,
            barrier: Barrier::new(Purpose::Sync, origin),
            agreement: Agreement::default(),
            touches: Barrier::new(Purpose::Touch, origin),
            inbound: Inbound::default(),
            lease: Lease::new(start),
            next_touch_ms: now_ms,
            gone: Vec::new(),
            leading: None,
            leading_since_ms: 0,
            internal: Vec::new(),
            proposed: VecDeque::new(),
            proposed_ms: 0,
            cleaned_ms: now_ms,
            cleaning: None,
            settings_term: 0,
            snapshot: SnapshotState {
                due: snapshot_due,
                ..SnapshotState::default()
            },
            standing: Standing::new(
                id,
                origin.disk,
                admitted || !is_new,
                membership.voters.contains(&id),
                by_majority,
            ),
            levels: Levels::default(),
            level,
            heard_ms: BTreeMap::new(),
            deserted_ms: None,
            failover: None,
            handing_over: false,
            reconcile_due: false,
            linked: Vec::new(),
            links_due: true,
            belongs: true,
            introduced_version: None,
            bound: BTreeMap::new(),
            bound_version: None,
            received: None,
            vote_from: BTreeMap::new(),
            transfers: BTreeMap::new(),
            lines_compared: false,
            drains: false,
            snapshot_missed_ms: None,
            applied,
            committed_before: hard_state.commit,
            now_ms,
        };
        // Before anybody is told who this server is.
        engine.update_status();
        engine.update_say();
        engine
    }

    /// What connections and operators see of this server.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Takes in one event. What follows from it comes out of the next [`Self::turn`].
    pub fn handle(&mut self, event: Event, now_ms: u64, out: &mut Outputs) {
        self.now_ms = now_ms;
        match event {
            Event::Tick => {
                self.tick();
                self.touch(out);
            }
            Event::Peer { from, message } => self.heard(from, message),
            Event::Persisted(number) => {
                let messages = self.replica.persisted(number);
                self.send(messages, out);
            }
            Event::SnapshotTaken { index, bytes } => {
                if let Some(mark) = self.snapshot.running.take() {
                    self.replica.has_snapshot(mark);
                }
                self.snapshot.last_bytes = bytes;
                tracing::info!(index, bytes, "snapshot written");
            }
            Event::SnapshotFailed => self.snapshot.running = None,
            Event::Linked { id, introduction } => self.linked(id, introduction),
            Event::Introduced { id, introduction } => self.introduced(id, introduction),
            Event::Stranger { id, disk } => self.standing.stranger(id, disk, self.now_ms),
            Event::Refused { id, introduction } => self.levels.heard(id, introduction),
            Event::Unreachable(id) => {
                self.standing.unlinked(id);
                self.replica.unreachable(id);
            }
            Event::PeerLost(id) => self.peer_lost(id),
            Event::SnapshotSent { to, ok } => self.snapshot_sent(to, ok),
            Event::SnapshotUnreadable { index } => {
                self.replica.lost_snapshot(index);
            }
            Event::SnapshotDiscarded { index } => {
                // The next start needs one where this log begins.
                self.snapshot.due |= self.replica.lost_snapshot(index);
            }
            Event::HandOver => self.hand_over(),
            Event::SnapshotReceived(received) => {
                let newest = self.received.as_ref().map_or(0, |newest| newest.0.index);
                if received.0.index > newest.max(self.applied.index) {
                    self.received = Some(received);
                }
            }
        }
    }

    /// Proposes what was submitted, applies what is committed, answers clients.
    /// `wall_ms`: the clock on the wall, in ms since 1970.
    pub fn turn(&mut self, now_ms: u64, wall_ms: i64, out: &mut Outputs) {
        self.now_ms = now_ms;
        out.outdated = self.outdated();
        if out.outdated.is_some() {
            return;
        }
        self.take_submissions();
        if self.standing.is_admitted() {
            self.replica.campaign_if_alone();
        }
        self.fail_over(out);
        self.clean(wall_ms);
        self.reconcile(wall_ms);
        loop {
            let offered = self.offer_received();
            if self.replica.has_other_leader() {
                // Before anything goes to the new one: the oldest comes first.
                self.leadership_changed();
            }
            self.propose(wall_ms, out);
            self.forward(out);
            let rounds = [self.barrier.start(), self.touches.start()];
            for context in rounds.into_iter().flatten() {
                self.replica.read_index(context);
            }
            let Turn {
                append,
                sends,
                committed,
                reads,
                installed,
            } = self.replica.turn();
            let idle = append.is_empty() && committed.is_empty() && reads.is_empty();
            out.append.extend(append);
            self.send(sends, out);
            if let Some((meta, machine)) = offered.map(|offered| *offered)
                && installed == Some(meta.index)
            {
                self.install(&meta, machine);
            }
            for (context, index) in reads {
                self.barrier.answer(&context, index);
                self.touches.answer(&context, index);
            }
            self.apply(committed);
            self.update_belonging();
            out.outdated = self.outdated();
            if out.outdated.is_some() {
                return;
            }
            self.release_syncs();
            self.confirm_touches(out);
            let changed = self.update_leading() | self.update_serving();
            if changed {
                self.update_status();
                // It may serve for less than a tick, and that counts.
                self.update_read_only();
            }
            if idle && !changed && !self.replica.is_leadership_news() {
                break;
            }
        }
        self.compare(out);
        self.tell_of_servers(out);
        self.shared.set_formed(self.replica.last_index() > 0);
        self.hold();
        self.ask_for_snapshot(out);
    }

    /// The newest hard state, to be written at a clean stop.
    pub fn hard_state(&self) -> proto::log::HardState {
        self.replica.hard_state()
    }

    /// Raft's term.
    pub fn term(&self) -> u64 {
        self.replica.term()
    }

    /// The server that leads, 0 if none is known.
    pub fn leader(&self) -> u64 {
        self.replica.leader()
    }

    /// Who has a say and who follows, as of the last entry that was applied.
    pub fn membership(&self) -> proto::log::Membership {
        self.replica.membership()
    }

    fn tick(&mut self) {
        if self.standing.is_admitted() {
            self.replica.tick();
        }
        self.look_after_transfers();
        self.reconcile_due = true;
        self.links_due = true;
        if self.handing_over && self.replica.is_leader() {
            self.hand_over();
        }
        self.update_status();
        let rounds = [self.barrier.tick(), self.touches.tick()];
        for context in rounds.into_iter().flatten() {
            self.replica.read_index(context);
        }
        if !self.replica.is_leader() {
            self.forward.tick();
        }
        self.shared.retry_behind(self.now_ms);
        self.update_read_only();
        self.look_after_local();
        if let Some(count) = self.telling.left_out(self.now_ms) {
            tracing::info!(count, "more sessions expired");
        }
        if self.leading.is_some() {
            self.expire();
        }
        // While there is nothing else to do: the next start will have less to replay.
        let SnapshotState {
            entries, busy_ms, ..
        } = self.snapshot;
        self.snapshot.due |= entries >= (self.shared.options.snap_count / 4).max(1)
            && self.now_ms >= busy_ms + SNAPSHOT_IDLE_MS;
    }

    /// Counts time and proposes the end of silent sessions (§8.2).
    fn expire(&mut self) {
        let paused_ms = self.expiry.advance(self.now_ms);
        if paused_ms > 1_000 {
            tracing::warn!(
                paused_ms,
                "the process did not run; session deadlines were moved"
            );
        }
        // Touches first, so that a client that spoke is never expired in the same tick. The open
        // connections come before those that are gone: one that goes meanwhile is in both.
        for (session, connection) in &self.shared.registry.lock().sessions {
            self.expiry
                .touch(*session, connection.last_heard_ms(self.now_ms));
        }
        self.gone.extend(self.shared.take_touched());
        for (session, heard_ms) in &self.gone {
            self.expiry.touch(*session, *heard_ms);
        }
        if self.replica.is_sole_voter() {
            // Nobody else has to know.
            self.gone.clear();
        }
        if self.drains {
            return;
        }
        let expired = self.expiry.take_expired(EXPIRIES_PER_TICK);
        if expired.is_empty() {
            return;
        }
        let state = self.shared.state.read();
        for session in expired {
            // The generation fences a re-attachment that is on its way through the log.
            let Some(info) = state.machine.session(session) else {
                continue;
            };
            if self.telling.one_more() {
                tracing::info!(%session, timeout_ms = info.timeout_ms, "session expired");
            }
            self.shared.metrics.stale_sessions_expired.add(1);
            self.internal.push(proto::log::Command {
                session: session.0,
                generation: info.generation,
                op: op::CLOSE_SESSION,
                body: Bytes::new(),
            });
        }
    }

    /// Proposes the removal of empty containers and outlived TTL znodes (§5.3).
    fn clean(&mut self, wall_ms: i64) {
        let CleanerOptions {
            interval_ms,
            per_minute,
            never_used_ms,
        } = self.shared.options.cleaner;
        if self.leading.is_none() {
            self.cleaning = None;
            return;
        }
        if self.drains {
            return;
        }
        let is_due = self.now_ms >= self.cleaned_ms + interval_ms;
        let (from, limit) = match self.cleaning.take() {
            Some(rest) => rest,
            None if is_due => {
                self.cleaned_ms = self.now_ms;
                let limit = (per_minute * interval_ms / 60_000).max(1);
                (0, usize::try_from(limit).unwrap_or(usize::MAX))
            }
            None => return,
        };
        let state = self.shared.state.read();
        let (found, next) = state.machine.removable(from, wall_ms, never_used_ms, limit);
        let left = limit - found.len();
        let mut bytes = 0;
        for removal in found {
            let body = removal.encode_to_vec();
            // All of it is one entry. What is left out has its turn next time.
            bytes += body.len();
            if bytes > forward::BYTES_PER_ENTRY && bytes > body.len() {
                return;
            }
            self.internal
                .push(own_command(crate::machine::op::REMOVE, body));
        }
        self.cleaning = next.filter(|_| left > 0).map(|next| (next, left));
    }

    fn take_submissions(&mut self) {
        for submission in self.shared.take_submissions() {
            match submission {
                Submission::Connect(connection, command) => {
                    self.forward.push(command, Waiter::Connect(connection));
                }
                Submission::Write(connection, command) => {
                    self.forward.push(command, Waiter::Write(connection));
                }
                Submission::Upgrade(connection, command) => {
                    self.forward.push(command, Waiter::Upgrade(connection));
                }
                Submission::Silent(command) => self.forward.push(command, Waiter::NoOne),
                Submission::Barrier(connection) => self.barrier.wait(connection),
            }
        }
    }

    fn propose(&mut self, wall_ms: i64, out: &mut Outputs) {
        self.drains = false;
        if !self.replica.is_leader() {
            return;
        }
        loop {
            if let Some(until_ms) = self.gathers_until() {
                out.wake_at(until_ms);
                return;
            }
            let mut batches = self.inbound.take();
            let others = batches.len();
            let own = self.forward.next_batch();
            // Its own goes first: of others there may always be something.
            let is_own = own.as_ref().is_some_and(is_reconfig);
            if is_own {
                self.inbound.put_back(std::mem::take(&mut batches));
            }
            let first = batches.first().or(own.as_ref());
            if let Some(reconfig) = first.filter(|batch| is_reconfig(batch)).cloned() {
                // Before it leads for all purposes, it may not know who is a member.
                let can_judge = self.leading.is_some() && !self.replica.is_changing();
                // It is judged by the state that it will meet: what is on its way may decide
                // whether it is allowed, and what it leads to.
                self.drains = can_judge && self.applied.index < self.replica.last_index();
                let entry = (can_judge && !self.drains)
                    .then(|| self.plan_reconfig(reconfig, wall_ms))
                    .flatten();
                if entry.is_none_or(|entry| self.propose_entry(entry).is_err()) {
                    self.inbound.put_back(batches);
                    // What the reconfig waits for may be among it.
                    self.propose_internal(wall_ms);
                    return;
                }
                self.forward.sent(usize::from(is_own));
                continue;
            }
            batches.extend(own);
            if batches.is_empty() && self.internal.is_empty() {
                return;
            }
            let own = batches.get(others);
            let commands = own.map_or(0, |batch| batch.commands.len());
            let internal = std::mem::take(&mut self.internal);
            let entry = proto::log::Entry {
                time_ms: wall_ms,
                batches,
                internal,
                ..Default::default()
            };
            if let Err(entry) = self.propose_entry(entry) {
                // No room now; the next turn tries again.
                let mut batches = entry.batches;
                batches.truncate(others);
                self.inbound.put_back(batches);
                self.internal = entry.internal;
                return;
            }
            self.forward.sent(commands);
        }
    }

    /// Proposes what this server itself wants to be in the log, and nothing else.
    fn propose_internal(&mut self, wall_ms: i64) {
        if self.internal.is_empty() {
            return;
        }
        let entry = proto::log::Entry {
            time_ms: wall_ms,
            internal: std::mem::take(&mut self.internal),
            ..Default::default()
        };
        if let Err(entry) = self.propose_entry(entry) {
            self.internal = entry.internal;
        }
    }

    /// Until when what there is to propose waits for an entry that is on its way, in ms.
    fn gathers_until(&self) -> Option<u64> {
        let has_some =
            !self.inbound.is_empty() || !self.internal.is_empty() || self.forward.has_more();
        let is_one_under_way = !self.proposed.is_empty() && !self.replica.is_sole_voter();
        let until_ms = self.proposed_ms + GATHER_MS;
        (has_some && is_one_under_way && self.now_ms < until_ms).then_some(until_ms)
    }

    /// Puts an entry into the log, or gives it back.
    fn propose_entry(&mut self, entry: proto::log::Entry) -> Result<(), Box<proto::log::Entry>> {
        let at = match entry.change {
            Some(_) => self.replica.propose_change(&entry),
            None => self.replica.propose(entry.encode_to_vec()),
        };
        let Some(at) = at else {
            return Err(Box::new(entry));
        };
        self.proposed.push_back((at, entry));
        self.proposed_ms = self.now_ms;
        self.shared.metrics.proposal_count.add(1);
        Ok(())
    }

    /// Sends what was submitted here to the leader, if that is another server.
    fn forward(&mut self, out: &mut Outputs) {
        let leader = self.replica.leader();
        if leader == 0 || leader == self.id {
            return;
        }
        while let Some(batch) = self.forward.next_batch() {
            self.forward.sent(batch.commands.len());
            out.sends.push((leader, PeerMessage::Forward(batch)));
        }
    }

    fn heard(&mut self, from: u64, message: PeerMessage) {
        self.heard_ms.insert(from, self.now_ms);
        match message {
            // A snapshot is stepped when its file is here: see `offer_received`.
            PeerMessage::Raft(message) if message.get_msg_type() == MessageType::MsgSnapshot => {}
            // Whoever is not let in promises nothing.
            PeerMessage::Raft(_) if !self.standing.is_admitted() => {}
            PeerMessage::Raft(message) if self.is_of_other_disk(from, &message) => {}
            PeerMessage::Raft(message) if self.asks_another_disk(from, &message) => {}
            PeerMessage::Raft(message) => self.replica.step(message),
            // Who takes this server for the leader will hear who is, or sends it again.
            PeerMessage::Forward(batch) if self.may_ask(from) => self.inbound.push(batch),
            PeerMessage::Touch(touch) if self.leading.is_some() => {
                for heard in touch.heard {
                    let heard_ms = self.now_ms.saturating_sub(heard.age_ms);
                    self.expiry.touch(SessionId(heard.session), heard_ms);
                }
                self.touches.wait((from, touch.number));
            }
            PeerMessage::Touched(touched) if from == self.replica.leader() => {
                self.lease.confirmed(touched.number, touched.commit);
            }
            PeerMessage::Forward(_) | PeerMessage::Touch(_) | PeerMessage::Touched(_) => {}
            PeerMessage::Digests(digests) => self.heard_digests(from, digests),
        }
    }

    /// Whether this server takes another one's writes: as the leader, from members. Whoever was
    /// removed never hears what became of them, and asks again and again; what it asks for, such as
    /// that the leader goes, would come at any time.
    fn may_ask(&self, server: u64) -> bool {
        let knows_members = self.leading.is_some();
        self.replica.is_leader() && (!knows_members || self.replica.matched(server).is_some())
    }

    /// Tells the leader which clients were heard since the last time that it confirmed (§8.4).
    fn touch(&mut self, out: &mut Outputs) {
        let leader = self.replica.leader();
        let shortest_ms = u64::try_from(self.shared.options.min_session_timeout_ms).unwrap_or(0);
        let every_ms = TOUCH_MS.min(shortest_ms / 3 / TOUCHES_PER_THIRD);
        if leader == 0 || self.replica.is_sole_voter() || self.now_ms < self.next_touch_ms {
            return;
        }
        self.next_touch_ms = self.now_ms + every_ms;
        let number = self.lease.touch(self.now_ms);
        if leader == self.id {
            // Its own clients are known to it; that it leads has to be shown all the same.
            if self.leading.is_some() {
                self.touches.wait((self.id, number));
            }
            return;
        }
        // What was heard then may have been noted a little later.
        let confirmed_ms = self.lease.confirmed_ms().unwrap_or(0);
        let since_ms = confirmed_ms.saturating_sub(NOTED_WITHIN_MS);
        self.gone.extend(self.shared.take_touched());
        let registry = self.shared.registry.lock();
        let open = registry
            .sessions
            .iter()
            .map(|(session, connection)| (*session, connection.last_heard_ms(self.now_ms)));
        let heard = open.chain(self.gone.iter().copied());
        let heard = heard
            .filter(|(_, heard_ms)| *heard_ms >= since_ms)
            .map(|(session, heard_ms)| proto::peer::Heard {
                session: session.0,
                age_ms: self.now_ms.saturating_sub(heard_ms),
            })
            .collect();
        let touch = proto::peer::Touch { number, heard };
        out.sends.push((leader, PeerMessage::Touch(touch)));
    }

    /// As the leader: rounds have shown that it leads, after these touches came.
    fn confirm_touches(&mut self, out: &mut Outputs) {
        // And what is proposed: ends of sessions may be among it, and who was told that it has
        // caught up must know of them.
        let commit = self.replica.last_index();
        for (server, number) in self.touches.release(self.applied.index) {
            if server == self.id {
                self.lease.confirmed(number, commit);
            } else {
                let touched = proto::peer::Touched { number, commit };
                out.sends.push((server, PeerMessage::Touched(touched)));
            }
        }
    }

    fn leadership_changed(&mut self) {
        if !self.replica.is_leader() {
            self.transfers.clear();
            self.vote_from.clear();
        }
        self.forward.resend();
        self.proposed.clear();
        self.barrier.retry();
        drop(self.touches.take());
        // Nobody waits to hear from the new one for longer than it takes to ask.
        self.next_touch_ms = self.now_ms;
    }

    /// Begins to keep the sessions' time once an entry of this term is applied and the replicated
    /// settings are those of this leader; ends with the leadership. True: it began now.
    fn update_leading(&mut self) -> bool {
        if !self.replica.is_leader() {
            self.leading = None;
            self.internal.clear();
            self.inbound.clear();
            return false;
        }
        let term = self.replica.term();
        // Before, this server may lack what earlier leaders have bound and set.
        let is_behind = self.applied.term != term;
        if self.leading == Some(term) || is_behind || self.settings_differ() {
            return false;
        }
        self.leading = Some(term);
        self.leading_since_ms = self.now_ms;
        let replica = &self.replica;
        self.inbound
            .keep(|server| replica.matched(server).is_some());
        let state = self.shared.state.read();
        let sessions = state.machine.sessions();
        // Everyone has a full timeout: who was heard by whom is not known here (§8.4).
        self.expiry.start(
            self.now_ms,
            sessions.map(|(id, info)| (id, info.timeout_ms)),
        );
        true
    }

    fn apply(&mut self, committed: Vec<Entry>) {
        let has_entries = !committed.is_empty();
        let mut entries = committed.into_iter().peekable();
        while entries.peek().is_some() && self.outdated().is_none() {
            // Who waits for an answer before those that are only told of a change.
            let mut answered = Vec::new();
            let mut woken = Vec::new();
            let mut commands = 0;
            let mut level = self.level;
            {
                let mut state = self.shared.state.write();
                let mut registry = self.shared.registry.lock();
                let State { machine, watches } = &mut *state;
                let mut local = Local {
                    watches,
                    registry: &mut registry,
                    forward: &mut self.forward,
                    expiry: &mut self.expiry,
                    answered: &mut answered,
                    woken: &mut woken,
                    shared: &self.shared,
                    now_ms: self.now_ms,
                };
                while commands < COMMANDS_PER_SLICE
                    && level == self.level
                    && let Some(raft_entry) = entries.next()
                {
                    let at = LogId {
                        term: raft_entry.term,
                        index: raft_entry.index,
                    };
                    let is_change = raft_entry.get_entry_type() != EntryType::EntryNormal;
                    let entry = match take_proposed(&mut self.proposed, at) {
                        Some(entry) => entry,
                        // Raft's own account of the change is not looked at.
                        None if is_change => entry::decode_commands(&raft_entry.context),
                        None => entry::decode_commands(&raft_entry.data),
                    };
                    commands += 1 + entry
                        .batches
                        .iter()
                        .map(|b| b.commands.len())
                        .sum::<usize>();
                    self.snapshot.bytes += raft_entry.data.len() as u64;
                    local.forward.look_for_gap(&entry.batches);
                    let before = machine.ensemble().map(Ensemble::version);
                    machine.apply(at, &entry, &mut local);
                    self.applied = at;
                    level = machine.level();
                    if at.index.is_multiple_of(self.shared.options.compare_every) {
                        self.agreement.note(at.index, machine.digest());
                    }
                    // A change that comes with a client's reconfig stands and falls with it.
                    let after = machine.ensemble();
                    let is_changed = after.map(Ensemble::version) != before;
                    self.links_due |= is_change || is_changed;
                    if is_changed {
                        let lines = after.into_iter().flat_map(Ensemble::members);
                        self.shared.acquaintance.lock().note(lines);
                    }
                    let stands = entry.batches.is_empty() || is_changed;
                    if before.is_none()
                        && let Some(first) = after
                    {
                        self.replica.settle_membership(&Target::from(first));
                    }
                    if is_change && stands {
                        let change = entry.change.clone().unwrap_or_default();
                        let was_member = self.replica.is_member();
                        self.replica.apply_change(&change);
                        if !was_member && self.replica.is_member() {
                            // Nobody took it until now.
                            local.forward.resend();
                        }
                    }
                }
            }
            self.at_level(level);
            self.snapshot.entries += commands as u64;
            self.snapshot.busy_ms = self.now_ms;
            self.shared.metrics.commit_count.add(commands as u64);
            // Outside of the locks: waking a task may cost a system call.
            answered.append(&mut woken);
            wake(&answered);
        }
        self.replica.applied(self.applied.index);
        if has_entries {
            self.update_say();
        }
    }

    fn release_syncs(&mut self) {
        let released = self.barrier.release(self.applied.index);
        if released.is_empty() {
            return;
        }
        let mut woken = Vec::new();
        {
            let state = self.shared.state.read();
            for connection in released {
                self.shared.submission_done(0);
                if connection.sync_released(&state.machine, &state.watches, self.now_ms) {
                    woken.push(connection);
                }
            }
        }
        wake(&woken);
    }

    /// Clients are served from when this server knows that it has caught up with a leader that has
    /// a majority, until it has not heard of one for too long. True: that changed.
    fn update_serving(&mut self) -> bool {
        let alone_and_leading = self.replica.is_sole_voter() && self.leading.is_some();
        if alone_and_leading {
            // Others may get a say later; until now nothing could happen without this server.
            self.lease.renew(self.now_ms);
        } else if let Some(confirmed_ms) = self.lease.applied(self.applied.index) {
            self.gone
                .retain(|(_, heard_ms)| heard_ms + NOTED_WITHIN_MS >= confirmed_ms);
        }
        let is_outvoted = self.agreement.is_outvoted();
        let confirmed_ms = self.lease.confirmed_ms().filter(|_| !is_outvoted);
        let until_ms = confirmed_ms.map(|ms| ms + self.shared.options.sync_limit_ms);
        let serving = until_ms.is_some_and(|until_ms| self.now_ms <= until_ms)
            && self.belongs
            && (!self.replica.is_sole_voter() || alone_and_leading);
        self.shared.set_confirmed_ms(match alone_and_leading {
            true => u64::MAX,
            false => confirmed_ms.unwrap_or(0),
        });
        if serving == self.shared.is_serving() {
            return false;
        }
        if serving {
            let state = self.shared.state.read();
            tracing::info!(
                term = self.replica.term(),
                leader = self.replica.leader(),
                applied = self.applied.index,
                zxid = %state.machine.zxid(),
                sessions = state.machine.session_count(),
                znodes = state.machine.znode_count(),
                "serving"
            );
            if !std::mem::replace(&mut self.lines_compared, true) {
                self.warn_of_lines(&state.machine);
            }
        } else if !self.belongs {
            tracing::warn!(
                "this server does not belong to the ensemble any more; its clients are let go"
            );
        } else if !is_outvoted {
            tracing::warn!("no majority was heard of for too long; clients are not served");
        }
        self.shared.set_serving(serving);
        true
    }

    /// Says once in which lines the configuration differs from the ensemble: whoever changed them
    /// there waits for an effect in vain.
    fn warn_of_lines(&self, machine: &Machine) {
        let mut configured: BTreeSet<&str> = self.shared.options.ensemble.lines().collect();
        let Some(ensemble) = machine.ensemble().filter(|_| !configured.is_empty()) else {
            return;
        };
        let lines = ensemble.members().iter().map(ToString::to_string);
        let mut counting: Vec<String> = lines.collect();
        counting.retain(|line| {
            // A reconfig has to name a port for clients, which a file says elsewhere.
            let bare = line.split(';').next().unwrap_or_default();
            !configured.remove(line.as_str()) && !configured.remove(bare)
        });
        if !configured.is_empty() || !counting.is_empty() {
            tracing::warn!(
                ?configured,
                ?counting,
                "the server lines of the configuration are not those of the ensemble, which count: \
                 after the first start, only a reconfig changes them"
            );
        }
    }

    /// Closes the connections of sessions that may be over without this server's knowledge, and
    /// wakes those that were held until it knew. Whoever was removed lets all clients go at once:
    /// their sessions go on with the servers that are left.
    fn hold(&mut self) {
        let confirmed_ms = self.shared.confirmed_ms();
        let silent_ms = self.now_ms.saturating_sub(confirmed_ms);
        let lets_all_go = !self.belongs || silent_ms > self.shared.options.sync_limit_ms;
        if lets_all_go && !self.forward.is_empty() {
            // Its clients go elsewhere, and see what became of their writes there. What is still
            // here would take effect whenever this server is back, after all that they did since.
            self.give_up_submissions();
        }
        if !self.belongs {
            self.shared.close_where(|_| true);
            return;
        }
        let third_ms = u64::try_from(self.shared.options.min_session_timeout_ms).unwrap_or(0) / 3;
        let sync_limit_ms = self.shared.options.sync_limit_ms;
        let holds = confirmed_ms < u64::MAX && silent_ms > third_ms.min(sync_limit_ms);
        if holds {
            self.shared
                .close_where(|connection| silent_ms > connection.silence_max_ms(sync_limit_ms));
        } else if self.shared.take_held() {
            for connection in self.shared.connections() {
                connection.wake(News::OfMany);
            }
        }
    }

    /// Writes settings that differ into the log. True: they are not applied yet.
    fn settings_differ(&mut self) -> bool {
        let state = self.shared.state.read();
        let settings = self.shared.options.settings.iter();
        let mut differing: Vec<_> = settings
            .filter(|(name, value)| state.machine.setting(name) != *value)
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect();
        differing.extend(self.level_of_one());
        let unbound = self.unbound_disks(&state.machine);
        if state.machine.setting(CLUSTER_SETTING) == 0 {
            let random = (self.shared.random)();
            let number = i64::from_be_bytes(random[..8].try_into().expect("8 of 16 bytes"));
            // Never 0, which means that there is none.
            differing.push((CLUSTER_SETTING.to_owned(), number | 1));
        }
        let configured = &self.shared.options.ensemble;
        let unnamed = state.machine.ensemble().is_none() && !configured.is_empty();
        if (!differing.is_empty() || unnamed) && self.settings_term != self.replica.term() {
            self.settings_term = self.replica.term();
            let commands = differing.iter().map(set_command);
            self.internal.extend(commands);
            if unnamed {
                // What the log says of the membership wins: others are added by reconfig.
                let members = self.replica.members();
                let lines = configured.lines().filter(|line| {
                    let line = ServerLine::parse_whole(line);
                    line.is_ok_and(|line| members.contains(&u64::from(line.id)))
                });
                let body = proto::log::Configure {
                    text: lines.collect::<Vec<_>>().join("\n"),
                    expected: 0,
                };
                let body = body.encode_to_vec();
                self.internal
                    .push(own_command(crate::machine::op::CONFIGURE, body));
            }
        }
        let differs = !differing.is_empty() || unnamed || !unbound.is_empty();
        drop(state);
        self.bind(unbound);
        differs
    }

    fn ask_for_snapshot(&mut self, out: &mut Outputs) {
        let SnapshotState {
            ref running,
            entries,
            bytes,
            last_bytes,
            due,
            ..
        } = self.snapshot;
        let many = entries >= self.shared.options.snap_count && bytes >= last_bytes;
        let large = bytes >= SNAPSHOT_BYTES_MIN.max(last_bytes);
        // A snapshot costs what the tree weighs: it must not become the server's main work.
        let is_worth = || {
            let state = self.shared.state.read();
            let znodes = state.machine.znode_count() as u64;
            let weight = state.machine.data_bytes() + znodes * ZNODE_BYTES;
            (many && entries >= znodes / 2) || (large && bytes >= weight)
        };
        // Not before it serves: only then has this run added to the log what a snapshot can cover.
        let due = due && self.shared.is_serving();
        let wanted = due || ((many || large) && is_worth());
        if running.is_some() || !(wanted || self.replica.is_snapshot_wanted()) {
            return;
        }
        let image = self.shared.state.read().machine.image();
        let meta = SnapshotMeta {
            index: image.applied().index,
            term: image.applied().term,
            membership: self.replica.membership(),
            zxid: image.zxid().0,
            digest: image.digest(),
        };
        self.snapshot = SnapshotState {
            running: Some(meta.mark()),
            entries: 0,
            bytes: 0,
            last_bytes,
            due: false,
            busy_ms: self.snapshot.busy_ms,
        };
        out.take_snapshot = Some((meta, image));
    }
}

impl Drop for Engine {
    /// Connections hold what is shared, which holds them: the circle ends with the engine.
    fn drop(&mut self) {
        self.shared.let_go();
    }
}

/// Tells connections that they have output.
fn wake(connections: &[Arc<Connection>]) {
    let news = match connections.len() {
        ..=SENT_AT_ONCE => News::OfFew,
        _ => News::OfMany,
    };
    connections
        .iter()
        .for_each(|connection| connection.wake(news));
}

/// The leader's command that sets a replicated setting.
fn set_command((name, value): &(String, i64)) -> proto::log::Command {
    let body = proto::log::Set {
        name: name.clone(),
        value: *value,
    };
    own_command(crate::machine::op::SET, body.encode_to_vec())
}

/// A command of the leader's own.
fn own_command(op: i32, body: Vec<u8>) -> proto::log::Command {
    proto::log::Command {
        session: 0,
        generation: 0,
        op,
        body: body.into(),
    }
}

/// Takes what was proposed at this place in the log, if it was proposed here.
fn take_proposed(
    proposed: &mut VecDeque<(LogId, proto::log::Entry)>,
    at: LogId,
) -> Option<proto::log::Entry> {
    while let Some((place, _)) = proposed.front() {
        if place.index > at.index {
            return None;
        }
        let (place, entry) = proposed.pop_front()?;
        if place == at {
            return Some(entry);
        }
    }
    None
}

/// Tells this server's clients what an applied entry means for them. Everything goes into
/// outboxes while the machine's write lock is held.
struct Local<'a> {
    watches: &'a Mutex<Watches>,
    registry: &'a mut Registry,
    forward: &'a mut Forward,
    expiry: &'a mut Expiry,
    answered: &'a mut Vec<Arc<Connection>>,
    woken: &'a mut Vec<Arc<Connection>>,
    shared: &'a Shared,
    now_ms: u64,
}

impl Sink for Local<'_> {
    fn changed(&mut self, change: &Change<'_>) {
        let Self {
            watches,
            registry,
            woken,
            ..
        } = self;
        // What clients read late must not keep the whole request that it lies in.
        let mut own: Option<Text> = None;
        watches.lock().fire(change, &mut |id, kind, path, filter| {
            let Some(connection) = registry.connections.get(&id) else {
                return;
            };
            // A client that may not read the znode is not told, though its watch is used (§6.4).
            let acl = match filter {
                FilterOn::Own => change.acl,
                FilterOn::Parent => change.parent_acl,
            };
            if !crate::machine::acl::allows(acl, perms::READ, &connection.identities()) {
                return;
            }
            let own = match &mut own {
                Some(own) if *own == *path => own,
                own => own.insert(Text::from(path.as_str())),
            };
            let event = WatcherEvent {
                kind,
                path: own.clone(),
                zxid: change.zxid,
            };
            if connection.event(event) {
                woken.push(connection.clone());
            }
        });
    }

    fn done(&mut self, machine: &Machine, command: CommandId, outcome: Outcome) {
        let applied = self.forward.applied(command.origin, command.number);
        let Some((command, waiter)) = applied else {
            return;
        };
        self.shared.submission_done(command.body.len());
        let (connection, woken) = match waiter {
            Waiter::NoOne => return,
            Waiter::Write(connection) => {
                let woken = connection.write_applied(outcome, machine, self.watches, self.now_ms);
                (connection, woken)
            }
            Waiter::Upgrade(connection) => {
                if let Outcome::Attached(attached) = outcome {
                    self.bind(attached.session, &connection);
                } else if connection.finish() {
                    // Nobody else has its id, so this cannot be.
                    self.woken.push(connection);
                }
                return;
            }
            Waiter::Connect(connection) => {
                let attached = match &outcome {
                    Outcome::Attached(attached) if connection.is_connecting() => {
                        Some(attached.session)
                    }
                    _ => None,
                };
                // The connection knows its session before it is registered under it, so that it
                // can be taken off again whenever it is lost.
                let woken = connection.connected(outcome);
                if let Some(session) = attached {
                    self.bind(session, &connection);
                }
                (connection, woken)
            }
        };
        if woken {
            self.answered.push(connection);
        }
    }

    fn session_attached(&mut self, attached: &Attached) {
        let now_ms = self.now_ms;
        self.expiry
            .track(attached.session, attached.timeout_ms, now_ms);
        // Whatever connection held the session here, it is not the one it belongs to now.
        self.unbind(attached.session);
    }

    fn session_closed(&mut self, session: SessionId) {
        self.expiry.forget(session);
        self.unbind(session);
    }
}

impl Local<'_> {
    fn bind(&mut self, session: SessionId, connection: &Arc<Connection>) {
        if !connection.is_gone() {
            self.registry.sessions.insert(session, connection.clone());
        }
    }

    fn unbind(&mut self, session: SessionId) {
        if let Some(connection) = self.registry.sessions.remove(&session)
            && connection.finish()
        {
            self.woken.push(connection);
        }
    }
}

#[cfg(test)]
mod tests;

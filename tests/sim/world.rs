//! The world of a run: time, network, one server on its disk, its clients, and what goes wrong.
//!
//! One queue of (time, event), one thread, one seed. The server is the real engine over the real
//! log and snapshot code; only the threads between them are played here: the node thread's turns,
//! the log thread's writes and syncs, the connection tasks' reading and writing, each with delays
//! of its own. Faults come for a while; then everything heals, and must work again.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use zkraft::engine::{
    Append, AuthOptions, CleanerOptions, Connection, Engine, Event, Options, Outputs, Remaining,
    Setup, Shared, SnapshotMeta,
};
use zkraft::machine::{Machine, OriginId};
use zkraft::proto::log;
use zkraft::storage::{
    Fault, Identity, Known, SnapshotReader, SnapshotWriter, Wal, WalOptions, list_snapshots,
    purge_snapshots, recover,
};
use zkraft::wire::{ConnectRequest, SessionId};

use crate::check::{Checks, ConnId, Group, Verdict, broken};
use crate::client::{Action, Client};
use crate::disk::{Faults, FaultyDisk};
use crate::params::Params;
use crate::reply;
use crate::rng::Rng;
use crate::sabotage::Sabotage;
use crate::trace::Trace;

const SERVER: u32 = 1;
const IDENTITY: Identity = Identity {
    cluster: 0xc1,
    server: SERVER,
    disk: 0xd15c,
};
const LOG_DIR: &str = "/data/log";
const SNAPSHOT_DIR: &str = "/data/snapshot";
/// Heartbeats of the engine, in ms.
pub const TICK_MS: u64 = 50;
/// The clock on the wall when a run begins, in ms since 1970.
const EPOCH_MS: i64 = 1_700_000_000_000;
/// An idle log is sealed after this time, in µs.
const SEAL_US: u64 = 1_000_000;

/// A start after a failed sync, without a loss of power between, reads from the cache what the disk
/// does not have; the log builds on it without writing it again, and the next loss of power takes
/// it. Until recovery writes again what it cannot prove to be synced, the simulation leaves this
/// case out.
const SYNC_FAILURES_LOSE_POWER: bool = true;

macro_rules! note {
    ($world:expr, $($arg:tt)*) => {
        $world.trace.note($world.now_us, format_args!($($arg)*))
    };
}

/// What happens at some time.
#[derive(Debug)]
enum What {
    Tick {
        boot: u64,
    },
    Turn {
        boot: u64,
    },
    Synced {
        boot: u64,
    },
    Seal {
        boot: u64,
    },
    SnapshotWritten {
        boot: u64,
    },
    /// A connection's task looks what there is to send.
    Output {
        conn: ConnId,
    },
    /// A frame reaches the server's socket.
    Up {
        conn: ConnId,
        frame: Bytes,
    },
    UpClosed {
        conn: ConnId,
    },
    /// A frame reaches the client.
    Down {
        conn: ConnId,
        frame: Bytes,
    },
    DownClosed {
        conn: ConnId,
    },
    Wake {
        client: usize,
    },
    Start,
    Resume,
    Fault(Trouble),
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    Crash,
    Pause,
    Reset,
    Disk,
    Full,
    ClockJump,
}

/// The server's process.
struct Server {
    boot: u64,
    engine: Engine,
    shared: Arc<Shared>,
    wal: Wal,
    /// For the log thread.
    queue: Vec<log::Record>,
    queued_number: u64,
    queued_sync: bool,
    /// Written and not reported yet.
    written: Option<Written>,
    /// The log refuses to go on; its next use will say so.
    suspect: bool,
    snapshot: Option<(SnapshotMeta, SnapshotWriter)>,
    turn_due: bool,
    serving: bool,
    wakes: Wakes,
    written_us: u64,
}

/// A group on its way to the disk.
struct Written {
    number: u64,
    /// Of the last entry in it.
    index: u64,
    state: log::HardState,
    sync: bool,
}

/// What the engine has called for from inside.
#[derive(Clone, Default)]
struct Wakes {
    node: Arc<AtomicBool>,
    outputs: Arc<Mutex<Vec<ConnId>>>,
}

/// A TCP connection.
struct Link {
    client: usize,
    /// The server's side, while its process has the socket.
    server: Option<Arc<Connection>>,
    /// Frames in the socket's buffer.
    input: VecDeque<Bytes>,
    output: BytesMut,
    /// The client has not closed it.
    client_open: bool,
    /// A process of the server took it; no later one will.
    accepted: bool,
    /// Nothing passes any more, and nobody is told.
    cut: bool,
    /// When the last thing sent arrives: a stream keeps its order.
    up_us: u64,
    down_us: u64,
}

pub struct World {
    pub params: Params,
    sabotage: Sabotage,
    rng: Rng,
    now_us: u64,
    queue: BTreeMap<(u64, u64), What>,
    events: u64,
    disk: FaultyDisk,
    boot: u64,
    server: Option<Server>,
    /// Until when the server's process is stopped.
    paused_until_us: u64,
    /// Time in which the process did not run, in µs.
    not_run_us: u64,
    down_since_us: Option<u64>,
    wall_skew_ms: i64,
    clients: Vec<Client>,
    links: BTreeMap<ConnId, Link>,
    /// The connection each client uses.
    present: Vec<Option<ConnId>>,
    next_conn: u32,
    checks: Checks,
    pub trace: Trace,
    healed: bool,
    disk_trouble_until_us: u64,
    /// The power goes in the middle of some call, or has gone.
    power_fails: bool,
    pub stats: Stats,
}

/// What a run contained: a run without faults or replies proves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub replies: u64,
    pub entries: u64,
    pub crashes: u64,
    pub snapshots: u64,
    pub pauses: u64,
    pub faults: u64,
    pub expirations: u64,
}

impl World {
    pub fn new(seed: u64, sabotage: Sabotage, print: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut params = Params::draw(&mut rng);
        sabotage.arrange(&mut params);
        let clients = params.clients(&mut rng);
        let mut chance = rng.fork();
        let disk = FaultyDisk::new(move |below| chance.below(below));
        let mut world = Self {
            params,
            sabotage,
            rng: rng.fork(),
            now_us: 0,
            queue: BTreeMap::new(),
            events: 0,
            disk,
            boot: 0,
            server: None,
            paused_until_us: 0,
            not_run_us: 0,
            down_since_us: Some(0),
            wall_skew_ms: 0,
            present: vec![None; clients.len()],
            clients,
            links: BTreeMap::new(),
            next_conn: 1,
            checks: Checks::new(),
            trace: Trace::new(print),
            healed: false,
            disk_trouble_until_us: 0,
            power_fails: false,
            stats: Stats::default(),
        };
        note!(world, "seed {seed}: {:?}", world.params);
        for client in &world.clients {
            let line = format!("client {}: {:?}", client.id, client.manners);
            world.trace.note(0, format_args!("{line}"));
        }
        world
    }

    /// The whole run.
    pub fn run(&mut self) -> Verdict {
        self.at(0, What::Start);
        for client in 0..self.clients.len() {
            let at = self.rng.below(1_000_000);
            self.at(at, What::Wake { client });
        }
        self.schedule_troubles();
        let faulty_us = self.params.faulty_us;
        self.run_until(faulty_us, |_| false)?;
        self.heal()?;

        // Everyone must be back and served within a session timeout, some waiting for slow clients
        // to notice that their connection is gone, and the server's own start.
        let longest_us = self.params.timeouts_ms.1 as u64 * 1000;
        let bound_us = self.now_us + 2 * longest_us + 20_000_000;
        self.run_until(bound_us, |world| {
            world.clients.iter().all(Client::is_finished)
        })?;
        let late: Vec<_> = self
            .clients
            .iter()
            .filter(|c| !c.is_finished())
            .map(|client| client.id)
            .collect();
        if !late.is_empty() {
            return broken(
                Group::Liveness,
                format!("25: clients {late:?} are not served"),
            );
        }

        // Sessions without a client end.
        let bound_us = self.now_us + 2 * longest_us + 20_000_000;
        self.run_until(bound_us, |world| world.orphans().is_empty())?;
        let orphans = self.orphans();
        if !orphans.is_empty() {
            return broken(Group::Sessions, format!("24: {orphans:?} are never ended"));
        }
        note!(self, "end");
        for (conn, link) in &self.links {
            if link.server.is_some() && self.checks.is_superseded(*conn) {
                let what = format!("§8.5: {conn:?} is open, but its session went elsewhere");
                return broken(Group::Sessions, what);
            }
        }
        self.compare(true)?;
        let Self {
            checks,
            clients,
            now_us,
            stats,
            ..
        } = self;
        checks.recipes.look(clients, *now_us)?;
        checks.recipes.end(&checks.model)?;
        stats.entries = checks.model.index;
        stats.expirations = clients.iter().map(|client| client.expirations).sum();
        Ok(())
    }

    /// Sessions that no living client has.
    fn orphans(&self) -> Vec<SessionId> {
        let living: Vec<_> = self
            .clients
            .iter()
            .filter(|c| !c.is_dead())
            .map(|client| client.session)
            .collect();
        let sessions = self.checks.model.sessions.keys();
        sessions
            .filter(|session| !living.contains(session))
            .copied()
            .collect()
    }

    fn run_until(&mut self, until_us: u64, done: impl Fn(&Self) -> bool) -> Verdict {
        while !done(self)
            && let Some(entry) = self.queue.first_entry()
        {
            let (at_us, _) = *entry.key();
            if at_us > until_us {
                self.now_us = until_us;
                break;
            }
            let what = entry.remove();
            self.now_us = at_us;
            self.happen(what)?;
        }
        Ok(())
    }

    fn happen(&mut self, what: What) -> Verdict {
        let of_server = matches!(
            what,
            What::Tick { .. }
                | What::Turn { .. }
                | What::Synced { .. }
                | What::Seal { .. }
                | What::SnapshotWritten { .. }
                | What::Output { .. }
        );
        // Sabotaged: the node thread runs on while nobody reads the sockets.
        let runs_on = self.sabotage == Sabotage::DeafPause && !matches!(what, What::Output { .. });
        if of_server && self.now_us < self.paused_until_us && !runs_on {
            let until = self.paused_until_us;
            self.at(until, what);
            return Ok(());
        }
        match what {
            What::Tick { boot } if self.is_boot(boot) => self.tick(),
            What::Turn { boot } if self.is_boot(boot) => self.turn(),
            What::Synced { boot } if self.is_boot(boot) => self.synced(),
            What::Seal { boot } if self.is_boot(boot) => self.seal(),
            What::SnapshotWritten { boot } if self.is_boot(boot) => self.snapshot_written(),
            What::Tick { .. }
            | What::Turn { .. }
            | What::Synced { .. }
            | What::Seal { .. }
            | What::SnapshotWritten { .. } => Ok(()),
            What::Output { conn } => self.output(conn),
            What::Up { conn, frame } => self.up(conn, frame),
            What::UpClosed { conn } => self.up_closed(conn),
            What::Down { conn, frame } => self.down(conn, frame),
            What::DownClosed { conn } => self.down_closed(conn),
            What::Wake { client } => self.wake(client),
            What::Start => self.start(),
            What::Resume => self.resume(),
            What::Fault(trouble) => self.trouble(trouble),
        }
    }

    // ---- the server's process ----

    /// Recovers from the disk and starts.
    fn start(&mut self) -> Verdict {
        if self.server.is_some() {
            return Ok(());
        }
        self.boot += 1;
        let boot = self.boot;
        let load = |reader: Option<SnapshotReader>| match reader {
            None => Ok(Machine::new()),
            Some(reader) => {
                let path = reader.path().to_owned();
                Machine::restore(reader).map_err(|error| Fault::RejectedSnapshot {
                    path,
                    reason: error.to_string(),
                })
            }
        };
        let disk: Arc<dyn zkraft::storage::Disk> = Arc::new(self.disk.clone());
        let options = WalOptions {
            segment_bytes: self.params.segment_bytes,
            ..WalOptions::default()
        };
        let known = Known {
            identity: IDENTITY,
            incarnation: None,
            last_group: None,
        };
        let dirs = (Path::new(LOG_DIR), Path::new(SNAPSHOT_DIR));
        let (mut recovery, wal) = match recover(&disk, dirs, options, known, None, load) {
            Ok(recovered) => recovered,
            Err(fault) => {
                note!(self, "start {boot} fails: {fault}");
                let expected = matches!(
                    fault,
                    Fault::Io { .. } | Fault::DiskFull { .. } | Fault::Sync { .. }
                );
                if !expected || self.healed {
                    return broken(Group::Log, format!("8: cannot start: {fault}"));
                }
                self.disk_died(&fault);
                let at = self.now_us + self.rng.between(100_000, 1_000_000);
                self.at(at, What::Start);
                return Ok(());
            }
        };
        self.sabotage.recovered(&mut recovery.entries);
        let base = recovery.snapshot.as_ref().map_or(0, |meta| meta.index);
        note!(
            self,
            "start {boot}: snapshot {base}, {} entries, {:?}, {} warnings",
            recovery.entries.len(),
            recovery.hard_state,
            recovery.warnings.len()
        );
        self.checks
            .log
            .recovered(base, &recovery.entries, recovery.hard_state)?;

        let membership = recovery.membership.unwrap_or_else(|| log::Membership {
            voters: vec![u64::from(SERVER)],
            ..log::Membership::default()
        });
        let passwords = AtomicU64::new(self.rng.next());
        let setup = Setup {
            origin: OriginId {
                server: SERVER,
                disk: IDENTITY.disk,
                incarnation: recovery.incarnation,
            },
            options: self.options(),
            random: Box::new(move || Rng::new(passwords.fetch_add(1, Ordering::Relaxed)).bytes16()),
            logger: slog::Logger::root(slog::Discard, slog::o!()),
            machine: recovery.machine,
            hard_state: recovery.hard_state,
            membership,
            entries: recovery.entries,
        };
        let engine = Engine::new(setup, self.clock_ms());
        let shared = engine.shared();
        let wakes = Wakes::default();
        let node = wakes.node.clone();
        shared.on_submission(Box::new(move || node.store(true, Ordering::Relaxed)));
        self.server = Some(Server {
            boot,
            engine,
            shared,
            wal,
            queue: Vec::new(),
            queued_number: 0,
            queued_sync: false,
            written: None,
            suspect: false,
            snapshot: None,
            turn_due: false,
            serving: false,
            wakes,
            written_us: self.now_us,
        });
        if let Some(since) = self.down_since_us.take() {
            self.not_run_us += self.now_us - since;
        }
        self.at(self.now_us + TICK_MS * 1000, What::Tick { boot });
        self.at(self.now_us + SEAL_US, What::Seal { boot });
        self.turn()
    }

    fn options(&self) -> Options {
        let never_used_ms = 0;
        Options {
            tick_ms: TICK_MS,
            session_tick_ms: self.params.session_tick_ms,
            min_session_timeout_ms: self.params.timeouts_ms.0,
            max_session_timeout_ms: self.params.timeouts_ms.1,
            snap_count: self.params.snap_count,
            cleaner: CleanerOptions {
                interval_ms: self.params.cleaner_ms,
                per_minute: 60_000,
                never_used_ms,
            },
            auth: AuthOptions::default(),
            settings: self.params.settings.clone(),
            ..Options::default()
        }
    }

    /// The process ends. `power`: the machine with it.
    fn stop(&mut self, why: &str, power: bool) {
        let Some(server) = self.server.take() else {
            return;
        };
        note!(
            self,
            "stop: {why}{}",
            if power { ", power lost" } else { "" }
        );
        drop(server);
        self.stats.crashes += 1;
        self.down_since_us = Some(self.now_us);
        if self.paused_until_us > self.now_us {
            // The rest of the pause was counted in advance.
            self.not_run_us -= self.paused_until_us - self.now_us;
            self.paused_until_us = self.now_us;
        }
        if power {
            self.lose_power();
        }
        let silent = power && self.rng.percent(50);
        let conns: Vec<ConnId> = self.links.keys().copied().collect();
        for conn in conns {
            self.checks.gone(conn);
            let Some(link) = self.links.get_mut(&conn) else {
                continue;
            };
            link.server = None;
            link.accepted = true;
            link.input.clear();
            link.cut |= silent;
            self.close_down(conn);
        }
        let after_us = self.rng.between(10_000, 2_000_000);
        self.at(self.now_us + after_us, What::Start);
    }

    /// A fault of the disk ends the process; sometimes the machine goes down with it. After a
    /// failed sync it always does (see [`SYNC_FAILURES_LOSE_POWER`]).
    fn disk_died(&mut self, fault: &Fault) {
        self.stats.faults += 1;
        let lost = SYNC_FAILURES_LOSE_POWER && matches!(fault, Fault::Sync { .. });
        let power = lost || self.power_fails || self.rng.percent(50);
        if self.server.is_some() {
            self.stop("the disk failed", power);
        } else if power {
            self.lose_power();
        }
    }

    fn tick(&mut self) -> Verdict {
        let now_ms = self.clock_ms();
        let server = self.server.as_mut().expect("it runs");
        let mut out = Outputs::default();
        server.engine.handle(Event::Tick, now_ms, &mut out);
        let boot = server.boot;
        self.at(self.now_us + TICK_MS * 1000, What::Tick { boot });
        self.turn()
    }

    fn turn(&mut self) -> Verdict {
        let (now_ms, wall_ms) = (self.clock_ms(), self.wall_ms());
        let server = self.server.as_mut().expect("it runs");
        server.turn_due = false;
        server.wakes.node.store(false, Ordering::Relaxed);
        let mut out = Outputs::default();
        server.engine.turn(now_ms, wall_ms, &mut out);
        self.checks.ran_ms = self.ran_ms();
        for append in out.append {
            self.append(append)?;
        }
        self.compare(false)?;
        self.serving_changed();
        if let Some((meta, image)) = out.take_snapshot {
            self.begin_snapshot(meta, &image)?;
        }
        self.start_write()?;
        self.look_at_wakes();
        Ok(())
    }

    /// Lets the checkers follow what was applied.
    fn compare(&mut self, deep: bool) -> Verdict {
        let Some(server) = &self.server else {
            return Ok(());
        };
        let deep = deep || self.rng.permille(3);
        self.checks.applied(&server.engine, deep)
    }

    fn serving_changed(&mut self) {
        let ran_ms = self.ran_ms();
        let Some(server) = &mut self.server else {
            return;
        };
        let serving = server.shared.is_serving();
        if serving != server.serving {
            server.serving = serving;
            self.checks.sessions.serving(ran_ms);
            note!(self, "serving: {serving}");
        }
    }

    fn append(&mut self, append: Append) -> Verdict {
        let Append {
            number,
            record,
            sync,
        } = append;
        let indexes = (record.entries.first(), record.entries.last());
        if let (Some(first), Some(last)) = indexes {
            note!(
                self,
                "append {number}: {}..={}, term {}",
                first.index,
                last.index,
                last.term
            );
        }
        self.checks.log.appended(&record)?;
        let ran_ms = self.ran_ms();
        for entry in &record.entries {
            let content = log::Entry::decode(entry.data.as_ref());
            let internal = content.map(|content| content.internal).unwrap_or_default();
            self.checks
                .sessions
                .proposed(&internal, ran_ms, &self.checks.model)?;
        }
        let server = self.server.as_mut().expect("it runs");
        server.queue.push(record);
        server.queued_number = number;
        server.queued_sync |= sync;
        Ok(())
    }

    // ---- the log thread ----

    /// Takes everything that is queued, unless it is busy.
    fn start_write(&mut self) -> Verdict {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        if server.written.is_some() || server.queue.is_empty() {
            return Ok(());
        }
        let records = std::mem::take(&mut server.queue);
        let sync = std::mem::take(&mut server.queued_sync);
        let number = server.queued_number;
        let index = records
            .iter()
            .flat_map(|record| &record.entries)
            .last()
            .map_or(0, |e| e.index);
        let state = records.iter().rev().find_map(|record| record.hard_state);
        let boot = server.boot;
        server.written_us = self.now_us;
        if self.sabotage != Sabotage::ForgetWrites
            && let Err(fault) = server.wal.write(&records)
        {
            note!(self, "{fault}");
            return self.log_failed(&fault);
        }
        let server = self.server.as_mut().expect("it runs");
        let state = state.unwrap_or(self.checks.log.written_state());
        server.written = Some(Written {
            number,
            index,
            state,
            sync,
        });
        if self.sabotage == Sabotage::AckBeforeSync {
            let mut out = Outputs::default();
            let now_ms = self.now_us / 1000;
            server
                .engine
                .handle(Event::Persisted(number), now_ms, &mut out);
            self.turn_soon();
        }
        let slow = self.rng.permille(self.params.slow_sync_permille);
        let longest_us = if slow {
            self.params.slow_sync_us
        } else {
            self.params.sync_us
        };
        let after_us = if sync {
            self.rng.between(1, longest_us)
        } else {
            1
        };
        self.at(self.now_us + after_us, What::Synced { boot });
        Ok(())
    }

    fn synced(&mut self) -> Verdict {
        let now_ms = self.clock_ms();
        let server = self.server.as_mut().expect("it runs");
        let Some(Written {
            number,
            index,
            state,
            sync,
        }) = server.written.take()
        else {
            return Ok(());
        };
        if sync {
            if let Err(fault) = server.wal.sync() {
                note!(self, "{fault}");
                return self.log_failed(&fault);
            }
            self.checks.log.synced(index, state);
        }
        let server = self.server.as_mut().expect("it runs");
        let mut out = Outputs::default();
        server
            .engine
            .handle(Event::Persisted(number), now_ms, &mut out);
        self.start_write()?;
        self.turn_soon();
        Ok(())
    }

    fn seal(&mut self) -> Verdict {
        let server = self.server.as_mut().expect("it runs");
        let boot = server.boot;
        if server.written.is_none() && self.now_us > server.written_us + SEAL_US {
            if let Err(fault) = server.wal.seal_if_idle() {
                note!(self, "{fault}");
                return self.log_failed(&fault);
            }
        }
        self.at(self.now_us + SEAL_US, What::Seal { boot });
        Ok(())
    }

    fn log_failed(&mut self, fault: &Fault) -> Verdict {
        if self.healed {
            return broken(Group::Log, format!("the disk is well, but: {fault}"));
        }
        self.disk_died(fault);
        Ok(())
    }

    // ---- the snapshot thread ----

    fn begin_snapshot(
        &mut self,
        mut meta: SnapshotMeta,
        image: &zkraft::machine::Image,
    ) -> Verdict {
        note!(self, "snapshot at {}, zxid {:x}", meta.index, meta.zxid);
        if self.sabotage == Sabotage::SnapshotOneShort {
            meta.index += 1;
        }
        let disk = Arc::new(self.disk.clone());
        let dir = Path::new(SNAPSHOT_DIR);
        let written =
            SnapshotWriter::create(disk, dir, IDENTITY.cluster, &meta).and_then(|mut writer| {
                for chunk in image.chunks() {
                    writer.push(&chunk)?;
                }
                Ok(writer)
            });
        let now_ms = self.clock_ms();
        let server = self.server.as_mut().expect("it runs");
        match written {
            Ok(writer) => {
                server.snapshot = Some((meta, writer));
                let boot = server.boot;
                let after_us = self.rng.between(1_000, 500_000);
                self.at(self.now_us + after_us, What::SnapshotWritten { boot });
            }
            Err(fault) => {
                note!(self, "snapshot: {fault}");
                let server = self.server.as_mut().expect("it runs");
                server
                    .engine
                    .handle(Event::SnapshotFailed, now_ms, &mut Outputs::default());
            }
        }
        Ok(())
    }

    fn snapshot_written(&mut self) -> Verdict {
        let now_ms = self.clock_ms();
        let server = self.server.as_mut().expect("it runs");
        let Some((meta, writer)) = server.snapshot.take() else {
            return Ok(());
        };
        match writer.finish() {
            Err(fault) => {
                note!(self, "snapshot: {fault}");
                let server = self.server.as_mut().expect("it runs");
                server
                    .engine
                    .handle(Event::SnapshotFailed, now_ms, &mut Outputs::default());
                Ok(())
            }
            Ok(bytes) => {
                note!(self, "snapshot {} written", meta.index);
                self.stats.snapshots += 1;
                let server = self.server.as_mut().expect("it runs");
                let event = Event::SnapshotTaken {
                    index: meta.index,
                    bytes,
                };
                server.engine.handle(event, now_ms, &mut Outputs::default());
                let mark = log::SnapshotMark {
                    index: meta.index,
                    term: meta.term,
                    membership: Some(meta.membership),
                };
                let record = log::Record {
                    mark: Some(mark),
                    ..log::Record::default()
                };
                server.queue.push(record);
                self.purge()?;
                self.start_write()
            }
        }
    }

    /// Removes what no kept snapshot needs, as the storage does.
    fn purge(&mut self) -> Verdict {
        let dir = Path::new(SNAPSHOT_DIR);
        let keep = self.params.keep_snapshots.max(2);
        let purged =
            purge_snapshots(&self.disk, dir, keep).and_then(|()| list_snapshots(&self.disk, dir));
        let server = self.server.as_mut().expect("it runs");
        if let Ok(files) = purged
            && files.len() > 1
        {
            let floor = files[files.len().min(keep) - 1].index + 1;
            if let Err(fault) = server.wal.release_below(floor) {
                server.suspect = true;
                note!(self, "release: {fault}");
            }
        }
        Ok(())
    }

    // ---- connections, the server's side ----

    fn up(&mut self, conn: ConnId, frame: Bytes) -> Verdict {
        let Some(link) = self.links.get_mut(&conn) else {
            return Ok(());
        };
        if link.cut {
            return Ok(());
        }
        if link.server.is_none() {
            if std::mem::replace(&mut link.accepted, true) {
                // The process that had this connection is gone: the answer is a reset.
                self.close_down(conn);
                return Ok(());
            }
            let Some(server) = &self.server else {
                self.close_down(conn);
                return Ok(());
            };
            let outputs = server.wakes.outputs.clone();
            let wake = Box::new(move || {
                outputs.lock().expect("nobody panics with it").push(conn);
            });
            let peer = (conn.address(), 40_000).into();
            let link = self.links.get_mut(&conn).expect("it is there");
            link.server = Some(server.shared.connect(peer, wake));
        }
        let link = self.links.get_mut(&conn).expect("it is there");
        link.input.push_back(frame);
        if self.now_us < self.paused_until_us {
            // It stays in the socket's buffer; somebody reads it when the process runs again.
            self.at(self.paused_until_us, What::Output { conn });
            return Ok(());
        }
        self.read_input(conn)
    }

    /// The connection's task reads what its pipeline has room for.
    fn read_input(&mut self, conn: ConnId) -> Verdict {
        let now_ms = self.clock_ms();
        let ran_ms = self.ran_ms();
        while let Some(link) = self.links.get_mut(&conn)
            && let Some(connection) = link.server.clone()
            && connection.wants_input()
            && let Some(frame) = link.input.pop_front()
        {
            if self.now_us < self.paused_until_us {
                link.input.push_front(frame);
                break;
            }
            note!(self, "{conn:?} > server: {}", short(&frame));
            let serving = self.server.as_ref().is_some_and(|server| server.serving);
            self.checks.received(conn, ran_ms);
            if let Err(refused) = connection.receive(frame, now_ms) {
                note!(self, "{conn:?} refused: {}", refused.0);
                if serving || refused.0 != "not serving" {
                    return broken(Group::Replies, format!("{conn:?} refused: {}", refused.0));
                }
                self.close_server_side(conn);
                return Ok(());
            }
            self.output_soon(conn);
        }
        self.look_at_wakes();
        Ok(())
    }

    fn output(&mut self, conn: ConnId) -> Verdict {
        loop {
            let Some(link) = self.links.get_mut(&conn) else {
                return Ok(());
            };
            let Some(connection) = link.server.clone() else {
                return Ok(());
            };
            let remaining = connection.take_output(&mut link.output);
            let mut frames = Vec::new();
            while let Some(frame) = reply::next_frame(&mut link.output) {
                frames.push(frame);
            }
            self.sabotage.frames(&mut frames, &mut self.rng);
            for frame in frames {
                note!(self, "{conn:?} < server: {}", short(&frame));
                self.stats.replies += 1;
                self.checks.frame(conn, frame.clone())?;
                self.send_down(conn, frame);
            }
            match remaining {
                Remaining::More => {}
                Remaining::Nothing => break,
                Remaining::Closed => {
                    note!(self, "{conn:?} closed by server");
                    self.checks.closed_by_server(conn)?;
                    self.close_server_side(conn);
                    return Ok(());
                }
            }
        }
        self.read_input(conn)
    }

    /// The server's task ends: its socket is closed.
    fn close_server_side(&mut self, conn: ConnId) {
        if let Some(link) = self.links.get_mut(&conn) {
            if let Some(connection) = link.server.take() {
                connection.lost();
            }
            link.input.clear();
        }
        self.checks.gone(conn);
        self.close_down(conn);
    }

    fn up_closed(&mut self, conn: ConnId) -> Verdict {
        let Some(link) = self.links.get_mut(&conn) else {
            return Ok(());
        };
        if link.cut {
            return Ok(());
        }
        if self.now_us < self.paused_until_us {
            self.at(self.paused_until_us, What::UpClosed { conn });
            return Ok(());
        }
        if let Some(connection) = link.server.take() {
            connection.lost();
        }
        self.checks.gone(conn);
        self.links.remove(&conn);
        Ok(())
    }

    fn look_at_wakes(&mut self) {
        let Some(server) = &mut self.server else {
            return;
        };
        let conns = std::mem::take(&mut *server.wakes.outputs.lock().expect("nobody panics"));
        let node = server.wakes.node.swap(false, Ordering::Relaxed);
        for conn in conns {
            self.output_soon(conn);
        }
        if node {
            self.turn_soon();
        }
    }

    fn output_soon(&mut self, conn: ConnId) {
        let after_us = self.rng.between(0, self.params.handover_us);
        self.at(self.now_us + after_us, What::Output { conn });
    }

    fn turn_soon(&mut self) {
        let Some(server) = &mut self.server else {
            return;
        };
        if !std::mem::replace(&mut server.turn_due, true) {
            let boot = server.boot;
            let after_us = self.rng.between(0, self.params.handover_us);
            self.at(self.now_us + after_us, What::Turn { boot });
        }
    }

    // ---- the network ----

    fn send_up(&mut self, conn: ConnId, frame: Bytes) {
        let latency_us = self.rng.between(1, self.params.latency_us);
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        link.up_us = link.up_us.max(self.now_us + latency_us);
        let at = link.up_us;
        self.at(at, What::Up { conn, frame });
    }

    fn send_down(&mut self, conn: ConnId, frame: Bytes) {
        let latency_us = self.rng.between(1, self.params.latency_us);
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        link.down_us = link.down_us.max(self.now_us + latency_us);
        let at = link.down_us;
        self.at(at, What::Down { conn, frame });
    }

    /// The server's side is closed: the client learns of it, unless the link is cut.
    fn close_down(&mut self, conn: ConnId) {
        let latency_us = self.rng.between(1, self.params.latency_us);
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        link.down_us = link.down_us.max(self.now_us + latency_us);
        let at = link.down_us;
        self.at(at, What::DownClosed { conn });
    }

    // ---- clients ----

    fn down(&mut self, conn: ConnId, frame: Bytes) -> Verdict {
        let Some(link) = self.links.get(&conn) else {
            return Ok(());
        };
        let client = link.client;
        if link.cut || !link.client_open || self.present[client] != Some(conn) {
            return Ok(());
        }
        let mut actions = Vec::new();
        let now_us = self.now_us;
        self.clients[client].frame(now_us, frame, &mut actions);
        self.act(client, actions)?;
        self.checks.recipes.look(&mut self.clients, now_us)
    }

    fn down_closed(&mut self, conn: ConnId) -> Verdict {
        let Some(link) = self.links.get_mut(&conn) else {
            return Ok(());
        };
        if link.cut {
            return Ok(());
        }
        let client = link.client;
        self.links.remove(&conn);
        if self.present[client] != Some(conn) {
            return Ok(());
        }
        self.present[client] = None;
        let mut actions = Vec::new();
        let now_us = self.now_us;
        self.clients[client].lost(now_us, &mut actions);
        self.act(client, actions)
    }

    fn wake(&mut self, client: usize) -> Verdict {
        let other = self.rng.below(self.clients.len() as u64) as usize;
        let other = self.clients[other].session;
        let mut actions = Vec::new();
        let now_us = self.now_us;
        self.clients[client].wake(now_us, other, &mut actions);
        self.act(client, actions)
    }

    fn act(&mut self, client: usize, actions: Vec<Action>) -> Verdict {
        for action in actions {
            match action {
                Action::Wake(at) => self.at(at, What::Wake { client }),
                Action::Connect(handshake) => self.connect(client, handshake),
                Action::Send(sent) => {
                    let Some(conn) = self.present[client] else {
                        continue;
                    };
                    note!(
                        self,
                        "client {client} on {conn:?} sends {} {:?}",
                        sent.xid,
                        sent.request
                    );
                    let frame = sent.frame();
                    self.checks.sent(conn, sent);
                    self.send_up(conn, frame);
                }
                Action::Drop { silent } => {
                    let Some(conn) = self.present[client].take() else {
                        continue;
                    };
                    note!(self, "client {client} drops {conn:?}, silent: {silent}");
                    self.close_client_side(conn, silent);
                }
            }
        }
        Ok(())
    }

    fn connect(&mut self, client: usize, handshake: ConnectRequest) {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        note!(self, "client {client} opens {conn:?}: {handshake:?}");
        self.links.insert(
            conn,
            Link {
                client,
                server: None,
                input: VecDeque::new(),
                output: BytesMut::new(),
                client_open: true,
                accepted: false,
                cut: false,
                up_us: self.now_us,
                down_us: self.now_us,
            },
        );
        // An earlier connection stays as it is: what it still carries finds no one here, and its
        // close comes when the server gives it up.
        self.present[client] = Some(conn);
        let mut frame = BytesMut::new();
        handshake.encode(&mut frame);
        self.checks.opened(conn, handshake);
        self.send_up(conn, frame.freeze());
    }

    fn close_client_side(&mut self, conn: ConnId, silent: bool) {
        let latency_us = self.rng.between(1, self.params.latency_us);
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        link.client_open = false;
        if silent {
            link.cut = true;
            return;
        }
        link.up_us = link.up_us.max(self.now_us + latency_us);
        let at = link.up_us;
        self.at(at, What::UpClosed { conn });
    }

    // ---- what goes wrong ----

    fn schedule_troubles(&mut self) {
        for trouble in [
            Trouble::Crash,
            Trouble::Pause,
            Trouble::Reset,
            Trouble::Disk,
            Trouble::Full,
            Trouble::ClockJump,
        ] {
            self.schedule_trouble(trouble);
        }
    }

    fn schedule_trouble(&mut self, trouble: Trouble) {
        let mean_us = match trouble {
            Trouble::Crash => self.params.crash_every_us,
            Trouble::Pause => self.params.pause_every_us,
            Trouble::Reset => self.params.reset_every_us,
            Trouble::Disk => self.params.disk_fault_every_us,
            Trouble::Full => self.params.full_disk_every_us,
            Trouble::ClockJump => self.params.clock_jump_every_us,
        };
        if mean_us > 0 {
            let after_us = self.rng.between(1, 2 * mean_us);
            self.at(self.now_us + after_us, What::Fault(trouble));
        }
    }

    fn trouble(&mut self, trouble: Trouble) -> Verdict {
        if self.healed {
            return Ok(());
        }
        match trouble {
            Trouble::Crash => {
                let power = self.rng.percent(70);
                self.stop("crash", power);
                if self.rng.permille(100) {
                    let client = self.rng.below(self.clients.len() as u64) as usize;
                    note!(self, "client {client} dies");
                    self.clients[client].die();
                    if let Some(conn) = self.present[client].take() {
                        self.close_client_side(conn, true);
                    }
                }
            }
            Trouble::Pause => self.pause(),
            Trouble::Reset => {
                let conns: Vec<ConnId> = self.links.keys().copied().collect();
                if !conns.is_empty() {
                    let conn = *self.rng.pick(&conns);
                    self.reset(conn);
                }
            }
            Trouble::Disk => {
                let faults = match self.rng.below(3) {
                    0 => Faults {
                        write_permille: 200,
                        ..Faults::default()
                    },
                    1 => Faults {
                        sync_permille: 200,
                        ..Faults::default()
                    },
                    _ => Faults {
                        power_for: Some(self.rng.below(20)),
                        ..Faults::default()
                    },
                };
                self.power_fails |= faults.power_for.is_some();
                note!(self, "disk: {faults:?}");
                self.disk.set_faults(faults);
            }
            Trouble::Full => {
                note!(self, "disk full");
                let capacity = Some(self.rng.below(64 << 10));
                self.disk.set_faults(Faults {
                    capacity,
                    ..Faults::default()
                });
            }
            Trouble::ClockJump => {
                self.wall_skew_ms += self.rng.between(0, 20_000) as i64 - 10_000;
                note!(self, "wall clock jumps to {}", self.wall_ms());
            }
        }
        if matches!(trouble, Trouble::Disk | Trouble::Full) {
            self.disk_trouble_until_us = self.now_us + self.rng.between(100_000, 3_000_000);
            self.at(self.disk_trouble_until_us, What::Resume);
        }
        self.schedule_trouble(trouble);
        Ok(())
    }

    /// The process stops and goes on later: sockets fill, clocks go on.
    fn pause(&mut self) {
        if self.server.is_none() || self.now_us < self.paused_until_us {
            return;
        }
        let longest_us = self.params.timeouts_ms.0 as u64 * 3000;
        let pause_us = self
            .rng
            .between(5 * TICK_MS * 1000, longest_us.max(500_000));
        note!(self, "pause of {pause_us} µs");
        self.stats.pauses += 1;
        self.paused_until_us = self.now_us + pause_us;
        // The engine counts one tick for it, whatever its length.
        self.not_run_us += pause_us - TICK_MS * 1000;
    }

    /// A connection breaks in the middle; both sides learn of it, each in its time.
    fn reset(&mut self, conn: ConnId) {
        note!(self, "reset of {conn:?}");
        let (up_us, down_us) = (
            self.now_us + self.rng.between(1, self.params.latency_us),
            self.now_us + self.rng.between(1, self.params.latency_us),
        );
        // What is on its way is lost, except what arrives before the news.
        self.at(up_us, What::UpClosed { conn });
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        link.client_open = false;
        let client = link.client;
        if self.present[client] == Some(conn) {
            self.present[client] = None;
            self.at(down_us, What::Wake { client });
            let mut actions = Vec::new();
            let now_us = self.now_us;
            self.clients[client].lost(now_us, &mut actions);
            // A lost client only asks to be woken.
            for action in actions {
                if let Action::Wake(at) = action {
                    self.at(at, What::Wake { client });
                }
            }
        }
    }

    /// A trouble of the disk is over.
    fn resume(&mut self) -> Verdict {
        if self.now_us >= self.disk_trouble_until_us {
            self.disk_is_well();
        }
        Ok(())
    }

    fn disk_is_well(&mut self) {
        note!(self, "disk well");
        self.disk.set_faults(Faults::default());
        if self.power_fails {
            // Whoever met it or not: the machine restarts.
            self.stop("power failure", true);
            self.lose_power();
        }
    }

    /// What the disk had not synced is gone; then it works again.
    fn lose_power(&mut self) {
        self.disk.crash();
        self.power_fails = false;
    }

    /// The last fault is over.
    fn heal(&mut self) -> Verdict {
        note!(self, "heal");
        self.disk_is_well();
        self.params.slow_sync_permille = 0;
        if self.now_us < self.paused_until_us {
            self.not_run_us -= self.paused_until_us - self.now_us;
            self.paused_until_us = self.now_us;
        }
        let suspect = self.server.as_ref().is_some_and(|server| server.suspect);
        if suspect || self.rng.percent(50) {
            self.stop("last restart", false);
        }
        self.healed = true;
        for client in 0..self.clients.len() {
            let mut actions = Vec::new();
            let now_us = self.now_us;
            self.clients[client].finish(now_us, &mut actions);
            self.act(client, actions)?;
        }
        Ok(())
    }

    // ---- clocks ----

    /// The server's monotonic clock, in ms.
    fn clock_ms(&self) -> u64 {
        self.sabotage.clock_ms(1_000_000 + self.now_us / 1000)
    }

    fn wall_ms(&self) -> i64 {
        EPOCH_MS + (self.now_us / 1000) as i64 + self.wall_skew_ms
    }

    /// Time that the server's process ran, in ms.
    fn ran_ms(&self) -> u64 {
        (self.now_us - self.not_run_us.min(self.now_us)) / 1000
    }

    fn is_boot(&self, boot: u64) -> bool {
        self.server
            .as_ref()
            .is_some_and(|server| server.boot == boot)
    }

    fn at(&mut self, at_us: u64, what: What) {
        self.events += 1;
        self.queue
            .insert((at_us.max(self.now_us), self.events), what);
    }
}

/// The first bytes of a frame, to tell frames apart.
fn short(frame: &[u8]) -> String {
    let shown = &frame[..frame.len().min(24)];
    let hex: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes {hex}", frame.len())
}

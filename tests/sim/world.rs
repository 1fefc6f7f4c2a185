//! The world of a run: time, network, one server on its disk, its clients, and what goes wrong.
//!
//! One queue of (time, event), one thread, one seed. The server is the real engine over the real
//! log and snapshot code; only the threads between them are played here: the node thread's turns,
//! the log thread's writes and syncs, the connection tasks' reading and writing, each with delays
//! of its own. Faults come for a while; then everything heals, and must work again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use zkraft::engine::{Connection, Engine, Shared, SnapshotMeta};
use zkraft::proto::log;
use zkraft::storage::{SnapshotWriter, Wal};
use zkraft::wire::SessionId;

use crate::check::{Checks, ConnId, Group, Verdict, broken};
use crate::client::Client;
use crate::disk::FaultyDisk;
use crate::params::Params;
use crate::rng::Rng;
use crate::sabotage::Sabotage;
use crate::trace::Trace;

/// Heartbeats of the engine, in ms.
pub const TICK_MS: u64 = 50;
/// The clock on the wall when a run begins, in ms since 1970.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// Writes a line of the trace.
macro_rules! note {
    ($world:expr, $($arg:tt)*) => {
        $world.trace.note($world.now_us, format_args!($($arg)*))
    };
}

mod process;
mod storage;
mod trouble;
mod wires;

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
    PowerLoss,
    Resume,
    Fault(Trouble),
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    Crash,
    /// The process is told to stop, writes what it has, and starts again.
    Restart,
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
    pub frames: u64,
    pub watch_events: u64,
    pub entries: u64,
    pub crashes: u64,
    pub clean_stops: u64,
    pub snapshots: u64,
    pub pauses: u64,
    pub disk_faults: u64,
    /// Clients that were told that their session is over.
    pub expirations: u64,
    /// Handshakes that were refused.
    pub refusals: u64,
    /// Commands that came through an attachment that was not the present one.
    pub moved: u64,
    /// Connections whose requests were not read for a while, since too many wait.
    pub floods: u64,
}

impl Stats {
    fn parts(&mut self) -> [(&'static str, &mut u64); 12] {
        [
            ("frames", &mut self.frames),
            ("watch events", &mut self.watch_events),
            ("entries", &mut self.entries),
            ("crashes", &mut self.crashes),
            ("clean stops", &mut self.clean_stops),
            ("snapshots", &mut self.snapshots),
            ("pauses", &mut self.pauses),
            ("disk faults", &mut self.disk_faults),
            ("expirations", &mut self.expirations),
            ("refusals", &mut self.refusals),
            ("moved commands", &mut self.moved),
            ("flooded connections", &mut self.floods),
        ]
    }

    pub fn add(&mut self, other: &Self) {
        let mut other = *other;
        for ((_, sum), (_, part)) in self.parts().into_iter().zip(other.parts()) {
            *sum += *part;
        }
    }

    /// What never happened.
    pub fn missing(mut self) -> Vec<&'static str> {
        let parts = self.parts().into_iter();
        parts
            .filter(|(_, count)| **count == 0)
            .map(|(name, _)| name)
            .collect()
    }
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
        (stats.watch_events, stats.refusals, stats.moved) = checks.seen;
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
            What::PowerLoss if !self.healed => {
                self.stop("crash", true);
                Ok(())
            }
            What::PowerLoss => Ok(()),
            What::Resume => self.resume(),
            What::Fault(trouble) => self.trouble(trouble),
        }
    }

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

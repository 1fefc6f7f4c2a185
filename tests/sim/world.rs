//! The world of a run: time, networks, servers on their disks, their clients, and what goes wrong.
//!
//! One queue of (time, event), one thread, one seed. A server is the real engine over the real log
//! and snapshot code; only the threads between them are played here: the node thread's turns, the
//! log thread's writes and syncs, the connection tasks' reading and writing, the links between
//! servers and the snapshots they send each other, each with delays of its own. Faults come for a
//! while; then everything heals, and must work again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use zkraft::engine::Connection;
use zkraft::wire::SessionId;

use crate::check::{Checks, ConnId, Group, Verdict, Violation, broken};
use crate::client::Client;
use crate::params::{Params, Plan};
use crate::rng::Rng;
use crate::sabotage::{Forwarded, Sabotage};
use crate::stats::Stats;
use crate::trace::{Telling, Trace};

/// Heartbeats of the engine, in ms.
pub const TICK_MS: u64 = 50;

/// What makes the second stream of a seed. Chosen so that it leaves most of the seeds that found
/// something as they were.
const REST: u64 = 0x14046;

/// After a start, an election, and the last fault, all servers are well after this time, in µs.
const CALM_AFTER_US: u64 = 3_000_000;
/// After so many writes a run is long enough: all of them are remembered, and more would take
/// gigabytes.
const MOST_OPERATIONS: u64 = 100_000;

/// Writes a line of the trace, if it is wanted: otherwise the arguments are not looked at.
macro_rules! note {
    ($world:expr, $($arg:tt)*) => {
        if $world.trace.is_on() {
            $world.trace.note($world.now_us, format_args!($($arg)*));
        }
    };
}

mod aim;
mod builds;
mod grace;
mod host;
mod links;
mod members;
mod network;
mod process;
mod rot;
mod situation;
mod storage;
mod transfer;
mod trouble;
mod wires;

use aim::Aim;
use host::{Host, Process};
use network::Network;
use rot::Rot;

pub use members::line;

/// What happens at some time.
#[derive(Debug)]
enum What {
    /// In a process of a server, if it still runs.
    Step {
        server: usize,
        boot: u64,
        step: Step,
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
    /// A frame of another server arrives, if both still are in these starts.
    Peer {
        link: (usize, usize),
        boots: (u64, u64),
        frame: Bytes,
    },
    /// A link between two servers breaks again.
    Flap {
        link: (usize, usize),
        times: u64,
        every_us: u64,
    },
    Start {
        server: usize,
    },
    PowerLoss {
        server: usize,
    },
    /// The end of a pause.
    Awake {
        server: usize,
    },
    /// The end of a trouble with the disk.
    Resume {
        server: usize,
    },
    /// An operator replaces a build that is too old.
    Replace {
        server: usize,
    },
    /// An operator replaces a disk that rots.
    NewDisk {
        server: usize,
    },
    /// Another client takes the place of one that died.
    Inherit {
        client: usize,
    },
    Fault(Trouble),
    /// One that is meant for this server.
    Aimed {
        trouble: Trouble,
        server: usize,
    },
}

/// What the threads of a process do.
#[derive(Clone, Copy, Debug)]
enum Step {
    Tick,
    Turn,
    Synced,
    Seal,
    SnapshotWritten,
    /// It opens a link to another server.
    Dial {
        to: usize,
    },
    /// It notices that a connection with another server is broken.
    Broken {
        of: usize,
        number: u64,
    },
    /// The next step of sending a snapshot.
    Send {
        to: usize,
    },
    /// It looks whether it may stop.
    Leave,
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
    Partition,
    Flap,
    /// Clients cannot reach a server.
    ClientCut,
    /// A disk is lost, and an empty one takes its place.
    Wipe,
    /// A server is restarted for the sake of another build.
    Rebuild,
    /// A byte on a disk changes by itself.
    Rot,
}

impl Trouble {
    const ALL: [Self; 13] = [
        Self::Crash,
        Self::Restart,
        Self::Pause,
        Self::Reset,
        Self::Disk,
        Self::Full,
        Self::ClockJump,
        Self::Partition,
        Self::Flap,
        Self::ClientCut,
        Self::Wipe,
        Self::Rebuild,
        Self::Rot,
    ];
}

/// A TCP connection of a client.
struct Link {
    client: usize,
    /// Where it goes.
    to: usize,
    opened_us: u64,
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
    /// If that is to count what is sent again.
    forwarded: Forwarded,
    /// It takes longer than its seed says: clients that die are replaced, or none would be left.
    is_long: bool,
    /// Faults come also when something begins that they seldom meet by chance.
    aim: Option<Aim>,
    /// Disks rot.
    rot: Option<Rot>,
    rng: Rng,
    /// For what not all runs have: the others do not depend on it.
    rest: Rng,
    now_us: u64,
    queue: BTreeMap<(u64, u64), What>,
    events: u64,
    hosts: Vec<Host>,
    network: Network,
    clients: Vec<Client>,
    links: BTreeMap<ConnId, Link>,
    /// The connection each client uses, and the server it went to last.
    present: Vec<Option<ConnId>>,
    seats: Vec<usize>,
    next_conn: u32,
    checks: Checks,
    pub trace: Trace,
    healed: bool,
    /// Since when all has been well, once it is healed.
    calm_us: u64,
    /// When a client asked for another ensemble last.
    reconfigured_us: u64,
    pub stats: Stats,
}

impl World {
    pub fn new(plan: Plan, telling: Telling) -> Self {
        let Plan {
            seed,
            sabotage,
            times,
            aimed,
        } = plan;
        let mut rng = Rng::new(seed);
        let mut params = Params::draw(&mut rng);
        let mut rest = Rng::new(seed ^ REST);
        params.draw_rest(&mut rest.fork());
        sabotage.arrange(&mut params);
        params.faulty_us *= times;
        let mut clients = params.clients(&mut rng);
        params.draw_manners(&mut clients, &mut rest.clone().fork());
        let host = |place| Host::new(place, &params, &mut rng);
        let hosts: Vec<Host> = (0..params.servers + params.spares).map(host).collect();
        let founders = params.membership();
        let mut world = Self {
            sabotage,
            forwarded: Forwarded::default(),
            aim: aimed.then(|| Aim::new(seed, hosts.len())),
            rot: Rot::draw(seed, hosts.len(), sabotage),
            is_long: times > 1,
            rng: rng.fork(),
            rest,
            now_us: 0,
            queue: BTreeMap::new(),
            events: 0,
            checks: Checks::new(hosts.len(), founders, params.rules()),
            hosts,
            network: Network::default(),
            present: vec![None; clients.len()],
            seats: vec![0; clients.len()],
            clients,
            links: BTreeMap::new(),
            next_conn: 1,
            trace: Trace::new(telling),
            healed: false,
            calm_us: 0,
            reconfigured_us: 0,
            stats: Stats::default(),
            params,
        };
        world.first_builds();
        note!(world, "seed {seed}: {:?}", world.params);
        if let Some(rot) = &world.rot {
            note!(world, "{rot:?}");
        }
        for client in &world.clients {
            note!(world, "client {}: {:?}", client.id, client.manners);
        }
        world
    }

    /// The whole run.
    pub fn run(&mut self) -> Verdict {
        let verdict = self.run_to_the_end();
        self.count();
        match verdict {
            Err(Violation {
                group: Group::BeyondRepair,
                ..
            }) => {
                self.stats.beyond_repair += 1;
                Ok(())
            }
            verdict => verdict,
        }
    }

    fn run_to_the_end(&mut self) -> Verdict {
        for server in 0..self.hosts.len() {
            let at = self.rng.below(500_000);
            let at = match self.hosts.len() {
                1 => 0,
                _ if self.is_late(server) => self.rest.between(1_000_000, 4_000_000),
                _ => at,
            };
            self.at(at, What::Start { server });
        }
        for client in 0..self.clients.len() {
            let at = self.rng.below(1_000_000);
            self.at(at, What::Wake { client });
        }
        self.schedule_troubles();
        let faulty_us = self.params.faulty_us;
        self.run_until(faulty_us, |world| world.checks.operations > MOST_OPERATIONS)?;
        self.params.faulty_us = self.now_us;
        self.heal()?;

        // Everyone must be back and served within a session timeout, some waiting for slow clients
        // to notice that their connection is gone, and the servers' own start and election.
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
        self.run_until(bound_us, |world| world.orphans().next().is_none())?;
        let orphans: Vec<_> = self.orphans().collect();
        if !orphans.is_empty() {
            return broken(Group::Sessions, format!("24: {orphans:?} are never ended"));
        }

        self.run_until(self.now_us + 20_000_000, Self::is_level_settled)?;
        if !self.is_level_settled() {
            let level = self.checks.levels.present();
            let builds: Vec<_> = self.hosts.iter().map(|host| host.build).collect();
            let what = format!("25: the level stays at {level}: {builds:?}");
            return broken(Group::Liveness, what);
        }

        // All servers come to the same state; what they have then is compared. Before, their tasks
        // have time for what is to be sent or closed.
        self.run_until(self.now_us + 200_000, |_| false)?;
        self.run_until(self.now_us + 20_000_000, Self::is_converged)?;
        if !self.is_converged() {
            let states: Vec<_> = (0..self.hosts.len()).map(|at| self.state(at)).collect();
            let members = self.checks.members.present();
            let what = format!("25: no agreement: {states:?} of {members:?}");
            return broken(Group::Liveness, what);
        }
        // A server that was late has tasks that are about to close what it has just heard of.
        self.run_until(self.now_us + 200_000, |world| {
            world.superseded().next().is_none() && world.is_converged()
        })?;
        note!(self, "end");
        if let Some(conn) = self.superseded().next() {
            let what = format!("§8.5: {conn:?} is open, but its session went elsewhere");
            return broken(Group::Sessions, what);
        }
        for server in self.members() {
            self.compare(server, true)?;
        }
        let Self {
            checks,
            clients,
            now_us,
            ..
        } = self;
        checks.recipes.look(clients, *now_us)?;
        checks.recipes.end(&checks.model)
    }

    /// What is counted at the end.
    fn count(&mut self) {
        let Self { checks, stats, .. } = self;
        stats.simulated_ms = self.now_us / 1000;
        stats.loaded_ms = self.now_us.min(self.params.faulty_us) / 1000;
        stats.operations = checks.operations;
        stats.entries = checks.model.index;
        stats.raises = checks.raises;
        let local = &checks.local;
        (stats.local_sessions, stats.local_returns) = (local.opened, local.returned);
        (stats.local_upgrades, stats.local_writes) = (local.upgraded, checks.local_writes);
        (stats.read_only, stats.read_only_refusals) = checks.read_only;
        (stats.watch_events, stats.refusals, stats.moved) = checks.seen;
        stats.expirations = self.clients.iter().map(|client| client.expirations).sum();
        if self.hosts.len() > 1 {
            stats.clusters = 1;
            stats.cluster_ms = stats.loaded_ms;
            stats.leader_changes = checks.cluster.leader_changes();
            stats.changes = checks.members.changes();
            stats.reconfigs = checks.members.reconfigs;
        }
    }

    /// Connections that are open though their sessions went elsewhere. Not those at a server that
    /// was removed and does not know it: it closes them once it serves nobody.
    fn superseded(&self) -> impl Iterator<Item = ConnId> {
        let members = self.members();
        let open = self.links.iter().filter(|(_, link)| link.server.is_some());
        let open = open.filter(move |(_, link)| members.contains(&link.to));
        open.filter(|(conn, link)| {
            let process = self.hosts[link.to].process.as_ref();
            let serves_all = process.is_some_and(|process| process.serving);
            self.checks.is_superseded(**conn) || (serves_all && self.checks.is_read_only(**conn))
        })
        .map(|(conn, _)| *conn)
    }

    /// All servers serve, know the same leader, and have applied everything.
    fn is_converged(&self) -> bool {
        let leader = self.leader();
        let index = self.checks.model.index;
        self.is_membership_settled()
            && leader.is_some_and(|leader| {
                let state = Some((true, u64::from(self.hosts[leader].id), index));
                let mut members = self.members().into_iter();
                members.all(|server| self.state(server) == state)
            })
    }

    /// Whether a server serves, who leads as far as it knows, and what it has applied.
    fn state(&self, server: usize) -> Option<(bool, u64, u64)> {
        let process = self.hosts[server].process.as_ref()?;
        let applied = process.shared.state.read().machine.applied().index;
        Some((process.serving, process.engine.leader(), applied))
    }

    /// The server that leads, as far as it knows.
    fn leader(&self) -> Option<usize> {
        let engine = |server: usize| Some(&self.hosts[server].process.as_ref()?.engine);
        let leads = |server: &usize| {
            engine(*server).is_some_and(|engine| engine.leader() == *server as u64 + 1)
        };
        let leaders = (0..self.hosts.len()).filter(leads);
        leaders.max_by_key(|server| engine(*server).map(|engine| engine.term()))
    }

    /// Sessions that no living client has.
    fn orphans(&self) -> impl Iterator<Item = SessionId> {
        let is_living = |session: &SessionId| {
            let mut clients = self.clients.iter();
            clients.any(|client| client.session == *session && !client.is_dead())
        };
        let sessions = self.checks.model.sessions.keys().copied();
        let processes = self.hosts.iter().filter_map(|host| host.process.as_ref());
        let local = processes.flat_map(|process| process.shared.local_sessions());
        sessions
            .chain(local.map(|(session, _)| session))
            .filter(move |session| !is_living(session))
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
        let process_of = match &what {
            What::Step { server, .. } => Some(*server),
            What::Peer { link, .. } => Some(link.1),
            What::Output { conn } | What::Up { conn, .. } | What::UpClosed { conn } => {
                self.links.get(conn).map(|link| link.to)
            }
            _ => None,
        };
        // Sabotaged: the node thread runs on while nobody reads the sockets.
        let runs_on = self.sabotage == Sabotage::DeafPause && matches!(what, What::Step { .. });
        if let Some(server) = process_of
            && self.hosts[server].is_paused(self.now_us)
            && !runs_on
        {
            self.hosts[server].asleep.push(what);
            return Ok(());
        }
        match what {
            What::Step { server, boot, step } if self.hosts[server].is_boot(boot) => match step {
                Step::Tick => self.tick(server),
                Step::Turn => self.turn(server),
                Step::Synced => self.synced(server),
                Step::Seal => self.seal(server),
                Step::SnapshotWritten => self.snapshot_written(server),
                Step::Dial { to } => self.dial(server, to),
                Step::Broken { of, number } => self.broken(server, of, number),
                Step::Send { to } => self.send_on(server, to),
                Step::Leave => self.leave(server),
            },
            What::Step { .. } => Ok(()),
            What::Output { conn } => self.output(conn),
            What::Up { conn, frame } => self.up(conn, frame),
            What::UpClosed { conn } => self.up_closed(conn),
            What::Down { conn, frame } => self.down(conn, frame),
            What::DownClosed { conn } => self.down_closed(conn),
            What::Wake { client } => self.wake(client),
            What::Peer { link, boots, frame } => self.peer_frame(link, boots, frame),
            What::Flap {
                link,
                times,
                every_us,
            } => {
                self.flap_once(link, times, every_us);
                Ok(())
            }
            What::Start { server } => self.start(server),
            What::PowerLoss { server } => {
                if !self.healed {
                    self.stop(server, "crash", true);
                }
                Ok(())
            }
            What::Awake { server } => self.awake(server),
            What::Resume { server } => {
                self.resume(server);
                Ok(())
            }
            What::Replace { server } => {
                self.replace(server);
                Ok(())
            }
            What::NewDisk { server } => {
                self.new_disk(server);
                Ok(())
            }
            What::Inherit { client } => self.inherit(client),
            What::Fault(trouble) => self.trouble(trouble),
            What::Aimed { trouble, server } => self.meet(trouble, server),
        }
    }

    /// Something happened, or will until then, that all is well only some time after.
    fn stirred(&mut self, until_us: u64) {
        self.calm_us = self.calm_us.max(until_us);
    }

    /// Whether all has been well for so long that nothing may remind of what went wrong.
    fn is_calm(&self) -> bool {
        let after_us = self.calm_us + CALM_AFTER_US;
        let Checks { members, model, .. } = &self.checks;
        // Whoever has an empty disk is taken back only when it was there for some time.
        self.healed
            && self.now_us > after_us
            && self.is_membership_settled()
            && !members.lacks_disk(model)
    }

    /// A server's monotonic clock, in ms.
    fn clock_ms(&self, server: usize) -> u64 {
        self.sabotage
            .clock_ms(self.hosts[server].clock_ms(self.now_us))
    }

    /// Time that a server's process ran, in ms.
    fn ran_ms(&self, server: usize) -> u64 {
        self.hosts[server].ran_ms(self.now_us)
    }

    fn process(&mut self, server: usize) -> &mut Process {
        let process = self.hosts[server].process.as_mut();
        process.expect("whoever asks knows that it runs")
    }

    /// Something of this server's process happens later.
    fn step_at(&mut self, at_us: u64, server: usize, step: Step) {
        let boot = self.hosts[server].boot;
        self.at(at_us, What::Step { server, boot, step });
    }

    fn at(&mut self, at_us: u64, what: What) {
        self.events += 1;
        self.queue
            .insert((at_us.max(self.now_us), self.events), what);
    }
}

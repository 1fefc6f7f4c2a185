//! The parameters of a run, all drawn from its seed ("swarm": runs differ in kind, not only in
//! order; a fault that is always there hides others).

use std::fmt;

use zkraft::engine::LogKept;
use zkraft::machine::FEATURE_LEVEL;
use zkraft::proto::log::Membership;

use crate::check::Rules;
use crate::client::{Client, Manners};
use crate::mix::SUPER;
use crate::rng::Rng;
use crate::sabotage::Sabotage;
use crate::workload::{
    Anything, Bank, Counter, Holder, Idle, Lock, Operator, Queue, Quota, Syncer, Workload,
};

/// Which run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub sabotage: Sabotage,
    /// How many times as long as the seed says there are faults.
    pub times: u64,
    /// Faults come also in moments that they seldom meet by chance.
    pub aimed: bool,
}

impl Plan {
    /// What the seed says.
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            sabotage: Sabotage::None,
            times: 1,
            aimed: false,
        }
    }
}

/// As variables that repeat it.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SIM_SEED={}", self.seed)?;
        if self.sabotage != Sabotage::None {
            write!(f, " SIM_SABOTAGE={:?}", self.sabotage)?;
        }
        if self.aimed {
            write!(f, " SIM_AIMED=1")?;
        }
        match self.times {
            1 => Ok(()),
            times => write!(f, " SIM_TIMES={times}"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Params {
    /// Those that found the ensemble; the last of them without a vote.
    pub servers: usize,
    pub observers: usize,
    /// Those that may join later.
    pub spares: usize,
    /// Somebody changes who the servers are.
    pub reconfigures: bool,
    /// Time under faults, in µs.
    pub faulty_us: u64,
    pub session_tick_ms: u64,
    pub timeouts_ms: (i32, i32),
    pub sync_limit_ms: u64,
    pub linearizable_reads: bool,
    pub snap_count: u64,
    pub cleaner_ms: u64,
    pub settings: Vec<(&'static str, i64)>,
    pub segment_bytes: u64,
    pub log_kept: LogKept,
    pub keep_snapshots: usize,
    /// One way over the network, in µs, at most.
    pub latency_us: u64,
    /// A sync of the log, in µs, at most; and a slow one, in ‰ of all.
    pub sync_us: u64,
    pub slow_sync_us: u64,
    pub slow_sync_permille: u64,
    /// Between two threads of the server, in µs, at most.
    pub handover_us: u64,
    /// Mean time between faults, in µs; 0: never.
    pub crash_every_us: u64,
    pub restart_every_us: u64,
    pub pause_every_us: u64,
    pub reset_every_us: u64,
    pub disk_fault_every_us: u64,
    pub full_disk_every_us: u64,
    pub clock_jump_every_us: u64,
    pub partition_every_us: u64,
    pub flap_every_us: u64,
    pub client_cut_every_us: u64,
    pub wipe_every_us: u64,
    /// Servers' clocks are off by this at most, in millionths.
    pub drift_ppm: u64,
    /// Clients that only ping, in percent.
    pub idle: u64,
    pub peers: PeerParams,
    pub transfer: TransferParams,
    pub levels: LevelParams,
    pub local: LocalParams,
    /// How long a server hears no leader, in ms, before it serves those who only want to read.
    pub read_only_after_ms: Option<u64>,
    pub founding: FoundingParams,
}

/// How an ensemble begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct FoundingParams {
    /// Voters that are started late.
    pub late: usize,
    /// The others need not wait for them.
    pub by_majority: bool,
}

/// Sessions that one server keeps to itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalParams {
    pub sessions: bool,
    /// They are everyone's with the first ephemeral.
    pub upgrades: bool,
}

/// Builds of the program, which know different feature levels.
#[derive(Clone, Copy, Debug)]
pub struct LevelParams {
    /// The level that the older build knows, and the newer one.
    pub old: u32,
    pub new: u32,
    /// Servers that begin with the older one, in percent.
    pub begin_old: u64,
    /// Starts with the newer build in place of the older one, and the other way round, in percent.
    pub upgrades: u64,
    pub downgrades: u64,
    /// Mean time between restarts for the sake of another build, in µs; 0: never.
    pub restart_every_us: u64,
    /// All servers have the newer build in the end.
    pub completes: bool,
}

impl LevelParams {
    /// All servers are of this build.
    pub const SAME: Self = Self {
        old: FEATURE_LEVEL,
        new: FEATURE_LEVEL,
        begin_old: 0,
        upgrades: 0,
        downgrades: 0,
        restart_every_us: 0,
        completes: true,
    };

    fn draw(rng: &mut Rng) -> Self {
        let (old, new) = *rng.pick(&[(1, 2), (2, 3), (1, 3)]);
        Self {
            old,
            new,
            begin_old: *rng.pick(&[30, 60, 100]),
            upgrades: *rng.pick(&[30, 80]),
            downgrades: *rng.pick(&[0, 20, 50]),
            restart_every_us: *rng.pick(&[500_000, 2_000_000]),
            completes: rng.percent(80),
        }
    }

    pub fn are_mixed(&self) -> bool {
        self.old < self.new
    }
}

/// Snapshots from server to server.
#[derive(Clone, Debug)]
pub struct TransferParams {
    /// A step of one, in µs, at most.
    pub step_us: u64,
    /// Connections that break, in ‰ of all steps.
    pub breaks_permille: u64,
    /// How long one is tried without getting on, in µs.
    pub patience_us: u64,
}

/// The network between servers.
#[derive(Clone, Debug)]
pub struct PeerParams {
    /// One way, in µs, at most; and of a late frame, in ‰ of all.
    pub latency_us: u64,
    pub late_us: u64,
    pub late_permille: u64,
    pub lost_permille: u64,
    pub repeated_permille: u64,
    /// As a TCP connection does; otherwise frames overtake each other.
    pub keeps_order: bool,
}

impl Params {
    pub fn draw(rng: &mut Rng) -> Self {
        let (servers, spares) = *rng.pick(&[
            (1, 0),
            (1, 0),
            (1, 0),
            (1, 4),
            (2, 0),
            (2, 1),
            (3, 0),
            (3, 0),
            (3, 0),
            (3, 2),
            (4, 0),
            (5, 1),
            (7, 0),
        ]);
        let observers = if servers > 3 {
            rng.below(2) as usize
        } else {
            0
        };
        let reconfigures = spares > 0 || (servers > 2 && rng.percent(30));
        // What servers tell each other must have time within a third of the shortest timeout.
        let (session_tick_ms, longest) = match servers + spares {
            1 => (*rng.pick(&[100, 300, 1000, 2000]), 20),
            _ => (*rng.pick(&[500, 1000, 2000]), 8),
        };
        let timeouts_ms = (2 * session_tick_ms as i32, longest * session_tick_ms as i32);
        let mut settings = Vec::new();
        for name in ["extended_types", "enforce_quota", "reconfig_enabled"] {
            if name == "reconfig_enabled" && reconfigures {
                settings.push((name, 1));
            } else if rng.percent(60) {
                settings.push((name, i64::from(rng.percent(80))));
            }
        }
        let every = |rng: &mut Rng, choices: &[u64]| match rng.percent(50) {
            true => *rng.pick(choices) * 1_000_000,
            false => 0,
        };
        let snap_count = *rng.pick(&[20, 100, 500, 1_000_000]);
        let faulty_s = rng.between(3, 12);
        Self {
            servers,
            observers,
            spares,
            reconfigures,
            faulty_us: faulty_s * 1_000_000,
            session_tick_ms,
            timeouts_ms,
            sync_limit_ms: *rng.pick(&[1, 2, 5]) * session_tick_ms,
            linearizable_reads: faulty_s.is_multiple_of(3),
            snap_count,
            cleaner_ms: *rng.pick(&[300, 1000, 5000]),
            settings,
            segment_bytes: *rng.pick(&[4 << 10, 64 << 10, 1 << 20]),
            log_kept: *rng.pick(&[
                LogKept {
                    usually: 1 << 10,
                    in_transfer: 32 << 10,
                },
                LogKept {
                    usually: 16 << 10,
                    in_transfer: 64 << 10,
                },
                LogKept::default(),
            ]),
            keep_snapshots: rng.between(1, 3) as usize,
            latency_us: *rng.pick(&[200, 2_000, 50_000]),
            sync_us: *rng.pick(&[100, 2_000, 20_000]),
            slow_sync_us: *rng.pick(&[100_000, 1_000_000, 3_000_000]),
            slow_sync_permille: *rng.pick(&[0, 5, 30]),
            handover_us: *rng.pick(&[10, 200, 2_000]),
            crash_every_us: every(rng, &[1, 3, 10]),
            restart_every_us: every(rng, &[3, 10]),
            pause_every_us: every(rng, &[2, 5, 10]),
            reset_every_us: every(rng, &[1, 2, 5]),
            disk_fault_every_us: every(rng, &[3, 6, 12]),
            full_disk_every_us: every(rng, &[5, 10]),
            clock_jump_every_us: every(rng, &[2, 5]),
            partition_every_us: every(rng, &[1, 3, 6]),
            flap_every_us: every(rng, &[3, 6]),
            client_cut_every_us: every(rng, &[3, 6]),
            wipe_every_us: every(rng, &[2, 4]),
            drift_ppm: *rng.pick(&[0, 50, 500]),
            idle: *rng.pick(&[5, 5, 5, 40]),
            peers: PeerParams {
                latency_us: *rng.pick(&[100, 1_000, 10_000]),
                late_us: *rng.pick(&[50_000, 300_000, 2_000_000]),
                late_permille: *rng.pick(&[0, 2, 20]),
                lost_permille: *rng.pick(&[0, 0, 5, 50, 200]),
                repeated_permille: *rng.pick(&[0, 0, 10, 200]),
                keeps_order: rng.percent(50),
            },
            transfer: TransferParams {
                step_us: *rng.pick(&[2_000, 50_000, 300_000]),
                breaks_permille: *rng.pick(&[0, 50, 300]),
                patience_us: *rng.pick(&[1_000_000, 10_000_000]),
            },
            levels: LevelParams::SAME,
            local: LocalParams::default(),
            read_only_after_ms: None,
            founding: FoundingParams::default(),
        }
    }

    pub fn rules(&self) -> Rules {
        Rules {
            linearizable_reads: self.linearizable_reads,
            local_sessions: self.local.sessions,
            upgrades: self.local.upgrades,
            timeouts_ms: self.timeouts_ms,
            bucket_ms: self.session_tick_ms,
            read_only_after_ms: self.read_only_after_ms,
        }
    }

    /// Draws what not all runs have, from a stream of its own: the others stay what they were.
    pub fn draw_rest(&mut self, rng: &mut Rng) {
        if rng.percent(40) && self.servers + self.spares > 1 {
            self.levels = LevelParams::draw(rng);
        }
        if rng.percent(30) {
            self.local = LocalParams {
                sessions: true,
                upgrades: rng.percent(80),
            };
        }
        // Reads cannot both be of the newest state and be answered without a majority.
        if rng.percent(40) && self.servers + self.spares > 1 && !self.linearizable_reads {
            self.read_only_after_ms = Some(*rng.pick(&[200, 600, 1500]));
        }
        let voters = self.servers - self.observers;
        if rng.percent(30) && voters > 2 {
            self.founding = FoundingParams {
                late: rng.between(1, (voters as u64 - 1) / 2) as usize,
                by_majority: rng.percent(70),
            };
        }
    }

    /// Which clients are content with reading, and begin anew when they have lost their server: one
    /// that comes back to its session needs a majority.
    pub fn draw_manners(&self, clients: &mut [Client], rng: &mut Rng) {
        if self.read_only_after_ms.is_none() {
            return;
        }
        for client in clients {
            client.manners.reads_only = rng.percent(70);
            client.manners.restarts = *rng.pick(&[0, 50, 90]);
        }
    }

    pub fn clients(&self, rng: &mut Rng) -> Vec<Client> {
        let mut clients: Vec<_> = (0..rng.between(2, 8) as usize)
            .map(|id| self.client(id, rng))
            .collect();
        if self.reconfigures {
            clients.push(self.operator(clients.len(), rng));
        }
        clients
    }

    /// Who belongs together at first.
    pub fn membership(&self) -> Membership {
        let ids = 1..=self.servers as u64;
        let voters = self.servers - self.observers;
        let (voters, learners) = ids.partition(|id| *id <= voters as u64);
        Membership {
            voters,
            learners,
            ..Membership::default()
        }
    }

    fn operator(&self, id: usize, rng: &mut Rng) -> Client {
        let servers = (self.servers + self.spares) as u64;
        let pause_us = *rng.pick(&[300_000, 1_000_000, 3_000_000]);
        let manners = Manners {
            timeout_ms: self.timeouts_ms.1,
            think_us: 10_000,
            pipeline: 1,
            trusts: 4,
            ..Manners::default()
        };
        let workload = Box::new(Operator::new(servers, pause_us));
        let mut client = Client::new(id, manners, workload, rng.fork());
        client.knows(SUPER);
        client
    }

    fn client(&self, id: usize, rng: &mut Rng) -> Client {
        let workload: Box<dyn Workload> = match rng.below(21) {
            _ if rng.percent(self.idle) => Box::new(Idle),
            0..6 => Box::new(Anything::new(rng)),
            6..9 => Box::new(Lock::default()),
            9..11 => Box::new(Queue::default()),
            11..13 => Box::new(Counter::default()),
            13..15 => Box::new(Bank::new()),
            15..17 => Box::new(Holder::default()),
            17..19 => Box::new(Syncer::default()),
            _ => Box::new(Quota::new(rng)),
        };
        let rare = |rng: &mut Rng, choices: &[u64]| match rng.percent(40) {
            true => *rng.pick(choices),
            false => 0,
        };
        let (low, high) = self.timeouts_ms;
        let timeout_ms = match rng.below(6) {
            0 => rng.between(0, 3 * high as u64) as i32,
            1 => -1,
            2 => high,
            _ => rng.between(low as u64, 3 * low as u64) as i32,
        };
        let manners = Manners {
            timeout_ms,
            think_us: *rng.pick(&[2_000, 10_000, 50_000]),
            // The largest is more than the server reads ahead.
            pipeline: *rng.pick(&[1, 1, 1, 4, 4, 50, 50, 2000]),
            drops: rare(rng, &[1, 5, 20]),
            vanishes: rare(rng, &[1, 3]),
            moves: rare(rng, &[2, 10]),
            closes: rare(rng, &[1, 5]),
            intrudes: rare(rng, &[5, 20]),
            garbage: rare(rng, &[2, 10]),
            auths: rare(rng, &[2, 20]),
            reads_only: false,
            restarts: 0,
            trusts: if self.servers + self.spares == 1 {
                1
            } else {
                4
            },
        };
        let rng = rng.fork();
        Client::new(id, manners, workload, rng)
    }
}

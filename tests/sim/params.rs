//! The parameters of a run, all drawn from its seed ("swarm": runs differ in kind, not only in
//! order; a fault that is always there hides others).

use crate::client::{Client, Manners};
use crate::rng::Rng;
use crate::workload::{Anything, Bank, Counter, Holder, Idle, Lock, Queue, Quota, Workload};

#[derive(Clone, Debug)]
pub struct Params {
    /// Time under faults, in µs.
    pub faulty_us: u64,
    pub session_tick_ms: u64,
    pub timeouts_ms: (i32, i32),
    pub snap_count: u64,
    pub cleaner_ms: u64,
    pub settings: Vec<(&'static str, i64)>,
    pub segment_bytes: u64,
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
}

impl Params {
    pub fn draw(rng: &mut Rng) -> Self {
        let session_tick_ms = *rng.pick(&[100, 300, 1000, 2000]);
        let timeouts_ms = (2 * session_tick_ms as i32, 20 * session_tick_ms as i32);
        let mut settings = Vec::new();
        for name in ["extended_types", "enforce_quota", "reconfig_enabled"] {
            if rng.percent(60) {
                settings.push((name, i64::from(rng.percent(80))));
            }
        }
        let every = |rng: &mut Rng, choices: &[u64]| match rng.percent(50) {
            true => *rng.pick(choices) * 1_000_000,
            false => 0,
        };
        Self {
            faulty_us: rng.between(3, 12) * 1_000_000,
            session_tick_ms,
            timeouts_ms,
            snap_count: *rng.pick(&[20, 100, 500, 1_000_000]),
            cleaner_ms: *rng.pick(&[300, 1000, 5000]),
            settings,
            segment_bytes: *rng.pick(&[4 << 10, 64 << 10, 1 << 20]),
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
        }
    }

    pub fn clients(&self, rng: &mut Rng) -> Vec<Client> {
        (0..rng.between(2, 8) as usize)
            .map(|id| self.client(id, rng))
            .collect()
    }

    fn client(&self, id: usize, rng: &mut Rng) -> Client {
        let workload: Box<dyn Workload> = match rng.below(20) {
            0..6 => Box::new(Anything::new(rng)),
            6..9 => Box::new(Lock::default()),
            9..11 => Box::new(Queue::default()),
            11..13 => Box::new(Counter::default()),
            13..15 => Box::new(Bank::new()),
            15..17 => Box::new(Holder::default()),
            17..19 => Box::new(Quota::new(rng)),
            _ => Box::new(Idle),
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
        };
        let rng = rng.fork();
        Client::new(id, manners, workload, rng)
    }
}

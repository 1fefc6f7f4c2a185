//! One server's machine: its disk, its clocks, and the process on it while it runs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use zkraft::engine::{Engine, SendSnapshot, Shared, SnapshotMeta};
use zkraft::proto::log;
use zkraft::storage::{Identity, SnapshotWriter, Wal};

use super::links::{Dialled, Known};
use super::transfer::{Desk, Sending};
use super::{TICK_MS, What};
use crate::check::ConnId;
use crate::check::levels::Build;
use crate::disk::FaultyDisk;
use crate::params::Params;
use crate::rng::Rng;

/// What a clock of the engine shows when a run begins, in ms.
const CLOCK_MS: u64 = 1_000_000;
/// The clock on the wall then, in ms since 1970.
const EPOCH_MS: i64 = 1_700_000_000_000;

pub(super) struct Host {
    /// As the engines know it, from 1 on.
    pub(super) id: u32,
    pub(super) disk: FaultyDisk,
    /// Random number of what is on the disk.
    pub(super) disk_id: u64,
    /// What is installed, and that it is too old.
    pub(super) build: Build,
    pub(super) is_too_old: bool,
    /// Counts starts.
    pub(super) boot: u64,
    pub(super) process: Option<Process>,
    /// Until when the process is stopped, and what it finds when it goes on.
    pub(super) paused_until_us: u64,
    paused_since_us: u64,
    /// When it was last found to be awake again, by its own clock, in ms.
    pub(super) awoke_ms: u64,
    pub(super) asleep: Vec<What>,
    /// Time in which the process did not run, in µs; the same before the last pause.
    pub(super) not_run_us: u64,
    not_run_before_us: u64,
    /// Of a pause, what the engine counts.
    counted_us: u64,
    pub(super) down_since_us: Option<u64>,
    pub(super) disk_trouble_until_us: u64,
    /// The power goes in the middle of some call, or has gone.
    pub(super) power_fails: bool,
    /// The machine is off: nobody answers for it.
    pub(super) is_off: bool,
    /// Until when nothing passes between it and clients.
    pub(super) unreachable_until_us: u64,
    drift_ppm: i64,
    pub(super) wall_skew_ms: i64,
}

impl Host {
    pub(super) fn new(place: usize, params: &Params, rng: &mut Rng) -> Self {
        let disk = new_disk(rng);
        let drift_ppm = rng.between(0, 2 * params.drift_ppm) as i64 - params.drift_ppm as i64;
        Self {
            id: place as u32 + 1,
            disk,
            disk_id: 0xd15c + 0x1_0000 * (place as u64 + 1),
            build: Build::of(params.levels.new),
            is_too_old: false,
            boot: 0,
            process: None,
            paused_until_us: 0,
            paused_since_us: 0,
            awoke_ms: 0,
            asleep: Vec::new(),
            not_run_us: 0,
            not_run_before_us: 0,
            counted_us: 0,
            down_since_us: Some(0),
            disk_trouble_until_us: 0,
            power_fails: false,
            is_off: false,
            unreachable_until_us: 0,
            drift_ppm,
            wall_skew_ms: 0,
        }
    }

    pub(super) fn identity(&self) -> Identity {
        Identity {
            // Made with the directory, as the disk's is.
            cluster: 0xc1 + self.disk_id,
            server: self.id,
            disk: self.disk_id,
        }
    }

    /// Everything is lost, and the machine gets an empty disk.
    pub(super) fn lose_disk(&mut self, rng: &mut Rng) {
        self.disk = new_disk(rng);
        // Ids of sessions count starts from here: no start of the lost disk may be met again.
        self.disk_id += 0x1000;
        self.power_fails = false;
    }

    /// The monotonic clock, in ms: servers' clocks have nothing in common.
    pub(super) fn clock_ms(&self, now_us: u64) -> u64 {
        CLOCK_MS * u64::from(self.id) + (self.drifted_us(now_us) / 1000) as u64
    }

    pub(super) fn wall_ms(&self, now_us: u64) -> i64 {
        EPOCH_MS + self.drifted_us(now_us) / 1000 + self.wall_skew_ms
    }

    /// Time that the process ran by its own clock, in ms.
    pub(super) fn ran_ms(&self, now_us: u64) -> u64 {
        self.clock_ms(now_us).saturating_sub(self.not_run_us / 1000)
    }

    pub(super) fn is_paused(&self, now_us: u64) -> bool {
        now_us < self.paused_until_us
    }

    pub(super) fn is_boot(&self, boot: u64) -> bool {
        let process = self.process.as_ref();
        process.is_some_and(|process| process.boot == boot)
    }

    /// The process stops for so long.
    pub(super) fn pause(&mut self, now_us: u64, pause_us: u64, params: &Params) {
        self.paused_until_us = now_us + pause_us;
        (self.paused_since_us, self.not_run_before_us) = (now_us, self.not_run_us);
        // The engine counts the beginning of a pause (see engine::expiry).
        let counted_ms = (params.session_tick_ms / 2).max(2 * TICK_MS);
        self.counted_us = counted_ms * 1000;
        self.not_run_us += pause_us.saturating_sub(self.counted_us);
    }

    /// The rest of a pause does not happen. Returns what was put off.
    pub(super) fn cut_pause(&mut self, now_us: u64) -> Vec<What> {
        if self.is_paused(now_us) {
            let pause_us = now_us - self.paused_since_us;
            self.not_run_us = self.not_run_before_us + pause_us.saturating_sub(self.counted_us);
        }
        self.paused_until_us = now_us;
        self.awoke_ms = self.clock_ms(now_us);
        std::mem::take(&mut self.asleep)
    }

    /// What the disk had not synced is gone; then it works again.
    pub(super) fn lose_power(&mut self) {
        self.disk.crash();
        self.power_fails = false;
    }

    fn drifted_us(&self, now_us: u64) -> i64 {
        let now_us = now_us as i64;
        now_us + now_us / 1000 * self.drift_ppm / 1000
    }
}

fn new_disk(rng: &mut Rng) -> FaultyDisk {
    let mut chance = rng.fork();
    FaultyDisk::new(move |below| chance.below(below))
}

/// Snapshots that wait to be sent to a server, and the one that is.
pub(super) type Sendings = BTreeMap<usize, (VecDeque<SendSnapshot>, Option<Sending>)>;

/// A server's process.
pub(super) struct Process {
    pub(super) boot: u64,
    /// The number of this start, as the disk counts them.
    pub(super) incarnation: u64,
    pub(super) engine: Engine,
    pub(super) shared: Arc<Shared>,
    pub(super) wal: Wal,
    /// For the log thread.
    pub(super) queue: Vec<log::Record>,
    pub(super) queued_number: u64,
    pub(super) queued_sync: bool,
    /// Written and not reported yet: the number, and whether it has to be synced.
    pub(super) written: Option<(u64, bool)>,
    /// The log refuses to go on; its next use will say so.
    pub(super) suspect: bool,
    pub(super) snapshot: Option<(SnapshotMeta, SnapshotWriter)>,
    pub(super) turn_due: bool,
    pub(super) serving: bool,
    /// When it was last found to have begun to lead, by its own clock, in ms.
    pub(super) leads_ms: u64,
    /// Sabotaged: the term in which it has counted the silence from before it led.
    pub(super) counted_term: u64,
    /// When it served last, and last did anything else than to let read, by its own and the true
    /// clock, in ms.
    pub(super) served_ms: u64,
    pub(super) not_read_only_ms: u64,
    /// When it was last told to be of no ensemble, as of a tick: it shows nothing then.
    pub(super) outside_ms: u64,
    pub(super) wakes: Wakes,
    pub(super) written_us: u64,
    /// When it last had not heard of a majority for so long that it lets clients go, or knew that
    /// it was removed.
    pub(super) silent_us: Option<u64>,
    /// When it last installed a snapshot, which lets clients go as well.
    pub(super) installed_us: Option<u64>,
    /// It waits for another server to lead, but not longer than until then, and stops.
    pub(super) stops_us: Option<u64>,
    /// When the engine wants a turn even if nothing happens.
    pub(super) wake_at_ms: Option<u64>,
    /// The others that it dials, and those that were connected.
    pub(super) links: BTreeMap<usize, Dialled>,
    pub(super) seen: BTreeMap<usize, Known>,
    pub(super) sendings: Sendings,
    pub(super) desk: Desk,
}

impl Process {
    pub(super) fn new(boot: u64, incarnation: u64, engine: Engine, wal: Wal, now_us: u64) -> Self {
        let shared = engine.shared();
        let wakes = Wakes::default();
        let node = wakes.node.clone();
        shared.on_submission(Box::new(move || {
            node.store(true, std::sync::atomic::Ordering::Relaxed);
        }));
        Self {
            boot,
            incarnation,
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
            leads_ms: 0,
            counted_term: 0,
            served_ms: 0,
            not_read_only_ms: now_us / 1000,
            outside_ms: 0,
            wakes,
            written_us: now_us,
            silent_us: None,
            installed_us: None,
            stops_us: None,
            wake_at_ms: None,
            links: BTreeMap::new(),
            seen: BTreeMap::new(),
            sendings: Sendings::new(),
            desk: Desk::default(),
        }
    }

    /// Whether a snapshot is on its way from here.
    pub(super) fn is_sending(&self) -> bool {
        let mut sendings = self.sendings.values();
        sendings.any(|(_, sending)| sending.is_some())
    }
}

/// What the engine has called for from inside.
#[derive(Clone, Default)]
pub(super) struct Wakes {
    pub(super) node: Arc<AtomicBool>,
    pub(super) outputs: Arc<Mutex<Vec<ConnId>>>,
}

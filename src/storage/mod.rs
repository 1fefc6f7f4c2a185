//! Durability: the log, the snapshots, and what is remembered about them.
//!
//! [`Storage::open`] recovers a server from its directories, [`Storage::start`] begins the log thread,
//! and a [`LogHandle`] gives it work. Below `dataDir` are `lock`, `catalog/` and `snapshot/`; below
//! `dataLogDir` (the same directory unless configured) `log/` and `ballast`.
//!
//! Rules:
//!
//! * `on_persisted(n)` is called only after everything up to number `n` is synced (unless syncing is
//!   configured off).
//! * A failed write or sync is never retried: `on_fault` is called once, and the thread ends.
//! * A failed snapshot costs only the snapshot.

mod catalog;
mod disk;
mod fault;
mod segment;
mod snapshot;
mod wal;

use std::fs::{self, TryLockError};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use self::catalog::{Catalog, CleanStop, Facts, KnownSnapshot};
pub use self::disk::{Disk, File, RealDisk};
pub use self::fault::Fault;
pub use self::snapshot::{
    SnapshotFile, SnapshotReader, SnapshotWriter, list_snapshots, purge_snapshots, write_snapshot,
};
pub use self::wal::{Replay, Wal, WalOptions, WalStart};
use crate::proto::log::{HardState, LogEntry, Membership, Record, SnapshotMark};

/// Whose data it is. Made once, with the directory.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Identity {
    /// Random number of the cluster.
    pub cluster: u64,
    /// The server's id, as configured.
    pub server: u32,
    /// Random number of this copy of the data: a wiped disk comes back as another one.
    pub disk: u64,
}

impl Identity {
    /// Checks that what `path` says about itself is of this identity.
    fn check(&self, path: &Path, cluster: u64, own: Option<(u32, u64)>) -> Result<(), Fault> {
        let path = path.to_owned();
        if let Some((found, _)) = own
            && found != self.server
        {
            let configured = self.server;
            return Err(Fault::OtherServer {
                path,
                found,
                configured,
            });
        }
        let disk = own.map_or(self.disk, |(_, disk)| disk);
        let (what, found, expected) = if cluster != self.cluster {
            ("cluster", cluster, self.cluster)
        } else if disk != self.disk {
            ("disk", disk, self.disk)
        } else {
            return Ok(());
        };
        Err(Fault::Mixed {
            path,
            what,
            found,
            expected,
        })
    }
}

/// What a snapshot is of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SnapshotMeta {
    /// The last entry that it contains.
    pub index: u64,
    pub term: u64,
    pub membership: Membership,
    pub zxid: i64,
    /// Of the machine, to be compared after loading.
    pub digest: u64,
}

impl SnapshotMeta {
    fn mark(&self) -> SnapshotMark {
        SnapshotMark {
            index: self.index,
            term: self.term,
            membership: Some(self.membership.clone()),
        }
    }
}

/// Something to be written, with the number under which it is reported when it is durable.
#[derive(Clone, Debug)]
pub struct Append {
    /// Rises from append to append.
    pub number: u64,
    pub record: Record,
    /// Whether to sync. A record that only moves the commit index need not be.
    pub sync: bool,
}

/// Is told how far a long load is: bytes done, bytes in all. Called from the loading thread.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(u64, u64) + Send + Sync>);

impl Progress {
    /// Reports to `report`.
    pub fn new(report: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }

    fn report(&self, done: u64, total: u64) {
        (self.0)(done, total);
    }
}

/// Where and how to store.
#[derive(Clone)]
pub struct StorageConfig {
    /// Snapshots and catalog: `dataDir`.
    pub data_dir: PathBuf,
    /// The log: `dataLogDir`, or the same as `data_dir`.
    pub log_dir: PathBuf,
    /// The server's id: `myid`.
    pub server: u32,
    /// `forceSync`: without it, a power loss may take acknowledged writes.
    pub sync: bool,
    pub segment_bytes: u64,
    /// `autopurge.snapRetainCount`; at least 3 are kept.
    pub keep_snapshots: usize,
    /// Whether old snapshots and segments are removed at all.
    pub purge: bool,
    /// A sync slower than this is logged.
    pub fsync_warn_ms: u64,
    pub progress: Option<Progress>,
}

impl StorageConfig {
    /// The defaults, with everything in one directory.
    pub fn new(data_dir: impl Into<PathBuf>, server: u32) -> Self {
        let data_dir = data_dir.into();
        Self {
            log_dir: data_dir.clone(),
            data_dir,
            server,
            sync: true,
            segment_bytes: WalOptions::default().segment_bytes,
            keep_snapshots: SNAPSHOTS_MIN,
            purge: true,
            fsync_warn_ms: 1000,
            progress: None,
        }
    }
}

/// What a start finds.
#[derive(Debug)]
pub struct Recovered<M> {
    pub identity: Identity,
    /// Number of this start, from 1; never used twice by one disk.
    pub incarnation: u64,
    /// Consistent with snapshot and entries; all zero at the first start.
    pub hard_state: HardState,
    /// As of the snapshot, or of the last mark without one; `None` if nothing was ever marked.
    pub membership: Option<Membership>,
    /// What `machine` was loaded from.
    pub snapshot: Option<SnapshotMeta>,
    /// What the loader made.
    pub machine: M,
    /// The entries after the snapshot, without holes.
    pub entries: Vec<LogEntry>,
    /// Whether the last run ended by [`LogHandle::stop`].
    pub clean_shutdown: bool,
    /// What an operator should read; already logged.
    pub warnings: Vec<String>,
}

/// A recovered, locked directory whose log thread has not been started.
pub struct Storage {
    config: StorageConfig,
    disk: Arc<dyn Disk>,
    wal: Wal,
    directory: Directory,
}

impl Storage {
    /// Recovers a server. `load` makes the machine from a snapshot, or an empty one; it is called
    /// again with an older snapshot when it fails on a newer.
    ///
    /// # Errors
    /// See [`Fault`]: each says what to do.
    pub fn open<M>(
        config: StorageConfig,
        load: impl FnMut(Option<SnapshotReader>) -> Result<M, Fault>,
    ) -> Result<(Recovered<M>, Self), Fault> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        open(config, disk, load)
    }

    /// Starts the log thread. `on_persisted` gets the highest number that is durable, `on_fault` the
    /// reason for which the thread has ended; both are called in that thread.
    pub fn start(
        self,
        on_persisted: impl Fn(u64) + Send + 'static,
        on_fault: impl FnOnce(Fault) + Send + 'static,
    ) -> LogHandle {
        let (sender, receiver) = mpsc::channel();
        let files = Arc::new(Files {
            sender: sender.clone(),
            directory: Mutex::new(self.directory),
            snapshot_turn: Mutex::new(()),
            snapshot_threads: Mutex::new(Vec::new()),
            stopping: AtomicBool::new(false),
            disk: self.disk,
            config: self.config.clone(),
            thread: Mutex::new(None),
        });
        let stats = Arc::new(LogStats::default());
        let thread = LogThread {
            wal: self.wal,
            receiver,
            sync: self.config.sync,
            purge: self.config.purge,
            fsync_warn: Duration::from_millis(self.config.fsync_warn_ms),
            stats: stats.clone(),
            on_persisted: Box::new(on_persisted),
        };
        let spawned = thread::Builder::new()
            .name("log".to_owned())
            .spawn(
                move || match panic::catch_unwind(AssertUnwindSafe(|| thread.run())) {
                    Ok(Ok(last_group)) => Some(last_group),
                    Ok(Err(fault)) => {
                        on_fault(fault);
                        None
                    }
                    Err(panic) => {
                        on_fault(Fault::Panicked(panic_text(&*panic)));
                        None
                    }
                },
            );
        *files.thread.lock() = Some(spawned.expect("the system can start a thread"));
        LogHandle {
            stats,
            target: Target::Files(files),
        }
    }
}

/// The door to the log and snapshot threads. Clones share them.
#[derive(Clone)]
pub struct LogHandle {
    stats: Arc<LogStats>,
    target: Target,
}

#[derive(Clone)]
enum Target {
    Files(Arc<Files>),
    Memory(Arc<dyn Fn(u64) + Send + Sync>),
}

impl LogHandle {
    /// A log that keeps nothing and acknowledges at once, in the caller's thread.
    pub fn memory(on_persisted: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self {
            stats: Arc::default(),
            target: Target::Memory(Arc::new(on_persisted)),
        }
    }

    /// Queues a record. After a fault it is dropped: `on_fault` has been called then.
    pub fn append(&self, append: Append) {
        match &self.target {
            Target::Memory(on_persisted) => on_persisted(append.number),
            Target::Files(files) => {
                let bytes = append.record.encoded_len() as u64;
                self.stats.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
                // The receiver is gone only after a fault or a stop.
                let _ = files.sender.send(Command::Append(append, bytes));
            }
        }
    }

    /// Lets go of the log below `index`, as far as no kept snapshot needs it.
    pub fn release_below(&self, index: u64) {
        if let Target::Files(files) = &self.target {
            let floor = files.directory.lock().floor();
            let _ = files.sender.send(Command::Release(index.min(floor)));
        }
    }

    /// Writes a snapshot in a thread of its own and at low priority. `chunks` hands the image's
    /// chunks to the function it is given; `done` gets the result in that thread. A failure costs
    /// only the snapshot.
    pub fn take_snapshot(
        &self,
        meta: SnapshotMeta,
        chunks: impl FnOnce(&mut dyn FnMut(Bytes) -> Result<(), Fault>) -> Result<(), Fault>
        + Send
        + 'static,
        done: impl FnOnce(Result<SnapshotMeta, Fault>) + Send + 'static,
    ) {
        let Target::Files(files) = &self.target else {
            done(Ok(meta));
            return;
        };
        let shared = files.clone();
        let thread = thread::Builder::new()
            .name("snapshot".to_owned())
            .spawn(move || {
                disk::lower_priority();
                let result = shared.snapshot(&meta, chunks);
                done(result.map(|()| meta));
            });
        let mut threads = files.snapshot_threads.lock();
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread.expect("the system can start a thread"));
    }

    /// Writes and syncs what is queued, gives up a snapshot in progress, and marks the stop as clean.
    /// Returns when all threads have ended.
    pub fn stop(&self) {
        let Target::Files(files) = &self.target else {
            return;
        };
        files.stopping.store(true, Ordering::Relaxed);
        let _ = files.sender.send(Command::Stop);
        let thread = files.thread.lock().take();
        let last_group = thread.and_then(|thread| thread.join().ok().flatten());
        let snapshots = std::mem::take(&mut *files.snapshot_threads.lock());
        for thread in snapshots {
            let _ = thread.join();
        }
        if let Some(last_group) = last_group {
            files.directory.lock().stopped(last_group);
        }
    }

    /// Counters for the metrics.
    pub fn stats(&self) -> &LogStats {
        &self.stats
    }
}

/// Counters of the log thread since the start. Each is read on its own.
#[derive(Debug, Default)]
pub struct LogStats {
    pub syncs: AtomicU64,
    pub sync_total_us: AtomicU64,
    pub sync_max_us: AtomicU64,
    /// Of records, before padding.
    pub bytes_written: AtomicU64,
    pub groups: AtomicU64,
    /// Waiting to be written.
    pub queued_bytes: AtomicU64,
    pub segments: AtomicU64,
    /// Size of the log on disk.
    pub log_bytes: AtomicU64,
}

/// The fewest snapshots that are kept.
const SNAPSHOTS_MIN: usize = 3;
/// A group takes no further records after this size.
const GROUP_BYTES_MAX: u64 = 8 << 20;
/// How long the queue is empty before the last group is sealed: seals between the writes of a busy
/// client would double the groups.
const SEAL_AFTER: Duration = Duration::from_millis(20);
const BALLAST_BYTES: usize = 4 << 20;
/// With less free space than this, the ballast is thrown off.
const FREE_BYTES_SHORT: u64 = 16 << 20;

/// What the threads share.
struct Files {
    sender: Sender<Command>,
    directory: Mutex<Directory>,
    /// One snapshot at a time.
    snapshot_turn: Mutex<()>,
    snapshot_threads: Mutex<Vec<JoinHandle<()>>>,
    stopping: AtomicBool,
    disk: Arc<dyn Disk>,
    config: StorageConfig,
    thread: Mutex<Option<JoinHandle<Option<u64>>>>,
}

impl Files {
    fn snapshot(
        &self,
        meta: &SnapshotMeta,
        chunks: impl FnOnce(&mut dyn FnMut(Bytes) -> Result<(), Fault>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let _turn = self.snapshot_turn.lock();
        let dir = snapshot_dir(&self.config);
        let cluster = self.directory.lock().cluster();
        let mut writer = SnapshotWriter::create(self.disk.clone(), &dir, cluster, meta)?;
        chunks(&mut |chunk| {
            if self.stopping.load(Ordering::Relaxed) {
                return Err(Fault::Stopped);
            }
            writer.push(&chunk)
        })?;
        writer.finish()?;
        let _ = self.sender.send(Command::Mark(meta.mark()));
        if self.config.purge {
            let keep = self.config.keep_snapshots.max(SNAPSHOTS_MIN);
            if let Err(fault) = purge_snapshots(&*self.disk, &dir, keep) {
                warn!(%fault, "old snapshots cannot be removed");
            }
        }
        let files = list_snapshots(&*self.disk, &dir)?;
        self.directory.lock().set_snapshots(&files);
        Ok(())
    }
}

/// The locked directory and what the catalog says about it.
struct Directory {
    catalog: Catalog,
    facts: Facts,
    keep: usize,
    /// Held until the process ends or the storage is dropped.
    _locks: Vec<fs::File>,
}

impl Directory {
    /// The log below this index is not needed by any snapshot that is kept. With one snapshot, all
    /// of the log is: should that file rot, the log is what is left.
    fn floor(&self) -> u64 {
        let snapshots = &self.facts.snapshots;
        match snapshots.len() {
            0 | 1 => 0,
            count => snapshots[count.min(self.keep) - 1].index + 1,
        }
    }

    fn cluster(&self) -> u64 {
        let identity = self.facts.identity.expect("set when the storage is opened");
        identity.cluster
    }

    fn set_snapshots(&mut self, files: &[SnapshotFile]) {
        self.facts.snapshots = known(files);
        self.catalog.save(&self.facts);
    }

    fn stopped(&mut self, last_group: u64) {
        self.facts.clean_stop = Some(CleanStop { last_group });
        self.catalog.save(&self.facts);
    }
}

fn known(files: &[SnapshotFile]) -> Vec<KnownSnapshot> {
    let of = |file: &SnapshotFile| KnownSnapshot {
        index: file.index,
        term: file.term,
    };
    files.iter().map(of).collect()
}

enum Command {
    /// With its encoded length.
    Append(Append, u64),
    Mark(SnapshotMark),
    Release(u64),
    Stop,
}

struct LogThread {
    wal: Wal,
    receiver: Receiver<Command>,
    sync: bool,
    purge: bool,
    fsync_warn: Duration,
    stats: Arc<LogStats>,
    on_persisted: Box<dyn Fn(u64) + Send>,
}

/// What was taken from the queue at once.
#[derive(Default)]
struct Taken {
    records: Vec<Record>,
    bytes: u64,
    sync: bool,
    number: Option<u64>,
    release: Option<u64>,
    stop: bool,
}

impl Taken {
    fn add(&mut self, command: Command) {
        match command {
            Command::Append(append, bytes) => {
                self.records.push(append.record);
                self.bytes += bytes;
                self.sync |= append.sync;
                self.number = self.number.max(Some(append.number));
            }
            Command::Mark(mark) => self.records.push(Record {
                entries: Vec::new(),
                hard_state: None,
                mark: Some(mark),
            }),
            Command::Release(index) => self.release = self.release.max(Some(index)),
            Command::Stop => self.stop = true,
        }
    }
}

impl LogThread {
    /// Returns the number of the last group after a clean stop.
    fn run(mut self) -> Result<u64, Fault> {
        loop {
            let Some(taken) = self.take()? else {
                // All handles are gone without a stop: nobody waits for anything.
                return Ok(self.wal.last_group());
            };
            self.carry_out(&taken)?;
            if taken.stop {
                self.wal.sync()?;
                self.wal.seal_if_idle()?;
                self.wal.sync()?;
                return Ok(self.wal.last_group());
            }
        }
    }

    /// Waits for work, then takes all there is: while one group is synced, the next gathers.
    fn take(&mut self) -> Result<Option<Taken>, Fault> {
        let first = match self.receiver.recv_timeout(SEAL_AFTER) {
            Err(RecvTimeoutError::Timeout) => {
                self.wal.seal_if_idle()?;
                self.receiver.recv().ok()
            }
            other => other.ok(),
        };
        let Some(first) = first else {
            return Ok(None);
        };
        let mut taken = Taken::default();
        taken.add(first);
        while taken.bytes < GROUP_BYTES_MAX && !taken.stop {
            match self.receiver.try_recv() {
                Ok(command) => taken.add(command),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        Ok(Some(taken))
    }

    fn carry_out(&mut self, taken: &Taken) -> Result<(), Fault> {
        if !taken.records.is_empty() {
            self.wal.write(&taken.records)?;
            self.stats.groups.fetch_add(1, Ordering::Relaxed);
            self.stats
                .bytes_written
                .fetch_add(taken.bytes, Ordering::Relaxed);
            self.stats
                .queued_bytes
                .fetch_sub(taken.bytes, Ordering::Relaxed);
        }
        if taken.sync && self.sync {
            self.sync()?;
        }
        if let Some(number) = taken.number {
            (self.on_persisted)(number);
        }
        if let Some(index) = taken.release
            && self.purge
            && let Err(fault) = self.wal.release_below(index)
        {
            warn!(%fault, "old log segments cannot be removed");
        }
        let segments = self.wal.segment_count() as u64;
        self.stats.segments.store(segments, Ordering::Relaxed);
        self.stats
            .log_bytes
            .store(self.wal.bytes(), Ordering::Relaxed);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Fault> {
        let start = Instant::now();
        self.wal.sync()?;
        let took = start.elapsed();
        let us = took.as_micros() as u64;
        self.stats.syncs.fetch_add(1, Ordering::Relaxed);
        self.stats.sync_total_us.fetch_add(us, Ordering::Relaxed);
        self.stats.sync_max_us.fetch_max(us, Ordering::Relaxed);
        if took > self.fsync_warn {
            warn!(
                duration_ms = took.as_millis() as u64,
                "syncing the log was slow; latency of writes suffers"
            );
        }
        Ok(())
    }
}

fn open<M>(
    config: StorageConfig,
    disk: Arc<dyn Disk>,
    mut load: impl FnMut(Option<SnapshotReader>) -> Result<M, Fault>,
) -> Result<(Recovered<M>, Storage), Fault> {
    let mut warnings = Vec::new();
    refuse_zookeeper(&config)?;
    let snapshots_in = snapshot_dir(&config);
    let log_in = config.log_dir.join("log");
    for dir in [&config.data_dir, &config.log_dir, &snapshots_in, &log_in] {
        disk.create_dir(dir)
            .map_err(|error| Fault::io("create", dir, error))?;
    }
    let mut locks = vec![lock(&config.data_dir)?];
    if !same_dir(&config.data_dir, &config.log_dir) {
        locks.push(lock(&config.log_dir)?);
    }
    drop_ballast(&*disk, &config.log_dir, &mut warnings)?;

    let (catalog, mut facts) = Catalog::open(&config.data_dir.join("catalog"), &mut warnings);
    let in_log = Wal::identity_in(&*disk, &log_in)?;
    if in_log.is_none() && facts.identity.is_some() {
        return Err(Fault::LogLost {
            dir: log_in,
            detail: "there is no log segment, but this server has run before".to_owned(),
        });
    }
    let files = list_snapshots(&*disk, &snapshots_in)?;
    let mut identity = match facts.identity.or(in_log) {
        Some(identity) => identity,
        None => Identity {
            cluster: random()?,
            server: config.server,
            disk: random()?,
        },
    };
    if identity.server != config.server {
        return Err(Fault::OtherServer {
            path: config.data_dir,
            found: identity.server,
            configured: config.server,
        });
    }

    let first_start = in_log.is_none();
    let loaded = load_newest(
        &*disk,
        &config,
        &files,
        &mut identity,
        first_start,
        &mut load,
        &mut warnings,
    )?;
    let (machine, snapshot) = loaded;
    let start = WalStart {
        identity,
        snapshot: snapshot.as_ref().map(SnapshotMeta::mark),
        incarnation: facts.incarnation,
        last_group: facts.clean_stop.map(|stop| stop.last_group),
    };
    let options = WalOptions {
        segment_bytes: config.segment_bytes,
        ..WalOptions::default()
    };
    let progress = config.progress.clone();
    let mut report = |done, total| {
        if let Some(progress) = &progress {
            progress.report(done, total);
        }
    };
    let (wal, replay) = Wal::open(disk.clone(), &log_in, options, start, &mut report)?;
    warnings.extend(replay.warnings);
    let last = wal.last_index();
    let last_term = replay.entries.last().map(|entry| entry.term);
    let hard_state = consistent(
        replay.hard_state.unwrap_or_default(),
        snapshot.as_ref(),
        last,
        last_term,
        &log_in,
    )?;

    let clean_shutdown = facts.clean_stop.is_some();
    facts = Facts {
        identity: Some(identity),
        incarnation: Some(replay.incarnation),
        clean_stop: None,
        snapshots: known(&files),
    };
    let mut directory = Directory {
        catalog,
        facts,
        keep: config.keep_snapshots.max(SNAPSHOTS_MIN),
        _locks: locks,
    };
    directory.catalog.save(&directory.facts);
    load_ballast(&*disk, &config.log_dir);

    for warning in &warnings {
        warn!("{warning}");
    }
    info!(
        incarnation = replay.incarnation,
        snapshot = snapshot.as_ref().map_or(0, |meta| meta.index),
        entries = replay.entries.len(),
        clean_shutdown,
        "recovered"
    );
    let membership = match &snapshot {
        Some(meta) => Some(meta.membership.clone()),
        None => replay.mark.and_then(|mark| mark.membership),
    };
    let recovered = Recovered {
        identity,
        incarnation: replay.incarnation,
        hard_state,
        membership,
        snapshot,
        machine,
        entries: replay.entries,
        clean_shutdown,
        warnings,
    };
    let storage = Storage {
        config,
        disk,
        wal,
        directory,
    };
    Ok((recovered, storage))
}

/// Loads the newest snapshot that can be, or an empty machine.
fn load_newest<M>(
    disk: &dyn Disk,
    config: &StorageConfig,
    files: &[SnapshotFile],
    identity: &mut Identity,
    first_start: bool,
    load: &mut impl FnMut(Option<SnapshotReader>) -> Result<M, Fault>,
    warnings: &mut Vec<String>,
) -> Result<(M, Option<SnapshotMeta>), Fault> {
    for file in files {
        let attempt = SnapshotReader::open(disk, &file.path).and_then(|reader| {
            let meta = reader.meta();
            let cluster = reader.cluster();
            if first_start {
                // The log is gone but a snapshot is there: a restored backup keeps its cluster.
                identity.cluster = cluster;
            }
            identity.check(&file.path, cluster, None)?;
            let reader = match &config.progress {
                Some(progress) => reader.with_progress(progress.clone()),
                None => reader,
            };
            Ok((load(Some(reader))?, Some(meta)))
        });
        match attempt {
            Err(fault @ (Fault::CorruptSnapshot { .. } | Fault::RejectedSnapshot { .. })) => {
                warnings.push(format!("{fault}; trying the one before it"));
            }
            other => return other,
        }
    }
    Ok((load(None)?, None))
}

/// The hard state as raft may be given it.
fn consistent(
    mut state: HardState,
    snapshot: Option<&SnapshotMeta>,
    last: u64,
    last_term: Option<u64>,
    log_in: &Path,
) -> Result<HardState, Fault> {
    let snapshot_index = snapshot.map_or(0, |meta| meta.index);
    let snapshot_term = snapshot.map_or(0, |meta| meta.term);
    state.commit = state.commit.max(snapshot_index);
    let term = last_term.unwrap_or(0).max(snapshot_term);
    if state.term < term {
        // A snapshot of a later term than any vote: nothing was voted in that term.
        state.term = term;
        state.vote = 0;
    }
    if state.commit > last {
        return Err(Fault::LogLost {
            dir: log_in.to_owned(),
            detail: format!(
                "entries up to {} were committed, but the log ends at {last}",
                state.commit
            ),
        });
    }
    Ok(state)
}

fn snapshot_dir(config: &StorageConfig) -> PathBuf {
    config.data_dir.join("snapshot")
}

/// Data of a ZooKeeper where there is none of ours is likely a first start on its directory.
fn refuse_zookeeper(config: &StorageConfig) -> Result<(), Fault> {
    let ours = [snapshot_dir(config), config.log_dir.join("log")];
    if ours.iter().any(|dir| dir.exists()) {
        return Ok(());
    }
    for dir in [&config.data_dir, &config.log_dir] {
        let path = dir.join("version-2");
        let Ok(entries) = fs::read_dir(&path) else {
            continue;
        };
        let theirs = |name: &str| name.starts_with("snapshot.") || name.starts_with("log.");
        let mut names = entries.flatten().map(|entry| entry.file_name());
        if names.any(|name| theirs(&name.to_string_lossy())) {
            return Err(Fault::ZooKeeperData { path });
        }
    }
    Ok(())
}

fn same_dir(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

fn lock(dir: &Path) -> Result<fs::File, Fault> {
    let path = dir.join("lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| Fault::io("open", &path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Fault::Locked {
            path: dir.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(Fault::io("lock", &path, error)),
    }
}

/// Makes room for recovery if the disk is nearly full.
fn drop_ballast(disk: &dyn Disk, dir: &Path, warnings: &mut Vec<String>) -> Result<(), Fault> {
    let path = dir.join("ballast");
    let free = disk
        .free_bytes(dir)
        .map_err(|error| Fault::io("measure the free space of", dir, error))?;
    if free < FREE_BYTES_SHORT && path.exists() {
        disk.remove(&path)
            .map_err(|error| Fault::io("remove", &path, error))?;
        warnings.push(format!(
            "only {} KiB are free in {}; the reserve of {} KiB was released to start at all: make \
             room now",
            free / 1024,
            dir.display(),
            BALLAST_BYTES / 1024
        ));
    }
    Ok(())
}

/// Puts the reserve back if there is room for it. Best effort.
fn load_ballast(disk: &dyn Disk, dir: &Path) {
    let path = dir.join("ballast");
    let room = disk.free_bytes(dir).unwrap_or(0) >= 2 * FREE_BYTES_SHORT;
    if path.exists() || !room {
        return;
    }
    // Not zeros, which some file systems do not store.
    let mut seed = 1u64;
    let mut content = Vec::with_capacity(BALLAST_BYTES);
    while content.len() < BALLAST_BYTES {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        content.extend_from_slice(&seed.to_le_bytes());
    }
    let written = disk
        .create(&path)
        .and_then(|file| file.write_at(&content, 0));
    if let Err(error) = written {
        warn!(%error, "the reserve for a full disk cannot be written");
        let _ = disk.remove(&path);
    }
}

fn random() -> Result<u64, Fault> {
    getrandom::u64().map_err(|error| Fault::Random(error.to_string()))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> LogEntry {
        LogEntry {
            term,
            index,
            kind: 0,
            data: Bytes::from(format!("entry {index} of term {term}")),
            context: Bytes::new(),
        }
    }

    fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Record {
        Record {
            hard_state: Some(HardState {
                term,
                vote: 1,
                commit: range.start() - 1,
            }),
            entries: range.map(|index| entry(index, term)).collect(),
            mark: None,
        }
    }

    /// Loads the bytes of all chunks, or nothing.
    fn load(reader: Option<SnapshotReader>) -> Result<Vec<u8>, Fault> {
        let mut all = Vec::new();
        for chunk in reader.into_iter().flatten() {
            all.extend_from_slice(&chunk?);
        }
        Ok(all)
    }

    struct Running {
        log: LogHandle,
        persisted: Receiver<u64>,
    }

    impl Running {
        fn start(storage: Storage) -> Self {
            let (sender, persisted) = mpsc::channel();
            let log = storage.start(
                move |number| sender.send(number).expect("the test waits"),
                |fault| panic!("{fault}"),
            );
            Self { log, persisted }
        }

        fn write(&self, number: u64, record: Record) {
            self.log.append(Append {
                number,
                record,
                sync: true,
            });
            let deadline = Duration::from_secs(60);
            while self
                .persisted
                .recv_timeout(deadline)
                .expect("it is persisted")
                < number
            {}
        }
    }

    #[test]
    fn what_is_persisted_is_recovered() {
        let dir = tempfile::tempdir().unwrap();
        let config = StorageConfig::new(dir.path(), 1);

        let (first, storage) = Storage::open(config.clone(), load).unwrap();
        assert_eq!(first.incarnation, 1);
        assert!(first.entries.is_empty() && first.snapshot.is_none() && !first.clean_shutdown);
        let running = Running::start(storage);
        running.write(7, entries(1..=5, 1));
        running.log.stop();
        drop(running);

        let (second, storage) = Storage::open(config.clone(), load).unwrap();
        assert_eq!(second.identity, first.identity);
        assert_eq!(second.incarnation, 2);
        assert_eq!(second.entries, entries(1..=5, 1).entries);
        assert!(second.clean_shutdown);
        let running = Running::start(storage);
        running.write(8, entries(4..=6, 2));
        let meta = SnapshotMeta {
            index: 5,
            term: 2,
            ..SnapshotMeta::default()
        };
        let (sender, done) = mpsc::channel();
        running.log.take_snapshot(
            meta.clone(),
            |push| push(Bytes::from_static(b"state")),
            move |result| sender.send(result).expect("the test waits"),
        );
        assert_eq!(done.recv().unwrap().unwrap(), meta);
        running.log.stop();
        drop(running);

        let (third, _storage) = Storage::open(config, load).unwrap();
        assert_eq!(third.snapshot, Some(meta));
        assert_eq!(third.machine, b"state");
        assert_eq!(third.entries, [entry(6, 2)]);
        assert_eq!(third.hard_state.term, 2);
        assert_eq!(third.hard_state.commit, 5);
    }
}

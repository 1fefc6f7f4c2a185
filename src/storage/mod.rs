//! Durability: the log, the snapshots, and what is remembered about them.
//!
//! [`Storage::open`] recovers a server from its directories, [`Storage::start`] begins the log
//! thread, and a [`LogHandle`] gives it work:
//!
//! ```text
//! directory   locks, ballast, what a start must refuse; the catalog beside the log
//! recovery    newest snapshot, then the log after it: all that a restart knows
//! replay      what a segment says after a crash: torn, rotten, or whole
//! thread      group commit, snapshots in the background, old files removed
//! wal         segments in a row      segment   one file of the log
//! snapshot    snapshot files         catalog   a second witness, in sled
//! disk        the file system as a trait: all of the above but catalog and locks run over it
//! unbuffered  how the log is written on a real one
//! stall       a disk that hangs is told of meanwhile
//! fault       why this server cannot go on, and what to do
//! ```
//!
//! Below `dataDir` are `lock`, `catalog/` and `snapshot/`, and `diverged` if the server stopped
//! because its state was not that of the others; below `dataLogDir` (the same directory unless
//! configured) `log/` and `ballast`.

mod catalog;
mod directory;
mod disk;
mod fault;
mod recovery;
mod replay;
mod segment;
mod snapshot;
mod stall;
mod thread;
mod unbuffered;
mod wal;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::engine::{Append, SnapshotMeta};
use crate::metrics::Metrics;

pub use self::catalog::catches_panics;
use self::directory::Directory;
pub use self::disk::{Disk, File, RealDisk};
pub use self::fault::Fault;
pub use self::recovery::{Known, Recovery, recover};
pub use self::snapshot::{
    CompressedChunk, SnapshotFile, SnapshotReader, SnapshotWriter, list_snapshots, purge_snapshots,
    write_snapshot,
};
pub use self::thread::LogHandle;
pub use self::wal::{Replay, Wal, WalOptions, WalStart};
use crate::proto::log::{HardState, LogEntry, Membership, Record};

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

/// What an operator should read. Logged at once, because the start may still fail for another
/// reason; kept for those who ask later.
#[derive(Debug, Default)]
struct Warnings(Vec<String>);

impl Warnings {
    fn add(&mut self, text: String) {
        warn!("{text}");
        self.0.push(text);
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
    /// The pause after a snapshot that could not be written: who wants one asks again at once.
    pub snapshot_pause: Duration,
    pub progress: Option<Progress>,
    /// Where syncs and snapshots are counted.
    pub metrics: Arc<Metrics>,
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
            snapshot_pause: SNAPSHOT_PAUSE,
            progress: None,
            metrics: Arc::default(),
        }
    }

    /// Whether there is a log: not before the first start.
    pub fn has_log(&self) -> bool {
        self.log_files().is_dir()
    }

    fn log_files(&self) -> PathBuf {
        self.log_dir.join("log")
    }

    fn snapshot_files(&self) -> PathBuf {
        self.data_dir.join("snapshot")
    }

    /// There if the state is not that of the other servers.
    fn diverged_mark(&self) -> PathBuf {
        self.data_dir.join("diverged")
    }

    fn keep(&self) -> usize {
        self.keep_snapshots.max(SNAPSHOTS_MIN)
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
    /// As of the snapshot, or of the beginning without one; `None` if nothing was ever marked.
    pub membership: Option<Membership>,
    /// What `machine` was loaded from.
    pub snapshot: Option<SnapshotMeta>,
    /// What the loader made.
    pub machine: M,
    /// The entries after the snapshot, without holes.
    pub entries: Vec<LogEntry>,
    /// Whether a snapshot should be taken as soon as the server serves: because the log is of many
    /// runs, or because space is short and a snapshot lets older files go.
    pub snapshot_due: bool,
    /// Whether the last run ended by [`LogHandle::stop`], as far as is known.
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
        Self::open_over(Arc::new(RealDisk), config, load)
    }

    fn open_over<M>(
        disk: Arc<dyn Disk>,
        config: StorageConfig,
        load: impl FnMut(Option<SnapshotReader>) -> Result<M, Fault>,
    ) -> Result<(Recovered<M>, Self), Fault> {
        let mut warnings = Warnings::default();
        let mut directory = Directory::open(&config, &*disk, &mut warnings)?;
        let known = directory.known();
        let options = WalOptions {
            segment_bytes: config.segment_bytes,
            unbuffered: config.sync,
            ..WalOptions::default()
        };
        let progress = config.progress.as_ref();
        let dirs = (&*config.log_files(), &*config.snapshot_files());
        let (mut recovery, wal) = recover(&disk, dirs, options, known, progress, load)?;
        warnings.0.append(&mut recovery.warnings);
        let clean_shutdown = directory.started(&recovery, &config, &*disk);

        let snapshot = recovery.snapshot;
        info!(
            incarnation = recovery.incarnation,
            snapshot = snapshot.as_ref().map_or(0, |meta| meta.index),
            entries = recovery.entries.len(),
            clean_shutdown,
            "recovered"
        );
        let recovered = Recovered {
            identity: directory.identity(),
            incarnation: recovery.incarnation,
            hard_state: recovery.hard_state,
            membership: recovery.membership,
            snapshot,
            machine: recovery.machine,
            entries: recovery.entries,
            snapshot_due: recovery.snapshot_due || directory.is_short(),
            clean_shutdown,
            warnings: warnings.0,
        };
        let storage = Self {
            config,
            disk,
            wal,
            directory,
        };
        Ok((recovered, storage))
    }

    /// Writes one last record to the log, which is there wholly or not at all, and for good if this
    /// succeeds.
    ///
    /// # Errors
    /// The disk fails.
    pub fn write(&mut self, last: Record) -> Result<(), Fault> {
        self.wal.write(&[last])?;
        self.wal.sync()
    }

    /// Writes a snapshot of where the log ends.
    ///
    /// # Errors
    /// The disk fails.
    pub fn write_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        chunks: impl IntoIterator<Item = Bytes>,
    ) -> Result<(), Fault> {
        let dir = self.config.snapshot_files();
        let cluster = self.directory.identity().cluster;
        write_snapshot(&self.disk, &dir, cluster, meta, chunks)?;
        self.write(Record {
            mark: Some(meta.mark()),
            ..Record::default()
        })?;
        self.directory.wrote(meta.index);
        let files = list_snapshots(&*self.disk, &dir)?;
        self.directory.set_snapshots(&files);
        Ok(())
    }

    /// Closes the directories without having started anything.
    ///
    /// # Errors
    /// The disk fails.
    pub fn close(mut self) -> Result<(), Fault> {
        self.wal.seal_if_idle()?;
        self.wal.sync()?;
        self.directory.stopped(self.wal.last_group());
        Ok(())
    }

    /// Starts the log thread. `on_persisted` gets the highest number that is durable, `on_fault`
    /// the reason for which the thread has ended; both are called in that thread.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn start(
        self,
        on_persisted: impl Fn(u64, bool) + Send + 'static,
        on_fault: impl FnOnce(Fault) + Send + 'static,
    ) -> Result<LogHandle, Fault> {
        thread::start(self, Box::new(on_persisted), Box::new(on_fault))
    }
}

/// Long enough for attempts on a full disk to cost nothing, and short enough to be there soon after
/// somebody made room.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(5);
/// The fewest snapshots that are kept.
const SNAPSHOTS_MIN: usize = 3;

#[cfg(test)]
mod tests;

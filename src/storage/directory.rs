//! A server's directories: who may use them, and what is remembered about them.
//!
//! The only file of the storage that touches the file system beside [`Disk`](super::Disk), because
//! locks and sled do not exist in the simulator.

use std::fs::{self, TryLockError};
use std::io;
use std::path::Path;

use tracing::warn;

use super::catalog::{Catalog, CleanStop, Facts, KnownSnapshot};
use super::disk::{Disk, File};
use super::recovery::{Known, Recovery};
use super::snapshot::{SnapshotFile, list_snapshots};
use super::wal::Wal;
use super::{Fault, Identity, StorageConfig, Warnings};

const BALLAST_BYTES: usize = 4 << 20;
/// With less free space than this, the ballast is thrown off, and fewer snapshots are kept.
const FREE_BYTES_SHORT: u64 = 16 << 20;

/// The locked directories and what the catalog says about them.
pub(super) struct Directory {
    catalog: Catalog,
    facts: Facts,
    identity: Identity,
    keep: usize,
    /// Index of the newest snapshot that was loaded, written or received.
    good: u64,
    /// Whether space was short when it was opened.
    short: bool,
    /// Held as long as this lives.
    _locks: Vec<fs::File>,
}

impl Directory {
    /// Makes, locks and checks the directories, before anything of the log is touched.
    ///
    /// # Errors
    /// They are another server's or another process's, or the disk fails.
    pub(super) fn open(
        config: &StorageConfig,
        disk: &dyn Disk,
        warnings: &mut Warnings,
    ) -> Result<Self, Fault> {
        refuse_zookeeper(config)?;
        for dir in [
            &config.data_dir,
            &config.log_dir,
            &config.snapshot_files(),
            &config.log_files(),
        ] {
            disk.create_dir(dir)
                .map_err(|error| Fault::io("create", dir, error))?;
        }
        let mut locks = vec![lock(&config.data_dir)?];
        if !same_dir(&config.data_dir, &config.log_dir) {
            locks.push(lock(&config.log_dir)?);
        }
        let mark = config.diverged_mark();
        match fs::read_to_string(&mark) {
            Ok(report) => return Err(diverged(config, disk, &report)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // What it says matters less than that it is there.
            Err(error) => return Err(Fault::io("read", &mark, error)),
        }
        let short = short_of_space(disk, config)?;
        drop_ballast(disk, &config.log_dir, warnings)?;

        let (catalog, facts) = Catalog::open(&config.data_dir.join("catalog"), warnings);
        let identity = identify(config, disk, &facts)?;
        Ok(Self {
            catalog,
            facts,
            identity,
            keep: config.keep(),
            good: 0,
            short,
            _locks: locks,
        })
    }

    /// What recovery is told.
    pub(super) fn known(&self) -> Known {
        Known {
            identity: self.identity,
            incarnation: self.facts.incarnation,
            last_group: self.facts.clean_stop.map(|stop| stop.last_group),
        }
    }

    /// Remembers a start. Returns whether the last run ended cleanly.
    pub(super) fn started<M>(
        &mut self,
        recovery: &Recovery<M>,
        config: &StorageConfig,
        disk: &dyn Disk,
    ) -> bool {
        let stop = self.facts.clean_stop;
        self.facts = Facts {
            identity: Some(self.identity),
            incarnation: Some(recovery.incarnation),
            clean_stop: None,
            snapshots: known(&recovery.files),
        };
        self.good = recovery.snapshot.as_ref().map_or(0, |meta| meta.index);
        self.catalog.save(&self.facts);
        load_ballast(disk, &config.log_dir);
        // The mark may be of an earlier run, if the catalog lost what came after it.
        stop.is_some_and(|stop| stop.last_group == recovery.last_group)
    }

    /// A snapshot was written, or received.
    pub(super) fn wrote(&mut self, index: u64) {
        // One may be received while an older one is being written.
        self.good = self.good.max(index);
    }

    /// Whether the newest snapshot is one that was loaded or written by this run. The older ones
    /// are not needed then, but for what may yet happen to it.
    pub(super) fn newest_is_good(&self) -> bool {
        let newest = self.facts.snapshots.first();
        newest.is_some_and(|snapshot| snapshot.index == self.good)
    }

    /// Remembers which snapshots there are.
    pub(super) fn set_snapshots(&mut self, files: &[SnapshotFile]) {
        self.facts.snapshots = known(files);
        self.catalog.save(&self.facts);
    }

    /// Remembers a clean stop.
    pub(super) fn stopped(&mut self, last_group: u64) {
        self.facts.clean_stop = Some(CleanStop { last_group });
        self.catalog.save(&self.facts);
    }

    /// Whether space was short at the start.
    pub(super) fn is_short(&self) -> bool {
        self.short
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// The index of the oldest snapshot that is kept: the log below it is not needed. With one
    /// snapshot, all of the log is: should that file rot, the log is what is left.
    pub(super) fn floor(&self) -> u64 {
        let snapshots = &self.facts.snapshots;
        match snapshots.len() {
            0 | 1 => 0,
            count => snapshots[count.min(self.keep) - 1].index,
        }
    }
}

/// Whose directories they are; at a first start, new random numbers.
fn identify(config: &StorageConfig, disk: &dyn Disk, facts: &Facts) -> Result<Identity, Fault> {
    let log_in = config.log_files();
    let in_log = Wal::identity_in(disk, &log_in)?;
    let snapshots = list_snapshots(disk, &config.snapshot_files())?;
    let identity = match in_log {
        Some(found) => facts.identity.unwrap_or(found),
        None if facts.identity.is_some() || !snapshots.is_empty() => {
            return Err(Fault::LogLost {
                dir: log_in,
                detail: "there is no log, but this server has run before".to_owned(),
            });
        }
        None => Identity {
            cluster: random()?,
            server: config.server,
            disk: random()?,
        },
    };
    if identity.server != config.server {
        return Err(Fault::OtherServer {
            path: config.data_dir.clone(),
            found: identity.server,
            configured: config.server,
        });
    }
    Ok(identity)
}

/// Takes note, durably, that the state is not that of the other servers: no start is to go on from
/// it, and nothing of it is to be removed. `agreed`: the last entry after which it was; 0: that is
/// not known.
pub(super) fn mark_diverged(
    config: &StorageConfig,
    disk: &dyn Disk,
    report: &str,
    agreed: u64,
) -> Fault {
    let path = config.diverged_mark();
    let text = format!("{agreed} {report}");
    let written = disk.create(&path).and_then(|file| {
        file.write_at(text.as_bytes(), 0)?;
        file.sync_data()?;
        disk.sync_dir(&config.data_dir)
    });
    if let Err(error) = written {
        // The process stops all the same. The next one finds out by itself.
        warn!(%error, "the divergence cannot be noted in the data directory");
    }
    diverged(config, disk, &text)
}

/// `text`: of the mark.
fn diverged(config: &StorageConfig, disk: &dyn Disk, text: &str) -> Fault {
    let (agreed, report) = text.split_once(' ').unwrap_or(("", text));
    let agreed = agreed.parse().unwrap_or(0);
    let files = list_snapshots(disk, &config.snapshot_files()).unwrap_or_default();
    let good = files.iter().find(|file| file.index <= agreed);
    let snapshot = good.map_or(String::new(), |good| {
        let path = good.path.display();
        format!(" (the last good snapshot is {path}, and the log tells what happened after it)")
    });
    let data_dir = config.data_dir.display().to_string();
    let dirs = match same_dir(&config.data_dir, &config.log_dir) {
        true => data_dir,
        false => format!("{data_dir} and {}", config.log_dir.display()),
    };
    Fault::Diverged {
        report: report.trim_end().to_owned(),
        dirs,
        snapshot,
        mark: config.diverged_mark(),
    }
}

fn known(files: &[SnapshotFile]) -> Vec<KnownSnapshot> {
    let of = |file: &SnapshotFile| KnownSnapshot {
        index: file.index,
        term: file.term,
    };
    files.iter().map(of).collect()
}

/// Data of a ZooKeeper where there is none of ours is likely a first start on its directory.
fn refuse_zookeeper(config: &StorageConfig) -> Result<(), Fault> {
    let ours = [config.snapshot_files(), config.log_files()];
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

/// Whether either directory is on a disk that is nearly full.
///
/// # Errors
/// The disk does not say how much is free.
pub(super) fn short_of_space(disk: &dyn Disk, config: &StorageConfig) -> Result<bool, Fault> {
    for dir in [&config.data_dir, &config.log_dir] {
        if free_in(disk, dir)? < FREE_BYTES_SHORT {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Bytes that may still be written in `dir`.
///
/// # Errors
/// The disk does not say.
pub(super) fn free_in(disk: &dyn Disk, dir: &Path) -> Result<u64, Fault> {
    disk.free_bytes(dir)
        .map_err(|error| Fault::io("measure the free space of", dir, error))
}

/// Makes room for recovery if the disk is nearly full.
fn drop_ballast(disk: &dyn Disk, dir: &Path, warnings: &mut Warnings) -> Result<(), Fault> {
    let path = dir.join("ballast");
    let free = free_in(disk, dir)?;
    if free < FREE_BYTES_SHORT && path.exists() {
        disk.remove(&path)
            .map_err(|error| Fault::io("remove", &path, error))?;
        warnings.add(format!(
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
pub(super) fn load_ballast(disk: &dyn Disk, dir: &Path) {
    let path = dir.join("ballast");
    let room = disk.free_bytes(dir).unwrap_or(0) >= 2 * FREE_BYTES_SHORT;
    if path.exists() || !room {
        return;
    }
    if let Err(error) = disk.create(&path).and_then(|file| fill(&*file)) {
        warn!(%error, "the reserve for a full disk cannot be written");
        let _ = disk.remove(&path);
    }
}

/// Not with zeros, which some file systems do not store; and in pieces, since what a start takes
/// at once a server that does nothing else keeps for good.
fn fill(file: &dyn File) -> io::Result<()> {
    const PIECE: usize = 64 << 10;
    let mut seed = 1u64;
    let mut piece = Vec::with_capacity(PIECE);
    for offset in (0..BALLAST_BYTES).step_by(PIECE) {
        piece.clear();
        while piece.len() < PIECE {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            piece.extend_from_slice(&seed.to_le_bytes());
        }
        file.write_at(&piece, offset as u64)?;
    }
    Ok(())
}

fn random() -> Result<u64, Fault> {
    getrandom::u64().map_err(|error| Fault::Random(error.to_string()))
}

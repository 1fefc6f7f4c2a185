//! Recovery: from files to what a server knows.
//!
//! Everything goes through [`Disk`], so the simulator recovers its servers with this code.

use std::path::Path;
use std::sync::Arc;

use super::Warnings;
use super::disk::Disk;
use super::snapshot::{SnapshotFile, list_snapshots, remove_leftovers};
use super::wal::{Wal, WalOptions, WalStart};
use super::{Fault, Identity, Progress, SnapshotMeta, SnapshotReader};
use crate::proto::log::{HardState, LogEntry, Membership};

/// Runs of the server that the log since the last snapshot may span. Each leaves a file of the log,
/// however short it was: a server that is killed and started again and again, with hardly a write
/// between, would leave any number of them.
pub(super) const LOG_RUNS_MAX: u64 = 32;

/// What is known besides the log and the snapshots.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Whose files they must be; a new log gets it.
    pub identity: Identity,
    /// The number of the last start, if remembered.
    pub incarnation: Option<u64>,
    /// The last group, if the last run is remembered to have ended cleanly.
    pub last_group: Option<u64>,
}

/// What the files held.
#[derive(Debug)]
pub struct Recovery<M> {
    /// Number of this start, durable.
    pub incarnation: u64,
    /// Consistent with snapshot and entries; all zero at the first start.
    pub hard_state: HardState,
    /// As of the snapshot, or of the beginning without one.
    pub membership: Option<Membership>,
    pub snapshot: Option<SnapshotMeta>,
    /// What the loader made of the snapshot.
    pub machine: M,
    /// The entries after the snapshot, without holes.
    pub entries: Vec<LogEntry>,
    /// Whether the log that was read is of so many runs that a snapshot should be taken.
    pub snapshot_due: bool,
    /// The snapshot files, newest first.
    pub files: Vec<SnapshotFile>,
    /// Number of the last group of the last run.
    pub last_group: u64,
    /// What an operator should read.
    pub warnings: Vec<String>,
}

/// Loads the newest snapshot that can be loaded, replays the log after it, and begins a new
/// segment. `dirs`: log, snapshots.
///
/// # Errors
/// See [`Fault`].
pub fn recover<M>(
    disk: &Arc<dyn Disk>,
    dirs: (&Path, &Path),
    options: WalOptions,
    known: Known,
    progress: Option<&Progress>,
    load: impl FnMut(Option<SnapshotReader>) -> Result<M, Fault>,
) -> Result<(Recovery<M>, Wal), Fault> {
    let (log_in, snapshots_in) = dirs;
    disk.create_dir(snapshots_in)
        .map_err(|error| Fault::io("create", snapshots_in, error))?;
    remove_leftovers(&**disk, snapshots_in)?;
    let files = list_snapshots(&**disk, snapshots_in)?;
    // A snapshot may have got its name just before the last stop. The log below it may be removed
    // from now on, so the name must stay.
    disk.sync_dir(snapshots_in)
        .map_err(|error| Fault::sync(snapshots_in, error))?;
    let mut warnings = Warnings::default();
    let Loaded {
        machine,
        snapshot,
        mut unread,
    } = load_newest(
        &**disk,
        &files,
        known.identity,
        progress,
        load,
        &mut warnings,
    )?;
    // Where the log does not reach back to what could be loaded, it is the disk that is to blame.
    let mut blame = |fault: Fault| match fault {
        Fault::LogGap { .. } | Fault::LogLost { .. } => unread.take().unwrap_or(fault),
        other => other,
    };

    let start = WalStart {
        identity: known.identity,
        snapshot: snapshot.as_ref().map(SnapshotMeta::mark),
        incarnation: known.incarnation,
        last_group: known.last_group,
    };
    let mut report = |done, total| {
        if let Some(progress) = progress {
            progress.report(done, total);
        }
    };
    let opened = Wal::open(disk.clone(), log_in, options, start, &mut report);
    let (wal, replay) = opened.map_err(&mut blame)?;
    warnings.0.extend(replay.warnings);
    let ends = Ends {
        last: wal.last_index(),
        term: replay.entries.last().map_or(0, |entry| entry.term),
    };
    let hard_state = replay.hard_state.unwrap_or_default();
    let hard_state = consistent(hard_state, snapshot.as_ref(), ends, log_in).map_err(blame)?;
    let membership = match &snapshot {
        Some(meta) => Some(meta.membership.clone()),
        None => replay.mark.and_then(|mark| mark.membership),
    };
    let recovery = Recovery {
        incarnation: replay.incarnation,
        hard_state,
        membership,
        snapshot,
        machine,
        entries: replay.entries,
        snapshot_due: replay.runs >= LOG_RUNS_MAX,
        files,
        last_group: replay.last_group,
        warnings: warnings.0,
    };
    Ok((recovery, wal))
}

struct Loaded<M> {
    machine: M,
    /// Of which snapshot; `None`: it is empty.
    snapshot: Option<SnapshotMeta>,
    /// Why the newest of the snapshots that the disk did not give was passed over.
    unread: Option<Fault>,
}

/// Loads the newest snapshot that can be, or an empty machine.
fn load_newest<M>(
    disk: &dyn Disk,
    files: &[SnapshotFile],
    identity: Identity,
    progress: Option<&Progress>,
    mut load: impl FnMut(Option<SnapshotReader>) -> Result<M, Fault>,
    warnings: &mut Warnings,
) -> Result<Loaded<M>, Fault> {
    let mut unread = None;
    for file in files {
        let attempt = SnapshotReader::open(disk, file).and_then(|mut reader| {
            identity.check(&file.path, reader.cluster(), None)?;
            if let Some(progress) = progress {
                reader = reader.with_progress(progress.clone());
            }
            let meta = reader.meta();
            Ok((load(Some(reader))?, Some(meta)))
        });
        match attempt {
            Ok((machine, snapshot)) => {
                return Ok(Loaded {
                    machine,
                    snapshot,
                    unread,
                });
            }
            Err(fault @ (Fault::CorruptSnapshot { .. } | Fault::RejectedSnapshot { .. })) => {
                warnings.add(format!("{fault}; trying the one before it"));
            }
            Err(fault) if is_bad_spot(&fault) => {
                warnings.add(format!("{}; trying the one before it", fault.survived()));
                unread = unread.or(Some(fault));
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(Loaded {
        machine: load(None)?,
        snapshot: None,
        unread,
    })
}

/// Whether the disk cannot read the file, which says nothing of others: what else a call may say is
/// of the whole system.
fn is_bad_spot(fault: &Fault) -> bool {
    matches!(fault, Fault::Io { source, .. } if source.raw_os_error() == Some(libc::EIO))
}

/// Where the log ends.
struct Ends {
    last: u64,
    /// 0: no entry after the snapshot.
    term: u64,
}

/// The hard state as raft may be given it.
fn consistent(
    mut state: HardState,
    snapshot: Option<&SnapshotMeta>,
    ends: Ends,
    log_in: &Path,
) -> Result<HardState, Fault> {
    let (index, term) = snapshot.map_or((0, 0), |meta| (meta.index, meta.term));
    state.commit = state.commit.max(index);
    let term = ends.term.max(term);
    if state.term < term {
        // A snapshot of a later term than any vote: nothing was voted in that term.
        state.term = term;
        state.vote = 0;
    }
    if state.commit > ends.last {
        return Err(Fault::LogLost {
            dir: log_in.to_owned(),
            detail: format!(
                "entries up to {} were committed, but the log ends at {}",
                state.commit, ends.last
            ),
        });
    }
    Ok(state)
}

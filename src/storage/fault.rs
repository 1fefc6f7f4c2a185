//! Why this server cannot go on with its directory.
//!
//! Every message says what was found, where, and what an operator can do about it. A fault is never
//! retried: the process stops with it (the exception is a failed snapshot, which costs nothing but
//! the snapshot).

use std::io;
use std::path::{Path, PathBuf};

/// How a member of a cluster, or a server alone, gets out of lost or damaged data.
const REPAIR: &str = "if this server is one of several, empty its data and log directories and let \
                      it join again; if it is alone, restore a backup of both directories";

/// A storage failure that stops the process.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A call to the file system failed.
    #[error("cannot {action} {path}: {source}{}", advice(.source))]
    Io {
        /// What was tried, as a verb: "read", "create".
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    /// No space is left, or the quota is used up.
    #[error(
        "cannot {action} {path}: the disk is full ({source}); nothing that was acknowledged is \
         lost: free some space and start again"
    )]
    DiskFull {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    /// A snapshot was given up, because the log needs the space that is left.
    #[error(
        "the disk of {dir} is nearly full ({free_kib} KiB left), and a snapshot must not take the \
         last of it: free some space"
    )]
    NoRoomForSnapshot { dir: PathBuf, free_kib: u64 },

    /// The disk did not confirm a sync, so nobody knows what it holds.
    #[error(
        "sync of {path} failed: {source}; what was not acknowledged may be lost; check the disk \
         and start again"
    )]
    Sync { path: PathBuf, source: io::Error },

    /// Use after a failed write or sync, which are not retried.
    #[error("the log has stopped after an earlier write or sync failure")]
    Stopped,

    /// A bug: a thread of the storage panicked.
    #[error("the {thread} thread panicked: {message}")]
    Panicked {
        thread: &'static str,
        message: String,
    },

    /// The system gives no more threads.
    #[error("cannot start the {name} thread: {source}")]
    Thread {
        name: &'static str,
        source: io::Error,
    },

    /// Another process holds the directory.
    #[error("data directory {path} is in use by another zkraft; stop that one or use another")]
    Locked { path: PathBuf },

    /// The directory belongs to a ZooKeeper.
    #[error(
        "{path} holds the data of a ZooKeeper server, which zkraft does not read in place; set \
         dataDir and dataLogDir to empty directories"
    )]
    ZooKeeperData { path: PathBuf },

    /// A file under one of our names that is not ours.
    #[error(
        "{path} is not a zkraft file (it starts with \"{found}\"); move it out of the directory"
    )]
    Foreign { path: PathBuf, found: String },

    /// A file written by a later zkraft.
    #[error(
        "{path} has format {found}, and this zkraft knows formats up to {known}; start the newer \
         zkraft that wrote it"
    )]
    NewerFormat {
        path: PathBuf,
        found: u32,
        known: u32,
    },

    /// The directory of another server id.
    #[error(
        "{path} belongs to server {found}, but this is server {configured}; set dataDir and myid \
         to what belongs together"
    )]
    OtherServer {
        path: PathBuf,
        found: u32,
        configured: u32,
    },

    /// Files of two servers or clusters in one place.
    #[error(
        "{path} is of {what} {found:016x}, but the rest of the data is of {expected:016x}; data \
         and log directories of different servers are mixed: set dataDir and dataLogDir to what \
         belongs together"
    )]
    Mixed {
        path: PathBuf,
        /// "cluster" or "disk".
        what: &'static str,
        found: u64,
        expected: u64,
    },

    /// Log bytes that were synced once are damaged.
    #[error(
        "{path} is corrupt at byte {offset}: group {group} was synced ({proof}) but is now \
         damaged, and all acknowledged writes from there on are lost with it; {REPAIR}"
    )]
    CorruptLog {
        path: PathBuf,
        offset: u64,
        group: u64,
        /// How it is known that this is no torn tail.
        proof: String,
    },

    /// A segment whose header cannot be read but which has content.
    #[error("{path} is corrupt: its header is damaged, so its groups cannot be read; {REPAIR}")]
    CorruptHeader { path: PathBuf },

    /// A group that passes its checksum but makes no sense: a bug of the writer.
    #[error("{path} has an impossible record at byte {offset}: {reason}; {REPAIR}")]
    ImpossibleRecord {
        path: PathBuf,
        offset: u64,
        reason: String,
    },

    /// Segments do not follow each other.
    #[error(
        "a part of the log in {dir} is missing: segment {segment} does not continue the one \
         before it; {REPAIR}"
    )]
    BrokenChain { dir: PathBuf, segment: u64 },

    /// The log starts after the snapshot ends.
    #[error(
        "the log in {dir} starts at index {first}, but the newest readable snapshot ends at \
         {snapshot} (0: there is none), so the writes between them are lost; {REPAIR}"
    )]
    LogGap {
        dir: PathBuf,
        snapshot: u64,
        first: u64,
    },

    /// The catalog has seen more log than there is.
    #[error(
        "the log in {dir} is missing or older than when the server last ran ({detail}); if it is \
         on a disk of its own, mount that; otherwise, {REPAIR}"
    )]
    LogLost { dir: PathBuf, detail: String },

    /// This server's state was not that of the others; now, or when it last ran.
    #[error(
        "{report}. This server is the one that is wrong, so it does not start with this data any \
         more. Nothing in {dirs} was removed{snapshot}: keep that, and report what happened with \
         it, for it is a bug or a broken machine. To go on, move {dirs} away, give this server \
         empty directories (with its myid), and it joins again by itself. If the other servers \
         are lost for good, remove {mark} to start with this data all the same"
    )]
    Diverged {
        /// How the states differed, and after which entry.
        report: String,
        /// The data directory, and that of the log if it is another one.
        dirs: String,
        /// Which snapshot is from before that, if one is known.
        snapshot: String,
        /// The file by which a start knows of it.
        mark: PathBuf,
    },

    /// A snapshot file is damaged.
    #[error("snapshot {path} is corrupt at byte {offset}: {reason}")]
    CorruptSnapshot {
        path: PathBuf,
        offset: u64,
        reason: String,
    },

    /// A snapshot file is whole, but its content was not accepted.
    #[error("snapshot {path} cannot be loaded: {reason}")]
    RejectedSnapshot { path: PathBuf, reason: String },

    /// The state in a snapshot file is as a later zkraft writes it.
    #[error(
        "snapshot {path} holds a state of format {found}, which this zkraft does not know; start \
         the newer zkraft that wrote it"
    )]
    NewerImage { path: PathBuf, found: i32 },

    /// A snapshot was asked for that is not there.
    #[error("there is no snapshot of entry {index}, term {term}, in {dir}")]
    NoSnapshot { dir: PathBuf, index: u64, term: u64 },

    /// Files were asked for where there are none.
    #[error("this server keeps everything in memory and has no snapshot files")]
    InMemory,

    /// No source of randomness for new ids.
    #[error("cannot draw a random id: {0}")]
    Random(String),
}

/// What an operator can do about a failed call, where that is known.
fn advice(error: &io::Error) -> &'static str {
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::ReadOnlyFilesystem, _) => {
            "; check the disk, mount it writable and start again"
        }
        (io::ErrorKind::PermissionDenied, _) => {
            "; dataDir, dataLogDir and all in them must belong to the user that runs zkraft"
        }
        (io::ErrorKind::NotADirectory, _) => "; dataDir and dataLogDir must be directories",
        (_, Some(libc::EMFILE | libc::ENFILE)) => {
            "; raise the limit of open files (ulimit -n) and start again"
        }
        (_, Some(libc::EIO)) => "; check the disk and start again",
        _ => "",
    }
}

impl Fault {
    /// Wraps a failed call, telling a full disk apart.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull {
                action,
                path,
                source,
            },
            _ => Self::Io {
                action,
                path,
                source,
            },
        }
    }

    /// Wraps a failed sync. A full disk may show only here; a directory has to be opened for it.
    pub fn sync(path: &Path, source: io::Error) -> Self {
        let is_not_open = matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::io("sync", path, source)
            }
            _ if is_not_open => Self::io("sync", path, source),
            _ => Self::Sync {
                path: path.to_owned(),
                source,
            },
        }
    }

    /// The text where the server goes on all the same, without a snapshot or with files that it
    /// does not need: nothing was lost, and there is nothing to start again.
    pub fn survived(&self) -> String {
        match self {
            Self::DiskFull {
                action,
                path,
                source,
            } => format!(
                "cannot {action} {}: the disk is full ({source}); free some space",
                path.display()
            ),
            Self::Sync { path, source } => {
                format!(
                    "sync of {} failed: {source}; check the disk",
                    path.display()
                )
            }
            Self::Stopped => "the server stops".to_owned(),
            other => {
                let text = other.to_string();
                let short = text.strip_suffix(" and start again").map(str::to_owned);
                short.unwrap_or(text)
            }
        }
    }

    /// Whether the disk is full: the one fault that an operator mends by making room.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull { .. } | Self::NoRoomForSnapshot { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let path = Path::new("/data/log/segment.1");
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let broken = || io::Error::other("EIO");
        assert!(Fault::io("write to", path, full()).is_disk_full());
        assert!(Fault::io("write to", path, io::ErrorKind::QuotaExceeded.into()).is_disk_full());
        assert!(Fault::sync(path, full()).is_disk_full());
        assert_eq!(
            Fault::io("write to", path, broken()).to_string(),
            "cannot write to /data/log/segment.1: EIO"
        );
        assert_eq!(
            Fault::sync(path, broken()).to_string(),
            "sync of /data/log/segment.1 failed: EIO; what was not acknowledged may be lost; check \
             the disk and start again"
        );
    }

    #[test]
    fn what_an_operator_can_mend_comes_with_advice() {
        let said = |code| {
            let error = io::Error::from_raw_os_error(code);
            Fault::io("open", Path::new("/data/lock"), error).to_string()
        };
        let cases = [
            (libc::EROFS, "mount it writable"),
            (libc::EACCES, "must belong to the user that runs zkraft"),
            (libc::ENOTDIR, "must be directories"),
            (libc::EMFILE, "raise the limit of open files"),
            (libc::EIO, "check the disk and start again"),
        ];
        for (code, advice) in cases {
            let said = said(code);
            assert!(said.starts_with("cannot open /data/lock: "), "{said}");
            assert!(said.contains(advice), "{said}");
        }
        assert!(said(libc::ELOOP).ends_with("(os error 40)"));
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        assert_eq!(
            Fault::sync(Path::new("/data/log"), error).to_string(),
            "cannot sync /data/log: Too many open files (os error 24); raise the limit of open \
             files (ulimit -n) and start again"
        );
    }

    #[test]
    fn what_a_server_survives_is_no_reason_to_start_it_again() {
        let path = Path::new("/data/snapshot/x");
        let error = io::Error::from_raw_os_error;
        let cases = [
            (
                Fault::io("write to", path, error(libc::ENOSPC)),
                "cannot write to /data/snapshot/x: the disk is full (No space left on device (os \
                 error 28)); free some space",
            ),
            (
                Fault::io("read", path, error(libc::EIO)),
                "cannot read /data/snapshot/x: Input/output error (os error 5); check the disk",
            ),
            (
                Fault::sync(path, error(libc::EIO)),
                "sync of /data/snapshot/x failed: Input/output error (os error 5); check the disk",
            ),
            (Fault::Stopped, "the server stops"),
            (
                Fault::InMemory,
                "this server keeps everything in memory and has no snapshot files",
            ),
        ];
        for (fault, said) in cases {
            assert_eq!(fault.survived(), said);
        }
    }

    #[test]
    fn the_other_messages_are_sentences_too() {
        let path = PathBuf::from("/data");
        let rejected = Fault::RejectedSnapshot {
            path,
            reason: "the digest differs".to_owned(),
        };
        let cases = [
            (
                Fault::NoRoomForSnapshot {
                    dir: PathBuf::from("/data/snapshot"),
                    free_kib: 12,
                },
                "the disk of /data/snapshot is nearly full (12 KiB left), and a snapshot must not \
                 take the last of it: free some space",
            ),
            (
                rejected,
                "snapshot /data cannot be loaded: the digest differs",
            ),
            (
                Fault::Panicked {
                    thread: "log",
                    message: "boom".to_owned(),
                },
                "the log thread panicked: boom",
            ),
            (
                Fault::Thread {
                    name: "log",
                    source: io::Error::other("too many"),
                },
                "cannot start the log thread: too many",
            ),
            (
                Fault::Random("no device".to_owned()),
                "cannot draw a random id: no device",
            ),
        ];
        for (fault, message) in cases {
            assert_eq!(fault.to_string(), message);
        }
    }
}

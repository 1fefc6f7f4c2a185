//! What a server remembers about its own directory, beside the log: an ordered map in sled.
//!
//! The catalog is a second witness, not an authority: everything in it can be rebuilt from the
//! headers of segments and snapshots, and it only lets a start notice that files have gone missing.
//! Three guards make sled fit for that:
//!
//! 1. A `snap.*.generating` that a kill left half-written would be taken for the newest state:
//!    such files are removed before opening.
//! 2. sled's `flush` does not reach the drive: a change is followed by an fsync of its `db` file.
//! 3. A catalog that cannot be opened or read is moved aside and begun anew, with a warning. One
//!    that cannot be written is given up, with a warning: the server runs without. So it does if
//!    the disk is full or not writable, which says nothing against the catalog on it. A panic of
//!    sled's is an error like any other.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Identity, Warnings};

/// What is remembered. Each field is one key, its value JSON.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Facts {
    pub identity: Option<Identity>,
    /// Number of the last start, durable in the log before it is written here.
    pub incarnation: Option<u64>,
    /// Set by a clean stop, cleared by the next start.
    pub clean_stop: Option<CleanStop>,
    /// Newest first.
    pub snapshots: Vec<KnownSnapshot>,
}

/// How the log ended at a clean stop.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct CleanStop {
    /// Number of the last group, synced.
    pub last_group: u64,
}

/// A snapshot that was durable.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct KnownSnapshot {
    pub index: u64,
    pub term: u64,
}

const IDENTITY: &str = "identity";
const INCARNATION: &str = "incarnation";
const CLEAN_STOP: &str = "clean_stop";
const SNAPSHOTS: &str = "snapshots";

/// sled lets its lock go some time after it is closed, in a thread of its own.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The open catalog, or nothing if it could not be opened.
pub(super) struct Catalog {
    map: Option<Map>,
}

struct Map {
    db: sled::Db,
    file: File,
}

impl Catalog {
    /// Opens the catalog in `dir` and reads it. Never fails: see the head of the file.
    pub(super) fn open(dir: &Path, warnings: &mut Warnings) -> (Self, Facts) {
        match read(dir) {
            Ok((map, facts)) => return (Self { map: Some(map) }, facts),
            Err(error) if !is_damage(&error) => {
                warnings.add(format!(
                    "the catalog {} cannot be opened, going on without: {error}",
                    dir.display()
                ));
                return (Self { map: None }, Facts::default());
            }
            Err(error) => warnings.add(format!(
                "the catalog {} cannot be read and is rebuilt: {error}",
                dir.display()
            )),
        }
        let opened = move_aside(dir).and_then(|()| caught(|| Map::open(dir)));
        match opened {
            Ok(map) => (Self { map: Some(map) }, Facts::default()),
            Err(error) => {
                warnings.add(format!(
                    "the catalog {} cannot be rebuilt, going on without: {error}",
                    dir.display()
                ));
                (Self { map: None }, Facts::default())
            }
        }
    }

    /// Replaces what is remembered, durably and at once.
    pub(super) fn save(&mut self, facts: &Facts) {
        let Some(map) = &self.map else {
            return;
        };
        if let Err(error) = caught(|| map.write(facts)) {
            warn!(%error, "the catalog cannot be written, going on without");
            self.close();
        }
    }

    fn close(&mut self) {
        if let Some(map) = self.map.take() {
            close(map);
        }
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        self.close();
    }
}

/// Opens the catalog in `dir` and reads it.
fn read(dir: &Path) -> io::Result<(Map, Facts)> {
    let map = caught(|| Map::open(dir))?;
    match caught(|| map.read()) {
        Ok(facts) => Ok((map, facts)),
        Err(error) => {
            close(map);
            Err(error)
        }
    }
}

/// Closing syncs once more, and sled takes for granted that this succeeds.
fn close(map: Map) {
    let closed = caught(|| {
        drop(map);
        Ok(())
    });
    if let Err(error) = closed {
        warn!(%error, "the catalog was not closed in order");
    }
}

impl Map {
    fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(".generating") {
                fs::remove_file(entry.path())?;
            }
        }
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(1 << 20)
            .mode(sled::Mode::LowSpace)
            // Every change is flushed by hand.
            .flush_every_ms(None);
        let until = Instant::now() + LOCK_PATIENCE;
        let db = loop {
            match config.open().map_err(io_error) {
                // The directory is ours alone, so this is a catalog of ours that was just closed.
                Err(error) if is_locked(&error) && Instant::now() < until => {
                    thread::sleep(Duration::from_millis(10));
                }
                opened => break opened?,
            }
        };
        let file = File::open(dir.join("db"))?;
        Ok(Self { db, file })
    }

    fn read(&self) -> io::Result<Facts> {
        Ok(Facts {
            identity: self.value(IDENTITY)?,
            incarnation: self.value(INCARNATION)?,
            clean_stop: self.value(CLEAN_STOP)?,
            snapshots: self.value(SNAPSHOTS)?.unwrap_or_default(),
        })
    }

    fn value<T: DeserializeOwned>(&self, key: &str) -> io::Result<Option<T>> {
        let Some(value) = self.db.get(key).map_err(io_error)? else {
            return Ok(None);
        };
        Ok(serde_json::from_slice(&value)?)
    }

    fn write(&self, facts: &Facts) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        put(&mut batch, IDENTITY, &facts.identity)?;
        put(&mut batch, INCARNATION, &facts.incarnation)?;
        put(&mut batch, CLEAN_STOP, &facts.clean_stop)?;
        put(&mut batch, SNAPSHOTS, &facts.snapshots)?;
        self.db.apply_batch(batch).map_err(io_error)?;
        self.db.flush().map_err(io_error)?;
        // Any descriptor of a file syncs all of it.
        self.file.sync_all()
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread is caught, and no reason to end the process.
pub fn catches_panics() -> bool {
    GUARDED.get()
}

/// Does something with sled, which asserts where it should return errors when its files are
/// damaged.
fn caught<T>(something: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    GUARDED.set(true);
    let done = panic::catch_unwind(AssertUnwindSafe(something));
    GUARDED.set(false);
    done.unwrap_or_else(|_| Err(io::Error::other("sled panicked")))
}

fn put<T: Serialize>(batch: &mut sled::Batch, key: &str, value: &T) -> io::Result<()> {
    batch.insert(key, serde_json::to_vec(value)?);
    Ok(())
}

/// What the system said to sled, if it was the system.
fn io_error(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// Whether sled found its files in use. It has no other sign for it than these words.
fn is_locked(error: &io::Error) -> bool {
    error.to_string().starts_with("could not acquire lock")
}

/// Whether an error in opening the catalog is of the catalog, and not of the disk below it.
fn is_damage(error: &io::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};

    let kind = error.kind();
    let files = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    let disk = [
        StorageFull,
        QuotaExceeded,
        ReadOnlyFilesystem,
        PermissionDenied,
    ];
    !files && !disk.contains(&kind)
}

/// Renames a directory to the first free `<name>.broken-<n>`.
fn move_aside(dir: &Path) -> io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let name = |n: u32| -> PathBuf {
        let mut name = dir.as_os_str().to_owned();
        name.push(format!(".broken-{n}"));
        name.into()
    };
    let free = (1..).map(name).find(|path| !path.exists());
    match free {
        Some(path) => fs::rename(dir, path),
        None => Err(io::Error::other("no free name to move it to")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn facts() -> Facts {
        Facts {
            identity: Some(Identity {
                cluster: u64::MAX,
                server: 3,
                disk: 1,
            }),
            incarnation: Some(12),
            clean_stop: Some(CleanStop { last_group: 99 }),
            snapshots: vec![KnownSnapshot { index: 7, term: 2 }],
        }
    }

    fn open(dir: &Path) -> (Catalog, Facts, Vec<String>) {
        let mut warnings = Warnings::default();
        let (catalog, facts) = Catalog::open(dir, &mut warnings);
        (catalog, facts, warnings.0)
    }

    #[test]
    fn what_is_saved_is_read_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog");
        let (mut catalog, found, warnings) = open(&path);
        assert_eq!((found, warnings), (Facts::default(), vec![]));
        catalog.save(&facts());
        drop(catalog);
        let (_catalog, found, warnings) = open(&path);
        assert_eq!((found, warnings), (facts(), vec![]));
    }

    #[test]
    fn a_catalog_that_is_only_just_closed_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog");
        let (mut catalog, ..) = open(&path);
        catalog.save(&facts());
        let closing = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            drop(catalog);
        });
        let (_catalog, found, warnings) = open(&path);
        assert_eq!((found, warnings), (facts(), vec![]));
        closing.join().unwrap();
    }

    #[test]
    fn a_half_written_file_of_sled_is_not_taken_for_its_newest_state() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog");
        let (mut catalog, ..) = open(&path);
        catalog.save(&facts());
        drop(catalog);
        let half = path.join("snap.00000000FFFFFFFF.generating");
        fs::write(&half, "half").unwrap();
        let (_catalog, found, warnings) = open(&path);
        assert_eq!((found, warnings), (facts(), vec![]));
        assert!(!half.exists());
    }

    #[test]
    fn a_damaged_catalog_is_moved_aside_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog");
        let not_a_file: fn(&Path) = |path| {
            fs::remove_file(path.join("db")).unwrap();
            fs::create_dir(path.join("db")).unwrap();
        };
        let not_json: fn(&Path) = |path| {
            let map = Map::open(path).unwrap();
            map.db.insert(IDENTITY, "{").unwrap();
            map.db.flush().unwrap();
        };
        for (round, damage) in [(1, not_a_file), (2, not_json)] {
            let (mut catalog, ..) = open(&path);
            catalog.save(&facts());
            drop(catalog);
            damage(&path);
            let (mut catalog, found, warnings) = open(&path);
            assert_eq!(found, Facts::default());
            assert_eq!(warnings.len(), 1);
            let expected = "cannot be read and is rebuilt";
            assert!(warnings[0].contains(expected), "{}", warnings[0]);
            assert!(dir.path().join(format!("catalog.broken-{round}")).exists());
            catalog.save(&facts());
        }
        let (_catalog, found, _) = open(&path);
        assert_eq!(found, facts());
    }

    /// As when the disk fails for good: what cannot be synced cannot be closed in order.
    #[test]
    fn a_catalog_that_cannot_be_closed_is_done_without() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog");
        let (mut catalog, ..) = open(&path);
        catalog.save(&facts());
        let own = catalog.map.as_ref().unwrap().file.as_raw_fd();
        let mut others: Vec<i32> = Vec::new();
        for entry in fs::read_dir("/proc/self/fd").unwrap() {
            let entry = entry.unwrap();
            if fs::read_link(entry.path()).is_ok_and(|to| to == path.join("db")) {
                others.push(entry.file_name().to_string_lossy().parse().unwrap());
            }
        }
        others.retain(|fd| *fd != own);
        let [sleds] = others[..] else {
            panic!("{others:?}");
        };
        // A pipe cannot be synced.
        let (pipe, _other_end) = io::pipe().unwrap();
        // SAFETY: both descriptors are open, and sled goes on to own the one that is replaced.
        assert_eq!(unsafe { libc::dup2(pipe.as_raw_fd(), sleds) }, sleds);
        drop(catalog);
        let (_catalog, found, warnings) = open(&path);
        assert_eq!((found, warnings), (facts(), vec![]));
    }

    #[test]
    fn a_full_disk_says_nothing_against_the_catalog() {
        let damage = |code| {
            let error = sled::Error::Io(io::Error::from_raw_os_error(code));
            is_damage(&io_error(error))
        };
        for code in [
            libc::ENOSPC,
            libc::EDQUOT,
            libc::EROFS,
            libc::EACCES,
            libc::EMFILE,
        ] {
            assert!(!damage(code), "{code}");
        }
        assert!(damage(libc::EISDIR));
        assert!(is_damage(&io_error(sled::Error::Corruption {
            at: None,
            bt: ()
        })));
    }

    #[test]
    fn a_panic_is_an_error_and_its_hook_knows_that() {
        let guarded = caught(|| Ok(catches_panics())).unwrap();
        assert!(guarded && !catches_panics());
        let error = caught::<()>(|| panic!("an assertion of sled's")).unwrap_err();
        assert_eq!(error.to_string(), "sled panicked");
        assert!(!catches_panics());
    }

    #[test]
    fn a_catalog_that_cannot_be_made_is_done_without() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let (mut catalog, found, warnings) = open(&dir.path().join("file/catalog"));
        assert_eq!((found, warnings.len()), (Facts::default(), 2));
        assert!(warnings[1].contains("going on without"), "{}", warnings[1]);
        catalog.save(&facts());
    }
}

//! The storage over real files: recovery, its refusals, and what the threads promise.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use std::{fs, io};

use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use crate::proto::log::Record;

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

fn put(number: u64, record: Record) -> Append {
    Append {
        number,
        record,
        sync: true,
    }
}

fn meta(index: u64) -> SnapshotMeta {
    SnapshotMeta {
        index,
        term: 1,
        ..SnapshotMeta::default()
    }
}

const DEADLINE: Duration = Duration::from_secs(60);

struct Running {
    log: LogHandle,
    persisted: Receiver<u64>,
    faults: Receiver<Fault>,
}

impl Running {
    fn start(storage: Storage) -> Self {
        let (sender, persisted) = mpsc::channel();
        let (fault_sender, faults) = mpsc::channel();
        let log = storage.start(
            // The test may have ended.
            move |number, _| sender.send(number).unwrap_or_default(),
            move |fault| drop(fault_sender.send(fault)),
        );
        Self {
            log: log.unwrap(),
            persisted,
            faults,
        }
    }

    fn open(config: &StorageConfig) -> Self {
        let (_, storage) = Storage::open(config.clone(), load).unwrap();
        Self::start(storage)
    }

    fn write(&self, number: u64, record: Record) {
        self.log.append(put(number, record));
        self.wait_for(number);
    }

    fn wait_for(&self, number: u64) {
        while self.persisted.recv_timeout(DEADLINE).unwrap() < number {}
    }

    fn snapshot(
        &self,
        meta: SnapshotMeta,
        chunks: impl FnOnce(&mut dyn FnMut(Bytes) -> Result<(), Fault>) -> Result<(), Fault>
        + Send
        + 'static,
    ) -> Receiver<Result<u64, Fault>> {
        let (sender, done) = mpsc::channel();
        let tell = move |result| drop(sender.send(result));
        self.log.take_snapshot(meta, chunks, tell);
        done
    }

    fn save(&self, meta: SnapshotMeta) {
        let done = self.snapshot(meta, |push| push(Bytes::from_static(b"state")));
        assert!(done.recv_timeout(DEADLINE).unwrap().unwrap() > 512);
    }
}

fn refusal(config: &StorageConfig) -> String {
    let Err(fault) = Storage::open(config.clone(), load) else {
        panic!("opened");
    };
    fault.to_string()
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
    running.save(meta.clone());
    running.log.stop();
    drop(running);

    let (third, _storage) = Storage::open(config, load).unwrap();
    assert_eq!(third.snapshot, Some(meta));
    assert_eq!(third.machine, b"state");
    assert_eq!(third.entries, [entry(6, 2)]);
    assert_eq!(third.hard_state.term, 2);
    assert_eq!(third.hard_state.commit, 5);
    assert_eq!(third.warnings, [""; 0]);
}

#[test]
fn a_second_process_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(dir.path(), 1);
    let (_, storage) = Storage::open(config.clone(), load).unwrap();
    assert_eq!(
        refusal(&config),
        format!(
            "data directory {} is in use by another zkraft; stop that one or use another",
            dir.path().display()
        )
    );
    drop(storage);
    Storage::open(config, load).unwrap();
}

#[test]
fn the_catalog_can_be_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(dir.path(), 1);
    let (first, storage) = Storage::open(config.clone(), load).unwrap();
    let running = Running::start(storage);
    running.write(1, entries(1..=3, 1));
    running.save(meta(2));
    running.log.stop();
    drop(running);
    fs::remove_dir_all(dir.path().join("catalog")).unwrap();

    let (second, _storage) = Storage::open(config, load).unwrap();
    assert_eq!(second.identity, first.identity);
    assert_eq!(second.incarnation, 2);
    assert_eq!(second.entries, [entry(3, 1)]);
    assert!(!second.clean_shutdown, "nobody knows");
}

#[test]
fn a_log_directory_of_its_own_must_be_there_and_belong() {
    let dir = tempfile::tempdir().unwrap();
    let at = |data: &str, log: &str| StorageConfig {
        log_dir: dir.path().join(log),
        ..StorageConfig::new(dir.path().join(data), 1)
    };
    for (data, log) in [("data-a", "log-a"), ("data-b", "log-b")] {
        let running = Running::open(&at(data, log));
        running.write(1, entries(1..=3, 1));
        running.log.stop();
    }
    let (found, storage) = Storage::open(at("data-a", "log-a"), load).unwrap();
    assert_eq!(found.entries.len(), 3);
    assert!(refusal(&at("data-c", "log-a")).contains("log-a is in use by another zkraft"));
    drop(storage);

    let lost = refusal(&at("data-a", "unmounted"));
    let expected = "is missing or older than when the server last ran (there is no log, but \
                    this server has run before)";
    assert!(lost.contains(expected), "{lost}");
    let mixed = refusal(&at("data-a", "log-b"));
    assert!(
        mixed.contains("directories of different servers are mixed"),
        "{mixed}"
    );
    let other = refusal(&StorageConfig {
        server: 2,
        ..at("data-a", "log-a")
    });
    assert!(other.ends_with(
        "data-a belongs to server 1, but this is server 2; set dataDir and myid to what \
         belongs together"
    ));
}

#[test]
fn a_log_whose_only_header_is_damaged_is_not_taken_for_a_missing_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(dir.path(), 1);
    drop(Storage::open(config.clone(), load).unwrap());
    let segment = dir.path().join("log/segment.0000000000000001");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[30] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let refused = refusal(&config);
    let expected = "segment.0000000000000001 is corrupt: its header is damaged";
    assert!(refused.contains(expected), "{refused}");
    fs::remove_dir_all(dir.path().join("catalog")).unwrap();
    assert_eq!(refusal(&config), refused);
}

#[test]
fn directories_are_made_with_their_parents() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(dir.path().join("a/b/c"), 1);
    Storage::open(config, load).unwrap();
}

#[test]
fn the_directory_of_a_zookeeper_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(dir.path(), 1);
    let theirs = dir.path().join("version-2");
    fs::write(dir.path().join("myid"), "1").unwrap();
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("snapshot.0"), "").unwrap();
    let message = format!(
        "{} holds the data of a ZooKeeper server, which zkraft does not read in place; set \
         dataDir and dataLogDir to empty directories",
        theirs.display()
    );
    assert_eq!(refusal(&config), message);
    assert!(!dir.path().join("lock").exists(), "nothing is touched");
    fs::remove_file(theirs.join("snapshot.0")).unwrap();
    Storage::open(config, load).unwrap();
}

#[test]
fn a_snapshot_that_cannot_be_loaded_gives_way_to_an_older_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(dir.path(), 1);
    let running = Running::open(&config);
    running.write(1, entries(1..=9, 1));
    running.save(meta(3));
    running.save(meta(6));
    running.log.stop();
    drop(running);
    let load_old = |reader: Option<SnapshotReader>| match reader {
        Some(reader) if reader.meta().index == 6 => Err(Fault::RejectedSnapshot {
            path: reader.path().to_owned(),
            reason: "the digest differs".to_owned(),
        }),
        other => load(other),
    };
    let (found, storage) = Storage::open(config.clone(), load_old).unwrap();
    assert_eq!(found.snapshot, Some(meta(3)));
    assert_eq!(found.entries, entries(4..=9, 1).entries);
    let expected = "cannot be loaded: the digest differs; trying the one before it";
    assert!(
        found.warnings[0].ends_with(expected),
        "{:?}",
        found.warnings
    );
    drop(storage);

    let load_none = |reader: Option<SnapshotReader>| match reader {
        Some(reader) => Err(Fault::RejectedSnapshot {
            path: reader.path().to_owned(),
            reason: String::new(),
        }),
        None => Ok(()),
    };
    let (found, _storage) = Storage::open(config, load_none).unwrap();
    assert_eq!(found.snapshot, None);
    assert_eq!(
        found.entries,
        entries(1..=9, 1).entries,
        "the log reaches back"
    );
}

#[test]
fn what_no_kept_snapshot_needs_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig {
        segment_bytes: 4096,
        ..StorageConfig::new(dir.path(), 1)
    };
    let running = Running::open(&config);
    let mut number = 0;
    for round in 0..6 {
        for index in round * 10 + 1..=round * 10 + 10 {
            number += 1;
            running.write(number, entries(index..=index, 1));
        }
        running.save(meta(round * 10 + 10));
    }
    running.write(number + 1, entries(61..=61, 1));
    running.log.stop();
    let groups = config.metrics.sync_processor_batch_size.totals().count;
    assert!(groups >= 61, "{groups}");
    assert_eq!(config.metrics.snapshottime.totals().count, 6);
    drop(running);

    let names = |sub: &str| {
        let entries = fs::read_dir(dir.path().join(sub)).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    let snapshots = names("snapshot");
    assert_eq!(snapshots.len(), 3);
    assert!(
        snapshots[0].starts_with("snapshot.0000000000000028."),
        "{snapshots:?}"
    );
    assert!(!names("log").contains(&"segment.0000000000000001".to_owned()));
    for snapshot in &snapshots[1..] {
        fs::remove_file(dir.path().join("snapshot").join(snapshot)).unwrap();
    }
    let (found, _storage) = Storage::open(config, load).unwrap();
    assert_eq!(
        found.entries,
        entries(41..=61, 1).entries,
        "the oldest one still serves"
    );
}

/// The names of the snapshots, oldest first.
fn snapshots_in(data: &Path) -> Vec<String> {
    let names = fs::read_dir(data.join("snapshot")).unwrap();
    let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Copies a snapshot from one server's directory to another's.
fn copy(from: &LogHandle, to: &LogHandle, meta: &SnapshotMeta) -> Result<(), Fault> {
    copy_file(from, to, meta)?;
    to.snapshot_received(meta.index)
}

fn copy_file(from: &LogHandle, to: &LogHandle, meta: &SnapshotMeta) -> Result<(), Fault> {
    let mut reader = from.open_snapshot(meta.index, meta.term)?;
    assert_eq!(reader.meta(), *meta);
    let mut writer = to.receive_snapshot(meta)?;
    while let Some(chunk) = reader.next_compressed() {
        writer.push_compressed(&chunk?)?;
    }
    writer.finish()?;
    Ok(())
}

#[test]
fn a_received_snapshot_that_is_no_good_takes_the_place_of_none() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = Running::open(&StorageConfig::new(source.path(), 1));
    let config = StorageConfig::new(target.path(), 2);
    let running = Running::open(&config);
    running.write(1, entries(1..=20, 1));
    for index in [5, 10, 15] {
        running.save(meta(index));
    }
    for index in [100, 101, 102] {
        source.save(meta(index));
        copy_file(&source.log, &running.log, &meta(index)).unwrap();
        running.log.discard_snapshot(index, 1).unwrap();
    }
    let expected = [5, 10, 15].map(|index| format!("snapshot.{index:016x}.{:016x}", 1));
    assert_eq!(snapshots_in(target.path()), expected);
}

#[test]
fn a_received_snapshot_is_kept_and_recovered_from() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = Running::open(&StorageConfig::new(source.path(), 1));
    let config = StorageConfig::new(target.path(), 2);
    let running = Running::open(&config);
    running.write(1, entries(1..=20, 1));
    for index in [5, 10, 15] {
        running.save(meta(index));
    }
    source.save(meta(100));
    copy(&source.log, &running.log, &meta(100)).unwrap();
    // What this server was writing meanwhile is older, and is no reason to give the other up.
    running.save(meta(20));
    let expected = [15, 20, 100].map(|index| format!("snapshot.{index:016x}.{:016x}", 1));
    assert_eq!(snapshots_in(target.path()), expected);

    // Killed before the log is told of it: it is what the server has.
    running.log.stop();
    drop(running);
    let (found, storage) = Storage::open(config.clone(), load).unwrap();
    assert_eq!(found.snapshot, Some(meta(100)));
    assert_eq!(found.machine, b"state");
    assert_eq!((found.entries, found.hard_state.commit), (vec![], 100));
    assert!(found.clean_shutdown);
    let running = Running::start(storage);
    running.write(1, entries(101..=102, 2));
    running.log.stop();
    drop(running);
    let (found, _storage) = Storage::open(config, load).unwrap();
    assert_eq!(found.entries, entries(101..=102, 2).entries);
}

#[test]
fn a_snapshot_that_is_sent_may_be_removed_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::open(&StorageConfig::new(dir.path(), 1));
    running.write(1, entries(1..=60, 1));
    running.save(meta(10));
    let mut reader = running.log.open_snapshot(10, 1).unwrap();
    for index in [20, 30, 40] {
        running.save(meta(index));
    }
    let gone = running.log.open_snapshot(10, 1).err().unwrap().to_string();
    assert!(gone.starts_with("there is no snapshot of entry 10, term 1, in "));
    for _ in 0..2 {
        reader.skip_to(0).unwrap();
        let chunks: Result<Vec<Bytes>, Fault> = reader.by_ref().collect();
        assert_eq!(chunks.unwrap(), ["state"]);
    }
}

#[test]
fn what_gathers_during_a_sync_shares_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(dir.path(), 1);
    let metrics = config.metrics.clone();
    let (_, storage) = Storage::open(config, load).unwrap();
    let (go, gathered) = mpsc::channel::<()>();
    let (sender, persisted) = mpsc::channel();
    let on_persisted = move |number, _| {
        if number == 1 {
            gathered.recv().unwrap();
        }
        sender.send(number).unwrap();
    };
    let log = storage
        .start(on_persisted, |fault| panic!("{fault}"))
        .unwrap();
    log.append(put(1, entries(1..=1, 1)));
    while metrics.fsynctime.totals().count == 0 {
        std::thread::yield_now();
    }
    for number in 2..=2000 {
        log.append(put(number, entries(number..=number, 1)));
    }
    go.send(()).unwrap();
    assert_eq!(persisted.recv_timeout(DEADLINE), Ok(1));
    assert_eq!(persisted.recv_timeout(DEADLINE), Ok(2000));
    log.stop();
    let groups = metrics.sync_processor_batch_size.totals();
    assert_eq!((groups.count, groups.max), (2, 1999));
    assert_eq!(metrics.fsynctime.totals().count, 2);
}

#[test]
fn without_force_sync_nothing_is_synced_until_the_stop() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig {
        sync: false,
        ..StorageConfig::new(dir.path(), 1)
    };
    let running = Running::open(&config);
    running.write(1, entries(1..=3, 1));
    assert_eq!(config.metrics.fsynctime.totals().count, 0);
    running.log.stop();
    drop(running);
    let (found, _storage) = Storage::open(config, load).unwrap();
    assert_eq!(found.entries.len(), 3);
    assert!(found.clean_shutdown);
}

#[test]
fn the_log_in_memory_acknowledges_at_once() {
    let (sender, persisted) = mpsc::channel();
    let log = LogHandle::memory(move |number, _| sender.send(number).unwrap());
    log.append(put(5, entries(1..=1, 1)));
    assert_eq!(persisted.try_recv(), Ok(5));
    let (sender, done) = mpsc::channel();
    let tell = move |result: Result<u64, Fault>| sender.send(result.unwrap()).unwrap();
    log.take_snapshot(meta(1), |_| panic!("nobody asks"), tell);
    assert_eq!(done.try_recv(), Ok(0));
    log.stop();
}

#[test]
fn the_log_in_memory_has_no_snapshots() {
    let log = LogHandle::memory(|_, _| {});
    let faults = [
        log.open_snapshot(1, 1).err(),
        log.receive_snapshot(&meta(1)).err(),
        log.snapshot_received(1).err(),
    ];
    for fault in faults {
        assert!(matches!(fault, Some(Fault::InMemory)));
    }
}

#[test]
fn a_stop_gives_up_a_snapshot_in_progress() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::open(&StorageConfig::new(dir.path(), 1));
    running.write(1, entries(1..=3, 1));
    let (sender, begun) = mpsc::channel();
    let done = running.snapshot(meta(2), move |push| {
        loop {
            push(Bytes::from_static(b"more"))?;
            sender.send(()).unwrap_or_default();
        }
    });
    begun.recv_timeout(DEADLINE).unwrap();
    running.log.stop();
    assert!(matches!(done.try_recv(), Ok(Err(Fault::Stopped))));
    let left = fs::read_dir(dir.path().join("snapshot")).unwrap().count();
    assert_eq!(left, 0);
}

/// A snapshot that fails is told at once.
fn without_pause(dir: &Path) -> StorageConfig {
    StorageConfig {
        snapshot_pause: Duration::ZERO,
        ..StorageConfig::new(dir, 1)
    }
}

#[test]
fn after_a_snapshot_that_failed_there_is_a_pause() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |_: &mut dyn FnMut(Bytes) -> Result<(), Fault>| Err(Fault::InMemory);
    let config = StorageConfig {
        snapshot_pause: Duration::from_millis(200),
        ..StorageConfig::new(dir.path(), 1)
    };
    let running = Running::open(&config);
    let done = running.snapshot(meta(2), fails);
    assert!(done.recv_timeout(DEADLINE).unwrap().is_err());
    let told = Instant::now();
    let done = running.snapshot(meta(2), fails);
    assert!(done.recv_timeout(DEADLINE).unwrap().is_err());
    // It was told a little before it was heard of.
    assert!(told.elapsed() >= config.snapshot_pause / 2);
    running.log.stop();
    drop(running);

    // A stop does not wait for its end.
    let config = StorageConfig {
        snapshot_pause: Duration::from_secs(3600),
        ..config
    };
    let running = Running::open(&config);
    let done = running.snapshot(meta(2), fails);
    assert!(done.recv_timeout(DEADLINE).unwrap().is_err());
    running.log.stop();
}

#[test]
fn a_panic_while_a_snapshot_is_made_costs_only_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::open(&without_pause(dir.path()));
    running.write(1, entries(1..=3, 1));
    let done = running.snapshot(meta(2), |_| panic!("a bug"));
    let fault = done.recv_timeout(DEADLINE).unwrap().unwrap_err();
    assert_eq!(fault.to_string(), "the snapshot thread panicked: a bug");
    running.write(2, entries(4..=4, 1));
    running.save(meta(3));
    running.log.stop();
}

/// The real disk, with what a test makes of it.
#[derive(Clone, Default)]
struct Doctored(Arc<Ills>);

struct Ills {
    sync_fails: AtomicBool,
    /// What the disk says is free.
    free: AtomicU64,
    /// Neither names nor free space can be asked for.
    is_mute: AtomicBool,
    /// What cannot be read.
    bad: Mutex<Vec<PathBuf>>,
    /// Is done before the next file gets another name.
    on_rename: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Ills {
    fn check_mute(&self) -> io::Result<()> {
        match self.is_mute.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }
}

impl Default for Ills {
    fn default() -> Self {
        Self {
            sync_fails: AtomicBool::new(false),
            free: AtomicU64::new(1 << 40),
            is_mute: AtomicBool::new(false),
            bad: Mutex::default(),
            on_rename: Mutex::default(),
        }
    }
}

struct DoctoredFile(Box<dyn File>, Arc<Ills>, PathBuf);

impl File for DoctoredFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.1.bad.lock().contains(&self.2) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => self.0.read_at(buffer, offset),
        }
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(data, offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.1.sync_fails.load(Ordering::Relaxed) {
            return Err(io::Error::other("EIO"));
        }
        self.0.sync_data()
    }
}

impl Disk for Doctored {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.check_mute()?;
        RealDisk.list(dir)
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = RealDisk.open(path)?;
        let ills = self.0.clone();
        Ok(Box::new(DoctoredFile(file, ills, path.to_owned())))
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = RealDisk.create(path)?;
        let ills = self.0.clone();
        Ok(Box::new(DoctoredFile(file, ills, path.to_owned())))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let first = self.0.on_rename.lock().take();
        if let Some(first) = first {
            first();
        }
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }
    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        self.0.check_mute()?;
        Ok(self.0.free.load(Ordering::Relaxed))
    }
}

fn open_over(disk: &Doctored, config: &StorageConfig) -> (Recovered<Vec<u8>>, Storage) {
    Storage::open_over(Arc::new(disk.clone()), config.clone(), load).unwrap()
}

#[test]
fn a_failed_sync_ends_the_log_once_and_acknowledges_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(dir.path(), 1);
    let disk = Doctored::default();
    let running = Running::start(open_over(&disk, &config).1);
    running.write(1, entries(1..=3, 1));
    disk.0.sync_fails.store(true, Ordering::Relaxed);
    running.log.append(put(2, entries(4..=4, 1)));
    let fault = running.faults.recv_timeout(DEADLINE).unwrap();
    assert!(fault.to_string().ends_with(
        "failed: EIO; what was not acknowledged may be lost; check the disk and start again"
    ));
    disk.0.sync_fails.store(false, Ordering::Relaxed);
    running.log.append(put(3, entries(5..=5, 1)));
    running.log.stop();
    assert!(
        running.persisted.try_recv().is_err(),
        "2 and 3 are not acknowledged"
    );
    assert!(running.faults.try_recv().is_err(), "a fault is told once");
    drop(running);
    let (found, _storage) = open_over(&disk, &config);
    assert!(!found.clean_shutdown);
    assert!(
        (3..=4).contains(&found.entries.len()),
        "the fifth was never written"
    );
}

#[test]
fn a_failed_snapshot_costs_only_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig {
        sync: false,
        ..without_pause(dir.path())
    };
    let disk = Doctored::default();
    let running = Running::start(open_over(&disk, &config).1);
    running.write(1, entries(1..=3, 1));
    disk.0.sync_fails.store(true, Ordering::Relaxed);
    let done = running.snapshot(meta(2), |push| push(Bytes::from_static(b"state")));
    let fault = done.recv_timeout(DEADLINE).unwrap().unwrap_err();
    assert!(matches!(fault, Fault::Sync { .. }), "{fault}");
    disk.0.sync_fails.store(false, Ordering::Relaxed);
    assert_eq!(
        fs::read_dir(dir.path().join("snapshot")).unwrap().count(),
        0
    );
    running.write(2, entries(4..=4, 1));
    running.save(meta(2));
    running.log.stop();
}

#[test]
fn a_snapshot_that_is_durable_counts_whatever_fails_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(dir.path(), 1);
    let disk = Doctored::default();
    let running = Running::start(open_over(&disk, &config).1);
    running.write(1, entries(1..=9, 1));
    for index in [2, 4, 6] {
        running.save(meta(index));
    }
    let ills = disk.0.clone();
    let break_down = move || ills.is_mute.store(true, Ordering::Relaxed);
    *disk.0.on_rename.lock() = Some(Box::new(break_down));
    running.save(meta(8));
    assert_eq!(snapshots_in(dir.path()).len(), 4, "none was removed");
    disk.0.is_mute.store(false, Ordering::Relaxed);
    running.save(meta(9));
    assert_eq!(snapshots_in(dir.path()).len(), 3);
    running.log.stop();
}

#[test]
fn a_snapshot_on_a_bad_spot_of_the_disk_gives_way_to_an_older_one() {
    let (_dir, disk, config) = with_snapshots();
    let mut files = list_snapshots(&RealDisk, &config.snapshot_files()).unwrap();
    let newest = files.remove(0).path;
    *disk.0.bad.lock() = vec![newest.clone()];
    let (found, storage) = open_over(&disk, &config);
    assert_eq!(found.snapshot, Some(meta(12)));
    assert_eq!(
        found.warnings,
        [format!(
            "cannot read {}: Input/output error (os error 5); check the disk; trying the one \
             before it",
            newest.display()
        )]
    );
    drop(storage);

    // Without any, the log does not reach back to the beginning.
    disk.0
        .bad
        .lock()
        .extend(files.into_iter().map(|file| file.path));
    let opened = Storage::open_over(Arc::new(disk.clone()), config, load);
    let fault = opened.err().unwrap().to_string();
    let expected = format!("cannot read {}: ", newest.display());
    assert!(fault.starts_with(&expected), "{fault}");
}

#[test]
fn the_ballast_goes_when_space_is_short_and_comes_back_when_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(dir.path(), 1);
    let ballast = dir.path().join("ballast");
    let disk = Doctored::default();
    let (found, _) = open_over(&disk, &config);
    assert_eq!(found.warnings, [""; 0]);
    assert_eq!(fs::metadata(&ballast).unwrap().len(), 4 << 20);

    disk.0.free.store(1 << 20, Ordering::Relaxed);
    let (found, _) = open_over(&disk, &config);
    assert!(!ballast.exists());
    assert_eq!(
        found.warnings,
        [format!(
            "only 1024 KiB are free in {}; the reserve of 4096 KiB was released to start at \
             all: make room now",
            dir.path().display()
        )]
    );

    disk.0.free.store(1 << 40, Ordering::Relaxed);
    open_over(&disk, &config);
    assert!(ballast.exists());
}

/// Takes four snapshots, of which three are kept: 8, 12 and 16.
fn take_snapshots(disk: &Doctored, config: &StorageConfig) {
    let running = Running::start(open_over(disk, config).1);
    for round in 1..=4 {
        for number in 4 * round..4 * (round + 1) {
            running.write(number, entries(number - 3..=number - 3, 1));
        }
        running.save(meta(4 * round));
    }
    running.log.stop();
}

/// Starts on a disk that is nearly full, tries to take a snapshot, and stops.
fn start_when_short(disk: &Doctored, config: &StorageConfig) -> Recovered<Vec<u8>> {
    disk.0.free.store(15 << 20, Ordering::Relaxed);
    let config = StorageConfig {
        snapshot_pause: Duration::ZERO,
        ..config.clone()
    };
    let (found, storage) = open_over(disk, &config);
    let running = Running::start(storage);
    let done = running.snapshot(meta(16), |_| Err(Fault::Stopped));
    assert!(done.recv_timeout(DEADLINE).unwrap().is_err());
    running.log.stop();
    found
}

/// A directory with three snapshots and the log that goes with them, and its disk.
fn with_snapshots() -> (tempfile::TempDir, Doctored, StorageConfig) {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig {
        segment_bytes: 4 << 10,
        ..StorageConfig::new(dir.path(), 1)
    };
    let disk = Doctored::default();
    take_snapshots(&disk, &config);
    (dir, disk, config)
}

#[test]
fn a_short_disk_keeps_fewer_snapshots_and_less_log() {
    let (dir, disk, config) = with_snapshots();
    let names = |of: &str| RealDisk.list(&dir.path().join(of)).unwrap();
    assert_eq!(names("snapshot").len(), 3);
    let oldest = names("log").remove(0);

    let found = start_when_short(&disk, &config);
    assert!(found.snapshot_due, "it may let something go");
    let left = names("snapshot");
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(
        left[0].starts_with("snapshot.000000000000000c."),
        "{left:?}"
    );
    assert!(names("log").remove(0) > oldest);
    let (found, _) = open_over(&disk, &config);
    assert_eq!(found.snapshot.unwrap().index, 16);
}

#[test]
fn a_short_disk_keeps_the_snapshot_that_was_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(dir.path(), 1);
    let disk = Doctored::default();
    take_snapshots(&disk, &config);
    let path = |index: u64| {
        let name = format!("snapshot/snapshot.{index:016x}.0000000000000001");
        dir.path().join(name)
    };
    for index in [12, 16] {
        let mut bytes = fs::read(path(index)).unwrap();
        bytes[520] ^= 1;
        fs::write(path(index), &bytes).unwrap();
    }
    let found = start_when_short(&disk, &config);
    assert_eq!(found.snapshot.unwrap().index, 8);
    assert!(path(8).exists());
}

#[test]
fn space_that_is_short_is_not_filled_ahead() {
    let disk = Doctored::default();
    let len_after_a_write = |free: u64| {
        let dir = tempfile::tempdir().unwrap();
        disk.0.free.store(free, Ordering::Relaxed);
        let running = Running::start(open_over(&disk, &StorageConfig::new(dir.path(), 1)).1);
        running.write(1, entries(1..=1, 1));
        let segment = dir.path().join("log/segment.0000000000000001");
        fs::metadata(segment).unwrap().len()
    };
    assert_eq!(len_after_a_write(8 << 20), 512 * 3 + (1 << 20));
    assert_eq!(len_after_a_write((8 << 20) - 1), 512 * 3);
}

#[test]
fn a_snapshot_does_not_take_the_last_space_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let config = without_pause(dir.path());
    let disk = Doctored::default();
    let running = Running::start(open_over(&disk, &config).1);
    running.write(1, entries(1..=3, 1));
    // Free KiB at the beginning, free KiB at the end, whether it goes on.
    for (first, last, goes_on) in [
        (100 << 10, 8193, true),
        (100 << 10, 8192, false),
        (10 << 10, 5121, true),
        (10 << 10, 5120, false),
        (100, 51, true),
        (0, 0, false),
    ] {
        disk.0.free.store(first << 10, Ordering::Relaxed);
        let ills = disk.0.clone();
        let done = running.snapshot(meta(2), move |push| {
            ills.free.store(last << 10, Ordering::Relaxed);
            push(Bytes::from_static(b"state"))
        });
        let done = done.recv_timeout(DEADLINE).unwrap();
        assert_eq!(done.is_ok(), goes_on, "{first}, {last}: {done:?}");
        if let Err(fault) = done {
            assert!(matches!(fault, Fault::NoRoomForSnapshot { .. }), "{fault}");
        }
    }
    running.write(2, entries(4..=4, 1));
    running.log.stop();
}

/// Else a server that is killed again and again, with hardly a write between, leaves a file each
/// time, and no snapshot ever lets them go.
#[test]
fn a_log_of_many_runs_makes_a_snapshot_due() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(dir.path(), 1);
    let mut due = Vec::new();
    let max = recovery::LOG_RUNS_MAX;
    for run in 1..=2 * max + 1 {
        let (found, storage) = Storage::open(config.clone(), load).unwrap();
        let running = Running::start(storage);
        running.write(1, entries(run..=run, 1));
        if found.snapshot_due {
            due.push(run);
            running.save(meta(run));
        }
        running.log.stop();
    }
    assert_eq!(due, [max + 1, 2 * max + 1]);
}

#[test]
fn progress_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let told = Arc::new(AtomicU64::new(0));
    let seen = told.clone();
    let config = StorageConfig {
        progress: Some(Progress::new(move |done, total| {
            assert!(done <= total);
            seen.fetch_max(total, Ordering::Relaxed);
        })),
        ..StorageConfig::new(dir.path(), 1)
    };
    let running = Running::open(&config);
    running.write(1, entries(1..=3, 1));
    running.log.stop();
    drop(running);
    Storage::open(config, load).unwrap();
    assert!(told.load(Ordering::Relaxed) > 1024);
}

#[test]
fn a_server_whose_state_was_another_one_does_not_start_again_and_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let config = StorageConfig::new(dir.path(), 1);
    let server = Running::open(&config);
    server.write(1, entries(1..=30, 1));
    server.save(meta(10));
    server.save(meta(20));
    let fault = server.log.diverged("after entry 30 it differs", 15);
    let said = fault.to_string();
    for part in [
        "after entry 30 it differs. This server is the one that is wrong",
        "(the last good snapshot is ",
        "snapshot.000000000000000a.0000000000000001, and",
        "give this server empty directories",
    ] {
        assert!(said.contains(part), "{said}");
    }
    server.log.stop();
    drop(server);
    let snapshots = || list_snapshots(&RealDisk, &config.snapshot_files()).unwrap();
    let before = snapshots();
    for _ in 0..2 {
        assert_eq!(refusal(&config), said);
    }
    assert_eq!(snapshots(), before);
    // Whoever knows better.
    fs::remove_file(dir.path().join("diverged")).unwrap();
    assert_eq!(Storage::open(config, load).unwrap().0.entries.len(), 10);
}

#[test]
fn what_is_finished_when_the_state_turns_out_wrong_takes_no_others_place() {
    let (dir, disk, config) = with_snapshots();
    let names = |of: &str| RealDisk.list(&dir.path().join(of)).unwrap();
    let running = Running::start(open_over(&disk, &config).1);
    let number = 17;
    running.write(number, entries(number..=number, 1));
    let (snapshots, segments) = (names("snapshot"), names("log"));
    let log = running.log.clone();
    let diverge = move || drop(log.diverged("it differs", 15));
    *disk.0.on_rename.lock() = Some(Box::new(diverge));
    running.save(meta(number));
    // Nor does one that came from another server.
    running.log.snapshot_received(number).unwrap();
    running.log.stop();
    assert_eq!(names("snapshot")[..3], snapshots);
    assert_eq!(names("snapshot").len(), 4);
    assert_eq!(names("log"), segments);
}

#[test]
fn a_mark_of_a_wrong_state_counts_even_if_it_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("diverged")).unwrap();
    let refused = refusal(&StorageConfig::new(dir.path(), 1));
    let expected = format!("cannot read {}/diverged: ", dir.path().display());
    assert!(refused.starts_with(&expected), "{refused}");
}

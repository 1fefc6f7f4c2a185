//! The log thread and the snapshot thread.
//!
//! The log thread commits by draining: it takes everything that is queued, writes it as one group,
//! syncs once and reports the highest number. While it syncs, the next group gathers by itself;
//! there is no timer and nothing to tune.
//!
//! Rules:
//!
//! * `on_persisted(n, idle)` is called only after everything up to `n` is synced (unless
//!   `forceSync=no`); `idle`: nothing waits to be written, so the callback may take its time.
//! * A failed write or sync is never retried: `on_fault` is called once, and the thread ends.

use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tracing::warn;

use super::directory::{Directory, free_in, load_ballast, mark_diverged, short_of_space};
use super::disk::{Disk, lower_priority};
use super::snapshot::{
    SnapshotFile, SnapshotReader, SnapshotWriter, list_snapshots, purge_snapshots,
};
use super::stall::{self, DiskWait};
use super::wal::Wal;
use super::{Append, Fault, SnapshotMeta, Storage, StorageConfig};
use crate::metrics::Metrics;
use crate::proto::log::{Record, SnapshotMark};

/// A group takes no further records after this size.
const GROUP_BYTES_MAX: u64 = 8 << 20;
/// How long the queue is empty before the last group is sealed: seals between the writes of a busy
/// client would double the groups.
const SEAL_AFTER: Duration = Duration::from_millis(20);

/// Snapshots that are kept while space is short, so that older ones and their log make room.
const SNAPSHOTS_WHEN_SHORT: usize = 2;
/// A snapshot leaves half of the free space, but no more than this, to the log: a server goes on
/// without a snapshot, but not without a log.
const LEFT_TO_LOG_MAX: u64 = 8 << 20;

/// Starts the threads of a recovered storage.
pub(super) fn start(
    storage: Storage,
    on_persisted: Box<dyn Fn(u64, bool) + Send>,
    on_fault: Box<dyn FnOnce(Fault) + Send>,
) -> Result<LogHandle, Fault> {
    let Storage {
        config,
        disk,
        wal,
        directory,
    } = storage;
    let (log, receiver) = mpsc::channel();
    // What an earlier run, or many short ones, left to be removed.
    let _ = log.send(Command::Release(directory.floor()));
    let keep_all = Arc::new(AtomicBool::new(false));
    let disk_wait = Arc::new(DiskWait::new());
    let fsync_warn = Duration::from_millis(config.fsync_warn_ms);
    let thread = LogThread {
        wal,
        receiver,
        next: None,
        sync: config.sync,
        purge: config.purge,
        keep_all: keep_all.clone(),
        fsync_warn,
        disk_wait: disk_wait.clone(),
        metrics: config.metrics.clone(),
        on_persisted,
    };
    let log_thread = spawn("log", move || match caught("log", || thread.run()) {
        Ok(last_group) => Some(last_group),
        Err(fault) => {
            on_fault(fault);
            None
        }
    })?;

    let (watched, stop) = mpsc::channel();
    let dir = config.log_files();
    spawn("stall", move || {
        stall::watch(&disk_wait, fsync_warn, &stop, |lasted| {
            warn!(
                dir = %dir.display(),
                duration_ms = lasted.as_millis() as u64,
                "the disk of the log does not answer; no write is acknowledged until it does"
            );
        });
    })?;

    let shared = Arc::new(Shared {
        log,
        directory: Mutex::new(directory),
        stopping: AtomicBool::new(false),
        keep_all,
        disk,
        config,
    });
    let (snapshots, jobs) = mpsc::channel::<Job>();
    let worker = shared.clone();
    let snapshot_thread = spawn("snapshot", move || {
        lower_priority();
        for job in jobs {
            job(&worker);
        }
    })?;
    let running = Running {
        snapshots,
        log_thread,
        snapshot_thread,
        _watched: watched,
    };
    let files = Files {
        shared,
        running: Mutex::new(Some(running)),
    };
    Ok(LogHandle {
        target: Target::Files(Arc::new(files)),
    })
}

/// The door to the log and snapshot threads. Clones share them.
#[derive(Clone)]
pub struct LogHandle {
    target: Target,
}

#[derive(Clone)]
enum Target {
    Files(Arc<Files>),
    Memory(Arc<dyn Fn(u64, bool) + Send + Sync>),
}

impl LogHandle {
    /// A log that keeps nothing and acknowledges at once, in the caller's thread.
    pub fn memory(on_persisted: impl Fn(u64, bool) + Send + Sync + 'static) -> Self {
        Self {
            target: Target::Memory(Arc::new(on_persisted)),
        }
    }

    /// Queues a record. After a fault it is dropped: `on_fault` has been called then.
    pub fn append(&self, append: Append) {
        match &self.target {
            Target::Memory(on_persisted) => on_persisted(append.number, false),
            Target::Files(files) => {
                let bytes = append.record.encoded_len() as u64;
                // The receiver is gone only after a fault or a stop.
                let _ = files.shared.log.send(Command::Append(append, bytes));
            }
        }
    }

    /// Writes a snapshot in the snapshot thread, at low priority. `chunks` hands the image's chunks
    /// to the function it is given; `done` gets the length of the file in bytes, in that thread.
    /// The log and the snapshots that are not needed any more are removed then. A failure costs
    /// only the snapshot; the next one waits a little then. After a stop, `done` is dropped.
    pub fn take_snapshot(
        &self,
        meta: SnapshotMeta,
        chunks: impl FnOnce(&mut dyn FnMut(Bytes) -> Result<(), Fault>) -> Result<(), Fault>
        + Send
        + 'static,
        done: impl FnOnce(Result<u64, Fault>) + Send + 'static,
    ) {
        let Target::Files(files) = &self.target else {
            done(Ok(0));
            return;
        };
        let job = move |shared: &Shared| {
            let written = caught("snapshot", || shared.take_snapshot(&meta, chunks));
            let failed = written.is_err();
            done(written);
            if failed {
                // The next one may be asked for at once, and waits.
                shared.pause();
            }
        };
        if let Some(running) = &*files.running.lock() {
            // The receiver lives as long as the thread, which ends only when the sender is gone.
            let _ = running.snapshots.send(Box::new(job));
        }
    }

    /// Opens a snapshot to be sent to another server. Blocks.
    ///
    /// # Errors
    /// There is none of this entry (any more), it cannot be read, or this log is in memory.
    pub fn open_snapshot(&self, index: u64, term: u64) -> Result<SnapshotReader, Fault> {
        let file = self.find_snapshot(index, term)?;
        SnapshotReader::open(&*self.files()?.shared.disk, &file)
    }

    fn find_snapshot(&self, index: u64, term: u64) -> Result<SnapshotFile, Fault> {
        let shared = &self.files()?.shared;
        let dir = shared.config.snapshot_files();
        let mut files = list_snapshots(&*shared.disk, &dir)?.into_iter();
        files
            .find(|file| (file.index, file.term) == (index, term))
            .ok_or(Fault::NoSnapshot { dir, index, term })
    }

    /// Begins to copy the snapshot of another server, of which there may be one copy at a time; it
    /// leaves room on the disk as one's own snapshots do. Blocks.
    ///
    /// # Errors
    /// The disk fails or is full, or this log is in memory.
    pub fn receive_snapshot(&self, meta: &SnapshotMeta) -> Result<SnapshotWriter, Fault> {
        self.files()?.shared.writer(meta, SnapshotWriter::receive)
    }

    /// Removes a snapshot that was received and cannot be loaded: it must not stand for a good one.
    /// Blocks.
    ///
    /// # Errors
    /// There is none of this entry, it cannot be removed, or this log is in memory.
    pub fn discard_snapshot(&self, index: u64, term: u64) -> Result<(), Fault> {
        let file = self.find_snapshot(index, term)?;
        let Shared { disk, config, .. } = &*self.files()?.shared;
        disk.remove(&file.path)
            .map_err(|error| Fault::io("remove", &file.path, error))?;
        let dir = config.snapshot_files();
        disk.sync_dir(&dir)
            .map_err(|error| Fault::sync(&dir, error))
    }

    /// Takes note of a snapshot that was received and can be loaded, and removes what is not needed
    /// any more beside it. Blocks. The log learns of it by the mark in an [`Append`].
    ///
    /// # Errors
    /// This log is in memory.
    pub fn snapshot_received(&self, index: u64) -> Result<(), Fault> {
        let shared = &self.files()?.shared;
        shared.directory.lock().wrote(index);
        shared.purge();
        load_ballast(&*shared.disk, &shared.config.log_dir);
        Ok(())
    }

    /// Takes note, durably, that the state is not that of the other servers: the next start is to
    /// be refused, and everything is kept. `agreed`: the last entry after which it was; 0: that is
    /// not known. Returns what to end the process with. Blocks.
    pub fn diverged(&self, report: &str, agreed: u64) -> Fault {
        match self.files() {
            Ok(files) => {
                let shared = &files.shared;
                // No snapshot is begun from now on, and one that is finished now replaces no other.
                shared.stopping.store(true, Ordering::Relaxed);
                shared.keep_all();
                mark_diverged(&shared.config, &*shared.disk, report, agreed)
            }
            Err(fault) => fault,
        }
    }

    fn files(&self) -> Result<&Files, Fault> {
        match &self.target {
            Target::Files(files) => Ok(files),
            Target::Memory(_) => Err(Fault::InMemory),
        }
    }

    /// Writes and syncs what is queued, gives up a snapshot in progress, and marks the stop as
    /// clean. Returns when the threads have ended.
    pub fn stop(&self) {
        let Target::Files(files) = &self.target else {
            return;
        };
        let Some(running) = files.running.lock().take() else {
            return;
        };
        let shared = &files.shared;
        shared.stopping.store(true, Ordering::Relaxed);
        drop(running.snapshots);
        // A panic was caught in either thread, so joining cannot fail.
        let _ = running.snapshot_thread.join();
        let _ = shared.log.send(Command::Stop);
        let last_group = running.log_thread.join().ok().flatten();
        if let Some(last_group) = last_group {
            shared.directory.lock().stopped(last_group);
        }
    }
}

struct Files {
    shared: Arc<Shared>,
    /// `None` after a stop.
    running: Mutex<Option<Running>>,
}

struct Running {
    snapshots: Sender<Job>,
    /// Returns the number of the last group after a clean stop.
    log_thread: JoinHandle<Option<u64>>,
    snapshot_thread: JoinHandle<()>,
    /// The thread that watches over the log's ends when this is dropped.
    _watched: Sender<()>,
}

type Job = Box<dyn FnOnce(&Shared) + Send>;
type Create = fn(Arc<dyn Disk>, &Path, u64, &SnapshotMeta) -> Result<SnapshotWriter, Fault>;

/// What the snapshot thread and the handles share.
struct Shared {
    log: Sender<Command>,
    directory: Mutex<Directory>,
    stopping: AtomicBool,
    /// Whether nothing may be removed any more. Set under the lock of the directory.
    keep_all: Arc<AtomicBool>,
    disk: Arc<dyn Disk>,
    config: StorageConfig,
}

impl Shared {
    fn take_snapshot(
        &self,
        meta: &SnapshotMeta,
        chunks: impl FnOnce(&mut dyn FnMut(Bytes) -> Result<(), Fault>) -> Result<(), Fault>,
    ) -> Result<u64, Fault> {
        let start = Instant::now();
        let mut writer = self.writer(meta, SnapshotWriter::create)?;
        chunks(&mut |chunk| {
            if self.stopping.load(Ordering::Relaxed) {
                return Err(Fault::Stopped);
            }
            writer.push(&chunk)
        })?;
        let bytes = writer.finish()?;
        let took_ms = start.elapsed().as_millis() as u64;
        self.config.metrics.snapshottime.note(took_ms);
        self.directory.lock().wrote(meta.index);

        // The log thread is gone only after a fault, which is reported there.
        let _ = self.log.send(Command::Mark(meta.mark()));
        self.purge();
        load_ballast(&*self.disk, &self.config.log_dir);
        Ok(bytes)
    }

    /// Makes room if it is short, and begins a file that leaves some to the log.
    fn writer(&self, meta: &SnapshotMeta, create: Create) -> Result<SnapshotWriter, Fault> {
        let dir = self.config.snapshot_files();
        let cluster = self.directory.lock().identity().cluster;
        let newest_is_good = self.directory.lock().newest_is_good();
        if newest_is_good && short_of_space(&*self.disk, &self.config)? {
            self.purge();
        }
        let left_to_log = (free_in(&*self.disk, &dir)? / 2).min(LEFT_TO_LOG_MAX);
        let mut writer = create(self.disk.clone(), &dir, cluster, meta)?;
        writer.leave(left_to_log);
        Ok(writer)
    }

    /// Removes old snapshots, and lets the log below the oldest that is left go. The new one is
    /// there whether or not that succeeds.
    fn purge(&self) {
        // Held all the time: a snapshot may be finished while another is received.
        let mut directory = self.directory.lock();
        if self.keep_all.load(Ordering::Relaxed) {
            return;
        }
        if self.config.purge
            && let Err(fault) = self.remove_old_snapshots()
        {
            let reason = fault.survived();
            warn!(reason, "old snapshots cannot be removed");
        }
        match list_snapshots(&*self.disk, &self.config.snapshot_files()) {
            Ok(files) => {
                directory.set_snapshots(&files);
                let _ = self.log.send(Command::Release(directory.floor()));
            }
            Err(fault) => {
                let reason = fault.survived();
                warn!(reason, "the log that is not needed any more stays");
            }
        }
    }

    fn remove_old_snapshots(&self) -> Result<(), Fault> {
        let keep = match short_of_space(&*self.disk, &self.config)? {
            true => SNAPSHOTS_WHEN_SHORT,
            false => self.config.keep(),
        };
        purge_snapshots(&*self.disk, &self.config.snapshot_files(), keep)
    }

    /// Nothing is removed any more, but log segments that are being removed now; waits for
    /// snapshots that are.
    fn keep_all(&self) {
        let _directory = self.directory.lock();
        self.keep_all.store(true, Ordering::Relaxed);
    }

    /// Waits for so long as the config says, or until a stop.
    fn pause(&self) {
        const SLICE: Duration = Duration::from_millis(20);
        let until = Instant::now() + self.config.snapshot_pause;
        while !self.stopping.load(Ordering::Relaxed) && Instant::now() < until {
            thread::sleep(SLICE.min(self.config.snapshot_pause));
        }
    }
}

enum Command {
    /// With its encoded length.
    Append(Append, u64),
    Mark(SnapshotMark),
    Release(u64),
    /// Write and sync what came before, and end.
    Stop,
}

struct LogThread {
    wal: Wal,
    receiver: Receiver<Command>,
    /// What was taken from the queue already.
    next: Option<Command>,
    sync: bool,
    purge: bool,
    keep_all: Arc<AtomicBool>,
    fsync_warn: Duration,
    disk_wait: Arc<DiskWait>,
    metrics: Arc<Metrics>,
    on_persisted: Box<dyn Fn(u64, bool) + Send>,
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
                let _waiting = self.disk_wait.begin();
                self.wal.sync()?;
                self.wal.seal_if_idle()?;
                self.wal.sync()?;
                return Ok(self.wal.last_group());
            }
        }
    }

    /// Waits for work, then takes all there is: while one group is synced, the next gathers.
    fn take(&mut self) -> Result<Option<Taken>, Fault> {
        let first = match self.next.take() {
            Some(command) => Some(command),
            None => match self.receiver.recv_timeout(SEAL_AFTER) {
                Err(RecvTimeoutError::Timeout) => {
                    let waiting = self.disk_wait.begin();
                    self.wal.seal_if_idle()?;
                    drop(waiting);
                    self.receiver.recv().ok()
                }
                other => other.ok(),
            },
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
        let waiting = self.disk_wait.begin();
        self.write(taken)?;
        drop(waiting);
        if let Some(number) = taken.number {
            self.next = self.receiver.try_recv().ok();
            (self.on_persisted)(number, self.next.is_none());
        }
        if let Some(index) = taken.release
            && self.purge
            && !self.keep_all.load(Ordering::Relaxed)
        {
            let _waiting = self.disk_wait.begin();
            if let Err(fault) = self.wal.release_below(index) {
                let reason = fault.survived();
                warn!(reason, "old log segments cannot be removed");
            }
        }
        Ok(())
    }

    fn write(&mut self, taken: &Taken) -> Result<(), Fault> {
        if !taken.records.is_empty() {
            self.wal.write(&taken.records)?;
            let records = taken.records.len() as u64;
            self.metrics.sync_processor_batch_size.note(records);
        }
        if taken.sync && self.sync {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Fault> {
        let start = Instant::now();
        self.wal.sync()?;
        let took = start.elapsed();
        self.metrics.fsynctime.note(took.as_millis() as u64);
        if took > self.fsync_warn {
            self.metrics.fsync_threshold_exceed_count.add(1);
            warn!(
                dir = %self.wal.dir().display(),
                duration_ms = took.as_millis() as u64,
                "syncing the log was slow; latency of writes suffers"
            );
        }
        Ok(())
    }
}

fn spawn<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Fault> {
    let builder = thread::Builder::new().name(name.to_owned());
    builder
        .spawn(work)
        .map_err(|source| Fault::Thread { name, source })
}

/// Runs the work of a thread; a panic becomes a fault, so that somebody hears of it.
fn caught<T>(thread: &'static str, work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Fault::Panicked {
            thread,
            message: text.unwrap_or_else(|| "no message".to_owned()),
        })
    })
}

//! Crashes and rot under the log and the snapshots, thousands of times, each from a seed.
//!
//! A small model of what Raft does to a log (append, replace a tail, vote, commit, take and install
//! snapshots) writes through the real [`Wal`] and snapshot code over a disk that keeps no more than
//! it must. After each crash the recovery must find exactly one of the states between the last one
//! that was synced and the last one that was written. `STORAGE_SEED=n` runs one seed alone,
//! `STORAGE_SEEDS=n` another number of seeds.

#[path = "sim/disk.rs"]
mod disk;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use zkraft::engine::{Options, Setup, SnapshotMeta, Survivor, Unfit};
use zkraft::machine::{Machine, OriginId};
use zkraft::proto::log::{HardState, LogEntry, Membership, Record, SnapshotMark};
use zkraft::storage::{
    Disk, Fault, Identity, Known, Recovery, SnapshotReader, Wal, WalOptions, list_snapshots,
    purge_snapshots, recover, write_snapshot,
};

use disk::{Faults, FaultyDisk};

const LOG: &str = "/data/log";
const SNAPSHOTS: &str = "/data/snapshot";
const KEEP: usize = 3;
const IDENTITY: Identity = Identity {
    cluster: 0xc1,
    server: 1,
    disk: 0xd1,
};
const OPTIONS: WalOptions = WalOptions {
    segment_bytes: 16 << 10,
    prepare_bytes: 4 << 10,
    unbuffered: true,
};

/// What a replica should find in its files.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    hard_state: HardState,
    /// Index and term of what comes before the entries.
    base: (u64, u64),
    entries: Vec<LogEntry>,
}

impl Model {
    fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        let position = index.checked_sub(self.base.0 + 1)?;
        Some(self.entries.get(position as usize)?.term)
    }

    fn after(&self, index: u64) -> &[LogEntry] {
        let skip = index.saturating_sub(self.base.0) as usize;
        self.entries.get(skip..).unwrap_or_default()
    }

    fn apply(&mut self, record: &Record) {
        for entry in &record.entries {
            self.entries
                .truncate((entry.index - self.base.0 - 1) as usize);
            self.entries.push(entry.clone());
        }
        if let Some(state) = record.hard_state {
            self.hard_state = state;
        }
        if let Some(mark) = &record.mark {
            self.start_at(mark.index, mark.term);
        }
    }

    /// A snapshot replaces a log that it does not continue.
    fn start_at(&mut self, index: u64, term: u64) {
        if index > self.base.0 && self.term_of(index) != Some(term) {
            self.base = (index, term);
            self.entries.clear();
        }
    }

    /// What recovery gives if this is what the disk held.
    fn recovered(&self, snapshot: Option<&SnapshotMeta>) -> Self {
        let mut model = self.clone();
        if let Some(meta) = snapshot {
            model.start_at(meta.index, meta.term);
            let state = &mut model.hard_state;
            state.commit = state.commit.max(meta.index);
            if state.term < meta.term {
                state.term = meta.term;
                state.vote = 0;
            }
        }
        model
    }
}

/// One server and what is known about its disk.
struct Server {
    seed: u64,
    rng: TestRng,
    faulty: FaultyDisk,
    disk: Arc<dyn Disk>,
    wal: Option<Wal>,
    /// The states since the last sync, oldest first; the first one is synced.
    states: Vec<Model>,
    incarnation: u64,
    /// Index of the newest snapshot that was acknowledged.
    snapshot: u64,
    next_data: u64,
    crashes: u64,
}

impl Server {
    fn new(seed: u64) -> Self {
        let mut rng = seeded(seed);
        let mut chance = seeded(rng.next_u64());
        let faulty = FaultyDisk::new(move |end| chance.next_u64() % end);
        Self {
            seed,
            rng,
            disk: Arc::new(faulty.clone()),
            faulty,
            wal: None,
            states: vec![Model::default()],
            incarnation: 0,
            snapshot: 0,
            next_data: 0,
            crashes: 0,
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.rng.next_u64() % end
    }

    fn state(&self) -> &Model {
        self.states.last().expect("there is always one state")
    }

    fn known(&mut self) -> Known {
        Known {
            identity: IDENTITY,
            // The catalog may be lost.
            incarnation: (self.below(2) == 0)
                .then_some(self.incarnation)
                .filter(|&n| n > 0),
            last_group: None,
        }
    }

    /// Recovers and checks what was found, however often the power goes on the way.
    fn start(&mut self) {
        loop {
            if self.below(4) == 0 {
                let power_for = Some(self.below(12));
                self.faulty.set_faults(Faults {
                    power_for,
                    ..Faults::default()
                });
            }
            let known = self.known();
            match open(&self.disk, known) {
                Ok((recovery, wal)) => {
                    self.faulty.set_faults(Faults::default());
                    self.check(recovery);
                    self.wal = Some(wal);
                    return;
                }
                Err(Fault::Io { .. } | Fault::Sync { .. }) => self.crash(),
                Err(fault) => panic!("seed {}: refused to start: {fault}", self.seed),
            }
        }
    }

    fn check(&mut self, recovery: Recovery<Option<Bytes>>) {
        let seed = self.seed;
        assert!(
            recovery.incarnation > self.incarnation,
            "seed {seed}: incarnation {} again",
            recovery.incarnation
        );
        self.incarnation = recovery.incarnation;
        let snapshot = recovery.snapshot.as_ref();
        let index = snapshot.map_or(0, |meta| meta.index);
        assert!(
            index >= self.snapshot,
            "seed {seed}: snapshot {index} found, {} was acknowledged",
            self.snapshot
        );
        self.snapshot = index;
        assert_eq!(recovery.machine, snapshot.map(content), "seed {seed}");

        let candidates = self.states.iter().map(|state| state.recovered(snapshot));
        let found = candidates.into_iter().find(|state| {
            state.hard_state == recovery.hard_state && state.after(index) == recovery.entries
        });
        let Some(found) = found else {
            panic!(
                "seed {seed}: found {:?} and {} entries after {index}, which is none of the {} \
                 states written since the last sync, the newest {:?}; warnings: {:?}",
                recovery.hard_state,
                recovery.entries.len(),
                self.states.len(),
                self.states
                    .last()
                    .map(|state| state.recovered(snapshot).hard_state),
                recovery.warnings
            );
        };
        self.states = vec![found];
    }

    fn crash(&mut self) {
        self.wal = None;
        self.faulty.crash();
        self.crashes += 1;
    }

    /// One step of a replica's life. An error is one of the disk.
    fn step(&mut self) -> Result<(), Fault> {
        match self.below(20) {
            0..=7 => self.append(),
            8 => self.replace(),
            9 => self.vote(),
            10..=14 => self.sync(),
            15 | 16 => self.wal().seal_if_idle(),
            17 | 18 => self.take_snapshot(),
            _ => self.install_snapshot(),
        }
    }

    fn wal(&mut self) -> &mut Wal {
        self.wal.as_mut().expect("the server runs")
    }

    fn append(&mut self) -> Result<(), Fault> {
        let first = self.state().last() + 1;
        let record = self.entries_from(first);
        let mut records = vec![record];
        if self.below(4) == 0 {
            // Several appends in one group.
            let first = first + records[0].entries.len() as u64;
            records.push(self.entries_from(first));
        }
        self.write(&records)
    }

    /// Another leader replaces what was not committed.
    fn replace(&mut self) -> Result<(), Fault> {
        let state = self.state();
        let lowest = state.hard_state.commit.max(state.base.0) + 1;
        if lowest > state.last() {
            return Ok(());
        }
        let choices = state.last() - lowest + 1;
        let mut hard_state = state.hard_state;
        hard_state.term += 1;
        let first = lowest + self.below(choices);
        let mut record = self.entries_from(first);
        for entry in &mut record.entries {
            entry.term = hard_state.term;
        }
        record.hard_state = Some(hard_state);
        self.write(&[record])
    }

    fn vote(&mut self) -> Result<(), Fault> {
        let mut hard_state = self.state().hard_state;
        hard_state.term += self.below(2);
        hard_state.vote = self.below(3);
        let record = Record {
            hard_state: Some(hard_state),
            ..Record::default()
        };
        self.write(&[record])
    }

    fn sync(&mut self) -> Result<(), Fault> {
        self.wal().sync()?;
        let last = self.state().clone();
        self.states = vec![last];
        // What is durable may commit; the next record says so.
        let room = self.state().last() - self.state().hard_state.commit;
        if room > 0 && self.below(2) == 0 {
            let commit = self.below(room + 1);
            let mut hard_state = self.state().hard_state;
            hard_state.commit += commit;
            let record = Record {
                hard_state: Some(hard_state),
                ..Record::default()
            };
            self.write(&[record])?;
        }
        Ok(())
    }

    fn take_snapshot(&mut self) -> Result<(), Fault> {
        let state = self.state();
        // Only what is committed is applied, and only what is synced is committed: the commit
        // index of the model rises after a sync only.
        let index = state.hard_state.commit;
        let Some(term) = state.term_of(index) else {
            return Ok(());
        };
        if index <= self.snapshot {
            return Ok(());
        }
        self.save_snapshot(index, term)?;
        self.write(&[mark(index, term)])?;
        self.release()
    }

    /// A leader sends its snapshot because this log is too far behind, or differs.
    fn install_snapshot(&mut self) -> Result<(), Fault> {
        let state = self.state();
        let mut hard_state = state.hard_state;
        hard_state.term += 1;
        let index = hard_state.commit.max(state.base.0) + 1 + self.below(30);
        let term = hard_state.term;
        hard_state.commit = index;
        self.save_snapshot(index, term)?;
        let mut record = mark(index, term);
        record.hard_state = Some(hard_state);
        self.write(&[record])?;
        self.sync()?;
        self.release()
    }

    fn save_snapshot(&mut self, index: u64, term: u64) -> Result<(), Fault> {
        let meta = SnapshotMeta {
            index,
            term,
            membership: members(),
            zxid: index as i64,
            digest: term,
        };
        let bytes = content(&meta);
        let chunks = bytes.chunks(700).map(Bytes::copy_from_slice);
        let dir = Path::new(SNAPSHOTS);
        write_snapshot(&self.disk, dir, IDENTITY.cluster, &meta, chunks)?;
        self.snapshot = index;
        Ok(())
    }

    fn release(&mut self) -> Result<(), Fault> {
        purge_snapshots(&*self.disk, Path::new(SNAPSHOTS), KEEP)?;
        let files = list_snapshots(&*self.disk, Path::new(SNAPSHOTS))?;
        // With a single snapshot the log is kept, should that one rot.
        match files.last() {
            Some(oldest) if files.len() > 1 => self.wal().release_below(oldest.index),
            _ => Ok(()),
        }
    }

    fn entries_from(&mut self, first: u64) -> Record {
        let count = 1 + self.below(5);
        let entries = (first..first + count).map(|index| {
            self.next_data += 1;
            let size = match self.below(20) {
                0 => self.below(20_000),
                1..=4 => self.below(2000),
                _ => self.below(100),
            };
            let mut data = self.next_data.to_le_bytes().to_vec();
            data.resize(8 + size as usize, index as u8);
            LogEntry {
                term: self.state().hard_state.term,
                index,
                kind: 0,
                data: data.into(),
                context: Bytes::new(),
            }
        });
        let entries = entries.collect();
        Record {
            entries,
            ..Record::default()
        }
    }

    fn write(&mut self, records: &[Record]) -> Result<(), Fault> {
        // Written or not, it may be found after a crash.
        let mut state = self.state().clone();
        records.iter().for_each(|record| state.apply(record));
        self.states.push(state);
        self.wal().write(records)?;
        Ok(())
    }
}

impl Server {
    /// Some runs, with clean stops and no faults.
    fn live_quietly(&mut self) {
        for _ in 0..1 + self.below(3) {
            self.wal = None;
            self.start_quietly();
            for _ in 0..self.below(60) {
                self.step().expect("the disk works");
            }
        }
    }

    fn start_quietly(&mut self) {
        let known = self.known();
        let (recovery, wal) = open(&self.disk, known).expect("nothing has happened to the files");
        self.check(recovery);
        self.wal = Some(wal);
    }

    /// Syncs, and has the proof on the disk that it did.
    fn seal(&mut self) {
        let wal = self.wal();
        wal.sync().expect("the disk works");
        wal.seal_if_idle().expect("the disk works");
        wal.sync().expect("the disk works");
        let last = self.state().clone();
        self.states = vec![last];
    }

    /// Damages one byte of one file in `dir`.
    fn rot(&mut self, dir: &str) {
        let dir = Path::new(dir);
        let names = self.disk.list(dir).expect("the directory is there");
        let name = &names[self.below(names.len() as u64) as usize];
        let path = dir.join(name);
        let len = self.len(&path);
        let offset = self.below(len);
        self.rot_at(&path, offset);
    }

    /// Damages a byte as rot does: under the kernel, so durable at once.
    fn rot_at(&mut self, path: &Path, offset: u64) {
        let bit = 1 << self.below(8);
        let file = self.disk.open(path).expect("the file is there");
        let mut byte = [0];
        let read = file.read_at(&mut byte, offset).expect("the disk works");
        assert_eq!(read, 1, "{} has {offset} bytes", path.display());
        file.write_at(&[byte[0] ^ bit], offset)
            .expect("the disk works");
        file.sync_data().expect("the disk works");
    }

    fn newest_segment(&self) -> PathBuf {
        let names = self
            .disk
            .list(Path::new(LOG))
            .expect("the directory is there");
        Path::new(LOG).join(names.last().expect("there is a segment"))
    }

    fn content(&self, path: &Path) -> Vec<u8> {
        let file = self.disk.open(path).expect("the file is there");
        let mut bytes = vec![0; file.len().expect("the disk works") as usize];
        file.read_at(&mut bytes, 0).expect("the disk works");
        bytes
    }

    fn len(&self, path: &Path) -> u64 {
        self.content(path).len() as u64
    }
}

fn seeded(seed: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

fn members() -> Membership {
    Membership {
        voters: vec![1],
        ..Membership::default()
    }
}

fn mark(index: u64, term: u64) -> Record {
    Record {
        mark: Some(SnapshotMark {
            index,
            term,
            membership: Some(members()),
        }),
        ..Record::default()
    }
}

/// What a snapshot holds: a function of what it is of.
fn content(meta: &SnapshotMeta) -> Bytes {
    let len = 100 + (meta.index * 97 + meta.term * 31) % 4000;
    let byte = |position: u64| (position * (meta.index + 1) + meta.term) as u8;
    (0..len).map(byte).collect::<Vec<u8>>().into()
}

type Recovered = (Recovery<Option<Bytes>>, Wal);

fn open(disk: &Arc<dyn Disk>, known: Known) -> Result<Recovered, Fault> {
    let dirs = (Path::new(LOG), Path::new(SNAPSHOTS));
    recover(disk, dirs, OPTIONS, known, None, load)
}

fn load(reader: Option<SnapshotReader>) -> Result<Option<Bytes>, Fault> {
    let Some(reader) = reader else {
        return Ok(None);
    };
    let mut all = Vec::new();
    for chunk in reader {
        all.extend_from_slice(&chunk?);
    }
    Ok(Some(all.into()))
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name| Some(std::env::var(name).ok()?.parse::<u64>().expect("a number"));
    match (number("STORAGE_SEED"), number("STORAGE_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(default),
    }
}

#[test]
fn what_was_synced_survives_any_power_loss() {
    let mut crashes = 0;
    for seed in seeds(300) {
        let mut server = Server::new(seed);
        for _ in 0..8 {
            server.start();
            let quiet = server.below(40);
            let sudden = server.below(3) > 0;
            for step in 0.. {
                if step == quiet {
                    if !sudden {
                        break;
                    }
                    let power_for = Some(server.below(15));
                    server.faulty.set_faults(Faults {
                        power_for,
                        ..Faults::default()
                    });
                }
                match server.step() {
                    Ok(()) => {}
                    Err(Fault::Io { .. } | Fault::Sync { .. }) => break,
                    Err(fault) => panic!("seed {seed}: {fault}"),
                }
            }
            server.crash();
        }
        crashes += server.crashes;
    }
    println!("{crashes} crashes");
}

/// The process stops at the first failure and starts again, in the same kernel: what it reads then
/// may never have been written. Only later the power goes.
#[test]
fn what_was_acknowledged_after_a_failed_disk_survives() {
    let (mut failures, mut crashes) = (0, 0);
    for seed in seeds(200) {
        let mut server = Server::new(seed);
        for _ in 0..8 {
            server.start();
            let mut faults = Faults::default();
            match server.below(3) {
                0 => faults.write_permille = 60,
                1 => faults.sync_permille = 60,
                _ => faults.capacity = Some(10_000 + server.below(60_000)),
            }
            server.faulty.set_faults(faults);
            let failed = (0..60).find_map(|_| server.step().err());
            if let Some(fault) = failed {
                let capacity = faults.capacity.is_some();
                assert_eq!(fault.is_disk_full(), capacity, "seed {seed}: {fault}");
                failures += 1;
            }
            server.wal = None;
            server.faulty.set_faults(Faults::default());
            server.start();
            if server.below(2) == 0 {
                server.crash();
            }
        }
        crashes += server.crashes;
    }
    println!("{failures} failures of the disk, {crashes} crashes");
    assert!(failures > 0);
}

/// A byte rots while the server is down, after a last sync that a later group tells of. The server
/// may go on only with everything, or refuse.
#[test]
fn rot_in_a_group_that_is_known_to_be_synced_is_refused_or_harmless() {
    let (mut refused, mut harmless) = (0, 0);
    // With the header of the segment that held the snapshot's own entry, 10339 lost what tells
    // whether the entries behind it go on from the snapshot.
    for seed in seeds(600).chain([10_339]) {
        let mut server = Server::new(seed);
        server.live_quietly();
        server.seal();
        server.rot(LOG);
        let known = server.known();
        match open(&server.disk, known) {
            Ok((recovery, _)) => {
                server.check(recovery);
                harmless += 1;
            }
            Err(Fault::CorruptLog { .. } | Fault::CorruptHeader { .. }) => refused += 1,
            Err(fault) => panic!("seed {seed}: {fault}"),
        }
    }
    println!("{refused} refused, {harmless} harmless");
    assert!(refused > 0 && harmless > 0);
}

/// Snapshots rot, and the log reaches back behind them: all that a replica knew is still found.
#[test]
fn rot_in_the_newest_snapshots_costs_nothing() {
    let mut loaded_older = 0;
    for seed in seeds(200) {
        let mut server = Server::new(seed);
        server.live_quietly();
        server.seal();
        let newest = server.snapshot;
        let files = list_snapshots(&*server.disk, Path::new(SNAPSHOTS)).expect("listed");
        // All but the oldest, or the only one if the log was kept because of it.
        let rotten = files.len().saturating_sub(1).max(1).min(files.len());
        for file in &files[..rotten] {
            let len = server.len(&file.path);
            // Before that is the header, with padding that nobody reads.
            let offset = 512 + server.below(len - 512);
            server.rot_at(&file.path, offset);
        }
        server.snapshot = 0;
        let known = server.known();
        match open(&server.disk, known) {
            Ok((recovery, _)) => {
                let found = recovery.snapshot.as_ref().map_or(0, |meta| meta.index);
                assert!(found < newest || newest == 0, "seed {seed}: loaded rot");
                loaded_older += u64::from(newest > 0);
                server.check(recovery);
            }
            // A snapshot that was sent by a leader has no log before it.
            Err(Fault::LogGap { .. }) => assert!(server.state().base.0 > 0, "seed {seed}"),
            Err(fault) => panic!("seed {seed}: {fault}"),
        }
    }
    println!("{loaded_older} times an older one was loaded");
    assert!(loaded_older > 0);
}

/// What no single disk can tell: the last group was synced, nothing was written after it, and it
/// rots. That looks like a torn tail. It is cut, with a warning, and what was before it is all
/// there.
#[test]
fn rot_in_the_last_group_without_a_seal_is_cut_with_a_warning() {
    let mut cut = 0;
    for seed in seeds(200) {
        let mut server = Server::new(seed);
        server.live_quietly();
        server.seal();
        let newest = server.newest_segment();
        let before = server.content(&newest);
        server.append().expect("the disk works");
        server.wal().sync().expect("the disk works");
        server.wal = None;
        if server.newest_segment() != newest {
            // A new segment began, and its header tells of the group before it.
            continue;
        }
        let after = server.content(&newest);
        let old = before.iter().chain(std::iter::repeat(&0));
        let start = after
            .iter()
            .zip(old)
            .take_while(|(new, old)| new == old)
            .count();
        server.rot_at(&newest, start as u64);
        let known = server.known();
        let (recovery, _) = open(&server.disk, known).expect("a torn tail is no reason to refuse");
        let warned = recovery
            .warnings
            .iter()
            .any(|text| text.contains("cut a torn tail"));
        assert!(warned, "seed {seed}: {:?}", recovery.warnings);
        cut += 1;
        // The state before the append, exactly.
        server.states.pop();
        server.check(recovery);
    }
    assert!(cut > 0);
}

fn machine(reader: Option<SnapshotReader>) -> Result<Machine, Fault> {
    let Some(reader) = reader else {
        return Ok(Machine::new());
    };
    let path = reader.path().to_owned();
    Machine::restore(reader).map_err(|error| Fault::RejectedSnapshot {
        path,
        reason: error.to_string(),
    })
}

/// A server of three, whose log makes a state.
fn survivor(recovery: Recovery<Machine>) -> Survivor {
    Survivor::new(Setup {
        origin: OriginId {
            server: IDENTITY.server,
            disk: IDENTITY.disk,
            incarnation: recovery.incarnation,
        },
        options: Options::default(),
        random: Box::new(|| [0; 16]),
        logger: slog::Logger::root(slog::Discard, slog::o!()),
        machine: recovery.machine,
        hard_state: recovery.hard_state,
        membership: recovery.membership.expect("it was written first"),
        entries: recovery.entries,
        snapshot_due: false,
        admitted: false,
    })
}

/// The power goes while a survivor is made a cluster of its own.
#[test]
fn a_survivor_is_a_cluster_of_its_own_wholly_or_not_at_all() {
    let known = Known {
        identity: IDENTITY,
        incarnation: None,
        last_group: None,
    };
    let (mut as_before, mut done, mut snapshots) = (0, 0, 0);
    for seed in seeds(200) {
        let mut rng = seeded(seed);
        let mut chance = seeded(rng.next_u64());
        let faulty = FaultyDisk::new(move |end| chance.next_u64() % end);
        let disk: Arc<dyn Disk> = Arc::new(faulty.clone());
        let open = || {
            let dirs = (Path::new(LOG), Path::new(SNAPSHOTS));
            recover(&disk, dirs, OPTIONS, known, None, machine)
        };
        let (_, mut wal) = open().expect("the disk works");
        let entry = |index| LogEntry {
            term: 2,
            index,
            ..LogEntry::default()
        };
        let mut first = mark(0, 0);
        first.entries = (1..=1 + rng.next_u64() % 40).map(entry).collect();
        first.mark.as_mut().and_then(|mark| {
            let voters = vec![1, 2, 3];
            mark.membership.replace(Membership {
                voters,
                ..Membership::default()
            })
        });
        wal.write(&[first])
            .and_then(|_| wal.sync())
            .expect("the disk works");
        drop(wal);

        let (recovery, mut wal) = open().expect("the disk works");
        let before = recovery.entries.clone();
        let alone = survivor(recovery).alone(7, 0).expect("it is one of three");
        let after = [&before[..], &alone.record.entries].concat();
        faulty.set_faults(Faults {
            power_for: Some(rng.next_u64() % 12),
            ..Faults::default()
        });
        let written = wal.write(&[alone.record]).and_then(|_| wal.sync());
        let (is_durable, dir) = (written.is_ok(), Path::new(SNAPSHOTS));
        let chunks = alone.image.chunks();
        let saved = write_snapshot(&disk, dir, IDENTITY.cluster, &alone.meta, chunks).is_ok();
        drop(wal);
        faulty.crash();

        let (recovery, _) = open().expect("the disk works");
        let found = recovery.entries.clone();
        let has_snapshot = recovery.snapshot.is_some();
        let commit = recovery.hard_state.commit;
        let again = survivor(recovery).alone(8, 0);
        if found == before {
            assert!(!is_durable, "seed {seed}");
            assert!(again.is_ok(), "seed {seed}: it can be tried again");
            as_before += 1;
        } else {
            let expected = if has_snapshot { &[] } else { &after[..] };
            assert_eq!(found, expected, "seed {seed}");
            assert!(has_snapshot || !saved, "seed {seed}");
            assert_eq!(commit, after.len() as u64, "seed {seed}");
            assert_eq!(again.err(), Some(Unfit::Alone), "seed {seed}");
            done += 1;
            snapshots += u64::from(has_snapshot);
        }
    }
    println!("{as_before} as before, {done} done, {snapshots} with a snapshot");
    assert!(as_before > 0 && done > snapshots && snapshots > 0);
}

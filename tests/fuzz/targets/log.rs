//! The log after a restart: any files under the names of segments, either as they are or with the
//! checksums that make headers and groups valid, so that what is in them is read.
//!
//! Whatever is accepted makes a log without holes, is the same when it is read again, and can be
//! written on.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use zkraft::proto::log::{HardState, LogEntry, Membership, Record, SnapshotMark};
use zkraft::storage::{Disk, Fault, Identity, Replay, Wal, WalOptions, WalStart};

use super::disk::MemoryDisk;
use super::input::{Input, run_of};
use super::memory::peak_of;

const DIR: &str = "/log";
const SECTOR: usize = 512;
/// Of one input: an empty one costs a byte of it.
const SEGMENTS_MAX: u64 = 32;
/// The densest log is one of empty entries, of two bytes each, in a vector that has just grown.
const HEAP_PER_BYTE: usize = 3 * size_of::<LogEntry>() / 2;
const IDENTITY: Identity = Identity {
    cluster: 0xc1,
    server: 1,
    disk: 0xd1,
};
const OPTIONS: WalOptions = WalOptions {
    segment_bytes: 16 << 10,
    prepare_bytes: 512,
    unbuffered: true,
};

/// Bits of an input's first byte.
mod choice {
    /// Files as they are.
    pub const RAW: u8 = 1;
    /// A snapshot was loaded.
    pub const SNAPSHOT: u8 = 2;
    /// The last run is remembered to have stopped cleanly after its last group.
    pub const CLEAN: u8 = 4;
    /// The last start is remembered.
    pub const INCARNATION: u8 = 8;
}

/// What a step of building is, by the remainder of its byte.
mod step {
    pub const SEGMENT: u8 = 0;
    pub const GROUP: u8 = 1;
    /// A group, and then a byte of it that changes.
    pub const DAMAGED: u8 = 2;
    /// A group that was written some groups after the last sync.
    pub const UNSYNCED: u8 = 3;
    pub const KINDS: u8 = 4;
}

/// Input: choices, the position of the snapshot if there is one, then files or steps.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let choices = input.byte();
    let mut start = WalStart::new(IDENTITY);
    if choices & choice::SNAPSHOT != 0 {
        start.snapshot = Some(SnapshotMark {
            index: u64::from(input.byte()),
            term: u64::from(input.byte()),
            membership: None,
        });
    }
    let disk = MemoryDisk::default();
    if choices & choice::RAW != 0 {
        for number in 1..=SEGMENTS_MAX {
            if input.is_empty() {
                break;
            }
            disk.put(name(number), input.run().to_vec());
        }
    } else {
        let mut builder = Builder::new(disk.clone());
        while !input.is_empty() && builder.segment <= SEGMENTS_MAX {
            builder.step(&mut input);
        }
        builder.end_segment();
        start.last_group = (choices & choice::CLEAN != 0).then(|| builder.group - 1);
        start.incarnation = (choices & choice::INCARNATION != 0).then_some(builder.segment - 1);
    }
    let bytes: usize = disk.contents().iter().map(Vec::len).sum();
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let mut opened = None;
    let peak = peak_of(|| opened = Some(open(&disk, &start)));
    assert!(
        peak <= (64 << 10) + HEAP_PER_BYTE * bytes,
        "{peak} bytes of heap for {bytes} of log"
    );
    match opened.expect("the work was done") {
        Ok((wal, replay)) => check(&disk, start, wal, &replay),
        // Every message can be written.
        Err(fault) => assert!(!fault.to_string().is_empty()),
    }
}

fn open(disk: &Arc<dyn Disk>, start: &WalStart) -> Result<(Wal, Replay), Fault> {
    Wal::open(
        disk.clone(),
        Path::new(DIR),
        OPTIONS,
        start.clone(),
        &mut |_, _| {},
    )
}

fn check(disk: &Arc<dyn Disk>, mut start: WalStart, wal: Wal, replay: &Replay) {
    let after = start.snapshot.as_ref().map_or(0, |mark| mark.index);
    let mut before = LogEntry {
        index: after,
        ..LogEntry::default()
    };
    for entry in &replay.entries {
        assert_eq!(entry.index, before.index + 1, "no holes");
        assert!(entry.term >= before.term, "terms rise");
        before.clone_from(entry);
    }
    assert_eq!(wal.last_index(), before.index);
    assert_eq!(wal.incarnation(), replay.incarnation);
    drop(wal);

    start.last_group = None;
    start.incarnation = Some(replay.incarnation);
    let (mut wal, again) = open(disk, &start).expect("what was accepted is accepted again");
    assert_eq!(again.entries, replay.entries);
    assert_eq!(again.hard_state, replay.hard_state);
    assert_eq!(again.incarnation, replay.incarnation + 1);
    assert_eq!(again.warnings, Vec::<String>::new());

    let Some(index) = before.index.checked_add(1) else {
        return;
    };
    let more = LogEntry {
        index,
        term: start
            .snapshot
            .as_ref()
            .map_or(0, |mark| mark.term)
            .max(before.term),
        data: Bytes::from_static(b"more"),
        ..LogEntry::default()
    };
    let record = Record {
        entries: vec![more.clone()],
        ..Record::default()
    };
    wal.write(&[record]).expect("the disk does not fail");
    wal.sync().expect("the disk does not fail");
    drop(wal);
    let (_, last) = open(disk, &start).expect("what was written is accepted");
    assert_eq!(last.entries.split_last(), Some((&more, &*replay.entries)));
}

fn name(segment: u64) -> String {
    format!("{DIR}/segment.{segment:016x}")
}

/// Makes segments whose checksums are right: see `src/storage/segment.rs`.
struct Builder {
    disk: MemoryDisk,
    content: Vec<u8>,
    /// Number of the segment that is being made.
    segment: u64,
    /// Checksum of its header.
    checksum: u32,
    /// Number of the next group.
    group: u64,
}

impl Builder {
    fn new(disk: MemoryDisk) -> Self {
        let mut builder = Self {
            disk,
            content: Vec::new(),
            segment: 1,
            checksum: 0,
            group: 1,
        };
        builder.header(1);
        builder
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let more = choice / step::KINDS;
        match choice % step::KINDS {
            step::SEGMENT => {
                self.end_segment();
                self.header(u64::from(more));
            }
            step::GROUP => self.group(0, input.run()),
            step::DAMAGED => {
                let start = self.content.len();
                let at = usize::from(input.byte());
                self.group(0, input.run());
                let group = &mut self.content[start..];
                let at = at % group.len();
                group[at] ^= 1 << (more % 8);
            }
            _ => self.group(u64::from(more), input.run()),
        }
    }

    fn header(&mut self, first_index: u64) {
        let mut sector = b"zkraftLG".to_vec();
        sector.extend(1u32.to_le_bytes());
        sector.extend(IDENTITY.server.to_le_bytes());
        sector.extend(IDENTITY.cluster.to_le_bytes());
        sector.extend(IDENTITY.disk.to_le_bytes());
        for number in [self.segment, self.segment, self.group, first_index] {
            sector.extend(number.to_le_bytes());
        }
        sector.extend(self.checksum.to_le_bytes());
        sector.resize(SECTOR - 4, 0);
        self.checksum = crc32c::crc32c(&sector);
        sector.extend(self.checksum.to_le_bytes());
        self.content = sector;
    }

    /// `behind`: groups that were not known to be synced besides this one.
    fn group(&mut self, behind: u64, records: &[u8]) {
        let mut head = self.group.to_le_bytes().to_vec();
        let synced = (self.group - 1).saturating_sub(behind);
        head.extend(synced.to_le_bytes());
        head.extend((records.len() as u32).to_le_bytes());
        let salted = crc32c::crc32c_append(self.checksum, &head);
        let checksum = crc32c::crc32c_append(salted, records);
        head.extend(checksum.to_le_bytes());
        self.content.extend(head);
        self.content.extend(records);
        self.content
            .resize(self.content.len().next_multiple_of(SECTOR), 0);
        self.group += 1;
    }

    fn end_segment(&mut self) {
        self.disk
            .put(name(self.segment), std::mem::take(&mut self.content));
        self.segment += 1;
    }
}

fn entry(index: u64, term: u64) -> LogEntry {
    LogEntry {
        index,
        term,
        kind: 0,
        data: Bytes::from_static(b"data"),
        context: Bytes::new(),
    }
}

fn state(term: u64, commit: u64) -> HardState {
    HardState {
        term,
        vote: 1,
        commit,
    }
}

/// Records as a server writes them.
fn records() -> Vec<Record> {
    let entries = |entries: &[(u64, u64)], hard_state| Record {
        entries: entries
            .iter()
            .map(|(index, term)| entry(*index, *term))
            .collect(),
        hard_state,
        mark: None,
    };
    vec![
        entries(&[(1, 1)], Some(state(1, 0))),
        entries(&[(2, 1), (3, 1)], Some(state(1, 1))),
        entries(&[(3, 2), (4, 2)], Some(state(2, 2))),
        Record {
            mark: Some(SnapshotMark {
                index: 3,
                term: 2,
                membership: Some(Membership {
                    voters: vec![1],
                    ..Membership::default()
                }),
            }),
            ..Record::default()
        },
        entries(&[(5, 2)], None),
    ]
}

/// A real log: one group for each record, in several segments.
fn real() -> Vec<Vec<u8>> {
    let disk = MemoryDisk::default();
    let start = WalStart::new(IDENTITY);
    for half in records().chunks(3) {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let (mut wal, _) = open(&shared, &start).expect("a new log is opened");
        for record in half {
            let record = std::slice::from_ref(record);
            wal.write(record).expect("the disk does not fail");
            wal.sync().expect("the disk does not fail");
        }
        wal.seal_if_idle().expect("the disk does not fail");
    }
    disk.contents()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let files: Vec<u8> = real().iter().flat_map(|file| run_of(file)).collect();
    let group = |kind: u8, record: &Record| {
        let run = run_of(&record.encode_length_delimited_to_vec());
        let damage = if kind % step::KINDS == step::DAMAGED {
            vec![30]
        } else {
            Vec::new()
        };
        [vec![kind], damage, run].concat()
    };
    let [one, two, three, mark, five] = &records()[..] else {
        unreachable!("there are five records");
    };
    let built = |choices: &[u8], parts: &[Vec<u8>]| [choices, &parts.concat()].concat();
    let next = |first_index: u8| vec![step::SEGMENT + step::KINDS * first_index];
    let plain = [one, two, three, mark, five].map(|record| group(step::GROUP, record));
    let segments = [
        group(step::GROUP, one),
        group(step::GROUP, two),
        next(4),
        group(step::GROUP, three),
        group(step::GROUP, mark),
        next(5),
        group(step::GROUP, five),
    ];
    let torn = [group(step::GROUP, one), group(step::DAMAGED, two)];
    let rotten = [
        group(step::GROUP, one),
        group(step::DAMAGED, two),
        group(step::GROUP, three),
        group(step::UNSYNCED + step::KINDS, mark),
    ];
    vec![
        [&[choice::RAW][..], &files].concat(),
        [&[choice::RAW | choice::SNAPSHOT, 3, 2][..], &files].concat(),
        built(&[0], &plain),
        built(&[choice::CLEAN | choice::INCARNATION], &segments),
        built(&[choice::SNAPSHOT, 3, 2], &segments),
        built(&[0], &torn),
        built(&[choice::CLEAN], &torn),
        built(&[0], &rotten),
    ]
}

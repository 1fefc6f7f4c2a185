//! The write-ahead log: segments in a row.
//!
//! [`Wal`] writes groups of records, syncs them, and replays them after a restart. It holds no
//! thread and no clock, and it knows the file system only as a [`Disk`], so the simulator runs this
//! very code over a disk that loses and damages what it may.
//!
//! What holds after a crash:
//!
//! * Each start makes a new segment and syncs its header before [`Wal::open`] returns, so that the
//!   number of the start (the incarnation) is never used twice.
//! * Each segment begins with a group that restates the hard state and the newest snapshot mark,
//!   synced before anything else is written to it, so that the segments before it may go.
//! * Replay gives a prefix of what was written, and all of what was synced.
//! * A group that cannot be read is cut off as a torn tail only if nothing proves that it was
//!   synced once. Proofs are: a later group of the same segment that says so, a later segment, the
//!   mark of a clean stop. Otherwise the log is corrupt, and opening fails rather than lose writes.
//!
//! What cannot be told: if the very last group was synced, nothing was written after it, and it
//! then rots *before* a seal or a next start reaches the disk, it looks like a torn tail and is cut
//! with a warning. The same holds if one fault destroys a group together with every proof behind
//! it. A single disk cannot do better; a cluster holds the group on other members.
//!
//! Rule: after a failed write or sync the log does nothing any more.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Identity;
use super::disk::{Disk, File};
use super::fault::Fault;
use super::replay::{self, cut, remove};
use super::segment::{self, SECTOR};
use crate::proto::log::{HardState, LogEntry, Record, SnapshotMark};

/// A larger buffer, for a rare huge group, is given back.
const BUFFER_BYTES_KEPT: usize = 16 << 20;

/// One part in so many of the free space is filled ahead at most.
const PREPARE_PART: u64 = 8;

/// Sizes of the files.
#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// A segment that would grow past this is followed by a new one. One group may be larger.
    pub segment_bytes: u64,
    /// How far ahead of the writes a segment is filled with zeros, so that most syncs have no
    /// file size to write. Segments start empty and grow in these steps: many short starts
    /// leave little behind.
    pub prepare_bytes: u64,
    /// Every write is followed by a sync, so that nothing is won by a copy in the page cache.
    pub unbuffered: bool,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            prepare_bytes: 1 << 20,
            unbuffered: true,
        }
    }
}

/// What is known before the log is read.
#[derive(Clone, Debug)]
pub struct WalStart {
    /// Whose log it is. A new log gets this; an existing one must have it.
    pub identity: Identity,
    /// The snapshot that was loaded: the log must reach back to it.
    pub snapshot: Option<SnapshotMark>,
    /// The number of the last start, if remembered elsewhere: a log that has not seen it is not the
    /// log of this server's last run.
    pub incarnation: Option<u64>,
    /// The last group at a clean stop, if that is how the last run ended.
    pub last_group: Option<u64>,
}

impl WalStart {
    /// Of a server about which nothing is remembered.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            snapshot: None,
            incarnation: None,
            last_group: None,
        }
    }
}

/// What the log held.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    /// Number of this start, from 1, durable.
    pub incarnation: u64,
    /// The last one written.
    pub hard_state: Option<HardState>,
    /// The last mark written of those that are not after the snapshot: what the entries go on from.
    pub mark: Option<SnapshotMark>,
    /// The entries after the snapshot, without holes.
    pub entries: Vec<LogEntry>,
    /// Number of the last group found; 0 in a new log.
    pub last_group: u64,
    /// How many runs wrote what was read: each left at least one segment.
    pub runs: u64,
    /// What an operator should read.
    pub warnings: Vec<String>,
}

/// The log, open for writing.
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: WalOptions,
    identity: Identity,
    incarnation: u64,
    /// Oldest first; the last one is being written.
    segments: Vec<Segment>,
    /// Files of an interrupted release.
    stale: Vec<PathBuf>,
    file: Box<dyn File>,
    /// Where the next group goes.
    position: u64,
    /// The file holds zeros from `position` to here.
    prepared: u64,
    next_group: u64,
    /// Number of the last group known to be synced.
    synced: u64,
    sealed: bool,
    last_index: u64,
    hard_state: Option<HardState>,
    mark: Option<SnapshotMark>,
    buffer: Vec<u8>,
    failed: bool,
}

/// A segment file.
pub(super) struct Segment {
    pub path: PathBuf,
    pub number: u64,
    /// See [`segment::Header::first_index`].
    pub first_index: u64,
    /// Of the header.
    pub checksum: u32,
    pub bytes: u64,
}

impl Wal {
    /// Replays the log in `dir` and starts a new segment. `progress` is told how many bytes have
    /// been read and how many there are.
    ///
    /// # Errors
    /// The directory is not this server's, the log is corrupt or incomplete, or the disk fails.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: WalOptions,
        start: WalStart,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Self, Replay), Fault> {
        disk.create_dir(dir)
            .map_err(|error| Fault::io("create", dir, error))?;
        let mut past = replay::read(&*disk, dir, &start, progress)?;
        let header = segment::Header {
            identity: start.identity,
            incarnation: past.incarnation + 1,
            segment: past.segments.last().map_or(0, |segment| segment.number) + 1,
            first_group: past.next_group,
            first_index: past.last_index + 1,
            previous: past.segments.last().map_or(0, |segment| segment.checksum),
        };
        let (file, current) = create_segment(&*disk, dir, options, &header)?;
        past.segments.push(current);
        let mut wal = Self {
            disk,
            dir: dir.to_owned(),
            options,
            identity: start.identity,
            incarnation: header.incarnation,
            segments: past.segments,
            stale: past.stale,
            file,
            position: SECTOR,
            prepared: SECTOR,
            next_group: past.next_group,
            synced: past.next_group - 1,
            sealed: false,
            last_index: past.last_index,
            hard_state: past.hard_state,
            mark: start.snapshot.or_else(|| past.mark.clone()),
            buffer: Vec::new(),
            failed: false,
        };
        wal.restate()?;
        let replay = Replay {
            incarnation: header.incarnation,
            hard_state: past.hard_state,
            mark: past.base_mark,
            entries: past.entries,
            last_group: past.next_group - 1,
            runs: past.runs,
            warnings: past.warnings,
        };
        Ok((wal, replay))
    }

    /// Whose log `dir` holds, as the newest readable segment says; `None` if no segment was ever
    /// used.
    ///
    /// # Errors
    /// As [`Wal::open`], as far as headers go.
    pub fn identity_in(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, Fault> {
        replay::identity(disk, dir)
    }

    /// Writes the records as one group and returns its number. The group is durable after the next
    /// [`Wal::sync`]; until then a crash may lose it whole, never in part.
    ///
    /// # Errors
    /// The disk failed, now or before. The log is then stopped.
    pub fn write(&mut self, records: &[Record]) -> Result<u64, Fault> {
        self.guarded(|wal| wal.write_group(records))
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// The disk failed, now or before. The log is then stopped.
    pub fn sync(&mut self) -> Result<(), Fault> {
        self.guarded(Self::sync_written)
    }

    /// Writes a group without records if the last one is synced and nothing says so yet: the proof
    /// that damage to it later is not a torn tail. It is itself not synced. To be called when there
    /// is nothing else to write.
    ///
    /// # Errors
    /// The disk failed, now or before. The log is then stopped.
    pub fn seal_if_idle(&mut self) -> Result<(), Fault> {
        if self.sealed || self.synced + 1 != self.next_group {
            return Ok(());
        }
        self.write(&[])?;
        self.sealed = true;
        Ok(())
    }

    /// Removes the segments that hold no entry of the log at or above `index`. The caller has a
    /// durable snapshot at `index` or later. The snapshot's own entry is kept with the rest: its
    /// term tells whether what follows in the log belongs to the snapshot, or was replaced with it.
    ///
    /// # Errors
    /// A file cannot be removed. The log can go on.
    pub fn release_below(&mut self, index: u64) -> Result<(), Fault> {
        let mut removed = false;
        while let Some(path) = self.stale.last() {
            remove(&*self.disk, path)?;
            self.stale.pop();
            removed = true;
        }
        while self.segments.len() > 1 && self.segments[1].first_index <= index {
            remove(&*self.disk, &self.segments[0].path)?;
            self.segments.remove(0);
            removed = true;
        }
        if removed {
            self.disk
                .sync_dir(&self.dir)
                .map_err(|error| Fault::sync(&self.dir, error))?;
        }
        Ok(())
    }

    /// The directory of the segments.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Number of this start.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Number of the last group written.
    pub fn last_group(&self) -> u64 {
        self.next_group - 1
    }

    /// Index of the last entry or installed snapshot written.
    pub fn last_index(&self) -> u64 {
        self.last_index
    }

    /// Number of segment files.
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Bytes of all segments, without what is only prepared.
    pub fn bytes(&self) -> u64 {
        let closed = self.segments.iter().rev().skip(1);
        closed.map(|segment| segment.bytes).sum::<u64>() + self.position
    }

    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.failed {
            return Err(Fault::Stopped);
        }
        let result = work(self);
        self.failed = result.is_err();
        result
    }

    fn write_group(&mut self, records: &[Record]) -> Result<u64, Fault> {
        self.encode(records);
        let fits = self.position + self.buffer.len() as u64 <= self.options.segment_bytes;
        if !fits && self.position > SECTOR {
            self.rotate()?;
            self.encode(records);
        }
        self.put(records)
    }

    fn encode(&mut self, records: &[Record]) {
        let salt = self.current().checksum;
        segment::encode_group(
            &mut self.buffer,
            salt,
            self.next_group,
            self.synced,
            records,
        );
    }

    /// Writes the encoded group, and zeros behind it when the prepared part is used up.
    fn put(&mut self, records: &[Record]) -> Result<u64, Fault> {
        let end = self.position + self.buffer.len() as u64;
        self.write_buffer(end)
            .map_err(|error| Fault::io("write to", &self.current().path, error))?;
        self.position = end;
        self.sealed = false;
        if self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = Vec::new();
        }
        for record in records {
            self.note(record);
        }
        let number = self.next_group;
        self.next_group += 1;
        Ok(number)
    }

    /// Writes the buffer, which ends there, and what is filled ahead.
    fn write_buffer(&mut self, end: u64) -> std::io::Result<()> {
        self.file.write_at(&self.buffer, self.position)?;
        if end > self.prepared {
            let ahead = (end + self.prepare_bytes()).min(self.options.segment_bytes);
            self.prepared = segment::to_sectors(ahead.max(end));
            self.file.write_zeros(end, self.prepared)?;
        }
        Ok(())
    }

    /// How far to fill a segment ahead. On a disk that is nearly full not at all: what is full of
    /// zeros is full, and the last space is for records.
    fn prepare_bytes(&self) -> u64 {
        let prepare = self.options.prepare_bytes;
        match self.disk.free_bytes(&self.dir) {
            Ok(free) if free >= PREPARE_PART * prepare => prepare,
            _ => 0,
        }
    }

    /// Remembers what the next segment restates.
    fn note(&mut self, record: &Record) {
        if let Some(entry) = record.entries.last() {
            self.last_index = entry.index;
        }
        if let Some(state) = record.hard_state {
            self.hard_state = Some(state);
        }
        if let Some(mark) = &record.mark {
            self.last_index = self.last_index.max(mark.index);
            self.mark = Some(mark.clone());
        }
    }

    fn sync_written(&mut self) -> Result<(), Fault> {
        if self.synced + 1 < self.next_group {
            self.file
                .sync_data()
                .map_err(|error| Fault::sync(&self.current().path, error))?;
            self.synced = self.next_group - 1;
        }
        Ok(())
    }

    /// Closes the current segment and starts the next one.
    fn rotate(&mut self) -> Result<(), Fault> {
        cut(&*self.file, &self.current().path, self.position)?;
        self.synced = self.next_group - 1;
        let closed = self
            .segments
            .last_mut()
            .expect("there is a current segment");
        closed.bytes = self.position;
        let header = segment::Header {
            identity: self.identity,
            incarnation: self.incarnation,
            segment: closed.number + 1,
            first_group: self.next_group,
            first_index: self.last_index + 1,
            previous: closed.checksum,
        };
        let (file, current) = create_segment(&*self.disk, &self.dir, self.options, &header)?;
        self.file = file;
        self.segments.push(current);
        self.position = SECTOR;
        self.prepared = SECTOR;
        self.restate()
    }

    /// Writes and syncs the first group of a segment.
    fn restate(&mut self) -> Result<(), Fault> {
        let record = Record {
            entries: Vec::new(),
            hard_state: self.hard_state,
            mark: self.mark.clone(),
        };
        let salt = self.current().checksum;
        let records = [record];
        segment::encode_group(
            &mut self.buffer,
            salt,
            self.next_group,
            self.synced,
            &records,
        );
        // Not prepared ahead: a start that writes nothing more leaves two sectors behind.
        self.prepared = self.position + self.buffer.len() as u64;
        self.put(&records)?;
        self.sync_written()
    }

    fn current(&self) -> &Segment {
        self.segments.last().expect("there is a current segment")
    }
}

fn create_segment(
    disk: &dyn Disk,
    dir: &Path,
    options: WalOptions,
    header: &segment::Header,
) -> Result<(Box<dyn File>, Segment), Fault> {
    let path = dir.join(format!("segment.{:016x}", header.segment));
    let file = match options.unbuffered {
        true => disk.create_unbuffered(&path),
        false => disk.create(&path),
    };
    let file = file.map_err(|error| Fault::io("create", &path, error))?;
    let (sector, checksum) = header.encode();
    file.write_at(&sector, 0)
        .map_err(|error| Fault::io("write to", &path, error))?;
    // The header alone: groups behind a header that is not durable could not be told from damage.
    file.sync_data()
        .map_err(|error| Fault::sync(&path, error))?;
    disk.sync_dir(dir)
        .map_err(|error| Fault::sync(dir, error))?;
    let segment = Segment {
        path,
        number: header.segment,
        first_index: header.first_index,
        checksum,
        bytes: SECTOR,
    };
    Ok((file, segment))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bytes::Bytes;

    use super::super::RealDisk;
    use super::*;

    const IDENTITY: Identity = Identity {
        cluster: 0xc1,
        server: 1,
        disk: 0xd1,
    };

    struct Home(tempfile::TempDir);

    impl Home {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn try_open(&self, start: WalStart) -> Result<(Wal, Replay), Fault> {
            let options = WalOptions {
                segment_bytes: 8 << 10,
                prepare_bytes: 2 << 10,
                ..WalOptions::default()
            };
            let disk = Arc::new(RealDisk);
            Wal::open(disk, self.0.path(), options, start, &mut |_, _| {})
        }

        fn open(&self) -> (Wal, Replay) {
            self.try_open(WalStart::new(IDENTITY)).unwrap()
        }

        /// The message of the refusal to open, with the directory's name left out.
        fn refusal(&self, start: WalStart) -> String {
            let Err(fault) = self.try_open(start) else {
                panic!("opened");
            };
            let dir = format!("{}", self.0.path().display());
            fault.to_string().replace(&dir, "DIR")
        }

        fn path(&self, segment: u64) -> PathBuf {
            self.0.path().join(format!("segment.{segment:016x}"))
        }

        fn edit(&self, segment: u64, edit: impl FnOnce(&mut Vec<u8>)) {
            let mut bytes = fs::read(self.path(segment)).unwrap();
            edit(&mut bytes);
            fs::write(self.path(segment), bytes).unwrap();
        }
    }

    fn entry(index: u64) -> Record {
        Record {
            entries: vec![LogEntry {
                term: 1,
                index,
                kind: 0,
                data: Bytes::from(vec![index as u8; 100]),
                context: Bytes::new(),
            }],
            ..Record::default()
        }
    }

    /// Writes one entry per group, each synced. The group of entry `i` is number `i + 1` and starts
    /// at byte `512 + 512 * i` of the first segment.
    fn write(wal: &mut Wal, indexes: std::ops::RangeInclusive<u64>) {
        for index in indexes {
            wal.write(&[entry(index)]).unwrap();
            wal.sync().unwrap();
        }
    }

    fn mark(index: u64, term: u64) -> SnapshotMark {
        SnapshotMark {
            index,
            term,
            membership: None,
        }
    }

    #[test]
    fn each_start_counts_and_replays() {
        let home = Home::new();
        let (mut wal, replay) = home.open();
        assert_eq!((replay.incarnation, replay.entries.len()), (1, 0));
        write(&mut wal, 1..=3);
        drop(wal);
        for incarnation in 2..5 {
            let (wal, replay) = home.open();
            assert_eq!(replay.incarnation, incarnation);
            assert_eq!(replay.entries.len(), 3);
            assert_eq!(replay.warnings, [""; 0]);
            assert_eq!(wal.last_index(), 3);
        }
    }

    #[test]
    fn starts_that_write_nothing_leave_two_sectors_each() {
        let home = Home::new();
        for _ in 0..10 {
            home.open();
        }
        let len = |segment| fs::metadata(home.path(segment)).unwrap().len();
        assert_eq!((1..=10).map(len).sum::<u64>(), 10 * 2 * SECTOR);
    }

    #[test]
    fn the_runs_that_a_start_must_read_are_counted() {
        let home = Home::new();
        let runs = |start| home.try_open(start).unwrap().1.runs;
        assert_eq!(runs(WalStart::new(IDENTITY)), 0);
        for run in 1..5 {
            let (mut wal, replay) = home.open();
            assert_eq!(replay.runs, run);
            write(&mut wal, run..=run);
        }
        assert_eq!(runs(WalStart::new(IDENTITY)), 5);
        // The snapshot's own entry was written by the last but two.
        let start = WalStart {
            snapshot: Some(mark(4, 1)),
            ..WalStart::new(IDENTITY)
        };
        assert_eq!(runs(start), 2);
    }

    #[test]
    fn segments_follow_each_other_and_go_when_a_snapshot_covers_them() {
        let home = Home::new();
        let (mut wal, _) = home.open();
        write(&mut wal, 1..=40);
        assert_eq!(wal.segment_count(), 3);
        wal.write(&[Record {
            mark: Some(mark(30, 1)),
            ..Record::default()
        }])
        .unwrap();
        wal.release_below(30).unwrap();
        assert_eq!(wal.segment_count(), 1);
        drop(wal);

        let mut start = WalStart::new(IDENTITY);
        start.snapshot = Some(mark(30, 1));
        let (_, replay) = home.try_open(start).unwrap();
        let indexes: Vec<u64> = replay.entries.iter().map(|entry| entry.index).collect();
        assert_eq!(indexes, (31..=40).collect::<Vec<u64>>());

        let refusal = home.refusal(WalStart::new(IDENTITY));
        assert!(
            refusal.starts_with(
                "the log in DIR starts at index 29, but the newest readable snapshot ends at 0 \
                 (0: there is none), so the writes between them are lost; if this server is one \
                 of several, empty its data and log directories and let it join again; if it is \
                 alone, restore a backup of both directories"
            ),
            "{refusal}"
        );
    }

    #[test]
    fn a_group_larger_than_a_segment_gets_one_of_its_own() {
        let home = Home::new();
        let (mut wal, _) = home.open();
        write(&mut wal, 1..=1);
        let mut large = entry(2);
        large.entries[0].data = Bytes::from(vec![7; 100_000]);
        wal.write(&[large.clone()]).unwrap();
        write(&mut wal, 3..=3);
        assert_eq!(wal.segment_count(), 3);
        drop(wal);
        let (_, replay) = home.open();
        assert_eq!(replay.entries[1], large.entries[0]);
        assert_eq!(replay.entries.len(), 3);
    }

    #[test]
    fn a_torn_tail_is_cut_with_a_warning() {
        let home = Home::new();
        let (mut wal, _) = home.open();
        write(&mut wal, 1..=3);
        drop(wal);
        home.edit(1, |bytes| bytes[4 * 512 + 30] ^= 1);
        let (_, replay) = home.open();
        assert_eq!(replay.entries.len(), 2);
        assert_eq!(replay.warnings.len(), 1);
        assert!(
            replay.warnings[0]
                .ends_with("at byte 2048: group 4 was not written whole before the last stop"),
            "{}",
            replay.warnings[0]
        );
        assert_eq!(fs::metadata(home.path(1)).unwrap().len(), 2048);
    }

    #[test]
    fn damage_before_a_later_group_is_corruption() {
        let home = Home::new();
        let (mut wal, _) = home.open();
        write(&mut wal, 1..=3);
        drop(wal);
        home.edit(1, |bytes| bytes[3 * 512 + 30] ^= 1);
        assert_eq!(
            home.refusal(WalStart::new(IDENTITY)),
            "DIR/segment.0000000000000001 is corrupt at byte 1536: group 3 was synced (the group \
             at byte 2048 was written after that) but is now damaged, and all acknowledged writes \
             from there on are lost with it; if this server is one of several, empty its data and \
             log directories and let it join again; if it is alone, restore a backup of both \
             directories"
        );
    }

    #[test]
    fn damage_before_a_seal_is_corruption() {
        let home = Home::new();
        let (mut wal, _) = home.open();
        write(&mut wal, 1..=3);
        wal.seal_if_idle().unwrap();
        assert_eq!(wal.last_group(), 5);
        wal.seal_if_idle().unwrap();
        assert_eq!(wal.last_group(), 5, "one seal is enough");
        drop(wal);
        home.edit(1, |bytes| bytes[4 * 512 + 30] ^= 1);
        let refusal = home.refusal(WalStart::new(IDENTITY));
        let expected = "corrupt at byte 2048: group 4 was synced (the group at byte 2560";
        assert!(refusal.contains(expected), "{refusal}");
    }

    #[test]
    fn damage_before_a_later_segment_is_corruption() {
        let home = Home::new();
        let (mut wal, _) = home.open();
        write(&mut wal, 1..=3);
        drop(wal);
        home.open();
        home.edit(1, |bytes| bytes[4 * 512 + 30] ^= 1);
        let refusal = home.refusal(WalStart::new(IDENTITY));
        let expected = "group 4 was synced (a later segment starts with group 5)";
        assert!(refusal.contains(expected), "{refusal}");
    }

    #[test]
    fn damage_after_a_clean_stop_is_corruption() {
        let home = Home::new();
        let (mut wal, _) = home.open();
        write(&mut wal, 1..=3);
        let mut start = WalStart::new(IDENTITY);
        start.last_group = Some(wal.last_group());
        drop(wal);
        home.edit(1, |bytes| bytes.truncate(4 * 512));
        let refusal = home.refusal(start);
        let expected = "group 4 was synced (the server stopped cleanly after group 4)";
        assert!(refusal.contains(expected), "{refusal}");
    }

    #[test]
    fn a_damaged_header_is_corruption_unless_a_snapshot_covers_it() {
        let home = Home::new();
        let (mut wal, _) = home.open();
        write(&mut wal, 1..=3);
        drop(wal);
        let (wal, _) = home.open();
        drop(wal);
        home.edit(1, |bytes| bytes[20] ^= 1);
        let refusal = home.refusal(WalStart::new(IDENTITY));
        assert!(
            refusal.starts_with(
                "DIR/segment.0000000000000001 is corrupt: its header is damaged, so its groups \
                 cannot be read; if this server is one of several"
            ),
            "{refusal}"
        );

        let mut start = WalStart::new(IDENTITY);
        start.snapshot = Some(mark(3, 1));
        let (mut wal, replay) = home.try_open(start).unwrap();
        assert_eq!(replay.warnings.len(), 1);
        assert!(replay.warnings[0].ends_with("is damaged; what it held is in the snapshot"));

        // It goes when no snapshot needs what it held, and nobody is warned of it any more.
        write(&mut wal, 4..=5);
        wal.release_below(3).unwrap();
        assert!(home.path(1).exists(), "entry 3 was in it");
        wal.release_below(4).unwrap();
        assert!(!home.path(1).exists());
        drop(wal);
        let mut start = WalStart::new(IDENTITY);
        start.snapshot = Some(mark(4, 1));
        let (_, replay) = home.try_open(start).unwrap();
        assert_eq!(replay.warnings, [""; 0]);
    }

    #[test]
    fn without_a_snapshot_the_first_mark_counts() {
        let home = Home::new();
        let (mut wal, _) = home.open();
        for index in [0, 2, 3] {
            if index > 0 {
                write(&mut wal, index..=index);
            }
            wal.write(&[Record {
                mark: Some(mark(index, u64::from(index > 0))),
                ..Record::default()
            }])
            .unwrap();
            if index == 0 {
                write(&mut wal, 1..=1);
            }
        }
        wal.sync().unwrap();
        drop(wal);
        // Not that of a snapshot which cannot be loaded; and with one, that one's, if it is there.
        for (snapshot, expected) in [(3, 3), (2, 2), (0, 0)] {
            let mut start = WalStart::new(IDENTITY);
            start.snapshot = (snapshot > 0).then(|| mark(snapshot, 1));
            let (_, replay) = home.try_open(start).unwrap();
            assert_eq!(replay.mark.unwrap().index, expected);
        }
    }

    #[test]
    fn a_segment_that_was_never_used_is_removed() {
        let home = Home::new();
        drop(home.open());
        fs::write(home.path(2), vec![0; 700]).unwrap();
        let (_, replay) = home.open();
        assert!(replay.warnings[0].ends_with("segment.0000000000000002, which was never used"));
        assert_eq!(replay.incarnation, 2);
    }

    #[test]
    fn a_missing_segment_is_noticed() {
        let home = Home::new();
        let (mut wal, _) = home.open();
        write(&mut wal, 1..=40);
        assert_eq!(wal.segment_count(), 3);
        drop(wal);
        fs::remove_file(home.path(2)).unwrap();
        let refusal = home.refusal(WalStart::new(IDENTITY));
        assert!(
            refusal.contains("the log in DIR starts at index 29"),
            "{refusal}"
        );
        fs::rename(home.path(3), home.path(2)).unwrap();
        let refusal = home.refusal(WalStart::new(IDENTITY));
        assert!(
            refusal.starts_with(
                "a part of the log in DIR is missing: segment 2 does not continue the one before \
                 it; if this"
            ),
            "{refusal}"
        );
    }

    #[test]
    fn a_lost_log_is_noticed_by_what_is_remembered_elsewhere() {
        let home = Home::new();
        let mut start = WalStart::new(IDENTITY);
        start.incarnation = Some(4);
        assert!(
            home.refusal(start.clone()).starts_with(
                "the log in DIR is missing or older than when the server last ran (the newest \
                 segment is of start 0, but start 4 was); if it is on a disk of its own, mount \
                 that; otherwise, if this server"
            ),
            "{}",
            home.refusal(start)
        );
        let mut start = WalStart::new(IDENTITY);
        start.last_group = Some(9);
        let refusal = home.refusal(start);
        assert!(
            refusal.contains("(nothing is left of 9 groups)"),
            "{refusal}"
        );
    }

    #[test]
    fn the_log_of_another_server_is_refused() {
        let home = Home::new();
        drop(home.open());
        let refusal = |edit: fn(&mut Identity)| {
            let mut identity = IDENTITY;
            edit(&mut identity);
            home.refusal(WalStart::new(identity))
        };
        assert_eq!(
            refusal(|identity| identity.server = 2),
            "DIR/segment.0000000000000001 belongs to server 1, but this is server 2; set dataDir \
             and myid to what belongs together"
        );
        assert_eq!(
            refusal(|identity| identity.cluster = 5),
            "DIR/segment.0000000000000001 is of cluster 00000000000000c1, but the rest of the data \
             is of 0000000000000005; data and log directories of different servers are mixed: set \
             dataDir and dataLogDir to what belongs together"
        );
        let refusal = refusal(|identity| identity.disk = 5);
        assert!(refusal.contains("is of disk 00000000000000d1"), "{refusal}");
    }

    #[test]
    fn what_is_no_segment_of_this_format_is_refused() {
        let home = Home::new();
        drop(home.open());
        let original = fs::read(home.path(1)).unwrap();
        home.edit(1, |bytes| {
            bytes[..10].copy_from_slice(b"ZKLG\0\0\0\x02\0\0")
        });
        assert_eq!(
            home.refusal(WalStart::new(IDENTITY)),
            "DIR/segment.0000000000000001 is not a zkraft file (it starts with \
             \"ZKLG\\x00\\x00\\x00\\x02\"); move it out of the directory"
        );

        // A later format, with a right checksum.
        fs::write(home.path(1), original).unwrap();
        home.edit(1, |bytes| {
            bytes[8] = 2;
            let checksum = crc32c::crc32c(&bytes[..508]);
            bytes[508..512].copy_from_slice(&checksum.to_le_bytes());
        });
        assert_eq!(
            home.refusal(WalStart::new(IDENTITY)),
            "DIR/segment.0000000000000001 has format 2, and this zkraft knows formats up to 1; \
             start the newer zkraft that wrote it"
        );
    }

    #[test]
    fn an_impossible_record_is_refused() {
        let home = Home::new();
        let (mut wal, _) = home.open();
        write(&mut wal, 1..=2);
        write(&mut wal, 9..=9);
        drop(wal);
        let refusal = home.refusal(WalStart::new(IDENTITY));
        assert!(
            refusal.starts_with(
                "DIR/segment.0000000000000001 has an impossible record at byte 2048: entry 9 where \
                 one of 1 to 3 is expected; if this"
            ),
            "{refusal}"
        );
    }

    /// Its checksum is right, so it was written like this.
    #[test]
    fn a_header_that_counts_what_cannot_be_is_refused() {
        for impossible in [0, u64::MAX] {
            // Incarnation, segment, first group, first index.
            for field in [32, 40, 48, 56] {
                let home = Home::new();
                home.open();
                home.edit(1, |bytes| {
                    bytes[field..field + 8].copy_from_slice(&impossible.to_le_bytes());
                    let sum = crc32c::crc32c(&bytes[..508]);
                    bytes[508..512].copy_from_slice(&sum.to_le_bytes());
                });
                let refusal = home.refusal(WalStart::new(IDENTITY));
                let expected = "segment.0000000000000001 has an impossible record at byte 0: a \
                                header that counts";
                assert!(refusal.contains(expected), "{refusal}");
            }
        }
    }

    #[test]
    fn a_mark_beyond_all_counting_is_refused() {
        let home = Home::new();
        let (wal, _) = home.open();
        let record = Record {
            mark: Some(mark(u64::MAX, 1)),
            ..Record::default()
        };
        // Written without the log's own bookkeeping, which counts on from it.
        let mut group = Vec::new();
        segment::encode_group(&mut group, wal.current().checksum, 2, 1, &[record]);
        wal.file.write_at(&group, wal.position).unwrap();
        drop(wal);
        let refusal = home.refusal(WalStart::new(IDENTITY));
        assert!(
            refusal.contains("a snapshot that ends at 18446744073709551615"),
            "{refusal}"
        );
    }

    /// Taken as it is, it would leave a hole once the mark is written again.
    #[test]
    fn an_entry_that_a_snapshot_contains_cannot_be_replaced() {
        let home = Home::new();
        let (mut wal, _) = home.open();
        write(&mut wal, 1..=4);
        let record = Record {
            mark: Some(mark(3, 1)),
            ..Record::default()
        };
        wal.write(&[record, entry(3)]).unwrap();
        wal.sync().unwrap();
        drop(wal);
        let refusal = home.refusal(WalStart::new(IDENTITY));
        assert!(
            refusal.contains("entry 3 where one of 4 to 5 is expected"),
            "{refusal}"
        );
    }

    #[test]
    fn nothing_is_written_after_a_failure() {
        struct Broken;

        impl File for Broken {
            fn read_at(&self, _: &mut [u8], _: u64) -> std::io::Result<usize> {
                Ok(0)
            }
            fn write_at(&self, _: &[u8], _: u64) -> std::io::Result<()> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn len(&self) -> std::io::Result<u64> {
                Ok(0)
            }
            fn set_len(&self, _: u64) -> std::io::Result<()> {
                Ok(())
            }
            fn sync_data(&self) -> std::io::Result<()> {
                Ok(())
            }
        }

        let home = Home::new();
        let (mut wal, _) = home.open();
        wal.file = Box::new(Broken);
        let fault = wal.write(&[entry(1)]).unwrap_err();
        assert!(fault.is_disk_full());
        let message = fault.to_string();
        assert!(message.contains("the disk is full"), "{message}");
        assert!(
            message.ends_with("free some space and start again"),
            "{message}"
        );
        let stopped = "the log has stopped after an earlier write or sync failure";
        assert_eq!(wal.write(&[entry(1)]).unwrap_err().to_string(), stopped);
        assert_eq!(wal.sync().unwrap_err().to_string(), stopped);
        assert_eq!(wal.seal_if_idle().unwrap_err().to_string(), stopped);
    }

    /// The format is a promise to later versions: these bytes stay readable.
    #[test]
    fn golden_bytes_of_a_segment() {
        let home = Home::new();
        let (mut wal, _) = home.open();
        wal.write(&[entry(1)]).unwrap();
        wal.sync().unwrap();
        drop(wal);
        let bytes = fs::read(home.path(1)).unwrap();
        let hex = |range: std::ops::Range<usize>| -> String {
            bytes[range]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect()
        };
        assert_eq!(
            hex(0..72),
            "7a6b726166744c470100000001000000c100000000000000d100000000000000\
             0100000000000000010000000000000001000000000000000100000000000000\
             0000000000000000"
        );
        assert_eq!(
            hex(508..537),
            "e3bf0de80100000000000000000000000000000001000000fe90329100"
        );
        assert_eq!(
            hex(1024..1062),
            "020000000000000001000000000000006d000000194ce8346c0a6a0801100122640101010101"
        );
    }
}

//! The write-ahead log: segments in a row.
//!
//! [`Wal`] writes groups of records, syncs them, and replays them after a restart. It holds no thread
//! and no clock, and it knows the file system only as a [`Disk`], so the simulator runs this very
//! code over a disk that loses and damages what it may.
//!
//! What holds after a crash:
//!
//! * Each start makes a new segment and syncs its header before [`Wal::open`] returns, so that the
//!   number of the start (the incarnation) is never used twice.
//! * Each segment begins with a group that restates the hard state and the newest snapshot mark,
//!   synced before anything else is written to it, so that the segments before it may go.
//! * Replay gives a prefix of what was written, and all of what was synced.
//! * A group that cannot be read is cut off as a torn tail only if nothing proves that it was synced
//!   once. Proofs are: a later group of the same segment that says so, a later segment, the mark of a
//!   clean stop. Otherwise the log is corrupt, and opening fails rather than lose writes.
//!
//! What cannot be told: if the very last group was synced, nothing was written after it, and it then
//! rots *before* a seal or a next start reaches the disk, it looks like a torn tail and is cut with
//! a warning. The same holds if one fault destroys a group together with every proof behind it. A
//! single disk cannot do better; a cluster holds the group on other members.
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

/// Sizes of the files.
#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// A segment that would grow past this is followed by a new one. One group may be larger.
    pub segment_bytes: u64,
    /// How far ahead of the writes a segment is filled with zeros, so that most syncs have no
    /// file size to write. Segments start empty and grow in these steps: many short starts
    /// leave little behind.
    pub prepare_bytes: u64,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            prepare_bytes: 1 << 20,
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
    /// The last mark written.
    pub mark: Option<SnapshotMark>,
    /// The entries after the snapshot, without holes.
    pub entries: Vec<LogEntry>,
    /// Number of the last group found; 0 in a new log.
    pub last_group: u64,
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
    /// Replays the log in `dir` and starts a new segment. `progress` is told how many bytes have been
    /// read and how many there are.
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
        let (file, current) = create_segment(&*disk, dir, &header)?;
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
            mark: past.mark,
            entries: past.entries,
            last_group: past.next_group - 1,
            warnings: past.warnings,
        };
        Ok((wal, replay))
    }

    /// Whose log `dir` holds, as the newest readable segment says.
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

    /// Removes the segments that hold no entry of the log at or above `index`. The caller has a durable
    /// snapshot at `index - 1` or later.
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
        if end > self.prepared {
            let ahead = (end + self.options.prepare_bytes).min(self.options.segment_bytes);
            self.prepared = segment::to_sectors(ahead.max(end));
            self.buffer
                .resize((self.prepared - self.position) as usize, 0);
        }
        self.file
            .write_at(&self.buffer, self.position)
            .map_err(|error| Fault::io("write to", &self.current().path, error))?;
        self.position = end;
        self.sealed = false;
        for record in records {
            self.note(record);
        }
        let number = self.next_group;
        self.next_group += 1;
        Ok(number)
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
        let (file, current) = create_segment(&*self.disk, &self.dir, &header)?;
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
    header: &segment::Header,
) -> Result<(Box<dyn File>, Segment), Fault> {
    let path = dir.join(format!("segment.{:016x}", header.segment));
    let file = disk
        .create(&path)
        .map_err(|error| Fault::io("create", &path, error))?;
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

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
use super::segment::{self, HeaderFound, SECTOR};
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

struct Segment {
    path: PathBuf,
    number: u64,
    first_index: u64,
    /// Of the header.
    checksum: u32,
    bytes: u64,
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
        let mut warnings = Vec::new();
        let found = find_segments(&*disk, dir, &mut warnings)?;
        check_identity(&found.segments, start.identity)?;
        let last_incarnation = found.segments.last().map_or(0, |s| s.header.incarnation);
        if let Some(known) = start.incarnation
            && last_incarnation < known
        {
            return Err(Fault::LogLost {
                dir: dir.to_owned(),
                detail: format!("last start found: {last_incarnation}, last start known: {known}"),
            });
        }

        let after = start.snapshot.as_ref().map_or(0, |mark| mark.index);
        let mut tail = Tail::new(after);
        let next_group = replay(
            &*disk,
            dir,
            &found,
            &start,
            &mut tail,
            &mut warnings,
            progress,
        )?;
        if let Some(mark) = &start.snapshot {
            tail.mark(mark);
        }
        let (last_index, entries) = tail.finish(dir, found.broken.as_deref())?;
        if let Some(path) = &found.broken {
            warnings.push(format!(
                "the header of {} is damaged; what it held is in the snapshot",
                path.display()
            ));
        }
        let hard_state = tail.hard_state;
        let newest = tail.newest_mark;

        let mut segments: Vec<Segment> = Vec::new();
        for candidate in found.segments {
            segments.push(Segment {
                bytes: candidate.len,
                path: candidate.path,
                number: candidate.header.segment,
                first_index: candidate.header.first_index,
                checksum: candidate.checksum,
            });
        }
        let incarnation = last_incarnation.max(start.incarnation.unwrap_or(0)) + 1;
        let header = segment::Header {
            identity: start.identity,
            incarnation,
            segment: segments.last().map_or(0, |s| s.number) + 1,
            first_group: next_group,
            first_index: last_index + 1,
            previous: segments.last().map_or(0, |s| s.checksum),
        };
        let (file, current) = create_segment(&*disk, dir, &header)?;
        segments.push(current);

        let mut wal = Self {
            disk,
            dir: dir.to_owned(),
            options,
            identity: start.identity,
            incarnation,
            segments,
            stale: found.stale,
            file,
            position: SECTOR,
            prepared: SECTOR,
            next_group,
            synced: next_group - 1,
            sealed: false,
            last_index,
            hard_state,
            mark: start.snapshot.or_else(|| newest.clone()),
            buffer: Vec::new(),
            failed: false,
        };
        wal.restate()?;
        let replay = Replay {
            incarnation,
            hard_state,
            mark: newest,
            entries,
            warnings,
        };
        Ok((wal, replay))
    }

    /// Whose log `dir` holds, as the newest readable segment says.
    ///
    /// # Errors
    /// As [`Wal::open`], as far as headers go.
    pub fn identity_in(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, Fault> {
        let mut newest = None;
        for (_, path) in segment_names(disk, dir)? {
            let file = open_file(disk, &path)?;
            if let HeaderFound::Valid(header, _) = segment::read_header(&*file, &path)? {
                newest = Some(header.identity);
            }
        }
        Ok(newest)
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

/// A segment with a valid header.
struct Candidate {
    path: PathBuf,
    len: u64,
    header: segment::Header,
    checksum: u32,
}

/// The segments of a directory.
struct Found {
    /// Those that follow each other up to the newest.
    segments: Vec<Candidate>,
    /// Older ones before a hole: left by an interrupted release.
    stale: Vec<PathBuf>,
    /// The newest of those whose header cannot be read.
    broken: Option<PathBuf>,
}

/// Finds the segments, oldest first, and removes a newest one that was never used.
fn find_segments(disk: &dyn Disk, dir: &Path, warnings: &mut Vec<String>) -> Result<Found, Fault> {
    let mut found = Found {
        segments: Vec::new(),
        stale: Vec::new(),
        broken: None,
    };
    let names = segment_names(disk, dir)?;
    let newest = names.last().map(|(number, _)| *number);
    for (number, path) in names {
        let file = open_file(disk, &path)?;
        match segment::read_header(&*file, &path)? {
            HeaderFound::Valid(header, checksum) => {
                let len = file
                    .len()
                    .map_err(|error| Fault::io("read the length of", &path, error))?;
                let follows = found.segments.last().is_none_or(|last| {
                    last.header.segment + 1 == number && last.checksum == header.previous
                });
                if header.segment != number {
                    let dir = dir.to_owned();
                    return Err(Fault::BrokenChain {
                        dir,
                        segment: number,
                    });
                }
                if !follows {
                    let stale = found.segments.drain(..).map(|candidate| candidate.path);
                    found.stale.extend(stale);
                }
                found.segments.push(Candidate {
                    path,
                    len,
                    header,
                    checksum,
                });
            }
            HeaderFound::Unused if Some(number) == newest => {
                // A crash while it was made.
                remove(disk, &path)?;
                disk.sync_dir(dir)
                    .map_err(|error| Fault::sync(dir, error))?;
                warnings.push(format!("removed {}, which was never used", path.display()));
            }
            HeaderFound::Unused | HeaderFound::Damaged if Some(number) == newest => {
                return Err(Fault::CorruptHeader { path });
            }
            HeaderFound::Unused | HeaderFound::Damaged => {
                let stale = found.segments.drain(..).map(|candidate| candidate.path);
                found.stale.extend(stale);
                found.broken = Some(path);
            }
        }
    }
    if found.segments.is_empty()
        && let Some(path) = found.broken
    {
        return Err(Fault::CorruptHeader { path });
    }
    Ok(found)
}

/// Numbers and paths of the segment files, oldest first.
fn segment_names(disk: &dyn Disk, dir: &Path) -> Result<Vec<(u64, PathBuf)>, Fault> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| Fault::io("list", dir, error))?,
    };
    let mut segments: Vec<(u64, PathBuf)> = names
        .iter()
        .filter_map(|name| {
            let digits = name.strip_prefix("segment.")?;
            let number = u64::from_str_radix(digits, 16).ok()?;
            (digits.len() == 16).then(|| (number, dir.join(name)))
        })
        .collect();
    segments.sort_unstable();
    Ok(segments)
}

fn check_identity(segments: &[Candidate], expected: Identity) -> Result<(), Fault> {
    for candidate in segments {
        let found = candidate.header.identity;
        let path = &candidate.path;
        expected.check(path, found.cluster, Some((found.server, found.disk)))?;
    }
    Ok(())
}

/// Reads the segments that matter into `tail`, cuts a torn tail, and returns the number of the next
/// group.
fn replay(
    disk: &dyn Disk,
    dir: &Path,
    found: &Found,
    start: &WalStart,
    tail: &mut Tail,
    warnings: &mut Vec<String>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<u64, Fault> {
    let segments = &found.segments;
    let Some(oldest) = segments.first() else {
        if start.last_group.is_some() {
            return Err(Fault::LogLost {
                dir: dir.to_owned(),
                detail: "no segment is left".to_owned(),
            });
        }
        return Ok(1);
    };
    // The snapshot's own entry is read too, if it is there: its term tells whether what follows it in
    // the log belongs to the snapshot.
    let mut first = segments
        .iter()
        .rposition(|candidate| candidate.header.first_index <= tail.after)
        .unwrap_or(0);
    // A segment whose making was interrupted does not restate the hard state: start before it.
    while first > 0 && !has_group(disk, &segments[first])? {
        first -= 1;
    }
    if first == 0 && oldest.header.segment > 1 && !has_group(disk, oldest)? {
        return Err(Fault::BrokenChain {
            dir: dir.to_owned(),
            segment: oldest.header.segment,
        });
    }
    tail.limit = segments[first].header.first_index;

    let mut total = 0;
    for candidate in &segments[first..] {
        total += candidate.len;
    }
    let mut done = 0;
    let mut next_group = segments[first].header.first_group;
    for (position, candidate) in segments.iter().enumerate().skip(first) {
        let file = open_file(disk, &candidate.path)?;
        let end = segment::scan(
            &*file,
            &candidate.path,
            &candidate.header,
            candidate.checksum,
            |group| {
                progress(done + group.offset, total);
                let applied = group.records.into_iter().try_for_each(|r| tail.apply(r));
                applied.map_err(|reason| Fault::ImpossibleRecord {
                    path: candidate.path.clone(),
                    offset: group.offset,
                    reason,
                })
            },
        )?;
        next_group = end.next_group;
        let later = segments.get(position + 1);
        if let Some(proof) = proof_of_sync(&end, later, start) {
            return Err(Fault::CorruptLog {
                path: candidate.path.clone(),
                offset: end.offset,
                group: end.next_group,
                proof,
            });
        }
        done += candidate.len;
        progress(done, total);
        if later.is_none() {
            if end.dirty {
                warnings.push(format!(
                    "cut a torn tail of {} at byte {}: group {} was not written whole before the \
                     last stop",
                    candidate.path.display(),
                    end.offset,
                    end.next_group
                ));
            }
            // Also what was written but not synced before the stop is built upon from now on.
            cut(&*file, &candidate.path, end.offset)?;
        }
    }
    Ok(next_group)
}

/// How it is known that the group at the end of a segment's valid part was synced, if it is.
fn proof_of_sync(
    end: &segment::End,
    later: Option<&Candidate>,
    start: &WalStart,
) -> Option<String> {
    if let Some(later) = later {
        let first = later.header.first_group;
        return (first != end.next_group)
            .then(|| format!("a later segment starts with group {first}"));
    }
    if let Some(last) = start.last_group
        && last >= end.next_group
    {
        return Some(format!("the server stopped cleanly after group {last}"));
    }
    match end.proof {
        Some((synced, offset)) if synced >= end.next_group => {
            Some(format!("the group at byte {offset} was written after that"))
        }
        _ => None,
    }
}

fn has_group(disk: &dyn Disk, candidate: &Candidate) -> Result<bool, Fault> {
    let file = open_file(disk, &candidate.path)?;
    segment::has_group(
        &*file,
        &candidate.path,
        &candidate.header,
        candidate.checksum,
    )
}

/// The log as replay builds it up.
struct Tail {
    /// Entries up to here are in the snapshot; their data is not kept.
    after: u64,
    /// Index before the first entry held, once it is known.
    base: Option<u64>,
    /// While it is not: the highest index that the first entry may have.
    limit: u64,
    entries: Vec<LogEntry>,
    hard_state: Option<HardState>,
    newest_mark: Option<SnapshotMark>,
}

impl Tail {
    fn new(after: u64) -> Self {
        Self {
            after,
            base: None,
            limit: 1,
            entries: Vec::new(),
            hard_state: None,
            newest_mark: None,
        }
    }

    fn apply(&mut self, record: Record) -> Result<(), String> {
        for entry in record.entries {
            self.push(entry)?;
        }
        if let Some(state) = record.hard_state {
            self.hard_state = Some(state);
        }
        if let Some(mark) = record.mark {
            self.mark(&mark);
            self.newest_mark = Some(mark);
        }
        Ok(())
    }

    /// Appends an entry; one that has the index of an earlier one replaces it and all after it.
    fn push(&mut self, mut entry: LogEntry) -> Result<(), String> {
        let index = entry.index;
        let next = self
            .base
            .map_or(self.limit, |base| base + self.entries.len() as u64 + 1);
        let lowest = self.base.map_or(1, |base| base + 1);
        if index < lowest || index > next {
            return Err(format!(
                "entry {index} where one of {lowest} to {next} is expected"
            ));
        }
        let base = *self.base.get_or_insert(index - 1);
        self.entries.truncate((index - base - 1) as usize);
        if let Some(last) = self.entries.last()
            && last.term > entry.term
        {
            let (term, before) = (entry.term, last.term);
            return Err(format!(
                "entry {index} of term {term} follows one of term {before}"
            ));
        }
        if index <= self.after {
            entry.data.clear();
            entry.context.clear();
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Takes note of a snapshot: what does not continue it is dropped.
    fn mark(&mut self, mark: &SnapshotMark) {
        let Some(base) = self.base else {
            self.limit = self.limit.max(mark.index + 1);
            return;
        };
        if mark.index <= base {
            return;
        }
        let own = self.entries.get((mark.index - base - 1) as usize);
        if own.is_none_or(|entry| entry.term != mark.term) {
            self.entries.clear();
            self.base = Some(mark.index);
        }
    }

    /// The index of the last entry, and the entries after the snapshot.
    fn finish(&mut self, dir: &Path, broken: Option<&Path>) -> Result<(u64, Vec<LogEntry>), Fault> {
        let first = self.base.map_or(self.limit, |base| base + 1);
        if first > self.after + 1 {
            return Err(match broken {
                Some(path) => Fault::CorruptHeader {
                    path: path.to_owned(),
                },
                None => Fault::LogGap {
                    dir: dir.to_owned(),
                    snapshot: self.after,
                    first,
                },
            });
        }
        let last = first - 1 + self.entries.len() as u64;
        let covered = (self.after + 1 - first).min(self.entries.len() as u64) as usize;
        Ok((last.max(self.after), self.entries.split_off(covered)))
    }
}

fn open_file(disk: &dyn Disk, path: &Path) -> Result<Box<dyn File>, Fault> {
    disk.open(path)
        .map_err(|error| Fault::io("open", path, error))
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

fn cut(file: &dyn File, path: &Path, len: u64) -> Result<(), Fault> {
    file.set_len(len)
        .map_err(|error| Fault::io("cut", path, error))?;
    file.sync_data().map_err(|error| Fault::sync(path, error))
}

fn remove(disk: &dyn Disk, path: &Path) -> Result<(), Fault> {
    match disk.remove(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| Fault::io("remove", path, error)),
    }
}

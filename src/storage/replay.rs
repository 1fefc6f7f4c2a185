//! Reading the log back: which segments count, which groups, which entries.
//!
//! [`find_segments`] picks the segments that follow each other up to the newest, [`scan_into`]
//! reads the ones that matter into a [`Tail`], which holds the log as Raft sees it. What is damaged
//! is judged here, by the rules at the head of `wal.rs`.

use std::path::{Path, PathBuf};

use super::disk::{Disk, File};
use super::fault::Fault;
use super::segment::{self, HeaderFound, NUMBER_MAX, SECTOR};
use super::wal::{Segment, WalStart};
use super::{Identity, Warnings};
use crate::proto::log::{HardState, LogEntry, Record, SnapshotMark};

/// What is left of the runs before.
pub(super) struct Past {
    /// Those that follow each other up to the newest.
    pub segments: Vec<Segment>,
    /// Older ones before a hole: left by an interrupted release.
    pub stale: Vec<PathBuf>,
    /// Number of the last start; 0: there was none.
    pub incarnation: u64,
    pub next_group: u64,
    /// Of the last entry, or of the snapshot if that is later.
    pub last_index: u64,
    pub hard_state: Option<HardState>,
    /// The last mark written.
    pub mark: Option<SnapshotMark>,
    /// The last mark written of those that are not after the snapshot.
    pub base_mark: Option<SnapshotMark>,
    /// The entries after the snapshot.
    pub entries: Vec<LogEntry>,
    /// How many runs wrote what a start must read.
    pub runs: u64,
    pub warnings: Vec<String>,
}

/// Reads the log in `dir`. A torn tail is cut, and what is left is synced: from here on it is
/// built upon.
///
/// # Errors
/// As [`super::Wal::open`].
pub(super) fn read(
    disk: &dyn Disk,
    dir: &Path,
    start: &WalStart,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Past, Fault> {
    let mut warnings = Warnings::default();
    let found = find_segments(disk, dir, &mut warnings)?;
    for candidate in &found.segments {
        let identity = candidate.header.identity;
        let own = Some((identity.server, identity.disk));
        start
            .identity
            .check(&candidate.path, identity.cluster, own)?;
    }
    let incarnation = found.segments.last().map_or(0, |s| s.header.incarnation);
    if let Some(known) = start.incarnation
        && incarnation < known
    {
        return Err(Fault::LogLost {
            dir: dir.to_owned(),
            detail: format!("the newest segment is of start {incarnation}, but start {known} was"),
        });
    }

    let mut tail = Tail::new(start.snapshot.as_ref().map_or(0, |mark| mark.index));
    let mut runs = 0;
    let newest = match (found.segments.last(), start.last_group) {
        (None, Some(last)) => {
            return Err(Fault::LogLost {
                dir: dir.to_owned(),
                detail: format!("nothing is left of {last} groups"),
            });
        }
        (None, None) => None,
        (Some(_), _) => {
            let needed = first_needed(disk, &found, tail.after)?;
            runs = incarnation - needed[0].header.incarnation + 1;
            Some(scan_into(&mut tail, disk, needed, start, progress)?)
        }
    };
    if let Some(mark) = &start.snapshot {
        tail.mark(mark);
    }
    let (last_index, entries) = tail.finish(dir, found.broken.as_deref())?;
    if let Some(path) = &found.broken {
        warnings.add(format!(
            "the header of {} is damaged; what it held is in the snapshot",
            path.display()
        ));
    }

    // All is well: only now is anything changed.
    let segment = |candidate: Candidate| Segment {
        path: candidate.path,
        number: candidate.header.segment,
        first_index: candidate.header.first_index,
        checksum: candidate.checksum,
        bytes: candidate.len,
    };
    // It goes when the one behind it is the first that is needed, as any other does: what is in it
    // the snapshot has, but it also tells that something was there.
    let broken = found.broken.map(|path| Segment {
        path,
        number: 0,
        first_index: 0,
        checksum: 0,
        bytes: 0,
    });
    let whole = found.segments.into_iter().map(segment);
    let mut segments: Vec<Segment> = broken.into_iter().chain(whole).collect();
    let mut next_group = 1;
    if let (Some(last), Some(end)) = (segments.last_mut(), newest) {
        if end.dirty {
            warnings.add(format!(
                "cut a torn tail of {} at byte {}: group {} was not written whole before the \
                 last stop",
                last.path.display(),
                end.offset,
                end.next_group
            ));
        }
        let restated = Record {
            entries: Vec::new(),
            hard_state: tail.hard_state,
            mark: tail.newest_mark.clone(),
        };
        next_group = settle(disk, last, &end, restated)?;
        // Its name too: the next segment's must not be durable first.
        disk.sync_dir(dir)
            .map_err(|error| Fault::sync(dir, error))?;
    }
    Ok(Past {
        segments,
        stale: found.stale,
        incarnation,
        next_group,
        last_index,
        hard_state: tail.hard_state,
        mark: tail.newest_mark,
        base_mark: tail.base_mark,
        entries,
        runs,
        warnings: warnings.0,
    })
}

/// Whose log `dir` holds, as the newest readable segment says; `None` if no segment was ever used.
///
/// # Errors
/// As [`read`], as far as headers go.
pub(super) fn identity(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, Fault> {
    let mut damaged = None;
    for (_, path) in segment_names(disk, dir)?.into_iter().rev() {
        let file = open_file(disk, &path)?;
        match segment::read_header(&*file, &path)? {
            HeaderFound::Valid(header, _) => return Ok(Some(header.identity)),
            HeaderFound::Damaged => damaged = damaged.or(Some(path)),
            HeaderFound::Unused => {}
        }
    }
    match damaged {
        Some(path) => Err(Fault::CorruptHeader { path }),
        None => Ok(None),
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
fn find_segments(disk: &dyn Disk, dir: &Path, warnings: &mut Warnings) -> Result<Found, Fault> {
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
                warnings.add(format!("removed {}, which was never used", path.display()));
            }
            HeaderFound::Unused | HeaderFound::Damaged if Some(number) == newest => {
                return Err(Fault::CorruptHeader { path });
            }
            HeaderFound::Unused | HeaderFound::Damaged => {
                let stale = found.segments.drain(..).map(|candidate| candidate.path);
                found.stale.extend(stale);
                found.stale.extend(found.broken.replace(path));
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

/// Reads these segments, at least one, into `tail` and returns how the newest ends.
fn scan_into(
    tail: &mut Tail,
    disk: &dyn Disk,
    segments: &[Candidate],
    start: &WalStart,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<segment::End, Fault> {
    let first = &segments[0].header;
    tail.limit = first.first_index;
    let mut newest = None;
    let total = segments.iter().map(|candidate| candidate.len).sum();
    let mut done = 0;
    for (position, candidate) in segments.iter().enumerate() {
        let Candidate {
            path,
            header,
            checksum,
            ..
        } = candidate;
        if position > 0 {
            tail.begin_segment(header.first_index)
                .map_err(|reason| Fault::ImpossibleRecord {
                    path: path.clone(),
                    offset: 0,
                    reason,
                })?;
        }
        let file = open_file(disk, path)?;
        let end = segment::scan(&*file, path, header, *checksum, |group| {
            progress(done + group.offset, total);
            let mut records = group.records;
            let applied = records.try_for_each(|record| tail.apply(record?));
            applied.map_err(|reason| Fault::ImpossibleRecord {
                path: path.clone(),
                offset: group.offset,
                reason,
            })
        })?;
        done += candidate.len;
        progress(done, total);
        let later = segments.get(position + 1);
        if let Some(proof) = proof_of_sync(&end, later, start) {
            return Err(Fault::CorruptLog {
                path: path.clone(),
                offset: end.offset,
                group: end.next_group,
                proof,
            });
        }
        newest = Some(end);
    }
    Ok(newest.expect("at least one segment is needed"))
}

/// Makes durable what was found in the newest segment, because it is built upon from now on, and
/// cuts what is behind.
///
/// If the last run ended with a failed sync, the kernel may show what it never wrote and believes
/// to be clean, and a sync alone would not write it. So everything that nothing says was synced is
/// written again first; on any disk that did hold it, these are the same bytes.
///
/// If the segment got no group at all before the stop, it gets its first one now: no older segment
/// may go before a newer one restates what it says. Returns the number of the next group.
fn settle(
    disk: &dyn Disk,
    newest: &mut Segment,
    end: &segment::End,
    restated: Record,
) -> Result<u64, Fault> {
    let path = &newest.path;
    let file = open_file(disk, path)?;
    rewrite(&*file, path, 0, SECTOR)?;
    rewrite(&*file, path, end.unproven, end.offset)?;
    cut(&*file, path, end.offset)?;
    newest.bytes = end.offset;
    if end.offset > SECTOR {
        return Ok(end.next_group);
    }
    let number = end.next_group;
    let mut group = Vec::new();
    segment::encode_group(&mut group, newest.checksum, number, number - 1, &[restated]);
    file.write_at(&group, SECTOR)
        .map_err(|error| Fault::io("write to", path, error))?;
    file.sync_data().map_err(|error| Fault::sync(path, error))?;
    newest.bytes += group.len() as u64;
    Ok(number + 1)
}

/// Writes the bytes from `from` to `to` as they are.
fn rewrite(file: &dyn File, path: &Path, mut from: u64, to: u64) -> Result<(), Fault> {
    let mut buffer = vec![0; to.saturating_sub(from).min(1 << 20) as usize];
    while from < to {
        let len = (to - from).min(buffer.len() as u64) as usize;
        let part = &mut buffer[..len];
        let got = file
            .read_at(part, from)
            .map_err(|error| Fault::io("read", path, error))?;
        if got == 0 {
            break;
        }
        file.write_at(&part[..got], from)
            .map_err(|error| Fault::io("write to", path, error))?;
        from += got as u64;
    }
    Ok(())
}

/// The segments from the one on that holds the snapshot's own entry, if it is there: its term tells
/// whether what follows it in the log belongs to the snapshot.
fn first_needed<'a>(
    disk: &dyn Disk,
    found: &'a Found,
    after: u64,
) -> Result<&'a [Candidate], Fault> {
    let segments = &found.segments;
    let mut first = segments
        .iter()
        .rposition(|candidate| candidate.header.first_index <= after)
        .unwrap_or(0);
    // A segment whose making was interrupted does not restate the hard state: start before it.
    while !has_group(disk, &segments[first])? {
        let segment = segments[first].header.segment;
        if first == 0 && segment > 1 {
            return Err(match &found.broken {
                Some(path) => Fault::CorruptHeader { path: path.clone() },
                None => Fault::CorruptLog {
                    path: segments[0].path.clone(),
                    offset: SECTOR,
                    group: segments[0].header.first_group,
                    proof: "the segments before it were removed after that".to_owned(),
                },
            });
        }
        if first == 0 {
            break;
        }
        first -= 1;
    }
    Ok(&segments[first..])
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
    /// Index before the first entry held, once there was one.
    base: Option<u64>,
    /// A snapshot says what stands there; else the entry before the first was not read.
    is_base_known: bool,
    /// Index of the newest snapshot: no entry that comes later can be as low. The base can, when
    /// the part that is read starts with entries that are replaced from further down.
    floor: u64,
    /// While it is not: the highest index that the first entry may have.
    limit: u64,
    entries: Vec<LogEntry>,
    hard_state: Option<HardState>,
    newest_mark: Option<SnapshotMark>,
    /// The newest that is not after the snapshot.
    base_mark: Option<SnapshotMark>,
}

impl Tail {
    fn new(after: u64) -> Self {
        Self {
            after,
            base: None,
            is_base_known: false,
            floor: 0,
            limit: 1,
            entries: Vec::new(),
            hard_state: None,
            newest_mark: None,
            base_mark: None,
        }
    }

    /// When a segment was made, the log ended before the entry that its header names.
    fn begin_segment(&mut self, first_index: u64) -> Result<(), String> {
        if first_index <= self.floor {
            let floor = self.floor;
            return Err(format!(
                "the segment starts at entry {first_index}, but a snapshot contained {floor}"
            ));
        }
        if let Some(base) = self.base {
            self.entries
                .truncate(first_index.saturating_sub(base + 1) as usize);
            self.base = Some(base.min(first_index - 1));
        }
        Ok(())
    }

    fn apply(&mut self, record: Record) -> Result<(), String> {
        for entry in record.entries {
            self.push(entry)?;
        }
        if let Some(state) = record.hard_state {
            self.hard_state = Some(state);
        }
        if let Some(mark) = record.mark {
            if mark.index >= NUMBER_MAX {
                return Err(format!("a snapshot that ends at {}", mark.index));
            }
            self.mark(&mark);
            if mark.index <= self.after {
                self.base_mark = Some(mark.clone());
            }
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
        let lowest = self.floor + 1;
        if index < lowest || index > next {
            return Err(format!(
                "entry {index} where one of {lowest} to {next} is expected"
            ));
        }
        match self.base {
            Some(base) if index > base => self.entries.truncate((index - base - 1) as usize),
            _ => {
                self.base = Some(index - 1);
                self.is_base_known = false;
                self.entries.clear();
            }
        }
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
        // What it contains was committed, and is never replaced.
        self.floor = self.floor.max(mark.index);
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
            self.is_base_known = true;
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
        // With the snapshot's own entry, it is lost whether what follows continues the snapshot, or
        // was dropped when the snapshot came from another server.
        if let Some(path) = broken
            && first == self.after + 1
            && !self.is_base_known
            && !self.entries.is_empty()
        {
            return Err(Fault::CorruptHeader {
                path: path.to_owned(),
            });
        }
        let last = (first - 1 + self.entries.len() as u64).max(self.after);
        if last < self.floor {
            // Not even the snapshot that was loaded belongs to this log.
            return Err(Fault::LogLost {
                dir: dir.to_owned(),
                detail: format!(
                    "a snapshot contained entries up to {}, but log and snapshot end at {last}",
                    self.floor
                ),
            });
        }
        let covered = (self.after + 1 - first).min(self.entries.len() as u64) as usize;
        Ok((last, self.entries.split_off(covered)))
    }
}

fn open_file(disk: &dyn Disk, path: &Path) -> Result<Box<dyn File>, Fault> {
    disk.open(path)
        .map_err(|error| Fault::io("open", path, error))
}

pub(super) fn cut(file: &dyn File, path: &Path, len: u64) -> Result<(), Fault> {
    file.set_len(len)
        .map_err(|error| Fault::io("cut", path, error))?;
    file.sync_data().map_err(|error| Fault::sync(path, error))
}

pub(super) fn remove(disk: &dyn Disk, path: &Path) -> Result<(), Fault> {
    match disk.remove(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| Fault::io("remove", path, error)),
    }
}

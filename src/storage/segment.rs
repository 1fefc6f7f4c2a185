//! One file of the log: a header, then groups.
//!
//! ```text
//! header (512 bytes)  magic 8 | format u32 | server u32 | cluster u64 | disk u64 | incarnation u64
//!                     | segment u64 | first group u64 | first index u64 | previous header u32
//!                     | zeros | crc32c u32 of the bytes before it
//! group               number u64 | synced u64 | len u32 | crc32c u32 | len bytes of records
//!                     padded with zeros to 512 bytes
//! ```
//!
//! All numbers are little-endian. A group is everything that was written with one call; its records
//! are length-delimited `zkraft.log.Record`s. A group without records is a *seal*. `synced` is the
//! number of the last group known to be synced when this one was written: it is the proof that
//! damage further up is not a torn tail. The checksum starts from the header's, so a group is valid
//! in its own segment only, and a client cannot forge one inside its data.
//!
//! Groups start at sectors: writing a group never touches a sector of an earlier one, and a search
//! for groups behind a damaged one need only look at sector starts.
//!
//! This file judges nothing: [`scan`] reports where the valid groups end and what lies behind.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::path::Path;

use bytes::{Buf, Bytes};
use prost::Message;

use super::Identity;
use super::disk::File;
use super::fault::Fault;
use crate::proto::log::Record;

/// The unit that a disk writes whole or not at all.
pub(super) const SECTOR: u64 = 512;
/// The format that this build writes, and the highest that it reads.
pub(super) const FORMAT: u32 = 1;
/// Indexes and the numbers of starts, segments and groups stay below this: no log ever counts as
/// far, and what is above could not be counted on from.
pub(super) const NUMBER_MAX: u64 = u64::MAX / 2;
/// Bytes before a group's records.
const GROUP_HEADER: usize = 24;

const MAGIC: [u8; 8] = *b"zkraftLG";
const READ_AHEAD: usize = 256 * 1024;

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Header {
    pub identity: Identity,
    /// Number of the start that made the segment.
    pub incarnation: u64,
    /// Number of the segment, from 1.
    pub segment: u64,
    /// Number of its first group.
    pub first_group: u64,
    /// Index after the last entry of the log when the segment was made. All entries that stayed in
    /// the log and have a lower index are in earlier segments.
    pub first_index: u64,
    /// Checksum of the header of the segment before; 0 in the first.
    pub previous: u32,
}

impl Header {
    /// The sector that starts a segment, and its checksum.
    pub(super) fn encode(&self) -> (Vec<u8>, u32) {
        let mut sector = Vec::with_capacity(SECTOR as usize);
        sector.extend_from_slice(&MAGIC);
        sector.extend_from_slice(&FORMAT.to_le_bytes());
        sector.extend_from_slice(&self.identity.server.to_le_bytes());
        sector.extend_from_slice(&self.identity.cluster.to_le_bytes());
        sector.extend_from_slice(&self.identity.disk.to_le_bytes());
        sector.extend_from_slice(&self.incarnation.to_le_bytes());
        sector.extend_from_slice(&self.segment.to_le_bytes());
        sector.extend_from_slice(&self.first_group.to_le_bytes());
        sector.extend_from_slice(&self.first_index.to_le_bytes());
        sector.extend_from_slice(&self.previous.to_le_bytes());
        sector.resize(SECTOR as usize - 4, 0);
        let checksum = crc32c::crc32c(&sector);
        sector.extend_from_slice(&checksum.to_le_bytes());
        (sector, checksum)
    }
}

/// What the first sector of a file turned out to be.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum HeaderFound {
    /// A header of ours, and its checksum.
    Valid(Header, u32),
    /// No valid header, and nothing behind it: the segment was never used, because groups are
    /// written only after the header is synced.
    Unused,
    /// No valid header, but content.
    Damaged,
}

/// Reads and checks the header of a file.
///
/// # Errors
/// The file cannot be read, is of a later format, is no log segment at all, or counts what cannot
/// be counted.
pub(super) fn read_header(file: &dyn File, path: &Path) -> Result<HeaderFound, Fault> {
    let mut window = Window::new(file, path)?;
    let sector = window.at(0, SECTOR as usize)?;
    let whole = sector.len() == SECTOR as usize;
    let (body, checksum) = sector.split_at(sector.len().saturating_sub(4));
    if !whole || checksum != crc32c::crc32c(body).to_le_bytes() {
        // Rot spoils a byte or two of the magic; another program's file has none of it.
        let like_ours = body.iter().zip(&MAGIC).filter(|(a, b)| a == b).count();
        let alien = whole && like_ours < MAGIC.len() / 2 && body.iter().any(|&byte| byte != 0);
        let found = body.to_vec();
        return if window.is_zero_from(SECTOR)? {
            Ok(HeaderFound::Unused)
        } else if alien {
            Err(foreign(path, &found))
        } else {
            Ok(HeaderFound::Damaged)
        };
    }
    let checksum = u32::from_le_bytes(checksum.try_into().expect("four bytes were split off"));

    let mut fields = body;
    let mut magic = [0; 8];
    fields.copy_to_slice(&mut magic);
    if magic != MAGIC {
        return Err(foreign(path, &magic));
    }
    // Whatever later formats change, the magic, the format number and the place of the checksum
    // stay.
    let format = fields.get_u32_le();
    if format != FORMAT {
        let path = path.to_owned();
        return Err(Fault::NewerFormat {
            path,
            found: format,
            known: FORMAT,
        });
    }
    let server = fields.get_u32_le();
    let cluster = fields.get_u64_le();
    let disk = fields.get_u64_le();
    let header = Header {
        identity: Identity {
            cluster,
            server,
            disk,
        },
        incarnation: fields.get_u64_le(),
        segment: fields.get_u64_le(),
        first_group: fields.get_u64_le(),
        first_index: fields.get_u64_le(),
        previous: fields.get_u32_le(),
    };
    let numbers = [
        header.incarnation,
        header.segment,
        header.first_group,
        header.first_index,
    ];
    if !numbers.iter().all(|n| (1..NUMBER_MAX).contains(n)) {
        return Err(Fault::ImpossibleRecord {
            path: path.to_owned(),
            offset: 0,
            reason: format!("a header that counts {numbers:?}"),
        });
    }
    Ok(HeaderFound::Valid(header, checksum))
}

fn foreign(path: &Path, content: &[u8]) -> Fault {
    let start = &content[..content.len().min(MAGIC.len())];
    Fault::Foreign {
        path: path.to_owned(),
        found: start.escape_ascii().to_string(),
    }
}

/// Encodes a group into `out`, which it clears first. `salt` is the checksum of the segment's
/// header.
///
/// The result is a whole number of sectors.
pub(super) fn encode_group(
    out: &mut Vec<u8>,
    salt: u32,
    number: u64,
    synced: u64,
    records: &[Record],
) {
    out.clear();
    out.resize(GROUP_HEADER, 0);
    for record in records {
        record
            .encode_length_delimited(out)
            .expect("a vector grows as needed");
    }
    let len = u32::try_from(out.len() - GROUP_HEADER).expect("groups are far below 4 GiB");
    out[..8].copy_from_slice(&number.to_le_bytes());
    out[8..16].copy_from_slice(&synced.to_le_bytes());
    out[16..20].copy_from_slice(&len.to_le_bytes());
    let checksum = group_checksum(salt, &out[..20], &out[GROUP_HEADER..]);
    out[20..24].copy_from_slice(&checksum.to_le_bytes());
    out.resize(to_sectors(out.len() as u64) as usize, 0);
}

/// Rounds up to whole sectors.
pub(super) fn to_sectors(len: u64) -> u64 {
    len.next_multiple_of(SECTOR)
}

/// One valid group.
#[derive(Debug)]
pub(super) struct Group {
    pub offset: u64,
    pub records: Records,
}

/// Decodes a group's records one at a time: a record takes many times the memory of its bytes.
#[derive(Debug)]
pub(super) struct Records(Bytes);

impl Iterator for Records {
    /// Says what is wrong with a record that cannot be decoded. Nothing behind it can be either.
    type Item = Result<Record, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let decoded = Record::decode_length_delimited(&mut self.0);
        if decoded.is_err() {
            self.0.clear();
        }
        Some(decoded.map_err(|error| error.to_string()))
    }
}

/// How a segment ends.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct End {
    /// Offset after the last valid group.
    pub offset: u64,
    /// Number that the next group would have had.
    pub next_group: u64,
    /// Offset of the first group that no later one says was synced; `offset` if there is none.
    pub unproven: u64,
    /// Whether something other than zeros lies behind.
    pub dirty: bool,
    /// The highest `synced` of a valid group found behind, and that group's offset.
    pub proof: Option<(u64, u64)>,
}

/// Whether the segment has a first group.
pub(super) fn has_group(
    file: &dyn File,
    path: &Path,
    header: &Header,
    salt: u32,
) -> Result<bool, Fault> {
    let mut window = Window::new(file, path)?;
    let first = header.first_group;
    Ok(read_group(&mut window, salt, SECTOR, first..=first)?.is_some())
}

/// Visits the valid groups of a segment in order and reports how it ends.
///
/// # Errors
/// Those of reading and of `visit`.
pub(super) fn scan(
    file: &dyn File,
    path: &Path,
    header: &Header,
    salt: u32,
    mut visit: impl FnMut(Group) -> Result<(), Fault>,
) -> Result<End, Fault> {
    let mut window = Window::new(file, path)?;
    let mut offset = SECTOR;
    let mut next_group = header.first_group;
    let mut unproven = VecDeque::new();
    while let Some(raw) = read_group(&mut window, salt, offset, next_group..=next_group)? {
        let size = to_sectors((GROUP_HEADER + raw.body.len()) as u64);
        let synced = raw.synced;
        let records = Records(raw.body);
        visit(Group { offset, records })?;
        while unproven
            .front()
            .is_some_and(|&(number, _)| number <= synced)
        {
            unproven.pop_front();
        }
        unproven.push_back((next_group, offset));
        offset += size;
        next_group += 1;
    }

    let dirty = !window.is_zero_from(offset)?;
    let mut proof = None;
    if dirty {
        let mut at = offset + SECTOR;
        while at < window.len {
            // No more groups than sectors can stand before this one.
            let numbers = next_group + 1..=next_group + (at - offset) / SECTOR;
            if let Some(raw) = read_group(&mut window, salt, at, numbers)?
                && proof.is_none_or(|(synced, _)| raw.synced > synced)
            {
                proof = Some((raw.synced, at));
            }
            at += SECTOR;
        }
    }
    Ok(End {
        offset,
        next_group,
        unproven: unproven.front().map_or(offset, |&(_, offset)| offset),
        dirty,
        proof,
    })
}

struct RawGroup {
    synced: u64,
    body: Bytes,
}

/// The group at `offset`, if there is a valid one with one of these numbers.
fn read_group(
    window: &mut Window<'_>,
    salt: u32,
    offset: u64,
    numbers: RangeInclusive<u64>,
) -> Result<Option<RawGroup>, Fault> {
    let mut head = [0; GROUP_HEADER];
    let found = window.at(offset, GROUP_HEADER)?;
    if found.len() < GROUP_HEADER {
        return Ok(None);
    }
    head.copy_from_slice(found);
    let mut fields = &head[..];
    let number = fields.get_u64_le();
    let synced = fields.get_u64_le();
    let len = fields.get_u32_le() as usize;
    let checksum = fields.get_u32_le();
    // Cheap tests first: the search for later groups comes here for each sector.
    let fits = offset + (GROUP_HEADER + len) as u64 <= window.len;
    if !numbers.contains(&number) || synced >= number || !fits {
        return Ok(None);
    }
    let body = window.at(offset + GROUP_HEADER as u64, len)?;
    if body.len() < len || group_checksum(salt, &head[..20], body) != checksum {
        return Ok(None);
    }
    let body = Bytes::copy_from_slice(body);
    Ok(Some(RawGroup { synced, body }))
}

fn group_checksum(salt: u32, head: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(salt, head), body)
}

/// A file read through a moving buffer, so that small groups cost no call each.
struct Window<'a> {
    file: &'a dyn File,
    path: &'a Path,
    len: u64,
    start: u64,
    data: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(file: &'a dyn File, path: &'a Path) -> Result<Self, Fault> {
        let len = file
            .len()
            .map_err(|error| Fault::io("read the length of", path, error))?;
        Ok(Self {
            file,
            path,
            len,
            start: 0,
            data: Vec::new(),
        })
    }

    /// The bytes from `offset` on: `want` of them, or fewer if the file ends before.
    fn at(&mut self, offset: u64, want: usize) -> Result<&[u8], Fault> {
        let have = (self.len.saturating_sub(offset)).min(want as u64) as usize;
        let held = self.start..self.start + self.data.len() as u64;
        if have > 0 && !(held.contains(&offset) && offset + have as u64 <= held.end) {
            let room = (self.len - offset).min(have.max(READ_AHEAD) as u64) as usize;
            self.data.resize(room, 0);
            self.start = offset;
            let got = self
                .file
                .read_at(&mut self.data, offset)
                .map_err(|error| Fault::io("read", self.path, error))?;
            self.data.truncate(got);
        }
        if have == 0 {
            return Ok(&[]);
        }
        let from = (offset - self.start) as usize;
        Ok(&self.data[from..self.data.len().min(from + have)])
    }

    fn is_zero_from(&mut self, mut offset: u64) -> Result<bool, Fault> {
        while offset < self.len {
            let bytes = self.at(offset, READ_AHEAD)?;
            if bytes.is_empty() {
                break;
            }
            if bytes.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
            offset += bytes.len() as u64;
        }
        Ok(true)
    }
}

//! Snapshot files.
//!
//! ```text
//! snapshot.<index>.<term>   (both as 16 hexadecimal digits)
//!   magic 8 | format u32 | len u32 | crc32c u32 | zkraft.snapshot.Header of len bytes
//!   padded with zeros to 512 bytes; the checksum covers all but itself and the padding
//!   frames: kind u32 | len u32 | raw len u32 | crc32c u32 | len bytes
//!     kind 1: a chunk of the machine's image, zstd; raw len is its length before compression
//!     kind 2: zkraft.snapshot.Trailer, the last frame
//! ```
//!
//! All numbers are little-endian. The checksum of a frame starts from the frame's number, so frames
//! cannot change places. A file is written under a `.tmp` name, synced and renamed: one with its
//! real name was whole once. This file knows nothing of what the chunks mean.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use prost::Message;

use super::SnapshotMeta;
use super::disk::{Disk, File};
use super::fault::Fault;
use crate::proto::snapshot::{Header, Trailer};

const MAGIC: [u8; 8] = *b"zkraftSN";
const FORMAT: u32 = 1;
const PREFIX: usize = 20;
const FRAME: usize = 16;
const CHUNK: u32 = 1;
const TRAILER: u32 = 2;
/// Written at once.
const BUFFER: usize = 1 << 20;
/// No chunk is larger, so a larger length is damage.
const CHUNK_BYTES_MAX: u32 = 1 << 30;
/// No compressed byte can stand for more: a zstd block is at least 4 bytes and at most 128 KiB of
/// content. A chunk that claims more is damaged, and memory for it is not even asked for.
const RATIO_MAX: u64 = 32 << 10;

/// A snapshot file in a directory, known by its name.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct SnapshotFile {
    pub index: u64,
    pub term: u64,
    pub path: PathBuf,
}

/// The snapshots in `dir`, newest first; not those that are being written.
///
/// # Errors
/// The directory cannot be read.
pub fn list_snapshots(disk: &dyn Disk, dir: &Path) -> Result<Vec<SnapshotFile>, Fault> {
    let names = disk
        .list(dir)
        .map_err(|error| Fault::io("list", dir, error))?;
    let mut files = Vec::new();
    for name in names {
        let Some(rest) = name.strip_prefix("snapshot.") else {
            continue;
        };
        let path = dir.join(&name);
        let Some((index, term)) = rest.split_once('.') else {
            continue;
        };
        let number = |digits: &str| match digits.len() {
            16 => u64::from_str_radix(digits, 16).ok(),
            _ => None,
        };
        if let (Some(index), Some(term)) = (number(index), number(term)) {
            files.push(SnapshotFile { index, term, path });
        }
    }
    files.sort_unstable_by(|a, b| b.cmp(a));
    Ok(files)
}

/// Removes what was being written when the last run ended.
///
/// # Errors
/// The directory cannot be read, or a file not removed.
pub(super) fn remove_leftovers(disk: &dyn Disk, dir: &Path) -> Result<(), Fault> {
    let names = disk
        .list(dir)
        .map_err(|error| Fault::io("list", dir, error))?;
    for name in names {
        if name.starts_with("snapshot.") && name.ends_with(".tmp") {
            let path = dir.join(&name);
            disk.remove(&path)
                .map_err(|error| Fault::io("remove", &path, error))?;
        }
    }
    Ok(())
}

/// Removes all but the newest `keep` snapshots of `dir`.
///
/// # Errors
/// A file cannot be removed.
pub fn purge_snapshots(disk: &dyn Disk, dir: &Path, keep: usize) -> Result<(), Fault> {
    let old = list_snapshots(disk, dir)?;
    let old = old.get(keep..).unwrap_or_default();
    for file in old {
        disk.remove(&file.path)
            .map_err(|error| Fault::io("remove", &file.path, error))?;
    }
    if !old.is_empty() {
        disk.sync_dir(dir)
            .map_err(|error| Fault::sync(dir, error))?;
    }
    Ok(())
}

/// Writes a whole snapshot and returns the bytes of its file.
///
/// # Errors
/// The disk fails; nothing is left behind then.
pub fn write_snapshot(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    cluster: u64,
    meta: &SnapshotMeta,
    chunks: impl IntoIterator<Item = Bytes>,
) -> Result<u64, Fault> {
    let mut writer = SnapshotWriter::create(disk.clone(), dir, cluster, meta)?;
    for chunk in chunks {
        writer.push(&chunk)?;
    }
    writer.finish()
}

/// A chunk as it is in the file of a snapshot: what goes from server to server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CompressedChunk {
    pub body: Bytes,
    /// Bytes before compression.
    pub raw_len: u32,
    /// Of the frame, which the number of the chunk is part of.
    pub checksum: u32,
}

/// A snapshot being written. Dropped before [`SnapshotWriter::finish`], it leaves no file.
pub struct SnapshotWriter {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    target: PathBuf,
    temporary: PathBuf,
    file: Box<dyn File>,
    header: Header,
    header_room: u64,
    compressor: zstd::bulk::Compressor<'static>,
    buffer: Vec<u8>,
    position: u64,
    raw_bytes: u64,
    finished: bool,
    /// Bytes of the disk that it must not use.
    leave: u64,
}

impl SnapshotWriter {
    /// Starts a snapshot under a temporary name.
    ///
    /// # Errors
    /// The disk fails.
    pub fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        cluster: u64,
        meta: &SnapshotMeta,
    ) -> Result<Self, Fault> {
        Self::create_as("tmp", disk, dir, cluster, meta)
    }

    /// Starts the copy of another server's snapshot. Its temporary name is another one, because
    /// this server may be writing one of its own meanwhile; there may be one copy at a time.
    ///
    /// # Errors
    /// The disk fails.
    pub fn receive(
        disk: Arc<dyn Disk>,
        dir: &Path,
        cluster: u64,
        meta: &SnapshotMeta,
    ) -> Result<Self, Fault> {
        Self::create_as("received.tmp", disk, dir, cluster, meta)
    }

    fn create_as(
        suffix: &str,
        disk: Arc<dyn Disk>,
        dir: &Path,
        cluster: u64,
        meta: &SnapshotMeta,
    ) -> Result<Self, Fault> {
        let name = format!("snapshot.{:016x}.{:016x}", meta.index, meta.term);
        let temporary = dir.join(format!("{name}.{suffix}"));
        let header = Header {
            index: meta.index,
            term: meta.term,
            membership: Some(meta.membership.clone()),
            cluster,
            zxid: meta.zxid,
            digest: meta.digest,
            chunks: 0,
        };
        let header_room = header_room(&header, header.encoded_len());
        let compressor = zstd::bulk::Compressor::new(1)
            .map_err(|error| Fault::io("set up compression for", &temporary, error))?;
        // A failed attempt at the same index may have left one.
        match disk.remove(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Fault::io("remove", &temporary, error));
            }
            _ => {}
        }
        let file = disk
            .create(&temporary)
            .map_err(|error| Fault::io("create", &temporary, error))?;
        Ok(Self {
            disk,
            dir: dir.to_owned(),
            target: dir.join(name),
            temporary,
            file,
            header,
            header_room,
            compressor,
            buffer: Vec::new(),
            position: header_room,
            raw_bytes: 0,
            finished: false,
            leave: 0,
        })
    }

    /// Makes it fail rather than use the last `bytes` of free space.
    pub fn leave(&mut self, bytes: u64) {
        self.leave = bytes;
    }

    /// Adds a chunk.
    ///
    /// # Errors
    /// The disk fails.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        assert!(
            chunk.len() <= CHUNK_BYTES_MAX as usize,
            "chunks are below 1 GiB"
        );
        let body = self
            .compressor
            .compress(chunk)
            .map_err(|error| Fault::io("compress a chunk for", &self.temporary, error))?;
        self.frame(CHUNK, chunk.len() as u32, &body)?;
        self.header.chunks += 1;
        self.raw_bytes += chunk.len() as u64;
        Ok(())
    }

    /// Adds the next chunk of another file as it is.
    ///
    /// # Errors
    /// It is not the next one, or was damaged since it was read there; the writer can go on. Or the
    /// disk fails.
    pub fn push_compressed(&mut self, chunk: &CompressedChunk) -> Result<(), Fault> {
        let head = frame_head(CHUNK, chunk.raw_len, &chunk.body);
        let problem = if frame_checksum(self.header.chunks, &head, &chunk.body) != chunk.checksum {
            "a chunk was damaged on its way"
        } else if !is_chunk_possible(chunk.raw_len, chunk.body.len()) {
            "a chunk cannot be as long as it claims"
        } else {
            self.frame(CHUNK, chunk.raw_len, &chunk.body)?;
            self.header.chunks += 1;
            self.raw_bytes += u64::from(chunk.raw_len);
            return Ok(());
        };
        Err(Fault::CorruptSnapshot {
            path: self.temporary.clone(),
            offset: self.position + self.buffer.len() as u64,
            reason: problem.to_owned(),
        })
    }

    /// Chunks so far.
    pub fn chunks(&self) -> u64 {
        self.header.chunks
    }

    /// Bytes of all chunks so far, before compression.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Seals the file, makes it durable and gives it its name. Returns its length in bytes.
    ///
    /// # Errors
    /// The disk fails.
    pub fn finish(mut self) -> Result<u64, Fault> {
        let trailer = Trailer {
            chunks: self.header.chunks,
            bytes: self.raw_bytes,
        };
        let trailer = trailer.encode_to_vec();
        self.frame(TRAILER, trailer.len() as u32, &trailer)?;
        self.flush()?;

        let body = self.header.encode_to_vec();
        let mut start = Vec::with_capacity(self.header_room as usize);
        start.extend_from_slice(&MAGIC);
        start.extend_from_slice(&FORMAT.to_le_bytes());
        start.extend_from_slice(&(body.len() as u32).to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&start), &body);
        start.extend_from_slice(&checksum.to_le_bytes());
        start.extend_from_slice(&body);
        start.resize(self.header_room as usize, 0);
        self.file
            .write_at(&start, 0)
            .map_err(|error| Fault::io("write to", &self.temporary, error))?;

        self.file
            .sync_data()
            .map_err(|error| Fault::sync(&self.temporary, error))?;
        self.disk
            .rename(&self.temporary, &self.target)
            .map_err(|error| Fault::io("rename", &self.temporary, error))?;
        self.finished = true;
        self.disk
            .sync_dir(&self.dir)
            .map_err(|error| Fault::sync(&self.dir, error))?;
        Ok(self.position)
    }

    fn frame(&mut self, kind: u32, raw: u32, body: &[u8]) -> Result<(), Fault> {
        let head = frame_head(kind, raw, body);
        let checksum = frame_checksum(self.header.chunks, &head, body);
        self.buffer.extend_from_slice(&head);
        self.buffer.extend_from_slice(&checksum.to_le_bytes());
        self.buffer.extend_from_slice(body);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fault> {
        let free = self
            .disk
            .free_bytes(&self.dir)
            .map_err(|error| Fault::io("measure the free space of", &self.dir, error))?;
        if free < self.leave.saturating_add(self.buffer.len() as u64) {
            return Err(Fault::NoRoomForSnapshot {
                dir: self.dir.clone(),
                free_kib: free / 1024,
            });
        }
        self.file
            .write_at(&self.buffer, self.position)
            .map_err(|error| Fault::io("write to", &self.temporary, error))?;
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: the next start removes it too.
            let _ = self.disk.remove(&self.temporary);
        }
    }
}

/// The chunks of a snapshot file, each checked as it is read, the trailer after the last. The file
/// stays readable when it is removed meanwhile.
pub struct SnapshotReader {
    path: PathBuf,
    file: Box<dyn File>,
    len: u64,
    header: Header,
    /// Where the first frame begins.
    start: u64,
    position: u64,
    chunks: u64,
    raw_bytes: u64,
    ended: bool,
    progress: Option<super::Progress>,
}

impl SnapshotReader {
    /// Opens a snapshot and checks its header.
    ///
    /// # Errors
    /// The file cannot be read, is of a later format, or its start is damaged.
    pub fn open(disk: &dyn Disk, snapshot: &SnapshotFile) -> Result<Self, Fault> {
        let path = &*snapshot.path;
        let file = disk
            .open(path)
            .map_err(|error| Fault::io("open", path, error))?;
        let len = file
            .len()
            .map_err(|error| Fault::io("read the length of", path, error))?;
        let mut reader = Self {
            path: path.to_owned(),
            file,
            len,
            header: Header::default(),
            start: 0,
            position: 0,
            chunks: 0,
            raw_bytes: 0,
            ended: false,
            progress: None,
        };
        reader.read_header(snapshot)?;
        Ok(reader)
    }

    /// What the snapshot is of.
    pub fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            index: self.header.index,
            term: self.header.term,
            membership: self.header.membership.clone().unwrap_or_default(),
            zxid: self.header.zxid,
            digest: self.header.digest,
        }
    }

    /// The cluster whose state it is.
    pub fn cluster(&self) -> u64 {
        self.header.cluster
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> u64 {
        self.header.chunks
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// Bytes of the chunks so far, before compression.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// The next chunk as it is in the file, checked; nothing after the last, nor after a fault.
    pub fn next_compressed(&mut self) -> Option<Result<CompressedChunk, Fault>> {
        if self.ended {
            return None;
        }
        let result = self.frame().transpose();
        self.ended = !matches!(result, Some(Ok(_)));
        result
    }

    /// Goes to where so many chunks have been read. Those before are not checked.
    ///
    /// # Errors
    /// The file cannot be read, or ends before.
    pub fn skip_to(&mut self, chunk: u64) -> Result<(), Fault> {
        (self.position, self.chunks, self.raw_bytes) = (self.start, 0, 0);
        self.ended = false;
        while self.chunks < chunk {
            let head = self.read(self.position, FRAME)?;
            let mut fields = &head[..];
            if fields.get_u32_le() != CHUNK {
                return Err(self.corrupt(self.position, "there are fewer chunks"));
            }
            self.position += FRAME as u64 + u64::from(fields.get_u32_le());
            self.raw_bytes += u64::from(fields.get_u32_le());
            self.chunks += 1;
        }
        Ok(())
    }

    /// Reports bytes read and the file's length as chunks are read.
    pub fn with_progress(mut self, progress: super::Progress) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Reads all chunks, checks them and drops them.
    ///
    /// # Errors
    /// The first damage found.
    pub fn verify(self) -> Result<SnapshotMeta, Fault> {
        let meta = self.meta();
        for chunk in self {
            chunk?;
        }
        Ok(meta)
    }

    fn read_header(&mut self, expected: &SnapshotFile) -> Result<(), Fault> {
        let start = self.read(0, PREFIX)?;
        let mut fields = &start[MAGIC.len()..];
        let format = fields.get_u32_le();
        let len = fields.get_u32_le() as usize;
        let checksum = fields.get_u32_le();
        let body = self.read(PREFIX as u64, len)?;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&start[..PREFIX - 4]), &body);
        if sum != checksum || start[..MAGIC.len()] != MAGIC {
            return Err(self.corrupt(0, "the header is damaged"));
        }
        // Whatever later formats change, this much of the header stays.
        if format != FORMAT {
            return Err(Fault::NewerFormat {
                path: self.path.clone(),
                found: format,
                known: FORMAT,
            });
        }
        self.header = Header::decode(body)
            .map_err(|error| self.corrupt(0, &format!("the header is unreadable: {error}")))?;
        if (self.header.index, self.header.term) != (expected.index, expected.term) {
            return Err(self.corrupt(0, "the header and the name disagree"));
        }
        self.start = header_room(&self.header, len);
        self.position = self.start;
        Ok(())
    }

    /// The next chunk, or nothing after the trailer.
    fn frame(&mut self) -> Result<Option<CompressedChunk>, Fault> {
        let at = self.position;
        let head = self.read(at, FRAME)?;
        let mut fields = &head[..];
        let kind = fields.get_u32_le();
        let len = fields.get_u32_le();
        let raw = fields.get_u32_le();
        let checksum = fields.get_u32_le();
        let body = self.read(at + FRAME as u64, len as usize)?;
        if frame_checksum(self.chunks, &head[..12], &body) != checksum {
            return Err(self.corrupt(at, "a frame's checksum is wrong"));
        }
        self.position = at + FRAME as u64 + u64::from(len);
        if let Some(progress) = &self.progress {
            progress.report(self.position, self.len);
        }
        match kind {
            CHUNK if !is_chunk_possible(raw, body.len()) => {
                Err(self.corrupt(at, &format!("{len} bytes cannot be a chunk of {raw}")))
            }
            CHUNK => {
                self.chunks += 1;
                self.raw_bytes += u64::from(raw);
                Ok(Some(CompressedChunk {
                    body,
                    raw_len: raw,
                    checksum,
                }))
            }
            TRAILER => {
                let trailer = Trailer::decode(body)
                    .map_err(|error| self.corrupt(at, &format!("the trailer: {error}")))?;
                let whole = trailer.chunks == self.chunks
                    && self.header.chunks == self.chunks
                    && trailer.bytes == self.raw_bytes;
                if !whole || self.position != self.len {
                    return Err(self.corrupt(at, "the trailer does not agree with the chunks"));
                }
                Ok(None)
            }
            _ => Err(self.corrupt(at, &format!("a frame of unknown kind {kind}"))),
        }
    }

    fn read(&self, offset: u64, len: usize) -> Result<Bytes, Fault> {
        if offset.saturating_add(len as u64) > self.len {
            return Err(self.corrupt(offset, "the file ends too early"));
        }
        let mut bytes = vec![0; len];
        let got = self
            .file
            .read_at(&mut bytes, offset)
            .map_err(|error| Fault::io("read", &self.path, error))?;
        if got < len {
            return Err(self.corrupt(offset, "the file ends too early"));
        }
        Ok(bytes.into())
    }

    fn corrupt(&self, offset: u64, reason: &str) -> Fault {
        Fault::CorruptSnapshot {
            path: self.path.clone(),
            offset,
            reason: reason.to_owned(),
        }
    }
}

impl Iterator for SnapshotReader {
    type Item = Result<Bytes, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.position;
        let chunk = match self.next_compressed()? {
            Ok(chunk) => chunk,
            Err(fault) => return Some(Err(fault)),
        };
        let result = zstd::bulk::decompress(&chunk.body, chunk.raw_len as usize);
        self.ended = result.is_err();
        Some(match result {
            Ok(chunk) => Ok(chunk.into()),
            Err(error) => Err(self.corrupt(at, &format!("decompression: {error}"))),
        })
    }
}

/// Where the first frame begins, behind a header of `len` bytes. The number of chunks is not known
/// when that is decided: there is room for the longest.
fn header_room(header: &Header, len: usize) -> u64 {
    let longest = Header {
        chunks: u64::MAX,
        ..header.clone()
    };
    let len = len + longest.encoded_len() - header.encoded_len();
    (PREFIX + len).next_multiple_of(512) as u64
}

/// All of a frame's head but the checksum.
fn frame_head(kind: u32, raw: u32, body: &[u8]) -> [u8; FRAME - 4] {
    let mut head = [0; FRAME - 4];
    head[..4].copy_from_slice(&kind.to_le_bytes());
    head[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes());
    head[8..].copy_from_slice(&raw.to_le_bytes());
    head
}

/// Whether a chunk of so many bytes can be in so many compressed ones.
fn is_chunk_possible(raw: u32, len: usize) -> bool {
    raw <= CHUNK_BYTES_MAX && u64::from(raw) <= RATIO_MAX * len as u64
}

fn frame_checksum(number: u64, head: &[u8], body: &[u8]) -> u32 {
    let salt = crc32c::crc32c(&number.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(salt, head), body)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::RealDisk;
    use super::*;
    use crate::proto::log::Membership;

    struct Home(tempfile::TempDir);

    impl Home {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn disk() -> Arc<dyn Disk> {
            Arc::new(RealDisk)
        }

        fn write(&self, index: u64, chunks: &[&'static [u8]]) -> SnapshotFile {
            let chunks = chunks.iter().map(|chunk| Bytes::from_static(chunk));
            let bytes =
                write_snapshot(&Self::disk(), self.0.path(), 0xc1, &meta(index), chunks).unwrap();
            let file = self.list().remove(0);
            assert_eq!(fs::metadata(&file.path).unwrap().len(), bytes);
            file
        }

        fn list(&self) -> Vec<SnapshotFile> {
            list_snapshots(&RealDisk, self.0.path()).unwrap()
        }

        /// The message of the refusal, with the file's name left out.
        fn refusal(file: &SnapshotFile) -> String {
            let verified = SnapshotReader::open(&RealDisk, file).and_then(SnapshotReader::verify);
            let name = format!("{}", file.path.display());
            verified.unwrap_err().to_string().replace(&name, "FILE")
        }

        fn edit(file: &SnapshotFile, edit: impl FnOnce(&mut Vec<u8>)) {
            let mut bytes = fs::read(&file.path).unwrap();
            edit(&mut bytes);
            fs::write(&file.path, bytes).unwrap();
        }
    }

    fn meta(index: u64) -> SnapshotMeta {
        SnapshotMeta {
            index,
            term: 3,
            membership: Membership {
                voters: vec![1],
                ..Membership::default()
            },
            zxid: 0x1_0000_0007,
            digest: 0xd16e57,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let home = Home::new();
        let file = home.write(7, &[b"first", b"", b"third"]);
        assert_eq!((file.index, file.term), (7, 3));
        let name = file.path.file_name().unwrap().to_str().unwrap();
        assert_eq!(name, "snapshot.0000000000000007.0000000000000003");
        let reader = SnapshotReader::open(&RealDisk, &file).unwrap();
        assert_eq!(reader.meta(), meta(7));
        assert_eq!(reader.cluster(), 0xc1);
        let chunks: Result<Vec<Bytes>, Fault> = reader.collect();
        assert_eq!(chunks.unwrap(), ["first", "", "third"].map(Bytes::from));
    }

    #[test]
    fn the_newest_are_kept_and_leftovers_go() {
        let home = Home::new();
        for index in [5, 300, 20] {
            home.write(index, &[b"x"]);
        }
        fs::write(home.0.path().join("snapshot.9.tmp"), "half").unwrap();
        fs::write(home.0.path().join("snapshot.old"), "not ours").unwrap();
        let indexes = |home: &Home| home.list().iter().map(|f| f.index).collect::<Vec<u64>>();
        assert_eq!(indexes(&home), [300, 20, 5]);
        assert!(home.0.path().join("snapshot.9.tmp").exists());
        remove_leftovers(&RealDisk, home.0.path()).unwrap();
        assert!(!home.0.path().join("snapshot.9.tmp").exists());
        assert!(home.0.path().join("snapshot.old").exists());
        purge_snapshots(&RealDisk, home.0.path(), 2).unwrap();
        assert_eq!(indexes(&home), [300, 20]);
    }

    #[test]
    fn the_first_chunk_is_found_behind_a_header_of_any_length() {
        let home = Home::new();
        // From well below to well above what fits into the first sector.
        for extra in 420..=470 {
            let meta = SnapshotMeta {
                membership: Membership {
                    voters: vec![1; extra],
                    ..Membership::default()
                },
                ..meta(extra as u64)
            };
            let chunk = Bytes::from_static(b"a chunk");
            write_snapshot(&Home::disk(), home.0.path(), 0xc1, &meta, [chunk]).unwrap();
            let reader = SnapshotReader::open(&RealDisk, &home.list()[0]).unwrap();
            assert_eq!(reader.verify().unwrap(), meta, "{extra} voters");
        }
    }

    #[test]
    fn an_unfinished_snapshot_leaves_no_file() {
        let home = Home::new();
        let mut writer =
            SnapshotWriter::create(Home::disk(), home.0.path(), 0xc1, &meta(7)).unwrap();
        writer.push(b"a chunk").unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(home.0.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_copy_of_a_snapshot_is_the_same_but_for_the_cluster() {
        let home = Home::new();
        let file = home.write(7, &[b"first", b"", b"third"]);
        let whole = fs::read(&file.path).unwrap();
        let mut reader = SnapshotReader::open(&RealDisk, &file).unwrap();
        assert_eq!((reader.chunks(), reader.bytes()), (3, whole.len() as u64));
        // Removed, it can still be read.
        fs::remove_file(&file.path).unwrap();
        let copy = Home::new();
        let mut writer =
            SnapshotWriter::receive(Home::disk(), copy.0.path(), 0xc1, &reader.meta()).unwrap();
        let mut chunks = std::iter::from_fn(|| reader.next_compressed());
        let chunks: Result<Vec<CompressedChunk>, Fault> = chunks.by_ref().collect();
        let chunks = chunks.unwrap();
        for chunk in &chunks {
            // Neither out of turn nor damaged.
            let problem = "a chunk was damaged on its way";
            let mut wrong = vec![chunks[(writer.chunks() as usize + 1) % 3].clone()];
            wrong.extend((0..chunk.body.len()).map(|position| {
                let mut body = chunk.body.to_vec();
                body[position] ^= 1;
                CompressedChunk {
                    body: body.into(),
                    ..chunk.clone()
                }
            }));
            wrong.push(CompressedChunk {
                raw_len: chunk.raw_len + 1,
                ..chunk.clone()
            });
            for wrong in wrong {
                let refused = writer.push_compressed(&wrong).unwrap_err().to_string();
                assert!(refused.ends_with(problem), "{refused}");
            }
            writer.push_compressed(chunk).unwrap();
        }
        assert_eq!((writer.chunks(), writer.raw_bytes()), (3, 10));
        writer.finish().unwrap();
        assert_eq!(fs::read(&copy.list()[0].path).unwrap(), whole);

        // From the middle.
        reader.skip_to(2).unwrap();
        assert_eq!(reader.next_compressed().unwrap().unwrap(), chunks[2]);
        assert!(reader.next_compressed().is_none());
        assert!(reader.skip_to(4).is_err());
    }

    #[test]
    fn every_damaged_byte_outside_the_padding_is_found() {
        let home = Home::new();
        let file = home.write(7, &[b"some chunk of data", b"another chunk"]);
        let whole = fs::read(&file.path).unwrap();
        let header = PREFIX + u32::from_le_bytes(whole[12..16].try_into().unwrap()) as usize;
        for position in (0..header).chain(512..whole.len()) {
            Home::edit(&file, |bytes| bytes[position] ^= 0x40);
            let refusal = Home::refusal(&file);
            let corrupt = "snapshot FILE is corrupt at byte ";
            assert!(refusal.starts_with(corrupt), "byte {position}: {refusal}");
            fs::write(&file.path, &whole).unwrap();
        }
        for len in (0..whole.len()).step_by(7) {
            Home::edit(&file, |bytes| bytes.truncate(len));
            assert!(
                Home::refusal(&file).contains("ends too early"),
                "length {len}"
            );
            fs::write(&file.path, &whole).unwrap();
        }
    }

    #[test]
    fn a_file_that_is_not_what_its_name_says_is_refused() {
        let home = Home::new();
        let file = home.write(7, &[b"x"]);
        let other = SnapshotFile {
            index: 8,
            path: home
                .0
                .path()
                .join("snapshot.0000000000000008.0000000000000003"),
            ..file
        };
        fs::rename(&file.path, &other.path).unwrap();
        assert_eq!(
            Home::refusal(&other),
            "snapshot FILE is corrupt at byte 0: the header and the name disagree"
        );
    }

    #[test]
    fn a_chunk_that_claims_more_than_it_can_hold_is_refused() {
        let home = Home::new();
        let file = home.write(7, &[b"some chunk"]);
        let whole = fs::read(&file.path).unwrap();
        let len = u32::from_le_bytes(whole[516..520].try_into().unwrap());
        for claim in [u32::MAX, 1 << 30, (len << 15) + 1] {
            Home::edit(&file, |bytes| {
                bytes[520..524].copy_from_slice(&claim.to_le_bytes());
                let body = 528..528 + len as usize;
                let sum = frame_checksum(0, &bytes[512..524], &bytes[body]);
                bytes[524..528].copy_from_slice(&sum.to_le_bytes());
            });
            let expected = format!(
                "snapshot FILE is corrupt at byte 512: {len} bytes cannot be a chunk of {claim}"
            );
            assert_eq!(Home::refusal(&file), expected);
        }
    }

    #[test]
    fn a_later_format_is_refused() {
        let home = Home::new();
        let file = home.write(7, &[b"x"]);
        Home::edit(&file, |bytes| {
            bytes[8] = 9;
            let len = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
            let sum = crc32c::crc32c(&bytes[..16]);
            let sum = crc32c::crc32c_append(sum, &bytes[PREFIX..PREFIX + len]);
            bytes[16..20].copy_from_slice(&sum.to_le_bytes());
        });
        assert_eq!(
            Home::refusal(&file),
            "FILE has format 9, and this zkraft knows formats up to 1; start the newer zkraft that \
             wrote it"
        );
    }

    /// The format is a promise to later versions. Without the compressed bytes, which are the
    /// compressor's own affair.
    #[test]
    fn golden_bytes_of_a_snapshot() {
        let home = Home::new();
        let file = home.write(7, &[]);
        let bytes = fs::read(&file.path).unwrap();
        let hex = |range: std::ops::Range<usize>| -> String {
            bytes[range]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect()
        };
        assert_eq!(
            hex(0..64),
            "7a6b72616674534e01000000210000003eb6ca48080710031a030a010121c100\
             00000000000028878080801031576ed100000000000000000000000000000000"
        );
        assert_eq!(hex(512..bytes.len()), "0200000000000000000000005efe26de");
    }
}

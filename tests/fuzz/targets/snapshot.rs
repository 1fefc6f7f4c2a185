//! Snapshot files: any bytes as they are, or frames with the checksums that make them valid. What
//! is read becomes a machine, as at a start.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use zkraft::engine::SnapshotMeta;
use zkraft::machine::Machine;
use zkraft::proto::snapshot::{Header, Trailer};
use zkraft::storage::{Disk, SnapshotFile, SnapshotReader, write_snapshot};

use super::disk::MemoryDisk;
use super::image;
use super::input::{Input, run_of};

const DIR: &str = "/snapshot";
const INDEX: u64 = 7;
const TERM: u64 = 3;

/// What a frame is, by the remainder of its byte.
mod frame {
    /// A chunk as it is written.
    pub const CHUNK: u8 = 0;
    /// A chunk that says another length than it has.
    pub const LYING: u8 = 1;
    /// Bytes that were never compressed, as a chunk.
    pub const GARBAGE: u8 = 2;
    /// Any frame at all.
    pub const OTHER: u8 = 3;
    pub const KINDS: u8 = 4;
}

/// Input: 0, then a file; or 1, then its frames; or 2, then its frames, and the trailer is left to
/// them too.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let content = match input.byte() {
        0 => input.0.to_vec(),
        choice => build(choice == 2, input),
    };
    let disk = MemoryDisk::default();
    let path = format!("{DIR}/snapshot.{INDEX:016x}.{TERM:016x}");
    disk.put(&path, content);
    let file = SnapshotFile {
        index: INDEX,
        term: TERM,
        path: path.into(),
    };
    let mut reader = match SnapshotReader::open(&disk, &file) {
        Ok(reader) => reader,
        Err(fault) => return assert!(!fault.to_string().is_empty()),
    };
    assert_eq!((reader.meta().index, reader.meta().term), (INDEX, TERM));
    if let Ok(machine) = Machine::restore(&mut reader) {
        machine.audit();
        assert_eq!(machine.digest(), machine.image().digest());
    }
    // A reader ends, and says nothing after a fault.
    let is_fault = |read: &Result<Bytes, _>| read.is_err();
    let rest: Vec<_> = reader.by_ref().collect();
    assert!(rest.iter().rev().skip(1).all(|read| !is_fault(read)));
    assert!(reader.next().is_none());
}

fn build(any_trailer: bool, mut input: Input<'_>) -> Vec<u8> {
    let mut file = Vec::new();
    let mut trailer = Trailer::default();
    let mut frames = Vec::new();
    while !input.is_empty() {
        let choice = input.byte();
        let claimed = match choice % frame::KINDS {
            frame::CHUNK | frame::GARBAGE => None,
            _ => Some(input.int() as u32),
        };
        let bytes = input.run();
        let kind = match choice % frame::KINDS {
            frame::OTHER => u32::from(choice / frame::KINDS),
            _ => 1,
        };
        let body = match choice % frame::KINDS {
            frame::CHUNK | frame::LYING => {
                zstd::bulk::compress(bytes, 1).expect("memory is enough to compress")
            }
            _ => bytes.to_vec(),
        };
        let raw = claimed.unwrap_or(bytes.len() as u32);
        frames.extend(sealed(trailer.chunks, kind, raw, &body));
        if kind == 1 {
            trailer.chunks += 1;
            trailer.bytes += u64::from(raw);
        }
    }
    if !any_trailer {
        let body = trailer.encode_to_vec();
        frames.extend(sealed(trailer.chunks, 2, body.len() as u32, &body));
    }
    let header = Header {
        index: INDEX,
        term: TERM,
        chunks: trailer.chunks,
        ..Header::default()
    };
    let header = header.encode_to_vec();
    file.extend(b"zkraftSN");
    file.extend(1u32.to_le_bytes());
    file.extend((header.len() as u32).to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&file), &header);
    file.extend(checksum.to_le_bytes());
    file.extend(header);
    file.resize(file.len().next_multiple_of(512), 0);
    file.extend(frames);
    file
}

/// A frame with its checksum: see `src/storage/snapshot.rs`.
fn sealed(number: u64, kind: u32, raw: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = kind.to_le_bytes().to_vec();
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(raw.to_le_bytes());
    let salt = crc32c::crc32c(&number.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c_append(salt, &frame), body);
    frame.extend(checksum.to_le_bytes());
    frame.extend(body);
    frame
}

/// A real file.
fn real() -> Vec<u8> {
    let disk = MemoryDisk::default();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let meta = SnapshotMeta {
        index: INDEX,
        term: TERM,
        ..SnapshotMeta::default()
    };
    let chunks = image::real().into_iter();
    write_snapshot(&shared, Path::new(DIR), 0xc1, &meta, chunks).expect("the disk does not fail");
    disk.contents().remove(0)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let chunks = image::real();
    let frames: Vec<u8> = chunks
        .iter()
        .flat_map(|chunk| [vec![frame::CHUNK], run_of(chunk)].concat())
        .collect();
    let claim = |kind: u8, raw: u32| [&[kind][..], &raw.to_be_bytes(), &run_of(b"abc")].concat();
    vec![
        [vec![0], real()].concat(),
        [vec![1], frames.clone()].concat(),
        [vec![2], frames].concat(),
        [vec![1], claim(frame::LYING, 2)].concat(),
        [vec![1], claim(frame::LYING, 4)].concat(),
        [vec![1], claim(frame::OTHER + frame::KINDS, u32::MAX)].concat(),
        [vec![1, frame::GARBAGE], run_of(b"(\xb5/\xfd\x20\x03abc")].concat(),
    ]
}

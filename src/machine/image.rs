//! Images: the whole state, frozen, as a series of chunks, and back.
//!
//! An image is taken in microseconds, however many znodes there are, and is read while the machine
//! goes on. Machines that applied the same log write the same bytes. The first chunk is a header;
//! each of the others holds a run of slots of one table:
//!
//! ```text
//! header  int 0, format, applied term and index, zxid, time, digest, settings, origins,
//!         then for each table: slots, first free slot; then in format 2 the ensemble's text
//! slots   int table (1 ACLs, 2 sessions, 3 znodes), int first slot, int count, then for each slot
//!         a boolean: true and the record, or false and the slot freed before it
//! ```
//!
//! Framing, checksums and compression are the storage's business.

use bytes::{BufMut, Bytes, BytesMut};

use super::acl;
use super::origin::{OriginId, Origins};
use super::session::{Session, Sessions};
use super::settings::Settings;
use super::slab::{Slab, Slot};
use super::tree::Tree;
use super::znode::Znode;
use super::{Ensemble, LogId, Machine};
use crate::wire::{DecodeError, Reader, Writer, Zxid};

/// Raised with every change of the bytes below; an image says which it has.
const FORMAT: i32 = 2;
/// Has no ensemble. Still written without one, so that a server alone can go back to an older
/// version.
const FORMAT_ALONE: i32 = 1;
const HEADER: i32 = 0;
/// A chunk ends with the record that reaches this size, in bytes.
const CHUNK_BYTES: usize = 240 * 1024;

/// Why bytes are not an image.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum RestoreError<E> {
    #[error("the image cannot be read")]
    Source(#[source] E),
    #[error("the image has format {0}, this version knows {FORMAT}")]
    Format(i32),
    #[error("the image is malformed")]
    Malformed(#[from] DecodeError),
    #[error("the image is not consistent: {0}")]
    Inconsistent(&'static str),
    #[error("the image has the digest {actual:016x} instead of {expected:016x}")]
    Digest { expected: u64, actual: u64 },
}

/// What a slot of a table holds, as bytes.
pub trait Record: Sized {
    fn encode(&self, writer: &mut Writer<'_>);
    /// Keeps nothing of the reader's buffer alive.
    fn decode(reader: &mut Reader) -> Result<Self, DecodeError>;
}

/// The state at one moment. Cheap to hold; what changes meanwhile is copied.
#[derive(Debug)]
pub struct Image {
    applied: LogId,
    zxid: Zxid,
    time_ms: i64,
    digest: u64,
    settings: Settings,
    origins: Origins,
    ensemble: Option<Ensemble>,
    acls: Slab<acl::Entry>,
    sessions: Slab<Session>,
    znodes: Slab<Znode>,
}

impl Image {
    pub fn applied(&self) -> LogId {
        self.applied
    }

    pub fn zxid(&self) -> Zxid {
        self.zxid
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The image as bytes, in chunks of about 256 KiB; only a larger znode makes a larger chunk.
    pub fn chunks(&self) -> impl Iterator<Item = Bytes> {
        let header = std::iter::once_with(|| self.header());
        header
            .chain(slab_chunks(1, &self.acls))
            .chain(slab_chunks(2, &self.sessions))
            .chain(slab_chunks(3, &self.znodes))
    }

    fn header(&self) -> Bytes {
        let mut out = BytesMut::new();
        let w = &mut Writer::new(&mut out);
        w.int(HEADER);
        w.int(match self.ensemble {
            Some(_) => FORMAT,
            None => FORMAT_ALONE,
        });
        w.long(self.applied.term as i64);
        w.long(self.applied.index as i64);
        w.long(self.zxid.0);
        w.long(self.time_ms);
        w.long(self.digest as i64);
        w.count(self.settings.iter().count());
        for (name, value) in self.settings.iter() {
            w.text(name);
            w.long(value);
        }
        w.count(self.origins.iter().count());
        for (origin, last) in self.origins.iter() {
            w.int(origin.server as i32);
            w.long(origin.disk as i64);
            w.long(origin.incarnation as i64);
            w.long(last as i64);
        }
        let shapes = [
            (self.acls.slots(), self.acls.free()),
            (self.sessions.slots(), self.sessions.free()),
            (self.znodes.slots(), self.znodes.free()),
        ];
        for (slots, free) in shapes {
            w.int(slots as i32);
            w.int(free as i32);
        }
        if let Some(ensemble) = &self.ensemble {
            w.text(&ensemble.to_string());
        }
        out.freeze()
    }
}

impl Machine {
    /// Freezes the present state.
    pub fn image(&self) -> Image {
        let (znodes, acls) = self.tree.slabs();
        Image {
            applied: self.applied,
            zxid: self.zxid,
            time_ms: self.time_ms,
            digest: self.digest(),
            settings: self.settings.clone(),
            origins: self.origins.clone(),
            ensemble: self.ensemble.clone(),
            acls: acls.clone(),
            sessions: self.sessions.slab().clone(),
            znodes: znodes.clone(),
        }
    }

    /// The machine that an image was taken of.
    ///
    /// # Errors
    /// If a chunk cannot be had, or if the chunks are not an image with the digest it claims.
    pub fn restore<E>(
        chunks: impl Iterator<Item = Result<Bytes, E>>,
    ) -> Result<Self, RestoreError<E>> {
        let mut chunks = chunks.map(|chunk| chunk.map_err(RestoreError::Source));
        let first = chunks
            .next()
            .ok_or(RestoreError::Inconsistent("it is empty"))??;
        let header = Header::decode(&mut Reader::new(first))?;
        let mut acls = Table::new(1, header.shapes[0]);
        let mut sessions = Table::new(2, header.shapes[1]);
        let mut znodes = Table::new(3, header.shapes[2]);
        for chunk in chunks {
            let r = &mut Reader::new(chunk?);
            match r.int()? {
                1 => acls.read(r)?,
                2 => sessions.read(r)?,
                3 => znodes.read(r)?,
                other => return Err(DecodeError::Value(other).into()),
            }
        }
        let tree = Tree::restore(znodes.finish()?, acls.finish()?);
        let sessions = Sessions::restore(sessions.finish()?);
        let mut machine = Self {
            tree: tree.ok_or(RestoreError::Inconsistent("a znode has no ACL"))?,
            sessions: sessions.ok_or(RestoreError::Inconsistent("two sessions have one id"))?,
            settings: header.settings,
            origins: header.origins,
            ensemble: header.ensemble,
            applied: header.applied,
            zxid: header.zxid,
            time_ms: header.time_ms,
            no_quorum: false,
            local: false,
            changes: Vec::new(),
            closed: None,
        };
        let (expected, actual) = (header.digest, machine.digest());
        if expected != actual {
            return Err(RestoreError::Digest { expected, actual });
        }
        machine.tree.derive_all();
        Ok(machine)
    }
}

/// What the first chunk says.
struct Header {
    applied: LogId,
    zxid: Zxid,
    time_ms: i64,
    digest: u64,
    settings: Settings,
    origins: Origins,
    ensemble: Option<Ensemble>,
    /// Of each table: slots, first free slot.
    shapes: [(u32, u32); 3],
}

impl Header {
    fn decode<E>(r: &mut Reader) -> Result<Self, RestoreError<E>> {
        if r.int()? != HEADER {
            return Err(RestoreError::Inconsistent(
                "it does not begin with a header",
            ));
        }
        let format = r.int()?;
        if ![FORMAT_ALONE, FORMAT].contains(&format) {
            return Err(RestoreError::Format(format));
        }
        let applied = LogId {
            term: r.long()? as u64,
            index: r.long()? as u64,
        };
        let zxid = Zxid(r.long()?);
        let time_ms = r.long()?;
        let digest = r.long()? as u64;
        let mut settings = Settings::default();
        for _ in 0..r.int()? {
            settings.set(&r.required_text()?, r.long()?);
        }
        let mut origins = Origins::default();
        for _ in 0..r.int()? {
            let origin = OriginId {
                server: r.int()? as u32,
                disk: r.long()? as u64,
                incarnation: r.long()? as u64,
            };
            origins.put(origin, r.long()? as u64);
        }
        let mut shapes = [(0, 0); 3];
        for shape in &mut shapes {
            *shape = (r.int()? as u32, r.int()? as u32);
        }
        let mut ensemble = None;
        if format != FORMAT_ALONE {
            let parsed = Ensemble::parse(&r.required_text()?);
            ensemble =
                Some(parsed.map_err(|_| RestoreError::Inconsistent("its ensemble is none"))?);
        }
        Ok(Self {
            applied,
            zxid,
            time_ms,
            digest,
            settings,
            origins,
            ensemble,
            shapes,
        })
    }
}

/// A table that is being read.
struct Table<T> {
    slab: Slab<T>,
    number: i32,
    slots: u32,
    free: u32,
}

impl<T: Record + Clone> Table<T> {
    fn new(number: i32, (slots, free): (u32, u32)) -> Self {
        Self {
            slab: Slab::default(),
            number,
            slots,
            free,
        }
    }

    fn read<E>(&mut self, r: &mut Reader) -> Result<(), RestoreError<E>> {
        if r.int()? as u32 != self.slab.slots() {
            return Err(RestoreError::Inconsistent(
                "a chunk is missing or out of order",
            ));
        }
        for _ in 0..r.int()? {
            if self.slab.slots() >= self.slots {
                return Err(RestoreError::Inconsistent(
                    "a table has more slots than it should",
                ));
            }
            let slot = if r.boolean()? {
                Slot::Used(T::decode(r)?)
            } else {
                Slot::Free(r.int()? as u32)
            };
            self.slab.push(slot);
        }
        Ok(())
    }

    fn finish<E>(mut self) -> Result<Slab<T>, RestoreError<E>> {
        if self.slab.slots() != self.slots {
            return Err(RestoreError::Inconsistent(match self.number {
                1 => "ACLs are missing",
                2 => "sessions are missing",
                _ => "znodes are missing",
            }));
        }
        if !self.slab.set_free(self.free) {
            return Err(RestoreError::Inconsistent("a list of free slots is broken"));
        }
        Ok(self.slab)
    }
}

/// The slots of a table, in chunks.
fn slab_chunks<T: Record>(number: i32, slab: &Slab<T>) -> impl Iterator<Item = Bytes> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let first = next;
        if first >= slab.slots() {
            return None;
        }
        let mut out = BytesMut::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 16);
        let mut w = Writer::new(&mut out);
        w.int(number);
        w.int(first as i32);
        w.int(0); // The count, known at the end.
        while next < slab.slots() && out.len() < CHUNK_BYTES {
            let mut w = Writer::new(&mut out);
            match slab
                .slot(next)
                .expect("the slot is below the number of slots")
            {
                Slot::Used(record) => {
                    w.boolean(true);
                    record.encode(&mut w);
                }
                Slot::Free(before) => {
                    w.boolean(false);
                    w.int(*before as i32);
                }
            }
            next += 1;
        }
        (&mut out[8..12]).put_u32(next - first);
        Some(out.freeze())
    })
}

//! One znode: its fields, its Stat, its terms of the digest, its record in an image.

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use super::acl::{AclId, Acls};
use super::digest::{Part, Term};
use super::image::Record;
use super::slab;
use crate::wire::{Acl, DecodeError, Reader, SessionId, Stat, Text, Writer, Zxid};

/// From this size on, in bytes, the content of a znode is shared with its readers and with images;
/// smaller ones are copied, which is cheaper than a reference count in each of millions.
const LARGE_FROM: usize = 1024;

/// The number of a znode; [`NodeId::NONE`] where there is none.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub u32);

impl NodeId {
    pub const NONE: Self = Self(slab::NONE);
    pub const ROOT: Self = Self(0);
    /// `/zookeeper/quota`, which cannot be deleted, so its number never changes.
    pub const QUOTA: Self = Self(2);
    /// `/zookeeper/config`, of which the same is true.
    pub const CONFIG: Self = Self(3);

    pub fn exists(self) -> bool {
        self != Self::NONE
    }
}

/// What decides how a znode ends (§5.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Until it is deleted.
    Persistent,
    /// At the latest with this session.
    Ephemeral(SessionId),
    /// When it has had children and has none.
    Container,
    /// When it has no children and its data was not set for this many milliseconds.
    Ttl(i64),
}

impl Kind {
    pub fn is_cleanable(self) -> bool {
        matches!(self, Self::Container | Self::Ttl(_))
    }
}

/// The kind without its number, so that a znode has no room to waste.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Tag {
    Persistent,
    Ephemeral,
    Container,
    Ttl,
}

/// The children of a znode that has, or had, some.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Children {
    /// Children created so far: the next sequence number (§5.2).
    pub created: i64,
    /// The last change of the list.
    pub pzxid: Zxid,
    pub count: u32,
    pub first: NodeId,
    pub last: NodeId,
    /// Of all their names, in bytes. Follows from the tree: it is in no image.
    pub names: u64,
}

/// Name and data, in one allocation.
#[derive(Clone, Debug)]
enum Content {
    Small(Box<[u8]>),
    Large(Arc<Box<[u8]>>),
}

impl Content {
    /// Copies both out of whatever buffer they came in.
    fn new(name: &[u8], data: Option<&[u8]>) -> Self {
        let bytes = [name, data.unwrap_or_default()].concat().into_boxed_slice();
        if bytes.len() < LARGE_FROM {
            Self::Small(bytes)
        } else {
            Self::Large(Arc::new(bytes))
        }
    }
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Large(bytes) => bytes,
        }
    }
}

/// The large content of a znode as a reply holds it.
struct Shared(Arc<Box<[u8]>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// One znode. There are millions: its size is asserted in a test.
#[derive(Clone, Debug)]
pub struct Znode {
    pub czxid: Zxid,
    pub mzxid: Zxid,
    pub ctime: i64,
    pub mtime: i64,
    /// The session of an ephemeral, the lifetime of a TTL znode.
    owner: i64,
    /// `None` for one that never had a child.
    children: Option<Box<Children>>,
    /// Name and data in one allocation.
    content: Content,
    name_bytes: u32,
    pub version: i32,
    pub aversion: i32,
    pub acl: AclId,
    pub parent: NodeId,
    pub previous: NodeId,
    pub next: NodeId,
    tag: Tag,
    /// False: the data is null, which differs from empty.
    has_data: bool,
}

/// A znode to be.
pub struct NewZnode<'a> {
    pub parent: NodeId,
    pub name: &'a str,
    /// `None` is null.
    pub data: Option<&'a [u8]>,
    pub acl: &'a [Acl],
    pub kind: Kind,
    pub zxid: Zxid,
    pub time_ms: i64,
}

impl Znode {
    /// A znode as its creation leaves it, without siblings yet.
    pub fn new(new: &NewZnode<'_>, acl: AclId) -> Self {
        let (tag, owner) = match new.kind {
            Kind::Persistent => (Tag::Persistent, 0),
            Kind::Ephemeral(session) => (Tag::Ephemeral, session.0),
            Kind::Container => (Tag::Container, 0),
            Kind::Ttl(ttl) => (Tag::Ttl, ttl),
        };
        Self {
            czxid: new.zxid,
            mzxid: new.zxid,
            ctime: new.time_ms,
            mtime: new.time_ms,
            owner,
            children: None,
            content: Content::new(new.name.as_bytes(), new.data),
            name_bytes: u32::try_from(new.name.len()).expect("a name is shorter than a frame"),
            version: 0,
            aversion: 0,
            acl,
            parent: new.parent,
            previous: NodeId::NONE,
            next: NodeId::NONE,
            tag,
            has_data: new.data.is_some(),
        }
    }

    pub fn kind(&self) -> Kind {
        match self.tag {
            Tag::Persistent => Kind::Persistent,
            Tag::Ephemeral => Kind::Ephemeral(SessionId(self.owner)),
            Tag::Container => Kind::Container,
            Tag::Ttl => Kind::Ttl(self.owner),
        }
    }

    pub fn name(&self) -> &str {
        std::str::from_utf8(self.name_bytes()).expect("a name came from text")
    }

    /// The name as text of its own.
    pub fn name_text(&self) -> Text {
        Text::from(self.name())
    }

    /// `None` is null.
    pub fn data(&self) -> Option<&[u8]> {
        self.has_data
            .then(|| &self.content[self.name_bytes as usize..])
    }

    pub fn set_data(&mut self, data: Option<&[u8]>) {
        self.content = Content::new(self.name_bytes(), data);
        self.has_data = data.is_some();
    }

    /// Takes name and data of an earlier self.
    pub fn take_content(&mut self, earlier: &Self) {
        self.content = earlier.content.clone();
        self.has_data = earlier.has_data;
    }

    /// Loads fields that lie apart, and with them the lines of memory that all are in. What it
    /// returns means nothing.
    pub fn look_at_fields(&self) -> u64 {
        let first = self.czxid.0 as u64 ^ self.owner as u64;
        let last = u64::from(self.parent.0) ^ u64::from(self.has_data);
        first ^ last ^ self.content.as_ptr() as u64
    }

    /// The same for the first part of the content.
    pub fn look_at_content(&self) -> u64 {
        const LINE: usize = 64;
        let lines = self.content.iter().step_by(LINE).take(4);
        let last = self
            .content
            .last()
            .filter(|_| self.content.len() < 4 * LINE);
        lines
            .chain(last)
            .fold(0, |all, byte| all ^ u64::from(*byte))
    }

    /// The data for a reply: large data is shared, not copied.
    pub fn shared_data(&self) -> Option<Bytes> {
        let data = self.data()?;
        Some(match &self.content {
            Content::Small(_) => Bytes::copy_from_slice(data),
            Content::Large(large) => {
                Bytes::from_owner(Shared(Arc::clone(large))).slice(self.name_bytes as usize..)
            }
        })
    }

    /// Children created so far.
    pub fn created(&self) -> i64 {
        self.children
            .as_ref()
            .map_or(0, |children| children.created)
    }

    /// Children there are.
    pub fn count(&self) -> u32 {
        self.children.as_ref().map_or(0, |children| children.count)
    }

    /// What a list of the children's names takes in a reply, in bytes.
    pub fn list_bytes(&self) -> usize {
        let of = |children: &Children| children.names as usize + 4 * children.count as usize;
        self.children.as_deref().map_or(0, of)
    }

    pub fn pzxid(&self) -> Zxid {
        self.children
            .as_ref()
            .map_or(self.czxid, |children| children.pzxid)
    }

    pub fn stat(&self) -> Stat {
        let count = i64::from(self.count());
        Stat {
            czxid: self.czxid,
            mzxid: self.mzxid,
            ctime: self.ctime,
            mtime: self.mtime,
            version: self.version,
            cversion: (2 * self.created() - count) as i32,
            aversion: self.aversion,
            ephemeral_owner: if self.tag == Tag::Ephemeral {
                self.owner
            } else {
                0
            },
            data_length: self.data().map_or(0, |data| data.len() as i32),
            num_children: count as i32,
            pzxid: self.pzxid(),
        }
    }

    pub fn name_bytes(&self) -> &[u8] {
        &self.content[..self.name_bytes as usize]
    }

    pub fn children_mut(&mut self) -> &mut Children {
        let pzxid = self.czxid;
        self.children.get_or_insert_with(|| {
            Box::new(Children {
                pzxid,
                ..Children::NONE
            })
        })
    }

    pub fn first(&self) -> NodeId {
        self.children
            .as_ref()
            .map_or(NodeId::NONE, |children| children.first)
    }

    pub fn last(&self) -> NodeId {
        self.children
            .as_ref()
            .map_or(NodeId::NONE, |children| children.last)
    }

    /// The digest's term of everything but name and data, so that a change of the children of a
    /// znode does not cost what its data weighs.
    pub fn fields_term(&self, id: NodeId, acls: &Acls) -> u64 {
        let pair = |high: u32, low: u32| (u64::from(high) << 32) | u64::from(low);
        Term::new(Part::Fields)
            .word(pair(id.0, self.parent.0))
            .word(pair(self.previous.0, self.next.0))
            .word(pair(self.first().0, self.last().0))
            .word(pair(self.version as u32, self.aversion as u32))
            .word(pair(self.count(), self.tag as u32))
            .signed(self.owner)
            .signed(self.czxid.0)
            .signed(self.mzxid.0)
            .signed(self.pzxid().0)
            .signed(self.ctime)
            .signed(self.mtime)
            .signed(self.created())
            .word(acls.term(self.acl))
            .finish()
    }

    pub fn content_term(&self, id: NodeId) -> u64 {
        Term::new(Part::Content)
            .word((u64::from(id.0) << 1) | u64::from(self.has_data))
            .word(self.name_bytes.into())
            .bytes(&self.content)
            .finish()
    }
}

impl Record for Znode {
    fn encode(&self, w: &mut Writer<'_>) {
        for number in [
            self.czxid.0,
            self.mzxid.0,
            self.ctime,
            self.mtime,
            self.owner,
        ] {
            w.long(number);
        }
        for number in [self.version, self.aversion, self.tag as i32] {
            w.int(number);
        }
        for number in [self.acl.0, self.parent.0, self.previous.0, self.next.0] {
            w.int(number as i32);
        }
        // A record of children that says no more than its absence is left out, so that the image
        // does not depend on what was taken back.
        let nobody = Children {
            pzxid: self.czxid,
            ..Children::NONE
        };
        let children = self
            .children
            .as_deref()
            .filter(|children| **children != nobody);
        w.boolean(children.is_some());
        if let Some(children) = children {
            w.long(children.created);
            w.long(children.pzxid.0);
            for number in [children.count, children.first.0, children.last.0] {
                w.int(number as i32);
            }
        }
        w.text(self.name());
        w.buffer(self.data());
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        let [czxid, mzxid] = [Zxid(r.long()?), Zxid(r.long()?)];
        let [ctime, mtime, owner] = [r.long()?, r.long()?, r.long()?];
        let [version, aversion, tag] = [r.int()?, r.int()?, r.int()?];
        let acl = AclId(r.int()? as u32);
        let [parent, previous, next] = [(); 3].map(|()| r.int().map(|id| NodeId(id as u32)));
        let children = if r.boolean()? {
            Some(Box::new(Children::decode(r)?))
        } else {
            None
        };
        let name = r.required_text()?;
        let data = r.buffer()?;
        Ok(Self {
            czxid,
            mzxid,
            ctime,
            mtime,
            owner,
            children,
            content: Content::new(name.as_str().as_bytes(), data.as_deref()),
            name_bytes: name.len() as u32,
            version,
            aversion,
            acl,
            parent: parent?,
            previous: previous?,
            next: next?,
            tag: Tag::from_number(tag).ok_or(DecodeError::Value(tag))?,
            has_data: data.is_some(),
        })
    }
}

impl Children {
    const NONE: Self = Self {
        created: 0,
        pzxid: Zxid(0),
        count: 0,
        first: NodeId::NONE,
        last: NodeId::NONE,
        names: 0,
    };

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            created: r.long()?,
            pzxid: Zxid(r.long()?),
            count: r.int()? as u32,
            first: NodeId(r.int()? as u32),
            last: NodeId(r.int()? as u32),
            names: 0,
        })
    }
}

impl Tag {
    fn from_number(number: i32) -> Option<Self> {
        let tags = [
            Self::Persistent,
            Self::Ephemeral,
            Self::Container,
            Self::Ttl,
        ];
        tags.into_iter().find(|tag| *tag as i32 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::slab::Slot;

    #[test]
    fn large_data_is_shared_with_its_readers() {
        let znode = |data: &[u8]| {
            let new = NewZnode {
                parent: NodeId::ROOT,
                name: "name",
                data: Some(data),
                acl: &[],
                kind: Kind::Persistent,
                zxid: Zxid(1),
                time_ms: 1,
            };
            Znode::new(&new, AclId(0))
        };
        for (bytes, is_shared) in [(1, false), (LARGE_FROM - 5, false), (LARGE_FROM - 4, true)] {
            let data = vec![7; bytes];
            let znode = znode(&data);
            let reads = [&znode, &znode.clone()].map(|znode| znode.shared_data().unwrap());
            assert_eq!((&reads[0], znode.name()), (&Bytes::from(data), "name"));
            assert_eq!(
                reads[0].as_ptr() == reads[1].as_ptr(),
                is_shared,
                "{bytes} bytes"
            );
        }
    }

    #[test]
    fn a_slot_takes_96_bytes() {
        assert_eq!(size_of::<Slot<Znode>>(), 96);
    }
}

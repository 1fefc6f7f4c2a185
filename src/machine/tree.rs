//! The znodes: an inode table, an index from (parent, name), and lists of siblings.
//!
//! A znode is a slot of a [`Slab`]; its children are a doubly linked list through the children's
//! own slots, in order of creation, so a directory with a million children costs nothing to freeze.
//! Everything else here is derived from the slots and is rebuilt when an image is loaded.
//!
//! Every change keeps the digest, the index and the counts right, and can be taken back while a
//! journal is kept. The tree knows nothing of permissions, versions to expect, or quotas.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::acl::{self, Acls};
use super::index::Index;
use super::path;
use super::slab::Slab;
use super::znode::{Children, Kind, NewZnode, NodeId, Znode};
use crate::wire::{Acl, SessionId, Zxid};

/// How many paths [`super::Machine::bring_near`] takes at once: what it looks at for them stays in
/// the nearest caches, and a processor has no more loads under way.
pub const NEAR_AT_ONCE: usize = 16;
/// So many znodes are in the caches by themselves, and would only be looked at twice.
const NEAR_ANYWAY: usize = 8_192;
/// How many paths [`Recent`] remembers: about as many as have their znodes in the caches.
const RECENT: usize = 4_096;

/// How to take one change back.
#[derive(Debug)]
enum Undo {
    Insert {
        id: NodeId,
        created: i64,
        pzxid: Zxid,
    },
    Remove {
        id: NodeId,
        znode: Box<Znode>,
        pzxid: Zxid,
    },
    Data {
        id: NodeId,
        before: Box<Znode>,
    },
}

/// Paths that were asked for a moment ago, some of them: whoever asks for one of these again most
/// likely asks for others that are near as well. Nothing but speed depends on it.
#[derive(Debug)]
struct Recent(Box<[AtomicU32]>);

impl Recent {
    fn new() -> Self {
        Self((0..RECENT).map(|_| AtomicU32::new(0)).collect())
    }

    /// Whether the path of this hash is one of them; from now on it is.
    fn has(&self, hash: u64) -> bool {
        let place = &self.0[hash as usize % RECENT];
        let mark = (hash >> 32) as u32;
        let has = place.load(Ordering::Relaxed) == mark;
        if !has {
            place.store(mark, Ordering::Relaxed);
        }
        has
    }
}

/// All znodes.
#[derive(Debug)]
pub struct Tree {
    znodes: Slab<Znode>,
    acls: Acls,
    /// From the hash of (parent, name), seeded at random so that no client can choose names that
    /// collide. Never iterated, so the seed shows nowhere.
    index: Index<NodeId>,
    hasher: foldhash::fast::RandomState,
    recent: Recent,
    ephemerals: BTreeMap<SessionId, BTreeSet<NodeId>>,
    ephemeral_count: usize,
    /// Containers and TTL znodes.
    cleanable: BTreeSet<NodeId>,
    /// Bytes of all paths and all data.
    bytes: u64,
    digest: u64,
    /// What changed since [`Self::begin`].
    journal: Option<Vec<Undo>>,
}

impl Tree {
    /// A tree of only the root, which belongs to no transaction (§5.5).
    pub fn new() -> Self {
        let mut tree = Self::empty(Slab::default(), Acls::default());
        let root = NewZnode {
            parent: NodeId::NONE,
            name: "",
            data: Some(b""),
            acl: &[Acl::open()],
            kind: Kind::Persistent,
            zxid: Zxid(0),
            time_ms: 0,
        };
        let acl = tree.acls.intern(root.acl);
        let id = NodeId(tree.znodes.insert(Znode::new(&root, acl)));
        assert_eq!(id, NodeId::ROOT, "the root is the first znode");
        tree.enter(id);
        tree
    }

    pub fn get(&self, id: NodeId) -> &Znode {
        self.znodes
            .get(id.0)
            .expect("ids in hand are of znodes that exist")
    }

    pub fn acl(&self, id: NodeId) -> &Arc<[Acl]> {
        self.acls.get(self.get(id).acl)
    }

    /// The znode at a path. `""` is the root too; a malformed path has none (§3.3).
    pub fn lookup(&self, path: &str) -> Option<NodeId> {
        if path.is_empty() || path == "/" {
            return Some(NodeId::ROOT);
        }
        path::names(path)?.try_fold(NodeId::ROOT, |id, name| self.child(id, name))
    }

    /// The child of this name.
    pub fn child(&self, parent: NodeId, name: impl AsRef<[u8]>) -> Option<NodeId> {
        let name = name.as_ref();
        let hash = self.hash(parent, name);
        self.index.find(hash, |id| {
            let znode = self.get(id);
            znode.parent == parent && znode.name_bytes() == name
        })
    }

    /// Looks at what requests for these paths will look at, so that it is in the caches then. In a
    /// large tree each of them waits for the memory some five times, one after the other; here
    /// they all wait at the same time. Takes at most [`NEAR_AT_ONCE`], and is for more than one.
    /// If the first was asked for a moment ago, all of them pass for near.
    pub fn bring_near<'a>(&self, paths: impl Iterator<Item = &'a str>) {
        if self.len() < NEAR_ANYWAY {
            return;
        }
        let mut paths = paths.peekable();
        let first = paths.peek().map(|path| self.hasher.hash_one(path));
        if first.is_none_or(|first| self.recent.has(first)) {
            return;
        }
        let mut near = [NodeId::ROOT; NEAR_AT_ONCE];
        let mut taken = 0;
        for (id, path) in near.iter_mut().zip(paths) {
            let likely = path::split(path).and_then(|(parent, name)| {
                // The parents are few, as a rule, or are alike.
                let parent = self.lookup(parent)?;
                self.index.likely(self.hash(parent, name.as_bytes()))
            });
            *id = likely.unwrap_or(NodeId::ROOT);
            taken += 1;
        }
        // In loops that do nothing else, so that the loads of many znodes are under way at once.
        let znodes = || near[..taken].iter().filter_map(|id| self.znodes.get(id.0));
        let fields = znodes().fold(0, |all, znode| all ^ znode.look_at_fields());
        let content = znodes().fold(0, |all, znode| all ^ znode.look_at_content());
        std::hint::black_box((fields, content));
    }

    /// The children in order of creation.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = (NodeId, &Znode)> {
        let mut next = self.get(id).first();
        std::iter::from_fn(move || {
            let id = next.exists().then_some(next)?;
            let znode = self.get(id);
            next = znode.next;
            Some((id, znode))
        })
    }

    /// The znode and everything below it, parents first.
    pub fn subtree(&self, root: NodeId) -> impl Iterator<Item = (NodeId, &Znode)> {
        let mut next = Some(root);
        std::iter::from_fn(move || {
            let id = next?;
            let znode = self.get(id);
            next = self.following(id, root);
            Some((id, znode))
        })
    }

    pub fn path(&self, id: NodeId) -> String {
        let mut names = Vec::new();
        let mut at = id;
        while at != NodeId::ROOT {
            let znode = self.get(at);
            names.push(znode.name());
            at = znode.parent;
        }
        if names.is_empty() {
            return "/".into();
        }
        names.iter().rev().flat_map(|name| ["/", name]).collect()
    }

    /// The znodes there are, with the root.
    pub fn len(&self) -> usize {
        self.znodes.used()
    }

    /// What an image holds of the tree.
    pub fn slabs(&self) -> (&Slab<Znode>, &Slab<acl::Entry>) {
        (&self.znodes, self.acls.slab())
    }

    pub fn ephemeral_count(&self) -> usize {
        self.ephemeral_count
    }

    /// Bytes of all paths and all data.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The ephemerals of a session, in no meaningful order.
    pub fn ephemerals(&self, session: SessionId) -> impl Iterator<Item = NodeId> {
        self.ephemerals.get(&session).into_iter().flatten().copied()
    }

    /// Sessions that own ephemerals, by id.
    pub fn owners(&self) -> impl Iterator<Item = SessionId> {
        self.ephemerals.keys().copied()
    }

    /// Containers and TTL znodes.
    pub fn cleanable(&self, from: NodeId) -> impl Iterator<Item = (NodeId, &Znode)> {
        self.cleanable.range(from..).map(|id| (*id, self.get(*id)))
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The digest from scratch, for checks.
    pub fn recompute(&self) -> u64 {
        self.znodes.iter().fold(0, |sum: u64, (id, znode)| {
            sum.wrapping_add(znode.fields_term(NodeId(id), &self.acls))
                .wrapping_add(znode.content_term(NodeId(id)))
        })
    }

    /// Looks at everything.
    ///
    /// # Panics
    /// If a list of siblings, a count, or anything else that is derived is not as it must be.
    pub fn audit(&self) {
        assert!(
            self.journal.is_none(),
            "between commands nothing can be taken back"
        );
        let mut fresh = Self::empty(self.znodes.clone(), Acls::restore(self.acls.slab().clone()));
        fresh.derive_all();
        assert_eq!(self.digest, self.recompute(), "digest");
        assert_eq!(self.bytes, fresh.bytes, "bytes");
        assert_eq!(self.ephemerals, fresh.ephemerals, "ephemerals");
        assert_eq!(
            self.ephemeral_count, fresh.ephemeral_count,
            "count of ephemerals"
        );
        assert_eq!(self.cleanable, fresh.cleanable, "containers and TTL znodes");
        assert!(self.acls.agrees_with(&fresh.acls), "references to ACLs");
        assert_eq!(
            self.index.len() + 1,
            self.len(),
            "the index has every znode but the root"
        );
        assert_eq!(
            self.subtree(NodeId::ROOT).count(),
            self.len(),
            "every znode can be reached"
        );
        for (id, znode) in self.subtree(NodeId::ROOT) {
            let mut previous = NodeId::NONE;
            for (child, znode) in self.children(id) {
                assert_eq!(
                    (znode.parent, znode.previous),
                    (id, previous),
                    "links of {child:?}"
                );
                assert_eq!(
                    self.child(id, znode.name()),
                    Some(child),
                    "place of {child:?}"
                );
                previous = child;
            }
            assert_eq!(znode.last(), previous, "last child of {id:?}");
            assert_eq!(
                self.children(id).count(),
                znode.count() as usize,
                "children of {id:?}"
            );
            let names = self.children(id).map(|(_, child)| 4 + child.name().len());
            assert_eq!(
                names.sum::<usize>(),
                znode.list_bytes(),
                "names below {id:?}"
            );
        }
    }

    /// Adds a child at the end of its parent's list, which must not have one of that name.
    pub fn insert(&mut self, new: &NewZnode<'_>) -> NodeId {
        let parent = self.get(new.parent);
        let (created, pzxid) = (parent.created(), parent.pzxid());
        let id = self.append(new, |children| {
            children.created += 1;
            children.pzxid = new.zxid;
        });
        self.record(|| Undo::Insert { id, created, pzxid });
        id
    }

    /// Adds a znode that no transaction created: those of the very first start.
    pub fn insert_system(&mut self, new: &NewZnode<'_>, aversion: i32) {
        let id = self.append(new, |_| {});
        self.edit(id, |znode| znode.aversion = aversion);
    }

    /// Removes a znode without children.
    pub fn remove(&mut self, id: NodeId, zxid: Zxid) {
        let znode = self.get(id);
        let pzxid = self.get(znode.parent).pzxid();
        let acl = znode.acl;
        if self.journal.is_some() {
            // The list must still be there if the znode comes back.
            self.acls.hold(acl);
        }
        let znode = self.unlink(id, |children| children.pzxid = children.pzxid.max(zxid));
        self.record(|| Undo::Remove {
            id,
            znode: Box::new(znode),
            pzxid,
        });
    }

    /// Replaces the data as a client does: version, mzxid and mtime follow.
    pub fn set_data(&mut self, id: NodeId, data: Option<&[u8]>, zxid: Zxid, time_ms: i64) {
        self.replace_content(id, data, |znode| {
            znode.version = znode.version.wrapping_add(1);
            znode.mzxid = zxid;
            znode.mtime = time_ms;
        });
    }

    /// Replaces the data as a change of the ensemble does: it has no version to count (§3.4).
    pub fn configure(&mut self, id: NodeId, data: &[u8], zxid: Zxid, time_ms: i64) {
        self.replace_content(id, Some(data), |znode| {
            znode.version = -1;
            znode.mzxid = zxid;
            znode.mtime = time_ms;
        });
    }

    /// Replaces the data and nothing else: how the server keeps statistics (§5.6).
    pub fn rewrite(&mut self, id: NodeId, data: &[u8]) {
        self.replace_content(id, Some(data), |_| {});
    }

    /// Replaces the access control list. Never part of a multi, so it cannot be taken back.
    pub fn set_acl(&mut self, id: NodeId, acl: &[Acl]) {
        assert!(self.journal.is_none(), "no multi sets an ACL");
        let acl = self.acls.intern(acl);
        let before = self.get(id).acl;
        self.acls.hold(acl);
        self.edit(id, |znode| {
            znode.acl = acl;
            znode.aversion = znode.aversion.wrapping_add(1);
        });
        self.acls.release(before);
    }

    /// From here on changes can be taken back.
    pub fn begin(&mut self) {
        assert!(self.journal.is_none(), "multis do not nest");
        self.journal = Some(Vec::new());
    }

    /// Keeps the changes since [`Self::begin`].
    pub fn commit(&mut self) {
        for undo in self.journal.take().into_iter().flatten() {
            if let Undo::Remove { znode, .. } = undo {
                self.acls.release(znode.acl);
            }
        }
    }

    /// Takes the changes since [`Self::begin`] back, the last first.
    pub fn roll_back(&mut self) {
        for undo in self.journal.take().into_iter().flatten().rev() {
            match undo {
                Undo::Insert { id, created, pzxid } => {
                    self.unlink(id, |children| {
                        (children.created, children.pzxid) = (created, pzxid);
                    });
                }
                Undo::Remove { id, znode, pzxid } => {
                    let acl = znode.acl;
                    let slot = self.znodes.insert(*znode);
                    assert_eq!(slot, id.0, "what was freed last is taken first");
                    self.link(id, |children| children.pzxid = pzxid);
                    self.acls.release(acl);
                }
                Undo::Data { id, before } => self.restore_content(id, &before),
            }
        }
    }

    /// The tree of an image, with nothing derived yet. `None` if a znode names an access control
    /// list that is not there; nothing else is checked.
    pub fn restore(znodes: Slab<Znode>, acls: Slab<acl::Entry>) -> Option<Self> {
        let mut tree = Self::empty(znodes, Acls::restore(acls));
        if tree
            .znodes
            .iter()
            .any(|(_, znode)| !tree.acls.contains(znode.acl))
        {
            return None;
        }
        tree.digest = tree.recompute();
        Some(tree)
    }

    /// Rebuilds what is derived after [`Self::restore`]. It follows links, so the digest must have
    /// been looked at.
    pub fn derive_all(&mut self) {
        self.index = Index::with_capacity(self.znodes.used());
        for number in 0..self.znodes.slots() {
            let Some(znode) = self.znodes.get(number) else {
                continue;
            };
            let (parent, bytes) = (znode.parent, znode.name_bytes().len() as u64);
            self.derive(NodeId(number));
            if let Some(parent) = self.znodes.get_mut(parent.0) {
                parent.children_mut().names += bytes;
            }
        }
    }

    fn empty(znodes: Slab<Znode>, acls: Acls) -> Self {
        Self {
            znodes,
            acls,
            index: Index::default(),
            hasher: foldhash::fast::RandomState::default(),
            recent: Recent::new(),
            ephemerals: BTreeMap::new(),
            ephemeral_count: 0,
            cleanable: BTreeSet::new(),
            bytes: 0,
            digest: 0,
            journal: None,
        }
    }

    fn record(&mut self, undo: impl FnOnce() -> Undo) {
        if let Some(journal) = &mut self.journal {
            journal.push(undo());
        }
    }

    fn append(&mut self, new: &NewZnode<'_>, edit: impl FnOnce(&mut Children)) -> NodeId {
        let acl = self.acls.intern(new.acl);
        let mut znode = Znode::new(new, acl);
        znode.previous = self.get(new.parent).last();
        let id = NodeId(self.znodes.insert(znode));
        self.link(id, edit);
        id
    }

    /// Joins a znode in its slot to the siblings it names, and enters it everywhere.
    fn link(&mut self, id: NodeId, edit: impl FnOnce(&mut Children)) {
        let bytes = self.get(id).name_bytes().len() as u64;
        self.join(id, id, id, |children| {
            children.count += 1;
            children.names += bytes;
            edit(children);
        });
        self.enter(id);
    }

    /// The reverse of [`Self::link`], and the slot becomes free. The znode keeps its links.
    fn unlink(&mut self, id: NodeId, edit: impl FnOnce(&mut Children)) -> Znode {
        let znode = self.get(id);
        assert_eq!(znode.count(), 0, "only a leaf is removed");
        let (previous, next) = (znode.previous, znode.next);
        let bytes = znode.name_bytes().len() as u64;
        self.leave(id);
        self.join(id, next, previous, |children| {
            children.count -= 1;
            children.names -= bytes;
            edit(children);
        });
        self.znodes.remove(id.0).expect("it was there a moment ago")
    }

    /// Tells a znode's neighbours what now follows the previous and precedes the next one; at the
    /// ends of the list it is the parent who is told.
    fn join(
        &mut self,
        id: NodeId,
        after_previous: NodeId,
        before_next: NodeId,
        edit: impl FnOnce(&mut Children),
    ) {
        let znode = self.get(id);
        let (parent, previous, next) = (znode.parent, znode.previous, znode.next);
        if previous.exists() {
            self.edit(previous, |previous| previous.next = after_previous);
        }
        if next.exists() {
            self.edit(next, |next| next.previous = before_next);
        }
        self.edit(parent, |parent| {
            let children = parent.children_mut();
            if !previous.exists() {
                children.first = after_previous;
            }
            if !next.exists() {
                children.last = before_next;
            }
            edit(children);
        });
    }

    /// Changes a znode's fields (not its content) and the digest with them.
    fn edit(&mut self, id: NodeId, edit: impl FnOnce(&mut Znode)) {
        let znode = self
            .znodes
            .get_mut(id.0)
            .expect("ids in hand are of znodes that exist");
        let before = znode.fields_term(id, &self.acls);
        edit(znode);
        let after = znode.fields_term(id, &self.acls);
        self.digest = self.digest.wrapping_sub(before).wrapping_add(after);
    }

    fn replace_content(
        &mut self,
        id: NodeId,
        data: Option<&[u8]>,
        edit_fields: impl FnOnce(&mut Znode),
    ) {
        let before = self
            .journal
            .is_some()
            .then(|| Box::new(self.get(id).clone()));
        self.leave_content(id);
        self.edit(id, |znode| {
            znode.set_data(data);
            edit_fields(znode);
        });
        self.enter_content(id);
        if let Some(before) = before {
            self.record(|| Undo::Data { id, before });
        }
    }

    fn restore_content(&mut self, id: NodeId, before: &Znode) {
        self.leave_content(id);
        self.edit(id, |znode| {
            znode.take_content(before);
            znode.version = before.version;
            znode.mzxid = before.mzxid;
            znode.mtime = before.mtime;
        });
        self.enter_content(id);
    }

    /// Counts a znode in the digest and in everything that is derived.
    fn enter(&mut self, id: NodeId) {
        let znode = self.get(id);
        let term = znode
            .fields_term(id, &self.acls)
            .wrapping_add(znode.content_term(id));
        self.digest = self.digest.wrapping_add(term);
        self.derive(id);
    }

    /// Counts a znode in everything that is derived.
    fn derive(&mut self, id: NodeId) {
        let znode = self.get(id);
        let (kind, acl, parent) = (znode.kind(), znode.acl, znode.parent);
        self.acls.hold(acl);
        self.bytes += self.path_bytes(id) + data_bytes(self.get(id));
        if parent.exists() {
            let hash = self.hash(parent, self.get(id).name_bytes());
            let (hasher, znodes) = (&self.hasher, &self.znodes);
            self.index.insert(hash, id, |id| {
                let znode = znodes.get(id.0).expect("the index has what exists");
                hasher.hash_one((znode.parent.0, znode.name_bytes()))
            });
        }
        if let Kind::Ephemeral(session) = kind {
            self.ephemerals.entry(session).or_default().insert(id);
            self.ephemeral_count += 1;
        }
        if kind.is_cleanable() {
            self.cleanable.insert(id);
        }
    }

    /// The reverse of [`Self::enter`].
    fn leave(&mut self, id: NodeId) {
        let znode = self.get(id);
        let (kind, acl, parent) = (znode.kind(), znode.acl, znode.parent);
        let hash = self.hash(parent, znode.name_bytes());
        self.index.remove(hash, id);
        self.bytes -= self.path_bytes(id);
        self.leave_content(id);
        self.digest = self
            .digest
            .wrapping_sub(self.get(id).fields_term(id, &self.acls));
        self.acls.release(acl);
        if let Kind::Ephemeral(session) = kind {
            let owned = self.ephemerals.get_mut(&session).expect("it was entered");
            owned.remove(&id);
            if owned.is_empty() {
                self.ephemerals.remove(&session);
            }
            self.ephemeral_count -= 1;
        }
        if kind.is_cleanable() {
            self.cleanable.remove(&id);
        }
    }

    fn enter_content(&mut self, id: NodeId) {
        let znode = self.get(id);
        let (term, bytes) = (znode.content_term(id), data_bytes(znode));
        self.digest = self.digest.wrapping_add(term);
        self.bytes += bytes;
    }

    fn leave_content(&mut self, id: NodeId) {
        let znode = self.get(id);
        let (term, bytes) = (znode.content_term(id), data_bytes(znode));
        self.digest = self.digest.wrapping_sub(term);
        self.bytes -= bytes;
    }

    fn path_bytes(&self, id: NodeId) -> u64 {
        let mut bytes = 0;
        let mut at = id;
        while at != NodeId::ROOT {
            let znode = self.get(at);
            bytes += 1 + znode.name_bytes().len() as u64;
            at = znode.parent;
        }
        bytes.max(1)
    }

    /// The znode after this one in the subtree, parents first.
    fn following(&self, id: NodeId, root: NodeId) -> Option<NodeId> {
        let first = self.get(id).first();
        if first.exists() {
            return Some(first);
        }
        let mut at = id;
        while at != root {
            let znode = self.get(at);
            if znode.next.exists() {
                return Some(znode.next);
            }
            at = znode.parent;
        }
        None
    }

    fn hash(&self, parent: NodeId, name: &[u8]) -> u64 {
        self.hasher.hash_one((parent.0, name))
    }
}

fn data_bytes(znode: &Znode) -> u64 {
    znode.data().map_or(0, <[u8]>::len) as u64
}

//! Reads that touch many znodes, in steps.
//!
//! A directory may have a million children, and who lists it must not make others wait: writes
//! wait for readers, and everyone waits for writes. So the long part of such a read is a [`Walk`]
//! over the znodes as they were when it began, which needs no lock and can be put aside after
//! each step.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut as _, BytesMut};

use super::path::PATH_BYTES_MAX;
use super::slab::Slab;
use super::znode::{NodeId, Znode};
use super::{Caller, Machine};
use crate::wire::{
    Answer, ErrorCode, Request, SessionId, Stat, SubAnswer, SubRequest, Text, Writer, perms,
};

/// Znodes that a read may touch in one go: fractions of a millisecond.
pub const NODES_AT_ONCE: usize = 1_000;
/// Bytes of a reply from which it is large.
pub const BYTES_AT_ONCE: usize = 64 << 10;
/// The longest list of names or paths that is answered, in bytes: a reply has less than 2 GiB.
pub const LIST_BYTES_MAX: usize = if cfg!(test) { 1 << 20 } else { 1 << 30 };
/// Bytes of names that one step copies.
const BYTES_IN_STEP: usize = 1 << 20;
/// The largest answer to one multiRead, in bytes: it names a znode as often as it likes.
pub const MULTI_READ_BYTES_MAX: usize = 64 << 20;
/// Operations of one multiRead. All are found at one moment, in about 10 ms.
const MULTI_READ_OPERATIONS_MAX: usize = 32_768;
/// What stands before each answer of a multiRead, and the Stat.
const PART_BYTES: usize = 81;

/// The znodes of one moment, and how far a read has come with them.
#[derive(Debug)]
pub struct Walk {
    znodes: Slab<Znode>,
    left: Left,
    answer: BytesMut,
    /// What stands behind the names.
    stat: Option<Stat>,
}

#[derive(Debug)]
enum Left {
    /// Names of siblings, from this one on.
    Names(NodeId),
    /// The paths of these that begin so, sorted.
    Paths {
        ids: std::vec::IntoIter<NodeId>,
        prefix: Option<Text>,
        paths: BTreeSet<String>,
        /// What they take in a reply.
        bytes: usize,
    },
    /// The operations of a multiRead.
    Parts {
        parts: std::vec::IntoIter<Part>,
        /// The next name of the list that is being written.
        name: NodeId,
    },
    /// Counts what is below `root`.
    Count {
        root: NodeId,
        next: Option<NodeId>,
        count: i32,
    },
}

/// What an operation of a multiRead has found.
#[derive(Clone, Copy, Debug)]
enum Part {
    Data(NodeId),
    /// The children of this one.
    Names(NodeId),
    Error(ErrorCode),
}

impl Walk {
    /// Goes on for about `nodes` znodes. The answer, as its bytes, once it is complete, or what is
    /// to be answered instead.
    pub fn step(&mut self, nodes: usize) -> Option<Result<BytesMut, ErrorCode>> {
        let znodes = &self.znodes;
        let get = |id: NodeId| {
            znodes
                .get(id.0)
                .expect("links lead to znodes of the same moment")
        };
        let mut writer = Writer::new(&mut self.answer);
        match &mut self.left {
            Left::Names(next) => {
                write_names(get, next, &mut Budget::of(nodes), &mut writer);
                if next.exists() {
                    return None;
                }
                if let Some(stat) = &self.stat {
                    stat.encode(&mut writer);
                }
            }
            Left::Paths {
                ids,
                prefix,
                paths,
                bytes,
            } => {
                let mut budget = Budget::of(nodes);
                while budget.is_left()
                    && let Some(id) = ids.next()
                {
                    let path = path(get, id);
                    budget.take(path.len());
                    if prefix
                        .as_ref()
                        .is_none_or(|prefix| path.starts_with(prefix.as_str()))
                    {
                        *bytes += 4 + path.len();
                        paths.insert(path);
                    }
                    if *bytes > LIST_BYTES_MAX {
                        return Some(Err(ErrorCode::BadArguments));
                    }
                }
                if ids.len() > 0 {
                    return None;
                }
                writer.count(paths.len());
                paths.iter().for_each(|path| writer.text(path));
            }
            Left::Parts { parts, name } => {
                let mut budget = Budget::of(nodes);
                write_names(get, name, &mut budget, &mut writer);
                while !name.exists() && budget.is_left() {
                    let Some(part) = parts.next() else {
                        Answer::end_multi(&mut writer);
                        return Some(Ok(std::mem::take(&mut self.answer)));
                    };
                    match part {
                        Part::Data(id) => {
                            let znode = get(id);
                            budget.take(znode.data().map_or(0, <[u8]>::len));
                            let data = znode.shared_data();
                            SubAnswer::GetData(data, znode.stat()).encode(&mut writer);
                        }
                        Part::Names(id) => {
                            let znode = get(id);
                            budget.take(0);
                            SubAnswer::begin_children(&mut writer);
                            writer.count(znode.count() as usize);
                            *name = znode.first();
                            write_names(get, name, &mut budget, &mut writer);
                        }
                        Part::Error(code) => {
                            budget.take(0);
                            SubAnswer::Error(Some(code)).encode(&mut writer);
                        }
                    }
                }
                return None;
            }
            Left::Count { root, next, count } => {
                for _ in 0..nodes {
                    let Some(id) = *next else { break };
                    *count += 1;
                    *next = following(get, id, *root);
                }
                if next.is_some() {
                    return None;
                }
                writer.int(*count);
            }
        }
        Some(Ok(std::mem::take(&mut self.answer)))
    }
}

/// What one step may still do.
struct Budget {
    nodes: usize,
    bytes: usize,
}

impl Budget {
    fn of(nodes: usize) -> Self {
        Self {
            nodes,
            bytes: BYTES_IN_STEP,
        }
    }

    fn is_left(&self) -> bool {
        self.nodes > 0 && self.bytes > 0
    }

    /// One more znode, with so many bytes to copy: a name may be as long as a frame.
    fn take(&mut self, bytes: usize) {
        self.nodes = self.nodes.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Writes the names of siblings from this one on, as many as may be.
fn write_names<'a>(
    get: impl Fn(NodeId) -> &'a Znode,
    next: &mut NodeId,
    budget: &mut Budget,
    writer: &mut Writer<'_>,
) {
    while next.exists() && budget.is_left() {
        let znode = get(*next);
        writer.buffer(Some(znode.name_bytes()));
        budget.take(znode.name_bytes().len());
        *next = znode.next;
    }
}

fn path<'a>(get: impl Fn(NodeId) -> &'a Znode, id: NodeId) -> String {
    let mut names = Vec::new();
    let mut at = id;
    while at != NodeId::ROOT {
        let znode = get(at);
        names.push(znode.name());
        at = znode.parent;
    }
    names.iter().rev().flat_map(|name| ["/", name]).collect()
}

/// The znode after `id` in the subtree of `root`, parents first.
fn following<'a>(get: impl Fn(NodeId) -> &'a Znode, id: NodeId, root: NodeId) -> Option<NodeId> {
    let first = get(id).first();
    if first.exists() {
        return Some(first);
    }
    let mut at = id;
    while at != root {
        let znode = get(at);
        if znode.next.exists() {
            return Some(znode.next);
        }
        at = znode.parent;
    }
    None
}

/// How a large read goes on.
#[derive(Debug)]
pub enum Begun {
    Answer(Answer),
    Walk(Walk),
}

impl Machine {
    /// Whether a read touches more, or answers more, than others should wait for.
    pub fn is_large(&self, request: &Request, session: SessionId) -> bool {
        match request {
            Request::GetData { path, .. } => self.data_bytes_at(path) >= BYTES_AT_ONCE,
            Request::GetChildren { path, .. } => self.at(path).is_some_and(is_long),
            Request::GetAllChildrenNumber { path } => {
                self.tree.len() > NODES_AT_ONCE && self.children_at(path) > 0
            }
            Request::GetEphemerals { .. } => {
                self.tree.ephemerals(session).nth(NODES_AT_ONCE).is_some()
            }
            Request::MultiRead(operations) => {
                // Any of them costs something.
                let mut nodes = operations.len();
                let mut bytes = 0;
                operations.iter().take(NODES_AT_ONCE).any(|operation| {
                    match operation {
                        SubRequest::GetChildren { path } => {
                            nodes += self.children_at(path);
                            bytes += self.list_bytes_at(path);
                        }
                        SubRequest::GetData { path } => bytes += self.data_bytes_at(path),
                        _ => {}
                    }
                    nodes > NODES_AT_ONCE || bytes >= BYTES_AT_ONCE
                }) || nodes > NODES_AT_ONCE
            }
            _ => false,
        }
    }

    /// About how many bytes the answer to a read will have that is large; `usize::MAX` if that
    /// would take long to find out.
    pub fn large_bytes(&self, request: &Request, session: SessionId) -> usize {
        match request {
            Request::GetData { path, .. } => self.data_bytes_at(path),
            Request::GetChildren { path, .. } => self.list_bytes_at(path),
            Request::GetEphemerals { .. } => {
                let paths = self.tree.ephemerals(session).count();
                LIST_BYTES_MAX.min(paths * (4 + PATH_BYTES_MAX))
            }
            Request::MultiRead(operations) if operations.len() > NODES_AT_ONCE => usize::MAX,
            Request::MultiRead(operations) => {
                let bytes = operations
                    .iter()
                    .map(|operation| self.part_bytes(operation));
                bytes.fold(0, usize::saturating_add)
            }
            _ => BYTES_AT_ONCE,
        }
    }

    /// Begins a read that [`Self::is_large`].
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn begin_large(&self, request: &Request, caller: &Caller<'_>) -> Result<Begun, ErrorCode> {
        let (left, stat, head) = match request {
            Request::GetChildren {
                path, with_stat, ..
            } => {
                let (_, znode) = self.listable(path, caller)?;
                let stat = with_stat.then(|| znode.stat());
                (Left::Names(znode.first()), stat, Some(znode))
            }
            Request::GetEphemerals { prefix } => {
                let ids: Vec<NodeId> = self.tree.ephemerals(caller.session).collect();
                let prefix = prefix
                    .clone()
                    .filter(|prefix| !prefix.trim().is_empty() && *prefix != "/");
                let left = Left::Paths {
                    ids: ids.into_iter(),
                    prefix,
                    paths: BTreeSet::new(),
                    bytes: 0,
                };
                (left, None, None)
            }
            Request::GetAllChildrenNumber { path } if !path.is_empty() && path != "/" => {
                let root = self.readable(path, caller)?;
                let next = following(|id| self.tree.get(id), root, root);
                let left = Left::Count {
                    root,
                    next,
                    count: 0,
                };
                (left, None, None)
            }
            Request::MultiRead(operations) => {
                let (parts, bytes) = self.find_parts(operations, caller)?;
                let parts = parts.into_iter();
                let name = NodeId::NONE;
                let mut walk = self.walk(Left::Parts { parts, name }, None, None);
                walk.answer.reserve(bytes);
                return Ok(Begun::Walk(walk));
            }
            other => return self.read(other, caller).map(Begun::Answer),
        };
        Ok(Begun::Walk(self.walk(left, stat, head)))
    }

    /// What the operations of a multiRead name, all at this moment, and how many bytes the answer
    /// will have.
    fn find_parts(
        &self,
        operations: &[SubRequest],
        caller: &Caller<'_>,
    ) -> Result<(Vec<Part>, usize), ErrorCode> {
        if operations.len() > MULTI_READ_OPERATIONS_MAX {
            return Err(ErrorCode::BadArguments);
        }
        // Lists are long, and shared by many znodes.
        let mut verdicts = BTreeMap::new();
        let mut find = |path: &str| {
            let id = self.tree.lookup(path).ok_or(ErrorCode::NoNode)?;
            let acl = self.tree.get(id).acl;
            let verdict = || self.check(id, perms::READ, caller);
            verdicts.entry(acl).or_insert_with(verdict).map(|()| id)
        };
        let mut bytes = PART_BYTES;
        let mut parts = Vec::with_capacity(operations.len());
        for operation in operations {
            let found = match operation {
                SubRequest::GetData { path } => find(path).map(|id| {
                    let data = self.tree.get(id).data();
                    (Part::Data(id), data.map_or(0, <[u8]>::len))
                }),
                SubRequest::GetChildren { path } => {
                    find(path).map(|id| (Part::Names(id), self.tree.get(id).list_bytes()))
                }
                _ => Err(ErrorCode::Unimplemented),
            };
            let (part, size) = found.unwrap_or_else(|code| (Part::Error(code), 0));
            bytes += PART_BYTES + size;
            if bytes > MULTI_READ_BYTES_MAX {
                return Err(ErrorCode::BadArguments);
            }
            parts.push(part);
        }
        Ok((parts, bytes))
    }

    /// About how many bytes its answer will have.
    fn part_bytes(&self, operation: &SubRequest) -> usize {
        PART_BYTES
            + match operation {
                SubRequest::GetChildren { path } => self.list_bytes_at(path),
                SubRequest::GetData { path } => self.data_bytes_at(path),
                _ => 0,
            }
    }

    /// `parent`: whose children are listed.
    fn walk(&self, left: Left, stat: Option<Stat>, parent: Option<&Znode>) -> Walk {
        let mut answer = BytesMut::new();
        if let Some(parent) = parent {
            answer.reserve(4 + parent.list_bytes() + Stat::BYTES);
            answer.put_u32(parent.count());
        }
        Walk {
            znodes: self.tree.slabs().0.clone(),
            left,
            answer,
            stat,
        }
    }

    fn children_at(&self, path: &str) -> usize {
        self.at(path).map_or(0, |znode| znode.count() as usize)
    }

    fn list_bytes_at(&self, path: &str) -> usize {
        self.at(path).map_or(0, Znode::list_bytes)
    }

    fn data_bytes_at(&self, path: &str) -> usize {
        self.at(path).and_then(Znode::data).map_or(0, <[u8]>::len)
    }

    fn at(&self, path: &str) -> Option<&Znode> {
        Some(self.tree.get(self.tree.lookup(path)?))
    }
}

/// Whether the list of its children is large.
pub(super) fn is_long(parent: &Znode) -> bool {
    parent.count() as usize > NODES_AT_ONCE || parent.list_bytes() >= BYTES_AT_ONCE
}

//! Reads: answers from the present state (§3.3, §3.6).
//!
//! A read checks permissions but not the syntax of paths: a malformed path has no znode.

use super::large::{LIST_BYTES_MAX, is_long};
use super::znode::{NodeId, Znode};
use super::{Caller, Machine, acl};
use crate::wire::{Answer, ErrorCode, Request, Stat, SubAnswer, SubRequest, Text, perms};

impl Machine {
    /// Answers a read from the present state. Watches are the caller's business.
    ///
    /// # Errors
    /// What the client is to be told; `Unimplemented` for what is not a read of the state.
    pub fn read(&self, request: &Request, caller: &Caller<'_>) -> Result<Answer, ErrorCode> {
        Ok(match request {
            Request::Exists { path, .. } => Answer::Stat(self.stat(path, caller)?),
            Request::GetData { path, .. } => {
                let znode = self.tree.get(self.readable(path, caller)?);
                Answer::Data(znode.shared_data(), znode.stat())
            }
            Request::GetAcl { path } => self.get_acl(path, caller)?,
            Request::GetChildren {
                path, with_stat, ..
            } => {
                let (names, stat) = self.names(path, caller)?;
                if *with_stat {
                    Answer::ChildrenStat(names, stat)
                } else {
                    Answer::Children(names)
                }
            }
            Request::MultiRead(operations) => {
                let answer = |operation| self.read_one(operation, caller);
                Answer::Multi(operations.iter().map(answer).collect())
            }
            Request::GetEphemerals { prefix } => {
                let mut paths = self.ephemerals(caller.session);
                let prefix = prefix.as_deref().unwrap_or_default();
                if !prefix.trim().is_empty() && prefix != "/" {
                    paths.retain(|path| path.starts_with(prefix));
                }
                Answer::Children(paths)
            }
            Request::GetAllChildrenNumber { path } => {
                let id = self.readable(path, caller)?;
                let count = if id == NodeId::ROOT {
                    self.tree.len()
                } else {
                    self.tree.subtree(id).count()
                };
                // The root asked for by its empty name is among what is counted, as in ZooKeeper.
                let itself = usize::from(!path.is_empty());
                Answer::Number((count - itself) as i32)
            }
            _ => return Err(ErrorCode::Unimplemented),
        })
    }

    /// What `getData` answers; data that is null is `None`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn data(
        &self,
        path: &str,
        caller: &Caller<'_>,
    ) -> Result<(Option<&[u8]>, Stat), ErrorCode> {
        let znode = self.tree.get(self.readable(path, caller)?);
        Ok((znode.data(), znode.stat()))
    }

    /// What `getChildren` answers: the names in order of creation. Nothing, if there are more than
    /// `most` or their list is long.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn few_children(
        &self,
        path: &str,
        most: usize,
        caller: &Caller<'_>,
    ) -> Result<Option<(impl Iterator<Item = &str>, Stat)>, ErrorCode> {
        let (id, znode) = self.listable(path, caller)?;
        if znode.count() as usize > most || is_long(znode) {
            return Ok(None);
        }
        let names = self.tree.children(id).map(|(_, child)| child.name());
        Ok(Some((names, znode.stat())))
    }

    /// Whether the caller holds any of the `needed` permissions on a znode.
    pub(super) fn check(
        &self,
        id: NodeId,
        needed: i32,
        caller: &Caller<'_>,
    ) -> Result<(), ErrorCode> {
        if acl::allows(self.tree.acl(id), needed, caller.identities) {
            Ok(())
        } else {
            Err(ErrorCode::NoAuth)
        }
    }

    /// What `exists` answers.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn stat(&self, path: &str, caller: &Caller<'_>) -> Result<Stat, ErrorCode> {
        if path.contains('\0') {
            return Err(ErrorCode::BadArguments);
        }
        Ok(self.tree.get(self.readable(path, caller)?).stat())
    }

    fn get_acl(&self, path: &Text, caller: &Caller<'_>) -> Result<Answer, ErrorCode> {
        let id = self.tree.lookup(path).ok_or(ErrorCode::NoNode)?;
        self.check(id, perms::READ | perms::ADMIN, caller)?;
        let list = self.tree.acl(id);
        let shown = match self.check(id, perms::ADMIN, caller) {
            Ok(()) => list.to_vec(),
            Err(_) => acl::mask(list),
        };
        Ok(Answer::Acl(shown, self.tree.get(id).stat()))
    }

    /// One operation of a multiRead; a failing one does not touch the others (§4.4).
    pub(super) fn read_one(&self, operation: &SubRequest, caller: &Caller<'_>) -> SubAnswer {
        let answer = match operation {
            SubRequest::GetData { path } => self.readable(path, caller).map(|id| {
                let znode = self.tree.get(id);
                SubAnswer::GetData(znode.shared_data(), znode.stat())
            }),
            SubRequest::GetChildren { path } => self
                .names(path, caller)
                .map(|(names, _)| SubAnswer::GetChildren(names)),
            _ => Err(ErrorCode::Unimplemented),
        };
        answer.unwrap_or_else(|code| SubAnswer::Error(Some(code)))
    }

    pub(super) fn readable(&self, path: &str, caller: &Caller<'_>) -> Result<NodeId, ErrorCode> {
        let id = self.tree.lookup(path).ok_or(ErrorCode::NoNode)?;
        self.check(id, perms::READ, caller)?;
        Ok(id)
    }

    /// A znode whose children may be listed.
    pub(super) fn listable(
        &self,
        path: &str,
        caller: &Caller<'_>,
    ) -> Result<(NodeId, &Znode), ErrorCode> {
        let id = self.readable(path, caller)?;
        let znode = self.tree.get(id);
        if znode.list_bytes() > LIST_BYTES_MAX {
            return Err(ErrorCode::BadArguments);
        }
        Ok((id, znode))
    }

    fn names(&self, path: &str, caller: &Caller<'_>) -> Result<(Vec<Text>, Stat), ErrorCode> {
        let (id, znode) = self.listable(path, caller)?;
        let mut names = Vec::with_capacity(znode.count() as usize);
        names.extend(self.tree.children(id).map(|(_, child)| child.name_text()));
        Ok((names, znode.stat()))
    }
}

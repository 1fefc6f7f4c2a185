//! What a write does: the checks in the order of §3.3, the effects of §3.4, multis of §4.3.

use bytes::Bytes;
use zkraft::wire::request::{Create, SubRequest};
use zkraft::wire::{
    Acl, CreateMode, ErrorCode, EventType, Id, SessionId, Stat, SubAnswer, Text, op, perms,
};

use super::rules::{
    accept_acl, check_acl, check_version, data_length, kind_in_multi, validate_path,
};
use super::{Change, Kind, Model, Znode};

impl Model {
    /// §3.3 create, from the session check on.
    pub(super) fn create(
        &mut self,
        create: &Create,
        kind: Kind,
        ids: &[Id],
    ) -> Result<(Text, Stat), ErrorCode> {
        if self.is_local && matches!(kind, Kind::Ephemeral(_)) {
            return Err(ErrorCode::EphemeralOnLocalSession);
        }
        let slash = create
            .path
            .rfind('/')
            .filter(|_| !create.path.contains('\0'));
        let parent_path = match slash.ok_or(ErrorCode::BadArguments)? {
            0 => "/",
            at => &create.path[..at],
        };
        let acl = accept_acl(
            create.acl.as_deref(),
            ids,
            self.setting("digest_enabled") != 0,
        )?;
        let parent = self.now.get(parent_path).ok_or(ErrorCode::NoNode)?.clone();
        check_acl(&parent.acl, perms::CREATE, ids)?;
        let mode = CreateMode::from_flags(create.flags).expect("checked by the caller");
        let path = match mode.is_sequential() {
            true => format!("{}{:010}", create.path, parent.created),
            false => create.path.to_string(),
        };
        validate_path(&path)?;
        if self.now.contains_key(&path) {
            return Err(ErrorCode::NodeExists);
        }
        if matches!(parent.kind, Kind::Ephemeral(_)) {
            return Err(ErrorCode::NoChildrenForEphemerals);
        }
        self.check_quota(&path, 1, data_length(&create.data))?;

        let (zxid, time) = (self.zxid, self.time_ms);
        let ephemeral_owner = if let Kind::Ephemeral(owner) = kind {
            owner.0
        } else {
            0
        };
        let stat = Stat {
            czxid: zxid,
            mzxid: zxid,
            pzxid: zxid,
            ctime: time,
            mtime: time,
            ephemeral_owner,
            ..Stat::default()
        };
        let data = create.data.clone();
        let znode = Znode {
            kind,
            data,
            acl: acl.clone(),
            stat,
            created: 0,
            children: Vec::new(),
        };
        let stat = znode.stat();
        self.put(&path, znode);
        let mut above = Znode::clone(&parent);
        above
            .children
            .push(path[path.rfind('/').expect("a valid path") + 1..].into());
        above.created += 1;
        above.stat.pzxid = zxid;
        self.put(parent_path, above);
        self.changed(EventType::NodeCreated, &path, acl, parent.acl.clone());
        self.update_quota(&path);
        Ok((path.as_str().into(), stat))
    }

    pub(super) fn delete(&mut self, path: &str, version: i32, ids: &[Id]) -> Result<(), ErrorCode> {
        let system = ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"];
        let slash = path
            .rfind('/')
            .filter(|_| !path.contains('\0') && !system.contains(&path));
        let parent = match slash.ok_or(ErrorCode::BadArguments)? {
            0 => "/",
            at => &path[..at],
        };
        let parent = self.now.get(parent).ok_or(ErrorCode::NoNode)?;
        check_acl(&parent.acl, perms::DELETE, ids)?;
        let znode = self.now.get(path).ok_or(ErrorCode::NoNode)?;
        check_version(version, znode.stat.version)?;
        if !znode.children.is_empty() {
            return Err(ErrorCode::NotEmpty);
        }
        self.remove(path);
        Ok(())
    }

    pub(super) fn set_data(
        &mut self,
        path: &str,
        data: Option<Bytes>,
        version: i32,
        ids: &[Id],
    ) -> Result<Stat, ErrorCode> {
        validate_path(path)?;
        let mut znode = Znode::clone(self.now.get(path).ok_or(ErrorCode::NoNode)?);
        check_acl(&znode.acl, perms::WRITE, ids)?;
        self.check_quota(path, 0, data_length(&data) - data_length(&znode.data))?;
        check_version(version, znode.stat.version)?;
        znode.data = data;
        znode.stat.version = znode.stat.version.wrapping_add(1);
        znode.stat.mzxid = self.zxid;
        znode.stat.mtime = self.time_ms;
        let (stat, acl) = (znode.stat(), znode.acl.clone());
        self.put(path, znode);
        self.changed(EventType::NodeDataChanged, path, acl, Vec::new());
        self.update_quota(path);
        Ok(stat)
    }

    pub(super) fn set_acl(
        &mut self,
        path: &str,
        acl: Option<&[Acl]>,
        version: i32,
        ids: &[Id],
    ) -> Result<Stat, ErrorCode> {
        validate_path(path)?;
        let acl = accept_acl(acl, ids, self.setting("digest_enabled") != 0)?;
        let mut znode = Znode::clone(self.now.get(path).ok_or(ErrorCode::NoNode)?);
        check_acl(&znode.acl, perms::ADMIN, ids)?;
        check_version(version, znode.stat.aversion)?;
        znode.acl = acl;
        znode.stat.aversion = znode.stat.aversion.wrapping_add(1);
        let stat = znode.stat();
        self.put(path, znode);
        Ok(stat)
    }

    /// §4.3: all or nothing, one zxid; each sees the effects of those before it.
    pub(super) fn multi(
        &mut self,
        operations: &[SubRequest],
        session: SessionId,
        ids: &[Id],
    ) -> Vec<SubAnswer> {
        let (before, changes) = (self.now.clone(), self.changes.len());
        let mut answers = Vec::new();
        for (at, operation) in operations.iter().enumerate() {
            match self.sub_operation(operation, session, ids) {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    self.now = before;
                    self.changes.truncate(changes);
                    self.touched.clear();
                    return (0..operations.len())
                        .map(|other| match other.cmp(&at) {
                            std::cmp::Ordering::Less => SubAnswer::Error(None),
                            std::cmp::Ordering::Equal => SubAnswer::Error(Some(error)),
                            std::cmp::Ordering::Greater => {
                                SubAnswer::Error(Some(ErrorCode::RuntimeInconsistency))
                            }
                        })
                        .collect();
                }
            }
        }
        answers
    }

    pub(super) fn sub_operation(
        &mut self,
        operation: &SubRequest,
        session: SessionId,
        ids: &[Id],
    ) -> Result<SubAnswer, ErrorCode> {
        match operation {
            SubRequest::Create(create) => {
                let kind = kind_in_multi(create, self.setting("extended_types"), session)?;
                let with_stat =
                    create.opcode == op::CREATE2 || matches!(kind, Kind::Container | Kind::Ttl(_));
                let (path, stat) = self.create(create, kind, ids)?;
                Ok(if with_stat {
                    SubAnswer::Create2(path, stat)
                } else {
                    SubAnswer::Create(path)
                })
            }
            SubRequest::Delete { path, version } => {
                self.delete(path, *version, ids).map(|()| SubAnswer::Delete)
            }
            SubRequest::SetData {
                path,
                data,
                version,
            } => self
                .set_data(path, data.clone(), *version, ids)
                .map(SubAnswer::SetData),
            SubRequest::Check { path, version } => {
                validate_path(path)?;
                let znode = self.now.get(path.as_str()).ok_or(ErrorCode::NoNode)?;
                check_acl(&znode.acl, perms::READ, ids)?;
                check_version(*version, znode.stat.version)?;
                Ok(SubAnswer::Check)
            }
            read => panic!("{read:?} in a multi"),
        }
    }

    /// §8.6, in path order.
    pub(super) fn close_session(&mut self, id: SessionId) {
        let owned = |znode: &Znode| znode.kind == Kind::Ephemeral(id);
        let paths = self.now.iter().filter(|(_, znode)| owned(znode));
        for path in paths.map(|(path, _)| path.clone()).collect::<Vec<_>>() {
            self.remove(&path);
        }
        self.sessions.remove(&id);
    }

    /// §3.4 delete.
    pub(super) fn remove(&mut self, path: &str) {
        let (parent_path, name) = path.rsplit_once('/').expect("a stored path");
        let parent_path = if parent_path.is_empty() {
            "/"
        } else {
            parent_path
        };
        let znode = self.now.remove(path).expect("checked");
        self.touched.insert(path.into());
        let mut parent = Znode::clone(&self.now[parent_path]);
        parent.children.retain(|child| **child != *name);
        parent.stat.pzxid = parent.stat.pzxid.max(self.zxid);
        let parent_acl = parent.acl.clone();
        self.put(parent_path, parent);
        self.changed(EventType::NodeDeleted, path, znode.acl.clone(), parent_acl);
        self.update_quota(path);
    }

    pub(super) fn changed(
        &mut self,
        kind: EventType,
        path: &str,
        acl: Vec<Acl>,
        parent_acl: Vec<Acl>,
    ) {
        self.changes.push(Change {
            zxid: self.zxid,
            kind,
            path: path.into(),
            acl,
            parent_acl,
        });
    }
}

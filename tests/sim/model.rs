//! The naive model: what the server must do, told a second time and as simply as possible.
//!
//! Written from the protocol description (the sections are named at each rule), never from
//! `src/machine`: two tellings that agree are worth something only if neither copied the other. It
//! takes the committed log, keeps every version of every znode, and so knows the outcome of each
//! command and the state at each zxid. No cleverness here: strings for paths, whole copies for
//! undo, sums counted again each time.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use prost::Message;
use zkraft::proto::log;
use zkraft::wire::request::{Create, SubRequest};
use zkraft::wire::{
    Acl, Answer, CreateMode, ErrorCode, EventType, Id, Request, SessionId, Stat, SubAnswer, Text,
    Zxid, op, perms,
};

/// Commands that no client can send (the log's own numbers).
pub mod own {
    pub const ATTACH: i32 = -20;
    pub const IDENTIFY: i32 = -21;
    pub const REMOVE: i32 = -22;
    pub const SET: i32 = -23;
}

/// What a znode is besides its place (§5.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Persistent,
    Ephemeral(SessionId),
    Container,
    /// Life after the last change, in ms.
    Ttl(i64),
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Znode {
    pub kind: Kind,
    pub data: Option<Bytes>,
    pub acl: Vec<Acl>,
    pub stat: Stat,
    /// Child creations so far (§5.2).
    pub created: i64,
    /// Names, in order of creation.
    pub children: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Session {
    pub timeout_ms: i32,
    pub password: Bytes,
    pub generation: u64,
    pub identities: Vec<Id>,
}

/// A change of a znode, as watches see it (§3.5). Children changes follow from it.
#[derive(Clone, Debug)]
pub struct Change {
    pub zxid: Zxid,
    /// Created, deleted or data changed.
    pub kind: EventType,
    pub path: String,
    /// The znode's own ACL; of a deleted one the ACL it had.
    pub acl: Vec<Acl>,
    pub parent_acl: Vec<Acl>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Reply(Result<Answer, ErrorCode>),
    Attached {
        session: SessionId,
        generation: u64,
        timeout_ms: i32,
        password: Bytes,
    },
    /// Unknown session, wrong password, or an id that exists.
    Refused,
    /// Not the session's present attachment.
    Moved,
    /// A command of the leader's own.
    Internal,
}

/// A command that took its place in the history.
#[derive(Clone, Debug)]
pub struct Done {
    pub session: SessionId,
    pub generation: u64,
    pub opcode: i32,
    pub body: Bytes,
    pub identities: Vec<Id>,
    pub outcome: Outcome,
    /// The server's zxid after it.
    pub zxid: Zxid,
    /// Whether that zxid is its own.
    pub stepped: bool,
    pub index: u64,
}

#[derive(Debug, Default)]
pub struct Model {
    pub index: u64,
    pub term: u64,
    pub zxid: Zxid,
    pub time_ms: i64,
    pub now: BTreeMap<String, Rc<Znode>>,
    pub sessions: BTreeMap<SessionId, Session>,
    pub settings: BTreeMap<String, i64>,
    pub changes: Vec<Change>,
    /// Every version of every path, with the zxid it began at; `None` is absence.
    history: BTreeMap<String, Vec<(Zxid, Option<Rc<Znode>>)>>,
    touched: BTreeSet<String>,
    /// The first log index at which each zxid was reached.
    reached: BTreeMap<Zxid, u64>,
    /// Per server and disk: incarnation and last number applied.
    origins: BTreeMap<(u32, u64), (u64, u64)>,
}

type Reply = Result<Answer, ErrorCode>;

impl Model {
    /// The znodes of the first start (§5.5).
    pub fn new() -> Self {
        let mut model = Self::default();
        let read_only = Acl {
            perms: perms::READ,
            id: Id::new("world", "anyone"),
        };
        for (path, aversion, acl, children) in [
            ("/", 0, Acl::open(), vec!["zookeeper"]),
            ("/zookeeper", 0, Acl::open(), vec!["quota", "config"]),
            ("/zookeeper/quota", 0, Acl::open(), vec![]),
            ("/zookeeper/config", -1, read_only, vec![]),
        ] {
            let znode = Znode {
                kind: Kind::Persistent,
                data: Some(Bytes::new()),
                acl: vec![acl],
                stat: Stat {
                    aversion,
                    ..Stat::default()
                },
                created: 0,
                children: children.into_iter().map(String::from).collect(),
            };
            model.put(path, znode);
        }
        model.remember();
        model
    }

    /// Applies the entry at `index`; without content it is a new leader's empty one.
    pub fn apply(&mut self, index: u64, term: u64, entry: &log::Entry) -> Vec<Done> {
        self.index = index;
        if term != self.term {
            // §9.6 rule 1: the first entry of a term opens an epoch.
            let epoch = (self.zxid.epoch() + 1).max(u32::try_from(term).expect("small terms"));
            self.term = term;
            self.zxid = Zxid::new(epoch, 0);
        }
        if !entry.batches.is_empty() || !entry.internal.is_empty() {
            self.time_ms = entry.time_ms;
        }
        let mut done = Vec::new();
        for batch in &entry.batches {
            let origin = batch.origin.expect("a batch has an origin");
            for (number, command) in (batch.first..).zip(&batch.commands) {
                if self.is_next(&origin, number) {
                    done.push(self.command(command, false));
                }
            }
        }
        for command in &entry.internal {
            done.push(self.command(command, true));
        }
        self.remember();
        done
    }

    /// The state of a path at a zxid that was reached.
    pub fn at(&self, zxid: Zxid, path: &str) -> Option<&Rc<Znode>> {
        let versions = self.history.get(if path.is_empty() { "/" } else { path })?;
        let after = versions.partition_point(|(begin, _)| *begin <= zxid);
        versions[..after].last()?.1.as_ref()
    }

    /// All znodes at a zxid, by path.
    pub fn all_at(&self, zxid: Zxid) -> impl Iterator<Item = (&str, &Rc<Znode>)> {
        self.history
            .keys()
            .filter_map(move |path| Some((path.as_str(), self.at(zxid, path)?)))
    }

    /// The log index that a server had applied, at least, if it was at this zxid; `None`: it
    /// never was.
    pub fn index_of(&self, zxid: Zxid) -> Option<u64> {
        self.reached.get(&zxid).copied()
    }

    /// What a read at this zxid answers (§3.3, §3.6).
    pub fn read(&self, at: Zxid, request: &Request, session: SessionId, ids: &[Id]) -> Reply {
        let readable = |path: &str| {
            let znode = self.at(at, path).ok_or(ErrorCode::NoNode)?;
            check_acl(&znode.acl, perms::READ, ids)?;
            Ok(znode)
        };
        let names = |znode: &Znode| {
            znode
                .children
                .iter()
                .map(|name| name.as_str().into())
                .collect()
        };
        match request {
            Request::Exists { path, .. } => {
                if path.contains('\0') {
                    return Err(ErrorCode::BadArguments);
                }
                readable(path).map(|znode| Answer::Stat(znode.stat()))
            }
            Request::GetData { path, .. } => {
                readable(path).map(|znode| Answer::Data(znode.data.clone(), znode.stat()))
            }
            Request::GetChildren {
                path, with_stat, ..
            } => readable(path).map(|znode| {
                if *with_stat {
                    Answer::ChildrenStat(names(znode), znode.stat())
                } else {
                    Answer::Children(names(znode))
                }
            }),
            Request::GetAllChildrenNumber { path } => {
                readable(path)?;
                let prefix = if path.len() <= 1 {
                    "/".into()
                } else {
                    format!("{path}/")
                };
                let below = |other: &str| other.starts_with(&prefix) && other != "/";
                let count = self.all_at(at).filter(|(other, _)| below(other)).count();
                Ok(Answer::Number(count as i32))
            }
            Request::GetAcl { path } => {
                let znode = self.at(at, path).ok_or(ErrorCode::NoNode)?;
                check_acl(&znode.acl, perms::READ | perms::ADMIN, ids)?;
                let admin = check_acl(&znode.acl, perms::ADMIN, ids).is_ok();
                let shown = znode
                    .acl
                    .iter()
                    .map(|entry| if admin { entry.clone() } else { mask(entry) });
                Ok(Answer::Acl(shown.collect(), znode.stat()))
            }
            Request::GetEphemerals { prefix } => {
                let prefix = prefix
                    .as_ref()
                    .map(|prefix| prefix.trim())
                    .unwrap_or_default();
                let own = |znode: &Znode| znode.kind == Kind::Ephemeral(session);
                let paths = self.all_at(at).filter(|(path, znode)| {
                    own(znode) && (prefix.is_empty() || prefix == "/" || path.starts_with(prefix))
                });
                Ok(Answer::Children(
                    paths.map(|(path, _)| path.into()).collect(),
                ))
            }
            Request::MultiRead(operations) => {
                let one = |operation: &SubRequest| match operation {
                    SubRequest::GetData { path } => match readable(path) {
                        Ok(znode) => SubAnswer::GetData(znode.data.clone(), znode.stat()),
                        Err(error) => SubAnswer::Error(Some(error)),
                    },
                    SubRequest::GetChildren { path } => match readable(path) {
                        Ok(znode) => SubAnswer::GetChildren(names(znode)),
                        Err(error) => SubAnswer::Error(Some(error)),
                    },
                    write => panic!("{write:?} in a multiRead"),
                };
                Ok(Answer::Multi(operations.iter().map(one).collect()))
            }
            other => panic!("{other:?} is not a read of the tree"),
        }
    }

    /// Whether this number is the next of its origin's stream (architecture D4).
    fn is_next(&mut self, origin: &log::Origin, number: u64) -> bool {
        let stream = self
            .origins
            .entry((origin.server, origin.disk))
            .or_default();
        // A new incarnation begins with its first command; one that begins later has lost it.
        if origin.incarnation > stream.0 && number == 1 {
            *stream = (origin.incarnation, 0);
        }
        let next = origin.incarnation == stream.0 && number == stream.1 + 1;
        if next {
            stream.1 = number;
        }
        next
    }

    fn command(&mut self, command: &log::Command, internal: bool) -> Done {
        let mut done = Done {
            session: SessionId(command.session),
            generation: command.generation,
            opcode: command.op,
            body: command.body.clone().into(),
            identities: Vec::new(),
            outcome: Outcome::Internal,
            zxid: self.zxid,
            stepped: false,
            index: self.index,
        };
        if internal {
            self.internal(command);
        } else {
            done.outcome = match command.op {
                op::CREATE_SESSION => self.create_session(&mut done),
                own::ATTACH => self.attach(&mut done),
                own::IDENTIFY => self.of_session(&done, |model, done| model.identify(done)),
                _ => self.of_session(&done, |model, done| model.client_command(done)),
            };
        }
        self.remember();
        done.stepped = self.zxid > done.zxid;
        done.zxid = self.zxid;
        done
    }

    /// A command must come through the session's present attachment (§8.5, amendment 6).
    fn of_session(&mut self, done: &Done, run: impl FnOnce(&mut Self, &Done) -> Reply) -> Outcome {
        match self.sessions.get(&done.session) {
            None => Outcome::Reply(Err(ErrorCode::SessionExpired)),
            Some(session) if session.generation != done.generation => Outcome::Moved,
            Some(_) => Outcome::Reply(run(self, done)),
        }
    }

    fn create_session(&mut self, done: &mut Done) -> Outcome {
        let body = log::CreateSession::decode(done.body.clone()).expect("a well-formed body");
        done.identities = ids(&body.identities);
        if self.sessions.contains_key(&done.session) {
            return Outcome::Refused;
        }
        self.step();
        let session = Session {
            timeout_ms: body.timeout_ms,
            password: body.password.into(),
            generation: 1,
            identities: done.identities.clone(),
        };
        self.sessions.insert(done.session, session);
        self.attached(done.session)
    }

    fn attach(&mut self, done: &mut Done) -> Outcome {
        let body = log::Attach::decode(done.body.clone()).expect("a well-formed body");
        done.identities = ids(&body.identities);
        match self.sessions.get_mut(&done.session) {
            Some(session) if session.password == body.password => {
                session.generation += 1;
                session.timeout_ms = body.timeout_ms;
                session.identities = done.identities.clone();
                self.attached(done.session)
            }
            _ => Outcome::Refused,
        }
    }

    fn attached(&self, id: SessionId) -> Outcome {
        let session = &self.sessions[&id];
        Outcome::Attached {
            session: id,
            generation: session.generation,
            timeout_ms: session.timeout_ms,
            password: session.password.clone(),
        }
    }

    fn identify(&mut self, done: &Done) -> Reply {
        let body = log::Identify::decode(done.body.clone()).expect("a well-formed body");
        let session = self.sessions.get_mut(&done.session).expect("checked");
        for id in ids(&body.identities) {
            if !session.identities.contains(&id) {
                session.identities.push(id);
            }
        }
        Ok(Answer::Empty)
    }

    fn client_command(&mut self, done: &Done) -> Reply {
        let Ok(request) = Request::decode(done.opcode, done.body.clone()) else {
            return Err(ErrorCode::MarshallingError);
        };
        // Every write consumes a zxid, also when it fails (§3.3).
        self.step();
        let (session, ids) = (
            done.session,
            self.sessions[&done.session].identities.clone(),
        );
        match request {
            Request::Create(create) => {
                let kind = kind_alone(&create, self.setting("extended_types"), session)?;
                let (path, stat) = self.create(&create, kind, &ids)?;
                Ok(if create.opcode == op::CREATE {
                    Answer::Path(path)
                } else {
                    Answer::PathStat(path, stat)
                })
            }
            Request::Delete { path, version } => {
                self.delete(&path, version, &ids).map(|()| Answer::Empty)
            }
            Request::SetData {
                path,
                data,
                version,
            } => self.set_data(&path, data, version, &ids).map(Answer::Stat),
            Request::SetAcl { path, acl, version } => self
                .set_acl(&path, acl.as_deref(), version, &ids)
                .map(Answer::Stat),
            Request::Multi(operations) => Ok(Answer::Multi(self.multi(&operations, session, &ids))),
            Request::CloseSession => {
                self.close_session(session);
                Ok(Answer::Empty)
            }
            Request::Reconfig(_) if self.setting("reconfig_enabled") == 0 => {
                Err(ErrorCode::ReconfigDisabled)
            }
            Request::Reconfig(_) => Err(ErrorCode::Unimplemented),
            other => panic!("{other:?} is not a write"),
        }
    }

    /// The leader's own: expiry, removal of containers and TTL znodes, settings. Each says what it
    /// expects and does nothing if that is not so any more.
    fn internal(&mut self, command: &log::Command) {
        let id = SessionId(command.session);
        match command.op {
            op::CLOSE_SESSION => {
                if self
                    .sessions
                    .get(&id)
                    .is_some_and(|s| s.generation == command.generation)
                {
                    self.step();
                    self.close_session(id);
                }
            }
            own::REMOVE => {
                let body = log::Remove::decode(command.body.as_ref()).expect("a well-formed body");
                let as_expected = self.now.get(&body.path).is_some_and(|znode| {
                    znode.children.is_empty()
                        && znode.stat.czxid.0 == body.czxid
                        && znode.stat.mzxid.0 == body.mzxid
                        && znode.created == body.created
                });
                if as_expected {
                    self.step();
                    self.remove(&body.path);
                }
            }
            own::SET => {
                let body = log::Set::decode(command.body.as_ref()).expect("a well-formed body");
                self.settings.insert(body.name, body.value);
            }
            other => panic!("internal command {other}"),
        }
    }

    /// §3.3 create, from the session check on.
    fn create(
        &mut self,
        create: &Create,
        kind: Kind,
        ids: &[Id],
    ) -> Result<(Text, Stat), ErrorCode> {
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

    fn delete(&mut self, path: &str, version: i32, ids: &[Id]) -> Result<(), ErrorCode> {
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

    fn set_data(
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

    fn set_acl(
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
    fn multi(
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

    fn sub_operation(
        &mut self,
        operation: &SubRequest,
        session: SessionId,
        ids: &[Id],
    ) -> Result<SubAnswer, ErrorCode> {
        match operation {
            SubRequest::Create(create) => {
                let kind = kind_in_multi(create, self.setting("extended_types"), session)?;
                let (path, stat) = self.create(create, kind, ids)?;
                Ok(if create.opcode == op::CREATE {
                    SubAnswer::Create(path)
                } else {
                    SubAnswer::Create2(path, stat)
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
    fn close_session(&mut self, id: SessionId) {
        let owned = |znode: &Znode| znode.kind == Kind::Ephemeral(id);
        let paths = self.now.iter().filter(|(_, znode)| owned(znode));
        for path in paths.map(|(path, _)| path.clone()).collect::<Vec<_>>() {
            self.remove(&path);
        }
        self.sessions.remove(&id);
    }

    /// §3.4 delete.
    fn remove(&mut self, path: &str) {
        let (parent_path, name) = path.rsplit_once('/').expect("a stored path");
        let parent_path = if parent_path.is_empty() {
            "/"
        } else {
            parent_path
        };
        let znode = self.now.remove(path).expect("checked");
        self.touched.insert(path.into());
        let mut parent = Znode::clone(&self.now[parent_path]);
        parent.children.retain(|child| child != name);
        parent.stat.pzxid = parent.stat.pzxid.max(self.zxid);
        let parent_acl = parent.acl.clone();
        self.put(parent_path, parent);
        self.changed(EventType::NodeDeleted, path, znode.acl.clone(), parent_acl);
        self.update_quota(path);
    }

    fn changed(&mut self, kind: EventType, path: &str, acl: Vec<Acl>, parent_acl: Vec<Acl>) {
        self.changes.push(Change {
            zxid: self.zxid,
            kind,
            path: path.into(),
            acl,
            parent_acl,
        });
    }

    /// The governing quota of a path: its deepest root at or above it, with its limits (§5.6).
    fn quota_of(&self, path: &str) -> Option<(String, BTreeMap<String, i64>)> {
        let mut at = path;
        while at.len() > 1 {
            if let Some(limits) = self
                .now
                .get(&format!("/zookeeper/quota{at}/zookeeper_limits"))
            {
                return Some((at.into(), quota_values(&limits.data)));
            }
            at = &at[..at.rfind('/')?];
        }
        None
    }

    /// Hard limits, if they are enforced; a kind that does not change is not looked at (§5.6).
    fn check_quota(&self, path: &str, count: i64, bytes: i64) -> Result<(), ErrorCode> {
        if self.setting("enforce_quota") == 0 || path.starts_with("/zookeeper") {
            return Ok(());
        }
        let Some((root, limits)) = self.quota_of(path) else {
            return Ok(());
        };
        let Some(stats) = self
            .now
            .get(&format!("/zookeeper/quota{root}/zookeeper_stats"))
        else {
            return Ok(());
        };
        let used = quota_values(&stats.data);
        let exceeds = |limit: &str, kind: &str, delta: i64| {
            let limit = limits.get(limit).copied().unwrap_or(-1);
            delta != 0 && limit > -1 && used.get(kind).copied().unwrap_or(0) + delta > limit
        };
        if exceeds("countHardLimit", "count", count) || exceeds("byteHardLimit", "bytes", bytes) {
            return Err(ErrorCode::QuotaExceeded);
        }
        Ok(())
    }

    /// Counts again what lies below the quota root and overwrites the statistics silently (§5.6).
    fn update_quota(&mut self, path: &str) {
        let of_stats = |path: &str| {
            let inner = path.strip_prefix("/zookeeper/quota")?;
            inner.strip_suffix("/zookeeper_stats").map(String::from)
        };
        let root = match path.starts_with("/zookeeper") {
            // Only the creation of a statistics znode counts here, not a client's change of it.
            true => of_stats(path).filter(|_| {
                self.changes
                    .last()
                    .is_some_and(|change| change.kind == EventType::NodeCreated)
            }),
            false => self.quota_of(path).map(|(root, _)| root),
        };
        let Some(root) = root else { return };
        let stats_path = format!("/zookeeper/quota{root}/zookeeper_stats");
        let Some(stats) = self.now.get(&stats_path) else {
            return;
        };
        let below = format!("{root}/");
        let inside = self
            .now
            .iter()
            .filter(|(path, _)| **path == root || path.starts_with(&below));
        let (count, bytes) = inside.fold((0, 0), |(count, bytes), (_, znode)| {
            (count + 1, bytes + data_length(&znode.data))
        });
        let mut stats = Znode::clone(stats);
        stats.data = Some(format!("count={count},bytes={bytes}").into());
        self.put(&stats_path, stats);
    }

    /// The next transaction.
    fn step(&mut self) {
        self.zxid = Zxid::new(self.zxid.epoch(), self.zxid.counter() + 1);
    }

    fn setting(&self, name: &str) -> i64 {
        let default = i64::from(name == "digest_enabled");
        self.settings.get(name).copied().unwrap_or(default)
    }

    fn put(&mut self, path: &str, znode: Znode) {
        self.touched.insert(path.into());
        self.now.insert(path.into(), Rc::new(znode));
    }

    /// Moves what changed into the history.
    fn remember(&mut self) {
        for path in std::mem::take(&mut self.touched) {
            let version = (self.zxid, self.now.get(&path).cloned());
            let versions = self.history.entry(path).or_default();
            if versions.last().is_some_and(|(zxid, _)| *zxid == self.zxid) {
                versions.pop();
            }
            versions.push(version);
        }
        self.reached.entry(self.zxid).or_insert(self.index);
    }
}

impl Znode {
    /// As clients see it: the child version is creations plus deletions (§5.2).
    pub fn stat(&self) -> Stat {
        let children = self.children.len() as i64;
        Stat {
            cversion: (2 * self.created - children) as i32,
            data_length: data_length(&self.data) as i32,
            num_children: children as i32,
            ..self.stat
        }
    }
}

/// §7.4: any one of the needed permissions, through any entry that matches any identity.
pub fn check_acl(acl: &[Acl], needed: i32, ids: &[Id]) -> Result<(), ErrorCode> {
    let matches = |entry: &Acl, id: &Id| match &*entry.id.scheme {
        "ip" if id.scheme == "ip" => ip_matches(&entry.id.id, &id.id),
        _ => entry.id == *id,
    };
    let granted = ids.iter().any(|id| id.scheme == "super")
        || acl.is_empty()
        || acl
            .iter()
            .filter(|entry| entry.perms & needed != 0)
            .any(|entry| {
                entry.id == Id::new("world", "anyone") || ids.iter().any(|id| matches(entry, id))
            });
    if granted {
        Ok(())
    } else {
        Err(ErrorCode::NoAuth)
    }
}

/// The znode's kind outside of a multi: the opcode decides (§3.3, §3.6).
fn kind_alone(create: &Create, extended: i64, session: SessionId) -> Result<Kind, ErrorCode> {
    let mode = CreateMode::from_flags(create.flags).ok_or(ErrorCode::BadArguments)?;
    if mode.is_ttl() && extended == 0 {
        return Err(ErrorCode::Unimplemented);
    }
    match (create.opcode, create.ttl) {
        (op::CREATE_TTL, Some(ttl)) if mode.is_ttl() => ttl_kind(ttl),
        (op::CREATE_TTL, _) => Err(ErrorCode::BadArguments),
        _ if mode.is_ttl() => Err(ErrorCode::BadArguments),
        (op::CREATE_CONTAINER, _) => Ok(Kind::Container),
        _ if mode.is_ephemeral() => Ok(Kind::Ephemeral(session)),
        _ => Ok(Kind::Persistent),
    }
}

/// The znode's kind inside a multi: the mode decides (§4.1).
fn kind_in_multi(create: &Create, extended: i64, session: SessionId) -> Result<Kind, ErrorCode> {
    match CreateMode::from_flags(create.flags).ok_or(ErrorCode::BadArguments)? {
        mode if mode.is_ttl() && extended == 0 => Err(ErrorCode::Unimplemented),
        mode if mode.is_ttl() => ttl_kind(create.ttl.ok_or(ErrorCode::BadArguments)?),
        mode if mode.is_ephemeral() => Ok(Kind::Ephemeral(session)),
        CreateMode::Container => Ok(Kind::Container),
        _ => Ok(Kind::Persistent),
    }
}

fn ttl_kind(ttl: i64) -> Result<Kind, ErrorCode> {
    if (1..1 << 40).contains(&ttl) {
        Ok(Kind::Ttl(ttl))
    } else {
        Err(ErrorCode::BadArguments)
    }
}

/// §5.4, judged per UTF-16 unit: a character above U+FFFF has surrogates.
fn validate_path(path: &str) -> Result<(), ErrorCode> {
    let bad_unit =
        |unit: u16| matches!(unit, 0..=0x1f | 0x7f..=0x9f | 0xd800..=0xf8ff | 0xfff0..=0xffff);
    let components = path.strip_prefix('/').ok_or(ErrorCode::BadArguments)?;
    let bad_component = |component: &str| matches!(component, "" | "." | "..");
    if path != "/" && components.split('/').any(bad_component) || path.encode_utf16().any(bad_unit)
    {
        return Err(ErrorCode::BadArguments);
    }
    Ok(())
}

fn check_version(expected: i32, present: i32) -> Result<(), ErrorCode> {
    if expected == -1 || expected == present {
        Ok(())
    } else {
        Err(ErrorCode::BadVersion)
    }
}

/// §7.3. Duplicates go before `auth` is replaced.
fn accept_acl(acl: Option<&[Acl]>, ids: &[Id], digest: bool) -> Result<Vec<Acl>, ErrorCode> {
    let mut unique: Vec<&Acl> = Vec::new();
    for entry in acl.unwrap_or_default() {
        if !unique.contains(&entry) {
            unique.push(entry);
        }
    }
    let mut accepted = Vec::new();
    for entry in unique {
        let id = &entry.id.id;
        match &*entry.id.scheme {
            "world" if *id == "anyone" => accepted.push(entry.clone()),
            "auth" => {
                let own = ids.iter().filter(|id| id.scheme == "digest");
                let before = accepted.len();
                accepted.extend(own.map(|id| Acl {
                    perms: entry.perms,
                    id: id.clone(),
                }));
                if accepted.len() == before {
                    return Err(ErrorCode::InvalidAcl);
                }
            }
            "digest" if digest && is_digest(id) => accepted.push(entry.clone()),
            "ip" if ip_range(id).is_some() => accepted.push(entry.clone()),
            _ => return Err(ErrorCode::InvalidAcl),
        }
    }
    if accepted.is_empty() {
        Err(ErrorCode::InvalidAcl)
    } else {
        Ok(accepted)
    }
}

/// Two parts at `:`, not counting empty ones at the end.
fn is_digest(id: &str) -> bool {
    id.trim_end_matches(':').split(':').count() == 2 && id.contains(':')
}

/// An IPv4 range: address and number of leading bits that count. The simulation has no IPv6.
fn ip_range(id: &str) -> Option<(u32, u32)> {
    let (address, bits) = match id.split_once('/') {
        None => (id, 32),
        Some((address, bits)) => (address, bits.parse().ok().filter(|bits| *bits <= 32)?),
    };
    Some((u32::from(address.parse::<std::net::Ipv4Addr>().ok()?), bits))
}

fn ip_matches(range: &str, address: &str) -> bool {
    let (Some((base, bits)), Some((address, _))) = (ip_range(range), ip_range(address)) else {
        return false;
    };
    bits == 0 || (base ^ address) >> (32 - bits) == 0
}

/// §7.5: hashes are for those who may change the ACL.
fn mask(entry: &Acl) -> Acl {
    let mut shown = entry.clone();
    if entry.id.scheme == "digest" {
        let user = entry.id.id.split(':').next().unwrap_or_default();
        shown.id.id = format!("{user}:x").into();
    }
    shown
}

fn data_length(data: &Option<Bytes>) -> i64 {
    data.as_ref().map_or(0, |data| data.len() as i64)
}

/// `key=value` pairs between runs of `,` and `;`; an empty value counts as -1 (§5.6).
fn quota_values(data: &Option<Bytes>) -> BTreeMap<String, i64> {
    let text = String::from_utf8_lossy(data.as_deref().unwrap_or_default()).into_owned();
    let pairs = text
        .split([',', ';'])
        .filter_map(|pair| pair.split_once('='));
    // The recorded text has an odd `=` before its first `;`.
    let number = |value: &str| value.trim_end_matches('=').parse().unwrap_or(-1);
    pairs
        .map(|(key, value)| (key.into(), number(value)))
        .collect()
}

fn ids(identities: &[log::Identity]) -> Vec<Id> {
    identities
        .iter()
        .map(|id| Id::new(&id.scheme, &id.id))
        .collect()
}

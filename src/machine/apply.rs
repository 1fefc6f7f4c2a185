//! Writes: one function per operation (§3.3, §3.4).
//!
//! Each function makes its checks in the order of §3.3, since the first that fails decides the
//! error, and only then changes anything. The zxid is taken before the checks: a write that fails
//! has one too.

use std::borrow::Cow;
use std::sync::Arc;

use prost::Message;

use super::level::{LEVEL_SETTING, LOCAL_SESSIONS};
use super::quota::{self, Growth};
use super::session::{self, FIRST_GENERATION, LOCAL_GENERATION, Session};
use super::znode::{Kind, NewZnode, NodeId};
use super::{Caller, ChangeKind, Ensemble, Machine, Outcome, PendingChange, acl, op, path};
use crate::proto::log;
use crate::wire::request::{Create, Reconfig};
use crate::wire::{
    Acl, Answer, CreateMode, ErrorCode, Id, Request, SessionId, Stat, SubAnswer, Text, Zxid, perms,
};

/// The longest life of a TTL znode, in ms (§5.3).
const TTL_MS_MAX: i64 = (1 << 40) - 1;
/// The container marker, which no session may have as its id (§2.3).
const CONTAINER_MARKER: i64 = i64::MIN;

/// What every change of one transaction shares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub zxid: Zxid,
    pub time_ms: i64,
}

impl Machine {
    /// Runs a command. What it changed is left in `self.changes`, the session it closed in
    /// `self.closed`.
    pub(super) fn execute(&mut self, command: &log::Command) -> Outcome {
        match command.op {
            op::CREATE_SESSION => self.create_session(command),
            op::ATTACH => self.attach(command),
            op::REMOVE => self.remove_if_unchanged(command),
            op::SET => self.set(command),
            op::CONFIGURE => self.configure(command),
            _ => self.execute_for_session(command),
        }
    }

    fn execute_for_session(&mut self, command: &log::Command) -> Outcome {
        let id = SessionId(command.session);
        if command.generation == LOCAL_GENERATION && self.level() >= LOCAL_SESSIONS {
            return Outcome::Reply(self.write_for_local(command));
        }
        let Some(session) = self.sessions.get(id) else {
            return Outcome::Reply(Err(ErrorCode::SessionExpired));
        };
        if session.generation != command.generation {
            return Outcome::Moved;
        }
        match command.op {
            op::IDENTIFY => self.identify(command),
            op::CLOSE_SESSION => {
                self.close_session(id);
                Outcome::Reply(Ok(Answer::Empty))
            }
            _ => {
                let identities = session.identities.clone();
                Outcome::Reply(self.write(command, id, &identities))
            }
        }
    }

    /// A write that a client asked for in its own words.
    fn write(
        &mut self,
        command: &log::Command,
        session: SessionId,
        identities: &[Id],
    ) -> Result<Answer, ErrorCode> {
        let request = Request::decode(command.op, command.body.clone())
            .map_err(|_| ErrorCode::MarshallingError)?;
        let caller = &Caller {
            session,
            identities,
        };
        Ok(match request {
            Request::Create(create) => {
                let write = self.begin_write();
                let (path, stat) = self.create_alone(&create, caller, write)?;
                if create.answers_stat() {
                    Answer::PathStat(path, stat)
                } else {
                    Answer::Path(path)
                }
            }
            Request::Delete { path, version } => {
                let write = self.begin_write();
                self.delete(&path, version, caller, write)?;
                Answer::Empty
            }
            Request::SetData {
                path,
                data,
                version,
            } => {
                let write = self.begin_write();
                Answer::Stat(self.set_data(&path, data.as_deref(), version, caller, write)?)
            }
            Request::SetAcl { path, acl, version } => {
                self.begin_write();
                Answer::Stat(self.set_acl(&path, acl.as_deref(), version, caller)?)
            }
            Request::Multi(operations) => {
                let write = self.begin_write();
                self.multi(&operations, caller, write)
            }
            Request::Reconfig(reconfig) => {
                let write = self.begin_write();
                self.reconfig(&reconfig, caller, write)?
            }
            _ => return Err(ErrorCode::Unimplemented),
        })
    }

    /// The same, for a session that is not in the state: the command says what must be known of it.
    fn write_for_local(&mut self, command: &log::Command) -> Result<Answer, ErrorCode> {
        let (identities, command) = unwrap_local(command)?;
        self.local = true;
        let result = self.write(&command, SessionId(command.session), &identities);
        self.local = false;
        result
    }

    /// A create outside of a multi, where the opcode decides what is created (§3.6).
    fn create_alone(
        &mut self,
        create: &Create,
        caller: &Caller<'_>,
        write: Write,
    ) -> Result<(Text, Stat), ErrorCode> {
        use crate::wire::op::{CREATE_CONTAINER, CREATE_TTL};
        let mode = CreateMode::from_flags(create.flags).ok_or(ErrorCode::BadArguments)?;
        if mode.is_ttl() {
            self.check_extended_types()?;
        }
        let kind = match create.opcode {
            CREATE_TTL => ttl_kind(create, mode)?,
            _ if mode.is_ttl() => return Err(ErrorCode::BadArguments),
            CREATE_CONTAINER => Kind::Container,
            _ if mode.is_ephemeral() => Kind::Ephemeral(caller.session),
            _ => Kind::Persistent,
        };
        self.create(create, mode, kind, caller, write)
    }

    /// A create inside a multi, where the mode decides what is made, unless a container was asked
    /// for. The result has a Stat by what was made and by the opcode (§4.1, s65).
    pub(super) fn create_in_multi(
        &mut self,
        create: &Create,
        caller: &Caller<'_>,
        write: Write,
    ) -> Result<SubAnswer, ErrorCode> {
        use crate::wire::op::{CREATE_CONTAINER, CREATE2};
        let mode = CreateMode::from_flags(create.flags).ok_or(ErrorCode::BadArguments)?;
        let kind = match mode {
            CreateMode::Container => Kind::Container,
            _ if create.opcode == CREATE_CONTAINER => Kind::Container,
            _ if mode.is_ttl() => {
                self.check_extended_types()?;
                ttl_kind(create, mode)?
            }
            _ if mode.is_ephemeral() => Kind::Ephemeral(caller.session),
            _ => Kind::Persistent,
        };
        let with_stat = matches!(kind, Kind::Container | Kind::Ttl(_)) || create.opcode == CREATE2;
        let (path, stat) = self.create(create, mode, kind, caller, write)?;
        Ok(if with_stat {
            SubAnswer::Create2(path, stat)
        } else {
            SubAnswer::Create(path)
        })
    }

    fn create(
        &mut self,
        create: &Create,
        mode: CreateMode,
        kind: Kind,
        caller: &Caller<'_>,
        write: Write,
    ) -> Result<(Text, Stat), ErrorCode> {
        if self.local && matches!(kind, Kind::Ephemeral(_)) {
            return Err(ErrorCode::EphemeralOnLocalSession);
        }
        let asked = &create.path;
        if !path::has_shape(asked) {
            return Err(ErrorCode::BadArguments);
        }
        let acl = self.acceptable(create.acl.as_deref(), caller)?;
        let (parent_path, _) = path::split(asked).ok_or(ErrorCode::BadArguments)?;
        let parent = self.tree.lookup(parent_path).ok_or(ErrorCode::NoNode)?;
        self.check(parent, perms::CREATE, caller)?;
        let path = if mode.is_sequential() {
            format!("{asked}{:010}", self.tree.get(parent).created()).into()
        } else {
            asked.clone()
        };
        if !path::is_valid(&path) {
            return Err(ErrorCode::BadArguments);
        }
        if self.tree.lookup(&path).is_some() {
            return Err(ErrorCode::NodeExists);
        }
        if matches!(self.tree.get(parent).kind(), Kind::Ephemeral(_)) {
            return Err(ErrorCode::NoChildrenForEphemerals);
        }
        let growth = Growth {
            znodes: 1,
            bytes: length(create.data.as_deref()),
        };
        self.check_quota(&path, growth)?;

        let (_, name) = path::split(&path).ok_or(ErrorCode::BadArguments)?;
        let id = self.tree.insert(&NewZnode {
            parent,
            name,
            data: create.data.as_deref(),
            acl: &acl,
            kind,
            zxid: write.zxid,
            time_ms: write.time_ms,
        });
        // Of what was asked for: that a quota's statistics are filled in tells nothing (s88).
        let stat = self.tree.get(id).stat();
        quota::record(&mut self.tree, &path, growth);
        quota::begin(&mut self.tree, &path, id);
        self.changed(ChangeKind::Created, &path, id, parent);
        Ok((path, stat))
    }

    pub(super) fn delete(
        &mut self,
        path: &Text,
        version: i32,
        caller: &Caller<'_>,
        write: Write,
    ) -> Result<(), ErrorCode> {
        if !path::has_shape(path) || path::is_undeletable(path) {
            return Err(ErrorCode::BadArguments);
        }
        let (parent_path, _) = path::split(path).ok_or(ErrorCode::BadArguments)?;
        let parent = self.tree.lookup(parent_path).ok_or(ErrorCode::NoNode)?;
        self.check(parent, perms::DELETE, caller)?;
        // By the whole path: the parent of `//a` is the root, but `//a` is not `/a`.
        let id = self.tree.lookup(path).ok_or(ErrorCode::NoNode)?;
        expect_version(version, self.tree.get(id).version)?;
        if self.tree.get(id).count() > 0 {
            return Err(ErrorCode::NotEmpty);
        }
        self.remove(path, id, parent, write.zxid);
        Ok(())
    }

    pub(super) fn set_data(
        &mut self,
        path: &Text,
        data: Option<&[u8]>,
        version: i32,
        caller: &Caller<'_>,
        write: Write,
    ) -> Result<Stat, ErrorCode> {
        let id = self.writable(path)?;
        self.check(id, perms::WRITE, caller)?;
        let bytes = length(data) - length(self.tree.get(id).data());
        let growth = Growth { znodes: 0, bytes };
        self.check_quota(path, growth)?;
        expect_version(version, self.tree.get(id).version)?;

        self.tree.set_data(id, data, write.zxid, write.time_ms);
        quota::record(&mut self.tree, path, growth);
        let parent = match self.tree.get(id).parent {
            NodeId::NONE => NodeId::ROOT,
            parent => parent,
        };
        self.changed(ChangeKind::Data, path, id, parent);
        Ok(self.tree.get(id).stat())
    }

    fn set_acl(
        &mut self,
        path: &Text,
        list: Option<&[Acl]>,
        version: i32,
        caller: &Caller<'_>,
    ) -> Result<Stat, ErrorCode> {
        if !path::is_valid(path) {
            return Err(ErrorCode::BadArguments);
        }
        let list = self.acceptable(list, caller)?;
        let id = self.tree.lookup(path).ok_or(ErrorCode::NoNode)?;
        self.check(id, perms::ADMIN, caller)?;
        expect_version(version, self.tree.get(id).aversion)?;

        self.tree.set_acl(id, &list);
        Ok(self.tree.get(id).stat())
    }

    /// Other servers make the ensemble up from here on.
    fn reconfig(
        &mut self,
        request: &Reconfig,
        caller: &Caller<'_>,
        write: Write,
    ) -> Result<Answer, ErrorCode> {
        let after = self.reconfigured(request, caller)?;
        self.publish(after, write);
        let znode = self.tree.get(NodeId::CONFIG);
        Ok(Answer::Data(znode.shared_data(), znode.stat()))
    }

    /// The ensemble that a client's reconfig would lead to now, if it would succeed: a leader takes
    /// no step for somebody who may not ask for it.
    pub fn reconfigured_by(&self, command: &log::Command) -> Option<Ensemble> {
        let id = SessionId(command.session);
        let (identities, command) = match command.generation {
            LOCAL_GENERATION => unwrap_local(command).ok()?,
            generation => {
                let session = self.sessions.get(id)?;
                let is_present = session.generation == generation;
                is_present.then(|| (session.identities.clone(), command.clone()))?
            }
        };
        let request = Request::decode(command.op, command.body).ok()?;
        let Request::Reconfig(request) = request else {
            return None;
        };
        let caller = Caller {
            session: id,
            identities: &identities,
        };
        self.reconfigured(&request, &caller).ok()
    }

    /// The ensemble that a request leads to, by [`Ensemble::after`].
    ///
    /// # Errors
    /// What the client is told.
    fn reconfigured(&self, request: &Reconfig, caller: &Caller<'_>) -> Result<Ensemble, ErrorCode> {
        if self.settings.get("reconfig_enabled") == 0 {
            return Err(ErrorCode::ReconfigDisabled);
        }
        let ensemble = self.ensemble.as_ref().ok_or(ErrorCode::Unimplemented)?;
        let after = ensemble.after(request)?;
        if self.no_quorum {
            return Err(ErrorCode::NewConfigNoQuorum);
        }
        self.check(NodeId::CONFIG, perms::WRITE, caller)?;
        Ok(after)
    }

    /// An ensemble comes into force, and clients are shown it.
    fn publish(&mut self, ensemble: Ensemble, write: Write) {
        let id = NodeId::CONFIG;
        let ensemble = ensemble.since(write.zxid);
        let text = ensemble.to_string();
        let bytes = text.len() as i64 - length(self.tree.get(id).data());
        self.tree
            .configure(id, text.as_bytes(), write.zxid, write.time_ms);
        quota::record(&mut self.tree, path::CONFIG, Growth { znodes: 0, bytes });
        let parent = self.tree.get(id).parent;
        self.changed(ChangeKind::Data, &path::CONFIG.into(), id, parent);
        self.ensemble = Some(ensemble);
    }

    pub(super) fn check_version(
        &self,
        path: &Text,
        version: i32,
        caller: &Caller<'_>,
    ) -> Result<(), ErrorCode> {
        let id = self.writable(path)?;
        self.check(id, perms::READ, caller)?;
        expect_version(version, self.tree.get(id).version)
    }

    fn create_session(&mut self, command: &log::Command) -> Outcome {
        let Ok(body) = log::CreateSession::decode(command.body.clone()) else {
            return Outcome::Reply(Err(ErrorCode::MarshallingError));
        };
        let Ok(password) = body.password.as_ref().try_into() else {
            return Outcome::Reply(Err(ErrorCode::MarshallingError));
        };
        let session = Session {
            id: SessionId(command.session),
            timeout_ms: body.timeout_ms,
            password,
            generation: FIRST_GENERATION,
            identities: session::identities(&body.identities, &[]),
        };
        let attached = session.attached(true);
        let is_possible = !matches!(session.id.0, 0 | CONTAINER_MARKER);
        if !is_possible || !self.sessions.insert(session) {
            return Outcome::Refused;
        }
        self.begin_write();
        Outcome::Attached(attached)
    }

    /// A session goes over to a new connection. Whoever does not know the password changes nothing,
    /// as the ids of sessions are public.
    fn attach(&mut self, command: &log::Command) -> Outcome {
        let Ok(body) = log::Attach::decode(command.body.clone()) else {
            return Outcome::Reply(Err(ErrorCode::MarshallingError));
        };
        let id = SessionId(command.session);
        if self
            .sessions
            .get(id)
            .is_none_or(|session| session.password != body.password.as_ref())
        {
            return Outcome::Refused;
        }
        let attached = self.sessions.edit(id, |session| {
            session.generation += 1;
            session.timeout_ms = body.timeout_ms;
            session.identities = session::identities(&body.identities, &[]);
            session.attached(false)
        });
        attached.map_or(Outcome::Refused, Outcome::Attached)
    }

    fn identify(&mut self, command: &log::Command) -> Outcome {
        let Ok(body) = log::Identify::decode(command.body.clone()) else {
            return Outcome::Reply(Err(ErrorCode::MarshallingError));
        };
        self.sessions.edit(SessionId(command.session), |session| {
            session.identities = session::identities(&body.identities, &session.identities);
        });
        Outcome::Reply(Ok(Answer::Empty))
    }

    /// Ends a session: its ephemerals go in the order of their paths, in one transaction (§8.6).
    fn close_session(&mut self, id: SessionId) {
        let write = self.begin_write();
        let mut owned: Vec<(Text, NodeId)> = self
            .tree
            .ephemerals(id)
            .map(|owned| (self.tree.path(owned).into(), owned))
            .collect();
        owned.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (path, ephemeral) in owned {
            let parent = self
                .tree
                .lookup(path::parent(&path))
                .expect("a znode has a parent");
            self.remove(&path, ephemeral, parent, write.zxid);
        }
        self.sessions.remove(id);
        self.closed = Some(id);
    }

    /// The removal of an outlived znode, if it still is as the leader saw it (§5.3).
    fn remove_if_unchanged(&mut self, command: &log::Command) -> Outcome {
        let Ok(body) = log::Remove::decode(command.body.clone()) else {
            return Outcome::Reply(Err(ErrorCode::MarshallingError));
        };
        let seen = (Zxid(body.czxid), Zxid(body.mzxid), body.created);
        if let Some(id) = self.tree.lookup(&body.path) {
            let znode = self.tree.get(id);
            let is_cleanable = matches!(znode.kind(), Kind::Container | Kind::Ttl(_));
            let is_same = (znode.czxid, znode.mzxid, znode.created()) == seen;
            if is_cleanable && is_same && znode.count() == 0 {
                let path = Text::from(body.path);
                let parent = self
                    .tree
                    .lookup(path::parent(&path))
                    .expect("a znode has a parent");
                let write = self.begin_write();
                self.remove(&path, id, parent, write.zxid);
            }
        }
        Outcome::Reply(Ok(Answer::Empty))
    }

    fn set(&mut self, command: &log::Command) -> Outcome {
        let Ok(body) = log::Set::decode(command.body.clone()) else {
            return Outcome::Reply(Err(ErrorCode::MarshallingError));
        };
        // A leader may have proposed it before it knew of a higher one.
        let is_lower = body.name == LEVEL_SETTING && body.value <= i64::from(self.level());
        if !is_lower {
            self.settings.set(&body.name, body.value);
        }
        Outcome::Reply(Ok(Answer::Empty))
    }

    /// The leader names the servers, if they still are those that it knew.
    fn configure(&mut self, command: &log::Command) -> Outcome {
        let Ok(body) = log::Configure::decode(command.body.clone()) else {
            return Outcome::Reply(Err(ErrorCode::MarshallingError));
        };
        let present = self.ensemble.as_ref().map_or(Zxid(0), Ensemble::version);
        if Zxid(body.expected) != present {
            return Outcome::Reply(Err(ErrorCode::BadVersion));
        }
        match Ensemble::parse(&body.text) {
            Ok(ensemble) => {
                let write = self.begin_write();
                self.publish(ensemble, write);
                Outcome::Reply(Ok(Answer::Empty))
            }
            Err(code) => Outcome::Reply(Err(code)),
        }
    }

    fn begin_write(&mut self) -> Write {
        Write {
            zxid: self.next_zxid(),
            time_ms: self.time_ms,
        }
    }

    fn remove(&mut self, path: &Text, id: NodeId, parent: NodeId, zxid: Zxid) {
        self.changed(ChangeKind::Deleted, path, id, parent);
        let growth = Growth {
            znodes: -1,
            bytes: -length(self.tree.get(id).data()),
        };
        self.tree.remove(id, zxid);
        quota::record(&mut self.tree, path, growth);
    }

    fn changed(&mut self, kind: ChangeKind, path: &Text, id: NodeId, parent: NodeId) {
        self.changes.push(PendingChange {
            kind,
            path: path.clone(),
            acl: Arc::clone(self.tree.acl(id)),
            parent_acl: Arc::clone(self.tree.acl(parent)),
        });
    }

    /// The znode at a path that is written to: such paths are validated in full (§3.3).
    fn writable(&self, path: &Text) -> Result<NodeId, ErrorCode> {
        if !path::is_valid(path) {
            return Err(ErrorCode::BadArguments);
        }
        self.tree.lookup(path).ok_or(ErrorCode::NoNode)
    }

    fn acceptable<'a>(
        &self,
        list: Option<&'a [Acl]>,
        caller: &Caller<'_>,
    ) -> Result<Cow<'a, [Acl]>, ErrorCode> {
        acl::accept(
            list,
            caller.identities,
            self.settings.get("digest_enabled") != 0,
        )
    }

    fn check_quota(&self, path: &Text, growth: Growth) -> Result<(), ErrorCode> {
        match self.settings.get("enforce_quota") {
            0 => Ok(()),
            _ => quota::check(&self.tree, path, growth),
        }
    }

    fn check_extended_types(&self) -> Result<(), ErrorCode> {
        match self.settings.get("extended_types") {
            0 => Err(ErrorCode::Unimplemented),
            _ => Ok(()),
        }
    }
}

/// The identities that a command of a session which is not in the state comes with, and the command
/// as the client gave it.
fn unwrap_local(command: &log::Command) -> Result<(Arc<[Id]>, log::Command), ErrorCode> {
    let write = log::LocalWrite::decode(command.body.clone());
    let write = write.map_err(|_| ErrorCode::MarshallingError)?;
    let command = log::Command {
        body: write.body,
        ..command.clone()
    };
    Ok((session::identities(&write.identities, &[]), command))
}

/// The kind that a TTL mode asks for.
fn ttl_kind(create: &Create, mode: CreateMode) -> Result<Kind, ErrorCode> {
    match create.ttl {
        Some(ttl @ 1..=TTL_MS_MAX) if mode.is_ttl() => Ok(Kind::Ttl(ttl)),
        _ => Err(ErrorCode::BadArguments),
    }
}

/// Bytes of data; null has none.
fn length(data: Option<&[u8]>) -> i64 {
    data.map_or(0, <[u8]>::len) as i64
}

/// -1 expects nothing (§3.3).
fn expect_version(expected: i32, actual: i32) -> Result<(), ErrorCode> {
    if expected == -1 || expected == actual {
        Ok(())
    } else {
        Err(ErrorCode::BadVersion)
    }
}

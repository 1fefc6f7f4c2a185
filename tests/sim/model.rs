//! The naive model: what the server must do, told a second time and as simply as possible.
//!
//! Written from the protocol description (the sections are named at each rule), never from
//! `src/machine`: two tellings that agree are worth something only if neither copied the other. It
//! takes the committed log, keeps every version of every znode, and so knows the outcome of each
//! command and the state at each zxid. No cleverness here: strings for paths, whole copies for
//! undo, sums counted again each time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;

use bytes::Bytes;
use prost::Message;
use zkraft::proto::log;
use zkraft::wire::{
    Acl, Answer, ErrorCode, EventType, Id, Request, SessionId, Stat, Zxid, op, perms,
};

pub use ensemble::Lines;
pub use rules::check_acl;
use rules::{data_length, kind_alone};

mod ensemble;
mod quota;
mod read;
mod rules;
mod write;

/// Commands that no client can send (the log's own numbers).
pub mod own {
    pub const ATTACH: i32 = -20;
    pub const IDENTIFY: i32 = -21;
    pub const REMOVE: i32 = -22;
    pub const SET: i32 = -23;
    pub const CONFIGURE: i32 = -24;
    /// The generation of a session that only its server knows.
    pub const LOCAL: u64 = u64::MAX;
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
    /// Names, in order of creation; shared, since there is a copy in each version.
    pub children: Vec<Rc<str>>,
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
    /// As whom it was carried out; of an attachment, those that it brought.
    pub identities: Vec<Id>,
    pub outcome: Outcome,
    /// The server's zxid after it.
    pub zxid: Zxid,
    /// Whether that zxid is its own.
    pub stepped: bool,
    pub index: u64,
}

/// What a path was from a zxid on; no znode is absence.
#[derive(Debug)]
struct Version {
    from: Zxid,
    znode: Option<Rc<Znode>>,
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
    /// The servers of the ensemble, and the zxid since when they are.
    pub ensemble: Option<(Lines, Zxid)>,
    /// What the leader said of a reconfig in the present entry.
    no_quorum: bool,
    /// The present write is of a session that only its server knows (§8.7).
    is_local: bool,
    pub changes: Vec<Change>,
    /// Every version of every path, oldest first.
    history: BTreeMap<String, Vec<Version>>,
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
                children: children.into_iter().map(Rc::from).collect(),
            };
            model.put(path, znode);
        }
        model.remember();
        model
    }

    /// Applies the entry at `index`; without content it is a new leader's empty one.
    pub fn apply(&mut self, index: u64, term: u64, entry: &log::Entry) -> Vec<Done> {
        self.index = index;
        self.no_quorum = entry.no_quorum;
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
        version_at(versions, zxid)
    }

    /// All znodes at a zxid whose paths begin like this, by path.
    pub fn all_at(&self, zxid: Zxid, prefix: &str) -> impl Iterator<Item = (&str, &Rc<Znode>)> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        self.history
            .range::<str, _>(from)
            .take_while(move |(path, _)| path.starts_with(prefix))
            .filter_map(move |(path, versions)| Some((path.as_str(), version_at(versions, zxid)?)))
    }

    /// The log index that a server had applied, at least, if it was at this zxid; `None`: it
    /// never was.
    pub fn index_of(&self, zxid: Zxid) -> Option<u64> {
        self.reached.get(&zxid).copied()
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
            body: command.body.clone(),
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
                _ if done.generation == own::LOCAL => self.of_local(&mut done),
                _ => {
                    let session = self.sessions.get(&done.session);
                    done.identities = session.map(|s| s.identities.clone()).unwrap_or_default();
                    self.of_session(&done, |model, done| model.client_command(done))
                }
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

    /// A write of a session that the log does not know, which says itself as whom it is done. All
    /// servers know of such sessions from level 2 on.
    fn of_local(&mut self, done: &mut Done) -> Outcome {
        let body = log::LocalWrite::decode(done.body.clone()).expect("a well-formed body");
        (done.identities, done.body) = (ids(&body.identities), body.body);
        if self.setting("feature_level") < 2 {
            return Outcome::Reply(Err(ErrorCode::SessionExpired));
        }
        self.is_local = true;
        let reply = self.client_command(done);
        self.is_local = false;
        Outcome::Reply(reply)
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
            password: body.password,
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
        let (session, ids) = (done.session, done.identities.clone());
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
            Request::Reconfig(request) => self.reconfig(&request, &ids),
            other => panic!("{other:?} is not a write"),
        }
    }

    /// The leader's own: expiry, removal of containers and TTL znodes, settings, the naming of the
    /// servers. Each says what it expects and does nothing if that is not so any more.
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
                // The feature level never goes down.
                if body.name != "feature_level" || body.value > self.setting(&body.name) {
                    self.settings.insert(body.name, body.value);
                }
            }
            own::CONFIGURE => {
                let body =
                    log::Configure::decode(command.body.as_ref()).expect("a well-formed body");
                self.configure(&body.text, Zxid(body.expected));
            }
            other => panic!("internal command {other}"),
        }
    }

    /// The next transaction.
    fn step(&mut self) {
        self.zxid = Zxid::new(self.zxid.epoch(), self.zxid.counter() + 1);
    }

    fn setting(&self, name: &str) -> i64 {
        let default = i64::from(matches!(name, "digest_enabled" | "feature_level"));
        self.settings.get(name).copied().unwrap_or(default)
    }

    fn put(&mut self, path: &str, znode: Znode) {
        self.touched.insert(path.into());
        self.now.insert(path.into(), Rc::new(znode));
    }

    /// Moves what changed into the history.
    fn remember(&mut self) {
        for path in std::mem::take(&mut self.touched) {
            let znode = self.now.get(&path).cloned();
            let versions = self.history.entry(path).or_default();
            versions.pop_if(|last| last.from == self.zxid);
            versions.push(Version {
                from: self.zxid,
                znode,
            });
        }
        self.reached.entry(self.zxid).or_insert(self.index);
    }
}

/// The one of these versions that was there at a zxid.
fn version_at(versions: &[Version], zxid: Zxid) -> Option<&Rc<Znode>> {
    let after = versions.partition_point(|version| version.from <= zxid);
    versions[..after].last()?.znode.as_ref()
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

fn ids(identities: &[log::Identity]) -> Vec<Id> {
    identities
        .iter()
        .map(|id| Id::new(&id.scheme, &id.id))
        .collect()
}

#[cfg(test)]
mod tests {
    use zkraft::wire::SubAnswer;
    use zkraft::wire::request::SubRequest;

    use super::*;
    use crate::workload::create;

    /// A model with one session, and a way to send it writes.
    struct Fixture {
        model: Model,
        number: u64,
    }

    impl Fixture {
        fn new() -> Self {
            let mut fixture = Self {
                model: Model::new(),
                number: 0,
            };
            let body = log::CreateSession {
                timeout_ms: 4000,
                password: vec![1; 16].into(),
                identities: vec![],
            };
            fixture.command(0, op::CREATE_SESSION, body.encode_to_vec());
            fixture
        }

        fn command(&mut self, generation: u64, op: i32, body: Vec<u8>) -> Outcome {
            self.number += 1;
            let command = log::Command {
                session: 7,
                generation,
                op,
                body: body.into(),
            };
            let origin = log::Origin {
                server: 1,
                disk: 1,
                incarnation: 1,
            };
            let (first, commands) = (self.number, vec![command]);
            let batch = log::Batch {
                origin: Some(origin),
                first,
                commands,
            };
            let entry = log::Entry {
                time_ms: 5,
                batches: vec![batch],
                internal: vec![],
                change: None,
                no_quorum: false,
            };
            self.model.apply(self.number, 1, &entry).remove(0).outcome
        }

        fn write(&mut self, request: Request) -> Reply {
            let mut body = bytes::BytesMut::new();
            request.encode(&mut body);
            match self.command(1, request.opcode(), body.to_vec()) {
                Outcome::Reply(reply) => reply,
                other => panic!("{other:?}"),
            }
        }

        fn stat(&self, path: &str) -> Stat {
            self.model.now[path].stat()
        }
    }

    #[test]
    fn s35_s39_the_system_znodes_are_the_recorded_ones() {
        let fixture = Fixture::new();
        let (root, zookeeper) = (fixture.stat("/"), fixture.stat("/zookeeper"));
        assert_eq!((root.cversion, root.num_children), (-1, 1));
        assert_eq!((zookeeper.cversion, zookeeper.num_children), (-2, 2));
        let config = &fixture.model.now["/zookeeper/config"];
        assert_eq!((config.stat().aversion, config.acl[0].perms), (-1, 1));
    }

    #[test]
    fn s21_to_s25_paths_of_creates() {
        let mut fixture = Fixture::new();
        let mut error = |path| {
            fixture
                .write(create(path, 0, b""))
                .err()
                .map(ErrorCode::number)
        };
        assert_eq!(error("/a"), None);
        let cases = [
            ("", -8),
            ("a", -8),
            ("a/b", -101),
            ("/a/", -8),
            ("/none/", -101),
            ("/", -110),
            ("//a", -8),
            ("/x//b", -101),
            ("/a/.", -8),
        ];
        for (path, code) in cases {
            assert_eq!(error(path), Some(code), "{path}");
        }
        assert_eq!(error("/a/..."), None);
        let sequential = fixture.write(create("/a/", 2, b""));
        assert_eq!(sequential, Ok(Answer::Path("/a/0000000001".into())));
    }

    #[test]
    fn s36_a_child_moves_its_parents_cversion_twice() {
        let mut fixture = Fixture::new();
        fixture.write(create("/p", 0, b"")).unwrap();
        fixture.write(create("/p/c", 0, b"")).unwrap();
        let delete = Request::Delete {
            path: "/p/c".into(),
            version: -1,
        };
        fixture.write(delete).unwrap();
        let stat = fixture.stat("/p");
        assert_eq!(
            (stat.cversion, stat.version, stat.mzxid),
            (2, 0, stat.czxid)
        );
        assert_eq!(stat.pzxid, fixture.model.zxid);
    }

    #[test]
    fn s42_versions_come_before_children_and_a_failed_write_has_a_zxid() {
        let mut fixture = Fixture::new();
        fixture.write(create("/p", 0, b"")).unwrap();
        fixture.write(create("/p/c", 0, b"")).unwrap();
        let before = fixture.model.zxid.0;
        let delete = |version| Request::Delete {
            path: "/p".into(),
            version,
        };
        assert_eq!(fixture.write(delete(9)), Err(ErrorCode::BadVersion));
        assert_eq!(fixture.write(delete(0)), Err(ErrorCode::NotEmpty));
        assert_eq!(fixture.model.zxid.0, before + 2);
    }

    #[test]
    fn s61_a_failed_multi_changes_nothing_and_says_where_it_failed() {
        let mut fixture = Fixture::new();
        let Request::Create(new) = create("/m", 0, b"") else {
            panic!("a create")
        };
        let operations = vec![
            SubRequest::Create(new.clone()),
            SubRequest::Create(new),
            SubRequest::Delete {
                path: "/m".into(),
                version: -1,
            },
        ];
        let codes = [
            None,
            Some(ErrorCode::NodeExists),
            Some(ErrorCode::RuntimeInconsistency),
        ];
        let expected = Answer::Multi(codes.map(SubAnswer::Error).to_vec());
        assert_eq!(fixture.write(Request::Multi(operations)), Ok(expected));
        assert!(!fixture.model.now.contains_key("/m"));
        assert!(fixture.model.changes.is_empty());
    }

    #[test]
    fn every_version_stays_readable_at_its_zxid() {
        let mut fixture = Fixture::new();
        fixture.write(create("/v", 0, b"old")).unwrap();
        let old = fixture.model.zxid;
        let data = Some(Bytes::from_static(b"new"));
        fixture
            .write(Request::SetData {
                path: "/v".into(),
                data,
                version: 0,
            })
            .unwrap();
        let at = |zxid| {
            fixture
                .model
                .at(zxid, "/v")
                .and_then(|znode| znode.data.clone())
        };
        assert_eq!(at(old).as_deref(), Some(&b"old"[..]));
        assert_eq!(at(fixture.model.zxid).as_deref(), Some(&b"new"[..]));
        assert_eq!(at(Zxid(0)), None);
    }

    #[test]
    fn a_command_of_an_earlier_attachment_has_moved() {
        let mut fixture = Fixture::new();
        let body = log::Attach {
            password: vec![1; 16].into(),
            ..log::Attach::default()
        };
        fixture.command(0, own::ATTACH, body.encode_to_vec());
        let zxid = fixture.model.zxid;
        assert_eq!(
            fixture.command(1, op::CLOSE_SESSION, vec![]),
            Outcome::Moved
        );
        assert_eq!(
            (fixture.model.zxid, fixture.model.sessions.len()),
            (zxid, 1)
        );
    }
}

//! The checkers: what must hold, whatever happens (architecture §2.6).
//!
//! One file per group of invariants. They see what a client sees (frames), what the disk sees
//! (appended and synced records) and, for state, the machine's own answers; the truth they compare
//! with is the [`Model`], fed with the committed log. A checker never influences the run.

pub mod log;
pub mod recipes;
pub mod replies;
pub mod sessions;
pub mod state;
pub mod watches;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message as _;
use zkraft::engine::Engine;
use zkraft::proto;
use zkraft::wire::{Id, SessionId, Zxid, op};

use crate::client::Sent;
use crate::model::{self, Model, Outcome};

/// A connection of the run: never used twice, and told by the address it comes from.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ConnId(pub u32);

impl ConnId {
    pub fn address(self) -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::from((10 << 24) | self.0)
    }
}

/// What was broken, and how it showed.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The group of invariants whose checker noticed.
    pub group: Group,
    pub what: String,
}

/// Groups of invariants; the numbers are those of architecture §2.6.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Group {
    /// 4–8: the log, and nothing said before it is durable.
    Log,
    /// 9–15: the state is what the log says.
    State,
    /// 17–19, 22, 23: replies.
    Replies,
    /// 20, 21: watch events.
    Watches,
    /// 24: sessions live as long as they should.
    Sessions,
    /// What recipes rely on: locks, queues, counters, sums.
    Recipes,
    /// 25: after the last fault everything works again.
    Liveness,
    /// An assertion of the server itself.
    Panic,
}

pub type Verdict = Result<(), Violation>;

/// A failed check as a value.
pub fn broken<T>(group: Group, what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation {
        group,
        what: what.into(),
    })
}

/// All checkers of a run, and what they know.
pub struct Checks {
    pub model: Model,
    pub log: log::LogCheck,
    pub state: state::StateCheck,
    pub sessions: sessions::SessionCheck,
    pub recipes: recipes::RecipeCheck,
    pub(crate) conns: BTreeMap<ConnId, replies::Conn>,
    /// Which attachment belongs to which connection.
    attachments: BTreeMap<(SessionId, u64), ConnId>,
    sessions_seen: BTreeSet<SessionId>,
    /// The highest zxid that a session was shown.
    shown: BTreeMap<SessionId, Zxid>,
    /// The highest zxid of an acknowledged write.
    acknowledged: Zxid,
    /// Watch events, refused handshakes and moved commands so far.
    pub seen: (u64, u64, u64),
    /// For how long the server's process has run, in ms.
    pub ran_ms: u64,
}

impl Checks {
    pub fn new() -> Self {
        Self {
            model: Model::new(),
            log: log::LogCheck::default(),
            state: state::StateCheck::new(),
            sessions: sessions::SessionCheck::default(),
            recipes: recipes::RecipeCheck::default(),
            conns: BTreeMap::new(),
            attachments: BTreeMap::new(),
            sessions_seen: BTreeSet::new(),
            shown: BTreeMap::new(),
            acknowledged: Zxid(0),
            seen: (0, 0, 0),
            ran_ms: 0,
        }
    }

    /// A client opened a connection and sent its handshake.
    pub fn opened(&mut self, conn: ConnId, handshake: zkraft::wire::ConnectRequest) {
        self.conns.insert(conn, replies::Conn::new(conn, handshake));
    }

    /// A client sent a request. `conn` is open as far as the client knows.
    pub fn sent(&mut self, conn: ConnId, sent: Sent) {
        let acknowledged = self.acknowledged;
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.sent(sent, acknowledged);
        }
    }

    /// The server read a frame of this connection, after its process had run for so long.
    pub fn received(&mut self, conn: ConnId, ran_ms: u64) {
        self.ran_ms = ran_ms;
        let Some((session, generation)) = self.conns.get(&conn).and_then(replies::Conn::attachment)
        else {
            return;
        };
        if self
            .model
            .sessions
            .get(&session)
            .is_some_and(|now| now.generation == generation)
        {
            self.sessions.heard(session, ran_ms);
        }
    }

    /// The server applied entries: lets the model follow and compares.
    pub fn applied(&mut self, engine: &Engine, deep: bool) -> Verdict {
        let shared = engine.shared();
        let state = shared.state.read();
        let applied = state.machine.applied();
        if applied.index < self.model.index {
            // After a restart the log may not say yet how far it was committed; until that is
            // found out again nobody may be served.
            if shared.is_serving() {
                let (now, before) = (applied.index, self.model.index);
                return broken(
                    Group::Log,
                    format!("6: applied went back from {before} to {now}"),
                );
            }
            return Ok(());
        }
        self.log.check_applied(applied.index)?;
        while self.model.index < applied.index {
            let entry = self.log.entry(self.model.index + 1).clone();
            self.apply(&entry)?;
        }
        self.state.compare(&self.model, &state.machine, deep)
    }

    fn apply(&mut self, entry: &proto::log::LogEntry) -> Verdict {
        let content = match proto::log::Entry::decode(entry.data.as_ref()) {
            Ok(content) => content,
            Err(error) => {
                return broken(Group::Log, format!("entry {}: {error}", entry.index));
            }
        };
        self.state.replay(entry, &content);
        let before = self.model.zxid;
        for done in self.model.apply(entry.index, entry.term, &content) {
            match &done.outcome {
                Outcome::Attached {
                    session,
                    generation,
                    ..
                } => {
                    let Some(conn) = conn_of(&done.identities) else {
                        return broken(Group::Replies, "an attachment without an address");
                    };
                    if done.opcode == op::CREATE_SESSION && !self.sessions_seen.insert(*session) {
                        return broken(Group::Sessions, format!("session id {session} came twice"));
                    }
                    self.attachments.insert((*session, *generation), conn);
                    self.sessions.attached(*session, self.ran_ms);
                    let session = (*session, *generation);
                    if let Some(conn) = self.conns.get_mut(&conn) {
                        conn.attached(session, done)?;
                    }
                }
                Outcome::Refused => {
                    self.seen.1 += 1;
                    if let Some(conn) = conn_of(&done.identities)
                        && let Some(conn) = self.conns.get_mut(&conn)
                    {
                        conn.refused_at = Some(done.index);
                    }
                }
                Outcome::Internal => {}
                Outcome::Reply(_) | Outcome::Moved if done.opcode == model::own::IDENTIFY => {}
                Outcome::Reply(_) | Outcome::Moved => {
                    let attachment = (done.session, done.generation);
                    let conn = self.attachments.get(&attachment);
                    let Some(conn) = conn.and_then(|conn| self.conns.get_mut(conn)) else {
                        let what = format!("{done:?} came through no connection");
                        return broken(Group::Replies, what);
                    };
                    self.seen.2 += u64::from(done.outcome == Outcome::Moved);
                    conn.committed(done)?;
                }
            }
        }
        if self.model.zxid < before {
            return broken(
                Group::State,
                format!("11: zxid went back to {}", self.model.zxid),
            );
        }
        Ok(())
    }

    /// A frame left the server for the client of this connection.
    pub fn frame(&mut self, conn: ConnId, frame: Bytes) -> Verdict {
        let conn = self
            .conns
            .get_mut(&conn)
            .expect("a connection that was opened");
        let view = replies::View {
            model: &self.model,
            durable: self.log.durable,
        };
        let shown = conn.frame(frame, &view)?;
        self.seen.0 += u64::from(shown.event);
        if let Some((session, _)) = conn.session() {
            let last = self.shown.entry(session).or_insert(Zxid(0));
            if shown.attached {
                // Also across connections nothing goes back. An older connection of the session
                // may still send what it had queued, so only its past counts.
                conn.floor = *last;
            }
            *last = shown.zxid.unwrap_or_default().max(*last);
        }
        if let Some(zxid) = shown.acknowledged {
            self.acknowledged = self.acknowledged.max(zxid);
        }
        Ok(())
    }

    /// The server closed this connection by itself.
    pub fn closed_by_server(&mut self, conn: ConnId) -> Verdict {
        let conn = self
            .conns
            .get_mut(&conn)
            .expect("a connection that was opened");
        conn.closed(&self.model)
    }

    /// Whether the session of this connection has ended or has another connection.
    pub fn is_superseded(&self, conn: ConnId) -> bool {
        let attachment = self.conns.get(&conn).and_then(replies::Conn::attachment);
        attachment.is_some_and(|(session, generation)| {
            let now = self.model.sessions.get(&session);
            now.is_none_or(|now| now.generation != generation)
        })
    }

    /// The connection is over: nothing more can be seen on it.
    pub fn gone(&mut self, conn: ConnId) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.gone();
        }
    }
}

/// The connection whose address is among these identities.
fn conn_of(identities: &[Id]) -> Option<ConnId> {
    let address = identities.iter().find(|id| id.scheme == "ip")?;
    let address: std::net::Ipv4Addr = address.id.parse().ok()?;
    Some(ConnId(u32::from(address) & 0xff_ffff))
}

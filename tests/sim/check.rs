//! The checkers: what must hold, whatever happens (architecture §2.6).
//!
//! One file per group of invariants. They see what a client sees (frames), what the disk sees
//! (appended and synced records) and, for state, the machine's own answers; the truth they compare
//! with is the [`Model`], fed with the committed log. A checker never influences the run.
//!
//! Of the 25 invariants, 10 is left to `tests/tidy.rs` and to [`state`]'s replay of the log on
//! copies, 12 to an assertion of the machine, and 16 holds no more: time is the leader's clock as
//! it is. Of 24, that a session which nobody touches ends in time is looked at once, at the end.

pub mod cluster;
pub mod levels;
pub mod log;
pub mod members;
pub mod recipes;
pub mod replies;
pub mod sessions;
pub mod state;
pub mod watches;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::Message;
use zkraft::engine::Engine;
use zkraft::proto;
use zkraft::proto::log::{HardState, LogEntry, Membership, Record};
use zkraft::wire::{ConnectRequest, Id, SessionId, Zxid, op};

use crate::client::Sent;
use crate::model::{self, Model, Outcome};
use levels::Build;

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
    /// 1–4: one leader, one log.
    Consensus,
    /// What 1–4 rest on: who has a say, and with which disk.
    Members,
    /// Who raises the feature level, and who executes what.
    Levels,
    /// 4–8: the log of a server, and nothing said before it is durable.
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
    /// A server noticed by itself that its state is not that of the others.
    Alarm,
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
    /// Follows whoever applies most.
    pub model: Model,
    pub logs: Vec<log::LogCheck>,
    pub cluster: cluster::ClusterCheck,
    pub members: members::MemberCheck,
    pub levels: levels::LevelCheck,
    pub state: state::StateCheck,
    pub sessions: sessions::SessionCheck,
    pub recipes: recipes::RecipeCheck,
    /// What each server has applied.
    applied: Vec<u64>,
    /// Where sessions were attached in the log.
    attached: BTreeMap<u64, Vec<SessionId>>,
    pub(crate) conns: BTreeMap<ConnId, replies::Conn>,
    /// Which attachment belongs to which connection.
    attachments: BTreeMap<(SessionId, u64), ConnId>,
    sessions_seen: BTreeSet<SessionId>,
    /// The highest zxid that a session was shown.
    shown: BTreeMap<SessionId, Zxid>,
    /// The highest zxid of an acknowledged write.
    acknowledged: Zxid,
    /// Whether reads must show all of that.
    linearizable_reads: bool,
    /// The server whose state was spoilt: it has to notice by itself.
    pub spoilt: Option<usize>,
    /// Commands that were carried out.
    pub operations: u64,
    /// How often the feature level was raised.
    pub raises: u64,
    /// Watch events, refused handshakes and moved commands so far.
    pub seen: (u64, u64, u64),
}

impl Checks {
    /// `founders`: who belongs together at first.
    pub fn new(servers: usize, founders: Membership, linearizable_reads: bool) -> Self {
        Self {
            model: Model::new(),
            logs: (0..servers).map(|_| log::LogCheck::default()).collect(),
            cluster: cluster::ClusterCheck::default(),
            members: members::MemberCheck::new(&founders),
            levels: levels::LevelCheck::new(servers),
            state: state::StateCheck::new(),
            sessions: sessions::SessionCheck::new(servers),
            recipes: recipes::RecipeCheck::default(),
            applied: vec![0; servers],
            attached: BTreeMap::new(),
            conns: BTreeMap::new(),
            attachments: BTreeMap::new(),
            sessions_seen: BTreeSet::new(),
            shown: BTreeMap::new(),
            acknowledged: Zxid(0),
            linearizable_reads,
            spoilt: None,
            operations: 0,
            raises: 0,
            seen: (0, 0, 0),
        }
    }

    /// A client opened a connection and sent its handshake.
    pub fn opened(&mut self, conn: ConnId, server: usize, handshake: ConnectRequest) {
        let opened = replies::Conn::new(conn, server, handshake);
        self.conns.insert(conn, opened);
    }

    /// A client sent a request. `conn` is open as far as the client knows.
    pub fn sent(&mut self, conn: ConnId, sent: Sent) {
        let acknowledged = self.acknowledged;
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.sent(sent, acknowledged);
        }
    }

    /// The server read a frame of this connection, after its process had run for so long.
    pub fn received(&mut self, conn: ConnId, ran_ms: u64, now_ms: u64) -> Verdict {
        let Some(conn) = self.conns.get_mut(&conn) else {
            return Ok(());
        };
        let server = conn.server;
        let Some((session, generation)) = conn.attachment() else {
            let applied = self.applied[server];
            conn.came_at = self
                .cluster
                .committed(applied)
                .map_or(Zxid(0), |at| at.zxid);
            return Ok(());
        };
        let present = self.model.sessions.get(&session);
        if present.is_some_and(|now| now.generation == generation) {
            self.sessions.heard(server, session, ran_ms, now_ms);
        }
        self.sessions.taken(server, (session, generation), now_ms)
    }

    /// A message of raft's leaves a server, for another one.
    pub fn said(&self, server: usize, disk: u64, message: &Message) -> Verdict {
        self.logs[server].said(message)?;
        self.members.promised(server as u64 + 1, disk, message)
    }

    /// A server's engine wants this written. True: it has installed a snapshot.
    pub fn appended(
        &mut self,
        server: usize,
        number: u64,
        record: &Record,
    ) -> Result<bool, Violation> {
        let mark = record.mark.as_ref().filter(|mark| mark.index > 0);
        if let Some(mark) = mark {
            let before = self.cluster.prefix(mark.index);
            self.logs[server].installs(mark, before)?;
        }
        let log = &mut self.logs[server];
        log.appended(number, record)?;
        for entry in &record.entries {
            let before = (entry.index as usize).checked_sub(2);
            let before = before.map_or(0, |place| log.written()[place].term);
            self.cluster.wrote(server, before, entry)?;
        }
        Ok(mark.is_some())
    }

    /// A restart found a snapshot up to `base`, and these entries after it.
    pub fn recovered(
        &mut self,
        server: usize,
        base: u64,
        entries: &[LogEntry],
        state: HardState,
    ) -> Verdict {
        let before = self.cluster.prefix(base);
        self.logs[server].recovered(before, entries, state)
    }

    /// A server lost everything, and has an empty disk now.
    pub fn lost_disk(&mut self, server: usize, disk: u64) {
        self.logs[server] = self.logs[server].lost();
        self.applied[server] = 0;
        self.members.lost_disk(server as u64 + 1, disk);
    }

    /// A server turns out to lead. True: it does so since now.
    pub fn leads(&mut self, server: usize, term: u64, ran_ms: u64) -> Result<bool, Violation> {
        let news = self.cluster.leads(server, term, &self.logs[server])?;
        if news {
            self.sessions.leads(server, ran_ms);
        }
        Ok(news)
    }

    /// A server has applied entries: lets the model follow and compares. `ran_ms`: how long its
    /// process has run.
    pub fn applied(&mut self, server: usize, engine: &Engine, ran_ms: u64, deep: bool) -> Verdict {
        let shared = engine.shared();
        let state = shared.state.read();
        let now = state.machine.applied().index;
        let most = self.logs[server].applied();
        // After a restart the log may not say yet how far it was committed; until that is found
        // out again nobody may be served.
        if now < most && shared.is_serving() {
            let what = format!("6: applied went back from {most} to {now}");
            return broken(Group::Log, what);
        }
        self.logs[server].check_applied(now)?;
        let before = std::mem::replace(&mut self.applied[server], now);
        for index in before + 1..=now {
            if index > self.logs[server].installed() {
                self.levels.may_execute(server, index)?;
            }
            if index > self.model.index {
                let entry = self.logs[server].entry(index).cloned();
                self.commit(&entry.expect("it is durable"), engine.term())?;
            } else if index > self.logs[server].installed() {
                self.cluster
                    .applied_again(server, index, &self.logs[server])?;
            }
        }
        if self.model.ensemble.is_some() && now > 0 && state.machine.ensemble().is_some() {
            self.members.compare(server, now, &engine.membership())?;
        }
        if now > before {
            for session in self
                .attached
                .range(before + 1..=now)
                .flat_map(|(_, all)| all)
            {
                self.sessions.told(server, *session, ran_ms);
            }
        }
        if self.spoilt == Some(server) {
            return Ok(());
        }
        self.cluster.is_state(server, now, state.machine.digest())?;
        if now == self.model.index {
            self.state.compare(&self.model, &state.machine, deep)?;
        }
        Ok(())
    }

    /// A server starts as this build, with the state at this index.
    pub fn started(&mut self, server: usize, build: Build, applied: u64) -> Verdict {
        self.applied[server] = applied;
        self.levels.started(server, build, applied)
    }

    /// A leader wrote these commands of its own into the log.
    pub fn proposed(
        &mut self,
        server: usize,
        place: (u64, u64),
        commands: &[proto::log::Command],
        when: sessions::When,
        clock_ms: u64,
    ) -> Verdict {
        let members = self.members.at(self.applied[server]).all();
        self.levels.proposed(server, commands, &members, clock_ms)?;
        self.sessions
            .proposed(server, place, commands, when, &self.model)
    }

    /// A server says that it is too old for its state.
    pub fn outdated(&self, server: usize) -> Verdict {
        self.levels.outdated(server, self.applied[server])
    }

    /// Somebody was the first to apply this, in this term.
    fn commit(&mut self, entry: &LogEntry, term: u64) -> Verdict {
        let deciding = self.members.deciding();
        self.cluster
            .commit(entry.clone(), term, &self.logs, deciding)?;
        self.apply(entry)?;
        self.cluster.became(self.state.digest(), self.model.zxid);
        Ok(())
    }

    fn apply(&mut self, entry: &LogEntry) -> Verdict {
        // Raft's own account of a change of membership is not looked at.
        let data = match entry.kind {
            0 => &entry.data,
            _ => &entry.context,
        };
        let content = match proto::log::Entry::decode(data.as_ref()) {
            Ok(content) => content,
            Err(error) => {
                return broken(Group::Log, format!("entry {}: {error}", entry.index));
            }
        };
        self.state.replay(entry, &content);
        let before = self.model.zxid;
        self.ending(entry, &content);
        let ensemble = self.model.ensemble.as_ref().map(|(_, since)| *since);
        let all_done = self.model.apply(entry.index, entry.term, &content);
        self.operations += all_done.len() as u64;
        let now = self.model.ensemble.as_ref().map(|(_, since)| *since);
        self.raises += u64::from(self.levels.follow(entry.index, &content.internal));
        let Self { members, model, .. } = self;
        members.follow(entry, &content, model, now != ensemble)?;
        for done in all_done {
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
                    self.attached.entry(entry.index).or_default().push(*session);
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

    /// The leader ends sessions in this entry, which is about to be applied.
    fn ending(&mut self, entry: &LogEntry, content: &proto::log::Entry) {
        for command in content
            .internal
            .iter()
            .filter(|command| command.op == op::CLOSE_SESSION)
        {
            let attachment = (SessionId(command.session), command.generation);
            let session = self.model.sessions.get(&attachment.0);
            if let Some(session) = session.filter(|now| now.generation == attachment.1) {
                let place = (entry.index, entry.term);
                self.sessions.ended(place, attachment, session.timeout_ms);
            }
        }
    }

    /// A frame left the server for the client of this connection.
    pub fn frame(&mut self, conn: ConnId, frame: Bytes) -> Verdict {
        let conn = self
            .conns
            .get_mut(&conn)
            .expect("a connection that was opened");
        let applied = self.applied[conn.server];
        let view = replies::View {
            model: &self.model,
            durable: self.logs[conn.server].durable(),
            zxid: self
                .cluster
                .committed(applied)
                .map_or(Zxid(0), |at| at.zxid),
            linearizable_reads: self.linearizable_reads,
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

    /// The server closed this connection by itself. `lets_go`: it lets clients go, since it had not
    /// heard of a majority, or does not know what it has missed.
    pub fn closed_by_server(&mut self, conn: ConnId, lets_go: bool) -> Verdict {
        let conn = self
            .conns
            .get_mut(&conn)
            .expect("a connection that was opened");
        conn.closed(&self.model, lets_go)
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

//! The checkers: what must hold, whatever happens (architecture §2.6).
//!
//! One file per group of invariants. They see what a client sees (frames), what the disk sees
//! (appended and synced records) and, for state, the machine's own answers; the truth they compare
//! with is the [`Model`], fed with the committed log. A checker never influences the run.
//!
//! Of each invariant, which file looks at it, and which sabotages show that the look can fail:
//!
//! | invariant | file | sabotages |
//! |---|---|---|
//! | 1 one leader per term | [`cluster`] | `ForgetVote`, if [`log`] is not first |
//! | 2 same place, same entry | [`cluster`] | none of its own |
//! | 3 leaders have what is committed | [`cluster`] | none of its own |
//! | 4 committed is for good | [`cluster`], [`log`] | none of its own |
//! | 5 durable before applied | [`log`] | none of its own |
//! | 6 nothing goes back | [`log`], here | `ForgetVote` |
//! | 7 durable before said | [`log`], [`replies`] | `AckBeforeSync`, `SpeakBeforeWrite` |
//! | 8 recovery | [`log`] | `ForgetWrites`, `LoseLastEntry`, `CutRot` |
//! | 9 one state | [`cluster`], [`state`] | `FlipBitUntold`; of the server, `FlipBit` |
//! | 10 `apply` reads nothing else | [`state`], `tests/tidy.rs` | none |
//! | 11 zxids, multis | [`state`] | none of its own |
//! | 12 streams without gaps | an assertion of the machine | none |
//! | 13 ephemerals | [`state`] | none of its own |
//! | 14 children | [`state`] | none of its own |
//! | 15 images | [`state`], [`cluster`], [`members`] | `SnapshotOneShort`, `SentOneShort` |
//! | 16 time never goes back | none: it may, as the leader's clock does | none |
//! | 17 replies in order | [`replies`] | `SwapReplies` |
//! | 18 writes in order | [`replies`] | `NoOriginCheck` |
//! | 19 reads at their zxid | [`replies`] | `OverstateZxid`, `UnderstateZxid` |
//! | 20 events before replies | [`watches`] | `EventAfterReply`, `DropEvent` |
//! | 21 watches fire once | [`watches`] | `RepeatEvent`, `ForgetMissed`, `ForgetRearmed` |
//! | 22 done once, and not lost | [`replies`], [`recipes`] | `NoOriginCheck`; if lost, those of 8 |
//! | 23 reads after a sync | [`replies`] | `StaleReads`, `StaleSyncs` |
//! | 24 no end too early | [`sessions`] | `NoGrace`, `FastClock`, `DeafPause`, `ForgetHeard` |
//! | 24 none too late | [`sessions`] | `NeverEnd` |
//! | 24 no service behind it | [`sessions`] | `ForgedTouched` |
//! | 25 all works again | `world.rs` | `AdmitAnyDisk`, `LoseReceived`, `TellNothing` |
//!
//! What would break 2 to 5 is noticed as soon as something is said too early (7) or not found again
//! (8). 11, 13 and 14 are looked at znode by znode, but whatever differs has another digest first
//! (9). A machine that breaks 10 or 12 would have to be built.
//!
//! How late a session may end is looked at with each tick of a leader that nothing keeps from
//! ending it. By how much an outage puts that off is looked at once, at the end.

pub mod cluster;
pub mod levels;
pub mod local;
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
use zkraft::machine::Machine;
use zkraft::proto;
use zkraft::proto::log::{HardState, LogEntry, Membership, Record};
use zkraft::wire::{ConnectRequest, Id, SessionId, Zxid, op};

use crate::client::Sent;
use crate::model::{self, Model, Outcome};
use crate::world::TICK_MS;
use levels::Build;
use local::{Going, Place};

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
    /// Sessions that only one server knows.
    Local,
    /// Servers without a majority let clients read.
    ReadOnly,
    /// What recipes rely on: locks, queues, counters, sums.
    Recipes,
    /// 25: after the last fault everything works again.
    Liveness,
    /// Not a violation: the run is over, since a change of the membership that was on its way when
    /// a disk was lost has left no majority (README, limits).
    BeyondRepair,
    /// A server noticed by itself that its state is not that of the others.
    Alarm,
    /// An assertion of the server itself.
    Panic,
}

pub type Verdict = Result<(), Violation>;

/// After this time, in ms, a server that hears nobody has noticed that it has no leader; one that
/// leads itself looks for its followers once in an election timeout.
const DESERTED_MS: u64 = 1_100 + 4 * TICK_MS;
/// From this feature level on all servers know of sessions that only one of them keeps.
const LOCAL_SESSIONS: u32 = 2;

/// A failed check as a value.
pub fn broken<T>(group: Group, what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation {
        group,
        what: what.into(),
    })
}

/// What an entry holds. Raft's own account of a change of membership is not looked at.
pub fn content(entry: &LogEntry) -> &[u8] {
    match entry.kind {
        0 => &entry.data,
        _ => &entry.context,
    }
}

/// How the servers are configured.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Reads must show all that was acknowledged before.
    pub linearizable_reads: bool,
    /// New sessions are their server's own; and they are everyone's with the first ephemeral.
    pub local_sessions: bool,
    pub upgrades: bool,
    /// The shortest and the longest timeout of a session, and what it is rounded up to, in ms.
    pub timeouts_ms: (i32, i32),
    pub bucket_ms: u64,
    /// How long a server hears no leader, in ms, before it serves those who only want to read.
    pub read_only_after_ms: Option<u64>,
}

/// When and where a frame came.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Place,
    /// Time that the process ran, and the true time, in ms.
    pub ran_ms: u64,
    pub now_ms: u64,
    /// How long the server has served nobody.
    pub lonely_ms: u64,
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
    pub local: local::LocalCheck,
    pub recipes: recipes::RecipeCheck,
    /// What each server has applied, and since when it knows that all know of local sessions, in ms
    /// of the time that it ran.
    applied: Vec<u64>,
    knows_local_since: Vec<Option<u64>>,
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
    rules: Rules,
    /// The server whose state was spoilt: it has to notice by itself.
    pub spoilt: Option<usize>,
    /// Commands that were carried out.
    pub operations: u64,
    /// How often the feature level was raised.
    pub raises: u64,
    /// Writes of sessions that only one server knows.
    pub local_writes: u64,
    /// Sessions of servers that only let read, and requests that those refused.
    pub read_only: (u64, u64),
    /// Watch events, refused handshakes and moved commands so far.
    pub seen: (u64, u64, u64),
}

impl Checks {
    /// `founders`: who belongs together at first.
    pub fn new(servers: usize, founders: Membership, rules: Rules) -> Self {
        Self {
            model: Model::new(),
            logs: (0..servers).map(|_| log::LogCheck::default()).collect(),
            cluster: cluster::ClusterCheck::default(),
            members: members::MemberCheck::new(&founders),
            levels: levels::LevelCheck::new(servers),
            state: state::StateCheck::new(),
            sessions: sessions::SessionCheck::new(servers),
            local: local::LocalCheck::default(),
            recipes: recipes::RecipeCheck::default(),
            applied: vec![0; servers],
            knows_local_since: vec![None; servers],
            attached: BTreeMap::new(),
            conns: BTreeMap::new(),
            attachments: BTreeMap::new(),
            sessions_seen: BTreeSet::new(),
            shown: BTreeMap::new(),
            acknowledged: Zxid(0),
            rules,
            spoilt: None,
            operations: 0,
            raises: 0,
            local_writes: 0,
            read_only: (0, 0),
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
        let (acknowledged, upgrades) = (self.acknowledged, self.rules.upgrades);
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.sent(sent, acknowledged, upgrades);
        }
    }

    /// The server read a frame of this connection, after its process had run for so long.
    pub fn received(&mut self, conn: ConnId, frame: &Bytes, arrival: Arrival) -> Verdict {
        let Arrival {
            at, ran_ms, now_ms, ..
        } = arrival;
        let knows_local = self.knows_local(at.server, ran_ms);
        let Some(conn) = self.conns.get_mut(&conn) else {
            return Ok(());
        };
        let server = conn.server;
        if conn.is_waiting() {
            let applied = self.applied[server];
            conn.came_at = self
                .cluster
                .committed(applied)
                .map_or(Zxid(0), |at| at.zxid);
            conn.came = Some(arrival);
            let asked = &conn.handshake;
            conn.must_be_local = match asked.session.0 {
                _ if !self.rules.local_sessions || !knows_local => false,
                0 => true,
                _ => {
                    let local = &self.local;
                    local.must_have(asked.session, at, &asked.password, ran_ms)
                }
            };
            let (session, bucket_ms) = (asked.session, self.rules.bucket_ms);
            self.local
                .comes(session, at, &asked.password, ran_ms, bucket_ms);
        }
        if let Some(session) = conn.local() {
            self.local.heard(session, ran_ms);
            if conn.ends_local(frame, self.rules.upgrades) {
                self.local.ends(session);
            }
        }
        let Some((session, generation)) = conn.attachment() else {
            return Ok(());
        };
        let present = self.model.sessions.get(&session);
        if present.is_some_and(|now| now.generation == generation) {
            // The others do not hear any more of who was removed.
            let is_member = self.members.present().all().contains(&(server as u64 + 1));
            self.sessions
                .heard((server, is_member), session, ran_ms, now_ms);
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
        // A leader executes what is committed before it proposes anything of its own.
        self.levels.decided(server, self.members.at(now))?;
        if self.model.ensemble.is_some() && now > 0 && state.machine.ensemble().is_some() {
            self.members.compare(server, now, &engine.membership())?;
        }
        let level = self.levels.at(now + 1);
        if level >= LOCAL_SESSIONS {
            self.knows_local_since[server].get_or_insert(ran_ms);
        }
        if now > before {
            for session in self
                .attached
                .range(before + 1..=now)
                .flat_map(|(_, all)| all)
            {
                self.sessions.told(server, *session, ran_ms, ran_ms);
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

    /// Whether a server has known for some time that all servers know of local sessions: it looks
    /// with each tick.
    fn knows_local(&self, server: usize, ran_ms: u64) -> bool {
        let late_ms = 2 * TICK_MS + self.rules.bucket_ms;
        let since_ms = self.knows_local_since[server];
        since_ms.is_some_and(|since_ms| ran_ms > since_ms + late_ms)
    }

    /// A server starts as this build, with the state at this index.
    pub fn started(&mut self, server: usize, build: Build, applied: u64) -> Verdict {
        self.applied[server] = applied;
        self.knows_local_since[server] = None;
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
        self.levels.proposed(server, commands, clock_ms);
        self.sessions
            .proposed(server, place, commands, when, &self.model)
    }

    /// The session that a connection is for, or asks for.
    pub fn session_of(&self, conn: ConnId) -> Option<SessionId> {
        let conn = self.conns.get(&conn)?;
        let attached = conn.attachment().map(|(session, _)| session);
        Some(attached.unwrap_or(conn.handshake.session))
    }

    /// A tick of a server that may lead, with this state.
    pub fn tends(&mut self, tended: sessions::Tended, machine: &Machine) -> Verdict {
        let bucket_ms = self.rules.bucket_ms;
        self.sessions.tends(tended, machine, bucket_ms)
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
        let content = match proto::log::Entry::decode(content(entry)) {
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
                    timeout_ms,
                    password,
                } => {
                    let Some(conn) = conn_of(&done.identities) else {
                        return broken(Group::Replies, "an attachment without an address");
                    };
                    let is_upgrade = self.conns.get(&conn).is_some_and(|c| c.local.is_some());
                    if is_upgrade {
                        self.local.upgraded(*session, password, *timeout_ms)?;
                    } else if done.opcode == op::CREATE_SESSION
                        && !self.sessions_seen.insert(*session)
                    {
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
                    let conn = match done.generation {
                        model::own::LOCAL => conn_of(&done.identities),
                        _ => self.attachments.get(&attachment).copied(),
                    };
                    let Some(conn) = conn.and_then(|conn| self.conns.get_mut(&conn)) else {
                        let what = format!("{done:?} came through no connection");
                        return broken(Group::Replies, what);
                    };
                    self.seen.2 += u64::from(done.outcome == Outcome::Moved);
                    self.local_writes += u64::from(done.generation == model::own::LOCAL);
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

    /// A frame left the server for the client of this connection, after its process had run for so
    /// long.
    pub fn frame(&mut self, conn: ConnId, frame: Bytes, ran_ms: u64) -> Verdict {
        let conn_id = conn;
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
            linearizable_reads: self.rules.linearizable_reads,
            local_sessions: self.rules.local_sessions,
            timeouts_ms: self.rules.timeouts_ms,
            read_only_after_ms: self.rules.read_only_after_ms,
        };
        // Who waits for an answer may be silent until it comes.
        if let Some(session) = conn.local().filter(|_| conn.owes()) {
            self.local.answered(session, conn_id, ran_ms);
        }
        let shown = conn.frame(frame, &view)?;
        let is_given = shown.attached;
        self.read_only.0 += u64::from(is_given && conn.is_read_only);
        self.read_only.1 += u64::from(shown.not_read_only);
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
        match is_given {
            true => self.given(conn_id),
            false => Ok(()),
        }
    }

    /// A client was told of its session: of one that no log knows?
    fn given(&mut self, conn: ConnId) -> Verdict {
        let known = self.conns.get(&conn).expect("it is there");
        let (Some((session, password, timeout_ms)), Some(arrival)) =
            (known.local.clone(), known.came)
        else {
            return Ok(());
        };
        let (at, came_ms) = (arrival.at, arrival.ran_ms);
        if known.handshake.session.0 == 0 {
            if !self.sessions_seen.insert(session) {
                return broken(Group::Local, format!("session id {session} came twice"));
            }
            let given = (password, timeout_ms);
            return self.local.opened(session, at, given, conn, came_ms);
        }
        // The one that it had may be there still, as far as the server can tell.
        if let Some(holder) = self.local.holder(session)
            && self.conns.get(&holder).is_some_and(replies::Conn::owes)
        {
            self.local.owes(session, holder);
        }
        let (given, bucket_ms) = ((&password, timeout_ms), self.rules.bucket_ms);
        self.local
            .returned(session, at, given, conn, came_ms, bucket_ms)
    }

    /// The server closed this connection by itself. `lets_go`: it lets clients go, since it had not
    /// heard of a majority, was removed, or does not know what it has missed.
    /// `served_ms`: when it last did not let read only, by the true time.
    pub fn closed_by_server(
        &mut self,
        conn: ConnId,
        lets_go: bool,
        ran_ms: u64,
        served_ms: u64,
    ) -> Verdict {
        let known = self.conns.get(&conn);
        let known = known.expect("a connection that was opened");
        let is_over = known.local().is_some_and(|session| {
            // Whose answer may be on its way.
            let comes_again = self.conns.iter().any(|(id, other)| {
                let is_same = *id != conn
                    && (other.server, other.handshake.session) == (known.server, session);
                let came_ms = |conn: &replies::Conn| conn.came.map(|came| came.now_ms);
                is_same && other.came.is_some() && came_ms(other) >= came_ms(known)
            });
            let is_left =
                known.is_read_only && known.came.is_some_and(|came| served_ms >= came.now_ms);
            is_left || comes_again || self.local.may_be_over(session, conn, ran_ms)
        });
        let conn = self.conns.get_mut(&conn).expect("it is there");
        conn.closed(&self.model, lets_go, is_over)
    }

    /// Whether its server only lets it read.
    pub fn is_read_only(&self, conn: ConnId) -> bool {
        let conn = self.conns.get(&conn);
        conn.is_some_and(|conn| conn.is_read_only && conn.session().is_some())
    }

    /// A server does not let this client in. `alone_ms`: for how long it has served nobody, heard
    /// nobody, and was there to find out.
    pub fn turned_away(&self, conn: ConnId, alone_ms: u64) -> Verdict {
        let (Some(conn), Some(after_ms)) = (self.conns.get(&conn), self.rules.read_only_after_ms)
        else {
            return Ok(());
        };
        let asked = &conn.handshake;
        let is_reader = asked.read_only == Some(true) && asked.session.0 == 0;
        let has_something = self.applied[conn.server] > 0;
        let is_new = asked.last_zxid_seen > conn.came_at;
        if conn.is_waiting()
            && is_reader
            && has_something
            && !is_new
            && alone_ms > after_ms + DESERTED_MS
        {
            let what = format!("§9.5: {asked:?} is turned away after {alone_ms} ms");
            return broken(Group::ReadOnly, what);
        }
        Ok(())
    }

    /// If only its server knows the session of this connection: what becomes of it.
    pub fn local_going(&self, conn: ConnId) -> Option<Going> {
        let conn = self.conns.get(&conn);
        let conn = conn.filter(|conn| conn.local().is_some())?;
        Some(match conn.is_upgraded {
            true => Going::Goes,
            false => Going::Stays,
        })
    }

    /// Whether the session of this connection has ended or has another connection.
    pub fn is_superseded(&self, conn: ConnId) -> bool {
        let Some(known) = self.conns.get(&conn) else {
            return false;
        };
        if let Some(session) = known.local() {
            return self.local.is_elsewhere(session, conn);
        }
        let attachment = known.attachment();
        attachment.is_some_and(|(session, generation)| {
            let now = self.model.sessions.get(&session);
            now.is_none_or(|now| now.generation != generation)
        })
    }

    /// The connection is over: nothing more can be seen on it.
    pub fn gone(&mut self, conn: ConnId) {
        let Some(known) = self.conns.get_mut(&conn) else {
            return;
        };
        if let Some(session) = known.local().filter(|_| known.owes()) {
            self.local.owes(session, conn);
        }
        known.gone();
    }
}

/// The connection whose address is among these identities.
fn conn_of(identities: &[Id]) -> Option<ConnId> {
    let address = identities.iter().find(|id| id.scheme == "ip")?;
    let address: std::net::Ipv4Addr = address.id.parse().ok()?;
    Some(ConnId(u32::from(address) & 0xff_ffff))
}

//! Replies (architecture §2.6, 17–19, 22, 23; protocol facts §2.5, §9.1).
//!
//! Every reply says at which zxid it was made, so nothing has to be searched: the reply must be
//! what the model answers there. Writes are found in the log instead: the commands of an attachment
//! are the writes sent on its connection, in that order, from the first on, each at most once.
//! What was acknowledged is therefore in the log, and the log is durable up to there.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use zkraft::wire::{Answer, ConnectRequest, ErrorCode, Id, Request, SessionId, Zxid, op};

use super::watches::{Reader, Watcher};
use super::{Arrival, ConnId, Group, Verdict, Violation, broken};
use crate::client::{Sent, WRITES};
use crate::mix::{SUPER, digest_id};
use crate::model::{Done, Model, Outcome, own};
use crate::reply::{self, Frame};

/// What the checkers of replies see of the rest.
pub struct View<'a> {
    pub model: &'a Model,
    /// The last log index that is on the server's disk for sure.
    pub durable: u64,
    /// What the server has applied.
    pub zxid: Zxid,
    /// Whether a read must show all that was acknowledged before it was sent.
    pub linearizable_reads: bool,
    /// Whether the server may have sessions that no log knows.
    pub local_sessions: bool,
    /// The shortest and the longest timeout of a session, in ms.
    pub timeouts_ms: (i32, i32),
    pub read_only_after_ms: Option<u64>,
}

/// What a frame has shown to the client.
#[derive(Debug, Default)]
pub struct Shown {
    pub zxid: Option<Zxid>,
    /// It acknowledged a write with this zxid.
    pub acknowledged: Option<Zxid>,
    /// It told the client that it is attached to its session.
    pub attached: bool,
    pub event: bool,
    /// A request was refused, since the server only lets read.
    pub not_read_only: bool,
}

/// What is known of one connection.
#[derive(Debug)]
pub struct Conn {
    id: ConnId,
    /// The server that it goes to.
    pub server: usize,
    /// What that server had applied when it read the handshake.
    pub came_at: Zxid,
    /// When and where that was.
    pub came: Option<Arrival>,
    /// It must have made a session of its own then, if a new one was asked for; or must have found
    /// the one that was.
    pub must_be_local: bool,
    pub handshake: ConnectRequest,
    phase: Phase,
    /// The log index at which its attachment was refused.
    pub refused_at: Option<u64>,
    /// Session and generation, and the command that made it, once committed.
    attachment: Option<((SessionId, u64), Done)>,
    /// Session, password and timeout, if the server keeps it to itself.
    pub local: Option<(SessionId, Bytes, i32)>,
    /// The server has no majority, and only lets read.
    pub is_read_only: bool,
    /// What was sent makes such a session one of the log's.
    pub is_upgraded: bool,
    /// Requests without a reply, and the identities that they may add, which the server may or may
    /// not know already.
    unanswered: VecDeque<Expected>,
    pending: Vec<Id>,
    /// Writes sent so far, each with the identities that were claimed before it and whether its
    /// session is one of the log's, and those of them that are in the log.
    writes: Vec<(Arc<Sent>, Vec<Id>, bool)>,
    committed: Vec<Done>,
    /// Who it is known to be, and since which state of its server at the latest.
    identities: Vec<(Id, Zxid)>,
    watcher: Watcher,
    /// No reply may show less than this.
    pub floor: Zxid,
    /// A reply was sent after which the server closes.
    last_word: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// No handshake was answered.
    Waiting,
    Open,
    Refused,
    Gone,
}

#[derive(Debug)]
struct Expected {
    sent: Arc<Sent>,
    /// The place among the connection's writes.
    write: Option<usize>,
    /// The highest zxid acknowledged to anyone when it was sent.
    acknowledged: Zxid,
    /// What an authentication will add, if it succeeds.
    adds: Vec<Id>,
}

impl Conn {
    pub fn new(id: ConnId, server: usize, handshake: ConnectRequest) -> Self {
        Self {
            id,
            server,
            came_at: Zxid(0),
            came: None,
            must_be_local: false,
            handshake,
            phase: Phase::Waiting,
            refused_at: None,
            attachment: None,
            local: None,
            is_read_only: false,
            is_upgraded: false,
            unanswered: VecDeque::new(),
            pending: Vec::new(),
            writes: Vec::new(),
            committed: Vec::new(),
            identities: vec![(Id::new("ip", &id.address().to_string()), Zxid(0))],
            watcher: Watcher::default(),
            floor: Zxid(0),
            last_word: false,
        }
    }

    /// Session and generation, once the client was told.
    pub fn session(&self) -> Option<(SessionId, u64)> {
        let local = self.local.as_ref().map(|(id, ..)| (*id, own::LOCAL));
        self.attachment()
            .or(local)
            .filter(|_| self.phase == Phase::Open)
    }

    /// Whether no handshake was answered yet.
    pub fn is_waiting(&self) -> bool {
        self.phase == Phase::Waiting
    }

    /// The session, while no log knows it.
    pub fn local(&self) -> Option<SessionId> {
        let local = self.local.as_ref().filter(|_| self.attachment.is_none());
        local.map(|(id, ..)| *id)
    }

    /// Session and generation, once they are in the log.
    pub fn attachment(&self) -> Option<(SessionId, u64)> {
        self.attachment.as_ref().map(|(attachment, _)| *attachment)
    }

    /// `upgrades`: whether ephemerals make sessions known to all.
    pub fn sent(&mut self, sent: Sent, acknowledged: Zxid, upgrades: bool) {
        let sent = Arc::new(sent);
        self.is_upgraded |= upgrades && !self.is_read_only && sent.asks_for_ephemeral();
        let is_global = self.local.is_none() || self.is_upgraded;
        let is_own_end = sent.opcode == op::CLOSE_SESSION && !is_global;
        let write = (sent.is_write() && !is_own_end && !self.is_read_only).then(|| {
            let mut ids = self.identities();
            for id in &self.pending {
                if !ids.contains(id) {
                    ids.push(id.clone());
                }
            }
            self.writes.push((sent.clone(), ids, is_global));
            self.writes.len() - 1
        });
        let adds: Vec<Id> = match &sent.request {
            Some(Request::Auth { scheme, auth }) if &**scheme == "digest" => {
                let id = digest_id(&String::from_utf8_lossy(auth));
                // §7.7
                let is_super = auth == SUPER.as_bytes();
                let ids = is_super.then(|| Id::new("super", "")).into_iter();
                ids.chain([Id::new("digest", &id)]).collect()
            }
            _ => Vec::new(),
        };
        self.pending.extend_from_slice(&adds);
        self.unanswered.push_back(Expected {
            sent,
            write,
            acknowledged,
            adds,
        });
    }

    /// The command that attaches this connection is in the log.
    pub fn attached(&mut self, attachment: (SessionId, u64), done: Done) -> Verdict {
        let asked = self.handshake.session;
        if asked.0 != 0 && asked != attachment.0 {
            let what = format!("{:?} asked for {asked} and got {}", self.id, attachment.0);
            return broken(Group::Sessions, what);
        }
        if self.attachment.is_some() {
            return broken(
                Group::Replies,
                format!("22: {:?} was attached twice", self.id),
            );
        }
        if let Some((id, password, timeout_ms)) = &self.local {
            let Outcome::Attached {
                timeout_ms: in_log,
                password: known,
                ..
            } = &done.outcome
            else {
                unreachable!("an attachment is one")
            };
            if !self.is_upgraded || (*id, password, timeout_ms) != (attachment.0, known, in_log) {
                let what = format!("§8.7: {:?} had {id}: {done:?} is in the log", self.id);
                return broken(Group::Local, what);
            }
        } else if self.must_be_local {
            let what = format!(
                "§8.7: {:?} asks for a session: {done:?} is in the log",
                self.id
            );
            return broken(Group::Local, what);
        }
        self.attachment = Some((attachment, done));
        Ok(())
    }

    /// A command of this attachment is in the log: it must be the next write that was sent.
    pub fn committed(&mut self, done: Done) -> Verdict {
        let place = self.committed.len();
        let Some((sent, ids, is_global)) = self.writes.get(place) else {
            return self.violation(format!("22: {done:?} is in the log and was never sent"));
        };
        if (sent.opcode, &sent.body) != (done.opcode, &done.body) {
            return self.violation(format!(
                "18/22: {done:?} is in the log in place of {sent:?}"
            ));
        }
        if *is_global == (done.generation == own::LOCAL) {
            let what = format!("§8.7: {done:?} is in the log, for all to know: {is_global}");
            return broken(Group::Local, format!("{:?}: {what}", self.id));
        }
        if done.generation == own::LOCAL
            && done.outcome == Outcome::Reply(Err(ErrorCode::SessionExpired))
        {
            let what = format!("{:?}: {done:?} came before all knew of it", self.id);
            return broken(Group::Local, what);
        }
        // §7.6: an authentication counts for what is sent after it.
        let done_by_someone = !matches!(
            done.outcome,
            Outcome::Moved | Outcome::Reply(Err(ErrorCode::SessionExpired))
        );
        if done_by_someone && *ids != done.identities {
            return self.violation(format!("§7.2: {done:?} should be done as {ids:?}"));
        }
        self.committed.push(done);
        Ok(())
    }

    pub fn frame(&mut self, frame: Bytes, view: &View<'_>) -> Result<Shown, Violation> {
        match self.phase {
            Phase::Waiting => self.handshake_answered(frame, view),
            Phase::Open => match reply::frame(frame) {
                Err(error) => self.violation(format!("a frame that is none: {error}")),
                Ok(Frame::Event(event)) => {
                    if self.last_word {
                        return self.violation(format!("{event:?} after the last reply"));
                    }
                    self.durable(event.zxid, view)?;
                    let reader = Reader {
                        known: &self.identities,
                        claimed: &self.pending,
                    };
                    self.watcher.event(event, view.model, &reader)?;
                    Ok(Shown {
                        event: true,
                        ..Shown::default()
                    })
                }
                Ok(Frame::Reply {
                    xid,
                    zxid,
                    error,
                    body,
                }) => self.reply(xid, zxid, error, body, view),
            },
            Phase::Refused | Phase::Gone => self.violation("a frame on a closed connection"),
        }
    }

    /// The server closed the connection: there must be a reason (§2, §8.5).
    /// `lets_go`: the server lets clients go.
    /// `is_over`: a session of the server's own may be over, or be elsewhere.
    pub fn closed(&mut self, model: &Model, lets_go: bool, is_over: bool) -> Verdict {
        let ahead = self.handshake.last_zxid_seen > self.came_at;
        let moved = self
            .attachment
            .as_ref()
            .is_some_and(|((session, generation), _)| {
                model
                    .sessions
                    .get(session)
                    .is_none_or(|now| now.generation != *generation)
            });
        let cause = match self.phase {
            Phase::Waiting => ahead || moved || lets_go,
            Phase::Open => self.last_word || moved || lets_go || is_over,
            Phase::Refused | Phase::Gone => true,
        };
        if !cause {
            return self.violation("closed by the server without a cause");
        }
        Ok(())
    }

    /// Whether a frame that the server takes makes its own session one of the log's, or ends it.
    pub fn ends_local(&self, frame: &Bytes, upgrades: bool) -> bool {
        let field = |at: usize| frame.get(at..).and_then(|rest| rest.first_chunk());
        let (Some(xid), Some(opcode)) = (field(0), field(4)) else {
            return false;
        };
        let (xid, opcode) = (i32::from_be_bytes(*xid), i32::from_be_bytes(*opcode));
        let sent = self.unanswered.iter().find(|expected| {
            let sent = &expected.sent;
            (sent.xid, sent.opcode, &sent.body[..]) == (xid, opcode, &frame[8..])
        });
        sent.is_some_and(|expected| {
            let sent = &expected.sent;
            let is_end = sent.opcode == op::CLOSE_SESSION && sent.request.is_some();
            is_end || (upgrades && !self.is_read_only && sent.asks_for_ephemeral())
        })
    }

    /// Whether requests are not answered.
    pub fn owes(&self) -> bool {
        !self.unanswered.is_empty()
    }

    pub fn gone(&mut self) {
        self.phase = Phase::Gone;
        self.unanswered.clear();
        self.pending.clear();
    }

    fn handshake_answered(&mut self, frame: Bytes, view: &View<'_>) -> Result<Shown, Violation> {
        let answer = match reply::connected(frame) {
            Ok(answer) => answer,
            Err(error) => return self.violation(format!("a handshake's answer: {error}")),
        };
        let is_read_only = answer.read_only == Some(true);
        if is_read_only {
            let lonely_ms = self.came.map_or(0, |came| came.lonely_ms);
            let is_deserted = view
                .read_only_after_ms
                .is_some_and(|after_ms| lonely_ms >= after_ms);
            let has_seen_more = self.handshake.last_zxid_seen > view.zxid;
            if self.handshake.read_only != Some(true) || !is_deserted || has_seen_more {
                let what = format!("{:?}, after {lonely_ms} ms: {answer:?}", self.handshake);
                return broken(Group::ReadOnly, format!("§9.5: {:?}: {what}", self.id));
            }
        } else if answer.read_only != self.handshake.read_only.map(|_| false) {
            return self.violation("§2.1: the readOnly byte comes if and only if it was sent");
        }
        let asked = &self.handshake;
        if asked.last_zxid_seen > view.zxid {
            return self.violation("s4: a handshake that has seen the future was answered");
        }
        if answer.timeout_ms == 0 {
            self.phase = Phase::Refused;
            self.last_word = true;
            let known = view.model.sessions.get(&asked.session);
            let right = known.is_some_and(|session| session.password == asked.password);
            if asked.session.0 != 0 && self.must_be_local {
                let what = format!("§8.7: {:?} is refused, but its session is here", self.id);
                return broken(Group::Local, what);
            }
            if asked.session.0 == 0 || (right && self.refused_at.is_none()) {
                return self.violation("§2.2: refused, but the session is alive");
            }
            if answer.session.0 != 0 || answer.password.iter().any(|byte| *byte != 0) {
                return self.violation("s5: a refusal has no session and no password");
            }
            return Ok(Shown::default());
        }
        let Some(((session, _), done)) = &self.attachment else {
            let least_ms = view.timeouts_ms.0;
            let timeout_ms = asked.timeout_ms.clamp(least_ms, view.timeouts_ms.1);
            let is_asked = asked.session.0 == 0 || asked.session == answer.session;
            let may_be = view.local_sessions || is_read_only;
            if !may_be || answer.timeout_ms != timeout_ms || !is_asked {
                let what = format!("accepted as {answer:?}, but its attachment is not in the log");
                return self.violation(what);
            }
            self.is_read_only = is_read_only;
            self.local = Some((answer.session, answer.password, timeout_ms));
            self.watcher.begin(view.model, self.came_at);
            self.phase = Phase::Open;
            return Ok(Shown {
                attached: true,
                ..Shown::default()
            });
        };
        if done.index > view.durable {
            return self.violation("7: accepted before its attachment was durable");
        }
        let Outcome::Attached {
            timeout_ms,
            password,
            ..
        } = &done.outcome
        else {
            return self.violation(format!("accepted with the outcome {:?}", done.outcome));
        };
        if (answer.session, answer.timeout_ms, &answer.password)
            != (*session, *timeout_ms, password)
        {
            return self.violation(format!("accepted as {answer:?}, but the log says {done:?}"));
        }
        self.watcher.begin(view.model, done.zxid);
        self.phase = Phase::Open;
        Ok(Shown {
            attached: true,
            ..Shown::default()
        })
    }

    fn reply(
        &mut self,
        xid: i32,
        zxid: Zxid,
        error: i32,
        body: Bytes,
        view: &View<'_>,
    ) -> Result<Shown, Violation> {
        let Some(expected) = self.unanswered.pop_front() else {
            return self.violation(format!("a reply with xid {xid} to no request"));
        };
        self.pending.drain(..expected.adds.len());
        let sent = expected.sent.clone();
        // Written only where it is wanted.
        let context = format_args!("the reply to {sent:?} (zxid {zxid}, error {error})");
        if self.last_word {
            return self.violation(format!("{context}: after the last reply"));
        }
        // §2.5: the request's own xid; pings are always answered with -2.
        if xid
            != if sent.opcode == op::PING {
                -2
            } else {
                sent.xid
            }
        {
            return self.violation(format!("17: {context}: its xid is {xid}"));
        }
        if self.is_read_only && needs_majority(sent.opcode) {
            self.at_a_state(zxid, &expected, view, context)?;
            if (error, body.len()) != (ErrorCode::NotReadOnly.number(), 0) {
                let what = format!(
                    "§9.5: {:?}: {context} of a server without a majority",
                    self.id
                );
                return broken(Group::ReadOnly, what);
            }
            return Ok(Shown {
                zxid: Some(zxid),
                not_read_only: true,
                ..Shown::default()
            });
        }
        let Some(request) = &sent.request else {
            // s17: it could not be decoded.
            self.at_a_state(zxid, &expected, view, context)?;
            if error != ErrorCode::MarshallingError as i32 {
                return self.violation(format!("s17: {context}"));
            }
            return Ok(Shown {
                zxid: Some(zxid),
                ..Shown::default()
            });
        };
        if let Request::Unknown(_) = request {
            self.last_word = true;
            if (zxid.0, error, body.len()) != (-1, ErrorCode::Unimplemented as i32, 0) {
                return self.violation(format!("s14: {context}"));
            }
            return Ok(Shown::default());
        }
        let result = match reply::result(request, error, body) {
            Ok(result) => result,
            Err(error) => return self.violation(format!("{context}: {error}")),
        };
        match request {
            Request::Auth { scheme, .. } => {
                let good = matches!(&**scheme, "digest" | "ip");
                let wanted = if good {
                    Ok(Answer::Empty)
                } else {
                    Err(ErrorCode::AuthFailed)
                };
                self.last_word = !good;
                if (zxid.0, &result) != (0, &wanted) {
                    return self.violation(format!("§7.6: {context}: {result:?}"));
                }
                for id in expected.adds {
                    if !self.identities.iter().any(|(known, _)| *known == id) {
                        self.identities.push((id, view.zxid));
                    }
                }
                return Ok(Shown::default());
            }
            Request::Sasl { .. } => {
                if (zxid.0, &result) != (0, &Ok(Answer::Token(None))) {
                    return self.violation(format!("s80: {context}: {result:?}"));
                }
                return Ok(Shown::default());
            }
            _ => {}
        }
        self.at_a_state(zxid, &expected, view, context)?;
        let mut shown = Shown {
            zxid: Some(zxid),
            ..Shown::default()
        };
        if let Some(place) = expected.write {
            self.write_answered(place, zxid, &result, view, context)?;
            shown.acknowledged = Some(zxid);
            self.last_word = sent.opcode == op::CLOSE_SESSION && result.is_ok();
        } else {
            self.read_answered(request, zxid, &result, view, context)?;
        }
        Ok(shown)
    }

    /// The zxid of a reply names a state that exists, is durable and does not go back; all events
    /// up to it were delivered.
    fn at_a_state(
        &mut self,
        zxid: Zxid,
        expected: &Expected,
        view: &View<'_>,
        context: fmt::Arguments<'_>,
    ) -> Verdict {
        self.durable(zxid, view)?;
        if zxid < self.floor {
            return self.violation(format!("19: {context}: {} was shown before", self.floor));
        }
        self.floor = zxid;
        let is_fresh = match &expected.sent.request {
            _ if self.is_read_only => false,
            Some(Request::Sync { .. }) => true,
            Some(request) => view.linearizable_reads && is_of_state(request),
            None => false,
        };
        if is_fresh && zxid < expected.acknowledged {
            let before = expected.acknowledged;
            return self.violation(format!("23: {context}: {before} was acknowledged before"));
        }
        // 18: the write behind it is not in the state yet.
        let next = self.unanswered.iter().find_map(|later| later.write);
        let next = next.filter(|_| expected.write.is_none());
        if let Some(done) = next.and_then(|place| self.committed.get(place))
            && done.stepped
            && zxid >= done.zxid
        {
            return self.violation(format!("18: {context}: it shows a later write, {done:?}"));
        }
        let reader = Reader {
            known: &self.identities,
            claimed: &self.pending,
        };
        let rearming = matches!(expected.sent.request, Some(Request::SetWatches(_)));
        self.watcher
            .reply(zxid, view.model, &reader, rearming, context)
    }

    fn durable(&self, zxid: Zxid, view: &View<'_>) -> Verdict {
        if zxid.0 < 0 {
            return Ok(());
        }
        match view.model.index_of(zxid) {
            None => self.violation(format!("19: no state ever had zxid {zxid}")),
            Some(index) if index > view.durable => {
                let durable = view.durable;
                let what = format!("7: {zxid} is index {index}, durable is {durable}");
                broken(Group::Log, format!("{:?}: {what}", self.id))
            }
            Some(_) => Ok(()),
        }
    }

    fn write_answered(
        &mut self,
        place: usize,
        zxid: Zxid,
        result: &Result<Answer, ErrorCode>,
        view: &View<'_>,
        context: fmt::Arguments<'_>,
    ) -> Verdict {
        let Some(done) = self.committed.get(place) else {
            return self.violation(format!("22: {context}: acknowledged, but not in the log"));
        };
        if done.index > view.durable {
            return self.violation(format!("7: {context}: acknowledged before it was durable"));
        }
        if done.outcome != Outcome::Reply(result.clone()) || done.zxid != zxid {
            let wanted = (&done.outcome, done.zxid);
            return self.violation(format!("19: {context}: {result:?}; expected {wanted:?}"));
        }
        Ok(())
    }

    fn read_answered(
        &mut self,
        request: &Request,
        zxid: Zxid,
        result: &Result<Answer, ErrorCode>,
        view: &View<'_>,
        context: fmt::Arguments<'_>,
    ) -> Verdict {
        let wanted: Result<Answer, ErrorCode> = match request {
            Request::Ping => Ok(Answer::Empty),
            // Of a session that only this server knows: others are told by the log.
            Request::CloseSession => {
                self.last_word = true;
                Ok(Answer::Empty)
            }
            Request::Sync { path } => Ok(Answer::Echo(path.clone())),
            Request::WhoAmI => return self.who_am_i(result, context),
            Request::SetWatches(set) => {
                self.watcher.rearm(set, zxid, view.model, context)?;
                Ok(Answer::Empty)
            }
            Request::AddWatch { path, mode } => self.watcher.add(path, *mode),
            Request::CheckWatches { path, kind } => self.watcher.check(path, *kind),
            Request::RemoveWatches { path, kind } => self.watcher.remove(path, *kind),
            _ => return self.tree_read(request, zxid, result, view, context),
        };
        if *result != wanted {
            return self.violation(format!("19: {context}: {result:?}; expected {wanted:?}"));
        }
        Ok(())
    }

    fn tree_read(
        &mut self,
        request: &Request,
        zxid: Zxid,
        result: &Result<Answer, ErrorCode>,
        view: &View<'_>,
        context: fmt::Arguments<'_>,
    ) -> Verdict {
        let (session, _) = self.session().expect("an open connection has a session");
        // An authentication takes effect when it is received, maybe before the reads ahead of it
        // are answered (§2.5: its reply may even overtake them).
        let mut ids = self.identities();
        let mut later = self.pending.iter();
        let mut wanted = Vec::new();
        loop {
            wanted.push(view.model.read(zxid, request, session, &ids));
            if wanted.last() == Some(result) {
                break;
            }
            let Some(id) = later.next() else {
                return self.violation(format!("19: {context}: {result:?}; expected {wanted:?}"));
            };
            ids.push(id.clone());
        }
        self.watcher.after_read(request, result);
        Ok(())
    }

    /// §3.6: an entry per identity, in any order.
    fn who_am_i(&self, result: &Result<Answer, ErrorCode>, context: fmt::Arguments<'_>) -> Verdict {
        let shown = |id: &Id| match &*id.scheme {
            "digest" => Id::new("digest", id.id.split(':').next().unwrap_or_default()),
            _ => id.clone(),
        };
        let sorted = |mut ids: Vec<Id>| {
            ids.sort();
            ids
        };
        let Ok(Answer::WhoAmI(ids)) = result else {
            return self.violation(format!("§3.6: {context}: {result:?}"));
        };
        let ids = sorted(ids.clone());
        let mut own = self.identities();
        let mut later = self.pending.iter();
        loop {
            if ids == sorted(own.iter().map(shown).collect()) {
                return Ok(());
            }
            match later.next() {
                Some(id) if own.contains(id) => {}
                Some(id) => own.push(id.clone()),
                None => return self.violation(format!("§3.6: {context}: {result:?}, not {own:?}")),
            }
        }
    }

    fn identities(&self) -> Vec<Id> {
        self.identities.iter().map(|(id, _)| id.clone()).collect()
    }

    fn violation<T>(&self, what: impl AsRef<str>) -> Result<T, Violation> {
        broken(Group::Replies, format!("{:?}: {}", self.id, what.as_ref()))
    }
}

/// What a server without a majority refuses (§9.5).
fn needs_majority(opcode: i32) -> bool {
    WRITES.contains(&opcode) || [op::SYNC, op::CHECK].contains(&opcode)
}

/// Whether it reads the state.
fn is_of_state(request: &Request) -> bool {
    matches!(
        request,
        Request::Exists { .. }
            | Request::GetData { .. }
            | Request::GetAcl { .. }
            | Request::GetChildren { .. }
            | Request::MultiRead(_)
            | Request::SetWatches(_)
            | Request::GetEphemerals { .. }
            | Request::GetAllChildrenNumber { .. }
    )
}

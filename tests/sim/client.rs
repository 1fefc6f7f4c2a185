//! A simulated client: the protocol as a real client library follows it.
//!
//! It connects, keeps its session alive with pings, gives a silent server up after two thirds of
//! its timeout, comes back with session id and password, authenticates and sets its watches again.
//! What it asks for in between is its [`Workload`]'s business. Now and then it misbehaves: it
//! drops its connection, falls silent, opens a second connection, tries another's session.

use std::collections::{BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use zkraft::wire::request::{Create, SetWatches, SubRequest};
use zkraft::wire::{ConnectRequest, ErrorCode, EventType, Request, SessionId, Text, Zxid, op};

use crate::mix::SECRETS;
use crate::reply::{self, Event, Frame};
use crate::rng::Rng;
use crate::workload::{View, Workload};

/// The operations of clients that change znodes (§3.1).
pub const WRITES: [i32; 9] = [
    op::CREATE,
    op::CREATE2,
    op::CREATE_CONTAINER,
    op::CREATE_TTL,
    op::DELETE,
    op::SET_DATA,
    op::SET_ACL,
    op::MULTI,
    op::RECONFIG,
];

/// A request as it went over the wire.
#[derive(Clone, Debug)]
pub struct Sent {
    pub xid: i32,
    pub opcode: i32,
    pub body: Bytes,
    /// `None`: the body is cut short and cannot be decoded.
    pub request: Option<Request>,
}

impl Sent {
    pub fn new(xid: i32, request: Request) -> Self {
        let mut body = BytesMut::new();
        request.encode(&mut body);
        Self {
            xid,
            opcode: request.opcode(),
            body: body.freeze(),
            request: Some(request),
        }
    }

    /// Whether it goes through the log (§3.1).
    pub fn is_write(&self) -> bool {
        let is_write = WRITES.contains(&self.opcode) || self.opcode == op::CLOSE_SESSION;
        self.request.is_some() && is_write
    }

    /// Whether it asks for a znode that lives as long as its session (§5.3).
    pub fn asks_for_ephemeral(&self) -> bool {
        let asks = |create: &Create| {
            create.opcode != op::CREATE_CONTAINER && matches!(create.flags, 1 | 3)
        };
        match &self.request {
            Some(Request::Create(create)) => asks(create),
            Some(Request::Multi(operations)) => operations
                .iter()
                .any(|one| matches!(one, SubRequest::Create(create) if asks(create))),
            _ => false,
        }
    }

    /// Header and body, without the length.
    pub fn frame(&self) -> Bytes {
        let mut frame = BytesMut::new();
        frame.extend_from_slice(&self.xid.to_be_bytes());
        frame.extend_from_slice(&self.opcode.to_be_bytes());
        frame.extend_from_slice(&self.body);
        frame.freeze()
    }
}

/// What a client does to the world.
#[derive(Debug)]
pub enum Action {
    /// Opens a connection and sends a handshake. One that it has is left to itself.
    Connect(ConnectRequest),
    Send(Sent),
    /// Gives its connection up. Silent: the server is not told.
    Drop {
        silent: bool,
    },
    /// Wants to be woken at this time, in µs.
    Wake(u64),
}

/// How a client behaves. Drawn from the seed.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    pub timeout_ms: i32,
    /// Between two looks at what to do, in µs.
    pub think_us: u64,
    /// Unanswered requests, at most.
    pub pipeline: usize,
    /// Misbehaviour per thought, in ‰.
    pub drops: u64,
    pub vanishes: u64,
    pub moves: u64,
    pub closes: u64,
    pub intrudes: u64,
    /// Requests cut short, opcodes that nobody knows, failing authentication.
    pub garbage: u64,
    pub auths: u64,
    /// This part of its timeout after its last answered request was sent, it is sure that its
    /// session lives. One server alone knows all that it has answered; of several, one that is cut
    /// off goes on for a while (see `engine::lease`).
    pub trusts: u64,
    /// It is content with a server that only lets it read.
    pub reads_only: bool,
    /// Connections after which it begins anew, with another session, in percent.
    pub restarts: u64,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Phase {
    Away {
        until_us: u64,
    },
    Connecting {
        since_us: u64,
        foreign: bool,
    },
    Open,
    /// Silent, until another one takes its place.
    Dead,
}

pub struct Client {
    pub id: usize,
    pub manners: Manners,
    pub workload: Box<dyn Workload>,
    rng: Rng,
    phase: Phase,
    pub session: SessionId,
    password: Bytes,
    timeout_us: u64,
    last_zxid: Zxid,
    next_xid: i32,
    unanswered: VecDeque<(Sent, u64)>,
    last_sent_us: u64,
    last_heard_us: u64,
    /// The server cannot have ended the session before this.
    pub alive_until_us: u64,
    /// It has asked for the end of its session.
    pub is_closing: bool,
    /// Its server only lets it read: until when it stays there.
    read_only_until_us: Option<u64>,
    secrets: BTreeSet<&'static str>,
    watched: SetWatches,
    next_wake_us: u64,
    /// No more work: only what shows that all is well.
    finishing: Option<Finish>,
    /// Nobody must change the membership now.
    pub holds_still: bool,
    /// How often it was told that its session is over.
    pub expirations: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Finish {
    Wanted,
    Asked,
    Done,
}

impl Client {
    pub fn new(id: usize, manners: Manners, workload: Box<dyn Workload>, rng: Rng) -> Self {
        Self {
            id,
            manners,
            workload,
            rng,
            phase: Phase::Away { until_us: 0 },
            session: SessionId(0),
            password: Bytes::from_static(&[0; 16]),
            timeout_us: 0,
            last_zxid: Zxid(0),
            next_xid: 1,
            unanswered: VecDeque::new(),
            last_sent_us: 0,
            last_heard_us: 0,
            alive_until_us: 0,
            is_closing: false,
            read_only_until_us: None,
            secrets: BTreeSet::new(),
            watched: SetWatches {
                persistent: Some(Default::default()),
                ..SetWatches::default()
            },
            next_wake_us: 0,
            finishing: None,
            holds_still: false,
            expirations: 0,
        }
    }

    /// It authenticates by this secret whenever it connects.
    pub fn knows(&mut self, secret: &'static str) {
        self.secrets.insert(secret);
    }

    /// The time it asked for has come. `other`: the session of some client.
    pub fn wake(&mut self, now_us: u64, other: SessionId, out: &mut Vec<Action>) {
        if now_us < self.next_wake_us {
            return;
        }
        match self.phase {
            Phase::Dead => return,
            Phase::Away { until_us } if now_us >= until_us => self.connect(now_us, other, out),
            Phase::Away { .. } => {}
            Phase::Connecting { since_us, .. } => {
                if now_us > since_us + self.patience_us() {
                    self.give_up(now_us, false, out);
                }
            }
            Phase::Open => self.think(now_us, other, out),
        }
        self.next_wake_us = match self.phase {
            Phase::Away { until_us } => until_us.max(now_us + 1),
            _ => now_us + self.rng.between(1, 2 * self.manners.think_us),
        };
        out.push(Action::Wake(self.next_wake_us));
    }

    /// A frame arrived on its present connection.
    pub fn frame(&mut self, now_us: u64, frame: Bytes, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Connecting { since_us, foreign } => {
                let connected = reply::connected(frame).expect("the checker has looked at it");
                if foreign {
                    return;
                }
                if connected.timeout_ms == 0 {
                    self.session_over();
                    return;
                }
                let new = self.session != connected.session;
                self.session = connected.session;
                self.password = connected.password;
                self.timeout_us = connected.timeout_ms as u64 * 1000;
                self.alive_until_us = since_us + self.timeout_us / self.manners.trusts;
                self.is_closing &= !new;
                let is_read_only = connected.read_only == Some(true);
                let stay_us = is_read_only.then(|| self.rng.between(500_000, 4_000_000));
                self.read_only_until_us = stay_us.map(|stay_us| now_us + stay_us);
                self.last_heard_us = now_us;
                self.last_sent_us = now_us;
                self.phase = Phase::Open;
                self.greet(now_us, out);
                self.workload.connected(new);
            }
            Phase::Open => {
                self.last_heard_us = now_us;
                match reply::frame(frame).expect("the checker has looked at it") {
                    Frame::Event(event) => {
                        self.event(&event);
                        self.workload.event(&event);
                    }
                    Frame::Reply {
                        zxid, error, body, ..
                    } => {
                        self.reply(now_us, zxid, error, body);
                    }
                }
            }
            Phase::Away { .. } | Phase::Dead => {}
        }
    }

    /// Its present connection is closed.
    pub fn lost(&mut self, now_us: u64, out: &mut Vec<Action>) {
        if self.phase == Phase::Dead {
            return;
        }
        self.disconnected(now_us, out);
    }

    /// Never speaks again.
    pub fn die(&mut self) {
        self.unanswered_lost();
        self.phase = Phase::Dead;
        self.alive_until_us = 0;
    }

    /// Another one takes its place, who knows what it did but not its session.
    pub fn is_replaced(&mut self, now_us: u64, out: &mut Vec<Action>) {
        self.begin_anew();
        self.is_closing = false;
        self.phase = Phase::Away { until_us: now_us };
        self.next_wake_us = now_us;
        out.push(Action::Wake(now_us));
    }

    pub fn is_dead(&self) -> bool {
        self.phase == Phase::Dead
    }

    /// From now on it behaves, and asks only for what shows that all is well.
    pub fn finish(&mut self, now_us: u64, out: &mut Vec<Action>) {
        let manners = &mut self.manners;
        (manners.drops, manners.vanishes, manners.moves) = (0, 0, 0);
        (manners.closes, manners.intrudes, manners.garbage) = (0, 0, 0);
        manners.restarts = 0;
        // A server that was removed and does not know it serves those who only read, for ever.
        manners.reads_only = false;
        self.finishing = Some(Finish::Wanted);
        if let Phase::Away { until_us } = &mut self.phase {
            *until_us = (*until_us).min(now_us + 100_000);
        }
        self.next_wake_us = now_us;
        out.push(Action::Wake(now_us));
    }

    /// Its last sync and ping were answered on an open connection.
    pub fn is_finished(&self) -> bool {
        self.is_dead() || (self.finishing == Some(Finish::Done) && self.phase == Phase::Open)
    }

    fn connect(&mut self, now_us: u64, other: SessionId, out: &mut Vec<Action>) {
        let foreign =
            other.0 != 0 && other != self.session && self.rng.permille(self.manners.intrudes * 10);
        let (session, password) = match foreign {
            true => (other, Bytes::copy_from_slice(&self.rng.bytes16())),
            false => (self.session, self.password.clone()),
        };
        let future = foreign && self.rng.percent(30);
        out.push(Action::Connect(ConnectRequest {
            last_zxid_seen: if future {
                Zxid(i64::MAX / 2)
            } else {
                self.last_zxid
            },
            timeout_ms: self.manners.timeout_ms,
            session,
            password,
            read_only: self.rng.percent(80).then_some(self.manners.reads_only),
        }));
        self.unanswered.clear();
        self.phase = Phase::Connecting {
            since_us: now_us,
            foreign,
        };
    }

    /// What a client that came back sends first.
    fn greet(&mut self, now_us: u64, out: &mut Vec<Action>) {
        for secret in self.secrets.clone() {
            self.send(now_us, auth("digest", secret), out);
        }
        let watched = self.watched.clone();
        self.watched = SetWatches {
            persistent: Some(Default::default()),
            ..SetWatches::default()
        };
        let empty = watched == self.watched;
        if !empty && self.rng.percent(80) {
            let mut set = SetWatches {
                relative_zxid: self.last_zxid,
                ..watched
            };
            if set.persistent == Some(Default::default()) && self.rng.percent(50) {
                set.persistent = None;
            }
            self.send(now_us, Request::SetWatches(set), out);
        }
    }

    fn think(&mut self, now_us: u64, other: SessionId, out: &mut Vec<Action>) {
        let waiting = !self.unanswered.is_empty();
        if waiting && now_us > self.last_heard_us + self.timeout_us * 2 / 3 {
            return self.give_up(now_us, false, out);
        }
        if self.read_only_until_us.is_some_and(|until| now_us > until) {
            // It looks for a server that serves everyone.
            return self.give_up(now_us, false, out);
        }
        if now_us > self.last_sent_us + self.timeout_us / 3 {
            self.send(now_us, Request::Ping, out);
        }
        if self.finishing.is_some() && self.read_only_until_us.is_some() {
            return;
        }
        match self.finishing {
            None => {}
            Some(Finish::Wanted) if !waiting => {
                self.send(
                    now_us,
                    Request::Sync {
                        path: Some("/".into()),
                    },
                    out,
                );
                self.send(now_us, Request::Ping, out);
                self.finishing = Some(Finish::Asked);
                return;
            }
            Some(Finish::Asked) if !waiting => {
                self.finishing = Some(Finish::Done);
                return;
            }
            Some(_) => return,
        }
        if self.misbehave(now_us, other, out) {
            return;
        }
        let view = self.view(now_us);
        if self.unanswered.len() < self.manners.pipeline {
            for request in self.workload.next(&mut self.rng, &view) {
                self.send(now_us, request, out);
            }
        }
    }

    /// True: that is all for now.
    fn misbehave(&mut self, now_us: u64, other: SessionId, out: &mut Vec<Action>) -> bool {
        let manners = self.manners.clone();
        if self.rng.permille(manners.auths) {
            let secret = *self.rng.pick(&SECRETS);
            self.secrets.insert(secret);
            self.send(now_us, auth("digest", secret), out);
        }
        if self.rng.permille(manners.garbage) {
            self.garbage(now_us, out);
        }
        if self.rng.permille(manners.drops) {
            let silent = self.rng.percent(30);
            self.give_up(now_us, silent, out);
            return true;
        }
        if self.rng.permille(manners.vanishes) {
            // Silence, with the connection up: nobody can tell until the timeout.
            self.next_wake_us = now_us + self.rng.between(0, self.timeout_us * 3);
            self.phase = Phase::Away {
                until_us: self.next_wake_us,
            };
            self.unanswered_lost();
            return true;
        }
        if self.rng.permille(manners.moves) {
            // The old connection stays open and may still carry what was sent.
            self.unanswered_lost();
            self.connect(now_us, other, out);
            return true;
        }
        if self.rng.permille(manners.closes) {
            self.send(now_us, Request::CloseSession, out);
            // Who gives up the session gives up what it holds by it.
            self.is_closing = true;
            return true;
        }
        false
    }

    fn garbage(&mut self, now_us: u64, out: &mut Vec<Action>) {
        match self.rng.below(8) {
            0 => self.send(now_us, auth("nobody", "x"), out),
            1 => {
                let opcode = *self.rng.pick(&[
                    op::CHECK,
                    op::DELETE_CONTAINER,
                    op::CREATE_SESSION,
                    0,
                    -1,
                    -20,
                    -22,
                    99,
                ]);
                self.send(now_us, Request::Unknown(opcode), out);
            }
            2 => self.send(now_us, Request::Sasl { token: None }, out),
            3 => self.send(now_us, auth("ip", ""), out),
            _ => {
                let path = Text::from("/a/garbage");
                let request = match self.rng.below(3) {
                    0 => Request::Delete { path, version: -1 },
                    1 => Request::GetData { path, watch: true },
                    _ => Request::AddWatch { path, mode: 0 },
                };
                let mut sent = Sent::new(self.take_xid(), request);
                let length = self.rng.below(sent.body.len() as u64) as usize;
                sent.body.truncate(length);
                sent.request = None;
                self.unanswered.push_back((sent.clone(), now_us));
                out.push(Action::Send(sent));
            }
        }
    }

    fn send(&mut self, now_us: u64, request: Request, out: &mut Vec<Action>) {
        let xid = match request {
            Request::Ping => -2,
            Request::Auth { .. } => -4,
            Request::SetWatches(_) if self.rng.percent(50) => -8,
            _ => self.take_xid(),
        };
        let sent = Sent::new(xid, request);
        self.unanswered.push_back((sent.clone(), now_us));
        self.last_sent_us = now_us;
        out.push(Action::Send(sent));
    }

    fn take_xid(&mut self) -> i32 {
        self.next_xid += 1;
        self.next_xid
    }

    fn reply(&mut self, now_us: u64, zxid: Zxid, error: i32, body: Bytes) {
        let (sent, sent_us) = self
            .unanswered
            .pop_front()
            .expect("the checker has looked at it");
        let alive_until_us = sent_us + self.timeout_us / self.manners.trusts;
        self.alive_until_us = self.alive_until_us.max(alive_until_us);
        let Some(request) = sent.request else { return };
        if matches!(request, Request::Unknown(_)) {
            return;
        }
        let special = matches!(request, Request::Ping | Request::Auth { .. });
        if zxid.0 > 0 && !special {
            self.last_zxid = zxid;
        }
        let result = reply::result(&request, error, body).expect("the checker has looked at it");
        self.note_watch(&request, result.is_ok(), result.as_ref().err());
        if request == Request::CloseSession && result.is_ok() {
            self.session_over();
            return;
        }
        let view = self.view(now_us);
        self.workload.reply(&request, &result, &view, &mut self.rng);
    }

    fn note_watch(&mut self, request: &Request, ok: bool, error: Option<&ErrorCode>) {
        let watched = &mut self.watched;
        let [persistent, recursive] = watched.persistent.get_or_insert_default();
        match request {
            Request::Exists { path, watch: true } if ok => watched.data.push(path.clone()),
            Request::Exists { path, watch: true } if error == Some(&ErrorCode::NoNode) => {
                watched.exist.push(path.clone());
            }
            Request::GetData { path, watch: true } if ok => watched.data.push(path.clone()),
            Request::GetChildren {
                path, watch: true, ..
            } if ok => {
                watched.child.push(path.clone());
            }
            Request::AddWatch { path, mode: 0 } if ok => persistent.push(path.clone()),
            Request::AddWatch { path, mode: 1 } if ok => recursive.push(path.clone()),
            Request::SetWatches(set) if ok => {
                watched.data.extend(set.data.iter().cloned());
                watched.exist.extend(set.exist.iter().cloned());
                watched.child.extend(set.child.iter().cloned());
                let [p, r] = set.persistent.clone().unwrap_or_default();
                persistent.extend(p);
                recursive.extend(r);
            }
            _ => {}
        }
    }

    /// A one-shot watch is used up.
    fn event(&mut self, event: &Event) {
        let other = |path: &Text| **path != *event.path;
        match event.kind {
            EventType::NodeChildrenChanged => self.watched.child.retain(other),
            EventType::NodeDeleted => {
                self.watched.data.retain(other);
                self.watched.exist.retain(other);
                self.watched.child.retain(other);
            }
            _ => {
                self.watched.data.retain(other);
                self.watched.exist.retain(other);
            }
        }
    }

    fn give_up(&mut self, now_us: u64, silent: bool, out: &mut Vec<Action>) {
        out.push(Action::Drop { silent });
        self.disconnected(now_us, out);
    }

    fn disconnected(&mut self, now_us: u64, out: &mut Vec<Action>) {
        self.unanswered_lost();
        if self.finishing.is_some() {
            self.finishing = Some(Finish::Wanted);
        }
        if self.manners.restarts > 0 && self.rng.percent(self.manners.restarts) {
            self.begin_anew();
        }
        let backoff_us = self.rng.between(1_000, 300_000);
        self.phase = Phase::Away {
            until_us: now_us + backoff_us,
        };
        self.next_wake_us = now_us + backoff_us;
        out.push(Action::Wake(self.next_wake_us));
    }

    /// Nobody will tell what became of these.
    fn unanswered_lost(&mut self) {
        let unanswered: Vec<Request> = self
            .unanswered
            .drain(..)
            .filter_map(|(sent, _)| sent.request)
            .collect();
        self.workload.lost(&unanswered);
    }

    fn session_over(&mut self) {
        self.expirations += 1;
        self.begin_anew();
    }

    /// It has no session any more.
    fn begin_anew(&mut self) {
        self.session = SessionId(0);
        self.password = Bytes::from_static(&[0; 16]);
        self.alive_until_us = 0;
        self.watched = SetWatches {
            persistent: Some(Default::default()),
            ..SetWatches::default()
        };
        self.workload.session_over();
    }

    fn patience_us(&self) -> u64 {
        (self.timeout_us / 3).max(500_000)
    }

    fn view(&self, now_us: u64) -> View {
        View {
            client: self.id,
            now_us,
            session: self.session,
            last_zxid: self.last_zxid,
            holds_still: self.holds_still,
        }
    }
}

fn auth(scheme: &str, secret: &str) -> Request {
    Request::Auth {
        scheme: scheme.into(),
        auth: Bytes::copy_from_slice(secret.as_bytes()),
    }
}

//! One client connection: the protocol's state machine, without its socket.
//!
//! Frames go in through [`Connection::receive`], which answers what it can at once; what has to
//! wait comes out through [`Connection::take_output`]. The shell and the simulator drive it alike.
//! A connection owns no truth: its session lives in the machine, its watches in the watch table.
//!
//! Locks are taken in one order only: machine → registry → connection → watches → identities or
//! outbox.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, Ordering};

use bytes::{Buf as _, Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};
use prost::Message as _;

use crate::machine::{self, Attached, Caller, Machine, NODES_AT_ONCE, Outcome};
use crate::proto::log;
use crate::watch::{ConnectionId, WatchMode, Watches};
use crate::wire::{
    Answer, ConnectRequest, ConnectResponse, ErrorCode, EventType, FrameLength, HEADER_BYTES, Id,
    Reader, ReplyHeader, Request, SessionId, Text, WatcherEvent, Zxid, encode_reply_with,
    frame_length, op, request, xid,
};

use super::auth;
use super::large::{Large, List, MULTI_READ_BYTES_MAX, Needs, Rearm, Work, rearmed};
use super::outbox::{Outbox, Outgoing, Remaining};
use super::pipeline::{HeaderZxid, Kind, Pending, Pipeline};
use super::shared::{Shared, State, Submission};

/// Unanswered requests of one connection above which no more are read.
pub const REQUESTS_MAX: usize = 1_000;
/// Bytes of answers that are given at once, without going through the outbox.
const DIRECT_BYTES_MAX: usize = 256 << 10;
/// Data above this, in bytes, is shared with the tree instead of being copied under its lock.
const DIRECT_DATA_MAX: usize = 4 << 10;
/// Children above this are not listed at once, under the lock.
const DIRECT_CHILDREN_MAX: usize = 256;

/// The same while the server has `CROWD` writes or more to do: who comes next waits for all of
/// them, so nobody may have many of them.
pub const REQUESTS_MAX_IN_CROWD: usize = 50;
/// Unanswered writes of the whole server that make a crowd: some milliseconds of work.
const CROWD: usize = 2_000;

/// Lists that wait behind a write, at most: they may find far more there than when they came, and
/// then run while everyone waits.
const LISTS_BEHIND_WRITE_MAX: usize = 8;

/// The connection is to be closed without a word: the client broke the protocol, or may not be
/// served now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused(pub &'static str);

pub struct Connection {
    id: ConnectionId,
    peer: SocketAddr,
    shared: Arc<Shared>,
    inner: Mutex<Inner>,
    identities: RwLock<Arc<[Id]>>,
    outbox: Outbox,
    wake: Box<dyn Fn() + Send + Sync>,
    gone: AtomicBool,
    /// The shell does not read on, because there is no room for what the client sends.
    held_back: AtomicBool,
    pub stats: ConnectionStats,
}

/// What the four-letter words `cons` and `stat` tell of a connection (§11.1).
#[derive(Debug, Default)]
pub struct ConnectionStats {
    /// 0 while there is no session.
    pub session: AtomicI64,
    pub timeout_ms: AtomicI32,
    pub received: AtomicU64,
    /// When it was opened, in ms since 1970.
    pub established_ms: AtomicI64,
    /// When anything was received last, in ms of the engine's clock.
    pub heard_ms: AtomicU64,
    pub last_opcode: AtomicI32,
    pub last_xid: AtomicI32,
    pub last_zxid: AtomicI64,
    pub last_answered_ms: AtomicU64,
    pub last_latency_ms: AtomicU64,
    pub min_latency_ms: AtomicU64,
    pub max_latency_ms: AtomicU64,
    pub total_latency_ms: AtomicU64,
    pub answered: AtomicU64,
}

/// What a large read will need.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LargeRead {
    /// About how many bytes its answer will have.
    pub bytes: usize,
    /// Whether it takes more than one step.
    pub is_long: bool,
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    pipeline: Pipeline,
    session: SessionId,
    generation: u64,
}

#[derive(Debug)]
enum Phase {
    /// Nothing was received.
    Fresh,
    /// The client has seen a zxid that is not applied here yet: it waits a little (§9.6 rule 5).
    Behind {
        request: ConnectRequest,
        since_ms: u64,
    },
    /// The session's creation or attachment is on its way through the log.
    Connecting {
        read_only: Option<bool>,
    },
    Open,
    Closed,
}

impl Connection {
    pub(super) fn new(
        id: ConnectionId,
        peer: SocketAddr,
        shared: Arc<Shared>,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let mut identities = vec![auth::address_identity(peer.ip())];
        if shared.options.auth.skip_acl {
            identities.push(auth::super_identity());
        }
        let outbox = Outbox::new(shared.unsent.clone());
        let stats = ConnectionStats {
            min_latency_ms: AtomicU64::new(u64::MAX),
            last_xid: AtomicI32::new(-1),
            ..ConnectionStats::default()
        };
        Self {
            id,
            peer,
            shared,
            inner: Mutex::new(Inner {
                phase: Phase::Fresh,
                pipeline: Pipeline::default(),
                session: SessionId(0),
                generation: 0,
            }),
            identities: RwLock::new(identities.into()),
            outbox,
            wake,
            gone: AtomicBool::new(false),
            held_back: AtomicBool::new(false),
            stats,
        }
    }

    /// Takes in the whole frames that `input` starts with, as many as are wanted now. What can be
    /// answered at once is appended to `out`, and so is what was queued before; the rest comes out
    /// of [`Self::take_output`] in its time. Returns how many frames were taken; half a frame, and
    /// one above `frame_bytes_max`, stay where they are.
    ///
    /// # Errors
    ///
    /// If the connection has to be closed at once, without sending what is queued.
    pub fn receive(
        self: &Arc<Self>,
        input: &mut BytesMut,
        frame_bytes_max: usize,
        now_ms: u64,
        out: &mut BytesMut,
    ) -> Result<usize, Refused> {
        let mut frames = 0;
        let taken = self.take_all(input, frame_bytes_max, now_ms, out, &mut frames);
        if frames > 0 {
            // Half a frame is no sign of life: who sends a byte now and then holds no session.
            self.heard(now_ms);
            self.stats
                .received
                .fetch_add(frames as u64, Ordering::Relaxed);
        }
        self.shared.announce();
        match taken {
            Ok(()) => Ok(frames),
            Err(refused) => {
                self.lost();
                Err(refused)
            }
        }
    }

    fn take_all(
        self: &Arc<Self>,
        input: &mut BytesMut,
        frame_bytes_max: usize,
        now_ms: u64,
        out: &mut BytesMut,
        frames: &mut usize,
    ) -> Result<(), Refused> {
        loop {
            let mut next = self.take_run(None, input, frame_bytes_max, now_ms, out, frames);
            if matches!(next, Next::Read) {
                let state = self.shared.state.read();
                let state = Some(&*state);
                next = self.take_run(state, input, frame_bytes_max, now_ms, out, frames);
            }
            match next {
                Next::Stop => return Ok(()),
                Next::Read => {}
                Next::Single(frame) => {
                    *frames += 1;
                    if self.awaits_handshake() {
                        self.connect(frame, now_ms)?;
                    } else {
                        self.request(frame, now_ms)?;
                    }
                }
            }
        }
    }

    /// Takes in frames under one hold of the locks: writes, reads that must wait for them, and,
    /// with the state at hand, reads that are answered at once.
    ///
    /// Nothing is put into the outbox meanwhile: others do that under the write lock of the state,
    /// or while they hold this connection's. So answers may be encoded behind what was queued.
    fn take_run(
        self: &Arc<Self>,
        state: Option<&State>,
        input: &mut BytesMut,
        frame_bytes_max: usize,
        now_ms: u64,
        out: &mut BytesMut,
        frames: &mut usize,
    ) -> Next {
        let mut inner = self.inner.lock();
        let may_answer = state.is_some() && self.outbox.take(out) == Remaining::Nothing;
        let is_full = !self.outbox.has_room();
        let most = DIRECT_BYTES_MAX.min(self.outbox.allowance());
        let before = out.len();
        let identities = state.map(|_| self.identities());
        let mut writes = Vec::new();
        let mut answered = 0;
        let mut last = None;
        let next = loop {
            if !self.is_ready(&inner) || is_full || out.len() > most {
                break Next::Stop;
            }
            let length = match frame_length(input, frame_bytes_max) {
                FrameLength::Body(length) if input.len() >= 4 + length => length,
                _ => break Next::Stop,
            };
            let frame = &input[4..4 + length];
            let header = (request::int_at(frame, 0), request::int_at(frame, 4));
            let (Some(xid), Some(opcode)) = header else {
                break Next::Single(split_frame(input, length));
            };
            let may_run = inner.pipeline.is_empty();
            match opcode {
                _ if !matches!(inner.phase, Phase::Open) => {
                    break Next::Single(split_frame(input, length));
                }
                op::GET_DATA | op::EXISTS | op::GET_CHILDREN | op::GET_CHILDREN2 | op::PING
                    if may_run =>
                {
                    let (Some(state), Some(identities)) = (state, &identities) else {
                        break Next::Read;
                    };
                    let caller = Caller {
                        session: inner.session,
                        identities,
                    };
                    let body = &frame[HEADER_BYTES..];
                    if !may_answer || !self.answer(state, &caller, xid, opcode, body, out) {
                        break Next::Single(split_frame(input, length));
                    }
                    answered += 1;
                    input.advance(4 + length);
                }
                op::GET_DATA
                | op::EXISTS
                | op::SET_DATA
                | op::CREATE
                | op::CREATE2
                | op::DELETE => {
                    let frame = split_frame(input, length);
                    let body = frame.slice(HEADER_BYTES..);
                    let Ok(decoded) = Request::decode(opcode, body.clone()) else {
                        break Next::Single(frame);
                    };
                    let kind = if is_read(opcode) {
                        Kind::Read(decoded)
                    } else {
                        let command = log::Command {
                            session: inner.session.0,
                            generation: inner.generation,
                            op: opcode,
                            body,
                        };
                        writes.push(Submission::Write(self.clone(), command));
                        Kind::Write
                    };
                    inner.pipeline.push(Pending {
                        xid,
                        opcode,
                        since_ms: now_ms,
                        kind,
                    });
                }
                _ => break Next::Single(split_frame(input, length)),
            }
            *frames += 1;
            last = Some((xid, opcode));
        };
        // While the pipeline is locked, so that the order of commands is the order of requests.
        self.shared.submit(writes);
        if let Some((xid, opcode)) = last {
            self.stats.last_opcode.store(opcode, Ordering::Relaxed);
            self.stats.last_xid.store(xid, Ordering::Relaxed);
        }
        if let Some(state) = state {
            let bytes = out.len() - before;
            self.note_answers(answered, bytes, state.machine.zxid(), now_ms);
        }
        next
    }

    /// False: the shell must not hand in more frames for now.
    pub fn wants_input(&self) -> bool {
        let ready = self.is_ready(&self.inner.lock());
        ready && self.outbox.has_room()
    }

    fn is_ready(&self, inner: &Inner) -> bool {
        match inner.phase {
            Phase::Fresh => true,
            Phase::Open => !self.is_held_back(&inner.pipeline) && !inner.pipeline.is_ending(),
            Phase::Behind { .. } | Phase::Connecting { .. } | Phase::Closed => false,
        }
    }

    /// Whether nothing more is read until something is answered. One request is always let in: a
    /// connection that waits for nothing is woken by no one.
    fn is_held_back(&self, pipeline: &Pipeline) -> bool {
        let most = match self.shared.outstanding() < CROWD {
            true => REQUESTS_MAX,
            false => REQUESTS_MAX_IN_CROWD,
        };
        let is_full = pipeline.len() >= most
            || pipeline.lists() >= LISTS_BEHIND_WRITE_MAX
            || self.shared.is_flooded();
        (is_full && !pipeline.is_empty()) || pipeline.is_stopped()
    }

    /// Says whether the shell leaves the client unread for want of room.
    pub fn hold_back(&self, held_back: bool) {
        self.held_back.store(held_back, Ordering::Relaxed);
    }

    /// Something came from the client, though it may not be a whole frame yet.
    pub fn heard(&self, now_ms: u64) {
        self.stats.heard_ms.store(now_ms, Ordering::Relaxed);
    }

    /// When the client was last heard. The silence of one that is not read, because the server has
    /// not answered yet, is not its own: a stall of the disk must not end its session.
    pub(super) fn last_heard_ms(&self, now_ms: u64) -> u64 {
        let is_held_back = self.held_back.load(Ordering::Relaxed);
        if is_held_back || self.is_held_back(&self.inner.lock().pipeline) {
            now_ms
        } else {
            self.stats.heard_ms.load(Ordering::Relaxed)
        }
    }

    /// What was taken is sent.
    pub fn output_sent(&self) {
        self.outbox.sent();
    }

    /// The large read that has its turn, if there is one. It is then to be begun by
    /// [`Self::begin_large`], and nothing else is read from the client before it is answered.
    pub fn large(&self) -> Option<LargeRead> {
        self.inner.lock().pipeline.large()?;
        let state = self.shared.state.read();
        let inner = self.inner.lock();
        let request = inner.pipeline.large()?;
        let bytes = state.machine.large_bytes(request, inner.session);
        Some(LargeRead {
            bytes: match request {
                // A larger one is refused.
                Request::MultiRead(_) => bytes.min(MULTI_READ_BYTES_MAX),
                _ => bytes,
            },
            is_long: !matches!(request, Request::GetData { .. }),
        })
    }

    /// Begins the large read that has its turn. Output may be taken again when it is answered.
    pub fn begin_large(&self) -> Option<Large> {
        let state = self.shared.state.read();
        let mut inner = self.inner.lock();
        let request = inner.pipeline.begin_large()?;
        let identities = self.identities();
        let caller = Caller {
            session: inner.session,
            identities: &identities,
        };
        let path_and_mode = match &request {
            Request::GetData { path, watch: true } => Some((path.clone(), WatchMode::Data)),
            Request::GetChildren {
                path, watch: true, ..
            } => Some((path.clone(), WatchMode::Child)),
            _ => None,
        };
        let mut large = Large::begin(request, &state.machine, &caller);
        if let Some((path, mode)) = path_and_mode
            && !matches!(large.work, Work::Done(Err(_)))
            && let Err(code) = self.watch(&state.watches, &path, mode)
        {
            large.work = Work::Done(Err(code));
        }
        if large.zxid.is_some() {
            // What happens from now on comes behind the answer, which does not show it (§6.5).
            self.outbox.reserve();
        }
        Some(large)
    }

    /// Goes on with a large read for a fraction of a millisecond. True: it is answered.
    pub fn step_large(&self, large: &mut Large, now_ms: u64) -> bool {
        if large.needs() == Needs::State {
            let state = self.shared.state.read();
            match &mut large.work {
                Work::Rearm(rearm) => {
                    for event in self.rearm(rearm, &state.machine, &mut state.watches.lock()) {
                        let _ = self.event(event);
                    }
                    if rearm.is_done() {
                        large.work = Work::Done(Ok(Answer::Empty));
                    }
                }
                _ => {
                    let identities = self.identities();
                    let caller = Caller {
                        session: SessionId(self.stats.session.load(Ordering::Relaxed)),
                        identities: &identities,
                    };
                    large.read_on(&state.machine, &caller);
                }
            }
        } else {
            large.step();
        }
        let Work::Done(result) = &large.work else {
            return false;
        };
        let state = self.shared.state.read();
        let mut inner = self.inner.lock();
        if let Some(pending) = inner.pipeline.end_large() {
            let zxid = large.zxid.unwrap_or(state.machine.zxid());
            // The connection's own task is the caller and looks at the outbox next: no wake.
            let _ = self.reply(&pending, zxid, result.clone(), now_ms);
            let _ = self.run(&mut inner, &state.machine, &state.watches, now_ms);
        }
        true
    }

    /// Answers the large reads that have their turn, for who has nothing better to do meanwhile.
    pub fn answer_large(&self, now_ms: u64) {
        while let Some(mut large) = self.begin_large() {
            while !self.step_large(&mut large, now_ms) {}
        }
    }

    /// Encodes what is to be sent onto `out`.
    pub fn take_output(&self, out: &mut BytesMut) -> Remaining {
        self.outbox.take(out)
    }

    /// The socket is gone: nothing can be sent any more. The session lives on until its timeout.
    pub fn lost(&self) {
        if self.gone.swap(true, Ordering::AcqRel) {
            return;
        }
        self.outbox.abandon();
        {
            let mut inner = self.inner.lock();
            inner.phase = Phase::Closed;
            inner.pipeline.clear();
        }
        self.shared.forget(self);
    }

    pub fn id(&self) -> ConnectionId {
        self.id
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whether the client has not asked for a session yet.
    pub fn awaits_handshake(&self) -> bool {
        matches!(self.inner.lock().phase, Phase::Fresh)
    }

    /// Whether the socket is gone.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Forgets the latencies, as the four-letter word `crst` asks for.
    pub fn reset_stats(&self) {
        let stats = &self.stats;
        stats.received.store(0, Ordering::Relaxed);
        stats.min_latency_ms.store(u64::MAX, Ordering::Relaxed);
        stats.max_latency_ms.store(0, Ordering::Relaxed);
        stats.total_latency_ms.store(0, Ordering::Relaxed);
        stats.answered.store(0, Ordering::Relaxed);
        self.outbox.forget_taken();
    }

    /// Requests that are not answered yet.
    pub fn unanswered(&self) -> usize {
        self.inner.lock().pipeline.len()
    }

    /// Frames that were sent since the connection was opened.
    pub fn sent(&self) -> u64 {
        self.outbox.frames_taken()
    }

    /// Frames that were sent since [`Self::reset_stats`].
    pub fn sent_since_reset(&self) -> u64 {
        self.outbox.frames_shown()
    }

    pub fn identities(&self) -> Arc<[Id]> {
        self.identities.read().clone()
    }

    pub(super) fn wake(&self) {
        (self.wake)();
    }

    /// Closes after what is queued was sent. True: the task must be woken.
    pub(super) fn finish(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.phase = Phase::Closed;
        inner.pipeline.clear();
        drop(inner);
        self.outbox.close()
    }

    fn connect(self: &Arc<Self>, frame: Bytes, now_ms: u64) -> Result<(), Refused> {
        let request = ConnectRequest::decode(frame).map_err(|_| Refused("malformed handshake"))?;
        self.shared.metrics.connection_request_count.add(1);
        if !self.shared.is_serving() {
            self.shared
                .metrics
                .cnxn_closed_without_zk_server_running
                .add(1);
            return Err(Refused("not serving"));
        }
        let (applied, sessions) = {
            let state = self.shared.state.read();
            (state.machine.zxid(), state.machine.session_count())
        };
        let sessions_max = self.shared.options.sessions_max;
        if request.session.0 == 0 && sessions_max > 0 && sessions >= sessions_max {
            self.shared.metrics.sessions_refused.add(1);
            return Err(Refused("maxSessions reached"));
        }
        if request.last_zxid_seen > applied {
            let phase = Phase::Behind {
                request,
                since_ms: now_ms,
            };
            self.inner.lock().phase = phase;
            self.shared.wait_behind(self.clone());
            return Ok(());
        }
        self.submit_connect(&request);
        Ok(())
    }

    /// A client that was ahead of this server: goes on if it is not any more. False: it still is.
    pub(super) fn retry_connect(self: &Arc<Self>, applied: Zxid, now_ms: u64) -> bool {
        const PATIENCE_MS: u64 = 500;
        let request = {
            let inner = self.inner.lock();
            let Phase::Behind { request, since_ms } = &inner.phase else {
                return true;
            };
            if request.last_zxid_seen > applied {
                let patient = now_ms < since_ms + PATIENCE_MS;
                drop(inner);
                if !patient {
                    self.close_now();
                }
                return !patient;
            }
            request.clone()
        };
        self.submit_connect(&request);
        true
    }

    fn submit_connect(self: &Arc<Self>, request: &ConnectRequest) {
        let options = &self.shared.options;
        let timeout_ms = request.timeout_ms.clamp(
            options.min_session_timeout_ms,
            options.max_session_timeout_ms,
        );
        self.shared
            .note_timeout(self.peer, request.timeout_ms, timeout_ms);
        let identities = self.identities().iter().map(identity_to_log).collect();
        let command = if request.session.0 == 0 {
            let password = Bytes::copy_from_slice(&(self.shared.random)());
            let body = log::CreateSession {
                timeout_ms,
                password,
                identities,
            };
            log::Command {
                session: self.shared.next_session().0,
                generation: 0,
                op: op::CREATE_SESSION,
                body: body.encode_to_vec().into(),
            }
        } else {
            self.shared.metrics.connection_revalidate_count.add(1);
            let password = request.password.clone();
            let body = log::Attach {
                timeout_ms,
                password,
                identities,
            };
            log::Command {
                session: request.session.0,
                generation: 0,
                op: machine::op::ATTACH,
                body: body.encode_to_vec().into(),
            }
        };
        let mut inner = self.inner.lock();
        // A client that was made to wait may be gone by now.
        if matches!(inner.phase, Phase::Closed) {
            return;
        }
        inner.phase = Phase::Connecting {
            read_only: request.read_only,
        };
        self.shared
            .submit([Submission::Connect(self.clone(), command)]);
    }

    fn request(self: &Arc<Self>, frame: Bytes, now_ms: u64) -> Result<(), Refused> {
        if frame.len() < HEADER_BYTES {
            return Err(Refused("frame too short for a request header"));
        }
        let mut reader = Reader::new(frame);
        let header = (reader.int(), reader.int());
        let (Ok(xid), Ok(opcode)) = header else {
            return Err(Refused("frame too short for a request header"));
        };
        let body = reader.rest();
        self.stats.last_opcode.store(opcode, Ordering::Relaxed);
        self.stats.last_xid.store(xid, Ordering::Relaxed);

        let pending = |kind| Pending {
            xid,
            opcode,
            since_ms: now_ms,
            kind,
        };
        let request = match Request::decode(opcode, body.clone()) {
            Ok(request) => request,
            Err(_) => {
                let kind = answered(Err(ErrorCode::MarshallingError), false, HeaderZxid::Applied);
                self.answer_in_order(pending(kind), now_ms);
                return Ok(());
            }
        };
        match request {
            Request::Create(_)
            | Request::Delete { .. }
            | Request::SetData { .. }
            | Request::SetAcl { .. }
            | Request::Multi(_)
            | Request::Reconfig(_)
            | Request::CloseSession => self.submit_write(pending(Kind::Write), opcode, body),
            Request::Sync { path } => {
                let mut inner = self.inner.lock();
                if !matches!(inner.phase, Phase::Open) {
                    return Ok(());
                }
                inner.pipeline.push(pending(Kind::Sync {
                    path,
                    released: false,
                }));
                self.shared.submit([Submission::Barrier(self.clone())]);
            }
            Request::Auth { scheme, auth } => {
                self.authenticate(&scheme, &auth, pending, now_ms);
            }
            Request::Sasl { .. } => {
                // SASL is not configured: success with a null token (s80).
                let kind = answered(Ok(Answer::Token(None)), false, HeaderZxid::Zero);
                self.answer_in_order(pending(kind), now_ms);
            }
            Request::Unknown(_) => {
                let kind = answered(Err(ErrorCode::Unimplemented), true, HeaderZxid::Unknown);
                self.answer_in_order(pending(kind), now_ms);
            }
            read => self.answer_in_order(pending(Kind::Read(read)), now_ms),
        }
        Ok(())
    }

    /// Answers a read at once, onto `out`. False: it is not one for that, and nothing was done.
    fn answer(
        &self,
        state: &State,
        caller: &Caller<'_>,
        xid: i32,
        opcode: i32,
        body: &[u8],
        out: &mut BytesMut,
    ) -> bool {
        let machine = &state.machine;
        let before = out.len();
        let header = |xid, error| ReplyHeader {
            xid,
            zxid: machine.zxid(),
            error,
        };
        if opcode == op::PING {
            encode_reply_with(header(xid::PING, 0), out, |_| ());
            return true;
        }
        let Some((path, watch)) = request::path_and_watch(body) else {
            return false;
        };
        let mode = match opcode {
            op::GET_DATA | op::EXISTS => WatchMode::Data,
            _ => WatchMode::Child,
        };
        let code = match opcode {
            op::GET_DATA => match machine.data(path, caller) {
                Ok((Some(data), _)) if data.len() > DIRECT_DATA_MAX => return false,
                Ok((data, stat)) => {
                    encode_reply_with(header(xid, 0), out, |w| {
                        w.buffer(data);
                        stat.encode(w);
                    });
                    None
                }
                Err(code) => Some(code),
            },
            op::EXISTS => match machine.stat(path, caller) {
                Ok(stat) => {
                    encode_reply_with(header(xid, 0), out, |w| stat.encode(w));
                    None
                }
                Err(code) => Some(code),
            },
            _ => match machine.children(path, caller) {
                Ok((_, stat)) if stat.num_children as usize > DIRECT_CHILDREN_MAX => return false,
                Ok((names, stat)) => {
                    encode_reply_with(header(xid, 0), out, |w| {
                        w.count(stat.num_children as usize);
                        names.for_each(|name| w.text(name));
                        if opcode == op::GET_CHILDREN2 {
                            stat.encode(w);
                        }
                    });
                    None
                }
                Err(code) => Some(code),
            },
        };
        if let Some(code) = code {
            encode_reply_with(header(xid, code.number()), out, |_| ());
        }
        // A watch may be set on what does not exist yet, but not on what may not be read (§3.6).
        let waits = code.is_none() || (opcode == op::EXISTS && code == Some(ErrorCode::NoNode));
        if watch && waits && self.watch(&state.watches, &path.into(), mode).is_err() {
            out.truncate(before);
            return false;
        }
        true
    }

    fn submit_write(self: &Arc<Self>, pending: Pending, opcode: i32, body: Bytes) {
        let mut inner = self.inner.lock();
        if !matches!(inner.phase, Phase::Open) {
            return;
        }
        let (session, generation) = (inner.session.0, inner.generation);
        inner.pipeline.push(pending);
        let command = log::Command {
            session,
            generation,
            op: opcode,
            body,
        };
        // While the pipeline is locked, so that the order of commands is the order of requests.
        self.shared
            .submit([Submission::Write(self.clone(), command)]);
    }

    fn authenticate(
        self: &Arc<Self>,
        scheme: &str,
        auth: &[u8],
        pending: impl Fn(Kind) -> Pending,
        now_ms: u64,
    ) {
        match auth::authenticate(scheme, auth, &self.shared.options.auth) {
            None => {
                self.shared.metrics.auth_failed_count.add(1);
                let kind = answered(Err(ErrorCode::AuthFailed), true, HeaderZxid::Zero);
                self.answer_in_order(pending(kind), now_ms);
            }
            Some(added) => {
                self.add_identities(added);
                let kind = answered(Ok(Answer::Empty), false, HeaderZxid::Zero);
                self.answer_in_order(pending(kind), now_ms);
            }
        }
    }

    fn add_identities(self: &Arc<Self>, added: Vec<Id>) {
        let new: Vec<Id> = {
            let mut identities = self.identities.write();
            let new: Vec<Id> = added
                .into_iter()
                .filter(|id| !identities.contains(id))
                .collect();
            *identities = identities.iter().chain(&new).cloned().collect();
            new
        };
        if new.is_empty() {
            return;
        }
        let inner = self.inner.lock();
        let body = log::Identify {
            identities: new.iter().map(identity_to_log).collect(),
        };
        let command = log::Command {
            session: inner.session.0,
            generation: inner.generation,
            op: machine::op::IDENTIFY,
            body: body.encode_to_vec().into(),
        };
        self.shared.submit([Submission::Silent(command)]);
    }

    /// Answers when everything before is answered: now, if nothing waits.
    fn answer_in_order(&self, pending: Pending, now_ms: u64) {
        let state = self.shared.state.read();
        let mut inner = self.inner.lock();
        if !matches!(inner.phase, Phase::Open) {
            return;
        }
        let mut pending = pending;
        if let Kind::Read(request) = &pending.kind
            && !inner.pipeline.is_empty()
            && may_become_large(request, &state.machine, inner.session)
            && let Kind::Read(request) = std::mem::replace(&mut pending.kind, Kind::Large(None))
        {
            pending.kind = Kind::Large(Some(request));
        }
        inner.pipeline.push(pending);
        // The connection's own task is the caller and looks at the outbox next: no wake.
        let _ = self.run(&mut inner, &state.machine, &state.watches, now_ms);
    }

    /// The oldest write of this connection was applied. True: the task must be woken.
    pub(super) fn write_applied(
        &self,
        outcome: Outcome,
        machine: &Machine,
        watches: &Mutex<Watches>,
        now_ms: u64,
    ) -> bool {
        let mut inner = self.inner.lock();
        let Some(pending) = inner.pipeline.applied() else {
            return false;
        };
        let result = match outcome {
            Outcome::Reply(result) => result,
            // The session has moved on to another connection: this one is closed without a reply.
            Outcome::Moved | Outcome::Refused | Outcome::Attached(_) => {
                inner.phase = Phase::Closed;
                inner.pipeline.clear();
                return self.outbox.close();
            }
        };
        let closing = pending.opcode == op::CLOSE_SESSION && result.is_ok();
        let woken = self.reply(&pending, machine.zxid(), result, now_ms);
        if closing {
            inner.phase = Phase::Closed;
            inner.pipeline.clear();
            return self.outbox.close() || woken;
        }
        self.run(&mut inner, machine, watches, now_ms) || woken
    }

    /// A read-index round ended. True: the task must be woken.
    pub(super) fn sync_released(
        &self,
        machine: &Machine,
        watches: &Mutex<Watches>,
        now_ms: u64,
    ) -> bool {
        let mut inner = self.inner.lock();
        inner.pipeline.release_sync();
        self.run(&mut inner, machine, watches, now_ms)
    }

    /// The handshake's command was applied. True: the task must be woken.
    pub(super) fn connected(&self, outcome: Outcome) -> bool {
        let mut inner = self.inner.lock();
        let Phase::Connecting { read_only } = inner.phase else {
            return false;
        };
        let read_only = read_only.map(|_| false);
        match outcome {
            Outcome::Attached(Attached {
                session,
                generation,
                timeout_ms,
                password,
                ..
            }) => {
                inner.phase = Phase::Open;
                inner.session = session;
                inner.generation = generation;
                self.stats.session.store(session.0, Ordering::Relaxed);
                self.stats.timeout_ms.store(timeout_ms, Ordering::Relaxed);
                let response = ConnectResponse {
                    timeout_ms,
                    session,
                    password,
                    read_only,
                };
                self.outbox.push(Outgoing::Connect(response))
            }
            _ => {
                inner.phase = Phase::Closed;
                let woken = self
                    .outbox
                    .push(Outgoing::Connect(ConnectResponse::refused(read_only)));
                self.outbox.close() || woken
            }
        }
    }

    /// A watch of this connection fired. True: the task must be woken.
    pub(super) fn event(&self, event: WatcherEvent) -> bool {
        self.outbox.push(Outgoing::Event(event))
    }

    /// Closes at once; what is queued is still sent if the socket takes it.
    fn close_now(&self) {
        if self.finish() {
            self.wake();
        }
    }

    /// Answers everything that does not wait. True: the task must be woken.
    fn run(
        &self,
        inner: &mut Inner,
        machine: &Machine,
        watches: &Mutex<Watches>,
        now_ms: u64,
    ) -> bool {
        let mut woken = false;
        while let Some(pending) = inner.pipeline.next_runnable() {
            let zxid = machine.zxid();
            match &pending.kind {
                Kind::Read(request)
                    if inner.pipeline.is_empty() && is_large(request, machine, inner.session) =>
                {
                    let Kind::Read(request) = pending.kind else {
                        unreachable!("seen above")
                    };
                    let kind = Kind::Large(Some(request));
                    inner.pipeline.park(Pending { kind, ..pending });
                    // For the task to go on with it.
                    return self.outbox.nudge() || woken;
                }
                Kind::Read(request) => {
                    let (result, events) = self.read(request, inner.session, machine, watches);
                    for event in events {
                        woken |= self.event(event);
                    }
                    woken |= self.reply(&pending, zxid, result, now_ms);
                }
                Kind::Sync { path, .. } => {
                    let answer = Ok(Answer::Echo(path.clone()));
                    woken |= self.reply(&pending, zxid, answer, now_ms);
                }
                Kind::Answered {
                    result,
                    then_close,
                    zxid: header,
                } => {
                    let zxid = match header {
                        HeaderZxid::Applied => zxid,
                        HeaderZxid::Zero => Zxid(0),
                        HeaderZxid::Unknown => Zxid(-1),
                    };
                    woken |= self.reply(&pending, zxid, result.clone(), now_ms);
                    if *then_close {
                        inner.phase = Phase::Closed;
                        inner.pipeline.clear();
                        woken |= self.outbox.close();
                    }
                }
                Kind::Write | Kind::Large(_) => unreachable!("they are not runnable"),
            }
        }
        woken
    }

    /// Answers a read from the present state, with the events that must go before the reply.
    fn read(
        &self,
        request: &Request,
        session: SessionId,
        machine: &Machine,
        watches: &Mutex<Watches>,
    ) -> (Result<Answer, ErrorCode>, Vec<WatcherEvent>) {
        let identities = self.identities();
        let caller = Caller {
            session,
            identities: &identities,
        };
        let watch = |path: &Text, mode| self.watch(watches, path, mode);
        let mut events = Vec::new();
        let result = match request {
            Request::Ping => Ok(Answer::Empty),
            Request::WhoAmI => Ok(Answer::WhoAmI(self.who_am_i(&identities))),
            Request::Exists {
                path,
                watch: wanted,
            } => {
                let result = machine.read(request, &caller);
                if *wanted && matches!(result, Ok(_) | Err(ErrorCode::NoNode)) {
                    watch(path, WatchMode::Data).and(result)
                } else {
                    result
                }
            }
            Request::GetData {
                path,
                watch: wanted,
            } => {
                let result = machine.read(request, &caller);
                if *wanted && result.is_ok() {
                    watch(path, WatchMode::Data).and(result)
                } else {
                    result
                }
            }
            Request::GetChildren {
                path,
                watch: wanted,
                ..
            } => {
                let result = machine.read(request, &caller);
                if *wanted && result.is_ok() {
                    watch(path, WatchMode::Child).and(result)
                } else {
                    result
                }
            }
            Request::AddWatch { path, mode } => match mode {
                0 => watch(path, WatchMode::Persistent).map(|()| Answer::Zero),
                1 => watch(path, WatchMode::PersistentRecursive).map(|()| Answer::Zero),
                _ => Err(ErrorCode::MarshallingError),
            },
            Request::CheckWatches { path, kind } => {
                watch_outcome(*kind, || watches.lock().contains(self.id, path, *kind))
            }
            Request::RemoveWatches { path, kind } => {
                watch_outcome(*kind, || watches.lock().remove(self.id, path, *kind))
            }
            Request::SetWatches(set) => {
                let mut rearm = Rearm::new(set.clone());
                events = self.rearm(&mut rearm, machine, &mut watches.lock());
                Ok(Answer::Empty)
            }
            other => machine.read(other, &caller),
        };
        (result, events)
    }

    fn watch(
        &self,
        watches: &Mutex<Watches>,
        path: &Text,
        mode: WatchMode,
    ) -> Result<(), ErrorCode> {
        watches.lock().add(self.id, path, mode).map_err(|_| {
            self.shared.metrics.watches_refused.add(1);
            ErrorCode::QuotaExceeded
        })
    }

    /// Sets the next watches of a client that came back, or reports what it missed (§6.6).
    fn rearm(
        &self,
        rearm: &mut Rearm,
        machine: &Machine,
        watches: &mut Watches,
    ) -> Vec<WatcherEvent> {
        let since = rearm.relative_zxid;
        let mut events = Vec::new();
        for (list, path) in rearm.take() {
            let stat = match list {
                List::Persistent | List::Recursive => None,
                _ => machine.peek(&path),
            };
            let set_or_missed = match (list, stat) {
                (List::Data | List::Child, None) => Err(EventType::NodeDeleted),
                (List::Data, Some(stat)) if stat.mzxid > since => Err(EventType::NodeDataChanged),
                (List::Child, Some(stat)) if stat.pzxid > since => {
                    Err(EventType::NodeChildrenChanged)
                }
                (List::Exist, Some(_)) => Err(EventType::NodeCreated),
                (List::Data, Some(_)) | (List::Exist, None) => Ok(WatchMode::Data),
                (List::Child, Some(_)) => Ok(WatchMode::Child),
                (List::Persistent, _) => Ok(WatchMode::Persistent),
                (List::Recursive, _) => Ok(WatchMode::PersistentRecursive),
            };
            match set_or_missed {
                Err(kind) => events.push(WatcherEvent {
                    kind,
                    path,
                    zxid: WatcherEvent::SYNTHETIC,
                }),
                Ok(mode) if watches.add(self.id, &path, mode).is_err() => {
                    // No error code would keep the client from relying on its watch.
                    self.shared.metrics.watches_refused.add(1);
                    let _ = self.outbox.close();
                    break;
                }
                Ok(_) => {}
            }
        }
        events
    }

    /// One entry per identity: the user of a digest, the address of an ip (§3.6).
    fn who_am_i(&self, identities: &[Id]) -> Vec<Id> {
        let skip_acl = self.shared.options.auth.skip_acl;
        let visible = identities
            .iter()
            .filter(|id| !(skip_acl && **id == auth::super_identity()));
        let shown = |id: &Id| match id.scheme.as_str() {
            "digest" => {
                let user = id.id.split(':').next().unwrap_or_default();
                Id {
                    scheme: id.scheme.clone(),
                    id: user.into(),
                }
            }
            _ => id.clone(),
        };
        visible.map(shown).collect()
    }

    fn reply(
        &self,
        pending: &Pending,
        zxid: Zxid,
        result: Result<Answer, ErrorCode>,
        now_ms: u64,
    ) -> bool {
        let (error, answer) = match result {
            Ok(answer) => (0, answer),
            Err(code) => (code.number(), Answer::Empty),
        };
        // A ping is answered with its own xid, whatever the client sent (§2.5).
        let xid = if pending.opcode == op::PING {
            xid::PING
        } else {
            pending.xid
        };
        self.note_answer(pending, zxid, now_ms);
        let outgoing = Outgoing::Reply(ReplyHeader { xid, zxid, error }, answer);
        match pending.kind {
            Kind::Large(_) => self.outbox.fill(outgoing),
            _ => self.outbox.push(outgoing),
        }
    }

    /// Counts answers that were given as soon as they were asked for.
    fn note_answers(&self, count: u64, bytes: usize, zxid: Zxid, now_ms: u64) {
        if count == 0 {
            return;
        }
        let stats = &self.stats;
        stats.last_zxid.store(zxid.0, Ordering::Relaxed);
        stats.last_answered_ms.store(now_ms, Ordering::Relaxed);
        stats.last_latency_ms.store(0, Ordering::Relaxed);
        stats.min_latency_ms.store(0, Ordering::Relaxed);
        stats.answered.fetch_add(count, Ordering::Relaxed);
        self.outbox.passed(count, bytes);
        self.shared.metrics.request_latency.note_many(0, count);
        self.shared.metrics.readlatency.note_many(0, count);
    }

    fn note_answer(&self, pending: &Pending, zxid: Zxid, now_ms: u64) {
        let latency_ms = now_ms.saturating_sub(pending.since_ms);
        let stats = &self.stats;
        stats.last_zxid.store(zxid.0, Ordering::Relaxed);
        stats.last_answered_ms.store(now_ms, Ordering::Relaxed);
        stats.last_latency_ms.store(latency_ms, Ordering::Relaxed);
        stats
            .min_latency_ms
            .fetch_min(latency_ms, Ordering::Relaxed);
        stats
            .max_latency_ms
            .fetch_max(latency_ms, Ordering::Relaxed);
        stats
            .total_latency_ms
            .fetch_add(latency_ms, Ordering::Relaxed);
        stats.answered.fetch_add(1, Ordering::Relaxed);
        self.shared.note_latency(pending.opcode, latency_ms);
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id)
            .field("peer", &self.peer)
            .finish()
    }
}

/// What stopped a run of frames.
enum Next {
    /// There is no whole frame, or none is wanted.
    Stop,
    /// The next frame is a read that can be answered now, with the state at hand.
    Read,
    /// This frame needs a look of its own.
    Single(Bytes),
}

/// Takes the frame that `input` starts with, without its length.
fn split_frame(input: &mut BytesMut, length: usize) -> Bytes {
    input.advance(4);
    input.split_to(length).freeze()
}

fn is_read(opcode: i32) -> bool {
    matches!(opcode, op::GET_DATA | op::EXISTS)
}

/// Whether a read is not for everyone to wait for.
fn is_large(request: &Request, machine: &Machine, session: SessionId) -> bool {
    match request {
        Request::SetWatches(set) => rearmed(set) > NODES_AT_ONCE,
        other => machine.is_large(other, session),
    }
}

/// The same for one that waits for a write, after which more may be there. Lists are few, see
/// [`LISTS_BEHIND_WRITE_MAX`].
fn may_become_large(request: &Request, machine: &Machine, session: SessionId) -> bool {
    matches!(
        request,
        Request::MultiRead(_) | Request::GetAllChildrenNumber { .. }
    ) || is_large(request, machine, session)
}

fn answered(result: Result<Answer, ErrorCode>, then_close: bool, zxid: HeaderZxid) -> Kind {
    Kind::Answered {
        result,
        then_close,
        zxid,
    }
}

/// `checkWatches` and `removeWatches`: types 1 to 5, and the watch must be there (§6.8).
fn watch_outcome(kind: i32, found: impl FnOnce() -> bool) -> Result<Answer, ErrorCode> {
    if !(1..=5).contains(&kind) {
        Err(ErrorCode::MarshallingError)
    } else if found() {
        Ok(Answer::Empty)
    } else {
        Err(ErrorCode::NoWatcher)
    }
}

fn identity_to_log(id: &Id) -> log::Identity {
    log::Identity {
        scheme: id.scheme.to_string(),
        id: id.id.to_string(),
    }
}

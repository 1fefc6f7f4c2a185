//! One client connection: the protocol's state machine, without its socket.
//!
//! Frames go in through [`Connection::receive`], which answers what it can at once; what has to
//! wait comes out through [`Connection::take_output`]. The shell and the simulator drive it alike.
//! A connection owns no truth: its session lives in the machine, its watches in the watch table.
//!
//! Here is what takes in runs of frames; the rest is in `handshake`, `requests` (frames that
//! need a look of their own), `answers` and `large`.
//!
//! Locks are taken in one order only: machine → registry → connection → watches → identities or
//! outbox.

mod answers;
mod handshake;
mod large;
mod local;
mod requests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, Ordering};

use bytes::{Buf as _, Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};

use crate::machine::{Caller, NEAR_AT_ONCE};
use crate::watch::ConnectionId;
use crate::wire::{
    ConnectRequest, FrameLength, HEADER_BYTES, Id, Request, SessionId, frame_length, op, request,
};

use super::outbox::{Outbox, Remaining};
use super::pipeline::{Kind, Pending, Pipeline};
use super::shared::{Shared, State, Submission};
use super::{auth, bounds};
use local::is_ephemeral;

/// Unanswered requests of one connection above which no more are read.
pub const REQUESTS_MAX: usize = 1_000;
/// Bytes of unanswered reads of one connection above which no more are read: a path may be as long
/// as a frame.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
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

/// Called when a connection has output, or something else to do, and its task does not look. It
/// may send at once, so none of the connection's locks may be held.
pub type Wake = Box<dyn Fn(News) + Send + Sync>;

/// How much whoever wakes connections has to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum News {
    /// Few are woken: the caller may just as well send what there is.
    OfFew,
    /// Many are woken, and the caller is not to be kept.
    OfMany,
}

pub struct Connection {
    id: ConnectionId,
    peer: SocketAddr,
    shared: Arc<Shared>,
    inner: Mutex<Inner>,
    identities: RwLock<Arc<[Id]>>,
    outbox: Outbox,
    wake: Wake,
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

/// How far one call of [`Connection::receive`] has come.
#[derive(Debug, Default)]
struct Progress {
    /// Taken.
    frames: usize,
    /// What is to be read for those before this one was brought near.
    near_until: usize,
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
    scope: Scope,
    /// [`Shared::takes`] when the newest fence was put up.
    fenced: Option<u64>,
}

/// Where the session of a connection is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scope {
    /// In the log.
    Global,
    /// Here alone.
    Local,
    /// Here alone, by a server that has no majority, for a client that only wants to read.
    ReadOnly,
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
    pub(super) fn new(id: ConnectionId, peer: SocketAddr, shared: Arc<Shared>, wake: Wake) -> Self {
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
                scope: Scope::Global,
                fenced: None,
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
    /// `clock` tells the engine's time in ms. It is asked under the locks: a thread that had waited
    /// for them, or did not run, would answer a session by a time at which it was still kept.
    ///
    /// # Errors
    ///
    /// If the connection has to be closed at once, without sending what is queued.
    pub fn receive(
        self: &Arc<Self>,
        input: &mut BytesMut,
        frame_bytes_max: usize,
        clock: impl Fn() -> u64,
        out: &mut BytesMut,
    ) -> Result<usize, Refused> {
        let mut progress = Progress::default();
        let began_ms = clock();
        let taken = self.take_all(input, frame_bytes_max, &clock, out, &mut progress);
        let frames = progress.frames;
        if frames > 0 {
            // Half a frame is no sign of life: who sends a byte now and then holds no session.
            self.heard(began_ms);
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
        clock: &impl Fn() -> u64,
        out: &mut BytesMut,
        progress: &mut Progress,
    ) -> Result<(), Refused> {
        loop {
            let mut next = self.take_run(None, input, frame_bytes_max, clock, out, progress);
            if matches!(next, Next::Read) {
                let state = self.shared.state.read();
                let state = Some(&*state);
                next = self.take_run(state, input, frame_bytes_max, clock, out, progress);
            }
            match next {
                Next::Stop => return Ok(()),
                Next::Read => {}
                Next::Single(frame) => {
                    progress.frames += 1;
                    if self.awaits_handshake() {
                        self.connect(frame, clock())?;
                    } else {
                        self.request(frame, clock())?;
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
        clock: &impl Fn() -> u64,
        out: &mut BytesMut,
        progress: &mut Progress,
    ) -> Next {
        let mut inner = self.inner.lock();
        let now_ms = clock();
        let may_answer = state.is_some() && self.outbox.take(out) == Remaining::Nothing;
        let is_full = !self.outbox.has_room();
        let most = DIRECT_BYTES_MAX.min(self.outbox.allowance());
        let before = out.len();
        let identities = state.map(|_| self.identities());
        let mut submissions = Vec::new();
        let is_fenced = self.shared.is_fenced();
        let mut answered = 0;
        let mut last = None;
        let next = loop {
            if !self.is_ready(&inner, now_ms) || is_full || out.len() > most {
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
            let is_read_only = inner.scope == Scope::ReadOnly;
            match opcode {
                _ if !matches!(inner.phase, Phase::Open) => {
                    break Next::Single(split_frame(input, length));
                }
                // It is not done.
                _ if is_read_only && is_write(opcode) => {
                    break Next::Single(split_frame(input, length));
                }
                _ if is_write(opcode) && inner.pipeline.holds_write() => break Next::Stop,
                op::GET_DATA | op::EXISTS | op::GET_CHILDREN | op::GET_CHILDREN2 | op::PING
                    if may_run && (!is_fenced || opcode == op::PING) =>
                {
                    let (Some(state), Some(identities)) = (state, &identities) else {
                        break Next::Read;
                    };
                    let caller = Caller {
                        session: inner.session,
                        identities,
                    };
                    if may_answer && progress.frames >= progress.near_until {
                        let near = bring_near(state, input, frame_bytes_max);
                        progress.near_until = progress.frames + near;
                    }
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
                    // It is refused.
                    if bounds::refusal(&decoded, || self.identities().len()).is_some() {
                        break Next::Single(frame);
                    }
                    let bytes = frame.len() - HEADER_BYTES;
                    let kind = if is_read(opcode) {
                        if is_fenced {
                            submissions.extend(self.fence(&mut inner, now_ms));
                        }
                        Kind::Read(decoded)
                    } else {
                        if is_ephemeral(&decoded) {
                            self.upgrade(&mut inner);
                        }
                        let command = self.command(&inner, opcode, body);
                        submissions.push(Submission::Write(self.clone(), command));
                        Kind::Write
                    };
                    inner.pipeline.push(Pending {
                        xid,
                        opcode,
                        since_ms: now_ms,
                        bytes,
                        kind,
                    });
                }
                _ => break Next::Single(split_frame(input, length)),
            }
            progress.frames += 1;
            last = Some((xid, opcode));
        };
        // While the pipeline is locked, so that the order of commands is the order of requests.
        self.shared.submit(submissions);
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

    /// Puts up a fence for a read that comes now, if the newest one will not do: its round vouches
    /// only for what was answered before it began. What is returned must be submitted.
    fn fence(self: &Arc<Self>, inner: &mut Inner, now_ms: u64) -> Option<Submission> {
        let takes = self.shared.takes();
        if inner.fenced == Some(takes) {
            return None;
        }
        inner.fenced = Some(takes);
        inner.pipeline.push(Pending {
            xid: 0,
            opcode: op::SYNC,
            since_ms: now_ms,
            bytes: 0,
            kind: Kind::Fence { released: false },
        });
        Some(Submission::Barrier(self.clone()))
    }

    /// False: the shell must not hand in more frames for now.
    pub fn wants_input(&self, now_ms: u64) -> bool {
        let ready = self.is_ready(&self.inner.lock(), now_ms);
        ready && self.outbox.has_room()
    }

    fn is_ready(&self, inner: &Inner, now_ms: u64) -> bool {
        match inner.phase {
            Phase::Fresh => true,
            Phase::Open => {
                !self.is_held_back(&inner.pipeline)
                    && !inner.pipeline.is_ending()
                    && self.may_answer(inner.scope, now_ms)
            }
            Phase::Behind { .. } | Phase::Connecting { .. } | Phase::Closed => false,
        }
    }

    /// Whether what this server has is what a session of this scope may be shown.
    fn may_answer(&self, scope: Scope, now_ms: u64) -> bool {
        match scope {
            Scope::Global => {
                let timeout_ms = self.stats.timeout_ms.load(Ordering::Relaxed);
                self.shared.may_answer(timeout_ms, now_ms)
            }
            // Nobody else can end it, so that only the age of what is here counts (§9.2).
            Scope::Local => {
                let limit_ms = self.shared.options.sync_limit_ms;
                self.shared.may_answer_for(limit_ms, now_ms)
            }
            // If not, it is about to be closed.
            Scope::ReadOnly => self.shared.is_read_only(),
        }
    }

    /// How long it may stay open while no majority is heard of, in ms.
    pub(super) fn silence_max_ms(&self, sync_limit_ms: u64) -> u64 {
        let scope = self.inner.lock().scope;
        match (scope, self.timeout_ms()) {
            (Scope::ReadOnly, _) => u64::MAX,
            (Scope::Local, _) | (Scope::Global, 0) => sync_limit_ms,
            // The last ping that was told may be a third of the timeout older.
            (Scope::Global, timeout_ms) => sync_limit_ms.min(timeout_ms / 2),
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
            || pipeline.bytes() >= REQUEST_BYTES_MAX
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

    /// Encodes what is to be sent onto `out`.
    pub fn take_output(&self, out: &mut BytesMut) -> Remaining {
        self.outbox.take(out)
    }

    /// The socket is gone: nothing can be sent any more. The session lives on until its timeout.
    pub fn lost(&self) {
        while self.lost_step() {}
    }

    /// The same for a fraction of a millisecond: a client may leave a million watches. True: call
    /// again.
    pub fn lost_step(&self) -> bool {
        if !self.gone.swap(true, Ordering::AcqRel) {
            self.outbox.abandon();
            {
                let mut inner = self.inner.lock();
                inner.phase = Phase::Closed;
                inner.pipeline.clear();
            }
            self.shared.disconnect(self);
        }
        self.shared.forget_watches(self)
    }

    pub fn id(&self) -> ConnectionId {
        self.id
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The timeout of its session, in ms; 0 while there is none.
    pub(super) fn timeout_ms(&self) -> u64 {
        u64::try_from(self.stats.timeout_ms.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Bytes that are queued.
    pub fn queued(&self) -> usize {
        self.outbox.bytes()
    }

    /// Whether there is more to do than to send: a large read has its turn.
    pub fn needs_task(&self) -> bool {
        self.inner.lock().pipeline.large().is_some()
    }

    /// Whether the client has not asked for a session yet.
    pub fn awaits_handshake(&self) -> bool {
        matches!(self.inner.lock().phase, Phase::Fresh)
    }

    /// Whether the client waits to be told of its session.
    pub(super) fn is_connecting(&self) -> bool {
        matches!(self.inner.lock().phase, Phase::Connecting { .. })
    }

    /// Whether it is served by a server without a majority.
    pub(super) fn is_read_only(&self) -> bool {
        self.inner.lock().scope == Scope::ReadOnly
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

    pub(super) fn wake(&self, news: News) {
        (self.wake)(news);
    }

    #[cfg(test)]
    pub(super) fn is_locked(&self) -> bool {
        self.inner.is_locked() || self.outbox.is_locked()
    }

    /// Closes after what is queued was sent. True: the task must be woken.
    pub(super) fn finish(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.phase = Phase::Closed;
        inner.pipeline.clear();
        drop(inner);
        self.outbox.close()
    }

    /// Closes at once; what is queued is still sent if the socket takes it.
    fn close_now(&self) {
        if self.finish() {
            self.wake(News::OfFew);
        }
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

/// Prepares for the reads that `input` starts with, if they are more than one: pings may stand
/// between them. Returns how many frames need not be looked at again.
fn bring_near(state: &State, input: &[u8], frame_bytes_max: usize) -> usize {
    let mut paths = [""; NEAR_AT_ONCE];
    let (mut found, mut frames, mut rest) = (0, 0, input);
    while found < paths.len()
        && let FrameLength::Body(length) = frame_length(rest, frame_bytes_max)
        && let Some(frame) = rest.get(4..4 + length)
        && let Some(opcode) = request::int_at(frame, 4)
    {
        match opcode {
            op::PING => {}
            op::GET_DATA | op::EXISTS | op::GET_CHILDREN | op::GET_CHILDREN2 => {
                let Some((path, _)) = request::path_and_watch(&frame[HEADER_BYTES..]) else {
                    break;
                };
                paths[found] = path;
                found += 1;
            }
            _ => break,
        }
        frames += 1;
        rest = &rest[4 + length..];
    }
    if found > 1 {
        state.machine.bring_near(paths[..found].iter().copied());
    }
    frames
}

/// Takes the frame that `input` starts with, without its length.
fn split_frame(input: &mut BytesMut, length: usize) -> Bytes {
    input.advance(4);
    input.split_to(length).freeze()
}

/// Whether it is answered when its command is applied.
pub(super) fn is_write(opcode: i32) -> bool {
    matches!(
        opcode,
        op::CREATE
            | op::CREATE2
            | op::CREATE_CONTAINER
            | op::CREATE_TTL
            | op::DELETE
            | op::SET_DATA
            | op::SET_ACL
            | op::MULTI
            | op::RECONFIG
            | op::CLOSE_SESSION
    )
}

fn is_read(opcode: i32) -> bool {
    matches!(opcode, op::GET_DATA | op::EXISTS)
}

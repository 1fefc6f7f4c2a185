//! Answers: at once, when a write is applied, and then of what waited for it.

use std::sync::atomic::Ordering;

use bytes::BytesMut;
use parking_lot::Mutex;

use crate::engine::auth;
use crate::engine::large::{List, Rearm, rearmed};
use crate::engine::outbox::Outgoing;
use crate::engine::pipeline::{HeaderZxid, Kind, Pending};
use crate::engine::shared::State;
use crate::machine::{Caller, Machine, NODES_AT_ONCE, Outcome};
use crate::watch::{WatchMode, Watches};
use crate::wire::{
    Answer, ErrorCode, EventType, Id, ReplyHeader, Request, SessionId, Text, WatcherEvent, Zxid,
    encode_reply_with, op, request, xid,
};

use super::{Connection, DIRECT_CHILDREN_MAX, DIRECT_DATA_MAX, Inner, Phase};

impl Connection {
    /// Answers a read at once, onto `out`. False: it is not one for that, and nothing was done.
    pub(super) fn answer(
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
            _ => match machine.few_children(path, DIRECT_CHILDREN_MAX, caller) {
                Ok(None) => return false,
                Ok(Some((names, stat))) => {
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

    /// The oldest write of this connection was applied. True: the task must be woken.
    pub(in crate::engine) fn write_applied(
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
            // What the client reads late must not keep the whole request that it lies in.
            Outcome::Reply(result) => result.map(Answer::detached),
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
    pub(in crate::engine) fn sync_released(
        &self,
        machine: &Machine,
        watches: &Mutex<Watches>,
        now_ms: u64,
    ) -> bool {
        let mut inner = self.inner.lock();
        inner.pipeline.release_sync();
        self.run(&mut inner, machine, watches, now_ms)
    }

    /// A watch of this connection fired. True: the task must be woken.
    pub(in crate::engine) fn event(&self, event: WatcherEvent) -> bool {
        self.outbox.push(Outgoing::Event(event))
    }

    /// Answers everything that does not wait. True: the task must be woken.
    pub(super) fn run(
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
                Kind::Write | Kind::Fence { .. } | Kind::Large(_) => {
                    unreachable!("they are not runnable")
                }
            }
        }
        // A fence is not answered, so nothing else may tell the task of its turn.
        let has_turn = inner.pipeline.large().is_some();
        (has_turn && self.outbox.nudge()) || woken
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

    pub(super) fn watch(
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
    pub(super) fn rearm(
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
                    // Read late, it must not keep the whole request.
                    path: Text::from(path.as_str()),
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

    pub(super) fn reply(
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
    pub(super) fn note_answers(&self, count: u64, bytes: usize, zxid: Zxid, now_ms: u64) {
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

/// Whether a read is not for everyone to wait for.
pub(super) fn is_large(request: &Request, machine: &Machine, session: SessionId) -> bool {
    match request {
        Request::SetWatches(set) => rearmed(set) > NODES_AT_ONCE,
        other => machine.is_large(other, session),
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

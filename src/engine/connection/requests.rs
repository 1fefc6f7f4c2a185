//! Requests that need a look of their own; [`Connection::receive`] takes in the others.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use prost::Message as _;

use crate::engine::pipeline::{HeaderZxid, Kind, Pending};
use crate::engine::shared::Submission;
use crate::engine::{auth, bounds};
use crate::machine::{self, Machine};
use crate::proto::log;
use crate::wire::{Answer, ErrorCode, HEADER_BYTES, Id, Reader, Request, SessionId, op};

use super::answers::is_large;
use super::handshake::identity_to_log;
use super::local::is_ephemeral;
use super::{Connection, Phase, Refused, Scope, is_write};

impl Connection {
    pub(super) fn request(self: &Arc<Self>, frame: Bytes, now_ms: u64) -> Result<(), Refused> {
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

        let bytes = body.len();
        let pending = |kind| Pending {
            xid,
            opcode,
            since_ms: now_ms,
            bytes,
            kind,
        };
        let (scope, session) = {
            let inner = self.inner.lock();
            (inner.scope, inner.session)
        };
        if scope == Scope::ReadOnly && changes_or_asks_the_leader(opcode) {
            let kind = answered(Err(ErrorCode::NotReadOnly), false, HeaderZxid::Applied);
            self.answer_in_order(pending(kind), now_ms);
            return Ok(());
        }
        let request = match Request::decode(opcode, body.clone()) {
            Ok(request) => request,
            Err(_) => {
                let kind = answered(Err(ErrorCode::MarshallingError), false, HeaderZxid::Applied);
                self.answer_in_order(pending(kind), now_ms);
                return Ok(());
            }
        };
        if let Some(code) = bounds::refusal(&request, || self.identities().len()) {
            let kind = answered(Err(code), false, HeaderZxid::Applied);
            self.answer_in_order(pending(kind), now_ms);
            return Ok(());
        }
        match request {
            Request::CloseSession if scope != Scope::Global => {
                self.shared.local.lock().end(session, self.id);
                let kind = answered(Ok(Answer::Empty), true, HeaderZxid::Applied);
                self.answer_in_order(pending(kind), now_ms);
            }
            Request::Create(_)
            | Request::Delete { .. }
            | Request::SetData { .. }
            | Request::SetAcl { .. }
            | Request::Multi(_)
            | Request::Reconfig(_)
            | Request::CloseSession => {
                let is_ephemeral = is_ephemeral(&request);
                self.submit_write(pending(Kind::Write), opcode, body, is_ephemeral);
            }
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

    /// `is_ephemeral`: whether its session must be one that all servers know.
    fn submit_write(
        self: &Arc<Self>,
        pending: Pending,
        opcode: i32,
        body: Bytes,
        is_ephemeral: bool,
    ) {
        let mut inner = self.inner.lock();
        if !matches!(inner.phase, Phase::Open) {
            return;
        }
        inner.pipeline.push(pending);
        if is_ephemeral {
            self.upgrade(&mut inner);
        }
        let command = self.command(&inner, opcode, body);
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
        let added = auth::authenticate(scheme, auth, &self.shared.options.auth);
        let kind = if added.is_some_and(|added| self.add_identities(added)) {
            answered(Ok(Answer::Empty), false, HeaderZxid::Zero)
        } else {
            self.shared.metrics.auth_failed_count.add(1);
            answered(Err(ErrorCode::AuthFailed), true, HeaderZxid::Zero)
        };
        self.answer_in_order(pending(kind), now_ms);
    }

    /// False: the client would have too many.
    fn add_identities(self: &Arc<Self>, added: Vec<Id>) -> bool {
        let new: Vec<Id> = {
            let mut identities = self.identities.write();
            let new: Vec<Id> = added
                .into_iter()
                .filter(|id| !identities.contains(id))
                .collect();
            let all: Arc<[Id]> = identities.iter().chain(&new).cloned().collect();
            if !auth::are_few(&all) {
                tracing::warn!(
                    client = %self.peer,
                    "refused: a session has at most {} identities, in at most {} bytes",
                    auth::IDENTITIES_MAX,
                    auth::IDENTITY_BYTES_MAX
                );
                return false;
            }
            *identities = all;
            new
        };
        if new.is_empty() {
            return true;
        }
        let inner = self.inner.lock();
        if inner.scope != Scope::Global {
            return true;
        }
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
        true
    }

    /// Answers when everything before is answered: now, if nothing waits.
    pub(super) fn answer_in_order(self: &Arc<Self>, pending: Pending, now_ms: u64) {
        let state = self.shared.state.read();
        let mut inner = self.inner.lock();
        if !matches!(inner.phase, Phase::Open) {
            return;
        }
        let mut pending = pending;
        if let Kind::Read(request) = &pending.kind
            && is_of_state(request)
            && self.shared.is_fenced()
        {
            let fence = self.fence(&mut inner, now_ms);
            self.shared.submit(fence);
        }
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
}

/// What a server without a majority refuses (§9.5).
fn changes_or_asks_the_leader(opcode: i32) -> bool {
    let is_end = opcode == op::CLOSE_SESSION;
    (is_write(opcode) && !is_end) || matches!(opcode, op::SYNC | op::CHECK)
}

/// Whether the answer says something of the replicated state, or of what changed in it since.
fn is_of_state(request: &Request) -> bool {
    !matches!(
        request,
        Request::Ping
            | Request::WhoAmI
            | Request::CheckWatches { .. }
            | Request::RemoveWatches { .. }
    )
}

/// The same for one that waits for a write, after which more may be there. Lists are few, see
/// [`LISTS_BEHIND_WRITE_MAX`].
fn may_become_large(request: &Request, machine: &Machine, session: SessionId) -> bool {
    matches!(
        request,
        Request::MultiRead(_) | Request::GetAllChildrenNumber { .. }
    ) || is_large(request, machine, session)
}

pub(super) fn answered(
    result: Result<Answer, ErrorCode>,
    then_close: bool,
    zxid: HeaderZxid,
) -> Kind {
    Kind::Answered {
        result,
        then_close,
        zxid,
    }
}

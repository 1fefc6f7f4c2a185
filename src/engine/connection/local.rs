//! Sessions that no log knows: see `engine::local`.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use crate::engine::local::Return;
use crate::engine::shared::Submission;
use crate::machine::{self, Attached, FIRST_GENERATION, LOCAL_GENERATION};
use crate::proto::log;
use crate::wire::request::Create;
use crate::wire::{ConnectRequest, CreateMode, Request, SubRequest, op};

use super::handshake::identity_to_log;
use super::{Connection, Inner, News, Phase, Scope};

impl Connection {
    /// Gives the client a session that is known here alone, or the one that it has. False: it asks
    /// for one that is not known here.
    pub(super) fn connect_local(
        self: &Arc<Self>,
        request: &ConnectRequest,
        scope: Scope,
        now_ms: u64,
    ) -> bool {
        let timeout_ms = self.timeout_for(request);
        let read_only = request.read_only.map(|_| scope == Scope::ReadOnly);
        let (session, password) = if request.session.0 == 0 {
            let (session, password) = (self.shared.next_session(), (self.shared.random)());
            let mut local = self.shared.local.lock();
            local.open(session, password, timeout_ms, self.clone(), now_ms);
            (session, password)
        } else {
            let (session, password) = (request.session, &request.password[..]);
            let mut local = self.shared.local.lock();
            let returned = local.attach(session, password, timeout_ms, self, now_ms);
            drop(local);
            match returned {
                Return::Unknown => return false,
                Return::Refused => {
                    if self.refuse(read_only) {
                        self.wake(News::OfFew);
                    }
                    return true;
                }
                Return::Attached(password, before) => {
                    if let Some(before) = before
                        && before.finish()
                    {
                        before.wake(News::OfFew);
                    }
                    (session, password)
                }
            }
        };
        let mut inner = self.inner.lock();
        if matches!(inner.phase, Phase::Closed) {
            return true;
        }
        inner.scope = scope;
        let attached = Attached {
            session,
            generation: LOCAL_GENERATION,
            timeout_ms,
            password,
            created: request.session.0 == 0,
        };
        let wakes = self.welcome(&mut inner, attached, read_only);
        drop(inner);
        if wakes {
            self.wake(News::OfFew);
        }
        true
    }

    /// The session goes over into the log, unless it is there, or may not. Nobody has to wait for
    /// that: what is submitted behind it is applied behind it.
    pub(super) fn upgrade(self: &Arc<Self>, inner: &mut Inner) {
        if inner.scope != Scope::Local || !self.shared.options.local_session_upgrades {
            return;
        }
        // Held until it is submitted: a client that comes back on another connection meanwhile
        // finds its session here, or asks for it behind that.
        let mut local = self.shared.local.lock();
        let Some((password, timeout_ms)) = local.end(inner.session, self.id) else {
            // It is over, or has gone over to another connection; this one is about to be closed.
            return;
        };
        inner.scope = Scope::Global;
        inner.generation = FIRST_GENERATION;
        let body = log::CreateSession {
            timeout_ms,
            password: Bytes::copy_from_slice(&password),
            identities: self.identities().iter().map(identity_to_log).collect(),
        };
        let command = log::Command {
            session: inner.session.0,
            generation: 0,
            op: machine::op::CREATE_SESSION,
            body: body.encode_to_vec().into(),
        };
        self.shared
            .submit([Submission::Upgrade(self.clone(), command)]);
    }

    /// A write of the client's, for the log.
    pub(super) fn command(&self, inner: &Inner, opcode: i32, body: Bytes) -> log::Command {
        let body = match inner.generation {
            LOCAL_GENERATION => {
                let identities = self.identities();
                let identities = identities.iter().map(identity_to_log).collect();
                let body = log::LocalWrite { identities, body };
                body.encode_to_vec().into()
            }
            _ => body,
        };
        log::Command {
            session: inner.session.0,
            generation: inner.generation,
            op: opcode,
            body,
        }
    }
}

/// Whether it asks for a znode that lives as long as its session.
pub(super) fn is_ephemeral(request: &Request) -> bool {
    let asks = |create: &Create| {
        let mode = CreateMode::from_flags(create.flags);
        create.opcode != op::CREATE_CONTAINER && mode.is_some_and(CreateMode::is_ephemeral)
    };
    match request {
        Request::Create(create) => asks(create),
        Request::Multi(operations) => operations
            .iter()
            .any(|operation| matches!(operation, SubRequest::Create(create) if asks(create))),
        _ => false,
    }
}

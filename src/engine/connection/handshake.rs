//! Asking for a session, and being given one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use prost::Message as _;

use crate::engine::outbox::Outgoing;
use crate::engine::shared::Submission;
use crate::machine::{self, Attached, LOCAL_SESSIONS, Outcome};
use crate::proto::log;
use crate::wire::{ConnectRequest, ConnectResponse, Id, Zxid, op};

use super::{Connection, Inner, Phase, Refused, Scope};

impl Connection {
    pub(super) fn connect(self: &Arc<Self>, frame: Bytes, now_ms: u64) -> Result<(), Refused> {
        let request = ConnectRequest::decode(frame).map_err(|_| Refused("malformed handshake"))?;
        self.shared.metrics.connection_request_count.add(1);
        let is_serving = self.shared.is_serving();
        let is_read_only = self.shared.is_read_only() && request.read_only == Some(true);
        if !is_serving && !is_read_only {
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
        let sessions = sessions + self.shared.local_session_count();
        let sessions_max = self.shared.options.sessions_max;
        if request.session.0 == 0 && sessions_max > 0 && sessions >= sessions_max {
            self.shared.metrics.sessions_refused.add(1);
            return Err(Refused("maxSessions reached"));
        }
        if !is_serving {
            return self.connect_read_only(&request, applied, now_ms);
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
        self.connect_serving(&request, now_ms);
        Ok(())
    }

    /// A server that serves everyone, and has caught up with the client, is asked for a session.
    fn connect_serving(self: &Arc<Self>, request: &ConnectRequest, now_ms: u64) {
        // Older members would take writes of such a session for those of one that is over.
        let is_local = self.shared.options.local_sessions && self.shared.level() >= LOCAL_SESSIONS;
        if !is_local || !self.connect_local(request, Scope::Local, now_ms) {
            self.submit_connect(request);
        }
    }

    /// A server without a majority is asked for a session by a client that only wants to read.
    fn connect_read_only(
        self: &Arc<Self>,
        request: &ConnectRequest,
        applied: Zxid,
        now_ms: u64,
    ) -> Result<(), Refused> {
        // Nothing will be newer while this lasts.
        if request.last_zxid_seen > applied {
            return Err(Refused("the client has seen more than there is here"));
        }
        if self.connect_local(request, Scope::ReadOnly, now_ms) {
            return Ok(());
        }
        // Whether it lives, only a majority knows (§9.5).
        Err(Refused("sessions of the ensemble need a majority"))
    }

    /// A client that was ahead of this server: goes on if it is not any more. False: it still is.
    pub(in crate::engine) fn retry_connect(self: &Arc<Self>, applied: Zxid, now_ms: u64) -> bool {
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
        self.connect_serving(&request, now_ms);
        true
    }

    /// The timeout that a client gets for the one it asks for, in ms.
    pub(super) fn timeout_for(&self, request: &ConnectRequest) -> i32 {
        let options = &self.shared.options;
        let timeout_ms = request.timeout_ms.clamp(
            options.min_session_timeout_ms,
            options.max_session_timeout_ms,
        );
        self.shared
            .note_timeout(self.peer, request.timeout_ms, timeout_ms);
        timeout_ms
    }

    fn submit_connect(self: &Arc<Self>, request: &ConnectRequest) {
        let timeout_ms = self.timeout_for(request);
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

    /// The handshake's command was applied. True: the task must be woken.
    pub(in crate::engine) fn connected(&self, outcome: Outcome) -> bool {
        let mut inner = self.inner.lock();
        let Phase::Connecting { read_only } = inner.phase else {
            return false;
        };
        let read_only = read_only.map(|_| false);
        if let Outcome::Attached(attached) = outcome {
            return self.welcome(&mut inner, attached, read_only);
        }
        drop(inner);
        self.refuse(read_only)
    }

    /// Tells the client of its session. True: the task must be woken.
    pub(super) fn welcome(
        &self,
        inner: &mut Inner,
        attached: Attached,
        read_only: Option<bool>,
    ) -> bool {
        let Attached {
            session,
            generation,
            timeout_ms,
            password,
            ..
        } = attached;
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

    /// Tells the client that its session is over. True: the task must be woken.
    pub(super) fn refuse(&self, read_only: Option<bool>) -> bool {
        self.inner.lock().phase = Phase::Closed;
        let response = ConnectResponse::refused(read_only);
        let woken = self.outbox.push(Outgoing::Connect(response));
        self.outbox.close() || woken
    }
}

pub(super) fn identity_to_log(id: &Id) -> log::Identity {
    log::Identity {
        scheme: id.scheme.to_string(),
        id: id.id.to_string(),
    }
}

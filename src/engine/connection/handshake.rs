//! Asking for a session, and being given one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use prost::Message as _;

use crate::engine::outbox::Outgoing;
use crate::engine::shared::Submission;
use crate::machine::{self, Attached, Outcome};
use crate::proto::log;
use crate::wire::{ConnectRequest, ConnectResponse, Id, Zxid, op};

use super::{Connection, Phase, Refused};

impl Connection {
    pub(super) fn connect(self: &Arc<Self>, frame: Bytes, now_ms: u64) -> Result<(), Refused> {
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

    /// The handshake's command was applied. True: the task must be woken.
    pub(in crate::engine) fn connected(&self, outcome: Outcome) -> bool {
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
}

pub(super) fn identity_to_log(id: &Id) -> log::Identity {
    log::Identity {
        scheme: id.scheme.to_string(),
        id: id.id.to_string(),
    }
}

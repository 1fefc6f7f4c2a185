//! The lives of sessions (architecture §2.6, 24; protocol facts §8.2–8.4).
//!
//! Time is the server's own: a pause of its process does not count, since it could hear nobody
//! then, and a start gives everyone a full timeout. Within that time a session that was heard may
//! not be ended, however its client moved between connections.

use std::collections::BTreeMap;

use zkraft::proto::log;
use zkraft::wire::{SessionId, op};

use super::{Group, Verdict, broken};
use crate::model::Model;
use crate::world::TICK_MS;

#[derive(Debug, Default)]
pub struct SessionCheck {
    /// When each session was heard last, in ms of the time that the server ran.
    heard: BTreeMap<SessionId, u64>,
    /// When the server began to serve, likewise.
    serving: u64,
}

impl SessionCheck {
    /// The server got a frame on the session's present connection.
    pub fn heard(&mut self, session: SessionId, ran_ms: u64) {
        let heard = self.heard.entry(session).or_default();
        *heard = ran_ms.max(*heard);
    }

    /// The session was created or attached. The client was heard when its handshake came, which
    /// may be long ago; the engine counts from its last tick.
    pub fn attached(&mut self, session: SessionId, ran_ms: u64) {
        self.heard(session, ran_ms.saturating_sub(TICK_MS));
    }

    /// The server serves after a start: everyone has a full timeout from now (§8.4).
    pub fn serving(&mut self, ran_ms: u64) {
        self.serving = ran_ms;
    }

    /// The leader wrote these commands of its own into the log.
    pub fn proposed(&self, commands: &[log::Command], ran_ms: u64, model: &Model) -> Verdict {
        for command in commands
            .iter()
            .filter(|command| command.op == op::CLOSE_SESSION)
        {
            let id = SessionId(command.session);
            let Some(session) = model.sessions.get(&id) else {
                continue;
            };
            if session.generation != command.generation {
                continue;
            }
            let heard = self.heard.get(&id).copied().unwrap_or(0).max(self.serving);
            let silent_ms = ran_ms.saturating_sub(heard);
            if silent_ms < session.timeout_ms as u64 {
                let timeout_ms = session.timeout_ms;
                return broken(
                    Group::Sessions,
                    format!("24: {id} ended after {silent_ms} ms of {timeout_ms} ms"),
                );
            }
        }
        Ok(())
    }
}

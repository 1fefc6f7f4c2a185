//! Sessions that one server keeps to itself (protocol facts §8.7, `engine::local`).
//!
//! No log knows them, so what is known here is what the server was seen to do: whom it gave such a
//! session, and when it heard its client last. Whoever comes back to that server in time has its
//! session; nobody has it anywhere else, before it goes over into the log with the first ephemeral.

use std::collections::BTreeMap;

use bytes::Bytes;
use zkraft::wire::SessionId;

use super::{ConnId, Group, Verdict, broken};

/// What it may take, besides the session's timeout, until its end is seen to, in ms.
const NOTICED_MS: u64 = 200;
/// How long a handshake may wait for the server to catch up, in ms.
const BEHIND_MS: u64 = 600;

/// The process of a server.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    pub server: usize,
    pub boot: u64,
}

/// What becomes of a session that no log knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Going {
    Stays,
    /// It goes over into the log.
    Goes,
}

#[derive(Clone, Debug)]
struct Local {
    at: Place,
    password: Bytes,
    timeout_ms: u64,
    holder: ConnId,
    /// In ms of the time that the process ran.
    heard_ms: u64,
    /// When it waited for an answer last: the server may not have read on until then.
    owed_ms: u64,
    /// When its client came back in time last, whatever became of the answer.
    came_ms: u64,
    is_over: bool,
    /// Its connection was lost while requests were not answered: the server may not have read on,
    /// and then the silence was not the client's.
    is_owed: bool,
}

impl Local {
    /// How long the server may have heard nothing of its client, at least.
    fn silent_ms(&self, ran_ms: u64) -> u64 {
        let heard_ms = self.heard_ms.max(self.owed_ms).max(self.came_ms);
        ran_ms.saturating_sub(heard_ms)
    }

    /// It is over after this silence.
    fn limit_ms(&self, bucket_ms: u64) -> u64 {
        self.timeout_ms + 2 * bucket_ms + NOTICED_MS
    }
}

#[derive(Debug, Default)]
pub struct LocalCheck {
    sessions: BTreeMap<SessionId, Local>,
    pub opened: u64,
    pub returned: u64,
    pub upgraded: u64,
}

impl LocalCheck {
    /// A client is told of a session of this server's own.
    pub fn opened(
        &mut self,
        id: SessionId,
        at: Place,
        (password, timeout_ms): (Bytes, i32),
        holder: ConnId,
        heard_ms: u64,
    ) -> Verdict {
        let local = Local {
            at,
            password,
            timeout_ms: timeout_ms as u64,
            holder,
            heard_ms,
            owed_ms: 0,
            came_ms: 0,
            is_over: false,
            is_owed: false,
        };
        self.opened += 1;
        match self.sessions.insert(id, local) {
            None => Ok(()),
            Some(_) => broken(Group::Local, format!("session id {id} came twice")),
        }
    }

    /// A client that came at this time is told that it has its session still.
    pub fn returned(
        &mut self,
        id: SessionId,
        at: Place,
        (password, timeout_ms): (&Bytes, i32),
        holder: ConnId,
        came_ms: u64,
        bucket_ms: u64,
    ) -> Verdict {
        let known = self.sessions.get_mut(&id).filter(|known| known.at == at);
        let Some(known) = known.filter(|known| !known.is_over && known.password == password) else {
            let what = format!("§8.7: {holder:?} got {id} at {at:?}, which has no such session");
            return broken(Group::Local, what);
        };
        let (silent_ms, limit_ms) = (known.silent_ms(came_ms), known.limit_ms(bucket_ms));
        let is_owed = std::mem::take(&mut known.is_owed);
        known.holder = holder;
        known.timeout_ms = timeout_ms as u64;
        known.heard_ms = known.heard_ms.max(came_ms);
        self.returned += 1;
        if silent_ms > limit_ms && !is_owed {
            let what = format!("24: local session {id} lives after {silent_ms} ms of silence");
            return broken(Group::Local, what);
        }
        Ok(())
    }

    /// A client comes to have its session again. In time, the server may count that, even if the
    /// client does not wait for the answer.
    pub fn comes(
        &mut self,
        id: SessionId,
        at: Place,
        password: &Bytes,
        ran_ms: u64,
        bucket_ms: u64,
    ) {
        let known = self.sessions.get_mut(&id).filter(|known| known.at == at);
        if let Some(known) = known.filter(|known| known.password == password)
            && known.silent_ms(ran_ms) <= known.limit_ms(bucket_ms)
        {
            known.came_ms = ran_ms;
        }
    }

    /// Whether a client that comes now must find its session.
    pub fn must_have(&self, id: SessionId, at: Place, password: &Bytes, came_ms: u64) -> bool {
        let known = self.sessions.get(&id).filter(|known| known.at == at);
        known.is_some_and(|known| {
            let silent_ms = came_ms.saturating_sub(known.heard_ms);
            !known.is_over && known.password == password && silent_ms + BEHIND_MS < known.timeout_ms
        })
    }

    /// A frame of its client came.
    pub fn heard(&mut self, id: SessionId, ran_ms: u64) {
        if let Some(known) = self.sessions.get_mut(&id) {
            known.heard_ms = ran_ms;
        }
    }

    /// Something that its client waited for is sent on this connection.
    pub fn answered(&mut self, id: SessionId, conn: ConnId, ran_ms: u64) {
        let known = self.sessions.get_mut(&id);
        if let Some(known) = known.filter(|known| known.holder == conn) {
            known.owed_ms = ran_ms;
        }
    }

    /// The connection that has it.
    pub fn holder(&self, id: SessionId) -> Option<ConnId> {
        self.sessions.get(&id).map(|known| known.holder)
    }

    /// Its connection is gone, and requests were not answered.
    pub fn owes(&mut self, id: SessionId, conn: ConnId) {
        if let Some(known) = self.sessions.get_mut(&id) {
            known.is_owed |= known.holder == conn;
        }
    }

    /// Its client ends it, or has asked for an ephemeral: it is none of these any more.
    pub fn ends(&mut self, id: SessionId) {
        if let Some(known) = self.sessions.get_mut(&id) {
            known.is_over = true;
        }
    }

    /// Whether the server may have ended it, or given it to another connection.
    pub fn may_be_over(&self, id: SessionId, conn: ConnId, ran_ms: u64) -> bool {
        self.sessions.get(&id).is_none_or(|known| {
            let silent_ms = ran_ms.saturating_sub(known.heard_ms);
            known.is_over || known.holder != conn || silent_ms >= known.timeout_ms
        })
    }

    /// Whether it has another connection now.
    pub fn is_elsewhere(&self, id: SessionId, conn: ConnId) -> bool {
        let known = self.sessions.get(&id);
        known.is_some_and(|known| known.holder != conn)
    }

    /// A session goes over into the log with this password and timeout.
    pub fn upgraded(&mut self, id: SessionId, password: &Bytes, timeout_ms: i32) -> Verdict {
        self.upgraded += 1;
        let known = self.sessions.get_mut(&id);
        match known {
            Some(known) if known.password == password && known.timeout_ms == timeout_ms as u64 => {
                known.is_over = true;
                Ok(())
            }
            known => broken(
                Group::Local,
                format!("{id} is another session in the log: {known:?}"),
            ),
        }
    }
}

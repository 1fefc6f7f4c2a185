//! Sessions that this server alone keeps: no log knows them, and no other server.
//!
//! They live as long as their clients are heard here and this process runs. Who comes back to
//! another server is told that its session is over (§8.7).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::watch::ConnectionId;
use crate::wire::SessionId;

use super::connection::{Connection, News};
use super::expiry::Expiry;
use super::{EXPIRIES_PER_TICK, Engine};

/// Sessions that ended and are remembered, so that their clients can be told.
const ENDED_MAX: usize = 10_000;

/// One session.
#[derive(Clone, Debug)]
struct LocalSession {
    password: [u8; 16],
    timeout_ms: i32,
    /// Its present connection, if that is not gone.
    holder: Option<Arc<Connection>>,
}

/// What became of an attempt to come back to a session.
#[derive(Debug)]
pub enum Return {
    /// It has this password; the connection that it had is to be closed.
    Attached([u8; 16], Option<Arc<Connection>>),
    /// It is over, or its password is another one.
    Refused,
    /// It never was one of these, as far as is known.
    Unknown,
}

/// The sessions of this server.
#[derive(Debug)]
pub struct LocalSessions {
    sessions: BTreeMap<SessionId, LocalSession>,
    expiry: Expiry,
    ended: BTreeSet<SessionId>,
}

impl LocalSessions {
    /// Lengths of an expiry bucket and of an engine tick.
    pub fn new(bucket_ms: u64, tick_ms: u64) -> Self {
        Self {
            sessions: BTreeMap::new(),
            expiry: Expiry::new(bucket_ms, tick_ms),
            ended: BTreeSet::new(),
        }
    }

    /// A session begins.
    pub fn open(
        &mut self,
        id: SessionId,
        password: [u8; 16],
        timeout_ms: i32,
        holder: Arc<Connection>,
        now_ms: u64,
    ) {
        let session = LocalSession {
            password,
            timeout_ms,
            holder: Some(holder),
        };
        self.sessions.insert(id, session);
        self.expiry.track(id, timeout_ms, now_ms);
    }

    /// A client comes back to its session.
    pub fn attach(
        &mut self,
        id: SessionId,
        password: &[u8],
        timeout_ms: i32,
        holder: &Arc<Connection>,
        now_ms: u64,
    ) -> Return {
        let Some(session) = self.sessions.get_mut(&id) else {
            return match self.ended.contains(&id) {
                true => Return::Refused,
                false => Return::Unknown,
            };
        };
        if session.password != password {
            return Return::Refused;
        }
        let before = session.holder.replace(holder.clone());
        session.timeout_ms = timeout_ms;
        self.expiry.track(id, timeout_ms, now_ms);
        Return::Attached(session.password, before)
    }

    /// The connection is gone; when its client was last heard.
    pub fn lost(&mut self, id: SessionId, holder: ConnectionId, heard_ms: u64) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.holder.take_if(|held| held.id() == holder).is_some() {
            self.expiry.touch(id, heard_ms);
        }
    }

    /// The session ends by its client's own wish, or is not one of these any more: its password and
    /// timeout, unless it is over or has another connection.
    pub fn end(&mut self, id: SessionId, holder: ConnectionId) -> Option<([u8; 16], i32)> {
        let held = self.sessions.get(&id)?.holder.as_ref();
        held.filter(|held| held.id() == holder)?;
        self.expiry.forget(id);
        let session = self.sessions.remove(&id)?;
        Some((session.password, session.timeout_ms))
    }

    /// All sessions end; their connections are to be closed.
    pub fn end_all(&mut self) -> Vec<Arc<Connection>> {
        self.ended.clear();
        let sessions = std::mem::take(&mut self.sessions);
        sessions.keys().for_each(|id| self.expiry.forget(*id));
        let holders = sessions.into_values().filter_map(|session| session.holder);
        holders.collect()
    }

    /// Time has passed, and these clients were heard then. Ends what was silent for too long, and
    /// returns the connections that are to be closed.
    pub fn advance(&mut self, now_ms: u64, heard: &[(SessionId, u64)]) -> Vec<Arc<Connection>> {
        self.expiry.advance(now_ms);
        for (id, heard_ms) in heard {
            self.expiry.touch(*id, *heard_ms);
        }
        let mut closed = Vec::new();
        for id in self.expiry.take_expired(EXPIRIES_PER_TICK) {
            closed.extend(self.sessions.remove(&id).and_then(|session| session.holder));
            self.expiry.forget(id);
            if self.ended.len() < ENDED_MAX {
                self.ended.insert(id);
            }
        }
        closed
    }

    /// The sessions that have a connection, and that.
    pub fn held(&self) -> Vec<(SessionId, Arc<Connection>)> {
        let held = self.sessions.iter();
        held.filter_map(|(id, session)| Some((*id, session.holder.clone()?)))
            .collect()
    }

    /// The sessions with their timeouts, in order.
    pub fn timeouts_ms(&self) -> impl Iterator<Item = (SessionId, i32)> {
        self.sessions
            .iter()
            .map(|(id, session)| (*id, session.timeout_ms))
    }

    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}

impl Engine {
    /// Keeps the time of this server's own sessions; ends them where they have no place any more.
    pub(super) fn look_after_local(&mut self) {
        let is_read_only = self.shared.is_read_only();
        let mut local = self.shared.local.lock();
        let held = local.held();
        let mut closed = match is_read_only || self.shared.options.local_sessions {
            true => Vec::new(),
            false => local.end_all(),
        };
        drop(local);
        if !is_read_only {
            // They come back, and may write then.
            let holders = held.iter().map(|(_, holder)| holder);
            closed.extend(holders.filter(|holder| holder.is_read_only()).cloned());
        }
        // Each is looked at under its own lock, under which the other one may be taken.
        let heard = held
            .iter()
            .map(|(id, holder)| (*id, holder.last_heard_ms(self.now_ms)));
        let heard: Vec<_> = heard.collect();
        closed.extend(self.shared.local.lock().advance(self.now_ms, &heard));
        for connection in closed {
            if connection.finish() {
                connection.wake(News::OfMany);
            }
        }
    }
}

//! The replicated part of sessions: who exists, how it proves itself, and which connection is its
//! present one (§8). When a session was last heard of is not replicated and not here.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::digest::{Part, Term};
use super::image::Record;
use super::slab::Slab;
use crate::proto::log;
use crate::wire::{DecodeError, Id, Reader, SessionId, Writer};

/// Of the attachment that a session is made with.
pub const FIRST_GENERATION: u64 = 1;
/// Of commands that come from a session which one server keeps to itself (§8.7): nothing of it is
/// in the state, and that server answers for it.
pub const LOCAL_GENERATION: u64 = u64::MAX;

/// A session that has just got a connection: a new one, or one that came back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attached {
    pub session: SessionId,
    /// Rises with each attachment; commands that came through an earlier one are refused.
    pub generation: u64,
    pub timeout_ms: i32,
    pub password: [u8; 16],
    /// Whether the session is new.
    pub created: bool,
}

/// What is public about a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SessionInfo {
    pub timeout_ms: i32,
    pub generation: u64,
}

/// One session.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: SessionId,
    pub timeout_ms: i32,
    pub password: [u8; 16],
    pub generation: u64,
    /// Of the present connection (§7.2).
    pub identities: Arc<[Id]>,
}

impl Session {
    pub fn info(&self) -> SessionInfo {
        SessionInfo {
            timeout_ms: self.timeout_ms,
            generation: self.generation,
        }
    }

    pub fn attached(&self, created: bool) -> Attached {
        Attached {
            session: self.id,
            generation: self.generation,
            timeout_ms: self.timeout_ms,
            password: self.password,
            created,
        }
    }

    fn term(&self) -> u64 {
        let [low, high] = [0, 8].map(|at| {
            u64::from_le_bytes(self.password[at..at + 8].try_into().expect("eight bytes"))
        });
        let start = Term::new(Part::Session)
            .signed(self.id.0)
            .signed(self.timeout_ms.into())
            .word(low)
            .word(high)
            .word(self.generation);
        self.identities
            .iter()
            .fold(start, |term, identity| {
                term.bytes(identity.scheme.as_bytes())
                    .bytes(identity.id.as_bytes())
            })
            .finish()
    }
}

impl Record for Session {
    fn encode(&self, w: &mut Writer<'_>) {
        w.long(self.id.0);
        w.int(self.timeout_ms);
        w.buffer(Some(&self.password));
        w.long(self.generation as i64);
        w.count(self.identities.len());
        for identity in self.identities.iter() {
            w.text(&identity.scheme);
            w.text(&identity.id);
        }
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        let id = SessionId(r.long()?);
        let timeout_ms = r.int()?;
        let password = r.buffer()?.ok_or(DecodeError::Null)?;
        let length = DecodeError::Length(password.len() as i32);
        let generation = r.long()? as u64;
        let identity = |r: &mut Reader| Ok(Id::new(&r.required_text()?, &r.required_text()?));
        let identities = r.vector(identity)?.ok_or(DecodeError::Null)?;
        Ok(Self {
            id,
            timeout_ms,
            password: password.as_ref().try_into().map_err(|_| length)?,
            generation,
            identities: identities.into(),
        })
    }
}

/// The sessions that exist.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    slab: Slab<Session>,
    /// Derived: where each session is.
    slots: BTreeMap<SessionId, u32>,
    digest: u64,
}

impl Sessions {
    pub fn len(&self) -> usize {
        self.slab.used()
    }

    pub fn get(&self, id: SessionId) -> Option<&Session> {
        self.slab.get(*self.slots.get(&id)?)
    }

    /// In order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.slots.values().filter_map(|slot| self.slab.get(*slot))
    }

    /// False if a session has this id already.
    #[must_use]
    pub fn insert(&mut self, session: Session) -> bool {
        if self.slots.contains_key(&session.id) {
            return false;
        }
        self.digest = self.digest.wrapping_add(session.term());
        let id = session.id;
        let slot = self.slab.insert(session);
        self.slots.insert(id, slot);
        true
    }

    pub fn edit<R>(&mut self, id: SessionId, edit: impl FnOnce(&mut Session) -> R) -> Option<R> {
        let session = self.slab.get_mut(*self.slots.get(&id)?)?;
        let before = session.term();
        let result = edit(session);
        self.digest = self
            .digest
            .wrapping_sub(before)
            .wrapping_add(session.term());
        Some(result)
    }

    pub fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.slab.remove(self.slots.remove(&id)?)?;
        self.digest = self.digest.wrapping_sub(session.term());
        Some(session)
    }

    /// What an image holds of the sessions.
    pub fn slab(&self) -> &Slab<Session> {
        &self.slab
    }

    /// The sessions of an image. `None` if two have the same id.
    pub fn restore(slab: Slab<Session>) -> Option<Self> {
        let slots: BTreeMap<_, _> = slab
            .iter()
            .map(|(slot, session)| (session.id, slot))
            .collect();
        let mut sessions = Self {
            slab,
            slots,
            digest: 0,
        };
        sessions.digest = sessions.recompute();
        (sessions.slots.len() == sessions.len()).then_some(sessions)
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The digest from scratch, for checks.
    pub fn recompute(&self) -> u64 {
        self.iter()
            .fold(0, |sum, session| sum.wrapping_add(session.term()))
    }
}

/// The identities of a command, without repetition and in memory of their own.
pub fn identities(of: &[log::Identity], known: &[Id]) -> Arc<[Id]> {
    let mut all = known.to_vec();
    for identity in of {
        let identity = Id::new(&identity.scheme, &identity.id);
        if !all.contains(&identity) {
            all.push(identity);
        }
    }
    all.into()
}

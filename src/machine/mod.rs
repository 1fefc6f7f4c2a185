//! The replicated state: a pure function of the log.
//!
//! [`Machine::apply`] takes one committed entry and changes the state; [`Machine::read`] answers
//! from it; [`Machine::image`] freezes it. Every replica that applied the same entries is in the
//! same state, down to the numbers of slots: so nothing here may read a clock, a random number, a
//! file or a configuration, start a thread, or iterate over a hash map.
//!
//! Requests are validated when they are applied, against the state just before them, and nowhere
//! else. Whatever must be decided earlier (time, session ids, passwords, identities) is in the log.

use std::sync::Arc;

use crate::proto::log;
use crate::wire::request::path_at_start;
use crate::wire::{Acl, Answer, ErrorCode, Id, SessionId, Stat, Text, Zxid};

pub mod acl;
mod apply;
mod digest;
mod ensemble;
mod image;
mod index;
mod large;
mod level;
mod multi;
mod origin;
pub mod path;
mod quota;
mod read;
mod session;
mod settings;
mod slab;
mod tree;
mod znode;

pub use digest::FUNCTION as DIGEST_FUNCTION;
pub use ensemble::Ensemble;
pub use image::{Image, RestoreError};
pub(crate) use index::Index;
pub use large::{BYTES_AT_ONCE, Begun, MULTI_READ_BYTES_MAX, NODES_AT_ONCE, Walk};
pub use level::{FEATURE_LEVEL, LEVEL_SETTING, LOCAL_SESSIONS};
pub use origin::{CommandId, OriginId};
pub use path::PATH_BYTES_MAX;
pub use session::{Attached, FIRST_GENERATION, LOCAL_GENERATION, SessionInfo};
pub use tree::NEAR_AT_ONCE;

use digest::{Part, Term};
use origin::Origins;
use session::Sessions;
use settings::Settings;
use tree::Tree;
use znode::{Kind, NewZnode, NodeId, Znode};

/// Containers and TTL znodes that the cleaner looks at in one go: a fraction of a millisecond.
pub const CANDIDATES_AT_ONCE: usize = 2_000;

/// Commands of ours beside the client's opcodes. Clients cannot send them: their opcodes are
/// decoded, and these mean nothing to the decoder.
pub mod op {
    /// A new session; the command names its id. Body: `CreateSession`.
    pub const CREATE_SESSION: i32 = crate::wire::op::CREATE_SESSION;
    /// The end of a session, by its client or by the leader.
    pub const CLOSE_SESSION: i32 = crate::wire::op::CLOSE_SESSION;
    /// A session that comes back on another connection. Body: `Attach`.
    pub const ATTACH: i32 = -20;
    /// A connection proved more identities. Body: `Identify`.
    pub const IDENTIFY: i32 = -21;
    /// The removal of an empty container or an outlived TTL znode. Body: `Remove`.
    pub const REMOVE: i32 = -22;
    /// A change of a replicated setting. Body: `Set`.
    pub const SET: i32 = -23;
    /// Who the servers of the ensemble are. Body: `Configure`.
    pub const CONFIGURE: i32 = -24;
}

/// A position in the Raft log.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LogId {
    pub term: u64,
    pub index: u64,
}

/// On whose behalf something is read or written.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    pub session: SessionId,
    pub identities: &'a [Id],
}

/// What became of a command.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The answer to a client's request, or an error of the protocol.
    Reply(Result<Answer, ErrorCode>),
    /// A session was created or attached.
    Attached(Attached),
    /// An attach to a session that does not exist, or with a wrong password; or a creation under
    /// an id that is taken or impossible. Nothing changed.
    Refused,
    /// The command came through a connection that is not its session's present one: nothing
    /// changed, and that connection must be closed (§8.5).
    Moved,
}

/// What happened to a znode.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ChangeKind {
    Created,
    Deleted,
    /// Its data was set.
    Data,
}

/// One change of one znode, for the watches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Change<'a> {
    pub kind: ChangeKind,
    pub path: &'a str,
    pub zxid: Zxid,
    /// The znode's own list; of a deleted one the list it had (§6.4).
    pub acl: &'a [Acl],
    pub parent_acl: &'a [Acl],
}

/// What applying tells the world. Calls come in this order for each command: its changes, the
/// attachment, the outcome, the end of a session.
pub trait Sink {
    /// Once per create, delete and setData that took effect, in order (§3.5); those of a multi
    /// come after all of it succeeded.
    fn changed(&mut self, change: &Change<'_>);
    /// Once per command of an origin's stream. The zxid of the reply is `machine.zxid()`.
    fn done(&mut self, machine: &Machine, command: CommandId, outcome: Outcome);
    /// A session was created or went over to another connection.
    fn session_attached(&mut self, attached: &Attached);
    /// A session ended.
    fn session_closed(&mut self, session: SessionId);
}

/// A change that is announced once its command is through.
#[derive(Debug)]
struct PendingChange {
    kind: ChangeKind,
    path: Text,
    acl: Arc<[Acl]>,
    parent_acl: Arc<[Acl]>,
}

/// The replicated state. See the module.
#[derive(Debug)]
pub struct Machine {
    tree: Tree,
    sessions: Sessions,
    origins: Origins,
    settings: Settings,
    /// `None`: a server alone.
    ensemble: Option<Ensemble>,
    applied: LogId,
    zxid: Zxid,
    /// The leader's clock in the last entry that had commands, in ms since 1970.
    time_ms: i64,
    /// The leader refuses the reconfig in the present entry; false between entries.
    no_quorum: bool,
    /// The present command is of a session that is not in the state; false between commands.
    local: bool,
    /// What the present command changed; empty between commands.
    changes: Vec<PendingChange>,
    /// The session the present command closed.
    closed: Option<SessionId>,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// The state before the first entry: the system znodes (§5.5) and nothing else.
    pub fn new() -> Self {
        Self {
            tree: system_znodes(),
            sessions: Sessions::default(),
            origins: Origins::default(),
            settings: Settings::default(),
            ensemble: None,
            applied: LogId::default(),
            zxid: Zxid(0),
            time_ms: 0,
            no_quorum: false,
            local: false,
            changes: Vec::new(),
            closed: None,
        }
    }

    /// Applies one committed entry: first its batches, then the leader's own commands. An entry
    /// without content is the one a leader begins its term with.
    ///
    /// # Panics
    /// If the entry is not beyond those applied: that would be a bug that could damage the state.
    pub fn apply(&mut self, at: LogId, entry: &log::Entry, sink: &mut impl Sink) {
        self.advance(at);
        if !entry.batches.is_empty() || !entry.internal.is_empty() {
            self.time_ms = entry.time_ms;
        }
        self.no_quorum = entry.no_quorum;
        for batch in &entry.batches {
            self.apply_batch(batch, sink);
        }
        for command in &entry.internal {
            self.run(command, None, sink);
        }
        self.no_quorum = false;
    }

    /// Prepares for requests for these paths, if that makes them faster: in a large tree each waits
    /// for the memory several times, and here all wait together. Changes nothing.
    pub fn bring_near<'a>(&self, paths: impl Iterator<Item = &'a str>) {
        self.tree.bring_near(paths);
    }

    /// Passes an entry that holds no commands, such as a change of membership.
    ///
    /// # Panics
    /// As [`Self::apply`].
    pub fn advance(&mut self, at: LogId) {
        let before = self.applied;
        assert!(
            at.index > before.index && at.term >= before.term,
            "{at:?} is not after {before:?}"
        );
        self.applied = at;
        if at.term > before.term {
            // Each term begins an epoch above any that a client can have seen (§9.6 rule 1).
            let term = u32::try_from(at.term).expect("terms stay below 2^31");
            self.zxid = Zxid::new(term.max(self.zxid.epoch() + 1), 0);
        }
    }

    pub fn applied(&self) -> LogId {
        self.applied
    }

    /// The last transaction.
    pub fn zxid(&self) -> Zxid {
        self.zxid
    }

    /// The leader's clock in the last entry that had commands, in ms since 1970. May step back.
    pub fn time_ms(&self) -> i64 {
        self.time_ms
    }

    /// A digest of everything replicated: equal on all servers at the same index.
    pub fn digest(&self) -> u64 {
        let (znodes, acls) = self.tree.slabs();
        let clock = Term::new(Part::Clock)
            .word(znodes.shape())
            .word(acls.shape())
            .word(self.sessions.slab().shape())
            .word(self.applied.term)
            .word(self.applied.index)
            .signed(self.zxid.0)
            .signed(self.time_ms)
            .finish();
        [
            self.tree.digest(),
            self.sessions.digest(),
            self.origins.digest(),
            self.settings.digest(),
            self.ensemble.as_ref().map_or(0, Ensemble::digest),
        ]
        .iter()
        .fold(clock, |sum, part| sum.wrapping_add(*part))
    }

    /// [`Self::digest`] from scratch. They differ only if there is a bug.
    pub fn recompute_digest(&self) -> u64 {
        let ensemble = self.ensemble.as_ref();
        let parts = [
            (self.tree.digest(), self.tree.recompute()),
            (self.sessions.digest(), self.sessions.recompute()),
            (self.origins.digest(), self.origins.recompute()),
            (self.settings.digest(), self.settings.recompute()),
            ensemble.map_or((0, 0), |ensemble| (ensemble.digest(), ensemble.recompute())),
        ];
        let replace =
            |sum: u64, (kept, fresh): &(u64, u64)| sum.wrapping_sub(*kept).wrapping_add(*fresh);
        parts.iter().fold(self.digest(), replace)
    }

    /// Checks the invariants of the whole state, for tests: it looks at every znode.
    ///
    /// # Panics
    /// If one is broken.
    pub fn audit(&self) {
        self.tree.audit();
        assert_eq!(
            self.digest(),
            self.recompute_digest(),
            "the digest is kept right"
        );
        for owner in self.tree.owners() {
            assert!(
                self.sessions.get(owner).is_some(),
                "{owner} owns ephemerals but is gone"
            );
        }
    }

    /// The Stat of a znode for `setWatches`, which checks no permission (§6.6).
    pub fn peek(&self, path: &str) -> Option<Stat> {
        Some(self.tree.get(self.tree.lookup(path)?).stat())
    }

    pub fn acl(&self, path: &str) -> Option<&[Acl]> {
        Some(self.tree.acl(self.tree.lookup(path)?))
    }

    pub fn session(&self, session: SessionId) -> Option<SessionInfo> {
        self.sessions.get(session).map(|session| session.info())
    }

    /// All sessions, by id.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, SessionInfo)> {
        self.sessions
            .iter()
            .map(|session| (session.id, session.info()))
    }

    /// The identities of a session's present connection.
    pub fn identities(&self, session: SessionId) -> Option<&[Id]> {
        self.sessions
            .get(session)
            .map(|session| session.identities.as_ref())
    }

    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// The paths of a session's ephemerals, sorted.
    pub fn ephemerals(&self, session: SessionId) -> Vec<Text> {
        let owned = self.tree.ephemerals(session);
        let mut paths: Vec<Text> = owned.map(|id| self.tree.path(id).into()).collect();
        paths.sort_unstable();
        paths
    }

    /// The sessions that own ephemerals, by id.
    pub fn sessions_with_ephemerals(&self) -> impl Iterator<Item = SessionId> {
        self.tree.owners()
    }

    /// Znodes as ZooKeeper's tools count them: the root twice (§11.1), so 5 at first.
    pub fn znode_count(&self) -> usize {
        self.tree.len() + 1
    }

    pub fn ephemeral_count(&self) -> usize {
        self.tree.ephemeral_count()
    }

    /// Bytes of all paths and all data: `approximate_data_size`.
    pub fn data_bytes(&self) -> u64 {
        self.tree.bytes()
    }

    /// A replicated setting; 0 if nobody set it and it has no other default.
    ///
    /// Known names: `enforce_quota`, `extended_types`, `reconfig_enabled`, `digest_enabled` (1),
    /// and [`LEVEL_SETTING`] (1).
    pub fn setting(&self, name: &str) -> i64 {
        self.settings.get(name)
    }

    /// Changes whenever a setting does.
    pub fn settings_version(&self) -> u64 {
        self.settings.digest()
    }

    /// The servers of the ensemble; `None` before the first leader has named them, and of a server
    /// alone.
    pub fn ensemble(&self) -> Option<&Ensemble> {
        self.ensemble.as_ref()
    }

    /// What the leader should propose to remove (§5.3): containers that had children and have none,
    /// or never had any for `never_used_ms` (0: those are kept), and TTL znodes that outlived
    /// themselves. At most `limit`, among some of the containers and TTL znodes: from `from` on, 0
    /// at first; and where to go on, if there are more.
    pub fn removable(
        &self,
        from: u32,
        now_ms: i64,
        never_used_ms: i64,
        limit: usize,
    ) -> (Vec<log::Remove>, Option<u32>) {
        let age_ms = |znode: &Znode| now_ms.saturating_sub(znode.mtime);
        let is_removable = |znode: &Znode| match znode.kind() {
            _ if znode.count() > 0 => false,
            Kind::Container if znode.created() > 0 => true,
            Kind::Container => never_used_ms != 0 && age_ms(znode) > never_used_ms,
            Kind::Ttl(ttl_ms) => age_ms(znode) > ttl_ms,
            Kind::Persistent | Kind::Ephemeral(_) => false,
        };
        let mut candidates = self.tree.cleanable(NodeId(from));
        let found = candidates
            .by_ref()
            .take(CANDIDATES_AT_ONCE)
            .filter(|(_, znode)| is_removable(znode))
            .take(limit)
            .map(|(id, znode)| log::Remove {
                path: self.tree.path(id),
                czxid: znode.czxid.0,
                mzxid: znode.mzxid.0,
                created: znode.created(),
            })
            .collect();
        (found, candidates.next().map(|(id, _)| id.0))
    }

    fn apply_batch(&mut self, batch: &log::Batch, sink: &mut impl Sink) {
        let Some(origin) = batch.origin.as_ref().map(OriginId::from) else {
            return; // Nobody can wait for it, and nothing can order it.
        };
        let Some(skipped) = self.origins.admit(origin, batch.first) else {
            return;
        };
        let mut number = batch.first + skipped;
        let commands = batch.commands.get(skipped as usize..).unwrap_or_default();
        for commands in commands.chunks(NEAR_AT_ONCE) {
            if commands.len() > 1 {
                self.bring_near(
                    commands
                        .iter()
                        .filter_map(|command| path_at_start(&command.body)),
                );
            }
            for command in commands {
                let id = CommandId { origin, number };
                self.origins.advance(id);
                self.run(command, Some(id), sink);
                number += 1;
            }
        }
    }

    /// Runs one command and tells of it.
    fn run(&mut self, command: &log::Command, id: Option<CommandId>, sink: &mut impl Sink) {
        let outcome = self.execute(command);
        for change in self.changes.drain(..) {
            sink.changed(&Change {
                kind: change.kind,
                path: &change.path,
                zxid: self.zxid,
                acl: &change.acl,
                parent_acl: &change.parent_acl,
            });
        }
        if let Outcome::Attached(attached) = &outcome {
            sink.session_attached(attached);
        }
        if let Some(id) = id {
            sink.done(self, id, outcome);
        }
        if let Some(session) = self.closed.take() {
            sink.session_closed(session);
        }
    }

    /// The zxid of the transaction that begins (§9.6 rule 1).
    fn next_zxid(&mut self) -> Zxid {
        let before = self.zxid;
        self.zxid = match before.counter().checked_add(2) {
            Some(_) => Zxid::new(before.epoch(), before.counter() + 1),
            // ZooKeeper holds an election when the counter is full; moving the epoch is enough.
            None => Zxid::new(before.epoch() + 1, 1),
        };
        assert!(self.zxid > before, "zxids rise");
        self.zxid
    }
}

/// The znodes of the very first start, which belong to no transaction (§5.5).
fn system_znodes() -> Tree {
    let mut tree = Tree::new();
    let read_only = Acl {
        perms: crate::wire::perms::READ,
        ..Acl::open()
    };
    let znodes = [
        ("", "zookeeper", Acl::open(), 0),
        // ZooKeeper's own order of these two is that of a hash table.
        ("/zookeeper", "quota", Acl::open(), 0),
        ("/zookeeper", "config", read_only, -1),
    ];
    for (parent, name, acl, aversion) in znodes {
        let parent = tree.lookup(parent).expect("parents come first");
        let new = NewZnode {
            parent,
            name,
            data: Some(b""),
            acl: &[acl],
            kind: Kind::Persistent,
            zxid: Zxid(0),
            time_ms: 0,
        };
        tree.insert_system(&new, aversion);
    }
    assert_eq!(tree.lookup("/zookeeper/quota"), Some(NodeId::QUOTA));
    assert_eq!(tree.lookup(path::CONFIG), Some(NodeId::CONFIG));
    tree
}

#[cfg(test)]
mod tests;

//! What operators see.
//!
//! Renders; decides nothing and keeps nothing. What is shown comes through [`View`], which the
//! server implements: its methods are asked one by one, so that what is expensive is computed only
//! for the answer that shows it.

pub mod four_letter;
pub mod process;

use std::net::SocketAddr;
use std::sync::atomic::AtomicI64;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::wire::{SessionId, Text, Zxid};

pub use four_letter::Word;

/// What the server says of its version: a ZooKeeper version that clients can parse, then our own,
/// then the day of the release in the form of old ZooKeeper versions. The Go client reads no other
/// form, and only letters, digits, dots and hyphens before the comma (§11.1).
pub const VERSION: &str = concat!(
    "3.9.5-zkraft-",
    env!("CARGO_PKG_VERSION"),
    ", built on 11/23/2026 00:00 GMT"
);

/// A server as operators look at it. Everything is a snapshot of one moment, but not the same one
/// for all methods.
pub trait View {
    fn config(&self) -> &Config;
    fn metrics(&self) -> &Metrics;

    /// Whether clients are served, if only some.
    fn is_serving(&self) -> bool;
    fn mode(&self) -> Mode;
    /// The ensemble, unless this server stands alone.
    fn ensemble(&self) -> Option<EnsembleView>;
    /// The feature level that entries of the log are executed at.
    fn feature_level(&self) -> u32;
    /// The last transaction that was applied here.
    fn zxid(&self) -> Zxid;
    /// Since the process started.
    fn uptime_ms(&self) -> u64;
    /// Where clients connect.
    fn client_address(&self) -> SocketAddr;
    /// Bytes of the data directory, and of the log directory.
    fn directory_bytes(&self) -> (u64, u64);

    /// Znodes as ZooKeeper counts them: the root twice, because it has two names for it, so five on
    /// an empty server.
    fn znode_count(&self) -> u64;
    fn ephemeral_count(&self) -> u64;
    /// Bytes of all paths and data.
    fn data_bytes(&self) -> u64;
    fn session_count(&self) -> u64;
    /// Those of them that no other server knows.
    fn local_session_count(&self) -> u64;
    fn connection_count(&self) -> u64;
    /// Requests that were read and not answered.
    fn outstanding(&self) -> u64;
    /// Looks at every watch: for words that people type, not for what is asked every minute.
    fn watches(&self) -> WatchSummary;
    fn held(&self) -> Held;

    /// In the order they came.
    fn connections(&self) -> Vec<ConnectionView>;
    /// Sessions with the time of their expiry in ms since 1970, unless they are touched.
    fn expiries(&self) -> Vec<(i64, SessionId)>;
    /// The sessions of the ensemble with their timeouts in ms; in order.
    fn timeouts(&self) -> Vec<(SessionId, i32)>;
    /// Sessions that own ephemerals, with their paths; both in order.
    fn ephemerals(&self) -> Vec<(SessionId, Vec<Text>)>;
    /// Every watch on data or existence, as session and path; in any order.
    fn data_watches(&self) -> Vec<(SessionId, Text)>;
    /// Recent digests of the tree, the oldest first.
    fn digests(&self) -> Vec<(Zxid, u64)>;

    /// Forgets the statistics of every connection.
    fn reset_connections(&self);
    /// The trace mask: kept for who sets it, and without meaning here.
    fn trace_mask(&self) -> &AtomicI64;
}

/// The trace mask of a server that was just started (§11.1).
pub const TRACE_MASK_DEFAULT: i64 = 306;

/// A server's part in its ensemble.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    Standalone,
    Leader,
    Follower,
    Observer,
    /// It has no majority, and serves clients that asked for no more than what it has.
    ReadOnly,
}

impl Mode {
    /// As monitoring knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Observer => "observer",
            Self::ReadOnly => "read-only",
        }
    }
}

/// An ensemble, as one of its servers sees it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EnsembleView {
    /// The server that leads, 0 if none is known.
    pub leader: u64,
    /// Raft's term.
    pub term: u64,
    /// Entries of the log that are committed and not in this server's state.
    pub lag: u64,
    /// Writes of this server's clients that are not applied yet.
    pub writes: u64,
    /// Syncs that wait.
    pub syncs: u64,
    /// Servers that vote.
    pub voters: u64,
    /// Whether this server is to vote and does not yet: it has not caught up since it joined, or
    /// since its disk was lost. Who counts on a majority must not count on it.
    pub joining: bool,
    /// The text of /zookeeper/config.
    pub config: String,
    /// For how long this server has been the leader, in ms; 0 if it is not.
    pub leading_ms: u64,
    /// On the leader: followers with a vote and observers, those that are heard, and those of them
    /// that have nearly everything.
    pub followers: Heard,
    pub observers: Heard,
    /// The other servers, and whether there is a link to each.
    pub links: Vec<(u64, bool)>,
}

/// Servers that the leader hears.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Heard {
    pub active: u64,
    pub synced: u64,
}

/// What clients make the server hold, and how much that may be, in bytes; -1 is no limit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Held {
    pub watches: u64,
    pub watch_bytes: u64,
    pub watch_max_bytes: i64,
    pub unsent_bytes: u64,
    pub unsent_max_bytes: i64,
    /// Connections that were cut off because they did not read.
    pub unread_connections_closed: u64,
}

/// How much is watched.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct WatchSummary {
    /// Connections that watch anything.
    pub connections: u64,
    /// Paths that are watched.
    pub paths: u64,
    pub watches: u64,
}

/// A client's connection. Latencies in ms.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConnectionView {
    pub peer: SocketAddr,
    /// Whether its requests are being read.
    pub reading: bool,
    /// Requests that were read and not answered.
    pub queued: u64,
    pub received: u64,
    pub sent: u64,
    /// When it is closed in ms since 1970, unless something is received.
    pub expires_ms: i64,
    /// `None` before the handshake.
    pub session: Option<SessionView>,
}

/// A session, as the connection that holds it sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionView {
    pub id: SessionId,
    pub timeout_ms: i32,
    /// When the connection was opened, in ms since 1970.
    pub established_ms: i64,
    /// Opcode of the last request, 0 if there was none.
    pub last_opcode: i32,
    /// Its xid; negative ones, as those of pings, are not shown.
    pub last_xid: i32,
    /// The zxid of the last reply.
    pub last_zxid: Zxid,
    /// When that was sent, on a clock of the server's own.
    pub last_response_ms: u64,
    pub last_latency_ms: u64,
    pub min_latency_ms: u64,
    pub average_latency_ms: u64,
    pub max_latency_ms: u64,
}

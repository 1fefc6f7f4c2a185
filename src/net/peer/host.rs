//! What the links need of their server.

use crate::engine::{PeerMessage, SnapshotMeta};
use crate::proto::peer::{Introduction, Told};
use crate::storage::{Fault, SnapshotReader, SnapshotWriter};

/// What the links need of their server, and what they tell it. Called from tasks of the network:
/// must not block, and must not wait for the links. The exception is what has to do with snapshots:
/// these calls may block, in threads that are made for it.
pub trait Host: Send + Sync + 'static {
    /// 0: not known yet. When that changes, or [`Host::is_formed`], [`Host::is_aware`] or
    /// [`Host::knows`] does, this server introduces itself again to its peers before anything else
    /// is sent.
    fn cluster(&self) -> u64;

    /// Whether this server has any log or snapshot.
    fn is_formed(&self) -> bool;

    /// Whether this server knows that there is a cluster.
    fn is_aware(&self) -> bool;

    /// The disk that this server holds to be that of another one; 0: it knows of none.
    fn knows(&self, server: u32) -> u64;

    /// What other servers are told of the ensemble.
    fn tell(&self) -> Told;

    /// Whether a server may be connected, in either direction; asked for each connection, and also
    /// if the other one has refused this one. `told`: what the other one knows.
    ///
    /// # Errors
    /// Why not and how to go on: told to the other side, and logged there.
    fn admit(&self, other: &Introduction, told: &Told) -> Result<(), String>;

    /// This server dialled here, and was admitted: called before anything else is heard from it.
    fn introduced(&self, other: &Introduction);

    /// Both lanes to this server are up.
    fn linked(&self, other: &Introduction);

    /// What a server says, in its order. May be nothing.
    fn heard(&self, from: u64, messages: Vec<PeerMessage>);

    /// Something that was sent to this server may not arrive: a link broke, or more was to be sent
    /// than it took.
    fn unreachable(&self, id: u64);

    /// A link broke, and when this server was dialled again, its system said that nobody listens:
    /// the process is gone.
    fn lost(&self, id: u64);

    /// Opens a snapshot that is to be sent. May block.
    ///
    /// # Errors
    /// It cannot be sent.
    fn open_snapshot(&self, index: u64, term: u64) -> Result<SnapshotReader, Fault>;

    /// Begins to store a snapshot that another server offers. One at a time. May block.
    ///
    /// # Errors
    /// It is not stored; the other server is told why.
    fn receive_snapshot(&self, meta: &SnapshotMeta) -> Result<SnapshotWriter, Fault>;

    /// A snapshot from another server is durable under its name. May block. The other server is
    /// told after this returns; if it does not hear of it, this is called for the same again.
    ///
    /// # Errors
    /// It cannot be loaded, and this server does not have it; the other server is told why.
    fn snapshot_received(&self, from: u64, meta: SnapshotMeta) -> Result<(), Fault>;

    /// The file of a snapshot that was to be sent cannot be read: there must be another one. Must
    /// not block.
    fn snapshot_unreadable(&self, index: u64);

    /// How [`super::Links::send_snapshot`] ended: whether the other server has the snapshot. Must
    /// not block.
    fn snapshot_sent(&self, to: u64, is_stored: bool);
}

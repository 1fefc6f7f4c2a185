//! Whether two servers may be connected, as far as what they say of themselves tells. No sockets:
//! the simulator lets its servers meet by the same rules.

use super::Introduction;

/// What a server remembers of another one that was connected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seen {
    pub disk: u64,
    /// The newest start that was connected.
    pub boot: u64,
    pub is_connected: bool,
}

impl Seen {
    /// # Errors
    /// It is not the server that is connected, or not its newest start: what to do about it.
    pub fn check(&self, other: &Introduction) -> Result<(), String> {
        let Introduction {
            server, disk, boot, ..
        } = *other;
        if self.disk != disk && self.is_connected {
            return Err(format!(
                "a server {server} with another disk ({:016x}, not {disk:016x}) is connected: two \
                 servers have the same id, so give one of them another myid and its own server.N \
                 line; or, if the disk of server {server} was replaced, stop the process that \
                 still runs on the old one",
                self.disk
            ));
        }
        if self.disk == disk && self.boot > boot {
            return Err(format!(
                "start {boot} of server {server} is over: its start {} was seen since",
                self.boot
            ));
        }
        Ok(())
    }
}

/// Whether this server may be connected to another one, of which it has seen this.
///
/// # Errors
/// Why not and how to go on, for the operators of either side.
pub fn vet(me: &Introduction, other: &Introduction, seen: Option<Seen>) -> Result<(), String> {
    if other.server == me.server {
        return Err(format!(
            "both sides are server {}: give one of them another myid",
            me.server
        ));
    }
    if is_of_other_cluster(me, other) {
        return Err(format!(
            "server {} is of cluster {:016x}, and server {} is of cluster {:016x}: correct the \
             server.N lines; or, if a server with the data of another cluster is to join this \
             one (as the others are after `zkraft recover`), empty its data and log directories \
             and add it with reconfig",
            me.server, me.cluster, other.server, other.cluster
        ));
    }
    seen.map_or(Ok(()), |seen| seen.check(other))
}

/// Whether both know their cluster, and it is not the same.
pub fn is_of_other_cluster(me: &Introduction, other: &Introduction) -> bool {
    me.cluster != 0 && other.cluster != 0 && me.cluster != other.cluster
}

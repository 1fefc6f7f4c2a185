//! Which servers are connected at the moment, and with which disk and start of theirs.
//!
//! A connection has a [`Gate`], through which all goes that comes from it. A newer connection of
//! the same kind closes the gate of the older one, and a newer start of a server closes all gates
//! of the starts before: once a server is welcomed, nothing of its former life is delivered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Introduction, Seen, Traffic};
use crate::proto::peer::Lane;

/// What a connection to a server is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// It dialled.
    Urgent,
    Bulk,
    Snapshot,
    /// Both lanes that were dialled from here.
    Outgoing,
}

const PLACES: usize = 4;

impl Place {
    pub fn of(lane: Lane) -> Self {
        match lane {
            Lane::Bulk => Self::Bulk,
            Lane::Snapshot => Self::Snapshot,
            Lane::Urgent | Lane::Unspecified => Self::Urgent,
        }
    }
}

/// Frames and bytes that were counted.
#[derive(Debug, Default)]
pub(super) struct Count {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    pub fn add(&self, frames: usize, bytes: usize) {
        self.frames.fetch_add(frames as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn get(&self) -> Traffic {
        Traffic {
            frames: self.frames.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// What a connection's messages pass through.
#[derive(Debug)]
pub(super) struct Gate {
    server: u64,
    place: Place,
    open: Mutex<bool>,
    closed: Notify,
    /// What came from the server, through whichever gate.
    pub received: Arc<Count>,
}

impl Gate {
    /// Does something unless the gate is closed, and returns whether it did. The gate does not
    /// close meanwhile.
    pub fn pass(&self, something: impl FnOnce()) -> bool {
        let open = self.open.lock();
        if *open {
            something();
        }
        *open
    }

    /// Returns once the connection is to end. For one task at a time.
    pub async fn closed(&self) {
        self.closed.notified().await;
        // Who waits again will not wait.
        self.closed.notify_one();
    }

    /// Asks the task to end the connection. Unlike [`Self::close`] it waits for nothing: a server
    /// may be removed by what is just passing through this gate.
    fn end(&self) {
        self.closed.notify_one();
    }

    fn close(&self) {
        *self.open.lock() = false;
        self.closed.notify_one();
    }
}

/// All servers that were connected since the start.
#[derive(Debug, Default)]
pub(super) struct Presence(Mutex<BTreeMap<u64, Present>>);

#[derive(Debug)]
struct Present {
    disk: u64,
    boot: u64,
    gates: [Option<Arc<Gate>>; PLACES],
    received: Arc<Count>,
}

impl Present {
    fn is_connected(&self) -> bool {
        self.gates.iter().any(Option::is_some)
    }

    fn seen(&self) -> Seen {
        Seen {
            disk: self.disk,
            boot: self.boot,
            is_connected: self.is_connected(),
        }
    }
}

impl Presence {
    /// What is known of a server.
    pub fn seen(&self, server: u32) -> Option<Seen> {
        let servers = self.0.lock();
        servers.get(&server.into()).map(Present::seen)
    }

    /// Lets a connection in. Those that it replaces are closed when this returns.
    pub fn enter(&self, other: &Introduction, place: Place) -> Result<Arc<Gate>, String> {
        let server = u64::from(other.server);
        let mut replaced = Vec::new();
        let gate = {
            let mut servers = self.0.lock();
            let present = servers.entry(server).or_insert_with(|| Present {
                disk: other.disk,
                boot: other.boot,
                gates: Default::default(),
                received: Arc::default(),
            });
            present.seen().check(other)?;
            if (present.disk, present.boot) != (other.disk, other.boot) {
                (present.disk, present.boot) = (other.disk, other.boot);
                replaced.extend(present.gates.iter_mut().filter_map(Option::take));
            }
            let gate = Arc::new(Gate {
                server,
                place,
                open: Mutex::new(true),
                closed: Notify::new(),
                received: present.received.clone(),
            });
            replaced.extend(present.gates[place as usize].replace(gate.clone()));
            gate
        };
        // Outside the lock, because a gate may have to wait for what passes through it.
        replaced.iter().for_each(|gate| gate.close());
        Ok(gate)
    }

    /// Ends what servers other than these have dialled.
    pub fn keep(&self, is_peer: impl Fn(u64) -> bool) {
        for (server, present) in self.0.lock().iter_mut() {
            if !is_peer(*server) {
                let incoming = [Place::Urgent, Place::Bulk, Place::Snapshot];
                let incoming = incoming.map(|place| present.gates[place as usize].take());
                incoming.iter().flatten().for_each(|gate| gate.end());
            }
        }
    }

    /// A connection is over. Returns whether no other had replaced it.
    pub fn leave(&self, gate: &Arc<Gate>) -> bool {
        let mut servers = self.0.lock();
        let Some(present) = servers.get_mut(&gate.server) else {
            return false;
        };
        let slot = &mut present.gates[gate.place as usize];
        let is_there = slot.as_ref().is_some_and(|there| Arc::ptr_eq(there, gate));
        if is_there {
            *slot = None;
        }
        is_there
    }

    /// What came from a server, and whether it is connected by connections of its own.
    pub fn of(&self, server: u64) -> (Traffic, bool) {
        let servers = self.0.lock();
        let Some(present) = servers.get(&server) else {
            return Default::default();
        };
        let lanes = [Place::Urgent, Place::Bulk];
        let is_there = |place: Place| present.gates[place as usize].is_some();
        (present.received.get(), lanes.into_iter().all(is_there))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(disk: u64, boot: u64) -> Introduction {
        Introduction {
            server: 3,
            disk,
            boot,
            level: 1,
            cluster: 7,
            formed: true,
            ..Introduction::default()
        }
    }

    #[test]
    fn a_newer_connection_replaces_its_like() {
        let presence = Presence::default();
        let first = presence.enter(&server(1, 1), Place::Urgent).unwrap();
        let bulk = presence.enter(&server(1, 1), Place::Bulk).unwrap();
        let second = presence.enter(&server(1, 1), Place::Urgent).unwrap();
        assert!(!first.pass(|| panic!("the first is closed")));
        assert!(bulk.pass(|| {}) && second.pass(|| {}));
        assert!(!presence.leave(&first));
        assert!(presence.leave(&second));
    }

    #[test]
    fn a_newer_start_closes_all_of_the_older() {
        let presence = Presence::default();
        let places = [Place::Urgent, Place::Bulk, Place::Outgoing];
        let old = places.map(|place| presence.enter(&server(1, 1), place).unwrap());
        presence.enter(&server(1, 2), Place::Urgent).unwrap();
        assert!(old.iter().all(|gate| !gate.pass(|| {})));
        let refused = presence.enter(&server(1, 1), Place::Bulk).unwrap_err();
        assert_eq!(
            refused,
            "start 1 of server 3 is over: its start 2 was seen since"
        );
    }

    #[test]
    fn an_id_is_one_disk_at_a_time() {
        let presence = Presence::default();
        let gate = presence.enter(&server(1, 9), Place::Outgoing).unwrap();
        let seen = presence.seen(3).expect("it is connected");
        let refused = seen.check(&server(2, 1)).unwrap_err();
        let expected = "a server 3 with another disk (0000000000000001, not 0000000000000002) is \
                        connected: two servers have the same id";
        assert!(refused.starts_with(expected), "{refused}");
        assert!(presence.enter(&server(2, 1), Place::Urgent).is_err());
        presence.leave(&gate);
        presence.enter(&server(2, 1), Place::Urgent).unwrap();
    }
}

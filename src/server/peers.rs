//! The other servers of the ensemble: what the links between servers need of this one, and what the
//! node needs of them.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::config::{Config, Listen, Member};
use crate::engine::{Event, NotAdmitted, PeerMessage, SendSnapshot, Shared, SnapshotMeta};
use crate::machine::FEATURE_LEVEL;
use crate::net::peer::{
    self, Host, Introduction, LinkOptions, Links, PeerAddress, Secret, SecretError, Told,
};
use crate::node::{Doorbell, Peers};
use crate::storage::{Fault, Identity, LogHandle, SnapshotReader, SnapshotWriter};
use crate::wire::ServerLine;

use super::{StartError, load};

/// The addresses of the other servers, as far as they are known before there are links.
pub type Known = Arc<Mutex<BTreeMap<u64, Vec<PeerAddress>>>>;

/// The links, once this server listens for its peers.
pub type Network = Arc<OnceLock<Links>>;

/// The node's view of the links.
pub struct Outgoing {
    pub network: Network,
    /// The addresses to start the links with.
    pub known: Known,
    pub doorbell: Arc<Doorbell>,
}

impl Peers for Outgoing {
    fn send(&mut self, messages: Vec<(u64, PeerMessage)>) {
        if let Some(links) = self.network.get() {
            links.send(messages);
        }
    }

    fn set_servers(&mut self, servers: &[ServerLine]) {
        let peers = servers
            .iter()
            .map(|line| (u64::from(line.id), quorum_addresses(&line.peers)));
        let peers = peers.collect();
        let mut known = self.known.lock();
        if let Some(links) = self.network.get() {
            links.set_peers(peers);
        } else {
            // They are started with these.
            *known = peers;
        }
    }

    fn send_snapshot(&mut self, what: SendSnapshot) {
        match self.network.get() {
            Some(links) => links.send_snapshot(what.to, what.index, what.term),
            None => self.doorbell.event(Event::SnapshotSent {
                to: what.to,
                ok: false,
            }),
        }
    }
}

/// The links' view of this server.
pub struct Local {
    shared: Arc<Shared>,
    doorbell: Arc<Doorbell>,
    log: LogHandle,
}

impl Local {
    pub fn new(shared: Arc<Shared>, doorbell: Arc<Doorbell>, log: LogHandle) -> Self {
        Self {
            shared,
            doorbell,
            log,
        }
    }
}

impl Host for Local {
    fn cluster(&self) -> u64 {
        self.shared.cluster()
    }

    fn is_formed(&self) -> bool {
        self.shared.is_formed()
    }

    fn is_aware(&self) -> bool {
        self.shared.is_aware()
    }

    fn knows(&self, server: u32) -> u64 {
        self.shared.bound_disk(server)
    }

    fn tell(&self) -> Told {
        self.shared.tell()
    }

    fn admit(&self, other: &Introduction, told: &Told) -> Result<(), String> {
        self.shared.learn(other, told);
        let id = u64::from(other.server);
        let refuse = |text: String| {
            let introduction = *other;
            self.doorbell.event(Event::Refused { id, introduction });
            Err(text)
        };
        let bound = match self.shared.admit(other) {
            Ok(()) => return Ok(()),
            Err(NotAdmitted::TooOld { level }) => {
                return refuse(format!(
                    "this ensemble is at feature level {level}, and the version of zkraft of \
                     server {id} knows no level above {}: start the version that the other \
                     servers run, or a newer one, on the same data",
                    other.level
                ));
            }
            Err(NotAdmitted::NoMember) => {
                return refuse(format!(
                    "server {id} does not belong to this ensemble: add it with reconfig, and it \
                     will be let in"
                ));
            }
            Err(NotAdmitted::OtherDisk { bound }) => bound,
        };
        self.doorbell.event(Event::Stranger {
            id,
            disk: other.disk,
        });
        Err(format!(
            "server {id} is known here by another data directory ({bound:016x} instead of \
             {:016x}). If this one is new because the old one was lost, wait: a leader takes it \
             back as soon as a majority of the others is there. If two servers have this id, \
             correct myid on one of them",
            other.disk
        ))
    }

    fn introduced(&self, other: &Introduction) {
        self.doorbell.event(Event::Introduced {
            id: other.server.into(),
            introduction: *other,
        });
    }

    fn linked(&self, other: &Introduction) {
        self.doorbell.event(Event::Linked {
            id: other.server.into(),
            introduction: *other,
        });
    }

    fn heard(&self, from: u64, messages: Vec<PeerMessage>) {
        self.doorbell.messages(from, messages);
    }

    fn unreachable(&self, id: u64) {
        self.doorbell.event(Event::Unreachable(id));
    }

    fn lost(&self, id: u64) {
        self.doorbell.event(Event::PeerLost(id));
    }

    fn open_snapshot(&self, index: u64, term: u64) -> Result<SnapshotReader, Fault> {
        self.log.open_snapshot(index, term)
    }

    fn receive_snapshot(&self, meta: &SnapshotMeta) -> Result<SnapshotWriter, Fault> {
        self.log.receive_snapshot(meta)
    }

    fn snapshot_received(&self, _from: u64, meta: SnapshotMeta) -> Result<(), Fault> {
        let SnapshotMeta { index, term, .. } = meta;
        let reader = self.log.open_snapshot(index, term);
        let loaded = reader.and_then(|reader| load(Some(reader)));
        // What else there may be says nothing against the file. One that only a newer version can
        // load would keep this one from starting again.
        if let Err(
            Fault::CorruptSnapshot { .. }
            | Fault::RejectedSnapshot { .. }
            | Fault::NewerImage { .. },
        ) = loaded
        {
            match self.log.discard_snapshot(index, term) {
                Ok(()) => self.doorbell.event(Event::SnapshotDiscarded { index }),
                Err(fault) => {
                    let reason = fault.survived();
                    tracing::warn!(reason, "a snapshot that is no good stays on the disk");
                }
            }
        }
        let machine = loaded?;
        // Older ones go only for one that is good.
        self.log.snapshot_received(index)?;
        let received = Box::new((meta, machine));
        self.doorbell.event(Event::SnapshotReceived(received));
        Ok(())
    }

    fn snapshot_unreadable(&self, index: u64) {
        self.doorbell.event(Event::SnapshotUnreadable { index });
    }

    fn snapshot_sent(&self, to: u64, is_stored: bool) {
        let ok = is_stored;
        self.doorbell.event(Event::SnapshotSent { to, ok });
    }
}

/// How this server introduces itself, besides what changes while it runs.
pub fn me(identity: Identity, boot: u64, config: &Config) -> Introduction {
    Introduction {
        server: identity.server,
        disk: identity.disk,
        boot,
        level: FEATURE_LEVEL,
        level_max: config.feature_level_max,
        ..Introduction::default()
    }
}

/// The addresses of the configured members.
pub fn addresses(members: &[Member]) -> BTreeMap<u64, Vec<PeerAddress>> {
    members
        .iter()
        .map(|member| (u64::from(member.id), quorum_addresses(&member.peers)))
        .collect()
}

fn quorum_addresses(peers: &[crate::wire::server_line::PeerAddress]) -> Vec<PeerAddress> {
    let address = |address: &crate::wire::server_line::PeerAddress| PeerAddress {
        host: address.host.clone(),
        port: address.quorum_port,
    };
    peers.iter().map(address).collect()
}

/// What the links are started with.
pub struct Linking {
    pub listen: Listen,
    pub me: Introduction,
    pub host: Arc<dyn Host>,
    pub options: LinkOptions,
    pub known: Known,
    pub network: Network,
}

/// Listens for the peers as soon as this server's own name has an address of this machine, and
/// links to them from then on.
///
/// # Errors
/// If the port cannot be had.
pub async fn link(linking: Linking, stop: watch::Receiver<bool>) -> Result<(), StartError> {
    let Linking {
        listen,
        me,
        host,
        options,
        known,
        network,
    } = linking;
    let own = PeerAddress {
        // Every address: the IPv6 socket serves IPv4 too.
        host: listen.host.clone().unwrap_or_else(|| "::".to_owned()),
        port: listen.port,
    };
    let listener = peer::listen(&own, &options.resolver).await;
    let listener = listener.map_err(|source| StartError::ListenForPeers {
        address: listen.to_string(),
        source,
    })?;
    tracing::info!(address = %own, "listening for the other servers");
    let links = Links::start(&Handle::current(), listener, me, host, options, stop);
    // Under the lock, so that no later news of them falls between.
    let peers = known.lock();
    links.set_peers(peers.clone());
    let set = network.set(links);
    debug_assert!(set.is_ok(), "links are started once");
    Ok(())
}

/// Reads the cluster's secret, if one is configured.
pub fn secret(config: &Config) -> Result<Option<Secret>, SecretError> {
    config
        .cluster_secret_file
        .as_deref()
        .map(Secret::read)
        .transpose()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use bytes::Bytes;

    use super::*;
    use crate::engine::{Engine, Options, Outputs, Setup};
    use crate::machine::Machine;
    use crate::proto::peer::BoundDisk;
    use crate::storage::{Storage, StorageConfig};

    /// A server alone that knows this feature level.
    fn engine(level: u32) -> Engine {
        let setup = Setup::alone(Options {
            level,
            ..Options::default()
        });
        let mut engine = Engine::new(setup, 0);
        for now_ms in (0..1_000).step_by(50) {
            let mut out = Outputs::default();
            engine.handle(Event::Tick, now_ms, &mut out);
            engine.turn(now_ms, 0, &mut out);
            if let Some(last) = out.append.last() {
                engine.handle(Event::Persisted(last.number), now_ms, &mut out);
            }
        }
        engine
    }

    /// The image of an empty machine in this format, and its digest.
    fn image(format: i32) -> (Vec<Bytes>, u64) {
        let machine = Machine::new();
        let mut chunks: Vec<Bytes> = machine.image().chunks().collect();
        let mut first = chunks[0].to_vec();
        assert_eq!(first[4..8], 1_i32.to_be_bytes());
        first[4..8].copy_from_slice(&format.to_be_bytes());
        chunks[0] = first.into();
        (chunks, machine.digest())
    }

    #[test]
    fn only_a_received_snapshot_that_can_be_loaded_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let config = StorageConfig::new(dir.path(), 1);
        let (_, storage) = Storage::open(config, load).unwrap();
        let log = storage.start(|_, _| {}, |fault| panic!("{fault}")).unwrap();
        let doorbell = Arc::<Doorbell>::default();
        let local = Local::new(engine(1).shared(), doorbell.clone(), log);
        let receive = |index, format| {
            let (chunks, digest) = image(format);
            let meta = SnapshotMeta {
                index,
                term: 1,
                digest,
                ..SnapshotMeta::default()
            };
            let mut writer = local.receive_snapshot(&meta).unwrap();
            chunks
                .iter()
                .try_for_each(|chunk| writer.push(chunk))
                .unwrap();
            writer.finish().unwrap();
            local.snapshot_received(2, meta)
        };
        let path = |index: u64| {
            let name = format!("snapshot/snapshot.{index:016x}.0000000000000001");
            dir.path().join(name)
        };
        let is_there = |index| path(index).symlink_metadata().is_ok();

        receive(7, 1).unwrap();
        assert!(is_there(7));
        let events = doorbell.events();
        assert!(
            matches!(events[..], [Event::SnapshotReceived(_)]),
            "{events:?}"
        );
        let newer = receive(8, 1_000).unwrap_err().to_string();
        let expected = "holds a state of format 1000, which this zkraft does not know; start the \
                        newer zkraft that wrote it";
        assert!(newer.ends_with(expected), "{newer}");
        let rejected = receive(9, -1).unwrap_err();
        let is_rejected = matches!(rejected, Fault::RejectedSnapshot { .. });
        assert!(is_rejected, "{rejected}");
        assert!(!is_there(8) && !is_there(9));
        // What goes may be the one that there was, sent again.
        let events = doorbell.events();
        let [
            Event::SnapshotDiscarded { index: 8 },
            Event::SnapshotDiscarded { index: 9 },
        ] = events[..]
        else {
            panic!("{events:?}");
        };

        // One that cannot be opened may be as good as any.
        symlink("nowhere", path(10)).unwrap();
        let meta = SnapshotMeta {
            index: 10,
            term: 1,
            ..SnapshotMeta::default()
        };
        let unread = local.snapshot_received(2, meta).unwrap_err();
        assert!(matches!(unread, Fault::Io { .. }), "{unread}");
        assert!(is_there(10));
    }

    /// A server and what it says of itself, of level 3 as this one is.
    fn other(server: u32, disk: u64) -> Introduction {
        Introduction {
            server,
            disk,
            level: 3,
            ..Introduction::default()
        }
    }

    /// This server's view of the links, of a cluster of its own; and what the engine is told.
    fn local() -> (Local, Arc<Doorbell>) {
        let doorbell = Arc::<Doorbell>::default();
        let log = LogHandle::memory(|_, _| {});
        let local = Local::new(engine(3).shared(), doorbell.clone(), log);
        assert!(local.cluster() != 0, "a leader has numbered it");
        (local, doorbell)
    }

    /// Of these servers, which have these disks, as one of the same cluster tells it.
    fn told(servers: &[u32], disks: &[(u32, u64)]) -> Told {
        let line = |id: &u32| format!("server.{id}=host{id}:2888:3888:participant\n");
        let lines: String = servers.iter().map(line).collect();
        let disk = |&(server, disk): &(u32, u64)| BoundDisk {
            server,
            disk,
            changed: false,
        };
        Told {
            ensemble: lines + "version=700000000",
            index: 1_000,
            disks: disks.iter().map(disk).collect(),
            going: Vec::new(),
        }
    }

    #[test]
    fn a_server_that_is_too_old_is_told_what_to_do() {
        let (local, doorbell) = local();
        let of_level = |level| Introduction {
            level,
            ..other(2, 9)
        };
        for level in [3, 4] {
            assert_eq!(local.admit(&of_level(level), &Told::default()), Ok(()));
        }
        assert!(doorbell.events().is_empty());
        let text = local.admit(&of_level(2), &Told::default()).unwrap_err();
        assert_eq!(
            text,
            "this ensemble is at feature level 3, and the version of zkraft of server 2 knows no \
             level above 2: start the version that the other servers run, or a newer one, on the \
             same data"
        );
        let events = doorbell.events();
        let [
            Event::Refused {
                id: 2,
                introduction,
            },
        ] = events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!(introduction, of_level(2));
    }

    #[test]
    fn a_server_that_does_not_belong_to_the_ensemble_is_told_what_to_do() {
        let (local, doorbell) = local();
        let cluster = local.cluster();
        let of_cluster = |server, disk| Introduction {
            cluster,
            ..other(server, disk)
        };
        // Until anyone says who the servers are, it may be any.
        assert_eq!(local.admit(&of_cluster(5, 9), &Told::default()), Ok(()));
        let told = told(&[1, 2, 3], &[(5, 1)]);
        assert_eq!(local.admit(&of_cluster(2, 8), &told), Ok(()));
        assert!(doorbell.events().is_empty());
        // Though another disk is known for its number: that would not be enough.
        let text = local.admit(&of_cluster(5, 9), &told).unwrap_err();
        assert_eq!(
            text,
            "server 5 does not belong to this ensemble: add it with reconfig, and it will be let in"
        );
        let events = doorbell.events();
        let [
            Event::Refused {
                id: 5,
                introduction,
            },
        ] = events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!(introduction, of_cluster(5, 9));
        // What it was told to have done.
        let added = Told {
            ensemble: told
                .ensemble
                .replace("version=7", "server.5=host5:1:2\nversion=8"),
            ..told
        };
        assert_eq!(local.admit(&of_cluster(5, 1), &added), Ok(()));
    }

    #[test]
    fn a_server_that_comes_with_another_disk_is_told_what_to_do() {
        let (local, doorbell) = local();
        let cluster = local.cluster();
        let of_cluster = |server, disk| Introduction {
            cluster,
            ..other(server, disk)
        };
        let told = told(&[1, 2, 3], &[(2, 0xabc), (3, 0)]);
        assert_eq!(local.admit(&of_cluster(2, 0xabc), &told), Ok(()));
        // Nothing is known of its disk.
        assert_eq!(local.admit(&of_cluster(3, 0xdef), &told), Ok(()));
        assert!(doorbell.events().is_empty());
        let text = local.admit(&of_cluster(2, 0xdef), &told).unwrap_err();
        assert_eq!(
            text,
            "server 2 is known here by another data directory (0000000000000abc instead of \
             0000000000000def). If this one is new because the old one was lost, wait: a leader \
             takes it back as soon as a majority of the others is there. If two servers have this \
             id, correct myid on one of them"
        );
        // From which the leader knows whom to take back.
        let events = doorbell.events();
        assert!(
            matches!(events[..], [Event::Stranger { id: 2, disk: 0xdef }]),
            "{events:?}"
        );
    }
}

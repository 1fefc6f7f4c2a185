//! The running server as operators see it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::admin::{
    ConnectionView, EnsembleView, Heard, Held, Mode, SessionView, TRACE_MASK_DEFAULT, View,
    WatchSummary, four_letter,
};
use crate::config::Config;
use crate::engine::{Connection, PeerStatus, Role, Shared, Status};
use crate::machine::Ensemble;
use crate::metrics::Metrics;
use crate::net::peer::{LinkStatus, Links};
use crate::net::{Clock, Words};

use crate::wire::{SessionId, Text, Zxid};

use super::peers::Network;

/// What four-letter words are answered from.
pub struct ServerView {
    config: Config,
    address: SocketAddr,
    shared: Arc<Shared>,
    network: Network,
    clock: Clock,
    trace_mask: AtomicI64,
}

impl ServerView {
    pub fn new(
        config: &Config,
        address: SocketAddr,
        shared: Arc<Shared>,
        network: Network,
        clock: Clock,
    ) -> Self {
        let trace_mask = AtomicI64::new(TRACE_MASK_DEFAULT);
        Self {
            config: config.clone(),
            address,
            shared,
            network,
            clock,
            trace_mask,
        }
    }

    /// When a connection is given up, in ms since 1970, unless something is received.
    fn expires_ms(&self, connection: &Connection) -> i64 {
        let stats = &connection.stats;
        let heard_ms = stats.heard_ms.load(Ordering::Relaxed);
        let silent_ms = self.clock.now_ms().saturating_sub(heard_ms) as i64;
        let timeout_ms = match stats.timeout_ms.load(Ordering::Relaxed) {
            0 => i64::from(self.config.sessionless_timeout_ms),
            timeout_ms => i64::from(timeout_ms),
        };
        self.clock.wall_ms() - silent_ms + timeout_ms
    }

    /// Expiry happens on multiples of the tick (§8.2).
    fn bucket(&self, expires_ms: i64) -> i64 {
        let tick_ms = i64::from(self.config.tick_ms);
        (expires_ms / tick_ms + 1) * tick_ms
    }

    fn connection_view(&self, connection: &Connection) -> ConnectionView {
        let stats = &connection.stats;
        let session = SessionId(stats.session.load(Ordering::Relaxed));
        let answered = stats.answered.load(Ordering::Relaxed);
        let min_latency_ms = stats.min_latency_ms.load(Ordering::Relaxed);
        let session = (session.0 != 0).then(|| SessionView {
            id: session,
            timeout_ms: stats.timeout_ms.load(Ordering::Relaxed),
            established_ms: stats.established_ms.load(Ordering::Relaxed),
            last_opcode: stats.last_opcode.load(Ordering::Relaxed),
            last_xid: stats.last_xid.load(Ordering::Relaxed),
            last_zxid: Zxid(stats.last_zxid.load(Ordering::Relaxed)),
            last_response_ms: stats.last_answered_ms.load(Ordering::Relaxed),
            last_latency_ms: stats.last_latency_ms.load(Ordering::Relaxed),
            min_latency_ms: if answered == 0 { 0 } else { min_latency_ms },
            average_latency_ms: stats
                .total_latency_ms
                .load(Ordering::Relaxed)
                .checked_div(answered)
                .unwrap_or(0),
            max_latency_ms: stats.max_latency_ms.load(Ordering::Relaxed),
        });
        ConnectionView {
            peer: connection.peer(),
            reading: connection.wants_input(self.clock.now_ms()) && session.is_some(),
            queued: connection.unanswered() as u64,
            received: stats.received.load(Ordering::Relaxed),
            sent: connection.sent_since_reset(),
            expires_ms: self.expires_ms(connection),
            session,
        }
    }
}

impl Words for ServerView {
    fn answer(&self, word: [u8; 4], argument: &[u8]) -> Option<Vec<u8>> {
        four_letter::answer(word, argument, self).map(String::into_bytes)
    }

    fn may_block(&self, word: [u8; 4]) -> bool {
        four_letter::reads_disk(word)
    }
}

impl View for ServerView {
    fn config(&self) -> &Config {
        &self.config
    }

    fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    fn is_serving(&self) -> bool {
        self.shared.is_serving() || self.shared.is_read_only()
    }

    fn mode(&self) -> Mode {
        match part(&self.config, &self.shared.status()) {
            _ if self.shared.is_read_only() => Mode::ReadOnly,
            Role::Standalone => Mode::Standalone,
            Role::Leader => Mode::Leader,
            Role::Follower => Mode::Follower,
            Role::Observer => Mode::Observer,
        }
    }

    fn ensemble(&self) -> Option<EnsembleView> {
        let mut status = self.shared.status();
        status.role = part(&self.config, &status);
        let links = self.network.get().map(Links::status).unwrap_or_default();
        let state = self.shared.state.read();
        let me = u64::from(self.config.server_id);
        ensemble_view(
            me,
            self.clock.now_ms(),
            &status,
            state.machine.ensemble(),
            &links,
        )
    }

    fn feature_level(&self) -> u32 {
        self.shared.status().level
    }

    fn zxid(&self) -> Zxid {
        self.shared.state.read().machine.zxid()
    }

    fn uptime_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    fn client_address(&self) -> SocketAddr {
        self.address
    }

    fn directory_bytes(&self) -> (u64, u64) {
        if self.config.in_memory {
            return (0, 0);
        }
        (
            bytes_below(&self.config.data_dir),
            bytes_below(&self.config.log_dir),
        )
    }

    fn znode_count(&self) -> u64 {
        self.shared.state.read().machine.znode_count() as u64
    }

    fn ephemeral_count(&self) -> u64 {
        self.shared.state.read().machine.ephemeral_count() as u64
    }

    fn data_bytes(&self) -> u64 {
        self.shared.state.read().machine.data_bytes()
    }

    fn session_count(&self) -> u64 {
        self.shared.state.read().machine.session_count() as u64
    }

    fn local_session_count(&self) -> u64 {
        self.shared.local_session_count() as u64
    }

    fn connection_count(&self) -> u64 {
        self.shared.connection_count() as u64
    }

    fn outstanding(&self) -> u64 {
        self.shared.outstanding() as u64
    }

    fn watches(&self) -> WatchSummary {
        let state = self.shared.state.read();
        let watches = state.watches.lock();
        WatchSummary {
            connections: watches.connections() as u64,
            paths: watches.paths() as u64,
            watches: watches.total() as u64,
        }
    }

    fn held(&self) -> Held {
        let limit = |bytes: usize| match bytes {
            usize::MAX => -1,
            bytes => i64::try_from(bytes).unwrap_or(i64::MAX),
        };
        let unsent = &self.shared.unsent;
        let state = self.shared.state.read();
        let watches = state.watches.lock();
        Held {
            watches: watches.total() as u64,
            watch_bytes: watches.bytes() as u64,
            watch_max_bytes: limit(watches.limits().all),
            unsent_bytes: unsent.bytes() as u64,
            unsent_max_bytes: limit(unsent.bytes_max()),
            unread_connections_closed: unsent.given_up() as u64,
        }
    }

    fn connections(&self) -> Vec<ConnectionView> {
        let connections = self.shared.connections();
        connections
            .iter()
            .map(|connection| self.connection_view(connection))
            .collect()
    }

    fn expiries(&self) -> Vec<(i64, SessionId)> {
        let held: std::collections::BTreeMap<SessionId, i64> = self
            .shared
            .connections()
            .iter()
            .map(|connection| {
                let session = SessionId(connection.stats.session.load(Ordering::Relaxed));
                (session, self.expires_ms(connection))
            })
            .collect();
        let now_ms = self.clock.wall_ms();
        let state = self.shared.state.read();
        let known = state.machine.sessions();
        let known = known.map(|(session, info)| (session, info.timeout_ms));
        known
            .chain(self.shared.local_sessions())
            .map(|(session, timeout_ms)| {
                // A session without a connection here was heard at most its timeout ago.
                let expires = held.get(&session).copied();
                let expires_ms = expires.unwrap_or(now_ms + i64::from(timeout_ms));
                (self.bucket(expires_ms), session)
            })
            .collect()
    }

    fn timeouts(&self) -> Vec<(SessionId, i32)> {
        let state = self.shared.state.read();
        let known = state.machine.sessions();
        known.map(|(id, info)| (id, info.timeout_ms)).collect()
    }

    fn ephemerals(&self) -> Vec<(SessionId, Vec<Text>)> {
        let state = self.shared.state.read();
        let owners = state.machine.sessions_with_ephemerals();
        owners
            .map(|session| (session, state.machine.ephemerals(session)))
            .collect()
    }

    fn data_watches(&self) -> Vec<(SessionId, Text)> {
        let sessions: std::collections::BTreeMap<_, _> = self
            .shared
            .connections()
            .iter()
            .map(|c| (c.id(), SessionId(c.stats.session.load(Ordering::Relaxed))))
            .collect();
        let state = self.shared.state.read();
        let watches = state.watches.lock();
        let mut found = Vec::new();
        for (connection, paths) in watches.by_connection() {
            if let Some(session) = sessions.get(&connection) {
                found.extend(paths.into_iter().map(|path| (*session, Text::from(path))));
            }
        }
        found
    }

    fn digests(&self) -> Vec<(Zxid, u64)> {
        // The present one: servers compare theirs by themselves.
        let state = self.shared.state.read();
        vec![(state.machine.zxid(), state.machine.digest())]
    }

    fn reset_connections(&self) {
        for connection in self.shared.connections() {
            connection.reset_stats();
        }
    }

    fn trace_mask(&self) -> &AtomicI64 {
        &self.trace_mask
    }
}

/// The part that is shown of a server: one without others that others may join is an ensemble, and
/// leads it (§12.2, `standaloneEnabled`).
fn part(config: &Config, status: &Status) -> Role {
    match (status.role, &config.quorum) {
        (Role::Standalone, Some(_)) if status.leader == u64::from(config.server_id) => Role::Leader,
        (Role::Standalone, Some(_)) => Role::Follower,
        (role, _) => role,
    }
}

/// What server `me` sees of its ensemble; nothing if it stands alone. `now_ms`: by the engine's
/// clock.
fn ensemble_view(
    me: u64,
    now_ms: u64,
    status: &Status,
    ensemble: Option<&Ensemble>,
    links: &[LinkStatus],
) -> Option<EnsembleView> {
    if status.role == Role::Standalone {
        return None;
    }
    let heard = |voter: bool| {
        let peers = status.peers.iter();
        let active: Vec<_> = peers.filter(|p| p.voter == voter && p.active).collect();
        let is_synced = |peer: &&&PeerStatus| peer.is_synced(status.committed);
        Heard {
            active: active.len() as u64,
            synced: active.iter().filter(is_synced).count() as u64,
        }
    };
    let members = ensemble.map_or(&[][..], |all| all.members());
    let is_to_vote = members
        .iter()
        .any(|line| u64::from(line.id) == me && !line.observer);
    let joining = is_to_vote && !status.membership.voters.contains(&me);
    Some(EnsembleView {
        leader: status.leader,
        term: status.term,
        lag: status.committed.saturating_sub(status.applied),
        writes: status.writes as u64,
        syncs: status.syncs as u64,
        voters: status.membership.voters.len() as u64,
        joining,
        config: ensemble.map(ToString::to_string).unwrap_or_default(),
        leading_ms: status
            .leading_since_ms
            .map_or(0, |since_ms| now_ms.saturating_sub(since_ms)),
        followers: heard(true),
        observers: heard(false),
        links: links.iter().map(|link| (link.id, link.is_linked)).collect(),
    })
}

/// Bytes of all files below a directory. What cannot be read counts as nothing.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::engine::{Engine, Options, SYNCED_WITHIN, Setup};
    use crate::net::peer::Traffic;
    use crate::proto::log::Membership;

    const LINES: &str = "server.1=a:2888:3888:participant\n\
                         server.2=b:2888:3888:participant\n\
                         server.3=c:2888:3888:participant\n\
                         server.4=d:2888:3888:observer\n\
                         version=100000007";

    const NOW_MS: u64 = 10_000;

    fn ensemble() -> Ensemble {
        Ensemble::parse(LINES).unwrap()
    }

    fn status(voters: &[u64]) -> Status {
        Status {
            role: Role::Leader,
            leader: 1,
            term: 7,
            applied: 5_000,
            committed: 5_040,
            last: 6_000,
            membership: Membership {
                voters: voters.to_vec(),
                learners: vec![4],
                ..Membership::default()
            },
            admitted: true,
            leading_since_ms: Some(NOW_MS - 1_500),
            peers: Vec::new(),
            syncs: 3,
            writes: 9,
            level: 2,
        }
    }

    fn link(id: u64, is_linked: bool) -> LinkStatus {
        LinkStatus {
            id,
            is_linked,
            // What counts is whether it can be sent to.
            is_linked_from: !is_linked,
            error: None,
            since: Instant::now(),
            address: None,
            other: None,
            queue_bytes: 0,
            dropped: 0,
            sent: Traffic::default(),
            received: Traffic::default(),
        }
    }

    fn peer(id: u64, matched: u64) -> PeerStatus {
        PeerStatus {
            id,
            voter: true,
            active: true,
            matched,
            ..PeerStatus::default()
        }
    }

    #[test]
    fn an_ensemble_is_seen_as_it_is() {
        let links = [link(2, true), link(3, false), link(4, true)];
        let view = ensemble_view(1, NOW_MS, &status(&[1, 2, 3]), Some(&ensemble()), &links);
        assert_eq!(
            view,
            Some(EnsembleView {
                leader: 1,
                term: 7,
                lag: 40,
                writes: 9,
                syncs: 3,
                voters: 3,
                joining: false,
                config: LINES.to_owned(),
                leading_ms: 1_500,
                followers: Heard::default(),
                observers: Heard::default(),
                links: vec![(2, true), (3, false), (4, true)],
            })
        );
        // What was just applied may be committed for who asks a moment earlier.
        let behind = Status {
            applied: 5_041,
            leading_since_ms: None,
            ..status(&[1])
        };
        let view = ensemble_view(1, NOW_MS, &behind, None, &[]).unwrap();
        assert_eq!((view.lag, view.voters, view.leading_ms), (0, 1, 0));
        assert_eq!((view.config.as_str(), view.links), ("", vec![]));
    }

    #[test]
    fn who_is_heard_is_counted_and_who_has_nearly_everything() {
        let peers = vec![
            peer(2, 5_040),
            peer(3, 5_040 - SYNCED_WITHIN),
            peer(5, 5_040 - SYNCED_WITHIN - 1),
            // It has what it will have once it has loaded it.
            PeerStatus {
                snapshot: true,
                ..peer(6, 5_040)
            },
            PeerStatus {
                active: false,
                ..peer(7, 5_040)
            },
            PeerStatus {
                voter: false,
                ..peer(4, 5_040)
            },
            PeerStatus {
                voter: false,
                ..peer(8, 0)
            },
        ];
        let status = Status {
            peers,
            ..status(&[1, 2, 3, 5, 6, 7])
        };
        let view = ensemble_view(1, NOW_MS, &status, Some(&ensemble()), &[]).unwrap();
        let (active, synced) = (4, 2);
        assert_eq!(view.followers, Heard { active, synced });
        let (active, synced) = (2, 1);
        assert_eq!(view.observers, Heard { active, synced });
    }

    #[test]
    fn who_is_to_vote_and_does_not_yet_is_joining() {
        let joining = |me, voters: &[u64], ensemble: Option<&Ensemble>| {
            let view = ensemble_view(me, NOW_MS, &status(voters), ensemble, &[]);
            view.unwrap().joining
        };
        let ensemble = ensemble();
        assert!(joining(3, &[1, 2], Some(&ensemble)));
        assert!(!joining(3, &[1, 2, 3], Some(&ensemble)));
        // An observer never is, nor who does not belong to it or knows of none.
        assert!(!joining(4, &[1, 2], Some(&ensemble)));
        assert!(!joining(5, &[1, 2], Some(&ensemble)));
        assert!(!joining(3, &[1, 2], None));
    }

    #[test]
    fn a_server_alone_has_no_ensemble() {
        let engine = Engine::new(Setup::alone(Options::default()), 0);
        let address = "127.0.0.1:2181".parse().unwrap();
        let view = |shared| {
            let network = Network::default();
            ServerView::new(&Config::dev(), address, shared, network, Clock::start())
        };
        assert_eq!(view(engine.shared()).ensemble(), None);
        let status = Status {
            role: Role::Standalone,
            ..status(&[1])
        };
        assert_eq!(
            ensemble_view(1, NOW_MS, &status, Some(&ensemble()), &[]),
            None
        );
    }
}

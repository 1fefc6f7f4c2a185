//! Several engines that hear each other, with a network that can be cut and disks that are fast.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use raft::eraftpb::MessageType;

use super::*;

/// Of the sessions (see [`hello`]).
const TIMEOUT_MS: u64 = 4_000;

struct Node {
    engine: Engine,
    shared: Arc<Shared>,
    up: bool,
}

struct Cluster {
    nodes: Vec<Node>,
    now_ms: u64,
    /// Links that carry nothing, by sender and receiver.
    cut: BTreeSet<(u64, u64)>,
    /// Forwards that are lost from now on.
    lost_forwards: usize,
    /// Appends that this server is sent are lost.
    lost_appends: Option<u64>,
}

impl Cluster {
    fn new(servers: u64) -> Self {
        let voters: Vec<u64> = (1..=servers).collect();
        let node = |server: u64| {
            let engine = Engine::new(
                Setup {
                    origin: OriginId {
                        server: server as u32,
                        disk: server,
                        incarnation: 1,
                    },
                    options: Options::default(),
                    random: Box::new(|| [9; 16]),
                    logger: slog::Logger::root(slog::Discard, slog::o!()),
                    machine: Machine::new(),
                    hard_state: proto::log::HardState::default(),
                    membership: proto::log::Membership {
                        voters: voters.clone(),
                        ..Default::default()
                    },
                    entries: Vec::new(),
                    snapshot_due: false,
                },
                0,
            );
            Node {
                shared: engine.shared(),
                engine,
                up: true,
            }
        };
        let mut cluster = Self {
            nodes: voters.iter().map(|server| node(*server)).collect(),
            now_ms: 0,
            cut: BTreeSet::new(),
            lost_forwards: 0,
            lost_appends: None,
        };
        cluster.pass(3_000);
        cluster
    }

    fn node(&mut self, server: u64) -> &mut Node {
        &mut self.nodes[server as usize - 1]
    }

    fn shared(&self, server: u64) -> &Arc<Shared> {
        &self.nodes[server as usize - 1].shared
    }

    fn servers(&self) -> Vec<u64> {
        (1..=self.nodes.len() as u64).collect()
    }

    fn running(&self) -> Vec<u64> {
        let servers = self.servers().into_iter();
        servers
            .filter(|server| self.nodes[*server as usize - 1].up)
            .collect()
    }

    /// Lets everyone work, write and hear until nobody has anything to say.
    fn settle(&mut self) {
        self.settle_with(Vec::new());
    }

    fn settle_with(&mut self, mut sends: Vec<(u64, u64, PeerMessage)>) {
        loop {
            for (from, to, message) in std::mem::take(&mut sends) {
                let forwards = matches!(message, PeerMessage::Forward(_));
                if forwards && self.lost_forwards > 0 {
                    self.lost_forwards -= 1;
                    continue;
                }
                let appends = matches!(
                    &message,
                    PeerMessage::Raft(m) if m.get_msg_type() == MessageType::MsgAppend
                );
                if self.cut.contains(&(from, to))
                    || !self.node(to).up
                    || (appends && self.lost_appends == Some(to))
                {
                    continue;
                }
                // As it goes over the network.
                let message = PeerMessage::decode(message.encode().into()).unwrap();
                let now_ms = self.now_ms;
                let mut out = Outputs::default();
                let event = Event::Peer { from, message };
                self.node(to).engine.handle(event, now_ms, &mut out);
                sends.extend(out.sends.into_iter().map(|(whom, m)| (to, whom, m)));
            }
            for server in self.running() {
                sends.extend(self.turn(server));
            }
            if sends.is_empty() {
                return;
            }
        }
    }

    fn turn(&mut self, server: u64) -> Vec<(u64, u64, PeerMessage)> {
        let now_ms = self.now_ms;
        let engine = &mut self.node(server).engine;
        let mut sends = Vec::new();
        loop {
            let mut out = Outputs::default();
            engine.turn(now_ms, 1_000_000 + now_ms as i64, &mut out);
            let written = out.append.last().map(|append| append.number);
            if let Some(number) = written {
                engine.handle(Event::Persisted(number), now_ms, &mut out);
            }
            sends.extend(out.sends.into_iter().map(|(whom, m)| (server, whom, m)));
            if written.is_none() {
                return sends;
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        self.pass_but(ms, &[]);
    }

    /// Time passes; these servers do not notice.
    fn pass_but(&mut self, ms: u64, paused: &[u64]) {
        for _ in 0..ms / 50 {
            self.now_ms += 50;
            let now_ms = self.now_ms;
            let mut sends = Vec::new();
            for server in self.running() {
                if !paused.contains(&server) {
                    let mut out = Outputs::default();
                    self.node(server)
                        .engine
                        .handle(Event::Tick, now_ms, &mut out);
                    sends.extend(out.sends.into_iter().map(|(whom, m)| (server, whom, m)));
                }
            }
            let cut = self.cut.clone();
            for server in paused {
                self.isolate(*server);
            }
            self.settle_with(sends);
            self.cut = cut;
        }
    }

    fn isolate(&mut self, server: u64) {
        for other in self.servers() {
            self.cut.insert((server, other));
            self.cut.insert((other, server));
        }
    }

    fn leader(&self) -> u64 {
        let leading = self.running().into_iter().filter(|server| {
            let node = &self.nodes[*server as usize - 1];
            node.engine.leading.is_some() && node.engine.replica.is_leader()
        });
        let newest = leading.max_by_key(|server| self.nodes[*server as usize - 1].engine.term());
        newest.expect("somebody leads")
    }

    fn follower(&self) -> u64 {
        let leader = self.leader();
        let mut others = self.running().into_iter();
        others.find(|server| *server != leader).unwrap()
    }

    fn kill(&mut self, server: u64) {
        self.node(server).up = false;
    }

    fn attach(&mut self, server: u64, session: SessionId, password: &[u8]) -> Client {
        let peer = "127.0.0.1:1234".parse().unwrap();
        let client = Client {
            connection: self.shared(server).connect(peer, Box::new(|_| {})),
            output: RefCell::default(),
            closed: false,
        };
        let frame = hello(session, password, Zxid(0));
        client.receive(&frame, self.now_ms).unwrap();
        self.settle();
        client
    }

    fn client(&mut self, server: u64) -> (Client, ConnectResponse) {
        let mut client = self.attach(server, SessionId(0), &[0; 16]);
        let response = client.connect_response().expect("a session is given");
        (client, response)
    }

    /// How many frames of this request were taken in.
    fn send(&mut self, client: &Client, xid: i32, request: &Request) -> usize {
        let mut frame = BytesMut::new();
        frame.extend_from_slice(&xid.to_be_bytes());
        frame.extend_from_slice(&request.opcode().to_be_bytes());
        request.encode(&mut frame);
        let taken = client.receive(&frame, self.now_ms);
        self.settle();
        taken.unwrap_or(0)
    }

    fn ping(&mut self, client: &Client) -> usize {
        self.send(client, -2, &Request::Ping)
    }

    fn has(&self, server: u64, path: &str) -> bool {
        self.shared(server)
            .state
            .read()
            .machine
            .peek(path)
            .is_some()
    }

    fn knows(&self, server: u64, session: SessionId) -> bool {
        let state = self.shared(server).state.read();
        state.machine.session(session).is_some()
    }

    /// All running servers are in the same state.
    fn agree(&self) {
        let digests: BTreeSet<(u64, u64)> = self
            .running()
            .into_iter()
            .map(|server| {
                let state = self.shared(server).state.read();
                (state.machine.applied().index, state.machine.digest())
            })
            .collect();
        assert_eq!(digests.len(), 1, "{digests:?}");
    }
}

#[test]
fn three_servers_choose_a_leader_and_all_serve() {
    let cluster = Cluster::new(3);
    let leader = cluster.leader();
    for server in cluster.servers() {
        assert_eq!(cluster.nodes[server as usize - 1].engine.leader(), leader);
        assert!(cluster.shared(server).is_serving());
    }
    cluster.agree();
}

#[test]
fn a_write_through_a_follower_is_seen_by_all_and_answered_there() {
    let mut cluster = Cluster::new(3);
    let (mut client, given) = {
        let follower = cluster.follower();
        cluster.client(follower)
    };
    cluster.send(&client, 1, &create("/a", 0));
    cluster.send(&client, 2, &exists("/a"));
    let sync = Request::Sync {
        path: Some("/".into()),
    };
    cluster.send(&client, 3, &sync);
    assert_eq!(client.frames(), [ok(1), ok(2), ok(3)]);
    for server in cluster.servers() {
        assert!(cluster.has(server, "/a") && cluster.knows(server, given.session));
    }
    cluster.agree();
}

#[test]
fn a_minority_commits_nothing() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let (mut client, _) = cluster.client(leader);
    cluster.isolate(leader);
    cluster.send(&client, 1, &create("/a", 0));
    cluster.pass(500);
    assert_eq!(client.frames(), []);
    assert!(cluster.servers().iter().all(|s| !cluster.has(*s, "/a")));
}

#[test]
fn when_the_leader_dies_clients_of_the_others_only_wait() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let follower = cluster.follower();
    let (mut client, given) = cluster.client(follower);
    cluster.kill(leader);
    for xid in 1..=20 {
        cluster.send(&client, xid, &create("/n-", 2));
    }
    assert_eq!(client.frames(), []);
    cluster.pass(3_000);
    let all: Vec<_> = (1..=20).map(ok).collect();
    assert_eq!(client.frames(), all);
    assert!(!client.closed && cluster.knows(follower, given.session));
    // Each once: the numbers have no holes and no more.
    assert!(cluster.has(follower, "/n-0000000019") && !cluster.has(follower, "/n-0000000020"));
    cluster.agree();
}

#[test]
fn what_is_lost_on_its_way_to_the_leader_is_sent_again_once_each() {
    let mut cluster = Cluster::new(3);
    let follower = cluster.follower();
    let (mut client, _) = cluster.client(follower);
    // A loss that nothing follows, and one that leaves a gap.
    for first in [1, 11] {
        cluster.lost_forwards = 1;
        cluster.send(&client, first, &create("/n-", 2));
        if first == 11 {
            for xid in 12..15 {
                cluster.send(&client, xid, &create("/n-", 2));
            }
            assert_eq!(client.frames().len(), 4, "the gap is seen at once");
        } else {
            assert_eq!(client.frames(), []);
            cluster.pass(1_500);
            assert_eq!(client.frames(), [ok(1)]);
        }
    }
    assert!(cluster.has(follower, "/n-0000000004") && !cluster.has(follower, "/n-0000000005"));
    cluster.agree();
}

#[test]
fn a_follower_keeps_its_clients_sessions_and_their_silence_ends_them() {
    let mut cluster = Cluster::new(3);
    let follower = cluster.follower();
    let (client, given) = cluster.client(follower);
    for _ in 0..20 {
        cluster.pass(1_000);
        assert_eq!(cluster.ping(&client), 1);
    }
    assert!(cluster.knows(follower, given.session));
    cluster.pass(TIMEOUT_MS + 4_000);
    for server in cluster.servers() {
        assert!(!cluster.knows(server, given.session));
    }
}

#[test]
fn a_client_that_was_heard_just_before_it_left_keeps_its_session_for_the_whole_timeout() {
    let mut cluster = Cluster::new(3);
    let follower = cluster.follower();
    let (client, given) = cluster.client(follower);
    cluster.pass(3_500);
    cluster.ping(&client);
    client.connection.lost();
    cluster.pass(TIMEOUT_MS - 100);
    assert!(cluster.knows(follower, given.session));
    cluster.pass(4_000);
    assert!(!cluster.knows(follower, given.session));
}

#[test]
fn a_session_moves_to_another_server_and_its_old_connection_is_closed() {
    let mut cluster = Cluster::new(3);
    let (mut old, given) = cluster.client(1);
    let mut new = cluster.attach(2, given.session, &given.password);
    assert_eq!(new.connect_response().unwrap().session, given.session);
    assert_eq!(old.frames(), []);
    assert!(old.closed);
    cluster.send(&new, 1, &create("/a", 1));
    assert_eq!(new.frames(), [ok(1)]);
}

#[test]
fn a_server_that_is_cut_off_falls_silent_before_its_sessions_can_end() {
    let mut cluster = Cluster::new(3);
    let follower = cluster.follower();
    let (mut client, given) = cluster.client(follower);
    cluster.ping(&client);
    client.frames();
    cluster.isolate(follower);
    // For a third of the timeout it may answer, then not any more.
    cluster.pass(1_000);
    assert_eq!(cluster.ping(&client), 1);
    cluster.pass(500);
    assert_eq!(cluster.ping(&client), 0);
    assert_eq!(cluster.send(&client, 2, &exists("/")), 0);
    assert!(cluster.knows(cluster.leader(), given.session));
    client.frames();
    cluster.pass(2_000);
    assert_eq!(client.frames(), []);
    assert!(client.closed, "its client is better off elsewhere");
    // It does not serve before it has caught up.
    cluster.pass(10_000);
    assert!(!cluster.shared(follower).is_serving());
    assert!(!cluster.knows(cluster.leader(), given.session));
    cluster.cut.clear();
    cluster.pass(3_000);
    assert!(cluster.shared(follower).is_serving());
    assert!(!cluster.knows(follower, given.session));
    cluster.agree();
}

#[test]
fn a_leader_that_is_cut_off_falls_silent_too_and_joins_again() {
    let mut cluster = Cluster::new(3);
    let old = cluster.leader();
    let (client, _) = cluster.client(old);
    cluster.isolate(old);
    cluster.pass(1_600);
    assert_eq!(cluster.ping(&client), 0);
    cluster.pass(2_000);
    let new = cluster.leader();
    assert_ne!(new, old);
    let (mut other, _) = cluster.client(new);
    cluster.send(&other, 1, &create("/a", 0));
    assert_eq!(other.frames(), [ok(1)]);
    assert!(!cluster.has(old, "/a"));
    cluster.cut.clear();
    cluster.pass(3_000);
    assert!(cluster.has(old, "/a"));
    cluster.agree();
}

#[test]
fn a_change_of_leaders_costs_no_session_and_no_connection() {
    let mut cluster = Cluster::new(5);
    let clients: Vec<_> = cluster
        .servers()
        .into_iter()
        .map(|server| (server, cluster.client(server)))
        .collect();
    for _ in 0..2 {
        let leader = cluster.leader();
        cluster.kill(leader);
        for _ in 0..6 {
            cluster.pass(500);
            for (server, (client, _)) in &clients {
                if cluster.running().contains(server) {
                    cluster.ping(client);
                }
            }
        }
    }
    for (server, (mut client, given)) in clients {
        if cluster.running().contains(&server) {
            assert!(client.frames().len() >= 6);
            assert!(!client.closed && cluster.knows(server, given.session));
        }
    }
}

#[test]
fn a_server_that_slept_answers_nothing_until_it_knows_what_it_missed() {
    let mut cluster = Cluster::new(3);
    let follower = cluster.follower();
    let (mut client, given) = cluster.client(follower);
    cluster.pass_but(60_000, &[follower]);
    assert!(!cluster.knows(cluster.leader(), given.session));
    // The connection's task runs before the node's.
    let mut ping = BytesMut::new();
    ping.extend_from_slice(&(-2_i32).to_be_bytes());
    ping.extend_from_slice(&op::PING.to_be_bytes());
    assert_eq!(client.receive(&ping, cluster.now_ms), Ok(0));
    cluster.pass(1_000);
    assert_eq!(client.frames(), []);
    assert!(client.closed);
    assert!(!cluster.knows(follower, given.session));
}

/// Kills the leader, which had taken in a request that nobody else has seen, and returns how long
/// it took until the request was answered after a new leader was known, in ticks.
fn ticks_behind_a_new_leader(request: &Request) -> usize {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let follower = cluster.follower();
    let (mut client, _) = cluster.client(follower);
    for other in cluster.servers() {
        cluster.cut.insert((leader, other));
    }
    cluster.send(&client, 1, request);
    cluster.kill(leader);
    let mut ticks = 0;
    while [0, leader].contains(&cluster.node(follower).engine.leader()) {
        assert_eq!(client.frames(), []);
        cluster.pass(50);
        ticks += 1;
    }
    // Who sends again only because so much time has passed would do so later.
    assert!(ticks < 18, "{ticks}");
    let mut more = 0;
    while client.frames() != [ok(1)] {
        cluster.pass(50);
        more += 1;
        assert!(more < 100, "it is never answered");
    }
    more
}

#[test]
fn what_the_last_leader_took_in_is_sent_to_the_new_one_at_once() {
    assert!(ticks_behind_a_new_leader(&create("/a", 0)) <= 1);
}

#[test]
fn a_sync_that_the_last_leader_did_not_answer_is_asked_of_the_new_one_at_once() {
    let sync = Request::Sync {
        path: Some("/".into()),
    };
    assert!(ticks_behind_a_new_leader(&sync) <= 1);
}

#[test]
fn a_server_that_lags_behind_serves_nobody_new() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let follower = cluster.follower();
    cluster.isolate(follower);
    cluster.pass(11_000);
    assert!(!cluster.shared(follower).is_serving());
    let (client, _) = cluster.client(leader);
    cluster.send(&client, 1, &create("/a", 0));
    cluster.lost_appends = Some(follower);
    cluster.cut.clear();
    cluster.pass(3_000);
    assert!(cluster.node(follower).engine.lease.confirmed_ms().is_some());
    assert!(!cluster.shared(follower).is_serving(), "it has not seen /a");
    cluster.lost_appends = None;
    cluster.pass(1_000);
    assert!(cluster.shared(follower).is_serving() && cluster.has(follower, "/a"));
}

#[test]
fn a_server_that_hears_the_leader_but_lacks_what_it_wrote_falls_silent() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let follower = cluster.follower();
    let (client, _) = cluster.client(follower);
    let (other, _) = cluster.client(leader);
    cluster.lost_appends = Some(follower);
    cluster.send(&other, 1, &create("/a", 0));
    cluster.pass(1_600);
    assert_eq!(cluster.ping(&client), 0);
    cluster.lost_appends = None;
    cluster.pass(100);
    assert_eq!(cluster.ping(&client), 1);
}

#[test]
fn whoever_was_not_answered_is_woken_when_the_lease_is_back() {
    let mut cluster = Cluster::new(3);
    let follower = cluster.follower();
    let (client, _) = cluster.client(follower);
    let woken = Arc::new(AtomicUsize::new(0));
    let count = woken.clone();
    let peer = "127.0.0.1:1234".parse().unwrap();
    let wake = Box::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let _idle = cluster.shared(follower).connect(peer, wake);
    cluster.isolate(follower);
    cluster.pass(1_100);
    // The task looks between two turns of the node, which itself never sees the lease run out.
    assert!(!client.connection.wants_input(cluster.now_ms + 400));
    let shared = cluster.shared(follower);
    assert!(shared.may_answer(TIMEOUT_MS as i32, cluster.now_ms));
    cluster.cut.clear();
    cluster.pass(200);
    assert!(woken.load(Ordering::Relaxed) > 0);
    assert!(client.connection.wants_input(cluster.now_ms));
}

#[test]
fn a_server_that_is_cut_off_can_still_be_asked_how_it_is() {
    let mut cluster = Cluster::new(3);
    let follower = cluster.follower();
    cluster.isolate(follower);
    cluster.pass(11_000);
    let peer = "127.0.0.1:1234".parse().unwrap();
    let fresh = cluster.shared(follower).connect(peer, Box::new(|_| {}));
    cluster.pass(1_000);
    assert!(fresh.awaits_handshake());
}

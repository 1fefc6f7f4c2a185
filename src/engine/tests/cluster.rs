//! Several engines that hear each other, with a network that can be cut and disks that are fast.

mod disks;
mod linearizable;
mod lines;
mod local;
mod read_only;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use raft::eraftpb::MessageType;

use super::*;
use crate::engine::members::disk_setting;
use crate::engine::reconcile::step;
use crate::machine::RestoreError;
use crate::proto::log::membership_step::Kind;
use crate::proto::peer::Told;
use crate::wire::request::Reconfig;

/// Of the sessions (see [`hello`]).
const TIMEOUT_MS: u64 = 4_000;

struct Node {
    engine: Engine,
    shared: Arc<Shared>,
    up: bool,
    disk: u64,
    boot: u64,
    build: Build,
    kept: Kept,
    /// It has stopped itself.
    outdated: Option<Outdated>,
}

/// What a server's version of zkraft knows, and what it is configured to agree to.
#[derive(Clone, Copy)]
struct Build {
    level: u32,
    level_max: u32,
}

impl Build {
    fn of(level: u32) -> Self {
        Self {
            level,
            level_max: 0,
        }
    }
}

/// What is on a server's disk.
#[derive(Clone, Default)]
struct Kept {
    hard_state: proto::log::HardState,
    membership: Option<proto::log::Membership>,
    entries: Vec<proto::log::LogEntry>,
}

impl Kept {
    fn write(&mut self, record: &proto::log::Record) {
        let mark = record.mark.clone();
        self.membership = mark
            .and_then(|mark| mark.membership)
            .or(self.membership.take());
        self.hard_state = record.hard_state.unwrap_or(self.hard_state);
        if let Some(first) = record.entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend(record.entries.iter().cloned());
        }
    }
}

impl Node {
    /// Starts a server on what is kept of it. `voters`: as it is configured.
    fn start(
        origin: OriginId,
        voters: &[u64],
        admitted: bool,
        build: Build,
        kept: Kept,
        now_ms: u64,
        tune: &dyn Fn(&mut Options),
    ) -> Self {
        let configured = proto::log::Membership {
            voters: voters.to_vec(),
            ..Default::default()
        };
        let mut options = Options {
            ensemble: lines(voters),
            settings: vec![("reconfig_enabled", 1)],
            auth: AuthOptions {
                skip_acl: true,
                ..AuthOptions::default()
            },
            level: build.level,
            level_max: build.level_max,
            ..Options::default()
        };
        tune(&mut options);
        let setup = Setup {
            origin,
            hard_state: kept.hard_state,
            membership: kept.membership.clone().unwrap_or(configured),
            entries: kept.entries.clone(),
            admitted,
            ..Setup::alone(options)
        };
        let engine = Engine::new(setup, now_ms);
        Self {
            shared: engine.shared(),
            engine,
            up: true,
            disk: origin.disk,
            boot: origin.incarnation,
            build,
            kept,
            outdated: None,
        }
    }

    /// As it introduces itself, knowing this disk of the other one.
    fn introduction(&self, knows: u64) -> Introduction {
        Introduction {
            disk: self.disk,
            boot: self.boot,
            level: self.build.level,
            level_max: self.build.level_max,
            formed: self.engine.replica.last_index() > 0,
            aware: self.shared.is_aware(),
            knows,
            ..Introduction::default()
        }
    }
}

/// The lines of these servers.
fn lines(servers: &[u64]) -> String {
    let lines = servers.iter().map(|id| line(*id));
    lines.collect::<Vec<_>>().join("\n")
}

fn line(id: u64) -> String {
    format!("server.{id}=host{id}:2888:3888")
}

fn reconfig(joining: &str, leaving: &str) -> Request {
    let text = |text: &str| (!text.is_empty()).then(|| text.into());
    Request::Reconfig(Reconfig {
        joining: text(joining),
        leaving: text(leaving),
        members: None,
        version: -1,
    })
}

struct Cluster {
    nodes: Vec<Node>,
    now_ms: u64,
    /// Links that carry nothing, by sender and receiver.
    cut: BTreeSet<(u64, u64)>,
    /// The same, since one of the two refuses the other for its age.
    refused: BTreeSet<(u64, u64)>,
    /// Forwards that are lost from now on.
    lost_forwards: usize,
    /// Appends that this server is sent are lost, but for so many.
    lost_appends: Option<u64>,
    kept_appends: usize,
    /// The snapshots that servers have, by server and index.
    snapshots: BTreeMap<(u64, u64), (SnapshotMeta, Image)>,
    /// How many were sent, and whether they arrive.
    transfers: u64,
    broken_transfers: bool,
    /// Whether questions for what is committed are lost.
    lost_read_indexes: bool,
    /// Servers that stopped because their state was another one.
    diverged: BTreeMap<u64, Divergence>,
    /// Whether entries that leave a joint membership are lost.
    lost_changes: bool,
    /// This server's disk is not done with anything.
    slow_disk: Option<u64>,
    /// Nobody is told that its snapshot is done.
    slow_snapshots: bool,
}

impl Cluster {
    fn new(servers: u64) -> Self {
        let mut cluster = Self::strangers(servers, 0, true);
        cluster.pass(3_000);
        cluster
    }

    /// Servers that do not know each other's disks yet, which are numbered as they are, from here
    /// on. `admitted`: they may take part all the same.
    fn strangers(servers: u64, disks_from: u64, admitted: bool) -> Self {
        let voters: Vec<u64> = (1..=servers).collect();
        Self::configured(&voters, servers, disks_from, admitted)
    }

    /// Servers that have these options besides.
    fn tuned(servers: u64, tune: impl Fn(&mut Options)) -> Self {
        let voters: Vec<u64> = (1..=servers).collect();
        let builds = vec![Build::of(FEATURE_LEVEL); servers as usize];
        let mut cluster = Self::built(&voters, &builds, 0, true, &tune);
        cluster.pass(3_000);
        cluster
    }

    /// Some of the servers found an ensemble by their lines; the others have lines of all.
    fn configured(founders: &[u64], servers: u64, disks_from: u64, admitted: bool) -> Self {
        let builds = vec![Build::of(FEATURE_LEVEL); servers as usize];
        Self::of_builds(founders, &builds, disks_from, admitted)
    }

    /// The same with a build for each server.
    fn of_builds(founders: &[u64], builds: &[Build], disks_from: u64, admitted: bool) -> Self {
        Self::built(founders, builds, disks_from, admitted, &|_| ())
    }

    fn built(
        founders: &[u64],
        builds: &[Build],
        disks_from: u64,
        admitted: bool,
        tune: &dyn Fn(&mut Options),
    ) -> Self {
        let all: Vec<u64> = (1..=builds.len() as u64).collect();
        let node = |(server, build): (&u64, &Build)| {
            let voters = match founders.contains(server) {
                true => founders,
                false => &all,
            };
            let origin = OriginId {
                server: *server as u32,
                disk: disks_from + server,
                incarnation: 1,
            };
            Node::start(origin, voters, admitted, *build, Kept::default(), 0, tune)
        };
        Self {
            nodes: all.iter().zip(builds).map(node).collect(),
            now_ms: 0,
            cut: BTreeSet::new(),
            refused: BTreeSet::new(),
            lost_forwards: 0,
            lost_appends: None,
            kept_appends: 0,
            lost_read_indexes: false,
            diverged: BTreeMap::new(),
            lost_changes: false,
            slow_disk: None,
            slow_snapshots: false,
            snapshots: BTreeMap::new(),
            transfers: 0,
            broken_transfers: false,
        }
    }

    /// Everyone who runs is told of everyone else who does, as links do.
    fn link(&mut self) {
        for server in self.running() {
            for id in self.running() {
                if id != server {
                    self.introduce(id, server);
                }
            }
        }
    }

    /// `server` is linked to `id`.
    fn introduce(&mut self, id: u64, server: u64) {
        let knows = self.shared(id).bound_disk(server as u32);
        let disk = self.node(server).disk;
        let is_old = |old: u64, other: u64| {
            self.nodes[old as usize - 1].build.level < self.shared(other).level()
        };
        let both = [(id, server), (server, id)];
        let is_old = both.iter().any(|(old, other)| is_old(*old, *other));
        self.refused.retain(|link| !both.contains(link));
        if is_old {
            self.refused.extend(both);
        }
        if is_old || !self.shared(id).is_member(server as u32) {
            let introduction = self.node(server).introduction(0);
            self.event(
                id,
                Event::Refused {
                    id: server,
                    introduction,
                },
            );
            return;
        }
        if knows != 0 && knows != disk {
            self.event(id, Event::Stranger { id: server, disk });
            return;
        }
        let introduction = self.node(id).introduction(knows);
        self.event(server, Event::Linked { id, introduction });
    }

    fn event(&mut self, server: u64, event: Event) {
        let now_ms = self.now_ms;
        self.node(server)
            .engine
            .handle(event, now_ms, &mut Outputs::default());
    }

    /// Time passes, and servers try to link to each other all the while.
    fn pass_linking(&mut self, ms: u64) {
        for _ in 0..ms / 200 {
            self.link();
            self.pass(200);
        }
    }

    /// Voters and learners, as the leader has them.
    fn members(&self) -> (Vec<u64>, Vec<u64>) {
        let engine = &self.nodes[self.leader() as usize - 1].engine;
        let membership = engine.replica.membership();
        assert!(membership.voters_outgoing.is_empty());
        let sorted = |mut ids: Vec<u64>| {
            ids.sort_unstable();
            ids
        };
        (sorted(membership.voters), sorted(membership.learners))
    }

    /// This server's process dies, and the others see their connections to it refused.
    fn die(&mut self, server: u64) {
        self.kill(server);
        for other in self.running() {
            self.event(other, Event::PeerLost(server));
        }
    }

    /// This server's process ends, and another build is started on its disk.
    fn replace(&mut self, server: u64, build: Build) {
        let now_ms = self.now_ms;
        let node = self.node(server);
        let origin = OriginId {
            server: server as u32,
            disk: node.disk,
            incarnation: node.boot + 1,
        };
        let kept = node.kept.clone();
        *node = Node::start(origin, &[1, 2, 3], false, build, kept, now_ms, &|_| ());
        for other in self.running() {
            if other != server {
                self.event(other, Event::Unreachable(server));
            }
        }
    }

    /// The feature levels of all that run.
    fn levels(&self) -> Vec<u32> {
        let level = |server| self.shared(server).state.read().machine.level();
        self.running().into_iter().map(level).collect()
    }

    /// Time passes, step by step, with a turn in each; heartbeats are as ever.
    fn pass_finely(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now_ms += 1;
            if self.now_ms.is_multiple_of(50) {
                self.now_ms -= 50;
                self.pass(50);
            } else {
                self.settle();
            }
        }
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
                let is =
                    |kind| matches!(&message, PeerMessage::Raft(m) if m.get_msg_type() == kind);
                let appends = is(MessageType::MsgAppend);
                let asks = is(MessageType::MsgReadIndex);
                let leaves = |entry: &raft::eraftpb::Entry| {
                    entry.get_entry_type() != EntryType::EntryNormal && entry.context.is_empty()
                };
                let leaves = match &message {
                    PeerMessage::Raft(message) => message.entries.iter().any(leaves),
                    _ => false,
                };
                let is_lost = appends && self.lost_appends == Some(to);
                let is_kept = is_lost && self.kept_appends > 0;
                self.kept_appends -= usize::from(is_kept);
                if self.cut.contains(&(from, to))
                    || self.refused.contains(&(from, to))
                    || !self.node(to).up
                    || (is_lost && !is_kept)
                    || (asks && self.lost_read_indexes)
                    || (leaves && self.lost_changes)
                {
                    continue;
                }
                // As it goes over the network.
                let message = PeerMessage::decode(message.encode().into()).unwrap();
                let now_ms = self.now_ms;
                let mut out = Outputs::default();
                let disk = self.node(from).disk;
                let knows = self.shared(from).bound_disk(to as u32);
                self.node(to).engine.standing.comes_with(from, disk, knows);
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
        let is_slow = self.slow_disk == Some(server);
        let are_slow = self.slow_snapshots;
        let mut sends = Vec::new();
        loop {
            let node = self.node(server);
            let mut out = Outputs::default();
            node.engine
                .turn(now_ms, 1_000_000 + now_ms as i64, &mut out);
            out.append
                .iter()
                .for_each(|append| node.kept.write(&append.record));
            if out.outdated.is_some() {
                node.outdated = out.outdated;
                node.up = false;
                return Vec::new();
            }
            if let Some(divergence) = out.diverged.take() {
                node.up = false;
                self.diverged.insert(server, divergence);
                return sends;
            }
            let engine = &mut node.engine;
            let written = out.append.last().map(|append| append.number);
            if let Some(number) = written
                && !is_slow
            {
                engine.handle(Event::Persisted(number), now_ms, &mut out);
            }
            if let Some((meta, image)) = out.take_snapshot.take() {
                let index = meta.index;
                if !are_slow {
                    let event = Event::SnapshotTaken { index, bytes: 1 };
                    engine.handle(event, now_ms, &mut out);
                }
                self.snapshots.insert((server, index), (meta, image));
            }
            for SendSnapshot { to, index, .. } in std::mem::take(&mut out.send_snapshot) {
                self.transfers += 1;
                let ok = !self.broken_transfers;
                if ok {
                    let (meta, image) = &self.snapshots[&(server, index)];
                    let chunks = image.chunks().map(Ok::<_, ()>);
                    let machine = Machine::restore(chunks).expect("it was taken whole");
                    let received = Event::SnapshotReceived(Box::new((meta.clone(), machine)));
                    self.event(to, received);
                }
                self.event(server, Event::SnapshotSent { to, ok });
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

    /// A client that has said nothing yet.
    fn fresh(&self, server: u64) -> Client {
        Client {
            connection: connect(self.shared(server)),
            output: RefCell::default(),
            closed: false,
        }
    }

    fn attach(&mut self, server: u64, session: SessionId, password: &[u8]) -> Client {
        let client = self.fresh(server);
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

    /// How often this server has heard of another state than its own.
    fn mismatches(&self, server: u64) -> u64 {
        self.shared(server).metrics.digest_mismatches_count.value()
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
fn a_write_behind_a_sync_takes_effect_after_it() {
    let mut cluster = Cluster::new(3);
    let follower = cluster.follower();
    let (mut client, _) = cluster.client(follower);
    let sync = Request::Sync {
        path: Some("/".into()),
    };
    cluster.lost_read_indexes = true;
    cluster.send(&client, 1, &sync);
    cluster.send(&client, 2, &exists("/a"));
    assert_eq!(cluster.send(&client, 3, &create("/a", 0)), 0);
    assert_eq!(client.frames(), []);
    cluster.lost_read_indexes = false;
    cluster.pass(1_000);
    let missing = ErrorCode::NoNode;
    assert_eq!(client.frames(), [ok(1), failed(2, missing)]);
    cluster.send(&client, 3, &create("/a", 0));
    assert_eq!(client.frames(), [ok(3)]);
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
fn what_comes_while_an_entry_is_on_its_way_shares_the_next_one() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let (mut client, _) = cluster.client(leader);
    cluster.isolate(leader);
    let last = |cluster: &Cluster| {
        let engine = &cluster.nodes[leader as usize - 1].engine;
        engine.replica.last_index()
    };
    let before = last(&cluster);
    for xid in 1..=4 {
        cluster.send(&client, xid, &create(&format!("/{xid}"), 0));
    }
    assert_eq!(last(&cluster), before + 1);
    // Nobody waits for it for long.
    let now_ms = cluster.now_ms;
    let mut out = Outputs::default();
    cluster
        .node(leader)
        .engine
        .turn(now_ms, 1_000_000, &mut out);
    assert_eq!(out.wake_at_ms, Some(now_ms + GATHER_MS));
    cluster.now_ms += GATHER_MS - 1;
    cluster.settle();
    assert_eq!(last(&cluster), before + 1);
    cluster.now_ms += 1;
    cluster.settle();
    assert_eq!(last(&cluster), before + 2);
    // Once it is through, nothing else has to happen.
    cluster.send(&client, 5, &create("/5", 0));
    cluster.cut.clear();
    cluster.pass(200);
    assert_eq!(client.frames(), (1..=5).map(ok).collect::<Vec<_>>());
    assert_eq!(last(&cluster), before + 3);
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
fn s86_a_new_leader_gives_every_session_its_full_timeout() {
    const BUCKET_MS: u64 = 500;
    const NEARLY_MS: u64 = TIMEOUT_MS / 10 * 9;
    let mut cluster = Cluster::tuned(3, |options| options.session_tick_ms = BUCKET_MS);
    let old = cluster.leader();
    // From here on, nobody says anything.
    let clients = cluster.servers().into_iter();
    let clients: Vec<_> = clients.map(|server| cluster.client(server)).collect();
    let known = |cluster: &Cluster| {
        let known =
            |(server, given): (&u64, &ConnectResponse)| cluster.knows(*server, given.session);
        let running = cluster.running();
        let all = running
            .iter()
            .flat_map(|server| clients.iter().map(move |(_, given)| (server, given)));
        all.filter(|each| known(*each)).count()
    };
    cluster.pass(NEARLY_MS);
    assert_eq!(known(&cluster), 9);
    cluster.die(old);
    let leads = |cluster: &Cluster| {
        let mut running = cluster.running().into_iter();
        running.any(|server| cluster.nodes[server as usize - 1].engine.leading.is_some())
    };
    while !leads(&cluster) {
        assert!(cluster.now_ms < 60_000, "nobody leads");
        cluster.pass(50);
    }
    cluster.pass(NEARLY_MS);
    assert_eq!(known(&cluster), 6);
    // The rest of the timeout, up to one bucket, and what it takes to be told.
    cluster.pass(TIMEOUT_MS - NEARLY_MS + BUCKET_MS + 100);
    assert_eq!(known(&cluster), 0);
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

#[test]
fn who_waited_for_the_state_answers_by_the_time_at_which_it_has_it() {
    let mut cluster = Cluster::new(3);
    let follower = cluster.follower();
    let (client, _) = cluster.client(follower);
    let shared = cluster.shared(follower);
    let now_ms = cluster.now_ms;
    let clock = || match shared.state.try_write() {
        Some(_) => now_ms,
        // Until it was had, the session's time had passed.
        None => now_ms + TIMEOUT_MS,
    };
    let mut ping = BytesMut::new();
    ping.put_i32(8);
    ping.put_i32(-2);
    ping.put_i32(op::PING);
    let mut out = BytesMut::new();
    let taken = client
        .connection
        .receive(&mut ping, FRAME_BYTES_MAX, clock, &mut out);
    assert_eq!((taken, out.len()), (Ok(0), 0));
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
    let fresh = connect(cluster.shared(follower));
    cluster.pass(1_000);
    assert!(fresh.awaits_handshake());
}

/// A leader keeps less of its log than [`write_much`] writes.
fn keep_little(options: &mut Options) {
    options.log_kept.usually = 2 << 20;
}

fn write_much(cluster: &mut Cluster, client: &mut Client) {
    for xid in 1_000..1_020 {
        let set = Request::SetData {
            path: "/big".into(),
            data: Some(vec![xid as u8; 1_000_000].into()),
            version: -1,
        };
        cluster.send(client, xid, &set);
        assert_eq!(client.frames(), [ok(xid)]);
    }
}

#[test]
fn a_server_that_is_too_far_behind_is_sent_a_snapshot() {
    let mut cluster = Cluster::tuned(3, keep_little);
    let leader = cluster.leader();
    let behind = cluster.follower();
    let (mut client, _) = cluster.client(leader);
    let (mut stranded, given) = cluster.client(behind);
    cluster.send(&client, 1, &create("/big", 0));
    client.frames();
    cluster.isolate(behind);
    // It is not known what becomes of this one.
    cluster.send(&stranded, 1, &create("/lost", 0));
    write_much(&mut cluster, &mut client);
    assert_eq!(cluster.transfers, 0);
    cluster.broken_transfers = true;
    cluster.cut.clear();
    cluster.pass(500);
    assert!(cluster.transfers > 0, "it is tried again");
    cluster.broken_transfers = false;
    cluster.pass(1_000);
    cluster.agree();
    assert!(cluster.shared(behind).is_serving());
    stranded.frames();
    assert!(
        stranded.closed,
        "its watches and writes are not known any more"
    );
    // The session lives, and a new stream of writes begins.
    let mut again = cluster.attach(behind, given.session, &given.password);
    assert_eq!(again.connect_response().unwrap().session, given.session);
    for xid in 1..=3 {
        cluster.send(&again, xid, &create("/n-", 2));
    }
    assert_eq!(again.frames(), [ok(1), ok(2), ok(3)]);
    assert!(!cluster.has(leader, "/lost"));
    cluster.agree();
    // Once is enough.
    let transfers = cluster.transfers;
    cluster.pass(3_000);
    assert_eq!(cluster.transfers, transfers);
}

#[test]
fn the_log_is_kept_for_who_is_sent_a_snapshot_until_it_needs_no_more_than_others() {
    let kept = LogKept {
        usually: 2 << 20,
        in_transfer: 64 << 20,
    };
    let mut cluster = Cluster::tuned(3, |options| options.log_kept = kept);
    let leader = cluster.leader();
    let behind = cluster.follower();
    let (mut client, _) = cluster.client(leader);
    cluster.send(&client, 1, &create("/big", 0));
    client.frames();
    cluster.isolate(behind);
    write_much(&mut cluster, &mut client);
    // Much is written while a snapshot is made.
    cluster.slow_snapshots = true;
    cluster.cut.clear();
    cluster.pass(500);
    write_much(&mut cluster, &mut client);
    cluster.pass(500);
    assert_eq!(cluster.transfers, 0);
    let [(server, index)] = cluster.snapshots.keys().copied().collect::<Vec<_>>()[..] else {
        unreachable!("one was taken")
    };
    cluster.slow_snapshots = false;
    cluster.event(server, Event::SnapshotTaken { index, bytes: 1 });
    // And while what follows it arrives one by one.
    cluster.lost_appends = Some(behind);
    for number in 0..10 {
        cluster.kept_appends = 1;
        cluster.pass(500);
        assert_eq!(cluster.transfers, 1);
        cluster.send(&client, 2 + number, &create("/n-", 2));
        cluster.pass(100);
    }
    cluster.lost_appends = None;
    cluster.pass(2_000);
    cluster.agree();
    assert_eq!((cluster.transfers, cluster.snapshots.len()), (1, 1));
    assert!(cluster.node(leader).engine.transfers.is_empty());
}

#[test]
fn the_log_after_a_snapshot_is_kept_until_the_init_limit() {
    let mut cluster = Cluster::tuned(3, |options| {
        keep_little(options);
        options.init_limit_ms = 8_000;
    });
    let leader = cluster.leader();
    let behind = cluster.follower();
    let (mut client, _) = cluster.client(leader);
    cluster.send(&client, 1, &create("/big", 0));
    client.frames();
    cluster.isolate(behind);
    write_much(&mut cluster, &mut client);
    cluster.cut.clear();
    cluster.broken_transfers = true;
    cluster.pass(500);
    assert!(cluster.transfers > 0);
    // From now on it gets snapshots, and nothing of what follows them.
    cluster.broken_transfers = false;
    cluster.lost_appends = Some(behind);
    cluster.pass(2_000);
    let kept = |cluster: &mut Cluster| cluster.node(leader).engine.transfers.len();
    cluster.pass(5_000);
    assert_eq!(kept(&mut cluster), 1);
    cluster.pass(5_000);
    assert_eq!(kept(&mut cluster), 0);
    cluster.lost_appends = None;
    cluster.pass(2_000);
    cluster.agree();
}

#[test]
fn commands_from_before_a_snapshot_are_not_taken_for_later_ones() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let behind = cluster.follower();
    let (mut client, _) = cluster.client(leader);
    let (stranded, given) = cluster.client(behind);
    cluster.send(&client, 1, &create("/big", 0));
    client.frames();
    // The write reaches the leader, but nothing comes back.
    cluster.cut.insert((leader, behind));
    for other in cluster.servers() {
        if other != leader {
            cluster.cut.insert((other, behind));
        }
    }
    cluster.send(&stranded, 1, &create("/arrived", 0));
    assert!(cluster.has(leader, "/arrived"));
    write_much(&mut cluster, &mut client);
    cluster.cut.clear();
    cluster.pass(2_000);
    let mut again = cluster.attach(behind, given.session, &given.password);
    again.connect_response().expect("it is attached");
    cluster.send(&again, 1, &create("/arrived", 0));
    cluster.send(&again, 2, &create("/second", 0));
    assert_eq!(again.frames(), [failed(1, ErrorCode::NodeExists), ok(2)]);
    cluster.agree();
}

#[test]
fn when_the_leaders_process_dies_another_leads_within_a_moment() {
    for servers in [3, 5] {
        let mut cluster = Cluster::new(servers);
        let leader = cluster.leader();
        let follower = cluster.follower();
        let (mut client, _) = cluster.client(follower);
        cluster.die(leader);
        cluster.send(&client, 1, &create("/a", 0));
        cluster.pass_finely(50);
        assert_eq!(client.frames(), [ok(1)]);
        assert_ne!(cluster.leader(), leader);
        cluster.agree();
    }
}

#[test]
fn two_leaders_lost_one_after_the_other_cost_no_more_than_two_failovers() {
    let mut cluster = Cluster::new(5);
    let leader = cluster.leader();
    // Others campaign before it.
    let follower = if leader == 5 { 4 } else { 5 };
    let (mut first, _) = cluster.client(follower);
    let (mut second, _) = cluster.client(follower);
    let began_ms = cluster.now_ms;
    for xid in 1..=2 {
        // With the leader goes what was on its way; and then some of what is sent again.
        let leader = cluster.leader();
        cluster.die(leader);
        cluster.lost_forwards = 1;
        cluster.send(&first, xid, &create("/a-", 2));
        while cluster.lost_forwards > 0 {
            cluster.pass_finely(1);
            assert!(
                cluster.now_ms < began_ms + 5_000,
                "there is no other leader"
            );
        }
        cluster.send(&second, xid, &create("/b-", 2));
    }
    let mut answered = 0;
    while answered < 4 {
        cluster.pass_finely(1);
        answered += first.frames().len() + second.frames().len();
        assert!(cluster.now_ms < began_ms + 5_000, "nobody is answered");
    }
    let took_ms = cluster.now_ms - began_ms;
    assert!(took_ms <= 300, "{took_ms} ms");
}

#[test]
fn a_leader_that_others_still_hear_is_not_deposed() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let follower = cluster.follower();
    let term = cluster.node(leader).engine.term();
    // Only this one thinks so: its own link broke.
    cluster.event(follower, Event::PeerLost(leader));
    cluster.pass_finely(2_000);
    assert_eq!(cluster.leader(), leader);
    assert_eq!(cluster.node(leader).engine.term(), term);
    assert_eq!(cluster.node(follower).engine.leader(), leader);
}

#[test]
fn leadership_is_handed_over_without_an_election_timeout() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let (mut client, _) = cluster.client(leader);
    cluster.event(leader, Event::HandOver);
    cluster.settle();
    assert_ne!(cluster.leader(), leader);
    // Who hands over still serves, by the new leader.
    cluster.send(&client, 1, &create("/a", 0));
    assert_eq!(client.frames(), [ok(1)]);
    cluster.pass(3_000);
    assert_ne!(cluster.leader(), leader);
    cluster.agree();
}

#[test]
fn empty_servers_found_a_cluster_only_together() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass(3_000);
    cluster.introduce(2, 1);
    cluster.introduce(1, 2);
    cluster.pass(3_000);
    for server in cluster.servers() {
        assert_eq!(cluster.node(server).engine.term(), 0, "nobody campaigns");
    }
    cluster.link();
    cluster.pass(3_000);
    let leader = cluster.leader();
    for server in cluster.servers() {
        assert!(cluster.shared(server).is_serving());
    }
    // Before anyone is served it is known whose disks these are, and which cluster it is.
    let state = cluster.shared(leader).state.read();
    for server in cluster.servers() {
        assert_eq!(
            state.machine.setting(&disk_setting(server)),
            100 + server as i64
        );
    }
    assert_ne!(state.machine.setting(CLUSTER_SETTING), 0);
}

#[test]
fn a_server_that_lost_its_disk_promises_nothing() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.link();
    cluster.pass(3_000);
    let leader = cluster.leader();
    let wiped = cluster.follower();
    let third = 6 - leader - wiped;
    // What is acknowledged now, the wiped server and the leader have; the third does not.
    cluster.isolate(third);
    let (mut client, _) = cluster.client(leader);
    cluster.send(&client, 1, &create("/a", 0));
    assert_eq!(client.frames(), [ok(1)]);
    let mut empty = Cluster::strangers(3, 200, false);
    std::mem::swap(cluster.node(wiped), empty.node(wiped));
    cluster.kill(leader);
    cluster.cut.clear();
    cluster.link();
    cluster.pass(10_000);
    for server in [wiped, third] {
        let engine = &cluster.node(server).engine;
        assert!(!engine.replica.is_leader(), "/a would be lost");
    }
}

#[test]
fn one_server_grows_to_three_and_shrinks_back() {
    let mut cluster = Cluster::configured(&[1], 3, 100, false);
    cluster.pass_linking(2_000);
    let (mut client, _) = cluster.client(1);
    cluster.send(&client, 1, &create("/a", 0));
    assert_eq!(cluster.members(), (vec![1], vec![]));
    let joining = format!("{};2181,{};2181", line(2), line(3));
    cluster.send(&client, 2, &reconfig(&joining, ""));
    assert_eq!(client.frames(), [ok(1), ok(2)]);
    // Nobody waits for those who join.
    assert_eq!(cluster.members(), (vec![1], vec![2, 3]));
    cluster.send(&client, 3, &create("/b", 0));
    assert_eq!(client.frames(), [ok(3)]);
    cluster.pass_linking(3_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]));
    cluster.agree();
    for server in cluster.servers() {
        assert!(cluster.has(server, "/b") && cluster.shared(server).is_serving());
        let membership = cluster.node(server).engine.replica.membership();
        assert_eq!(membership.voters.len(), 3, "{membership:?}");
    }
    // The first may die now.
    cluster.die(1);
    cluster.pass(2_000);
    let leader = cluster.leader();
    let (mut client, _) = cluster.client(leader);
    cluster.send(&client, 1, &reconfig("", "1"));
    assert_eq!(client.frames(), [ok(1)]);
    cluster.pass_linking(1_000);
    assert_eq!(cluster.members(), (vec![2, 3], vec![]));
    let other = 5 - leader;
    cluster.send(&client, 2, &reconfig("", &other.to_string()));
    assert_eq!(client.frames(), [ok(2)]);
    cluster.pass_linking(1_000);
    assert_eq!(cluster.members(), (vec![leader], vec![]));
    cluster.kill(other);
    cluster.send(&client, 3, &create("/c", 0));
    assert_eq!(client.frames(), [ok(3)]);
}

#[test]
fn a_leader_that_is_removed_lets_another_one_lead() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let follower = cluster.follower();
    let (mut client, _) = cluster.client(follower);
    cluster.send(&client, 1, &reconfig("", &leader.to_string()));
    cluster.pass_linking(3_000);
    assert_eq!(client.frames(), [ok(1)]);
    assert_ne!(cluster.leader(), leader);
    let (voters, _) = cluster.members();
    assert!(voters.len() == 2 && !voters.contains(&leader));
}

#[test]
fn a_majority_that_is_not_there_is_not_given_the_say() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let follower = cluster.follower();
    let third = 6 - leader - follower;
    let (mut client, _) = cluster.client(leader);
    cluster.kill(follower);
    cluster.pass(2_000);
    cluster.send(&client, 1, &reconfig("", &third.to_string()));
    let refused = failed(1, ErrorCode::NewConfigNoQuorum);
    assert_eq!(client.frames(), [refused]);
    // The dead one may go.
    cluster.send(&client, 2, &reconfig("", &follower.to_string()));
    assert_eq!(client.frames(), [ok(2)]);
    cluster.pass(1_000);
    assert_eq!(cluster.members().0.len(), 2);
}

/// A leader that is to go lets another one lead, who has heard of nobody yet but those who elected
/// it.
#[test]
fn a_new_leader_hears_the_others_before_it_misses_them() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let (mut client, _) = cluster.client(leader);
    // The other two do not hear each other for a while.
    let mut others = cluster.servers();
    others.retain(|id| *id != leader);
    cluster.cut.insert((others[0], others[1]));
    cluster.cut.insert((others[1], others[0]));
    cluster.pass(1_000);
    cluster.send(&client, 1, &reconfig("", &leader.to_string()));
    cluster.pass(100);
    assert_ne!(cluster.leader(), leader);
    assert_eq!(client.frames(), []);
    cluster.cut.clear();
    cluster.pass_linking(1_000);
    assert_eq!(client.frames(), [ok(1)]);
    assert_eq!(cluster.members(), (others, vec![]));
}

#[test]
fn who_is_known_to_be_gone_or_may_not_know_its_disk_is_not_counted_on() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let third = 6 - leader - follower;
    let (mut client, _) = cluster.client(leader);
    cluster.die(follower);
    cluster.send(&client, 1, &reconfig("", &third.to_string()));
    let refused = failed(1, ErrorCode::NewConfigNoQuorum);
    assert_eq!(client.frames(), [refused]);

    // Nothing of the third is bound: were it started anew with an empty log, it would give no vote.
    let mut cluster = Cluster::strangers(3, 100, true);
    cluster.pass(2_000);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let (mut client, _) = cluster.client(leader);
    cluster.send(&client, 1, &reconfig("", &follower.to_string()));
    cluster.pass(1_000);
    let refused = failed(1, ErrorCode::NewConfigNoQuorum);
    assert_eq!(client.frames(), [refused]);
    cluster.pass_linking(1_000);
    cluster.send(&client, 2, &reconfig("", &follower.to_string()));
    cluster.pass(1_000);
    assert_eq!(client.frames(), [ok(2)]);
    assert_eq!(cluster.members().0.len(), 2);
}

#[test]
fn those_that_stay_are_in_sync_before_another_is_removed() {
    let builds = vec![Build::of(FEATURE_LEVEL); 3];
    let mut cluster = Cluster::built(&[1, 2, 3], &builds, 100, false, &keep_little);
    cluster.pass_linking(2_000);
    let (leader, behind) = (cluster.leader(), cluster.follower());
    let third = 6 - leader - behind;
    let (mut client, _) = cluster.client(leader);
    cluster.send(&client, 1, &create("/big", 0));
    client.frames();
    cluster.isolate(behind);
    write_much(&mut cluster, &mut client);
    cluster.broken_transfers = true;
    cluster.cut.clear();
    cluster.pass(500);
    cluster.send(&client, 2, &reconfig("", &third.to_string()));
    cluster.pass(1_000);
    assert_eq!(client.frames(), [failed(2, ErrorCode::NewConfigNoQuorum)]);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]));
    cluster.broken_transfers = false;
    cluster.pass_linking(1_000);
    cluster.send(&client, 3, &reconfig("", &third.to_string()));
    cluster.pass(1_000);
    assert_eq!(client.frames(), [ok(3)]);
    assert_eq!(cluster.members().0.len(), 2);
}

#[test]
fn a_reconfig_is_judged_by_the_state_that_it_will_meet() {
    // Nothing of the others is bound: a change that counts on them has no quorum.
    let mut cluster = Cluster::strangers(3, 100, true);
    cluster.pass(2_000);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let (mut client, _) = cluster.client(leader);
    let set = |cluster: &mut Cluster, value| {
        let setting = ("reconfig_enabled".to_owned(), value);
        let engine = &mut cluster.node(leader).engine;
        engine.internal.push(set_command(&setting));
        cluster.pass(50);
    };
    set(&mut cluster, 0);
    cluster.send(&client, 1, &reconfig("", &follower.to_string()));
    assert_eq!(client.frames(), [failed(1, ErrorCode::ReconfigDisabled)]);
    // What allows it is on its way while it comes.
    cluster.isolate(leader);
    set(&mut cluster, 1);
    cluster.send(&client, 2, &reconfig("", &follower.to_string()));
    assert_eq!(client.frames(), []);
    cluster.cut.clear();
    cluster.pass(200);
    assert_eq!(client.frames(), [failed(2, ErrorCode::NewConfigNoQuorum)]);
    assert_eq!(cluster.members().0.len(), 3);
}

#[test]
fn an_observer_follows_without_a_vote() {
    let mut cluster = Cluster::configured(&[1, 2, 3], 4, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let (mut client, _) = cluster.client(leader);
    let joining = format!("{}:observer;2181", line(4));
    cluster.send(&client, 1, &reconfig(&joining, ""));
    assert_eq!(client.frames(), [ok(1)]);
    cluster.pass_linking(3_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![4]));
    cluster.agree();
    let (mut reader, _) = cluster.client(4);
    cluster.send(&reader, 1, &create("/a", 0));
    assert_eq!(reader.frames(), [ok(1)]);
}

#[test]
fn a_server_that_lost_its_disk_is_taken_back_by_the_majority() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let wiped = cluster.follower();
    let (mut client, _) = cluster.client(leader);
    cluster.send(&client, 1, &create("/a", 0));
    let mut empty = Cluster::strangers(3, 200, false);
    std::mem::swap(cluster.node(wiped), empty.node(wiped));
    cluster.pass_linking(1_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]), "not at once");
    cluster.pass_linking(6_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]));
    assert!(cluster.has(wiped, "/a") && cluster.shared(wiped).is_serving());
    let state = cluster.shared(leader).state.read();
    assert_eq!(
        state.machine.setting(&disk_setting(wiped)),
        200 + wiped as i64
    );
    drop(state);
    cluster.agree();
    // Its vote counts again.
    client.frames();
    cluster.die(leader);
    cluster.pass(2_000);
    assert!(cluster.leader() != leader);
}

#[test]
fn nobody_takes_the_lead_from_a_leader_by_a_reconfig_that_is_refused() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let (mut client, _) = cluster.client(leader);
    let Request::Reconfig(right) = reconfig("", &leader.to_string()) else {
        unreachable!("it is one");
    };
    let wrong = Request::Reconfig(Reconfig {
        version: 77,
        ..right
    });
    cluster.send(&client, 1, &wrong);
    cluster.pass(1_000);
    assert_eq!(client.frames(), [failed(1, ErrorCode::BadVersion)]);
    assert_eq!(cluster.leader(), leader);
}

#[test]
fn the_level_is_raised_once_the_last_old_server_is_replaced() {
    let [old, new] = [1, 2].map(Build::of);
    let mut cluster = Cluster::of_builds(&[1, 2, 3], &[new, new, old], 100, false);
    cluster.pass_linking(3_000);
    assert_eq!(cluster.levels(), [1, 1, 1]);
    let (mut client, _) = cluster.client(1);
    cluster.send(&client, 1, &create("/a", 0));
    cluster.replace(3, new);
    cluster.pass_linking(3_000);
    assert_eq!(cluster.levels(), [2, 2, 2]);
    assert_eq!(cluster.shared(3).status().level, 2);
    cluster.send(&client, 2, &create("/b", 0));
    assert_eq!(client.frames(), [ok(1), ok(2)]);
    cluster.agree();
}

#[test]
fn what_a_member_that_is_down_said_does_not_raise_the_level() {
    let [old, new] = [1, 2].map(Build::of);
    for is_silent in [true, false] {
        let mut cluster = Cluster::of_builds(&[1, 2, 3], &[old, new, new], 100, false);
        cluster.pass_linking(3_000);
        if is_silent {
            cluster.kill(3);
            cluster.pass(1_000);
        } else {
            // Its process is seen to be gone.
            cluster.die(3);
        }
        cluster.replace(1, new);
        cluster.pass_linking(5_000);
        assert_eq!(cluster.levels(), [1, 1]);
        // It comes back as the build that it was before: as good as ever.
        cluster.replace(3, old);
        cluster.pass_linking(3_000);
        assert_eq!(cluster.levels(), [1, 1, 1]);
        assert!(cluster.shared(3).is_serving());
        cluster.replace(3, new);
        cluster.pass_linking(3_000);
        assert_eq!(cluster.levels(), [2, 2, 2]);
    }
}

#[test]
fn an_old_server_that_was_removed_does_not_keep_the_level() {
    let [old, new] = [1, 2].map(Build::of);
    let mut cluster = Cluster::of_builds(&[1, 2, 3], &[new, new, old], 100, false);
    cluster.pass_linking(3_000);
    let (mut client, _) = cluster.client(1);
    cluster.send(&client, 1, &reconfig("", "3"));
    cluster.pass_linking(3_000);
    assert_eq!(client.frames(), [ok(1)]);
    cluster.kill(3);
    assert_eq!(cluster.levels(), [2, 2]);
}

#[test]
fn a_server_that_is_too_old_does_not_join() {
    let [old, new] = [1, 2].map(Build::of);
    let builds = [new, new, new, old];
    let mut cluster = Cluster::of_builds(&[1, 2, 3], &builds, 100, false);
    cluster.pass_linking(3_000);
    assert_eq!(cluster.levels(), [2, 2, 2, 1]);
    let (mut client, _) = cluster.client(1);
    let joining = format!("{};2181", line(4));
    cluster.send(&client, 1, &reconfig(&joining, ""));
    cluster.pass_linking(1_000);
    let refused = failed(1, ErrorCode::NewConfigNoQuorum);
    assert_eq!(client.frames(), [refused]);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]));
    cluster.replace(4, new);
    cluster.pass_linking(1_000);
    cluster.send(&client, 2, &reconfig(&joining, ""));
    cluster.pass_linking(3_000);
    assert_eq!(client.frames(), [ok(2)]);
    assert_eq!(cluster.members(), (vec![1, 2, 3, 4], vec![]));
    assert_eq!(cluster.levels(), [2, 2, 2, 2]);
}

#[test]
fn a_joiner_whose_age_is_not_known_is_not_let_in_if_it_is_too_old() {
    let [old, new] = [1, 2].map(Build::of);
    let builds = [new, new, new, old];
    let mut cluster = Cluster::of_builds(&[1, 2, 3], &builds, 100, false);
    cluster.kill(4);
    cluster.pass_linking(3_000);
    let (mut client, _) = cluster.client(1);
    cluster.send(&client, 1, &reconfig(&format!("{};2181", line(4)), ""));
    assert_eq!(client.frames(), [ok(1)]);
    cluster.node(4).up = true;
    cluster.pass_linking(3_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![4]));
    assert_eq!(cluster.levels(), [2, 2, 2, 1]);
    assert!(!cluster.shared(4).is_serving());
}

#[test]
fn a_server_that_is_replaced_by_an_older_one_stops_where_the_level_rises() {
    let [old, new] = [1, 2].map(Build::of);
    let mut cluster = Cluster::of_builds(&[1, 2, 3], &[new, new, old], 100, false);
    cluster.pass_linking(3_000);
    // The last one is new for the moment in which the level is raised.
    cluster.replace(3, new);
    cluster.pass_linking(3_000);
    let (mut client, _) = cluster.client(1);
    cluster.send(&client, 1, &create("/a", 0));
    assert_eq!(client.frames(), [ok(1)]);
    cluster.replace(3, old);
    cluster.pass(1_000);
    let [level, known] = [2, 1];
    assert_eq!(cluster.node(3).outdated, Some(Outdated { level, known }));
    // What it would do wrong comes after the entry with which it stops.
    assert!(!cluster.has(3, "/a") && !cluster.shared(3).is_serving());
    cluster.send(&client, 2, &create("/b", 0));
    assert_eq!(client.frames(), [ok(2)]);
    // And back on the same data.
    cluster.replace(3, new);
    cluster.pass_linking(3_000);
    assert!(cluster.has(3, "/b") && cluster.shared(3).is_serving());
    cluster.agree();
}

#[test]
fn any_server_can_be_told_to_keep_the_level() {
    let new = Build::of(2);
    let keeps = Build {
        level_max: 1,
        ..new
    };
    for keeper in 1..=3 {
        let mut builds = [new; 3];
        builds[keeper as usize - 1] = keeps;
        let mut cluster = Cluster::of_builds(&[1, 2, 3], &builds, 100, false);
        cluster.pass_linking(3_000);
        assert_eq!(cluster.levels(), [1, 1, 1]);
        cluster.replace(keeper, new);
        cluster.pass_linking(3_000);
        assert_eq!(cluster.levels(), [2, 2, 2]);
        // Once it is raised, who keeps it comes too late.
        cluster.replace(keeper, keeps);
        cluster.pass_linking(3_000);
        assert!(cluster.shared(keeper).is_serving());
    }
}

#[test]
fn the_level_is_the_highest_that_all_know() {
    let builds = [5, 3, 4].map(Build::of);
    let mut cluster = Cluster::of_builds(&[1, 2, 3], &builds, 100, false);
    cluster.pass_linking(3_000);
    assert_eq!(cluster.levels(), [3, 3, 3]);
}

/// The state of this server changes behind its back: where its znodes have `from`, they have `to`.
fn spoil(cluster: &Cluster, server: u64, from: &[u8], to: &[u8]) {
    let mut state = cluster.shared(server).state.write();
    let image = state.machine.image();
    let mut chunks: Vec<BytesMut> = image.chunks().map(|chunk| chunk[..].into()).collect();
    let mut found = chunks.iter_mut().filter_map(|chunk| {
        let at = chunk.windows(from.len()).position(|part| part == from)?;
        Some((chunk, at))
    });
    let (chunk, at) = found.next().expect("it is there");
    chunk[at..at + to.len()].copy_from_slice(to);
    let restore = |chunks: &[BytesMut]| {
        let chunks = chunks.iter().map(|chunk| chunk.clone().freeze());
        Machine::restore(chunks.map(Ok::<_, ()>))
    };
    let Err(RestoreError::Digest { actual, .. }) = restore(&chunks) else {
        panic!("another state has another digest");
    };
    // Behind two numbers of 4 bytes and four of 8.
    chunks[0][40..48].copy_from_slice(&actual.to_be_bytes());
    state.machine = restore(&chunks).unwrap();
}

/// Writes some znodes, one of which is called `/right`.
fn right(cluster: &mut Cluster) -> Client {
    let leader = cluster.leader();
    let (client, _) = cluster.client(leader);
    cluster.send(&client, 1, &create("/right", 0));
    client
}

#[test]
fn a_server_whose_state_is_another_one_stops_though_nothing_is_written() {
    let mut cluster = Cluster::new(3);
    let _client = right(&mut cluster);
    let wrong = cluster.follower();
    cluster.pass(3_000);
    assert!(cluster.diverged.is_empty());
    spoil(&cluster, wrong, b"right", b"wrong");
    cluster.pass(11_000);
    let divergence = cluster.diverged.remove(&wrong).expect("it has noticed");
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != wrong).collect();
    assert_eq!(divergence.servers, others);
    let state = cluster.shared(others[0]).state.read();
    assert_eq!(divergence.others, state.machine.digest());
    assert_eq!(divergence.index, state.machine.applied().index);
    drop(state);
    let state = cluster.shared(wrong).state.read();
    assert_eq!(divergence.own, state.machine.digest());
    drop(state);
    assert!(divergence.agreed > 0);
    // The others go on.
    cluster.pass(1_000);
    assert!(cluster.diverged.is_empty());
    let (mut client, _) = {
        let leader = cluster.leader();
        cluster.client(leader)
    };
    cluster.send(&client, 1, &create("/b", 0));
    assert_eq!(client.frames(), [ok(1)]);
    for server in others {
        assert!(cluster.mismatches(server) > 0);
    }
}

#[test]
fn a_server_whose_state_is_another_one_stops_while_others_write() {
    let mut cluster = Cluster::new(3);
    let client = right(&mut cluster);
    let wrong = cluster.follower();
    spoil(&cluster, wrong, b"right", b"wrong");
    let mut xid = 1;
    while cluster.diverged.is_empty() {
        xid += 1;
        cluster.send(&client, xid, &create("/n-", 2));
        assert!(xid < 1_100, "it is not noticed");
    }
    let divergence = &cluster.diverged[&wrong];
    assert_eq!(divergence.index, Options::default().compare_every);
}

#[test]
fn a_leader_whose_state_is_another_one_lets_another_one_lead_before_it_stops() {
    let mut cluster = Cluster::new(3);
    let mut client = right(&mut cluster);
    let wrong = cluster.leader();
    let (mut other, _) = {
        let follower = cluster.follower();
        cluster.client(follower)
    };
    cluster.pass(2_000);
    cluster.ping(&other);
    spoil(&cluster, wrong, b"right", b"wrong");
    while cluster.diverged.is_empty() {
        cluster.pass(50);
        cluster.ping(&other);
    }
    assert!(cluster.diverged.contains_key(&wrong));
    // Nobody had to notice that it is gone.
    let leader = cluster.leader();
    assert_ne!(leader, wrong);
    other.frames();
    cluster.send(&other, 1, &create("/b", 0));
    assert_eq!(other.frames(), [ok(1)]);
    client.frames();
    assert_eq!(cluster.send(&client, 2, &exists("/right")), 0);
}

#[test]
fn without_a_majority_of_one_mind_all_go_on_and_say_so() {
    let mut cluster = Cluster::new(2);
    let _client = right(&mut cluster);
    cluster.pass(2_000);
    let wrong = cluster.follower();
    spoil(&cluster, wrong, b"right", b"wrong");
    cluster.pass(30_000);
    assert!(cluster.diverged.is_empty());
    for server in cluster.servers() {
        assert!(cluster.shared(server).is_serving());
        assert!(cluster.mismatches(server) > 0);
    }
    let leader = cluster.leader();
    let (mut client, _) = cluster.client(leader);
    cluster.send(&client, 1, &create("/b", 0));
    assert_eq!(client.frames(), [ok(1)]);
}

#[test]
fn a_server_that_comes_late_is_told_what_the_others_had() {
    let mut cluster = Cluster::new(3);
    let client = right(&mut cluster);
    let wrong = cluster.follower();
    spoil(&cluster, wrong, b"right", b"wrong");
    cluster.isolate(wrong);
    for xid in 2..2_500 {
        cluster.send(&client, xid, &create("/n-", 2));
    }
    cluster.cut.clear();
    cluster.pass(3_000);
    let divergence = &cluster.diverged[&wrong];
    assert!(divergence.index.is_multiple_of(1_000), "{divergence}");
}

/// What a start would be given of this log, which has no snapshot.
fn recovered(origin: OriginId, kept: &Kept) -> Setup {
    Setup {
        origin,
        // Of which the number of the new cluster is made.
        random: Box::new(|| [7; 16]),
        hard_state: kept.hard_state,
        membership: kept.membership.clone().unwrap_or_default(),
        entries: kept.entries.clone(),
        admitted: false,
        ..Setup::alone(Options::default())
    }
}

/// This server's next start.
fn next_start(server: u64, node: &Node) -> OriginId {
    OriginId {
        server: server as u32,
        disk: node.disk,
        incarnation: node.boot + 1,
    }
}

#[test]
fn a_survivor_becomes_a_cluster_of_its_own_with_all_that_it_has() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let survivor = cluster.leader();
    let (mut client, given) = cluster.client(survivor);
    cluster.send(&client, 1, &create("/acknowledged", 0));
    // Nobody knows any more what became of this.
    cluster.isolate(survivor);
    cluster.send(&client, 2, &create("/only-here", 0));
    assert_eq!(client.frames(), [ok(1)]);
    let before = {
        let state = cluster.shared(survivor).state.read();
        let cluster = state.machine.setting(CLUSTER_SETTING);
        (state.machine.zxid(), cluster)
    };
    let node = &cluster.nodes[survivor as usize - 1];
    let (mut origin, mut kept) = (next_start(survivor, node), node.kept.clone());

    let setup = recovered(origin, &kept);
    let last = setup.entries.last().map(|entry| entry.index).unwrap();
    let dead = Survivor::new(setup);
    let facts = dead.facts().clone();
    assert_eq!((facts.server, facts.last.index), (survivor, last));
    assert!(facts.committed < last && facts.zxid > before.0);
    assert_eq!(facts.membership.voters.len(), 3);
    let Alone {
        record,
        meta,
        image,
    } = dead.alone(0x77, 5_000_000).unwrap();
    kept.write(&record);

    origin.incarnation += 1;
    let mut alone = Cluster::configured(&[1, 2, 3], 3, 200, false);
    let build = Build::of(FEATURE_LEVEL);
    let started = Node::start(origin, &[1, 2, 3], false, build, kept, 0, &|_| ());
    alone.nodes[survivor as usize - 1] = started;
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != survivor).collect();
    alone.pass(500);
    assert_eq!(alone.members(), (vec![survivor], vec![]));
    assert!(alone.shared(survivor).is_serving());
    // The one that should have followed at once is made up for.
    let taken: Vec<u64> = alone.snapshots.keys().map(|(server, _)| *server).collect();
    assert_eq!(taken, [survivor]);
    assert!(alone.has(survivor, "/acknowledged") && alone.has(survivor, "/only-here"));
    assert!(alone.knows(survivor, given.session));
    {
        // Before its first own entry it is as the snapshot has it.
        assert_eq!(
            (meta.index, meta.digest),
            (image.applied().index, image.digest())
        );
        let state = alone.shared(survivor).state.read();
        assert_eq!(state.machine.applied().index, meta.index + 1);
        assert_eq!(meta.membership.voters, [survivor]);
        assert_eq!(state.machine.setting(CLUSTER_SETTING), 0x77);
        assert_ne!(before.1, 0x77);
        let ensemble = state.machine.ensemble().unwrap();
        let members: Vec<u64> = ensemble
            .members()
            .iter()
            .map(|line| line.id.into())
            .collect();
        assert_eq!(members, [survivor]);
        for other in &others {
            assert_eq!(state.machine.setting(&disk_setting(*other)), 0);
            assert!(!alone.shared(survivor).is_member(*other as u32));
        }
        // Far above whatever clients can have seen of the others.
        assert!(state.machine.zxid().epoch() > before.0.epoch() + 1_000_000);
    }
    // The session has its full timeout, and comes back with what it has seen.
    let mut again = alone.attach(survivor, given.session, &given.password);
    assert_eq!(again.connect_response().unwrap().session, given.session);
    // The others are taken in with empty disks.
    let joining: Vec<String> = others
        .iter()
        .map(|id| format!("{};2181", line(*id)))
        .collect();
    alone.send(&again, 1, &reconfig(&joining.join(","), ""));
    assert_eq!(again.frames(), [ok(1)]);
    alone.pass_linking(4_000);
    assert_eq!(alone.members(), (vec![1, 2, 3], vec![]));
    alone.agree();
    alone.die(survivor);
    alone.pass(2_000);
    assert!(alone.has(others[0], "/acknowledged") && alone.has(others[1], "/only-here"));
    assert!(others.contains(&alone.leader()));
}

#[test]
fn only_one_of_several_can_become_a_cluster_of_its_own() {
    let mut cluster = Cluster::configured(&[1], 1, 100, true);
    cluster.pass(1_000);
    let node = &cluster.nodes[0];
    let alone = Survivor::new(recovered(next_start(1, node), &node.kept));
    assert_eq!(alone.alone(7, 0).err(), Some(Unfit::Alone));
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let (mut client, _) = {
        let leader = cluster.leader();
        cluster.client(leader)
    };
    let removed = cluster.follower();
    cluster.send(&client, 1, &reconfig("", &removed.to_string()));
    assert_eq!(client.frames(), [ok(1)]);
    cluster.pass_linking(1_000);
    let node = &cluster.nodes[removed as usize - 1];
    let stale = Survivor::new(recovered(next_start(removed, node), &node.kept));
    assert_eq!(stale.alone(7, 0).err(), Some(Unfit::Removed));

    // Who has seen that it was alone before it lost its disk does not lead on the new one.
    let mut grown = Cluster::configured(&[1], 1, 100, true);
    grown.pass(1_000);
    let origin = OriginId {
        disk: 201,
        ..next_start(1, &grown.nodes[0])
    };
    let setup = recovered(origin, &grown.nodes[0].kept);
    let alone = Survivor::new(setup).alone(7, 0).unwrap();
    let mut kept = grown.nodes[0].kept.clone();
    kept.write(&alone.record);
    let build = Build::of(FEATURE_LEVEL);
    grown.nodes[0] = Node::start(origin, &[1], false, build, kept, 0, &|_| ());
    grown.pass(1_000);
    assert!(grown.shared(1).is_serving());
}

#[test]
fn a_majority_founds_a_cluster_without_the_others_if_it_may() {
    let change = |options: &mut Options| options.found_with_majority = true;
    let builds = [Build::of(FEATURE_LEVEL); 3];
    let mut cluster = Cluster::built(&[1, 2, 3], &builds, 100, false, &change);
    cluster.kill(2);
    cluster.kill(3);
    cluster.pass_linking(3_000);
    assert!(!cluster.shared(1).is_serving(), "one of three is none");
    cluster.node(3).up = true;
    cluster.pass_linking(3_000);
    let leader = cluster.leader();
    let (mut client, _) = cluster.client(leader);
    cluster.send(&client, 1, &create("/a", 0));
    assert_eq!(client.frames(), [ok(1)]);
    // Who comes late joins.
    cluster.node(2).up = true;
    cluster.pass_linking(5_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]));
    assert!(cluster.has(2, "/a") && cluster.shared(2).is_serving());
    cluster.agree();
}

/// Three servers, of which the first two have founded a cluster; one of these came back with an
/// empty disk. The disk of the third one is bound, but it has not heard of that.
fn founded_by_two() -> (Cluster, [u64; 3]) {
    let change = |options: &mut Options| options.found_with_majority = true;
    let builds = [Build::of(FEATURE_LEVEL); 3];
    let built = |disks_from| Cluster::built(&[1, 2, 3], &builds, disks_from, false, &change);
    let mut cluster = built(100);
    cluster.kill(3);
    cluster.pass_linking(3_000);
    let full = cluster.leader();
    let empty = 3 - full;
    let (client, _) = cluster.client(full);
    cluster.send(&client, 1, &create("/a", 0));
    cluster.node(3).up = true;
    cluster.lost_appends = Some(3);
    cluster.introduce(3, full);
    cluster.pass(500);
    assert!(cluster.has(1, "/a") && cluster.has(2, "/a"));
    assert_eq!(cluster.shared(full).bound_disk(3), 103);
    std::mem::swap(cluster.node(empty), built(200).node(empty));
    (cluster, [full, empty, 3])
}

/// The one that has the data comes back, and finds no cluster beside its own.
fn comes_back(mut cluster: Cluster, full: u64) {
    cluster.pass_linking(3_000);
    for server in cluster.running() {
        assert_eq!(cluster.node(server).engine.replica.last_index(), 0);
    }
    cluster.node(full).up = true;
    cluster.lost_appends = None;
    cluster.pass_linking(10_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]));
    assert!([1, 2, 3].iter().all(|server| cluster.has(*server, "/a")));
    cluster.agree();
}

#[test]
fn a_server_that_was_refused_founds_nothing_with_one_that_is_new() {
    let (mut cluster, [full, empty, _]) = founded_by_two();
    let introduction = cluster.node(full).introduction(100 + empty);
    cluster.shared(empty).learn(&introduction, &Told::default());
    let introduction = cluster.node(empty).introduction(0);
    let refused = NotAdmitted::OtherDisk { bound: 100 + empty };
    let server = empty as u32;
    let introduction = Introduction {
        server,
        ..introduction
    };
    assert_eq!(cluster.shared(full).admit(&introduction), Err(refused));
    cluster.kill(full);
    comes_back(cluster, full);
}

/// It may be removed and added again before it has anything, and another one may lead by then.
#[test]
fn who_believed_a_server_of_a_cluster_believes_the_others_of_it() {
    let told = |version: i64, servers: &str| {
        let line = |id: char| format!("server.{id}=host{id}:2888:3888\n");
        let lines: String = servers.chars().map(line).collect();
        Told {
            ensemble: format!("{lines}version={version:x}"),
            ..Told::default()
        }
    };
    let mut cluster = Cluster::strangers(3, 100, false);
    let shared = cluster.node(3).engine.shared();
    let of = |server, cluster, knows| Introduction {
        server,
        cluster,
        knows,
        ..Introduction::default()
    };
    shared.learn(&of(1, 7, 103), &told(5, "13"));
    assert!(!shared.is_member(4));
    shared.learn(&of(4, 8, 0), &told(6, "134"));
    assert!(!shared.is_member(4), "it is of another cluster");
    shared.learn(&of(4, 7, 0), &told(6, "134"));
    assert!(shared.is_member(4));
}

#[test]
fn a_server_founds_nothing_with_one_that_has_met_another() {
    let (mut cluster, [full, _, new]) = founded_by_two();
    // It was there for a moment.
    cluster.introduce(full, new);
    cluster.kill(full);
    comes_back(cluster, full);
}

#[test]
fn servers_that_have_met_others_begin_anew_once_all_are_empty() {
    let (mut cluster, [full, empty, new]) = founded_by_two();
    let introduction = cluster.node(full).introduction(100 + empty);
    cluster.shared(empty).learn(&introduction, &Told::default());
    cluster.lost_appends = None;
    let change = |options: &mut Options| options.found_with_majority = true;
    let builds = [Build::of(FEATURE_LEVEL); 3];
    let mut others = Cluster::built(&[1, 2, 3], &builds, 300, false, &change);
    std::mem::swap(cluster.node(full), others.node(full));
    cluster.pass_linking(5_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]));
    assert!(!cluster.has(new, "/a") && cluster.shared(new).is_serving());
}

#[test]
fn a_leader_that_is_removed_asks_nobody_without_a_vote_to_lead() {
    let mut cluster = Cluster::configured(&[1, 2], 3, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let other = 3 - leader;
    let (mut client, _) = cluster.client(other);
    let observer = format!("{}:observer;2181", line(3));
    cluster.send(&client, 1, &reconfig(&observer, ""));
    cluster.pass_linking(3_000);
    assert_eq!(cluster.members(), (vec![1, 2], vec![3]));
    // It would have been asked first, and raft hears no such wish.
    let joining = format!("{};2181", line(3));
    cluster.send(&client, 2, &reconfig(&joining, &leader.to_string()));
    cluster.pass_linking(5_000);
    assert_eq!(client.frames(), [ok(1), ok(2)]);
    assert_eq!(cluster.members(), (vec![other, 3], vec![]));
}

#[test]
fn a_removed_server_lets_its_clients_go_at_once() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let (leader, removed) = (cluster.leader(), cluster.follower());
    let (mut client, _) = cluster.client(removed);
    let mut idle = cluster.attach(removed, SessionId(0), &[0; 16]);
    let (mut other, _) = cluster.client(leader);
    let fresh = cluster.fresh(removed);
    cluster.send(&client, 1, &reconfig("", &removed.to_string()));
    // The last thing that it is told is that this was done.
    assert_eq!(client.frames(), [ok(1)]);
    assert!(client.closed);
    assert!(idle.connect_response().is_some());
    assert!(idle.frames().is_empty() && idle.closed);
    assert!(!cluster.shared(removed).is_serving());
    let now_ms = cluster.now_ms;
    let hello = hello(SessionId(0), &[0; 16], Zxid(0));
    assert_eq!(fresh.receive(&hello, now_ms), Err(Refused("not serving")));
    assert!(other.frames().is_empty() && !other.closed);
    // A member again, it serves again.
    let joining = format!("{};2181", line(removed));
    cluster.send(&other, 1, &reconfig(&joining, ""));
    cluster.pass_linking(3_000);
    assert!(cluster.shared(removed).is_serving());
}

#[test]
fn who_is_told_of_its_removal_lets_its_clients_go() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let (leader, removed) = (cluster.leader(), cluster.follower());
    let (mut client, _) = cluster.client(removed);
    let (other, _) = cluster.client(leader);
    cluster.isolate(removed);
    cluster.send(&other, 1, &reconfig("", &removed.to_string()));
    cluster.pass(200);
    assert!(client.frames().is_empty() && !client.closed);
    // As those do who refuse it.
    let told = cluster.shared(leader).tell();
    let shared = cluster.shared(removed).clone();
    let of_same = Introduction {
        cluster: shared.cluster(),
        ..Introduction::default()
    };
    shared.learn(&of_same, &told);
    cluster.pass(50);
    assert!(client.frames().is_empty() && client.closed);
    assert!(!shared.is_serving());
}

/// It may be the leader, and have come after what is applied here.
#[test]
fn who_is_to_go_is_let_in_by_one_that_was_only_told_of_it() {
    let mut cluster = Cluster::new(3);
    let server = cluster.follower();
    let shared = cluster.shared(server).clone();
    let of_same = Introduction {
        cluster: shared.cluster(),
        ..Introduction::default()
    };
    let told = Told {
        ensemble: format!("{}\nversion=7fffffff00000000", lines(&[1, 2, 3])),
        going: vec![line(9)],
        ..Told::default()
    };
    shared.learn(&of_same, &told);
    assert!(!shared.is_member(9));
    cluster.pass(100);
    assert!(shared.is_member(9) && !shared.is_member(8));
    // So does one hear that is told by this one.
    assert_eq!(shared.tell().going.len(), 1);
}

#[test]
fn a_removed_server_asks_for_nothing_until_it_is_a_member_again() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let (leader, removed) = (cluster.leader(), cluster.follower());
    let (client, _) = cluster.client(removed);
    let (mut other, _) = cluster.client(leader);
    // It does not hear of its removal.
    cluster.cut.insert((leader, removed));
    cluster.send(&other, 1, &reconfig("", &removed.to_string()));
    assert_eq!(other.frames(), [ok(1)]);
    cluster.send(&client, 1, &reconfig("", &leader.to_string()));
    for _ in 0..4 {
        cluster.pass(1_000);
        cluster.ping(&other);
        assert_eq!(cluster.leader(), leader);
    }
    cluster.cut.clear();
    // Its link to the leader is as it was, and by now it asks only every few seconds. This time it
    // does not wait for that.
    let joining = format!("{};2181", line(removed));
    cluster.send(&other, 2, &reconfig(&joining, ""));
    cluster.pass(1_000);
    assert_ne!(cluster.leader(), leader);
}

#[test]
fn what_a_leader_wants_itself_does_not_wait_behind_a_reconfig() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let (mut client, _) = cluster.client(follower);
    // The others hear of no change, so the second has to wait for the first.
    let third = 6 - leader - follower;
    cluster.isolate(third);
    cluster.cut.insert((leader, follower));
    cluster.send(&client, 1, &reconfig("", &third.to_string()));
    cluster.send(&client, 2, &reconfig("", &third.to_string()));
    let setting = ("reconfig_enabled".to_owned(), 1);
    let engine = &mut cluster.node(leader).engine;
    assert!(!engine.inbound.is_empty());
    engine.internal.push(set_command(&setting));
    cluster.pass(50);
    assert!(!cluster.node(leader).engine.inbound.is_empty());
    assert!(cluster.node(leader).engine.internal.is_empty());
    assert_eq!(client.frames(), []);
}

#[test]
fn a_reconfig_does_not_wait_until_the_clients_of_others_pause() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let (mut client, _) = cluster.client(leader);
    let (mut other, _) = cluster.client(follower);
    let third = 6 - leader - follower;
    // Something is on its way, and something of others waits.
    cluster.cut.extend([(leader, follower), (leader, third)]);
    cluster.send(&client, 1, &create("/a", 0));
    cluster.send(&client, 2, &reconfig("", &third.to_string()));
    cluster.send(&other, 1, &create("/b", 0));
    cluster.pass(50);
    assert!(!cluster.node(leader).engine.inbound.is_empty());
    cluster.cut.clear();
    cluster.pass(1_000);
    assert_eq!(client.frames(), [ok(1), ok(2)]);
    assert_eq!(other.frames(), [ok(1)]);
}

#[test]
fn one_server_at_a_time_is_asked_to_lead() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let mut others = cluster.running();
    others.retain(|server| *server != leader);
    let [first, second] = others[..] else {
        unreachable!("there are three")
    };
    // One is behind, so the other is asked, and does not hear it.
    cluster.lost_appends = Some(second);
    let (client, _) = cluster.client(leader);
    cluster.send(&client, 1, &create("/a", 0));
    cluster.cut.insert((leader, first));
    cluster.event(leader, Event::HandOver);
    cluster.settle();
    // Now both would do.
    cluster.lost_appends = None;
    cluster.pass(200);
    assert!(cluster.has(second, "/a"));
    cluster.cut.clear();
    cluster.pass(100);
    assert_eq!(cluster.leader(), leader);
    cluster.pass(2_000);
    assert_ne!(cluster.leader(), leader);
}

#[test]
fn a_server_is_not_removed_for_a_stranger_that_has_gone() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let follower = cluster.follower();
    for _ in 0..20 {
        let (id, disk) = (follower, 999);
        cluster.event(leader, Event::Stranger { id, disk });
        cluster.pass(200);
    }
    cluster.pass(6_000);
    cluster.kill(follower);
    cluster.pass(2_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]));
}

#[test]
fn a_server_that_another_leader_took_back_is_not_removed_again() {
    let mut cluster = Cluster::strangers(5, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let back = cluster.follower();
    // The others refused it before they knew that its disk is the right one.
    for _ in 0..20 {
        for server in cluster.servers() {
            let (id, disk) = (back, 100 + back);
            cluster.event(server, Event::Stranger { id, disk });
        }
        cluster.pass(200);
    }
    cluster.die(leader);
    cluster.kill(back);
    cluster.pass(3_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3, 4, 5], vec![]));
}

/// Three servers that have bound no disk, for nobody knew of links when the first leader began; and
/// who leads.
fn led_without_links() -> (Cluster, [u64; 3]) {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.link();
    for server in cluster.servers() {
        for other in cluster.servers() {
            cluster.event(server, Event::Unreachable(other));
        }
    }
    cluster.pass(3_000);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    (cluster, [leader, follower, 6 - leader - follower])
}

#[test]
fn no_disk_takes_the_place_of_one_that_is_being_bound() {
    let (mut cluster, [leader, follower, third]) = led_without_links();
    cluster.isolate(third);
    cluster.lost_appends = Some(follower);
    cluster.introduce(follower, leader);
    cluster.pass(50);
    // What it has acknowledged may be nowhere but here and there.
    let mut empty = Cluster::strangers(3, 200, false);
    std::mem::swap(cluster.node(follower), empty.node(follower));
    cluster.introduce(follower, leader);
    cluster.pass(50);
    (cluster.lost_appends, cluster.cut) = (None, BTreeSet::new());
    cluster.pass(1_000);
    let bound = cluster.shared(leader).bound_disk(follower as u32);
    assert_eq!(bound, 100 + follower);
    cluster.pass_linking(8_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]));
    cluster.agree();
}

#[test]
fn a_server_whose_disk_is_being_bound_is_not_removed_for_it() {
    let (mut cluster, [leader, follower, third]) = led_without_links();
    let (id, disk) = (follower, 100 + follower);
    cluster.event(leader, Event::Stranger { id, disk });
    cluster.pass(2_000);
    // It is silent while that is not committed.
    cluster.lost_appends = Some(third);
    cluster.isolate(follower);
    cluster.introduce(follower, leader);
    cluster.pass(1_500);
    assert!(!cluster.node(leader).engine.replica.is_changing());
    (cluster.lost_appends, cluster.cut) = (None, BTreeSet::new());
    cluster.pass(1_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]));
    let bound = cluster.shared(leader).bound_disk(follower as u32);
    assert_eq!(bound, disk);
    cluster.agree();
}

#[test]
fn a_server_that_was_away_knows_those_who_joined_as_soon_as_it_is_told() {
    let mut cluster = Cluster::configured(&[1, 2, 3], 4, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let away = cluster.follower();
    cluster.kill(away);
    let (client, _) = cluster.client(leader);
    let joining = format!("{};2181", line(4));
    cluster.send(&client, 1, &reconfig(&joining, ""));
    cluster.pass_linking(3_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3, 4], vec![]));
    let told = cluster.shared(leader).tell();
    let number = cluster.shared(leader).cluster();
    let shared = cluster.shared(away).clone();
    let of = |cluster| Introduction {
        cluster,
        ..Introduction::default()
    };
    shared.learn(&of(number + 1), &told);
    assert!(!shared.is_member(4), "that was another cluster");
    shared.learn(&of(number), &told);
    let older = Told {
        ensemble: "server.1=a:1:2\nversion=1".to_owned(),
        ..Told::default()
    };
    shared.learn(&of(number), &older);
    assert!(shared.is_member(4));
    // And where they are.
    let now_ms = cluster.now_ms;
    let mut out = Outputs::default();
    let engine = &mut cluster.node(away).engine;
    engine.handle(Event::Tick, now_ms, &mut out);
    engine.turn(now_ms, 1_000_000, &mut out);
    let linked = out.servers.expect("other servers are to be linked");
    assert_eq!(linked.len(), 4);
}

#[test]
fn a_server_that_was_away_lets_in_one_that_came_back_with_another_disk() {
    let mut cluster = Cluster::strangers(5, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let away = cluster.follower();
    let back = cluster.servers().into_iter();
    let back = back.rev().find(|id| ![leader, away].contains(id)).unwrap();
    cluster.kill(away);
    let mut empty = Cluster::strangers(5, 200, false);
    std::mem::swap(cluster.node(back), empty.node(back));
    cluster.pass_linking(6_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3, 4, 5], vec![]));
    let introduction = Introduction {
        server: back as u32,
        ..cluster.node(back).introduction(0)
    };
    let shared = cluster.shared(away).clone();
    let bound = 100 + back;
    assert_eq!(
        shared.admit(&introduction),
        Err(NotAdmitted::OtherDisk { bound })
    );
    let told = cluster.shared(leader).tell();
    let same = Introduction {
        cluster: shared.cluster(),
        ..Introduction::default()
    };
    shared.learn(&same, &told);
    assert_eq!(shared.admit(&introduction), Ok(()));
    // Who knows less is not believed.
    let mut older = told;
    older.index -= 1;
    older.disks.clear();
    shared.learn(&same, &older);
    assert_eq!(shared.bound_disk(back as u32), 200 + back);
}

#[test]
fn a_server_that_was_linked_before_it_was_a_member_gets_its_disk_bound() {
    let mut cluster = Cluster::configured(&[1, 2, 3], 4, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    // As to a new leader, which finds the reconfig in its log, and then lets it join.
    let introduction = cluster.node(4).introduction(0);
    let linked = Event::Linked {
        id: 4,
        introduction,
    };
    cluster.event(leader, linked);
    let (client, _) = cluster.client(leader);
    let joining = format!("{};2181", line(4));
    cluster.send(&client, 1, &reconfig(&joining, ""));
    cluster.pass(1_000);
    assert_eq!(cluster.shared(leader).bound_disk(4), 104);
}

#[test]
fn a_server_that_joins_is_linked_to_those_who_are_about_to_go() {
    let mut cluster = Cluster::configured(&[1, 2, 3], 4, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let present = cluster.shared(leader).newest_ensemble().unwrap();
    let present = present.to_string();
    let going = format!("server.{leader}=");
    let staying = present.lines().filter(|line| !line.starts_with(&going));
    let staying: Vec<&str> = staying.collect();
    assert_eq!(staying.len() + 1, present.lines().count());
    let told = Told {
        ensemble: staying.join("\n"),
        ..Told::default()
    };
    // The others have applied what this one is not told by the log before it has followed.
    let shared = cluster.shared(4).clone();
    let other = Introduction {
        knows: 104,
        ..Introduction::default()
    };
    shared.learn(&other, &told);
    assert!(!shared.is_member(leader as u32));
    let now_ms = cluster.now_ms;
    let mut out = Outputs::default();
    let engine = &mut cluster.node(4).engine;
    engine.handle(Event::Tick, now_ms, &mut out);
    engine.turn(now_ms, 1_000_000, &mut out);
    let linked = out.servers.expect("other servers are to be linked");
    assert!(linked.iter().any(|line| u64::from(line.id) == leader));
    assert!(shared.is_member(leader as u32));
}

#[test]
fn who_is_to_go_is_linked_until_the_change_is_through() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let (client, _) = cluster.client(leader);
    // The leader applies the change, and the others do not hear that it may be left again.
    let others: Vec<u64> = cluster
        .servers()
        .into_iter()
        .filter(|id| *id != leader)
        .collect();
    let only = Request::Reconfig(Reconfig {
        joining: None,
        leaving: None,
        members: Some(line(leader).as_str().into()),
        version: -1,
    });
    let mut frame = BytesMut::new();
    frame.extend_from_slice(&1_i32.to_be_bytes());
    frame.extend_from_slice(&only.opcode().to_be_bytes());
    only.encode(&mut frame);
    client.receive(&frame, cluster.now_ms).unwrap();
    cluster.lost_changes = true;
    cluster.pass(500);
    let membership = cluster.node(leader).engine.replica.membership();
    assert_eq!(membership.voters_outgoing.len(), 3, "{membership:?}");
    for other in &others {
        assert!(cluster.shared(leader).is_member(*other as u32));
    }
    // Others are told where they are, too: of one that starts now they may dial nobody.
    assert_eq!(cluster.shared(leader).tell().going.len(), 2);
    // After a start, too, which finds them in the log only.
    let node = &cluster.nodes[leader as usize - 1];
    let (origin, kept) = (next_start(leader, node), node.kept.clone());
    let build = Build::of(FEATURE_LEVEL);
    let mut started = Node::start(origin, &[], true, build, kept, 0, &|_| ());
    let mut out = Outputs::default();
    started.engine.turn(100, 1_000_000, &mut out);
    assert_eq!(out.servers.map(|servers| servers.len()), Some(3));
    cluster.lost_changes = false;
    cluster.pass(2_000);
    assert_eq!(cluster.members(), (vec![leader], vec![]));
    for other in &others {
        assert!(!cluster.shared(leader).is_member(*other as u32));
    }
}

#[test]
fn a_change_that_was_committed_counts_after_a_start() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let lost = cluster.leader();
    let mut others = cluster.servers();
    others.retain(|other| *other != lost);
    let (client, _) = cluster.client(lost);
    cluster.send(&client, 1, &reconfig("", &others[1].to_string()));
    cluster.pass_linking(1_000);
    assert_eq!(cluster.members().0.len(), 2);
    cluster.send(
        &client,
        2,
        &reconfig(&format!("{};2181", line(others[1])), ""),
    );
    cluster.pass_linking(3_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]));
    // Nothing was written since. All lose power, and one its disk.
    cluster.kill(lost);
    for other in others {
        cluster.replace(other, Build::of(FEATURE_LEVEL));
    }
    cluster.pass_linking(5_000);
    let leader = cluster.leader();
    assert!(leader != lost && cluster.shared(leader).is_serving());
}

#[test]
fn a_server_may_campaign_before_its_log_knows_of_the_snapshot_it_was_sent() {
    let mut cluster = Cluster::tuned(3, keep_little);
    let leader = cluster.leader();
    let behind = cluster.follower();
    let (mut client, _) = cluster.client(leader);
    cluster.send(&client, 1, &create("/big", 0));
    client.frames();
    cluster.isolate(behind);
    write_much(&mut cluster, &mut client);
    cluster.slow_disk = Some(behind);
    cluster.cut.clear();
    cluster.pass(500);
    assert!(cluster.transfers > 0 && cluster.has(behind, "/big"));
    // Nobody is elected without its vote, which waits for its disk.
    cluster.kill(leader);
    cluster.pass(3_000);
    cluster.slow_disk = None;
    cluster.pass(3_000);
    assert!(cluster.shared(behind).is_serving());
    cluster.agree();
}

#[test]
fn a_leader_that_finds_itself_removed_leads_no_more() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let change = proto::log::MembershipChange {
        steps: vec![step(Kind::Remove, leader)],
    };
    let entry = proto::log::Entry {
        time_ms: 1,
        change: Some(change),
        ..Default::default()
    };
    assert!(cluster.node(leader).engine.propose_entry(entry).is_ok());
    cluster.settle();
    assert!(!cluster.node(leader).engine.replica.is_leader());
    cluster.pass(50);
    cluster.pass_linking(5_000);
    assert_ne!(cluster.leader(), leader);
    // It belongs all the same, and is taken back.
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]));
    cluster.agree();
}

fn of_term_1(index: u64, kind: u32, context: Vec<u8>) -> proto::log::LogEntry {
    proto::log::LogEntry {
        term: 1,
        index,
        kind,
        context: context.into(),
        ..Default::default()
    }
}

/// One of two servers, which has the removal of the other one and does not know that it is
/// committed.
fn about_to_be_left_alone() -> Node {
    let removal = proto::log::Entry {
        time_ms: 1,
        change: Some(proto::log::MembershipChange {
            steps: vec![step(Kind::Remove, 2)],
        }),
        ..Default::default()
    };
    let kept = Kept {
        hard_state: proto::log::HardState {
            term: 1,
            vote: 2,
            commit: 1,
        },
        membership: Some(proto::log::Membership {
            voters: vec![1, 2],
            ..Default::default()
        }),
        entries: vec![
            of_term_1(1, 0, Vec::new()),
            of_term_1(2, 2, removal.encode_to_vec()),
        ],
    };
    let origin = OriginId {
        server: 1,
        disk: 7,
        incarnation: 2,
    };
    let build = Build::of(FEATURE_LEVEL);
    let mut node = Node::start(origin, &[], true, build, kept, 0, &|_| ());
    turn_and_write(&mut node);
    node
}

/// The other one says that the removal is committed, and sends what comes behind it.
fn last_words(entries: Vec<proto::log::LogEntry>) -> Event {
    let entries: Vec<_> = entries.into_iter().map(entry::entry_to_raft).collect();
    let mut last = raft::eraftpb::Message {
        from: 2,
        to: 1,
        term: 1,
        log_term: 1,
        index: 2,
        commit: 2,
        entries: entries.into(),
        ..Default::default()
    };
    last.set_msg_type(MessageType::MsgAppend);
    Event::Peer {
        from: 2,
        message: PeerMessage::Raft(last),
    }
}

/// Between two turns it may be sent more, of which it has no Ready yet.
#[test]
fn who_is_left_alone_leads_only_once_what_it_was_just_sent_is_durable() {
    let mut node = about_to_be_left_alone();
    let committed = last_words(Vec::new());
    node.engine.handle(committed, 100, &mut Outputs::default());
    turn_and_write(&mut node);
    assert!(node.engine.replica.is_sole_voter());
    assert!(!node.engine.replica.is_leader());
    let more = last_words(vec![of_term_1(3, 0, Vec::new())]);
    node.engine.handle(more, 100, &mut Outputs::default());
    turn_and_write(&mut node);
    assert!(!node.engine.replica.is_leader());
    turn_and_write(&mut node);
    assert!(node.engine.replica.is_leader());
}

/// With it, it may be the only one that votes before what it was sent last is durable.
#[test]
fn who_is_left_alone_leads_only_once_its_log_is_durable() {
    let mut node = about_to_be_left_alone();
    let mut out = Outputs::default();
    let more = last_words(vec![of_term_1(3, 0, Vec::new())]);
    node.engine.handle(more, 100, &mut out);
    node.engine.turn(100, 1_000_000, &mut out);
    let number = out.append.last().expect("there is an entry").number;
    assert!(node.engine.replica.is_sole_voter());

    let lose = Event::PeerLost(2);
    node.engine.handle(lose, 100, &mut Outputs::default());
    let mut hand_over = raft::eraftpb::Message {
        from: 2,
        to: 1,
        term: 1,
        ..Default::default()
    };
    hand_over.set_msg_type(MessageType::MsgTimeoutNow);
    let handed = Event::Peer {
        from: 2,
        message: PeerMessage::Raft(hand_over),
    };
    node.engine.handle(handed, 100, &mut Outputs::default());
    for tick in 1..=100 {
        let mut out = Outputs::default();
        let now_ms = 100 + tick * 50;
        node.engine.handle(Event::Tick, now_ms, &mut out);
        node.engine.turn(now_ms, 1_000_000, &mut out);
        assert!(!node.engine.replica.is_leader(), "tick {tick}");
    }
    let persisted = Event::Persisted(number + 100);
    node.engine
        .handle(persisted, 6_000, &mut Outputs::default());
    for tick in 1..=50 {
        let now_ms = 6_000 + tick * 50;
        node.engine
            .handle(Event::Tick, now_ms, &mut Outputs::default());
        turn_and_write(&mut node);
    }
    assert!(node.shared.is_serving());
}

/// A server on its own, which has chosen this number for its cluster and has an observer.
fn lone_voter(cluster: i64) -> Node {
    let content = proto::log::Entry {
        time_ms: 1,
        internal: vec![set_command(&(CLUSTER_SETTING.to_owned(), cluster))],
        ..Default::default()
    };
    let entry = proto::log::LogEntry {
        term: 1,
        index: 1,
        data: content.encode_to_vec().into(),
        ..Default::default()
    };
    let kept = Kept {
        hard_state: proto::log::HardState {
            term: 1,
            vote: 1,
            commit: 0,
        },
        membership: Some(proto::log::Membership {
            voters: vec![1],
            learners: vec![2],
            ..Default::default()
        }),
        entries: vec![entry],
    };
    let origin = OriginId {
        server: 1,
        disk: 7,
        incarnation: 2,
    };
    let build = Build::of(FEATURE_LEVEL);
    Node::start(origin, &[], true, build, kept, 0, &|_| ())
}

#[test]
fn who_votes_alone_proposes_nothing_before_its_term_is_durable() {
    let mut node = lone_voter(5);
    let mut out = Outputs::default();
    node.engine.turn(0, 1_000_000, &mut out);
    assert!(node.engine.replica.is_leader());
    let forwarded = Event::Peer {
        from: 2,
        message: PeerMessage::Forward(proto::log::Batch {
            origin: Some(proto::log::Origin {
                server: 2,
                disk: 8,
                incarnation: 1,
            }),
            first: 1,
            commands: vec![proto::log::Command::default()],
        }),
    };
    node.engine.handle(forwarded, 50, &mut out);
    node.engine.turn(50, 1_000_000, &mut out);
    let written = out.append.iter().flat_map(|append| &append.record.entries);
    let written: Vec<_> = written.map(|entry| (entry.term, &entry.data[..])).collect();
    assert_eq!(written, [(2, &[][..])]);

    let number = out.append.last().expect("the term is written").number;
    let mut out = Outputs::default();
    node.engine.handle(Event::Persisted(number), 100, &mut out);
    node.engine.turn(100, 1_000_000, &mut out);
    let mut written = out.append.iter().flat_map(|append| &append.record.entries);
    assert!(written.any(|entry| !entry.data.is_empty()));
}

/// One turn, and all that it wrote is durable.
fn turn_and_write(node: &mut Node) {
    let mut out = Outputs::default();
    node.engine.turn(100, 1_000_000, &mut out);
    if let Some(last) = out.append.last() {
        let persisted = Event::Persisted(last.number);
        node.engine.handle(persisted, 100, &mut Outputs::default());
    }
}

#[test]
fn who_is_linked_while_the_settings_are_on_their_way_does_not_keep_a_leader_from_serving() {
    let mut node = lone_voter(77);
    while node.engine.settings_term == 0 {
        turn_and_write(&mut node);
    }
    assert!(!node.shared.is_serving());
    let introduction = Introduction {
        server: 2,
        disk: 8,
        boot: 1,
        level: FEATURE_LEVEL,
        ..Introduction::default()
    };
    let linked = Event::Linked {
        id: 2,
        introduction,
    };
    node.engine.handle(linked, 100, &mut Outputs::default());
    for _ in 0..10 {
        turn_and_write(&mut node);
    }
    assert!(node.shared.is_serving());
    assert_eq!(node.shared.bound_disk(2), 8);
}

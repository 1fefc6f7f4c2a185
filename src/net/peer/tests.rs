//! Links over the loopback interface.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Condvar;
use raft::eraftpb::{Message, MessageType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::handshake::{self, Greeted, Party};
use super::*;
use crate::engine::SnapshotMeta;
use crate::proto::log::{Batch, Command};
use crate::proto::peer::{Handshake, Lane, Refusal, Touched, handshake::Step};
use crate::storage::{Fault, SnapshotReader, SnapshotWriter};

/// Nothing here takes as long, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);
const CLUSTER: u64 = 0xc1;

/// A server that remembers what it was told.
#[derive(Default)]
struct TestHost {
    cluster: AtomicU64,
    refuses: Mutex<Option<&'static str>>,
    told: Mutex<Noted>,
    /// Have no peers any more as soon as something is heard.
    removes_all: Mutex<Option<Links>>,
    /// Bulk messages wait for an urgent one.
    bulk_waits: AtomicBool,
    urgent: Condvar,
}

#[derive(Clone, Debug, Default)]
struct Noted {
    admitted: Vec<Introduction>,
    linked: Vec<Introduction>,
    heard: Vec<(u64, PeerMessage)>,
    unreachable: usize,
    lost: usize,
}

impl Host for TestHost {
    fn cluster(&self) -> u64 {
        self.cluster.load(Ordering::Relaxed)
    }

    fn knows(&self, _server: u32) -> u64 {
        0
    }

    fn introduced(&self, _other: &Introduction) {}

    fn is_formed(&self) -> bool {
        true
    }

    fn is_aware(&self) -> bool {
        true
    }

    fn tell(&self) -> Told {
        Told::default()
    }

    fn admit(&self, other: &Introduction, _: &Told) -> Result<(), String> {
        self.told.lock().admitted.push(*other);
        self.refuses.lock().map_or(Ok(()), |why| Err(why.into()))
    }

    fn linked(&self, other: &Introduction) {
        self.told.lock().linked.push(*other);
    }

    fn heard(&self, from: u64, messages: Vec<PeerMessage>) {
        if let Some(links) = self.removes_all.lock().take() {
            links.set_peers(BTreeMap::new());
        }
        let is_bulk = messages.iter().all(queue::is_bulk);
        let mut told = self.told.lock();
        let heard = messages.into_iter().map(|message| (from, message));
        told.heard.extend(heard);
        if !is_bulk {
            self.urgent.notify_all();
        } else if self.bulk_waits.swap(false, Ordering::Relaxed) {
            tokio::task::block_in_place(|| self.urgent.wait_for(&mut told, PATIENCE));
        }
    }

    fn unreachable(&self, _: u64) {
        self.told.lock().unreachable += 1;
    }

    fn lost(&self, _: u64) {
        self.told.lock().lost += 1;
    }

    fn open_snapshot(&self, _: u64, _: u64) -> Result<SnapshotReader, Fault> {
        Err(Fault::InMemory)
    }

    fn receive_snapshot(&self, _: &SnapshotMeta) -> Result<SnapshotWriter, Fault> {
        Err(Fault::InMemory)
    }

    fn snapshot_received(&self, _: u64, _: SnapshotMeta) -> Result<(), Fault> {
        unreachable!("none is received");
    }

    fn snapshot_unreadable(&self, _: u64) {
        unreachable!("no snapshots here")
    }

    fn snapshot_sent(&self, _: u64, _: bool) {
        unreachable!("none is sent");
    }
}

struct TestServer {
    links: Links,
    host: Arc<TestHost>,
    stop: watch::Sender<bool>,
    port: u16,
}

impl TestServer {
    async fn start(server: u32) -> Self {
        Self::start_with(me(server), 0, LinkOptions::default()).await
    }

    async fn start_with(me: Introduction, port: u16, options: LinkOptions) -> Self {
        let listener = listen(&at(port), &options.resolver).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let host = Arc::new(TestHost::default());
        host.cluster.store(CLUSTER, Ordering::Relaxed);
        let (stop, stopping) = watch::channel(false);
        let runtime = Handle::current();
        let links = Links::start(&runtime, listener, me, host.clone(), options, stopping);
        Self {
            links,
            host,
            stop,
            port,
        }
    }

    /// Makes a server with this id and port its only peer.
    fn dial(&self, server: u64, port: u16) {
        self.links.set_peers([(server, vec![at(port)])].into());
    }

    fn told(&self) -> Noted {
        self.host.told.lock().clone()
    }

    fn status(&self) -> LinkStatus {
        self.links.status().remove(0)
    }

    async fn linked(&self) {
        until("a link", || self.status().is_linked).await;
    }

    async fn hears(&self, from: u64, message: &PeerMessage) {
        let expected = (from, message.clone());
        until("a message", || self.told().heard.contains(&expected)).await;
    }

    async fn stop(self) -> u16 {
        self.stop.send_replace(true);
        timeout(PATIENCE, self.links.ended()).await.unwrap();
        self.port
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "waited for {what}");
}

fn me(server: u32) -> Introduction {
    Introduction {
        server,
        disk: 0xd15c + u64::from(server),
        boot: 5,
        level: 1,
        ..Introduction::default()
    }
}

fn at(port: u16) -> PeerAddress {
    PeerAddress {
        host: "127.0.0.1".to_owned(),
        port,
    }
}

fn with_secret(secret: &str) -> LinkOptions {
    LinkOptions {
        secret: Some(Secret::new(secret.as_bytes()).unwrap()),
        ..LinkOptions::default()
    }
}

fn urgent(number: u64) -> PeerMessage {
    PeerMessage::Touched(Touched { number, commit: 0 })
}

fn bulk(first: u64, bytes: usize) -> PeerMessage {
    PeerMessage::Forward(Batch {
        first,
        commands: vec![Command {
            body: Bytes::from(vec![first as u8; bytes]),
            ..Command::default()
        }],
        ..Batch::default()
    })
}

/// Two servers that are linked in both directions.
async fn pair() -> (TestServer, TestServer) {
    let (one, two) = (TestServer::start(1).await, TestServer::start(2).await);
    one.dial(2, two.port);
    two.dial(1, one.port);
    one.linked().await;
    two.linked().await;
    (one, two)
}

/// Dials a server as another one would.
async fn dial_as(me: Introduction, port: u16, lane: Lane) -> Result<Greeted, String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let party = Party {
        me: introduction(me),
        secret: None,
        told: Told::default(),
        vet: &|_, _| Ok(()),
        knows: &|_| 0,
    };
    let dialled = handshake::dial(stream, &party, 1, lane).await;
    dialled.map_err(|failure| failure.text)
}

fn introduction(me: Introduction) -> Introduction {
    Introduction {
        cluster: CLUSTER,
        formed: true,
        aware: true,
        ..me
    }
}

async fn send(greeted: &mut Greeted, message: PeerMessage) -> io::Result<()> {
    let mut out = BytesMut::new();
    frame::put(&message.encode(), &mut out);
    greeted.socket.write.write_all(&out).await
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_go_both_ways_in_both_lanes() {
    let (one, two) = pair().await;
    assert_eq!(one.told().linked, [introduction(me(2))]);
    for (from, to, id) in [(&one, &two, 1), (&two, &one, 2)] {
        let message = Message {
            from: id,
            to: 3 - id,
            msg_type: MessageType::MsgHeartbeat,
            ..Message::default()
        };
        let messages = [urgent(7), bulk(8, 100), PeerMessage::Raft(message)];
        for message in messages {
            from.links.send([(3 - id, message.clone())]);
            to.hears(id, &message).await;
        }
    }
    until("both lanes back", || one.status().is_linked_from).await;
    let (sent, received) = (one.status().sent, two.status().received);
    assert_eq!(sent.frames, 3);
    assert_eq!(sent, received);
    assert_eq!(one.status().dropped, 0);
    // Nobody has that id.
    one.links.send([(9, urgent(1))]);
    one.stop().await;
    two.stop().await;
}

/// What a server is told when it dials another, and what that one does not have then.
async fn refusal(
    me: Introduction,
    options: LinkOptions,
    target: u64,
    other: &TestServer,
) -> String {
    let dialler = TestServer::start_with(me, 0, options).await;
    dialler.dial(target, other.port);
    until("a refusal", || dialler.status().error.is_some()).await;
    let text = dialler.status().error.unwrap();
    assert!(!dialler.status().is_linked && dialler.told().linked.is_empty());
    assert_eq!(dialler.told().unreachable + dialler.told().lost, 0);
    dialler.stop().await;
    text.replace(&format!("127.0.0.1:{}: ", other.port), "")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_welcome_is_told_how_to_go_on() {
    let secret = "a secret of the cluster";
    let open = TestServer::start(1).await;
    let closed = TestServer::start_with(me(1), 0, with_secret(secret)).await;
    let plain = LinkOptions::default;

    assert_eq!(
        refusal(me(2), with_secret("another cluster's secret"), 1, &closed).await,
        "the cluster secrets differ: clusterSecretFile must hold the same on all servers"
    );
    assert_eq!(
        refusal(me(2), plain(), 1, &closed).await,
        "server 1 asks for the cluster secret, and the server that dials has none: set \
         clusterSecretFile there, with the same content as on all others"
    );
    assert_eq!(
        refusal(me(2), with_secret(secret), 1, &open).await,
        "server 1 has no cluster secret, and the server that dials has one: set clusterSecretFile \
         on server 1 too, with the same content as on all others"
    );
    assert_eq!(
        refusal(me(2), with_secret(secret), 3, &closed).await,
        "this is server 1, not 3; check the server.N lines"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_and_ids_are_kept_apart() {
    let one = TestServer::start(1).await;
    let refused = dial_as(me(1), one.port, Lane::Urgent).await.err().unwrap();
    assert_eq!(
        refused,
        "both sides are server 1: give one of them another myid"
    );

    one.host.cluster.store(0xc2, Ordering::Relaxed);
    let refused = refusal(me(2), LinkOptions::default(), 1, &one).await;
    let expected = "server 1 is of cluster 00000000000000c2, and server 2 is of cluster \
                    00000000000000c1: correct the server.N lines; or,";
    assert!(refused.starts_with(expected), "{refused}");

    // A server without a cluster yet is of any.
    one.host.cluster.store(0, Ordering::Relaxed);
    let mut two = dial_as(me(2), one.port, Lane::Urgent).await.unwrap();
    send(&mut two, urgent(1)).await.unwrap();
    one.hears(2, &urgent(1)).await;
    // But only until it has one.
    one.host.cluster.store(0xc2, Ordering::Relaxed);
    send(&mut two, urgent(2)).await.unwrap();
    assert!(
        two.socket
            .read
            .next()
            .await
            .is_ok_and(|frame| frame.is_none())
    );
    assert_eq!(one.told().heard.len(), 1);

    *one.host.refuses.lock() = Some("its disk is not bound: remove it and add it again");
    one.host.cluster.store(CLUSTER, Ordering::Relaxed);
    assert_eq!(
        refusal(me(2), LinkOptions::default(), 1, &one).await,
        "its disk is not bound: remove it and add it again"
    );
    assert_eq!(one.told().admitted.last(), Some(&introduction(me(2))));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_side_that_dials_may_refuse_too() {
    let (one, two) = (TestServer::start(1).await, TestServer::start(2).await);
    *two.host.refuses.lock() = Some("server 1 was removed");
    two.dial(1, one.port);
    until("a refusal", || two.status().error.is_some()).await;
    let text = two.status().error.unwrap();
    assert!(text.ends_with(": server 1 was removed"), "{text}");
    assert!(!one.links.0.presence.of(2).1);
    // It changes its mind.
    *two.host.refuses.lock() = None;
    two.linked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_learns_by_whom() {
    let secrets = [
        "the same on all servers",
        "the same on all servers",
        "not the same as there",
    ];
    let [one, two, other] = secrets.map(with_secret);
    let one = TestServer::start_with(me(1), 0, one).await;
    *one.host.refuses.lock() = Some("its disk is not bound");
    let two = TestServer::start_with(me(2), 0, two).await;
    two.dial(1, one.port);
    until("a refusal", || two.status().error.is_some()).await;
    let text = two.status().error.unwrap();
    assert!(text.ends_with(": its disk is not bound"), "{text}");
    assert_eq!(two.told().admitted[0], introduction(me(1)));
    assert!(two.told().linked.is_empty());
    // Who does not prove itself tells nothing.
    let other = TestServer::start_with(me(3), 0, other).await;
    other.dial(1, one.port);
    until("a refusal", || other.status().error.is_some()).await;
    assert!(other.told().admitted.is_empty());
    let admitted = one.told().admitted;
    assert!(admitted.iter().all(|other| other.server == 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_versions_refuse_each_other() {
    let one = TestServer::start(1).await;
    let mut stream = TcpStream::connect(("127.0.0.1", one.port)).await.unwrap();
    stream
        .write_all(b"zkraftPR\x09\0\0\0whatever")
        .await
        .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"zkraftPR\x01\0\0\0"));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let expected = "one side speaks version 9 of the protocol between servers, the other version 1";
    assert!(answer.contains(expected), "{answer}");

    let later = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.dial(2, later.local_addr().unwrap().port());
    let (mut stream, _) = later.accept().await.unwrap();
    let mut out = BytesMut::from(&b"zkraftPR\x09\0\0\0"[..]);
    let text = "too old: update it".to_owned();
    let step = Some(Step::Refusal(Refusal { text, proof: None }));
    frame::put(
        &prost::Message::encode_to_vec(&Handshake { step }),
        &mut out,
    );
    stream.write_all(&out).await.unwrap();
    until("a refusal", || one.status().error.is_some()).await;
    let text = one.status().error.unwrap();
    assert!(text.ends_with(": too old: update it"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_told_from_servers() {
    let one = TestServer::start(1).await;
    let strangers: [&[u8]; 5] = [
        b"GET /metrics HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0",
        b"\0\0\0\x2c\0\0\0\0",
        b"zkraftPR\x01\0\0\0\xff\xff\xff\xff\0\0\0\0",
        b"zkraftPR\x01\0\0\0\x02\0\0\0\0\0\0\0ab",
    ];
    for bytes in strangers {
        let mut stream = TcpStream::connect(("127.0.0.1", one.port)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // Closed, or reset with what was not read.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .unwrap();
        assert_eq!(answer, b"");
    }
    // Someone else on the port of a peer.
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.dial(2, web.local_addr().unwrap().port());
    let (mut stream, _) = web.accept().await.unwrap();
    stream
        .write_all(b"HTTP/1.1 400 Bad Request\r\n")
        .await
        .unwrap();
    until("a reason", || one.status().error.is_some()).await;
    let text = one.status().error.unwrap();
    let expected = "no zkraft server is at the other end, but an HTTP server; this port is for";
    assert!(text.contains(expected), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_do_not_go_on_give_way_to_others() {
    let one = TestServer::start(1).await;
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(TcpStream::connect(("127.0.0.1", one.port)).await.unwrap());
    }
    let two = TestServer::start(2).await;
    two.dial(1, one.port);
    two.linked().await;
    let mut first = silent.remove(0);
    let closed = timeout(PATIENCE, first.read(&mut [0])).await.unwrap();
    assert_eq!(closed.unwrap_or_default(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_started_again_is_linked_again() {
    let (one, two) = pair().await;
    let port = two.stop().await;
    until("the loss", || one.told().lost == 1).await;
    assert_eq!(one.told().unreachable, 1);
    let again = Introduction { boot: 6, ..me(2) };
    let two = TestServer::start_with(again, port, LinkOptions::default()).await;
    two.dial(1, one.port);
    until("the new start", || {
        one.status().is_linked && one.told().linked.last() == Some(&introduction(again))
    })
    .await;
    one.links.send([(2, urgent(1))]);
    two.hears(1, &urgent(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_lost_only_when_nobody_listens() {
    let one = TestServer::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.dial(2, listener.local_addr().unwrap().port());
    let accept = async || {
        let (stream, _) = listener.accept().await.unwrap();
        let party = Party {
            me: introduction(me(2)),
            secret: None,
            told: Told::default(),
            vet: &|_, _| Ok(()),
            knows: &|_| 0,
        };
        handshake::accept(stream, &party).await.unwrap()
    };
    let (urgent, bulk) = (accept().await, accept().await);
    assert_eq!((urgent.lane, bulk.lane), (Lane::Urgent, Lane::Bulk));
    until("a link", || one.told().linked.len() == 1).await;
    // One lane breaks: so does the link, and it is made anew.
    drop(bulk);
    let lanes = (accept().await, accept().await);
    until("another link", || one.told().linked.len() == 2).await;
    assert_eq!((one.told().unreachable, one.told().lost), (1, 0));
    drop(listener);
    drop(lanes);
    until("the loss", || one.told().lost == 1).await;
    // Told once, however often it is dialled.
    let dropped = one.status().dropped;
    one.links.send([(2, super::tests::urgent(1))]);
    assert_eq!(one.status().dropped, dropped + 1);
    sleep(Duration::from_millis(100)).await;
    assert_eq!((one.told().unreachable, one.told().lost), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_arrive_whole() {
    let (one, two) = pair().await;
    let message = bulk(1, 10 << 20);
    one.links.send([(2, message.clone())]);
    two.hears(1, &message).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_urgent_does_not_wait_for_a_flood() {
    let (one, two) = pair().await;
    two.host.bulk_waits.store(true, Ordering::Relaxed);
    for number in 1..=40 {
        one.links.send([(2, bulk(number, 1 << 20))]);
    }
    one.links.send([(2, urgent(1))]);
    two.hears(1, &bulk(40, 1 << 20)).await;
    let heard = two.told().heard;
    let place = heard.iter().position(|(_, message)| *message == urgent(1));
    assert!(place.is_some_and(|place| place <= 1), "{place:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_start_ends_what_the_older_one_says() {
    let one = TestServer::start(1).await;
    let mut old = dial_as(me(2), one.port, Lane::Urgent).await.unwrap();
    send(&mut old, urgent(1)).await.unwrap();
    one.hears(2, &urgent(1)).await;
    let again = Introduction { boot: 6, ..me(2) };
    let mut new = dial_as(again, one.port, Lane::Bulk).await.unwrap();
    send(&mut new, bulk(1, 1)).await.unwrap();
    one.hears(2, &bulk(1, 1)).await;
    // Whether or not it can still be sent.
    let _ = send(&mut old, urgent(2)).await;
    let closed = old.socket.read.next().await;
    assert!(!matches!(closed, Ok(Some(_))));
    assert_eq!(one.told().heard.len(), 2);
    let refused = dial_as(me(2), one.port, Lane::Urgent).await.err().unwrap();
    assert_eq!(
        refused,
        "start 5 of server 2 is over: its start 6 was seen since"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_cannot_be_stolen() {
    let one = TestServer::start(1).await;
    let mut own = dial_as(me(2), one.port, Lane::Urgent).await.unwrap();
    send(&mut own, urgent(1)).await.unwrap();
    one.hears(2, &urgent(1)).await;
    let thief = Introduction {
        disk: 0xbad,
        ..me(2)
    };
    let refused = dial_as(thief, one.port, Lane::Bulk).await.err().unwrap();
    let expected = "a server 2 with another disk (000000000000d15e, not 0000000000000bad) is \
                    connected: two servers have the same id, so give one of them another myid";
    assert!(refused.starts_with(expected), "{refused}");
    // Once that is gone, it is the server's new disk.
    drop(own);
    let dialled = async {
        while dial_as(thief, one.port, Lane::Bulk).await.is_err() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, dialled).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_for_another_server() {
    let one = TestServer::start(1).await;
    for (from, to) in [(3, 1), (2, 3)] {
        let mut two = dial_as(me(2), one.port, Lane::Urgent).await.unwrap();
        let message = Message {
            from,
            to,
            msg_type: MessageType::MsgHeartbeat,
            ..Message::default()
        };
        send(&mut two, PeerMessage::Raft(message)).await.unwrap();
        assert!(matches!(two.socket.read.next().await, Ok(None)));
    }
    assert_eq!(one.told().heard, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_resolved_at_each_attempt() {
    let two = TestServer::start(2).await;
    let port = Arc::new(AtomicU32::new(0));
    let (answer, asked) = (port.clone(), Arc::new(AtomicU32::new(0)));
    let count = asked.clone();
    let resolver = Resolver::new(move |host, _| {
        assert_eq!(host, "zk2.example");
        count.fetch_add(1, Ordering::Relaxed);
        let port = answer.load(Ordering::Relaxed) as u16;
        async move {
            match port {
                0 => Err(io::Error::other("no such name")),
                port => Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]),
            }
        }
    });
    let options = LinkOptions {
        resolver,
        ..LinkOptions::default()
    };
    // Its own address has no name.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = Arc::new(TestHost::default());
    let (_stop, stopping) = watch::channel(false);
    let runtime = Handle::current();
    let links = Links::start(&runtime, listener, me(1), host.clone(), options, stopping);
    let name = PeerAddress {
        host: "zk2.example".to_owned(),
        port: 2888,
    };
    links.set_peers([(2, vec![name])].into());
    let status = || links.status().remove(0);
    until("attempts", || asked.load(Ordering::Relaxed) >= 3).await;
    let text = status().error.unwrap();
    assert_eq!(text, "zk2.example does not resolve: no such name");
    port.store(two.port.into(), Ordering::Relaxed);
    until("a link", || status().is_linked).await;

    // It comes back somewhere else.
    two.stop().await;
    let moved =
        TestServer::start_with(Introduction { boot: 6, ..me(2) }, 0, LinkOptions::default()).await;
    port.store(moved.port.into(), Ordering::Relaxed);
    until("the link to the new place", || {
        status().is_linked && status().address.is_some_and(|a| a.port() == moved.port)
    })
    .await;
    // The name is gone, but not the server.
    port.store(0, Ordering::Relaxed);
    let again = Introduction { boot: 7, ..me(2) };
    let same_port = moved.stop().await;
    let _again = TestServer::start_with(again, same_port, LinkOptions::default()).await;
    until("the link", || {
        host.told.lock().linked.last() == Some(&introduction(again))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_addresses_are_tried() {
    let two = TestServer::start(2).await;
    let (one, three) = (TestServer::start(1).await, TestServer::start(3).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap().port();
    drop(listener);
    let addresses = vec![at(nobody), at(three.port), at(two.port)];
    one.links.set_peers([(2, addresses.clone())].into());
    one.linked().await;
    assert_eq!(one.status().address.unwrap().port(), two.port);
    two.stop().await;
    until("a reason", || {
        one.status().error.is_some_and(|text| text.contains(';'))
    })
    .await;
    let text = one.status().error.unwrap();
    assert!(text.contains("this is server 3, not 2"), "{text}");
    // Somebody listens at one of them, so nobody knows that the peer is gone.
    assert_eq!(one.told().lost, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_learns_of_its_cluster_introduces_itself_again() {
    let (one, two) = (TestServer::start(1).await, TestServer::start(2).await);
    one.host.cluster.store(0, Ordering::Relaxed);
    one.dial(2, two.port);
    one.linked().await;
    assert_eq!(two.told().admitted.last().unwrap().cluster, 0);
    one.host.cluster.store(CLUSTER, Ordering::Relaxed);
    for number in 1..=10 {
        one.links.send([(2, urgent(number))]);
        one.links.send([(2, bulk(number, 1_000))]);
    }
    for number in 1..=10 {
        two.hears(1, &urgent(number)).await;
        two.hears(1, &bulk(number, 1_000)).await;
    }
    assert_eq!(two.told().admitted.last().unwrap().cluster, CLUSTER);
    assert_eq!(one.told().unreachable, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn links_follow_the_peers() {
    let (one, two) = pair().await;
    one.links.set_peers(BTreeMap::new());
    assert!(one.links.status().is_empty());
    until("no peer", || one.links.0.peer(2).is_none()).await;
    until("no link", || !two.status().is_linked_from).await;
    one.links.send([(2, urgent(1))]);
    one.dial(2, two.port);
    one.linked().await;
    one.links.send([(2, urgent(2))]);
    two.hears(1, &urgent(2)).await;
    assert!(!two.told().heard.contains(&(1, urgent(1))));
}

/// The entry that removes a server is committed, and it has clients who wait for an answer.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_peer_any_more_hears_what_is_said_at_once() {
    let farewell = Duration::from_secs(1);
    let options = LinkOptions {
        farewell,
        ..LinkOptions::default()
    };
    let one = TestServer::start_with(me(1), 0, options).await;
    let two = TestServer::start(2).await;
    one.dial(2, two.port);
    two.dial(1, one.port);
    one.linked().await;
    two.linked().await;
    one.links.set_peers(BTreeMap::new());
    assert!(one.links.status().is_empty());
    one.links.send([(2, urgent(1))]);
    two.links.send([(1, urgent(2))]);
    two.hears(1, &urgent(1)).await;
    one.hears(2, &urgent(2)).await;
    until("no link", || !two.status().is_linked_from).await;

    // Who is a peer again before that keeps its link.
    one.dial(2, two.port);
    one.linked().await;
    let since = one.status().since;
    one.links.set_peers(BTreeMap::new());
    one.dial(2, two.port);
    tokio::time::sleep(farewell * 3 / 2).await;
    assert!(one.status().is_linked && one.status().since == since);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_peer_any_more_dials_again_and_hears_why() {
    let (one, two) = pair().await;
    *two.host.refuses.lock() = Some("it was removed");
    // As when its own answer commits its removal.
    *two.host.removes_all.lock() = Some(two.links.clone());
    one.links.send([(2, urgent(1))]);
    let is_told = |text: String| text.contains("it was removed");
    until("the reason", || one.status().error.is_some_and(is_told)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_at_a_stop_is_still_sent() {
    let (one, two) = pair().await;
    for number in 1..=50 {
        one.links.send([(2, bulk(number, 10_000))]);
    }
    one.links.send([(2, urgent(1))]);
    one.stop().await;
    two.hears(1, &urgent(1)).await;
    two.hears(1, &bulk(50, 10_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_starts_does_not_matter() {
    let listeners = [
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    ];
    let ports = listeners.map(|listener| listener.local_addr().unwrap().port());
    let peers = || {
        (1..)
            .zip(ports.map(|port| vec![at(port)]))
            .collect::<BTreeMap<_, _>>()
    };
    let mut servers = Vec::new();
    for (server, port) in (1..).zip(ports) {
        let started = TestServer::start_with(me(server), port, LinkOptions::default()).await;
        started.links.set_peers(peers());
        if server < 3 {
            let failed = |status: &LinkStatus| status.error.is_some();
            until("a failure", || started.links.status().iter().any(failed)).await;
        }
        servers.push(started);
    }
    for server in &servers {
        let linked = |status: &LinkStatus| status.is_linked && status.is_linked_from;
        until("all links", || {
            let status = server.links.status();
            status.len() == 2 && status.iter().all(linked)
        })
        .await;
        assert_eq!(server.told().lost, 0);
    }
}

//! Snapshots over the loopback interface, between directories.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use super::*;
use crate::engine::{PeerMessage, SnapshotMeta};
use crate::net::peer::handshake::{self, Greeted, Party, Socket};
use crate::net::peer::{Host, Introduction, LinkOptions, Links, PeerAddress};
use crate::proto::log::Membership;
use crate::proto::peer::{Accept, Chunk, Done, Failed, Lane, Offer, Stored, Told};
use crate::storage::{
    CompressedChunk, Fault, LogHandle, SnapshotReader, SnapshotWriter, Storage, StorageConfig,
};

/// Nothing here takes as long, on any machine.
const LONG: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 100_000;

struct TestHost {
    log: LogHandle,
    refuses: Mutex<Option<Fault>>,
    /// Why the next one that is received cannot be loaded.
    spoils: Mutex<Option<Fault>>,
    received: Mutex<Vec<(u64, SnapshotMeta)>>,
    unreadable: Mutex<Vec<u64>>,
    sent: Mutex<Vec<(u64, bool)>>,
}

impl Host for TestHost {
    fn knows(&self, _server: u32) -> u64 {
        0
    }

    fn introduced(&self, _other: &Introduction) {}

    fn cluster(&self) -> u64 {
        7
    }

    fn is_formed(&self) -> bool {
        true
    }

    fn is_aware(&self) -> bool {
        true
    }

    fn tell(&self) -> Told {
        Told::default()
    }

    fn admit(&self, _: &Introduction, _: &Told) -> Result<(), String> {
        Ok(())
    }

    fn linked(&self, _: &Introduction) {}

    fn heard(&self, _: u64, _: Vec<PeerMessage>) {}

    fn unreachable(&self, _: u64) {}

    fn lost(&self, _: u64) {}

    fn open_snapshot(&self, index: u64, term: u64) -> Result<SnapshotReader, Fault> {
        self.log.open_snapshot(index, term)
    }

    fn receive_snapshot(&self, meta: &SnapshotMeta) -> Result<SnapshotWriter, Fault> {
        match self.refuses.lock().take() {
            Some(fault) => Err(fault),
            None => self.log.receive_snapshot(meta),
        }
    }

    fn snapshot_received(&self, from: u64, meta: SnapshotMeta) -> Result<(), Fault> {
        if let Some(fault) = self.spoils.lock().take() {
            return Err(fault);
        }
        self.log.snapshot_received(meta.index).unwrap();
        self.received.lock().push((from, meta));
        Ok(())
    }

    fn snapshot_unreadable(&self, index: u64) {
        self.unreadable.lock().push(index);
    }

    fn snapshot_sent(&self, to: u64, is_stored: bool) {
        self.sent.lock().push((to, is_stored));
    }
}

struct TestServer {
    links: Links,
    host: Arc<TestHost>,
    port: u16,
    dir: tempfile::TempDir,
    _stop: watch::Sender<bool>,
}

impl TestServer {
    async fn start(server: u32) -> Self {
        Self::start_with(server, LinkOptions::default()).await
    }

    async fn start_with(server: u32, options: LinkOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = StorageConfig::new(dir.path(), server);
        let (_, storage) = Storage::open(config, |_| Ok(())).unwrap();
        let log = storage.start(|_, _| {}, |fault| panic!("{fault}")).unwrap();
        let host = Arc::new(TestHost {
            log,
            refuses: Mutex::default(),
            spoils: Mutex::default(),
            received: Mutex::default(),
            unreadable: Mutex::default(),
            sent: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopping) = watch::channel(false);
        let (me, runtime) = (me(server), Handle::current());
        let links = Links::start(&runtime, listener, me, host.clone(), options, stopping);
        Self {
            links,
            host,
            port,
            dir,
            _stop: stop,
        }
    }

    /// Makes a server with this id and port its only peer.
    fn knows(&self, server: u64, port: u16) {
        let host = "127.0.0.1".to_owned();
        let addresses = vec![PeerAddress { host, port }];
        self.links.set_peers([(server, addresses)].into());
    }

    /// Writes a snapshot of so many chunks that cannot be compressed.
    async fn save(&self, index: u64, chunks: u64) -> Vec<Bytes> {
        let content: Vec<Bytes> = (0..chunks).map(|n| noise(index * 1_000 + n)).collect();
        let copy = content.clone();
        let (tell, done) = oneshot::channel();
        self.host.log.take_snapshot(
            meta(index),
            move |push| copy.into_iter().try_for_each(push),
            move |result| drop(tell.send(result)),
        );
        done.await.unwrap().unwrap();
        content
    }

    fn content(&self, index: u64) -> Vec<Bytes> {
        let reader = self.host.log.open_snapshot(index, 3).unwrap();
        assert_eq!(reader.meta(), meta(index));
        reader.map(Result::unwrap).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join("snapshot")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    async fn sent(&self, count: usize) -> Vec<(u64, bool)> {
        let is_so = || self.host.sent.lock().len() >= count;
        until("the end of a transfer", is_so).await;
        self.host.sent.lock().clone()
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(LONG, waiting).await.is_ok(), "waited for {what}");
}

fn me(server: u32) -> Introduction {
    Introduction {
        server,
        disk: server.into(),
        boot: 1,
        level: 1,
        ..Introduction::default()
    }
}

fn meta(index: u64) -> SnapshotMeta {
    SnapshotMeta {
        index,
        term: 3,
        membership: Membership {
            voters: vec![1, 2],
            ..Membership::default()
        },
        zxid: 0x1_0000_0007,
        digest: 0xd16e57,
    }
}

/// Bytes without a pattern.
fn noise(seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..CHUNK_BYTES).map(|_| byte()).collect()
}

fn party(me: Introduction) -> Party<'static> {
    Party {
        me: Introduction {
            cluster: 7,
            formed: true,
            aware: true,
            ..me
        },
        secret: None,
        told: Told::default(),
        vet: &|_, _| Ok(()),
        knows: &|_| 0,
    }
}

/// Server 2 by hand, as the one that sends to server 1.
async fn offer_to(one: &TestServer, offer: &Offer) -> (Socket, Step) {
    let stream = TcpStream::connect(("127.0.0.1", one.port)).await.unwrap();
    let greeted = handshake::dial(stream, &party(me(2)), 1, Lane::Snapshot).await;
    let Greeted { mut socket, .. } = greeted.ok().unwrap();
    say(&mut socket.write, Step::Offer(offer.clone()))
        .await
        .unwrap();
    let answer = hear(&mut socket.read, LONG).await.unwrap();
    (socket, answer)
}

/// A snapshot as it is sent.
fn taken_apart(server: &TestServer, index: u64) -> (Offer, Vec<Chunk>, Done) {
    let mut reader = server.host.log.open_snapshot(index, 3).unwrap();
    let SnapshotMeta {
        index,
        term,
        membership,
        zxid,
        digest,
    } = reader.meta();
    let offer = Offer {
        index,
        term,
        membership: Some(membership),
        zxid,
        digest,
        chunks: reader.chunks(),
        bytes: reader.bytes(),
    };
    let chunks: Vec<_> = std::iter::from_fn(|| reader.next_compressed()).collect();
    let chunks = (0..).zip(chunks).map(|(number, chunk)| {
        let CompressedChunk {
            body,
            raw_len,
            checksum,
        } = chunk.unwrap();
        Chunk {
            number,
            raw_len,
            checksum,
            body,
        }
    });
    let done = Done {
        chunks: offer.chunks,
        bytes: reader.raw_bytes(),
    };
    (offer, chunks.collect(), done)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_arrives_whole() {
    let (one, two) = (TestServer::start(1).await, TestServer::start(2).await);
    one.knows(2, two.port);
    let content = one.save(70, 30).await;
    let older = one.save(60, 1).await;
    // In turn, and the first of them once more.
    for index in [70, 60, 60] {
        one.links.send_snapshot(2, index, 3);
    }
    assert_eq!(one.sent(3).await, [(2, true); 3]);
    assert_eq!(two.content(70), content);
    assert_eq!(two.content(60), older);
    let received = two.host.received.lock();
    assert!(received.contains(&(1, meta(70))) && received.contains(&(1, meta(60))));
    assert_eq!(two.files().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_sent_no_faster_than_it_may_be() {
    let options = LinkOptions {
        snapshot_bytes_per_second: 3 * CHUNK_BYTES as u64,
        ..LinkOptions::default()
    };
    let (one, two) = (
        TestServer::start_with(1, options).await,
        TestServer::start(2).await,
    );
    one.knows(2, two.port);
    let content = one.save(70, 5).await;
    let began = Instant::now();
    one.links.send_snapshot(2, 70, 3);
    assert_eq!(one.sent(1).await, [(2, true)]);
    let took = began.elapsed();
    assert_eq!(two.content(70), content);
    // The last of them waits for the four before it, of which a tenth of a second is free.
    assert!(took >= Duration::from_millis(1_200), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_is_told() {
    let patience = Duration::from_millis(200);
    let options = LinkOptions {
        snapshot_patience: patience,
        ..LinkOptions::default()
    };
    let (one, two) = (
        TestServer::start_with(1, options).await,
        TestServer::start(2).await,
    );
    one.save(70, 3).await;
    // To whom?
    one.links.send_snapshot(9, 70, 3);
    assert_eq!(one.sent(1).await, [(9, false)]);
    one.knows(2, two.port);
    // Which?
    one.links.send_snapshot(2, 69, 3);
    assert_eq!(one.sent(2).await[1], (2, false));
    assert_eq!(*one.host.unreadable.lock(), [69]);
    // The other side has no room.
    *two.host.refuses.lock() = Some(Fault::NoRoomForSnapshot {
        dir: PathBuf::from("snapshot"),
        free_kib: 1,
    });
    one.links.send_snapshot(2, 70, 3);
    assert_eq!(one.sent(3).await[2], (2, false));
    // Nobody is there.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.knows(2, nobody.local_addr().unwrap().port());
    drop(nobody);
    one.links.send_snapshot(2, 70, 3);
    assert_eq!(one.sent(4).await[3], (2, false));
    assert_eq!(two.files().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_not_sent() {
    let (one, two) = (TestServer::start(1).await, TestServer::start(2).await);
    one.knows(2, two.port);
    one.save(70, 5).await;
    let file = one.files().remove(0);
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    one.links.send_snapshot(2, 70, 3);
    assert_eq!(one.sent(1).await, [(2, false)]);
    assert_eq!(*one.host.unreadable.lock(), [70]);
    assert!(two.host.log.open_snapshot(70, 3).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sender_goes_on_where_it_was_cut_off() {
    let patience = Duration::from_secs(3);
    let options = LinkOptions {
        snapshot_patience: patience,
        ..LinkOptions::default()
    };
    let one = TestServer::start_with(1, options).await;
    one.save(70, 10).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.knows(2, listener.local_addr().unwrap().port());
    let accept = async || {
        loop {
            let accepted = timeout(LONG, listener.accept()).await;
            let (stream, _) = accepted.expect("it is tried again").unwrap();
            // The links are of no interest here.
            let greeted = handshake::accept(stream, &party(me(2))).await;
            if let Ok(greeted) = greeted
                && greeted.lane == Lane::Snapshot
            {
                return greeted.socket;
            }
        }
    };
    one.links.send_snapshot(2, 70, 3);
    let (offer, chunks, done) = taken_apart(&one, 70);
    let mut numbers = Vec::new();
    for have in [0, 3, 3, 8] {
        let Socket {
            mut read,
            mut write,
        } = accept().await;
        let offered = hear(&mut read, LONG).await.unwrap();
        assert_eq!(offered, Step::Offer(offer.clone()));
        let accept = Step::Accept(Accept { have_chunks: have });
        say(&mut write, accept).await.unwrap();
        for chunk in &chunks[have as usize..] {
            let sent = hear(&mut read, LONG).await.unwrap();
            assert_eq!(sent, Step::Chunk(chunk.clone()));
            numbers.push(chunk.number);
            if chunk.number == have + 2 && have < 8 {
                break;
            }
        }
        if have == 0 {
            // However long the first attempt took.
            sleep(patience).await;
        }
        if have == 8 {
            assert_eq!(hear(&mut read, LONG).await.unwrap(), Step::Done(done));
            say(&mut write, Step::Stored(Stored {})).await.unwrap();
            assert_eq!(one.sent(1).await, [(2, true)]);
        }
    }
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 3, 4, 5, 8, 9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_keeps_what_it_has() {
    let (one, source) = (TestServer::start(1).await, TestServer::start(3).await);
    let content = source.save(70, 6).await;
    let (offer, chunks, done) = taken_apart(&source, 70);
    let accepted = |have| Step::Accept(Accept { have_chunks: have });

    let (mut socket, answer) = offer_to(&one, &offer).await;
    assert_eq!(answer, accepted(0));
    for chunk in &chunks[..2] {
        let step = Step::Chunk(chunk.clone());
        say(&mut socket.write, step).await.unwrap();
    }
    // Something on the way changes a chunk.
    let mut body = chunks[2].body.to_vec();
    body[7] ^= 1;
    let damaged = Chunk {
        body: body.into(),
        ..chunks[2].clone()
    };
    say(&mut socket.write, Step::Chunk(damaged)).await.unwrap();
    let refused = hear(&mut socket.read, LONG).await.unwrap();
    let text = "chunk 2: a chunk was damaged on its way".to_owned();
    let may_retry = true;
    assert_eq!(refused, Step::Failed(Failed { text, may_retry }));
    drop(socket);

    let (mut socket, answer) = offer_to(&one, &offer).await;
    assert_eq!(answer, accepted(2));
    let step = Step::Chunk(chunks[2].clone());
    say(&mut socket.write, step).await.unwrap();
    // The next connection is there before this one is closed.
    let (mut second, answer) = offer_to(&one, &offer).await;
    let Step::Accept(Accept { have_chunks: have }) = answer else {
        panic!("{answer:?}");
    };
    assert!(have == 2 || have == 3, "{have}");
    for chunk in &chunks[have as usize..] {
        let step = Step::Chunk(chunk.clone());
        say(&mut second.write, step).await.unwrap();
    }
    assert!(one.host.received.lock().is_empty());
    say(&mut second.write, Step::Done(done)).await.unwrap();
    let stored = Step::Stored(Stored {});
    assert_eq!(hear(&mut second.read, LONG).await.unwrap(), stored);
    assert_eq!(one.content(70), content);
    // A sender that has not heard the last word is told again.
    let (_, answer) = offer_to(&one, &offer).await;
    assert_eq!(answer, stored);
    assert_eq!(*one.host.received.lock(), [(2, meta(70)), (2, meta(70))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_loaded_is_not_stored() {
    let (one, source) = (TestServer::start(1).await, TestServer::start(3).await);
    source.save(70, 1).await;
    let (offer, chunks, done) = taken_apart(&source, 70);
    let refused = Step::Failed(Failed {
        text: "snapshot x cannot be loaded: it differs".to_owned(),
        may_retry: false,
    });
    let spoil = || {
        *one.host.spoils.lock() = Some(Fault::RejectedSnapshot {
            path: PathBuf::from("x"),
            reason: "it differs".to_owned(),
        });
    };
    for is_good in [false, true] {
        // Neither of them is taken for stored before it is.
        let (mut socket, answer) = offer_to(&one, &offer).await;
        assert_eq!(answer, Step::Accept(Accept { have_chunks: 0 }));
        let step = Step::Chunk(chunks[0].clone());
        say(&mut socket.write, step).await.unwrap();
        if !is_good {
            spoil();
        }
        say(&mut socket.write, Step::Done(done)).await.unwrap();
        let last = hear(&mut socket.read, LONG).await.unwrap();
        let expected = match is_good {
            true => Step::Stored(Stored {}),
            false => refused.clone(),
        };
        assert_eq!(last, expected);
    }
    // Nor one that has gone bad since.
    spoil();
    let (_, answer) = offer_to(&one, &offer).await;
    assert_eq!(answer, refused);
    let (_, answer) = offer_to(&one, &offer).await;
    assert_eq!(answer, Step::Accept(Accept { have_chunks: 0 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_snapshot_takes_the_place_of_half_a_one() {
    let (one, source) = (TestServer::start(1).await, TestServer::start(3).await);
    source.save(70, 3).await;
    source.save(80, 2).await;
    let (offer, chunks, mut done) = taken_apart(&source, 70);
    let (mut socket, _) = offer_to(&one, &offer).await;
    let step = Step::Chunk(chunks[0].clone());
    say(&mut socket.write, step).await.unwrap();
    drop(socket);

    let (offer, chunks, _) = taken_apart(&source, 80);
    let (mut socket, answer) = offer_to(&one, &offer).await;
    assert_eq!(answer, Step::Accept(Accept { have_chunks: 0 }));
    assert_eq!(one.files().len(), 1, "only the new one");
    for chunk in chunks {
        say(&mut socket.write, Step::Chunk(chunk)).await.unwrap();
    }
    // Not all that was offered.
    done.chunks = 2;
    done.bytes = 1;
    say(&mut socket.write, Step::Done(done)).await.unwrap();
    let refused = hear(&mut socket.read, LONG).await.unwrap();
    let text = "what was sent is not what was offered".to_owned();
    let may_retry = true;
    assert_eq!(refused, Step::Failed(Failed { text, may_retry }));
    assert_eq!(one.files().len(), 0);
    assert!(one.host.received.lock().is_empty());
}

/// Passes bytes on, and cuts each connection after so many; counts them all.
async fn pass_on(listener: TcpListener, to: u16, cut_after: usize, passed: Arc<AtomicUsize>) {
    loop {
        let (from, _) = listener.accept().await.unwrap();
        let to = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
        let passed = passed.clone();
        tokio::spawn(async move {
            let (mut from_read, mut from_write) = from.into_split();
            let (mut to_read, mut to_write) = to.into_split();
            let back = tokio::spawn(async move {
                let _ = tokio::io::copy(&mut to_read, &mut from_write).await;
            });
            let mut buffer = vec![0; 10_000];
            let mut count = 0;
            while count < cut_after {
                let Ok(bytes @ 1..) = from_read.read(&mut buffer).await else {
                    break;
                };
                count += bytes;
                passed.fetch_add(bytes, Ordering::Relaxed);
                if to_write.write_all(&buffer[..bytes]).await.is_err() {
                    break;
                }
            }
            back.abort();
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_gets_through_a_network_that_breaks_again_and_again() {
    let (one, two) = (TestServer::start(1).await, TestServer::start(2).await);
    let content = one.save(70, 40).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.knows(2, listener.local_addr().unwrap().port());
    let passed = Arc::new(AtomicUsize::new(0));
    let cut_after = 12 * CHUNK_BYTES;
    tokio::spawn(pass_on(listener, two.port, cut_after, passed.clone()));
    one.links.send_snapshot(2, 70, 3);
    assert_eq!(one.sent(1).await, [(2, true)]);
    assert_eq!(two.content(70), content);
    // Four connections at least; what was lost with three of them was sent twice.
    let passed = passed.load(Ordering::Relaxed);
    assert!(passed > 40 * CHUNK_BYTES, "{passed}");
    assert!(passed < 60 * CHUNK_BYTES, "{passed}");
}

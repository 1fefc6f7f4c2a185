//! The engine driven by hand: one server, a disk that answers when told, frames in and out.

mod cluster;

use std::cell::RefCell;
use std::sync::{OnceLock, Weak};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::auth::{IDENTITIES_MAX, IDENTITY_BYTES_MAX};
use super::bounds::{ACL_ENTRIES_MAX, AUTH_ENTRIES_MAX, QUOTA_BYTES_MAX};
use super::forward::BYTES_PER_ENTRY;
use super::*;
use crate::machine::{BYTES_AT_ONCE, CANDIDATES_AT_ONCE, NODES_AT_ONCE, PATH_BYTES_MAX};
use crate::wire::request::{Create, SetWatches};
use crate::wire::{
    Acl, ConnectRequest, ConnectResponse, ErrorCode, EventType, FRAME_BYTES_MAX, Id, Reader,
    Request, SubRequest, Text, Zxid,
};

/// A server whose disk is under the test's control.
struct Bench {
    engine: Engine,
    shared: Arc<Shared>,
    now_ms: u64,
    /// Written, not durable.
    written: Vec<Append>,
    /// Whether the disk answers by itself.
    automatic: bool,
    /// How often a snapshot was asked for; each is written at once.
    snapshots: usize,
}

#[derive(Debug, PartialEq)]
enum Frame {
    Reply { xid: i32, error: i32 },
    Event(i32, String),
}

struct Client {
    connection: Arc<Connection>,
    output: RefCell<BytesMut>,
    closed: bool,
}

/// A connection that can be sent to whenever it is woken.
fn connect(shared: &Arc<Shared>) -> Arc<Connection> {
    let place = Arc::new(OnceLock::<Weak<Connection>>::new());
    let looked_up = place.clone();
    let wake = move |_| {
        let connection = looked_up.get().and_then(Weak::upgrade);
        let is_locked = connection.is_some_and(|connection| connection.is_locked());
        assert!(!is_locked, "who sends for its task would wait for ever");
    };
    let peer = "127.0.0.1:1234".parse().unwrap();
    let connection = shared.connect(peer, Box::new(wake));
    place.set(Arc::downgrade(&connection)).expect("it is empty");
    connection
}

/// A server alone.
fn setup(options: Options, machine: Machine, snapshot_due: bool) -> Setup {
    Setup {
        machine,
        snapshot_due,
        ..Setup::alone(options)
    }
}

impl Bench {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        Self::start(options, false).0
    }

    /// A server that serves, and whether it asked for a snapshot at once.
    fn start(options: Options, snapshot_due: bool) -> (Self, bool) {
        let setup = setup(options, Machine::new(), snapshot_due);
        let engine = Engine::new(setup, 0);
        let shared = engine.shared();
        let mut bench = Self {
            engine,
            shared,
            now_ms: 0,
            written: Vec::new(),
            automatic: true,
            snapshots: 0,
        };
        let snapshot = bench.turn();
        assert!(bench.shared.is_serving(), "a sole voter serves at once");
        (bench, snapshot.is_some())
    }

    /// Returns the snapshot that was asked for meanwhile.
    fn turn(&mut self) -> Option<SnapshotMeta> {
        let mut snapshot = None;
        loop {
            let mut out = Outputs::default();
            self.engine
                .turn(self.now_ms, 1_000_000 + self.now_ms as i64, &mut out);
            if let Some((meta, _)) = out.take_snapshot {
                self.snapshots += 1;
                snapshot = Some(meta);
            }
            self.written.append(&mut out.append);
            if !self.automatic || self.written.is_empty() {
                return snapshot;
            }
            self.persist();
        }
    }

    fn persist(&mut self) {
        if let Some(last) = std::mem::take(&mut self.written).pop() {
            let mut out = Outputs::default();
            self.engine
                .handle(Event::Persisted(last.number), self.now_ms, &mut out);
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            self.now_ms += 50;
            self.engine
                .handle(Event::Tick, self.now_ms, &mut Outputs::default());
            self.turn();
        }
    }

    fn open(&mut self) -> Client {
        Client {
            connection: connect(&self.shared),
            output: RefCell::default(),
            closed: false,
        }
    }

    fn handshake(&mut self, session: SessionId, password: &[u8], zxid: Zxid) -> Client {
        let client = self.open();
        let frame = hello(session, password, zxid);
        client.receive(&frame, self.now_ms).unwrap();
        self.turn();
        client
    }

    /// A client with a new session.
    fn client(&mut self) -> (Client, ConnectResponse) {
        let mut client = self.handshake(SessionId(0), &[0; 16], Zxid(0));
        let response = client.connect_response().expect("a session is given");
        (client, response)
    }

    fn exists(&self, session: SessionId) -> bool {
        let state = self.shared.state.read();
        state.machine.session(session).is_some()
    }

    fn send(&mut self, client: &Client, xid: i32, request: &Request) {
        let mut frame = BytesMut::new();
        frame.extend_from_slice(&xid.to_be_bytes());
        frame.extend_from_slice(&request.opcode().to_be_bytes());
        request.encode(&mut frame);
        let _ = client.receive(&frame, self.now_ms);
        self.turn();
    }
}

impl Client {
    /// Hands in one frame.
    fn receive(&self, frame: &[u8], now_ms: u64) -> Result<usize, Refused> {
        let mut input = BytesMut::new();
        input.put_i32(frame.len() as i32);
        input.put_slice(frame);
        let output = &mut self.output.borrow_mut();
        self.connection
            .receive(&mut input, FRAME_BYTES_MAX, || now_ms, output)
    }

    fn raw(&mut self) -> Option<Bytes> {
        self.connection.answer_large(0);
        let output = self.output.get_mut();
        while match self.connection.take_output(output) {
            Remaining::More => true,
            Remaining::Nothing => false,
            Remaining::Closed => {
                self.closed = true;
                false
            }
        } {}
        if output.is_empty() {
            return None;
        }
        let length = output.get_i32() as usize;
        Some(output.split_to(length).freeze())
    }

    fn connect_response(&mut self) -> Option<ConnectResponse> {
        self.raw()
            .map(|frame| ConnectResponse::decode(frame).unwrap())
    }

    fn frames(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.raw())
            .map(|frame| {
                let mut reader = Reader::new(frame);
                let xid = reader.int().unwrap();
                let _zxid = reader.long().unwrap();
                let error = reader.int().unwrap();
                if xid != -1 {
                    return Frame::Reply { xid, error };
                }
                let kind = reader.int().unwrap();
                let _state = reader.int().unwrap();
                Frame::Event(kind, reader.required_text().unwrap().to_string())
            })
            .collect()
    }
}

/// A handshake with a timeout of 4 s.
fn hello(session: SessionId, password: &[u8], last_zxid_seen: Zxid) -> BytesMut {
    let request = ConnectRequest {
        last_zxid_seen,
        timeout_ms: 4_000,
        session,
        password: Bytes::copy_from_slice(password),
        read_only: Some(false),
    };
    let mut frame = BytesMut::new();
    request.encode(&mut frame);
    frame
}

fn create(path: &str, flags: i32) -> Request {
    Request::Create(Create {
        opcode: op::CREATE,
        path: path.into(),
        data: Some(Bytes::from_static(b"data")),
        acl: Some(vec![Acl::open()]),
        flags,
        ttl: None,
    })
}

fn exists(path: &str) -> Request {
    Request::Exists {
        path: path.into(),
        watch: false,
    }
}

fn ok(xid: i32) -> Frame {
    Frame::Reply { xid, error: 0 }
}

fn failed(xid: i32, code: ErrorCode) -> Frame {
    Frame::Reply {
        xid,
        error: code.number(),
    }
}

fn event(kind: EventType, path: &str) -> Frame {
    Frame::Event(kind as i32, path.to_owned())
}

#[test]
fn a_write_is_answered_only_once_it_is_durable() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    bench.automatic = false;
    bench.send(&client, 1, &create("/a", 0));
    bench.pass(500);
    assert_eq!(client.frames(), []);
    assert!(bench.written.iter().any(|append| append.sync));
    bench.persist();
    bench.turn();
    assert_eq!(client.frames(), [ok(1)]);
}

#[test]
fn a_read_behind_a_write_waits_and_sees_it() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    bench.automatic = false;
    bench.send(&client, 1, &exists("/a"));
    bench.send(&client, 2, &create("/a", 0));
    bench.send(&client, 3, &exists("/a"));
    bench.send(
        &client,
        4,
        &Request::Sync {
            path: Some("/".into()),
        },
    );
    bench.send(&client, 5, &exists("/a"));
    assert_eq!(client.frames(), [failed(1, ErrorCode::NoNode)]);
    bench.automatic = true;
    bench.persist();
    bench.turn();
    assert_eq!(client.frames(), [ok(2), ok(3), ok(4), ok(5)]);
}

#[test]
fn s47_events_come_before_the_reply_of_the_write_that_caused_them() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    bench.send(&client, 1, &create("/w", 0));
    bench.send(
        &client,
        2,
        &Request::Exists {
            path: "/w/x".into(),
            watch: true,
        },
    );
    let children = Request::GetChildren {
        path: "/w".into(),
        watch: true,
        with_stat: false,
    };
    bench.send(&client, 3, &children);
    client.frames();
    bench.send(&client, 4, &create("/w/x", 0));
    assert_eq!(
        client.frames(),
        [
            event(EventType::NodeCreated, "/w/x"),
            event(EventType::NodeChildrenChanged, "/w"),
            ok(4)
        ]
    );
}

#[test]
fn s7_attaching_a_session_closes_its_older_connection() {
    let mut bench = Bench::new();
    let (mut old, given) = bench.client();
    let mut new = bench.handshake(given.session, &given.password, Zxid(0));
    assert_eq!(new.connect_response().unwrap().session, given.session);
    assert_eq!(old.frames(), []);
    assert!(old.closed);
    bench.send(&new, 1, &create("/a", 1));
    assert_eq!(new.frames(), [ok(1)]);
}

#[test]
fn a_wrong_password_is_refused_and_leaves_the_owner_alone() {
    let mut bench = Bench::new();
    let (mut owner, given) = bench.client();
    let mut thief = bench.handshake(given.session, &[1; 16], Zxid(0));
    assert_eq!(thief.connect_response().unwrap().timeout_ms, 0);
    assert_eq!(thief.frames(), []);
    assert!(thief.closed);
    bench.send(&owner, 1, &create("/a", 0));
    assert_eq!(owner.frames(), [ok(1)]);
}

#[test]
fn s82_a_silent_session_ends_with_its_ephemerals() {
    let mut bench = Bench::new();
    let (mut silent, _) = bench.client();
    let (mut witness, _) = bench.client();
    bench.send(&silent, 1, &create("/e", 1));
    silent.frames();
    bench.send(
        &witness,
        1,
        &Request::Exists {
            path: "/e".into(),
            watch: true,
        },
    );
    witness.frames();
    for second in 0..6 {
        bench.pass(1_000);
        bench.send(&witness, -2, &Request::Ping);
        let frames = witness.frames();
        if second < 3 {
            assert_eq!(frames, [ok(-2)]);
        } else if frames.len() == 2 {
            assert_eq!(frames, [event(EventType::NodeDeleted, "/e"), ok(-2)]);
        }
    }
    assert_eq!(silent.frames(), []);
    assert!(silent.closed, "its connection is closed without a message");
    assert_eq!(bench.shared.state.read().machine.session_count(), 1);
}

#[test]
fn a_client_that_is_ahead_waits_half_a_second_and_is_closed() {
    let mut bench = Bench::new();
    let mut client = bench.handshake(SessionId(0), &[0; 16], Zxid::new(7, 7));
    bench.pass(400);
    assert_eq!(client.frames(), []);
    assert!(!client.closed);
    bench.pass(200);
    assert_eq!(client.frames(), []);
    assert!(client.closed);
}

#[test]
fn s14_an_unknown_opcode_is_answered_after_what_stands_before_it() {
    let mut bench = Bench::new();
    let (mut client, given) = bench.client();
    bench.automatic = false;
    bench.send(&client, 1, &create("/a", 0));
    bench.send(&client, 2, &Request::Unknown(99));
    assert_eq!(client.frames(), []);
    bench.automatic = true;
    bench.persist();
    bench.turn();
    assert_eq!(
        client.frames(),
        [ok(1), failed(2, ErrorCode::Unimplemented)]
    );
    assert!(client.closed);
    assert!(
        bench
            .shared
            .state
            .read()
            .machine
            .session(given.session)
            .is_some()
    );
}

#[test]
fn s19_a_closed_session_is_answered_and_then_the_connection_ends() {
    let mut bench = Bench::new();
    let (mut client, given) = bench.client();
    bench.send(&client, 1, &create("/e", 1));
    bench.send(&client, 2, &Request::CloseSession);
    assert_eq!(client.frames(), [ok(1), ok(2)]);
    assert!(client.closed);
    let state = bench.shared.state.read();
    assert!(state.machine.session(given.session).is_none());
    assert!(state.machine.peek("/e").is_none());
}

#[test]
fn a_lost_connection_takes_its_watches_along_but_not_its_session() {
    let mut bench = Bench::new();
    let (client, given) = bench.client();
    bench.send(
        &client,
        1,
        &Request::Exists {
            path: "/a".into(),
            watch: true,
        },
    );
    client.connection.lost();
    assert_eq!(bench.shared.state.read().watches.lock().len(), 0);
    assert_eq!(bench.shared.connection_count(), 0);
    let mut back = bench.handshake(given.session, &given.password, Zxid(0));
    assert_eq!(back.connect_response().unwrap().session, given.session);
}

#[test]
fn many_watches_of_a_lost_connection_go_step_by_step() {
    let mut bench = Bench::new();
    let (client, _) = bench.client();
    let exist = (0..2_000).map(|n| format!("/{n}").into()).collect();
    let set = SetWatches {
        exist,
        ..SetWatches::default()
    };
    bench.send(&client, -8, &Request::SetWatches(set));
    client.connection.answer_large(0);
    let watches = || bench.shared.state.read().watches.lock().len();
    assert_eq!(watches(), 2_000);
    assert!(client.connection.lost_step());
    // No event goes to it any more, and others have their turn.
    assert_eq!(bench.shared.connection_count(), 0);
    assert!((1..2_000).contains(&watches()));
    while client.connection.lost_step() {}
    assert_eq!(watches(), 0);
}

#[test]
fn writes_of_a_lost_connection_are_still_applied_once() {
    let mut bench = Bench::new();
    let (client, _) = bench.client();
    bench.automatic = false;
    bench.send(&client, 1, &create("/a", 0));
    client.connection.lost();
    bench.automatic = true;
    bench.persist();
    bench.turn();
    assert!(bench.shared.state.read().machine.peek("/a").is_some());
    assert_eq!(bench.shared.outstanding(), 0);
}

#[test]
fn a_client_that_the_server_does_not_read_is_not_expired() {
    let mut bench = Bench::with(Options {
        outstanding_max: 1,
        ..Options::default()
    });
    let (mut client, given) = bench.client();
    bench.automatic = false;
    bench.send(&client, 1, &create("/a", 0));
    assert!(!client.connection.wants_input(bench.now_ms));
    bench.pass(20_000);
    bench.automatic = true;
    bench.persist();
    bench.turn();
    assert_eq!(client.frames(), [ok(1)]);
    assert!(client.connection.wants_input(bench.now_ms));
    assert!(bench.exists(given.session));
    bench.pass(7_000);
    assert!(!bench.exists(given.session), "now its silence is its own");
}

#[test]
fn a_server_alone_remembers_no_connections_that_are_gone() {
    let mut bench = Bench::new();
    for _ in 0..10 {
        let (client, _) = bench.client();
        client.connection.lost();
    }
    bench.pass(100);
    assert!(bench.engine.gone.is_empty());
}

#[test]
fn half_a_frame_is_no_sign_of_life() {
    let mut bench = Bench::new();
    let (client, given) = bench.client();
    let (whole, held) = bench.client();
    // A ping, of which one client sends a byte a second, and the other all of it.
    let ping = [0, 0, 0, 8, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 11];
    for byte in 1..9 {
        bench.pass(1_000);
        let dribble = &mut BytesMut::from(&ping[..byte]);
        let out = &mut BytesMut::new();
        let taken = client
            .connection
            .receive(dribble, FRAME_BYTES_MAX, || bench.now_ms, out);
        assert_eq!(taken, Ok(0));
        whole.receive(&ping[4..], bench.now_ms).unwrap();
    }
    assert!(!bench.exists(given.session));
    assert!(bench.exists(held.session));
}

#[test]
fn a_client_that_asked_for_much_behind_a_write_gets_it() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    let big = Request::SetData {
        path: "/a".into(),
        data: Some(vec![7; BYTES_AT_ONCE - 1].into()),
        version: -1,
    };
    bench.send(&client, 1, &create("/a", 0));
    bench.send(&client, 2, &big);
    assert_eq!(client.frames(), [ok(1), ok(2)]);
    bench.automatic = false;
    bench.send(&client, 3, &create("/b", 0));
    let read = Request::GetData {
        path: "/a".into(),
        watch: false,
    };
    for xid in 4..54 {
        assert!(client.connection.wants_input(bench.now_ms));
        bench.send(&client, xid, &read);
    }
    bench.automatic = true;
    bench.persist();
    bench.turn();
    let answered: Vec<_> = (3..54).map(ok).collect();
    assert_eq!(client.frames(), answered);
    assert!(!client.closed);
}

/// What is brought near for reads that came together changes nothing of their answers.
#[test]
fn reads_of_a_large_tree_are_answered_together_as_one_by_one() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    let mut xid = 0;
    for parent in 0..10 {
        let child = |n| create(&format!("/{parent}/{n}"), 0);
        let nodes = [create(&format!("/{parent}"), 0)].into_iter();
        for node in nodes.chain((0..900).map(child)) {
            xid += 1;
            bench.send(&client, xid, &node);
        }
        assert_eq!(client.frames().len(), 901);
    }
    let paths = [
        "/7/899", "/7/900", "/x/y", "/", "", "x", "//", "/7/", "/é", "/9",
    ];
    let header = |opcode| {
        let mut frame = BytesMut::new();
        frame.put_i32(1);
        frame.put_i32(opcode);
        frame
    };
    let frame = |request: Request| {
        let mut frame = header(request.opcode());
        request.encode(&mut frame);
        frame
    };
    let data = |path: &str| Request::GetData {
        path: path.into(),
        watch: false,
    };
    let mut frames: Vec<_> = (0..4)
        .flat_map(|_| paths)
        .flat_map(|path| [frame(data(path)), frame(exists(path))])
        .collect();
    // Between others, and many together.
    let acl = Request::GetAcl {
        path: "/7/1".into(),
    };
    for (at, other) in [
        (40, Request::Ping),
        (30, acl),
        (25, Request::Ping),
        (3, data("/7/1")),
    ] {
        frames.insert(at, frame(other));
    }
    // A length below zero, one that is too long, one of no text, and no watch flag behind it.
    for body in ["\u{7f}", "\0\0\0\u{9}", "\0\0\0\u{2}/7"].map(str::as_bytes) {
        for at in [20, 50, 51] {
            let mut frame = header(op::GET_DATA);
            frame.put_slice(body);
            frames.insert(at, frame);
        }
    }
    for length in [-2, 2] {
        let mut frame = header(op::EXISTS);
        frame.put_i32(length);
        frame.put_slice(b"\xff\xfe\0");
        frames.insert(10, frame);
    }
    let mut input = BytesMut::new();
    for frame in &frames {
        client.receive(frame, bench.now_ms).unwrap();
        input.put_i32(frame.len() as i32);
        input.put_slice(frame);
    }
    let one_by_one = client.frames();
    assert_eq!(one_by_one.len(), frames.len());
    // The last is not whole yet, and comes later.
    let rest = input.split_off(input.len() - 3);
    for part in [BytesMut::new(), rest] {
        input.unsplit(part);
        let output = &mut client.output.borrow_mut();
        let connection = &client.connection;
        let taken = connection.receive(&mut input, FRAME_BYTES_MAX, || bench.now_ms, output);
        taken.unwrap();
    }
    assert!(input.is_empty());
    assert_eq!(client.frames(), one_by_one);
}

#[test]
fn unanswered_writes_are_bounded_by_their_bytes_too() {
    let mut bench = Bench::with(Options {
        outstanding_bytes_max: 3_000,
        ..Options::default()
    });
    let (mut client, _) = bench.client();
    bench.send(&client, 1, &create("/a", 0));
    client.frames();
    bench.automatic = false;
    let set = Request::SetData {
        path: "/a".into(),
        data: Some(vec![7; 1_000].into()),
        version: -1,
    };
    for xid in 2..5 {
        assert!(client.connection.wants_input(bench.now_ms));
        bench.send(&client, xid, &set);
    }
    assert!(!client.connection.wants_input(bench.now_ms));
    bench.automatic = true;
    bench.persist();
    bench.turn();
    assert!(client.connection.wants_input(bench.now_ms));
    assert_eq!(client.frames(), [ok(2), ok(3), ok(4)]);
}

#[test]
fn reads_behind_a_write_are_bounded_by_their_bytes_too() {
    let path: Text = format!("/{}", "a".repeat(300_000)).into();
    let get = Request::GetData {
        path: path.clone(),
        watch: false,
    };
    for read in [get, Request::GetAcl { path }] {
        let mut bench = Bench::new();
        let (mut client, _) = bench.client();
        bench.automatic = false;
        bench.send(&client, 1, &create("/a", 0));
        let mut sent = 0;
        while client.connection.wants_input(bench.now_ms) {
            sent += 1;
            bench.send(&client, 2, &read);
        }
        assert_eq!(sent, 4);
        bench.automatic = true;
        bench.persist();
        bench.turn();
        assert_eq!(client.frames().len(), 5);
        assert!(client.connection.wants_input(bench.now_ms));
    }
}

#[test]
fn nothing_is_read_behind_a_request_that_ends_the_connection() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    bench.automatic = false;
    bench.send(&client, 1, &create("/a", 0));
    assert!(client.connection.wants_input(bench.now_ms));
    let auth = Request::Auth {
        scheme: "nobody".into(),
        auth: Bytes::new(),
    };
    bench.send(&client, -4, &auth);
    assert!(!client.connection.wants_input(bench.now_ms));
    bench.automatic = true;
    bench.persist();
    bench.turn();
    assert_eq!(client.frames(), [ok(1), failed(-4, ErrorCode::AuthFailed)]);
    assert!(client.closed);
}

#[test]
fn a_session_has_few_identities() {
    let long = "u".repeat(IDENTITY_BYTES_MAX);
    let many: Vec<String> = (1..IDENTITIES_MAX).map(|n| format!("user{n}")).collect();
    let mut bench = Bench::new();
    for (users, too_much) in [(many, "one more"), (vec!["user1".into()], &long)] {
        let (mut client, response) = bench.client();
        let mut add = |client: &Client, user: &str| {
            let auth = Request::Auth {
                scheme: "digest".into(),
                auth: format!("{user}:secret").into_bytes().into(),
            };
            bench.send(client, -4, &auth);
        };
        for user in users.iter().chain(&users) {
            add(&client, user);
            assert_eq!(client.frames(), [ok(-4)]);
        }
        add(&client, too_much);
        assert_eq!(client.frames(), [failed(-4, ErrorCode::AuthFailed)]);
        assert!(client.closed);
        let state = bench.shared.state.read();
        let known = state.machine.identities(response.session).unwrap();
        // The address is one of them.
        assert_eq!(known.len(), users.len() + 1);
    }
}

#[test]
fn a_long_access_list_is_refused_before_the_log() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    let entry = |scheme: &str, id: &str| Acl {
        perms: 31,
        id: Id::new(scheme, id),
    };
    let list = |length| vec![entry("world", "anyone"); length];
    let create = |path: &str, list: Vec<Acl>| Create {
        opcode: op::CREATE,
        path: path.into(),
        data: None,
        acl: Some(list),
        flags: 0,
        ttl: None,
    };
    let most = create("/most", list(ACL_ENTRIES_MAX));
    bench.send(&client, 1, &Request::Create(most));
    assert_eq!(client.frames(), [ok(1)]);
    let index = bench.engine.replica.last_index();
    let long = || list(ACL_ENTRIES_MAX + 1);
    bench.send(&client, 2, &Request::Create(create("/long", long())));
    let operation = SubRequest::Create(create("/long", long()));
    bench.send(&client, 3, &Request::Multi(vec![operation]));
    let set = Request::SetAcl {
        path: "/most".into(),
        acl: Some(long()),
        version: -1,
    };
    bench.send(&client, 4, &set);
    // Each stands for all of its identities, of which there is one so far.
    let auths = vec![entry("auth", ""); ACL_ENTRIES_MAX / 2];
    let auth = Request::Auth {
        scheme: "digest".into(),
        auth: Bytes::from_static(b"u:p"),
    };
    bench.send(&client, -4, &auth);
    bench.send(
        &client,
        -4,
        &Request::Auth {
            scheme: "digest".into(),
            auth: Bytes::from_static(b"v:p"),
        },
    );
    bench.send(&client, 5, &Request::Create(create("/auth", auths)));
    let refused = |xid| failed(xid, ErrorCode::InvalidAcl);
    let expected = [
        refused(2),
        refused(3),
        refused(4),
        ok(-4),
        ok(-4),
        refused(5),
    ];
    assert_eq!(client.frames(), expected);
    // The identities are all that came.
    assert_eq!(bench.engine.replica.last_index(), index + 2);
}

#[test]
fn a_long_text_of_a_quota_is_refused_before_the_log() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    let text = |bytes| Some(vec![b'a'; bytes].into());
    bench.send(&client, 1, &create("/zookeeper/quota/a", 0));
    let set = |path: &str, bytes| Request::SetData {
        path: path.into(),
        data: text(bytes),
        version: -1,
    };
    bench.send(&client, 2, &set("/zookeeper/quota/a", QUOTA_BYTES_MAX));
    assert_eq!(client.frames(), [ok(1), ok(2)]);
    let index = bench.engine.replica.last_index();
    let long = QUOTA_BYTES_MAX + 1;
    bench.send(&client, 3, &set("/zookeeper/quota/a", long));
    let operation = SubRequest::SetData {
        path: "/zookeeper/quota/a".into(),
        data: text(long),
        version: -1,
    };
    bench.send(&client, 4, &Request::Multi(vec![operation]));
    let Request::Create(mut statistics) = create("/zookeeper/quota/a/zookeeper_stats", 0) else {
        unreachable!("as asked for")
    };
    statistics.data = text(long);
    let operation = SubRequest::Create(statistics.clone());
    bench.send(&client, 5, &Request::Multi(vec![operation]));
    bench.send(&client, 6, &Request::Create(statistics));
    let refused = |xid| failed(xid, ErrorCode::BadArguments);
    assert_eq!(
        client.frames(),
        [refused(3), refused(4), refused(5), refused(6)]
    );
    assert_eq!(bench.engine.replica.last_index(), index);
    // Elsewhere it is data like any other.
    bench.send(&client, 7, &create("/a", 0));
    bench.send(&client, 8, &set("/a", long));
    assert_eq!(client.frames(), [ok(7), ok(8)]);
}

#[test]
fn settings_are_in_the_log_before_the_first_client_is_served() {
    let settings = vec![("extended_types", 1), ("enforce_quota", 1)];
    let bench = Bench::with(Options {
        settings,
        ..Options::default()
    });
    let state = bench.shared.state.read();
    assert_eq!(state.machine.setting("extended_types"), 1);
    assert_eq!(state.machine.setting("enforce_quota"), 1);
}

#[test]
fn a_server_alone_is_at_the_highest_level_before_the_first_client_is_served() {
    for (level, level_max, expected) in [(1, 0, 1), (3, 0, 3), (3, 2, 2)] {
        let bench = Bench::with(Options {
            level,
            level_max,
            ..Options::default()
        });
        assert_eq!(bench.shared.state.read().machine.level(), expected);
        assert_eq!(bench.shared.status().level, expected);
    }
}

#[test]
fn a_state_of_a_level_that_is_not_known_is_not_touched() {
    let mut machine = Machine::new();
    let [level, known] = [FEATURE_LEVEL + 1, FEATURE_LEVEL];
    let raise = set_command(&(crate::machine::LEVEL_SETTING.to_owned(), level.into()));
    let entry = proto::log::Entry {
        internal: vec![raise],
        ..proto::log::Entry::default()
    };
    let at = LogId { term: 1, index: 1 };
    machine.apply(at, &entry, &mut Nobody);
    let mut engine = Engine::new(setup(Options::default(), machine, false), 0);
    let mut out = Outputs::default();
    engine.turn(0, 0, &mut out);
    assert_eq!(out.outdated, Some(Outdated { level, known }));
    assert!(out.append.is_empty() && !engine.shared().is_serving());
}

/// Is told what comes of an entry, and does not care.
struct Nobody;

impl Sink for Nobody {
    fn changed(&mut self, _: &Change<'_>) {}
    fn done(&mut self, _: &Machine, _: CommandId, _: Outcome) {}
    fn session_attached(&mut self, _: &Attached) {}
    fn session_closed(&mut self, _: SessionId) {}
}

/// What is removed at a time is one entry, which has to fit into a message.
fn cleaning(cleaner: CleanerOptions) -> Bench {
    Bench::with(Options {
        cleaner,
        ..Options::default()
    })
}

fn container(path: &str) -> Create {
    Create {
        opcode: op::CREATE_CONTAINER,
        path: path.into(),
        data: None,
        acl: Some(vec![Acl::open()]),
        flags: 4,
        ttl: None,
    }
}

#[test]
fn containers_with_long_names_are_removed_by_and_by() {
    let mut bench = cleaning(CleanerOptions {
        interval_ms: 1_000,
        per_minute: 1_000_000,
        ..CleanerOptions::default()
    });
    let (mut client, _) = bench.client();
    let long = format!("/{}", "c".repeat(PATH_BYTES_MAX - 10));
    for number in 0..600 {
        let path = format!("{long}{number}");
        bench.send(&client, 1, &Request::Create(container(&path)));
        let child = format!("{path}/x");
        bench.send(&client, 2, &create(&child, 0));
        let path = child.as_str().into();
        bench.send(&client, 3, &Request::Delete { path, version: -1 });
        assert_eq!(client.frames(), [ok(1), ok(2), ok(3)]);
    }
    let count = |bench: &Bench| bench.shared.state.read().machine.znode_count();
    let all = count(&bench);
    let mut counts = vec![0];
    for _ in 0..80 {
        bench.pass(50);
        let gone = all - count(&bench);
        if counts.last() != Some(&gone) {
            counts.push(gone);
        }
    }
    let at_once = BYTES_PER_ENTRY / (PATH_BYTES_MAX + 20);
    assert_eq!(counts.len(), 4, "{counts:?}");
    let steps = counts.windows(2).map(|counts| counts[1] - counts[0]);
    assert!(steps.clone().all(|step| step <= at_once + 2), "{counts:?}");
    assert_eq!(steps.sum::<usize>(), 600);
}

#[test]
fn many_containers_are_looked_at_by_and_by() {
    let mut bench = cleaning(CleanerOptions {
        interval_ms: 60_000,
        never_used_ms: 1,
        ..CleanerOptions::default()
    });
    let (mut client, _) = bench.client();
    let container = |number: usize| SubRequest::Create(container(&format!("/c{number}")));
    // In each turn some of them are looked at, and all in the same minute.
    let many = 2 * CANDIDATES_AT_ONCE + 10;
    let all = (0..many).map(container).collect();
    bench.send(&client, 1, &Request::Multi(all));
    assert_eq!(client.frames(), [ok(1)]);
    let before = bench.shared.state.read().machine.znode_count();
    for _ in 0..130 {
        bench.pass(500);
    }
    let gone = before - bench.shared.state.read().machine.znode_count();
    assert_eq!(gone, many);
}

#[test]
fn no_znode_has_a_very_long_path() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    let longest = format!("/{}", "a".repeat(PATH_BYTES_MAX - 1));
    bench.send(&client, 1, &create(&longest, 0));
    assert_eq!(client.frames(), [ok(1)]);
    let index = bench.engine.replica.last_index();
    bench.send(&client, 2, &create(&format!("{longest}/b"), 0));
    assert_eq!(client.frames(), [failed(2, ErrorCode::BadArguments)]);
    assert_eq!(bench.engine.replica.last_index(), index);
}

#[test]
fn a_request_begins_one_quota() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    let statistics = |quota: &str| {
        let path = format!("/zookeeper/quota/{quota}/zookeeper_stats");
        let Request::Create(create) = create(&path, 0) else {
            unreachable!("as asked for")
        };
        SubRequest::Create(create)
    };
    let index = bench.engine.replica.last_index();
    let two = vec![statistics("a"), statistics("b")];
    bench.send(&client, 1, &Request::Multi(two));
    assert_eq!(client.frames(), [failed(1, ErrorCode::BadArguments)]);
    assert_eq!(bench.engine.replica.last_index(), index);
}

#[test]
fn the_lists_of_a_request_stand_for_a_bounded_number_of_identities() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    for number in 1..IDENTITIES_MAX {
        let auth = Request::Auth {
            scheme: "digest".into(),
            auth: format!("u{number}:p").into_bytes().into(),
        };
        bench.send(&client, -4, &auth);
    }
    client.frames();
    let creates = |count: usize| {
        let one = |number| {
            SubRequest::Create(Create {
                opcode: op::CREATE,
                path: format!("/m{number}").as_str().into(),
                data: None,
                acl: Some(vec![Acl {
                    perms: 31,
                    id: Id::new("auth", ""),
                }]),
                flags: 0,
                ttl: None,
            })
        };
        Request::Multi((0..count).map(one).collect())
    };
    bench.send(&client, 1, &creates(AUTH_ENTRIES_MAX / IDENTITIES_MAX + 1));
    assert_eq!(client.frames(), [failed(1, ErrorCode::InvalidAcl)]);
    bench.send(&client, 2, &creates(2));
    assert_eq!(client.frames(), [ok(2)]);
}

#[test]
fn emptied_containers_are_removed() {
    let mut bench = cleaning(CleanerOptions {
        interval_ms: 1_000,
        ..CleanerOptions::default()
    });
    let (mut client, _) = bench.client();
    bench.send(&client, 1, &Request::Create(container("/c")));
    bench.pass(1_500);
    bench.send(&client, 2, &create("/c/x", 0));
    bench.send(
        &client,
        3,
        &Request::Delete {
            path: "/c/x".into(),
            version: -1,
        },
    );
    bench.send(
        &client,
        4,
        &Request::Exists {
            path: "/c".into(),
            watch: true,
        },
    );
    assert_eq!(
        client.frames(),
        [ok(1), ok(2), ok(3), ok(4)],
        "an unused one stays"
    );
    bench.pass(1_500);
    assert_eq!(client.frames(), [event(EventType::NodeDeleted, "/c")]);
}

#[test]
fn s61_a_failed_multi_answers_with_success_in_its_header() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    let check = SubRequest::Check {
        path: Text::from("/none"),
        version: 0,
    };
    bench.send(&client, 1, &Request::Multi(vec![check]));
    assert_eq!(client.frames(), [ok(1)]);
}

#[test]
fn a_snapshot_that_is_due_is_asked_for_once() {
    let start = |due| Bench::start(Options::default(), due);
    assert!(!start(false).1);
    let (mut bench, asked) = start(true);
    assert!(asked);
    let taken = Event::SnapshotTaken { index: 1, bytes: 1 };
    bench.engine.handle(taken, 0, &mut Outputs::default());
    let (client, _) = bench.client();
    bench.send(&client, 1, &create("/a", 0));
    assert_eq!(bench.turn(), None);
}

#[test]
fn a_snapshot_takes_the_place_of_one_that_was_discarded() {
    let (mut bench, _) = Bench::start(Options::default(), true);
    let index = bench.shared.state.read().machine.applied().index;
    let mut tell = |event, snapshots| {
        bench.engine.handle(event, 0, &mut Outputs::default());
        bench.turn();
        assert_eq!(bench.snapshots, snapshots);
    };
    tell(Event::SnapshotTaken { index, bytes: 1 }, 1);
    // One that was offered in vain.
    tell(Event::SnapshotDiscarded { index: index + 1 }, 1);
    tell(Event::SnapshotDiscarded { index }, 2);
}

/// Creates a number of znodes, each with a snapshot written at once if one is asked for. Returns
/// how many were created before each snapshot.
fn writes_before_snapshots(bench: &mut Bench, writes: usize) -> Vec<usize> {
    let (mut client, _) = bench.client();
    let mut counts = Vec::new();
    let mut before = bench.snapshots;
    for number in 0..writes {
        bench.send(&client, 1, &create(&format!("/{number}"), 0));
        client.frames();
        if bench.snapshots > before {
            before = bench.snapshots;
            counts.push(number);
            let taken = Event::SnapshotTaken { index: 1, bytes: 1 };
            let now_ms = bench.now_ms;
            bench.engine.handle(taken, now_ms, &mut Outputs::default());
        }
    }
    counts
}

#[test]
fn snapshots_become_rarer_as_the_tree_grows() {
    let options = Options {
        snap_count: 20,
        ..Options::default()
    };
    let counts = writes_before_snapshots(&mut Bench::with(options), 1_000);
    let gaps: Vec<usize> = counts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] <= 20, "a small tree: {gaps:?}");
    // An entry with one command counts as two.
    let last = gaps[gaps.len() - 1];
    assert!(
        (100..400).contains(&last),
        "of hundreds of znodes: {gaps:?}"
    );
}

#[test]
fn a_server_that_has_nothing_to_do_takes_a_snapshot_early() {
    let options = || Options {
        snap_count: 1_000,
        ..Options::default()
    };
    let mut bench = Bench::with(options());
    assert!(writes_before_snapshots(&mut bench, 200).is_empty());
    bench.pass(2_900);
    assert_eq!(bench.snapshots, 0, "it may go on");
    bench.pass(200);
    assert_eq!(bench.snapshots, 1);
    let mut bench = Bench::with(options());
    assert!(writes_before_snapshots(&mut bench, 50).is_empty());
    bench.pass(10_000);
    assert_eq!(bench.snapshots, 0, "few writes are replayed soon enough");
}

#[test]
fn nothing_outlives_the_engine_and_its_connections() {
    let mut bench = Bench::new();
    let (client, _) = bench.client();
    bench.automatic = false;
    bench.send(&client, 1, &create("/a", 0));
    let shared = Arc::downgrade(&bench.shared);
    drop(client);
    drop(bench);
    assert_eq!(shared.strong_count(), 0);
}

/// A client, and a directory with more children than are listed at once.
fn with_directory(bench: &mut Bench, children: usize) -> Client {
    let (mut client, _) = bench.client();
    bench.send(&client, 1, &create("/dir", 0));
    for number in 0..children {
        bench.send(&client, 2, &create(&format!("/dir/{number}"), 0));
        client.frames();
    }
    client
}

fn list(path: &str, watch: bool) -> Request {
    Request::GetChildren {
        path: path.into(),
        watch,
        with_stat: false,
    }
}

#[test]
fn a_long_list_stops_its_client_but_nobody_else_and_shows_one_moment() {
    let mut bench = Bench::new();
    let mut client = with_directory(&mut bench, NODES_AT_ONCE + 1);
    let (mut other, _) = bench.client();
    bench.send(&client, 3, &list("/dir", true));
    assert!(!client.connection.wants_input(bench.now_ms));
    let mut large = client.connection.begin_large().unwrap();
    // It is under way; another client changes the directory, and more than once.
    bench.send(&other, 4, &create("/dir/late", 0));
    assert_eq!(other.frames(), [ok(4)]);
    while !client.connection.step_large(&mut large, 0) {}
    let output = client.output.get_mut();
    client.connection.take_output(output);
    let length = output.get_i32() as usize;
    let mut reader = Reader::new(output.split_to(length).freeze());
    assert_eq!(reader.int().unwrap(), 3);
    reader.long().unwrap();
    assert_eq!(reader.int().unwrap(), 0);
    let names = reader.vector(|r| r.required_text()).unwrap().unwrap();
    assert_eq!(
        names.len(),
        NODES_AT_ONCE + 1,
        "it shows the moment when it began"
    );
    // The watch was set at that moment too, so the change is told, behind the answer.
    assert_eq!(client.frames(), [Frame::Event(4, "/dir".into())]);
    assert!(client.connection.wants_input(bench.now_ms));
}

#[test]
fn a_long_list_behind_a_write_is_not_made_in_the_apply() {
    let mut bench = Bench::new();
    let mut client = with_directory(&mut bench, NODES_AT_ONCE + 1);
    bench.automatic = false;
    bench.send(&client, 3, &create("/b", 0));
    bench.send(&client, 4, &list("/dir", false));
    assert!(
        !client.connection.wants_input(bench.now_ms),
        "nothing may stand behind it"
    );
    bench.automatic = true;
    bench.persist();
    bench.turn();
    assert_eq!(client.connection.unanswered(), 1);
    assert_eq!(client.frames(), [ok(3), ok(4)]);
    assert!(client.connection.wants_input(bench.now_ms));
}

#[test]
fn lists_behind_a_write_are_few() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    bench.automatic = false;
    bench.send(&client, 1, &create("/a", 0));
    let mut sent = 0;
    while client.connection.wants_input(bench.now_ms) {
        sent += 1;
        bench.send(&client, 2, &list("/", false));
    }
    assert_eq!(sent, 8);
    bench.automatic = true;
    bench.persist();
    bench.turn();
    assert_eq!(client.frames().len(), 9);
    assert!(client.connection.wants_input(bench.now_ms));
}

#[test]
fn a_multi_read_that_names_much_often_is_refused_before_anything_is_copied() {
    let mut bench = Bench::new();
    let (mut client, _) = bench.client();
    bench.send(&client, 1, &create("/a", 0));
    let big = Request::SetData {
        path: "/a".into(),
        data: Some(vec![7; 1_000_000].into()),
        version: -1,
    };
    bench.send(&client, 2, &big);
    client.frames();
    let get = |times| {
        let operation = SubRequest::GetData { path: "/a".into() };
        Request::MultiRead(vec![operation; times])
    };
    bench.send(&client, 3, &get(3));
    // Room is asked for before it is needed.
    let bytes = client.connection.large().unwrap().bytes;
    assert!((3_000_000..3_001_000).contains(&bytes), "{bytes}");
    // What comes behind stays unread.
    bench.send(&client, 4, &get(40_000));
    assert_eq!(client.frames(), [ok(3)]);
    bench.send(&client, 4, &get(40_000));
    let bytes = client.connection.large().unwrap().bytes;
    assert_eq!(bytes, crate::machine::MULTI_READ_BYTES_MAX);
    assert_eq!(client.frames(), [failed(4, ErrorCode::BadArguments)]);
}

#[test]
fn watches_beyond_the_limit_are_refused_and_none_is_lost_in_silence() {
    let mut bench = Bench::with(Options {
        watches: WatchLimits {
            all: usize::MAX,
            per_connection: 1_000,
        },
        ..Options::default()
    });
    let (mut client, _) = bench.client();
    let watch = |path: String| Request::Exists {
        path: path.as_str().into(),
        watch: true,
    };
    let mut answers = Vec::new();
    for number in 0..9 {
        bench.send(&client, number, &watch(format!("/w{number}")));
        answers.append(&mut client.frames());
    }
    let set = failed(0, ErrorCode::NoNode);
    assert_eq!(answers[0], set);
    assert_eq!(answers[8], failed(8, ErrorCode::QuotaExceeded));
    // One that is set already needs no more room.
    bench.send(&client, 0, &watch("/w0".into()));
    assert_eq!(client.frames(), [failed(0, ErrorCode::NoNode)]);
    // A client that comes back cannot be told which watch it did not get: its connection ends.
    let paths = (0..9).map(|number| Text::from(format!("/v{number}")));
    let set = crate::wire::request::SetWatches {
        relative_zxid: Zxid(0),
        data: Vec::new(),
        exist: paths.collect(),
        child: Vec::new(),
        persistent: None,
    };
    bench.send(&client, -8, &Request::SetWatches(set));
    client.frames();
    assert!(client.closed);
}

#[test]
fn no_more_sessions_are_made_than_may_be() {
    let mut bench = Bench::with(Options {
        sessions_max: 1,
        ..Options::default()
    });
    let (_first, given) = bench.client();
    let client = bench.open();
    let request = |session| ConnectRequest {
        last_zxid_seen: Zxid(0),
        timeout_ms: 4_000,
        session,
        password: Bytes::copy_from_slice(&[9; 16]),
        read_only: None,
    };
    let mut frame = BytesMut::new();
    request(SessionId(0)).encode(&mut frame);
    assert_eq!(
        client.receive(&frame, 0),
        Err(Refused("maxSessions reached"))
    );
    // The old one goes on.
    let mut back = bench.handshake(given.session, &[9; 16], Zxid(0));
    assert_eq!(back.connect_response().unwrap().session, given.session);
}

//! Sessions that one server keeps to itself (§8.7).

use super::linearizable::{pipelined, receive};
use super::*;
use crate::machine::LOCAL_SESSIONS;

const EPHEMERAL: i32 = 1;

fn cluster(upgrades: bool) -> Cluster {
    let mut cluster = Cluster::tuned(3, |options| {
        options.local_sessions = true;
        options.local_session_upgrades = upgrades;
        options.auth = AuthOptions::default();
    });
    // They learn that all know the level that this needs.
    cluster.pass_linking(1_000);
    cluster
}

#[test]
fn while_a_member_may_not_know_of_local_sessions_there_are_none() {
    let mut cluster = Cluster::tuned(3, |options| options.local_sessions = true);
    assert!(cluster.shared(1).level() < LOCAL_SESSIONS);
    let follower = cluster.follower();
    let (mut client, given) = cluster.client(follower);
    let known = |cluster: &Cluster, server| {
        let state = cluster.shared(server).state.read();
        state.machine.session(given.session).is_some()
    };
    assert!(known(&cluster, 1) && known(&cluster, 2) && known(&cluster, 3));
    cluster.send(&client, 1, &create("/e", EPHEMERAL));
    assert_eq!(client.frames(), [ok(1)]);
}

/// Whoever asks elsewhere meanwhile sees nothing of what it did not get through.
#[test]
fn a_server_that_comes_back_after_its_clients_left_does_not_write_for_them() {
    for is_local in [true, false] {
        let mut cluster = cluster(false);
        if !is_local {
            cluster = Cluster::new(3);
        }
        let (leader, follower) = (cluster.leader(), cluster.follower());
        let (mut client, _) = cluster.client(follower);
        cluster.isolate(follower);
        cluster.send(&client, 1, &create("/late", 0));
        cluster.pass(11_000);
        let (mut other, _) = cluster.client(leader);
        client.frames();
        assert!(client.closed);
        cluster.send(&other, 1, &exists("/late"));
        cluster.cut.clear();
        cluster.pass(2_000);
        let (mut again, _) = cluster.client(follower);
        cluster.send(&again, 1, &create("/new", 0));
        assert_eq!(again.frames(), [ok(1)]);
        assert_eq!(other.frames(), [failed(1, ErrorCode::NoNode)]);
        assert!(!cluster.has(leader, "/late"), "local: {is_local}");
        cluster.agree();
    }
}

fn get(path: &str, watch: bool) -> Request {
    Request::GetData {
        path: path.into(),
        watch,
    }
}

fn set(path: &str) -> Request {
    Request::SetData {
        path: path.into(),
        data: None,
        version: -1,
    }
}

fn multi(creates: &[(&str, i32)]) -> Request {
    let operations = creates.iter().map(|(path, flags)| {
        let Request::Create(create) = create(path, *flags) else {
            unreachable!("it is one")
        };
        SubRequest::Create(create)
    });
    Request::Multi(operations.collect())
}

impl Cluster {
    fn last_index(&self, server: u64) -> u64 {
        let node = &self.nodes[server as usize - 1];
        node.engine.replica.last_index()
    }

    fn owner(&self, server: u64, path: &str) -> Option<i64> {
        let state = self.shared(server).state.read();
        state.machine.peek(path).map(|stat| stat.ephemeral_owner)
    }
}

#[test]
fn a_local_session_costs_no_entry_and_reads_and_writes_as_any_other() {
    let mut cluster = cluster(false);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let before = cluster.last_index(leader);
    let (mut client, given) = cluster.client(follower);
    assert_eq!((given.timeout_ms, given.read_only), (4_000, Some(false)));
    cluster.send(&client, 1, &exists("/a"));
    cluster.ping(&client);
    let ping = Frame::Reply { xid: -2, error: 0 };
    assert_eq!(client.frames(), [failed(1, ErrorCode::NoNode), ping]);
    assert_eq!(cluster.shared(follower).local_session_count(), 1);
    assert!(!cluster.knows(leader, given.session));

    let auth = Request::Auth {
        scheme: "digest".into(),
        auth: "a:b".into(),
    };
    cluster.send(&client, -4, &auth);
    assert_eq!(cluster.last_index(leader), before);
    let Request::Create(mut mine) = create("/mine", 0) else {
        unreachable!("it is one")
    };
    mine.acl = Some(vec![Acl {
        perms: perms::ALL,
        id: crate::wire::Id::new("auth", ""),
    }]);
    cluster.send(&client, 2, &Request::Create(mine));
    cluster.send(&client, 3, &set("/mine"));
    assert_eq!(client.frames(), [ok(-4), ok(2), ok(3)]);
    let (mut other, _) = cluster.client(leader);
    cluster.send(&other, 1, &set("/mine"));
    assert_eq!(other.frames(), [failed(1, ErrorCode::NoAuth)]);

    let before = cluster.last_index(leader);
    cluster.send(&client, 4, &Request::CloseSession);
    assert_eq!(client.frames(), [ok(4)]);
    assert!(client.closed);
    assert_eq!(cluster.last_index(leader), before);
    assert_eq!(cluster.shared(follower).local_session_count(), 0);
    cluster.agree();
}

#[test]
fn without_upgrades_a_local_session_makes_no_ephemerals() {
    let mut cluster = cluster(false);
    let follower = cluster.follower();
    let (mut client, given) = cluster.client(follower);
    let refused = ErrorCode::EphemeralOnLocalSession;
    cluster.send(&client, 1, &create("/e", EPHEMERAL));
    // What is wrong with the flags is said first, and what is wrong with the path later.
    cluster.send(&client, 2, &create("/e", 99));
    cluster.send(&client, 3, &create("e", EPHEMERAL));
    assert_eq!(
        client.frames(),
        [
            failed(1, refused),
            failed(2, ErrorCode::BadArguments),
            failed(3, refused)
        ]
    );
    cluster.send(
        &client,
        4,
        &multi(&[("/a", 0), ("/e", EPHEMERAL), ("/b", 0)]),
    );
    let reply = client.raw().expect("an answer");
    // As any multi that fails: its header has no error, the entry of what failed has one.
    let mut reader = Reader::new(reply);
    let header = (reader.int(), reader.long().map(|_| ()), reader.int());
    assert_eq!(header, (Ok(4), Ok(()), Ok(0)));
    let codes: Vec<i32> = (0..3)
        .map(|_| {
            let head = (reader.int().unwrap(), reader.boolean().unwrap());
            assert_eq!(head, (op::ERROR, false));
            assert!(reader.int().is_ok());
            reader.int().unwrap()
        })
        .collect();
    assert_eq!(codes, [0, refused.number(), -2]);
    assert!(!cluster.has(follower, "/a"));
    cluster.send(&client, 5, &multi(&[("/a", 0), ("/b", 0)]));
    assert_eq!(client.frames(), [ok(5)]);
    assert!(cluster.has(follower, "/b") && !cluster.knows(follower, given.session));
}

#[test]
fn the_first_ephemeral_makes_a_session_global_in_its_place() {
    let mut cluster = cluster(true);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let (mut client, given) = cluster.client(follower);
    let session = given.session;
    cluster.send(&client, 1, &create("/w", 0));
    assert_eq!(client.frames(), [ok(1)]);
    let mut input = pipelined(&[
        (2, get("/w", true)),
        (3, create("/p", 0)),
        (4, create("/e", EPHEMERAL)),
        (5, exists("/e")),
        (6, create("/f", EPHEMERAL)),
        (7, set("/p")),
    ]);
    assert_eq!(receive(&client, &mut input, cluster.now_ms), 6);
    cluster.settle();
    assert_eq!(client.frames(), [ok(2), ok(3), ok(4), ok(5), ok(6), ok(7)]);
    assert_eq!(cluster.shared(follower).local_session_count(), 0);
    for server in cluster.servers() {
        assert!(cluster.knows(server, session));
        assert_eq!(cluster.owner(server, "/e"), Some(session.0));
    }
    // Its watches are there.
    let (other, _) = cluster.client(leader);
    cluster.send(&other, 1, &set("/w"));
    assert_eq!(client.frames(), [event(EventType::NodeDataChanged, "/w")]);

    // It lives as long as it is heard here, and now it can go elsewhere.
    for _ in 0..5 {
        cluster.pass(2_000);
        cluster.ping(&client);
    }
    assert_eq!(client.frames().len(), 5);
    assert!(cluster.knows(leader, session));
    let mut moved = cluster.attach(leader, session, &given.password);
    assert_eq!(moved.connect_response().unwrap().session, session);
    assert!(client.frames().is_empty() && client.closed);
    cluster.send(&moved, 1, &set("/e"));
    assert_eq!(moved.frames(), [ok(1)]);
    moved.connection.lost();
    cluster.pass(8_000);
    assert!(!cluster.knows(leader, session) && !cluster.has(follower, "/e"));
    cluster.agree();
}

#[test]
fn a_multi_with_an_ephemeral_upgrades_too_and_so_does_one_that_fails() {
    let mut cluster = cluster(true);
    let follower = cluster.follower();
    let (mut client, given) = cluster.client(follower);
    cluster.send(&client, 1, &multi(&[("/a", 0), ("/b", 0)]));
    assert!(!cluster.knows(follower, given.session));
    cluster.send(&client, 2, &multi(&[("/c", 0), ("/e", EPHEMERAL)]));
    assert_eq!(client.frames(), [ok(1), ok(2)]);
    assert_eq!(cluster.owner(follower, "/e"), Some(given.session.0));
    cluster.send(&client, 3, &Request::CloseSession);
    assert_eq!(client.frames(), [ok(3)]);
    assert!(!cluster.has(follower, "/e"));

    let (mut client, given) = cluster.client(follower);
    cluster.send(&client, 1, &create("/none/e", EPHEMERAL));
    assert_eq!(client.frames(), [failed(1, ErrorCode::NoNode)]);
    assert!(cluster.knows(follower, given.session));
}

#[test]
fn an_upgrade_that_is_lost_is_made_again() {
    let mut cluster = cluster(true);
    let follower = cluster.follower();
    let (mut client, given) = cluster.client(follower);
    cluster.lost_forwards = 1;
    cluster.send(&client, 1, &create("/e", EPHEMERAL));
    assert_eq!(client.frames(), []);
    // Its client has lost patience, and comes back on another connection.
    let mut second = cluster.attach(follower, given.session, &given.password);
    cluster.pass(3_000);
    assert_eq!(second.connect_response().unwrap().session, given.session);
    assert!(client.frames().is_empty() || client.closed);
    cluster.send(&second, 1, &set("/e"));
    assert_eq!(second.frames(), [ok(1)]);
    assert_eq!(cluster.owner(follower, "/e"), Some(given.session.0));
}

#[test]
fn a_local_session_is_known_where_it_was_made_and_ends_with_its_silence() {
    let mut cluster = cluster(true);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let (mut client, given) = cluster.client(follower);
    let refused = Some(ConnectResponse::refused(Some(false)));
    let mut elsewhere = cluster.attach(leader, given.session, &given.password);
    assert_eq!(elsewhere.connect_response(), refused);
    let mut guessed = cluster.attach(follower, given.session, &[1; 16]);
    assert_eq!(guessed.connect_response(), refused);
    cluster.ping(&client);
    assert_eq!(client.frames().len(), 1);
    let mut second = cluster.attach(follower, given.session, &given.password);
    assert_eq!(second.connect_response(), Some(given.clone()));
    assert!(client.frames().is_empty() && client.closed);
    // The connection that it had does not end it.
    client.connection.lost();
    for _ in 0..5 {
        cluster.pass(2_000);
        cluster.ping(&second);
    }
    assert_eq!(second.frames().len(), 5);
    cluster.pass(8_000);
    assert!(second.frames().is_empty() && second.closed);
    assert_eq!(cluster.shared(follower).local_session_count(), 0);
    let mut late = cluster.attach(follower, given.session, &given.password);
    assert_eq!(late.connect_response(), refused);
}

#[test]
fn a_client_that_is_ahead_waits_for_its_local_session() {
    let mut cluster = cluster(true);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let (mut writer, _) = cluster.client(leader);
    cluster.lost_appends = Some(follower);
    cluster.send(&writer, 1, &create("/a", 0));
    assert_eq!(writer.frames(), [ok(1)]);
    let seen = cluster.shared(leader).state.read().machine.zxid();
    let mut ahead = Client {
        connection: connect(cluster.shared(follower)),
        output: RefCell::default(),
        closed: false,
    };
    let frame = hello(SessionId(0), &[0; 16], seen);
    ahead.receive(&frame, cluster.now_ms).unwrap();
    cluster.pass(100);
    assert_eq!(ahead.connect_response(), None);
    cluster.lost_appends = None;
    cluster.pass(400);
    assert!(ahead.connect_response().is_some());
    cluster.send(&ahead, 1, &exists("/a"));
    assert_eq!(ahead.frames(), [ok(1)]);
}

#[test]
fn a_server_without_a_majority_answers_its_own_sessions_for_the_sync_limit() {
    let mut cluster = cluster(true);
    let follower = cluster.follower();
    let (mut client, given) = cluster.client(follower);
    cluster.isolate(follower);
    for _ in 0..4 {
        cluster.pass(2_000);
        cluster.send(&client, 1, &exists("/a"));
    }
    assert_eq!(client.frames().len(), 4);
    cluster.pass(2_500);
    assert_eq!(cluster.send(&client, 1, &exists("/a")), 0);
    assert!(client.frames().is_empty() && client.closed);
    cluster.cut.clear();
    cluster.pass(2_000);
    let mut again = cluster.attach(follower, given.session, &given.password);
    assert_eq!(again.connect_response(), Some(given), "it lives on");
}

#[test]
fn a_local_session_reads_on_while_its_server_is_read_only() {
    let mut cluster = Cluster::tuned(3, |options| {
        options.local_sessions = true;
        options.read_only_after_ms = Some(2_000);
        options.max_session_timeout_ms = 40_000;
    });
    cluster.pass_linking(1_000);
    let follower = cluster.follower();
    let session = |cluster: &mut Cluster, given: Option<&ConnectResponse>| {
        let request = ConnectRequest {
            last_zxid_seen: Zxid(0),
            timeout_ms: 40_000,
            session: given.map_or(SessionId(0), |given| given.session),
            password: given.map_or(Bytes::new(), |given| given.password.to_vec().into()),
            read_only: Some(true),
        };
        let mut frame = BytesMut::new();
        request.encode(&mut frame);
        let mut client = Client {
            connection: connect(cluster.shared(follower)),
            output: RefCell::default(),
            closed: false,
        };
        client.receive(&frame, cluster.now_ms).unwrap();
        let response = client.connect_response().expect("it is answered at once");
        (client, response)
    };
    let (mut first, given) = session(&mut cluster, None);
    assert_eq!(given.read_only, Some(false));
    cluster.isolate(follower);
    cluster.pass(13_000);
    assert!(first.frames().is_empty() && first.closed);
    let (mut second, again) = session(&mut cluster, Some(&given));
    assert_eq!(
        (again.session, again.read_only),
        (given.session, Some(true))
    );
    cluster.send(&second, 1, &create("/a", 0));
    assert_eq!(second.frames(), [failed(1, ErrorCode::NotReadOnly)]);
    cluster.cut.clear();
    cluster.pass(2_000);
    assert!(second.frames().is_empty() && second.closed);
    let (mut third, again) = session(&mut cluster, Some(&given));
    assert_eq!(
        (again.session, again.read_only),
        (given.session, Some(false))
    );
    cluster.send(&third, 1, &create("/a", 0));
    assert_eq!(third.frames(), [ok(1)]);
}

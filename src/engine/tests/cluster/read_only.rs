//! A server without a majority, and clients that only want to read.

use super::*;

/// How long no leader is heard of before a server serves them.
const AFTER_MS: u64 = 2_000;
/// More than the time until it does, once it is cut off.
const DESERTED_MS: u64 = 10_000 + AFTER_MS + 1_000;

fn cluster() -> Cluster {
    Cluster::tuned(3, |options| options.read_only_after_ms = Some(AFTER_MS))
}

fn read_only_hello(session: SessionId, password: &[u8], last_zxid_seen: Zxid) -> BytesMut {
    let request = ConnectRequest {
        last_zxid_seen,
        timeout_ms: 4_000,
        session,
        password: Bytes::copy_from_slice(password),
        read_only: Some(true),
    };
    let mut frame = BytesMut::new();
    request.encode(&mut frame);
    frame
}

impl Cluster {
    /// Asks this server for a session, as one that only wants to read.
    fn asks(
        &mut self,
        server: u64,
        session: SessionId,
        password: &[u8],
        seen: Zxid,
    ) -> Result<(Client, ConnectResponse), Refused> {
        let mut client = self.fresh(server);
        client.receive(&read_only_hello(session, password, seen), self.now_ms)?;
        self.settle();
        let response = client.connect_response().expect("it is answered");
        Ok((client, response))
    }

    fn reader(&mut self, server: u64) -> (Client, ConnectResponse) {
        self.asks(server, SessionId(0), &[0; 16], Zxid(0))
            .expect("it is served")
    }
}

fn get(path: &str, watch: bool) -> Request {
    Request::GetData {
        path: path.into(),
        watch,
    }
}

#[test]
fn without_a_majority_read_only_clients_are_served_after_a_while() {
    let mut cluster = cluster();
    let follower = cluster.follower();
    let (mut writer, global) = cluster.client(follower);
    cluster.send(&writer, 1, &create("/a", 0));
    assert_eq!(writer.frames(), [ok(1)]);
    let hello = read_only_hello(SessionId(0), &[0; 16], Zxid(0));
    let (mut early, response) = cluster.reader(follower);
    assert_eq!(response.read_only, Some(false), "it serves everyone");
    cluster.isolate(follower);
    cluster.pass(10_100);
    assert!(!cluster.shared(follower).is_read_only());
    let now_ms = cluster.now_ms;
    assert!(cluster.fresh(follower).receive(&hello, now_ms).is_err());
    cluster.pass(AFTER_MS + 1_000);
    assert!(cluster.shared(follower).is_read_only());
    assert_eq!(early.frames(), []);
    assert!(early.closed, "it was served with a majority behind it");

    let (mut reader, response) = cluster.reader(follower);
    assert_eq!(response.read_only, Some(true));
    assert_eq!(response.timeout_ms, 4_000);
    let now_ms = cluster.now_ms;
    let plain = super::super::hello(SessionId(0), &[0; 16], Zxid(0));
    let refused = cluster.fresh(follower).receive(&plain, now_ms);
    assert_eq!(refused, Err(Refused("not serving")));
    let returning = cluster.asks(follower, global.session, &global.password, Zxid(0));
    assert!(returning.is_err(), "its session is that of the ensemble");
    let ahead = Zxid(i64::MAX);
    assert!(
        cluster
            .asks(follower, SessionId(0), &[0; 16], ahead)
            .is_err()
    );

    let refused = ErrorCode::NotReadOnly;
    cluster.send(&reader, 1, &get("/a", true));
    cluster.send(&reader, 2, &create("/b", 0));
    cluster.send(&reader, 3, &Request::Sync { path: None });
    cluster.send(&reader, 4, &Request::Multi(Vec::new()));
    cluster.send(&reader, 5, &Request::Unknown(op::CHECK));
    cluster.send(&reader, 6, &Request::MultiRead(Vec::new()));
    cluster.ping(&reader);
    let auth = Request::Auth {
        scheme: "digest".into(),
        auth: "a:b".into(),
    };
    cluster.send(&reader, -4, &auth);
    cluster.send(&reader, 7, &Request::WhoAmI);
    let ping = Frame::Reply { xid: -2, error: 0 };
    let refusals = [2, 3, 4, 5].map(|xid| failed(xid, refused));
    let mut expected = vec![ok(1)];
    expected.extend(refusals);
    expected.extend([ok(6), ping, ok(-4), ok(7)]);
    assert_eq!(reader.frames(), expected);
    assert_eq!(
        cluster.shared(follower).outstanding(),
        0,
        "nothing for the log"
    );

    // It goes on as long as it is heard, and no longer.
    let (mut silent, _) = cluster.reader(follower);
    for _ in 0..5 {
        cluster.pass(2_000);
        cluster.ping(&reader);
    }
    assert!(silent.frames().is_empty() && silent.closed);
    assert_eq!(reader.frames().len(), 5);
    assert_eq!(cluster.shared(follower).local_session_count(), 1);

    cluster.cut.clear();
    cluster.pass(2_000);
    assert!(cluster.shared(follower).is_serving());
    assert!(reader.frames().is_empty() && reader.closed);
    assert_eq!(cluster.shared(follower).local_session_count(), 0);
    let (_, response) = cluster.reader(follower);
    assert_eq!(response.read_only, Some(false));
}

#[test]
fn a_read_only_session_lives_on_this_server_while_that_is_read_only() {
    let mut cluster = cluster();
    let follower = cluster.follower();
    cluster.isolate(follower);
    cluster.pass(DESERTED_MS);
    let (mut first, given) = cluster.reader(follower);
    let none = Zxid(0);
    let (_, wrong) = cluster
        .asks(follower, given.session, &[1; 16], none)
        .unwrap();
    assert_eq!(wrong, ConnectResponse::refused(Some(true)));
    assert!(first.frames().is_empty() && !first.closed);
    let (mut second, again) = cluster
        .asks(follower, given.session, &given.password, none)
        .unwrap();
    assert_eq!(again, given);
    assert!(first.frames().is_empty() && first.closed);
    cluster.send(&second, 1, &get("/", false));
    cluster.send(&second, 2, &Request::CloseSession);
    assert_eq!(second.frames(), [ok(1), ok(2)]);
    assert!(second.closed);
    assert_eq!(cluster.shared(follower).local_session_count(), 0);

    // Who was silent for too long is told, and nothing else.
    let (silent, given) = cluster.reader(follower);
    silent.connection.lost();
    cluster.pass(8_000);
    let (_, over) = cluster
        .asks(follower, given.session, &given.password, none)
        .unwrap();
    assert_eq!(over, ConnectResponse::refused(Some(true)));

    // A server that serves everyone does not know it.
    let (_kept, given) = cluster.reader(follower);
    cluster.cut.clear();
    cluster.pass(2_000);
    let mut back = cluster.attach(follower, given.session, &given.password);
    assert_eq!(
        back.connect_response(),
        Some(ConnectResponse::refused(Some(false)))
    );
}

#[test]
fn a_server_that_hears_a_leader_or_knows_nothing_is_not_read_only() {
    // It catches up, and then serves everyone.
    let mut cluster = cluster();
    let follower = cluster.follower();
    cluster.lost_appends = Some(follower);
    let (writer, _) = cluster.client(cluster.leader());
    cluster.send(&writer, 1, &create("/a", 0));
    cluster.pass(2 * DESERTED_MS);
    assert!(!cluster.shared(follower).is_read_only());

    let builds = [Build::of(FEATURE_LEVEL); 3];
    let mut alone = Cluster::built(&[1, 2, 3], &builds, 0, false, &|options| {
        options.read_only_after_ms = Some(AFTER_MS);
    });
    alone.pass(2 * DESERTED_MS);
    assert!(!alone.shared(1).is_read_only(), "it has nothing to show");
}

#[test]
fn a_server_that_was_told_of_its_removal_is_not_read_only_any_more() {
    let builds = [Build::of(FEATURE_LEVEL); 3];
    let mut cluster = Cluster::built(&[1, 2, 3], &builds, 100, true, &|options| {
        options.read_only_after_ms = Some(AFTER_MS);
    });
    cluster.pass_linking(3_000);
    let leader = cluster.leader();
    let removed = cluster.follower();
    cluster.isolate(removed);
    let (client, _) = cluster.client(leader);
    cluster.send(&client, 1, &reconfig("", &removed.to_string()));
    cluster.pass(DESERTED_MS + 1_000);
    assert!(!cluster.members().0.contains(&removed));
    let shared = cluster.shared(removed).clone();
    assert!(shared.is_read_only());
    // As those do who refuse it.
    let told = cluster.shared(leader).tell();
    let of_same = Introduction {
        cluster: shared.cluster(),
        ..Introduction::default()
    };
    shared.learn(&of_same, &told);
    cluster.pass(100);
    assert!(!shared.is_read_only());
}

/// Whoever is elected may serve before the next tick.
#[test]
fn who_serves_again_is_not_read_only_again_as_soon_as_it_does_not() {
    let mut cluster = cluster();
    let leader = cluster.leader();
    let shared = cluster.shared(leader).clone();
    assert!(shared.is_serving());
    shared.set_read_only(true);
    cluster.pass(200);
    cluster.isolate(leader);
    while shared.is_serving() {
        cluster.pass_finely(1);
    }
    assert!(!shared.is_read_only());
}

#[test]
fn who_serves_between_two_ticks_is_not_deserted_since_before() {
    let mut cluster = cluster();
    let follower = cluster.follower();
    let shared = cluster.shared(follower).clone();
    let engine = &mut cluster.node(follower).engine;
    engine.deserted_ms = Some(0);
    shared.set_serving(false);
    shared.set_read_only(true);
    cluster.settle();
    assert!(shared.is_serving() && !shared.is_read_only());
    assert_eq!(cluster.node(follower).engine.deserted_ms, None);
}

#[test]
fn a_leader_without_followers_becomes_read_only_too() {
    let mut cluster = cluster();
    let leader = cluster.leader();
    for other in cluster.servers() {
        if other != leader {
            cluster.kill(other);
        }
    }
    cluster.pass(DESERTED_MS + 1_000);
    assert!(cluster.shared(leader).is_read_only());
    let (mut reader, _) = cluster.reader(leader);
    cluster.send(&reader, 1, &exists("/a"));
    assert_eq!(reader.frames(), [failed(1, ErrorCode::NoNode)]);
}

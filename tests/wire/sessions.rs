//! How sessions live, end and take their ephemerals along (spec §2.6, §8).

use std::time::{Duration, Instant};

use crate::client::{Body, Client, Hello, Welcome, code, event, mode, op, record};
use crate::eventually;
use crate::server::Server;

/// A hello that asks for this timeout.
fn hello(timeout_ms: i32) -> Hello {
    Hello {
        timeout_ms,
        ..Hello::default()
    }
}

#[test]
fn s82_a_silent_session_expires_between_its_timeout_and_one_tick_later() {
    let server = Server::plain();
    let mut observer = server.client();
    let mut silent = server.client_with(&hello(4000));
    let path = silent.create("/s82", mode::EPHEMERAL).unwrap();
    observer.exists_watch(&path).unwrap();
    let touched = Instant::now();
    let again = silent.hello_again();

    silent.into_connection().closes();
    let silence = touched.elapsed();
    // The end of the window has slack for a busy machine, its start has none.
    assert!(
        silence >= Duration::from_millis(3950),
        "closed after {silence:?}"
    );
    assert!(
        silence < Duration::from_millis(7500),
        "closed after {silence:?}"
    );
    observer.events(&[(event::DELETED, &path)]);

    let mut late = server.connect();
    late.send(&again.frame());
    assert_eq!(late.welcome(), Welcome::refused());
    late.closes();
}

#[test]
fn s83_the_ephemerals_of_a_session_go_with_one_zxid() {
    let server = Server::plain();
    let mut observer = server.client();
    observer.make("/s83");
    let mut session = server.client();
    for name in ["a", "b", "c"] {
        session
            .create(&format!("/s83/{name}"), mode::EPHEMERAL)
            .unwrap();
    }
    let before = observer.exists("/s83").unwrap();
    observer.children_watch("/s83").unwrap();
    let closed = session.close().zxid;

    observer.events(&[(event::CHILDREN, "/s83")]);
    observer.no_event();
    let after = observer.exists("/s83").unwrap();
    assert_eq!((after.pzxid, after.num_children), (closed, 0));
    assert_eq!(after.cversion, before.cversion + 3);
}

#[test]
fn s83_every_ephemeral_is_told_about() {
    let server = Server::plain();
    let mut observer = server.client();
    observer.make("/s83-each");
    let mut session = server.client();
    let paths: Vec<String> = (0..5).map(|index| format!("/s83-each/{index}")).collect();
    for path in &paths {
        session.create(path, mode::EPHEMERAL).unwrap();
        observer.exists_watch(path).unwrap();
    }
    session.close();
    // Their order means nothing (spec §3.5).
    let mut told: Vec<String> = paths
        .iter()
        .map(|_| observer.event())
        .inspect(|told| assert_eq!(told.kind, event::DELETED))
        .map(|told| told.path)
        .collect();
    told.sort();
    assert_eq!(told, paths);
    observer.no_event();
}

#[test]
fn s84_a_lost_connection_does_not_end_the_session_before_its_time() {
    let server = Server::plain();
    let mut observer = server.client();
    let mut session = server.client_with(&hello(4000));
    let path = session.create("/s84", mode::EPHEMERAL).unwrap();
    let touched = Instant::now();
    session.vanish();

    while touched.elapsed() < Duration::from_millis(3900) {
        let seen = observer.exists(&path);
        // The clock is read after the answer: a slow answer must not be held against the server.
        if touched.elapsed() < Duration::from_millis(3900) {
            assert!(seen.is_ok(), "gone after {:?}", touched.elapsed());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    eventually("the ephemeral goes", || {
        observer.exists(&path) == Err(code::NO_NODE)
    });
    assert!(
        touched.elapsed() < Duration::from_millis(7500),
        "gone after {:?}",
        touched.elapsed()
    );
}

#[test]
fn s85_get_ephemerals_takes_a_string_prefix() {
    let server = Server::plain();
    let mut other = server.client();
    other.make("/s85");
    other.create("/s85/e-of-another", mode::EPHEMERAL).unwrap();
    let mut client = server.client();
    client.make("/s85/persistent");
    let mine = ["/s85/e1", "/s85/e10", "/s85/e2"];
    for path in mine {
        client.create(path, mode::EPHEMERAL).unwrap();
    }
    for all in [
        None,
        Some(""),
        Some("  "),
        Some("/"),
        Some("/s85"),
        Some("/s85/"),
        Some("/s85/e"),
    ] {
        assert_eq!(client.ephemerals(all), mine, "{all:?}");
    }
    assert_eq!(client.ephemerals(Some("/s85/e1")), ["/s85/e1", "/s85/e10"]);
    assert_eq!(client.ephemerals(Some("/s85/e1/")), [""; 0]);
    assert_eq!(client.ephemerals(Some("s85")), [""; 0]);
    client.delete("/s85/e1", -1).unwrap();
    assert_eq!(client.ephemerals(Some("/s85/e1")), ["/s85/e10"]);
}

#[test]
fn s87_an_ephemeral_keeps_its_czxid_and_owner_through_renewals() {
    let server = Server::plain();
    let mut client = server.client();
    let path = client.create("/s87", mode::EPHEMERAL).unwrap();
    let stat = client.exists(&path).unwrap();
    assert_eq!(stat.ephemeral_owner, client.welcome.session);
    for _ in 0..3 {
        let again = client.hello_again();
        client.vanish();
        client = server.client_with(&again);
        assert_eq!(client.exists(&path).unwrap(), stat);
        assert_eq!(client.ephemerals(Some(&path)), [&*path]);
    }
}

#[test]
fn a_renewal_takes_no_zxid() {
    let (server, _turn) = Server::alone();
    let mut client = server.client();
    client.make("/renewal");
    let zxid = client.zxid;
    let again = client.hello_again();
    client.vanish();
    let mut client = server.client_with(&again);
    client.exists("/renewal").unwrap();
    assert_eq!(client.zxid, zxid);
}

#[test]
fn the_timeout_of_the_latest_connection_counts() {
    let server = Server::brisk();
    let mut observer = server.client();
    let mut session = server.client_with(&hello(60_000));
    let path = session.create("/shorter", mode::EPHEMERAL).unwrap();
    let renewed = server.client_with(&Hello {
        timeout_ms: 500,
        ..session.hello_again()
    });
    assert_eq!(renewed.welcome.timeout_ms, 500);
    session.into_connection().closes();
    renewed.vanish();
    eventually("the shorter timeout passes", || {
        observer.exists(&path).is_err()
    });
}

#[test]
fn pings_and_requests_keep_a_session_alive_and_silence_ends_it() {
    let server = Server::brisk();
    let mut client = server.client_with(&hello(3000));
    let path = client.create("/kept", mode::EPHEMERAL).unwrap();
    for request in [|client: &mut Client| drop(client.ping()), Client::no_event] {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(3500) {
            request(&mut client);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    assert!(client.exists(&path).is_ok());
    client.into_connection().closes();
    assert_eq!(server.client().exists(&path), Err(code::NO_NODE));
}

#[test]
fn what_is_created_in_front_of_the_close_goes_too() {
    let server = Server::plain();
    let mut observer = server.client();
    observer.make("/in-flight");
    let mut client = server.client();
    let acl = crate::client::open_acl();
    let mut frames = Vec::new();
    for xid in 1..=50 {
        let path = format!("/in-flight/{xid}");
        let body = record::create(&path, None, &acl, mode::EPHEMERAL).into_bytes();
        frames.extend(Body::new().int(xid).int(op::CREATE).raw(&body).into_frame());
    }
    frames.extend(Body::new().int(51).int(op::CLOSE_SESSION).into_frame());
    client.connection().send(&frames);
    for xid in 1..=51 {
        assert_eq!(client.reply(xid).err, 0);
    }
    client.into_connection().closes();
    assert_eq!(observer.children("/in-flight").unwrap(), [""; 0]);
}

#[test]
fn a_deleted_ephemeral_can_be_taken_by_another_session() {
    let server = Server::plain();
    let (mut one, mut two): (Client, Client) = (server.client(), server.client());
    one.create("/taken", mode::EPHEMERAL).unwrap();
    assert_eq!(
        two.create("/taken", mode::EPHEMERAL),
        Err(code::NODE_EXISTS)
    );
    // Whoever may, deletes it; it needs not be its session.
    two.delete("/taken", -1).unwrap();
    two.create("/taken", mode::EPHEMERAL).unwrap();
    let session = two.welcome.session;
    one.close();
    assert_eq!(two.exists("/taken").unwrap().ephemeral_owner, session);
}

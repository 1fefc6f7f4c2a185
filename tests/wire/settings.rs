//! Settings of zoo.cfg that change what a client sees (spec §1.3, §2.2, §2.7, §7.3, §11.1, §12.2).

use crate::client::{Body, Hello, acl, code, mode, op, open_acl, perm, record};
use crate::server::Server;

#[test]
fn the_bounds_of_the_session_timeout() {
    let server = Server::tuned();
    for (timeout_ms, expected) in [(1, 1000), (1500, 1500), (60_000, 60_000), (100_000, 90_000)] {
        let hello = Hello {
            timeout_ms,
            ..Hello::default()
        };
        assert_eq!(server.client_with(&hello).welcome.timeout_ms, expected);
    }
}

#[test]
fn a_connection_that_never_says_hello_is_dropped() {
    // nio.sessionlessCnxnTimeout; its default is 10 s.
    Server::tuned().connect().closes();
}

#[test]
fn a_connection_with_a_session_may_be_silent_for_longer() {
    let mut client = Server::tuned().client();
    std::thread::sleep(std::time::Duration::from_millis(4500));
    client.ping();
}

#[test]
fn skip_acl_opens_every_znode_and_still_wants_valid_acls() {
    let mut client = Server::tuned().client();
    client
        .create_with("/skip", Some(b"x"), &[acl(0, "world", "anyone")], 0)
        .unwrap();
    assert!(client.get("/skip").is_ok());
    assert!(client.exists("/skip").is_ok());
    assert!(client.set("/skip", b"y", -1).is_ok());
    client.make("/skip/child");
    client.delete("/skip/child", -1).unwrap();
    assert!(
        client
            .set_acl("/skip", &[acl(perm::READ, "ip", "10.0.0.1")], 0)
            .is_ok()
    );
    assert!(client.set("/zookeeper/config", b"", -1).is_ok());
    assert_eq!(client.set_acl("/skip", &[], -1), Err(code::INVALID_ACL));
    assert_eq!(client.delete("/zookeeper", -1), Err(code::BAD_ARGUMENTS));
}

#[test]
fn without_digests_there_is_no_scheme_digest() {
    let server = Server::tuned();
    let mut client = server.client();
    client.make("/digestless");
    let list = [acl(perm::ALL, "digest", "a:b")];
    assert_eq!(
        client.set_acl("/digestless", &list, -1),
        Err(code::INVALID_ACL)
    );
    assert_eq!(client.auth("digest", b"u:p"), code::AUTH_FAILED);
    client.into_connection().closes();
}

#[test]
fn a_single_server_cannot_be_reconfigured() {
    let mut client = Server::tuned().client();
    let body = Body::new()
        .null()
        .null()
        .string("server.1=localhost:1:2;3")
        .long(-1);
    assert_eq!(
        client.call(op::RECONFIG, body).done(),
        Err(code::UNIMPLEMENTED)
    );
    client.ping();
}

#[test]
fn frames_may_be_as_long_as_jute_maxbuffer() {
    let server = Server::tuned();
    let mut client = server.client();
    let data = vec![b'm'; 5_000_000];
    client
        .create_with("/megabytes", Some(&data), &open_acl(), mode::EPHEMERAL)
        .unwrap();
    assert_eq!(
        client.get("/megabytes").unwrap().0.unwrap().len(),
        data.len()
    );

    let envelope = record::create("/full", Some(b""), &open_acl(), 1)
        .into_bytes()
        .len();
    let data = vec![b'm'; 10_485_760 - 8 - envelope];
    client
        .create_with("/full", Some(&data), &open_acl(), mode::EPHEMERAL)
        .unwrap();
    let mut connection = server.client().into_connection();
    connection.send(&10_485_761_i32.to_be_bytes());
    connection.closes();
}

#[test]
fn the_whitelist_is_a_list_with_or_without_blanks() {
    let server = Server::tuned();
    assert_eq!(server.word("ruok"), "imok");
    for word in ["mntr", "srvr"] {
        assert!(!server.word(word).contains("whitelist"), "{word}");
    }
    for word in ["stat", "isro", "conf"] {
        let expected = format!("{word} is not executed because it is not in the whitelist.\n");
        assert_eq!(server.word(word), expected);
    }
}

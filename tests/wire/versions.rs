//! Version checks, deletion, and which error comes first (spec §3.3).

use crate::client::{Body, Client, code, mode, op, record};
use crate::server::Server;

fn client_at(path: &str) -> Client {
    let mut client = Server::plain().client();
    client.make(path);
    client
}

#[test]
fn s41_only_minus_one_matches_every_version() {
    let mut client = client_at("/s41");
    assert_eq!(client.set("/s41", b"a", -2), Err(code::BAD_VERSION));
    assert_eq!(client.set("/s41", b"a", 1), Err(code::BAD_VERSION));
    assert_eq!(client.set("/s41", b"a", -1).unwrap().version, 1);
    assert_eq!(client.set("/s41", b"a", 0), Err(code::BAD_VERSION));
    assert_eq!(client.set("/s41", b"a", 1).unwrap().version, 2);
    assert_eq!(client.delete("/s41", -2), Err(code::BAD_VERSION));
    assert_eq!(client.delete("/s41", 1), Err(code::BAD_VERSION));
    assert_eq!(client.delete("/s41", 2), Ok(()));
}

#[test]
fn s42_the_version_is_checked_before_the_children() {
    let mut client = client_at("/s42");
    client.make("/s42/child");
    assert_eq!(client.delete("/s42", 9), Err(code::BAD_VERSION));
    assert_eq!(client.delete("/s42", 0), Err(code::NOT_EMPTY));
    assert_eq!(client.delete("/s42", -1), Err(code::NOT_EMPTY));
    // The version of the data, not that of the children.
    client.delete("/s42/child", -1).unwrap();
    assert_eq!(client.delete("/s42", 0), Ok(()));
}

#[test]
fn s43_system_znodes_stay() {
    let server = Server::plain();
    for mut client in [server.client(), server.super_client()] {
        for path in ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"] {
            for version in [-1, 0, 5] {
                assert_eq!(
                    client.delete(path, version),
                    Err(code::BAD_ARGUMENTS),
                    "{path}"
                );
            }
            assert!(client.exists(path).is_ok());
        }
    }
}

#[test]
fn anyone_may_create_below_the_system_znodes() {
    let mut client = Server::plain().client();
    for path in ["/zookeeper/mine", "/zookeeper/quota/mine"] {
        client.make(path);
        assert_eq!(client.delete(path, 0), Ok(()));
    }
    assert_eq!(
        client.create("/zookeeper/config/mine", 0),
        Err(code::NO_AUTH)
    );
}

#[test]
fn s44_deleting_below_nothing() {
    let mut client = client_at("/s44");
    assert_eq!(client.delete("/s44-missing/x", -1), Err(code::NO_NODE));
    assert_eq!(client.delete("/s44/x", -1), Err(code::NO_NODE));
    assert_eq!(client.delete("no-slash", -1), Err(code::BAD_ARGUMENTS));
    assert_eq!(client.delete("", -1), Err(code::BAD_ARGUMENTS));
    assert_eq!(client.delete("/s44/\0", -1), Err(code::BAD_ARGUMENTS));
}

#[test]
fn s45_set_data_validates_the_path() {
    let mut client = client_at("/s45");
    for path in [
        "",
        "/s45/",
        "s45",
        "//",
        "/s45//x",
        "/s45/../s45",
        "/s45/\u{1}",
    ] {
        assert_eq!(
            client.set(path, b"", -1),
            Err(code::BAD_ARGUMENTS),
            "{path:?}"
        );
        let acl = crate::client::open_acl();
        assert_eq!(
            client.set_acl(path, &acl, -1),
            Err(code::BAD_ARGUMENTS),
            "{path:?}"
        );
    }
    assert_eq!(client.set("/s45/x", b"", -1), Err(code::NO_NODE));
}

#[test]
fn s45_the_root_has_data_like_any_znode() {
    let (server, _turn) = Server::alone();
    let mut client = server.client();
    let before = client.exists("/").unwrap().version;
    assert_eq!(
        client.set("/", b"root", before).unwrap().version,
        before + 1
    );
    assert_eq!(client.get("/").unwrap().0.as_deref(), Some(&b"root"[..]));
}

#[test]
fn s46_reads_do_not_validate_the_path() {
    let mut client = client_at("/s46");
    for path in [
        "/s46/",
        "s46",
        "//s46",
        "/s46/.",
        "/./s46",
        "/s46/\u{1}",
        "/s46//",
    ] {
        for operation in [
            op::EXISTS,
            op::GET_DATA,
            op::GET_CHILDREN,
            op::GET_CHILDREN2,
        ] {
            let reply = client.call(operation, record::path_and_watch(path, false));
            assert_eq!(
                reply.done(),
                Err(code::NO_NODE),
                "operation {operation} of {path:?}"
            );
        }
        for operation in [op::GET_ACL, op::GET_ALL_CHILDREN_NUMBER] {
            let reply = client.call(operation, Body::new().string(path));
            assert_eq!(
                reply.done(),
                Err(code::NO_NODE),
                "operation {operation} of {path:?}"
            );
        }
    }
    let exists = client.call(op::EXISTS, record::path_and_watch("/s46/\0", false));
    assert_eq!(exists.done(), Err(code::BAD_ARGUMENTS));
}

#[test]
fn s46_the_empty_path_reads_the_root() {
    let mut client = Server::pristine().client();
    assert_eq!(client.exists("").unwrap(), client.exists("/").unwrap());
    assert_eq!(client.get("").unwrap(), client.get("/").unwrap());
    assert_eq!(client.children("").unwrap(), ["zookeeper"]);
    assert_eq!(client.get_acl("").unwrap(), client.get_acl("/").unwrap());
}

#[test]
fn create_finds_a_missing_parent_before_a_bad_name() {
    let mut client = client_at("/order");
    assert_eq!(client.create("/order/missing/.", 0), Err(code::NO_NODE));
    assert_eq!(client.create("/order/./x", 0), Err(code::NO_NODE));
    assert_eq!(client.create("/order/.", 0), Err(code::BAD_ARGUMENTS));
    client.create("/order/e", mode::EPHEMERAL).unwrap();
    assert_eq!(client.create("/order/e", 0), Err(code::NODE_EXISTS));
}

#[test]
fn one_of_many_writers_wins_each_version() {
    const WRITERS: usize = 8;
    const ROUNDS: i32 = 15;
    let server = Server::plain();
    let mut client = client_at("/race");
    let wins: Vec<i32> = std::thread::scope(|scope| {
        let writer = || {
            let mut client = server.client();
            (0..ROUNDS)
                .filter(|round| client.set("/race", b"y", *round).is_ok())
                .collect::<Vec<_>>()
        };
        let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(writer)).collect();
        writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap())
            .collect()
    });
    // Each version was written by exactly one, and every success is in the count.
    let version = client.exists("/race").unwrap().version;
    let mut sorted = wins.clone();
    sorted.sort();
    assert_eq!(sorted, (0..version).collect::<Vec<_>>());
    assert!(version > 0);
}

#[test]
fn sequence_numbers_of_many_clients_have_no_gap_and_no_double() {
    let server = Server::plain();
    client_at("/queue");
    let mut numbers: Vec<String> = std::thread::scope(|scope| {
        let producer = || {
            let mut client = server.client();
            let acl = crate::client::open_acl();
            let xids: Vec<i32> = (0..25)
                .map(|_| client.send(op::CREATE, record::create("/queue/n", None, &acl, 2)))
                .collect();
            xids.into_iter()
                .map(|xid| {
                    client
                        .reply(xid)
                        .read(crate::client::Reader::string)
                        .unwrap()
                })
                .collect::<Vec<_>>()
        };
        let producers: Vec<_> = (0..8).map(|_| scope.spawn(producer)).collect();
        producers
            .into_iter()
            .flat_map(|producer| {
                let mine = producer.join().unwrap();
                assert!(mine.is_sorted(), "a client's own requests keep their order");
                mine
            })
            .collect()
    });
    numbers.sort();
    let expected: Vec<String> = (0..200)
        .map(|number| format!("/queue/n{number:010}"))
        .collect();
    assert_eq!(numbers, expected);
}

//! What each operation does to the Stat of a znode and of its parent, and the system znodes
//! (spec §3.4, §5.1, §5.2, §5.5).

use crate::client::{Client, Reader, Stat, acl, code, mode, op, open_acl, perm, record};
use crate::server::Server;

fn client_at(path: &str) -> Client {
    let mut client = Server::plain().client();
    client.make(path);
    client
}

#[test]
fn s35_the_system_znodes_at_first_start() {
    let mut client = Server::pristine().client();
    let untouched = Stat {
        czxid: 0,
        mzxid: 0,
        ctime: 0,
        mtime: 0,
        version: 0,
        cversion: -1,
        aversion: 0,
        ephemeral_owner: 0,
        data_length: 0,
        num_children: 1,
        pzxid: 0,
    };
    assert_eq!(client.exists("/").unwrap(), untouched);
    let expected = Stat {
        cversion: -2,
        num_children: 2,
        ..untouched.clone()
    };
    assert_eq!(client.exists("/zookeeper").unwrap(), expected);
    let expected = Stat {
        cversion: 0,
        num_children: 0,
        ..untouched
    };
    assert_eq!(client.exists("/zookeeper/quota").unwrap(), expected);

    assert_eq!(client.children("/").unwrap(), ["zookeeper"]);
    assert_eq!(client.children("/zookeeper").unwrap(), ["config", "quota"]);
    for path in ["/", "/zookeeper", "/zookeeper/quota"] {
        assert_eq!(client.get(path).unwrap().0, Some(vec![]), "{path}");
        assert_eq!(client.get_acl(path).unwrap().0, open_acl(), "{path}");
    }
}

#[test]
fn s36_a_child_that_comes_and_goes_moves_cversion_and_pzxid_only() {
    let mut client = client_at("/s36");
    let before = client.exists("/s36").unwrap();
    client.make("/s36/c");
    let created = client.zxid;
    let stat = client.exists("/s36").unwrap();
    let expected = Stat {
        cversion: 1,
        pzxid: created,
        num_children: 1,
        ..before.clone()
    };
    assert_eq!(stat, expected);

    client.delete("/s36/c", -1).unwrap();
    let deleted = client.zxid;
    assert!(deleted > created);
    let stat = client.exists("/s36").unwrap();
    assert_eq!(
        stat,
        Stat {
            cversion: 2,
            pzxid: deleted,
            ..before
        }
    );
}

#[test]
fn s36_cversion_counts_creations_and_deletions() {
    let mut client = client_at("/s36-count");
    for name in ["a", "b", "c"] {
        client.make(&format!("/s36-count/{name}"));
    }
    client.delete("/s36-count/a", -1).unwrap();
    // A grandchild is no child.
    client.make("/s36-count/b/x");
    let stat = client.exists("/s36-count").unwrap();
    assert_eq!((stat.cversion, stat.num_children), (4, 2));
}

#[test]
fn s37_set_acl_moves_aversion_only() {
    let mut client = client_at("/s37");
    let before = client.exists("/s37").unwrap();
    let answered = client
        .set_acl("/s37", &[acl(perm::ALL, "ip", "127.0.0.1")], 0)
        .unwrap();
    let expected = Stat {
        aversion: 1,
        ..before
    };
    assert_eq!(answered, expected);
    assert_eq!(client.exists("/s37").unwrap(), expected);
}

#[test]
fn s38_writing_to_a_child_leaves_the_parent_alone() {
    let mut client = client_at("/s38");
    client.make("/s38/c");
    let parent = client.exists("/s38").unwrap();
    client.set("/s38/c", b"new", 0).unwrap();
    client.set_acl("/s38/c", &open_acl(), -1).unwrap();
    assert_eq!(client.exists("/s38").unwrap(), parent);
}

#[test]
fn s39_the_config_znode_is_for_reading() {
    let mut client = Server::pristine().client();
    let (list, stat) = client.get_acl("/zookeeper/config").unwrap();
    assert_eq!(list, [acl(perm::READ, "world", "anyone")]);
    assert_eq!(stat.aversion, -1);
    assert_eq!(
        client.set("/zookeeper/config", b"x", -1),
        Err(code::NO_AUTH)
    );
    assert_eq!(
        client.set_acl("/zookeeper/config", &open_acl(), -1),
        Err(code::NO_AUTH)
    );
}

#[test]
fn s40_an_empty_server_has_three_descendants_of_the_root() {
    let server = Server::pristine();
    let mut client = server.client();
    assert_eq!(descendants(&mut client, "/"), Ok(3));
    // By its empty name the root counts itself.
    assert_eq!(descendants(&mut client, ""), Ok(4));
    assert_eq!(descendants(&mut client, "/zookeeper"), Ok(2));
    assert_eq!(descendants(&mut client, "/zookeeper/config"), Ok(0));
    assert!(
        server.word("srvr").ends_with("\nNode count: 5\n"),
        "the root counts twice"
    );
}

#[test]
fn all_children_number_counts_every_depth() {
    let mut client = client_at("/count");
    for path in [
        "/count/a",
        "/count/a/b",
        "/count/a/b/c",
        "/count/d",
        "/count-no-prefix",
    ] {
        client.make(path);
    }
    assert_eq!(descendants(&mut client, "/count"), Ok(4));
    assert_eq!(descendants(&mut client, "/count/a"), Ok(2));
    assert_eq!(
        descendants(&mut client, "/count/missing"),
        Err(code::NO_NODE)
    );
}

#[test]
fn set_data_moves_version_mzxid_and_mtime() {
    let mut client = client_at("/set");
    let before = client.exists("/set").unwrap();
    let answered = client.set("/set", b"four", 0).unwrap();
    let expected = Stat {
        version: 1,
        mzxid: client.zxid,
        mtime: answered.mtime,
        data_length: 4,
        ..before.clone()
    };
    assert_eq!(answered, expected);
    assert!(answered.mzxid > before.mzxid && answered.mtime >= before.mtime);
    let (data, stat) = client.get("/set").unwrap();
    assert_eq!((data.as_deref(), stat), (Some(&b"four"[..]), answered));
    // The same data again is a change like any other.
    assert_eq!(client.set("/set", b"four", 1).unwrap().version, 2);
}

#[test]
fn times_are_milliseconds_since_1970() {
    let mut client = client_at("/time");
    let stat = client.exists("/time").unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let age = i64::try_from(now.as_millis()).unwrap() - stat.ctime;
    assert!((-1000..60_000).contains(&age), "created {age} ms ago");
    assert_eq!(stat.mtime, stat.ctime);
}

#[test]
fn every_read_answers_with_the_same_stat() {
    let mut client = client_at("/same");
    client.make("/same/a");
    client.create("/same/b", mode::EPHEMERAL).unwrap();
    client.set("/same", b"data", -1).unwrap();
    let stat = client.exists("/same").unwrap();
    assert_eq!(client.get("/same").unwrap().1, stat);
    assert_eq!(client.get_acl("/same").unwrap().1, stat);
    let reply = client.call(op::GET_CHILDREN2, record::path_and_watch("/same", false));
    let (mut names, children2) = reply
        .read(|reader| (reader.strings(), reader.stat()))
        .unwrap();
    names.sort();
    assert_eq!((names, children2), (vec!["a".into(), "b".into()], stat));
}

fn descendants(client: &mut Client, path: &str) -> Result<i32, i32> {
    let body = crate::client::Body::new().string(path);
    client
        .call(op::GET_ALL_CHILDREN_NUMBER, body)
        .read(Reader::int)
}

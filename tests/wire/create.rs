//! Paths, create modes, sequence numbers and the life of containers and TTL znodes
//! (spec §3.3, §3.6, §5.2 to §5.4).

use crate::client::{Body, Client, Reader, Stat, code, event, kind, mode, op, open_acl, record};
use crate::eventually;
use crate::server::Server;

fn client_at(path: &str) -> Client {
    let mut client = Server::plain().client();
    client.make(path);
    client
}

#[test]
fn s21_a_path_starts_with_a_slash() {
    let mut client = Server::plain().client();
    assert_eq!(client.create("", 0), Err(code::BAD_ARGUMENTS));
    assert_eq!(client.create("a", 0), Err(code::BAD_ARGUMENTS));
    // The parent, "a", does not exist: that is found first.
    assert_eq!(client.create("a/b", 0), Err(code::NO_NODE));
}

#[test]
fn s22_a_slash_at_the_end() {
    let mut client = client_at("/s22");
    assert_eq!(client.create("/s22/", 0), Err(code::BAD_ARGUMENTS));
    assert_eq!(client.create("/s22-missing/", 0), Err(code::NO_NODE));
    assert_eq!(
        client.create("/s22/", mode::SEQUENTIAL).as_deref(),
        Ok("/s22/0000000000")
    );
    assert_eq!(
        client.create("/s22-missing/", mode::SEQUENTIAL),
        Err(code::NO_NODE)
    );
}

#[test]
fn s23_the_root_can_be_a_prefix_and_no_new_node() {
    let mut client = Server::plain().client();
    assert_eq!(client.create("/", 0), Err(code::NODE_EXISTS));
    let path = client.create("/", mode::SEQUENTIAL).unwrap();
    assert_eq!(path.len(), "/0000000000".len());
    assert!(
        path[1..].bytes().all(|digit| digit.is_ascii_digit()),
        "{path}"
    );
    assert_eq!(client.delete(&path, 0), Ok(()));
}

#[test]
fn s24_empty_components() {
    let mut client = client_at("/s24");
    assert_eq!(client.create("//a", 0), Err(code::BAD_ARGUMENTS));
    assert_eq!(client.create("/s24//b", 0), Err(code::NO_NODE));
    assert_eq!(client.create("/s24/b//", 0), Err(code::NO_NODE));
}

#[test]
fn s25_dots() {
    let mut client = client_at("/s25");
    for name in [".", ".."] {
        assert_eq!(
            client.create(&format!("/s25/{name}"), 0),
            Err(code::BAD_ARGUMENTS),
            "{name}"
        );
        let below = format!("/s25/{name}/x");
        assert_eq!(client.create(&below, 0), Err(code::NO_NODE), "{below}");
    }
    for name in ["...", ".x", "x..", "..x", "x.", ". ", "a.b"] {
        client.make(&format!("/s25/{name}"));
    }
    // Validated after the number was appended: a sequential "." is no "." any more.
    assert_eq!(
        client.create("/s25/.", mode::SEQUENTIAL).as_deref(),
        Ok("/s25/.0000000007")
    );
}

#[test]
fn s26_forbidden_characters() {
    let mut client = client_at("/s26");
    let forbidden = [
        '\u{1}',
        '\u{9}',
        '\u{1f}',
        '\u{7f}',
        '\u{9f}',
        '\u{e000}',
        '\u{f8ff}',
        '\u{fff0}',
        '\u{fffd}',
        '\u{ffff}',
        '\u{10000}',
        '\u{1f600}',
        '\u{10ffff}',
    ];
    for character in forbidden {
        for path in [format!("/s26/{character}"), format!("/s26/a{character}b")] {
            assert_eq!(
                client.create(&path, 0),
                Err(code::BAD_ARGUMENTS),
                "{path:?}"
            );
        }
    }
    assert_eq!(client.create("/s26/a\0b", 0), Err(code::BAD_ARGUMENTS));
    for character in [
        ' ', '\u{a0}', '\u{ff}', 'ж', '\u{d7ff}', '\u{f900}', '\u{ffef}', '~', '*', '\\',
    ] {
        client.make(&format!("/s26/{character}"));
    }
    assert_eq!(client.children("/s26").unwrap().len(), 10);
}

#[test]
fn s27_an_acl_is_required_and_checked_before_the_parent() {
    let mut client = client_at("/s27");
    for path in ["/s27/x", "/s27-missing/x"] {
        assert_eq!(
            client.create_with(path, None, &[], 0),
            Err(code::INVALID_ACL)
        );
        let null = Body::new().string(path).bytes(b"").null().int(0);
        assert_eq!(client.call(op::CREATE, null).done(), Err(code::INVALID_ACL));
    }
}

#[test]
fn s28_unknown_flags() {
    let mut client = client_at("/s28");
    for flags in [7, -1, 8, 64, i32::MAX, i32::MIN] {
        for operation in [op::CREATE, op::CREATE2, op::CREATE_CONTAINER] {
            let body = record::create("/s28/x", None, &open_acl(), flags);
            let reply = client.call(operation, body);
            assert_eq!(
                reply.done(),
                Err(code::BAD_ARGUMENTS),
                "operation {operation} flags {flags}"
            );
        }
    }
    // The flags come before everything else.
    assert_eq!(
        client.create_with("", None, &[], 7),
        Err(code::BAD_ARGUMENTS)
    );
    assert_eq!(client.children("/s28").unwrap(), [""; 0]);
}

#[test]
fn s29_an_ephemeral_has_no_children() {
    let mut client = client_at("/s29");
    client.create("/s29/e", mode::EPHEMERAL).unwrap();
    for flags in [mode::PERSISTENT, mode::EPHEMERAL, mode::SEQUENTIAL] {
        let refused = Err(code::NO_CHILDREN_FOR_EPHEMERALS);
        assert_eq!(client.create("/s29/e/x", flags), refused);
    }
    // The path is validated before that.
    assert_eq!(client.create("/s29/e/.", 0), Err(code::BAD_ARGUMENTS));
}

#[test]
fn s30_ttl_without_extended_types() {
    let mut client = client_at("/s30");
    for flags in [mode::TTL, mode::TTL_SEQUENTIAL] {
        assert_eq!(
            client.create_ttl("/s30/x", flags, 1000),
            Err(code::UNIMPLEMENTED)
        );
        assert_eq!(client.create("/s30/x", flags), Err(code::UNIMPLEMENTED));
    }
    // The connection is as good as before.
    assert_eq!(client.children("/s30").unwrap(), [""; 0]);
}

#[test]
fn s30_the_range_of_a_ttl() {
    let mut client = Server::brisk().client();
    client.make("/s30");
    for ttl in [0, -1, i64::MIN, 1 << 40, i64::MAX] {
        assert_eq!(
            client.create_ttl("/s30/x", mode::TTL, ttl),
            Err(code::BAD_ARGUMENTS),
            "{ttl}"
        );
    }
    assert!(
        client
            .create_ttl("/s30/x", mode::TTL, (1 << 40) - 1)
            .is_ok()
    );
    // A TTL flag without a TTL, and a TTL without its flag.
    for flags in [mode::TTL, mode::TTL_SEQUENTIAL] {
        assert_eq!(client.create("/s30/y", flags), Err(code::BAD_ARGUMENTS));
        assert_eq!(
            client.create2(op::CREATE2, "/s30/y", flags),
            Err(code::BAD_ARGUMENTS)
        );
    }
    assert_eq!(
        client.create_ttl("/s30/y", mode::PERSISTENT, 5),
        Err(code::BAD_ARGUMENTS)
    );
    assert_eq!(
        client.create_ttl("/s30/y", mode::PERSISTENT, 0),
        Err(code::BAD_ARGUMENTS)
    );
    assert_eq!(client.children("/s30").unwrap(), ["x"]);
}

#[test]
fn s30_create_ttl_for_a_plain_node_is_refused() {
    let server = Server::brisk();
    if server.is_zookeeper() {
        let reason = "applying it would bring the original down, and the other tests with it";
        crate::skipped("s30_create_ttl_for_a_plain_node_is_refused", reason);
        return;
    }
    let mut client = server.client();
    assert_eq!(
        client.create_ttl("/s30-plain", mode::PERSISTENT, -1),
        Err(code::BAD_ARGUMENTS)
    );
    assert_eq!(client.exists("/s30-plain"), Err(code::NO_NODE));
}

#[test]
fn s31_the_operation_decides_about_containers() {
    let server = Server::brisk();
    let mut client = server.client();
    client.make("/s31");
    client.create("/s31/plain", mode::CONTAINER).unwrap();
    client
        .create2(op::CREATE_CONTAINER, "/s31/container", 0)
        .unwrap();
    for parent in ["/s31/plain", "/s31/container"] {
        let child = format!("{parent}/child");
        client.make(&child);
        client.delete(&child, -1).unwrap();
    }
    // Only the container is taken away once it is empty again.
    eventually("the cleaner runs", || {
        client.children("/s31").unwrap() == ["plain"]
    });

    let (path, _) = client
        .create2(op::CREATE_CONTAINER, "/s31/seq-", mode::SEQUENTIAL)
        .unwrap();
    assert_eq!(path, "/s31/seq-0000000002");
}

#[test]
fn s32_containers_and_ttl_nodes_have_no_owner() {
    let mut client = Server::brisk().client();
    client.make("/s32");
    let (_, container) = client
        .create2(op::CREATE_CONTAINER, "/s32/c", mode::CONTAINER)
        .unwrap();
    let (_, ttl) = client.create_ttl("/s32/t", mode::TTL, 1 << 30).unwrap();
    let (path, sequential) = client
        .create_ttl("/s32/t", mode::TTL_SEQUENTIAL, 1 << 30)
        .unwrap();
    assert_eq!(path, "/s32/t0000000002");
    for stat in [container, ttl, sequential] {
        assert_eq!(stat.ephemeral_owner, 0);
    }
    for name in ["c", "t", "t0000000002"] {
        assert_eq!(
            client
                .exists(&format!("/s32/{name}"))
                .unwrap()
                .ephemeral_owner,
            0
        );
    }
    assert_eq!(client.ephemerals(Some("/s32")), [""; 0]);
}

#[test]
fn s33_numbers_count_every_creation_of_a_child() {
    let mut client = client_at("/s33");
    client.make("/s33/a");
    client.make("/s33/b");
    client.delete("/s33/a", -1).unwrap();
    let next = client.create("/s33/n-", mode::SEQUENTIAL);
    assert_eq!(next.as_deref(), Ok("/s33/n-0000000002"));
    // Another prefix, an ephemeral one: it is the same counter.
    let next = client.create("/s33/e-", mode::EPHEMERAL_SEQUENTIAL);
    assert_eq!(next.as_deref(), Ok("/s33/e-0000000003"));
    // A failed creation does not count, a deletion does not either.
    assert_eq!(client.create("/s33/b", 0), Err(code::NODE_EXISTS));
    client.delete("/s33/e-0000000003", -1).unwrap();
    let next = client.create("/s33/n-", mode::SEQUENTIAL);
    assert_eq!(next.as_deref(), Ok("/s33/n-0000000004"));
}

#[test]
fn s33_a_new_parent_counts_from_zero() {
    let mut client = client_at("/s33-again");
    client.make("/s33-again/p");
    for _ in 0..3 {
        let path = client.create("/s33-again/p/n", mode::SEQUENTIAL).unwrap();
        client.delete(&path, -1).unwrap();
    }
    client.delete("/s33-again/p", -1).unwrap();
    client.make("/s33-again/p");
    let next = client.create("/s33-again/p/n", mode::SEQUENTIAL);
    assert_eq!(next.as_deref(), Ok("/s33-again/p/n0000000000"));
}

#[test]
fn s34_null_is_not_empty() {
    let mut client = client_at("/s34");
    client
        .create_with("/s34/null", None, &open_acl(), 0)
        .unwrap();
    client
        .create_with("/s34/empty", Some(b""), &open_acl(), 0)
        .unwrap();
    for (path, expected) in [("/s34/null", None), ("/s34/empty", Some(vec![]))] {
        let (data, stat) = client.get(path).unwrap();
        assert_eq!((data, stat.data_length), (expected, 0));
    }
    // setData can take the data away again.
    let reply = client.call(op::SET_DATA, record::set_data("/s34/empty", None, 0));
    assert_eq!(reply.read(Reader::stat).unwrap().data_length, 0);
    assert_eq!(client.get("/s34/empty").unwrap().0, None);
}

#[test]
fn create2_and_create_container_answer_with_the_stat() {
    let mut client = client_at("/create2");
    let (path, stat) = client
        .create2(op::CREATE2, "/create2/e", mode::EPHEMERAL)
        .unwrap();
    assert_eq!(path, "/create2/e");
    let zxid = client.zxid;
    let owner = client.welcome.session;
    let expected = Stat {
        czxid: zxid,
        mzxid: zxid,
        ctime: stat.ctime,
        mtime: stat.ctime,
        version: 0,
        cversion: 0,
        aversion: 0,
        ephemeral_owner: owner,
        data_length: 1,
        num_children: 0,
        pzxid: zxid,
    };
    assert_eq!(stat, expected);
    assert_eq!(client.exists("/create2/e").unwrap(), expected);

    let (path, stat) = client
        .create2(op::CREATE_CONTAINER, "/create2/c", mode::CONTAINER)
        .unwrap();
    assert_eq!(
        (&*path, stat.czxid, stat.ephemeral_owner),
        ("/create2/c", client.zxid, 0)
    );
}

#[test]
fn children_may_live_under_containers_and_ttl_nodes() {
    let mut client = Server::brisk().client();
    client.make("/nested");
    client
        .create2(op::CREATE_CONTAINER, "/nested/c", mode::CONTAINER)
        .unwrap();
    client.create_ttl("/nested/t", mode::TTL, 1 << 30).unwrap();
    for path in ["/nested/c/child", "/nested/t/child"] {
        client.make(path);
    }
}

#[test]
fn a_container_without_a_past_is_kept() {
    let mut client = Server::brisk().client();
    client.make("/cleaner");
    // Two containers: the one that is taken away proves that the cleaner has passed by both.
    client
        .create2(op::CREATE_CONTAINER, "/cleaner/never-used", mode::CONTAINER)
        .unwrap();
    client
        .create2(op::CREATE_CONTAINER, "/cleaner/used", mode::CONTAINER)
        .unwrap();
    client.make("/cleaner/used/child");
    client.delete("/cleaner/used/child", -1).unwrap();
    eventually("the used container goes", || {
        client.children("/cleaner").unwrap() == ["never-used"]
    });
}

#[test]
fn the_cleaner_fires_watches_like_any_deletion() {
    let server = Server::brisk();
    let (mut client, mut watcher) = (server.client(), server.client());
    client.make("/cleaned");
    client
        .create2(op::CREATE_CONTAINER, "/cleaned/c", mode::CONTAINER)
        .unwrap();
    client.make("/cleaned/c/child");
    watcher.get_watch("/cleaned/c").unwrap();
    watcher.children_watch("/cleaned").unwrap();
    client.delete("/cleaned/c/child", -1).unwrap();
    watcher.events(&[
        (event::DELETED, "/cleaned/c"),
        (event::CHILDREN, "/cleaned"),
    ]);
    watcher.no_event();
    assert_eq!(
        watcher.check_watches("/cleaned", kind::ANY),
        Err(code::NO_WATCHER)
    );
}

#[test]
fn a_ttl_node_expires_when_it_is_left_alone() {
    let server = Server::brisk();
    let (mut client, mut watcher) = (server.client(), server.client());
    client.make("/ttl");
    client.create_ttl("/ttl/soon", mode::TTL, 300).unwrap();
    client.create_ttl("/ttl/parent", mode::TTL, 300).unwrap();
    client.create_ttl("/ttl/later", mode::TTL, 1 << 30).unwrap();
    client.make("/ttl/parent/child");
    watcher.exists_watch("/ttl/soon").unwrap();
    watcher.events(&[(event::DELETED, "/ttl/soon")]);
    // A child keeps its parent alive; without it the parent, long out of date, goes.
    assert_eq!(client.children("/ttl").unwrap(), ["later", "parent"]);
    client.delete("/ttl/parent/child", -1).unwrap();
    eventually("the parent goes", || {
        client.children("/ttl").unwrap() == ["later"]
    });
}

#[test]
fn writing_to_a_ttl_node_keeps_it() {
    let mut client = Server::brisk().client();
    client.make("/ttl-kept");
    let (_, created) = client.create_ttl("/ttl-kept/n", mode::TTL, 3000).unwrap();
    let mut last = created;
    // Well beyond the TTL since creation, never beyond it since the last write.
    while last.mtime - last.ctime < 4500 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        last = client.set("/ttl-kept/n", b"y", -1).unwrap();
    }
    eventually("it expires in the end", || {
        client.exists("/ttl-kept/n").is_err()
    });
}

#[test]
fn data_and_names_come_back_as_they_went() {
    let mut client = client_at("/verbatim");
    let every_byte: Vec<u8> = (0..=255).collect();
    let name = "/verbatim/ünïcödé-名-\u{5d0} with blanks";
    client
        .create_with(name, Some(&every_byte), &open_acl(), 0)
        .unwrap();
    assert_eq!(client.get(name).unwrap().0, Some(every_byte));
    assert_eq!(
        client.children("/verbatim").unwrap(),
        [&name["/verbatim/".len()..]]
    );
    client.exists_watch(name).unwrap();
    let delete = client.send(op::DELETE, record::path_and_int(name, -1));
    client.events(&[(event::DELETED, name)]);
    assert_eq!(client.reply(delete).err, 0);
}

#[test]
fn a_path_may_be_deep_and_a_name_long() {
    let mut client = client_at("/deep");
    let mut path = String::from("/deep");
    for _ in 0..300 {
        path.push_str("/d");
        client.make(&path);
    }
    let long = |bytes| format!("/deep/{}", "n".repeat(bytes));
    let longest = long(4096 - "/deep/".len());
    client.make(&longest);
    assert_eq!(client.exists("/deep").unwrap().num_children, 2);
    assert_eq!(client.get(&longest).unwrap().1.version, 0);
    client.delete(&longest, 0).unwrap();
    // ZooKeeper has no limit but that of a frame.
    let created = client.create(&long(50_000), 0);
    match Server::plain().is_zookeeper() {
        true => assert!(created.is_ok()),
        false => assert_eq!(created.map(drop), Err(code::BAD_ARGUMENTS)),
    }
}

#[test]
fn a_listing_may_be_larger_than_any_request() {
    let mut client = client_at("/listing");
    let names: Vec<String> = (0..3000).map(|number| format!("{number:0400}")).collect();
    for some in names.chunks(1000) {
        let mut multi = crate::multi::Multi::new();
        for name in some {
            let record = record::create(&format!("/listing/{name}"), None, &open_acl(), 0);
            multi = multi.operation(op::CREATE, record);
        }
        assert_eq!(multi.call(&mut client).unwrap().len(), 1000);
    }
    assert_eq!(client.children("/listing").unwrap(), names);
    assert_eq!(client.exists("/listing").unwrap().cversion, 3000);
}

//! Which notification comes when, and what may not come before it (spec §3.5, §6).

use crate::client::{
    Body, Client, Event, acl, code, event, kind, mode, op, open_acl, perm, record,
};
use crate::multi::{Multi, Outcome};
use crate::server::Server;

/// Watch modes of addWatch.
const PERSISTENT: i32 = 0;
const RECURSIVE: i32 = 1;

/// Two clients, and a znode that they work under.
fn pair_at(path: &str) -> (Client, Client) {
    let server = Server::plain();
    let mut client = server.client();
    client.make(path);
    (client, server.client())
}

/// Sends a write; the caller reads its notifications before its reply.
fn start_create(client: &mut Client, path: &str, flags: i32) -> i32 {
    client.send(
        op::CREATE,
        record::create(path, Some(b"x"), &open_acl(), flags),
    )
}

fn start_set(client: &mut Client, path: &str) -> i32 {
    client.send(op::SET_DATA, record::set_data(path, Some(b"y"), -1))
}

fn start_delete(client: &mut Client, path: &str) -> i32 {
    client.send(op::DELETE, record::path_and_int(path, -1))
}

/// The body of setWatches (three lists) or setWatches2 (five lists).
fn set_watches(relative_zxid: i64, lists: &[&[&str]]) -> Body {
    lists
        .iter()
        .fold(Body::new().long(relative_zxid), |body, list| {
            body.strings(list)
        })
}

#[test]
fn s47_own_events_come_before_the_own_reply() {
    let (mut client, _) = pair_at("/s47");
    client.exists_watch("/s47/x").unwrap_err();
    client.children_watch("/s47").unwrap();
    let write = start_create(&mut client, "/s47/x", 0);
    client.events(&[(event::CREATED, "/s47/x"), (event::CHILDREN, "/s47")]);
    assert_eq!(client.reply(write).err, 0);
}

#[test]
fn s48_exists_arms_a_watch_on_a_missing_node() {
    let (mut client, mut watcher) = pair_at("/s48");
    assert_eq!(watcher.exists_watch("/s48/x"), Err(code::NO_NODE));
    client.make("/s48/x");
    watcher.events(&[(event::CREATED, "/s48/x")]);
    // It was one shot.
    client.delete("/s48/x", -1).unwrap();
    watcher.no_event();
}

#[test]
fn s48_other_reads_of_a_missing_node_arm_nothing() {
    let (mut client, mut watcher) = pair_at("/s48-other");
    assert_eq!(watcher.get_watch("/s48-other/x"), Err(code::NO_NODE));
    assert_eq!(watcher.children_watch("/s48-other/x"), Err(code::NO_NODE));
    client.make("/s48-other/x");
    client.make("/s48-other/x/y");
    watcher.no_event();
}

#[test]
fn s49_a_deletion_is_told_once_per_connection() {
    let (mut client, mut watcher) = pair_at("/s49");
    client.make("/s49/x");
    watcher.get_watch("/s49/x").unwrap();
    watcher.children_watch("/s49/x").unwrap();
    client.delete("/s49/x", -1).unwrap();
    watcher.events(&[(event::DELETED, "/s49/x")]);
    // Both watches are spent.
    client.make("/s49/x");
    client.make("/s49/x/y");
    watcher.no_event();
}

#[test]
fn s50_a_child_watch_learns_that_its_node_is_deleted() {
    let (mut client, mut watcher) = pair_at("/s50");
    client.make("/s50/x");
    watcher.children_watch("/s50/x").unwrap();
    // The data of the node is none of its business.
    client.set("/s50/x", b"y", -1).unwrap();
    watcher.no_event();
    client.delete("/s50/x", -1).unwrap();
    watcher.events(&[(event::DELETED, "/s50/x")]);
}

#[test]
fn s51_a_persistent_watch_hears_of_its_node_and_its_children() {
    let (mut client, mut watcher) = pair_at("/s51p");
    assert_eq!(watcher.add_watch("/s51p", PERSISTENT), Ok(0));
    client.make("/s51p/a");
    client.make("/s51p/a/b");
    client.set("/s51p/a", b"y", -1).unwrap();
    client.set("/s51p", b"y", -1).unwrap();
    client.delete("/s51p/a/b", -1).unwrap();
    client.delete("/s51p/a", -1).unwrap();
    watcher.events(&[
        (event::CHILDREN, "/s51p"),
        (event::DATA, "/s51p"),
        (event::CHILDREN, "/s51p"),
    ]);
    watcher.no_event();
}

#[test]
fn s51_a_recursive_watch_hears_of_every_descendant_and_never_of_children() {
    let (mut client, mut watcher) = pair_at("/s51r");
    assert_eq!(watcher.add_watch("/s51r", RECURSIVE), Ok(0));
    client.make("/s51r/a");
    client.make("/s51r/a/b");
    client.set("/s51r/a/b", b"y", -1).unwrap();
    client.set("/s51r", b"y", -1).unwrap();
    client.set_acl("/s51r/a", &open_acl(), -1).unwrap();
    client.delete("/s51r/a/b", -1).unwrap();
    client.delete("/s51r/a", -1).unwrap();
    client.make("/s51r-neighbour");
    client.delete("/s51r", -1).unwrap();
    watcher.events(&[
        (event::CREATED, "/s51r/a"),
        (event::CREATED, "/s51r/a/b"),
        (event::DATA, "/s51r/a/b"),
        (event::DATA, "/s51r"),
        (event::DELETED, "/s51r/a/b"),
        (event::DELETED, "/s51r/a"),
        (event::DELETED, "/s51r"),
    ]);
    watcher.no_event();
}

#[test]
fn s51_a_recursive_watch_on_the_root_hears_of_everything() {
    let (server, _turn) = Server::alone();
    let (mut client, mut watcher) = (server.client(), server.client());
    assert_eq!(watcher.add_watch("/", RECURSIVE), Ok(0));
    client.make("/s51-root");
    client.make("/s51-root/x");
    watcher.events(&[
        (event::CREATED, "/s51-root"),
        (event::CREATED, "/s51-root/x"),
    ]);
    watcher.no_event();
}

#[test]
fn s52_persistent_watches_survive_their_node() {
    for (path, mode) in [("/s52p", PERSISTENT), ("/s52r", RECURSIVE)] {
        let (mut client, mut watcher) = pair_at(path);
        watcher.add_watch(path, mode).unwrap();
        for _ in 0..2 {
            client.delete(path, -1).unwrap();
            client.make(path);
            watcher.events(&[(event::DELETED, path), (event::CREATED, path)]);
        }
        watcher.no_event();
    }
}

#[test]
fn s53_add_watch_takes_any_path_and_two_modes() {
    let (_, mut watcher) = pair_at("/s53");
    for path in ["/s53/missing", "no slash", "", "//", "/s53/"] {
        for mode in [PERSISTENT, RECURSIVE] {
            let reply = watcher.call(op::ADD_WATCH, record::path_and_int(path, mode));
            assert_eq!((reply.err, reply.body), (0, vec![0; 4]), "{path:?}");
        }
    }
    for mode in [2, -1, i32::MAX] {
        assert_eq!(
            watcher.add_watch("/s53", mode),
            Err(code::MARSHALLING),
            "mode {mode}"
        );
    }
}

#[test]
fn s54_removing_what_is_not_there() {
    let server = Server::plain();
    let (_, mut watcher) = pair_at("/s54");
    for operation in [op::CHECK_WATCHES, op::REMOVE_WATCHES] {
        for kind in [
            kind::CHILDREN,
            kind::DATA,
            kind::ANY,
            kind::PERSISTENT,
            kind::RECURSIVE,
        ] {
            let new = [kind::PERSISTENT, kind::RECURSIVE].contains(&kind);
            let expected = match server.is_zookeeper_38() && new {
                // These kinds exist since 3.9.
                true => code::MARSHALLING,
                false => code::NO_WATCHER,
            };
            let reply = watcher.call(operation, record::path_and_int("/s54", kind));
            assert_eq!(
                reply.done(),
                Err(expected),
                "operation {operation} kind {kind}"
            );
        }
        for kind in [0, 6, -1] {
            let reply = watcher.call(operation, record::path_and_int("/s54", kind));
            assert_eq!(
                reply.done(),
                Err(code::MARSHALLING),
                "operation {operation} kind {kind}"
            );
        }
    }
}

#[test]
fn s55_several_flags_give_one_event() {
    let (mut client, mut watcher) = pair_at("/s55");
    watcher.get_watch("/s55").unwrap();
    watcher.exists_watch("/s55").unwrap();
    watcher.add_watch("/s55", PERSISTENT).unwrap();
    watcher.add_watch("/s55", RECURSIVE).unwrap();
    for _ in 0..2 {
        client.set("/s55", b"y", -1).unwrap();
    }
    watcher.events(&[(event::DATA, "/s55"), (event::DATA, "/s55")]);
    watcher.no_event();
}

#[test]
fn s55_a_standard_watch_is_spent_and_the_recursive_one_stays() {
    let server = Server::plain();
    let (mut client, mut watcher) = pair_at("/s55-stays");
    watcher.add_watch("/s55-stays", RECURSIVE).unwrap();
    watcher.get_watch("/s55-stays").unwrap();
    client.set("/s55-stays", b"y", -1).unwrap();
    client.set("/s55-stays", b"y", -1).unwrap();
    watcher.events(&[(event::DATA, "/s55-stays")]);
    if !server.is_zookeeper_38() {
        // Up to 3.8 a path has one mode per connection: the later, standard one replaced the other.
        watcher.events(&[(event::DATA, "/s55-stays")]);
    }
    watcher.no_event();
}

#[test]
fn s55_a_watch_set_twice_fires_once() {
    let (mut client, mut watcher) = pair_at("/s55-twice");
    for _ in 0..3 {
        watcher.get_watch("/s55-twice").unwrap();
        watcher.exists_watch("/s55-twice").unwrap();
        watcher.children_watch("/s55-twice").unwrap();
    }
    client.set("/s55-twice", b"y", -1).unwrap();
    client.make("/s55-twice/c");
    watcher.events(&[(event::DATA, "/s55-twice"), (event::CHILDREN, "/s55-twice")]);
    client.set("/s55-twice", b"y", -1).unwrap();
    client.make("/s55-twice/d");
    watcher.no_event();
}

#[test]
fn s56_set_watches_tells_what_was_missed_and_arms_the_rest() {
    let (mut client, mut watcher) = pair_at("/s56");
    for name in [
        "same", "changed", "deleted", "reborn", "grown", "calm", "emptied",
    ] {
        client.make(&format!("/s56/{name}"));
    }
    client.make("/s56/emptied/x");
    let seen = client.zxid;
    client.set("/s56/changed", b"y", -1).unwrap();
    client.delete("/s56/deleted", -1).unwrap();
    client.delete("/s56/reborn", -1).unwrap();
    client.make("/s56/reborn");
    client.make("/s56/grown/x");
    client.delete("/s56/emptied/x", -1).unwrap();
    // New data and an ACL change are nothing to a child watch.
    client.set("/s56/calm", b"y", -1).unwrap();
    client.set_acl("/s56/same", &open_acl(), -1).unwrap();
    client.make("/s56/appeared");

    let lists: [&[&str]; 3] = [
        &["/s56/same", "/s56/changed", "/s56/deleted", "/s56/reborn"],
        &["/s56/appeared", "/s56/missing"],
        &["/s56/calm", "/s56/grown", "/s56/deleted", "/s56/emptied"],
    ];
    let xid = watcher.send(op::SET_WATCHES, set_watches(seen, &lists));
    let missed = [
        (event::DATA, "/s56/changed"),
        (event::DELETED, "/s56/deleted"),
        (event::DATA, "/s56/reborn"),
        (event::CREATED, "/s56/appeared"),
        (event::CHILDREN, "/s56/grown"),
        (event::DELETED, "/s56/deleted"),
        (event::CHILDREN, "/s56/emptied"),
    ];
    for (kind, path) in missed {
        // No transaction causes these, so there is no zxid to tell (spec §6.7).
        assert_eq!(
            watcher.event(),
            Event {
                zxid: -1,
                kind,
                path: path.into()
            }
        );
    }
    assert_eq!(watcher.reply(xid).done(), Ok(()));

    // What had not changed is watched now; what was told is not.
    client.set("/s56/same", b"y", -1).unwrap();
    client.set("/s56/changed", b"z", -1).unwrap();
    client.make("/s56/missing");
    client.make("/s56/calm/x");
    client.make("/s56/grown/y");
    watcher.events(&[
        (event::DATA, "/s56/same"),
        (event::CREATED, "/s56/missing"),
        (event::CHILDREN, "/s56/calm"),
    ]);
    watcher.no_event();
}

#[test]
fn s56_set_watches2_arms_persistent_watches_silently() {
    let (mut client, mut watcher) = pair_at("/s56p");
    client.make("/s56p/a");
    let lists: [&[&str]; 5] = [
        &["/s56p/gone"],
        &["/s56p"],
        &["/s56p"],
        &["/s56p/a"],
        &["/s56p", "/s56p/gone"],
    ];
    let xid = watcher.send(op::SET_WATCHES2, set_watches(0, &lists));
    // The lists in their order; the last two say nothing although everything is newer than zxid 0.
    watcher.events(&[
        (event::DELETED, "/s56p/gone"),
        (event::CREATED, "/s56p"),
        (event::CHILDREN, "/s56p"),
    ]);
    assert_eq!(watcher.reply(xid).done(), Ok(()));

    for _ in 0..2 {
        client.set("/s56p/a", b"y", -1).unwrap();
    }
    client.make("/s56p/a/b");
    watcher.events(&[
        (event::DATA, "/s56p/a"),
        (event::DATA, "/s56p/a"),
        (event::CREATED, "/s56p/a/b"),
        (event::CHILDREN, "/s56p/a"),
    ]);
    watcher.no_event();
}

#[test]
fn s56_set_watches_ignores_acls_and_bad_paths() {
    let (mut client, mut watcher) = pair_at("/s56-acl");
    client.make("/s56-acl/secret");
    client
        .set_acl("/s56-acl/secret", &[acl(perm::ALL, "digest", "a:b")], -1)
        .unwrap();
    let lists: [&[&str]; 3] = [&["/s56-acl/secret", "no slash"], &["/s56-acl/", "//"], &[]];
    let xid = watcher.send(op::SET_WATCHES, set_watches(0, &lists));
    watcher.events(&[
        (event::DATA, "/s56-acl/secret"),
        (event::DELETED, "no slash"),
    ]);
    assert_eq!(watcher.reply(xid).done(), Ok(()));
}

#[test]
fn s57_set_watches_needs_its_lists() {
    let (_, mut watcher) = pair_at("/s57");
    let empty = || Body::new().long(0).strings(&[]).strings(&[]);
    let bodies = [
        (op::SET_WATCHES, Body::new().long(0).null().null().null()),
        (op::SET_WATCHES, empty().null()),
        (op::SET_WATCHES2, empty().strings(&[]).strings(&[]).null()),
        (op::SET_WATCHES2, empty().strings(&[]).null().strings(&[])),
    ];
    for (operation, body) in bodies {
        assert_eq!(watcher.call(operation, body).done(), Err(code::MARSHALLING));
        watcher.ping();
    }
}

#[test]
fn s58_the_events_of_a_multi_come_operation_by_operation() {
    let (mut client, mut watcher) = pair_at("/s58");
    client.make("/s58/old");
    for path in ["/s58/a", "/s58/old"] {
        let _ = watcher.exists_watch(path);
    }
    watcher.add_watch("/s58", PERSISTENT).unwrap();

    let failing = Multi::new()
        .create("/s58/a", 0)
        .set("/s58/old", -1)
        .check("/s58/old", 99);
    let failed = failing.call(&mut client).unwrap();
    assert_eq!(failed[2], Outcome::Error(code::BAD_VERSION));
    watcher.no_event();

    let good = Multi::new()
        .create("/s58/a", 0)
        .set("/s58/old", -1)
        .delete("/s58/old", -1);
    good.set("/s58", -1).call(&mut client).unwrap();
    watcher.events(&[
        (event::CREATED, "/s58/a"),
        (event::CHILDREN, "/s58"),
        (event::DATA, "/s58/old"),
        (event::CHILDREN, "/s58"),
        (event::DATA, "/s58"),
    ]);
    watcher.no_event();
}

#[test]
fn s58_a_multi_can_create_and_delete_what_is_watched() {
    let (mut client, mut watcher) = pair_at("/s58-brief");
    watcher.add_watch("/s58-brief/x", PERSISTENT).unwrap();
    Multi::new()
        .create("/s58-brief/x", 0)
        .delete("/s58-brief/x", 0)
        .call(&mut client)
        .unwrap();
    watcher.events(&[
        (event::CREATED, "/s58-brief/x"),
        (event::DELETED, "/s58-brief/x"),
    ]);
    watcher.no_event();
}

#[test]
fn s59_who_may_not_read_is_not_told_and_the_watch_is_spent() {
    let (mut client, mut watcher) = pair_at("/s59");
    client.make("/s59/x");
    let nobody = [
        acl(perm::READ, "digest", "no:body"),
        acl(30, "world", "anyone"),
    ];

    watcher.get_watch("/s59/x").unwrap();
    client.set_acl("/s59/x", &nobody, -1).unwrap();
    client.set("/s59/x", b"secret", -1).unwrap();
    // The filter came with 3.8.4 and 3.9.2; Debian's 3.8.0 has it too, as a security fix.
    watcher.no_event();
    client.set_acl("/s59/x", &open_acl(), -1).unwrap();
    client.set("/s59/x", b"public", -1).unwrap();
    watcher.no_event();

    // A deletion is judged by the ACL that the znode had, a change of children by the parent's.
    watcher.add_watch("/s59", RECURSIVE).unwrap();
    watcher.children_watch("/s59").unwrap();
    client.set_acl("/s59/x", &nobody, -1).unwrap();
    client.delete("/s59/x", -1).unwrap();
    watcher.events(&[(event::CHILDREN, "/s59")]);
    client.make("/s59/y");
    watcher.events(&[(event::CREATED, "/s59/y")]);
    watcher.children_watch("/s59").unwrap();
    client.set_acl("/s59", &nobody, -1).unwrap();
    client.make("/s59/z");
    watcher.events(&[(event::CREATED, "/s59/z")]);
    watcher.no_event();
}

#[test]
fn s60_multi_read_sets_no_watch() {
    let (mut client, mut watcher) = pair_at("/s60");
    let read = Multi::read().get("/s60", true).children("/s60", true);
    assert_eq!(read.call(&mut watcher).unwrap().len(), 2);
    client.set("/s60", b"y", -1).unwrap();
    client.make("/s60/x");
    watcher.no_event();
    assert_eq!(
        watcher.check_watches("/s60", kind::ANY),
        Err(code::NO_WATCHER)
    );
}

#[test]
fn a_notification_carries_the_zxid_of_its_transaction() {
    let server = Server::plain();
    let (mut client, mut watcher) = pair_at("/event-zxid");
    watcher.get_watch("/event-zxid").unwrap();
    let written = client.set("/event-zxid", b"y", -1).unwrap().mzxid;
    // Deliberate difference 5 is none against the baseline: up to 3.8 the field is -1 (spec §6.7).
    let zxid = if server.is_zookeeper_38() {
        -1
    } else {
        written
    };
    let expected = Event {
        zxid,
        kind: event::DATA,
        path: "/event-zxid".into(),
    };
    assert_eq!(watcher.event(), expected);
}

#[test]
fn a_recursive_and_a_child_watch_both_hear_of_a_new_child() {
    let (mut client, mut watcher) = pair_at("/both");
    watcher.add_watch("/both", RECURSIVE).unwrap();
    watcher.children_watch("/both").unwrap();
    client.make("/both/x");
    watcher.events(&[(event::CREATED, "/both/x"), (event::CHILDREN, "/both")]);
    watcher.no_event();
}

#[test]
fn a_change_of_the_acl_and_reads_fire_nothing() {
    let (mut client, mut watcher) = pair_at("/quiet");
    watcher.add_watch("/quiet", RECURSIVE).unwrap();
    watcher.get_watch("/quiet").unwrap();
    watcher.children_watch("/quiet").unwrap();
    client.set_acl("/quiet", &open_acl(), -1).unwrap();
    client.get("/quiet").unwrap();
    client.sync("/quiet").unwrap();
    assert_eq!(client.set("/quiet", b"y", 9), Err(code::BAD_VERSION));
    assert_eq!(client.create("/quiet", 0), Err(code::NODE_EXISTS));
    watcher.no_event();
}

#[test]
fn watches_go_with_their_connection() {
    let (mut client, mut watcher) = pair_at("/gone");
    watcher.get_watch("/gone").unwrap();
    watcher.add_watch("/gone", RECURSIVE).unwrap();
    let hello = watcher.hello_again();
    watcher.vanish();
    let mut watcher = Server::plain().client_with(&hello);
    assert_eq!(
        watcher.check_watches("/gone", kind::ANY),
        Err(code::NO_WATCHER)
    );
    client.set("/gone", b"y", -1).unwrap();
    watcher.no_event();
}

#[test]
fn a_watch_on_the_empty_path_never_fires() {
    let server = Server::plain();
    let (mut client, mut watcher) = (server.client(), server.client());
    watcher.get_watch("").unwrap();
    watcher.children_watch("").unwrap();
    client.set("/", b"", -1).unwrap();
    client.create("/empty-path", 0).unwrap();
    watcher.no_event();
}

#[test]
fn each_kind_of_watch_is_checked_and_removed_by_its_type() {
    let server = Server::plain();
    let (mut client, mut watcher) = pair_at("/kinds");
    for kind in [kind::DATA, kind::CHILDREN] {
        let other = kind::DATA + kind::CHILDREN - kind;
        match kind {
            kind::DATA => drop(watcher.get_watch("/kinds").unwrap()),
            _ => drop(watcher.children_watch("/kinds").unwrap()),
        }
        for present in [kind, kind::ANY] {
            assert_eq!(watcher.check_watches("/kinds", present), Ok(()));
        }
        assert_eq!(
            watcher.check_watches("/kinds", other),
            Err(code::NO_WATCHER)
        );
        assert_eq!(
            watcher.remove_watches("/kinds", other),
            Err(code::NO_WATCHER)
        );
        assert_eq!(watcher.remove_watches("/kinds", kind), Ok(()));
        assert_eq!(
            watcher.remove_watches("/kinds", kind),
            Err(code::NO_WATCHER)
        );
    }
    client.set("/kinds", b"y", -1).unwrap();
    client.make("/kinds/x");
    watcher.no_event();

    // Any: all of them at once.
    watcher.get_watch("/kinds").unwrap();
    watcher.children_watch("/kinds").unwrap();
    watcher.add_watch("/kinds", PERSISTENT).unwrap();
    watcher.add_watch("/kinds", RECURSIVE).unwrap();
    assert_eq!(watcher.remove_watches("/kinds", kind::ANY), Ok(()));
    assert_eq!(
        watcher.check_watches("/kinds", kind::ANY),
        Err(code::NO_WATCHER)
    );
    client.set("/kinds", b"z", -1).unwrap();
    client.make("/kinds/y");
    watcher.no_event();

    if server.is_zookeeper_38() {
        // 3.8 has no types 4 and 5 and lets 1 and 2 remove whatever is there (spec §6.8).
        watcher.add_watch("/kinds", PERSISTENT).unwrap();
        assert_eq!(
            watcher.remove_watches("/kinds", kind::PERSISTENT),
            Err(code::MARSHALLING)
        );
        assert_eq!(watcher.remove_watches("/kinds", kind::DATA), Ok(()));
        return;
    }
    for (mode, kind) in [(PERSISTENT, kind::PERSISTENT), (RECURSIVE, kind::RECURSIVE)] {
        let other = kind::PERSISTENT + kind::RECURSIVE - kind;
        watcher.add_watch("/kinds", mode).unwrap();
        assert_eq!(watcher.check_watches("/kinds", kind), Ok(()));
        assert_eq!(
            watcher.check_watches("/kinds", other),
            Err(code::NO_WATCHER)
        );
        // Types 1 and 2 mean the standard watches only.
        assert_eq!(
            watcher.remove_watches("/kinds", kind::DATA),
            Err(code::NO_WATCHER)
        );
        assert_eq!(
            watcher.remove_watches("/kinds", kind::CHILDREN),
            Err(code::NO_WATCHER)
        );
        assert_eq!(watcher.remove_watches("/kinds", kind), Ok(()));
        assert_eq!(
            watcher.remove_watches("/kinds", kind),
            Err(code::NO_WATCHER)
        );
        client.set("/kinds", b"z", -1).unwrap();
        client.delete("/kinds/y", -1).unwrap();
        client.make("/kinds/y");
        watcher.no_event();
    }
}

#[test]
fn removing_one_kind_leaves_the_others() {
    let server = Server::plain();
    let (mut client, mut watcher) = pair_at("/kinds-kept");
    if server.is_zookeeper_38() {
        crate::skipped(
            "removing_one_kind_leaves_the_others",
            "3.8 removes whatever is there",
        );
        return;
    }
    watcher.get_watch("/kinds-kept").unwrap();
    watcher.add_watch("/kinds-kept", PERSISTENT).unwrap();
    watcher.add_watch("/kinds-kept", RECURSIVE).unwrap();
    assert_eq!(
        watcher.remove_watches("/kinds-kept", kind::PERSISTENT),
        Ok(())
    );
    assert_eq!(watcher.check_watches("/kinds-kept", kind::DATA), Ok(()));
    client.make("/kinds-kept/x");
    watcher.events(&[(event::CREATED, "/kinds-kept/x")]);
    assert_eq!(
        watcher.remove_watches("/kinds-kept", kind::RECURSIVE),
        Ok(())
    );
    client.make("/kinds-kept/y");
    client.set("/kinds-kept", b"y", -1).unwrap();
    watcher.events(&[(event::DATA, "/kinds-kept")]);
    watcher.no_event();
}

#[test]
fn a_change_is_told_before_it_can_be_read() {
    let (mut client, mut watcher) = pair_at("/told");
    for round in 0..30 {
        let version = watcher.get_watch("/told").unwrap().1.version;
        assert_eq!(version, round);
        // The reads are on their way while the write happens.
        let reads: Vec<i32> = (0..20)
            .map(|_| watcher.send(op::GET_DATA, record::path_and_watch("/told", false)))
            .collect();
        let write = start_set(&mut client, "/told");
        let mut told = false;
        for xid in reads {
            let reply = loop {
                match watcher.incoming() {
                    crate::client::Incoming::Event(event) => {
                        assert!(!told, "told twice: {event:?}");
                        told = true;
                    }
                    crate::client::Incoming::Reply(reply) => break reply,
                }
            };
            assert_eq!(reply.xid, xid);
            let (_, stat) = reply
                .read(|reader| (reader.buffer(), reader.stat()))
                .unwrap();
            assert_eq!(
                stat.version > version,
                told,
                "the new data is seen after the event"
            );
        }
        assert_eq!(client.reply(write).err, 0);
        if !told {
            watcher.events(&[(event::DATA, "/told")]);
        }
    }
}

#[test]
fn the_writer_is_told_like_everybody_else() {
    let (mut client, mut other) = pair_at("/writer");
    client.add_watch("/writer", PERSISTENT).unwrap();
    other.children_watch("/writer").unwrap();
    let write = start_create(&mut client, "/writer/e", mode::EPHEMERAL);
    client.events(&[(event::CHILDREN, "/writer")]);
    assert_eq!(client.reply(write).err, 0);
    let write = start_set(&mut client, "/writer");
    client.events(&[(event::DATA, "/writer")]);
    assert_eq!(client.reply(write).err, 0);
    let write = start_delete(&mut client, "/writer/e");
    client.events(&[(event::CHILDREN, "/writer")]);
    assert_eq!(client.reply(write).err, 0);
    other.events(&[(event::CHILDREN, "/writer")]);
    other.no_event();
}

//! Request and reply headers, and requests that do not decode (spec §1.1, §2.5, §9.4).

use std::time::Duration;

use crate::client::{Body, Reader, Reply, code, event, mode, op, open_acl, perm, record};
use crate::server::Server;

/// A well-formed body of every operation that a client sends with an ordinary xid, on a znode that
/// exists. `watched` fills the lists of setWatches.
fn well_formed(path: &str, watched: &[&str]) -> Vec<(i32, Body)> {
    let vectors = |count| (0..count).fold(Body::new().long(0), |body, _| body.strings(watched));
    vec![
        (op::CREATE, record::create(path, Some(b"x"), &open_acl(), 0)),
        (op::DELETE, record::path_and_int(path, 77)),
        (op::EXISTS, record::path_and_watch(path, false)),
        (op::GET_DATA, record::path_and_watch(path, false)),
        (op::SET_DATA, record::set_data(path, Some(b"y"), 77)),
        (op::GET_ACL, Body::new().string(path)),
        (
            op::SET_ACL,
            Body::new().string(path).acl(&open_acl()).int(77),
        ),
        (op::GET_CHILDREN, record::path_and_watch(path, false)),
        (op::SYNC, Body::new().string(path)),
        (op::GET_CHILDREN2, record::path_and_watch(path, false)),
        (
            op::CREATE2,
            record::create(path, Some(b"x"), &open_acl(), 0),
        ),
        (op::CHECK_WATCHES, record::path_and_int(path, 1)),
        (op::REMOVE_WATCHES, record::path_and_int(path, 1)),
        (
            op::CREATE_CONTAINER,
            record::create(path, Some(b"x"), &open_acl(), 4),
        ),
        (
            op::CREATE_TTL,
            record::create(path, Some(b"x"), &open_acl(), 5).long(1000),
        ),
        (op::SET_WATCHES, vectors(3)),
        (op::GET_EPHEMERALS, Body::new().string(path)),
        (op::GET_ALL_CHILDREN_NUMBER, Body::new().string(path)),
        (op::SET_WATCHES2, vectors(5)),
        (op::ADD_WATCH, record::path_and_int(path, 0)),
        (
            op::MULTI,
            sub(op::CHECK, record::path_and_int(path, 0)).raw(&end().into_bytes()),
        ),
        (
            op::MULTI_READ,
            sub(op::GET_DATA, record::path_and_watch(path, false)).raw(&end().into_bytes()),
        ),
    ]
}

fn sub(operation: i32, body: Body) -> Body {
    Body::new()
        .int(operation)
        .boolean(false)
        .int(-1)
        .raw(&body.into_bytes())
}

fn end() -> Body {
    Body::new().int(-1).boolean(true).int(-1)
}

#[test]
fn s13_a_ping_is_answered_with_its_xid_and_the_last_zxid() {
    let (server, _turn) = Server::alone();
    let mut client = server.client();
    client.make("/s13");
    let written = client.zxid;
    assert_eq!(client.ping().zxid, written);

    // The server answers -2 whatever the client called it (spec §2.5).
    client.send_as(77, op::PING, Body::new());
    assert_eq!(
        client.reply(-2),
        Reply {
            xid: -2,
            zxid: written,
            err: 0,
            body: vec![]
        }
    );
}

#[test]
fn s13_a_ping_waits_behind_earlier_requests() {
    let server = Server::plain();
    let mut client = server.client();
    client.make("/s13");
    for round in 0..20 {
        let data = vec![b'd'; 1000 * round];
        let write = client.send(op::SET_DATA, record::set_data("/s13", Some(&data), -1));
        client.send_as(-2, op::PING, Body::new());
        let read = client.send(op::EXISTS, record::path_and_watch("/s13", false));
        client.send_as(-2, op::PING, Body::new());
        let written = client.reply(write);
        assert_eq!(written.err, 0);
        assert!(client.reply(-2).zxid >= written.zxid);
        assert_eq!(client.reply(read).err, 0);
        client.reply(-2);
    }
}

#[test]
fn s14_an_unknown_operation_ends_the_connection_and_not_the_session() {
    let server = Server::plain();
    for operation in [
        op::NOTIFICATION,
        op::ERROR,
        10,
        23,
        99,
        108,
        999,
        -2,
        -12,
        i32::MAX,
        i32::MIN,
    ] {
        let mut client = server.client();
        let path = client.create("/s14", mode::EPHEMERAL).unwrap();
        let xid = client.send(operation, Body::new());
        let expected = Reply {
            xid,
            zxid: -1,
            err: code::UNIMPLEMENTED,
            body: vec![],
        };
        assert_eq!(client.reply(xid), expected, "operation {operation}");
        let hello = client.hello_again();
        client.into_connection().closes();

        let mut client = server.client_with(&hello);
        assert_eq!(client.exists(&path).unwrap().ephemeral_owner, hello.session);
        client.close();
    }
}

#[test]
fn s14_check_outside_a_multi_is_unknown() {
    let server = Server::plain();
    let mut client = server.client();
    let xid = client.send(op::CHECK, record::path_and_int("/", -1));
    if server.is_zookeeper_38() {
        // Before 3.8.5 and 3.9.3 there is no reply at all (spec §3.1).
        assert!(
            client
                .connection()
                .is_silent_for(Duration::from_millis(300))
        );
        client.vanish();
        return;
    }
    let expected = Reply {
        xid,
        zxid: -1,
        err: code::UNIMPLEMENTED,
        body: vec![],
    };
    assert_eq!(client.reply(xid), expected);
    let hello = client.hello_again();
    client.into_connection().closes();
    server.client_with(&hello);
}

#[test]
fn s14_internal_operations_are_unknown_to_clients() {
    let server = Server::plain();
    let mut owner = server.client();
    owner.make("/internal");
    let path = "/internal/leaf";
    owner
        .create_with(
            path,
            None,
            &[crate::client::acl(perm::READ, "world", "anyone")],
            0,
        )
        .unwrap();

    let mut client = server.client();
    if server.is_zookeeper_38() {
        // 3.8.0 takes the whole frame for the path, so that no client's request can succeed.
        let delete = client.send(op::DELETE_CONTAINER, Body::new().string(path));
        assert_eq!(client.reply(delete).done(), Err(code::BAD_ARGUMENTS));
        assert!(owner.exists(path).is_ok());
        return;
    }
    if server.is_zookeeper() {
        let delete = client.send(op::DELETE_CONTAINER, Body::new().string(path));
        assert_eq!(client.reply(delete).done(), Ok(()));
        assert_eq!(owner.exists(path), Err(code::NO_NODE));
        return;
    }
    // Deliberate difference 3: deleteContainer would delete any leaf past its ACL, createSession
    // would re-create a session.
    for (operation, body) in [
        (op::DELETE_CONTAINER, Body::new().string(path)),
        (op::CREATE_SESSION, Body::new().int(30_000)),
    ] {
        let xid = client.send(operation, body);
        let expected = Reply {
            xid,
            zxid: -1,
            err: code::UNIMPLEMENTED,
            body: vec![],
        };
        assert_eq!(client.reply(xid), expected);
        let hello = client.hello_again();
        client.into_connection().closes();
        client = server.client_with(&hello);
    }
    assert!(owner.exists(path).is_ok());
}

#[test]
fn s15_a_failing_write_takes_a_zxid_and_a_failing_read_does_not() {
    let (server, _turn) = Server::alone();
    let mut client = server.client();
    client.make("/s15");
    let mut zxid = client.zxid;

    let writes = [
        (
            op::CREATE,
            record::create("/s15", None, &open_acl(), 0),
            code::NODE_EXISTS,
        ),
        (
            op::CREATE,
            record::create("/no/s15", None, &open_acl(), 0),
            code::NO_NODE,
        ),
        (
            op::CREATE,
            record::create("bad", None, &open_acl(), 0),
            code::BAD_ARGUMENTS,
        ),
        (
            op::CREATE,
            record::create("/s15/x", None, &[], 0),
            code::INVALID_ACL,
        ),
        (
            op::CREATE2,
            record::create("/s15", None, &open_acl(), 0),
            code::NODE_EXISTS,
        ),
        (
            op::DELETE,
            record::path_and_int("/s15", 7),
            code::BAD_VERSION,
        ),
        (
            op::SET_DATA,
            record::set_data("/no", None, -1),
            code::NO_NODE,
        ),
        (
            op::SET_ACL,
            Body::new().string("/no").acl(&open_acl()).int(-1),
            code::NO_NODE,
        ),
    ];
    for (operation, body, expected) in writes {
        let reply = client.call(operation, body);
        assert_eq!(
            (reply.err, reply.zxid),
            (expected, zxid + 1),
            "operation {operation}"
        );
        zxid = reply.zxid;
    }

    let reads = [
        (op::GET_DATA, record::path_and_watch("/no", false)),
        (op::EXISTS, record::path_and_watch("/no", false)),
        (op::GET_CHILDREN, record::path_and_watch("/no", false)),
        (op::GET_CHILDREN2, record::path_and_watch("/no", false)),
        (op::GET_ACL, Body::new().string("/no")),
        (op::GET_ALL_CHILDREN_NUMBER, Body::new().string("/no")),
    ];
    for (operation, body) in reads {
        let reply = client.call(operation, body);
        assert_eq!(
            (reply.err, reply.zxid),
            (code::NO_NODE, zxid),
            "operation {operation}"
        );
    }
    // A sync and a successful read take none either.
    assert_eq!(client.sync("/s15").as_deref(), Ok("/s15"));
    assert_eq!(client.zxid, zxid);
    client.exists("/s15").unwrap();
    assert_eq!(client.zxid, zxid);
    // A session takes one when it begins and one when it ends.
    let guest = server.client();
    assert_eq!(guest.close().zxid, zxid + 2);
}

#[test]
fn s16_auth_and_sasl_replies_carry_zxid_0() {
    let mut client = Server::plain().client();
    client.exists("/").unwrap();
    assert_ne!(client.zxid, 0);
    // Client::auth checks the zxid.
    assert_eq!(client.auth("digest", b"s16:s16"), 0);
    let reply = client.call(op::SASL, Body::new().buffer(Some(b"")));
    assert_eq!((reply.zxid, reply.err), (0, 0));
}

#[test]
fn s17_a_request_that_ends_early_does_not_decode() {
    let server = Server::plain();
    let mut client = server.client();
    client.make("/s17");
    for (operation, body) in well_formed("/s17", &["/s17"]) {
        let body = body.into_bytes();
        for length in 0..body.len() {
            let reply = client.call(operation, Body::new().raw(&body[..length]));
            assert_eq!(
                reply.err,
                code::MARSHALLING,
                "operation {operation} cut at {length}"
            );
        }
    }
    assert_eq!(client.get("/s17").unwrap().1.version, 0);
}

#[test]
fn s17_a_null_path_does_not_decode() {
    let mut client = Server::plain().client();
    let bodies = [
        (
            op::CREATE,
            Body::new().null().bytes(b"x").acl(&open_acl()).int(0),
            code::MARSHALLING,
        ),
        (op::DELETE, Body::new().null().int(-1), code::MARSHALLING),
        (
            op::EXISTS,
            Body::new().null().boolean(false),
            code::MARSHALLING,
        ),
        (
            op::GET_DATA,
            Body::new().null().boolean(false),
            code::MARSHALLING,
        ),
        // These two validate the path before they use it, and null is no valid path (spec §5.4).
        (
            op::SET_DATA,
            Body::new().null().bytes(b"x").int(-1),
            code::BAD_ARGUMENTS,
        ),
        (
            op::SET_ACL,
            Body::new().null().acl(&open_acl()).int(-1),
            code::BAD_ARGUMENTS,
        ),
        (op::GET_ACL, Body::new().null(), code::MARSHALLING),
        (
            op::GET_CHILDREN,
            Body::new().null().boolean(false),
            code::MARSHALLING,
        ),
        (
            op::GET_CHILDREN2,
            Body::new().null().boolean(false),
            code::MARSHALLING,
        ),
        (
            op::CREATE2,
            Body::new().null().bytes(b"x").acl(&open_acl()).int(0),
            code::MARSHALLING,
        ),
        (
            op::GET_ALL_CHILDREN_NUMBER,
            Body::new().null(),
            code::MARSHALLING,
        ),
    ];
    for (operation, body, expected) in bodies {
        assert_eq!(
            client.call(operation, body).done(),
            Err(expected),
            "operation {operation}"
        );
        client.ping();
    }
}

#[test]
fn s17_impossible_lengths_do_not_decode() {
    let mut client = Server::plain().client();
    for length in [-2, i32::MIN, 3_000_000, i32::MAX] {
        let body = Body::new().int(length).raw(b"/x").boolean(false);
        assert_eq!(
            client.call(op::EXISTS, body).err,
            code::MARSHALLING,
            "string length {length}"
        );
    }
    // A count of -2 is an empty list to ZooKeeper; a decode error is as good (spec §1.1).
    let reply = client.call(
        op::CREATE,
        Body::new().string("/s17x").bytes(b"").int(-2).int(0),
    );
    assert!(
        [code::INVALID_ACL, code::MARSHALLING].contains(&reply.err),
        "{reply:?}"
    );
    assert_eq!(client.exists("/s17x"), Err(code::NO_NODE));
}

#[test]
fn s18_bytes_behind_the_record_are_ignored() {
    let server = Server::plain();
    let mut client = server.client();
    client.make("/s18");
    for (operation, body) in well_formed("/s18", &[]) {
        let plain = client.call(operation, body.clone());
        let longer = client.call(operation, body.raw(b"trailing bytes"));
        assert_eq!(
            (plain.err, plain.body),
            (longer.err, longer.body),
            "operation {operation}"
        );
    }
    let mut extended = server.client();
    let ping = extended.send(op::EXISTS, record::path_and_watch("/s18", false));
    extended.reply(ping);
    extended.send_as(-2, op::PING, Body::new().raw(b"more"));
    extended.reply(-2);
    let xid = extended.send(op::CLOSE_SESSION, Body::new().raw(b"more"));
    assert_eq!(extended.reply(xid).err, 0);
    extended.into_connection().closes();
}

#[test]
fn s19_close_session_is_answered_and_the_connection_closed() {
    let server = Server::plain();
    let mut client = server.client();
    let path = client.create("/s19", mode::EPHEMERAL).unwrap();
    let created = client.zxid;
    // Client::close checks the bare reply and the close.
    assert!(client.close().zxid > created);
    assert_eq!(server.client().exists(&path), Err(code::NO_NODE));
}

#[test]
fn s19_requests_behind_close_session_are_not_served() {
    let server = Server::plain();
    let mut client = server.client();
    let close = Body::new().int(1).int(op::CLOSE_SESSION).into_frame();
    let create = record::create("/s19-late", None, &open_acl(), 0).into_bytes();
    let create = Body::new().int(2).int(op::CREATE).raw(&create).into_frame();
    client.connection().send(&[close, create].concat());
    assert_eq!(client.reply(1).done(), Ok(()));
    // The close wins, or the server had the time to say that the session is gone.
    let rest = client.into_connection().rest();
    let expired = code::SESSION_EXPIRED.to_be_bytes();
    assert!(
        rest.is_empty() || rest.len() == 20 && rest.ends_with(&expired),
        "{rest:02x?}"
    );
    assert_eq!(server.client().exists("/s19-late"), Err(code::NO_NODE));
}

#[test]
fn s20_a_fresh_connection_is_its_address() {
    let mut client = Server::plain().client();
    assert_eq!(client.who_am_i(), [("ip".into(), "127.0.0.1".into())]);
}

#[test]
fn xids_are_echoed_whatever_they_are() {
    let server = Server::plain();
    let mut client = server.client();
    // Repeated, descending and negative ones: an xid is no key (spec §2.5).
    for xid in [5, 5, 1, i32::MAX, 0, -3, -8, i32::MIN] {
        client.send_as(xid, op::EXISTS, record::path_and_watch("/", false));
        assert_eq!(client.reply(xid).err, 0);
    }
    for xid in [-4, 9] {
        client.send_as(xid, op::AUTH, record::auth("ip", b""));
        assert_eq!(client.reply(xid).err, 0);
    }
    for (xid, operation, lists) in [
        (-8, op::SET_WATCHES, 3),
        (-8, op::SET_WATCHES2, 5),
        (10, 101, 3),
    ] {
        let body = (0..lists).fold(Body::new().long(0), |body, _| body.strings(&[]));
        client.send_as(xid, operation, body);
        assert_eq!(client.reply(xid).done(), Ok(()));
    }
}

#[test]
fn replies_come_in_request_order() {
    let server = Server::plain();
    let mut client = server.client();
    client.make("/ordered");
    let mut frames = Vec::new();
    for xid in 1..=300 {
        // Reads and writes mixed, so that a read may not overtake the write in front of it.
        let (operation, body) = match xid % 3 {
            0 => (
                op::SET_DATA,
                record::set_data("/ordered", Some(&i32::to_be_bytes(xid)), -1),
            ),
            1 => (op::GET_DATA, record::path_and_watch("/ordered", false)),
            _ => (op::SYNC, Body::new().string("/ordered")),
        };
        frames.extend(
            Body::new()
                .int(xid)
                .int(operation)
                .raw(&body.into_bytes())
                .into_frame(),
        );
    }
    client.connection().send(&frames);

    let mut zxid = 0;
    for xid in 1..=300 {
        let reply = client.reply(xid);
        assert_eq!(reply.err, 0);
        assert!(reply.zxid >= zxid, "the header zxid never falls");
        zxid = reply.zxid;
        if xid % 3 == 1 && xid > 3 {
            let data = reply
                .read(|reader| (reader.buffer(), reader.stat()))
                .unwrap()
                .0
                .unwrap();
            assert_eq!(
                data,
                (xid - 1).to_be_bytes(),
                "a read sees the write before it"
            );
        }
    }
}

#[test]
fn a_reply_to_a_read_has_the_zxid_of_what_it_shows() {
    let (server, _turn) = Server::alone();
    let (mut writer, mut reader) = (server.client(), server.client());
    writer.make("/header-zxid");
    for _ in 0..5 {
        let stat = writer.set("/header-zxid", b"x", -1).unwrap();
        assert_eq!(writer.zxid, stat.mzxid);
        // The reader is a connection to the same server: nothing can be newer or older.
        assert_eq!(reader.get("/header-zxid").unwrap().1.mzxid, stat.mzxid);
        assert_eq!(reader.zxid, stat.mzxid);
    }
}

#[test]
fn any_non_zero_boolean_is_true() {
    let mut client = Server::plain().client();
    client.make("/boolean");
    let reply = client.call(op::GET_DATA, Body::new().string("/boolean").raw(&[0x7f]));
    assert_eq!(reply.err, 0);
    let write = client.send(op::SET_DATA, record::set_data("/boolean", None, -1));
    client.events(&[(event::DATA, "/boolean")]);
    client.reply(write);
}

#[test]
fn invalid_utf8_is_no_path() {
    let mut client = Server::plain().client();
    let path = b"/\xff\xfe";
    let create = Body::new().bytes(path).bytes(b"x").acl(&open_acl()).int(0);
    assert_eq!(client.call(op::CREATE, create).err, code::BAD_ARGUMENTS);
    let exists = Body::new().bytes(path).boolean(false);
    assert_eq!(client.call(op::EXISTS, exists).err, code::NO_NODE);
}

#[test]
fn reconfig_is_disabled() {
    let mut client = Server::plain().client();
    let body = Body::new()
        .null()
        .null()
        .string("server.1=localhost:1:2;3")
        .long(-1);
    assert_eq!(client.call(op::RECONFIG, body).err, code::RECONFIG_DISABLED);
    client.ping();
}

#[test]
fn sync_needs_no_valid_path() {
    let mut client = Server::plain().client();
    for path in ["/missing", "not a path", "", "//"] {
        assert_eq!(client.sync(path).as_deref(), Ok(path));
    }
    let reply = client.call(op::SYNC, Body::new().null());
    assert_eq!(reply.read(Reader::buffer), Ok(None));
}

#[test]
fn a_client_may_send_far_ahead_of_its_reading() {
    let server = Server::plain();
    let mut client = server.client();
    let data = vec![b'f'; 2000];
    client
        .create_with("/far-ahead", Some(&data), &open_acl(), 0)
        .unwrap();
    // The replies are some 4 MB, more than sockets hold: the server has to keep or hold back the
    // rest.
    let xids: Vec<i32> = (0..2000)
        .map(|_| client.send(op::GET_DATA, record::path_and_watch("/far-ahead", false)))
        .collect();
    server.client().set("/far-ahead", &data, -1).unwrap();
    for xid in xids {
        assert_eq!(client.reply(xid).body.len(), 4 + data.len() + 68);
    }
}

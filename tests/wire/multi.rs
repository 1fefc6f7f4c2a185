//! multi and multiRead: their framing in bytes, all or nothing, and one zxid (spec §4).

use crate::client::{Body, Client, Stat, acl, code, mode, op, open_acl, perm, record};
use crate::server::Server;

/// A result list with nothing but its terminator.
const EMPTY_LIST: [u8; 9] = [0xff, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff, 0xff];

/// A multi or multiRead request under construction.
#[derive(Clone)]
pub struct Multi {
    operation: i32,
    body: Body,
}

/// One entry of the result list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    Create(String),
    Create2(String, Stat),
    Delete,
    SetData(Stat),
    Check,
    Data(Option<Vec<u8>>, Stat),
    Children(Vec<String>),
    Error(i32),
}

impl Multi {
    pub fn new() -> Self {
        Self {
            operation: op::MULTI,
            body: Body::new(),
        }
    }

    pub fn read() -> Self {
        Self {
            operation: op::MULTI_READ,
            body: Body::new(),
        }
    }

    pub fn operation(mut self, operation: i32, record: Body) -> Self {
        let header = self.body.int(operation).boolean(false).int(-1);
        self.body = header.raw(&record.into_bytes());
        self
    }

    pub fn create(self, path: &str, flags: i32) -> Self {
        self.operation(
            op::CREATE,
            record::create(path, Some(b"x"), &open_acl(), flags),
        )
    }

    pub fn set(self, path: &str, version: i32) -> Self {
        self.operation(op::SET_DATA, record::set_data(path, Some(b"set"), version))
    }

    pub fn delete(self, path: &str, version: i32) -> Self {
        self.operation(op::DELETE, record::path_and_int(path, version))
    }

    pub fn check(self, path: &str, version: i32) -> Self {
        self.operation(op::CHECK, record::path_and_int(path, version))
    }

    pub fn get(self, path: &str, watch: bool) -> Self {
        self.operation(op::GET_DATA, record::path_and_watch(path, watch))
    }

    pub fn children(self, path: &str, watch: bool) -> Self {
        self.operation(op::GET_CHILDREN, record::path_and_watch(path, watch))
    }

    /// The request record with its terminator.
    pub fn into_body(self) -> Body {
        self.body.int(-1).boolean(true).int(-1)
    }

    /// Sends it and decodes the result list.
    pub fn call(self, client: &mut Client) -> Result<Vec<Outcome>, i32> {
        let operation = self.operation;
        let mut reply = client.call(operation, self.into_body());
        if reply.err == code::MARSHALLING && reply.body == EMPTY_LIST {
            // The one error that may come with a body (spec §1.5).
            reply.body.clear();
        }
        reply.read(|reader| {
            let mut outcomes = Vec::new();
            loop {
                let (kind, done, err) = (reader.int(), reader.boolean(), reader.int());
                if done {
                    assert_eq!((kind, err), (-1, -1), "the terminator");
                    return outcomes;
                }
                assert!(err == 0 || kind == -1, "only an error entry has a code");
                outcomes.push(match kind {
                    op::CREATE => Outcome::Create(reader.string()),
                    op::CREATE2 => Outcome::Create2(reader.string(), reader.stat()),
                    op::DELETE => Outcome::Delete,
                    op::SET_DATA => Outcome::SetData(reader.stat()),
                    op::CHECK => Outcome::Check,
                    op::GET_DATA => Outcome::Data(reader.buffer(), reader.stat()),
                    op::GET_CHILDREN => {
                        let mut names = reader.strings();
                        names.sort();
                        Outcome::Children(names)
                    }
                    -1 => {
                        assert_eq!(reader.int(), err, "an error entry has its code twice");
                        Outcome::Error(err)
                    }
                    other => panic!("a result of type {other}"),
                });
            }
        })
    }
}

fn client_at(path: &str) -> Client {
    let mut client = Server::plain().client();
    client.make(path);
    client
}

fn errors(codes: &[i32]) -> Vec<Outcome> {
    codes.iter().map(|code| Outcome::Error(*code)).collect()
}

#[test]
fn s61_a_failed_multi_reports_every_operation_as_an_error() {
    let mut client = client_at("/s61");
    let multi = Multi::new().create("/s61/a", 0).create("/s61", 0);
    let multi = multi.delete("/s61/missing", -1).check("/s61", 0);
    let outcomes = multi.call(&mut client).unwrap();
    let filler = code::RUNTIME_INCONSISTENCY;
    assert_eq!(outcomes, errors(&[0, code::NODE_EXISTS, filler, filler]));
    assert_eq!(client.children("/s61").unwrap(), [""; 0]);
}

#[test]
fn s61_a_failed_multi_leaves_no_trace() {
    let (server, _turn) = Server::alone();
    let mut client = server.client();
    client.make("/s61");
    client.make("/s61/kept");
    let before = (
        client.get("/s61").unwrap(),
        client.get("/s61/kept").unwrap(),
    );
    let zxid = client.zxid;
    let multi = Multi::new()
        .create("/s61/n-", mode::SEQUENTIAL)
        .create("/s61/e", mode::EPHEMERAL)
        .create("/s61/kept/child", 0)
        .set("/s61", -1)
        .set("/s61/kept", 0)
        .delete("/s61/kept/child", -1)
        .delete("/s61/kept", 1)
        .check("/s61/kept", -1);
    let outcomes = multi.call(&mut client).unwrap();
    assert_eq!(outcomes, errors(&[0, 0, 0, 0, 0, 0, 0, code::NO_NODE]));
    // The attempt took a zxid.
    assert_eq!(client.zxid, zxid + 1);
    assert_eq!(
        (
            client.get("/s61").unwrap(),
            client.get("/s61/kept").unwrap()
        ),
        before
    );
    assert_eq!(client.children("/s61").unwrap(), ["kept"]);
    assert_eq!(client.ephemerals(None), [""; 0]);
    // The sequence number was given back.
    let next = client.create("/s61/n-", mode::SEQUENTIAL);
    assert_eq!(next.as_deref(), Ok("/s61/n-0000000001"));
}

#[test]
fn s62_an_empty_multi_succeeds_and_takes_a_zxid() {
    let (server, _turn) = Server::alone();
    let mut client = server.client();
    client.make("/s62");
    let zxid = client.zxid;
    assert_eq!(Multi::new().call(&mut client).unwrap(), []);
    assert_eq!(client.zxid, zxid + 1);
    assert_eq!(Multi::read().call(&mut client).unwrap(), []);
    assert_eq!(client.zxid, zxid + 1);
}

#[test]
fn s63_foreign_operations_spoil_the_whole_request() {
    let server = Server::plain();
    let mut client = client_at("/s63");
    let path = "/s63";
    let foreign = [
        (
            op::SET_ACL,
            Body::new().string(path).acl(&open_acl()).int(-1),
        ),
        (op::EXISTS, record::path_and_watch(path, false)),
        (op::GET_CHILDREN2, record::path_and_watch(path, false)),
        (op::SYNC, Body::new().string(path)),
        (op::DELETE_CONTAINER, Body::new().string(path)),
        (op::PING, Body::new()),
        (op::CLOSE_SESSION, Body::new()),
        (999, Body::new()),
    ];
    for (operation, body) in foreign {
        for start in [
            Multi::new().create("/s63/x", 0),
            Multi::read().get(path, false),
        ] {
            let refused = start.operation(operation, body.clone()).call(&mut client);
            assert_eq!(refused, Err(code::MARSHALLING), "operation {operation}");
        }
    }
    let mixed = [
        Multi::new().create("/s63/x", 0).get(path, false),
        Multi::new().get(path, false),
        Multi::new().get(path, false).create("/s63/x", 0),
        Multi::read().get(path, false).create("/s63/x", 0),
        Multi::read().create("/s63/x", 0),
        Multi::read().check(path, -1),
    ];
    for multi in mixed {
        assert_eq!(multi.call(&mut client), Err(code::MARSHALLING));
    }
    assert_eq!(server.client().children("/s63").unwrap(), [""; 0]);
    client.ping();
}

#[test]
fn s64_a_multi_sees_itself_and_is_one_transaction() {
    let mut client = client_at("/s64");
    let multi = Multi::new()
        .create("/s64/x", 0)
        .set("/s64/x", 0)
        .check("/s64/x", 1);
    let outcomes = multi.create("/s64/y", 0).call(&mut client).unwrap();
    let zxid = client.zxid;
    let [create, Outcome::SetData(stat), Outcome::Check, _] = &outcomes[..] else {
        panic!("{outcomes:?}");
    };
    assert_eq!(*create, Outcome::Create("/s64/x".into()));
    assert_eq!(
        (stat.czxid, stat.mzxid, stat.version, stat.data_length),
        (zxid, zxid, 1, 3)
    );
    assert_eq!(stat.ctime, stat.mtime);
    let (x, y) = (
        client.exists("/s64/x").unwrap(),
        client.exists("/s64/y").unwrap(),
    );
    assert_eq!((&x, y.czxid, y.ctime), (stat, zxid, x.ctime));
    assert_eq!(client.exists("/s64").unwrap().pzxid, zxid);
}

#[test]
fn s65_results_with_a_stat_have_type_15() {
    let server = Server::brisk();
    let mut client = server.client();
    client.make("/s65");
    let record = |path, flags| record::create(path, Some(b"x"), &open_acl(), flags);
    let multi = Multi::new()
        .operation(op::CREATE_CONTAINER, record("/s65/c", mode::CONTAINER))
        .operation(op::CREATE_TTL, record("/s65/t", mode::TTL).long(1 << 30))
        .operation(op::CREATE2, record("/s65/p", mode::PERSISTENT));
    let outcomes = multi.call(&mut client).unwrap();
    let zxid = client.zxid;
    for (path, outcome) in ["/s65/c", "/s65/t", "/s65/p"].into_iter().zip(outcomes) {
        if path == "/s65/p" && server.is_zookeeper_38() {
            // Up to 3.8.1 create2 is answered like create (spec §4.2).
            assert_eq!(outcome, Outcome::Create(path.into()));
            continue;
        }
        let stat = client.exists(path).unwrap();
        assert_eq!((stat.czxid, stat.ephemeral_owner), (zxid, 0));
        assert_eq!(outcome, Outcome::Create2(path.into(), stat));
    }
}

#[test]
fn s65_a_result_has_the_type_of_what_was_made() {
    let server = Server::brisk();
    let mut client = server.client();
    client.make("/s65-types");
    let error = |code| Err::<i32, i32>(code);
    // What each operation makes of the flags 0 to 7: the type of its result, or an error.
    let plain = [
        Ok(1),
        Ok(1),
        Ok(1),
        Ok(1),
        Ok(15),
        error(-5),
        error(-5),
        error(-5),
    ];
    let with_stat = [
        Ok(15),
        Ok(15),
        Ok(15),
        Ok(15),
        Ok(15),
        error(-5),
        error(-5),
        error(-5),
    ];
    let ttl = [
        Ok(1),
        Ok(1),
        Ok(1),
        Ok(1),
        Ok(15),
        Ok(15),
        Ok(15),
        error(-8),
    ];
    let mut old = plain;
    old[7] = error(-8);
    let table = match server.is_zookeeper_38() {
        true => [
            (op::CREATE, old),
            (op::CREATE2, old),
            (op::CREATE_CONTAINER, old),
            (op::CREATE_TTL, ttl),
        ],
        false => [
            (op::CREATE, plain),
            (op::CREATE2, with_stat),
            (op::CREATE_CONTAINER, with_stat),
            (op::CREATE_TTL, ttl),
        ],
    };
    for (operation, expected) in table {
        for (flags, expected) in expected.into_iter().enumerate() {
            let path = format!("/s65-types/{operation}-{flags}-");
            let mut record = record::create(&path, None, &open_acl(), flags as i32);
            if operation == op::CREATE_TTL {
                record = record.long(1 << 30);
            }
            let outcome = Multi::new().operation(operation, record).call(&mut client);
            let case = format!("operation {operation} with flags {flags}: {outcome:?}");
            let (path, kind) = match outcome.as_deref() {
                Ok([Outcome::Create(path)]) => (path, Ok(1)),
                Ok([Outcome::Create2(path, _)]) => (path, Ok(15)),
                Ok([Outcome::Error(code)]) => (&path, Err(*code)),
                Err(code) => (&path, Err(*code)),
                _ => panic!("{case}"),
            };
            assert_eq!(kind, expected, "{case}");
            // The flags alone decide about ephemerals, except that a container is never one.
            let ephemeral = [mode::EPHEMERAL, mode::EPHEMERAL_SEQUENTIAL].contains(&(flags as i32))
                && (operation != op::CREATE_CONTAINER || server.is_zookeeper_38());
            if expected.is_ok() {
                let owner = client.exists(path).unwrap().ephemeral_owner;
                assert_eq!(owner != 0, ephemeral, "{case}");
            }
        }
    }
}

#[test]
fn s66_sequence_numbers_go_on_within_a_multi() {
    let mut client = client_at("/s66");
    let multi = Multi::new()
        .create("/s66/a-", 2)
        .create("/s66/b-", 3)
        .create("/s66/", 2);
    let expected = ["/s66/a-0000000000", "/s66/b-0000000001", "/s66/0000000002"];
    let expected = expected.map(|path| Outcome::Create(path.into()));
    assert_eq!(multi.call(&mut client).unwrap(), expected);
}

#[test]
fn s67_create_and_delete_in_one_multi() {
    let mut client = client_at("/s67");
    let multi = Multi::new()
        .create("/s67/x", 0)
        .delete("/s67/x", 0)
        .create("/s67/x", 1);
    let multi = multi.delete("/s67/x", -1);
    let created = Outcome::Create("/s67/x".into());
    let expected = [created.clone(), Outcome::Delete, created, Outcome::Delete];
    assert_eq!(multi.call(&mut client).unwrap(), expected);
    let zxid = client.zxid;
    let parent = client.exists("/s67").unwrap();
    assert_eq!(
        (parent.cversion, parent.num_children, parent.pzxid),
        (4, 0, zxid)
    );
}

#[test]
fn s68_the_reads_of_a_multi_read_fail_alone() {
    let mut client = client_at("/s68");
    client.make("/s68/b");
    client.make("/s68/a");
    let multi = Multi::read()
        .get("/s68", false)
        .get("/s68-no", false)
        .children("/s68", false);
    let multi = multi.children("/s68-no", false).get("", false);
    let outcomes = multi.call(&mut client).unwrap();
    let (data, stat) = client.get("/s68").unwrap();
    assert_eq!(outcomes[0], Outcome::Data(data, stat));
    assert_eq!(outcomes[1], Outcome::Error(code::NO_NODE));
    assert_eq!(outcomes[2], Outcome::Children(vec!["a".into(), "b".into()]));
    assert_eq!(outcomes[3], Outcome::Error(code::NO_NODE));
    assert!(matches!(outcomes[4], Outcome::Data(..)));
}

#[test]
fn s98_a_multi_with_a_null_acl_or_unknown_flags_does_not_decode() {
    let server = Server::plain();
    let mut client = client_at("/s98");
    let null_acl = Body::new().string("/s98/x").bytes(b"").null().int(0);
    let bad_flags = record::create("/s98/x", None, &open_acl(), 77);
    for (body, code_in_38) in [
        (null_acl, code::INVALID_ACL),
        (bad_flags, code::BAD_ARGUMENTS),
    ] {
        let multi = Multi::new().check("/s98", 0).operation(op::CREATE, body);
        let outcome = multi.check("/s98", 0).call(&mut client);
        if server.is_zookeeper_38() {
            let expected = errors(&[0, code_in_38, code::RUNTIME_INCONSISTENCY]);
            assert_eq!(outcome, Ok(expected));
        } else {
            assert_eq!(outcome, Err(code::MARSHALLING));
        }
    }
    client.ping();
}

#[test]
fn s98_an_empty_acl_is_an_error_of_its_operation() {
    let mut client = client_at("/s98-empty");
    let create = record::create("/s98-empty/x", None, &[], 0);
    let outcome = Multi::new().operation(op::CREATE, create).call(&mut client);
    assert_eq!(outcome, Ok(errors(&[code::INVALID_ACL])));
}

#[test]
fn s99_a_reply_may_be_larger_than_any_request() {
    let mut client = client_at("/s99");
    let data = vec![7; 1_000_000];
    let mut multi = Multi::read();
    for name in ["a", "b", "c"] {
        let path = format!("/s99/{name}");
        client
            .create_with(&path, Some(&data), &open_acl(), mode::EPHEMERAL)
            .unwrap();
        multi = multi.get(&path, false);
    }
    let outcomes = multi.call(&mut client).unwrap();
    assert_eq!(outcomes.len(), 3);
    for outcome in outcomes {
        assert!(matches!(outcome, Outcome::Data(Some(read), _) if read == data));
    }
}

#[test]
fn the_bytes_of_a_successful_multi() {
    let mut client = client_at("/bytes");
    let multi = Multi::new()
        .create("/bytes/a", 0)
        .check("/bytes/a", 0)
        .delete("/bytes/a", 0);
    let reply = client.call(op::MULTI, multi.into_body());
    let mut expected = vec![0, 0, 0, 1, 0, 0, 0, 0, 0];
    expected.extend([0, 0, 0, 8]);
    expected.extend(b"/bytes/a");
    expected.extend([0, 0, 0, 13, 0, 0, 0, 0, 0]);
    expected.extend([0, 0, 0, 2, 0, 0, 0, 0, 0]);
    expected.extend(EMPTY_LIST);
    assert_eq!((reply.err, reply.body), (0, expected));
}

#[test]
fn a_stat_is_that_of_its_moment() {
    let mut client = client_at("/moment");
    let multi = Multi::new()
        .set("/moment", 0)
        .create("/moment/x", 0)
        .set("/moment", 1);
    let outcomes = multi.call(&mut client).unwrap();
    let [Outcome::SetData(first), _, Outcome::SetData(second)] = &outcomes[..] else {
        panic!("{outcomes:?}");
    };
    assert_eq!(
        (first.version, first.num_children, first.cversion),
        (1, 0, 0)
    );
    assert_eq!(
        (second.version, second.num_children, second.cversion),
        (2, 1, 1)
    );
}

#[test]
fn the_first_failure_counts() {
    let mut client = client_at("/first");
    client.make("/first/full");
    client.make("/first/full/child");
    client.create("/first/e", mode::EPHEMERAL).unwrap();
    let failures = [
        (Multi::new().create("/first/no/x", 0), code::NO_NODE),
        (Multi::new().create("/first/.", 0), code::BAD_ARGUMENTS),
        (
            Multi::new().create("/first/e/x", 0),
            code::NO_CHILDREN_FOR_EPHEMERALS,
        ),
        (Multi::new().delete("/first/full", -1), code::NOT_EMPTY),
        (Multi::new().delete("/first/full", 8), code::BAD_VERSION),
        (Multi::new().delete("/zookeeper", -1), code::BAD_ARGUMENTS),
        (Multi::new().set("/first", 3), code::BAD_VERSION),
        (Multi::new().set("/first/", 0), code::BAD_ARGUMENTS),
        (Multi::new().check("/first", 3), code::BAD_VERSION),
        (Multi::new().check("/first/no", -1), code::NO_NODE),
        (Multi::new().check("", -1), code::BAD_ARGUMENTS),
    ];
    for (multi, code) in failures {
        let outcomes = multi.check("/first/also-missing", 0).call(&mut client);
        assert_eq!(outcomes, Ok(errors(&[code, code::RUNTIME_INCONSISTENCY])));
    }
}

#[test]
fn a_deleted_parent_is_gone_for_the_rest_of_the_multi() {
    let mut client = client_at("/gone-parent");
    let multi = Multi::new()
        .create("/gone-parent/p", 0)
        .delete("/gone-parent/p", 0);
    let outcomes = multi.create("/gone-parent/p/x", 0).call(&mut client);
    assert_eq!(outcomes, Ok(errors(&[0, 0, code::NO_NODE])));
    // A child that the same multi creates keeps its parent.
    let multi = Multi::new()
        .create("/gone-parent/p", 0)
        .create("/gone-parent/p/x", 0);
    let outcomes = multi.delete("/gone-parent/p", 0).call(&mut client);
    assert_eq!(outcomes, Ok(errors(&[0, 0, code::NOT_EMPTY])));
}

#[test]
fn inside_a_multi_the_flags_decide_the_kind() {
    let server = Server::brisk();
    let mut client = server.client();
    client.make("/flags");
    let record = |path, flags| record::create(path, Some(b"x"), &open_acl(), flags);
    // A create without a ttl field cannot make a TTL znode.
    let multi = Multi::new().operation(op::CREATE, record("/flags/t", mode::TTL));
    assert_eq!(multi.call(&mut client), Err(code::MARSHALLING));
    // createTTL with plain flags is a plain create.
    let plain = record("/flags/plain", mode::PERSISTENT).long(50);
    let multi = Multi::new()
        .create("/flags/c", mode::CONTAINER)
        .operation(op::CREATE_TTL, plain);
    multi.call(&mut client).unwrap();
    client.make("/flags/c/child");
    client.delete("/flags/c/child", -1).unwrap();
    crate::eventually("the container is cleaned", || {
        client.children("/flags").unwrap() == ["plain"]
    });
}

#[test]
fn ephemerals_of_a_multi_belong_to_the_session() {
    let mut client = client_at("/multi-e");
    Multi::new()
        .create("/multi-e/a", 1)
        .create("/multi-e/b", 3)
        .call(&mut client)
        .unwrap();
    let paths = ["/multi-e/a", "/multi-e/b0000000001"];
    assert_eq!(client.ephemerals(Some("/multi-e")), paths);
    for path in paths {
        assert_eq!(
            client.exists(path).unwrap().ephemeral_owner,
            client.welcome.session
        );
    }
    client.close();
    assert_eq!(
        Server::plain().client().children("/multi-e").unwrap(),
        [""; 0]
    );
}

#[test]
fn every_operation_of_a_multi_needs_its_permission() {
    let mut owner = client_at("/multi-acl");
    let read_only = [acl(perm::READ, "world", "anyone")];
    let no_read = [acl(perm::ALL - perm::READ, "world", "anyone")];
    owner
        .create_with("/multi-acl/r", None, &read_only, 0)
        .unwrap();
    owner
        .create_with("/multi-acl/w", None, &no_read, 0)
        .unwrap();
    let refused = [
        Multi::new().create("/multi-acl/r/x", 0),
        Multi::new().set("/multi-acl/r", -1),
        Multi::new().delete("/multi-acl/r/x", -1),
        Multi::new().check("/multi-acl/w", 0),
    ];
    let mut client = Server::plain().client();
    for multi in refused {
        assert_eq!(multi.call(&mut client), Ok(errors(&[code::NO_AUTH])));
    }
    let reads = Multi::read()
        .get("/multi-acl/w", false)
        .children("/multi-acl/w", false);
    assert_eq!(
        reads.call(&mut client),
        Ok(errors(&[code::NO_AUTH, code::NO_AUTH]))
    );
    let passing = Multi::new().check("/multi-acl/r", 0).set("/multi-acl/w", 0);
    assert_eq!(passing.call(&mut client).unwrap()[0], Outcome::Check);
}

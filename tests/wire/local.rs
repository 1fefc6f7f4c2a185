//! Sessions that one server keeps to itself (spec §8.7).

use crate::client::{Body, Client, Reader, Welcome, code, event, mode, op, open_acl, record};
use crate::multi::{Multi, Outcome};
use crate::server::Server;
use crate::skipped;

const WHY: &str = "ZooKeeper alone has no local sessions";

/// A gauge of `mntr`.
fn gauge(server: &Server, name: &str) -> i64 {
    let mntr = server.word("mntr");
    let line = mntr
        .lines()
        .find_map(|line| line.strip_prefix(&format!("zk_{name}\t")));
    line.expect("a gauge").parse().expect("a number")
}

#[test]
fn a_local_session_may_not_make_ephemerals() {
    let Some(server) = Server::local() else {
        return skipped("a_local_session_may_not_make_ephemerals", WHY);
    };
    let mut client = server.client();
    let refused = code::EPHEMERAL_ON_LOCAL_SESSION;
    assert_eq!(client.create("/e", mode::EPHEMERAL), Err(refused));
    assert_eq!(
        client.create("/e-", mode::EPHEMERAL_SEQUENTIAL),
        Err(refused)
    );
    let create2 = client.create2(op::CREATE2, "/e", mode::EPHEMERAL);
    assert_eq!(create2.map(|_| ()), Err(refused));
    client.make("/local");
    let multi = Multi::new()
        .create("/local/a", mode::PERSISTENT)
        .create("/local/e", mode::EPHEMERAL)
        .create("/local/b", mode::PERSISTENT);
    assert_eq!(
        multi.call(&mut client).unwrap(),
        [
            Outcome::Error(0),
            Outcome::Error(refused),
            Outcome::Error(code::RUNTIME_INCONSISTENCY)
        ]
    );
    assert_eq!(client.children("/local"), Ok(vec![]));
    let multi = Multi::new().create("/local/a", mode::PERSISTENT);
    assert_eq!(
        multi.call(&mut client).unwrap(),
        [Outcome::Create("/local/a".to_owned())]
    );
    client.close();
}

#[test]
fn the_first_ephemeral_upgrades_a_session_in_its_place() {
    let Some(server) = Server::upgrading() else {
        return skipped("the_first_ephemeral_upgrades_a_session_in_its_place", WHY);
    };
    let mut client = server.client();
    client.make("/upgraded");
    client.get_watch("/upgraded").unwrap();
    // All in one go: nothing waits, and nothing changes its place.
    let ephemeral = |path: &str| record::create(path, None, &open_acl(), 1);
    let xids = [
        client.send(op::CREATE, ephemeral("/upgraded/e")),
        client.send(op::EXISTS, record::path_and_watch("/upgraded/e", false)),
        client.send(op::SET_DATA, record::set_data("/upgraded", None, 0)),
        client.send(op::GET_EPHEMERALS, Body::new().null()),
    ];
    let created = client.reply(xids[0]).read(Reader::string);
    assert_eq!(created.as_deref(), Ok("/upgraded/e"));
    let stat = client.reply(xids[1]).read(Reader::stat).unwrap();
    assert_eq!(stat.ephemeral_owner, client.welcome.session);
    client.events(&[(event::DATA, "/upgraded")]);
    assert!(client.reply(xids[2]).read(Reader::stat).is_ok());
    let mine = client.reply(xids[3]).read(Reader::strings);
    assert_eq!(mine, Ok(vec!["/upgraded/e".to_owned()]));

    // It comes back as any other, on any server.
    let hello = client.hello_again();
    let mut again = server.client_with(&hello);
    assert_eq!(again.welcome.session, hello.session);
    client.into_connection().closes();
    assert!(again.exists("/upgraded/e").is_ok());
    again.close();
    assert_eq!(server.client().exists("/upgraded/e"), Err(code::NO_NODE));
}

#[test]
fn a_multi_with_an_ephemeral_upgrades_too() {
    let Some(server) = Server::upgrading() else {
        return skipped("a_multi_with_an_ephemeral_upgrades_too", WHY);
    };
    let mut client = server.client();
    let multi = Multi::new()
        .create("/multi", mode::PERSISTENT)
        .create("/multi/e", mode::EPHEMERAL);
    let created = ["/multi", "/multi/e"].map(|path| Outcome::Create(path.to_owned()));
    assert_eq!(multi.call(&mut client).unwrap(), created);
    assert_eq!(client.ephemerals(None), ["/multi/e"]);
    client.close();
}

#[test]
fn a_local_session_comes_back_to_its_server_with_its_password() {
    let Some(server) = Server::local() else {
        let name = "a_local_session_comes_back_to_its_server_with_its_password";
        return skipped(name, WHY);
    };
    let mut client = server.client();
    client.make("/comes-back");
    assert!(gauge(server, "local_sessions") >= 1);
    let mut guess = client.hello_again();
    guess.password = Some(vec![7; 16]);
    let mut connection = server.connect();
    connection.send(&guess.frame());
    assert_eq!(connection.welcome(), Welcome::refused());
    connection.closes();
    client.ping();
    let again: Client = server.client_with(&client.hello_again());
    assert_eq!(again.welcome, client.welcome);
    client.into_connection().closes();
    let hello = again.hello_again();
    let closed = again.close();
    assert!(closed.zxid > 0, "as of any other request");
    let mut late = server.connect();
    late.send(&hello.frame());
    assert_eq!(late.welcome(), Welcome::refused());
}

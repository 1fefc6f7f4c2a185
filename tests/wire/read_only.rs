//! A server that has lost its quorum, in read-only mode (spec §9.5).

use crate::client::{Body, Client, Hello, Welcome, code, mode, op, open_acl, record};
use crate::eventually;
use crate::multi::Multi;
use crate::server::Server;

/// Local sessions, without which ZooKeeper refuses new clients: what is tested does not depend on
/// them here.
const CONFIG: &str = "\
tickTime=200
initLimit=50
syncLimit=5
maxSessionTimeout=60000
maxClientCnxns=0
4lw.commands.whitelist=srvr,mntr
readonlymode.enabled=true
localSessionsEnabled=true
localSessionsUpgradingEnabled=true
";

fn wants_to_read() -> Hello {
    Hello {
        read_only: Some(true),
        ..Hello::default()
    }
}

#[test]
fn s94_a_server_without_a_quorum_only_lets_read_who_asked_for_that() {
    let mut servers = Server::ensemble("read-only", CONFIG);
    let left = servers.pop().expect("three servers");
    assert_eq!(left.word("isro"), "rw");
    let mut writer = left.client();
    writer.make("/kept");
    writer.create("/kept/e", mode::EPHEMERAL).unwrap();
    let global = writer.hello_again();
    let reader = left.client_with(&wants_to_read());
    for server in servers {
        server.stop();
    }
    eventually("read-only mode", || left.word("isro") == "ro");
    reader.into_connection().closes();
    writer.into_connection().closes();

    let mut lines = left.word("srvr");
    lines = lines.split_off(lines.find('\n').expect("lines") + 1);
    assert!(lines.starts_with("READ-ONLY mode; serving only read-only clients\nLatency"));
    assert!(lines.contains("\nMode: read-only\n"), "{lines}");
    // Asked for only now: the ensemble may have written of its own after the client did.
    let zxid = lines.lines().find_map(|line| line.strip_prefix("Zxid: 0x"));
    let zxid = i64::from_str_radix(zxid.expect("a zxid"), 16).expect("a number");
    let mntr = left.word("mntr");
    assert!(mntr.contains("zk_server_state\tread-only\n"), "{mntr}");

    for read_only in [Some(false), None] {
        let hello = Hello {
            read_only,
            ..Hello::default()
        };
        let mut connection = left.connect();
        connection.send(&hello.frame());
        connection.closes();
    }
    let sees_the_future = Hello {
        last_zxid: zxid + (1 << 40),
        ..wants_to_read()
    };
    let of_the_ensemble = Hello {
        read_only: Some(true),
        ..global
    };
    for hello in [sees_the_future, of_the_ensemble] {
        let mut connection = left.connect();
        connection.send(&hello.frame());
        connection.closes();
    }

    let mut connection = left.connect();
    connection.send(&wants_to_read().frame());
    let frame = connection.frame();
    assert_eq!((frame.len(), frame[36]), (37, 1));
    let welcome = Welcome::parse(&frame);
    assert_eq!(
        (welcome.timeout_ms, welcome.read_only),
        (30_000, Some(true))
    );
    let mut reader = Client::of(connection, welcome);
    reader.get_watch("/kept").unwrap();
    assert_eq!(reader.children("/kept"), Ok(vec!["e".to_owned()]));
    assert!(reader.exists_watch("/none").is_err());
    reader.ping();
    assert_eq!(reader.auth("digest", b"u:p"), 0);
    assert_eq!(reader.who_am_i().len(), 2);
    let refusals = [
        (op::CREATE, record::create("/kept/n", None, &open_acl(), 0)),
        (op::CREATE2, record::create("/kept/n", None, &open_acl(), 0)),
        (op::DELETE, record::path_and_int("/kept/e", -1)),
        (op::SET_DATA, record::set_data("/kept", None, -1)),
        (
            op::SET_ACL,
            Body::new().string("/kept").acl(&open_acl()).int(-1),
        ),
        (op::SYNC, Body::new().string("/kept")),
        (op::CHECK, record::path_and_int("/kept", -1)),
        (op::MULTI, Multi::new().check("/kept", -1).into_body()),
    ];
    for (operation, body) in refusals {
        // The baseline says what it says of unknown opcodes (s14), and closes; §9.5 does not.
        if operation == op::CHECK && left.is_zookeeper() && !left.is_zookeeper_38() {
            continue;
        }
        let reply = reader.call(operation, body);
        assert_eq!(reply.done(), Err(code::NOT_READ_ONLY), "{operation}");
        assert_eq!(reply.zxid, zxid, "of what is here");
    }
    let multi = Multi::read().get("/kept", false).call(&mut reader);
    assert_eq!(multi.map(|outcomes| outcomes.len()), Ok(1), "it is a read");
    reader.close();
    left.stop();
}

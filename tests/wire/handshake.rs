//! The first frames of a connection, and what is no frame at all (spec §1.2 to §1.4, §2.1 to §2.8).

use std::time::Duration;

use crate::client::{Body, Client, Hello, Welcome, mode, op, open_acl, record};
use crate::server::{Program, Server};

#[test]
fn s01_the_read_only_byte_is_answered_if_it_was_sent() {
    let server = Server::plain();
    for (read_only, request, response) in [(None, 44, 36), (Some(false), 45, 37)] {
        let hello = Hello {
            read_only,
            ..Hello::default()
        };
        assert_eq!(hello.frame().len(), 4 + request);
        let mut connection = server.connect();
        connection.send(&hello.frame());
        let frame = connection.frame();
        assert_eq!(frame.len(), response);
        // A server that can write never claims to be read-only.
        assert_eq!(Welcome::parse(&frame).read_only, read_only);
    }
}

#[test]
fn s01_a_client_that_would_accept_a_read_only_server_gets_a_writable_one() {
    let server = Server::plain();
    let mut connection = server.connect();
    connection.send(
        &Hello {
            read_only: Some(true),
            ..Hello::default()
        }
        .frame(),
    );
    assert_eq!(connection.welcome().read_only, Some(false));
}

#[test]
fn s01_any_non_zero_read_only_byte_counts_as_the_byte() {
    let mut connection = Server::plain().connect();
    let mut frame = Hello::default().frame();
    *frame.last_mut().unwrap() = 0x7f;
    connection.send(&frame);
    assert_eq!(connection.frame().len(), 37);
}

#[test]
fn s02_the_timeout_is_clamped_to_2_and_20_ticks() {
    let server = Server::plain();
    let asked_and_given = [
        (1, 4000),
        (0, 4000),
        (-5, 4000),
        (4001, 4001),
        (39_999, 39_999),
        (1_000_000, 40_000),
    ];
    for (timeout_ms, expected) in asked_and_given {
        let client = server.client_with(&Hello {
            timeout_ms,
            ..Hello::default()
        });
        assert_eq!(
            client.welcome.timeout_ms, expected,
            "asked for {timeout_ms}"
        );
    }
}

#[test]
fn s03_any_password_will_do_for_a_new_session() {
    let server = Server::plain();
    for password in [None, Some(vec![]), Some(vec![1, 2, 3]), Some(vec![7; 40])] {
        // Welcome::parse checks that 16 bytes come back.
        let client = server.client_with(&Hello {
            password,
            ..Hello::default()
        });
        assert_ne!(client.welcome.password, [0; 16]);
    }
}

#[test]
fn s03_sessions_differ_in_id_and_password() {
    let server = Server::plain();
    let (one, two) = (server.client(), server.client());
    assert_ne!(one.welcome.session, two.welcome.session);
    assert_ne!(one.welcome.password, two.welcome.password);
    // Neither "no session" nor the marker of containers (spec §2.3).
    for id in [one.welcome.session, two.welcome.session] {
        assert!(id != 0 && id != i64::MIN);
    }
}

#[test]
fn s04_a_client_that_has_seen_the_future_is_turned_away_without_a_word() {
    let server = Server::plain();
    let seen = server.client().ping().zxid;
    let mut connection = server.connect();
    connection.send(
        &Hello {
            last_zxid: seen + (1 << 40),
            ..Hello::default()
        }
        .frame(),
    );
    connection.closes();

    // What the server has applied itself is no future.
    server.client_with(&Hello {
        last_zxid: seen,
        ..Hello::default()
    });
}

#[test]
fn s04_the_future_closes_the_door_to_a_renewal_too() {
    let server = Server::plain();
    let mut client = server.client();
    let seen = client.ping().zxid;
    let mut connection = server.connect();
    connection.send(
        &Hello {
            last_zxid: seen + (1 << 40),
            ..client.hello_again()
        }
        .frame(),
    );
    connection.closes();
    // The session did not move.
    client.exists("/").unwrap();
}

#[test]
fn s05_an_unknown_session_is_refused() {
    let server = Server::plain();
    for read_only in [Some(false), None] {
        let hello = Hello {
            session: 0x0123_4567_89ab_cdef,
            read_only,
            ..Hello::default()
        };
        let mut connection = server.connect();
        connection.send(&hello.frame());
        assert_eq!(
            connection.welcome(),
            Welcome {
                read_only,
                ..Welcome::refused()
            }
        );
        connection.closes();
    }
}

#[test]
fn s05_a_closed_session_is_refused() {
    let server = Server::plain();
    let client = server.client();
    let hello = client.hello_again();
    client.close();
    let mut connection = server.connect();
    connection.send(&hello.frame());
    assert_eq!(connection.welcome(), Welcome::refused());
    connection.closes();
}

#[test]
fn s06_a_wrong_password_is_refused_and_the_session_survives() {
    let server = Server::plain();
    let mut owner = server.client();
    let path = owner.create("/s06", mode::EPHEMERAL).unwrap();

    for password in [
        Some(vec![0; 16]),
        Some(vec![]),
        None,
        Some(owner.welcome.password[1..].into()),
    ] {
        let mut intruder = server.connect();
        intruder.send(
            &Hello {
                password,
                ..owner.hello_again()
            }
            .frame(),
        );
        assert_eq!(intruder.welcome(), Welcome::refused());
        intruder.closes();

        if server.is_zookeeper() {
            let hello = owner.hello_again();
            owner.into_connection().closes();
            owner = server.client_with(&hello);
        }
        // Deliberate difference 1: zkraft leaves the owner's connection alone.
        assert_eq!(
            owner.exists(&path).unwrap().ephemeral_owner,
            owner.welcome.session
        );
    }
}

#[test]
fn s07_a_renewal_closes_the_older_connection() {
    let server = Server::plain();
    let mut first = server.client();
    let path = first.create("/s07", mode::EPHEMERAL).unwrap();

    let mut second = server.client_with(&first.hello_again());
    assert_eq!(second.welcome, first.welcome);
    first.into_connection().closes();
    assert_eq!(
        second.exists(&path).unwrap().ephemeral_owner,
        second.welcome.session
    );
}

#[test]
fn s07_a_session_can_be_renewed_again_and_again() {
    let server = Server::plain();
    let mut client = server.client();
    for _ in 0..5 {
        let hello = client.hello_again();
        client.vanish();
        client = server.client_with(&hello);
        assert_eq!(client.welcome.session, hello.session);
    }
}

#[test]
fn s08_a_renewal_negotiates_the_timeout_anew() {
    let server = Server::plain();
    let first = server.client_with(&Hello {
        timeout_ms: 10_000,
        ..Hello::default()
    });
    for (timeout_ms, expected) in [(20_000, 20_000), (1, 4000), (i32::MAX, 40_000)] {
        let client = server.client_with(&Hello {
            timeout_ms,
            ..first.hello_again()
        });
        assert_eq!(client.welcome.timeout_ms, expected);
        assert_eq!(client.welcome.password, first.welcome.password);
        client.vanish();
    }
    // The connection went with the first renewal.
    first.vanish();
}

#[test]
fn s11_a_frame_length_that_cannot_be_closes_the_connection() {
    let server = Server::plain();
    for length in [-1, i32::MIN, 0, 1, 4, 7, 1_048_576, i32::MAX] {
        let client = server.client();
        let hello = client.hello_again();
        let mut connection = client.into_connection();
        connection.send(&length.to_be_bytes());
        if (1..8).contains(&length) {
            connection.send_unheeded(&vec![0; length as usize]);
        }
        connection.closes();
        // The session is not concerned.
        server.client_with(&hello);
    }
}

#[test]
fn s11_the_largest_frame_is_accepted() {
    let server = Server::plain();
    let mut client = server.client();
    let path = "/s11";
    let envelope = record::create(path, Some(b""), &open_acl(), 0)
        .into_bytes()
        .len();
    let data = vec![b'z'; 1_048_575 - 8 - envelope];
    assert_eq!(
        client
            .create_with(path, Some(&data), &open_acl(), 0)
            .as_deref(),
        Ok(path)
    );
    let (read, stat) = client.get(path).unwrap();
    assert_eq!(stat.data_length as usize, data.len());
    assert!(read.unwrap() == data, "the data comes back unchanged");
    client.delete(path, -1).unwrap();
}

#[test]
fn s12_what_is_neither_a_frame_nor_a_word_gets_no_answer() {
    let server = Server::plain();
    for nonsense in [
        &b"abcd"[..],
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"RUOK",
        b"\xff\xff\xff\xff",
    ] {
        let mut connection = server.connect();
        connection.send_unheeded(nonsense);
        connection.closes();
    }
}

#[test]
fn requests_behind_the_connect_request_wait_for_the_session() {
    let server = Server::plain();
    let mut bytes = Hello::default().frame();
    let create = record::create("/pipelined", Some(b"p"), &open_acl(), mode::EPHEMERAL);
    for (xid, operation, body) in [
        (1, op::CREATE, create),
        (2, op::GET_DATA, record::path_and_watch("/pipelined", false)),
        (-2, op::PING, Body::new()),
        (3, op::CLOSE_SESSION, Body::new()),
    ] {
        bytes.extend(
            Body::new()
                .int(xid)
                .int(operation)
                .raw(&body.into_bytes())
                .into_frame(),
        );
    }
    let mut connection = server.connect();
    connection.send(&bytes);

    let session = connection.welcome().session;
    let replies: Vec<Vec<u8>> = (0..4).map(|_| connection.frame()).collect();
    let xids: Vec<i32> = replies.iter().map(|reply| be_int(&reply[..4])).collect();
    let errors: Vec<i32> = replies.iter().map(|reply| be_int(&reply[12..16])).collect();
    assert_eq!((xids, errors), (vec![1, 2, -2, 3], vec![0; 4]));
    // Header, data, then the Stat with the owner 44 bytes into it.
    let owner = i64::from_be_bytes(replies[1][16 + 5 + 44..][..8].try_into().unwrap());
    assert_eq!(owner, session);
    connection.closes();
}

#[test]
fn bytes_may_arrive_one_at_a_time() {
    let server = Server::plain();
    let mut bytes = Hello::default().frame();
    let exists = record::path_and_watch("/", false).into_bytes();
    bytes.extend(Body::new().int(1).int(op::EXISTS).raw(&exists).into_frame());
    bytes.extend(Body::new().int(2).int(op::CLOSE_SESSION).into_frame());

    let mut connection = server.connect();
    for byte in bytes {
        connection.send(&[byte]);
        // Long enough for the segment to leave and be read alone; a shorter one only weakens the
        // test.
        std::thread::sleep(Duration::from_millis(1));
    }
    connection.welcome();
    assert_eq!(connection.frame().len(), 16 + 68);
    assert_eq!(connection.frame().len(), 16);
    connection.closes();
}

#[test]
fn frames_may_be_split_anywhere() {
    let server = Server::plain();
    let exists = record::path_and_watch("/", false).into_bytes();
    let one = Body::new().int(1).int(op::EXISTS).raw(&exists).into_frame();
    let both = [&one[..], &one[..]].concat();
    let mut connection = server.client().into_connection();
    for split in 1..both.len() {
        connection.send(&both[..split]);
        std::thread::sleep(Duration::from_millis(1));
        connection.send(&both[split..]);
        for _ in 0..2 {
            assert_eq!(connection.frame().len(), 16 + 68, "split at {split}");
        }
    }
}

#[test]
fn the_protocol_version_of_the_request_is_ignored() {
    let mut connection = Server::plain().connect();
    let mut frame = Hello::default().frame();
    frame[4..8].copy_from_slice(&7_i32.to_be_bytes());
    connection.send(&frame);
    // Welcome::parse checks that the server answers with version 0.
    assert_ne!(connection.welcome().session, 0);
}

#[test]
fn the_61st_connection_from_one_address_is_closed() {
    let (server, _turn) = Server::alone();
    let clients: Vec<Client> = (0..60).map(|_| server.client()).collect();
    server.connect().closes();
    drop(clients);
}

/// ZooKeeper refuses the word too, and a probe takes the server for dead.
#[test]
fn a_server_that_is_full_still_answers_a_word_to_this_machine() {
    let server = Server::start(Program::Zkraft, "full", "maxCnxns=2\n");
    let clients: Vec<Client> = (0..2).map(|_| server.client()).collect();
    assert!(server.word("srvr").starts_with("Zookeeper version: "));
    let mut third = server.connect();
    third.send(&Hello::default().frame());
    third.closes();
    // Eight have a place; those before may not have given theirs back yet.
    let idle: Vec<_> = (0..10).map(|_| server.connect()).collect();
    server.connect().closes();
    drop((clients, idle));
}

fn be_int(bytes: &[u8]) -> i32 {
    i32::from_be_bytes(bytes.try_into().expect("four bytes"))
}

//! The handshake: its record, and what a server makes of one.

use bytes::{Bytes, BytesMut};
use zkraft::wire::{ConnectRequest, SessionId, Zxid};

use super::server::{PASSWORD, Server};

/// Input: the first frame of a connection, without its length.
pub fn run(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    let decoded = ConnectRequest::decode(frame.clone());
    if let Ok(request) = &decoded {
        let mut again = BytesMut::new();
        request.encode(&mut again);
        assert_eq!(ConnectRequest::decode(again.freeze()).as_ref(), Ok(request));
    }

    // A session is there that could be taken over: the first of the server.
    let mut server = Server::new(0);
    let mut clients = [server.client(), server.client()];
    clients[0].send(&handshake(0, &PASSWORD, None));
    server.settle(&mut clients);
    let held = clients[0].session.clone().expect("a session is given");

    clients[1].send(&frame);
    server.settle(&mut clients);
    // A client that has seen more than there is waits half a second, then is closed.
    server.pass(20);
    server.settle(&mut clients);
    let [owner, other] = clients;
    match (&decoded, &other.session) {
        (Err(_), given) => assert!(other.is_closed && given.is_none()),
        (Ok(request), None) => assert!(
            other.is_closed && (request.session.0 != 0 || request.last_zxid_seen > Zxid(0)),
            "nothing speaks against {request:?}"
        ),
        (Ok(request), Some(given)) if request.session == held.session => {
            assert_eq!(request.password.as_ref(), held.password);
            assert_eq!(given.session, held.session);
        }
        (Ok(request), Some(given)) => {
            assert_eq!(request.session, SessionId(0), "no other session exists");
            assert_ne!(given.session, held.session);
        }
    }
    let is_taken = other
        .session
        .is_some_and(|given| given.session == held.session);
    assert_eq!(
        owner.is_closed, is_taken,
        "only who takes a session over ends a connection"
    );
    server.audit();
}

/// A frame, without its length.
pub fn handshake(session: i64, password: &[u8], read_only: Option<bool>) -> Vec<u8> {
    let request = ConnectRequest {
        last_zxid_seen: Zxid(0),
        timeout_ms: 4_000,
        session: SessionId(session),
        password: Bytes::copy_from_slice(password),
        read_only,
    };
    let mut frame = BytesMut::new();
    request.encode(&mut frame);
    frame.to_vec()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let ahead = {
        let mut frame = handshake(0, &PASSWORD, Some(false));
        frame[4..12].copy_from_slice(&i64::MAX.to_be_bytes());
        frame
    };
    // The first session of the first start of server 1.
    let first = 0x0100_0001_0000_0000;
    vec![
        handshake(0, &[0; 16], Some(false)),
        handshake(0, b"", None),
        handshake(first, &PASSWORD, Some(true)),
        handshake(first, &[0; 16], Some(false)),
        handshake(77, &PASSWORD, None),
        ahead,
        vec![0; 30],
    ]
}

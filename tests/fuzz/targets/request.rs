//! Requests: what is decoded means the same once it is encoded again.

use bytes::{Bytes, BytesMut};
use zkraft::wire::request::{Create, Reconfig, SetWatches};
use zkraft::wire::{Acl, Request, SubRequest, Zxid, op};

use super::input::Input;

/// Every opcode that has a body, and some that have none. An input names one by its place, or by
/// 255 any number at all.
pub const OPCODES: &[i32] = &[
    op::CREATE,
    op::DELETE,
    op::EXISTS,
    op::GET_DATA,
    op::SET_DATA,
    op::GET_ACL,
    op::SET_ACL,
    op::GET_CHILDREN,
    op::SYNC,
    op::PING,
    op::GET_CHILDREN2,
    op::CHECK,
    op::MULTI,
    op::CREATE2,
    op::RECONFIG,
    op::CHECK_WATCHES,
    op::REMOVE_WATCHES,
    op::CREATE_CONTAINER,
    op::DELETE_CONTAINER,
    op::CREATE_TTL,
    op::MULTI_READ,
    op::AUTH,
    op::SET_WATCHES,
    op::SASL,
    op::GET_EPHEMERALS,
    op::GET_ALL_CHILDREN_NUMBER,
    op::SET_WATCHES2,
    op::ADD_WATCH,
    op::WHO_AM_I,
    op::CREATE_SESSION,
    op::CLOSE_SESSION,
];

pub fn opcode(input: &mut Input<'_>) -> i32 {
    match input.byte() {
        255 => input.int(),
        place => OPCODES[usize::from(place) % OPCODES.len()],
    }
}

/// Input: an opcode, then a body.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let opcode = opcode(&mut input);
    survives(opcode, Bytes::copy_from_slice(input.0));
}

/// Decodes a body, encodes what came out, and decodes that.
pub fn survives(opcode: i32, body: Bytes) -> Option<Request> {
    let length = body.len();
    let request = Request::decode(opcode, body).ok()?;
    assert_eq!(request.opcode(), opcode);
    let mut again = BytesMut::new();
    request.encode(&mut again);
    // A replacement character is three bytes for one; a null string becomes an empty one; and a
    // multi may end without the error code in its last header being looked at.
    assert!(again.len() <= 3 * length + 16, "{request:?}");
    let decoded = Request::decode(opcode, again.freeze());
    assert_eq!(decoded.as_ref(), Ok(&request));
    Some(request)
}

/// An opcode and a body as an input names them.
pub fn encoded(request: &Request) -> Vec<u8> {
    let opcode = request.opcode();
    let mut out = BytesMut::new();
    match OPCODES.iter().position(|known| *known == opcode) {
        Some(place) => out.extend_from_slice(&[place as u8]),
        None => {
            out.extend_from_slice(&[255]);
            out.extend_from_slice(&opcode.to_be_bytes());
        }
    }
    request.encode(&mut out);
    out.to_vec()
}

pub fn create(opcode: i32, path: &str, flags: i32) -> Create {
    Create {
        opcode,
        path: path.into(),
        data: Some(Bytes::from_static(b"data")),
        acl: Some(vec![Acl::open()]),
        flags,
        ttl: (opcode == op::CREATE_TTL).then_some(1_000),
    }
}

/// One of each.
pub fn samples() -> Vec<Request> {
    let path = || "/a".into();
    let set_watches = SetWatches {
        relative_zxid: Zxid(1),
        data: vec![path()],
        exist: vec!["/none".into()],
        child: vec![path(), "/".into()],
        persistent: None,
    };
    vec![
        Request::Create(create(op::CREATE, "/a", 0)),
        Request::Create(create(op::CREATE, "/a/e", 1)),
        Request::Create(create(op::CREATE2, "/a/s", 3)),
        Request::Create(create(op::CREATE_CONTAINER, "/c", 4)),
        Request::Create(create(op::CREATE_TTL, "/t", 5)),
        Request::Delete {
            path: path(),
            version: -1,
        },
        Request::Exists {
            path: "/none".into(),
            watch: true,
        },
        Request::GetData {
            path: path(),
            watch: true,
        },
        Request::SetData {
            path: path(),
            data: None,
            version: 0,
        },
        Request::GetAcl { path: path() },
        Request::SetAcl {
            path: path(),
            acl: Some(vec![Acl::open()]),
            version: -1,
        },
        Request::GetChildren {
            path: "/".into(),
            watch: true,
            with_stat: false,
        },
        Request::GetChildren {
            path: path(),
            watch: false,
            with_stat: true,
        },
        Request::Sync { path: Some(path()) },
        Request::Ping,
        Request::Multi(vec![
            SubRequest::Create(create(op::CREATE, "/a/m", 0)),
            SubRequest::Check {
                path: path(),
                version: 0,
            },
            SubRequest::SetData {
                path: path(),
                data: Some(Bytes::from_static(b"new")),
                version: -1,
            },
            SubRequest::Delete {
                path: "/a/m".into(),
                version: 0,
            },
        ]),
        Request::MultiRead(vec![
            SubRequest::GetData { path: path() },
            SubRequest::GetChildren { path: "/".into() },
        ]),
        Request::Reconfig(Reconfig {
            joining: Some("server.2=h:1:2".into()),
            leaving: None,
            members: None,
            version: -1,
        }),
        Request::CheckWatches {
            path: path(),
            kind: 1,
        },
        Request::RemoveWatches {
            path: path(),
            kind: 3,
        },
        Request::Auth {
            scheme: "digest".into(),
            auth: Bytes::from_static(b"user:password"),
        },
        Request::SetWatches(set_watches.clone()),
        Request::SetWatches(SetWatches {
            persistent: Some([vec![path()], vec!["/".into()]]),
            ..set_watches
        }),
        Request::Sasl { token: None },
        Request::GetEphemerals {
            prefix: Some("/".into()),
        },
        Request::GetAllChildrenNumber { path: "/".into() },
        Request::AddWatch {
            path: path(),
            mode: 1,
        },
        Request::WhoAmI,
        Request::Unknown(op::CREATE_SESSION),
        Request::Unknown(-77),
        Request::CloseSession,
    ]
}

pub fn seeds() -> Vec<Vec<u8>> {
    samples().iter().map(encoded).collect()
}

//! Requests of clients: body bytes ↔ values, by opcode (§3.1, §3.2, §4.1).

use bytes::{Bytes, BytesMut};

use super::code::{CreateMode, op};
use super::jute::{DecodeError, Reader, Text, Writer};
use super::record::{Acl, Zxid};

/// A decoded request. Requests without a body and session control are told by their opcode.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    Create(Create),
    Delete {
        path: Text,
        version: i32,
    },
    Exists {
        path: Text,
        watch: bool,
    },
    GetData {
        path: Text,
        watch: bool,
    },
    SetData {
        path: Text,
        data: Option<Bytes>,
        version: i32,
    },
    GetAcl {
        path: Text,
    },
    SetAcl {
        path: Text,
        acl: Option<Vec<Acl>>,
        version: i32,
    },
    GetChildren {
        path: Text,
        watch: bool,
        with_stat: bool,
    },
    /// The path is only echoed, null included (§3.3).
    Sync {
        path: Option<Text>,
    },
    Ping,
    Multi(Vec<SubRequest>),
    MultiRead(Vec<SubRequest>),
    Reconfig(Reconfig),
    CheckWatches {
        path: Text,
        kind: i32,
    },
    RemoveWatches {
        path: Text,
        kind: i32,
    },
    Auth {
        scheme: Text,
        auth: Bytes,
    },
    SetWatches(SetWatches),
    Sasl {
        token: Option<Bytes>,
    },
    GetEphemerals {
        prefix: Option<Text>,
    },
    GetAllChildrenNumber {
        path: Text,
    },
    AddWatch {
        path: Text,
        mode: i32,
    },
    WhoAmI,
    CloseSession,
    /// An opcode that no client may send, or that nobody knows: answered as unimplemented.
    Unknown(i32),
}

/// The create family (opcodes 1, 15, 19, 21).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Create {
    /// Which of the four opcodes asked: it decides the kind of znode outside of a multi (§3.6),
    /// and whether the answer has a Stat.
    pub opcode: i32,
    pub path: Text,
    pub data: Option<Bytes>,
    pub acl: Option<Vec<Acl>>,
    pub flags: i32,
    /// In ms. Only with opcode 21.
    pub ttl: Option<i64>,
}

/// A change of membership (§12.5). All strings may be null.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reconfig {
    pub joining: Option<Text>,
    pub leaving: Option<Text>,
    pub members: Option<Text>,
    pub version: i64,
}

/// Watches of a client that came back (§6.6), both opcodes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SetWatches {
    pub relative_zxid: Zxid,
    pub data: Vec<Text>,
    pub exist: Vec<Text>,
    pub child: Vec<Text>,
    /// `None` with opcode 101, which does not have the last two lists.
    pub persistent: Option<[Vec<Text>; 2]>,
}

/// One operation of a multi (§4.1) or multiRead (§4.4).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SubRequest {
    Create(Create),
    Delete {
        path: Text,
        version: i32,
    },
    SetData {
        path: Text,
        data: Option<Bytes>,
        version: i32,
    },
    Check {
        path: Text,
        version: i32,
    },
    GetData {
        path: Text,
    },
    GetChildren {
        path: Text,
    },
}

/// The path and the watch flag of an `exists`, `getData` or `getChildren`, where they lie.
/// `None` for anything that [`Request::decode`] would refuse or repair.
pub fn path_and_watch(body: &[u8]) -> Option<(&str, bool)> {
    let path = path_at_start(body)?;
    let watch = *body.get(4 + path.len())? != 0;
    Some((path, watch))
}

/// The path that the body of a request for one znode begins with.
pub fn path_at_start(body: &[u8]) -> Option<&str> {
    let length = usize::try_from(int_at(body, 0)?).ok()?;
    std::str::from_utf8(body.get(4..4 + length)?).ok()
}

/// The number that stands at an offset.
pub fn int_at(bytes: &[u8], at: usize) -> Option<i32> {
    let number = bytes.get(at..at + 4)?.first_chunk()?;
    Some(i32::from_be_bytes(*number))
}

impl Request {
    /// Decodes the body of a request with this opcode. Bytes after the record are ignored (§1.1).
    pub fn decode(opcode: i32, body: Bytes) -> Result<Self, DecodeError> {
        let r = &mut Reader::new(body);
        Ok(match opcode {
            op::CREATE | op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL => {
                Self::Create(Create::decode(opcode, r)?)
            }
            op::DELETE => Self::Delete {
                path: r.required_text()?,
                version: r.int()?,
            },
            op::EXISTS => Self::Exists {
                path: r.required_text()?,
                watch: r.boolean()?,
            },
            op::GET_DATA => Self::GetData {
                path: r.required_text()?,
                watch: r.boolean()?,
            },
            op::SET_DATA => Self::SetData {
                // Null is judged like any path that is not valid (§5.4).
                path: r.text()?.unwrap_or_default(),
                data: r.buffer()?,
                version: r.int()?,
            },
            op::GET_ACL => Self::GetAcl {
                path: r.required_text()?,
            },
            op::SET_ACL => Self::SetAcl {
                path: r.text()?.unwrap_or_default(),
                acl: r.vector(Acl::decode)?,
                version: r.int()?,
            },
            op::GET_CHILDREN | op::GET_CHILDREN2 => Self::GetChildren {
                path: r.required_text()?,
                watch: r.boolean()?,
                with_stat: opcode == op::GET_CHILDREN2,
            },
            op::SYNC => Self::Sync { path: r.text()? },
            op::PING => Self::Ping,
            op::MULTI => Self::Multi(decode_multi(r, SubRequest::decode_write)?),
            op::MULTI_READ => Self::MultiRead(decode_multi(r, SubRequest::decode_read)?),
            op::RECONFIG => Self::Reconfig(Reconfig {
                joining: r.text()?,
                leaving: r.text()?,
                members: r.text()?,
                version: r.long()?,
            }),
            op::CHECK_WATCHES => Self::CheckWatches {
                path: r.required_text()?,
                kind: r.int()?,
            },
            op::REMOVE_WATCHES => Self::RemoveWatches {
                path: r.required_text()?,
                kind: r.int()?,
            },
            op::AUTH => {
                let _type = r.int()?;
                let scheme = r.required_text()?;
                Self::Auth {
                    scheme,
                    auth: r.buffer()?.unwrap_or_default(),
                }
            }
            op::SET_WATCHES | op::SET_WATCHES2 => {
                Self::SetWatches(SetWatches::decode(r, opcode == op::SET_WATCHES2)?)
            }
            op::SASL => Self::Sasl { token: r.buffer()? },
            op::GET_EPHEMERALS => Self::GetEphemerals { prefix: r.text()? },
            op::GET_ALL_CHILDREN_NUMBER => Self::GetAllChildrenNumber {
                path: r.required_text()?,
            },
            op::ADD_WATCH => Self::AddWatch {
                path: r.required_text()?,
                mode: r.int()?,
            },
            op::WHO_AM_I => Self::WhoAmI,
            op::CLOSE_SESSION => Self::CloseSession,
            unknown => Self::Unknown(unknown),
        })
    }

    /// The opcode that asks for this.
    pub fn opcode(&self) -> i32 {
        match self {
            Self::Create(create) => create.opcode,
            Self::Delete { .. } => op::DELETE,
            Self::Exists { .. } => op::EXISTS,
            Self::GetData { .. } => op::GET_DATA,
            Self::SetData { .. } => op::SET_DATA,
            Self::GetAcl { .. } => op::GET_ACL,
            Self::SetAcl { .. } => op::SET_ACL,
            Self::GetChildren {
                with_stat: false, ..
            } => op::GET_CHILDREN,
            Self::GetChildren {
                with_stat: true, ..
            } => op::GET_CHILDREN2,
            Self::Sync { .. } => op::SYNC,
            Self::Ping => op::PING,
            Self::Multi(_) => op::MULTI,
            Self::MultiRead(_) => op::MULTI_READ,
            Self::Reconfig(_) => op::RECONFIG,
            Self::CheckWatches { .. } => op::CHECK_WATCHES,
            Self::RemoveWatches { .. } => op::REMOVE_WATCHES,
            Self::Auth { .. } => op::AUTH,
            Self::SetWatches(SetWatches {
                persistent: None, ..
            }) => op::SET_WATCHES,
            Self::SetWatches(_) => op::SET_WATCHES2,
            Self::Sasl { .. } => op::SASL,
            Self::GetEphemerals { .. } => op::GET_EPHEMERALS,
            Self::GetAllChildrenNumber { .. } => op::GET_ALL_CHILDREN_NUMBER,
            Self::AddWatch { .. } => op::ADD_WATCH,
            Self::WhoAmI => op::WHO_AM_I,
            Self::CloseSession => op::CLOSE_SESSION,
            Self::Unknown(opcode) => *opcode,
        }
    }

    /// Appends the body, without the request header.
    pub fn encode(&self, out: &mut BytesMut) {
        let w = &mut Writer::new(out);
        match self {
            Self::Create(create) => create.encode(w),
            Self::Delete { path, version } => {
                w.text(path);
                w.int(*version);
            }
            Self::Exists { path, watch }
            | Self::GetData { path, watch }
            | Self::GetChildren { path, watch, .. } => {
                w.text(path);
                w.boolean(*watch);
            }
            Self::SetData {
                path,
                data,
                version,
            } => {
                w.text(path);
                w.buffer(data.as_deref());
                w.int(*version);
            }
            Self::GetAcl { path } | Self::GetAllChildrenNumber { path } => w.text(path),
            Self::SetAcl { path, acl, version } => {
                w.text(path);
                encode_acl(acl.as_deref(), w);
                w.int(*version);
            }
            Self::Sync { path } => encode_text(path.as_ref(), w),
            Self::Ping | Self::WhoAmI | Self::CloseSession | Self::Unknown(_) => {}
            Self::Multi(operations) | Self::MultiRead(operations) => {
                for operation in operations {
                    encode_multi_header(operation.opcode(), false, w);
                    operation.encode(w);
                }
                encode_multi_header(-1, true, w);
            }
            Self::Reconfig(Reconfig {
                joining,
                leaving,
                members,
                version,
            }) => {
                encode_text(joining.as_ref(), w);
                encode_text(leaving.as_ref(), w);
                encode_text(members.as_ref(), w);
                w.long(*version);
            }
            Self::CheckWatches { path, kind } | Self::RemoveWatches { path, kind } => {
                w.text(path);
                w.int(*kind);
            }
            Self::Auth { scheme, auth } => {
                w.int(0);
                w.text(scheme);
                w.buffer(Some(auth));
            }
            Self::SetWatches(watches) => watches.encode(w),
            Self::Sasl { token } => w.buffer(token.as_deref()),
            Self::GetEphemerals { prefix } => encode_text(prefix.as_ref(), w),
            Self::AddWatch { path, mode } => {
                w.text(path);
                w.int(*mode);
            }
        }
    }
}

impl Create {
    fn decode(opcode: i32, r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            opcode,
            path: r.required_text()?,
            data: r.buffer()?,
            acl: r.vector(Acl::decode)?,
            flags: r.int()?,
            ttl: (opcode == op::CREATE_TTL).then(|| r.long()).transpose()?,
        })
    }

    fn encode(&self, w: &mut Writer<'_>) {
        w.text(&self.path);
        w.buffer(self.data.as_deref());
        encode_acl(self.acl.as_deref(), w);
        w.int(self.flags);
        if let Some(ttl) = self.ttl {
            w.long(ttl);
        }
    }

    /// Whether the answer carries a Stat (§3.6).
    pub fn answers_stat(&self) -> bool {
        self.opcode != op::CREATE
    }
}

impl SetWatches {
    fn decode(r: &mut Reader, with_persistent: bool) -> Result<Self, DecodeError> {
        let paths = |r: &mut Reader| r.vector(Reader::required_text)?.ok_or(DecodeError::Null);
        Ok(Self {
            relative_zxid: Zxid(r.long()?),
            data: paths(r)?,
            exist: paths(r)?,
            child: paths(r)?,
            persistent: if with_persistent {
                Some([paths(r)?, paths(r)?])
            } else {
                None
            },
        })
    }

    fn encode(&self, w: &mut Writer<'_>) {
        w.long(self.relative_zxid.0);
        let lists = [&self.data, &self.exist, &self.child];
        for list in lists.into_iter().chain(self.persistent.iter().flatten()) {
            w.count(list.len());
            list.iter().for_each(|path| w.text(path));
        }
    }
}

impl SubRequest {
    /// The opcode that stands for this in a request.
    pub fn opcode(&self) -> i32 {
        match self {
            Self::Create(create) => create.opcode,
            Self::Delete { .. } => op::DELETE,
            Self::SetData { .. } => op::SET_DATA,
            Self::Check { .. } => op::CHECK,
            Self::GetData { .. } => op::GET_DATA,
            Self::GetChildren { .. } => op::GET_CHILDREN,
        }
    }

    fn decode_write(opcode: i32, r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match opcode {
            op::CREATE | op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL => {
                let create = Create::decode(opcode, r)?;
                // In a multi these fail the request as a whole, not one operation (§4.1, s98);
                // only createTTL leaves unknown flags to the operation.
                match CreateMode::from_flags(create.flags) {
                    None if opcode != op::CREATE_TTL => {
                        return Err(DecodeError::Value(create.flags));
                    }
                    Some(mode) if mode.is_ttl() && create.ttl.is_none() => {
                        return Err(DecodeError::Value(create.flags));
                    }
                    _ => {}
                }
                if create.acl.is_none() {
                    return Err(DecodeError::Null);
                }
                Self::Create(create)
            }
            op::DELETE => Self::Delete {
                path: r.required_text()?,
                version: r.int()?,
            },
            op::SET_DATA => Self::SetData {
                path: r.required_text()?,
                data: r.buffer()?,
                version: r.int()?,
            },
            op::CHECK => Self::Check {
                path: r.required_text()?,
                version: r.int()?,
            },
            other => return Err(DecodeError::Opcode(other)),
        })
    }

    fn decode_read(opcode: i32, r: &mut Reader) -> Result<Self, DecodeError> {
        let sub = match opcode {
            op::GET_DATA => Self::GetData {
                path: r.required_text()?,
            },
            op::GET_CHILDREN => Self::GetChildren {
                path: r.required_text()?,
            },
            other => return Err(DecodeError::Opcode(other)),
        };
        let _watch_is_ignored = r.boolean()?;
        Ok(sub)
    }

    fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Create(create) => create.encode(w),
            Self::Delete { path, version } | Self::Check { path, version } => {
                w.text(path);
                w.int(*version);
            }
            Self::SetData {
                path,
                data,
                version,
            } => {
                w.text(path);
                w.buffer(data.as_deref());
                w.int(*version);
            }
            Self::GetData { path } | Self::GetChildren { path } => {
                w.text(path);
                w.boolean(false);
            }
        }
    }
}

fn decode_multi(
    r: &mut Reader,
    operation: impl Fn(i32, &mut Reader) -> Result<SubRequest, DecodeError>,
) -> Result<Vec<SubRequest>, DecodeError> {
    let mut operations = Vec::new();
    loop {
        let opcode = r.int()?;
        let done = r.boolean()?;
        let _error = r.int()?;
        if done {
            return Ok(operations);
        }
        operations.push(operation(opcode, r)?);
    }
}

fn encode_multi_header(opcode: i32, done: bool, w: &mut Writer<'_>) {
    w.int(opcode);
    w.boolean(done);
    w.int(-1);
}

fn encode_text(text: Option<&Text>, w: &mut Writer<'_>) {
    w.buffer(text.map(|text| text.as_bytes().as_ref()));
}

fn encode_acl(acl: Option<&[Acl]>, w: &mut Writer<'_>) {
    match acl {
        None => w.int(-1),
        Some(entries) => {
            w.count(entries.len());
            entries.iter().for_each(|entry| entry.encode(w));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::record::Id;

    fn text() -> impl Strategy<Value = Text> {
        "[a-z/\u{e9}]{0,12}".prop_map(Text::from)
    }

    fn data() -> impl Strategy<Value = Option<Bytes>> {
        prop::option::of(prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from))
    }

    fn acl() -> impl Strategy<Value = Vec<Acl>> {
        let entry = (any::<i32>(), text(), text()).prop_map(|(perms, scheme, id)| Acl {
            perms,
            id: Id { scheme, id },
        });
        prop::collection::vec(entry, 0..3)
    }

    fn create(in_multi: bool) -> impl Strategy<Value = Create> {
        let opcode = prop::sample::select(vec![
            op::CREATE,
            op::CREATE2,
            op::CREATE_CONTAINER,
            op::CREATE_TTL,
        ]);
        (
            opcode,
            text(),
            data(),
            prop::option::of(acl()),
            0..5,
            any::<i64>(),
        )
            .prop_map(move |(opcode, path, data, acl, flags, ttl)| Create {
                opcode,
                path,
                data,
                acl: if in_multi {
                    Some(acl.unwrap_or_default())
                } else {
                    acl
                },
                flags,
                ttl: (opcode == op::CREATE_TTL).then_some(ttl),
            })
    }

    fn sub_write() -> impl Strategy<Value = SubRequest> {
        prop_oneof![
            create(true).prop_map(SubRequest::Create),
            (text(), any::<i32>()).prop_map(|(path, version)| SubRequest::Delete { path, version }),
            (text(), data(), any::<i32>()).prop_map(|(path, data, version)| SubRequest::SetData {
                path,
                data,
                version
            }),
            (text(), any::<i32>()).prop_map(|(path, version)| SubRequest::Check { path, version }),
        ]
    }

    fn request() -> impl Strategy<Value = Request> {
        let paths = || prop::collection::vec(text(), 0..4);
        let set_watches = (
            any::<i64>(),
            paths(),
            paths(),
            paths(),
            prop::option::of([paths(), paths()]),
        )
            .prop_map(|(zxid, data, exist, child, persistent)| {
                let relative_zxid = Zxid(zxid);
                Request::SetWatches(SetWatches {
                    relative_zxid,
                    data,
                    exist,
                    child,
                    persistent,
                })
            });
        prop_oneof![
            create(false).prop_map(Request::Create),
            prop::collection::vec(sub_write(), 0..5).prop_map(Request::Multi),
            set_watches,
            (text(), any::<bool>(), any::<bool>()).prop_map(|(path, watch, with_stat)| {
                Request::GetChildren {
                    path,
                    watch,
                    with_stat,
                }
            }),
            (text(), prop::option::of(acl()), any::<i32>())
                .prop_map(|(path, acl, version)| Request::SetAcl { path, acl, version }),
            prop::option::of(text()).prop_map(|path| Request::Sync { path }),
            (text(), data()).prop_map(|(scheme, a)| Request::Auth {
                scheme,
                auth: a.unwrap_or_default()
            }),
            (text(), any::<i32>()).prop_map(|(path, mode)| Request::AddWatch { path, mode }),
        ]
    }

    proptest! {
        #[test]
        fn requests_survive_a_round_trip(request in request()) {
            let mut body = BytesMut::new();
            request.encode(&mut body);
            prop_assert_eq!(Request::decode(request.opcode(), body.freeze()), Ok(request));
        }

        #[test]
        fn a_truncated_request_is_an_error(
            request in request(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut body = BytesMut::new();
            request.encode(&mut body);
            prop_assume!(!body.is_empty());
            body.truncate(cut.index(body.len()));
            prop_assert!(Request::decode(request.opcode(), body.freeze()).is_err());
        }

        #[test]
        fn any_bytes_decode_or_fail_without_a_panic(opcode in -12..110i32, body: Vec<u8>) {
            let _ = Request::decode(opcode, body.into());
        }
    }

    #[test]
    fn s57_null_vectors_in_set_watches_are_refused() {
        let mut body = BytesMut::new();
        let mut w = Writer::new(&mut body);
        w.long(0);
        (0..3).for_each(|_| w.int(-1));
        assert_eq!(
            Request::decode(op::SET_WATCHES, body.freeze()),
            Err(DecodeError::Null)
        );
    }

    #[test]
    fn s63_a_multi_refuses_operations_that_do_not_belong_to_it() {
        for opcode in [op::SET_ACL, op::EXISTS, op::GET_DATA, op::DELETE_CONTAINER] {
            let mut body = BytesMut::new();
            encode_multi_header(opcode, false, &mut Writer::new(&mut body));
            let decoded = Request::decode(op::MULTI, body.freeze());
            assert_eq!(decoded, Err(DecodeError::Opcode(opcode)));
        }
    }
}

//! Records that requests, replies and the machine share (§2.1, §3.2).

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::code::{EventType, STATE_SYNC_CONNECTED, perms, xid};
use super::jute::{DecodeError, Reader, Text, Writer};

/// A transaction id: epoch in the high half, counter in the low half (§9.4).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Zxid(pub i64);

impl Zxid {
    pub fn new(epoch: u32, counter: u32) -> Self {
        // Clients compare zxids as signed numbers, so the top bit must stay clear.
        assert!(epoch <= i32::MAX as u32, "epochs stay below 2^31");
        Self((i64::from(epoch) << 32) | i64::from(counter))
    }

    pub fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub fn counter(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for Zxid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:x}", self.0)
    }
}

/// A session's id: public, as it stands in the Stat of ephemerals (§2.3).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SessionId(pub i64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:x}", self.0)
    }
}

/// Who someone is, in one authentication scheme (§7.2).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Id {
    pub scheme: Text,
    pub id: Text,
}

impl Id {
    pub fn new(scheme: &str, id: &str) -> Self {
        Self {
            scheme: scheme.into(),
            id: id.into(),
        }
    }
}

/// One entry of an access control list (§7.1).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Acl {
    pub perms: i32,
    pub id: Id,
}

impl Acl {
    /// `world:anyone` with all permissions.
    pub fn open() -> Self {
        Self {
            perms: perms::ALL,
            id: Id::new("world", "anyone"),
        }
    }

    /// A null scheme is one that no one registers, a null id an empty one: what an id may be is for
    /// its scheme to say, and `auth` takes any (§7.3; kazoo sends null there).
    pub fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let perms = reader.int()?;
        let scheme = reader.text()?.unwrap_or_default();
        let id = reader.text()?.unwrap_or_default();
        Ok(Self {
            perms,
            id: Id { scheme, id },
        })
    }

    pub fn encode(&self, writer: &mut Writer<'_>) {
        writer.int(self.perms);
        writer.text(&self.id.scheme);
        writer.text(&self.id.id);
    }
}

/// What clients are told about a znode besides its data (§5.1). Times in ms since 1970.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stat {
    pub czxid: Zxid,
    pub mzxid: Zxid,
    pub ctime: i64,
    pub mtime: i64,
    pub version: i32,
    /// Child creations plus child deletions (§5.2).
    pub cversion: i32,
    pub aversion: i32,
    /// The owning session of an ephemeral; 0 for every other kind (§5.3).
    pub ephemeral_owner: i64,
    pub data_length: i32,
    pub num_children: i32,
    pub pzxid: Zxid,
}

impl Stat {
    /// Bytes on the wire.
    pub const BYTES: usize = 68;

    pub fn encode(&self, writer: &mut Writer<'_>) {
        writer.long(self.czxid.0);
        writer.long(self.mzxid.0);
        writer.long(self.ctime);
        writer.long(self.mtime);
        writer.int(self.version);
        writer.int(self.cversion);
        writer.int(self.aversion);
        writer.long(self.ephemeral_owner);
        writer.int(self.data_length);
        writer.int(self.num_children);
        writer.long(self.pzxid.0);
    }

    pub fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            czxid: Zxid(reader.long()?),
            mzxid: Zxid(reader.long()?),
            ctime: reader.long()?,
            mtime: reader.long()?,
            version: reader.int()?,
            cversion: reader.int()?,
            aversion: reader.int()?,
            ephemeral_owner: reader.long()?,
            data_length: reader.int()?,
            num_children: reader.int()?,
            pzxid: Zxid(reader.long()?),
        })
    }
}

/// The first frame of a connection (§2.1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConnectRequest {
    pub last_zxid_seen: Zxid,
    pub timeout_ms: i32,
    /// 0 asks for a new session.
    pub session: SessionId,
    /// Null and any length are accepted; only 16 bytes can be right.
    pub password: Bytes,
    /// `None`: the client does not know the field, so the response must not have it either.
    pub read_only: Option<bool>,
}

impl ConnectRequest {
    pub fn decode(frame: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(frame);
        let _protocol_version = reader.int()?;
        Ok(Self {
            last_zxid_seen: Zxid(reader.long()?),
            timeout_ms: reader.int()?,
            session: SessionId(reader.long()?),
            password: reader.buffer()?.unwrap_or_default(),
            read_only: (reader.remaining() > 0)
                .then(|| reader.boolean())
                .transpose()?,
        })
    }

    pub fn encode(&self, out: &mut BytesMut) {
        let mut writer = Writer::new(out);
        writer.int(0);
        writer.long(self.last_zxid_seen.0);
        writer.int(self.timeout_ms);
        writer.long(self.session.0);
        writer.buffer(Some(&self.password));
        if let Some(read_only) = self.read_only {
            writer.boolean(read_only);
        }
    }
}

/// The answer to a [`ConnectRequest`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConnectResponse {
    /// Negotiated, in ms; 0 says that the session is refused or expired.
    pub timeout_ms: i32,
    pub session: SessionId,
    pub password: [u8; 16],
    /// `None` omits the field (§2.1).
    pub read_only: Option<bool>,
}

impl ConnectResponse {
    /// The session does not exist any more, or the password is wrong (§2.2 step 9).
    pub fn refused(read_only: Option<bool>) -> Self {
        Self {
            timeout_ms: 0,
            session: SessionId(0),
            password: [0; 16],
            read_only,
        }
    }

    /// Appends the whole frame, length included.
    pub fn encode_frame(&self, out: &mut BytesMut) {
        out.put_i32(36 + i32::from(self.read_only.is_some()));
        let mut writer = Writer::new(out);
        writer.int(0);
        writer.int(self.timeout_ms);
        writer.long(self.session.0);
        writer.buffer(Some(&self.password));
        if let Some(read_only) = self.read_only {
            writer.boolean(read_only);
        }
    }

    pub fn decode(frame: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(frame);
        let _protocol_version = reader.int()?;
        let timeout_ms = reader.int()?;
        let session = SessionId(reader.long()?);
        let password = reader.buffer()?.ok_or(DecodeError::Null)?;
        let length = DecodeError::Length(password.len() as i32);
        Ok(Self {
            timeout_ms,
            session,
            password: password.as_ref().try_into().map_err(|_| length)?,
            read_only: (reader.remaining() > 0)
                .then(|| reader.boolean())
                .transpose()?,
        })
    }
}

/// A watch that fired (§6.3).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WatcherEvent {
    pub kind: EventType,
    pub path: Text,
    /// The transaction that caused it; -1 for one that `setWatches` found out (§6.7).
    pub zxid: Zxid,
}

impl WatcherEvent {
    /// The zxid of events that no transaction caused.
    pub const SYNTHETIC: Zxid = Zxid(-1);

    /// Appends the whole frame, length included.
    pub fn encode_frame(&self, out: &mut BytesMut) {
        out.put_i32(28 + self.path.len() as i32);
        let mut writer = Writer::new(out);
        writer.int(xid::NOTIFICATION);
        writer.long(self.zxid.0);
        writer.int(0);
        writer.int(self.kind as i32);
        writer.int(STATE_SYNC_CONNECTED);
        writer.text(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The recorded conversation of the protocol facts, §18.
    #[test]
    fn the_recorded_connect_request_is_understood() {
        let mut frame = vec![0; 45];
        frame[14] = 0x27;
        frame[15] = 0x10;
        frame[27] = 16;
        let request = ConnectRequest::decode(frame.clone().into()).unwrap();
        assert_eq!(request.timeout_ms, 10_000);
        assert_eq!(request.read_only, Some(false));
        frame.truncate(44);
        assert_eq!(
            ConnectRequest::decode(frame.into()).unwrap().read_only,
            None
        );
    }

    #[test]
    fn responses_have_the_length_the_client_expects() {
        for (read_only, length) in [(None, 36), (Some(false), 37)] {
            let mut out = BytesMut::new();
            ConnectResponse::refused(read_only).encode_frame(&mut out);
            assert_eq!(out.len(), 4 + length);
            assert_eq!(out[3] as usize, length);
        }
    }

    #[test]
    fn a_stat_is_68_bytes() {
        let mut out = BytesMut::new();
        Stat::default().encode(&mut Writer::new(&mut out));
        assert_eq!(out.len(), Stat::BYTES);
        assert_eq!(
            Stat::decode(&mut Reader::new(out.freeze())),
            Ok(Stat::default())
        );
    }

    #[test]
    fn a_null_id_of_an_acl_is_an_empty_one() {
        let entry = b"\0\0\0\x1f\0\0\0\x04auth\xff\xff\xff\xff";
        let acl = Acl::decode(&mut Reader::new(Bytes::from_static(entry))).unwrap();
        assert_eq!(acl.id, Id::new("auth", ""));
    }

    #[test]
    fn an_event_frame_is_the_recorded_one() {
        let event = WatcherEvent {
            kind: EventType::NodeDataChanged,
            path: "/a".into(),
            zxid: Zxid(-1),
        };
        let mut out = BytesMut::new();
        event.encode_frame(&mut out);
        let recorded = b"\0\0\0\x1e\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\
                         \0\0\0\x03\0\0\0\x03\0\0\0\x02/a";
        assert_eq!(&out[..], recorded);
    }
}

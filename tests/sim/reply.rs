//! What a server sends, as a client reads it: frames and reply bodies, bytes → values.
//!
//! Written from the protocol description (§1, §2.1, §3.2, §4.2) with a reader of its own, so that
//! a mistake in the server's encoder is not repeated here. Strict: a body must end where its last
//! field ends.

use bytes::{Buf, Bytes, BytesMut};
use zkraft::wire::{
    Acl, Answer, ErrorCode, EventType, Id, Request, SessionId, Stat, SubAnswer, Text, Zxid, op,
};

/// One frame of a connection, after the handshake.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    Event(Event),
    Reply {
        xid: i32,
        zxid: Zxid,
        error: i32,
        body: Bytes,
    },
}

/// A watch notification (§6.3).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    pub kind: EventType,
    pub path: String,
    pub zxid: Zxid,
}

/// The answer to a handshake (§2.1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Connected {
    /// 0: refused.
    pub timeout_ms: i32,
    pub session: SessionId,
    pub password: Bytes,
    pub read_only: Option<bool>,
}

/// Every error code a server may send (§10).
const ERRORS: [ErrorCode; 19] = [
    ErrorCode::RuntimeInconsistency,
    ErrorCode::MarshallingError,
    ErrorCode::Unimplemented,
    ErrorCode::BadArguments,
    ErrorCode::NewConfigNoQuorum,
    ErrorCode::NoNode,
    ErrorCode::NoAuth,
    ErrorCode::BadVersion,
    ErrorCode::NoChildrenForEphemerals,
    ErrorCode::NodeExists,
    ErrorCode::NotEmpty,
    ErrorCode::SessionExpired,
    ErrorCode::InvalidAcl,
    ErrorCode::AuthFailed,
    ErrorCode::NotReadOnly,
    ErrorCode::EphemeralOnLocalSession,
    ErrorCode::NoWatcher,
    ErrorCode::ReconfigDisabled,
    ErrorCode::QuotaExceeded,
];

/// Takes the next whole frame off a stream, without its length.
pub fn next_frame(stream: &mut BytesMut) -> Option<Bytes> {
    let length = u32::from_be_bytes(*stream.first_chunk::<4>()?) as usize;
    if stream.len() < 4 + length {
        return None;
    }
    stream.advance(4);
    Some(stream.split_to(length).freeze())
}

pub fn connected(frame: Bytes) -> Result<Connected, String> {
    let mut fields = Fields(frame);
    if fields.int()? != 0 {
        return Err("a protocol version other than 0".into());
    }
    let connected = Connected {
        timeout_ms: fields.int()?,
        session: SessionId(fields.long()?),
        password: fields.buffer()?.ok_or("a null password")?,
        read_only: if fields.0.is_empty() {
            None
        } else {
            Some(fields.boolean()?)
        },
    };
    if connected.password.len() != 16 {
        return Err(format!("a password of {} bytes", connected.password.len()));
    }
    fields.end(connected)
}

pub fn frame(frame: Bytes) -> Result<Frame, String> {
    let mut fields = Fields(frame);
    let (xid, zxid, error) = (fields.int()?, Zxid(fields.long()?), fields.int()?);
    if xid != -1 {
        return Ok(Frame::Reply {
            xid,
            zxid,
            error,
            body: fields.0,
        });
    }
    let kind = match fields.int()? {
        1 => EventType::NodeCreated,
        2 => EventType::NodeDeleted,
        3 => EventType::NodeDataChanged,
        4 => EventType::NodeChildrenChanged,
        other => return Err(format!("event type {other}")),
    };
    if (error, fields.int()?) != (0, 3) {
        return Err("an event with an error, or in a state other than 3".into());
    }
    let path = fields.text()?.to_string();
    fields.end(Frame::Event(Event { kind, path, zxid }))
}

/// The result that a reply to this request tells.
pub fn result(
    request: &Request,
    error: i32,
    body: Bytes,
) -> Result<Result<Answer, ErrorCode>, String> {
    let mut fields = Fields(body);
    if error != 0 {
        return fields.end(Err(code(error)?));
    }
    let answer = match request {
        Request::Create(create) if create.opcode == op::CREATE => Answer::Path(fields.text()?),
        Request::Create(_) => Answer::PathStat(fields.text()?, fields.stat()?),
        Request::Exists { .. } | Request::SetData { .. } | Request::SetAcl { .. } => {
            Answer::Stat(fields.stat()?)
        }
        Request::GetData { .. } | Request::Reconfig(_) => {
            Answer::Data(fields.buffer()?, fields.stat()?)
        }
        Request::GetAcl { .. } => Answer::Acl(fields.vector(Fields::acl)?, fields.stat()?),
        Request::GetChildren {
            with_stat: true, ..
        } => Answer::ChildrenStat(fields.vector(Fields::text)?, fields.stat()?),
        Request::GetChildren { .. } | Request::GetEphemerals { .. } => {
            Answer::Children(fields.vector(Fields::text)?)
        }
        Request::Sync { .. } => Answer::Echo(match fields.buffer()? {
            None => None,
            Some(bytes) => Some(text(&bytes)?),
        }),
        Request::Multi(_) | Request::MultiRead(_) => Answer::Multi(fields.multi()?),
        Request::GetAllChildrenNumber { .. } => Answer::Number(fields.int()?),
        Request::AddWatch { .. } => match fields.int()? {
            0 => Answer::Zero,
            other => return Err(format!("addWatch succeeded with {other} in its body")),
        },
        Request::WhoAmI => Answer::WhoAmI(fields.vector(Fields::id)?),
        Request::Sasl { .. } => Answer::Token(fields.buffer()?),
        _ => Answer::Empty,
    };
    fields.end(Ok(answer))
}

/// Fields not read yet.
struct Fields(Bytes);

impl Fields {
    fn take(&mut self, count: usize) -> Result<Bytes, String> {
        if count > self.0.len() {
            return Err(format!("{count} bytes expected, {} left", self.0.len()));
        }
        Ok(self.0.split_to(count))
    }

    fn boolean(&mut self) -> Result<bool, String> {
        match self.take(1)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("a boolean of {other}")),
        }
    }

    fn int(&mut self) -> Result<i32, String> {
        Ok(self.take(4)?.get_i32())
    }

    fn long(&mut self) -> Result<i64, String> {
        Ok(self.take(8)?.get_i64())
    }

    fn buffer(&mut self) -> Result<Option<Bytes>, String> {
        match self.int()? {
            -1 => Ok(None),
            length => self
                .take(usize::try_from(length).map_err(|e| e.to_string())?)
                .map(Some),
        }
    }

    fn text(&mut self) -> Result<Text, String> {
        text(&self.buffer()?.ok_or("a null string")?)
    }

    fn vector<T>(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        (0..self.int()?).map(|_| element(self)).collect()
    }

    fn id(&mut self) -> Result<Id, String> {
        Ok(Id {
            scheme: self.text()?,
            id: self.text()?,
        })
    }

    fn acl(&mut self) -> Result<Acl, String> {
        Ok(Acl {
            perms: self.int()?,
            id: self.id()?,
        })
    }

    fn stat(&mut self) -> Result<Stat, String> {
        Ok(Stat {
            czxid: Zxid(self.long()?),
            mzxid: Zxid(self.long()?),
            ctime: self.long()?,
            mtime: self.long()?,
            version: self.int()?,
            cversion: self.int()?,
            aversion: self.int()?,
            ephemeral_owner: self.long()?,
            data_length: self.int()?,
            num_children: self.int()?,
            pzxid: Zxid(self.long()?),
        })
    }

    fn multi(&mut self) -> Result<Vec<SubAnswer>, String> {
        let mut answers = Vec::new();
        loop {
            let (kind, done, error) = (self.int()?, self.boolean()?, self.int()?);
            if done {
                return if (kind, error) == (-1, -1) {
                    Ok(answers)
                } else {
                    Err(format!("a terminator with type {kind}, error {error}"))
                };
            }
            if kind != op::ERROR && error != 0 {
                return Err(format!("a result of type {kind} with error {error}"));
            }
            answers.push(match kind {
                op::CREATE => SubAnswer::Create(self.text()?),
                op::CREATE2 => SubAnswer::Create2(self.text()?, self.stat()?),
                op::DELETE => SubAnswer::Delete,
                op::SET_DATA => SubAnswer::SetData(self.stat()?),
                op::CHECK => SubAnswer::Check,
                op::GET_DATA => SubAnswer::GetData(self.buffer()?, self.stat()?),
                op::GET_CHILDREN => SubAnswer::GetChildren(self.vector(Self::text)?),
                op::ERROR if self.int()? != error => {
                    return Err("an error entry whose two codes differ".into());
                }
                op::ERROR if error == 0 => SubAnswer::Error(None),
                op::ERROR => SubAnswer::Error(Some(code(error)?)),
                other => return Err(format!("a result of type {other}")),
            });
        }
    }

    fn end<T>(self, value: T) -> Result<T, String> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(format!("{} bytes too many", self.0.len()))
        }
    }
}

fn text(bytes: &Bytes) -> Result<Text, String> {
    std::str::from_utf8(bytes)
        .map(Text::from)
        .map_err(|error| error.to_string())
}

fn code(number: i32) -> Result<ErrorCode, String> {
    let known = ERRORS.into_iter().find(|code| *code as i32 == number);
    known.ok_or_else(|| format!("error code {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The recorded conversation of the protocol facts, §18.
    #[test]
    fn the_recorded_frames_are_understood() {
        let mut stream = BytesMut::from(
            &b"\0\0\0\x1e\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\
               \0\0\0\x03\0\0\0\x03\0\0\0\x02/a\
               \0\0\0\x33\0\0\0\x05\0\0\0\0\0\0\0\x04\0\0\0\0\
               \xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\
               \xff\xff\xff\xff\0\xff\xff\xff\x99\xff\xff\xff\x99\
               \xff\xff\xff\xff\x01\xff\xff\xff\xff\0\0"[..],
        );
        let event = Event {
            kind: EventType::NodeDataChanged,
            path: "/a".into(),
            zxid: Zxid(-1),
        };
        let first = next_frame(&mut stream).map(frame);
        assert_eq!(first, Some(Ok(Frame::Event(event))));
        let Some(Ok(Frame::Reply {
            xid,
            zxid,
            error,
            body,
        })) = next_frame(&mut stream).map(frame)
        else {
            panic!("a reply");
        };
        assert_eq!((xid, zxid, error), (5, Zxid(4), 0));
        let failed = SubAnswer::Error(Some(ErrorCode::BadVersion));
        let expected = Answer::Multi(vec![SubAnswer::Error(None), failed]);
        assert_eq!(
            result(&Request::Multi(vec![]), error, body),
            Ok(Ok(expected))
        );
        assert_eq!(
            next_frame(&mut stream),
            None,
            "two bytes of the next length"
        );
    }

    #[test]
    fn a_body_that_is_too_long_is_noticed() {
        let body = Bytes::from_static(&[0; 69]);
        let exists = Request::Exists {
            path: "/".into(),
            watch: false,
        };
        assert!(result(&exists, 0, body.slice(1..)).is_ok());
        assert!(result(&exists, 0, body.clone()).is_err());
        assert!(result(&exists, -101, body).is_err());
    }
}

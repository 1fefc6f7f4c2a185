//! Replies to clients: values → bytes (§1.2, §3.2, §4.2).

use bytes::{BufMut, Bytes, BytesMut};

use super::code::{ErrorCode, op};
use super::jute::{Text, Writer};
use super::record::{Acl, Id, Stat, Zxid};

/// What stands before the body of every reply (§1.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReplyHeader {
    /// The xid of the request, whatever it was (§2.5).
    pub xid: i32,
    /// The last transaction that the answer's state contains (§9.6 rule 4).
    pub zxid: Zxid,
    /// 0 is success. A body follows only then.
    pub error: i32,
}

impl ReplyHeader {
    pub const BYTES: usize = 16;
}

/// The body of a successful reply.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// No body.
    Empty,
    Path(Text),
    PathStat(Text, Stat),
    Stat(Stat),
    Data(Option<Bytes>, Stat),
    Children(Vec<Text>),
    ChildrenStat(Vec<Text>, Stat),
    Acl(Vec<Acl>, Stat),
    /// The path of a sync, echoed.
    Echo(Option<Text>),
    Multi(Vec<SubAnswer>),
    Number(i32),
    /// `addWatch` has an error code, zero, as its body (§3.6).
    Zero,
    WhoAmI(Vec<Id>),
    /// A SASL token; null when SASL is not configured (§14.1).
    Token(Option<Bytes>),
    /// Any of these, encoded already.
    Encoded(Bytes),
}

/// The result of one operation of a multi or multiRead (§4.2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SubAnswer {
    Create(Text),
    /// create2, createContainer and createTTL alike.
    Create2(Text, Stat),
    Delete,
    SetData(Stat),
    Check,
    GetData(Option<Bytes>, Stat),
    GetChildren(Vec<Text>),
    /// `None` stands before the operation that failed: code 0 (§4.3).
    Error(Option<ErrorCode>),
}

impl Answer {
    fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Empty => {}
            Self::Path(path) => w.text(path),
            Self::PathStat(path, stat) => {
                w.text(path);
                stat.encode(w);
            }
            Self::Stat(stat) => stat.encode(w),
            Self::Data(data, stat) => {
                w.buffer(data.as_deref());
                stat.encode(w);
            }
            Self::Children(names) => encode_names(names, w),
            Self::ChildrenStat(names, stat) => {
                encode_names(names, w);
                stat.encode(w);
            }
            Self::Acl(entries, stat) => {
                w.count(entries.len());
                entries.iter().for_each(|entry| entry.encode(w));
                stat.encode(w);
            }
            Self::Echo(path) => w.buffer(path.as_ref().map(|path| path.as_bytes().as_ref())),
            Self::Multi(answers) => {
                answers.iter().for_each(|answer| answer.encode(w));
                Self::end_multi(w);
            }
            Self::Number(number) => w.int(*number),
            Self::Zero => w.int(0),
            Self::WhoAmI(ids) => {
                w.count(ids.len());
                for id in ids {
                    w.text(&id.scheme);
                    w.text(&id.id);
                }
            }
            Self::Token(token) => w.buffer(token.as_deref()),
            Self::Encoded(bytes) => w.raw(bytes),
        }
    }

    /// The same answer to a write, with memory of its own for the paths: that of a request is as
    /// large as the frame or the log entry that it came in.
    pub fn detached(self) -> Self {
        let own = |path: Text| Text::from(path.as_str());
        match self {
            Self::Path(path) => Self::Path(own(path)),
            Self::PathStat(path, stat) => Self::PathStat(own(path), stat),
            Self::Multi(answers) => {
                let detached = |answer| match answer {
                    SubAnswer::Create(path) => SubAnswer::Create(own(path)),
                    SubAnswer::Create2(path, stat) => SubAnswer::Create2(own(path), stat),
                    other => other,
                };
                Self::Multi(answers.into_iter().map(detached).collect())
            }
            other => other,
        }
    }

    /// What stands behind the last answer of a multi.
    pub fn end_multi(w: &mut Writer<'_>) {
        encode_multi_header(-1, true, -1, w);
    }
}

impl SubAnswer {
    /// What stands before the names of children.
    pub fn begin_children(w: &mut Writer<'_>) {
        encode_multi_header(op::GET_CHILDREN, false, 0, w);
    }

    pub fn encode(&self, w: &mut Writer<'_>) {
        let kind = match self {
            Self::Create(_) => op::CREATE,
            Self::Create2(..) => op::CREATE2,
            Self::Delete => op::DELETE,
            Self::SetData(_) => op::SET_DATA,
            Self::Check => op::CHECK,
            Self::GetData(..) => op::GET_DATA,
            Self::GetChildren(_) => op::GET_CHILDREN,
            Self::Error(code) => {
                let number = code.map_or(0, ErrorCode::number);
                encode_multi_header(op::ERROR, false, number, w);
                return w.int(number);
            }
        };
        encode_multi_header(kind, false, 0, w);
        match self {
            Self::Create(path) => w.text(path),
            Self::Create2(path, stat) => {
                w.text(path);
                stat.encode(w);
            }
            Self::SetData(stat) => stat.encode(w),
            Self::GetData(data, stat) => {
                w.buffer(data.as_deref());
                stat.encode(w);
            }
            Self::GetChildren(names) => encode_names(names, w),
            Self::Delete | Self::Check | Self::Error(_) => {}
        }
    }
}

/// Appends a whole reply frame, length included. The body is left out on an error (§1.5).
pub fn encode_reply(header: ReplyHeader, answer: &Answer, out: &mut BytesMut) {
    encode_reply_with(header, out, |w| {
        if header.error == 0 {
            answer.encode(w);
        }
    });
}

/// Appends a whole reply frame, length included, with a body that the caller writes.
pub fn encode_reply_with(
    header: ReplyHeader,
    out: &mut BytesMut,
    body: impl FnOnce(&mut Writer<'_>),
) {
    let start = out.len();
    let mut head = [0; 4 + ReplyHeader::BYTES];
    head[4..8].copy_from_slice(&header.xid.to_be_bytes());
    head[8..16].copy_from_slice(&header.zxid.0.to_be_bytes());
    head[16..].copy_from_slice(&header.error.to_be_bytes());
    out.put_slice(&head);
    body(&mut Writer::new(out));
    let length = i32::try_from(out.len() - start - 4).expect("a reply below 2 GiB");
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn encode_names(names: &[Text], w: &mut Writer<'_>) {
    w.count(names.len());
    names.iter().for_each(|name| w.text(name));
}

fn encode_multi_header(kind: i32, done: bool, error: i32, w: &mut Writer<'_>) {
    w.int(kind);
    w.boolean(done);
    w.int(error);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_multi_is_answered_as_recorded() {
        // The protocol facts, §18: create is abandoned, check fails with BadVersion.
        let answers = vec![
            SubAnswer::Error(None),
            SubAnswer::Error(Some(ErrorCode::BadVersion)),
        ];
        let header = ReplyHeader {
            xid: 5,
            zxid: Zxid(4),
            error: 0,
        };
        let mut out = BytesMut::new();
        encode_reply(header, &Answer::Multi(answers), &mut out);
        let recorded = b"\0\0\0\x33\0\0\0\x05\0\0\0\0\0\0\0\x04\0\0\0\0\
            \xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\
            \xff\xff\xff\xff\0\xff\xff\xff\x99\xff\xff\xff\x99\
            \xff\xff\xff\xff\x01\xff\xff\xff\xff";
        assert_eq!(&out[..], recorded);
    }

    #[test]
    fn an_error_has_no_body() {
        let header = ReplyHeader {
            xid: 4,
            zxid: Zxid(3),
            error: ErrorCode::NoNode.number(),
        };
        let mut out = BytesMut::new();
        encode_reply(header, &Answer::Stat(Stat::default()), &mut out);
        assert_eq!(
            &out[..],
            b"\0\0\0\x10\0\0\0\x04\0\0\0\0\0\0\0\x03\xff\xff\xff\x9b"
        );
    }
}

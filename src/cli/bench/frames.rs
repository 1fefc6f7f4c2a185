//! The client's side of the protocol, as far as load needs it: requests → bytes, bytes → replies.
//!
//! Built for speed: a request is written into the output buffer as it is, a reply is looked at
//! where it was read. [`crate::wire`] has the server's side.

use crate::wire::op;

/// Appends requests to a client's output.
pub struct Frames<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Frames<'a> {
    /// Begins a request (§1.2).
    pub fn begin(out: &'a mut Vec<u8>, xid: i32, opcode: i32) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&xid.to_be_bytes());
        out.extend_from_slice(&opcode.to_be_bytes());
        Self { out, start }
    }

    pub fn int(self, value: i32) -> Self {
        self.out.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn boolean(self, value: bool) -> Self {
        self.out.push(u8::from(value));
        self
    }

    pub fn bytes(self, value: &[u8]) -> Self {
        let sized = self.int(value.len() as i32);
        sized.out.extend_from_slice(value);
        sized
    }

    /// The list that lets anyone do anything (§7.1).
    pub fn open_acl(self) -> Self {
        self.int(1).int(31).bytes(b"world").bytes(b"anyone")
    }

    /// The header of an operation of a multi (§4.1).
    pub fn operation(self, opcode: i32) -> Self {
        self.int(opcode).boolean(false).int(-1)
    }

    /// The header that ends a multi.
    pub fn operations_end(self) -> Self {
        self.int(-1).boolean(true).int(-1)
    }

    /// What creates a znode; `flags`: how (§3.2).
    pub fn znode(self, path: &[u8], data: &[u8], flags: i32) -> Self {
        self.bytes(path).bytes(data).open_acl().int(flags)
    }

    /// Puts the length in front.
    pub fn end(self) {
        let length = (self.out.len() - self.start - 4) as i32;
        self.out[self.start..self.start + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// Flags of `create` (§3.2).
pub const PERSISTENT: i32 = 0;
pub const EPHEMERAL: i32 = 1;

pub fn get(out: &mut Vec<u8>, xid: i32, path: &[u8], watch: bool) {
    let frame = Frames::begin(out, xid, op::GET_DATA);
    frame.bytes(path).boolean(watch).end();
}

pub fn exists(out: &mut Vec<u8>, xid: i32, path: &[u8]) {
    let frame = Frames::begin(out, xid, op::EXISTS);
    frame.bytes(path).boolean(false).end();
}

pub fn list(out: &mut Vec<u8>, xid: i32, path: &[u8]) {
    let frame = Frames::begin(out, xid, op::GET_CHILDREN);
    frame.bytes(path).boolean(false).end();
}

pub fn set(out: &mut Vec<u8>, xid: i32, path: &[u8], data: &[u8], version: i32) {
    let frame = Frames::begin(out, xid, op::SET_DATA);
    frame.bytes(path).bytes(data).int(version).end();
}

pub fn create(out: &mut Vec<u8>, xid: i32, path: &[u8], data: &[u8], flags: i32) {
    Frames::begin(out, xid, op::CREATE)
        .znode(path, data, flags)
        .end();
}

pub fn delete(out: &mut Vec<u8>, xid: i32, path: &[u8]) {
    let frame = Frames::begin(out, xid, op::DELETE);
    frame.bytes(path).int(-1).end();
}

/// Asks the server to have seen what its leader has.
pub fn sync(out: &mut Vec<u8>, xid: i32, path: &[u8]) {
    Frames::begin(out, xid, op::SYNC).bytes(path).end();
}

pub fn ping(out: &mut Vec<u8>) {
    Frames::begin(out, crate::wire::xid::PING, op::PING).end();
}

pub fn close_session(out: &mut Vec<u8>, xid: i32) {
    Frames::begin(out, xid, op::CLOSE_SESSION).end();
}

/// The request for a new session (§2.1).
pub fn hello(out: &mut Vec<u8>, timeout_ms: i32) {
    let mut body = Vec::with_capacity(45);
    body.extend_from_slice(&0_i32.to_be_bytes());
    body.extend_from_slice(&0_i64.to_be_bytes());
    body.extend_from_slice(&timeout_ms.to_be_bytes());
    body.extend_from_slice(&0_i64.to_be_bytes());
    body.extend_from_slice(&16_i32.to_be_bytes());
    body.extend_from_slice(&[0; 16]);
    body.push(0);
    out.extend_from_slice(&(body.len() as i32).to_be_bytes());
    out.extend_from_slice(&body);
}

/// A reply or a notification, in the buffer it was read into.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    pub xid: i32,
    /// 0 is success.
    pub error: i32,
    pub body: &'a [u8],
}

impl<'a> Reply<'a> {
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (header, body) = frame.split_at_checked(16)?;
        Some(Self {
            xid: int_at(header, 0)?,
            error: int_at(header, 12)?,
            body,
        })
    }
}

/// The timeout that a server grants, 0 if it refuses the session (§2.1).
pub fn granted_timeout_ms(frame: &[u8]) -> Option<i32> {
    int_at(frame, 4)
}

/// Takes the next whole frame off the front.
pub fn next_frame<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(int_at(input, 0)?).ok()?;
    let frame = input.get(4..4 + length)?;
    *input = &input[4 + length..];
    Some(frame)
}

pub fn int_at(bytes: &[u8], at: usize) -> Option<i32> {
    let number = bytes.get(at..at + 4)?.first_chunk()?;
    Some(i32::from_be_bytes(*number))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::wire::{ConnectRequest, Request};

    fn decoded(build: impl FnOnce(&mut Vec<u8>)) -> Request {
        let mut out = Vec::new();
        build(&mut out);
        let mut input = &out[..];
        let frame = next_frame(&mut input).unwrap();
        assert!(input.is_empty());
        assert_eq!(int_at(frame, 0), Some(7));
        let opcode = int_at(frame, 4).unwrap();
        Request::decode(opcode, Bytes::copy_from_slice(&frame[8..])).unwrap()
    }

    #[test]
    fn requests_are_what_the_server_reads() {
        assert!(matches!(
            decoded(|out| get(out, 7, b"/a", true)),
            Request::GetData { path, watch: true } if path == "/a"
        ));
        assert!(matches!(
            decoded(|out| set(out, 7, b"/a", b"x", 3)),
            Request::SetData { version: 3, .. }
        ));
        assert!(matches!(
            decoded(|out| create(out, 7, b"/a", b"x", EPHEMERAL)),
            Request::Create(_)
        ));
        assert!(matches!(
            decoded(|out| list(out, 7, b"/a")),
            Request::GetChildren { .. }
        ));
        assert!(matches!(
            decoded(|out| delete(out, 7, b"/a")),
            Request::Delete { .. }
        ));
        let multi = decoded(|out| {
            Frames::begin(out, 7, op::MULTI)
                .operation(op::CREATE)
                .znode(b"/a", b"", PERSISTENT)
                .operations_end()
                .end();
        });
        assert!(matches!(multi, Request::Multi(operations) if operations.len() == 1));
    }

    #[test]
    fn the_handshake_is_what_the_server_reads() {
        let mut out = Vec::new();
        hello(&mut out, 30_000);
        let mut input = &out[..];
        let frame = Bytes::copy_from_slice(next_frame(&mut input).unwrap());
        let request = ConnectRequest::decode(frame).unwrap();
        assert_eq!((request.timeout_ms, request.session.0), (30_000, 0));
    }

    #[test]
    fn half_a_frame_is_left_alone() {
        let mut out = Vec::new();
        ping(&mut out);
        for cut in 0..out.len() {
            let mut input = &out[..cut];
            assert!(next_frame(&mut input).is_none());
            assert_eq!(input.len(), cut);
        }
    }
}

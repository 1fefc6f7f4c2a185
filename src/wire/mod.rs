//! The ZooKeeper client protocol: bytes ↔ values.
//!
//! Pure: no state, no clock, no socket. Decoding never panics and never allocates more than a small
//! multiple of the frame it reads, whatever lengths that claims; strings and buffers of a decoded
//! request share the frame's memory. A request is decoded for syntax only: what is *allowed* is
//! decided by [`crate::machine`].
//!
//! Source: the protocol facts §1 (encoding), §2 (handshake), §3 (operations), §4 (multi), §12.3
//! (servers).

pub mod code;
pub mod jute;
pub mod record;
pub mod request;
pub mod response;
pub mod server_line;

pub use code::{CreateMode, ErrorCode, EventType, op, perms, xid};
pub use jute::{DecodeError, Reader, Text, Writer};
pub use record::{Acl, ConnectRequest, ConnectResponse, Id, SessionId, Stat, WatcherEvent, Zxid};
pub use request::{Request, SubRequest};
pub use response::{Answer, ReplyHeader, SubAnswer, encode_reply_with};
pub use server_line::ServerLine;

/// The largest frame a client may send unless `jute.maxbuffer` says otherwise, in bytes (§1.3).
pub const FRAME_BYTES_MAX: usize = 0xf_ffff;
/// A request header: xid and opcode (§1.2). Shorter frames close the connection.
pub const HEADER_BYTES: usize = 8;

/// What the first four bytes of a frame say about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FrameLength {
    /// More bytes are needed to know.
    Incomplete,
    /// The frame's body has this many bytes.
    Body(usize),
    /// Negative or above the limit: the connection is closed without a reply (§1.3).
    Refused(i32),
}

/// Reads the length of the frame that `buffer` starts with.
pub fn frame_length(buffer: &[u8], limit: usize) -> FrameLength {
    let Some(bytes) = buffer.first_chunk::<4>() else {
        return FrameLength::Incomplete;
    };
    let length = i32::from_be_bytes(*bytes);
    match usize::try_from(length) {
        Ok(body) if body <= limit => FrameLength::Body(body),
        _ => FrameLength::Refused(length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_itself_is_allowed_and_one_more_is_not() {
        let limit = FRAME_BYTES_MAX;
        assert_eq!(
            frame_length(&[0, 0xf, 0xff, 0xff], limit),
            FrameLength::Body(limit)
        );
        assert_eq!(
            frame_length(&[0, 0x10, 0, 0], limit),
            FrameLength::Refused(0x10_0000)
        );
        assert_eq!(frame_length(&[0xff; 4], limit), FrameLength::Refused(-1));
        assert_eq!(frame_length(&[0, 0, 0], limit), FrameLength::Incomplete);
    }
}

//! A connection whose failures are observations: what a server sends, that it closes, that it is
//! silent. Nothing here panics over what a server does.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::client::Hello;

/// How long silence is waited for. Far above what a healthy server needs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that are read at once, at first.
const BUFFER: usize = 16 * 1024;

/// What comes from a server.
#[derive(Clone, Eq, PartialEq)]
pub enum Heard {
    Event {
        zxid: i64,
        kind: i32,
        state: i32,
        path: Vec<u8>,
    },
    Reply {
        xid: i32,
        zxid: i64,
        err: i32,
        body: Vec<u8>,
    },
    /// A frame that is neither.
    Other(Vec<u8>),
    /// The server closed the connection.
    Closed,
    /// Nothing came in time.
    Silence,
}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event {
                zxid,
                kind,
                state,
                path,
            } => {
                let path = String::from_utf8_lossy(path);
                write!(f, "event {kind} {path:?} (zxid {zxid:#x}, state {state})")
            }
            Self::Reply {
                xid,
                zxid,
                err,
                body,
            } => {
                let body: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
                write!(f, "reply {xid} (zxid {zxid:#x}) err {err} {body}")
            }
            Self::Other(frame) => write!(f, "no reply {frame:02x?}"),
            Self::Closed => write!(f, "close"),
            Self::Silence => write!(f, "silence"),
        }
    }
}

pub struct Link {
    stream: TcpStream,
    ended: bool,
    buffer: Vec<u8>,
    /// Where the next frame begins in `buffer`, and where what was read ends.
    start: usize,
    end: usize,
}

impl Link {
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts connections");
        stream.set_nodelay(true).expect("nodelay");
        let (read, write) = (Some(PATIENCE), Some(PATIENCE));
        stream.set_read_timeout(read).expect("read timeout");
        stream.set_write_timeout(write).expect("write timeout");
        Self {
            stream,
            ended: false,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
        }
    }

    /// Opens a connection and says hello; the answer is the body of a ConnectResponse.
    pub fn greet(address: SocketAddr, hello: &Hello) -> (Self, Option<Vec<u8>>) {
        let mut link = Self::open(address);
        link.send(&hello.frame());
        let frame = link.frame().ok();
        (link, frame)
    }

    /// A server that has closed does not read; what it said is heard afterwards.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Whether the server has closed it, as far as was heard.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Ends the client's side and tells what the server does about it. A server that has not yet
    /// noticed the end of an old connection may take it for that of a new one: ZooKeeper then
    /// forgets whose session the new one carries.
    pub fn leave(&mut self) -> Heard {
        if self.ended {
            return Heard::Closed;
        }
        let _ = self.stream.shutdown(Shutdown::Write);
        self.hear()
    }

    pub fn hear(&mut self) -> Heard {
        match self.frame() {
            Ok(frame) => parse(frame),
            Err(end) => {
                self.ended = true;
                end
            }
        }
    }

    /// The body of the next frame.
    fn frame(&mut self) -> Result<Vec<u8>, Heard> {
        loop {
            let ready = &self.buffer[self.start..self.end];
            if let Some(head) = ready.first_chunk::<4>() {
                let length = u32::from_be_bytes(*head) as usize;
                if let Some(body) = ready.get(4..4 + length) {
                    let body = body.to_vec();
                    self.start += 4 + length;
                    return Ok(body);
                }
            }
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.end == self.buffer.len() {
                self.buffer.resize(2 * self.end, 0);
            }
            let read = self.stream.read(&mut self.buffer[self.end..]);
            match read {
                Ok(0) => return Err(Heard::Closed),
                Ok(count) => self.end += count,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Err(Heard::Silence),
                    // Bytes that the server had not read when it closed make its close a reset.
                    _ => return Err(Heard::Closed),
                },
            }
        }
    }
}

fn parse(frame: Vec<u8>) -> Heard {
    let Some((head, body)) = frame.split_at_checked(16) else {
        return Heard::Other(frame);
    };
    let int = |at: usize| i32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
    let zxid = i64::from_be_bytes(head[4..12].try_into().expect("eight bytes"));
    let (xid, err) = (int(0), int(12));
    if xid != -1 {
        let body = body.to_vec();
        return Heard::Reply {
            xid,
            zxid,
            err,
            body,
        };
    }
    let whole = body.len() >= 12 && int(24) >= 0 && body.len() == 12 + int(24) as usize;
    if err != 0 || !whole {
        return Heard::Other(frame);
    }
    Heard::Event {
        zxid,
        kind: int(16),
        state: int(20),
        path: body[12..].to_vec(),
    }
}

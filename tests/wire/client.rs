//! A client that knows nothing but bytes: a jute writer and reader, the handshake, and strict
//! reads.
//!
//! It is written from the protocol's description alone and shares no code with the server, so that
//! a mistake in the server's encoding cannot hide behind the same mistake here. It is strict: a
//! frame that was not asked for fails the test, a record must end where its frame ends, and a
//! refused request must have no body (spec §1.2). It never retries and never reconnects.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a test waits for a frame or a close before it fails. Far above anything a healthy
/// server needs, even on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Operation numbers (spec §3.1).
pub mod op {
    pub const NOTIFICATION: i32 = 0;
    pub const CREATE: i32 = 1;
    pub const DELETE: i32 = 2;
    pub const EXISTS: i32 = 3;
    pub const GET_DATA: i32 = 4;
    pub const SET_DATA: i32 = 5;
    pub const GET_ACL: i32 = 6;
    pub const SET_ACL: i32 = 7;
    pub const GET_CHILDREN: i32 = 8;
    pub const SYNC: i32 = 9;
    pub const PING: i32 = 11;
    pub const GET_CHILDREN2: i32 = 12;
    pub const CHECK: i32 = 13;
    pub const MULTI: i32 = 14;
    pub const CREATE2: i32 = 15;
    pub const RECONFIG: i32 = 16;
    pub const CHECK_WATCHES: i32 = 17;
    pub const REMOVE_WATCHES: i32 = 18;
    pub const CREATE_CONTAINER: i32 = 19;
    pub const DELETE_CONTAINER: i32 = 20;
    pub const CREATE_TTL: i32 = 21;
    pub const MULTI_READ: i32 = 22;
    pub const AUTH: i32 = 100;
    pub const SET_WATCHES: i32 = 101;
    pub const SASL: i32 = 102;
    pub const GET_EPHEMERALS: i32 = 103;
    pub const GET_ALL_CHILDREN_NUMBER: i32 = 104;
    pub const SET_WATCHES2: i32 = 105;
    pub const ADD_WATCH: i32 = 106;
    pub const WHO_AM_I: i32 = 107;
    pub const CREATE_SESSION: i32 = -10;
    pub const CLOSE_SESSION: i32 = -11;
    pub const ERROR: i32 = -1;
}

/// Error codes (spec §10).
pub mod code {
    pub const RUNTIME_INCONSISTENCY: i32 = -2;
    pub const MARSHALLING: i32 = -5;
    pub const UNIMPLEMENTED: i32 = -6;
    pub const BAD_ARGUMENTS: i32 = -8;
    pub const NO_NODE: i32 = -101;
    pub const NO_AUTH: i32 = -102;
    pub const BAD_VERSION: i32 = -103;
    pub const NO_CHILDREN_FOR_EPHEMERALS: i32 = -108;
    pub const NODE_EXISTS: i32 = -110;
    pub const NOT_EMPTY: i32 = -111;
    pub const SESSION_EXPIRED: i32 = -112;
    pub const INVALID_ACL: i32 = -114;
    pub const NOT_READ_ONLY: i32 = -119;
    pub const EPHEMERAL_ON_LOCAL_SESSION: i32 = -120;
    pub const AUTH_FAILED: i32 = -115;
    pub const NO_WATCHER: i32 = -121;
    pub const RECONFIG_DISABLED: i32 = -123;
    pub const QUOTA_EXCEEDED: i32 = -125;
}

/// Create flags (spec §3.2).
pub mod mode {
    pub const PERSISTENT: i32 = 0;
    pub const EPHEMERAL: i32 = 1;
    pub const SEQUENTIAL: i32 = 2;
    pub const EPHEMERAL_SEQUENTIAL: i32 = 3;
    pub const CONTAINER: i32 = 4;
    pub const TTL: i32 = 5;
    pub const TTL_SEQUENTIAL: i32 = 6;
}

/// Event types (spec §6.3).
pub mod event {
    pub const CREATED: i32 = 1;
    pub const DELETED: i32 = 2;
    pub const DATA: i32 = 3;
    pub const CHILDREN: i32 = 4;
}

/// Permission bits (spec §7.1).
pub mod perm {
    pub const READ: i32 = 1;
    pub const WRITE: i32 = 2;
    pub const CREATE: i32 = 4;
    pub const DELETE: i32 = 8;
    pub const ADMIN: i32 = 16;
    pub const ALL: i32 = 31;
}

/// Watch types of checkWatches and removeWatches (spec §3.6).
pub mod kind {
    pub const CHILDREN: i32 = 1;
    pub const DATA: i32 = 2;
    pub const ANY: i32 = 3;
    pub const PERSISTENT: i32 = 4;
    pub const RECURSIVE: i32 = 5;
}

/// One access right, as stored and as sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Acl {
    pub perms: i32,
    pub scheme: String,
    pub id: String,
}

pub fn acl(perms: i32, scheme: &str, id: &str) -> Acl {
    Acl {
        perms,
        scheme: scheme.into(),
        id: id.into(),
    }
}

/// Everybody may do everything.
pub fn open_acl() -> Vec<Acl> {
    vec![acl(perm::ALL, "world", "anyone")]
}

/// The 68-byte Stat (spec §3.2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stat {
    pub czxid: i64,
    pub mzxid: i64,
    pub ctime: i64,
    pub mtime: i64,
    pub version: i32,
    pub cversion: i32,
    pub aversion: i32,
    pub ephemeral_owner: i64,
    pub data_length: i32,
    pub num_children: i32,
    pub pzxid: i64,
}

/// A jute record under construction. Every method appends one field.
#[derive(Clone, Debug, Default)]
pub struct Body(Vec<u8>);

impl Body {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn int(mut self, value: i32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn long(mut self, value: i64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn boolean(self, value: bool) -> Self {
        self.raw(&[u8::from(value)])
    }

    pub fn string(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }

    pub fn bytes(self, value: &[u8]) -> Self {
        self.int(value.len() as i32).raw(value)
    }

    pub fn buffer(self, value: Option<&[u8]>) -> Self {
        match value {
            Some(value) => self.bytes(value),
            None => self.null(),
        }
    }

    /// A null string, buffer or vector: the length -1.
    pub fn null(self) -> Self {
        self.int(-1)
    }

    pub fn strings(self, values: &[&str]) -> Self {
        let body = self.int(values.len() as i32);
        values.iter().fold(body, |body, value| body.string(value))
    }

    pub fn acl(self, list: &[Acl]) -> Self {
        let body = self.int(list.len() as i32);
        list.iter().fold(body, |body, acl| {
            body.int(acl.perms).string(&acl.scheme).string(&acl.id)
        })
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The record with its 4-byte length in front.
    pub fn into_frame(self) -> Vec<u8> {
        let mut frame = (self.0.len() as i32).to_be_bytes().to_vec();
        frame.extend(self.0);
        frame
    }
}

/// Request records that more than one test module builds (spec §3.2).
pub mod record {
    use super::{Acl, Body};

    pub fn create(path: &str, data: Option<&[u8]>, acl: &[Acl], flags: i32) -> Body {
        Body::new().string(path).buffer(data).acl(acl).int(flags)
    }

    pub fn path_and_watch(path: &str, watch: bool) -> Body {
        Body::new().string(path).boolean(watch)
    }

    /// DeleteRequest, CheckVersionRequest, CheckWatchesRequest, RemoveWatchesRequest,
    /// AddWatchRequest.
    pub fn path_and_int(path: &str, number: i32) -> Body {
        Body::new().string(path).int(number)
    }

    pub fn set_data(path: &str, data: Option<&[u8]>, version: i32) -> Body {
        Body::new().string(path).buffer(data).int(version)
    }

    pub fn auth(scheme: &str, data: &[u8]) -> Body {
        Body::new().int(0).string(scheme).bytes(data)
    }
}

/// Reads a jute record. Panics where the bytes end too early: that is the server's fault.
pub struct Reader {
    bytes: Vec<u8>,
    position: usize,
}

impl Reader {
    pub fn new(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            position: 0,
        }
    }

    pub fn take(&mut self, count: usize) -> &[u8] {
        let start = self.position;
        let left = self.bytes.len() - start;
        assert!(
            count <= left,
            "record ends early: {count} wanted at {start} of {:02x?}",
            self.bytes
        );
        self.position += count;
        &self.bytes[start..self.position]
    }

    pub fn int(&mut self) -> i32 {
        i32::from_be_bytes(self.take(4).try_into().expect("four bytes"))
    }

    pub fn long(&mut self) -> i64 {
        i64::from_be_bytes(self.take(8).try_into().expect("eight bytes"))
    }

    pub fn boolean(&mut self) -> bool {
        match self.take(1)[0] {
            0 => false,
            1 => true,
            other => panic!("a boolean of value {other}"),
        }
    }

    pub fn buffer(&mut self) -> Option<Vec<u8>> {
        match self.int() {
            -1 => None,
            length => {
                let length = usize::try_from(length).expect("a length");
                Some(self.take(length).to_vec())
            }
        }
    }

    pub fn string(&mut self) -> String {
        let bytes = self.buffer().expect("a string that is not null");
        String::from_utf8(bytes).expect("a string of UTF-8")
    }

    pub fn strings(&mut self) -> Vec<String> {
        (0..self.int()).map(|_| self.string()).collect()
    }

    pub fn stat(&mut self) -> Stat {
        Stat {
            czxid: self.long(),
            mzxid: self.long(),
            ctime: self.long(),
            mtime: self.long(),
            version: self.int(),
            cversion: self.int(),
            aversion: self.int(),
            ephemeral_owner: self.long(),
            data_length: self.int(),
            num_children: self.int(),
            pzxid: self.long(),
        }
    }

    pub fn acl(&mut self) -> Vec<Acl> {
        let entry = |reader: &mut Self| Acl {
            perms: reader.int(),
            scheme: reader.string(),
            id: reader.string(),
        };
        (0..self.int()).map(|_| entry(self)).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.position == self.bytes.len()
    }

    pub fn end(&self) {
        let rest = &self.bytes[self.position..];
        assert!(
            rest.is_empty(),
            "bytes after the end of the record: {rest:02x?}"
        );
    }
}

/// The fields of a ConnectRequest (spec §2.1).
#[derive(Clone, Debug)]
pub struct Hello {
    pub last_zxid: i64,
    pub timeout_ms: i32,
    pub session: i64,
    pub password: Option<Vec<u8>>,
    /// None leaves the byte out, as Go and old C clients do.
    pub read_only: Option<bool>,
}

impl Default for Hello {
    fn default() -> Self {
        Self {
            last_zxid: 0,
            timeout_ms: 30_000,
            session: 0,
            password: Some(vec![0; 16]),
            read_only: Some(false),
        }
    }
}

impl Hello {
    pub fn frame(&self) -> Vec<u8> {
        let body = Body::new()
            .int(0)
            .long(self.last_zxid)
            .int(self.timeout_ms)
            .long(self.session)
            .buffer(self.password.as_deref());
        match self.read_only {
            Some(read_only) => body.boolean(read_only).into_frame(),
            None => body.into_frame(),
        }
    }
}

/// A ConnectResponse (spec §2.1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Welcome {
    pub timeout_ms: i32,
    pub session: i64,
    pub password: Vec<u8>,
    pub read_only: Option<bool>,
}

impl Welcome {
    pub fn parse(frame: &[u8]) -> Self {
        let mut reader = Reader::new(frame);
        assert_eq!(reader.int(), 0, "the protocol version is 0");
        let welcome = Self {
            timeout_ms: reader.int(),
            session: reader.long(),
            password: reader.buffer().expect("a password"),
            read_only: None,
        };
        assert_eq!(
            welcome.password.len(),
            16,
            "the password always has 16 bytes"
        );
        let read_only = (!reader.is_empty()).then(|| reader.boolean());
        reader.end();
        Self {
            read_only,
            ..welcome
        }
    }

    /// What a session that cannot be continued gets (spec §2.2 step 9), with the readOnly byte.
    pub fn refused() -> Self {
        Self {
            timeout_ms: 0,
            session: 0,
            password: vec![0; 16],
            read_only: Some(false),
        }
    }
}

/// One frame after the handshake.
#[derive(Clone, Debug)]
pub enum Incoming {
    Event(Event),
    Reply(Reply),
}

/// A watch notification. `zxid` is that of its header (spec §6.7).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    pub zxid: i64,
    pub kind: i32,
    pub path: String,
}

#[derive(Clone, Eq, PartialEq)]
pub struct Reply {
    pub xid: i32,
    pub zxid: i64,
    pub err: i32,
    pub body: Vec<u8>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            xid,
            zxid,
            err,
            body,
        } = self;
        write!(
            f,
            "Reply {{ xid {xid}, zxid {zxid:#x}, err {err}, body {body:02x?} }}"
        )
    }
}

impl Reply {
    /// The decoded body, or the error code. The body must be exactly the record.
    pub fn read<T>(&self, parse: impl FnOnce(&mut Reader) -> T) -> Result<T, i32> {
        if self.err != 0 {
            assert!(self.body.is_empty(), "a refusal has no body: {self:?}");
            return Err(self.err);
        }
        let mut reader = Reader::new(&self.body);
        let value = parse(&mut reader);
        reader.end();
        Ok(value)
    }

    /// For operations that answer with a header alone.
    pub fn done(&self) -> Result<(), i32> {
        self.read(|_| ())
    }
}

/// A TCP connection that sends and receives frames. It may not have said hello yet.
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts connections");
        stream.set_nodelay(true).expect("nodelay");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("read timeout");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("write timeout");
        Self { stream }
    }

    pub fn set_patience(&self, patience: Duration) {
        self.stream
            .set_read_timeout(Some(patience))
            .expect("read timeout");
    }

    pub fn local_port(&self) -> u16 {
        self.stream.local_addr().expect("a local address").port()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// For tests in which the server may close before it has read everything.
    pub fn send_unheeded(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The body of the next frame.
    pub fn frame(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.stream
            .read_exact(&mut length)
            .expect("a frame within the deadline");
        let length = usize::try_from(i32::from_be_bytes(length)).expect("a length");
        let mut body = vec![0; length];
        self.stream
            .read_exact(&mut body)
            .expect("the rest of the frame");
        body
    }

    pub fn welcome(&mut self) -> Welcome {
        Welcome::parse(&self.frame())
    }

    /// Everything the server sends until it closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => rest,
            // Bytes that the server had not read when it closed turn its close into a reset.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => rest,
            Err(error) => panic!("the server did not close: {error}, after {rest:02x?}"),
        }
    }

    /// Passes if the server closes without another byte.
    pub fn closes(&mut self) {
        assert_eq!(self.rest(), [], "the server closes without another byte");
    }

    /// Whether the server has neither sent nor closed anything by the end of `wait`.
    pub fn is_silent_for(&mut self, wait: Duration) -> bool {
        self.set_patience(wait);
        let result = self.stream.read(&mut [0]).map_err(|error| error.kind());
        self.set_patience(PATIENCE);
        matches!(result, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }
}

/// A client with a session. Dropping it closes the session, so that its expiry does not disturb
/// another test; [`Client::vanish`] drops the TCP connection alone.
pub struct Client {
    connection: Option<Connection>,
    pub welcome: Welcome,
    /// The zxid in the header of the latest reply.
    pub zxid: i64,
    next_xid: i32,
}

impl Client {
    pub fn open(address: SocketAddr, hello: &Hello) -> Self {
        let mut connection = Connection::open(address);
        connection.send(&hello.frame());
        let welcome = connection.welcome();
        assert_ne!(welcome.session, 0, "the session was refused");
        // A server that can write never claims to be read-only; its client is made by
        // [`Client::of`].
        let expected = hello.read_only.map(|_| false);
        assert_eq!(
            welcome.read_only, expected,
            "the readOnly byte is given back"
        );
        Self::of(connection, welcome)
    }

    /// A client whose hello was answered.
    pub fn of(connection: Connection, welcome: Welcome) -> Self {
        Self {
            connection: Some(connection),
            welcome,
            zxid: 0,
            next_xid: 1,
        }
    }

    /// A hello that continues this client's session.
    pub fn hello_again(&self) -> Hello {
        Hello {
            session: self.welcome.session,
            password: Some(self.welcome.password.clone()),
            timeout_ms: self.welcome.timeout_ms,
            ..Hello::default()
        }
    }

    pub fn connection(&mut self) -> &mut Connection {
        self.connection
            .as_mut()
            .expect("a connection that was not given away")
    }

    /// Sends a request and returns its xid.
    pub fn send(&mut self, operation: i32, body: Body) -> i32 {
        let xid = self.next_xid;
        self.next_xid += 1;
        self.send_as(xid, operation, body);
        xid
    }

    pub fn send_as(&mut self, xid: i32, operation: i32, body: Body) {
        let frame = Body::new()
            .int(xid)
            .int(operation)
            .raw(&body.into_bytes())
            .into_frame();
        self.connection().send(&frame);
    }

    pub fn incoming(&mut self) -> Incoming {
        let frame = self.connection().frame();
        let mut reader = Reader::new(&frame);
        let (xid, zxid, err) = (reader.int(), reader.long(), reader.int());
        if xid != -1 {
            self.zxid = zxid;
            return Incoming::Reply(Reply {
                xid,
                zxid,
                err,
                body: frame[16..].to_vec(),
            });
        }
        assert_eq!(err, 0, "a notification carries no error");
        let (kind, state, path) = (reader.int(), reader.int(), reader.string());
        reader.end();
        assert_eq!(state, 3, "the state of a notification is SyncConnected");
        Incoming::Event(Event { zxid, kind, path })
    }

    /// The next frame, which must be the reply to `xid`.
    pub fn reply(&mut self, xid: i32) -> Reply {
        match self.incoming() {
            Incoming::Reply(reply) if reply.xid == xid => reply,
            other => panic!("expected the reply to xid {xid}, got {other:?}"),
        }
    }

    /// The next frame, which must be a notification.
    pub fn event(&mut self) -> Event {
        match self.incoming() {
            Incoming::Event(event) => event,
            other => panic!("expected a notification, got {other:?}"),
        }
    }

    /// The next frames must be these notifications, as (type, path), in this order.
    pub fn events(&mut self, expected: &[(i32, &str)]) {
        for (index, (kind, path)) in expected.iter().enumerate() {
            let event = self.event();
            assert_eq!(
                (event.kind, &*event.path),
                (*kind, *path),
                "notification {index}"
            );
        }
    }

    /// Passes if no notification is waiting: all those of earlier transactions would have to come
    /// before the reply to this read (spec §6.5).
    pub fn no_event(&mut self) {
        self.exists("/").expect("the root exists");
    }

    pub fn call(&mut self, operation: i32, body: Body) -> Reply {
        let xid = self.send(operation, body);
        self.reply(xid)
    }

    pub fn create_with(
        &mut self,
        path: &str,
        data: Option<&[u8]>,
        acl: &[Acl],
        flags: i32,
    ) -> Result<String, i32> {
        self.call(op::CREATE, record::create(path, data, acl, flags))
            .read(Reader::string)
    }

    /// Creates a znode with one byte of data that is open to everybody.
    pub fn create(&mut self, path: &str, flags: i32) -> Result<String, i32> {
        self.create_with(path, Some(b"x"), &open_acl(), flags)
    }

    /// Creates a persistent znode that the test needs.
    pub fn make(&mut self, path: &str) {
        assert_eq!(self.create(path, mode::PERSISTENT).as_deref(), Ok(path));
    }

    /// One of the operations that answer with a path and a Stat: create2, createContainer.
    pub fn create2(
        &mut self,
        operation: i32,
        path: &str,
        flags: i32,
    ) -> Result<(String, Stat), i32> {
        self.call(
            operation,
            record::create(path, Some(b"x"), &open_acl(), flags),
        )
        .read(|reader| (reader.string(), reader.stat()))
    }

    pub fn create_ttl(&mut self, path: &str, flags: i32, ttl: i64) -> Result<(String, Stat), i32> {
        let body = record::create(path, Some(b"x"), &open_acl(), flags).long(ttl);
        self.call(op::CREATE_TTL, body)
            .read(|reader| (reader.string(), reader.stat()))
    }

    pub fn delete(&mut self, path: &str, version: i32) -> Result<(), i32> {
        self.call(op::DELETE, record::path_and_int(path, version))
            .done()
    }

    pub fn exists(&mut self, path: &str) -> Result<Stat, i32> {
        self.call(op::EXISTS, record::path_and_watch(path, false))
            .read(Reader::stat)
    }

    pub fn exists_watch(&mut self, path: &str) -> Result<Stat, i32> {
        self.call(op::EXISTS, record::path_and_watch(path, true))
            .read(Reader::stat)
    }

    pub fn get(&mut self, path: &str) -> Result<(Option<Vec<u8>>, Stat), i32> {
        self.call(op::GET_DATA, record::path_and_watch(path, false))
            .read(|reader| (reader.buffer(), reader.stat()))
    }

    pub fn get_watch(&mut self, path: &str) -> Result<(Option<Vec<u8>>, Stat), i32> {
        self.call(op::GET_DATA, record::path_and_watch(path, true))
            .read(|reader| (reader.buffer(), reader.stat()))
    }

    pub fn set(&mut self, path: &str, data: &[u8], version: i32) -> Result<Stat, i32> {
        self.call(op::SET_DATA, record::set_data(path, Some(data), version))
            .read(Reader::stat)
    }

    /// The children, sorted: their order on the wire means nothing (spec §3.6).
    pub fn children(&mut self, path: &str) -> Result<Vec<String>, i32> {
        self.list(path, false)
    }

    pub fn children_watch(&mut self, path: &str) -> Result<Vec<String>, i32> {
        self.list(path, true)
    }

    fn list(&mut self, path: &str, watch: bool) -> Result<Vec<String>, i32> {
        self.call(op::GET_CHILDREN, record::path_and_watch(path, watch))
            .read(|reader| {
                let mut names = reader.strings();
                names.sort();
                names
            })
    }

    pub fn get_acl(&mut self, path: &str) -> Result<(Vec<Acl>, Stat), i32> {
        self.call(op::GET_ACL, Body::new().string(path))
            .read(|reader| (reader.acl(), reader.stat()))
    }

    pub fn set_acl(&mut self, path: &str, acl: &[Acl], version: i32) -> Result<Stat, i32> {
        let body = Body::new().string(path).acl(acl).int(version);
        self.call(op::SET_ACL, body).read(Reader::stat)
    }

    pub fn sync(&mut self, path: &str) -> Result<String, i32> {
        self.call(op::SYNC, Body::new().string(path))
            .read(Reader::string)
    }

    /// Sends an auth packet with the Java client's xid and returns the error code of its reply.
    pub fn auth(&mut self, scheme: &str, data: &[u8]) -> i32 {
        self.send_as(-4, op::AUTH, record::auth(scheme, data));
        let reply = self.reply(-4);
        assert_eq!(reply.zxid, 0, "an auth reply carries zxid 0");
        assert!(reply.body.is_empty(), "an auth reply has no body");
        reply.err
    }

    pub fn add_watch(&mut self, path: &str, mode: i32) -> Result<i32, i32> {
        self.call(op::ADD_WATCH, record::path_and_int(path, mode))
            .read(Reader::int)
    }

    pub fn check_watches(&mut self, path: &str, kind: i32) -> Result<(), i32> {
        self.call(op::CHECK_WATCHES, record::path_and_int(path, kind))
            .done()
    }

    pub fn remove_watches(&mut self, path: &str, kind: i32) -> Result<(), i32> {
        self.call(op::REMOVE_WATCHES, record::path_and_int(path, kind))
            .done()
    }

    /// The ids of this connection as (scheme, user), sorted.
    pub fn who_am_i(&mut self) -> Vec<(String, String)> {
        let ids = self.call(op::WHO_AM_I, Body::new()).read(|reader| {
            let count = reader.int();
            (0..count)
                .map(|_| (reader.string(), reader.string()))
                .collect::<Vec<_>>()
        });
        let mut ids = ids.expect("whoAmI is never refused");
        ids.sort();
        ids
    }

    /// The paths of this session's ephemerals under a prefix, sorted. None is a null prefix.
    pub fn ephemerals(&mut self, prefix: Option<&str>) -> Vec<String> {
        let body = Body::new().buffer(prefix.map(str::as_bytes));
        let mut paths = self
            .call(op::GET_EPHEMERALS, body)
            .read(Reader::strings)
            .expect("never refused");
        paths.sort();
        paths
    }

    pub fn ping(&mut self) -> Reply {
        self.send_as(-2, op::PING, Body::new());
        let reply = self.reply(-2);
        assert_eq!(reply.done(), Ok(()));
        reply
    }

    /// Ends the session and checks that the server answers and closes (spec §2.6).
    pub fn close(mut self) -> Reply {
        let reply = self.call(op::CLOSE_SESSION, Body::new());
        assert_eq!(reply.done(), Ok(()));
        self.connection().closes();
        self.connection = None;
        reply
    }

    /// Gives the connection away; the session is left to itself.
    pub fn into_connection(mut self) -> Connection {
        self.connection
            .take()
            .expect("a connection that was not given away")
    }

    /// Breaks the TCP connection and leaves the session behind.
    pub fn vanish(mut self) {
        self.connection = None;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.connection {
            let close = Body::new()
                .int(i32::MAX)
                .int(op::CLOSE_SESSION)
                .into_frame();
            connection.send_unheeded(&close);
            // Waits for the server to act on it. What it says does not matter any more: the test
            // has passed, or it is failing already.
            let _ = connection.stream.read_to_end(&mut Vec::new());
        }
    }
}

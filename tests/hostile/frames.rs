//! Frames as a client sends them: bytes, right or wrong (spec §1, §2, §3).

pub mod op {
    pub const CREATE: i32 = 1;
    pub const EXISTS: i32 = 3;
    pub const GET_DATA: i32 = 4;
    pub const SET_DATA: i32 = 5;
    pub const GET_CHILDREN: i32 = 8;
    pub const PING: i32 = 11;
    pub const MULTI_READ: i32 = 22;
    pub const SET_WATCHES: i32 = 101;
    pub const GET_EPHEMERALS: i32 = 103;
    pub const GET_ALL_CHILDREN_NUMBER: i32 = 104;
    pub const ADD_WATCH: i32 = 106;
}

pub const EPHEMERAL: i32 = 1;
pub const BAD_ARGUMENTS: i32 = -8;
pub const QUOTA_EXCEEDED: i32 = -125;

/// A record under construction.
#[derive(Clone, Default)]
pub struct Body(pub Vec<u8>);

impl Body {
    pub fn int(mut self, value: i32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn long(mut self, value: i64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn flag(mut self, value: bool) -> Self {
        self.0.push(u8::from(value));
        self
    }

    pub fn bytes(mut self, value: &[u8]) -> Self {
        self = self.int(value.len() as i32);
        self.0.extend(value);
        self
    }

    pub fn text(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }

    /// With its length before it.
    pub fn frame(self) -> Vec<u8> {
        Self::default().bytes(&self.0).0
    }
}

pub fn hello(timeout_ms: i32) -> Vec<u8> {
    Body::default()
        .int(0)
        .long(0)
        .int(timeout_ms)
        .long(0)
        .bytes(&[0; 16])
        .flag(false)
        .frame()
}

fn request(xid: i32, opcode: i32) -> Body {
    Body::default().int(xid).int(opcode)
}

pub fn ping() -> Vec<u8> {
    request(-2, op::PING).frame()
}

/// exists, getData or getChildren.
pub fn read(xid: i32, opcode: i32, path: &str, watch: bool) -> Vec<u8> {
    request(xid, opcode).text(path).flag(watch).frame()
}

pub fn get(xid: i32, path: &str) -> Vec<u8> {
    read(xid, op::GET_DATA, path, false)
}

pub fn list(xid: i32, path: &str) -> Vec<u8> {
    read(xid, op::GET_CHILDREN, path, false)
}

pub fn set(xid: i32, path: &str, data: &[u8]) -> Vec<u8> {
    request(xid, op::SET_DATA)
        .text(path)
        .bytes(data)
        .int(-1)
        .frame()
}

pub fn create(xid: i32, path: &str, data: &[u8], flags: i32) -> Vec<u8> {
    request(xid, op::CREATE)
        .text(path)
        .bytes(data)
        .int(1)
        .int(31)
        .text("world")
        .text("anyone")
        .int(flags)
        .frame()
}

/// addWatch: mode 0 is persistent, 1 recursive.
pub fn add_watch(xid: i32, path: &str, mode: i32) -> Vec<u8> {
    request(xid, op::ADD_WATCH).text(path).int(mode).frame()
}

/// setWatches with these paths in its list of exist watches.
pub fn set_watches(paths: &[String]) -> Vec<u8> {
    let body = request(-8, op::SET_WATCHES).long(i64::MAX).int(0);
    let body = body.int(paths.len() as i32);
    paths
        .iter()
        .fold(body, |body, path| body.text(path))
        .int(0)
        .frame()
}

/// getAllChildrenNumber or getEphemerals.
pub fn ask(xid: i32, opcode: i32, path: &str) -> Vec<u8> {
    request(xid, opcode).text(path).frame()
}

/// A multiRead that gets the data of this znode so many times.
pub fn multi_read(xid: i32, path: &str, times: usize) -> Vec<u8> {
    let header = |body: Body, kind, done| body.int(kind).flag(done).int(-1);
    let body = (0..times).fold(request(xid, op::MULTI_READ), |body, _| {
        header(body, op::GET_DATA, false).text(path).flag(false)
    });
    header(body, -1, true).frame()
}

//! Requests as the stream holds them: readable when printed, and free to be wrong.

use crate::client::{Acl, Body, mode, op};

/// A string that may be null.
pub type Text = Option<String>;

/// Which zxid a setWatches says that it has seen last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Since {
    Zero,
    /// That many transactions before the last reply of the connection.
    Back(i64),
    Future,
}

/// Everything a client can ask for. `op` is the operation's number where a record has several.
#[derive(Clone, Debug)]
pub enum Request {
    /// create, create2, createContainer; createTTL if there is a `ttl`.
    Create {
        op: i32,
        path: Text,
        data: Option<Vec<u8>>,
        acl: Option<Vec<Acl>>,
        flags: i32,
        ttl: Option<i64>,
    },
    /// exists, getData, getChildren, getChildren2. Any other byte than 0 asks for the watch.
    Read {
        op: i32,
        path: Text,
        watch: u8,
    },
    /// delete and check with a version, checkWatches and removeWatches with a type, addWatch with
    /// a mode.
    Numbered {
        op: i32,
        path: Text,
        number: i32,
    },
    SetData {
        path: Text,
        data: Option<Vec<u8>>,
        version: i32,
    },
    SetAcl {
        path: Text,
        acl: Option<Vec<Acl>>,
        version: i32,
    },
    /// getACL, sync, getEphemerals, getAllChildrenNumber, deleteContainer.
    Path {
        op: i32,
        path: Text,
    },
    /// multi and multiRead.
    Multi {
        op: i32,
        parts: Vec<Request>,
    },
    /// setWatches with three lists, setWatches2 with five.
    SetWatches {
        op: i32,
        since: Since,
        lists: Vec<Option<Vec<String>>>,
    },
    Reconfig {
        joining: Text,
        leaving: Text,
        members: Text,
        version: i64,
    },
    Auth {
        scheme: Text,
        data: Option<Vec<u8>>,
    },
    Sasl {
        token: Option<Vec<u8>>,
    },
    /// ping, whoAmI, closeSession, and what no client may send.
    Bare {
        op: i32,
    },
    /// A request whose record ends before its frame should: `kept` of 1000 parts are left.
    Cut {
        of: Box<Request>,
        kept: u64,
    },
    /// A request with bytes behind its record.
    Longer {
        of: Box<Request>,
        by: usize,
    },
    /// Any bytes behind any operation's number.
    Odd {
        op: i32,
        body: Vec<u8>,
    },
}

impl Request {
    /// The operation's number as sent.
    pub fn op(&self) -> i32 {
        match self {
            Self::Create { op, .. }
            | Self::Read { op, .. }
            | Self::Numbered { op, .. }
            | Self::Path { op, .. }
            | Self::Multi { op, .. }
            | Self::SetWatches { op, .. }
            | Self::Bare { op }
            | Self::Odd { op, .. } => *op,
            Self::SetData { .. } => op::SET_DATA,
            Self::SetAcl { .. } => op::SET_ACL,
            Self::Reconfig { .. } => op::RECONFIG,
            Self::Auth { .. } => op::AUTH,
            Self::Sasl { .. } => op::SASL,
            Self::Cut { of, .. } | Self::Longer { of, .. } => of.op(),
        }
    }

    /// The request without what was done to its bytes.
    pub fn inner(&self) -> &Self {
        match self {
            Self::Cut { of, .. } | Self::Longer { of, .. } => of.inner(),
            other => other,
        }
    }

    /// Whether ZooKeeper answers it before what the connection sent earlier is answered, so that
    /// the order of replies is not decided (spec §2.5): what never enters its pipeline.
    pub fn overtakes(&self) -> bool {
        matches!(self.op(), op::AUTH | op::SASL | op::CHECK) || !known_operation(self.op())
    }

    /// Whether the connection may be closed by it: what stands behind it is served or not.
    pub fn may_end_connection(&self) -> bool {
        matches!(
            self.op(),
            op::AUTH | op::CLOSE_SESSION | op::DELETE_CONTAINER | op::CHECK
        ) || !known_operation(self.op())
    }

    /// Whether it goes through the log (spec §3.1), so that ZooKeeper gives it a zxid even if it
    /// fails.
    pub fn is_write(&self) -> bool {
        matches!(
            self.op(),
            op::CREATE
                | op::DELETE
                | op::SET_DATA
                | op::SET_ACL
                | op::MULTI
                | op::CREATE2
                | op::RECONFIG
                | op::CREATE_CONTAINER
                | op::DELETE_CONTAINER
                | op::CREATE_TTL
                | op::CLOSE_SESSION
        )
    }

    /// Requests within a multi.
    pub fn parts(&self) -> &[Request] {
        match self.inner() {
            Self::Multi { parts, .. } => parts,
            _ => &[],
        }
    }

    /// Changes what ends a whole multi where ZooKeeper has worked on the parts before it already,
    /// which it does not take back then: a null path becomes this one, a TTL is given where one is
    /// needed and the operation has none.
    pub fn without_end_of_multi(&mut self, other: &str) {
        if let Self::Create {
            flags, ttl: None, ..
        } = self
            && matches!(*flags, mode::TTL | mode::TTL_SEQUENTIAL)
        {
            *flags = mode::PERSISTENT;
        }
        match self {
            Self::Create { path, .. }
            | Self::Read { path, .. }
            | Self::Numbered { path, .. }
            | Self::SetData { path, .. }
            | Self::SetAcl { path, .. }
            | Self::Path { path, .. } => {
                path.get_or_insert_with(|| other.into());
            }
            _ => {}
        }
    }

    /// The record; `since` tells the number that a [`Since`] means to this server.
    pub fn record(&self, since: &dyn Fn(Since) -> i64) -> Vec<u8> {
        match self {
            Self::Create {
                path,
                data,
                acl,
                flags,
                ttl,
                ..
            } => {
                let body = with_acl(text(Body::new(), path).buffer(data.as_deref()), acl);
                let body = body.int(*flags);
                match ttl {
                    Some(ttl) => body.long(*ttl),
                    None => body,
                }
                .into_bytes()
            }
            Self::Read { path, watch, .. } => text(Body::new(), path).raw(&[*watch]).into_bytes(),
            Self::Numbered { path, number, .. } => {
                text(Body::new(), path).int(*number).into_bytes()
            }
            Self::SetData {
                path,
                data,
                version,
            } => text(Body::new(), path)
                .buffer(data.as_deref())
                .int(*version)
                .into_bytes(),
            Self::SetAcl { path, acl, version } => with_acl(text(Body::new(), path), acl)
                .int(*version)
                .into_bytes(),
            Self::Path { path, .. } => text(Body::new(), path).into_bytes(),
            Self::Multi { parts, .. } => {
                let body = parts.iter().fold(Body::new(), |body, part| {
                    body.int(part.op())
                        .boolean(false)
                        .int(-1)
                        .raw(&part.record(since))
                });
                body.int(-1).boolean(true).int(-1).into_bytes()
            }
            Self::SetWatches {
                since: seen, lists, ..
            } => {
                let body = Body::new().long(since(*seen));
                lists
                    .iter()
                    .fold(body, |body, list| match list {
                        Some(list) => list
                            .iter()
                            .fold(body.int(list.len() as i32), |body, path| body.string(path)),
                        None => body.null(),
                    })
                    .into_bytes()
            }
            Self::Reconfig {
                joining,
                leaving,
                members,
                version,
            } => {
                let body = [joining, leaving, members]
                    .into_iter()
                    .fold(Body::new(), text);
                body.long(*version).into_bytes()
            }
            Self::Auth { scheme, data } => text(Body::new().int(0), scheme)
                .buffer(data.as_deref())
                .into_bytes(),
            Self::Sasl { token } => Body::new().buffer(token.as_deref()).into_bytes(),
            Self::Bare { .. } => Vec::new(),
            Self::Cut { of, kept } => {
                let mut record = of.record(since);
                // At least a byte is missing, or nothing would be wrong with it.
                let length = record.len().saturating_sub(1);
                record.truncate(length * *kept as usize / 1000);
                record
            }
            Self::Longer { of, by } => {
                let mut record = of.record(since);
                record.resize(record.len() + by, 0x5a);
                record
            }
            Self::Odd { body, .. } => body.clone(),
        }
    }
}

/// Whether an operation number means something to a server that clients may ask for.
pub fn known_operation(number: i32) -> bool {
    matches!(number, 1..=9 | 11..=22 | 100..=107 | op::CLOSE_SESSION)
}

fn text(body: Body, text: &Text) -> Body {
    body.buffer(text.as_deref().map(str::as_bytes))
}

fn with_acl(body: Body, acl: &Option<Vec<Acl>>) -> Body {
    match acl {
        Some(acl) => body.acl(acl),
        None => body.null(),
    }
}

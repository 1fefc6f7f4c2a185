//! What no client may put into the log, because every server would pay for it again and again.
//!
//! Decided by the server that accepted the connection: what is in the log is applied whatever it
//! asks for.

use bytes::Bytes;

use crate::machine::PATH_BYTES_MAX;
use crate::wire::request::Create;
use crate::wire::{Acl, ErrorCode, Request, SubRequest};

/// An access list has no more entries than that, and for each `auth` in it one for every identity:
/// they are compared with each other when it is set, and with a caller whenever it is asked.
pub const ACL_ENTRIES_MAX: usize = 256;

/// As many entries may the `auth` of all lists of one request come to: a list of each is kept.
pub const AUTH_ENTRIES_MAX: usize = 65_536;

/// A znode below [`QUOTAS`] has no more bytes than that: limits and statistics are read with every
/// write that they govern, and statistics are written again.
pub const QUOTA_BYTES_MAX: usize = 1024;

const QUOTAS: &str = "/zookeeper/quota/";

/// Why a request of a session with so many identities is not taken in, if it is not.
pub fn refusal(request: &Request, identities: impl Fn() -> usize) -> Option<ErrorCode> {
    let mut so_far = SoFar::default();
    match request {
        Request::Create(create) => so_far.create(create, &identities),
        Request::SetData { path, data, .. } => of_data(path, data),
        Request::SetAcl { acl, .. } => so_far.acl(acl, &identities),
        Request::Multi(operations) => operations.iter().find_map(|operation| match operation {
            SubRequest::Create(create) => so_far.create(create, &identities),
            SubRequest::SetData { path, data, .. } => of_data(path, data),
            _ => None,
        }),
        _ => None,
    }
}

/// What the operations of one request come to.
#[derive(Default)]
struct SoFar {
    auth_entries: usize,
    quotas: usize,
}

impl SoFar {
    fn acl(&mut self, acl: &Option<Vec<Acl>>, identities: impl Fn() -> usize) -> Option<ErrorCode> {
        let entries = acl.iter().flatten();
        let all = entries.clone().count();
        let auth = entries.filter(|entry| &*entry.id.scheme == "auth").count();
        let expanded = auth * if auth > 0 { identities() } else { 0 };
        self.auth_entries += expanded;
        let is_long = all - auth + expanded > ACL_ENTRIES_MAX;
        (is_long || self.auth_entries > AUTH_ENTRIES_MAX).then_some(ErrorCode::InvalidAcl)
    }

    fn create(&mut self, create: &Create, identities: impl Fn() -> usize) -> Option<ErrorCode> {
        let path = &*create.path;
        // A quota that begins counts its subtree.
        self.quotas += usize::from(path.starts_with(QUOTAS) && path.ends_with("/zookeeper_stats"));
        if path.len() > PATH_BYTES_MAX || self.quotas > 1 {
            return Some(ErrorCode::BadArguments);
        }
        let acl = self.acl(&create.acl, identities);
        acl.or_else(|| of_data(path, &create.data))
    }
}

fn of_data(path: &str, data: &Option<Bytes>) -> Option<ErrorCode> {
    let bytes = data.as_ref().map_or(0, Bytes::len);
    let is_long = path.starts_with(QUOTAS) && bytes > QUOTA_BYTES_MAX;
    is_long.then_some(ErrorCode::BadArguments)
}

//! What no client may put into the log, because every server would pay for it again and again.
//!
//! Decided by the server that accepted the connection: what is in the log is applied whatever it
//! asks for.

use bytes::Bytes;

use crate::wire::request::Create;
use crate::wire::{Acl, ErrorCode, Request, SubRequest};

/// An access list has no more entries than that, and for each `auth` in it one for every identity:
/// they are compared with each other when it is set, and with a caller whenever it is asked.
pub const ACL_ENTRIES_MAX: usize = 256;

/// A znode below [`QUOTAS`] has no more bytes than that: limits and statistics are read with every
/// write that they govern, and statistics are written again.
pub const QUOTA_BYTES_MAX: usize = 1024;

const QUOTAS: &str = "/zookeeper/quota/";

/// Why a request of a session with so many identities is not taken in, if it is not.
pub fn refusal(request: &Request, identities: impl Fn() -> usize) -> Option<ErrorCode> {
    let is_long = |list: &Option<Vec<Acl>>| {
        let weight = |entry: &Acl| match &*entry.id.scheme {
            "auth" => identities(),
            _ => 1,
        };
        list.iter().flatten().map(weight).sum::<usize>() > ACL_ENTRIES_MAX
    };
    let of_acl = |acl: &Option<Vec<Acl>>| is_long(acl).then_some(ErrorCode::InvalidAcl);
    let of_data = |path: &str, data: &Option<Bytes>| {
        let bytes = data.as_ref().map_or(0, Bytes::len);
        let is_long = path.starts_with(QUOTAS) && bytes > QUOTA_BYTES_MAX;
        is_long.then_some(ErrorCode::BadArguments)
    };
    let of_create =
        |create: &Create| of_acl(&create.acl).or_else(|| of_data(&create.path, &create.data));
    match request {
        Request::Create(create) => of_create(create),
        Request::SetData { path, data, .. } => of_data(path, data),
        Request::SetAcl { acl, .. } => of_acl(acl),
        Request::Multi(operations) => operations.iter().find_map(|operation| match operation {
            SubRequest::Create(create) => of_create(create),
            SubRequest::SetData { path, data, .. } => of_data(path, data),
            _ => None,
        }),
        _ => None,
    }
}

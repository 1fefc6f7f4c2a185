//! Rules that depend on nothing but their arguments: paths, ACLs, versions, kinds.

use bytes::Bytes;
use zkraft::wire::request::Create;
use zkraft::wire::{Acl, CreateMode, ErrorCode, Id, SessionId, op};

use super::Kind;

/// §7.4: any one of the needed permissions, through any entry that matches any identity.
pub fn check_acl(acl: &[Acl], needed: i32, ids: &[Id]) -> Result<(), ErrorCode> {
    let matches = |entry: &Acl, id: &Id| match &*entry.id.scheme {
        "ip" if id.scheme == "ip" => ip_matches(&entry.id.id, &id.id),
        _ => entry.id == *id,
    };
    let granted = ids.iter().any(|id| id.scheme == "super")
        || acl.is_empty()
        || acl
            .iter()
            .filter(|entry| entry.perms & needed != 0)
            .any(|entry| {
                entry.id == Id::new("world", "anyone") || ids.iter().any(|id| matches(entry, id))
            });
    if granted {
        Ok(())
    } else {
        Err(ErrorCode::NoAuth)
    }
}

/// The znode's kind outside of a multi: the opcode decides (§3.3, §3.6).
pub(super) fn kind_alone(
    create: &Create,
    extended: i64,
    session: SessionId,
) -> Result<Kind, ErrorCode> {
    let mode = CreateMode::from_flags(create.flags).ok_or(ErrorCode::BadArguments)?;
    if mode.is_ttl() && extended == 0 {
        return Err(ErrorCode::Unimplemented);
    }
    match (create.opcode, create.ttl) {
        (op::CREATE_TTL, Some(ttl)) if mode.is_ttl() => ttl_kind(ttl),
        (op::CREATE_TTL, _) => Err(ErrorCode::BadArguments),
        _ if mode.is_ttl() => Err(ErrorCode::BadArguments),
        (op::CREATE_CONTAINER, _) => Ok(Kind::Container),
        _ if mode.is_ephemeral() => Ok(Kind::Ephemeral(session)),
        _ => Ok(Kind::Persistent),
    }
}

/// The znode's kind inside a multi: the mode decides (§4.1).
pub(super) fn kind_in_multi(
    create: &Create,
    extended: i64,
    session: SessionId,
) -> Result<Kind, ErrorCode> {
    match CreateMode::from_flags(create.flags).ok_or(ErrorCode::BadArguments)? {
        _ if create.opcode == op::CREATE_CONTAINER => Ok(Kind::Container),
        mode if mode.is_ttl() && extended == 0 => Err(ErrorCode::Unimplemented),
        mode if mode.is_ttl() => ttl_kind(create.ttl.ok_or(ErrorCode::BadArguments)?),
        mode if mode.is_ephemeral() => Ok(Kind::Ephemeral(session)),
        CreateMode::Container => Ok(Kind::Container),
        _ => Ok(Kind::Persistent),
    }
}

pub(super) fn ttl_kind(ttl: i64) -> Result<Kind, ErrorCode> {
    if (1..1 << 40).contains(&ttl) {
        Ok(Kind::Ttl(ttl))
    } else {
        Err(ErrorCode::BadArguments)
    }
}

/// §5.4, judged per UTF-16 unit: a character above U+FFFF has surrogates.
pub(super) fn validate_path(path: &str) -> Result<(), ErrorCode> {
    let bad_unit =
        |unit: u16| matches!(unit, 0..=0x1f | 0x7f..=0x9f | 0xd800..=0xf8ff | 0xfff0..=0xffff);
    let components = path.strip_prefix('/').ok_or(ErrorCode::BadArguments)?;
    let bad_component = |component: &str| matches!(component, "" | "." | "..");
    if path != "/" && components.split('/').any(bad_component) || path.encode_utf16().any(bad_unit)
    {
        return Err(ErrorCode::BadArguments);
    }
    Ok(())
}

pub(super) fn check_version(expected: i32, present: i32) -> Result<(), ErrorCode> {
    if expected == -1 || expected == present {
        Ok(())
    } else {
        Err(ErrorCode::BadVersion)
    }
}

/// §7.3. Duplicates go before `auth` is replaced.
pub(super) fn accept_acl(
    acl: Option<&[Acl]>,
    ids: &[Id],
    digest: bool,
) -> Result<Vec<Acl>, ErrorCode> {
    let mut unique: Vec<&Acl> = Vec::new();
    for entry in acl.unwrap_or_default() {
        if !unique.contains(&entry) {
            unique.push(entry);
        }
    }
    let mut accepted = Vec::new();
    for entry in unique {
        let id = &entry.id.id;
        match &*entry.id.scheme {
            "world" if *id == "anyone" => accepted.push(entry.clone()),
            "auth" => {
                let own = ids.iter().filter(|id| id.scheme == "digest");
                let before = accepted.len();
                accepted.extend(own.map(|id| Acl {
                    perms: entry.perms,
                    id: id.clone(),
                }));
                if accepted.len() == before {
                    return Err(ErrorCode::InvalidAcl);
                }
            }
            "digest" if digest && is_digest(id) => accepted.push(entry.clone()),
            "ip" if ip_range(id).is_some() => accepted.push(entry.clone()),
            _ => return Err(ErrorCode::InvalidAcl),
        }
    }
    if accepted.is_empty() {
        Err(ErrorCode::InvalidAcl)
    } else {
        Ok(accepted)
    }
}

/// Two parts at `:`, not counting empty ones at the end.
pub(super) fn is_digest(id: &str) -> bool {
    id.trim_end_matches(':').split(':').count() == 2 && id.contains(':')
}

/// An IPv4 range: address and number of leading bits that count. The simulation has no IPv6.
pub(super) fn ip_range(id: &str) -> Option<(u32, u32)> {
    let (address, bits) = match id.split_once('/') {
        None => (id, 32),
        Some((address, bits)) => (address, bits.parse().ok().filter(|bits| *bits <= 32)?),
    };
    Some((u32::from(address.parse::<std::net::Ipv4Addr>().ok()?), bits))
}

pub(super) fn ip_matches(range: &str, address: &str) -> bool {
    let (Some((base, bits)), Some((address, _))) = (ip_range(range), ip_range(address)) else {
        return false;
    };
    bits == 0 || (base ^ address) >> (32 - bits) == 0
}

/// §7.5: hashes are for those who may change the ACL.
pub(super) fn mask(entry: &Acl) -> Acl {
    let mut shown = entry.clone();
    if entry.id.scheme == "digest" {
        let user = entry.id.id.split(':').next().unwrap_or_default();
        shown.id.id = format!("{user}:x").into();
    }
    shown
}

pub(super) fn data_length(data: &Option<Bytes>) -> i64 {
    data.as_ref().map_or(0, |data| data.len() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s72_ids_that_acls_may_name() {
        let accepted = |scheme: &str, id: &str| {
            let entry = Acl {
                perms: 31,
                id: Id::new(scheme, id),
            };
            accept_acl(Some(&[entry]), &[], true).is_ok()
        };
        for (scheme, id) in [
            ("world", "x"),
            ("digest", "nocolon"),
            ("digest", "user:"),
            ("ip", "1.2.3"),
            ("ip", "127.0.0.0/33"),
            ("super", ""),
            ("auth", ""),
        ] {
            assert!(!accepted(scheme, id), "{scheme}:{id}");
        }
        assert!(accepted("digest", ":x") && accepted("ip", "127.0.0.0/8"));
    }

    #[test]
    fn s26_characters_that_paths_may_not_have() {
        for path in [
            "/\u{1}",
            "/\u{7f}",
            "/\u{e000}",
            "/\u{fffd}",
            "/\u{1f600}",
            "/a//b",
            "/a/",
        ] {
            assert!(validate_path(path).is_err(), "{path:?}");
        }
        for path in ["/", "/...", "/.x", "/x..", "/é"] {
            assert!(validate_path(path).is_ok(), "{path:?}");
        }
    }

    #[test]
    fn addresses_match_by_their_first_bits() {
        assert!(ip_matches("10.0.0.0/8", "10.1.2.3") && ip_matches("0.0.0.0/0", "9.9.9.9"));
        assert!(!ip_matches("10.0.0.0/30", "10.0.0.4") && !ip_matches("10.0.0.1", "10.0.0.2"));
    }
}

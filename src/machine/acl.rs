//! Access control: who may do what, which lists a znode may have, and the table that stores each
//! distinct list once (§7).

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::digest::{Part, Term};
use super::image::Record;
use super::slab::Slab;
use crate::wire::{Acl, DecodeError, ErrorCode, Id, Reader, Writer};

/// Whether the identities hold any of the `needed` permissions (§7.4).
///
/// An empty list grants everything, and the identity ("super", "") is granted everything.
pub fn allows(acl: &[Acl], needed: i32, identities: &[Id]) -> bool {
    acl.is_empty()
        || acl
            .iter()
            .any(|entry| entry.perms & needed != 0 && matches(&entry.id, identities))
        || identities.iter().any(|identity| identity.scheme == "super")
}

/// Whether an ACL entry's id speaks of one of the identities.
fn matches(id: &Id, identities: &[Id]) -> bool {
    match id.scheme.as_str() {
        "world" => id.id == "anyone",
        "ip" => {
            let Some(network) = Network::parse(&id.id) else {
                return false;
            };
            let addresses = identities.iter().filter(|identity| identity.scheme == "ip");
            addresses
                .filter_map(|identity| parse_address(&identity.id))
                .any(|a| network.holds(a))
        }
        _ => identities.contains(id),
    }
}

/// The list that a znode gets when a client asks for `list` (§7.3): without duplicates, and with
/// `auth` replaced by the caller's authenticated identities.
///
/// # Errors
/// `InvalidAcl` if the list is null or empty, names a scheme that is not registered or an id that
/// the scheme does not accept, or if `auth` stands for nobody.
pub fn accept<'a>(
    list: Option<&'a [Acl]>,
    identities: &[Id],
    digest_enabled: bool,
) -> Result<Cow<'a, [Acl]>, ErrorCode> {
    let list = list
        .filter(|list| !list.is_empty())
        .ok_or(ErrorCode::InvalidAcl)?;
    let is_literal = |entry: &Acl| entry.id.scheme != "auth";
    if let [entry] = list
        && is_literal(entry)
    {
        check_id(&entry.id, digest_enabled)?;
        return Ok(Cow::Borrowed(list));
    }
    let mut accepted = Vec::with_capacity(list.len());
    for (index, entry) in list.iter().enumerate() {
        if list[..index].contains(entry) {
            continue;
        }
        if is_literal(entry) {
            check_id(&entry.id, digest_enabled)?;
            accepted.push(entry.clone());
            continue;
        }
        let before = accepted.len();
        let authenticated = identities
            .iter()
            .filter(|identity| is_authenticated(identity));
        accepted.extend(authenticated.map(|identity| Acl {
            perms: entry.perms,
            id: identity.clone(),
        }));
        if accepted.len() == before {
            return Err(ErrorCode::InvalidAcl);
        }
    }
    Ok(Cow::Owned(accepted))
}

/// The list as a caller without ADMIN may see it: hashes of passwords are hidden (§7.5).
pub fn mask(acl: &[Acl]) -> Vec<Acl> {
    let mask_entry = |entry: &Acl| {
        let mut entry = entry.clone();
        if entry.id.scheme == "digest" {
            let user = entry.id.id.split(':').next().unwrap_or_default();
            entry.id.id = format!("{user}:x").into();
        }
        entry
    };
    acl.iter().map(mask_entry).collect()
}

/// Whether an identity was proven, as opposed to observed (ip) or granted (super).
fn is_authenticated(identity: &Id) -> bool {
    !matches!(identity.scheme.as_str(), "ip" | "super" | "world")
}

/// Whether the scheme is registered and accepts the id.
fn check_id(id: &Id, digest_enabled: bool) -> Result<(), ErrorCode> {
    let accepted = match id.scheme.as_str() {
        "world" => id.id == "anyone",
        "digest" => digest_enabled && is_digest_id(&id.id),
        "ip" => Network::parse(&id.id).is_some(),
        _ => false,
    };
    if accepted {
        Ok(())
    } else {
        Err(ErrorCode::InvalidAcl)
    }
}

/// `user:hash`, where the user may be empty and trailing colons do not count.
fn is_digest_id(id: &str) -> bool {
    id.trim_end_matches(':').split(':').count() == 2
}

/// The addresses an ACL entry of scheme `ip` speaks of.
struct Network {
    address: IpAddr,
    /// Leading bits that count.
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            None => (text, None),
            Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
        };
        let address: IpAddr = address.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        (bits <= width).then_some(Self { address, bits })
    }

    fn holds(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= self.bits
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

/// A client's address, whose textual form may name a scope (§7.2).
fn parse_address(text: &str) -> Option<IpAddr> {
    text.split('%').next()?.parse().ok()
}

/// The number of a list in the table.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct AclId(pub u32);

/// One distinct list.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    list: Arc<[Acl]>,
    term: u64,
    /// Znodes that have it. Derived.
    references: u32,
}

/// Every distinct list that a znode has, once.
#[derive(Clone, Debug, Default)]
pub(super) struct Acls {
    entries: Slab<Entry>,
    /// Derived; never iterated.
    ids: HashMap<Arc<[Acl]>, AclId, foldhash::fast::RandomState>,
}

impl Acls {
    /// The number of this list, which is added if it is new. It stays only while it is referenced:
    /// [`Self::hold`] it before anything else can [`Self::release`] it.
    pub fn intern(&mut self, list: &[Acl]) -> AclId {
        if let Some(id) = self.ids.get(list) {
            return *id;
        }
        self.insert(list)
    }

    pub fn get(&self, id: AclId) -> &Arc<[Acl]> {
        &self.entry(id).list
    }

    pub fn contains(&self, id: AclId) -> bool {
        self.entries.get(id.0).is_some()
    }

    /// What an image holds of the table.
    pub fn slab(&self) -> &Slab<Entry> {
        &self.entries
    }

    /// Whether both hold the same lists as often.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let all = |acls: &Self| -> Vec<_> {
            let entries = acls.entries.iter();
            entries
                .map(|(id, entry)| (id, entry.references, Arc::clone(&entry.list)))
                .collect()
        };
        all(self) == all(other) && self.ids.len() == self.entries.used()
    }

    /// The table of an image. Nothing is held yet.
    pub fn restore(mut entries: Slab<Entry>) -> Self {
        for id in 0..entries.slots() {
            if let Some(entry) = entries.get_mut(id) {
                entry.references = 0;
            }
        }
        let ids = entries
            .iter()
            .map(|(id, entry)| (Arc::clone(&entry.list), AclId(id)))
            .collect();
        Self { entries, ids }
    }

    /// The list's part in the digest of a znode.
    pub fn term(&self, id: AclId) -> u64 {
        self.entry(id).term
    }

    pub fn hold(&mut self, id: AclId) {
        self.entries
            .get_mut(id.0)
            .expect("znodes name lists that exist")
            .references += 1;
    }

    pub fn release(&mut self, id: AclId) {
        let entry = self
            .entries
            .get_mut(id.0)
            .expect("znodes name lists that exist");
        entry.references -= 1;
        if entry.references == 0 {
            let entry = self
                .entries
                .remove(id.0)
                .expect("it was there a moment ago");
            self.ids.remove(&entry.list);
        }
    }

    fn insert(&mut self, list: &[Acl]) -> AclId {
        // Copies the text: the list must not keep a network buffer alive.
        let entry = Entry::new(list.iter().map(copy).collect());
        let list = Arc::clone(&entry.list);
        let id = AclId(self.entries.insert(entry));
        self.ids.insert(list, id);
        id
    }

    fn entry(&self, id: AclId) -> &Entry {
        self.entries
            .get(id.0)
            .expect("znodes name lists that exist")
    }
}

impl Entry {
    fn new(list: Arc<[Acl]>) -> Self {
        let term = term(&list);
        Self {
            list,
            term,
            references: 0,
        }
    }
}

impl Record for Entry {
    fn encode(&self, w: &mut Writer<'_>) {
        w.count(self.list.len());
        self.list.iter().for_each(|entry| entry.encode(w));
    }

    fn decode(r: &mut Reader) -> Result<Self, DecodeError> {
        let list = r.vector(Acl::decode)?.ok_or(DecodeError::Null)?;
        Ok(Self::new(list.iter().map(copy).collect()))
    }
}

/// A copy in memory of its own.
fn copy(entry: &Acl) -> Acl {
    let id = Id::new(&entry.id.scheme, &entry.id.id);
    Acl {
        perms: entry.perms,
        id,
    }
}

fn term(list: &[Acl]) -> u64 {
    let start = Term::new(Part::Acl).word(list.len() as u64);
    list.iter()
        .fold(start, |term, entry| {
            term.signed(entry.perms.into())
                .bytes(entry.id.scheme.as_bytes())
                .bytes(entry.id.id.as_bytes())
        })
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::perms;

    fn entry(perms: i32, scheme: &str, id: &str) -> Acl {
        Acl {
            perms,
            id: Id::new(scheme, id),
        }
    }

    fn is_accepted(scheme: &str, id: &str) -> bool {
        accept(Some(&[entry(perms::ALL, scheme, id)]), &[], true).is_ok()
    }

    #[test]
    fn s72_ids_that_a_scheme_accepts() {
        let refused = [
            ("world", "x"),
            ("digest", "nocolon"),
            ("digest", "user:"),
            ("digest", ":"),
            ("digest", "a:b:c"),
            ("ip", "1.2.3"),
            ("ip", "127.0.0.0/33"),
            ("ip", "::/129"),
            ("ip", "127.0.0.0/"),
            ("super", ""),
            ("sasl", "bob"),
            ("", ""),
        ];
        for (scheme, id) in refused {
            assert!(!is_accepted(scheme, id), "{scheme}:{id}");
        }
        let accepted = [
            ("world", "anyone"),
            ("digest", ":x"),
            ("digest", "a:b:"),
            ("ip", "127.0.0.0/8"),
            ("ip", "10.0.0.1"),
            ("ip", "::1"),
            ("ip", "fe80::/10"),
            ("ip", "0.0.0.0/0"),
        ];
        for (scheme, id) in accepted {
            assert!(is_accepted(scheme, id), "{scheme}:{id}");
        }
        assert!(accept(Some(&[entry(31, "digest", "a:b")]), &[], false).is_err());
    }

    #[test]
    fn s71_auth_stands_for_every_authenticated_identity() {
        let list = [
            entry(3, "auth", "ignored"),
            entry(3, "auth", "ignored"),
            Acl::open(),
        ];
        let observed = [Id::new("ip", "10.0.0.1"), Id::new("super", "")];
        assert_eq!(
            accept(Some(&list), &observed, true),
            Err(ErrorCode::InvalidAcl)
        );
        let proven = [
            Id::new("ip", "10.0.0.1"),
            Id::new("digest", "a:1"),
            Id::new("digest", "b:2"),
        ];
        let expanded = accept(Some(&list), &proven, true).unwrap();
        let expected = [
            entry(3, "digest", "a:1"),
            entry(3, "digest", "b:2"),
            Acl::open(),
        ];
        assert_eq!(expanded.as_ref(), expected);
    }

    #[test]
    fn s27_no_list_is_no_acl() {
        assert_eq!(accept(None, &[], true), Err(ErrorCode::InvalidAcl));
        assert_eq!(accept(Some(&[]), &[], true), Err(ErrorCode::InvalidAcl));
    }

    #[test]
    fn any_of_the_needed_permissions_is_enough() {
        let acl = [entry(perms::ADMIN, "world", "anyone")];
        assert!(allows(&acl, perms::READ | perms::ADMIN, &[]));
        assert!(!allows(&acl, perms::READ, &[]));
        assert!(allows(&acl, perms::READ, &[Id::new("super", "")]));
        assert!(allows(&[], perms::READ, &[]));
    }

    #[test]
    fn addresses_match_by_their_leading_bits() {
        let granted = |id: &str, address: &str| {
            allows(
                &[entry(perms::READ, "ip", id)],
                perms::READ,
                &[Id::new("ip", address)],
            )
        };
        assert!(granted("127.0.0.0/8", "127.9.9.9"));
        assert!(!granted("127.0.0.0/8", "128.0.0.1"));
        assert!(granted("0.0.0.0/0", "9.9.9.9"));
        assert!(!granted("0.0.0.0/0", "0:0:0:0:0:0:0:1"));
        assert!(granted("::1", "0:0:0:0:0:0:0:1"));
        assert!(granted("fe80::/10", "fe80:0:0:0:0:0:0:1%eth0"));
        assert!(granted("10.0.0.1", "10.0.0.1"));
        assert!(!granted("10.0.0.1", "10.0.0.2"));
    }

    #[test]
    fn s74_hashes_are_hidden() {
        let list = [entry(31, "digest", "bob:hash"), entry(1, "ip", "10.0.0.1")];
        let masked = mask(&list);
        assert_eq!(
            masked,
            [entry(31, "digest", "bob:x"), entry(1, "ip", "10.0.0.1")]
        );
    }

    #[test]
    fn a_list_is_stored_once_and_goes_with_its_last_znode() {
        let mut acls = Acls::default();
        let open = acls.intern(&[Acl::open()]);
        acls.hold(open);
        let other = acls.intern(&[entry(1, "world", "anyone")]);
        acls.hold(other);
        assert_ne!(open, other);
        assert_eq!(acls.intern(&[Acl::open()]), open);
        acls.hold(open);
        acls.release(open);
        assert_eq!(acls.get(open).as_ref(), [Acl::open()]);
        acls.release(open);
        assert_eq!(acls.entries.used(), 1);
        assert_eq!(
            acls.intern(&[entry(2, "world", "anyone")]),
            open,
            "its number is free again"
        );
    }
}

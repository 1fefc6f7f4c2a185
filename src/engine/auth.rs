//! Who a connection is: authentication packets → identities (§7.2, §7.6).
//!
//! Decided by the server that accepted the connection; the identities then go through the log, so
//! that no configuration is read when a command is applied.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use crate::wire::{Id, Text};

/// What decides whether an authentication packet is good.
#[derive(Clone, Debug)]
pub struct AuthOptions {
    /// `DigestAuthenticationProvider.enabled`.
    pub digest_enabled: bool,
    /// `DigestAuthenticationProvider.superDigest`: `user:base64hash` of the super user.
    pub super_digest: Option<String>,
    /// `skipACL=yes`: everyone may do everything.
    pub skip_acl: bool,
}

impl Default for AuthOptions {
    fn default() -> Self {
        Self {
            digest_enabled: true,
            super_digest: None,
            skip_acl: false,
        }
    }
}

/// A session has no more identities than that, in no more bytes: all servers hold them for as long
/// as it lives, and nothing else bounds what a client adds.
pub const IDENTITIES_MAX: usize = 64;
pub const IDENTITY_BYTES_MAX: usize = 16 * 1024;

/// Whether a session may have these.
pub fn are_few(identities: &[Id]) -> bool {
    let bytes = |id: &Id| id.scheme.len() + id.id.len();
    identities.len() <= IDENTITIES_MAX
        && identities.iter().map(bytes).sum::<usize>() <= IDENTITY_BYTES_MAX
}

/// The identity that passes every check (§7.7).
pub fn super_identity() -> Id {
    Id::new("super", "")
}

/// The identity that every connection starts with.
pub fn address_identity(address: IpAddr) -> Id {
    Id {
        scheme: "ip".into(),
        id: address_text(address),
    }
}

/// Identities that an authentication packet adds; `None` if it is refused (s70).
pub fn authenticate(scheme: &str, auth: &[u8], options: &AuthOptions) -> Option<Vec<Id>> {
    match scheme {
        "digest" if options.digest_enabled => {
            let id = digest_id(auth);
            let mut identities = Vec::with_capacity(2);
            if options.super_digest.as_deref() == Some(&id) {
                identities.push(super_identity());
            }
            identities.push(Id {
                scheme: "digest".into(),
                id: id.into(),
            });
            Some(identities)
        }
        // Always succeeds: the address is an identity of the connection already.
        "ip" => Some(Vec::new()),
        _ => None,
    }
}

/// `user:base64(SHA-1(whole data))`; the user is what stands before the first colon (§7.6). Data
/// that is not UTF-8 is hashed as the text it is read as, with replacement characters.
pub fn digest_id(auth: &[u8]) -> String {
    let text = String::from_utf8_lossy(auth);
    let user = text.split(':').next().unwrap_or_default();
    format!("{user}:{}", STANDARD.encode(Sha1::digest(text.as_bytes())))
}

/// IPv6 in the uncompressed form that ZooKeeper's ids have (§7.2).
fn address_text(address: IpAddr) -> Text {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_string().into(),
        IpAddr::V6(v6) => v6
            .segments()
            .map(|segment| format!("{segment:x}"))
            .join(":")
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s69_digest_ids_are_the_recorded_ones() {
        assert_eq!(digest_id(b"u:p"), "u:Jq7wMyA/w2Vd5WIDAKdu4OIIFEQ=");
        assert_eq!(
            digest_id(b"super:secret"),
            "super:lK75jTNcA+U9vtVEw5vB51mj/w4="
        );
    }

    #[test]
    fn what_is_not_text_is_hashed_as_the_text_it_is_read_as() {
        assert_eq!(digest_id(b"u:\xff"), digest_id("u:\u{fffd}".as_bytes()));
    }

    #[test]
    fn the_super_digest_adds_the_super_identity() {
        let super_digest = Some(digest_id(b"super:secret"));
        let options = AuthOptions {
            super_digest,
            ..AuthOptions::default()
        };
        let identities = authenticate("digest", b"super:secret", &options).unwrap();
        assert!(identities.contains(&super_identity()));
        let identities = authenticate("digest", b"super:guess", &options).unwrap();
        assert!(!identities.contains(&super_identity()));
    }

    #[test]
    fn s70_unknown_schemes_are_refused() {
        for scheme in ["world", "sasl", "x509", "nobody", ""] {
            assert_eq!(
                authenticate(scheme, b"a:b", &AuthOptions::default()),
                None,
                "{scheme}"
            );
        }
    }

    #[test]
    fn addresses_are_written_as_java_writes_them() {
        let text = |address: &str| address_identity(address.parse().unwrap()).id;
        assert_eq!(text("127.0.0.1"), "127.0.0.1");
        assert_eq!(text("::1"), "0:0:0:0:0:0:0:1");
        assert_eq!(text("::ffff:10.0.0.1"), "10.0.0.1");
    }
}

//! The cluster secret: what the servers of a cluster know and nobody else does.
//!
//! Each side of a connection proves that it knows the secret without telling it: by HMAC-SHA256,
//! with the secret as the key, over its role and the first step of either side, which hold both
//! introductions and a fresh random number of each. So a proof is good for one connection, for one
//! side of it, and for what was said there.
//!
//! What follows the handshake is not protected by it: who can change packets on their way needs to
//! be kept out by other means.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// A shorter one could be found by trying.
const BYTES_MIN: usize = 16;

/// The cluster secret. Not shown by `Debug`.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error(
        "cannot read the cluster secret {path}: {source}; clusterSecretFile names a file that all \
         servers of the cluster have"
    )]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the cluster secret has {found} bytes, but at least {BYTES_MIN} are needed: write a random \
         one to clusterSecretFile, such as of `head -c 32 /dev/urandom | base64`, and copy it to \
         all servers"
    )]
    Short { found: usize },
}

/// Whose proof it is. Were they not told apart, a proof could be sent back as one's own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    Dialler,
    Acceptor,
}

/// What a proof is over: the first step of either side, as sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transcript<'a> {
    pub hello: &'a [u8],
    pub challenge: &'a [u8],
}

impl Secret {
    /// Reads it from a file. White space at either end does not count.
    ///
    /// # Errors
    /// The file cannot be read, or holds too little.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let content = fs::read(path).map_err(|source| SecretError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::new(content.trim_ascii())
    }

    /// # Errors
    /// There are too few bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, SecretError> {
        if bytes.len() < BYTES_MIN {
            return Err(SecretError::Short { found: bytes.len() });
        }
        Ok(Self(
            Hmac::new_from_slice(bytes).expect("a key may have any length"),
        ))
    }

    pub(super) fn prove(&self, role: Role, said: Transcript<'_>) -> Vec<u8> {
        self.mac(role, said).finalize().into_bytes().to_vec()
    }

    /// Whether the proof is right. Takes the same time for all wrong ones.
    pub(super) fn verify(&self, role: Role, said: Transcript<'_>, proof: &[u8]) -> bool {
        self.mac(role, said).verify_slice(proof).is_ok()
    }

    /// That whoever proves itself tells this besides.
    pub(super) fn prove_told(&self, role: Role, said: Transcript<'_>, told: &[u8]) -> Vec<u8> {
        let mac = self.mac_of_told(role, said, told);
        mac.finalize().into_bytes().to_vec()
    }

    /// Whether that proof is right.
    pub(super) fn verify_told(
        &self,
        role: Role,
        said: Transcript<'_>,
        told: &[u8],
        proof: &[u8],
    ) -> bool {
        let mac = self.mac_of_told(role, said, told);
        mac.verify_slice(proof).is_ok()
    }

    fn mac_of_told(&self, role: Role, said: Transcript<'_>, told: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.mac(role, said);
        mac.update(&(told.len() as u64).to_le_bytes());
        mac.update(told);
        mac
    }

    fn mac(&self, role: Role, said: Transcript<'_>) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(match role {
            Role::Dialler => b"zkraft peer, dialler",
            Role::Acceptor => b"zkraft peer, accepts",
        });
        for part in [said.hello, said.challenge] {
            // With their lengths, so that no part can be taken for the end of the one before.
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: Transcript<'_> = Transcript {
        hello: b"hello",
        challenge: b"challenge",
    };

    #[test]
    fn only_who_knows_the_secret_can_prove_it() {
        let secret = Secret::new(b"0123456789abcdef").unwrap();
        let other = Secret::new(b"0123456789abcdeg").unwrap();
        let proof = secret.prove(Role::Dialler, SAID);
        assert_eq!(proof.len(), 32);
        assert!(secret.verify(Role::Dialler, SAID, &proof));
        assert!(!other.verify(Role::Dialler, SAID, &proof));
        // Neither sent back, nor shortened, nor for something else.
        assert!(!secret.verify(Role::Acceptor, SAID, &proof));
        assert!(!secret.verify(Role::Dialler, SAID, &proof[..31]));
        assert!(!secret.verify(Role::Dialler, SAID, &[]));
        let moved = Transcript {
            hello: b"helloc",
            challenge: b"hallenge",
        };
        assert!(!secret.verify(Role::Dialler, moved, &proof));

        let told = secret.prove_told(Role::Dialler, SAID, b"told");
        assert!(secret.verify_told(Role::Dialler, SAID, b"told", &told));
        assert!(!secret.verify_told(Role::Dialler, SAID, b"tolt", &told));
        assert!(!secret.verify_told(Role::Acceptor, SAID, b"told", &told));
        // Not even of nothing is the one the other.
        assert!(!secret.verify_told(Role::Dialler, SAID, b"", &proof));
    }

    /// Servers of different versions must come to the same.
    #[test]
    fn golden_bytes_of_proofs() {
        let secret = Secret::new(b"0123456789abcdef").unwrap();
        let hex = |role| -> String {
            let proof = secret.prove(role, SAID);
            proof.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        assert_eq!(
            [hex(Role::Dialler), hex(Role::Acceptor)],
            [
                "49f71f3bbba352c5c9443ef763dca72fa8cb16ffaece963329f5b95cc0493178",
                "d79b6944d54644caa2c18831ca98e023eb47a965e33dc3c33901e118c522762e"
            ]
        );
    }

    #[test]
    fn the_secret_is_read_from_a_file_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "\n 0123456789abcdef \n").unwrap();
        let secret = Secret::read(&path).unwrap();
        let same = Secret::new(b"0123456789abcdef").unwrap();
        let proof = same.prove(Role::Acceptor, SAID);
        assert!(secret.verify(Role::Acceptor, SAID, &proof));
        assert_eq!(format!("{secret:?}"), "Secret");

        fs::write(&path, "0123456789abcde\n").unwrap();
        let refused = Secret::read(&path).unwrap_err().to_string();
        assert_eq!(
            refused,
            "the cluster secret has 15 bytes, but at least 16 are needed: write a random one to \
             clusterSecretFile, such as of `head -c 32 /dev/urandom | base64`, and copy it to all \
             servers"
        );
        let missing = Secret::read(&dir.path().join("none")).unwrap_err();
        assert!(
            missing
                .to_string()
                .starts_with("cannot read the cluster secret")
        );
    }
}

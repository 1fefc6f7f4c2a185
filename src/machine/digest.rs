//! The hash behind the running digest of the whole state.
//!
//! Each part of the state (a znode's fields, its content, a session …) hashes to a term; the
//! digest is their wrapping sum, so a change costs the old term's subtraction and the new one's
//! addition, whatever the size of the state. It finds replicas that diverged and images that were
//! damaged; it is no defence against forgers.
//!
//! The function is ours and must never change within a feature level: digests are compared between
//! builds, while they run. One that has to change gets another number.

/// The number of the function below.
pub const FUNCTION: u32 = 1;

const MULTIPLIER: u64 = 0x9fb2_1c65_1e98_df25;
const INCREMENT: u64 = 0xa076_1d64_78bd_642f;

/// What a term is about: keeps terms of different parts apart.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    Fields = 1,
    Content = 2,
    Acl = 3,
    Session = 4,
    Origin = 5,
    Setting = 6,
    Clock = 7,
    Ensemble = 8,
}

/// Hashes one term.
#[derive(Clone, Copy, Debug)]
pub struct Term(u64);

impl Term {
    pub fn new(part: Part) -> Self {
        Self(INCREMENT).word(part as u64)
    }

    #[must_use]
    pub fn word(self, word: u64) -> Self {
        let product = u128::from(self.0 ^ word) * u128::from(MULTIPLIER);
        let folded = (product as u64) ^ ((product >> 64) as u64);
        Self(folded.rotate_left(23).wrapping_add(INCREMENT))
    }

    #[must_use]
    pub fn signed(self, word: i64) -> Self {
        self.word(word as u64)
    }

    /// The length goes first, so that neighbours cannot trade bytes.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (words, tail) = bytes.as_chunks::<8>();
        let term = words
            .iter()
            .fold(self.word(bytes.len() as u64), |term, word| {
                term.word(u64::from_le_bytes(*word))
            });
        if tail.is_empty() {
            return term;
        }
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        term.word(u64::from_le_bytes(last))
    }

    pub fn finish(self) -> u64 {
        self.word(MULTIPLIER).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(parts: &[&[u8]]) -> u64 {
        parts
            .iter()
            .fold(Term::new(Part::Content), |term, part| term.bytes(part))
            .finish()
    }

    #[test]
    fn the_function_is_the_one_of_earlier_builds() {
        assert_eq!(hash(&[]), 0xb6b9_4d25_b158_b171);
        assert_eq!(hash(&[b"/zookeeper/config"]), 0xde86_b4dc_f7e5_a027);
    }

    #[test]
    fn boundaries_padding_and_parts_count() {
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
        assert_ne!(hash(&[b"a"]), hash(&[b"a\0"]));
        assert_ne!(
            Term::new(Part::Acl).finish(),
            Term::new(Part::Session).finish()
        );
    }
}

//! Cluster-wide switches. Applying reads these, never a configuration file, since replicas may be
//! configured differently.

use std::collections::BTreeMap;

use super::digest::{Part, Term};
use super::level::LEVEL_SETTING;

/// Settings that are not 0 before anyone sets them.
const DEFAULTS: [(&str, i64); 2] = [("digest_enabled", 1), (LEVEL_SETTING, 1)];

/// The settings that were ever set.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    values: BTreeMap<Box<str>, i64>,
    digest: u64,
}

impl Settings {
    pub fn get(&self, name: &str) -> i64 {
        if let Some(value) = self.values.get(name) {
            return *value;
        }
        DEFAULTS
            .iter()
            .find(|(known, _)| *known == name)
            .map_or(0, |(_, value)| *value)
    }

    pub fn set(&mut self, name: &str, value: i64) {
        let before = self.values.insert(name.into(), value);
        let before = before.map_or(0, |before| term(name, before));
        self.digest = self
            .digest
            .wrapping_sub(before)
            .wrapping_add(term(name, value));
    }

    /// Those that were ever set, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.values
            .iter()
            .map(|(name, value)| (name.as_ref(), *value))
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The digest from scratch, for checks.
    pub fn recompute(&self) -> u64 {
        self.iter()
            .fold(0, |sum, (name, value)| sum.wrapping_add(term(name, value)))
    }
}

fn term(name: &str, value: i64) -> u64 {
    Term::new(Part::Setting)
        .bytes(name.as_bytes())
        .signed(value)
        .finish()
}

//! Quotas: counted again each time (§5.6).

use std::collections::BTreeMap;

use bytes::Bytes;
use zkraft::wire::{ErrorCode, EventType};

use super::rules::data_length;
use super::{Model, Znode};

impl Model {
    /// The governing quota of a path: its deepest root at or above it, with its limits (§5.6).
    pub(super) fn quota_of(&self, path: &str) -> Option<(String, BTreeMap<String, i64>)> {
        let mut at = path;
        while at.len() > 1 {
            if let Some(limits) = self
                .now
                .get(&format!("/zookeeper/quota{at}/zookeeper_limits"))
            {
                return Some((at.into(), quota_values(&limits.data)));
            }
            at = &at[..at.rfind('/')?];
        }
        None
    }

    /// Hard limits, if they are enforced; a kind that does not change is not looked at (§5.6).
    pub(super) fn check_quota(&self, path: &str, count: i64, bytes: i64) -> Result<(), ErrorCode> {
        if self.setting("enforce_quota") == 0 || path.starts_with("/zookeeper") {
            return Ok(());
        }
        let Some((root, limits)) = self.quota_of(path) else {
            return Ok(());
        };
        let Some(stats) = self
            .now
            .get(&format!("/zookeeper/quota{root}/zookeeper_stats"))
        else {
            return Ok(());
        };
        let used = quota_values(&stats.data);
        let exceeds = |limit: &str, kind: &str, delta: i64| {
            let limit = limits.get(limit).copied().unwrap_or(-1);
            delta != 0 && limit > -1 && used.get(kind).copied().unwrap_or(0) + delta > limit
        };
        if exceeds("countHardLimit", "count", count) || exceeds("byteHardLimit", "bytes", bytes) {
            return Err(ErrorCode::QuotaExceeded);
        }
        Ok(())
    }

    /// Counts again what lies below the quota root and overwrites the statistics silently (§5.6).
    pub(super) fn update_quota(&mut self, path: &str) {
        let of_stats = |path: &str| {
            let inner = path.strip_prefix("/zookeeper/quota")?;
            inner.strip_suffix("/zookeeper_stats").map(String::from)
        };
        let root = match path.starts_with("/zookeeper") {
            // Only the creation of a statistics znode counts here, not a client's change of it.
            true => of_stats(path).filter(|_| {
                self.changes
                    .last()
                    .is_some_and(|change| change.kind == EventType::NodeCreated)
            }),
            false => self.quota_of(path).map(|(root, _)| root),
        };
        let Some(root) = root else { return };
        let stats_path = format!("/zookeeper/quota{root}/zookeeper_stats");
        let Some(stats) = self.now.get(&stats_path) else {
            return;
        };
        let below = format!("{root}/");
        let inside = self
            .now
            .iter()
            .filter(|(path, _)| **path == root || path.starts_with(&below));
        let (count, bytes) = inside.fold((0, 0), |(count, bytes), (_, znode)| {
            (count + 1, bytes + data_length(&znode.data))
        });
        let mut stats = Znode::clone(stats);
        stats.data = Some(format!("count={count},bytes={bytes}").into());
        self.put(&stats_path, stats);
    }
}

/// `key=value` pairs between runs of `,` and `;`; an empty value counts as -1 (§5.6).
fn quota_values(data: &Option<Bytes>) -> BTreeMap<String, i64> {
    let text = String::from_utf8_lossy(data.as_deref().unwrap_or_default()).into_owned();
    let pairs = text
        .split([',', ';'])
        .filter_map(|pair| pair.split_once('='));
    // The recorded text has an odd `=` before its first `;`.
    let number = |value: &str| value.trim_end_matches('=').parse().unwrap_or(-1);
    pairs
        .map(|(key, value)| (key.into(), number(value)))
        .collect()
}

//! Counts and limits of subtrees, kept in ordinary znodes under `/zookeeper/quota` (§5.6).
//!
//! The quota of a subtree P is the znode `/zookeeper/quota<P>`: its child `zookeeper_limits` makes
//! it one, its child `zookeeper_stats` is kept up to date by the server, silently: neither version
//! nor mzxid nor watches notice. The path of a znode leads through the quotas above it, so nothing
//! has to be remembered beside the tree, and a server without quotas pays one look.

use std::collections::BTreeMap;
use std::fmt;

use super::path;
use super::tree::Tree;
use super::znode::NodeId;
use crate::wire::ErrorCode;

const DIRECTORY: &str = "/zookeeper/quota";
const LIMITS: &str = "zookeeper_limits";
const STATS: &str = "zookeeper_stats";

/// How a write changes the subtree it is in.
#[derive(Clone, Copy, Debug)]
pub struct Growth {
    pub znodes: i64,
    pub bytes: i64,
}

/// Whether the quota that governs a path allows this growth. Soft limits allow everything.
///
/// # Errors
/// `QuotaExceeded` if a hard limit of a kind that grows or shrinks is, or stays, exceeded.
pub fn check(tree: &Tree, path: &str, growth: Growth) -> Result<(), ErrorCode> {
    let Some(quota) = governing(tree, path) else {
        return Ok(());
    };
    let (Some(limits), Some(stats)) = (tree.child(quota, LIMITS), tree.child(quota, STATS)) else {
        return Ok(());
    };
    let (limits, stats) = (Track::of(tree, limits), Track::of(tree, stats));
    let exceeds = |change: i64, key: &str, hard_limit: &str| {
        let limit = limits.get(hard_limit);
        change != 0 && limit > -1 && stats.get(key).saturating_add(change) > limit
    };
    if exceeds(growth.znodes, "count", "countHardLimit")
        || exceeds(growth.bytes, "bytes", "byteHardLimit")
    {
        return Err(ErrorCode::QuotaExceeded);
    }
    Ok(())
}

/// Adds a change that was made to the statistics of the quota that governs its path.
pub fn record(tree: &mut Tree, path: &str, growth: Growth) {
    let Some(quota) = governing(tree, path) else {
        return;
    };
    let Some(id) = tree.child(quota, STATS) else {
        return;
    };
    if growth.znodes == 0 && growth.bytes == 0 {
        return;
    }
    let mut stats = Track::of(tree, id);
    stats.add("count", growth.znodes);
    stats.add("bytes", growth.bytes);
    tree.rewrite(id, stats.to_string().as_bytes());
}

/// If the znode that was just created is the statistics of a quota, fills in the truth.
pub fn begin(tree: &mut Tree, path: &str, id: NodeId) {
    let quota = path
        .strip_prefix(DIRECTORY)
        .and_then(|rest| rest.strip_suffix(STATS));
    let Some(subtree) = quota.and_then(|quota| quota.strip_suffix('/')) else {
        return;
    };
    // The root itself cannot carry a quota.
    if !subtree.starts_with('/') {
        return;
    }
    let mut stats = Track::default();
    let (mut count, mut bytes) = (0, 0);
    if let Some(root) = tree.lookup(subtree) {
        for (_, znode) in tree.subtree(root) {
            count += 1;
            bytes += znode.data().map_or(0, <[u8]>::len) as i64;
        }
    }
    stats.values.insert("count".into(), count);
    stats.values.insert("bytes".into(), bytes);
    tree.rewrite(id, stats.to_string().as_bytes());
}

/// The deepest quota on the way to a path, the path itself included.
fn governing(tree: &Tree, path: &str) -> Option<NodeId> {
    if tree.get(NodeId::QUOTA).count() == 0 {
        return None;
    }
    let (mut at, mut deepest) = (NodeId::QUOTA, None);
    for name in path::names(path)? {
        let Some(next) = tree.child(at, name) else {
            break;
        };
        at = next;
        if tree.child(at, LIMITS).is_some() {
            deepest = Some(at);
        }
    }
    deepest
}

/// The text of either znode: names and numbers, where -1 is unset.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Track {
    values: BTreeMap<String, i64>,
}

impl Track {
    fn of(tree: &Tree, id: NodeId) -> Self {
        Self::parse(&String::from_utf8_lossy(
            tree.get(id).data().unwrap_or_default(),
        ))
    }

    /// Clients write this text, so what cannot be understood is taken as unset.
    fn parse(text: &str) -> Self {
        let pair = |pair: &str| {
            let mut parts = pair.split('=');
            let key = parts.next().filter(|key| !key.is_empty())?;
            let value = parts
                .next()
                .and_then(|value| value.parse().ok())
                .unwrap_or(-1);
            Some((key.to_owned(), value))
        };
        Self {
            values: text.split([',', ';']).filter_map(pair).collect(),
        }
    }

    fn get(&self, key: &str) -> i64 {
        self.values.get(key).copied().unwrap_or(-1)
    }

    fn add(&mut self, key: &str, change: i64) {
        if change != 0 {
            self.values
                .insert(key.to_owned(), self.get(key).saturating_add(change));
        }
    }
}

impl fmt::Display for Track {
    /// Count and bytes first, then a lone `=` before what old clients do not know.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "count={},bytes={}", self.get("count"), self.get("bytes"))?;
        let others = self
            .values
            .iter()
            .filter(|(key, _)| !matches!(key.as_str(), "count" | "bytes"));
        for (index, (key, value)) in others.enumerate() {
            write!(f, "{}{key}={value}", if index == 0 { "=;" } else { ";" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_survives_a_round_trip() {
        let texts = [
            "count=1,bytes=-1",
            "count=-1,bytes=5=;byteHardLimit=10;countHardLimit=3",
            "count=2,bytes=0=;countHardLimit=3",
        ];
        for text in texts {
            assert_eq!(Track::parse(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_not_understood_is_unset() {
        assert_eq!(Track::parse(""), Track::default());
        let track = Track::parse(",;count=,bytes=many;=5,other");
        assert_eq!(track.to_string(), "count=-1,bytes=-1=;other=-1");
    }
}

//! What the server counts about itself, in one registry, under ZooKeeper's names (§11.3).
//!
//! Noting something costs a few relaxed atomic operations and never blocks, so it may be done
//! anywhere, under locks too. The price: a reader may see a count without its sum. Values that
//! exist elsewhere, such as the number of sessions, are not kept here but asked for when shown.
//!
//! A name of §11.3 that is missing here has no counterpart: stages of ZooKeeper's request
//! processing, thread pools, the Java runtime, and what happens only between servers.

use std::sync::atomic::{AtomicU64, Ordering};

/// One value as monitoring sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricValue {
    /// Only grows, except when statistics are reset.
    Counter(u64),
    Gauge(i64),
    Fraction(f64),
    Summary(Totals),
    /// With the quantiles 0.5, 0.95, 0.99 and 0.999.
    Distribution(Totals, [u64; 4]),
}

/// Everything that is counted. Times are in milliseconds.
#[derive(Debug, Default)]
pub struct Metrics {
    /// From a request's arrival to its reply, all requests: the latency of `srvr`.
    pub request_latency: Summary,
    /// The same for reads, from a request's arrival to its reply.
    pub readlatency: Histogram,
    /// The same for writes.
    pub updatelatency: Histogram,
    /// From a write's time stamp to its application here.
    pub propagation_latency: Histogram,

    /// Frames from clients.
    pub packets_received: Counter,
    /// Frames to clients.
    pub packets_sent: Counter,
    pub bytes_received_count: Counter,
    pub response_bytes: Counter,
    pub watch_bytes: Counter,
    /// Frames above jute.maxbuffer.
    pub large_requests_rejected: Counter,

    /// Sync of the log to the disk.
    pub fsynctime: Summary,
    /// Syncs that took longer than fsync.warningthresholdms.
    pub fsync_threshold_exceed_count: Counter,
    /// Records that were written with one sync.
    pub sync_processor_batch_size: Summary,
    /// Writing a snapshot.
    pub snapshottime: Summary,
    pub snapshot_error_count: Counter,
    /// Loading all at the start.
    pub dbinittime: Summary,
    pub startup_snap_load_time: Summary,
    pub startup_txns_loaded: Summary,
    pub startup_txns_load_time: Summary,

    pub proposal_count: Counter,
    pub commit_count: Counter,
    pub election_time: Summary,
    /// Snapshots that this leader has sent to servers that lacked more than its log holds.
    pub snap_count: Counter,

    /// Handshakes.
    pub connection_request_count: Counter,
    /// Connections above maxClientCnxns or maxCnxns.
    pub connection_rejected: Counter,
    /// Connections that ended in whatever way.
    pub connection_drop_count: Counter,
    /// Handshakes that asked for an existing session.
    pub connection_revalidate_count: Counter,
    pub sessionless_connections_expired: Counter,
    /// Sessions that ran into their timeout.
    pub stale_sessions_expired: Counter,
    /// Handshakes that came while there was no leader.
    pub cnxn_closed_without_zk_server_running: Counter,
    /// Watches beyond watchMaxBytes or watchMaxBytesPerClient.
    pub watches_refused: Counter,
    /// Handshakes that asked for a session beyond maxSessions.
    pub sessions_refused: Counter,
    /// auth packets that were wrong.
    pub auth_failed_count: Counter,

    /// How many watches one change fired, by kind of change.
    pub node_created_watch_count: Summary,
    pub node_deleted_watch_count: Summary,
    pub node_changed_watch_count: Summary,
    pub node_children_watch_count: Summary,

    /// Sizes of replies to clients, in bytes.
    pub client_response_size: ResponseSize,
    /// Replicas that computed different states.
    pub digest_mismatches_count: Counter,
    pub unrecoverable_error_count: Counter,
}

impl Metrics {
    /// Forgets everything, as the four-letter word `srst` asks for.
    pub fn reset(&self) {
        for (_, metric) in self.all() {
            metric.reset();
        }
        self.request_latency.reset();
        self.packets_received.reset();
        self.packets_sent.reset();
        self.auth_failed_count.reset();
        self.client_response_size.reset();
    }

    /// The server's gauges that are counted here.
    pub fn gauges(&self) -> Vec<(&'static str, MetricValue)> {
        let latency = self.request_latency.totals();
        let [last, min, max] = self.client_response_size.values();
        vec![
            ("avg_latency", MetricValue::Fraction(latency.average())),
            ("max_latency", gauge(latency.max)),
            ("min_latency", gauge(latency.min)),
            ("packets_received", gauge(self.packets_received.value())),
            ("packets_sent", gauge(self.packets_sent.value())),
            ("last_client_response_size", MetricValue::Gauge(last)),
            ("min_client_response_size", MetricValue::Gauge(min)),
            ("max_client_response_size", MetricValue::Gauge(max)),
            ("auth_failed_count", gauge(self.auth_failed_count.value())),
        ]
    }

    /// Counters and summaries.
    pub fn values(&self) -> Vec<(&'static str, MetricValue)> {
        self.all()
            .into_iter()
            .map(|(name, metric)| (name, metric.value()))
            .collect()
    }

    /// All that is not among [`Metrics::gauges`].
    fn all(&self) -> Vec<(&'static str, &dyn Metric)> {
        vec![
            ("readlatency", &self.readlatency),
            ("updatelatency", &self.updatelatency),
            ("propagation_latency", &self.propagation_latency),
            ("bytes_received_count", &self.bytes_received_count),
            ("response_bytes", &self.response_bytes),
            ("watch_bytes", &self.watch_bytes),
            ("large_requests_rejected", &self.large_requests_rejected),
            ("fsynctime", &self.fsynctime),
            (
                "fsync_threshold_exceed_count",
                &self.fsync_threshold_exceed_count,
            ),
            ("sync_processor_batch_size", &self.sync_processor_batch_size),
            ("snapshottime", &self.snapshottime),
            ("snapshot_error_count", &self.snapshot_error_count),
            ("dbinittime", &self.dbinittime),
            ("startup_snap_load_time", &self.startup_snap_load_time),
            ("startup_txns_loaded", &self.startup_txns_loaded),
            ("startup_txns_load_time", &self.startup_txns_load_time),
            ("proposal_count", &self.proposal_count),
            ("commit_count", &self.commit_count),
            ("election_time", &self.election_time),
            ("snap_count", &self.snap_count),
            ("connection_request_count", &self.connection_request_count),
            ("connection_rejected", &self.connection_rejected),
            ("connection_drop_count", &self.connection_drop_count),
            (
                "connection_revalidate_count",
                &self.connection_revalidate_count,
            ),
            (
                "sessionless_connections_expired",
                &self.sessionless_connections_expired,
            ),
            ("stale_sessions_expired", &self.stale_sessions_expired),
            (
                "cnxn_closed_without_zk_server_running",
                &self.cnxn_closed_without_zk_server_running,
            ),
            ("watches_refused", &self.watches_refused),
            ("sessions_refused", &self.sessions_refused),
            ("node_created_watch_count", &self.node_created_watch_count),
            ("node_deleted_watch_count", &self.node_deleted_watch_count),
            ("node_changed_watch_count", &self.node_changed_watch_count),
            ("node_children_watch_count", &self.node_children_watch_count),
            ("digest_mismatches_count", &self.digest_mismatches_count),
            ("unrecoverable_error_count", &self.unrecoverable_error_count),
        ]
    }
}

fn gauge(value: u64) -> MetricValue {
    MetricValue::Gauge(i64::try_from(value).unwrap_or(i64::MAX))
}

trait Metric {
    fn value(&self) -> MetricValue;
    fn reset(&self);
}

/// A number of events.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Metric for Counter {
    fn value(&self) -> MetricValue {
        MetricValue::Counter(Self::value(self))
    }

    fn reset(&self) {
        Self::reset(self);
    }
}

/// Count, sum and extremes of a measured quantity.
#[derive(Debug)]
pub struct Summary {
    count: AtomicU64,
    sum: AtomicU64,
    /// `u64::MAX` before the first value.
    min: AtomicU64,
    max: AtomicU64,
}

/// What a [`Summary`] has seen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Totals {
    pub count: u64,
    pub sum: u64,
    /// 0 before the first value, like `max`.
    pub min: u64,
    pub max: u64,
}

impl Totals {
    /// 0 before the first value.
    pub fn average(&self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.sum as f64 / self.count as f64
        }
    }
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            count: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            min: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(0),
        }
    }
}

impl Summary {
    pub fn note(&self, value: u64) {
        self.note_many(value, 1);
    }

    /// Notes the same value several times.
    pub fn note_many(&self, value: u64, count: u64) {
        self.count.fetch_add(count, Ordering::Relaxed);
        self.sum.fetch_add(value * count, Ordering::Relaxed);
        // Extremes rarely move: looking first keeps their cache line shared between threads.
        if value < self.min.load(Ordering::Relaxed) {
            self.min.fetch_min(value, Ordering::Relaxed);
        }
        if value > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(value, Ordering::Relaxed);
        }
    }

    pub fn totals(&self) -> Totals {
        let min = self.min.load(Ordering::Relaxed);
        Totals {
            count: self.count.load(Ordering::Relaxed),
            sum: self.sum.load(Ordering::Relaxed),
            min: if min == u64::MAX { 0 } else { min },
            max: self.max.load(Ordering::Relaxed),
        }
    }

    pub fn reset(&self) {
        self.count.store(0, Ordering::Relaxed);
        self.sum.store(0, Ordering::Relaxed);
        self.min.store(u64::MAX, Ordering::Relaxed);
        self.max.store(0, Ordering::Relaxed);
    }
}

impl Metric for Summary {
    fn value(&self) -> MetricValue {
        MetricValue::Summary(self.totals())
    }

    fn reset(&self) {
        Self::reset(self);
    }
}

/// A [`Summary`] that also knows quantiles, exact below 16 and within an eighth above.
///
/// Buckets are logarithmic: each power of two is cut into eight.
#[derive(Debug)]
pub struct Histogram {
    summary: Summary,
    buckets: [AtomicU64; BUCKETS],
}

/// Cuts of a power of two, as a power of two.
const CUT_BITS: u32 = 3;
/// Values from here on share the last bucket: in milliseconds, some 50 days.
const VALUE_MAX: u64 = u32::MAX as u64;
const BUCKETS: usize = bucket(VALUE_MAX) + 1;

const fn bucket(value: u64) -> usize {
    let value = if value > VALUE_MAX { VALUE_MAX } else { value };
    // Below two to the power of CUT_BITS + 1 every value has a bucket of its own.
    if value < 2 << CUT_BITS {
        return value as usize;
    }
    let shift = value.ilog2() - CUT_BITS;
    ((shift as usize) << CUT_BITS) + (value >> shift) as usize
}

/// The largest value of a bucket.
fn bucket_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 << CUT_BITS {
        return bucket;
    }
    let shift = (bucket >> CUT_BITS) - 1;
    (((bucket & ((1 << CUT_BITS) - 1)) + (1 << CUT_BITS) + 1) << shift) - 1
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            summary: Summary::default(),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl Histogram {
    pub fn note(&self, value: u64) {
        self.note_many(value, 1);
    }

    /// Notes the same value several times.
    pub fn note_many(&self, value: u64, count: u64) {
        self.summary.note_many(value, count);
        self.buckets[bucket(value)].fetch_add(count, Ordering::Relaxed);
    }

    pub fn totals(&self) -> Totals {
        self.summary.totals()
    }

    /// The smallest values that are not exceeded by these parts of 1,000. 0 before the first value.
    pub fn quantiles<const N: usize>(&self, per_mille: [u64; N]) -> [u64; N] {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|n| n.load(Ordering::Relaxed))
            .collect();
        let count: u64 = counts.iter().sum();
        // No quantile is beyond what was seen.
        let Totals { min, max, .. } = self.totals();
        per_mille.map(|part| {
            let rank = (count * part).div_ceil(1000).max(1);
            let mut seen = 0;
            let reached = counts.iter().position(|n| {
                seen += n;
                seen >= rank
            });
            reached.map_or(0, |bucket| bucket_end(bucket).clamp(min, max.max(min)))
        })
    }
}

impl Metric for Histogram {
    fn value(&self) -> MetricValue {
        MetricValue::Distribution(self.totals(), self.quantiles([500, 950, 990, 999]))
    }

    fn reset(&self) {
        self.summary.reset();
        for bucket in &self.buckets {
            bucket.store(0, Ordering::Relaxed);
        }
    }
}

/// The size of the last reply, and the extremes; each -1 before the first.
#[derive(Debug, Default)]
pub struct ResponseSize {
    last: AtomicU64,
    sizes: Summary,
}

impl ResponseSize {
    pub fn note(&self, bytes: u64) {
        self.last.store(bytes, Ordering::Relaxed);
        self.sizes.note(bytes);
    }

    fn reset(&self) {
        self.sizes.reset();
    }

    /// Last, smallest, largest.
    fn values(&self) -> [i64; 3] {
        let Totals {
            count, min, max, ..
        } = self.sizes.totals();
        if count == 0 {
            return [-1; 3];
        }
        [self.last.load(Ordering::Relaxed), min, max].map(|size| size as i64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_summary_before_its_first_value_is_zero() {
        let summary = Summary::default();
        assert_eq!(summary.totals(), Totals::default());
        assert_eq!(summary.totals().average(), 0.0);
        summary.note(7);
        summary.note(2);
        let totals = Totals {
            count: 2,
            sum: 9,
            min: 2,
            max: 7,
        };
        assert_eq!(summary.totals(), totals);
        assert_eq!(totals.average(), 4.5);
        summary.reset();
        assert_eq!(summary.totals(), Totals::default());
    }

    #[test]
    fn buckets_follow_each_other_without_gap_or_overlap() {
        let mut previous_end = None;
        for bucket_index in 0..BUCKETS {
            let end = bucket_end(bucket_index);
            assert_eq!(bucket(end), bucket_index);
            if let Some(previous) = previous_end {
                assert_eq!(bucket(previous + 1), bucket_index, "after {previous}");
            }
            previous_end = Some(end);
        }
        assert_eq!(previous_end, Some(VALUE_MAX));
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn small_quantiles_are_exact() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantiles([500, 999]), [0, 0]);
        for value in 1..=10 {
            histogram.note(value);
        }
        assert_eq!(
            histogram.quantiles([0, 100, 500, 950, 1000]),
            [1, 1, 5, 10, 10]
        );
    }

    proptest! {
        #[test]
        fn quantiles_are_within_an_eighth(
            mut values in prop::collection::vec(0..5_000_000_u64, 1..200), part in 1..=1000_u64
        ) {
            let histogram = Histogram::default();
            values.iter().for_each(|value| histogram.note(*value));
            values.sort_unstable();
            let rank = (values.len() as u64 * part).div_ceil(1000) as usize;
            let exact = values[rank - 1];
            let [quantile] = histogram.quantiles([part]);
            prop_assert!(quantile >= exact && quantile - exact <= exact / 8, "{quantile} {exact}");
        }
    }

    #[test]
    fn names_are_unique_and_of_letters_that_agents_accept() {
        let metrics = Metrics::default();
        let mut names: Vec<&str> = metrics
            .gauges()
            .into_iter()
            .chain(metrics.values())
            .map(|(name, _)| name)
            .collect();
        assert!(
            names
                .iter()
                .all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        );
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn what_is_noted_is_shown_until_it_is_reset() {
        let metrics = Metrics::default();
        let find = |name: &str| {
            let all = metrics.gauges().into_iter().chain(metrics.values());
            all.into_iter().find(|(known, _)| *known == name).unwrap().1
        };
        assert_eq!(find("last_client_response_size"), MetricValue::Gauge(-1));
        metrics.client_response_size.note(80);
        metrics.client_response_size.note(20);
        metrics.proposal_count.add(3);
        metrics.readlatency.note(4);
        metrics.request_latency.note(4);
        metrics.request_latency.note(5);
        let totals = Totals {
            count: 1,
            sum: 4,
            min: 4,
            max: 4,
        };
        assert_eq!(
            find("readlatency"),
            MetricValue::Distribution(totals, [4; 4])
        );
        assert_eq!(find("avg_latency"), MetricValue::Fraction(4.5));
        assert_eq!(find("proposal_count"), MetricValue::Counter(3));
        assert_eq!(find("last_client_response_size"), MetricValue::Gauge(20));
        assert_eq!(find("max_client_response_size"), MetricValue::Gauge(80));
        metrics.reset();
        assert_eq!(
            find("readlatency"),
            MetricValue::Distribution(Totals::default(), [0; 4])
        );
        assert_eq!(find("avg_latency"), MetricValue::Fraction(0.0));
        assert_eq!(find("proposal_count"), MetricValue::Counter(0));
        assert_eq!(find("min_client_response_size"), MetricValue::Gauge(-1));
    }
}

//! What runs contained: a run without faults or replies proves nothing.

use std::fmt;

use crate::met::Met;

/// Counts of one run, or of many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub simulated_ms: u64,
    /// Of that, with clients at work and faults.
    pub loaded_ms: u64,
    /// Runs with more than one server.
    pub clusters: u64,
    pub frames: u64,
    pub watch_events: u64,
    pub entries: u64,
    /// Commands of clients and leaders that were carried out.
    pub operations: u64,
    pub crashes: u64,
    pub clean_stops: u64,
    /// Groups of the log that a stop left half written.
    pub torn_tails: u64,
    pub snapshots: u64,
    pub pauses: u64,
    pub disk_faults: u64,
    /// Clients that were told that their session is over.
    pub expirations: u64,
    /// Handshakes that were refused.
    pub refusals: u64,
    /// Commands that came through an attachment that was not the present one.
    pub moved: u64,
    /// Connections whose requests were not read for a while, since too many wait.
    pub floods: u64,
    /// Frames that servers got from each other.
    pub peer_frames: u64,
    pub peer_frames_lost: u64,
    pub peer_frames_repeated: u64,
    /// Terms with a leader, in runs with more than one server; and those that had another one than
    /// the term before.
    pub elections: u64,
    pub leader_changes: u64,
    pub partitions: u64,
    pub flaps: u64,
    /// Servers that no client could reach for a while.
    pub client_cuts: u64,
    /// Handshakes of sessions that were at another server before.
    pub moves: u64,
    /// Batches of writes for a leader elsewhere.
    pub forwards: u64,
    /// Servers that stopped serving since they had not heard of a majority.
    pub silences: u64,
    /// Links that came up, and processes that were found to be gone.
    pub links: u64,
    pub lost_peers: u64,
    /// Snapshots sent to other servers, attempts that broke, those that went on where an earlier
    /// one had broken, and snapshots that were installed.
    pub transfers: u64,
    pub broken_transfers: u64,
    pub resumed_transfers: u64,
    pub installs: u64,
    /// Lost disks, and servers that were refused for their disk.
    pub wipes: u64,
    pub strangers: u64,
    /// Runs that ended since a majority had lost its disks.
    pub beyond_repair: u64,
    /// Changes of the ensemble by clients, and of the membership.
    pub reconfigs: u64,
    pub changes: u64,
    /// Leaders that were told to stop, and those of them that another server followed in time.
    pub hand_overs: u64,
    pub handed_over: u64,
    /// Starts of a newer or an older build in place of the other.
    pub upgrades: u64,
    pub downgrades: u64,
    /// How often the feature level was raised.
    pub raises: u64,
    /// Processes that stopped since they were too old for what they applied; those that were
    /// refused by others or could not start since they are too old.
    pub outdated: u64,
    pub too_old: u64,
    /// Sessions that one server kept to itself, how often clients came back to one, those that went
    /// over into the log, and their writes before.
    pub local_sessions: u64,
    pub local_returns: u64,
    pub local_upgrades: u64,
    pub local_writes: u64,
    /// Sessions of servers that only let read, and requests that those refused.
    pub read_only: u64,
    pub read_only_refusals: u64,
    /// Founders that were started when the others had begun.
    pub late_founders: u64,
    /// Faults that were meant for a certain moment.
    pub aimed: u64,
    pub met: Met,
    /// Of the time under load, that of runs with more than one server.
    pub cluster_ms: u64,
    /// Bytes that changed by themselves, and starts that were refused for that; starts that could
    /// not read all that is there.
    pub rots: u64,
    pub rot_refusals: u64,
    pub unread_starts: u64,
}

impl Stats {
    fn parts(&mut self) -> [(&'static str, &mut u64); 58] {
        [
            ("clusters", &mut self.clusters),
            ("frames to clients", &mut self.frames),
            ("watch events", &mut self.watch_events),
            ("entries", &mut self.entries),
            ("operations", &mut self.operations),
            ("crashes", &mut self.crashes),
            ("clean stops", &mut self.clean_stops),
            ("torn tails", &mut self.torn_tails),
            ("snapshots", &mut self.snapshots),
            ("pauses", &mut self.pauses),
            ("disk faults", &mut self.disk_faults),
            ("expirations", &mut self.expirations),
            ("refusals", &mut self.refusals),
            ("moved commands", &mut self.moved),
            ("flooded connections", &mut self.floods),
            ("frames to servers", &mut self.peer_frames),
            ("lost frames", &mut self.peer_frames_lost),
            ("repeated frames", &mut self.peer_frames_repeated),
            ("elections", &mut self.elections),
            ("leader changes", &mut self.leader_changes),
            ("partitions", &mut self.partitions),
            ("flapping links", &mut self.flaps),
            ("cuts from clients", &mut self.client_cuts),
            ("sessions that moved", &mut self.moves),
            ("forwarded batches", &mut self.forwards),
            ("silent servers", &mut self.silences),
            ("links", &mut self.links),
            ("lost peers", &mut self.lost_peers),
            ("snapshots sent", &mut self.transfers),
            ("broken transfers", &mut self.broken_transfers),
            ("resumed transfers", &mut self.resumed_transfers),
            ("snapshots installed", &mut self.installs),
            ("lost disks", &mut self.wipes),
            ("refused disks", &mut self.strangers),
            ("beyond repair", &mut self.beyond_repair),
            ("reconfigs", &mut self.reconfigs),
            ("changed memberships", &mut self.changes),
            ("hand-overs", &mut self.hand_overs),
            ("handed over", &mut self.handed_over),
            ("upgrades", &mut self.upgrades),
            ("downgrades", &mut self.downgrades),
            ("raised levels", &mut self.raises),
            ("outdated processes", &mut self.outdated),
            ("refused as too old", &mut self.too_old),
            ("local sessions", &mut self.local_sessions),
            ("local returns", &mut self.local_returns),
            ("upgraded sessions", &mut self.local_upgrades),
            ("local writes", &mut self.local_writes),
            ("read-only sessions", &mut self.read_only),
            ("read-only refusals", &mut self.read_only_refusals),
            ("late founders", &mut self.late_founders),
            ("aimed faults", &mut self.aimed),
            ("rotten bytes", &mut self.rots),
            ("refused for rot", &mut self.rot_refusals),
            ("unread starts", &mut self.unread_starts),
            ("ms under load", &mut self.loaded_ms),
            ("ms of clusters", &mut self.cluster_ms),
            ("ms of simulated time", &mut self.simulated_ms),
        ]
    }

    pub fn add(&mut self, other: &Self) {
        self.met.add(&other.met);
        let mut other = *other;
        for ((_, sum), (_, part)) in self.parts().into_iter().zip(other.parts()) {
            *sum += *part;
        }
    }

    /// Time under load, in hours: of clusters and of single servers.
    pub fn loaded_hours(&self) -> f64 {
        hours(self.loaded_ms)
    }

    /// Of that, of clusters.
    pub fn cluster_hours(&self) -> f64 {
        hours(self.cluster_ms)
    }

    /// What never happened and should have.
    pub fn missing(mut self) -> Vec<&'static str> {
        let parts = self.parts().into_iter();
        parts
            // It takes a disk that is lost while the log has a change that counts on it.
            .filter(|(name, count)| **count == 0 && *name != "beyond repair")
            .map(|(name, _)| name)
            .collect()
    }
}

fn hours(ms: u64) -> f64 {
    ms as f64 / 3_600_000.0
}

/// Tables: in all, and per hour under load; what met what, and what never happened.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut stats = *self;
        let simulated = hours(self.simulated_ms);
        let (loaded, clusters) = (self.loaded_hours(), self.cluster_hours());
        let alone = loaded - clusters;
        writeln!(
            f,
            "{simulated:.2} hours of simulated time, {loaded:.2} under load: {clusters:.2} of \
             clusters, {alone:.2} of single servers"
        )?;
        for (name, count) in stats.parts() {
            let per_hour = *count as f64 / loaded.max(f64::MIN_POSITIVE);
            writeln!(f, "{name:>22} {count:>12} {per_hour:>12.0} per hour")?;
        }
        writeln!(f, "{}", self.met)?;
        let missing = self.missing().into_iter().map(String::from);
        let missing: Vec<_> = missing.chain(self.met.missing()).collect();
        write!(f, "never: {}", missing.join(", "))
    }
}

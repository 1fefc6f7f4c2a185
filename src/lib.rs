//! zkraft: a coordination server that speaks the ZooKeeper protocol and replicates with Raft.

/// The formats that are ours, generated from `proto/` (see `proto/build.rs`).
pub mod proto {
    /// Entries of the replicated log and records of the log files: `proto/log.proto`.
    pub mod log {
        include!(concat!(env!("OUT_DIR"), "/zkraft.log.rs"));
    }

    /// Header and trailer of snapshot files: `proto/snapshot.proto`.
    pub mod snapshot {
        include!(concat!(env!("OUT_DIR"), "/zkraft.snapshot.rs"));
    }
}

pub mod admin;
pub mod cli;
pub mod config;
pub mod engine;
pub mod logging;
pub mod machine;
pub mod metrics;
pub mod net;
pub mod node;
pub mod server;
pub mod storage;
pub mod watch;
pub mod wire;

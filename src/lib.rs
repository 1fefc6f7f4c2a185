//! zkraft: a coordination server that speaks the ZooKeeper protocol and replicates with Raft.
//!
//! # The map
//!
//! ```text
//!  clients (ZooKeeper protocol), peers (frames of ours)              operators
//!        │  TCP                                                          │ four-letter words
//!  ┌─────▼───────────────┐                                         ┌─────▼─────┐
//!  │ net                 │ one task per connection: bytes ↔ frames │ admin     │
//!  └──┬───────────────┬──┘                                         └─────┬─────┘
//!     │ frames        │                                                  │
//!  ┌──▼───────────────▼──┐  commands    ┌────────────────────────────────▼──┐
//!  │ engine::connection  ├─────────────►│ node: one thread at a time        │
//!  │ order, reads, auth  │   (inbox)    │  Engine::turn → Outputs           │
//!  └──┬──────────────────┘              │   ├ forward   numbered writes     │
//!     │ reads, under                    │   ├ replica   raft::RawNode       │
//!     │ a read lock                     │   ├ expiry    session clock       │
//!     │                                 │   └ apply ──► machine, watches    │──► outboxes
//!     ▼                                 └──────┬─────────────▲──────────────┘
//!  machine: tree, sessions                     │ Append      │ Persisted(n)
//!  watch: who watches what              ┌──────▼─────────────┴──┐
//!  (RwLock, written by the node)        │ storage: log thread,  │──► segments, snapshot files,
//!                                       │ snapshot thread       │    sled catalog
//!                                       └───────────────────────┘
//! ```
//!
//! # The core is pure
//!
//! [`wire`], [`machine`], [`watch`] and [`engine`] contain no clock, socket, file, thread or
//! randomness: time and entropy are arguments. The simulator (`tests/sim`) is their first client.
//! The shell around them ([`net`], [`storage`], [`admin`], [`node`], [`server`], [`cli`]) carries
//! bytes, time and durability and decides nothing. Each may use what stands before it; up to
//! [`storage`] `tests/tidy.rs` checks that, and which crates each may use:
//!
//! ```text
//! wire ◄─ machine ◄─ watch ◄─ engine ◄─ storage ◄─ net ◄─ node ◄─ server, cli ◄─ main
//! ```
//!
//! Beside them are [`config`], [`metrics`] and [`admin`]. [`server`] is started by [`cli`] through
//! a trait of [`cli`]'s, and `zkraft recover` opens a stopped one. Numbers after § are sections of
//! the project's notes on the protocol ("spec"), its design ("architecture"), or the Raft thesis.
//!
//! # The life of a write
//!
//! 1. [`net::client`] splits frames; [`engine::connection`] decodes the request for its syntax,
//!    gives it a place in the connection's [`engine::pipeline`], and hands the client's own bytes
//!    as a command to the [`node`]: to its thread, or, while nobody is at work there, to itself.
//!    What every server would pay for too dearly is refused before (`engine::bounds`).
//! 2. [`engine::forward`] numbers it in this server's stream; the leader proposes what has gathered
//!    in a turn, or while an entry was on its way to the others, as one Raft entry stamped with its
//!    wall clock.
//! 3. [`engine::replica`] gives the entry to the log thread ([`storage`]), which writes what has
//!    gathered and syncs once. Only then does raft commit it: nothing is answered before.
//! 4. The node applies it under the write lock: [`machine::Machine::apply`] validates and
//!    changes; each change fires [`watch`]es into [`engine::outbox`]es, then the reply follows,
//!    then the reads of the same connection that stood behind the write.
//! 5. What is for clients is encoded outside of all locks and sent ([`net`]): by the node itself
//!    while a connection's task only waits, else by that task, which is woken.
//!
//! With several servers a follower sends its stream to the leader ([`engine::peer`]), again after a
//! change of leaders, and goes on answering its clients for as long as [`engine::lease`] says that
//! their sessions are kept. [`engine::members`] knows who may take part, on which disk, and
//! who campaigns when a leader is gone; `engine::reconcile` leads the membership step by step to
//! what a reconfig asked for. [`engine::level`] raises the feature level when all servers are of a
//! build that knows it.
//! What servers tell each other goes over the links of [`net::peer`], written as in step 5: by the
//! node itself while a link's task only waits. When they meet, they also tell who the others are,
//! so that who was away knows them (`engine::acquaintance`). Whoever is too far behind for the log
//! is sent a snapshot beside them, by `net::transfer`; `engine::catch_up` takes it over.
//! By `engine::agreement` servers notice if their states differ, and whoever is wrong stops.
//! `engine::recover` makes one survivor of a lost majority a cluster of its own; what a server may
//! do without a majority meanwhile is in `engine::read_only`. Sessions that only their server knows
//! are kept by [`engine::local`].
//!
//! A read without a write before it runs in the connection's own task under the read lock, and is
//! encoded there; a large one goes on in steps between which others have their turn. A `sync`, and
//! with `linearizableReads` every read, waits for a round trip to a majority (`engine::barrier`).
//! The log
//! holds requests, not results: replicas validate when they apply, so that the state is a pure
//! function of the log.
//!
//! # Where to add something
//!
//! An operation: `wire::request`, `machine::apply` or `machine::read`, a test in `tests/wire`. A
//! key of `zoo.cfg`: [`config::keys`]. A metric: [`metrics`]. A format on disk: `proto/`. A load to
//! measure with: `cli::bench`. Bytes that others send and someone decodes: `tests/fuzz`. Anything
//! that replicas of older builds would do otherwise: [`machine::FEATURE_LEVEL`].

/// The formats that are ours, generated from `proto/` (see `proto/build.rs`).
pub mod proto {
    /// Entries of the replicated log and records of the log files: `proto/log.proto`.
    pub mod log {
        include!(concat!(env!("OUT_DIR"), "/zkraft.log.rs"));
    }

    /// What servers tell each other: `proto/peer.proto`.
    pub mod peer {
        include!(concat!(env!("OUT_DIR"), "/zkraft.peer.rs"));
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

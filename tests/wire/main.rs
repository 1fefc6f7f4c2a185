//! The client protocol, tested over a socket against a running server.
//!
//! These tests are an independent reading of the protocol: they use nothing of the `zkraft` library
//! and build every frame from the description. A test named `sNN_…` proves the statement NN of spec
//! §16; the others prove what §1 to §8, §11.1 and §18 say beyond those statements.
//!
//! By default the tests run against the zkraft binary. With `ZKRAFT_WIRE_AGAINST=zookeeper` they
//! run against ZooKeeper 3.8.0 from Debian, or against the ZooKeeper whose jars are in the
//! directory `ZKRAFT_WIRE_JARS`; 3.9.5, the baseline, passes them all. That keeps the tests
//! themselves honest: a claim about the protocol that the original does not meet is wrong, unless
//! it is one of the two kinds of difference below.
//!
//! # Where zkraft differs from ZooKeeper on purpose
//!
//! 1. *A renewal with a wrong password.* ZooKeeper closes the owner's connection; zkraft leaves it
//!    alone. Session ids are public (`ephemeralOwner`), so anyone could cut off anyone.
//! 2. *A `lastZxidSeen` ahead of the server.* ZooKeeper closes at once; zkraft waits up to 500 ms
//!    for the zxid and closes then. Right after a failover a server is a few milliseconds behind,
//!    and a refusal costs its client a round of reconnecting.
//! 3. *deleteContainer (20) and createSession (-10) from a client.* ZooKeeper takes them; zkraft
//!    answers -6 and closes. The first deletes a leaf past its ACL, the second re-creates a
//!    session.
//! 4. *The order of children.* ZooKeeper has that of a hash table; zkraft that of their creation,
//!    the same on every server and after every restart.
//! 5. *The zxid of a notification.* Up to 3.8 it is -1; zkraft sends that of the transaction, as
//!    3.9 does.
//! 6. *The old connection of a session that moved to another server.* ZooKeeper closes it at its
//!    next write; zkraft closes it at once. It must not answer reads for a session that lives
//!    elsewhere.
//! 7. *The session password.* ZooKeeper computes it from the session id; zkraft draws 16 random
//!    bytes. The computation is public, so the id alone would do to take a session over.
//! 8. *A write that does not decode.* ZooKeeper gives it a zxid like any failing write; zkraft does
//!    not. It never enters the log.
//! 9. *A null where a value is needed, and something else amiss.* zkraft does not decode it, -5;
//!    ZooKeeper may see to flags, TTL or watches first, and fails a createTTL with a null ACL
//!    inside a multi by itself. No client sends nulls there.
//! 10. *A new session of a read-only server.* ZooKeeper answers the handshake with a bare -119,
//!     unless local sessions are on as well; zkraft gives the session. No client understands the
//!     other thing.
//! 11. *A read-only server that never heard from the others.* ZooKeeper shows an empty tree; zkraft
//!     goes on not serving. An empty disk is not the state of the ensemble.
//! 12. *Identities and access lists.* ZooKeeper takes any number; zkraft refuses what would give a
//!     session more than 64 identities, or 16 KiB of them (-115), and lists of more than 256
//!     entries, of which `auth` is one for each identity (-114). All servers hold them, and
//!     compare them while everybody waits.
//! 13. *What every server would pay for.* zkraft refuses (-8) more than 1 KiB in a znode below
//!     /zookeeper/quota, which every write below a quota reads; a multi that begins more than one
//!     quota; paths of more than 4 KiB for new znodes; a multiRead of more than 32,768 operations
//!     or 64 MiB; and a list of more than 1 GiB.
//! 14. *Quotas inside a multi.* ZooKeeper checks against what was there before the multi; zkraft
//!     against what the operations before have made of it.
//! 15. *Authentication behind what waits.* ZooKeeper judges a read by the identities that its
//!     session had when it came; zkraft by those it has when its turn comes, which may be more.
//!
//! Number 6 needs more than one server to show, number 7 is invisible to a client, number 9 is in
//! `tests/differential`, numbers 10 to 13 in the engine's own tests, and numbers 4, 14 and 15
//! nobody depends on.
//!
//! # Where ZooKeeper 3.8.0 differs from the baseline, 3.9.5
//!
//! Tests that meet such a difference ask [`server::Server::is_zookeeper_38`] and state both sides:
//! the zxid of notifications, check outside a multi, create2 inside one, null ACLs and unknown
//! flags inside one, READ for exists, watch types 4 and 5, one watch mode per path and connection,
//! IPv6 ids. Debian's 3.8.0 has the delivery filter of 3.8.4 (s59) as a security fix.
//!
//! # Statements without a test here
//!
//! [`NOT_HERE`] lists them with the reason; a test checks that no statement is forgotten. Of s87,
//! the part about leader changes needs an ensemble too.

mod acl;
mod client;
mod create;
mod golden;
mod handshake;
mod headers;
mod local;
mod multi;
mod quota;
mod read_only;
mod server;
mod sessions;
mod settings;
mod stat;
mod versions;
mod watches;
mod words;

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

/// Statements of spec §16 that one server on its client port cannot show, and what they need.
const NOT_HERE: [(u32, &str); 6] = [
    (9, "two servers: a session moves to the other one"),
    (10, "an ensemble without a quorum"),
    (81, "a server with SASL configured"),
    (86, "a leader change"),
    (93, "the AdminServer, which speaks HTTP"),
    (95, "a failover"),
];

/// The last statement of spec §16.
const STATEMENTS: u32 = 99;

#[test]
fn every_statement_has_a_test_or_a_reason() {
    let sources = [
        include_str!("acl.rs"),
        include_str!("create.rs"),
        include_str!("handshake.rs"),
        include_str!("headers.rs"),
        include_str!("multi.rs"),
        include_str!("quota.rs"),
        include_str!("read_only.rs"),
        include_str!("sessions.rs"),
        include_str!("stat.rs"),
        include_str!("versions.rs"),
        include_str!("watches.rs"),
        include_str!("words.rs"),
    ];
    let tested: BTreeSet<u32> = sources
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(|line| line.strip_prefix("fn s")?.split_once('_')?.0.parse().ok())
        .collect();
    for statement in 1..=STATEMENTS {
        let not_here = NOT_HERE.iter().any(|(number, _)| *number == statement);
        assert!(
            tested.contains(&statement) != not_here,
            "statement {statement}"
        );
    }
}

/// Polls until `done`, or fails after the client's patience.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + client::PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Says that a test did not check what its name claims. libtest has no such verdict, so the line
/// goes past the captured output.
fn skipped(test: &str, reason: &str) {
    let line = format!("SKIPPED {test}: {reason}\n");
    // Nothing depends on this line.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

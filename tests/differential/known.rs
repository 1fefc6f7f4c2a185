//! Where the two servers may differ, each place a field with its reason.
//!
//! A difference that is not in [`TABLE`] fails the run. A line that a rich run never meets fails it
//! too: it has gone stale. [`LEFT_OUT`] names what is not sent at all, because the other server
//! cannot stand it, or answers by chance, or because it would part the two states for good.

/// The server that zkraft is compared with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Other {
    /// Itself: nothing may differ.
    Zkraft,
    /// Debian's 3.8.0.
    V38,
    /// The baseline, 3.9.5.
    V39,
}

impl Other {
    pub fn is_zookeeper(self) -> bool {
        self != Self::Zkraft
    }
}

/// A field in which the servers may differ.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Known {
    UndecodedWriteZxid,
    WrongPassword,
    FutureZxid,
    DeleteContainer,
    BodyOfRefusedMulti,
    Surrogates,
    NullPath,
    NullAclOfTtl,
    NotificationZxid,
    Create2InMulti,
    MultiThatMayNotBe,
    ExistsWithoutRead,
    WatchTypes,
    WatchesOfOthers,
}

pub struct Line {
    pub known: Known,
    /// Whether only 3.8 differs, and 3.9 does as zkraft does.
    pub only_v38: bool,
    pub field: &'static str,
    pub reason: &'static str,
}

const fn line(known: Known, only_v38: bool, field: &'static str, reason: &'static str) -> Line {
    Line {
        known,
        only_v38,
        field,
        reason,
    }
}

pub const TABLE: [Line; 14] = [
    line(
        Known::UndecodedWriteZxid,
        false,
        "zxid behind a write that does not decode",
        "ZooKeeper gives it a zxid like any failing write, 3.9 only to multis and null paths; \
         here it never enters the log",
    ),
    line(
        Known::WrongPassword,
        false,
        "the owner's connection after a renewal with a wrong password",
        "ZooKeeper closes it; session ids are public, so anyone could cut off anyone",
    ),
    line(
        Known::FutureZxid,
        false,
        "the time until a client that is ahead is turned away",
        "ZooKeeper closes at once, zkraft after half a second: not compared, both must close",
    ),
    line(
        Known::DeleteContainer,
        false,
        "err and close of deleteContainer from a client",
        "it deletes a leaf past its ACL: zkraft takes it for an unknown operation",
    ),
    line(
        Known::BodyOfRefusedMulti,
        false,
        "body of a multi's reply with err -5",
        "ZooKeeper may add the results before it, which clients do not read (spec 1.5)",
    ),
    line(
        Known::Surrogates,
        false,
        "a character above U+FFFF in a path that is echoed",
        "Java writes its two halves by themselves, which is not UTF-8 (spec 1.1)",
    ),
    line(
        Known::NullPath,
        false,
        "err of a request with a null path and something else amiss",
        "a null path does not decode here; ZooKeeper sees to flags, TTL and watches first",
    ),
    line(
        Known::NullAclOfTtl,
        false,
        "err of a multi with a createTTL that has a null ACL",
        "ZooKeeper fails the part, zkraft the request, as both do for other creates (s98)",
    ),
    line(
        Known::NotificationZxid,
        true,
        "zxid of a notification",
        "-1 up to 3.8, that of the transaction since (spec 6.7)",
    ),
    line(
        Known::Create2InMulti,
        true,
        "type and Stat of what create2 or createContainer with other flags gives in a multi",
        "answered as a create before 3.8.2 (spec 4.2)",
    ),
    line(
        Known::MultiThatMayNotBe,
        true,
        "err of a multi with a null ACL, an unknown create flag or a TTL flag without TTL",
        "3.8 fails the part, 3.9 the whole request (spec 4.1, s98)",
    ),
    line(
        Known::ExistsWithoutRead,
        true,
        "err and Stat of exists on a znode that may not be read",
        "exists needs READ since 3.8.4 (s78)",
    ),
    line(
        Known::WatchTypes,
        true,
        "err of checkWatches and removeWatches with type 4 or 5",
        "types since 3.9, no types before (spec 3.6)",
    ),
    line(
        Known::WatchesOfOthers,
        true,
        "err of checkWatches for a watch that the connection does not have",
        "3.8 looks for a watch of any connection, and trips over a path without a slash",
    ),
];

/// What the streams do not hold, and why.
pub const LEFT_OUT: [(&str, &str); 14] = [
    (
        "requests behind others that ZooKeeper answers out of order",
        "auth, sasl and unknown operations never enter its pipeline",
    ),
    (
        "writes behind a setACL in one pipeline",
        "ZooKeeper checks them against the old ACL until the new one is applied",
    ),
    (
        "several changes in one pipeline or multi while there is a quota",
        "ZooKeeper checks them against the statistics that it has applied (spec 5.6)",
    ),
    (
        "quotas that are no numbers",
        "ZooKeeper throws while it applies what they govern",
    ),
    (
        "a null path, or a TTL flag without TTL, in a multi behind its first part",
        "ZooKeeper does not take back the parts before it: it counts them, and a write behind the \
         multi may find them still",
    ),
    (
        "a null list in setWatches behind one with paths",
        "ZooKeeper sends the events of the lists before it, and fails then",
    ),
    (
        "createContainer with the flag of an ephemeral",
        "ZooKeeper takes it for an ephemeral until it is applied",
    ),
    (
        "createTTL with the flag of another kind and no TTL",
        "ZooKeeper crashes when it applies it (spec 3.6)",
    ),
    (
        "deleteContainer of what can be deleted, createSession",
        "zkraft has neither for clients (tests/wire, difference 3)",
    ),
    (
        "sasl with a null token",
        "ZooKeeper closes the connection without an answer",
    ),
    (
        "what time does: expiry, TTL, the cleaner of containers",
        "tests/wire and the simulator have it",
    ),
    (
        "3.8: check outside of a multi",
        "no answer, and a log that cannot be read again (spec 3.1)",
    ),
    (
        "3.8: more than one watch mode on a path of a connection",
        "the last one replaces the others",
    ),
    (
        "3.8: exists with a watch where a znode may not be read",
        "it needs no READ there and sets the watch (s78)",
    ),
];

/// How often each line of the table was met.
#[derive(Clone, Debug, Default)]
pub struct Met([u64; TABLE.len()]);

impl Met {
    pub fn count(&mut self, known: Known) {
        self.0[place(known)] += 1;
    }

    pub fn add(&mut self, more: &Self) {
        for (count, more) in self.0.iter_mut().zip(more.0) {
            *count += more;
        }
    }

    pub fn of(&self, known: Known) -> u64 {
        self.0[place(known)]
    }
}

fn place(known: Known) -> usize {
    let found = TABLE.iter().position(|line| line.known == known);
    found.expect("the table has a line for each")
}

/// Whether the table allows this difference from that server.
pub fn allowed(known: Known, other: Other) -> bool {
    match other {
        Other::Zkraft => false,
        Other::V38 => true,
        Other::V39 => !TABLE[place(known)].only_v38,
    }
}

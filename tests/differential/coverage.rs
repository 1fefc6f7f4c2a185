//! What a stream has met, and what it must have met to be worth anything.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::client::{code, op};
use crate::known::Other;
use crate::request::Request;

/// Operations that must occur, by themselves.
const OPERATIONS: [(i32, &str); 34] = [
    (op::NOTIFICATION, "notification"),
    (op::CREATE, "create"),
    (op::DELETE, "delete"),
    (op::EXISTS, "exists"),
    (op::GET_DATA, "getData"),
    (op::SET_DATA, "setData"),
    (op::GET_ACL, "getACL"),
    (op::SET_ACL, "setACL"),
    (op::GET_CHILDREN, "getChildren"),
    (op::SYNC, "sync"),
    (op::PING, "ping"),
    (op::GET_CHILDREN2, "getChildren2"),
    (op::CHECK, "check"),
    (op::MULTI, "multi"),
    (op::CREATE2, "create2"),
    (op::RECONFIG, "reconfig"),
    (op::CHECK_WATCHES, "checkWatches"),
    (op::REMOVE_WATCHES, "removeWatches"),
    (op::CREATE_CONTAINER, "createContainer"),
    (op::DELETE_CONTAINER, "deleteContainer"),
    (op::CREATE_TTL, "createTTL"),
    (op::MULTI_READ, "multiRead"),
    (op::AUTH, "auth"),
    (op::SET_WATCHES, "setWatches"),
    (op::SASL, "sasl"),
    (op::GET_EPHEMERALS, "getEphemerals"),
    (op::GET_ALL_CHILDREN_NUMBER, "getAllChildrenNumber"),
    (op::SET_WATCHES2, "setWatches2"),
    (op::ADD_WATCH, "addWatch"),
    (op::WHO_AM_I, "whoAmI"),
    (op::CLOSE_SESSION, "closeSession"),
    (op::ERROR, "error"),
    (23, "unknown"),
    (999, "unknown"),
];

/// Operations that must occur within a multi or a multiRead.
const PARTS: [i32; 9] = [
    op::CREATE,
    op::CREATE2,
    op::CREATE_CONTAINER,
    op::CREATE_TTL,
    op::DELETE,
    op::SET_DATA,
    op::CHECK,
    op::GET_DATA,
    op::GET_CHILDREN,
];

/// Error codes that one server with its default features can answer (spec §10).
const CODES: [i32; 16] = [
    0,
    code::RUNTIME_INCONSISTENCY,
    code::MARSHALLING,
    code::UNIMPLEMENTED,
    code::BAD_ARGUMENTS,
    code::NO_NODE,
    code::NO_AUTH,
    code::BAD_VERSION,
    code::NO_CHILDREN_FOR_EPHEMERALS,
    code::NODE_EXISTS,
    code::NOT_EMPTY,
    code::INVALID_ACL,
    code::AUTH_FAILED,
    code::NO_WATCHER,
    code::RECONFIG_DISABLED,
    code::QUOTA_EXCEEDED,
];

/// What must happen to connections and watches.
const MOMENTS: [&str; 14] = [
    "session opened",
    "password right",
    "password wrong",
    "renewal of a closed session",
    "renewal while connected",
    "renewal of an unknown session",
    "client from the future",
    "connection dropped",
    "no frame",
    "largest frame",
    "pipeline of 8 or more",
    "readers at once",
    "multi fails at its first part",
    "multi fails behind its second part",
];

/// The minimum of each in 200,000 operations.
const MINIMUM: u64 = 20;
/// What costs half a second each, in 200,000 operations.
const RARE: u64 = 3;

#[derive(Clone, Debug, Default)]
pub struct Coverage {
    pub operations: u64,
    answers: BTreeMap<(i32, i32), u64>,
    parts: BTreeMap<(i32, i32), u64>,
    events: BTreeMap<i32, u64>,
    moments: BTreeMap<&'static str, u64>,
}

impl Coverage {
    pub fn reply(&mut self, request: &Request, err: i32) {
        self.operations += 1;
        *self.answers.entry((request.op(), err)).or_default() += 1;
    }

    pub fn part(&mut self, part: &Request, code: i32) {
        *self.parts.entry((part.op(), code)).or_default() += 1;
    }

    pub fn event(&mut self, kind: i32) {
        *self.events.entry(kind).or_default() += 1;
    }

    pub fn moment(&mut self, what: &'static str) {
        *self.moments.entry(what).or_default() += 1;
    }

    /// Counts what another pair of servers has met.
    pub fn add(&mut self, more: &Self) {
        self.operations += more.operations;
        add(&mut self.answers, &more.answers);
        add(&mut self.parts, &more.parts);
        add(&mut self.events, &more.events);
        add(&mut self.moments, &more.moments);
    }

    /// What the stream has met too seldom.
    pub fn gaps(&self, other: Other) -> Vec<String> {
        let mut gaps = Vec::new();
        let mut want = |what: String, found: u64, minimum: u64| {
            let minimum = (minimum * self.operations / 200_000).max(1);
            if found < minimum {
                gaps.push(format!("{what}: {found} of at least {minimum}"));
            }
        };
        let answered = |operation: i32| sum(&self.answers, |(op, _)| *op == operation);
        for (operation, name) in OPERATIONS {
            // 3.8.0 never answers it, and cannot start again from the log that has it (spec §3.1).
            if operation == op::CHECK && other == Other::V38 {
                continue;
            }
            want(
                format!("{name} ({operation})"),
                answered(operation),
                MINIMUM,
            );
        }
        for operation in PARTS {
            let found = sum(&self.parts, |(op, _)| *op == operation);
            want(
                format!("operation {operation} within a multi"),
                found,
                MINIMUM,
            );
        }
        for code in CODES {
            let found = sum(&self.answers, |(_, err)| *err == code)
                + sum(&self.parts, |(_, err)| *err == code);
            want(format!("error {code}"), found, MINIMUM);
        }
        for kind in 1..=4 {
            let found = self.events.get(&kind).copied().unwrap_or(0);
            want(format!("event {kind}"), found, MINIMUM);
        }
        for what in MOMENTS {
            let found = self.moments.get(what).copied().unwrap_or(0);
            let rare = ["client from the future", "largest frame"].contains(&what);
            want(what.into(), found, if rare { RARE } else { MINIMUM });
        }
        gaps
    }

    /// The counts as lines: for each operation its answers.
    pub fn table(&self) -> String {
        let mut table = String::new();
        let mut rows = |title: &str, counts: &BTreeMap<(i32, i32), u64>| {
            let mut last = None;
            for ((operation, err), count) in counts {
                if last != Some(operation) {
                    let _ = write!(table, "\n{title} {operation:>4}:");
                    last = Some(operation);
                }
                let _ = write!(table, " {err}×{count}");
            }
        };
        rows("operation", &self.answers);
        rows("in a multi", &self.parts);
        let _ = write!(
            table,
            "\nevents: {:?}\nmoments: {:?}",
            self.events, self.moments
        );
        table
    }
}

fn sum(counts: &BTreeMap<(i32, i32), u64>, wanted: impl Fn(&(i32, i32)) -> bool) -> u64 {
    let found = counts.iter().filter(|(key, _)| wanted(key));
    found.map(|(_, count)| count).sum()
}

fn add<Key: Copy + Ord>(counts: &mut BTreeMap<Key, u64>, more: &BTreeMap<Key, u64>) {
    for (key, count) in more {
        *counts.entry(*key).or_default() += count;
    }
}

//! The conversation of a real Flink cluster, sent again.

use std::collections::BTreeMap;

use crate::client::{op, open_acl};
use crate::request::Request;
use crate::run::Step;

const TRACE: &str = include_str!("flink-2.3.0.txt");
/// What Curator writes where its caller has no data: an address, whose length was recorded.
const DEFAULT_DATA: usize = 9;

/// The recorded requests in their order, one at a time.
pub fn steps() -> Vec<Step> {
    let mut steps = Vec::new();
    let mut open = [false; 10];
    for line in TRACE.lines().filter(|line| !line.is_empty()) {
        if line.starts_with("# run 2") {
            // The clients of the first run were killed, and their sessions expired.
            for who in (0..open.len()).filter(|who| open[*who]) {
                steps.push(one(
                    who,
                    1,
                    Request::Bare {
                        op: op::CLOSE_SESSION,
                    },
                ));
            }
            open = [false; 10];
        }
        if line.starts_with('#') {
            continue;
        }
        let (who, rest) = line.split_once(' ').expect("a client and what it does");
        let who: usize = who[1..].parse().expect("a client's number");
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        match name {
            "CONNECT" => {
                open[who] = true;
                let timeout_ms = rest.strip_prefix("timeout=").expect("a timeout");
                steps.push(Step::Open {
                    who,
                    timeout_ms: timeout_ms.parse().expect("milliseconds"),
                    read_only: Some(false),
                    password: Some(16),
                });
            }
            // The server's side of it is compared behind closeSession.
            "CLOSED" => {}
            _ => {
                open[who] &= name != "closeSession";
                let (xid, request) = request(name, rest);
                steps.push(one(who, xid, request));
            }
        }
    }
    steps
}

/// The same, with what one client sent in a row sent at once.
pub fn pipelined() -> Vec<Step> {
    let mut found: Vec<Step> = Vec::new();
    for step in steps() {
        if let (
            Some(Step::Pipeline { who, requests }),
            Step::Pipeline {
                who: same,
                requests: more,
            },
        ) = (found.last_mut(), &step)
            && who == same
        {
            requests.extend(more.iter().cloned());
            continue;
        }
        found.push(step);
    }
    found
}

fn one(who: usize, xid: i32, request: Request) -> Step {
    Step::Pipeline {
        who,
        requests: vec![(xid, request)],
    }
}

fn request(name: &str, rest: &str) -> (i32, Request) {
    let (xid, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let xid = xid.strip_prefix("xid=").expect("an xid");
    let (path, rest) = rest.trim_start().split_once(' ').unwrap_or((rest, ""));
    let fields = fields(rest.split(' '));
    let field = |name: &str| fields.get(name).copied();
    let path = || Some(path.to_owned());
    let read = |op| Request::Read {
        op,
        path: path(),
        watch: u8::from(field("watch") == Some(1)),
    };
    let create = |op| create(op, path(), field("flags"), DEFAULT_DATA);
    let numbered = |op, number| Request::Numbered {
        op,
        path: path(),
        number,
    };
    let request = match name {
        "exists" => read(op::EXISTS),
        "getData" => read(op::GET_DATA),
        "getChildren" => read(op::GET_CHILDREN),
        "getChildren2" => read(op::GET_CHILDREN2),
        "create" => create(op::CREATE),
        "create2" => create(op::CREATE2),
        "createContainer" => create(op::CREATE_CONTAINER),
        "delete" => numbered(op::DELETE, -1),
        "setData" => Request::SetData {
            path: path(),
            data: Some(vec![1; field("dlen").expect("a length") as usize]),
            version: field("ver").expect("a version"),
        },
        "checkWatches" => numbered(op::CHECK_WATCHES, crate::client::kind::ANY),
        "removeWatches" => numbered(op::REMOVE_WATCHES, crate::client::kind::ANY),
        "closeSession" => Request::Bare {
            op: op::CLOSE_SESSION,
        },
        "multi" => multi(rest_of_multi(path().as_deref(), rest)),
        other => panic!("an operation that Flink does not use: {other}"),
    };
    (xid.parse().expect("a number"), request)
}

/// What stands in the brackets of a multi, which was split at a blank as other lines are.
fn rest_of_multi(first: Option<&str>, rest: &str) -> String {
    let whole = format!("{} {rest}", first.unwrap_or_default());
    let inner = whole.trim().strip_prefix('[');
    let inner = inner.and_then(|inner| inner.strip_suffix(']'));
    inner.expect("a list").to_owned()
}

fn multi(list: String) -> Request {
    let part = |part: &str| {
        let inner = part
            .strip_prefix("create(")
            .and_then(|part| part.strip_suffix(')'));
        let (path, rest) = inner
            .and_then(|inner| inner.split_once(','))
            .expect("a create");
        let fields = fields(rest.split(','));
        let length = fields["dlen"] as usize;
        create(op::CREATE, Some(path.into()), Some(fields["flags"]), length)
    };
    Request::Multi {
        op: op::MULTI,
        parts: list.split("; ").map(part).collect(),
    }
}

fn create(op: i32, path: Option<String>, flags: Option<i32>, length: usize) -> Request {
    Request::Create {
        op,
        path,
        data: Some(vec![b'd'; length]),
        acl: Some(open_acl()),
        flags: flags.expect("flags"),
        ttl: None,
    }
}

fn fields<'a>(words: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, i32> {
    let pairs = words.filter_map(|word| word.split_once('='));
    pairs
        .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
        .collect()
}

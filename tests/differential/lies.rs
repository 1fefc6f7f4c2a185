//! Mistakes that a server might make, told of one that makes none, to see each of them found.

use crate::client::{code, event, op};
use crate::link::Heard;
use crate::request::Request;
use crate::run::Lie;

/// A mistake: what it is, the field that must give it away, and how it is made.
pub struct Mistake {
    pub name: &'static str,
    pub field: &'static str,
    pub lie: Lie,
}

pub const MISTAKES: [Mistake; 8] = [
    Mistake {
        name: "cversion counts one too many once there were two children",
        field: "cversion of operation 3",
        lie: |requests, heard| {
            for_replies(requests, heard, |request, err, body| {
                if request.op() == op::EXISTS && *err == 0 && body[39] >= 2 {
                    body[39] += 1;
                }
            });
        },
    },
    Mistake {
        name: "nobody hears of deletions",
        field: "events",
        lie: |_, heard| {
            heard.retain(
                |heard| !matches!(heard, Heard::Event { kind, .. } if *kind == event::DELETED),
            );
        },
    },
    Mistake {
        name: "the version is looked at behind the children",
        field: "err of operation 2",
        lie: |requests, heard| {
            for_replies(requests, heard, |request, err, _| {
                if request.op() == op::DELETE && *err == code::NOT_EMPTY {
                    *err = code::BAD_VERSION;
                }
            });
        },
    },
    Mistake {
        name: "the own event comes behind the reply",
        field: "events",
        lie: |_, heard| {
            if let [Heard::Event { .. }, Heard::Reply { .. }, ..] = heard[..] {
                heard.swap(0, 1);
            }
        },
    },
    Mistake {
        name: "a failed multi tells the parts before the failure apart from those behind it",
        field: "code of a result of operation 14",
        lie: |requests, heard| {
            for_replies(requests, heard, |request, err, body| {
                // The first part's code is 0 although another failed.
                if request.op() == op::MULTI && *err == 0 && body.starts_with(&FIRST_OF_FAILED) {
                    body[8] = 1;
                }
            });
        },
    },
    Mistake {
        name: "a failing setData takes no zxid",
        field: "zxid of operation 5",
        lie: |requests, heard| {
            let replies = heard.iter_mut().filter_map(|heard| match heard {
                Heard::Reply { zxid, err, .. } => Some((zxid, *err)),
                _ => None,
            });
            for ((_, request), (zxid, err)) in requests.iter().zip(replies) {
                if request.op() == op::SET_DATA && err == code::BAD_VERSION {
                    *zxid -= 1;
                }
            }
        },
    },
    Mistake {
        name: "an owner is another session",
        field: "ephemeralOwner of operation 4",
        lie: |requests, heard| {
            for_replies(requests, heard, |request, err, body| {
                let stat = body.len().saturating_sub(68);
                if request.op() == op::GET_DATA && *err == 0 && body[stat + 51] != 0 {
                    body[stat + 51] ^= 1;
                }
            });
        },
    },
    Mistake {
        name: "mtime moves with an ACL",
        field: "mtime of operation 7",
        lie: |requests, heard| {
            for_replies(requests, heard, |request, err, body| {
                if request.op() == op::SET_ACL && *err == 0 && body[24] == 0 {
                    body[31] ^= 0x40;
                }
            });
        },
    },
];

/// An error result that says 0.
const FIRST_OF_FAILED: [u8; 9] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0];

fn for_replies(
    requests: &[(i32, Request)],
    heard: &mut [Heard],
    mut change: impl FnMut(&Request, &mut i32, &mut Vec<u8>),
) {
    let replies = heard.iter_mut().filter_map(|heard| match heard {
        Heard::Reply { err, body, .. } => Some((err, body)),
        _ => None,
    });
    for ((_, request), (err, body)) in requests.iter().zip(replies) {
        change(request, err, body);
    }
}

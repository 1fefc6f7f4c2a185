//! Random requests of every kind, over few enough paths that they meet each other.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sha1::{Digest, Sha1};
use zkraft::wire::request::{Create, Reconfig, SetWatches, SubRequest};
use zkraft::wire::{Acl, Id, Request, Text, Zxid, op, perms};

use crate::rng::Rng;

/// Secrets of the digest scheme that clients use.
pub const SECRETS: [&str; 3] = ["ann:apple", "bob:", "carl"];
/// The secret of the super user.
pub const SUPER: &str = "super:secret";
/// Created paths that are remembered, to be used again.
const SEEN_MAX: usize = 40;
const STRANGE_PATHS: [&str; 22] = [
    "",
    "a",
    "a/b",
    "/a/",
    "//a",
    "/x//b",
    "/a/.",
    "/a/..",
    "/.",
    "/...",
    "/a/.x",
    "/a\u{1}",
    "/\u{7f}",
    "/\u{e000}",
    "/\u{fffd}",
    "/\u{1f600}",
    "/a\0b",
    "/é",
    "/zookeeper",
    "/zookeeper/quota",
    "/zookeeper/config",
    "/",
];

/// What a generator draws from.
#[derive(Clone, Debug)]
pub struct Mix {
    /// Every path that is not strange starts with this; may be empty.
    pub root: String,
    /// Different names in one directory.
    pub names: u64,
    pub depth: u64,
    /// Bytes of data, at most.
    pub data_max: u64,
    /// Percentage of requests that a decent client would not send.
    pub strange: u64,
    /// ACLs other than open ones, in percent.
    pub acls: u64,
    /// Watches asked for in reads, in percent.
    pub watches: u64,
    /// Paths that were created, as replies told.
    seen: Vec<Text>,
}

impl Mix {
    pub fn new(rng: &mut Rng, root: &str) -> Self {
        Self {
            root: root.into(),
            names: rng.between(2, 6),
            depth: rng.between(1, 3),
            data_max: *rng.pick(&[0, 20, 20, 200, 3000]),
            strange: *rng.pick(&[0, 3, 10]),
            acls: *rng.pick(&[0, 10, 30]),
            watches: *rng.pick(&[0, 30, 80]),
            seen: Vec::new(),
        }
    }

    pub fn request(&mut self, rng: &mut Rng, reads: u64) -> Request {
        if rng.percent(reads) {
            self.read(rng)
        } else {
            self.write(rng)
        }
    }

    pub fn write(&mut self, rng: &mut Rng) -> Request {
        match rng.below(100) {
            0..40 => Request::Create(self.create(rng)),
            40..60 => Request::Delete {
                path: self.path(rng),
                version: version(rng),
            },
            60..78 => {
                let (path, data) = (self.path(rng), self.data(rng));
                Request::SetData {
                    path,
                    data,
                    version: version(rng),
                }
            }
            78..84 => {
                let path = self.path(rng);
                let system = &*path == "/" || path.starts_with("/zookeeper");
                // Nobody may lock the others out of the places that everyone needs.
                let acl = if system {
                    Some(vec![Acl::open()])
                } else {
                    self.acl(rng)
                };
                Request::SetAcl {
                    path,
                    acl,
                    version: version(rng),
                }
            }
            84..99 => {
                let count = rng.below(6);
                Request::Multi((0..count).map(|_| self.sub_write(rng)).collect())
            }
            _ if rng.percent(self.strange) => Request::Reconfig(reconfig(rng, Zxid(0))),
            _ => Request::Multi(Vec::new()),
        }
    }

    pub fn read(&mut self, rng: &mut Rng) -> Request {
        let path = self.path(rng);
        let watch = rng.percent(self.watches);
        match rng.below(100) {
            0..20 => Request::Exists { path, watch },
            20..45 => Request::GetData { path, watch },
            45..65 => Request::GetChildren {
                path,
                watch,
                with_stat: rng.percent(50),
            },
            65..72 => Request::GetAcl { path },
            72..76 => Request::GetAllChildrenNumber { path },
            76..80 => {
                let prefix = *rng.pick(&[
                    None,
                    Some(""),
                    Some(" "),
                    Some("/"),
                    Some("/e"),
                    Some("/a/"),
                ]);
                let prefix = if rng.percent(50) {
                    Some(path)
                } else {
                    prefix.map(Text::from)
                };
                Request::GetEphemerals { prefix }
            }
            80..90 => {
                let count = rng.below(5);
                Request::MultiRead((0..count).map(|_| self.sub_read(rng)).collect())
            }
            90..94 => Request::Sync {
                path: rng.percent(80).then_some(path),
            },
            94..96 => Request::WhoAmI,
            96..98 if watch => Request::AddWatch {
                path,
                mode: strange_in(rng, self.strange, 2),
            },
            98 if watch => Request::CheckWatches {
                path,
                kind: strange_in(rng, self.strange, 6),
            },
            99 if watch => Request::RemoveWatches {
                path,
                kind: strange_in(rng, self.strange, 6),
            },
            _ => Request::Ping,
        }
    }

    /// Watches as a client would set them again that lost its connection.
    pub fn set_watches(&mut self, rng: &mut Rng, since: Zxid) -> Request {
        let mut paths = || {
            (0..rng.below(4))
                .map(|_| self.path(rng))
                .collect::<Vec<_>>()
        };
        let (data, exist, child) = (paths(), paths(), paths());
        let persistent = [paths(), paths()];
        let persistent = rng.percent(50).then_some(persistent);
        Request::SetWatches(SetWatches {
            relative_zxid: since,
            data,
            exist,
            child,
            persistent,
        })
    }

    /// Remembers a path that exists now.
    pub fn saw(&mut self, path: &Text, rng: &mut Rng) {
        if self.seen.len() == SEEN_MAX {
            let at = rng.below(SEEN_MAX as u64) as usize;
            self.seen.swap_remove(at);
        }
        self.seen.push(path.clone());
    }

    pub fn path(&mut self, rng: &mut Rng) -> Text {
        if rng.percent(self.strange) {
            return (*rng.pick(&STRANGE_PATHS)).into();
        }
        if !self.seen.is_empty() && rng.percent(40) {
            let parent = rng.pick(&self.seen).clone();
            return if rng.percent(30) {
                format!("{parent}/{}", self.name(rng)).into()
            } else {
                parent
            };
        }
        let mut path = self.root.clone();
        for _ in 0..rng.between(1, self.depth) {
            path.push('/');
            path.push_str(&self.name(rng));
        }
        path.into()
    }

    fn name(&self, rng: &mut Rng) -> String {
        char::from(b'a' + rng.below(self.names) as u8).into()
    }

    fn create(&mut self, rng: &mut Rng) -> Create {
        let (mut opcode, mut flags) = (
            *rng.pick(&[op::CREATE, op::CREATE2]),
            *rng.pick(&[0, 0, 0, 1, 2, 3]),
        );
        match rng.below(100) {
            0..8 => (opcode, flags) = (op::CREATE_CONTAINER, 4),
            8..14 => (opcode, flags) = (op::CREATE_TTL, *rng.pick(&[5, 6])),
            _ if rng.percent(self.strange) => {
                opcode = *rng.pick(&[
                    op::CREATE,
                    op::CREATE2,
                    op::CREATE_CONTAINER,
                    op::CREATE_TTL,
                ]);
                flags = *rng.pick(&[0, 1, 2, 3, 4, 5, 6, 7, -1]);
            }
            _ => {}
        }
        let ttl = *rng.pick(&[1, 50, 400, 3000]);
        let ttl = if rng.percent(self.strange) {
            *rng.pick(&[0, -1, -9, 1 << 40, (1 << 40) - 1])
        } else {
            ttl
        };
        Create {
            opcode,
            path: self.path(rng),
            data: self.data(rng),
            acl: self.acl(rng),
            flags,
            ttl: (opcode == op::CREATE_TTL).then_some(ttl),
        }
    }

    fn sub_write(&mut self, rng: &mut Rng) -> SubRequest {
        match rng.below(10) {
            0..4 => {
                let mut create = self.create(rng);
                // Only what a multi can hold; the rest fails to decode, which others test (s63,
                // s98).
                create.acl.get_or_insert_with(|| vec![Acl::open()]);
                (create.opcode, create.flags) = *rng.pick(&[
                    (op::CREATE, 0),
                    (op::CREATE, 1),
                    (op::CREATE, 2),
                    (op::CREATE2, 3),
                    (op::CREATE2, 0),
                    (op::CREATE_CONTAINER, 4),
                    (op::CREATE_TTL, 5),
                ]);
                create.ttl = (create.opcode == op::CREATE_TTL).then_some(500);
                SubRequest::Create(create)
            }
            4..6 => SubRequest::Delete {
                path: self.path(rng),
                version: version(rng),
            },
            6..8 => {
                let (path, data) = (self.path(rng), self.data(rng));
                SubRequest::SetData {
                    path,
                    data,
                    version: version(rng),
                }
            }
            _ => SubRequest::Check {
                path: self.path(rng),
                version: version(rng),
            },
        }
    }

    fn sub_read(&mut self, rng: &mut Rng) -> SubRequest {
        let path = self.path(rng);
        if rng.percent(60) {
            SubRequest::GetData { path }
        } else {
            SubRequest::GetChildren { path }
        }
    }

    fn data(&self, rng: &mut Rng) -> Option<Bytes> {
        if rng.percent(10) {
            return None;
        }
        let length = rng.between(0, self.data_max) as usize;
        let byte = rng.next() as u8;
        Some(vec![byte; length].into())
    }

    fn acl(&self, rng: &mut Rng) -> Option<Vec<Acl>> {
        if rng.percent(self.strange) {
            return match rng.below(3) {
                0 => None,
                1 => Some(Vec::new()),
                _ => {
                    let (scheme, id) = *rng.pick(&[
                        ("world", "x"),
                        ("digest", "nocolon"),
                        ("digest", "user:"),
                        ("digest", "a:b:c"),
                        ("ip", "1.2.3"),
                        ("ip", "127.0.0.0/33"),
                        ("super", ""),
                        ("sasl", "a"),
                        ("", ""),
                    ]);
                    Some(vec![
                        Acl::open(),
                        Acl {
                            perms: perms::ALL,
                            id: Id::new(scheme, id),
                        },
                    ])
                }
            };
        }
        if !rng.percent(self.acls) {
            return Some(vec![Acl::open()]);
        }
        let one = |rng: &mut Rng| {
            let id = match rng.below(6) {
                0 => Id::new("auth", ""),
                1 | 2 => Id::new("digest", &digest_id(rng.pick::<&str>(&SECRETS))),
                3 => Id::new(
                    "ip",
                    rng.pick::<&str>(&[
                        "10.0.0.0/8",
                        "10.0.0.1",
                        "10.0.0.0/30",
                        "10.9.9.9",
                        "0.0.0.0/0",
                    ]),
                ),
                _ => Id::new("world", "anyone"),
            };
            Acl {
                perms: *rng.pick(&[31, 31, 1, 2, 4, 5, 8, 15, 16, 30, 0, 64]),
                id,
            }
        };
        Some((0..rng.between(1, 3)).map(|_| one(rng)).collect())
    }
}

/// A change of the ensemble, of a few servers that get into each other's way; `present` may be its
/// version.
pub fn reconfig(rng: &mut Rng, present: Zxid) -> Reconfig {
    let list = |rng: &mut Rng| {
        let count = rng.below(4);
        let lines: Vec<_> = (0..count).map(|_| server_line(rng)).collect();
        lines.join(rng.pick::<&str>(&[",", ",", ", ", ",,"]))
    };
    let ids = ["1", "2", "3", "4", "1,2", " 3 , 9", "2,300,", "-1", "x", ""];
    let (mut joining, mut leaving, mut members) = (None, None, None);
    match rng.below(10) {
        0..3 => joining = Some(list(rng)),
        3..5 => leaving = Some((*rng.pick(&ids)).to_owned()),
        5..7 => (joining, leaving) = (Some(list(rng)), Some((*rng.pick(&ids)).to_owned())),
        7 | 8 => members = Some(server_lines(rng)),
        _ => (joining, members) = (rng.percent(50).then(|| list(rng)), Some(server_lines(rng))),
    }
    Reconfig {
        joining: joining.map(Text::from),
        leaving: leaving.map(Text::from),
        members: members.map(Text::from),
        version: *rng.pick(&[-1, -1, -1, present.0, present.0, present.0 - 1]),
    }
}

/// The lines of a whole ensemble; usually they make one.
pub fn server_lines(rng: &mut Rng) -> String {
    let mut lines: Vec<_> = (0..rng.below(6)).map(|_| server_line(rng)).collect();
    if rng.percent(90) {
        lines.sort();
        lines.dedup_by_key(|line| line.split('=').next().map(str::to_owned));
    }
    if rng.percent(20) {
        lines.push((*rng.pick(&["version=10000000a", "version=x", "group.1=1:2"])).into());
    }
    lines.join(rng.pick::<&str>(&["\n", "\n", ",", "\r\n"]))
}

/// A line of a server, its own address in it unless the line is a strange one.
fn server_line(rng: &mut Rng) -> String {
    let id = *rng.pick(&["1", "2", "3", "4", "5"]);
    let role = *rng.pick(&["", "", ":participant", ":Participant", ":OBSERVER"]);
    if rng.percent(85) {
        let client = match rng.percent(50) {
            true => ";2181".to_owned(),
            false => format!(";host{id}.example:2181"),
        };
        return format!("server.{id}=host{id}:2888:3888{role}{client}");
    }
    let id = *rng.pick(&[id, id, id, "0", "256", "x", ""]);
    let host = *rng.pick(&["host9", "HOST1", "[::1]", "a b", "", "[::1", "10.0.0.1"]);
    let ports = *rng.pick(&[
        "2889:3889",
        "2888:3888",
        "1:1",
        "2888",
        "0:1",
        "1:65536",
        "1:2:3:4",
    ]);
    let role = *rng.pick(&[role, ":leader"]);
    let more = *rng.pick(&[
        "",
        "",
        "",
        "|[::2]:1:2",
        "|other:1:2",
        "|",
        "|x:1:2:observer",
    ]);
    let client = *rng.pick(&[
        "",
        ";2181",
        ";0.0.0.0:2181",
        ";[::]:2181",
        ";[::3]:2181",
        ";2888",
        ";",
        ";a:1;b:2",
        ";:5",
        ";host1.example:2181",
    ]);
    format!("server.{id}={host}:{ports}{role}{more}{client}")
}

/// The id that a secret of the digest scheme stands for (§7.6).
pub fn digest_id(secret: &str) -> String {
    let user = secret.split(':').next().unwrap_or_default();
    format!(
        "{user}:{}",
        STANDARD.encode(Sha1::digest(secret.as_bytes()))
    )
}

fn version(rng: &mut Rng) -> i32 {
    *rng.pick(&[-1, -1, -1, 0, 0, 1, 2, -2])
}

/// Usually one of the meant values, from 0 on; sometimes one beside them.
fn strange_in(rng: &mut Rng, strange: u64, values: u64) -> i32 {
    if rng.percent(strange) {
        *rng.pick(&[-1, 7])
    } else {
        rng.below(values) as i32
    }
}

#[test]
fn digest_ids_are_the_recorded_ones() {
    assert_eq!(digest_id("u:p"), "u:Jq7wMyA/w2Vd5WIDAKdu4OIIFEQ=");
    assert_eq!(
        digest_id("super:secret"),
        "super:lK75jTNcA+U9vtVEw5vB51mj/w4="
    );
}

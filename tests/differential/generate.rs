//! Streams that their seed decides, of every operation over few enough paths that they meet.
//!
//! A stream is an episode: it starts on an empty tree and lives for some hundred requests, so that
//! a failing one is short already. The generator never hears an answer. It has a rough idea of what
//! exists and in which version, so that enough of what it asks for succeeds.

use std::collections::BTreeMap;

use crate::client::{Acl, acl, kind, mode, op, open_acl};
use crate::known::Other;
use crate::request::{Request, Since};
use crate::rng::Rng;
use crate::run::{Password, Step};

/// Below it is nearly everything, so that the counters of an episode start anew.
const ROOT: &str = "/t";
const QUOTA: &str = "/zookeeper/quota/t";
/// Requests of one episode.
const REQUESTS: usize = 2000;
const NAMES: [&str; 5] = ["a", "b", "c", "d", "é"];
/// Znodes on which 3.8, which knows one watch mode per path and connection, may have but this one.
const PERSISTENT: &str = "w";
const RECURSIVE: &str = "v";
/// What auth packets carry, and the ids that they stand for.
const SECRETS: [(&str, &str); 3] = [
    ("u:p", "u:Jq7wMyA/w2Vd5WIDAKdu4OIIFEQ="),
    ("bob:secret", "bob:fyVmFCwVbTJYrznoSu1koqYEYF0="),
    ("carl", "carl:3hh2QubHX2DRDynlLKtUzfZ2hw0="),
];
const STRANGE_PATHS: [&str; 32] = [
    "",
    "t",
    "t/b",
    "/t/",
    "//t",
    "/t//b",
    "/x//b",
    "/t/.",
    "/t/..",
    "/.",
    "/...",
    "/t/...",
    "/t/.x",
    "/t/x..",
    "/t/./a",
    "/t/\u{1}",
    "/t/\u{1f}",
    "/\u{7f}",
    "/t/\u{9f}",
    "/t/\u{a0}",
    "/t/\u{e000}",
    "/t/\u{f8ff}",
    "/t/\u{fff0}",
    "/t/\u{fffd}",
    "/t/\u{1f600}",
    "/t/a\0b",
    "/nope/./x",
    "/zookeeper",
    "/zookeeper/quota",
    "/zookeeper/config",
    "/zookeeper/x",
    "/",
];
const SYSTEM: &str = "/zookeeper";

/// What the generator believes of a znode.
#[derive(Clone, Debug, Default)]
struct Belief {
    version: i32,
    aversion: i32,
    creations: u32,
}

struct Generator {
    rng: Rng,
    other: Other,
    places: usize,
    names: u64,
    depth: u64,
    data_max: u64,
    pipeline_max: u64,
    /// In percent: requests that a decent client would not send, ACLs that are not open, reads
    /// that watch.
    strange: u64,
    acls: u64,
    watches: u64,
    quota: bool,
    tree: BTreeMap<String, Belief>,
    steps: Vec<Step>,
    requests: usize,
    xid: i32,
}

/// The stream of a seed. `other` decides what has to be left out, see [`crate::known`].
pub fn episode(seed: u64, other: Other) -> Vec<Step> {
    let mut rng = Rng::new(seed);
    let quota = rng.percent(30);
    let mut generator = Generator {
        other,
        places: rng.between(2, 5) as usize,
        names: rng.between(2, NAMES.len() as u64),
        depth: rng.between(1, 3),
        data_max: *rng.pick(&[0, 20, 20, 200, 3000]),
        pipeline_max: *rng.pick(&[4, 16, 64, 100]),
        strange: *rng.pick(&[0, 2, 6, 12]),
        acls: *rng.pick(&[0, 0, 10, 40]),
        watches: *rng.pick(&[0, 20, 40, 80]),
        quota,
        tree: BTreeMap::new(),
        steps: Vec::new(),
        requests: 0,
        xid: 1,
        rng,
    };
    generator.begin();
    while generator.requests < REQUESTS {
        generator.step();
    }
    generator.steps
}

impl Generator {
    fn begin(&mut self) {
        for who in 0..self.places {
            self.open(who);
            if self.rng.percent(60) {
                self.identify(who);
            }
        }
        let root = self.plain_create(ROOT);
        self.pipeline(0, vec![root]);
        self.believe_created(ROOT);
        if self.quota {
            let limits = self.limits();
            let parts = [
                (QUOTA.to_owned(), Vec::new()),
                (format!("{QUOTA}/zookeeper_limits"), limits),
                (
                    format!("{QUOTA}/zookeeper_stats"),
                    b"count=0,bytes=0".to_vec(),
                ),
            ];
            for (path, data) in parts {
                let request = Request::Create {
                    op: op::CREATE,
                    path: Some(path),
                    data: Some(data),
                    acl: Some(open_acl()),
                    flags: mode::PERSISTENT,
                    ttl: None,
                };
                self.pipeline(0, vec![request]);
            }
        }
    }

    fn step(&mut self) {
        let who = self.rng.below(self.places as u64) as usize;
        match self.rng.below(1000) {
            0..25 => {
                self.steps.push(Step::Drop { who });
                if self.rng.percent(50) {
                    // Life goes on without it for a while.
                    let others = (who + 1) % self.places;
                    self.pipeline_of(others);
                }
                self.renew(who);
            }
            25..35 => self.renew(who),
            35..43 => {
                let password = *self
                    .rng
                    .pick(&[Password::Wrong, Password::Short, Password::Null]);
                self.steps.push(Step::Renew {
                    who,
                    password,
                    timeout_ms: 700_000,
                });
                self.renew(who);
            }
            43..53 => {
                self.pipeline(
                    who,
                    vec![Request::Bare {
                        op: op::CLOSE_SESSION,
                    }],
                );
                if self.rng.percent(50) {
                    self.renew(who);
                }
                self.open(who);
                if self.rng.percent(60) {
                    self.identify(who);
                }
            }
            53..58 => {
                let bytes = self.no_frame();
                self.steps.push(Step::NoFrame { who, bytes });
                self.renew(who);
            }
            58..80 => {
                let ending = self.ending();
                let mut requests = match ending.overtakes() {
                    true => Vec::new(),
                    false => self.requests(who),
                };
                requests.push(ending);
                self.pipeline(who, requests);
                self.renew(who);
            }
            80..86 => {
                let request = self.failing_auth();
                self.pipeline(who, vec![request]);
                self.renew(who);
            }
            86..106 => self.identify(who),
            106..114 => {
                let token = self.rng.pick(&[&b""[..], b"token"]).to_vec();
                self.pipeline(who, vec![Request::Sasl { token: Some(token) }]);
            }
            114..118 => {
                let session = self.rng.next() as i64 | 1;
                let read_only = *self.rng.pick(&[None, Some(false), Some(true)]);
                self.steps.push(Step::Unknown { session, read_only });
            }
            118..200 => self.readers(),
            200 if self.rng.percent(30) => self.steps.push(Step::Future { who }),
            201..203 => {
                let path = self.path();
                self.steps.push(Step::LargestFrame {
                    who,
                    path: path.unwrap_or_default(),
                });
            }
            _ => self.pipeline_of(who),
        }
    }

    fn open(&mut self, who: usize) {
        let timeout_ms = *self.rng.pick(&[0, -5, 1, 600_001, 1_000_000, i32::MAX]);
        let read_only = *self.rng.pick(&[None, Some(false), Some(true)]);
        let password = *self.rng.pick(&[None, Some(0), Some(3), Some(16), Some(40)]);
        self.steps.push(Step::Open {
            who,
            timeout_ms,
            read_only,
            password,
        });
    }

    fn renew(&mut self, who: usize) {
        let timeout_ms = *self.rng.pick(&[0, 700_000, i32::MAX]);
        self.steps.push(Step::Renew {
            who,
            password: Password::Right,
            timeout_ms,
        });
        // Ids belong to the connection, so a client sends them again.
        if self.rng.percent(50) {
            self.identify(who);
        }
    }

    /// Gains an id; some become super users.
    fn identify(&mut self, who: usize) {
        let (scheme, data) = match self.rng.below(10) {
            0 => ("digest", "super:secret"),
            1 => ("ip", "anything"),
            _ => ("digest", self.rng.pick(&SECRETS).0),
        };
        let request = Request::Auth {
            scheme: Some(scheme.into()),
            data: Some(data.into()),
        };
        self.pipeline(who, vec![request]);
    }

    fn failing_auth(&mut self) -> Request {
        let (scheme, data) = *self.rng.pick(&[
            ("nobody", "x"),
            ("world", "anyone"),
            ("sasl", "x"),
            ("", ""),
            ("super", ""),
            ("auth", ""),
        ]);
        Request::Auth {
            scheme: Some(scheme.into()),
            data: Some(data.into()),
        }
    }

    fn no_frame(&mut self) -> Vec<u8> {
        let length: i32 = *self
            .rng
            .pick(&[-1, i32::MIN, 0, 1, 4, 7, 1_048_576, i32::MAX]);
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.resize(4 + length.clamp(0, 7) as usize, 0);
        bytes
    }

    /// A request that ends the connection.
    fn ending(&mut self) -> Request {
        match self.rng.below(4) {
            0 => Request::Path {
                op: op::DELETE_CONTAINER,
                // What 3.9 would delete without asking for rights parts the two trees.
                path: Some(
                    self.rng
                        .pick(&[SYSTEM, "/zookeeper/quota", "/"])
                        .to_string(),
                ),
            },
            1 if self.other != Other::V38 => {
                let (path, number) = (self.path(), self.version());
                Request::Numbered {
                    op: op::CHECK,
                    path,
                    number,
                }
            }
            _ => {
                let op = *self
                    .rng
                    .pick(&[op::NOTIFICATION, op::ERROR, 10, 23, 999, 108, -2, -12]);
                Request::Bare { op }
            }
        }
    }

    fn pipeline_of(&mut self, who: usize) {
        let requests = self.requests(who);
        self.pipeline(who, requests);
    }

    fn requests(&mut self, who: usize) -> Vec<Request> {
        let count = self.rng.between(1, self.pipeline_max);
        let mut requests: Vec<_> = (0..count).map(|_| self.request(who)).collect();
        // What ZooKeeper checks against what it has applied, and not against what is under way,
        // depends on its threads: quotas (spec §5.6), and ACLs that a setACL is about to change.
        let mut last_write = false;
        requests.retain(|request| {
            let stays = !request.is_write() || !last_write;
            last_write |= request.op() == op::SET_ACL || self.quota && request.is_write();
            stays
        });
        requests
    }

    fn readers(&mut self) {
        let mut parts = Vec::new();
        for who in 0..self.places {
            let count = self.rng.between(1, self.pipeline_max.min(8));
            let requests: Vec<_> = (0..count).map(|_| self.read(who)).collect();
            let requests = self.numbered(requests);
            parts.push((who, requests));
        }
        self.steps.push(Step::Together { parts });
    }

    fn pipeline(&mut self, who: usize, requests: Vec<Request>) {
        let requests = self.numbered(requests);
        self.steps.push(Step::Pipeline { who, requests });
    }

    /// Gives xids: usually the next number, sometimes any but that of notifications.
    fn numbered(&mut self, requests: Vec<Request>) -> Vec<(i32, Request)> {
        self.requests += requests.len();
        let mut xid = |request: &Request| {
            self.xid = self.xid % 1_000_000 + 1;
            match request.op() {
                op::PING => -2,
                op::AUTH => -4,
                _ if self.rng.permille(5) => {
                    *self.rng.pick(&[0, 1, -2, -4, -8, i32::MIN, i32::MAX])
                }
                _ => self.xid,
            }
        };
        let with_xid = requests.into_iter().map(|request| (xid(&request), request));
        with_xid.collect()
    }

    /// Any request that leaves the connection open.
    fn request(&mut self, who: usize) -> Request {
        let request = match self.rng.percent(50) {
            true => self.write(),
            false => self.read(who),
        };
        if !self.rng.percent(self.strange) {
            return request;
        }
        match self.rng.below(6) {
            0 | 1 if !matches!(request, Request::Bare { .. }) => Request::Cut {
                of: request.into(),
                kept: self.rng.below(1001),
            },
            2 => Request::Longer {
                of: request.into(),
                by: self.rng.between(1, 20) as usize,
            },
            3 => self.odd(),
            _ => request,
        }
    }

    fn write(&mut self) -> Request {
        if self.quota && self.rng.percent(15) {
            return self.quota_write();
        }
        match self.rng.below(100) {
            0..42 => self.create(false),
            42..60 => self.delete(),
            60..78 => self.set_data(),
            78..85 => self.set_acl(),
            85..99 => {
                let count = *self.rng.pick(&[0, 1, 2, 2, 3, 4, 5, 8]);
                let mut parts: Vec<_> = (0..count).map(|_| self.part()).collect();
                for part in parts.iter_mut().skip(1) {
                    part.without_end_of_multi(ROOT);
                }
                if self.quota {
                    // For the same reason as in a pipeline: a part does not see the one before.
                    let mut changes = 0;
                    parts.retain(|part| {
                        changes += usize::from(part.op() != op::CHECK);
                        part.op() == op::CHECK || changes == 1
                    });
                }
                Request::Multi {
                    op: op::MULTI,
                    parts,
                }
            }
            _ => Request::Reconfig {
                joining: None,
                leaving: (*self.rng.pick(&[None, Some("9")])).map(str::to_owned),
                members: (*self.rng.pick(&[None, Some("server.1=h:1:2;3"), Some("x")]))
                    .map(str::to_owned),
                version: *self.rng.pick(&[-1, 0, 77]),
            },
        }
    }

    fn plain_create(&mut self, path: &str) -> Request {
        Request::Create {
            op: op::CREATE,
            path: Some(path.into()),
            data: Some(vec![1]),
            acl: Some(open_acl()),
            flags: mode::PERSISTENT,
            ttl: None,
        }
    }

    fn create(&mut self, in_multi: bool) -> Request {
        let (mut opcode, mut flags) = (
            *self.rng.pick(&[op::CREATE, op::CREATE2]),
            *self.rng.pick(&[0, 0, 0, 0, 1, 1, 2, 3]),
        );
        let mut ttl = None;
        match self.rng.below(100) {
            0..8 => (opcode, flags) = (op::CREATE_CONTAINER, 4),
            8..16 => {
                (opcode, flags) = (op::CREATE_TTL, *self.rng.pick(&[5, 6]));
                ttl = Some(*self.rng.pick(&[1, 1000, (1 << 40) - 1]));
            }
            _ => {}
        }
        if self.rng.percent(self.strange) {
            flags = *self.rng.pick(&[0, 1, 2, 3, 4, 5, 6, 7, -1]);
            if opcode == op::CREATE_CONTAINER && matches!(flags, 1 | 3) {
                // Until it is applied ZooKeeper takes it for an ephemeral.
                flags = 0;
            }
            if opcode == op::CREATE_TTL {
                ttl = Some(*self.rng.pick(&[0, 1, -1, -9, 1 << 40, i64::MAX]));
                // 3.8 and 3.9 crash when they apply a TTL create without one (spec §3.6).
                if !(5..=6).contains(&flags) && ttl < Some(0) {
                    ttl = Some(0);
                }
            }
        }
        let path = self.path();
        if let Some(path) = &path {
            match flags {
                2 | 3 | 6 => {
                    let number = self.tree.get(parent(path)).map_or(0, |node| node.creations);
                    self.believe_created(&format!("{path}{number:010}"));
                }
                _ => self.believe_created(path),
            }
        }
        let mut acl = self.acl();
        if in_multi && ttl.is_some() && self.rng.percent(self.strange) {
            // Rare by itself, and a difference by itself: see Known::NullAclOfTtl.
            acl = None;
        }
        Request::Create {
            op: opcode,
            path,
            data: self.data(),
            acl,
            flags,
            ttl,
        }
    }

    fn delete(&mut self) -> Request {
        let path = self.leaf();
        let number = self.version_of(&path, |node| node.version);
        if let Some(path) = &path {
            let below = format!("{path}/");
            let next = self.tree.range(below.clone()..).next();
            if next.is_none_or(|(next, _)| !next.starts_with(&below)) && path != ROOT {
                self.tree.remove(path);
            }
        }
        Request::Numbered {
            op: op::DELETE,
            path,
            number,
        }
    }

    fn set_data(&mut self) -> Request {
        let path = self.path();
        let version = self.version_of(&path, |node| node.version);
        if let Some(node) = path.as_ref().and_then(|path| self.tree.get_mut(path)) {
            node.version += 1;
        }
        Request::SetData {
            path,
            data: self.data(),
            version,
        }
    }

    fn set_acl(&mut self) -> Request {
        let path = self.path();
        let version = self.version_of(&path, |node| node.aversion);
        let everyones = match path.as_deref() {
            Some(path) => path == ROOT || path == "/" || path.starts_with(SYSTEM),
            None => false,
        };
        // Nobody may lock the others out of where everything happens.
        let acl = match everyones {
            true => Some(open_acl()),
            false => self.acl(),
        };
        if let Some(node) = path.as_ref().and_then(|path| self.tree.get_mut(path)) {
            node.aversion += 1;
        }
        Request::SetAcl { path, acl, version }
    }

    fn part(&mut self) -> Request {
        match self.rng.below(100) {
            0..45 => self.create(true),
            45..60 => self.delete(),
            60..80 => self.set_data(),
            80..98 => {
                let path = self.path();
                let number = self.version_of(&path, |node| node.version);
                Request::Numbered {
                    op: op::CHECK,
                    path,
                    number,
                }
            }
            // What may not be in a multi.
            _ if self.rng.percent(self.strange * 3) => match self.rng.below(4) {
                0 => self.set_acl(),
                1 => self.watching(op::GET_DATA, 0),
                2 => self.watching(op::EXISTS, 0),
                _ => Request::Path {
                    op: op::GET_ACL,
                    path: self.path(),
                },
            },
            _ => self.set_data(),
        }
    }

    fn limits(&mut self) -> Vec<u8> {
        let limits = [
            "count=3,bytes=10",
            "count=-1,bytes=-1",
            "count=-1,bytes=-1=;byteHardLimit=60;countHardLimit=6",
            "count=-1,bytes=-1=;byteHardLimit=9;countHardLimit=3",
            "count=2,bytes=20=;byteHardLimit=-1;countHardLimit=4",
            "count=2,bytes=20=;byteHardLimit=30;countHardLimit=-1",
        ];
        self.rng.pick::<&str>(&limits).as_bytes().to_vec()
    }

    fn quota_write(&mut self) -> Request {
        let limits = format!("{QUOTA}/zookeeper_limits");
        let stats = format!("{QUOTA}/zookeeper_stats");
        let path = match self.rng.below(10) {
            0..6 => limits.clone(),
            6..9 => stats,
            _ => QUOTA.into(),
        };
        let data = match path == limits {
            true => self.limits(),
            false => b"count=0,bytes=0".to_vec(),
        };
        match self.rng.below(4) {
            0 => Request::Numbered {
                op: op::DELETE,
                path: Some(path),
                number: -1,
            },
            1 if path == limits => Request::SetData {
                path: Some(path),
                data: Some(data),
                version: -1,
            },
            _ => Request::Create {
                op: *self.rng.pick(&[op::CREATE, op::CREATE2]),
                path: Some(path),
                data: Some(data),
                acl: Some(open_acl()),
                flags: mode::PERSISTENT,
                ttl: None,
            },
        }
    }

    fn read(&mut self, who: usize) -> Request {
        if self.quota && self.rng.percent(10) {
            let path = Some(format!("{QUOTA}/zookeeper_stats"));
            let op = op::GET_DATA;
            return Request::Read { op, path, watch: 0 };
        }
        match self.rng.below(200) {
            0..30 => self.watching(op::EXISTS, self.watches),
            30..75 => self.watching(op::GET_DATA, self.watches),
            75..100 => self.watching(op::GET_CHILDREN, self.watches),
            100..125 => self.watching(op::GET_CHILDREN2, self.watches),
            125..137 => Request::Path {
                op: op::GET_ACL,
                path: self.path(),
            },
            137..142 => Request::Path {
                op: op::SYNC,
                path: self.path(),
            },
            142..149 => {
                let prefixes = [
                    None,
                    Some(""),
                    Some(" "),
                    Some("/"),
                    Some("/t"),
                    Some("/t/a/"),
                ];
                let prefix = (*self.rng.pick(&prefixes)).map(str::to_owned);
                let path = match self.rng.percent(50) {
                    true => self.path(),
                    false => prefix,
                };
                Request::Path {
                    op: op::GET_EPHEMERALS,
                    path,
                }
            }
            149..156 => Request::Path {
                op: op::GET_ALL_CHILDREN_NUMBER,
                path: self.path(),
            },
            156..167 => {
                let count = self.rng.below(6);
                let parts = (0..count).map(|_| self.part_read()).collect();
                Request::Multi {
                    op: op::MULTI_READ,
                    parts,
                }
            }
            167..170 => Request::Bare { op: op::WHO_AM_I },
            170..174 => Request::Bare { op: op::PING },
            174..184 if self.watches > 0 => self.add_watch(),
            184..187 => self.watch_type(op::CHECK_WATCHES),
            187..194 => self.watch_type(op::REMOVE_WATCHES),
            194..200 if self.watches > 0 => self.set_watches(who),
            _ => self.watching(op::GET_DATA, self.watches),
        }
    }

    /// A read of one path, which watches in some percent of cases.
    fn watching(&mut self, op: i32, percent: u64) -> Request {
        let path = self.path();
        let mut watches = self.rng.percent(percent);
        if self.other == Other::V38 {
            // 3.8 knows one mode per path, and registers an exists that may not read.
            watches &= !has_other_mode(path.as_deref()) && (op != op::EXISTS || self.acls == 0);
        }
        let watch = match watches {
            true => *self.rng.pick(&[1, 1, 1, 2, 255]),
            false => 0,
        };
        Request::Read { op, path, watch }
    }

    fn part_read(&mut self) -> Request {
        let strange = self.rng.percent(self.strange) && self.rng.percent(20);
        let op = match self.rng.below(10) {
            0 if strange => op::EXISTS,
            1 if strange => return self.delete(),
            2..6 => op::GET_CHILDREN,
            _ => op::GET_DATA,
        };
        let watch = self.rng.below(2) as u8;
        let path = self.path();
        Request::Read { op, path, watch }
    }

    fn add_watch(&mut self) -> Request {
        if self.other == Other::V38 {
            let (name, number) = *self.rng.pick(&[(PERSISTENT, 0), (RECURSIVE, 1)]);
            let mut path = self.existing();
            if path.ends_with(&format!("/{PERSISTENT}")) || path.ends_with(&format!("/{RECURSIVE}"))
            {
                path = ROOT.into();
            }
            let path = Some(format!("{path}/{name}"));
            let number = if self.rng.percent(self.strange) {
                2
            } else {
                number
            };
            return Request::Numbered {
                op: op::ADD_WATCH,
                path,
                number,
            };
        }
        let number = match self.rng.percent(self.strange) {
            true => *self.rng.pick(&[-1, 2, 7]),
            false => self.rng.below(2) as i32,
        };
        Request::Numbered {
            op: op::ADD_WATCH,
            path: self.path(),
            number,
        }
    }

    fn watch_type(&mut self, op: i32) -> Request {
        let path = self.path();
        let mut number = match self.rng.percent(self.strange) {
            true => *self.rng.pick(&[-1, 0, 6, 7]),
            false => self.rng.between(1, 5) as i32,
        };
        if self.other == Other::V38 && has_other_mode(path.as_deref()) && (1..=5).contains(&number)
        {
            number = kind::ANY;
        }
        Request::Numbered { op, path, number }
    }

    /// Watches as a client would set them again that lost its connection.
    fn set_watches(&mut self, _who: usize) -> Request {
        let op = *self.rng.pick(&[op::SET_WATCHES, op::SET_WATCHES2]);
        let lists = if op == op::SET_WATCHES { 3 } else { 5 };
        let null = self.rng.percent(self.strange) && self.rng.percent(20);
        let mut lists: Vec<_> = (0..lists)
            .map(|place| {
                let count = self.rng.below(4);
                let paths = (0..count).map(|_| self.existing_or_not());
                let mut paths: Vec<String> = paths.collect();
                if self.other == Other::V38 {
                    let fits = |path: &String| match place {
                        3 => path.ends_with(&format!("/{PERSISTENT}")),
                        4 => path.ends_with(&format!("/{RECURSIVE}")),
                        _ => !has_other_mode(Some(path)),
                    };
                    paths.retain(fits);
                }
                Some(paths)
            })
            .collect();
        if null {
            let place = self.rng.below(lists.len() as u64) as usize;
            // ZooKeeper acts on what stands before the null, and fails then.
            lists[..place].fill(Some(Vec::new()));
            lists[place] = None;
        }
        let since = match self.rng.below(8) {
            0..2 => Since::Zero,
            2 => Since::Future,
            _ => Since::Back(self.rng.below(60) as i64),
        };
        Request::SetWatches { op, since, lists }
    }

    /// A record that no serialiser writes.
    fn odd(&mut self) -> Request {
        let length: i32 = *self.rng.pick(&[-2, i32::MIN, 3_000_000, i32::MAX]);
        let text = |bytes: &[u8]| {
            let mut text = (bytes.len() as i32).to_be_bytes().to_vec();
            text.extend(bytes);
            text
        };
        match self.rng.below(4) {
            // A string of an impossible length.
            0 | 1 => {
                let mut body = length.to_be_bytes().to_vec();
                body.extend(b"/t\0");
                let op = *self.rng.pick(&[
                    op::EXISTS,
                    op::GET_DATA,
                    op::GET_CHILDREN,
                    op::GET_ACL,
                    op::DELETE,
                    op::CREATE,
                    op::SYNC,
                    op::MULTI,
                    op::SET_DATA,
                ]);
                Request::Odd { op, body }
            }
            // A path that is not UTF-8.
            2 => {
                let mut body = text(b"/t/\xff\xfe");
                let op = *self
                    .rng
                    .pick(&[op::EXISTS, op::GET_DATA, op::DELETE, op::CREATE]);
                match op {
                    op::DELETE => body.extend((-1i32).to_be_bytes()),
                    op::CREATE => {
                        body.extend(text(b"x"));
                        body.extend(1i32.to_be_bytes());
                        body.extend(31i32.to_be_bytes());
                        body.extend(text(b"world"));
                        body.extend(text(b"anyone"));
                        body.extend(0i32.to_be_bytes());
                    }
                    _ => body.push(0),
                }
                Request::Odd { op, body }
            }
            // A list of a negative length.
            _ => {
                let mut body = text(b"/t/odd");
                body.extend(text(b"x"));
                body.extend((-2i32).to_be_bytes());
                body.extend(0i32.to_be_bytes());
                Request::Odd {
                    op: op::CREATE,
                    body,
                }
            }
        }
    }

    /// A path that may be anything, null included.
    fn path(&mut self) -> Option<String> {
        if self.rng.percent(self.strange) && self.rng.percent(60) {
            return match self.rng.below(10) {
                0 => None,
                _ => Some(self.rng.pick::<&str>(&STRANGE_PATHS).to_string()),
            };
        }
        Some(self.existing_or_not())
    }

    /// A path that is likely to have nothing below.
    fn leaf(&mut self) -> Option<String> {
        let path = self.path()?;
        let below = format!("{path}/");
        let next = self.tree.range(below.clone()..).next();
        match next {
            Some((next, _)) if next.starts_with(&below) && self.rng.percent(70) => {
                Some(next.clone())
            }
            _ => Some(path),
        }
    }

    fn existing(&mut self) -> String {
        let count = self.tree.len() as u64;
        let place = self.rng.below(count.max(1)) as usize;
        let found = self.tree.keys().nth(place);
        found.cloned().unwrap_or_else(|| ROOT.into())
    }

    fn existing_or_not(&mut self) -> String {
        if self.rng.percent(65) {
            return self.existing();
        }
        let mut path = match self.rng.below(20) {
            0 => String::new(),
            1..5 => self.existing(),
            _ => ROOT.into(),
        };
        let parts = self.rng.between(1, self.depth);
        for _ in 0..parts {
            path.push('/');
            let name = match self.rng.below(12) {
                0 => PERSISTENT,
                1 => RECURSIVE,
                _ => NAMES[self.rng.below(self.names) as usize],
            };
            path.push_str(name);
        }
        path
    }

    fn believe_created(&mut self, path: &str) {
        let parent = parent(path).to_owned();
        if path == ROOT || self.tree.contains_key(&parent) {
            if self.tree.contains_key(path) {
                return;
            }
            self.tree.insert(path.into(), Belief::default());
            if let Some(node) = self.tree.get_mut(&parent) {
                node.creations += 1;
            }
        }
    }

    /// Usually any version or the right one.
    fn version_of(&mut self, path: &Option<String>, field: fn(&Belief) -> i32) -> i32 {
        let node = path.as_ref().and_then(|path| self.tree.get(path));
        match (node, self.rng.below(10)) {
            (Some(node), 0..4) => field(node),
            (_, 4..9) => -1,
            _ => self.version(),
        }
    }

    fn version(&mut self) -> i32 {
        *self.rng.pick(&[-1, 0, 0, 1, 2, -2, i32::MAX, i32::MIN])
    }

    fn data(&mut self) -> Option<Vec<u8>> {
        if self.rng.percent(10) {
            return None;
        }
        let length = self.rng.between(0, self.data_max) as usize;
        let byte = self.rng.next() as u8;
        Some(vec![byte; length])
    }

    fn acl(&mut self) -> Option<Vec<Acl>> {
        if self.rng.percent(self.strange) && self.rng.percent(50) {
            return match self.rng.below(8) {
                0 | 1 => None,
                2 => Some(Vec::new()),
                _ => {
                    let (scheme, id) = *self.rng.pick(&[
                        ("world", "x"),
                        ("world", ""),
                        ("digest", "nocolon"),
                        ("digest", "user:"),
                        ("digest", ":x"),
                        ("digest", "a:b"),
                        ("digest", "a:b:c"),
                        ("digest", "a:b::"),
                        ("ip", "1.2.3"),
                        ("ip", "127.0.0.0/33"),
                        ("ip", "127.0.0.0/-1"),
                        ("ip", "127.0.0.0/8"),
                        ("ip", "127.0.0.0/"),
                        ("ip", "127.0.0.256"),
                        ("ip", ""),
                        ("super", ""),
                        ("sasl", "a"),
                        ("x509", "CN=a"),
                        ("", ""),
                    ]);
                    let odd = acl(31, scheme, id);
                    Some(match self.rng.percent(50) {
                        true => vec![odd],
                        false => vec![acl(31, "world", "anyone"), odd],
                    })
                }
            };
        }
        if !self.rng.percent(self.acls) {
            return Some(open_acl());
        }
        let count = self.rng.between(1, 3);
        let one = |rng: &mut Rng| {
            let (scheme, id) = match rng.below(6) {
                0 => ("auth", ""),
                1 | 2 => ("digest", rng.pick(&SECRETS).1),
                3 => {
                    let places = ["127.0.0.0/8", "127.0.0.1", "10.0.0.0/8", "0.0.0.0/0"];
                    ("ip", *rng.pick(&places))
                }
                _ => ("world", "anyone"),
            };
            acl(
                *rng.pick(&[31, 31, 1, 2, 4, 5, 8, 15, 16, 30, 0, 64]),
                scheme,
                id,
            )
        };
        Some((0..count).map(|_| one(&mut self.rng)).collect())
    }
}

/// Whether 3.8 must not get a standard watch here.
fn has_other_mode(path: Option<&str>) -> bool {
    let name = path.and_then(|path| path.rsplit('/').next());
    matches!(name, Some(PERSISTENT | RECURSIVE))
}

fn parent(path: &str) -> &str {
    match path.rfind('/') {
        None | Some(0) => "/",
        Some(at) => &path[..at],
    }
}

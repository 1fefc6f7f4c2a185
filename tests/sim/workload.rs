//! What clients are there for: recipes on top of the protocol (architecture §2.7).

use std::collections::BTreeMap;

use bytes::Bytes;
use zkraft::wire::request::{Create, Reconfig, SubRequest};
use zkraft::wire::{Acl, Answer, ErrorCode, Request, SessionId, SubAnswer, Text, Zxid, op};

use crate::mix::Mix;
use crate::reply::Event;
use crate::rng::Rng;
use crate::world::line;

/// What a workload may know of its client.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub client: usize,
    pub now_us: u64,
    pub session: SessionId,
    pub last_zxid: Zxid,
    /// Nobody must change the membership now.
    pub holds_still: bool,
}

/// What the recipe of a client can vouch for.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    /// It holds the lock as long as its session lives.
    Locked,
    /// It took this element out of the queue.
    Took(Text),
    /// It put this element into the queue.
    Put(Text),
    /// Its increments: confirmed, and those of unknown fate.
    Counted { confirmed: u64, unknown: u64 },
    /// It saw this sum of all accounts.
    Sum { seen: i64, expected: i64 },
}

type Result<'a> = &'a std::result::Result<Answer, ErrorCode>;

pub trait Workload {
    /// What to ask for now; nothing, to wait.
    fn next(&mut self, rng: &mut Rng, view: &View) -> Vec<Request>;
    fn reply(&mut self, _request: &Request, _result: Result<'_>, _view: &View, _rng: &mut Rng) {}
    fn event(&mut self, _event: &Event) {}
    /// A connection is up; `new` says whether the session is.
    fn connected(&mut self, _new: bool) {}
    /// The connection broke before these were answered.
    fn lost(&mut self, _unanswered: &[Request]) {}
    fn session_over(&mut self) {}
    /// Hands over what became certain since the last call.
    fn claims(&mut self) -> Vec<Claim> {
        Vec::new()
    }
    /// Whether it believes that it holds the lock, if its session lives.
    fn holds_lock(&self) -> bool {
        false
    }
}

/// Anything, in any order, in pipelines.
pub struct Anything {
    mix: Mix,
    /// Reads in a hundred requests.
    reads: u64,
    burst: u64,
}

impl Anything {
    pub fn new(rng: &mut Rng) -> Self {
        let root = *rng.pick(&["", "", "/m"]);
        let mix = Mix::new(rng, root);
        Self {
            mix,
            reads: *rng.pick(&[20, 50, 80]),
            burst: *rng.pick(&[1, 3, 10, 40]),
        }
    }
}

impl Workload for Anything {
    fn next(&mut self, rng: &mut Rng, view: &View) -> Vec<Request> {
        if rng.permille(20) {
            return vec![self.mix.set_watches(rng, view.last_zxid)];
        }
        (0..rng.between(1, self.burst))
            .map(|_| self.mix.request(rng, self.reads))
            .collect()
    }

    fn reply(&mut self, _: &Request, result: Result<'_>, _: &View, rng: &mut Rng) {
        match result {
            Ok(Answer::Path(path) | Answer::PathStat(path, _)) => self.mix.saw(path, rng),
            Ok(Answer::Multi(answers)) => {
                for answer in answers {
                    if let SubAnswer::Create(path) | SubAnswer::Create2(path, _) = answer {
                        self.mix.saw(path, rng);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Does nothing: its client only pings.
pub struct Idle;

impl Workload for Idle {
    fn next(&mut self, _: &mut Rng, _: &View) -> Vec<Request> {
        Vec::new()
    }
}

/// Asks for the newest state again and again, and writes right behind that.
#[derive(Default)]
pub struct Syncer {
    busy: usize,
}

impl Workload for Syncer {
    fn next(&mut self, rng: &mut Rng, _: &View) -> Vec<Request> {
        if self.busy > 0 {
            return Vec::new();
        }
        let path = Some("/".into());
        let look = Request::GetChildren {
            path: "/".into(),
            watch: false,
            with_stat: true,
        };
        let mut requests = vec![Request::Sync { path }, look];
        if rng.percent(30) {
            requests.push(create("/synced", 0, b""));
            let (path, data) = ("/synced".into(), Some(Bytes::new()));
            let version = -1;
            requests.push(Request::SetData {
                path,
                data,
                version,
            });
        }
        self.busy = requests.len();
        requests
    }

    fn reply(&mut self, _: &Request, _: Result<'_>, _: &View, _: &mut Rng) {
        self.busy = self.busy.saturating_sub(1);
    }

    fn lost(&mut self, _: &[Request]) {
        self.busy = 0;
    }
}

/// Changes who the servers are, and looks who they are.
pub struct Operator {
    /// They are numbered from 1 on.
    servers: u64,
    pause_us: u64,
    next_us: u64,
    busy: usize,
    /// Numbers, and whether they observe, as last seen.
    seen: Option<(BTreeMap<u64, bool>, Zxid)>,
}

const CONFIG: &str = "/zookeeper/config";

impl Operator {
    pub fn new(servers: u64, pause_us: u64) -> Self {
        Self {
            servers,
            pause_us,
            next_us: 0,
            busy: 0,
            seen: None,
        }
    }

    fn look(watch: bool) -> Request {
        let path = CONFIG.into();
        Request::GetData { path, watch }
    }

    /// As a joining server must have it: with a port for clients.
    fn joining(id: u64, observer: bool) -> String {
        format!("{};2181", line(id, observer))
    }

    fn reconfig(&self, rng: &mut Rng, seen: &BTreeMap<u64, bool>, version: Zxid) -> Reconfig {
        let (mut joining, mut leaving, mut members) = (None, None, None);
        let present: Vec<u64> = seen.keys().copied().collect();
        let absent: Vec<u64> = (1..=self.servers)
            .filter(|id| !seen.contains_key(id))
            .collect();
        let observes = rng.percent(20);
        let voters = seen.values().filter(|observer| !**observer).count();
        match rng.below(10) {
            0..4 if !absent.is_empty() => {
                joining = Some(Self::joining(*rng.pick(&absent), observes));
                if rng.percent(30) && voters > 1 {
                    leaving = Some(rng.pick(&present).to_string());
                }
            }
            4 | 5 if voters > 1 => leaving = Some(rng.pick(&present).to_string()),
            6 | 7 => {
                let id = *rng.pick(&present);
                joining = Some(Self::joining(id, !seen[&id]));
            }
            8 => {
                let all = (1..=self.servers)
                    .filter(|_| rng.percent(60))
                    .collect::<Vec<_>>();
                let lines = all.into_iter().map(|id| line(id, rng.percent(15)));
                members = Some(lines.collect::<Vec<_>>().join("\n"));
            }
            _ => {
                // Back to as many voters as there can be.
                let lines = (1..=self.servers).map(|id| line(id, false));
                members = Some(lines.collect::<Vec<_>>().join(","));
            }
        }
        Reconfig {
            joining: joining.map(Text::from),
            leaving: leaving.map(Text::from),
            members: members.map(Text::from),
            version: *rng.pick(&[-1, -1, version.0, version.0 - 1]),
        }
    }
}

impl Workload for Operator {
    fn next(&mut self, rng: &mut Rng, view: &View) -> Vec<Request> {
        if self.busy > 0 || view.now_us < self.next_us {
            return Vec::new();
        }
        self.next_us = view.now_us + rng.between(0, 2 * self.pause_us);
        let requests = match &self.seen {
            Some((seen, version)) if !view.holds_still && rng.percent(80) => {
                let change = self.reconfig(rng, seen, *version);
                vec![Request::Reconfig(change), Self::look(rng.percent(50))]
            }
            _ => vec![Self::look(true)],
        };
        self.busy = requests.len();
        requests
    }

    fn reply(&mut self, _: &Request, result: Result<'_>, _: &View, _: &mut Rng) {
        self.busy = self.busy.saturating_sub(1);
        if let Ok(Answer::Data(Some(data), stat)) = result {
            let text = String::from_utf8_lossy(data);
            let servers = text.lines().filter_map(|line| {
                let (id, line) = line.strip_prefix("server.")?.split_once('=')?;
                let observer = line.split(';').next()?.ends_with("observer");
                Some((id.parse().ok()?, observer))
            });
            let servers: BTreeMap<u64, bool> = servers.collect();
            self.seen = (!servers.is_empty()).then_some((servers, stat.mzxid));
        }
    }

    fn lost(&mut self, _: &[Request]) {
        self.busy = 0;
    }
}

/// A lock without herd: ephemeral sequential znodes, each watching the one before.
#[derive(Default)]
pub struct Lock {
    step: LockStep,
    made_root: bool,
    claims: Vec<Claim>,
}

#[derive(Clone, Debug, Default, PartialEq)]
enum LockStep {
    #[default]
    /// Nothing is known: look for an own znode first.
    Lost,
    Waiting(LockWait),
    /// The own znode exists.
    Queued(Text),
    /// The znode before the own one is watched.
    Watching(Text),
    Held {
        own: Text,
        until_us: u64,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum LockWait {
    Create,
    Children { own: Option<Text> },
    Exists { own: Text },
    Delete,
}

impl Lock {
    fn prefix(view: &View) -> String {
        // The session is part of the name, so that one of an earlier session is not taken for it.
        format!("{:x}-{}-", view.session.0, view.client)
    }

    fn look(&mut self, own: Option<Text>) -> Vec<Request> {
        self.step = LockStep::Waiting(LockWait::Children { own });
        vec![Request::GetChildren {
            path: "/lock".into(),
            watch: false,
            with_stat: false,
        }]
    }

    fn queue(&mut self, children: &[Text], own: Option<Text>, view: &View, rng: &mut Rng) {
        let number = |name: &Text| name[name.len().saturating_sub(10)..].to_string();
        let mut children = children.to_vec();
        children.sort_by_key(number);
        let prefix = Self::prefix(view);
        let place = children.iter().position(|name| name.starts_with(&prefix));
        self.step = match (place, own) {
            (Some(0), _) => {
                self.claims.push(Claim::Locked);
                let own = format!("/lock/{}", children[0]).into();
                LockStep::Held {
                    own,
                    until_us: view.now_us + rng.between(0, 2_000_000),
                }
            }
            (Some(place), _) => LockStep::Queued(format!("/lock/{}", children[place - 1]).into()),
            (None, _) => LockStep::Waiting(LockWait::Create),
        };
    }
}

impl Workload for Lock {
    fn next(&mut self, rng: &mut Rng, view: &View) -> Vec<Request> {
        if !self.made_root {
            self.made_root = true;
            return vec![create("/lock", 0, b"")];
        }
        match self.step.clone() {
            LockStep::Lost => self.look(None),
            LockStep::Queued(before) => {
                self.step = LockStep::Waiting(LockWait::Exists {
                    own: before.clone(),
                });
                vec![Request::Exists {
                    path: before,
                    watch: true,
                }]
            }
            // An event may have gone to a connection that is no more: look from time to time.
            LockStep::Watching(_) if rng.permille(20) => self.look(None),
            LockStep::Held { own, until_us } if view.now_us >= until_us => {
                self.step = LockStep::Waiting(LockWait::Delete);
                vec![Request::Delete {
                    path: own,
                    version: -1,
                }]
            }
            LockStep::Waiting(LockWait::Create) => {
                self.step = LockStep::Waiting(LockWait::Children { own: None });
                let prefix = format!("/lock/{}", Self::prefix(view));
                let children = Request::GetChildren {
                    path: "/lock".into(),
                    watch: false,
                    with_stat: false,
                };
                vec![create(&prefix, 3, b""), children]
            }
            LockStep::Waiting(_) | LockStep::Watching(_) | LockStep::Held { .. } => Vec::new(),
        }
    }

    fn reply(&mut self, request: &Request, result: Result<'_>, view: &View, rng: &mut Rng) {
        let LockStep::Waiting(wait) = self.step.clone() else {
            return;
        };
        match (wait, request, result) {
            (LockWait::Children { own }, Request::GetChildren { .. }, Ok(Answer::Children(c))) => {
                self.queue(c, own, view, rng);
            }
            (LockWait::Children { .. }, Request::GetChildren { .. }, Err(_)) => {
                self.made_root = false;
                self.step = LockStep::Lost;
            }
            (LockWait::Exists { own }, Request::Exists { .. }, Ok(_)) => {
                self.step = LockStep::Watching(own);
            }
            (LockWait::Exists { .. }, Request::Exists { .. }, Err(_))
            | (LockWait::Delete, Request::Delete { .. }, _) => self.step = LockStep::Lost,
            _ => {}
        }
    }

    fn event(&mut self, event: &Event) {
        if matches!(&self.step, LockStep::Watching(path) if *path == event.path.as_str()) {
            self.step = LockStep::Lost;
        }
    }

    fn lost(&mut self, _: &[Request]) {
        // The lock itself is the session's: whoever holds it keeps it.
        if !matches!(self.step, LockStep::Held { .. }) {
            self.step = LockStep::Lost;
        }
    }

    fn session_over(&mut self) {
        self.step = LockStep::Lost;
    }

    fn claims(&mut self) -> Vec<Claim> {
        std::mem::take(&mut self.claims)
    }

    fn holds_lock(&self) -> bool {
        matches!(self.step, LockStep::Held { .. })
    }
}

/// A queue of sequential znodes: some put, some take.
#[derive(Default)]
pub struct Queue {
    busy: bool,
    made_root: bool,
    next: Option<Text>,
    claims: Vec<Claim>,
}

impl Workload for Queue {
    fn next(&mut self, rng: &mut Rng, view: &View) -> Vec<Request> {
        if !self.made_root {
            self.made_root = true;
            return vec![create("/queue", 0, b"")];
        }
        if self.busy {
            return Vec::new();
        }
        self.busy = true;
        if let Some(path) = self.next.take() {
            return vec![Request::Delete { path, version: -1 }];
        }
        if rng.percent(50) {
            let element = format!("{}", view.now_us);
            return vec![create("/queue/q-", 2, element.as_bytes())];
        }
        vec![Request::GetChildren {
            path: "/queue".into(),
            watch: true,
            with_stat: true,
        }]
    }

    fn reply(&mut self, request: &Request, result: Result<'_>, _: &View, _: &mut Rng) {
        self.busy = false;
        match (request, result) {
            (Request::Create(create), Ok(Answer::Path(path))) if create.flags == 2 => {
                self.claims.push(Claim::Put(path.clone()));
            }
            (Request::Delete { path, .. }, Ok(_)) => self.claims.push(Claim::Took(path.clone())),
            (Request::GetChildren { .. }, Ok(Answer::ChildrenStat(names, _))) => {
                self.next = names
                    .iter()
                    .min()
                    .map(|name| format!("/queue/{name}").into());
            }
            _ => {}
        }
    }

    fn lost(&mut self, _: &[Request]) {
        self.busy = false;
        self.next = None;
    }

    fn claims(&mut self) -> Vec<Claim> {
        std::mem::take(&mut self.claims)
    }
}

/// Counts with compare and set.
#[derive(Default)]
pub struct Counter {
    busy: bool,
    made: bool,
    seen: Option<(u64, i32)>,
    confirmed: u64,
    unknown: u64,
}

impl Workload for Counter {
    fn next(&mut self, _: &mut Rng, _: &View) -> Vec<Request> {
        if self.busy {
            return Vec::new();
        }
        self.busy = true;
        if !self.made {
            self.made = true;
            return vec![create("/counter", 0, b"0")];
        }
        match self.seen.take() {
            None => vec![Request::GetData {
                path: "/counter".into(),
                watch: false,
            }],
            Some((value, version)) => {
                let data = Some(Bytes::from(format!("{}", value + 1)));
                vec![Request::SetData {
                    path: "/counter".into(),
                    data,
                    version,
                }]
            }
        }
    }

    fn reply(&mut self, request: &Request, result: Result<'_>, _: &View, _: &mut Rng) {
        self.busy = false;
        match (request, result) {
            (Request::GetData { .. }, Ok(Answer::Data(data, stat))) => {
                self.seen = number(data.as_ref()).map(|value| (value as u64, stat.version));
            }
            (Request::SetData { .. }, Ok(_)) => self.confirmed += 1,
            _ => {}
        }
    }

    fn lost(&mut self, unanswered: &[Request]) {
        let sets = unanswered
            .iter()
            .filter(|r| matches!(r, Request::SetData { .. }))
            .count();
        self.unknown += sets as u64;
        self.busy = false;
        self.seen = None;
    }

    fn claims(&mut self) -> Vec<Claim> {
        vec![Claim::Counted {
            confirmed: self.confirmed,
            unknown: self.unknown,
        }]
    }
}

/// Moves money between accounts, in multis; the sum stays.
pub struct Bank {
    accounts: usize,
    busy: bool,
    made: bool,
    seen: Option<Vec<(i64, i32)>>,
    claims: Vec<Claim>,
}

impl Bank {
    pub const ACCOUNTS: usize = 5;
    const START: i64 = 100;
    pub const SUM: i64 = Self::ACCOUNTS as i64 * Self::START;

    pub fn new() -> Self {
        Self {
            accounts: Self::ACCOUNTS,
            busy: false,
            made: false,
            seen: None,
            claims: Vec::new(),
        }
    }

    pub fn path(account: usize) -> String {
        format!("/bank-{account}")
    }

    fn set(account: usize, amount: i64, version: i32) -> SubRequest {
        let data = Some(Bytes::from(format!("{amount}")));
        SubRequest::SetData {
            path: Self::path(account).into(),
            data,
            version,
        }
    }
}

impl Workload for Bank {
    fn next(&mut self, rng: &mut Rng, _: &View) -> Vec<Request> {
        if self.busy {
            return Vec::new();
        }
        self.busy = true;
        if !self.made {
            self.made = true;
            let start = format!("{}", Self::START);
            let open = |account| {
                let Request::Create(create) = create(&Self::path(account), 0, start.as_bytes())
                else {
                    unreachable!("a create is a create")
                };
                SubRequest::Create(create)
            };
            return vec![Request::Multi((0..self.accounts).map(open).collect())];
        }
        let Some(seen) = self.seen.take() else {
            let get = |account| SubRequest::GetData {
                path: Self::path(account).into(),
            };
            return vec![Request::MultiRead((0..self.accounts).map(get).collect())];
        };
        let from = rng.below(self.accounts as u64) as usize;
        let to = (from + 1 + rng.below(self.accounts as u64 - 1) as usize) % self.accounts;
        let amount = rng.between(1, 20) as i64;
        let guard = rng.below(self.accounts as u64) as usize;
        let mut operations = vec![
            Self::set(from, seen[from].0 - amount, seen[from].1),
            Self::set(to, seen[to].0 + amount, seen[to].1),
        ];
        if guard != from && guard != to {
            let path = Self::path(guard).into();
            operations.push(SubRequest::Check {
                path,
                version: seen[guard].1,
            });
        }
        vec![Request::Multi(operations)]
    }

    fn reply(&mut self, request: &Request, result: Result<'_>, _: &View, _: &mut Rng) {
        self.busy = false;
        let (Request::MultiRead(_), Ok(Answer::Multi(answers))) = (request, result) else {
            return;
        };
        let accounts: Option<Vec<_>> = answers
            .iter()
            .map(|answer| match answer {
                SubAnswer::GetData(data, stat) => Some((number(data.as_ref())?, stat.version)),
                _ => None,
            })
            .collect();
        if let Some(accounts) = &accounts {
            let seen = accounts.iter().map(|(amount, _)| amount).sum();
            self.claims.push(Claim::Sum {
                seen,
                expected: Self::SUM,
            });
        }
        self.seen = accounts;
    }

    fn lost(&mut self, _: &[Request]) {
        self.busy = false;
        self.seen = None;
    }

    fn claims(&mut self) -> Vec<Claim> {
        std::mem::take(&mut self.claims)
    }
}

/// Owns ephemerals, and watches those of others.
#[derive(Default)]
pub struct Holder {
    made_root: bool,
    own: Vec<Text>,
    /// Names it made, so that none comes twice.
    count: u64,
}

impl Workload for Holder {
    fn next(&mut self, rng: &mut Rng, view: &View) -> Vec<Request> {
        if !self.made_root {
            self.made_root = true;
            let watch = Request::AddWatch {
                path: "/live".into(),
                mode: 1,
            };
            return vec![create("/live", 0, b""), watch];
        }
        match rng.below(10) {
            0..3 if self.own.len() < 5 => {
                self.count += 1;
                vec![create(
                    &format!("/live/{}-{}", view.client, self.count),
                    1,
                    b"here",
                )]
            }
            3 if self.own.len() < 5 => vec![create(&format!("/live/s{}-", view.client), 3, b"")],
            4 if !self.own.is_empty() => {
                let at = rng.below(self.own.len() as u64) as usize;
                vec![Request::Delete {
                    path: self.own.swap_remove(at),
                    version: -1,
                }]
            }
            5 => vec![Request::GetChildren {
                path: "/live".into(),
                watch: true,
                with_stat: true,
            }],
            6 => vec![Request::GetEphemerals {
                prefix: Some("/live".into()),
            }],
            7 if !self.own.is_empty() => {
                vec![Request::GetData {
                    path: rng.pick(&self.own).clone(),
                    watch: true,
                }]
            }
            _ => Vec::new(),
        }
    }

    fn reply(&mut self, request: &Request, result: Result<'_>, _: &View, _: &mut Rng) {
        if let (Request::Create(create), Ok(Answer::Path(path))) = (request, result)
            && create.flags != 0
        {
            self.own.push(path.clone());
        }
    }

    fn session_over(&mut self) {
        self.own.clear();
    }
}

/// Quotas on a directory of its own, and work that meets them (§5.6).
pub struct Quota {
    mix: Mix,
    prepared: bool,
}

impl Quota {
    pub fn new(rng: &mut Rng) -> Self {
        let mut mix = Mix::new(rng, "/limited");
        mix.depth = 2;
        mix.acls = 0;
        mix.strange = 0;
        Self {
            mix,
            prepared: false,
        }
    }
}

impl Workload for Quota {
    fn next(&mut self, rng: &mut Rng, _: &View) -> Vec<Request> {
        if !self.prepared {
            self.prepared = true;
            let limits = *rng.pick(&[
                "count=3,bytes=100",
                "count=-1,bytes=-1=;byteHardLimit=300;countHardLimit=6",
                "count=-1,bytes=-1=;byteHardLimit=-1;countHardLimit=4",
            ]);
            let quota = "/zookeeper/quota/limited";
            return vec![
                create("/limited", 0, b"root"),
                create(quota, 0, b""),
                create(&format!("{quota}/zookeeper_limits"), 0, limits.as_bytes()),
                create(&format!("{quota}/zookeeper_stats"), 0, b"count=0,bytes=0"),
            ];
        }
        if rng.percent(20) {
            let path = "/zookeeper/quota/limited/zookeeper_stats".into();
            return vec![Request::GetData { path, watch: true }];
        }
        vec![self.mix.request(rng, 30)]
    }

    fn reply(&mut self, _: &Request, result: Result<'_>, _: &View, rng: &mut Rng) {
        if let Ok(Answer::Path(path) | Answer::PathStat(path, _)) = result
            && path.starts_with("/limited")
        {
            self.mix.saw(path, rng);
        }
    }
}

pub fn create(path: &str, flags: i32, data: &[u8]) -> Request {
    Request::Create(Create {
        opcode: op::CREATE,
        path: path.into(),
        data: Some(Bytes::copy_from_slice(data)),
        acl: Some(vec![Acl::open()]),
        flags,
        ttl: None,
    })
}

fn number(data: Option<&Bytes>) -> Option<i64> {
    std::str::from_utf8(data?).ok()?.parse().ok()
}

//! Two servers' answers, field by field.
//!
//! Zxids, session ids and times differ from server to server by nature. They are not left out but
//! mapped: a zxid of one server must be that of the other plus the distance at that point of the
//! history, an owner must be the same client's session, and a time must be the one that the same
//! server has told for the same transaction.

use std::collections::{HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::client::{code, op};
use crate::coverage::Coverage;
use crate::known::{Known, Met, Other, allowed};
use crate::link::Heard;
use crate::request::Request;

/// Two values that should be the same.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// Which field, without anything that changes from one occurrence to the next.
    pub field: String,
    pub zkraft: String,
    pub other: String,
}

pub type Verdict = Result<(), Box<Mismatch>>;

pub fn differ<T>(
    field: &str,
    zkraft: impl std::fmt::Debug,
    other: impl std::fmt::Debug,
) -> Result<T, Box<Mismatch>> {
    Err(Box::new(Mismatch {
        field: field.into(),
        zkraft: format!("{zkraft:?}"),
        other: format!("{other:?}"),
    }))
}

/// How far the clocks of servers and tests may be apart: they share a machine.
const CLOCK_MS: i64 = 5_000;

pub struct Comparer {
    pub other: Other,
    pub met: Met,
    pub coverage: Coverage,
    /// From which zxid of zkraft on which distance holds, ascending.
    distances: Vec<(i64, i64)>,
    /// zkraft's last zxid that was seen.
    last: i64,
    /// Up to which zxid of zkraft the other server shows a shorter distance, and which: it has
    /// counted a zxid that shows with its next transaction only.
    lag: Option<(i64, i64)>,
    sessions: HashMap<i64, i64>,
    /// Zxids (zkraft's) of closeSession transactions: the order of their events means nothing.
    closings: HashSet<i64>,
    /// Per server, when a transaction was.
    times: [HashMap<i64, i64>; 2],
    began_ms: i64,
}

/// The rest of two records.
struct Pair<'a> {
    zkraft: &'a [u8],
    other: &'a [u8],
}

impl Comparer {
    pub fn new(other: Other) -> Self {
        Self {
            other,
            met: Met::default(),
            coverage: Coverage::default(),
            distances: Vec::new(),
            last: 0,
            lag: None,
            sessions: HashMap::new(),
            closings: HashSet::new(),
            times: [HashMap::new(), HashMap::new()],
            began_ms: now_ms(),
        }
    }

    /// The last zxids at a moment when nothing is under way. Where a distance is known it must
    /// hold.
    pub fn level(&mut self, zkraft: i64, other: i64) -> Verdict {
        if self.distances.is_empty() {
            self.distances.push((0, other - zkraft));
        }
        self.last = zkraft;
        let expected = self.now(zkraft);
        if other == expected {
            return Ok(());
        }
        let found = other - zkraft;
        self.shift(found - self.distance());
        self.lag = None;
        differ(
            "last zxid",
            zkraft,
            format!("{other:#x}, not {expected:#x}"),
        )
    }

    /// Forgets servers that are gone.
    pub fn restarted(&mut self) {
        self.lag = None;
        self.distances.clear();
        self.sessions.clear();
        self.forget();
    }

    /// Forgets what an earlier episode left.
    pub fn forget(&mut self) {
        self.closings.clear();
        for times in &mut self.times {
            times.clear();
        }
    }

    pub fn session(&mut self, zkraft: i64, other: i64) {
        self.sessions.insert(zkraft, other);
    }

    /// The other server's zxid for one of zkraft.
    pub fn image(&self, zxid: i64) -> i64 {
        if zxid <= 0 {
            return zxid;
        }
        let after = self.distances.partition_point(|(start, _)| *start <= zxid);
        zxid + self.distances[after.saturating_sub(1)].1
    }

    /// Compares what two connections heard. `requests` are those that the replies belong to.
    pub fn heard(&mut self, requests: &[(i32, Request)], heard: [&[Heard]; 2]) -> Verdict {
        let [mut zkraft, mut other] = heard;
        for (request, reply) in requests.iter().zip(replies(zkraft)) {
            if let (op::CLOSE_SESSION, Heard::Reply { zxid, .. }) = (request.1.op(), reply) {
                self.closings.insert(*zxid);
            }
        }
        let mut requests = requests.iter();
        loop {
            let events = [leading_events(zkraft), leading_events(other)];
            self.events(&zkraft[..events[0]], &other[..events[1]])?;
            (zkraft, other) = (&zkraft[events[0]..], &other[events[1]..]);
            match (zkraft.first(), other.first()) {
                (None, None) => return Ok(()),
                (Some(one @ Heard::Reply { .. }), Some(two @ Heard::Reply { .. })) => {
                    match requests.next() {
                        Some((_, request)) => self.reply(request, one, two)?,
                        None => return differ("reply that nobody asked for", one, two),
                    }
                }
                (Some(Heard::Closed), Some(Heard::Closed)) => {}
                (one, two) => return differ("what comes next", one, two),
            }
            (zkraft, other) = (&zkraft[1..], &other[1..]);
        }
    }

    fn events(&mut self, zkraft: &[Heard], other: &[Heard]) -> Verdict {
        if zkraft.len() != other.len() {
            return differ("events", zkraft, other);
        }
        let mut zkraft: Vec<_> = zkraft.iter().collect();
        let mut other: Vec<_> = other.iter().collect();
        let mut start = 0;
        while start < zkraft.len() {
            let zxid = event_zxid(zkraft[start]);
            let same = zkraft[start..].iter().take_while(|e| event_zxid(e) == zxid);
            let end = start + same.count();
            if self.closings.contains(&zxid) {
                zkraft[start..end].sort_by_key(|event| what(event));
                other[start..end].sort_by_key(|event| what(event));
            }
            start = end;
        }
        for (one, two) in zkraft.into_iter().zip(other) {
            let (said, heard) = (what(one), what(two));
            if (said.0, said.1) != (heard.0, heard.1) || !self.same_text(said.2, heard.2) {
                return differ("event", one, two);
            }
            let (zxid, found) = (event_zxid(one), event_zxid(two));
            if found != self.image(zxid) {
                if found == -1 && allowed(Known::NotificationZxid, self.other) {
                    self.met.count(Known::NotificationZxid);
                } else {
                    return differ("zxid of an event", one, two);
                }
            }
            self.coverage.event(said.0);
        }
        Ok(())
    }

    fn reply(&mut self, request: &Request, zkraft: &Heard, other: &Heard) -> Verdict {
        let (
            Heard::Reply {
                xid: xid_a,
                zxid: zxid_a,
                err: err_a,
                body: body_a,
            },
            Heard::Reply {
                xid: xid_b,
                zxid: zxid_b,
                err: err_b,
                body: body_b,
            },
        ) = (zkraft, other)
        else {
            unreachable!("only replies are compared here")
        };
        let op = request.op();
        let name = |field: &str| format!("{field} of operation {op}");
        self.coverage.reply(request, *err_a);
        if xid_a != xid_b {
            return differ(&name("xid"), zkraft, other);
        }
        let known = if err_a == err_b {
            None
        } else {
            match self.known_error(request, *err_a, *err_b, body_b) {
                Some(known) => {
                    self.met.count(known);
                    Some(known)
                }
                None => return differ(&name("err"), zkraft, other),
            }
        };
        self.last = self.last.max(*zxid_a);
        if *err_a == code::MARSHALLING && self.other.is_zookeeper() {
            self.undecoded(request, *zxid_a, *zxid_b);
        }
        if known == Some(Known::DeleteContainer) {
            self.shift(1);
            self.lag = None;
            // An unknown operation is answered with -1 (spec §3.1), so that zkraft's zxid is known
            // up to the sessions that began since.
            return match *zxid_a == -1 && *zxid_b >= self.now(self.last) {
                true => Ok(()),
                false => differ(&name("zxid"), zkraft, other),
            };
        }
        let expected = if *zxid_a <= 0 {
            *zxid_a
        } else {
            self.now(*zxid_a)
        };
        if *zxid_b != expected {
            let expected = format!("{other:?}, not {expected:#x}");
            return differ(&name("zxid"), zkraft, expected);
        }
        if known.is_some() {
            return Ok(());
        }
        let mut pair = Pair {
            zkraft: body_a,
            other: body_b,
        };
        if *err_a != 0 {
            let list = *err_a == code::MARSHALLING && is_multi(op) && is_list(pair.other);
            if pair.zkraft.is_empty() && list && allowed(Known::BodyOfRefusedMulti, self.other) {
                self.met.count(Known::BodyOfRefusedMulti);
                return Ok(());
            }
        } else {
            self.body(op, request, &mut pair).or_else(|found| {
                let shown = format!("{} {}", found.field, found.zkraft);
                differ(
                    &name(&found.field),
                    format!("{shown} in {zkraft:?}"),
                    format!("{} in {other:?}", found.other),
                )
            })?;
        }
        match pair.zkraft.is_empty() && pair.other.is_empty() {
            true => Ok(()),
            false => differ(&name("bytes at the end"), zkraft, other),
        }
    }

    /// Counts a zxid that the other server has given to a write that does not decode.
    fn undecoded(&mut self, request: &Request, zkraft: i64, other: i64) {
        let op = request.op();
        // 3.8 decodes a reconfig before it gives out a zxid, 3.9 all but a multi.
        let broken = matches!(request, Request::Cut { .. } | Request::Odd { .. });
        let early = self.other == Other::V39 && broken && op != op::MULTI;
        if !request.is_write() || op == op::RECONFIG || early {
            return;
        }
        let before = self.now(zkraft);
        let late = other == before;
        // A null ACL is found while a multi is decoded, and fails it without a zxid.
        let null_acl = |part: &Request| {
            matches!(
                part,
                Request::Create {
                    acl: None,
                    ttl: None,
                    ..
                }
            )
        };
        if late && self.other == Other::V39 && request.parts().iter().any(null_acl) {
            return;
        }
        self.met.count(Known::UndecodedWriteZxid);
        self.shift(1);
        // A null path in a multi is found too late to be logged: its zxid shows with the next.
        self.lag = late.then_some((zkraft, other - zkraft));
    }

    fn known_error(
        &self,
        request: &Request,
        zkraft: i32,
        other: i32,
        other_body: &[u8],
    ) -> Option<Known> {
        let known = match (request.op(), zkraft, other) {
            (op::DELETE_CONTAINER, code::UNIMPLEMENTED, code::BAD_ARGUMENTS) => {
                Known::DeleteContainer
            }
            (op::EXISTS, code::NO_AUTH, 0) => Known::ExistsWithoutRead,
            (op::CHECK_WATCHES | op::REMOVE_WATCHES, 0 | code::NO_WATCHER, code::MARSHALLING)
                if matches!(request.inner(), Request::Numbered { number: 4 | 5, .. }) =>
            {
                Known::WatchTypes
            }
            (_, code::MARSHALLING, code::BAD_ARGUMENTS | code::UNIMPLEMENTED)
                if matches!(request.inner(), Request::Create { path: None, .. }) =>
            {
                Known::NullPath
            }
            (_, code::MARSHALLING, code::NO_WATCHER | 0)
                if matches!(request.inner(), Request::Numbered { path: None, .. }) =>
            {
                Known::NullPath
            }
            (op::CHECK_WATCHES, code::NO_WATCHER, 0) => Known::WatchesOfOthers,
            (op::CHECK_WATCHES, code::NO_WATCHER, code::MARSHALLING) => match request.inner() {
                Request::Numbered { path, .. } => {
                    let path = path.as_ref().filter(|path| !path.starts_with('/'));
                    path.map(|_| Known::WatchesOfOthers)?
                }
                _ => return None,
            },
            (op::MULTI, code::MARSHALLING, 0) if failed_multi(other_body) && of_ttl(request) => {
                Known::NullAclOfTtl
            }
            (op::MULTI, code::MARSHALLING, 0) if failed_multi(other_body) => {
                let odd = request.parts().iter().any(|part| match part {
                    Request::Create {
                        acl, flags, ttl, ..
                    } => {
                        let no_ttl = (5..=6).contains(flags) && ttl.is_none();
                        acl.is_none() || !(0..=6).contains(flags) || no_ttl
                    }
                    _ => false,
                });
                odd.then_some(Known::MultiThatMayNotBe)?
            }
            _ => return None,
        };
        allowed(known, self.other).then_some(known)
    }

    fn body(&mut self, op: i32, request: &Request, pair: &mut Pair<'_>) -> Verdict {
        match op {
            op::CREATE => pair.buffer("path").map(drop),
            op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL => {
                pair.buffer("path")?;
                self.stat(pair)
            }
            op::EXISTS | op::SET_DATA | op::SET_ACL => self.stat(pair),
            op::GET_DATA | op::RECONFIG => {
                pair.buffer("data")?;
                self.stat(pair)
            }
            op::GET_ACL => {
                let acl = pair.list("ACL", |rest| {
                    Some((take_int(rest)?, take_buffer(rest)?, take_buffer(rest)?))
                })?;
                let [mut zkraft, mut other] = acl;
                // An entry of the scheme auth stands for each id of the connection, in hash order.
                let ids = zkraft
                    .iter()
                    .filter(|(_, scheme, _)| scheme.as_deref() == Some(b"digest"));
                if ids.count() > 1 {
                    zkraft.sort();
                    other.sort();
                }
                if zkraft != other {
                    return differ("ACL", zkraft, other);
                }
                self.stat(pair)
            }
            op::GET_CHILDREN | op::GET_EPHEMERALS => pair.names("names"),
            op::GET_CHILDREN2 => {
                pair.names("names")?;
                self.stat(pair)
            }
            op::SYNC => {
                let [zkraft, other] = pair.each("path", take_buffer)?;
                let same = match (&zkraft, &other) {
                    (Some(zkraft), Some(other)) => self.same_text(zkraft, other),
                    _ => zkraft == other,
                };
                match same {
                    true => Ok(()),
                    false => differ("path", zkraft, other),
                }
            }
            op::SASL => pair.buffer("token").map(drop),
            op::ADD_WATCH | op::GET_ALL_CHILDREN_NUMBER => pair.int("number").map(drop),
            op::WHO_AM_I => {
                let [mut zkraft, mut other] =
                    pair.list("ids", |rest| Some((take_buffer(rest)?, take_buffer(rest)?)))?;
                zkraft.sort();
                other.sort();
                match zkraft == other {
                    true => Ok(()),
                    false => differ("ids", zkraft, other),
                }
            }
            op::MULTI | op::MULTI_READ => self.results(request, pair),
            _ => Ok(()),
        }
    }

    fn results(&mut self, request: &Request, pair: &mut Pair<'_>) -> Verdict {
        for (place, part) in request.parts().iter().enumerate() {
            let heads = [pair.zkraft, pair.other].map(|mut rest| take_int(&mut rest));
            if heads == [Some(op::CREATE2), Some(op::CREATE)]
                && matches!(part.op(), op::CREATE2 | op::CREATE_CONTAINER)
                && allowed(Known::Create2InMulti, self.other)
            {
                self.met.count(Known::Create2InMulti);
                pair.zkraft = &pair.zkraft[4..];
                pair.other = &pair.other[4..];
                pair.boolean("done")?;
                pair.int("code")?;
                pair.buffer("path")?;
                // The Stat that only zkraft sends.
                match pair.zkraft.split_at_checked(68) {
                    Some((_, rest)) => pair.zkraft = rest,
                    None => return differ("Stat", pair.zkraft, ()),
                }
                continue;
            }
            let kind = pair.int("type of a result")?;
            pair.boolean("done")?;
            let code = pair.int("code of a result")?;
            self.coverage.part(part, code);
            if request.op() == op::MULTI && code != 0 && code != code::RUNTIME_INCONSISTENCY {
                match place {
                    0 => self.coverage.moment("multi fails at its first part"),
                    1 => {}
                    _ => self.coverage.moment("multi fails behind its second part"),
                }
            }
            match kind {
                -1 => drop(pair.int("code of an error result")?),
                kind => self.body(kind, part, pair)?,
            }
        }
        let end = (
            pair.int("type of the end")?,
            pair.boolean("done")?,
            pair.int("code of the end")?,
        );
        match end {
            (-1, true, -1) => Ok(()),
            other => differ("end of results", other, other),
        }
    }

    fn stat(&mut self, pair: &mut Pair<'_>) -> Verdict {
        let czxid = self.zxid("czxid", pair)?;
        let mzxid = self.zxid("mzxid", pair)?;
        self.time("ctime", czxid, pair)?;
        self.time("mtime", mzxid, pair)?;
        for field in ["version", "cversion", "aversion"] {
            pair.int(field)?;
        }
        let [zkraft, other] = pair.longs("ephemeralOwner")?;
        let image = self.sessions.get(&zkraft).copied().unwrap_or(zkraft);
        if other != image {
            return differ(
                "ephemeralOwner",
                zkraft,
                format!("{other:#x}, not {image:#x}"),
            );
        }
        pair.int("dataLength")?;
        pair.int("numChildren")?;
        self.zxid("pzxid", pair).map(drop)
    }

    fn zxid(&mut self, field: &str, pair: &mut Pair<'_>) -> Result<[i64; 2], Box<Mismatch>> {
        let [zkraft, other] = pair.longs(field)?;
        let image = self.image(zkraft);
        match other == image {
            true => Ok([zkraft, other]),
            false => differ(field, zkraft, format!("{other:#x}, not {image:#x}")),
        }
    }

    fn time(&mut self, field: &str, zxids: [i64; 2], pair: &mut Pair<'_>) -> Verdict {
        let told = pair.longs(field)?;
        let now = now_ms();
        for server in 0..2 {
            let (zxid, time) = (zxids[server], told[server]);
            let first = *self.times[server].entry(zxid).or_insert(time);
            let plausible = self.began_ms - CLOCK_MS <= time && time <= now + CLOCK_MS;
            if time != first || (zxid == 0 && time != 0) || (zxid != 0 && !plausible) {
                return differ(field, (told[0], zxids[0]), (told[1], zxids[1], first));
            }
        }
        Ok(())
    }

    /// Whether a client's own text came back.
    fn same_text(&mut self, zkraft: &[u8], other: &[u8]) -> bool {
        if zkraft == other {
            return true;
        }
        let same = allowed(Known::Surrogates, self.other) && with_surrogates(zkraft) == other;
        if same {
            self.met.count(Known::Surrogates);
        }
        same
    }

    fn distance(&self) -> i64 {
        self.distances.last().map_or(0, |(_, distance)| *distance)
    }

    /// What the other server's last zxid must be when zkraft's is this.
    fn now(&self, zkraft: i64) -> i64 {
        match self.lag {
            Some((end, distance)) if zkraft <= end => zkraft + distance,
            _ => zkraft + self.distance(),
        }
    }

    /// From the next transaction on the distance is another one.
    fn shift(&mut self, by: i64) {
        let distance = self.distance() + by;
        match self.distances.last_mut() {
            Some((start, last)) if *start == self.last + 1 => *last = distance,
            _ => self.distances.push((self.last + 1, distance)),
        }
    }
}

impl Pair<'_> {
    fn each<T>(
        &mut self,
        field: &str,
        mut take: impl FnMut(&mut &[u8]) -> Option<T>,
    ) -> Result<[T; 2], Box<Mismatch>> {
        match (take(&mut self.zkraft), take(&mut self.other)) {
            (Some(zkraft), Some(other)) => Ok([zkraft, other]),
            (one, two) => {
                let ends = |value: Option<T>| value.map_or("the record ends early", |_| "there");
                differ(field, ends(one), ends(two))
            }
        }
    }

    fn same<T: PartialEq + std::fmt::Debug>(
        &mut self,
        field: &str,
        take: impl FnMut(&mut &[u8]) -> Option<T>,
    ) -> Result<T, Box<Mismatch>> {
        let [zkraft, other] = self.each(field, take)?;
        match zkraft == other {
            true => Ok(zkraft),
            false => differ(field, zkraft, other),
        }
    }

    fn int(&mut self, field: &str) -> Result<i32, Box<Mismatch>> {
        self.same(field, take_int)
    }

    fn boolean(&mut self, field: &str) -> Result<bool, Box<Mismatch>> {
        self.same(field, |rest| take(rest, 1).map(|byte| byte[0] != 0))
    }

    fn longs(&mut self, field: &str) -> Result<[i64; 2], Box<Mismatch>> {
        self.each(field, |rest| {
            let bytes = take(rest, 8)?.try_into().expect("eight bytes");
            Some(i64::from_be_bytes(bytes))
        })
    }

    fn buffer(&mut self, field: &str) -> Result<Option<Vec<u8>>, Box<Mismatch>> {
        self.same(field, take_buffer)
    }

    fn list<T>(
        &mut self,
        field: &str,
        mut element: impl FnMut(&mut &[u8]) -> Option<T>,
    ) -> Result<[Vec<T>; 2], Box<Mismatch>> {
        self.each(field, |rest| {
            let count = take_int(rest)?;
            (0..count)
                .map(|_| element(rest))
                .collect::<Option<Vec<_>>>()
        })
    }

    /// Names whose order means nothing (spec §3.6).
    fn names(&mut self, field: &str) -> Verdict {
        let [mut zkraft, mut other] = self.list(field, take_buffer)?;
        zkraft.sort();
        other.sort();
        match zkraft == other {
            true => Ok(()),
            false => differ(field, zkraft, other),
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn take_int(rest: &mut &[u8]) -> Option<i32> {
    take(rest, 4).map(|bytes| i32::from_be_bytes(bytes.try_into().expect("four bytes")))
}

/// The outer None is a record that ends early, the inner one a null.
fn take_buffer(rest: &mut &[u8]) -> Option<Option<Vec<u8>>> {
    match take_int(rest)? {
        -1 => Some(None),
        length => take(rest, usize::try_from(length).ok()?).map(|bytes| Some(bytes.to_vec())),
    }
}

/// Text as Java writes it: each half of a character above U+FFFF by itself.
fn with_surrogates(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let encode = |unit: u16| match unit {
        0xd800..=0xdfff => vec![
            0xe0 | (unit >> 12) as u8,
            0x80 | (unit >> 6 & 0x3f) as u8,
            0x80 | (unit & 0x3f) as u8,
        ],
        _ => String::from_utf16_lossy(&[unit]).into_bytes(),
    };
    text.encode_utf16().flat_map(encode).collect()
}

fn replies(heard: &[Heard]) -> impl Iterator<Item = &Heard> {
    heard
        .iter()
        .filter(|heard| matches!(heard, Heard::Reply { .. }))
}

fn leading_events(heard: &[Heard]) -> usize {
    let events = heard
        .iter()
        .take_while(|heard| matches!(heard, Heard::Event { .. }));
    events.count()
}

fn event_zxid(event: &Heard) -> i64 {
    match event {
        Heard::Event { zxid, .. } => *zxid,
        _ => 0,
    }
}

/// What an event says.
fn what(event: &Heard) -> (i32, i32, &[u8]) {
    match event {
        Heard::Event {
            kind, state, path, ..
        } => (*kind, *state, path),
        _ => (0, 0, &[]),
    }
}

fn is_multi(op: i32) -> bool {
    matches!(op, op::MULTI | op::MULTI_READ)
}

/// Whether a multi creates a TTL znode with a null ACL.
fn of_ttl(request: &Request) -> bool {
    request.parts().iter().any(|part| {
        matches!(
            part,
            Request::Create {
                acl: None,
                ttl: Some(_),
                ..
            }
        )
    })
}

/// Whether a body ends as a list of results does.
fn is_list(body: &[u8]) -> bool {
    body.ends_with(&[0xff, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff, 0xff])
}

/// Whether a multi's results are those of a failure: error results and the end.
fn failed_multi(mut body: &[u8]) -> bool {
    while take_int(&mut body) == Some(-1) {
        match take(&mut body, 1) {
            Some([0]) if take(&mut body, 8).is_some() => {}
            Some([1]) => return take_int(&mut body) == Some(-1) && body.is_empty(),
            _ => return false,
        }
    }
    false
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a clock behind 1970").as_millis() as i64
}

//! Drives one stream through two servers.
//!
//! Within a step one connection writes, several requests at once, and its replies are read before
//! the next step; or several connections read at once. So the order in which the servers act is
//! decided, and with it every byte that is not theirs to choose. Events for other connections are
//! not waited for: a connection must hear of them before its own next reply (spec §6.5), which is
//! when they are compared.

use std::net::SocketAddr;

use crate::client::{Body, Hello, code, op};
use crate::compare::{Comparer, Mismatch, Verdict, differ};
use crate::known::{Known, Other, allowed};
use crate::link::{Heard, Link};
use crate::request::{Request, Since};
use crate::server::Server;

/// The password with which a session is renewed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Password {
    Right,
    Wrong,
    Short,
    Null,
}

/// One step of a stream. `who` is a connection's place.
#[derive(Clone, Debug)]
pub enum Step {
    /// A new session, if the place has none.
    Open {
        who: usize,
        timeout_ms: i32,
        read_only: Option<bool>,
        password: Option<usize>,
    },
    /// Continues the place's session on a new connection; the old one is kept until then.
    Renew {
        who: usize,
        password: Password,
        timeout_ms: i32,
    },
    /// Tries to connect as one who has seen a zxid that is yet to come.
    Future { who: usize },
    /// Tries to continue a session that never was.
    Unknown {
        session: i64,
        read_only: Option<bool>,
    },
    /// Breaks the TCP connection.
    Drop { who: usize },
    /// One connection sends these with one write. The numbers are xids.
    Pipeline {
        who: usize,
        requests: Vec<(i32, Request)>,
    },
    /// Several connections read at once.
    Together {
        parts: Vec<(usize, Vec<(i32, Request)>)>,
    },
    /// Bytes that are no frame, which closes the connection.
    NoFrame { who: usize, bytes: Vec<u8> },
    /// A setData whose frame has the largest length that a server takes.
    LargestFrame { who: usize, path: String },
}

impl Step {
    /// How many requests it sends behind a handshake, besides its own pings.
    pub fn requests(&self) -> usize {
        match self {
            Self::Pipeline { requests, .. } => requests.len(),
            Self::Together { parts } => parts.iter().map(|(_, requests)| requests.len()).sum(),
            Self::LargestFrame { .. } => 1,
            _ => 0,
        }
    }
}

/// A session as the two servers know it.
#[derive(Clone, Debug)]
struct Session {
    ids: [i64; 2],
    passwords: [Vec<u8>; 2],
    closed: bool,
}

/// A client.
#[derive(Default)]
struct Place {
    links: Option<[Link; 2]>,
    session: Option<Session>,
    /// zkraft's zxid in the last reply.
    seen: i64,
}

/// A mismatch and the step at which it showed.
#[derive(Clone, Debug)]
pub struct Failure {
    pub step: usize,
    pub mismatch: Mismatch,
}

/// Changes what was heard from the other server, to see it noticed.
pub type Lie = fn(&[(i32, Request)], &mut Vec<Heard>);

/// Both servers and the connections to them.
pub struct Pair {
    pub comparer: Comparer,
    addresses: [SocketAddr; 2],
    places: Vec<Place>,
    /// Super users that belong to no stream.
    admins: [Link; 2],
    /// See [`Lie`].
    pub lie: Option<Lie>,
}

const SUPER: &[u8] = b"super:secret";

impl Pair {
    pub fn new(zkraft: &Server, server: &Server, other: Other) -> Self {
        let addresses = [zkraft.address(), server.address()];
        Self {
            comparer: Comparer::new(other),
            addresses,
            places: Vec::new(),
            admins: addresses.map(admin),
            lie: None,
        }
    }

    /// Goes on with other servers.
    pub fn restarted(&mut self, zkraft: &Server, server: &Server) {
        self.addresses = [zkraft.address(), server.address()];
        self.places.clear();
        self.admins = self.addresses.map(admin);
        self.comparer.restarted();
    }

    /// Runs a stream from an empty tree to an empty tree.
    pub fn run(&mut self, steps: &[Step]) -> Result<(), Failure> {
        self.comparer.forget();
        let at = |step: usize| {
            move |mismatch: Box<Mismatch>| Failure {
                step,
                mismatch: *mismatch,
            }
        };
        self.level().map_err(at(0))?;
        for (index, step) in steps.iter().enumerate() {
            self.step(step).map_err(at(index))?;
        }
        let end = steps.len();
        self.finish().map_err(at(end))?;
        self.sweep().map_err(at(end))
    }

    /// Removes what a failed stream left, on each server by itself. Tells whether the two are alike
    /// afterwards.
    pub fn clean_up(&mut self) -> bool {
        for place in std::mem::take(&mut self.places) {
            let Some(session) = place.session.filter(|session| !session.closed) else {
                continue;
            };
            drop(place.links);
            for server in 0..2 {
                let hello = Hello {
                    session: session.ids[server],
                    password: Some(session.passwords[server].clone()),
                    ..Hello::default()
                };
                let (mut link, _) = Link::greet(self.addresses[server], &hello);
                link.send(&frame(
                    1,
                    &Request::Bare {
                        op: op::CLOSE_SESSION,
                    },
                    &|_| 0,
                ));
                while !matches!(link.hear(), Heard::Closed | Heard::Silence) {}
            }
        }
        let swept = self.sweep().is_ok();
        // Their distance is another one now, which the next stream must not take for a mistake.
        let _ = self.level();
        swept
    }

    fn step(&mut self, step: &Step) -> Verdict {
        match step {
            Step::Open {
                who,
                timeout_ms,
                read_only,
                password,
            } => {
                let hello = Hello {
                    timeout_ms: *timeout_ms,
                    read_only: *read_only,
                    password: password.map(|length| vec![7; length]),
                    ..Hello::default()
                };
                self.open(*who, &hello)
            }
            Step::Renew {
                who,
                password,
                timeout_ms,
            } => self.renew(*who, *password, *timeout_ms),
            Step::Future { who } => self.future(*who),
            Step::Unknown { session, read_only } => {
                let hello = Hello {
                    session: *session,
                    read_only: *read_only,
                    ..Hello::default()
                };
                self.comparer
                    .coverage
                    .moment("renewal of an unknown session");
                self.greet([hello.clone(), hello]).map(drop)
            }
            Step::Drop { who } => {
                self.settle(*who)?;
                let Some(mut links) = self.place(*who).links.take() else {
                    return Ok(());
                };
                self.comparer.coverage.moment("connection dropped");
                let ends = links.each_mut().map(|link| [link.leave()]);
                self.comparer.heard(&[], [&ends[0], &ends[1]])
            }
            Step::Pipeline { who, requests } => self.pipeline(*who, requests),
            Step::Together { parts } => self.together(parts),
            Step::NoFrame { who, bytes } => {
                self.settle(*who)?;
                let Some(mut links) = self.place(*who).links.take() else {
                    return Ok(());
                };
                self.comparer.coverage.moment("no frame");
                let heard = links.each_mut().map(|link| {
                    link.send(bytes);
                    vec![link.hear()]
                });
                self.comparer.heard(&[], [&heard[0], &heard[1]])
            }
            Step::LargestFrame { who, path } => {
                self.comparer.coverage.moment("largest frame");
                // Header, length and path, length of the data, version.
                let room = 1_048_575 - 8 - 4 - path.len() - 4 - 4;
                let request = Request::SetData {
                    path: Some(path.clone()),
                    data: Some(vec![9; room]),
                    version: -1,
                };
                self.pipeline(*who, &[(1, request)])
            }
        }
    }

    fn place(&mut self, who: usize) -> &mut Place {
        if self.places.len() <= who {
            self.places.resize_with(who + 1, Place::default);
        }
        &mut self.places[who]
    }

    /// Compares the last zxids through the super users.
    fn level(&mut self) -> Verdict {
        let ping = [(-2, Request::Bare { op: op::PING })];
        let last =
            self.admins
                .each_mut()
                .map(|link| match ask(link, &ping, &|_| 0).into_iter().next() {
                    Some(Heard::Reply { zxid, .. }) => zxid,
                    other => panic!("a super user is not served: {other:?}"),
                });
        self.comparer.level(last[0], last[1])
    }

    fn open(&mut self, who: usize, hello: &Hello) -> Verdict {
        let session = &self.place(who).session;
        if session.as_ref().is_some_and(|session| !session.closed) {
            return Ok(());
        }
        let Some((links, welcomes)) = self.greet([hello.clone(), hello.clone()])? else {
            return differ("a new session", "refused", "refused");
        };
        self.comparer.coverage.moment("session opened");
        let [zkraft, other] = welcomes;
        self.comparer.session(zkraft.0, other.0);
        let place = self.place(who);
        place.links = Some(links);
        place.session = Some(Session {
            ids: [zkraft.0, other.0],
            passwords: [zkraft.1, other.1],
            closed: false,
        });
        Ok(())
    }

    /// Sends a hello to each and compares what comes back. None if both refuse.
    #[expect(
        clippy::type_complexity,
        reason = "session and password, of each server"
    )]
    fn greet(
        &mut self,
        hellos: [Hello; 2],
    ) -> Result<Option<([Link; 2], [(i64, Vec<u8>); 2])>, Box<Mismatch>> {
        let [zkraft, other] = [0, 1].map(|at| Link::greet(self.addresses[at], &hellos[at]));
        let (Some(one), Some(two)) = (&zkraft.1, &other.1) else {
            return differ("answer to a hello", &zkraft.1, &other.1);
        };
        // The fields of a ConnectResponse: version, timeout, session, password, readOnly.
        let shape = |frame: &[u8]| {
            let session = i64::from_be_bytes(frame.get(8..16)?.try_into().ok()?);
            let password = frame.get(20..36)?.to_vec();
            let rest = frame[36..].to_vec();
            Some((
                frame[..8].to_vec(),
                frame[16..20].to_vec(),
                rest,
                session,
                password,
            ))
        };
        let (Some(one), Some(two)) = (shape(one), shape(two)) else {
            return differ("length of a ConnectResponse", one, two);
        };
        let same = (&one.0, &one.1, &one.2) == (&two.0, &two.1, &two.2);
        if !same || (one.3 == 0) != (two.3 == 0) {
            return differ("ConnectResponse", one, two);
        }
        let mut links = [zkraft.0, other.0];
        if one.3 == 0 {
            let ends = links.each_mut().map(Link::hear);
            let refused = one.4 == two.4 && ends == [Heard::Closed, Heard::Closed];
            return match refused {
                true => Ok(None),
                false => differ("what follows a refusal", &ends[0], &ends[1]),
            };
        }
        Ok(Some((links, [(one.3, one.4), (two.3, two.4)])))
    }

    fn renew(&mut self, who: usize, password: Password, timeout_ms: i32) -> Verdict {
        // Events that are under way may be lost with the old connection.
        self.settle(who)?;
        let Some(session) = self.place(who).session.clone() else {
            return Ok(());
        };
        let hellos = [0, 1].map(|at| Hello {
            session: session.ids[at],
            timeout_ms,
            password: match password {
                Password::Right => Some(session.passwords[at].clone()),
                Password::Wrong => Some(session.passwords[at].iter().map(|b| !b).collect()),
                Password::Short => Some(session.passwords[at][1..].to_vec()),
                Password::Null => None,
            },
            ..Hello::default()
        });
        let coverage = &mut self.comparer.coverage;
        coverage.moment(match (session.closed, password) {
            (true, _) => "renewal of a closed session",
            (false, Password::Right) => "password right",
            (false, _) => "password wrong",
        });
        let renewed = self.greet(hellos)?;
        let old = self.place(who).links.take();
        if old.is_some() && !session.closed {
            self.comparer.coverage.moment("renewal while connected");
        }
        match renewed {
            Some((links, welcomes)) => {
                let told = [0, 1].map(|at| {
                    (welcomes[at].0, &welcomes[at].1) == (session.ids[at], &session.passwords[at])
                });
                if session.closed || password != Password::Right || told != [true, true] {
                    return differ("a renewal", told[0], told[1]);
                }
                self.place(who).links = Some(links);
                match old.map(|mut old| old.each_mut().map(Link::hear)) {
                    Some([one, two]) if one != Heard::Closed || two != Heard::Closed => {
                        differ("the old connection after a renewal", one, two)
                    }
                    _ => Ok(()),
                }
            }
            None if password == Password::Right && !session.closed => {
                differ("a renewal", "refused", "refused")
            }
            None => {
                let Some(mut links) = old else {
                    return Ok(());
                };
                if !allowed(Known::WrongPassword, self.comparer.other) {
                    self.place(who).links = Some(links);
                    return self.settle(who);
                }
                // ZooKeeper has closed the owner's connection, zkraft has not.
                self.comparer.met.count(Known::WrongPassword);
                let other = links[1].hear();
                if other != Heard::Closed {
                    return differ("the owner after a wrong password", (), other);
                }
                let ping = [(-2, Request::Bare { op: op::PING })];
                let zkraft = ask(&mut links[0], &ping, &|_| 0);
                match &zkraft[..] {
                    [Heard::Reply { err: 0, .. }] if links[0].leave() == Heard::Closed => Ok(()),
                    _ => differ("the owner after a wrong password", zkraft, ()),
                }
            }
        }
    }

    fn future(&mut self, who: usize) -> Verdict {
        self.settle(who)?;
        let hello = Hello {
            last_zxid: i64::MAX,
            ..Hello::default()
        };
        let heard = self.addresses.map(|address| {
            let (_, frame) = Link::greet(address, &hello);
            frame
        });
        self.comparer.coverage.moment("client from the future");
        if self.comparer.other.is_zookeeper() {
            self.comparer.met.count(Known::FutureZxid);
        }
        match heard == [None, None] {
            true => Ok(()),
            false => differ("a client from the future", &heard[0], &heard[1]),
        }
    }

    /// Hears what is on its way to a connection.
    fn settle(&mut self, who: usize) -> Verdict {
        match self.place(who).links.is_some() {
            true => self.pipeline(who, &[(-2, Request::Bare { op: op::PING })]),
            false => Ok(()),
        }
    }

    fn pipeline(&mut self, who: usize, requests: &[(i32, Request)]) -> Verdict {
        let Some(mut links) = self.say(who, requests) else {
            return Ok(());
        };
        if requests.len() >= 8 {
            self.comparer.coverage.moment("pipeline of 8 or more");
        }
        self.hear(who, &mut links, requests)?;
        self.keep(who, links, requests);
        Ok(())
    }

    fn together(&mut self, parts: &[(usize, Vec<(i32, Request)>)]) -> Verdict {
        let mut waiting = Vec::new();
        for (who, requests) in parts {
            if let Some(links) = self.say(*who, requests) {
                waiting.push((*who, links, requests));
            }
        }
        self.comparer.coverage.moment("readers at once");
        for (who, mut links, requests) in waiting {
            self.hear(who, &mut links, requests)?;
            self.keep(who, links, requests);
        }
        Ok(())
    }

    /// Sends to both, and hands the connections over until they were heard.
    fn say(&mut self, who: usize, requests: &[(i32, Request)]) -> Option<[Link; 2]> {
        let place = self.place(who);
        let seen = place.seen;
        let mut links = place.links.take()?;
        let since = |since| match since {
            Since::Zero => 0,
            Since::Back(by) => (seen - by).max(0),
            Since::Future => seen + 1_000_000,
        };
        let zkraft = frames(requests, &since);
        // Only setWatches carries a number that is not the same for both.
        let own = requests
            .iter()
            .any(|(_, request)| matches!(request.op(), op::SET_WATCHES | op::SET_WATCHES2));
        links[0].send(&zkraft);
        match own {
            true => {
                let other = frames(requests, &|at| self.comparer.image(since(at)));
                links[1].send(&other);
            }
            false => links[1].send(&zkraft),
        }
        Some(links)
    }

    fn hear(&mut self, who: usize, links: &mut [Link; 2], requests: &[(i32, Request)]) -> Verdict {
        let mut heard = links.each_mut().map(|link| listen(link, requests));
        if let Some(lie) = self.lie {
            lie(requests, &mut heard[1]);
        }
        let told = |heard: &[Heard]| {
            let zxids = heard.iter().filter_map(|heard| match heard {
                Heard::Reply { zxid, .. } => Some(*zxid),
                _ => None,
            });
            zxids.max()
        };
        let seen = told(&heard[0]);
        let place = self.place(who);
        place.seen = seen.unwrap_or(0).max(place.seen);
        // deleteContainer ends the connection to zkraft alone: the other's end is not compared.
        let alone = requests
            .last()
            .is_some_and(|(_, request)| request.op() == op::DELETE_CONTAINER);
        if alone && allowed(Known::DeleteContainer, self.comparer.other) {
            if heard[0].pop() != Some(Heard::Closed) {
                return differ("the end after deleteContainer", &heard[0], &heard[1]);
            }
            if heard[1].last() == Some(&Heard::Closed) {
                heard[1].pop();
            }
        }
        self.comparer.heard(requests, [&heard[0], &heard[1]])
    }

    /// Takes the connections back, unless the last request has closed them.
    fn keep(&mut self, who: usize, mut links: [Link; 2], requests: &[(i32, Request)]) {
        let place = self.place(who);
        if let Some((_, last)) = requests.last() {
            if last.op() == op::CLOSE_SESSION {
                if let Some(session) = &mut place.session {
                    session.closed = true;
                }
                return;
            }
            if last.may_end_connection() && links[0].ended() {
                links[1].leave();
                return;
            }
        }
        place.links = Some(links);
    }

    /// Ends all sessions, and with them the stream.
    fn finish(&mut self) -> Verdict {
        let timeout_ms = Hello::default().timeout_ms;
        for who in 0..self.places.len() {
            let place = self.place(who);
            if place.session.as_ref().is_none_or(|session| session.closed) {
                continue;
            }
            if place.links.is_none() {
                self.renew(who, Password::Right, timeout_ms)?;
            }
            self.settle(who)?;
        }
        for who in 0..self.places.len() {
            self.pipeline(
                who,
                &[(
                    1,
                    Request::Bare {
                        op: op::CLOSE_SESSION,
                    },
                )],
            )?;
        }
        self.places.clear();
        Ok(())
    }

    /// Compares the two trees znode by znode as super users, and empties them.
    fn sweep(&mut self) -> Verdict {
        const SYSTEM: [&str; 4] = ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"];
        let mut verdict = Ok(());
        let mut note = |found: Verdict| {
            if verdict.is_ok() {
                verdict = found;
            }
        };
        let mut level = [vec![String::from("/")], vec![String::from("/")]];
        let mut all: Vec<[Vec<String>; 2]> = Vec::new();
        while !level[0].is_empty() || !level[1].is_empty() {
            let reads = |paths: &[String]| -> Vec<(i32, Request)> {
                let reads = paths.iter().flat_map(|path| {
                    let path = || Some(path.clone());
                    [
                        Request::Read {
                            op: op::GET_CHILDREN2,
                            path: path(),
                            watch: 0,
                        },
                        Request::Read {
                            op: op::GET_DATA,
                            path: path(),
                            watch: 0,
                        },
                        Request::Path {
                            op: op::GET_ACL,
                            path: path(),
                        },
                    ]
                });
                reads.map(|read| (1, read)).collect()
            };
            let requests = [reads(&level[0]), reads(&level[1])];
            let heard = [0, 1].map(|at| ask(&mut self.admins[at], &requests[at], &|_| 0));
            if level[0] == level[1] {
                let operations = self.comparer.coverage.clone();
                note(self.comparer.heard(&requests[0], [&heard[0], &heard[1]]));
                // The sweep is no part of the stream.
                self.comparer.coverage = operations;
            } else {
                note(differ("paths", &level[0], &level[1]));
            }
            let below = [0, 1].map(|at| below(&level[at], &heard[at]));
            all.push(std::mem::replace(&mut level, below));
        }
        for at in 0..2 {
            let mut requests = Vec::new();
            let paths = all.iter().rev().flat_map(|levels| levels[at].iter());
            for path in paths {
                if SYSTEM.contains(&&**path) {
                    let acl = crate::client::open_acl();
                    if path != "/zookeeper/config" {
                        let (path, acl) = (Some(path.clone()), Some(acl));
                        requests.push((
                            1,
                            Request::SetAcl {
                                path,
                                acl,
                                version: -1,
                            },
                        ));
                    }
                    continue;
                }
                let path = Some(path.clone());
                requests.push((
                    1,
                    Request::Numbered {
                        op: op::DELETE,
                        path,
                        number: -1,
                    },
                ));
            }
            for some in requests.chunks(200) {
                ask(&mut self.admins[at], some, &|_| 0);
            }
        }
        verdict
    }
}

/// Children's paths from the replies to three reads of each path.
fn below(paths: &[String], heard: &[Heard]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, reply) in paths.iter().zip(heard.iter().step_by(3)) {
        let Heard::Reply { err: 0, body, .. } = reply else {
            continue;
        };
        let names = crate::client::Reader::new(body).strings();
        let base = if path == "/" { "" } else { path };
        found.extend(names.into_iter().map(|name| format!("{base}/{name}")));
    }
    found.sort();
    found
}

/// A super user of one server.
fn admin(address: SocketAddr) -> Link {
    let hello = Hello {
        timeout_ms: i32::MAX,
        ..Hello::default()
    };
    let (mut link, welcome) = Link::greet(address, &hello);
    assert!(welcome.is_some(), "a super user is not let in");
    let auth = Request::Auth {
        scheme: Some("digest".into()),
        data: Some(SUPER.to_vec()),
    };
    let heard = ask(&mut link, &[(-4, auth)], &|_| 0);
    assert!(
        matches!(heard[..], [Heard::Reply { err: 0, .. }]),
        "no super user: {heard:?}"
    );
    link
}

/// Sends and hears as many replies.
fn ask(link: &mut Link, requests: &[(i32, Request)], since: &dyn Fn(Since) -> i64) -> Vec<Heard> {
    link.send(&frames(requests, since));
    listen(link, requests)
}

/// What comes up to the last reply; and up to the end, where the last reply announces it.
fn listen(link: &mut Link, requests: &[(i32, Request)]) -> Vec<Heard> {
    let mut heard = Vec::new();
    let mut missing = requests.len();
    let last = requests.last().map(|(_, request)| request);
    while missing > 0 {
        let next = link.hear();
        let mut ends = matches!(next, Heard::Closed | Heard::Silence | Heard::Other(_));
        if let Heard::Reply { zxid, err, .. } = &next {
            missing -= 1;
            let closes = *err == code::AUTH_FAILED || (*err == code::UNIMPLEMENTED && *zxid == -1);
            let closing = last.is_some_and(|request| request.op() == op::CLOSE_SESSION);
            ends = missing == 0 && (closes || closing);
            if ends {
                heard.push(next);
                heard.push(link.hear());
                return heard;
            }
        }
        heard.push(next);
        if ends {
            break;
        }
    }
    heard
}

fn frames(requests: &[(i32, Request)], since: &dyn Fn(Since) -> i64) -> Vec<u8> {
    let frames = requests
        .iter()
        .map(|(xid, request)| frame(*xid, request, since));
    frames.collect::<Vec<_>>().concat()
}

fn frame(xid: i32, request: &Request, since: &dyn Fn(Since) -> i64) -> Vec<u8> {
    let body = Body::new().int(xid).int(request.op());
    body.raw(&request.record(since)).into_frame()
}

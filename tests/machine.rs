//! Runs the scripts in `tests/scripts` against the machine.
//!
//! A script is a list of commands, each followed by what it is expected to give in lines that start
//! with `->`. Lines that start with `#` are remarks. Scripts claim the rules of the protocol in a
//! form anyone can read; the numbers in them are those of the protocol facts, §16.
//! `REWRITE_SCRIPTS=1` writes what the machine gives into the scripts instead of comparing: read
//! the difference before believing it.
//!
//! Commands (words may be quoted, with `\u{…}` for characters; `N:` in front speaks for session N
//! instead of session 1):
//!
//! ```text
//! term N                                the next term begins
//! time MS                               the leader's clock from here on
//! session N [timeout=MS] [id=S:I]…      a session is created
//! attach N [timeout=MS] [id=S:I]…       it comes back; `password=wrong` is one
//! stale N                               its commands carry the generation before the present one
//! auth SCHEME ID                        the session's connection proves an identity
//! close / expire N [generation=G]       by the client / by the leader
//! create PATH [data=D] [flags=F] [op=create|create2|container|ttl] [ttl=MS] [acl=A,…|none|empty]
//! delete|set|setacl|check PATH [data=D] [version=V] [acl=A,…]
//! multi | multiread                     indented lines below are its operations
//! exists|get|ls|ls2|getacl|count PATH, ephemerals [PREFIX]
//! quorum yes|no                         whether the leader lets reconfigs through from here on
//! reconfig [joining=S,…] [leaving=N,…] [members=S,…] [from=E.C]
//! raw OPCODE                            a request with a body nobody understands
//! configure lines=S,… [expected=E.C]    the leader names the servers
//! ensemble                              the servers, and since when
//! setting NAME VALUE                    a replicated setting
//! clean NOW [never-used=MS] [limit=N]   what the leader would remove, and its removal
//! remove PATH [created=N] [mzxid=…]     a removal the leader decided earlier
//! totals                                counts of znodes, ephemerals, bytes, sessions
//! digest                                of the state, and what its image is
//! ```
//!
//! An ACL entry is `perms:scheme:id`. A result is the outcome, `@EPOCH.COUNTER` if there was a
//! transaction, and the changes in order. Of a Stat, fields that are 0 are left out. Every script
//! runs on two machines: the second is restored from an image of itself after every command, and
//! must not differ.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use prost::Message;
use zkraft::machine::{
    Attached, Caller, Change, CommandId, LogId, Machine, Outcome, Sink, op as ours,
};
use zkraft::proto::log;
use zkraft::wire::request::{Create, Reconfig};
use zkraft::wire::{
    Acl, Answer, ErrorCode, Id, Request, SessionId, Stat, SubAnswer, SubRequest, Zxid, op,
};

#[test]
fn scripts() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let rewrite = std::env::var_os("REWRITE_SCRIPTS").is_some();
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .expect("the directory of scripts is there")
        .map(|entry| entry.expect("an entry of the directory").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(
        files.len() >= 10,
        "the scripts are missing: found {files:?}"
    );
    let mut failures = String::new();
    for file in files {
        let script = std::fs::read_to_string(&file).expect("a script is text");
        let actual = run_script(&script);
        if rewrite {
            std::fs::write(&file, actual).expect("a script can be written");
        } else if actual != script {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            push_line(
                &mut failures,
                &format!("{name}: {}", first_difference(&script, &actual)),
            );
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

/// The script with what the machine really gives.
fn run_script(script: &str) -> String {
    let mut world = World::new();
    let mut out = String::new();
    let mut lines = script
        .lines()
        .filter(|line| !line.starts_with("->"))
        .peekable();
    while let Some(line) = lines.next() {
        push_line(&mut out, line);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut operations = Vec::new();
        while let Some(operation) = lines.next_if(|line| line.starts_with(' ')) {
            push_line(&mut out, operation);
            operations.push(operation);
        }
        for result in world.run(&Words::parse(line), &operations) {
            push_line(&mut out, &format!("-> {result}"));
        }
    }
    out
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

fn first_difference(expected: &str, actual: &str) -> String {
    let mut command = "";
    for (number, (expected, actual)) in expected.lines().zip(actual.lines()).enumerate() {
        if expected != actual {
            let line = number + 1;
            return format!("line {line}, {command:?}\n  expected {expected}\n  got      {actual}");
        }
        if !expected.starts_with("->") {
            command = expected;
        }
    }
    "results are missing at the end".to_owned()
}

/// The machine under test, its shadow, and what a script has said so far.
struct World {
    machine: Machine,
    /// Restored from its image after every entry.
    shadow: Machine,
    at: LogId,
    time_ms: i64,
    number: u64,
    /// The leader refuses reconfigs.
    no_quorum: bool,
    /// A session whose commands come through the connection before the present one.
    stale: Option<i64>,
}

/// What a machine told its sink.
#[derive(Debug, Default, PartialEq)]
struct Told {
    /// The outcome, with a line for each operation of a multi.
    outcome: Vec<String>,
    changes: Vec<String>,
}

impl Sink for Told {
    fn changed(&mut self, change: &Change<'_>) {
        assert!(self.outcome.is_empty(), "changes come before the outcome");
        self.changes
            .push(format!("{:?} {}", change.kind, change.path).to_lowercase());
    }

    fn done(&mut self, _: &Machine, _: CommandId, outcome: Outcome) {
        self.outcome = render_outcome(&outcome);
    }

    fn session_attached(&mut self, attached: &Attached) {
        assert!(self.outcome.is_empty() && attached.generation > 0);
    }

    fn session_closed(&mut self, session: SessionId) {
        self.changes.push(format!("closed {session}"));
    }
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            machine: Machine::new(),
            shadow: Machine::new(),
            at: LogId { term: 1, index: 0 },
            time_ms: 1000,
            number: 0,
            no_quorum: false,
            stale: None,
        };
        world.apply(&log::Entry::default());
        world
    }

    fn run(&mut self, words: &Words, operations: &[&str]) -> Vec<String> {
        let session = words.session;
        let number = |text: &str| text.parse::<i64>().expect("a number");
        match words.name.as_str() {
            "term" => {
                self.at.term = number(words.argument(0)) as u64;
                self.apply(&log::Entry::default())
            }
            "time" => {
                self.time_ms = number(words.argument(0));
                Vec::new()
            }
            "session" | "attach" => {
                let password = if words.get("password").is_some() {
                    vec![9; 16]
                } else {
                    vec![7; 16]
                };
                let timeout_ms = words.get("timeout").map_or(4000, number) as i32;
                let identities = words.identities();
                let (op, body) = if words.name == "session" {
                    let body = log::CreateSession {
                        timeout_ms,
                        password: password.into(),
                        identities,
                    };
                    (ours::CREATE_SESSION, body.encode_to_vec())
                } else {
                    let body = log::Attach {
                        timeout_ms,
                        password: password.into(),
                        identities,
                    };
                    (ours::ATTACH, body.encode_to_vec())
                };
                self.command(number(words.argument(0)), op, body.into())
            }
            "stale" => {
                self.stale = Some(number(words.argument(0)));
                Vec::new()
            }
            "quorum" => {
                self.no_quorum = words.argument(0) == "no";
                Vec::new()
            }
            "auth" => {
                let [scheme, id] = [0, 1].map(|at| words.argument(at).to_owned());
                let body = log::Identify {
                    identities: vec![log::Identity { scheme, id }],
                };
                self.command(session, ours::IDENTIFY, body.encode_to_vec().into())
            }
            "expire" => {
                let session = number(words.argument(0));
                let present = self.machine.session(SessionId(session));
                let present = present.map_or(0, |session| session.generation);
                let generation = words
                    .get("generation")
                    .map_or(present, |g| number(g) as u64);
                let op = ours::CLOSE_SESSION;
                self.internal(log::Command {
                    session,
                    generation,
                    op,
                    body: Bytes::new(),
                })
            }
            "setting" => {
                let name = words.argument(0).to_owned();
                let body = log::Set {
                    name,
                    value: number(words.argument(1)),
                };
                let body = body.encode_to_vec().into();
                self.internal(log::Command {
                    op: ours::SET,
                    body,
                    ..Default::default()
                })
            }
            "configure" => {
                let body = log::Configure {
                    text: words.get("lines").unwrap_or_default().replace(',', "\n"),
                    expected: words.get("expected").map_or(0, zxid),
                };
                let body = body.encode_to_vec().into();
                self.internal(log::Command {
                    op: ours::CONFIGURE,
                    body,
                    ..Default::default()
                })
            }
            "ensemble" => {
                let Some(ensemble) = self.machine.ensemble() else {
                    return vec!["none".to_owned()];
                };
                let version = format!("since {}", render_zxid(ensemble.version()));
                let members = ensemble.members().iter().map(|line| format!("  {line}"));
                [version].into_iter().chain(members).collect()
            }
            "clean" => {
                let never_used = words.get("never-used").map_or(0, number);
                let limit = words.get("limit").map_or(100, number) as usize;
                let now = number(words.argument(0));
                let (candidates, _) = self.machine.removable(0, now, never_used, limit);
                if candidates.is_empty() {
                    return vec!["nothing to remove".to_owned()];
                }
                candidates
                    .iter()
                    .flat_map(|candidate| self.remove(candidate))
                    .collect()
            }
            "remove" => {
                let path = words.argument(0).to_owned();
                let stat = self.machine.peek(&path).unwrap_or_default();
                let created = i64::from(stat.cversion + stat.num_children) / 2;
                self.remove(&log::Remove {
                    path,
                    czxid: words.get("czxid").map_or(stat.czxid.0, number),
                    mzxid: words.get("mzxid").map_or(stat.mzxid.0, number),
                    created: words.get("created").map_or(created, number),
                })
            }
            "raw" => self.command(
                session,
                number(words.argument(0)) as i32,
                Bytes::from_static(b"?"),
            ),
            "totals" => {
                let machine = &self.machine;
                vec![format!(
                    "znodes {} ephemerals {} bytes {} sessions {}",
                    machine.znode_count(),
                    machine.ephemeral_count(),
                    machine.data_bytes(),
                    machine.session_count()
                )]
            }
            "digest" => {
                let chunks: Vec<Bytes> = self.machine.image().chunks().collect();
                let bytes: usize = chunks.iter().map(Bytes::len).sum();
                let crc = chunks
                    .iter()
                    .fold(0, |crc, chunk| crc32c::crc32c_append(crc, chunk));
                let digest = self.machine.digest();
                vec![format!(
                    "{digest:016x}, image of {bytes} bytes with CRC-32C {crc:08x}"
                )]
            }
            _ => self.request(session, &words.request(operations)),
        }
    }

    /// Sends a client's request through the log, or asks the machine if it is a read.
    fn request(&mut self, session: i64, request: &Request) -> Vec<String> {
        let is_read = matches!(
            request,
            Request::Exists { .. }
                | Request::GetData { .. }
                | Request::GetAcl { .. }
                | Request::GetChildren { .. }
                | Request::MultiRead(_)
                | Request::GetEphemerals { .. }
                | Request::GetAllChildrenNumber { .. }
        );
        if is_read {
            let session = SessionId(session);
            let identities = self.machine.identities(session).unwrap_or_default();
            let caller = Caller {
                session,
                identities,
            };
            let answer = self.machine.read(request, &caller);
            assert_eq!(answer, self.shadow.read(request, &caller));
            return render_reply(&answer);
        }
        let mut body = BytesMut::new();
        request.encode(&mut body);
        self.command(session, request.opcode(), body.freeze())
    }

    fn command(&mut self, session: i64, op: i32, body: Bytes) -> Vec<String> {
        let generation = self.machine.session(SessionId(session));
        let mut generation = generation.map_or(0, |session| session.generation);
        if self.stale == Some(session) {
            generation -= 1;
        }
        self.number += 1;
        let batch = log::Batch {
            origin: Some(log::Origin {
                server: 1,
                disk: 1,
                incarnation: 1,
            }),
            first: self.number,
            commands: vec![log::Command {
                session,
                generation,
                op,
                body,
            }],
        };
        let batches = vec![batch];
        self.apply(&log::Entry {
            time_ms: self.time_ms,
            batches,
            internal: Vec::new(),
            change: None,
            no_quorum: self.no_quorum,
        })
    }

    fn remove(&mut self, candidate: &log::Remove) -> Vec<String> {
        let body = candidate.encode_to_vec().into();
        self.internal(log::Command {
            op: ours::REMOVE,
            body,
            ..Default::default()
        })
    }

    fn internal(&mut self, command: log::Command) -> Vec<String> {
        let internal = vec![command];
        self.apply(&log::Entry {
            time_ms: self.time_ms,
            batches: Vec::new(),
            internal,
            change: None,
            no_quorum: false,
        })
    }

    /// Applies an entry to both machines and renders what they told.
    fn apply(&mut self, entry: &log::Entry) -> Vec<String> {
        self.at.index += 1;
        let before = self.machine.zxid();
        let (mut told, mut echo) = (Told::default(), Told::default());
        self.machine.apply(self.at, entry, &mut told);
        self.shadow.apply(self.at, entry, &mut echo);
        assert_eq!(told, echo, "the restored machine differs");
        self.machine.audit();
        let image: Vec<Bytes> = self.machine.image().chunks().collect();
        assert_eq!(image, self.shadow.image().chunks().collect::<Vec<_>>());
        let chunks = image.into_iter().map(Ok::<_, std::convert::Infallible>);
        self.shadow = Machine::restore(chunks).expect("an image can be restored");
        self.shadow.audit();

        let mut lines = told.outcome;
        if lines.is_empty() {
            lines.push("applied".to_owned());
        }
        if self.machine.zxid() != before {
            lines[0] += &format!(" @{}", render_zxid(self.machine.zxid()));
        }
        for change in told.changes {
            lines[0] += &format!(", {change}");
        }
        lines
    }
}

/// A command line taken apart.
struct Words {
    session: i64,
    name: String,
    arguments: Vec<String>,
    options: Vec<(String, String)>,
}

impl Words {
    fn parse(line: &str) -> Self {
        let mut words = split(line);
        let mut session = 1;
        if let Some(number) = words[0]
            .strip_suffix(':')
            .and_then(|number| number.parse().ok())
        {
            session = number;
            words.remove(0);
        }
        let name = words.remove(0);
        let mut arguments = Vec::new();
        let mut options = Vec::new();
        for word in words {
            match word.split_once('=') {
                Some((key, value)) if !key.starts_with('/') && !key.is_empty() => {
                    options.push((key.to_owned(), value.to_owned()));
                }
                _ => arguments.push(word),
            }
        }
        Self {
            session,
            name,
            arguments,
            options,
        }
    }

    fn argument(&self, at: usize) -> &str {
        let argument = self.arguments.get(at);
        argument.unwrap_or_else(|| panic!("{} has too few arguments", self.name))
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.options
            .iter()
            .find(|(known, _)| known == key)
            .map(|(_, value)| value.as_str())
    }

    fn identities(&self) -> Vec<log::Identity> {
        let ids = self.options.iter().filter(|(key, _)| key == "id");
        ids.map(|(_, value)| {
            let (scheme, id) = value.split_once(':').expect("scheme:id");
            log::Identity {
                scheme: scheme.into(),
                id: id.into(),
            }
        })
        .collect()
    }

    fn version(&self) -> i32 {
        self.get("version")
            .map_or(-1, |version| version.parse().expect("a version"))
    }

    /// `null` is null, nothing is empty.
    fn data(&self) -> Option<Bytes> {
        let data = self.get("data").unwrap_or_default();
        (data != "null").then(|| Bytes::copy_from_slice(data.as_bytes()))
    }

    fn acl(&self) -> Option<Vec<Acl>> {
        let entry = |text: &str| {
            let mut parts = text.splitn(3, ':');
            let mut part = || parts.next().expect("perms:scheme:id");
            let perms = part().parse().expect("permissions");
            Acl {
                perms,
                id: Id::new(part(), part()),
            }
        };
        match self.get("acl") {
            None => Some(vec![Acl::open()]),
            Some("none") => None,
            Some("empty") => Some(Vec::new()),
            Some(list) => Some(list.split(',').map(entry).collect()),
        }
    }

    fn create(&self) -> Create {
        let opcode = match self.get("op") {
            None | Some("create") => op::CREATE,
            Some("create2") => op::CREATE2,
            Some("container") => op::CREATE_CONTAINER,
            Some("ttl") => op::CREATE_TTL,
            Some(other) => panic!("no such kind of create: {other}"),
        };
        let ttl = self.get("ttl").map(|ttl| ttl.parse().expect("a lifetime"));
        Create {
            opcode,
            path: self.argument(0).into(),
            data: self.data(),
            acl: self.acl(),
            flags: self
                .get("flags")
                .map_or(0, |flags| flags.parse().expect("flags")),
            ttl: (opcode == op::CREATE_TTL).then(|| ttl.unwrap_or(-1)),
        }
    }

    fn request(&self, operations: &[&str]) -> Request {
        let path = || self.argument(0).into();
        let (version, watch) = (self.version(), false);
        let subs = || {
            operations
                .iter()
                .map(|line| Self::parse(line.trim()).operation())
                .collect()
        };
        match self.name.as_str() {
            "create" => Request::Create(self.create()),
            "delete" => Request::Delete {
                path: path(),
                version,
            },
            "set" => Request::SetData {
                path: path(),
                data: self.data(),
                version,
            },
            "setacl" => Request::SetAcl {
                path: path(),
                acl: self.acl(),
                version,
            },
            "multi" => Request::Multi(subs()),
            "multiread" => Request::MultiRead(subs()),
            "exists" => Request::Exists {
                path: path(),
                watch,
            },
            "get" => Request::GetData {
                path: path(),
                watch,
            },
            "ls" => Request::GetChildren {
                path: path(),
                watch,
                with_stat: false,
            },
            "ls2" => Request::GetChildren {
                path: path(),
                watch,
                with_stat: true,
            },
            "getacl" => Request::GetAcl { path: path() },
            "count" => Request::GetAllChildrenNumber { path: path() },
            "ephemerals" => Request::GetEphemerals {
                prefix: self.arguments.first().map(|prefix| prefix.as_str().into()),
            },
            "reconfig" => Request::Reconfig(Reconfig {
                joining: self.get("joining").map(Into::into),
                leaving: self.get("leaving").map(Into::into),
                members: self.get("members").map(Into::into),
                version: self.get("from").map_or(-1, zxid),
            }),
            "close" => Request::CloseSession,
            other => panic!("no such command: {other}"),
        }
    }

    fn operation(&self) -> SubRequest {
        let path = self.argument(0).into();
        let version = self.version();
        match self.name.as_str() {
            "create" => SubRequest::Create(self.create()),
            "delete" => SubRequest::Delete { path, version },
            "set" => SubRequest::SetData {
                path,
                data: self.data(),
                version,
            },
            "check" => SubRequest::Check { path, version },
            "get" => SubRequest::GetData { path },
            "ls" => SubRequest::GetChildren { path },
            other => panic!("no such operation: {other}"),
        }
    }
}

/// Words of a line; quotes keep spaces, and `\u{…}` inside them stands for a character.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut rest = line.chars();
    while let Some(character) = rest.next() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => {
                let code: String = rest.by_ref().skip(2).take_while(|c| *c != '}').collect();
                let code = u32::from_str_radix(&code, 16).expect("\\u{…}");
                word.get_or_insert_default()
                    .push(char::from_u32(code).expect("a character"));
            }
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

fn render_outcome(outcome: &Outcome) -> Vec<String> {
    vec![match outcome {
        Outcome::Reply(reply) => return render_reply(reply),
        Outcome::Attached(attached) => format!(
            "attached generation={} timeout={}{}",
            attached.generation,
            attached.timeout_ms,
            if attached.created { " new" } else { "" }
        ),
        Outcome::Refused => "refused".into(),
        Outcome::Moved => "moved".into(),
    }]
}

fn render_reply(reply: &Result<Answer, ErrorCode>) -> Vec<String> {
    vec![match reply {
        Err(code) => render_error(*code),
        Ok(Answer::Empty) => "ok".into(),
        Ok(Answer::Path(path)) => format!("ok {path:?}"),
        Ok(Answer::PathStat(path, stat)) => format!("ok {path:?} {}", render_stat(stat)),
        Ok(Answer::Stat(stat)) => format!("ok {}", render_stat(stat)),
        Ok(Answer::Data(data, stat)) => format!("ok {} {}", render_data(data), render_stat(stat)),
        Ok(Answer::Children(names)) => format!("ok {names:?}"),
        Ok(Answer::ChildrenStat(names, stat)) => format!("ok {names:?} {}", render_stat(stat)),
        Ok(Answer::Acl(list, stat)) => {
            let entry = |acl: &Acl| format!("{}:{}:{}", acl.perms, acl.id.scheme, acl.id.id);
            let list: Vec<_> = list.iter().map(entry).collect();
            format!("ok {} aversion={}", list.join(","), stat.aversion)
        }
        Ok(Answer::Number(number)) => format!("ok {number}"),
        Ok(Answer::Multi(answers)) => {
            let entries = answers
                .iter()
                .map(|answer| format!("  {}", render_sub_answer(answer)));
            return ["ok".to_owned()].into_iter().chain(entries).collect();
        }
        Ok(other) => panic!("the machine does not answer {other:?}"),
    }]
}

fn render_sub_answer(answer: &SubAnswer) -> String {
    match answer {
        SubAnswer::Create(path) => format!("create {path:?}"),
        SubAnswer::Create2(path, stat) => format!("create2 {path:?} {}", render_stat(stat)),
        SubAnswer::Delete => "delete".into(),
        SubAnswer::SetData(stat) => format!("set {}", render_stat(stat)),
        SubAnswer::Check => "check".into(),
        SubAnswer::GetData(data, stat) => {
            format!("get {} {}", render_data(data), render_stat(stat))
        }
        SubAnswer::GetChildren(names) => format!("ls {names:?}"),
        SubAnswer::Error(None) => "error 0".into(),
        SubAnswer::Error(Some(code)) => format!("error {}", render_error(*code)),
    }
}

fn render_error(code: ErrorCode) -> String {
    format!("{code:?} {}", code.number())
}

fn render_data(data: &Option<Bytes>) -> String {
    match data {
        None => "null".into(),
        Some(data) => format!("{:?}", String::from_utf8_lossy(data)),
    }
}

/// `EPOCH.COUNTER`, or a plain number.
fn zxid(text: &str) -> i64 {
    let number = |text: &str| text.parse::<i64>().expect("a number");
    match text.split_once('.') {
        Some((epoch, counter)) => Zxid::new(number(epoch) as u32, number(counter) as u32).0,
        None => number(text),
    }
}

fn render_zxid(zxid: Zxid) -> String {
    format!("{}.{}", zxid.epoch(), zxid.counter())
}

/// The fields that differ from those of an untouched empty znode; zxids and times always.
fn render_stat(stat: &Stat) -> String {
    let mut out = format!(
        "c={} m={} p={} ctime={} mtime={}",
        render_zxid(stat.czxid),
        render_zxid(stat.mzxid),
        render_zxid(stat.pzxid),
        stat.ctime,
        stat.mtime
    );
    let fields = [
        ("version", stat.version.into()),
        ("cversion", stat.cversion.into()),
        ("aversion", stat.aversion.into()),
        ("owner", stat.ephemeral_owner),
        ("bytes", stat.data_length.into()),
        ("children", stat.num_children.into()),
    ];
    for (name, value) in fields {
        if value != 0 {
            out += &format!(" {name}={value}");
        }
    }
    out
}

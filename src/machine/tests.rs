//! The machine as its callers see it: sessions, streams, zxids, images.

use bytes::BytesMut;
use prost::Message;

use super::*;
use crate::wire::Request;
use crate::wire::request::Create;

/// Writes down what it is told.
#[derive(Default)]
struct Journal {
    lines: Vec<String>,
    outcomes: Vec<Outcome>,
}

impl Sink for Journal {
    fn changed(&mut self, change: &Change<'_>) {
        self.lines
            .push(format!("{:?} {}", change.kind, change.path));
    }

    fn done(&mut self, _: &Machine, command: CommandId, outcome: Outcome) {
        self.lines.push(format!("done {}", command.number));
        self.outcomes.push(outcome);
    }

    fn session_attached(&mut self, attached: &Attached) {
        self.lines.push(format!("attached {}", attached.session));
    }

    fn session_closed(&mut self, session: SessionId) {
        self.lines.push(format!("closed {session}"));
    }
}

/// A machine with one server writing to it.
struct Rig {
    machine: Machine,
    at: LogId,
    number: u64,
    incarnation: u64,
}

const PASSWORD: [u8; 16] = [7; 16];

impl Rig {
    /// In term 1, with session 1 attached.
    fn new() -> Self {
        let at = LogId { term: 1, index: 0 };
        let mut rig = Self {
            machine: Machine::new(),
            at,
            number: 0,
            incarnation: 1,
        };
        rig.entry(log::Entry::default());
        rig.run(vec![create_session(1)]);
        rig
    }

    fn entry(&mut self, entry: log::Entry) -> Journal {
        self.at.index += 1;
        let mut journal = Journal::default();
        self.machine.apply(self.at, &entry, &mut journal);
        assert_eq!(self.machine.digest(), self.machine.recompute_digest());
        journal
    }

    fn batch(&mut self, first: u64, commands: Vec<log::Command>) -> Journal {
        let origin = log::Origin {
            server: 1,
            disk: 9,
            incarnation: self.incarnation,
        };
        let batch = log::Batch {
            origin: Some(origin),
            first,
            commands,
        };
        let time_ms = 1000 * (self.at.index as i64 + 1);
        self.entry(log::Entry {
            time_ms,
            batches: vec![batch],
            internal: Vec::new(),
        })
    }

    fn run(&mut self, commands: Vec<log::Command>) -> Journal {
        let first = self.number + 1;
        self.number += commands.len() as u64;
        self.batch(first, commands)
    }

    fn internal(&mut self, command: log::Command) -> Journal {
        self.entry(log::Entry {
            time_ms: 1,
            batches: Vec::new(),
            internal: vec![command],
        })
    }

    /// Runs one request of session 1 and returns its outcome.
    fn ask(&mut self, request: &Request) -> Outcome {
        self.run(vec![client(1, 1, request)]).outcomes.remove(0)
    }
}

fn client(session: i64, generation: u64, request: &Request) -> log::Command {
    let mut body = BytesMut::new();
    request.encode(&mut body);
    log::Command {
        session,
        generation,
        op: request.opcode(),
        body: body.freeze(),
    }
}

fn ours(session: i64, generation: u64, op: i32, body: &impl Message) -> log::Command {
    log::Command {
        session,
        generation,
        op,
        body: body.encode_to_vec().into(),
    }
}

fn create_session(session: i64) -> log::Command {
    let body = log::CreateSession {
        timeout_ms: 4000,
        password: PASSWORD.to_vec().into(),
        identities: vec![log::Identity {
            scheme: "ip".into(),
            id: "127.0.0.1".into(),
        }],
    };
    ours(session, 0, op::CREATE_SESSION, &body)
}

fn attach(session: i64, password: [u8; 16]) -> log::Command {
    let password = password.to_vec().into();
    let body = log::Attach {
        timeout_ms: 9000,
        password,
        identities: Vec::new(),
    };
    ours(session, 0, op::ATTACH, &body)
}

fn create(path: &str, flags: i32) -> Request {
    Request::Create(Create {
        opcode: crate::wire::op::CREATE,
        path: path.into(),
        data: Some("data".into()),
        acl: Some(vec![Acl::open()]),
        flags,
        ttl: None,
    })
}

fn created(path: &str) -> Outcome {
    Outcome::Reply(Ok(Answer::Path(path.into())))
}

fn failed(code: ErrorCode) -> Outcome {
    Outcome::Reply(Err(code))
}

#[test]
fn s95_each_term_begins_an_epoch() {
    let mut rig = Rig::new();
    assert_eq!(rig.machine.zxid(), Zxid::new(1, 1));
    rig.at.term = 2;
    rig.entry(log::Entry::default());
    assert_eq!(rig.machine.zxid(), Zxid::new(2, 0));
    rig.ask(&create("/a", 0));
    assert_eq!(rig.machine.zxid(), Zxid::new(2, 1));
    rig.at.term = 9;
    rig.entry(log::Entry::default());
    assert_eq!(rig.machine.zxid(), Zxid::new(9, 0));
}

#[test]
fn a_full_counter_moves_the_epoch() {
    let mut rig = Rig::new();
    rig.machine.zxid = Zxid::new(1, 0xffff_fffd);
    rig.ask(&create("/a", 0));
    assert_eq!(rig.machine.zxid(), Zxid::new(1, 0xffff_fffe));
    rig.ask(&create("/b", 0));
    assert_eq!(rig.machine.zxid(), Zxid::new(2, 1));
    rig.at.term = 2;
    rig.entry(log::Entry::default());
    assert_eq!(rig.machine.zxid(), Zxid::new(3, 0));
}

#[test]
fn a_failing_write_has_a_zxid_and_a_refused_command_has_none() {
    let mut rig = Rig::new();
    let zxid = |rig: &Rig| rig.machine.zxid().counter();
    assert_eq!(rig.ask(&create("/no/where", 0)), failed(ErrorCode::NoNode));
    assert_eq!(zxid(&rig), 2);
    let garbage = log::Command {
        session: 1,
        generation: 1,
        op: 1,
        body: "x".into(),
    };
    let unknown = client(5, 1, &create("/a", 0));
    let stale = client(1, 0, &create("/a", 0));
    let journal = rig.run(vec![
        garbage,
        unknown,
        stale,
        create_session(1),
        attach(5, PASSWORD),
    ]);
    let expected = [
        failed(ErrorCode::MarshallingError),
        failed(ErrorCode::SessionExpired),
        Outcome::Moved,
        Outcome::Refused,
        Outcome::Refused,
    ];
    assert_eq!(journal.outcomes, expected);
    assert_eq!(zxid(&rig), 2);
}

#[test]
fn a_command_is_applied_once() {
    let mut rig = Rig::new();
    let command = || client(1, 1, &create("/s", 2));
    assert_eq!(
        rig.batch(2, vec![command()]).outcomes,
        [created("/s0000000000")]
    );
    assert_eq!(rig.batch(2, vec![command()]).outcomes, []);
    assert_eq!(
        rig.batch(1, vec![command(), command(), command()]).lines,
        ["Created /s0000000001", "done 3"]
    );
    assert_eq!(rig.batch(5, vec![command()]).outcomes, [], "a gap");
    rig.incarnation = 2;
    assert_eq!(
        rig.batch(1, vec![command()]).outcomes,
        [created("/s0000000002")]
    );
    rig.incarnation = 1;
    assert_eq!(
        rig.batch(4, vec![command()]).outcomes,
        [],
        "an older incarnation"
    );
}

#[test]
fn an_attachment_fences_the_one_before() {
    let mut rig = Rig::new();
    let wrong = rig.run(vec![attach(1, [8; 16])]);
    assert_eq!(wrong.outcomes, [Outcome::Refused]);
    assert_eq!(rig.machine.session(SessionId(1)).unwrap().generation, 1);
    let zxid = rig.machine.zxid();
    let right = rig.run(vec![attach(1, PASSWORD)]);
    let attached = Attached {
        session: SessionId(1),
        generation: 2,
        timeout_ms: 9000,
        password: PASSWORD,
        created: false,
    };
    assert_eq!(right.outcomes, [Outcome::Attached(attached)]);
    assert_eq!(right.lines, ["attached 0x1", "done 3"]);
    assert_eq!(rig.machine.zxid(), zxid);
    assert_eq!(rig.ask(&create("/a", 0)), Outcome::Moved);
    let command = client(1, 2, &create("/a", 0));
    assert_eq!(rig.run(vec![command]).outcomes, [created("/a")]);
}

#[test]
fn s83_a_closed_session_takes_its_ephemerals_along() {
    let mut rig = Rig::new();
    rig.ask(&create("/p", 0));
    for path in ["/p/b", "/p/a", "/e"] {
        rig.ask(&create(path, 1));
    }
    assert_eq!(rig.machine.ephemerals(SessionId(1)), ["/e", "/p/a", "/p/b"]);
    let zxid = rig.machine.zxid();
    let stale = log::Command {
        session: 1,
        generation: 0,
        op: op::CLOSE_SESSION,
        ..<_>::default()
    };
    assert_eq!(rig.internal(stale.clone()).lines, Vec::<String>::new());
    let present = log::Command {
        generation: 1,
        ..stale
    };
    let journal = rig.internal(present.clone());
    assert_eq!(
        journal.lines,
        ["Deleted /e", "Deleted /p/a", "Deleted /p/b", "closed 0x1"]
    );
    assert_eq!(rig.machine.zxid().0, zxid.0 + 1);
    assert_eq!(rig.machine.peek("/p").unwrap().pzxid, rig.machine.zxid());
    assert_eq!(rig.machine.ephemeral_count(), 0);
    assert_eq!(rig.internal(present).lines, Vec::<String>::new());
    assert_eq!(rig.machine.session_count(), 0);
}

#[test]
fn s62_an_empty_multi_has_a_zxid() {
    let mut rig = Rig::new();
    let zxid = rig.machine.zxid();
    assert_eq!(
        rig.ask(&Request::Multi(Vec::new())),
        Outcome::Reply(Ok(Answer::Multi(Vec::new())))
    );
    assert_eq!(rig.machine.zxid().0, zxid.0 + 1);
}

#[test]
fn s35_s39_s40_the_state_before_the_first_entry() {
    let machine = Machine::new();
    let root = machine.peek("/").unwrap();
    assert_eq!(
        (root.cversion, root.num_children, root.pzxid),
        (-1, 1, Zxid(0))
    );
    let zookeeper = machine.peek("/zookeeper").unwrap();
    assert_eq!((zookeeper.cversion, zookeeper.num_children), (-2, 2));
    assert_eq!(machine.peek("/zookeeper/config").unwrap().aversion, -1);
    assert_eq!(machine.acl("/zookeeper/config").unwrap()[0].perms, 1);
    assert_eq!((machine.znode_count(), machine.data_bytes()), (5, 44));
    assert_eq!(machine.digest(), machine.recompute_digest());
}

#[test]
fn an_image_is_the_machine() {
    let mut rig = Rig::new();
    rig.ask(&create("/a", 0));
    rig.ask(&create("/a/e", 1));
    rig.ask(&Request::Delete {
        path: "/a/e".into(),
        version: -1,
    });
    let image = rig.machine.image();
    let chunks: Vec<_> = image.chunks().collect();
    rig.ask(&create("/later", 0));
    assert_eq!(
        chunks,
        image.chunks().collect::<Vec<_>>(),
        "later writes do not show"
    );
    let restored = Machine::restore(chunks.iter().cloned().map(Ok::<_, ()>)).unwrap();
    assert_eq!(restored.digest(), image.digest());
    assert_eq!(chunks, restored.image().chunks().collect::<Vec<_>>());

    for missing in 0..chunks.len() {
        let kept = chunks.iter().enumerate().filter(|(at, _)| *at != missing);
        let kept = kept.map(|(_, chunk)| Ok::<_, ()>(chunk.clone()));
        assert!(Machine::restore(kept).is_err(), "without chunk {missing}");
    }
}

//! The machine as its callers see it: sessions, streams, zxids, images.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::wire::request::Create;
use crate::wire::{Request, SubAnswer, SubRequest};

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

    /// Does without a look at everything afterwards.
    fn run_unchecked(&mut self, commands: Vec<log::Command>) {
        let origin = log::Origin {
            server: 1,
            disk: 9,
            incarnation: self.incarnation,
        };
        let first = self.number + 1;
        self.number += commands.len() as u64;
        self.at.index += 1;
        let batches = vec![log::Batch {
            origin: Some(origin),
            first,
            commands,
        }];
        let entry = log::Entry {
            time_ms: 1,
            batches,
            internal: Vec::new(),
            change: None,
            no_quorum: false,
        };
        self.machine.apply(self.at, &entry, &mut Journal::default());
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
            change: None,
            no_quorum: false,
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
            change: None,
            no_quorum: false,
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

fn configure(servers: u32, expected: i64) -> log::Command {
    let lines = (1..=servers).map(|id| format!("server.{id}=zk{id}:2888:3888;2181\n"));
    let text = lines.collect();
    ours(0, 0, op::CONFIGURE, &log::Configure { text, expected })
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
fn an_image_of_a_server_alone_has_the_format_of_earlier_builds() {
    let mut rig = Rig::new();
    let format = |machine: &Machine| machine.image().chunks().next().unwrap()[4..8].to_vec();
    assert_eq!(format(&rig.machine), [0, 0, 0, 1]);
    rig.internal(configure(3, 0));
    assert_eq!(format(&rig.machine), [0, 0, 0, 2]);
    let image = rig.machine.image();
    let restored = Machine::restore(image.chunks().map(Ok::<_, ()>)).unwrap();
    assert_eq!(restored.ensemble(), rig.machine.ensemble());
    assert_eq!(restored.digest(), rig.machine.digest());
}

#[test]
fn the_feature_level_is_1_at_first_and_never_goes_down() {
    let mut rig = Rig::new();
    let set = |value| {
        let name = LEVEL_SETTING.into();
        ours(0, 0, op::SET, &log::Set { name, value })
    };
    assert_eq!(rig.machine.level(), 1);
    let before = rig.machine.settings_version();
    for lower in [1, 0, -1] {
        rig.internal(set(lower));
        assert_eq!(rig.machine.settings_version(), before);
    }
    rig.internal(set(3));
    assert_eq!(rig.machine.level(), 3);
    let raised = rig.machine.settings_version();
    rig.internal(set(2));
    assert_eq!(rig.machine.settings_version(), raised);
    let image = rig.machine.image();
    let restored = Machine::restore(image.chunks().map(Ok::<_, ()>)).unwrap();
    assert_eq!(restored.level(), 3);
}

#[test]
fn an_ensemble_counts_in_the_digest_even_where_nothing_shows_it() {
    let digest = |servers| {
        let mut rig = Rig::new();
        rig.internal(configure(servers, 0));
        rig.run(vec![ours(
            1,
            1,
            op::IDENTIFY,
            &log::Identify {
                identities: vec![log::Identity {
                    scheme: "super".into(),
                    id: String::new(),
                }],
            },
        )]);
        let outcome = rig.ask(&Request::SetData {
            path: path::CONFIG.into(),
            data: None,
            version: -1,
        });
        assert!(matches!(outcome, Outcome::Reply(Ok(_))));
        rig.machine.digest()
    };
    assert_ne!(digest(2), digest(3));
    assert_eq!(digest(3), digest(3));
}

#[test]
fn the_leader_names_the_servers_once_or_knowing_the_version() {
    let mut rig = Rig::new();
    let journal = rig.internal(configure(2, 0));
    assert_eq!(journal.lines, ["Data /zookeeper/config"]);
    let first = rig.machine.zxid();
    for stale in [0, first.0 - 1, -1] {
        assert_eq!(
            rig.internal(configure(3, stale)).lines,
            Vec::<String>::new()
        );
        assert_eq!(rig.machine.zxid(), first);
    }
    rig.internal(configure(3, first.0));
    let ensemble = rig.machine.ensemble().unwrap();
    assert_eq!(
        (ensemble.members().len(), ensemble.version().0),
        (3, first.0 + 1)
    );
    let garbage = log::Command {
        op: op::CONFIGURE,
        body: "?".into(),
        ..log::Command::default()
    };
    rig.internal(garbage);
    assert_eq!(rig.machine.zxid().0, first.0 + 1);
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

/// What is brought near for a batch changes nothing, whatever its commands say.
#[test]
fn a_batch_in_a_large_tree_is_its_commands_one_by_one() {
    let run = |batch: usize| {
        let mut rig = Rig::new();
        let many = (0..9_000).map(|n| client(1, 1, &create(&format!("/{n}"), 0)));
        rig.run_unchecked(many.collect());
        let paths = [
            "/7", "/7/x", "/none/x", "/", "", "x", "//", "/7/", "/é", "/8999",
        ];
        let requests = paths.iter().flat_map(|path| {
            let (path, version) = (Text::from(*path), -1);
            let data = Some(Bytes::from(vec![1; 300]));
            [
                create(&path, 0),
                Request::SetData {
                    path: path.clone(),
                    data,
                    version,
                },
                Request::Delete { path, version },
            ]
        });
        let mut commands: Vec<_> = requests.map(|request| client(1, 1, &request)).collect();
        for body in [
            &b""[..],
            b"\0\0",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x02\xff\xff",
        ] {
            commands.push(log::Command {
                session: 1,
                generation: 1,
                op: crate::wire::op::SET_DATA,
                body: body.into(),
            });
        }
        let firsts = (rig.number + 1..).step_by(batch);
        let batches = firsts.zip(commands.chunks(batch)).map(|(first, commands)| {
            let origin = log::Origin {
                server: 1,
                disk: 9,
                incarnation: 1,
            };
            log::Batch {
                origin: Some(origin),
                first,
                commands: commands.to_vec(),
            }
        });
        let journal = rig.entry(log::Entry {
            time_ms: 1,
            batches: batches.collect(),
            ..log::Entry::default()
        });
        let told = format!("{:?} {:?}", journal.lines, journal.outcomes);
        assert_eq!(journal.outcomes.len(), commands.len());
        (rig.machine.digest(), told)
    };
    let one_by_one = run(1);
    assert_eq!(run(NEAR_AT_ONCE + 3), one_by_one);
    assert_eq!(run(1_000), one_by_one);
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
fn a_command_of_a_session_that_is_not_in_the_state_says_who_does_it() {
    let local = |of: &[(&str, &str)], request: &Request| {
        let identities = of.iter().map(|(scheme, id)| log::Identity {
            scheme: (*scheme).into(),
            id: (*id).into(),
        });
        let command = client(77, LOCAL_GENERATION, request);
        let body = log::LocalWrite {
            identities: identities.collect(),
            body: command.body,
        };
        ours(77, LOCAL_GENERATION, command.op, &body)
    };
    let mut rig = Rig::new();
    let me = [("digest", "me:x")];
    let Request::Create(mut mine) = create("/mine", 0) else {
        unreachable!("it is one")
    };
    mine.acl = Some(vec![Acl {
        perms: crate::wire::perms::ALL,
        id: Id::new("auth", ""),
    }]);
    let mine = Request::Create(mine);
    let sessions = rig.machine.session_count();
    // As replicas did that did not know better.
    let journal = rig.run(vec![local(&me, &mine)]);
    assert_eq!(journal.outcomes, [failed(ErrorCode::SessionExpired)]);
    let name = LEVEL_SETTING.into();
    let value = LOCAL_SESSIONS.into();
    rig.internal(ours(0, 0, op::SET, &log::Set { name, value }));
    let journal = rig.run(vec![
        local(&[], &mine),
        local(&me, &mine),
        local(&me, &create("/mine/a", 0)),
        local(&[("digest", "you:x")], &create("/mine/b", 0)),
        local(&me, &create("/mine/e", 1)),
        client(77, LOCAL_GENERATION, &create("/mine/c", 0)),
    ]);
    let expected = [
        failed(ErrorCode::InvalidAcl),
        created("/mine"),
        created("/mine/a"),
        failed(ErrorCode::NoAuth),
        failed(ErrorCode::EphemeralOnLocalSession),
        failed(ErrorCode::MarshallingError),
    ];
    assert_eq!(journal.outcomes, expected);
    assert_eq!(rig.machine.session_count(), sessions);
    // What comes next is of a session as any other.
    assert_eq!(rig.ask(&create("/e", 1)), created("/e"));
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

#[test]
fn chunks_of_an_image_are_about_as_large_as_they_should_be() {
    fn is_send<T: Send + 'static>(_: &T) {}
    let mut rig = Rig::new();
    for number in 0..4000 {
        let mut request = create(&format!("/a{number}"), 0);
        if let Request::Create(create) = &mut request {
            create.data = Some(vec![1; if number == 2000 { 500_000 } else { 200 }].into());
        }
        rig.run_unchecked(vec![client(1, 1, &request)]);
    }
    let image = rig.machine.image();
    is_send(&image);
    let sizes: Vec<usize> = image.chunks().map(|chunk| chunk.len()).collect();
    let large = sizes.iter().filter(|size| **size > 256 * 1024).count();
    assert_eq!(large, 1, "only the chunk of the large znode: {sizes:?}");
    assert!(
        sizes.iter().sum::<usize>() / sizes.len() > 100_000,
        "{sizes:?}"
    );
}

/// Reads in steps to the end. How many there were, and the bytes of the answer.
fn walk(machine: &Machine, request: &Request) -> Result<(usize, Bytes), ErrorCode> {
    let caller = Caller {
        session: SessionId(1),
        identities: &[],
    };
    let Begun::Walk(mut walk) = machine.begin_large(request, &caller)? else {
        panic!("it is not answered at once");
    };
    let mut steps = 1;
    loop {
        if let Some(answer) = walk.step(NODES_AT_ONCE) {
            return Ok((steps, answer?.freeze()));
        }
        steps += 1;
    }
}

#[test]
fn a_list_is_large_by_the_length_of_its_names_too_and_has_an_end() {
    let mut rig = Rig::new();
    let session = SessionId(1);
    let list = |path: &str| Request::GetChildren {
        path: path.into(),
        watch: false,
        with_stat: false,
    };
    let ephemerals = Request::GetEphemerals { prefix: None };
    let name = |number: usize| format!("{number}{}", "n".repeat(30_000));
    rig.run(vec![client(1, 1, &create("/a", 0))]);
    let add = |rig: &mut Rig, numbers: std::ops::Range<usize>| {
        let path = |number| create(&format!("/a/{}", name(number)), 1);
        let commands = numbers.map(|number| client(1, 1, &path(number)));
        rig.run_unchecked(commands.collect());
    };
    add(&mut rig, 0..2);
    assert!(!rig.machine.is_large(&list("/a"), session));
    add(&mut rig, 2..34);
    assert!(rig.machine.is_large(&list("/a"), session));
    let (steps, names) = walk(&rig.machine, &list("/a")).unwrap();
    assert_eq!(steps, 1);
    assert_eq!(
        names.len(),
        4 + rig.machine.large_bytes(&list("/a"), session)
    );
    let caller = Caller {
        session,
        identities: &[],
    };
    let Ok(Answer::Children(whole)) = rig.machine.read(&list("/a"), &caller) else {
        panic!("they are listed");
    };
    assert_eq!(whole.len(), 34);
    assert!(walk(&rig.machine, &ephemerals).is_ok());
    add(&mut rig, 34..35);
    let too_long = Err(ErrorCode::BadArguments);
    assert_eq!(walk(&rig.machine, &list("/a")), too_long);
    assert_eq!(walk(&rig.machine, &ephemerals), too_long);
    assert_eq!(
        rig.machine.read(&list("/a"), &caller),
        Err(ErrorCode::BadArguments)
    );
    // What is derived is the same after a restart.
    let chunks: Vec<Bytes> = rig.machine.image().chunks().collect();
    let restored = Machine::restore(chunks.into_iter().map(Ok::<_, ()>)).unwrap();
    assert_eq!(walk(&restored, &list("/a")), too_long);
    let remove = Request::Delete {
        path: format!("/a/{}", name(0)).into(),
        version: -1,
    };
    rig.run(vec![client(1, 1, &remove)]);
    rig.run(vec![client(1, 1, &create("/a/b", 0))]);
    assert!(walk(&rig.machine, &list("/a")).is_ok());
}

#[test]
fn a_large_multi_read_shows_one_moment() {
    let mut rig = Rig::new();
    rig.run(vec![client(1, 1, &create("/a", 0))]);
    let add = |numbers: std::ops::Range<usize>| {
        let paths = numbers.map(|number| format!("/a/{number}"));
        let creates = paths.map(|path| client(1, 1, &create(&path, 0)));
        creates.collect::<Vec<_>>()
    };
    rig.run_unchecked(add(0..NODES_AT_ONCE + 100));
    let path = || Text::from("/a");
    let read = Request::MultiRead(vec![
        SubRequest::GetData { path: "/b".into() },
        SubRequest::GetData { path: path() },
        SubRequest::GetChildren { path: path() },
        SubRequest::GetChildren {
            path: "/a/1".into(),
        },
        SubRequest::GetChildren { path: path() },
        SubRequest::GetData { path: path() },
    ]);
    let caller = Caller {
        session: SessionId(1),
        identities: &[],
    };
    let expected = rig.machine.read(&read, &caller).unwrap();
    let Ok(Begun::Walk(mut walk)) = rig.machine.begin_large(&read, &caller) else {
        panic!("it is not answered at once");
    };
    let mut more = NODES_AT_ONCE + 100;
    let mut steps = 1;
    let seen = loop {
        if let Some(answer) = walk.step(NODES_AT_ONCE) {
            break Answer::Encoded(answer.unwrap().freeze());
        }
        steps += 1;
        rig.run_unchecked(add(more..more + 1));
        more += 1;
    };
    assert_eq!(steps, 3);
    let encoded = |answer: &Answer| {
        let header = crate::wire::ReplyHeader {
            xid: 1,
            zxid: Zxid(1),
            error: 0,
        };
        let mut out = BytesMut::new();
        crate::wire::response::encode_reply(header, answer, &mut out);
        out
    };
    assert!(encoded(&seen) == encoded(&expected));
}

/// Everything a client could see of the znodes, as lines.
fn dump(machine: &Machine) -> Vec<String> {
    let znodes = machine.tree.subtree(NodeId::ROOT);
    znodes
        .map(|(id, znode)| {
            let (path, acl) = (machine.tree.path(id), machine.tree.acl(id));
            format!(
                "{path} {:?} {:?} {acl:?} {:?}",
                znode.stat(),
                znode.data(),
                znode.kind()
            )
        })
        .collect()
}

fn arbitrary_path() -> impl Strategy<Value = Text> {
    let paths = [
        "/a",
        "/b",
        "/a/a",
        "/a/b",
        "/a/b/a",
        "/b/c",
        "/a/",
        "/zookeeper/quota/a",
        "/zookeeper/quota/a/zookeeper_limits",
        "/zookeeper/quota/a/zookeeper_stats",
        "/zookeeper/quota/a/b",
        "/zookeeper/quota/a/b/zookeeper_limits",
        "/zookeeper/quota/a/b/zookeeper_stats",
        "/",
    ];
    prop::sample::select(paths.to_vec()).prop_map(Text::from)
}

fn arbitrary_data() -> impl Strategy<Value = Option<Bytes>> {
    prop_oneof![
        Just(None),
        Just(Some(
            "count=1,bytes=5=;byteHardLimit=20;countHardLimit=3".into()
        )),
        prop::collection::vec(any::<u8>(), 0..30).prop_map(|data| Some(data.into())),
    ]
}

fn arbitrary_acl() -> impl Strategy<Value = Vec<Acl>> {
    let entry = |perms, scheme, id| Acl {
        perms,
        id: Id::new(scheme, id),
    };
    prop_oneof![
        6 => Just(vec![Acl::open()]),
        1 => Just(vec![entry(31, "auth", "")]),
        1 => (0..32).prop_map(move |perms| vec![entry(perms, "ip", "127.0.0.1")]),
        1 => (0..32).prop_map(move |perms| vec![entry(perms, "digest", "a:b"), Acl::open()]),
    ]
}

fn arbitrary_create() -> impl Strategy<Value = Create> {
    use crate::wire::op::{CREATE, CREATE_CONTAINER, CREATE_TTL, CREATE2};
    // Valid also inside a multi, where TTL flags go with their opcode only.
    let kinds = [
        (CREATE, 0),
        (CREATE, 1),
        (CREATE, 2),
        (CREATE2, 0),
        (CREATE2, 3),
    ];
    let more = [
        (CREATE_CONTAINER, 4),
        (CREATE_TTL, 5),
        (CREATE_TTL, 6),
        (CREATE, 4),
    ];
    let kind = prop::sample::select([&kinds[..], &more[..]].concat());
    (kind, arbitrary_path(), arbitrary_data(), arbitrary_acl()).prop_map(
        |((opcode, flags), path, data, acl)| Create {
            opcode,
            path,
            data,
            acl: Some(acl),
            flags,
            ttl: (opcode == CREATE_TTL).then_some(5),
        },
    )
}

fn arbitrary_operation() -> impl Strategy<Value = SubRequest> {
    prop_oneof![
        4 => arbitrary_create().prop_map(SubRequest::Create),
        2 => (arbitrary_path(), -1..1)
            .prop_map(|(path, version)| SubRequest::Delete { path, version }),
        2 => (arbitrary_path(), arbitrary_data(), -1..2)
            .prop_map(|(path, data, version)| SubRequest::SetData { path, data, version }),
        1 => (arbitrary_path(), -1..2)
            .prop_map(|(path, version)| SubRequest::Check { path, version }),
    ]
}

fn arbitrary_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        4 => arbitrary_operation().prop_map(|operation| match operation {
            SubRequest::Create(create) => Request::Create(create),
            SubRequest::Delete { path, version } => Request::Delete { path, version },
            SubRequest::SetData { path, data, version } => Request::SetData { path, data, version },
            other => Request::Multi(vec![other]),
        }),
        2 => prop::collection::vec(arbitrary_operation(), 0..8).prop_map(Request::Multi),
        1 => (arbitrary_path(), arbitrary_acl())
            .prop_map(|(path, acl)| Request::SetAcl { path, acl: Some(acl), version: -1 }),
    ]
}

fn arbitrary_command() -> impl Strategy<Value = log::Command> {
    let identity = || log::Identity {
        scheme: "digest".into(),
        id: "a:b".into(),
    };
    let identify = log::Identify {
        identities: vec![identity()],
    };
    let close = log::Command {
        op: op::CLOSE_SESSION,
        generation: 1,
        ..Default::default()
    };
    prop_oneof![
        60 => (1..4i64, prop::sample::select(vec![1, 1, 1, 1, 1, 2]), arbitrary_request())
            .prop_map(|(session, generation, request)| client(session, generation, &request)),
        2 => (1..4i64).prop_map(create_session),
        1 => (1..4i64).prop_map(|session| attach(session, PASSWORD)),
        1 => (1..4i64).prop_map(move |session| ours(session, 1, op::IDENTIFY, &identify)),
        1 => (1..4i64).prop_map(move |session| log::Command { session, ..close.clone() }),
    ]
}

fn arbitrary_internal() -> impl Strategy<Value = log::Command> {
    let set = |name: &str, value| {
        ours(
            0,
            0,
            op::SET,
            &log::Set {
                name: name.into(),
                value,
            },
        )
    };
    let close = |session, generation| log::Command {
        session,
        generation,
        op: op::CLOSE_SESSION,
        body: Bytes::new(),
    };
    prop_oneof![
        3 => (0..2i64).prop_map(move |value| set("enforce_quota", value)),
        1 => (0..3i64).prop_map(move |value| set("extended_types", value)),
        1 => (1..4i64, 1..3u64).prop_map(move |(session, generation)| close(session, generation)),
        2 => (1..4u32).prop_map(|servers| configure(servers, 0)),
    ]
}

fn arbitrary_entry() -> impl Strategy<Value = log::Entry> {
    let commands = prop::collection::vec(arbitrary_command(), 0..6);
    let batch = (1..3u32, 1..30u64, commands).prop_map(|(server, first, commands)| {
        let origin = log::Origin {
            server,
            disk: 1,
            incarnation: 1,
        };
        // Most of the time the test numbers batches itself; 1 is a duplicate.
        log::Batch {
            origin: Some(origin),
            first: u64::from(first != 1),
            commands,
        }
    });
    let internal = prop::option::weighted(0.2, arbitrary_internal());
    (0..100i64, prop::collection::vec(batch, 0..3), internal).prop_map(
        |(time_ms, batches, internal)| log::Entry {
            time_ms,
            batches,
            internal: internal.into_iter().collect(),
            change: None,
            no_quorum: false,
        },
    )
}

/// Sessions, and something for the others to be about.
fn first_entry() -> log::Entry {
    let paths = [
        "/a",
        "/b",
        "/a/b",
        "/zookeeper/quota/a",
        "/zookeeper/quota/a/b",
    ];
    let creations = paths.map(|path| client(1, 1, &create(path, 0)));
    let batch = log::Batch {
        origin: Some(log::Origin {
            server: 3,
            disk: 1,
            incarnation: 1,
        }),
        first: 1,
        commands: (1..4).map(create_session).chain(creations).collect(),
    };
    let set = log::Set {
        name: "extended_types".into(),
        value: 1,
    };
    let internal = vec![ours(0, 0, op::SET, &set)];
    log::Entry {
        time_ms: 0,
        batches: vec![batch],
        internal,
        change: None,
        no_quorum: false,
    }
}

/// Checks each outcome against the state before and after it.
#[derive(Default)]
struct Auditor {
    outcomes: Vec<(CommandId, Outcome)>,
    changes: usize,
    zxid: Zxid,
    before: Vec<String>,
}

impl Sink for Auditor {
    fn changed(&mut self, change: &Change<'_>) {
        self.changes += 1;
        assert!(change.zxid > self.zxid, "a change has a zxid of its own");
    }

    fn done(&mut self, machine: &Machine, command: CommandId, outcome: Outcome) {
        machine.audit();
        let is_failed_multi = matches!(&outcome, Outcome::Reply(Ok(Answer::Multi(answers)))
            if answers.iter().any(|answer| matches!(answer, SubAnswer::Error(_))));
        let is_error = matches!(&outcome, Outcome::Reply(Err(_)));
        let is_refused = matches!(&outcome, Outcome::Refused | Outcome::Moved);
        let after = dump(machine);
        if is_failed_multi || is_error || is_refused {
            assert_eq!(self.changes, 0, "{outcome:?}");
            assert_eq!(self.before, after, "{outcome:?}");
        }
        if is_refused {
            assert_eq!(self.zxid, machine.zxid());
        }
        assert!(machine.zxid() >= self.zxid);
        (self.changes, self.zxid, self.before) = (0, machine.zxid(), after);
        self.outcomes.push((command, outcome));
    }

    fn session_attached(&mut self, _: &Attached) {}

    fn session_closed(&mut self, session: SessionId) {
        self.changes = 0;
        assert!(session.0 > 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn an_image_and_the_rest_of_the_log_are_the_whole_log(
        entries in prop::collection::vec(arbitrary_entry(), 1..25),
        cut in any::<prop::sample::Index>(),
        term_at in any::<prop::sample::Index>(),
    ) {
        let mut machine = Machine::new();
        let mut shadow = Machine::new();
        let mut next = std::collections::HashMap::from([(1, 1), (2, 1)]);
        let first = first_entry();
        let at = LogId { term: 1, index: 1 };
        machine.apply(at, &first, &mut Journal::default());
        shadow.apply(at, &first, &mut Journal::default());
        let (cut, term_at) = (cut.index(entries.len()), term_at.index(entries.len()));
        for (index, mut entry) in entries.into_iter().enumerate() {
            for batch in &mut entry.batches {
                let server = batch.origin.as_ref().unwrap().server;
                let number = next.get_mut(&server).unwrap();
                if batch.first != 0 {
                    batch.first = *number;
                    *number += batch.commands.len() as u64;
                }
                for command in batch.commands.iter_mut().filter(|command| command.generation == 1) {
                    let present = machine.session(SessionId(command.session));
                    command.generation = present.map_or(1, |session| session.generation);
                }
            }
            let term = 1 + u64::from(index >= term_at);
            let [leader, at] = [2, 3].map(|step| LogId { term, index: 2 * index as u64 + step });
            machine.advance(leader);
            shadow.advance(leader);
            let auditor = |machine: &Machine| Auditor {
                zxid: machine.zxid(),
                before: dump(machine),
                ..Auditor::default()
            };
            let (mut told, mut echo) = (auditor(&machine), auditor(&shadow));
            machine.apply(at, &entry, &mut told);
            shadow.apply(at, &entry, &mut echo);
            prop_assert_eq!(told.outcomes, echo.outcomes);
            machine.audit();
            if index == cut {
                let chunks: Vec<_> = machine.image().chunks().map(Ok::<_, ()>).collect();
                shadow = Machine::restore(chunks.into_iter()).unwrap();
                shadow.audit();
            }
        }
        prop_assert_eq!(machine.digest(), shadow.digest());
        let bytes = |machine: &Machine| machine.image().chunks().collect::<Vec<_>>();
        prop_assert_eq!(bytes(&machine), bytes(&shadow));
    }

    #[test]
    fn a_damaged_image_is_refused_unless_it_says_the_same(
        entries in prop::collection::vec(arbitrary_entry(), 1..8),
        chunk in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
    ) {
        let mut machine = Machine::new();
        for (index, entry) in entries.iter().enumerate() {
            let at = LogId { term: 1, index: index as u64 + 1 };
            machine.apply(at, entry, &mut Journal::default());
        }
        let whole: Vec<Bytes> = machine.image().chunks().collect();
        let mut chunks = whole.clone();
        let chunk = chunk.index(chunks.len());
        let mut damaged = chunks[chunk].to_vec();
        let at = at.index(damaged.len());
        damaged[at] ^= 1 << bit;
        chunks[chunk] = damaged.into();
        // A boolean, for one, has many bytes that are true.
        if let Ok(restored) = Machine::restore(chunks.into_iter().map(Ok::<_, ()>)) {
            prop_assert_eq!(restored.image().chunks().collect::<Vec<_>>(), whole);
        }
    }
}

//! Multi and multiRead: decoded, run on a tree, and answered. A multi that fails changes nothing.

use bytes::{Bytes, BytesMut};
use zkraft::machine::{
    Attached, Caller, Change, CommandId, LogId, Machine, OriginId, Outcome, Sink, op as own,
};
use zkraft::proto::log;
use zkraft::wire::response::encode_reply;
use zkraft::wire::{Answer, Id, ReplyHeader, Request, SessionId, SubAnswer, SubRequest, op};

use prost::Message as _;

use super::input::{Input, run_of};
use super::request::{create, opcode, samples, survives};

const SESSION: SessionId = SessionId(1);
const ORIGIN: OriginId = OriginId {
    server: 1,
    disk: 7,
    incarnation: 1,
};

/// The tree: paths and flags. The root and `/zookeeper` are there besides.
const PATHS: &[(&str, i32)] = &[("/a", 0), ("/a/b", 0), ("/a/e", 1), ("/c", 4)];

/// Keeps what happened.
#[derive(Default)]
struct Log {
    outcomes: Vec<Outcome>,
    changes: usize,
}

impl Sink for Log {
    fn changed(&mut self, _: &Change<'_>) {
        self.changes += 1;
    }

    fn done(&mut self, _: &Machine, _: CommandId, outcome: Outcome) {
        self.outcomes.push(outcome);
    }

    fn session_attached(&mut self, _: &Attached) {}

    fn session_closed(&mut self, _: SessionId) {}
}

struct World {
    machine: Machine,
    /// Commands so far.
    number: u64,
}

impl World {
    fn apply(&mut self, op: i32, generation: u64, body: Bytes) -> (Outcome, usize) {
        self.number += 1;
        let command = log::Command {
            session: SESSION.0,
            generation,
            op,
            body,
        };
        let batch = log::Batch {
            origin: Some(log::Origin {
                server: ORIGIN.server,
                disk: ORIGIN.disk,
                incarnation: ORIGIN.incarnation,
            }),
            first: self.number,
            commands: vec![command],
        };
        let entry = log::Entry {
            time_ms: 1_700_000_000_000,
            batches: vec![batch],
            internal: Vec::new(),
            change: None,
            no_quorum: false,
        };
        let at = LogId {
            term: 1,
            index: self.number,
        };
        let mut log = Log::default();
        self.machine.apply(at, &entry, &mut log);
        assert_eq!(log.outcomes.len(), 1, "each command has one outcome");
        (log.outcomes.remove(0), log.changes)
    }

    /// What clients can see of the tree, at the paths of these operations and at all that were
    /// there before. (A znode that was made and taken back leaves a free slot.)
    fn visible(&self, operations: &[SubRequest]) -> impl PartialEq + std::fmt::Debug + use<> {
        let named = operations.iter().map(|operation| match operation {
            SubRequest::Create(create) => &*create.path,
            SubRequest::Delete { path, .. }
            | SubRequest::SetData { path, .. }
            | SubRequest::Check { path, .. }
            | SubRequest::GetData { path }
            | SubRequest::GetChildren { path } => path,
        });
        let all = PATHS.iter().map(|(path, _)| *path).chain(named);
        let stats: Vec<_> = all.map(|path| self.machine.peek(path)).collect();
        let machine = &self.machine;
        (
            stats,
            machine.znode_count(),
            machine.ephemeral_count(),
            machine.data_bytes(),
        )
    }
}

/// Input: whether to read; then operations, each an opcode and a run of bytes, or, after a 255,
/// the body as it is.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.byte();
    let kind_op = if kind & 1 == 0 {
        op::MULTI
    } else {
        op::MULTI_READ
    };
    let body = if kind & 2 == 0 {
        let mut body = BytesMut::new();
        while !input.is_empty() {
            header(opcode(&mut input), false, &mut body);
            body.extend_from_slice(input.run());
        }
        header(-1, true, &mut body);
        body.freeze()
    } else {
        Bytes::copy_from_slice(input.0)
    };
    let Some(request) = survives(kind_op, body.clone()) else {
        return;
    };
    let (mut world, generation) = world();
    let answer = match &request {
        Request::MultiRead(operations) => {
            let identities = [Id::new("ip", "127.0.0.1")];
            let caller = Caller {
                session: SESSION,
                identities: &identities,
            };
            let answer = world.machine.read(&request, &caller);
            if let Ok(Answer::Multi(answers)) = &answer {
                assert_eq!(answers.len(), operations.len());
            }
            answer
        }
        Request::Multi(operations) => {
            let before = world.visible(operations);
            let (outcome, changes) = world.apply(op::MULTI, generation, body);
            let Outcome::Reply(answer) = outcome else {
                panic!("{outcome:?} of a multi");
            };
            let has_failed = match &answer {
                Ok(Answer::Multi(answers)) => check(operations, answers),
                Ok(other) => panic!("{other:?} for a multi"),
                Err(_) => true,
            };
            if has_failed {
                assert_eq!(changes, 0, "a failed multi tells no one");
                assert_eq!(
                    world.visible(operations),
                    before,
                    "a failed multi changes nothing"
                );
            }
            world.machine.audit();
            answer
        }
        other => panic!("{other:?} from a multi"),
    };
    if let Ok(answer) = answer {
        let header = ReplyHeader {
            xid: 1,
            zxid: world.machine.zxid(),
            error: 0,
        };
        encode_reply(header, &answer, &mut BytesMut::new());
    }
}

/// Whether the multi failed. Then one operation says why, and the others that they were not done.
fn check(operations: &[SubRequest], answers: &[SubAnswer]) -> bool {
    assert_eq!(answers.len(), operations.len());
    let is_error = |answer: &SubAnswer| matches!(answer, SubAnswer::Error(_));
    let errors = answers.iter().filter(|answer| is_error(answer)).count();
    assert!(errors == 0 || errors == answers.len(), "{answers:?}");
    errors > 0
}

/// A tree with something in it, and a session with its generation.
fn world() -> (World, u64) {
    let mut world = World {
        machine: Machine::new(),
        number: 0,
    };
    let session = log::CreateSession {
        timeout_ms: 4_000,
        password: Bytes::from_static(&[9; 16]),
        identities: vec![log::Identity {
            scheme: "ip".to_owned(),
            id: "127.0.0.1".to_owned(),
        }],
    };
    let (outcome, _) = world.apply(own::CREATE_SESSION, 0, session.encode_to_vec().into());
    let Outcome::Attached(attached) = outcome else {
        panic!("{outcome:?} of a new session");
    };
    for name in ["extended_types", "enforce_quota"] {
        let body = log::Set {
            name: name.to_owned(),
            value: 1,
        };
        world.apply(own::SET, 0, body.encode_to_vec().into());
    }
    for &(path, flags) in PATHS {
        let opcode = if flags == 4 {
            op::CREATE_CONTAINER
        } else {
            op::CREATE
        };
        let mut body = BytesMut::new();
        Request::Create(create(opcode, path, flags)).encode(&mut body);
        world.apply(opcode, attached.generation, body.freeze());
    }
    assert_eq!(world.machine.ephemeral_count(), 1, "the tree is as meant");
    (world, attached.generation)
}

fn header(opcode: i32, done: bool, body: &mut BytesMut) {
    body.extend_from_slice(&opcode.to_be_bytes());
    body.extend_from_slice(&[u8::from(done)]);
    body.extend_from_slice(&(-1i32).to_be_bytes());
}

pub fn seeds() -> Vec<Vec<u8>> {
    let whole = samples().into_iter().filter_map(|request| {
        let kind = match request {
            Request::Multi(_) => 2,
            Request::MultiRead(_) => 3,
            _ => return None,
        };
        let mut body = BytesMut::new();
        request.encode(&mut body);
        Some([&[kind][..], &body].concat())
    });
    // One operation each, by the parts of the requests that look alike.
    let single = samples().into_iter().filter_map(|request| {
        let is_read = matches!(
            request,
            Request::GetData { .. }
                | Request::GetChildren {
                    with_stat: false,
                    ..
                }
        );
        let is_write = matches!(
            request,
            Request::Create(_) | Request::Delete { .. } | Request::SetData { .. }
        );
        (is_read || is_write).then(|| {
            let encoded = super::request::encoded(&request);
            [&[u8::from(is_read), encoded[0]][..], &run_of(&encoded[1..])].concat()
        })
    });
    whole.chain(single).collect()
}

//! The machine against the model, command by command, without a server around them.
//!
//! Faster and sharper than a whole run: every outcome, every change that watches would see, and the
//! whole state are compared, for commands that come in any order through streams that repeat
//! themselves, leave gaps and start again.

use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use zkraft::machine::{self, Attached, Change, ChangeKind, CommandId, LogId, Machine, Sink};
use zkraft::proto::log;
use zkraft::wire::{Answer, EventType, Id, Request, SessionId, SubAnswer, Zxid, op};

use crate::check::state::StateCheck;
use crate::mix::{Mix, SECRETS, digest_id, reconfig, server_lines};
use crate::model::{Change as ModelChange, Model, Outcome, own};
use crate::rng::Rng;

const ENTRIES: u64 = 120;

/// Writes down everything it is told.
#[derive(Debug, Default)]
struct Recorder {
    outcomes: Vec<machine::Outcome>,
    changes: Vec<ModelChange>,
    closed: Vec<SessionId>,
}

impl Sink for Recorder {
    fn changed(&mut self, change: &Change<'_>) {
        let kind = match change.kind {
            ChangeKind::Created => EventType::NodeCreated,
            ChangeKind::Deleted => EventType::NodeDeleted,
            ChangeKind::Data => EventType::NodeDataChanged,
        };
        self.changes.push(ModelChange {
            zxid: change.zxid,
            kind,
            path: change.path.into(),
            acl: change.acl.to_vec(),
            parent_acl: change.parent_acl.to_vec(),
        });
    }

    fn done(&mut self, _: &Machine, _: CommandId, outcome: machine::Outcome) {
        self.outcomes.push(outcome);
    }

    fn session_attached(&mut self, _: &Attached) {}

    fn session_closed(&mut self, session: SessionId) {
        self.closed.push(session);
    }
}

/// Makes up log entries.
struct Source {
    rng: Rng,
    mix: Mix,
    /// Per origin: incarnation and last number.
    streams: Vec<(log::Origin, u64)>,
    time_ms: i64,
    term: u64,
}

impl Source {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut mix = Mix::new(&mut rng, "");
        mix.acls = mix.acls.max(10);
        let origin = |server| log::Origin {
            server,
            disk: u64::from(server) * 7,
            incarnation: 2,
        };
        let streams = (1..=rng.between(1, 3) as u32)
            .map(|server| (origin(server), 0))
            .collect();
        Self {
            rng,
            mix,
            streams,
            time_ms: 1_000_000,
            term: 1,
        }
    }

    fn entry(&mut self, model: &Model) -> log::Entry {
        self.time_ms += self.rng.below(100) as i64 - 10;
        if self.rng.permille(20) {
            self.term += self.rng.between(1, 3);
            return log::Entry::default();
        }
        let mut entry = log::Entry {
            time_ms: self.time_ms,
            ..log::Entry::default()
        };
        for _ in 0..self.rng.between(1, 2) {
            let place = self.rng.below(self.streams.len() as u64) as usize;
            let commands: Vec<_> = (0..self.rng.between(1, 5))
                .map(|_| self.command(model))
                .collect();
            let (origin, last) = &mut self.streams[place];
            let mut first = *last + 1;
            match self.rng.below(40) {
                0 => first += 1,
                1 => first = first.saturating_sub(self.rng.below(4)).max(1),
                2 => {
                    origin.incarnation += 1;
                    (first, *last) = (1, 0);
                }
                _ => {}
            }
            let stale = self.rng.permille(20);
            let incarnation = origin.incarnation - u64::from(stale);
            let origin = log::Origin {
                incarnation,
                ..*origin
            };
            if !stale && first <= *last + 1 {
                *last = (*last).max(first + commands.len() as u64 - 1);
            }
            entry.batches.push(log::Batch {
                origin: Some(origin),
                first,
                commands,
            });
        }
        entry.no_quorum = self.rng.percent(10);
        if self.rng.percent(10) {
            entry.internal.push(self.internal(model));
        }
        entry
    }

    fn command(&mut self, model: &Model) -> log::Command {
        let rng = &mut self.rng;
        let sessions: Vec<_> = model.sessions.iter().collect();
        if sessions.is_empty() || rng.percent(3) {
            let body = log::CreateSession {
                timeout_ms: 4000,
                password: vec![rng.below(2) as u8; 16].into(),
                identities: vec![address(rng)],
            };
            let id = rng.between(1, 6) as i64;
            return command(id, 0, op::CREATE_SESSION, body.encode_to_vec());
        }
        let (id, session) = *rng.pick(&sessions);
        let (id, generation) = match rng.below(60) {
            0 => (99, 1),
            1 => (id.0, session.generation - 1),
            _ => (id.0, session.generation),
        };
        match rng.below(100) {
            0..4 => {
                let password = match rng.percent(20) {
                    true => vec![9; 16].into(),
                    false => session.password.clone(),
                };
                let identities = vec![address(rng)];
                let body = log::Attach {
                    timeout_ms: 5000,
                    password,
                    identities,
                };
                command(id, 0, own::ATTACH, body.encode_to_vec())
            }
            4..7 => {
                let secret = rng.pick(&SECRETS);
                let mut identities = vec![identity("digest", &digest_id(secret))];
                if rng.percent(20) {
                    identities.push(identity("super", ""));
                }
                let body = log::Identify { identities };
                command(id, generation, own::IDENTIFY, body.encode_to_vec())
            }
            7..9 => command(id, generation, op::CLOSE_SESSION, Vec::new()),
            9..12 => {
                // Few others may.
                let as_super = |(_, session): &&(_, &crate::model::Session)| {
                    session.identities.iter().any(|id| id.scheme == "super")
                };
                let who = sessions.iter().find(as_super);
                let who = who.map(|(id, session)| (id.0, session.generation));
                let (id, generation) = who.filter(|_| rng.percent(70)).unwrap_or((id, generation));
                let present = model.ensemble.as_ref().map_or(Zxid(0), |(_, since)| *since);
                let request = Request::Reconfig(reconfig(rng, present));
                let mut body = BytesMut::new();
                request.encode(&mut body);
                command(id, generation, op::RECONFIG, body.to_vec())
            }
            12 => {
                let opcode = *rng.pick(&[op::CREATE, op::SET_DATA, op::MULTI, op::SET_ACL]);
                command(id, generation, opcode, vec![0; 3])
            }
            _ => {
                let request = self.mix.write(rng);
                let mut body = BytesMut::new();
                request.encode(&mut body);
                command(id, generation, request.opcode(), body.to_vec())
            }
        }
    }

    fn internal(&mut self, model: &Model) -> log::Command {
        let rng = &mut self.rng;
        let paths: Vec<_> = model.now.iter().collect();
        match rng.below(4) {
            _ if model.ensemble.is_none() && rng.percent(20) => configure(rng, Zxid(0)),
            0 => {
                let names = [
                    "extended_types",
                    "enforce_quota",
                    "digest_enabled",
                    "reconfig_enabled",
                ];
                let name = (*rng.pick(&names)).into();
                let body = log::Set {
                    name,
                    value: i64::from(rng.percent(80)),
                };
                command(0, 0, own::SET, body.encode_to_vec())
            }
            1 => {
                let present = model.ensemble.as_ref().map_or(Zxid(0), |(_, since)| *since);
                configure(rng, present)
            }
            2 => {
                let session = model.sessions.iter().next();
                let (id, generation) = session.map_or((5, 1), |(id, s)| (id.0, s.generation));
                let old = u64::from(rng.percent(30));
                command(id, generation - old, op::CLOSE_SESSION, Vec::new())
            }
            _ => {
                let kinds = [crate::model::Kind::Persistent];
                let removable = |(_, znode): &&(_, &std::rc::Rc<crate::model::Znode>)| {
                    !kinds.contains(&znode.kind) && znode.stat.ephemeral_owner == 0
                };
                let candidates: Vec<_> = paths.iter().filter(removable).collect();
                if candidates.is_empty() {
                    let body = log::Remove {
                        path: "/none".into(),
                        ..log::Remove::default()
                    };
                    return command(0, 0, own::REMOVE, body.encode_to_vec());
                }
                let (path, znode) = **rng.pick(&candidates);
                let body = log::Remove {
                    path: path.clone(),
                    czxid: znode.stat.czxid.0,
                    mzxid: znode.stat.mzxid.0 - i64::from(rng.percent(10)),
                    created: znode.created + i64::from(rng.percent(10)),
                };
                command(0, 0, own::REMOVE, body.encode_to_vec())
            }
        }
    }

    /// Remembers what exists, so that later commands meet it.
    fn saw(&mut self, outcome: &machine::Outcome) {
        match outcome {
            machine::Outcome::Reply(Ok(Answer::Path(path) | Answer::PathStat(path, _))) => {
                self.mix.saw(path, &mut self.rng);
            }
            machine::Outcome::Reply(Ok(Answer::Multi(answers))) => {
                for answer in answers {
                    if let SubAnswer::Create(path) | SubAnswer::Create2(path, _) = answer {
                        self.mix.saw(path, &mut self.rng);
                    }
                }
            }
            _ => {}
        }
    }
}

fn command(session: i64, generation: u64, op: i32, body: Vec<u8>) -> log::Command {
    log::Command {
        session,
        generation,
        op,
        body: body.into(),
    }
}

fn configure(rng: &mut Rng, present: Zxid) -> log::Command {
    let body = log::Configure {
        text: server_lines(rng),
        expected: present.0 - i64::from(rng.percent(20)),
    };
    command(0, 0, own::CONFIGURE, body.encode_to_vec())
}

fn identity(scheme: &str, id: &str) -> log::Identity {
    log::Identity {
        scheme: scheme.into(),
        id: id.into(),
    }
}

fn address(rng: &mut Rng) -> log::Identity {
    identity(
        "ip",
        rng.pick::<&str>(&["10.0.0.1", "10.0.0.2", "10.9.9.9", "192.168.0.1"]),
    )
}

/// One stream of entries; `Err` says how machine and model differ.
fn run(seed: u64) -> Result<(), String> {
    let mut source = Source::new(seed);
    let (mut machine, mut model) = (Machine::new(), Model::new());
    let mut state = StateCheck::new();
    for index in 1..=ENTRIES {
        let entry = source.entry(&model);
        let before = model.changes.len();
        let mut seen = Recorder::default();
        let raw = log::LogEntry {
            index,
            term: source.term,
            data: entry.encode_to_vec().into(),
            ..log::LogEntry::default()
        };
        machine.apply(
            LogId {
                term: source.term,
                index,
            },
            &entry,
            &mut seen,
        );
        state.replay(&raw, &entry);
        let done = model.apply(index, source.term, &entry);
        let outcomes: Vec<_> = done
            .iter()
            .filter(|done| done.outcome != Outcome::Internal)
            .collect();
        if outcomes.len() != seen.outcomes.len() {
            return Err(format!("{entry:?}\n{:?}\n{outcomes:?}", seen.outcomes));
        }
        for (outcome, wanted) in seen.outcomes.iter().zip(outcomes) {
            source.saw(outcome);
            if translate(outcome) != wanted.outcome {
                let request = Request::decode(wanted.opcode, wanted.body.clone());
                return Err(format!(
                    "{request:?}\n machine: {outcome:?}\n model: {wanted:?}"
                ));
            }
        }
        let changes = |list: &[ModelChange]| {
            // The parent matters only where its children change.
            let parent = |c: &ModelChange| {
                (c.kind != EventType::NodeDataChanged).then(|| c.parent_acl.clone())
            };
            let one = |c: &ModelChange| (c.zxid, c.kind, c.path.clone(), c.acl.clone(), parent(c));
            list.iter().map(one).collect::<Vec<_>>()
        };
        if changes(&seen.changes) != changes(&model.changes[before..]) {
            let wanted = &model.changes[before..];
            return Err(format!(
                "{entry:?}\n machine: {:?}\n model: {wanted:?}",
                seen.changes
            ));
        }
        let deep = index % 10 == 0 || index == ENTRIES;
        state
            .compare(&model, &machine, deep)
            .map_err(|violation| violation.what)?;
        reads(&mut source, &machine, &model)?;
    }
    Ok(())
}

fn reads(source: &mut Source, machine: &Machine, model: &Model) -> Result<(), String> {
    let Source { rng, mix, .. } = source;
    for _ in 0..5 {
        let request = mix.read(rng);
        let read = matches!(
            request,
            Request::Exists { .. }
                | Request::GetData { .. }
                | Request::GetChildren { .. }
                | Request::GetAcl { .. }
                | Request::GetAllChildrenNumber { .. }
                | Request::GetEphemerals { .. }
                | Request::MultiRead(_)
        );
        if !read {
            continue;
        }
        let session = SessionId(rng.between(1, 6) as i64);
        let mut ids = vec![Id::new("ip", "10.0.0.1")];
        if rng.percent(50) {
            ids.push(Id::new("digest", &digest_id(rng.pick::<&str>(&SECRETS))));
        }
        let caller = machine::Caller {
            session,
            identities: &ids,
        };
        let seen = machine.read(&request, &caller);
        let wanted = model.read(model.zxid, &request, session, &ids);
        if seen != wanted {
            return Err(format!(
                "{request:?} by {ids:?}\n machine: {seen:?}\n model: {wanted:?}"
            ));
        }
    }
    Ok(())
}

fn translate(outcome: &machine::Outcome) -> Outcome {
    match outcome {
        machine::Outcome::Reply(result) => Outcome::Reply(result.clone()),
        machine::Outcome::Attached(attached) => Outcome::Attached {
            session: attached.session,
            generation: attached.generation,
            timeout_ms: attached.timeout_ms,
            password: Bytes::copy_from_slice(&attached.password),
        },
        machine::Outcome::Refused => Outcome::Refused,
        machine::Outcome::Moved => Outcome::Moved,
    }
}

#[test]
fn the_machine_does_what_the_model_does() {
    let seeds = std::env::var("SIM_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(150);
    let seeds = match std::env::var("SIM_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("SIM_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..seeds,
    };
    for seed in seeds {
        if let Err(difference) = run(seed) {
            panic!(
                "seed {seed}: {difference}\nrepeat: SIM_SEED={seed} cargo test --test sim \
                 the_machine_does_what_the_model_does"
            );
        }
    }
}

#[test]
fn an_infallible_source_is_what_restore_takes() {
    let chunks: Vec<Bytes> = Machine::new().image().chunks().collect();
    let restored = Machine::restore(chunks.into_iter().map(Ok::<_, Infallible>));
    assert_eq!(
        restored.map(|machine| machine.digest()).ok(),
        Some(Machine::new().digest())
    );
}

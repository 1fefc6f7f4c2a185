//! The state (architecture §2.6, 9–15).
//!
//! The machine is compared with the model, and with copies of itself that replay the same log: one
//! from the first entry, one that is replaced by a restored image now and then. All must have the
//! same digest at the same index, and images of the same state the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message as _;
use zkraft::machine::{Attached, Caller, Change, CommandId, LogId, Machine, Outcome, Sink};
use zkraft::proto::log;
use zkraft::wire::{Answer, Id, Request, SessionId, Text};

use super::{Group, Verdict, broken};
use crate::model::{Kind, Model};

pub struct StateCheck {
    /// Replays from the first entry.
    replayed: Machine,
    /// Replays from the last image.
    restored: Machine,
}

/// Takes no notice.
struct Deaf;

impl Sink for Deaf {
    fn changed(&mut self, _: &Change<'_>) {}
    fn done(&mut self, _: &Machine, _: CommandId, _: Outcome) {}
    fn session_attached(&mut self, _: &Attached) {}
    fn session_closed(&mut self, _: SessionId) {}
}

/// The state after these entries, from the first on.
pub fn after(entries: &[log::LogEntry]) -> Machine {
    let mut machine = Machine::new();
    for entry in entries {
        let content = log::Entry::decode(super::content(entry)).unwrap_or_default();
        machine.apply(place(entry), &content, &mut Deaf);
    }
    machine
}

fn place(entry: &log::LogEntry) -> LogId {
    LogId {
        term: entry.term,
        index: entry.index,
    }
}

impl StateCheck {
    pub fn new() -> Self {
        Self {
            replayed: Machine::new(),
            restored: Machine::new(),
        }
    }

    pub fn replay(&mut self, entry: &log::LogEntry, content: &log::Entry) {
        let at = place(entry);
        self.replayed.apply(at, content, &mut Deaf);
        self.restored.apply(at, content, &mut Deaf);
    }

    /// Of the state after the last entry.
    pub fn digest(&self) -> u64 {
        self.replayed.digest()
    }

    /// The machine and the model, after the same entries. `deep`: every znode.
    pub fn compare(&mut self, model: &Model, machine: &Machine, deep: bool) -> Verdict {
        let digests = [machine, &self.replayed, &self.restored].map(Machine::digest);
        if digests.iter().any(|digest| *digest != digests[0]) {
            let index = model.index;
            return broken(
                Group::State,
                format!("9/10/15: digests at {index}: {digests:x?}"),
            );
        }
        // ZooKeeper's tools count the root twice (s40).
        let seen = (
            machine.zxid(),
            machine.session_count(),
            machine.znode_count(),
        );
        let wanted = (model.zxid, model.sessions.len(), model.now.len() + 1);
        if seen != wanted {
            let what = format!("9: zxid, sessions, znodes: {seen:?}; expected {wanted:?}");
            return broken(Group::State, what);
        }
        if deep {
            compare_znodes(model, machine)?;
            compare_sessions(model, machine)?;
            compare_ensembles(model, machine)?;
            self.restore(machine)?;
        }
        Ok(())
    }

    /// 15: an image holds everything, and its bytes depend on nothing but the state.
    fn restore(&mut self, machine: &Machine) -> Verdict {
        let chunks: Vec<Bytes> = machine.image().chunks().collect();
        if self.replayed.image().chunks().ne(chunks.iter().cloned()) {
            return broken(Group::State, "15: images of the same log differ");
        }
        let chunks = chunks.into_iter().map(Ok::<_, std::convert::Infallible>);
        match Machine::restore(chunks) {
            Err(error) => broken(Group::State, format!("15: an image is refused: {error}")),
            Ok(restored) if restored.digest() != machine.digest() => {
                broken(Group::State, "15: a restored image has another digest")
            }
            Ok(restored) => {
                self.restored = restored;
                Ok(())
            }
        }
    }
}

fn compare_znodes(model: &Model, machine: &Machine) -> Verdict {
    let everything = [Id::new("super", "")];
    let caller = Caller {
        session: SessionId(0),
        identities: &everything,
    };
    for (path, znode) in &model.now {
        let wanted = Ok(Answer::Data(znode.data.clone(), znode.stat()));
        let text = path.as_str().into();
        let seen = machine.read(
            &Request::GetData {
                path: text,
                watch: false,
            },
            &caller,
        );
        if seen != wanted {
            return broken(
                Group::State,
                format!("9: {path}: {seen:?}; expected {wanted:?}"),
            );
        }
        let acl = machine.acl(path);
        if acl != Some(&znode.acl) {
            let what = format!("9: the ACL of {path} is {acl:?}; expected {:?}", znode.acl);
            return broken(Group::State, what);
        }
        let request = Request::GetChildren {
            path: path.as_str().into(),
            watch: false,
            with_stat: false,
        };
        let wanted = znode
            .children
            .iter()
            .map(|name| Text::from(&**name))
            .collect();
        let seen = machine.read(&request, &caller);
        if seen != Ok(Answer::Children(wanted)) {
            let what = format!(
                "14: children of {path}: {seen:?}; expected {:?}",
                znode.children
            );
            return broken(Group::State, what);
        }
    }
    Ok(())
}

/// 9: the servers are those of the log, whatever /zookeeper/config shows.
fn compare_ensembles(model: &Model, machine: &Machine) -> Verdict {
    let seen = machine.ensemble().map(|ensemble| {
        let lines = ensemble.members().iter().map(ToString::to_string);
        (lines.collect::<Vec<_>>(), ensemble.version())
    });
    let wanted = model.ensemble.as_ref().map(|(lines, since)| {
        let lines = lines.iter().map(|(id, line)| format!("server.{id}={line}"));
        (lines.collect(), *since)
    });
    match seen == wanted {
        true => Ok(()),
        false => broken(
            Group::State,
            format!("9: the servers are {seen:?}; expected {wanted:?}"),
        ),
    }
}

fn compare_sessions(model: &Model, machine: &Machine) -> Verdict {
    for ((id, session), (seen_id, seen)) in model.sessions.iter().zip(machine.sessions()) {
        let wanted = (*id, session.timeout_ms, session.generation);
        if (seen_id, seen.timeout_ms, seen.generation) != wanted {
            let what = format!("9: session {seen_id} {seen:?}; expected {wanted:?}");
            return broken(Group::State, what);
        }
    }
    let mut ephemerals = 0;
    let mut owned = BTreeMap::new();
    for (path, znode) in &model.now {
        let Kind::Ephemeral(owner) = znode.kind else {
            continue;
        };
        ephemerals += 1;
        if !model.sessions.contains_key(&owner) {
            return broken(
                Group::State,
                format!("13: {path} belongs to the ended {owner}"),
            );
        }
        let owned = owned.entry(owner).or_insert_with(|| {
            let paths = machine.ephemerals(owner).into_iter();
            paths.collect::<BTreeSet<Text>>()
        });
        if !owned.contains(&Text::from(path.as_str())) {
            return broken(
                Group::State,
                format!("13: {path} is not among those of {owner}"),
            );
        }
    }
    if machine.ephemeral_count() != ephemerals {
        let seen = machine.ephemeral_count();
        let what = format!("13: {seen} ephemerals; expected {ephemerals}");
        return broken(Group::State, what);
    }
    Ok(())
}

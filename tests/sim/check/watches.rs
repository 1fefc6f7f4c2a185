//! Watch events (architecture §2.6, 20 and 21; protocol facts §3.5, §6).
//!
//! A [`Watcher`] is the naive watch table of one connection. It walks the model's changes up to the
//! zxid of each frame and so knows which events had to come before it: none may be missing, none
//! may come that no watch explains, and their order is that of the changes.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use zkraft::wire::request::SetWatches;
use zkraft::wire::{Acl, Answer, ErrorCode, EventType, Id, Request, Text, Zxid, perms};

use super::{Group, Verdict, broken};
use crate::model::{Change, Model, check_acl};
use crate::reply::Event;

/// Whether an event must come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Delivery {
    Sure,
    /// It depends on an authentication that came about when the change did.
    Maybe,
    /// The client may not read the znode (§6.4).
    Never,
}

/// Whose watches they are.
#[derive(Debug)]
pub struct Reader<'a> {
    /// Who the client is, each with the zxid of its server when the authentication's reply came:
    /// changes up to there may have fired before the server knew (the reply names no zxid, §7.6).
    pub known: &'a [(Id, Zxid)],
    /// Authentications without a reply.
    pub claimed: &'a [Id],
}

impl Reader<'_> {
    /// Whether it is told of what happened at `zxid` to a znode with this ACL.
    fn delivery(&self, acl: &[Acl], zxid: Zxid) -> Delivery {
        let may_read = |ids: &[Id]| check_acl(acl, perms::READ, ids).is_ok();
        let ids = |known: &(Id, Zxid)| known.0.clone();
        let sure: Vec<Id> = self
            .known
            .iter()
            .filter(|(_, since)| *since < zxid)
            .map(ids)
            .collect();
        if may_read(&sure) {
            return Delivery::Sure;
        }
        let all = self.known.iter().map(ids);
        let all: Vec<Id> = all.chain(self.claimed.iter().cloned()).collect();
        match may_read(&all) {
            true => Delivery::Maybe,
            false => Delivery::Never,
        }
    }
}

#[derive(Debug, Default)]
pub struct Watcher {
    /// One-shot, by path.
    data: BTreeSet<String>,
    child: BTreeSet<String>,
    persistent: BTreeSet<String>,
    recursive: BTreeSet<String>,
    /// Changes looked at so far.
    seen: usize,
    /// Events that the looked-at changes cause.
    expected: VecDeque<(Event, Delivery)>,
    /// Events without a transaction, since the last reply.
    synthetic: Vec<Event>,
}

impl Watcher {
    /// The connection is attached at this zxid: nothing that happened before can be watched.
    pub fn begin(&mut self, model: &Model, at: Zxid) {
        self.seen = model.changes.partition_point(|change| change.zxid <= at);
    }

    pub fn count(&self) -> usize {
        self.data.len() + self.child.len() + self.persistent.len() + self.recursive.len()
    }

    /// An event came.
    pub fn event(&mut self, event: Event, model: &Model, reader: &Reader<'_>) -> Verdict {
        if event.zxid == Zxid(-1) {
            self.synthetic.push(event);
            return Ok(());
        }
        if !self.synthetic.is_empty() {
            return broken(
                Group::Watches,
                format!("{event:?} between setWatches and its events"),
            );
        }
        self.walk(event.zxid, model, reader);
        loop {
            match self.expected.pop_front() {
                Some((next, _)) if next == event => return Ok(()),
                Some((_, Delivery::Maybe)) => {}
                next => {
                    let what = format!("21: {event:?} came, but next is {next:?}");
                    return broken(Group::Watches, what);
                }
            }
        }
    }

    /// A reply made at `zxid` came: every event up to there must have come before it.
    pub fn reply(
        &mut self,
        zxid: Zxid,
        model: &Model,
        reader: &Reader<'_>,
        rearming: bool,
        context: fmt::Arguments<'_>,
    ) -> Verdict {
        self.walk(zxid, model, reader);
        let missing = self
            .expected
            .drain(..)
            .find(|(_, delivery)| *delivery == Delivery::Sure);
        if let Some((event, _)) = missing {
            return broken(
                Group::Watches,
                format!("20: {context} came before {event:?}"),
            );
        }
        if !self.synthetic.is_empty() && !rearming {
            let what = format!("§6.7: {:?} came before {context}", self.synthetic);
            return broken(Group::Watches, what);
        }
        Ok(())
    }

    /// A read was answered: it may have asked for a watch (§6.1).
    pub fn after_read(&mut self, request: &Request, result: &Result<Answer, ErrorCode>) {
        match request {
            Request::Exists { path, watch: true } => {
                if matches!(result, Ok(_) | Err(ErrorCode::NoNode)) {
                    self.data.insert(path.to_string());
                }
            }
            Request::GetData { path, watch: true } if result.is_ok() => {
                self.data.insert(path.to_string());
            }
            Request::GetChildren {
                path, watch: true, ..
            } if result.is_ok() => {
                self.child.insert(path.to_string());
            }
            _ => {}
        }
    }

    /// §3.3 addWatch.
    pub fn add(&mut self, path: &Text, mode: i32) -> Result<Answer, ErrorCode> {
        match mode {
            0 => self.persistent.insert(path.to_string()),
            1 => self.recursive.insert(path.to_string()),
            _ => return Err(ErrorCode::MarshallingError),
        };
        Ok(Answer::Zero)
    }

    /// §6.8 checkWatches.
    pub fn check(&self, path: &str, kind: i32) -> Result<Answer, ErrorCode> {
        let present = match kind {
            1 => self.child.contains(path),
            2 => self.data.contains(path),
            3 => self.tables().into_iter().any(|table| table.contains(path)),
            4 => self.persistent.contains(path),
            5 => self.recursive.contains(path),
            _ => return Err(ErrorCode::MarshallingError),
        };
        if present {
            Ok(Answer::Empty)
        } else {
            Err(ErrorCode::NoWatcher)
        }
    }

    /// §6.8 removeWatches.
    pub fn remove(&mut self, path: &str, kind: i32) -> Result<Answer, ErrorCode> {
        let outcome = self.check(path, kind);
        let Self {
            data,
            child,
            persistent,
            recursive,
            ..
        } = self;
        let tables = match kind {
            1 => vec![child],
            2 => vec![data],
            4 => vec![persistent],
            5 => vec![recursive],
            _ => vec![data, child, persistent, recursive],
        };
        if outcome.is_ok() {
            tables.into_iter().for_each(|table| {
                table.remove(path);
            });
        }
        outcome
    }

    /// §6.6: the events that had to come before this reply to setWatches, and what it registers.
    pub fn rearm(
        &mut self,
        set: &SetWatches,
        at: Zxid,
        model: &Model,
        context: fmt::Arguments<'_>,
    ) -> Verdict {
        let mut events = Vec::new();
        let mut missed = |path: &Text, kind| {
            events.push(Event {
                kind,
                path: path.to_string(),
                zxid: Zxid(-1),
            });
        };
        for path in &set.data {
            match model.at(at, path) {
                None => missed(path, EventType::NodeDeleted),
                Some(znode) if znode.stat.mzxid > set.relative_zxid => {
                    missed(path, EventType::NodeDataChanged);
                }
                Some(_) => drop(self.data.insert(path.to_string())),
            }
        }
        for path in &set.exist {
            match model.at(at, path) {
                Some(_) => missed(path, EventType::NodeCreated),
                None => drop(self.data.insert(path.to_string())),
            }
        }
        for path in &set.child {
            match model.at(at, path) {
                None => missed(path, EventType::NodeDeleted),
                Some(znode) if znode.stat.pzxid > set.relative_zxid => {
                    missed(path, EventType::NodeChildrenChanged);
                }
                Some(_) => drop(self.child.insert(path.to_string())),
            }
        }
        let [persistent, recursive] = set.persistent.clone().unwrap_or_default();
        self.persistent
            .extend(persistent.iter().map(Text::to_string));
        self.recursive.extend(recursive.iter().map(Text::to_string));
        let came = std::mem::take(&mut self.synthetic);
        if came != events {
            let what = format!("§6.6: before {context} came {came:?}; expected {events:?}");
            return broken(Group::Watches, what);
        }
        Ok(())
    }

    /// Lets the changes up to a zxid fire.
    fn walk(&mut self, upto: Zxid, model: &Model, reader: &Reader<'_>) {
        let idle = self.count() == 0;
        while let Some(change) = model.changes.get(self.seen).filter(|c| c.zxid <= upto) {
            self.seen += 1;
            if !idle {
                self.fire(change, reader);
            }
        }
    }

    /// The triggers of one change, in the order of §3.5.
    fn fire(&mut self, change: &Change, reader: &Reader<'_>) {
        let path = change.path.as_str();
        let own = reader.delivery(&change.acl, change.zxid);
        let persistent = self.persistent.contains(path);
        let mut told = self.data.remove(path) | persistent;
        told |= ancestors(path).any(|above| self.recursive.contains(above));
        if told {
            self.expect(change.kind, path, change.zxid, own);
        }
        if change.kind == EventType::NodeDataChanged {
            return;
        }
        if change.kind == EventType::NodeDeleted && self.child.remove(path) && !told {
            self.expect(change.kind, path, change.zxid, own);
        }
        let parent = ancestors(path)
            .nth(1)
            .expect("the root is neither created nor deleted");
        if self.child.remove(parent) | self.persistent.contains(parent) {
            let delivery = reader.delivery(&change.parent_acl, change.zxid);
            self.expect(
                EventType::NodeChildrenChanged,
                parent,
                change.zxid,
                delivery,
            );
        }
    }

    fn expect(&mut self, kind: EventType, path: &str, zxid: Zxid, delivery: Delivery) {
        if delivery != Delivery::Never {
            self.expected.push_back((
                Event {
                    kind,
                    path: path.into(),
                    zxid,
                },
                delivery,
            ));
        }
    }

    fn tables(&self) -> [&BTreeSet<String>; 4] {
        [&self.data, &self.child, &self.persistent, &self.recursive]
    }
}

/// A path, its parent, and so on up to the root.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| match path.rfind('/') {
        _ if *path == "/" => None,
        Some(0) => Some("/"),
        Some(at) => Some(&path[..at]),
        None => None,
    })
}

//! Large reads: answered by the connection's own task, step by step, while others go on.
//!
//! An ordinary read runs where its turn comes, also inside the apply of the write before it. One
//! that touches or answers much would make everybody wait there. It stops its connection's
//! pipeline instead: nothing more is read from the client until it is answered, so no write can
//! stand behind it. The connection's task then asks for room for the answer, begins the read under
//! the read lock, and goes on in steps, between which others have their turn.

use bytes::BytesMut;

use crate::machine::{Begun, Caller, Found, Machine, NODES_AT_ONCE, Walk};
use crate::wire::request::SetWatches;
use crate::wire::{Answer, ErrorCode, Request, SubAnswer, SubRequest, Text, Writer, Zxid};

/// The largest answer to one multiRead, in bytes: it names a znode as often as it likes, and an
/// answer of more than 2 GiB cannot even be expressed.
pub const MULTI_READ_BYTES_MAX: usize = 64 << 20;

/// A large read under way.
#[derive(Debug)]
pub struct Large {
    pub(super) work: Work,
    /// The state that the answer shows, if it shows one.
    pub(super) zxid: Option<Zxid>,
}

#[derive(Debug)]
pub(super) enum Work {
    Done(Result<Answer, ErrorCode>),
    Walk(Walk),
    /// The operations of a multiRead, which sees more than one state, as in ZooKeeper.
    Multi(Multi),
    Rearm(Rearm),
}

/// What one step needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Needs {
    Nothing,
    /// The present state.
    State,
}

impl Large {
    pub(super) fn begin(request: Request, machine: &Machine, caller: &Caller<'_>) -> Self {
        let zxid = Some(machine.zxid());
        let (work, zxid) = match request {
            Request::MultiRead(operations) => {
                let multi = Multi {
                    operations,
                    ..Multi::default()
                };
                (Work::Multi(multi), None)
            }
            Request::SetWatches(set) => (Work::Rearm(Rearm::new(set)), None),
            other => match machine.begin_large(&other, caller) {
                Ok(Begun::Walk(walk)) => (Work::Walk(walk), zxid),
                Ok(Begun::Answer(answer)) => (Work::Done(Ok(answer)), zxid),
                Err(code) => (Work::Done(Err(code)), zxid),
            },
        };
        Self { work, zxid }
    }

    pub(super) fn needs(&self) -> Needs {
        match &self.work {
            Work::Multi(multi) if multi.wants_state() => Needs::State,
            Work::Rearm(_) => Needs::State,
            _ => Needs::Nothing,
        }
    }

    /// Goes on without a lock.
    pub(super) fn step(&mut self) {
        match &mut self.work {
            Work::Walk(walk) => {
                if let Some(answer) = walk.step(NODES_AT_ONCE) {
                    let answer = answer.map(|bytes| Answer::Encoded(bytes.freeze()));
                    self.work = Work::Done(answer);
                }
            }
            Work::Multi(multi) => {
                if let Some(result) = multi.write_on() {
                    self.work = Work::Done(result);
                }
            }
            Work::Done(_) | Work::Rearm(_) => {}
        }
    }

    /// Goes on with a multiRead under the read lock.
    pub(super) fn read_on(&mut self, machine: &Machine, caller: &Caller<'_>) {
        if let Work::Multi(multi) = &mut self.work {
            multi.read_on(machine, caller);
        }
    }
}

/// A multiRead under way. First it is found out how large the answer will be, so that nothing is
/// copied for one that is too large.
#[derive(Debug, Default)]
pub(super) struct Multi {
    operations: Vec<SubRequest>,
    measured: usize,
    bytes: usize,
    done: usize,
    /// Answers that are not encoded yet.
    answers: Vec<SubAnswer>,
    /// A long list, which comes behind them.
    list: Option<Walk>,
    body: BytesMut,
}

impl Multi {
    fn wants_state(&self) -> bool {
        let is_idle = self.answers.is_empty() && self.list.is_none();
        is_idle && !self.is_too_large() && self.done < self.operations.len()
    }

    fn is_too_large(&self) -> bool {
        self.bytes > MULTI_READ_BYTES_MAX || self.body.len() > MULTI_READ_BYTES_MAX
    }

    fn read_on(&mut self, machine: &Machine, caller: &Caller<'_>) {
        if let Some(unmeasured) = self
            .operations
            .get(self.measured..)
            .filter(|u| !u.is_empty())
        {
            for operation in unmeasured.iter().take(NODES_AT_ONCE) {
                self.bytes += machine.part_bytes(operation);
                self.measured += 1;
            }
            return;
        }
        let mut nodes = 0;
        while nodes < NODES_AT_ONCE
            && self.list.is_none()
            && let Some(operation) = self.operations.get(self.done)
        {
            nodes += machine.part_nodes(operation);
            match machine.read_part(operation, caller) {
                Found::Answer(answer) => self.answers.push(answer),
                Found::List(walk) => self.list = Some(walk),
            }
            self.done += 1;
        }
    }

    /// Encodes what was read. The result, when all is.
    fn write_on(&mut self) -> Option<Result<Answer, ErrorCode>> {
        if self.is_too_large() {
            return Some(Err(ErrorCode::BadArguments));
        }
        if self.body.capacity() == 0 {
            self.body.reserve(self.bytes);
        }
        let mut writer = Writer::new(&mut self.body);
        for answer in self.answers.drain(..) {
            answer.encode(&mut writer);
        }
        if let Some(walk) = &mut self.list {
            let names = walk.step(NODES_AT_ONCE)?;
            self.list = None;
            match names {
                Ok(names) => {
                    SubAnswer::begin_children(&mut writer);
                    writer.raw(&names);
                }
                Err(code) => SubAnswer::Error(Some(code)).encode(&mut writer),
            }
        }
        if self.done < self.operations.len() {
            return None;
        }
        Answer::end_multi(&mut writer);
        Some(Ok(Answer::Encoded(std::mem::take(&mut self.body).freeze())))
    }
}

/// The watches of a client that came back, one list after the other.
#[derive(Debug)]
pub(super) struct Rearm {
    pub relative_zxid: Zxid,
    lists: [(List, std::vec::IntoIter<Text>); 5],
}

/// Which list of a setWatches a path comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum List {
    Data,
    Exist,
    Child,
    Persistent,
    Recursive,
}

impl Rearm {
    pub fn new(set: SetWatches) -> Self {
        let [persistent, recursive] = set.persistent.unwrap_or_default();
        let lists = [
            (List::Data, set.data),
            (List::Exist, set.exist),
            (List::Child, set.child),
            (List::Persistent, persistent),
            (List::Recursive, recursive),
        ];
        Self {
            relative_zxid: set.relative_zxid,
            lists: lists.map(|(list, paths)| (list, paths.into_iter())),
        }
    }

    /// The next paths.
    pub fn take(&mut self) -> impl Iterator<Item = (List, Text)> {
        let lists = self.lists.iter_mut();
        lists
            .flat_map(|(list, paths)| paths.map(|path| (*list, path)))
            .take(NODES_AT_ONCE)
    }

    pub fn is_done(&self) -> bool {
        self.lists.iter().all(|(_, paths)| paths.len() == 0)
    }
}

/// How many paths a client that came back wants to watch.
pub fn rearmed(set: &SetWatches) -> usize {
    let persistent = set.persistent.iter().flatten().map(Vec::len).sum::<usize>();
    set.data.len() + set.exist.len() + set.child.len() + persistent
}

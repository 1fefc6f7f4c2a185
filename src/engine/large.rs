//! Large reads: answered by the connection's own task, step by step, while others go on.
//!
//! An ordinary read runs where its turn comes, also inside the apply of the write before it. One
//! that touches or answers much would make everybody wait there. It stops its connection's
//! pipeline instead: nothing more is read from the client until it is answered, so no write can
//! stand behind it. The connection's task then asks for room for the answer, begins the read under
//! the read lock, and goes on in steps, between which others have their turn.

use crate::machine::{Begun, Caller, Machine, NODES_AT_ONCE, Walk};
use crate::wire::request::SetWatches;
use crate::wire::{Answer, ErrorCode, Request, Text, Zxid};

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
    Rearm(Rearm),
}

impl Large {
    pub(super) fn begin(request: Request, machine: &Machine, caller: &Caller<'_>) -> Self {
        if let Request::SetWatches(set) = request {
            return Self {
                work: Work::Rearm(Rearm::new(set)),
                zxid: None,
            };
        }
        let work = match machine.begin_large(&request, caller) {
            Ok(Begun::Walk(walk)) => Work::Walk(walk),
            Ok(Begun::Answer(answer)) => Work::Done(Ok(answer)),
            Err(code) => Work::Done(Err(code)),
        };
        Self {
            work,
            zxid: Some(machine.zxid()),
        }
    }

    /// Goes on without a lock.
    pub(super) fn step(&mut self) {
        if let Work::Walk(walk) = &mut self.work
            && let Some(answer) = walk.step(NODES_AT_ONCE)
        {
            let answer = answer.map(|bytes| Answer::Encoded(bytes.freeze()));
            self.work = Work::Done(answer);
        }
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

//! The order of one client connection.
//!
//! A [`Pipeline`] holds the requests of a connection that have been read but not answered, in the
//! order they came. It decides when a read may run and which reply comes next. It does no I/O and
//! knows no clock: the connection drives it.
//!
//! Rule: the reply order is the request order, and a read sees every earlier write of its session
//! (§9.1 point 2). A write is submitted at once and stays in its place until it is applied; what
//! stands behind it waits, and runs inside the apply of that write.

use std::collections::VecDeque;

use crate::wire::{Answer, ErrorCode, Request, Text};

/// One request that is not answered yet.
#[derive(Debug)]
pub struct Pending {
    pub xid: i32,
    pub opcode: i32,
    /// When it was read, in ms of the engine's clock.
    pub since_ms: u64,
    /// Of its body, as it came.
    pub bytes: usize,
    pub kind: Kind,
}

impl Pending {
    /// What it holds here, in bytes. A write's body is in its command, which the server counts.
    fn held_bytes(&self) -> usize {
        match self.kind {
            Kind::Write => 0,
            _ => self.bytes,
        }
    }
}

#[derive(Debug)]
pub enum Kind {
    /// Waits until its command is applied.
    Write,
    /// Waits until a round of agreement has ended (see [`super::barrier`]).
    Sync { path: Option<Text>, released: bool },
    /// Waits as a sync does, and is no request: the reads behind it must see everything that was
    /// answered to anyone before they came.
    Fence { released: bool },
    /// Runs as soon as nothing stands before it.
    Read(Request),
    /// Stops the pipeline until the connection's task has answered it (see [`super::large`]). The
    /// request is gone while it does.
    Large(Option<Request>),
    /// The result is known; only its turn has to come.
    Answered {
        result: Result<Answer, ErrorCode>,
        then_close: bool,
        zxid: HeaderZxid,
    },
}

/// Which zxid stands in a reply's header (§9.4).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HeaderZxid {
    /// The last one applied when the reply is made.
    Applied,
    /// 0, for authentication.
    Zero,
    /// -1, for opcodes that nobody knows.
    Unknown,
}

impl Kind {
    fn is_waiting_sync(&self) -> bool {
        matches!(
            self,
            Self::Fence { released: false }
                | Self::Sync {
                    released: false,
                    ..
                }
        )
    }

    /// Whether it may grow large while it waits.
    fn is_list(&self) -> bool {
        matches!(
            self,
            Self::Read(Request::GetChildren { .. } | Request::GetEphemerals { .. })
        )
    }
}

/// The unanswered requests of one connection.
#[derive(Debug, Default)]
pub struct Pipeline {
    queue: VecDeque<Pending>,
    /// What they hold.
    bytes: usize,
    /// Lists among them.
    lists: usize,
    /// Syncs and fences among them that still wait for their round.
    syncs: usize,
    /// Those that are no requests.
    fences: usize,
    /// A write came while some did.
    holds_write: bool,
}

impl Pipeline {
    pub fn push(&mut self, pending: Pending) {
        self.bytes += pending.held_bytes();
        self.lists += usize::from(pending.kind.is_list());
        self.syncs += usize::from(pending.kind.is_waiting_sync());
        self.fences += usize::from(matches!(pending.kind, Kind::Fence { .. }));
        if self.queue.capacity() == 0 {
            // A client that only pings never has more.
            self.queue.reserve_exact(1);
        }
        self.queue.push_back(pending);
    }

    /// Puts back what was just taken, as a large read.
    pub fn park(&mut self, pending: Pending) {
        self.bytes += pending.held_bytes();
        self.queue.push_front(pending);
    }

    /// The large read at the head that nobody works on.
    pub fn large(&self) -> Option<&Request> {
        match &self.queue.front()?.kind {
            Kind::Large(request) => request.as_ref(),
            _ => None,
        }
    }

    /// Takes the request out of the large read at the head, which keeps its place.
    pub fn begin_large(&mut self) -> Option<Request> {
        match &mut self.queue.front_mut()?.kind {
            Kind::Large(request) => request.take(),
            _ => None,
        }
    }

    /// Takes the large read at the head, which is answered.
    pub fn end_large(&mut self) -> Option<Pending> {
        match self.queue.front()?.kind {
            Kind::Large(None) => self.pop(),
            _ => None,
        }
    }

    /// Whether nothing may come behind: a large read is answered before anything else is read, and
    /// a sync before a write that stands behind it.
    pub fn is_stopped(&self) -> bool {
        let last = self.queue.back();
        let large = last.is_some_and(|last| matches!(last.kind, Kind::Large(_)));
        large || (self.holds_write && self.syncs > 0)
    }

    /// A write is the next request. True: it must not be taken in yet. Its command could be applied
    /// before the round ends that a sync before it waits for, and what stands between the two would
    /// see it.
    pub fn holds_write(&mut self) -> bool {
        self.holds_write = self.syncs > 0;
        self.holds_write
    }

    /// Bytes of the requests that wait, without those of writes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Lists that wait for a write.
    pub fn lists(&self) -> usize {
        self.lists
    }

    /// Takes the write at the head, whose command was just applied.
    ///
    /// Commands are applied in the order they were submitted, and everything before a write is
    /// answered inside the apply of the write before it, or was before the write was taken in; so
    /// it can only be at the head.
    pub fn applied(&mut self) -> Option<Pending> {
        match self.queue.front() {
            Some(Pending {
                kind: Kind::Write, ..
            }) => self.pop(),
            _ => None,
        }
    }

    fn pop(&mut self) -> Option<Pending> {
        let pending = self.queue.pop_front()?;
        self.bytes -= pending.held_bytes();
        Some(pending)
    }

    /// Releases the oldest sync or fence that still waits.
    pub fn release_sync(&mut self) {
        let waiting = self
            .queue
            .iter_mut()
            .find_map(|pending| match &mut pending.kind {
                Kind::Sync { released, .. } | Kind::Fence { released } if !*released => {
                    Some(released)
                }
                _ => None,
            });
        if let Some(released) = waiting {
            *released = true;
            self.syncs -= 1;
        }
    }

    /// Takes the next request that can be answered now.
    pub fn next_runnable(&mut self) -> Option<Pending> {
        while let Kind::Fence { released: true } = self.queue.front()?.kind {
            self.pop();
            self.fences -= 1;
        }
        match self.queue.front()?.kind {
            Kind::Write
            | Kind::Large(_)
            | Kind::Fence { .. }
            | Kind::Sync {
                released: false, ..
            } => None,
            _ => {
                let pending = self.pop()?;
                self.lists -= usize::from(pending.kind.is_list());
                Some(pending)
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many requests are not answered.
    pub fn len(&self) -> usize {
        self.queue.len() - self.fences
    }

    /// Whether the connection ends with the last request: what came behind it must not take effect.
    pub fn is_ending(&self) -> bool {
        let ending = |last: &Pending| {
            matches!(
                last.kind,
                Kind::Answered {
                    then_close: true,
                    ..
                }
            )
        };
        self.queue.back().is_some_and(ending)
    }

    /// Forgets everything: the connection is closed.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::op;

    fn pending(xid: i32, kind: Kind) -> Pending {
        Pending {
            xid,
            opcode: op::PING,
            since_ms: 0,
            bytes: 10,
            kind,
        }
    }

    fn runnable(pipeline: &mut Pipeline) -> Vec<i32> {
        std::iter::from_fn(|| pipeline.next_runnable())
            .map(|pending| pending.xid)
            .collect()
    }

    #[test]
    fn a_read_behind_a_write_waits_for_it() {
        let mut pipeline = Pipeline::default();
        pipeline.push(pending(1, Kind::Read(Request::WhoAmI)));
        pipeline.push(pending(2, Kind::Write));
        pipeline.push(pending(3, Kind::Read(Request::WhoAmI)));
        pipeline.push(pending(4, Kind::Write));
        assert_eq!(runnable(&mut pipeline), [1]);
        assert_eq!(pipeline.applied().map(|pending| pending.xid), Some(2));
        assert_eq!(runnable(&mut pipeline), [3]);
        assert_eq!(pipeline.applied().map(|pending| pending.xid), Some(4));
        assert!(pipeline.is_empty());
    }

    #[test]
    fn what_waits_is_counted_in_bytes_without_writes() {
        let mut pipeline = Pipeline::default();
        pipeline.push(pending(1, Kind::Write));
        pipeline.push(pending(2, Kind::Read(Request::WhoAmI)));
        pipeline.push(pending(3, Kind::Large(Some(Request::WhoAmI))));
        assert_eq!(pipeline.bytes(), 20);
        pipeline.applied();
        assert_eq!(pipeline.bytes(), 20);
        let read = pipeline.next_runnable().expect("nothing before it");
        assert_eq!(pipeline.bytes(), 10);
        pipeline.park(read);
        assert_eq!(pipeline.bytes(), 20);
        assert_eq!(runnable(&mut pipeline), [2]);
        assert!(pipeline.begin_large().is_some());
        assert_eq!(pipeline.bytes(), 10, "it keeps its place");
        assert!(pipeline.end_large().is_some());
        assert_eq!(pipeline.bytes(), 0);
    }

    #[test]
    fn a_write_is_not_taken_in_behind_a_sync_that_waits() {
        let sync = |xid| {
            let (path, released) = (None, false);
            pending(xid, Kind::Sync { path, released })
        };
        let mut pipeline = Pipeline::default();
        assert!(!pipeline.holds_write());
        pipeline.push(sync(1));
        pipeline.push(sync(2));
        assert!(!pipeline.is_stopped(), "reads may come");
        assert!(pipeline.holds_write() && pipeline.is_stopped());
        pipeline.release_sync();
        assert!(pipeline.is_stopped());
        pipeline.release_sync();
        assert!(!pipeline.is_stopped() && !pipeline.holds_write());
        assert_eq!(runnable(&mut pipeline), [1, 2]);
    }

    #[test]
    fn a_fence_holds_the_reads_behind_it_and_is_not_answered() {
        let fence = || pending(0, Kind::Fence { released: false });
        let mut pipeline = Pipeline::default();
        pipeline.push(pending(1, Kind::Write));
        pipeline.push(fence());
        pipeline.push(pending(2, Kind::Read(Request::WhoAmI)));
        pipeline.push(fence());
        pipeline.push(pending(3, Kind::Read(Request::WhoAmI)));
        assert_eq!(pipeline.len(), 3);
        assert!(pipeline.holds_write(), "as behind a sync");
        assert!(pipeline.applied().is_some());
        assert!(runnable(&mut pipeline).is_empty());
        pipeline.release_sync();
        assert_eq!(runnable(&mut pipeline), [2]);
        assert!(pipeline.holds_write());
        pipeline.release_sync();
        assert_eq!(runnable(&mut pipeline), [3]);
        assert!(pipeline.is_empty() && !pipeline.holds_write());
    }

    #[test]
    fn a_released_sync_still_waits_for_the_writes_before_it() {
        let mut pipeline = Pipeline::default();
        pipeline.push(pending(1, Kind::Write));
        pipeline.push(pending(
            2,
            Kind::Sync {
                path: None,
                released: false,
            },
        ));
        pipeline.push(pending(
            3,
            Kind::Sync {
                path: None,
                released: false,
            },
        ));
        pipeline.release_sync();
        assert!(runnable(&mut pipeline).is_empty());
        assert!(pipeline.applied().is_some());
        assert_eq!(runnable(&mut pipeline), [2]);
        pipeline.release_sync();
        assert_eq!(runnable(&mut pipeline), [3]);
    }
}

//! What one connection must be sent, in order.
//!
//! Everything for a client goes through its [`Outbox`] *while the lock that protected the state is
//! still held*: events and write replies under the machine's write lock, read replies under its
//! read lock. Outbox order is therefore state order, which is what makes a watch event come before
//! any reply that shows the change (§6.5). Encoding happens later, outside of all locks; values
//! are shared by reference count.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::wire::response::encode_reply;
use crate::wire::{Answer, ConnectResponse, ReplyHeader, SubAnswer, Text, WatcherEvent};

/// Queued bytes above which the connection's requests are not read any more.
pub const BYTES_SOFT: usize = 4 << 20;
/// Queued bytes of events above which a client that does not read is given up: it did not ask for
/// them, so nothing else bounds them.
pub const EVENT_BYTES_HARD: usize = 32 << 20;
/// Queued bytes in all above which a client is given up. A single reply may exceed it. It is high,
/// because what was asked for behind one write is answered at once, before any of it can be sent;
/// the data of znodes is shared with the tree.
pub const BYTES_HARD: usize = 256 << 20;
/// The share that a connection has of [`Unsent`] however many there are.
const SHARE_MIN: usize = 64 << 10;
/// What a connection has unread up to here is not counted in [`Unsent`], so that those that read do
/// not meet at one number.
const UNCOUNTED: usize = 16 << 10;
/// Bytes encoded in one go, so that one connection does not hold a big buffer for long.
const BYTES_PER_TAKE: usize = 256 << 10;

/// One frame to be sent.
#[derive(Debug)]
pub enum Outgoing {
    Connect(ConnectResponse),
    Event(WatcherEvent),
    Reply(ReplyHeader, Answer),
    /// The beginning of a frame, with its length.
    Begin(Bytes),
    /// A part of the frame that was begun.
    Part(Bytes),
}

/// What is left after taking from an outbox.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Remaining {
    /// Nothing for now.
    Nothing,
    /// More: send what was taken and take again.
    More,
    /// Nothing will follow: send what was taken, then close the socket.
    Closed,
}

/// What waits to be sent on all connections of a server.
///
/// The more there is, the less a connection may leave unread before its requests are not read any
/// more. From the limit on it must have read everything. What was asked for before, and events,
/// still come; at twice the limit the connections with more than their share are given up. So there
/// is never more than twice the limit and `SHARE_MIN` for each connection.
#[derive(Debug)]
pub struct Unsent {
    bytes: AtomicUsize,
    connections: AtomicUsize,
    bytes_max: usize,
    /// Connections that were given up for what they left unread.
    given_up: AtomicUsize,
}

impl Unsent {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            bytes_max,
            given_up: AtomicUsize::new(0),
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Connections that were cut off because they did not read.
    pub fn given_up(&self) -> usize {
        self.given_up.load(Ordering::Relaxed)
    }

    /// One more was.
    pub fn give_up(&self) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether more than half of the limit waits.
    pub fn is_tight(&self) -> bool {
        self.bytes() >= self.bytes_max / 2
    }

    /// Bytes that a connection may leave unread and still be heard.
    fn allowance(&self) -> usize {
        match self.bytes() {
            bytes if bytes >= self.bytes_max => 0,
            _ if self.is_tight() => SHARE_MIN,
            _ => BYTES_SOFT,
        }
    }

    /// Whether a connection with so many bytes is one too many.
    fn is_beyond(&self, bytes: usize) -> bool {
        let connections = self.connections.load(Ordering::Relaxed).max(1);
        self.bytes() / 2 >= self.bytes_max && bytes > SHARE_MIN.max(self.bytes_max / connections)
    }
}

#[derive(Debug)]
pub struct Outbox {
    inner: Mutex<Inner>,
    /// What this and all others hold.
    unsent: Arc<Unsent>,
}

impl Default for Outbox {
    /// One without others.
    fn default() -> Self {
        Self::new(Arc::new(Unsent::new(usize::MAX)))
    }
}

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<Outgoing>,
    bytes: usize,
    /// Those among them that are events.
    event_bytes: usize,
    /// Bytes that were taken and are not sent yet.
    sending: usize,
    /// What of all this is counted in [`Unsent`].
    counted: usize,
    /// The place in the queue that is kept for the answer to a large read.
    reserved: Option<usize>,
    frames_taken: u64,
    /// Those among them that are not shown any more.
    frames_forgotten: u64,
    /// The connection's task was told, or is about to look by itself.
    notified: bool,
    closed: bool,
}

impl Inner {
    fn unsent(&self) -> usize {
        self.bytes + self.sending
    }

    /// Brings the count of all connections up to date.
    fn count(&mut self, all: &Unsent) {
        let due = self.unsent().saturating_sub(UNCOUNTED);
        if due > self.counted {
            all.bytes.fetch_add(due - self.counted, Ordering::Relaxed);
        } else if due < self.counted {
            all.bytes.fetch_sub(self.counted - due, Ordering::Relaxed);
        }
        self.counted = due;
    }

    /// Drops what is queued.
    fn drop_queue(&mut self, all: &Unsent) {
        self.queue.clear();
        self.reserved = None;
        self.bytes = 0;
        self.event_bytes = 0;
        self.count(all);
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.abandon();
        self.unsent.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Outbox {
    pub fn new(unsent: Arc<Unsent>) -> Self {
        unsent.connections.fetch_add(1, Ordering::Relaxed);
        Self {
            inner: Mutex::default(),
            unsent,
        }
    }

    #[cfg(test)]
    pub fn is_locked(&self) -> bool {
        self.inner.is_locked()
    }

    /// Adds a frame. True: the connection's task must be woken.
    #[must_use]
    pub fn push(&self, outgoing: Outgoing) -> bool {
        let mut inner = self.inner.lock();
        if inner.closed {
            return false;
        }
        // A client that does not read is cut off, but never for one big reply alone (s99).
        if inner.bytes > BYTES_HARD
            || inner.event_bytes > EVENT_BYTES_HARD
            || self.unsent.is_beyond(inner.unsent())
        {
            inner.drop_queue(&self.unsent);
            inner.closed = true;
            self.unsent.give_up();
        } else {
            inner.bytes += weight(&outgoing);
            inner.event_bytes += event_weight(&outgoing);
            if inner.queue.capacity() == 0 {
                // A client that only pings never has more.
                inner.queue.reserve_exact(1);
            }
            inner.queue.push_back(outgoing);
            inner.count(&self.unsent);
        }
        !std::mem::replace(&mut inner.notified, true)
    }

    /// Keeps the place behind what is queued for a frame that is not known yet. The place is lost
    /// when something is taken.
    pub fn reserve(&self) {
        let mut inner = self.inner.lock();
        inner.reserved = Some(inner.queue.len());
    }

    /// Puts the answer to a large read into the place that was reserved, if there is one, else
    /// behind all others. True: the task must be woken.
    #[must_use]
    pub fn fill(&self, outgoing: Outgoing) -> bool {
        let mut inner = self.inner.lock();
        let place = inner.reserved.take();
        if inner.closed {
            return false;
        }
        let place = place.unwrap_or(inner.queue.len());
        for (offset, outgoing) in in_parts(outgoing).into_iter().enumerate() {
            inner.bytes += weight(&outgoing);
            inner.queue.insert(place + offset, outgoing);
        }
        inner.count(&self.unsent);
        !std::mem::replace(&mut inner.notified, true)
    }

    /// There is something to do that is not output. True: the task must be woken.
    #[must_use]
    pub fn nudge(&self) -> bool {
        !std::mem::replace(&mut self.inner.lock().notified, true)
    }

    /// Nothing more is to be sent after what is queued. True: the task must be woken.
    #[must_use]
    pub fn close(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.closed = true;
        !std::mem::replace(&mut inner.notified, true)
    }

    /// Drops everything and accepts nothing more: the socket is gone.
    pub fn abandon(&self) {
        let mut inner = self.inner.lock();
        inner.sending = 0;
        inner.drop_queue(&self.unsent);
        inner.closed = true;
    }

    /// What was taken is sent.
    pub fn sent(&self) {
        let mut inner = self.inner.lock();
        inner.sending = 0;
        inner.count(&self.unsent);
    }

    /// Whether the client has read enough to be heard.
    pub fn has_room(&self) -> bool {
        let unsent = self.inner.lock().unsent();
        unsent == 0 || unsent < self.unsent.allowance()
    }

    pub fn is_closed(&self) -> bool {
        self.inner.lock().closed
    }

    /// Bytes that wait to be sent.
    pub fn bytes(&self) -> usize {
        self.inner.lock().bytes
    }

    /// Frames that were taken so far. Never falls.
    pub fn frames_taken(&self) -> u64 {
        self.inner.lock().frames_taken
    }

    /// Counts frames that go out behind what was taken, without being queued.
    pub fn passed(&self, frames: u64, bytes: usize) {
        let mut inner = self.inner.lock();
        inner.frames_taken += frames;
        inner.sending += bytes;
        inner.count(&self.unsent);
    }

    /// Bytes that the client may leave unread for now.
    pub fn allowance(&self) -> usize {
        self.unsent.allowance()
    }

    /// Frames that were taken since [`Self::forget_taken`].
    pub fn frames_shown(&self) -> u64 {
        let inner = self.inner.lock();
        inner.frames_taken - inner.frames_forgotten
    }

    /// Begins to count the frames that are shown afresh.
    pub fn forget_taken(&self) {
        let mut inner = self.inner.lock();
        inner.frames_forgotten = inner.frames_taken;
    }

    /// Encodes queued frames onto `out`.
    pub fn take(&self, out: &mut BytesMut) -> Remaining {
        let limit = out.len() + BYTES_PER_TAKE;
        let mut before = true;
        loop {
            // The lock is held for the queue only, not for the encoding.
            let batch: Vec<Outgoing> = {
                let mut inner = self.inner.lock();
                if std::mem::take(&mut before) && out.is_empty() {
                    // What was taken last time is sent by now.
                    inner.sending = 0;
                    inner.count(&self.unsent);
                }
                if inner.queue.is_empty() {
                    inner.notified = false;
                    return if inner.closed {
                        Remaining::Closed
                    } else {
                        Remaining::Nothing
                    };
                }
                if out.len() >= limit {
                    return Remaining::More;
                }
                let mut bytes = 0;
                let mut event_bytes = 0;
                let mut count = 0;
                let mut frames = 0;
                for outgoing in &inner.queue {
                    bytes += weight(outgoing);
                    event_bytes += event_weight(outgoing);
                    count += 1;
                    frames += u64::from(!matches!(outgoing, Outgoing::Part(_)));
                    if out.len() + bytes >= limit {
                        break;
                    }
                }
                // Who takes has given up what the place was kept for.
                inner.reserved = None;
                inner.bytes -= bytes;
                inner.sending += bytes;
                inner.event_bytes -= event_bytes;
                inner.frames_taken += frames;
                inner.queue.drain(..count).collect()
            };
            for outgoing in &batch {
                encode(outgoing, out);
            }
        }
    }
}

/// Cuts a reply that is encoded already, so that no task copies many megabytes in one go.
fn in_parts(outgoing: Outgoing) -> Vec<Outgoing> {
    match outgoing {
        Outgoing::Reply(header, Answer::Encoded(mut body)) if body.len() > BYTES_PER_TAKE => {
            let mut begin = BytesMut::new();
            encode_reply(header, &Answer::Empty, &mut begin);
            let length = i32::try_from(begin.len() - 4 + body.len()).expect("a reply below 2 GiB");
            begin[..4].copy_from_slice(&length.to_be_bytes());
            let mut parts = vec![Outgoing::Begin(begin.freeze())];
            while !body.is_empty() {
                parts.push(Outgoing::Part(
                    body.split_to(body.len().min(BYTES_PER_TAKE)),
                ));
            }
            parts
        }
        other => vec![other],
    }
}

fn encode(outgoing: &Outgoing, out: &mut BytesMut) {
    match outgoing {
        Outgoing::Connect(response) => response.encode_frame(out),
        Outgoing::Event(event) => event.encode_frame(out),
        Outgoing::Reply(header, answer) => encode_reply(*header, answer, out),
        Outgoing::Begin(bytes) | Outgoing::Part(bytes) => out.extend_from_slice(bytes),
    }
}

/// About how many bytes of memory a frame takes, which is no less than it will have.
fn weight(outgoing: &Outgoing) -> usize {
    const FRAME: usize = size_of::<Outgoing>();
    FRAME
        + match outgoing {
            Outgoing::Connect(_) => 40,
            Outgoing::Event(event) => event.path.len(),
            Outgoing::Reply(_, answer) => answer_weight(answer),
            Outgoing::Begin(bytes) | Outgoing::Part(bytes) => bytes.len(),
        }
}

fn event_weight(outgoing: &Outgoing) -> usize {
    match outgoing {
        Outgoing::Event(_) => weight(outgoing),
        _ => 0,
    }
}

fn answer_weight(answer: &Answer) -> usize {
    const STAT: usize = 68;
    match answer {
        Answer::Empty | Answer::Number(_) | Answer::Zero => 4,
        Answer::Path(path) => path.len(),
        Answer::PathStat(path, _) => path.len() + STAT,
        Answer::Stat(_) => STAT,
        Answer::Data(data, _) => data.as_ref().map_or(0, |data| data.len()) + STAT,
        Answer::Children(names) | Answer::ChildrenStat(names, _) => names_weight(names) + STAT,
        Answer::Acl(entries, _) => {
            entries
                .iter()
                .map(|e| 12 + e.id.scheme.len() + e.id.id.len())
                .sum::<usize>()
                + STAT
        }
        Answer::Echo(path) => path.as_ref().map_or(0, |path| path.len()),
        Answer::Multi(answers) => answers.iter().map(sub_weight).sum(),
        Answer::WhoAmI(ids) => ids.iter().map(|id| 8 + id.scheme.len() + id.id.len()).sum(),
        Answer::Token(token) => token.as_ref().map_or(0, |token| token.len()),
        Answer::Encoded(bytes) => bytes.len(),
    }
}

fn sub_weight(answer: &SubAnswer) -> usize {
    const HEADER: usize = 9;
    HEADER
        + match answer {
            SubAnswer::Create(path) => path.len(),
            SubAnswer::Create2(path, _) => path.len() + 68,
            SubAnswer::Delete | SubAnswer::Check => 0,
            SubAnswer::SetData(_) => 68,
            SubAnswer::GetData(data, _) => data.as_ref().map_or(0, |data| data.len()) + 68,
            SubAnswer::GetChildren(names) => names_weight(names),
            SubAnswer::Error(_) => 4,
        }
}

fn names_weight(names: &[Text]) -> usize {
    names
        .iter()
        .map(|name| size_of::<Text>() + 16 + name.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{EventType, Stat, Zxid};

    fn reply(xid: i32, data: usize) -> Outgoing {
        let header = ReplyHeader {
            xid,
            zxid: Zxid(1),
            error: 0,
        };
        Outgoing::Reply(
            header,
            Answer::Data(Some(Bytes::from(vec![7; data])), Stat::default()),
        )
    }

    #[test]
    fn a_batch_of_frames_wakes_once() {
        let outbox = Outbox::default();
        assert!(outbox.push(reply(1, 0)));
        assert!(!outbox.push(reply(2, 0)));
        let mut out = BytesMut::new();
        assert_eq!(outbox.take(&mut out), Remaining::Nothing);
        assert!(outbox.push(reply(3, 0)));
    }

    #[test]
    fn what_was_queued_before_the_close_is_still_sent() {
        let outbox = Outbox::default();
        let _ = outbox.push(reply(1, 10));
        let _ = outbox.close();
        assert!(
            !outbox.push(reply(2, 10)),
            "nothing is accepted after the close"
        );
        let mut out = BytesMut::new();
        assert_eq!(outbox.take(&mut out), Remaining::Closed);
        assert_eq!(out.len(), 4 + 16 + 4 + 10 + 68);
    }

    #[test]
    fn a_client_that_does_not_read_is_given_up_but_one_big_reply_is_not() {
        let outbox = Outbox::default();
        let _ = outbox.push(reply(1, BYTES_HARD + 1));
        assert!(!outbox.is_closed());
        let _ = outbox.push(reply(2, 1));
        assert!(outbox.is_closed());
    }

    #[test]
    fn events_that_are_not_read_pile_up_to_a_bound() {
        let outbox = Outbox::default();
        let path: Text = "/".repeat(1 << 20).as_str().into();
        let mut pushed = 0;
        while !outbox.is_closed() {
            let _ = outbox.push(Outgoing::Event(WatcherEvent {
                kind: EventType::NodeCreated,
                path: path.clone(),
                zxid: Zxid(1),
            }));
            pushed += 1;
        }
        assert_eq!(pushed, 1 + EVENT_BYTES_HARD / path.len());
    }

    #[test]
    fn big_queues_are_taken_in_pieces_that_lose_nothing() {
        let outbox = Outbox::default();
        for xid in 0..20 {
            let _ = outbox.push(reply(xid, 100_000));
        }
        let mut total = 0;
        loop {
            let mut out = BytesMut::new();
            let remaining = outbox.take(&mut out);
            assert!(out.len() < BYTES_PER_TAKE + 100_200);
            total += out.len();
            if remaining == Remaining::Nothing {
                break;
            }
        }
        assert_eq!(total, 20 * (4 + 16 + 4 + 100_000 + 68));
        assert_eq!((outbox.bytes(), outbox.frames_taken()), (0, 20));
    }

    #[test]
    fn forgetting_what_was_sent_does_not_turn_the_count_of_taken_frames_back() {
        let outbox = Outbox::default();
        let _ = outbox.push(reply(1, 0));
        outbox.take(&mut BytesMut::new());
        let before = outbox.frames_taken();
        outbox.forget_taken();
        let _ = outbox.push(reply(2, 0));
        outbox.take(&mut BytesMut::new());
        assert_eq!(outbox.frames_taken().checked_sub(before), Some(1));
        assert_eq!(outbox.frames_shown(), 1);
    }

    #[test]
    fn what_all_connections_leave_unread_is_bounded() {
        const LIMIT: usize = 10 << 20;
        let unsent = Arc::new(Unsent::new(LIMIT));
        let outboxes: Vec<Outbox> = (0..100).map(|_| Outbox::new(unsent.clone())).collect();
        let one = Outbox::new(unsent.clone());
        // Whoever has read everything is served, however much the others leave.
        for round in 0..1_000 {
            for outbox in &outboxes {
                let _ = outbox.push(reply(round, 1_000));
            }
            assert!(unsent.bytes() <= 2 * LIMIT + outboxes.len() * SHARE_MIN);
            assert!(one.has_room());
        }
        assert!(unsent.given_up() > 0);
        // What was taken counts until it is sent.
        let _ = one.push(reply(1, 100_000));
        let before = unsent.bytes();
        one.take(&mut BytesMut::new());
        assert_eq!(unsent.bytes(), before);
        assert!(!one.has_room());
        one.sent();
        assert!(one.has_room() && unsent.bytes() < before);
        drop((outboxes, one));
        assert_eq!(unsent.bytes(), 0);
    }

    #[test]
    fn a_long_answer_is_sent_in_parts_and_is_one_frame() {
        let body: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let header = ReplyHeader {
            xid: 7,
            zxid: Zxid(9),
            error: 0,
        };
        let outbox = Outbox::default();
        let answer = Answer::Encoded(Bytes::from(body));
        let mut expected = BytesMut::new();
        encode_reply(header, &answer, &mut expected);
        let _ = outbox.fill(Outgoing::Reply(header, answer));
        let (mut sent, mut out) = (BytesMut::new(), BytesMut::new());
        while outbox.take(&mut out) == Remaining::More {
            assert!(out.len() <= 2 * BYTES_PER_TAKE);
            sent.extend_from_slice(&out.split());
        }
        sent.extend_from_slice(&out);
        assert!(sent == expected);
        assert_eq!(outbox.frames_taken(), 1);
    }

    #[test]
    fn a_reserved_place_is_before_what_came_meanwhile() {
        let outbox = Outbox::default();
        let _ = outbox.push(reply(1, 0));
        outbox.reserve();
        let _ = outbox.push(reply(3, 0));
        let _ = outbox.fill(reply(2, 0));
        let mut out = BytesMut::new();
        outbox.take(&mut out);
        let frame = out.len() / 3;
        let xids: Vec<u8> = (0..3).map(|n| out[n * frame + 7]).collect();
        assert_eq!(xids, [1, 2, 3]);
    }
}

//! What waits to be sent to a peer, in one lane: by the lane's own task, or by whoever has it.
//!
//! Waking a task on another thread takes longer than most messages take to write. So a task that
//! waits leaves its socket here, and whoever puts in a few messages writes them itself, if the
//! socket takes them at once. In all other cases the task is woken and does it.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};

use bytes::Buf as _;
use parking_lot::Mutex;
use prost::Message as _;
use raft::eraftpb::MessageType;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;

use super::frame::{BODY_BYTES_MAX, Batch};
use super::presence::Count;
use super::{Introduction, Traffic};
use crate::engine::PeerMessage;

/// Bytes that wait for one peer at most: see [`bulk`] and [`urgent`].
const BULK_BYTES_MAX: usize = 56 << 20;
const URGENT_BYTES_MAX: usize = 8 << 20;
/// Whoever puts something in does not write more than these bytes itself.
const AT_ONCE_BYTES: usize = 64 << 10;
/// What a message takes beyond its content.
const MESSAGE_BYTES: usize = 64;
const ENTRY_BYTES: usize = 32;

/// A bounded queue. While it is closed, what is put in is dropped.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
    bytes_max: usize,
    sent: Count,
}

#[derive(Debug, Default)]
struct Waiting {
    open: bool,
    messages: VecDeque<(PeerMessage, usize)>,
    bytes: usize,
    dropped: u64,
    overflowed: bool,
    left: Option<Left>,
    /// How often a socket was left.
    times_left: u64,
}

/// What a task that waits leaves for others to use.
#[derive(Debug)]
struct Left {
    number: u64,
    write: OwnedWriteHalf,
    /// What was said of this server when the lane was dialled.
    me: Introduction,
    /// What the socket did not take at once: to be written before anything else.
    rest: Batch,
}

/// A task that waits, and the queue has its socket meanwhile.
#[derive(Debug)]
pub(super) struct Waits<'a> {
    queue: &'a Queue,
    number: u64,
}

/// For messages that [`is_bulk`].
pub(super) fn bulk() -> Queue {
    Queue::new(BULK_BYTES_MAX)
}

/// For all others.
pub(super) fn urgent() -> Queue {
    Queue::new(URGENT_BYTES_MAX)
}

/// Whether a message goes in the bulk lane. Appends without entries do too: overtaking others, they
/// would be taken for a gap.
pub(super) fn is_bulk(message: &PeerMessage) -> bool {
    match message {
        PeerMessage::Raft(raft) => matches!(
            raft.get_msg_type(),
            MessageType::MsgAppend | MessageType::MsgSnapshot
        ),
        PeerMessage::Forward(_) => true,
        PeerMessage::Touch(_) | PeerMessage::Touched(_) | PeerMessage::Digests(_) => false,
    }
}

/// About how many bytes of memory a message takes.
fn weight(message: &PeerMessage) -> usize {
    let content = match message {
        PeerMessage::Raft(raft) => {
            let entries = raft.get_entries().iter();
            let entries = entries.map(|e| ENTRY_BYTES + e.data.len() + e.context.len());
            raft.context.len() + entries.sum::<usize>()
        }
        PeerMessage::Forward(batch) => batch.encoded_len(),
        PeerMessage::Touch(touch) => touch.encoded_len(),
        PeerMessage::Touched(touched) => touched.encoded_len(),
        PeerMessage::Digests(digests) => digests.encoded_len(),
    };
    MESSAGE_BYTES + content
}

impl Queue {
    fn new(bytes_max: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            filled: Notify::new(),
            bytes_max,
            sent: Count::default(),
        }
    }

    /// Puts a message in. Nobody is told before the next [`Self::send`].
    pub fn push(&self, message: PeerMessage) {
        let weight = weight(&message);
        let mut waiting = self.waiting.lock();
        // A message on its own always has room, however large.
        let is_full = waiting.bytes > 0 && waiting.bytes + weight > self.bytes_max;
        if !waiting.open || is_full {
            waiting.overflowed |= waiting.open;
            waiting.dropped += 1;
            return;
        }
        waiting.messages.push_back((message, weight));
        waiting.bytes += weight;
    }

    /// Writes what was put in, if that goes at once, or has the task do it. `me`: this server as it
    /// is now.
    pub fn send(&self, me: &Introduction) {
        let mut waiting = self.waiting.lock();
        if !waiting.messages.is_empty() && !waiting.send_for_task(me, &self.sent) {
            drop(waiting);
            self.filled.notify_one();
        }
    }

    /// Takes what there is, up to so many bytes, but one message at least, to be written. `None`:
    /// there is nothing.
    pub fn take(&self, bytes_max: usize) -> Option<Batch> {
        let messages = self.waiting.lock().take(bytes_max);
        (!messages.is_empty()).then(|| encode(messages, &self.sent))
    }

    /// Leaves the socket to those who put messages in, until [`Waits::ended`]. Gives it back if
    /// there is something to write.
    pub fn leave(
        &self,
        write: OwnedWriteHalf,
        me: Introduction,
    ) -> Result<Waits<'_>, OwnedWriteHalf> {
        let mut waiting = self.waiting.lock();
        if !waiting.messages.is_empty() {
            return Err(write);
        }
        waiting.times_left += 1;
        let number = waiting.times_left;
        waiting.left = Some(Left {
            number,
            write,
            me,
            rest: Batch::default(),
        });
        Ok(Waits {
            queue: self,
            number,
        })
    }

    /// What was written, or was about to be.
    pub fn sent(&self) -> Traffic {
        self.sent.get()
    }

    /// From now on, messages are kept until they are taken.
    pub fn open(&self) {
        self.waiting.lock().open = true;
    }

    /// Drops everything, and what comes from now on.
    pub fn close(&self) {
        let mut waiting = self.waiting.lock();
        *waiting = Waiting {
            dropped: waiting.dropped + waiting.messages.len() as u64,
            times_left: waiting.times_left,
            ..Waiting::default()
        };
    }

    /// Whether messages were dropped since the last time it was asked because there was no room.
    pub fn overflowed(&self) -> bool {
        std::mem::take(&mut self.waiting.lock().overflowed)
    }

    /// Bytes that wait, and messages that were dropped in all.
    pub fn status(&self) -> (usize, u64) {
        let waiting = self.waiting.lock();
        (waiting.bytes, waiting.dropped)
    }
}

impl Waiting {
    /// False: the task must be woken, to write or to fail.
    fn send_for_task(&mut self, me: &Introduction, sent: &Count) -> bool {
        // The task tells of what had no room.
        if self.overflowed || self.bytes > AT_ONCE_BYTES {
            return false;
        }
        let Some(mut left) = self.left.take() else {
            return false;
        };
        // With something new to say of this server it must dial again.
        if left.me == *me && !left.rest.has_remaining() {
            left.rest = encode(self.take(usize::MAX), sent);
            left.write_some();
        }
        let is_done = self.messages.is_empty() && !left.rest.has_remaining();
        self.left = Some(left);
        is_done
    }

    fn take(&mut self, bytes_max: usize) -> Vec<PeerMessage> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some((_, weight)) = self.messages.front() {
            bytes += weight;
            if bytes > bytes_max && !taken.is_empty() {
                break;
            }
            if let Some((message, weight)) = self.messages.pop_front() {
                self.bytes -= weight;
                taken.push(message);
            }
        }
        taken
    }
}

/// The frames of these messages.
fn encode(messages: Vec<PeerMessage>, sent: &Count) -> Batch {
    let mut batch = Batch::default();
    let (mut frames, mut bytes) = (0, 0);
    for message in messages {
        let body = message.encode();
        if body.len() > BODY_BYTES_MAX {
            let bytes = body.len();
            tracing::error!(bytes, "a message to a peer is too large to be sent");
            continue;
        }
        frames += 1;
        bytes += body.len();
        batch.push(body);
    }
    sent.add(frames, bytes);
    batch.sealed()
}

impl Left {
    /// Writes what the system takes now. An error is met again by the task.
    fn write_some(&mut self) {
        while self.rest.has_remaining() {
            let mut slices = [IoSlice::new(&[]); 8];
            let count = self.rest.chunks_vectored(&mut slices);
            match self.write.try_write_vectored(&slices[..count]) {
                Ok(0) => return,
                Ok(written) => self.rest.advance(written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

impl Waits<'_> {
    /// Until there may be something to do for the task.
    pub async fn woken(&self) {
        self.queue.filled.notified().await;
    }

    /// The socket, and what has to be written first.
    pub fn ended(self) -> Option<(OwnedWriteHalf, Batch)> {
        self.take_back()
    }

    fn take_back(&self) -> Option<(OwnedWriteHalf, Batch)> {
        let left = &mut self.queue.waiting.lock().left;
        // A task that comes after this one may have left another.
        let left = left.take_if(|left| left.number == self.number)?;
        Some((left.write, left.rest))
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.take_back();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::net::peer::frame::FrameReader;
    use crate::proto::log::{self, Command};

    fn forward(bytes: usize) -> PeerMessage {
        let body = Bytes::from(vec![0; bytes]);
        PeerMessage::Forward(log::Batch {
            commands: vec![Command {
                body,
                ..Command::default()
            }],
            ..log::Batch::default()
        })
    }

    fn taken(queue: &Queue, bytes_max: usize) -> usize {
        queue.waiting.lock().take(bytes_max).len()
    }

    fn me(boot: u64) -> Introduction {
        Introduction {
            server: 1,
            boot,
            ..Introduction::default()
        }
    }

    /// A lane that is up: this end's way out, and the other end.
    async fn lane() -> (OwnedWriteHalf, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (other, _) = listener.accept().await.unwrap();
        let (_, write) = stream.unwrap().into_split();
        write.writable().await.unwrap();
        (write, other)
    }

    /// The task of this lane waits.
    async fn left(queue: &Queue) -> (Waits<'_>, TcpStream) {
        queue.open();
        let (write, other) = lane().await;
        (queue.leave(write, me(1)).unwrap(), other)
    }

    async fn is_woken(waits: &Waits<'_>) -> bool {
        let woken = tokio::time::timeout(Duration::from_millis(50), waits.woken());
        woken.await.is_ok()
    }

    #[tokio::test]
    async fn whoever_puts_messages_in_writes_them_while_the_task_waits() {
        let queue = bulk();
        let (waits, other) = left(&queue).await;
        for bytes in [1, 20_000, 3] {
            queue.push(forward(bytes));
        }
        queue.send(&me(1));
        assert_eq!(queue.status().0, 0);
        assert_eq!(queue.sent().frames, 3);
        let mut reader = FrameReader::new(other, BODY_BYTES_MAX);
        for bytes in [1, 20_000, 3] {
            let body = reader.next().await.unwrap().unwrap();
            assert_eq!(body, forward(bytes).encode());
        }
        assert!(!is_woken(&waits).await, "for nothing");
        assert!(waits.ended().is_some_and(|(_, rest)| !rest.has_remaining()));
    }

    #[tokio::test]
    async fn what_the_socket_does_not_take_goes_first_and_by_the_task() {
        let queue = bulk();
        let (waits, other) = left(&queue).await;
        let mut pushed = 0;
        while queue.waiting.lock().messages.is_empty() {
            queue.push(forward(60_000));
            queue.send(&me(1));
            pushed += 1;
        }
        assert!(is_woken(&waits).await);
        let (mut write, mut rest) = waits.ended().unwrap();
        let mut behind = queue.take(usize::MAX).unwrap();
        let written = tokio::spawn(async move {
            write.write_all_buf(&mut rest).await.unwrap();
            write.write_all_buf(&mut behind).await.unwrap();
        });
        let mut reader = FrameReader::new(other, BODY_BYTES_MAX);
        let mut read = 0;
        while let Some(body) = reader.next().await.unwrap() {
            assert_eq!(body, forward(60_000).encode());
            read += 1;
        }
        written.await.unwrap();
        assert_eq!(read, pushed);
    }

    #[tokio::test]
    async fn the_task_is_woken_for_what_others_must_not_write() {
        let queue = bulk();
        let (waits, _other) = left(&queue).await;
        queue.push(forward(1));
        queue.send(&me(2));
        assert!(is_woken(&waits).await, "it has to introduce itself anew");
        let (write, _) = waits.ended().unwrap();
        let write = queue.leave(write, me(1)).unwrap_err();
        assert_eq!(taken(&queue, 1), 1);
        let waits = queue.leave(write, me(1)).unwrap();
        queue.push(forward(AT_ONCE_BYTES));
        queue.send(&me(1));
        assert!(is_woken(&waits).await, "it is long");
        let (write, _) = waits.ended().unwrap();
        assert_eq!(taken(&queue, 1), 1);
        let waits = queue.leave(write, me(1)).unwrap();
        queue.push(forward(1));
        queue.push(forward(BULK_BYTES_MAX));
        queue.send(&me(1));
        assert!(is_woken(&waits).await, "it has to tell of what had no room");
    }

    #[tokio::test]
    async fn a_task_that_ends_late_takes_no_other_socket_away() {
        let queue = bulk();
        let (before, _one) = left(&queue).await;
        let (waits, _other) = left(&queue).await;
        drop(before);
        assert!(waits.ended().is_some());
    }

    #[test]
    fn what_has_no_room_is_dropped_and_counted() {
        let queue = Queue::new(1_000);
        queue.push(forward(1));
        assert_eq!(queue.status(), (0, 1));
        assert!(!queue.overflowed(), "a closed queue does not overflow");
        queue.open();
        // One that is larger than all room has it alone.
        queue.push(forward(5_000));
        queue.push(forward(1));
        assert!(queue.overflowed() && !queue.overflowed());
        assert_eq!(taken(&queue, 10), 1);
        for _ in 0..20 {
            queue.push(forward(100));
        }
        let (bytes, dropped) = queue.status();
        assert!(bytes <= 1_000 && dropped > 10, "{bytes} {dropped}");
        assert_eq!(taken(&queue, 400), 2);
        let left = 20 + 2 - dropped - 2;
        queue.close();
        assert_eq!(queue.status(), (0, dropped + left));
        assert!(queue.take(1_000).is_none());
    }
}

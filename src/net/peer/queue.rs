//! What waits to be sent to a peer, in one lane.

use std::collections::VecDeque;

use parking_lot::Mutex;
use prost::Message as _;
use raft::eraftpb::MessageType;
use tokio::sync::Notify;

use crate::engine::PeerMessage;

/// Bytes that wait for one peer at most: see [`bulk`] and [`urgent`].
const BULK_BYTES_MAX: usize = 56 << 20;
const URGENT_BYTES_MAX: usize = 8 << 20;
/// What a message takes beyond its content.
const MESSAGE_BYTES: usize = 64;
const ENTRY_BYTES: usize = 32;

/// A bounded queue. While it is closed, what is put in is dropped.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    open: bool,
    messages: VecDeque<(PeerMessage, usize)>,
    bytes: usize,
    dropped: u64,
    overflowed: bool,
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
        }
    }

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
        let is_first = waiting.messages.len() == 1;
        drop(waiting);
        if is_first {
            self.filled.notify_one();
        }
    }

    /// Takes what there is, up to so many bytes, but one message at least.
    pub fn take(&self, bytes_max: usize) -> Vec<PeerMessage> {
        let mut waiting = self.waiting.lock();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some((_, weight)) = waiting.messages.front() {
            bytes += weight;
            if bytes > bytes_max && !taken.is_empty() {
                break;
            }
            if let Some((message, weight)) = waiting.messages.pop_front() {
                waiting.bytes -= weight;
                taken.push(message);
            }
        }
        taken
    }

    /// Waits until there may be something. For one task at a time.
    pub async fn filled(&self) {
        if self.waiting.lock().messages.is_empty() {
            self.filled.notified().await;
        }
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::proto::log::{Batch, Command};

    fn forward(bytes: usize) -> PeerMessage {
        let body = Bytes::from(vec![0; bytes]);
        PeerMessage::Forward(Batch {
            commands: vec![Command {
                body,
                ..Command::default()
            }],
            ..Batch::default()
        })
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
        assert_eq!(queue.take(10).len(), 1);
        for _ in 0..20 {
            queue.push(forward(100));
        }
        let (bytes, dropped) = queue.status();
        assert!(bytes <= 1_000 && dropped > 10, "{bytes} {dropped}");
        assert_eq!(queue.take(400).len(), 2);
        let left = 20 + 2 - dropped - 2;
        queue.close();
        assert_eq!(queue.status(), (0, dropped + left));
        assert!(queue.take(1_000).is_empty());
    }
}

//! This server's numbered stream of writes.
//!
//! Each server sends its clients' writes to the leader as one stream, numbered 1, 2, 3 … under an
//! origin that no other server and no earlier start of this one has. The machine remembers the last
//! number it applied per origin, trims what it has seen and ignores what leaves a gap. So this
//! queue may send again whenever it does not know: nothing happens twice, nothing changes places.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::machine::OriginId;
use crate::proto::log;

use super::connection::Connection;

/// Who waits for a command.
#[derive(Clone, Debug)]
pub enum Waiter {
    /// The connection's oldest write.
    Write(Arc<Connection>),
    /// The connection's handshake.
    Connect(Arc<Connection>),
    /// No one: the command only has to keep its place in the stream.
    NoOne,
}

/// Commands in one Raft entry, at most.
pub const COMMANDS_PER_ENTRY: usize = 1_000;
/// Bytes of commands in one Raft entry, unless a single one is bigger.
pub const BYTES_PER_ENTRY: usize = 1 << 20;

#[derive(Debug)]
pub struct Forward {
    origin: OriginId,
    /// Number of the first command in the queue.
    first: u64,
    queue: VecDeque<(log::Command, Waiter)>,
    /// How many from the front are on their way.
    sent: usize,
}

impl Forward {
    pub fn new(origin: OriginId) -> Self {
        Self {
            origin,
            first: 1,
            queue: VecDeque::new(),
            sent: 0,
        }
    }

    pub fn push(&mut self, command: log::Command, waiter: Waiter) {
        self.queue.push_back((command, waiter));
    }

    /// The next commands that are not on their way, as much as one entry holds.
    pub fn next_batch(&self) -> Option<log::Batch> {
        let mut bytes = 0;
        let mut commands = Vec::new();
        for (command, _) in self.queue.range(self.sent..) {
            bytes += command.body.len();
            let full = commands.len() == COMMANDS_PER_ENTRY || bytes > BYTES_PER_ENTRY;
            if full && !commands.is_empty() {
                break;
            }
            commands.push(command.clone());
        }
        let origin = log::Origin {
            server: self.origin.server,
            disk: self.origin.disk,
            incarnation: self.origin.incarnation,
        };
        let first = self.first + self.sent as u64;
        (!commands.is_empty()).then_some(log::Batch {
            origin: Some(origin),
            first,
            commands,
        })
    }

    /// The batch from [`Self::next_batch`] is on its way.
    pub fn sent(&mut self, commands: usize) {
        self.sent += commands;
    }

    /// What is on its way may be lost: send everything again that is not applied.
    pub fn resend(&mut self) {
        self.sent = 0;
    }

    /// A command of some origin was applied: which one of ours, and who waits for it here?
    pub fn applied(&mut self, origin: OriginId, number: u64) -> Option<(log::Command, Waiter)> {
        // Answers belong to an incarnation: numbers start again in each.
        if origin != self.origin {
            return None;
        }
        assert_eq!(
            number, self.first,
            "commands of a stream are applied in order"
        );
        let applied = self
            .queue
            .pop_front()
            .expect("an applied command was in the queue");
        self.first += 1;
        self.sent = self.sent.saturating_sub(1);
        Some(applied)
    }

    /// Commands that are not applied yet.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: OriginId = OriginId {
        server: 1,
        disk: 2,
        incarnation: 3,
    };

    fn forward(sizes: &[usize]) -> Forward {
        let mut forward = Forward::new(ORIGIN);
        for size in sizes {
            let body = vec![0; *size].into();
            forward.push(
                log::Command {
                    body,
                    ..log::Command::default()
                },
                Waiter::NoOne,
            );
        }
        forward
    }

    #[test]
    fn what_is_not_applied_is_sent_again_under_the_same_numbers() {
        let mut forward = forward(&[1, 1, 1]);
        let batch = forward.next_batch().unwrap();
        assert_eq!((batch.first, batch.commands.len()), (1, 3));
        forward.sent(3);
        assert_eq!(forward.next_batch(), None);
        assert!(forward.applied(ORIGIN, 1).is_some());
        forward.resend();
        let batch = forward.next_batch().unwrap();
        assert_eq!((batch.first, batch.commands.len()), (2, 2));
    }

    #[test]
    fn an_entry_is_bounded_but_a_big_command_still_goes() {
        let mut forward = forward(&[BYTES_PER_ENTRY + 1, 10, BYTES_PER_ENTRY, 10]);
        let mut sizes = Vec::new();
        while let Some(batch) = forward.next_batch() {
            sizes.push(batch.commands.len());
            forward.sent(batch.commands.len());
        }
        assert_eq!(sizes, [1, 1, 1, 1]);
    }

    #[test]
    fn commands_of_another_incarnation_are_nobodys() {
        let mut forward = forward(&[1]);
        assert!(
            forward
                .applied(
                    OriginId {
                        incarnation: 2,
                        ..ORIGIN
                    },
                    1
                )
                .is_none()
        );
        assert_eq!(forward.len(), 1);
    }
}

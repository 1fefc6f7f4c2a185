//! Servers that are too far behind for the log, and how they catch up: by a snapshot.
//!
//! Raft only ever sees what a snapshot is of. Its file travels beside the messages and is durable
//! at the receiver before raft is given it.

use raft::eraftpb::{Message, MessageType};

use crate::machine::{LogId, Machine};

use super::{Engine, Outputs, PeerMessage, SendSnapshot, SnapshotMeta};

/// A snapshot on its way to another server, until that has caught up with it.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    index: u64,
    /// When it was there as a whole.
    stored_ms: Option<u64>,
}

impl Engine {
    /// Hands messages of raft's to the network; a snapshot's file goes its own way.
    pub(super) fn send(&mut self, messages: Vec<Message>, out: &mut Outputs) {
        for message in messages {
            if message.get_msg_type() != MessageType::MsgSnapshot {
                out.sends.push((message.to, PeerMessage::Raft(message)));
                continue;
            }
            let metadata = message.get_snapshot().get_metadata();
            let transfer = Transfer {
                index: metadata.index,
                stored_ms: None,
            };
            self.transfers.insert(message.to, transfer);
            out.send_snapshot.push(SendSnapshot {
                to: message.to,
                index: metadata.index,
                term: metadata.term,
            });
        }
    }

    /// How sending a snapshot ended.
    pub(super) fn snapshot_sent(&mut self, to: u64, ok: bool) {
        self.replica.snapshot_sent(to, ok);
        if !ok {
            self.transfers.remove(&to);
        } else if let Some(transfer) = self.transfers.get_mut(&to) {
            transfer.stored_ms = Some(self.now_ms);
        }
    }

    /// The log that follows a snapshot is kept until its receiver has begun to ask for it, or has
    /// had time enough to load it (`initLimit`).
    pub(super) fn look_after_transfers(&mut self) {
        let (replica, now_ms) = (&self.replica, self.now_ms);
        let init_limit_ms = self.shared.options.init_limit_ms;
        self.transfers.retain(|to, transfer| {
            let Transfer { index, stored_ms } = *transfer;
            let is_late = stored_ms.is_some_and(|stored_ms| now_ms > stored_ms + init_limit_ms);
            if is_late {
                tracing::warn!(
                    server = to,
                    index,
                    "the snapshot was not loaded within initLimit; the log after it is not kept"
                );
            }
            let lacks_more = |matched| matched <= index;
            !is_late && replica.matched(*to).is_some_and(lacks_more)
        });
        self.replica.set_transfer(!self.transfers.is_empty());
    }

    /// Gives raft the snapshot that was received, once there is a leader to have it from.
    pub(super) fn offer_received(&mut self) -> Option<Box<(SnapshotMeta, Machine)>> {
        let leader = self.replica.leader();
        if leader == 0 || leader == self.id {
            return None;
        }
        let received = self.received.take()?;
        self.replica.offer_snapshot(&received.0.mark());
        Some(received)
    }

    /// The state is that of a snapshot from now on. What became of the writes that are on their way
    /// is not known any more, nor which watches would have fired: all clients come again, and the
    /// stream of writes begins anew under another incarnation, or an old command could be taken for
    /// a new one of the same number.
    pub(super) fn install(&mut self, meta: &SnapshotMeta, machine: Machine) {
        tracing::info!(
            index = meta.index,
            "a snapshot of the leader's was installed"
        );
        self.at_level(machine.level());
        self.agreement.begin_anew();
        let lost = self.forward.begin_anew();
        let waiting = self.barrier.take();
        {
            let mut state = self.shared.state.write();
            state.machine = machine;
            self.shared.registry.lock().sessions.clear();
        }
        for (command, _) in &lost {
            self.shared.submission_done(command.body.len());
        }
        waiting.iter().for_each(|_| self.shared.submission_done(0));
        self.shared.close_where(|_| true);
        self.proposed.clear();
        self.links_due = true;
        self.applied = LogId {
            index: meta.index,
            term: meta.term,
        };
        self.snapshot.entries = 0;
        self.snapshot.bytes = 0;
        self.snapshot.due = false;
        self.update_say();
    }
}

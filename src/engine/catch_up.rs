//! Servers that are too far behind for the log, and how they catch up: by a snapshot.
//!
//! Raft only ever sees what a snapshot is of. Its file travels beside the messages and is durable
//! at the receiver before raft is given it.

use raft::eraftpb::{Message, MessageType};

use crate::machine::{LogId, Machine};

use super::{Engine, Outputs, PeerMessage, SendSnapshot, SnapshotMeta};

/// Raft asks again for a snapshot that there is not yet, several times within this.
const MISSED_MS: u64 = 2_000;

/// A snapshot on its way to another server, until that can go on with the log as it usually is.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    index: u64,
    /// What the server had of the log when that was looked at last.
    matched: u64,
    /// When the snapshot was there as a whole, or something of the log after it last arrived.
    since_ms: Option<u64>,
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
                matched: 0,
                since_ms: None,
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
            return;
        }
        self.shared.metrics.snap_count.add(1);
        if let Some(transfer) = self.transfers.get_mut(&to) {
            transfer.since_ms = Some(self.now_ms);
        }
    }

    /// The log that follows a snapshot is kept until its receiver finds what it lacks in what is
    /// kept anyway. Under load that takes a while: it has to read faster than others write. A
    /// receiver that does not go on for `initLimit`, as long as it may take to load the snapshot,
    /// is not waited for. While a snapshot is made for somebody, what follows it is kept as well.
    pub(super) fn look_after_transfers(&mut self) {
        if self.replica.is_snapshot_missed() {
            self.snapshot_missed_ms = Some(self.now_ms);
        }
        let is_made = |missed_ms: u64| self.now_ms <= missed_ms + MISSED_MS;
        let is_made = self.replica.is_leader() && self.snapshot_missed_ms.is_some_and(is_made);
        if self.transfers.is_empty() {
            self.replica.set_transfer(is_made);
            return;
        }
        let (replica, now_ms) = (&self.replica, self.now_ms);
        let usual_from = replica.usual_from();
        let init_limit_ms = self.shared.options.init_limit_ms;
        self.transfers.retain(|to, transfer| {
            let Some(matched) = replica.matched(*to) else {
                return false;
            };
            let is_loaded = matched > transfer.index;
            if is_loaded && matched > transfer.matched {
                transfer.since_ms = Some(now_ms);
            }
            transfer.matched = matched;
            let is_over = |since_ms: u64| now_ms > since_ms + init_limit_ms;
            let is_late = transfer.since_ms.is_some_and(is_over);
            if is_late {
                let index = transfer.index.max(matched);
                tracing::warn!(
                    server = to,
                    index,
                    "after a snapshot, the server did not go on within initLimit; the log for it \
                     is not kept"
                );
            }
            !is_late && (!is_loaded || matched + 1 < usual_from)
        });
        self.replica
            .set_transfer(is_made || !self.transfers.is_empty());
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

    /// Nobody will be told what becomes of the writes that are on their way: those who wait for
    /// that come again. What was not sent never takes effect.
    pub(super) fn give_up_submissions(&mut self) {
        for (command, _) in self.forward.begin_anew() {
            self.shared.submission_done(command.body.len());
        }
        for _ in self.barrier.take() {
            self.shared.submission_done(0);
        }
        self.shared.close_where(|_| true);
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
        {
            let mut state = self.shared.state.write();
            state.machine = machine;
            self.shared.registry.lock().sessions.clear();
        }
        self.give_up_submissions();
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

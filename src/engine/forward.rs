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
use crate::wire::op;

use super::connection::Connection;

/// Who waits for a command.
#[derive(Clone, Debug)]
pub enum Waiter {
    /// The connection's oldest write.
    Write(Arc<Connection>),
    /// The connection's handshake.
    Connect(Arc<Connection>),
    /// The connection's session goes over into the log.
    Upgrade(Arc<Connection>),
    /// No one: the command only has to keep its place in the stream.
    NoOne,
}

/// Commands in one Raft entry, at most.
pub const COMMANDS_PER_ENTRY: usize = 1_000;
/// Bytes of commands in one Raft entry, unless a single one is bigger.
pub const BYTES_PER_ENTRY: usize = 1 << 20;
/// Engine ticks without progress after which everything is sent to the leader again, at first; then
/// twice as many each time, because a leader whose disk is slow is not helped by it.
const TICKS_PATIENCE: u32 = 20;
const TICKS_PATIENCE_MAX: u32 = 320;
/// Ticks after a gap in which others call for nothing: most are its consequences, and a leader that
/// loses much of what it gets is not to get ever more.
const TICKS_DEAF: u32 = 3;
/// What a command takes besides its body, about.
const COMMAND_BYTES: usize = 64;
/// Bytes of other servers' commands that wait to be proposed. What comes beyond is dropped, and
/// sent again by its server.
const INBOUND_BYTES_MAX: usize = 64 << 20;

#[derive(Debug)]
pub struct Forward {
    origin: OriginId,
    /// Number of the first command in the queue.
    first: u64,
    queue: VecDeque<(log::Command, Waiter)>,
    /// How many from the front are on their way.
    sent: usize,
    /// Ticks since the first of them moved on, and how many are too many.
    ticks: u32,
    patience: u32,
    /// Ticks in which a gap calls for nothing, since everything was just sent again.
    deaf: u32,
    /// There was one meanwhile, and nothing was applied since.
    deaf_to_gap: bool,
}

impl Forward {
    pub fn new(origin: OriginId) -> Self {
        Self {
            origin,
            first: 1,
            queue: VecDeque::new(),
            sent: 0,
            ticks: 0,
            patience: TICKS_PATIENCE,
            deaf: 0,
            deaf_to_gap: false,
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
            // A reconfig is an entry of its own: it may change who has a say.
            let alone = command.op == op::RECONFIG;
            if (full || alone) && !commands.is_empty() {
                break;
            }
            commands.push(command.clone());
            if alone {
                break;
            }
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

    /// Whether there are commands that are not on their way.
    pub fn has_more(&self) -> bool {
        self.queue.len() > self.sent
    }

    /// The batch from [`Self::next_batch`] is on its way.
    pub fn sent(&mut self, commands: usize) {
        self.sent += commands;
    }

    /// What is on its way may be lost: send everything again that is not applied. Whatever gap is
    /// seen next calls for more.
    pub fn resend(&mut self) {
        self.sent = 0;
        self.ticks = 0;
        self.deaf = 0;
        self.deaf_to_gap = false;
    }

    /// What became of the commands so far is not known: they are given up, and the stream begins
    /// again with the next incarnation.
    pub fn begin_anew(&mut self) -> VecDeque<(log::Command, Waiter)> {
        self.origin.incarnation += 1;
        self.first = 1;
        self.resend();
        std::mem::take(&mut self.queue)
    }

    /// One engine tick passed while another server leads. What it got may be lost without a word.
    pub fn tick(&mut self) {
        self.deaf = self.deaf.saturating_sub(1);
        if self.deaf == 0 && self.deaf_to_gap {
            self.resend_for_gap();
        }
        if self.sent == 0 {
            self.ticks = 0;
            return;
        }
        self.ticks += 1;
        if self.ticks >= self.patience {
            self.patience = (2 * self.patience).min(TICKS_PATIENCE_MAX);
            self.resend();
        }
    }

    /// These batches are about to be applied. If some of ours will be ignored, everything is sent
    /// again.
    ///
    /// What was sent behind the loss before it was noticed will be ignored as well, and comes out
    /// of the log before anything that was sent again. So if something of ours is applied, the gaps
    /// so far are dealt with; if not, what was sent again may have been lost too, as it is when one
    /// leader is lost soon after another one.
    pub fn look_for_gap(&mut self, batches: &[log::Batch]) {
        match self.has_gap(batches) {
            true if self.deaf == 0 => self.resend_for_gap(),
            true => self.deaf_to_gap = true,
            false => {}
        }
    }

    fn resend_for_gap(&mut self) {
        self.resend();
        self.deaf = TICKS_DEAF;
    }

    /// Whether some of these batches are ours and will be ignored, because what stands before them
    /// was lost on its way to the leader.
    fn has_gap(&self, batches: &[log::Batch]) -> bool {
        let mut next = self.first;
        let own = batches
            .iter()
            .filter(|batch| batch.origin.as_ref().map(OriginId::from) == Some(self.origin));
        for batch in own {
            if batch.first > next {
                return true;
            }
            next = next.max(batch.first + batch.commands.len() as u64);
        }
        false
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
        self.ticks = 0;
        self.patience = TICKS_PATIENCE;
        self.deaf_to_gap = false;
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

/// Other servers' commands that this leader has not proposed yet.
#[derive(Debug, Default)]
pub struct Inbound {
    batches: VecDeque<log::Batch>,
    bytes: usize,
}

impl Inbound {
    /// Takes a batch in, if there is room.
    pub fn push(&mut self, batch: log::Batch) {
        let bytes = size(&batch);
        if self.bytes + bytes <= INBOUND_BYTES_MAX || self.batches.is_empty() {
            self.bytes += bytes;
            self.batches.push_back(batch);
        }
    }

    /// Takes as many as one entry holds.
    pub fn take(&mut self) -> Vec<log::Batch> {
        let mut taken = Vec::new();
        let (mut bytes, mut commands) = (0, 0);
        while let Some(batch) = self.batches.front() {
            bytes += size(batch);
            commands += batch.commands.len();
            let full = commands > COMMANDS_PER_ENTRY || bytes > BYTES_PER_ENTRY;
            let alone = is_reconfig(batch);
            if (full || alone) && !taken.is_empty() {
                break;
            }
            taken.extend(self.batches.pop_front());
            if alone {
                break;
            }
        }
        self.bytes -= taken.iter().map(size).sum::<usize>();
        taken
    }

    /// Puts back what was taken and could not be proposed.
    pub fn put_back(&mut self, batches: Vec<log::Batch>) {
        self.bytes += batches.iter().map(size).sum::<usize>();
        for batch in batches.into_iter().rev() {
            self.batches.push_front(batch);
        }
    }

    /// Drops those of the servers that are not to be kept.
    pub fn keep(&mut self, mut is_kept: impl FnMut(u64) -> bool) {
        self.batches.retain(|batch| {
            let origin = batch.origin.as_ref();
            origin.is_some_and(|origin| is_kept(u64::from(origin.server)))
        });
        self.bytes = self.batches.iter().map(size).sum();
    }

    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub fn clear(&mut self) {
        self.batches.clear();
        self.bytes = 0;
    }
}

/// Whether it is a reconfig, which comes alone.
pub fn is_reconfig(batch: &log::Batch) -> bool {
    batch
        .commands
        .iter()
        .any(|command| command.op == op::RECONFIG)
}

fn size(batch: &log::Batch) -> usize {
    let commands = batch.commands.iter();
    commands
        .map(|command| command.body.len() + COMMAND_BYTES)
        .sum()
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
    fn what_the_leader_never_got_is_sent_again_ever_more_rarely() {
        let mut forward = forward(&[1, 1]);
        let mut waited = Vec::new();
        for _ in 0..4 {
            let batch = forward.next_batch().unwrap();
            assert_eq!((batch.first, batch.commands.len()), (1, 2));
            forward.sent(2);
            let mut ticks = 0;
            while forward.next_batch().is_none() {
                forward.tick();
                ticks += 1;
            }
            waited.push(ticks);
        }
        assert_eq!(waited, [20, 40, 80, 160]);
        // Progress, and it is as patient as at first.
        forward.sent(2);
        assert!(forward.applied(ORIGIN, 1).is_some());
        (1..TICKS_PATIENCE).for_each(|_| forward.tick());
        assert!(forward.next_batch().is_none());
        forward.tick();
        assert_eq!(forward.next_batch().unwrap().first, 2);
    }

    #[test]
    fn a_gap_in_the_own_stream_is_seen() {
        let mut forward = forward(&[1, 1, 1]);
        let batch = forward.next_batch().unwrap();
        let from = |first| log::Batch {
            first,
            ..batch.clone()
        };
        assert!(!forward.has_gap(&[from(1), from(4), from(2)]));
        assert!(forward.has_gap(&[from(2)]));
        assert!(forward.has_gap(&[from(1), from(5)]));
        let other = log::Origin {
            server: 9,
            ..log::Origin::default()
        };
        let others = log::Batch {
            origin: Some(other),
            ..from(2)
        };
        assert!(!forward.has_gap(&[others]));
        forward.sent(3);
        assert!(forward.applied(ORIGIN, 1).is_some());
        assert!(!forward.has_gap(&[from(2)]));
    }

    /// Sends all that is not on its way, and returns the batch.
    fn send(forward: &mut Forward) -> Option<log::Batch> {
        let batch = forward.next_batch()?;
        forward.sent(batch.commands.len());
        Some(batch)
    }

    #[test]
    fn the_consequences_of_a_gap_call_for_nothing() {
        let mut forward = forward(&[]);
        let mut sent = Vec::new();
        for _ in 0..4 {
            forward.push(log::Command::default(), Waiter::NoOne);
            sent.extend(send(&mut forward));
        }
        // The first is lost. What follows it is seen as it comes out of the log.
        forward.look_for_gap(&sent[1..2]);
        let again = send(&mut forward).unwrap();
        assert_eq!((again.first, again.commands.len()), (1, 4));
        forward.look_for_gap(&sent[2..3]);
        forward.look_for_gap(&sent[3..]);
        assert_eq!(send(&mut forward), None);
        forward.look_for_gap(&[again]);
        assert!(forward.applied(ORIGIN, 1).is_some());
        (0..TICKS_DEAF).for_each(|_| forward.tick());
        assert_eq!(send(&mut forward), None);
    }

    #[test]
    fn if_what_is_sent_again_is_lost_too_that_is_noticed_soon() {
        let mut forward = forward(&[1, 1]);
        let late = log::Batch {
            first: 2,
            ..send(&mut forward).unwrap()
        };
        forward.look_for_gap(std::slice::from_ref(&late));
        assert!(send(&mut forward).is_some());
        forward.look_for_gap(std::slice::from_ref(&late));
        let mut ticks = 0;
        while send(&mut forward).is_none() {
            forward.tick();
            ticks += 1;
        }
        assert_eq!(ticks, TICKS_DEAF);
        // At once with another leader.
        forward.look_for_gap(std::slice::from_ref(&late));
        assert_eq!(send(&mut forward), None);
        forward.resend();
        assert!(send(&mut forward).is_some());
        forward.look_for_gap(std::slice::from_ref(&late));
        assert!(send(&mut forward).is_some());
    }

    #[test]
    fn what_is_taken_in_for_others_is_bounded_and_keeps_its_order() {
        let batch = |first: u64, bytes: usize| log::Batch {
            origin: None,
            first,
            commands: vec![log::Command {
                body: vec![0; bytes].into(),
                ..log::Command::default()
            }],
        };
        let firsts = |batches: &[log::Batch]| batches.iter().map(|b| b.first).collect::<Vec<_>>();
        let mut inbound = Inbound::default();
        for first in 1..=4 {
            inbound.push(batch(first, BYTES_PER_ENTRY / 2 - COMMAND_BYTES));
        }
        let taken = inbound.take();
        assert_eq!(firsts(&taken), [1, 2]);
        inbound.put_back(taken);
        assert_eq!(firsts(&inbound.take()), [1, 2]);
        assert_eq!(firsts(&inbound.take()), [3, 4]);
        assert!(inbound.take().is_empty());
        // One that is too big still goes, and what has no room is dropped.
        inbound.push(batch(5, INBOUND_BYTES_MAX + 1));
        inbound.push(batch(6, 1));
        assert_eq!(firsts(&inbound.take()), [5]);
        assert!(inbound.take().is_empty());
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

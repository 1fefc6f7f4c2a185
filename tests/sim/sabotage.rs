//! Deliberate bugs, so that the checkers are checked: each must be caught by the right one.
//!
//! A bug of the world around the core (log, disk, clocks, sockets) is played there; what the core
//! would do wrong itself is shown by spoiling what it sends, which looks the same to a client.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use raft::eraftpb::{Message, MessageType};
use zkraft::engine::{PeerMessage, SnapshotMeta};
use zkraft::machine::{Machine, RestoreError};
use zkraft::proto::log::{Batch, LogEntry, Membership};
use zkraft::proto::peer::Touched;
use zkraft::storage::Recovery;
use zkraft::wire::{ErrorCode, op};

use crate::check::{Group, state};
use crate::params::{FoundingParams, LevelParams, LocalParams, Params};
use crate::rng::Rng;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sabotage {
    None,
    /// Writes are reported durable when they are handed to the disk.
    AckBeforeSync,
    /// The log drops what it is given.
    ForgetWrites,
    /// Recovery finds one entry less.
    LoseLastEntry,
    /// A snapshot lacks the last of the entries that it claims to hold.
    SnapshotOneShort,
    /// So does a snapshot that goes to another server, and only that.
    SentOneShort,
    /// Two replies of a connection change places.
    SwapReplies,
    /// An event comes after the reply that it had to precede.
    EventAfterReply,
    /// An event is lost.
    DropEvent,
    /// A client that comes back is not told what it missed.
    ForgetMissed,
    /// An event comes twice.
    RepeatEvent,
    /// A reply claims a later state than it shows.
    OverstateZxid,
    /// A read is answered from an earlier state.
    UnderstateZxid,
    /// The session clock runs half as fast again.
    FastClock,
    /// Who begins to lead counts silence from before.
    NoGrace,
    /// The leader ends no session.
    NeverEnd,
    /// In a pause the session clock runs on, while nobody reads the sockets.
    DeafPause,
    /// A server speaks as if everything were durable as soon as it is handed to the disk.
    SpeakBeforeWrite,
    /// A start forgets for whom the server has voted.
    ForgetVote,
    /// A server takes itself for the only one.
    LoneVoter,
    /// What servers send the leader again counts again.
    NoOriginCheck,
    /// Servers believe that their touches are confirmed, whoever gets them.
    ForgedTouched,
    /// Servers do not tell the leader whom they have heard.
    ForgetHeard,
    /// Reads do not wait for what was answered before them, as they are said to do.
    StaleReads,
    /// A sync is answered before the leader was asked.
    StaleSyncs,
    /// A start takes rot in the log for a torn tail.
    CutRot,
    /// A bit of one server's state changes by itself, which the server must notice.
    FlipBit,
    /// The same, which the checkers must notice.
    FlipBitUntold,
    /// A server that lost its disk takes part at once.
    AdmitEmpty,
    /// A server is connected whatever its disk is.
    AdmitAnyDisk,
    /// A snapshot that was received is not given to the engine.
    LoseReceived,
    /// An installed snapshot does not begin the stream of writes anew.
    KeepIncarnation,
    /// Who only follows is counted among those with a vote.
    LearnersVote,
    /// Watches that a client sets again are forgotten.
    ForgetRearmed,
    /// Servers do not tell each other who the servers are.
    TellNothing,
    /// Servers say that they know a higher feature level than they do.
    ClaimLevel,
    /// A server goes on though it is too old.
    IgnoreLevel,
    /// Sessions are in the log though their servers are to keep them.
    TellOfLocal,
    /// Such sessions do not go over into the log.
    KeepLocal,
    /// A client that comes back to its local session is not known any more.
    ForgetLocal,
    /// A server that only lets read says that it wrote.
    GrantWrites,
    /// It takes clients that have seen more than it has.
    ForgetSeen,
    /// Servers without a majority serve nobody.
    NeverReadOnly,
    /// A majority founds the ensemble, though all should.
    FoundAnyway,
}

/// A setting that shows to nobody unless somebody tries to change the servers.
const HIDDEN: &str = "reconfig_enabled";

/// Every sabotage, and the checkers that may notice it first.
pub const ALL: &[(Sabotage, &[Group])] = &[
    (Sabotage::AckBeforeSync, &[Group::Log]),
    (Sabotage::ForgetWrites, &[Group::Log]),
    (Sabotage::LoseLastEntry, &[Group::Log]),
    (Sabotage::SnapshotOneShort, &[Group::State]),
    (Sabotage::SentOneShort, &[Group::State]),
    (Sabotage::SwapReplies, &[Group::Replies]),
    (Sabotage::EventAfterReply, &[Group::Watches]),
    (Sabotage::DropEvent, &[Group::Watches]),
    (Sabotage::ForgetMissed, &[Group::Watches]),
    (Sabotage::RepeatEvent, &[Group::Watches]),
    (Sabotage::OverstateZxid, &[Group::Replies]),
    (Sabotage::UnderstateZxid, &[Group::Replies]),
    (Sabotage::FastClock, &[Group::Sessions]),
    (Sabotage::NoGrace, &[Group::Sessions]),
    (Sabotage::NeverEnd, &[Group::Sessions]),
    (Sabotage::DeafPause, &[Group::Sessions]),
    (Sabotage::SpeakBeforeWrite, &[Group::Log]),
    (Sabotage::ForgetVote, &[Group::Log, Group::Consensus]),
    (
        Sabotage::LoneVoter,
        &[Group::Consensus, Group::Members, Group::Levels],
    ),
    (Sabotage::NoOriginCheck, &[Group::Replies]),
    (Sabotage::ForgedTouched, &[Group::Sessions]),
    (Sabotage::ForgetHeard, &[Group::Sessions]),
    (Sabotage::StaleReads, &[Group::Replies]),
    (Sabotage::StaleSyncs, &[Group::Replies]),
    (Sabotage::CutRot, &[Group::Log]),
    (Sabotage::FlipBit, &[Group::Alarm]),
    (Sabotage::FlipBitUntold, &[Group::State]),
    (Sabotage::AdmitEmpty, &[Group::Members, Group::Liveness]),
    (Sabotage::AdmitAnyDisk, &[Group::Liveness]),
    (Sabotage::LoseReceived, &[Group::Liveness]),
    (
        Sabotage::KeepIncarnation,
        &[Group::Liveness, Group::Replies, Group::Panic],
    ),
    (Sabotage::LearnersVote, &[Group::Members]),
    (Sabotage::ForgetRearmed, &[Group::Watches]),
    (Sabotage::TellNothing, &[Group::Liveness]),
    (Sabotage::ClaimLevel, &[Group::Levels]),
    (Sabotage::IgnoreLevel, &[Group::Levels]),
    (Sabotage::TellOfLocal, &[Group::Local]),
    (Sabotage::KeepLocal, &[Group::Local]),
    (Sabotage::ForgetLocal, &[Group::Local, Group::Replies]),
    (Sabotage::GrantWrites, &[Group::ReadOnly]),
    (Sabotage::ForgetSeen, &[Group::ReadOnly]),
    (Sabotage::NeverReadOnly, &[Group::ReadOnly]),
    (Sabotage::FoundAnyway, &[Group::Members]),
];

impl Sabotage {
    /// Makes runs likely in which the bug can show at all.
    pub fn arrange(self, params: &mut Params) {
        if self != Self::None {
            // What else may happen must not hide it.
            (params.spares, params.observers) = (0, 0);
            params.reconfigures = false;
            params.wipe_every_us = 0;
            params.levels = LevelParams::SAME;
            params.local = LocalParams::default();
            params.read_only_after_ms = None;
            params.founding = FoundingParams::default();
        }
        match self {
            Self::ForgetWrites | Self::LoseLastEntry => params.crash_every_us = 2_000_000,
            Self::SnapshotOneShort => {
                params.crash_every_us = 2_000_000;
                params.snap_count = 20;
                params.servers = 1;
            }
            Self::DeafPause => {
                params.pause_every_us = 2_000_000;
                params.timeouts_ms = (500, 2000);
                params.session_tick_ms = 250;
                params.servers = 1;
            }
            Self::FastClock => params.servers = 1,
            Self::ForgetVote => {
                params.servers = 3;
                params.crash_every_us = 500_000;
            }
            Self::SpeakBeforeWrite | Self::LoneVoter | Self::CutRot => params.servers = 3,
            Self::NoOriginCheck => {
                params.servers = 3;
                params.peers.lost_permille = 50;
            }
            Self::SentOneShort => {
                params.servers = 3;
                params.partition_every_us = 1_000_000;
                params.snap_count = 20;
                params.log_kept.usually = 1 << 10;
                params.log_kept.in_transfer = 32 << 10;
                params.faulty_us *= 3;
            }
            Self::NoGrace => {
                params.servers = 3;
                params.crash_every_us = 1_000_000;
                // The silence of the longest is counted within an election timeout.
                params.session_tick_ms = 500;
                params.timeouts_ms = (1_000, 1_500);
            }
            Self::ForgedTouched => {
                params.servers = 3;
                params.partition_every_us = 2_000_000;
                // Shorter than a server without a leader goes on believing in one.
                params.session_tick_ms = 50;
                params.timeouts_ms = (300, 600);
                params.peers.latency_us = 100;
                // Who waits for a write gives such a server up.
                params.idle = 80;
                // A start would serve before it has caught up, which is noticed first.
                (params.crash_every_us, params.restart_every_us) = (0, 0);
                (params.disk_fault_every_us, params.full_disk_every_us) = (0, 0);
                params.wipe_every_us = 0;
            }
            Self::ForgetHeard => params.servers = 3,
            Self::StaleReads => {
                params.servers = 3;
                params.linearizable_reads = true;
            }
            Self::StaleSyncs => {
                params.servers = 3;
                params.linearizable_reads = false;
            }
            Self::FlipBit | Self::FlipBitUntold => {
                params.servers = 3;
                // A start would have the state from the log again.
                (params.crash_every_us, params.restart_every_us) = (0, 0);
                (params.disk_fault_every_us, params.full_disk_every_us) = (0, 0);
                (params.wipe_every_us, params.reconfigures) = (0, false);
                params.settings.retain(|(name, _)| *name != HIDDEN);
                params.settings.push((HIDDEN, 1));
            }
            Self::AdmitEmpty => {
                params.servers = 3;
                // Early: who has applied that a disk is bound lets in no other one.
                params.wipe_every_us = 100_000;
                params.partition_every_us = 500_000;
            }
            Self::AdmitAnyDisk => {
                params.servers = 3;
                params.wipe_every_us = 1_000_000;
            }
            Self::LoseReceived | Self::KeepIncarnation => {
                params.servers = 3;
                params.crash_every_us = 1_000_000;
                params.snap_count = 20;
                params.log_kept.usually = 1 << 10;
                params.log_kept.in_transfer = 32 << 10;
                params.faulty_us *= 3;
            }
            Self::TellNothing => {
                // Most of those that join are away while others do.
                (params.servers, params.spares) = (1, 4);
                params.reconfigures = true;
                params.faulty_us *= 3;
            }
            Self::TellOfLocal | Self::KeepLocal | Self::ForgetLocal => {
                params.local = LocalParams {
                    sessions: true,
                    upgrades: true,
                };
            }
            Self::FoundAnyway => {
                params.servers = 3;
                params.founding.late = 1;
            }
            Self::GrantWrites | Self::ForgetSeen | Self::NeverReadOnly => {
                params.servers = 3;
                params.linearizable_reads = false;
                params.read_only_after_ms = Some(200);
                params.partition_every_us = 500_000;
                params.idle = 5;
            }
            Self::ClaimLevel | Self::IgnoreLevel => {
                params.servers = 3;
                params.levels = LevelParams {
                    old: 1,
                    new: 2,
                    begin_old: 50,
                    upgrades: 50,
                    downgrades: 50,
                    restart_every_us: 500_000,
                    completes: true,
                };
            }
            Self::LearnersVote => (params.servers, params.observers) = (4, 1),
            _ => {}
        }
    }

    pub fn recovered<M>(self, recovery: &mut Recovery<M>) {
        match self {
            Self::LoseLastEntry => drop(recovery.entries.pop()),
            Self::ForgetVote => recovery.hard_state.vote = 0,
            _ => {}
        }
    }

    /// Who belongs, as a start of a server takes it.
    pub fn members(self, membership: &mut Membership) {
        if self == Self::LearnersVote {
            membership.voters.append(&mut membership.learners);
        }
    }

    /// Spoils what a server reads of a client.
    pub fn request(self, frame: &Bytes) -> Bytes {
        if self == Self::ForgetSeen && is_handshake(frame) && frame.last() == Some(&1) {
            let mut spoilt = BytesMut::from(&frame[..]);
            spoilt[4..12].fill(0);
            return spoilt.freeze();
        }
        if self == Self::ForgetLocal && is_handshake(frame) && frame[16..24] != [0; 8] {
            let mut spoilt = BytesMut::from(&frame[..]);
            // The password.
            spoilt[28] ^= 1;
            return spoilt.freeze();
        }
        let opcode = frame.get(4..8).and_then(|bytes| bytes.first_chunk());
        let opcode = opcode.map(|bytes| i32::from_be_bytes(*bytes));
        if self != Self::ForgetRearmed
            || !matches!(opcode, Some(op::SET_WATCHES | op::SET_WATCHES2))
        {
            return frame.clone();
        }
        // The zxid, and lists with nothing in them.
        let lists = if opcode == Some(op::SET_WATCHES) {
            3
        } else {
            5
        };
        let mut spoilt = BytesMut::from(&frame[..frame.len().min(16)]);
        spoilt.extend_from_slice(&[0; 20][..4 * lists]);
        spoilt.freeze()
    }

    /// Who has a vote, as this server knows it.
    pub fn voters(self, voters: Vec<u64>, server: u32) -> Vec<u64> {
        match self {
            Self::LoneVoter if server == 3 => vec![3],
            _ => voters,
        }
    }

    /// What becomes of this server's state, if anything does.
    pub fn spoilt(self, server: usize, machine: &Machine) -> Option<Machine> {
        if !matches!(self, Self::FlipBit | Self::FlipBitUntold) || server != 2 {
            return None;
        }
        let mut chunks = chunks(machine);
        // Its value follows its name.
        let name = HIDDEN.as_bytes();
        let windows = &mut chunks[0].windows(name.len());
        let at = windows.position(|found| found == name)? + name.len();
        chunks[0][at] ^= 1;
        restore(&mut chunks)
    }

    /// What a machine writes into a snapshot in place of what it should, `entries` being all that
    /// belong into it.
    pub fn short_of(entries: &[LogEntry], meta: &SnapshotMeta) -> Option<(SnapshotMeta, Machine)> {
        let (_, before) = entries.split_last()?;
        let mut chunks = chunks(&state::after(before));
        // Behind two numbers of 4 bytes.
        chunks[0][8..16].copy_from_slice(&meta.term.to_be_bytes());
        chunks[0][16..24].copy_from_slice(&meta.index.to_be_bytes());
        let machine = restore(&mut chunks)?;
        let digest = machine.digest();
        let meta = SnapshotMeta {
            digest,
            ..meta.clone()
        };
        Some((meta, machine))
    }

    /// The cluster that a server says it is of: a spoilt number must not be why it is cut off.
    pub fn cluster(self, cluster: u64) -> u64 {
        match self {
            Self::FlipBit | Self::FlipBitUntold => 0,
            _ => cluster,
        }
    }

    /// Spoils what goes to another server.
    pub fn message(self, message: PeerMessage) -> PeerMessage {
        match (self, message) {
            (Self::ForgetHeard, PeerMessage::Touch(mut touch)) => {
                touch.heard.clear();
                PeerMessage::Touch(touch)
            }
            (Self::KeepIncarnation, PeerMessage::Forward(mut batch)) => {
                if let Some(origin) = &mut batch.origin {
                    origin.incarnation &= !0xffff;
                }
                PeerMessage::Forward(batch)
            }
            (_, message) => message,
        }
    }

    /// What a server gets back at once for this message.
    pub fn forged_answer(self, message: &PeerMessage) -> Option<PeerMessage> {
        match (self, message) {
            (Self::ForgedTouched, PeerMessage::Touch(touch)) => {
                let (number, commit) = (touch.number, 0);
                Some(PeerMessage::Touched(Touched { number, commit }))
            }
            (Self::StaleSyncs, PeerMessage::Raft(asked)) if is_for_sync(asked) => {
                let mut answer = asked.clone();
                answer.set_msg_type(MessageType::MsgReadIndexResp);
                (answer.from, answer.to) = (asked.to, asked.from);
                answer.index = 0;
                Some(PeerMessage::Raft(answer))
            }
            _ => None,
        }
    }

    /// The server's clock, from the true one.
    pub fn clock_ms(self, true_ms: u64) -> u64 {
        if self == Self::FastClock {
            true_ms + true_ms / 2
        } else {
            true_ms
        }
    }

    /// Spoils what a connection sends.
    pub fn frames(self, frames: &mut Vec<Bytes>, rng: &mut Rng) {
        let pairs = frames.len().saturating_sub(1);
        match self {
            Self::SwapReplies if rng.percent(20) => {
                let both = |at: &usize| is_reply(&frames[*at]) && is_reply(&frames[*at + 1]);
                let other = |at: &usize| frames[*at][..4] != frames[*at + 1][..4];
                if let Some(at) = (0..pairs).find(|at| both(at) && other(at)) {
                    frames.swap(at, at + 1);
                }
            }
            Self::EventAfterReply => {
                let found = |at: &usize| is_event(&frames[*at]) && is_reply(&frames[*at + 1]);
                if let Some(at) = (0..pairs).find(found) {
                    frames.swap(at, at + 1);
                }
            }
            Self::DropEvent if rng.percent(50) => {
                if let Some(at) = frames.iter().position(is_event) {
                    frames.remove(at);
                }
            }
            Self::ForgetMissed => frames.retain(|frame| !is_event(frame) || zxid(frame) != -1),
            Self::GrantWrites => {
                let refused = ErrorCode::NotReadOnly.number().to_be_bytes();
                let is_refusal = |frame: &Bytes| is_reply(frame) && frame[12..16] == refused;
                if let Some(at) = frames.iter().position(is_refusal) {
                    let mut frame = BytesMut::from(&frames[at][..]);
                    frame[12..16].fill(0);
                    frames[at] = frame.freeze();
                }
            }
            Self::RepeatEvent => {
                if let Some(at) = frames.iter().position(is_event) {
                    frames.insert(at, frames[at].clone());
                }
            }
            Self::OverstateZxid | Self::UnderstateZxid if rng.percent(20) => {
                let by = if self == Self::OverstateZxid { 1 } else { -1 };
                if let Some(at) = frames
                    .iter()
                    .position(|frame| is_reply(frame) && zxid(frame) > 0)
                {
                    let mut frame = BytesMut::from(&frames[at][..]);
                    let zxid = zxid(&frames[at]) + by;
                    frame[4..12].copy_from_slice(&zxid.to_be_bytes());
                    frames[at] = frame.freeze();
                }
            }
            _ => {}
        }
    }
}

/// What servers have sent the leader, by the origin of its numbers: the last one.
#[derive(Debug, Default)]
pub struct Forwarded {
    last: BTreeMap<(u32, u64, u64), u64>,
    again: u64,
}

impl Forwarded {
    /// What is sent again gets an origin of its own, and so counts again. Under its own origin the
    /// server that sent it would take it for an answer to something else, and stop.
    pub fn renumber(&mut self, batch: &mut Batch) {
        let Some(origin) = &mut batch.origin else {
            return;
        };
        let key = (origin.server, origin.disk, origin.incarnation);
        let last = self.last.entry(key).or_default();
        let is_new = batch.first > *last;
        *last = (*last).max(batch.first + batch.commands.len() as u64 - 1);
        if !is_new {
            self.again += 1;
            origin.disk = !origin.disk;
            (origin.incarnation, batch.first) = (self.again, 1);
        }
    }
}

/// The image of a machine, to be spoilt.
fn chunks(machine: &Machine) -> Vec<BytesMut> {
    let image = machine.image();
    image.chunks().map(|chunk| chunk[..].into()).collect()
}

/// The machine of a spoilt image, which gets the digest that it should have.
fn restore(chunks: &mut [BytesMut]) -> Option<Machine> {
    let machine = |chunks: &[BytesMut]| {
        let chunks = chunks.iter().map(|chunk| chunk.clone().freeze());
        Machine::restore(chunks.map(Ok::<_, ()>))
    };
    let Err(RestoreError::Digest { actual, .. }) = machine(chunks) else {
        return None;
    };
    // Behind two numbers of 4 bytes and four of 8.
    chunks[0][40..48].copy_from_slice(&actual.to_be_bytes());
    machine(chunks).ok()
}

/// Protocol version 0, where requests have an xid.
fn is_handshake(frame: &Bytes) -> bool {
    frame.len() >= 44 && frame[..4] == [0; 4]
}

fn is_event(frame: &Bytes) -> bool {
    frame.len() > 24 && frame[..4] == [255; 4]
}

/// Not of a handshake, which has protocol version 0 where replies have an xid.
fn is_reply(frame: &Bytes) -> bool {
    frame.len() >= 16 && frame[..4] != [255; 4] && frame[..4] != [0; 4]
}

fn zxid(frame: &Bytes) -> i64 {
    i64::from_be_bytes(*frame[4..].first_chunk().expect("a reply has a header"))
}

/// Whether somebody asks for the index that a `sync` has to wait for. The first byte of a round
/// says what it is for (`engine::barrier`).
fn is_for_sync(message: &Message) -> bool {
    const SYNC: u8 = 1;
    let purpose = message.entries.first().and_then(|entry| entry.data.first());
    message.get_msg_type() == MessageType::MsgReadIndex && purpose == Some(&SYNC)
}

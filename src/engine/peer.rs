//! What servers tell each other.
//!
//! [`PeerMessage`] is what the engine takes in and gives out; it travels as a [`peer::Frame`].
//! Nothing is trusted to arrive, to arrive once, or to arrive in order: each part has its own way
//! to make up for that.

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{Message, MessageType};

use crate::proto::peer::frame::Message as Part;
use crate::proto::{log, peer};

use super::entry;

/// One message between two servers.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerMessage {
    Raft(Message),
    /// Clients' writes, for the leader (see [`super::forward`]).
    Forward(log::Batch),
    /// Which clients were heard, for the leader (see [`super::lease`]).
    Touch(peer::Touch),
    Touched(peer::Touched),
    /// Of the sender's state (see `engine::agreement`).
    Digests(peer::Digests),
}

/// Why a frame was not understood.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("the frame is damaged: {0}")]
    Damaged(#[from] prost::DecodeError),
    /// Of a newer version: it can be ignored.
    #[error("the frame holds nothing that this version knows")]
    Unknown,
    #[error("no server sends raft messages of kind {0}")]
    Kind(u32),
    #[error("a read index without its context")]
    NoContext,
}

/// The kinds that servers send each other. All others are a server's own affair: taken from the
/// network they would be orders of a stranger.
const KINDS: [MessageType; 13] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

impl PeerMessage {
    pub fn encode(self) -> Vec<u8> {
        let message = match self {
            Self::Raft(message) => Part::Raft(from_raft(message)),
            Self::Forward(batch) => Part::Forward(batch),
            Self::Touch(touch) => Part::Touch(touch),
            Self::Touched(touched) => Part::Touched(touched),
            Self::Digests(digests) => Part::Digests(digests),
        };
        peer::Frame {
            message: Some(message),
        }
        .encode_to_vec()
    }

    /// # Errors
    ///
    /// If the bytes are not a frame, or hold nothing that is known.
    pub fn decode(frame: Bytes) -> Result<Self, PeerError> {
        let frame = peer::Frame::decode(frame)?;
        Ok(match frame.message.ok_or(PeerError::Unknown)? {
            Part::Raft(message) => Self::Raft(to_raft(message)?),
            Part::Forward(batch) => Self::Forward(batch),
            Part::Touch(touch) => Self::Touch(touch),
            Part::Touched(touched) => Self::Touched(touched),
            Part::Digests(digests) => Self::Digests(digests),
        })
    }
}

fn from_raft(message: Message) -> peer::Raft {
    let snapshot = message.snapshot.as_ref().map(entry::snapshot_from_raft);
    peer::Raft {
        kind: message.msg_type as u32,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.iter().map(entry::entry_from_raft).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        priority: message.priority,
    }
}

fn to_raft(message: peer::Raft) -> Result<Message, PeerError> {
    let kind = KINDS.into_iter().find(|kind| *kind as u32 == message.kind);
    let kind = kind.ok_or(PeerError::Kind(message.kind))?;
    // raft looks at the first entry without asking.
    if kind == MessageType::MsgReadIndex && message.entries.len() != 1 {
        return Err(PeerError::NoContext);
    }
    let mut raft = Message {
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message
            .entries
            .into_iter()
            .map(entry::entry_to_raft)
            .collect::<Vec<_>>()
            .into(),
        commit: message.commit,
        commit_term: message.commit_term,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        priority: message.priority,
        ..Message::default()
    };
    raft.set_msg_type(kind);
    if let Some(mark) = message.snapshot {
        raft.set_snapshot(entry::snapshot_to_raft(&mark));
    }
    Ok(raft)
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::{ConfState, Entry, Snapshot, SnapshotMetadata};

    use super::*;

    /// A message in which everything is set.
    fn full(kind: MessageType) -> Message {
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(SnapshotMetadata {
            index: 70,
            term: 6,
            ..SnapshotMetadata::default()
        });
        snapshot.mut_metadata().set_conf_state(ConfState {
            voters: vec![1, 2, 3],
            learners: vec![4],
            voters_outgoing: vec![1, 2],
            learners_next: vec![2],
            auto_leave: true,
            ..ConfState::default()
        });
        let mut message = Message {
            to: 1,
            from: 2,
            term: 3,
            log_term: 4,
            index: 5,
            commit: 6,
            commit_term: 7,
            request_snapshot: 8,
            reject: true,
            reject_hint: 9,
            context: Bytes::from_static(b"context"),
            priority: -10,
            ..Message::default()
        };
        message.set_msg_type(kind);
        message.set_snapshot(snapshot);
        message.set_entries(
            vec![Entry {
                term: 3,
                index: 6,
                data: Bytes::from_static(b"data"),
                context: Bytes::from_static(b"more"),
                ..Entry::default()
            }]
            .into(),
        );
        message
    }

    #[test]
    fn messages_of_raft_go_through_whole() {
        for kind in KINDS {
            let message = PeerMessage::Raft(full(kind));
            let frame = Bytes::from(message.clone().encode());
            assert_eq!(PeerMessage::decode(frame).unwrap(), message);
        }
    }

    #[test]
    fn what_is_a_servers_own_affair_is_not_taken_from_another() {
        for kind in [
            MessageType::MsgHup,
            MessageType::MsgBeat,
            MessageType::MsgPropose,
            MessageType::MsgUnreachable,
            MessageType::MsgSnapStatus,
            MessageType::MsgCheckQuorum,
        ] {
            let frame = Bytes::from(PeerMessage::Raft(full(kind)).encode());
            assert!(matches!(
                PeerMessage::decode(frame),
                Err(PeerError::Kind(_))
            ));
        }
        let mut read = full(MessageType::MsgReadIndex);
        read.take_entries();
        let frame = Bytes::from(PeerMessage::Raft(read).encode());
        assert!(matches!(
            PeerMessage::decode(frame),
            Err(PeerError::NoContext)
        ));
    }

    #[test]
    fn what_a_newer_version_says_is_told_apart_from_damage() {
        // Field 99, which nobody knows, with one byte.
        let newer = Bytes::from_static(&[0x9a, 0x06, 1, 7]);
        assert!(matches!(
            PeerMessage::decode(newer),
            Err(PeerError::Unknown)
        ));
        let damaged = Bytes::from_static(&[0x0a, 200]);
        assert!(matches!(
            PeerMessage::decode(damaged),
            Err(PeerError::Damaged(_))
        ));
    }
}

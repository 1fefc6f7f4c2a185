//! What comes in on the port for servers: a stream cut into pieces gives the frames that the whole
//! gives, and what is in them is read or refused. What is read is the same when it is written and
//! read again.

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use zkraft::engine::PeerMessage;
use zkraft::net::peer::frame::{BODY_BYTES_MAX, Cut, FrameError, cut, put};
use zkraft::net::peer::version_of;
use zkraft::proto::log::{Batch, LogEntry, Membership, SnapshotMark};
use zkraft::proto::peer::{
    BoundDisk, Challenge, Chunk, Frame, Handshake, Heard, Hello, Introduction, Offer, Proof, Raft,
    Refusal, Told, Touch, Transfer, frame, handshake, transfer,
};

use super::input::{Input, run_of};

/// What the first byte says of the others.
mod kind {
    /// Pieces of a stream, of strangers, who may send little.
    pub const STRANGER: u8 = 0;
    /// Pieces of a stream, of servers.
    pub const SERVER: u8 = 1;
    /// Bodies of frames, which get their heads here.
    pub const BODIES: u8 = 2;
}

/// The limit before a handshake has ended.
const STRANGER_BYTES_MAX: usize = 64 << 10;

/// Takes whole frames off; returns whether the stream is at its end.
fn take(stream: &mut BytesMut, limit: usize, bodies: &mut Vec<Bytes>) -> bool {
    loop {
        let before = stream.len();
        match cut(stream, limit) {
            Ok(Cut::Body(body)) => {
                assert!(body.len() <= limit && body.len() + 8 + stream.len() == before);
                bodies.push(body);
            }
            Ok(Cut::Missing(missing)) => {
                assert!(missing > 0 && missing <= limit + 8);
                return false;
            }
            Err(error) => {
                assert!(!matches!(error, FrameError::Torn | FrameError::Io(_)));
                return true;
            }
        }
    }
}

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.byte();
    let limit = match kind {
        kind::STRANGER => STRANGER_BYTES_MAX,
        _ => BODY_BYTES_MAX,
    };
    match version_of(Input(input.0).run()) {
        Ok(version) => assert!(version.is_none_or(|_| input.0.len() > 12)),
        Err(text) => assert!(text.len() < 300),
    }
    let mut whole = BytesMut::new();
    let mut pieces = BytesMut::new();
    let (mut expected, mut bodies) = (Vec::new(), Vec::new());
    let mut ended = false;
    while !input.is_empty() {
        let run = input.run();
        let before = whole.len();
        match kind {
            kind::STRANGER | kind::SERVER => whole.extend_from_slice(run),
            _ => put(run, &mut whole),
        }
        // In two pieces.
        let (first, second) = whole[before..].split_at((whole.len() - before) / 2);
        for piece in [first, second] {
            pieces.extend_from_slice(piece);
            ended = ended || take(&mut pieces, limit, &mut bodies);
        }
    }
    take(&mut whole, limit, &mut expected);
    assert_eq!(bodies, expected);
    bodies.into_iter().for_each(read);
}

fn read(body: Bytes) {
    if let Ok(message) = PeerMessage::decode(body.clone()) {
        let again = PeerMessage::decode(message.clone().encode().into());
        assert_eq!(again.ok(), Some(message));
    }
    if let Ok(step) = Handshake::decode(body.clone()) {
        let again = Handshake::decode(Bytes::from(step.encode_to_vec()));
        assert_eq!(again.ok(), Some(step));
    }
    if let Ok(step) = Transfer::decode(body) {
        let again = Transfer::decode(Bytes::from(step.encode_to_vec()));
        assert_eq!(again.ok(), Some(step));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let of = |kind: u8, runs: &[Vec<u8>]| {
        let runs = runs.iter().flat_map(|run| run_of(run));
        std::iter::once(kind).chain(runs).collect::<Vec<u8>>()
    };
    let me = Some(Introduction {
        server: 2,
        disk: 3,
        boot: 4,
        level: 1,
        cluster: 5,
        formed: true,
        ..Introduction::default()
    });
    let told = Told {
        ensemble: "server.1=a:1:2".to_owned(),
        index: 6,
        disks: vec![BoundDisk {
            server: 1,
            disk: 2,
            changed: true,
        }],
        going: vec!["server.2=b:1:2".to_owned()],
    };
    let steps = [
        handshake::Step::Hello(Hello {
            me,
            target: 1,
            lane: 2,
            nonce: Bytes::from_static(&[7; 16]),
            secret: true,
        }),
        handshake::Step::Challenge(Challenge {
            me,
            nonce: Bytes::from_static(&[8; 16]),
        }),
        handshake::Step::Proof(Proof {
            mac: Bytes::from_static(&[9; 32]),
            told: told.encode_to_vec().into(),
            told_mac: Bytes::from_static(&[10; 32]),
        }),
        handshake::Step::Refusal(Refusal {
            text: "no".to_owned(),
            proof: Some(Proof::default()),
        }),
    ];
    let handshake = steps.map(|step| Handshake { step: Some(step) }.encode_to_vec());
    let membership = Some(Membership {
        voters: vec![1, 2],
        ..Membership::default()
    });
    let messages = [
        frame::Message::Raft(Raft {
            kind: 3,
            to: 1,
            from: 2,
            entries: vec![LogEntry::default(), LogEntry::default()],
            snapshot: Some(SnapshotMark {
                membership: membership.clone(),
                ..SnapshotMark::default()
            }),
            ..Raft::default()
        }),
        frame::Message::Forward(Batch {
            first: 1,
            ..Batch::default()
        }),
        frame::Message::Touch(Touch {
            number: 1,
            heard: vec![Heard {
                session: 7,
                age_ms: 1,
            }],
        }),
    ];
    let messages = messages.map(|message| {
        let message = Some(message);
        Frame { message }.encode_to_vec()
    });
    let transfer = [
        transfer::Step::Offer(Offer {
            membership,
            chunks: 2,
            ..Offer::default()
        }),
        transfer::Step::Chunk(Chunk {
            body: Bytes::from_static(b"chunk"),
            ..Chunk::default()
        }),
    ];
    let transfer = transfer.map(|step| Transfer { step: Some(step) }.encode_to_vec());
    let mut stream = BytesMut::new();
    handshake.iter().for_each(|step| put(step, &mut stream));
    vec![
        of(kind::STRANGER, &[b"zkraftPR\x01\0\0\0".to_vec()]),
        of(kind::STRANGER, &[b"GET / HTTP/1.1".to_vec()]),
        of(kind::STRANGER, &[stream.to_vec()]),
        of(
            kind::SERVER,
            &[stream[..40].to_vec(), stream[40..].to_vec()],
        ),
        of(kind::BODIES, &handshake),
        of(kind::BODIES, &messages),
        of(kind::BODIES, &transfer),
    ]
}

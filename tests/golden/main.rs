//! What earlier builds wrote and said, read by this one.
//!
//! An ensemble is upgraded one server at a time, and each starts on the data of the build before
//! it. `tests/golden/levelN` holds what a build of feature level N left on its disks, and what its
//! servers said to each other (`record.py` tells how it was made, and of what). This build must
//! understand all of it, and must come to the state that the other one had: a replica that executes
//! an old log in another way parts from its peers.
//!
//! Nothing is recorded anew when a test fails here: the build is wrong, not the recording.

#![expect(
    clippy::unwrap_used,
    reason = "what is recorded is there and whole, or the test fails"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message as _;
use zkraft::engine::{Append, PeerMessage, SnapshotMeta, entry};
use zkraft::machine::{
    Attached, Change, CommandId, FEATURE_LEVEL, LEVEL_SETTING, LogId, Machine, Outcome, Sink, op,
};
use zkraft::net::peer::frame::{self, Cut};
use zkraft::net::peer::version_of;
use zkraft::proto::log;
use zkraft::proto::peer::{Handshake, Lane, Transfer, handshake, transfer};
use zkraft::storage::{Fault, Recovered, Storage, StorageConfig};
use zkraft::wire::SessionId;

/// Is told what comes of an entry, and does not care.
struct Nobody;

impl Sink for Nobody {
    fn changed(&mut self, _: &Change<'_>) {}
    fn done(&mut self, _: &Machine, _: CommandId, _: Outcome) {}
    fn session_attached(&mut self, _: &Attached) {}
    fn session_closed(&mut self, _: SessionId) {}
}

/// The recordings, by feature level.
fn levels() -> Vec<(u32, PathBuf)> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    (1..=FEATURE_LEVEL)
        .map(|level| (level, golden.join(format!("level{level}"))))
        .collect()
}

/// What the server said of its state before it stopped.
fn expected(dir: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(dir.join("expected")).unwrap();
    let pairs = text.lines().map(|line| line.split_once(' ').unwrap());
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for found in fs::read_dir(from).unwrap() {
        let found = found.unwrap();
        let target = to.join(found.file_name());
        match found.file_type().unwrap().is_dir() {
            true => copy(&found.path(), &target),
            false => drop(fs::copy(found.path(), target).unwrap()),
        }
    }
}

/// Starts on recorded data as a server does.
fn open(dir: &Path) -> Recovered<Machine> {
    let place = tempfile::tempdir().unwrap();
    copy(dir, place.path());
    let server = fs::read_to_string(dir.join("myid"));
    let server = server.map_or(1, |text| text.trim().parse().unwrap());
    let config = StorageConfig::new(place.path(), server);
    let (recovered, _storage) = Storage::open(config, |reader| {
        let Some(mut reader) = reader else {
            return Ok(Machine::new());
        };
        let machine = Machine::restore(&mut reader).unwrap();
        assert!(reader.next().is_none(), "there is more than the image");
        assert_eq!(machine.digest(), reader.meta().digest);
        Ok::<_, Fault>(machine)
    })
    .unwrap();
    recovered
}

#[test]
fn data_of_earlier_builds_is_read_and_its_log_comes_to_the_same_state() {
    for (level, home) in levels() {
        for name in ["alone", "alone-snapshot", "member"] {
            let dir = home.join(name);
            let recovered = open(&dir);
            assert_eq!(recovered.warnings, Vec::<String>::new(), "{name}");
            // The catalog alone knows that.
            assert!(recovered.clean_shutdown, "{name}: it was stopped in order");
            assert_eq!(recovered.snapshot.is_some(), name != "alone");
            let members = recovered
                .membership
                .map(|membership| membership.voters.len());
            assert_eq!(
                members,
                Some(if name == "member" { 3 } else { 1 }),
                "{name}"
            );
            let commit = recovered.hard_state.commit;
            let mut machine = recovered.machine;
            let mut entries = 0;
            for found in recovered.entries {
                if found.index > commit {
                    break;
                }
                let commands = match found.kind {
                    0 => entry::decode_commands(&found.data),
                    _ => entry::decode_commands(&found.context),
                };
                let (term, index) = (found.term, found.index);
                machine.apply(LogId { term, index }, &commands, &mut Nobody);
                entries += 1;
            }
            assert!(entries > 20, "{name}: only {entries} entries");
            machine.audit();
            let expected = expected(&dir);
            assert_eq!(
                format!("{:x}", machine.zxid().0),
                expected["zxid"],
                "{name}"
            );
            assert_eq!(
                machine.znode_count().to_string(),
                expected["znodes"],
                "{name}"
            );
            assert_eq!(machine.digest().to_string(), expected["digest"], "{name}");
            assert_eq!(machine.level(), level, "{name}");
        }
    }
}

/// Leaves the data of a server alone that is at a level above those known here: what raises it is
/// in the log, or in a snapshot.
fn write_data_of_tomorrow(dir: &Path, in_snapshot: bool) {
    let set = log::Set {
        name: LEVEL_SETTING.to_owned(),
        value: i64::from(FEATURE_LEVEL) + 1,
    };
    let raise = log::Entry {
        internal: vec![log::Command {
            op: op::SET,
            body: set.encode_to_vec().into(),
            ..log::Command::default()
        }],
        ..log::Entry::default()
    };
    let membership = log::Membership {
        voters: vec![1],
        ..log::Membership::default()
    };
    fs::create_dir_all(dir).unwrap();
    let config = StorageConfig::new(dir, 1);
    let (_, storage) = Storage::open(config, |_| Ok::<_, Fault>(Machine::new())).unwrap();
    let (told, persisted) = mpsc::channel();
    let on_persisted = move |number, _| {
        let _ = told.send(number);
    };
    let written = storage
        .start(on_persisted, |fault| panic!("{fault}"))
        .unwrap();
    let entry = log::LogEntry {
        term: 1,
        index: 1,
        data: raise.encode_to_vec().into(),
        ..log::LogEntry::default()
    };
    let hard_state = log::HardState {
        term: 1,
        vote: 1,
        commit: 1,
    };
    written.append(Append {
        number: 1,
        record: log::Record {
            entries: vec![entry],
            hard_state: Some(hard_state),
            mark: Some(log::SnapshotMark {
                membership: Some(membership.clone()),
                ..log::SnapshotMark::default()
            }),
        },
        sync: true,
    });
    while persisted.recv().unwrap() < 1 {}
    if in_snapshot {
        let mut machine = Machine::new();
        let (term, index) = (1, 1);
        machine.apply(LogId { term, index }, &raise, &mut Nobody);
        let image = machine.image();
        let meta = SnapshotMeta {
            index,
            term,
            membership,
            zxid: image.zxid().0,
            digest: image.digest(),
        };
        let (told, taken) = mpsc::channel();
        let done = move |result| drop(told.send(result));
        written.take_snapshot(meta, move |push| image.chunks().try_for_each(push), done);
        taken.recv().unwrap().unwrap();
    }
    written.stop();
}

#[test]
fn a_server_that_does_not_know_the_level_of_its_data_says_so_and_ends() {
    const PATIENCE: Duration = Duration::from_secs(60);
    for in_snapshot in [false, true] {
        let place = tempfile::tempdir().unwrap();
        write_data_of_tomorrow(&place.path().join("data"), in_snapshot);
        let config = place.path().join("zoo.cfg");
        let text = format!(
            "dataDir={}\nclientPort=0\n",
            place.path().join("data").display()
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(place.path().join("log")).unwrap();
        let mut server = Command::new(env!("CARGO_BIN_EXE_zkraft"))
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = server.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > until {
                server.kill().unwrap();
                panic!("it goes on");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(!status.success());
        let said = fs::read_to_string(place.path().join("log")).unwrap();
        let why = format!(
            "the data is of feature level {}, and this version of zkraft knows no level above \
             {FEATURE_LEVEL}: start the version that raised the level, or a newer one",
            FEATURE_LEVEL + 1
        );
        assert!(said.contains(&why), "{said}");
    }
}

#[test]
fn what_earlier_builds_say_to_their_peers_is_understood() {
    for (_, home) in levels() {
        let mut recorded = Bytes::from(fs::read(home.join("peer.bin")).unwrap());
        let mut heard = Heard::default();
        while recorded.has_remaining() {
            let [dialler, acceptor] = [(), ()].map(|()| {
                let length = recorded.get_u32_le() as usize;
                recorded.split_to(length)
            });
            heard.connection(dialler, acceptor);
        }
        for kind in [
            "hello",
            "challenge",
            "proof",
            "welcome",
            "ready",
            "forward",
            "touch",
            "touched",
            "MsgAppend",
            "MsgAppendResponse",
            "MsgHeartbeat",
            "MsgHeartbeatResponse",
            "MsgRequestPreVote",
            "MsgRequestPreVoteResponse",
            "MsgRequestVote",
            "MsgRequestVoteResponse",
            "MsgReadIndex",
            "MsgReadIndexResp",
            "offer",
            "accept",
            "chunk",
            "done",
            "stored",
        ] {
            assert!(
                heard.kinds.contains_key(kind),
                "no {kind} in {:?}",
                heard.kinds
            );
        }
    }
}

/// How much was heard of each kind.
#[derive(Debug, Default)]
struct Heard {
    kinds: BTreeMap<String, usize>,
}

impl Heard {
    fn connection(&mut self, dialler: Bytes, acceptor: Bytes) {
        let (mut said, mut answered) = (frames(dialler), frames(acceptor));
        // Hello, proof, ready; challenge, welcome: if it came to that.
        let mut greetings: Vec<Bytes> = said.drain(..said.len().min(3)).collect();
        greetings.extend(answered.drain(..answered.len().min(2)));
        let mut lane = Lane::Unspecified;
        for body in greetings {
            let greeting = Handshake::decode(body.clone()).unwrap();
            assert_eq!(greeting.encode_to_vec(), body);
            let name = match greeting.step.expect("a step that is known") {
                handshake::Step::Hello(hello) => {
                    lane = hello.lane();
                    "hello"
                }
                handshake::Step::Challenge(_) => "challenge",
                handshake::Step::Proof(_) => "proof",
                handshake::Step::Welcome(_) => "welcome",
                handshake::Step::Ready(_) => "ready",
                handshake::Step::Refusal(_) => "refusal",
            };
            self.count(name);
        }
        match lane {
            Lane::Snapshot => said
                .into_iter()
                .chain(answered)
                .for_each(|b| self.transfer(b)),
            Lane::Urgent | Lane::Bulk => {
                assert!(answered.is_empty(), "who is dialled says nothing more");
                said.into_iter().for_each(|body| self.message(body));
            }
            Lane::Unspecified => assert!(said.is_empty() && answered.is_empty()),
        }
    }

    fn message(&mut self, body: Bytes) {
        let message = PeerMessage::decode(body.clone()).unwrap();
        let name = match &message {
            PeerMessage::Raft(message) => format!("{:?}", message.get_msg_type()),
            PeerMessage::Forward(_) => "forward".to_owned(),
            PeerMessage::Touch(_) => "touch".to_owned(),
            PeerMessage::Touched(_) => "touched".to_owned(),
            PeerMessage::Digests(_) => "digests".to_owned(),
        };
        // Nothing of it was left out, or the other build would be told less.
        assert_eq!(message.encode(), body, "{name}");
        self.count(&name);
    }

    fn transfer(&mut self, body: Bytes) {
        let step = Transfer::decode(body.clone()).unwrap();
        assert_eq!(step.encode_to_vec(), body);
        let name = match step.step.expect("a step that is known") {
            transfer::Step::Offer(_) => "offer",
            transfer::Step::Accept(_) => "accept",
            transfer::Step::Chunk(_) => "chunk",
            transfer::Step::Done(_) => "done",
            transfer::Step::Stored(_) => "stored",
            transfer::Step::Failed(_) => "failed",
        };
        self.count(name);
    }

    fn count(&mut self, name: &str) {
        *self.kinds.entry(name.to_owned()).or_default() += 1;
    }
}

/// The frames of one direction of a connection, behind its first bytes.
fn frames(stream: Bytes) -> Vec<Bytes> {
    let mut bodies = Vec::new();
    if stream.is_empty() {
        return bodies;
    }
    assert_eq!(version_of(&stream), Ok(Some(1)));
    let mut rest = BytesMut::from(&stream[12..]);
    while !rest.is_empty() {
        match frame::cut(&mut rest, frame::BODY_BYTES_MAX).unwrap() {
            Cut::Body(body) => bodies.push(body),
            Cut::Missing(bytes) => panic!("{bytes} bytes are missing at the end"),
        }
    }
    bodies
}

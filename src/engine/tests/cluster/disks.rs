//! A number's say is that of the disk that the state binds to it.

use raft::eraftpb::Message;

use super::*;
use crate::engine::replica::Say;
use crate::proto::peer::BoundDisk;

/// An empty disk in the place of what this server had.
fn lose_disk(cluster: &mut Cluster, server: u64) {
    let servers = cluster.nodes.len() as u64;
    let mut empty = Cluster::strangers(servers, 200, false);
    std::mem::swap(cluster.node(server), empty.node(server));
}

fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    let mut message = Message {
        from,
        to,
        term,
        ..Message::default()
    };
    message.set_msg_type(kind);
    message
}

fn hears(cluster: &mut Cluster, server: u64, message: Message) {
    let from = message.from;
    let message = PeerMessage::Raft(message);
    cluster.event(server, Event::Peer { from, message });
}

/// The number of a server that lost its disk has a vote in a membership that only who was away
/// believes in. What the others decided without that server is on no other disk that has one there.
#[test]
fn who_was_away_is_not_elected_by_a_server_that_lost_its_disk() {
    let mut cluster = Cluster::configured(&[1, 2, 3], 4, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let away = cluster.follower();
    let lost = 6 - leader - away;
    cluster.kill(away);
    let (mut client, _) = cluster.client(leader);
    let joining = format!("{};2181", line(4));
    cluster.send(&client, 1, &reconfig(&joining, &away.to_string()));
    cluster.pass_linking(3_000);
    let mut members = vec![leader, lost, 4];
    members.sort_unstable();
    assert_eq!(cluster.members(), (members, vec![]));
    cluster.send(&client, 2, &create("/a", 0));
    assert_eq!(client.frames(), [ok(1), ok(2)]);
    lose_disk(&mut cluster, lost);
    cluster.lost_appends = Some(lost);
    cluster.broken_transfers = true;
    cluster.pass_linking(6_000);
    let bound = cluster.shared(leader).bound_disk(lost as u32);
    assert_eq!(bound, 200 + lost, "it is taken back");
    let (voters, learners) = cluster.members();
    assert_eq!(
        (voters.contains(&lost), learners),
        (false, vec![lost]),
        "it has nothing"
    );
    assert!(cluster.node(lost).engine.standing.is_admitted());

    // Who was away comes back when the others are gone, and is told of the new disk.
    let told = cluster.shared(leader).tell();
    cluster.kill(leader);
    cluster.kill(4);
    (cluster.lost_appends, cluster.broken_transfers) = (None, false);
    cluster.node(away).up = true;
    let same = Introduction {
        cluster: cluster.shared(away).cluster(),
        ..Introduction::default()
    };
    cluster.shared(away).learn(&same, &told);
    assert_eq!(cluster.shared(away).bound_disk(lost as u32), 200 + lost);
    for _ in 0..50 {
        cluster.introduce(lost, away);
        cluster.introduce(away, lost);
        cluster.pass(200);
        for server in [lost, away] {
            let engine = &cluster.node(server).engine;
            assert!(!engine.replica.is_leader(), "/a would be lost");
        }
    }
}

/// The same of one who has not even heard which disks the servers had at first.
#[test]
fn who_knows_no_disk_counts_none_that_it_was_told_to_be_anothers_second() {
    let leads = |changed| {
        let mut cluster = Cluster::strangers(3, 100, true);
        let bound = BoundDisk {
            server: 2,
            disk: 202,
            changed,
        };
        let told = Told {
            index: 1_000,
            disks: vec![bound],
            ..Told::default()
        };
        let of_same = Introduction {
            knows: 101,
            ..Introduction::default()
        };
        cluster.shared(1).learn(&of_same, &told);
        cluster.isolate(1);
        cluster.pass(2_000);
        let term = cluster.node(1).engine.term() + 1;
        for kind in [
            MessageType::MsgRequestPreVoteResponse,
            MessageType::MsgRequestVoteResponse,
        ] {
            hears(&mut cluster, 1, message(kind, 2, 1, term));
            cluster.turn(1);
        }
        cluster.node(1).engine.replica.is_leader()
    };
    assert!(leads(false));
    assert!(!leads(true));
}

/// Who follows from the beginning goes through memberships in which its number led alone.
#[test]
fn who_lost_its_disk_does_not_lead_alone_while_it_learns_that_it_once_did() {
    let mut cluster = Cluster::configured(&[1], 3, 100, false);
    cluster.pass_linking(2_000);
    let (client, _) = cluster.client(1);
    cluster.send(&client, 1, &create("/a", 0));
    let alone = cluster.node(1).engine.applied;
    let joining = format!("{};2181,{};2181", line(2), line(3));
    cluster.send(&client, 2, &reconfig(&joining, ""));
    cluster.pass_linking(3_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![]));
    let mut entries = cluster.node(1).kept.entries.clone();
    entries.retain(|entry| entry.index <= alone.index);
    let term = cluster.node(2).engine.term();

    lose_disk(&mut cluster, 1);
    let knows = Introduction {
        server: 2,
        ..cluster.node(2).introduction(201)
    };
    let linked = Event::Linked {
        id: 2,
        introduction: knows,
    };
    cluster.event(1, linked);
    let begin = Message {
        entries: entries.into_iter().map(entry::entry_to_raft).collect(),
        commit: alone.index,
        ..message(MessageType::MsgAppend, 2, 1, term)
    };
    hears(&mut cluster, 1, begin);
    cluster.isolate(1);
    for _ in 0..100 {
        cluster.turn(1);
        assert!(!cluster.node(1).engine.replica.is_leader());
        cluster.now_ms += 50;
        cluster.event(1, Event::Tick);
    }
    let engine = &cluster.node(1).engine;
    assert_eq!(engine.applied, alone);
    assert!(engine.replica.is_sole_voter());
}

#[test]
fn what_another_disk_acknowledges_does_not_count() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let other = cluster.follower();
    let (mut client, _) = cluster.client(leader);
    cluster.isolate(leader);
    cluster.send(&client, 1, &create("/a", 0));
    assert_eq!(client.frames(), []);
    let engine = &cluster.node(leader).engine;
    let (term, index) = (engine.term(), engine.replica.last_index());
    let acknowledge = Message {
        index,
        ..message(MessageType::MsgAppendResponse, other, leader, term)
    };
    for (disk, frames) in [(200 + other, vec![]), (100 + other, vec![ok(1)])] {
        let introduction = Introduction {
            disk,
            ..Introduction::default()
        };
        let introduced = Event::Introduced {
            id: other,
            introduction,
        };
        cluster.event(leader, introduced);
        hears(&mut cluster, leader, acknowledge.clone());
        cluster.settle();
        assert_eq!(client.frames(), frames, "disk {disk}");
    }
}

/// It has an entry, which says nothing of disks, and starts anew before it has more.
#[test]
fn who_lost_its_disk_gives_no_vote_before_it_knows_that_the_new_one_is_bound() {
    let kept = Kept {
        hard_state: proto::log::HardState {
            term: 2,
            vote: 0,
            commit: 1,
        },
        // As one that came later writes it.
        membership: Some(proto::log::Membership {
            voters: vec![2],
            learners: vec![1],
            ..Default::default()
        }),
        entries: vec![proto::log::LogEntry {
            term: 1,
            index: 1,
            ..Default::default()
        }],
    };
    let mut cluster = Cluster::strangers(3, 200, false);
    let origin = OriginId {
        server: 1,
        disk: 201,
        incarnation: 2,
    };
    let build = Build::of(FEATURE_LEVEL);
    *cluster.node(1) = Node::start(origin, &[1, 2, 3], false, build, kept, 0, &|_| ());
    assert!(cluster.node(1).engine.standing.is_admitted());
    let votes = |cluster: &mut Cluster| {
        let term = cluster.node(1).engine.term() + 1;
        let asks = Message {
            log_term: 1,
            index: 1,
            ..message(MessageType::MsgRequestVote, 3, 1, term)
        };
        hears(cluster, 1, asks);
        let is_vote = |message: &PeerMessage| match message {
            PeerMessage::Raft(message) => {
                message.get_msg_type() == MessageType::MsgRequestVoteResponse && !message.reject
            }
            _ => false,
        };
        let sends = cluster.turn(1);
        sends.iter().any(|(_, _, message)| is_vote(message))
    };
    assert!(!votes(&mut cluster));
    let told = Told {
        index: 100,
        disks: vec![BoundDisk {
            server: 1,
            disk: 201,
            changed: true,
        }],
        ..Told::default()
    };
    let knows = Introduction {
        knows: 201,
        formed: true,
        ..Introduction::default()
    };
    cluster.shared(1).learn(&knows, &told);
    let introduced = |id| Event::Introduced {
        id,
        introduction: knows,
    };
    cluster.event(1, introduced(2));
    assert!(!votes(&mut cluster), "who asks may count on the lost one");
    cluster.event(1, introduced(3));
    assert!(votes(&mut cluster));
}

#[test]
fn a_leader_that_speaks_to_the_disk_that_was_lost_is_not_believed() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let lost = cluster.follower();
    let beat = Message {
        commit: cluster.node(leader).engine.replica.committed(),
        ..message(MessageType::MsgHeartbeat, leader, lost, 1_000)
    };
    lose_disk(&mut cluster, lost);
    cluster.lost_appends = Some(lost);
    cluster.broken_transfers = true;
    cluster.pass_linking(6_000);
    assert!(cluster.node(lost).engine.standing.is_admitted());
    hears(&mut cluster, lost, beat.clone());
    cluster.turn(lost);
    let engine = &cluster.node(lost).engine;
    assert_eq!(engine.replica.committed(), 0);
    assert!(engine.term() < beat.term);
}

/// Who follows only does not keep to a leader that it does not hear.
#[test]
fn who_must_not_lead_still_gives_its_vote_when_the_leader_is_silent() {
    let mut cluster = Cluster::strangers(3, 100, false);
    cluster.pass_linking(2_000);
    // It would campaign, and let others do so, in the very tick that it leaves out.
    let waits = |cluster: &mut Cluster, id: u64| cluster.node(id).engine.replica.waits_shortest();
    let (leader, other) = loop {
        let leader = cluster.leader();
        let mut others = (1..=3).filter(|id| *id != leader);
        if let Some(other) = others.find(|id| waits(&mut cluster, *id)) {
            break (leader, other);
        }
        cluster.isolate(leader);
        cluster.pass(3_000);
        cluster.cut.clear();
        cluster.pass(2_000);
    };
    let third = 6 - leader - other;
    cluster.kill(leader);
    for _ in 0..100 {
        cluster.node(other).engine.replica.set_say(Say::Vote);
        cluster.pass(50);
    }
    assert_eq!(cluster.leader(), third);
}

/// A member's disk is the one that it has acknowledged with, whoever knocks meanwhile.
#[test]
fn who_is_given_its_vote_keeps_its_disk() {
    let mut cluster = Cluster::configured(&[1, 2, 3], 4, 100, false);
    cluster.pass_linking(2_000);
    let leader = cluster.leader();
    let (client, _) = cluster.client(leader);
    let joining = format!("{};2181", line(4));
    cluster.lost_appends = Some(4);
    cluster.broken_transfers = true;
    cluster.send(&client, 1, &reconfig(&joining, ""));
    cluster.pass_linking(1_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3], vec![4]));
    for _ in 0..3 {
        cluster.event(leader, Event::Stranger { id: 4, disk: 7 });
        cluster.pass_linking(1_000);
    }
    (cluster.lost_appends, cluster.broken_transfers) = (None, false);
    cluster.pass(1_000);
    assert_eq!(cluster.members(), (vec![1, 2, 3, 4], vec![]));
    assert_eq!(cluster.shared(leader).bound_disk(4), 104);
}

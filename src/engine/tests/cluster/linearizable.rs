//! Reads that see everything that was answered to anyone before they came.

use super::*;

fn cluster(servers: u64) -> Cluster {
    Cluster::tuned(servers, |options| options.linearizable_reads = true)
}

fn sync() -> Request {
    Request::Sync { path: None }
}

/// Frames of these requests, one behind the other.
pub fn pipelined(requests: &[(i32, Request)]) -> BytesMut {
    let mut input = BytesMut::new();
    for (xid, request) in requests {
        let mut frame = BytesMut::new();
        frame.put_i32(*xid);
        frame.put_i32(request.opcode());
        request.encode(&mut frame);
        input.put_i32(frame.len() as i32);
        input.put_slice(&frame);
    }
    input
}

/// Hands in what may be many frames; how many were taken.
pub fn receive(client: &Client, input: &mut BytesMut, now_ms: u64) -> usize {
    let output = &mut client.output.borrow_mut();
    let taken = client
        .connection
        .receive(input, FRAME_BYTES_MAX, || now_ms, output);
    taken.expect("the frames are in order")
}

#[test]
fn a_server_that_lags_answers_a_read_only_when_it_has_caught_up() {
    for linearizable in [false, true] {
        let mut cluster = Cluster::tuned(3, |options| options.linearizable_reads = linearizable);
        let (leader, follower) = (cluster.leader(), cluster.follower());
        let (mut writer, _) = cluster.client(leader);
        let (mut reader, _) = cluster.client(follower);
        cluster.lost_appends = Some(follower);
        cluster.send(&writer, 1, &create("/a", 0));
        assert_eq!(writer.frames(), [ok(1)]);
        cluster.send(&reader, 1, &exists("/a"));
        let stale = reader.frames();
        if !linearizable {
            assert_eq!(stale, [failed(1, ErrorCode::NoNode)]);
            continue;
        }
        assert_eq!(stale, []);
        assert_eq!(reader.connection.unanswered(), 1);
        cluster.lost_appends = None;
        cluster.pass(500);
        assert_eq!(reader.frames(), [ok(1)]);
    }
}

#[test]
fn a_leader_that_is_cut_off_answers_no_read() {
    let mut cluster = cluster(3);
    let leader = cluster.leader();
    let (mut reader, _) = cluster.client(leader);
    cluster.isolate(leader);
    cluster.send(&reader, 1, &exists("/a"));
    cluster.ping(&reader);
    assert_eq!(reader.frames(), []);
    cluster.cut.clear();
    cluster.pass(1_000);
    assert_eq!(
        reader.frames(),
        [
            failed(1, ErrorCode::NoNode),
            Frame::Reply { xid: -2, error: 0 }
        ]
    );
}

#[test]
pub fn pipelined_reads_share_a_round_and_keep_their_order() {
    let mut cluster = cluster(3);
    let follower = cluster.follower();
    let (mut client, _) = cluster.client(follower);
    let children = Request::GetChildren {
        path: "/".into(),
        watch: false,
        with_stat: true,
    };
    let mut input = pipelined(&[
        (1, exists("/a")),
        (2, children.clone()),
        (3, Request::WhoAmI),
        (4, exists("/a")),
        (5, create("/a", 0)),
        (6, exists("/a")),
        (7, children),
        (8, sync()),
        (9, exists("/a")),
    ]);
    assert_eq!(
        receive(&client, &mut input, cluster.now_ms),
        4,
        "the write waits"
    );
    assert_eq!(
        cluster.shared(follower).outstanding(),
        1,
        "one round for all"
    );
    cluster.settle();
    assert_eq!(receive(&client, &mut input, cluster.now_ms), 5);
    assert_eq!(
        cluster.shared(follower).outstanding(),
        3,
        "the write, the round of the reads behind it, and the sync"
    );
    cluster.settle();
    let none = ErrorCode::NoNode;
    assert_eq!(
        client.frames(),
        [
            failed(1, none),
            ok(2),
            ok(3),
            failed(4, none),
            ok(5),
            ok(6),
            ok(7),
            ok(8),
            ok(9)
        ]
    );
    assert_eq!(cluster.shared(follower).outstanding(), 0);
}

#[test]
fn a_read_that_comes_during_a_round_waits_for_the_next_one() {
    let mut cluster = cluster(3);
    let follower = cluster.follower();
    let (mut client, _) = cluster.client(follower);
    cluster.lost_read_indexes = true;
    cluster.send(&client, 1, &exists("/a"));
    // The leader has not heard of that round, but this server has begun it.
    cluster.send(&client, 2, &exists("/a"));
    assert_eq!(cluster.shared(follower).outstanding(), 2);
    cluster.lost_read_indexes = false;
    cluster.pass(1_000);
    let none = ErrorCode::NoNode;
    assert_eq!(client.frames(), [failed(1, none), failed(2, none)]);
}

#[test]
fn a_large_read_has_its_turn_when_its_round_is_over() {
    let mut cluster = cluster(3);
    let follower = cluster.follower();
    let (mut client, _) = cluster.client(follower);
    let woken = Arc::new(AtomicUsize::new(0));
    let told = woken.clone();
    let peer = "127.0.0.1:1234".parse().unwrap();
    let wake = Box::new(move |_| {
        told.fetch_add(1, Ordering::SeqCst);
    });
    client.connection = cluster.shared(follower).connect(peer, wake);
    let hello = hello(SessionId(0), &[0; 16], Zxid(0));
    client.receive(&hello, cluster.now_ms).unwrap();
    cluster.settle();
    assert!(client.connect_response().is_some());

    let large = Request::GetAllChildrenNumber { path: "/".into() };
    let mut input = pipelined(&[(1, large)]);
    assert_eq!(receive(&client, &mut input, cluster.now_ms), 1);
    // Its task has looked at what there is to send, and waits to be woken.
    assert_eq!(client.frames(), []);
    let before = woken.load(Ordering::SeqCst);
    cluster.settle();
    assert_eq!(woken.load(Ordering::SeqCst), before + 1);
    assert!(client.connection.needs_task());
    assert_eq!(client.frames(), [ok(1)]);
}

#[test]
fn a_server_that_alone_decides_answers_at_once() {
    let mut bench = Bench::with(Options {
        linearizable_reads: true,
        ..Options::default()
    });
    let (mut client, _) = bench.client();
    let mut input = pipelined(&[(1, exists("/a")), (2, create("/a", 0)), (3, exists("/a"))]);
    assert_eq!(receive(&client, &mut input, 0), 3);
    assert_eq!(bench.shared.outstanding(), 1, "the write alone");
    bench.turn();
    assert_eq!(
        client.frames(),
        [failed(1, ErrorCode::NoNode), ok(2), ok(3)]
    );
}

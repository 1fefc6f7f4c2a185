//! Servers whose configuration has other lines than the ensemble.

use std::io::{self, Write};

use super::*;

/// What an operator reads, from where the message begins.
#[derive(Clone, Default)]
struct Log(Arc<parking_lot::Mutex<Vec<u8>>>);

impl Log {
    /// What this thread says meanwhile of lines that differ.
    fn of(what: impl FnOnce()) -> Vec<String> {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .finish();
        tracing::subscriber::with_default(subscriber, what);
        let text = String::from_utf8(log.0.lock().clone()).unwrap();
        let lines = text.lines().map(|line| line.trim().to_owned());
        lines.filter(|line| line.contains("server lines")).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const ONE: &str = "server.1=host1:2888:3888:participant";
const TWO: &str = "server.2=host2:2888:3888:participant";
const THREE: &str = "server.3=host3:2888:3888:participant";

/// Starts a server anew with these lines, and waits until it serves.
fn restart(cluster: &mut Cluster, server: u64, lines: &[&str]) {
    let origin = next_start(server, cluster.node(server));
    let (kept, now_ms) = (cluster.node(server).kept.clone(), cluster.now_ms);
    let lines = lines.join("\n");
    let build = Build::of(FEATURE_LEVEL);
    let node = Node::start(origin, &[], false, build, kept, now_ms, &|options| {
        options.ensemble.clone_from(&lines);
    });
    *cluster.node(server) = node;
    cluster.pass_linking(2_000);
    assert!(cluster.shared(server).is_serving());
}

/// Three servers, of which one is elsewhere than it was and one says where its clients are to go.
fn reconfigured() -> Cluster {
    let mut cluster = Cluster::tuned(3, |options| options.ensemble = [ONE, TWO, THREE].join("\n"));
    // Their disks are known from here on.
    cluster.pass_linking(1_000);
    let leader = cluster.leader();
    let (mut client, _) = cluster.client(leader);
    let joining = "server.2=elsewhere:2888:3888;2181,server.3=host3:2888:3888;zk3.example:2181";
    cluster.send(&client, 1, &reconfig(joining, ""));
    cluster.pass_linking(1_000);
    assert_eq!(client.frames(), [ok(1)]);
    let ensemble = cluster.shared(leader).newest_ensemble().unwrap();
    let lines = ensemble.members().iter().map(ToString::to_string);
    let lines: Vec<_> = lines.collect();
    let elsewhere = "server.2=elsewhere:2888:3888:participant";
    let with_clients = "server.3=host3:2888:3888:participant;zk3.example:2181";
    assert_eq!(lines, [ONE, elsewhere, with_clients]);
    cluster
}

#[test]
fn whose_lines_differ_from_those_that_count_is_told_once_which() {
    let mut cluster = reconfigured();
    let follower = cluster.follower();
    // Until somebody listens, a place in the program that speaks for the first time may be taken
    // for one that nobody ever listens to; so it has spoken before.
    restart(&mut cluster, follower, &[ONE]);
    let mut said = |lines: &[&str]| Log::of(|| restart(&mut cluster, follower, lines));
    let warning = |configured: &str, counting: &str| {
        vec![format!(
            "WARN the server lines of the configuration are not those of the ensemble, which \
             count: after the first start, only a reconfig changes them \
             configured={{{configured}}} counting=[{counting}]"
        )]
    };
    let elsewhere = "server.2=elsewhere:2888:3888:participant";
    let with_clients = "server.3=host3:2888:3888:participant;zk3.example:2181";
    let quoted = |line: &str| format!("{line:?}");
    // Where clients go may stand elsewhere in the file.
    assert_eq!(said(&[ONE, elsewhere, with_clients]), Vec::<String>::new());
    assert_eq!(said(&[THREE, elsewhere, ONE]), Vec::<String>::new());
    // A server that has no lines of others waits for nothing.
    assert_eq!(said(&[]), Vec::<String>::new());
    // One that moved, one too many, one too few, and one whose clients are to go elsewhere.
    let moved = warning(&quoted(TWO), &quoted(elsewhere));
    assert_eq!(said(&[ONE, TWO, THREE]), moved);
    let four = "server.4=host4:2888:3888:participant";
    let added = warning(&quoted(four), "");
    assert_eq!(said(&[ONE, elsewhere, THREE, four]), added);
    let removed = warning("", &quoted(ONE));
    assert_eq!(said(&[elsewhere, THREE]), removed);
    let wrong = "server.3=host3:2888:3888:participant;other.example:2181";
    let differing = warning(&quoted(wrong), &quoted(with_clients));
    assert_eq!(said(&[ONE, elsewhere, wrong]), differing);

    // Whoever serves again after a while without the others has said it.
    let again = Log::of(|| {
        restart(&mut cluster, follower, &[ONE, TWO, THREE]);
        cluster.isolate(follower);
        cluster.pass(20_000);
        assert!(!cluster.shared(follower).is_serving());
        cluster.cut.clear();
        cluster.pass_linking(2_000);
        assert!(cluster.shared(follower).is_serving());
    });
    assert_eq!(again, moved);
}

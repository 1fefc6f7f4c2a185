//! Golden answers, and answers read the way monitoring agents and clients read them.

use std::sync::atomic::{AtomicBool, AtomicI64};

use super::*;
use crate::admin::{EnsembleView, Heard, Held, Mode, TRACE_MASK_DEFAULT, WatchSummary};
use crate::config::{Config, Member, Whitelist};
use crate::metrics::Metrics;
use crate::wire::Zxid;

/// A made one.
pub(crate) struct Server {
    config: Config,
    metrics: Metrics,
    serving: bool,
    read_only: bool,
    pub(crate) ensemble: Option<EnsembleView>,
    trace_mask: AtomicI64,
    connections_reset: AtomicBool,
}

impl Server {
    pub(crate) fn new() -> Self {
        let config = Config {
            server_id: 1,
            ..Config::dev()
        };
        let metrics = Metrics::default();
        metrics.packets_received.add(343);
        metrics.packets_sent.add(365);
        [0, 0, 1, 18]
            .iter()
            .for_each(|ms| metrics.request_latency.note(*ms));
        [0, 1].iter().for_each(|ms| metrics.readlatency.note(*ms));
        metrics.fsynctime.note(3);
        Self {
            config,
            metrics,
            serving: true,
            read_only: false,
            ensemble: None,
            trace_mask: AtomicI64::new(TRACE_MASK_DEFAULT),
            connections_reset: AtomicBool::new(false),
        }
    }

    pub(crate) fn say(&self, word: &str) -> String {
        let bytes = word.as_bytes().try_into().unwrap();
        answer(bytes, b"\n", self).unwrap_or_else(|| panic!("{word} is a word"))
    }
}

const SESSION: SessionId = SessionId(0x100_0018_f180_002b);

impl View for Server {
    fn config(&self) -> &Config {
        &self.config
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn is_serving(&self) -> bool {
        self.serving
    }

    fn mode(&self) -> Mode {
        match &self.ensemble {
            _ if self.read_only => Mode::ReadOnly,
            Some(ensemble) if ensemble.leader == 1 => Mode::Leader,
            Some(_) => Mode::Follower,
            None => Mode::Standalone,
        }
    }

    fn ensemble(&self) -> Option<EnsembleView> {
        self.ensemble.clone()
    }

    fn feature_level(&self) -> u32 {
        7
    }

    fn zxid(&self) -> Zxid {
        Zxid::new(2, 1)
    }

    fn uptime_ms(&self) -> u64 {
        5_000
    }

    fn client_address(&self) -> SocketAddr {
        "127.0.0.1:2181".parse().unwrap()
    }

    fn directory_bytes(&self) -> (u64, u64) {
        (67_109_337, 457)
    }

    fn znode_count(&self) -> u64 {
        5
    }

    fn ephemeral_count(&self) -> u64 {
        2
    }

    fn data_bytes(&self) -> u64 {
        44
    }

    fn session_count(&self) -> u64 {
        1
    }

    fn local_session_count(&self) -> u64 {
        3
    }

    fn connection_count(&self) -> u64 {
        2
    }

    fn outstanding(&self) -> u64 {
        3
    }

    fn held(&self) -> Held {
        Held {
            watches: 3,
            watch_bytes: 800,
            watch_max_bytes: 1_000,
            unsent_bytes: 7,
            unsent_max_bytes: -1,
            unread_connections_closed: 2,
        }
    }

    fn watches(&self) -> WatchSummary {
        WatchSummary {
            connections: 2,
            paths: 2,
            watches: 3,
        }
    }

    fn connections(&self) -> Vec<ConnectionView> {
        let client = ConnectionView {
            peer: "127.0.0.1:46380".parse().unwrap(),
            reading: true,
            queued: 0,
            received: 4,
            sent: 4,
            expires_ms: 1_795_420_856_000,
            session: Some(SessionView {
                id: SESSION,
                timeout_ms: 10_000,
                established_ms: 1_795_380_087_309,
                last_opcode: op::GET_DATA,
                last_xid: 3,
                last_zxid: Zxid(0xfb),
                last_response_ms: 1_880_550,
                last_latency_ms: 1,
                min_latency_ms: 0,
                average_latency_ms: 0,
                max_latency_ms: 1,
            }),
        };
        let asking = ConnectionView {
            peer: "[::1]:46381".parse().unwrap(),
            reading: false,
            received: 0,
            sent: 0,
            expires_ms: 1_795_420_858_000,
            session: None,
            ..client.clone()
        };
        vec![client, asking]
    }

    fn expiries(&self) -> Vec<(i64, SessionId)> {
        vec![
            (1_795_420_858_000, SessionId(3)),
            (1_795_420_856_000, SESSION),
        ]
    }

    fn timeouts(&self) -> Vec<(SessionId, i32)> {
        vec![(SessionId(3), 4_000), (SESSION, 10_000)]
    }

    fn ephemerals(&self) -> Vec<(SessionId, Vec<Text>)> {
        vec![(SESSION, vec!["/a".into(), "/b/c".into()])]
    }

    fn data_watches(&self) -> Vec<(SessionId, Text)> {
        let pairs = [(SESSION, "/b"), (SessionId(3), "/a"), (SESSION, "/a")];
        pairs.map(|(id, path)| (id, path.into())).to_vec()
    }

    fn digests(&self) -> Vec<(Zxid, u64)> {
        vec![(Zxid(0x80), 7), (Zxid(0x1_0000_0000), 1_371_985_504)]
    }

    fn reset_connections(&self) {
        self.connections_reset.store(true, Ordering::Relaxed);
    }

    fn trace_mask(&self) -> &AtomicI64 {
        &self.trace_mask
    }
}

#[test]
fn words_are_known_by_their_bytes_and_other_bytes_are_not() {
    let words = "conf cons crst dirs dump envi gtmk hash isro mntr ruok srst srvr stat stmk wchc \
                 wchp wchs";
    for word in words.split_whitespace() {
        let bytes = word.as_bytes().try_into().unwrap();
        assert_eq!(Word::from_bytes(bytes).map(Word::name), Some(word));
    }
    assert_eq!(
        Word::from_bytes(*b"\xff\xf4\xff\xfd"),
        Some(Word::TelnetClose)
    );
    for other in [*b"abcd", *b"GET ", *b"RUOK", [0, 0, 0, 45]] {
        assert_eq!(Word::from_bytes(other), None);
        assert_eq!(answer(other, b"", &Server::new()), None);
    }
}

#[test]
fn a_word_that_is_not_on_the_whitelist_says_so() {
    let mut server = Server::new();
    server.config.four_letter_words = Whitelist::parse("stat");
    assert_eq!(
        server.say("ruok"),
        "ruok is not executed because it is not in the whitelist.\n"
    );
    server.say("srst");
    assert_eq!(
        server.metrics.packets_sent.value(),
        365,
        "a disabled word does nothing"
    );
    assert!(server.say("srvr").starts_with("Zookeeper version: "));
    assert!(server.say("stat").starts_with("Zookeeper version: "));
}

#[test]
fn a_server_that_does_not_serve_says_so_except_where_that_is_the_answer() {
    let mut server = Server::new();
    server.serving = false;
    for word in "conf cons crst dirs dump hash mntr srst srvr stat wchc wchp wchs".split(' ') {
        assert_eq!(
            server.say(word),
            "This ZooKeeper instance is not currently serving requests\n",
            "{word}"
        );
    }
    assert_eq!(server.say("ruok"), "imok");
    assert_eq!(server.say("isro"), "null");
    assert_eq!(server.say("gtmk"), "306");
    assert!(server.say("envi").starts_with("Environment:\n"));
}

#[test]
fn short_answers_are_exact() {
    let server = Server::new();
    assert_eq!(server.say("ruok"), "imok");
    assert_eq!(server.say("isro"), "rw");
    assert_eq!(
        server.say("dirs"),
        "datadir_size: 67109337\nlogdir_size: 457\n"
    );
    assert_eq!(server.say("hash"), "80: 7\n100000000: 1371985504\n");
    assert_eq!(
        server.say("wchs"),
        "2 connections watching 2 paths\nTotal watches:3\n"
    );
    assert_eq!(
        answer(*b"\xff\xf4\xff\xfd", b"", &server).as_deref(),
        Some("")
    );
}

#[test]
fn srvr_is_exact() {
    let expected = format!(
        "Zookeeper version: {VERSION}\nLatency min/avg/max: 0/4.75/18\nReceived: 343\nSent: 365\n\
         Connections: 2\nOutstanding: 3\nZxid: 0x200000001\nMode: standalone\nNode count: 5\n"
    );
    assert_eq!(Server::new().say("srvr"), expected);
}

#[test]
fn stat_lists_the_clients_after_the_version() {
    let server = Server::new();
    let srvr = server.say("srvr");
    let (version, statistics) = srvr.split_once('\n').unwrap();
    let clients = "Clients:\n /127.0.0.1:46380[1](queued=0,recved=4,sent=4)\n \
                   /[0:0:0:0:0:0:0:1]:46381[0](queued=0,recved=0,sent=0)\n\n";
    assert_eq!(
        server.say("stat"),
        format!("{version}\n{clients}{statistics}")
    );
}

#[test]
fn cons_is_exact() {
    assert_eq!(
        Server::new().say("cons"),
        " /127.0.0.1:46380[1](queued=0,recved=4,sent=4,sid=0x1000018f180002b,lop=GETD,\
         est=1795380087309,to=10000,lcxid=0x3,lzxid=0xfb,lresp=1880550,llat=1,minlat=0,avglat=0,\
         maxlat=1)\n /[0:0:0:0:0:0:0:1]:46381[0](queued=0,recved=0,sent=0)\n\n"
    );
}

#[test]
fn the_xid_of_a_ping_is_not_shown() {
    let Some(session) = Server::new().connections().remove(0).session else {
        panic!("the first connection has a session");
    };
    let ping = SessionView {
        last_xid: -2,
        last_opcode: op::PING,
        ..session
    };
    let fields = session_fields(&ping);
    assert!(
        fields.contains(",lop=PING,est=1795380087309,to=10000,lzxid=0xfb,"),
        "{fields}"
    );
}

#[test]
fn conf_is_exact() {
    assert_eq!(
        Server::new().say("conf"),
        "clientPort=2181\nsecureClientPort=-1\ndataDir=./zkraft-data\ndataDirSize=67109337\n\
         dataLogDir=./zkraft-data\ndataLogSize=457\ntickTime=2000\nmaxClientCnxns=60\n\
         minSessionTimeout=4000\nmaxSessionTimeout=40000\nclientPortListenBacklog=-1\nserverId=1\n"
    );
}

#[test]
fn dump_is_exact() {
    assert_eq!(
        Server::new().say("dump"),
        "SessionTracker dump:\nSession Sets (2)/(2):\n\
         1 expire at Mon Nov 23 08:00:56 UTC 2026:\n\t0x1000018f180002b\n\
         1 expire at Mon Nov 23 08:00:58 UTC 2026:\n\t0x3\n\
         ephemeral nodes dump:\nSessions with Ephemerals (1):\n\
         0x1000018f180002b:\n\t/a\n\t/b/c\n\
         Connections dump:\nConnections Sets (2)/(2):\n\
         1 expire at Mon Nov 23 08:00:56 UTC 2026:\n\
         \tip: /127.0.0.1:46380 sessionId: 0x1000018f180002b\n\
         1 expire at Mon Nov 23 08:00:58 UTC 2026:\n\
         \tip: /[0:0:0:0:0:0:0:1]:46381 sessionId: 0x0\n"
    );
}

#[test]
fn watches_are_listed_by_session_and_by_path() {
    let server = Server::new();
    assert_eq!(
        server.say("wchc"),
        "0x3\n\t/a\n0x1000018f180002b\n\t/a\n\t/b\n\n"
    );
    assert_eq!(
        server.say("wchp"),
        "/a\n\t0x3\n\t0x1000018f180002b\n/b\n\t0x1000018f180002b\n\n"
    );
}

#[test]
fn statistics_are_reset() {
    let server = Server::new();
    assert_eq!(server.say("crst"), "Connection stats reset.\n");
    assert!(server.connections_reset.load(Ordering::Relaxed));
    assert_eq!(server.say("srst"), "Server stats reset.\n");
    assert!(
        server
            .say("srvr")
            .contains("Latency min/avg/max: 0/0.0/0\nReceived: 0\nSent: 0\n")
    );
}

#[test]
fn the_trace_mask_is_kept() {
    let server = Server::new();
    assert_eq!(server.say("gtmk"), "306");
    let set = |argument: &[u8]| answer(*b"stmk", argument, &server);
    assert_eq!(set(b"\0\0\0\0\0\0\x01\x01\n").as_deref(), Some("257"));
    assert_eq!(
        set(b"\0\0").as_deref(),
        Some("257"),
        "half a mask changes nothing"
    );
    assert_eq!(server.say("gtmk"), "257");
}

/// The Go client's expression for `srvr`, piece by piece: it accepts nothing but digits between
/// the slashes of a date, and only `[A-Za-z0-9.-]` in a version.
#[test]
fn the_go_client_understands_srvr() {
    let srvr = Server::new().say("srvr");
    let lines: Vec<&str> = srvr.lines().collect();
    let version = lines[0].strip_prefix("Zookeeper version: ").unwrap();
    let (version, built) = version.split_once(", built on ").unwrap();
    assert!(
        version
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
    );
    let pattern = built
        .bytes()
        .map(|b| if b.is_ascii_digit() { '0' } else { b as char });
    assert_eq!(pattern.collect::<String>(), "00/00/0000 00:00 GMT");

    let latency = lines[1].strip_prefix("Latency min/avg/max: ").unwrap();
    let [min, average, max] = latency.split('/').collect::<Vec<_>>()[..] else {
        panic!("{latency}");
    };
    assert!(min.parse::<u64>().is_ok() && max.parse::<u64>().is_ok());
    assert!(average.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    let names = [
        "Received",
        "Sent",
        "Connections",
        "Outstanding",
        "Zxid",
        "Mode",
        "Node count",
    ];
    assert_eq!(lines.len(), 2 + names.len());
    for (line, name) in lines[2..].iter().zip(names) {
        let (key, value) = line.split_once(": ").unwrap();
        assert_eq!(key, name);
        match name {
            "Zxid" => assert!(i64::from_str_radix(value.strip_prefix("0x").unwrap(), 16).is_ok()),
            "Mode" => assert!(value.bytes().all(|b| b.is_ascii_alphabetic())),
            _ => assert!(value.parse::<u64>().is_ok(), "{line}"),
        }
    }
}

/// kazoo's `server_version()`: lines at their first `=`, the version before its first hyphen.
#[test]
fn kazoo_understands_envi() {
    let envi = Server::new().say("envi");
    let pairs: Vec<(&str, &str)> = envi
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let version = pairs
        .iter()
        .find(|(key, _)| *key == "zookeeper.version")
        .unwrap()
        .1;
    let digits = version.split('-').next().unwrap();
    let numbers: Vec<u32> = digits
        .split('.')
        .map(|number| number.parse().unwrap())
        .collect();
    assert_eq!(numbers, [3, 9, 5]);
    let keys: Vec<&str> = pairs.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys[..2], ["zookeeper.version", "host.name"]);
    assert_eq!(
        keys[15..],
        ["os.memory.free", "os.memory.max", "os.memory.total"]
    );
}

/// Telegraf gives up at the first line that is not `zk_`, word characters, blanks, and a value
/// that starts with a word character, dot or hyphen; so does Solr at one without exactly one tab.
#[test]
fn telegraf_and_solr_understand_mntr() {
    let mntr = Server::new().say("mntr");
    let mut values = BTreeMap::new();
    for line in mntr.lines() {
        let [name, value] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line:?}");
        };
        let name = name.strip_prefix("zk_").unwrap();
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        assert!(name.bytes().all(word), "{line:?}");
        let first = value.bytes().next().unwrap();
        assert!(word(first) || first == b'.' || first == b'-', "{line:?}");
        assert!(values.insert(name, value).is_none(), "{name} twice");
    }
    // What the agents in the field rely on (§11.1), except what only a leader has.
    for (name, value) in [
        ("version", VERSION),
        ("server_state", "standalone"),
        ("avg_latency", "4.75"),
        ("max_latency", "18"),
        ("min_latency", "0"),
        ("packets_received", "343"),
        ("packets_sent", "365"),
        ("num_alive_connections", "2"),
        ("outstanding_requests", "3"),
        ("znode_count", "5"),
        ("watch_count", "3"),
        ("watch_memory_bytes", "800"),
        ("watch_memory_max_bytes", "1000"),
        ("unsent_bytes", "7"),
        ("unsent_max_bytes", "-1"),
        ("unread_connections_closed", "2"),
        ("ephemerals_count", "2"),
        ("approximate_data_size", "44"),
        ("feature_level", "7"),
        ("global_sessions", "1"),
        ("local_sessions", "3"),
        ("uptime", "5000"),
        ("avg_readlatency", "0.5"),
        ("cnt_readlatency", "2"),
        ("p50_readlatency", "0"),
        ("p999_readlatency", "1"),
        ("sum_fsynctime", "3"),
        ("cnt_snapshottime", "0"),
        ("avg_snapshottime", "0.0"),
        ("stale_sessions_expired", "0"),
    ] {
        assert_eq!(values.get(name), Some(&value), "{name}");
    }
    assert!(
        !values.contains_key("p50_fsynctime"),
        "quantiles only where ZooKeeper has them"
    );
    for name in ["open_file_descriptor_count", "max_file_descriptor_count"] {
        assert!(values[name].parse::<u64>().unwrap() > 0, "{name}");
    }
}

/// Datadog: version digits from `stat`, then one line for each client until an empty line.
#[test]
fn datadog_understands_stat() {
    let stat = Server::new().say("stat");
    let mut lines = stat.lines();
    let version = lines
        .next()
        .unwrap()
        .strip_prefix("Zookeeper version: ")
        .unwrap();
    assert_eq!(version.split('-').next(), Some("3.9.5"));
    assert_eq!(lines.next(), Some("Clients:"));
    let clients = lines.by_ref().take_while(|line| !line.trim().is_empty());
    assert!(
        clients.fold(0, |count, line| {
            assert!(line.trim_start().starts_with('/'));
            count + 1
        }) == 2
    );
    assert!(lines.next().unwrap().starts_with("Latency min/avg/max: "));
}

#[test]
fn numbers_and_times_are_written_as_java_writes_them() {
    for (value, text) in [
        (0.0, "0.0"),
        (0.42311, "0.4231"),
        (12.5, "12.5"),
        (100.0, "100.0"),
    ] {
        assert_eq!(decimal(value), text);
    }
    let mapped = "[::ffff:10.0.0.7]:2181".parse().unwrap();
    assert_eq!(java_address(mapped), "/10.0.0.7:2181");
    for (ms, text) in [
        (0, "Thu Jan 01 00:00:00 UTC 1970"),
        (951_782_400_000, "Tue Feb 29 00:00:00 UTC 2000"),
        (1_735_689_599_999, "Tue Dec 31 23:59:59 UTC 2024"),
        (i64::MAX, "Fri Dec 31 23:59:59 UTC 9999"),
    ] {
        assert_eq!(java_date(ms), text);
    }
}

/// As exporters and scripts expect them (§11.1).
#[test]
fn a_follower_tells_what_followers_tell() {
    let mut server = Server::new();
    let line = "a:2888:3888:participant;0.0.0.0:2181";
    server.config = Config {
        members: vec![Member::parse("1", line).unwrap()],
        init_limit_ms: 20_000,
        sync_limit_ms: 10_000,
        tick_ms: 2_000,
        ..server.config
    };
    server.ensemble = Some(EnsembleView {
        leader: 2,
        config: "server.1=a:2888:3888:participant\nversion=0".to_owned(),
        ..EnsembleView::default()
    });
    let said = server.say("mntr");
    for line in [
        "zk_server_state\tfollower",
        "zk_peer_state\tfollowing - broadcast",
    ] {
        assert!(said.lines().any(|found| found == line), "{line}");
    }
    for word in ["leader_uptime", "synced_followers", "learners"] {
        assert!(!said.contains(word), "{word}");
    }
    assert!(server.say("srvr").contains("\nMode: follower\n"));
    let dump = server.say("dump");
    let sessions = "SessionTracker dump:\nGlobal Sessions(2):\n0x3\t4000ms\n\
                    0x1000018f180002b\t10000ms\nephemeral nodes dump:\n";
    assert!(dump.starts_with(sessions), "{dump}");
    let conf = server.say("conf");
    let expected = "initLimit=10\nsyncLimit=5\nelectionAlg=3\nelectionPort=3888\n\
                    quorumPort=2888\npeerType=0\nmembership: \n\
                    server.1=a:2888:3888:participant\nversion=0";
    assert!(conf.ends_with(expected), "{conf}");
}

#[test]
fn words_that_look_at_the_disk_are_known() {
    assert!(reads_disk(*b"conf") && reads_disk(*b"dirs"));
    assert!(!reads_disk(*b"ruok") && !reads_disk(*b"srvr") && !reads_disk(*b"\0\0\0\x2d"));
}

#[test]
fn a_leader_tells_of_its_ensemble() {
    let mut server = Server::new();
    let alone = server.say("mntr");
    assert!(!alone.contains("zk_peer_state") && !alone.contains("zk_synced_followers"));
    server.ensemble = Some(EnsembleView {
        leader: 1,
        term: 7,
        lag: 2,
        writes: 3,
        syncs: 4,
        voters: 3,
        joining: false,
        config: "server.1=a:2888:3888:participant\nversion=100000000".to_owned(),
        leading_ms: 1_500,
        followers: Heard {
            active: 2,
            synced: 1,
        },
        observers: Heard::default(),
        links: vec![(2, true), (3, false)],
    });
    let said = server.say("mntr");
    for line in [
        "zk_server_state\tleader",
        "zk_peer_state\tleading - broadcast",
        "zk_quorum_size\t3",
        "zk_leader_uptime\t1500",
        "zk_snap_count\t0",
        "zk_learners\t2",
        "zk_synced_followers\t1",
        "zk_pending_syncs\t4",
        "zk_raft_term\t7",
        "zk_raft_lag\t2",
        "zk_raft_joining\t0",
        "zk_peer_linked_2\t1",
        "zk_peer_linked_3\t0",
    ] {
        assert!(said.lines().any(|found| found == line), "{line}");
    }
    let conf = server.say("conf");
    assert!(
        conf.ends_with("membership: \nserver.1=a:2888:3888:participant\nversion=100000000"),
        "{conf}"
    );
}

#[test]
fn a_read_only_server_says_so_and_that_it_takes_no_writes() {
    let mut server = Server::new();
    server.read_only = true;
    let heading =
        format!("Zookeeper version: {VERSION}\nREAD-ONLY mode; serving only read-only clients\n");
    let srvr = server.say("srvr");
    assert!(srvr.starts_with(&format!("{heading}Latency")), "{srvr}");
    assert!(srvr.contains("\nMode: read-only\n"), "{srvr}");
    let stat = server.say("stat");
    assert!(stat.starts_with(&format!("{heading}Clients:\n")), "{stat}");
    let mntr = server.say("mntr");
    assert!(mntr.contains("zk_server_state\tread-only\n"), "{mntr}");
    assert_eq!(server.say("isro"), "ro");
    server.read_only = false;
    assert_eq!(server.say("isro"), "rw");
    server.serving = false;
    assert_eq!(server.say("isro"), "null");
}

#[test]
fn clients_may_ask_for_a_server_that_writes_where_there_is_read_only_mode() {
    let mut server = Server::new();
    server.config.four_letter_words = Whitelist::parse("srvr");
    assert!(server.say("isro").contains("whitelist"));
    server.config.read_only_mode = true;
    assert_eq!(server.say("isro"), "rw");
    assert!(server.say("mntr").contains("whitelist"));
}

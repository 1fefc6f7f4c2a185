//! Four-letter words on the client port (spec §1.4, §11.1).

use std::collections::HashMap;

use crate::client::{Hello, mode};
use crate::server::Server;

/// `key: value` or `key=value` lines as pairs, in their order.
fn pairs<'a>(text: &'a str, separator: &str) -> Vec<(&'a str, &'a str)> {
    text.lines()
        .map(|line| {
            line.split_once(separator)
                .unwrap_or_else(|| panic!("no pair: {line:?}"))
        })
        .collect()
}

fn keys<'a>(pairs: &[(&'a str, &str)]) -> Vec<&'a str> {
    pairs.iter().map(|(key, _)| *key).collect()
}

fn is_number(text: &str) -> bool {
    text.parse::<i64>().is_ok()
}

/// A zxid, session id or the like: `0x` and lower-case digits without leading zeros.
fn is_hex(text: &str) -> bool {
    text.strip_prefix("0x").is_some_and(|digits| {
        (digits == "0" || !digits.starts_with('0'))
            && !digits.is_empty()
            && digits
                .bytes()
                .all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
    })
}

fn hex_id(session: i64) -> String {
    format!("{session:#x}")
}

/// Checks the lines of `srvr` from the latency on, which `stat` ends with too.
fn check_statistics(text: &str) {
    let lines = pairs(text, ": ");
    assert_eq!(
        keys(&lines),
        [
            "Latency min/avg/max",
            "Received",
            "Sent",
            "Connections",
            "Outstanding",
            "Zxid",
            "Mode",
            "Node count"
        ]
    );
    let [
        latency,
        received,
        sent,
        connections,
        outstanding,
        zxid,
        mode,
        nodes,
    ] = lines.iter().map(|(_, value)| *value).collect::<Vec<_>>()[..]
    else {
        panic!("eight lines");
    };
    let latency: Vec<&str> = latency.split('/').collect();
    assert_eq!(latency.len(), 3);
    assert!(
        is_number(latency[0]) && is_number(latency[2]),
        "{latency:?}"
    );
    let (_, decimals) = latency[1]
        .split_once('.')
        .expect("the average is a decimal");
    assert!(
        (1..=4).contains(&decimals.len()) && is_number(decimals),
        "{latency:?}"
    );
    for number in [received, sent, connections, outstanding, nodes] {
        assert!(is_number(number), "{number}");
    }
    assert!(is_hex(zxid), "{zxid}");
    assert_eq!(mode, "standalone");
    assert!(text.ends_with('\n'));
}

/// Checks `3.9.5-<hash>, built on <date>` and what the Go client's parser needs of it.
fn check_version(server: &Server, version: &str) {
    let (number, date) = version.split_once(", built on ").expect("a build date");
    let (release, build) = number.split_once('-').expect("a release and a build");
    let release: Vec<&str> = release.split('.').collect();
    assert!(
        release.len() == 3 && release.iter().all(|part| is_number(part)),
        "{number}"
    );
    assert!(!build.is_empty());
    if server.is_zookeeper() {
        return;
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    assert!(number.bytes().all(plain), "{number}");
    // MM/dd/yyyy HH:mm and a zone.
    let pattern: String = date
        .chars()
        .take(16)
        .map(|digit| if digit.is_ascii_digit() { '0' } else { digit })
        .collect();
    assert_eq!(pattern, "00/00/0000 00:00", "{date}");
    let zone = date[16..].strip_prefix(' ').expect("a zone");
    assert!(
        zone.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "{date}"
    );
}

#[test]
fn s91_a_known_but_disabled_word_says_so() {
    let server = Server::pristine();
    let words =
        "conf cons crst dirs dump envi gtmk hash isro mntr ruok srst stat stmk wchc wchp wchs";
    for word in words.split(' ') {
        let expected = format!("{word} is not executed because it is not in the whitelist.\n");
        assert_eq!(server.word(word), expected);
    }
    // The one word that is always on.
    assert!(server.word("srvr").starts_with("Zookeeper version: "));
}

#[test]
fn s92_wchs_counts_data_watches_only() {
    let (server, _turn) = Server::alone();
    let mut client = server.client();
    client.make("/s92");
    client.make("/s92/x");
    assert_eq!(
        server.word("wchs"),
        "0 connections watching 0 paths\nTotal watches:0\n"
    );
    client.children_watch("/s92").unwrap();
    assert_eq!(
        server.word("wchs"),
        "0 connections watching 0 paths\nTotal watches:0\n"
    );
    assert_eq!(server.word("wchc"), "\n");
    assert_eq!(server.word("wchp"), "\n");

    client.get_watch("/s92").unwrap();
    client.exists_watch("/s92/x").unwrap();
    let mut other = server.client();
    other.get_watch("/s92").unwrap();
    assert_eq!(
        server.word("wchs"),
        "2 connections watching 2 paths\nTotal watches:3\n"
    );

    let (one, two) = (
        hex_id(client.welcome.session),
        hex_id(other.welcome.session),
    );
    let by_session = groups(&server.word("wchc"));
    assert_eq!(by_session[&one], ["/s92", "/s92/x"]);
    assert_eq!(by_session[&two], ["/s92"]);
    let by_path = groups(&server.word("wchp"));
    let mut both = [one.clone(), two];
    both.sort();
    assert_eq!(by_path["/s92"], both);
    assert_eq!(by_path["/s92/x"], [one]);
}

/// The heads of wchc or wchp with their indented lines, sorted.
fn groups(text: &str) -> HashMap<String, Vec<String>> {
    let text = text.strip_suffix("\n\n").expect("an empty line at the end");
    let mut groups: HashMap<String, Vec<String>> = HashMap::new();
    let mut head = "";
    for line in text.lines() {
        match line.strip_prefix('\t') {
            Some(item) => groups
                .get_mut(head)
                .expect("a head before it")
                .push(item.into()),
            None => {
                head = line;
                groups.insert(head.into(), Vec::new());
            }
        }
    }
    groups.values_mut().for_each(|items| items.sort());
    groups
}

#[test]
fn ruok_and_isro_answer_without_a_line_end() {
    let server = Server::plain();
    assert_eq!(server.word("ruok"), "imok");
    assert_eq!(server.word("isro"), "rw");
}

#[test]
fn what_follows_a_word_is_ignored() {
    let server = Server::plain();
    for text in ["ruok\n", "ruok\r\n", "ruokruok", "ruok and more"] {
        assert_eq!(server.word(text), "imok", "{text:?}");
    }
}

#[test]
fn a_word_may_arrive_byte_by_byte() {
    let mut connection = Server::plain().connect();
    for byte in b"ruok" {
        connection.send(&[*byte]);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert_eq!(connection.rest(), b"imok");
}

#[test]
fn after_the_handshake_a_word_is_a_length_that_cannot_be() {
    let mut connection = Server::plain().client().into_connection();
    connection.send(b"ruok");
    connection.closes();
}

#[test]
fn the_telnet_close_sequence_gets_no_answer() {
    let mut connection = Server::plain().connect();
    connection.send(&[0xff, 0xf4, 0xff, 0xfd]);
    connection.closes();
}

#[test]
fn srvr_has_its_lines_in_order() {
    let server = Server::plain();
    let text = server.word("srvr");
    let (first, rest) = text.split_once('\n').unwrap();
    check_version(server, first.strip_prefix("Zookeeper version: ").unwrap());
    check_statistics(rest);
}

#[test]
fn srvr_knows_the_zxid_and_the_node_count() {
    let (server, _turn) = Server::alone();
    let mut client = server.client();
    let value = |key: &str| {
        let text = server.word("srvr");
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .expect("the line")
            .to_string()
    };
    let before: i64 = value("Node count: ").parse().unwrap();
    client.make("/srvr");
    assert_eq!(value("Zxid: "), format!("{:#x}", client.zxid));
    assert_eq!(value("Node count: "), (before + 1).to_string());
    // This connection and the asking one.
    assert_eq!(value("Connections: "), "2");
}

#[test]
fn stat_lists_the_clients() {
    let server = Server::plain();
    let mut client = server.client();
    client.ping();
    let port = client.connection().local_port();
    let text = server.word("stat");
    let (first, rest) = text.split_once('\n').unwrap();
    check_version(server, first.strip_prefix("Zookeeper version: ").unwrap());
    let (clients, statistics) = rest.split_once("\n\n").expect("an empty line");
    check_statistics(statistics);

    let (head, clients) = clients.split_once('\n').expect("clients");
    assert_eq!(head, "Clients:");
    let start = format!(" /127.0.0.1:{port}[1](");
    let line = clients
        .lines()
        .find(|line| line.starts_with(&start))
        .expect("this client");
    let fields = pairs_of_line(line);
    assert_eq!(keys(&fields), ["queued", "recved", "sent"]);
    assert!(fields.iter().all(|(_, value)| is_number(value)), "{line}");
    // Hello and ping, welcome and pong.
    assert!(fields[1].1 >= "2" && fields[2].1 >= "2", "{line}");
    // The connection that asks is no reader any more.
    assert!(
        clients.lines().any(|line| line.contains("[0](")),
        "{clients}"
    );
}

/// The `key=value` pairs in the parentheses of a `stat` or `cons` line.
fn pairs_of_line(line: &str) -> Vec<(&str, &str)> {
    let (_, inner) = line.split_once('(').expect("an opening parenthesis");
    let inner = inner.strip_suffix(')').expect("a closing parenthesis");
    inner
        .split(',')
        .map(|field| field.split_once('=').expect("a pair"))
        .collect()
}

#[test]
fn cons_tells_what_each_connection_did_last() {
    let server = Server::plain();
    let mut client = server.client_with(&Hello {
        timeout_ms: 10_000,
        ..Hello::default()
    });
    client.make("/cons");
    client.exists("/cons").unwrap();
    client.get("/cons").unwrap();
    let port = client.connection().local_port();
    let text = server.word("cons");
    assert!(text.ends_with("\n\n"), "an empty line at the end");
    let start = format!(" /127.0.0.1:{port}[1](");
    let line = text
        .lines()
        .find(|line| line.starts_with(&start))
        .expect("this client");
    let fields = pairs_of_line(line);
    assert_eq!(
        keys(&fields),
        [
            "queued", "recved", "sent", "sid", "lop", "est", "to", "lcxid", "lzxid", "lresp",
            "llat", "minlat", "avglat", "maxlat"
        ]
    );
    let value: HashMap<&str, &str> = fields.into_iter().collect();
    assert_eq!(value["sid"], hex_id(client.welcome.session));
    assert_eq!(value["lop"], "GETD");
    assert_eq!(value["to"], "10000");
    assert_eq!(value["lcxid"], "0x3");
    assert_eq!(value["lzxid"], format!("{:#x}", client.zxid));
    for key in [
        "queued", "recved", "sent", "est", "lresp", "llat", "minlat", "avglat", "maxlat",
    ] {
        assert!(is_number(value[key]), "{key} in {line}");
    }
}

#[test]
fn crst_and_srst_reset() {
    let (server, _turn) = Server::alone();
    let mut client = server.client();
    for _ in 0..10 {
        client.ping();
    }
    let received = || {
        let text = server.word("srvr");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("Received: "))
            .unwrap()
            .to_string();
        line.parse::<i64>().unwrap()
    };
    assert!(received() > 10);
    assert_eq!(server.word("srst"), "Server stats reset.\n");
    assert!(received() < 10);
    assert_eq!(server.word("crst"), "Connection stats reset.\n");
    let cons = server.word("cons");
    let start = format!(" /127.0.0.1:{}[", client.connection().local_port());
    let line = cons
        .lines()
        .find(|line| line.starts_with(&start))
        .expect("this client");
    assert!(pairs_of_line(line).contains(&("recved", "0")), "{line}");
}

#[test]
fn conf_shows_what_is_configured() {
    let server = Server::plain();
    let text = server.word("conf");
    let lines = pairs(&text, "=");
    assert_eq!(
        keys(&lines),
        [
            "clientPort",
            "secureClientPort",
            "dataDir",
            "dataDirSize",
            "dataLogDir",
            "dataLogSize",
            "tickTime",
            "maxClientCnxns",
            "minSessionTimeout",
            "maxSessionTimeout",
            "clientPortListenBacklog",
            "serverId"
        ]
    );
    let value: HashMap<&str, &str> = lines.into_iter().collect();
    for (key, expected) in [
        ("clientPort", &*server.address().port().to_string()),
        ("secureClientPort", "-1"),
        ("tickTime", "2000"),
        ("maxClientCnxns", "0"),
        ("minSessionTimeout", "4000"),
        ("maxSessionTimeout", "40000"),
        ("clientPortListenBacklog", "-1"),
    ] {
        assert_eq!(value[key], expected, "{key}");
    }
    // Where below the configured directory the files are is the server's own business.
    let data = server.data_directory().display().to_string();
    for key in ["dataDir", "dataLogDir"] {
        assert!(value[key].starts_with(&data), "{key}");
    }
    for key in ["dataDirSize", "dataLogSize", "serverId"] {
        assert!(is_number(value[key]), "{key}");
    }
}

#[test]
fn dirs_measures_the_directories() {
    let text = Server::plain().word("dirs");
    let lines = pairs(&text, ": ");
    assert_eq!(keys(&lines), ["datadir_size", "logdir_size"]);
    assert!(lines.iter().all(|(_, value)| is_number(value)), "{text}");
}

#[test]
fn dump_lists_sessions_ephemerals_and_connections() {
    let (server, _turn) = Server::alone();
    let mut client = server.client();
    client.create("/dump-b", mode::EPHEMERAL).unwrap();
    client.create("/dump-a", mode::EPHEMERAL).unwrap();
    let session = hex_id(client.welcome.session);
    let text = server.word("dump");

    let rest = text
        .strip_prefix("SessionTracker dump:\nSession Sets (")
        .expect("the session sets");
    let (sessions, rest) = rest
        .split_once("ephemeral nodes dump:\n")
        .expect("ephemerals");
    let (ephemerals, connections) = rest.split_once("Connections dump:\n").expect("connections");
    let (counts, sets) = sessions.split_once("):\n").expect("counts");
    let (buckets, count) = counts.split_once(")/(").expect("two counts");
    assert!(is_number(buckets) && is_number(count), "{counts}");
    let (heads, ids): (Vec<&str>, Vec<&str>) =
        sets.lines().partition(|line| !line.starts_with('\t'));
    assert_eq!(
        (heads.len().to_string(), ids.len().to_string()),
        (buckets.into(), count.into())
    );
    for head in heads {
        let (number, date) = head.split_once(" expire at ").expect("a bucket");
        assert!(is_number(number) && date.ends_with(':'), "{head}");
    }
    assert!(ids.contains(&&*format!("\t{session}")), "{sets}");

    assert!(
        ephemerals.starts_with("Sessions with Ephemerals ("),
        "{ephemerals}"
    );
    let (_, own) = ephemerals
        .split_once(&format!("\n{session}:\n"))
        .expect("this session");
    let mut paths: Vec<&str> = own
        .lines()
        .map_while(|line| line.strip_prefix('\t'))
        .collect();
    paths.sort();
    assert_eq!(paths, ["/dump-a", "/dump-b"]);

    assert!(
        connections.starts_with("Connections Sets ("),
        "{connections}"
    );
    let port = client.connection().local_port();
    let line = format!("\tip: /127.0.0.1:{port} sessionId: {session}\n");
    assert!(connections.contains(&line), "{connections}");
}

#[test]
fn envi_has_its_keys_in_order() {
    let server = Server::plain();
    let text = server.word("envi");
    let rest = text.strip_prefix("Environment:\n").expect("the head");
    let lines = pairs(rest, "=");
    let expected = "zookeeper.version host.name java.version java.vendor java.home \
        java.class.path java.library.path java.io.tmpdir java.compiler os.name os.arch os.version \
        user.name user.home user.dir os.memory.free os.memory.max os.memory.total";
    assert_eq!(
        keys(&lines),
        expected.split_whitespace().collect::<Vec<_>>()
    );
    check_version(server, lines[0].1);
}

#[test]
fn the_trace_mask_is_a_number_without_a_line_end() {
    let (server, _turn) = Server::alone();
    assert_eq!(server.word("gtmk"), "306");
    let mut connection = server.connect();
    connection.send(&[&b"stmk"[..], &308_i64.to_be_bytes()].concat());
    assert_eq!(connection.rest(), b"308");
    assert_eq!(server.word("gtmk"), "308");
}

#[test]
fn hash_lists_digests() {
    let text = Server::plain().word("hash");
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (zxid, digest) = line.split_once(": ").expect("a zxid and a digest");
        assert!(i64::from_str_radix(zxid, 16).is_ok(), "{line}");
        assert!(digest.parse::<i128>().is_ok(), "{line}");
    }
}

#[test]
fn mntr_has_what_monitoring_agents_read() {
    let server = Server::plain();
    let mut client = server.client();
    client.create("/mntr", mode::EPHEMERAL).unwrap();
    client.get_watch("/mntr").unwrap();
    let text = server.word("mntr");
    let lines = pairs(&text, "\t");
    assert_eq!(keys(&lines)[..2], ["zk_version", "zk_server_state"]);
    check_version(server, lines[0].1);
    assert_eq!(lines[1].1, "standalone");
    for (key, value) in &lines[2..] {
        assert!(key.starts_with("zk_"), "{key}");
        assert!(value.parse::<f64>().is_ok(), "{key} is {value}");
    }
    let value: HashMap<&str, &str> = lines.into_iter().collect();
    let needed = "zk_avg_latency zk_max_latency zk_min_latency zk_packets_received zk_packets_sent \
        zk_num_alive_connections zk_outstanding_requests zk_znode_count zk_watch_count \
        zk_ephemerals_count zk_approximate_data_size zk_open_file_descriptor_count \
        zk_max_file_descriptor_count zk_uptime zk_global_sessions";
    for key in needed.split_whitespace() {
        assert!(value.contains_key(key), "{key} is missing");
    }
    for key in [
        "zk_znode_count",
        "zk_watch_count",
        "zk_ephemerals_count",
        "zk_num_alive_connections",
    ] {
        assert!(
            value[key].parse::<i64>().is_ok_and(|number| number >= 1),
            "{key} {}",
            value[key]
        );
    }
}

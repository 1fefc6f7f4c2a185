//! Files of the field and slips of the pen: what becomes of them, and what is said about them.

use super::keys::{TABLE, Treatment};
use super::*;

/// The settings without which no file is valid.
const REQUIRED: &str = "dataDir=/nonexistent\nclientPort=2181\n";

/// ZooKeeper's sample file.
const SAMPLE: &str = "\
# The number of milliseconds of each tick
tickTime=2000
initLimit=10
syncLimit=5
dataDir=/tmp/zookeeper
# the port at which the clients will connect
clientPort=2181
#maxClientCnxns=60
#autopurge.purgeInterval=1
";

/// What the container image of ZooKeeper writes (§12.6), but for the HTTP server.
const CONTAINER: &str = "\
dataDir=/data
dataLogDir=/datalog
tickTime=2000
initLimit=5
syncLimit=2
autopurge.snapRetainCount=3
autopurge.purgeInterval=0
maxClientCnxns=60
standaloneEnabled=true
server.1=localhost:2888:3888;2181
";

fn load(text: &str) -> Result<Loaded, Invalid> {
    Loaded::text("zoo.cfg", text.as_bytes(), &[], false)
}

fn config(text: &str) -> Config {
    load(text)
        .unwrap_or_else(|invalid| panic!("{invalid}"))
        .config
}

fn refusal(text: &str) -> String {
    load(text).expect_err("the file is refused").to_string()
}

/// What is wrong with a file that has `text` beside the required settings.
fn problems(text: &str) -> Vec<String> {
    refusal(&format!("{text}\n{REQUIRED}"))
        .lines()
        .map(str::to_owned)
        .collect()
}

fn warnings(text: &str) -> Vec<String> {
    load(&format!("{text}\n{REQUIRED}")).unwrap().warnings
}

fn flag(key: &str, value: &str) -> Given {
    Given {
        key: key.into(),
        value: value.into(),
        origin: Origin::Flag("--flag"),
    }
}

#[test]
fn the_development_server_is_on_loopback() {
    let config = Config::dev();
    assert_eq!(config.client.to_string(), "127.0.0.1:2181");
    assert_eq!(config.data_dir, Path::new("./zkraft-data"));
    assert_eq!(config.log_dir, config.data_dir);
    assert_eq!(config.tick_ms, 2000);
    assert_eq!(config.four_letter_words, Whitelist::All);
    assert!(!config.extended_types);
}

#[test]
fn the_sample_file_is_accepted_without_a_word() {
    let loaded = load(SAMPLE).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let config = loaded.config;
    let everywhere = Listen {
        host: None,
        port: 2181,
    };
    assert_eq!(config.client, everywhere);
    assert_eq!(config.tick_ms, 2000);
    assert_eq!(config.min_session_timeout_ms, 4000);
    assert_eq!(config.max_session_timeout_ms, 40_000);
    assert_eq!(config.max_client_cnxns, 60);
    assert_eq!(config.server_id, 1);
    assert!(config.purge && config.force_sync);
    assert!(!config.four_letter_words.allows("ruok"));
    assert!(config.four_letter_words.allows("srvr"));
}

#[test]
fn the_container_file_takes_its_port_from_the_server_line() {
    let loaded = load(CONTAINER).unwrap();
    assert_eq!(loaded.config.client.to_string(), "*:2181");
    assert_eq!(loaded.config.data_dir, Path::new("/data"));
    assert_eq!(loaded.config.log_dir, Path::new("/datalog"));
    assert!(!loaded.config.purge);
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    let warning = &loaded.warnings[0];
    assert!(warning.starts_with("zoo.cfg:7: autopurge.purgeInterval=0 keeps"));
}

#[test]
fn the_http_server_of_the_container_file_is_refused_with_what_to_do() {
    let message = refusal(&format!("{CONTAINER}admin.enableServer=true\n"));
    assert!(message.starts_with("zoo.cfg:11: admin.enableServer=true: not supported"));
    assert!(message.contains("ZOO_ADMINSERVER_ENABLED=false"));
    config(&format!("{CONTAINER}admin.enableServer=false\n"));
}

#[test]
fn every_key_of_the_protocol_facts_is_in_the_table() {
    // §12.2 row by row, then the TLS keys of §14.4.
    let keys = "dataDir dataLogDir clientPort clientPortAddress secureClientPort \
        secureClientPortAddress client.portUnification tickTime initLimit syncLimit \
        connectToLearnerMasterLimit minSessionTimeout maxSessionTimeout maxClientCnxns maxCnxns \
        clientPortListenBacklog server.1 group.1 weight.1 dynamicConfigFile standaloneEnabled \
        reconfigEnabled peerType electionAlg localSessionsEnabled localSessionsUpgradingEnabled \
        leaderServes quorumListenOnAllIPs syncEnabled observerMasterPort \
        autopurge.snapRetainCount autopurge.purgeInterval snapCount snapSizeLimitInKb \
        txnLogSizeLimitInKb preAllocSize commitLogCount forceSync fsync.warningthresholdms \
        snapshot.compression.method snapshot.trust.empty globalOutstandingLimit \
        4lw.commands.whitelist admin.enableServer admin.serverPort admin.serverAddress \
        admin.commandURL admin.idleTimeout admin.portUnification admin.forceHttps \
        admin.needClientAuth admin.snapshot.enabled admin.restore.enabled \
        admin.rateLimiterIntervalInMS metricsProvider.className metricsProvider.httpPort \
        extendedTypesEnabled znode.container.checkIntervalMs znode.container.maxPerMinute \
        znode.container.maxNeverUsedIntervalMs enforceQuota readonlymode.enabled jute.maxbuffer \
        jute.maxbuffer.extrasize authProvider.1 DigestAuthenticationProvider.enabled \
        DigestAuthenticationProvider.superDigest DigestAuthenticationProvider.digestAlg \
        X509AuthenticationProvider.superUser superUser superUser.2 enforce.auth.enabled \
        enforce.auth.schemes sessionRequireClientSASLAuth allowSaslFailedClients \
        requireKerberosConfig kerberos.removeHostFromPrincipal \
        kerberos.removeRealmFromPrincipal skipACL enableEagerACLCheck serverCnxnFactory \
        ssl.keyStore.location ssl.quorum.keyStore.location sslQuorum fips-mode \
        client.certReload digest.enabled closeSessionTxn.enabled \
        serializeLastProcessedZxid.enabled audit.enable oraclePath multiAddress.enabled \
        multiAddress.reachabilityCheckEnabled portUnification quorum.auth.enableSasl cnxTimeout \
        electionPortBindRetry tcpKeepAlive clientTcpKeepAlive request_throttle_max_requests \
        connection_throttle_tokens throttled_op_wait_time flushDelay maxBatchSize \
        maxResponseCacheSize commitProcessor.numWorkerThreads watchManagerName \
        ssl.keyStore.password ssl.keyStore.passwordPath ssl.keyStore.type ssl.trustStore.location \
        ssl.protocol ssl.enabledProtocols ssl.ciphersuites ssl.clientAuth \
        ssl.hostnameVerification ssl.clientHostnameVerification ssl.crl ssl.ocsp ssl.authProvider";
    for key in keys.split_whitespace() {
        assert!(keys::find(key).is_some(), "{key}");
    }
}

#[test]
fn names_are_unique_and_every_key_is_explained() {
    for (index, key) in TABLE.iter().enumerate() {
        let earlier = &TABLE[..index];
        assert!(
            earlier.iter().all(|other| other.name != key.name),
            "{}",
            key.name
        );
        assert!(
            !key.doc.is_empty() && !key.doc.ends_with('.'),
            "{}",
            key.name
        );
    }
}

/// So neither the table nor what `check-config` prints can drift from the code.
#[test]
fn the_defaults_of_the_table_are_those_of_the_code() {
    let defaults = config(REQUIRED);
    for key in TABLE {
        let Treatment::Honoured { show, .. } = key.treatment else {
            continue;
        };
        if key.default.is_empty() {
            continue;
        }
        let set = config(&format!("{REQUIRED}{}={}\n", key.name, key.default));
        assert_eq!(set, defaults, "{}", key.name);
        // -1 stands for a value that depends on another key.
        if key.default != "-1" {
            assert_eq!(show(&defaults), key.default, "{}", key.name);
        }
    }
}

/// A value other than the default, for every honoured key: it must arrive in the `Config`.
#[test]
fn every_honoured_key_is_followed_with_and_without_prefix() {
    let digest = "DigestAuthenticationProvider.superDigest";
    let values = [
        ("dataDir", "/d"),
        ("dataLogDir", "/l"),
        ("snapCount", "2"),
        ("preAllocSize", "2048"),
        ("autopurge.snapRetainCount", "7"),
        ("autopurge.purgeInterval", "0"),
        ("forceSync", "no"),
        ("fsync.warningthresholdms", "20"),
        ("clientPort", "0"),
        ("clientPortAddress", "::1"),
        ("clientPortListenBacklog", "512"),
        ("maxClientCnxns", "0"),
        ("maxCnxns", "9"),
        ("tickTime", "100"),
        ("minSessionTimeout", "1"),
        ("maxSessionTimeout", "90000"),
        ("nio.sessionlessCnxnTimeout", "1500"),
        ("jute.maxbuffer", "10485760"),
        ("largeRequestMaxBytes", "1000000"),
        ("unsentMaxBytes", "0"),
        ("watchMaxBytes", "1000000"),
        ("watchMaxBytesPerClient", "1000"),
        ("maxSessions", "7"),
        ("globalOutstandingLimit", "1000"),
        ("4lw.commands.whitelist", "mntr,ruok"),
        ("extendedTypesEnabled", "true"),
        ("enforceQuota", "true"),
        ("reconfigEnabled", "true"),
        ("skipACL", "yes"),
        ("DigestAuthenticationProvider.enabled", "false"),
        (digest, "super:lK75jTNcA+U9vtVEw5vB51mj/w4="),
        ("znode.container.checkIntervalMs", "10"),
        ("znode.container.maxPerMinute", "5"),
        ("znode.container.maxNeverUsedIntervalMs", "86400000"),
    ];
    let defaults = config(REQUIRED);
    for key in TABLE {
        let Treatment::Honoured { show, .. } = key.treatment else {
            continue;
        };
        let value = values.iter().find(|(name, _)| *name == key.name);
        let (name, value) = value.unwrap_or_else(|| panic!("no value for {}", key.name));
        for prefix in ["", "zookeeper."] {
            let config = config(&format!("{REQUIRED}{prefix}{name}={value}\n"));
            assert_ne!(config, defaults, "{prefix}{name}");
            let expected = if *name == digest { "super:***" } else { value };
            assert_eq!(show(&config), expected, "{prefix}{name}");
        }
    }
}

#[test]
fn all_problems_of_a_file_are_reported_at_once() {
    let text = "tickTime=0\nskipACL=true\nsecureClientPort=2281\nmaxCnxns=many\n\
                clientPort=70000\nx=\\u12\n";
    let message = refusal(text);
    let mut lines: Vec<&str> = message.lines().collect();
    lines.sort_unstable();
    let starts = [
        "zoo.cfg: dataDir is not set",
        "zoo.cfg:1: tickTime=0: expected a whole number of milliseconds from 1 to 2147483647",
        "zoo.cfg:2: skipACL=true: expected yes or no",
        "zoo.cfg:3: secureClientPort=2281: not supported: TLS is not built yet",
        "zoo.cfg:4: maxCnxns=many: expected a whole number",
        "zoo.cfg:5: clientPort=70000: expected a whole number from 0 to 65535",
        "zoo.cfg:6: \\u must be followed by four hexadecimal digits",
    ];
    assert_eq!(lines.len(), starts.len(), "{message}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn what_is_not_built_is_refused() {
    let prometheus = "org.apache.zookeeper.metrics.prometheus.PrometheusMetricsProvider";
    let lines = [
        "secureClientPort=2281",
        "client.portUnification=true",
        "ssl.keyStore.location=/k.pem",
        "ssl.quorum.keyStore.location=/k.pem",
        "sslQuorum=true",
        "authProvider.1=org.apache.zookeeper.server.auth.SASLAuthenticationProvider",
        "authProvider.x509=org.apache.zookeeper.server.auth.X509AuthenticationProvider",
        "X509AuthenticationProvider.superUser=CN=root",
        "zookeeper.superUser=root",
        "superUser.2=root",
        "enforce.auth.enabled=true",
        "sessionRequireClientSASLAuth=true",
        "quorum.auth.enableSasl=true",
        "audit.enable=true",
        "localSessionsEnabled=true",
        "readonlymode.enabled=true",
        &format!("metricsProvider.className={prometheus}"),
        "admin.enableServer=true",
        "DigestAuthenticationProvider.digestAlg=SHA-256",
        "standaloneEnabled=false",
        "peerType=observer",
        "electionAlg=1",
        "group.1=1:2",
        "weight.1=2",
        "oraclePath=/oracle",
    ];
    for line in lines {
        let problems = problems(line);
        assert_eq!(problems.len(), 1, "{line}: {problems:?}");
        let (key, _) = line.split_once('=').unwrap();
        assert!(
            problems[0].starts_with(&format!("zoo.cfg:1: {key}=")),
            "{problems:?}"
        );
        assert!(problems[0].contains("not supported: "), "{problems:?}");
    }
}

#[test]
fn what_switches_off_what_is_not_built_is_accepted_without_a_word() {
    let text = "client.portUnification=FALSE\nssl.crl=false\nssl.clientAuth=none\n\
        authProvider.1=org.apache.zookeeper.server.auth.DigestAuthenticationProvider\n\
        enforce.auth.enabled=false\nsessionRequireClientSASLAuth=false\n\
        quorum.auth.enableSasl=false\naudit.enable=false\nlocalSessionsEnabled=false\n\
        readonlymode.enabled=false\nadmin.enableServer=false\nelectionAlg=3\n\
        metricsProvider.className=org.apache.zookeeper.metrics.impl.DefaultMetricsProvider\n\
        DigestAuthenticationProvider.digestAlg=SHA1\nstandaloneEnabled=true\n\
        peerType=participant\nreconfigEnabled=true\nsyncEnabled=true\n";
    assert_eq!(warnings(text), Vec::<String>::new());
}

#[test]
fn an_ensemble_is_refused_once() {
    let line = |n: u32| format!("server.{n}=zk{n}:2888:3888;2181\n");
    let problems = problems(&(line(1) + &line(2) + &line(3)));
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("zoo.cfg:2: 3 servers: ensembles are not built yet"));
}

#[test]
fn an_observer_alone_is_refused() {
    let problems = problems("server.1=zk1:2888:3888:observer");
    assert!(
        problems[0].contains("cannot be an observer"),
        "{problems:?}"
    );
}

#[test]
fn the_server_line_and_the_client_port_must_agree() {
    let with = |lines: &str| format!("dataDir=/nonexistent\n{lines}\n");
    let both = "clientPort=2181\nserver.1=h:1:2;10.0.0.1:2181";
    assert_eq!(config(&with(both)).client.to_string(), "10.0.0.1:2181");
    let clash = refusal(&with("clientPort=2182\nserver.1=h:1:2;2181"));
    assert!(
        clash.contains("clientPort=2182 differs from port 2181"),
        "{clash}"
    );
    let neither = refusal(&with("server.1=h:1:2"));
    assert!(
        neither.starts_with("zoo.cfg: clientPort is not set"),
        "{neither}"
    );
    let address = refusal(&with("clientPortAddress=::1\nserver.1=h:1:2;2181"));
    assert!(
        address.contains("clientPortAddress needs clientPort"),
        "{address}"
    );
}

#[test]
fn flags_win_over_the_file_and_over_the_server_line() {
    let flags = [
        flag("clientPort", "0"),
        flag("clientPortAddress", "127.0.0.1"),
    ];
    let loaded = Loaded::text("zoo.cfg", CONTAINER.as_bytes(), &flags, true).unwrap();
    assert_eq!(loaded.config.client.to_string(), "127.0.0.1:0");
    let wrong = Loaded::text("zoo.cfg", b"", &[flag("tickTime", "x")], true).unwrap_err();
    assert!(
        wrong.to_string().contains("--flag: tickTime=x: expected"),
        "{wrong}"
    );
}

#[test]
fn in_memory_needs_no_directory() {
    assert!(Loaded::text("zoo.cfg", b"clientPort=2181", &[], true).is_ok());
}

#[test]
fn zookeepers_command_line_needs_no_file() {
    let given = [flag("clientPort", "2181"), flag("dataDir", "/nonexistent")];
    let config = Loaded::arguments(&given, false).unwrap().config;
    assert_eq!((config.client.port, config.tick_ms), (2181, 3000));
}

#[test]
fn the_id_comes_from_myid_and_must_fit_the_server_line() {
    let directory = tempfile::tempdir().unwrap();
    let base = format!("dataDir={}\nclientPort=2181\n", directory.path().display());
    let my_id = |text: &str| std::fs::write(directory.path().join("myid"), text).unwrap();
    assert_eq!(config(&format!("{base}server.7=h:1:2\n")).server_id, 7);
    my_id("7\n");
    assert_eq!(config(&base).server_id, 7);
    assert_eq!(config(&format!("{base}server.7=h:1:2\n")).server_id, 7);
    let other = refusal(&format!("{base}server.1=h:1:2\n"));
    assert!(
        other.contains("this server is 7, but the only server line is server.1"),
        "{other}"
    );
    for bad in ["", "zero", "0", "256"] {
        my_id(bad);
        let message = refusal(&base);
        assert!(
            message.contains("myid: the first line must be a whole number"),
            "{message}"
        );
    }
    let file = directory.path().join("myid");
    let message = refusal(&format!("dataDir={}\n", file.display()));
    assert!(message.contains("dataDir must be a directory"), "{message}");
    my_id("255");
    assert_eq!(config(&base).server_id, 255);
    let message = refusal(&format!("{base}extendedTypesEnabled=true\n"));
    assert!(message.contains("server number 255"), "{message}");
}

#[test]
fn the_member_list_may_be_in_a_file_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zoo.cfg.dynamic.100000000");
    let base = format!(
        "dataDir=/nonexistent\ndynamicConfigFile={}\n",
        path.display()
    );
    let missing = refusal(&base);
    assert!(
        missing.contains("zoo.cfg:2: dynamicConfigFile="),
        "{missing}"
    );
    std::fs::write(&path, "server.2=h:2888:3888:participant;0.0.0.0:2181\n").unwrap();
    let loaded = config(&base);
    assert_eq!((loaded.server_id, loaded.client.port), (2, 2181));
    let both = refusal(&format!("{base}server.2=h:1:2\n"));
    assert!(both.contains("not in both"), "{both}");
    std::fs::write(&path, "server.2=h:2888:3888;2181\ntickTime=1\n").unwrap();
    let other = refusal(&base);
    assert!(
        other.contains("100000000:2: tickTime does not belong here"),
        "{other}"
    );
}

#[test]
fn timeouts_must_be_in_order() {
    let problems = problems("tickTime=2000\nminSessionTimeout=50000");
    assert_eq!(problems.len(), 1);
    let start = "zoo.cfg:2: minSessionTimeout (50000 ms) is above maxSessionTimeout (40000 ms)";
    assert!(problems[0].starts_with(start), "{problems:?}");
}

#[test]
fn keys_without_effect_are_listed_in_one_warning() {
    let warnings = warnings("flushDelay=5\nzookeeper.maxBatchSize=10\nserverCnxnFactory=x");
    assert_eq!(
        warnings,
        ["no effect here: flushDelay, zookeeper.maxBatchSize, serverCnxnFactory"]
    );
}

#[test]
fn unknown_keys_are_named_with_what_was_probably_meant() {
    let warnings = warnings("ticktime=1\nmaxClientCnxn=5\nmy.own=1");
    assert_eq!(
        warnings,
        [
            "unknown keys, ignored: maxClientCnxn (did you mean maxClientCnxns?), my.own, ticktime \
          (did you mean tickTime?)"
        ]
    );
}

#[test]
fn of_duplicates_the_later_wins_and_the_earlier_is_not_judged() {
    let loaded = load(&format!("tickTime=x\n{REQUIRED}zookeeper.tickTime=500\n")).unwrap();
    assert_eq!(loaded.config.tick_ms, 500);
    assert_eq!(
        loaded.warnings,
        ["tickTime is set at zoo.cfg:1 and at zoo.cfg:4, which wins"]
    );
}

#[test]
fn numbers_are_read_as_java_reads_them() {
    let with = |line: &str| config(&format!("{REQUIRED}{line}\n"));
    assert_eq!(with("jute.maxbuffer=0x9fffff").jute_max_buffer, 0x9f_ffff);
    assert_eq!(with("jute.maxbuffer=4194304").jute_max_buffer, 4 << 20);
    assert_eq!(with("tickTime=+250").tick_ms, 250);
    assert_eq!(with("maxClientCnxns=-1").max_client_cnxns, 0);
    assert_eq!(with("preAllocSize=64").segment_bytes, 1 << 20);
    assert_eq!(with("autopurge.snapRetainCount=1").snap_retain_count, 3);
    for line in [
        "jute.maxbuffer=0x",
        "jute.maxbuffer=12",
        "tickTime=1_000",
        "tickTime=1.5",
    ] {
        assert_eq!(problems(line).len(), 1, "{line}");
    }
}

#[test]
fn a_super_digest_that_could_never_match_is_refused() {
    let key = "DigestAuthenticationProvider.superDigest";
    let digest = "super:lK75jTNcA+U9vtVEw5vB51mj/w4=";
    let config = config(&format!("{REQUIRED}{key}={digest}\n"));
    assert_eq!(config.super_digest.as_deref(), Some(digest));
    for value in ["secret", "super:secret", "super:c2VjcmV0"] {
        let problems = problems(&format!("{key}={value}"));
        assert!(
            problems[0].contains("superDigest=***: expected super:DIGEST"),
            "{problems:?}"
        );
    }
}

#[test]
fn secrets_are_not_printed() {
    let problems = problems("ssl.keyStore.password=hunter2");
    assert!(
        problems[0].contains("ssl.keyStore.password=***"),
        "{problems:?}"
    );
}

#[test]
fn bytes_that_are_not_utf8_are_refused_with_their_line() {
    let invalid = Loaded::text("zoo.cfg", b"tickTime=1\n# \xe4\n", &[], true).unwrap_err();
    assert!(invalid.to_string().starts_with("zoo.cfg:2: not UTF-8"));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let invalid = Loaded::file(Path::new("/nonexistent/zoo.cfg"), &[], false).unwrap_err();
    let message = invalid.to_string();
    assert!(
        message.starts_with("/nonexistent/zoo.cfg: cannot be read: "),
        "{message}"
    );
}

#[test]
fn a_whitelist_is_a_list_or_everything() {
    let list = Whitelist::parse(" mntr , ruok,");
    assert!(list.allows("mntr") && list.allows("ruok") && list.allows("srvr"));
    assert!(!list.allows("stat"));
    assert_eq!(list.to_string(), "mntr,ruok");
    assert_eq!(Whitelist::parse("srvr, *"), Whitelist::All);
    assert_eq!(Whitelist::parse(""), Whitelist::Words(Vec::new()));
}

#[test]
fn addresses_are_tried_in_order() {
    let listen = |host: Option<&str>| Listen {
        host: host.map(str::to_owned),
        port: 1,
    };
    let any = listen(None).addresses().unwrap();
    assert_eq!(
        any,
        ["[::]:1".parse().unwrap(), "0.0.0.0:1".parse().unwrap()]
    );
    let one = listen(Some("::1"));
    assert_eq!(one.addresses().unwrap(), ["[::1]:1".parse().unwrap()]);
    assert_eq!(one.to_string(), "[::1]:1");
}

#[test]
fn the_example_to_deploy_is_taken_without_a_word() {
    let text = include_str!("../../deploy/zoo.cfg");
    let loaded = load(text).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    assert_eq!(loaded.config.max_session_timeout_ms, 60_000);
}

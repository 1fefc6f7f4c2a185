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
        ("initLimit", "20"),
        ("syncLimit", "2"),
        ("clusterSecretFile", "/run/secrets/zkraft"),
        ("featureLevelMax", "1"),
        ("linearizableReads", "true"),
        ("readonlymode.enabled", "true"),
        ("localSessionsEnabled", "true"),
        ("localSessionsUpgradingEnabled", "true"),
        ("foundWithMajority", "true"),
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
    let text = "tickTime=0\nskipACL=YES\nsecureClientPort=2281\nmaxCnxns=many\n\
                clientPort=70000\nx=\\u12\n";
    let message = refusal(text);
    let mut lines: Vec<&str> = message.lines().collect();
    lines.sort_unstable();
    let starts = [
        "zoo.cfg: dataDir is not set",
        "zoo.cfg:1: tickTime=0: expected a whole number of milliseconds from 1 to 2147483647",
        "zoo.cfg:2: skipACL=YES: expected yes or no, in lower case",
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
        &format!("metricsProvider.className={prometheus}"),
        "admin.enableServer=true",
        "DigestAuthenticationProvider.digestAlg=SHA-256",
        "peerType=observer",
        "electionAlg=1",
        "group.1=1:2",
        "weight.1=2",
        "oraclePath=/oracle",
        "quorum.auth.learnerRequireSasl=true",
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
        quorum.auth.enableSasl=false\naudit.enable=false\n\
        admin.enableServer=false\nelectionAlg=3\n\
        metricsProvider.className=org.apache.zookeeper.metrics.impl.DefaultMetricsProvider\n\
        DigestAuthenticationProvider.digestAlg=SHA1\nstandaloneEnabled=true\n\
        peerType=participant\nreconfigEnabled=true\nsyncEnabled=true\n";
    assert_eq!(warnings(text), Vec::<String>::new());
}

/// A file for three servers, with a directory that says which of them this is.
struct Ensemble {
    directory: tempfile::TempDir,
}

const THREE: &str = "\
server.1=zk1:2888:3888;2181
server.2=zk2:2888:3888;2181
server.3=zk3:2888:3888:observer;10.0.0.3:2182
server.4=zk4:2888:3888;2181
clusterSecretFile=/secret
";

impl Ensemble {
    fn new(my_id: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        if !my_id.is_empty() {
            std::fs::write(directory.path().join("myid"), my_id).unwrap();
        }
        Self { directory }
    }

    /// Line 1 is dataDir.
    fn text(&self, lines: &str) -> String {
        format!("dataDir={}\n{lines}", self.directory.path().display())
    }

    fn load(&self, lines: &str) -> Loaded {
        load(&self.text(lines)).unwrap_or_else(|invalid| panic!("{invalid}"))
    }

    /// The only thing wrong with the file.
    fn refusal(&self, lines: &str) -> String {
        let message = refusal(&self.text(lines));
        assert_eq!(message.lines().count(), 1, "{message}");
        message
    }
}

#[test]
fn several_lines_are_an_ensemble() {
    let loaded = Ensemble::new("3").load(THREE);
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let config = loaded.config;
    let lines: Vec<String> = config.members.iter().map(Member::line).collect();
    let expected = [
        "server.1=zk1:2888:3888:participant",
        "server.2=zk2:2888:3888:participant",
        "server.3=zk3:2888:3888:observer",
        "server.4=zk4:2888:3888:participant",
    ];
    assert_eq!(lines, expected);
    assert_eq!(config.server_id, 3);
    assert_eq!(config.client.to_string(), "10.0.0.3:2182");
    assert_eq!(config.quorum.unwrap().to_string(), "zk3:2888");
    assert_eq!(
        (config.init_limit_ms, config.sync_limit_ms),
        (30_000, 15_000)
    );
    assert_eq!(loaded.notes.len(), 1);
    assert!(loaded.notes[0].contains("electionPort"));
}

#[test]
fn members_are_in_the_order_of_their_numbers() {
    let lines = (1..=11).rev().map(|n| format!("server.{n}=zk{n}:1:2;3\n"));
    let config = Ensemble::new("10").load(&lines.collect::<String>()).config;
    let ids: Vec<u32> = config.members.iter().map(|member| member.id).collect();
    assert_eq!(ids, (1..=11).collect::<Vec<u32>>());
}

#[test]
fn one_line_is_a_server_alone() {
    let config = config(CONTAINER);
    assert_eq!((config.members.len(), config.quorum), (1, None));
    assert_eq!(Config::dev().members, []);
}

#[test]
fn one_line_is_an_ensemble_that_may_grow_if_it_is_not_to_stand_alone() {
    let me = Ensemble::new("");
    let text = |lines: &str| format!("clientPort=2181\nstandaloneEnabled=false\n{lines}\n");
    let line = "server.7=a:2888:3888";
    let loaded = me.load(&text(&format!("{line}\nadvertisedClientAddress.7=c:2181")));
    let config = &loaded.config;
    assert_eq!(config.quorum.as_ref().unwrap().to_string(), "a:2888");
    assert_eq!(config.server_id, 7);
    let lines: Vec<String> = config.members.iter().map(Member::line).collect();
    assert_eq!(lines, ["server.7=a:2888:3888:participant;c:2181"]);
    // Nothing but that there is no secret.
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);

    let refusal = |lines: &str| me.refusal(&text(lines));
    let nowhere = "zoo.cfg:3: standaloneEnabled=false: an ensemble needs to know where";
    assert!(refusal("").starts_with(nowhere), "{}", refusal(""));
    let silent = refusal(&format!("{line}:observer"));
    assert!(
        silent.contains("at least one must be a participant"),
        "{silent}"
    );
}

#[test]
fn a_server_listens_for_others_where_its_line_says() {
    let quorum = |lines: &str| {
        let text = format!("{lines}\nclientPort=2181\nserver.2=b:1:2\nserver.3=c:1:2\n");
        let loaded = Ensemble::new("1").load(&text);
        (loaded.config.quorum.unwrap().to_string(), loaded.warnings)
    };
    assert_eq!(quorum("server.1=a:2888:3888").0, "a:2888");
    assert_eq!(quorum("server.1=[::1]:2888:3888").0, "[::1]:2888");
    let everywhere = "quorumListenOnAllIPs=true\nserver.1=a:2888:3888";
    assert_eq!(quorum(everywhere).0, "*:2888");
    // One socket for all of them.
    assert_eq!(quorum("server.1=a:2888:3888|b:2888:3888").0, "*:2888");
    let (wildcard, warnings) = quorum("server.1=0.0.0.0:2888:3888");
    assert_eq!(wildcard, "*:2888");
    assert!(
        warnings[1].contains("server.1: 0.0.0.0 tells the others nothing"),
        "{warnings:?}"
    );
    let ports = "server.1=a:2888:3888|b:2889:3888\nserver.2=c:1:2;2181\nclientPort=2181\n";
    let message = Ensemble::new("1").refusal(ports);
    assert!(message.starts_with("zoo.cfg:2: server.1: a server listens on one quorumPort"));
}

#[test]
fn limits_are_ticks() {
    let config = config(&format!(
        "{REQUIRED}tickTime=2000\ninitLimit=5\nsyncLimit=2\n"
    ));
    assert_eq!(
        (config.init_limit_ms, config.sync_limit_ms),
        (10_000, 4_000)
    );
    let message = problems("syncLimit=0");
    assert!(
        message[0].contains("a whole number of ticks from 1 to"),
        "{message:?}"
    );
}

#[test]
fn clients_and_servers_need_different_ports() {
    let me = Ensemble::new("1");
    let others = "server.2=b:2888:3888;2181\n";
    for own in [
        "server.1=a:2888:3888;2888",
        "server.1=a:2888:3888\nclientPort=2888",
    ] {
        let message = me.refusal(&format!("{own}\n{others}"));
        assert!(message.contains("cannot both use port 2888"), "{message}");
    }
    let config = me
        .load(&format!("server.1=a:2888:3888;127.0.0.1:2888\n{others}"))
        .config;
    assert_eq!(config.client.to_string(), "127.0.0.1:2888");
}

const PODS: &str = "\
statefulSet.replicas=3
statefulSet.service=zk
clusterSecretFile=/secret
";

#[test]
fn the_number_of_a_pod_does_not_depend_on_the_replicas() {
    for (replicas, pod, id) in [(1, 0, 1), (2, 1, 2), (3, 1, 2), (5, 1, 2), (5, 4, 5)] {
        let lines = PODS.replace("=3", &format!("={replicas}"));
        let text = format!("{lines}statefulSet.pod=zk-{pod}\n");
        let config = Ensemble::new("").load(&text).config;
        assert_eq!((config.members.len(), config.server_id), (replicas, id));
        assert_eq!(config.client.to_string(), "*:2181");
    }
}

#[test]
fn the_directory_of_another_pod_is_refused() {
    let text = format!("{PODS}statefulSet.pod=my-zk-1.zk.ns.svc.cluster.local\n");
    assert_eq!(Ensemble::new("2").load(&text).config.server_id, 2);
    let message = Ensemble::new("1").refusal(&text);
    assert!(
        message.contains("myid: this is the directory of server 1, but my-zk-1 is server 2"),
        "{message}"
    );
}

#[test]
fn pods_have_no_server_lines_beside() {
    let text = format!("{PODS}statefulSet.pod=zk-0\nserver.1=a:1:2;2181\n");
    let message = Ensemble::new("").refusal(&text);
    assert!(
        message.starts_with("zoo.cfg:2: statefulSet.replicas=3: the server lines are made from"),
        "{message}"
    );
}

#[test]
fn a_service_with_dots_is_a_domain() {
    let host = |lines: &str| {
        let text = format!("{PODS}statefulSet.pod=zk-0\n{lines}");
        Ensemble::new("").load(&text).config.members[2].peers[0]
            .host
            .clone()
    };
    assert_eq!(host(""), "zk-2.zk");
    let namespace = "statefulSet.namespace=prod\n";
    assert_eq!(host(namespace), "zk-2.zk.prod.svc.cluster.local");
    let text = PODS.replace("=zk\n", "=zk.prod.svc.my.domain\n");
    let text = format!("{text}statefulSet.pod=zk-0\n{namespace}");
    let config = Ensemble::new("").load(&text).config;
    assert_eq!(
        config.members[2].peers[0].host,
        "zk-2.zk.prod.svc.my.domain"
    );
}

#[test]
fn without_myid_it_is_said_how_to_make_it() {
    let nobody = Ensemble::new("");
    let path = nobody.directory.path().join("myid");
    let message = nobody.refusal(THREE);
    let expected = format!(
        "{path}: missing: say which of the servers 1, 2, 3, 4 this one is, for example `echo 1 > \
         {path}`",
        path = path.display()
    );
    assert_eq!(message, expected);
    let other = Ensemble::new("7").refusal(THREE);
    assert!(
        other.contains("myid: this server is 7, but the server lines are of 1, 2, 3, 4"),
        "{other}"
    );
}

#[test]
fn the_number_is_suggested_if_one_line_has_the_name_of_this_machine() {
    let Ok(name) = std::fs::read_to_string("/proc/sys/kernel/hostname") else {
        return;
    };
    let (name, nobody) = (name.trim(), Ensemble::new(""));
    let lines = format!("server.1=a:1:2;2181\nserver.2={name}.example.com:1:2;2181\n");
    let message = nobody.refusal(&lines);
    assert!(message.contains("`echo 2 > "), "{message}");
    let hint = format!("; this machine is called {name}, as the host of server.2");
    assert!(message.ends_with(&hint), "{message}");
    // Two lines with that name tell nothing.
    let message = nobody.refusal(&format!("{lines}server.3={name}:3:4;2182\n"));
    assert!(message.contains("`echo 1 > "), "{message}");
}

#[test]
fn servers_must_not_share_a_number_or_an_address() {
    let me = Ensemble::new("1");
    let both = |second: &str| me.refusal(&format!("server.1=zk1:2888:3888;2181\n{second}\n"));
    let same = both("server.2=ZK1:2888:3889;2182");
    assert!(
        same.starts_with("zoo.cfg:3: server.2: zk1:2888 is taken by zoo.cfg:2: give each"),
        "{same}"
    );
    let crossed = both("server.2=zk1:3888:3889;2182");
    assert!(crossed.contains("server.2: zk1:3888 is taken"), "{crossed}");
    let number = both("server.01=zk2:2888:3888;2181");
    assert!(
        number.contains("server number 1 is taken by zoo.cfg:"),
        "{number}"
    );
    // Three on one machine are what people try first.
    let lines = "server.1=localhost:2881:3881;2181\nserver.2=localhost:2882:3882;2182\n\
                 server.3=localhost:2883:3883;2183\n";
    assert_eq!(me.load(lines).config.members.len(), 3);
}

#[test]
fn a_line_that_is_wrong_is_not_taken_for_one_that_is_missing() {
    let lines = "server.1=a:2888;2181\nserver.2=b:2888:3888;2181\n";
    let message = Ensemble::new("1").refusal(lines);
    assert!(
        message.starts_with("zoo.cfg:2: server.1=a:2888;2181: expected host:quorumPort:"),
        "{message}"
    );
}

#[test]
fn somebody_must_vote() {
    let me = Ensemble::new("1");
    let lines = "server.1=a:1:2:observer;2181\nserver.2=b:1:2:observer;2181\n";
    let message = me.refusal(lines);
    assert!(
        message.starts_with("zoo.cfg:3: all servers are observers"),
        "{message}"
    );
    let voters = |count: u32| {
        let lines = (1..=count).map(|n| format!("server.{n}=zk{n}:1:2;2181\n"));
        let text = lines.collect::<String>() + "clusterSecretFile=/secret\n";
        me.load(&text).warnings
    };
    assert!(voters(2)[0].starts_with("2 of 2 servers vote: none of these may fail"));
    assert_eq!(voters(3), Vec::<String>::new());
    assert!(voters(4)[0].starts_with("4 servers vote: no more of them may fail than of 3"));
}

#[test]
fn an_ensemble_without_a_secret_is_open_and_says_so() {
    let lines = THREE.replace("clusterSecretFile", "#");
    let warnings = Ensemble::new("1").load(&lines).warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("whoever reaches the quorum port (2888) can join"));
}

#[test]
fn an_ensemble_is_not_kept_in_memory() {
    let text = Ensemble::new("").text(THREE);
    let invalid = Loaded::text("zoo.cfg", text.as_bytes(), &[], true).unwrap_err();
    let message = invalid.to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(
        message.starts_with("zoo.cfg:3: servers of an ensemble cannot run in memory"),
        "{message}"
    );
}

#[test]
fn clients_are_told_of_addresses_only_if_those_are_set() {
    let me = Ensemble::new("1");
    let told = format!("{THREE}advertisedClientAddress.2=zk.example.com:12181\n");
    let members = me.load(&told).config.members;
    assert_eq!(members[0].advertised, None);
    let line = "server.2=zk2:2888:3888:participant;zk.example.com:12181";
    assert_eq!(members[1].line(), line);
    let unknown = me.refusal(&format!("{THREE}advertisedClientAddress.9=zk9:2181\n"));
    assert!(
        unknown.contains("advertisedClientAddress.9 needs a line server.9"),
        "{unknown}"
    );
    for wrong in ["2=zk2", "2=0.0.0.0:2181", "2=:2181", "x=zk2:2181"] {
        let message = me.refusal(&format!("{THREE}advertisedClientAddress.{wrong}\n"));
        assert!(
            message.starts_with("zoo.cfg:7: advertisedClientAddress."),
            "{message}"
        );
        assert!(message.contains(": expected "), "{message}");
    }
    let alone = warnings("server.1=h:1:2;2181\nadvertisedClientAddress.1=h:2181");
    assert!(
        alone[0].contains("a server alone tells clients of no address"),
        "{alone:?}"
    );
}

#[test]
fn what_only_tunes_zookeepers_ensembles_is_said_to_have_no_effect() {
    let lines = "leaderServes=no\nmultiAddress.enabled=true\n";
    let text = format!("{THREE}standaloneEnabled=false\n{lines}");
    let loaded = Ensemble::new("1").load(&text);
    let expected = ["no effect here: leaderServes, multiAddress.enabled"];
    assert_eq!(loaded.warnings, expected);
    assert_eq!(warnings(lines), Vec::<String>::new());
}

#[test]
fn the_server_line_wins_over_peer_type() {
    let warnings = |id: &str, role: &str| {
        let loaded = Ensemble::new(id).load(&format!("{THREE}peerType={role}\n"));
        loaded.warnings
    };
    assert_eq!(warnings("3", "observer"), Vec::<String>::new());
    assert_eq!(
        warnings("3", "participant"),
        ["zoo.cfg:7: peerType=participant differs from the line of server.3, which wins: observer"]
    );
    assert!(problems("peerType=x")[0].contains("expected `participant` or `observer`"));
}

#[test]
fn number_255_and_nodes_with_a_time_to_live_exclude_each_other() {
    let lines = format!("{THREE}server.255=zk255:2888:3888;2181\n");
    let me = Ensemble::new("1");
    assert_eq!(me.load(&lines).config.members[4].id, 255);
    let message = me.refusal(&format!("{lines}extendedTypesEnabled=true\n"));
    assert!(
        message.starts_with("zoo.cfg:7: server number 255 marks"),
        "{message}"
    );
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
        "jute.maxbuffer=104857601",
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

#[test]
fn reads_that_may_be_old_and_reads_that_never_are_exclude_each_other() {
    for key in ["linearizableReads", "readonlymode.enabled"] {
        assert_eq!(warnings(&format!("{key}=true\n")), Vec::<String>::new());
    }
    let problems = problems("linearizableReads=true\nreadonlymode.enabled=true");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("zoo.cfg:2: readonlymode.enabled=true: "));
}

#[test]
fn sessions_go_over_into_the_log_only_if_they_were_elsewhere() {
    let both = "localSessionsEnabled=true\nlocalSessionsUpgradingEnabled=true\n";
    let loaded = config(&format!("{REQUIRED}{both}"));
    assert!(loaded.local_sessions && loaded.local_session_upgrades);
    assert_eq!(warnings(both), Vec::<String>::new());
    let warnings = warnings("localSessionsUpgradingEnabled=true\n");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("no effect without localSessionsEnabled=true"));
}

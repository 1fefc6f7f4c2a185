//! Every key of zoo.cfg, declared once: name, default, meaning and what becomes of it here.
//!
//! The parsers of `values` judge one value at a time; what depends on several keys is decided in
//! `settle`. Defaults and meanings are those of ZooKeeper (§12.2) where nothing else is
//! said. To support a key that is refused today, change its treatment here.

use super::values::{
    COUNT, Expected, I32_MAX, MILLISECONDS, PORT, POSITIVE, Range, TICKS, TIMEOUT, boolean,
    directory, file, frame_bytes, limit, memory, show_memory, super_digest, unless_negative, whole,
    yes_or_no,
};
use super::{Config, Draft, Whitelist};

/// One key, or a family of keys.
pub struct Key {
    /// Without the `zookeeper.` of system properties. A trailing `*` stands for any text.
    pub name: &'static str,
    /// What holds if the key is not set; empty if nothing does.
    pub default: &'static str,
    pub doc: &'static str,
    pub treatment: Treatment,
}

/// What becomes of a key that is set.
pub enum Treatment {
    /// Parsed, and followed.
    Honoured {
        set: Set,
        show: fn(&Config) -> String,
    },
    /// Tells who the servers are. `settle` puts such lines together.
    Members,
    /// Tunes how ZooKeeper's servers work together, and has no counterpart here. A server alone
    /// accepts it without a word, because sample files and images set such keys always; with
    /// others it is like `Meaningless`.
    BetweenServers,
    /// Cannot matter to this implementation: accepted, and listed in one warning.
    Meaningless,
    /// Switches on something that is not built. `off` are the values that switch it off, and are
    /// accepted; any other value is an error, because a server that silently lacks what its
    /// operator configured is worse than one that does not start.
    Refused {
        off: &'static [&'static str],
        instead: &'static str,
    },
}

/// Puts a value into the draft.
pub type Set = fn(&mut Draft, &str) -> Result<(), Expected>;

/// The key that `name` belongs to: by its whole name, else by the longest family.
pub fn find(name: &str) -> Option<&'static Key> {
    let family = |key: &Key| {
        key.name
            .strip_suffix('*')
            .filter(|prefix| name.starts_with(prefix))
    };
    TABLE.iter().find(|key| key.name == name).or_else(|| {
        TABLE
            .iter()
            .filter_map(|key| Some((family(key)?.len(), key)))
            .max_by_key(|(length, _)| *length)
            .map(|(_, key)| key)
    })
}

/// The name of a key without the prefix of system properties, which a file may do without.
pub fn known_as(key: &str) -> &str {
    key.strip_prefix("zookeeper.").unwrap_or(key)
}

/// More wrong letters than these are another word.
const SLIPS_MAX: usize = 2;

/// The known name that `name` is probably a slip of.
pub fn nearest(name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    TABLE
        .iter()
        .filter(|key| !key.name.ends_with('*'))
        // Each byte more is a slip: there is no need to look at a long line of garbage.
        .filter(|key| key.name.len().abs_diff(lower.len()) <= SLIPS_MAX)
        .map(|key| (distance(&lower, &key.name.to_ascii_lowercase()), key.name))
        .filter(|(distance, known)| *distance <= SLIPS_MAX && distance * 4 <= known.len())
        .min()
        .map(|(_, known)| known)
}

/// Levenshtein's distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

const fn honoured(
    name: &'static str,
    default: &'static str,
    doc: &'static str,
    set: Set,
    show: fn(&Config) -> String,
) -> Key {
    Key {
        name,
        default,
        doc,
        treatment: Treatment::Honoured { set, show },
    }
}

const fn members(name: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key {
        name,
        default,
        doc,
        treatment: Treatment::Members,
    }
}

const fn between_servers(name: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key {
        name,
        default,
        doc,
        treatment: Treatment::BetweenServers,
    }
}

const fn meaningless(name: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key {
        name,
        default,
        doc,
        treatment: Treatment::Meaningless,
    }
}

const fn refused(
    name: &'static str,
    off: &'static [&'static str],
    doc: &'static str,
    instead: &'static str,
) -> Key {
    let default = if off.is_empty() { "" } else { off[0] };
    Key {
        name,
        default,
        doc,
        treatment: Treatment::Refused { off, instead },
    }
}

const NO_TLS: &str = "TLS is not built yet: remove the line, serve plain clients on clientPort \
                      inside a trusted network, or put a TLS proxy in front";
const NO_SASL: &str = "SASL is not built yet: remove the line and use digest authentication";
const NO_PEER_SASL: &str = "SASL between servers is not built: remove the line, and let servers \
                            prove themselves by clusterSecretFile";

/// All keys, in groups.
pub static TABLE: &[Key] = &[
    // Where the data lies.
    honoured(
        "dataDir",
        "",
        "Directory of all that the server keeps; also holds the `myid` file",
        |draft, value| directory(value).map(|path| draft.data_dir = Some(path)),
        |config| config.data_dir.display().to_string(),
    ),
    honoured(
        "dataLogDir",
        "",
        "Directory of the transaction log, if it is not dataDir: a disk of its own",
        |draft, value| directory(value).map(|path| draft.log_dir = Some(path)),
        |config| config.log_dir.display().to_string(),
    ),
    honoured(
        "snapCount",
        "100000",
        "A snapshot is taken after so many transactions; later if the tree is large",
        |draft, value| {
            whole(
                value,
                Range {
                    min: 2,
                    max: I32_MAX,
                    unit: "",
                },
            )
            .map(|n| draft.config.snap_count = n as u64)
        },
        |config| config.snap_count.to_string(),
    ),
    honoured(
        "preAllocSize",
        "65536",
        "KiB of log that are allocated at a time: the size of a log segment, at least 1024",
        |draft, value| {
            whole(
                value,
                Range {
                    min: 1,
                    max: 4 << 20,
                    unit: " of KiB",
                },
            )
            .map(|n| draft.config.segment_bytes = n.max(1024) as u64 * 1024)
        },
        |config| (config.segment_bytes / 1024).to_string(),
    ),
    honoured(
        "autopurge.snapRetainCount",
        "3",
        "Snapshots that are kept, with the log since the oldest of them; at least 3",
        |draft, value| {
            whole(value, COUNT).map(|n| draft.config.snap_retain_count = n.max(3) as usize)
        },
        |config| config.snap_retain_count.to_string(),
    ),
    honoured(
        "autopurge.purgeInterval",
        "1",
        "0 keeps every snapshot and all of the log for ever. Any other number: what is no longer \
         needed is removed after each snapshot, which is the default here and 0 in ZooKeeper",
        |draft, value| whole(value, COUNT).map(|n| draft.config.purge = n > 0),
        |config| u8::from(config.purge).to_string(),
    ),
    honoured(
        "forceSync",
        "yes",
        "`no` acknowledges writes before they are safe on the disk: a power cut loses some",
        |draft, value| yes_or_no(value).map(|on| draft.config.force_sync = on),
        |config| if config.force_sync { "yes" } else { "no" }.to_owned(),
    ),
    honoured(
        "fsync.warningthresholdms",
        "1000",
        "A disk sync that takes longer, in milliseconds, is logged",
        |draft, value| whole(value, MILLISECONDS).map(|n| draft.config.fsync_warn_ms = n as u32),
        |config| config.fsync_warn_ms.to_string(),
    ),
    meaningless(
        "snapSizeLimitInKb",
        "4194304",
        "Log bytes that bring a snapshot about",
    ),
    meaningless(
        "txnLogSizeLimitInKb",
        "-1",
        "Log bytes that bring a new log file about",
    ),
    meaningless(
        "snapshot.compression.method",
        "",
        "Snapshots are always compressed with zstd",
    ),
    meaningless(
        "snapshot.trust.empty",
        "false",
        "Start without a snapshot after an old upgrade",
    ),
    meaningless(
        "digest.enabled",
        "true",
        "A digest of the tree is always kept",
    ),
    meaningless(
        "closeSessionTxn.enabled",
        "true",
        "A switch of ZooKeeper's log format",
    ),
    meaningless(
        "serializeLastProcessedZxid.enabled",
        "true",
        "A switch of its snapshot format",
    ),
    // Clients.
    honoured(
        "clientPort",
        "",
        "Port for clients, by convention 2181; 0 lets the operating system choose one",
        |draft, value| whole(value, PORT).map(|n| draft.client_port = Some(n as u16)),
        |config| config.client.port.to_string(),
    ),
    honoured(
        "clientPortAddress",
        "",
        "Address or name that clients connect to, if not every address of this machine",
        |draft, value| {
            draft.client_host = Some(value.to_owned()).filter(|host| !host.is_empty());
            Ok(())
        },
        |config| config.client.host.clone().unwrap_or_default(),
    ),
    honoured(
        "clientPortListenBacklog",
        "-1",
        "Connections that may wait to be accepted; -1 lets the server choose",
        |draft, value| unless_negative(value, COUNT).map(|n| draft.config.listen_backlog = n),
        |config| {
            config
                .listen_backlog
                .map_or("-1".to_owned(), |n| n.to_string())
        },
    ),
    honoured(
        "maxClientCnxns",
        "60",
        "Connections of one client address; 0 means no limit",
        |draft, value| limit(value).map(|n| draft.config.max_client_cnxns = n),
        |config| config.max_client_cnxns.to_string(),
    ),
    honoured(
        "maxCnxns",
        "0",
        "Connections in all; 0 means no limit",
        |draft, value| limit(value).map(|n| draft.config.max_cnxns = n),
        |config| config.max_cnxns.to_string(),
    ),
    honoured(
        "tickTime",
        "3000",
        "Unit of time in milliseconds: sessions expire on multiples of it",
        |draft, value| whole(value, MILLISECONDS).map(|n| draft.config.tick_ms = n as u32),
        |config| config.tick_ms.to_string(),
    ),
    honoured(
        "minSessionTimeout",
        "-1",
        "The shortest session timeout that a client gets, in milliseconds; -1: twice tickTime",
        |draft, value| unless_negative(value, TIMEOUT).map(|n| draft.min_session_timeout_ms = n),
        |config| config.min_session_timeout_ms.to_string(),
    ),
    honoured(
        "maxSessionTimeout",
        "-1",
        "The longest session timeout that a client gets, in milliseconds; -1: 20 times tickTime",
        |draft, value| unless_negative(value, TIMEOUT).map(|n| draft.max_session_timeout_ms = n),
        |config| config.max_session_timeout_ms.to_string(),
    ),
    honoured(
        "nio.sessionlessCnxnTimeout",
        "10000",
        "Milliseconds that a connection may stay open without asking for a session",
        |draft, value| {
            whole(value, MILLISECONDS).map(|n| draft.config.sessionless_timeout_ms = n as u32)
        },
        |config| config.sessionless_timeout_ms.to_string(),
    ),
    honoured(
        "jute.maxbuffer",
        "1048575",
        "The largest request in bytes, and so nearly the largest data of a znode; clients have a \
         limit of the same name for replies",
        |draft, value| frame_bytes(value).map(|n| draft.config.jute_max_buffer = n),
        |config| config.jute_max_buffer.to_string(),
    ),
    honoured(
        "globalOutstandingLimit",
        "100000",
        "Writes that may wait to be committed before the server stops reading from clients; 1000 \
         in ZooKeeper",
        |draft, value| {
            whole(value, POSITIVE).map(|n| draft.config.global_outstanding_limit = n as u32)
        },
        |config| config.global_outstanding_limit.to_string(),
    ),
    honoured(
        "largeRequestMaxBytes",
        "104857600",
        "Bytes of requests above 64 KiB that may be under way at a time, in all; others wait to be \
         read; 0 means no limit",
        |draft, value| memory(value).map(|n| draft.config.large_request_max_bytes = n),
        |config| show_memory(config.large_request_max_bytes),
    ),
    honoured(
        "unsentMaxBytes",
        "268435456",
        "Bytes of replies and events that may wait for clients to read them, in all: from here on \
         a client is served again when it has read everything, and from twice as much on those \
         with the most are cut off; 0 means no limit. Not in ZooKeeper",
        |draft, value| memory(value).map(|n| draft.config.unsent_max_bytes = n),
        |config| show_memory(config.unsent_max_bytes),
    ),
    honoured(
        "watchMaxBytes",
        "1073741824",
        "Bytes that watches may take in memory, in all: a path and 128 bytes each; more are \
         refused with QUOTAEXCEEDED; 0 means no limit. Not in ZooKeeper",
        |draft, value| memory(value).map(|n| draft.config.watch_max_bytes = n),
        |config| show_memory(config.watch_max_bytes),
    ),
    honoured(
        "watchMaxBytesPerClient",
        "268435456",
        "The same for the watches of one connection. Not in ZooKeeper",
        |draft, value| memory(value).map(|n| draft.config.watch_max_bytes_per_client = n),
        |config| show_memory(config.watch_max_bytes_per_client),
    ),
    honoured(
        "maxSessions",
        "1000000",
        "Sessions at which no new ones are made, while old ones go on; 0 means no limit. Not in \
         ZooKeeper",
        |draft, value| limit(value).map(|n| draft.config.max_sessions = n),
        |config| config.max_sessions.to_string(),
    ),
    honoured(
        "4lw.commands.whitelist",
        "srvr",
        "Four-letter words that are answered on the client port, separated by commas; `*` means \
         all; `srvr` is always answered",
        |draft, value| {
            draft.config.four_letter_words = Whitelist::parse(value);
            Ok(())
        },
        |config| config.four_letter_words.to_string(),
    ),
    refused(
        "secureClientPort",
        &[],
        "Port for clients that speak TLS",
        NO_TLS,
    ),
    refused(
        "secureClientPortAddress",
        &[],
        "Address of that port",
        NO_TLS,
    ),
    refused(
        "client.portUnification",
        &["false"],
        "TLS and plain clients on one port",
        NO_TLS,
    ),
    refused(
        "client.certReload",
        &["false"],
        "Read certificates again when they change",
        NO_TLS,
    ),
    refused(
        "ssl.*",
        &["", "false", "none"],
        "Certificates and protocols of TLS",
        NO_TLS,
    ),
    meaningless(
        "fips-mode",
        "true",
        "Restricts the algorithms of TLS and SASL in Java",
    ),
    meaningless(
        "jute.maxbuffer.extrasize",
        "",
        "Room for headers in ZooKeeper's own files",
    ),
    meaningless(
        "serverCnxnFactory",
        "",
        "Which network library of Java to use",
    ),
    meaningless("tcpKeepAlive", "false", "Keep-alive between servers"),
    meaningless(
        "clientTcpKeepAlive",
        "false",
        "Keep-alive of client connections",
    ),
    meaningless(
        "largeRequestThreshold",
        "-1",
        "Bytes from which a request counts as large: always 65536",
    ),
    meaningless(
        "request_throttle_*",
        "",
        "Tuning of a stage that does not exist here",
    ),
    meaningless(
        "connection_throttle_*",
        "",
        "Tuning of a stage that does not exist here",
    ),
    meaningless(
        "throttled_op_wait_time",
        "0",
        "Tuning of a stage that does not exist here",
    ),
    meaningless("flushDelay", "0", "Writes are grouped without waiting"),
    meaningless(
        "maxBatchSize",
        "1000",
        "Writes are grouped by what has gathered",
    ),
    meaningless(
        "maxWriteQueuePollTime",
        "",
        "Tuning of a stage that does not exist here",
    ),
    meaningless("maxResponseCacheSize", "400", "Replies are not cached"),
    meaningless(
        "maxGetChildrenResponseCacheSize",
        "400",
        "Replies are not cached",
    ),
    meaningless("bitHashCacheSize", "10", "Tuning of Java's watch table"),
    meaningless("watchManagerName", "", "Which watch table of Java to use"),
    meaningless("watcherClean*", "", "Tuning of Java's watch table"),
    meaningless(
        "maxInProcessingDeadWatchers",
        "",
        "Tuning of Java's watch table",
    ),
    meaningless(
        "commitProcessor.*",
        "",
        "Tuning of a stage that does not exist here",
    ),
    meaningless(
        "intBufferStartingSizeBytes",
        "1024",
        "Tuning of Java's buffers",
    ),
    meaningless("nio.*", "", "Tuning of Java's network library"),
    meaningless("netty.*", "", "Tuning of Java's network library"),
    meaningless("jvm.pause.*", "", "There is no Java virtual machine"),
    meaningless("jmx.*", "", "There is no Java virtual machine"),
    // What clients may do.
    honoured(
        "extendedTypesEnabled",
        "false",
        "Allows znodes with a time to live",
        |draft, value| boolean(value).map(|on| draft.config.extended_types = on),
        |config| config.extended_types.to_string(),
    ),
    honoured(
        "enforceQuota",
        "false",
        "Refuses writes beyond a hard quota; otherwise quotas are only logged",
        |draft, value| boolean(value).map(|on| draft.config.enforce_quota = on),
        |config| config.enforce_quota.to_string(),
    ),
    honoured(
        "reconfigEnabled",
        "false",
        "Lets clients change the ensemble by reconfig, which a server alone refuses anyway",
        |draft, value| boolean(value).map(|on| draft.config.reconfig_enabled = on),
        |config| config.reconfig_enabled.to_string(),
    ),
    honoured(
        "skipACL",
        "no",
        "`yes` lets everyone do everything",
        |draft, value| yes_or_no(value).map(|on| draft.config.skip_acl = on),
        |config| if config.skip_acl { "yes" } else { "no" }.to_owned(),
    ),
    honoured(
        "DigestAuthenticationProvider.enabled",
        "true",
        "Allows authentication by user and password (scheme `digest`)",
        |draft, value| boolean(value).map(|on| draft.config.digest_enabled = on),
        |config| config.digest_enabled.to_string(),
    ),
    honoured(
        "DigestAuthenticationProvider.superDigest",
        "",
        "Who may do everything: super:DIGEST",
        |draft, value| super_digest(value).map(|digest| draft.config.super_digest = digest),
        |config| {
            config
                .super_digest
                .as_ref()
                .map_or("", |_| "super:***")
                .to_owned()
        },
    ),
    honoured(
        "znode.container.checkIntervalMs",
        "60000",
        "Milliseconds between searches for empty containers and outlived TTL nodes",
        |draft, value| {
            whole(value, MILLISECONDS).map(|n| draft.config.container_check_interval_ms = n as u32)
        },
        |config| config.container_check_interval_ms.to_string(),
    ),
    honoured(
        "znode.container.maxPerMinute",
        "10000",
        "How many of them are removed in a minute at most",
        |draft, value| {
            whole(value, POSITIVE).map(|n| draft.config.container_max_per_minute = n as u32)
        },
        |config| config.container_max_per_minute.to_string(),
    ),
    honoured(
        "znode.container.maxNeverUsedIntervalMs",
        "0",
        "Milliseconds after which a container that never had a child is removed; 0: never",
        |draft, value| {
            whole(
                value,
                Range {
                    min: 0,
                    max: i64::MAX,
                    unit: " of milliseconds",
                },
            )
            .map(|n| draft.config.container_max_never_used_ms = n as u64)
        },
        |config| config.container_max_never_used_ms.to_string(),
    ),
    refused(
        "DigestAuthenticationProvider.digestAlg",
        &["SHA1", "SHA-1"],
        "Hash function of the scheme `digest`",
        "only SHA1 is built; digests of another function in existing ACLs would never match",
    ),
    honoured(
        "localSessionsEnabled",
        "false",
        "New sessions cost no write, and are known to this server only: they end with its process, \
         and a client that goes to another server gets a new one",
        |draft, value| boolean(value).map(|on| draft.config.local_sessions = on),
        |config| config.local_sessions.to_string(),
    ),
    honoured(
        "localSessionsUpgradingEnabled",
        "false",
        "Such a session becomes one of the ensemble when it first makes an ephemeral znode, which \
         is refused otherwise; has no effect without localSessionsEnabled",
        |draft, value| boolean(value).map(|on| draft.config.local_session_upgrades = on),
        |config| config.local_session_upgrades.to_string(),
    ),
    honoured(
        "readonlymode.enabled",
        "false",
        "Lets clients that ask for no more read what a server has when it does not serve any more \
         (see syncLimit) and has heard no leader for 2000 ms, or a tickTime if that is longer. A \
         server alone never comes to that",
        |draft, value| boolean(value).map(|on| draft.config.read_only_mode = on),
        |config| config.read_only_mode.to_string(),
    ),
    refused(
        "authProvider.*",
        &[
            "org.apache.zookeeper.server.auth.DigestAuthenticationProvider",
            "org.apache.zookeeper.server.auth.IPAuthenticationProvider",
        ],
        "Authentication providers beside digest and ip",
        "no other scheme than world, auth, digest and ip is built: remove the line",
    ),
    refused(
        "X509AuthenticationProvider.*",
        &[""],
        "Authentication by TLS certificates",
        NO_TLS,
    ),
    refused(
        "enforce.auth.enabled",
        &["false"],
        "Refuses clients that are not authenticated",
        "it is not built yet: remove the line, and protect znodes by ACLs",
    ),
    meaningless(
        "enforce.auth.schemes",
        "",
        "Has no effect while enforce.auth.enabled is false",
    ),
    refused(
        "sessionRequireClientSASLAuth",
        &["false"],
        "Refuses clients without SASL",
        NO_SASL,
    ),
    refused(
        "allowSaslFailedClients",
        &["false"],
        "Keeps clients whose SASL failed",
        NO_SASL,
    ),
    refused(
        "requireKerberosConfig",
        &["false"],
        "Needs Kerberos to be configured",
        NO_SASL,
    ),
    refused(
        "kerberos.*",
        &["false", ""],
        "Names of Kerberos principals",
        NO_SASL,
    ),
    refused("sasl.*", &["", "false"], "Settings of SASL", NO_SASL),
    refused(
        "SASLAuthenticationProvider.*",
        &[""],
        "The super user's SASL password",
        NO_SASL,
    ),
    refused(
        "letAnySaslUserDoX",
        &[""],
        "An ACL id that stands for every SASL user",
        NO_SASL,
    ),
    refused(
        "superUser",
        &[""],
        "The SASL user who may do everything",
        NO_SASL,
    ),
    refused("superUser.*", &[""], "More of them", NO_SASL),
    meaningless(
        "enableEagerACLCheck",
        "false",
        "Followers check ACLs before the leader does; here all check when they apply",
    ),
    // Operators.
    refused(
        "admin.enableServer",
        &["false"],
        "The HTTP server with /commands",
        "it is not built yet: set admin.enableServer=false (in the container image \
         ZOO_ADMINSERVER_ENABLED=false) and use the four-letter words srvr, ruok and mntr",
    ),
    meaningless("admin.*", "", "Has no effect without the HTTP server"),
    refused(
        "metricsProvider.className",
        &[
            "org.apache.zookeeper.metrics.impl.DefaultMetricsProvider",
            "org.apache.zookeeper.metrics.impl.NullMetricsProvider",
            "",
        ],
        "Where metrics go",
        "the Prometheus endpoint is not built yet: remove the line and scrape the four-letter word \
         mntr",
    ),
    meaningless(
        "metricsProvider.*",
        "",
        "Has no effect without the Prometheus endpoint",
    ),
    refused(
        "audit.enable",
        &["false"],
        "A log of who did what",
        "it is not built yet: remove the line",
    ),
    meaningless(
        "audit.impl.class",
        "",
        "Has no effect while audit.enable is false",
    ),
    // Servers together.
    members(
        "server.*",
        "",
        "A server: host:quorumPort:electionPort[:role][;[clientHost:]clientPort], with the same \
         lines on all of them; role is participant or observer; more addresses of the server may \
         follow after `|`, before the `;`. Nobody listens on electionPort",
    ),
    members(
        "advertisedClientAddress.*",
        "",
        "host:port of server N for its clients, told to them in /zookeeper/config; without it a \
         server's line there has no client address, and clients keep the ones they know. Not in \
         ZooKeeper",
    ),
    members(
        "statefulSet.replicas",
        "",
        "Pods of the StatefulSet that this server belongs to. The server lines and the number of \
         this server are made from that: the pod of ordinal N is server N+1, at pod.service. Not \
         in ZooKeeper, like the next three",
    ),
    members(
        "statefulSet.service",
        "",
        "The headless service of these pods, or its whole domain",
    ),
    members("statefulSet.pod", "", "Name of this pod, such as zkraft-0"),
    members(
        "statefulSet.namespace",
        "",
        "Namespace of the service: hosts end with NAMESPACE.svc.cluster.local if it is set and \
         the service is not a domain",
    ),
    members(
        "dynamicConfigFile",
        "",
        "The file with the server lines, if they are not in this one",
    ),
    members(
        "standaloneEnabled",
        "true",
        "Whether a server with no other server lines stands alone; with false it is an ensemble of \
         one, to which others can be added while it runs",
    ),
    members(
        "peerType",
        "participant",
        "participant or observer; the server line says it too, and wins",
    ),
    members(
        "quorumListenOnAllIPs",
        "false",
        "true: listen for other servers on every address, not just on that of the own line. So it \
         is anyway if that line has several",
    ),
    honoured(
        "initLimit",
        "10",
        "Ticks that a server which was sent a snapshot may take to load it: the leader keeps the \
         log after it for as long, and sends another one to who takes longer. Sending has no limit",
        |draft, value| whole(value, TICKS).map(|n| draft.init_limit = n as u32),
        |config| (config.init_limit_ms / u64::from(config.tick_ms)).to_string(),
    ),
    honoured(
        "syncLimit",
        "5",
        "Ticks that a server without a leader goes on serving its clients",
        |draft, value| whole(value, TICKS).map(|n| draft.sync_limit = n as u32),
        |config| (config.sync_limit_ms / u64::from(config.tick_ms)).to_string(),
    ),
    honoured(
        "clusterSecretFile",
        "",
        "File with a secret that all servers have and by which they know each other. Not in \
         ZooKeeper",
        |draft, value| file(value).map(|path| draft.config.cluster_secret_file = Some(path)),
        |config| {
            config
                .cluster_secret_file
                .as_ref()
                .map_or(String::new(), |path| path.display().to_string())
        },
    ),
    honoured(
        "featureLevelMax",
        "0",
        "The highest feature level that this server agrees to raise the ensemble to: while any \
         server has the present one here, a new version is on trial, and the one before can be \
         put back; 0 means any that it knows. Not in ZooKeeper",
        |draft, value| limit(value).map(|n| draft.config.feature_level_max = n),
        |config| config.feature_level_max.to_string(),
    ),
    honoured(
        "foundWithMajority",
        "false",
        "true: a new ensemble is founded as soon as a majority of its servers is there, not only \
         once all are. For a first start only: if a majority is ever empty while this is set, and \
         has met no server with data since it was started, it founds a second cluster, and what \
         only the others have is lost. Not in ZooKeeper",
        |draft, value| boolean(value).map(|on| draft.config.found_with_majority = on),
        |config| config.found_with_majority.to_string(),
    ),
    honoured(
        "linearizableReads",
        "false",
        "Every read of this server's clients sees all that was answered to anyone before it was \
         sent, as if a sync stood before it. It costs a round trip from this server through the \
         leader to a majority, which all reads that wait share; a server alone pays nothing. Not \
         in ZooKeeper",
        |draft, value| boolean(value).map(|on| draft.config.linearizable_reads = on),
        |config| config.linearizable_reads.to_string(),
    ),
    refused(
        "group.*",
        &[],
        "Hierarchical quorums",
        "every server has one vote: remove the line",
    ),
    refused(
        "weight.*",
        &[],
        "Weighted votes",
        "every server has one vote: remove the line",
    ),
    refused(
        "oraclePath",
        &[""],
        "An oracle that decides between two servers",
        "a majority of servers decides: remove the line",
    ),
    refused(
        "electionAlg",
        &["3"],
        "Election algorithm",
        "only 3 was ever supported",
    ),
    refused("sslQuorum", &["false"], "TLS between servers", NO_TLS),
    refused(
        "portUnification",
        &["false"],
        "TLS and plain peers on one port",
        NO_TLS,
    ),
    refused(
        "quorum.auth.enableSasl",
        &["false"],
        "SASL between servers",
        NO_PEER_SASL,
    ),
    refused(
        "quorum.auth.learnerRequireSasl",
        &["false"],
        "SASL between servers",
        NO_PEER_SASL,
    ),
    refused(
        "quorum.auth.serverRequireSasl",
        &["false"],
        "SASL between servers",
        NO_PEER_SASL,
    ),
    between_servers(
        "quorum.auth.*",
        "",
        "Have no effect without SASL between servers",
    ),
    between_servers(
        "quorum.cnxn.threads.size",
        "20",
        "Threads for connections of peers",
    ),
    between_servers(
        "connectToLearnerMasterLimit",
        "0",
        "Ticks that a follower has to connect",
    ),
    between_servers(
        "leaderServes",
        "yes",
        "Whether the leader serves clients: it always does",
    ),
    between_servers(
        "syncEnabled",
        "true",
        "Whether observers keep a log: they always do",
    ),
    between_servers(
        "observerMasterPort",
        "0",
        "Observers may follow a follower: they follow the leader",
    ),
    between_servers(
        "commitLogCount",
        "500",
        "Transactions kept for followers that come back",
    ),
    between_servers(
        "multiAddress.*",
        "",
        "Several addresses of a server: they are always taken",
    ),
    between_servers(
        "cnxTimeout",
        "5",
        "Seconds that an election connection may take",
    ),
    between_servers(
        "electionPortBindRetry",
        "3",
        "Attempts to listen on the election port",
    ),
    between_servers(
        "maxTimeToWaitForEpoch",
        "-1",
        "How long an election may take",
    ),
    between_servers("snapshotSizeFactor", "0.33", "How a follower catches up"),
    between_servers("fastleader.*", "", "Waiting times of elections"),
    between_servers("leader.*", "", "Limits of what a leader sends at a time"),
    between_servers("learner.*", "", "How a follower sends and closes"),
    between_servers(
        "observer.*",
        "",
        "When an observer looks for a leader again",
    ),
    between_servers(
        "leaderConnectDelayDuringRetryMs",
        "100",
        "Pause between attempts",
    ),
    between_servers(
        "ensembleAuthName",
        "",
        "Names of the ensemble that clients may ask for",
    ),
];

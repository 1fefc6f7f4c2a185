//! What the server is told to do: zoo.cfg and flags, turned once into a validated [`Config`].
//!
//! In two steps. [`properties`] and [`keys`] read every line on its own and judge nothing but its
//! form; `settle` then weighs the values against each other. All that is wrong with a file is
//! reported at once, each with its line and with what would be accepted. No other module reads
//! configuration, and none can hold a `Config` that was not checked.
//!
//! The format is ZooKeeper's own (§12). What zkraft does not support is told of: see
//! [`keys::Treatment`].

pub mod keys;
mod members;
pub mod properties;
mod settle;
mod values;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

pub use members::{Member, PeerAddress};
pub use settle::{Draft, Given, Invalid, Loaded, Origin, Problem, Setting, Verdict, shown};

/// How a server runs. All values are valid, alone and together.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Where clients connect.
    pub client: Listen,
    /// Keep nothing: no file is read or written, and all is gone when the process ends.
    pub in_memory: bool,
    /// Directory of everything durable but the log. May not exist yet.
    pub data_dir: PathBuf,
    /// Directory of the log: `data_dir` unless dataLogDir is set. May not exist yet.
    pub log_dir: PathBuf,
    /// From `myid` or the server line, else 1. From 1 to 255, and at most 254 with
    /// `extended_types`: the top byte of the session ids made here (§2.3).
    pub server_id: u32,

    /// The servers of the ensemble, by id, this one among them; of a server that stands alone, its
    /// line if it has one. What the log says of the membership wins over it.
    pub members: Vec<Member>,
    /// Where this server listens for the others; `None` if it stands alone. A host is that of its
    /// own line, which need not have an address yet: names of pods get theirs when they run.
    pub quorum: Option<Listen>,
    /// initLimit: how long a server that was sent a snapshot may take to load it.
    pub init_limit_ms: u64,
    /// syncLimit: how long a server without a leader goes on serving its clients.
    pub sync_limit_ms: u64,
    /// Whether every read sees all that was answered to anyone before it was sent.
    pub linearizable_reads: bool,
    /// Whether new sessions are this server's own (§8.7), and whether they go over into the log
    /// when they make an ephemeral.
    pub local_sessions: bool,
    pub local_session_upgrades: bool,
    /// Whether clients that ask for no more may read while there is no majority (§9.5).
    pub read_only_mode: bool,
    /// The secret by which servers prove to each other that they belong together.
    pub cluster_secret_file: Option<PathBuf>,
    /// The highest feature level that this server agrees to raise the ensemble to; 0 means any that
    /// it knows.
    pub feature_level_max: u32,
    /// Whether a majority of empty servers may found the ensemble without the others.
    pub found_with_majority: bool,

    /// tickTime: sessions expire on multiples of it.
    pub tick_ms: u32,
    /// The shortest session timeout a client gets. At most `max_session_timeout_ms`.
    pub min_session_timeout_ms: u32,
    /// The longest session timeout a client gets.
    pub max_session_timeout_ms: u32,
    /// How long a connection may live without a session.
    pub sessionless_timeout_ms: u32,
    /// Connections of one client address; 0 means no limit.
    pub max_client_cnxns: u32,
    /// Connections in all; 0 means no limit.
    pub max_cnxns: u32,
    /// Connections that wait to be accepted; `None` leaves the choice to the server.
    pub listen_backlog: Option<u32>,
    /// The largest frame a client may send, in bytes, length field not counted (§1.3).
    pub jute_max_buffer: usize,
    /// Writes that wait to be committed before the server stops reading from clients.
    pub global_outstanding_limit: u32,
    /// Bytes of large requests that may be under way at a time; `usize::MAX` means no limit, here
    /// and in the next ones.
    pub large_request_max_bytes: usize,
    /// Bytes of replies and events that may wait to be sent.
    pub unsent_max_bytes: usize,
    /// Bytes that watches may take, in all.
    pub watch_max_bytes: usize,
    /// Bytes that the watches of one connection may take.
    pub watch_max_bytes_per_client: usize,
    /// Sessions at which no new ones are made; 0 means no limit.
    pub max_sessions: u32,

    /// A snapshot is due after this many transactions, or later if the tree is large; at least 2.
    pub snap_count: u64,
    /// Snapshots that are kept; at least 3.
    pub snap_retain_count: usize,
    /// Whether older snapshots, and the log before the oldest one kept, are removed.
    pub purge: bool,
    /// Bytes of a log segment; at least 1 MiB.
    pub segment_bytes: u64,
    /// Whether a write is acknowledged only when it is safe on the disk.
    pub force_sync: bool,
    /// A sync of the log that takes longer is logged.
    pub fsync_warn_ms: u32,

    /// Whether clients may create znodes with a time to live.
    pub extended_types: bool,
    /// Whether hard quotas refuse writes (§5.6).
    pub enforce_quota: bool,
    /// Whether clients may change the ensemble by reconfig.
    pub reconfig_enabled: bool,
    /// Whether ACLs are ignored.
    pub skip_acl: bool,
    /// Whether the scheme `digest` exists (§7.3).
    pub digest_enabled: bool,
    /// `super:` and the base64 of SHA-1(`super:password`): who may do everything (§7.7).
    pub super_digest: Option<String>,

    /// Pause between searches for empty containers and outlived TTL znodes (§5.3).
    pub container_check_interval_ms: u32,
    /// How many of those are removed in a minute at most; at least 1.
    pub container_max_per_minute: u32,
    /// Age at which a container that never had a child is removed; 0 means never.
    pub container_max_never_used_ms: u64,

    /// The four-letter words that are answered (§11.1).
    pub four_letter_words: Whitelist,
}

impl Config {
    /// The development server: 127.0.0.1:2181, data in ./zkraft-data, every four-letter word.
    pub fn dev() -> Self {
        Loaded::dev(&[], false)
            .expect("the development settings are valid")
            .config
    }
}

/// The settings of the development server, in the language of zoo.cfg. What may be created or
/// authenticated stays as in ZooKeeper, so that what works here works in production.
pub const DEV_SETTINGS: &str = "\
tickTime=2000
dataDir=./zkraft-data
clientPortAddress=127.0.0.1
clientPort=2181
4lw.commands.whitelist=*
";

impl Loaded {
    /// Reads the file at `path`. Each override is a key and its value, with the flag or argument
    /// that gave it; overrides win over the file.
    pub fn file(path: &Path, overrides: &[Given], in_memory: bool) -> Result<Self, Invalid> {
        let name = path.display().to_string();
        let text = std::fs::read(path).map_err(|error| {
            Invalid::because(Problem {
                place: name.clone(),
                message: format!("cannot be read: {error}"),
            })
        })?;
        Self::text(&name, &text, overrides, in_memory)
    }

    /// Like [`Loaded::file`], for the bytes of a file called `name`.
    pub fn text(
        name: &str,
        text: &[u8],
        overrides: &[Given],
        in_memory: bool,
    ) -> Result<Self, Invalid> {
        let (mut given, problems) = settle::read(name, text);
        given.extend_from_slice(overrides);
        settle::settle(name, given, problems, in_memory)
    }

    /// The development server with flags.
    pub fn dev(overrides: &[Given], in_memory: bool) -> Result<Self, Invalid> {
        let (properties, _) = properties::parse(DEV_SETTINGS);
        let given = properties.into_iter().map(|property| Given {
            key: property.key,
            value: property.value,
            origin: Origin::Development,
        });
        let given = given.chain(overrides.iter().cloned()).collect();
        settle::settle("development settings", given, Vec::new(), in_memory)
    }

    /// A server that is told by arguments alone (§12.2, ZooKeeper's command line).
    pub fn arguments(given: &[Given], in_memory: bool) -> Result<Self, Invalid> {
        settle::settle("arguments", given.to_vec(), Vec::new(), in_memory)
    }
}

/// Where to listen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listen {
    /// A name or an address; `None` means every address of the machine.
    pub host: Option<String>,
    /// 0 lets the operating system choose.
    pub port: u16,
}

impl Listen {
    /// The addresses to try in order: listen on the first that can be bound. Resolves names, so
    /// it may block.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        match &self.host {
            Some(host) => Ok((host.as_str(), self.port).to_socket_addrs()?.collect()),
            // The IPv6 socket serves IPv4 too; the other is for machines without IPv6.
            None => Ok(vec![
                (Ipv6Addr::UNSPECIFIED, self.port).into(),
                (Ipv4Addr::UNSPECIFIED, self.port).into(),
            ]),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{}:{}", members::bracketed(host), self.port),
            None => write!(f, "*:{}", self.port),
        }
    }
}

/// The four-letter words that the operator allows, beside `srvr`, which always is (§11.1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Whitelist {
    All,
    Words(Vec<String>),
}

impl Whitelist {
    /// Reads a list separated by commas; one `*` in it allows all.
    pub fn parse(list: &str) -> Self {
        let words = list
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty());
        let words: Vec<String> = words.map(str::to_owned).collect();
        if words.iter().any(|word| word == "*") {
            Self::All
        } else {
            Self::Words(words)
        }
    }

    pub fn allows(&self, word: &str) -> bool {
        match self {
            Self::All => true,
            Self::Words(words) => word == "srvr" || words.iter().any(|allowed| allowed == word),
        }
    }
}

impl fmt::Display for Whitelist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Words(words) => f.write_str(&words.join(",")),
        }
    }
}

#[cfg(test)]
mod tests;

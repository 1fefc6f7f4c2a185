//! From single settings to one valid [`Config`].
//!
//! Collects every problem before it gives up, so that a file is repaired in one round. Reads no
//! file but `myid`, the member list that the settings point to, and the name of this machine.

mod ensemble;
mod pod;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::keys::{self, Key, Treatment};
use super::members::Member;
use super::values::Expected;
use super::{Config, Listen, Whitelist, properties};
use ensemble::Servers;

/// A `Config` in the making: `config` has the values that depend on nothing else, the other
/// fields wait for their counterparts.
pub struct Draft {
    pub config: Config,
    pub data_dir: Option<PathBuf>,
    pub log_dir: Option<PathBuf>,
    pub client_port: Option<u16>,
    pub client_host: Option<String>,
    pub min_session_timeout_ms: Option<u32>,
    pub max_session_timeout_ms: Option<u32>,
    /// In ticks.
    pub init_limit: u32,
    /// In ticks.
    pub sync_limit: u32,
}

/// A key that was set, as it was set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Given {
    pub key: String,
    pub value: String,
    pub origin: Origin,
}

/// Where a setting came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    Line {
        file: String,
        line: usize,
    },
    /// A flag such as `--client-port`, or the name of an argument.
    Flag(&'static str),
    /// A variable of the environment.
    Environment(&'static str),
    /// The development server's own settings.
    Development,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{file}:{line}"),
            Self::Flag(flag) => f.write_str(flag),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Development => f.write_str("development settings"),
        }
    }
}

/// A setting that counts, and what became of it.
#[derive(Clone, Debug)]
pub struct Setting {
    pub given: Given,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Followed.
    Honoured,
    /// Switches off what is not there anyway.
    Off,
    /// Tunes how ZooKeeper's servers work together; this server is alone.
    BetweenServers,
    /// Cannot matter to this implementation.
    Meaningless,
    /// Not a key of ZooKeeper that is known here.
    Unknown,
    /// One of the problems.
    Refused,
}

/// A configuration and what the operator should know about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// Every key that was set, by name; of duplicates the last.
    pub settings: Vec<Setting>,
    /// One sentence each.
    pub warnings: Vec<String>,
    /// What is worth a line of the debug log, but no warning, because every file has it.
    pub notes: Vec<String>,
}

/// Something that must be changed before the server starts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// A file and line, a flag, or a file.
    pub place: String,
    pub message: String,
}

/// Why there is no configuration: at least one problem.
#[derive(Clone, Debug, thiserror::Error)]
pub struct Invalid {
    pub problems: Vec<Problem>,
    pub settings: Vec<Setting>,
    pub warnings: Vec<String>,
}

impl Invalid {
    pub fn because(problem: Problem) -> Self {
        Self {
            problems: vec![problem],
            settings: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |Problem { place, message }: &Problem| format!("{place}: {message}");
        let lines: Vec<String> = self.problems.iter().map(line).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// The properties in the bytes of a file called `name`, and its malformed lines.
pub fn read(name: &str, bytes: &[u8]) -> (Vec<Given>, Vec<Problem>) {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.trim_start_matches('\u{feff}'),
        Err(error) => {
            let line = 1 + bytes[..error.valid_up_to()]
                .iter()
                .filter(|&&b| b == b'\n')
                .count();
            let message = "not UTF-8: save the file in that encoding".to_owned();
            return (
                Vec::new(),
                vec![Problem {
                    place: format!("{name}:{line}"),
                    message,
                }],
            );
        }
    };
    let (properties, errors) = properties::parse(text);
    let given = properties.into_iter().map(|property| Given {
        key: property.key,
        value: property.value,
        origin: Origin::Line {
            file: name.to_owned(),
            line: property.line,
        },
    });
    let problems = errors.into_iter().map(|error| Problem {
        place: format!("{name}:{}", error.line),
        message: error.to_string(),
    });
    (given.collect(), problems.collect())
}

/// Decides what the settings mean together. `source` is blamed for what is missing; `problems` are
/// those found while reading.
pub fn settle(
    source: &str,
    given: Vec<Given>,
    problems: Vec<Problem>,
    in_memory: bool,
) -> Result<Loaded, Invalid> {
    let mut settling = Settling {
        source: source.to_owned(),
        draft: Draft::new(in_memory),
        settings: BTreeMap::new(),
        servers: Servers::default(),
        problems,
        warnings: Vec::new(),
        notes: Vec::new(),
    };
    settling.keep_last_of_duplicates(given);
    settling.follow_dynamic_file();
    settling.set_all();
    settling.cross_check();
    settling.finish()
}

impl Draft {
    fn new(in_memory: bool) -> Self {
        Self {
            config: Config {
                client: Listen {
                    host: None,
                    port: 0,
                },
                in_memory,
                data_dir: PathBuf::new(),
                log_dir: PathBuf::new(),
                server_id: 1,
                members: Vec::new(),
                quorum: None,
                init_limit_ms: 30_000,
                sync_limit_ms: 15_000,
                linearizable_reads: false,
                local_sessions: false,
                local_session_upgrades: false,
                read_only_mode: false,
                cluster_secret_file: None,
                feature_level_max: 0,
                found_with_majority: false,
                tick_ms: 3000,
                min_session_timeout_ms: 6000,
                max_session_timeout_ms: 60_000,
                sessionless_timeout_ms: 10_000,
                max_client_cnxns: 60,
                max_cnxns: 0,
                listen_backlog: None,
                jute_max_buffer: crate::wire::FRAME_BYTES_MAX,
                global_outstanding_limit: 100_000,
                large_request_max_bytes: 100 << 20,
                unsent_max_bytes: 256 << 20,
                watch_max_bytes: 1 << 30,
                watch_max_bytes_per_client: 256 << 20,
                max_sessions: 1_000_000,
                snap_count: 100_000,
                snap_retain_count: 3,
                purge: true,
                segment_bytes: 64 << 20,
                force_sync: true,
                fsync_warn_ms: 1000,
                extended_types: false,
                enforce_quota: false,
                reconfig_enabled: false,
                skip_acl: false,
                digest_enabled: true,
                super_digest: None,
                container_check_interval_ms: 60_000,
                container_max_per_minute: 10_000,
                container_max_never_used_ms: 0,
                four_letter_words: Whitelist::Words(vec!["srvr".to_owned()]),
            },
            data_dir: None,
            log_dir: None,
            client_port: None,
            client_host: None,
            min_session_timeout_ms: None,
            max_session_timeout_ms: None,
            init_limit: 10,
            sync_limit: 5,
        }
    }
}

struct Settling {
    source: String,
    draft: Draft,
    /// By name without `zookeeper.`.
    settings: BTreeMap<String, Setting>,
    servers: Servers,
    problems: Vec<Problem>,
    warnings: Vec<String>,
    notes: Vec<String>,
}

impl Settling {
    fn keep_last_of_duplicates(&mut self, given: Vec<Given>) {
        for given in given {
            let name = keys::known_as(&given.key).to_owned();
            let later = given.origin.clone();
            let setting = Setting {
                given,
                verdict: Verdict::Honoured,
            };
            let Some(earlier) = self.settings.insert(name.clone(), setting) else {
                continue;
            };
            // A flag is meant to override; two lines are more likely a slip.
            if matches!(later, Origin::Line { .. }) {
                let earlier = earlier.given.origin;
                self.warnings.push(format!(
                    "{name} is set at {earlier} and at {later}, which wins"
                ));
            }
        }
    }

    /// Takes in the member lines of the file that `dynamicConfigFile` names (§12.4).
    fn follow_dynamic_file(&mut self) {
        let Some(setting) = self.settings.get("dynamicConfigFile") else {
            return;
        };
        let given = setting.given.clone();
        let place = given.origin.to_string();
        let (lines, problems) = match std::fs::read(&given.value) {
            Ok(bytes) => read(&given.value, &bytes),
            Err(error) => {
                let message = format!("dynamicConfigFile={} cannot be read: {error}", given.value);
                self.problems.push(Problem { place, message });
                return;
            }
        };
        self.problems.extend(problems);
        if self.settings.keys().any(|name| name.starts_with("server.")) {
            let message = "server lines are either here or in the dynamicConfigFile, not in both";
            self.problems.push(Problem {
                place,
                message: message.to_owned(),
            });
        }
        let of_members = |given: &Given| {
            ["server.", "group.", "weight."]
                .iter()
                .any(|family| given.key.starts_with(family))
        };
        let (lines, others): (Vec<_>, Vec<_>) = lines.into_iter().partition(of_members);
        self.problems.extend(others.iter().map(|other| Problem {
            place: other.origin.to_string(),
            message: format!("{} does not belong here, only server lines do", other.key),
        }));
        self.keep_last_of_duplicates(lines);
    }

    /// Judges every setting on its own.
    fn set_all(&mut self) {
        let mut settings = std::mem::take(&mut self.settings);
        for (name, setting) in &mut settings {
            setting.verdict = match keys::find(name) {
                Some(key) => self.set(name, &setting.given, key),
                None => Verdict::Unknown,
            };
        }
        self.settings = settings;
    }

    fn set(&mut self, name: &str, given: &Given, key: &Key) -> Verdict {
        let value = given.value.as_str();
        let outcome = match &key.treatment {
            Treatment::Honoured { set, .. } => {
                set(&mut self.draft, value).map_err(|Expected(text)| format!("expected {text}"))
            }
            Treatment::Members => self
                .servers
                .set(name, given)
                .map_err(|Expected(text)| format!("expected {text}")),
            Treatment::BetweenServers => return Verdict::BetweenServers,
            Treatment::Meaningless => return Verdict::Meaningless,
            Treatment::Refused { off, .. } if off.iter().any(|o| o.eq_ignore_ascii_case(value)) => {
                return Verdict::Off;
            }
            Treatment::Refused { off, instead } => Err(match off {
                [] => format!("not supported: {instead}"),
                off => format!("not supported: {instead} (accepted: {})", accepted(off)),
            }),
        };
        match outcome {
            Ok(()) => Verdict::Honoured,
            Err(message) => {
                self.problems.push(Problem {
                    place: given.origin.to_string(),
                    message: format!("{}: {message}", shown(&given.key, value)),
                });
                Verdict::Refused
            }
        }
    }

    /// Weighs the settings against each other.
    fn cross_check(&mut self) {
        self.settle_directories();
        self.settle_timeouts();
        self.settle_reads();
        // Whose client port would it be, if nobody knows which server this is?
        if let Ok(member) = self.settle_members() {
            self.settle_client_address(member);
        }
        self.warn();
    }

    fn settle_directories(&mut self) {
        let config = &mut self.draft.config;
        match self.draft.data_dir.take() {
            Some(path) => config.data_dir = path,
            None if config.in_memory || self.settings.contains_key("dataDir") => {}
            None => self.problems.push(Problem {
                place: self.source.clone(),
                message: "dataDir is not set: say where the data lies, for example \
                          dataDir=/var/lib/zookeeper, or start with --in-memory"
                    .to_owned(),
            }),
        }
        config.log_dir = self
            .draft
            .log_dir
            .take()
            .unwrap_or_else(|| config.data_dir.clone());
    }

    fn settle_timeouts(&mut self) {
        let config = &mut self.draft.config;
        let ticks = |count: u32| config.tick_ms.saturating_mul(count).min(i32::MAX as u32);
        let min = self
            .draft
            .min_session_timeout_ms
            .unwrap_or_else(|| ticks(2));
        let max = self
            .draft
            .max_session_timeout_ms
            .unwrap_or_else(|| ticks(20));
        (config.min_session_timeout_ms, config.max_session_timeout_ms) = (min, max);
        let limit = |ticks: u32| u64::from(ticks) * u64::from(config.tick_ms);
        config.init_limit_ms = limit(self.draft.init_limit);
        config.sync_limit_ms = limit(self.draft.sync_limit);
        if min > max {
            let place = self.place_of(&["minSessionTimeout", "maxSessionTimeout", "tickTime"]);
            let message = format!(
                "minSessionTimeout ({min} ms) is above maxSessionTimeout ({max} ms); unset they \
                 are 2 and 20 times tickTime"
            );
            self.problems.push(Problem { place, message });
        }
    }

    fn settle_reads(&mut self) {
        if self.draft.config.linearizable_reads && self.draft.config.read_only_mode {
            let message = "read-only mode shows what may be old, and linearizableReads=true \
                           promises that no read does: keep one of them";
            self.refuse("readonlymode.enabled", message);
        }
    }

    /// Where clients connect: flags win, then clientPort and the server line, which must agree.
    fn settle_client_address(&mut self, member: Option<Member>) {
        let (line_host, line_port) = match member.and_then(|member| member.client) {
            Some((host, port)) => (host, Some(port)),
            None => (None, None),
        };
        let port = match (self.draft.client_port, line_port) {
            (Some(port), Some(other)) if port != other && !self.is_flag("clientPort") => {
                let place = self.place_of(&["clientPort"]);
                let message = format!(
                    "clientPort={port} differs from port {other} of the server line: keep one"
                );
                self.problems.push(Problem { place, message });
                return;
            }
            (Some(port), _) | (None, Some(port)) => port,
            (None, None) if self.settings.contains_key("clientPort") => return,
            (None, None) => {
                self.problems.push(Problem {
                    place: self.source.clone(),
                    message: "clientPort is not set: say where clients connect, for example \
                              clientPort=2181"
                        .to_owned(),
                });
                return;
            }
        };
        let host = self.draft.client_host.take();
        if host.is_some() && self.draft.client_port.is_none() && !self.is_flag("clientPortAddress")
        {
            let place = self.place_of(&["clientPortAddress"]);
            let message = "clientPortAddress needs clientPort".to_owned();
            self.problems.push(Problem { place, message });
        }
        let client = Listen {
            host: host.or(line_host),
            port,
        };
        if let Some(quorum) = &self.draft.config.quorum
            && quorum.port == client.port
            && (quorum.host.is_none() || client.host.is_none() || quorum.host == client.host)
        {
            let place = self.place_of(&["clientPort"]);
            let message = format!(
                "clients and other servers cannot both use port {port}: change clientPort, or \
                 quorumPort on the line of this server"
            );
            self.problems.push(Problem { place, message });
        }
        self.draft.config.client = client;
    }

    /// What is allowed, but should be known.
    fn warn(&mut self) {
        let unsafe_writes =
            "forceSync=no: a power cut loses writes that clients were told are done";
        if !self.draft.config.force_sync && !self.draft.config.in_memory {
            self.warnings.push(unsafe_writes.to_owned());
        }
        if !self.draft.config.purge {
            let place = self.place_of(&["autopurge.purgeInterval"]);
            self.warnings.push(format!(
                "{place}: autopurge.purgeInterval=0 keeps every snapshot and all of the log until \
                 the disk is full; remove the line to have them removed"
            ));
        }
        if self.draft.config.skip_acl {
            self.warnings
                .push("skipACL=yes: every client may do everything".to_owned());
        }
        let config = &self.draft.config;
        if config.local_session_upgrades && !config.local_sessions {
            let place = self.place_of(&["localSessionsUpgradingEnabled"]);
            self.warnings.push(format!(
                "{place}: localSessionsUpgradingEnabled=true has no effect without \
                 localSessionsEnabled=true"
            ));
        }
        if self.draft.config.quorum.is_some() {
            // Now there are others, and none of these keys has a counterpart.
            for setting in self.settings.values_mut() {
                if setting.verdict == Verdict::BetweenServers {
                    setting.verdict = Verdict::Meaningless;
                }
            }
        }
        let meaningless = self.names_of(Verdict::Meaningless);
        if !meaningless.is_empty() {
            self.warnings
                .push(format!("no effect here: {}", meaningless.join(", ")));
        }
        let unknown = self.names_of(Verdict::Unknown).into_iter().map(|name| {
            match keys::nearest(keys::known_as(&name)) {
                Some(known) => format!("{name} (did you mean {known}?)"),
                None => name,
            }
        });
        let unknown: Vec<String> = unknown.collect();
        if !unknown.is_empty() {
            self.warnings
                .push(format!("unknown keys, ignored: {}", unknown.join(", ")));
        }
    }

    fn finish(self) -> Result<Loaded, Invalid> {
        let settings = self.settings.into_values().collect();
        let (problems, warnings) = (self.problems, self.warnings);
        match problems.is_empty() {
            true => Ok(Loaded {
                config: self.draft.config,
                settings,
                warnings,
                notes: self.notes,
            }),
            false => Err(Invalid {
                problems,
                settings,
                warnings,
            }),
        }
    }

    fn names_of(&self, verdict: Verdict) -> Vec<String> {
        let with_verdict = self
            .settings
            .values()
            .filter(|setting| setting.verdict == verdict);
        with_verdict
            .map(|setting| setting.given.key.clone())
            .collect()
    }

    /// Turns a setting that was taken in into a problem.
    fn refuse(&mut self, name: &str, message: &str) {
        if let Some(setting) = self.settings.get_mut(name) {
            setting.verdict = Verdict::Refused;
            let given = &setting.given;
            self.problems.push(Problem {
                place: given.origin.to_string(),
                message: format!("{}: {message}", shown(&given.key, &given.value)),
            });
        }
    }

    fn is_flag(&self, name: &str) -> bool {
        let setting = self.settings.get(name);
        setting.is_some_and(|setting| matches!(setting.given.origin, Origin::Flag(_)))
    }

    /// Where the first of `names` that is set was set.
    fn place_of(&self, names: &[&str]) -> String {
        let set = names.iter().find_map(|name| self.settings.get(*name));
        set.map_or_else(
            || self.source.clone(),
            |setting| setting.given.origin.to_string(),
        )
    }
}

/// `key=value` for a message. Secrets stay out of logs.
pub fn shown(key: &str, value: &str) -> String {
    let secret = key.to_ascii_lowercase();
    match ["password", "digest", "secret"]
        .iter()
        .any(|word| secret.ends_with(word))
    {
        true => format!("{key}=***"),
        false => format!("{key}={value}"),
    }
}

fn accepted(values: &[&str]) -> String {
    let quoted = values
        .iter()
        .map(|value| if value.is_empty() { "nothing" } else { value });
    quoted.collect::<Vec<_>>().join(", ")
}

//! What may be written on the command line, and its help.
//!
//! Values are taken as they are. Flags that stand for a key of zoo.cfg become settings of that
//! key, so that they are judged by the same parser and win over the file.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::bench::BenchArguments;
use super::recover::RecoverArguments;
use super::status::StatusArguments;
use crate::config::{Given, Origin};

const LONG_ABOUT: &str = "\
A coordination server for everything that speaks the ZooKeeper protocol.

Without a command, zkraft is a development server: it listens on 127.0.0.1:2181 and keeps its data
in ./zkraft-data. With `serve` it runs on a ZooKeeper configuration file.";

const EXAMPLES: &str = "\
Examples:
  zkraft                                  a server to develop against; Ctrl-C stops it
  zkraft --in-memory --client-port 0      the same on a free port, leaving nothing behind
  zkraft serve /etc/zookeeper/zoo.cfg     run on ZooKeeper's own configuration file
  zkraft serve 2181 /var/lib/zookeeper    ZooKeeper's standalone form: port and directory
  zkraft serve zoo.cfg --replicas 3 --service zk-headless
                                          one of three pods, without server lines and myid
  zkraft check-config zoo.cfg             what the file means here, without starting
  zkraft status --server HOST:2181        whether it serves, who leads, how far behind it is
  zkraft recover --show zoo.cfg           after the loss of a majority: how far this survivor is
  zkraft bench get --versus HOST:2181     how fast, beside another server of the protocol

Connect with any ZooKeeper client:
  zkCli.sh -server 127.0.0.1:2181
  python3 -c 'from kazoo.client import KazooClient as K; z = K(\"127.0.0.1:2181\"); z.start()'

Apache Flink, in its configuration file:
  high-availability.type: zookeeper
  high-availability.zookeeper.quorum: 127.0.0.1:2181
  high-availability.storageDir: file:///shared/flink/recovery

Exit codes: 0 stopped as asked, 1 cannot go on, 2 wrong arguments or configuration, 130 stopped by
a second Ctrl-C.";

const BENCH_EXAMPLES: &str = "\
Examples:
  zkraft bench get                          8 clients with 16 requests each under way
  zkraft bench set --clients 1 --depth 1    latency of a lone client
  zkraft bench mixed HOST:2181 --rate 20000 on a schedule: stalls count for all who were due
  zkraft bench get HOST:2181 --versus HOST:2182 --pid 71 --versus-pid 72 --warm-up 30
                                            two servers in turn, with processor time and ratios
  zkraft bench fill --keys 1000000 --size 100 --pid 71
                                            bytes of memory per znode

The load lives below /zkraft-bench-PID and is removed afterwards. `bare echo` in the table is the
same load against a server that does nothing: the ceiling, and what the generator itself takes.";

const RECOVER_ABOUT: &str = "\
Make the last survivor of a lost ensemble a cluster of its own.

For the day on which a majority of the servers is gone for good. As long as one of them may come
back with its data, wait: nothing is lost then. Whatever was acknowledged and has not reached the
survivor is lost, so choose the survivor that has most: run `zkraft recover --show` on each of them,
and take the one whose last entry has the highest term and, where terms are equal, the highest
index.

The server must not run. It tells how far it is, what may be lost, and asks for words that must be
typed. Then its log says that it is the only member of a new cluster: the other servers are refused
with their old data, and are added again with empty directories by reconfig.";

const RECOVER_EXAMPLES: &str = "\
Examples:
  zkraft recover --show zoo.cfg    how far this survivor is; nothing is changed
  zkraft recover zoo.cfg           says what may be lost, and asks
  zkraft recover zoo.cfg --confirm 'lose what only the others have'
                                   the same in a script

Exit codes: 0 done, 1 refused or not confirmed and nothing changed, 2 wrong arguments or
configuration.";

#[derive(Debug, Parser)]
#[command(
    name = "zkraft",
    version,
    about = "A coordination server for ZooKeeper clients"
)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
// Flags before a command would be those of a server that is not started.
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(flatten)]
    pub flags: Flags,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run on a ZooKeeper configuration file
    Serve(ServeArguments),
    /// Say what a configuration file means here, without starting (exit code 1: refused)
    CheckConfig(CheckArguments),
    /// Say how a server is, or, for probes, whether it runs or serves (exit code 1: not)
    Status(StatusArguments),
    /// Make the last survivor of a lost ensemble a cluster of its own
    #[command(long_about = RECOVER_ABOUT, after_help = RECOVER_EXAMPLES)]
    Recover {
        #[command(flatten)]
        arguments: RecoverArguments,
        #[command(flatten)]
        flags: Flags,
    },
    /// Load a server, or two in turn, and say how fast it is; any that speaks the protocol
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(BenchArguments),
}

const FOUND_HELP: &str = "A majority of empty servers may found the ensemble. DANGER: see --help";
const FOUND_LONG_HELP: &str = "\
Found a new ensemble as soon as a majority of its servers is there, not only once all are.
DANGER: if servers with data are among those that are not there, a second cluster begins
beside theirs, and what only they have is lost. For a first start: leave it out afterwards";

/// What to run.
#[derive(Args, Debug)]
pub struct ServeArguments {
    #[arg(long, help = FOUND_HELP, long_help = FOUND_LONG_HELP)]
    pub found_with_majority: bool,
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub flags: Flags,
}

/// What to explain.
#[derive(Args, Debug)]
pub struct CheckArguments {
    /// Tell what each key means as well
    #[arg(long)]
    pub explain: bool,
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub flags: ServerFlags,
}

impl ServeArguments {
    /// The flags of this command alone.
    pub fn given(&self) -> Vec<Given> {
        let flag = "--found-with-majority";
        let given = || setting("foundWithMajority", "true", flag);
        self.found_with_majority.then(given).into_iter().collect()
    }
}

/// Which configuration.
#[derive(Args, Debug)]
pub struct Target {
    /// A zoo.cfg, or PORT DATADIR [TICKTIME [MAXCLIENTCNXNS]]
    #[arg(value_name = "ZOO.CFG", required = true, num_args = 1..=4)]
    pub words: Vec<String>,
    #[command(flatten)]
    pub pod: PodFlags,
}

/// Who a server in Kubernetes is. Flags win over the environment, and both over the file.
#[derive(Args, Debug)]
#[command(next_help_heading = "Kubernetes: server lines and myid of a pod of a StatefulSet")]
pub struct PodFlags {
    /// Pods of the StatefulSet; the pod of ordinal N is server N+1 [env: ZKRAFT_REPLICAS]
    #[arg(long, value_name = "COUNT")]
    pub replicas: Option<String>,
    /// Headless service of the pods, in the namespace POD_NAMESPACE if set [env: ZKRAFT_SERVICE]
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Name of this pod, such as zkraft-0 [env: POD_NAME, or else HOSTNAME]
    #[arg(long, value_name = "NAME")]
    pub pod: Option<String>,
}

/// Looks a variable of the environment up.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl PodFlags {
    /// The settings of the environment and of the flags, the strongest last.
    pub fn given(&self, environment: Environment<'_>) -> Vec<Given> {
        const VARIABLES: [(&str, &str); 5] = [
            ("statefulSet.replicas", "ZKRAFT_REPLICAS"),
            ("statefulSet.service", "ZKRAFT_SERVICE"),
            ("statefulSet.namespace", "POD_NAMESPACE"),
            ("statefulSet.pod", "HOSTNAME"),
            ("statefulSet.pod", "POD_NAME"),
        ];
        let variables = VARIABLES.into_iter().filter_map(|(key, name)| {
            let value = environment(name).filter(|value| !value.is_empty())?;
            Some(Given {
                key: key.to_owned(),
                value,
                origin: Origin::Environment(name),
            })
        });
        let flags = [
            ("statefulSet.replicas", "--replicas", &self.replicas),
            ("statefulSet.service", "--service", &self.service),
            ("statefulSet.pod", "--pod", &self.pod),
        ];
        let flags = flags
            .into_iter()
            .filter_map(|(key, flag, value)| Some(setting(key, value.as_deref()?, flag)));
        variables.chain(flags).collect()
    }
}

impl Target {
    /// The configuration file, unless there are several words.
    pub fn file(&self) -> Option<&Path> {
        match &self.words[..] {
            [file] => Some(Path::new(file)),
            _ => None,
        }
    }

    /// The settings of ZooKeeper's own command line (§12.2).
    pub fn given(&self) -> Vec<Given> {
        const WORDS: [(&str, &str); 4] = [
            ("clientPort", "PORT"),
            ("dataDir", "DATADIR"),
            ("tickTime", "TICKTIME"),
            ("maxClientCnxns", "MAXCLIENTCNXNS"),
        ];
        let given = |((key, name), word): (_, &String)| setting(key, word, name);
        WORDS.into_iter().zip(&self.words).map(given).collect()
    }
}

/// Flags of a server.
#[derive(Args, Debug)]
pub struct Flags {
    #[command(flatten)]
    pub server: ServerFlags,
    #[command(flatten)]
    pub log: LogFlags,
}

/// Flags that win over the configuration file.
#[derive(Args, Debug)]
#[command(next_help_heading = "Instead of what the configuration says")]
pub struct ServerFlags {
    /// Port for clients; 0 chooses a free one
    #[arg(long, value_name = "PORT")]
    pub client_port: Option<String>,
    /// Address for clients; 0.0.0.0 or :: for every address
    #[arg(long, value_name = "HOST")]
    pub client_address: Option<String>,
    /// Directory of the data
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Keep nothing on disk: all is gone when the server stops
    #[arg(long, conflicts_with = "data_dir")]
    pub in_memory: bool,
    /// Milliseconds of a tick; sessions last 2 to 20 ticks
    #[arg(long, value_name = "MS")]
    pub tick_time: Option<String>,
    /// Any other key of zoo.cfg; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub set: Vec<(String, String)>,
}

/// How a server logs.
#[derive(Args, Debug)]
#[command(next_help_heading = "Log")]
pub struct LogFlags {
    /// How log lines are written to stderr
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// error, warn, info, debug or trace, or a filter as in RUST_LOG, over which it wins
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One object a line, for programs
    Json,
}

impl ServerFlags {
    /// The flags that stand for keys, in order of precedence, the strongest last.
    pub fn given(&self) -> Vec<Given> {
        let any = self
            .set
            .iter()
            .map(|(key, value)| setting(key, value, "--set"));
        let data_dir = self
            .data_dir
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned());
        let named = [
            ("clientPort", "--client-port", &self.client_port),
            (
                "clientPortAddress",
                "--client-address",
                &self.client_address,
            ),
            ("dataDir", "--data-dir", &data_dir),
            ("tickTime", "--tick-time", &self.tick_time),
        ];
        let named = named
            .into_iter()
            .filter_map(|(key, flag, value)| Some(setting(key, value.as_deref()?, flag)));
        any.chain(named).collect()
    }
}

fn setting(key: &str, value: &str, flag: &'static str) -> Given {
    Given {
        key: key.to_owned(),
        value: value.to_owned(),
        origin: Origin::Flag(flag),
    }
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("write it as KEY=VALUE, for example snapCount=10000".to_owned()),
    }
}

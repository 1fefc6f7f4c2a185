//! What `zkraft bench` may be told.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};

/// Which load.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Workload {
    /// Read random keys
    Get,
    /// Set random keys
    Set,
    /// Create znodes with new names
    Create,
    /// Get and set random keys, in the proportion of --read-percent
    Mixed,
    /// 1 create, 8 set, 45 get, 45 list of 100 children, 1 delete
    Published,
    /// Create an ephemeral, delete it
    Ephemeral,
    /// Connect, open a session, close it
    Session,
    /// Change one znode that all clients watch; an operation ends when the last one was told
    FanOut,
    /// Create all --keys once; with --pid: memory per znode
    Fill,
    /// Open --clients sessions and keep them alive; with --pid: memory per session
    Idle,
    /// What Apache Flink does for each checkpoint: 8 requests, 5 of them writes
    Flink,
}

impl Workload {
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it measures what a number of things take, instead of a time of steady load.
    pub fn is_counted(self) -> bool {
        matches!(self, Self::Fill | Self::Idle)
    }

    /// Whether the bare echo can stand for the server, for as long as it is measured.
    pub fn has_echo(self) -> bool {
        !matches!(self, Self::FanOut | Self::Fill | Self::Idle)
    }

    /// Whether its operations can be due at times of a schedule.
    pub fn has_schedule(self) -> bool {
        !matches!(self, Self::Session | Self::FanOut | Self::Fill | Self::Idle)
    }

    /// Whether a client has more than one request unanswered if it may.
    pub fn has_depth(self) -> bool {
        !matches!(
            self,
            Self::Session | Self::FanOut | Self::Idle | Self::Flink
        )
    }

    /// Whether its znodes have data of the size that was asked for.
    pub fn has_data(self) -> bool {
        !matches!(self, Self::Session | Self::Idle | Self::Flink)
    }

    /// Whether it has keys.
    pub fn has_keys(self) -> bool {
        matches!(
            self,
            Self::Get | Self::Set | Self::Mixed | Self::Published | Self::Fill
        )
    }
}

#[derive(Args, Clone, Debug)]
pub struct BenchArguments {
    /// The load
    #[arg(value_enum)]
    pub workload: Workload,
    /// The server, as HOST:PORT; several of an ensemble, by commas: clients are spread over them
    #[arg(default_value = "127.0.0.1:2181", value_name = "HOST:PORT,…")]
    pub server: String,
    /// Another server or ensemble, measured in turn with the first in one run; ratios are first to
    /// other
    #[arg(long, value_name = "HOST:PORT,…")]
    pub versus: Option<String>,
    /// Clients, each with a session of its own
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub clients: u32,
    /// Requests of a client that may be unanswered
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub depth: u32,
    /// Bytes of data in each znode
    #[arg(long, default_value_t = 128, value_name = "BYTES")]
    pub size: u32,
    /// Znodes that are read and set, below parents of 1,000 each
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub keys: u32,
    /// Share of gets in `mixed`
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_percent: u8,
    /// Seconds that each round is measured
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub seconds: f64,
    /// Rounds; the table shows medians of them
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// Seconds of load on each server before the first round; a JVM needs about 30
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub warm_up: f64,
    /// Operations a second of all clients, on a schedule: latency counts from when an operation
    /// was due (without it: as many as the depth allows). Not for session, fan-out, fill, idle
    #[arg(long, value_name = "OPS", value_parser = positive)]
    pub rate: Option<f64>,
    /// Processes of the server or servers, for their processor time and memory, in sum
    #[arg(long, value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// Processes of the other one
    #[arg(long, value_delimiter = ',', requires = "versus")]
    pub versus_pid: Vec<u32>,
    /// Session timeout to ask for, in milliseconds
    #[arg(long, default_value_t = 30_000, value_name = "MS")]
    pub session_timeout: i32,
    /// Seconds of rest before memory is read
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    pub settle: f64,
    /// Leave the znodes behind
    #[arg(long)]
    pub keep: bool,
    /// Do not measure the generator against a bare echo first
    #[arg(long)]
    pub no_echo: bool,
    /// Where the random keys start
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write everything that was measured as JSON; - for standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl BenchArguments {
    /// What the arguments do not say one by one.
    ///
    /// # Errors
    /// If two of them do not go together.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.rate.is_some() && !self.workload.has_schedule() {
            let all = Workload::value_variants().iter();
            let names: Vec<_> = all
                .filter(|workload| workload.has_schedule())
                .map(|workload| workload.name())
                .collect();
            bail!(
                "--rate is not for {}, only for {}",
                self.workload.name(),
                names.join(", ")
            );
        }
        Ok(())
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("write seconds, from 0 to 86400, for example 2.5".to_owned()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=RATE_MAX).contains(&rate) => Ok(rate),
        _ => Err(format!(
            "write operations a second, from 0.001 to {RATE_MAX}, for example 20000"
        )),
    }
}

/// Far more operations a second than one thread can ask for.
const RATE_MAX: f64 = 10_000_000.0;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        arguments: BenchArguments,
    }

    impl BenchArguments {
        pub fn parsed(words: &str) -> Result<Self, clap::Error> {
            let words = std::iter::once("bench").chain(words.split(' '));
            Program::try_parse_from(words).map(|program| program.arguments)
        }
    }

    #[test]
    fn a_rate_is_refused_where_there_is_no_schedule() {
        for workload in Workload::value_variants() {
            let name = workload.name();
            let checked = |words: &str| BenchArguments::parsed(words).unwrap().check();
            let with_rate = checked(&format!("{name} --rate 100"));
            assert_eq!(with_rate.is_ok(), workload.has_schedule(), "{name}");
            assert!(checked(&name).is_ok(), "{name}");
        }
        let refused = BenchArguments::parsed("fill --rate 100").unwrap().check();
        assert_eq!(
            refused.unwrap_err().to_string(),
            "--rate is not for fill, only for get, set, create, mixed, published, ephemeral, flink"
        );
    }

    #[test]
    fn a_rate_that_nobody_reaches_is_refused() {
        let highest = BenchArguments::parsed("get --rate 1e7").unwrap();
        assert_eq!(highest.rate, Some(1e7));
        for wrong in ["10000001", "1e9", "0", "inf", "NaN", "many"] {
            let refused = BenchArguments::parsed(&format!("get --rate {wrong}"));
            let message = refused.unwrap_err().to_string();
            assert!(message.contains("from 0.001 to 10000000"), "{message}");
        }
    }
}

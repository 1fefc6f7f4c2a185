//! One stream of random requests for two servers, and their answers compared field by field.
//!
//! The stream is decided by its seed and sent to zkraft and to ZooKeeper as raw bytes. Every reply,
//! Stat, event, error and close is compared. What differs by nature is mapped ([`compare`]), what
//! differs on purpose or from version to version has a line in one table ([`known`]). At the end
//! the stream must have met every operation and every error that one server can answer often enough
//! ([`coverage`]). A stream that fails is made short ([`shrink`]) and printed with the command that
//! repeats it.
//!
//! Like `tests/wire`, and with its client and its servers, this uses nothing of the `zkraft`
//! library. By itself it compares zkraft with zkraft, which shows that the streams are rich, that
//! answers depend on nothing but the stream, and that a wrong answer is found. With
//! `ZKRAFT_DIFFERENTIAL_AGAINST=zookeeper` it compares zkraft with ZooKeeper 3.8.0 from Debian, or
//! with the ZooKeeper whose jars are in `ZKRAFT_WIRE_JARS`; `tests/compat/differential_suite.py`
//! does that. `ZKRAFT_DIFFERENTIAL_OPERATIONS` says how many operations, `…_SEED` which stream, and
//! `…_FIRST` with which episode of it to begin.

mod compare;
mod coverage;
mod flink;
mod generate;
mod known;
mod lies;
mod link;
mod request;
mod run;
mod shrink;

#[expect(
    dead_code,
    reason = "shared with the tests of the protocol, which use all of it"
)]
#[path = "../wire/client.rs"]
mod client;
#[expect(dead_code, reason = "shared with the simulator, which uses all of it")]
#[path = "../sim/rng.rs"]
mod rng;
#[expect(
    dead_code,
    reason = "shared with the tests of the protocol, which use all of it"
)]
#[path = "../wire/server.rs"]
mod server;

use std::time::Instant;

use crate::known::{LEFT_OUT, Other, TABLE, allowed};
use crate::rng::Rng;
use crate::run::{Failure, Pair, Step};
use crate::server::{Program, Server};
use crate::shrink::{Try, shrink};

/// Operations without a JDK, where only the streams themselves are at stake.
const OPERATIONS_ALONE: u64 = 20_000;
const OPERATIONS: u64 = 200_000;
/// One episode of so many runs on servers with ZooKeeper's defaults.
const PLAIN_SHARE: u64 = 5;

/// Nothing may happen by itself while two servers are compared: sessions outlive the run, and the
/// cleaner of containers never comes.
const QUIET: &str = "\
tickTime=2000
minSessionTimeout=600000
maxSessionTimeout=1200000
maxClientCnxns=0
forceSync=no
znode.container.checkIntervalMs=2000000000
";

/// What can be answered with more features: TTL znodes and enforced quotas.
const RICH: &str = "\
extendedTypesEnabled=true
enforceQuota=true
";

/// ZooKeeper's defaults, but for reconfig, which has other answers when it is on.
const PLAIN: &str = "\
reconfigEnabled=true
";

/// The two servers of a run.
struct Servers {
    program: Program,
    zkraft: Server,
    other: Server,
    config: &'static str,
}

impl Servers {
    fn start(program: Program, config: &'static str) -> Self {
        let lines = format!("{QUIET}{config}");
        Self {
            program,
            zkraft: Server::start(Program::Zkraft, "differential", &lines),
            other: Server::start(program, "differential", &lines),
            config,
        }
    }

    fn stop(self) {
        self.zkraft.stop();
        self.other.stop();
    }

    fn other(&self) -> Other {
        match self.program {
            Program::Zkraft => Other::Zkraft,
            Program::Zookeeper if self.other.is_zookeeper_38() => Other::V38,
            Program::Zookeeper => Other::V39,
        }
    }
}

fn against() -> Program {
    match std::env::var("ZKRAFT_DIFFERENTIAL_AGAINST").as_deref() {
        Err(_) | Ok("zkraft") => Program::Zkraft,
        Ok("zookeeper") => Program::Zookeeper,
        Ok(other) => panic!("ZKRAFT_DIFFERENTIAL_AGAINST={other}: expected zkraft or zookeeper"),
    }
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Err(_) => default,
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text}: expected a number")),
    }
}

/// Streams, run on servers that are started anew when a failure has left them unlike each other.
struct Bench {
    servers: Servers,
    pair: Pair,
}

impl Bench {
    fn start(config: &'static str) -> Self {
        Self::start_against(against(), config)
    }

    fn start_against(program: Program, config: &'static str) -> Self {
        let servers = Servers::start(program, config);
        Self {
            pair: Pair::new(&servers.zkraft, &servers.other, servers.other()),
            servers,
        }
    }

    fn restart(&mut self) {
        let new = Servers::start(self.servers.program, self.servers.config);
        self.pair.restarted(&new.zkraft, &new.other);
        std::mem::replace(&mut self.servers, new).stop();
    }

    fn stop(self) {
        self.servers.stop();
    }
}

impl Try for Bench {
    fn run(&mut self, steps: &[Step]) -> Result<(), Failure> {
        let result = self.pair.run(steps);
        if result.is_err() && !self.pair.clean_up() {
            self.restart();
        }
        result
    }
}

/// Runs a stream; if it fails, makes it short and fails the test with it.
fn run_or_explain(bench: &mut Bench, steps: &[Step], repeat: &str) {
    let Err(failure) = bench.run(steps) else {
        return;
    };
    eprintln!(
        "a difference in {}; the stream is being made short",
        failure.mismatch.field
    );
    let found = shrink(bench, steps, &failure).or_else(|| {
        bench.restart();
        shrink(bench, steps, &failure)
    });
    match found {
        Some((steps, failure)) => panic!("{}{repeat}", explained(&steps, &failure)),
        None => {
            let step = steps.get(failure.step..=failure.step).unwrap_or_default();
            let shown = explained(step, &failure);
            panic!("{shown}this shows only after what ran before\n{repeat}")
        }
    }
}

fn explained(steps: &[Step], failure: &Failure) -> String {
    let found = &failure.mismatch;
    let lines: Vec<String> = steps.iter().map(|step| format!("  {step:?}\n")).collect();
    format!(
        "different: {}\n  zkraft: {}\n  other:  {}\nat the last of these steps:\n{}",
        found.field,
        found.zkraft,
        found.other,
        lines.concat()
    )
}

#[test]
fn random_requests_are_answered_alike() {
    let zookeeper = against() == Program::Zookeeper;
    if !zookeeper {
        skipped(
            "random requests against ZooKeeper",
            "ZKRAFT_DIFFERENTIAL_AGAINST is not set",
        );
    }
    let default = if zookeeper {
        OPERATIONS
    } else {
        OPERATIONS_ALONE
    };
    let operations = number("ZKRAFT_DIFFERENTIAL_OPERATIONS", default);
    let seed = number("ZKRAFT_DIFFERENTIAL_SEED", 1);
    let first = number("ZKRAFT_DIFFERENTIAL_FIRST", 0);

    let mut seeds = Rng::new(seed);
    let mut benches = [Bench::start(RICH), Bench::start(PLAIN)];
    let other = benches[0].pair.comparer.other;
    let began = Instant::now();
    let mut episode = 0;
    let total = loop {
        let seed_of_episode = seeds.next();
        episode += 1;
        if episode <= first {
            continue;
        }
        let steps = generate::episode(seed_of_episode, other);
        let repeat = format!(
            "repeat it: {}ZKRAFT_DIFFERENTIAL_SEED={seed} ZKRAFT_DIFFERENTIAL_FIRST={} \
             ZKRAFT_DIFFERENTIAL_OPERATIONS=1 cargo test --test differential random",
            if zookeeper {
                "ZKRAFT_DIFFERENTIAL_AGAINST=zookeeper "
            } else {
                ""
            },
            episode - 1
        );
        // The number alone decides on which servers, so that an episode can be repeated by itself.
        let plain = episode % PLAIN_SHARE == 0;
        run_or_explain(&mut benches[usize::from(plain)], &steps, &repeat);
        let done = benches.each_ref().map(|bench| &bench.pair.comparer);
        if done[0].coverage.operations + done[1].coverage.operations >= operations {
            let mut coverage = done[0].coverage.clone();
            coverage.add(&done[1].coverage);
            let mut met = done[0].met.clone();
            met.add(&done[1].met);
            break (coverage, met);
        }
    };
    let (coverage, met) = total;
    let seconds = began.elapsed().as_secs_f64();
    let done = coverage.operations;
    eprintln!(
        "{done} operations in {} episodes of seed {seed} against {other:?}: {seconds:.1} s, \
         {:.0}/s{}",
        episode - first,
        done as f64 / seconds,
        coverage.table()
    );
    let lines = || TABLE.iter().filter(|line| allowed(line.known, other));
    for line in lines() {
        let times = met.of(line.known);
        eprintln!(
            "known difference, {times} times: {} ({})",
            line.field, line.reason
        );
    }
    for (what, why) in LEFT_OUT.iter().filter(|_| other.is_zookeeper()) {
        eprintln!("left out: {what} ({why})");
    }
    // A part of a run may be poor.
    if first == 0 && operations >= OPERATIONS_ALONE {
        let mut gaps = coverage.gaps(other);
        let stale = lines().filter(|line| met.of(line.known) == 0);
        gaps.extend(stale.map(|line| format!("never met: {}", line.field)));
        assert!(
            gaps.is_empty(),
            "the stream is too poor:\n{}",
            gaps.join("\n")
        );
    }
    for bench in benches {
        bench.stop();
    }
}

#[test]
fn flink_is_answered_alike() {
    if against() == Program::Zkraft {
        skipped(
            "Flink's conversation with ZooKeeper",
            "ZKRAFT_DIFFERENTIAL_AGAINST is not set",
        );
    }
    let mut bench = Bench::start("");
    for (how, steps) in [("", flink::steps()), (" pipelined", flink::pipelined())] {
        let before = bench.pair.comparer.coverage.operations;
        let repeat = format!("Flink's conversation{how}");
        run_or_explain(&mut bench, &steps, &repeat);
        let asked: usize = steps.iter().map(Step::requests).sum();
        let answered = bench.pair.comparer.coverage.operations - before;
        assert!(
            answered >= asked as u64,
            "{answered} replies to {asked} requests"
        );
    }
    eprintln!(
        "Flink's conversation: {}",
        bench.pair.comparer.coverage.table()
    );
    bench.stop();
}

/// A mistake must be found, and by a stream of a few operations. Needs no ZooKeeper: the mistakes
/// are made between the server and the comparison.
#[test]
fn mistakes_are_found_and_made_short() {
    // With both servers alike nothing but the mistake can differ.
    let mut bench = Bench::start_against(Program::Zkraft, RICH);
    for mistake in lies::MISTAKES {
        bench.pair.lie = Some(mistake.lie);
        let mut seeds = Rng::new(1);
        let found = (0..EPISODES_PER_MISTAKE).find_map(|_| {
            let steps = generate::episode(seeds.next(), Other::Zkraft);
            let failure = bench.run(&steps).err()?;
            Some((steps, failure))
        });
        let Some((steps, failure)) = found else {
            panic!("not found: {}", mistake.name);
        };
        assert_eq!(failure.mismatch.field, mistake.field, "{}", mistake.name);
        let found = shrink(&mut bench, &steps, &failure);
        let (short, failure) = found.expect("it depends on the stream alone");
        eprintln!("{}: {}", mistake.name, explained(&short, &failure));
        let left: usize = short.iter().map(Step::requests).sum();
        assert!(
            left <= OPERATIONS_PER_MISTAKE,
            "{}: {left} operations left",
            mistake.name
        );
        bench.pair.lie = None;
    }
    bench.stop();
}

/// Episodes within which a mistake must show.
const EPISODES_PER_MISTAKE: usize = 20;
/// Requests that are enough to show any of the mistakes.
const OPERATIONS_PER_MISTAKE: usize = 6;

/// Says that a test did not check what its name claims. libtest has no such verdict.
fn skipped(test: &str, reason: &str) {
    use std::io::Write as _;
    let line = format!("SKIPPED {test}: {reason}\n");
    // Past the captured output; nothing depends on this line.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

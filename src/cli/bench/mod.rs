//! `zkraft bench`: load for anything that speaks the protocol, measured.
//!
//! ```text
//! args ──► mod: prepare, warm up, rounds in turn, clean up ──► report: table, JSON
//!           │ hand: one client that makes and removes znodes
//!           ▼
//!          drive: all clients in one loop ◄── script: what each client asks ◄── frames
//!           ▲
//!          echo: what the generator reaches without a server    process: /proc
//! ```

mod args;
mod drive;
mod echo;
mod frames;
mod hand;
mod process;
mod report;
mod script;

use std::io::{IsTerminal as _, Write};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub use args::{BenchArguments, Workload};

use drive::{Drive, Plan};
use echo::Echo;
use hand::Hand;
use report::{Ceiling, Memory, Report, Round, Server};
use script::{
    Changer, Checkpoints, Creates, Ephemerals, Fan, Fill, Keyed, Keys, LISTED, Numbered, Published,
    Script, Silent, Watcher,
};

/// How long the generator is measured against the bare echo.
const ECHO_SECONDS: f64 = 1.5;
/// How long a server is loaded before each round, after its first warm-up.
const ROUND_WARM_UP: Duration = Duration::from_millis(300);

/// Whether someone pressed Ctrl-C: the load ends, and what was made for it is removed.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ends a long work early, with an error, once it is not wanted any more.
fn check_interrupted() -> anyhow::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Measures, and writes the result to `out`.
///
/// # Errors
/// If a server cannot be reached or does not answer as it should.
pub fn run(arguments: &BenchArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    arguments.check()?;
    watch_for_interrupts()?;
    let mut bench = Bench::new(arguments)?;
    let measured = bench.measure();
    // Also after a failure, as far as the servers still answer.
    let cleaned = bench.clean_up();
    // What was measured holds, whatever is left behind.
    let written = measured.and_then(|report| report.write(arguments.json.as_deref(), out));
    both(written, cleaned)
}

/// Succeeds if both did; tells of both failures otherwise.
fn both(first: anyhow::Result<()>, second: anyhow::Result<()>) -> anyhow::Result<()> {
    match (first, second) {
        (Err(first), Err(second)) => bail!("{first:#}; then {second:#}"),
        (first, second) => first.and(second),
    }
}

/// A server under load, or the servers of an ensemble.
struct Target {
    name: String,
    /// At least one.
    addresses: Vec<SocketAddr>,
    pids: Vec<u32>,
    /// Where its znodes are.
    root: String,
    /// Whether something was created there.
    is_prepared: bool,
    /// Rounds that were begun: their new znodes must not have the names of earlier ones.
    rounds: usize,
}

impl Target {
    /// A client that prepares the load and removes what was made.
    fn hand(&self) -> anyhow::Result<Hand> {
        Hand::open(self.addresses[0])
    }

    /// Waits until what the hand asked for is done, and seen by all servers.
    fn finish(&self, mut hand: Hand) -> anyhow::Result<()> {
        hand.finish()?;
        let others = self.addresses.iter().skip(1);
        others
            .copied()
            .try_for_each(|other| Hand::open(other)?.catch_up())
    }
}

struct Bench<'a> {
    arguments: &'a BenchArguments,
    targets: Vec<Target>,
    progress: ProgressBar,
}

impl<'a> Bench<'a> {
    fn new(arguments: &'a BenchArguments) -> anyhow::Result<Self> {
        let target = |name: &str, pids: &[u32]| {
            if let Some(pid) = pids.iter().find(|pid| process::cpu_of(&[**pid]).is_none()) {
                bail!("there is no process {pid}");
            }
            Ok(Target {
                name: name.to_owned(),
                addresses: resolve_all(name)?,
                pids: pids.to_vec(),
                root: format!("/zkraft-bench-{}", std::process::id()),
                is_prepared: false,
                rounds: 0,
            })
        };
        let mut targets = vec![target(&arguments.server, &arguments.pid)?];
        if let Some(versus) = &arguments.versus {
            targets.push(target(versus, &arguments.versus_pid)?);
        }
        let progress = if std::io::stderr().is_terminal() {
            ProgressBar::new(0)
        } else {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
        };
        progress.set_style(
            ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}")
                .expect("the template is well-formed"),
        );
        Ok(Self {
            arguments,
            targets,
            progress,
        })
    }

    fn measure(&mut self) -> anyhow::Result<Report> {
        let arguments = self.arguments;
        let workload = arguments.workload;
        let echo = workload.has_echo() && !arguments.no_echo;
        let ceiling = echo.then(|| self.measure_echo()).transpose()?;
        let mut servers = Vec::new();
        for number in 0..self.targets.len() {
            self.prepare(number)?;
            servers.push(Server::new(&self.targets[number].name));
        }
        if workload.is_counted() {
            for (number, server) in servers.iter_mut().enumerate() {
                let (round, memory) = self.count(number)?;
                server.rounds.push(round);
                server.memory = memory;
            }
        } else {
            for number in 0..self.targets.len() {
                let warm_up = Duration::from_secs_f64(arguments.warm_up);
                if !warm_up.is_zero() {
                    self.show(number, "warm-up");
                    self.round(number, Duration::ZERO, warm_up)?;
                }
            }
            let duration = Duration::from_secs_f64(arguments.seconds);
            for round in 1..=arguments.rounds {
                for (number, server) in servers.iter_mut().enumerate() {
                    self.show(number, &format!("round {round} of {}", arguments.rounds));
                    let measured = self.round(number, ROUND_WARM_UP, duration)?;
                    server.rounds.push(measured);
                }
            }
            for (server, target) in servers.iter_mut().zip(&self.targets) {
                server.memory = process::memory_of(&target.pids).map(|(now, peak)| Memory {
                    rss_bytes: now,
                    peak_bytes: peak,
                    each: None,
                });
            }
        }
        self.progress.finish_and_clear();
        Ok(Report::new(arguments, servers, ceiling))
    }

    fn show(&self, number: usize, what: &str) {
        let name = &self.targets[number].name;
        self.progress.set_message(format!("{name}: {what}"));
    }

    /// What the generator reaches and takes where nothing is done.
    fn measure_echo(&mut self) -> anyhow::Result<Ceiling> {
        self.progress.set_message("bare echo");
        // A ceiling is what is reached without a schedule.
        let arguments = BenchArguments {
            rate: None,
            ..self.arguments.clone()
        };
        let echo = Echo::start(arguments.size as usize)?;
        let mut target = Target {
            name: "bare echo".to_owned(),
            addresses: vec![echo.address],
            pids: Vec::new(),
            root: self.targets[0].root.clone(),
            is_prepared: false,
            rounds: 0,
        };
        let duration = Duration::from_secs_f64(ECHO_SECONDS);
        let round = round(
            &arguments,
            &mut target,
            &self.progress,
            ROUND_WARM_UP,
            Some(duration),
        )?;
        Ok(Ceiling {
            per_second: round.per_second,
            p50_us: round.latency_us.p50,
            generator_us: round.generator_us,
        })
    }

    fn round(
        &mut self,
        number: usize,
        warm_up: Duration,
        duration: Duration,
    ) -> anyhow::Result<Round> {
        round(
            self.arguments,
            &mut self.targets[number],
            &self.progress,
            warm_up,
            Some(duration),
        )
    }

    /// Makes a number of things and looks at the memory they take.
    fn count(&mut self, number: usize) -> anyhow::Result<(Round, Option<Memory>)> {
        let arguments = self.arguments;
        let things = match arguments.workload {
            Workload::Idle => arguments.clients,
            _ => arguments.keys,
        };
        self.progress.set_length(things.into());
        self.show(number, "loading");
        let target = &mut self.targets[number];
        let before = process::memory_of(&target.pids);
        let (plan, scripts, fan) = plan(arguments, target, Duration::ZERO, None);
        let tell = |count| self.progress.set_position(count);
        let began = Instant::now();
        let mut drive = Drive::open(&plan, scripts, fan, &target.pids, &tell)?;
        let opened = began.elapsed().as_secs_f64();
        let mut round = Round::from(drive.run()?);
        if arguments.workload == Workload::Idle {
            // The sessions were opened before the run, which had nothing to do.
            round.operations = things.into();
            round.seconds = opened;
            round.per_second = f64::from(things) / opened;
        }
        self.progress.set_message("at rest, before memory is read");
        if before.is_some() {
            drive.rest(Duration::from_secs_f64(arguments.settle))?;
        }
        let memory = before.zip(process::memory_of(&target.pids));
        drive.close()?;
        Ok((
            round,
            memory.map(|((before, _), (after, peak))| Memory {
                rss_bytes: after,
                peak_bytes: peak,
                each: Some((after as f64 - before as f64) / f64::from(things)),
            }),
        ))
    }

    /// Makes the znodes that the load needs.
    fn prepare(&mut self, number: usize) -> anyhow::Result<()> {
        self.show(number, "preparing");
        let arguments = self.arguments;
        let target = &mut self.targets[number];
        let root = target.root.clone();
        let mut hand = target.hand()?;
        target.is_prepared = true;
        hand.create(root.as_bytes(), b"")?;
        let mut keys = Keys::new(&root, arguments.keys as usize);
        let data = vec![b'd'; arguments.size as usize];
        match arguments.workload {
            Workload::Session | Workload::Idle | Workload::Create | Workload::Ephemeral => {}
            Workload::FanOut => hand.create(format!("{root}/watched").as_bytes(), &data)?,
            Workload::Flink => {
                for client in 0..arguments.clients {
                    let job = job(&root, client as usize);
                    hand.create(job.as_bytes(), b"")?;
                }
            }
            Workload::Fill => {
                for parent in 0..keys.parents() {
                    hand.create(keys.parent(parent), b"")?;
                }
            }
            Workload::Get | Workload::Set | Workload::Mixed | Workload::Published => {
                self.progress.set_length(arguments.keys.into());
                for number in 0..arguments.keys as usize {
                    if number % script::KEYS_PER_PARENT == 0 {
                        hand.create(keys.parent(number / script::KEYS_PER_PARENT), b"")?;
                        self.progress.set_position(number as u64);
                    }
                    hand.create(keys.key(number), &data)?;
                }
            }
        }
        if arguments.workload == Workload::Published {
            let listed = format!("{root}/listed");
            hand.create(listed.as_bytes(), b"")?;
            let mut child = Numbered::new(&format!("{listed}/child-"), 4);
            for number in 0..LISTED {
                hand.create(child.at(number), b"")?;
            }
        }
        target.finish(hand)
    }

    /// Removes what was made, unless it is to be kept.
    fn clean_up(&mut self) -> anyhow::Result<()> {
        // Whoever presses Ctrl-C from now on ends the clean-up too.
        INTERRUPTED.store(false, Ordering::Relaxed);
        let mut cleaned = Ok(());
        for target in &self.targets {
            if !target.is_prepared || self.arguments.keep {
                continue;
            }
            self.progress
                .set_message(format!("{}: removing the znodes", target.name));
            let tell = |count| self.progress.set_position(count);
            let removed = target
                .hand()
                .and_then(|mut hand| hand.remove_tree(&target.root, &tell))
                .with_context(|| format!("cannot remove {} from {}", target.root, target.name));
            // The other one is cleaned all the same.
            cleaned = both(cleaned, removed);
        }
        self.progress.finish_and_clear();
        cleaned
    }
}

/// Where the znodes of one client of the `flink` load are.
fn job(root: &str, client: usize) -> String {
    format!("{root}/job-{client:04}")
}

fn round(
    arguments: &BenchArguments,
    target: &mut Target,
    progress: &ProgressBar,
    warm_up: Duration,
    duration: Option<Duration>,
) -> anyhow::Result<Round> {
    if arguments.workload == Workload::Flink && target.is_prepared {
        prepare_jobs(arguments, target)?;
    }
    let (plan, scripts, fan) = plan(arguments, target, warm_up, duration);
    target.rounds += 1;
    let began = Instant::now();
    let whole = duration.map_or(0, |duration| (warm_up + duration).as_secs());
    progress.set_length(whole);
    let tell = |_| progress.set_position(began.elapsed().as_secs());
    let mut drive = Drive::open(&plan, scripts, fan, &target.pids, &tell)
        .with_context(|| target.name.clone())?;
    let measured = drive.run().with_context(|| target.name.clone())?;
    drive.close()?;
    Ok(Round::from(measured))
}

/// A job's counter and checkpoints, new for each round: versions count from zero.
fn prepare_jobs(arguments: &BenchArguments, target: &Target) -> anyhow::Result<()> {
    let mut hand = target.hand()?;
    for client in 0..arguments.clients as usize {
        let job = round_job(target, client);
        hand.create(job.as_bytes(), b"")?;
        hand.create(format!("{job}/checkpoints").as_bytes(), b"")?;
        let counter = format!("{job}/checkpoint_id_counter");
        hand.create(counter.as_bytes(), &1_i32.to_be_bytes())?;
    }
    target.finish(hand)
}

fn round_job(target: &Target, client: usize) -> String {
    format!("{}/round-{:04}", job(&target.root, client), target.rounds)
}

/// What the clients of a round do.
fn plan(
    arguments: &BenchArguments,
    target: &Target,
    warm_up: Duration,
    duration: Option<Duration>,
) -> (Plan, Vec<Box<dyn Script>>, Fan) {
    let plan = Plan {
        addresses: target.addresses.clone(),
        depth: arguments.depth as usize,
        rate: arguments.rate,
        warm_up,
        duration,
        session_timeout_ms: arguments.session_timeout,
        churn: arguments.workload == Workload::Session,
        seed: arguments.seed.wrapping_add(target.rounds as u64),
    };
    let root = &target.root;
    let clients = arguments.clients as usize;
    let keys = Keys::new(root, arguments.keys as usize);
    let data = vec![b'd'; arguments.size as usize];
    let own = |what: &str, client: usize| {
        let prefix = format!("{root}/{what}-{:03}-{client:05}-", target.rounds);
        Numbered::new(&prefix, 9)
    };
    let keyed = |read_percent: usize| -> Box<dyn Script> {
        Box::new(Keyed {
            keys: keys.clone(),
            data: data.clone(),
            read_percent,
        })
    };
    let script = |client: usize| -> Box<dyn Script> {
        match arguments.workload {
            Workload::Get => keyed(100),
            Workload::Set => keyed(0),
            Workload::Mixed => keyed(arguments.read_percent.into()),
            Workload::Create => Box::new(Creates {
                path: own("create", client),
                created: 0,
                data: data.clone(),
            }),
            Workload::Published => Box::new(Published {
                keys: keys.clone(),
                listed: format!("{root}/listed").into_bytes(),
                own: own("mix", client),
                data: data.clone(),
                created: 0,
                deleted: 0,
            }),
            Workload::Ephemeral => Box::new(Ephemerals {
                path: own("ephemeral", client),
                data: data.clone(),
                asked: 0,
            }),
            Workload::Session => Box::new(Silent(&["session"])),
            Workload::Idle => Box::new(Silent(&["idle"])),
            Workload::FanOut => Box::new(Watcher {
                path: format!("{root}/watched").into_bytes(),
                is_armed: false,
            }),
            Workload::Fill => Box::new(Fill {
                keys: keys.clone(),
                next: keys.count * client / clients,
                end: keys.count * (client + 1) / clients,
                data: data.clone(),
            }),
            Workload::Flink => Box::new(Checkpoints {
                job: round_job(target, client),
                number: 0,
                step: 0,
                asked: 0,
            }),
        }
    };
    let mut scripts: Vec<_> = (0..clients).map(script).collect();
    let mut fan = Fan::default();
    if arguments.workload == Workload::FanOut {
        fan.watchers = clients;
        scripts.push(Box::new(Changer {
            path: format!("{root}/watched").into_bytes(),
            data,
        }));
    }
    (plan, scripts, fan)
}

/// The addresses of a list of servers.
fn resolve_all(names: &str) -> anyhow::Result<Vec<SocketAddr>> {
    names.split(',').map(|name| resolve(name.trim())).collect()
}

fn resolve(name: &str) -> anyhow::Result<SocketAddr> {
    let mut addresses = name
        .to_socket_addrs()
        .with_context(|| format!("{name:?} is not an address: write HOST:PORT"))?;
    // Servers listen on IPv4 more often, and "localhost" may be both.
    let first = addresses.next();
    let found = addresses.find(SocketAddr::is_ipv4).or(first);
    found.with_context(|| format!("{name} has no address"))
}

/// From now on Ctrl-C is asked for at good moments; the second one ends the process.
fn watch_for_interrupts() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                let _ = tokio::signal::ctrl_c().await;
                INTERRUPTED.store(true, Ordering::Relaxed);
                let _ = tokio::signal::ctrl_c().await;
                std::process::exit(130);
            });
        })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_does_not_hide_another() {
        let failed = |message: &'static str| Err(anyhow::Error::msg(message));
        assert!(both(Ok(()), Ok(())).is_ok());
        let message = |first, second| both(first, second).unwrap_err().to_string();
        assert_eq!(message(failed("a"), Ok(())), "a");
        assert_eq!(message(Ok(()), failed("b")), "b");
        assert_eq!(message(failed("a"), failed("b")), "a; then b");
    }

    #[test]
    fn servers_are_named_in_a_list() {
        let named = |names| resolve_all(names).map(|all| all.iter().map(SocketAddr::port).sum());
        assert_eq!(named("127.0.0.1:7").ok(), Some(7_u16));
        assert_eq!(named("127.0.0.1:7, 127.0.0.2:8,[::1]:9").ok(), Some(24));
        for wrong in ["", "127.0.0.1:7,", "127.0.0.1:7,127.0.0.1"] {
            let message = named(wrong).unwrap_err().to_string();
            assert!(message.contains("write HOST:PORT"), "{message}");
        }
    }
}

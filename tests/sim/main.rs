//! The simulator: the core of one server or of several under faults, in one thread, from one seed.
//!
//! A run ([`world::World`]) draws its parameters and every delay, fault and request from its seed;
//! the same seed gives the same run to the byte. The checkers ([`check`]) compare everything that
//! clients, disk and state show with a naive model that was told the same log.
//!
//! * `cargo test --test sim`: the fixed seeds, fresh ones, and the sabotages that must be caught.
//! * `SIM_SEEDS=1000 cargo test --release --test sim fresh`: a longer search. `SIM_HOURS=10` goes
//!   on until there were so many hours of clusters under load; `SIM_TIMES=10` makes each run's load
//!   and faults last ten times as long, which is another run than the seed's own. So is one whose
//!   faults are aimed as well, as those of every other fresh seed are: `SIM_AIMED=1` aims all, `0`
//!   none.
//! * `SIM_SEED=7 cargo test --test sim one -- --nocapture`: one run, every event printed; with
//!   `SIM_SABOTAGE=StaleReads` one that is sabotaged.

mod check;
mod client;
mod differential;
mod disk;
mod met;
mod mix;
mod model;
mod params;
mod reply;
mod rng;
mod sabotage;
mod seeds;
mod stats;
mod trace;
mod workload;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use check::{Group, Violation};
use params::Plan;
use sabotage::Sabotage;
use stats::Stats;
use trace::Telling;
use world::World;

// A run is made of small allocations that live shortly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Fresh seeds in an ordinary run of the tests.
const FRESH: u64 = 60;
/// How often a long search says how far it has come.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What came out of a run.
struct Run {
    plan: Plan,
    /// Of the trace, if there is one.
    hash: u64,
    stats: Stats,
    violation: Option<Violation>,
    tail: Vec<String>,
}

/// Of runs that end because more disks were lost than a membership can bear there were 5 in some
/// 280 hours of clusters.
const BEYOND_REPAIR_PER_HOUR: f64 = 0.1;
const BEYOND_REPAIR_FEW: u64 = 2;

impl Run {
    fn new(plan: Plan, telling: Telling) -> Self {
        let mut world = World::new(plan, telling);
        // An assertion of the server is a finding like any other, and needs its seed.
        let verdict = catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into()));
            let what = text.unwrap_or_else(|| "no message".into());
            Err(Violation {
                group: Group::Panic,
                what,
            })
        });
        Self {
            plan,
            hash: world.trace.hash(),
            stats: world.stats,
            violation: verdict.err(),
            tail: world.trace.tail().map(String::from).collect(),
        }
    }

    /// How often that happens is to be known, and by what.
    fn say_if_beyond_repair(&self) {
        if self.stats.beyond_repair > 0 {
            println!("{}: beyond repair", self.plan);
        }
    }

    /// # Panics
    /// If something was violated, with all that is needed to find out why.
    fn check(&self) {
        let Some(Violation { group, what }) = &self.violation else {
            return;
        };
        let told = match self.tail.is_empty() {
            true => &Self::new(self.plan, Telling::Kept),
            false => self,
        };
        for line in &told.tail {
            println!("{line}");
        }
        panic!(
            "seed {}: {group:?}: {what}\n\
             repeat: {} cargo test --test sim one -- --nocapture",
            self.plan.seed, self.plan
        );
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number")),
    )
}

/// Whether faults are aimed as well, if that is said.
fn is_aimed() -> Option<bool> {
    number("SIM_AIMED").map(|aimed| aimed != 0)
}

/// Not a test of its own: what a range of seeds finds, one line per violation.
#[test]
fn survey() {
    let Some(count) = number("SIM_SURVEY") else {
        return;
    };
    let first = number("SIM_FIRST").unwrap_or(1);
    let (times, aimed) = (number("SIM_TIMES").unwrap_or(1), is_aimed());
    std::panic::set_hook(Box::new(|_| {}));
    let mut all = Stats::default();
    for seed in first..first + count {
        let plan = Plan {
            times,
            aimed: aimed.unwrap_or(false),
            ..Plan::of(seed)
        };
        let run = Run::new(plan, Telling::Nothing);
        all.add(&run.stats);
        run.say_if_beyond_repair();
        if let Some(Violation { group, what }) = run.violation {
            println!("{seed} {group:?}: {}", &what[..what.len().min(500)]);
        }
    }
    println!("{all}");
}

/// What has been run, and what is to be.
struct Search<P> {
    plans: P,
    /// Begun so far.
    runs: u64,
    all: Stats,
    found: Option<Run>,
    told: Instant,
}

/// Runs these, as many at a time as there are processors, until one finds something or there were
/// enough: as many runs, and of those that are over these statistics.
fn run_all(
    plans: impl Iterator<Item = Plan> + Send,
    are_enough: impl Fn(u64, &Stats) -> bool + Sync,
) -> Stats {
    let search = Mutex::new(Search {
        plans,
        runs: 0,
        all: Stats::default(),
        found: None,
        told: Instant::now(),
    });
    let lock = || search.lock().expect("runs catch panics");
    let next = || {
        let mut search = lock();
        if search.found.is_some() || are_enough(search.runs, &search.all) {
            return None;
        }
        search.runs += 1;
        search.plans.next()
    };
    let work = || {
        while let Some(plan) = next() {
            let run = Run::new(plan, Telling::Nothing);
            lock().count(run);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let search = search.into_inner().expect("runs catch panics");
    if let Some(run) = search.found {
        run.check();
    }
    println!("{}", search.all);
    search.all
}

impl<P> Search<P> {
    /// A run is over. Says now and then how far the search has come.
    fn count(&mut self, run: Run) {
        self.all.add(&run.stats);
        run.say_if_beyond_repair();
        if run.violation.is_some() {
            self.found.get_or_insert(run);
        }
        if self.told.elapsed() > TOLD_EVERY {
            self.told = Instant::now();
            println!(
                "{} runs, {:.1} hours under load, {:.1} of clusters",
                self.runs,
                self.all.loaded_hours(),
                self.all.cluster_hours()
            );
        }
    }
}

#[test]
fn fixed_seeds() {
    // Runs in which nothing happens would prove nothing.
    let plans = seeds::FIXED.iter().map(|seed| Plan::of(*seed));
    let aimed = seeds::AIMED.iter().map(|seed| Plan {
        aimed: true,
        ..Plan::of(*seed)
    });
    let long = seeds::LONG.iter().map(|(seed, aimed)| Plan {
        times: 10,
        aimed: *aimed,
        ..Plan::of(*seed)
    });
    let plans = plans.chain(aimed).chain(long);
    let missing = run_all(plans, |_, _| false).missing();
    assert!(missing.is_empty(), "no run had any {missing:?}");
}

/// Seeds that no one has run, from the clock: what they find is repeated by their number.
#[test]
fn fresh_seeds() {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let first = since.expect("after 1970").as_secs() * 1000;
    let times = number("SIM_TIMES").unwrap_or(1);
    let hours = number("SIM_HOURS").unwrap_or(0) as f64;
    let count = number("SIM_SEEDS").unwrap_or(FRESH);
    let aimed = is_aimed();
    let plans = (first..).map(|seed| Plan {
        times,
        aimed: aimed.unwrap_or(seed % 2 == 1),
        ..Plan::of(seed)
    });
    let all = run_all(plans, |runs, all| {
        runs >= count && all.cluster_hours() >= hours
    });
    // Such runs end early and prove little. More of them would be a server that makes itself depend
    // on lost disks.
    let few = BEYOND_REPAIR_FEW + (all.cluster_hours() * BEYOND_REPAIR_PER_HOUR) as u64;
    let count = all.beyond_repair;
    assert!(
        count <= few,
        "{count} runs ended beyond repair, and not {few}"
    );
}

/// One seed, `SIM_SEED`, with every event printed; with the sabotage named by `SIM_SABOTAGE`.
#[test]
fn one() {
    let seed = number("SIM_SEED");
    let sabotage = std::env::var("SIM_SABOTAGE").map_or(Sabotage::None, |name| {
        let found = sabotage::ALL.iter().map(|(sabotage, _)| *sabotage);
        let mut found = found.filter(|sabotage| format!("{sabotage:?}") == name);
        found.next().expect("SIM_SABOTAGE is one of sabotage::ALL")
    });
    let telling = match seed {
        Some(_) => Telling::Printed,
        None => Telling::Kept,
    };
    let plan = Plan {
        seed: seed.unwrap_or(1),
        sabotage,
        times: number("SIM_TIMES").unwrap_or(1),
        aimed: is_aimed().unwrap_or(false),
    };
    let run = Run::new(plan, telling);
    println!("{:?}, hash {:016x}", run.stats, run.hash);
    run.check();
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 100..105 {
        let [a, b] = [(); 2].map(|()| Run::new(Plan::of(seed), Telling::Kept));
        assert_eq!(
            (a.hash, a.stats.frames),
            (b.hash, b.stats.frames),
            "seed {seed}"
        );
    }
}

/// Each sabotage is noticed within a few seeds, by a checker that is there for it.
#[test]
fn sabotages_are_caught() {
    const SEEDS: u64 = 100;
    for (sabotage, groups) in sabotage::ALL {
        let caught = (1..=SEEDS).find_map(|seed| {
            let plan = Plan {
                sabotage: *sabotage,
                ..Plan::of(seed)
            };
            let violation = Run::new(plan, Telling::Nothing).violation?;
            Some((seed, violation))
        });
        let Some((seed, violation)) = caught else {
            panic!("{sabotage:?} was not caught in {SEEDS} seeds");
        };
        println!(
            "{sabotage:?}: seed {seed}: {:?}: {}",
            violation.group, violation.what
        );
        assert!(
            groups.contains(&violation.group),
            "{sabotage:?} was caught as {violation:?}"
        );
    }
}

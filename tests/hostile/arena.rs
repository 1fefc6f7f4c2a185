//! One fight: attackers of a kind against a server, with an honest client among them.
//!
//! Each round measures the honest client first alone and then under attack, so that what else the
//! machine does hits both. What is judged are medians over the rounds.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

use crate::client::{ALIVE, Client, Probe, Seen};
use crate::frames;
use crate::server::{Server, rss_kib};

/// How often and how long is measured.
#[derive(Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
    pub alone: Duration,
    pub attacked: Duration,
    /// Multiplies the number of sessions, znodes and so on where CI cannot have the full measure.
    pub scale: usize,
    /// Whether latencies decide: the short rounds of CI, on a machine that others use too, show a
    /// server that no longer answers, and not by how much it is slower.
    pub timed: bool,
}

/// An honest client may be served in at most this many times its latency ...
const RATIO: f64 = 2.0;
/// ... and a little more, in ms. Server, attackers and client share two processors with whatever
/// else runs there: half the requests must not feel that; one in a hundred may find both taken and
/// wait for the end of a slice of the scheduler.
const ALLOWANCE_P50_MS: f64 = 0.5;
const ALLOWANCE_P99_MS: f64 = 5.0;

/// What attackers know and tell.
#[derive(Clone)]
pub struct Ring {
    pub address: SocketAddr,
    pub notes: Arc<Notes>,
}

#[derive(Default)]
pub struct Notes {
    pub connections: AtomicU64,
    pub refused: AtomicU64,
    /// Frames, bytes, sessions: whatever the attack counts.
    pub done: AtomicU64,
}

pub type Attack = Arc<dyn Fn(Ring) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Makes an attack of an async function.
pub fn attack<F>(attack: impl Fn(Ring) -> F + Send + Sync + 'static) -> Attack
where
    F: Future<Output = ()> + Send + 'static,
{
    Arc::new(move |ring| Box::pin(attack(ring)))
}

impl Ring {
    /// A connection from one of many addresses, so that ports do not run out. `window`: the size of
    /// the receive buffer, where a client that does not read should cost the system little.
    pub async fn connect(&self, number: usize, window: Option<u32>) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = window {
            socket.set_recv_buffer_size(bytes)?;
        }
        let host = std::net::Ipv4Addr::new(127, 0, 0, 2 + (number % 200) as u8);
        socket.bind((host, 0).into())?;
        let stream = socket.connect(self.address).await;
        let count = match &stream {
            Ok(_) => &self.notes.connections,
            Err(_) => &self.notes.refused,
        };
        count.fetch_add(1, Ordering::Relaxed);
        stream
    }

    /// With a session that lives as long as asked for.
    pub async fn session(
        &self,
        number: usize,
        timeout_ms: i32,
        window: Option<u32>,
    ) -> std::io::Result<TcpStream> {
        let mut stream = self.connect(number, window).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&frames::hello(timeout_ms)).await?;
        Ok(stream)
    }

    pub fn did(&self, count: u64) {
        self.notes.done.fetch_add(count, Ordering::Relaxed);
    }
}

/// Attackers run in one thread that yields to everyone, so that the server is slow only by its own
/// fault. The thread ends, and all its connections with it, when this is dropped.
struct Attackers {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Attackers {
    fn start(attack: &Attack, ring: Ring) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (attack, stopped) = (attack.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            // SAFETY: setpriority changes a number of the calling thread and no memory.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let until_stopped = async {
                    while !stopped.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                };
                let attack = async {
                    attack(ring).await;
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = until_stopped => {}
                    () = attack => {}
                }
            });
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The highest memory of a process while this lives.
struct Peak {
    kib: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Peak {
    fn watch(pid: u32) -> Self {
        let (kib, stop): (Arc<AtomicU64>, Arc<AtomicBool>) = Default::default();
        let (seen, stopped) = (kib.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                seen.fetch_max(rss_kib(pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(25));
            }
        });
        Self { kib, stop }
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What is allowed.
pub struct Rules {
    /// Memory above what the server had before, in MiB, and how that follows from the design.
    pub memory_mib: u64,
    pub because: String,
    /// What may stay when the attackers are gone, in MiB: the log up to the next snapshot.
    pub stays_mib: u64,
}

pub struct Fight<'a> {
    pub server: &'a mut Server,
    pub effort: Effort,
    pub attack: Attack,
    pub rules: Rules,
}

impl Fight<'_> {
    /// Runs all rounds. Returns what the attackers noted.
    ///
    /// # Errors
    ///
    /// What rule was broken.
    pub fn run(self) -> Result<Arc<Notes>, String> {
        let Self {
            server,
            effort,
            attack,
            rules,
        } = self;
        let probe = Probe::start(server.address()).map_err(|error| error.to_string())?;
        std::thread::sleep(Duration::from_millis(300));
        let before_kib = server.rss_kib();
        let peak = Peak::watch(server.pid());
        let notes = Arc::<Notes>::default();
        let (mut alone, mut attacked) = (Vec::new(), Vec::new());
        let mut cpu = 0.0;
        let mut rounds = 0;
        let unfair = loop {
            probe.take();
            std::thread::sleep(effort.alone);
            alone.push(probe.take());
            let ring = Ring {
                address: server.address(),
                notes: notes.clone(),
            };
            let used = server.cpu_s();
            let attackers = Attackers::start(&attack, ring);
            std::thread::sleep(effort.attacked);
            attacked.push(probe.take());
            cpu += server.cpu_s() - used;
            drop(attackers);
            std::thread::sleep(Duration::from_millis(200));
            rounds += 1;
            if rounds == effort.rounds || rounds == 3 * effort.rounds {
                let unfair = judge(&alone, &attacked, effort.timed);
                if unfair.is_empty() || rounds > effort.rounds {
                    break unfair;
                }
                // What else the machine does may be the reason: more rounds tell.
                println!("    not yet: {}", unfair.join("; "));
            }
        };
        let peak_mib = peak.kib.load(Ordering::Relaxed).saturating_sub(before_kib) >> 10;
        drop(peak);
        let attacked_s =
            effort.attacked.as_secs_f64() * f64::from(u32::try_from(rounds).unwrap_or(1));
        println!(
            "    {} connections, {} not made, {} done; server {:.0} % of a processor",
            notes.connections.load(Ordering::Relaxed),
            notes.refused.load(Ordering::Relaxed),
            notes.done.load(Ordering::Relaxed),
            100.0 * cpu / attacked_s
        );
        let mut broken = unfair;
        println!(
            "    memory: {peak_mib} MiB more at most; allowed {} MiB: {}",
            rules.memory_mib, rules.because
        );
        if peak_mib > rules.memory_mib {
            broken.push(format!("{peak_mib} MiB more than before"));
        }
        let allowed_kib = before_kib + (16 << 10) + (rules.stays_mib << 10) + (peak_mib << 10) / 4;
        let after = comes_back(server, allowed_kib);
        println!(
            "    memory: {} MiB more after it",
            after.saturating_sub(before_kib) >> 10
        );
        if after > allowed_kib {
            broken.push(format!(
                "{} MiB are still there",
                (after - before_kib) >> 10
            ));
        }
        broken.extend(aftermath(server, probe).err());
        match broken.is_empty() {
            true => Ok(notes),
            false => Err(broken.join("; ")),
        }
    }
}

/// Waits until memory is given back, some time after the last attacker. Returns what is left.
fn comes_back(server: &Server, allowed_kib: u64) -> u64 {
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        let kib = server.rss_kib();
        if kib <= allowed_kib || Instant::now() > until {
            return kib;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Whether the server is well and honest clients have lost nothing.
pub fn aftermath(server: &mut Server, probe: Probe) -> Result<(), String> {
    if !server.is_running() {
        return Err(format!("the server has stopped:\n{}", server.log()));
    }
    let word = server.word("ruok");
    if word != "imok" {
        return Err(format!("ruok is answered with {word:?}"));
    }
    let session = probe.session;
    let look = || -> std::io::Result<Option<i64>> {
        let mut client = Client::open(server.address(), 10_000)?;
        let (error, stat) = client.call(&frames::read(1, frames::op::EXISTS, ALIVE, false))?;
        let owner = stat
            .get(44..52)
            .map(|owner| i64::from_be_bytes(owner.try_into().expect("8")));
        Ok(owner.filter(|_| error == 0))
    };
    // What attackers took is theirs until their sessions end: with a limit of sessions, all of it.
    let until = Instant::now() + Duration::from_secs(20);
    let owner = loop {
        match look() {
            Ok(owner) => break owner,
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(200)),
            Err(error) => return Err(format!("a new client is not served: {error}")),
        }
    };
    if owner != Some(session) {
        return Err("the ephemeral of the honest client is gone".into());
    }
    let served = probe.is_served();
    probe.stop()?;
    match served {
        true => Ok(()),
        false => Err("the honest client stopped".into()),
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Compares what was seen alone and under attack; prints it, and returns what is not allowed: that
/// a kind of request was not answered at all, and, if `timed`, that it took too long.
pub fn judge(alone: &[Seen], attacked: &[Seen], timed: bool) -> Vec<String> {
    let mut broken = Vec::new();
    type Kind = fn(&Seen) -> &crate::client::Latencies;
    let kinds: [(&str, Kind); 2] = [("get", |seen| &seen.get), ("set", |seen| &seen.set)];
    for (name, kind) in kinds {
        for (part, label, allowance) in [
            (500, "p50", ALLOWANCE_P50_MS),
            (990, "p99", ALLOWANCE_P99_MS),
        ] {
            let of = |rounds: &[Seen]| median(rounds.iter().map(|s| kind(s).quantile(part)));
            let (before, under) = (of(alone), of(attacked));
            let allowed = RATIO * before + allowance;
            let judged = if timed { "" } else { " (not judged)" };
            println!(
                "    {name} {label}: {before:.2} ms alone, {under:.2} ms attacked, \
                 allowed {allowed:.2}{judged}"
            );
            // Not a number: nothing was answered.
            if under.is_nan() || (timed && under > allowed) {
                broken.push(format!(
                    "{name} {label} is {under:.2} ms, allowed {allowed:.2}"
                ));
            }
        }
        let worst = attacked.iter().map(|seen| kind(seen).quantile(1000));
        let samples: usize = attacked.iter().map(|seen| kind(seen).count()).sum();
        println!(
            "    {name}: worst {:.1} ms of {samples}",
            worst.fold(0.0, f64::max)
        );
    }
    broken
}

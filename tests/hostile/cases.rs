//! The attacks.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::arena::{Attack, Effort, Fight, Ring, Rules, aftermath, attack, judge};
use crate::client::{Client, Probe};
use crate::frames::{self, Body, op};
use crate::server::{Data, Server};

pub enum End {
    Passed,
    Skipped(String),
}

type Case = fn(Effort) -> Result<End, String>;

pub const ALL: &[(&str, Case)] = &[
    (
        "half frames before the handshake",
        half_frames_before_the_handshake,
    ),
    ("half frames of sessions", half_frames_of_sessions),
    ("writers of a byte at a time", slow_writers),
    ("garbage", garbage),
    ("idle connections", idle_connections),
    ("idle sessions", idle_sessions),
    ("churn", churn),
    ("readers that do not read data", never_readers_of_data),
    ("readers that do not read lists", never_readers_of_lists),
    ("pipelines without end", endless_pipelines),
    ("large requests", large_requests),
    ("reads that multiply", multi_reads),
    ("lists of a huge directory", huge_directory),
    ("counts of a huge directory", huge_counts),
    ("watches without end", watches),
    ("watches of those that come back", rearmed_watches),
    ("events that nobody reads", unread_events),
    ("sessions without end", sessions),
    ("sessions that expire at once", expiry_storm),
    ("no more file descriptors", no_file_descriptors),
];

/// Every four-letter word, short timeouts, and limits that a run of seconds can reach.
const SETTINGS: &[(&str, &str)] = &[
    ("4lw.commands.whitelist", "*"),
    ("tickTime", "1000"),
    ("maxSessionTimeout", "60000"),
    ("nio.sessionlessCnxnTimeout", "60000"),
    ("unsentMaxBytes", "67108864"),
    ("largeRequestMaxBytes", "67108864"),
    ("watchMaxBytes", "67108864"),
    ("watchMaxBytesPerClient", "16777216"),
];
const MIB: usize = 1 << 20;
/// What all connections may leave unsent, and large requests under way, by these settings.
const LIMIT_MIB: u64 = 64;
/// The log that is kept in memory until a snapshot is taken.
const LOG_MIB: u64 = 64;
/// Where nobody reads: the smallest window that the system gives.
const NO_WINDOW: Option<u32> = Some(4_096);

fn start() -> Server {
    Server::start(Data::InMemory, SETTINGS, None)
}

fn start_with(settings: &[(&str, &str)]) -> Server {
    Server::start(Data::InMemory, &[SETTINGS, settings].concat(), None)
}

fn fails(error: impl std::fmt::Display) -> String {
    format!("while preparing: {error}")
}

/// A fight in which memory may grow by `mib`.
fn fight(
    server: &mut Server,
    effort: Effort,
    attack: Attack,
    mib: u64,
    because: &str,
) -> Result<End, String> {
    fight_with_writes(server, effort, attack, mib, 0, because)
}

/// The same where so many MiB of log may be left by what was written.
fn fight_with_writes(
    server: &mut Server,
    effort: Effort,
    attack: Attack,
    mib: u64,
    stays_mib: u64,
    because: &str,
) -> Result<End, String> {
    let rules = Rules {
        memory_mib: mib,
        because: because.to_owned(),
        stays_mib,
    };
    let fight = Fight {
        server,
        effort,
        attack,
        rules,
    };
    fight.run().map(|_| End::Passed)
}

/// Opens so many connections, some at a time, and keeps them.
async fn crowd(
    ring: &Ring,
    count: usize,
    per_second: usize,
    timeout_ms: Option<i32>,
    window: Option<u32>,
) -> Vec<TcpStream> {
    let mut all = Vec::with_capacity(count);
    let start = Instant::now();
    for number in 0..count {
        let stream = match timeout_ms {
            Some(timeout_ms) => ring.session(number, timeout_ms, window).await,
            None => ring.connect(number, window).await,
        };
        all.extend(stream.ok());
        pace(start, number + 1, per_second).await;
    }
    all
}

/// Sleeps if `done` is more than `per_second` allows since the start.
async fn pace(start: Instant, done: usize, per_second: usize) {
    let due = Duration::from_secs_f64(done as f64 / per_second as f64);
    if let Some(early) = due
        .checked_sub(start.elapsed())
        .filter(|e| e.as_millis() > 0)
    {
        sleep(early).await;
    }
}

/// Reads and forgets, in the background.
fn drain(stream: tokio::net::tcp::OwnedReadHalf) {
    tokio::spawn(async move {
        let mut stream = stream;
        let mut buffer = vec![0; 64 << 10];
        while matches!(stream.read(&mut buffer).await, Ok(count) if count > 0) {}
    });
}

/// The length of a frame of nearly 1 MiB, and the beginning of it.
fn begun(bytes: usize) -> Vec<u8> {
    let mut begun = 1_000_000_i32.to_be_bytes().to_vec();
    begun.resize(4 + bytes, 0);
    begun
}

/// The length of a handshake and half of it; half a length; far too much.
fn half_frame(number: usize) -> Vec<u8> {
    match number % 3 {
        0 => frames::hello(10_000)[..20].to_vec(),
        1 => vec![0, 0],
        _ => begun(1_000),
    }
}

/// Whether each of some connections with half a frame is closed, however slow the machine is.
fn half_frames_end(address: SocketAddr) -> std::io::Result<bool> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let mut all = Vec::new();
    for number in 0..30 {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&half_frame(number))?;
        all.push(stream);
    }
    let late = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
    let is_closed = |stream: &mut std::net::TcpStream| match stream.read(&mut [0; 1]) {
        Ok(read) => read == 0,
        Err(error) => !late.contains(&error.kind()),
    };
    Ok(all.iter_mut().all(is_closed))
}

/// Before the handshake nobody may announce more than a handshake, and none may wait for ever.
fn half_frames_before_the_handshake(effort: Effort) -> Result<End, String> {
    let mut server = start_with(&[("nio.sessionlessCnxnTimeout", "1000")]);
    let attack = attack(|ring: Ring| async move {
        let mut all = crowd(&ring, 2_000, 4_000, None, None).await;
        for (number, stream) in all.iter_mut().enumerate() {
            let _ = stream.write_all(&half_frame(number)).await;
        }
        for mut stream in all {
            // Closed by the server, or this waits until the end of the round.
            if matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)) {
                ring.did(1);
            }
        }
    });
    let rules = Rules {
        memory_mib: 16 + 2_000 * 12 / 1024,
        because: "12 KiB for each of 2,000".into(),
        stays_mib: 0,
    };
    let notes = Fight {
        server: &mut server,
        effort,
        attack,
        rules,
    }
    .run()?;
    let closed = notes.done.load(Ordering::Relaxed);
    let made = notes.connections.load(Ordering::Relaxed);
    let expired = server.metric("sessionless_connections_expired");
    println!("    {closed} of {made} closed by the server, {expired} for their silence");
    if !half_frames_end(server.address()).map_err(fails)? {
        return Err("a connection was not closed".into());
    }
    // How many come to their end in a short round depends on what else the machine does.
    match (!effort.timed || closed * 10 >= made * 9) && expired > 0.0 {
        true => Ok(End::Passed),
        false => Err(format!("only {closed} of {made} connections were closed")),
    }
}

fn half_frames_of_sessions(effort: Effort) -> Result<End, String> {
    let mut server = start();
    let attack = attack(|ring: Ring| async move {
        let mut all = crowd(&ring, 600, 2_000, Some(30_000), None).await;
        // Half of them announce 1 MB and send hardly anything, the others send nearly all of it.
        for (number, stream) in all.iter_mut().enumerate() {
            if number % 2 == 0 {
                let _ = stream.write_all(&begun(100)).await;
                ring.did(1);
            }
        }
        let halves = all.into_iter().skip(1).step_by(2).map(|mut stream| {
            let ring = ring.clone();
            tokio::spawn(async move {
                let _ = stream.write_all(&begun(950_000)).await;
                ring.did(1);
                // Kept open.
                let _ = stream.read(&mut [0; 64]).await;
                let _ = stream.read(&mut [0; 64]).await;
            })
        });
        let halves: Vec<_> = halves.collect();
        for half in halves {
            let _ = half.await;
        }
    });
    // Buffers double as they grow.
    let mib = 2 * LIMIT_MIB + 600 * (128 + 16) / 1024 + 16;
    let because = "twice largeRequestMaxBytes, and 128 KiB for each of 600";
    fight(&mut server, effort, attack, mib, because)
}

fn slow_writers(effort: Effort) -> Result<End, String> {
    let mut server = start();
    let attack = attack(|ring: Ring| async move {
        let mut all = crowd(&ring, 400, 2_000, Some(10_000), None).await;
        let frame = [frames::get(1, "/probe"), frames::ping()].concat();
        for byte in frame.iter().cycle() {
            let start = Instant::now();
            for (number, stream) in all.iter_mut().enumerate() {
                let _ = stream.write_all(&[*byte]).await;
                pace(start, number + 1, 2_000).await;
            }
            ring.did(all.len() as u64);
        }
    });
    fight(
        &mut server,
        effort,
        attack,
        24,
        "16 KiB for each of 400, and 16 MiB",
    )
}

/// A generator of numbers that is the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Random bytes, lengths that cannot be, and honest frames with some bytes changed.
fn garbage(effort: Effort) -> Result<End, String> {
    let mut server = start();
    let attack = attack(|ring: Ring| async move {
        let mut numbers = Numbers(0x5eed + ring.notes.done.load(Ordering::Relaxed));
        let honest = [
            frames::get(1, "/probe"),
            frames::list(2, "/"),
            frames::set(3, "/nowhere", b"data"),
            frames::create(4, "/probe/none/none", b"data", 0),
            frames::add_watch(5, "/probe", 1),
            frames::set_watches(&["/a".into(), "/b".into()]),
            frames::multi_read(6, "/probe", 3),
            frames::ask(7, op::GET_EPHEMERALS, "/"),
            frames::ping(),
        ];
        let lengths = [-1, i32::MIN, i32::MAX, 0, 1_048_576, 0x1603_0100];
        let start = Instant::now();
        for number in 0.. {
            let stream = match number % 2 {
                0 => ring.connect(number, None).await,
                _ => ring.session(number, 4_000, None).await,
            };
            let Ok(mut stream) = stream else { continue };
            let bytes: Vec<u8> = match numbers.below(3) {
                0 => (0..1 + numbers.below(300))
                    .map(|_| numbers.next() as u8)
                    .collect(),
                1 => {
                    let length = lengths[numbers.below(lengths.len())];
                    Body::default().int(length).long(numbers.next() as i64).0
                }
                _ => {
                    let mut frame = honest[numbers.below(honest.len())].clone();
                    for _ in 0..1 + numbers.below(4) {
                        let at = 4 + numbers.below(frame.len() - 4);
                        frame[at] = numbers.next() as u8;
                    }
                    frame
                }
            };
            let _ = stream.write_all(&bytes).await;
            tokio::spawn(async move {
                // Some stay a while.
                let mut buffer = [0; 512];
                let answer = stream.read(&mut buffer);
                let _ = tokio::time::timeout(Duration::from_millis(200), answer).await;
            });
            ring.did(1);
            pace(start, number + 1, 700).await;
        }
    });
    fight(
        &mut server,
        effort,
        attack,
        32,
        "32 KiB for each of some hundreds at a time",
    )?;
    let log = server.log();
    println!("    {} lines of log", log.lines().count());
    match log.contains("panic") {
        true => Err(format!("the log tells of a panic:\n{log}")),
        false => bounded_log(&server),
    }
}

/// Whatever clients do, the log grows by lines that can be counted.
fn bounded_log(server: &Server) -> Result<End, String> {
    const LINES_MAX: usize = 200;
    let lines = server.log().lines().count();
    match lines <= LINES_MAX {
        true => Ok(End::Passed),
        false => Err(format!("{lines} lines of log")),
    }
}

const IDLE: usize = 10_000;
/// What a connection may take that does nothing, in bytes; with a session and without.
const IDLE_BYTES: usize = 16 << 10;

fn idle(effort: Effort, timeout_ms: Option<i32>) -> Result<End, String> {
    if let Err(why) = files_for(IDLE) {
        return Ok(End::Skipped(why));
    }
    let mut server = start();
    let before = server.rss_kib();
    let ring = Ring {
        address: server.address(),
        notes: Arc::default(),
    };
    // Opened once, and before anything is measured: here it matters that they are there.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(fails)?;
    let probe = Probe::start(server.address()).map_err(fails)?;
    std::thread::sleep(Duration::from_millis(300));
    probe.take();
    let (mut alone, mut attacked) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        std::thread::sleep(effort.alone);
        alone.push(probe.take());
    }
    let mut all = runtime.block_on(crowd(&ring, IDLE, 5_000, timeout_ms, None));
    if timeout_ms.is_some() {
        runtime.block_on(async {
            for stream in &mut all {
                let _ = stream.read(&mut [0; 64]).await;
            }
        });
    }
    std::thread::sleep(Duration::from_secs(2));
    let bytes = (server.rss_kib().saturating_sub(before) << 10) as usize / all.len().max(1);
    println!(
        "    {} connections, {bytes} bytes each; an empty server has {} MiB",
        all.len(),
        before >> 10
    );
    probe.take();
    for _ in 0..effort.rounds {
        std::thread::sleep(effort.alone);
        attacked.push(probe.take());
    }
    let mut broken = judge(&alone, &attacked, effort.timed);
    if all.len() < IDLE {
        broken.push(format!("only {} connections", all.len()));
    }
    if bytes > IDLE_BYTES {
        broken.push(format!(
            "{bytes} bytes for each connection, allowed {IDLE_BYTES}"
        ));
    }
    drop(all);
    drop(runtime);
    broken.extend(aftermath(&mut server, probe).err());
    match broken.is_empty() {
        true => Ok(End::Passed),
        false => Err(broken.join("; ")),
    }
}

fn idle_connections(effort: Effort) -> Result<End, String> {
    idle(effort, None)
}

fn idle_sessions(effort: Effort) -> Result<End, String> {
    idle(effort, Some(60_000))
}

/// Raises what this process may open. The error says why it is not enough.
fn files_for(connections: usize) -> Result<(), String> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit writes one `rlimit` through a pointer that is valid for the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let needed = connections as u64 + 300;
    if limit.rlim_max < needed {
        let most = limit.rlim_max;
        return Err(format!(
            "{needed} open files are needed, the hard limit is {most}"
        ));
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: setrlimit reads one initialised `rlimit` through a pointer valid for the call.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    Ok(())
}

/// Connections that come and go, with sessions and without, in order and not.
fn churn(effort: Effort) -> Result<End, String> {
    let mut server = start();
    let attack = attack(|ring: Ring| async move {
        let start = Instant::now();
        for number in 0.. {
            let stream = match number % 4 {
                0 => ring.session(number, 4_000, None).await,
                _ => ring.connect(number, None).await,
            };
            if let Ok(stream) = stream {
                if number % 2 == 0 {
                    // A reset instead of an orderly end.
                    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                }
                ring.did(1);
            }
            pace(start, number + 1, 1_500).await;
        }
    });
    fight(
        &mut server,
        effort,
        attack,
        48,
        "16 MiB, and 2 KiB for each session not expired yet",
    )?;
    bounded_log(&server)
}

fn never_readers_of_data(effort: Effort) -> Result<End, String> {
    let mut server = start();
    let mut owner = Client::open(server.address(), 60_000).map_err(fails)?;
    let big = vec![b'z'; 1_000_000];
    owner
        .all([frames::create(1, "/big", &big, 0)].into_iter())
        .map_err(fails)?;
    let attack = attack(|ring: Ring| async move {
        let mut all = crowd(&ring, 300, 1_000, Some(30_000), NO_WINDOW).await;
        let one_by_one = frames::get(2, "/big").repeat(20);
        let at_once = frames::multi_read(2, "/big", 20);
        for (number, stream) in all.iter_mut().enumerate() {
            let wanted = if number % 10 == 0 {
                &at_once
            } else {
                &one_by_one
            };
            let _ = stream.write_all(wanted).await;
            ring.did(20);
        }
        sleep(Duration::from_secs(60)).await;
    });
    let mib = 3 * LIMIT_MIB + 300 * 64 / 1024 + 16;
    let because =
        "unsentMaxBytes for large replies, twice for all others, and 64 KiB for each of 300";
    fight(&mut server, effort, attack, mib, because)
}

/// Fills a directory.
fn fill(server: &Server, path: &str, children: usize) -> Result<Client, String> {
    let mut owner = Client::open(server.address(), 60_000).map_err(fails)?;
    let names = (0..children).map(|n| frames::create(1, &format!("{path}/n{n:08}"), b"", 0));
    let all = std::iter::once(frames::create(1, path, b"", 0)).chain(names);
    owner.all(all).map_err(fails)?;
    Ok(owner)
}

fn never_readers_of_lists(effort: Effort) -> Result<End, String> {
    let mut server = start();
    let _owner = fill(&server, "/dir", 50_000)?;
    let attack = attack(|ring: Ring| async move {
        let mut all = crowd(&ring, 200, 1_000, Some(30_000), NO_WINDOW).await;
        // Some behind a write, which must not make everyone wait for the lists.
        let lists = frames::list(2, "/dir").repeat(20);
        let behind = [frames::set(1, "/nowhere", b""), lists.clone()].concat();
        for (number, stream) in all.iter_mut().enumerate() {
            let wanted = if number % 2 == 0 { &lists } else { &behind };
            let _ = stream.write_all(wanted).await;
            ring.did(20);
        }
        sleep(Duration::from_secs(60)).await;
    });
    let mib = 3 * LIMIT_MIB + 200 * 64 / 1024 + 16;
    let because =
        "unsentMaxBytes for large replies, twice for all others, and 64 KiB for each of 200";
    fight(&mut server, effort, attack, mib, because)
}

fn endless_pipelines(effort: Effort) -> Result<End, String> {
    let mut server = start();
    let attack = attack(|ring: Ring| async move {
        let all = crowd(&ring, 8, 1_000, Some(30_000), NO_WINDOW).await;
        let million = 1_000_000;
        let gets = frames::get(2, "/probe").repeat(1_000);
        let sets = frames::set(2, "/nowhere", b"some data").repeat(1_000);
        for (number, mut stream) in all.into_iter().enumerate() {
            let (ring, some) = (
                ring.clone(),
                if number % 4 == 0 { &sets } else { &gets }.clone(),
            );
            tokio::spawn(async move {
                for _ in 0..million / 1_000 {
                    if stream.write_all(&some).await.is_err() {
                        return;
                    }
                    ring.did(1_000);
                    sleep(Duration::from_millis(20)).await;
                }
            });
        }
        sleep(Duration::from_secs(60)).await;
    });
    let mib = 8 * 5 + LOG_MIB + 16;
    let because = "5 MiB for each of 8, and the log";
    fight_with_writes(&mut server, effort, attack, mib, LOG_MIB, because)
}

fn large_requests(effort: Effort) -> Result<End, String> {
    let mut server = start();
    let mut owner = Client::open(server.address(), 60_000).map_err(fails)?;
    owner
        .all([frames::create(1, "/big", b"", 0)].into_iter())
        .map_err(fails)?;
    let attack = attack(|ring: Ring| async move {
        let all = crowd(&ring, 40, 1_000, Some(30_000), None).await;
        let set = frames::set(2, "/big", &vec![b'z'; 1_000_000]);
        let count = all.len() as u32;
        for (number, stream) in all.into_iter().enumerate() {
            let (ring, set) = (ring.clone(), set.clone());
            let (reader, mut writer) = stream.into_split();
            drain(reader);
            tokio::spawn(async move {
                sleep(Duration::from_secs(1) * number as u32 / count).await;
                while writer.write_all(&set).await.is_ok() {
                    ring.did(1);
                    // Forty megabytes a second in all.
                    sleep(Duration::from_secs(1)).await;
                }
            });
        }
        sleep(Duration::from_secs(60)).await;
    });
    let mib = 2 * LIMIT_MIB + 2 * LOG_MIB + 16;
    let because = "twice largeRequestMaxBytes, and the log while a snapshot is made";
    fight_with_writes(&mut server, effort, attack, mib, LOG_MIB, because)
}

/// Requests of a few bytes an operation whose answers are megabytes an operation.
fn multi_reads(effort: Effort) -> Result<End, String> {
    let mut server = start();
    let mut owner = Client::open(server.address(), 60_000).map_err(fails)?;
    let big = vec![b'z'; 1_000_000];
    owner
        .all([frames::create(1, "/big", &big, 0)].into_iter())
        .map_err(fails)?;
    // 40,000 times 1 MB could not be expressed in the length of a frame.
    let bomb = frames::multi_read(2, "/big", 40_000);
    let (error, _) = owner
        .call(&bomb)
        .map_err(|e| format!("no answer to a multiRead: {e}"))?;
    if error != frames::BAD_ARGUMENTS {
        return Err(format!("an answer of 40 GB is answered with {error}"));
    }
    let attack = attack(|ring: Ring| async move {
        let all = crowd(&ring, 8, 1_000, Some(30_000), None).await;
        for (number, stream) in all.into_iter().enumerate() {
            let (reader, mut writer) = stream.into_split();
            let ring = ring.clone();
            // Some ask for more than they can get, some for as much as they can.
            let (times, pause) = if number % 2 == 0 {
                (20_000, 200)
            } else {
                (60, 400)
            };
            let bomb = frames::multi_read(2, "/big", times);
            drain(reader);
            tokio::spawn(async move {
                while writer.write_all(&bomb).await.is_ok() {
                    ring.did(1);
                    sleep(Duration::from_millis(pause)).await;
                }
            });
        }
        sleep(Duration::from_secs(60)).await;
    });
    let mib = 3 * LIMIT_MIB + 4 * 16 + 16;
    let because = "unsentMaxBytes for large replies, twice for all others, and 16 MiB for each of \
                   four requests of 20,000 operations";
    fight(&mut server, effort, attack, mib, because)
}

/// Without it, four clients that list would take a processor, and the rest would show how the
/// scheduler shares the other.
const BETWEEN_LISTS: Duration = Duration::from_millis(100);

fn huge_directory(effort: Effort) -> Result<End, String> {
    let mut server = start();
    let children = 200_000 * effort.scale;
    let _owner = fill(&server, "/dir", children)?;
    let attack = attack(move |ring: Ring| async move {
        let all = crowd(&ring, 4, 1_000, Some(30_000), None).await;
        for stream in all {
            let ring = ring.clone();
            let (mut reader, mut writer) = stream.into_split();
            tokio::spawn(async move {
                let mut buffer = vec![0; 256 << 10];
                let _ = reader.read(&mut buffer).await;
                // A length, a header, a count, and names with their lengths.
                let bytes = 4 + 16 + 4 + children * (4 + 9);
                while writer.write_all(&frames::list(2, "/dir")).await.is_ok() {
                    let mut got = 0;
                    while got < bytes {
                        match reader.read(&mut buffer).await {
                            Ok(count) if count > 0 => got += count,
                            _ => return,
                        }
                    }
                    ring.did(1);
                    sleep(BETWEEN_LISTS).await;
                }
            });
        }
        // The directory changes meanwhile.
        let Ok(stream) = ring.session(9, 30_000, None).await else {
            return;
        };
        let (reader, mut writer) = stream.into_split();
        drain(reader);
        for number in 0.. {
            let path = format!("/dir/e{number:08}-{:p}", Arc::as_ptr(&ring.notes));
            let _ = writer
                .write_all(&frames::create(3, &path, b"", frames::EPHEMERAL))
                .await;
            sleep(Duration::from_millis(20)).await;
        }
    });
    // Each list is made in one buffer that doubles, and copied as it is sent; four at a time. What
    // changes while lists are made is copied, at most the whole tree.
    let list = (children * 13) / MIB + 1;
    let mib = (4 * 3 * list + children * 300 / MIB) as u64 + 16;
    fight(
        &mut server,
        effort,
        attack,
        mib,
        "thrice four lists, and a copy of the tree",
    )
}

fn huge_counts(effort: Effort) -> Result<End, String> {
    let mut server = start();
    let children = 200_000 * effort.scale;
    let _owner = fill(&server, "/dir", children)?;
    let attack = attack(move |ring: Ring| async move {
        for stream in crowd(&ring, 4, 1_000, Some(30_000), None).await {
            let ring = ring.clone();
            let (mut reader, mut writer) = stream.into_split();
            tokio::spawn(async move {
                let mut buffer = vec![0; 4 << 10];
                let _ = reader.read(&mut buffer).await;
                let ask = frames::ask(2, op::GET_ALL_CHILDREN_NUMBER, "/dir");
                while writer.write_all(&ask).await.is_ok() {
                    match reader.read(&mut buffer).await {
                        Ok(count) if count > 0 => ring.did(1),
                        _ => return,
                    }
                    sleep(BETWEEN_LISTS).await;
                }
            });
        }
        sleep(Duration::from_secs(60)).await;
    });
    let mib = (children * 300 / MIB) as u64 + 16;
    fight(&mut server, effort, attack, mib, "a copy of the tree")
}

/// All five kinds, until they are refused, and on.
fn watches(effort: Effort) -> Result<End, String> {
    let mut server = start();
    let attack = attack(|ring: Ring| async move {
        for (number, stream) in crowd(&ring, 3, 1_000, Some(30_000), None)
            .await
            .into_iter()
            .enumerate()
        {
            let ring = ring.clone();
            let (reader, mut writer) = stream.into_split();
            drain(reader);
            tokio::spawn(async move {
                let start = Instant::now();
                for turn in 0..1_000_000 {
                    let path = format!("/w{number}/{turn:020}");
                    let frame = match turn % 5 {
                        0 => frames::read(1, op::EXISTS, &path, true),
                        1 => frames::read(1, op::GET_DATA, "/probe", true),
                        2 => frames::read(1, op::GET_CHILDREN, "/probe", true),
                        mode => frames::add_watch(1, &path, mode - 3),
                    };
                    if writer.write_all(&frame).await.is_err() {
                        return;
                    }
                    ring.did(1);
                    if turn % 100 == 0 {
                        pace(start, turn as usize, 15_000).await;
                    }
                }
            });
        }
        sleep(Duration::from_secs(60)).await;
    });
    // Their limit, and what the allocator adds.
    let mib = 64 + 64 / 2 + 16;
    fight(
        &mut server,
        effort,
        attack,
        mib,
        "watchMaxBytes, and half of it for the allocator",
    )?;
    // One client is refused at its own limit and told so; others still have their watches.
    let mut greedy = Client::open(server.address(), 60_000).map_err(fails)?;
    let long = "x".repeat(900_000);
    let mut error = 0;
    let mut set = 0;
    while error == 0 && set < 100 {
        set += 1;
        let frame = frames::read(1, op::EXISTS, &format!("/{set}{long}"), true);
        error = greedy.call(&frame).map_err(fails)?.0;
        // What is watched does not exist.
        error = if error == -101 { 0 } else { error };
    }
    let mut modest = Client::open(server.address(), 60_000).map_err(fails)?;
    let (own, _) = modest
        .call(&frames::add_watch(1, "/probe", 0))
        .map_err(fails)?;
    let refused = server.metric("watches_refused");
    println!("    refused with {error} after {set} paths of 900 kB; {refused} refused in all");
    match (error, own, refused > 0.0) {
        (frames::QUOTA_EXCEEDED, 0, true) => Ok(End::Passed),
        _ => Err(format!(
            "answered with {error} after {set} watches, another client with {own}"
        )),
    }
}

fn rearmed_watches(effort: Effort) -> Result<End, String> {
    let mut server = start_with(&[("watchMaxBytesPerClient", "67108864")]);
    let attack = attack(|ring: Ring| async move {
        let paths: Vec<String> = (0..50_000)
            .map(|number| format!("/w/{number:06}"))
            .collect();
        let frame = frames::set_watches(&paths);
        let start = Instant::now();
        for number in 0.. {
            let Ok(mut stream) = ring.session(number, 4_000, None).await else {
                return;
            };
            let _ = stream.read(&mut [0; 64]).await;
            let _ = stream.write_all(&frame).await;
            let _ = stream.read(&mut [0; 64]).await;
            ring.did(1);
            pace(start, number + 1, 5).await;
        }
    });
    let because = "watchMaxBytes and half of it for the allocator, and twice a frame for each of 4";
    fight(&mut server, effort, attack, 64 + 32 + 16, because)
}

/// Those that watch everything and read nothing.
fn unread_events(effort: Effort) -> Result<End, String> {
    let mut server = start();
    let mut owner = Client::open(server.address(), 60_000).map_err(fails)?;
    let parent = frames::create(1, "/events", b"", 0);
    owner.all([parent].into_iter()).map_err(fails)?;
    let attack = attack(|ring: Ring| async move {
        let mut all = crowd(&ring, 100, 1_000, Some(30_000), NO_WINDOW).await;
        for stream in &mut all {
            let _ = stream.write_all(&frames::add_watch(1, "/events", 1)).await;
        }
        let Ok(stream) = ring.session(1, 30_000, None).await else {
            return;
        };
        let (reader, mut writer) = stream.into_split();
        drain(reader);
        let start = Instant::now();
        for number in 0.. {
            let path = format!("/{}{number}", "e".repeat(2_000));
            let _ = writer
                .write_all(&frames::create(1, &path, b"", frames::EPHEMERAL))
                .await;
            ring.did(1);
            pace(start, number + 1, 200).await;
        }
    });
    let mib = 2 * LIMIT_MIB + 100 * 64 / 1024 + 32;
    let because = "twice unsentMaxBytes, and 64 KiB for each of 100";
    fight(&mut server, effort, attack, mib, because)
}

fn sessions(effort: Effort) -> Result<End, String> {
    let mut server = start_with(&[("maxSessions", "5000")]);
    let attack = attack(|ring: Ring| async move {
        let start = Instant::now();
        for number in 0.. {
            if let Ok(mut stream) = ring.session(number, 5_000, None).await
                && matches!(stream.read(&mut [0; 64]).await, Ok(count) if count > 0)
            {
                ring.did(1);
            }
            pace(start, number + 1, 1_500).await;
        }
    });
    fight(
        &mut server,
        effort,
        attack,
        32,
        "2 KiB for each of 5,000 sessions, and 16 MiB",
    )?;
    let refused = server.metric("sessions_refused");
    println!("    {refused} sessions refused");
    match refused > 0.0 {
        true => bounded_log(&server),
        false => Err("more than maxSessions were made".into()),
    }
}

/// Sessions whose clients are gone end all at once; those that live must not feel it.
fn expiry_storm(effort: Effort) -> Result<End, String> {
    let mut server = start_with(&[("tickTime", "2000"), ("maxSessions", "0")]);
    let count = 10_000 * effort.scale;
    let timeout_ms = 8_000;
    let probe = Probe::start(server.address()).map_err(fails)?;
    let ring = Ring {
        address: server.address(),
        notes: Arc::default(),
    };
    std::thread::sleep(effort.alone);
    probe.take();
    std::thread::sleep(effort.alone * 2);
    let alone = [probe.take()];
    let before = server.rss_kib();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(fails)?;
    runtime.block_on(async {
        for number in 0..count {
            let Ok(mut stream) = ring.session(number, timeout_ms, None).await else {
                continue;
            };
            let path = format!("/storm{number:08}");
            let _ = stream
                .write_all(&frames::create(1, &path, b"", frames::EPHEMERAL))
                .await;
            let _ = stream.read(&mut [0; 64]).await;
            let _ = stream.read(&mut [0; 64]).await;
        }
    });
    let made = server.metric("ephemerals_count");
    let bytes = (server.rss_kib().saturating_sub(before) << 10) as f64 / made;
    println!("    {made} ephemerals of as many sessions, {bytes:.0} bytes each");
    probe.take();
    let until = Instant::now() + Duration::from_secs(60);
    let mut attacked = Vec::new();
    let mut left = made;
    while left > 1.0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(250));
        let seen = probe.take();
        let now = server.metric("ephemerals_count");
        if now < left {
            attacked.push(seen);
        }
        left = now;
    }
    println!("    the storm lasted some {} ms", attacked.len() * 250);
    let mut broken = judge(&alone, &attacked, effort.timed);
    if left > 1.0 {
        broken.push(format!("{left} ephemerals are still there"));
    }
    if bytes > 3_072.0 {
        broken.push(format!("{bytes:.0} bytes for a session"));
    }
    broken.extend(aftermath(&mut server, probe).err());
    broken.extend(bounded_log(&server).err());
    match broken.is_empty() {
        true => Ok(End::Passed),
        false => Err(broken.join("; ")),
    }
}

/// The last descriptor is taken by a client, but the server's own are not.
fn no_file_descriptors(effort: Effort) -> Result<End, String> {
    const FILES: u64 = 400;
    let settings = [
        SETTINGS,
        // Log files and snapshots come and go, so that descriptors are needed all the time.
        &[("preAllocSize", "1024"), ("snapCount", "500")],
    ]
    .concat();
    let mut server = Server::start(Data::OnDisk, &settings, Some(FILES));
    let attack = attack(|ring: Ring| async move {
        let mut held = Vec::new();
        let start = Instant::now();
        for number in 0.. {
            if let Ok(stream) = ring.session(number, 30_000, None).await {
                held.push(stream);
            }
            // Those that were refused are given up, or this process runs dry first.
            if held.len() > 1_000 {
                held.retain_mut(|stream| {
                    !matches!(stream.try_read(&mut [0; 64]), Ok(0) | Err(_))
                        || stream.peer_addr().is_ok()
                });
                held.truncate(900);
            }
            ring.did(1);
            pace(start, number + 1, 1_000).await;
        }
    });
    let mut writer = Client::open(server.address(), 60_000).map_err(fails)?;
    let data = vec![b'd'; 4_000];
    writer
        .all([frames::create(1, "/log", &data, 0)].into_iter())
        .map_err(fails)?;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    // Fills log files and brings snapshots about, all the time.
    let load = std::thread::spawn(move || -> std::io::Result<u64> {
        let sets = vec![frames::set(1, "/log", &data); 10];
        let mut count = 0;
        while !stopped.load(Ordering::Relaxed) {
            writer.all(sets.iter().cloned())?;
            count += sets.len() as u64;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(count)
    });
    let rules = Rules {
        memory_mib: 64,
        because: "64 KiB for each of 400, and the log up to the next snapshot".into(),
        stays_mib: 64,
    };
    let fought = Fight {
        server: &mut server,
        effort,
        attack,
        rules,
    }
    .run();
    stop.store(true, Ordering::Relaxed);
    let written = load.join().map_err(|_| "a panic")?;
    fought?;
    let written = written.map_err(|error| format!("the writer was not served: {error}"))?;
    let log = server.log();
    let snapshots = log.matches("snapshot written").count();
    let warnings = log.matches("connection refused").count();
    println!(
        "    {written} writes, {snapshots} snapshots, {warnings} warnings, {} open files",
        server.open_files()
    );
    for wrong in [
        "Too many open files",
        "no snapshot was written",
        "cannot accept",
    ] {
        if log.contains(wrong) {
            return Err(format!("the log says {wrong:?}:\n{log}"));
        }
    }
    if snapshots == 0 {
        return Err(format!("no snapshot was taken meanwhile:\n{log}"));
    }
    match warnings {
        1..=10 => bounded_log(&server),
        _ => Err(format!("{warnings} warnings:\n{log}")),
    }
}

//! Honest clients: one that prepares and looks, and one that measures.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::frames;

/// How long an honest client waits for an answer before it counts as not served.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection with a session. It never reconnects.
pub struct Client {
    stream: BufReader<TcpStream>,
    pub session: i64,
}

impl Client {
    pub fn open(address: SocketAddr, timeout_ms: i32) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut client = Self {
            stream: BufReader::new(stream),
            session: 0,
        };
        client.send(&frames::hello(timeout_ms))?;
        let response = client.receive()?;
        client.session = i64::from_be_bytes(response[8..16].try_into().expect("eight bytes"));
        Ok(client)
    }

    pub fn send(&mut self, frames: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(frames)
    }

    /// The next frame.
    pub fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut frame)?;
        Ok(frame)
    }

    /// The error code of the next reply, and its body. Events are passed over.
    pub fn reply(&mut self) -> io::Result<(i32, Vec<u8>)> {
        loop {
            let frame = self.receive()?;
            let int = |at: usize| i32::from_be_bytes(frame[at..at + 4].try_into().expect("four"));
            if int(0) != -1 {
                return Ok((int(12), frame[16..].to_vec()));
            }
        }
    }

    pub fn call(&mut self, frame: &[u8]) -> io::Result<(i32, Vec<u8>)> {
        self.send(frame)?;
        self.reply()
    }

    /// Sends all of these and awaits that all succeed.
    pub fn all(&mut self, frames: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
        let frames: Vec<Vec<u8>> = frames.collect();
        for chunk in frames.chunks(500) {
            self.send(&chunk.concat())?;
            for _ in chunk {
                let (error, _) = self.reply()?;
                if error != 0 {
                    return Err(io::Error::other(format!("answered with {error}")));
                }
            }
        }
        Ok(())
    }
}

/// Latencies of one kind of request, in µs.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<u32>);

impl Latencies {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// In ms; `part` of a thousand.
    pub fn quantile(&self, part: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        let at = (sorted.len() * part / 1000).min(last);
        sorted
            .get(at)
            .map_or(f64::NAN, |us| f64::from(*us) / 1000.0)
    }
}

/// What the probe saw since it was asked last.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub get: Latencies,
    pub set: Latencies,
}

/// An honest client that reads and writes in turn, one request every few milliseconds, and whose
/// session owns an ephemeral.
pub struct Probe {
    pub session: i64,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    /// When it began to wait for an answer, while it waits.
    waits_since: Arc<Mutex<Option<Instant>>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// The probe's ephemeral.
pub const ALIVE: &str = "/alive";
const TARGET: &str = "/probe";
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(2);

impl Probe {
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        let mut client = Client::open(address, 10_000)?;
        let data = [b'x'; 100];
        client.all(
            [
                frames::create(1, TARGET, &data, 0),
                frames::create(2, ALIVE, b"", frames::EPHEMERAL),
            ]
            .into_iter(),
        )?;
        let session = client.session;
        let (seen, stop): (Arc<Mutex<Seen>>, Arc<AtomicBool>) = Default::default();
        let waits_since: Arc<Mutex<Option<Instant>>> = Arc::default();
        let (noted, stopped, waits) = (seen.clone(), stop.clone(), waits_since.clone());
        let thread = std::thread::spawn(move || {
            let get = frames::get(3, TARGET);
            let set = frames::set(4, TARGET, &data);
            while !stopped.load(Ordering::Relaxed) {
                for (frame, is_set) in [(&get, false), (&set, true)] {
                    let start = Instant::now();
                    *waits.lock().expect("no panic") = Some(start);
                    let (error, _) = client.call(frame)?;
                    let us = start.elapsed().as_micros() as u32;
                    *waits.lock().expect("no panic") = None;
                    if error != 0 {
                        return Err(io::Error::other(format!("answered with {error}")));
                    }
                    let mut seen = noted.lock().expect("no panic");
                    let kind = if is_set { &mut seen.set } else { &mut seen.get };
                    kind.0.push(us);
                    drop(seen);
                    std::thread::sleep(PAUSE);
                }
            }
            Ok(())
        });
        Ok(Self {
            session,
            seen,
            stop,
            waits_since,
            thread: Some(thread),
        })
    }

    /// What was seen since the last call. A request that is not answered yet counts with its age.
    pub fn take(&self) -> Seen {
        let waits_since = *self.waits_since.lock().expect("no panic");
        let mut seen = std::mem::take(&mut *self.seen.lock().expect("no panic"));
        if let Some(since) = waits_since {
            seen.get.0.push(since.elapsed().as_micros() as u32);
        }
        seen
    }

    pub fn is_served(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }

    /// Whether all went well to the end.
    pub fn stop(mut self) -> Result<(), String> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is stopped once");
        match thread.join() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("the honest client was not served: {error}")),
            Err(_) => Err("the honest client panicked".into()),
        }
    }
}

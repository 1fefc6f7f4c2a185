//! The loop that drives all clients: one thread, nonblocking sockets, one system call for many
//! requests where the load allows it.
//!
//! Closed loop: a client asks again as soon as it may have another request unanswered. Open loop: a
//! schedule says when each operation is due, and its latency counts from then, whenever it could
//! be sent: a server that stalls does not hide what it did to those who would have come. So
//! whatever was due in the period is asked for, if need be after its end.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use polling::{Event, Events, PollMode, Poller};
use socket2::{Domain, Protocol, Socket, Type};

use super::frames::{self, Reply};
use super::process;
use super::script::{Asked, Fan, Random, Script, Turn};
use crate::wire::xid;

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// How long a client may wait without an answer, and all of them for what was due in the period.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest latency that is told apart, in ns.
const LATENCY_MAX_NS: u64 = 120_000_000_000;
/// Time between two looks after sessions that must be kept alive.
const PING_SCAN: Duration = Duration::from_millis(500);

/// How to drive the clients.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The servers: clients are dealt out to them in turn.
    pub addresses: Vec<SocketAddr>,
    /// Requests of a client that may be unanswered.
    pub depth: usize,
    /// Operations a second of all clients; `None`: as many as the depth allows.
    pub rate: Option<f64>,
    /// How long before anything counts.
    pub warm_up: Duration,
    /// How long everything counts; `None`: until the scripts have nothing left to ask.
    pub duration: Option<Duration>,
    pub session_timeout_ms: i32,
    /// Whether an operation is to open a session and to close it.
    pub churn: bool,
    pub seed: u64,
}

impl Plan {
    /// The server of a client.
    fn address_of(&self, client: usize) -> SocketAddr {
        self.addresses[client % self.addresses.len()]
    }
}

/// What came out.
pub struct Measured {
    pub seconds: f64,
    pub operations: u64,
    /// By class, then all of them.
    pub latency_ns: Vec<Histogram<u32>>,
    pub all_latency_ns: Histogram<u32>,
    /// Processor time of this thread, in seconds.
    pub generator_cpu: f64,
    /// Processor time of the server's processes, in seconds.
    pub server_cpu: Option<f64>,
}

/// The sessions of one round.
pub struct Drive<'a> {
    plan: &'a Plan,
    pids: &'a [u32],
    tell: &'a dyn Fn(u64),
    poller: Poller,
    clients: Vec<Client>,
    fan: Fan,
    random: Random,
    start: Instant,
    buffer: Vec<u8>,
    /// `None`: as many operations as the depth allows.
    schedule: Option<Schedule>,
    next_ping_scan_ns: u64,
    asking: bool,
    recording: bool,
    counted: u64,
    histograms: Vec<Histogram<u32>>,
}

/// When operations are due: at a steady rate, whatever the server does. Clients have them in turn.
struct Schedule {
    /// Operations a second.
    rate: f64,
    clients: u64,
    /// Operations that are due by now.
    due: u64,
}

struct Client {
    socket: TcpStream,
    phase: Phase,
    script: Box<dyn Script>,
    depth: usize,
    output: Vec<u8>,
    /// Bytes of an incomplete frame.
    rest: Vec<u8>,
    unanswered: VecDeque<Unanswered>,
    next_xid: i32,
    /// Operations that were begun in this period.
    begun: u64,
    /// When the present operation began, in ns.
    began_ns: u64,
    in_operation: bool,
    waits_to_write: bool,
    timeout_ms: i32,
    sent_ns: u64,
    /// When it got the last answer or began to wait for one, in ns. A ping's answer is none: it
    /// comes beside a reply that was lost.
    heard_ns: u64,
    /// Whether the connection has ended.
    is_gone: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Handshake,
    Open,
    /// The session was closed; the server closes the connection.
    Closed,
}

struct Unanswered {
    xid: i32,
    class: usize,
    ends: bool,
    began_ns: u64,
}

impl<'a> Drive<'a> {
    /// Opens a session for each script.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses a session.
    pub fn open(
        plan: &'a Plan,
        scripts: Vec<Box<dyn Script>>,
        fan: Fan,
        pids: &'a [u32],
        tell: &'a dyn Fn(u64),
    ) -> anyhow::Result<Self> {
        let classes = scripts.first().map_or(0, |script| script.classes().len());
        let mut drive = Self {
            plan,
            pids,
            tell,
            poller: Poller::new()?,
            clients: Vec::with_capacity(scripts.len()),
            fan,
            random: Random(plan.seed),
            start: Instant::now(),
            buffer: vec![0; READ_BYTES],
            schedule: plan.rate.map(|rate| Schedule {
                rate,
                clients: scripts.len() as u64,
                due: 0,
            }),
            next_ping_scan_ns: 0,
            asking: false,
            recording: false,
            counted: 0,
            histograms: (0..classes).map(|_| histogram()).collect(),
        };
        for (number, script) in scripts.into_iter().enumerate() {
            let socket = connect(plan.address_of(number))?;
            drive.add(number, &socket)?;
            let depth = script.depth().unwrap_or(plan.depth);
            let mut client = Client::new(socket, script, depth, plan.session_timeout_ms);
            client.heard_ns = drive.now_ns();
            drive.clients.push(client);
            drive.flush(number)?;
            // Not more handshakes at once than a server's backlog takes.
            while drive.opening() > 256 {
                drive.step(Duration::from_secs(1))?;
            }
        }
        while !plan.churn && drive.opening() > 0 {
            drive.step(Duration::from_secs(1))?;
        }
        Ok(drive)
    }

    /// Warms up, measures, and waits for what is unanswered.
    ///
    /// # Errors
    /// If the server closes a connection, does not answer, or answers what it should not.
    pub fn run(&mut self) -> anyhow::Result<Measured> {
        self.asking = true;
        self.start = Instant::now();
        self.next_ping_scan_ns = 0;
        if let Some(schedule) = &mut self.schedule {
            schedule.due = 0;
        }
        for client in &mut self.clients {
            (client.sent_ns, client.heard_ns, client.begun) = (0, 0, 0);
        }
        for number in 0..self.clients.len() {
            // Of many sessions that are opened and closed, the first are closed by now.
            if self.plan.churn && self.clients[number].is_gone {
                self.reopen(number)?;
            }
            self.refill(number)?;
        }
        while let Some(left) = self.plan.warm_up.checked_sub(self.start.elapsed()) {
            self.step(left)?;
        }

        self.recording = true;
        let (began, generator_cpu) = (Instant::now(), process::thread_cpu());
        let server_cpu = process::cpu_of(self.pids);
        match self.plan.duration {
            Some(duration) => {
                while began.elapsed() < duration {
                    self.step(duration.saturating_sub(began.elapsed()))?;
                }
            }
            None => {
                while !self.is_done() {
                    self.step(Duration::from_secs(1))?;
                }
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let generator_cpu = process::thread_cpu() - generator_cpu;
        let server_cpu = server_cpu.zip(process::cpu_of(self.pids));
        let operations = self.counted;

        // What is still under way, or was due and could not be sent, counts for the latencies: a
        // stall at the end is one too.
        self.hand_out_schedule()?;
        self.asking = false;
        let ended = Instant::now();
        while !self.plan.churn && !self.is_done() {
            let behind = self.behind();
            if behind > 0 && ended.elapsed() > PATIENCE {
                bail!(
                    "{behind} operations that were due are not begun {} s after the period: \
                     choose a lower rate",
                    PATIENCE.as_secs()
                );
            }
            self.step(Duration::from_secs(1))?;
        }
        self.recording = false;
        let mut all = histogram();
        for histogram in &self.histograms {
            all.add(histogram)?;
        }
        Ok(Measured {
            seconds,
            operations,
            latency_ns: std::mem::take(&mut self.histograms),
            all_latency_ns: all,
            generator_cpu,
            server_cpu: server_cpu.map(|(before, after)| after - before),
        })
    }

    /// Keeps the sessions alive for a while, asking for nothing.
    pub fn rest(&mut self, duration: Duration) -> anyhow::Result<()> {
        self.asking = false;
        let until = Instant::now() + duration;
        while Instant::now() < until {
            self.step(until - Instant::now())?;
        }
        Ok(())
    }

    /// Closes all sessions, so that nothing is left of them in the server.
    pub fn close(mut self) -> anyhow::Result<()> {
        self.asking = false;
        let now_ns = self.now_ns();
        for number in 0..self.clients.len() {
            let client = &mut self.clients[number];
            if client.phase == Phase::Open {
                client.phase = Phase::Closed;
                client.heard_ns = now_ns;
                frames::close_session(&mut client.output, client.next_xid);
                self.flush(number)?;
            }
        }
        let until = Instant::now() + Duration::from_secs(10);
        while !self.clients.iter().all(|client| client.is_gone) && Instant::now() < until {
            self.step(Duration::from_millis(100))?;
        }
        Ok(())
    }

    fn opening(&self) -> usize {
        let opening = |client: &&Client| client.phase == Phase::Handshake;
        self.clients.iter().filter(opening).count()
    }

    fn is_done(&self) -> bool {
        let mut clients = self.clients.iter();
        clients.all(|client| client.unanswered.is_empty()) && self.behind() == 0
    }

    /// Operations that are due and not begun.
    fn behind(&self) -> u64 {
        self.schedule.as_ref().map_or(0, |schedule| {
            let begun: u64 = self.clients.iter().map(|client| client.begun).sum();
            schedule.due - begun
        })
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn add(&self, number: usize, socket: &TcpStream) -> io::Result<()> {
        // SAFETY: the socket is taken from the poller before it is dropped, in `reopen`, or the
        // poller is dropped with its sockets, as both belong to one `Drive`.
        unsafe {
            self.poller
                .add_with_mode(socket, Event::readable(number), PollMode::Level)
        }
    }

    /// Waits for something to happen, at most this long, and deals with it.
    fn step(&mut self, at_most: Duration) -> anyhow::Result<()> {
        super::check_interrupted()?;
        let wait = self.hand_out_schedule()?.min(at_most).min(PING_SCAN);
        let mut events = Events::new();
        self.poller.wait(&mut events, Some(wait))?;
        for event in events.iter() {
            if event.writable {
                self.flush(event.key)?;
            }
            if event.readable {
                self.receive(event.key)?;
            }
        }
        let now_ns = self.now_ns();
        if now_ns >= self.next_ping_scan_ns {
            self.next_ping_scan_ns = now_ns + PING_SCAN.as_nanos() as u64;
            (self.tell)(self.counted);
            self.keep_alive(now_ns)?;
        }
        Ok(())
    }

    /// Gives clients what is due by now. Returns how long nothing more is.
    fn hand_out_schedule(&mut self) -> anyhow::Result<Duration> {
        let now_ns = self.now_ns();
        let Some(schedule) = self.schedule.as_mut().filter(|_| self.asking) else {
            return Ok(Duration::MAX);
        };
        let fresh = schedule.advance(now_ns);
        let next_ns = schedule.due_ns(fresh.end);
        for operation in fresh {
            self.refill(operation as usize % self.clients.len())?;
        }
        Ok(Duration::from_nanos(next_ns.saturating_sub(self.now_ns())))
    }

    /// Keeps sessions alive that are silent, and gives up on a server that is.
    fn keep_alive(&mut self, now_ns: u64) -> anyhow::Result<()> {
        for number in 0..self.clients.len() {
            let client = &mut self.clients[number];
            if client.is_waiting() && now_ns > client.heard_ns + PATIENCE.as_nanos() as u64 {
                bail!(
                    "{} has left a client without an answer for {} s",
                    self.plan.address_of(number),
                    PATIENCE.as_secs()
                );
            }
            let silent_ms = now_ns.saturating_sub(client.sent_ns) / 1_000_000;
            if client.phase == Phase::Open && silent_ms > client.timeout_ms as u64 / 3 {
                frames::ping(&mut client.output);
                client.sent_ns = now_ns;
                self.flush(number)?;
            }
        }
        Ok(())
    }

    /// Asks for as much as this client may have unanswered.
    fn refill(&mut self, number: usize) -> anyhow::Result<()> {
        // On a schedule, what was due in the period is asked for after it as well.
        if !self.asking && self.schedule.is_none() {
            return Ok(());
        }
        let mut now_ns = None;
        let client = &mut self.clients[number];
        if client.phase != Phase::Open {
            return Ok(());
        }
        while client.unanswered.len() < client.depth {
            let mut due_ns = None;
            if let Some(schedule) = &self.schedule
                && !client.in_operation
            {
                due_ns = schedule.due_of(number, client.begun);
                if due_ns.is_none() {
                    break;
                }
            }
            let turn = Turn {
                out: &mut client.output,
                xid: client.next_xid,
                random: &mut self.random,
                fan: &mut self.fan,
            };
            let Some(asked) = client.script.next(turn) else {
                break;
            };
            let now_ns = *now_ns.get_or_insert_with(|| self.start.elapsed().as_nanos() as u64);
            client.asked(asked, due_ns, now_ns);
        }
        self.flush(number)
    }

    /// Sends what the socket takes.
    fn flush(&mut self, number: usize) -> anyhow::Result<()> {
        let client = &mut self.clients[number];
        let mut sent = 0;
        while sent < client.output.len() {
            match client.socket.write(&client.output[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Not connected yet, or the buffers are full.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::NotConnected
                    ) =>
                {
                    break;
                }
                Err(error) => return Err(error).context("cannot send to the server"),
            }
        }
        client.output.drain(..sent);
        let waits = !client.output.is_empty();
        if waits != client.waits_to_write {
            client.waits_to_write = waits;
            let mut interest = Event::readable(number);
            interest.writable = waits;
            self.poller
                .modify_with_mode(&client.socket, interest, PollMode::Level)?;
        }
        Ok(())
    }

    fn receive(&mut self, number: usize) -> anyhow::Result<()> {
        let client = &mut self.clients[number];
        let rest = client.rest.len();
        if self.buffer.len() < rest + READ_BYTES {
            self.buffer.resize(rest + READ_BYTES, 0);
        }
        self.buffer[..rest].copy_from_slice(&client.rest);
        let count = match client.socket.read(&mut self.buffer[rest..]) {
            Ok(0) => 0,
            Ok(count) => count,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(());
            }
            Err(error) if client.phase == Phase::Closed => {
                let _ = error;
                0
            }
            Err(error) => return Err(error).context("cannot read from the server"),
        };
        if count == 0 {
            return self.ended(number);
        }
        let now_ns = self.now_ns();
        let buffer = std::mem::take(&mut self.buffer);
        let mut input = &buffer[..rest + count];
        let mut taken = Ok(());
        while let Some(frame) = frames::next_frame(&mut input) {
            taken = self.take(number, frame, now_ns);
            if taken.is_err() {
                break;
            }
        }
        let client = &mut self.clients[number];
        client.rest.clear();
        client.rest.extend_from_slice(input);
        self.buffer = buffer;
        taken?;
        self.refill(number)?;
        // The changer is the last client; it may go on once the last watcher is ready.
        if self.fan.watchers > 0 && self.fan.all_are_armed() {
            self.refill(self.clients.len() - 1)?;
        }
        Ok(())
    }

    fn take(&mut self, number: usize, frame: &[u8], now_ns: u64) -> anyhow::Result<()> {
        let client = &mut self.clients[number];
        if client.phase == Phase::Handshake {
            let timeout_ms = frames::granted_timeout_ms(frame).unwrap_or(0);
            if timeout_ms <= 0 {
                bail!("the server refused a session");
            }
            client.timeout_ms = timeout_ms;
            client.heard_ns = now_ns;
            client.phase = Phase::Open;
            if self.plan.churn {
                client.phase = Phase::Closed;
                frames::close_session(&mut client.output, 1);
                self.flush(number)?;
            }
            return Ok(());
        }
        let reply = Reply::parse(frame).context("the server sent a frame without a header")?;
        match reply.xid {
            xid::PING => return Ok(()),
            xid::NOTIFICATION => {
                client.script.notified(&mut self.fan);
                if std::mem::take(&mut self.fan.done) > 0 {
                    let changer = self.clients.len() - 1;
                    let began_ns = self.clients[changer].began_ns;
                    self.count(0, began_ns, now_ns);
                }
                return Ok(());
            }
            _ => {}
        }
        client.heard_ns = now_ns;
        if client.phase == Phase::Closed {
            let began_ns = client.began_ns;
            if self.plan.churn {
                self.count(0, began_ns, now_ns);
            }
            return Ok(());
        }
        let Some(answered) = client.unanswered.pop_front() else {
            bail!(
                "the server answered xid {}, which nobody asked for",
                reply.xid
            );
        };
        if answered.xid != reply.xid {
            bail!(
                "the server answered xid {} before {}",
                reply.xid,
                answered.xid
            );
        }
        client
            .script
            .replied(answered.class, reply, &mut self.fan)
            .map_err(anyhow::Error::msg)?;
        if answered.ends {
            self.count(answered.class, answered.began_ns, now_ns);
        }
        Ok(())
    }

    fn count(&mut self, class: usize, began_ns: u64, now_ns: u64) {
        if self.recording {
            self.counted += 1;
            self.histograms[class].saturating_record(now_ns.saturating_sub(began_ns).max(1));
        }
    }

    /// The server closed a connection.
    fn ended(&mut self, number: usize) -> anyhow::Result<()> {
        let client = &mut self.clients[number];
        self.poller.delete(&client.socket)?;
        client.is_gone = true;
        if client.phase != Phase::Closed {
            bail!("the server closed a connection");
        }
        if self.plan.churn && self.asking {
            self.reopen(number)?;
        }
        Ok(())
    }

    fn reopen(&mut self, number: usize) -> anyhow::Result<()> {
        let began_ns = self.now_ns();
        let socket = connect(self.plan.address_of(number))?;
        self.add(number, &socket)?;
        self.clients[number].reopen(socket, self.plan.session_timeout_ms, began_ns);
        self.flush(number)
    }
}

impl Schedule {
    /// Lets come what is due at this time. Returns the operations whose clients may go on: of many,
    /// the last one of each client, who finds those before it.
    fn advance(&mut self, now_ns: u64) -> Range<u64> {
        let before = self.due;
        self.due = before.max((now_ns as f64 * self.rate / 1e9) as u64 + 1);
        before.max(self.due.saturating_sub(self.clients))..self.due
    }

    fn due_ns(&self, operation: u64) -> u64 {
        (operation as f64 * 1e9 / self.rate) as u64
    }

    /// When the next operation of a client was due, if it is by now. `begun`: those before it.
    fn due_of(&self, client: usize, begun: u64) -> Option<u64> {
        let operation = client as u64 + begun * self.clients;
        (operation < self.due).then(|| self.due_ns(operation))
    }
}

impl Client {
    fn new(socket: TcpStream, script: Box<dyn Script>, depth: usize, timeout_ms: i32) -> Self {
        let mut output = Vec::new();
        frames::hello(&mut output, timeout_ms);
        Self {
            socket,
            phase: Phase::Handshake,
            script,
            depth,
            output,
            rest: Vec::new(),
            unanswered: VecDeque::new(),
            next_xid: 1,
            begun: 0,
            began_ns: 0,
            in_operation: false,
            waits_to_write: false,
            timeout_ms,
            sent_ns: 0,
            heard_ns: 0,
            is_gone: false,
        }
    }

    fn reopen(&mut self, socket: TcpStream, timeout_ms: i32, began_ns: u64) {
        self.socket = socket;
        self.phase = Phase::Handshake;
        self.is_gone = false;
        self.began_ns = began_ns;
        self.heard_ns = began_ns;
        self.waits_to_write = false;
        self.rest.clear();
        self.output.clear();
        frames::hello(&mut self.output, timeout_ms);
    }

    /// Whether the server owes it something.
    fn is_waiting(&self) -> bool {
        !self.is_gone && (self.phase != Phase::Open || !self.unanswered.is_empty())
    }

    fn asked(&mut self, asked: Asked, due_ns: Option<u64>, now_ns: u64) {
        if asked.begins {
            self.began_ns = due_ns.unwrap_or(now_ns);
            self.begun += 1;
        }
        if self.unanswered.is_empty() {
            self.heard_ns = now_ns;
        }
        self.in_operation = !asked.ends && (asked.begins || self.in_operation);
        self.sent_ns = now_ns;
        self.unanswered.push_back(Unanswered {
            xid: self.next_xid,
            class: asked.class,
            ends: asked.ends,
            began_ns: self.began_ns,
        });
        // Negative xids have meanings of their own.
        self.next_xid = self.next_xid.checked_add(1).unwrap_or(1);
    }
}

fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("the bounds are in order")
}

/// Begins to connect. What is written before it is done is refused and tried again.
fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .context("cannot open a socket; `ulimit -n` bounds the clients")?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot connect to {address}"));
        }
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::super::echo::Echo;
    use super::super::script::{Creates, Numbered, Silent};
    use super::*;

    const PATIENCE_NS: u64 = PATIENCE.as_nanos() as u64;

    fn plan(echoes: &[Echo]) -> Plan {
        Plan {
            addresses: echoes.iter().map(|echo| echo.address).collect(),
            depth: 1,
            rate: None,
            warm_up: Duration::ZERO,
            duration: None,
            session_timeout_ms: 30_000,
            churn: false,
            seed: 1,
        }
    }

    fn open<'a>(plan: &'a Plan, script: &dyn Fn() -> Box<dyn Script>, clients: usize) -> Drive<'a> {
        let scripts = (0..clients).map(|_| script()).collect();
        Drive::open(plan, scripts, Fan::default(), &[], &|_| {}).unwrap()
    }

    fn silent() -> Box<dyn Script> {
        Box::new(Silent(&["idle"]))
    }

    fn creates() -> Box<dyn Script> {
        Box::new(Creates {
            path: Numbered::new("/a-", 4),
            created: 0,
            data: Vec::new(),
        })
    }

    #[test]
    fn clients_are_dealt_out_to_the_servers() {
        let echoes = [128, 128].map(|bytes| Echo::start(bytes).unwrap());
        let plan = plan(&echoes);
        let drive = open(&plan, &silent, 3);
        let peer = |client: &Client| client.socket.peer_addr().unwrap();
        let peers: Vec<_> = drive.clients.iter().map(peer).collect();
        let [one, two] = echoes.each_ref().map(|echo| echo.address);
        assert_eq!(peers, [one, two, one]);
        drive.close().unwrap();
    }

    #[test]
    fn one_server_that_is_silent_is_named_while_others_answer() {
        let echoes = [128, 128].map(|bytes| Echo::start(bytes).unwrap());
        let plan = plan(&echoes);
        let mut drive = open(&plan, &silent, 2);
        let whole = Asked {
            class: 0,
            begins: true,
            ends: true,
        };
        // Nobody waits, so nobody waits too long.
        drive.keep_alive(10 * PATIENCE_NS).unwrap();
        // It was idle for long, and waits from now on.
        let asked_ns = 10 * PATIENCE_NS;
        drive.clients[1].asked(whole, None, asked_ns);
        drive.keep_alive(asked_ns + PATIENCE_NS).unwrap();
        // A ping is answered, and no reply.
        let mut ping = Vec::new();
        frames::ping(&mut ping);
        ping.resize(20, 0);
        let late_ns = asked_ns + PATIENCE_NS + 1;
        drive.take(1, &ping[4..], late_ns).unwrap();
        drive.clients[0].heard_ns = late_ns;
        let error = drive.keep_alive(late_ns).unwrap_err().to_string();
        assert!(error.contains(&echoes[1].address.to_string()), "{error}");
    }

    #[test]
    fn a_schedule_is_dealt_out_in_turn() {
        let mut schedule = Schedule {
            rate: 1_000.0,
            clients: 3,
            due: 0,
        };
        assert_eq!(schedule.due_of(0, 0), None);
        assert_eq!(schedule.advance(0), 0..1);
        assert_eq!(schedule.advance(999_999), 1..1);
        assert_eq!(schedule.advance(3_500_000), 1..4);
        assert_eq!(schedule.due_of(0, 0), Some(0));
        assert_eq!(schedule.due_of(0, 1), Some(3_000_000));
        assert_eq!(schedule.due_of(1, 0), Some(1_000_000));
        assert_eq!(schedule.due_of(1, 1), None);
        assert_eq!(schedule.due_ns(4), 4_000_000);
    }

    #[test]
    fn a_schedule_that_is_far_behind_asks_each_client_once() {
        let mut schedule = Schedule {
            rate: 1e7,
            clients: 3,
            due: 0,
        };
        let fresh = schedule.advance(3_600_000_000_000);
        assert_eq!(fresh.end - fresh.start, 3);
        assert_eq!(fresh.end, schedule.due);
        // Nothing of it is lost.
        assert_eq!(schedule.due_of(0, 0), Some(0));
        assert_eq!(schedule.due_of(1, 1), Some(400));
    }

    #[test]
    fn what_was_due_is_asked_for_after_the_period_too() {
        let echoes = [Echo::start(128).unwrap()];
        let plan = Plan {
            rate: Some(1_000.0),
            ..plan(&echoes)
        };
        let mut drive = open(&plan, &creates, 2);
        // The period is over, and nothing of it was sent.
        drive.recording = true;
        drive.schedule.as_mut().unwrap().due = 9;
        drive.start = Instant::now() - Duration::from_secs(5);
        assert_eq!(drive.behind(), 9);
        assert!(!drive.is_done());
        drive.refill(0).unwrap();
        drive.refill(1).unwrap();
        while !drive.is_done() {
            drive.step(Duration::from_secs(1)).unwrap();
        }
        assert_eq!(drive.counted, 9);
        // The latency counts from when it was due.
        assert!(drive.histograms[0].min() > 4_900_000_000);
        assert_eq!(drive.schedule.as_ref().unwrap().due, 9);
        drive.close().unwrap();
    }

    #[test]
    fn sessions_that_ended_while_others_were_opened_are_opened_again() {
        let echoes = [Echo::start(128).unwrap()];
        let plan = Plan {
            churn: true,
            duration: Some(Duration::ZERO),
            ..plan(&echoes)
        };
        let mut drive = open(&plan, &silent, 3);
        while !drive.clients.iter().all(|client| client.is_gone) {
            drive.step(Duration::from_secs(1)).unwrap();
        }
        drive.run().unwrap();
        assert!(drive.clients.iter().all(|client| !client.is_gone));
        drive.close().unwrap();
    }
}

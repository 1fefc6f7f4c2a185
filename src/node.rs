//! The node: drains events, asks the engine, carries out what it says. It decides nothing.
//!
//! What there is to do: a submitted command, a message of another server, a finished write of the
//! log, a finished snapshot, the next tick. One thread at a time does it: the node's own thread, or
//! whoever rings the bell while no one is at work, which saves waking another thread for a few
//! microseconds' work. So a lone write goes from the connection's task to the log thread and back
//! with two wakes instead of four.

use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::engine::{
    Append, Divergence, Engine, Event, Outdated, Outputs, PeerMessage, SendSnapshot, SnapshotMeta,
};
use crate::machine::Image;
use crate::net::Clock;
use crate::proto::log::HardState;
use crate::wire::ServerLine;

/// What the node thread needs from the disk.
pub trait Log: Send {
    /// Queues a record; [`Doorbell::persisted`] is rung when it is durable.
    fn append(&mut self, append: Append);
    /// Begins to write a snapshot; [`Doorbell::event`] tells how it ended.
    fn take_snapshot(&mut self, meta: SnapshotMeta, image: Image);
    /// The state is not that of the other servers: takes note of that, and ends the process.
    fn diverged(&mut self, divergence: Divergence);
    /// Writes what is queued and closes. Blocks until that is done.
    fn close(&mut self, hard_state: HardState);
}

/// What the node needs from the network between servers. Nothing of it may block.
pub trait Peers: Send {
    /// Sends messages, each of which may get lost.
    fn send(&mut self, messages: Vec<(u64, PeerMessage)>);
    /// These are to be linked from now on, this server among them.
    fn set_servers(&mut self, servers: &[ServerLine]);
    /// Begins to send a snapshot; [`Event::SnapshotSent`] tells how it ended.
    fn send_snapshot(&mut self, what: SendSnapshot);
}

/// Of a server that stands alone: there is nobody to tell.
#[derive(Debug)]
pub struct NoPeers;

impl Peers for NoPeers {
    fn send(&mut self, _messages: Vec<(u64, PeerMessage)>) {}
    fn set_servers(&mut self, _servers: &[ServerLine]) {}
    fn send_snapshot(&mut self, _what: SendSnapshot) {}
}

/// Tells the node that there is something for it. Shared by everyone who has.
#[derive(Debug, Default)]
pub struct Doorbell {
    waiting: Mutex<Waiting>,
    rung: Condvar,
    node: OnceLock<Weak<Node>>,
}

#[derive(Debug, Default)]
struct Waiting {
    rung: bool,
    stop: bool,
    persisted: u64,
    events: Vec<Event>,
}

impl Doorbell {
    /// There is something in the inbox. The caller holds no lock.
    pub fn ring(&self) {
        self.mark(|_| {});
        self.attend();
    }

    /// Everything up to this number is durable. `idle`: the caller has nothing else to do.
    pub fn persisted(&self, number: u64, idle: bool) {
        self.mark(|waiting| waiting.persisted = waiting.persisted.max(number));
        if idle {
            self.attend();
        } else {
            self.rung.notify_one();
        }
    }

    pub fn event(&self, event: Event) {
        self.mark(|waiting| waiting.events.push(event));
        self.rung.notify_one();
    }

    /// Messages of another server came. The caller holds no lock, and may have to deal with them.
    pub fn messages(&self, from: u64, messages: Vec<PeerMessage>) {
        let events = messages.into_iter();
        let events = events.map(|message| Event::Peer { from, message });
        self.mark(|waiting| waiting.events.extend(events));
        self.attend();
    }

    /// The thread is to end.
    pub fn stop(&self) {
        self.mark(|waiting| waiting.stop = true);
        self.rung.notify_one();
    }

    fn mark(&self, change: impl FnOnce(&mut Waiting)) {
        let mut waiting = self.waiting.lock();
        change(&mut waiting);
        waiting.rung = true;
    }

    /// Does the node's work here and now, or leaves it to who is at it: a thread that is awake
    /// already is tens of microseconds ahead of one that must be woken, and costs less.
    fn attend(&self) {
        let node = self.node.get().and_then(Weak::upgrade);
        if !node.is_some_and(|node| node.help(self)) {
            self.rung.notify_one();
        }
    }

    /// Waits until rung, but not longer than this.
    fn wait(&self, at_most: Duration) {
        let mut waiting = self.waiting.lock();
        if !waiting.rung {
            self.rung.wait_for(&mut waiting, at_most);
        }
    }

    /// What there is to do. Only for who holds the node's lock: of two who take, the later one
    /// would otherwise be able to go first, and messages to overtake each other.
    fn take(&self) -> Waiting {
        self.waiting.lock().take()
    }

    /// The same, unless that is nothing, or to stop: this is for the thread alone.
    fn take_work(&self) -> Option<Waiting> {
        let mut waiting = self.waiting.lock();
        (waiting.rung && !waiting.stop).then(|| waiting.take())
    }

    /// Wakes the thread, though there is nothing to do but to look at the clock.
    fn wake(&self) {
        self.mark(|_| {});
        self.rung.notify_one();
    }

    fn is_rung(&self) -> bool {
        self.waiting.lock().rung
    }

    /// What the node would be told of.
    #[cfg(test)]
    pub(crate) fn events(&self) -> Vec<Event> {
        self.take().events
    }
}

impl Waiting {
    fn take(&mut self) -> Self {
        let persisted = self.persisted;
        let nothing = Self {
            persisted,
            ..Self::default()
        };
        std::mem::replace(self, nothing)
    }
}

/// The engine and its log, worked by one thread at a time.
pub struct Node {
    work: Mutex<Work>,
    clock: Clock,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Node")
    }
}

struct Work {
    engine: Engine,
    log: Box<dyn Log>,
    peers: Box<dyn Peers>,
    on_outdated: Box<dyn Fn(Outdated) + Send>,
    /// The highest number that the engine was told of.
    persisted: u64,
    /// When the engine wants a turn even if nothing happens, in ms.
    wake_at_ms: Option<u64>,
    /// Until when the node's own thread waits, if nothing rings before.
    waits_until_ms: u64,
    stopped: bool,
}

impl Work {
    /// Tells the engine what happened and carries out what it says.
    fn round(&mut self, waiting: Waiting, is_tick: bool, clock: Clock) {
        if self.stopped {
            return;
        }
        let now_ms = clock.now_ms();
        let mut out = Outputs::default();
        if waiting.persisted > self.persisted {
            self.persisted = waiting.persisted;
            self.engine
                .handle(Event::Persisted(self.persisted), now_ms, &mut out);
        }
        for event in waiting.events {
            self.engine.handle(event, now_ms, &mut out);
        }
        if is_tick {
            self.engine.handle(Event::Tick, now_ms, &mut out);
        }
        debug_assert!(out.append.is_empty(), "only a turn appends");
        self.engine.turn(now_ms, clock.wall_ms(), &mut out);
        if let Some(outdated) = out.outdated {
            self.stopped = true;
            (self.on_outdated)(outdated);
        }
        for append in out.append {
            self.log.append(append);
        }
        if let Some(servers) = &out.servers {
            self.peers.set_servers(servers);
        }
        if !out.sends.is_empty() {
            self.peers.send(out.sends);
        }
        for what in out.send_snapshot {
            self.peers.send_snapshot(what);
        }
        if let Some(divergence) = out.diverged {
            self.stopped = true;
            self.log.diverged(divergence);
            return;
        }
        self.wake_at_ms = out.wake_at_ms;
        if let Some((meta, image)) = out.take_snapshot {
            self.log.take_snapshot(meta, image);
        }
    }
}

/// Starts the thread. It ends after [`Doorbell::stop`]. `on_outdated` is told why the process must
/// end.
pub fn start(
    engine: Engine,
    log: impl Log + 'static,
    peers: impl Peers + 'static,
    on_outdated: impl Fn(Outdated) + Send + 'static,
    doorbell: Arc<Doorbell>,
    clock: Clock,
) -> std::io::Result<JoinHandle<()>> {
    let bell = doorbell.clone();
    let tick = Duration::from_millis(engine.shared().options.tick_ms);
    engine.shared().on_submission(Box::new(move || bell.ring()));
    let node = Arc::new(Node {
        work: Mutex::new(Work {
            engine,
            log: Box::new(log),
            peers: Box::new(peers),
            on_outdated: Box::new(on_outdated),
            persisted: 0,
            wake_at_ms: None,
            waits_until_ms: u64::MAX,
            stopped: false,
        }),
        clock,
    });
    let known = doorbell.node.set(Arc::downgrade(&node));
    assert!(known.is_ok(), "a bell belongs to one node");
    std::thread::Builder::new()
        .name("node".into())
        .spawn(move || node.run(tick, &doorbell))
}

impl Node {
    fn run(&self, tick: Duration, doorbell: &Doorbell) {
        self.work
            .lock()
            .round(Waiting::default(), false, self.clock);
        let mut next_tick = Instant::now() + tick;
        loop {
            let mut left = next_tick.saturating_duration_since(Instant::now());
            {
                let mut work = self.work.lock();
                let now_ms = self.clock.now_ms();
                if let Some(wake_at_ms) = work.wake_at_ms {
                    let wanted_ms = wake_at_ms.saturating_sub(now_ms);
                    left = left.min(Duration::from_millis(wanted_ms));
                }
                work.waits_until_ms = now_ms + left.as_millis() as u64;
            }
            doorbell.wait(left);
            let mut work = self.work.lock();
            let waiting = doorbell.take();
            let stop = waiting.stop;
            let is_tick = Instant::now() >= next_tick;
            work.round(waiting, is_tick, self.clock);
            if is_tick {
                next_tick = Instant::now() + tick;
            }
            if stop {
                work.stopped = true;
                let hard_state = work.engine.hard_state();
                work.log.close(hard_state);
                return;
            }
        }
    }

    /// Does what the bell was rung for in the caller's thread. False: the node's thread must be
    /// woken, since there is more than a helper should do.
    fn help(&self, doorbell: &Doorbell) -> bool {
        // More of it may come meanwhile, but a helper has work of its own.
        const ROUNDS_MAX: usize = 2;
        // Whoever is at work looks at the bell again when it is done.
        let Some(mut work) = self.work.try_lock() else {
            return true;
        };
        for _ in 0..ROUNDS_MAX {
            let Some(waiting) = doorbell.take_work() else {
                break;
            };
            work.round(waiting, false, self.clock);
            if work
                .wake_at_ms
                .is_some_and(|at_ms| at_ms < work.waits_until_ms)
            {
                doorbell.wake();
            }
        }
        drop(work);
        // Whoever rang while the lock was held has found it held.
        !doorbell.is_rung()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use prost::Message as _;

    use super::*;
    use crate::engine::{Options, Setup};
    use crate::proto::log;

    /// A disk that is told of nothing but the order of another server's batches, and answers from a
    /// thread of its own.
    struct Order {
        written: mpsc::Sender<u64>,
        last: u64,
        overtaken: mpsc::Sender<(u64, u64)>,
    }

    impl Log for Order {
        fn append(&mut self, append: Append) {
            for entry in &append.record.entries {
                let entry = log::Entry::decode(&entry.data[..]).unwrap_or_default();
                for batch in entry.batches {
                    if batch.first < self.last {
                        let _ = self.overtaken.send((self.last, batch.first));
                    }
                    self.last = batch.first;
                }
            }
            let _ = self.written.send(append.number);
        }

        fn take_snapshot(&mut self, _meta: SnapshotMeta, _image: Image) {}

        fn diverged(&mut self, _divergence: Divergence) {}

        fn close(&mut self, _hard_state: HardState) {}
    }

    #[test]
    fn messages_of_a_server_do_not_overtake_each_other() {
        let setup = Setup::alone(Options {
            // Its own thread is often at work.
            tick_ms: 1,
            ..Options::default()
        });
        let (written, to_persist) = mpsc::channel();
        let (overtaken, overtakings) = mpsc::channel();
        let disk = Order {
            written,
            last: 0,
            overtaken,
        };
        let bell = Arc::new(Doorbell::default());
        let engine = Engine::new(setup, 0);
        let node = start(engine, disk, NoPeers, |_| {}, bell.clone(), Clock::start()).unwrap();
        let disk_bell = bell.clone();
        let disk = std::thread::spawn(move || {
            for number in to_persist {
                disk_bell.persisted(number, number % 2 == 0);
            }
        });
        for first in 1..=40_000 {
            let batch = log::Batch {
                origin: Some(log::Origin {
                    server: 2,
                    disk: 8,
                    incarnation: 1,
                }),
                first,
                commands: vec![log::Command::default()],
            };
            bell.messages(2, vec![PeerMessage::Forward(batch)]);
        }
        bell.stop();
        node.join().unwrap();
        drop(bell);
        disk.join().unwrap();
        assert_eq!(overtakings.try_iter().next(), None);
    }
}

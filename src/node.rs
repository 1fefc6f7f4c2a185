//! The node thread: drains events, asks the engine, carries out what it says.
//!
//! It owns the engine and decides nothing. What wakes it: a submitted command, a finished write of
//! the log, a finished snapshot, the next tick.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::engine::{Append, Engine, Event, Outputs, SnapshotMeta};
use crate::machine::Image;
use crate::net::Clock;
use crate::proto::log::HardState;

/// What the node thread needs from the disk.
pub trait Log: Send {
    /// Queues a record; [`Doorbell::persisted`] is rung when it is durable.
    fn append(&mut self, append: Append);
    /// Begins to write a snapshot; [`Doorbell::event`] tells how it ended.
    fn take_snapshot(&mut self, meta: SnapshotMeta, image: Image);
    /// Writes what is queued and closes. Blocks until that is done.
    fn close(&mut self, hard_state: HardState);
}

/// Wakes the node thread. Shared by everyone who has something for it.
#[derive(Debug, Default)]
pub struct Doorbell {
    waiting: Mutex<Waiting>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    rung: bool,
    stop: bool,
    persisted: u64,
    events: Vec<Event>,
}

impl Doorbell {
    /// There is something in the inbox.
    pub fn ring(&self) {
        self.change(|_| {});
    }

    /// Everything up to this number is durable.
    pub fn persisted(&self, number: u64) {
        self.change(|waiting| waiting.persisted = waiting.persisted.max(number));
    }

    pub fn event(&self, event: Event) {
        self.change(|waiting| waiting.events.push(event));
    }

    /// The thread is to end.
    pub fn stop(&self) {
        self.change(|waiting| waiting.stop = true);
    }

    fn change(&self, change: impl FnOnce(&mut Waiting)) {
        let mut waiting = self.waiting.lock();
        change(&mut waiting);
        let first = !std::mem::replace(&mut waiting.rung, true);
        drop(waiting);
        if first {
            self.rung.notify_one();
        }
    }

    /// Waits until rung, but not longer than this.
    fn wait(&self, at_most: Duration) -> Waiting {
        let mut waiting = self.waiting.lock();
        if !waiting.rung {
            self.rung.wait_for(&mut waiting, at_most);
        }
        let persisted = waiting.persisted;
        std::mem::replace(
            &mut *waiting,
            Waiting {
                persisted,
                ..Waiting::default()
            },
        )
    }
}

/// Starts the thread. It ends after [`Doorbell::stop`].
pub fn start(
    mut engine: Engine,
    mut log: impl Log + 'static,
    doorbell: Arc<Doorbell>,
    clock: Clock,
) -> std::io::Result<JoinHandle<()>> {
    let bell = doorbell.clone();
    engine.shared().on_submission(Box::new(move || bell.ring()));
    std::thread::Builder::new()
        .name("node".into())
        .spawn(move || run(&mut engine, &mut log, &doorbell, clock))
}

fn run(engine: &mut Engine, log: &mut impl Log, doorbell: &Doorbell, clock: Clock) {
    let tick_ms = engine.shared().options.tick_ms;
    let mut next_tick_ms = clock.now_ms() + tick_ms;
    let mut persisted = 0;
    loop {
        let mut out = Outputs::default();
        engine.turn(clock.now_ms(), clock.wall_ms(), &mut out);
        for append in out.append {
            log.append(append);
        }
        if let Some((meta, image)) = out.take_snapshot {
            log.take_snapshot(meta, image);
        }

        let now_ms = clock.now_ms();
        let waiting = doorbell.wait(Duration::from_millis(next_tick_ms.saturating_sub(now_ms)));
        let now_ms = clock.now_ms();
        let mut out = Outputs::default();
        if waiting.persisted > persisted {
            persisted = waiting.persisted;
            engine.handle(Event::Persisted(persisted), now_ms, &mut out);
        }
        for event in waiting.events {
            engine.handle(event, now_ms, &mut out);
        }
        if now_ms >= next_tick_ms {
            engine.handle(Event::Tick, now_ms, &mut out);
            next_tick_ms = now_ms + tick_ms;
        }
        debug_assert!(out.append.is_empty(), "only a turn appends");
        if waiting.stop {
            log.close(engine.hard_state());
            return;
        }
    }
}

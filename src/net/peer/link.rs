//! The link to one peer: both lanes, dialled from here, and dialled again when they break.
//!
//! A link is up when both lanes are, and broken when one is. Then the peer is dialled at once: if
//! its system says that nobody listens, its process is gone, which the server is told. From then
//! on it is dialled after ever longer pauses, and at once when it shows itself by dialling here.
//!
//! Messages wait while the first attempt lasts, and are dropped afterwards: what is old when a peer
//! comes back is of no use to it.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::frame::FrameReader;
use super::handshake::{self, Failure, FailureKind, Greeted, Socket};
use super::notice::Notice;
use super::presence::{Gate, Place};
use super::{Introduction, Over, Peer, Shared, stopped};
use crate::proto::peer::handshake::Step;
use crate::proto::peer::{Lane, Refusal};

/// The pause after the first failed attempt; it doubles
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// up to this.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The pause after an attempt that was cut off, as when a process ends just now: the next attempt
/// tells whether it is gone.
const PAUSE_CUT_OFF: Duration = Duration::from_millis(2);
/// So many times in a row.
const CUT_OFF_MAX: u32 = 3;
/// Bytes that are written together.
const BATCH_BYTES: usize = 4 << 20;
/// How long a link that ends in order may take to send what is queued.
const FINISH_PATIENCE: Duration = Duration::from_millis(500);

/// Keeps the link to a peer until it is gone or all is to stop.
pub(super) async fn keep(shared: Arc<Shared>, peer: Arc<Peer>) {
    let keeper = Keeper {
        outage: Outage::default(),
        notice: Notice::default(),
        shared,
        peer,
    };
    keeper.run().await;
}

struct Keeper {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    outage: Outage,
    notice: Notice,
}

/// The time without a link.
#[derive(Debug, Default)]
struct Outage {
    failures: u32,
    /// There was a link before, and nobody was told yet that the peer is gone.
    may_be_lost: bool,
}

/// A link that is up.
struct Link {
    urgent: Greeted,
    bulk: Greeted,
    gate: Arc<Gate>,
}

/// How a link ended.
enum End {
    Broken(String),
    /// This server has something new to say of itself, for which it must dial again.
    Introduce,
    /// There is to be no link.
    Over,
}

impl Keeper {
    async fn run(mut self) {
        let peer = self.peer.clone();
        let mut over = Over::of(&self.shared, &peer);
        self.set_queues(true);
        loop {
            let dialled = tokio::select! {
                dialled = self.dial() => dialled,
                () = over.wait() => break,
            };
            let failure = match dialled {
                Ok(link) => match self.carry(link, &mut over).await {
                    End::Over => break,
                    End::Introduce => {
                        self.outage.may_be_lost = true;
                        continue;
                    }
                    End::Broken(text) => {
                        self.broken(text);
                        continue;
                    }
                },
                Err(failure) => failure,
            };
            self.failed(&failure);
            let pause = self.outage.pause(&failure, self.spread());
            tokio::select! {
                () = sleep(pause) => {}
                () = peer.call.called.notified() => self.outage.failures = 0,
                () = over.wait() => break,
            }
        }
        self.set_queues(false);
    }

    async fn dial(&self) -> Result<Link, Failure> {
        let lanes = [Lane::Urgent, Lane::Bulk];
        let (address, mut greeted) = self.shared.dial(&self.peer, &lanes).await?;
        let (Some(bulk), Some(urgent)) = (greeted.pop(), greeted.pop()) else {
            unreachable!("both lanes were dialled");
        };
        let other = urgent.other;
        let gate = self
            .shared
            .presence
            .enter(&other, Place::Outgoing)
            .map_err(|text| Failure::new(FailureKind::Other, text))?;
        let mut state = self.peer.state.lock();
        state.address = Some(address);
        state.other = Some(other);
        Ok(Link { urgent, bulk, gate })
    }

    /// Sends over a link for as long as it lasts.
    async fn carry(&mut self, link: Link, over: &mut Over) -> End {
        let other = link.urgent.other;
        self.up(&other);
        let (finish, finishing) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for (greeted, is_urgent) in [(link.urgent, true), (link.bulk, false)] {
            let sender = Sender {
                shared: self.shared.clone(),
                peer: self.peer.clone(),
                is_urgent,
                me: greeted.me,
                finishing: finishing.clone(),
            };
            tasks.spawn(async move { Some(sender.run(greeted.socket).await) });
        }
        let end = loop {
            tokio::select! {
                ended = tasks.join_next() => match ended {
                    Some(Ok(Some(end))) => break end,
                    // It was in doubt, and still listens.
                    Some(Ok(None)) => {}
                    Some(Err(error)) => break End::Broken(error.to_string()),
                    None => break End::Broken("no lane is left".to_owned()),
                },
                () = link.gate.closed() => {
                    break End::Broken("it was started anew".to_owned());
                }
                () = self.peer.call.called.notified() => if self.peer.call.is_in_doubt() {
                    let (shared, peer) = (self.shared.clone(), self.peer.clone());
                    tasks.spawn(async move {
                        let is_gone = shared.is_gone(&peer).await;
                        is_gone.then(|| End::Broken("nobody listens there any more".to_owned()))
                    });
                },
                () = over.wait() => break End::Over,
            }
        };
        if !matches!(end, End::Broken(_)) {
            finish.send_replace(true);
            let all = async { while tasks.join_next().await.is_some() {} };
            let _ = timeout(FINISH_PATIENCE, all).await;
        }
        // What is sent from now on is for the next link: nobody may write it to this one.
        tasks.shutdown().await;
        self.shared.presence.leave(&link.gate);
        end
    }

    fn up(&mut self, other: &Introduction) {
        let mut state = self.peer.state.lock();
        state.is_linked = true;
        state.since = Instant::now();
        state.error = None;
        tracing::info!(
            server = other.server,
            address = ?state.address,
            start = other.boot,
            "linked"
        );
        drop(state);
        self.outage = Outage::default();
        self.notice.clear();
        self.set_queues(true);
        self.shared.host.linked(other);
    }

    fn broken(&mut self, text: String) {
        let server = self.peer.server;
        tracing::warn!(server, reason = text, "the link broke");
        self.down(text);
        self.outage = Outage {
            failures: 0,
            may_be_lost: true,
        };
        self.shared.host.unreachable(server.into());
    }

    fn failed(&mut self, failure: &Failure) {
        let server = self.peer.server;
        self.set_queues(false);
        self.outage.failures = self.outage.failures.saturating_add(1);
        if self.peer.state.lock().is_linked {
            // A link ended in order, and could not be made anew.
            self.shared.host.unreachable(server.into());
        }
        if failure.kind == FailureKind::NobodyListens
            && std::mem::take(&mut self.outage.may_be_lost)
        {
            self.shared.host.lost(server.into());
        }
        if self.notice.is_news(&failure.text) {
            tracing::warn!(server, reason = failure.text, "not linked");
        }
        self.down(failure.text.clone());
    }

    fn down(&self, text: String) {
        let mut state = self.peer.state.lock();
        if state.is_linked {
            state.is_linked = false;
            state.since = Instant::now();
        }
        state.error = Some(text);
    }

    fn set_queues(&self, open: bool) {
        for queue in [&self.peer.urgent, &self.peer.bulk] {
            match open {
                true => queue.open(),
                false => queue.close(),
            }
        }
    }

    /// A number that differs between pairs of servers, so that not all dial at the same moments.
    fn spread(&self) -> u32 {
        (self.shared.me.server * 31 + self.peer.server * 17) % 16
    }
}

impl Outage {
    /// How long not to dial.
    fn pause(&self, failure: &Failure, spread: u32) -> Duration {
        if failure.kind == FailureKind::CutOff && self.failures <= CUT_OFF_MAX {
            return PAUSE_CUT_OFF;
        }
        let doubled = PAUSE_MIN * (1 << self.failures.saturating_sub(1).min(6));
        let pause = doubled.min(PAUSE_MAX);
        pause + pause * spread / 64
    }
}

/// Writes one lane.
struct Sender {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    is_urgent: bool,
    /// What was said of this server when the lane was dialled.
    me: Introduction,
    finishing: watch::Receiver<bool>,
}

impl Sender {
    async fn run(mut self, socket: Socket) -> End {
        let Socket {
            mut read,
            mut write,
        } = socket;
        let mut closed = pin!(closed(&mut read));
        let peer = self.peer.clone();
        let queue = peer.lane(!self.is_urgent);
        loop {
            if self.shared.introduction_to(peer.server) != self.me {
                let _ = write.shutdown().await;
                // The other side has taken in everything when it closes too.
                let _ = timeout(FINISH_PATIENCE, closed).await;
                return End::Introduce;
            }
            let mut batch = queue.take(BATCH_BYTES);
            if queue.overflowed() {
                self.shared.host.unreachable(peer.server.into());
            }
            if batch.is_none() {
                if *self.finishing.borrow() {
                    let _ = write.shutdown().await;
                    let _ = timeout(FINISH_PATIENCE, closed).await;
                    return End::Over;
                }
                let waits = match queue.leave(write, self.me) {
                    Ok(waits) => waits,
                    Err(back) => {
                        write = back;
                        continue;
                    }
                };
                tokio::select! {
                    reason = &mut closed => return End::Broken(reason),
                    () = waits.woken() => {}
                    () = stopped(&mut self.finishing) => {}
                }
                let Some((back, rest)) = waits.ended() else {
                    return End::Broken("the link was given up".to_owned());
                };
                (write, batch) = (back, Some(rest));
            }
            if let Some(mut batch) = batch {
                tokio::select! {
                    reason = &mut closed => return End::Broken(reason),
                    written = write.write_all_buf(&mut batch) => {
                        if let Err(error) = written {
                            return End::Broken(error.to_string());
                        }
                    }
                }
            }
        }
    }
}

/// Waits until the other side closes the connection, and returns why. It has nothing else to say.
async fn closed<R: tokio::io::AsyncRead + Unpin>(read: &mut FrameReader<R>) -> String {
    match read.next().await {
        Ok(None) => "it closed the connection".to_owned(),
        Ok(Some(body)) => match handshake::decode(body) {
            Err(failure) => failure.text,
            Ok(Step::Refusal(Refusal { text, .. })) => handshake::refusal(&text).text,
            Ok(_) => "it says something where it has nothing to say".to_owned(),
        },
        Err(error) => error.to_string(),
    }
}

//! The receiving side of a transfer.
//!
//! One snapshot is received at a time, at the [`Desk`]. What was received of it stays there when a
//! connection breaks, and is given up when a different one is offered, or after some minutes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::OwnedMutexGuard;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::{PATIENCE, Progress, Trouble, hear, say};
use crate::engine::SnapshotMeta;
use crate::net::peer::frame::FrameReader;
use crate::net::peer::handshake::Socket;
use crate::net::peer::{Introduction, Shared, stopped};
use crate::proto::peer::transfer::Step;
use crate::proto::peer::{Accept, Chunk, Done, Failed, Offer, Stored};
use crate::storage::{CompressedChunk, Fault, SnapshotWriter};

/// How long half a snapshot is kept.
const KEEP: Duration = Duration::from_secs(300);
/// How long it is remembered that a snapshot was stored, for a sender that was not told.
const REMEMBER: Duration = Duration::from_secs(60);
/// How long an offer waits for the transfer before it.
const TURN_PATIENCE: Duration = Duration::from_secs(5);
/// How long the other side may take to hear the last word.
const LINGER: Duration = Duration::from_secs(5);

/// Where the one snapshot is that is being received.
#[derive(Default)]
pub(super) struct Desk {
    partial: Option<Partial>,
    stored: Option<(Key, Instant)>,
}

/// Part of a snapshot.
struct Partial {
    key: Key,
    writer: SnapshotWriter,
    touched: Instant,
}

/// What makes two offers the same: only then do the chunks of one continue those of the other.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Key {
    server: u32,
    disk: u64,
    offer: Offer,
}

type DeskGuard = OwnedMutexGuard<Desk>;

/// Receives a snapshot, or part of it. Returns how that ended.
pub(in crate::net) async fn receive(
    shared: &Arc<Shared>,
    socket: Socket,
    other: Introduction,
) -> String {
    let Socket {
        mut read,
        mut write,
    } = socket;
    let server = other.server;
    let (last, reason) = match negotiate(shared, &mut read, &mut write, other).await {
        Ok(()) => (Step::Stored(Stored {}), "the snapshot is stored".to_owned()),
        Err(trouble) => {
            let may_retry = matches!(trouble, Trouble::Passing(_));
            let text = trouble.into_text();
            tracing::warn!(server, reason = text, "a snapshot was not received");
            let failed = Failed {
                text: text.clone(),
                may_retry,
            };
            (Step::Failed(failed), text)
        }
    };
    // The connection may be what failed.
    if say(&mut write, last).await.is_ok() && write.shutdown().await.is_ok() {
        // Closed with something unread, the connection would be reset, and the last step lost.
        let _ = timeout(LINGER, async {
            while let Ok(Some(_)) = read.next().await {}
        })
        .await;
    }
    reason
}

/// Everything up to the snapshot that is stored.
async fn negotiate(
    shared: &Arc<Shared>,
    read: &mut FrameReader<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
    other: Introduction,
) -> Result<(), Trouble> {
    let Step::Offer(offer) = hear(read, PATIENCE).await? else {
        return Err(out_of_turn());
    };
    let (chunks, bytes) = (offer.chunks, offer.bytes);
    let index = offer.index;
    let key = Key {
        server: other.server,
        disk: other.disk,
        offer,
    };
    let desk = shared.transfers.desk.clone().lock_owned();
    let desk = timeout(TURN_PATIENCE, desk).await.map_err(|_| {
        Trouble::Passing("another snapshot is being received; this one may follow".to_owned())
    })?;
    let work = At {
        shared: shared.clone(),
        key,
    };
    let (mut desk, have) = at_desk(desk, move |desk| work.begin(desk)).await?;
    let Some(have) = have else {
        return Ok(());
    };
    say(write, Step::Accept(Accept { have_chunks: have })).await?;
    let server = u64::from(other.server);
    let has = (have, chunks);
    let mut progress = Progress::begin("receiving a snapshot", server, index, bytes, has);
    loop {
        match hear(read, PATIENCE).await? {
            Step::Chunk(chunk) => {
                progress.add(chunk.body.len());
                (desk, ()) = at_desk(desk, move |desk| desk.push(chunk)).await?;
            }
            Step::Done(done) => {
                let shared = shared.clone();
                at_desk(desk, move |desk| desk.finish(&shared, &done)).await?;
                progress.end();
                return Ok(());
            }
            _ => return Err(out_of_turn()),
        }
    }
}

/// Does something that may block. The desk is not lost when nobody waits for it any more.
async fn at_desk<T: Send + 'static>(
    mut desk: DeskGuard,
    work: impl FnOnce(&mut Desk) -> Result<T, Trouble> + Send + 'static,
) -> Result<(DeskGuard, T), Trouble> {
    let done = spawn_blocking(move || {
        let result = work(&mut desk);
        result.map(|result| (desk, result))
    });
    done.await
        .unwrap_or_else(|panic| Err(Trouble::Lasting(panic.to_string())))
}

fn out_of_turn() -> Trouble {
    Trouble::Lasting("the other side says something out of turn".to_owned())
}

fn lasting(fault: &Fault) -> Trouble {
    Trouble::Lasting(fault.survived())
}

/// An offer that was made.
struct At {
    shared: Arc<Shared>,
    key: Key,
}

impl At {
    /// Returns how many chunks are there already, or nothing if the whole snapshot was stored.
    fn begin(self, desk: &mut Desk) -> Result<Option<u64>, Trouble> {
        let meta = meta(&self.key.offer);
        if let Some((stored, at)) = &desk.stored
            && *stored == self.key
            && at.elapsed() < REMEMBER
        {
            // Should it be no good any more, the next attempt begins anew.
            desk.stored = None;
            desk.store(&self.shared, self.key)?;
            return Ok(None);
        }
        if let Some(partial) = &mut desk.partial
            && partial.key == self.key
        {
            partial.touched = Instant::now();
            return Ok(Some(partial.writer.chunks()));
        }
        // The old file goes before the new one is made.
        desk.partial = None;
        let received = self.shared.host.receive_snapshot(&meta);
        let writer = received.map_err(|fault| lasting(&fault))?;
        desk.partial = Some(Partial {
            key: self.key.clone(),
            writer,
            touched: Instant::now(),
        });
        let shared = self.shared.clone();
        self.shared.spawn(give_up(shared, self.key));
        Ok(Some(0))
    }
}

impl Desk {
    fn push(&mut self, chunk: Chunk) -> Result<(), Trouble> {
        let partial = self.partial.as_mut().ok_or_else(out_of_turn)?;
        partial.touched = Instant::now();
        let next = partial.writer.chunks();
        if chunk.number != next || next >= partial.key.offer.chunks {
            return Err(out_of_turn());
        }
        let chunk = CompressedChunk {
            body: chunk.body,
            raw_len: chunk.raw_len,
            checksum: chunk.checksum,
        };
        partial.writer.push_compressed(&chunk).map_err(|fault| {
            if let Fault::CorruptSnapshot { reason, .. } = &fault {
                return Trouble::Passing(format!("chunk {next}: {reason}"));
            }
            // A file that a write has failed on is not trusted.
            self.partial = None;
            lasting(&fault)
        })
    }

    fn finish(&mut self, shared: &Shared, done: &Done) -> Result<(), Trouble> {
        let Partial { key, writer, .. } = self.partial.take().ok_or_else(out_of_turn)?;
        let chunks = writer.chunks();
        if (chunks, chunks) != (done.chunks, key.offer.chunks) || writer.raw_bytes() != done.bytes {
            return Err(Trouble::Passing(
                "what was sent is not what was offered".to_owned(),
            ));
        }
        writer.finish().map_err(|fault| lasting(&fault))?;
        self.store(shared, key)
    }

    /// Hands over a snapshot that is durable. One that cannot be loaded is not stored.
    fn store(&mut self, shared: &Shared, key: Key) -> Result<(), Trouble> {
        let (from, meta) = (key.server.into(), meta(&key.offer));
        let received = shared.host.snapshot_received(from, meta);
        received.map_err(|fault| lasting(&fault))?;
        self.stored = Some((key, Instant::now()));
        Ok(())
    }
}

fn meta(offer: &Offer) -> SnapshotMeta {
    SnapshotMeta {
        index: offer.index,
        term: offer.term,
        membership: offer.membership.clone().unwrap_or_default(),
        zxid: offer.zxid,
        digest: offer.digest,
    }
}

/// Removes a part of a snapshot that nobody goes on with.
async fn give_up(shared: Arc<Shared>, key: Key) {
    let mut stop = shared.stop.clone();
    let mut pause = KEEP;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            () = stopped(&mut stop) => return,
        }
        let mut desk = shared.transfers.desk.clone().lock_owned().await;
        let Some(partial) = desk.partial.as_ref().filter(|partial| partial.key == key) else {
            return;
        };
        let untouched = partial.touched.elapsed();
        if untouched >= KEEP {
            let (server, index) = (key.server, key.offer.index);
            tracing::warn!(server, index, "half a snapshot is given up");
            // Removing a file is quick.
            desk.partial = None;
            return;
        }
        pause = KEEP - untouched;
    }
}

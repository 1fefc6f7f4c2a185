//! The sending side of a transfer.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use super::{PATIENCE, Progress, Transfers, Trouble, hear, say};
use crate::engine::SnapshotMeta;
use crate::net::peer::handshake::Socket;
use crate::net::peer::notice::printable;
use crate::net::peer::{Over, Peer, Shared};
use crate::proto::peer::transfer::Step;
use crate::proto::peer::{Accept, Chunk, Done, Failed, Lane, Offer};
use crate::storage::{CompressedChunk, Fault, SnapshotReader};

/// The pause after the first failed attempt; it doubles
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Chunks that are read ahead of what is sent.
const READ_AHEAD: usize = 2;
/// The other side syncs a large file in it.
const STORE_PATIENCE: Duration = Duration::from_secs(120);

/// Sends a snapshot when its turn has come. Returns whether the other server has it.
pub(in crate::net) async fn send(shared: &Arc<Shared>, to: u64, index: u64, term: u64) -> bool {
    let Some(peer) = shared.peer(to) else {
        tracing::warn!(
            server = to,
            index,
            "a snapshot for a server that is no peer"
        );
        return false;
    };
    let mut over = Over::of(shared, &peer);
    let sent = async {
        let is_stored = send_in_turn(shared, &peer, index, term).await;
        if !is_stored {
            // Whoever hears of it tries again at once; the disk may be full there for hours.
            sleep(PAUSE_MAX.min(shared.transfers.patience)).await;
        }
        is_stored
    };
    tokio::select! {
        is_stored = sent => is_stored,
        () = over.wait() => false,
    }
}

async fn send_in_turn(shared: &Arc<Shared>, peer: &Peer, index: u64, term: u64) -> bool {
    let transfers = &shared.transfers;
    let _turn = peer.transfer.lock().await;
    let _place = transfers.sent.acquire().await;
    let host = shared.host.clone();
    let opened = spawn_blocking(move || host.open_snapshot(index, term)).await;
    let reader = match opened {
        Ok(Ok(reader)) => reader,
        failed => {
            let reason = match failed {
                Ok(failed) => failed.err().map(|fault| fault.survived()),
                Err(panic) => Some(panic.to_string()),
            };
            let server = peer.server;
            tracing::error!(server, index, reason, "a snapshot cannot be sent");
            shared.host.snapshot_unreadable(index);
            return false;
        }
    };
    let sending = Sending {
        shared,
        peer,
        transfers,
        index,
        reader: Some(reader),
        reached: 0,
    };
    sending.run().await
}

struct Sending<'a> {
    shared: &'a Shared,
    peer: &'a Peer,
    transfers: &'a Transfers,
    index: u64,
    /// Opened once, so that the file may be removed meanwhile. `None` after it failed.
    reader: Option<SnapshotReader>,
    /// How many chunks were sent, or the other side has.
    reached: u64,
}

impl Sending<'_> {
    async fn run(mut self) -> bool {
        let (server, index) = (self.peer.server, self.index);
        let mut until = Instant::now() + self.transfers.patience;
        let mut pause = PAUSE_MIN;
        loop {
            let reached = self.reached;
            let trouble = match self.attempt().await {
                Ok(()) => return true,
                Err(trouble) => trouble,
            };
            if self.reached > reached {
                until = Instant::now() + self.transfers.patience;
                pause = PAUSE_MIN;
            }
            match trouble {
                Trouble::Passing(reason) if Instant::now() + pause < until => {
                    tracing::info!(server, index, reason, "a snapshot is sent again");
                }
                Trouble::Passing(reason) | Trouble::Lasting(reason) => {
                    tracing::warn!(server, index, reason, "a snapshot was not sent");
                    return false;
                }
                Trouble::Unreadable(reason) => {
                    tracing::error!(server, index, reason, "a snapshot cannot be sent");
                    self.shared.host.snapshot_unreadable(index);
                    return false;
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Sends what the other side does not have.
    async fn attempt(&mut self) -> Result<(), Trouble> {
        let dialled = self.shared.dial(self.peer, &[Lane::Snapshot]).await;
        let (_, mut greeted) = dialled.map_err(|failure| Trouble::Passing(failure.text))?;
        let greeted = greeted.pop().expect("one lane was dialled");
        let Socket {
            mut read,
            mut write,
        } = greeted.socket;
        let (offer, bytes) = {
            let reader = self.reader.as_ref().ok_or_else(unreadable)?;
            (offer(reader), reader.bytes())
        };
        let chunks = offer.chunks;
        say(&mut write, Step::Offer(offer)).await?;
        let have = match hear(&mut read, PATIENCE).await? {
            Step::Accept(Accept { have_chunks }) if have_chunks <= chunks => have_chunks,
            Step::Stored(_) => return Ok(()),
            step => return Err(trouble(step)),
        };
        self.reached = self.reached.max(have);
        let server = self.peer.server.into();
        let has = (have, chunks);
        let mut progress = Progress::begin("sending a snapshot", server, self.index, bytes, has);

        let (feeder, fed) = self.feed(have)?;
        let sent = tokio::select! {
            sent = self.send_chunks(&mut write, fed, have..chunks, &mut progress) => sent,
            // Nothing but a failure can come now.
            step = hear(&mut read, Duration::MAX) => Err(step.map_or_else(|it| it, trouble)),
        };
        self.reader = feeder.await.ok();
        sent?;
        let bytes = self.reader.as_ref().ok_or_else(unreadable)?.raw_bytes();
        say(&mut write, Step::Done(Done { chunks, bytes })).await?;
        match hear(&mut read, STORE_PATIENCE).await? {
            Step::Stored(_) => {
                progress.end();
                Ok(())
            }
            step => Err(trouble(step)),
        }
    }

    /// Reads the file from this chunk on in a thread of its own, which gives the reader back.
    fn feed(&mut self, from: u64) -> Result<(JoinHandle<SnapshotReader>, Fed), Trouble> {
        let mut reader = self.reader.take().ok_or_else(unreadable)?;
        let (feed, fed) = mpsc::channel(READ_AHEAD);
        let feeder = spawn_blocking(move || {
            if let Err(fault) = reader.skip_to(from) {
                // Nobody hears of it if the attempt has failed already; so it is below.
                let _ = feed.blocking_send(Err(fault));
                return reader;
            }
            while let Some(chunk) = reader.next_compressed() {
                if feed.blocking_send(chunk).is_err() {
                    break;
                }
            }
            reader
        });
        Ok((feeder, fed))
    }

    async fn send_chunks(
        &mut self,
        write: &mut OwnedWriteHalf,
        mut fed: Fed,
        numbers: Range<u64>,
        progress: &mut Progress,
    ) -> Result<(), Trouble> {
        for number in numbers {
            // The file is checked to the end: after the last chunk, there is nothing left to read.
            let chunk = fed.recv().await.ok_or_else(unreadable)?;
            let chunk = chunk.map_err(|fault| Trouble::Unreadable(fault.survived()))?;
            let length = chunk.body.len();
            self.transfers.rate.take(length).await;
            let CompressedChunk {
                body,
                raw_len,
                checksum,
            } = chunk;
            let chunk = Chunk {
                number,
                raw_len,
                checksum,
                body,
            };
            say(write, Step::Chunk(chunk)).await?;
            progress.add(length);
            self.reached = self.reached.max(number + 1);
        }
        match fed.recv().await {
            None => Ok(()),
            Some(Err(fault)) => Err(Trouble::Unreadable(fault.survived())),
            Some(Ok(_)) => Err(unreadable()),
        }
    }
}

type Fed = mpsc::Receiver<Result<CompressedChunk, Fault>>;

fn offer(reader: &SnapshotReader) -> Offer {
    let SnapshotMeta {
        index,
        term,
        membership,
        zxid,
        digest,
    } = reader.meta();
    Offer {
        index,
        term,
        membership: Some(membership),
        zxid,
        digest,
        chunks: reader.chunks(),
        bytes: reader.bytes(),
    }
}

fn unreadable() -> Trouble {
    Trouble::Unreadable("the file of the snapshot cannot be read to its end".to_owned())
}

/// What another step means than the one that was expected.
fn trouble(step: Step) -> Trouble {
    match step {
        Step::Failed(Failed { text, may_retry }) => {
            let text = printable(&text);
            match may_retry {
                true => Trouble::Passing(text),
                false => Trouble::Lasting(text),
            }
        }
        _ => Trouble::Passing("the other side says something out of turn".to_owned()),
    }
}

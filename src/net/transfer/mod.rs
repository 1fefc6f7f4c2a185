//! Snapshots from server to server, each on a connection of its own, so that nothing waits for
//! them.
//!
//! ```text
//! sender                                                        receiver
//!   offer (what it is a snapshot of, how many chunks) ──►
//!                                            ◄── accept (how many are there already)
//!   chunk ──► chunk ──► …  done (how many, how long) ──►
//!                                            ◄── stored (durable, and loaded by its server)
//! ```
//!
//! Chunks travel as they are in the file, with the checksums that they have there, so what is wrong
//! with one is noticed wherever it happened. What was received when a connection broke is kept for
//! some minutes, and the next attempt goes on from there.

mod rate;
mod receive;
mod send;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::proto::peer::Transfer;
use crate::proto::peer::transfer::Step;

use super::peer::frame::{Batch, FrameReader};
use rate::Rate;

pub(super) use receive::receive;
pub(super) use send::send;

/// Snapshots that are sent at a time.
const SENT_MAX: usize = 2;
/// The other side has so long for its next step, or to take in what it is sent.
const PATIENCE: Duration = Duration::from_secs(30);
/// Two lines about one transfer are this far apart.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What all transfers of a server share.
pub(super) struct Transfers {
    sent: Semaphore,
    rate: Rate,
    /// How long one is tried without getting on.
    patience: Duration,
    desk: Arc<tokio::sync::Mutex<receive::Desk>>,
}

impl Transfers {
    pub fn new(bytes_per_second: u64, patience: Duration) -> Self {
        Self {
            sent: Semaphore::new(SENT_MAX),
            rate: Rate::new(bytes_per_second),
            patience,
            desk: Arc::default(),
        }
    }
}

/// Why a transfer did not succeed. The text is for operators.
#[derive(Debug)]
enum Trouble {
    /// Another attempt may.
    Passing(String),
    Lasting(String),
    /// The sender's own file cannot be read: it needs another one.
    Unreadable(String),
}

impl Trouble {
    fn into_text(self) -> String {
        match self {
            Self::Passing(text) | Self::Lasting(text) | Self::Unreadable(text) => text,
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Passing(error.to_string())
    }
}

async fn say(write: &mut OwnedWriteHalf, step: Step) -> Result<(), Trouble> {
    let mut batch = Batch::default();
    batch.push(Transfer { step: Some(step) }.encode_to_vec());
    let mut batch = batch.sealed();
    match timeout(PATIENCE, write.write_all_buf(&mut batch)).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(Trouble::Passing("the other side takes in nothing".into())),
    }
}

/// The next step of the other side, which has so long for it.
async fn hear(read: &mut FrameReader<OwnedReadHalf>, patience: Duration) -> Result<Step, Trouble> {
    let passing = |text: String| Trouble::Passing(text);
    let frame = timeout(patience, read.next())
        .await
        .map_err(|_| passing("the other side says nothing".into()))?
        .map_err(|error| passing(error.to_string()))?
        .ok_or_else(|| passing("the other side closed the connection".into()))?;
    let transfer = Transfer::decode(frame).map_err(|error| passing(error.to_string()))?;
    transfer
        .step
        .ok_or_else(|| passing("a step that this version does not know".into()))
}

/// Follows a transfer in the log.
struct Progress {
    /// Such as "sending a snapshot".
    what: &'static str,
    server: u64,
    index: u64,
    /// Length of the file.
    total: u64,
    bytes: u64,
    start: Instant,
    logged: Instant,
}

impl Progress {
    fn begin(what: &'static str, server: u64, index: u64, total: u64, chunks: (u64, u64)) -> Self {
        let (have, all) = chunks;
        tracing::info!(server, index, bytes = total, chunks = all, have, "{what}");
        Self {
            what,
            server,
            index,
            total,
            bytes: 0,
            start: Instant::now(),
            logged: Instant::now(),
        }
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if self.logged.elapsed() >= LOG_EVERY {
            self.logged = Instant::now();
            self.log("under way");
        }
    }

    fn end(&self) {
        self.log("done");
    }

    fn log(&self, state: &str) {
        let took = self.start.elapsed();
        let per_second = self.bytes as f64 / took.as_secs_f64().max(0.001);
        tracing::info!(
            server = self.server,
            index = self.index,
            transferred_kib = self.bytes / 1024,
            total_kib = self.total / 1024,
            duration_ms = took.as_millis() as u64,
            kib_per_second = (per_second / 1024.0) as u64,
            "{}: {state}",
            self.what
        );
    }
}

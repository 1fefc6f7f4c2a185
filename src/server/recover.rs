//! `zkraft recover`: the directories of a server that does not run, opened as a start opens them.

use crate::config::Config;
use crate::engine::{Alone, Survivor, SurvivorFacts, Unfit};
use crate::machine::Machine;
use crate::metrics::Metrics;
use crate::net::Clock;
use crate::storage::{Fault, Progress, Storage};

use super::{StartError, load, setup, storage_config};

/// Why a server cannot be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("there is no data of zkraft in {0}")]
    NoData(String),
    #[error("a server in memory leaves nothing to be recovered")]
    InMemory,
    /// As of a start.
    #[error(transparent)]
    Open(#[from] StartError),
    #[error(
        "the server is a cluster of its own now, but no snapshot could be written, which must be \
         there before others are added: {0}; start it, and add none before its log says \
         \"snapshot written\""
    )]
    Snapshot(Fault),
    #[error("server {server} cannot become a cluster of its own: {why}")]
    Unfit { server: u64, why: Unfit },
}

/// A server whose directories are locked while this lives.
pub struct Stopped {
    storage: Storage,
    survivor: Survivor,
}

impl Stopped {
    /// Locks and reads the directories, as a start does.
    ///
    /// # Errors
    /// Above all if the server runs, or if it has no data.
    pub fn open(config: &Config, progress: Option<Progress>) -> Result<Self, RecoverError> {
        if config.in_memory {
            return Err(RecoverError::InMemory);
        }
        let metrics = std::sync::Arc::new(Metrics::default());
        let storage_config = storage_config(config, progress, &metrics);
        if !storage_config.has_log() {
            let dir = config.log_dir.display().to_string();
            return Err(RecoverError::NoData(dir));
        }
        let (recovered, storage) =
            Storage::open::<Machine>(storage_config, load).map_err(StartError::from)?;
        let setup = setup(config, recovered, metrics)?;
        Ok(Self {
            storage,
            survivor: Survivor::new(setup),
        })
    }

    pub fn facts(&self) -> &SurvivorFacts {
        self.survivor.facts()
    }

    /// Leaves everything as it is.
    ///
    /// # Errors
    /// The disk fails.
    pub fn leave(self) -> Result<(), RecoverError> {
        Ok(self.storage.close().map_err(StartError::from)?)
    }

    /// Makes it a cluster of its own: wholly, or not at all.
    ///
    /// # Errors
    /// It is not fit for that; then nothing has changed. Or the disk fails.
    pub fn recover(self) -> Result<(), RecoverError> {
        let random = getrandom::u64().map_err(|error| StartError::Entropy(error.to_string()))?;
        let wall_ms = Clock::start().wall_ms();
        let server = self.facts().server;
        let mut storage = self.storage;
        let alone = self.survivor.alone(random, wall_ms);
        if let Ok(Alone {
            record,
            meta,
            image,
        }) = &alone
        {
            storage.write(record.clone()).map_err(StartError::from)?;
            storage
                .write_snapshot(meta, image.chunks())
                .map_err(RecoverError::Snapshot)?;
        }
        storage.close().map_err(StartError::from)?;
        match alone {
            Ok(_) => Ok(()),
            Err(why) => Err(RecoverError::Unfit { server, why }),
        }
    }
}

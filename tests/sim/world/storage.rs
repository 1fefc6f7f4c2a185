//! The threads that write: the log's groups and the snapshots.
//!
//! Played as the storage does it: one group is written and synced while the next gathers, an idle
//! log is sealed, a snapshot that got its name releases what no kept snapshot needs.

use std::path::Path;
use std::sync::Arc;

use zkraft::engine::{Event, Outputs, SnapshotMeta};
use zkraft::proto::log;
use zkraft::storage::{Fault, SnapshotWriter, list_snapshots, purge_snapshots};

use super::process::IDENTITY;
use super::*;

pub(super) const LOG_DIR: &str = "/data/log";
pub(super) const SNAPSHOT_DIR: &str = "/data/snapshot";
/// An idle log is sealed after this time, in µs.
pub(super) const SEAL_US: u64 = 1_000_000;

impl World {
    /// Takes everything that is queued, unless it is busy.
    pub(super) fn start_write(&mut self) -> Verdict {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        if server.written.is_some() || server.queue.is_empty() {
            return Ok(());
        }
        let records = std::mem::take(&mut server.queue);
        let sync = std::mem::take(&mut server.queued_sync);
        let number = server.queued_number;
        let index = records
            .iter()
            .flat_map(|record| &record.entries)
            .last()
            .map_or(0, |e| e.index);
        let state = records.iter().rev().find_map(|record| record.hard_state);
        let boot = server.boot;
        server.written_us = self.now_us;
        if self.sabotage != Sabotage::ForgetWrites
            && let Err(fault) = server.wal.write(&records)
        {
            note!(self, "{fault}");
            return self.log_failed(&fault);
        }
        let server = self.server.as_mut().expect("it runs");
        let state = state.unwrap_or(self.checks.log.written_state());
        server.written = Some(Written {
            number,
            index,
            state,
            sync,
        });
        if self.sabotage == Sabotage::AckBeforeSync {
            let mut out = Outputs::default();
            let now_ms = self.now_us / 1000;
            server
                .engine
                .handle(Event::Persisted(number), now_ms, &mut out);
            self.turn_soon();
        }
        let slow = self.rng.permille(self.params.slow_sync_permille);
        let longest_us = if slow {
            self.params.slow_sync_us
        } else {
            self.params.sync_us
        };
        let after_us = if sync {
            self.rng.between(1, longest_us)
        } else {
            1
        };
        self.at(self.now_us + after_us, What::Synced { boot });
        Ok(())
    }

    pub(super) fn synced(&mut self) -> Verdict {
        let now_ms = self.clock_ms();
        let server = self.server.as_mut().expect("it runs");
        let Some(Written {
            number,
            index,
            state,
            sync,
        }) = server.written.take()
        else {
            return Ok(());
        };
        if sync {
            if let Err(fault) = server.wal.sync() {
                note!(self, "{fault}");
                return self.log_failed(&fault);
            }
            self.checks.log.synced(index, state);
        }
        let server = self.server.as_mut().expect("it runs");
        let mut out = Outputs::default();
        server
            .engine
            .handle(Event::Persisted(number), now_ms, &mut out);
        self.start_write()?;
        self.turn_soon();
        Ok(())
    }

    pub(super) fn seal(&mut self) -> Verdict {
        let server = self.server.as_mut().expect("it runs");
        let boot = server.boot;
        if server.written.is_none()
            && self.now_us > server.written_us + SEAL_US
            && let Err(fault) = server.wal.seal_if_idle()
        {
            note!(self, "{fault}");
            return self.log_failed(&fault);
        }
        self.at(self.now_us + SEAL_US, What::Seal { boot });
        Ok(())
    }

    pub(super) fn log_failed(&mut self, fault: &Fault) -> Verdict {
        if self.healed {
            return broken(Group::Log, format!("the disk is well, but: {fault}"));
        }
        self.disk_died();
        Ok(())
    }

    pub(super) fn begin_snapshot(
        &mut self,
        mut meta: SnapshotMeta,
        image: &zkraft::machine::Image,
    ) -> Verdict {
        note!(self, "snapshot at {}, zxid {:x}", meta.index, meta.zxid);
        if self.sabotage == Sabotage::SnapshotOneShort {
            meta.index += 1;
        }
        let disk = Arc::new(self.disk.clone());
        let dir = Path::new(SNAPSHOT_DIR);
        let written =
            SnapshotWriter::create(disk, dir, IDENTITY.cluster, &meta).and_then(|mut writer| {
                for chunk in image.chunks() {
                    writer.push(&chunk)?;
                }
                Ok(writer)
            });
        let now_ms = self.clock_ms();
        let server = self.server.as_mut().expect("it runs");
        match written {
            Ok(writer) => {
                server.snapshot = Some((meta, writer));
                let boot = server.boot;
                let after_us = self.rng.between(1_000, 500_000);
                self.at(self.now_us + after_us, What::SnapshotWritten { boot });
            }
            Err(fault) => {
                note!(self, "snapshot: {fault}");
                let server = self.server.as_mut().expect("it runs");
                server
                    .engine
                    .handle(Event::SnapshotFailed, now_ms, &mut Outputs::default());
            }
        }
        Ok(())
    }

    pub(super) fn snapshot_written(&mut self) -> Verdict {
        let now_ms = self.clock_ms();
        let server = self.server.as_mut().expect("it runs");
        let Some((meta, writer)) = server.snapshot.take() else {
            return Ok(());
        };
        match writer.finish() {
            Err(fault) => {
                note!(self, "snapshot: {fault}");
                let server = self.server.as_mut().expect("it runs");
                server
                    .engine
                    .handle(Event::SnapshotFailed, now_ms, &mut Outputs::default());
                Ok(())
            }
            Ok(bytes) => {
                note!(self, "snapshot {} written", meta.index);
                self.stats.snapshots += 1;
                let server = self.server.as_mut().expect("it runs");
                let event = Event::SnapshotTaken {
                    index: meta.index,
                    bytes,
                };
                server.engine.handle(event, now_ms, &mut Outputs::default());
                let mark = log::SnapshotMark {
                    index: meta.index,
                    term: meta.term,
                    membership: Some(meta.membership),
                };
                let record = log::Record {
                    mark: Some(mark),
                    ..log::Record::default()
                };
                server.queue.push(record);
                self.purge()?;
                self.start_write()
            }
        }
    }

    /// Removes what no kept snapshot needs, as the storage does.
    pub(super) fn purge(&mut self) -> Verdict {
        let dir = Path::new(SNAPSHOT_DIR);
        let keep = self.params.keep_snapshots.max(2);
        let purged =
            purge_snapshots(&self.disk, dir, keep).and_then(|()| list_snapshots(&self.disk, dir));
        let server = self.server.as_mut().expect("it runs");
        if let Ok(files) = purged
            && files.len() > 1
        {
            let floor = files[files.len().min(keep) - 1].index + 1;
            if let Err(fault) = server.wal.release_below(floor) {
                server.suspect = true;
                note!(self, "release: {fault}");
            }
        }
        Ok(())
    }
}

//! The threads that write: the log's groups and the snapshots.
//!
//! Played as the storage does it: one group is written and synced while the next gathers, an idle
//! log is sealed, a snapshot that got its name releases what no kept snapshot needs.

use std::path::Path;
use std::sync::Arc;

use zkraft::engine::{Event, SnapshotMeta};
use zkraft::machine::Machine;
use zkraft::proto::log;
use zkraft::storage::{Fault, SnapshotWriter, list_snapshots, purge_snapshots};

use super::*;

pub(super) const LOG_DIR: &str = "/data/log";
pub(super) const SNAPSHOT_DIR: &str = "/data/snapshot";
/// An idle log is sealed after this time, in µs.
pub(super) const SEAL_US: u64 = 1_000_000;

impl World {
    /// Takes everything that is queued, unless it is busy.
    pub(super) fn start_write(&mut self, server: usize) -> Verdict {
        let now_us = self.now_us;
        let Some(process) = &mut self.hosts[server].process else {
            return Ok(());
        };
        if process.written.is_some() || process.queue.is_empty() {
            return Ok(());
        }
        let records = std::mem::take(&mut process.queue);
        let sync = std::mem::take(&mut process.queued_sync);
        let number = process.queued_number;
        process.written_us = now_us;
        if self.sabotage != Sabotage::ForgetWrites
            && let Err(fault) = process.wal.write(&records)
        {
            note!(self, "{server}: {fault}");
            return self.log_failed(server, &fault);
        }
        process.written = Some((number, sync));
        if self.sabotage == Sabotage::AckBeforeSync {
            self.persisted(server, number)?;
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
        self.step_at(self.now_us + after_us, server, Step::Synced);
        Ok(())
    }

    pub(super) fn synced(&mut self, server: usize) -> Verdict {
        let process = self.process(server);
        let Some((number, sync)) = process.written.take() else {
            return Ok(());
        };
        if sync {
            if let Err(fault) = process.wal.sync() {
                note!(self, "{server}: {fault}");
                return self.log_failed(server, &fault);
            }
            self.checks.logs[server].synced(number);
        }
        self.persisted(server, number)?;
        self.start_write(server)
    }

    pub(super) fn seal(&mut self, server: usize) -> Verdict {
        let now_us = self.now_us;
        let process = self.process(server);
        if process.written.is_none()
            && now_us > process.written_us + SEAL_US
            && let Err(fault) = process.wal.seal_if_idle()
        {
            note!(self, "{server}: {fault}");
            return self.log_failed(server, &fault);
        }
        self.step_at(self.now_us + SEAL_US, server, Step::Seal);
        Ok(())
    }

    pub(super) fn log_failed(&mut self, server: usize, fault: &Fault) -> Verdict {
        if self.healed {
            return broken(
                Group::Log,
                format!("the disk of {server} is well, but: {fault}"),
            );
        }
        self.disk_died(server);
        Ok(())
    }

    pub(super) fn begin_snapshot(
        &mut self,
        server: usize,
        mut meta: SnapshotMeta,
        mut image: zkraft::machine::Image,
    ) -> Verdict {
        note!(
            self,
            "{server}: snapshot at {}, zxid {:x}",
            meta.index,
            meta.zxid
        );
        self.checks.members.check_snapshot(server, &meta)?;
        if self.sabotage == Sabotage::SnapshotOneShort
            && let Some(short) = self.short_of(&meta)
        {
            (meta, image) = (short.0, short.1.image());
        }
        let disk = Arc::new(self.hosts[server].disk.clone());
        let cluster = self.hosts[server].identity().cluster;
        let dir = Path::new(SNAPSHOT_DIR);
        let written = SnapshotWriter::create(disk, dir, cluster, &meta).and_then(|mut writer| {
            for chunk in image.chunks() {
                writer.push(&chunk)?;
            }
            Ok(writer)
        });
        match written {
            Ok(writer) => {
                self.process(server).snapshot = Some((meta, writer));
                let after_us = self.rng.between(1_000, 500_000);
                self.step_at(self.now_us + after_us, server, Step::SnapshotWritten);
            }
            Err(fault) => self.snapshot_failed(server, &fault)?,
        }
        Ok(())
    }

    /// Sabotaged: a snapshot that lacks its last entry, in place of this one.
    pub(super) fn short_of(&self, meta: &SnapshotMeta) -> Option<(SnapshotMeta, Machine)> {
        Sabotage::short_of(&self.checks.cluster.prefix(meta.index), meta)
    }

    fn snapshot_failed(&mut self, server: usize, fault: &Fault) -> Verdict {
        note!(self, "{server}: snapshot: {fault}");
        self.handle(server, Event::SnapshotFailed)
    }

    pub(super) fn snapshot_written(&mut self, server: usize) -> Verdict {
        let Some((meta, writer)) = self.process(server).snapshot.take() else {
            return Ok(());
        };
        let bytes = match writer.finish() {
            Ok(bytes) => bytes,
            Err(fault) => return self.snapshot_failed(server, &fault),
        };
        let event = Event::SnapshotTaken {
            index: meta.index,
            bytes,
        };
        self.handle(server, event)?;
        let process = self.process(server);
        process.queue.push(log::Record {
            mark: Some(meta.mark()),
            ..log::Record::default()
        });
        note!(self, "{server}: snapshot {} written", meta.index);
        self.stats.snapshots += 1;
        self.purge(server);
        self.start_write(server)
    }

    /// Removes what no kept snapshot needs, as the storage does.
    pub(super) fn purge(&mut self, server: usize) {
        let dir = Path::new(SNAPSHOT_DIR);
        let keep = self.params.keep_snapshots.max(2);
        let disk = &self.hosts[server].disk;
        let purged = purge_snapshots(disk, dir, keep).and_then(|()| list_snapshots(disk, dir));
        let process = self.process(server);
        if let Ok(files) = purged
            && files.len() > 1
        {
            let floor = files[files.len().min(keep) - 1].index;
            if let Err(fault) = process.wal.release_below(floor) {
                process.suspect = true;
                note!(self, "{server}: release: {fault}");
            }
        }
    }
}

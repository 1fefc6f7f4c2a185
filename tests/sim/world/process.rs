//! The server's process: its start from the disk, its node thread's turns, its end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prost::Message as _;
use zkraft::engine::{Append, AuthOptions, CleanerOptions, Engine, Event, Options, Outputs, Setup};
use zkraft::machine::{Machine, OriginId};
use zkraft::proto::log;
use zkraft::storage::{Fault, Identity, Known, SnapshotReader, WalOptions, recover};

use super::storage::{LOG_DIR, SEAL_US, SNAPSHOT_DIR};
use super::*;

const SERVER: u32 = 1;
pub(super) const IDENTITY: Identity = Identity {
    cluster: 0xc1,
    server: SERVER,
    disk: 0xd15c,
};

impl World {
    /// Recovers from the disk and starts.
    pub(super) fn start(&mut self) -> Verdict {
        if self.server.is_some() {
            return Ok(());
        }
        self.boot += 1;
        let boot = self.boot;
        let load = |reader: Option<SnapshotReader>| match reader {
            None => Ok(Machine::new()),
            Some(reader) => {
                let path = reader.path().to_owned();
                Machine::restore(reader).map_err(|error| Fault::RejectedSnapshot {
                    path,
                    reason: error.to_string(),
                })
            }
        };
        let disk: Arc<dyn zkraft::storage::Disk> = Arc::new(self.disk.clone());
        let options = WalOptions {
            segment_bytes: self.params.segment_bytes,
            ..WalOptions::default()
        };
        let known = Known {
            identity: IDENTITY,
            incarnation: None,
            last_group: None,
        };
        let dirs = (Path::new(LOG_DIR), Path::new(SNAPSHOT_DIR));
        let (mut recovery, wal) = match recover(&disk, dirs, options, known, None, load) {
            Ok(recovered) => recovered,
            Err(fault) => {
                note!(self, "start {boot} fails: {fault}");
                let expected = matches!(
                    fault,
                    Fault::Io { .. } | Fault::DiskFull { .. } | Fault::Sync { .. }
                );
                if !expected || self.healed {
                    return broken(Group::Log, format!("8: cannot start: {fault}"));
                }
                self.disk_died();
                let at = self.now_us + self.rng.between(100_000, 1_000_000);
                self.at(at, What::Start);
                return Ok(());
            }
        };
        self.sabotage.recovered(&mut recovery.entries);
        let base = recovery.snapshot.as_ref().map_or(0, |meta| meta.index);
        note!(
            self,
            "start {boot}: snapshot {base}, {} entries, {:?}, {} warnings",
            recovery.entries.len(),
            recovery.hard_state,
            recovery.warnings.len()
        );
        self.checks
            .log
            .recovered(base, &recovery.entries, recovery.hard_state)?;

        let membership = recovery.membership.unwrap_or_else(|| log::Membership {
            voters: vec![u64::from(SERVER)],
            ..log::Membership::default()
        });
        let passwords = AtomicU64::new(self.rng.next());
        let setup = Setup {
            origin: OriginId {
                server: SERVER,
                disk: IDENTITY.disk,
                incarnation: recovery.incarnation,
            },
            options: self.options(),
            random: Box::new(move || Rng::new(passwords.fetch_add(1, Ordering::Relaxed)).bytes16()),
            logger: slog::Logger::root(slog::Discard, slog::o!()),
            machine: recovery.machine,
            hard_state: recovery.hard_state,
            membership,
            entries: recovery.entries,
            snapshot_due: recovery.snapshot_due,
            admitted: true,
        };
        let engine = Engine::new(setup, self.clock_ms());
        let shared = engine.shared();
        let wakes = Wakes::default();
        let node = wakes.node.clone();
        shared.on_submission(Box::new(move || node.store(true, Ordering::Relaxed)));
        self.server = Some(Server {
            boot,
            engine,
            shared,
            wal,
            queue: Vec::new(),
            queued_number: 0,
            queued_sync: false,
            written: None,
            suspect: false,
            snapshot: None,
            turn_due: false,
            serving: false,
            wakes,
            written_us: self.now_us,
        });
        if let Some(since) = self.down_since_us.take() {
            self.not_run_us += self.now_us - since;
        }
        self.at(self.now_us + TICK_MS * 1000, What::Tick { boot });
        self.at(self.now_us + SEAL_US, What::Seal { boot });
        self.turn()
    }

    pub(super) fn options(&self) -> Options {
        let never_used_ms = 0;
        Options {
            tick_ms: TICK_MS,
            session_tick_ms: self.params.session_tick_ms,
            min_session_timeout_ms: self.params.timeouts_ms.0,
            max_session_timeout_ms: self.params.timeouts_ms.1,
            snap_count: self.params.snap_count,
            cleaner: CleanerOptions {
                interval_ms: self.params.cleaner_ms,
                per_minute: 60_000,
                never_used_ms,
            },
            auth: AuthOptions::default(),
            settings: self.params.settings.clone(),
            ..Options::default()
        }
    }

    /// The process ends. `power`: the machine with it.
    pub(super) fn stop(&mut self, why: &str, power: bool) {
        let Some(server) = self.server.take() else {
            return;
        };
        note!(
            self,
            "stop: {why}{}",
            if power { ", power lost" } else { "" }
        );
        drop(server);
        self.stats.crashes += 1;
        self.down_since_us = Some(self.now_us);
        if self.paused_until_us > self.now_us {
            // The rest of the pause was counted in advance.
            self.cut_pause();
            self.paused_until_us = self.now_us;
        }
        if power {
            self.lose_power();
        }
        let silent = power && self.rng.percent(50);
        let conns: Vec<ConnId> = self.links.keys().copied().collect();
        for conn in conns {
            self.checks.gone(conn);
            let Some(link) = self.links.get_mut(&conn) else {
                continue;
            };
            link.server = None;
            link.accepted = true;
            link.input.clear();
            link.cut |= silent;
            self.close_down(conn);
        }
        let after_us = self.rng.between(10_000, 2_000_000);
        self.at(self.now_us + after_us, What::Start);
    }

    /// The process is told to stop: it writes and syncs what it has and the newest hard state.
    pub(super) fn stop_cleanly(&mut self) -> Verdict {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let state = server.engine.hard_state();
        let mut records = std::mem::take(&mut server.queue);
        records.push(log::Record {
            hard_state: Some(state),
            ..log::Record::default()
        });
        let last = records.iter().flat_map(|record| &record.entries).last();
        let written = server.written.as_ref().map_or(0, |written| written.index);
        let index = last.map_or(written, |entry| entry.index);
        let wal = &mut server.wal;
        let closed = wal
            .write(&records)
            .and_then(|_| wal.sync())
            .and_then(|()| wal.seal_if_idle())
            .and_then(|()| wal.sync());
        match closed {
            Err(fault) => {
                note!(self, "{fault}");
                self.log_failed(&fault)
            }
            Ok(()) => {
                for record in &records {
                    self.checks.log.rewritten(record)?;
                }
                self.checks.log.synced(index, state);
                self.stats.clean_stops += 1;
                let power = self.rng.percent(50);
                self.stop("told to", power);
                Ok(())
            }
        }
    }

    /// A fault of the disk ends the process; sometimes the machine goes down with it. If not, the
    /// next start reads from the cache also what the disk does not have.
    pub(super) fn disk_died(&mut self) {
        self.stats.disk_faults += 1;
        let power = self.power_fails || self.rng.percent(50);
        if !power && self.rng.percent(50) {
            // The dangerous order: a start from the cache, then a loss of power.
            let after_us = self.rng.between(0, 4_000_000);
            self.at(self.now_us + after_us, What::PowerLoss);
        }
        if self.server.is_some() {
            self.stop("the disk failed", power);
        } else if power {
            self.lose_power();
        }
    }

    pub(super) fn tick(&mut self) -> Verdict {
        let now_ms = self.clock_ms();
        let server = self.server.as_mut().expect("it runs");
        let mut out = Outputs::default();
        server.engine.handle(Event::Tick, now_ms, &mut out);
        let boot = server.boot;
        self.at(self.now_us + TICK_MS * 1000, What::Tick { boot });
        self.turn()
    }

    pub(super) fn turn(&mut self) -> Verdict {
        let (now_ms, wall_ms) = (self.clock_ms(), self.wall_ms());
        let server = self.server.as_mut().expect("it runs");
        server.turn_due = false;
        server.wakes.node.store(false, Ordering::Relaxed);
        let mut out = Outputs::default();
        server.engine.turn(now_ms, wall_ms, &mut out);
        self.checks.ran_ms = self.ran_ms();
        for append in out.append {
            self.append(append)?;
        }
        self.compare(false)?;
        self.serving_changed();
        if let Some((meta, image)) = out.take_snapshot {
            self.begin_snapshot(meta, &image)?;
        }
        self.start_write()?;
        self.look_at_wakes();
        Ok(())
    }

    /// Lets the checkers follow what was applied.
    pub(super) fn compare(&mut self, deep: bool) -> Verdict {
        let Some(server) = &self.server else {
            return Ok(());
        };
        let deep = deep || self.rng.permille(3);
        self.checks.applied(&server.engine, deep)
    }

    pub(super) fn serving_changed(&mut self) {
        let ran_ms = self.ran_ms();
        let Some(server) = &mut self.server else {
            return;
        };
        let serving = server.shared.is_serving();
        if serving != server.serving {
            server.serving = serving;
            self.checks.sessions.serving(ran_ms);
            note!(self, "serving: {serving}");
        }
    }

    pub(super) fn append(&mut self, append: Append) -> Verdict {
        let Append {
            number,
            record,
            sync,
        } = append;
        let indexes = (record.entries.first(), record.entries.last());
        if let (Some(first), Some(last)) = indexes {
            note!(
                self,
                "append {number}: {}..={}, term {}",
                first.index,
                last.index,
                last.term
            );
        }
        self.checks.log.appended(&record)?;
        let ran_ms = self.ran_ms();
        for entry in &record.entries {
            let content = log::Entry::decode(entry.data.as_ref());
            let internal = content.map(|content| content.internal).unwrap_or_default();
            self.checks
                .sessions
                .proposed(&internal, ran_ms, &self.checks.model)?;
        }
        let server = self.server.as_mut().expect("it runs");
        server.queue.push(record);
        server.queued_number = number;
        server.queued_sync |= sync;
        Ok(())
    }
}

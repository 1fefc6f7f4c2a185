//! A server's process: its start from the disk, its node thread's turns, its end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prost::Message as _;
use zkraft::engine::{Append, AuthOptions, CleanerOptions, Engine, Event, Options, Outputs, Setup};
use zkraft::machine::{Ensemble, OriginId};
use zkraft::proto::log;
use zkraft::storage::{Fault, Known, WalOptions, recover};

use super::storage::{LOG_DIR, SEAL_US, SNAPSHOT_DIR};
use super::transfer::load;
use super::*;
use crate::check::content;
use crate::check::members::Members;
use crate::check::sessions::{Tended, When};
use crate::disk::Faults;
use crate::mix::{SUPER, digest_id};
use crate::model::own;

/// A leader that was confirmed so long ago, in ms, may have lost its majority.
const CONFIRMED_MS: u64 = 1_000;
/// A reconfig is over so long after it was asked for, in µs.
const ASKED_US: u64 = 10_000_000;

impl World {
    /// Recovers from the disk and starts.
    pub(super) fn start(&mut self, server: usize) -> Verdict {
        if self.hosts[server].process.is_some() {
            return Ok(());
        }
        if server >= self.params.servers && self.checks.model.ensemble.is_none() {
            // Whoever is to join is started once there is something to join.
            let at = self.now_us + self.rng.between(100_000, 1_000_000);
            self.at(at, What::Start { server });
            return Ok(());
        }
        self.hosts[server].is_off = false;
        self.choose_build(server);
        let is_begun = self.checks.model.index > 0;
        let is_first = self.hosts[server].boot == 0 && server < self.params.servers;
        self.stats.late_founders += u64::from(is_first && is_begun);
        self.hosts[server].boot += 1;
        let boot = self.hosts[server].boot;
        let identity = self.hosts[server].identity();
        let disk: Arc<dyn zkraft::storage::Disk> = Arc::new(self.hosts[server].disk.clone());
        let options = WalOptions {
            segment_bytes: self.params.segment_bytes,
            ..WalOptions::default()
        };
        let known = Known {
            identity,
            incarnation: None,
            last_group: None,
        };
        let dirs = (Path::new(LOG_DIR), Path::new(SNAPSHOT_DIR));
        let is_unread = self.begin_unread(server);
        let recovered = recover(&disk, dirs, options, known, None, load);
        if is_unread {
            self.hosts[server].disk.set_faults(Faults::default());
        }
        let (mut recovery, wal) = match recovered {
            Ok(recovered) => recovered,
            Err(fault) => {
                note!(self, "{server}: start {boot} fails: {fault}");
                if self.is_refused_for_rot(server, &fault) {
                    return Ok(());
                }
                let expected = matches!(
                    fault,
                    Fault::Io { .. } | Fault::DiskFull { .. } | Fault::Sync { .. }
                );
                if !expected || self.healed {
                    return broken(Group::Log, format!("8: {server} cannot start: {fault}"));
                }
                self.disk_died(server);
                let at = self.now_us + self.rng.between(100_000, 1_000_000);
                self.at(at, What::Start { server });
                return Ok(());
            }
        };
        self.sabotage.recovered(&mut recovery);
        if recovery.machine.level() > self.believed_build(server).level {
            note!(self, "{server}: start {boot} fails: too old");
            self.stats.too_old += 1;
            self.hosts[server].is_too_old = true;
            let at = self.now_us + self.rest.between(100_000, 1_000_000);
            self.at(at, What::Start { server });
            return Ok(());
        }
        let base = recovery.snapshot.as_ref().map_or(0, |meta| meta.index);
        note!(
            self,
            "{server}: start {boot}: snapshot {base}, {} entries, {:?}, {} warnings",
            recovery.entries.len(),
            recovery.hard_state,
            recovery.warnings.len()
        );
        let torn = recovery
            .warnings
            .iter()
            .filter(|warning| warning.starts_with("cut a torn"));
        self.stats.torn_tails += torn.count() as u64;
        let applied = recovery.machine.applied().index;
        self.checks
            .recovered(server, base, &recovery.entries, recovery.hard_state)?;
        let build = self.hosts[server].build;
        self.checks.started(server, build, applied)?;

        let mut configured = self.configured(server);
        configured.voters = self.sabotage.voters(configured.voters, identity.server);
        let admitted = configured.voters == [u64::from(identity.server)];
        let peers = [&configured.voters[..], &configured.learners[..]].concat();
        let mut membership = recovery.membership.unwrap_or(configured);
        self.sabotage.members(&mut membership);
        let incarnation = recovery.incarnation;
        let passwords = AtomicU64::new(self.rng.next());
        let setup = Setup {
            origin: OriginId {
                server: identity.server,
                disk: identity.disk,
                incarnation,
            },
            options: self.options(server),
            random: Box::new(move || Rng::new(passwords.fetch_add(1, Ordering::Relaxed)).bytes16()),
            logger: slog::Logger::root(slog::Discard, slog::o!()),
            machine: recovery.machine,
            hard_state: recovery.hard_state,
            membership,
            entries: recovery.entries,
            snapshot_due: recovery.snapshot_due,
            admitted: admitted || self.sabotage == Sabotage::AdmitEmpty,
        };
        let clock_ms = self.clock_ms(server);
        let engine = Engine::new(setup, clock_ms);
        let host = &mut self.hosts[server];
        let mut process = Process::new(boot, incarnation, engine, wal, self.now_us);
        process.served_ms = clock_ms;
        host.process = Some(process);
        host.awoke_ms = clock_ms;
        if let Some(since) = host.down_since_us.take() {
            host.not_run_us += self.now_us - since;
        }
        self.stirred(self.now_us);
        self.step_at(self.now_us + TICK_MS * 1000, server, Step::Tick);
        self.step_at(self.now_us + SEAL_US, server, Step::Seal);
        let peers = peers.into_iter().map(|id| id as usize - 1).collect();
        self.set_peers(server, peers);
        self.turn(server)
    }

    fn options(&self, server: usize) -> Options {
        let never_used_ms = 0;
        let build = self.believed_build(server);
        Options {
            tick_ms: TICK_MS,
            session_tick_ms: match self.sabotage {
                Sabotage::NeverEnd => u64::MAX >> 8,
                _ => self.params.session_tick_ms,
            },
            min_session_timeout_ms: self.params.timeouts_ms.0,
            max_session_timeout_ms: self.params.timeouts_ms.1,
            // Runs are short.
            compare_every: 20,
            sync_limit_ms: self.params.sync_limit_ms,
            linearizable_reads: self.params.linearizable_reads
                && self.sabotage != Sabotage::StaleReads,
            snap_count: self.params.snap_count,
            cleaner: CleanerOptions {
                interval_ms: self.params.cleaner_ms,
                per_minute: 60_000,
                never_used_ms,
            },
            auth: AuthOptions {
                super_digest: Some(digest_id(SUPER)),
                ..AuthOptions::default()
            },
            log_kept: self.params.log_kept,
            ensemble: self.lines(server),
            settings: self.params.settings.clone(),
            local_sessions: self.params.local.sessions && self.sabotage != Sabotage::TellOfLocal,
            local_session_upgrades: self.params.local.upgrades
                && self.sabotage != Sabotage::KeepLocal,
            read_only_after_ms: self
                .params
                .read_only_after_ms
                .filter(|_| self.sabotage != Sabotage::NeverReadOnly),
            found_with_majority: self.params.founding.by_majority
                || self.sabotage == Sabotage::FoundAnyway,
            level: build.level,
            level_max: build.level_max,
            ..Options::default()
        }
    }

    /// The process ends. `power`: the machine with it.
    pub(super) fn stop(&mut self, server: usize, why: &str, power: bool) {
        let host = &mut self.hosts[server];
        let Some(process) = host.process.take() else {
            return;
        };
        note!(
            self,
            "{server}: stop: {why}{}",
            if power { ", power lost" } else { "" }
        );
        drop(process);
        self.stats.crashes += 1;
        host.is_off = power;
        host.down_since_us = Some(self.now_us);
        // The rest of a pause was counted in advance.
        let asleep = host.cut_pause(self.now_us);
        if power {
            host.lose_power();
        }
        for what in asleep {
            self.at(self.now_us, what);
        }
        self.process_ended(server);
        let silent = power && self.rng.percent(50);
        let conns: Vec<ConnId> = self.conns_to(server);
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
        self.at(self.now_us + after_us, What::Start { server });
    }

    /// The process is told to stop: it writes and syncs what it has and the newest hard state.
    pub(super) fn stop_cleanly(&mut self, server: usize) -> Verdict {
        let Some(process) = &mut self.hosts[server].process else {
            return Ok(());
        };
        let last = log::Record {
            hard_state: Some(process.engine.hard_state()),
            ..log::Record::default()
        };
        let mut records = std::mem::take(&mut process.queue);
        records.push(last.clone());
        let wal = &mut process.wal;
        let closed = wal
            .write(&records)
            .and_then(|_| wal.sync())
            .and_then(|()| wal.seal_if_idle())
            .and_then(|()| wal.sync());
        match closed {
            Err(fault) => {
                note!(self, "{server}: {fault}");
                self.log_failed(server, &fault)
            }
            Ok(()) => {
                let log = &mut self.checks.logs[server];
                log.appended(u64::MAX, &last)?;
                log.synced(u64::MAX);
                self.stats.clean_stops += 1;
                let power = self.rng.percent(50);
                self.stop(server, "told to", power);
                Ok(())
            }
        }
    }

    /// A fault of the disk ends the process; sometimes the machine goes down with it. If not, the
    /// next start reads from the cache also what the disk does not have.
    pub(super) fn disk_died(&mut self, server: usize) {
        self.stats.disk_faults += 1;
        let power = self.hosts[server].power_fails || self.rng.percent(50);
        if !power && self.rng.percent(50) {
            // The dangerous order: a start from the cache, then a loss of power.
            let after_us = self.rng.between(0, 4_000_000);
            self.at(self.now_us + after_us, What::PowerLoss { server });
        }
        if self.hosts[server].process.is_some() {
            self.stop(server, "the disk failed", power);
        } else if power {
            self.hosts[server].lose_power();
        }
    }

    pub(super) fn tick(&mut self, server: usize) -> Verdict {
        let now_ms = self.clock_ms(server);
        let mut out = Outputs::default();
        self.process(server)
            .engine
            .handle(Event::Tick, now_ms, &mut out);
        let is_outside = self.is_outside(server);
        if is_outside {
            self.process(server).outside_ms = now_ms;
        }
        self.carry_out(server, out)?;
        self.step_at(self.now_us + TICK_MS * 1000, server, Step::Tick);
        self.spoil(server);
        self.turn(server)?;
        let process = self.hosts[server].process.as_ref();
        let serves = process.is_some_and(|process| process.shared.is_serving());
        if is_outside && serves && self.is_outside(server) {
            let what = format!("24: {server} serves, and knows that it was removed");
            return broken(Group::Sessions, what);
        }
        self.check_ends(server)
    }

    /// 24: a leader for whom nothing goes wrong ends the sessions that nobody has any more.
    fn check_ends(&mut self, server: usize) -> Verdict {
        let (now_ms, ran_ms) = (self.clock_ms(server), self.ran_ms(server));
        let Some(process) = &self.hosts[server].process else {
            return Ok(());
        };
        let (engine, shared) = (&process.engine, &process.shared);
        // From then on it keeps the sessions' time, and has a majority.
        let confirmed_ms = shared.confirmed_ms();
        let is_heard = confirmed_ms >= process.leads_ms;
        let is_heard = is_heard && confirmed_ms.saturating_add(CONFIRMED_MS) >= now_ms;
        // A reconfig waits for all that is on its way, and ends wait for that.
        let asked_us = self.reconfigured_us;
        let is_quiet = asked_us == 0 || self.now_us >= asked_us + ASKED_US;
        let is_settled = engine.leader() == u64::from(self.hosts[server].id)
            && is_heard
            && is_quiet
            && self.is_membership_settled()
            && process.stops_us.is_none();
        // Who is not read, since it is owed an answer, is not silent: so nobody with a connection.
        let open = self.links.iter().filter(|(_, link)| link.server.is_some());
        let attended = open.filter_map(|(conn, _)| self.checks.session_of(*conn));
        let tended = Tended {
            server,
            term: engine.term(),
            is_settled,
            ran_ms,
            attended: attended.collect(),
        };
        self.checks.tends(tended, &shared.state.read().machine)
    }

    /// Whether a server knows that it does not belong to the ensemble.
    fn is_outside(&self, server: usize) -> bool {
        let host = &self.hosts[server];
        let Some(process) = &host.process else {
            return false;
        };
        let Some(newest) = process.shared.newest_ensemble() else {
            return false;
        };
        let is_applied = {
            let state = process.shared.state.read();
            state.machine.ensemble().map(Ensemble::version) == Some(newest.version())
        };
        // Who is to go is needed until the change is through.
        let members = Members::from(&process.engine.membership()).all();
        newest.members().iter().all(|line| line.id != host.id)
            && !(is_applied && members.contains(&u64::from(host.id)))
    }

    /// Sabotaged: the state changes by itself, once.
    fn spoil(&mut self, server: usize) {
        let shared = self.process(server).engine.shared();
        let mut state = shared.state.write();
        if self.checks.spoilt.is_none()
            && let Some(machine) = self.sabotage.spoilt(server, &state.machine)
        {
            state.machine = machine;
            if self.sabotage == Sabotage::FlipBit {
                self.checks.spoilt = Some(server);
            }
        }
    }

    pub(super) fn turn(&mut self, server: usize) -> Verdict {
        let now_ms = self.turn_clock_ms(server);
        let wall_ms = self.hosts[server].wall_ms(self.now_us);
        let process = self.process(server);
        process.turn_due = false;
        process.wakes.node.store(false, Ordering::Relaxed);
        let mut out = Outputs::default();
        process.engine.turn(now_ms, wall_ms, &mut out);
        self.look_who_leads(server)?;
        if let Some(divergence) = out.diverged.take() {
            return broken(Group::Alarm, format!("9: {server} stops: {divergence}"));
        }
        for append in std::mem::take(&mut out.append) {
            self.append(server, append)?;
        }
        if let Some(servers) = out.servers.take() {
            let peers = servers.iter().map(|line| line.id as usize - 1).collect();
            self.set_peers(server, peers);
        }
        let before_ms = std::mem::replace(&mut self.process(server).wake_at_ms, out.wake_at_ms);
        if let Some(wake_at_ms) = out.wake_at_ms.filter(|_| out.wake_at_ms != before_ms) {
            let after_ms = wake_at_ms.saturating_sub(now_ms);
            self.step_at(self.now_us + after_ms * 1000, server, Step::Turn);
        }
        let snapshot = out.take_snapshot.take();
        let is_outdated = out.outdated.is_some();
        self.carry_out(server, out)?;
        self.compare(server, false)?;
        if is_outdated {
            return self.outdated(server);
        }
        self.serving_changed(server, now_ms);
        if let Some((meta, image)) = snapshot {
            self.begin_snapshot(server, meta, image)?;
        }
        self.start_write(server)?;
        self.introduce_anew(server);
        self.look_at_wakes(server);
        self.take_aim(server);
        self.count_silence(server)
    }

    fn look_who_leads(&mut self, server: usize) -> Verdict {
        let (now_ms, ran_ms) = (self.clock_ms(server), self.ran_ms(server));
        let engine = &self.process(server).engine;
        let (term, leader) = (engine.term(), engine.leader());
        if leader == u64::from(self.hosts[server].id) && self.checks.leads(server, term, ran_ms)? {
            note!(self, "{server}: leads in term {term}");
            self.process(server).leads_ms = now_ms;
            self.check_founders()?;
            if self.is_calm() {
                return broken(Group::Liveness, "25: another leader without any cause");
            }
            self.stats.elections += u64::from(self.hosts.len() > 1);
            self.stirred(self.now_us);
        }
        Ok(())
    }

    /// Lets the checkers follow what was applied.
    pub(super) fn compare(&mut self, server: usize, deep: bool) -> Verdict {
        let deep = deep || self.rng.below(300 * self.hosts.len() as u64) == 0;
        let ran_ms = self.ran_ms(server);
        let Some(process) = &self.hosts[server].process else {
            return Ok(());
        };
        let changes = self.checks.members.changes();
        self.checks.applied(server, &process.engine, ran_ms, deep)?;
        if self.checks.members.changes() > changes {
            note!(self, "members: {:?}", self.checks.members.present());
            self.stirred(self.now_us);
            if self.checks.members.is_beyond_repair(&self.checks.model) {
                return broken(Group::BeyondRepair, "a majority has lost its disks");
            }
            if self.depends_on_rot() {
                return broken(Group::BeyondRepair, "a disk with rot is indispensable");
            }
        }
        Ok(())
    }

    fn serving_changed(&mut self, server: usize, now_ms: u64) {
        let limit_ms = self
            .params
            .sync_limit_ms
            .min(self.params.timeouts_ms.0 as u64 / 2);
        let now_us = self.now_us;
        let serves = self.process(server).shared.is_serving();
        let is_outside = !serves && self.is_outside(server);
        let process = self.process(server);
        if is_outside || now_ms > process.shared.confirmed_ms().saturating_add(limit_ms) {
            process.silent_us = Some(now_us);
        }
        let serving = process.shared.is_serving();
        if serving {
            process.served_ms = now_ms;
        }
        if !process.shared.is_read_only() {
            process.not_read_only_ms = now_us / 1000;
        }
        if serving != std::mem::replace(&mut process.serving, serving) {
            self.stats.silences += u64::from(!serving);
            note!(self, "{server}: serving: {serving}");
        }
    }

    fn append(&mut self, server: usize, append: Append) -> Verdict {
        let Append {
            number,
            record,
            sync,
        } = append;
        let indexes = (record.entries.first(), record.entries.last());
        if let (Some(first), Some(last)) = indexes {
            note!(
                self,
                "{server}: append {number}: {}..={}, term {}",
                first.index,
                last.index,
                last.term
            );
        }
        if self.checks.appended(server, number, &record)? {
            note!(self, "{server}: installed a snapshot");
            self.stats.installs += 1;
            let now_us = self.now_us;
            self.process(server).installed_us = Some(now_us);
            self.stirred(now_us);
        }
        let when = When {
            ran_ms: self.ran_ms(server),
            now_ms: self.now_us / 1000,
            calm_ms: self.healed.then_some(self.calm_us / 1000),
            latency_ms: self.params.peers.latency_us.max(self.params.latency_us) / 1000,
        };
        let clock_ms = self.clock_ms(server);
        let term = self.process(server).engine.term();
        let leads = self.checks.cluster.leader(term) == Some(server);
        // What it wrote as the leader of an earlier term may come back from others.
        let own = record
            .entries
            .iter()
            .filter(|entry| leads && entry.term == term);
        for entry in own {
            let content = log::Entry::decode(content(entry)).unwrap_or_default();
            if let Some(change) = &content.change {
                note!(self, "{server}: proposes {:?}", change.steps);
            }
            for command in content.internal.iter().filter(|c| c.op == own::SET) {
                let set = log::Set::decode(command.body.as_ref()).unwrap_or_default();
                note!(self, "{server}: sets {} to {}", set.name, set.value);
            }
            let internal = content.internal;
            let place = (entry.index, entry.term);
            self.checks
                .proposed(server, place, &internal, when, clock_ms)?;
        }
        let process = self.process(server);
        process.queue.push(record);
        process.queued_number = number;
        process.queued_sync |= sync;
        if self.sabotage == Sabotage::SpeakBeforeWrite {
            self.persisted(server, number)?;
        }
        Ok(())
    }

    /// The engine is told that everything up to this number is durable.
    pub(super) fn persisted(&mut self, server: usize, number: u64) -> Verdict {
        self.handle(server, Event::Persisted(number))
    }
}

//! What goes wrong, and the end of it.

use super::*;
use crate::client::Action;
use crate::disk::Faults;
use crate::met::Situation;

impl World {
    pub(super) fn schedule_troubles(&mut self) {
        for trouble in Trouble::ALL {
            self.schedule_trouble(trouble);
        }
    }

    fn schedule_trouble(&mut self, trouble: Trouble) {
        if matches!(trouble, Trouble::Rot) {
            if let Some(at_us) = self.next_rot_us() {
                self.at(at_us, What::Fault(trouble));
            }
            return;
        }
        let mean_us = match trouble {
            Trouble::Crash => self.params.crash_every_us,
            Trouble::Restart => self.params.restart_every_us,
            Trouble::Pause => self.params.pause_every_us,
            Trouble::Reset => self.params.reset_every_us,
            Trouble::Disk => self.params.disk_fault_every_us,
            Trouble::Full => self.params.full_disk_every_us,
            Trouble::ClockJump => self.params.clock_jump_every_us,
            Trouble::Partition => self.params.partition_every_us,
            Trouble::Flap => self.params.flap_every_us,
            Trouble::ClientCut => self.params.client_cut_every_us,
            Trouble::Wipe => self.params.wipe_every_us,
            Trouble::Rebuild => self.params.levels.restart_every_us,
            Trouble::Rot => 0,
        };
        if mean_us > 0 {
            let after_us = self.rng.between(1, 2 * mean_us);
            self.at(self.now_us + after_us, What::Fault(trouble));
        }
    }

    pub(super) fn trouble(&mut self, trouble: Trouble) -> Verdict {
        if self.healed {
            return Ok(());
        }
        if matches!(trouble, Trouble::Rot) {
            self.rot_somewhere()?;
        } else {
            let server = self.rng.below(self.hosts.len() as u64) as usize;
            self.meet(trouble, server)?;
        }
        self.schedule_trouble(trouble);
        Ok(())
    }

    pub(super) fn meet(&mut self, trouble: Trouble, server: usize) -> Verdict {
        if self.healed {
            return Ok(());
        }
        let situations = self.situations(trouble, server);
        let done = |stats: &Stats| stats.wipes + stats.rots;
        let before = done(&self.stats);
        match trouble {
            Trouble::Crash => self.crash(server),
            Trouble::Restart => self.begin_leaving(server)?,
            Trouble::Pause => self.pause(server),
            Trouble::Reset => {
                let conns: Vec<ConnId> = self.links.keys().copied().collect();
                if !conns.is_empty() {
                    let conn = *self.rng.pick(&conns);
                    self.reset(conn);
                }
            }
            Trouble::Disk => {
                let faults = match self.rng.below(3) {
                    0 => Faults {
                        write_permille: 200,
                        ..Faults::default()
                    },
                    1 => Faults {
                        sync_permille: 200,
                        ..Faults::default()
                    },
                    _ => Faults {
                        power_for: Some(self.rng.below(20)),
                        ..Faults::default()
                    },
                };
                self.disk_trouble(server, faults);
            }
            Trouble::Full => {
                let capacity = Some(self.rng.below(64 << 10));
                let faults = Faults {
                    capacity,
                    ..Faults::default()
                };
                self.disk_trouble(server, faults);
            }
            Trouble::ClockJump => {
                let by_ms = self.rng.between(0, 20_000) as i64 - 10_000;
                self.hosts[server].wall_skew_ms += by_ms;
                note!(self, "{server}: the wall clock jumps by {by_ms} ms");
            }
            Trouble::Partition => self.partition(),
            Trouble::Flap => self.flap(),
            Trouble::ClientCut => self.cut_from_clients(server),
            Trouble::Wipe => self.wipe(server),
            Trouble::Rebuild => self.begin_leaving(server)?,
            Trouble::Rot => self.rots(server),
        }
        let may_be = matches!(trouble, Trouble::Wipe | Trouble::Rot);
        if !may_be || done(&self.stats) > before {
            self.stats.met.count(trouble as usize, &situations);
        }
        Ok(())
    }

    /// What the running servers that a trouble meets are about: all of them if it is the network's.
    fn situations(&self, trouble: Trouble, server: usize) -> Vec<Situation> {
        let is_of_network = matches!(trouble, Trouble::Reset | Trouble::Partition | Trouble::Flap);
        let met = match is_of_network {
            true => 0..self.hosts.len(),
            false => server..server + 1,
        };
        let is_met = |situation: &Situation| {
            let mut met = met.clone();
            met.any(|server| self.is_about(*situation, server))
        };
        Situation::ALL.into_iter().filter(is_met).collect()
    }

    fn crash(&mut self, server: usize) {
        let power = self.rng.percent(70);
        self.stop(server, "crash", power);
        if self.hosts.len() > 1 && self.rng.permille(50) {
            note!(self, "all others crash as well");
            for server in 0..self.hosts.len() {
                self.stop(server, "crash", power);
            }
        }
        if self.rng.permille(100) {
            let client = self.rng.below(self.clients.len() as u64) as usize;
            note!(self, "client {client} dies");
            self.clients[client].die();
            if let Some(conn) = self.present[client].take() {
                self.close_client_side(conn, true);
            }
            if self.is_long {
                let at = self.now_us + self.rng.between(1_000_000, 10_000_000);
                self.at(at, What::Inherit { client });
            }
        }
    }

    pub(super) fn inherit(&mut self, client: usize) -> Verdict {
        if self.healed || !self.clients[client].is_dead() {
            return Ok(());
        }
        note!(self, "client {client} is replaced");
        let mut actions = Vec::new();
        self.clients[client].is_replaced(self.now_us, &mut actions);
        self.act(client, actions)
    }

    fn disk_trouble(&mut self, server: usize, faults: Faults) {
        note!(self, "{server}: disk: {faults:?}");
        let after_us = self.rng.between(100_000, 3_000_000);
        let host = &mut self.hosts[server];
        host.power_fails |= faults.power_for.is_some();
        host.disk.set_faults(faults);
        host.disk_trouble_until_us = self.now_us + after_us;
        let at = host.disk_trouble_until_us;
        self.at(at, What::Resume { server });
    }

    /// The process stops and goes on later: sockets fill, clocks go on.
    fn pause(&mut self, server: usize) {
        let host = &mut self.hosts[server];
        if host.process.is_none() || host.is_paused(self.now_us) {
            return;
        }
        let longest_us = self.params.timeouts_ms.0 as u64 * 3000;
        let shortest_us = 5 * TICK_MS * 1000;
        let pause_us = self.rng.between(shortest_us, longest_us.max(500_000));
        note!(self, "{server}: pause of {pause_us} µs");
        self.stats.pauses += 1;
        host.pause(self.now_us, pause_us, &self.params);
        self.at(self.now_us + pause_us, What::Awake { server });
    }

    /// The end of a pause: what came meanwhile is found in the order it came.
    pub(super) fn awake(&mut self, server: usize) -> Verdict {
        let host = &mut self.hosts[server];
        if host.is_paused(self.now_us) {
            return Ok(());
        }
        host.awoke_ms = host.clock_ms(self.now_us);
        // Now, since what comes in this very moment comes behind it.
        for what in std::mem::take(&mut host.asleep) {
            self.happen(what)?;
        }
        Ok(())
    }

    /// Nothing passes between a server and clients; nobody is told.
    fn cut_from_clients(&mut self, server: usize) {
        let until_us = self.now_us + self.rng.between(100_000, 4_000_000);
        note!(self, "{server}: cut from clients until {until_us} µs");
        self.stats.client_cuts += 1;
        self.hosts[server].unreachable_until_us = until_us;
        for conn in self.conns_to(server) {
            if let Some(link) = self.links.get_mut(&conn) {
                link.cut = true;
            }
        }
    }

    /// A connection breaks in the middle; both sides learn of it, each in its time.
    pub(super) fn reset(&mut self, conn: ConnId) {
        note!(self, "reset of {conn:?}");
        let (up_us, down_us) = (
            self.now_us + self.rng.between(1, self.params.latency_us),
            self.now_us + self.rng.between(1, self.params.latency_us),
        );
        // What is on its way is lost, except what arrives before the news.
        self.at(up_us, What::UpClosed { conn });
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        link.client_open = false;
        let client = link.client;
        if self.present[client] == Some(conn) {
            self.present[client] = None;
            self.at(down_us, What::Wake { client });
            let mut actions = Vec::new();
            let now_us = self.now_us;
            self.clients[client].lost(now_us, &mut actions);
            // A lost client only asks to be woken.
            for action in actions {
                if let Action::Wake(at) = action {
                    self.at(at, What::Wake { client });
                }
            }
        }
    }

    /// A trouble of the disk is over.
    pub(super) fn resume(&mut self, server: usize) {
        if self.now_us >= self.hosts[server].disk_trouble_until_us {
            self.disk_is_well(server);
        }
    }

    fn disk_is_well(&mut self, server: usize) {
        note!(self, "{server}: disk well");
        self.hosts[server].disk.set_faults(Faults::default());
        if self.hosts[server].power_fails {
            // Whoever met it or not: the machine restarts.
            self.stop(server, "power failure", true);
            self.hosts[server].lose_power();
        }
    }

    /// The last fault is over.
    pub(super) fn heal(&mut self) -> Verdict {
        note!(self, "heal");
        self.params.slow_sync_permille = 0;
        self.params.transfer.breaks_permille = 0;
        let peers = &mut self.params.peers;
        (
            peers.late_permille,
            peers.lost_permille,
            peers.repeated_permille,
        ) = (0, 0, 0);
        self.network.mend();
        for server in 0..self.hosts.len() {
            self.disk_is_well(server);
            let host = &mut self.hosts[server];
            host.unreachable_until_us = 0;
            for what in host.cut_pause(self.now_us) {
                self.at(self.now_us, what);
            }
            let process = self.hosts[server].process.as_ref();
            if process.is_some_and(|process| process.suspect) || self.rng.percent(50) {
                self.stop(server, "last restart", false);
            }
        }
        self.settle_builds();
        self.healed = true;
        // What is on its way to a slow disk still takes its time.
        let is_writing = |host: &Host| {
            let process = host.process.as_ref();
            process.is_some_and(|process| process.written.is_some())
        };
        let left_us = match self.hosts.iter().any(is_writing) {
            true => self.params.slow_sync_us,
            false => 0,
        };
        self.stirred(self.now_us + left_us);
        for client in 0..self.clients.len() {
            let mut actions = Vec::new();
            let now_us = self.now_us;
            self.clients[client].finish(now_us, &mut actions);
            self.act(client, actions)?;
        }
        Ok(())
    }
}

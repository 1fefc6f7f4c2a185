//! What goes wrong, and the end of it.

use super::*;
use crate::client::Action;
use crate::disk::Faults;

impl World {
    pub(super) fn schedule_troubles(&mut self) {
        for trouble in [
            Trouble::Crash,
            Trouble::Restart,
            Trouble::Pause,
            Trouble::Reset,
            Trouble::Disk,
            Trouble::Full,
            Trouble::ClockJump,
        ] {
            self.schedule_trouble(trouble);
        }
    }

    pub(super) fn schedule_trouble(&mut self, trouble: Trouble) {
        let mean_us = match trouble {
            Trouble::Crash => self.params.crash_every_us,
            Trouble::Restart => self.params.restart_every_us,
            Trouble::Pause => self.params.pause_every_us,
            Trouble::Reset => self.params.reset_every_us,
            Trouble::Disk => self.params.disk_fault_every_us,
            Trouble::Full => self.params.full_disk_every_us,
            Trouble::ClockJump => self.params.clock_jump_every_us,
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
        match trouble {
            Trouble::Crash => {
                let power = self.rng.percent(70);
                self.stop("crash", power);
                if self.rng.permille(100) {
                    let client = self.rng.below(self.clients.len() as u64) as usize;
                    note!(self, "client {client} dies");
                    self.clients[client].die();
                    if let Some(conn) = self.present[client].take() {
                        self.close_client_side(conn, true);
                    }
                }
            }
            Trouble::Restart => self.stop_cleanly()?,
            Trouble::Pause => self.pause(),
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
                self.power_fails |= faults.power_for.is_some();
                note!(self, "disk: {faults:?}");
                self.disk.set_faults(faults);
            }
            Trouble::Full => {
                note!(self, "disk full");
                let capacity = Some(self.rng.below(64 << 10));
                self.disk.set_faults(Faults {
                    capacity,
                    ..Faults::default()
                });
            }
            Trouble::ClockJump => {
                self.wall_skew_ms += self.rng.between(0, 20_000) as i64 - 10_000;
                note!(self, "wall clock jumps to {}", self.wall_ms());
            }
        }
        if matches!(trouble, Trouble::Disk | Trouble::Full) {
            self.disk_trouble_until_us = self.now_us + self.rng.between(100_000, 3_000_000);
            self.at(self.disk_trouble_until_us, What::Resume);
        }
        self.schedule_trouble(trouble);
        Ok(())
    }

    /// The process stops and goes on later: sockets fill, clocks go on.
    pub(super) fn pause(&mut self) {
        if self.server.is_none() || self.now_us < self.paused_until_us {
            return;
        }
        let longest_us = self.params.timeouts_ms.0 as u64 * 3000;
        let pause_us = self
            .rng
            .between(5 * TICK_MS * 1000, longest_us.max(500_000));
        note!(self, "pause of {pause_us} µs");
        self.stats.pauses += 1;
        self.paused_until_us = self.now_us + pause_us;
        // The engine counts the beginning of a pause (see engine::expiry).
        let counted_ms = (self.params.session_tick_ms / 2).max(2 * TICK_MS);
        self.not_run_us += pause_us.saturating_sub(counted_ms * 1000);
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
    pub(super) fn resume(&mut self) -> Verdict {
        if self.now_us >= self.disk_trouble_until_us {
            self.disk_is_well();
        }
        Ok(())
    }

    pub(super) fn disk_is_well(&mut self) {
        note!(self, "disk well");
        self.disk.set_faults(Faults::default());
        if self.power_fails {
            // Whoever met it or not: the machine restarts.
            self.stop("power failure", true);
            self.lose_power();
        }
    }

    /// What the disk had not synced is gone; then it works again.
    pub(super) fn lose_power(&mut self) {
        self.disk.crash();
        self.power_fails = false;
    }

    /// The rest of a pause does not happen.
    pub(super) fn cut_pause(&mut self) {
        let rest_us = self.paused_until_us - self.now_us;
        self.not_run_us = self.not_run_us.saturating_sub(rest_us);
    }

    /// The last fault is over.
    pub(super) fn heal(&mut self) -> Verdict {
        note!(self, "heal");
        self.disk_is_well();
        self.params.slow_sync_permille = 0;
        if self.now_us < self.paused_until_us {
            self.cut_pause();
            self.paused_until_us = self.now_us;
            // What was put off until the end of the pause does not wait for it any more.
            let conns: Vec<ConnId> = self.links.keys().copied().collect();
            conns.into_iter().for_each(|conn| self.output_soon(conn));
        }
        let suspect = self.server.as_ref().is_some_and(|server| server.suspect);
        if suspect || self.rng.percent(50) {
            self.stop("last restart", false);
        }
        self.healed = true;
        for client in 0..self.clients.len() {
            let mut actions = Vec::new();
            let now_us = self.now_us;
            self.clients[client].finish(now_us, &mut actions);
            self.act(client, actions)?;
        }
        Ok(())
    }
}

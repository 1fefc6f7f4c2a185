//! Faults that are aimed: they come when a server is about something that lasts so short a time
//! that faults which come by chance hardly ever meet it.

use super::*;

/// Such a fault comes so long after what it is aimed at began, at most, in µs.
const AFTER_US: [u64; 4] = [1, 1_000, 10_000, 60_000];
/// Between two of them something must go well, in µs.
const PAUSE_US: u64 = 300_000;

/// What servers are about, and when there may be the next fault.
#[derive(Debug)]
pub(super) struct Aim {
    rng: Rng,
    next_us: u64,
    seen: Vec<Moment>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Moment {
    joint: bool,
    learner: bool,
    disk_lost: bool,
    hands_over: bool,
    sends: bool,
    receives: bool,
}

impl Moment {
    fn begins(self, before: Self) -> bool {
        (self.joint && !before.joint)
            || (self.learner && !before.learner)
            || (self.disk_lost && !before.disk_lost)
            || (self.hands_over && !before.hands_over)
            || (self.sends && !before.sends)
            || (self.receives && !before.receives)
    }
}

impl Aim {
    pub fn new(seed: u64, servers: usize) -> Self {
        Self {
            rng: Rng::new(!seed),
            next_us: 0,
            seen: vec![Moment::default(); servers],
        }
    }
}

impl World {
    /// Looks what a server has come to be about.
    pub(super) fn take_aim(&mut self, server: usize) {
        if self.aim.is_none() || self.healed {
            return;
        }
        let moment = self.moment(server);
        let (now_us, servers) = (self.now_us, self.hosts.len() as u64);
        let Some(aim) = &mut self.aim else {
            return;
        };
        let before = std::mem::replace(&mut aim.seen[server], moment);
        // It lasts no longer than an entry takes, and what leads to it may have been aimed at.
        let is_joint = moment.joint && !before.joint;
        let is_soon = now_us < aim.next_us && !is_joint;
        if !moment.begins(before) || is_soon || aim.rng.percent(30) {
            return;
        }
        aim.next_us = now_us + PAUSE_US;
        let most_us = match is_joint {
            true => AFTER_US[1],
            false => *aim.rng.pick(&AFTER_US),
        };
        let after_us = aim.rng.below(most_us);
        let troubles = Trouble::ALL.into_iter();
        let is_unaimed =
            |trouble: &Trouble| matches!(trouble, Trouble::ClockJump | Trouble::Rebuild);
        let troubles: Vec<_> = troubles.filter(|trouble| !is_unaimed(trouble)).collect();
        let trouble = *aim.rng.pick(&troubles);
        let server = match aim.rng.percent(60) {
            true => server,
            false => aim.rng.below(servers) as usize,
        };
        self.stats.aimed += 1;
        self.at(now_us + after_us, What::Aimed { trouble, server });
    }

    fn moment(&self, server: usize) -> Moment {
        let (host, Checks { members, model, .. }) = (&self.hosts[server], &self.checks);
        let Some(process) = &host.process else {
            return Moment::default();
        };
        let present = members.present();
        Moment {
            joint: !present.outgoing.is_empty(),
            learner: present.learners.contains(&u64::from(host.id)),
            disk_lost: members.lacks_disk(model),
            hands_over: process.stops_us.is_some(),
            sends: process.is_sending(),
            receives: process.desk.is_receiving(),
        }
    }
}

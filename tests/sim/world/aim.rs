//! Faults that are aimed: they come when a server is about something that lasts so short a time
//! that faults which come by chance hardly ever meet it.

use super::*;
use crate::met::Situation;

/// What faults are aimed at. The first lasts no longer than an entry takes.
const TARGETS: [Situation; 6] = [
    Situation::Joint,
    Situation::Learner,
    Situation::DiskLost,
    Situation::HandsOver,
    Situation::Sends,
    Situation::Receives,
];
/// Such a fault comes so long after what it is aimed at began, at most, in µs.
const AFTER_US: [u64; 4] = [1, 1_000, 10_000, 60_000];
/// Between two of them something must go well, in µs.
const PAUSE_US: u64 = 300_000;

/// What servers are about, and when there may be the next fault.
#[derive(Debug)]
pub(super) struct Aim {
    rng: Rng,
    next_us: u64,
    seen: Vec<[bool; TARGETS.len()]>,
}

impl Aim {
    pub fn new(seed: u64, servers: usize) -> Self {
        Self {
            rng: Rng::new(!seed),
            next_us: 0,
            seen: vec![Default::default(); servers],
        }
    }
}

impl World {
    /// Looks what a server has come to be about.
    pub(super) fn take_aim(&mut self, server: usize) {
        if self.aim.is_none() || self.healed {
            return;
        }
        let present = TARGETS.map(|target| self.is_about(target, server));
        let (now_us, servers) = (self.now_us, self.hosts.len() as u64);
        let Some(aim) = &mut self.aim else {
            return;
        };
        let before = std::mem::replace(&mut aim.seen[server], present);
        let begins: [bool; TARGETS.len()] = std::array::from_fn(|at| present[at] && !before[at]);
        // What leads to it may have been aimed at.
        let is_joint = begins[0];
        let is_soon = now_us < aim.next_us && !is_joint;
        if !begins.contains(&true) || is_soon || aim.rng.percent(30) {
            return;
        }
        aim.next_us = now_us + PAUSE_US;
        let most_us = match is_joint {
            true => AFTER_US[1],
            false => *aim.rng.pick(&AFTER_US),
        };
        let after_us = aim.rng.below(most_us);
        let troubles = Trouble::ALL.into_iter();
        let is_unaimed = |trouble: &Trouble| {
            matches!(
                trouble,
                Trouble::ClockJump | Trouble::Rebuild | Trouble::Rot
            )
        };
        let troubles: Vec<_> = troubles.filter(|trouble| !is_unaimed(trouble)).collect();
        let trouble = *aim.rng.pick(&troubles);
        let server = match aim.rng.percent(60) {
            true => server,
            false => aim.rng.below(servers) as usize,
        };
        self.stats.aimed += 1;
        self.at(now_us + after_us, What::Aimed { trouble, server });
    }
}

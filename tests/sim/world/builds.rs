//! Which build of the program runs on which server, and what an operator does about it.
//!
//! An upgrade goes from server to server while all goes on, and sometimes back. Builds differ in
//! the feature levels that they know. Whoever turns out to be too old is given the newer one.

use super::*;
use crate::check::levels::Build;

/// How long an operator takes to notice that a server is too old, in µs.
const NOTICED_US: (u64, u64) = (100_000, 1_500_000);

impl World {
    /// The build that a server begins with.
    pub(super) fn first_builds(&mut self) {
        let levels = self.params.levels;
        for host in &mut self.hosts {
            let is_old = levels.are_mixed() && self.rest.percent(levels.begin_old);
            host.build = Build::of(if is_old { levels.old } else { levels.new });
        }
    }

    /// The build that a server is started with.
    pub(super) fn choose_build(&mut self, server: usize) {
        let levels = self.params.levels;
        let host = &mut self.hosts[server];
        let must = std::mem::take(&mut host.is_too_old);
        if !levels.are_mixed() {
            return;
        }
        let before = host.build;
        let is_old = before.level == levels.old;
        if must || (self.healed && levels.completes) {
            host.build = Build::of(levels.new);
        } else if self.healed {
            host.build.level_max = 0;
        } else {
            let chance = if is_old {
                levels.upgrades
            } else {
                levels.downgrades
            };
            let is_old = is_old != self.rest.percent(chance);
            let is_held = !is_old && self.rest.percent(10);
            host.build = Build {
                level: if is_old { levels.old } else { levels.new },
                level_max: if is_held { levels.old } else { 0 },
            };
        }
        let after = host.build;
        if after != before {
            note!(self, "{server}: {after:?} in place of {before:?}");
        }
        self.stats.upgrades += u64::from(after.level > before.level);
        self.stats.downgrades += u64::from(after.level < before.level);
    }

    /// The build that a server's process says that it is.
    pub(super) fn claimed_build(&self, server: usize) -> Build {
        match self.sabotage {
            Sabotage::ClaimLevel => Build::of(self.params.levels.new),
            _ => self.hosts[server].build,
        }
    }

    /// What a server takes its own build for.
    pub(super) fn believed_build(&self, server: usize) -> Build {
        match self.sabotage {
            Sabotage::IgnoreLevel => Build {
                level: self.params.levels.new,
                ..self.hosts[server].build
            },
            _ => self.hosts[server].build,
        }
    }

    /// Somebody says that a server is too old: it will be stopped, and started as the newer build.
    pub(super) fn is_too_old(&mut self, server: usize) {
        if std::mem::replace(&mut self.hosts[server].is_too_old, true) {
            return;
        }
        let at_us = self.now_us + self.rest.between(NOTICED_US.0, NOTICED_US.1);
        self.at(at_us, What::Replace { server });
    }

    /// A server that is too old is stopped.
    pub(super) fn replace(&mut self, server: usize) {
        if self.hosts[server].is_too_old {
            self.stop(server, "too old", false);
        }
    }

    /// A process finds that it is too old for its state, and ends.
    pub(super) fn outdated(&mut self, server: usize) -> Verdict {
        note!(self, "{server}: too old");
        self.stats.outdated += 1;
        self.checks.outdated(server)?;
        self.hosts[server].is_too_old = true;
        self.stirred(self.now_us);
        self.stop_cleanly(server)
    }

    /// After the last fault: whoever must be another build is restarted.
    pub(super) fn settle_builds(&mut self) {
        let levels = self.params.levels;
        for server in 0..self.hosts.len() {
            let build = self.hosts[server].build;
            let is_old = build.level < levels.new && levels.completes;
            if is_old || build.level_max > 0 {
                self.stop(server, "another build", false);
            }
        }
    }

    /// Whether the level is as high as all members agree to.
    pub(super) fn is_level_settled(&self) -> bool {
        let members = self.members().into_iter();
        let agreed = members.map(|server| self.hosts[server].build.agrees_to());
        Some(self.checks.levels.present()) >= agreed.min()
    }
}

//! Who the servers are: how they are configured, what an operator does to them, lost disks.

use std::collections::BTreeSet;

use zkraft::engine::{Event, Role};
use zkraft::proto::log::Membership;

use super::*;
use crate::check::log::LogCheck;

/// How long a leader waits for another one before it stops, in µs, and how often it looks.
const HAND_OVER_US: u64 = 1_500_000;
const LOOK_US: u64 = 5_000;
/// A reconfig is over after this time, in µs.
const QUIET_US: u64 = 2_000_000;

impl World {
    /// The members that a server is told of by its configuration, which nobody changes: those that
    /// found the ensemble, and itself.
    pub(super) fn configured(&self, server: usize) -> Membership {
        let mut members = self.params.membership();
        if server >= self.params.servers {
            members.voters.push(u64::from(self.hosts[server].id));
        }
        members
    }

    /// Whether a server is started late.
    pub(super) fn is_late(&self, server: usize) -> bool {
        let voters = self.params.servers - self.params.observers;
        server < voters && server + self.params.founding.late >= voters
    }

    /// Whether so many of the founders are enough.
    fn may_found(&self, count: usize, founders: usize) -> bool {
        match self.params.founding.by_majority {
            true => count > founders / 2,
            false => count == founders,
        }
    }

    /// Who leads has founded the ensemble with all that it needed.
    pub(super) fn check_founders(&self) -> Verdict {
        let founders = self.params.membership().voters;
        let is_there = |id: &&u64| self.hosts[**id as usize - 1].boot > 0;
        let there = founders.iter().filter(is_there).count();
        match self.may_found(there, founders.len()) {
            true => Ok(()),
            false => {
                let what = format!("D12: {there} servers of {founders:?} begin without the others");
                broken(Group::Members, what)
            }
        }
    }

    /// The lines of the servers that one is configured with; none if it stands alone.
    pub(super) fn lines(&self, server: usize) -> String {
        if self.hosts.len() == 1 {
            return String::new();
        }
        let configured = self.configured(server);
        let voters = configured.voters.iter().map(|id| line(*id, false));
        let learners = configured.learners.iter().map(|id| line(*id, true));
        voters.chain(learners).collect::<Vec<_>>().join("\n")
    }

    /// The places of the servers that belong together.
    pub(super) fn members(&self) -> BTreeSet<usize> {
        let present = self.checks.members.present();
        let ids = present.all().into_iter();
        ids.map(|id| id as usize - 1).collect()
    }

    /// Whether the members are those that should be, and no change is under way.
    pub(super) fn is_membership_settled(&self) -> bool {
        let members = &self.checks.members;
        self.hosts.len() == 1 || members.is_settled(&self.checks.model)
    }

    /// Whether nobody may change the membership: an operator who goes on while a disk is lost may
    /// take away the votes that make up for it.
    pub(super) fn holds_still(&self) -> bool {
        let Checks { members, model, .. } = &self.checks;
        self.params.reconfigures && (members.lacks_disk(model) || self.has_rot())
    }

    /// Whether the others can do without the disk of a server.
    pub(super) fn may_lose_disk(&self, server: usize) -> bool {
        let id = u64::from(self.hosts[server].id);
        let is_quiet = self.now_us >= self.reconfigured_us + QUIET_US;
        let is_quiet = is_quiet || self.reconfigured_us == 0;
        // Who is configured to be alone would found another cluster with its empty disk.
        let is_told_of_others = self.params.servers > 1 || server > 0;
        // Nor does a founder count that lost power before it had anything: its disk is as empty.
        // Two such may be a majority that founds another cluster, where that is enough, if they
        // have met nobody else since they were started.
        let mut others = self.members().into_iter().filter(|other| *other != server);
        // And who does not know yet of the last change goes by the membership before it.
        let changed = self.checks.members.changed();
        let has_enough = |log: &LogCheck| log.durable() > 0 && log.known_committed() >= changed;
        let have_others = others.all(|other| has_enough(&self.checks.logs[other]))
            // Those who have applied it let in no other disk anyway.
            || self.sabotage == Sabotage::AdmitEmpty;
        // Nor does who is no member any more: it was a founder all the same, and an empty server
        // goes by the lines that it was founded with.
        let founders = self.params.membership().voters;
        let is_empty = |id: &&u64| {
            let founder = **id as usize - 1;
            founder == server || self.checks.logs[founder].durable() == 0
        };
        let empty = founders.iter().filter(is_empty).count();
        let may_found = founders.contains(&id) && self.may_found(empty, founders.len());
        is_quiet
            && is_told_of_others
            && have_others
            && !may_found
            && !self.has_rot_elsewhere(server)
            && self.checks.members.may_lose(id, &self.checks.model)
    }

    /// The disk of a server is lost, if the others can do without it.
    pub(super) fn wipe(&mut self, server: usize) {
        if self.may_lose_disk(server) {
            self.replace_disk(server);
        }
    }

    /// An empty disk takes the place of a server's.
    pub(super) fn replace_disk(&mut self, server: usize) {
        note!(self, "{server}: the disk is lost");
        self.stats.wipes += 1;
        self.stop(server, "the disk is lost", true);
        let host = &mut self.hosts[server];
        host.lose_disk(&mut self.rng);
        self.checks.lost_disk(server, host.disk_id);
        self.rot_is_gone(server);
    }

    /// A server is told to stop: if it leads others, one of them is to lead first.
    pub(super) fn begin_leaving(&mut self, server: usize) -> Verdict {
        let now_us = self.now_us;
        let Some(process) = &mut self.hosts[server].process else {
            return Ok(());
        };
        if process.stops_us.is_some() {
            return Ok(());
        }
        if process.shared.status().role != Role::Leader {
            return self.stop_cleanly(server);
        }
        process.stops_us = Some(now_us + HAND_OVER_US);
        note!(self, "{server}: hands over");
        self.stats.hand_overs += 1;
        self.handle(server, Event::HandOver)?;
        self.step_at(now_us + LOOK_US, server, Step::Leave);
        Ok(())
    }

    /// It looks whether another server leads.
    pub(super) fn leave(&mut self, server: usize) -> Verdict {
        let now_us = self.now_us;
        let process = self.process(server);
        let leads = process.shared.status().role == Role::Leader;
        if leads && process.stops_us.is_some_and(|until_us| now_us < until_us) {
            self.step_at(now_us + LOOK_US, server, Step::Leave);
            return Ok(());
        }
        self.stats.handed_over += u64::from(!leads);
        self.stop_cleanly(server)
    }
}

/// A server's line, as a configuration or a reconfig has it.
pub fn line(id: u64, observer: bool) -> String {
    let role = if observer { "observer" } else { "participant" };
    format!("server.{id}=host{id}:2888:3888:{role}")
}

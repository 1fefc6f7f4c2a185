//! What a running server is about: faults are aimed at it, and are counted by it.

use zkraft::engine::Role;

use super::*;
use crate::met::Situation;

impl World {
    /// Whether the server runs and is about this.
    pub(super) fn is_about(&self, situation: Situation, server: usize) -> bool {
        let (host, Checks { members, model, .. }) = (&self.hosts[server], &self.checks);
        let Some(process) = &host.process else {
            return false;
        };
        match situation {
            Situation::Leads => process.shared.status().role == Role::Leader,
            Situation::Leaderless => process.engine.leader() == 0,
            Situation::Writes => process.written.is_some(),
            Situation::Snapshots => process.snapshot.is_some(),
            Situation::Sends => process.is_sending(),
            Situation::Receives => process.desk.is_receiving(),
            Situation::HandsOver => process.stops_us.is_some(),
            Situation::ReadOnly => process.shared.is_read_only(),
            Situation::Joint => !members.present().outgoing.is_empty(),
            Situation::Learner => members.present().learners.contains(&u64::from(host.id)),
            Situation::OneDown => {
                let is_down = |place: &usize| self.hosts[*place].process.is_none();
                self.members().iter().any(is_down)
            }
            Situation::DiskLost => members.lacks_disk(model),
            Situation::Cut => self.network.has_cut(server, self.now_us),
            Situation::BadDisk => host.disk_trouble_until_us > self.now_us,
            Situation::Mixed => self.hosts.iter().any(|other| other.build != host.build),
        }
    }
}

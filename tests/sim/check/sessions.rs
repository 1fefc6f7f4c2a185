//! The lives of sessions (architecture §2.6, 24; protocol facts §8.2–8.4).
//!
//! A leader may end a session only when it has heard nothing of it for its timeout: neither on a
//! connection of its own nor in what other servers tell. Time is the leader's own: a pause of its
//! process does not count, since it could hear nobody then, and who begins to lead gives everyone
//! a full timeout. While nothing goes wrong in the cluster, what any server heard counts as if the
//! leader had heard it. And once the majority has ended a session, no server takes its requests any
//! more, but for as long as `engine::lease` says.
//!
//! And a leader must end a session that is silent: while it leads and nothing keeps it from that,
//! at each of its ticks none is left that it has not heard of for longer than its timeout, rounded
//! up. How long an outage puts that off is looked at once, when all is well again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use zkraft::machine::Machine;
use zkraft::proto::log;
use zkraft::wire::{SessionId, op};

use super::{Group, Verdict, broken};
use crate::model::Model;
use crate::world::TICK_MS;

/// How long it may take until the leader knows what another server has heard, in ms, while nothing
/// goes wrong, besides the time that frames take.
const TOLD_WITHIN_MS: u64 = 200 + 3 * TICK_MS;
/// Times at which a session was heard that are remembered.
const TIMES_MAX: usize = 200;
/// Clocks run differently, and count in ms.
const CLOCKS_MS: u64 = 30;
/// From when a leader has decided to end a session until it proposes that, in ms: it gathers what
/// belongs into one entry. What it learns meanwhile comes too late.
const GATHERED_MS: u64 = 5;

/// How much later than by the next tick of the session clock a settled leader may end a session, in
/// ms: of each pause, which both count in part, it may count a tick less.
const ENDED_WITHIN_MS: u64 = 10 * TICK_MS;

#[derive(Debug, Default)]
pub struct SessionCheck {
    servers: Vec<Knows>,
    /// When each session was heard anywhere, in ms of the true time, oldest first.
    heard: BTreeMap<SessionId, VecDeque<u64>>,
    /// When the end of a session was proposed, by place in the log.
    proposed: BTreeMap<(u64, u64), u64>,
    /// What leaders have proposed to end: the term, the session and its generation.
    closing: BTreeSet<(u64, SessionId, u64)>,
    /// Ends that are committed, by session and generation: when they were proposed, and the
    /// session's timeout.
    ended: BTreeMap<(SessionId, u64), (u64, u64)>,
}

/// What a server knows, in ms of the time that it ran.
#[derive(Clone, Debug, Default)]
struct Knows {
    heard: BTreeMap<SessionId, Heard>,
    leading: u64,
    /// As a leader: since when nothing has gone wrong, and when sessions had a connection last.
    settled: Option<u64>,
    attended: BTreeMap<SessionId, u64>,
}

/// When a session was heard last, in ms of the time that a server ran.
#[derive(Clone, Debug, Default)]
struct Heard {
    /// As far as it has been known for some time.
    settled_ms: u64,
    /// When the rest became known, and what it is.
    news: Vec<(u64, u64)>,
}

impl Heard {
    fn note(&mut self, ran_ms: u64, heard_ms: u64) {
        self.settle(ran_ms);
        self.news.push((ran_ms, heard_ms));
    }

    /// The latest of what is known.
    fn last_ms(&self) -> u64 {
        let news = self.news.iter().map(|(_, heard_ms)| *heard_ms);
        news.fold(self.settled_ms, u64::max)
    }

    fn settle(&mut self, ran_ms: u64) {
        let Self { settled_ms, news } = self;
        news.retain(|(known_ms, heard_ms)| {
            let is_new = known_ms + GATHERED_MS >= ran_ms;
            if !is_new {
                *settled_ms = (*settled_ms).max(*heard_ms);
            }
            is_new
        });
    }
}

/// When a leader proposes something.
#[derive(Clone, Copy, Debug)]
pub struct When {
    /// Time that the server ran.
    pub ran_ms: u64,
    /// The true time.
    pub now_ms: u64,
    /// Since when nothing has gone wrong in the cluster, by the true time.
    pub calm_ms: Option<u64>,
    /// How long a frame may be on its way between servers.
    pub latency_ms: u64,
}

/// What there is to say of a server at a tick.
#[derive(Debug)]
pub struct Tended {
    pub server: usize,
    pub term: u64,
    /// It leads, keeps the sessions' time, and nothing keeps it from ending one.
    pub is_settled: bool,
    /// Time that it ran, in ms.
    pub ran_ms: u64,
    /// Sessions with a connection to any server.
    pub attended: BTreeSet<SessionId>,
}

impl SessionCheck {
    pub fn new(servers: usize) -> Self {
        Self {
            servers: vec![Knows::default(); servers],
            ..Self::default()
        }
    }

    /// A server got a frame on the session's present connection. It tells the leader, if it is a
    /// member.
    pub fn heard(
        &mut self,
        (server, is_member): (usize, bool),
        session: SessionId,
        ran_ms: u64,
        now_ms: u64,
    ) {
        self.told(server, session, ran_ms, ran_ms);
        if !is_member {
            return;
        }
        let times = self.heard.entry(session).or_default();
        if times.len() == TIMES_MAX {
            times.pop_front();
        }
        times.push_back(now_ms);
    }

    /// A server heard of the session in another way: it applied its creation or attachment, or was
    /// told by a server that had heard its client then.
    pub fn told(&mut self, server: usize, session: SessionId, ran_ms: u64, heard_ms: u64) {
        let heard = self.servers[server].heard.entry(session).or_default();
        heard.note(ran_ms, heard_ms);
    }

    /// A server leads from now on: everyone has a full timeout (§8.4).
    pub fn leads(&mut self, server: usize, ran_ms: u64) {
        self.servers[server].leading = ran_ms;
        self.servers[server].settled = None;
    }

    /// A server's tick: if it leads and nothing goes wrong, no session is left that it has heard
    /// nothing of for a timeout and a tick of the session clock.
    pub fn tends(&mut self, tended: Tended, machine: &Machine, bucket_ms: u64) -> Verdict {
        let Tended {
            server,
            term,
            is_settled,
            ran_ms,
            attended,
        } = tended;
        let knows = &mut self.servers[server];
        if !is_settled {
            knows.settled = None;
            return Ok(());
        }
        let since_ms = *knows.settled.get_or_insert(ran_ms);
        for session in attended {
            knows.attended.insert(session, ran_ms);
        }
        for (id, session) in machine.sessions() {
            let heard_ms = knows.heard.get(&id).map_or(0, Heard::last_ms);
            let attended_ms = knows.attended.get(&id).copied().unwrap_or(0);
            let heard_ms = heard_ms.max(attended_ms).max(since_ms);
            let silent_ms = ran_ms.saturating_sub(heard_ms);
            let timeout_ms = session.timeout_ms as u64;
            if silent_ms > timeout_ms + bucket_ms + ENDED_WITHIN_MS
                && !self.closing.contains(&(term, id, session.generation))
            {
                let what = format!("24: {server} has not ended {id} after {silent_ms} ms");
                return broken(Group::Sessions, format!("{what} of {timeout_ms} ms"));
            }
        }
        Ok(())
    }

    /// A leader wrote these commands of its own into the log, at this index and term.
    pub fn proposed(
        &mut self,
        server: usize,
        place: (u64, u64),
        commands: &[log::Command],
        when: When,
        model: &Model,
    ) -> Verdict {
        let ends = |command: &&log::Command| command.op == op::CLOSE_SESSION;
        for command in commands.iter().filter(ends) {
            self.proposed.insert(place, when.now_ms);
            let id = SessionId(command.session);
            self.closing.insert((place.1, id, command.generation));
            let Some(session) = model.sessions.get(&id) else {
                continue;
            };
            if session.generation != command.generation {
                continue;
            }
            let timeout_ms = session.timeout_ms as u64;
            let knows = &mut self.servers[server];
            let heard = knows.heard.entry(id).or_default();
            heard.settle(when.ran_ms);
            let heard_ms = heard.settled_ms.max(knows.leading);
            let silent_ms = when.ran_ms.saturating_sub(heard_ms);
            if silent_ms < timeout_ms {
                return broken(
                    Group::Sessions,
                    format!("24: {id} ended after {silent_ms} ms of {timeout_ms} ms"),
                );
            }
            self.heard_elsewhere(id, timeout_ms, when)?;
        }
        Ok(())
    }

    /// The end of a session is committed.
    pub fn ended(&mut self, place: (u64, u64), attachment: (SessionId, u64), timeout_ms: i32) {
        if let Some(proposed_ms) = self.proposed.get(&place) {
            self.ended
                .insert(attachment, (*proposed_ms, timeout_ms as u64));
        }
    }

    /// A server took in a request of this attachment.
    pub fn taken(&self, server: usize, attachment: (SessionId, u64), now_ms: u64) -> Verdict {
        let Some((proposed_ms, timeout_ms)) = self.ended.get(&attachment) else {
            return Ok(());
        };
        let late_ms = now_ms.saturating_sub(*proposed_ms);
        if late_ms > timeout_ms / 3 + CLOCKS_MS {
            let id = attachment.0;
            return broken(
                Group::Sessions,
                format!("24: server {server} serves {id} {late_ms} ms after its end"),
            );
        }
        Ok(())
    }

    /// While all is well, the leader soon knows what any server hears.
    fn heard_elsewhere(&self, id: SessionId, timeout_ms: u64, when: When) -> Verdict {
        let slack_ms = TOLD_WITHIN_MS + 3 * when.latency_ms;
        let (Some(calm_ms), Some(times)) = (when.calm_ms, self.heard.get(&id)) else {
            return Ok(());
        };
        let known = times.iter().rfind(|time| **time + slack_ms <= when.now_ms);
        let Some(known) = known.filter(|time| **time >= calm_ms + slack_ms) else {
            return Ok(());
        };
        let silent_ms = when.now_ms - known;
        if silent_ms + CLOCKS_MS < timeout_ms {
            let what = format!("24: {id} ended {silent_ms} ms after some server had heard it");
            return broken(Group::Sessions, format!("{what}, of {timeout_ms} ms"));
        }
        Ok(())
    }
}

//! Links between servers: who dials whom, who lets whom in, and who notices that a process is gone.
//!
//! Played as `net::peer` does it, and decided by the same code: `vet` and `Shared::admit`. Each
//! server sends over the links that it dialled itself. A link that breaks is dialled again at once;
//! if nobody listens there, the process is gone, and the engine is told. What is on its way when a
//! link breaks is lost.

use std::collections::BTreeSet;

use zkraft::engine::{Event, NotAdmitted, Outputs};
use zkraft::net::peer::{Introduction, Seen, vet};

use super::*;

/// The pause after the first failed attempt, in µs; it doubles up to the second.
const PAUSE_MIN_US: u64 = 20_000;
const PAUSE_MAX_US: u64 = 1_000_000;
/// Who does not answer is given up after this time, in µs.
const NO_ANSWER_US: u64 = 1_000_000;

/// One server's link to another, as the side that dials.
#[derive(Debug, Default)]
pub(super) struct Dialled {
    up: Option<Up>,
    /// When it is dialled next.
    due_us: Option<u64>,
    failures: u32,
    /// There was a link before, and nobody was told yet that the other process is gone.
    may_be_lost: bool,
}

/// A link that is up.
#[derive(Clone, Copy, Debug)]
struct Up {
    /// Connections are never numbered twice.
    number: u64,
    /// The start of the other server, and what it was told of this one.
    boot: u64,
    told: Introduction,
}

/// What a server remembers of another one that was connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    disk: u64,
    incarnation: u64,
    /// The start as this world counts it.
    boot: u64,
    /// The connection that it has dialled.
    incoming: Option<u64>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Failure {
    NobodyListens,
    NoAnswer,
    Refused,
}

impl World {
    /// A server's process takes in an event.
    pub(super) fn handle(&mut self, server: usize, event: Event) -> Verdict {
        let now_ms = self.clock_ms(server);
        let introduced = match &event {
            Event::Linked { id, .. } | Event::Introduced { id, .. } | Event::Refused { id, .. } => {
                Some(*id)
            }
            _ => None,
        };
        if let Some(id) = introduced {
            let build = self.hosts[id as usize - 1].build;
            self.checks.levels.introduced(server, id, build);
        }
        let Some(process) = &mut self.hosts[server].process else {
            return Ok(());
        };
        let mut out = Outputs::default();
        process.engine.handle(event, now_ms, &mut out);
        self.carry_out(server, out)?;
        self.turn_soon(server);
        Ok(())
    }

    /// Sends what the engine wants sent.
    pub(super) fn carry_out(&mut self, server: usize, out: Outputs) -> Verdict {
        assert!(out.append.is_empty(), "only a turn appends");
        self.send_to_peers(server, out.sends)?;
        for what in out.send_snapshot {
            self.send_snapshot(server, what)?;
        }
        Ok(())
    }

    /// Who the others are, from now on.
    pub(super) fn set_peers(&mut self, server: usize, peers: BTreeSet<usize>) {
        let process = self.process(server);
        let is_peer = |peer: &usize| peers.contains(peer);
        let gone: Vec<usize> = process
            .links
            .keys()
            .copied()
            .filter(|peer| !is_peer(peer))
            .collect();
        let new: Vec<usize> = peers
            .iter()
            .copied()
            .filter(|peer| *peer != server && !process.links.contains_key(peer))
            .collect();
        let strangers = process.seen.iter_mut();
        let strangers = strangers.filter(|(peer, _)| !is_peer(peer));
        let strangers: Vec<_> = strangers
            .filter_map(|(peer, known)| Some((*peer, known.incoming.take()?)))
            .collect();
        for (peer, number) in strangers {
            self.broken_soon(peer, server, number, 5_000);
        }
        for peer in gone {
            let link = self.process(server).links.remove(&peer);
            if let Some(up) = link.and_then(|link| link.up) {
                self.broken_soon(peer, server, up.number, 5_000);
            }
        }
        for peer in new {
            self.process(server).links.insert(peer, Dialled::default());
            self.dial_after(server, peer, 0);
        }
    }

    /// A server says who it is to another one.
    pub(super) fn introduction(&self, server: usize, to: usize) -> Option<Introduction> {
        let host = &self.hosts[server];
        let process = host.process.as_ref()?;
        let build = self.claimed_build(server);
        Some(Introduction {
            server: host.id,
            disk: host.disk_id,
            boot: process.incarnation,
            level: build.level,
            level_max: build.level_max,
            cluster: self.sabotage.cluster(process.shared.cluster()),
            formed: process.shared.is_formed(),
            aware: process.shared.is_aware(),
            knows: process.shared.bound_disk(self.hosts[to].id),
        })
    }

    /// Whether a server would be connected to another one that says this.
    pub(super) fn lets_in(
        &mut self,
        server: usize,
        of: usize,
        other: &Introduction,
    ) -> Result<bool, Violation> {
        let Some(me) = self.introduction(server, of) else {
            return Ok(false);
        };
        let process = self.process(server);
        let shared = process.shared.clone();
        let dialled = process.links.get(&of);
        let outgoing = dialled.is_some_and(|link| link.up.is_some());
        let seen = process.seen.get(&of).map(|known| Seen {
            disk: known.disk,
            boot: known.incarnation,
            is_connected: known.incoming.is_some() || outgoing,
        });
        if let Err(text) = vet(&me, other, seen) {
            note!(self, "{server}: refuses {of}: {text}");
            return Ok(false);
        }
        if self.sabotage != Sabotage::TellNothing
            && let Some(told) = self.hosts[of].process.as_ref()
        {
            let told = told.shared.tell();
            shared.learn(other, &told);
        }
        if self.sabotage == Sabotage::AdmitAnyDisk {
            return Ok(true);
        }
        match shared.admit(other) {
            Ok(()) => Ok(true),
            Err(reason) => {
                note!(self, "{server}: refuses {of}: {reason:?}");
                let id = u64::from(other.server);
                let event = match reason {
                    NotAdmitted::OtherDisk { .. } => {
                        self.stats.strangers += 1;
                        let disk = other.disk;
                        Event::Stranger { id, disk }
                    }
                    NotAdmitted::TooOld { .. } | NotAdmitted::NoMember => {
                        if matches!(reason, NotAdmitted::TooOld { .. }) {
                            self.stats.too_old += 1;
                            self.is_too_old(of);
                        }
                        let introduction = *other;
                        Event::Refused { id, introduction }
                    }
                };
                self.handle(server, event)?;
                Ok(false)
            }
        }
    }

    /// The link is dialled after this time, in µs.
    fn dial_after(&mut self, server: usize, to: usize, pause_us: u64) {
        let at_us = self.now_us + pause_us + self.rng.between(1, self.params.peers.latency_us);
        let Some(process) = &mut self.hosts[server].process else {
            return;
        };
        if let Some(link) = process.links.get_mut(&to) {
            link.due_us = Some(at_us);
            self.step_at(at_us, server, Step::Dial { to });
        }
    }

    pub(super) fn dial(&mut self, server: usize, to: usize) -> Verdict {
        let now_us = self.now_us;
        let Some(link) = self.process(server).links.get_mut(&to) else {
            return Ok(());
        };
        // After a pause it is late.
        if link.due_us.is_none_or(|due_us| due_us > now_us) {
            return Ok(());
        }
        link.due_us = None;
        if let Some(failure) = self.reach(server, to) {
            return self.dial_failed(server, to, failure);
        }
        let (Some(me), Some(other)) =
            (self.introduction(server, to), self.introduction(to, server))
        else {
            return Ok(());
        };
        // The side that was dialled looks first. Whoever it refuses learns of it all the same.
        let is_let_in = self.lets_in(to, server, &me)?;
        if !self.lets_in(server, to, &other)? || !is_let_in {
            return self.dial_failed(server, to, Failure::Refused);
        }
        self.enter(to, server, &me)?;
        self.enter(server, to, &other)?;
        note!(self, "{server}: linked to {to}, knows {:x}", me.knows);
        let number = self.network.next_number();
        if let Some(known) = self.process(to).seen.get_mut(&server) {
            known.incoming = Some(number);
        }
        let boot = self.hosts[to].boot;
        if let Some(link) = self.process(server).links.get_mut(&to) {
            *link = Dialled {
                up: Some(Up {
                    number,
                    boot,
                    told: me,
                }),
                ..Dialled::default()
            };
        }
        self.stats.links += 1;
        let introduced = Event::Introduced {
            id: u64::from(me.server),
            introduction: me,
        };
        self.handle(to, introduced)?;
        // Whoever dials is there.
        let back = self.process(to).links.get(&server);
        if back.is_some_and(|back| back.up.is_none()) {
            self.dial_after(to, server, 0);
        }
        let linked = Event::Linked {
            id: u64::from(other.server),
            introduction: other,
        };
        self.handle(server, linked)
    }

    /// Whether a connection can be had; if not, how that shows.
    fn reach(&mut self, server: usize, to: usize) -> Option<Failure> {
        let now_us = self.now_us;
        if self.network.is_cut(server, to, now_us) {
            return Some(Failure::NoAnswer);
        }
        let host = &self.hosts[to];
        match &host.process {
            None if host.is_off => Some(Failure::NoAnswer),
            None => Some(Failure::NobodyListens),
            Some(_) if host.is_paused(now_us) => Some(Failure::NoAnswer),
            Some(_) => None,
        }
    }

    /// Whether one server can open a connection to another one now, and both want it.
    pub(super) fn can_connect(&mut self, server: usize, to: usize) -> Result<bool, Violation> {
        if self.reach(server, to).is_some() {
            return Ok(false);
        }
        let (Some(me), Some(other)) =
            (self.introduction(server, to), self.introduction(to, server))
        else {
            return Ok(false);
        };
        Ok(self.lets_in(to, server, &me)? && self.lets_in(server, to, &other)?)
    }

    fn dial_failed(&mut self, server: usize, to: usize, failure: Failure) -> Verdict {
        let id = u64::from(self.hosts[to].id);
        let Some(link) = self.process(server).links.get_mut(&to) else {
            return Ok(());
        };
        link.failures += 1;
        let pause_us = (PAUSE_MIN_US << (link.failures - 1).min(6)).min(PAUSE_MAX_US);
        let was_up = link.up.take().is_some();
        let is_lost = failure == Failure::NobodyListens && std::mem::take(&mut link.may_be_lost);
        if was_up {
            self.handle(server, Event::Unreachable(id))?;
        }
        if is_lost {
            note!(self, "{server}: {to} is gone");
            self.stats.lost_peers += 1;
            self.checks.levels.gone(server, id);
            self.handle(server, Event::PeerLost(id))?;
        }
        let silence_us = match failure {
            Failure::NoAnswer => self.rng.between(NO_ANSWER_US / 2, NO_ANSWER_US),
            Failure::NobodyListens | Failure::Refused => 0,
        };
        self.dial_after(server, to, pause_us + silence_us);
        Ok(())
    }

    /// A start of another server is let in: nothing of its earlier starts is heard any more.
    fn enter(&mut self, server: usize, of: usize, other: &Introduction) -> Verdict {
        let boot = self.hosts[of].boot;
        let process = self.process(server);
        let known = Known {
            disk: other.disk,
            incarnation: other.boot,
            boot,
            incoming: None,
        };
        match process.seen.get(&of) {
            Some(known) if known.boot == boot => Ok(()),
            _ => {
                process.seen.insert(of, known);
                self.link_broke(server, of)
            }
        }
    }

    /// The process notices within this time, in µs, that a connection with another one broke.
    fn broken_soon(&mut self, server: usize, of: usize, number: u64, within_us: u64) {
        if self.hosts[server].process.is_some() {
            let at_us = self.now_us + self.rng.between(1, within_us);
            self.step_at(at_us, server, Step::Broken { of, number });
        }
    }

    /// The same of all its connections with that one.
    pub(super) fn all_broken_soon(&mut self, server: usize, of: usize, within_us: u64) {
        let Some(process) = &self.hosts[server].process else {
            return;
        };
        let outgoing = process.links.get(&of).and_then(|link| link.up);
        let incoming = process.seen.get(&of).and_then(|known| known.incoming);
        let outgoing = outgoing.map(|up| up.number);
        for number in [outgoing, incoming].into_iter().flatten() {
            self.broken_soon(server, of, number, within_us);
        }
    }

    pub(super) fn broken(&mut self, server: usize, of: usize, number: u64) -> Verdict {
        let process = self.process(server);
        if let Some(known) = process.seen.get_mut(&of) {
            known.incoming.take_if(|incoming| *incoming == number);
        }
        let link = process.links.get(&of);
        match link.and_then(|link| link.up) {
            Some(up) if up.number == number => self.link_broke(server, of),
            _ => Ok(()),
        }
    }

    /// If there is a link, it is none any more.
    fn link_broke(&mut self, server: usize, to: usize) -> Verdict {
        let id = u64::from(self.hosts[to].id);
        let Some(link) = self.process(server).links.get_mut(&to) else {
            return Ok(());
        };
        if link.up.take().is_none() {
            return Ok(());
        }
        note!(self, "{server}: the link to {to} broke");
        let link = self.process(server).links.get_mut(&to);
        *link.expect("it was just there") = Dialled {
            may_be_lost: true,
            ..Dialled::default()
        };
        self.handle(server, Event::Unreachable(id))?;
        self.dial_after(server, to, 0);
        Ok(())
    }

    /// A server that has something new to say of itself dials again.
    pub(super) fn introduce_anew(&mut self, server: usize) {
        let Some(process) = &self.hosts[server].process else {
            return;
        };
        let stale = process.links.iter().filter(|(to, link)| {
            let told = link.up.map(|up| up.told);
            link.due_us.is_none() && told.is_some() && told != self.introduction(server, **to)
        });
        let stale: Vec<usize> = stale.map(|(to, _)| *to).collect();
        for to in stale {
            if let Some(link) = self.process(server).links.get_mut(&to) {
                link.may_be_lost = true;
            }
            self.dial_after(server, to, 0);
        }
    }

    /// Something came over a connection. If the other side has given that up, it says so.
    pub(super) fn reset_if_given_up(&mut self, server: usize, from: usize) {
        let up = self.hosts[from].process.as_ref().and_then(|process| {
            let link = process.links.get(&server)?;
            link.up
        });
        let Some(up) = up else {
            return;
        };
        let known = self.process(server).seen.get(&from);
        if known.and_then(|known| known.incoming) != Some(up.number) {
            let latency_us = self.params.peers.latency_us;
            self.broken_soon(from, server, up.number, latency_us);
        }
    }

    /// The start of the other server that a link leads to, while it is up.
    pub(super) fn link_to(&self, server: usize, to: usize) -> Option<u64> {
        let process = self.hosts[server].process.as_ref()?;
        let up = process.links.get(&to)?.up?;
        Some(up.boot)
    }

    /// Whether a server hears this start of another one.
    pub(super) fn hears(&self, server: usize, from: usize, boot: u64) -> bool {
        let process = self.hosts[server].process.as_ref();
        let known = process.and_then(|process| process.seen.get(&from));
        known.is_some_and(|known| known.boot == boot && known.incoming.is_some())
    }

    /// A process ended: the others notice, those of a machine that is off late.
    pub(super) fn process_ended(&mut self, server: usize) {
        let within_us = match self.hosts[server].is_off {
            true => 3_000_000,
            false => 10_000,
        };
        for other in 0..self.hosts.len() {
            if other != server {
                self.all_broken_soon(other, server, within_us);
            }
        }
    }
}

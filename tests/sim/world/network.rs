//! The network between servers.
//!
//! What servers tell each other travels as encoded frames. Each is delayed for itself, and may be
//! lost, come twice, or come so late that everything has changed meanwhile. Links can be cut: one
//! way or both, of one server or between groups; what meets a cut is lost, or waits for its end as
//! in the buffers of a connection that is still thought to live.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::eraftpb::Message;
use zkraft::engine::{Event, Outputs, PeerMessage};
use zkraft::wire::SessionId;

use super::*;

/// From whom, to whom.
type Pair = (usize, usize);

#[derive(Debug, Default)]
pub(super) struct Network {
    cuts: Vec<Cut>,
    /// Of the connection that was opened last.
    number: u64,
    /// When the last frame on each link arrives.
    last_us: BTreeMap<Pair, u64>,
}

#[derive(Debug)]
struct Cut {
    links: BTreeSet<Pair>,
    until_us: u64,
    /// What meets it arrives after its end.
    holds: bool,
}

impl Network {
    /// Everything passes again.
    pub(super) fn mend(&mut self) {
        self.cuts.clear();
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// Whether anything between this server and others is cut.
    pub(super) fn has_cut(&self, server: usize, now_us: u64) -> bool {
        let mut cuts = self.cuts.iter().filter(|cut| cut.until_us > now_us);
        let is_one = |(from, to): &Pair| *from == server || *to == server;
        cuts.any(|cut| cut.links.iter().any(is_one))
    }

    /// Whether the way there or back is cut now.
    pub(super) fn is_cut(&mut self, one: usize, other: usize, now_us: u64) -> bool {
        self.cut((one, other), now_us).is_some() || self.cut((other, one), now_us).is_some()
    }

    /// The cut that a frame meets now, if any: until when, and whether it waits for that.
    fn cut(&mut self, link: Pair, now_us: u64) -> Option<(u64, bool)> {
        self.cuts.retain(|cut| cut.until_us > now_us);
        let met = self.cuts.iter().filter(|cut| cut.links.contains(&link));
        let last = met.max_by_key(|cut| (!cut.holds, cut.until_us))?;
        Some((last.until_us, last.holds))
    }
}

impl World {
    pub(super) fn send_to_peers(&mut self, from: usize, sends: Vec<(u64, PeerMessage)>) -> Verdict {
        for (to, message) in sends {
            let leader = to;
            let to = to as usize - 1;
            if let PeerMessage::Raft(message) = &message {
                self.checks.said(from, self.hosts[from].disk_id, message)?;
            }
            let mut message = self.sabotage.message(message);
            if let (Sabotage::NoOriginCheck, PeerMessage::Forward(batch)) =
                (self.sabotage, &mut message)
            {
                self.forwarded.renumber(batch);
            }
            // The start after all is well would serve before it has caught up.
            if let Some(message) = self.sabotage.forged_answer(&message)
                && !self.healed
            {
                let (now_ms, from_leader) = (self.clock_ms(from), leader);
                let event = Event::Peer {
                    from: from_leader,
                    message,
                };
                let engine = &mut self.process(from).engine;
                engine.handle(event, now_ms, &mut Outputs::default());
            }
            self.send_frame((from, to), message.encode().into());
        }
        Ok(())
    }

    fn send_frame(&mut self, link: Pair, frame: Bytes) {
        let (from, to) = link;
        let Some(to_boot) = self.link_to(from, to) else {
            self.stats.peer_frames_lost += 1;
            return;
        };
        let boots = (self.hosts[from].boot, to_boot);
        let peers = self.params.peers.clone();
        if self.rng.permille(peers.lost_permille) {
            self.stats.peer_frames_lost += 1;
            return;
        }
        let copies = if self.rng.permille(peers.repeated_permille) {
            self.stats.peer_frames_repeated += 1;
            2
        } else {
            1
        };
        for _ in 0..copies {
            let late = self.rng.permille(peers.late_permille);
            let longest_us = if late {
                peers.late_us
            } else {
                peers.latency_us
            };
            let mut at_us = self.now_us + self.rng.between(1, longest_us);
            if peers.keeps_order {
                let last_us = self.network.last_us.entry(link).or_default();
                at_us = at_us.max(*last_us);
                *last_us = at_us;
            }
            let frame = frame.clone();
            self.at(at_us, What::Peer { link, boots, frame });
        }
    }

    /// A frame arrives, unless the link is cut, or broke and is another one now. `boots`: the
    /// starts of the servers between which it was sent.
    pub(super) fn peer_frame(&mut self, link: Pair, boots: (u64, u64), frame: Bytes) -> Verdict {
        let (from, to) = link;
        match self.network.cut((from, to), self.now_us) {
            Some((until_us, true)) => {
                let at_us = until_us + self.rng.between(1, self.params.peers.latency_us);
                self.at(at_us, What::Peer { link, boots, frame });
                return Ok(());
            }
            Some((_, false)) => {
                self.stats.peer_frames_lost += 1;
                return Ok(());
            }
            None => {}
        }
        let ran_ms = self.hosts[to].ran_ms(self.now_us);
        let sender = u64::from(self.hosts[from].id);
        if !self.hosts[to].is_boot(boots.1) {
            self.stats.peer_frames_lost += 1;
            return Ok(());
        }
        if !self.hears(to, from, boots.0) {
            self.stats.peer_frames_lost += 1;
            self.reset_if_given_up(to, from);
            return Ok(());
        }
        self.stats.peer_frames += 1;
        let now_ms = self.clock_ms(to);
        self.checks.levels.heard(to, sender, now_ms);
        let message = PeerMessage::decode(frame).expect("frames between servers are whole");
        note!(self, "{to} < {from}: {}", short(&message));
        match &message {
            PeerMessage::Touch(touch) => {
                for heard in &touch.heard {
                    let heard_ms = ran_ms.saturating_sub(heard.age_ms);
                    let session = SessionId(heard.session);
                    let sessions = &mut self.checks.sessions;
                    sessions.told(to, session, ran_ms, heard_ms);
                }
            }
            PeerMessage::Forward(_) => self.stats.forwards += 1,
            PeerMessage::Raft(_) | PeerMessage::Touched(_) | PeerMessage::Digests(_) => {}
        }
        let from = sender;
        self.handle(to, Event::Peer { from, message })
    }

    /// Connections over links that carry nothing break, sooner or later, or outlive it.
    fn break_links(&mut self, links: &BTreeSet<Pair>, within_us: u64) {
        for (one, other) in links {
            if self.rng.percent(50) {
                continue;
            }
            for (server, of) in [(*one, *other), (*other, *one)] {
                self.all_broken_soon(server, of, within_us);
            }
        }
    }

    /// Some links carry nothing for a while.
    pub(super) fn partition(&mut self) {
        let servers = self.hosts.len();
        if servers == 1 {
            return;
        }
        let one = match self.rng.percent(40) {
            true => self.leader().unwrap_or(0),
            false => self.rng.below(servers as u64) as usize,
        };
        let other = (one + 1 + self.rng.below(servers as u64 - 1) as usize) % servers;
        let pairs = (0..servers).flat_map(|from| (0..servers).map(move |to| (from, to)));
        let side: Vec<bool> = (0..servers).map(|_| self.rng.percent(50)).collect();
        let (kind, links): (_, BTreeSet<Pair>) = match self.rng.below(8) {
            0 | 1 => (
                "isolation",
                pairs.filter(|(a, b)| *a == one || *b == one).collect(),
            ),
            2 => (
                "nobody hears",
                pairs.filter(|(from, _)| *from == one).collect(),
            ),
            3 => ("deafness", pairs.filter(|(_, to)| *to == one).collect()),
            4 => (
                "groups",
                pairs.filter(|(a, b)| side[*a] != side[*b]).collect(),
            ),
            5 => {
                // One server is in both groups.
                let apart = |a: usize, b: usize| side[a] != side[b] && a != one && b != one;
                ("bridge", pairs.filter(|(a, b)| apart(*a, *b)).collect())
            }
            6 => ("link", BTreeSet::from([(one, other), (other, one)])),
            _ => ("one way", BTreeSet::from([(one, other)])),
        };
        let longest_us = *self.rng.pick(&[300_000, 2_000_000, 6_000_000]);
        let until_us = self.now_us + self.rng.between(50_000, longest_us);
        let holds = self.rng.percent(30);
        note!(
            self,
            "cut, {kind}: {links:?} until {until_us} µs, holds: {holds}"
        );
        self.stats.partitions += 1;
        self.break_links(&links, longest_us);
        self.network.cuts.push(Cut {
            links,
            until_us,
            holds,
        });
    }

    /// A link breaks again and again.
    pub(super) fn flap(&mut self) {
        let servers = self.hosts.len() as u64;
        if servers == 1 {
            return;
        }
        let one = self.rng.below(servers) as usize;
        let other = (one + 1 + self.rng.below(servers - 1) as usize) % servers as usize;
        let times = self.rng.between(2, 15);
        let every_us = self.rng.between(20_000, 600_000);
        note!(
            self,
            "link {one}, {other} flaps {times} times, every {every_us} µs"
        );
        self.stats.flaps += 1;
        self.flap_once((one, other), times, every_us);
    }

    pub(super) fn flap_once(&mut self, link: Pair, times: u64, every_us: u64) {
        if self.healed || times == 0 {
            return;
        }
        let (one, other) = link;
        let links = BTreeSet::from([link, (other, one)]);
        self.break_links(&links, every_us);
        self.network.cuts.push(Cut {
            links,
            until_us: self.now_us + self.rng.between(1, every_us),
            holds: false,
        });
        let after_us = self.rng.between(every_us / 2, every_us * 2);
        let times = times - 1;
        self.at(
            self.now_us + after_us,
            What::Flap {
                link,
                times,
                every_us,
            },
        );
    }
}

/// What a message says, in short.
fn short(message: &PeerMessage) -> String {
    match message {
        PeerMessage::Raft(Message {
            msg_type,
            term,
            index,
            entries,
            commit,
            reject,
            ..
        }) => {
            let count = entries.len();
            let no = if *reject { ", rejected" } else { "" };
            format!("{msg_type:?} term {term}, {index} and {count}, commit {commit}{no}")
        }
        PeerMessage::Forward(batch) => {
            format!("forward {} and {}", batch.first, batch.commands.len())
        }
        PeerMessage::Touch(touch) => format!("touch {} {}", touch.number, touch.heard.len()),
        PeerMessage::Touched(touched) => format!("touched {touched:?}"),
        PeerMessage::Digests(digests) => format!("digests {digests:?}"),
    }
}

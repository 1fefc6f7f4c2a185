//! Whether the servers still agree.
//!
//! Replicas execute requests, so servers that have applied the same entries are in the same state,
//! unless one of them has a bug, other code than the rest, or memory that does not keep what it is
//! given. Each takes a digest of its state ([`Machine::digest`](crate::machine::Machine::digest),
//! which every change keeps up to date) after every so many entries, and once nothing has happened
//! for a moment, and tells it to all others. Whoever has another one after the same entry answers
//! with it. So nothing has to be remembered of others: who is alone with its state is told so by
//! everybody, also when it is late.
//!
//! A server that learns that a majority is of one mind without it must stop. What it answers its
//! clients is wrong, and so are its snapshots. It serves nobody from then on, and if it leads, it
//! lets one of the majority lead first. Where no majority is of one mind, as with two servers,
//! nobody can say who is wrong: each raises the alarm and goes on.

use std::collections::BTreeMap;
use std::fmt;

use crate::machine::DIGEST_FUNCTION;
use crate::proto::log::Membership;
use crate::proto::peer::{Digest, Digests};

use super::{Engine, Outputs, PeerMessage};

/// How long nothing is applied until the state is compared where it is, in ms.
const QUIET_MS: u64 = 1_000;
/// How long until it is compared there again, in ms: servers come late, and messages get lost.
const AGAIN_MS: u64 = 10_000;
/// Own digests that are kept for servers that are behind.
const OWN_MAX: usize = 1_024;
/// Indexes at which others are remembered to have other digests.
const OTHERS_MAX: usize = 16;
/// Digests in one message. A difference stays, so that the newest ones show it too.
const TOLD_MAX: usize = 64;
/// How long an outvoted leader waits until another server leads, in ms.
const HAND_OVER_MS: u64 = 1_500;
/// Time between two attempts to hand over, in ms.
const HAND_OVER_AGAIN_MS: u64 = 100;

/// Why a server must not go on: its state is not that of the majority.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Divergence {
    /// The entry after which the states were compared.
    pub index: u64,
    pub own: u64,
    pub others: u64,
    /// Those that have the other state.
    pub servers: Vec<u64>,
    /// The last entry after which some other server was in the same state; 0: there was none since
    /// the start.
    pub agreed: u64,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            index,
            own,
            others,
            servers,
            agreed,
        } = self;
        let servers: Vec<String> = servers.iter().map(u64::to_string).collect();
        write!(
            f,
            "after entry {index} the state of this server has the digest {own:016x}, and that of \
             servers {} has {others:016x}",
            servers.join(" and ")
        )?;
        match agreed {
            0 => Ok(()),
            agreed => write!(f, "; after entry {agreed} they were the same"),
        }
    }
}

/// What is known of the states.
#[derive(Debug, Default)]
pub struct Agreement {
    /// This server's digests, by index.
    own: BTreeMap<u64, u64>,
    /// Others' digests that differ from these, by index and server.
    others: BTreeMap<u64, BTreeMap<u64, u64>>,
    /// The last entry after which some other server was in the same state.
    agreed: u64,
    /// Own digests that the others were not told of yet.
    news: Vec<Digest>,
    /// For whom, and what.
    answers: Vec<(u64, Vec<Digest>)>,
    /// When the others were told last.
    told_ms: u64,
    /// When operators were told that a server differs, by server.
    alarmed_ms: BTreeMap<u64, u64>,
    /// A majority is of one mind without this server.
    outvoted: Option<Outvoted>,
}

#[derive(Debug)]
struct Outvoted {
    divergence: Divergence,
    since_ms: u64,
    hand_over_ms: u64,
}

impl Agreement {
    /// This server's state has this digest now. Others will be told.
    pub fn note(&mut self, index: u64, digest: u64) {
        if self.own.insert(index, digest) != Some(digest) {
            self.others.remove(&index);
        }
        while self.own.len() > OWN_MAX {
            self.own.pop_first();
        }
        self.news.push(Digest { index, digest });
    }

    /// The state is another one from now on.
    pub fn begin_anew(&mut self) {
        *self = Self::default();
    }

    /// Whether this server must not be believed any more.
    pub fn is_outvoted(&self) -> bool {
        self.outvoted.is_some()
    }

    /// Whether the state is to be compared where it is.
    fn is_due(&self, applied: u64, busy_ms: u64, now_ms: u64) -> bool {
        applied > 0
            && now_ms >= busy_ms + QUIET_MS
            && (!self.own.contains_key(&applied) || now_ms >= self.told_ms + AGAIN_MS)
    }

    fn has_nothing_to_say(&self) -> bool {
        self.news.is_empty() && self.answers.is_empty() && self.outvoted.is_none()
    }

    /// Another server's digests. Returns those that differ from this server's, with both; they are
    /// to be answered.
    fn heard(&mut self, from: u64, digests: &[Digest]) -> Vec<(u64, u64, u64)> {
        let mut differing = Vec::new();
        for Digest { index, digest } in digests {
            match self.own.get(index) {
                Some(own) if own == digest => {
                    self.agreed = self.agreed.max(*index);
                    if let Some(others) = self.others.get_mut(index) {
                        others.remove(&from);
                    }
                }
                Some(own) => {
                    differing.push((*index, *own, *digest));
                    self.others.entry(*index).or_default().insert(from, *digest);
                }
                // It was let go, or is still to come: then the other server answers.
                None => {}
            }
        }
        while self.others.len() > OTHERS_MAX {
            self.others.pop_first();
        }
        differing
    }

    /// The first of the entries after which a majority was of one mind without this server.
    fn outvoted(&self, membership: &Membership) -> Option<Divergence> {
        let outvoted = |index: &u64| {
            let others = self.others.get(index)?;
            let digests = others.values().copied();
            digests
                .map(|digest| {
                    let of_one_mind = others.iter().filter(|(_, other)| **other == digest);
                    (digest, of_one_mind.map(|(server, _)| *server).collect())
                })
                .find(|(_, servers): &(u64, Vec<u64>)| is_majority(servers, membership))
        };
        self.others.keys().find_map(|index| {
            let (others, servers) = outvoted(index)?;
            Some(Divergence {
                index: *index,
                own: *self.own.get(index)?,
                others,
                servers,
                agreed: self.agreed,
            })
        })
    }
}

/// Whether these servers can say that another one is wrong: a majority of the voters, and not one
/// alone against one.
fn is_majority(servers: &[u64], membership: &Membership) -> bool {
    let of = |voters: &[u64]| {
        let votes = voters.iter().filter(|voter| servers.contains(voter));
        votes.count() > voters.len() / 2
    };
    let Membership {
        voters,
        voters_outgoing,
        ..
    } = membership;
    servers.len() > 1 && of(voters) && (voters_outgoing.is_empty() || of(voters_outgoing))
}

impl Engine {
    /// Another server said what its state was like.
    pub(super) fn heard_digests(&mut self, from: u64, digests: Digests) {
        if digests.function != DIGEST_FUNCTION {
            return;
        }
        let differing = self.agreement.heard(from, &digests.digests);
        let Some((index, own, other)) = differing.last() else {
            return;
        };
        self.shared
            .metrics
            .digest_mismatches_count
            .add(differing.len() as u64);
        let alarmed_ms = self.agreement.alarmed_ms.get(&from);
        if alarmed_ms.is_none_or(|alarmed_ms| self.now_ms >= alarmed_ms + AGAIN_MS) {
            self.agreement.alarmed_ms.insert(from, self.now_ms);
            tracing::error!(
                server = from,
                index,
                own = format!("{own:016x}"),
                other = format!("{other:016x}"),
                "ALARM: after the same entries another server has another state: one of both is \
                 wrong. If a majority agrees, the others stop by themselves; if not, all go on, \
                 and what clients read depends on the server"
            );
        }
        if !digests.answer {
            let answer = differing.iter().map(|(index, own, _)| Digest {
                index: *index,
                digest: *own,
            });
            let answer = (from, answer.collect());
            self.agreement.answers.push(answer);
        }
        if !self.agreement.is_outvoted()
            && let Some(divergence) = self.agreement.outvoted(&self.replica.membership())
        {
            self.shared.metrics.unrecoverable_error_count.add(1);
            tracing::error!("{divergence}: this server is wrong, and serves nobody any more");
            self.agreement.outvoted = Some(Outvoted {
                divergence,
                since_ms: self.now_ms,
                hand_over_ms: self.now_ms,
            });
        }
    }

    /// Tells the others what this server's state is like, and leaves if it is wrong.
    pub(super) fn compare(&mut self, out: &mut Outputs) {
        let (applied, busy_ms) = (self.applied.index, self.snapshot.busy_ms);
        let is_due = self.agreement.is_due(applied, busy_ms, self.now_ms);
        if !is_due && self.agreement.has_nothing_to_say() {
            return;
        }
        let members = self.replica.members().into_iter();
        let others: Vec<u64> = members.filter(|id| *id != self.id).collect();
        if others.is_empty() {
            self.agreement.news.clear();
            return;
        }
        if is_due {
            let digest = self.shared.state.read().machine.digest();
            self.agreement.note(applied, digest);
        }
        let news = std::mem::take(&mut self.agreement.news);
        if !news.is_empty() {
            self.agreement.told_ms = self.now_ms;
            let newest = &news[news.len().saturating_sub(TOLD_MAX)..];
            let all = others.into_iter();
            let messages = all.map(|to| (to, message(newest.to_vec(), false)));
            out.sends.extend(messages);
        }
        let answers = std::mem::take(&mut self.agreement.answers).into_iter();
        out.sends
            .extend(answers.map(|(to, digests)| (to, message(digests, true))));
        self.leave_if_outvoted(out);
    }

    fn leave_if_outvoted(&mut self, out: &mut Outputs) {
        let Some(outvoted) = &mut self.agreement.outvoted else {
            return;
        };
        let divergence = outvoted.divergence.clone();
        if !self.replica.is_leader() || self.now_ms >= outvoted.since_ms + HAND_OVER_MS {
            out.diverged = Some(divergence);
            return;
        }
        // Those who are right are to be led by one of them.
        if self.now_ms >= outvoted.hand_over_ms {
            outvoted.hand_over_ms = self.now_ms + HAND_OVER_AGAIN_MS;
            let is_right = |id: &u64| divergence.servers.contains(id);
            self.transfer_leadership(|peer| peer.voter && is_right(&peer.id));
        }
    }
}

fn message(digests: Vec<Digest>, answer: bool) -> PeerMessage {
    PeerMessage::Digests(Digests {
        function: DIGEST_FUNCTION,
        digests,
        answer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(index: u64, digest: u64) -> Digest {
        Digest { index, digest }
    }

    fn voters(voters: &[u64]) -> Membership {
        Membership {
            voters: voters.to_vec(),
            ..Membership::default()
        }
    }

    /// What a server with digest 1 after entry 10 makes of what others have.
    fn outvoted(others: &[(u64, u64)], membership: &Membership) -> Option<Vec<u64>> {
        let mut agreement = Agreement::default();
        agreement.note(10, 1);
        for (server, other) in others {
            agreement.heard(*server, &[digest(10, *other)]);
        }
        let divergence = agreement.outvoted(membership)?;
        assert_eq!((divergence.index, divergence.own), (10, 1));
        assert_eq!(divergence.others, 2);
        Some(divergence.servers)
    }

    #[test]
    fn only_a_majority_of_one_mind_outvotes() {
        let three = voters(&[1, 2, 3]);
        assert_eq!(outvoted(&[(2, 2), (3, 2)], &three), Some(vec![2, 3]));
        assert_eq!(outvoted(&[(2, 2)], &three), None);
        assert_eq!(outvoted(&[(2, 2), (3, 1)], &three), None);
        assert_eq!(outvoted(&[(2, 2), (3, 3)], &three), None);
        assert_eq!(outvoted(&[(2, 2), (4, 2)], &three), None, "4 has no vote");
        assert_eq!(outvoted(&[(2, 2)], &voters(&[1, 2])), None, "one to one");
        assert_eq!(outvoted(&[(2, 2)], &voters(&[2])), None, "one to one");
        let observed = voters(&[2, 3]);
        assert_eq!(outvoted(&[(2, 2), (3, 2)], &observed), Some(vec![2, 3]));
        let five = voters(&[1, 2, 3, 4, 5]);
        assert_eq!(outvoted(&[(2, 2), (3, 2)], &five), None);
        let two_are_wrong = [(2, 2), (3, 1), (4, 2), (5, 2)];
        assert_eq!(outvoted(&two_are_wrong, &five), Some(vec![2, 4, 5]));
        let joint = Membership {
            voters_outgoing: vec![1, 4, 5],
            ..three
        };
        assert_eq!(outvoted(&[(2, 2), (3, 2)], &joint), None);
        let both = [(2, 2), (3, 2), (4, 2), (5, 2)];
        assert_eq!(outvoted(&both, &joint), Some(vec![2, 3, 4, 5]));
    }

    #[test]
    fn a_digest_that_was_taken_anew_is_compared_anew() {
        let mut agreement = Agreement::default();
        agreement.note(10, 1);
        agreement.heard(2, &[digest(10, 2)]);
        agreement.note(10, 1);
        agreement.heard(3, &[digest(10, 2)]);
        let three = voters(&[1, 2, 3]);
        assert!(agreement.outvoted(&three).is_some(), "nothing has changed");
        agreement.note(10, 2);
        assert_eq!(agreement.outvoted(&three), None);
        assert_eq!(agreement.heard(2, &[digest(10, 2)]), []);
        assert_eq!(agreement.agreed, 10);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut agreement = Agreement::default();
        for index in 1..5_000 {
            agreement.note(index, 1);
            agreement.heard(2, &[digest(index, 2), digest(index + 9_000, 2)]);
        }
        assert_eq!(agreement.own.len(), OWN_MAX);
        assert_eq!(agreement.others.len(), OTHERS_MAX);
        assert!(agreement.others.contains_key(&4_999));
    }

    #[test]
    fn a_quiet_server_compares_once_and_again_later() {
        let mut agreement = Agreement::default();
        assert!(!agreement.is_due(0, 0, 50_000), "there is no state yet");
        assert!(!agreement.is_due(7, 50_000, 50_900));
        assert!(agreement.is_due(7, 50_000, 51_000));
        agreement.note(7, 1);
        agreement.told_ms = 51_000;
        assert!(!agreement.is_due(7, 50_000, 60_900));
        assert!(agreement.is_due(7, 50_000, 61_000));
        assert!(!agreement.is_due(8, 60_500, 61_000));
    }

    #[test]
    fn the_report_names_both_digests_and_the_entry() {
        let divergence = Divergence {
            index: 5_000,
            own: 0xa,
            others: 0xb,
            servers: vec![1, 3],
            agreed: 4_000,
        };
        assert_eq!(
            divergence.to_string(),
            "after entry 5000 the state of this server has the digest 000000000000000a, and that \
             of servers 1 and 3 has 000000000000000b; after entry 4000 they were the same"
        );
    }
}

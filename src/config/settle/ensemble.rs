//! Who the servers are, and which of them this one is: server lines, `myid` and pods.

use std::collections::BTreeMap;
use std::path::Path;

use super::pod::{Pod, StatefulSet};
use super::{Given, Origin, Problem, Setting, Settling, Verdict};
use crate::config::Listen;
use crate::config::members::{ID_RANGE, Member, is_observer, is_wildcard, member_id, reachable};
use crate::config::values::{Expected, boolean, whole};

/// What the settings say of the servers, before it is weighed.
pub struct Servers {
    /// With where each line stands.
    pub lines: Vec<(Member, Origin)>,
    /// By server, the address that clients are told of.
    advertised: BTreeMap<u32, ((String, u16), Origin)>,
    standalone: bool,
    /// peerType, if it is set.
    observer: Option<bool>,
    /// quorumListenOnAllIPs, if it is set.
    pub on_every_address: Option<bool>,
    pub stateful_set: StatefulSet,
}

impl Default for Servers {
    fn default() -> Self {
        Self {
            lines: Vec::new(),
            advertised: BTreeMap::new(),
            standalone: true,
            observer: None,
            on_every_address: None,
            stateful_set: StatefulSet::default(),
        }
    }
}

impl Servers {
    /// Takes in a setting whose key is treated as `Members`.
    pub fn set(&mut self, name: &str, given: &Given) -> Result<(), Expected> {
        let (value, origin) = (given.value.as_str(), given.origin.clone());
        if let Some(id) = name.strip_prefix("server.") {
            self.lines.push((Member::parse(id, value)?, origin));
        } else if let Some(id) = name.strip_prefix("advertisedClientAddress.") {
            let id = member_id(id).map_err(|_| {
                Expected::new("a server number from 1 to 255 after `advertisedClientAddress.`")
            })?;
            self.advertised.insert(id, (reachable(value)?, origin));
        } else {
            match name {
                "standaloneEnabled" => self.standalone = boolean(value)?,
                "peerType" => self.observer = Some(is_observer(value)?),
                "quorumListenOnAllIPs" => self.on_every_address = Some(boolean(value)?),
                "statefulSet.replicas" => {
                    let replicas = whole(value, ID_RANGE)? as u32;
                    self.stateful_set.replicas = Some((replicas, origin));
                }
                // Judged only if there are replicas: every pod has a name and a namespace.
                "statefulSet.service" => self.stateful_set.service = Some(given.clone()),
                "statefulSet.pod" => self.stateful_set.pod = Some(given.clone()),
                "statefulSet.namespace" => self.stateful_set.namespace = Some(given.clone()),
                // Followed before: it is where lines come from.
                _ => {}
            }
        }
        Ok(())
    }
}

impl Settling {
    /// Decides who the members are and which of them this server is. Returns its own line, or
    /// `Err` if nobody can say which that is; then there is a problem.
    pub fn settle_members(&mut self) -> Result<Option<Member>, ()> {
        let is_refused = |(name, setting): (&String, &Setting)| {
            name.starts_with("server.") && setting.verdict == Verdict::Refused
        };
        if self.settings.iter().any(is_refused) {
            // What is said of the others would not hold once that line is corrected.
            return Err(());
        }
        let pod = self.derive_lines()?;
        let mut lines = std::mem::take(&mut self.servers.lines);
        lines.sort_by_key(|(member, _)| member.id);
        self.check_lines(&lines);
        // One line is an ensemble too, which may grow, if it is said not to be a server alone.
        let together = lines.len() > 1 || !self.servers.standalone;
        self.advertise(&mut lines, together);
        match together && !lines.is_empty() {
            true => self.check_together(&lines),
            false => self.check_alone(&lines),
        }
        let id = self.settle_server_id(&lines, pod);
        self.draft.config.members = lines.iter().map(|(member, _)| member.clone()).collect();
        let own = lines.into_iter().find(|(member, _)| Some(member.id) == id);
        if together && let Some((member, origin)) = &own {
            self.settle_quorum(member, origin);
        }
        match id {
            Some(_) => Ok(own.map(|(member, _)| member)),
            None => Err(()),
        }
    }

    /// No two lines may claim the same number or the same address.
    fn check_lines(&mut self, lines: &[(Member, Origin)]) {
        let mut taken = BTreeMap::new();
        for (member, origin) in lines {
            let same_id = format!("server number {}", member.id);
            for claim in [same_id].into_iter().chain(member.addresses()) {
                if let Some(first) = taken.insert(claim.clone(), origin) {
                    let what = format!("server.{}: {claim} is taken by {first}", member.id);
                    self.problem(origin, what + ": give each server addresses of its own");
                    break;
                }
            }
        }
        if self.draft.config.extended_types
            && let Some((_, origin)) = lines.iter().find(|(member, _)| member.id == 255)
        {
            self.problem(origin, NO_255.to_owned());
        }
    }

    /// Adds what clients are told.
    fn advertise(&mut self, lines: &mut [(Member, Origin)], together: bool) {
        for (id, (address, origin)) in std::mem::take(&mut self.servers.advertised) {
            match lines.iter_mut().find(|(member, _)| member.id == id) {
                Some((member, _)) => member.advertised = Some(address),
                None => self.problem(
                    &origin,
                    format!("advertisedClientAddress.{id} needs a line server.{id}"),
                ),
            }
            if !together {
                self.warnings.push(format!(
                    "{origin}: a server alone tells clients of no address: \
                     advertisedClientAddress.{id} has no effect"
                ));
            }
        }
    }

    /// What a server without others cannot be.
    fn check_alone(&mut self, lines: &[(Member, Origin)]) {
        if let [(member, origin)] = lines
            && member.observer
        {
            let message = "a single server cannot be an observer: write participant";
            self.problem(origin, message.to_owned());
        }
        if !self.servers.standalone {
            let message = "an ensemble needs to know where its servers reach each other: add a \
                           line server.N=host:quorumPort:electionPort for this one, or remove \
                           this line to run a server alone (accepted without it: true)";
            self.refuse("standaloneEnabled", message);
        }
        if self.servers.observer == Some(true) {
            let message = "not supported: a server alone has nobody to follow: add server lines, \
                           or remove the line (accepted: participant)";
            self.refuse("peerType", message);
        }
    }

    /// What servers together need.
    fn check_together(&mut self, lines: &[(Member, Origin)]) {
        let count = lines.len();
        // Where it begins to be an ensemble.
        let (_, second) = lines.get(1).unwrap_or(&lines[0]);
        if self.draft.config.in_memory {
            let message = "servers of an ensemble cannot run in memory: one that forgets its \
                           votes and its log when it stops would undo what others were promised; \
                           give each a dataDir, or keep one server line, without \
                           standaloneEnabled=false";
            self.problem(second, message.to_owned());
        }
        let voters = lines.iter().filter(|(member, _)| !member.observer).count();
        let warning = match voters {
            0 => {
                let message = "all servers are observers: at least one must be a participant";
                return self.problem(second, message.to_owned());
            }
            // To begin with: the others are added while it runs.
            1 if count == 1 => String::new(),
            1 | 2 => format!(
                "{voters} of {count} servers vote: none of these may fail; write three or more \
                 participants"
            ),
            _ if voters.is_multiple_of(2) => format!(
                "{voters} servers vote: no more of them may fail than of {}; an odd number is \
                 better",
                voters - 1
            ),
            _ => String::new(),
        };
        self.warnings
            .extend(Some(warning).filter(|text| !text.is_empty()));
        if self.draft.config.found_with_majority && voters > 2 {
            let place = self.place_of(&["foundWithMajority"]);
            self.warnings.push(format!(
                "{place}: foundWithMajority: if these servers are empty, {} of {voters} found an \
                 ensemble without the others. Whatever those have of an older one is lost then. \
                 Remove this once the ensemble serves: after the loss of a majority's data it \
                 would begin a second cluster beside the first",
                voters / 2 + 1
            ));
        }
        if self.draft.config.cluster_secret_file.is_none() {
            let port = lines[0].0.peers[0].quorum_port;
            self.warnings.push(format!(
                "clusterSecretFile is not set: whoever reaches the quorum port ({port}) can join \
                 the ensemble and read and change everything"
            ));
        }
        self.notes.push(
            "nothing listens on the electionPort of the server lines: votes travel over the \
             quorumPort"
                .to_owned(),
        );
    }

    /// The number of this server (§12.3): from `myid` or the pod, else of the only line.
    fn settle_server_id(&mut self, lines: &[(Member, Origin)], pod: Option<Pod>) -> Option<u32> {
        let in_memory = self.draft.config.in_memory;
        let path = self.draft.config.data_dir.join("myid");
        // Servers together without a directory are a problem already.
        let no_directory = in_memory || self.draft.config.data_dir.as_os_str().is_empty();
        let from_file = match no_directory {
            true => Ok(None),
            false => my_id(&path),
        };
        let ids: Vec<u32> = lines.iter().map(|(member, _)| member.id).collect();
        let from_file = match (from_file, pod) {
            (Ok(Some(id)), Some(pod)) if id != pod.id => Err(format!(
                "this is the directory of server {id}, but {} is server {}: give each pod its own",
                pod.name, pod.id
            )),
            (Ok(None), Some(pod)) => Ok(Some(pod.id)),
            (from_file, _) => from_file,
        };
        let id = match (from_file, &ids[..]) {
            (Ok(Some(id)), []) => Ok(id),
            (Ok(Some(id)), ids) if ids.contains(&id) => Ok(id),
            (Ok(Some(id)), [only]) => Err(format!(
                "this server is {id}, but the only server line is server.{only}"
            )),
            (Ok(Some(id)), ids) => Err(format!(
                "this server is {id}, but the server lines are of {}: correct the number, or add \
                 a line for this server",
                listed(ids)
            )),
            (Ok(None), []) => Ok(1),
            (Ok(None), [only]) => Ok(*only),
            (Ok(None), _) if no_directory => return None,
            (Ok(None), ids) => Err(missing_my_id(&path, ids, here(lines))),
            (Err(message), _) => Err(message),
        };
        let id = match id {
            Ok(id) => id,
            Err(message) => {
                let place = path.display().to_string();
                self.problems.push(Problem { place, message });
                return None;
            }
        };
        self.draft.config.server_id = id;
        if id == 255 && self.draft.config.extended_types && ids.is_empty() {
            let place = self.place_of(&["extendedTypesEnabled"]);
            let message = NO_255.to_owned();
            self.problems.push(Problem { place, message });
        }
        Some(id)
    }

    /// Where this server listens for the others, of which it is `own`.
    fn settle_quorum(&mut self, own: &Member, origin: &Origin) {
        let (id, first) = (own.id, &own.peers[0]);
        let port = first.quorum_port;
        if own.peers.iter().any(|peer| peer.quorum_port != port) {
            let message = format!(
                "server.{id}: a server listens on one quorumPort on all its addresses: write the \
                 same one after each `|`"
            );
            return self.problem(origin, message);
        }
        if own.peers.iter().any(|peer| is_wildcard(&peer.host)) {
            let host = &first.host;
            self.warnings.push(format!(
                "{origin}: server.{id}: {host} tells the others nothing: write the name by which \
                 they reach this server, and quorumListenOnAllIPs=true to listen on every address"
            ));
        }
        if let Some(observer) = self.servers.observer.filter(|o| *o != own.observer) {
            let role = |observer| if observer { "observer" } else { "participant" };
            let place = self.place_of(&["peerType"]);
            self.warnings.push(format!(
                "{place}: peerType={} differs from the line of server.{id}, which wins: {}",
                role(observer),
                role(own.observer)
            ));
        }
        let everywhere = self.servers.on_every_address == Some(true)
            || own.peers.len() > 1
            || is_wildcard(&first.host);
        self.draft.config.quorum = Some(Listen {
            host: (!everywhere).then(|| first.host.clone()),
            port,
        });
    }

    fn problem(&mut self, origin: &Origin, message: String) {
        let place = origin.to_string();
        self.problems.push(Problem { place, message });
    }
}

const NO_255: &str = "server number 255 marks znodes with a time to live: use 1 to 254";

/// The number in the file `myid`, if there is one (§12.3).
fn my_id(path: &Path) -> Result<Option<u32>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let advice = match error.kind() {
                std::io::ErrorKind::NotADirectory => "; dataDir must be a directory",
                std::io::ErrorKind::PermissionDenied => {
                    "; dataDir and all in it must belong to the user that runs zkraft"
                }
                _ => "",
            };
            return Err(format!("cannot be read: {error}{advice}"));
        }
    };
    let first = text.lines().next().unwrap_or_default().trim();
    match whole(first, ID_RANGE) {
        Ok(id) => Ok(Some(id as u32)),
        Err(Expected(expected)) => Err(format!("the first line must be {expected}")),
    }
}

fn missing_my_id(path: &Path, ids: &[u32], here: Option<(u32, String)>) -> String {
    let example = here.as_ref().map_or(ids[0], |(id, _)| *id);
    let hint = here.map_or(String::new(), |(id, name)| {
        format!("; this machine is called {name}, as the host of server.{id}")
    });
    format!(
        "missing: say which of the servers {} this one is, for example `echo {example} > {}`{hint}",
        listed(ids),
        path.display()
    )
}

/// The only line whose host is this machine, and the machine's name.
fn here(lines: &[(Member, Origin)]) -> Option<(u32, String)> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    only_line_of(name, lines).map(|id| (id, name.to_owned()))
}

/// The number of the only line with a host of this name. One of the two may lack the domain.
fn only_line_of(name: &str, lines: &[(Member, Origin)]) -> Option<u32> {
    let name = name.to_ascii_lowercase();
    let is_same = |host: &str| {
        let host = host.to_ascii_lowercase();
        let longer = |long: &str, short: &str| {
            long.strip_prefix(short)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        host == name || longer(&host, &name) || longer(&name, &host)
    };
    let mut same = lines
        .iter()
        .filter(|(member, _)| member.peers.iter().any(|peer| is_same(&peer.host)));
    match (same.next(), same.next()) {
        (Some((member, _)), None) if !name.is_empty() => Some(member.id),
        _ => None,
    }
}

fn listed(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(", ")
}

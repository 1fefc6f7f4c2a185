//! The servers of a StatefulSet: from the name of a pod to server lines and a number.
//!
//! The pod of ordinal N is server N + 1 and is reached at `pod.service`, so that more or fewer
//! replicas change nobody's number.

use super::{Given, Origin, Settling};
use crate::config::members::{Member, PeerAddress};
use crate::config::values::Expected;

const QUORUM_PORT: u16 = 2888;
const ELECTION_PORT: u16 = 3888;
const CLIENT_PORT: u16 = 2181;

/// What the settings say of the StatefulSet.
#[derive(Default)]
pub struct StatefulSet {
    pub replicas: Option<(u32, Origin)>,
    pub service: Option<Given>,
    pub pod: Option<Given>,
    pub namespace: Option<Given>,
}

/// This server as a pod.
pub struct Pod {
    pub name: String,
    pub id: u32,
}

impl Settling {
    /// Makes the server lines of a StatefulSet, if this server belongs to one.
    ///
    /// # Errors
    /// The settings contradict each other or lack something: there is a problem.
    pub fn derive_lines(&mut self) -> Result<Option<Pod>, ()> {
        let set = std::mem::take(&mut self.servers.stateful_set);
        let Some((replicas, origin)) = set.replicas else {
            return self.without_replicas(&set).map(|()| None);
        };
        if !self.servers.lines.is_empty() {
            let message = "the server lines are made from the number of replicas: write none, or \
                           do not set this";
            self.refuse("statefulSet.replicas", message);
            return Err(());
        }
        let Some(pod) = &set.pod else {
            let message = "needs the name of this pod: set --pod, POD_NAME or HOSTNAME, for \
                           example to zkraft-0";
            self.refuse("statefulSet.replicas", message);
            return Err(());
        };
        let Some(service) = &set.service else {
            let message = "needs the name of the headless service: set --service or \
                           ZKRAFT_SERVICE, for example to zkraft-headless";
            self.refuse("statefulSet.replicas", message);
            return Err(());
        };
        let (name, ordinal) = self.read("statefulSet.pod", split_pod(&pod.value))?;
        let service = self.read("statefulSet.service", dns_name(&service.value))?;
        let namespace = match &set.namespace {
            Some(given) => Some(self.read("statefulSet.namespace", dns_name(&given.value))?),
            None => None,
        };
        let this = Pod {
            name: format!("{name}-{ordinal}"),
            id: ordinal + 1,
        };
        if ordinal >= replicas {
            let message = format!(
                "{} is pod number {} of {replicas}: set this to the replicas of the StatefulSet, \
                 whose ordinals start at 0",
                this.name, this.id
            );
            self.refuse("statefulSet.replicas", &message);
            return Err(());
        }
        let domain = match namespace {
            // A service with dots is a whole domain.
            Some(namespace) if !service.contains('.') => {
                format!("{service}.{namespace}.svc.cluster.local")
            }
            _ => service.to_owned(),
        };
        // What every pod listens on; 0 would be another port on each.
        let client_port = self.draft.client_port.unwrap_or(CLIENT_PORT);
        let line = |ordinal: u32| Member {
            id: ordinal + 1,
            observer: false,
            peers: vec![PeerAddress {
                host: format!("{name}-{ordinal}.{domain}"),
                quorum_port: QUORUM_PORT,
                election_port: ELECTION_PORT,
            }],
            client: (client_port > 0).then_some((None, client_port)),
            advertised: None,
        };
        let lines = (0..replicas).map(|ordinal| (line(ordinal), origin.clone()));
        self.servers.lines = lines.collect();
        // The name of a pod has no address before the pod runs.
        self.servers.on_every_address.get_or_insert(true);
        Ok(Some(this))
    }

    /// Every pod has a name and a namespace in its environment, but who sets anything of a
    /// StatefulSet himself wants one.
    fn without_replicas(&mut self, set: &StatefulSet) -> Result<(), ()> {
        if self.settings.contains_key("statefulSet.replicas") {
            // A number that was refused.
            return Err(());
        }
        let names = ["service", "pod", "namespace"];
        let given = [&set.service, &set.pod, &set.namespace];
        for (name, given) in names.into_iter().zip(given) {
            let ambient = |given: &&Given| {
                name != "service" && matches!(given.origin, Origin::Environment(_))
            };
            if given.as_ref().is_some_and(|given| !ambient(&given)) {
                let message = "needs the number of pods: set --replicas or ZKRAFT_REPLICAS";
                self.refuse(&format!("statefulSet.{name}"), message);
                return Err(());
            }
        }
        Ok(())
    }

    fn read<T>(&mut self, name: &str, value: Result<T, Expected>) -> Result<T, ()> {
        value.map_err(|Expected(text)| self.refuse(name, &format!("expected {text}")))
    }
}

/// The name of the StatefulSet and the ordinal in the name of a pod, domain or not.
fn split_pod(value: &str) -> Result<(&str, u32), Expected> {
    let name = value.split('.').next().unwrap_or_default();
    let parts = name.rsplit_once('-').and_then(|(set, ordinal)| {
        let ordinal = ordinal
            .parse::<u8>()
            .ok()
            .filter(|ordinal| *ordinal < 255)?;
        Some((dns_name(set).ok()?, u32::from(ordinal)))
    });
    parts.ok_or_else(|| {
        Expected::new("the name of a pod of a StatefulSet, which ends with its ordinal: zkraft-0")
    })
}

fn dns_name(value: &str) -> Result<&str, Expected> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    match !value.is_empty() && value.chars().all(fits) {
        true => Ok(value),
        false => Err(Expected::new("a name of letters, digits, `-` and `.`")),
    }
}

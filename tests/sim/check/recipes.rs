//! What recipes rely on (architecture §2.7): the same guarantees once more, as an application sees
//! them. They follow from the other checkers, which is why a disagreement would say that one of
//! those is wrong.

use std::collections::BTreeSet;

use super::{Group, Verdict, broken};
use crate::client::Client;
use crate::model::Model;
use crate::workload::{Bank, Claim};

#[derive(Debug, Default)]
pub struct RecipeCheck {
    taken: BTreeSet<String>,
    put: BTreeSet<String>,
    confirmed: u64,
    unknown: u64,
}

impl RecipeCheck {
    /// Looks at what the clients claim. Called whenever one of them may have learned something.
    pub fn look(&mut self, clients: &mut [Client], now_us: u64) -> Verdict {
        let mut locked = false;
        (self.confirmed, self.unknown) = (0, 0);
        for client in clients.iter_mut() {
            for claim in client.workload.claims() {
                match claim {
                    Claim::Locked => locked = true,
                    Claim::Took(path) => {
                        if !self.taken.insert(path.to_string()) {
                            return broken(Group::Recipes, format!("{path} was taken twice"));
                        }
                    }
                    Claim::Put(path) => {
                        if !self.put.insert(path.to_string()) {
                            let what = format!("sequence number of {path} came twice");
                            return broken(Group::Recipes, what);
                        }
                    }
                    Claim::Counted { confirmed, unknown } => {
                        self.confirmed += confirmed;
                        self.unknown += unknown;
                    }
                    Claim::Sum { seen, expected } if seen != expected => {
                        let what = format!("the accounts hold {seen} instead of {expected}");
                        return broken(Group::Recipes, what);
                    }
                    Claim::Sum { .. } => {}
                }
            }
        }
        let holds = |client: &&Client| {
            let alive = now_us < client.alive_until_us && !client.is_closing;
            client.workload.holds_lock() && alive
        };
        let holders: Vec<_> = clients
            .iter()
            .filter(holds)
            .map(|client| client.id)
            .collect();
        if locked && holders.len() > 1 {
            return broken(Group::Recipes, format!("clients {holders:?} hold one lock"));
        }
        Ok(())
    }

    /// At the end, with everything known.
    pub fn end(&self, model: &Model) -> Verdict {
        for path in self.put.difference(&self.taken) {
            // Another client's delete may have been taken without its reply.
            let deleted = model.changes.iter().any(|change| {
                change.path == *path && change.kind == zkraft::wire::EventType::NodeDeleted
            });
            if !deleted && !model.now.contains_key(path) {
                return broken(Group::Recipes, format!("22: element {path} was lost"));
            }
        }
        if let Some(counter) = model.now.get("/counter") {
            let data = counter.data.as_deref().unwrap_or_default();
            let value: u64 = std::str::from_utf8(data)
                .ok()
                .and_then(|v| v.parse().ok())
                .unwrap_or(0);
            let (low, high) = (self.confirmed, self.confirmed + self.unknown);
            if !(low..=high).contains(&value) {
                let what = format!("22: the counter is {value}, confirmed {low}, at most {high}");
                return broken(Group::Recipes, what);
            }
        } else if self.confirmed > 0 {
            return broken(Group::Recipes, "22: the counter is gone");
        }
        let amount = |account| {
            let data = model.now.get(&Bank::path(account))?.data.clone()?;
            std::str::from_utf8(&data).ok()?.parse::<i64>().ok()
        };
        let amounts: Vec<_> = (0..Bank::ACCOUNTS).filter_map(amount).collect();
        if !amounts.is_empty() && amounts.iter().sum::<i64>() != Bank::SUM {
            return broken(Group::Recipes, format!("11: the accounts hold {amounts:?}"));
        }
        Ok(())
    }
}

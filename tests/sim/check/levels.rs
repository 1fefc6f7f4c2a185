//! Feature levels (`engine::level`): when the ensemble's is raised, and who may execute what.
//!
//! A leader may raise the level only if all members were there of late, and the build that each of
//! them runs, as it was when this leader heard of it last, agrees. No server executes an entry at a
//! level that its build does not know.

use std::collections::BTreeMap;

use prost::Message as _;
use zkraft::proto::log;

use super::members::Members;
use super::{Group, Verdict, broken};
use crate::model::own;

/// The setting that has it.
pub const SETTING: &str = "feature_level";
/// Who was not heard for longer, in ms, is not there.
const HEARD_MS: u64 = 550;

/// A build of the program, as it is configured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Build {
    /// The highest level that it knows.
    pub level: u32,
    /// The highest that it is told to agree to; 0: any.
    pub level_max: u32,
}

impl Build {
    pub fn of(level: u32) -> Self {
        let level_max = 0;
        Self { level, level_max }
    }

    /// The highest level that it agrees to.
    pub fn agrees_to(self) -> u32 {
        match self.level_max {
            0 => self.level,
            most => self.level.min(most),
        }
    }
}

#[derive(Debug)]
pub struct LevelCheck {
    /// From behind which entry on which level holds.
    history: BTreeMap<u64, u32>,
    servers: Vec<Knows>,
    /// A leader, the level that it raised the ensemble's to, and its clock then, in ms.
    raise: Option<(usize, u32, u64)>,
}

/// What the process of a server is, and what it knows.
#[derive(Clone, Debug)]
struct Knows {
    build: Build,
    /// The builds of others, as they were when they said who they are.
    others: BTreeMap<u64, Build>,
    /// When each of them was heard last, in ms of this server's clock.
    heard_ms: BTreeMap<u64, u64>,
}

impl LevelCheck {
    pub fn new(servers: usize) -> Self {
        let knows = Knows {
            build: Build::of(0),
            others: BTreeMap::new(),
            heard_ms: BTreeMap::new(),
        };
        Self {
            history: BTreeMap::from([(0, 1)]),
            servers: vec![knows; servers],
            raise: None,
        }
    }

    /// A process of this build starts, with the state at this index.
    pub fn started(&mut self, server: usize, build: Build, applied: u64) -> Verdict {
        self.servers[server] = Knows {
            build,
            others: BTreeMap::new(),
            heard_ms: BTreeMap::new(),
        };
        self.may_execute(server, applied + 1)
    }

    /// Another server says who it is, and runs this build.
    pub fn introduced(&mut self, server: usize, other: u64, build: Build) {
        self.servers[server].others.insert(other, build);
    }

    /// The process of another server is gone.
    pub fn gone(&mut self, server: usize, other: u64) {
        self.servers[server].others.remove(&other);
    }

    /// A frame of another server came.
    pub fn heard(&mut self, server: usize, other: u64, now_ms: u64) {
        self.servers[server].heard_ms.insert(other, now_ms);
    }

    /// When a server heard any other one last.
    pub fn heard_last(&self, server: usize) -> u64 {
        let heard = self.servers[server].heard_ms.values();
        heard.copied().max().unwrap_or(0)
    }

    /// A leader wrote these commands of its own into the log. Whether it might is known once it is
    /// known what it had applied before: [`Self::decided`].
    pub fn proposed(&mut self, server: usize, commands: &[log::Command], now_ms: u64) {
        if let Some(level) = raised(commands) {
            self.raise = Some((server, level, now_ms));
        }
    }

    /// These were the members, as a server knew them when it made its proposals.
    pub fn decided(&mut self, server: usize, members: &Members) -> Verdict {
        let Some((_, level, now_ms)) = self.raise.take_if(|(leader, ..)| *leader == server) else {
            return Ok(());
        };
        let knows = &self.servers[server];
        let own = server as u64 + 1;
        for id in &members.all() {
            let build = match *id == own {
                true => Some(&knows.build),
                false => knows.others.get(id),
            };
            let heard_ms = match *id == own {
                true => Some(now_ms),
                false => knows.heard_ms.get(id).copied(),
            };
            let is_there = heard_ms.is_some_and(|heard_ms| now_ms <= heard_ms + HEARD_MS);
            if !is_there || build.is_none_or(|build| build.agrees_to() < level) {
                let what = format!("server {server} raises the level to {level}, but {id} is");
                let what = format!("{what} {build:?}, heard at {heard_ms:?}, now {now_ms}");
                return broken(Group::Levels, what);
            }
        }
        Ok(())
    }

    /// The model has applied an entry with these commands of the leader's own. True: it has raised
    /// the level.
    pub fn follow(&mut self, index: u64, commands: &[log::Command]) -> bool {
        let Some(level) = raised(commands).filter(|level| *level > self.present()) else {
            return false;
        };
        self.history.insert(index, level);
        true
    }

    /// A server executes this entry.
    pub fn may_execute(&self, server: usize, index: u64) -> Verdict {
        let (level, known) = (self.at(index), self.servers[server].build.level);
        if level > known {
            let what = format!("server {server} knows level {known}, and executes {index} at");
            return broken(Group::Levels, format!("{what} {level}"));
        }
        Ok(())
    }

    /// A server says that it is too old for its state, which is that of this index.
    pub fn outdated(&self, server: usize, applied: u64) -> Verdict {
        if self.may_execute(server, applied + 1).is_ok() {
            let what = format!("server {server} stops as too old at {applied}");
            return broken(Group::Levels, format!("{what}: {self:?}"));
        }
        Ok(())
    }

    pub fn present(&self) -> u32 {
        self.at(u64::MAX)
    }

    /// The level at which an entry is executed.
    pub fn at(&self, index: u64) -> u32 {
        let (_, level) = self.history.range(..index).last().expect("from 0 on");
        *level
    }
}

/// The level that these commands raise the ensemble's to.
fn raised(commands: &[log::Command]) -> Option<u32> {
    let sets = commands.iter().filter(|command| command.op == own::SET);
    let sets = sets.map(|command| log::Set::decode(command.body.as_ref()).unwrap_or_default());
    let levels = sets.filter(|set| set.name == SETTING);
    levels.filter_map(|set| u32::try_from(set.value).ok()).max()
}

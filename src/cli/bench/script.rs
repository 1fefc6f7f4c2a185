//! What each client asks for, request by request.
//!
//! A [`Script`] knows the protocol's requests but no socket and no clock; [`super::drive`] sends
//! what it writes and tells it what came back.

use super::frames::{self, EPHEMERAL, Frames, PERSISTENT, Reply};
use crate::wire::op;

/// Children of each parent of the keys.
pub const KEYS_PER_PARENT: usize = 1_000;
/// Children of the znode that the published mix lists.
pub const LISTED: usize = 100;
/// Bytes of a checkpoint's znode, as recorded from Flink.
const CHECKPOINT_BYTES: usize = 485;

/// Pseudorandom numbers (SplitMix64): repeatable, and next to free.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // The high half of a wide product: no division, and no bias that matters here.
        ((u128::from(mixed) * bound as u128) >> 64) as usize
    }
}

/// A request as its script sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Asked {
    /// Index into [`Script::classes`].
    pub class: usize,
    /// The first request of an operation: its latency counts from here.
    pub begins: bool,
    /// The last request of an operation: its reply is counted.
    pub ends: bool,
}

impl Asked {
    /// A request that is an operation of its own.
    fn whole(class: usize) -> Self {
        Self {
            class,
            begins: true,
            ends: true,
        }
    }

    /// A request that belongs to no operation.
    fn aside() -> Self {
        Self {
            class: 0,
            begins: false,
            ends: false,
        }
    }
}

/// What a client may use when it is asked for its next request.
pub struct Turn<'a> {
    pub out: &'a mut Vec<u8>,
    pub xid: i32,
    pub random: &'a mut Random,
    pub fan: &'a mut Fan,
}

/// What the clients of a fan-out share.
#[derive(Debug, Default)]
pub struct Fan {
    pub watchers: usize,
    /// Watchers whose watch is set.
    armed: usize,
    /// Watchers that were told.
    told: usize,
    /// Changes that all watchers were told of, not counted yet.
    pub done: usize,
}

impl Fan {
    pub fn all_are_armed(&self) -> bool {
        self.armed == self.watchers
    }
}

pub trait Script {
    /// Names of the kinds of operations.
    fn classes(&self) -> &'static [&'static str];

    /// Writes the next request. `None`: there is nothing to ask for now.
    fn next(&mut self, turn: Turn<'_>) -> Option<Asked>;

    /// A reply came. `class`: of the request.
    ///
    /// # Errors
    /// If it is not what this load must get.
    fn replied(&mut self, class: usize, reply: Reply<'_>, fan: &mut Fan) -> Result<(), String> {
        let _ = fan;
        match reply.error {
            0 => Ok(()),
            code => Err(format!(
                "{} failed with error {code}",
                self.classes()[class]
            )),
        }
    }

    /// A watch of this client fired.
    fn notified(&mut self, fan: &mut Fan) {
        let _ = fan;
    }

    /// Requests that may be unanswered, if that is not for the caller to choose.
    fn depth(&self) -> Option<usize> {
        None
    }
}

/// A path whose last digits change.
#[derive(Clone)]
pub struct Numbered {
    path: Vec<u8>,
    digits: usize,
}

impl Numbered {
    pub fn new(prefix: &str, digits: usize) -> Self {
        let path = format!("{prefix}{:0digits$}", 0).into_bytes();
        Self { path, digits }
    }

    pub fn at(&mut self, mut number: usize) -> &[u8] {
        let length = self.path.len();
        for digit in self.path[length - self.digits..].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        &self.path
    }
}

/// The paths of the keys: parents of a thousand children, names of ten bytes.
#[derive(Clone)]
pub struct Keys {
    path: Vec<u8>,
    root: usize,
    pub count: usize,
}

impl Keys {
    pub fn new(root: &str, count: usize) -> Self {
        Self {
            path: format!("{root}/p000000000/k000000000").into_bytes(),
            root: root.len(),
            count,
        }
    }

    pub fn parents(&self) -> usize {
        self.count.div_ceil(KEYS_PER_PARENT)
    }

    pub fn parent(&mut self, number: usize) -> &[u8] {
        digits(&mut self.path[self.root + 2..self.root + 11], number);
        &self.path[..self.root + 11]
    }

    pub fn key(&mut self, number: usize) -> &[u8] {
        self.parent(number / KEYS_PER_PARENT);
        digits(&mut self.path[self.root + 13..], number % KEYS_PER_PARENT);
        &self.path
    }
}

fn digits(out: &mut [u8], mut number: usize) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Reads and writes of random keys.
pub struct Keyed {
    pub keys: Keys,
    pub data: Vec<u8>,
    pub read_percent: usize,
}

impl Script for Keyed {
    fn classes(&self) -> &'static [&'static str] {
        &["get", "set"]
    }

    fn next(&mut self, turn: Turn<'_>) -> Option<Asked> {
        let is_read = self.read_percent == 100
            || (self.read_percent > 0 && turn.random.below(100) < self.read_percent);
        let key = self.keys.key(turn.random.below(self.keys.count));
        if is_read {
            frames::get(turn.out, turn.xid, key, false);
        } else {
            frames::set(turn.out, turn.xid, key, &self.data, -1);
        }
        Some(Asked::whole(usize::from(!is_read)))
    }
}

/// Znodes of its own, each with a new name.
pub struct Creates {
    pub path: Numbered,
    pub created: usize,
    pub data: Vec<u8>,
}

impl Script for Creates {
    fn classes(&self) -> &'static [&'static str] {
        &["create"]
    }

    fn next(&mut self, turn: Turn<'_>) -> Option<Asked> {
        self.created += 1;
        let path = self.path.at(self.created);
        frames::create(turn.out, turn.xid, path, &self.data, PERSISTENT);
        Some(Asked::whole(0))
    }
}

/// The keys, once: this client's share of them.
pub struct Fill {
    pub keys: Keys,
    pub next: usize,
    pub end: usize,
    pub data: Vec<u8>,
}

impl Script for Fill {
    fn classes(&self) -> &'static [&'static str] {
        &["create"]
    }

    fn next(&mut self, turn: Turn<'_>) -> Option<Asked> {
        if self.next == self.end {
            return None;
        }
        let path = self.keys.key(self.next);
        self.next += 1;
        frames::create(turn.out, turn.xid, path, &self.data, PERSISTENT);
        Some(Asked::whole(0))
    }
}

/// 1 create, 8 set, 45 get, 45 list of 100 children, 1 delete.
pub struct Published {
    pub keys: Keys,
    pub listed: Vec<u8>,
    pub own: Numbered,
    pub data: Vec<u8>,
    pub created: usize,
    pub deleted: usize,
}

impl Script for Published {
    fn classes(&self) -> &'static [&'static str] {
        &["create", "set", "get", "list", "delete"]
    }

    fn next(&mut self, turn: Turn<'_>) -> Option<Asked> {
        let Turn {
            out, xid, random, ..
        } = turn;
        let key = random.below(self.keys.count);
        let class = match random.below(100) {
            0 => 0,
            1..=8 => 1,
            9..=53 => 2,
            54..=98 => 3,
            // There must be something to delete.
            _ if self.deleted == self.created => 0,
            _ => 4,
        };
        match class {
            0 => {
                self.created += 1;
                let path = self.own.at(self.created);
                frames::create(out, xid, path, &self.data, PERSISTENT);
            }
            1 => frames::set(out, xid, self.keys.key(key), &self.data, -1),
            2 => frames::get(out, xid, self.keys.key(key), false),
            3 => frames::list(out, xid, &self.listed),
            _ => {
                self.deleted += 1;
                frames::delete(out, xid, self.own.at(self.deleted));
            }
        }
        Some(Asked::whole(class))
    }
}

/// An ephemeral comes, the one before it goes.
pub struct Ephemerals {
    pub path: Numbered,
    pub data: Vec<u8>,
    pub asked: usize,
}

impl Script for Ephemerals {
    fn classes(&self) -> &'static [&'static str] {
        &["create", "delete"]
    }

    fn next(&mut self, turn: Turn<'_>) -> Option<Asked> {
        let class = self.asked % 2;
        let path = self.path.at(self.asked / 2);
        self.asked += 1;
        if class == 0 {
            frames::create(turn.out, turn.xid, path, &self.data, EPHEMERAL);
        } else {
            frames::delete(turn.out, turn.xid, path);
        }
        Some(Asked::whole(class))
    }
}

/// Nothing: the session itself is the load.
pub struct Silent(pub &'static [&'static str]);

impl Script for Silent {
    fn classes(&self) -> &'static [&'static str] {
        self.0
    }

    fn next(&mut self, _: Turn<'_>) -> Option<Asked> {
        None
    }
}

/// One of many that watch one znode, each watch set again after it fired.
pub struct Watcher {
    pub path: Vec<u8>,
    pub is_armed: bool,
}

impl Script for Watcher {
    fn classes(&self) -> &'static [&'static str] {
        FAN_OUT
    }

    fn next(&mut self, turn: Turn<'_>) -> Option<Asked> {
        if std::mem::replace(&mut self.is_armed, true) {
            return None;
        }
        frames::get(turn.out, turn.xid, &self.path, true);
        Some(Asked::aside())
    }

    fn replied(&mut self, _: usize, reply: Reply<'_>, fan: &mut Fan) -> Result<(), String> {
        if reply.error != 0 {
            return Err(format!("get failed with error {}", reply.error));
        }
        fan.armed += 1;
        Ok(())
    }

    fn notified(&mut self, fan: &mut Fan) {
        self.is_armed = false;
        fan.told += 1;
        if fan.told == fan.watchers {
            fan.told = 0;
            fan.done += 1;
        }
    }
}

pub const FAN_OUT: &[&str] = &["change"];

/// Changes the znode that all watch, once all watch it.
pub struct Changer {
    pub path: Vec<u8>,
    pub data: Vec<u8>,
}

impl Script for Changer {
    fn classes(&self) -> &'static [&'static str] {
        FAN_OUT
    }

    fn next(&mut self, turn: Turn<'_>) -> Option<Asked> {
        if !turn.fan.all_are_armed() {
            return None;
        }
        turn.fan.armed = 0;
        frames::set(turn.out, turn.xid, &self.path, &self.data, -1);
        Some(Asked {
            class: 0,
            begins: true,
            // It has ended when the last watcher was told.
            ends: false,
        })
    }

    fn depth(&self) -> Option<usize> {
        Some(1)
    }
}

/// What Flink does for each completed checkpoint, step by step.
pub struct Checkpoints {
    /// Where this job's znodes are; the counter and `checkpoints` exist.
    pub job: String,
    pub number: usize,
    pub step: usize,
    /// The step that is unanswered.
    pub asked: usize,
}

impl Checkpoints {
    const EXISTS: usize = 2;
    const MULTI: usize = 3;

    fn path(&self, number: usize) -> String {
        format!("{}/checkpoints/{number:019}", self.job)
    }
}

impl Script for Checkpoints {
    fn classes(&self) -> &'static [&'static str] {
        &["checkpoint"]
    }

    fn next(&mut self, turn: Turn<'_>) -> Option<Asked> {
        const LOCK: &str = "locks/7f3cfa1e-9cf6-4d0e-8ca5-3bd1ab19b0b2";
        let Turn { out, xid, .. } = turn;
        let counter = format!("{}/checkpoint_id_counter", self.job).into_bytes();
        let (new, old) = (self.path(self.number + 1), self.path(self.number));
        let under = |parent: &str, name: &str| format!("{parent}/{name}").into_bytes();
        // The first one has no predecessor to remove.
        let last = if self.number == 0 { Self::MULTI } else { 7 };
        let step = self.step;
        self.asked = step;
        match step {
            0 => {
                let value = (self.number as i32 + 1).to_be_bytes();
                frames::set(out, xid, &counter, &value, self.number as i32);
            }
            1 => frames::get(out, xid, &counter, true),
            Self::EXISTS => frames::exists(out, xid, new.as_bytes()),
            Self::MULTI => Frames::begin(out, xid, op::MULTI)
                .operation(op::CREATE)
                .znode(new.as_bytes(), &[7; CHECKPOINT_BYTES], PERSISTENT)
                .operation(op::CREATE)
                .znode(&under(&new, "locks"), b"", PERSISTENT)
                .operation(op::CREATE)
                .znode(&under(&new, LOCK), b"", EPHEMERAL)
                .operations_end()
                .end(),
            4 => frames::get(out, xid, old.as_bytes(), false),
            5 => frames::delete(out, xid, &under(&old, LOCK)),
            6 => frames::delete(out, xid, &under(&old, "locks")),
            _ => frames::delete(out, xid, old.as_bytes()),
        }
        let ends = step == last;
        if ends {
            self.step = 0;
            self.number += 1;
        } else {
            self.step += 1;
        }
        Some(Asked {
            class: 0,
            begins: step == 0,
            ends,
        })
    }

    fn replied(&mut self, _: usize, reply: Reply<'_>, _: &mut Fan) -> Result<(), String> {
        const NO_NODE: i32 = crate::wire::ErrorCode::NoNode as i32;
        match reply.error {
            // A multi that failed has no error in its header: its results say so.
            0 if self.asked == Self::MULTI && frames::int_at(reply.body, 0) == Some(-1) => {
                Err("the multi of a checkpoint failed".to_owned())
            }
            0 => Ok(()),
            // The new checkpoint does not exist, of course.
            NO_NODE if self.asked == Self::EXISTS => Ok(()),
            code => Err(format!(
                "step {} of a checkpoint failed with error {code}",
                self.asked
            )),
        }
    }

    fn depth(&self) -> Option<usize> {
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_parents_of_a_thousand_and_names_of_ten_bytes() {
        let mut keys = Keys::new("/bench", 2_500);
        assert_eq!(keys.parents(), 3);
        assert_eq!(keys.key(2_345), b"/bench/p000000002/k000000345");
        assert_eq!(keys.parent(1), b"/bench/p000000001");
        assert_eq!(Numbered::new("/a-", 4).at(42), b"/a-0042");
    }

    #[test]
    fn a_checkpoint_is_eight_requests_once_there_is_a_predecessor() {
        let mut script = Checkpoints {
            job: "/job".into(),
            number: 0,
            step: 0,
            asked: 0,
        };
        let mut requests = Vec::new();
        for _ in 0..3 {
            let mut count = 0;
            loop {
                let mut out = Vec::new();
                let asked = script.next(Turn {
                    out: &mut out,
                    xid: 1,
                    random: &mut Random(1),
                    fan: &mut Fan::default(),
                });
                count += 1;
                assert_eq!(asked.map(|asked| asked.begins), Some(count == 1));
                if asked.is_some_and(|asked| asked.ends) {
                    break;
                }
            }
            requests.push(count);
        }
        assert_eq!(requests, [4, 8, 8]);
    }

    #[test]
    fn a_step_of_a_checkpoint_that_fails_is_an_error() {
        let is_fine = |asked, error, body: &[u8]| {
            let mut script = Checkpoints {
                job: "/job".into(),
                number: 1,
                step: 0,
                asked,
            };
            let reply = Reply {
                xid: 1,
                error,
                body,
            };
            script.replied(0, reply, &mut Fan::default()).is_ok()
        };
        for step in 0..8 {
            assert!(is_fine(step, 0, &[0; 60]), "{step}");
            assert_eq!(is_fine(step, -101, &[]), step == 2, "{step}");
            assert!(!is_fine(step, -103, &[]), "{step}");
            let failed = [0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0x92];
            assert_eq!(is_fine(step, 0, &failed), step != 3, "{step}");
        }
    }

    #[test]
    fn random_numbers_stay_below_their_bound_and_repeat() {
        let draw = |seed| {
            let mut random = Random(seed);
            (0..1_000).map(|_| random.below(7)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!((0..7).all(|number| draw(1).contains(&number)));
        assert!(draw(1).iter().all(|number| *number < 7));
    }
}

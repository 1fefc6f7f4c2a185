//! The watches that clients of this server have set: who is told of which change (§6).
//!
//! Watches belong to a connection and vanish with it. They are kept by path, since a path may be
//! watched before its znode exists. This is bookkeeping only: it knows no znodes and no
//! permissions, and it sends nothing. Whoever holds it says what changed and is told, in a fixed
//! order, which connections get which event.
//!
//! Anyone may watch any path, so what watches may take of the memory is limited.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;

use crate::machine::{Change, ChangeKind, Index, path};
use crate::wire::{EventType, Text};

/// One connection of a client to this server. Never used twice while the server runs.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ConnectionId(pub u64);

/// What a watch waits for (§6.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WatchMode {
    /// Once: the znode is created, deleted, or its data changes.
    Data,
    /// Once: the children of the znode change, or it is deleted.
    Child,
    /// Any of these, until it is removed.
    Persistent,
    /// Creation, deletion and data of the znode and everything below it, until it is removed.
    PersistentRecursive,
}

/// Whose access control list must grant READ to a connection for it to get an event (§6.4).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FilterOn {
    /// The changed znode's.
    Own,
    /// Its parent's.
    Parent,
}

/// What one connection waits for at one path: at most one watch of each mode.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Flags(u8);

impl Flags {
    const DATA: Self = Self(1);
    const CHILD: Self = Self(2);
    const PERSISTENT: Self = Self(4);
    const RECURSIVE: Self = Self(8);
    const ALL: Self = Self(15);
    /// Those that are in the protocol's data table.
    const DATA_TABLE: Self = Self(1 | 4 | 8);
    /// Those that are in its child table.
    const CHILD_TABLE: Self = Self(2 | 4);

    fn of(mode: WatchMode) -> Self {
        match mode {
            WatchMode::Data => Self::DATA,
            WatchMode::Child => Self::CHILD,
            WatchMode::Persistent => Self::PERSISTENT,
            WatchMode::PersistentRecursive => Self::RECURSIVE,
        }
    }

    /// The flags that a type of `removeWatches` or `checkWatches` speaks of (§6.8).
    fn of_kind(kind: i32) -> Self {
        match kind {
            1 => Self::CHILD,
            2 => Self::DATA,
            3 => Self::ALL,
            4 => Self::PERSISTENT,
            5 => Self::RECURSIVE,
            _ => Self(0),
        }
    }

    fn has(self, any: Self) -> bool {
        self.0 & any.0 != 0
    }

    fn with(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    fn without(self, less: Self) -> Self {
        Self(self.0 & !less.0)
    }

    /// In how many of the two tables this stands, for the counts.
    fn tables(self) -> (usize, usize) {
        (
            usize::from(self.has(Self::DATA_TABLE)),
            usize::from(self.has(Self::CHILD_TABLE)),
        )
    }
}

/// What watches may take of the memory, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WatchLimits {
    pub all: usize,
    pub per_connection: usize,
}

impl Default for WatchLimits {
    /// No limits.
    fn default() -> Self {
        Self {
            all: usize::MAX,
            per_connection: usize::MAX,
        }
    }
}

/// A watch was not set: its connection, or all together, have as much as they may.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no more watches may be set")]
pub struct TooManyWatches;

/// What a connection's watches at one path take besides the path, in bytes: their places in the
/// tables. With a million paths they were 81; tables that have just grown have more.
const WATCH_BYTES: usize = 128;

/// Paths from which on the tables are worth shrinking.
const SHRUNK_FROM: usize = 10_000;

/// The paths a connection watches, by number, and what they take.
#[derive(Debug, Default)]
struct Listed {
    paths: BTreeSet<u32>,
    bytes: usize,
}

/// The connections that watch one path. Most paths have one.
#[derive(Debug)]
enum Watchers {
    One(ConnectionId, Flags),
    Many(BTreeMap<ConnectionId, Flags>),
}

impl Watchers {
    fn get(&self, connection: ConnectionId) -> Flags {
        match self {
            Self::One(one, flags) if *one == connection => *flags,
            Self::One(..) => Flags(0),
            Self::Many(many) => many.get(&connection).copied().unwrap_or(Flags(0)),
        }
    }

    /// Sets what a connection waits for; no flags take it off the list.
    fn put(&mut self, connection: ConnectionId, flags: Flags) {
        match self {
            Self::One(one, old) if *one == connection => *old = flags,
            Self::One(one, old) => {
                *self = Self::Many(BTreeMap::from([(*one, *old), (connection, flags)]));
            }
            Self::Many(many) if flags == Flags(0) => drop(many.remove(&connection)),
            Self::Many(many) => drop(many.insert(connection, flags)),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::One(_, flags) => *flags == Flags(0),
            Self::Many(many) => many.is_empty(),
        }
    }

    /// In order of connections.
    fn iter(&self) -> impl Iterator<Item = (ConnectionId, Flags)> {
        let (one, many) = match self {
            Self::One(one, flags) => (Some((*one, *flags)), None),
            Self::Many(many) => (None, Some(many)),
        };
        let many = many
            .into_iter()
            .flatten()
            .map(|(connection, flags)| (*connection, *flags));
        one.into_iter().chain(many)
    }
}

/// A path that someone watches.
#[derive(Debug)]
struct Watched {
    path: Box<str>,
    watchers: Watchers,
}

/// All watches of this server.
#[derive(Debug, Default)]
pub struct Watches {
    /// Each watched path once, by number.
    watched: Vec<Option<Watched>>,
    /// Numbers that are not in use.
    free: Vec<u32>,
    /// A number that was in use when it kept the tables from being shrunk.
    pin: usize,
    /// From the hash of a path to its number. Never iterated.
    index: Index<u32>,
    hasher: foldhash::fast::RandomState,
    connections: BTreeMap<ConnectionId, Listed>,
    limits: WatchLimits,
    /// What all take. A path counts for each connection that watches it.
    bytes: usize,
    /// Pairs of path and connection in the data table and in the child table.
    data: usize,
    child: usize,
    /// Pairs with a recursive watch: while there are none, ancestors need not be looked at.
    recursive: usize,
    /// Whom the present trigger reaches.
    reached: Vec<ConnectionId>,
}

impl Watches {
    pub fn new(limits: WatchLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Sets a watch; setting it again changes nothing.
    ///
    /// # Errors
    ///
    /// If a limit would be exceeded. Nothing has changed then.
    pub fn add(
        &mut self,
        connection: ConnectionId,
        path: &Text,
        mode: WatchMode,
    ) -> Result<(), TooManyWatches> {
        let known = self.find(path);
        let flags = known.map_or(Flags(0), |number| self.flags(number, connection));
        if flags == Flags(0) && !self.has_room(connection, path) {
            return Err(TooManyWatches);
        }
        let number = known.unwrap_or_else(|| self.insert(path, connection));
        self.put(number, connection, flags.with(Flags::of(mode)));
        Ok(())
    }

    fn has_room(&self, connection: ConnectionId, path: &str) -> bool {
        let own = self
            .connections
            .get(&connection)
            .map_or(0, |listed| listed.bytes);
        let more = watch_bytes(path);
        own.saturating_add(more) <= self.limits.per_connection
            && self.bytes.saturating_add(more) <= self.limits.all
    }

    /// About how much memory all watches take, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn limits(&self) -> WatchLimits {
        self.limits
    }

    /// Removes the watches of a type of §6.8 (1 child, 2 data, 3 any, 4 persistent, 5 recursive).
    /// False if there was none.
    pub fn remove(&mut self, connection: ConnectionId, path: &Text, kind: i32) -> bool {
        let Some(number) = self.find(path) else {
            return false;
        };
        let flags = self.flags(number, connection);
        self.put(number, connection, flags.without(Flags::of_kind(kind)));
        flags.has(Flags::of_kind(kind))
    }

    /// Whether there is a watch of this type of §6.8.
    pub fn contains(&self, connection: ConnectionId, path: &Text, kind: i32) -> bool {
        let number = self.find(path);
        number.is_some_and(|number| self.flags(number, connection).has(Flags::of_kind(kind)))
    }

    /// Removes watches of a connection that is gone, at about `paths` paths. True: there are more.
    pub fn forget(&mut self, connection: ConnectionId, paths: usize) -> bool {
        let Some(listed) = self.connections.get(&connection) else {
            return false;
        };
        let numbers: Vec<u32> = listed.paths.iter().take(paths).copied().collect();
        for number in numbers {
            self.put(number, connection, Flags(0));
        }
        let is_more = self.connections.contains_key(&connection);
        if !is_more {
            self.shrink();
        }
        is_more
    }

    /// Tells of a change: calls `deliver` for each event that a connection gets, trigger by trigger
    /// (§3.5) and within a trigger in order of connections, and takes off the watches that fire
    /// once, whether or not the event passes the filter.
    pub fn fire(
        &mut self,
        change: &Change<'_>,
        deliver: &mut impl FnMut(ConnectionId, EventType, &Text, FilterOn),
    ) {
        if self.connections.is_empty() {
            return;
        }
        let event = match change.kind {
            ChangeKind::Created => EventType::NodeCreated,
            ChangeKind::Deleted => EventType::NodeDeleted,
            ChangeKind::Data => EventType::NodeDataChanged,
        };
        let mut reached = std::mem::take(&mut self.reached);
        self.trigger(change.path, Flags::DATA_TABLE, &mut reached);
        if self.recursive > 0 {
            self.trigger_ancestors(change.path, &mut reached);
        }
        if change.kind == ChangeKind::Deleted {
            // Who waits in both tables gets one event, not two.
            self.trigger(change.path, Flags::CHILD_TABLE, &mut reached);
        }
        send(&mut reached, event, change.path, FilterOn::Own, deliver);
        if change.kind != ChangeKind::Data {
            let parent = path::parent(change.path);
            self.trigger(parent, Flags::CHILD_TABLE, &mut reached);
            send(
                &mut reached,
                EventType::NodeChildrenChanged,
                parent,
                FilterOn::Parent,
                deliver,
            );
        }
        self.reached = reached;
    }

    /// Watches of the data table, as the four-letter words count them (§11.1).
    pub fn total(&self) -> usize {
        self.data
    }

    /// Watches of both tables.
    pub fn len(&self) -> usize {
        self.data + self.child
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Paths with a watch of the data table.
    pub fn paths(&self) -> usize {
        let is_counted = |watched: &&Watched| {
            watched
                .watchers
                .iter()
                .any(|(_, flags)| flags.has(Flags::DATA_TABLE))
        };
        self.watched.iter().flatten().filter(is_counted).count()
    }

    /// Connections with a watch of the data table.
    pub fn connections(&self) -> usize {
        let is_counted = |connection: ConnectionId, listed: &Listed| {
            listed
                .paths
                .iter()
                .any(|path| self.flags(*path, connection).has(Flags::DATA_TABLE))
        };
        self.connections
            .iter()
            .filter(|(id, listed)| is_counted(**id, listed))
            .count()
    }

    /// Watches of the data table: for each connection the paths it watches, all sorted.
    pub fn by_connection(&self) -> BTreeMap<ConnectionId, BTreeSet<&str>> {
        let mut listing = BTreeMap::<_, BTreeSet<_>>::new();
        for (path, connection) in self.in_data_table() {
            listing.entry(connection).or_default().insert(path);
        }
        listing
    }

    /// Watches of the data table: for each path the connections that watch it, all sorted.
    pub fn by_path(&self) -> BTreeMap<&str, BTreeSet<ConnectionId>> {
        let mut listing = BTreeMap::<_, BTreeSet<_>>::new();
        for (path, connection) in self.in_data_table() {
            listing.entry(path).or_default().insert(connection);
        }
        listing
    }

    fn in_data_table(&self) -> impl Iterator<Item = (&str, ConnectionId)> {
        self.watched.iter().flatten().flat_map(|watched| {
            let in_table = watched
                .watchers
                .iter()
                .filter(|(_, flags)| flags.has(Flags::DATA_TABLE));
            in_table.map(|(connection, _)| (watched.path.as_ref(), connection))
        })
    }

    /// Adds to `reached` whoever has any of `flags` at this path, and takes off those of the flags
    /// that fire once.
    fn trigger(&mut self, path: &str, flags: Flags, reached: &mut Vec<ConnectionId>) {
        let Some(number) = self.find(path) else {
            return;
        };
        let Some(watched) = &self.watched[number as usize] else {
            return;
        };
        let first = reached.len();
        let once = if flags.has(Flags::DATA) {
            Flags::DATA
        } else {
            Flags::CHILD
        };
        let mut consumed = false;
        for (connection, has) in watched.watchers.iter().filter(|(_, has)| has.has(flags)) {
            reached.push(connection);
            consumed |= has.has(once);
        }
        if consumed {
            for connection in &reached[first..] {
                let flags = self.flags(number, *connection);
                self.put(number, *connection, flags.without(once));
            }
        }
    }

    fn trigger_ancestors(&mut self, path: &str, reached: &mut Vec<ConnectionId>) {
        let mut at = path;
        while at != "/" {
            at = path::parent(at);
            let watched = self
                .find(at)
                .and_then(|number| self.watched[number as usize].as_ref());
            let watchers = watched
                .into_iter()
                .flat_map(|watched| watched.watchers.iter());
            let recursive = watchers.filter(|(_, flags)| flags.has(Flags::RECURSIVE));
            reached.extend(recursive.map(|(connection, _)| connection));
        }
    }

    fn find(&self, path: &str) -> Option<u32> {
        let is_it = |number| path_of(&self.watched, number) == path;
        self.index.find(self.hasher.hash_one(path), is_it)
    }

    /// Gives a path a number. The connection is listed without a watch yet.
    fn insert(&mut self, path: &str, connection: ConnectionId) -> u32 {
        let watchers = Watchers::One(connection, Flags(0));
        let watched = Some(Watched {
            path: path.into(),
            watchers,
        });
        let number = match self.free.pop() {
            Some(number) => {
                self.watched[number as usize] = watched;
                number
            }
            None => {
                self.watched.push(watched);
                u32::try_from(self.watched.len() - 1).expect("fewer than 2^32 watched paths")
            }
        };
        let hash_of = |number| self.hasher.hash_one(path_of(&self.watched, number));
        self.index
            .insert(self.hasher.hash_one(path), number, hash_of);
        number
    }

    fn flags(&self, number: u32, connection: ConnectionId) -> Flags {
        let watched = self.watched[number as usize].as_ref();
        watched.map_or(Flags(0), |watched| watched.watchers.get(connection))
    }

    /// Sets what a connection waits for at a path, and keeps counts and lists in step.
    fn put(&mut self, number: u32, connection: ConnectionId, flags: Flags) {
        let Some(watched) = &mut self.watched[number as usize] else {
            return;
        };
        let before = watched.watchers.get(connection);
        if before == flags {
            return;
        }
        watched.watchers.put(connection, flags);
        let (was, is) = (before.tables(), flags.tables());
        self.data = self.data + is.0 - was.0;
        self.child = self.child + is.1 - was.1;
        self.recursive = self.recursive + usize::from(flags.has(Flags::RECURSIVE))
            - usize::from(before.has(Flags::RECURSIVE));
        if before == Flags(0) {
            let bytes = watch_bytes(&watched.path);
            let listed = self.connections.entry(connection).or_default();
            listed.paths.insert(number);
            listed.bytes += bytes;
            self.bytes += bytes;
        }
        if flags == Flags(0) {
            self.unlist(number, connection);
        }
    }

    /// Gives back what the tables took when there was far more in them. Paths that are still
    /// watched keep their numbers, so one of them may stand in the way. It costs what is left, and
    /// is done when at least as much goes: else every client that leaves would pay for all.
    fn shrink(&mut self) {
        let (length, most) = (self.watched.len(), self.watched.len() / 2);
        if length < SHRUNK_FROM || self.index.len() > length / 4 {
            return;
        }
        let is_pinned = self.watched.get(self.pin).is_some_and(Option::is_some);
        if is_pinned && self.pin >= most {
            return;
        }
        let used = self.watched.iter().rposition(Option::is_some);
        let end = used.map_or(0, |last| last + 1);
        if end > most {
            self.pin = end - 1;
            return;
        }
        self.watched.truncate(end);
        self.free.retain(|number| (*number as usize) < end);
        self.watched.shrink_to_fit();
        self.free.shrink_to_fit();
        let mut index = Index::with_capacity(self.index.len());
        let hash_of = |number| self.hasher.hash_one(path_of(&self.watched, number));
        for (number, _) in (0..)
            .zip(&self.watched)
            .filter(|(_, watched)| watched.is_some())
        {
            index.insert(hash_of(number), number, hash_of);
        }
        self.index = index;
    }

    /// A connection waits for nothing at a path any more, and perhaps nobody does.
    fn unlist(&mut self, number: u32, connection: ConnectionId) {
        if let Some(listed) = self.connections.get_mut(&connection) {
            let bytes = watch_bytes(path_of(&self.watched, number));
            listed.paths.remove(&number);
            listed.bytes -= bytes;
            self.bytes -= bytes;
            if listed.paths.is_empty() {
                self.connections.remove(&connection);
            }
        }
        let slot = &mut self.watched[number as usize];
        if let Some(watched) = slot.take_if(|watched| watched.watchers.is_empty()) {
            let hash = self.hasher.hash_one(watched.path.as_ref());
            self.index.remove(hash, number);
            self.free.push(number);
        }
    }
}

fn watch_bytes(path: &str) -> usize {
    WATCH_BYTES + path.len()
}

fn path_of(watched: &[Option<Watched>], number: u32) -> &str {
    watched[number as usize]
        .as_ref()
        .map_or("", |watched| &watched.path)
}

/// Delivers one event to each connection that a trigger reached, and empties the list.
fn send(
    reached: &mut Vec<ConnectionId>,
    event: EventType,
    path: &str,
    filter: FilterOn,
    deliver: &mut impl FnMut(ConnectionId, EventType, &Text, FilterOn),
) {
    if reached.is_empty() {
        return;
    }
    reached.sort_unstable();
    reached.dedup();
    let path = Text::from(path);
    for connection in reached.drain(..) {
        deliver(connection, event, &path, filter);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Zxid;

    const DATA: WatchMode = WatchMode::Data;
    const CHILD: WatchMode = WatchMode::Child;
    const PERSISTENT: WatchMode = WatchMode::Persistent;
    const RECURSIVE: WatchMode = WatchMode::PersistentRecursive;

    fn watches(set: &[(u64, &str, WatchMode)]) -> Watches {
        let mut watches = Watches::default();
        for (connection, path, mode) in set {
            let connection = ConnectionId(*connection);
            watches.add(connection, &Text::from(*path), *mode).unwrap();
        }
        watches
    }

    /// The events of a change as `connection type path`.
    fn fire(watches: &mut Watches, kind: ChangeKind, path: &str) -> Vec<String> {
        let change = Change {
            kind,
            path,
            zxid: Zxid(1),
            acl: &[],
            parent_acl: &[],
        };
        let mut events = Vec::new();
        watches.fire(&change, &mut |connection, event, path, filter| {
            let expected = match event {
                EventType::NodeChildrenChanged => FilterOn::Parent,
                _ => FilterOn::Own,
            };
            assert_eq!(filter, expected);
            events.push(format!("{} {} {path}", connection.0, event as i32));
        });
        events
    }

    fn created(watches: &mut Watches, path: &str) -> Vec<String> {
        fire(watches, ChangeKind::Created, path)
    }

    fn deleted(watches: &mut Watches, path: &str) -> Vec<String> {
        fire(watches, ChangeKind::Deleted, path)
    }

    fn changed(watches: &mut Watches, path: &str) -> Vec<String> {
        fire(watches, ChangeKind::Data, path)
    }

    const NOBODY: Vec<String> = Vec::new();

    #[test]
    fn limits_hold_for_a_connection_and_for_all_and_what_goes_gives_its_room_back() {
        let each = WATCH_BYTES + 2;
        let mut watches = Watches::new(WatchLimits {
            all: 3 * each,
            per_connection: 2 * each,
        });
        let (one, two) = (ConnectionId(1), ConnectionId(2));
        let mut add = |connection, path: &str| watches.add(connection, &path.into(), DATA).is_ok();
        assert!(add(one, "/a") && add(one, "/b"));
        assert!(!add(one, "/c"), "the connection's own limit");
        assert!(add(one, "/a"), "it is there already");
        assert!(add(two, "/a"));
        assert!(!add(two, "/b"), "the limit of all");
        assert_eq!(watches.bytes(), 3 * each);
        assert!(!watches.forget(one, 100));
        assert_eq!(watches.bytes(), each);
        assert!(watches.add(two, &"/b".into(), CHILD).is_ok());
        assert!(watches.remove(two, &"/b".into(), 3));
        assert_eq!(watches.bytes(), each);
    }

    #[test]
    fn tables_shrink_when_a_client_with_many_watches_is_gone() {
        let (greedy, modest) = (ConnectionId(1), ConnectionId(2));
        let mut watches = Watches::default();
        let path = |number: usize| Text::from(format!("/{number}"));
        watches.add(modest, &path(0), DATA).unwrap();
        for number in 0..2 * SHRUNK_FROM {
            watches.add(greedy, &path(number), DATA).unwrap();
        }
        watches.add(modest, &path(7), DATA).unwrap();
        while watches.forget(greedy, 1_000) {}
        assert!(watches.watched.len() < 10 && watches.free.len() < 10);
        assert!(watches.contains(modest, &path(0), 2) && watches.contains(modest, &path(7), 2));
        for number in 0..100 {
            watches.add(greedy, &path(number), DATA).unwrap();
        }
        assert_eq!(watches.paths(), 100);
    }

    /// Whoever leaves then does not pay for it.
    #[test]
    fn tables_stay_while_a_path_with_a_high_number_is_watched() {
        let (greedy, modest) = (ConnectionId(1), ConnectionId(2));
        let mut watches = Watches::default();
        let path = |number: usize| Text::from(format!("/{number}"));
        let all = 2 * SHRUNK_FROM;
        for number in 0..all {
            watches.add(greedy, &path(number), DATA).unwrap();
        }
        let last = path(all - 1);
        watches.add(modest, &last, DATA).unwrap();
        while watches.forget(greedy, 1_000) {}
        assert_eq!((watches.watched.len(), watches.pin), (all, all - 1));
        assert!(watches.contains(modest, &last, 2));
        while watches.forget(modest, 1_000) {}
        assert!(watches.watched.is_empty() && watches.free.is_empty());
    }

    #[test]
    fn s47_a_creation_is_told_before_the_change_of_the_children() {
        let mut watches = watches(&[(1, "/w", CHILD), (1, "/w/x", DATA)]);
        assert_eq!(created(&mut watches, "/w/x"), ["1 1 /w/x", "1 4 /w"]);
        assert_eq!(
            deleted(&mut watches, "/w/x"),
            NOBODY,
            "both were for one event"
        );
        assert!(watches.is_empty());
    }

    #[test]
    fn s49_a_deletion_is_one_event_for_who_waits_in_both_tables() {
        let set = [
            (1, "/w", DATA),
            (1, "/w", CHILD),
            (2, "/w", CHILD),
            (3, "/w", PERSISTENT),
        ];
        let mut watches = watches(&set);
        assert_eq!(deleted(&mut watches, "/w"), ["1 2 /w", "2 2 /w", "3 2 /w"]);
        assert_eq!(
            watches.len(),
            2,
            "the persistent watch stands in both tables"
        );
    }

    #[test]
    fn s50_a_child_watch_alone_tells_of_the_deletion_of_the_znode() {
        let mut watches = watches(&[(1, "/w", CHILD)]);
        assert_eq!(changed(&mut watches, "/w"), NOBODY);
        assert_eq!(created(&mut watches, "/w"), NOBODY);
        assert_eq!(deleted(&mut watches, "/w"), ["1 2 /w"]);
    }

    #[test]
    fn s51_s52_persistent_watches() {
        let mut watches = watches(&[(1, "/p", PERSISTENT), (2, "/p", RECURSIVE)]);
        for _ in 0..2 {
            assert_eq!(created(&mut watches, "/p"), ["1 1 /p", "2 1 /p"]);
            assert_eq!(created(&mut watches, "/p/c"), ["2 1 /p/c", "1 4 /p"]);
            assert_eq!(created(&mut watches, "/p/c/d"), ["2 1 /p/c/d"]);
            assert_eq!(changed(&mut watches, "/p/c/d"), ["2 3 /p/c/d"]);
            assert_eq!(deleted(&mut watches, "/p/c/d"), ["2 2 /p/c/d"]);
            assert_eq!(deleted(&mut watches, "/p/c"), ["2 2 /p/c", "1 4 /p"]);
            assert_eq!(changed(&mut watches, "/p"), ["1 3 /p", "2 3 /p"]);
            assert_eq!(deleted(&mut watches, "/p"), ["1 2 /p", "2 2 /p"]);
        }
        assert_eq!(
            created(&mut watches, "/pp"),
            NOBODY,
            "a sibling is not below"
        );
    }

    #[test]
    fn s55_several_watches_of_one_connection_are_one_event() {
        let set = [
            (1, "/a", DATA),
            (1, "/a", RECURSIVE),
            (1, "/", RECURSIVE),
            (1, "/a", DATA),
        ];
        let mut watches = watches(&set);
        assert_eq!(changed(&mut watches, "/a"), ["1 3 /a"]);
        assert_eq!(changed(&mut watches, "/a"), ["1 3 /a"]);
        assert!(
            !watches.contains(ConnectionId(1), &"/a".into(), 2),
            "the standard one is gone"
        );
    }

    #[test]
    fn a_watch_on_the_root_sees_its_children() {
        let mut watches = watches(&[(1, "/", CHILD), (2, "/", RECURSIVE), (3, "/", DATA)]);
        assert_eq!(created(&mut watches, "/a"), ["2 1 /a", "1 4 /"]);
        assert_eq!(changed(&mut watches, "/"), ["2 3 /", "3 3 /"]);
    }

    #[test]
    fn s54_removal_speaks_of_one_mode() {
        let set = [
            (1, "/a", DATA),
            (1, "/a", CHILD),
            (1, "/a", PERSISTENT),
            (1, "/a", RECURSIVE),
        ];
        let mut watches = watches(&set);
        let (one, path) = (ConnectionId(1), Text::from("/a"));
        for kind in [1, 2, 4, 5] {
            assert!(watches.contains(one, &path, kind));
            assert!(watches.contains(one, &path, 3));
            assert!(watches.remove(one, &path, kind));
            assert!(!watches.contains(one, &path, kind));
            assert!(!watches.remove(one, &path, kind));
        }
        assert!(!watches.remove(one, &path, 3));
        watches.add(one, &path, PERSISTENT).unwrap();
        watches.add(one, &path, CHILD).unwrap();
        assert!(!watches.remove(ConnectionId(2), &path, 3));
        assert!(!watches.remove(one, &path, 0));
        assert!(watches.remove(one, &path, 3));
        assert!(watches.is_empty());
    }

    #[test]
    fn a_lost_connection_takes_its_watches_along() {
        let mut watches = watches(&[(1, "/a", RECURSIVE), (1, "/b", CHILD), (2, "/a", DATA)]);
        watches.forget(ConnectionId(1), 100);
        watches.forget(ConnectionId(3), 100);
        assert_eq!(watches.len(), 1);
        assert_eq!(deleted(&mut watches, "/a"), ["2 2 /a"]);
    }

    #[test]
    fn s92_the_counts_are_of_the_data_table() {
        let set = [
            (2, "/b", DATA),
            (1, "/b", RECURSIVE),
            (1, "/a", PERSISTENT),
            (3, "/c", CHILD),
        ];
        let watches = watches(&set);
        assert_eq!((watches.total(), watches.len()), (3, 5));
        assert_eq!((watches.paths(), watches.connections()), (2, 2));
        let ids = |list: &[u64]| {
            list.iter()
                .copied()
                .map(ConnectionId)
                .collect::<BTreeSet<_>>()
        };
        let by_path = BTreeMap::from([("/a", ids(&[1])), ("/b", ids(&[1, 2]))]);
        assert_eq!(watches.by_path(), by_path);
        let by_connection = BTreeMap::from([
            (ConnectionId(1), BTreeSet::from(["/a", "/b"])),
            (ConnectionId(2), BTreeSet::from(["/b"])),
        ]);
        assert_eq!(watches.by_connection(), by_connection);
    }

    /// The rules of §6.2 and §3.5 word by word, over a plain list.
    #[derive(Default)]
    struct Model(Vec<(u64, String, WatchMode)>);

    impl Model {
        fn add(&mut self, connection: u64, path: &str, mode: WatchMode) {
            let watch = (connection, path.to_owned(), mode);
            if !self.0.contains(&watch) {
                self.0.push(watch);
            }
        }

        fn trigger(&mut self, path: &str, modes: &[WatchMode], once: WatchMode) -> BTreeSet<u64> {
            let below = |at: &str| at == "/" || path.starts_with(&format!("{at}/"));
            let reaches = |at: &str, mode: WatchMode| {
                modes.contains(&mode) && (at == path || mode == RECURSIVE && below(at))
            };
            let hit = self.0.iter().filter(|(_, at, mode)| reaches(at, *mode));
            let reached = hit.map(|(connection, ..)| *connection).collect();
            self.0
                .retain(|(_, at, mode)| !(at == path && *mode == once));
            reached
        }

        fn fire(&mut self, kind: ChangeKind, path: &str) -> Vec<String> {
            let event = match kind {
                ChangeKind::Created => 1,
                ChangeKind::Deleted => 2,
                ChangeKind::Data => 3,
            };
            let mut own = self.trigger(path, &[DATA, PERSISTENT, RECURSIVE], DATA);
            if kind == ChangeKind::Deleted {
                own.extend(self.trigger(path, &[CHILD, PERSISTENT], CHILD));
            }
            let mut events: Vec<_> = own
                .iter()
                .map(|id| format!("{id} {event} {path}"))
                .collect();
            if kind != ChangeKind::Data {
                let parent = path::parent(path);
                let told = self.trigger(parent, &[CHILD, PERSISTENT], CHILD);
                events.extend(told.iter().map(|id| format!("{id} 4 {parent}")));
            }
            events
        }
    }

    proptest! {
        #[test]
        fn the_table_does_what_the_rules_say(
            steps in prop::collection::vec((0..9u8, 0..4u64, 0..7usize), 0..120)
        ) {
            let paths = ["/", "/a", "/a/b", "/a/b/c", "/a/d", "/ab", "/e"];
            let mut watches = Watches::default();
            let mut model = Model::default();
            for (step, connection, path) in steps {
                let path = paths[path];
                match step {
                    0..4 => {
                        let mode = [DATA, CHILD, PERSISTENT, RECURSIVE][step as usize];
                        watches.add(ConnectionId(connection), &path.into(), mode).unwrap();
                        model.add(connection, path, mode);
                    }
                    4 => {
                        watches.forget(ConnectionId(connection), 100);
                        model.0.retain(|(of, ..)| *of != connection);
                    }
                    5 => {
                        let had = watches.remove(ConnectionId(connection), &path.into(), 3);
                        let before = model.0.len();
                        model.0.retain(|(of, at, _)| *of != connection || at != path);
                        prop_assert_eq!(had, model.0.len() < before);
                    }
                    _ => {
                        use ChangeKind::{Created, Data, Deleted};
                        let kind = [Created, Deleted, Data][step as usize - 6];
                        prop_assert_eq!(fire(&mut watches, kind, path), model.fire(kind, path));
                    }
                }
                prop_assert_eq!(watches.is_empty(), model.0.is_empty());
                let recursive = model.0.iter().filter(|(.., mode)| *mode == RECURSIVE).count();
                prop_assert_eq!(watches.recursive, recursive);
            }
            for connection in 0..4 {
                watches.forget(ConnectionId(connection), 100);
            }
            prop_assert_eq!((watches.total(), watches.len(), watches.index.len()), (0, 0, 0));
        }
    }
}

//! From a key to the number of what has it, in a table that grows a little at a time: from a parent
//! and a name to a znode, from a path to its watches.
//!
//! One large table would be copied whole whenever it is full, which takes tens of milliseconds
//! with millions of entries, while no client is served. So it is made of many small parts, and
//! with every few hundred insertions one of them is split in two (linear hashing: W. Litwin, 1980).
//! The parts hold numbers alone: what a number hashes to is read off what it numbers when a part
//! is split.

use hashbrown::HashTable;

/// Numbers per part, on average. A part holds at most about twice as many before it is split, which
/// just fits the capacity of 1,024 buckets.
const PART: usize = 400;

/// See the module. Never iterated, so its order and the seed of the hash show nowhere.
#[derive(Debug)]
pub struct Index<T> {
    parts: Vec<HashTable<T>>,
    count: usize,
}

impl<T: Copy + Eq> Default for Index<T> {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl<T: Copy + Eq> Index<T> {
    /// With room for this many numbers.
    pub fn with_capacity(numbers: usize) -> Self {
        let parts = (numbers / PART).max(1);
        let whole = numbers / parts.next_power_of_two().max(1);
        // Those that are not split yet hold twice as many, and chance adds some.
        let room = |part: usize| {
            let is_split = part < split_parts(parts) || part >= parts - split_parts(parts);
            let expected = if is_split { whole } else { 2 * whole };
            if numbers == 0 {
                0
            } else {
                expected + expected / 16
            }
        };
        Self {
            parts: (0..parts)
                .map(|part| HashTable::with_capacity(room(part)))
                .collect(),
            count: 0,
        }
    }

    /// Numbers in it.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn find(&self, hash: u64, is_it: impl FnMut(T) -> bool) -> Option<T> {
        let mut is_it = is_it;
        let part = &self.parts[self.part_of(hash)];
        part.find(within(hash), |id| is_it(*id)).copied()
    }

    /// A number that is at the place of this hash, mostly the right one: what it numbers is not
    /// looked at.
    pub fn likely(&self, hash: u64) -> Option<T> {
        self.find(hash, |_| true)
    }

    /// Adds a number that is not in it. `hash_of`: what the key of a number hashes to.
    pub fn insert(&mut self, hash: u64, id: T, hash_of: impl Fn(T) -> u64) {
        if self.count == self.parts.len() * PART {
            self.split(&hash_of);
        }
        self.count += 1;
        self.put(hash, id, &hash_of);
    }

    pub fn remove(&mut self, hash: u64, id: T) {
        let part = self.part_of(hash);
        if let Ok(place) = self.parts[part].find_entry(within(hash), |found| *found == id) {
            place.remove();
            self.count -= 1;
        }
    }

    fn put(&mut self, hash: u64, id: T, hash_of: &impl Fn(T) -> u64) {
        let part = self.part_of(hash);
        self.parts[part].insert_unique(within(hash), id, |id| within(hash_of(*id)));
    }

    /// Adds one part and moves half of another into it.
    fn split(&mut self, hash_of: &impl Fn(T) -> u64) {
        let old = split_parts(self.parts.len());
        let moving = std::mem::take(&mut self.parts[old]);
        self.parts.push(HashTable::new());
        for half in [old, self.parts.len() - 1] {
            self.parts[half] = HashTable::with_capacity(2 * PART);
        }
        for id in moving {
            self.put(hash_of(id), id, hash_of);
        }
    }

    fn part_of(&self, hash: u64) -> usize {
        let parts = self.parts.len();
        let mask = parts.next_power_of_two() - 1;
        let part = hash as usize & mask;
        // Beyond the end: the part it would be split off from.
        if part < parts {
            part
        } else {
            part & (mask >> 1)
        }
    }
}

/// How many parts were split since their number was a power of two: also the next to be split.
fn split_parts(parts: usize) -> usize {
    parts - (1 << parts.ilog2())
}

/// The low bits choose the part, so a part goes by the others: its buckets by the lowest that it is
/// given, its tags by the highest.
fn within(hash: u64) -> u64 {
    hash.rotate_right(32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::znode::NodeId;

    /// Well mixed, as the hash of a name is.
    fn hash(id: NodeId) -> u64 {
        let mixed = (u64::from(id.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29))
            .wrapping_mul(0xbf58_476d_1ce4_e5b9)
            .swap_bytes()
    }

    fn find(index: &Index<NodeId>, id: NodeId) -> Option<NodeId> {
        index.find(hash(id), |found| found == id)
    }

    #[test]
    fn everything_is_found_while_it_grows_and_nothing_else() {
        for mut index in [Index::default(), Index::with_capacity(30_000)] {
            for number in 0..20_000 {
                index.insert(hash(NodeId(number)), NodeId(number), hash);
                if number % 1_000 == 0 {
                    assert!((0..=number).all(|n| find(&index, NodeId(n)) == Some(NodeId(n))));
                }
            }
            assert_eq!(find(&index, NodeId(20_000)), None);
            for number in (0..20_000).step_by(2) {
                index.remove(hash(NodeId(number)), NodeId(number));
            }
            index.remove(hash(NodeId(0)), NodeId(0));
            assert_eq!(index.len(), 10_000);
            for number in 0..20_000 {
                let there = (number % 2 == 1).then_some(NodeId(number));
                assert_eq!(find(&index, NodeId(number)), there);
            }
        }
    }

    #[test]
    fn no_insertion_touches_more_than_a_part() {
        let mut index = Index::default();
        for number in 0..100_000 {
            let asked = std::cell::Cell::new(0);
            index.insert(hash(NodeId(number)), NodeId(number), |id| {
                asked.set(asked.get() + 1);
                hash(id)
            });
            assert!(asked.get() < 8 * PART, "{} at {number}", asked.get());
        }
    }

    #[test]
    fn parts_are_about_even() {
        let mut index = Index::default();
        for number in 0..300_000 {
            index.insert(hash(NodeId(number)), NodeId(number), hash);
        }
        let largest = index.parts.iter().map(HashTable::len).max().unwrap();
        assert!(largest < 896, "{largest} are more than 1,024 buckets hold");
    }
}

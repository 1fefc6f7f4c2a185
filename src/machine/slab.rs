//! A table of slots that can be frozen in an instant.
//!
//! Slots live in chunks behind `Arc`s. Cloning the slab copies the pointers to the chunks; the
//! first write to a chunk that a clone still holds copies that chunk. So an image of millions of
//! znodes costs microseconds, and writes go on while it is read.
//!
//! Slot numbers are handed out deterministically: the slot freed last is taken first. The free list
//! runs through the free slots themselves, so it is frozen with them.

use std::sync::Arc;

/// Slots per chunk. Small enough that copying one is not felt, large enough that the pointers of
/// millions of slots are copied in microseconds.
const CHUNK: usize = 256;
/// The end of the free list; no slot has this number.
pub const NONE: u32 = u32::MAX;

/// One place of a [`Slab`].
#[derive(Clone, Debug)]
pub enum Slot<T> {
    /// Not in use; names the slot that was freed before it.
    Free(u32),
    Used(T),
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Slab<T> {
    chunks: Vec<Arc<[Slot<T>]>>,
    /// Slots ever taken; those beyond, in the last chunk, have no meaning.
    slots: u32,
    used: u32,
    /// The slot freed last.
    free: u32,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            slots: 0,
            used: 0,
            free: NONE,
        }
    }
}

impl<T> Slab<T> {
    /// Slots in use.
    pub fn used(&self) -> usize {
        self.used as usize
    }

    /// Slots ever taken.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The slot that the next insertion takes, [`NONE`] if it takes a new one.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// Slots ever taken and the slot freed last, as one number for the digest.
    pub fn shape(&self) -> u64 {
        (u64::from(self.slots) << 32) | u64::from(self.free)
    }

    /// The slot of this number, if there is one.
    pub fn slot(&self, number: u32) -> Option<&Slot<T>> {
        (number < self.slots)
            .then(|| &self.chunks[number as usize / CHUNK][number as usize % CHUNK])
    }

    pub fn get(&self, number: u32) -> Option<&T> {
        match self.slot(number)? {
            Slot::Used(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    /// The slots in use, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..self.slots).filter_map(|number| Some((number, self.get(number)?)))
    }
}

impl<T: Clone> Slab<T> {
    /// For writing: copies the chunk if a clone of the slab holds it.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        match self.slot_mut(number)? {
            Slot::Used(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    /// Takes the slot freed last, or a new one.
    pub fn insert(&mut self, value: T) -> u32 {
        let number = self.free;
        if number == NONE {
            return self.push(Slot::Used(value));
        }
        let slot = self
            .slot_mut(number)
            .expect("the free list names slots that exist");
        let Slot::Free(next) = std::mem::replace(slot, Slot::Used(value)) else {
            unreachable!("the free list names free slots");
        };
        self.free = next;
        self.used += 1;
        number
    }

    /// Empties a slot that is in use.
    pub fn remove(&mut self, number: u32) -> Option<T> {
        self.get(number)?;
        let free = self.free;
        let Slot::Used(value) = std::mem::replace(self.slot_mut(number)?, Slot::Free(free)) else {
            return None;
        };
        self.free = number;
        self.used -= 1;
        Some(value)
    }

    /// Appends a slot as an image has it. The free list is joined again by [`Self::set_free`].
    pub fn push(&mut self, slot: Slot<T>) -> u32 {
        let number = self.slots;
        assert!(number < NONE - 1, "fewer than 2^32 slots");
        if (number as usize).is_multiple_of(CHUNK) {
            self.chunks
                .push((0..CHUNK).map(|_| Slot::Free(NONE)).collect());
        }
        self.slots += 1;
        self.used += u32::from(matches!(slot, Slot::Used(_)));
        *self.slot_mut(number).expect("the slot was just made") = slot;
        number
    }

    /// Joins the free list of an image. False if it is not a list of exactly the free slots.
    #[must_use]
    pub fn set_free(&mut self, first: u32) -> bool {
        let mut next = first;
        for _ in 0..self.slots - self.used {
            match self.slot(next) {
                Some(Slot::Free(after)) => next = *after,
                _ => return false,
            }
        }
        self.free = first;
        // A list with a loop passes through a slot twice and then cannot end here.
        next == NONE
    }

    fn slot_mut(&mut self, number: u32) -> Option<&mut Slot<T>> {
        if number >= self.slots {
            return None;
        }
        let chunk = Arc::make_mut(&mut self.chunks[number as usize / CHUNK]);
        Some(&mut chunk[number as usize % CHUNK])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_slot_freed_last_is_taken_first() {
        let mut slab = Slab::default();
        let numbers: Vec<u32> = (0..4).map(|value| slab.insert(value)).collect();
        assert_eq!(numbers, [0, 1, 2, 3]);
        assert_eq!(slab.remove(1), Some(1));
        assert_eq!(slab.remove(3), Some(3));
        assert_eq!(slab.remove(3), None);
        assert_eq!([slab.insert(8), slab.insert(9), slab.insert(10)], [3, 1, 4]);
        assert_eq!(slab.used(), 5);
    }

    #[test]
    fn a_free_list_that_loops_or_strays_is_refused() {
        let mut slab: Slab<u8> = Slab::default();
        slab.push(Slot::Free(1));
        slab.push(Slot::Free(0));
        assert!(!slab.set_free(0));
        let mut slab: Slab<u8> = Slab::default();
        slab.push(Slot::Used(7));
        slab.push(Slot::Free(NONE));
        assert!(!slab.set_free(0));
        assert!(!slab.set_free(9));
        assert!(!slab.set_free(NONE));
        assert!(slab.set_free(1));
    }

    proptest! {
        #[test]
        fn a_clone_keeps_what_it_saw(before in prop::collection::vec(any::<Option<u16>>(), 1..900),
                                     after in prop::collection::vec(any::<Option<u16>>(), 1..200)) {
            let run = |slab: &mut Slab<u16>, steps: &[Option<u16>]| for step in steps {
                match step {
                    Some(value) => drop(slab.insert(*value)),
                    None => drop(slab.remove(slab.slots() / 2)),
                }
            };
            let mut slab = Slab::default();
            run(&mut slab, &before);
            let frozen = slab.clone();
            let seen: Vec<(u32, u16)> = frozen.iter().map(|(n, value)| (n, *value)).collect();
            run(&mut slab, &after);
            prop_assert_eq!(seen, frozen.iter().map(|(n, v)| (n, *v)).collect::<Vec<_>>());
            prop_assert_eq!(slab.iter().count(), slab.used());
        }
    }
}

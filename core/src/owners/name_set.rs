//! A set of names that grows and shrinks in small steps.

use crate::collections::{BlockArena, LinearHashIndex, hash_of};

/// Ends each block: there may be zeroes behind it.
const END: u8 = 1;

/// Names of spaces.
#[derive(Default)]
pub struct NameSet {
    /// A block each: a name and [`END`]. A removal changes the number of another.
    names: BlockArena<()>,
    index: LinearHashIndex,
}

fn name(names: &BlockArena<()>, id: u32) -> Option<&[u8]> {
    let block = names.get(id)?;
    block.get(..block.iter().rposition(|byte| *byte == END)?)
}

fn hash(names: &BlockArena<()>, id: u32) -> u64 {
    name(names, id).map_or(0, hash_of)
}

impl NameSet {
    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn find(&self, wanted: &[u8]) -> Option<u32> {
        self.index.find(hash_of(wanted), |id| name(&self.names, id) == Some(wanted))
    }

    pub fn contains(&self, name: &[u8]) -> bool {
        self.find(name).is_some()
    }

    /// Returns whether the name is new.
    pub fn insert(&mut self, new: &[u8]) -> bool {
        if self.contains(new) {
            return false;
        }
        let id = self.names.insert(&[new, &[END]].concat(), ());
        let names = &self.names;
        self.index.insert(hash_of(new), id, |other| hash(names, other));
        true
    }

    /// Returns whether the name was there.
    pub fn remove(&mut self, old: &[u8]) -> bool {
        let Some(id) = self.find(old) else { return false };
        self.remove_id(id);
        true
    }

    fn remove_id(&mut self, id: u32) {
        let names = &self.names;
        let hashed = hash(names, id);
        self.index.remove(hashed, |other| other == id, |other| hash(names, other));
        if let Some(moved) = self.names.remove(id) {
            self.index.replace(hash(&self.names, id), moved, id);
        }
    }

    /// Takes any name out.
    pub fn pop(&mut self) -> Option<Box<[u8]>> {
        let id = self.names.iter().next()?.0;
        let popped = name(&self.names, id).map(Into::into);
        self.remove_id(id);
        popped
    }

    /// Some names in the order of their hashes, from a hash on, and the hash to go on from; none at the end.
    pub fn next(&self, from: u64) -> (Vec<(u64, &[u8])>, Option<u64>) {
        let (found, next) = self.index.next(from, |id| hash(&self.names, id));
        let found = found.into_iter().filter_map(|(hash, id)| Some((hash, name(&self.names, id)?)));
        (found.collect(), next)
    }

    pub fn heap_bytes(&self) -> usize {
        self.names.heap_bytes() + self.index.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn is_a_set(ops in prop::collection::vec((0..3u8, 0..40u8), 0..200)) {
            let (mut set, mut model) = (NameSet::default(), BTreeSet::new());
            for (op, number) in ops {
                let name = vec![number; usize::from(number) * 3];
                match op {
                    0 => prop_assert_eq!(set.insert(&name), model.insert(name)),
                    1 => prop_assert_eq!(set.remove(&name), model.remove(&name)),
                    _ => match set.pop() {
                        Some(popped) => prop_assert!(model.remove(&*popped)),
                        None => prop_assert!(model.is_empty()),
                    },
                }
                prop_assert_eq!(set.len(), model.len());
                let (mut from, mut listed) = (Some(0), BTreeSet::new());
                while let Some(begin) = from {
                    let (some, next) = set.next(begin);
                    listed.extend(some.into_iter().map(|(_, name)| name.to_vec()));
                    from = next;
                }
                prop_assert_eq!(&listed, &model);
            }
            while set.pop().is_some() {}
            prop_assert_eq!(set.heap_bytes(), 0);
        }
    }
}

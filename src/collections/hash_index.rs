//! From a hash to a slab number, growing by one small table at a time.
//!
//! Linear hashing (Litwin 1980) over small hash tables: as the index fills, one table after the
//! other is split in two; as it empties, they are merged again. An insertion moves the entries of
//! one table, some hundreds, however many the index holds.

use hashbrown::HashTable;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;

/// Entries a table before the index is given one more.
const SPLIT_ABOVE: usize = 448;
/// Entries a table before the index is left with one less.
const MERGE_BELOW: usize = 96;

/// Keyed by a secret of the process: names come from clients, who must not be able to choose
/// names that collide.
static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The hash of a name of two parts. The separator keeps ("ab", "c") apart from ("a", "bc"): it is
/// a byte that no UTF-8 text contains.
pub fn hash_of(first: &[u8], second: &[u8]) -> u64 {
    let mut hasher = KEY.build_hasher();
    hasher.write(first);
    hasher.write_u8(0xff);
    hasher.write(second);
    hasher.finish()
}

/// Numbers, each filed under the hash of something the owner can compare.
#[derive(Clone, Default)]
pub struct HashIndex {
    tables: Vec<HashTable<u32>>,
    len: usize,
}

impl HashIndex {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Which table a hash belongs to. With n tables, 2^k <= n < 2^(k+1): those below n - 2^k have
    /// been split already and tell by one bit more. The table's own hashing uses the top and the
    /// bottom bits, so the choice is taken from the middle.
    fn table_of(&self, hash: u64) -> usize {
        let tables = self.tables.len().max(1);
        let low = tables.next_power_of_two() >> usize::from(!tables.is_power_of_two());
        let bits = (hash >> 24) as usize;
        let wide = bits & (low * 2 - 1);
        if wide < tables {
            wide
        } else {
            bits & (low - 1)
        }
    }

    pub fn find(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        self.tables.get(self.table_of(hash))?.find(hash, |id| is(*id)).copied()
    }

    /// Files `id`, which must not be there yet. `hash_again` gives the hash of any filed number.
    pub fn insert(&mut self, hash: u64, id: u32, hash_again: impl Fn(u32) -> u64) {
        if self.tables.is_empty() {
            self.tables.push(HashTable::new());
        } else if self.len >= self.tables.len() * SPLIT_ABOVE {
            self.split(&hash_again);
        }
        let at = self.table_of(hash);
        if let Some(table) = self.tables.get_mut(at) {
            table.insert_unique(hash, id, |other| hash_again(*other));
            self.len += 1;
        }
    }

    /// Takes out the number filed under `hash` of which `is` says that it is the one.
    pub fn remove(
        &mut self,
        hash: u64,
        mut is: impl FnMut(u32) -> bool,
        hash_again: impl Fn(u32) -> u64,
    ) -> Option<u32> {
        let at = self.table_of(hash);
        let table = self.tables.get_mut(at)?;
        let (id, _) = table.find_entry(hash, |id| is(*id)).ok()?.remove();
        self.len -= 1;
        if self.len == 0 {
            self.tables = Vec::new();
        } else if self.tables.len() > 1 && self.len < self.tables.len() * MERGE_BELOW {
            self.merge(&hash_again);
        }
        Some(id)
    }

    /// Replaces one filed number by another of the same hash.
    pub fn replace(&mut self, hash: u64, old: u32, new: u32) {
        let at = self.table_of(hash);
        if let Some(entry) =
            self.tables.get_mut(at).and_then(|table| table.find_mut(hash, |id| *id == old))
        {
            *entry = new;
        }
    }

    fn split(&mut self, hash_again: &impl Fn(u32) -> u64) {
        let tables = self.tables.len();
        let low = tables.next_power_of_two() >> usize::from(!tables.is_power_of_two());
        let source = tables - low;
        self.tables.push(HashTable::new());
        let Some(old) = self.tables.get_mut(source).map(std::mem::take) else { return };
        for id in old {
            self.file(hash_again(id), id, hash_again);
        }
    }

    fn merge(&mut self, hash_again: &impl Fn(u32) -> u64) {
        let Some(last) = self.tables.pop() else { return };
        for id in last {
            self.file(hash_again(id), id, hash_again);
        }
        // The table that was merged into keeps its room; the others are as full as before.
        self.tables.shrink_to(self.tables.len() * 2);
    }

    fn file(&mut self, hash: u64, id: u32, hash_again: &impl Fn(u32) -> u64) {
        let at = self.table_of(hash);
        if let Some(table) = self.tables.get_mut(at) {
            table.insert_unique(hash, id, |other| hash_again(*other));
        }
    }

    /// Bytes on the heap, estimated from the number of entries: the tables are not walked.
    pub fn heap_bytes(&self) -> usize {
        let slots = match self.tables.as_slice() {
            [] => 0,
            [only] => only.num_buckets() * 5 + 16,
            tables => tables.len() * (self.len / tables.len() * 8 / 7).next_power_of_two() * 5,
        };
        slots + self.tables.capacity() * size_of::<HashTable<u32>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn hash(id: u32) -> u64 {
        hash_of(&id.to_le_bytes(), b"")
    }

    #[test]
    fn parts_of_a_name_are_kept_apart() {
        assert_ne!(hash_of(b"ab", b"c"), hash_of(b"a", b"bc"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn behaves_like_a_set(
            rounds in prop::collection::vec((any::<bool>(), 1..3000usize, any::<u32>()), 1..8)
        ) {
            let mut index = HashIndex::default();
            let mut model: BTreeMap<u32, ()> = BTreeMap::new();
            for (grow, count, start) in rounds {
                if grow {
                    for id in (0..count as u32).map(|n| start.wrapping_add(n.wrapping_mul(7919))) {
                        if model.insert(id, ()).is_none() {
                            index.insert(hash(id), id, hash);
                        }
                    }
                } else {
                    let going: Vec<u32> = model.keys().take(count).copied().collect();
                    for id in going {
                        model.remove(&id);
                        prop_assert_eq!(index.remove(hash(id), |other| other == id, hash), Some(id));
                        prop_assert_eq!(index.find(hash(id), |other| other == id), None);
                    }
                }
                prop_assert_eq!(index.len(), model.len());
                for id in model.keys() {
                    prop_assert_eq!(index.find(hash(*id), |other| other == *id), Some(*id));
                }
                prop_assert!(index.tables.iter().all(|table| table.len() < SPLIT_ABOVE * 4));
            }
        }
    }
}

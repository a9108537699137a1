//! From a hash to a number, growing by one small table at a time, and in the order of the hashes.
//!
//! Linear hashing (Litwin 1980) over small hash tables: as the index fills, one table after the
//! other is split in two; as it empties, they are merged again. An insertion moves the entries of
//! one table, some hundreds, however many the index holds.
//!
//! A table has all hashes between two, told by their leading bits, and keeps them in order: so who
//! walks along the hashes meets whatever is there throughout once, although tables come and go.

use super::bucket_table::{BucketTable, LINE};
use super::non_empty::NonEmpty;

/// Entries a table before the index is given one more.
const SPLIT_ABOVE: usize = 448;
/// Entries a table before the index is left with one less.
const MERGE_BELOW: usize = 96;
/// The largest power of two that is not above a number of tables.
fn low(tables: usize) -> usize {
    tables.next_power_of_two() >> usize::from(!tables.is_power_of_two())
}

/// Which of so many tables a hash belongs to, and how many leading bits tell that. With n tables,
/// 2^k <= n < 2^(k+1): those below n - 2^k have been split already and tell by one bit more.
/// The first bit counts least, so that splitting a table appends one.
pub fn table_of(hash: u64, tables: usize) -> (usize, u32) {
    let low = low(tables);
    let bits = hash.reverse_bits() as usize;
    let at = bits & (low - 1);
    if at + low < tables {
        (bits & (low * 2 - 1), low.trailing_zeros() + 1)
    } else {
        (at, low.trailing_zeros())
    }
}

/// Where a hash belongs in an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub hash: u64,
    pub table: usize,
    pub line: usize,
}

/// Numbers, each stored under the hash of something the owner can compare.
#[derive(Clone, Default)]
pub struct LinearHashIndex {
    tables: NonEmpty<BucketTable>,
    len: usize,
    /// Of all tables.
    lines: usize,
}

impl LinearHashIndex {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cache lines of all tables.
    pub fn lines(&self) -> usize {
        self.lines
    }

    pub fn tables(&self) -> &NonEmpty<BucketTable> {
        &self.tables
    }

    fn table_of(&self, hash: u64) -> (usize, u32) {
        table_of(hash, self.tables.len())
    }

    pub fn find(&self, hash: u64, is: impl FnMut(u32) -> bool) -> Option<u32> {
        let (at, skip) = self.table_of(hash);
        self.tables.get(at)?.find(hash, skip, is)
    }

    /// Where the search for a hash begins, as long as nothing is stored or taken out.
    pub fn place(&self, hash: u64) -> Place {
        let (table, skip) = self.table_of(hash);
        let line = self.tables.get(table).map_or(0, |table| table.home(hash, skip));
        Place { hash, table, line }
    }

    /// What is looked at first there, for who can have it brought near before it is needed.
    pub fn line_at(&self, place: Place) -> &[u8] {
        self.tables.get(place.table).map_or(&[], |table| table.tags_at(place.line))
    }

    /// A number that is most probably the one stored under the hash, if anything is.
    pub fn guess(&self, place: Place) -> Option<u32> {
        self.tables.get(place.table)?.guess_at(place.line, place.hash)
    }

    /// Files `id`, which must not be there yet. `hash_again` gives the hash of any stored number.
    pub fn insert(&mut self, hash: u64, id: u32, hash_again: impl Fn(u32) -> u64) {
        if self.len >= self.tables.len() * SPLIT_ABOVE {
            self.split(&hash_again);
        }
        self.file(hash, id, &hash_again);
        self.len += 1;
    }

    fn file(&mut self, hash: u64, id: u32, hash_again: &impl Fn(u32) -> u64) {
        let (at, skip) = self.table_of(hash);
        if let Some(table) = self.tables.get_mut(at) {
            let before = table.lines();
            table.insert(hash, skip, id, hash_again);
            let after = table.lines();
            self.lines = self.lines + after - before;
        }
    }

    /// Takes out the number stored under `hash` of which `is` says that it is the one.
    pub fn remove(
        &mut self,
        hash: u64,
        is: impl FnMut(u32) -> bool,
        hash_again: impl Fn(u32) -> u64,
    ) -> Option<u32> {
        let (at, skip) = self.table_of(hash);
        let table = self.tables.get_mut(at)?;
        let before = table.lines();
        let id = table.remove(hash, skip, is, &hash_again)?;
        let after = table.lines();
        self.lines = self.lines + after - before;
        self.len -= 1;
        if self.len == 0 {
            *self = LinearHashIndex::default();
        } else if self.tables.len() > 1 && self.len < self.tables.len() * MERGE_BELOW {
            self.merge(&hash_again);
        }
        Some(id)
    }

    /// Replaces one stored number by another of the same hash.
    pub fn replace(&mut self, hash: u64, old: u32, new: u32) {
        let (at, skip) = self.table_of(hash);
        if let Some(table) = self.tables.get_mut(at) {
            table.replace(hash, skip, old, new);
        }
    }

    fn split(&mut self, hash_again: &impl Fn(u32) -> u64) {
        let source = self.tables.len() - low(self.tables.len());
        let Some(old) = self.tables.get_mut(source).map(std::mem::take) else { return };
        self.tables.push(BucketTable::default());
        let half = old.ids().count() / 2;
        for at in [source, self.tables.len() - 1] {
            if let Some(table) = self.tables.get_mut(at) {
                // With some of what comes until the next split.
                *table = BucketTable::with_room(half + half / 2);
                self.lines += table.lines();
            }
        }
        self.file_all(&old, hash_again);
    }

    fn merge(&mut self, hash_again: &impl Fn(u32) -> u64) {
        let Some(last) = self.tables.pop() else { return };
        let into = self.tables.len() - low(self.tables.len());
        let Some(first) = self.tables.get_mut(into).map(std::mem::take) else { return };
        self.file_all(&first, hash_again);
        self.file_all(&last, hash_again);
    }

    /// Files anew what a table had that is not part of the index any more.
    fn file_all(&mut self, old: &BucketTable, hash_again: &impl Fn(u32) -> u64) {
        self.lines -= old.lines();
        for id in old.ids() {
            self.file(hash_again(id), id, hash_again);
        }
    }

    /// What is stored under the next hashes from `from` on, with its hash, in order: some entries,
    /// or none where nothing is near. And from where to go on; none at the end.
    pub fn next(
        &self,
        from: u64,
        hash_again: impl Fn(u32) -> u64,
    ) -> (Vec<(u64, u32)>, Option<u64>) {
        let (at, skip) = self.table_of(from);
        let Some(table) = self.tables.get(at) else { return (Vec::new(), None) };
        let begin = (at as u64).reverse_bits();
        let (ids, next_line) = table.line_of(from, skip);
        let next = match next_line {
            Some(offset) => Some(begin + offset),
            None if skip == 0 => None,
            None => begin.checked_add(1 << (64 - skip)),
        };
        let mut found: Vec<(u64, u32)> = ids
            .map(|id| (hash_again(id), id))
            .filter(|(hash, _)| *hash >= from && next.is_none_or(|next| *hash < next))
            .collect();
        found.sort_unstable();
        (found, next)
    }

    /// Bytes on the heap, in constant time.
    pub fn heap_bytes(&self) -> usize {
        self.lines * LINE + self.tables.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash_of;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn hash(id: u32) -> u64 {
        hash_of(&id.to_le_bytes())
    }

    fn walk(index: &LinearHashIndex, from: u64) -> Vec<(u64, u32)> {
        let (mut all, mut from) = (Vec::new(), Some(from));
        while let Some(start) = from {
            let (some, next) = index.next(start, hash);
            assert!(next.is_none_or(|next| next > start));
            all.extend(some);
            from = next;
        }
        all
    }

    /// Hashes that nobody can choose, and some that nobody ought to meet: crowded together, few, all
    /// the same.
    fn hash_by(kind: u8, id: u32) -> u64 {
        match kind {
            0 => hash(id),
            1 => hash(id) >> 20,
            2 => hash(id) | !0 << 40,
            3 => hash(id) & 0x7 << 60,
            _ => u64::MAX,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_walk_meets_once_what_stays(
            kind in prop_oneof![4 => Just(0u8), 1 => 1..5u8],
            stays in 0..1500u32,
            start in 0..9000u32,
            // How many there are of the others after each step of the walk.
            others in prop::collection::vec(prop_oneof![0..20u32, 0..9000u32], 1..40),
        ) {
            // What is crowded is not quick to find any more.
            let (stays, scale) = if kind == 0 { (stays, 2) } else { (stays / 10, 20) };
            let hash = |id: u32| hash_by(kind, id);
            let mut index = LinearHashIndex::default();
            for id in 0..stays {
                index.insert(hash(id), id, hash);
            }
            let mut here = stays..stays;
            let mut resize = |index: &mut LinearHashIndex, count: u32| {
                // Who came first goes first.
                let until = here.start + count / scale;
                for id in here.end..until {
                    index.insert(hash(id), id, hash);
                }
                here.end = here.end.max(until);
                while here.len() as u32 > count / scale {
                    let id = here.start;
                    assert_eq!(index.remove(hash(id), |other| other == id, hash), Some(id));
                    here.start += 1;
                }
            };
            resize(&mut index, start);
            let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
            let (mut from, mut last, mut others) = (Some(0), 0, others.into_iter());
            while let Some(place) = from {
                // A page is a few steps.
                for _ in 0..4 {
                    let Some(place) = from else { break };
                    let (some, next) = index.next(place, hash);
                    prop_assert!(next.is_none_or(|next| next > place));
                    for (hash, id) in some {
                        prop_assert!(hash >= last && hash >= place);
                        last = hash;
                        *seen.entry(id).or_default() += 1;
                    }
                    from = next;
                }
                prop_assert!(from.is_none_or(|from| from > place));
                if let Some(count) = others.next() {
                    resize(&mut index, count);
                }
            }
            for id in 0..stays {
                prop_assert_eq!(seen.get(&id), Some(&1), "{}", id);
            }
            prop_assert!(seen.values().all(|times| *times == 1));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn behaves_like_a_set(
            rounds in prop::collection::vec((any::<bool>(), 1..3000usize, any::<u32>()), 1..8)
        ) {
            let mut index = LinearHashIndex::default();
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
                let mut by_hash: Vec<(u64, u32)> = model.keys().map(|id| (hash(*id), *id)).collect();
                by_hash.sort_unstable();
                prop_assert_eq!(walk(&index, 0), &by_hash[..]);
                let middle = by_hash.len() / 2;
                let from = by_hash.get(middle).map_or(u64::MAX, |(hash, _)| *hash);
                prop_assert_eq!(walk(&index, from), &by_hash[middle..]);
                let lines = index.tables.iter().map(BucketTable::lines).sum::<usize>();
                prop_assert_eq!(index.lines, lines);
                prop_assert!(index.tables.iter().all(|table| table.len() < SPLIT_ABOVE * 4));
            }
        }
    }
}

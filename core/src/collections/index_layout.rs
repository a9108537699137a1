//! Where the lines of an index lie, for who wants them brought near before the index is at hand.

use super::bucket_table::{LINE, home_of};
use super::linear_hash_index::{LinearHashIndex, Place, table_of};
use super::non_empty::NonEmpty;

/// Where a table begins, and how many lines it has.
type Lines = (*const u8, usize);

/// For each time that it is found wrong an index layout may look at so many tables: who sees to it that it is
/// wrong again and again has it look at no more.
const TABLES_A_TIME: usize = 16;

/// Where the lines of an index lay when it was last looked at. These are addresses and no more: the
/// index may be gone since, and nothing is read there.
pub struct IndexLayout {
    tables: NonEmpty<Lines>,
    /// Of all tables.
    lines: u32,
    /// How often it was found wrong.
    wrong: u32,
}

impl IndexLayout {
    /// Of no index.
    pub const NONE: IndexLayout =
        IndexLayout { tables: NonEmpty::new((std::ptr::null(), 0)), lines: 0, wrong: 0 };

    /// Whether the index most probably has the same tables as when this was drawn, of the same sizes.
    fn is_of(&self, index: &LinearHashIndex) -> bool {
        self.lines == index.lines() as u32
            && self.tables.len() == index.tables().len()
            && self.tables.get(0).copied() == index.tables().get(0).map(|table| table.at())
    }

    /// Compares it with the index, and brings it up to date where it has been wrong for some time. Returns
    /// whether it was right. What comes or goes makes it wrong once in about a hundred times.
    pub fn update(&mut self, index: &LinearHashIndex) -> bool {
        if self.is_of(index) {
            return true;
        }
        self.wrong = self.wrong.saturating_add(1);
        if self.wrong as usize * TABLES_A_TIME >= index.tables().len() {
            let mut tables = index.tables().iter().map(|table| table.at());
            *self = IndexLayout::NONE;
            if let Some(first) = tables.next() {
                self.tables = NonEmpty::new(first);
            }
            tables.for_each(|lines| self.tables.push(lines));
            self.lines = index.lines() as u32;
        }
        false
    }

    /// Whether nothing is drawn, or nothing but an empty index.
    pub fn is_clear(&self) -> bool {
        self.lines == 0
    }

    /// Forgets what was drawn. Returns whether nothing was.
    pub fn clear(&mut self) -> bool {
        let is_clear = self.is_clear();
        if !is_clear {
            *self = IndexLayout::NONE;
        }
        is_clear
    }

    /// Where a search for the hash begins, and what it looks at first; null where there is nothing.
    pub fn place(&self, hash: u64) -> (Place, *const u8) {
        let (table, skip) = table_of(hash, self.tables.len());
        let (begin, lines) = self.tables.get(table).copied().unwrap_or((std::ptr::null(), 0));
        let line = home_of(hash, skip, lines);
        (Place { hash, table, line }, begin.wrapping_add(line * LINE))
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash_of;
    use super::*;

    fn filled(index: &mut LinearHashIndex, ids: std::ops::Range<u32>) {
        for id in ids {
            index.insert(hash(id), id, hash);
        }
    }

    fn hash(id: u32) -> u64 {
        hash_of(&id.to_le_bytes())
    }

    #[test]
    fn leads_where_the_index_does() {
        let (mut index, mut index_layout) = (LinearHashIndex::default(), IndexLayout::NONE);
        let (mut right, mut id) = (0, 0);
        let same = |index: &LinearHashIndex, index_layout: &IndexLayout, id: u32| {
            let place = index.place(hash(id));
            assert_eq!(index_layout.place(place.hash), (place, index.line_at(place).as_ptr()));
        };
        while id < 20_000 {
            filled(&mut index, id..id + 1);
            if index_layout.update(&index) {
                right += 1;
                same(&index, &index_layout, id / 2);
            }
            id += 1;
        }
        assert!(right > 19_000, "{right}");
        for id in 0..20_000 {
            index.remove(hash(id), |other| other == id, hash);
            if index_layout.update(&index) && !index.is_empty() {
                same(&index, &index_layout, 19_999);
            }
        }
    }

    #[test]
    fn looks_at_a_few_tables_each_time_it_is_wrong() {
        let (mut index, mut index_layout) = (LinearHashIndex::default(), IndexLayout::NONE);
        filled(&mut index, 0..50_000);
        let patience = index.tables().len().div_ceil(TABLES_A_TIME);
        assert!(patience > 5);
        for _ in 0..patience {
            assert!(index_layout.tables.len() == 1 && !index_layout.update(&index));
        }
        assert!(index_layout.update(&index) && index_layout.tables.len() == index.tables().len());
        assert!(!index_layout.clear() && index_layout.clear() && !index_layout.update(&index));
    }
}

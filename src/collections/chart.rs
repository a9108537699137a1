//! Where the lines of an index lie, for who wants them brought near before the index is at hand.

use super::hash_index::{table_of, HashIndex, Place};
use super::line_table::{home_of, LINE};
use super::near::Near;

/// Where a table begins, and how many lines it has.
type Lines = (*const u8, usize);

/// Where the lines of an index lay when it was last looked at. These are addresses and no more: the
/// index may be gone since, and nothing is read there.
pub struct Chart {
    tables: Near<Lines>,
    /// Of all tables.
    lines: usize,
}

impl Chart {
    /// Of no index.
    pub const NONE: Chart = Chart { tables: Near::new((std::ptr::null(), 0)), lines: 0 };

    /// Whether the index most probably has the same tables as when this was drawn, of the same sizes.
    fn is_of(&self, index: &HashIndex) -> bool {
        self.lines == index.lines()
            && self.tables.len() == index.tables().len()
            && self.tables.get(0).copied() == index.tables().get(0).map(|table| table.at())
    }

    /// Brings it up to date, and returns whether it was. Where it was not, each table is looked at: what
    /// comes or goes makes that necessary once in about a hundred times.
    pub fn update(&mut self, index: &HashIndex) -> bool {
        if self.is_of(index) {
            return true;
        }
        let mut tables = index.tables().iter().map(|table| table.at());
        *self = Chart::NONE;
        if let Some(first) = tables.next() {
            self.tables = Near::new(first);
        }
        tables.for_each(|lines| self.tables.push(lines));
        self.lines = index.lines();
        false
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

    #[test]
    fn leads_where_the_index_does() {
        let hash = |id: u32| hash_of(&id.to_le_bytes());
        let (mut index, mut chart) = (HashIndex::default(), Chart::NONE);
        let mut redrawn = 0;
        for id in 0..20_000 {
            index.insert(hash(id), id, hash);
            redrawn += usize::from(!chart.update(&index));
            let place = index.place(hash(id / 2));
            assert_eq!(chart.place(place.hash), (place, index.line_at(place).as_ptr()));
        }
        assert!(redrawn < 20_000 / 50, "{redrawn}");
        for id in 0..20_000 {
            index.remove(hash(id), |other| other == id, hash);
            chart.update(&index);
            let place = index.place(hash(19_999));
            let line = index.line_at(place);
            assert!(line.is_empty() || chart.place(place.hash) == (place, line.as_ptr()));
        }
    }
}

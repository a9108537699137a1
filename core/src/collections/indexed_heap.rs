//! A heap of (moment, number) whose entries can be moved and removed from the middle.
//!
//! Four children a node: the levels are half as many as in a binary heap and the children of a
//! node lie side by side. The entries are kept in pages, so that a heap of a million grows
//! without copying itself.

const ARITY: usize = 4;
const PAGE: usize = 1024;

/// Told where in the heap an entry has gone to, so that the owner can name that place later.
pub trait Positions {
    fn moved(&mut self, id: u32, position: u32);
}

/// Of twelve bytes: the four children of a node lie on one cache line or two.
#[derive(Clone, Copy)]
#[repr(C, packed(4))]
struct Entry {
    due: u64,
    id: u32,
}

/// A min-heap by `due` (unix ms); ids are the owner's slab numbers.
#[derive(Clone, Default)]
pub struct IndexedHeap {
    pages: Vec<Vec<Entry>>,
    len: usize,
}

impl IndexedHeap {
    #[cfg(test)]
    fn len(&self) -> usize {
        self.len
    }

    fn at(&self, position: usize) -> Option<Entry> {
        self.pages.get(position / PAGE)?.get(position % PAGE).copied()
    }

    fn put<P: Positions>(&mut self, position: usize, entry: Entry, positions: &mut P) {
        if let Some(place) =
            self.pages.get_mut(position / PAGE).and_then(|page| page.get_mut(position % PAGE))
        {
            *place = entry;
            positions.moved(entry.id, position as u32);
        }
    }

    /// The earliest entry: its moment and its id.
    pub fn peek(&self) -> Option<(u64, u32)> {
        self.at(0).map(|entry| (entry.due, entry.id))
    }

    /// The moment under which the entry at `position` is stored.
    pub fn due_at(&self, position: u32) -> Option<u64> {
        self.at(position as usize).map(|entry| entry.due)
    }

    pub fn push<P: Positions>(&mut self, due: u64, id: u32, positions: &mut P) {
        let position = self.len;
        if position / PAGE == self.pages.len() {
            self.pages.push(Vec::new());
        }
        if let Some(page) = self.pages.last_mut() {
            if page.len() == page.capacity() {
                // Twice as much, and no more than a page: all but the last have that much exactly.
                page.reserve_exact(page.len().max(4).min(PAGE - page.len()));
            }
            page.push(Entry { due, id });
            self.len += 1;
        }
        self.rise(position, Entry { due, id }, positions);
    }

    /// Files the entry at `position` under another moment.
    pub fn update<P: Positions>(&mut self, position: u32, due: u64, positions: &mut P) {
        let Some(entry) = self.at(position as usize) else { return };
        let moved = Entry { due, id: entry.id };
        if due < entry.due {
            self.rise(position as usize, moved, positions);
        } else {
            self.sink(position as usize, moved, positions);
        }
    }

    /// Hands the place at `position` to another id; the moment stays.
    pub fn rename<P: Positions>(&mut self, position: u32, id: u32, positions: &mut P) {
        if let Some(entry) = self.at(position as usize) {
            self.put(position as usize, Entry { due: entry.due, id }, positions);
        }
    }

    pub fn remove<P: Positions>(&mut self, position: u32, positions: &mut P) {
        let position = position as usize;
        if position >= self.len {
            return;
        }
        let Some(last) = self.pages.last_mut().and_then(Vec::pop) else { return };
        self.len -= 1;
        if self.pages.last().is_some_and(Vec::is_empty) {
            self.pages.pop();
        }
        if self.len == 0 {
            self.pages = Vec::new();
        }
        if let Some(page) = self.pages.last_mut().filter(|page| page.len() * 4 < page.capacity()) {
            page.shrink_to(page.len() * 2);
        }
        if position < self.len {
            let due = self.at(position).map_or(0, |entry| entry.due);
            if last.due < due {
                self.rise(position, last, positions);
            } else {
                self.sink(position, last, positions);
            }
        }
    }

    fn rise<P: Positions>(&mut self, mut position: usize, entry: Entry, positions: &mut P) {
        while position > 0 {
            let parent = (position - 1) / ARITY;
            match self.at(parent) {
                Some(above) if above.due > entry.due => self.put(position, above, positions),
                _ => break,
            }
            position = parent;
        }
        self.put(position, entry, positions);
    }

    fn sink<P: Positions>(&mut self, mut position: usize, entry: Entry, positions: &mut P) {
        loop {
            let first = position * ARITY + 1;
            let least = (first..first + ARITY)
                .filter_map(|child| Some((child, self.at(child)?)))
                .min_by_key(|(_, below)| below.due);
            match least {
                Some((child, below)) if below.due < entry.due => {
                    self.put(position, below, positions);
                    position = child;
                }
                _ => break,
            }
        }
        self.put(position, entry, positions);
    }

    /// The ids of all entries, in no order.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.pages.iter().flatten().map(|entry| entry.id)
    }

    /// How many entries are due at or before `moment`; `limit` if there are that many or more.
    /// Looks at no more entries than a few times that.
    pub fn count_due(&self, moment: u64, limit: usize) -> usize {
        let mut count = 0;
        let mut open = vec![0];
        while let Some(position) = open.pop().filter(|_| count < limit) {
            if self.at(position).is_some_and(|entry| entry.due <= moment) {
                count += 1;
                let first = position * ARITY + 1;
                open.extend(first..first + ARITY);
            }
        }
        count
    }

    /// Bytes on the heap; pages but the last are full, so nothing is walked.
    pub fn heap_bytes(&self) -> usize {
        let last = self.pages.last().map_or(0, Vec::capacity);
        let before = self.pages.len().saturating_sub(1) * PAGE;
        self.pages.capacity() * size_of::<Vec<Entry>>() + (before + last) * size_of::<Entry>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Places(BTreeMap<u32, u32>);

    impl Positions for Places {
        fn moved(&mut self, id: u32, position: u32) {
            self.0.insert(id, position);
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_sorted_map(
            ops in prop::collection::vec((0..4u8, any::<u16>(), 0..500u64), 0..3000)
        ) {
            let mut heap = IndexedHeap::default();
            let mut places = Places::default();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            for (step, (op, pick, due)) in ops.into_iter().enumerate() {
                let picked = model.keys().nth(pick as usize % model.len().max(1)).copied();
                match (op, picked) {
                    (0 | 1, _) | (_, None) => {
                        heap.push(due, step as u32, &mut places);
                        model.insert(step as u32, due);
                    }
                    (2, Some(id)) => {
                        heap.update(places.0[&id], due, &mut places);
                        model.insert(id, due);
                    }
                    (_, Some(id)) => {
                        heap.remove(places.0[&id], &mut places);
                        model.remove(&id);
                        places.0.remove(&id);
                    }
                }
                prop_assert_eq!(heap.len(), model.len());
                prop_assert_eq!(heap.peek().map(|top| top.0), model.values().min().copied());
            }
            for (id, due) in &model {
                prop_assert_eq!(heap.due_at(places.0[id]), Some(*due));
            }
            let due = model.values().filter(|due| **due <= 250).count();
            prop_assert_eq!(heap.count_due(250, usize::MAX), due);
            prop_assert_eq!(heap.count_due(250, 7), due.min(7));
            while let Some((due, id)) = heap.peek() {
                prop_assert_eq!(Some(due), model.values().min().copied());
                heap.remove(places.0[&id], &mut places);
                model.remove(&id);
            }
            prop_assert!(model.is_empty());
            prop_assert_eq!(heap.heap_bytes(), 0);
        }
    }

    #[test]
    fn gives_back_most_of_a_page_too() {
        let (mut heap, mut places) = (IndexedHeap::default(), Places::default());
        (0..3000).for_each(|id| heap.push(u64::from(id), id, &mut places));
        let pages = |heap: &IndexedHeap| heap.pages.iter().map(Vec::capacity).collect::<Vec<_>>();
        assert_eq!(pages(&heap), [PAGE; 3]);
        let mut copy = heap.clone();
        (3000..3100).for_each(|id| copy.push(u64::from(id), id, &mut places));
        assert_eq!(pages(&copy), [PAGE, PAGE, PAGE, 32]);
        (3..3000).for_each(|_| heap.remove(0, &mut places));
        assert_eq!(heap.len(), 3);
        assert!(heap.heap_bytes() < 300, "{}", heap.heap_bytes());
    }
}

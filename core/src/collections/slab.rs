//! Entries under small numbers that stay theirs until they are removed.

use super::non_empty::NonEmpty;

/// Entries a page. A page is the most that is ever copied or allocated at once.
const PAGE: usize = 128;

/// A paged slab. `insert` hands out a number, the lowest free page first known; a page whose last
/// entry goes is given back. The first page lives inline and grows with its contents, so that a
/// slab of two entries costs two entries.
pub struct Slab<T> {
    pages: NonEmpty<Page<T>>,
    /// Pages that have a free place, each at most once; the first page is looked at before these.
    open: Vec<u32>,
    len: usize,
    /// Bytes that the pages behind the first have on the heap.
    rest_bytes: usize,
}

#[derive(Clone)]
struct Page<T> {
    entries: Vec<Option<T>>,
    free: Vec<u16>,
}

impl<T> Page<T> {
    const fn new() -> Self {
        Page { entries: Vec::new(), free: Vec::new() }
    }

    fn used(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    fn is_full(&self) -> bool {
        self.used() >= PAGE
    }

    fn insert(&mut self, value: T) -> usize {
        if let Some(at) = self.free.pop() {
            if let Some(entry) = self.entries.get_mut(usize::from(at)) {
                *entry = Some(value);
            }
            return usize::from(at);
        }
        if self.entries.len() == self.entries.capacity() {
            // Half as much again, not twice: most slabs are small and many.
            let more = (self.entries.len() / 2).min(PAGE.saturating_sub(self.entries.len())).max(1);
            self.entries.reserve_exact(more);
        }
        self.entries.push(Some(value));
        self.entries.len() - 1
    }

    fn remove(&mut self, at: usize) -> Option<T> {
        let value = self.entries.get_mut(at)?.take()?;
        self.free.push(at as u16);
        if self.used() == 0 {
            *self = Page::new();
        }
        Some(value)
    }

    fn heap_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Option<T>>() + self.free.capacity() * size_of::<u16>()
    }
}

impl<T: Clone> Clone for Slab<T> {
    /// The copy's pages have room for what is in them, which is less than the original's may have.
    fn clone(&self) -> Self {
        let pages = self.pages.clone();
        let rest_bytes = pages.iter().skip(1).map(Page::heap_bytes).sum();
        Slab { pages, open: self.open.clone(), len: self.len, rest_bytes }
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { pages: NonEmpty::new(Page::new()), open: Vec::new(), len: 0, rest_bytes: 0 }
    }
}

impl<T> Slab<T> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, id: u32) -> Option<&T> {
        let id = id as usize;
        self.pages.get(id / PAGE)?.entries.get(id % PAGE)?.as_ref()
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        let id = id as usize;
        self.pages.get_mut(id / PAGE)?.entries.get_mut(id % PAGE)?.as_mut()
    }

    /// Adds an entry and returns its number.
    pub fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if let Some(first) = self.pages.get_mut(0).filter(|first| !first.is_full()) {
            return first.insert(value) as u32;
        }
        let number = match self.open.last() {
            Some(&number) => number as usize,
            None => {
                let number = self.pages.len();
                self.pages.push(Page::new());
                self.open.push(number as u32);
                number
            }
        };
        let Some(page) = self.pages.get_mut(number) else { return u32::MAX };
        let before = page.heap_bytes();
        let at = page.insert(value);
        self.rest_bytes = self.rest_bytes + page.heap_bytes() - before;
        if page.is_full() {
            self.open.pop();
        }
        (number * PAGE + at) as u32
    }

    /// Takes an entry out; its number is free for another.
    pub fn remove(&mut self, id: u32) -> Option<T> {
        let (number, at) = (id as usize / PAGE, id as usize % PAGE);
        let page = self.pages.get_mut(number)?;
        let was_full = page.is_full();
        let before = page.heap_bytes();
        let value = page.remove(at)?;
        let after = page.heap_bytes();
        if number > 0 {
            self.rest_bytes = self.rest_bytes + after - before;
        }
        if was_full && number > 0 {
            self.open.push(number as u32);
        }
        self.len -= 1;
        if self.len == 0 {
            *self = Self::default();
        }
        Some(value)
    }

    /// The entries from number `from` on, in the order of their numbers.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = (u32, &T)> {
        let (start, within) = (from as usize / PAGE, from as usize % PAGE);
        (start..self.pages.len()).flat_map(move |number| {
            let skip = if number == start { within } else { 0 };
            self.pages
                .get(number)
                .into_iter()
                .flat_map(|page| page.entries.iter().enumerate())
                .skip(skip)
                .filter_map(move |(at, entry)| Some(((number * PAGE + at) as u32, entry.as_ref()?)))
        })
    }

    /// The entries, to be changed in place.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pages.iter_mut().flat_map(|page| page.entries.iter_mut().flatten())
    }

    /// Bytes on the heap, the entries' own allocations not counted; in constant time.
    pub fn heap_bytes(&self) -> usize {
        self.pages.get(0).map_or(0, Page::heap_bytes)
            + self.rest_bytes
            + self.pages.heap_bytes()
            + self.open.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_like_a_map(ops in prop::collection::vec((any::<bool>(), any::<u16>()), 0..4000)) {
            let mut slab = Slab::default();
            let mut model: BTreeMap<u32, u32> = BTreeMap::new();
            for (step, (add, pick)) in ops.into_iter().enumerate() {
                // More adds than removals, so that several pages come into being.
                if add || pick % 3 == 0 {
                    let id = slab.insert(step as u32);
                    prop_assert!(model.insert(id, step as u32).is_none(), "a number in use was given out");
                } else if let Some(&id) = model.keys().nth(pick as usize % model.len().max(1)) {
                    prop_assert_eq!(slab.remove(id), model.remove(&id));
                    prop_assert_eq!(slab.remove(id), None);
                }
            }
            prop_assert_eq!(slab.len(), model.len());
            let rest: usize = slab.pages.iter().skip(1).map(Page::heap_bytes).sum();
            prop_assert_eq!(slab.rest_bytes, rest);
            let from = model.keys().nth(model.len() / 2).copied().unwrap_or(0);
            let listed: Vec<_> = slab.iter_from(from).map(|(id, v)| (id, *v)).collect();
            let expected: Vec<_> = model.range(from..).map(|(id, v)| (*id, *v)).collect();
            prop_assert_eq!(listed, expected);
        }
    }

    #[test]
    fn gives_pages_back() {
        let mut slab = Slab::default();
        let ids: Vec<u32> = (0..100_000u64).map(|n| slab.insert(n)).collect();
        let full = slab.heap_bytes();
        for id in &ids[..99_990] {
            slab.remove(*id);
        }
        assert!(slab.heap_bytes() < full / 20, "{} of {full}", slab.heap_bytes());
        assert!(slab.pages.iter().filter(|page| page.entries.capacity() > 0).count() < 4);
        for id in &ids[99_990..] {
            slab.remove(*id);
        }
        assert_eq!(slab.heap_bytes(), 0);
    }
}

//! A list in pages: it grows and shrinks at its end, and never moves more than one page.

use super::allocated;
use super::non_empty::NonEmpty;

/// Elements a page. A power of two, so that a number is divided by a shift; so many that the list of
/// pages stays near.
const IN_PAGE: usize = 1 << PAGE_BITS;
const PAGE_BITS: u32 = 10;

/// All pages but the last are full, and none is empty but the first.
#[derive(Clone)]
pub struct SegmentedVec<T>(NonEmpty<Vec<T>>);

impl<T> Default for SegmentedVec<T> {
    fn default() -> Self {
        SegmentedVec(NonEmpty::new(Vec::new()))
    }
}

impl<T> SegmentedVec<T> {
    pub fn get(&self, at: u32) -> Option<&T> {
        self.0.get((at >> PAGE_BITS) as usize)?.get(at as usize % IN_PAGE)
    }

    pub fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.0.get_mut((at >> PAGE_BITS) as usize)?.get_mut(at as usize % IN_PAGE)
    }

    pub fn push(&mut self, element: T) {
        if self.0.last().len() == IN_PAGE {
            self.0.push(Vec::new());
        }
        let last = self.0.len() - 1;
        let Some(page) = self.0.get_mut(last) else { return };
        if page.len() == page.capacity() {
            // By a quarter of what there is, or of a page: what is not used yet is little, and so is what
            // is copied.
            let more = if last == 0 { page.len() / 4 } else { IN_PAGE / 4 };
            page.reserve_exact(more.clamp(1, IN_PAGE - page.len()));
        }
        page.push(element);
    }

    /// Takes the last element off.
    pub fn pop(&mut self) -> Option<T> {
        let last = self.0.len() - 1;
        let page = self.0.get_mut(last)?;
        let element = page.pop()?;
        if page.is_empty() && last > 0 {
            self.0.pop();
        } else if page.len() * 4 < page.capacity() {
            page.shrink_to(page.len() * 2);
        }
        Some(element)
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flatten()
    }

    /// Bytes on the heap, the elements' own not counted, in constant time.
    pub fn heap_bytes(&self) -> usize {
        let page = |capacity: usize| allocated(capacity * size_of::<T>());
        (self.0.len() - 1) * page(IN_PAGE) + page(self.0.last().capacity()) + self.0.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_list() {
        let (mut list, mut model) = (SegmentedVec::default(), Vec::new());
        let mut most = 0;
        for steps in [10, 900, 2, 3000, 1025, 700, 5000] {
            // Up to so many, and down to a third of that.
            while model.len() < steps {
                list.push(model.len() * 7);
                model.push(model.len() * 7);
            }
            assert!(list.iter().eq(&model));
            most = most.max(list.heap_bytes());
            while model.len() > steps / 3 {
                assert_eq!(list.pop(), model.pop());
            }
            if let Some(one) = list.get_mut((steps / 5) as u32) {
                *one += 1;
            }
            if let Some(one) = model.get_mut(steps / 5) {
                *one += 1;
            }
            assert!(list.iter_mut().map(|one| *one).eq(model.iter().copied()));
            for at in 0..=model.len() {
                assert_eq!(list.get(at as u32), model.get(at));
            }
        }
        assert!(most < (5000 + IN_PAGE / 4) * size_of::<usize>() + 1000, "{most}");
        while let Some(last) = model.pop() {
            assert_eq!(list.pop(), Some(last));
        }
        assert_eq!((list.pop(), list.heap_bytes()), (None, 0));
    }
}

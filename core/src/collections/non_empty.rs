//! A list that is never empty, whose first element is not behind a pointer.
//!
//! Most lists in here have one element. Who looks at it takes one step less, and the rest takes no
//! memory while there is none.

/// One thing, or several.
#[derive(Clone, Default)]
pub struct NonEmpty<T> {
    first: T,
    rest: Vec<T>,
}

impl<T> NonEmpty<T> {
    pub const fn new(first: T) -> Self {
        NonEmpty { first, rest: Vec::new() }
    }

    /// Number of elements: 1 or more.
    pub fn len(&self) -> usize {
        1 + self.rest.len()
    }

    pub fn get(&self, at: usize) -> Option<&T> {
        match at.checked_sub(1) {
            None => Some(&self.first),
            Some(at) => self.rest.get(at),
        }
    }

    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        match at.checked_sub(1) {
            None => Some(&mut self.first),
            Some(at) => self.rest.get_mut(at),
        }
    }

    pub fn last(&self) -> &T {
        self.rest.last().unwrap_or(&self.first)
    }

    pub fn push(&mut self, element: T) {
        self.rest.push(element);
    }

    /// Takes the last one off; the first stays.
    pub fn pop(&mut self) -> Option<T> {
        let last = self.rest.pop();
        if self.rest.len() * 4 < self.rest.capacity() {
            self.rest.shrink_to(self.rest.len() * 2);
        }
        last
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        std::iter::once(&mut self.first).chain(&mut self.rest)
    }

    /// Bytes on the heap, the elements' own not counted.
    pub fn heap_bytes(&self) -> usize {
        self.rest.capacity() * size_of::<T>()
    }
}

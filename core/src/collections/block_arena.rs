//! Blocks of bytes under small numbers, packed side by side.
//!
//! Blocks of about the same size lie in pages without a gap: the last one fills the place of one
//! that goes, so memory is what is in use, in whatever order blocks come and go, and a number
//! leads straight to its bytes. The price is that a removal can change the number of another
//! block; it says of which.
//!
//! Blocks that are large are allocated apart and keep their numbers.
//!
//! Each block has a mark of fixed size. Marks lie by themselves, so close that a look at one costs
//! much less than a look at a block when there are many.

use super::Slab;
use super::allocated;
use super::non_empty::NonEmpty;
use super::segmented_vec::SegmentedVec;

/// Larger blocks are kept apart.
const LARGEST: usize = 512;
/// About so much is allocated for a full page.
const PAGE_BYTES: usize = 32 << 10;
/// A number of a large block has this bit; the others have the class in front of the place.
const LARGE: u32 = 1 << 31;
const PLACE_BITS: u32 = 25;
const MOST_PLACES: u32 = 1 << PLACE_BITS;
const MOST_CLASSES: usize = 1 << (31 - PLACE_BITS);
/// So that a place times a rounded part is exact: a place is below 2^25, and what is rounded up is less than the
/// 2^12 blocks of a page.
const PRECISION: u32 = 37;

/// Blocks of one size. No page is empty but the first, and all are full but the last.
#[derive(Clone)]
struct Class<M> {
    stride: usize,
    /// How many blocks a page holds, and 2^[`PRECISION`] divided by that, rounded up.
    in_page: u32,
    part: u64,
    len: u32,
    marks: SegmentedVec<M>,
    pages: NonEmpty<Vec<u8>>,
}

/// Where blocks are kept, each with a mark.
#[derive(Clone)]
pub struct BlockArena<M> {
    packed: NonEmpty<Class<M>>,
    large: Slab<(M, Box<[u8]>)>,
    /// Bytes of all that are large.
    large_bytes: usize,
    len: usize,
}

impl<M: Copy + Default> Default for BlockArena<M> {
    fn default() -> Self {
        BlockArena {
            packed: NonEmpty::new(Class::new(LARGEST)),
            large: Slab::default(),
            large_bytes: 0,
            len: 0,
        }
    }
}

/// The size under which a block of so many bytes is kept; none where it is kept apart.
fn stride_of(bytes: usize) -> Option<usize> {
    match bytes {
        0..=256 => Some(bytes.max(8).next_multiple_of(8)),
        257..=LARGEST => Some(bytes.next_multiple_of(32)),
        _ => None,
    }
}

impl<M: Copy + Default> Class<M> {
    fn new(stride: usize) -> Self {
        let in_page = (PAGE_BYTES / stride) as u32;
        let part = (1u64 << PRECISION).div_ceil(u64::from(in_page));
        Class {
            stride,
            in_page,
            part,
            len: 0,
            marks: SegmentedVec::default(),
            pages: NonEmpty::default(),
        }
    }

    /// The page and the place in it.
    fn split(&self, place: u32) -> (usize, usize) {
        // A division, which a heartbeat would wait for several times.
        let page = ((u64::from(place) * self.part) >> PRECISION) as u32;
        (page as usize, (place - page * self.in_page) as usize)
    }

    fn get(&self, place: u32) -> Option<&[u8]> {
        let (page, at) = self.split(place);
        let start = at * self.stride;
        self.pages.get(page)?.get(start..start + self.stride)
    }

    fn get_mut(&mut self, place: u32) -> Option<&mut [u8]> {
        let (page, at) = self.split(place);
        let (start, stride) = (at * self.stride, self.stride);
        self.pages.get_mut(page)?.get_mut(start..start + stride)
    }

    fn push(&mut self, block: &[u8], mark: M) -> u32 {
        let place = self.len;
        let (number, at) = self.split(place);
        if number == self.pages.len() {
            self.pages.push(Vec::new());
        }
        let (stride, in_page) = (self.stride, self.in_page as usize);
        if let Some(page) = self.pages.get_mut(number) {
            if (at + 1) * stride > page.capacity() {
                // The first by a quarter: those of small spaces are many, and copying one is little.
                // A further one has its room at once.
                let more = if number == 0 { (at / 4).max(1) } else { in_page };
                page.reserve_exact(more.min(in_page - at) * stride);
            }
            page.extend_from_slice(block);
            page.resize((at + 1) * stride, 0);
            self.marks.push(mark);
            self.len += 1;
        }
        place
    }

    /// Takes the last block away; its bytes and its mark fill a place.
    fn pop_into(&mut self, place: u32) {
        let last = self.len.saturating_sub(1);
        let ((to, at), (from, end)) = (self.split(place), self.split(last));
        let Some(mut page) = self.pages.get_mut(from).map(std::mem::take) else { return };
        let rest = end * self.stride;
        if to == from {
            page.copy_within(rest.., at * self.stride);
        } else if let (Some(to), Some(from)) = (self.get_mut(place), page.get(rest..)) {
            to.copy_from_slice(from);
        }
        if let (Some(mark), Some(to)) = (self.marks.pop(), self.marks.get_mut(place)) {
            *to = mark;
        }
        page.truncate(rest);
        self.len = last;
        if page.is_empty() {
            self.pages.pop();
            return;
        }
        if page.len() * 4 < page.capacity() {
            page.shrink_to(page.len() * 2);
        }
        if let Some(back) = self.pages.get_mut(from) {
            *back = page;
        }
    }

    fn heap_bytes(&self) -> usize {
        let full = self.in_page as usize * self.stride;
        let bytes = (self.pages.len() - 1) * full + self.pages.last().capacity();
        bytes + self.pages.heap_bytes() + self.marks.heap_bytes()
    }
}

/// The class and the place that a number names.
fn place_of(id: u32) -> (usize, u32) {
    ((id >> PLACE_BITS) as usize, id & (MOST_PLACES - 1))
}

fn id_of(class: usize, place: u32) -> u32 {
    (class as u32) << PLACE_BITS | place
}

impl<M: Copy + Default> BlockArena<M> {
    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a block, and possibly some more.
    pub fn get(&self, id: u32) -> Option<&[u8]> {
        if id & LARGE != 0 {
            return self.large.get(id & !LARGE).map(|(_, block)| &**block);
        }
        let (class, place) = place_of(id);
        self.packed.get(class)?.get(place)
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut [u8]> {
        if id & LARGE != 0 {
            return self.large.get_mut(id & !LARGE).map(|(_, block)| &mut **block);
        }
        let (class, place) = place_of(id);
        self.packed.get_mut(class)?.get_mut(place)
    }

    /// The mark of a block.
    pub fn mark(&self, id: u32) -> Option<&M> {
        if id & LARGE != 0 {
            return self.large.get(id & !LARGE).map(|(mark, _)| mark);
        }
        let (class, place) = place_of(id);
        self.packed.get(class)?.marks.get(place)
    }

    pub fn mark_mut(&mut self, id: u32) -> Option<&mut M> {
        if id & LARGE != 0 {
            return self.large.get_mut(id & !LARGE).map(|(mark, _)| mark);
        }
        let (class, place) = place_of(id);
        self.packed.get_mut(class)?.marks.get_mut(place)
    }

    /// The class for blocks of that size, made where there is none with room.
    fn with_room(&mut self, stride: usize) -> Option<usize> {
        let has_room = |class: &Class<M>| class.stride == stride && class.len < MOST_PLACES;
        if let Some(there) = self.packed.iter().position(has_room) {
            return Some(there);
        }
        let empty = self.packed.iter().position(|class| class.len == 0);
        if let Some((at, class)) = empty.and_then(|at| Some((at, self.packed.get_mut(at)?))) {
            *class = Class::new(stride);
            return Some(at);
        }
        let next = self.packed.len();
        if next == MOST_CLASSES {
            return None;
        }
        self.packed.push(Class::new(stride));
        Some(next)
    }

    pub fn insert(&mut self, block: &[u8], mark: M) -> u32 {
        self.len += 1;
        let at = stride_of(block.len()).and_then(|stride| self.with_room(stride));
        if let Some((at, class)) = at.and_then(|at| Some((at, self.packed.get_mut(at)?))) {
            return id_of(at, class.push(block, mark));
        }
        self.large_bytes += allocated(block.len());
        LARGE | self.large.insert((mark, block.into()))
    }

    /// Changes a block where its new bytes can be kept in the old one's place. Returns false, and
    /// does nothing, where they cannot.
    pub fn replace(&mut self, id: u32, block: &[u8]) -> bool {
        let stride = stride_of(block.len());
        if id & LARGE != 0 {
            let place = self.large.get_mut(id & !LARGE).filter(|_| stride.is_none());
            let Some((_, place)) = place else { return false };
            let before = std::mem::replace(place, block.into());
            self.large_bytes -= allocated(before.len());
            self.large_bytes += allocated(block.len());
            return true;
        }
        match self.get_mut(id).filter(|place| Some(place.len()) == stride) {
            Some(place) => {
                place.iter_mut().zip(block).for_each(|(place, byte)| *place = *byte);
                true
            }
            None => false,
        }
    }

    /// Takes a block away. Returns the number of the block that has `id` from now on instead of
    /// its own, if one has.
    pub fn remove(&mut self, id: u32) -> Option<u32> {
        if id & LARGE != 0 {
            let (_, gone) = self.large.remove(id & !LARGE)?;
            self.large_bytes -= allocated(gone.len());
            self.len -= 1;
            return None;
        }
        let (at, place) = place_of(id);
        let class = self.packed.get_mut(at).filter(|class| place < class.len)?;
        class.pop_into(place);
        let moved = (place != class.len).then_some(id_of(at, class.len));
        self.len -= 1;
        while self.packed.len() > 1 && self.packed.last().len == 0 {
            self.packed.pop();
        }
        moved
    }

    /// All blocks with their numbers and marks, the lowest first.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u8], &M)> {
        let large = self.large.iter_from(0);
        let large = large.map(|(number, (mark, block))| (LARGE | number, &**block, mark));
        let packed = self.packed.iter().enumerate().flat_map(|(at, class)| {
            let blocks = class.pages.iter().flat_map(|page| page.chunks_exact(class.stride));
            (0..)
                .zip(blocks.zip(class.marks.iter()))
                .map(move |(place, (block, mark))| (id_of(at, place), block, mark))
        });
        packed.chain(large)
    }

    /// Shows at most so many blocks' marks, from a number on, the lowest first. Returns the number to go on from,
    /// which is 0 after the last.
    pub fn walk(&self, from: u32, at_most: usize, mut visit: impl FnMut(u32, &M)) -> u32 {
        let mut left = at_most;
        if from & LARGE == 0 {
            let (first, mut place) = place_of(from);
            for (at, class) in self.packed.iter().enumerate().skip(first) {
                while let Some(mark) = class.marks.get(place) {
                    if left == 0 {
                        return id_of(at, place);
                    }
                    left -= 1;
                    visit(id_of(at, place), mark);
                    place += 1;
                }
                place = 0;
            }
        }
        for (number, (mark, _)) in self.large.iter_from(from & !LARGE) {
            if left == 0 {
                return LARGE | number;
            }
            left -= 1;
            visit(LARGE | number, mark);
        }
        0
    }

    /// All marks, to be changed in place.
    pub fn marks_mut(&mut self) -> impl Iterator<Item = &mut M> {
        let packed = self.packed.iter_mut().flat_map(|class| class.marks.iter_mut());
        packed.chain(self.large.values_mut().map(|(mark, _)| mark))
    }

    /// Bytes on the heap, in constant time.
    pub fn heap_bytes(&self) -> usize {
        let packed: usize = self.packed.iter().map(Class::heap_bytes).sum();
        packed + self.packed.heap_bytes() + self.large.heap_bytes() + self.large_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(usize),
        Replace(usize, usize),
        Remove(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let size = prop_oneof![8 => 0..300usize, 1 => 300..700usize, 1 => Just(64usize)];
        prop_oneof![
            4 => size.clone().prop_map(Op::Insert),
            1 => (any::<u16>(), size).prop_map(|(p, n)| Op::Replace(p as usize, n)),
            2 => any::<u16>().prop_map(|p| Op::Remove(p as usize)),
        ]
    }

    /// A mark that tells of the first bytes of a block.
    fn mark_of(block: &[u8]) -> u32 {
        block.iter().take(4).fold(block.len() as u32, |mark, byte| mark << 6 ^ u32::from(*byte))
    }

    fn remove(blocks: &mut BlockArena<u32>, model: &mut BTreeMap<u32, Vec<u8>>, id: u32) {
        let moved = blocks.remove(id);
        model.remove(&id);
        if let Some(from) = moved {
            let bytes = model.remove(&from).unwrap();
            model.insert(id, bytes);
        }
    }

    fn check(blocks: &BlockArena<u32>, model: &BTreeMap<u32, Vec<u8>>) {
        assert_eq!(blocks.len(), model.len());
        for (id, bytes) in model {
            assert_eq!(blocks.get(*id).map(|block| &block[..bytes.len()]), Some(&bytes[..]));
        }
        let ids: Vec<u32> = blocks.iter().map(|(id, ..)| id).collect();
        assert_eq!(ids.len(), model.len());
        assert!(ids.is_sorted());
        for (id, block, mark) in blocks.iter() {
            assert!(block.starts_with(&model[&id]));
            assert_eq!(Some(mark), blocks.mark(id));
            assert_eq!(*mark, mark_of(&model[&id]));
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(ops in prop::collection::vec(op(), 0..600), repeat in 1..4usize) {
            let mut blocks = BlockArena::<u32>::default();
            let mut model: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
            let mut step = 0u32;
            for op in std::iter::repeat_n(ops, repeat).flatten() {
                step += 1;
                let fill = |size: usize| step.to_le_bytes().into_iter().cycle().take(size).collect::<Vec<u8>>();
                let pick = |n: usize| model.keys().nth(n % model.len().max(1)).copied();
                match op {
                    Op::Insert(size) => {
                        let id = blocks.insert(&fill(size), mark_of(&fill(size)));
                        prop_assert!(model.insert(id, fill(size)).is_none());
                    }
                    Op::Replace(at, size) => {
                        let Some(id) = pick(at) else { continue };
                        if blocks.replace(id, &fill(size)) {
                            *blocks.mark_mut(id).unwrap() = mark_of(&fill(size));
                            model.insert(id, fill(size));
                        }
                    }
                    Op::Remove(at) => {
                        let Some(id) = pick(at) else { continue };
                        remove(&mut blocks, &mut model, id);
                    }
                }
                if step.is_multiple_of(64) {
                    check(&blocks, &model);
                }
            }
            check(&blocks, &model);
            check(&blocks.clone(), &model);
            while let Some((&id, _)) = model.first_key_value() {
                remove(&mut blocks, &mut model, id);
            }
            prop_assert_eq!((blocks.len(), blocks.heap_bytes()), (0, 0));
        }
    }

    #[test]
    fn packs_without_gaps_and_gives_pages_back() {
        let mut blocks = BlockArena::default();
        let mut ids: Vec<u32> = (0..100_000).map(|_| blocks.insert(&[7; 100], ())).collect();
        let full = blocks.heap_bytes();
        assert!(full < 100_000 * 106, "{full}");
        // Every other one goes: what stays is packed all the same.
        ids.sort_unstable();
        for id in ids.iter().take(50_000) {
            blocks.remove(*id);
        }
        assert!(blocks.heap_bytes() < full * 11 / 20, "{} of {full}", blocks.heap_bytes());
    }

    #[test]
    fn places_are_split_as_by_division() {
        for stride in (8..=LARGEST).step_by(8) {
            let class = Class::<u8>::new(stride);
            let pages = MOST_PLACES / class.in_page;
            let firsts = [0, 1, 2, pages / 2, pages - 1, pages].map(|page| page * class.in_page);
            let last = [MOST_PLACES - 1, MOST_PLACES];
            for place in
                firsts.into_iter().flat_map(|it| [it.saturating_sub(1), it, it + 1]).chain(last)
            {
                let split = (place / class.in_page, place % class.in_page);
                assert_eq!(
                    class.split(place),
                    (split.0 as usize, split.1 as usize),
                    "{stride} {place}"
                );
            }
        }
    }
}

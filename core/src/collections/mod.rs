//! Containers that grow and shrink a little at a time.
//!
//! A `Vec` or a hash map that doubles copies everything it holds at once; with a million members
//! that is a pause every client of the server feels. These move a bounded number of entries an
//! operation, and give memory back when their contents go:
//!
//! * [`Slab`]: entries under small stable numbers,
//! * [`Blocks`]: blocks of bytes, packed, under small numbers that removals change,
//! * [`HashIndex`]: from a hash to such a number, in the order of the hashes, and its [`Chart`],
//! * [`DueHeap`]: such numbers ordered by a moment in time.

mod blocks;
mod chart;
mod due_heap;
mod hash_index;
mod line_table;
mod name_hash;
mod near;
mod paged;
mod slab;

pub use blocks::Blocks;
pub use chart::Chart;
pub use due_heap::{DueHeap, Positions};
pub use hash_index::{HashIndex, Place};
pub use name_hash::{hash_of, NameHash, Print};
pub use slab::Slab;

/// The size of the allocation that serves a request of `bytes`: the size classes of jemalloc,
/// four to a doubling.
pub fn allocated(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        1..=8 => 8,
        9..=128 => bytes.next_multiple_of(16),
        _ => bytes.next_multiple_of((bytes - 1).next_power_of_two() / 8),
    }
}

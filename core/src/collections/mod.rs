//! Containers that grow and shrink a little at a time.
//!
//! A `Vec` or a hash map that doubles copies everything it holds at once; with a million members
//! that is a pause every client of the server feels. These move a bounded number of entries an
//! operation, and give memory back when their contents go:
//!
//! * [`Slab`]: entries under small stable numbers,
//! * [`BlockArena`]: blocks of bytes, packed, under small numbers that removals change,
//! * [`LinearHashIndex`]: from a hash to such a number, in the order of the hashes, and its [`IndexLayout`],
//! * [`IndexedHeap`]: such numbers ordered by a moment in time.

mod block_arena;
mod bucket_table;
mod index_layout;
mod indexed_heap;
mod linear_hash_index;
mod name_hash;
mod non_empty;
mod segmented_vec;
mod slab;

pub use block_arena::BlockArena;
pub use index_layout::IndexLayout;
pub use indexed_heap::{IndexedHeap, Positions};
pub use linear_hash_index::{LinearHashIndex, Place};
pub use name_hash::{Fingerprint, NameHash, hash_of};
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

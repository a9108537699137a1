//! Spaces as values of keys: opening and changing them, the data type's callbacks, moves of keys.

mod aux_data;
mod commit;
pub mod datatype;
mod digests;
pub mod key;
pub mod key_moves;
pub mod prefetch_cache;
pub mod space_value;

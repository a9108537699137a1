//! Where the sessions of a space are kept: a few in a row, many in [`Blocks`].
//!
//! Most spaces have a few, and there are many such spaces: the row is one allocation of just the bytes
//! of its records, one behind the other, and a number is a place in it. A removal lowers the
//! numbers of those behind by one.

use super::record::{Packed, Record};
use crate::collections::Blocks;

/// A record that is longer than this is not for a row: whoever comes or goes moves those behind.
const LARGEST_IN_ROW: usize = 8 << 10;

#[derive(Clone)]
pub enum Kept {
    Row(Box<[u8]>),
    Blocks(Box<Blocks>),
}

impl Default for Kept {
    fn default() -> Self {
        Kept::Row(Box::default())
    }
}

/// The records of a row. No record is empty, and an empty row has none.
fn in_row(row: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = row;
    std::iter::from_fn(move || {
        let (record, behind) = rest.split_at_checked(Record::of(rest).len())?;
        rest = behind;
        Some(record)
    })
}

/// Where in a row a record begins, and its length.
fn place_in(row: &[u8], id: u32) -> Option<(usize, usize)> {
    let before = in_row(row).take(id as usize).map(<[u8]>::len).sum();
    let length = in_row(row.get(before..)?).next()?.len();
    Some((before, length))
}

impl Kept {
    /// An empty one that is for many.
    pub fn for_many() -> Self {
        Kept::Blocks(Box::default())
    }

    /// Whether such a record can be one of a few.
    pub fn fits_row(record: Record<'_>) -> bool {
        record.short_len() <= LARGEST_IN_ROW
    }

    /// Number of sessions.
    pub fn len(&self) -> usize {
        match self {
            Kept::Row(row) => in_row(row).count(),
            Kept::Blocks(blocks) => blocks.len(),
        }
    }

    /// The bytes of a record, and possibly some more.
    pub fn get(&self, id: u32) -> Option<&[u8]> {
        match self {
            Kept::Blocks(blocks) => blocks.get(id),
            Kept::Row(row) => in_row(row).nth(id as usize),
        }
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut [u8]> {
        match self {
            Kept::Blocks(blocks) => blocks.get_mut(id),
            Kept::Row(row) => {
                let (begin, length) = place_in(row, id)?;
                row.get_mut(begin..begin + length)
            }
        }
    }

    /// Keeps a copy of a record, without its notes.
    pub fn insert(&mut self, record: Record<'_>) -> u32 {
        match self {
            Kept::Blocks(blocks) if record.is_long() => blocks.insert(record.block()),
            Kept::Blocks(blocks) => blocks.insert(Packed::long(record).read().block()),
            Kept::Row(row) => {
                let id = in_row(row).count() as u32;
                let mut bytes = std::mem::take(row).into_vec();
                bytes.reserve_exact(record.short_len());
                record.append_short(&mut bytes);
                *row = bytes.into();
                id
            }
        }
    }

    /// Changes a record where the new one, which is of the same kind, can be kept in the old one's
    /// place. Returns false, and does nothing, where it cannot.
    pub fn replace(&mut self, id: u32, record: Record<'_>) -> bool {
        match self {
            Kept::Blocks(blocks) => blocks.replace(id, record.block()),
            Kept::Row(row) => {
                let Some((begin, length)) = place_in(row, id) else { return false };
                let mut bytes = std::mem::take(row).into_vec();
                bytes.reserve_exact(record.len().saturating_sub(length));
                bytes.splice(begin..begin + length, record.block().iter().copied());
                *row = bytes.into();
                true
            }
        }
    }

    /// Takes a record away. Returns the number of the record that has `id` from now on instead of
    /// its own, if one of many has.
    pub fn remove(&mut self, id: u32) -> Option<u32> {
        match self {
            Kept::Blocks(blocks) => blocks.remove(id),
            Kept::Row(row) => {
                let (begin, length) = place_in(row, id)?;
                let mut bytes = std::mem::take(row).into_vec();
                bytes.drain(begin..begin + length);
                *row = bytes.into();
                None
            }
        }
    }

    /// All records with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let (row, blocks) = match self {
            Kept::Row(row) => (Some(row), None),
            Kept::Blocks(blocks) => (None, Some(blocks)),
        };
        let row = row.into_iter().flat_map(|row| (0..).zip(in_row(row)));
        row.chain(blocks.into_iter().flat_map(|blocks| blocks.iter()))
    }

    /// Does something to each record.
    pub fn for_each_mut(&mut self, mut change: impl FnMut(&mut [u8])) {
        match self {
            Kept::Blocks(blocks) => blocks.values_mut().for_each(change),
            Kept::Row(row) => {
                let mut rest = &mut **row;
                while let Some((record, behind)) = rest.split_at_mut_checked(Record::of(rest).len())
                {
                    change(record);
                    rest = behind;
                }
            }
        }
    }

    /// Bytes on the heap, in constant time.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Kept::Row(row) => super::allocated(row.len()),
            Kept::Blocks(blocks) => size_of::<Blocks>() + blocks.heap_bytes(),
        }
    }
}

//! Where the sessions of a space are kept: a few in a row, many in [`Blocks`].
//!
//! Most spaces have a few, and there are many such spaces: the row is one allocation of just the bytes
//! of its records, one behind the other, and a number is a place in it. A removal lowers the
//! numbers of those behind by one.

use super::record::{Lease, Packed, Record, RecordMut, NONE};
use super::Timestamp;
use crate::collections::Blocks;

/// A record that is longer than this is not for a row: whoever comes or goes moves those behind.
const LARGEST_IN_ROW: usize = 8 << 10;

/// What is kept of one of many beside its record: all that a heartbeat needs.
#[derive(Clone, Copy, Default)]
pub struct Mark {
    lease: Lease,
    /// By what the session is told from others without a look at its names: see [`crate::collections::print_of`].
    print: u64,
}

#[derive(Clone)]
pub enum Kept {
    Row(Box<[u8]>),
    Blocks(Box<Blocks<Mark>>),
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
        record.len() <= LARGEST_IN_ROW
    }

    /// Number of sessions.
    pub fn len(&self) -> usize {
        match self {
            Kept::Row(row) => in_row(row).count(),
            Kept::Blocks(blocks) => blocks.len(),
        }
    }

    pub fn get(&self, id: u32) -> Option<Record<'_>> {
        match self {
            Kept::Blocks(blocks) => {
                Some(Record::with_lease(blocks.get(id)?, blocks.mark(id)?.lease))
            }
            Kept::Row(row) => in_row(row).nth(id as usize).map(Record::of),
        }
    }

    /// A record whose notes are to be changed.
    pub fn get_mut(&mut self, id: u32) -> Option<RecordMut<'_>> {
        let bytes = match self {
            Kept::Blocks(blocks) => blocks.get_mut(id)?,
            Kept::Row(row) => {
                let (begin, length) = place_in(row, id)?;
                row.get_mut(begin..begin + length)?
            }
        };
        Some(RecordMut::of(bytes))
    }

    /// The lease of a record, which of one of many is not looked at.
    pub fn lease(&self, id: u32) -> Option<Lease> {
        match self {
            Kept::Blocks(blocks) => blocks.mark(id).map(|mark| mark.lease),
            Kept::Row(_) => self.get(id).map(Record::lease),
        }
    }

    pub fn set_lease(&mut self, id: u32, lease: Lease) {
        if let Kept::Blocks(blocks) = self {
            if let Some(mark) = blocks.mark_mut(id) {
                mark.lease = lease;
            }
        } else if let Some(mut record) = self.get_mut(id) {
            record.set_lease(lease);
        }
    }

    /// Whether it is the one of many that has this print.
    pub fn has_print(&self, id: u32, print: u64) -> bool {
        match self {
            Kept::Blocks(blocks) => blocks.mark(id).is_some_and(|mark| mark.print == print),
            Kept::Row(_) => false,
        }
    }

    /// What is kept of one of many beside its record, for who can have it brought near.
    pub fn mark(&self, id: u32) -> Option<&Mark> {
        match self {
            Kept::Blocks(blocks) => blocks.mark(id),
            Kept::Row(_) => None,
        }
    }

    /// Keeps a copy of a record whose user is here since then, which of one of many is noted elsewhere.
    /// `print` is asked for where there are many.
    pub fn insert(
        &mut self,
        record: Record<'_>,
        since: Timestamp,
        print: impl FnOnce() -> u64,
    ) -> u32 {
        match self {
            Kept::Blocks(blocks) => {
                let plain = Packed::from(record);
                let mark = Mark { lease: record.lease(), print: print() };
                let id = blocks.insert(plain.read().block(), mark);
                if let Some(bytes) = blocks.get_mut(id) {
                    RecordMut::of(bytes).note(NONE, NONE);
                }
                id
            }
            Kept::Row(row) => {
                let id = in_row(row).count() as u32;
                let mut bytes = std::mem::take(row).into_vec();
                bytes.reserve_exact(record.len() + size_of::<Timestamp>());
                record.append_to(&mut bytes, since);
                *row = bytes.into();
                id
            }
        }
    }

    /// Changes a record where the new one, of the same names, can be kept in the old one's place. Notes
    /// of one of many stay. Returns false, and does nothing, where it cannot.
    pub fn replace(&mut self, id: u32, record: Record<'_>) -> bool {
        let Some(old) = self.get(id) else { return false };
        let (group, filed) = (old.group(), old.filed());
        match self {
            Kept::Blocks(blocks) => {
                if !blocks.replace(id, record.block()) {
                    return false;
                }
                if let Some(bytes) = blocks.get_mut(id) {
                    RecordMut::of(bytes).note(group, filed);
                }
            }
            Kept::Row(row) => {
                let Some((begin, length)) = place_in(row, id) else { return false };
                let mut bytes = std::mem::take(row).into_vec();
                bytes.reserve_exact(record.len().saturating_sub(length));
                bytes.splice(begin..begin + length, record.block().iter().copied());
                *row = bytes.into();
            }
        }
        true
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
    pub fn iter(&self) -> impl Iterator<Item = (u32, Record<'_>)> {
        let (row, blocks) = match self {
            Kept::Row(row) => (Some(row), None),
            Kept::Blocks(blocks) => (None, Some(blocks)),
        };
        let row = row.into_iter().flat_map(|row| (0..).zip(in_row(row).map(Record::of)));
        let blocks = blocks.into_iter().flat_map(|blocks| blocks.iter());
        row.chain(blocks.map(|(id, bytes, mark)| (id, Record::with_lease(bytes, mark.lease))))
    }

    /// Changes the lease of each record.
    pub fn change_leases(&mut self, change: impl Fn(Lease) -> Lease) {
        match self {
            Kept::Blocks(blocks) => {
                blocks.marks_mut().for_each(|mark| mark.lease = change(mark.lease));
            }
            Kept::Row(row) => {
                let mut rest = &mut **row;
                while let Some((bytes, behind)) = rest.split_at_mut_checked(Record::of(rest).len())
                {
                    let mut record = RecordMut::of(bytes);
                    record.set_lease(change(record.read().lease()));
                    rest = behind;
                }
            }
        }
    }

    /// Bytes on the heap, in constant time.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Kept::Row(row) => super::allocated(row.len()),
            Kept::Blocks(blocks) => size_of::<Blocks<Mark>>() + blocks.heap_bytes(),
        }
    }
}

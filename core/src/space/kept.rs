//! Where the sessions of a space are kept: a few in a row, many in [`Blocks`].
//!
//! Most spaces have a few, and there are many such spaces: the row is one allocation of just the bytes
//! of its records, one behind the other, and a number is where it begins. So whatever
//! changes the size of one changes the numbers of those behind.

use super::record::{Lease, Packed, Record, RecordMut, NONE};
use super::Timestamp;
use crate::collections::{Blocks, Print};

/// A record that is longer than this is not for a row: whoever comes or goes moves those behind.
const LARGEST_IN_ROW: usize = 8 << 10;

/// What is kept of one of many beside its record: all that a heartbeat needs.
#[derive(Clone, Copy, Default)]
pub struct Mark {
    lease: Lease,
    /// By what it is told from others without a look at its names.
    print: Print,
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

/// The records of a row with their numbers. No record is empty, and an empty row has none.
fn in_row(row: &[u8]) -> impl Iterator<Item = (u32, Record<'_>)> {
    let (mut rest, mut begin) = (row, 0);
    std::iter::from_fn(move || {
        let length = Record::of(rest).byte_len();
        let (record, behind) = rest.split_at_checked(length)?;
        let number = begin;
        (rest, begin) = (behind, begin + length as u32);
        Some((number, Record::of(record)))
    })
}

/// The bytes that the record of this number has in a row.
fn bytes_of(row: &[u8], id: u32) -> Option<std::ops::Range<usize>> {
    let begin = id as usize;
    let end = begin + Record::of(row.get(begin..)?).byte_len();
    (end <= row.len()).then_some(begin..end)
}

impl Kept {
    /// An empty one that is for many.
    pub fn for_many() -> Self {
        Kept::Blocks(Box::default())
    }

    /// Whether such a record can be one of a few.
    pub fn fits_row(record: Record<'_>) -> bool {
        record.byte_len() <= LARGEST_IN_ROW
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
            Kept::Row(row) => row.get(id as usize..).map(Record::of),
        }
    }

    /// A record whose notes are to be changed.
    pub fn get_mut(&mut self, id: u32) -> Option<RecordMut<'_>> {
        let bytes = match self {
            Kept::Blocks(blocks) => blocks.get_mut(id)?,
            Kept::Row(row) => row.get_mut(id as usize..)?,
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

    /// Writes a lease. Returns the one that there was.
    pub fn set_lease(&mut self, id: u32, lease: Lease) -> Option<Lease> {
        if let Kept::Blocks(blocks) = self {
            let mark = blocks.mark_mut(id)?;
            return Some(std::mem::replace(&mut mark.lease, lease));
        }
        let mut record = self.get_mut(id)?;
        let before = record.read().lease();
        record.set_lease(lease);
        Some(before)
    }

    /// Where that begins what leads to the marks, or the first record of a row.
    pub fn head(&self) -> *const u8 {
        match self {
            Kept::Row(row) => row.as_ptr(),
            Kept::Blocks(blocks) => std::ptr::from_ref(&**blocks).cast(),
        }
    }

    /// The hashes of the names of one of many.
    pub fn print(&self, id: u32) -> Option<Print> {
        self.mark(id).map(|mark| mark.print)
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
        print: impl FnOnce() -> Print,
    ) -> u32 {
        match self {
            Kept::Blocks(blocks) => {
                let copy = (!record.is_plain()).then(|| Packed::from(record));
                let plain = copy.as_ref().map_or(record, Packed::read);
                let mark = Mark { lease: record.lease().plain(), print: print() };
                let id = blocks.insert(plain.block(), mark);
                if let Some(bytes) = blocks.get_mut(id) {
                    RecordMut::of(bytes).note(NONE, NONE);
                }
                id
            }
            Kept::Row(row) => {
                let id = row.len() as u32;
                let mut bytes = std::mem::take(row).into_vec();
                bytes.reserve_exact(record.byte_len() + size_of::<Timestamp>());
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
                let Some(place) = bytes_of(row, id) else { return false };
                let mut bytes = std::mem::take(row).into_vec();
                bytes.reserve_exact(record.byte_len().saturating_sub(place.len()));
                bytes.splice(place, record.block().iter().copied());
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
                let place = bytes_of(row, id)?;
                let mut bytes = std::mem::take(row).into_vec();
                bytes.drain(place);
                *row = bytes.into();
                None
            }
        }
    }

    /// The records of a row with their numbers; none of many.
    pub fn row(&self) -> impl Iterator<Item = (u32, Record<'_>)> {
        in_row(match self {
            Kept::Row(row) => row,
            Kept::Blocks(_) => &[],
        })
    }

    /// All records with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Record<'_>)> {
        let (row, blocks) = match self {
            Kept::Row(row) => (Some(row), None),
            Kept::Blocks(blocks) => (None, Some(blocks)),
        };
        let row = row.into_iter().flat_map(|row| in_row(row));
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
                while let Some((bytes, behind)) =
                    rest.split_at_mut_checked(Record::of(rest).byte_len())
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

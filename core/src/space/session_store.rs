//! Where the sessions of a space are kept: a few in a row, many in [`BlockArena`].
//!
//! Most spaces have a few, and there are many such spaces: the row is one allocation of just the bytes
//! of its records, one behind the other, and a number is where it begins. So whatever
//! changes the size of one changes the numbers of those behind.

use super::Timestamp;
use super::lease::Lease;
use super::record::{NONE, SessionRecord, SessionRecordBuf, SessionRecordMut};
use crate::collections::{BlockArena, Fingerprint};

/// A record that is longer than this is not for a row: whoever comes or goes moves those behind.
const LARGEST_IN_ROW: usize = 8 << 10;

/// What is kept of one of many beside its record: all that a heartbeat needs.
#[derive(Clone, Copy, Default)]
pub struct SessionHeader {
    lease: Lease,
    /// By what it is told from others without a look at its names.
    fingerprint: Fingerprint,
}

#[derive(Clone)]
pub enum SessionStore {
    Compact(Box<[u8]>),
    Indexed(Box<BlockArena<SessionHeader>>),
}

impl Default for SessionStore {
    fn default() -> Self {
        SessionStore::Compact(Box::default())
    }
}

/// The records of a row with their numbers. No record is empty, and an empty row has none.
fn in_row(row: &[u8]) -> impl Iterator<Item = (u32, SessionRecord<'_>)> {
    let (mut rest, mut begin) = (row, 0);
    std::iter::from_fn(move || {
        let length = SessionRecord::of(rest).byte_len();
        let (record, behind) = rest.split_at_checked(length)?;
        let number = begin;
        (rest, begin) = (behind, begin + length as u32);
        Some((number, SessionRecord::of(record)))
    })
}

/// The bytes that the record of this number has in a row.
fn bytes_of(row: &[u8], id: u32) -> Option<std::ops::Range<usize>> {
    let begin = id as usize;
    let end = begin + SessionRecord::of(row.get(begin..)?).byte_len();
    (end <= row.len()).then_some(begin..end)
}

impl SessionStore {
    /// An empty one that is for many.
    pub fn for_many() -> Self {
        SessionStore::Indexed(Box::default())
    }

    /// Whether such a record can be one of a few.
    pub fn fits_row(record: SessionRecord<'_>) -> bool {
        record.byte_len() <= LARGEST_IN_ROW
    }

    /// Number of sessions.
    pub fn len(&self) -> usize {
        match self {
            SessionStore::Compact(row) => in_row(row).count(),
            SessionStore::Indexed(blocks) => blocks.len(),
        }
    }

    pub fn get(&self, id: u32) -> Option<SessionRecord<'_>> {
        match self {
            SessionStore::Indexed(blocks) => {
                Some(SessionRecord::with_lease(blocks.get(id)?, blocks.mark(id)?.lease))
            }
            SessionStore::Compact(row) => row.get(id as usize..).map(SessionRecord::of),
        }
    }

    /// A record whose notes are to be changed.
    pub fn get_mut(&mut self, id: u32) -> Option<SessionRecordMut<'_>> {
        let bytes = match self {
            SessionStore::Indexed(blocks) => blocks.get_mut(id)?,
            SessionStore::Compact(row) => row.get_mut(id as usize..)?,
        };
        Some(SessionRecordMut::of(bytes))
    }

    /// The lease of a record, which of one of many is not looked at.
    pub fn lease(&self, id: u32) -> Option<Lease> {
        match self {
            SessionStore::Indexed(blocks) => blocks.mark(id).map(|mark| mark.lease),
            SessionStore::Compact(_) => self.get(id).map(SessionRecord::lease),
        }
    }

    /// Writes a lease. Returns the one that there was.
    pub fn set_lease(&mut self, id: u32, lease: Lease) -> Option<Lease> {
        if let SessionStore::Indexed(blocks) = self {
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
            SessionStore::Compact(row) => row.as_ptr(),
            SessionStore::Indexed(blocks) => std::ptr::from_ref(&**blocks).cast(),
        }
    }

    /// The hashes of the names of one of many.
    pub fn fingerprint(&self, id: u32) -> Option<Fingerprint> {
        self.mark(id).map(|mark| mark.fingerprint)
    }

    /// What is kept of one of many beside its record, for who can have it brought near.
    pub fn mark(&self, id: u32) -> Option<&SessionHeader> {
        match self {
            SessionStore::Indexed(blocks) => blocks.mark(id),
            SessionStore::Compact(_) => None,
        }
    }

    /// Keeps a copy of a record whose user is here since then, which of one of many is noted elsewhere.
    /// `fingerprint` is asked for where there are many.
    pub fn insert(
        &mut self,
        record: SessionRecord<'_>,
        since: Timestamp,
        fingerprint: impl FnOnce() -> Fingerprint,
    ) -> u32 {
        match self {
            SessionStore::Indexed(blocks) => {
                let copy = (!record.is_plain()).then(|| SessionRecordBuf::from(record));
                let plain = copy.as_ref().map_or(record, SessionRecordBuf::read);
                let mark =
                    SessionHeader { lease: record.lease().plain(), fingerprint: fingerprint() };
                let id = blocks.insert(plain.block(), mark);
                if let Some(bytes) = blocks.get_mut(id) {
                    SessionRecordMut::of(bytes).note(NONE, NONE);
                }
                id
            }
            SessionStore::Compact(row) => {
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
    pub fn replace(&mut self, id: u32, record: SessionRecord<'_>) -> bool {
        let Some(old) = self.get(id) else { return false };
        let (group, heap_slot) = (old.group(), old.heap_slot());
        match self {
            SessionStore::Indexed(blocks) => {
                if !blocks.replace(id, record.block()) {
                    return false;
                }
                if let Some(bytes) = blocks.get_mut(id) {
                    SessionRecordMut::of(bytes).note(group, heap_slot);
                }
            }
            SessionStore::Compact(row) => {
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
            SessionStore::Indexed(blocks) => blocks.remove(id),
            SessionStore::Compact(row) => {
                let place = bytes_of(row, id)?;
                let mut bytes = std::mem::take(row).into_vec();
                bytes.drain(place);
                *row = bytes.into();
                None
            }
        }
    }

    /// The records of a row with their numbers; none of many.
    pub fn row(&self) -> impl Iterator<Item = (u32, SessionRecord<'_>)> {
        in_row(match self {
            SessionStore::Compact(row) => row,
            SessionStore::Indexed(_) => &[],
        })
    }

    /// All records with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, SessionRecord<'_>)> {
        let (row, blocks) = match self {
            SessionStore::Compact(row) => (Some(row), None),
            SessionStore::Indexed(blocks) => (None, Some(blocks)),
        };
        let row = row.into_iter().flat_map(|row| in_row(row));
        let blocks = blocks.into_iter().flat_map(|blocks| blocks.iter());
        row.chain(
            blocks.map(|(id, bytes, mark)| (id, SessionRecord::with_lease(bytes, mark.lease))),
        )
    }

    /// Shows the leases of at most so many sessions, from a number on. Returns the number to go on from, which is 0
    /// after the last.
    pub fn walk(&self, from: u32, at_most: usize, mut visit: impl FnMut(u32, Lease)) -> u32 {
        match self {
            SessionStore::Compact(row) => {
                in_row(row).for_each(|(id, record)| visit(id, record.lease()));
                0
            }
            SessionStore::Indexed(blocks) => {
                blocks.walk(from, at_most, |id, mark| visit(id, mark.lease))
            }
        }
    }

    /// Changes the lease of each record.
    pub fn change_leases(&mut self, change: impl Fn(Lease) -> Lease) {
        match self {
            SessionStore::Indexed(blocks) => {
                blocks.marks_mut().for_each(|mark| mark.lease = change(mark.lease));
            }
            SessionStore::Compact(row) => {
                let mut rest = &mut **row;
                while let Some((bytes, behind)) =
                    rest.split_at_mut_checked(SessionRecord::of(rest).byte_len())
                {
                    let mut record = SessionRecordMut::of(bytes);
                    record.set_lease(change(record.read().lease()));
                    rest = behind;
                }
            }
        }
    }

    /// Bytes on the heap, in constant time.
    pub fn heap_bytes(&self) -> usize {
        match self {
            SessionStore::Compact(row) => super::allocated(row.len()),
            SessionStore::Indexed(blocks) => {
                size_of::<BlockArena<SessionHeader>>() + blocks.heap_bytes()
            }
        }
    }
}

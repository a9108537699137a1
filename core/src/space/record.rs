//! One session, packed into one block of bytes.
//!
//! ```text
//! 0                   8             14       16          18
//! lease u64           joined_at u48 user u16 session u16 | since u64 | user | session | late u16 | meta u32 | meta
//! group u32 heap_slot u32
//! ```
//!
//! Integers are little endian. The low bits of `user` and `session` are lengths in bytes, and the high
//! ones say what else there is: [`META`] (a length and a JSON text), [`LATE`] (what `joined_at` has
//! beyond 48 bits, from the year 10889 on), [`SINCE`].
//!
//! A record of one of many is [`INDEXED`]: its lease is kept elsewhere, and the notes of
//! [`super::members`] are in the lease's place. One of a few that came when its user was here already,
//! and is the oldest by now, has in `since` when the user came.

use super::lease::Lease;
use super::{Meta, Timestamp};

const LEASE: usize = 0;
const GROUP: usize = 0;
const HEAP_SLOT: usize = 4;
const JOINED_AT: usize = 8;
const USER: usize = 14;
/// Where the names begin, or what is in front of them.
const NAMES: usize = 18;

/// Of `user` and of `session`: the length.
const LENGTH: u16 = (1 << 10) - 1;
const _: () = assert!(super::MAX_NAME_BYTES <= LENGTH as usize);
/// Of `user`: there is metadata.
const META: u16 = 1 << 14;
/// Of `user`: `joined_at` has more than 48 bits.
const LATE: u16 = 1 << 13;
/// Of `user`: there are notes in the place of the lease.
const INDEXED: u16 = 1 << 12;
/// Of `user`: it is told since when the user is here.
const SINCE: u16 = 1 << 11;

const JOINED_BITS: u32 = 48;

/// No group, or not in a heap.
pub const NONE: u32 = u32::MAX;

fn bytes_at<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    block.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

/// Where things are in a record, as its lengths and flags say.
#[derive(Clone, Copy)]
struct Lengths {
    user: u16,
    session: u16,
}

impl Lengths {
    /// 1 where there is the flag.
    fn has(self, flag: u16) -> usize {
        usize::from(self.user & flag != 0)
    }

    fn names(self) -> usize {
        NAMES + size_of::<Timestamp>() * self.has(SINCE)
    }

    fn user_end(self) -> usize {
        self.names() + usize::from(self.user & LENGTH)
    }

    fn session_end(self) -> usize {
        self.user_end() + usize::from(self.session & LENGTH)
    }

    fn fixed_end(self) -> usize {
        self.session_end() + size_of::<u16>() * self.has(LATE)
    }
}

/// A session: whose it is, its name, until when it is live, since when, with what metadata.
#[derive(Clone, Copy)]
pub struct SessionRecord<'a> {
    bytes: &'a [u8],
    lease: Lease,
    owner: Option<&'a str>,
}

impl<'a> SessionRecord<'a> {
    /// What a `SessionRecordBuf` was kept as; there may be bytes behind it.
    pub fn of(bytes: &'a [u8]) -> Self {
        SessionRecord::with_lease(bytes, Lease::of_word(u64::from_le_bytes(bytes_at(bytes, LEASE))))
    }

    /// One that is noted, with the lease that is kept elsewhere.
    pub fn with_lease(bytes: &'a [u8], lease: Lease) -> Self {
        SessionRecord { bytes, lease, owner: None }
    }

    /// The session as a reader sees it, with the lease of its owner.
    pub fn owned_by(self, owner: &'a str, until: Timestamp) -> Self {
        SessionRecord { lease: Lease::new(until, false), owner: Some(owner), ..self }
    }

    /// The name of the owner, of a session that a reader sees.
    pub fn owner(self) -> Option<&'a str> {
        self.owner
    }

    /// The block, and nothing behind it.
    pub fn block(self) -> &'a [u8] {
        self.bytes.get(..self.byte_len()).unwrap_or_default()
    }

    /// The first cache lines that the block is in.
    pub fn lines(self) -> impl Iterator<Item = *const u8> + 'a {
        const LINE: usize = 64;
        const MOST: usize = 4;
        self.bytes.chunks(LINE).take(MOST).map(<[u8]>::as_ptr)
    }

    /// Length of the block.
    pub fn byte_len(self) -> usize {
        let fixed = self.fixed_end();
        fixed + if self.has(META) { size_of::<u32>() + self.u32_at(fixed) as usize } else { 0 }
    }

    fn u16_at(self, at: usize) -> u16 {
        u16::from_le_bytes(bytes_at(self.bytes, at))
    }

    fn u32_at(self, at: usize) -> u32 {
        u32::from_le_bytes(bytes_at(self.bytes, at))
    }

    fn u64_at(self, at: usize) -> u64 {
        u64::from_le_bytes(bytes_at(self.bytes, at))
    }

    /// `user`, and `session` behind it.
    fn lengths(self) -> Lengths {
        let [user_low, user_high, session_low, session_high] = bytes_at(self.bytes, USER);
        Lengths {
            user: u16::from_le_bytes([user_low, user_high]),
            session: u16::from_le_bytes([session_low, session_high]),
        }
    }

    fn has(self, flag: u16) -> bool {
        self.lengths().user & flag != 0
    }

    fn names(self) -> usize {
        self.lengths().names()
    }

    fn user_end(self) -> usize {
        self.lengths().user_end()
    }

    fn session_end(self) -> usize {
        self.lengths().session_end()
    }

    /// The end of everything but metadata.
    fn fixed_end(self) -> usize {
        self.lengths().fixed_end()
    }

    pub fn lease(self) -> Lease {
        self.lease
    }

    pub fn joined_at(self) -> Timestamp {
        let low = self.u64_at(JOINED_AT) & ((1 << JOINED_BITS) - 1);
        let high = if self.has(LATE) { self.u16_at(self.session_end()) } else { 0 };
        low | u64::from(high) << JOINED_BITS
    }

    /// Whether it is as a `SessionRecordBuf` is that tells nothing of its user.
    pub fn is_plain(self) -> bool {
        !self.has(INDEXED) && !self.has(SINCE)
    }

    /// Since when the user of an anchor of a few is here.
    pub fn since(self) -> Timestamp {
        if self.has(SINCE) { self.u64_at(NAMES) } else { self.joined_at() }
    }

    /// The user's group; `NONE` also where there are no groups.
    pub fn group(self) -> u32 {
        if self.has(INDEXED) { self.u32_at(GROUP) } else { NONE }
    }

    /// Where in the order by lease: a position in the heap, or a slot of a bucket. Without meaning while
    /// there is no order.
    pub fn heap_slot(self) -> u32 {
        if self.has(INDEXED) { self.u32_at(HEAP_SLOT) } else { NONE }
    }

    pub fn user(self) -> &'a [u8] {
        self.bytes.get(self.names()..self.user_end()).unwrap_or_default()
    }

    pub fn session(self) -> &'a [u8] {
        self.bytes.get(self.user_end()..self.session_end()).unwrap_or_default()
    }

    pub fn meta(self) -> Option<&'a [u8]> {
        let begin = self.fixed_end() + size_of::<u32>();
        self.bytes.get(begin..self.byte_len()).filter(|_| self.has(META))
    }

    /// Whether it is this session of this user.
    pub fn is(self, user: &[u8], session: &[u8]) -> bool {
        self.user() == user && self.session() == session
    }

    /// Appends it as one of a few whose user is here since then: as a rule not later than it is, but a
    /// clock can be put back.
    pub fn append_to(self, to: &mut Vec<u8>, since: Timestamp) {
        let at = to.len();
        let block = self.block();
        to.extend_from_slice(block.get(..NAMES).unwrap_or_default());
        if since != self.joined_at() {
            to.extend_from_slice(&since.to_le_bytes());
        }
        to.extend_from_slice(block.get(self.names()..).unwrap_or_default());
        let mut copy = SessionRecordMut(to.get_mut(at..).unwrap_or_default());
        copy.set_flag(INDEXED, false);
        copy.set_flag(SINCE, since != self.joined_at());
        copy.set_lease(self.lease.plain());
    }
}

/// A record whose fields of fixed size are to be changed in place.
pub struct SessionRecordMut<'a>(&'a mut [u8]);

impl<'a> SessionRecordMut<'a> {
    pub fn of(bytes: &'a mut [u8]) -> Self {
        SessionRecordMut(bytes)
    }

    pub fn read(&self) -> SessionRecord<'_> {
        SessionRecord::of(self.0)
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn set_flag(&mut self, flag: u16, to: bool) {
        let others = self.read().u16_at(USER) & !flag;
        self.write(USER, &(others | if to { flag } else { 0 }).to_le_bytes());
    }

    /// Of one that is not noted.
    pub fn set_lease(&mut self, lease: Lease) {
        self.write(LEASE, &lease.word().to_le_bytes());
    }

    /// Puts notes in the place of the lease.
    pub fn note(&mut self, group: u32, heap_slot: u32) {
        self.set_flag(INDEXED, true);
        self.set_group(group);
        self.set_heap_slot(heap_slot);
    }

    /// One that is not noted has no group.
    pub fn set_group(&mut self, group: u32) {
        if self.read().has(INDEXED) {
            self.write(GROUP, &group.to_le_bytes());
        }
    }

    /// Nor is it in a heap.
    pub fn set_heap_slot(&mut self, heap_slot: u32) {
        if self.read().has(INDEXED) {
            self.write(HEAP_SLOT, &heap_slot.to_le_bytes());
        }
    }
}

/// A record by itself, on its way into a space or taken out of it: with its lease, and not noted.
pub struct SessionRecordBuf(Vec<u8>);

impl SessionRecordBuf {
    /// Names are at most [`super::MAX_NAME_BYTES`] long and metadata is shorter than 4 GiB, which
    /// the callers check.
    pub fn new(user: &str, session: &str, lease: Lease, joined_at: Timestamp, meta: Meta) -> Self {
        let of_meta = meta.map_or(0, |meta| size_of::<u32>() + meta.len());
        let late = (joined_at >> JOINED_BITS) as u16;
        let names = user.len() + session.len();
        let mut bytes = Vec::with_capacity(NAMES + names + size_of::<u16>() + of_meta);
        let flags = if late > 0 { LATE } else { 0 };
        bytes.extend_from_slice(&lease.word().to_le_bytes());
        bytes
            .extend_from_slice(joined_at.to_le_bytes().get(..USER - JOINED_AT).unwrap_or_default());
        bytes.extend_from_slice(&(user.len() as u16 & LENGTH | flags).to_le_bytes());
        bytes.extend_from_slice(&(session.len() as u16 & LENGTH).to_le_bytes());
        bytes.extend_from_slice(user.as_bytes());
        bytes.extend_from_slice(session.as_bytes());
        if late > 0 {
            bytes.extend_from_slice(&late.to_le_bytes());
        }
        let mut packed = SessionRecordBuf(bytes);
        packed.append_meta(meta);
        packed
    }

    fn append_meta(&mut self, meta: Meta) {
        SessionRecordMut(&mut self.0).set_flag(META, meta.is_some());
        if let Some(meta) = meta {
            self.0.extend_from_slice(&(meta.len() as u32).to_le_bytes());
            self.0.extend_from_slice(meta.as_bytes());
        }
    }

    /// A copy.
    pub fn from(record: SessionRecord<'_>) -> Self {
        SessionRecordBuf::with_since(record, record.joined_at())
    }

    /// A copy that tells since when the user is here.
    pub fn with_since(record: SessionRecord<'_>, since: Timestamp) -> Self {
        let mut bytes = Vec::with_capacity(record.byte_len() + size_of::<Timestamp>());
        record.append_to(&mut bytes, since);
        SessionRecordBuf(bytes)
    }

    /// A copy with other metadata.
    pub fn with_meta(record: SessionRecord<'_>, meta: Meta) -> Self {
        let mut packed = SessionRecordBuf::with_since(record, record.since());
        packed.0.truncate(packed.read().fixed_end());
        packed.append_meta(meta);
        packed
    }

    pub fn read(&self) -> SessionRecord<'_> {
        SessionRecord::of(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn moment() -> impl Strategy<Value = Timestamp> {
        prop_oneof![
            any::<u64>(),
            0..1u64 << 50,
            Just((1 << JOINED_BITS) - 1),
            Just(1 << JOINED_BITS)
        ]
    }

    proptest! {
        #[test]
        fn keeps_what_it_is_given(
            user in "\\PC{1,128}", session in "\\PC{0,128}", until in 0..=super::super::MAX_TIMESTAMP,
            joined_at in moment(),
            meta in prop::option::of("[0-9]{1,300}"), later in prop::option::of("\"[a-z]{1,30}\""),
            lingering: bool, group: u32, heap_slot: u32, behind in 0..9usize,
            since in moment(),
        ) {
            let lease = Lease::new(until, lingering);
            let packed = SessionRecordBuf::new(&user, &session, lease, joined_at, meta.as_deref());
            prop_assert_eq!(packed.read().meta(), meta.as_deref().map(str::as_bytes));
            let check = |mut block: Vec<u8>, elsewhere: Option<Lease>, group, heap_slot| {
                let whole = block.len();
                block.resize(whole + behind, 0xff);
                let record = match elsewhere {
                    Some(lease) => SessionRecord::with_lease(&block, lease),
                    None => SessionRecord::of(&block),
                };
                prop_assert_eq!(record.block().len(), whole);
                prop_assert!(record.is(user.as_bytes(), session.as_bytes()));
                prop_assert_eq!(record.user(), user.as_bytes());
                prop_assert_eq!(record.session(), session.as_bytes());
                prop_assert_eq!((record.lease().until(), record.lease().is_lingering()), (until, lingering));
                prop_assert_eq!(record.joined_at(), joined_at);
                prop_assert_eq!((record.group(), record.heap_slot()), (group, heap_slot));
                prop_assert_eq!(record.meta(), later.as_deref().map(str::as_bytes));
                Ok(())
            };
            let plain = SessionRecordBuf::with_meta(packed.read(), later.as_deref());
            check(plain.0.clone(), None, NONE, NONE)?;
            let mut few = SessionRecordBuf::with_since(plain.read(), since).0;
            SessionRecordMut::of(&mut few).set_group(group);
            SessionRecordMut::of(&mut few).set_heap_slot(heap_slot);
            check(few.clone(), None, NONE, NONE)?;
            prop_assert_eq!(SessionRecord::of(&few).since(), since);
            let again = SessionRecordBuf::with_meta(SessionRecord::of(&few), later.as_deref());
            prop_assert_eq!(&again.0, &few);
            let mut many = plain.0.clone();
            SessionRecordMut::of(&mut many).note(NONE, NONE);
            check(many.clone(), Some(lease), NONE, NONE)?;
            SessionRecordMut::of(&mut many).set_group(group);
            SessionRecordMut::of(&mut many).set_heap_slot(heap_slot);
            check(many.clone(), Some(lease), group, heap_slot)?;
            prop_assert_eq!(&SessionRecordBuf::from(SessionRecord::of(&few)).0, &plain.0);
            prop_assert_eq!(&SessionRecordBuf::from(SessionRecord::with_lease(&many, lease)).0, &plain.0);
        }
    }
}

//! One session, packed into one block of bytes.
//!
//! ```text
//! 0        8            16        20        24       26          28        32
//! lease u64 joined_at u64 group u32 filed u32 user u16 session u16 meta u32 | user | session | meta
//! ```
//!
//! Integers are little endian; `user`, `session` and `meta` are lengths in bytes, the top bit of
//! `user` says that the session is lingering. No JSON text is empty, so no metadata means none.
//! `group` and `filed` are the notes of [`super::members`]. A heartbeat compares the names and
//! writes the lease, all on one or two cache lines.

use super::{Text, Timestamp};

const LEASE: usize = 0;
const JOINED_AT: usize = 8;
const GROUP: usize = 16;
const FILED: usize = 20;
const USER_LEN: usize = 24;
const SESSION_LEN: usize = 26;
const META_LEN: usize = 28;
const NAMES: usize = 32;
const LINGERING: u16 = 1 << 15;

/// No group, or not filed.
pub const NONE: u32 = u32::MAX;

fn bytes_at<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    block.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

/// A session: whose it is, its name, until when it is live, since when, with what metadata.
#[derive(Clone, Copy)]
pub struct Record<'a>(&'a [u8]);

impl<'a> Record<'a> {
    /// What a [`Packed`] was kept as; there may be bytes behind it.
    pub fn of(block: &'a [u8]) -> Self {
        Record(block)
    }

    /// The block, and nothing behind it.
    pub fn block(self) -> &'a [u8] {
        self.0.get(..self.session_end() + self.meta_len()).unwrap_or_default()
    }

    fn u16_at(self, at: usize) -> u16 {
        u16::from_le_bytes(bytes_at(self.0, at))
    }

    fn u32_at(self, at: usize) -> u32 {
        u32::from_le_bytes(bytes_at(self.0, at))
    }

    fn u64_at(self, at: usize) -> u64 {
        u64::from_le_bytes(bytes_at(self.0, at))
    }

    fn user_len(self) -> usize {
        usize::from(self.u16_at(USER_LEN) & !LINGERING)
    }

    fn session_end(self) -> usize {
        NAMES + self.user_len() + usize::from(self.u16_at(SESSION_LEN))
    }

    fn meta_len(self) -> usize {
        self.u32_at(META_LEN) as usize
    }

    pub fn lease(self) -> Timestamp {
        self.u64_at(LEASE)
    }

    /// Live at `now`: the lease is later than that.
    pub fn is_live(self, now: Timestamp) -> bool {
        self.lease() > now
    }

    pub fn joined_at(self) -> Timestamp {
        self.u64_at(JOINED_AT)
    }

    /// The user's group, or [`NONE`].
    pub fn group(self) -> u32 {
        self.u32_at(GROUP)
    }

    /// Where in the order by lease; without meaning while there is no order.
    pub fn filed(self) -> u32 {
        self.u32_at(FILED)
    }

    /// Whether the session was ended with a linger: if its lease runs out now, that is not a
    /// timeout but what was asked for.
    pub fn is_lingering(self) -> bool {
        self.u16_at(USER_LEN) & LINGERING != 0
    }

    pub fn user(self) -> &'a [u8] {
        self.0.get(NAMES..NAMES + self.user_len()).unwrap_or_default()
    }

    pub fn session(self) -> &'a [u8] {
        self.0.get(NAMES + self.user_len()..self.session_end()).unwrap_or_default()
    }

    pub fn meta(self) -> Option<&'a [u8]> {
        let end = self.session_end();
        self.0.get(end..end + self.meta_len()).filter(|meta| !meta.is_empty())
    }

    /// Whether it is this session of this user.
    pub fn is(self, user: &[u8], session: &[u8]) -> bool {
        self.user() == user && self.session() == session
    }
}

/// A record whose fields of fixed size are to be changed in place.
pub struct RecordMut<'a>(&'a mut [u8]);

impl<'a> RecordMut<'a> {
    pub fn of(block: &'a mut [u8]) -> Self {
        RecordMut(block)
    }

    pub fn read(&self) -> Record<'_> {
        Record(self.0)
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    pub fn set_lease(&mut self, lease: Timestamp) {
        self.write(LEASE, &lease.to_le_bytes());
    }

    pub fn set_group(&mut self, group: u32) {
        self.write(GROUP, &group.to_le_bytes());
    }

    pub fn set_filed(&mut self, filed: u32) {
        self.write(FILED, &filed.to_le_bytes());
    }

    pub fn set_lingering(&mut self, lingering: bool) {
        let flag = if lingering { LINGERING } else { 0 };
        let packed = (self.read().u16_at(USER_LEN) & !LINGERING) | flag;
        self.write(USER_LEN, &packed.to_le_bytes());
    }
}

/// A record by itself: on its way into a space, or taken out of it.
pub struct Packed(Vec<u8>);

impl Packed {
    /// Names are at most [`super::MAX_NAME_BYTES`] long and metadata is shorter than 4 GiB, which
    /// the callers check.
    pub fn new(
        user: &str,
        session: &str,
        lease: Timestamp,
        joined_at: Timestamp,
        meta: Text,
    ) -> Self {
        let meta = meta.unwrap_or("");
        let mut bytes = Vec::with_capacity(NAMES + user.len() + session.len() + meta.len());
        bytes.extend_from_slice(&lease.to_le_bytes());
        bytes.extend_from_slice(&joined_at.to_le_bytes());
        bytes.extend_from_slice(&NONE.to_le_bytes());
        bytes.extend_from_slice(&NONE.to_le_bytes());
        bytes.extend_from_slice(&(user.len() as u16 & !LINGERING).to_le_bytes());
        bytes.extend_from_slice(&(session.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&(meta.len() as u32).to_le_bytes());
        bytes.extend_from_slice(user.as_bytes());
        bytes.extend_from_slice(session.as_bytes());
        bytes.extend_from_slice(meta.as_bytes());
        Packed(bytes)
    }

    /// A copy.
    pub fn from(record: Record<'_>) -> Self {
        Packed(record.block().to_vec())
    }

    /// A copy with other metadata.
    pub fn with_meta(record: Record<'_>, meta: Text) -> Self {
        let meta = meta.unwrap_or("");
        let keep = record.block().get(..record.session_end()).unwrap_or_default();
        let mut bytes = Vec::with_capacity(keep.len() + meta.len());
        bytes.extend_from_slice(keep);
        bytes.extend_from_slice(meta.as_bytes());
        RecordMut(&mut bytes).write(META_LEN, &(meta.len() as u32).to_le_bytes());
        Packed(bytes)
    }

    pub fn read(&self) -> Record<'_> {
        Record(&self.0)
    }

    pub fn change(&mut self) -> RecordMut<'_> {
        RecordMut(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keeps_what_it_is_given(
            user in "\\PC{1,128}", session in "\\PC{0,128}", lease: u64, joined_at: u64,
            meta in prop::option::of("[0-9]{1,300}"), later in prop::option::of("\"[a-z]{1,30}\""),
            lease2: u64, lingering: bool, group: u32, filed: u32, behind in 0..9usize,
        ) {
            let mut packed = Packed::new(&user, &session, lease, joined_at, meta.as_deref());
            prop_assert_eq!(packed.read().lease(), lease);
            prop_assert_eq!(packed.read().meta(), meta.as_deref().map(str::as_bytes));
            prop_assert_eq!((packed.read().group(), packed.read().filed()), (NONE, NONE));
            let mut change = packed.change();
            change.set_lease(lease2);
            change.set_lingering(lingering);
            change.set_group(group);
            change.set_filed(filed);
            let mut block = Packed::with_meta(packed.read(), later.as_deref()).0;
            let whole = block.len();
            block.resize(whole + behind, 0xff);
            let record = Record::of(&block);
            prop_assert_eq!(record.block().len(), whole);
            prop_assert!(record.is(user.as_bytes(), session.as_bytes()));
            prop_assert_eq!(record.user(), user.as_bytes());
            prop_assert_eq!(record.session(), session.as_bytes());
            prop_assert_eq!(record.lease(), lease2);
            prop_assert_eq!(record.joined_at(), joined_at);
            prop_assert_eq!(record.is_lingering(), lingering);
            prop_assert_eq!((record.group(), record.filed()), (group, filed));
            prop_assert_eq!(record.meta(), later.as_deref().map(str::as_bytes));
        }
    }
}

//! One session, packed into one allocation.
//!
//! ```text
//! 0        8           16      18      20
//! lease u64 joined_at u64 user u16 session u16 | user | session | meta
//! ```
//!
//! Integers are little endian; `user` and `session` are lengths in bytes, the top bit of `user`
//! says that the session is lingering. Metadata is what remains; no JSON text is empty, so an
//! empty rest means none. A heartbeat compares the names and writes the lease, all on one or two
//! cache lines, and a session of 36 + 10 + 120 bytes fits a 192-byte allocation.

use super::{Text, Timestamp};

const LEASE: usize = 0;
const JOINED_AT: usize = 8;
const USER_LEN: usize = 16;
const SESSION_LEN: usize = 18;
const NAMES: usize = 20;
const LINGERING: u16 = 1 << 15;

/// A session: whose it is, its name, until when it is live, since when, with what metadata.
#[derive(Clone)]
pub struct Record(Box<[u8]>);

impl Record {
    /// Names are at most [`super::MAX_NAME_BYTES`] long; longer ones are cut, which the callers
    /// prevent by checking first.
    pub fn new(
        user: &str,
        session: &str,
        lease: Timestamp,
        joined_at: Timestamp,
        meta: Text,
    ) -> Self {
        let mut bytes =
            Vec::with_capacity(NAMES + user.len() + session.len() + meta.map_or(0, str::len));
        bytes.extend_from_slice(&lease.to_le_bytes());
        bytes.extend_from_slice(&joined_at.to_le_bytes());
        bytes.extend_from_slice(&(user.len() as u16 & !LINGERING).to_le_bytes());
        bytes.extend_from_slice(&(session.len() as u16).to_le_bytes());
        bytes.extend_from_slice(user.as_bytes());
        bytes.extend_from_slice(session.as_bytes());
        bytes.extend_from_slice(meta.unwrap_or("").as_bytes());
        Record(bytes.into_boxed_slice())
    }

    fn u64_at(&self, at: usize) -> u64 {
        let bytes = self.0.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_le_bytes(bytes.unwrap_or_default())
    }

    fn u16_at(&self, at: usize) -> u16 {
        let bytes = self.0.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
        u16::from_le_bytes(bytes.unwrap_or_default())
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn user_len(&self) -> usize {
        usize::from(self.u16_at(USER_LEN) & !LINGERING)
    }

    fn session_end(&self) -> usize {
        NAMES + self.user_len() + usize::from(self.u16_at(SESSION_LEN))
    }

    pub fn lease(&self) -> Timestamp {
        self.u64_at(LEASE)
    }

    pub fn set_lease(&mut self, lease: Timestamp) {
        self.write(LEASE, &lease.to_le_bytes());
    }

    /// Live at `now`: the lease is later than that.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.lease() > now
    }

    pub fn joined_at(&self) -> Timestamp {
        self.u64_at(JOINED_AT)
    }

    /// Whether the session was ended with a linger: if its lease runs out now, that is not a
    /// timeout but what was asked for.
    pub fn is_lingering(&self) -> bool {
        self.u16_at(USER_LEN) & LINGERING != 0
    }

    pub fn set_lingering(&mut self, lingering: bool) {
        let flag = if lingering { LINGERING } else { 0 };
        let packed = (self.u16_at(USER_LEN) & !LINGERING) | flag;
        self.write(USER_LEN, &packed.to_le_bytes());
    }

    pub fn user(&self) -> &[u8] {
        self.0.get(NAMES..NAMES + self.user_len()).unwrap_or_default()
    }

    pub fn session(&self) -> &[u8] {
        self.0.get(NAMES + self.user_len()..self.session_end()).unwrap_or_default()
    }

    pub fn meta(&self) -> Option<&[u8]> {
        self.0.get(self.session_end()..).filter(|meta| !meta.is_empty())
    }

    /// The same session with other metadata.
    pub fn set_meta(&mut self, meta: Text) {
        let keep = self.session_end();
        let mut bytes = Vec::with_capacity(keep + meta.map_or(0, str::len));
        bytes.extend_from_slice(self.0.get(..keep).unwrap_or_default());
        bytes.extend_from_slice(meta.unwrap_or("").as_bytes());
        self.0 = bytes.into_boxed_slice();
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        super::allocated(self.0.len())
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
            lease2: u64, lingering: bool,
        ) {
            let mut record = Record::new(&user, &session, lease, joined_at, meta.as_deref());
            prop_assert_eq!(record.lease(), lease);
            prop_assert_eq!(record.meta(), meta.as_deref().map(str::as_bytes));
            record.set_lease(lease2);
            record.set_lingering(lingering);
            record.set_meta(later.as_deref());
            prop_assert_eq!(record.user(), user.as_bytes());
            prop_assert_eq!(record.session(), session.as_bytes());
            prop_assert_eq!(record.lease(), lease2);
            prop_assert_eq!(record.joined_at(), joined_at);
            prop_assert_eq!(record.is_lingering(), lingering);
            prop_assert_eq!(record.meta(), later.as_deref().map(str::as_bytes));
        }
    }
}

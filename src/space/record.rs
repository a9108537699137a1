//! One session, packed into one block of bytes.
//!
//! ```text
//! 0         8             14       16          18        22
//! lease u64 joined_at u48 user u16 session u16 group u32 filed u32 | user | session | late u16 | meta u32 | meta
//! ```
//!
//! Integers are little endian. The low bits of `user` and `session` are lengths in bytes, and the high
//! ones say what else there is: [`LINGERING`], [`META`] (a length and a JSON text), [`LATE`] (what
//! `joined_at` has beyond 48 bits, from the year 10889 on), [`LONG`]. A record that is not long, as one of
//! a few is, has neither `filed` nor a field for its group, which is then in the high bits of `session`.
//!
//! `group` and `filed` are the notes of [`super::members`]. A heartbeat compares the names and
//! writes the lease, all on one or two cache lines.

use super::{Text, Timestamp};

const LEASE: usize = 0;
const JOINED_AT: usize = 8;
const USER: usize = 14;
const SESSION: usize = 16;
/// Where the names of a short record begin.
const SHORT_NAMES: usize = 18;
const GROUP: usize = 18;
const FILED: usize = 22;
const LONG_NAMES: usize = 26;

/// Of `user` and of `session`: the length.
const LENGTH: u16 = (1 << 10) - 1;
const _: () = assert!(super::MAX_NAME_BYTES <= LENGTH as usize);
/// Of `user`: the session was ended with a linger.
const LINGERING: u16 = 1 << 15;
/// Of `user`: there is metadata.
const META: u16 = 1 << 14;
/// Of `user`: `joined_at` has more than 48 bits.
const LATE: u16 = 1 << 13;
/// Of `user`: there are `group` and `filed`.
const LONG: u16 = 1 << 12;
/// Of `session` in a short record: its group and 1 are above this many bits, 0 is none.
const SHORT_GROUP: u32 = 12;

const JOINED_BITS: u32 = 48;

/// No group, or not filed.
pub const NONE: u32 = u32::MAX;
/// The groups of short records are below this.
pub const SHORT_GROUPS: usize = 15;

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
        self.0.get(..self.len()).unwrap_or_default()
    }

    /// Length of the block.
    pub fn len(self) -> usize {
        let fixed = self.fixed_end();
        fixed + if self.has(META) { size_of::<u32>() + self.u32_at(fixed) as usize } else { 0 }
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

    fn has(self, flag: u16) -> bool {
        self.u16_at(USER) & flag != 0
    }

    fn names(self) -> usize {
        if self.has(LONG) {
            LONG_NAMES
        } else {
            SHORT_NAMES
        }
    }

    fn user_end(self) -> usize {
        self.names() + usize::from(self.u16_at(USER) & LENGTH)
    }

    fn session_end(self) -> usize {
        self.user_end() + usize::from(self.u16_at(SESSION) & LENGTH)
    }

    /// The end of everything but metadata.
    fn fixed_end(self) -> usize {
        self.session_end() + if self.has(LATE) { size_of::<u16>() } else { 0 }
    }

    pub fn lease(self) -> Timestamp {
        self.u64_at(LEASE)
    }

    /// Live at `now`: the lease is later than that.
    pub fn is_live(self, now: Timestamp) -> bool {
        self.lease() > now
    }

    pub fn joined_at(self) -> Timestamp {
        let low = self.u64_at(JOINED_AT) & ((1 << JOINED_BITS) - 1);
        let high = if self.has(LATE) { self.u16_at(self.session_end()) } else { 0 };
        low | u64::from(high) << JOINED_BITS
    }

    /// Whether there are fields for a group and for where it is filed.
    pub fn is_long(self) -> bool {
        self.has(LONG)
    }

    /// The user's group, or [`NONE`].
    pub fn group(self) -> u32 {
        if self.has(LONG) {
            return self.u32_at(GROUP);
        }
        u32::from(self.u16_at(SESSION) >> SHORT_GROUP).checked_sub(1).unwrap_or(NONE)
    }

    /// Where in the order by lease; without meaning while there is no order.
    pub fn filed(self) -> u32 {
        if self.has(LONG) {
            self.u32_at(FILED)
        } else {
            NONE
        }
    }

    /// Whether the session was ended with a linger: if its lease runs out now, that is not a
    /// timeout but what was asked for.
    pub fn is_lingering(self) -> bool {
        self.has(LINGERING)
    }

    pub fn user(self) -> &'a [u8] {
        self.0.get(self.names()..self.user_end()).unwrap_or_default()
    }

    pub fn session(self) -> &'a [u8] {
        self.0.get(self.user_end()..self.session_end()).unwrap_or_default()
    }

    pub fn meta(self) -> Option<&'a [u8]> {
        let begin = self.fixed_end() + size_of::<u32>();
        self.0.get(begin..self.len()).filter(|_| self.has(META))
    }

    /// Whether it is this session of this user.
    pub fn is(self, user: &[u8], session: &[u8]) -> bool {
        self.user() == user && self.session() == session
    }

    /// Appends it as a short record without a group.
    pub fn append_short(self, to: &mut Vec<u8>) {
        let block = self.block();
        let at = to.len();
        to.extend_from_slice(block.get(..SHORT_NAMES).unwrap_or_default());
        to.extend_from_slice(block.get(self.names()..).unwrap_or_default());
        let mut short = RecordMut(to.get_mut(at..).unwrap_or_default());
        short.set_flag(LONG, false);
        short.set_group(NONE);
    }

    /// Its length as a short record.
    pub fn short_len(self) -> usize {
        self.len() - (self.names() - SHORT_NAMES)
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

    fn set_flag(&mut self, flag: u16, to: bool) {
        let others = self.read().u16_at(USER) & !flag;
        self.write(USER, &(others | if to { flag } else { 0 }).to_le_bytes());
    }

    pub fn set_lease(&mut self, lease: Timestamp) {
        self.write(LEASE, &lease.to_le_bytes());
    }

    /// The group of a short record is below [`SHORT_GROUPS`], or none.
    pub fn set_group(&mut self, group: u32) {
        if self.read().is_long() {
            return self.write(GROUP, &group.to_le_bytes());
        }
        let length = self.read().u16_at(SESSION) & LENGTH;
        let group = (group.wrapping_add(1) as u16) << SHORT_GROUP;
        self.write(SESSION, &(length | group).to_le_bytes());
    }

    /// A short record is not filed.
    pub fn set_filed(&mut self, filed: u32) {
        if self.read().is_long() {
            self.write(FILED, &filed.to_le_bytes());
        }
    }

    pub fn set_lingering(&mut self, lingering: bool) {
        self.set_flag(LINGERING, lingering);
    }
}

/// A record by itself: on its way into a space, or taken out of it.
pub struct Packed(Vec<u8>);

impl Packed {
    /// A long record. Names are at most [`super::MAX_NAME_BYTES`] long and metadata is shorter than
    /// 4 GiB, which the callers check.
    pub fn new(
        user: &str,
        session: &str,
        lease: Timestamp,
        joined_at: Timestamp,
        meta: Text,
    ) -> Self {
        let of_meta = meta.map_or(0, |meta| size_of::<u32>() + meta.len());
        let late = (joined_at >> JOINED_BITS) as u16;
        let mut bytes = Vec::with_capacity(
            LONG_NAMES + user.len() + session.len() + size_of::<u16>() + of_meta,
        );
        let flags = LONG | if late > 0 { LATE } else { 0 };
        bytes.extend_from_slice(&lease.to_le_bytes());
        bytes
            .extend_from_slice(joined_at.to_le_bytes().get(..USER - JOINED_AT).unwrap_or_default());
        bytes.extend_from_slice(&(user.len() as u16 & LENGTH | flags).to_le_bytes());
        bytes.extend_from_slice(&(session.len() as u16 & LENGTH).to_le_bytes());
        bytes.extend_from_slice(&NONE.to_le_bytes());
        bytes.extend_from_slice(&NONE.to_le_bytes());
        bytes.extend_from_slice(user.as_bytes());
        bytes.extend_from_slice(session.as_bytes());
        if late > 0 {
            bytes.extend_from_slice(&late.to_le_bytes());
        }
        let mut packed = Packed(bytes);
        packed.append_meta(meta);
        packed
    }

    fn append_meta(&mut self, meta: Text) {
        self.change().set_flag(META, meta.is_some());
        if let Some(meta) = meta {
            self.0.extend_from_slice(&(meta.len() as u32).to_le_bytes());
            self.0.extend_from_slice(meta.as_bytes());
        }
    }

    /// A copy.
    pub fn from(record: Record<'_>) -> Self {
        Packed(record.block().to_vec())
    }

    /// A copy with other metadata.
    pub fn with_meta(record: Record<'_>, meta: Text) -> Self {
        let keep = record.0.get(..record.fixed_end()).unwrap_or_default();
        let more = meta.map_or(0, |meta| size_of::<u32>() + meta.len());
        let mut bytes = Vec::with_capacity(keep.len() + more);
        bytes.extend_from_slice(keep);
        let mut packed = Packed(bytes);
        packed.append_meta(meta);
        packed
    }

    /// A long copy of a short record, without a group.
    pub fn long(record: Record<'_>) -> Self {
        let (fixed, rest) = record.block().split_at(SHORT_NAMES.min(record.block().len()));
        let mut bytes = Vec::with_capacity(LONG_NAMES + rest.len());
        bytes.extend_from_slice(fixed);
        bytes.extend_from_slice(&NONE.to_le_bytes());
        bytes.extend_from_slice(&NONE.to_le_bytes());
        bytes.extend_from_slice(rest);
        let mut packed = Packed(bytes);
        packed.change().set_group(NONE);
        packed.change().set_flag(LONG, true);
        packed
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
            user in "\\PC{1,128}", session in "\\PC{0,128}", lease: u64, joined_at in moment(),
            meta in prop::option::of("[0-9]{1,300}"), later in prop::option::of("\"[a-z]{1,30}\""),
            lease2: u64, lingering: bool, group: u32, filed: u32, behind in 0..9usize,
            short_group in prop_oneof![Just(NONE), 0..SHORT_GROUPS as u32],
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
            let check = |mut block: Vec<u8>, group, filed| {
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
                Ok(())
            };
            let long = Packed::with_meta(packed.read(), later.as_deref());
            check(long.0.clone(), group, filed)?;
            let mut short = Packed(Vec::new());
            packed.read().append_short(&mut short.0);
            prop_assert_eq!(short.0.len(), packed.read().short_len());
            prop_assert_eq!(short.read().short_len(), short.0.len());
            let mut short = Packed::with_meta(short.read(), later.as_deref());
            check(short.0.clone(), NONE, NONE)?;
            short.change().set_filed(filed);
            short.change().set_group(short_group);
            check(short.0.clone(), short_group, NONE)?;
            let mut again = Vec::new();
            short.read().append_short(&mut again);
            check(again, NONE, NONE)?;
            check(Packed::long(short.read()).0, NONE, NONE)?;
        }
    }
}

//! Finds users and sessions by name, and asks for the memory that a search will look at.

use super::super::record::SessionRecord;
use super::super::{Prefetch, Timestamp};
use super::{Members, user_hash};
use crate::collections::{Fingerprint, IndexLayout, NameHash, Place};

/// What a search for a user begins with, so that it need not be made twice: the hash of the name,
/// where it is known, where to look, and who is probably there.
#[derive(Clone, Default)]
pub struct Lookup {
    pub(super) hash: Option<NameHash>,
    place: Place,
    guess: Option<u32>,
}

impl Lookup {
    /// Whether it is known who is probably there.
    pub fn is_followed(&self) -> bool {
        self.guess.is_some()
    }

    pub(super) fn hash(&self, user: &[u8]) -> NameHash {
        self.hash.unwrap_or_else(|| NameHash::of(user))
    }

    pub(super) fn fingerprint(&self, user: &[u8], session: &[u8]) -> Fingerprint {
        self.hash(user).fingerprint(session)
    }
}

/// Where that begins what leads to the sessions.
#[derive(Clone, Copy, PartialEq, Eq)]
struct RootPointers {
    by_user: *const u8,
    kept: *const u8,
}

impl RootPointers {
    const NONE: RootPointers = RootPointers { by_user: std::ptr::null(), kept: std::ptr::null() };

    fn prefetch(self, prefetch: Prefetch) {
        prefetch(self.by_user);
        // What leads to the marks, or the first records of a row, takes two cache lines.
        prefetch(self.kept);
        prefetch(self.kept.wrapping_add(64));
    }
}

/// Where that lay which a renewal looks at, when the space was last looked at: for who wants it brought
/// near before the space is at hand. These are addresses and no more, of what may be gone since.
pub struct SpaceLayout {
    root_pointers: RootPointers,
    by_user: IndexLayout,
}

impl SpaceLayout {
    /// Of no space.
    pub const NONE: SpaceLayout =
        SpaceLayout { root_pointers: RootPointers::NONE, by_user: IndexLayout::NONE };

    /// Where the search for a user begins if nothing has changed. What it looks at first is asked for.
    pub fn lookup(&self, user: &[u8], prefetch: Prefetch) -> Lookup {
        self.root_pointers.prefetch(prefetch);
        // A few are looked through, and nobody's name is hashed.
        if self.by_user.is_clear() {
            return Lookup::default();
        }
        let hash = NameHash::of(user);
        let (place, line) = self.by_user.place(hash.first());
        prefetch(line);
        Lookup { hash: Some(hash), place, guess: None }
    }
}

impl Members {
    /// Where the search for a user begins. What it looks at first is asked for.
    pub fn lookup(&self, user: &[u8], prefetch: Prefetch) -> Lookup {
        let mut lookup = Lookup::default();
        // What leads to the index's line and to the mark comes while the name is hashed.
        self.root_pointers().prefetch(prefetch);
        self.enter(&mut lookup, user, prefetch);
        lookup
    }

    /// Finds where in this space the lookup of a user goes on. What is there is asked for.
    pub fn enter(&self, lookup: &mut Lookup, user: &[u8], prefetch: Prefetch) {
        let Some(indexes) = &self.indexes else { return };
        let hash = lookup.hash(user);
        lookup.hash = Some(hash);
        lookup.place = indexes.by_user.place(hash.first());
        prefetch(indexes.by_user.line_at(lookup.place).as_ptr());
    }

    fn root_pointers(&self) -> RootPointers {
        let by_user = self.indexes.as_ref().map(|indexes| std::ptr::from_ref(&indexes.by_user));
        RootPointers {
            by_user: by_user.map_or(std::ptr::null(), <*const _>::cast),
            kept: self.blocks.head(),
        }
    }

    /// Brings a layout up to date, and returns whether it was.
    pub fn update_layout(&self, layout: &mut SpaceLayout) -> bool {
        let root_pointers = self.root_pointers();
        let same = std::mem::replace(&mut layout.root_pointers, root_pointers) == root_pointers;
        let same_lines = match &self.indexes {
            Some(indexes) => layout.by_user.update(&indexes.by_user),
            None => layout.by_user.clear(),
        };
        same && same_lines
    }

    /// Goes on where the lookup most probably leads, and asks for what a renewal looks at next, or for
    /// the `whole` session too.
    pub fn follow(&self, lookup: &mut Lookup, whole: bool, prefetch: Prefetch) {
        let Some(indexes) = &self.indexes else { return };
        lookup.guess = indexes.by_user.guess(lookup.place);
        let Some(id) = lookup.guess else { return };
        if let Some(mark) = self.blocks.mark(id) {
            prefetch(std::ptr::from_ref(mark).cast());
        }
        if whole && let Some(record) = self.blocks.get(id) {
            record.lines().take(1).for_each(prefetch);
        }
    }

    /// The session that stands for the user.
    pub fn anchor(&self, user: &[u8]) -> Option<u32> {
        self.anchor_by(&Lookup::default(), user)
    }

    pub(super) fn anchor_by(&self, lookup: &Lookup, user: &[u8]) -> Option<u32> {
        let Some(indexes) = &self.indexes else {
            return self.few().find(|(_, record)| record.user() == user).map(|(id, _)| id);
        };
        let hash = lookup.hash(user).first();
        indexes.by_user.find(hash, |id| {
            user_hash(&self.blocks, id) == hash
                && self.record(id).is_some_and(|record| record.user() == user)
        })
    }

    /// One session.
    pub fn find(&self, user: &[u8], session: &[u8]) -> Option<u32> {
        self.find_by(&Lookup::default(), user, session)
    }

    /// One session, by the lookup of its user.
    pub fn find_by(&self, lookup: &Lookup, user: &[u8], session: &[u8]) -> Option<u32> {
        let Some(indexes) = &self.indexes else {
            return self.few().find(|(_, it)| it.is(user, session)).map(|(id, _)| id);
        };
        let fingerprint = lookup.fingerprint(user, session);
        let is_it = |id: &u32| self.blocks.fingerprint(*id) == Some(fingerprint);
        let alone = || indexes.by_user.find(fingerprint.first, |id| is_it(&id));
        let in_group = || indexes.by_session.find(fingerprint.both, |id| is_it(&id));
        let found = lookup.guess.filter(is_it).or_else(alone).or_else(in_group);
        debug_assert!(
            found.is_none_or(|id| self.record(id).is_some_and(|record| record.is(user, session)))
        );
        found
    }

    /// The lookups of these users, [`PREFETCH_BATCH`] at most, with what lies on them on its way. Each search
    /// waits for memory twice, one after the other; here all wait for it together. `whole` says
    /// that what is found will be looked at, and not only renewed. They take the place of what is in the
    /// list.
    pub fn lookups<'a>(
        &self,
        users: impl Iterator<Item = &'a [u8]>,
        whole: bool,
        prefetch: Prefetch,
        lookups: &mut Vec<Lookup>,
    ) {
        lookups.clear();
        self.root_pointers().prefetch(prefetch);
        lookups.extend(users.map(|user| {
            let mut lookup = Lookup::default();
            self.enter(&mut lookup, user, prefetch);
            lookup
        }));
        for lookup in lookups {
            self.follow(lookup, whole, prefetch);
        }
    }

    /// The sessions of a user, newest first, each by what [`Self::find_print`] finds it by: their numbers
    /// change as some of them end. Only those that have expired at `expired_at`, where that is given.
    pub fn prints_of(&self, user: &[u8], expired_at: Option<Timestamp>) -> Vec<Fingerprint> {
        let is_asked_for = |record: &SessionRecord<'_>| {
            expired_at.is_none_or(|now| !self.is_live(record.lease(), now))
        };
        let fingerprint = |record: SessionRecord<'_>| {
            Lookup::default().fingerprint(record.user(), record.session())
        };
        if self.indexes.is_none() {
            let of_user = self.few().map(|(_, record)| record);
            let of_user = of_user.filter(|record| record.user() == user && is_asked_for(record));
            let mut fingerprints: Vec<Fingerprint> = of_user.map(fingerprint).collect();
            fingerprints.reverse();
            return fingerprints;
        }
        let Some(id) = self.anchor(user) else { return Vec::new() };
        let Some(group) = self.record(id).and_then(|anchor| self.group(anchor)) else {
            let alone = self.record(id).filter(is_asked_for);
            return alone.and_then(|_| self.blocks.fingerprint(id)).into_iter().collect();
        };
        let is_lease_asked_for = |id: &u32| {
            let lease = self.lease(*id);
            expired_at.is_none_or(|now| lease.is_some_and(|lease| !self.is_live(lease, now)))
        };
        let ids = group.sessions().rev().filter(is_lease_asked_for);
        ids.filter_map(|id| self.blocks.fingerprint(id)).collect()
    }

    /// The session that has this fingerprint.
    pub fn find_print(&self, fingerprint: Fingerprint) -> Option<u32> {
        let Some(indexes) = &self.indexes else {
            let mut few = self.few();
            let is_it = |record: SessionRecord<'_>| {
                Lookup::default().fingerprint(record.user(), record.session()) == fingerprint
            };
            return few.find(|(_, record)| is_it(*record)).map(|(id, _)| id);
        };
        let is_it = |id: u32| self.blocks.fingerprint(id) == Some(fingerprint);
        indexes
            .by_user
            .find(fingerprint.first, is_it)
            .or_else(|| indexes.by_session.find(fingerprint.both, is_it))
    }

    /// Whether a session of the user has expired at `now`, to which the order has been advanced.
    pub fn has_expired(&self, lookup: &Lookup, user: &[u8], now: Timestamp) -> bool {
        if self.indexes.is_none() {
            let mut few = self.few();
            return few.any(|(_, it)| !self.is_live(it.lease(), now) && it.user() == user);
        }
        let anchor = self.anchor_by(lookup, user).and_then(|anchor| self.record(anchor));
        anchor.is_some_and(|anchor| match self.group(anchor) {
            Some(group) => self.expired_in(group, now) > 0,
            None => !self.is_live(anchor.lease(), now),
        })
    }
}

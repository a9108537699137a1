//! Who is in a space: the sessions, found by name and ordered by lease.
//!
//! * `blocks` holds the sessions, a [`SessionRecord`] each: a few in a row, or many. The number of a session
//!   can change whenever another one ends or metadata changes, and nobody keeps it for longer than
//!   that.
//! * The first session of a user is the user's **anchor**.
//! * Of many sessions, a user with several has a **group** that lists them and remembers when the user
//!   came online. It stays until the user leaves.
//! * `by_user` finds anchors; `by_session` finds the sessions of users that have a group.
//! * `leases` is the order by lease, see [`super::lease_order`]. A renewal writes the lease and does not
//!   touch the order.
//! * [`Members::advance`] brings the order to a moment. Whoever asks what is live at a moment calls it
//!   first; it costs next to nothing where a timer has done the work in advance.
//!
//! A space of a few sessions has neither indexes nor groups; its sessions are looked through. They
//! are in the order in which they came, and when a user came online is told by the anchor.
//!
//! A user's **place** comes from the hash of the name, so it is the same for as long as the
//! process runs: a walk over the places that stops and goes on later meets everybody who was there
//! throughout exactly once.

use super::group::{Changed, Group, Groups};
use super::lease_order::{LeaseOrder, LOOKAHEAD_MS};
use super::record::{Lease, SessionRecord, SessionRecordBuf, NONE};
use super::session_store::SessionStore;
use super::{Prefetch, Text, Timestamp};
use crate::collections::{hash_of, Fingerprint, IndexLayout, LinearHashIndex, NameHash, Place};
use std::collections::HashSet;

/// Up to so many sessions a look through all of them is as quick as an index and costs nothing.
const FEW: usize = 8;
/// So many users are brought near at once: as many reads of memory as a processor has under way.
pub const PREFETCH_BATCH: usize = 16;
/// A page passes over at most so many users whose leases have expired for each that it may return: in a
/// space that most have left, a page may come back with fewer members than asked for.
const LOOKS_A_MEMBER: usize = 8;

#[derive(Clone, Default)]
struct Indexes {
    by_user: LinearHashIndex,
    by_session: LinearHashIndex,
    leases: LeaseOrder,
}

/// The sessions of one space.
#[derive(Clone, Default)]
pub struct Members {
    blocks: SessionStore,
    groups: Option<Box<Groups>>,
    indexes: Option<Box<Indexes>>,
}

/// The hash of the name of a session's user, which is at hand where there are many.
fn user_hash(blocks: &SessionStore, id: u32) -> u64 {
    let hash = || blocks.get(id).map(|record| hash_of(record.user()));
    blocks.fingerprint(id).map(|fingerprint| fingerprint.first).or_else(hash).unwrap_or(0)
}

/// The hash of the names of one of many.
fn session_hash(blocks: &SessionStore, id: u32) -> u64 {
    blocks.fingerprint(id).map_or(0, |fingerprint| fingerprint.both)
}

/// The place of a user in the order of the hashes.
fn place_of(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// What a search for a user begins with, so that it need not be made twice: the hash of the name,
/// where it is known, where to look, and who is probably there.
#[derive(Clone, Default)]
pub struct Lookup {
    hash: Option<NameHash>,
    place: Place,
    guess: Option<u32>,
}

impl Lookup {
    /// Whether it is known who is probably there.
    pub fn is_followed(&self) -> bool {
        self.guess.is_some()
    }

    fn hash(&self, user: &[u8]) -> NameHash {
        self.hash.unwrap_or_else(|| NameHash::of(user))
    }

    fn fingerprint(&self, user: &[u8], session: &[u8]) -> Fingerprint {
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

/// A user as a reader sees it: the sessions that are live.
pub struct User<'a> {
    members: &'a Members,
    anchor: SessionRecord<'a>,
    now: Timestamp,
}

impl<'a> User<'a> {
    pub fn name(&self) -> &'a [u8] {
        self.anchor.user()
    }

    /// When the user came online (unix ms).
    pub fn joined_at(&self) -> Timestamp {
        self.members.group(self.anchor).map_or(self.anchor.since(), |group| group.joined_at)
    }

    /// How many live sessions the user has, at the moment that the space was advanced to.
    pub fn live_sessions(&self) -> usize {
        self.members.live_sessions(self.anchor, self.now)
    }

    /// The live sessions, oldest first.
    pub fn sessions(&self) -> impl Iterator<Item = SessionRecord<'a>> {
        let (members, anchor, now) = (self.members, self.anchor, self.now);
        let few = members.few().map(|(_, record)| record);
        let few = few.filter(move |record| record.user() == anchor.user());
        let group = members.group(anchor);
        let alone = (members.indexes.is_some() && group.is_none()).then_some(anchor);
        let several = group.into_iter().flat_map(Group::sessions);
        let several = several.filter_map(|id| members.record(id));
        few.chain(alone).chain(several).filter(move |record| record.is_live(now))
    }
}

impl Members {
    pub fn users(&self) -> usize {
        if self.indexes.is_none() {
            return self.few().filter(|(id, record)| self.is_anchor(*id, *record)).count();
        }
        let of_groups = |groups: &Groups| self.sessions() - groups.sessions() + groups.len();
        self.groups.as_deref().map_or_else(|| self.sessions(), of_groups)
    }

    pub fn sessions(&self) -> usize {
        self.blocks.len()
    }

    /// Whether the indexes have what they should and nothing else.
    #[cfg(test)]
    pub fn indexes_are_complete(&self) -> bool {
        let of_groups = self.groups.as_ref().map_or(0, |groups| groups.sessions());
        self.indexes.as_ref().is_none_or(|indexes| {
            (indexes.by_user.len(), indexes.by_session.len()) == (self.users(), of_groups)
        })
    }

    pub fn record(&self, id: u32) -> Option<SessionRecord<'_>> {
        self.blocks.get(id)
    }

    /// The lease of one session, which itself is not looked at where it is one of many.
    pub fn lease(&self, id: u32) -> Option<Lease> {
        self.blocks.lease(id)
    }

    /// The sessions, where they are a few, in the order in which they came.
    fn few(&self) -> impl Iterator<Item = (u32, SessionRecord<'_>)> {
        self.blocks.row()
    }

    fn is_anchor(&self, id: u32, record: SessionRecord<'_>) -> bool {
        if self.indexes.is_none() {
            return self.anchor(record.user()) == Some(id);
        }
        self.group(record).is_none_or(|group| group.anchor() == Some(id))
    }

    fn group(&self, record: SessionRecord<'_>) -> Option<&Group> {
        self.groups.as_ref()?.get(record.group())
    }

    /// How many live sessions the user of this anchor has. The order has been advanced to `now`.
    fn live_sessions(&self, anchor: SessionRecord<'_>, now: Timestamp) -> usize {
        if self.indexes.is_none() {
            let of_user = self.few().filter(|(_, it)| it.user() == anchor.user());
            return of_user.filter(|(_, it)| it.is_live(now)).count();
        }
        match self.group(anchor) {
            Some(group) => group.len() - group.expired(now),
            None => usize::from(anchor.is_live(now)),
        }
    }

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
        if whole {
            if let Some(record) = self.blocks.get(id) {
                record.lines().take(1).for_each(prefetch);
            }
        }
    }

    /// The session that stands for the user.
    pub fn anchor(&self, user: &[u8]) -> Option<u32> {
        self.anchor_by(&Lookup::default(), user)
    }

    fn anchor_by(&self, lookup: &Lookup, user: &[u8]) -> Option<u32> {
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
        let is_asked_for =
            |record: &SessionRecord<'_>| expired_at.is_none_or(|now| !record.lease().is_live(now));
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
            expired_at.is_none_or(|now| lease.is_some_and(|lease| !lease.is_live(now)))
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
            return self.few().any(|(_, it)| !it.is_live(now) && it.user() == user);
        }
        let anchor = self.anchor_by(lookup, user).and_then(|anchor| self.record(anchor));
        anchor.is_some_and(|anchor| match self.group(anchor) {
            Some(group) => group.expired(now) > 0,
            None => !anchor.is_live(now),
        })
    }

    /// The user who has this anchor, or none where it is not one or nothing of the user is live.
    fn user_at(&self, id: u32, now: Timestamp) -> Option<User<'_>> {
        let anchor = self.record(id)?;
        let user = User { members: self, anchor, now };
        (self.is_anchor(id, anchor) && user.live_sessions() > 0).then_some(user)
    }

    /// A user who is online at `now`.
    pub fn user(&self, user: &[u8], now: Timestamp) -> Option<User<'_>> {
        self.user_by(&Lookup::default(), user, now)
    }

    /// A user who is online at `now`, by the lookup.
    pub fn user_by(&self, lookup: &Lookup, user: &[u8], now: Timestamp) -> Option<User<'_>> {
        self.user_at(self.anchor_by(lookup, user)?, now)
    }

    /// Everybody who is online at `now`. Costs no more where most of the sessions have expired.
    pub fn online(&self, now: Timestamp) -> impl Iterator<Item = User<'_>> {
        let expired = self.indexes.as_ref().map_or(0, |it| it.leases.ending.expired(now).1);
        let most_expired = expired * 2 > self.sessions();
        let by_lease = self.indexes.iter().filter(move |_| most_expired);
        let by_lease = by_lease.flat_map(move |indexes| indexes.leases.live(now));
        let mut met = HashSet::new();
        let by_lease = by_lease.filter_map(move |id| self.user_of_live(id, now, &mut met));
        let all = (!most_expired).then(|| self.blocks.iter()).into_iter().flatten();
        all.filter_map(move |(id, _)| self.user_at(id, now)).chain(by_lease)
    }

    /// The user who has this live session, if no other session of the user was met before. `met` holds
    /// the groups that were.
    fn user_of_live(&self, id: u32, now: Timestamp, met: &mut HashSet<u32>) -> Option<User<'_>> {
        let record = self.record(id).filter(|record| record.is_live(now))?;
        let anchor = match self.group(record) {
            None => record,
            Some(group) if met.insert(record.group()) => self.record(group.anchor()?)?,
            Some(_) => return None,
        };
        Some(User { members: self, anchor, now })
    }

    /// Everybody who is here with their hashes, in the order of these, from one on.
    fn in_order(&self, from: u64, prefetch: Prefetch) -> impl Iterator<Item = (u64, u32)> + '_ {
        let (mut ready, mut next) = (Vec::new(), Some(from));
        if self.indexes.is_none() {
            let anchors = self.few().filter(|(id, record)| self.is_anchor(*id, *record));
            let hashed = anchors.map(|(id, _)| (user_hash(&self.blocks, id), id));
            ready = hashed.filter(|(hash, _)| *hash >= from).collect();
            ready.sort_unstable();
            next = None;
        }
        let mut ready = ready.into_iter();
        std::iter::from_fn(move || loop {
            if let Some(entry) = ready.next() {
                return Some(entry);
            }
            let indexes = self.indexes.as_ref()?;
            let (more, after) = indexes.by_user.next(next?, |id| user_hash(&self.blocks, id));
            // Each is at another place in memory; the first is looked at next.
            for record in more.iter().filter_map(|(_, id)| self.record(*id)) {
                record.lines().for_each(prefetch);
            }
            (ready, next) = (more.into_iter(), after);
        })
    }

    /// About `count` of those who are online at `now`, in the order of their places from `from`
    /// on, and the place to go on at; none where these were the last.
    pub fn page(
        &self,
        from: u32,
        count: usize,
        now: Timestamp,
        prefetch: Prefetch,
    ) -> (Vec<User<'_>>, Option<u32>) {
        let (expired, _) = self.expired(now);
        if from == 0 && self.users() - expired <= count {
            // All fit: as they lie is the quicker way, and in a small space the order of coming.
            return (self.online(now).collect(), None);
        }
        let mut users = Vec::new();
        let (mut looks, mut last) = (0, None);
        for (hash, id) in self.in_order(u64::from(from) << 32, prefetch) {
            let place = place_of(hash);
            let is_full = users.len() >= count || looks >= count.saturating_mul(LOOKS_A_MEMBER);
            // Two users of one place are not parted: the next page would begin with both.
            if is_full && last.is_some_and(|last| last != place) {
                return (users, Some(place));
            }
            looks += 1;
            last = Some(place);
            users.extend(self.user_at(id, now));
        }
        (users, None)
    }

    /// When the user of a session came online.
    fn since(&self, record: SessionRecord<'_>) -> Timestamp {
        if self.indexes.is_none() {
            let anchor = self.few().find(|(_, anchor)| anchor.user() == record.user());
            return anchor.map_or(record, |(_, anchor)| anchor).since();
        }
        self.group(record).map_or(record.joined_at(), |group| group.joined_at)
    }

    /// Every session with the time its user came online; for saving and for digests.
    pub fn all(&self) -> impl Iterator<Item = (SessionRecord<'_>, Timestamp)> {
        self.blocks.iter().map(|(_, record)| (record, self.since(record)))
    }

    /// Adds a session that is not there yet. `since` is when its user came online, if
    /// nothing of the user is here. Returns whether it is the user's first.
    pub fn insert(&mut self, lookup: &Lookup, new: SessionRecord<'_>, since: Timestamp) -> bool {
        let lookup = &self.make_way(lookup, new);
        let anchor = self.anchor_by(lookup, new.user());
        self.insert_beside(anchor, lookup, new, since)
    }

    /// Adds a session that may be there already: returns false then, and has added nothing.
    pub fn insert_absent(
        &mut self,
        lookup: &Lookup,
        new: SessionRecord<'_>,
        since: Timestamp,
    ) -> bool {
        let lookup = &self.make_way(lookup, new);
        let anchor = self.anchor_by(lookup, new.user());
        let is_absent =
            anchor.is_none() || self.find_by(lookup, new.user(), new.session()).is_none();
        if is_absent {
            self.insert_beside(anchor, lookup, new, since);
        }
        is_absent
    }

    /// Begins to use indexes where this session makes them worthwhile. Returns the lookup that is good from
    /// then on.
    fn make_way(&mut self, lookup: &Lookup, new: SessionRecord<'_>) -> Lookup {
        if self.indexes.is_none() && (self.blocks.len() >= FEW || !SessionStore::fits_row(new)) {
            self.rebuild(Some(Box::default()));
        }
        if lookup.hash.is_none() {
            self.lookup(new.user(), |_| {})
        } else {
            lookup.clone()
        }
    }

    /// Adds a session to those of the user who has this anchor, or none yet.
    fn insert_beside(
        &mut self,
        anchor: Option<u32>,
        lookup: &Lookup,
        new: SessionRecord<'_>,
        since: Timestamp,
    ) -> bool {
        // Of who is here already, it is known.
        let since = if anchor.is_none() { since } else { new.joined_at() };
        let id = self.blocks.insert(new, since, || lookup.fingerprint(new.user(), new.session()));
        if self.indexes.is_none() {
            return anchor.is_none();
        }
        let mut to_file = [None, None];
        if anchor.is_some() || since != new.joined_at() {
            let since = anchor.is_none().then_some(since);
            let (number, made) = self.group_of(anchor.unwrap_or(id), since);
            if let Some(anchor) = anchor {
                to_file[0] = made.then_some(anchor);
                let changed = self.groups.as_mut().and_then(|groups| groups.push(number, id));
                self.recount(changed);
            }
            self.set_group(id, number);
            to_file[1] = Some(id);
        }
        if let Some(indexes) = &mut self.indexes {
            let blocks = &self.blocks;
            if anchor.is_none() {
                let hash = lookup.hash(new.user()).first();
                indexes.by_user.insert(hash, id, |other| user_hash(blocks, other));
            }
            for id in to_file.into_iter().flatten() {
                let hash = session_hash(blocks, id);
                indexes.by_session.insert(hash, id, |other| session_hash(blocks, other));
            }
            indexes.leases.insert(id, new.lease().plain(), &mut self.blocks);
        }
        anchor.is_none()
    }

    fn set_group(&mut self, id: u32, group: u32) {
        if let Some(mut record) = self.blocks.get_mut(id) {
            record.set_group(group);
        }
    }

    /// The group of the user whose anchor this is, and whether it had to be made.
    fn group_of(&mut self, anchor: u32, since: Option<Timestamp>) -> (u32, bool) {
        let Some(record) = self.record(anchor) else { return (NONE, false) };
        if record.group() != NONE {
            return (record.group(), false);
        }
        let joined_at = since.unwrap_or(record.joined_at());
        let ending = record.lease().is_ending().then_some(record.lease().until());
        let groups = self.groups.get_or_insert_default();
        let group = groups.insert(Group::new(joined_at, anchor));
        self.set_group(anchor, group);
        if let Some(at) = ending {
            // The user of a session alone is counted where it ends; that of a group counts the group.
            self.uncount_user(at);
            let changed = self.groups.as_mut().and_then(|groups| groups.add_ending(group, at));
            self.recount(changed);
        }
        (group, true)
    }

    /// A user is no longer counted in this bucket.
    fn uncount_user(&mut self, at: Timestamp) {
        if let Some(indexes) = &mut self.indexes {
            indexes.leases.ending.take_user(at);
        }
    }

    /// A user is counted in another bucket than before, if the group says so.
    fn recount(&mut self, changed: Option<Changed>) {
        let recounted = changed.and_then(|changed| changed.recounted);
        let Some(((before, now), indexes)) = recounted.zip(self.indexes.as_mut()) else { return };
        if let Some(at) = now {
            indexes.leases.ending.add_user(at);
        }
        if let Some(at) = before {
            indexes.leases.ending.take_user(at);
        }
    }

    /// Moves a pending session to the bucket of its lease.
    fn move_to_ending(&mut self, id: u32) {
        let Some((group, lease)) = self.record(id).map(|it| (it.group(), it.lease())) else {
            return;
        };
        let Some(indexes) = &mut self.indexes else { return };
        indexes.leases.move_to_ending(id, lease, &mut self.blocks);
        if group == NONE {
            indexes.leases.ending.add_user(lease.until());
        } else {
            let groups = self.groups.as_mut();
            let changed = groups.and_then(|groups| groups.add_ending(group, lease.until()));
            self.recount(changed);
        }
    }

    /// A session that was in the bucket of this lease is pending again, under the lease that it has now.
    fn leave_ending(&mut self, id: u32, before: Lease) {
        let Some((group, lease)) = self.record(id).map(|it| (it.group(), it.lease())) else {
            return;
        };
        if group == NONE {
            self.uncount_user(before.until());
        } else {
            let groups = self.groups.as_mut();
            let changed = groups.and_then(|groups| groups.take_ending(group, before.until()));
            self.recount(changed);
        }
        if let Some(indexes) = &mut self.indexes {
            indexes.leases.remove(id, before, &mut self.blocks);
            indexes.leases.insert(id, lease, &mut self.blocks);
        }
    }

    /// Begins to use indexes, or ceases to.
    fn rebuild(&mut self, indexes: Option<Box<Indexes>>) {
        let blocks =
            if indexes.is_some() { SessionStore::for_many() } else { SessionStore::default() };
        let old = std::mem::replace(self, Members { blocks, groups: None, indexes });
        for (id, anchor) in old.blocks.iter() {
            match old.group(anchor) {
                None => {
                    self.insert(&Lookup::default(), anchor, old.since(anchor));
                }
                Some(group) if group.anchor() == Some(id) => {
                    for record in group.sessions().filter_map(|id| old.record(id)) {
                        self.insert(&Lookup::default(), record, group.joined_at);
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// The session that had the number `old` has the number `new`: tells all who know it.
    fn renumber(&mut self, old: u32, new: u32) {
        let Some(record) = self.blocks.get(new) else { return };
        let group = record.group();
        let (mut is_anchor, mut in_group) = (true, false);
        if let Some(groups) = self.groups.as_mut().filter(|groups| groups.get(group).is_some()) {
            is_anchor = groups.get(group).and_then(Group::anchor) == Some(old);
            in_group = true;
            groups.rename(group, old, new);
        }
        let Some(indexes) = &mut self.indexes else { return };
        if is_anchor {
            indexes.by_user.replace(user_hash(&self.blocks, new), old, new);
        }
        if in_group {
            indexes.by_session.replace(session_hash(&self.blocks, new), old, new);
        }
        indexes.leases.rename(new, &mut self.blocks);
    }

    /// Takes a block away that nothing refers to any more.
    fn free(&mut self, id: u32) {
        if let Some(moved) = self.blocks.remove(id) {
            self.renumber(moved, id);
        }
    }

    /// Takes a session out of a few, as [`Self::remove`] does. Should it be the anchor, the user's next
    /// one tells from now on since when the user is here.
    fn remove_of_few(&mut self, id: u32) -> Option<(SessionRecordBuf, bool)> {
        let record = self.record(id)?;
        let (removed, since) = (SessionRecordBuf::from(record), self.since(record));
        let was_anchor = self.is_anchor(id, record);
        self.blocks.remove(id);
        let heir = self.anchor(removed.read().user());
        if let Some(heir) = heir.filter(|_| was_anchor) {
            let changed =
                self.record(heir).map(|record| SessionRecordBuf::with_since(record, since));
            if let Some(changed) = changed {
                self.blocks.replace(heir, changed.read());
            }
        }
        Some((removed, heir.is_none()))
    }

    /// Takes a session out. Returns it, and whether it was its user's last.
    pub fn remove(&mut self, id: u32) -> Option<(SessionRecordBuf, bool)> {
        if self.indexes.is_none() {
            return self.remove_of_few(id);
        }
        let gone = self.record(id)?;
        let (removed, group, lease) = (SessionRecordBuf::from(gone), gone.group(), gone.lease());
        let ending = lease.is_ending().then_some(lease.until());
        let taken = self.groups.as_mut().and_then(|groups| groups.take(group, id, ending));
        let (is_anchor, heir) = match taken {
            Some(taken) => {
                self.recount(Some(taken.changed));
                (taken.was_anchor, taken.heir)
            }
            None => {
                if let Some(at) = ending {
                    self.uncount_user(at);
                }
                (true, None)
            }
        };
        if let Some(indexes) = &mut self.indexes {
            indexes.leases.remove(id, lease, &mut self.blocks);
            let blocks = &self.blocks;
            if group != NONE {
                let hash = session_hash(blocks, id);
                let by_session = &mut indexes.by_session;
                by_session.remove(hash, |other| other == id, |other| session_hash(blocks, other));
            }
            let hash = user_hash(blocks, id);
            match heir {
                Some(heir) if is_anchor => indexes.by_user.replace(hash, id, heir),
                Some(_) => {}
                None => {
                    let by_user = &mut indexes.by_user;
                    by_user.remove(hash, |other| other == id, |other| user_hash(blocks, other));
                }
            }
        }
        if self.groups.as_ref().is_some_and(|groups| groups.len() == 0) {
            self.groups = None;
        }
        self.free(id);
        if self.indexes.is_some()
            && self.blocks.len() * 4 < FEW
            && self.blocks.iter().all(|(_, record)| SessionStore::fits_row(record))
        {
            self.rebuild(None);
        }
        Some((removed, heir.is_none()))
    }

    /// Writes a lease. The order is touched only where the lease is now earlier than it says, or was about
    /// to end. Returns whether that can have changed how much memory the order takes.
    pub fn set_lease(&mut self, id: u32, lease: Timestamp, lingering: bool) -> bool {
        let lease = Lease::new(lease, lingering);
        let Some(before) = self.blocks.set_lease(id, lease) else { return false };
        if before.is_ending() {
            self.leave_ending(id, before);
            return true;
        }
        if lease.until() < before.until() {
            if let Some(indexes) = &mut self.indexes {
                indexes.leases.shorten(id, lease, &mut self.blocks);
            }
        }
        false
    }

    /// Replaces a session's metadata. Returns the number that the session has by then.
    pub fn set_meta(&mut self, id: u32, meta: Text) -> u32 {
        let Some(record) = self.record(id) else { return id };
        let changed = SessionRecordBuf::with_meta(record, meta);
        let changed = changed.read();
        if self.indexes.is_none() && !SessionStore::fits_row(changed) {
            self.rebuild(Some(Box::default()));
            let id = self.find(changed.user(), changed.session());
            return id.map_or(NONE, |id| self.set_meta(id, meta));
        }
        if self.blocks.replace(id, changed) {
            return id;
        }
        let Some(old) = self.record(id) else { return id };
        let (group, heap_slot, lease) = (old.group(), old.heap_slot(), old.lease());
        let fingerprint = || Lookup::default().fingerprint(changed.user(), changed.session());
        let new = self.blocks.insert(changed, changed.joined_at(), fingerprint);
        if let Some(mut record) = self.blocks.get_mut(new) {
            record.note(group, heap_slot);
        }
        // With the mark of one that is in a bucket.
        self.blocks.set_lease(new, lease);
        self.renumber(id, new);
        self.free(id);
        new
    }

    /// Every lease becomes at least `until`.
    pub fn extend_all(&mut self, until: Timestamp) {
        if let Some(indexes) = &mut self.indexes {
            indexes.leases.clear_ending(&mut self.blocks);
        }
        if let Some(groups) = &mut self.groups {
            groups.clear_ending();
        }
        self.blocks.change_leases(|lease| match lease.until() < until {
            true => Lease::new(until, lease.is_lingering()),
            false => lease,
        });
    }

    /// The moment from which a sweep may find something to do: no lease ends before it. None where nobody
    /// is here.
    pub fn next_due(&self) -> Option<Timestamp> {
        match &self.indexes {
            Some(indexes) => indexes.leases.next_due(),
            None => self.blocks.iter().map(|(_, record)| record.lease().until()).min(),
        }
    }

    /// Moves all sessions whose leases end by `horizon` to their buckets. Gives up, with `Err`, when
    /// `may_go_on` says so.
    fn sort_ending(
        &mut self,
        horizon: Timestamp,
        may_go_on: &mut impl FnMut() -> bool,
    ) -> Result<(), OutOfTime> {
        loop {
            let Some(indexes) = &mut self.indexes else { return Ok(()) };
            let Some(id) = indexes.leases.next_pending(horizon) else { return Ok(()) };
            if !may_go_on() {
                return Err(OutOfTime);
            }
            let Some(lease) = self.blocks.lease(id) else { return Ok(()) };
            if lease.until() > horizon {
                indexes.leases.update(id, lease, &mut self.blocks);
            } else {
                self.move_to_ending(id);
            }
        }
    }

    /// Brings the order to `now`: what is asked about that moment is then known. Returns whether sessions
    /// have moved in the order, which can change how much memory it takes.
    pub fn advance(&mut self, now: Timestamp) -> bool {
        if self.indexes.is_none() {
            return false;
        }
        let mut has_moved = false;
        let _ = self.sort_ending(now, &mut || {
            has_moved = true;
            true
        });
        if let Some(indexes) = &mut self.indexes {
            indexes.leases.sum_up(now);
        }
        has_moved
    }

    /// Does in advance what the next moments will need. Gives up, with `Err`, when `may_go_on` says so.
    pub fn look_ahead(
        &mut self,
        now: Timestamp,
        may_go_on: &mut impl FnMut() -> bool,
    ) -> Result<(), OutOfTime> {
        self.sort_ending(now.saturating_add(LOOKAHEAD_MS), may_go_on)
    }

    /// A session that has expired at `now`. Gives up, with `Err`, when `may_go_on` says so.
    pub fn next_expired(
        &mut self,
        now: Timestamp,
        may_go_on: &mut impl FnMut() -> bool,
    ) -> Result<Option<u32>, OutOfTime> {
        if self.indexes.is_none() {
            let mut blocks = self.blocks.iter();
            return Ok(blocks.find(|(_, record)| !record.is_live(now)).map(|(id, _)| id));
        }
        self.sort_ending(now, may_go_on)?;
        let first = self.indexes.as_ref().and_then(|indexes| indexes.leases.ending.first());
        Ok(first.filter(|(at, _)| *at <= now).map(|(_, id)| id))
    }

    /// How many users and sessions are here that have expired at `now`, to which the order has been
    /// advanced.
    pub fn expired(&self, now: Timestamp) -> (usize, usize) {
        if let Some(indexes) = &self.indexes {
            debug_assert!(indexes.leases.next_pending(now).is_none(), "advance comes first");
            return indexes.leases.ending.expired(now);
        }
        let (mut users, mut sessions) = (0, 0);
        for (id, record) in self.few() {
            sessions += usize::from(!record.is_live(now));
            // Counted once, at the anchor.
            let is_gone = self.is_anchor(id, record) && self.live_sessions(record, now) == 0;
            users += usize::from(is_gone);
        }
        (users, sessions)
    }

    /// Bytes on the heap, in constant time.
    pub fn heap_bytes(&self) -> usize {
        let groups = self.groups.as_ref();
        let groups = groups.map_or(0, |groups| size_of::<Groups>() + groups.heap_bytes());
        let indexes = self.indexes.as_ref().map_or(0, |indexes| {
            size_of::<Indexes>()
                + indexes.by_user.heap_bytes()
                + indexes.by_session.heap_bytes()
                + indexes.leases.heap_bytes()
        });
        self.blocks.heap_bytes() + groups + indexes
    }
}

/// The time for this piece of work is over; there is more of it.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfTime;

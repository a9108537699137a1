//! Who is in a space: the sessions, found by name and ordered by lease.
//!
//! * `blocks` holds the sessions, a [`Record`] each: a few in a row, or many. The number of a session
//!   can change whenever another one ends or metadata changes, and nobody keeps it for longer than
//!   that.
//! * The first session of a user is the user's **anchor**.
//! * Of many sessions, a user with several has a **group** that lists them and remembers when the user
//!   came online. It stays until the user leaves.
//! * `by_user` finds anchors; `by_session` finds the sessions of users that have a group.
//! * `leases` is the order by lease. A renewal writes the lease and leaves the
//!   order alone: an entry is filed at the session's lease *or earlier*. What comes up too early
//!   is filed again under the lease that it has by then.
//!
//! A space of a few sessions has neither indexes nor groups; its sessions are looked through. They
//! are in the order in which they came, and when a user came online is told by the anchor.
//!
//! A user's **place** comes from the hash of the name, so it is the same for as long as the
//! process runs: a walk over the places that stops and goes on later meets everybody who was there
//! throughout exactly once.

use super::kept::Kept;
use super::record::{Lease, Packed, Record, NONE};
use super::{Fetch, Text, Timestamp};
use crate::collections::{
    hash_of, Chart, DueHeap, HashIndex, NameHash, Place, Positions, Print, Slab,
};

/// Up to so many sessions a look through all of them is as quick as an index and costs nothing.
const FEW: usize = 8;
/// So many users are brought near at once: as many reads of memory as a processor has under way.
pub const AT_ONCE: usize = 16;
/// A page passes over so many users whose leases are over for each that it may return: in a space
/// that most have left, a page may come back with fewer members than asked for.
const LOOKS_A_MEMBER: usize = 32;

#[derive(Clone)]
struct Group {
    joined_at: Timestamp,
    /// The user's sessions, oldest first; the first is the anchor.
    sessions: Vec<u32>,
}

/// The groups, how many sessions they list, and the bytes that their lists have on the heap.
#[derive(Default)]
struct Groups {
    slab: Slab<Group>,
    sessions: usize,
    list_bytes: usize,
}

fn bytes_of(list: &Vec<u32>) -> usize {
    super::allocated(list.capacity() * size_of::<u32>())
}

impl Clone for Groups {
    fn clone(&self) -> Self {
        let slab = self.slab.clone();
        let list_bytes = slab.iter_from(0).map(|(_, group)| bytes_of(&group.sessions)).sum();
        Groups { slab, sessions: self.sessions, list_bytes }
    }
}

impl Groups {
    fn insert(&mut self, group: Group) -> u32 {
        self.list_bytes += bytes_of(&group.sessions);
        self.sessions += group.sessions.len();
        self.slab.insert(group)
    }

    /// Adds a session to the end of a group.
    fn push(&mut self, group: u32, id: u32) {
        let Some(group) = self.slab.get_mut(group) else { return };
        self.list_bytes -= bytes_of(&group.sessions);
        self.sessions += 1;
        group.sessions.push(id);
        self.list_bytes += bytes_of(&group.sessions);
    }

    /// Takes a session out of a group, and the group away if it was the last. Returns whether it
    /// was the anchor, and who is the anchor now; none where there is no such group.
    fn take(&mut self, group: u32, id: u32) -> Option<(bool, Option<u32>)> {
        let list = &mut self.slab.get_mut(group)?.sessions;
        self.list_bytes -= bytes_of(list);
        let is_anchor = list.first() == Some(&id);
        // From the end: who ends all sessions of a user ends the last first.
        if let Some(at) = list.iter().rposition(|other| *other == id) {
            list.remove(at);
            self.sessions -= 1;
        }
        if list.len() * 4 < list.capacity() {
            list.shrink_to((list.len() * 2).max(4));
        }
        let heir = list.first().copied();
        if heir.is_some() {
            self.list_bytes += bytes_of(list);
        } else {
            self.slab.remove(group);
        }
        Some((is_anchor, heir))
    }

    fn heap_bytes(&self) -> usize {
        self.slab.heap_bytes() + self.list_bytes
    }
}

#[derive(Clone, Default)]
struct Indexes {
    by_user: HashIndex,
    by_session: HashIndex,
    leases: DueHeap,
}

/// The sessions of one space.
#[derive(Clone, Default)]
pub struct Members {
    blocks: Kept,
    groups: Option<Box<Groups>>,
    indexes: Option<Box<Indexes>>,
}

impl Positions for Kept {
    fn moved(&mut self, id: u32, position: u32) {
        if let Some(mut record) = self.get_mut(id) {
            record.set_filed(position);
        }
    }
}

/// The hash of the name of a session's user, which is at hand where there are many.
fn user_hash(blocks: &Kept, id: u32) -> u64 {
    let hash = || blocks.get(id).map(|record| hash_of(record.user()));
    blocks.print(id).map(|print| print.first).or_else(hash).unwrap_or(0)
}

/// The hash of the names of one of many.
fn session_hash(blocks: &Kept, id: u32) -> u64 {
    blocks.print(id).map_or(0, |print| print.both)
}

/// The place of a user in the order of the hashes.
fn place_of(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// What a search for a user begins with, so that it need not be made twice: the hash of the name,
/// where it is known, where to look, and who is probably there.
#[derive(Clone, Default)]
pub struct Trail {
    hash: Option<NameHash>,
    place: Place,
    guess: Option<u32>,
}

impl Trail {
    /// Whether it is known who is probably there.
    pub fn is_followed(&self) -> bool {
        self.guess.is_some()
    }

    fn hash(&self, user: &[u8]) -> NameHash {
        self.hash.unwrap_or_else(|| NameHash::of(user))
    }

    fn print(&self, user: &[u8], session: &[u8]) -> Print {
        self.hash(user).print(session)
    }
}

/// Where that begins what leads to the sessions.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Heads {
    by_user: *const u8,
    kept: *const u8,
}

impl Heads {
    const NONE: Heads = Heads { by_user: std::ptr::null(), kept: std::ptr::null() };

    fn fetch(self, fetch: Fetch) {
        fetch(self.by_user);
        // What leads to the marks, or the first records of a row, takes two cache lines.
        fetch(self.kept);
        fetch(self.kept.wrapping_add(64));
    }
}

/// Where that lay which a renewal looks at, when the space was last looked at: for who wants it brought
/// near before the space is at hand. These are addresses and no more, of what may be gone since.
pub struct Outlook {
    heads: Heads,
    by_user: Chart,
}

impl Outlook {
    /// Of no space.
    pub const NONE: Outlook = Outlook { heads: Heads::NONE, by_user: Chart::NONE };

    /// Where the search for a user begins if nothing has changed. What it looks at first is asked for.
    pub fn trail(&self, user: &[u8], fetch: Fetch) -> Trail {
        self.heads.fetch(fetch);
        // A few are looked through, and nobody's name is hashed.
        if self.by_user.is_clear() {
            return Trail::default();
        }
        let hash = NameHash::of(user);
        let (place, line) = self.by_user.place(hash.first());
        fetch(line);
        Trail { hash: Some(hash), place, guess: None }
    }
}

/// A user as a reader sees it: the sessions that are live.
pub struct User<'a> {
    members: &'a Members,
    anchor: Record<'a>,
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

    /// The live sessions.
    pub fn sessions(&self) -> impl Iterator<Item = Record<'a>> {
        let (members, anchor, now) = (self.members, self.anchor, self.now);
        let few = members.few().map(|(_, record)| record);
        let few = few.filter(move |record| record.user() == anchor.user());
        let group = members.group(anchor);
        let alone = (members.indexes.is_some() && group.is_none()).then_some(anchor);
        let several = group
            .into_iter()
            .flat_map(|group| &group.sessions)
            .filter_map(|id| members.record(*id));
        few.chain(alone).chain(several).filter(move |record| record.is_live(now))
    }
}

impl Members {
    pub fn users(&self) -> usize {
        if self.indexes.is_none() {
            return self.few().filter(|(id, record)| self.is_anchor(*id, *record)).count();
        }
        let of_groups = |groups: &Groups| self.sessions() - groups.sessions + groups.slab.len();
        self.groups.as_deref().map_or_else(|| self.sessions(), of_groups)
    }

    pub fn sessions(&self) -> usize {
        self.blocks.len()
    }

    /// Whether the indexes have what they should and nothing else.
    #[cfg(test)]
    pub fn indexes_are_complete(&self) -> bool {
        let of_groups = self.groups.as_ref().map_or(0, |groups| groups.sessions);
        self.indexes.as_ref().is_none_or(|indexes| {
            (indexes.by_user.len(), indexes.by_session.len()) == (self.users(), of_groups)
        })
    }

    pub fn record(&self, id: u32) -> Option<Record<'_>> {
        self.blocks.get(id)
    }

    /// The lease of one session, which itself is not looked at where it is one of many.
    pub fn lease(&self, id: u32) -> Option<Lease> {
        self.blocks.lease(id)
    }

    /// The sessions, where they are a few, in the order in which they came.
    fn few(&self) -> impl Iterator<Item = (u32, Record<'_>)> {
        self.blocks.row()
    }

    fn is_anchor(&self, id: u32, record: Record<'_>) -> bool {
        if self.indexes.is_none() {
            return self.anchor(record.user()) == Some(id);
        }
        self.group(record).is_none_or(|group| group.sessions.first() == Some(&id))
    }

    fn group(&self, record: Record<'_>) -> Option<&Group> {
        self.groups.as_ref()?.slab.get(record.group())
    }

    /// Where the search for a user begins. What it looks at first is asked for.
    pub fn trail(&self, user: &[u8], fetch: Fetch) -> Trail {
        let mut trail = Trail::default();
        // What leads to the index's line and to the mark comes while the name is hashed.
        self.heads().fetch(fetch);
        self.enter(&mut trail, user, fetch);
        trail
    }

    /// Finds where in this space the trail of a user goes on. What is there is asked for.
    pub fn enter(&self, trail: &mut Trail, user: &[u8], fetch: Fetch) {
        let Some(indexes) = &self.indexes else { return };
        let hash = trail.hash(user);
        trail.hash = Some(hash);
        trail.place = indexes.by_user.place(hash.first());
        fetch(indexes.by_user.line_at(trail.place).as_ptr());
    }

    fn heads(&self) -> Heads {
        let by_user = self.indexes.as_ref().map(|indexes| std::ptr::from_ref(&indexes.by_user));
        Heads {
            by_user: by_user.map_or(std::ptr::null(), <*const _>::cast),
            kept: self.blocks.head(),
        }
    }

    /// Brings an outlook up to date, and returns whether it was.
    pub fn look_out(&self, outlook: &mut Outlook) -> bool {
        let heads = self.heads();
        let same = std::mem::replace(&mut outlook.heads, heads) == heads;
        let same_lines = match &self.indexes {
            Some(indexes) => outlook.by_user.update(&indexes.by_user),
            None => outlook.by_user.clear(),
        };
        same && same_lines
    }

    /// Goes on where the trail most probably leads, and asks for what a renewal looks at next, or for
    /// the `whole` session too.
    pub fn follow(&self, trail: &mut Trail, whole: bool, fetch: Fetch) {
        let Some(indexes) = &self.indexes else { return };
        trail.guess = indexes.by_user.guess(trail.place);
        let Some(id) = trail.guess else { return };
        if let Some(mark) = self.blocks.mark(id) {
            fetch(std::ptr::from_ref(mark).cast());
        }
        if whole {
            if let Some(record) = self.blocks.get(id) {
                record.lines().take(1).for_each(fetch);
            }
        }
    }

    /// The session that stands for the user.
    pub fn anchor(&self, user: &[u8]) -> Option<u32> {
        self.anchor_by(&Trail::default(), user)
    }

    fn anchor_by(&self, trail: &Trail, user: &[u8]) -> Option<u32> {
        let Some(indexes) = &self.indexes else {
            return self.few().find(|(_, record)| record.user() == user).map(|(id, _)| id);
        };
        let hash = trail.hash(user).first();
        indexes.by_user.find(hash, |id| {
            user_hash(&self.blocks, id) == hash
                && self.record(id).is_some_and(|record| record.user() == user)
        })
    }

    /// One session.
    pub fn find(&self, user: &[u8], session: &[u8]) -> Option<u32> {
        self.find_by(&Trail::default(), user, session)
    }

    /// One session, by the trail of its user.
    pub fn find_by(&self, trail: &Trail, user: &[u8], session: &[u8]) -> Option<u32> {
        let Some(indexes) = &self.indexes else {
            return self.few().find(|(_, it)| it.is(user, session)).map(|(id, _)| id);
        };
        let print = trail.print(user, session);
        let is_it = |id: &u32| self.blocks.print(*id) == Some(print);
        let alone = || indexes.by_user.find(print.first, |id| is_it(&id));
        let in_group = || indexes.by_session.find(print.both, |id| is_it(&id));
        let found = trail.guess.filter(is_it).or_else(alone).or_else(in_group);
        debug_assert!(
            found.is_none_or(|id| self.record(id).is_some_and(|record| record.is(user, session)))
        );
        found
    }

    /// The trails of these users, [`AT_ONCE`] at most, with what lies on them on its way. Each search
    /// waits for memory twice, one after the other; here all wait for it together. `whole` says
    /// that what is found will be looked at, and not only renewed. They take the place of what is in the
    /// list.
    pub fn trails<'a>(
        &self,
        users: impl Iterator<Item = &'a [u8]>,
        whole: bool,
        fetch: Fetch,
        trails: &mut Vec<Trail>,
    ) {
        trails.clear();
        self.heads().fetch(fetch);
        trails.extend(users.map(|user| {
            let mut trail = Trail::default();
            self.enter(&mut trail, user, fetch);
            trail
        }));
        for trail in trails {
            self.follow(trail, whole, fetch);
        }
    }

    /// How many sessions the user has, live or not.
    pub fn sessions_of(&self, trail: &Trail, user: &[u8]) -> usize {
        if self.indexes.is_none() {
            return self.few().filter(|(_, record)| record.user() == user).count();
        }
        let anchor = self.anchor_by(trail, user).and_then(|anchor| self.record(anchor));
        anchor.map_or(0, |anchor| self.group(anchor).map_or(1, |group| group.sessions.len()))
    }

    /// One of the user's sessions by its place among them. Ending it changes the places of those
    /// behind it only.
    pub fn nth_session(&self, user: &[u8], n: usize) -> Option<u32> {
        if self.indexes.is_none() {
            let mut of_user = self.few().filter(|(_, record)| record.user() == user);
            return of_user.nth(n).map(|(id, _)| id);
        }
        let anchor = self.anchor(user)?;
        match self.record(anchor).and_then(|anchor| self.group(anchor)) {
            Some(group) => group.sessions.get(n).copied(),
            None => (n == 0).then_some(anchor),
        }
    }

    /// The user who has this anchor, or none where it is not one or nothing of the user is live.
    fn user_at(&self, id: u32, now: Timestamp) -> Option<User<'_>> {
        let anchor = self.record(id)?;
        let user = User { members: self, anchor, now };
        (self.is_anchor(id, anchor) && user.sessions().next().is_some()).then_some(user)
    }

    /// A user who is online at `now`.
    pub fn user(&self, user: &[u8], now: Timestamp) -> Option<User<'_>> {
        self.user_by(&Trail::default(), user, now)
    }

    /// A user who is online at `now`, by the trail.
    pub fn user_by(&self, trail: &Trail, user: &[u8], now: Timestamp) -> Option<User<'_>> {
        self.user_at(self.anchor_by(trail, user)?, now)
    }

    /// Everybody who is online at `now`.
    pub fn online(&self, now: Timestamp) -> impl Iterator<Item = User<'_>> {
        self.blocks.iter().filter_map(move |(id, _)| self.user_at(id, now))
    }

    /// Everybody who is here with their hashes, in the order of these, from one on.
    fn in_order(&self, from: u64, fetch: Fetch) -> impl Iterator<Item = (u64, u32)> + '_ {
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
                record.lines().for_each(fetch);
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
        fetch: Fetch,
    ) -> (Vec<User<'_>>, Option<u32>) {
        if from == 0 && self.users() <= count {
            // All fit: as they lie is the quicker way, and in a small space the order of coming.
            return (self.online(now).collect(), None);
        }
        let mut users = Vec::new();
        let (mut looks, mut last) = (0, None);
        for (hash, id) in self.in_order(u64::from(from) << 32, fetch) {
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
    fn since(&self, record: Record<'_>) -> Timestamp {
        if self.indexes.is_none() {
            let anchor = self.few().find(|(_, anchor)| anchor.user() == record.user());
            return anchor.map_or(record, |(_, anchor)| anchor).since();
        }
        self.group(record).map_or(record.joined_at(), |group| group.joined_at)
    }

    /// Every session with the time its user came online; for saving and for digests.
    pub fn all(&self) -> impl Iterator<Item = (Record<'_>, Timestamp)> {
        self.blocks.iter().map(|(_, record)| (record, self.since(record)))
    }

    /// Adds a session that is not there yet. `since` is when its user came online, if
    /// nothing of the user is here. Returns whether it is the user's first.
    pub fn insert(&mut self, trail: &Trail, new: Record<'_>, since: Timestamp) -> bool {
        let trail = &self.make_way(trail, new);
        let anchor = self.anchor_by(trail, new.user());
        self.insert_beside(anchor, trail, new, since)
    }

    /// Adds a session that may be there already: returns false then, and has added nothing.
    pub fn insert_absent(&mut self, trail: &Trail, new: Record<'_>, since: Timestamp) -> bool {
        let trail = &self.make_way(trail, new);
        let anchor = self.anchor_by(trail, new.user());
        let is_absent =
            anchor.is_none() || self.find_by(trail, new.user(), new.session()).is_none();
        if is_absent {
            self.insert_beside(anchor, trail, new, since);
        }
        is_absent
    }

    /// Begins to use indexes where this session makes them worthwhile. Returns the trail that is good from
    /// then on.
    fn make_way(&mut self, trail: &Trail, new: Record<'_>) -> Trail {
        if self.indexes.is_none() && (self.blocks.len() >= FEW || !Kept::fits_row(new)) {
            self.rebuild(Some(Box::default()));
        }
        if trail.hash.is_none() {
            self.trail(new.user(), |_| {})
        } else {
            trail.clone()
        }
    }

    /// Adds a session to those of the user who has this anchor, or none yet.
    fn insert_beside(
        &mut self,
        anchor: Option<u32>,
        trail: &Trail,
        new: Record<'_>,
        since: Timestamp,
    ) -> bool {
        // Of who is here already, it is known.
        let since = if anchor.is_none() { since } else { new.joined_at() };
        let id = self.blocks.insert(new, since, || trail.print(new.user(), new.session()));
        if self.indexes.is_none() {
            return anchor.is_none();
        }
        let mut to_file = [None, None];
        if anchor.is_some() || since != new.joined_at() {
            let since = anchor.is_none().then_some(since);
            let (number, made) = self.group_of(anchor.unwrap_or(id), since);
            if let Some(anchor) = anchor {
                to_file[0] = made.then_some(anchor);
                if let Some(groups) = &mut self.groups {
                    groups.push(number, id);
                }
            }
            self.set_group(id, number);
            to_file[1] = Some(id);
        }
        if let Some(indexes) = &mut self.indexes {
            let blocks = &self.blocks;
            if anchor.is_none() {
                let hash = trail.hash(new.user()).first();
                indexes.by_user.insert(hash, id, |other| user_hash(blocks, other));
            }
            for id in to_file.into_iter().flatten() {
                let hash = session_hash(blocks, id);
                indexes.by_session.insert(hash, id, |other| session_hash(blocks, other));
            }
            indexes.leases.push(new.lease().until(), id, &mut self.blocks);
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
        let Some(mut record) = self.blocks.get_mut(anchor) else { return (NONE, false) };
        if record.read().group() != NONE {
            return (record.read().group(), false);
        }
        let joined_at = since.unwrap_or(record.read().joined_at());
        let group = Group { joined_at, sessions: vec![anchor] };
        let group = self.groups.get_or_insert_default().insert(group);
        record.set_group(group);
        (group, true)
    }

    /// Begins to use indexes, or ceases to.
    fn rebuild(&mut self, indexes: Option<Box<Indexes>>) {
        let blocks = if indexes.is_some() { Kept::for_many() } else { Kept::default() };
        let old = std::mem::replace(self, Members { blocks, groups: None, indexes });
        for (id, anchor) in old.blocks.iter() {
            match old.group(anchor) {
                None => {
                    self.insert(&Trail::default(), anchor, old.since(anchor));
                }
                Some(group) if group.sessions.first() == Some(&id) => {
                    for record in group.sessions.iter().filter_map(|id| old.record(*id)) {
                        self.insert(&Trail::default(), record, group.joined_at);
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// The session that had the number `old` has the number `new`: tells all who know it.
    fn renumber(&mut self, old: u32, new: u32) {
        let Some(record) = self.blocks.get(new) else { return };
        let (group, filed) = (record.group(), record.filed());
        let (mut is_anchor, mut in_group) = (true, false);
        if let Some(group) = self.groups.as_mut().and_then(|groups| groups.slab.get_mut(group)) {
            is_anchor = group.sessions.first() == Some(&old);
            in_group = true;
            if let Some(at) = group.sessions.iter_mut().find(|id| **id == old) {
                *at = new;
            }
        }
        let Some(indexes) = &mut self.indexes else { return };
        if is_anchor {
            indexes.by_user.replace(user_hash(&self.blocks, new), old, new);
        }
        if in_group {
            indexes.by_session.replace(session_hash(&self.blocks, new), old, new);
        }
        indexes.leases.rename(filed, new, &mut self.blocks);
    }

    /// Takes a block away that nothing refers to any more.
    fn free(&mut self, id: u32) {
        if let Some(moved) = self.blocks.remove(id) {
            self.renumber(moved, id);
        }
    }

    /// Takes a session out of a few, as [`Self::remove`] does. Should it be the anchor, the user's next
    /// one tells from now on since when the user is here.
    fn remove_of_few(&mut self, id: u32) -> Option<(Packed, bool)> {
        let record = self.record(id)?;
        let (removed, since) = (Packed::from(record), self.since(record));
        let was_anchor = self.is_anchor(id, record);
        self.blocks.remove(id);
        let heir = self.anchor(removed.read().user());
        if let Some(heir) = heir.filter(|_| was_anchor) {
            let changed = self.record(heir).map(|record| Packed::with_since(record, since));
            if let Some(changed) = changed {
                self.blocks.replace(heir, changed.read());
            }
        }
        Some((removed, heir.is_none()))
    }

    /// Takes a session out. Returns it, and whether it was its user's last.
    pub fn remove(&mut self, id: u32) -> Option<(Packed, bool)> {
        if self.indexes.is_none() {
            return self.remove_of_few(id);
        }
        let gone = self.record(id)?;
        let (removed, group, filed) = (Packed::from(gone), gone.group(), gone.filed());
        let of_group = self.groups.as_mut().and_then(|groups| groups.take(group, id));
        let (is_anchor, heir) = of_group.unwrap_or((true, None));
        if let Some(indexes) = &mut self.indexes {
            indexes.leases.remove(filed, &mut self.blocks);
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
        if self.groups.as_ref().is_some_and(|groups| groups.slab.len() == 0) {
            self.groups = None;
        }
        self.free(id);
        if self.indexes.is_some()
            && self.blocks.len() * 4 < FEW
            && self.blocks.iter().all(|(_, record)| Kept::fits_row(record))
        {
            self.rebuild(None);
        }
        Some((removed, heir.is_none()))
    }

    /// Writes a lease. The order is touched only where the lease is now earlier than it says.
    pub fn set_lease(&mut self, id: u32, lease: Timestamp, lingering: bool) {
        let before = self.blocks.set_lease(id, Lease::new(lease, lingering));
        if before.is_none_or(|before| lease >= before.until()) {
            return;
        }
        let filed = self.record(id).map_or(NONE, Record::filed);
        if let Some(indexes) = &mut self.indexes {
            if indexes.leases.due_at(filed).is_some_and(|due| lease < due) {
                indexes.leases.refile(filed, lease, &mut self.blocks);
            }
        }
    }

    /// Replaces a session's metadata. Returns the number that the session has by then.
    pub fn set_meta(&mut self, id: u32, meta: Text) -> u32 {
        let Some(record) = self.record(id) else { return id };
        let changed = Packed::with_meta(record, meta);
        let changed = changed.read();
        if self.indexes.is_none() && !Kept::fits_row(changed) {
            self.rebuild(Some(Box::default()));
            let id = self.find(changed.user(), changed.session());
            return id.map_or(NONE, |id| self.set_meta(id, meta));
        }
        if self.blocks.replace(id, changed) {
            return id;
        }
        let (group, filed) = self.record(id).map_or((NONE, NONE), |old| (old.group(), old.filed()));
        let print = || Trail::default().print(changed.user(), changed.session());
        let new = self.blocks.insert(changed, changed.joined_at(), print);
        if let Some(mut record) = self.blocks.get_mut(new) {
            record.note(group, filed);
        }
        self.renumber(id, new);
        self.free(id);
        new
    }

    /// Every lease becomes at least `until`.
    pub fn extend_all(&mut self, until: Timestamp) {
        self.blocks.change_leases(|lease| match lease.until() < until {
            true => Lease::new(until, lease.is_lingering()),
            false => lease,
        });
    }

    /// No lease ends before this moment; there may be none that ends at it. None where nobody is
    /// here.
    pub fn next_lease(&self) -> Option<Timestamp> {
        match &self.indexes {
            Some(indexes) => indexes.leases.peek().map(|(due, _)| due),
            None => self.blocks.iter().map(|(_, record)| record.lease().until()).min(),
        }
    }

    /// A session whose lease is over at `now`, filing again what turns out to have been renewed.
    /// Gives up, with `Err`, when `may_go_on` says so.
    pub fn next_lapsed(
        &mut self,
        now: Timestamp,
        may_go_on: &mut impl FnMut() -> bool,
    ) -> Result<Option<u32>, OutOfTime> {
        let Some(indexes) = &mut self.indexes else {
            let mut blocks = self.blocks.iter();
            return Ok(blocks.find(|(_, record)| !record.is_live(now)).map(|(id, _)| id));
        };
        while let Some((due, id)) = indexes.leases.peek() {
            if due > now {
                break;
            }
            let Some(record) = self.blocks.get(id) else { break };
            if !record.is_live(now) {
                return Ok(Some(id));
            }
            if !may_go_on() {
                return Err(OutOfTime);
            }
            let (filed, lease) = (record.filed(), record.lease().until());
            indexes.leases.refile(filed, lease, &mut self.blocks);
        }
        Ok(None)
    }

    /// How many users and sessions are here whose leases are over at `now`. Looks only at those
    /// and at what the order files too early, so it costs nothing while the sweep keeps up.
    pub fn lapsed(&self, now: Timestamp) -> (usize, usize) {
        let (mut users, mut sessions) = (0, 0);
        let mut look = |id: u32| {
            let Some(record) = self.record(id).filter(|record| !record.is_live(now)) else {
                return;
            };
            sessions += 1;
            // Counted once, at the anchor.
            let user = User { members: self, anchor: record, now };
            let gone = self.is_anchor(id, record) && user.sessions().next().is_none();
            users += usize::from(gone);
        };
        match &self.indexes {
            Some(indexes) => indexes.leases.for_each_due(now, look),
            None => self.blocks.iter().for_each(|(id, _)| look(id)),
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

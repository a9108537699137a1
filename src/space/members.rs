//! Who is in a space: the sessions, found by name and ordered by lease.
//!
//! * `slots` holds the sessions. The first session of a user takes a slot that stays the user's
//!   **anchor** for as long as the user is online: when that session ends before the user's
//!   others, one of them moves into the anchor. So a walk over the slots that stops and goes on
//!   later meets everybody who was there throughout exactly once, at the anchor.
//! * A user with several sessions has a **group** that lists their slots, the anchor first, and
//!   remembers when the user came online. It stays until the user leaves.
//! * `by_user` finds anchors; `by_session` finds the sessions of users that have a group.
//! * `leases` is the order by lease. A renewal writes the lease into the record and leaves the
//!   order alone: an entry is filed at the session's lease *or earlier*. What comes up too early
//!   is filed again under the lease that it has by then.
//!
//! A space of a few sessions has no indexes; its slots are looked through.

use super::record::Record;
use super::Timestamp;
use crate::collections::{hash_of, DueHeap, HashIndex, Positions, Slab};

/// Up to so many sessions a look through all of them is as quick as an index and costs nothing.
const FEW: usize = 8;
const NONE: u32 = u32::MAX;

#[derive(Clone)]
struct Slot {
    record: Record,
    /// The user's group, or `NONE`.
    group: u32,
    /// Where in the order by lease; without meaning while there is no order.
    filed: u32,
}

#[derive(Clone)]
struct Group {
    joined_at: Timestamp,
    /// The slots of the user's sessions, oldest first but for the anchor, which is always first.
    slots: Vec<u32>,
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
    slots: Slab<Slot>,
    groups: Option<Box<Slab<Group>>>,
    indexes: Option<Box<Indexes>>,
    users: usize,
    /// Bytes of all records on the heap.
    record_bytes: usize,
}

impl Positions for Slab<Slot> {
    fn moved(&mut self, id: u32, position: u32) {
        if let Some(slot) = self.get_mut(id) {
            slot.filed = position;
        }
    }
}

fn user_hash(slots: &Slab<Slot>, id: u32) -> u64 {
    slots.get(id).map_or(0, |slot| hash_of(slot.record.user(), b""))
}

fn session_hash(slots: &Slab<Slot>, id: u32) -> u64 {
    slots.get(id).map_or(0, |slot| hash_of(slot.record.user(), slot.record.session()))
}

/// A user as a reader sees it: the sessions that are live.
pub struct User<'a> {
    members: &'a Members,
    anchor: &'a Slot,
    now: Timestamp,
}

impl<'a> User<'a> {
    pub fn name(&self) -> &'a [u8] {
        self.anchor.record.user()
    }

    /// When the user came online (unix ms).
    pub fn joined_at(&self) -> Timestamp {
        self.members
            .group(self.anchor)
            .map_or(self.anchor.record.joined_at(), |group| group.joined_at)
    }

    /// The live sessions.
    pub fn sessions(&self) -> impl Iterator<Item = &'a Record> {
        let (members, now) = (self.members, self.now);
        let group = members.group(self.anchor);
        let alone = if group.is_none() { Some(&self.anchor.record) } else { None };
        let several =
            group.into_iter().flat_map(|group| &group.slots).filter_map(|id| members.record(*id));
        alone.into_iter().chain(several).filter(move |record| record.is_live(now))
    }
}

impl Members {
    pub fn users(&self) -> usize {
        self.users
    }

    pub fn sessions(&self) -> usize {
        self.slots.len()
    }

    pub fn record(&self, id: u32) -> Option<&Record> {
        self.slots.get(id).map(|slot| &slot.record)
    }

    fn group(&self, slot: &Slot) -> Option<&Group> {
        self.groups.as_ref()?.get(slot.group)
    }

    /// The slot that stands for the user.
    pub fn anchor(&self, user: &[u8]) -> Option<u32> {
        let is_it = |slot: &Slot| slot.record.user() == user;
        match &self.indexes {
            Some(indexes) => {
                indexes.by_user.find(hash_of(user, b""), |id| self.slots.get(id).is_some_and(is_it))
            }
            None => {
                let (id, slot) = self.slots.iter_from(0).find(|(_, slot)| is_it(slot))?;
                Some(self.group(slot).and_then(|group| group.slots.first().copied()).unwrap_or(id))
            }
        }
    }

    /// The slot of one session.
    pub fn find(&self, user: &[u8], session: &[u8]) -> Option<u32> {
        let is_it = |slot: &Slot| slot.record.session() == session && slot.record.user() == user;
        let Some(indexes) = &self.indexes else {
            return self.slots.iter_from(0).find(|(_, slot)| is_it(slot)).map(|(id, _)| id);
        };
        let anchor = self.anchor(user)?;
        let slot = self.slots.get(anchor)?;
        if slot.record.session() == session {
            return Some(anchor);
        }
        if slot.group == NONE {
            return None;
        }
        indexes.by_session.find(hash_of(user, session), |id| self.slots.get(id).is_some_and(is_it))
    }

    /// The slots of all sessions of the user whose anchor this is, live or not.
    pub fn sessions_of(&self, anchor: u32) -> Vec<u32> {
        match self.slots.get(anchor).and_then(|slot| self.group(slot)) {
            Some(group) => group.slots.clone(),
            None => vec![anchor],
        }
    }

    /// The user at this anchor, or none where the slot is not an anchor or nothing of it is live.
    fn user_at(&self, id: u32, slot: &'_ Slot, now: Timestamp) -> Option<User<'_>> {
        let anchor = self.slots.get(id)?;
        let is_anchor = self.group(slot).is_none_or(|group| group.slots.first() == Some(&id));
        let user = User { members: self, anchor, now };
        (is_anchor && user.sessions().next().is_some()).then_some(user)
    }

    /// A user who is online at `now`.
    pub fn user(&self, user: &[u8], now: Timestamp) -> Option<User<'_>> {
        let id = self.anchor(user)?;
        self.user_at(id, self.slots.get(id)?, now)
    }

    /// The slots from `from` on, each with the user it is the anchor of, if that user is online.
    /// Slots that are empty are passed over.
    pub fn walk(&self, from: u32, now: Timestamp) -> impl Iterator<Item = (u32, Option<User<'_>>)> {
        self.slots.iter_from(from).map(move |(id, slot)| (id, self.user_at(id, slot, now)))
    }

    /// Every session with the time its user came online; for saving and for digests.
    pub fn all(&self) -> impl Iterator<Item = (&Record, Timestamp)> {
        self.slots.iter_from(0).map(|(_, slot)| {
            let since = self.group(slot).map_or(slot.record.joined_at(), |group| group.joined_at);
            (&slot.record, since)
        })
    }

    /// Adds a session that is not there yet. `since` is when its user came online, where that is
    /// earlier than anything of the user that is here.
    pub fn insert(&mut self, record: Record, since: Timestamp) {
        let anchor = self.anchor(record.user());
        self.record_bytes += record.heap_bytes();
        let lease = record.lease();
        let outlived = since < record.joined_at();
        let id = self.slots.insert(Slot { record, group: NONE, filed: NONE });
        if anchor.is_none() {
            self.users += 1;
        }
        let mut to_file = [None, None];
        if anchor.is_some() || outlived {
            let (group, made) = self.group_of(anchor.unwrap_or(id), since);
            if let Some(anchor) = anchor {
                to_file[0] = made.then_some(anchor);
                if let Some(group) = self.groups.as_mut().and_then(|groups| groups.get_mut(group)) {
                    group.slots.push(id);
                }
            }
            if let Some(slot) = self.slots.get_mut(id) {
                slot.group = group;
            }
            to_file[1] = Some(id);
        }
        if let Some(indexes) = &mut self.indexes {
            let slots = &self.slots;
            if anchor.is_none() {
                indexes.by_user.insert(user_hash(slots, id), id, |other| user_hash(slots, other));
            }
            for id in to_file.into_iter().flatten() {
                indexes
                    .by_session
                    .insert(session_hash(slots, id), id, |other| session_hash(slots, other));
            }
            indexes.leases.push(lease, id, &mut self.slots);
        } else if self.slots.len() > FEW {
            self.build_indexes();
        }
    }

    /// The group of the user whose anchor this is, and whether it had to be made.
    fn group_of(&mut self, anchor: u32, since: Timestamp) -> (u32, bool) {
        let Some(slot) = self.slots.get_mut(anchor) else { return (NONE, false) };
        if slot.group != NONE {
            return (slot.group, false);
        }
        let joined_at = since.min(slot.record.joined_at());
        slot.group =
            self.groups.get_or_insert_default().insert(Group { joined_at, slots: vec![anchor] });
        (slot.group, true)
    }

    fn build_indexes(&mut self) {
        let mut indexes = Box::<Indexes>::default();
        let ids: Vec<u32> = self.slots.iter_from(0).map(|(id, _)| id).collect();
        for id in ids {
            let Some(slot) = self.slots.get(id) else { continue };
            let lease = slot.record.lease();
            let slots = &self.slots;
            let group = self.group(slot);
            if group.is_none_or(|group| group.slots.first() == Some(&id)) {
                indexes.by_user.insert(user_hash(slots, id), id, |other| user_hash(slots, other));
            }
            if group.is_some() {
                indexes
                    .by_session
                    .insert(session_hash(slots, id), id, |other| session_hash(slots, other));
            }
            indexes.leases.push(lease, id, &mut self.slots);
        }
        self.indexes = Some(indexes);
    }

    /// Takes a session out. Its user's other sessions may change their slots.
    pub fn remove(&mut self, id: u32) -> Option<Record> {
        let slot = self.slots.get(id)?;
        let (group, filed) = (slot.group, slot.filed);
        let user = user_hash(&self.slots, id);
        let session = session_hash(&self.slots, id);
        if let Some(indexes) = &mut self.indexes {
            indexes.leases.remove(filed, &mut self.slots);
            if group != NONE {
                let slots = &self.slots;
                indexes.by_session.remove(
                    session,
                    |other| other == id,
                    |other| session_hash(slots, other),
                );
            }
        }
        let (was_anchor, heir) = match self.groups.as_mut().and_then(|groups| groups.get_mut(group))
        {
            Some(group) => {
                let was_anchor = group.slots.first() == Some(&id);
                // From the end: who ends all sessions of a user ends the last first.
                if let Some(at) = group.slots.iter().rposition(|other| *other == id) {
                    group.slots.remove(at);
                }
                (was_anchor, group.slots.first().copied())
            }
            None => (true, None),
        };
        let removed = match (was_anchor, heir) {
            (true, None) => self.remove_user(id, group, user),
            (true, Some(heir)) => self.move_into_anchor(heir, id, group),
            (false, _) => self.slots.remove(id),
        }?;
        self.record_bytes -= removed.record.heap_bytes();
        if self.slots.len() * 4 < FEW {
            self.indexes = None;
        }
        Some(removed.record)
    }

    /// The last session of a user goes, and the user with it.
    fn remove_user(&mut self, id: u32, group: u32, user: u64) -> Option<Slot> {
        if let Some(indexes) = &mut self.indexes {
            let slots = &self.slots;
            indexes.by_user.remove(user, |other| other == id, |other| user_hash(slots, other));
        }
        if let Some(groups) = &mut self.groups {
            groups.remove(group);
            if groups.len() == 0 {
                self.groups = None;
            }
        }
        self.users -= 1;
        self.slots.remove(id)
    }

    /// The session in the anchor goes, and another of the user takes its slot.
    fn move_into_anchor(&mut self, heir: u32, anchor: u32, group: u32) -> Option<Slot> {
        if heir == anchor {
            return None;
        }
        let session = session_hash(&self.slots, heir);
        let moved = self.slots.remove(heir)?;
        let filed = moved.filed;
        let gone = std::mem::replace(self.slots.get_mut(anchor)?, moved);
        if let Some(first) = self
            .groups
            .as_mut()
            .and_then(|groups| groups.get_mut(group))
            .and_then(|group| group.slots.first_mut())
        {
            *first = anchor;
        }
        if let Some(indexes) = &mut self.indexes {
            indexes.by_session.replace(session, heir, anchor);
            indexes.leases.rename(filed, anchor, &mut self.slots);
        }
        Some(gone)
    }

    /// Writes a lease. The order is touched only where the lease is now earlier than it says.
    pub fn set_lease(&mut self, id: u32, lease: Timestamp, lingering: bool) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        let shorter = lease < slot.record.lease();
        slot.record.set_lease(lease);
        if slot.record.is_lingering() != lingering {
            slot.record.set_lingering(lingering);
        }
        let filed = slot.filed;
        if let Some(indexes) = self.indexes.as_mut().filter(|_| shorter) {
            if indexes.leases.due_at(filed).is_some_and(|due| lease < due) {
                indexes.leases.refile(filed, lease, &mut self.slots);
            }
        }
    }

    pub fn set_meta(&mut self, id: u32, meta: super::Text) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        let before = slot.record.heap_bytes();
        slot.record.set_meta(meta);
        self.record_bytes = self.record_bytes + slot.record.heap_bytes() - before;
    }

    /// Every lease becomes at least `until`.
    pub fn extend_all(&mut self, until: Timestamp) {
        for slot in self.slots.values_mut() {
            if slot.record.lease() < until {
                slot.record.set_lease(until);
            }
        }
    }

    /// No lease ends before this moment; there may be none that ends at it. None where nobody is
    /// here.
    pub fn next_lease(&self) -> Option<Timestamp> {
        match &self.indexes {
            Some(indexes) => indexes.leases.peek().map(|(due, _)| due),
            None => self.slots.iter_from(0).map(|(_, slot)| slot.record.lease()).min(),
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
            let mut lapsed = self.slots.iter_from(0).filter(|(_, slot)| !slot.record.is_live(now));
            return Ok(lapsed.next().map(|(id, _)| id));
        };
        while let Some((due, id)) = indexes.leases.peek() {
            if due > now {
                break;
            }
            let Some(slot) = self.slots.get(id) else { break };
            if !slot.record.is_live(now) {
                return Ok(Some(id));
            }
            if !may_go_on() {
                return Err(OutOfTime);
            }
            let lease = slot.record.lease();
            let filed = slot.filed;
            indexes.leases.refile(filed, lease, &mut self.slots);
        }
        Ok(None)
    }

    /// How many users and sessions are here whose leases are over at `now`. Looks only at those
    /// and at what the order files too early, so it costs nothing while the sweep keeps up.
    pub fn lapsed(&self, now: Timestamp) -> (usize, usize) {
        let (mut users, mut sessions) = (0, 0);
        let mut look = |id: u32| {
            let Some(slot) = self.slots.get(id) else { return };
            if slot.record.is_live(now) {
                return;
            }
            sessions += 1;
            let gone = match self.group(slot) {
                None => true,
                // Counted once, at the anchor.
                Some(group) => {
                    group.slots.first() == Some(&id)
                        && group
                            .slots
                            .iter()
                            .all(|id| self.record(*id).is_some_and(|record| !record.is_live(now)))
                }
            };
            users += usize::from(gone);
        };
        match &self.indexes {
            Some(indexes) => indexes.leases.for_each_due(now, look),
            None => self.slots.iter_from(0).for_each(|(id, _)| look(id)),
        }
        (users, sessions)
    }

    /// Bytes on the heap, in constant time.
    pub fn heap_bytes(&self) -> usize {
        let groups = self.groups.as_ref().map_or(0, |groups| {
            size_of::<Slab<Group>>()
                + groups.heap_bytes()
                + groups.len() * super::allocated(4 * size_of::<u32>())
        });
        let indexes = self.indexes.as_ref().map_or(0, |indexes| {
            size_of::<Indexes>()
                + indexes.by_user.heap_bytes()
                + indexes.by_session.heap_bytes()
                + indexes.leases.heap_bytes()
        });
        self.record_bytes + self.slots.heap_bytes() + groups + indexes
    }
}

/// The time for this piece of work is over; there is more of it.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfTime;

//! What a space keeps of the owners that have sessions in it.
//!
//! Layout:
//! * Each owner with sessions here has a slot. The lease of an owned session is the number of the slot.
//! * In an indexed space, a slot lists its sessions, and the record of a session has its position in that list.
//!   So an owned session takes no part in the order by lease.
//! * A user whose sessions have several owners has a **set** of slots. Users with the same owners share it. A user
//!   with one owner has the slot itself, see [`SetId`].
//!
//! Counting: a slot and a set count their **gone** users: those who have no other session than owned ones, or whose
//! other sessions have expired. If all owners of a set have expired, its gone users are offline. So the end of an
//! owner costs a step for each set that it is in, and none for its users and sessions.
//!
//! Whether a slot has expired is as of the last [`OwnerTable::advance`].

use super::record::NONE;
use super::{Timestamp, allocated};
use crate::owners::{Owner, OwnerClock, OwnerLease};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Up to so many slots are searched through.
const FEW_SLOTS: usize = 8;

/// The owners of a user's sessions: none, one slot, or a set of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetId(u32);

impl SetId {
    pub const NONE: SetId = SetId(0);
    const MANY: u32 = 1 << 31;

    pub fn slot(slot: u32) -> Self {
        SetId(slot + 1)
    }

    fn as_slot(self) -> Option<u32> {
        (self.0 & Self::MANY == 0).then(|| self.0.checked_sub(1)).flatten()
    }

    fn as_many(self) -> Option<u32> {
        (self.0 & Self::MANY != 0).then_some(self.0 & !Self::MANY)
    }
}

struct Slot {
    owner: Arc<Owner>,
    /// In an indexed space.
    ids: Vec<u32>,
    count: u32,
    is_expired: bool,
    /// Users whose only owner this is and who are gone if it has expired.
    gone: u32,
    /// The sets that it is in.
    sets: BTreeSet<u32>,
}

#[derive(Clone)]
struct OwnerSet {
    slots: Box<[u32]>,
    users: u32,
    /// How many of the owners have not expired.
    live: u32,
    gone: u32,
}

#[derive(Clone, Default)]
struct OwnerSets {
    sets: BTreeMap<u32, OwnerSet>,
    by_slots: BTreeMap<Box<[u32]>, u32>,
    free: Vec<u32>,
}

/// The owners of the sessions of a space. See the head of the file.
pub struct OwnerTable {
    clock: Arc<OwnerClock>,
    /// Up to which change of the clock the slots are right.
    seen: u64,
    slots: Vec<Option<Slot>>,
    /// Slots that are not in use.
    free_slots: Vec<u32>,
    sets: Option<Box<OwnerSets>>,
    /// The slots by the number of the owner, where they are many.
    #[allow(clippy::box_collection)]
    by_owner: Option<Box<BTreeMap<u64, u32>>>,
    /// Slots in use.
    len: u32,
    expired_sessions: u32,
    offline_users: u32,
    /// Slots that have expired and have sessions.
    expired: BTreeSet<u32>,
    /// Owners that have got a slot, or lost it, since this was asked for last.
    news: Vec<Arc<Owner>>,
    /// The owners do not count the sessions here: the space is not in the keyspace.
    is_released: AtomicBool,
    list_bytes: usize,
}

impl Clone for OwnerTable {
    fn clone(&self) -> Self {
        let copy = |slot: &Slot| Slot {
            owner: slot.owner.clone(),
            ids: slot.ids.clone(),
            sets: slot.sets.clone(),
            ..*slot
        };
        let slots: Vec<Option<Slot>> =
            self.slots.iter().map(|slot| slot.as_ref().map(copy)).collect();
        let list_bytes = slots.iter().flatten().map(Slot::bytes).sum();
        OwnerTable {
            clock: self.clock.clone(),
            slots,
            free_slots: self.free_slots.clone(),
            sets: self.sets.clone(),
            by_owner: self.by_owner.clone(),
            expired: self.expired.clone(),
            news: Vec::new(),
            // Until it is bound under the name of its key.
            is_released: AtomicBool::new(true),
            list_bytes,
            ..*self
        }
    }
}

impl Drop for OwnerTable {
    fn drop(&mut self) {
        self.release();
    }
}

impl Slot {
    fn bytes(&self) -> usize {
        allocated(self.ids.capacity() * size_of::<u32>())
    }
}

impl OwnerTable {
    pub fn new(clock: Arc<OwnerClock>) -> Self {
        OwnerTable {
            seen: clock.changes(),
            clock,
            slots: Vec::new(),
            free_slots: Vec::new(),
            sets: None,
            by_owner: None,
            len: 0,
            expired_sessions: 0,
            offline_users: 0,
            expired: BTreeSet::new(),
            news: Vec::new(),
            is_released: AtomicBool::new(false),
            list_bytes: 0,
        }
    }

    fn get(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    fn iter(&self) -> impl Iterator<Item = (u32, &Slot)> {
        let numbered = self.slots.iter().enumerate();
        numbered.filter_map(|(number, slot)| Some((number as u32, slot.as_ref()?)))
    }

    pub fn clock(&self) -> &Arc<OwnerClock> {
        &self.clock
    }

    pub fn owner(&self, slot: u32) -> Option<&Arc<Owner>> {
        self.get(slot).map(|slot| &slot.owner)
    }

    /// The owners with their slots and how many sessions each has.
    pub fn owners(&self) -> impl Iterator<Item = (u32, &Arc<Owner>, usize)> {
        self.iter().map(|(number, slot)| (number, &slot.owner, slot.count as usize))
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slot of an owner.
    pub fn find(&self, owner: u64) -> Option<u32> {
        match &self.by_owner {
            Some(by_owner) => by_owner.get(&owner).copied(),
            None => self.iter().find(|(_, slot)| slot.owner.id() == owner).map(|(slot, _)| slot),
        }
    }

    /// The slot of an owner, which gets one if it has none. One without sessions is freed by [`Self::tidy`].
    pub fn slot_of(&mut self, owner: &Arc<Owner>) -> u32 {
        if let Some(slot) = self.find(owner.id()) {
            return slot;
        }
        let slot = Slot {
            owner: owner.clone(),
            ids: Vec::new(),
            count: 0,
            is_expired: self.clock.is_expired(owner.id()),
            gone: 0,
            sets: BTreeSet::new(),
        };
        let number = match self.free_slots.pop() {
            Some(number) => {
                if let Some(place) = self.slots.get_mut(number as usize) {
                    *place = Some(slot);
                }
                number
            }
            None => {
                if self.slots.is_empty() {
                    self.slots.reserve_exact(1);
                }
                self.slots.push(Some(slot));
                (self.slots.len() - 1) as u32
            }
        };
        self.len += 1;
        self.news.push(owner.clone());
        match &mut self.by_owner {
            Some(by_owner) => {
                by_owner.insert(owner.id(), number);
            }
            None if self.len as usize > FEW_SLOTS => self.index_owners(),
            None => {}
        }
        number
    }

    fn index_owners(&mut self) {
        let by_owner = self.iter().map(|(number, slot)| (slot.owner.id(), number)).collect();
        self.by_owner = Some(Box::new(by_owner));
    }

    fn free(&mut self, slot: u32) {
        let Some(gone) = self.slots.get_mut(slot as usize).and_then(Option::take) else { return };
        debug_assert!(gone.count == 0 && gone.gone == 0 && gone.sets.is_empty());
        self.list_bytes -= gone.bytes();
        self.len -= 1;
        self.expired.remove(&slot);
        if let Some(by_owner) = &mut self.by_owner {
            by_owner.remove(&gone.owner.id());
        }
        self.news.push(gone.owner);
        if self.len > 0 {
            self.free_slots.push(slot);
        } else {
            (self.slots, self.free_slots) = (Vec::new(), Vec::new());
        }
    }

    /// Adds a session to a slot. Returns its position in the slot's list, which has it only in an indexed space.
    pub fn attach(&mut self, slot: u32, id: Option<u32>) -> u32 {
        let is_released = *self.is_released.get_mut();
        let Some(entry) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) else {
            return NONE;
        };
        entry.count += 1;
        if !is_released {
            entry.owner.add_sessions(1);
        }
        let position = entry.ids.len() as u32;
        if let Some(id) = id {
            let before = entry.bytes();
            if entry.ids.len() == entry.ids.capacity() {
                entry.ids.reserve_exact((entry.ids.len() / 4).max(1));
            }
            entry.ids.push(id);
            self.list_bytes = self.list_bytes + entry.bytes() - before;
        }
        if entry.is_expired {
            self.expired_sessions += 1;
            self.expired.insert(slot);
        }
        position
    }

    /// Takes a session out of a slot. Returns the session that has its position in the list from now on. The
    /// slot is freed with its last session, unless users are still counted in it: see [`Self::tidy`].
    pub fn detach(&mut self, slot: u32, position: Option<u32>) -> Option<u32> {
        let is_released = *self.is_released.get_mut();
        let entry = self.slots.get_mut(slot as usize)?.as_mut()?;
        entry.count -= 1;
        if !is_released {
            entry.owner.take_sessions(1);
        }
        if entry.is_expired {
            self.expired_sessions -= 1;
        }
        let position = position.filter(|position| (*position as usize) < entry.ids.len())?;
        let before = entry.bytes();
        entry.ids.swap_remove(position as usize);
        let moved = entry.ids.get(position as usize).copied();
        if entry.ids.len() * 4 < entry.ids.capacity() {
            entry.ids.shrink_to(entry.ids.len() * 2);
        }
        self.list_bytes = self.list_bytes + entry.bytes() - before;
        moved
    }

    /// Frees a slot that has no session.
    pub fn tidy(&mut self, slot: u32) {
        if self.get(slot).is_some_and(|entry| entry.count == 0) {
            self.free(slot);
        }
    }

    /// Frees all slots that have no session.
    pub fn tidy_all(&mut self) {
        (0..self.slots.len() as u32).rev().for_each(|slot| self.tidy(slot));
    }

    /// The session at this position of a slot's list has another number.
    pub fn rename(&mut self, slot: u32, position: u32, id: u32) {
        let ids = self.get_mut(slot).map(|slot| &mut slot.ids);
        if let Some(entry) = ids.and_then(|ids| ids.get_mut(position as usize)) {
            *entry = id;
        }
    }

    /// No session is here any more, but the slots keep their numbers: the sessions are about to be added again.
    pub fn clear(&mut self) {
        let is_released = *self.is_released.get_mut();
        for slot in self.slots.iter_mut().flatten() {
            if !is_released {
                slot.owner.take_sessions(slot.count as usize);
            }
            (slot.ids, slot.count, slot.gone) = (Vec::new(), 0, 0);
            slot.sets.clear();
        }
        self.sets = None;
        self.expired.clear();
        (self.expired_sessions, self.offline_users, self.list_bytes) = (0, 0, 0);
    }

    /// The set of these slots, which are in order and without duplicates, for one more user.
    pub fn intern(&mut self, slots: &[u32]) -> SetId {
        match slots {
            [] => return SetId::NONE,
            [slot] => return SetId::slot(*slot),
            _ => {}
        }
        let sets = self.sets.get_or_insert_default();
        if let Some(id) = sets.by_slots.get(slots) {
            if let Some(set) = sets.sets.get_mut(id) {
                set.users += 1;
            }
            return SetId(*id | SetId::MANY);
        }
        let id = sets.free.pop().unwrap_or(sets.sets.len() as u32);
        sets.by_slots.insert(slots.into(), id);
        let mut live = 0;
        for slot in slots {
            let entry = self.slots.get_mut(*slot as usize).and_then(Option::as_mut);
            if let Some(entry) = entry {
                entry.sets.insert(id);
                live += u32::from(!entry.is_expired);
            }
        }
        sets.sets.insert(id, OwnerSet { slots: slots.into(), users: 1, live, gone: 0 });
        SetId(id | SetId::MANY)
    }

    /// A user has the set no longer.
    pub fn release_set(&mut self, set: SetId) {
        let Some((id, sets)) = set.as_many().zip(self.sets.as_mut()) else { return };
        let Some(entry) = sets.sets.get_mut(&id) else { return };
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        debug_assert_eq!(entry.gone, 0);
        let Some(gone) = sets.sets.remove(&id) else { return };
        sets.by_slots.remove(&gone.slots);
        sets.free.push(id);
        for slot in &gone.slots {
            if let Some(entry) = self.slots.get_mut(*slot as usize).and_then(Option::as_mut) {
                entry.sets.remove(&id);
            }
        }
        if sets.sets.is_empty() {
            self.sets = None;
        }
    }

    /// So many more users of the set are gone but for its owners, or less.
    pub fn count_gone(&mut self, set: SetId, change: i32) {
        let (gone, is_expired) = if let Some(slot) = set.as_slot() {
            let Some(slot) = self.get_mut(slot) else { return };
            (&mut slot.gone, slot.is_expired)
        } else {
            let sets = self.sets.as_mut().map(|sets| &mut sets.sets);
            let set = set.as_many().zip(sets).and_then(|(id, sets)| sets.get_mut(&id));
            let Some(set) = set else { return };
            (&mut set.gone, set.live == 0)
        };
        *gone = gone.wrapping_add_signed(change);
        if is_expired {
            self.offline_users = self.offline_users.wrapping_add_signed(change);
        }
    }

    fn set_expired(&mut self, number: u32, is_expired: bool) {
        let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut) else {
            return;
        };
        if std::mem::replace(&mut slot.is_expired, is_expired) == is_expired {
            return;
        }
        let sign = if is_expired { 1 } else { -1 };
        let apply = |total: &mut u32, count: u32| {
            *total = total.wrapping_add_signed(sign * count as i32);
        };
        apply(&mut self.expired_sessions, slot.count);
        apply(&mut self.offline_users, slot.gone);
        for set in &slot.sets {
            let Some(set) = self.sets.as_mut().and_then(|sets| sets.sets.get_mut(set)) else {
                continue;
            };
            // The end of the last one, or the return of the first.
            set.live = set.live.wrapping_add_signed(-sign);
            if set.live == u32::from(!is_expired) {
                apply(&mut self.offline_users, set.gone);
            }
        }
        if is_expired && slot.count > 0 {
            self.expired.insert(number);
        } else {
            self.expired.remove(&number);
        }
    }

    /// Brings the slots to `now`. Returns whether any has changed.
    pub fn advance(&mut self, now: Timestamp) -> bool {
        let changes = self.clock.advance(now);
        if changes == self.seen {
            return false;
        }
        match self.clock.changed_since(self.seen, self.len as usize) {
            Some(changed) => {
                for (owner, is_expired) in changed {
                    if let Some(slot) = self.find(owner) {
                        self.set_expired(slot, is_expired);
                    }
                }
            }
            None => self.look_at_all(),
        }
        self.seen = changes;
        true
    }

    fn look_at_all(&mut self) {
        let expired = self.clock.expired_of(self.iter().map(|(_, slot)| slot.owner.id()));
        let numbers: Vec<u32> = self.iter().map(|(number, _)| number).collect();
        for (slot, is_expired) in numbers.into_iter().zip(expired) {
            self.set_expired(slot, is_expired);
        }
    }

    /// Users who are offline as all owners of their sessions have expired, and sessions of expired owners.
    pub fn expired(&self) -> (usize, usize) {
        (self.offline_users as usize, self.expired_sessions as usize)
    }

    /// A session of an expired owner, in an indexed space.
    pub fn first_expired(&self) -> Option<u32> {
        self.expired.iter().find_map(|slot| self.get(*slot)?.ids.last().copied())
    }

    /// The sessions of a slot, in an indexed space.
    pub fn sessions(&self, slot: u32) -> &[u32] {
        self.get(slot).map_or(&[], |slot| &slot.ids)
    }

    /// The sessions of the owners that have not expired, in an indexed space.
    pub fn live_sessions(&self) -> impl Iterator<Item = u32> + '_ {
        let live = self.iter().filter(|(_, slot)| !slot.is_expired);
        live.flat_map(|(_, slot)| slot.ids.iter().copied())
    }

    /// Owners that have got a slot or lost it since this was called last, and whether they have one now.
    pub fn take_news(&mut self) -> Vec<(Arc<Owner>, bool)> {
        let news = std::mem::take(&mut self.news);
        news.into_iter()
            .map(|owner| (self.find(owner.id()).is_some(), owner))
            .map(|(has, owner)| (owner, has))
            .collect()
    }

    /// What is left of the table when the space ends: that it has no owners any more is news.
    pub fn ended(&self) -> Self {
        self.release();
        let mut table = OwnerTable::new(self.clock.clone());
        table.news = self.news.clone();
        table.news.extend(self.iter().map(|(_, slot)| slot.owner.clone()));
        table
    }

    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// The space has left the keyspace: its owners do not count its sessions any more.
    pub fn release(&self) {
        if !self.is_released.swap(true, Relaxed) {
            self.iter().for_each(|(_, slot)| slot.owner.take_sessions(slot.count as usize));
        }
    }

    fn reclaim(&self) {
        if self.is_released.swap(false, Relaxed) {
            self.iter().for_each(|(_, slot)| slot.owner.add_sessions(slot.count as usize));
        }
    }

    /// Whether the owners are those of a registry, and count the sessions here.
    pub fn is_bound(&self, clock: &Arc<OwnerClock>) -> bool {
        Arc::ptr_eq(&self.clock, clock) && !self.is_released.load(Relaxed)
    }

    /// Makes the owners those of another registry. `resolve` finds the owner there of that name and lease. Each
    /// owner is news.
    pub fn bind(
        &mut self,
        clock: &Arc<OwnerClock>,
        mut resolve: impl FnMut(&str, OwnerLease) -> Arc<Owner>,
    ) {
        if !Arc::ptr_eq(&self.clock, clock) {
            self.release();
            for slot in self.slots.iter_mut().flatten() {
                if slot.owner.is_over() {
                    clock.adopt(&slot.owner);
                } else {
                    slot.owner = resolve(slot.owner.name(), slot.owner.lease());
                }
            }
            self.clock = clock.clone();
            if self.by_owner.is_some() {
                self.index_owners();
            }
            self.seen = clock.changes();
            self.look_at_all();
        }
        self.reclaim();
        self.news = self.iter().map(|(_, slot)| slot.owner.clone()).collect();
    }

    /// Bytes on the heap, estimated, in constant time.
    pub fn heap_bytes(&self) -> usize {
        const SET_BYTES: usize = 160;
        let sets = self.sets.as_ref().map_or(0, |sets| sets.sets.len() * SET_BYTES);
        let by_owner = self.by_owner.as_ref().map_or(0, |by_owner| by_owner.len() * 20);
        allocated(size_of::<OwnerTable>())
            + allocated(self.slots.capacity() * size_of::<Option<Slot>>())
            + allocated(self.free_slots.capacity() * size_of::<u32>())
            + self.list_bytes
            + sets
            + by_owner
    }
}

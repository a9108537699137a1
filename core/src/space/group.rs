//! The sessions of a user who has several, in an indexed space.
//!
//! Layout:
//! * [`SessionList`] is a list of session numbers, oldest first. Up to [`SHORT`] numbers are searched
//!   through. A longer list has a map from a number to its position, and a number that is taken out leaves
//!   an empty position ([`NONE`]) behind. So every operation takes constant time, however long the list is.
//! * [`Ending`] counts those of the sessions that are in the buckets of [`super::lease_order`], by the
//!   moment of their end. It tells how many sessions of the user are live, and when the user's last session
//!   ends, without a look at the sessions.
//!
//! Growth: empty positions are removed when they are more than half of the list.

use super::Timestamp;
use super::lease::Lease;
use super::owned::{OwnerTable, SetId};
use super::record::NONE;
use crate::collections::Slab;
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};

/// Lists up to this length have no map.
const SHORT: usize = 32;

/// The bytes that a hash map of this capacity has on the heap: a power of two of entries, of which seven
/// eighths may be used, and a byte of control for each.
fn map_bytes(map: &HashMap<u32, u32>) -> usize {
    match map.capacity() {
        0 => 0,
        capacity => {
            let entries = (capacity * 8 / 7).next_power_of_two().max(4);
            super::allocated(entries * (size_of::<(u32, u32)>() + 1) + 16)
        }
    }
}

/// Numbers of sessions in the order in which they were added.
#[derive(Clone, Default)]
struct SessionList {
    /// Neither the first nor the last position in use is empty.
    ids: Vec<u32>,
    /// Empty positions in front.
    begin: usize,
    len: usize,
    /// Where each number is, in a long list. Most lists are short: a pointer takes less than an empty map.
    #[allow(clippy::box_collection)]
    positions: Option<Box<HashMap<u32, u32>>>,
}

impl SessionList {
    fn first(&self) -> Option<u32> {
        self.ids.get(self.begin).copied()
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = u32> + '_ {
        let ids = self.ids.get(self.begin..).unwrap_or_default();
        ids.iter().copied().filter(|id| *id != NONE)
    }

    fn position(&self, id: u32) -> Option<usize> {
        match &self.positions {
            Some(positions) => positions.get(&id).map(|position| *position as usize),
            None => self.ids.iter().position(|other| *other == id),
        }
    }

    fn push(&mut self, id: u32) {
        if let Some(positions) = &mut self.positions {
            positions.insert(id, self.ids.len() as u32);
        }
        self.ids.push(id);
        self.len += 1;
        if self.positions.is_none() && self.ids.len() > SHORT {
            self.compact();
        }
    }

    fn remove(&mut self, id: u32) {
        let Some(position) = self.position(id) else { return };
        self.len -= 1;
        let Some(positions) = &mut self.positions else {
            self.ids.remove(position);
            if self.ids.len() * 4 < self.ids.capacity() {
                self.ids.shrink_to((self.ids.len() * 2).max(4));
            }
            return;
        };
        positions.remove(&id);
        if let Some(entry) = self.ids.get_mut(position) {
            *entry = NONE;
        }
        while self.ids.last() == Some(&NONE) {
            self.ids.pop();
        }
        while self.ids.get(self.begin) == Some(&NONE) {
            self.begin += 1;
        }
        if self.len * 4 < self.ids.capacity() {
            self.compact();
        }
    }

    fn rename(&mut self, old: u32, new: u32) {
        let Some(position) = self.position(old) else { return };
        if let Some(entry) = self.ids.get_mut(position) {
            *entry = new;
        }
        if let Some(positions) = &mut self.positions {
            positions.remove(&old);
            positions.insert(new, position as u32);
        }
    }

    /// Removes the empty positions and gives memory back. A list that is long has its map from here on.
    fn compact(&mut self) {
        let mut ids = Vec::with_capacity(self.len * 2);
        ids.extend(self.iter());
        let numbered = ids.iter().enumerate().map(|(position, id)| (*id, position as u32));
        // Half of the bound: a list whose length swings around the bound is not made anew each time.
        self.positions = (self.len > SHORT / 2).then(|| Box::new(numbered.collect()));
        (self.ids, self.begin) = (ids, 0);
    }

    fn heap_bytes(&self) -> usize {
        let positions = self.positions.as_deref();
        super::allocated(self.ids.capacity() * size_of::<u32>())
            + positions.map_or(0, |map| size_of::<HashMap<u32, u32>>() + map_bytes(map))
    }
}

/// The sessions of a user that end soon or have ended, by moment.
#[derive(Clone, Default)]
struct Ending {
    counts: VecDeque<(Timestamp, u32)>,
    total: usize,
    /// The bucket in which the user is counted: all sessions are in here, and this is the last moment.
    counted_at: Option<Timestamp>,
    summed: Cell<Summed>,
}

/// The sum over some of the first moments of [`Ending`]: those that had passed when it was asked for last.
/// So each moment is added once, however often a reader asks.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Summed {
    moments: usize,
    sessions: usize,
}

impl Ending {
    fn add(&mut self, at: Timestamp) {
        self.total += 1;
        let index = match self.find(at) {
            Ok(index) => {
                if let Some((_, count)) = self.counts.get_mut(index) {
                    *count += 1;
                }
                index
            }
            Err(index) => {
                self.counts.insert(index, (at, 1));
                let summed = self.summed.get_mut();
                summed.moments += usize::from(index < summed.moments);
                index
            }
        };
        let summed = self.summed.get_mut();
        summed.sessions += usize::from(index < summed.moments);
    }

    fn take(&mut self, at: Timestamp) {
        let Ok(index) = self.find(at) else { return };
        let Some((_, count)) = self.counts.get_mut(index) else { return };
        *count -= 1;
        let is_empty = *count == 0;
        self.total -= 1;
        let summed = self.summed.get_mut();
        let is_summed = index < summed.moments;
        summed.sessions -= usize::from(is_summed);
        if is_empty {
            summed.moments -= usize::from(is_summed);
            self.counts.remove(index);
        }
    }

    /// How many sessions have ended at `now`.
    fn expired(&self, now: Timestamp) -> usize {
        let Summed { mut moments, mut sessions } = self.summed.get();
        while let Some((_, count)) = self.counts.get(moments).filter(|(at, _)| *at <= now) {
            moments += 1;
            sessions += *count as usize;
        }
        // A clock that was set back is followed.
        while let Some(before) = moments.checked_sub(1) {
            let Some((_, count)) = self.counts.get(before).filter(|(at, _)| *at > now) else {
                break;
            };
            moments = before;
            sessions -= *count as usize;
        }
        self.summed.set(Summed { moments, sessions });
        sessions
    }

    fn find(&self, at: Timestamp) -> Result<usize, usize> {
        self.counts.binary_search_by_key(&at, |(moment, _)| *moment)
    }

    fn heap_bytes(&self) -> usize {
        super::allocated(self.counts.capacity() * size_of::<(Timestamp, u32)>())
    }
}

/// The sessions of a user that have owners.
#[derive(Clone, Default)]
struct OwnedSessions {
    /// How many are of the owner in each slot, in the order of the slots. None is 0.
    counts: Vec<(u32, u32)>,
    total: usize,
    /// The set of these slots, as of the last recount.
    set: SetId,
    /// The slots are others than in the set.
    has_changed: bool,
    /// The user is counted as one who has no other sessions.
    is_all: bool,
}

/// Where a user is counted who may be offline: in the bucket in which the last session without an owner ends, or at
/// once where there is none; with the owners of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    pub place: Place,
    pub set: SetId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A session without an owner is in no bucket.
    Nowhere,
    Bucket(Timestamp),
    /// All sessions have owners.
    Owned,
}

impl Counted {
    /// Where the user of one session is counted.
    pub fn alone(lease: Lease) -> Self {
        match lease.slot() {
            Some(slot) => Counted { place: Place::Owned, set: SetId::slot(slot) },
            None if lease.is_ending() => {
                Counted { place: Place::Bucket(lease.until()), set: SetId::NONE }
            }
            None => Counted { place: Place::Nowhere, set: SetId::NONE },
        }
    }
}

type Owners = Option<Box<OwnerTable>>;

/// A user with several sessions.
#[derive(Clone)]
pub struct Group {
    /// When the user came online.
    pub joined_at: Timestamp,
    sessions: SessionList,
    ending: Option<Box<Ending>>,
    owned: Option<Box<OwnedSessions>>,
}

impl Group {
    pub fn new(joined_at: Timestamp, first: u32) -> Self {
        let mut sessions = SessionList::default();
        sessions.push(first);
        Group { joined_at, sessions, ending: None, owned: None }
    }

    /// Number of sessions, live or not.
    pub fn len(&self) -> usize {
        self.sessions.len
    }

    /// The oldest session, which stands for the user.
    pub fn anchor(&self) -> Option<u32> {
        self.sessions.first()
    }

    /// The sessions, oldest first.
    pub fn sessions(&self) -> impl DoubleEndedIterator<Item = u32> + '_ {
        self.sessions.iter()
    }

    /// How many sessions have expired at `now`, of those in the buckets.
    pub fn expired(&self, now: Timestamp) -> usize {
        self.ending.as_ref().map_or(0, |ending| ending.expired(now))
    }

    /// The owners of the sessions: the slot of each, and how many sessions it has.
    pub fn owners(&self) -> impl Iterator<Item = (u32, usize)> + '_ {
        let counts = self.owned.iter().flat_map(|owned| owned.counts.iter());
        counts.map(|(slot, count)| (*slot, *count as usize))
    }

    /// A session of the group has this lease from now on, which is marked if it is in a bucket.
    fn add_lease(&mut self, lease: Lease) {
        if let Some(slot) = lease.slot() {
            let owned = self.owned.get_or_insert_default();
            owned.total += 1;
            match owned.counts.binary_search_by_key(&slot, |(slot, _)| *slot) {
                Ok(at) => {
                    if let Some((_, count)) = owned.counts.get_mut(at) {
                        *count += 1;
                    }
                }
                Err(at) => {
                    owned.counts.insert(at, (slot, 1));
                    owned.has_changed = true;
                }
            }
        } else if lease.is_ending() {
            self.ending.get_or_insert_default().add(lease.until());
        }
    }

    /// A session of the group has this lease no longer.
    fn take_lease(&mut self, lease: Lease) {
        if let Some(slot) = lease.slot() {
            let Some(owned) = &mut self.owned else { return };
            let Ok(at) = owned.counts.binary_search_by_key(&slot, |(slot, _)| *slot) else {
                return;
            };
            owned.total -= 1;
            if let Some((_, count)) = owned.counts.get_mut(at) {
                *count -= 1;
                if *count == 0 {
                    owned.counts.remove(at);
                    owned.has_changed = true;
                }
            }
        } else if lease.is_ending()
            && let Some(ending) = &mut self.ending
        {
            ending.take(lease.until());
        }
    }

    /// Where the user is counted, as of the last recount.
    fn counted(&self) -> Counted {
        let set = self.owned.as_ref().map_or(SetId::NONE, |owned| owned.set);
        let is_all = self.owned.as_ref().is_some_and(|owned| owned.is_all);
        let at = self.ending.as_ref().and_then(|ending| ending.counted_at);
        let place = match at {
            Some(at) => Place::Bucket(at),
            None if is_all => Place::Owned,
            None => Place::Nowhere,
        };
        Counted { place, set }
    }

    /// Decides where the user is counted.
    fn recount(&mut self, owners: &mut Owners) -> Changed {
        let before = self.counted();
        let total = self.owned.as_ref().map_or(0, |owned| owned.total);
        let others = self.sessions.len - total;
        if let Some(ending) = &mut self.ending {
            let all_end = ending.total == others && others > 0;
            ending.counted_at = ending.counts.back().map(|(at, _)| *at).filter(|_| all_end);
            if ending.total == 0 {
                self.ending = None;
            }
        }
        let mut released = SetId::NONE;
        if let Some(owned) = &mut self.owned {
            owned.is_all = others == 0 && total > 0;
            if std::mem::take(&mut owned.has_changed) {
                released = owned.set;
                let slots: Vec<u32> = owned.counts.iter().map(|(slot, _)| *slot).collect();
                owned.set = owners.as_mut().map_or(SetId::NONE, |owners| owners.intern(&slots));
            }
            if total == 0 {
                self.owned = None;
            }
        }
        let now = self.counted();
        Changed { recounted: (before != now).then_some((before, now)), released }
    }

    fn heap_bytes(&self) -> usize {
        let ending = self.ending.as_deref();
        let owned = self.owned.as_deref();
        self.sessions.heap_bytes()
            + ending.map_or(0, |ending| size_of::<Ending>() + ending.heap_bytes())
            + owned.map_or(0, |owned| {
                size_of::<OwnedSessions>()
                    + super::allocated(owned.counts.capacity() * size_of::<(u32, u32)>())
            })
    }
}

/// What became of a group.
pub struct Changed {
    /// Where the user was counted, and where now, if these differ.
    pub recounted: Option<(Counted, Counted)>,
    /// The set that the user has no longer, to be released after the recount.
    pub released: SetId,
}

/// A session was taken out of a group.
pub struct Taken {
    pub was_anchor: bool,
    /// Who is the anchor now; none where this was the last session and the group is gone.
    pub heir: Option<u32>,
    pub changed: Changed,
}

/// The groups of a space.
#[derive(Default)]
pub struct Groups {
    slab: Slab<Group>,
    /// Sessions that are in a group.
    sessions: usize,
    /// Bytes that the groups have on the heap beside the slab.
    group_bytes: usize,
}

impl Clone for Groups {
    /// The lists of a copy have no spare room.
    fn clone(&self) -> Self {
        let slab = self.slab.clone();
        let group_bytes = slab.iter_from(0).map(|(_, group)| group.heap_bytes()).sum();
        Groups { slab, sessions: self.sessions, group_bytes }
    }
}

impl Groups {
    /// Number of groups.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Sessions that are in a group.
    pub fn sessions(&self) -> usize {
        self.sessions
    }

    pub fn get(&self, group: u32) -> Option<&Group> {
        self.slab.get(group)
    }

    pub fn insert(&mut self, group: Group) -> u32 {
        self.group_bytes += group.heap_bytes();
        self.sessions += group.len();
        self.slab.insert(group)
    }

    fn change<R>(&mut self, group: u32, change: impl FnOnce(&mut Group) -> R) -> Option<R> {
        let group = self.slab.get_mut(group)?;
        let (bytes, len) = (group.heap_bytes(), group.len());
        let result = change(group);
        self.group_bytes = self.group_bytes + group.heap_bytes() - bytes;
        self.sessions = self.sessions + group.len() - len;
        Some(result)
    }

    /// Adds a session with this lease to the end of a group.
    pub fn push(
        &mut self,
        group: u32,
        id: u32,
        lease: Lease,
        owners: &mut Owners,
    ) -> Option<Changed> {
        self.change(group, |group| {
            group.sessions.push(id);
            group.add_lease(lease);
            group.recount(owners)
        })
    }

    pub fn rename(&mut self, group: u32, old: u32, new: u32) {
        self.change(group, |group| group.sessions.rename(old, new));
    }

    /// The first session of a new group has this lease.
    pub fn add_lease(&mut self, group: u32, lease: Lease, owners: &mut Owners) -> Option<Changed> {
        self.change(group, |group| {
            group.add_lease(lease);
            group.recount(owners)
        })
    }

    /// A session of the group has another lease than before, or is in a bucket now, or no longer.
    pub fn change_lease(
        &mut self,
        group: u32,
        before: Lease,
        now: Lease,
        owners: &mut Owners,
    ) -> Option<Changed> {
        self.change(group, |group| {
            group.take_lease(before);
            group.add_lease(now);
            group.recount(owners)
        })
    }

    /// Takes a session with this lease out of a group, and the group away if it was the last. None where there
    /// is no such group.
    pub fn take(
        &mut self,
        group: u32,
        id: u32,
        lease: Lease,
        owners: &mut Owners,
    ) -> Option<Taken> {
        let taken = self.change(group, |group| {
            let was_anchor = group.anchor() == Some(id);
            group.take_lease(lease);
            group.sessions.remove(id);
            let changed = group.recount(owners);
            Taken { was_anchor, heir: group.anchor(), changed }
        })?;
        if taken.heir.is_none()
            && let Some(gone) = self.slab.remove(group)
        {
            self.group_bytes -= gone.heap_bytes();
        }
        Some(taken)
    }

    /// No session is in a bucket any more.
    pub fn clear_ending(&mut self) {
        for group in self.slab.values_mut() {
            if let Some(ending) = group.ending.take() {
                self.group_bytes -= size_of::<Ending>() + ending.heap_bytes();
            }
        }
    }

    pub fn heap_bytes(&self) -> usize {
        self.slab.heap_bytes() + self.group_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A session list against a plain vector.
        #[test]
        fn a_session_list_is_a_list(
            ops in prop::collection::vec((0..5u8, any::<prop::sample::Index>()), 0..600),
        ) {
            let (mut list, mut model) = (SessionList::default(), Vec::new());
            for (next, (op, at)) in ops.into_iter().enumerate() {
                let next = next as u32;
                // Phases of growth and of decline, so that lists become long and short again.
                if model.is_empty() || op < 2 || (op == 2 && next % 400 < 200) {
                    list.push(next);
                    model.push(next);
                } else if op == 4 {
                    let at = at.index(model.len());
                    list.rename(model[at], next);
                    model[at] = next;
                } else {
                    list.remove(model.remove(at.index(model.len())));
                }
                prop_assert_eq!(list.len, model.len());
                prop_assert_eq!(list.first(), model.first().copied());
                prop_assert!(list.iter().eq(model.iter().copied()));
                prop_assert!(list.iter().rev().eq(model.iter().rev().copied()));
                prop_assert!(list.ids.len() <= (4 * model.len()).max(SHORT * 2));
            }
        }
    }

    proptest! {
        /// What has expired against a plain list of moments.
        #[test]
        fn what_has_expired_is_counted_like_a_list(
            ops in prop::collection::vec((0..5u8, any::<prop::sample::Index>(), 0..40u64), 0..400),
        ) {
            let (mut ending, mut model) = (Ending::default(), Vec::new());
            for (op, pick, at) in ops {
                match op {
                    0 | 1 => {
                        ending.add(at);
                        model.push(at);
                    }
                    2 if !model.is_empty() => ending.take(model.swap_remove(pick.index(model.len()))),
                    _ => {
                        let expired = model.iter().filter(|moment| **moment <= at).count();
                        prop_assert_eq!(ending.expired(at), expired);
                    }
                }
                prop_assert_eq!(ending.total, model.len());
            }
        }
    }

    #[test]
    fn a_reader_adds_a_moment_once() {
        let mut ending = Ending::default();
        (0..10_000).for_each(|at| ending.add(at));
        assert_eq!(ending.expired(5_000), 5_001);
        assert_eq!(ending.summed.get(), Summed { moments: 5_001, sessions: 5_001 });
        ending.take(0);
        ending.add(9_999);
        assert_eq!(ending.summed.get(), Summed { moments: 5_000, sessions: 5_000 });
        assert_eq!(ending.expired(9_999), 10_000);
        assert_eq!(ending.expired(9), 9, "the clock was set back");
    }

    #[test]
    fn a_long_list_gives_its_memory_back() {
        let mut list = SessionList::default();
        (0..10_000).for_each(|id| list.push(id));
        (1..9_999).for_each(|id| list.remove(id));
        assert!(list.iter().eq([0, 9_999]));
        assert!(list.heap_bytes() < 100, "{}", list.heap_bytes());
    }
}

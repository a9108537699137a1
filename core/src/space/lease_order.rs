//! The order of the sessions of an indexed space by lease.
//!
//! Layout:
//! * `pending` is a heap of lower bounds: a session is in it under its lease or under an earlier moment.
//!   A renewal writes the lease and does not touch the heap.
//! * `ending` holds the sessions whose leases end within [`LOOKAHEAD_MS`], or have ended: one bucket per
//!   millisecond, under the exact lease. A lease in it has the flag [`Lease::is_ending`].
//!
//! A session moves from `pending` to `ending` once, some time before its lease ends, and a timer does
//! that work in advance. The number of sessions that have expired at a moment is then a sum over buckets.
//! The sum is kept for the moment that was asked for last, so each bucket is added once. However many
//! leases end in one millisecond, a reader adds one bucket.
//!
//! Invariant: every session is in exactly one of the two, and its record notes where.

use super::Timestamp;
use super::lease::Lease;
use super::owned::SetId;
use super::record::NONE;
use super::session_store::SessionStore;
use crate::collections::{IndexedHeap, Positions};
use std::collections::{BTreeMap, VecDeque};

/// Leases that end within this time (ms) are sorted in advance. Clients renew earlier than that as a
/// rule, so a session that is renewed is rarely in a bucket.
pub const LOOKAHEAD_MS: u64 = 1000;

impl Positions for SessionStore {
    fn moved(&mut self, id: u32, position: u32) {
        if let Some(mut record) = self.get_mut(id) {
            record.set_heap_slot(position);
        }
    }
}

/// The sessions whose leases end in one millisecond.
#[derive(Clone)]
struct Bucket {
    at: Timestamp,
    /// Users whose last session ends then, of those without owners.
    users: u32,
    /// Those of whose sessions the others have owners, by the set of these.
    #[allow(clippy::box_collection)]
    owned: Option<Box<BTreeMap<SetId, u32>>>,
    ids: Vec<u32>,
}

impl Bucket {
    fn users_by_set(&self) -> impl Iterator<Item = (SetId, i32)> + '_ {
        let owned = self.owned.iter().flat_map(|owned| owned.iter());
        owned.map(|(set, users)| (*set, *users as i32))
    }
}

fn bytes_of(ids: &Vec<u32>) -> usize {
    super::allocated(ids.capacity() * size_of::<u32>())
}

/// Sessions by the exact millisecond in which they end, the earliest bucket first. No bucket is empty.
#[derive(Default)]
pub struct EndingBuckets {
    buckets: VecDeque<Bucket>,
    /// So many of the first buckets are summed up in `sessions` and `users`.
    summed: usize,
    sessions: usize,
    users: usize,
    list_bytes: usize,
}

impl Clone for EndingBuckets {
    /// The lists of a copy have no spare room.
    fn clone(&self) -> Self {
        let buckets = self.buckets.clone();
        let list_bytes = buckets.iter().map(|bucket| bytes_of(&bucket.ids)).sum();
        EndingBuckets { buckets, list_bytes, ..*self }
    }
}

impl EndingBuckets {
    #[cfg(test)]
    fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.ids.len()).sum()
    }

    fn find(&self, at: Timestamp) -> Result<usize, usize> {
        self.buckets.binary_search_by_key(&at, |bucket| bucket.at)
    }

    fn bucket_mut(&mut self, at: Timestamp) -> Option<(bool, &mut Bucket)> {
        let index = self.find(at).ok()?;
        Some((index < self.summed, self.buckets.get_mut(index)?))
    }

    /// Adds a session. Returns its slot in the bucket.
    fn add(&mut self, at: Timestamp, id: u32) -> u32 {
        let index = match self.find(at) {
            Ok(index) => index,
            Err(index) => {
                self.buckets.insert(index, Bucket { at, users: 0, owned: None, ids: Vec::new() });
                if index < self.summed {
                    self.summed += 1;
                }
                index
            }
        };
        if index < self.summed {
            self.sessions += 1;
        }
        let Some(bucket) = self.buckets.get_mut(index) else { return NONE };
        self.list_bytes -= bytes_of(&bucket.ids);
        bucket.ids.push(id);
        self.list_bytes += bytes_of(&bucket.ids);
        (bucket.ids.len() - 1) as u32
    }

    /// Takes the session in this slot out. Returns the session that has the slot from now on, if one has.
    fn take(&mut self, at: Timestamp, slot: u32) -> Option<u32> {
        let index = self.find(at).ok()?;
        let bucket = self.buckets.get_mut(index)?;
        if slot as usize >= bucket.ids.len() {
            return None;
        }
        bucket.ids.swap_remove(slot as usize);
        let moved = bucket.ids.get(slot as usize).copied();
        if index < self.summed {
            self.sessions -= 1;
        }
        if bucket.ids.is_empty() {
            debug_assert!(bucket.users == 0 && bucket.owned.is_none(), "a user without a session");
            self.list_bytes -= bytes_of(&bucket.ids);
            self.buckets.remove(index);
            if index < self.summed {
                self.summed -= 1;
            }
            if self.buckets.len() * 4 < self.buckets.capacity() {
                self.buckets.shrink_to(self.buckets.len() * 2);
            }
        }
        moved
    }

    fn rename(&mut self, at: Timestamp, slot: u32, id: u32) {
        let ids = self.bucket_mut(at).map(|(_, bucket)| &mut bucket.ids);
        if let Some(entry) = ids.and_then(|ids| ids.get_mut(slot as usize)) {
            *entry = id;
        }
    }

    /// Counts a user whose last session is in this bucket, but for those that have owners. Returns whether the
    /// bucket is summed up.
    pub fn add_user(&mut self, at: Timestamp, set: SetId) -> bool {
        let Some((is_summed, bucket)) = self.bucket_mut(at) else { return false };
        if set == SetId::NONE {
            bucket.users += 1;
            self.users += usize::from(is_summed);
        } else {
            *bucket.owned.get_or_insert_default().entry(set).or_default() += 1;
        }
        is_summed
    }

    /// Counts a user no longer. Returns whether the bucket is summed up.
    pub fn take_user(&mut self, at: Timestamp, set: SetId) -> bool {
        let Some((is_summed, bucket)) = self.bucket_mut(at) else { return false };
        if set == SetId::NONE {
            bucket.users -= 1;
            self.users -= usize::from(is_summed);
        } else if let Some(owned) = &mut bucket.owned
            && let Some(users) = owned.get_mut(&set)
        {
            *users -= 1;
            if *users == 0 {
                owned.remove(&set);
            }
            if owned.is_empty() {
                bucket.owned = None;
            }
        }
        is_summed
    }

    /// The users of sets of owners in the buckets that are summed up.
    pub fn summed_by_set(&self) -> impl Iterator<Item = (SetId, i32)> + '_ {
        self.buckets.range(..self.summed).flat_map(Bucket::users_by_set)
    }

    /// Sessions that have expired at `now`, and users without owners who have no other.
    pub fn expired(&self, now: Timestamp) -> (usize, usize) {
        let (mut users, mut sessions) = (self.users, self.sessions);
        for bucket in self.buckets.range(self.summed..).take_while(|bucket| bucket.at <= now) {
            users += bucket.users as usize;
            sessions += bucket.ids.len();
        }
        let summed = self.buckets.range(..self.summed).rev();
        for bucket in summed.take_while(|bucket| bucket.at > now) {
            users -= bucket.users as usize;
            sessions -= bucket.ids.len();
        }
        (users, sessions)
    }

    /// Keeps the sum for `now`. A clock that was set back is followed. `count` hears of the users of sets of
    /// owners that come to the sum, or leave it.
    fn sum_up(&mut self, now: Timestamp, count: &mut impl FnMut(SetId, i32)) {
        while let Some(bucket) = self.buckets.get(self.summed).filter(|bucket| bucket.at <= now) {
            self.summed += 1;
            self.users += bucket.users as usize;
            self.sessions += bucket.ids.len();
            bucket.users_by_set().for_each(|(set, users)| count(set, users));
        }
        while let Some(before) = self.summed.checked_sub(1) {
            let Some(bucket) = self.buckets.get(before).filter(|bucket| bucket.at > now) else {
                break;
            };
            self.summed = before;
            self.users -= bucket.users as usize;
            self.sessions -= bucket.ids.len();
            bucket.users_by_set().for_each(|(set, users)| count(set, -users));
        }
    }

    /// The session that ends first, and when; of several, one of them.
    pub fn first(&self) -> Option<(Timestamp, u32)> {
        let bucket = self.buckets.front()?;
        Some((bucket.at, *bucket.ids.last()?))
    }

    /// The sessions that end later than `now`.
    fn after(&self, now: Timestamp) -> impl Iterator<Item = u32> + '_ {
        let first = self.buckets.partition_point(|bucket| bucket.at <= now);
        self.buckets.range(first..).flat_map(|bucket| bucket.ids.iter().copied())
    }

    fn heap_bytes(&self) -> usize {
        super::allocated(self.buckets.capacity() * size_of::<Bucket>()) + self.list_bytes
    }
}

/// Sessions ordered by lease. See the head of the file.
#[derive(Clone, Default)]
pub struct LeaseOrder {
    pending: IndexedHeap,
    pub ending: EndingBuckets,
}

impl LeaseOrder {
    /// Adds a session, whose lease is not marked as ending.
    pub fn insert(&mut self, id: u32, lease: Lease, store: &mut SessionStore) {
        self.pending.push(lease.until(), id, store);
    }

    /// Takes a session out that has this lease. If it is among the ending, its user is no longer counted
    /// in its bucket.
    pub fn remove(&mut self, id: u32, lease: Lease, store: &mut SessionStore) {
        let Some(slot) = store.get(id).map(|record| record.heap_slot()) else { return };
        if !lease.is_ending() {
            self.pending.remove(slot, store);
        } else if let Some(moved) = self.ending.take(lease.until(), slot) {
            store.moved(moved, slot);
        }
    }

    /// The session that had another number has this one.
    pub fn rename(&mut self, id: u32, store: &mut SessionStore) {
        let Some((lease, slot)) = store.get(id).map(|it| (it.lease(), it.heap_slot())) else {
            return;
        };
        if lease.is_ending() {
            self.ending.rename(lease.until(), slot, id);
        } else {
            self.pending.rename(slot, id, store);
        }
    }

    /// A session that is pending has an earlier lease than before.
    pub fn shorten(&mut self, id: u32, lease: Lease, store: &mut SessionStore) {
        let Some(slot) = store.get(id).map(|record| record.heap_slot()) else { return };
        if self.pending.due_at(slot).is_some_and(|bound| lease.until() < bound) {
            self.pending.update(slot, lease.until(), store);
        }
    }

    /// The first of the pending sessions, if its bound is at most `horizon`.
    pub fn next_pending(&self, horizon: Timestamp) -> Option<u32> {
        self.pending.peek().filter(|(bound, _)| *bound <= horizon).map(|(_, id)| id)
    }

    /// Brings the bound of a pending session up to its lease.
    pub fn update(&mut self, id: u32, lease: Lease, store: &mut SessionStore) {
        let Some(slot) = store.get(id).map(|record| record.heap_slot()) else { return };
        self.pending.update(slot, lease.until(), store);
    }

    /// Moves a pending session to the bucket of its lease and marks the lease.
    pub fn move_to_ending(&mut self, id: u32, lease: Lease, store: &mut SessionStore) {
        let Some(slot) = store.get(id).map(|record| record.heap_slot()) else { return };
        self.pending.remove(slot, store);
        let slot = self.ending.add(lease.until(), id);
        store.set_lease(id, lease.ending());
        store.moved(id, slot);
    }

    /// Makes all ending sessions pending again, with unmarked leases. No user is counted any more.
    pub fn clear_ending(&mut self, store: &mut SessionStore) {
        for bucket in std::mem::take(&mut self.ending).buckets {
            for id in bucket.ids {
                let Some(lease) = store.lease(id) else { continue };
                store.set_lease(id, lease.plain());
                self.insert(id, lease, store);
            }
        }
    }

    /// Keeps the sum of what has expired at `now`; `count` as in [`EndingBuckets::sum_up`].
    pub fn sum_up(&mut self, now: Timestamp, count: &mut impl FnMut(SetId, i32)) {
        self.ending.sum_up(now, count);
    }

    /// The sessions that are live at `now`, if no pending session has a bound of at most `now`.
    pub fn live(&self, now: Timestamp) -> impl Iterator<Item = u32> + '_ {
        self.pending.ids().chain(self.ending.after(now))
    }

    /// The moment from which there is something to do: sessions to be moved to their buckets, or expired
    /// ones to be ended. None where there is no session.
    pub fn next_due(&self) -> Option<Timestamp> {
        let pending = self.pending.peek().map(|(bound, _)| bound.saturating_sub(LOOKAHEAD_MS));
        pending.into_iter().chain(self.ending.first().map(|(at, _)| at)).min()
    }

    pub fn heap_bytes(&self) -> usize {
        self.pending.heap_bytes() + self.ending.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Buckets against a map from sessions to moments.
        #[test]
        fn ending_buckets_count_like_a_map(
            ops in prop::collection::vec((0..5u8, any::<u16>(), 0..40u64), 0..400)
        ) {
            let mut buckets = EndingBuckets::default();
            let mut slots: BTreeMap<u32, (u64, u32)> = BTreeMap::new();
            for (step, (op, pick, at)) in ops.into_iter().enumerate() {
                let picked = slots.keys().nth(pick as usize % slots.len().max(1)).copied();
                match (op, picked) {
                    (0..=2, _) | (_, None) => {
                        let slot = buckets.add(at, step as u32);
                        buckets.add_user(at, SetId::NONE);
                        slots.insert(step as u32, (at, slot));
                    }
                    (3, Some(id)) => {
                        let (at, slot) = slots.remove(&id).unwrap();
                        buckets.take_user(at, SetId::NONE);
                        if let Some(moved) = buckets.take(at, slot) {
                            slots.get_mut(&moved).unwrap().1 = slot;
                        }
                    }
                    _ => buckets.sum_up(at, &mut |_, _| {}),
                }
                prop_assert_eq!(buckets.len(), slots.len());
                for now in [0, 7, at, 39] {
                    let expired = slots.values().filter(|(at, _)| *at <= now).count();
                    prop_assert_eq!(buckets.expired(now), (expired, expired));
                    prop_assert_eq!(buckets.after(now).count(), slots.len() - expired);
                }
                let first = buckets.first();
                prop_assert_eq!(first.map(|(at, _)| at), slots.values().map(|(at, _)| *at).min());
                prop_assert!(first.is_none_or(|(at, id)| slots[&id].0 == at));
                let lists: usize = buckets.buckets.iter().map(|bucket| bytes_of(&bucket.ids)).sum();
                prop_assert_eq!(buckets.list_bytes, lists);
            }
        }
    }

    #[test]
    fn a_reader_adds_a_bucket_once() {
        let mut buckets = EndingBuckets::default();
        for id in 0..100_000 {
            buckets.add(u64::from(id % 10), id);
        }
        assert_eq!(buckets.expired(4), (0, 50_000));
        buckets.sum_up(4, &mut |_, _| {});
        assert_eq!((buckets.summed, buckets.sessions), (5, 50_000));
        buckets.sum_up(2, &mut |_, _| {});
        assert_eq!((buckets.summed, buckets.sessions), (3, 30_000), "the clock was set back");
    }
}

//! Which owners of a registry have expired, for the registry and for all spaces that hold sessions of them.
//!
//! Layout:
//! * `order` has the live owners under lower bounds of their leases. A renewal to a later time writes the
//!   owner's lease and does not touch the order.
//! * `expired` has those whose leases are over and that nobody has ended yet. If the clock is set back, or the
//!   lease is prolonged, an owner comes back from there.
//! * `log` names each owner whose state has changed under the number of its last change. A space remembers up
//!   to which number it knows, so it looks only at owners that have changed since.
//!
//! The numbers beside the mutex answer the common case, in which nothing has changed, without it.

use super::owner::{Owner, OwnerLease};
use crate::space::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Owners that are over are forgotten in batches of at least this size.
const FORGET_AT: usize = 64;

struct Noted {
    owner: Arc<Owner>,
    /// The moment under which it is in `order` or in `expired`.
    at: Timestamp,
    is_expired: bool,
    /// The number of its last change; 0 where there was none.
    change: u64,
}

#[derive(Default)]
struct State {
    noted: BTreeMap<u64, Noted>,
    order: BTreeSet<(Timestamp, u64)>,
    expired: BTreeSet<(Timestamp, u64)>,
    log: BTreeMap<u64, u64>,
    changes: u64,
    over: Vec<u64>,
    forget_at: usize,
}

impl State {
    fn note_change(&mut self, id: u64) {
        let Some(noted) = self.noted.get_mut(&id) else { return };
        self.changes += 1;
        self.log.remove(&noted.change);
        noted.change = self.changes;
        self.log.insert(self.changes, id);
    }

    /// Takes an owner out of the order it is in.
    fn unfile(&mut self, id: u64) {
        if let Some(noted) = self.noted.get(&id) {
            let list = if noted.is_expired { &mut self.expired } else { &mut self.order };
            list.remove(&(noted.at, id));
        }
    }

    /// Files an owner under its lease.
    fn file(&mut self, id: u64, is_expired: bool) {
        let Some(noted) = self.noted.get_mut(&id) else { return };
        let has_changed = std::mem::replace(&mut noted.is_expired, is_expired) != is_expired;
        noted.at = noted.owner.until();
        let list = if is_expired { &mut self.expired } else { &mut self.order };
        list.insert((noted.at, id));
        if has_changed {
            self.note_change(id);
        }
    }

    fn refile(&mut self, id: u64, now: Timestamp) {
        self.unfile(id);
        let is_live = self.noted.get(&id).is_some_and(|noted| noted.owner.is_live(now));
        self.file(id, !is_live);
    }

    fn advance(&mut self, now: Timestamp) {
        while let Some(&(_, id)) = self.order.first().filter(|(at, _)| *at <= now) {
            self.refile(id, now);
        }
        // A clock that was set back is followed.
        while let Some(&(_, id)) = self.expired.last().filter(|(at, _)| *at > now) {
            self.refile(id, now);
        }
    }

    /// Forgets owners that are over and that no space refers to.
    fn forget(&mut self) {
        if self.over.len() < self.forget_at.max(FORGET_AT) {
            return;
        }
        let noted = &mut self.noted;
        let log = &mut self.log;
        self.over.retain(|id| {
            let is_held = noted.get(id).is_some_and(|noted| Arc::strong_count(&noted.owner) > 1);
            if !is_held && let Some(noted) = noted.remove(id) {
                log.remove(&noted.change);
            }
            is_held
        });
        self.forget_at = self.over.len() * 2;
    }
}

/// See the head of the file.
#[derive(Default)]
pub struct OwnerClock {
    /// The number of the last change.
    changes: AtomicU64,
    /// No owner expires before this moment.
    next: AtomicU64,
    /// No owner comes back at this moment or later.
    back: AtomicU64,
    state: Mutex<State>,
}

impl std::fmt::Debug for OwnerClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnerClock").finish_non_exhaustive()
    }
}

impl OwnerClock {
    pub fn new() -> Self {
        let clock = OwnerClock::default();
        clock.next.store(u64::MAX, Relaxed);
        clock
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the numbers beside the mutex up to date.
    fn publish(&self, state: &State) {
        self.changes.store(state.changes, Relaxed);
        self.next.store(state.order.first().map_or(u64::MAX, |(at, _)| *at), Relaxed);
        self.back.store(state.expired.last().map_or(0, |(at, _)| *at), Relaxed);
    }

    /// Notices which owners have expired at `now`. Returns the number of the last change.
    pub fn advance(&self, now: Timestamp) -> u64 {
        if now >= self.next.load(Relaxed) || now < self.back.load(Relaxed) {
            let mut state = self.state();
            state.advance(now);
            self.publish(&state);
        }
        self.changes.load(Relaxed)
    }

    /// Makes an owner. It counts as live until the clock is advanced.
    pub fn make(self: &Arc<Self>, name: &str, lease: OwnerLease) -> Arc<Owner> {
        let owner = Arc::new(Owner::new(name, lease, Arc::downgrade(self)));
        let mut state = self.state();
        let noted = Noted { owner: owner.clone(), at: 0, is_expired: false, change: 0 };
        state.noted.insert(owner.id(), noted);
        state.file(owner.id(), false);
        self.publish(&state);
        owner
    }

    /// Notes an owner that is over. A space brought it from elsewhere.
    pub fn adopt(&self, owner: &Arc<Owner>) {
        let mut state = self.state();
        let noted = Noted { owner: owner.clone(), at: 0, is_expired: true, change: 0 };
        if state.noted.insert(owner.id(), noted).is_none() {
            state.over.push(owner.id());
        }
        state.forget();
    }

    /// The lease of an owner becomes at least `lease`.
    pub fn prolong(&self, owner: &Owner, lease: OwnerLease) {
        if owner.until() < lease.until {
            owner.set_lease(lease);
            self.moved(owner, 0);
        }
    }

    /// The number of the last change.
    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// The lease of an owner is now earlier than before, or the owner had expired.
    pub fn moved(&self, owner: &Owner, now: Timestamp) {
        let mut state = self.state();
        if !owner.is_over() {
            state.refile(owner.id(), now);
        }
        self.publish(&state);
    }

    /// The owner is over.
    pub fn end(&self, owner: &Owner) {
        let mut state = self.state();
        let id = owner.id();
        state.unfile(id);
        owner.set_over();
        if let Some(noted) = state.noted.get_mut(&id)
            && !std::mem::replace(&mut noted.is_expired, true)
        {
            state.note_change(id);
        }
        state.over.push(id);
        state.forget();
        self.publish(&state);
    }

    /// Whether an owner has expired, at the moment to which the clock was advanced.
    pub fn is_expired(&self, id: u64) -> bool {
        self.state().noted.get(&id).is_none_or(|noted| noted.is_expired)
    }

    /// The owners that have changed since the change of this number, and whether each has expired. None if
    /// there are more than `limit`.
    pub fn changed_since(&self, change: u64, limit: usize) -> Option<Vec<(u64, bool)>> {
        let state = self.state();
        let mut changed = Vec::new();
        for (_, id) in state.log.range(change.saturating_add(1)..) {
            if changed.len() >= limit {
                return None;
            }
            changed.extend(state.noted.get(id).map(|noted| (*id, noted.is_expired)));
        }
        Some(changed)
    }

    /// Whether each of these owners has expired.
    pub fn expired_of(&self, owners: impl Iterator<Item = u64>) -> Vec<bool> {
        let state = self.state();
        owners.map(|id| state.noted.get(&id).is_none_or(|noted| noted.is_expired)).collect()
    }

    /// The owner that expired first and is not over.
    pub fn first_expired(&self) -> Option<Arc<Owner>> {
        let state = self.state();
        let (_, id) = state.expired.first()?;
        Some(state.noted.get(id)?.owner.clone())
    }

    /// A lower bound of the moment at which an owner expires, or has expired.
    pub fn next_due(&self) -> Option<Timestamp> {
        let state = self.state();
        state.expired.first().or(state.order.first()).map(|(at, _)| *at)
    }

    /// Estimated bytes on the heap of an owner that is noted.
    pub const BYTES_PER_OWNER: usize = 160;
}

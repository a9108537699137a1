//! Owners: processes that keep sessions alive for others. The one lease of an owner stands for all sessions that
//! it owns.
//!
//! * [`Owner`] is shared by the registry of its database and by the spaces that hold sessions of it. A renewal
//!   writes one number of it, however many sessions it owns.
//! * [`Owners`] is the registry of one database: the owners by name, and the spaces in which each has sessions.
//! * [`OwnerClock`] says which owners have expired. The registry and its spaces share it.
//!
//! An owner ends once. If an owner of that name is renewed after that, it is another one: the sessions of the
//! first end with it. The sessions of an owner that has ended are not visited at once: the names of its spaces
//! wait in [`Owners::next_space`], and a timer takes them one by one.
//!
//! Which spaces an owner has is a hint, as the entries of the expiry queue are: a space that has no sessions of it
//! any more costs a look.

mod bonds;
mod clock;
pub mod effect;
mod name_set;
mod owner;

pub use bonds::{Bonds, Broken};
pub use clock::OwnerClock;
pub use effect::OwnerEffect;
pub use name_set::NameSet;
pub use owner::{Owner, OwnerLease};

use crate::collections::allocated;
use crate::space::{Reason, Timestamp};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// The longest name of an owner, in bytes.
pub const MAX_OWNER_BYTES: usize = 512;

struct Entry {
    owner: Arc<Owner>,
    spaces: NameSet,
}

/// The owners of one database.
pub struct Owners {
    clock: Arc<OwnerClock>,
    by_name: BTreeMap<Box<str>, Entry>,
    /// The spaces of owners that have ended, where their sessions have still to end.
    ended: VecDeque<NameSet>,
    /// Bytes of the sets of spaces.
    space_bytes: usize,
    /// Bytes of the owners and their names.
    owner_bytes: usize,
}

impl Default for Owners {
    fn default() -> Self {
        Owners {
            clock: Arc::new(OwnerClock::new()),
            by_name: BTreeMap::new(),
            ended: VecDeque::new(),
            space_bytes: 0,
            owner_bytes: 0,
        }
    }
}

/// What an owner takes in the registry and the clock, beside its spaces: an estimate.
fn bytes_of(owner: &Owner) -> usize {
    2 * allocated(owner.name().len())
        + allocated(size_of::<Owner>() + 16)
        + size_of::<Entry>()
        + OwnerClock::BYTES_PER_OWNER
}

impl Owners {
    /// Number of owners, those included that have expired and are not ended yet.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// What the spaces share that hold sessions of these owners.
    pub fn clock(&self) -> &Arc<OwnerClock> {
        &self.clock
    }

    /// The owner of that name, whether or not its lease is over.
    pub fn get(&self, name: &str) -> Option<&Arc<Owner>> {
        self.by_name.get(name).map(|entry| &entry.owner)
    }

    /// The owner of that name if it is live.
    pub fn live(&self, name: &str, now: Timestamp) -> Option<&Arc<Owner>> {
        self.get(name).filter(|owner| owner.is_live(now))
    }

    /// The live owners, in the order of their names.
    pub fn list(&self, now: Timestamp) -> impl Iterator<Item = &Arc<Owner>> {
        self.by_name.values().map(|entry| &entry.owner).filter(move |owner| owner.is_live(now))
    }

    /// All owners, in the order of their names, from behind a name on; whatever their leases.
    pub fn all_after(&self, name: Option<&str>) -> impl Iterator<Item = &Arc<Owner>> {
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        let all = self.by_name.range::<str, _>((from, Bound::Unbounded));
        all.map(|(_, entry)| &entry.owner)
    }

    fn make(&mut self, name: &str, lease: OwnerLease) -> Arc<Owner> {
        let owner = self.clock.make(name, lease);
        self.owner_bytes += bytes_of(&owner);
        let entry = Entry { owner: owner.clone(), spaces: NameSet::default() };
        self.by_name.insert(name.into(), entry);
        owner
    }

    /// Ends an owner. Its spaces wait to be swept.
    fn end_entry(&mut self, name: &str) {
        let Some(Entry { owner, spaces }) = self.by_name.remove(name) else { return };
        self.owner_bytes -= bytes_of(&owner);
        self.clock.end(&owner);
        if spaces.is_empty() {
            self.space_bytes -= spaces.heap_bytes();
        } else {
            self.ended.push_back(spaces);
        }
    }

    fn set(&self, owner: &Owner, lease: OwnerLease, now: Timestamp) {
        let is_earlier = lease.until < owner.until();
        let was_live = owner.is_live(now);
        owner.set_lease(lease);
        if is_earlier || !was_live {
            self.clock.moved(owner, now);
        }
    }

    /// Makes the owner, or renews its lease: the last writer decides, also for an earlier time. An owner whose
    /// lease is over is ended first; the new one has no sessions.
    pub fn renew(&mut self, name: &str, until: Timestamp, now: Timestamp) -> Arc<Owner> {
        self.clock.advance(now);
        let lease = OwnerLease::until(until);
        match self.get(name).cloned() {
            Some(owner) if owner.is_live(now) => {
                self.set(&owner, lease, now);
                owner
            }
            found => {
                if found.is_some() {
                    self.end_entry(name);
                }
                self.make(name, lease)
            }
        }
    }

    /// Makes the lease of a live owner end at `until`, if it does not end earlier. If that is not later than
    /// `now`, the owner ends at once. An owner that says itself that it ends does so for this reason, whichever
    /// time is earlier. Returns how many sessions it has; none if no such owner is live.
    pub fn cut(
        &mut self,
        name: &str,
        until: Timestamp,
        now: Timestamp,
        reason: Reason,
    ) -> Option<usize> {
        self.clock.advance(now);
        let owner = self.live(name, now)?.clone();
        let sessions = owner.sessions();
        if until < owner.until() || reason == Reason::Offline {
            self.set(&owner, OwnerLease { until: until.min(owner.until()), reason }, now);
        }
        if !owner.is_live(now) {
            self.end_entry(name);
        }
        Some(sessions)
    }

    /// The owner for a space that has arrived with sessions of an owner of that name and lease: the live one
    /// here, or else a new one.
    pub fn arrive(&mut self, name: &str, lease: OwnerLease, now: Timestamp) -> Arc<Owner> {
        self.clock.advance(now);
        match self.get(name) {
            Some(owner) if owner.is_live(now) => owner.clone(),
            found => {
                if found.is_some() {
                    self.end_entry(name);
                }
                self.make(name, lease)
            }
        }
    }

    /// The owner that another node, or a snapshot, refers to: the one of that name, whatever the clock says. Its
    /// lease becomes at least `lease`.
    pub fn refer(&mut self, name: &str, lease: OwnerLease, now: Timestamp) -> Arc<Owner> {
        match self.get(name).cloned() {
            None => self.make(name, lease),
            Some(owner) => {
                if owner.until() < lease.until {
                    self.set(&owner, lease, now);
                }
                owner
            }
        }
    }

    /// Gives an owner this lease, as another node or a snapshot says, whatever the clock says. Makes it where it
    /// is unknown.
    pub fn assign(&mut self, name: &str, lease: OwnerLease, now: Timestamp) -> Arc<Owner> {
        match self.get(name).cloned() {
            None => self.make(name, lease),
            Some(owner) => {
                self.set(&owner, lease, now);
                owner
            }
        }
    }

    /// Ends an owner because another node says so. Returns whether it was there.
    pub fn end(&mut self, name: &str) -> bool {
        let is_there = self.by_name.contains_key(name);
        self.end_entry(name);
        is_there
    }

    /// This server decides from now on. Each lease becomes what is known of it for certain, and at least
    /// `until`. Others have still to be told.
    pub fn begin_to_decide(&mut self, until: Timestamp, now: Timestamp) {
        for entry in self.by_name.values() {
            let owner = &entry.owner;
            let lease = OwnerLease { until: owner.known_until().max(until), ..owner.lease() };
            if lease != owner.lease() {
                self.set(owner, lease, now);
            }
            owner.set_told(0, 0);
        }
    }

    /// Does what the primary says, or a snapshot.
    pub fn apply(&mut self, effect: &OwnerEffect<'_>, now: Timestamp) {
        match *effect {
            OwnerEffect::Begin { owner, lease, bound } => {
                self.end_entry(owner);
                self.assign(owner, OwnerLease::until(bound), now).set_told(lease, bound);
            }
            OwnerEffect::Lease { owner, lease, bound } => {
                self.assign(owner, OwnerLease::until(bound), now).set_told(lease, bound);
            }
            OwnerEffect::Cut { owner, lease, reason } => {
                // A cut makes no owner.
                if self.get(owner).is_some() {
                    let cut = OwnerLease { until: lease, reason };
                    self.assign(owner, cut, now).set_told(lease, lease);
                }
            }
            OwnerEffect::End { owner, at, reason } => {
                // What is known here can be a bound: readers are told when and why the owner ended.
                if let Some(owner) = self.get(owner).cloned() {
                    self.set(&owner, OwnerLease { until: at, reason }, now);
                }
                self.end_entry(owner);
            }
        }
    }

    /// What makes up the owners for another node or a snapshot.
    pub fn dump(&self, mut tell: impl FnMut(&OwnerEffect<'_>)) {
        for entry in self.by_name.values() {
            let owner = &entry.owner;
            let (name, until, lease) = (owner.name(), owner.until(), owner.known_until());
            match owner.reason() {
                Reason::Timeout => {
                    let bound = until.max(owner.told_bound());
                    tell(&OwnerEffect::Begin { owner: name, lease: lease.min(bound), bound });
                }
                reason => {
                    tell(&OwnerEffect::Begin { owner: name, lease: until, bound: until });
                    tell(&OwnerEffect::Cut { owner: name, lease: until, reason });
                }
            }
        }
    }

    /// A space holds sessions of this owner. Returns false if the owner is not of this registry, or has ended.
    pub fn attach(&mut self, owner: &Owner, space: &[u8]) -> bool {
        let entry = self.by_name.get_mut(owner.name());
        let Some(entry) = entry.filter(|entry| entry.owner.id() == owner.id()) else {
            return false;
        };
        self.space_bytes -= entry.spaces.heap_bytes();
        entry.spaces.insert(space);
        self.space_bytes += entry.spaces.heap_bytes();
        true
    }

    /// A space holds no sessions of this owner any more.
    pub fn detach(&mut self, owner: &Owner, space: &[u8]) {
        let entry = self.by_name.get_mut(owner.name());
        if let Some(entry) = entry.filter(|entry| entry.owner.id() == owner.id()) {
            self.space_bytes -= entry.spaces.heap_bytes();
            entry.spaces.remove(space);
            self.space_bytes += entry.spaces.heap_bytes();
        }
    }

    /// Spaces that hold sessions of an owner, in the order of the hashes of their names, from a hash on; and the
    /// hash to go on from. As a hint, a space may hold none any more.
    pub fn spaces(&self, name: &str, from: u64) -> (Vec<(u64, &[u8])>, Option<u64>) {
        self.by_name.get(name).map_or((Vec::new(), None), |entry| entry.spaces.next(from))
    }

    /// Notices what has expired at `now`, without ending anything.
    pub fn advance(&self, now: Timestamp) {
        self.clock.advance(now);
    }

    /// Ends the owners whose leases are over, for as long as `may_go_on`. Returns whether it came to an end. For
    /// a server that decides.
    pub fn end_expired(&mut self, now: Timestamp, may_go_on: &mut impl FnMut() -> bool) -> bool {
        while self.end_next_expired(now).is_some() {
            if !may_go_on() {
                return false;
            }
        }
        true
    }

    /// Ends the owner whose lease ended first, if it is over. Others are to be told of it.
    pub fn end_next_expired(&mut self, now: Timestamp) -> Option<Arc<Owner>> {
        self.clock.advance(now);
        let owner = self.clock.first_expired()?;
        if self.get(owner.name()).is_some_and(|current| current.id() == owner.id()) {
            self.end_entry(owner.name());
        } else {
            self.clock.end(&owner);
        }
        Some(owner)
    }

    /// Whether an owner may have expired at `now`.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.clock.next_due().is_some_and(|due| due <= now)
    }

    /// A space in which sessions of an owner that has ended are still to end. Each is given out once.
    pub fn next_space(&mut self) -> Option<Box<[u8]>> {
        loop {
            let spaces = self.ended.front_mut()?;
            let before = spaces.heap_bytes();
            let name = spaces.pop();
            self.space_bytes = self.space_bytes + spaces.heap_bytes() - before;
            if name.is_some() {
                return name;
            }
            self.ended.pop_front();
        }
    }

    /// The moment from which there is something to do: an owner may have expired, or spaces wait to be swept (0).
    pub fn next_due(&self) -> Option<Timestamp> {
        if !self.ended.is_empty() {
            return Some(0);
        }
        self.clock.next_due()
    }

    /// Bytes on the heap, estimated, in constant time.
    pub fn heap_bytes(&self) -> usize {
        self.space_bytes + self.owner_bytes
    }
}

#[cfg(test)]
mod tests;

//! What keeps a session alive: a lease of its own, or its owner. And where users are counted who may be offline.

use super::super::group::{Changed, Counted, Place};
use super::super::lease::Lease;
use super::super::owned::{OwnerTable, SetId};
use super::super::record::SessionRecord;
use super::super::{Reason, Timestamp};
use super::Members;
use crate::collections::Positions;
use crate::owners::{Owner, OwnerClock, OwnerLease};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Members {
    pub fn owners(&self) -> Option<&OwnerTable> {
        self.owners.as_deref()
    }

    pub fn owners_mut(&mut self) -> Option<&mut OwnerTable> {
        self.owners.as_deref_mut()
    }

    /// Takes everybody out.
    pub fn take_all(&mut self) -> Members {
        let owners = self.owners.as_ref().map(|owners| Box::new(owners.ended()));
        std::mem::replace(self, Members { owners, ..Members::default() })
    }

    /// The slot of an owner, whose clock is that of the owners here. One that gets no session is to be given up by
    /// [`Self::tidy_slot`].
    pub fn slot_of(&mut self, owner: &Arc<Owner>) -> u32 {
        let owners = self.owners.get_or_insert_with(|| {
            let clock = owner.clock().upgrade();
            Box::new(OwnerTable::new(clock.unwrap_or_else(|| Arc::new(OwnerClock::new()))))
        });
        owners.slot_of(owner)
    }

    /// An owner that no registry has: one of this space's own. Its lease becomes at least `lease`.
    pub fn own_owner(&mut self, name: &str, lease: OwnerLease) -> Arc<Owner> {
        let owners = self
            .owners
            .get_or_insert_with(|| Box::new(OwnerTable::new(Arc::new(OwnerClock::new()))));
        let found = owners.owners().find(|(_, owner, _)| owner.name() == name && !owner.is_over());
        let found = found.map(|(_, owner, _)| owner.clone());
        match found {
            Some(owner) => {
                owners.clock().prolong(&owner, lease);
                owner
            }
            None => owners.clock().make(name, lease),
        }
    }

    /// A slot for an owner of a snapshot, which names each once: see [`Self::owners_are_unique`].
    pub fn new_slot(&mut self, name: &str, lease: OwnerLease) {
        let owners = self
            .owners
            .get_or_insert_with(|| Box::new(OwnerTable::new(Arc::new(OwnerClock::new()))));
        let owner = owners.clock().make(name, lease);
        owners.slot_of(&owner);
    }

    /// Whether no two owners that are not over have one name.
    pub fn owners_are_unique(&self) -> bool {
        let all = self.owners.iter().flat_map(|owners| owners.owners());
        let mut names = BTreeSet::new();
        all.filter(|(_, owner, _)| !owner.is_over()).all(|(_, owner, _)| names.insert(owner.name()))
    }

    pub fn has_owner(&self, owner: &Owner) -> bool {
        self.owners.as_ref().is_some_and(|owners| owners.find(owner.id()).is_some())
    }

    /// Frees the slot of an owner that has no session here.
    pub fn tidy_slot(&mut self, slot: u32) {
        if let Some(owners) = &mut self.owners {
            owners.tidy(slot);
            self.drop_empty_owners();
        }
    }

    /// Frees the slots of all owners that have no session here.
    pub fn tidy_slots(&mut self) {
        if let Some(owners) = &mut self.owners {
            owners.tidy_all();
            self.drop_empty_owners();
        }
    }

    pub fn drop_empty_owners(&mut self) {
        if self.owners.as_ref().is_some_and(|owners| owners.is_empty() && !owners.has_news()) {
            self.owners = None;
        }
    }

    /// Whether a session with this lease is live at `now`.
    pub fn is_live(&self, lease: Lease, now: Timestamp) -> bool {
        if lease.is_owned() { self.is_owner_live(lease, now) } else { lease.is_live(now) }
    }

    #[cold]
    fn is_owner_live(&self, lease: Lease, now: Timestamp) -> bool {
        self.owner_of(lease).is_some_and(|owner| owner.is_live(now))
    }

    pub fn owner_of(&self, lease: Lease) -> Option<&Arc<Owner>> {
        self.owners.as_ref()?.owner(lease.slot()?)
    }

    /// Until when a session with this lease is live, as far as is known now.
    pub fn until(&self, lease: Lease) -> Timestamp {
        if lease.is_owned() {
            self.owner_of(lease).map_or(0, |owner| owner.until())
        } else {
            lease.until()
        }
    }

    /// Why a session with this lease ends with it.
    pub fn reason(&self, lease: Lease) -> Reason {
        self.owner_of(lease).map_or_else(|| lease.reason(), |owner| owner.reason())
    }

    /// A session as a reader sees it.
    pub(super) fn shown<'a>(&'a self, record: SessionRecord<'a>) -> SessionRecord<'a> {
        match self.owner_of(record.lease()) {
            Some(owner) => record.owned_by(owner.name(), owner.until()),
            None => record,
        }
    }

    /// Counts a user.
    pub(super) fn count(&mut self, counted: Counted) {
        self.change_count(counted, 1);
    }

    /// Counts a user no longer.
    pub(super) fn uncount(&mut self, counted: Counted) {
        self.change_count(counted, -1);
    }

    fn change_count(&mut self, Counted { place, set }: Counted, change: i32) {
        let is_gone = match place {
            Place::Nowhere => false,
            Place::Owned => true,
            Place::Bucket(at) => self.indexes.as_mut().is_some_and(|indexes| {
                let ending = &mut indexes.leases.ending;
                if change > 0 { ending.add_user(at, set) } else { ending.take_user(at, set) }
            }),
        };
        if is_gone
            && set != SetId::NONE
            && let Some(owners) = &mut self.owners
        {
            owners.count_gone(set, change);
        }
    }

    /// A user is counted in another place than before, if the group says so.
    pub(super) fn recount(&mut self, changed: Option<Changed>) {
        let Some(changed) = changed else { return };
        if let Some((before, now)) = changed.recounted {
            self.count(now);
            self.uncount(before);
        }
        if changed.released != SetId::NONE
            && let Some(owners) = &mut self.owners
        {
            owners.release_set(changed.released);
        }
    }

    /// Puts a session where its lease belongs: in the order by lease, or in the list of its owner.
    pub(super) fn file(&mut self, id: u32, lease: Lease) {
        let Some(slot) = lease.slot() else {
            if let Some(indexes) = &mut self.indexes {
                indexes.leases.insert(id, lease, &mut self.blocks);
            }
            return;
        };
        let Some(owners) = &mut self.owners else { return };
        let listed = self.indexes.is_some().then_some(id);
        let position = owners.attach(slot, listed);
        if listed.is_some() {
            self.blocks.moved(id, position);
        }
    }

    /// Takes a session out of where its lease had put it. Its user is not counted with it any more.
    pub(super) fn unfile(&mut self, id: u32, lease: Lease) {
        let Some(slot) = lease.slot() else {
            if let Some(indexes) = &mut self.indexes {
                indexes.leases.remove(id, lease, &mut self.blocks);
            }
            return;
        };
        let Some(owners) = &mut self.owners else { return };
        let is_indexed = self.indexes.is_some();
        let position = self.blocks.get(id).map(|it| it.heap_slot()).filter(|_| is_indexed);
        if let Some((moved, position)) = owners.detach(slot, position).zip(position) {
            self.blocks.moved(moved, position);
        }
        self.tidy_slot(slot);
    }

    /// A session has another lease than before, other than by a renewal: it was about to end, or it gets an owner,
    /// or loses one.
    #[cold]
    pub(super) fn refile(&mut self, id: u32, before: Lease, now: Lease) {
        let Some(group) = self.record(id).map(|record| record.group()) else { return };
        if self.indexes.is_some() {
            let groups = self.groups.as_mut();
            let changed =
                groups.and_then(|groups| groups.change_lease(group, before, now, &mut self.owners));
            if changed.is_none() {
                self.count(Counted::alone(now));
                self.uncount(Counted::alone(before));
            }
            self.recount(changed);
        }
        self.unfile(id, before);
        self.file(id, now);
    }

    /// Gives a session to the owner in this slot. Returns whether that can have changed how much memory the order
    /// takes.
    pub fn set_owner(&mut self, id: u32, slot: u32) -> bool {
        self.replace_lease(id, Lease::owned(slot))
    }

    /// Writes a lease. The order is touched only where the lease is now earlier than it says, or was about to end,
    /// or an owner comes or goes. Returns whether that can have changed how much memory the order takes.
    pub(super) fn replace_lease(&mut self, id: u32, lease: Lease) -> bool {
        let Some(before) = self.blocks.set_lease(id, lease) else { return false };
        if !before.are_pending(lease) {
            self.refile(id, before, lease);
            return true;
        }
        if lease.until() < before.until()
            && let Some(indexes) = &mut self.indexes
        {
            indexes.leases.shorten(id, lease, &mut self.blocks);
        }
        false
    }

    /// The sessions of an owner. Takes as many steps as there are, or as few sessions are in the space.
    pub fn sessions_of(&self, owner: u64) -> impl Iterator<Item = SessionRecord<'_>> {
        let slot = self.owners.as_ref().and_then(|owners| owners.find(owner));
        let listed = slot.zip(self.owners.as_ref()).map_or(&[][..], |(slot, it)| it.sessions(slot));
        let listed = listed.iter().filter_map(|id| self.record(*id));
        let few = self.few().map(|(_, record)| record);
        few.filter(move |record| slot.is_some() && record.lease().slot() == slot).chain(listed)
    }
}

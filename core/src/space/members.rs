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

mod keepers;
mod lookup;
mod order;
mod readers;

pub use lookup::{Lookup, SpaceLayout};
pub use order::OutOfTime;
pub use readers::User;

use super::group::{Counted, Group, Groups};
use super::lease::Lease;
use super::lease_order::LeaseOrder;
use super::owned::OwnerTable;
use super::record::{NONE, SessionRecord, SessionRecordBuf};
use super::session_store::SessionStore;
use super::{Meta, Timestamp};
use crate::collections::{LinearHashIndex, hash_of};

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
    /// Where [`Members::near_bounds`] goes on.
    looked_until: u32,
}

/// The sessions of one space.
#[derive(Clone, Default)]
pub struct Members {
    blocks: SessionStore,
    groups: Option<Box<Groups>>,
    indexes: Option<Box<Indexes>>,
    owners: Option<Box<OwnerTable>>,
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

    /// Whether a session is the only one of its user.
    pub fn is_only(&self, id: u32) -> bool {
        let Some(record) = self.record(id) else { return false };
        if self.indexes.is_none() {
            return self.few().filter(|(_, other)| other.user() == record.user()).count() == 1;
        }
        self.group(record).is_none_or(|group| group.len() == 1)
    }

    /// The session of a user who has no other.
    pub fn only(&self, user: &[u8]) -> Option<u32> {
        self.anchor(user).filter(|id| self.is_only(*id))
    }

    fn group(&self, record: SessionRecord<'_>) -> Option<&Group> {
        self.groups.as_ref()?.get(record.group())
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
        if lookup.hash.is_none() { self.lookup(new.user(), |_| {}) } else { lookup.clone() }
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
            self.file(id, new.lease().plain());
            return anchor.is_none();
        }
        let mut to_file = [None, None];
        if anchor.is_some() || since != new.joined_at() {
            let since = anchor.is_none().then_some(since);
            let is_counted = anchor.is_some();
            let (number, made) = self.group_of(anchor.unwrap_or(id), since, is_counted);
            if let Some(anchor) = anchor {
                to_file[0] = made.then_some(anchor);
                let (lease, owners) = (new.lease().plain(), &mut self.owners);
                let groups = self.groups.as_mut();
                let changed = groups.and_then(|groups| groups.push(number, id, lease, owners));
                self.recount(changed);
            }
            self.set_group(id, number);
            to_file[1] = Some(id);
        } else {
            self.count(Counted::alone(new.lease().plain()));
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
        }
        self.file(id, new.lease().plain());
        anchor.is_none()
    }

    fn set_group(&mut self, id: u32, group: u32) {
        if let Some(mut record) = self.blocks.get_mut(id) {
            record.set_group(group);
        }
    }

    /// The group of the user whose anchor this is, and whether it had to be made. `is_counted` says that the
    /// anchor has been counted alone.
    fn group_of(&mut self, anchor: u32, since: Option<Timestamp>, is_counted: bool) -> (u32, bool) {
        let Some(record) = self.record(anchor) else { return (NONE, false) };
        if record.group() != NONE {
            return (record.group(), false);
        }
        let (joined_at, lease) = (since.unwrap_or(record.joined_at()), record.lease());
        if is_counted {
            // The user of a session alone is counted where it ends; that of a group counts the group.
            self.uncount(Counted::alone(lease));
        }
        let groups = self.groups.get_or_insert_default();
        let group = groups.insert(Group::new(joined_at, anchor));
        self.set_group(anchor, group);
        let groups = self.groups.as_mut();
        let changed = groups.and_then(|groups| groups.add_lease(group, lease, &mut self.owners));
        self.recount(changed);
        (group, true)
    }

    /// Begins to use indexes, or ceases to.
    fn rebuild(&mut self, indexes: Option<Box<Indexes>>) {
        let blocks =
            if indexes.is_some() { SessionStore::for_many() } else { SessionStore::default() };
        let mut owners = self.owners.take();
        if let Some(owners) = &mut owners {
            owners.clear();
        }
        let old = std::mem::replace(self, Members { blocks, groups: None, indexes, owners });
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
        let (group, lease, position) = (record.group(), record.lease(), record.heap_slot());
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
        if let Some((slot, owners)) = lease.slot().zip(self.owners.as_mut()) {
            owners.rename(slot, position, new);
        } else {
            indexes.leases.rename(new, &mut self.blocks);
        }
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
        let (was_anchor, lease) = (self.is_anchor(id, record), record.lease());
        self.unfile(id, lease);
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
        let (groups, owners) = (self.groups.as_mut(), &mut self.owners);
        let taken = groups.and_then(|groups| groups.take(group, id, lease, owners));
        let (is_anchor, heir) = match taken {
            Some(taken) => {
                self.recount(Some(taken.changed));
                (taken.was_anchor, taken.heir)
            }
            None => {
                self.uncount(Counted::alone(lease));
                (true, None)
            }
        };
        self.unfile(id, lease);
        if let Some(indexes) = &mut self.indexes {
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

    /// Replaces a session's metadata. Returns the number that the session has by then.
    pub fn set_meta(&mut self, id: u32, meta: Meta) -> u32 {
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

    /// Bytes of the records, names and metadata included, in constant time.
    pub fn record_bytes(&self) -> usize {
        self.blocks.heap_bytes()
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
        let owners = self.owners.as_ref().map_or(0, |owners| owners.heap_bytes());
        self.blocks.heap_bytes() + groups + indexes + owners
    }
}

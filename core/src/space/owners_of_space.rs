//! The owners of the sessions of a space, for the registry to which they belong.

use super::{Space, text};
use crate::owners::{Owner, OwnerClock, OwnerLease};
use std::sync::Arc;

impl Space {
    /// Whether sessions here have owners, or owners are news.
    pub fn has_owners(&self) -> bool {
        self.members.owners().is_some()
    }

    /// Whether no two owners of a space that was restored have one name.
    pub fn owners_are_unique(&self) -> bool {
        self.members.owners_are_unique()
    }

    /// Whether the owners are those of the registry with this clock, and count the sessions here.
    pub fn are_owners_bound(&self, clock: &Arc<OwnerClock>) -> bool {
        self.members.owners().is_none_or(|owners| owners.is_bound(clock))
    }

    /// Makes the owners those of the registry with this clock, where `resolve` finds the owner of that name and
    /// lease. Each owner is news then.
    pub fn bind_owners(
        &mut self,
        clock: &Arc<OwnerClock>,
        resolve: impl FnMut(&str, OwnerLease) -> Arc<Owner>,
    ) {
        if let Some(owners) = self.members.owners_mut() {
            owners.bind(clock, resolve);
        }
    }

    /// The owners that have got sessions here, or lost their last one, since this was called last, and whether they
    /// have sessions.
    pub fn take_owner_news(&mut self) -> Vec<(Arc<Owner>, bool)> {
        let news = match self.members.owners_mut() {
            Some(owners) if owners.has_news() => owners.take_news(),
            _ => return Vec::new(),
        };
        self.members.drop_empty_owners();
        news
    }

    /// The owners that have sessions here.
    pub fn owners(&self) -> impl Iterator<Item = &Arc<Owner>> {
        let owners = self.members.owners().into_iter();
        owners.flat_map(|owners| owners.owners()).map(|(_, owner, _)| owner)
    }

    /// The space has left the keyspace: its owners do not count its sessions any more, until they are bound again.
    pub fn release_owners(&self) {
        if let Some(owners) = self.members.owners() {
            owners.release();
        }
    }

    /// The sessions of an owner, as user and session. Takes as many steps as there are.
    pub fn sessions_of(&self, owner: &Owner) -> impl Iterator<Item = (&str, &str)> {
        let sessions = self.members.sessions_of(owner.id());
        sessions.map(|record| (text(record.user()), text(record.session())))
    }
}

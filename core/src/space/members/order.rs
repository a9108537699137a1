//! Keeps the order by lease: see [`super::super::lease_order`].

use super::super::Timestamp;
use super::super::group::Changed;
use super::super::lease_order::LOOKAHEAD_MS;
use super::super::record::{Lease, NONE};
use super::Members;

/// The time for this piece of work is over; there is more of it.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfTime;

impl Members {
    /// A user is no longer counted in this bucket.
    pub(super) fn uncount_user(&mut self, at: Timestamp) {
        if let Some(indexes) = &mut self.indexes {
            indexes.leases.ending.take_user(at);
        }
    }

    /// A user is counted in another bucket than before, if the group says so.
    pub(super) fn recount(&mut self, changed: Option<Changed>) {
        let recounted = changed.and_then(|changed| changed.recounted);
        let Some(((before, now), indexes)) = recounted.zip(self.indexes.as_mut()) else { return };
        if let Some(at) = now {
            indexes.leases.ending.add_user(at);
        }
        if let Some(at) = before {
            indexes.leases.ending.take_user(at);
        }
    }

    /// Moves a pending session to the bucket of its lease.
    pub(super) fn move_to_ending(&mut self, id: u32) {
        let Some((group, lease)) = self.record(id).map(|it| (it.group(), it.lease())) else {
            return;
        };
        let Some(indexes) = &mut self.indexes else { return };
        indexes.leases.move_to_ending(id, lease, &mut self.blocks);
        if group == NONE {
            indexes.leases.ending.add_user(lease.until());
        } else {
            let groups = self.groups.as_mut();
            let changed = groups.and_then(|groups| groups.add_ending(group, lease.until()));
            self.recount(changed);
        }
    }

    /// A session that was in the bucket of this lease is pending again, under the lease that it has now.
    pub(super) fn leave_ending(&mut self, id: u32, before: Lease) {
        let Some((group, lease)) = self.record(id).map(|it| (it.group(), it.lease())) else {
            return;
        };
        if group == NONE {
            self.uncount_user(before.until());
        } else {
            let groups = self.groups.as_mut();
            let changed = groups.and_then(|groups| groups.take_ending(group, before.until()));
            self.recount(changed);
        }
        if let Some(indexes) = &mut self.indexes {
            indexes.leases.remove(id, before, &mut self.blocks);
            indexes.leases.insert(id, lease, &mut self.blocks);
        }
    }

    /// Every lease becomes at least `until`.
    pub fn extend_all(&mut self, until: Timestamp) {
        if let Some(indexes) = &mut self.indexes {
            indexes.leases.clear_ending(&mut self.blocks);
        }
        if let Some(groups) = &mut self.groups {
            groups.clear_ending();
        }
        self.blocks.change_leases(|lease| match lease.until() < until {
            true => Lease::new(until, lease.is_lingering()),
            false => lease,
        });
    }

    /// The moment from which a sweep may find something to do: no lease ends before it. None where nobody
    /// is here.
    pub fn next_due(&self) -> Option<Timestamp> {
        match &self.indexes {
            Some(indexes) => indexes.leases.next_due(),
            None => self.blocks.iter().map(|(_, record)| record.lease().until()).min(),
        }
    }

    /// Moves all sessions whose leases end by `horizon` to their buckets. Gives up, with `Err`, when
    /// `may_go_on` says so.
    pub(super) fn sort_ending(
        &mut self,
        horizon: Timestamp,
        may_go_on: &mut impl FnMut() -> bool,
    ) -> Result<(), OutOfTime> {
        loop {
            let Some(indexes) = &mut self.indexes else { return Ok(()) };
            let Some(id) = indexes.leases.next_pending(horizon) else { return Ok(()) };
            if !may_go_on() {
                return Err(OutOfTime);
            }
            let Some(lease) = self.blocks.lease(id) else { return Ok(()) };
            if lease.until() > horizon {
                indexes.leases.update(id, lease, &mut self.blocks);
            } else {
                self.move_to_ending(id);
            }
        }
    }

    /// Brings the order to `now`: what is asked about that moment is then known. Returns whether sessions
    /// have moved in the order, which can change how much memory it takes.
    pub fn advance(&mut self, now: Timestamp) -> bool {
        if self.indexes.is_none() {
            return false;
        }
        let mut has_moved = false;
        let _ = self.sort_ending(now, &mut || {
            has_moved = true;
            true
        });
        if let Some(indexes) = &mut self.indexes {
            indexes.leases.sum_up(now);
        }
        has_moved
    }

    /// Does in advance what the next moments will need. Gives up, with `Err`, when `may_go_on` says so.
    pub fn look_ahead(
        &mut self,
        now: Timestamp,
        may_go_on: &mut impl FnMut() -> bool,
    ) -> Result<(), OutOfTime> {
        self.sort_ending(now.saturating_add(LOOKAHEAD_MS), may_go_on)
    }

    /// A session that has expired at `now`. Gives up, with `Err`, when `may_go_on` says so.
    pub fn next_expired(
        &mut self,
        now: Timestamp,
        may_go_on: &mut impl FnMut() -> bool,
    ) -> Result<Option<u32>, OutOfTime> {
        if self.indexes.is_none() {
            let mut blocks = self.blocks.iter();
            return Ok(blocks.find(|(_, record)| !record.is_live(now)).map(|(id, _)| id));
        }
        self.sort_ending(now, may_go_on)?;
        let first = self.indexes.as_ref().and_then(|indexes| indexes.leases.ending.first());
        Ok(first.filter(|(at, _)| *at <= now).map(|(_, id)| id))
    }

    /// How many users and sessions are here that have expired at `now`, to which the order has been
    /// advanced.
    pub fn expired(&self, now: Timestamp) -> (usize, usize) {
        if let Some(indexes) = &self.indexes {
            debug_assert!(indexes.leases.next_pending(now).is_none(), "advance comes first");
            return indexes.leases.ending.expired(now);
        }
        let (mut users, mut sessions) = (0, 0);
        for (id, record) in self.few() {
            sessions += usize::from(!record.is_live(now));
            // Counted once, at the anchor.
            let is_gone = self.is_anchor(id, record) && self.live_sessions(record, now) == 0;
            users += usize::from(is_gone);
        }
        (users, sessions)
    }

    /// Writes a lease. The order is touched only where the lease is now earlier than it says, or was about
    /// to end. Returns whether that can have changed how much memory the order takes.
    pub fn set_lease(&mut self, id: u32, lease: Timestamp, lingering: bool) -> bool {
        let lease = Lease::new(lease, lingering);
        let Some(before) = self.blocks.set_lease(id, lease) else { return false };
        if before.is_ending() {
            self.leave_ending(id, before);
            return true;
        }
        if lease.until() < before.until()
            && let Some(indexes) = &mut self.indexes
        {
            indexes.leases.shorten(id, lease, &mut self.blocks);
        }
        false
    }
}

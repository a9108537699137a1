//! Keeps the order by lease: see [`super::super::lease_order`].

use super::super::group::Counted;
use super::super::lease::Lease;
use super::super::lease_order::LOOKAHEAD_MS;
use super::super::{MAX_TIMESTAMP, Timestamp};
use super::Members;

/// The time for this piece of work is over; there is more of it.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfTime;

impl Members {
    /// Moves a pending session to the bucket of its lease.
    pub(super) fn move_to_ending(&mut self, id: u32) {
        let Some((group, lease)) = self.record(id).map(|it| (it.group(), it.lease())) else {
            return;
        };
        let Some(indexes) = &mut self.indexes else { return };
        indexes.leases.move_to_ending(id, lease, &mut self.blocks);
        let (groups, owners) = (self.groups.as_mut(), &mut self.owners);
        let ending = lease.ending();
        let changed = groups.and_then(|groups| groups.change_lease(group, lease, ending, owners));
        if changed.is_none() {
            self.count(Counted::alone(ending));
        }
        self.recount(changed);
    }

    fn all_pending(&mut self) {
        if let Some(indexes) = &mut self.indexes {
            if let Some(owners) = &mut self.owners {
                let summed = indexes.leases.ending.summed_by_set();
                summed.for_each(|(set, users)| owners.count_gone(set, -users));
            }
            indexes.leases.clear_ending(&mut self.blocks);
        }
        if let Some(groups) = &mut self.groups {
            groups.clear_ending();
        }
    }

    /// Every lease becomes at least `until`, and so does the bound.
    pub fn raise_all(&mut self, until: Timestamp) {
        self.all_pending();
        self.blocks.change_leases(|lease| lease.raised(until));
    }

    /// Every lease becomes a bound, as [`Lease::followed`] says.
    pub fn follow_all(&mut self, most: u64) {
        self.all_pending();
        self.blocks.change_leases(|lease| lease.followed(most));
    }

    /// Every lease becomes what was told last, and at least `until`. Others are taken to know no later bound.
    pub fn cut_all(&mut self, until: Timestamp) {
        self.all_pending();
        let mut shortened = Vec::new();
        if self.indexes.is_some() {
            self.blocks.walk(0, usize::MAX, |id, lease| {
                if !lease.is_owned() && lease.cut(until).until() < lease.until() {
                    shortened.push(id);
                }
            });
        }
        self.blocks.change_leases(|lease| lease.cut(until));
        for id in shortened {
            let Some(lease) = self.blocks.lease(id) else { continue };
            if let Some(indexes) = &mut self.indexes {
                indexes.leases.shorten(id, lease, &mut self.blocks);
            }
        }
    }

    /// The sessions for which [`Lease::is_bound_near`] holds at `now`, of at most so many that are looked at. The
    /// next call goes on where this one ends.
    pub fn near_bounds(&mut self, now: Timestamp, most: u64, at_most: usize) -> Vec<u32> {
        let mut near = Vec::new();
        let from = self.indexes.as_ref().map_or(0, |indexes| indexes.looked_until);
        let next = self.blocks.walk(from, at_most, |id, lease| {
            if lease.is_owned() {
                return;
            }
            let told = lease.with_slack(most);
            let is_worth_it = told.slack() > lease.slack() && !lease.is_lingering();
            if is_worth_it && lease.is_bound_near(most) && lease.is_live(now) {
                near.push(id);
            }
        });
        if let Some(indexes) = &mut self.indexes {
            indexes.looked_until = next;
        }
        near
    }

    /// Notes that others know a bound of a session's lease that is so much later.
    pub fn set_slack(&mut self, id: u32, slack: u64) {
        if let Some(lease) = self.blocks.lease(id) {
            self.blocks.set_lease(id, lease.with_slack(slack));
        }
    }

    /// The moment from which a sweep may find something to do: no lease ends before it. None where nobody
    /// is here.
    pub fn next_due(&self) -> Option<Timestamp> {
        let of_owners = self.owners.as_ref().filter(|owners| !owners.is_empty()).map(|owners| {
            // The end of an owner is noticed elsewhere.
            if owners.expired().1 > 0 { 0 } else { MAX_TIMESTAMP }
        });
        let first = match &self.indexes {
            Some(indexes) => indexes.leases.next_due(),
            None => {
                let leases = self.blocks.iter().map(|(_, record)| record.lease());
                leases.filter(|lease| !lease.is_owned()).map(Lease::until).min()
            }
        };
        first.into_iter().chain(of_owners).min()
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
        if let Some(owners) = &mut self.owners {
            owners.advance(now);
        }
        if self.indexes.is_none() {
            return false;
        }
        let mut has_moved = false;
        let _ = self.sort_ending(now, &mut || {
            has_moved = true;
            true
        });
        if let Some(indexes) = &mut self.indexes {
            let owners = &mut self.owners;
            indexes.leases.sum_up(now, &mut |set, users| {
                if let Some(owners) = owners {
                    owners.count_gone(set, users);
                }
            });
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
        if let Some(owners) = &mut self.owners {
            owners.advance(now);
        }
        if self.indexes.is_none() {
            let mut blocks = self.blocks.iter();
            let expired = blocks.find(|(_, record)| !self.is_live(record.lease(), now));
            return Ok(expired.map(|(id, _)| id));
        }
        self.sort_ending(now, may_go_on)?;
        let first = self.indexes.as_ref().and_then(|indexes| indexes.leases.ending.first());
        let first = first.filter(|(at, _)| *at <= now).map(|(_, id)| id);
        Ok(first.or_else(|| self.owners.as_ref()?.first_expired()))
    }

    /// How many users and sessions are here that have expired at `now`, to which the order has been
    /// advanced.
    pub fn expired(&self, now: Timestamp) -> (usize, usize) {
        if let Some(indexes) = &self.indexes {
            debug_assert!(indexes.leases.next_pending(now).is_none(), "advance comes first");
            let (users, sessions) = indexes.leases.ending.expired(now);
            let (of_owners, owned) = self.owners.as_ref().map_or((0, 0), |it| it.expired());
            return (users + of_owners, sessions + owned);
        }
        let (mut users, mut sessions) = (0, 0);
        for (id, record) in self.few() {
            sessions += usize::from(!self.is_live(record.lease(), now));
            // Counted once, at the anchor.
            let is_gone = self.is_anchor(id, record) && self.live_sessions(record, now) == 0;
            users += usize::from(is_gone);
        }
        (users, sessions)
    }

    /// Writes a lease of a session. See [`Members::replace_lease`].
    pub fn set_lease(&mut self, id: u32, lease: Lease) -> bool {
        self.replace_lease(id, lease)
    }
}

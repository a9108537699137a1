//! The members of a space as readers see them.

use super::super::group::Group;
use super::super::record::SessionRecord;
use super::super::{Prefetch, Reason, Timestamp};
use super::{LOOKS_A_MEMBER, Lookup, Members, place_of, user_hash};
use std::collections::HashSet;

/// A user as a reader sees it: the sessions that are live.
pub struct User<'a> {
    members: &'a Members,
    anchor: SessionRecord<'a>,
    now: Timestamp,
}

impl<'a> User<'a> {
    pub fn name(&self) -> &'a [u8] {
        self.anchor.user()
    }

    /// When the user came online (unix ms).
    pub fn joined_at(&self) -> Timestamp {
        self.members.group(self.anchor).map_or(self.anchor.since(), |group| group.joined_at)
    }

    /// How many live sessions the user has, at the moment that the space was advanced to.
    pub fn live_sessions(&self) -> usize {
        self.members.live_sessions(self.anchor, self.now)
    }

    /// The live sessions, oldest first.
    pub fn sessions(&self) -> impl Iterator<Item = SessionRecord<'a>> + use<'a> {
        let (members, anchor, now) = (self.members, self.anchor, self.now);
        let few = members.few().map(|(_, record)| record);
        let few = few.filter(move |record| record.user() == anchor.user());
        let group = members.group(anchor);
        let alone = (members.indexes.is_some() && group.is_none()).then_some(anchor);
        let several = group.into_iter().flat_map(Group::sessions);
        let several = several.filter_map(|id| members.record(id));
        let all = few.chain(alone).chain(several);
        all.filter(move |record| members.is_live(record.lease(), now))
            .map(move |record| members.shown(record))
    }
}

impl Members {
    /// The user who has this anchor, or none where it is not one or nothing of the user is live.
    pub(super) fn user_at(&self, id: u32, now: Timestamp) -> Option<User<'_>> {
        let anchor = self.record(id)?;
        let user = User { members: self, anchor, now };
        (self.is_anchor(id, anchor) && user.live_sessions() > 0).then_some(user)
    }

    /// A user who is online at `now`.
    pub fn user(&self, user: &[u8], now: Timestamp) -> Option<User<'_>> {
        self.user_by(&Lookup::default(), user, now)
    }

    /// A user who is online at `now`, by the lookup.
    pub fn user_by(&self, lookup: &Lookup, user: &[u8], now: Timestamp) -> Option<User<'_>> {
        self.user_at(self.anchor_by(lookup, user)?, now)
    }

    /// Everybody who is online at `now`. Costs no more where most of the sessions have expired.
    pub fn online(&self, now: Timestamp) -> impl Iterator<Item = User<'_>> {
        let is_indexed = self.indexes.is_some();
        let most_expired = is_indexed && self.expired(now).1 * 2 > self.sessions();
        let by_lease = self.indexes.iter().filter(move |_| most_expired);
        let by_lease = by_lease.flat_map(move |indexes| indexes.leases.live(now));
        let owners = self.owners.iter().filter(move |_| most_expired);
        let by_lease = by_lease.chain(owners.flat_map(|owners| owners.live_sessions()));
        let mut met = HashSet::new();
        let by_lease = by_lease.filter_map(move |id| self.user_of_live(id, now, &mut met));
        let all = (!most_expired).then(|| self.blocks.iter()).into_iter().flatten();
        all.filter_map(move |(id, _)| self.user_at(id, now)).chain(by_lease)
    }

    /// The user who has this live session, if no other session of the user was met before. `met` holds
    /// the groups that were.
    pub(super) fn user_of_live(
        &self,
        id: u32,
        now: Timestamp,
        met: &mut HashSet<u32>,
    ) -> Option<User<'_>> {
        let record = self.record(id).filter(|record| self.is_live(record.lease(), now))?;
        let anchor = match self.group(record) {
            None => record,
            Some(group) if met.insert(record.group()) => self.record(group.anchor()?)?,
            Some(_) => return None,
        };
        Some(User { members: self, anchor, now })
    }

    /// Everybody who is here with their hashes, in the order of these, from one on.
    pub(super) fn in_order(
        &self,
        from: u64,
        prefetch: Prefetch,
    ) -> impl Iterator<Item = (u64, u32)> + '_ {
        let (mut ready, mut next) = (Vec::new(), Some(from));
        if self.indexes.is_none() {
            let anchors = self.few().filter(|(id, record)| self.is_anchor(*id, *record));
            let hashed = anchors.map(|(id, _)| (user_hash(&self.blocks, id), id));
            ready = hashed.filter(|(hash, _)| *hash >= from).collect();
            ready.sort_unstable();
            next = None;
        }
        let mut ready = ready.into_iter();
        std::iter::from_fn(move || {
            loop {
                if let Some(entry) = ready.next() {
                    return Some(entry);
                }
                let indexes = self.indexes.as_ref()?;
                let (more, after) = indexes.by_user.next(next?, |id| user_hash(&self.blocks, id));
                // Each is at another place in memory; the first is looked at next.
                for record in more.iter().filter_map(|(_, id)| self.record(*id)) {
                    record.lines().for_each(prefetch);
                }
                (ready, next) = (more.into_iter(), after);
            }
        })
    }

    /// About `count` of those who are online at `now`, in the order of their places from `from`
    /// on, and the place to go on at; none where these were the last.
    pub fn page(
        &self,
        from: u32,
        count: usize,
        now: Timestamp,
        prefetch: Prefetch,
    ) -> (Vec<User<'_>>, Option<u32>) {
        let (expired, _) = self.expired(now);
        if from == 0 && self.users() - expired <= count {
            // All fit: as they lie is the quicker way, and in a small space the order of coming.
            return (self.online(now).collect(), None);
        }
        let mut users = Vec::new();
        let (mut looks, mut last) = (0, None);
        for (hash, id) in self.in_order(u64::from(from) << 32, prefetch) {
            let place = place_of(hash);
            let is_full = users.len() >= count || looks >= count.saturating_mul(LOOKS_A_MEMBER);
            // Two users of one place are not parted: the next page would begin with both.
            if is_full && last.is_some_and(|last| last != place) {
                return (users, Some(place));
            }
            looks += 1;
            last = Some(place);
            users.extend(self.user_at(id, now));
        }
        (users, None)
    }

    /// When the last of a user's sessions ends and why, whether or not that is over. None if the user is not here.
    pub fn last_end(&self, user: &[u8]) -> Option<(Timestamp, Reason)> {
        let anchor = self.record(self.anchor(user)?)?;
        let few = self.few().map(|(_, record)| record).filter(|record| record.user() == user);
        let group = self.group(anchor);
        let alone = (self.indexes.is_some() && group.is_none()).then_some(anchor);
        let several = group.into_iter().flat_map(Group::sessions);
        let several = several.filter_map(|id| self.record(id));
        let leases = few.chain(alone).chain(several).map(SessionRecord::lease);
        let last = leases.max_by_key(|lease| self.until(*lease))?;
        Some((self.until(last), self.reason(last)))
    }

    /// How many live sessions the user of this anchor has. The order has been advanced to `now`.
    pub(super) fn live_sessions(&self, anchor: SessionRecord<'_>, now: Timestamp) -> usize {
        if self.indexes.is_none() {
            let of_user = self.few().filter(|(_, it)| it.user() == anchor.user());
            return of_user.filter(|(_, it)| self.is_live(it.lease(), now)).count();
        }
        match self.group(anchor) {
            Some(group) => group.len() - self.expired_in(group, now),
            None => usize::from(self.is_live(anchor.lease(), now)),
        }
    }

    /// How many sessions of a group have expired.
    pub(super) fn expired_in(&self, group: &Group, now: Timestamp) -> usize {
        let is_live = |slot| {
            let owner = self.owners.as_ref().and_then(|owners| owners.owner(slot));
            owner.is_some_and(|owner| owner.is_live(now))
        };
        let of_owners = group.owners().filter(|(slot, _)| !is_live(*slot));
        group.expired(now) + of_owners.map(|(_, count)| count).sum::<usize>()
    }

    /// When the user of a session came online.
    pub(super) fn since(&self, record: SessionRecord<'_>) -> Timestamp {
        if self.indexes.is_none() {
            let anchor = self.few().find(|(_, anchor)| anchor.user() == record.user());
            return anchor.map_or(record, |(_, anchor)| anchor).since();
        }
        self.group(record).map_or(record.joined_at(), |group| group.joined_at)
    }

    /// Every session with the time its user came online; for saving and for digests.
    pub fn all(&self) -> impl Iterator<Item = (SessionRecord<'_>, Timestamp)> {
        self.blocks.iter().map(|(_, record)| (record, self.since(record)))
    }
}

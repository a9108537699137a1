//! What can be read of a space.

use super::lines::PastLine;
use super::members::PREFETCH_BATCH;
use super::seen::SeenUsers;
use super::{
    Effect, History, LeaseBound, Lookup, Prefetch, Reason, Retention, SessionRecord, Space,
    SpaceLayout, Timestamp, User, text,
};
use std::collections::BTreeMap;

impl Space {
    /// The id of the last event.
    pub fn last_id(&self) -> (u64, u64) {
        (self.epoch, self.seq)
    }

    pub fn is_closed(&self) -> bool {
        self.closed_until > 0
    }

    /// Whether the time for which the space was closed is over.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.is_closed() && self.closed_until <= now
    }

    /// Brings the order by lease to `now`. Whoever reads the space calls it first. Returns whether that can
    /// have changed how much memory the space takes.
    pub fn advance(&mut self, now: Timestamp) -> bool {
        self.members.advance(now)
    }

    /// Users online and live sessions at `now`, to which the space has been advanced. Takes constant time,
    /// however many sessions have expired and not been ended yet.
    pub fn counts(&self, now: Timestamp) -> (usize, usize) {
        let (users, sessions) = self.members.expired(now);
        (self.members.users() - users, self.members.sessions() - sessions)
    }

    /// Users and sessions that are stored, lapsed ones included.
    pub fn stored(&self) -> (usize, usize) {
        (self.members.users(), self.members.sessions())
    }

    /// A session that is stored, whether or not its lease has expired.
    pub fn stored_session(&self, user: &[u8], session: &[u8]) -> Option<SessionRecord<'_>> {
        self.members.record(self.members.find(user, session)?)
    }

    /// A user who is online at `now`.
    pub fn user(&self, user: &str, now: Timestamp) -> Option<User<'_>> {
        self.members.user(user.as_bytes(), now)
    }

    /// Finds where the lookup of a user goes on here, and asks for what is there.
    pub fn enter(&self, lookup: &mut Lookup, user: &[u8], prefetch: Prefetch) {
        self.members.enter(lookup, user, prefetch);
    }

    /// Brings a layout on this space up to date, and returns whether it was.
    pub fn update_layout(&self, layout: &mut SpaceLayout) -> bool {
        self.members.update_layout(layout)
    }

    /// Asks for what a renewal looks at next. Waits for what was asked for first.
    pub fn follow(&self, lookup: &mut Lookup, prefetch: Prefetch) {
        self.members.follow(lookup, false, prefetch);
    }

    /// How many live sessions each of the users has at `now`, in the order given.
    pub fn statuses(&self, users: &[&str], now: Timestamp, prefetch: Prefetch) -> Vec<usize> {
        let mut lookups = Vec::with_capacity(PREFETCH_BATCH);
        let mut counts = Vec::with_capacity(users.len());
        for some in users.chunks(PREFETCH_BATCH) {
            let names = some.iter().map(|user| user.as_bytes());
            self.members.lookups(names, true, prefetch, &mut lookups);
            counts.extend(some.iter().zip(&lookups).map(|(user, lookup)| {
                let user = self.members.user_by(lookup, user.as_bytes(), now);
                user.map_or(0, |user| user.live_sessions())
            }));
        }
        counts
    }

    /// Everybody who is online at `now`.
    pub fn users(&self, now: Timestamp) -> impl Iterator<Item = User<'_>> {
        self.members.online(now)
    }

    /// About `count` of those who are online at `now`, from a place on, and the place at which the
    /// next page begins; none after the last. Users keep their places, in this process.
    pub fn page(
        &self,
        from: u32,
        count: usize,
        now: Timestamp,
        prefetch: Prefetch,
    ) -> (Vec<User<'_>>, Option<u32>) {
        self.members.page(from, count, now, prefetch)
    }

    pub fn history(&self) -> Option<&History> {
        self.past.as_ref().map(|past| &past.history)
    }

    /// How many of the newest events are kept at `now`.
    pub fn kept_events(&self, now: Timestamp, retention: Retention) -> usize {
        match self.history() {
            None => 0,
            // A closed space keeps its events until it is deleted.
            Some(history) if self.is_closed() => history.live(),
            Some(history) => history.kept(now, retention),
        }
    }

    /// The past lines of history that are known, oldest first.
    pub(super) fn past_lines(&self) -> &[PastLine] {
        self.history().map_or(&[], History::lines)
    }

    /// The first seq of the present line of history. Where the line before it is forgotten, this
    /// is too early, but then an event after that is not kept either.
    pub(super) fn line_begins(&self) -> u64 {
        self.past_lines().last().map_or(1, |line| line.last.saturating_add(1))
    }

    /// The seq after which events are new to whoever has seen `id`, and whether that is certain:
    /// it is not where the id was not given out in a line of this space, as far as is known.
    pub(super) fn position(&self, id: (u64, u64)) -> (u64, bool) {
        // Before the first event of any life.
        if id == (0, 0) || id == self.last_id() {
            return (id.1, true);
        }
        let present = PastLine { epoch: self.epoch, first: self.line_begins(), last: self.seq };
        let mut lines = self.past_lines().iter().chain([&present]);
        let Some(line) = lines.find(|line| line.epoch == id.0) else { return (0, false) };
        let is_known = (line.first..=line.last).contains(&id.1);
        (id.1.max(line.first.saturating_sub(1)).min(line.last), is_known)
    }

    /// The events after `after` that are kept at `now`, oldest first, and whether some are
    /// missing: no longer kept, or `after` was not given out in a line of this space. (0, 0) is
    /// before the first event of any life.
    pub fn events_after(
        &self,
        after: (u64, u64),
        now: Timestamp,
        retention: Retention,
    ) -> (bool, impl Iterator<Item = &[u8]>) {
        let kept = self.kept_events(now, retention);
        let (seq, is_known) = self.position(after);
        let since = usize::try_from(self.seq.saturating_sub(seq)).unwrap_or(usize::MAX);
        let events = self.history().map(|history| history.newest(kept.min(since)));
        (!is_known || since > kept, events.into_iter().flatten().map(|(_, text)| text))
    }

    /// Nobody is here or remembered, and nothing is kept: the key can go.
    pub fn is_spent(&self, now: Timestamp, retention: Retention) -> bool {
        if self.is_closed() {
            return self.is_over(now);
        }
        self.members.sessions() == 0
            && self.kept_events(now, retention) == 0
            && self.remembered().is_none_or(|seen| seen.is_over(now, retention.seen))
    }

    /// The moment from which a sweep may find something to do; 0 is at once.
    pub fn next_due(&self, retention: Retention) -> Timestamp {
        if self.history().is_some_and(History::has_excess) {
            return 0;
        }
        if self.is_closed() {
            return self.closed_until;
        }
        let lease = self.members.next_due();
        let history = self.history().and_then(|history| history.ends_at(retention));
        let seen = self.remembered().map(|seen| seen.next_due(retention.seen));
        lease.into_iter().chain(history).chain(seen).min().unwrap_or(0)
    }

    /// Bytes on the heap, in constant time.
    pub fn heap_bytes(&self) -> usize {
        self.members.heap_bytes() + self.past_bytes()
    }

    /// The owners first, then the sessions. The sessions of an owner that has ended end with a lease of their own.
    fn dump_sessions<T: FnMut(&Effect<'_>)>(&self, tell: &mut T) {
        let mut numbers = BTreeMap::new();
        for (slot, owner, sessions) in self.members.owners().into_iter().flat_map(|it| it.owners())
        {
            if sessions > 0 && !owner.is_over() {
                numbers.insert(slot, numbers.len() as u32);
                let (lease, offline) = (owner.until(), owner.reason() == Reason::Offline);
                tell(&Effect::Owner { name: owner.name(), lease, offline });
            }
        }
        for (record, since) in self.members.all() {
            let (user, session) = (text(record.user()), text(record.session()));
            let (joined_at, meta) = (record.joined_at(), record.meta().map(text));
            let lease = record.lease();
            if let Some(&owner) = lease.slot().and_then(|slot| numbers.get(&slot)) {
                tell(&Effect::OwnedSession { user, session, owner, joined_at, since, meta });
                continue;
            }
            let lingering = match self.members.owner_of(lease) {
                Some(owner) => owner.reason() == Reason::Offline,
                None => lease.is_lingering(),
            };
            let until = match lease.is_owned() {
                true => LeaseBound { lease: self.members.until(lease), slack: 0 },
                false => lease.told(),
            };
            tell(&match until.slack {
                0 => {
                    let lease = until.lease;
                    Effect::Session { user, session, lease, joined_at, since, lingering, meta }
                }
                _ => {
                    Effect::BoundSession { user, session, until, joined_at, since, lingering, meta }
                }
            });
        }
    }

    /// The effects that say what is equal on a primary and its replicas: those of [`Self::dump`] without what
    /// only the registry of owners knows. An owned session is told with the name of its owner.
    pub fn dump_for_digest(&self, mut tell: impl FnMut(&Effect<'_>)) {
        let mut names = Vec::new();
        let owners = self.members.owners();
        for (slot, owner, _) in owners.into_iter().flat_map(|it| it.owners()) {
            names.resize(names.len().max(slot as usize + 1), "");
            if let Some(name) = names.get_mut(slot as usize) {
                *name = owner.name();
            }
        }
        self.dump_frame(&mut tell, |tell| {
            for (record, since) in self.members.all() {
                let (user, session) = (text(record.user()), text(record.session()));
                let (joined_at, meta) = (record.joined_at(), record.meta().map(text));
                let lease = record.lease();
                match lease.slot() {
                    Some(slot) => {
                        let owner = names.get(slot as usize).copied().unwrap_or_default();
                        let (at, lease) = (joined_at, since);
                        tell(&Effect::OwnedOnline { user, session, owner, lease, at, meta });
                    }
                    None => tell(&Effect::Session {
                        user,
                        session,
                        lease: lease.until(),
                        joined_at,
                        since,
                        lingering: lease.is_lingering(),
                        meta,
                    }),
                }
            }
        });
    }

    /// The effects that make this space out of nothing.
    pub fn dump(&self, mut tell: impl FnMut(&Effect<'_>)) {
        self.dump_frame(&mut tell, |tell| self.dump_sessions(tell));
    }

    /// The effects of a dump, with those of the sessions in their place.
    fn dump_frame<T: FnMut(&Effect<'_>)>(&self, tell: &mut T, sessions: impl FnOnce(&mut T)) {
        tell(&Effect::Begin { epoch: self.epoch, seq: self.seq, closed_until: self.closed_until });
        for &PastLine { epoch, first, last } in self.past_lines() {
            tell(&Effect::PastLine { epoch, first, last });
        }
        sessions(tell);
        let history = self.history().into_iter();
        for (at, event) in history.flat_map(|history| history.newest(history.live())) {
            tell(&Effect::Event { at, text: text(event) });
        }
        for (user, at, reason) in self.remembered().into_iter().flat_map(SeenUsers::iter) {
            tell(&Effect::Seen { user: text(user), at, reason });
        }
    }
}

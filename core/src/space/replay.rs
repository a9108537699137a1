//! Effects that another node, or this one in an earlier life, has decided.

use super::lease::Lease;
use super::lines::PastLine;
use super::members::Members;
use super::record::SessionRecordBuf;
use super::{
    ApplyError, ChangeCtx, Effect, Keeper, Limits, Lookup, MAX_ID_NUMBER, MAX_NAME_BYTES,
    MAX_TIMESTAMP, Reason, Retention, SeenLimits, SessionRecord, Sink, Space, Timestamp, event,
    event_seq,
};
use crate::owners::{MAX_OWNER_BYTES, Owner, OwnerLease};
use std::sync::Arc;

impl Space {
    /// Does what another node, or this one in an earlier life, has decided. `retention` holds
    /// from one effect to the next.
    pub fn apply<S: Sink>(
        &mut self,
        space: &[u8],
        effect: &Effect<'_>,
        retention: &mut Retention,
        sink: &mut S,
    ) -> Result<(), ApplyError> {
        let limits =
            Limits { sessions_per_user: u64::MAX, users: 0, retention: *retention, slack: 0 };
        let at = |now| ChangeCtx { space, now, limits };
        let find = |members: &Members, user: &str, session: &str| {
            members.find(user.as_bytes(), session.as_bytes()).ok_or(ApplyError("unknown session"))
        };
        self.check(effect)?;
        match *effect {
            Effect::Keep { length, ttl } => (retention.length, retention.ttl) = (length, ttl),
            Effect::KeepSeen { ttl, users } => retention.seen = SeenLimits { ttl, users },
            Effect::Online { user, session, lease, at: now, meta } => {
                if find(&self.members, user, session).is_ok() {
                    return Err(ApplyError("session is there already"));
                }
                let keeper = lease.into();
                self.begin_session(
                    at(now),
                    &Lookup::default(),
                    (user, session),
                    keeper,
                    meta,
                    sink,
                );
            }
            Effect::OwnedOnline { user, session, owner, lease, at: now, meta } => {
                if find(&self.members, user, session).is_ok() {
                    return Err(ApplyError("session is there already"));
                }
                let owner = self.owner_of_effect(owner, OwnerLease::until(lease), sink);
                let keeper = Keeper::Owner(&owner);
                self.begin_session(
                    at(now),
                    &Lookup::default(),
                    (user, session),
                    keeper,
                    meta,
                    sink,
                );
            }
            Effect::Own { user, session, owner, lease } => {
                let id = find(&self.members, user, session)?;
                let owner = self.owner_of_effect(owner, OwnerLease::until(lease), sink);
                self.set_owner(id, (user, session), &owner, sink);
            }
            Effect::Owner { name, lease, offline } => {
                let reason = if offline { Reason::Offline } else { Reason::Timeout };
                let owner = self.owner_of_effect(name, OwnerLease { until: lease, reason }, sink);
                if self.members.has_owner(&owner) {
                    return Err(ApplyError("an owner is there twice"));
                }
                self.members.slot_of(&owner);
                sink.effect(effect);
            }
            Effect::Lease { user, session, lease, lingering } => {
                let id = find(&self.members, user, session)?;
                self.set_lease(id, (user, session), lease, lingering, sink);
            }
            Effect::Bound { user, session, until } => {
                let id = match session {
                    Some(session) => find(&self.members, user, session)?,
                    None => {
                        let only = self.members.only(user.as_bytes());
                        only.ok_or(ApplyError("user has not exactly one session"))?
                    }
                };
                sink.effect(effect);
                self.members.set_lease(id, Lease::bound(until, false));
            }
            Effect::Update { user, session, at: now, meta } => {
                let id = find(&self.members, user, session)?;
                self.update_meta(at(now), id, meta, sink);
            }
            Effect::Offline { user, session, at: now, reason } => {
                let id = find(&self.members, user, session)?;
                self.end_session(at(now), id, reason, sink);
            }
            Effect::Grace { until } => self.take_grace(until, sink),
            Effect::Message { user, session, at: now, text } => {
                self.send(at(now), user, session, text, sink);
            }
            Effect::Close { at: now, until } => self.shut(at(now), until, sink),
            Effect::Trim { keep } => {
                self.trim(usize::try_from(keep).unwrap_or(usize::MAX), sink);
            }
            Effect::Forget { users } => {
                self.forget_first(usize::try_from(users).unwrap_or(usize::MAX), sink);
            }
            Effect::NewLine { epoch } => {
                if epoch <= self.epoch {
                    return Err(ApplyError("the new line has an epoch that is not later"));
                }
                self.begin_line(epoch, sink);
            }
            Effect::Begin { .. }
            | Effect::Session { .. }
            | Effect::BoundSession { .. }
            | Effect::Event { .. }
            | Effect::PastLine { .. }
            | Effect::OwnedSession { .. }
            | Effect::Seen { .. }
            | Effect::LineDue => {
                self.restore(effect)?;
                sink.effect(effect);
            }
        }
        Ok(())
    }

    /// Takes in one effect of a [`Space::dump`]. A session is live until the bound that others were told.
    pub fn restore(&mut self, effect: &Effect<'_>) -> Result<(), ApplyError> {
        self.restore_as(effect, false)
    }

    /// The same for a space that is changed here from now on: a session is live until its lease.
    pub fn restore_own(&mut self, effect: &Effect<'_>) -> Result<(), ApplyError> {
        self.restore_as(effect, true)
    }

    fn restore_as(&mut self, effect: &Effect<'_>, is_own: bool) -> Result<(), ApplyError> {
        self.check(effect)?;
        match *effect {
            Effect::Begin { epoch, seq, closed_until } => {
                if self.seq > 0 || self.members.sessions() > 0 || self.past.is_some() {
                    return Err(ApplyError("space is there already"));
                }
                (self.epoch, self.seq, self.closed_until) = (epoch, seq, closed_until);
            }
            Effect::Session { user, session, lease, joined_at, since, lingering, meta } => {
                let lease = Lease::new(lease, lingering);
                let packed = SessionRecordBuf::new(user, session, lease, joined_at, meta);
                self.restore_session(packed.read(), since)?;
            }
            Effect::BoundSession { user, session, until, joined_at, since, lingering, meta } => {
                let lease = match is_own {
                    true => Lease::new(until.lease, lingering).with_slack(until.slack),
                    false => Lease::bound(until, lingering),
                };
                let packed = SessionRecordBuf::new(user, session, lease, joined_at, meta);
                self.restore_session(packed.read(), since)?;
            }
            Effect::Owner { name, lease, offline } => {
                let reason = if offline { Reason::Offline } else { Reason::Timeout };
                self.members.new_slot(name, OwnerLease { until: lease, reason });
            }
            Effect::OwnedSession { user, session, owner, joined_at, since, meta } => {
                if self.members.owners().is_none_or(|owners| owners.owner(owner).is_none()) {
                    return Err(ApplyError("the owner of a session is missing"));
                }
                let lease = Lease::owned(owner);
                let packed = SessionRecordBuf::new(user, session, lease, joined_at, meta);
                self.restore_session(packed.read(), since)?;
            }
            Effect::Event { at, text } => {
                let last_seq = self.seq;
                let history = &mut self.past_mut().history;
                // The ids have no holes, and the last event has the last id.
                let before = history.newest(1).next().and_then(|(_, text)| event_seq(text));
                let seq = event_seq(text.as_bytes()).unwrap_or(0);
                if !event::is_event(text)
                    || !(1..=last_seq).contains(&seq)
                    || before.is_some_and(|before| before + 1 != seq)
                {
                    return Err(ApplyError("an event is malformed, or its id does not fit"));
                }
                history.append(at, text.as_bytes());
            }
            Effect::PastLine { epoch, first, last } => {
                let before = self.past_lines().last();
                let follows = before.is_none_or(|before| {
                    before.epoch < epoch && before.last.saturating_add(1) == first
                });
                let fits = (1..=last).contains(&first) && last < self.seq && epoch < self.epoch;
                if !follows || !fits {
                    return Err(ApplyError("a past line of history does not fit"));
                }
                self.past_mut().history.add_line(PastLine { epoch, first, last });
            }
            Effect::Seen { user, at, reason } => {
                let is_here = self.members.anchor(user.as_bytes()).is_some();
                let seen = self.past_mut().seen.get_or_insert_default();
                if is_here || !seen.insert(user.as_bytes(), at, reason) {
                    return Err(ApplyError("a user is remembered who is here, or twice"));
                }
            }
            // Whoever holds the space takes note of it.
            Effect::LineDue => {}
            _ => return Err(ApplyError("not part of a snapshot")),
        }
        Ok(())
    }

    fn restore_session(
        &mut self,
        record: SessionRecord<'_>,
        since: Timestamp,
    ) -> Result<(), ApplyError> {
        self.forget_back(record.user());
        let lookup = self.members.lookup(record.user(), |_| {});
        match self.members.insert_absent(&lookup, record, since) {
            true => Ok(()),
            false => Err(ApplyError("session is there twice")),
        }
    }

    /// Ends the restoring of a snapshot. Returns whether its last event was there.
    pub fn end_restore(&mut self) -> bool {
        self.members.tidy_slots();
        if let Some(history) = self.history_mut() {
            history.put_in_order();
        }
        let newest = self.history().and_then(|history| history.newest(1).next());
        newest.is_none_or(|(_, text)| event_seq(text) == Some(self.seq))
    }

    /// The owner that an effect names: that of the registry, or one of this space.
    fn owner_of_effect<S: Sink>(
        &mut self,
        name: &str,
        lease: OwnerLease,
        sink: &mut S,
    ) -> Arc<Owner> {
        sink.owner(name, lease).unwrap_or_else(|| self.members.own_owner(name, lease))
    }

    /// What must hold of an effect whoever sent it. Metadata is checked where it is decoded.
    pub(super) fn check(&self, effect: &Effect<'_>) -> Result<(), ApplyError> {
        let numbers = match *effect {
            Effect::Begin { epoch, seq, .. } => [epoch, seq],
            Effect::NewLine { epoch } => [epoch, 0],
            Effect::PastLine { epoch, last, .. } => [epoch, last],
            _ => [0; 2],
        };
        if numbers.iter().any(|number| *number > MAX_ID_NUMBER) {
            return Err(ApplyError("an epoch or seq is out of range"));
        }
        let moments = match *effect {
            Effect::Begin { closed_until, .. } => [closed_until, 0, 0],
            Effect::Online { lease, at, .. } | Effect::OwnedOnline { lease, at, .. } => {
                [lease, at, 0]
            }
            Effect::Own { lease, .. } | Effect::Owner { lease, .. } => [lease, 0, 0],
            Effect::OwnedSession { joined_at, since, .. } => [joined_at, since, 0],
            Effect::Lease { lease, .. } => [lease, 0, 0],
            Effect::Update { at, .. }
            | Effect::Offline { at, .. }
            | Effect::Message { at, .. }
            | Effect::Event { at, .. }
            | Effect::Seen { at, .. } => [at, 0, 0],
            Effect::Grace { until } => [until, 0, 0],
            Effect::Close { at, until } => [at, until, 0],
            Effect::Session { lease, joined_at, since, .. } => [lease, joined_at, since],
            Effect::Bound { until, .. } => [until.bound(), 0, 0],
            Effect::BoundSession { until, joined_at, since, .. } => {
                [until.bound(), joined_at, since]
            }
            Effect::Keep { .. }
            | Effect::KeepSeen { .. }
            | Effect::Forget { .. }
            | Effect::Trim { .. }
            | Effect::NewLine { .. }
            | Effect::PastLine { .. }
            | Effect::LineDue => [0; 3],
        };
        if moments.iter().any(|moment| *moment > MAX_TIMESTAMP) {
            return Err(ApplyError("a time is out of range"));
        }
        if let Effect::OwnedOnline { owner: name, .. }
        | Effect::Own { owner: name, .. }
        | Effect::Owner { name, .. } = *effect
            && !(1..=MAX_OWNER_BYTES).contains(&name.len())
        {
            return Err(ApplyError("the name of an owner is empty or too long"));
        }
        let (user, session) = match *effect {
            Effect::Online { user, session, .. }
            | Effect::Lease { user, session, .. }
            | Effect::Update { user, session, .. }
            | Effect::Offline { user, session, .. }
            | Effect::Message { user, session, .. }
            | Effect::OwnedOnline { user, session, .. }
            | Effect::Own { user, session, .. }
            | Effect::OwnedSession { user, session, .. }
            | Effect::Session { user, session, .. }
            | Effect::BoundSession { user, session, .. } => (user, session),
            Effect::Bound { user, session, .. } => (user, session.unwrap_or("")),
            Effect::Seen { user, .. } => (user, ""),
            _ => return Ok(()),
        };
        if user.is_empty() || user.len() > MAX_NAME_BYTES || session.len() > MAX_NAME_BYTES {
            return Err(ApplyError("a name is empty or too long"));
        }
        if self.is_closed() {
            return Err(ApplyError("space is closed"));
        }
        Ok(())
    }
}

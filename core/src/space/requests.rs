//! What a command can ask of a space, and whether it may.

use super::lease::{Lease, LeaseBound};
use super::members::PREFETCH_BATCH;
use super::record::SessionRecordBuf;
use super::{
    ChangeCtx, Condition, EVENT_BYTES, History, Keeper, Lookup, Meta, MetaChange, OnlineError,
    OnlineRequest, Prefetch, Reason, SESSION_BYTES, Sink, Space, Timestamp, event, text,
};
use crate::owners::Owner;

/// Whoever must tell others of a renewal looks at so many sessions for bounds that are near.
const LOOKS_FOR_BOUNDS: usize = 128;
/// At most so many leaves of lapsed sessions are told by who closes a space.
const LEAVES_BEFORE_CLOSE: usize = 4096;

impl Space {
    /// The number of a session that is live.
    pub(super) fn live(&self, lookup: &Lookup, who: (&str, &str), now: Timestamp) -> Option<u32> {
        let id = self.members.find_by(lookup, who.0.as_bytes(), who.1.as_bytes())?;
        let lease = self.members.lease(id)?;
        self.members.is_live(lease, now).then_some(id)
    }

    /// Records the end of those of a user's sessions whose leases are over.
    pub(super) fn end_lapsed<S: Sink>(
        &mut self,
        at: ChangeCtx,
        lookup: &Lookup,
        user: &str,
        sink: &mut S,
    ) {
        self.members.advance(at.now);
        if !self.members.has_expired(lookup, user.as_bytes(), at.now) {
            return;
        }
        for fingerprint in self.members.prints_of(user.as_bytes(), Some(at.now)) {
            if let Some(id) = self.members.find_print(fingerprint) {
                self.end_if_lapsed(at, id, sink);
            }
        }
    }

    pub(super) fn end_if_lapsed<S: Sink>(&mut self, at: ChangeCtx, id: u32, sink: &mut S) {
        let Some(lease) = self.members.lease(id).filter(|it| !self.members.is_live(*it, at.now))
        else {
            return;
        };
        sink.lapsed(at.now.saturating_sub(self.members.until(lease)));
        self.end_session(at, id, self.members.reason(lease), sink);
    }

    /// An estimate of the bytes that sessions which are not there yet will take, with their events.
    pub(super) fn growth(&self, at: ChangeCtx, new: &[(&str, &str)], meta: Meta) -> usize {
        let names: usize = new.iter().map(|(user, session)| user.len() + session.len()).sum();
        let meta = meta.map_or(0, str::len);
        let sessions = names + new.len() * (SESSION_BYTES + meta);
        let count = usize::try_from(at.limits.retention.length).unwrap_or(usize::MAX);
        let kept = count.min(new.len());
        let name = event::text_len(event::shown(at.space));
        let events = kept * (EVENT_BYTES + name + meta + names / new.len().max(1));
        // Where the history is full, new events replace old ones.
        let replaced =
            if kept == count { self.history().map_or(0, History::heap_bytes) } else { 0 };
        sessions.saturating_add(events.saturating_sub(replaced))
    }

    /// Whether sessions that are not there yet may come in; `new` names them and is sorted by this,
    /// `meta` is what each comes with.
    pub(super) fn admit(
        &mut self,
        at: ChangeCtx,
        new: &mut [(&str, &str)],
        meta: Meta,
        has_memory: impl FnOnce(usize) -> bool,
    ) -> Result<(), OnlineError> {
        if !has_memory(self.growth(at, new, meta)) {
            return Err(OnlineError::NoMemory);
        }
        new.sort_unstable();
        self.members.advance(at.now);
        let mut new_users = 0;
        for of_user in new.chunk_by(|a, b| a.0 == b.0) {
            let user = of_user.first().map_or("", |(user, _)| user);
            let live = self.user(user, at.now).map_or(0, |user| user.live_sessions());
            let sessions = of_user.chunk_by(|a, b| a == b).count();
            if (live + sessions) as u64 > at.limits.sessions_per_user {
                return Err(OnlineError::SessionsPerUser);
            }
            new_users += usize::from(live == 0);
        }
        if at.limits.users > 0 && new_users > 0 {
            let (users, _) = self.counts(at.now);
            if (users + new_users) as u64 > at.limits.users {
                return Err(OnlineError::Users);
            }
        }
        Ok(())
    }

    /// Lets a session in that is not live. Returns whether its user came online by that.
    pub(super) fn come<S: Sink>(
        &mut self,
        at: ChangeCtx,
        lookup: &Lookup,
        (user, session): (&str, &str),
        keeper: Keeper<'_>,
        meta: Meta,
        sink: &mut S,
    ) -> bool {
        self.end_lapsed(at, lookup, user, sink);
        self.begin_session(at, lookup, (user, session), keeper, meta, sink)
    }

    /// Renews the lease of a session that is live, if that is all there is to do and the bound that others know
    /// covers it: the most frequent case of [`Self::online`], which comes to the same. Returns none where it was not
    /// so, else whether that can have changed how much memory the space takes. `slack` is that of [`super::Limits`].
    pub fn renew(
        &mut self,
        now: Timestamp,
        lookup: &Lookup,
        who: (&str, &str),
        lease: Timestamp,
        slack: u64,
    ) -> Option<bool> {
        // A closed space has no sessions.
        let id = self.members.find_by(lookup, who.0.as_bytes(), who.1.as_bytes())?;
        let before = self.members.lease(id)?;
        if before.is_owned() || !before.is_live(now) {
            return None;
        }
        let renewed = before.renewed(lease, slack)?;
        Some(self.members.set_lease(id, renewed))
    }

    /// Renews the lease of a session. Returns whether others were told.
    pub(super) fn renew_session<S: Sink>(
        &mut self,
        at: ChangeCtx,
        id: u32,
        who: (&str, &str),
        until: Timestamp,
        sink: &mut S,
    ) -> bool {
        sink.renewed(until);
        let most = at.limits.slack;
        let before = self.members.lease(id);
        if let Some(lease) = before.and_then(|lease| lease.renewed(until, most)) {
            self.members.set_lease(id, lease);
            return false;
        }
        let lease = Lease::new(until, false).with_slack(most);
        match lease.told() {
            LeaseBound { slack: 0, .. } => {
                self.set_lease(id, who, until, false, sink);
            }
            told => {
                self.tell_bound(id, who, told, sink);
                self.members.set_lease(id, lease);
            }
        }
        true
    }

    /// Tells others new bounds of sessions that would soon need one, now that others are told something anyway: a
    /// command for each by itself would take several times as much. Looks at a limited number of sessions, and the
    /// next call at those behind them.
    pub(super) fn tell_near_bounds<S: Sink>(&mut self, at: ChangeCtx, sink: &mut S) {
        let most = at.limits.slack;
        for id in self.members.near_bounds(at.now, most, LOOKS_FOR_BOUNDS) {
            let Some(record) = self.members.record(id).map(SessionRecordBuf::from) else {
                continue;
            };
            let record = record.read();
            let who = (text(record.user()), text(record.session()));
            let lease = record.lease().with_slack(most);
            self.tell_bound(id, who, lease.told(), sink);
            self.members.set_slack(id, most);
        }
    }

    /// Says that one session is alive until `lease`. Returns how many users came online (0 or
    /// 1), or none where the condition was not met. `has_memory` is asked for a new session and for
    /// metadata that is longer than before: whether about so many bytes more may be taken.
    /// `lookup` is the user's, since when nothing has changed.
    pub fn online<S: Sink>(
        &mut self,
        at: ChangeCtx,
        lookup: &Lookup,
        request: OnlineRequest<'_>,
        has_memory: impl FnOnce(usize) -> bool,
        sink: &mut S,
    ) -> Result<Option<usize>, OnlineError> {
        let OnlineRequest { who: (user, session), keeper, meta, condition } = request;
        if self.is_closed() {
            return Err(OnlineError::Closed);
        }
        if let Some(id) = self.live(lookup, (user, session), at.now) {
            if condition == Condition::IfAbsent {
                return Ok(None);
            }
            let current = self.members.record(id).and_then(|record| record.meta());
            let new_meta = match meta {
                MetaChange::To(meta) if current != meta.map(str::as_bytes) => Some(meta),
                _ => None,
            };
            if let Some(Some(meta)) = new_meta {
                // What makes a session larger needs memory; the session, and an event about it.
                if meta.len() > current.map_or(0, <[u8]>::len) && !has_memory(2 * meta.len()) {
                    return Err(OnlineError::NoMemory);
                }
            }
            let is_told = self.set_keeper(at, id, (user, session), keeper, sink);
            if let Some(meta) = new_meta {
                self.update_meta(at, id, meta, sink);
            }
            if is_told {
                self.tell_near_bounds(at, sink);
            }
            return Ok(Some(0));
        }
        if condition == Condition::IfPresent {
            return Ok(None);
        }
        let meta = match meta {
            MetaChange::To(meta) => meta,
            MetaChange::Keep => None,
        };
        self.admit(at, &mut [(user, session)], meta, has_memory)?;
        Ok(Some(usize::from(self.come(at, lookup, (user, session), keeper, meta, sink))))
    }

    /// The number of each of these sessions that is live.
    pub(super) fn find_live(
        &self,
        sessions: &[(&str, &str)],
        now: Timestamp,
        prefetch: Prefetch,
    ) -> Vec<Option<u32>> {
        let mut lookups = Vec::with_capacity(PREFETCH_BATCH);
        let mut found = Vec::with_capacity(sessions.len());
        for some in sessions.chunks(PREFETCH_BATCH) {
            let users = some.iter().map(|(user, _)| user.as_bytes());
            self.members.lookups(users, false, prefetch, &mut lookups);
            found.extend(
                some.iter().zip(&lookups).map(|(who, lookup)| self.live(lookup, *who, now)),
            );
        }
        found
    }

    /// Renews the leases of those of these sessions that are live, and leaves the others out. Returns the
    /// positions, from 0, of those that are left out.
    pub fn renew_many<'a, S: Sink>(
        &mut self,
        at: ChangeCtx,
        sessions: &[(&str, &str)],
        keeper: impl Into<Keeper<'a>>,
        prefetch: Prefetch,
        sink: &mut S,
    ) -> Result<Vec<usize>, OnlineError> {
        if self.is_closed() {
            return Err(OnlineError::Closed);
        }
        let keeper = keeper.into();
        let found = self.find_live(sessions, at.now, prefetch);
        let (mut left_out, mut is_told) = (Vec::new(), false);
        for (position, (who, id)) in sessions.iter().zip(found).enumerate() {
            match id {
                Some(id) => is_told |= self.set_keeper(at, id, *who, keeper, sink),
                None => left_out.push(position),
            }
        }
        if is_told {
            self.tell_near_bounds(at, sink);
        }
        Ok(left_out)
    }

    /// Says that many sessions are alive until `lease`, all or none. Returns how many users came online.
    pub fn online_many<'a, S: Sink>(
        &mut self,
        at: ChangeCtx,
        sessions: &[(&str, &str)],
        keeper: impl Into<Keeper<'a>>,
        has_memory: impl FnOnce(usize) -> bool,
        prefetch: Prefetch,
        sink: &mut S,
    ) -> Result<usize, OnlineError> {
        if self.is_closed() {
            return Err(OnlineError::Closed);
        }
        let keeper = keeper.into();
        let places = self.find_live(sessions, at.now, prefetch);
        let mut new: Vec<(&str, &str)> = sessions
            .iter()
            .zip(&places)
            .filter(|(_, place)| place.is_none())
            .map(|(session, _)| *session)
            .collect();
        if !new.is_empty() {
            self.admit(at, &mut new, None, has_memory)?;
        }
        let only_renews = new.is_empty();
        drop(new);
        let (mut came_online, mut is_told) = (0, false);
        for (&(user, session), place) in sessions.iter().zip(places) {
            // Numbers change only when sessions end, and they end only before one enters: one that
            // was found is good as long as nobody new is in the list.
            let place = if only_renews {
                place
            } else {
                self.live(&Lookup::default(), (user, session), at.now)
            };
            match place {
                Some(id) => is_told |= self.set_keeper(at, id, (user, session), keeper, sink),
                None => {
                    let lookup = self.members.lookup(user.as_bytes(), prefetch);
                    let came = self.come(at, &lookup, (user, session), keeper, None, sink);
                    came_online += usize::from(came);
                }
            }
        }
        if is_told {
            self.tell_near_bounds(at, sink);
        }
        Ok(came_online)
    }

    /// Ends one session of a user, or all where none is named; with a linger, cuts leases to at
    /// most so many ms from now instead. Returns how many users went offline by this (0 or 1).
    pub fn offline<S: Sink>(
        &mut self,
        at: ChangeCtx,
        user: &str,
        session: Option<&str>,
        linger: u64,
        sink: &mut S,
    ) -> usize {
        self.offline_owned(at, user, session, None, linger, sink)
    }

    /// The same, of the sessions that an owner has, where one is given.
    pub fn offline_owned<S: Sink>(
        &mut self,
        at: ChangeCtx,
        user: &str,
        session: Option<&str>,
        owner: Option<&Owner>,
        linger: u64,
        sink: &mut S,
    ) -> usize {
        let lookup = self.members.lookup(user.as_bytes(), |_| {});
        self.end_lapsed(at, &lookup, user, sink);
        let mut was_here = false;
        if let Some(session) = session {
            if let Some(id) = self.members.find(user.as_bytes(), session.as_bytes())
                && self.is_of(id, owner)
            {
                was_here = true;
                self.end_or_linger(at, id, linger, sink);
            }
        } else {
            for fingerprint in self.members.prints_of(user.as_bytes(), None) {
                let Some(id) = self.members.find_print(fingerprint) else { continue };
                if !self.is_of(id, owner) {
                    continue;
                }
                was_here = true;
                self.end_or_linger(at, id, linger, sink);
            }
        }
        usize::from(was_here && self.members.anchor(user.as_bytes()).is_none())
    }

    /// Whether a session has this owner, where one is asked for.
    fn is_of(&self, id: u32, owner: Option<&Owner>) -> bool {
        let Some(owner) = owner else { return true };
        let current = self.members.lease(id).and_then(|lease| self.members.owner_of(lease));
        current.is_some_and(|current| **current == *owner)
    }

    pub(super) fn end_or_linger<S: Sink>(
        &mut self,
        at: ChangeCtx,
        id: u32,
        linger: u64,
        sink: &mut S,
    ) {
        if linger == 0 {
            self.end_session(at, id, Reason::Offline, sink);
        } else if let Some(session) = self.members.record(id).map(SessionRecordBuf::from) {
            let record = session.read();
            let until = self.members.until(record.lease());
            let lease = until.min(at.now.saturating_add(linger));
            self.set_lease(id, (text(record.user()), text(record.session())), lease, true, sink);
        }
    }

    /// Sends a text. Returns the event's id, or none where the space is closed.
    pub fn message<S: Sink>(
        &mut self,
        at: ChangeCtx,
        user: &str,
        session: &str,
        message: &str,
        sink: &mut S,
    ) -> Option<(u64, u64)> {
        if self.is_closed() {
            return None;
        }
        self.send(at, user, session, message, sink);
        Some(self.last_id())
    }

    /// Ends the space until `until`. Returns false where it is closed already.
    pub fn close<S: Sink>(&mut self, at: ChangeCtx, until: Timestamp, sink: &mut S) -> bool {
        if self.is_closed() {
            return false;
        }
        // Who lapsed before has left before. Should a sweep be far behind, the rest goes with the
        // close: a million leaves are not told in one go.
        for _ in 0..LEAVES_BEFORE_CLOSE {
            match self.members.next_expired(at.now, &mut || true) {
                Ok(Some(id)) => self.end_if_lapsed(at, id, sink),
                _ => break,
            }
        }
        self.shut(at, until, sink);
        true
    }
}

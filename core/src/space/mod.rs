//! A space: who is in it, with which sessions, until when, and what happened.
//!
//! Plain data that knows no server and reads no clock. Whoever changes a space says what time it
//! is and gets told, through a [`Sink`], what was done: [`Effect`]s, which make the same change
//! elsewhere, and events, which are for the subscribers. Everything that changes a space ends in
//! one of the few functions of the section "what can happen"; commands, the sweep and replayed
//! effects only differ in how they get there.

mod effect;
mod error;
mod event;
mod group;
mod history;
mod lease_order;
mod lines;
mod members;
#[cfg(test)]
mod model;
mod record;
mod session_store;

pub use effect::{Effect, NullSink, Sink};
pub use error::{ApplyError, OnlineError};
pub use event::{Event, Kind, Reason};
pub use history::{History, Retention};
pub use members::{Lookup, OutOfTime, SpaceLayout, User};
pub use record::SessionRecord;

use crate::collections::allocated;
use lines::PastLine;
use members::{Members, PREFETCH_BATCH};
use record::{Lease, SessionRecordBuf};

/// Unix time in milliseconds.
pub type Timestamp = u64;
/// Asks for memory that will be looked at soon, if whoever runs this can: a hint, which reads nothing.
pub type Prefetch = fn(at: *const u8);
/// A JSON text, or none.
pub type Text<'a> = Option<&'a str>;

/// The longest name of a user or a session, in bytes.
pub const MAX_NAME_BYTES: usize = 512;
/// The longest name of a space that a command takes, and the most that events carry of one, in
/// bytes: each event repeats it.
pub const MAX_SPACE_BYTES: usize = 4096;
/// No time and no sequence number is later than this: sums of two cannot overflow, and both fit
/// the signed integers of replies.
pub const MAX_TIMESTAMP: u64 = (1 << 62) - 1;

/// No epoch and no seq is greater than this: readers of JSON hold such numbers exactly.
pub const MAX_ID_NUMBER: u64 = 1 << 53;

/// At most so many leaves of lapsed sessions are told by who closes a space.
const LEAVES_BEFORE_CLOSE: usize = 4096;

/// What a session takes beside its names and metadata, and an event beside its texts: estimates.
const SESSION_BYTES: usize = 128;
const EVENT_BYTES: usize = 224;

/// An estimate of the bytes that a message takes in the history.
pub fn message_bytes(message: &str) -> usize {
    // Only of a long one it matters that characters may be escaped.
    let is_long = message.len() > 4096;
    EVENT_BYTES + if is_long { event::text_len(message.as_bytes()) } else { message.len() }
}

/// A sweep asks whether there is time left after so many events that it removed from a history.
const TRIMMED_AT_ONCE: usize = 64;

/// The members of a space that has ended, to be freed.
pub struct Gone(Members);

impl Gone {
    pub fn sessions(&self) -> usize {
        self.0.sessions()
    }
}

/// What bounds a space.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub sessions_per_user: u64,
    /// 0: no limit.
    pub users: u64,
    pub retention: Retention,
}

/// When `online` is to do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Always,
    /// NX
    IfAbsent,
    /// XX
    IfPresent,
}

/// What `online` is to do with a session's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaChange<'a> {
    Keep,
    /// To a JSON text, or to none.
    To(Text<'a>),
}

/// What [`Space::online`] is to do with one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnlineRequest<'a> {
    /// The user and the session; the unnamed session is the empty string.
    pub who: (&'a str, &'a str),
    /// Until when the session is live.
    pub lease: Timestamp,
    pub meta: MetaChange<'a>,
    pub condition: Condition,
}

/// What a sweep of a space has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepProgress {
    pub ended: usize,
    /// Time was up before everything was done.
    pub more: bool,
}

/// The circumstances of a change: the key's name, the time, the bounds.
#[derive(Clone, Copy)]
pub struct ChangeCtx<'a> {
    pub space: &'a [u8],
    pub now: Timestamp,
    pub limits: Limits,
}

#[derive(Clone)]
pub struct Space {
    epoch: u64,
    seq: u64,
    /// 0: the space is open.
    closed_until: Timestamp,
    members: Members,
    /// Absent while it is empty, as it is in most spaces most of the time.
    history: Option<Box<History>>,
}

/// A stored name as text. Names are checked when they come in.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// The seq of an event by its text.
fn event_seq(event: &[u8]) -> Option<u64> {
    event::id(event).map(|(_, seq)| seq)
}

impl Space {
    /// An empty space whose ids begin with `epoch`.
    pub fn new(epoch: u64) -> Self {
        Space { epoch, seq: 0, closed_until: 0, members: Members::default(), history: None }
    }

    /// Tells `sink` that the space began; the first thing it hears of a new space.
    pub fn announce<S: Sink>(&self, sink: &mut S) {
        sink.effect(&Effect::Begin {
            epoch: self.epoch,
            seq: self.seq,
            closed_until: self.closed_until,
        });
    }

    // ---- reading -------------------------------------------------------------------------

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
        self.history.as_deref()
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
    fn past_lines(&self) -> &[PastLine] {
        self.history().map_or(&[], History::lines)
    }

    /// The first seq of the present line of history. Where the line before it is forgotten, this
    /// is too early, but then an event after that is not kept either.
    fn line_begins(&self) -> u64 {
        self.past_lines().last().map_or(1, |line| line.last.saturating_add(1))
    }

    /// The seq after which events are new to whoever has seen `id`, and whether that is certain:
    /// it is not where the id was not given out in a line of this space, as far as is known.
    fn position(&self, id: (u64, u64)) -> (u64, bool) {
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

    /// Nobody is here and nothing is kept: the key can go.
    pub fn is_spent(&self, now: Timestamp, retention: Retention) -> bool {
        if self.is_closed() {
            return self.is_over(now);
        }
        self.members.sessions() == 0 && self.kept_events(now, retention) == 0
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
        lease.into_iter().chain(history).min().unwrap_or(0)
    }

    /// Bytes on the heap, in constant time.
    pub fn heap_bytes(&self) -> usize {
        let history =
            self.history().map_or(0, |history| size_of::<History>() + history.heap_bytes());
        self.members.heap_bytes() + history
    }

    /// The effects that make this space out of nothing.
    pub fn dump(&self, mut tell: impl FnMut(&Effect<'_>)) {
        tell(&Effect::Begin { epoch: self.epoch, seq: self.seq, closed_until: self.closed_until });
        for &PastLine { epoch, first, last } in self.past_lines() {
            tell(&Effect::PastLine { epoch, first, last });
        }
        for (record, since) in self.members.all() {
            tell(&Effect::Session {
                user: text(record.user()),
                session: text(record.session()),
                lease: record.lease().until(),
                joined_at: record.joined_at(),
                since,
                lingering: record.lease().is_lingering(),
                meta: record.meta().map(text),
            });
        }
        let history = self.history().into_iter();
        for (at, event) in history.flat_map(|history| history.newest(history.live())) {
            tell(&Effect::Event { at, text: text(event) });
        }
    }

    // ---- what can happen -----------------------------------------------------------------

    fn event<S: Sink>(&mut self, at: ChangeCtx, mut event: Event<'_>, sink: &mut S) {
        self.seq = self.seq.saturating_add(1);
        event.seq = self.seq;
        let mut text = Vec::with_capacity(192 + event.meta.map_or(0, <[u8]>::len));
        event.write_json(&mut text);
        sink.event(event.kind, event.reason, &text);
        let history = self.history.get_or_insert_default();
        history.push(at.now, &text, at.limits.retention);
        history.forget_lines(self.seq);
        if history.is_empty() {
            self.history = None;
        }
    }

    /// Begins a new line of history before the first event after a load or a promotion. Each
    /// function that makes an event calls this first.
    fn begin_line_if_due<S: Sink>(&mut self, sink: &mut S) {
        if let Some(epoch) = sink.take_new_line() {
            self.begin_line(epoch.max(self.epoch.saturating_add(1)), sink);
        }
    }

    fn begin_line<S: Sink>(&mut self, epoch: u64, sink: &mut S) {
        sink.effect(&Effect::NewLine { epoch });
        let (first, last) = (self.line_begins(), self.seq);
        if first <= last {
            let line = PastLine { epoch: self.epoch, first, last };
            self.history.get_or_insert_default().add_line(line);
        }
        self.epoch = epoch;
    }

    /// An event about a session as it is, or last was.
    fn session_event<S: Sink>(
        &mut self,
        at: ChangeCtx,
        kind: Kind,
        record: SessionRecord<'_>,
        reason: Option<Reason>,
        sink: &mut S,
    ) {
        let event = Event {
            user: Some(record.user()),
            session: record.session(),
            joined_at: Some(record.joined_at()),
            meta: record.meta(),
            reason,
            ..Event::new(self.epoch, at.space, kind, self.members.users(), at.now)
        };
        self.event(at, event, sink);
    }

    /// Returns whether the user came online by this.
    fn begin_session<S: Sink>(
        &mut self,
        at: ChangeCtx,
        lookup: &Lookup,
        (user, session): (&str, &str),
        lease: Timestamp,
        meta: Text,
        sink: &mut S,
    ) -> bool {
        self.begin_line_if_due(sink);
        sink.effect(&Effect::Online { user, session, lease, at: at.now, meta });
        let session = SessionRecordBuf::new(user, session, Lease::new(lease, false), at.now, meta);
        let first = self.members.insert(lookup, session.read(), at.now);
        let kind = if first { Kind::Join } else { Kind::Add };
        self.session_event(at, kind, session.read(), None, sink);
        first
    }

    fn end_session<S: Sink>(&mut self, at: ChangeCtx, id: u32, reason: Reason, sink: &mut S) {
        let Some((session, last)) = self.members.remove(id) else { return };
        self.begin_line_if_due(sink);
        let record = session.read();
        sink.effect(&Effect::Offline {
            user: text(record.user()),
            session: text(record.session()),
            at: at.now,
            reason,
        });
        let kind = if last { Kind::Leave } else { Kind::Remove };
        self.session_event(at, kind, record, Some(reason), sink);
    }

    fn set_lease<S: Sink>(
        &mut self,
        id: u32,
        (user, session): (&str, &str),
        lease: Timestamp,
        lingering: bool,
        sink: &mut S,
    ) -> bool {
        sink.effect(&Effect::Lease { user, session, lease, lingering });
        self.members.set_lease(id, lease, lingering)
    }

    fn update_meta<S: Sink>(&mut self, at: ChangeCtx, id: u32, meta: Text, sink: &mut S) {
        let id = self.members.set_meta(id, meta);
        let Some(session) = self.members.record(id).map(SessionRecordBuf::from) else { return };
        self.begin_line_if_due(sink);
        let record = session.read();
        sink.effect(&Effect::Update {
            user: text(record.user()),
            session: text(record.session()),
            at: at.now,
            meta,
        });
        self.session_event(at, Kind::Update, record, None, sink);
    }

    fn send<S: Sink>(
        &mut self,
        at: ChangeCtx,
        user: &str,
        session: &str,
        message: &str,
        sink: &mut S,
    ) {
        self.begin_line_if_due(sink);
        sink.effect(&Effect::Message { user, session, at: at.now, text: message });
        let event = Event {
            user: Some(user.as_bytes()),
            session: session.as_bytes(),
            message: Some(message),
            ..Event::new(self.epoch, at.space, Kind::Message, self.members.users(), at.now)
        };
        self.event(at, event, sink);
    }

    fn shut<S: Sink>(&mut self, at: ChangeCtx, until: Timestamp, sink: &mut S) {
        self.begin_line_if_due(sink);
        sink.effect(&Effect::Close { at: at.now, until });
        sink.discard(Gone(std::mem::take(&mut self.members)));
        self.closed_until = until.max(1);
        let event = Event::new(self.epoch, at.space, Kind::Close, 0, at.now);
        self.event(at, event, sink);
    }

    fn trim<S: Sink>(&mut self, keep: usize, sink: &mut S) {
        sink.effect(&Effect::Trim { keep: keep as u64 });
        if let Some(history) = &mut self.history {
            history.truncate_to(keep);
            history.forget_lines(self.seq);
            if history.is_empty() {
                self.history = None;
            }
        }
    }

    /// Removes the oldest events until the space takes no more than so many bytes on the heap, or no
    /// event is left.
    pub fn trim_to_bytes<S: Sink>(&mut self, bytes: usize, sink: &mut S) {
        let mut length = self.history().map_or(0, History::len);
        while length > 0 && self.heap_bytes() > bytes {
            length -= 1;
            if let Some(history) = &mut self.history {
                history.truncate_to(length);
            }
        }
        self.trim(length, sink);
    }

    /// A lease that is live now was so when the server went down or its primary was lost; nobody
    /// could renew it since. It becomes at least `until`.
    pub fn grant_grace<S: Sink>(&mut self, until: Timestamp, sink: &mut S) {
        sink.effect(&Effect::Grace { until });
        self.members.extend_all(until);
    }

    // ---- what is asked for ---------------------------------------------------------------

    /// The number of a session that is live.
    fn live(&self, lookup: &Lookup, who: (&str, &str), now: Timestamp) -> Option<u32> {
        let id = self.members.find_by(lookup, who.0.as_bytes(), who.1.as_bytes())?;
        self.members.lease(id)?.is_live(now).then_some(id)
    }

    /// Records the end of those of a user's sessions whose leases are over.
    fn end_lapsed<S: Sink>(&mut self, at: ChangeCtx, lookup: &Lookup, user: &str, sink: &mut S) {
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

    fn end_if_lapsed<S: Sink>(&mut self, at: ChangeCtx, id: u32, sink: &mut S) {
        let Some(record) = self.members.record(id).filter(|record| !record.is_live(at.now)) else {
            return;
        };
        sink.lapsed(at.now - record.lease().until());
        let reason = if record.lease().is_lingering() { Reason::Offline } else { Reason::Timeout };
        self.end_session(at, id, reason, sink);
    }

    /// An estimate of the bytes that sessions which are not there yet will take, with their events.
    fn growth(&self, at: ChangeCtx, new: &[(&str, &str)], meta: Text) -> usize {
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
    fn admit(
        &mut self,
        at: ChangeCtx,
        new: &mut [(&str, &str)],
        meta: Text,
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
    fn come<S: Sink>(
        &mut self,
        at: ChangeCtx,
        lookup: &Lookup,
        (user, session): (&str, &str),
        lease: Timestamp,
        meta: Text,
        sink: &mut S,
    ) -> bool {
        self.end_lapsed(at, lookup, user, sink);
        self.begin_session(at, lookup, (user, session), lease, meta, sink)
    }

    /// Renews the lease of a session that is live, if that is all there is to do and nobody is to be
    /// told: the most frequent case of [`Self::online`], which comes to the same. Returns none where it was not
    /// so, else whether that can have changed how much memory the space takes.
    pub fn renew(
        &mut self,
        now: Timestamp,
        lookup: &Lookup,
        who: (&str, &str),
        lease: Timestamp,
    ) -> Option<bool> {
        // A closed space has no sessions.
        let id = self.live(lookup, who, now)?;
        Some(self.set_lease(id, who, lease, false, &mut NullSink))
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
        let OnlineRequest { who: (user, session), lease, meta, condition } = request;
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
            self.set_lease(id, (user, session), lease, false, sink);
            if let Some(meta) = new_meta {
                self.update_meta(at, id, meta, sink);
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
        Ok(Some(usize::from(self.come(at, lookup, (user, session), lease, meta, sink))))
    }

    /// The number of each of these sessions that is live.
    fn find_live(
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
    pub fn renew_many<S: Sink>(
        &mut self,
        at: ChangeCtx,
        sessions: &[(&str, &str)],
        lease: Timestamp,
        prefetch: Prefetch,
        sink: &mut S,
    ) -> Result<Vec<usize>, OnlineError> {
        if self.is_closed() {
            return Err(OnlineError::Closed);
        }
        let found = self.find_live(sessions, at.now, prefetch);
        let mut left_out = Vec::new();
        for (position, (who, id)) in sessions.iter().zip(found).enumerate() {
            match id {
                Some(id) => {
                    self.set_lease(id, *who, lease, false, sink);
                }
                None => left_out.push(position),
            }
        }
        Ok(left_out)
    }

    /// Says that many sessions are alive until `lease`, all or none. Returns how many users came online.
    pub fn online_many<S: Sink>(
        &mut self,
        at: ChangeCtx,
        sessions: &[(&str, &str)],
        lease: Timestamp,
        has_memory: impl FnOnce(usize) -> bool,
        prefetch: Prefetch,
        sink: &mut S,
    ) -> Result<usize, OnlineError> {
        if self.is_closed() {
            return Err(OnlineError::Closed);
        }
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
        let mut came_online = 0;
        for (&(user, session), place) in sessions.iter().zip(places) {
            // Numbers change only when sessions end, and they end only before one enters: one that
            // was found is good as long as nobody new is in the list.
            let place = if only_renews {
                place
            } else {
                self.live(&Lookup::default(), (user, session), at.now)
            };
            match place {
                Some(id) => {
                    self.set_lease(id, (user, session), lease, false, sink);
                }
                None => {
                    let lookup = self.members.lookup(user.as_bytes(), prefetch);
                    let came = self.come(at, &lookup, (user, session), lease, None, sink);
                    came_online += usize::from(came);
                }
            }
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
        let lookup = self.members.lookup(user.as_bytes(), |_| {});
        self.end_lapsed(at, &lookup, user, sink);
        let mut was_here = false;
        if let Some(session) = session {
            if let Some(id) = self.members.find(user.as_bytes(), session.as_bytes()) {
                was_here = true;
                self.end_or_linger(at, id, linger, sink);
            }
        } else {
            for fingerprint in self.members.prints_of(user.as_bytes(), None) {
                let Some(id) = self.members.find_print(fingerprint) else { continue };
                was_here = true;
                self.end_or_linger(at, id, linger, sink);
            }
        }
        usize::from(was_here && self.members.anchor(user.as_bytes()).is_none())
    }

    fn end_or_linger<S: Sink>(&mut self, at: ChangeCtx, id: u32, linger: u64, sink: &mut S) {
        if linger == 0 {
            self.end_session(at, id, Reason::Offline, sink);
        } else if let Some(session) = self.members.record(id).map(SessionRecordBuf::from) {
            let record = session.read();
            let lease = record.lease().until().min(at.now.saturating_add(linger));
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

    /// Ends the sessions whose leases are over and lets go of a history whose time is over, for
    /// as long as `may_go_on`, which is asked after each piece of work.
    pub fn sweep<S: Sink>(
        &mut self,
        at: ChangeCtx,
        sink: &mut S,
        may_go_on: &mut impl FnMut() -> bool,
    ) -> SweepProgress {
        let mut ended = 0;
        loop {
            match self.members.next_expired(at.now, may_go_on) {
                Ok(Some(id)) => {
                    self.end_if_lapsed(at, id, sink);
                    ended += 1;
                }
                Ok(None) => break,
                Err(OutOfTime) => return SweepProgress { ended, more: true },
            }
            if !may_go_on() {
                return SweepProgress { ended, more: true };
            }
        }
        if !self.sweep_history(at, sink, may_go_on) {
            return SweepProgress { ended, more: true };
        }
        SweepProgress { ended, more: !self.tidy(at.now, may_go_on) }
    }

    /// Frees what the history no longer keeps. Returns whether there was time for all of it.
    fn sweep_history<S: Sink>(
        &mut self,
        at: ChangeCtx,
        sink: &mut S,
        may_go_on: &mut impl FnMut() -> bool,
    ) -> bool {
        let Some(history) = self.history() else { return true };
        let (mut length, live) = (history.len(), history.live());
        let keep = self.kept_events(at.now, at.limits.retention);
        // Readers do not see what is too old. To remove it is worth a change only if that is all, or
        // more than an event could remove, or if the history is now shorter by its settings. A spent
        // space is deleted as a whole, in the background.
        let is_too_long = length > live || length as u64 > at.limits.retention.length;
        let is_closed = self.is_closed() && length == live;
        if is_closed || (keep > 0 && !is_too_long) || self.is_spent(at.now, at.limits.retention) {
            return true;
        }
        while length > keep {
            length = length.saturating_sub(TRIMMED_AT_ONCE).max(keep);
            if let Some(history) = &mut self.history {
                history.truncate_to(length);
            }
            if length > keep && !may_go_on() {
                break;
            }
        }
        self.trim(length, sink);
        length == keep
    }

    /// Sorts the leases that end soon, for as long as `may_go_on`: the part of a sweep that ends nothing.
    /// Returns whether there was time for all of it.
    pub fn tidy(&mut self, now: Timestamp, may_go_on: &mut impl FnMut() -> bool) -> bool {
        self.members.look_ahead(now, may_go_on).is_ok()
    }

    // ---- what is replayed ----------------------------------------------------------------

    /// Does what another node, or this one in an earlier life, has decided. `retention` holds
    /// from one effect to the next.
    pub fn apply<S: Sink>(
        &mut self,
        space: &[u8],
        effect: &Effect<'_>,
        retention: &mut Retention,
        sink: &mut S,
    ) -> Result<(), ApplyError> {
        let limits = Limits { sessions_per_user: u64::MAX, users: 0, retention: *retention };
        let at = |now| ChangeCtx { space, now, limits };
        let find = |members: &Members, user: &str, session: &str| {
            members.find(user.as_bytes(), session.as_bytes()).ok_or(ApplyError("unknown session"))
        };
        self.check(effect)?;
        match *effect {
            Effect::Keep { length, ttl } => *retention = Retention { length, ttl },
            Effect::Online { user, session, lease, at: now, meta } => {
                if find(&self.members, user, session).is_ok() {
                    return Err(ApplyError("session is there already"));
                }
                self.begin_session(at(now), &Lookup::default(), (user, session), lease, meta, sink);
            }
            Effect::Lease { user, session, lease, lingering } => {
                let id = find(&self.members, user, session)?;
                self.set_lease(id, (user, session), lease, lingering, sink);
            }
            Effect::Update { user, session, at: now, meta } => {
                let id = find(&self.members, user, session)?;
                self.update_meta(at(now), id, meta, sink);
            }
            Effect::Offline { user, session, at: now, reason } => {
                let id = find(&self.members, user, session)?;
                self.end_session(at(now), id, reason, sink);
            }
            Effect::Grace { until } => self.grant_grace(until, sink),
            Effect::Message { user, session, at: now, text } => {
                self.send(at(now), user, session, text, sink);
            }
            Effect::Close { at: now, until } => self.shut(at(now), until, sink),
            Effect::Trim { keep } => {
                self.trim(usize::try_from(keep).unwrap_or(usize::MAX), sink);
            }
            Effect::NewLine { epoch } => {
                if epoch <= self.epoch {
                    return Err(ApplyError("the new line has an epoch that is not later"));
                }
                self.begin_line(epoch, sink);
            }
            Effect::Begin { .. }
            | Effect::Session { .. }
            | Effect::Event { .. }
            | Effect::PastLine { .. }
            | Effect::LineDue => {
                self.restore(effect)?;
                sink.effect(effect);
            }
        }
        Ok(())
    }

    /// Takes in one effect of a [`Space::dump`].
    pub fn restore(&mut self, effect: &Effect<'_>) -> Result<(), ApplyError> {
        self.check(effect)?;
        match *effect {
            Effect::Begin { epoch, seq, closed_until } => {
                if self.seq > 0 || self.members.sessions() > 0 || self.history.is_some() {
                    return Err(ApplyError("space is there already"));
                }
                (self.epoch, self.seq, self.closed_until) = (epoch, seq, closed_until);
            }
            Effect::Session { user, session, lease, joined_at, since, lingering, meta } => {
                let lookup = self.members.lookup(user.as_bytes(), |_| {});
                let lease = Lease::new(lease, lingering);
                let packed = SessionRecordBuf::new(user, session, lease, joined_at, meta);
                if !self.members.insert_absent(&lookup, packed.read(), since) {
                    return Err(ApplyError("session is there twice"));
                }
            }
            Effect::Event { at, text } => {
                let history = self.history.get_or_insert_default();
                // The ids have no holes, and the last event has the last id.
                let before = history.newest(1).next().and_then(|(_, text)| event_seq(text));
                let seq = event_seq(text.as_bytes()).unwrap_or(0);
                if !event::is_event(text)
                    || !(1..=self.seq).contains(&seq)
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
                self.history.get_or_insert_default().add_line(PastLine { epoch, first, last });
            }
            // Whoever holds the space takes note of it.
            Effect::LineDue => {}
            _ => return Err(ApplyError("not part of a snapshot")),
        }
        Ok(())
    }

    /// Ends the restoring of a snapshot. Returns whether its last event was there.
    pub fn end_restore(&mut self) -> bool {
        if let Some(history) = &mut self.history {
            history.put_in_order();
        }
        let newest = self.history().and_then(|history| history.newest(1).next());
        newest.is_none_or(|(_, text)| event_seq(text) == Some(self.seq))
    }

    /// What must hold of an effect whoever sent it. Metadata is checked where it is decoded.
    fn check(&self, effect: &Effect<'_>) -> Result<(), ApplyError> {
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
            Effect::Online { lease, at, .. } => [lease, at, 0],
            Effect::Lease { lease, .. } => [lease, 0, 0],
            Effect::Update { at, .. }
            | Effect::Offline { at, .. }
            | Effect::Message { at, .. }
            | Effect::Event { at, .. } => [at, 0, 0],
            Effect::Grace { until } => [until, 0, 0],
            Effect::Close { at, until } => [at, until, 0],
            Effect::Session { lease, joined_at, since, .. } => [lease, joined_at, since],
            Effect::Keep { .. }
            | Effect::Trim { .. }
            | Effect::NewLine { .. }
            | Effect::PastLine { .. }
            | Effect::LineDue => [0; 3],
        };
        if moments.iter().any(|moment| *moment > MAX_TIMESTAMP) {
            return Err(ApplyError("a time is out of range"));
        }
        let (user, session) = match *effect {
            Effect::Online { user, session, .. }
            | Effect::Lease { user, session, .. }
            | Effect::Update { user, session, .. }
            | Effect::Offline { user, session, .. }
            | Effect::Message { user, session, .. }
            | Effect::Session { user, session, .. } => (user, session),
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

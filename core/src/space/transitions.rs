//! What can happen to a space. Everything that changes a space ends in one of these functions, each of which
//! reports its effect and its event to the sink.

use super::lease::{Lease, LeaseBound};
use super::lines::PastLine;
use super::record::SessionRecordBuf;
use super::{
    ChangeCtx, Effect, Event, Gone, History, Keeper, Kind, Lookup, Meta, Reason, SessionRecord,
    Sink, Space, Timestamp, text,
};
use crate::owners::Owner;
use std::sync::Arc;

/// A space that must not grow forgets so many users before it looks again.
const FORGOTTEN_AT_ONCE: usize = 64;

impl Space {
    pub(super) fn event<S: Sink>(&mut self, at: ChangeCtx, mut event: Event<'_>, sink: &mut S) {
        self.seq = self.seq.saturating_add(1);
        event.seq = self.seq;
        let mut text = Vec::with_capacity(192 + event.meta.map_or(0, <[u8]>::len));
        event.write_json(&mut text);
        sink.event(&event, &text);
        let seq = self.seq;
        let history = &mut self.past_mut().history;
        history.push(at.now, &text, at.limits.retention);
        history.forget_lines(seq);
        self.free_empty_history();
    }

    /// Begins a new line of history before the first event after a load or a promotion. Each
    /// function that makes an event calls this first.
    pub(super) fn begin_line_if_due<S: Sink>(&mut self, sink: &mut S) {
        if let Some(epoch) = sink.take_new_line() {
            self.begin_line(epoch.max(self.epoch.saturating_add(1)), sink);
        }
    }

    pub(super) fn begin_line<S: Sink>(&mut self, epoch: u64, sink: &mut S) {
        sink.effect(&Effect::NewLine { epoch });
        let (first, last) = (self.line_begins(), self.seq);
        if first <= last {
            let line = PastLine { epoch: self.epoch, first, last };
            self.past_mut().history.add_line(line);
        }
        self.epoch = epoch;
    }

    /// An event about a session as it is, or last was.
    pub(super) fn session_event<S: Sink>(
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
    pub(super) fn begin_session<S: Sink>(
        &mut self,
        at: ChangeCtx,
        lookup: &Lookup,
        (user, session): (&str, &str),
        keeper: Keeper<'_>,
        meta: Meta,
        sink: &mut S,
    ) -> bool {
        self.begin_line_if_due(sink);
        let lease = match keeper {
            Keeper::Lease(lease) => {
                sink.effect(&Effect::Online { user, session, lease, at: at.now, meta });
                Lease::new(lease, false)
            }
            Keeper::Owner(owner) => {
                let (name, lease) = (owner.name(), owner.until());
                sink.effect(&Effect::OwnedOnline {
                    user,
                    session,
                    owner: name,
                    lease,
                    at: at.now,
                    meta,
                });
                Lease::owned(self.members.slot_of(owner))
            }
        };
        let session = SessionRecordBuf::new(user, session, lease, at.now, meta);
        let first = self.members.insert(lookup, session.read(), at.now);
        if first {
            self.forget_back(user.as_bytes());
        }
        let kind = if first { Kind::Join } else { Kind::Add };
        self.session_event(at, kind, session.read(), None, sink);
        first
    }

    pub(super) fn end_session<S: Sink>(
        &mut self,
        at: ChangeCtx,
        id: u32,
        reason: Reason,
        sink: &mut S,
    ) {
        let Some((session, last)) = self.members.remove(id) else { return };
        self.begin_line_if_due(sink);
        let record = session.read();
        sink.effect(&Effect::Offline {
            user: text(record.user()),
            session: text(record.session()),
            at: at.now,
            reason,
        });
        if last {
            self.remember(record.user(), at.now, reason, at.limits.retention.seen);
        }
        let kind = if last { Kind::Leave } else { Kind::Remove };
        self.session_event(at, kind, record, Some(reason), sink);
    }

    /// Gives a session a lease, of which others are told. Returns whether that can have changed how much memory the
    /// space takes.
    pub(super) fn set_lease<S: Sink>(
        &mut self,
        id: u32,
        (user, session): (&str, &str),
        lease: Timestamp,
        lingering: bool,
        sink: &mut S,
    ) -> bool {
        sink.effect(&Effect::Lease { user, session, lease, lingering });
        self.members.set_lease(id, Lease::new(lease, lingering))
    }

    /// Tells others the lease of a session, with a bound.
    pub(super) fn tell_bound<S: Sink>(
        &mut self,
        id: u32,
        (user, session): (&str, &str),
        until: LeaseBound,
        sink: &mut S,
    ) {
        let session = (!self.members.is_only(id)).then_some(session);
        sink.effect(&Effect::Bound { user, session, until });
    }

    /// Gives a session to an owner. It changes nothing if the session is the owner's.
    pub(super) fn set_owner<S: Sink>(
        &mut self,
        id: u32,
        (user, session): (&str, &str),
        owner: &Arc<Owner>,
        sink: &mut S,
    ) {
        if let Some(current) = self.members.lease(id).and_then(|it| self.members.owner_of(it))
            && current == owner
        {
            return;
        }
        sink.effect(&Effect::Own { user, session, owner: owner.name(), lease: owner.until() });
        let slot = self.members.slot_of(owner);
        self.members.set_owner(id, slot);
    }

    /// Says what keeps a session alive. Returns whether others were told of a lease.
    pub(super) fn set_keeper<S: Sink>(
        &mut self,
        at: ChangeCtx,
        id: u32,
        who: (&str, &str),
        keeper: Keeper<'_>,
        sink: &mut S,
    ) -> bool {
        match keeper {
            Keeper::Lease(lease) => self.renew_session(at, id, who, lease, sink),
            Keeper::Owner(owner) => {
                self.set_owner(id, who, owner, sink);
                false
            }
        }
    }

    pub(super) fn update_meta<S: Sink>(
        &mut self,
        at: ChangeCtx,
        id: u32,
        meta: Meta,
        sink: &mut S,
    ) {
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

    pub(super) fn send<S: Sink>(
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

    pub(super) fn shut<S: Sink>(&mut self, at: ChangeCtx, until: Timestamp, sink: &mut S) {
        self.begin_line_if_due(sink);
        sink.effect(&Effect::Close { at: at.now, until });
        let seen = self.past.as_mut().and_then(|past| past.seen.take());
        sink.discard(Gone { members: self.members.take_all(), seen });
        self.closed_until = until.max(1);
        let event = Event::new(self.epoch, at.space, Kind::Close, 0, at.now);
        self.event(at, event, sink);
    }

    pub(super) fn trim<S: Sink>(&mut self, keep: usize, sink: &mut S) {
        sink.effect(&Effect::Trim { keep: keep as u64 });
        let seq = self.seq;
        if let Some(history) = self.history_mut() {
            history.truncate_to(keep);
            history.forget_lines(seq);
        }
        self.free_empty_history();
    }

    /// Removes the oldest events until the space takes no more than so many bytes on the heap, and then forgets the
    /// users who left first.
    pub fn trim_to_bytes<S: Sink>(&mut self, bytes: usize, sink: &mut S) {
        let mut length = self.history().map_or(0, History::len);
        while length > 0 && self.heap_bytes() > bytes {
            length -= 1;
            if let Some(history) = self.history_mut() {
                history.truncate_to(length);
            }
        }
        self.trim(length, sink);
        while self.stored_seen() > 0 && self.heap_bytes() > bytes {
            self.forget_first(FORGOTTEN_AT_ONCE.min(self.stored_seen()), sink);
        }
    }

    /// A lease that is live now was so when the server went down or its primary was lost; nobody
    /// could renew it since. It becomes at least `until`. Where only a bound is known, it becomes no more than that
    /// or the lease that was told with the bound.
    pub fn grant_grace<S: Sink>(&mut self, until: Timestamp, sink: &mut S) {
        sink.effect(&Effect::Grace { until });
        self.members.cut_all(until);
    }

    /// From now on another server decides, which was told bounds with this slack at most.
    pub fn cease_to_decide(&mut self, slack: u64) {
        self.members.follow_all(slack);
    }

    /// What others make of that. They keep their bounds: the server that granted the grace may know later leases than
    /// it has told.
    pub(super) fn take_grace<S: Sink>(&mut self, until: Timestamp, sink: &mut S) {
        sink.effect(&Effect::Grace { until });
        self.members.raise_all(until);
    }
}

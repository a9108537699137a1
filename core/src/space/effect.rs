//! What a space says it has done, for those who must do the same: replicas, the AOF, a snapshot.
//!
//! An effect is a decision with its absolute times; whoever applies it decides nothing and reads
//! no clock. Events follow from effects: applying one gives the event its id and its text, the
//! same on every node.

use super::{Event, Gone, LeaseBound, Reason, Timestamp};
use crate::owners::{Owner, OwnerLease};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One change of a space. Times are unix ms.
///
/// The order of the variants is part of the wire form: add at the end only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect<'a> {
    /// The space begins, or is restored: what is not told by the effects after it.
    /// `closed_until` is 0 for a space that is open.
    Begin { epoch: u64, seq: u64, closed_until: Timestamp },
    /// The history settings under which the events of this batch are kept.
    Keep { length: u64, ttl: u64 },
    /// A session began: `join` or `add`.
    Online {
        user: &'a str,
        session: &'a str,
        lease: Timestamp,
        at: Timestamp,
        meta: Option<&'a str>,
    },
    /// A session's lease, and whether it lingers, are now so. No event.
    Lease { user: &'a str, session: &'a str, lease: Timestamp, lingering: bool },
    /// A session's metadata is now so: `update`.
    Update { user: &'a str, session: &'a str, at: Timestamp, meta: Option<&'a str> },
    /// A session ended: `remove` or `leave`.
    Offline { user: &'a str, session: &'a str, at: Timestamp, reason: Reason },
    /// Every lease is at least so late. No event.
    Grace { until: Timestamp },
    /// A text was sent: `message`.
    Message { user: &'a str, session: &'a str, at: Timestamp, text: &'a str },
    /// The space ended: `close`.
    Close { at: Timestamp, until: Timestamp },
    /// Only the newest `keep` events are kept. No event.
    Trim { keep: u64 },
    /// Restores a session. `since`: when its user came online.
    Session {
        user: &'a str,
        session: &'a str,
        lease: Timestamp,
        joined_at: Timestamp,
        since: Timestamp,
        lingering: bool,
        meta: Option<&'a str>,
    },
    /// Restores a kept event, oldest first; the last has the seq that `Begin` named.
    Event { at: Timestamp, text: &'a str },
    /// The next event begins a new line of history with this epoch; the seq goes on. The effect of
    /// that event follows.
    NewLine { epoch: u64 },
    /// Restores a past line of history, oldest first: events `first` to `last` have this epoch.
    PastLine { epoch: u64, first: u64, last: u64 },
    /// Restores that a new line is due: whoever decides begins one with the next event.
    LineDue,
    /// A session of an owner began: `join` or `add`. `lease` is the owner's.
    OwnedOnline {
        user: &'a str,
        session: &'a str,
        owner: &'a str,
        lease: Timestamp,
        at: Timestamp,
        meta: Option<&'a str>,
    },
    /// A session belongs to an owner from now on, whose lease is this. No event.
    Own { user: &'a str, session: &'a str, owner: &'a str, lease: Timestamp },
    /// Restores an owner that has sessions here. `offline`: it was ended with a linger.
    Owner { name: &'a str, lease: Timestamp, offline: bool },
    /// Restores a session of an owner; `owner` is the number of its [`Effect::Owner`], from 0.
    OwnedSession {
        user: &'a str,
        session: &'a str,
        owner: u32,
        joined_at: Timestamp,
        since: Timestamp,
        meta: Option<&'a str>,
    },
    /// Which users are remembered after the leaves of this batch: for how long (ms), and how many. If a batch does not
    /// say so, nobody is.
    KeepSeen { ttl: u64, users: u64 },
    /// The users who left first are forgotten, so many of them. No event.
    Forget { users: u64 },
    /// Restores a user who left and is not back; who left first comes first.
    Seen { user: &'a str, at: Timestamp, reason: Reason },
    /// A session's lease is now so, and later renewals are not told up to the bound. The session does not linger.
    /// Without `session` it is the user's only one. No event.
    Bound { user: &'a str, session: Option<&'a str>, until: LeaseBound },
    /// Restores a session of which others were told a bound, as `Session` does.
    BoundSession {
        user: &'a str,
        session: &'a str,
        until: LeaseBound,
        joined_at: Timestamp,
        since: Timestamp,
        lingering: bool,
        meta: Option<&'a str>,
    },
}

impl Effect<'_> {
    /// The same without the lease, which may be another on other nodes.
    #[must_use]
    pub fn without_lease(self) -> Self {
        match self {
            Effect::Session { user, session, joined_at, since, lingering, meta, .. }
            | Effect::BoundSession { user, session, joined_at, since, lingering, meta, .. } => {
                Effect::Session { user, session, lease: 0, joined_at, since, lingering, meta }
            }
            other => other,
        }
    }

    /// The same with the bound as the lease, where it tells one.
    #[must_use]
    pub fn widened(self) -> Self {
        match self {
            Effect::Bound { user, session, until } => {
                Effect::Bound { user, session, until: until.widened() }
            }
            Effect::BoundSession { user, session, until, joined_at, since, lingering, meta } => {
                let until = until.widened();
                Effect::BoundSession { user, session, until, joined_at, since, lingering, meta }
            }
            other => other,
        }
    }

    /// Whether applying it makes an event, which the history settings concern.
    pub fn makes_event(&self) -> bool {
        use Effect::*;
        matches!(
            self,
            Online { .. }
                | OwnedOnline { .. }
                | Update { .. }
                | Offline { .. }
                | Message { .. }
                | Close { .. }
        )
    }
}

/// Where a space reports what it does, in order.
pub trait Sink {
    /// Something was done that others must do too.
    fn effect(&mut self, effect: &Effect<'_>);
    /// An event happened; the text is what subscribers get.
    fn event(&mut self, event: &Event<'_>, text: &[u8]);
    /// Everybody is gone at once. Freeing a million sessions takes time: who has a way to do that
    /// elsewhere does.
    fn discard(&mut self, gone: Gone) {
        drop(gone);
    }
    /// The owner of that name, which an effect refers to, in the registry to which the owners of the space belong. If
    /// there is none, the space has owners of its own.
    fn owner(&mut self, _name: &str, _lease: OwnerLease) -> Option<Arc<Owner>> {
        None
    }
    /// A session's lease was renewed until then. If others must know, an effect says so.
    fn renewed(&mut self, _until: Timestamp) {}
    /// A lease that ended so many ms ago is noticed now.
    fn lapsed(&mut self, _ms_ago: u64) {}
    /// Asked before each event. Returns the epoch of the new line that the event must begin, if
    /// one is due, and only once. Only a sink of the server that decides returns one.
    fn take_new_line(&mut self) -> Option<u64> {
        None
    }
}

/// Reports to nobody.
pub struct NullSink;

impl Sink for NullSink {
    fn effect(&mut self, _: &Effect<'_>) {}
    fn event(&mut self, _: &Event<'_>, _: &[u8]) {}
}

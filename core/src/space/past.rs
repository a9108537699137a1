//! What a space keeps of the past: its last events, and the users who have left. Most spaces keep neither most of the
//! time, so it is one allocation that is absent then.

use super::history::History;
use super::seen::{SeenLimits, SeenUsers};
use super::{Effect, Reason, Retention, Sink, Space, Timestamp};

#[derive(Clone, Default)]
pub struct Past {
    pub history: History,
    /// Absent while it is empty.
    pub seen: Option<Box<SeenUsers>>,
}

impl Past {
    fn heap_bytes(&self) -> usize {
        let seen = self.seen.as_ref();
        let seen = seen.map_or(0, |seen| size_of::<SeenUsers>() + seen.heap_bytes());
        self.history.heap_bytes() + seen
    }
}

/// What is known of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Live sessions; 0 is offline.
    pub sessions: usize,
    /// Now for a user who is online, else the time of the leave.
    pub at: Timestamp,
    /// Of the leave; none while the user is online.
    pub reason: Option<Reason>,
}

impl Space {
    pub(super) fn past_mut(&mut self) -> &mut Past {
        self.past.get_or_insert_default()
    }

    /// The history, if anything of the past is kept.
    pub(super) fn history_mut(&mut self) -> Option<&mut History> {
        self.past.as_mut().map(|past| &mut past.history)
    }

    pub(super) fn remembered(&self) -> Option<&SeenUsers> {
        self.past.as_ref()?.seen.as_deref()
    }

    /// Frees the history if it has no events by now, with its past lines: they are of no use then.
    pub(super) fn free_empty_history(&mut self) {
        if let Some(past) = self.past.as_mut().filter(|past| past.history.is_empty()) {
            past.history = History::default();
        }
        self.free_empty_past();
    }

    /// Frees what is empty by now. A history without events has a past line while an event is made.
    fn free_empty_past(&mut self) {
        let Some(past) = &mut self.past else { return };
        past.seen.take_if(|seen| seen.is_empty());
        if past.seen.is_none() && past.history.is_empty() && past.history.lines().is_empty() {
            self.past = None;
        }
    }

    /// Bytes on the heap of what is kept of the past.
    pub(super) fn past_bytes(&self) -> usize {
        self.past.as_ref().map_or(0, |past| size_of::<Past>() + past.heap_bytes())
    }

    /// How many users who left are stored, those included whose time is over.
    pub fn stored_seen(&self) -> usize {
        self.remembered().map_or(0, SeenUsers::len)
    }

    /// What is known of a user at `now`: who is online, and who has left and is remembered. A user whose leases have
    /// all expired has left, whether or not the sweep has been there.
    pub fn seen(&self, user: &str, now: Timestamp, retention: Retention) -> Option<Seen> {
        if let Some(user) = self.user(user, now) {
            return Some(Seen { sessions: user.live_sessions(), at: now, reason: None });
        }
        let limits = retention.seen;
        let (at, reason) = match self.members.last_end(user.as_bytes()) {
            Some(end) => end,
            None => self.remembered()?.get(user.as_bytes())?,
        };
        let is_over = limits.is_over(at, now);
        (!is_over).then_some(Seen { sessions: 0, at, reason: Some(reason) })
    }

    /// A user leaves.
    pub(super) fn remember(
        &mut self,
        user: &[u8],
        at: Timestamp,
        reason: Reason,
        limits: SeenLimits,
    ) {
        if limits.keeps_none() {
            return;
        }
        let seen = self.past_mut().seen.get_or_insert_default();
        seen.insert(user, at, reason);
        seen.remove_surplus(limits);
        self.free_empty_past();
    }

    /// A user is back.
    pub(super) fn forget_back(&mut self, user: &[u8]) {
        let seen = self.past.as_mut().and_then(|past| past.seen.as_mut());
        if seen.is_some_and(|seen| seen.remove(user)) {
            self.free_empty_past();
        }
    }

    /// Forgets the users who left first.
    pub(super) fn forget_first<S: Sink>(&mut self, users: usize, sink: &mut S) {
        sink.effect(&Effect::Forget { users: users as u64 });
        let seen = self.past.as_mut().and_then(|past| past.seen.as_mut());
        if let Some(seen) = seen {
            (0..users.min(seen.len())).for_each(|_| seen.remove_first());
        }
        self.free_empty_past();
    }
}

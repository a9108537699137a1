//! What the sweep does to a space.

use super::{ChangeCtx, OutOfTime, Sink, Space, SweepProgress, Timestamp};

/// A sweep asks whether there is time left after so many events that it removed from a history.
const TRIMMED_AT_ONCE: usize = 64;
/// The same after so many users whom it forgot.
const FORGOTTEN_AT_ONCE: usize = 64;

impl Space {
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
        if !self.sweep_seen(at, sink, may_go_on) {
            return SweepProgress { ended, more: true };
        }
        SweepProgress { ended, more: !self.tidy(at.now, may_go_on) }
    }

    /// Frees what the history no longer keeps. Returns whether there was time for all of it.
    pub(super) fn sweep_history<S: Sink>(
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
            if let Some(history) = self.history_mut() {
                history.truncate_to(length);
            }
            if length > keep && !may_go_on() {
                break;
            }
        }
        self.trim(length, sink);
        length == keep
    }

    /// Forgets the users who are not remembered any longer. Returns whether there was time for all of them.
    pub(super) fn sweep_seen<S: Sink>(
        &mut self,
        at: ChangeCtx,
        sink: &mut S,
        may_go_on: &mut impl FnMut() -> bool,
    ) -> bool {
        let limits = at.limits.retention.seen;
        // A spent space is deleted as a whole, in the background.
        if self.is_closed() || self.is_spent(at.now, at.limits.retention) {
            return true;
        }
        loop {
            let Some(seen) = self.remembered() else { return true };
            if !seen.has_excess(at.now, limits) {
                return true;
            }
            let users = seen.excess(at.now, limits, FORGOTTEN_AT_ONCE);
            self.forget_first(users, sink);
            if !may_go_on() {
                return self.remembered().is_none_or(|seen| !seen.has_excess(at.now, limits));
            }
        }
    }

    /// Sorts the leases that end soon, for as long as `may_go_on`: the part of a sweep that ends nothing.
    /// Returns whether there was time for all of it.
    pub fn tidy(&mut self, now: Timestamp, may_go_on: &mut impl FnMut() -> bool) -> bool {
        self.members.look_ahead(now, may_go_on).is_ok()
    }
}

//! Changes of a space are handed on: to replicas and the AOF, to subscribers, to the expiry queue, INFO and WATCH.

use super::datatype;
use super::key::{SpaceWriteGuard, Value};
use crate::server::blocking::space_waits;
use crate::server::expiry::expiry_queue;
use crate::server::expiry::owners;
use crate::server::ffi::clock::server_time;
use crate::server::propagate::change_set::{self, ChangeSet};
use presence_core::collections::hash_of;
use presence_core::space::Sink;
use std::ptr::NonNull;

impl<'a> SpaceWriteGuard<'a> {
    /// The change set for what is decided now. It begins with what others must know before that.
    pub fn change_set(&mut self) -> ChangeSet<'a> {
        let (now, settings) = (self.clock.now(), self.settings());
        let held_for = self.held().held_for(now);
        let mut change_set = ChangeSet::new(self.ctx, self.db, self.name, &settings, held_for);
        if let Value::New(held) = &self.value {
            held.space.announce(&mut change_set);
        }
        let until = self.held().seen.untold();
        if until > 0 {
            change_set.effect(&presence_core::space::Effect::Grace { until });
        }
        change_set.end_preface();
        if settings.digest_interval_ms() > 0 {
            let space = self.space();
            let before = (space.last_id(), space.stored());
            change_set.gather_net_changes(settings.digest_max_changes(), before);
        }
        if self.held().is_line_due() {
            change_set.set_new_line(self.epoch_of_new_line());
        }
        change_set
    }

    /// The change set for what was decided elsewhere or earlier.
    pub fn replay(&self) -> ChangeSet<'a> {
        ChangeSet::replay(self.ctx, self.db, self.name.bytes())
    }

    /// The epoch of a new line of history.
    pub(super) fn epoch_of_new_line(&mut self) -> u64 {
        let (db, name, now) = (self.db, self.name, self.clock.now());
        let epoch = expiry_queue::new_epoch(db, name.bytes(), now);
        let (last, _) = self.space().last_id();
        if epoch > last {
            return epoch;
        }
        // The last one is ahead of the clock. Two servers may go on from it, one after the other,
        // and what the first one published may be lost: the second must not use the same epoch.
        const SPREAD: u64 = 256;
        let epoch = last.saturating_add(1 + hash_of(&server_time().to_le_bytes()) % SPREAD);
        expiry_queue::epoch_given(epoch);
        epoch
    }

    /// Whoever decides says that a new line of history is due here.
    pub fn set_line_due(&mut self) {
        self.held().set_line_due();
    }

    /// Hands on what has happened: makes the space a key where it was none; tells replicas and
    /// the AOF, then subscribers; sees to the expiry queue, INFO, WATCH. A key that has nothing left to
    /// keep goes.
    pub fn commit(mut self, change_set: &mut ChangeSet<'_>) {
        if self.propagate(change_set) && !change_set.is_replaying() {
            self.delete_if_spent();
        }
    }

    /// Everything of [`Self::commit`] but the deletion: for who goes on changing the space.
    /// Returns whether more than leases has changed.
    pub fn propagate(&mut self, change_set: &mut ChangeSet<'_>) -> bool {
        if change_set.is_empty() && !change_set.is_replaying() {
            return false;
        }
        self.store();
        self.stay_within_memory(change_set);
        if change_set.is_replaying() {
            self.ctx.replicate_verbatim();
        } else if change_set.has_effects() {
            self.held().seen.tell();
            self.ctx.replicate(change_set::APPLY, self.name, change_set.batch());
        }
        change_set.publish();
        self.take_in_net_changes(change_set);
        let changed = change_set.has_events() || change_set.is_replaying();
        let (db, name) = (self.db, self.name);
        owners::changed(db, name.bytes(), self.space());
        self.held().count();
        if change_set.has_events() {
            // It has begun its new line, if one was due, or whoever decides has not asked for it.
            self.held().seen.set_line_due(false);
            self.ctx.signal_modified(name);
            space_waits::wake(db, name.bytes());
        }
        if !change_set.is_renewal() || self.held().may_be_due_before(change_set.earliest_lease()) {
            self.see_to_expiry_queue();
        }
        changed
    }

    /// While the server is out of memory, a space takes no more of it than before, unless the call
    /// asked and was let in. What ends sessions or changes their metadata makes events; older ones
    /// go for them.
    pub(super) fn stay_within_memory(&mut self, change_set: &mut ChangeSet<'_>) {
        if change_set.is_replaying() || change_set.may_grow() || !change_set.has_events() {
            return;
        }
        let before = self.held().counted.bytes();
        if self.held().bytes() > before && !self.ctx.has_memory(self.name) {
            let without_space = self.held().bytes() - self.space().heap_bytes();
            self.space().trim_to_bytes(before.saturating_sub(without_space), change_set);
        }
    }

    /// Makes a new space the value of its key.
    pub(super) fn store(&mut self) {
        if !self.is_new() {
            return;
        }
        let placeholder = Value::InKeyspace(NonNull::dangling());
        if let Value::New(held) = std::mem::replace(&mut self.value, placeholder) {
            let held = NonNull::from(Box::leak(held));
            // SAFETY: the key is open for writing and empty; the server owns the value from now
            // on and frees it with `datatype::free`.
            unsafe {
                api!(RedisModule_ModuleTypeSetValue(
                    self.key.0.as_ptr(),
                    datatype::raw_type(),
                    held.as_ptr().cast()
                ))
            };
            self.value = Value::InKeyspace(held);
        }
    }

    /// Deletes the key where nobody is there and nothing is kept.
    pub fn delete_if_spent(mut self) {
        let (now, settings) = (self.clock.now(), self.settings());
        if !self.is_new() && self.space().is_spent(now, settings.retention()) {
            self.publish_digests(true);
            self.delete();
        }
    }

    /// Deletes the key, here and on replicas, and says so as UNLINK does.
    pub fn delete(self) {
        let (ctx, name) = (self.ctx, self.name);
        // SAFETY: the key is open for writing; its value is not used any more.
        unsafe { api!(RedisModule_UnlinkKey(self.key.0.as_ptr())) };
        drop(self);
        ctx.replicate_deletion(name);
    }

    /// The moment from which the timer may find something to do here.
    pub fn next_due(&mut self) -> u64 {
        let name = self.name;
        self.held().next_due(name.bytes())
    }

    /// Files the space in the expiry queue under the moment at which it is next due, or at `due`.
    pub fn reschedule(&mut self, due: Option<u64>) {
        let (db, name) = (self.db, self.name);
        let held = self.held();
        // Whoever works on a space by the timer may have changed its size without an effect.
        held.count();
        let due = due.unwrap_or_else(|| held.next_due(name.bytes()));
        held.schedule_at(db, name.bytes(), due);
    }

    /// Whether replicas have still to be told of a grace.
    pub fn owes_grace(&mut self) -> bool {
        self.held().seen.untold() > 0
    }
}

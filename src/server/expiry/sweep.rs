//! The timer that ends what has lapsed.
//!
//! Armed for the moment at which the first space of the expiry queue is due. A slice of work takes the
//! spaces in the order in which they are due, each by the internal command `PRESENCE._SWEEP`, and
//! ends when `sweep-budget-us` are over; if there is more, the next slice comes after the server
//! has served its clients. A replica ends nothing: it only keeps the orders by lease tidy.

use crate::server::blocking::blocked_clients;
use crate::server::expiry::expiry_queue;
use crate::server::expiry::owner_changes;
use crate::server::expiry::owners;
use crate::server::ffi::args::Arg;
use crate::server::ffi::clock::Clock;
use crate::server::ffi::context::{Called, Context, OwnedString};
use crate::server::keyspace::key::SpaceWriteGuard;
use crate::server::keyspace::key_moves;
use crate::server::module::config;
use crate::server::module::stats;
use presence_core::space::{ChangeCtx, SweepProgress};
use redis_module::raw;
use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::time::{Duration, Instant};

/// The internal command that sweeps one space. By way of a command, the server checks that the
/// key's slot is its own, and takes what is replicated as one unit.
const SWEEP: &CStr = c"PRESENCE._SWEEP";

/// At most so many sessions end before their events are published and the clock is looked at.
const LARGEST_GROUP: usize = 64;

/// While the server is paused, it is asked again after so many ms.
const RETRY_MS: u64 = 10;
/// A key that cannot be got at is asked for again after so many ms.
const ASK_AGAIN_MS: u64 = 200;
/// Of the keys that were refused, so many are asked for again in [`REFUSED_STEP_MS`]: keys of slots that
/// are not ours for long must not take the server's time, however many they are.
const REFUSED_PER_STEP: u32 = 40;
const REFUSED_STEP_MS: u64 = 10;
/// None is put off for longer than this (ms).
const LONGEST_REFUSED_MS: u64 = 60_000;
/// While all spaces are looked at, a slice of that is done so often (ms).
const LOOK_MS: u64 = 1;
/// A replica tidies up so often, at most (ms).
const TIDY_MS: u64 = 100;
/// A space with more leases to sort than one slice can is gone on with after so many ms: it has to be done
/// before the leases end.
const SORT_ON_MS: u64 = 1;
/// The timer runs at least so often while anything is filed (ms): the clock may have been set.
const LONGEST_MS: u64 = 10_000;

thread_local! {
    /// For when the timer is armed, and its id.
    static ARMED: Cell<Option<(u64, raw::RedisModuleTimerID)>> = const { Cell::new(None) };
    /// The end of the slice of work that is going on.
    static SLICE_ENDS: Cell<Option<Instant>> = const { Cell::new(None) };
    /// So many it is at present: what an event costs depends on who listens.
    static GROUP: Cell<usize> = const { Cell::new(1) };
    /// While the cluster is down, no key can be got at until then.
    static DOWN_UNTIL: Cell<u64> = const { Cell::new(0) };
    /// For when the key that was refused last is filed, and how many are filed for that moment.
    static REFUSED: Cell<(u64, u32)> = const { Cell::new((0, 0)) };
    /// Set when a slice that sorts leases had no time for all of a space.
    static UNSORTED: Cell<bool> = const { Cell::new(false) };
    /// Set while the timer's callback runs, which arms the timer itself when it is done.
    static IN_TIMER: Cell<bool> = const { Cell::new(false) };
}

/// Whether the timer's callback runs.
pub fn is_in_timer() -> bool {
    IN_TIMER.get()
}

/// Sees to it that the timer runs when the first space is due.
pub fn arm(ctx: Context, now: u64) {
    if IN_TIMER.get() {
        return;
    }
    let look = expiry_queue::has_looks().then_some(now);
    let owner = owners::next_due().filter(|_| ctx.is_primary());
    if let Some(due) = expiry_queue::next_due().into_iter().chain(look).chain(owner).min() {
        arm_for(ctx, now, due.max(rest_until(now)));
    }
}

/// Sees to it that the timer runs soon.
pub fn arm_now(ctx: Context) {
    if !IN_TIMER.get() {
        let now = ctx.now();
        arm_for(ctx, now, now);
    }
}

fn arm_for(ctx: Context, now: u64, due: u64) {
    let due = due.min(now + LONGEST_MS);
    if let Some((armed_for, id)) = ARMED.get() {
        // One that runs a little too early does no harm.
        if armed_for <= due {
            return;
        }
        // SAFETY: the id is of a timer that has not run: `tick` clears it first of all.
        unsafe { api!(RedisModule_StopTimer(ctx.raw(), id, std::ptr::null_mut())) };
    }
    // `now` may be the moment at which a long script began.
    let wait = due.saturating_sub(ctx.now()) as i64;
    // SAFETY: the callback is a plain function that lives as long as the module.
    let id =
        unsafe { api!(RedisModule_CreateTimer(ctx.raw(), wait, Some(tick), std::ptr::null_mut())) };
    ARMED.set(Some((due, id)));
}

unsafe extern "C" fn tick(ctx: *mut raw::RedisModuleCtx, _: *mut c_void) {
    ARMED.set(None);
    // SAFETY: the server passes the context of this timer.
    let ctx = unsafe { Context::from_raw(ctx) };
    blocked_clients::rest(ctx);
    IN_TIMER.set(true);
    let more_to_find = key_moves::settle(ctx);
    let next = if !ctx.is_primary() {
        // They are due until the primary has ended the sessions, or until this server is promoted.
        schedule_ended(ctx.now(), half_budget());
        slice(ctx, tidy_first).map(|due| next_tidy(ctx.now(), due))
    } else if ctx.is_paused() {
        slice(ctx, tidy_first).map(|_| next_tidy(ctx.now(), 0))
    } else if rest_until(ctx.now()) > 0 {
        expiry_queue::next_due()
    } else {
        end_owners(ctx);
        let next = slice(ctx, sweep_first);
        next.into_iter().chain(owners::next_due()).min()
    };
    IN_TIMER.set(false);
    let next = next.into_iter().chain(more_to_find.then(|| ctx.now())).min();
    if let Some(due) = next {
        let now = ctx.now();
        arm_for(ctx, now, due.max(rest_until(now)));
    }
}

/// Ends the owners whose leases are over. The spaces in which they had sessions are due: as many as half of the
/// budget allows, and the others in the slices after this one.
fn end_owners(ctx: Context) {
    let ends = half_budget();
    let now = ctx.now();
    while Instant::now() < ends
        && let Some((db, owner)) = owners::end_next_expired(now)
    {
        if ctx.select_db(db) {
            owner_changes::ended(ctx, &owner);
        }
    }
    schedule_ended(now, ends);
}

/// When half of the budget of a slice is over that begins now.
fn half_budget() -> Instant {
    Instant::now() + Duration::from_micros(config::sweep_budget_us() / 2)
}

/// The spaces that have sessions of owners that have ended are due.
fn schedule_ended(now: u64, ends: Instant) {
    while Instant::now() < ends
        && let Some((db, name)) = owners::next_space()
    {
        expiry_queue::schedule_sooner(db, &name, now);
    }
}

/// When the next slice of a replica or of a paused primary comes, where something is due at `due`.
fn next_tidy(now: u64, due: u64) -> u64 {
    if UNSORTED.take() { now + SORT_ON_MS } else { due.max(now + RETRY_MS) }
}

/// Until when nothing is asked for, as the cluster was down a short while ago; else 0.
fn rest_until(now: u64) -> u64 {
    let until = DOWN_UNTIL.get();
    // The clock can be set back.
    if (now + 1..=now + ASK_AGAIN_MS).contains(&until) { until } else { 0 }
}

/// When a key that was refused now is asked for again.
fn ask_again_at(now: u64) -> u64 {
    let soonest = now + ASK_AGAIN_MS;
    let (last, filed) = REFUSED.get();
    let next = if !(soonest..soonest + LONGEST_REFUSED_MS).contains(&last) {
        (soonest, 1)
    } else if filed < REFUSED_PER_STEP {
        (last, filed + 1)
    } else {
        (last + REFUSED_STEP_MS, 1)
    };
    REFUSED.set(next);
    next.0
}

/// Works through what is due for as long as the budget lasts, and then, for at most half of it,
/// through what is to be looked at. Returns when there is more to do.
fn slice(ctx: Context, work_on: fn(Context, i32, Arg<'_>, u64)) -> Option<u64> {
    let began = Instant::now();
    let budget = Duration::from_micros(config::sweep_budget_us());
    SLICE_ENDS.set(Some(began + budget));
    let mut worked = false;
    let mut work_through = |next: &dyn Fn() -> Option<(u64, i32, Vec<u8>)>, ends: Instant| {
        while Instant::now() < ends && rest_until(ctx.now()) == 0 {
            let Some((due, db, name)) = next() else { break };
            worked = true;
            let key = OwnedString::new(&name);
            if ctx.select_db(db) {
                work_on(ctx, db, key.as_arg(), due);
            } else {
                expiry_queue::forget(db, &name);
            }
        }
    };
    work_through(&|| expiry_queue::first_due(ctx.now()), began + budget);
    if expiry_queue::has_looks() {
        work_through(&expiry_queue::next_look, began + budget / 2);
    }
    SLICE_ENDS.set(None);
    if worked {
        stats::SWEEPS.add(1);
        stats::LONGEST_SWEEP_US.raise_to(began.elapsed().as_micros() as u64);
    }
    let next_look = expiry_queue::has_looks().then(|| ctx.now() + LOOK_MS);
    expiry_queue::next_due().into_iter().chain(next_look).min()
}

fn sweep_first(ctx: Context, db: i32, key: Arg<'_>, due: u64) {
    let called = ctx.call_on_key(SWEEP, key);
    if called == Called::ClusterDown {
        // It stays due, and so do all others: one of them is asked for from time to time.
        let now = ctx.now();
        DOWN_UNTIL.set(now + ASK_AGAIN_MS);
        expiry_queue::schedule(db, key.bytes(), due.min(now));
    } else if called == Called::Refused {
        // Another type is at the key, or the key's slot is not ours at present.
        match SpaceWriteGuard::open_untouched(ctx, key, &Clock::default()) {
            Ok(Some(_)) => expiry_queue::schedule(db, key.bytes(), ask_again_at(ctx.now())),
            _ => expiry_queue::forget(db, key.bytes()),
        }
    } else if due <= ctx.now()
        && expiry_queue::next_due() == Some(due)
        && expiry_queue::first_due(due).is_some_and(|(_, at, name)| at == db && name == key.bytes())
    {
        // The command did not see this key, or left it as it was: never twice for nothing.
        expiry_queue::schedule(db, key.bytes(), ctx.now() + 1);
    }
}

/// What a replica does, and a primary that is paused: it sorts the leases that end soon, so that reads
/// need not. What has expired waits for the primary, or for the end of the pause.
fn tidy_first(ctx: Context, db: i32, key: Arg<'_>, _due: u64) {
    let now = ctx.now();
    match SpaceWriteGuard::open_untouched(ctx, key, &Clock::at(now)) {
        Ok(Some(mut space)) => {
            let due = if space.space().tidy(now, &mut time_left) {
                space.next_due().max(now + TIDY_MS)
            } else {
                UNSORTED.set(true);
                now
            };
            space.reschedule(Some(due));
        }
        // A key that has expired is hidden, but the primary may yet say otherwise. One that is
        // deleted is taken off the expiry queue by that.
        _ => expiry_queue::schedule(db, key.bytes(), now + ASK_AGAIN_MS),
    }
}

/// Whether the slice goes on.
fn time_left() -> bool {
    SLICE_ENDS.get().is_none_or(|ends| Instant::now() < ends)
}

/// Sweeps one space: what `PRESENCE._SWEEP` does. Returns how many sessions ended.
pub fn sweep_space(
    ctx: Context,
    name: Arg<'_>,
    now: u64,
) -> Result<usize, crate::server::ffi::error::Error> {
    if ctx.is_replaying() || !ctx.is_primary() {
        return Err(crate::server::ffi::error::Error::new("only a primary sweeps"));
    }
    let clock = Clock::at(now);
    let Some(mut key) = SpaceWriteGuard::open_untouched(ctx, name, &clock)? else {
        expiry_queue::forget(ctx.db(), name.bytes());
        return Ok(0);
    };
    let is_own_slice = SLICE_ENDS.get().is_none();
    if is_own_slice {
        let budget = Duration::from_micros(config::sweep_budget_us());
        SLICE_ENDS.set(Some(Instant::now() + budget));
    }
    let mut ended = 0;
    let more = loop {
        let swept = sweep_group(&mut key, name, now);
        ended += swept.ended;
        if !swept.more || !time_left() {
            break swept.more;
        }
    };
    if is_own_slice {
        SLICE_ENDS.set(None);
    }
    key.publish_digests(false);
    // What is left waits behind the spaces that are due already.
    key.reschedule(more.then_some(now));
    arm(ctx, now);
    if !more {
        key.delete_if_spent();
    }
    Ok(ended)
}

/// Ends some sessions and publishes that.
fn sweep_group(key: &mut SpaceWriteGuard<'_>, name: Arg<'_>, now: u64) -> SweepProgress {
    let mut change_set = key.change_set();
    let at = ChangeCtx { space: name.bytes(), now, limits: key.limits() };
    let (began, group, mut steps) = (Instant::now(), GROUP.get(), 0);
    let swept = key.space().sweep(at, &mut change_set, &mut || {
        steps += 1;
        steps < group
    });
    if key.owes_grace() {
        change_set.force();
    }
    key.propagate(&mut change_set);
    // A group is to take a sixteenth to an eighth of the budget.
    let took = began.elapsed().as_micros() as u64;
    let budget = config::sweep_budget_us();
    if took > budget / 8 {
        GROUP.set((group / 2).max(1));
    } else if took < budget / 16 && swept.more {
        GROUP.set((group * 2).min(LARGEST_GROUP));
    }
    swept
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn refused_keys_are_asked_for_a_few_at_a_time() {
        let mut at: BTreeMap<u64, u32> = BTreeMap::new();
        for n in 0..10_000 {
            let now = 1000 + n / 100;
            let again = ask_again_at(now);
            assert!(again >= now + ASK_AGAIN_MS);
            *at.entry(again).or_default() += 1;
        }
        assert_eq!(*at.values().max().unwrap(), REFUSED_PER_STEP);
        assert_eq!(at.len(), 10_000 / REFUSED_PER_STEP as usize);
        // After a rest the first is soon again, also if the clock was set back.
        assert_eq!(ask_again_at(500_000), 500_000 + ASK_AGAIN_MS);
        assert_eq!(ask_again_at(500), 500 + ASK_AGAIN_MS);
    }
}

//! Changes of owners, and how replicas and the AOF learn of them.
//!
//! A change is made in the registry and then replicated as `PRESENCE._OWNERS batch`, which has no key. A
//! renewal within the bound that others were told is not replicated: see `presence_core::owners::effect`.
//! After a load, a promotion and a fork, all owners are told again by a timer: what others were told before
//! may not hold, or a new AOF may lack it.

use crate::server::expiry::bonds;
use crate::server::expiry::owners;
use crate::server::expiry::sweep;
use crate::server::ffi::context::{Context, OwnedString};
use crate::server::module::config;
use presence_core::codec;
use presence_core::owners::effect::{bound, must_tell};
use presence_core::owners::{Owner, OwnerEffect, OwnerLease, Owners};
use presence_core::space::Reason;
use redis_module::raw;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_void};

/// The command by which effects of owners travel.
const OWNERS: &CStr = c"PRESENCE._OWNERS";

/// So many owners are told in one slice of [`tell_all`].
const TOLD_PER_SLICE: usize = 200;
/// The time between two slices (ms).
const SLICE_MS: i64 = 1;
/// While the server is paused, it is asked again after so many ms.
const RETRY_MS: i64 = 10;

/// Tells replicas and the AOF. The selected database is that of the owners.
fn replicate(ctx: Context, effects: &[OwnerEffect<'_>]) {
    let mut batch = Vec::with_capacity(128);
    codec::begin(&mut batch);
    effects.iter().for_each(|effect| codec::encode_owner(&mut batch, effect));
    ctx.replicate_keyless(OWNERS, OwnedString::new(&batch).as_arg());
}

/// Makes an owner of the selected database or renews its lease. Returns how many sessions it owns.
pub fn renew(ctx: Context, name: &str, lease: u64, now: u64) -> usize {
    let db = ctx.db();
    let grace = config::restart_grace_ms();
    let (before, is_new, owner) = owners::with(db, |owners| {
        let before = owners.get(name).map(|owner| (owner.id(), owner.lease()));
        let owner = owners.renew(name, lease, now);
        (before, before.map(|(id, _)| id) != Some(owner.id()), owner)
    });
    let before = before.map(|(_, lease)| lease);
    // Others know of a linger that was asked for, and this takes it back.
    let was_cut = before.is_some_and(|lease| lease.reason == Reason::Offline);
    if is_new {
        bonds::unbind(db, name);
    }
    if is_new || was_cut || must_tell(lease, now, grace, owner.told_bound()) {
        let bound = bound(lease, now, grace);
        owner.set_told(lease, bound);
        let begin = OwnerEffect::Begin { owner: name, lease, bound };
        match before {
            // The owner of that name whose lease was over: others know only a bound of it.
            Some(OwnerLease { until, reason }) if is_new => {
                let end = OwnerEffect::End { owner: name, at: until, reason };
                replicate(ctx, &[end, begin]);
            }
            _ if is_new => replicate(ctx, &[begin]),
            _ => replicate(ctx, &[OwnerEffect::Lease { owner: name, lease, bound }]),
        }
    } else {
        owner.set_told(lease, owner.told_bound());
    }
    sweep::arm(ctx, now);
    owner.sessions()
}

/// Has the lease of an owner of the selected database end at `until` at the latest. Returns how many sessions
/// it owns; 0 if no such owner is live.
pub fn cut(ctx: Context, name: &str, until: u64, reason: Reason, now: u64) -> usize {
    let db = ctx.db();
    let cut = owners::with(db, |owners| {
        let owner = owners.live(name, now)?.clone();
        let before = owner.lease();
        let sessions = owners.cut(name, until, now, reason)?;
        Some((owner, before, sessions))
    });
    let Some((owner, before, sessions)) = cut else { return 0 };
    let lease = owner.lease();
    if owner.is_over() {
        bonds::unbind(db, name);
        replicate(ctx, &[OwnerEffect::End { owner: name, at: lease.until, reason: lease.reason }]);
    } else if lease != before {
        owner.set_told(lease.until, lease.until);
        replicate(
            ctx,
            &[OwnerEffect::Cut { owner: name, lease: lease.until, reason: lease.reason }],
        );
    }
    sweep::arm(ctx, now);
    sessions
}

/// Tells others that an owner of the selected database, whose lease was over, has ended.
pub fn ended(ctx: Context, owner: &Owner) {
    let lease = owner.lease();
    bonds::unbind(ctx.db(), owner.name());
    let end = OwnerEffect::End { owner: owner.name(), at: lease.until, reason: lease.reason };
    replicate(ctx, &[end]);
}

thread_local! {
    /// Where the timer goes on that tells all owners: the database, and behind which owner.
    static TELLING: RefCell<Option<(i32, Option<Box<str>>)>> = const { RefCell::new(None) };
    static IS_ARMED: Cell<bool> = const { Cell::new(false) };
}

/// Tells replicas and the AOF of all owners, soon.
pub fn tell_all(ctx: Context) {
    TELLING.set(Some((i32::MIN, None)));
    arm(ctx, SLICE_MS);
}

fn arm(ctx: Context, wait: i64) {
    if IS_ARMED.replace(true) {
        return;
    }
    // SAFETY: the callback is a plain function that lives as long as the module.
    unsafe { api!(RedisModule_CreateTimer(ctx.raw(), wait, Some(tick), std::ptr::null_mut())) };
}

unsafe extern "C" fn tick(ctx: *mut raw::RedisModuleCtx, _: *mut c_void) {
    IS_ARMED.set(false);
    // SAFETY: the server passes the context of this timer.
    let ctx = unsafe { Context::from_raw(ctx) };
    if !ctx.is_primary() {
        TELLING.set(None);
    } else if ctx.is_paused() {
        arm(ctx, RETRY_MS);
    } else if let Some((db, after)) = TELLING.take() {
        let next = tell_slice(ctx, db, after);
        if next.is_some() {
            TELLING.set(next);
            arm(ctx, SLICE_MS);
        }
    }
}

/// Tells some owners, and returns where to go on.
fn tell_slice(ctx: Context, db: i32, after: Option<Box<str>>) -> Option<(i32, Option<Box<str>>)> {
    let now = ctx.now();
    let at = owners::dbs().into_iter().find(|of| *of >= db)?;
    let after = after.filter(|_| at == db);
    let some: Vec<_> = owners::with(at, |owners| {
        owners.all_after(after.as_deref()).take(TOLD_PER_SLICE).cloned().collect()
    });
    let Some(last) = some.last() else { return Some((at.checked_add(1)?, None)) };
    if ctx.select_db(at) {
        some.iter().filter(|owner| owner.is_live(now)).for_each(|owner| tell(ctx, owner, now));
    }
    Some((at, Some(last.name().into())))
}

fn tell(ctx: Context, owner: &Owner, now: u64) {
    let (name, lease) = (owner.name(), owner.lease());
    let is_cut = lease.reason == Reason::Offline;
    let bound =
        if is_cut { lease.until } else { bound(lease.until, now, config::restart_grace_ms()) };
    owner.set_told(lease.until, bound);
    let live = OwnerEffect::Lease { owner: name, lease: lease.until, bound };
    let cut = OwnerEffect::Cut { owner: name, lease: lease.until, reason: lease.reason };
    let effects = [live, cut];
    replicate(ctx, if is_cut { &effects } else { effects.get(..1).unwrap_or_default() });
}

/// Does what the primary or the AOF says of owners of a database.
pub fn apply(db: i32, batch: &[u8], now: u64) -> Result<(), codec::Error> {
    owners::with(db, |owners: &mut Owners| {
        for effect in codec::decode_owners(batch) {
            owners.apply(&effect?, now);
        }
        Ok(())
    })
}

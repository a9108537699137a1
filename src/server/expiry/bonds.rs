//! Bonds of owners to connections of this server: see `presence_core::owners::Bonds`.
//!
//! The server tells that a connection has closed at moments at which nothing may be done: inside scripts and
//! transactions, while it loads, while it is paused. So the event only notes the connection, and a timer cuts
//! the leases a moment later. A command on an owner does so before anything else, so that a renewal that comes
//! after the end of a connection counts.

use crate::server::expiry::owner_changes;
use crate::server::ffi::context::Context;
use presence_core::owners::{Bonds, Broken};
use presence_core::space::Reason;
use redis_module::raw;
use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

/// While the server is paused, it is asked again after so many ms.
const RETRY_MS: i64 = 10;
/// The longest that the timer works before the server serves its clients (a connection can have many owners).
const SLICE: Duration = Duration::from_micros(500);

thread_local! {
    static BONDS: RefCell<Bonds> = RefCell::default();
    static IS_ARMED: Cell<bool> = const { Cell::new(false) };
}

/// Listens to the ends of connections. Called while the module loads.
pub fn watch(ctx: Context) -> bool {
    let event = raw::RedisModuleEvent { id: raw::REDISMODULE_EVENT_CLIENT_CHANGE, dataver: 1 };
    // SAFETY: called while the module loads; the callback is a plain function.
    unsafe {
        api!(RedisModule_SubscribeToServerEvent(ctx.raw(), event, Some(on_client_change)))
            == raw::REDISMODULE_OK as c_int
    }
}

/// Ties an owner to a connection.
pub fn bind(connection: u64, db: i32, owner: &str, linger: u64) {
    BONDS.with_borrow_mut(|bonds| bonds.bind(connection, db, owner, linger));
}

pub fn unbind(db: i32, owner: &str) {
    BONDS.with_borrow_mut(|bonds| bonds.unbind(db, owner));
}

pub fn is_bound(db: i32, owner: &str) -> bool {
    BONDS.with_borrow(|bonds| bonds.is_bound(db, owner))
}

/// The bonds of a database are over, or all of them.
pub fn forget(db: Option<i32>) {
    BONDS.with_borrow_mut(|bonds| bonds.forget(db));
}

pub fn swapped(a: i32, b: i32) {
    BONDS.with_borrow_mut(|bonds| bonds.swap_dbs(a, b));
}

unsafe extern "C" fn on_client_change(
    ctx: *mut raw::RedisModuleCtx,
    _: raw::RedisModuleEvent,
    subevent: u64,
    data: *mut c_void,
) {
    if subevent != raw::REDISMODULE_SUBEVENT_CLIENT_CHANGE_DISCONNECTED || data.is_null() {
        return;
    }
    // SAFETY: the data of this event is a `RedisModuleClientInfo`, and it is not null.
    let id = unsafe { &*data.cast::<raw::RedisModuleClientInfo>() }.id;
    if BONDS.with_borrow_mut(|bonds| bonds.closed(id)) {
        // SAFETY: the server passes the context of this event.
        arm(unsafe { Context::from_raw(ctx) }, 0);
    }
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
        // Nothing ends here.
        forget(None);
        return;
    }
    if ctx.is_paused() {
        arm(ctx, RETRY_MS);
        return;
    }
    let ends = Instant::now() + SLICE;
    while let Some(broken) = BONDS.with_borrow_mut(Bonds::take_broken) {
        if ctx.select_db(broken.db) {
            end(ctx, &broken, ctx.now());
        }
        if Instant::now() >= ends {
            arm(ctx, 1);
            return;
        }
    }
}

fn end(ctx: Context, broken: &Broken, now: u64) {
    let until = now.saturating_add(broken.linger);
    owner_changes::cut(ctx, &broken.owner, until, Reason::Timeout, now);
}

/// If the connection of this owner has closed, its lease is cut now. For commands on an owner of the selected
/// database.
pub fn settle(ctx: Context, owner: &str, now: u64) {
    let db = ctx.db();
    if let Some(broken) = BONDS.with_borrow_mut(|bonds| bonds.take_broken_of(db, owner)) {
        end(ctx, &broken, now);
    }
}

/// An estimate of the bytes that the bonds take.
pub fn bytes() -> usize {
    BONDS.with_borrow(Bonds::heap_bytes)
}

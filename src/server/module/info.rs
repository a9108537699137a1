//! The module's section of `INFO`.

use crate::server::expiry::bonds;
use crate::server::expiry::expiry_queue;
use crate::server::expiry::owners;
use crate::server::module::stats;
use crate::server::propagate::feed;
use redis_module::raw;
use std::ffi::{CStr, c_int};

/// The backlog is counted up to this, so that INFO costs the same whatever is due.
const MOST_BACKLOG: usize = 10_000;

pub fn register(ctx: crate::server::ffi::context::Context) -> bool {
    // SAFETY: called while the module loads. Replaces the crate's own callback, which would add a
    // backtrace to crash reports.
    unsafe {
        api!(RedisModule_RegisterInfoFunc(ctx.raw(), Some(info))) == raw::REDISMODULE_OK as c_int
    }
}

unsafe extern "C" fn info(ctx: *mut raw::RedisModuleInfoCtx, for_crash_report: c_int) {
    if for_crash_report != 0 {
        // Nothing that takes a borrow or allocates while the server dies.
        return;
    }
    // The server leaves a section out that was not asked for, and then takes no fields.
    // SAFETY: the context is that of this call; without a name the section is named after the module.
    let added = unsafe { api!(RedisModule_InfoAddSection(ctx, std::ptr::null())) };
    if added != raw::REDISMODULE_OK as c_int {
        return;
    }
    let add = |name: &CStr, value: u64| {
        // SAFETY: the context is that of this call, the name ends with NUL.
        unsafe { api!(RedisModule_InfoAddFieldULongLong(ctx, name.as_ptr(), value)) };
    };
    let now = crate::server::ffi::clock::server_time();
    let (spaces, users, sessions, bytes) = stats::totals();
    let (_, agenda_bytes) = expiry_queue::size();
    let (owners, owner_bytes) = owners::size();
    let gauge = |value: i64| u64::try_from(value).unwrap_or(0);
    add(c"spaces", gauge(spaces));
    add(c"users", gauge(users));
    add(c"sessions", gauge(sessions));
    add(c"owners", owners as u64);
    add(c"joins", stats::JOINS.get());
    add(c"leaves", stats::LEAVES.get());
    add(c"timeouts", stats::TIMEOUTS.get());
    add(c"renewals", stats::RENEWALS.get());
    add(c"events_published", stats::EVENTS.get());
    add(c"messages", stats::MESSAGES.get());
    add(c"sweeps", stats::SWEEPS.get());
    add(c"sweep_backlog", expiry_queue::backlog(now, MOST_BACKLOG) as u64);
    add(c"queue_repairs", stats::QUEUE_REPAIRS.get());
    add(c"sweep_lag_last_ms", stats::LAGS.last.get());
    add(c"sweep_lag_max_ms", stats::LAGS.max.get());
    add(c"sweep_lag_p99_ms", stats::LAGS.p99());
    add(c"sweep_longest_us", stats::LONGEST_SWEEP_US.get());
    add(c"bytes_used", gauge(bytes) + (agenda_bytes + owner_bytes + bonds::bytes()) as u64);
    let (feed_events, feed_bytes) = feed::size();
    add(c"feed_events", feed_events);
    add(c"feed_bytes", feed_bytes as u64);
}

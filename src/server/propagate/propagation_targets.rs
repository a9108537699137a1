//! Whether anybody else hears what is published here: a replica, the AOF, another node of the cluster.
//!
//! If nobody does, an event goes to this node's subscribers by a call that costs a fraction of a command that publishes.
//!
//! Whoever begins to listen is first given the whole dataset by a fork; that is the moment from which events are sent
//! to it. In a cluster, somebody is always taken to listen.

use crate::server::ffi::context::Context;
use redis_module::raw;
use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// So many turns of the server's cron, of which there are ten a second as a rule, are between two
/// looks.
const TURNS: u32 = 10;

static NOBODY: AtomicBool = AtomicBool::new(false);

/// Whether it is certain that nobody listens.
pub fn are_none() -> bool {
    NOBODY.load(Relaxed)
}

/// Somebody may listen from now on.
pub fn may_come() {
    NOBODY.store(false, Relaxed);
}

/// Begins to watch. Where the server does not tell of its forks, somebody always may listen.
pub fn watch(ctx: Context) {
    if !offers!(RedisModule_GetServerInfo)
        || !offers!(RedisModule_ServerInfoGetFieldUnsigned)
        || !offers!(RedisModule_FreeServerInfo)
    {
        return;
    }
    let forks = raw::RedisModuleEvent { id: raw::REDISMODULE_EVENT_FORK_CHILD, dataver: 1 };
    let turns = raw::RedisModuleEvent { id: raw::REDISMODULE_EVENT_CRON_LOOP, dataver: 1 };
    // SAFETY: called while the module loads; the callbacks live as long as it.
    unsafe {
        let subscribe = |event, handler| {
            api!(RedisModule_SubscribeToServerEvent(ctx.raw(), event, Some(handler)))
                == raw::REDISMODULE_OK as c_int
        };
        let _ = subscribe(forks, on_fork as Handler) && subscribe(turns, on_cron as Handler);
    }
}

type Handler =
    unsafe extern "C" fn(*mut raw::RedisModuleCtx, raw::RedisModuleEvent, u64, *mut c_void);

unsafe extern "C" fn on_fork(
    _: *mut raw::RedisModuleCtx,
    _: raw::RedisModuleEvent,
    _: u64,
    _: *mut c_void,
) {
    may_come();
}

unsafe extern "C" fn on_cron(
    ctx: *mut raw::RedisModuleCtx,
    _: raw::RedisModuleEvent,
    _: u64,
    _: *mut c_void,
) {
    static TURN: AtomicU32 = AtomicU32::new(0);
    if TURN.fetch_add(1, Relaxed).is_multiple_of(TURNS) {
        // SAFETY: the server passes the context of this event.
        let ctx = unsafe { Context::from_raw(ctx) };
        NOBODY.store(is_alone(ctx), Relaxed);
    }
}

/// Whether the server has nobody to hand anything on to, and no fork is going on for somebody.
fn is_alone(ctx: Context) -> bool {
    if ctx.may_have_listeners() {
        return false;
    }
    // SAFETY: the context is that of the call going on; the data is freed below.
    let info = unsafe { api!(RedisModule_GetServerInfo(ctx.raw(), c"replication".as_ptr())) };
    if info.is_null() {
        return false;
    }
    let is_zero = |field: &CStr| {
        let mut missing: c_int = 0;
        // SAFETY: the data is there, the name ends with NUL.
        let value: u64 = unsafe {
            api!(RedisModule_ServerInfoGetFieldUnsigned(info, field.as_ptr(), &mut missing))
        };
        missing == 0 && value == 0
    };
    let alone = is_zero(c"connected_slaves") && is_zero(c"repl_backlog_active");
    // SAFETY: made above, freed once.
    unsafe { api!(RedisModule_FreeServerInfo(ctx.raw(), info)) };
    alone
}

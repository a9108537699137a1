//! What the server tells of itself: keys that came another way, flushes, swaps, roles, loading.

use crate::server::blocking::space_waits;
use crate::server::expiry::bonds;
use crate::server::expiry::expiry_queue;
use crate::server::expiry::owner_changes;
use crate::server::expiry::owners;
use crate::server::expiry::sweep;
use crate::server::ffi::args::Arg;
use crate::server::ffi::context::{Context, OwnedString};
use crate::server::keyspace::key;
use crate::server::keyspace::key_moves;
use crate::server::keyspace::space_value;
use crate::server::module::config;
use crate::server::propagate::feed;
use crate::server::propagate::propagation_targets;
use redis_module::raw;
use std::ffi::{CStr, c_char, c_int, c_void};

/// Subscribes to everything; to what keys do only where the server can be asked for it.
pub fn subscribe(ctx: Context, to_keys: bool) -> bool {
    let mut types = raw::REDISMODULE_NOTIFY_LOADED;
    if to_keys {
        types |= raw::REDISMODULE_NOTIFY_GENERIC;
    }
    // SAFETY: called while the module loads; the callbacks live as long as it.
    unsafe {
        let subscribed =
            api!(RedisModule_SubscribeToKeyspaceEvents(ctx.raw(), types, Some(on_keyspace)));
        if subscribed != raw::REDISMODULE_OK as c_int {
            return false;
        }
        let handlers: [(u64, EventHandler); 6] = [
            (raw::REDISMODULE_EVENT_FLUSHDB, on_flush),
            (raw::REDISMODULE_EVENT_SWAPDB, on_swap),
            (raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED, on_role),
            (raw::REDISMODULE_EVENT_LOADING, on_loading),
            (raw::REDISMODULE_EVENT_REPL_ASYNC_LOAD, on_load_aside),
            (raw::REDISMODULE_EVENT_CONFIG, on_config),
        ];
        handlers.into_iter().all(|(id, handler)| {
            let event = raw::RedisModuleEvent { id, dataver: 1 };
            api!(RedisModule_SubscribeToServerEvent(ctx.raw(), event, Some(handler)))
                == raw::REDISMODULE_OK as c_int
        })
    }
}

type EventHandler =
    unsafe extern "C" fn(*mut raw::RedisModuleCtx, raw::RedisModuleEvent, u64, *mut c_void);

/// Names under which a space can appear without a command of ours. Called for every generic event
/// of every key, so what does not matter is told apart by its first letters.
unsafe extern "C" fn on_keyspace(
    ctx: *mut raw::RedisModuleCtx,
    _type: c_int,
    event: *const c_char,
    key: *mut raw::RedisModuleString,
) -> c_int {
    // SAFETY: the name of the event is a text of the server that ends with NUL.
    let event = unsafe { CStr::from_ptr(event) }.to_bytes();
    // SAFETY: the server passes the context of this event and the key's name.
    let (ctx, key) = unsafe { (Context::from_raw(ctx), Arg::from_raw(key)) };
    if matches!(event, b"rename_to" | b"move_to" | b"copy_to" | b"restore") {
        key::arrived(ctx, key);
    } else if event == b"loaded" {
        // The key is an object on the server's stack: its bytes are read, it is not opened.
        expiry_queue::loaded(ctx.db(), key.bytes());
    }
    raw::REDISMODULE_OK as c_int
}

unsafe extern "C" fn on_flush(
    _: *mut raw::RedisModuleCtx,
    _: raw::RedisModuleEvent,
    subevent: u64,
    data: *mut c_void,
) {
    if subevent != raw::REDISMODULE_SUBEVENT_FLUSHDB_START || data.is_null() {
        return;
    }
    // SAFETY: the data of this event is a `RedisModuleFlushInfo`, and it is not null.
    let info = unsafe { &*data.cast::<raw::RedisModuleFlushInfo>() };
    let db = (info.dbnum >= 0).then_some(info.dbnum);
    expiry_queue::flushed(db);
    owners::flushed(db);
    space_waits::wake_flushed(db);
    bonds::forget(db);
}

unsafe extern "C" fn on_swap(
    ctx: *mut raw::RedisModuleCtx,
    _: raw::RedisModuleEvent,
    _: u64,
    data: *mut c_void,
) {
    if data.is_null() {
        return;
    }
    // SAFETY: the data of this event is a `RedisModuleSwapDbInfo`, and it is not null.
    let info = unsafe { &*data.cast::<raw::RedisModuleSwapDbInfo>() };
    expiry_queue::swapped(info.dbnum_first, info.dbnum_second);
    owners::swapped(info.dbnum_first, info.dbnum_second);
    bonds::swapped(info.dbnum_first, info.dbnum_second);
    key_moves::swapped(info.dbnum_first, info.dbnum_second);
    space_waits::wake_db(Some(info.dbnum_first));
    space_waits::wake_db(Some(info.dbnum_second));
    // SAFETY: the server passes the context of this event.
    let ctx = unsafe { Context::from_raw(ctx) };
    sweep::arm(ctx, ctx.now());
}

/// From now on this server decides: nobody could renew a lease with it before, and it may lack the
/// last events of the server before it.
fn begin_to_decide(ctx: Context) {
    let now = ctx.now();
    let grace = config::restart_grace_ms();
    space_value::begin_to_decide(if grace > 0 { now + grace } else { 0 });
    owners::begin_to_decide(if grace > 0 { now + grace } else { 0 }, now);
    bonds::forget(None);
    owner_changes::tell_all(ctx);
    // Replicas and the AOF are told of the grace soon, not when the old leases end. Leases of which this server knew
    // bounds may end earlier than it is prepared for.
    expiry_queue::look_at_all();
    sweep::arm(ctx, now);
}

unsafe extern "C" fn on_role(
    ctx: *mut raw::RedisModuleCtx,
    _: raw::RedisModuleEvent,
    subevent: u64,
    _: *mut c_void,
) {
    propagation_targets::may_come();
    if subevent == raw::REDISMODULE_EVENT_REPLROLECHANGED_NOW_MASTER {
        // SAFETY: the server passes the context of this event.
        begin_to_decide(unsafe { Context::from_raw(ctx) });
    } else {
        space_value::withdraw_grace();
        bonds::forget(None);
    }
}

unsafe extern "C" fn on_loading(
    ctx: *mut raw::RedisModuleCtx,
    _: raw::RedisModuleEvent,
    subevent: u64,
    _: *mut c_void,
) {
    // SAFETY: the server passes the context of this event.
    let ctx = unsafe { Context::from_raw(ctx) };
    propagation_targets::may_come();
    if subevent == raw::REDISMODULE_SUBEVENT_LOADING_ENDED {
        // A full copy from the primary can bring a space for which a client of this replica waits.
        space_waits::wake_db(None);
        if ctx.is_primary() {
            begin_to_decide(ctx);
        } else {
            feed::interrupt();
            sweep::arm(ctx, ctx.now());
        }
    }
}

unsafe extern "C" fn on_load_aside(
    ctx: *mut raw::RedisModuleCtx,
    _: raw::RedisModuleEvent,
    subevent: u64,
    _: *mut c_void,
) {
    match subevent {
        raw::REDISMODULE_SUBEVENT_REPL_ASYNC_LOAD_STARTED => {
            expiry_queue::begin_aside();
            owners::begin_aside();
        }
        raw::REDISMODULE_SUBEVENT_REPL_ASYNC_LOAD_COMPLETED => {
            // SAFETY: the server passes the context of this event.
            let ctx = unsafe { Context::from_raw(ctx) };
            owners::take_aside();
            if !expiry_queue::take_aside() {
                find_databases(ctx);
            }
            space_waits::wake_db(None);
            feed::interrupt();
            sweep::arm(ctx, ctx.now());
        }
        _ => {
            expiry_queue::drop_aside();
            owners::drop_aside();
        }
    }
}

/// Of a dataset that they load aside, Redis 7 and Valkey 7 say that all its keys are in database 0.
/// If others have keys, each space is looked for.
fn find_databases(ctx: Context) {
    let others = (1..).take_while(|db| ctx.select_db(*db));
    let mut dbs: Vec<i32> = others.filter(|_| ctx.has_keys()).collect();
    if dbs.is_empty() {
        return;
    }
    dbs.push(0);
    for name in expiry_queue::names(0) {
        expiry_queue::forget(0, &name);
        let name = OwnedString::new(&name);
        for db in &dbs {
            if ctx.select_db(*db) {
                key::arrived(ctx, name.as_arg());
            }
        }
    }
}

/// With these settings, a space is due at another time than before: how their names begin.
const CHANGES_DUES: [&[u8]; 5] = [
    b"presence.history-",
    b"presence.rules",
    b"presence.digest-",
    b"presence.seen-",
    b"presence.max-seen",
];

/// Spaces are due at other times if settings change.
unsafe extern "C" fn on_config(
    ctx: *mut raw::RedisModuleCtx,
    _: raw::RedisModuleEvent,
    _: u64,
    data: *mut c_void,
) {
    if data.is_null() {
        return;
    }
    // SAFETY: the data of this event is a `RedisModuleConfigChange`, and it is not null.
    let change = unsafe { &*data.cast::<raw::RedisModuleConfigChange>() };
    if change.config_names.is_null() {
        return;
    }
    // SAFETY: the server passes an array of `num_changes` names, and it is not null.
    let names =
        unsafe { std::slice::from_raw_parts(change.config_names, change.num_changes as usize) };
    feed::resize();
    let changes_dues = |name: &*const c_char| {
        // SAFETY: each name is a text of the server that ends with NUL.
        let name = unsafe { CStr::from_ptr(*name) }.to_bytes();
        CHANGES_DUES.iter().any(|begin| name.starts_with(begin))
    };
    if names.iter().any(changes_dues) {
        // SAFETY: the server passes the context of this event.
        let ctx = unsafe { Context::from_raw(ctx) };
        expiry_queue::look_at_all();
        sweep::arm(ctx, ctx.now());
    }
}

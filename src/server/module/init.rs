//! What happens when the module is loaded, apart from what the crate's macro does.

use crate::server::expiry::bonds;
use crate::server::expiry::queue_repair;
use crate::server::ffi::clock;
use crate::server::ffi::context::Context;
use crate::server::keyspace::datatype;
use crate::server::keyspace::key_moves;
use crate::server::module::command;
use crate::server::module::config;
use crate::server::module::core_commands;
use crate::server::module::events;
use crate::server::module::info;
use crate::server::propagate::propagation_targets;
use redis_module::{Status, raw};
use std::ffi::{c_int, c_void};

/// Whether the server offers what the module cannot do without: everything that Redis 7.0 has.
fn offers_what_is_needed() -> bool {
    offers!(RedisModule_CreateDataType)
        && offers!(RedisModule_GetDbIdFromIO)
        && offers!(RedisModule_GetKeyNameFromIO)
        && offers!(RedisModule_GetDbIdFromModuleKey)
        && offers!(RedisModule_GetKeyNameFromOptCtx)
        && offers!(RedisModule_GetDbIdFromOptCtx)
        && offers!(RedisModule_IsIOError)
        && offers!(RedisModule_LoadConfigs)
        && offers!(RedisModule_RegisterNumericConfig)
        && offers!(RedisModule_RegisterStringConfig)
        && offers!(RedisModule_UnlinkKey)
        && offers!(RedisModule_GetServerVersion)
        && offers!(RedisModule_RegisterCommandFilter)
        && offers!(RedisModule_GetDetachedThreadSafeContext)
        && offers!(RedisModule_GetToKeyNameFromOptCtx)
        && offers!(RedisModule_ReplyWithMap)
        && offers!(RedisModule_RegisterInfoFunc)
        && offers!(RedisModule_InfoAddFieldULongLong)
        && offers!(RedisModule_SubscribeToServerEvent)
        && offers!(RedisModule_CreateSubcommand)
        && offers!(RedisModule_GetClientId)
        && offers!(RedisModule_GetClientInfoById)
        && offers!(RedisModule_CreateTimer)
        && offers!(RedisModule_Scan)
        && offers!(RedisModule_ScanCursorCreate)
        && offers!(RedisModule_ScanCursorDestroy)
        && offers!(RedisModule_DbSize)
        && offers!(RedisModule_Call)
        && offers!(RedisModule_IsKeysPositionRequest)
        && offers!(RedisModule_KeyAtPosWithFlags)
        && offers!(RedisModule_EventLoopAddOneShot)
}

/// `VALKEYMODULE_OPTIONS_HANDLE_ATOMIC_SLOT_MIGRATION`, from Valkey 9.0 on: without it the server
/// refuses to move slots in its new way. A space comes as effects and is swept when the slot is
/// ours.
const VALKEY_HANDLE_ATOMIC_SLOT_MIGRATION: u32 = 1 << 5;

/// Redis and Valkey give the same numbers to different things since they parted.
fn is_valkey() -> bool {
    let mut function: *mut c_void = std::ptr::null_mut();
    // SAFETY: asks for a function by name, and leaves the pointer alone where there is none.
    let found = unsafe {
        api!(RedisModule_GetApi(c"ValkeyModule_Alloc".as_ptr(), (&raw mut function).cast()))
    };
    found == raw::REDISMODULE_OK as c_int && !function.is_null()
}

pub fn init(crate_ctx: &redis_module::Context, commands: &[Registration]) -> Status {
    // SAFETY: the context is that of the loading that is going on.
    let ctx = unsafe { Context::from_raw(crate_ctx.ctx) };
    let refused = |what: &str| {
        ctx.log(c"warning", &format!("presence: {what}; the module needs Redis 7.0 or Valkey 7.2"));
        Status::Err
    };
    if !offers_what_is_needed() {
        return refused("the server lacks functions");
    }
    let mut options = raw::REDISMODULE_OPTIONS_HANDLE_IO_ERRORS
        | raw::REDISMODULE_OPTION_NO_IMPLICIT_SIGNAL_MODIFIED
        | raw::REDISMODULE_OPTIONS_HANDLE_REPL_ASYNC_LOAD;
    if is_valkey() {
        options |= VALKEY_HANDLE_ATOMIC_SLOT_MIGRATION;
    }
    // SAFETY: as above.
    unsafe { api!(RedisModule_SetModuleOptions(ctx.raw(), options as c_int)) };
    if !datatype::register(ctx) {
        return refused("the type of spaces cannot be registered");
    }
    if !commands.iter().all(|register| register(ctx)) {
        return refused("a command cannot be registered");
    }
    if !config::register(crate_ctx, is_valkey()) {
        return refused("the settings cannot be registered");
    }
    let Some(told_by_events) = key_moves::prepare(ctx, is_valkey()) else {
        return refused("RENAME and MOVE cannot be listened to");
    };
    if !clock::watch(ctx) {
        return refused("transactions and scripts cannot be noticed");
    }
    if !events::subscribe(ctx, told_by_events) {
        return refused("the server's events cannot be subscribed to");
    }
    if !bonds::watch(ctx) {
        return refused("the ends of connections cannot be noticed");
    }
    core_commands::probe(ctx);
    propagation_targets::watch(ctx);
    queue_repair::start(ctx);
    if !info::register(ctx) {
        return refused("INFO cannot be registered");
    }
    Status::Ok
}

/// The type of the commands' table.
pub type Registration = fn(Context) -> bool;

/// A row of the table.
pub const fn row<C: command::Command>() -> Registration {
    command::register::<C>
}

/// A row for a command with subcommands.
pub const fn container<C: command::Container>() -> Registration {
    command::register_container::<C>
}

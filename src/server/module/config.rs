//! The settings: `CONFIG GET/SET presence.*`.

use crate::server::ffi::args::Arg;
use crate::server::ffi::context::OwnedString;
use presence_core::space::{Limits, Retention};
use redis_module::configuration::{
    ConfigurationContext, ConfigurationFlags, ConfigurationValue, EnumConfigurationValue,
    register_enum_configuration, register_i64_configuration,
};
use redis_module::{Context, RedisError, raw};
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicI64, Ordering::Relaxed};

/// A number that can be set.
struct Number {
    name: &'static str,
    default: i64,
    least: i64,
    most: i64,
    /// Whether it may be given with a unit, as in 4kb.
    is_bytes: bool,
    value: AtomicI64,
}

impl Number {
    const fn new(name: &'static str, default: i64, least: i64, most: i64) -> Self {
        Number { name, default, least, most, is_bytes: false, value: AtomicI64::new(default) }
    }

    const fn bytes(name: &'static str, default: i64, most: i64) -> Self {
        Number { name, default, least: 0, most, is_bytes: true, value: AtomicI64::new(default) }
    }

    /// Never negative: the least values are not.
    fn get(&self) -> u64 {
        self.value.load(Relaxed).unsigned_abs()
    }
}

const DAY_MS: i64 = 86_400_000;
const YEAR_MS: i64 = 365 * DAY_MS;

static LEASE_TTL_MS: Number = Number::new("lease-ttl-ms", 30_000, 1, YEAR_MS);
static MAX_LEASE_TTL_MS: Number = Number::new("max-lease-ttl-ms", DAY_MS, 1, YEAR_MS);
static SWEEP_BUDGET_US: Number = Number::new("sweep-budget-us", 1000, 50, 1_000_000);
static HISTORY_LENGTH: Number = Number::new("history-length", 128, 0, 1_000_000);
static HISTORY_TTL_MS: Number = Number::new("history-ttl-ms", 60_000, 0, YEAR_MS);
static MAX_META_BYTES: Number = Number::bytes("max-meta-bytes", 4096, 16 << 20);
static MAX_MESSAGE_BYTES: Number = Number::bytes("max-message-bytes", 65536, 16 << 20);
static MAX_SESSIONS_PER_USER: Number = Number::new("max-sessions-per-user", 1024, 1, 65536);
static MAX_USERS_PER_SPACE: Number = Number::new("max-users-per-space", 0, 0, u32::MAX as i64);
static RESTART_GRACE_MS: Number = Number::new("restart-grace-ms", 30_000, 0, DAY_MS);

static NUMBERS: [&Number; 10] = [
    &LEASE_TTL_MS,
    &MAX_LEASE_TTL_MS,
    &SWEEP_BUDGET_US,
    &HISTORY_LENGTH,
    &HISTORY_TTL_MS,
    &MAX_META_BYTES,
    &MAX_MESSAGE_BYTES,
    &MAX_SESSIONS_PER_USER,
    &MAX_USERS_PER_SPACE,
    &RESTART_GRACE_MS,
];

/// Where events are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelMode {
    Global = 0,
    Sharded = 1,
}

impl TryFrom<i32> for ChannelMode {
    type Error = RedisError;

    fn try_from(value: i32) -> Result<Self, RedisError> {
        match value {
            0 => Ok(ChannelMode::Global),
            1 => Ok(ChannelMode::Sharded),
            _ => Err(RedisError::Str("channel-mode is global or sharded")),
        }
    }
}

impl From<ChannelMode> for i32 {
    fn from(mode: ChannelMode) -> i32 {
        mode as i32
    }
}

impl EnumConfigurationValue for ChannelMode {
    fn get_options(&self) -> (Vec<String>, Vec<i32>) {
        (vec!["global".into(), "sharded".into()], vec![0, 1])
    }
}

struct Mode(AtomicI32);

impl ConfigurationValue<ChannelMode> for Mode {
    fn get(&self, _: &ConfigurationContext) -> ChannelMode {
        channel_mode()
    }

    fn set(&self, _: &ConfigurationContext, mode: ChannelMode) -> Result<(), RedisError> {
        self.0.store(mode.into(), Relaxed);
        Ok(())
    }
}

const DEFAULT_PREFIX: &CStr = c"presence:";
static CHANNEL_MODE: Mode = Mode(AtomicI32::new(0));
static CHANNEL_PREFIX: Mutex<Vec<u8>> = Mutex::new(Vec::new());

thread_local! {
    /// The prefix as a string of the server, which asks for it and does not take it.
    static SHOWN_PREFIX: RefCell<Option<OwnedString>> = const { RefCell::new(None) };
}

unsafe extern "C" fn get_prefix(_: *const c_char, _: *mut c_void) -> *mut raw::RedisModuleString {
    SHOWN_PREFIX.with_borrow(|shown| {
        shown.as_ref().map_or(std::ptr::null_mut(), |shown| shown.as_arg().raw())
    })
}

unsafe extern "C" fn set_prefix(
    _: *const c_char,
    value: *mut raw::RedisModuleString,
    _: *mut c_void,
    error: *mut *mut raw::RedisModuleString,
) -> c_int {
    // SAFETY: the server passes the new value as one of its strings.
    let value = unsafe { Arg::from_raw(value) }.bytes();
    let wrong = if std::str::from_utf8(value).is_err() {
        "channel-prefix must be UTF-8 text"
    } else if value.contains(&0) {
        // CONFIG REWRITE could not write it.
        "channel-prefix must not contain NUL"
    } else {
        if let Ok(mut prefix) = CHANNEL_PREFIX.lock() {
            value.clone_into(&mut prefix);
        }
        SHOWN_PREFIX.set(Some(OwnedString::new(value)));
        return raw::REDISMODULE_OK as c_int;
    };
    let wrong = OwnedString::new(wrong.as_bytes()).into_raw();
    // SAFETY: the server passes a place for the text of the error, and frees the text.
    unsafe { *error = wrong };
    raw::REDISMODULE_ERR as c_int
}

/// The lease where the command gives none (ms): never one that the command could not give.
pub fn lease_ttl_ms() -> u64 {
    LEASE_TTL_MS.get().min(max_lease_ttl_ms())
}

pub fn max_lease_ttl_ms() -> u64 {
    MAX_LEASE_TTL_MS.get()
}

pub fn sweep_budget_us() -> u64 {
    SWEEP_BUDGET_US.get()
}

pub fn max_meta_bytes() -> usize {
    MAX_META_BYTES.get() as usize
}

pub fn max_message_bytes() -> usize {
    MAX_MESSAGE_BYTES.get() as usize
}

pub fn restart_grace_ms() -> u64 {
    RESTART_GRACE_MS.get()
}

pub fn retention() -> Retention {
    Retention { length: HISTORY_LENGTH.get(), ttl: HISTORY_TTL_MS.get() }
}

pub fn limits() -> Limits {
    Limits {
        sessions_per_user: MAX_SESSIONS_PER_USER.get(),
        users: MAX_USERS_PER_SPACE.get(),
        retention: retention(),
    }
}

pub fn channel_mode() -> ChannelMode {
    if CHANNEL_MODE.0.load(Relaxed) == 0 { ChannelMode::Global } else { ChannelMode::Sharded }
}

pub fn with_channel_prefix<T>(use_it: impl FnOnce(&[u8]) -> T) -> T {
    match CHANNEL_PREFIX.lock() {
        Ok(prefix) => use_it(&prefix),
        Err(_) => use_it(DEFAULT_PREFIX.to_bytes()),
    }
}

impl ConfigurationValue<i64> for Number {
    fn get(&self, _: &ConfigurationContext) -> i64 {
        self.value.load(Relaxed)
    }

    fn set(&self, _: &ConfigurationContext, value: i64) -> Result<(), RedisError> {
        self.value.store(value, Relaxed);
        Ok(())
    }
}

/// Registers the settings and takes over what the configuration file and `loadmodule` gave.
pub fn register(ctx: &Context) -> bool {
    for number in NUMBERS {
        let flags =
            if number.is_bytes { ConfigurationFlags::MEMORY } else { ConfigurationFlags::DEFAULT };
        let (default, least, most) = (number.default, number.least, number.most);
        register_i64_configuration(ctx, number.name, number, default, least, most, flags, None);
    }
    register_enum_configuration(
        ctx,
        "channel-mode",
        &CHANNEL_MODE,
        ChannelMode::Global,
        ConfigurationFlags::DEFAULT,
        None,
    );
    // Not by way of the crate, which gives the server a new string each time it asks.
    // SAFETY: called while the module loads; the callbacks are plain functions.
    let registered = unsafe {
        api!(RedisModule_RegisterStringConfig(
            ctx.ctx,
            c"channel-prefix".as_ptr(),
            DEFAULT_PREFIX.as_ptr(),
            raw::REDISMODULE_CONFIG_DEFAULT,
            Some(get_prefix),
            Some(set_prefix),
            None,
            std::ptr::null_mut()
        ))
    };
    if registered != raw::REDISMODULE_OK as c_int {
        return false;
    }
    // SAFETY: called while the module loads, with its context.
    unsafe { api!(RedisModule_LoadConfigs(ctx.ctx)) == raw::REDISMODULE_OK as c_int }
}

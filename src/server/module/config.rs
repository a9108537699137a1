//! The settings: `CONFIG GET/SET presence.*`.

use super::space_settings;
use super::text_setting::{self, TextSetting};
use presence_core::rules::{Setting, UserChannels};
use redis_module::configuration::{
    ConfigurationContext, ConfigurationFlags, ConfigurationValue, EnumConfigurationValue,
    register_enum_configuration, register_i64_configuration,
};
use redis_module::{Context, RedisError, raw};
use std::ffi::c_int;
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

    /// The global value of a setting that rules can name.
    const fn of(setting: Setting) -> Self {
        let (default, least, most) = setting.range();
        Number::new(setting.name(), default as i64, least as i64, most as i64)
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

static LEASE_TTL_MS: Number = Number::of(Setting::LeaseTtlMs);
static MAX_LEASE_TTL_MS: Number = Number::new("max-lease-ttl-ms", DAY_MS, 1, YEAR_MS);
static SWEEP_BUDGET_US: Number = Number::new("sweep-budget-us", 1000, 50, 1_000_000);
static HISTORY_LENGTH: Number = Number::of(Setting::HistoryLength);
static HISTORY_TTL_MS: Number = Number::of(Setting::HistoryTtlMs);
static MAX_META_BYTES: Number = Number::bytes("max-meta-bytes", 4096, 16 << 20);
static MAX_MESSAGE_BYTES: Number = Number::bytes("max-message-bytes", 65536, 16 << 20);
static MAX_SESSIONS_PER_USER: Number = Number::of(Setting::MaxSessionsPerUser);
static MAX_USERS_PER_SPACE: Number = Number::of(Setting::MaxUsersPerSpace);
static DIGEST_INTERVAL_MS: Number = Number::of(Setting::DigestIntervalMs);
static DIGEST_MAX_CHANGES: Number = Number::of(Setting::DigestMaxChanges);
static SEEN_TTL_MS: Number = Number::of(Setting::SeenTtlMs);
static MAX_SEEN: Number = Number::of(Setting::MaxSeen);
static FEED_BYTES: Number = Number::bytes("feed-bytes", 1 << 20, 1 << 30);
static RESTART_GRACE_MS: Number = Number::new("restart-grace-ms", 30_000, 0, DAY_MS);

static NUMBERS: [&Number; 15] = [
    &LEASE_TTL_MS,
    &MAX_LEASE_TTL_MS,
    &SWEEP_BUDGET_US,
    &HISTORY_LENGTH,
    &HISTORY_TTL_MS,
    &MAX_META_BYTES,
    &MAX_MESSAGE_BYTES,
    &MAX_SESSIONS_PER_USER,
    &MAX_USERS_PER_SPACE,
    &DIGEST_INTERVAL_MS,
    &DIGEST_MAX_CHANGES,
    &SEEN_TTL_MS,
    &MAX_SEEN,
    &RESTART_GRACE_MS,
    &FEED_BYTES,
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

static CHANNEL_MODE: Mode = Mode(AtomicI32::new(0));

/// The value of `user-channels`, as the crate's registration wants it.
#[derive(Clone, Copy)]
struct UserChannelsValue(i32);

impl TryFrom<i32> for UserChannelsValue {
    type Error = RedisError;

    fn try_from(value: i32) -> Result<Self, RedisError> {
        let is_known = (0..UserChannels::WORDS.len() as i32).contains(&value);
        let refused = RedisError::Str("user-channels is no, transitions or all");
        is_known.then_some(UserChannelsValue(value)).ok_or(refused)
    }
}

impl From<UserChannelsValue> for i32 {
    fn from(value: UserChannelsValue) -> i32 {
        value.0
    }
}

impl EnumConfigurationValue for UserChannelsValue {
    fn get_options(&self) -> (Vec<String>, Vec<i32>) {
        UserChannels::WORDS.map(String::from).into_iter().zip(0..).unzip()
    }
}

struct UserChannelsSetting(AtomicI32);

impl ConfigurationValue<UserChannelsValue> for UserChannelsSetting {
    fn get(&self, _: &ConfigurationContext) -> UserChannelsValue {
        UserChannelsValue(self.0.load(Relaxed))
    }

    fn set(&self, _: &ConfigurationContext, value: UserChannelsValue) -> Result<(), RedisError> {
        self.0.store(value.0, Relaxed);
        Ok(())
    }
}

static USER_CHANNELS: UserChannelsSetting = UserChannelsSetting(AtomicI32::new(0));

fn any_text(_: &str) -> Result<(), String> {
    Ok(())
}

static CHANNEL_PREFIX: TextSetting = TextSetting::new(c"channel-prefix", c"presence:", any_text);
static DIGEST_PREFIX: TextSetting =
    TextSetting::new(c"digest-prefix", c"presence-digest:", any_text);
static COUNT_PREFIX: TextSetting = TextSetting::new(c"count-prefix", c"presence-count:", any_text);
static USER_PREFIX: TextSetting = TextSetting::new(c"user-prefix", c"presence-user:", any_text);
static RULES: TextSetting = TextSetting::new(c"rules", c"", space_settings::set_rules);

static TEXTS: [&TextSetting; 5] =
    [&CHANNEL_PREFIX, &DIGEST_PREFIX, &COUNT_PREFIX, &USER_PREFIX, &RULES];

/// The global value of a setting that rules can name.
pub fn number(setting: Setting) -> u64 {
    match setting {
        Setting::LeaseTtlMs => LEASE_TTL_MS.get(),
        Setting::HistoryLength => HISTORY_LENGTH.get(),
        Setting::HistoryTtlMs => HISTORY_TTL_MS.get(),
        Setting::MaxSessionsPerUser => MAX_SESSIONS_PER_USER.get(),
        Setting::MaxUsersPerSpace => MAX_USERS_PER_SPACE.get(),
        Setting::DigestIntervalMs => DIGEST_INTERVAL_MS.get(),
        Setting::DigestMaxChanges => DIGEST_MAX_CHANGES.get(),
        Setting::UserChannels => u64::from(USER_CHANNELS.0.load(Relaxed).unsigned_abs()),
        Setting::SeenTtlMs => SEEN_TTL_MS.get(),
        Setting::MaxSeen => MAX_SEEN.get(),
    }
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

/// The size of the ring of the feed; 0 if there is none.
pub fn feed_bytes() -> usize {
    FEED_BYTES.get() as usize
}

pub fn restart_grace_ms() -> u64 {
    RESTART_GRACE_MS.get()
}

pub fn channel_mode() -> ChannelMode {
    if CHANNEL_MODE.0.load(Relaxed) == 0 { ChannelMode::Global } else { ChannelMode::Sharded }
}

pub fn with_channel_prefix<T>(use_it: impl FnOnce(&[u8]) -> T) -> T {
    CHANNEL_PREFIX.with(use_it)
}

pub fn with_digest_prefix<T>(use_it: impl FnOnce(&[u8]) -> T) -> T {
    DIGEST_PREFIX.with(use_it)
}

pub fn with_count_prefix<T>(use_it: impl FnOnce(&[u8]) -> T) -> T {
    COUNT_PREFIX.with(use_it)
}

pub fn with_user_prefix<T>(use_it: impl FnOnce(&[u8]) -> T) -> T {
    USER_PREFIX.with(use_it)
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
pub fn register(ctx: &Context, is_valkey: bool) -> bool {
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
    register_enum_configuration(
        ctx,
        "user-channels",
        &USER_CHANNELS,
        UserChannelsValue(UserChannels::No as i32),
        ConfigurationFlags::DEFAULT,
        None,
    );
    text_setting::probe(is_valkey);
    // SAFETY: called while the module loads, with its context.
    let own_ctx = unsafe { crate::server::ffi::context::Context::from_raw(ctx.ctx) };
    if !TEXTS.iter().all(|text| text.register(own_ctx)) {
        return false;
    }
    // SAFETY: called while the module loads, with its context.
    unsafe { api!(RedisModule_LoadConfigs(ctx.ctx)) == raw::REDISMODULE_OK as c_int }
}

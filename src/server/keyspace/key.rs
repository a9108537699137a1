//! A space in the keyspace: opened, changed, and its changes handed on.

use crate::server::blocking::space_waits;
use crate::server::expiry::expiry_queue;
use crate::server::expiry::owners;
use crate::server::expiry::sweep;
use crate::server::ffi::args::Arg;
use crate::server::ffi::clock::{Clock, server_time};
use crate::server::ffi::context::Context;
use crate::server::ffi::error::Error;
use crate::server::ffi::prefetch;
use crate::server::keyspace::datatype;
use crate::server::keyspace::prefetch_cache::CachedLayout;
use crate::server::keyspace::space_value::SpaceValue;
use crate::server::module::config;
use crate::server::module::space_settings::{self, Rule};
use crate::server::module::stats::{self};
use presence_core::rules::SpaceSettings;
use presence_core::space::{Limits, Lookup, Space};
use redis_module::raw;
use std::ffi::c_int;
use std::ptr::NonNull;

/// An open key.
pub(super) struct Opened(pub(super) NonNull<raw::RedisModuleKey>);

impl Opened {
    fn open(ctx: Context, name: Arg<'_>, mode: u32) -> Option<Self> {
        // SAFETY: the context is that of the call going on, the name lives through it.
        let key = unsafe { api!(RedisModule_OpenKey(ctx.raw(), name.raw(), mode as c_int)) };
        NonNull::new(key).map(Opened)
    }

    /// The database of the key. [`Context::db`] can be another.
    fn db(&self) -> i32 {
        // SAFETY: the key is open.
        unsafe { api!(RedisModule_GetDbIdFromModuleKey(self.0.as_ptr())) }
    }

    /// The space at the key; none where the key is empty.
    fn value(&self) -> Result<Option<NonNull<SpaceValue>>, Error> {
        // SAFETY: the key is open. Its value is of our type, so it is a `SpaceValue`, which lives at
        // least until the key is closed.
        unsafe {
            if api!(RedisModule_ModuleTypeGetType(self.0.as_ptr())) == datatype::raw_type() {
                let held: *mut SpaceValue =
                    api!(RedisModule_ModuleTypeGetValue(self.0.as_ptr())).cast();
                // It may lie on two cache lines, which are looked at one after the other.
                prefetch::prefetch(held.cast::<u8>().wrapping_add(size_of::<SpaceValue>() - 1));
                return Ok(NonNull::new(held));
            }
            let kind = api!(RedisModule_KeyType(self.0.as_ptr()));
            if kind == raw::REDISMODULE_KEYTYPE_EMPTY as c_int {
                return Ok(None);
            }
            Err(Error::WRONG_TYPE)
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: open, and closed once.
        unsafe { api!(RedisModule_CloseKey(self.0.as_ptr())) };
    }
}

/// A space that is open for reading.
pub struct SpaceReadGuard {
    held: NonNull<SpaceValue>,
    rule: Rule,
    _key: Opened,
}

impl SpaceReadGuard {
    pub fn open(ctx: Context, name: Arg<'_>, clock: &Clock) -> Result<Option<Self>, Error> {
        Self::open_as(ctx, name, clock, 0)
    }

    /// The same by who visits many keys: none is less idle for it. Servers that do not know a flag ignore it.
    pub fn open_untouched(
        ctx: Context,
        name: Arg<'_>,
        clock: &Clock,
    ) -> Result<Option<Self>, Error> {
        let how = raw::REDISMODULE_OPEN_KEY_NOTOUCH
            | raw::REDISMODULE_OPEN_KEY_NOSTATS
            | raw::REDISMODULE_OPEN_KEY_NONOTIFY;
        Self::open_as(ctx, name, clock, how)
    }

    fn open_as(
        ctx: Context,
        name: Arg<'_>,
        clock: &Clock,
        how: u32,
    ) -> Result<Option<Self>, Error> {
        let Some(key) = Opened::open(ctx, name, raw::REDISMODULE_READ | how) else {
            return Ok(None);
        };
        let Some(mut held) = key.value()? else { return Ok(None) };
        // SAFETY: nothing else refers to the value: commands run one at a time, and each opens
        // its key once.
        let value = unsafe { held.as_mut() };
        value.catch_up();
        let now = clock.now();
        bind_owners(ctx, value, &key, name, now);
        // A closed space whose time is over is not there, whether or not a sweep has seen to it.
        let is_over = value.space.is_closed() && value.space.is_over(now);
        if value.space.advance(now) {
            value.count();
        }
        let rule = value.rule(name.bytes());
        Ok((!is_over).then_some(SpaceReadGuard { held, rule, _key: key }))
    }

    pub fn settings(&self) -> SpaceSettings {
        space_settings::settings(self.rule)
    }
}

impl std::ops::Deref for SpaceReadGuard {
    type Target = Space;

    fn deref(&self) -> &Space {
        // SAFETY: the key is open, so its value is there; it is only read.
        &unsafe { self.held.as_ref() }.space
    }
}

/// Where the value of a [`SpaceWriteGuard`] is.
pub(super) enum Value {
    InKeyspace(NonNull<SpaceValue>),
    /// Not a key yet.
    New(Box<SpaceValue>),
}

/// A space that is open to be changed.
pub struct SpaceWriteGuard<'a> {
    pub(super) ctx: Context,
    pub(super) name: Arg<'a>,
    pub(super) db: i32,
    pub(super) clock: &'a Clock,
    pub(super) value: Value,
    pub(super) key: Opened,
}

impl<'a> SpaceWriteGuard<'a> {
    pub fn open(ctx: Context, name: Arg<'a>, clock: &'a Clock) -> Result<Option<Self>, Error> {
        Self::open_as(ctx, name, clock, 0)
    }

    /// The same by who is not a client: the key is no less idle for it.
    pub fn open_untouched(
        ctx: Context,
        name: Arg<'a>,
        clock: &'a Clock,
    ) -> Result<Option<Self>, Error> {
        Self::open_as(ctx, name, clock, raw::REDISMODULE_OPEN_KEY_NOTOUCH)
    }

    fn open_as(
        ctx: Context,
        name: Arg<'a>,
        clock: &'a Clock,
        how: u32,
    ) -> Result<Option<Self>, Error> {
        let mode = raw::REDISMODULE_READ | raw::REDISMODULE_WRITE | how;
        let Some(key) = Opened::open(ctx, name, mode) else {
            return Ok(None);
        };
        let Some(mut held) = key.value()? else { return Ok(None) };
        // SAFETY: as in `SpaceReadGuard::open`.
        let value = unsafe { held.as_mut() };
        value.catch_up();
        bind_owners(ctx, value, &key, name, clock.now());
        Ok(Some(SpaceWriteGuard {
            ctx,
            name,
            db: key.db(),
            clock,
            value: Value::InKeyspace(held),
            key,
        }))
    }

    pub fn open_or_create(ctx: Context, name: Arg<'a>, clock: &'a Clock) -> Result<Self, Error> {
        if let Some(mut there) = Self::open(ctx, name, clock)? {
            let is_open = !there.space().is_closed();
            if is_open || !there.space().is_over(clock.now()) || ctx.is_replaying() {
                return Ok(there);
            }
            // It was closed, and the time is over: what is created is another space.
            there.delete();
        }
        let mode = raw::REDISMODULE_READ | raw::REDISMODULE_WRITE;
        let Some(key) = Opened::open(ctx, name, mode) else {
            return Err(Error::new("the key cannot be opened for writing"));
        };
        let db = key.db();
        let space = Space::new(expiry_queue::new_epoch(db, name.bytes(), clock.now()));
        Ok(SpaceWriteGuard {
            ctx,
            name,
            db,
            clock,
            value: Value::New(Box::new(SpaceValue::new(space))),
            key,
        })
    }

    /// The space is an empty one from now on: who decides has begun anew.
    pub fn begin_anew(&mut self) {
        let (db, name) = (self.db, self.name);
        owners::left(db, name.bytes(), self.space());
        *self.space() = Space::new(0);
    }

    pub fn is_new(&self) -> bool {
        matches!(self.value, Value::New(_))
    }

    /// Whether the space was not closed.
    pub fn is_open(&self) -> bool {
        let held = match &self.value {
            // SAFETY: the key is open, so its value is there; it is only read.
            Value::InKeyspace(held) => unsafe { held.as_ref() },
            Value::New(held) => held,
        };
        !held.space.is_closed()
    }

    pub(super) fn held(&mut self) -> &mut SpaceValue {
        match &mut self.value {
            // SAFETY: the key is open, so its value is there, and this is the only reference.
            Value::InKeyspace(held) => unsafe { held.as_mut() },
            Value::New(held) => held,
        }
    }

    /// The settings that hold for this space.
    pub fn settings(&mut self) -> SpaceSettings {
        let name = self.name;
        self.held().settings(name.bytes())
    }

    /// What bounds this space.
    pub fn limits(&mut self) -> Limits {
        self.settings().limits(config::restart_grace_ms())
    }

    /// The number of the rule that holds for this space.
    pub fn rule(&mut self) -> Rule {
        let name = self.name;
        self.held().rule(name.bytes())
    }

    pub fn space(&mut self) -> &mut Space {
        &mut self.held().space
    }

    /// Finds where the search for a user goes on in this space. What it looks at next is on its way from
    /// now on, and one step further if the space was cached.
    pub fn enter(&mut self, lookup: &mut Lookup, user: &[u8], cached: CachedLayout) {
        let held = self.held();
        let was_right = cached.compare(std::ptr::from_ref(held).cast(), &held.space);
        if was_right {
            held.space.follow(lookup, prefetch::prefetch);
        } else {
            held.space.enter(lookup, user, prefetch::prefetch);
        }
    }

    /// Has brought near what the search looks at last, if that has not been done.
    pub fn follow(&mut self, lookup: &mut Lookup) {
        if !lookup.is_followed() {
            self.space().follow(lookup, prefetch::prefetch);
        }
    }

    /// Renews the lease of a live session if the bound that replicas and the AOF know covers it: what a change set
    /// and [`Self::commit`] come to, for less. Returns false, and has done nothing, where it is not so.
    pub fn renew(&mut self, lookup: &Lookup, who: (&str, &str), lease: u64) -> bool {
        let (now, slack) = (self.clock.now(), config::restart_grace_ms());
        if self.owes_grace() {
            return false;
        }
        let renewed = self.space().renew(now, lookup, who, lease, slack);
        let Some(is_resized) = renewed else { return false };
        if is_resized {
            self.held().count();
        }
        stats::RENEWALS.add(1);
        if self.held().may_be_due_before(lease) {
            self.see_to_expiry_queue();
        }
        true
    }

    /// Files the space under what may have become due earlier.
    pub(super) fn see_to_expiry_queue(&mut self) {
        let (db, name) = (self.db, self.name);
        self.held().schedule(db, name.bytes());
        sweep::arm(self.ctx, self.clock.now());
    }
}

/// A space may be new to its database: its owners are those of this database, before anything is done with it.
fn bind_owners(ctx: Context, value: &mut SpaceValue, key: &Opened, name: Arg<'_>, now: u64) {
    if value.space.has_owners() {
        let decides = ctx.is_primary() && !ctx.is_replaying();
        owners::bind(key.db(), name.bytes(), &mut value.space, decides, now);
    }
}

/// A key of our type that is due to be filed anew: it has come by RENAME, MOVE, COPY or RESTORE.
pub fn arrived(ctx: Context, name: Arg<'_>) {
    let mode = raw::REDISMODULE_READ | raw::REDISMODULE_OPEN_KEY_NOTOUCH;
    let Some(key) = Opened::open(ctx, name, mode) else { return };
    let Ok(Some(mut held)) = key.value() else { return };
    // SAFETY: as in `SpaceReadGuard::open`.
    let held = unsafe { held.as_mut() };
    let decides = ctx.is_primary() && !ctx.is_replaying();
    owners::arrived(key.db(), name.bytes(), &mut held.space, decides, ctx.now());
    held.arrived(key.db(), name.bytes());
    space_waits::wake(key.db(), name.bytes());
    sweep::arm(ctx, ctx.now());
}

/// Files the space at an open key, if it is one that the expiry queue lacks. Returns whether it was. Its owners
/// know it from then on in any case.
///
/// # Safety
/// The key is open and has a value, and nothing else refers to the value.
pub unsafe fn repair(key: *mut raw::RedisModuleKey, db: i32, name: &[u8], decides: bool) -> bool {
    // SAFETY: the caller guarantees that the key is open.
    let kind = unsafe { api!(RedisModule_ModuleTypeGetType(key)) };
    if kind != datatype::raw_type() {
        return false;
    }
    // SAFETY: the key is open, and its value is of our type, so it is a `SpaceValue`. The caller
    // guarantees that this is the only reference.
    let held = unsafe { api!(RedisModule_ModuleTypeGetValue(key)).cast::<SpaceValue>().as_mut() };
    let Some(held) = held else { return false };
    let now = server_time();
    owners::arrived(db, name, &mut held.space, decides, now);
    if expiry_queue::has(db, name) {
        return false;
    }
    held.arrived(db, name);
    // Nobody told of its coming, so who waits for it has not been told either.
    space_waits::wake(db, name);
    true
}

//! A space in the keyspace: opened, changed, and its changes handed on.

use crate::server::blocking::blocked_clients;
use crate::server::expiry::expiry_queue;
use crate::server::expiry::sweep;
use crate::server::ffi::args::Arg;
use crate::server::ffi::clock::Clock;
use crate::server::ffi::context::Context;
use crate::server::ffi::error::Error;
use crate::server::ffi::prefetch;
use crate::server::keyspace::datatype;
use crate::server::keyspace::prefetch_cache::CachedLayout;
use crate::server::module::config;
use crate::server::module::stats::{self, Size};
use crate::server::propagate::change_set::{self, ChangeSet};
use crate::server::propagate::propagation_targets;
use presence_core::collections::hash_of;
use presence_core::space::{Lookup, NullSink, Sink, Space};
use redis_module::raw;
use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Later than anything is due.
const NEVER: u64 = u64::MAX;

/// The value of a key: a space and what this process keeps about it.
pub struct SpaceValue {
    pub space: Space,
    seen: Seen,
    /// Under which moment the expiry queue has it; [`NEVER`] where it has not.
    scheduled: u64,
    counted: Size,
    /// When this process got it (unix ms).
    since: u64,
}

// A server may have very many of these, each an allocation: this is the size of a class.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<SpaceValue>() == 96);

/// How often this server has begun or ceased to decide. Only the server's main thread writes these
/// three; they are looked at in each call, and a thread's own are not found as quickly.
static GENERATION: AtomicU32 = AtomicU32::new(0);
/// The generation in which this server began to decide last.
static DECIDES_SINCE: AtomicU32 = AtomicU32::new(0);
/// Until when the grace of this generation lasts; 0 where there is none.
static GRACE_UNTIL: AtomicU64 = AtomicU64::new(0);

/// The generation in which a space was made or looked at last, and in the lowest bits what it has
/// still to do: to tell replicas of a grace, to begin a new line of history with its next event.
#[derive(Clone, Copy)]
struct Seen(u32);

impl Seen {
    const UNTOLD: u32 = 1;
    const LINE_DUE: u32 = 2;
    const FLAGS: u32 = 2;

    fn now(flags: u32) -> Self {
        Seen(GENERATION.load(Relaxed) << Self::FLAGS | flags)
    }

    fn generation(self) -> u32 {
        self.0 >> Self::FLAGS
    }

    fn is_last(self) -> bool {
        self.generation() == Self::now(0).generation()
    }

    /// The end of a grace that replicas have not been told of yet; 0 is none.
    fn untold(self) -> u64 {
        if self.is_last() && self.0 & Self::UNTOLD != 0 {
            GRACE_UNTIL.load(Relaxed)
        } else {
            0
        }
    }

    fn tell(&mut self) {
        self.0 &= !Self::UNTOLD;
    }

    /// Whether this server has begun to decide since the last event: the server before it may have
    /// given out ids after that which are not known here.
    fn is_line_due(self) -> bool {
        self.0 & Self::LINE_DUE != 0 || self.generation() < DECIDES_SINCE.load(Relaxed)
    }

    fn set_line_due(&mut self, due: bool) {
        self.0 = self.0 & !Self::LINE_DUE | if due { Self::LINE_DUE } else { 0 };
    }
}

/// This server has just begun to decide: a dataset was loaded, or it was promoted. Every session
/// that is there gets a lease until at least `grace_until`, because nobody could renew before, and
/// the next event of every space begins a new line of history. The spaces take that in one by one,
/// each before anything else is done with it.
pub fn begin_to_decide(grace_until: u64) {
    GRACE_UNTIL.store(grace_until, Relaxed);
    DECIDES_SINCE.store(GENERATION.fetch_add(1, Relaxed) + 1, Relaxed);
}

/// This server decides no longer: a space that has not taken the grace in yet must not do so by
/// itself.
pub fn withdraw_grace() {
    GRACE_UNTIL.store(0, Relaxed);
    GENERATION.fetch_add(1, Relaxed);
}

/// Unix time (ms).
pub fn server_time() -> u64 {
    // SAFETY: takes nothing, and may be called at any time.
    u64::try_from(unsafe { api!(RedisModule_Milliseconds()) }).unwrap_or(0)
}

impl SpaceValue {
    pub fn new(space: Space) -> Self {
        stats::space_came();
        let mut held = SpaceValue {
            space,
            seen: Seen::now(0),
            scheduled: NEVER,
            counted: Size::default(),
            since: server_time(),
        };
        held.count();
        held
    }

    /// Another key's value that is the same.
    pub fn copied(&self) -> Self {
        let mut copy = SpaceValue::new(self.space.clone());
        copy.seen = self.seen;
        copy
    }

    /// Takes in a grace that was granted since the last look.
    fn catch_up(&mut self) {
        if !self.seen.is_last() {
            let until = GRACE_UNTIL.load(Relaxed);
            if until > 0 {
                self.space.grant_grace(until, &mut NullSink);
            }
            let is_line_due = self.seen.is_line_due();
            self.seen = Seen::now(if until > 0 { Seen::UNTOLD } else { 0 });
            self.seen.set_line_due(is_line_due);
        }
    }

    /// Whether the next event begins a new line of history.
    pub fn is_line_due(&self) -> bool {
        self.seen.is_line_due()
    }

    /// Sets that; a space that is made or restored begins none by itself.
    pub fn set_line_due(&mut self) {
        self.seen.set_line_due(true);
    }

    /// Bytes of memory, in constant time.
    pub fn bytes(&self) -> usize {
        size_of::<SpaceValue>() + self.space.heap_bytes()
    }

    /// Brings the totals up to date with this space.
    fn count(&mut self) {
        let (users, sessions) = self.space.stored();
        let size = Size::new(users, sessions, self.bytes());
        stats::resized(self.counted, size);
        self.counted = size;
    }

    /// Files the space in the expiry queue where it is due earlier than the expiry queue knows.
    pub fn schedule(&mut self, db: i32, name: &[u8]) {
        let due = self.space.next_due(config::retention());
        if due < self.scheduled {
            self.schedule_at(db, name, due);
        }
    }

    /// Whether the expiry queue must be told of a lease that ends at this moment.
    fn may_be_due_before(&self, lease: u64) -> bool {
        lease < self.scheduled
    }

    fn schedule_at(&mut self, db: i32, name: &[u8], due: u64) {
        expiry_queue::schedule(db, name, due);
        self.scheduled = due;
    }

    /// The key has come under this name in another way than by a command of ours.
    pub fn arrived(&mut self, db: i32, name: &[u8]) {
        self.scheduled = NEVER;
        self.schedule(db, name);
    }
}

impl Drop for SpaceValue {
    /// May run in a thread of the server that frees in the background: touches atomics only.
    fn drop(&mut self) {
        stats::space_went();
        stats::resized(self.counted, Size::default());
    }
}

/// An open key.
struct Opened(NonNull<raw::RedisModuleKey>);

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
    _key: Opened,
}

impl SpaceReadGuard {
    pub fn open(ctx: Context, name: Arg<'_>, clock: &Clock) -> Result<Option<Self>, Error> {
        let Some(key) = Opened::open(ctx, name, raw::REDISMODULE_READ) else { return Ok(None) };
        let Some(mut held) = key.value()? else { return Ok(None) };
        // SAFETY: nothing else refers to the value: commands run one at a time, and each opens
        // its key once.
        let value = unsafe { held.as_mut() };
        value.catch_up();
        let now = clock.now();
        // A closed space whose time is over is not there, whether or not a sweep has seen to it.
        let is_over = value.space.is_closed() && value.space.is_over(now);
        if value.space.advance(now) {
            value.count();
        }
        Ok((!is_over).then_some(SpaceReadGuard { held, _key: key }))
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
enum Value {
    InKeyspace(NonNull<SpaceValue>),
    /// Not a key yet.
    New(Box<SpaceValue>),
}

/// A space that is open to be changed.
pub struct SpaceWriteGuard<'a> {
    ctx: Context,
    name: Arg<'a>,
    db: i32,
    clock: &'a Clock,
    value: Value,
    key: Opened,
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
        unsafe { held.as_mut() }.catch_up();
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

    fn held(&mut self) -> &mut SpaceValue {
        match &mut self.value {
            // SAFETY: the key is open, so its value is there, and this is the only reference.
            Value::InKeyspace(held) => unsafe { held.as_mut() },
            Value::New(held) => held,
        }
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

    /// Renews the lease of a live session where nobody has to be told: what a change set and
    /// [`Self::commit`] come to, for less. Returns false, and has done nothing, where it is not so.
    pub fn renew(&mut self, lookup: &Lookup, who: (&str, &str), lease: u64) -> bool {
        let now = self.clock.now();
        if !propagation_targets::are_none() || self.owes_grace() {
            return false;
        }
        let Some(is_resized) = self.space().renew(now, lookup, who, lease) else { return false };
        if is_resized {
            self.held().count();
        }
        stats::RENEWALS.add(1);
        self.ctx.replicate_verbatim();
        if self.held().may_be_due_before(lease) {
            self.see_to_expiry_queue();
        }
        true
    }

    /// Files the space under what may have become due earlier.
    fn see_to_expiry_queue(&mut self) {
        let (db, name) = (self.db, self.name);
        self.held().schedule(db, name.bytes());
        sweep::arm(self.ctx, self.clock.now());
    }

    /// The change set for what is decided now. It begins with what others must know before that.
    pub fn change_set(&mut self) -> ChangeSet<'a> {
        let held_for = self.clock.now().saturating_sub(self.held().since);
        let mut change_set = ChangeSet::new(self.ctx, self.name, config::retention(), held_for);
        if let Value::New(held) = &self.value {
            held.space.announce(&mut change_set);
        }
        let until = self.held().seen.untold();
        if until > 0 {
            change_set.effect(&presence_core::space::Effect::Grace { until });
        }
        change_set.end_preface();
        if self.held().is_line_due() {
            change_set.set_new_line(self.epoch_of_new_line());
        }
        change_set
    }

    /// The epoch of a new line of history.
    fn epoch_of_new_line(&mut self) -> u64 {
        let (db, name, now) = (self.db, self.name, self.clock.now());
        let epoch = expiry_queue::new_epoch(db, name.bytes(), now);
        let (last, _) = self.space().last_id();
        if epoch > last {
            return epoch;
        }
        // The last one is ahead of the clock. Two servers may go on from it, one after the other,
        // and what the first one published may be lost: the second must not use the same epoch.
        const SPREAD: u64 = 256;
        let epoch = last.saturating_add(1 + hash_of(&server_time().to_le_bytes()) % SPREAD);
        expiry_queue::epoch_given(epoch);
        epoch
    }

    /// Whoever decides says that a new line of history is due here.
    pub fn set_line_due(&mut self) {
        self.held().set_line_due();
    }

    /// Hands on what has happened: makes the space a key where it was none; tells replicas and
    /// the AOF, then subscribers; sees to the expiry queue, INFO, WATCH. A key that has nothing left to
    /// keep goes.
    pub fn commit(mut self, change_set: &mut ChangeSet<'_>) {
        if self.propagate(change_set) && !change_set.is_replaying() {
            self.delete_if_spent();
        }
    }

    /// Everything of [`Self::commit`] but the deletion: for who goes on changing the space.
    /// Returns whether more than leases has changed.
    pub fn propagate(&mut self, change_set: &mut ChangeSet<'_>) -> bool {
        if change_set.is_empty() && !change_set.is_replaying() {
            return false;
        }
        self.store();
        self.stay_within_memory(change_set);
        if change_set.is_replaying() || (change_set.is_renewal() && change_set.is_unheard()) {
            self.ctx.replicate_verbatim();
        } else if change_set.has_effects() {
            self.held().seen.tell();
            self.ctx.replicate(change_set::APPLY, self.name, change_set.batch());
        }
        change_set.publish();
        let changed = change_set.has_events() || change_set.is_replaying();
        let (db, name) = (self.db, self.name);
        self.held().count();
        if change_set.has_events() {
            // It has begun its new line, if one was due, or whoever decides has not asked for it.
            self.held().seen.set_line_due(false);
            self.ctx.signal_modified(name);
            blocked_clients::wake(db, name.bytes());
        }
        if !change_set.is_renewal() || self.held().may_be_due_before(change_set.earliest_lease()) {
            self.see_to_expiry_queue();
        }
        changed
    }

    /// While the server is out of memory, a space takes no more of it than before, unless the call
    /// asked and was let in. What ends sessions or changes their metadata makes events; older ones
    /// go for them.
    fn stay_within_memory(&mut self, change_set: &mut ChangeSet<'_>) {
        if change_set.is_replaying() || change_set.may_grow() || !change_set.has_events() {
            return;
        }
        let before = self.held().counted.bytes();
        if self.held().bytes() > before && !self.ctx.has_memory(self.name) {
            let without_space = self.held().bytes() - self.space().heap_bytes();
            self.space().trim_to_bytes(before.saturating_sub(without_space), change_set);
        }
    }

    /// Makes a new space the value of its key.
    fn store(&mut self) {
        if !self.is_new() {
            return;
        }
        let placeholder = Value::InKeyspace(NonNull::dangling());
        if let Value::New(held) = std::mem::replace(&mut self.value, placeholder) {
            let held = NonNull::from(Box::leak(held));
            // SAFETY: the key is open for writing and empty; the server owns the value from now
            // on and frees it with `datatype::free`.
            unsafe {
                api!(RedisModule_ModuleTypeSetValue(
                    self.key.0.as_ptr(),
                    datatype::raw_type(),
                    held.as_ptr().cast()
                ))
            };
            self.value = Value::InKeyspace(held);
        }
    }

    /// Deletes the key where nobody is there and nothing is kept.
    pub fn delete_if_spent(mut self) {
        let now = self.clock.now();
        if !self.is_new() && self.space().is_spent(now, config::retention()) {
            self.delete();
        }
    }

    /// Deletes the key, here and on replicas, and says so as UNLINK does.
    pub fn delete(self) {
        let (ctx, name) = (self.ctx, self.name);
        // SAFETY: the key is open for writing; its value is not used any more.
        unsafe { api!(RedisModule_UnlinkKey(self.key.0.as_ptr())) };
        drop(self);
        ctx.replicate_deletion(name);
    }

    /// Files the space in the expiry queue under the moment at which it is next due, or at `due`.
    pub fn reschedule(&mut self, due: Option<u64>) {
        let (db, name) = (self.db, self.name);
        let held = self.held();
        // Whoever works on a space by the timer may have changed its size without an effect.
        held.count();
        let due = due.unwrap_or_else(|| held.space.next_due(config::retention()));
        held.schedule_at(db, name.bytes(), due);
    }

    /// Whether replicas have still to be told of a grace.
    pub fn owes_grace(&mut self) -> bool {
        self.held().seen.untold() > 0
    }
}

/// A key of our type that is due to be filed anew: it has come by RENAME, MOVE, COPY or RESTORE.
pub fn arrived(ctx: Context, name: Arg<'_>) {
    let mode = raw::REDISMODULE_READ | raw::REDISMODULE_OPEN_KEY_NOTOUCH;
    let Some(key) = Opened::open(ctx, name, mode) else { return };
    let Ok(Some(mut held)) = key.value() else { return };
    // SAFETY: as in `SpaceReadGuard::open`.
    unsafe { held.as_mut() }.arrived(key.db(), name.bytes());
    blocked_clients::wake(key.db(), name.bytes());
    sweep::arm(ctx, ctx.now());
}

/// Files the space at an open key, if it is one that the expiry queue lacks. Returns whether it was.
///
/// # Safety
/// The key is open and has a value, and nothing else refers to the value.
pub unsafe fn repair(key: *mut raw::RedisModuleKey, db: i32, name: &[u8]) -> bool {
    // SAFETY: the caller guarantees that the key is open.
    let kind = unsafe { api!(RedisModule_ModuleTypeGetType(key)) };
    if kind != datatype::raw_type() || expiry_queue::has(db, name) {
        return false;
    }
    // SAFETY: the key is open, and its value is of our type, so it is a `SpaceValue`. The caller
    // guarantees that this is the only reference.
    let held = unsafe { api!(RedisModule_ModuleTypeGetValue(key)).cast::<SpaceValue>().as_mut() };
    let Some(held) = held else { return false };
    held.arrived(db, name);
    // Nobody told of its coming, so who waits for it has not been told either.
    blocked_clients::wake(db, name);
    true
}

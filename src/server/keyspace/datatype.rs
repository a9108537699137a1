//! The space as a value of the server: saved, loaded, copied, measured, freed.

use crate::server::blocking::space_waits;
use crate::server::expiry::expiry_queue;
use crate::server::expiry::owners;
use crate::server::ffi::args::Arg;
use crate::server::ffi::clock::server_time;
use crate::server::ffi::context::Context;
use crate::server::keyspace::aux_data;
use crate::server::keyspace::key_moves;
use crate::server::keyspace::space_value::SpaceValue;
use crate::server::propagate::change_set;
use presence_core::codec;
use presence_core::space::{Effect, MAX_ID_NUMBER, Space};
use redis_module::raw;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

/// What `TYPE` answers; nine characters, as the server demands.
const TYPE_NAME: &CStr = c"presence1";

/// The version of the layout below, not of the effects in it, which have their own.
///
/// A space is saved as strings, each a batch of effects, ended by an empty one.
const ENCODING: c_int = 1;

/// The greatest epoch and seq that RESTORE takes. Half of all that there are: what comes after them,
/// in this space and others of its name, is then never beyond what can be loaded.
const MAX_RESTORED: u64 = MAX_ID_NUMBER / 2;

/// A batch is closed when it has grown to this. So a snapshot needs little memory beside the
/// space, whatever the space's size.
const BATCH_BYTES: usize = 32 << 10;

static TYPE: AtomicPtr<raw::RedisModuleType> = AtomicPtr::new(std::ptr::null_mut());

pub fn raw_type() -> *mut raw::RedisModuleType {
    TYPE.load(Relaxed)
}

pub fn register(ctx: Context) -> bool {
    // SAFETY: all zeroes is a valid value: no callbacks.
    let mut methods: raw::RedisModuleTypeMethods = unsafe { std::mem::zeroed() };
    methods.version = 5;
    methods.rdb_load = Some(rdb_load);
    methods.rdb_save = Some(rdb_save);
    methods.aof_rewrite = Some(aof_rewrite);
    methods.digest = Some(digest);
    methods.free = Some(free);
    methods.mem_usage2 = Some(mem_usage);
    methods.free_effort2 = Some(free_effort);
    methods.unlink2 = Some(unlink);
    methods.copy2 = Some(copy);
    aux_data::add_methods(&mut methods);
    // SAFETY: called while the module loads; the server copies the methods.
    let made = unsafe {
        api!(RedisModule_CreateDataType(ctx.raw(), TYPE_NAME.as_ptr(), ENCODING, &mut methods))
    };
    TYPE.store(made, Relaxed);
    !made.is_null()
}

/// # Safety
/// `value` is a value of our type that lives, unchanged, as long as the reference is used.
unsafe fn value_of<'a>(value: *const c_void) -> &'a SpaceValue {
    // SAFETY: a value of our type is a pointer to a `SpaceValue`, made by a box. The caller
    // guarantees that it lives and does not change.
    unsafe { &*value.cast::<SpaceValue>() }
}

/// Batches of effects that make up a space, each given to `take`.
fn batches(held: &SpaceValue, mut take: impl FnMut(&[u8])) {
    let mut batch = Vec::with_capacity(BATCH_BYTES + 1024);
    codec::begin(&mut batch);
    held.space.dump(|effect| {
        codec::encode(&mut batch, effect);
        if batch.len() >= BATCH_BYTES {
            take(&batch);
            codec::begin(&mut batch);
        }
    });
    if held.is_line_due() {
        codec::encode(&mut batch, &Effect::LineDue);
    }
    if batch.len() > 1 {
        take(&batch);
    }
}

unsafe extern "C" fn rdb_save(io: *mut raw::RedisModuleIO, value: *mut c_void) {
    let save = |bytes: &[u8]| {
        // SAFETY: a buffer with its length. Errors of the file are the server's to notice.
        unsafe { api!(RedisModule_SaveStringBuffer(io, bytes.as_ptr().cast(), bytes.len())) }
    };
    // SAFETY: the server saves a value of our type, which does not change meanwhile.
    batches(unsafe { value_of(value) }, save);
    save(&[]);
}

unsafe extern "C" fn rdb_load(io: *mut raw::RedisModuleIO, encoding: c_int) -> *mut c_void {
    let loading = raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING;
    // SAFETY: without a context, the function returns the flags that belong to the server.
    let flags = unsafe { api!(RedisModule_GetContextFlags(std::ptr::null_mut())) as u32 };
    // Not from a file or a primary.
    let is_restore = flags & loading == 0 && !expiry_queue::is_loading_aside();
    let is_own = is_restore && flags & raw::REDISMODULE_CTX_FLAGS_MASTER != 0;
    // SAFETY: the server passed `io` to this callback.
    match unsafe { load(io, encoding, is_restore, is_own) } {
        Ok(held) => {
            let mut held = Box::new(held);
            if !is_restore {
                expiry_queue::epoch_given(held.space.last_id().0);
            }
            // SAFETY: `io` is that of this callback.
            let name = unsafe { api!(RedisModule_GetKeyNameFromIO(io)) };
            if !name.is_null() {
                // SAFETY: `io` is that of this callback.
                let db = unsafe { api!(RedisModule_GetDbIdFromIO(io)) };
                // SAFETY: `io` refers to a string of the server, which lives as long as `io`.
                let name = unsafe { Arg::from_raw(name.cast_mut()) }.bytes();
                let due = held.next_due(name);
                expiry_queue::loading(db, name, due);
                if !is_restore {
                    owners::bind_loading(db, name, &mut held.space, server_time());
                }
                if is_restore {
                    key_moves::expect(db, name);
                }
            }
            Box::into_raw(held).cast()
        }
        Err(why) => {
            let text: Vec<u8> = why.bytes().chain([0]).collect();
            // SAFETY: the format has one `%s`, and the text for it ends with NUL.
            unsafe {
                api!(RedisModule_LogIOError(
                    io,
                    c"warning".as_ptr(),
                    c"presence: cannot load a space: %s".as_ptr(),
                    text.as_ptr().cast::<c_char>()
                ));
            }
            std::ptr::null_mut()
        }
    }
}

/// `is_own`: this server decides what happens in the space from now on. It takes the leases as they are; others take
/// the bounds.
///
/// # Safety
/// `io` is what the server passed to `rdb_load`.
unsafe fn load(
    io: *mut raw::RedisModuleIO,
    encoding: c_int,
    is_restore: bool,
    is_own: bool,
) -> Result<SpaceValue, &'static str> {
    if encoding != ENCODING {
        return Err("its layout is of an unknown version of the module");
    }
    let mut space = Space::new(0);
    let (mut begun, mut is_line_due) = (false, false);
    loop {
        let mut length = 0;
        // SAFETY: the caller guarantees that `io` is that of the callback.
        let buffer = unsafe { api!(RedisModule_LoadStringBuffer(io, &mut length)) };
        // SAFETY: `io` is valid, as above.
        if buffer.is_null() || unsafe { api!(RedisModule_IsIOError(io)) } != 0 {
            if !buffer.is_null() {
                // SAFETY: the server allocated the buffer for this code to free. Nothing refers to it.
                unsafe { api!(RedisModule_Free(buffer.cast())) };
            }
            return Err("its data end too early");
        }
        // SAFETY: the buffer is not null and has `length` bytes. It is freed after the last use of
        // `batch`.
        let batch = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), length) };
        let restored = if batch.is_empty() {
            Ok(false)
        } else {
            restore(&mut space, batch, &mut begun, is_own)
        };
        let is_end = batch.is_empty();
        // SAFETY: the server allocated the buffer for this code to free, once. `batch` is not used
        // any more.
        unsafe { api!(RedisModule_Free(buffer.cast())) };
        is_line_due |= restored?;
        if !is_end {
            continue;
        }
        match (begun, space.end_restore()) {
            (true, true) => {}
            (true, false) => return Err("its last event is missing"),
            (false, _) => return Err("it has no beginning"),
        }
        if !space.owners_are_unique() {
            return Err("an owner is there twice");
        }
        let (epoch, seq) = space.last_id();
        if is_restore && epoch.max(seq) > MAX_RESTORED {
            return Err("an epoch or seq is out of range");
        }
        let mut held = SpaceValue::new(space);
        if is_line_due {
            held.set_line_due();
        }
        return Ok(held);
    }
}

/// Returns whether the snapshot says that a new line of history is due.
fn restore(
    space: &mut Space,
    batch: &[u8],
    begun: &mut bool,
    is_own: bool,
) -> Result<bool, &'static str> {
    let mut is_line_due = false;
    for effect in codec::decode(batch) {
        let effect = effect.map_err(|error| error.message())?;
        let begins = matches!(effect, Effect::Begin { .. });
        if begins == *begun {
            return Err("it has not one beginning");
        }
        *begun = true;
        is_line_due |= effect == Effect::LineDue;
        let restored = if is_own { space.restore_own(&effect) } else { space.restore(&effect) };
        restored.map_err(|error| error.0)?;
    }
    Ok(is_line_due)
}

unsafe extern "C" fn aof_rewrite(
    io: *mut raw::RedisModuleIO,
    key: *mut raw::RedisModuleString,
    value: *mut c_void,
) {
    // SAFETY: the server rewrites a value of our type, which does not change meanwhile.
    let held = unsafe { value_of(value) };
    batches(held, |batch| {
        // SAFETY: the format names a string of the server and a buffer with its length.
        unsafe {
            api!(RedisModule_EmitAOF(
                io,
                change_set::APPLY.as_ptr(),
                c"sb".as_ptr(),
                key,
                batch.as_ptr(),
                batch.len()
            ));
        }
    });
}

/// Equal for spaces of equal content, in whatever order they hold it. Leases are left out: replicas know bounds.
unsafe extern "C" fn digest(digest: *mut raw::RedisModuleDigest, value: *mut c_void) {
    let mut bytes = Vec::new();
    // SAFETY: the server passes a value of our type, which does not change meanwhile.
    let held = unsafe { value_of(value) };
    held.space.dump_for_digest(|effect| {
        bytes.clear();
        codec::encode(&mut bytes, &effect.without_lease());
        // SAFETY: a buffer with its length.
        unsafe {
            api!(RedisModule_DigestAddStringBuffer(digest, bytes.as_ptr().cast(), bytes.len()));
            api!(RedisModule_DigestEndSequence(digest));
        }
    });
}

/// May be called in a thread that frees in the background.
unsafe extern "C" fn free(value: *mut c_void) {
    // SAFETY: a value of our type comes from a box. The server owns it, and frees it once.
    drop(unsafe { Box::from_raw(value.cast::<SpaceValue>()) });
}

unsafe extern "C" fn mem_usage(
    _: *mut raw::RedisModuleKeyOptCtx,
    value: *const c_void,
    _samples: usize,
) -> usize {
    // SAFETY: the server passes a value of our type, which does not change meanwhile.
    unsafe { value_of(value) }.bytes()
}

/// How many allocations it takes to free: above 64 the server does it in the background.
unsafe extern "C" fn free_effort(_: *mut raw::RedisModuleKeyOptCtx, value: *const c_void) -> usize {
    // SAFETY: the server passes a value of our type, which does not change meanwhile.
    let space = &unsafe { value_of(value) }.space;
    let (_, sessions) = space.stored();
    // 0 would mean that the effort is not worth knowing and always left to the background.
    1 + sessions + space.stored_seen() + space.history().map_or(0, |history| history.len())
}

/// The key is no longer in the keyspace under this name: deleted, expired, evicted, renamed,
/// overwritten.
unsafe extern "C" fn unlink(ctx: *mut raw::RedisModuleKeyOptCtx, value: *const c_void) {
    // SAFETY: the server passes the context of this callback.
    let name = unsafe { api!(RedisModule_GetKeyNameFromOptCtx(ctx)) };
    if name.is_null() {
        return;
    }
    // SAFETY: a string of the server that lives through this callback.
    let name = unsafe { Arg::from_raw(name.cast_mut()) }.bytes();
    // SAFETY: the context is that of this callback.
    let db = unsafe { api!(RedisModule_GetDbIdFromOptCtx(ctx)) };
    expiry_queue::forget(db, name);
    space_waits::wake(db, name);
    key_moves::left(db, name);
    // SAFETY: the server passes a value of our type, which lives until after this callback.
    let held = unsafe { value_of(value) };
    // It may only have been renamed.
    held.left_name();
    owners::left(db, name, &held.space);
    let (epoch, _) = held.space.last_id();
    // Inside a transaction or script, a new space can begin at the moment at which that began.
    let now = crate::server::ffi::clock::earliest();
    expiry_queue::epoch_ended(db, name, epoch, now);
}

unsafe extern "C" fn copy(
    ctx: *mut raw::RedisModuleKeyOptCtx,
    value: *const c_void,
) -> *mut c_void {
    // SAFETY: the server passes the context of this callback.
    let name = unsafe { api!(RedisModule_GetToKeyNameFromOptCtx(ctx)) };
    if !name.is_null() {
        // SAFETY: the context is that of this callback.
        let db = unsafe { api!(RedisModule_GetToDbIdFromOptCtx(ctx)) };
        // SAFETY: a string of the server that lives through this callback.
        let name = unsafe { Arg::from_raw(name.cast_mut()) }.bytes();
        key_moves::expect(db, name);
    }
    // SAFETY: the server passes a value of our type, which does not change meanwhile.
    let held = unsafe { value_of(value) };
    Box::into_raw(Box::new(held.copied())).cast()
}

//! What is saved in an RDB beside the keys: the owners of each database, and the latest epoch that was given to a
//! space. It stands before the keys.
//!
//! Layout: the version, the epoch, then for each database with owners its number and batches of their effects,
//! ended by an empty one; -1 ends the list. What others were told of a lease is saved with it, because whoever
//! loads this as a replica is told of no renewal within that.
//!
//! From Redis 7.2 on and in Valkey, nothing is written where there is nothing to say, so that a server without the
//! module can load the file. Redis 7.0 writes that the module was there.

use crate::server::expiry::{expiry_queue, owners};
use crate::server::ffi::clock::server_time;
use crate::server::module::stats;
use presence_core::codec;
use presence_core::space::MAX_ID_NUMBER;
use redis_module::raw;
use std::ffi::{c_char, c_int};

const VERSION: u64 = 1;

/// A batch is closed when it has grown to this.
const BATCH_BYTES: usize = 32 << 10;

/// An epoch that is further back than this (ms) is of no use, unless the clock is set back by more.
const EPOCH_MATTERS_MS: u64 = 24 * 60 * 60 * 1000;

/// Adds the callbacks to those of the data type.
pub fn add_methods(methods: &mut raw::RedisModuleTypeMethods) {
    methods.aux_load = Some(aux_load);
    methods.aux_save = Some(aux_save_always);
    methods.aux_save2 = Some(aux_save);
    methods.aux_save_triggers = raw::REDISMODULE_AUX_BEFORE_RDB as c_int;
}

/// For servers that save the module's mark in any case.
unsafe extern "C" fn aux_save_always(io: *mut raw::RedisModuleIO, _when: c_int) {
    // SAFETY: the server passed `io` to this callback.
    unsafe { save(io, expiry_queue::latest_epoch()) };
}

unsafe extern "C" fn aux_save(io: *mut raw::RedisModuleIO, _when: c_int) {
    let epoch = expiry_queue::latest_epoch();
    let (spaces, ..) = stats::totals();
    let epoch_matters =
        epoch > 0 && (spaces > 0 || epoch.saturating_add(EPOCH_MATTERS_MS) > server_time());
    let (owners, _) = owners::size();
    if epoch_matters || owners > 0 {
        // SAFETY: the server passed `io` to this callback.
        unsafe { save(io, epoch) };
    }
}

/// # Safety
/// `io` is what the server passed to a callback that saves.
unsafe fn save(io: *mut raw::RedisModuleIO, epoch: u64) {
    let save_string = |bytes: &[u8]| {
        // SAFETY: a buffer with its length; the caller guarantees `io`. Errors of the file are the server's to
        // notice.
        unsafe { api!(RedisModule_SaveStringBuffer(io, bytes.as_ptr().cast(), bytes.len())) }
    };
    // SAFETY: the caller guarantees `io`.
    let save_signed = |value: i64| unsafe { api!(RedisModule_SaveSigned(io, value)) };
    // SAFETY: as above.
    let save_unsigned = |value: u64| unsafe { api!(RedisModule_SaveUnsigned(io, value)) };
    save_unsigned(VERSION);
    save_unsigned(epoch);
    for db in owners::dbs() {
        let mut batches = Vec::new();
        let mut batch = Vec::new();
        codec::begin(&mut batch);
        owners::with(db, |owners| {
            owners.dump(|effect| {
                codec::encode_owner(&mut batch, effect);
                if batch.len() >= BATCH_BYTES {
                    batches.push(std::mem::take(&mut batch));
                    codec::begin(&mut batch);
                }
            });
        });
        if batch.len() > 1 {
            batches.push(batch);
        }
        if !batches.is_empty() {
            save_signed(i64::from(db));
            batches.iter().for_each(|batch| save_string(batch));
            save_string(&[]);
        }
    }
    save_signed(-1);
}

unsafe extern "C" fn aux_load(
    io: *mut raw::RedisModuleIO,
    _encoding: c_int,
    _when: c_int,
) -> c_int {
    // SAFETY: the server passed `io` to this callback.
    let Err(why) = (unsafe { load(io) }) else { return raw::REDISMODULE_OK as c_int };
    let text: Vec<u8> = why.bytes().chain([0]).collect();
    // SAFETY: the format has one `%s`, and the text for it ends with NUL.
    unsafe {
        api!(RedisModule_LogIOError(
            io,
            c"warning".as_ptr(),
            c"presence: cannot load the owners: %s".as_ptr(),
            text.as_ptr().cast::<c_char>()
        ));
    }
    raw::REDISMODULE_ERR as c_int
}

const TOO_SHORT: &str = "their data end too early";

/// # Safety
/// `io` is what the server passed to `aux_load`.
unsafe fn load(io: *mut raw::RedisModuleIO) -> Result<(), &'static str> {
    // SAFETY: the caller guarantees `io`.
    let is_error = || unsafe { api!(RedisModule_IsIOError(io)) } != 0;
    let unsigned = || {
        // SAFETY: as above.
        let value = unsafe { api!(RedisModule_LoadUnsigned(io)) };
        if is_error() { Err(TOO_SHORT) } else { Ok(value) }
    };
    if unsigned()? != VERSION {
        return Err("their layout is of an unknown version of the module");
    }
    expiry_queue::epoch_loaded(unsigned()?.min(MAX_ID_NUMBER - 1));
    loop {
        // SAFETY: as above.
        let db = unsafe { api!(RedisModule_LoadSigned(io)) };
        if is_error() {
            return Err(TOO_SHORT);
        }
        if db == -1 {
            return Ok(());
        }
        let db = i32::try_from(db).ok().filter(|db| *db >= 0);
        let db = db.ok_or("a database has a number out of range")?;
        // SAFETY: as above.
        while unsafe { load_batch(io, db) }? {}
    }
}

/// Loads one batch. Returns whether there may be another one.
///
/// # Safety
/// `io` is what the server passed to `aux_load`.
unsafe fn load_batch(io: *mut raw::RedisModuleIO, db: i32) -> Result<bool, &'static str> {
    let mut length = 0;
    // SAFETY: the caller guarantees that `io` is that of the callback.
    let buffer = unsafe { api!(RedisModule_LoadStringBuffer(io, &mut length)) };
    // SAFETY: as above.
    let is_error = unsafe { api!(RedisModule_IsIOError(io)) } != 0;
    if buffer.is_null() {
        return Err(TOO_SHORT);
    }
    let loaded = if is_error {
        Err(TOO_SHORT)
    } else {
        // SAFETY: the buffer is not null and has `length` bytes. It is freed after the last use of `batch`.
        let batch = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), length) };
        apply(db, batch)
    };
    // SAFETY: the server allocated the buffer for this code to free, once. Nothing refers to it any more.
    unsafe { api!(RedisModule_Free(buffer.cast())) };
    loaded
}

fn apply(db: i32, batch: &[u8]) -> Result<bool, &'static str> {
    if batch.is_empty() {
        return Ok(false);
    }
    let now = server_time();
    owners::with_loading(db, |owners| {
        for effect in codec::decode_owners(batch) {
            owners.apply(&effect.map_err(|error| error.message())?, now);
        }
        Ok(true)
    })
}

//! The floor of the benchmark: a module command that takes any arguments and does nothing.
//!
//! Whatever a command of a module does, it cannot cost less than this one: reading the request,
//! finding the command, checking its key, calling into the module, replying an integer. Loaded by
//! the benchmark only.
//!
//! It is written against the server's C interface directly, without a crate in between, so that
//! nothing of the floor is somebody's convenience.

use std::ffi::{c_char, c_int, c_longlong, c_void};
use std::sync::OnceLock;

type ReplyWithLongLong = unsafe extern "C" fn(*mut c_void, c_longlong) -> c_int;
type Handler = unsafe extern "C" fn(*mut c_void, *mut *mut c_void, c_int) -> c_int;
type CreateCommand = unsafe extern "C" fn(
    *mut c_void,
    *const c_char,
    Handler,
    *const c_char,
    c_int,
    c_int,
    c_int,
) -> c_int;
type SetModuleAttribs = unsafe extern "C" fn(*mut c_void, *const c_char, c_int, c_int);
type GetApi = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;

const OK: c_int = 0;
const ERR: c_int = 1;
const API_VERSION: c_int = 1;

static REPLY_WITH_LONG_LONG: OnceLock<ReplyWithLongLong> = OnceLock::new();

/// The command: replies 0, as a heartbeat of a known session does.
unsafe extern "C" fn nothing(ctx: *mut c_void, _argv: *mut *mut c_void, _argc: c_int) -> c_int {
    match REPLY_WITH_LONG_LONG.get() {
        // SAFETY: the function is the server's own, the context that of this call.
        Some(reply) => unsafe { reply(ctx, 0) },
        None => ERR,
    }
}

/// One function of the server by its name.
///
/// # Safety
/// `ctx` is the context of a module that is being loaded, and `T` the type of that function.
unsafe fn function<T: Copy>(ctx: *mut c_void, name: &std::ffi::CStr) -> Option<T> {
    assert!(size_of::<T>() == size_of::<*mut c_void>());
    // SAFETY: a context begins with the pointer to the function that finds functions.
    let get_api: GetApi = unsafe { *ctx.cast() };
    let mut found: *mut c_void = std::ptr::null_mut();
    // SAFETY: it writes one pointer, and only where it knows the name.
    let known = unsafe { get_api(name.as_ptr(), &raw mut found) } == OK && !found.is_null();
    // SAFETY: `T` is a pointer to a function, as the caller promises.
    known.then(|| unsafe { std::mem::transmute_copy(&found) })
}

/// Called by the server when it loads the module.
///
/// # Safety
/// Only the server calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RedisModule_OnLoad(
    ctx: *mut c_void,
    _argv: *mut *mut c_void,
    _argc: c_int,
) -> c_int {
    // SAFETY: the types are those of redismodule.h.
    let (attribs, create, reply) = unsafe {
        (
            function::<SetModuleAttribs>(ctx, c"RedisModule_SetModuleAttribs"),
            function::<CreateCommand>(ctx, c"RedisModule_CreateCommand"),
            function::<ReplyWithLongLong>(ctx, c"RedisModule_ReplyWithLongLong"),
        )
    };
    let (Some(attribs), Some(create), Some(reply)) = (attribs, create, reply) else { return ERR };
    if REPLY_WITH_LONG_LONG.set(reply).is_err() {
        return ERR;
    }
    // SAFETY: as above. The name of the command is as long as PRESENCE.ONLINE, its flags and its
    // key are those of a heartbeat.
    unsafe {
        attribs(ctx, c"presence-floor".as_ptr(), 1, API_VERSION);
        create(ctx, c"benchmark.floor".as_ptr(), nothing, c"write fast".as_ptr(), 1, 1, 1)
    }
}

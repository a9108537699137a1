//! The baselines of the benchmark: module commands that take any arguments and do nothing.
//!
//! Whatever a command of a module does, it cannot cost less than `BENCHMARK.BASELINE`: reading the
//! request, finding the command, checking its key, calling into the module, replying an integer.
//! `BENCHMARK.OPENS` and `BENCHMARK.READS` also ask of the server what no command about a key and a
//! time can do without: they open the key, take its value, ask the time, close the key; the first, as
//! a write does, replicates itself. Loaded by the benchmark only.
//!
//! They are written against the server's C interface directly, without a crate in between, so that
//! nothing of a baseline is somebody's convenience.

use std::ffi::{CStr, c_char, c_int, c_longlong, c_void};
use std::sync::OnceLock;

type ReplyWithLongLong = unsafe extern "C" fn(*mut c_void, c_longlong) -> c_int;
type OpenKey = unsafe extern "C" fn(*mut c_void, *mut c_void, c_int) -> *mut c_void;
type OfKey = unsafe extern "C" fn(*mut c_void) -> *mut c_void;
type CloseKey = unsafe extern "C" fn(*mut c_void);
type Milliseconds = unsafe extern "C" fn() -> c_longlong;
type ReplicateVerbatim = unsafe extern "C" fn(*mut c_void) -> c_int;
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
/// Bits of the mode in which a key is opened.
const READ: c_int = 1;
const WRITE: c_int = 2;

/// The functions of the server that the commands call.
struct Api {
    reply: ReplyWithLongLong,
    open: OpenKey,
    kind: OfKey,
    value: OfKey,
    close: CloseKey,
    time: Milliseconds,
    replicate: ReplicateVerbatim,
}

static API: OnceLock<Api> = OnceLock::new();

/// Replies 0, as a heartbeat of a known session does.
unsafe extern "C" fn nothing(ctx: *mut c_void, _argv: *mut *mut c_void, _argc: c_int) -> c_int {
    match API.get() {
        // SAFETY: the function is the server's own, the context that of this call.
        Some(api) => unsafe { (api.reply)(ctx, 0) },
        None => ERR,
    }
}

/// Opens the key and asks the time.
///
/// # Safety
/// As a command of the server is called.
unsafe fn look(api: &Api, ctx: *mut c_void, argv: *mut *mut c_void, argc: c_int, mode: c_int) {
    if argc < 2 {
        return;
    }
    // SAFETY: the functions are the server's own; there is a second argument, as was checked, and the
    // key is closed once if it was opened.
    unsafe {
        let key = (api.open)(ctx, *argv.add(1), mode);
        if !key.is_null() {
            (api.kind)(key);
            (api.value)(key);
            (api.time)();
            (api.close)(key);
        }
    }
}

/// What a heartbeat asks of the server, and nothing of its own.
unsafe extern "C" fn opens(ctx: *mut c_void, argv: *mut *mut c_void, argc: c_int) -> c_int {
    let Some(api) = API.get() else { return ERR };
    // SAFETY: the server calls this as a command.
    unsafe {
        look(api, ctx, argv, argc, READ | WRITE);
        (api.replicate)(ctx);
        (api.reply)(ctx, 0)
    }
}

/// What a read of one number asks of the server; the number is as long as that of a thousand.
unsafe extern "C" fn reads(ctx: *mut c_void, argv: *mut *mut c_void, argc: c_int) -> c_int {
    let Some(api) = API.get() else { return ERR };
    // SAFETY: the server calls this as a command.
    unsafe {
        look(api, ctx, argv, argc, READ);
        (api.reply)(ctx, 1000)
    }
}

/// One function of the server by its name.
///
/// # Safety
/// `ctx` is the context of a module that is being loaded, and `T` the type of that function.
unsafe fn function<T: Copy>(ctx: *mut c_void, name: &CStr) -> Option<T> {
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
    let found = unsafe {
        (|| {
            let api = Api {
                reply: function(ctx, c"RedisModule_ReplyWithLongLong")?,
                open: function(ctx, c"RedisModule_OpenKey")?,
                kind: function(ctx, c"RedisModule_ModuleTypeGetType")?,
                value: function(ctx, c"RedisModule_ModuleTypeGetValue")?,
                close: function(ctx, c"RedisModule_CloseKey")?,
                time: function(ctx, c"RedisModule_Milliseconds")?,
                replicate: function(ctx, c"RedisModule_ReplicateVerbatim")?,
            };
            let attribs: SetModuleAttribs = function(ctx, c"RedisModule_SetModuleAttribs")?;
            let create: CreateCommand = function(ctx, c"RedisModule_CreateCommand")?;
            Some((api, attribs, create))
        })()
    };
    let Some((api, attribs, create)) = found else { return ERR };
    if API.set(api).is_err() {
        return ERR;
    }
    // SAFETY: as above. The names of the commands are as long as PRESENCE.ONLINE, their flags and
    // their key are those of a heartbeat or of a read.
    unsafe {
        attribs(ctx, c"presence-baseline".as_ptr(), 1, API_VERSION);
        let commands: [(&CStr, Handler, &CStr); 3] = [
            (c"benchmark.baseline", nothing, c"write fast"),
            (c"benchmark.opens", opens, c"write fast"),
            (c"benchmark.reads", reads, c"readonly fast"),
        ];
        for (name, handler, flags) in commands {
            if create(ctx, name.as_ptr(), handler, flags.as_ptr(), 1, 1, 1) != OK {
                return ERR;
            }
        }
    }
    OK
}

//! Settings that are texts: prefixes of channels, and rules.
//!
//! They are registered without the crate, which makes a new string of the server whenever the server asks for the
//! value, and never frees it.

use crate::server::ffi::args::Arg;
use crate::server::ffi::context::{Context, OwnedString};
use redis_module::raw;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering::Relaxed};

/// Versions of Valkey whose CONFIG REWRITE writes quotes and backslashes of a module's text as they are, so that the
/// server cannot read its own file, or reads another text.
const LOSES_QUOTES: std::ops::Range<c_int> = 0x0008_0100..0x0009_0000;

static CANNOT_REWRITE_QUOTES: AtomicBool = AtomicBool::new(false);

/// Finds out what the server can write. Called before the first text is registered.
pub fn probe(is_valkey: bool) {
    // SAFETY: takes nothing.
    let version = unsafe { api!(RedisModule_GetServerVersion()) };
    CANNOT_REWRITE_QUOTES.store(is_valkey && LOSES_QUOTES.contains(&version), Relaxed);
}

/// A text that can be set.
pub struct TextSetting {
    name: &'static CStr,
    default: &'static CStr,
    /// Takes in a text that is UTF-8, or says why not.
    on_set: fn(&str) -> Result<(), String>,
    value: Mutex<Vec<u8>>,
    /// The value as a string of the server, which asks for it and does not take it.
    shown: AtomicPtr<raw::RedisModuleString>,
}

impl TextSetting {
    pub const fn new(
        name: &'static CStr,
        default: &'static CStr,
        on_set: fn(&str) -> Result<(), String>,
    ) -> Self {
        let shown = AtomicPtr::new(std::ptr::null_mut());
        TextSetting { name, default, on_set, value: Mutex::new(Vec::new()), shown }
    }

    pub fn with<T>(&self, use_it: impl FnOnce(&[u8]) -> T) -> T {
        match self.value.lock() {
            Ok(value) => use_it(&value),
            Err(_) => use_it(self.default.to_bytes()),
        }
    }

    pub fn register(&'static self, ctx: Context) -> bool {
        // SAFETY: called while the module loads. The texts end with NUL, the callbacks are plain functions, and the
        // private data lives as long as the module.
        let registered = unsafe {
            api!(RedisModule_RegisterStringConfig(
                ctx.raw(),
                self.name.as_ptr(),
                self.default.as_ptr(),
                raw::REDISMODULE_CONFIG_DEFAULT,
                Some(get),
                Some(set),
                None,
                std::ptr::from_ref(self).cast_mut().cast()
            ))
        };
        registered == raw::REDISMODULE_OK as c_int
    }

    fn set(&self, value: &[u8]) -> Result<(), String> {
        let name = self.name.to_string_lossy();
        let text = std::str::from_utf8(value).map_err(|_| format!("{name} must be UTF-8 text"))?;
        if text.contains('\0') {
            // CONFIG REWRITE could not write it.
            return Err(format!("{name} must not contain NUL"));
        }
        if CANNOT_REWRITE_QUOTES.load(Relaxed) && text.contains(['"', '\\']) {
            return Err(format!(
                "{name} must not contain \" or \\: CONFIG REWRITE of this server cannot write them"
            ));
        }
        (self.on_set)(text)?;
        if let Ok(mut kept) = self.value.lock() {
            value.clone_into(&mut kept);
        }
        let before = self.shown.swap(OwnedString::new(value).into_raw(), Relaxed);
        if !before.is_null() {
            // SAFETY: made by `OwnedString::new`, and nothing refers to it any more.
            unsafe { api!(RedisModule_FreeString(std::ptr::null_mut(), before)) };
        }
        Ok(())
    }
}

/// # Safety
/// `data` is what [`TextSetting::register`] gave to the server.
unsafe fn setting<'a>(data: *mut c_void) -> Option<&'a TextSetting> {
    // SAFETY: the caller guarantees that it refers to a static.
    unsafe { data.cast::<TextSetting>().as_ref() }
}

unsafe extern "C" fn get(_: *const c_char, data: *mut c_void) -> *mut raw::RedisModuleString {
    // SAFETY: the server passes the private data of this setting.
    unsafe { setting(data) }.map_or(std::ptr::null_mut(), |setting| setting.shown.load(Relaxed))
}

unsafe extern "C" fn set(
    _: *const c_char,
    value: *mut raw::RedisModuleString,
    data: *mut c_void,
    error: *mut *mut raw::RedisModuleString,
) -> c_int {
    // SAFETY: the server passes the private data of this setting.
    let Some(setting) = (unsafe { setting(data) }) else { return raw::REDISMODULE_ERR as c_int };
    // SAFETY: the server passes the new value as one of its strings.
    let value = unsafe { Arg::from_raw(value) }.bytes();
    match setting.set(value) {
        Ok(()) => raw::REDISMODULE_OK as c_int,
        Err(wrong) => {
            let wrong = OwnedString::new(wrong.as_bytes()).into_raw();
            // SAFETY: the server passes a place for the text of the error, and frees the text.
            unsafe { *error = wrong };
            raw::REDISMODULE_ERR as c_int
        }
    }
}

//! The moment of a call.
//!
//! A command is one moment, and so is a transaction and a script, as for the server's own keys: it is the
//! moment at which the transaction or the script begins. From Redis 7.2 on and in Valkey the server
//! offers this time (`RM_CachedMicroseconds`). Redis 7.0 does not: there, a command filter notes when
//! a command begins. Commands that EXEC runs do not pass the filter, and commands that a script calls
//! pass it while the server says that a script runs.
//!
//! A script that runs longer than `busy-reply-threshold` lets the server answer other clients. From
//! Redis 7.2 on, the time that the server offers moves on with each such pause.
//!
//! Timers and server events read the real clock.

use crate::server::expiry::sweep;
use crate::server::ffi::args::Arg;
use crate::server::ffi::context::Context;
use redis_module::raw;
use std::cell::Cell;
use std::ffi::c_int;

/// Unix time (ms).
pub fn server_time() -> u64 {
    // SAFETY: takes nothing, and may be called at any time.
    u64::try_from(unsafe { api!(RedisModule_Milliseconds()) }).unwrap_or(0)
}

/// A clock that is looked at once and then stands still. Looking takes longer than much of what a
/// command does; a call can have it done while it waits for memory.
#[derive(Default)]
pub struct Clock {
    now: Cell<Option<u64>>,
    /// The command whose moment it is; none for the real time.
    command: Option<Context>,
}

impl Clock {
    /// One that has been looked at.
    pub fn at(now: u64) -> Self {
        Clock { now: Cell::new(Some(now)), command: None }
    }

    /// The moment of a command, or of the transaction or script that it is part of.
    pub fn of_command(ctx: Context) -> Self {
        Clock { now: Cell::new(None), command: Some(ctx) }
    }

    /// Unix time (ms).
    pub fn now(&self) -> u64 {
        self.now.get().unwrap_or_else(|| {
            let now = self.command.map_or_else(server_time, moment_of);
            self.now.set(Some(now));
            now
        })
    }
}

/// What is known of the command that a client called last, where the server does not offer its moment.
#[derive(Clone, Copy)]
enum Unit {
    /// Another command, which may be a transaction or a script under another name.
    Unknown,
    /// A command of this module.
    Command,
    /// A transaction or a script, and the moment at which it began.
    At(u64),
}

thread_local! {
    static UNIT: Cell<Unit> = const { Cell::new(Unit::Unknown) };
}

/// A noted moment that is further back than this (ms) is of a transaction or script that is over.
const LONGEST_UNIT_MS: u64 = 60_000;

/// Begins to note when commands begin, where the server does not offer that time.
pub fn watch(ctx: Context) -> bool {
    if offers!(RedisModule_CachedMicroseconds) {
        return true;
    }
    let flags = raw::REDISMODULE_CMDFILTER_NOSELF as c_int;
    // SAFETY: called while the module loads; the filter is a plain function.
    unsafe {
        !api!(RedisModule_RegisterCommandFilter(ctx.raw(), Some(on_command), flags)).is_null()
    }
}

/// The time that the server offers (ms): it stands still in a transaction and in a script.
fn offered() -> Option<u64> {
    if !offers!(RedisModule_CachedMicroseconds) {
        return None;
    }
    // SAFETY: takes nothing; the pointer has been asked for.
    u64::try_from(unsafe { api!(RedisModule_CachedMicroseconds()) } / 1000).ok()
}

fn moment_of(ctx: Context) -> u64 {
    if sweep::is_in_timer() {
        return server_time();
    }
    offered().unwrap_or_else(|| match UNIT.get() {
        Unit::At(began) if ctx.is_in_unit() => began,
        Unit::Unknown if ctx.is_in_unit() => {
            let now = server_time();
            UNIT.set(Unit::At(now));
            now
        }
        _ => server_time(),
    })
}

/// The earliest moment that a command can see from now on: for callbacks that run inside commands.
pub fn earliest() -> u64 {
    let now = server_time();
    offered().map_or_else(
        || match UNIT.get() {
            Unit::At(began) if now.saturating_sub(began) < LONGEST_UNIT_MS => began.min(now),
            _ => now,
        },
        |offered| offered.min(now),
    )
}

/// Whether the command, by its name, runs others at the moment at which it begins.
fn begins_unit(name: &[u8]) -> bool {
    let names: [&[u8]; 7] =
        [b"EXEC", b"EVAL", b"EVALSHA", b"EVAL_RO", b"EVALSHA_RO", b"FCALL", b"FCALL_RO"];
    // Called for every command of every client: most are told by their first letter.
    matches!(name.first(), Some(b'e' | b'E' | b'f' | b'F'))
        && names.iter().any(|unit| name.eq_ignore_ascii_case(unit))
}

const OURS: &[u8] = b"PRESENCE.";

unsafe extern "C" fn on_command(filter: *mut raw::RedisModuleCommandFilterCtx) {
    // SAFETY: the server passes the filter context of this call.
    let name = unsafe { api!(RedisModule_CommandFilterArgGet(filter, 0)) };
    if name.is_null() {
        return;
    }
    // SAFETY: a string of the server that lives through this call.
    let name = unsafe { Arg::from_raw(name) }.bytes();
    let before = UNIT.get();
    let is_ours = name.get(..OURS.len()).is_some_and(|name| name.eq_ignore_ascii_case(OURS));
    // What a script calls is part of it, and so is what others try while it runs for long.
    let in_script = match before {
        Unit::At(_) => true,
        Unit::Unknown => is_ours,
        Unit::Command => false,
    };
    if in_script && Context::is_script_running() {
        return;
    }
    UNIT.set(if is_ours {
        Unit::Command
    } else if begins_unit(name) {
        Unit::At(server_time())
    } else {
        Unit::Unknown
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_and_scripts_are_units() {
        for name in ["EXEC", "eval", "EvalSha", "EVAL_RO", "evalsha_ro", "FCALL", "fcall_ro"] {
            assert!(begins_unit(name.as_bytes()), "{name}");
        }
        for name in ["", "e", "EXECS", "EXISTS", "EVALS", "FLUSHALL", "PRESENCE.ONLINE", "MULTI"] {
            assert!(!begins_unit(name.as_bytes()), "{name}");
        }
    }
}

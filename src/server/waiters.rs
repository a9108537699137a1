//! Clients that wait for the next event of a space.
//!
//! A waiting client is a handle in a list under the space's database and name, and costs nothing
//! until something happens there: then the server is told to go on with it, and the reply is made
//! from what is there by then. The server may end the wait by itself (its time is over, CLIENT
//! UNBLOCK, the client is gone); the handle stays good until it is given back here, so the worst
//! case is one that stays in its list until the space's next event.

use super::args::Arg;
use super::context::Context;
use super::key::SpaceRef;
use crate::commands::events_reply;
use redis_module::raw;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};

/// What a client waits for.
pub struct Wait {
    /// The id after which it wants events; none where it wants all that are kept.
    pub after: Option<(u64, u64)>,
    pub count: usize,
}

impl Wait {
    pub fn from(&self) -> (u64, u64) {
        self.after.unwrap_or((0, 0))
    }
}

struct Waiter {
    handle: *mut raw::RedisModuleBlockedClient,
    wait: Box<Wait>,
}

type Waiters = BTreeMap<(i32, Vec<u8>), Vec<Waiter>>;

thread_local! {
    static WAITERS: RefCell<Waiters> = const { RefCell::new(BTreeMap::new()) };
}

/// Lets the client of the command that is going on wait, `block` ms at the most, 0 without end.
pub fn wait(ctx: Context, name: Arg<'_>, wait: Wait, block: i64) {
    // SAFETY: the context is that of a command whose client can wait; the callbacks are plain
    // functions; the private data is a `Wait` in a box, handed over when the client goes on.
    let handle = unsafe {
        let handle = api!(RedisModule_BlockClient(
            ctx.raw(),
            Some(on_news),
            Some(on_timeout),
            Some(free_wait),
            block
        ));
        if handle.is_null() {
            // The server has replied that this client cannot wait.
            return;
        }
        api!(RedisModule_SetDisconnectCallback(handle, Some(on_disconnect)));
        handle
    };
    let key = (ctx.db(), name.bytes().to_vec());
    let waiter = Waiter { handle, wait: Box::new(wait) };
    WAITERS.with_borrow_mut(|waiters| waiters.entry(key).or_default().push(waiter));
}

/// Something happened in a space, or it came, or it is gone.
pub fn wake(db: i32, name: &[u8]) {
    let woken = WAITERS.with_borrow_mut(|waiters| {
        if waiters.is_empty() {
            return None;
        }
        waiters.remove(&(db, name.to_vec()))
    });
    woken.into_iter().flatten().for_each(go_on);
}

/// Everything may have happened in a database, or in all.
pub fn wake_db(db: Option<i32>) {
    let woken = WAITERS.with_borrow_mut(|waiters| {
        let (woken, rest): (Waiters, Waiters) = std::mem::take(waiters)
            .into_iter()
            .partition(|((of, _), _)| db.is_none_or(|db| db == *of));
        *waiters = rest;
        woken
    });
    woken.into_values().flatten().for_each(go_on);
}

fn go_on(waiter: Waiter) {
    // SAFETY: the handle was given by the server and has not been given back; it is good even if
    // its client is gone. The box is freed by `free_wait`.
    unsafe {
        api!(RedisModule_UnblockClient(waiter.handle, Box::into_raw(waiter.wait).cast()));
    }
}

/// Gives a handle back whose client the server has already gone on with.
fn give_back(handle: *mut raw::RedisModuleBlockedClient) {
    let waiter = WAITERS.with_borrow_mut(|waiters| {
        let mut found = None;
        waiters.retain(|_, list| {
            if let Some(at) = list.iter().position(|waiter| waiter.handle == handle) {
                found = Some(list.swap_remove(at));
            }
            !list.is_empty()
        });
        found
    });
    if let Some(waiter) = waiter {
        go_on(waiter);
    }
}

unsafe extern "C" fn free_wait(_: *mut raw::RedisModuleCtx, wait: *mut c_void) {
    if !wait.is_null() {
        drop(Box::from_raw(wait.cast::<Wait>()));
    }
}

unsafe extern "C" fn on_news(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    let wait = api!(RedisModule_GetBlockedClientPrivateData(ctx)).cast::<Wait>();
    match wait.as_ref() {
        Some(wait) => reply(ctx, argv, argc, wait),
        None => reply(ctx, argv, argc, &Wait { after: None, count: 0 }),
    }
}

unsafe extern "C" fn on_timeout(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    let handle = api!(RedisModule_GetBlockedClientHandle(ctx));
    // Nothing has happened, or the client would have gone on: no events, and none is missing.
    reply(ctx, argv, argc, &Wait { after: None, count: 0 });
    give_back(handle);
    raw::REDISMODULE_OK as c_int
}

unsafe extern "C" fn on_disconnect(
    _: *mut raw::RedisModuleCtx,
    handle: *mut raw::RedisModuleBlockedClient,
) {
    give_back(handle);
}

/// # Safety
/// The arguments are those of a callback for a client that waited.
unsafe fn reply(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
    wait: &Wait,
) -> c_int {
    let ctx = Context::from_raw(ctx);
    let argv =
        std::slice::from_raw_parts(argv.cast::<Arg<'_>>(), usize::try_from(argc).unwrap_or(0));
    if let Some(name) = argv.get(1) {
        match SpaceRef::open(ctx, *name) {
            Ok(space) => events_reply(ctx, space.as_ref(), wait, ctx.now()),
            Err(error) => ctx.reply_error(&error),
        }
    }
    raw::REDISMODULE_OK as c_int
}

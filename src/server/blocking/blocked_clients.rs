//! Clients that wait: in EVENTS … BLOCK and READ … BLOCK for spaces ([`space_waits`]), in FEED … BLOCK for the feed
//! ([`feed_waits`]).
//!
//! A waiting client is a handle of the server. What happens marks what has changed; before the server sleeps again,
//! the clients that have something to be told go on. Not earlier: Redis 7.0 loses the reply to a client whose
//! time runs out between its being released and its being served, and only in that place does
//! nothing come between.
//!
//! The server may end a wait by itself (its time is over, CLIENT UNBLOCK, the client is gone).
//! The handle stays good until it is given back here, so the worst case is one that stays filed
//! until something happens that it waits for.

use crate::server::blocking::feed_waits::{self, FeedWait};
use crate::server::blocking::space_waits::{self, SpaceWait};
use crate::server::ffi::context::Context;
use redis_module::raw;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};

/// What a client waits for.
pub enum Wait {
    Spaces(SpaceWait),
    Feed(FeedWait),
}

impl Wait {
    fn file(&self, handle: Handle) {
        match self {
            Wait::Spaces(wait) => space_waits::file(handle, wait),
            Wait::Feed(wait) => feed_waits::file(handle, wait),
        }
    }

    fn take_out(&self, handle: Handle) {
        match self {
            Wait::Spaces(wait) => space_waits::take_out(handle, wait),
            Wait::Feed(wait) => feed_waits::take_out(handle, wait),
        }
    }

    /// Replies with how things are now.
    fn reply(&self, ctx: Context) {
        match self {
            Wait::Spaces(wait) => (wait.waiter.reply)(ctx, wait),
            Wait::Feed(wait) => (wait.reply)(ctx, wait),
        }
    }
}

/// A handle's address, as a name for it.
pub type Handle = usize;

#[derive(Default)]
struct BlockedClients {
    waits: BTreeMap<Handle, Box<Wait>>,
    subscribed: bool,
}

thread_local! {
    static BLOCKED_CLIENTS: RefCell<BlockedClients> = RefCell::default();
}

/// Blocks the client of the current command for at most `block` ms, 0 without end. If the server does
/// not block this client, the client has no reply yet: returns what it asked for, so that the caller
/// replies at once. Valkey 8.1 and later block only normal clients, not one that is subscribed.
///
/// Must not be called where [`Context::may_not_block`] is true: servers then reply with an error.
pub fn wait(ctx: Context, wait: Wait, block: i64) -> Result<(), Wait> {
    // SAFETY: the context is that of a command; the callbacks are plain functions; the private
    // data is a `Wait` in a box, handed over when the client goes on.
    let handle = unsafe {
        let handle = api!(RedisModule_BlockClient(
            ctx.raw(),
            Some(on_news),
            Some(on_timeout),
            Some(free_wait),
            block
        ));
        if handle.is_null() {
            return Err(wait);
        }
        api!(RedisModule_SetDisconnectCallback(handle, Some(on_disconnect)));
        handle as Handle
    };
    wait.file(handle);
    let subscribe = BLOCKED_CLIENTS.with_borrow_mut(|blocked_clients| {
        blocked_clients.waits.insert(handle, Box::new(wait));
        !std::mem::replace(&mut blocked_clients.subscribed, true)
    });
    if subscribe {
        subscribe_to_event_loop(ctx, Some(before_sleep));
    }
    Ok(())
}

fn subscribe_to_event_loop(ctx: Context, callback: raw::RedisModuleEventCallback) {
    let event = raw::RedisModuleEvent { id: raw::REDISMODULE_EVENT_EVENTLOOP, dataver: 1 };
    // SAFETY: the callback is a plain function; none ends the subscription. Never called from
    // within that event.
    unsafe { api!(RedisModule_SubscribeToServerEvent(ctx.raw(), event, callback)) };
}

/// Stops listening to the event loop where nobody waits any more. Called by the timer now and
/// then.
pub fn rest(ctx: Context) {
    let done = BLOCKED_CLIENTS.with_borrow_mut(|blocked_clients| {
        blocked_clients.waits.is_empty()
            && std::mem::replace(&mut blocked_clients.subscribed, false)
    });
    if done {
        subscribe_to_event_loop(ctx, None);
    }
}

unsafe extern "C" fn before_sleep(
    ctx: *mut raw::RedisModuleCtx,
    _: raw::RedisModuleEvent,
    subevent: u64,
    _: *mut c_void,
) {
    if subevent != raw::REDISMODULE_SUBEVENT_EVENTLOOP_BEFORE_SLEEP {
        return;
    }
    // SAFETY: the server passes the context of this event.
    let ctx = unsafe { Context::from_raw(ctx) };
    space_waits::serve(ctx, go_on);
    if feed_waits::serve(go_on) {
        come_back();
    }
}

/// Has the server come here again at once, after it has served other clients.
fn come_back() {
    // SAFETY: the callback is a plain function, which uses no data.
    unsafe { api!(RedisModule_EventLoopAddOneShot(Some(nothing), std::ptr::null_mut())) };
}

unsafe extern "C" fn nothing(_: *mut c_void) {}

/// Releases a client that has something to be told.
fn go_on(handle: Handle) {
    if let Some(wait) = take_out(handle) {
        hand_over(handle, wait);
    }
}

/// Takes a client out of all lists.
fn take_out(handle: Handle) -> Option<Box<Wait>> {
    let wait =
        BLOCKED_CLIENTS.with_borrow_mut(|blocked_clients| blocked_clients.waits.remove(&handle))?;
    wait.take_out(handle);
    Some(wait)
}

/// Gives the handle of a client back to the server, which then asks for the reply or frees the wait.
fn hand_over(handle: Handle, wait: Box<Wait>) {
    let handle = handle as *mut raw::RedisModuleBlockedClient;
    // SAFETY: the handle was given by the server and has not been given back; it is good even if
    // its client is gone. The box is freed by `free_wait`.
    unsafe { api!(RedisModule_UnblockClient(handle, Box::into_raw(wait).cast())) };
}

unsafe extern "C" fn free_wait(_: *mut raw::RedisModuleCtx, wait: *mut c_void) {
    if !wait.is_null() {
        // SAFETY: `hand_over` made the pointer from a box and gave it to the server, which hands it back
        // here once, after the reply.
        drop(unsafe { Box::from_raw(wait.cast::<Wait>()) });
    }
}

unsafe extern "C" fn on_news(
    ctx: *mut raw::RedisModuleCtx,
    _: *mut *mut raw::RedisModuleString,
    _: c_int,
) -> c_int {
    // SAFETY: the context is that of a client that goes on. Its private data is the `Wait` that
    // `hand_over` gave, which lives until `free_wait`.
    let wait =
        unsafe { api!(RedisModule_GetBlockedClientPrivateData(ctx)).cast::<Wait>().as_ref() };
    if let Some(wait) = wait {
        // SAFETY: the server passes the context of this callback.
        wait.reply(unsafe { Context::from_raw(ctx) });
    }
    raw::REDISMODULE_OK as c_int
}

unsafe extern "C" fn on_timeout(
    ctx: *mut raw::RedisModuleCtx,
    _: *mut *mut raw::RedisModuleString,
    _: c_int,
) -> c_int {
    // SAFETY: the context is that of a client whose time is over.
    let handle = unsafe { api!(RedisModule_GetBlockedClientHandle(ctx)) } as Handle;
    if let Some(wait) = take_out(handle) {
        // What has happened in the very moment is told.
        // SAFETY: the server passes the context of this callback.
        wait.reply(unsafe { Context::from_raw(ctx) });
        hand_over(handle, wait);
    }
    raw::REDISMODULE_OK as c_int
}

unsafe extern "C" fn on_disconnect(
    _: *mut raw::RedisModuleCtx,
    handle: *mut raw::RedisModuleBlockedClient,
) {
    let handle = handle as Handle;
    if let Some(wait) = take_out(handle) {
        hand_over(handle, wait);
    }
}

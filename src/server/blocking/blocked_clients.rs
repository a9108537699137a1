//! Clients that wait for the next event of a space.
//!
//! A waiting client is a handle filed under the space's database and name. When something happens
//! there, the name is marked; before the server sleeps again, who waits under a marked name and
//! has something to be told goes on. Not earlier: Redis 7.0 loses the reply to a client whose
//! time runs out between its being released and its being served, and only in that place does
//! nothing come between.
//!
//! The server may end a wait by itself (its time is over, CLIENT UNBLOCK, the client is gone).
//! The handle stays good until it is given back here, so the worst case is one that stays filed
//! until the space's next event.

use crate::server::ffi::args::Arg;
use crate::server::ffi::clock::Clock;
use crate::server::ffi::context::{Context, OwnedString};
use crate::server::keyspace::key::SpaceReadGuard;
use redis_module::raw;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_void};

/// What the command of a blocked client knows about it: the command hands this over, so that nothing here
/// names a command.
#[derive(Clone, Copy)]
pub struct Waiter {
    /// Whether there is something to reply now. None is no space. It depends on the group of the wait
    /// alone.
    pub has_news: fn(Option<&SpaceReadGuard>, &Wait, u64) -> bool,
    pub reply: fn(Context, Option<&SpaceReadGuard>, &Wait, u64),
}

/// What a client waits for.
pub struct Wait {
    pub waiter: Waiter,
    /// The id after which it wants events; none where it wants all that are kept.
    pub after: Option<(u64, u64)>,
    pub count: usize,
    /// The epoch of the space when it began to wait; none where there was no space. It is told
    /// when that is over.
    pub epoch: Option<u64>,
}

impl Wait {
    pub fn from(&self) -> (u64, u64) {
        self.after.unwrap_or((0, 0))
    }

    fn group(&self) -> Group {
        (self.epoch, self.after)
    }
}

/// A handle's address, as a name for it.
type Handle = usize;
type Place = (i32, Vec<u8>);

/// The epoch of the space when the client began to wait, and the id after which it wants events.
/// Whether there is news depends on nothing else, so one check decides for all clients of a group.
type Group = (Option<u64>, Option<(u64, u64)>);

/// The clients that wait for one space, by group.
///
/// After an event there is news for every group that has an id. So the groups that are checked in
/// vain are few, however many clients wait: those without an id, one per epoch.
type Waiting = BTreeMap<Group, BTreeMap<Handle, Box<Wait>>>;

#[derive(Default)]
struct BlockedClients {
    at: BTreeMap<Place, Waiting>,
    place_of: BTreeMap<Handle, (Place, Group)>,
    /// Where something has happened since the server last slept.
    marked: BTreeSet<Place>,
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
pub fn wait(ctx: Context, name: Arg<'_>, wait: Wait, block: i64) -> Result<(), Wait> {
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
    let place = (ctx.db(), name.bytes().to_vec());
    let subscribe = BLOCKED_CLIENTS.with_borrow_mut(|blocked_clients| {
        let group = wait.group();
        blocked_clients.place_of.insert(handle, (place.clone(), group));
        let waiting = blocked_clients.at.entry(place).or_default();
        waiting.entry(group).or_default().insert(handle, Box::new(wait));
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
        blocked_clients.at.is_empty() && std::mem::replace(&mut blocked_clients.subscribed, false)
    });
    if done {
        subscribe_to_event_loop(ctx, None);
    }
}

/// Something happened in a space, or it came, or it is gone.
pub fn wake(db: i32, name: &[u8]) {
    BLOCKED_CLIENTS.with_borrow_mut(|blocked_clients| {
        if blocked_clients.at.is_empty() {
            return;
        }
        let place = (db, name.to_vec());
        if blocked_clients.at.contains_key(&place) {
            blocked_clients.marked.insert(place);
        }
    });
}

/// The spaces of a database, or of all, are gone. Clients that wait for a space that was not there have
/// nothing to be told.
pub fn wake_flushed(db: Option<i32>) {
    BLOCKED_CLIENTS.with_borrow_mut(|blocked_clients| {
        let had_space = |waiting: &Waiting| waiting.keys().any(|(epoch, _)| epoch.is_some());
        let gone = blocked_clients
            .at
            .iter()
            .filter(|((of, _), waiting)| db.is_none_or(|db| db == *of) && had_space(waiting));
        blocked_clients.marked.extend(gone.map(|(place, _)| place.clone()));
    });
}

/// Everything may have happened in a database, or in all.
pub fn wake_db(db: Option<i32>) {
    BLOCKED_CLIENTS.with_borrow_mut(|blocked_clients| {
        let places = blocked_clients.at.keys().filter(|(of, _)| db.is_none_or(|db| db == *of));
        blocked_clients.marked.extend(places.cloned());
    });
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
    while let Some(place) =
        BLOCKED_CLIENTS.with_borrow_mut(|blocked_clients| blocked_clients.marked.pop_first())
    {
        let (db, name) = &place;
        let name = OwnedString::new(name);
        if !ctx.select_db(*db) {
            continue;
        }
        let clock = Clock::default();
        let space = SpaceReadGuard::open(ctx, name.as_arg(), &clock);
        let now = clock.now();
        let served = BLOCKED_CLIENTS.with_borrow_mut(|blocked_clients| {
            let Some(waiting) = blocked_clients.at.remove(&place) else { return Vec::new() };
            let (with_news, waiting): (Waiting, Waiting) =
                waiting.into_iter().partition(|(_, clients)| match &space {
                    Ok(space) => {
                        let wait = clients.first_key_value();
                        wait.is_none_or(|(_, wait)| {
                            (wait.waiter.has_news)(space.as_ref(), wait, now)
                        })
                    }
                    // Another type is at the key: the client gets an error.
                    Err(_) => true,
                });
            if !waiting.is_empty() {
                blocked_clients.at.insert(place.clone(), waiting);
            }
            let served: Vec<(Handle, Box<Wait>)> = with_news.into_values().flatten().collect();
            for (handle, _) in &served {
                blocked_clients.place_of.remove(handle);
            }
            served
        });
        drop(space);
        served.into_iter().for_each(|(handle, wait)| go_on(handle, wait));
    }
}

fn go_on(handle: Handle, wait: Box<Wait>) {
    let handle = handle as *mut raw::RedisModuleBlockedClient;
    // SAFETY: the handle was given by the server and has not been given back; it is good even if
    // its client is gone. The box is freed by `free_wait`.
    unsafe { api!(RedisModule_UnblockClient(handle, Box::into_raw(wait).cast())) };
}

/// Takes a handle out with which the server goes on by itself.
fn take_out(handle: *mut raw::RedisModuleBlockedClient) -> Option<Box<Wait>> {
    BLOCKED_CLIENTS.with_borrow_mut(|blocked_clients| {
        let (place, group) = blocked_clients.place_of.remove(&(handle as Handle))?;
        let waiting = blocked_clients.at.get_mut(&place)?;
        let clients = waiting.get_mut(&group)?;
        let wait = clients.remove(&(handle as Handle));
        if clients.is_empty() {
            waiting.remove(&group);
        }
        if waiting.is_empty() {
            blocked_clients.at.remove(&place);
        }
        wait
    })
}

unsafe extern "C" fn free_wait(_: *mut raw::RedisModuleCtx, wait: *mut c_void) {
    if !wait.is_null() {
        // SAFETY: `go_on` made the pointer from a box and gave it to the server, which hands it back
        // here once, after the reply.
        drop(unsafe { Box::from_raw(wait.cast::<Wait>()) });
    }
}

unsafe extern "C" fn on_news(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    // SAFETY: the context is that of a client that goes on. Its private data is the `Wait` that
    // `go_on` gave, which lives until `free_wait`.
    let wait =
        unsafe { api!(RedisModule_GetBlockedClientPrivateData(ctx)).cast::<Wait>().as_ref() };
    if let Some(wait) = wait {
        // SAFETY: the arguments are those of this callback.
        unsafe { reply(ctx, argv, argc, wait) };
    }
    raw::REDISMODULE_OK as c_int
}

unsafe extern "C" fn on_timeout(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    // SAFETY: the context is that of a client whose time is over.
    let handle = unsafe { api!(RedisModule_GetBlockedClientHandle(ctx)) };
    if let Some(wait) = take_out(handle) {
        // What has happened in the very moment is told.
        // SAFETY: the arguments are those of this callback.
        unsafe { reply(ctx, argv, argc, &wait) };
        go_on(handle as Handle, wait);
    }
    raw::REDISMODULE_OK as c_int
}

unsafe extern "C" fn on_disconnect(
    _: *mut raw::RedisModuleCtx,
    handle: *mut raw::RedisModuleBlockedClient,
) {
    if let Some(wait) = take_out(handle) {
        go_on(handle as Handle, wait);
    }
}

/// # Safety
/// The arguments are those of a callback for a client that waited.
unsafe fn reply(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
    wait: &Wait,
) {
    // SAFETY: the caller passes the context of the callback.
    let ctx = unsafe { Context::from_raw(ctx) };
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: `Arg` is a transparent pointer. The server passes the arguments of the client's command,
    // which live through the callback.
    let argv = unsafe { std::slice::from_raw_parts(argv.cast::<Arg<'_>>(), count) };
    if let Some(name) = argv.get(1) {
        let clock = Clock::default();
        match SpaceReadGuard::open(ctx, *name, &clock) {
            Ok(space) => (wait.waiter.reply)(ctx, space.as_ref(), wait, clock.now()),
            Err(error) => ctx.reply_error(&error),
        }
    }
}

//! Spaces that come under a name in another way than by a command of ours: RENAME, MOVE, COPY,
//! RESTORE.
//!
//! Most servers tell of them by keyspace events (`events::on_keyspace`). Valkey 8.1 and 9.0 must
//! not be asked for these: they tell modules by way of the client that runs the command, select
//! the event's database for that, and leave it so (Valkey issue 4024). From then on the client,
//! and what is replicated of it, would be in the wrong database, whatever the key's type. There,
//! the same is pieced together from what those servers do tell: the type's own callbacks for COPY
//! and RESTORE, and for RENAME and MOVE a filter that remembers their names until the old name is
//! unlinked. While an AOF is loaded its commands pass no filter; what was renamed and moved by them
//! is found when all is loaded.

use super::args::{integer, Arg};
use super::context::Context;
use super::{agenda, key, sweep, waiters};
use redis_module::raw;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::ffi::{c_int, c_void};

/// So many moves are remembered that have not been carried out yet (they may stand in a MULTI).
const REMEMBERED: usize = 1024;

/// The first version with the fault and the first one without it, as the server numbers them.
const FAULT: std::ops::Range<c_int> = 0x0008_0100..0x0009_0100;

struct Move {
    from: Vec<u8>,
    to: Vec<u8>,
    /// The database that it goes to, where that is another.
    db: Option<i32>,
}

thread_local! {
    /// A context that outlives calls, on servers with the fault: some callbacks get none.
    static PIECED: Cell<Option<Context>> = const { Cell::new(None) };
    static MOVES: RefCell<VecDeque<Move>> = const { RefCell::new(VecDeque::new()) };
    /// Whether a space left its name, to somewhere or for good, while an AOF was loaded.
    static WENT: Cell<bool> = const { Cell::new(false) };
    /// What is expected since the timer ran last.
    static EXPECTED: RefCell<BTreeSet<(i32, Vec<u8>)>> = const { RefCell::new(BTreeSet::new()) };
}

/// Finds out how arrivals are told here. Returns whether by keyspace events, or none on failure.
pub fn prepare(ctx: Context, is_valkey: bool) -> Option<bool> {
    // SAFETY: takes nothing.
    let version = unsafe { api!(RedisModule_GetServerVersion()) };
    if !(is_valkey && FAULT.contains(&version)) {
        return Some(true);
    }
    // SAFETY: called while the module loads; the filter is a plain function, the context is kept
    // for ever.
    unsafe {
        if api!(RedisModule_RegisterCommandFilter(ctx.raw(), Some(on_command), 0)).is_null() {
            return None;
        }
        let kept = api!(RedisModule_GetDetachedThreadSafeContext(ctx.raw()));
        PIECED.set(Some(Context::from_raw(kept)));
    }
    Some(false)
}

/// A space is about to be at this key. By the time that the timer runs it is there, or the hint
/// is stale.
pub fn expect(db: i32, name: &[u8]) {
    if let Some(ctx) = PIECED.get() {
        EXPECTED.with_borrow_mut(|expected| expected.insert((db, name.to_vec())));
        let now = key::server_time();
        agenda::schedule(db, name, now);
        waiters::wake(db, name);
        sweep::arm(ctx, now);
    }
}

/// The timer runs: what was expected is there by now.
pub fn settled() {
    EXPECTED.with_borrow_mut(BTreeSet::clear);
}

/// A space is no longer at this key: if it was moved, it is expected elsewhere.
pub fn left(db: i32, name: &[u8]) {
    if PIECED.get().is_none() {
        return;
    }
    // COPY and RESTORE with REPLACE make the new value before they delete the old one.
    if EXPECTED.with_borrow(|expected| expected.contains(&(db, name.to_vec()))) {
        expect(db, name);
    }
    let moves = MOVES.with_borrow_mut(|moves| {
        let (ours, others) = moves.drain(..).partition(|one| one.from == name);
        *moves = others;
        let ours: VecDeque<Move> = ours;
        ours
    });
    // SAFETY: without a context it tells of the server.
    let flags = unsafe { api!(RedisModule_GetContextFlags(std::ptr::null_mut())) } as u32;
    if flags & raw::REDISMODULE_CTX_FLAGS_LOADING != 0 {
        WENT.set(true);
    }
    for one in moves {
        expect(one.db.unwrap_or(db), &one.to);
    }
}

/// A dataset was loaded. Where spaces went meanwhile that may be elsewhere now, all keys are
/// looked at.
pub fn loaded(ctx: Context) {
    if !WENT.take() {
        return;
    }
    let before = ctx.db();
    for mut db in (0..).take_while(|db| ctx.select_db(*db)) {
        // SAFETY: the cursor is destroyed once and not used after that; `file` is a plain
        // function, and gets a pointer to what lives through the call.
        unsafe {
            let cursor = api!(RedisModule_ScanCursorCreate());
            let db = std::ptr::from_mut(&mut db).cast::<c_void>();
            while api!(RedisModule_Scan(ctx.raw(), cursor, Some(file), db)) != 0 {}
            api!(RedisModule_ScanCursorDestroy(cursor));
        }
    }
    ctx.select_db(before);
}

unsafe extern "C" fn file(
    _: *mut raw::RedisModuleCtx,
    name: *mut raw::RedisModuleString,
    key: *mut raw::RedisModuleKey,
    db: *mut c_void,
) {
    if !name.is_null() && !key.is_null() {
        key::file(key, *db.cast::<i32>(), Arg::from_raw(name).bytes());
    }
}

unsafe extern "C" fn on_command(filter: *mut raw::RedisModuleCommandFilterCtx) {
    if api!(RedisModule_CommandFilterArgsCount(filter)) != 3 {
        return;
    }
    let arg = |at: c_int| {
        // SAFETY: the filter's context is that of this call, and there are three arguments.
        let string = unsafe { api!(RedisModule_CommandFilterArgGet(filter, at)) };
        // SAFETY: a string of the server that lives through this call.
        (!string.is_null()).then(|| unsafe { Arg::from_raw(string) }.bytes())
    };
    let (Some(command), Some(from), Some(to)) = (arg(0), arg(1), arg(2)) else { return };
    let is = |name: &[u8]| command.eq_ignore_ascii_case(name);
    let one = if is(b"RENAME") || is(b"RENAMENX") {
        Move { from: from.to_vec(), to: to.to_vec(), db: None }
    } else if is(b"MOVE") {
        let db = integer(to).and_then(|db| i32::try_from(db).ok());
        Move { from: from.to_vec(), to: from.to_vec(), db }
    } else {
        return;
    };
    MOVES.with_borrow_mut(|moves| {
        if moves.len() >= REMEMBERED {
            moves.pop_front();
        }
        moves.push_back(one);
    });
}

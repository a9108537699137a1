//! Spaces that come under a name in another way than by a command of ours: RENAME, MOVE, COPY,
//! RESTORE.
//!
//! Most servers tell of them by keyspace events (`events::on_keyspace`). Valkey 8.1 and 9.0 must
//! not be asked for these: they tell modules by way of the client that runs the command, select
//! the event's database for that, and leave it so (Valkey issue 4024). From then on the client,
//! and what is replicated of it, would be in the wrong database, whatever the key's type.
//!
//! There, the type's own callbacks tell of COPY and RESTORE. For RENAME and MOVE there are hints: the
//! names in commands that passed a filter. When a space leaves a name, the timer looks at the
//! destinations that commands gave for that name. A hint can be lacking, as the commands of an AOF
//! pass no filter and only so many names are remembered. Then `queue_repair` finds the space.

use crate::server::blocking::blocked_clients;
use crate::server::expiry::expiry_queue;
use crate::server::expiry::sweep;
use crate::server::ffi::args::{integer, Arg};
use crate::server::ffi::context::{Context, OwnedString};
use crate::server::keyspace::key;
use redis_module::raw;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::c_int;
use std::time::{Duration, Instant};

/// So many names are remembered of which a command said that they are to be moved.
const REMEMBERED: usize = 1024;
/// Destinations that are remembered for a name.
const DESTINATIONS: usize = 16;
/// Longer names are not remembered.
const LONGEST_NAME: usize = 4096;
/// Destinations that wait for the timer.
const HINTS: usize = 1024;
/// The timer looks at them for no longer than this at a time.
const SLICE: Duration = Duration::from_micros(500);

/// The first version with the fault and the first one without it, as the server numbers them.
const FAULT: std::ops::Range<c_int> = 0x0008_0100..0x0009_0100;

/// Where a name is moved to: the database, where that is another, and the name.
type Destination = (Option<i32>, Vec<u8>);

/// Names that commands said they move, with their destinations. A command can stand in a MULTI, so that
/// it is carried out later, or never; then its names are dropped when there are too many.
#[derive(Default)]
struct Moves {
    to: BTreeMap<Vec<u8>, BTreeSet<Destination>>,
    /// The names from which they move, the oldest first.
    order: VecDeque<Vec<u8>>,
}

impl Moves {
    fn remember(&mut self, from: &[u8], to: Destination) {
        if from.len() > LONGEST_NAME || to.1.len() > LONGEST_NAME {
            return;
        }
        if let Some(known) = self.to.get_mut(from) {
            if known.len() < DESTINATIONS {
                known.insert(to);
            }
            return;
        }
        if self.order.len() >= REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.to.remove(&oldest);
            }
        }
        self.order.push_back(from.to_vec());
        self.to.insert(from.to_vec(), BTreeSet::from([to]));
    }
}

thread_local! {
    /// A context that outlives calls, on servers with the fault: some callbacks get none.
    static KEPT: Cell<Option<Context>> = const { Cell::new(None) };
    static MOVES: RefCell<Moves> = RefCell::default();
    /// What is expected since the timer ran last.
    static EXPECTED: RefCell<BTreeSet<(i32, Vec<u8>)>> = const { RefCell::new(BTreeSet::new()) };
    /// Where spaces may be that left their names, as (database, name). The timer has not looked yet.
    static PENDING: RefCell<Vec<(i32, Vec<u8>)>> = const { RefCell::new(Vec::new()) };
}

/// Finds out how key moves are told here. Returns whether by keyspace events, or none on failure.
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
        KEPT.set(Some(Context::from_raw(kept)));
    }
    Some(false)
}

/// A space is about to be at this key. By the time that the timer runs it is there, or the entry
/// is stale.
pub fn expect(db: i32, name: &[u8]) {
    if let Some(ctx) = KEPT.get() {
        EXPECTED.with_borrow_mut(|expected| expected.insert((db, name.to_vec())));
        let now = key::server_time();
        expiry_queue::schedule(db, name, now);
        blocked_clients::wake(db, name);
        sweep::arm(ctx, now);
    }
}

/// A space may be at this name. The timer looks.
fn look_for(ctx: Context, db: i32, name: Vec<u8>) {
    PENDING.with_borrow_mut(|pending| {
        if pending.len() < HINTS {
            pending.push((db, name));
        }
    });
    sweep::arm_now(ctx);
}

/// The timer runs: what was expected is there by now, and what left its name is looked for. Returns
/// whether there is more to look for.
pub fn settle(ctx: Context) -> bool {
    EXPECTED.with_borrow_mut(BTreeSet::clear);
    let began = Instant::now();
    while let Some((db, name)) = PENDING.with_borrow_mut(Vec::pop) {
        let name = OwnedString::new(&name);
        if ctx.select_db(db) {
            key::arrived(ctx, name.as_arg());
        }
        if began.elapsed() >= SLICE {
            return PENDING.with_borrow(|pending| !pending.is_empty());
        }
    }
    false
}

/// Two databases have changed their numbers.
pub fn swapped(a: i32, b: i32) {
    PENDING.with_borrow_mut(|pending| {
        for (db, _) in pending {
            *db = if *db == a {
                b
            } else if *db == b {
                a
            } else {
                *db
            };
        }
    });
}

/// A space is no longer at this key: if it was moved, it is looked for elsewhere.
pub fn left(db: i32, name: &[u8]) {
    let Some(ctx) = KEPT.get() else { return };
    // COPY and RESTORE with REPLACE make the new value before they delete the old one.
    if EXPECTED.with_borrow(|expected| expected.contains(&(db, name.to_vec()))) {
        expect(db, name);
    }
    let destinations = MOVES.with_borrow(|moves| moves.to.get(name).cloned());
    for (to_db, to) in destinations.into_iter().flatten() {
        look_for(ctx, to_db.unwrap_or(db), to);
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
    let to = if is(b"RENAME") || is(b"RENAMENX") {
        (None, to.to_vec())
    } else if is(b"MOVE") {
        (integer(to).and_then(|db| i32::try_from(db).ok()), from.to_vec())
    } else {
        return;
    };
    MOVES.with_borrow_mut(|moves| moves.remember(from, to));
}

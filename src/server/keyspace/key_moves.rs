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

use crate::server::blocking::space_waits;
use crate::server::expiry::expiry_queue;
use crate::server::expiry::sweep;
use crate::server::ffi::args::{Arg, integer};
use crate::server::ffi::clock::server_time;
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
/// it is carried out later, or never. What was said last is remembered.
#[derive(Default)]
struct Moves {
    /// The destinations of each name, the latest last, and when the name was told last.
    to: BTreeMap<Vec<u8>, (u64, VecDeque<Destination>)>,
    /// The names by when they were told last.
    order: BTreeMap<u64, Vec<u8>>,
    told: u64,
}

impl Moves {
    fn remember(&mut self, from: &[u8], to: Destination) {
        if from.len() > LONGEST_NAME || to.1.len() > LONGEST_NAME {
            return;
        }
        self.told += 1;
        let (told, known) = self.to.entry(from.to_vec()).or_default();
        self.order.remove(told);
        *told = self.told;
        self.order.insert(self.told, from.to_vec());
        known.retain(|other| *other != to);
        known.push_back(to);
        if known.len() > DESTINATIONS {
            known.pop_front();
        }
        if self.to.len() > REMEMBERED
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.to.remove(&oldest);
        }
    }

    fn destinations(&self, from: &[u8]) -> impl Iterator<Item = &Destination> + use<'_> {
        self.to.get(from).into_iter().flat_map(|(_, known)| known)
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
        let now = server_time();
        expiry_queue::schedule(db, name, now);
        space_waits::wake(db, name);
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
    let destinations: Vec<Destination> =
        MOVES.with_borrow(|moves| moves.destinations(name).cloned().collect());
    for (to_db, to) in destinations {
        look_for(ctx, to_db.unwrap_or(db), to);
    }
}

unsafe extern "C" fn on_command(filter: *mut raw::RedisModuleCommandFilterCtx) {
    // SAFETY: the server passes the filter context of this call.
    if unsafe { api!(RedisModule_CommandFilterArgsCount(filter)) } != 3 {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn known(moves: &Moves, from: &str) -> Vec<String> {
        let name = |(_, to): &Destination| String::from_utf8_lossy(to).into_owned();
        moves.destinations(from.as_bytes()).map(name).collect()
    }

    #[test]
    fn the_latest_destinations_are_remembered() {
        let mut moves = Moves::default();
        for n in 0..100 {
            moves.remember(b"draft", (None, format!("room-{n}").into_bytes()));
        }
        moves.remember(b"draft", (None, b"room-90".to_vec()));
        let latest = known(&moves, "draft");
        assert_eq!(latest.len(), DESTINATIONS);
        assert_eq!(latest[DESTINATIONS - 2..], ["room-99", "room-90"]);
    }

    #[test]
    fn the_names_that_were_told_last_are_remembered() {
        let mut moves = Moves::default();
        moves.remember(b"old", (None, b"x".to_vec()));
        for n in 0..REMEMBERED - 1 {
            moves.remember(format!("n{n}").as_bytes(), (Some(1), b"x".to_vec()));
        }
        moves.remember(b"old", (None, b"y".to_vec()));
        moves.remember(b"one more", (None, b"x".to_vec()));
        assert_eq!(known(&moves, "old"), ["x", "y"]);
        assert_eq!(known(&moves, "n0"), [""; 0]);
        assert_eq!((moves.to.len(), moves.order.len()), (REMEMBERED, REMEMBERED));
    }
}

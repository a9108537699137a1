//! Finds spaces that the expiry queue lacks, and files them.
//!
//! A space without an entry is never swept: nobody leaves, and the key stays. The module files every
//! space that it hears of, but a server can move a key without telling of it, or tell of it with the
//! wrong database. So a timer checks two things.
//!
//! - There are as many spaces in memory as entries. If there are more for two checks in a row, a scan of
//!   all keys looks for the others, in slices of [`SLICE`] that take a twentieth of the server's time. A
//!   space that is being freed in another thread is counted as well, so a scan can be in vain; the
//!   next one then waits, up to [`LONGEST_WAIT`].
//! - In any case a slow walk goes over all keys again and again.
//!
//! Both only add entries to the queue, so they run on replicas and while the server is paused too.

use crate::server::expiry::expiry_queue;
use crate::server::expiry::sweep;
use crate::server::ffi::args::Arg;
use crate::server::ffi::context::Context;
use crate::server::keyspace::key;
use crate::server::keyspace::key_moves;
use crate::server::module::stats;
use redis_module::raw;
use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

/// The timer checks this often (ms).
const CHECK_MS: i64 = 100;
/// The scan takes a slice this often (ms).
const SCAN_MS: i64 = 10;
/// The longest that a slice of the scan, or a step of the walk, takes.
const SLICE: Duration = Duration::from_micros(500);
/// Keys that the walk visits per check: while all is well, and until a whole pass has found nothing.
const KEYS_WHEN_WELL: usize = 10;
const KEYS: usize = 30;
/// Calls of the server per key that the walk wants to visit: its tables can be nearly empty.
const CALLS_PER_KEY: usize = 20;
/// Checks in a row that must find more spaces than entries before a scan begins.
const CHECKS_TO_SCAN: u32 = 2;
/// Checks in a row without more spaces than entries after which no scan has to wait.
const CHECKS_TO_FORGET: u32 = 100;
/// How long the next scan waits after one that left spaces without entries.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// At most one line is logged in this time.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// A position in the keyspace: the database, and the server's cursor in it.
struct Position {
    db: i32,
    cursor: Option<*mut raw::RedisModuleScanCursor>,
}

/// What a walk over some keys has come to.
#[derive(Default)]
struct Visited {
    db: i32,
    /// This server decides what happens in its spaces.
    decides: bool,
    keys: usize,
    repaired: u64,
}

struct State {
    position: Position,
    /// Entries that were added in the present pass over all keys.
    repaired: u64,
    /// Whether the last whole pass found nothing.
    is_well: bool,
    is_scanning: bool,
    /// Checks in a row with more spaces than entries, and without.
    checks_with: u32,
    checks_without: u32,
    wait: Duration,
    next_scan: Option<Instant>,
    not_logged: u64,
    last_log: Option<Instant>,
}

impl State {
    const fn new() -> Self {
        State {
            position: Position { db: 0, cursor: None },
            repaired: 0,
            is_well: false,
            is_scanning: false,
            checks_with: 0,
            checks_without: 0,
            wait: Duration::ZERO,
            next_scan: None,
            not_logged: 0,
            last_log: None,
        }
    }
}

thread_local! {
    static STATE: RefCell<State> = const { RefCell::new(State::new()) };
}

/// How many spaces in memory have no entry in the expiry queue, those that are being freed included.
pub fn missing() -> i64 {
    let (spaces, ..) = stats::totals();
    spaces.saturating_sub_unsigned(expiry_queue::entries() as u64)
}

/// Starts the timer.
pub fn start(ctx: Context) {
    arm(ctx, CHECK_MS);
}

fn arm(ctx: Context, wait: i64) {
    // SAFETY: the callback is a plain function that lives as long as the module.
    unsafe { api!(RedisModule_CreateTimer(ctx.raw(), wait, Some(check), std::ptr::null_mut())) };
}

unsafe extern "C" fn check(ctx: *mut raw::RedisModuleCtx, _: *mut c_void) {
    // SAFETY: the server passes the context of this timer.
    let ctx = unsafe { Context::from_raw(ctx) };
    // What is known to have moved is filed first: it is not missing.
    let more_to_find = key_moves::settle(ctx);
    let wait = STATE.with_borrow_mut(|state| {
        state.judge(missing());
        let (spaces, ..) = stats::totals();
        if spaces > 0 && !more_to_find {
            state.walk(ctx);
        }
        state.log(ctx);
        if state.is_scanning { SCAN_MS } else { CHECK_MS }
    });
    sweep::arm(ctx, ctx.now());
    arm(ctx, wait);
}

impl State {
    /// Decides whether to scan, given how many spaces have no entry.
    fn judge(&mut self, missing: i64) {
        if missing <= 0 {
            self.is_scanning = false;
            self.checks_with = 0;
            self.checks_without = self.checks_without.saturating_add(1);
            if self.checks_without >= CHECKS_TO_FORGET {
                self.wait = Duration::ZERO;
                self.next_scan = None;
            }
            return;
        }
        self.checks_without = 0;
        self.checks_with = self.checks_with.saturating_add(1);
        let may_scan = self.next_scan.is_none_or(|next| Instant::now() >= next);
        if !self.is_scanning && self.checks_with >= CHECKS_TO_SCAN && may_scan {
            self.is_scanning = true;
            self.begin_pass();
        }
    }

    fn begin_pass(&mut self) {
        self.position.rewind();
        self.repaired = 0;
    }

    /// Visits some keys, and files the spaces among them that have no entry.
    fn walk(&mut self, ctx: Context) {
        let keys = match (self.is_scanning, self.is_well) {
            (true, _) => usize::MAX,
            (false, true) => KEYS_WHEN_WELL,
            (false, false) => KEYS,
        };
        let mut calls = keys.saturating_mul(CALLS_PER_KEY);
        let began = Instant::now();
        let mut visited = Visited { decides: ctx.is_primary(), ..Visited::default() };
        while visited.keys < keys && calls > 0 && began.elapsed() < SLICE {
            calls -= 1;
            let is_end = self.position.step(ctx, &mut visited);
            let repaired = std::mem::take(&mut visited.repaired);
            self.repaired += repaired;
            self.not_logged += repaired;
            if is_end {
                self.end_pass();
                break;
            }
        }
    }

    fn end_pass(&mut self) {
        self.is_well = self.repaired == 0;
        if self.is_scanning {
            let longer = if self.is_well { self.wait * 2 } else { SHORTEST_WAIT };
            self.wait = longer.clamp(SHORTEST_WAIT, LONGEST_WAIT);
            self.next_scan = Instant::now().checked_add(self.wait);
            self.is_scanning = false;
        }
        self.begin_pass();
    }

    fn log(&mut self, ctx: Context) {
        let repaired = self.not_logged;
        if repaired > 0 && self.last_log.is_none_or(|last| last.elapsed() >= LOG_EVERY) {
            self.not_logged = 0;
            self.last_log = Some(Instant::now());
            let text = format!(
                "presence: {repaired} spaces were missing from the expiry queue and have been added to it"
            );
            ctx.log(c"notice", &text);
        }
    }
}

impl Position {
    fn rewind(&mut self) {
        self.close();
        self.db = 0;
    }

    fn close(&mut self) {
        if let Some(cursor) = self.cursor.take() {
            // SAFETY: made by `step`, destroyed once and not used after that.
            unsafe { api!(RedisModule_ScanCursorDestroy(cursor)) };
        }
    }

    /// Visits the next few keys, or goes on to the next database. Returns true behind the last one.
    fn step(&mut self, ctx: Context, visited: &mut Visited) -> bool {
        if !ctx.select_db(self.db) {
            self.rewind();
            return true;
        }
        if self.cursor.is_none() && !ctx.has_keys() {
            self.db = self.db.saturating_add(1);
            return false;
        }
        visited.db = self.db;
        // SAFETY: the cursor is destroyed by `close`; `visit` is a plain function, and gets a pointer
        // to what lives through the call.
        unsafe {
            let cursor = self.cursor.get_or_insert_with(|| api!(RedisModule_ScanCursorCreate()));
            let visited = std::ptr::from_mut(visited).cast::<c_void>();
            if api!(RedisModule_Scan(ctx.raw(), *cursor, Some(visit), visited)) == 0 as c_int {
                self.close();
                self.db = self.db.saturating_add(1);
            }
        }
        false
    }
}

unsafe extern "C" fn visit(
    _: *mut raw::RedisModuleCtx,
    name: *mut raw::RedisModuleString,
    key: *mut raw::RedisModuleKey,
    visited: *mut c_void,
) {
    // SAFETY: `step` passes a pointer to a `Visited`, and does not use it otherwise before RM_Scan
    // returns.
    let Some(visited) = (unsafe { visited.cast::<Visited>().as_mut() }) else { return };
    visited.keys += 1;
    if name.is_null() || key.is_null() {
        return;
    }
    // SAFETY: the name is a string of the server.
    let name = unsafe { Arg::from_raw(name) }.bytes();
    // SAFETY: a scan visits keys that have a value, each opened by the server. It runs in a timer, so
    // nothing else refers to the value.
    if unsafe { key::repair(key, visited.db, name, visited.decides) } {
        visited.repaired += 1;
        stats::QUEUE_REPAIRS.add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_begins_when_spaces_lack_entries_for_a_while() {
        let mut state = State::new();
        state.judge(1);
        state.judge(0);
        state.judge(1);
        assert!(!state.is_scanning);
        state.judge(1);
        assert!(state.is_scanning);
        // It ends when all have entries.
        state.judge(0);
        assert!(!state.is_scanning);
    }

    #[test]
    fn scans_in_vain_wait_longer_each_time() {
        let mut state = State::new();
        let mut waits = Vec::new();
        for _ in 0..9 {
            state.next_scan = None;
            (0..2).for_each(|_| state.judge(1));
            assert!(state.is_scanning);
            state.end_pass();
            (0..5).for_each(|_| state.judge(1));
            assert!(!state.is_scanning);
            waits.push(state.wait.as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        // One that finds something is soon followed by another.
        state.is_scanning = true;
        state.repaired = 3;
        state.end_pass();
        assert_eq!((state.wait.as_secs(), state.is_well), (1, false));
        (0..CHECKS_TO_FORGET).for_each(|_| state.judge(0));
        assert_eq!((state.wait.as_secs(), state.next_scan), (0, None));
    }
}

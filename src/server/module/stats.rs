//! What INFO tells: counters since the module was loaded and gauges of what is there.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// Counts up only, by the server's main thread.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Counter(AtomicU64::new(0))
    }

    pub fn add(&self, count: u64) {
        // Without a lock, which takes as long as much else of a heartbeat.
        self.0.store(self.get().wrapping_add(count), Relaxed);
    }

    pub fn raise_to(&self, value: u64) {
        self.0.fetch_max(value, Relaxed);
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

pub static JOINS: Counter = Counter::new();
pub static LEAVES: Counter = Counter::new();
pub static TIMEOUTS: Counter = Counter::new();
pub static RENEWALS: Counter = Counter::new();
pub static EVENTS: Counter = Counter::new();
pub static MESSAGES: Counter = Counter::new();
pub static SWEEPS: Counter = Counter::new();
pub static QUEUE_REPAIRS: Counter = Counter::new();
pub static LONGEST_SWEEP_US: Counter = Counter::new();

/// How late the ends of leases were noticed (ms).
pub struct Lags {
    pub last: Counter,
    pub max: Counter,
    recent: [AtomicU64; WINDOW],
    next: AtomicU64,
}

/// Of so many ends, the most recent, the 99th percentile is taken.
const WINDOW: usize = 1024;
/// What no lag is, for the places of the window that were not used yet.
const UNUSED: u64 = u64::MAX;

pub static LAGS: Lags = Lags {
    last: Counter::new(),
    max: Counter::new(),
    recent: [const { AtomicU64::new(UNUSED) }; WINDOW],
    next: AtomicU64::new(0),
};

impl Lags {
    pub fn note(&self, lag: u64) {
        self.last.set(lag);
        self.max.raise_to(lag);
        let at = self.next.fetch_add(1, Relaxed) as usize % WINDOW;
        if let Some(place) = self.recent.get(at) {
            place.store(lag, Relaxed);
        }
    }

    pub fn p99(&self) -> u64 {
        let mut lags: Vec<u64> =
            self.recent.iter().map(|lag| lag.load(Relaxed)).filter(|lag| *lag != UNUSED).collect();
        lags.sort_unstable();
        let rank = (lags.len() * 99).div_ceil(100).saturating_sub(1);
        lags.get(rank).copied().unwrap_or(0)
    }
}

/// Users, sessions and memory of a space as they were last added to the totals. A space has one of
/// these each, so it is kept small: there are no more sessions than have numbers of 32 bits, and
/// what allocators give are multiples of [`UNIT`] as a rule.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    users: u32,
    sessions: u32,
    units: u32,
}

/// Bytes are counted by so many.
const UNIT: usize = 16;

impl Size {
    pub fn new(users: usize, sessions: usize, bytes: usize) -> Self {
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (users, sessions) = (narrow(users), narrow(sessions));
        Size { users, sessions, units: narrow(bytes.div_ceil(UNIT)) }
    }

    pub fn bytes(self) -> usize {
        self.units as usize * UNIT
    }
}

static SPACES: AtomicI64 = AtomicI64::new(0);
static USERS: AtomicI64 = AtomicI64::new(0);
static SESSIONS: AtomicI64 = AtomicI64::new(0);
static BYTES: AtomicI64 = AtomicI64::new(0);

/// The totals over all spaces in memory. A space that is freed in the background counts until it
/// is gone.
pub fn totals() -> (i64, i64, i64, i64) {
    (SPACES.load(Relaxed), USERS.load(Relaxed), SESSIONS.load(Relaxed), BYTES.load(Relaxed))
}

pub fn space_came() {
    SPACES.fetch_add(1, Relaxed);
}

pub fn space_went() {
    SPACES.fetch_sub(1, Relaxed);
}

/// A space was of one size and is now of another.
pub fn resized(before: Size, after: Size) {
    let change = |total: &AtomicI64, before: usize, after: usize| {
        if before != after {
            total.fetch_add(after as i64 - before as i64, Relaxed);
        }
    };
    change(&USERS, before.users as usize, after.users as usize);
    change(&SESSIONS, before.sessions as usize, after.sessions as usize);
    change(&BYTES, before.bytes(), after.bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_of_the_recent_ones() {
        assert_eq!(LAGS.p99(), 0);
        for lag in 0..200 {
            LAGS.note(lag);
        }
        assert_eq!((LAGS.last.get(), LAGS.max.get(), LAGS.p99()), (199, 199, 197));
        for _ in 0..WINDOW {
            LAGS.note(3);
        }
        assert_eq!((LAGS.last.get(), LAGS.max.get(), LAGS.p99()), (3, 199, 3));
    }
}

//! The process's expiry_queue: which space is due next. And the epochs of deleted spaces that are not yet
//! past: of those that were deleted in the millisecond in which they were created, and of those
//! whose epoch was ahead of the clock.
//!
//! Thread-local because only the main thread uses it; a thread that had no business here would
//! find an empty one. No borrow of it lasts across a call into the server.

use presence_core::collections::hash_of;
use presence_core::expiry_queue::{ExpiryQueue, SomeNames};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// The maximum number of epochs that are remembered by name.
const RECENT_EPOCHS: usize = 1024;
/// So many names are freed at once without being felt; more are freed in the background.
const FREED_HERE: usize = 10_000;

#[derive(Default)]
struct State {
    current: ExpiryQueue,
    /// The expiry queue of a dataset that is being loaded aside.
    aside: Option<ExpiryQueue>,
    /// Whether the server has told of a key outside of database 0 there.
    aside_tells_dbs: bool,
    /// The epochs of deleted spaces that a space created now could get again, by the hash of
    /// database and name: two names with one hash only make an epoch later than it need be.
    recent_epochs: BTreeMap<u64, u64>,
    /// No new epoch is earlier than this: what was flushed had no names, and not all names are
    /// remembered.
    epoch_floor: u64,
    /// When `recent_epochs` was last rid of what is in the past.
    recent_as_of: u64,
    /// The space that was loaded last: its database, its name, when it is due.
    loaded: Option<(i32, Vec<u8>, u64)>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
    static LATEST_EPOCH: Cell<u64> = const { Cell::new(0) };
}

fn with<T>(use_it: impl FnOnce(&mut State) -> T) -> T {
    STATE.with_borrow_mut(use_it)
}

/// Files a space under the moment from which it may have something to do.
pub fn schedule(db: i32, name: &[u8], due: u64) {
    with(|state| state.current.schedule(db, name, due));
}

/// The same, where the space is not due earlier.
pub fn schedule_sooner(db: i32, name: &[u8], due: u64) {
    with(|state| {
        if state.current.due_of(db, name).is_none_or(|before| due < before) {
            state.current.schedule(db, name, due);
        }
    });
}

pub fn forget(db: i32, name: &[u8]) {
    with(|state| state.current.forget(db, name));
}

/// When spaces are due, or what they have to tell, may be other than was thought: all are to be
/// looked at, beside what is due.
pub fn look_at_all() {
    with(|state| state.current.look_at_all());
}

pub fn has_looks() -> bool {
    with(|state| state.current.has_looks())
}

/// The next space that is to be looked at, as in `first_due`.
pub fn next_look() -> Option<(u64, i32, Vec<u8>)> {
    with(|state| state.current.next_look().map(|(due, db, name)| (due, db, name.to_vec())))
}

/// When the first space is due.
pub fn next_due() -> Option<u64> {
    with(|state| state.current.next_due())
}

/// The space that is due first, if it is due at `now`: since when, its database, its name.
pub fn first_due(now: u64) -> Option<(u64, i32, Vec<u8>)> {
    with(|state| {
        let (due, db, name) = state.current.first()?;
        (due <= now).then(|| (due, db, name.to_vec()))
    })
}

/// How many spaces are due; `limit` if there are that many or more.
pub fn backlog(now: u64, limit: usize) -> usize {
    with(|state| state.current.backlog(now, limit))
}

/// Whether a space is filed.
pub fn has(db: i32, name: &[u8]) -> bool {
    with(|state| state.current.due_of(db, name).is_some())
}

/// How many spaces are filed, those of a dataset that is being loaded aside included.
pub fn entries() -> usize {
    with(|state| state.current.len() + state.aside.as_ref().map_or(0, ExpiryQueue::len))
}

/// How many spaces are filed and an estimate of the bytes that takes.
pub fn size() -> (usize, usize) {
    with(|state| (state.current.len(), state.current.heap_bytes()))
}

/// A database was emptied, or all of them.
pub fn flushed(db: Option<i32>) {
    let latest = LATEST_EPOCH.get();
    match db {
        Some(db) => {
            let gone = with(|state| {
                forget_names(state, latest);
                state.current.forget_db(db)
            });
            if let Some(gone) = gone {
                let names = gone.len();
                free(gone, names);
            }
        }
        None => {
            let gone = with(|state| {
                forget_names(state, latest);
                std::mem::take(&mut state.current)
            });
            let names = gone.len();
            free(gone, names);
        }
    }
}

/// Frees so many names. Many take their time: another thread does it.
fn free<T: Send + 'static>(gone: T, names: usize) {
    if names >= FREED_HERE {
        // If no thread can be had, the closure is dropped here, and the names with it.
        let _ = std::thread::Builder::new().spawn(move || drop(gone));
    }
}

pub fn swapped(a: i32, b: i32) {
    let latest = LATEST_EPOCH.get();
    with(|state| {
        state.current.swap_dbs(a, b);
        forget_names(state, latest);
    });
}

/// A space is being loaded from an RDB. Whether it becomes a key shows `loaded`.
pub fn loading(db: i32, name: &[u8], due: u64) {
    with(|state| state.loaded = Some((db, name.to_vec(), due)));
}

/// A key was loaded from an RDB.
pub fn loaded(db: i32, name: &[u8]) {
    with(|state| {
        state.aside_tells_dbs |= state.aside.is_some() && db != 0;
        // The event can name another database, that of the client: what `loading` was told counts.
        if let Some((db, _, due)) = state.loaded.take_if(|(_, other, _)| other == name) {
            state.aside.as_mut().unwrap_or(&mut state.current).schedule(db, name, due);
        }
    });
}

/// A dataset begins to be loaded beside the one that is served.
pub fn begin_aside() {
    with(|state| {
        state.aside = Some(ExpiryQueue::default());
        state.aside_tells_dbs = false;
    });
}

/// The dataset that was loaded aside is given up.
pub fn drop_aside() {
    with(|state| state.aside = None);
}

/// The dataset that was loaded aside is now the one that is served. False where the server has told
/// of no key outside of database 0.
pub fn take_aside() -> bool {
    with(|state| {
        if let Some(aside) = state.aside.take() {
            state.current = aside;
        }
        state.aside_tells_dbs
    })
}

/// The names of all spaces that are filed in a database.
pub fn names(db: i32) -> Vec<Box<[u8]>> {
    with(|state| state.current.names(db))
}

/// The next names of a database in the order of their hashes, as in [`ExpiryQueue::names_from`].
pub fn names_from(db: i32, from: u64) -> SomeNames {
    with(|state| state.current.names_from(db, from))
}

/// The epoch for a space that is created at `now`: later than that of any space of this name that
/// is gone.
pub fn new_epoch(db: i32, name: &[u8], now: u64) -> u64 {
    let epoch = with(|state| {
        let epoch = now.max(state.epoch_floor);
        if state.recent_epochs.is_empty() {
            return epoch;
        }
        if state.recent_as_of != now {
            state.recent_as_of = now;
            state.recent_epochs.retain(|_, gone| *gone >= now);
        }
        let gone = state.recent_epochs.get(&epoch_key(db, name));
        gone.map_or(epoch, |gone| epoch.max(gone + 1))
    });
    epoch_given(epoch);
    epoch
}

/// A space has this epoch, which was given out here, or by the server that this one replicates or
/// has its data from.
pub fn epoch_given(epoch: u64) {
    LATEST_EPOCH.set(LATEST_EPOCH.get().max(epoch));
}

/// No later epoch was given to a space, nor is one remembered: what a snapshot has to say of epochs.
pub fn latest_epoch() -> u64 {
    let named = with(|state| {
        let floor = state.epoch_floor.saturating_sub(1);
        state.recent_epochs.values().copied().max().unwrap_or(0).max(floor)
    });
    named.max(LATEST_EPOCH.get())
}

/// A snapshot says that no later epoch was given to a space. Some of these spaces may be deleted, so no new
/// one is as early.
pub fn epoch_loaded(epoch: u64) {
    epoch_given(epoch);
    with(|state| state.epoch_floor = state.epoch_floor.max(epoch.saturating_add(1)));
}

/// Whether a dataset is being loaded beside the one that is served.
pub fn is_loading_aside() -> bool {
    with(|state| state.aside.is_some())
}

/// A space was deleted.
pub fn epoch_ended(db: i32, name: &[u8], epoch: u64, now: u64) {
    if epoch < now {
        return;
    }
    with(|state| {
        let gone = state.recent_epochs.entry(epoch_key(db, name)).or_default();
        *gone = epoch.max(*gone);
        if state.recent_epochs.len() > RECENT_EPOCHS {
            forget_earlier_half(state);
        }
    });
}

/// The later epochs stay remembered by name. The earlier ones become the floor for all names,
/// which so rises no more than it must: an epoch of the far future can come by RESTORE.
fn forget_earlier_half(state: &mut State) {
    let mut epochs: Vec<u64> = state.recent_epochs.values().copied().collect();
    let middle = epochs.len() / 2;
    let (_, median, _) = epochs.select_nth_unstable(middle);
    let median = *median;
    state.epoch_floor = state.epoch_floor.max(median.saturating_add(1));
    state.recent_epochs.retain(|_, gone| *gone > median);
}

/// What is remembered by name is too much, or of no use after databases were swapped or emptied:
/// it holds for all names from now on.
fn forget_names(state: &mut State, latest: u64) {
    let named = state.recent_epochs.values().max().copied().unwrap_or(0);
    state.epoch_floor = state.epoch_floor.max(latest.max(named) + 1);
    state.recent_epochs.clear();
}

fn epoch_key(db: i32, name: &[u8]) -> u64 {
    hash_of(&[&db.to_le_bytes(), name].concat())
}

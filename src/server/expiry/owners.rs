//! The owners of this process, a registry per database. What is loaded aside has registries of its own.
//!
//! Thread-local because only the main thread uses it. No borrow of it lasts across a call into the server.

use presence_core::owners::Owners;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// So many owners are freed at once without being felt; more are freed in the background.
const FREED_HERE: usize = 1000;

type Registries = BTreeMap<i32, Owners>;

#[derive(Default)]
struct State {
    current: Registries,
    /// The owners of a dataset that is being loaded aside.
    aside: Option<Registries>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

fn with_state<T>(use_it: impl FnOnce(&mut State) -> T) -> T {
    STATE.with_borrow_mut(use_it)
}

/// Uses the owners of a database of the dataset that is served. The function must not call the server.
pub fn with<T>(db: i32, use_them: impl FnOnce(&mut Owners) -> T) -> T {
    with_state(|state| use_them(state.current.entry(db).or_default()))
}

/// Uses the owners of a database of the dataset that is being loaded: aside, or else in the place of what is
/// served. The function must not call the server.
pub fn with_loading<T>(db: i32, use_them: impl FnOnce(&mut Owners) -> T) -> T {
    with_state(|state| {
        let registries = state.aside.as_mut().unwrap_or(&mut state.current);
        use_them(registries.entry(db).or_default())
    })
}

/// The databases that have or had owners.
pub fn dbs() -> Vec<i32> {
    with_state(|state| state.current.keys().copied().collect())
}

/// Owners of all databases, and an estimate of the bytes that they take.
pub fn size() -> (usize, usize) {
    with_state(|state| {
        let registries = state.current.values();
        registries.fold((0, 0), |(owners, bytes), registry| {
            (owners + registry.len(), bytes + registry.heap_bytes())
        })
    })
}

#[allow(dead_code)]
/// The moment from which an owner of a database may have expired.
pub fn next_due() -> Option<u64> {
    with_state(|state| state.current.values().filter_map(Owners::next_due).min())
}

/// This server decides from now on: see [`Owners::begin_to_decide`].
pub fn begin_to_decide(until: u64, now: u64) {
    with_state(|state| {
        state.current.values_mut().for_each(|owners| owners.begin_to_decide(until, now));
    });
}

/// A database was emptied, or all of them.
pub fn flushed(db: Option<i32>) {
    let gone = with_state(|state| match db {
        Some(db) => state.current.remove_entry(&db).into_iter().collect(),
        None => std::mem::take(&mut state.current),
    });
    if gone.values().any(|owners| owners.len() >= FREED_HERE || owners.heap_bytes() > 1 << 20) {
        // If no thread can be had, the closure is dropped here, and the owners with it.
        let _ = std::thread::Builder::new().spawn(move || drop(gone));
    }
}

pub fn swapped(a: i32, b: i32) {
    with_state(|state| {
        let (of_a, of_b) = (state.current.remove(&a), state.current.remove(&b));
        state.current.extend(of_a.map(|owners| (b, owners)));
        state.current.extend(of_b.map(|owners| (a, owners)));
    });
}

/// A dataset begins to be loaded beside the one that is served.
pub fn begin_aside() {
    with_state(|state| state.aside = Some(BTreeMap::new()));
}

/// The dataset that was loaded aside is given up.
pub fn drop_aside() {
    with_state(|state| state.aside = None);
}

/// The dataset that was loaded aside is now the one that is served.
pub fn take_aside() {
    with_state(|state| {
        if let Some(aside) = state.aside.take() {
            state.current = aside;
        }
    });
}

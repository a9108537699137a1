//! The owners of this process, a registry per database. What is loaded aside has registries of its own.
//!
//! Thread-local because only the main thread uses it. No borrow of it lasts across a call into the server.

use presence_core::owners::{Owner, OwnerLease, Owners};
use presence_core::space::Space;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

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

/// The live owner of that name.
pub fn live(db: i32, name: &str, now: u64) -> Option<Arc<Owner>> {
    with(db, |owners| owners.live(name, now).cloned())
}

/// Sees to it that the owners of a space are those of its database, and that these know the space. `decides` says
/// that the space has arrived at a server that decides: an owner that has expired here is as unknown.
pub fn bind(db: i32, name: &[u8], space: &mut Space, decides: bool, now: u64) {
    with(db, |owners| bind_to(owners, name, space, decides, now));
}

/// The same, of a space that is being loaded.
pub fn bind_loading(db: i32, name: &[u8], space: &mut Space, now: u64) {
    if space.has_owners() {
        with_loading(db, |owners| bind_to(owners, name, space, false, now));
    }
}

fn bind_to(owners: &mut Owners, name: &[u8], space: &mut Space, decides: bool, now: u64) {
    let clock = owners.clock().clone();
    if space.are_owners_bound(&clock) {
        return;
    }
    let resolve = |owner: &str, lease: OwnerLease| match decides {
        true => owners.arrive(owner, lease, now),
        false => owners.refer(owner, lease, now),
    };
    space.bind_owners(&clock, resolve);
    tell_news(owners, name, space);
}

fn tell_news(owners: &mut Owners, name: &[u8], space: &mut Space) {
    for (owner, has_sessions) in space.take_owner_news() {
        if has_sessions {
            owners.attach(&owner, name);
        } else {
            owners.detach(&owner, name);
        }
    }
}

/// The owners that have sessions in a space may be others than before.
pub fn changed(db: i32, name: &[u8], space: &mut Space) {
    if space.has_owners() {
        with(db, |owners| tell_news(owners, name, space));
    }
}

/// A space is at this key: its owners know it from now on.
pub fn arrived(db: i32, name: &[u8], space: &mut Space, decides: bool, now: u64) {
    if space.has_owners() {
        bind(db, name, space, decides, now);
        with(db, |owners| {
            space.owners().for_each(|owner| {
                owners.attach(owner, name);
            });
        });
    }
}

/// A space is no longer at this key.
pub fn left(db: i32, name: &[u8], space: &Space) {
    if space.has_owners() {
        space.release_owners();
        with(db, |owners| space.owners().for_each(|owner| owners.detach(owner, name)));
    }
}

/// The owner that the primary, or an earlier life of this server, names in a database.
pub fn refer(db: i32, name: &str, lease: OwnerLease, now: u64) -> Arc<Owner> {
    with(db, |owners| owners.refer(name, lease, now))
}

/// Ends an owner whose lease is over. Returns its database, in which others are to be told of it.
pub fn end_next_expired(now: u64) -> Option<(i32, Arc<Owner>)> {
    with_state(|state| {
        let mut due = state.current.iter_mut().filter(|(_, owners)| owners.has_expired(now));
        due.find_map(|(db, owners)| Some((*db, owners.end_next_expired(now)?)))
    })
}

/// A space in which sessions of an owner that has ended are still to end. Each is given out once.
pub fn next_space() -> Option<(i32, Box<[u8]>)> {
    with_state(|state| {
        let mut registries = state.current.iter_mut();
        registries.find_map(|(db, owners)| Some((*db, owners.next_space()?)))
    })
}

//! Clients that wait for the next event of one or several spaces.
//!
//! A client is filed under the database and name of each space that it waits for. When something happens there, the
//! name is marked. Before the server sleeps, the marked names are looked at, so a space that nobody waits for costs
//! nothing.

use crate::server::blocking::blocked_clients::Handle;
use crate::server::ffi::clock::Clock;
use crate::server::ffi::context::{Context, OwnedString};
use crate::server::keyspace::key::SpaceReadGuard;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// What the command of a blocked client knows about it: the command hands this over, so that nothing here
/// names a command.
#[derive(Clone, Copy)]
pub struct Waiter {
    /// Whether there is something to reply now. None is no space.
    pub has_news: HasNews,
    /// Replies with how things are now.
    pub reply: fn(Context, &SpaceWait),
}

pub type HasNews = fn(&[u8], Option<&SpaceReadGuard>, &Since, u64) -> bool;

/// From where on a client wants events of a space. Whether there is news depends on nothing else, so one check
/// decides for all clients of a space that have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Since {
    /// The epoch of the space when the client began to wait, if the client is told when that is over.
    pub epoch: Option<u64>,
    /// The id after which it wants events; none where it wants all that are kept.
    pub after: Option<(u64, u64)>,
}

impl Since {
    pub fn id(&self) -> (u64, u64) {
        self.after.unwrap_or((0, 0))
    }

    /// Whether there were events that are not there without the space.
    pub fn has_seen_events(&self) -> bool {
        self.after.is_some_and(|after| after != (0, 0))
    }
}

/// A space that a client waits for.
pub struct AwaitedSpace {
    pub name: Vec<u8>,
    pub since: Since,
}

/// What a client waits for.
pub struct SpaceWait {
    pub waiter: Waiter,
    pub db: i32,
    pub spaces: Vec<AwaitedSpace>,
    pub count: usize,
}

type Place = (i32, Vec<u8>);

/// The clients that wait for one space from the same id on.
struct Group {
    has_news: HasNews,
    clients: BTreeSet<Handle>,
}

/// The clients that wait for one space.
///
/// After an event there is news for every group that has an id. So the groups that are checked in
/// vain are few, however many clients wait: those without an id, one per epoch.
type Waiting = BTreeMap<Since, Group>;

#[derive(Default)]
struct SpaceWaits {
    at: BTreeMap<Place, Waiting>,
    /// Where something has happened since the server last slept.
    marked: BTreeSet<Place>,
}

thread_local! {
    static SPACE_WAITS: RefCell<SpaceWaits> = RefCell::default();
}

pub(super) fn file(handle: Handle, wait: &SpaceWait) {
    SPACE_WAITS.with_borrow_mut(|space_waits| {
        for space in &wait.spaces {
            let waiting = space_waits.at.entry((wait.db, space.name.clone())).or_default();
            let new = || Group { has_news: wait.waiter.has_news, clients: BTreeSet::new() };
            waiting.entry(space.since).or_insert_with(new).clients.insert(handle);
        }
    });
}

pub(super) fn take_out(handle: Handle, wait: &SpaceWait) {
    SPACE_WAITS.with_borrow_mut(|space_waits| {
        for space in &wait.spaces {
            let place = (wait.db, space.name.clone());
            let Some(waiting) = space_waits.at.get_mut(&place) else { continue };
            let Some(group) = waiting.get_mut(&space.since) else { continue };
            group.clients.remove(&handle);
            if group.clients.is_empty() {
                waiting.remove(&space.since);
            }
            if waiting.is_empty() {
                space_waits.at.remove(&place);
            }
        }
    });
}

/// Something happened in a space, or it came, or it is gone.
pub fn wake(db: i32, name: &[u8]) {
    SPACE_WAITS.with_borrow_mut(|space_waits| {
        if space_waits.at.is_empty() {
            return;
        }
        let place = (db, name.to_vec());
        if space_waits.at.contains_key(&place) {
            space_waits.marked.insert(place);
        }
    });
}

/// The spaces of a database, or of all, are gone. Clients that wait for a space that was not there have
/// nothing to be told.
pub fn wake_flushed(db: Option<i32>) {
    SPACE_WAITS.with_borrow_mut(|space_waits| {
        let was_there = |since: &Since| since.epoch.is_some() || since.has_seen_events();
        let gone = space_waits.at.iter().filter(|((of, _), waiting)| {
            db.is_none_or(|db| db == *of) && waiting.keys().any(was_there)
        });
        space_waits.marked.extend(gone.map(|(place, _)| place.clone()));
    });
}

/// Everything may have happened in a database, or in all.
pub fn wake_db(db: Option<i32>) {
    SPACE_WAITS.with_borrow_mut(|space_waits| {
        let places = space_waits.at.keys().filter(|(of, _)| db.is_none_or(|db| db == *of));
        space_waits.marked.extend(places.cloned());
    });
}

/// Has those go on that wait under a marked name and have something to be told.
pub(super) fn serve(ctx: Context, go_on: fn(Handle)) {
    let next_marked = || SPACE_WAITS.with_borrow_mut(|space_waits| space_waits.marked.pop_first());
    while let Some(place) = next_marked() {
        let (db, name) = &place;
        if ctx.select_db(*db) {
            let served = with_news(ctx, &place, name);
            served.into_iter().for_each(go_on);
        }
    }
}

/// The clients for which there is news of this space.
fn with_news(ctx: Context, place: &Place, name: &[u8]) -> Vec<Handle> {
    let clock = Clock::default();
    let key = OwnedString::new(name);
    let space = SpaceReadGuard::open(ctx, key.as_arg(), &clock);
    let now = clock.now();
    SPACE_WAITS.with_borrow(|space_waits| {
        let groups = space_waits.at.get(place).into_iter().flatten();
        let with_news = groups.filter(|(since, group)| match &space {
            Ok(space) => (group.has_news)(name, space.as_ref(), since, now),
            // Another type is at the key: the client gets an error.
            Err(_) => true,
        });
        with_news.flat_map(|(_, group)| &group.clients).copied().collect()
    })
}

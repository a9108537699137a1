//! Clients that wait for the feed to go on.
//!
//! Clients that are shown the same events are one group, and the new events are looked at once for each group. Before
//! the server sleeps, only so many events are looked at and so many clients go on; the rest follows after the server
//! has served others. So neither many clients nor many patterns hold up the sweep. If the ring is too small for that,
//! the clients are told that there is a gap.

use crate::server::blocking::blocked_clients::Handle;
use crate::server::ffi::acl::Caller;
use crate::server::ffi::context::Context;
use crate::server::propagate::feed::{self, Filter};
use presence_core::feed::Feed;
use presence_core::glob::Glob;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, Instant};

/// New events are looked at for so long before the server sleeps.
const LOOKED_FOR: Duration = Duration::from_micros(100);
/// The clock is looked at after so many events.
const PER_LOOK_AT_CLOCK: u32 = 4;
/// At most so many clients go on before the server sleeps. One whose pattern is long counts several times: see
/// [`weight`].
const SERVED: usize = 32;

/// How often a client with this pattern counts. Its reply looks at events of the ring again, and a long pattern takes
/// as many steps for each byte of a name.
fn weight(glob: Option<&Glob>) -> usize {
    match glob.map_or(1, Glob::words) {
        1 => 1,
        words => words.saturating_mul(4),
    }
}

/// What a client waits for.
pub struct FeedWait {
    /// Replies with how things are now.
    pub reply: fn(Context, &FeedWait),
    pub group: Group,
    /// The number of the event that it wants next. What it does not want is left out while it waits.
    pub from: Cell<u64>,
    pub count: usize,
}

/// Which events a client is shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    pub db: i32,
    pub caller: Caller,
    pub pattern: Option<Vec<u8>>,
}

impl Group {
    pub fn glob(&self) -> Option<Glob> {
        self.pattern.as_deref().and_then(Glob::new)
    }
}

/// How long events are looked at.
struct Budget {
    ends: Instant,
    looks: u32,
    is_over: bool,
}

impl Budget {
    fn new() -> Self {
        Budget { ends: Instant::now() + LOOKED_FOR, looks: 0, is_over: false }
    }

    /// Called before each look. Returns whether there is no time for it.
    fn spend(&mut self) -> bool {
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(PER_LOOK_AT_CLOCK) {
            self.is_over = Instant::now() >= self.ends;
        }
        self.is_over
    }
}

struct Waiting {
    glob: Option<Glob>,
    /// Nothing before the event of this number is for the group.
    checked: u64,
    /// The clients, each with the number of the event that it wants next when it began to wait.
    clients: BTreeSet<(u64, Handle)>,
}

#[derive(Default)]
struct FeedWaits {
    groups: BTreeMap<Group, Waiting>,
    /// The group that was looked at last.
    last: Option<Group>,
}

thread_local! {
    static FEED_WAITS: RefCell<FeedWaits> = RefCell::default();
}

pub(super) fn file(handle: Handle, wait: &FeedWait) {
    FEED_WAITS.with_borrow_mut(|feed_waits| {
        let from = wait.from.get();
        let waiting = feed_waits.groups.entry(wait.group.clone()).or_insert_with(|| Waiting {
            glob: wait.group.glob(),
            checked: from,
            clients: BTreeSet::new(),
        });
        waiting.clients.insert((from, handle));
    });
}

pub(super) fn take_out(handle: Handle, wait: &FeedWait) {
    FEED_WAITS.with_borrow_mut(|feed_waits| {
        let Some(waiting) = feed_waits.groups.get_mut(&wait.group) else { return };
        let from = wait.from.get();
        waiting.clients.remove(&(from, handle));
        wait.from.set(from.max(waiting.checked));
        if waiting.clients.is_empty() {
            feed_waits.groups.remove(&wait.group);
        }
    });
}

/// Has those go on for which there is something new. Returns whether there is more to do.
pub(super) fn serve(go_on: fn(Handle)) -> bool {
    let groups = FEED_WAITS.with_borrow(|feed_waits| feed_waits.groups.len());
    if groups == 0 {
        return false;
    }
    let (mut budget, mut serves) = (Budget::new(), SERVED);
    for _ in 0..groups {
        let Some(group) = next_group() else { return false };
        loop {
            let (served, weight) = with_news(&group, &mut budget, serves);
            if served.is_empty() {
                break;
            }
            serves = serves.saturating_sub(served.len().saturating_mul(weight));
            served.into_iter().for_each(go_on);
            if serves == 0 || budget.is_over {
                break;
            }
        }
        if serves == 0 || budget.is_over {
            return true;
        }
    }
    false
}

/// The group after the one that was looked at last.
fn next_group() -> Option<Group> {
    FEED_WAITS.with_borrow_mut(|feed_waits| {
        let groups = &feed_waits.groups;
        let after = feed_waits
            .last
            .as_ref()
            .and_then(|last| groups.range((Excluded(last), Unbounded)).next());
        let group = after.or_else(|| groups.iter().next()).map(|(group, _)| group.clone());
        feed_waits.last.clone_from(&group);
        group
    })
}

/// Looks at new events for a group. Returns clients that have something to be told, at most so many by their weight,
/// and the weight of each.
fn with_news(group: &Group, budget: &mut Budget, serves: usize) -> (Vec<Handle>, usize) {
    FEED_WAITS.with_borrow_mut(|feed_waits| {
        let Some(waiting) = feed_waits.groups.get_mut(group) else { return (Vec::new(), 1) };
        let news = feed::with(|feed| waiting.look(group, feed, budget));
        let told = match news {
            Some(None) => return (Vec::new(), 1),
            Some(Some(number)) => number,
            // There is no ring any more, which is an error.
            None => u64::MAX,
        };
        let clients = waiting.clients.iter().take_while(|(from, _)| *from <= told);
        let weight = weight(waiting.glob.as_ref());
        let at_most = (serves / weight).max(1);
        (clients.take(at_most).map(|(_, handle)| *handle).collect(), weight)
    })
}

impl Waiting {
    /// Returns the number of the next event for the group; its clients from before that event have something to be
    /// told. `checked` is then that number, or it is where to go on.
    fn look(&mut self, group: &Group, feed: &Feed, budget: &mut Budget) -> Option<u64> {
        let oldest = self.clients.first().map_or(u64::MAX, |(from, _)| *from).max(self.checked);
        if feed.has_gap_after(oldest) {
            // All but those that began to wait behind the gap.
            let clients = self.clients.iter().map(|(from, _)| *from);
            return clients.take_while(|from| feed.has_gap_after(*from)).last();
        }
        if self.checked >= feed.end() {
            return None;
        }
        let mut filter = Filter::new(group.db, self.glob.as_ref(), &group.caller);
        for event in feed.events_from(oldest) {
            if budget.spend() {
                return None;
            }
            self.checked = event.number;
            if filter.shows(&event) {
                return Some(event.number);
            }
            self.checked += 1;
        }
        self.checked = feed.end();
        None
    }
}

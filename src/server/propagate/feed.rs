//! The feed of this process: the ring that `PRESENCE.FEED` reads. Primaries and replicas add each event to it when it
//! happens; what an RDB or an AOF tells happened before this run.

use crate::server::ffi::acl::{Caller, Reader};
use crate::server::ffi::context::OwnedString;
use crate::server::module::config;
use presence_core::feed::{Feed, FeedEvent};
use presence_core::glob::Glob;
use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};

/// A call looks at events of so many bytes at most, so that a large ring does not stop the server.
const LOOKED_AT: usize = 16 << 20;

thread_local! {
    static FEED: RefCell<Feed> = RefCell::new(Feed::new(new_run()));
}

/// A number of 16 digits that no other run has: the operating system gives the key of the hash.
fn new_run() -> u64 {
    const LEAST: u64 = 1_000_000_000_000_000;
    LEAST + RandomState::new().hash_one(0) % (9 * LEAST)
}

/// Adds an event, if there is a ring.
pub fn add(db: i32, space: &[u8], text: &[u8]) {
    let limit = config::feed_bytes();
    FEED.with_borrow_mut(|feed| {
        feed.resize(limit);
        feed.push(db, space, text);
    });
}

/// The setting may have changed.
pub fn resize() {
    let limit = config::feed_bytes();
    FEED.with_borrow_mut(|feed| feed.resize(limit));
}

/// The dataset was replaced by the one of a primary: events may have happened that this server did not get.
pub fn interrupt() {
    FEED.with_borrow_mut(Feed::interrupt);
}

/// Reads the ring; None where the setting says that there is none.
pub fn with<T>(read: impl FnOnce(&Feed) -> T) -> Option<T> {
    resize();
    FEED.with_borrow(|feed| (feed.limit() > 0).then(|| read(feed)))
}

/// The events that are kept, and their bytes in memory, for INFO.
pub fn size() -> (u64, usize) {
    FEED.with_borrow(|feed| (feed.len(), feed.size()))
}

/// Which events a reader is shown.
pub struct Filter<'a> {
    db: i32,
    glob: Option<&'a Glob>,
    reader: Reader,
    /// The space that was looked at last, and whether it is shown: events of one space often follow each other.
    last: Option<(Vec<u8>, bool)>,
}

impl<'a> Filter<'a> {
    pub fn new(db: i32, glob: Option<&'a Glob>, caller: &Caller) -> Self {
        Filter { db, glob, reader: Reader::of(caller), last: None }
    }

    pub fn shows(&mut self, event: &FeedEvent<'_>) -> bool {
        if event.db != self.db {
            return false;
        }
        if let Some((space, shown)) = &self.last
            && space == event.space
        {
            return *shown;
        }
        let shown = self.glob.is_none_or(|glob| glob.matches(event.space))
            && self.reader.may_read(OwnedString::new(event.space).as_arg());
        let space = self.last.get_or_insert_default();
        event.space.clone_into(&mut space.0);
        space.1 = shown;
        shown
    }
}

/// A part of the feed.
pub struct Page<'a> {
    pub texts: Vec<&'a [u8]>,
    /// The number to go on from.
    pub next: u64,
}

/// The events from a number on that the filter shows: at most so many, and no more once their texts have so many bytes.
pub fn page<'a>(
    feed: &'a Feed,
    from: u64,
    filter: &mut Filter<'_>,
    count: usize,
    bytes: usize,
) -> Page<'a> {
    let mut page = Page { texts: Vec::new(), next: feed.end() };
    let (mut shown, mut looked_at) = (0_usize, 0_usize);
    for event in feed.events_from(from) {
        looked_at = looked_at.saturating_add(event.space.len().saturating_add(event.text.len()));
        if filter.shows(&event) {
            shown = shown.saturating_add(event.text.len());
            page.texts.push(event.text);
        }
        if page.texts.len() >= count || shown >= bytes || looked_at >= LOOKED_AT {
            page.next = event.number.saturating_add(1);
            break;
        }
    }
    page
}
